//! `ErlNifEntry` in a library's data. Libraries in C and C++ have it there, complete but for its pointers; Rustler's make it when
//! `nif_init` is called, and then nothing can be known of it without running them.
//!
//! It is found by its VM variant: a pointer to `beam.vanilla`, at a fixed place behind fields that all have to make sense.

use super::image::Image;
use super::names::Names;
use super::pointers::Pointers;
use std::collections::HashSet;

/// Where the fields are (`host/entry.rs` has the structure).
const NAME: u64 = 8;
const COUNT: u64 = 16;
const TABLE: u64 = 24;
const LOAD: u64 = 32;
const RELOAD: u64 = 40;
const UPGRADE: u64 = 48;
const UNLOAD: u64 = 56;
const VARIANT: u64 = 64;
const MIN_ERTS: u64 = 88;

const VANILLA: &[u8] = b"beam.vanilla";
/// An atom has 255 characters, of up to four bytes.
const LONGEST_NAME: usize = 1020;
/// As for loading.
const MOST_FUNCTIONS: u32 = 100_000;
const MOST_MINOR: u32 = 99;
/// Several libraries linked into one have an entry each.
const MOST_ENTRIES: usize = 16;
/// So many places that look like one are read.
const MOST_PLACES: usize = 1024;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Function {
    pub name: String,
    pub arity: u32,
    /// 0, 1 (processor) or 2 (I/O): on which kind of dirty scheduler the VM would run it.
    pub dirty: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub module: String,
    pub minor: u32,
    pub functions: Vec<Function>,
    pub load: bool,
    pub reload: bool,
    pub upgrade: bool,
    pub unload: bool,
    /// From 2.14 on.
    pub min_erts: Option<String>,
}

/// All that the library has.
pub fn find(image: &Image<'_>, pointers: &Pointers, names: &mut Names) -> Vec<Entry> {
    let vanilla = |target| image.string(target, VANILLA.len()) == Some(VANILLA);
    pointers
        .to(vanilla)
        .into_iter()
        .take(MOST_PLACES)
        .filter_map(|place| read(image, pointers, place.checked_sub(VARIANT)?, names))
        .take(MOST_ENTRIES)
        .collect()
}

fn read(image: &Image<'_>, pointers: &Pointers, at: u64, names: &mut Names) -> Option<Entry> {
    // What lies inside of it is not beyond the end of the address space.
    at.checked_add(MIN_ERTS + 8)?;
    let (major, minor) = (image.u32(at)?, image.u32(at + 4)?);
    if major != 2 || minor > MOST_MINOR {
        return None;
    }
    let module = text(image, pointers, at + NAME).filter(|name| !name.is_empty())?;
    let count = image.u32(at + COUNT)?;
    if count > MOST_FUNCTIONS {
        return None;
    }
    let functions = if count == 0 {
        Vec::new()
    } else {
        functions(image, pointers, pointers.here(at + TABLE)?, count, minor, names)?
    };
    // A callback is code, of this library or of another, or it is not there.
    let callback = |place: u64| match pointers.at(at + place) {
        None => Some(false),
        Some(super::pointers::Pointer::Here(target)) => image.executable(target).then_some(true),
        Some(super::pointers::Pointer::Elsewhere) => Some(true),
    };
    Some(Entry {
        module,
        minor,
        functions,
        load: callback(LOAD)?,
        reload: callback(RELOAD)?,
        upgrade: callback(UPGRADE)?,
        unload: callback(UNLOAD)?,
        min_erts: (minor >= 14).then(|| text(image, pointers, at + MIN_ERTS)).flatten(),
    })
}

fn functions(
    image: &Image<'_>,
    pointers: &Pointers,
    table: u64,
    count: u32,
    minor: u32,
    names: &mut Names,
) -> Option<Vec<Function>> {
    // From 2.7 on with flags.
    let stride = if minor >= 7 { 32 } else { 24 };
    let mut seen = HashSet::new();
    (0..u64::from(count))
        .map(|position| {
            let at = table.checked_add(position * stride)?;
            at.checked_add(stride)?;
            let name = text(image, pointers, at)?;
            let arity = image.u32(at + 8).filter(|arity| *arity <= 255)?;
            pointers.at(at + 16)?;
            let dirty = if minor >= 7 { image.u32(at + 24)? } else { 0 };
            // Kept twice.
            if dirty > 2 || !seen.insert((names.keep(&name)?, arity)) {
                return None;
            }
            let name = names.keep(&name)?;
            Some(Function { name, arity, dirty })
        })
        .collect()
}

/// The string that the pointer at an address points to. Names of modules and functions are Latin-1.
fn text(image: &Image<'_>, pointers: &Pointers, at: u64) -> Option<String> {
    let bytes = image.string(pointers.here(at)?, LONGEST_NAME)?;
    let text: String = bytes.iter().map(|byte| char::from(*byte)).collect();
    (!text.chars().any(char::is_control)).then_some(text)
}
