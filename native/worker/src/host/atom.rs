//! Atoms: one table for the process, never shrinking, since libraries keep atoms in static variables.
//!
//! Reading a text by its number takes no lock: texts lie in pages that never move.

use super::service;
use super::term::Term;
use snakepit_wire::service::{Reply, Request};
use std::cell::Cell;
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::atomic::{AtomicPtr, Ordering};
use std::sync::{LazyLock, PoisonError, RwLock};

/// Characters of the longest atom.
pub const CHARACTERS: usize = 255;

const PAGE: usize = 1024;
const PAGES: usize = 4096;

type Page = [&'static str; PAGE];

static TEXTS: [AtomicPtr<Page>; PAGES] = [const { AtomicPtr::new(std::ptr::null_mut()) }; PAGES];

/// Numbers by text.
struct Numbers {
    map: HashMap<&'static str, u32, BuildHasherDefault<TextHash>>,
}

static NUMBERS: LazyLock<RwLock<Numbers>> = LazyLock::new(|| {
    let mut numbers = Numbers {
        map: HashMap::default(),
    };
    for text in KNOWN {
        numbers.add(text);
    }
    RwLock::new(numbers)
});

/// In the order of the constants below.
const KNOWN: [&str; 6] = ["badarg", "true", "false", "undefined", "ok", "error"];
pub const BADARG: Term = Term::atom(0);
pub const UNDEFINED: Term = Term::atom(3);

/// Eight bytes at a time, multiplied and folded; the table is the process's own, so nobody gains by collisions but
/// the library itself.
#[derive(Debug, Default)]
pub struct TextHash(u64);

impl Hasher for TextHash {
    #[inline]
    fn write(&mut self, bytes: &[u8]) {
        let mut hash = self.0 ^ (bytes.len() as u64);
        let (chunks, rest) = bytes.as_chunks::<8>();
        for chunk in chunks {
            hash = super::hash::mix(hash, u64::from_le_bytes(*chunk));
        }
        let mut last = [0; 8];
        last[..rest.len()].copy_from_slice(rest);
        self.0 = super::hash::mix(hash, u64::from_le_bytes(last));
    }

    #[inline]
    fn write_u8(&mut self, _: u8) {}

    #[inline]
    fn finish(&self) -> u64 {
        self.0
    }
}

impl Numbers {
    fn add(&mut self, text: &str) -> Option<u32> {
        let number = self.map.len();
        let slot = TEXTS.get(number / PAGE)?;
        // Relaxed: only writers of pages come here, one after the other under the table's lock.
        let mut page = slot.load(Ordering::Relaxed);
        if page.is_null() {
            page = Box::into_raw(Box::new([""; PAGE]));
            // Release pairs with the Acquire of `text`.
            slot.store(page, Ordering::Release);
        }
        let text: &'static str = Box::leak(text.to_owned().into_boxed_str());
        // SAFETY: pages are never freed; the place is written once, before its number is known to anybody. The number
        // reaches other threads through the table's lock or through whatever the library hands the word over with.
        unsafe { (*page)[number % PAGE] = text };
        self.map.insert(text, number as u32);
        Some(number as u32)
    }
}

/// The atom with this text, if there is one already.
#[inline]
pub fn existing(text: &str) -> Option<Term> {
    let mut hasher = TextHash::default();
    hasher.write(text.as_bytes());
    let place = hasher.finish() as usize % RECENT;
    RECENTLY.with(|recently| {
        // One more than the atom's number; 0 is none.
        let known = recently[place].get().wrapping_sub(1);
        if known != u32::MAX && self::text(known) == text {
            return Some(Term::atom(known));
        }
        let numbers = NUMBERS.read().unwrap_or_else(PoisonError::into_inner);
        let number = *numbers.map.get(text)?;
        recently[place].set(number + 1);
        Some(Term::atom(number))
    })
}

/// The atom with this text, if there is one already, here or in the VM.
pub fn existing_in_vm(text: &str) -> Option<Term> {
    existing(text).or_else(|| ask(text))
}

#[cold]
fn ask(text: &str) -> Option<Term> {
    let name = is_short(text).then(|| text.to_owned())?;
    let reply = service::ask(|request| Request::Exists { request, name })?;
    (reply == Reply::Yes).then(|| add(text))?
}

fn is_short(text: &str) -> bool {
    text.len() <= CHARACTERS || text.chars().count() <= CHARACTERS
}

const RECENT: usize = 256;

thread_local! {
    /// Atoms that this thread has asked for, by their hash values: spares it the lock.
    static RECENTLY: [Cell<u32>; RECENT] = const { [const { Cell::new(0) }; RECENT] };
}

/// The atom with this text; `None` if the text is too long or the table (4 million atoms) is full.
#[inline]
pub fn make(text: &str) -> Option<Term> {
    existing(text).or_else(|| add(text))
}

#[cold]
fn add(text: &str) -> Option<Term> {
    if !is_short(text) {
        return None;
    }
    let mut numbers = NUMBERS.write().unwrap_or_else(PoisonError::into_inner);
    if let Some(number) = numbers.map.get(text) {
        return Some(Term::atom(*number));
    }
    numbers.add(text).map(Term::atom)
}

/// The text of an atom; empty for a number that no atom has.
#[inline]
pub fn text(number: u32) -> &'static str {
    let number = number as usize;
    let Some(slot) = TEXTS.get(number / PAGE) else {
        return "";
    };
    // Acquire pairs with the Release in `add`.
    let page = slot.load(Ordering::Acquire);
    if page.is_null() {
        return "";
    }
    // SAFETY: pages are never freed, and a number is given out after its place was written.
    unsafe { (*page)[number % PAGE] }
}

/// The text of a latin-1 string.
pub fn from_latin1(bytes: &[u8]) -> std::borrow::Cow<'_, str> {
    match std::str::from_utf8(bytes) {
        Ok(text) if bytes.is_ascii() => text.into(),
        _ => bytes.iter().map(|byte| char::from(*byte)).collect::<String>().into(),
    }
}
