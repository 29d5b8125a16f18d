//! What a library's constants tell of it, where its tables say nothing.

use super::image::{Image, terminated};
use super::symbols::Symbols;
use std::collections::BTreeSet;

/// Constants of more than this are not looked through.
const MOST_BYTES: usize = 256 << 20;
const MOST_NAMES: usize = 4096;
/// Longer than any function of the API.
const LONGEST: usize = 64;

/// The version of Rustler that a library is made with: places in its source are part of the messages of its panics.
pub fn rustler(image: &Image<'_>) -> Option<String> {
    find(image, b"/rustler-").find_map(|rest| {
        let end = rest.iter().take(LONGEST).position(|byte| *byte == b'/')?;
        let version = std::str::from_utf8(rest.get(..end)?).ok()?;
        let plain = version.starts_with(|first: char| first.is_ascii_digit())
            && version
                .chars()
                .all(|part| part.is_ascii_alphanumeric() || ".-+".contains(part));
        plain.then(|| version.to_owned())
    })
}

/// Functions of the API that the library has the names of, to look them up when it runs (as Rustler's do). Names that the linker
/// uses lie elsewhere, and are not meant.
pub fn looked_up(image: &Image<'_>, symbols: &Symbols<'_>) -> BTreeSet<String> {
    let strings = symbols.strings().as_ptr_range();
    find(image, b"enif_")
        .filter(|rest| !strings.contains(&rest.as_ptr()))
        .filter_map(|rest| {
            let name = terminated(rest, LONGEST)?;
            let plain = name
                .iter()
                .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || *byte == b'_');
            (plain && !name.is_empty()).then(|| format!("enif_{}", String::from_utf8_lossy(name)))
        })
        .take(MOST_NAMES)
        .collect()
}

/// Whether a terminated text is among the constants.
pub fn mentions(image: &Image<'_>, text: &str) -> bool {
    !text.is_empty() && find(image, text.as_bytes()).any(|rest| rest.first() == Some(&0))
}

/// What follows each place where the constants have `needle`.
fn find<'a>(image: &Image<'a>, needle: &'a [u8]) -> impl Iterator<Item = &'a [u8]> {
    let mut left = MOST_BYTES;
    let parts: Vec<&'a [u8]> = image
        .constants()
        .map(|segment| {
            let part = segment.bytes.get(..segment.bytes.len().min(left)).unwrap_or_default();
            left -= part.len();
            part
        })
        .collect();
    parts.into_iter().flat_map(move |part| {
        part.windows(needle.len())
            .enumerate()
            .filter(move |(_, window)| *window == needle)
            .filter_map(move |(at, _)| part.get(at + needle.len()..))
    })
}
