//! Atoms that a thread has looked up by their text. The VM's own table has a lock that all schedulers share; an atom stays
//! for the VM's life, so its word stays good.

use rustler::sys::ErlNifTerm;
use std::cell::RefCell;

/// Places; a text has one of them.
const PLACES: usize = 1024;
/// The longest text that is kept.
const LENGTH: usize = 31;

#[derive(Debug, Clone, Copy)]
struct Recent {
    word: Option<ErlNifTerm>,
    length: u8,
    text: [u8; LENGTH],
}

const NONE: Recent = Recent {
    word: None,
    length: 0,
    text: [0; LENGTH],
};

thread_local! {
    /// Made when it is needed: most threads of the VM decode nothing.
    static RECENT: RefCell<Option<Box<[Recent; PLACES]>>> = const { RefCell::new(None) };
}

/// The atom of a text in ASCII; `look_up` knows it if this thread has not asked for it lately.
#[inline]
pub fn atom<E>(text: &[u8], look_up: impl FnOnce() -> Result<ErlNifTerm, E>) -> Result<ErlNifTerm, E> {
    if text.len() > LENGTH {
        return look_up();
    }
    RECENT.with(|recent| {
        // Taken only if somebody looks up an atom while he looks up an atom.
        let Ok(mut recent) = recent.try_borrow_mut() else {
            return look_up();
        };
        let places = recent.get_or_insert_with(|| Box::new([NONE; PLACES]));
        let place = &mut places[place(text)];
        if let Some(word) = place.word
            && usize::from(place.length) == text.len()
            && place.text[..text.len()] == *text
        {
            return Ok(word);
        }
        let word = look_up()?;
        place.word = Some(word);
        place.length = text.len() as u8;
        place.text[..text.len()].copy_from_slice(text);
        Ok(word)
    })
}

/// By what most texts differ in: their length, their first and their last bytes. Who makes them collide makes his own calls slow.
#[inline]
fn place(text: &[u8]) -> usize {
    let mut first = [0; 8];
    let mut last = [0; 8];
    let length = text.len().min(8);
    first[..length].copy_from_slice(&text[..length]);
    last[..length].copy_from_slice(&text[text.len() - length..]);
    let mixed = u64::from_le_bytes(first).wrapping_mul(0x9E37_79B9_7F4A_7C15)
        ^ u64::from_le_bytes(last)
            .wrapping_add(text.len() as u64)
            .wrapping_mul(0xD6E8_FEB8_6659_FD93);
    (mixed >> 48) as usize % PLACES
}
