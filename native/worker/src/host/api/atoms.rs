//! Atoms. Texts come as latin-1, or as UTF-8 where 2.17's `ERL_NIF_UTF8` says so.

use crate::host::atom;
use crate::host::env::Env;
use crate::host::term::Term;
use std::borrow::Cow;
use std::ffi::{CStr, c_char, c_int, c_uint};

const LATIN1: c_int = 1;
const UTF8: c_int = 2;

/// Places of the cache that a library may keep by atom.
const CACHE: u32 = 2048;

unsafe fn bytes<'a>(name: *const c_char, length: usize) -> &'a [u8] {
    if length == 0 {
        return &[];
    }
    // SAFETY: the library gives so many bytes.
    unsafe { std::slice::from_raw_parts(name.cast(), length) }
}

fn decoded(name: &[u8], encoding: c_int) -> Option<Cow<'_, str>> {
    match encoding {
        LATIN1 => Some(atom::from_latin1(name)),
        UTF8 => std::str::from_utf8(name).ok().map(Cow::Borrowed),
        _ => None,
    }
}

fn make(env: &mut Env, name: &[u8]) -> Term {
    atom::make(&atom::from_latin1(name)).unwrap_or_else(|| env.bad_argument())
}

/// 2.17: false, and nothing raised, when the text is no atom's.
unsafe fn make_new(name: &[u8], encoding: c_int, atom: *mut Term) -> c_int {
    match decoded(name, encoding).and_then(|text| atom::make(&text)) {
        Some(term) => {
            // SAFETY: the library's out-parameter.
            unsafe { atom.write(term) };
            1
        }
        None => 0,
    }
}

unsafe fn existing(name: &[u8], encoding: c_int, atom: *mut Term) -> c_int {
    match decoded(name, encoding).and_then(|text| atom::existing_in_vm(&text)) {
        Some(term) => {
            // SAFETY: the library's out-parameter.
            unsafe { atom.write(term) };
            1
        }
        None => 0,
    }
}

/// Length of an atom in bytes of an encoding; `None` if it cannot be written in it.
fn length(term: Term, encoding: c_int) -> Option<usize> {
    let text = atom::text(term.as_atom()?);
    match encoding {
        LATIN1 => text
            .chars()
            .all(|character| u32::from(character) < 256)
            .then(|| text.chars().count()),
        UTF8 => Some(text.len()),
        _ => None,
    }
}

api! {
    fn enif_is_atom(_env: *mut Env, term: Term) -> c_int {
        c_int::from(term.is_atom())
    }

    fn enif_get_atom_cache_index(_env: *mut Env, atom: Term, index: *mut c_uint) -> c_int {
        let Some(number) = atom.as_atom() else { return 0 };
        index.write(number % CACHE);
        1
    }

    fn enif_max_atom_cache_index() -> c_uint {
        CACHE - 1
    }

    fn enif_make_atom(env: *mut Env, name: *const c_char) -> Term {
        make(&mut *env, CStr::from_ptr(name).to_bytes())
    }

    fn enif_make_atom_len(env: *mut Env, name: *const c_char, length: usize) -> Term {
        make(&mut *env, bytes(name, length))
    }

    fn enif_make_new_atom(_env: *mut Env, name: *const c_char, atom: *mut Term, encoding: c_int) -> c_int {
        make_new(CStr::from_ptr(name).to_bytes(), encoding, atom)
    }

    fn enif_make_new_atom_len(
        _env: *mut Env,
        name: *const c_char,
        length: usize,
        atom: *mut Term,
        encoding: c_int,
    ) -> c_int {
        make_new(bytes(name, length), encoding, atom)
    }

    fn enif_make_existing_atom(_env: *mut Env, name: *const c_char, atom: *mut Term, encoding: c_int) -> c_int {
        existing(CStr::from_ptr(name).to_bytes(), encoding, atom)
    }

    fn enif_make_existing_atom_len(
        _env: *mut Env,
        name: *const c_char,
        length: usize,
        atom: *mut Term,
        encoding: c_int,
    ) -> c_int {
        existing(bytes(name, length), encoding, atom)
    }

    fn enif_get_atom_length(_env: *mut Env, atom: Term, place: *mut c_uint, encoding: c_int) -> c_int {
        match length(atom, encoding) {
            Some(length) => {
                place.write(length as c_uint);
                1
            }
            None => 0,
        }
    }

    fn enif_get_atom(_env: *mut Env, atom: Term, buffer: *mut c_char, size: c_uint, encoding: c_int) -> c_int {
        let (Some(length), Some(number)) = (length(atom, encoding), atom.as_atom()) else { return 0 };
        if length >= size as usize {
            return 0;
        }
        let text = atom::text(number);
        if encoding == UTF8 {
            std::ptr::copy_nonoverlapping(text.as_ptr(), buffer.cast(), length);
        } else {
            for (position, character) in text.chars().enumerate() {
                buffer.cast::<u8>().add(position).write(character as u8);
            }
        }
        buffer.add(length).write(0);
        length as c_int + 1
    }
}
