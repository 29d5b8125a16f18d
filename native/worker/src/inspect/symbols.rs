//! What a library needs of others and gives to others, as the dynamic linker sees it. Section headers are for debuggers
//! and may be missing; nothing here looks at them.

use super::image::{Image, half, terminated, word};
use object::elf::{
    DT_GNU_HASH, DT_HASH, DT_NEEDED, DT_RPATH, DT_RUNPATH, DT_SONAME, DT_STRSZ, DT_STRTAB, DT_SYMTAB, SHN_UNDEF,
    STB_LOCAL, STB_WEAK, STV_DEFAULT, STV_PROTECTED,
};

/// A symbol is so many bytes.
const SYMBOL: usize = 24;
/// The largest libraries have a tenth of these.
pub const MOST_SYMBOLS: usize = 4 << 20;
/// C++ has long names.
const LONGEST_NAME: usize = 64 << 10;
const MOST_NEEDED: usize = 512;
/// Of another library; longer ones cannot be opened.
const LONGEST_FILE: usize = libc::PATH_MAX as usize;

#[derive(Debug, Clone, Copy)]
pub struct Symbol<'a> {
    pub name: &'a [u8],
    pub value: u64,
    pub defined: bool,
    pub weak: bool,
    /// Others can link to it.
    pub visible: bool,
}

#[derive(Debug)]
pub struct Symbols<'a> {
    table: &'a [u8],
    strings: &'a [u8],
}

/// The directories that a library has for those that it needs.
#[derive(Debug, Default)]
pub struct Search {
    pub path: String,
    /// They come before those of `LD_LIBRARY_PATH`, and not after.
    pub first: bool,
}

impl<'a> Symbols<'a> {
    /// None: the tables are not where the file says that they are.
    pub fn read(image: &Image<'a>) -> Option<Self> {
        let strings = image.from(image.tag(DT_STRTAB)?)?;
        let size = usize::try_from(image.tag(DT_STRSZ)?).ok()?;
        let strings = strings.get(..size)?;
        let table = image.tag(DT_SYMTAB)?;
        let count = count(image)?.min(MOST_SYMBOLS);
        Some(Self {
            table: image.at(table, count.checked_mul(SYMBOL)?)?,
            strings,
        })
    }

    pub fn get(&self, index: u32) -> Option<Symbol<'a>> {
        let start = (index as usize).checked_mul(SYMBOL)?;
        let bytes = self.table.get(start..start.checked_add(SYMBOL)?)?;
        let name = self.string(half(bytes, 0).into())?;
        let (info, other) = (*bytes.get(4)?, *bytes.get(5)?);
        let section = u16::from_le_bytes([*bytes.get(6)?, *bytes.get(7)?]);
        let visibility = other & 3;
        Some(Symbol {
            name,
            value: word(bytes, 8),
            defined: section != SHN_UNDEF,
            weak: info >> 4 == STB_WEAK,
            visible: info >> 4 != STB_LOCAL && (visibility == STV_DEFAULT || visibility == STV_PROTECTED),
        })
    }

    /// Those with a name that others can see.
    pub fn visible(&self) -> impl Iterator<Item = Symbol<'a>> + '_ {
        (0..(self.table.len() / SYMBOL) as u32)
            .filter_map(|index| self.get(index))
            .filter(|symbol| symbol.visible && !symbol.name.is_empty())
    }

    fn string(&self, offset: u64) -> Option<&'a [u8]> {
        self.text(offset, LONGEST_NAME)
    }

    fn text(&self, offset: u64, most: usize) -> Option<&'a [u8]> {
        terminated(self.strings.get(usize::try_from(offset).ok()?..)?, most)
    }

    /// The texts of a tag of the dynamic segment.
    fn texts(&self, image: &Image<'a>, tag: i64, most: usize) -> Vec<String> {
        image
            .dynamic
            .iter()
            .filter(|(found, _)| *found == tag)
            .take(MOST_NEEDED)
            .filter_map(|(_, offset)| self.text(*offset, most))
            .map(|text| String::from_utf8_lossy(text).into_owned())
            .collect()
    }

    /// The libraries that it needs, by the names that it has for them.
    pub fn needed(&self, image: &Image<'a>) -> Vec<String> {
        self.texts(image, DT_NEEDED, LONGEST_FILE)
    }

    pub fn soname(&self, image: &Image<'a>) -> Option<String> {
        self.texts(image, DT_SONAME, LONGEST_FILE).pop()
    }

    /// Where it wants them to be looked for. The older of the two tags counts only without the newer one.
    pub fn search(&self, image: &Image<'a>) -> Search {
        if let Some(path) = self.texts(image, DT_RUNPATH, LONGEST_NAME).pop() {
            return Search { path, first: false };
        }
        let path = self.texts(image, DT_RPATH, LONGEST_NAME).pop().unwrap_or_default();
        Search { path, first: true }
    }

    /// Where its names lie, as an address range within the file's bytes.
    pub fn strings(&self) -> &'a [u8] {
        self.strings
    }
}

/// How many symbols there are is written nowhere: each kind of hash table knows.
fn count(image: &Image<'_>) -> Option<usize> {
    if let Some(table) = image.tag(DT_HASH) {
        return Some(image.u32(table.checked_add(4)?)? as usize);
    }
    let table = image.from(image.tag(DT_GNU_HASH)?)?;
    let (buckets, base, bloom) = (
        half(table, 0) as usize,
        half(table, 4) as usize,
        half(table, 8) as usize,
    );
    let buckets_at = bloom.checked_mul(8)?.checked_add(16)?;
    let chains_at = buckets.checked_mul(4)?.checked_add(buckets_at)?;
    let last = table
        .get(buckets_at..chains_at)?
        .chunks_exact(4)
        .take(MOST_SYMBOLS)
        .map(|bucket| half(bucket, 0))
        .max()
        .unwrap_or(0) as usize;
    // Nothing is exported: what is imported comes before the first that would be.
    let Some(first) = last.checked_sub(base).filter(|_| last != 0) else {
        return Some(base);
    };
    let chain = table.get(first.checked_mul(4)?.checked_add(chains_at)?..)?;
    let more = chain
        .chunks_exact(4)
        .take(MOST_SYMBOLS)
        .position(|value| half(value, 0) & 1 != 0)?;
    last.checked_add(more)?.checked_add(1)
}
