//! Pointers in a library's data, as they will be when it is loaded: the relocations say where they are and what they
//! point to.

use super::image::{Image, half, word};
use super::symbols::Symbols;
use object::elf::{
    DT_RELA, DT_RELASZ, DT_RELR, DT_RELRSZ, R_AARCH64_ABS64, R_AARCH64_RELATIVE, R_X86_64_64, R_X86_64_RELATIVE,
};

/// The largest libraries have half of these.
const MOST: usize = 2 << 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pointer {
    /// To an address of this library.
    Here(u64),
    /// To something in another one.
    Elsewhere,
}

/// By the address where they lie, in order, each once: a map of so many would take several times as much.
#[derive(Debug, Default)]
pub struct Pointers(Vec<(u64, Pointer)>);

impl Pointers {
    pub fn read(image: &Image<'_>, symbols: &Symbols<'_>) -> Self {
        let mut pointers = Vec::new();
        if let Some(table) = table(image, DT_RELR, DT_RELRSZ) {
            packed(image, table, &mut pointers);
        }
        // Later than the packed ones, as the linker does it.
        if let Some(table) = table(image, DT_RELA, DT_RELASZ) {
            for entry in table.chunks_exact(24).take(MOST.saturating_sub(pointers.len())) {
                if let Some(pointer) = pointer(symbols, half(entry, 8), half(entry, 12), word(entry, 16)) {
                    pointers.push((word(entry, 0), pointer));
                }
            }
        }
        // Of those of one address the last one counts: the sort keeps their order, and from behind it comes first.
        pointers.reverse();
        pointers.sort_by_key(|(address, _)| *address);
        pointers.dedup_by_key(|(address, _)| *address);
        Self(pointers)
    }

    /// What the pointer at an address points to; none: it is null, or nothing is known.
    pub fn at(&self, address: u64) -> Option<Pointer> {
        let at = self.0.binary_search_by_key(&address, |(address, _)| *address).ok()?;
        self.0.get(at).map(|(_, pointer)| *pointer)
    }

    /// An address in this library that the pointer at `address` points to.
    pub fn here(&self, address: u64) -> Option<u64> {
        match self.at(address)? {
            Pointer::Here(target) => Some(target),
            Pointer::Elsewhere => None,
        }
    }

    /// Where pointers to such places lie, in order.
    pub fn to(&self, mut place: impl FnMut(u64) -> bool) -> Vec<u64> {
        self.0
            .iter()
            .filter(|(_, pointer)| matches!(pointer, Pointer::Here(target) if place(*target)))
            .map(|(address, _)| *address)
            .collect()
    }
}

fn table<'a>(image: &Image<'a>, at: i64, size: i64) -> Option<&'a [u8]> {
    image.at(image.tag(at)?, usize::try_from(image.tag(size)?).ok()?)
}

fn pointer(symbols: &Symbols<'_>, kind: u32, symbol: u32, addend: u64) -> Option<Pointer> {
    // The numbers of one processor mean other things on the other.
    let (relative, absolute) = if cfg!(target_arch = "aarch64") {
        (R_AARCH64_RELATIVE, R_AARCH64_ABS64)
    } else {
        (R_X86_64_RELATIVE, R_X86_64_64)
    };
    if kind == relative {
        return Some(Pointer::Here(addend));
    }
    if kind != absolute {
        return None;
    }
    let symbol = symbols.get(symbol)?;
    Some(if symbol.defined {
        Pointer::Here(symbol.value.wrapping_add(addend))
    } else {
        Pointer::Elsewhere
    })
}

/// `DT_RELR`: an even word is an address, an odd one says which of the 63 words behind the last are pointers, too. What they point to
/// lies in them.
fn packed(image: &Image<'_>, table: &[u8], pointers: &mut Vec<(u64, Pointer)>) {
    let mut next = 0_u64;
    let mut note = |address: u64| {
        if let Some(target) = image.u64(address)
            && pointers.len() < MOST
        {
            pointers.push((address, Pointer::Here(target)));
        }
    };
    for entry in table.chunks_exact(8).take(MOST / 64) {
        let entry = word(entry, 0);
        if entry & 1 == 0 {
            note(entry);
            next = entry.wrapping_add(8);
            continue;
        }
        for bit in 0..63 {
            if entry >> (bit + 1) & 1 == 1 {
                note(next.wrapping_add(bit * 8));
            }
        }
        next = next.wrapping_add(63 * 8);
    }
}
