//! Lists and strings. The variadic `enif_make_list` is C's.

use crate::host::env::Env;
use crate::host::term::Term;
use std::ffi::{CStr, c_char, c_int, c_uint};

const LATIN1: c_int = 1;
const UTF8: c_int = 2;

fn string(env: &mut Env, characters: impl DoubleEndedIterator<Item = u32>) -> Term {
    characters.rev().fold(Term::NIL, |tail, character| {
        env.cons(Term::of_i32(character as i32), tail)
    })
}

unsafe fn make_string(env: *mut Env, bytes: &[u8], encoding: c_int) -> Term {
    // SAFETY: the library's env.
    let env = unsafe { &mut *env };
    match (encoding, std::str::from_utf8(bytes)) {
        (LATIN1, _) => string(env, bytes.iter().map(|byte| u32::from(*byte))),
        (UTF8, Ok(text)) => string(env, text.chars().map(u32::from)),
        _ => env.bad_argument(),
    }
}

/// The list's characters; `None` at the first element or tail that is none.
fn characters(list: Term) -> impl Iterator<Item = Option<char>> {
    let mut rest = list;
    std::iter::from_fn(move || {
        let Some(cell) = rest.as_cons() else {
            let proper = rest == Term::NIL;
            rest = Term::NIL;
            return if proper { None } else { Some(None) };
        };
        rest = cell.tail;
        let code = cell.head.as_small().and_then(|code| u32::try_from(code).ok());
        Some(code.and_then(char::from_u32))
    })
}

/// How a character is written; empty if it cannot be.
fn encoded(character: char, encoding: c_int, room: &mut [u8; 4]) -> &[u8] {
    match encoding {
        LATIN1 if u32::from(character) < 256 => {
            room[0] = character as u8;
            &room[..1]
        }
        UTF8 => character.encode_utf8(room).as_bytes(),
        _ => &[],
    }
}

api! {
    fn enif_is_list(_env: *mut Env, term: Term) -> c_int {
        c_int::from(term.is_list())
    }

    fn enif_is_empty_list(_env: *mut Env, term: Term) -> c_int {
        c_int::from(term == Term::NIL)
    }

    fn enif_get_list_cell(_env: *mut Env, term: Term, head: *mut Term, tail: *mut Term) -> c_int {
        match term.as_cons() {
            Some(cell) => {
                head.write(cell.head);
                tail.write(cell.tail);
                1
            }
            None => 0,
        }
    }

    fn enif_get_list_length(_env: *mut Env, term: Term, length: *mut c_uint) -> c_int {
        let mut count = 0;
        let mut rest = term;
        while let Some(cell) = rest.as_cons() {
            count += 1;
            rest = cell.tail;
        }
        if rest != Term::NIL {
            return 0;
        }
        length.write(count);
        1
    }

    fn enif_make_list_cell(env: *mut Env, head: Term, tail: Term) -> Term {
        (*env).cons(head, tail)
    }

    fn enif_make_list_from_array(env: *mut Env, elements: *const Term, count: c_uint) -> Term {
        if count == 0 {
            return Term::NIL;
        }
        (*env).list(std::slice::from_raw_parts(elements, count as usize), Term::NIL)
    }

    fn enif_make_reverse_list(env: *mut Env, term: Term, list: *mut Term) -> c_int {
        let mut reversed = Term::NIL;
        let mut rest = term;
        while let Some(cell) = rest.as_cons() {
            reversed = (*env).cons(cell.head, reversed);
            rest = cell.tail;
        }
        if rest != Term::NIL {
            return 0;
        }
        list.write(reversed);
        1
    }

    fn enif_make_string(env: *mut Env, text: *const c_char, encoding: c_int) -> Term {
        make_string(env, CStr::from_ptr(text).to_bytes(), encoding)
    }

    fn enif_make_string_len(env: *mut Env, text: *const c_char, length: usize, encoding: c_int) -> Term {
        let bytes = if length == 0 { &[] } else { std::slice::from_raw_parts(text.cast(), length) };
        make_string(env, bytes, encoding)
    }

    fn enif_get_string_length(_env: *mut Env, list: Term, length: *mut c_uint, encoding: c_int) -> c_int {
        let mut bytes = 0;
        for character in characters(list) {
            let mut room = [0; 4];
            match character.map(|character| encoded(character, encoding, &mut room).len()) {
                None | Some(0) => return 0,
                Some(size) => bytes += size as c_uint,
            }
        }
        length.write(bytes);
        1
    }

    fn enif_get_string(_env: *mut Env, list: Term, buffer: *mut c_char, size: c_uint, encoding: c_int) -> c_int {
        let size = size as usize;
        if size < 1 {
            return 0;
        }
        let buffer = buffer.cast::<u8>();
        let mut written = 0;
        for character in characters(list) {
            let mut room = [0; 4];
            let bytes = character.map_or(&[][..], |character| encoded(character, encoding, &mut room));
            if bytes.is_empty() {
                buffer.add(written).write(0);
                return 0;
            }
            if written + bytes.len() >= size {
                // What fits is given, and that it is not all.
                buffer.add(written).write(0);
                return -(size as c_int);
            }
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), buffer.add(written), bytes.len());
            written += bytes.len();
        }
        buffer.add(written).write(0);
        written as c_int + 1
    }
}
