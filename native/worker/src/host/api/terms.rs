//! What terms are, how they compare, and copies of them.

use crate::host::env::Env;
use crate::host::order::{compare, identical};
use crate::host::term::{Shape, Term};
use crate::host::{copy, hash, missing, portable_hash, size};
use snakepit_wire::NameKind;
use std::ffi::c_int;

/// `ErlNifHash`.
const INTERNAL: c_int = 1;
const PHASH2: c_int = 2;

fn is_name(term: Term, kind: NameKind) -> c_int {
    c_int::from(term.as_name().is_some_and(|name| name.kind == kind))
}

api! {
    fn enif_is_ref(_env: *mut Env, term: Term) -> c_int {
        is_name(term, NameKind::Reference) | c_int::from(term.as_resource().is_some())
    }

    fn enif_is_fun(_env: *mut Env, term: Term) -> c_int {
        is_name(term, NameKind::Fun)
    }

    fn enif_is_pid(_env: *mut Env, term: Term) -> c_int {
        is_name(term, NameKind::Pid)
    }

    fn enif_is_port(_env: *mut Env, term: Term) -> c_int {
        is_name(term, NameKind::Port)
    }

    fn enif_is_identical(left: Term, right: Term) -> c_int {
        c_int::from(identical(left, right))
    }

    fn enif_compare(left: Term, right: Term) -> c_int {
        compare(left, right) as c_int
    }

    fn enif_make_copy(env: *mut Env, term: Term) -> Term {
        copy::copy(&mut *env, term)
    }

    fn enif_hash(kind: c_int, term: Term, salt: u64) -> u64 {
        match kind {
            // Of 32 bits in the VM.
            INTERNAL => hash::of(term, salt) & 0xFFFF_FFFF,
            PHASH2 => portable_hash::of(term).map_or_else(
                || {
                    missing::called("enif_hash(ERL_NIF_PHASH2) of a resource");
                    0
                },
                u64::from,
            ),
            _ => 0,
        }
    }

    fn enif_term_size(term: Term) -> usize {
        size::of(term) as usize * size_of::<Term>()
    }

    fn enif_term_type(_env: *mut Env, term: Term) -> c_int {
        match term.shape() {
            Shape::Atom(_) => 1,
            Shape::Bits(_) => 2,
            Shape::Float(_) => 3,
            Shape::Small(_) | Shape::Big(_) => 5,
            Shape::Cons(..) | Shape::Nil => 6,
            Shape::Map => 7,
            Shape::Tuple(_) => 11,
            Shape::Resource(_) => 10,
            Shape::Name(name) => match name.kind {
                NameKind::Fun => 4,
                NameKind::Pid => 8,
                NameKind::Port => 9,
                NameKind::Reference => 10,
            },
            // The VM aborts for a word that is no term.
            Shape::Invalid => -1,
        }
    }
}
