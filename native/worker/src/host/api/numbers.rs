//! Integers and floats.

use crate::host::env::Env;
use crate::host::term::{Shape, Term};
use std::ffi::{c_double, c_int, c_long, c_uint, c_ulong};

/// The value, if it has 64 bits with sign.
fn signed(term: Term) -> Option<i64> {
    if let Some(value) = term.as_small() {
        return Some(value);
    }
    let big = term.as_big()?;
    match *big.limbs {
        [limb] if big.negative => (limb <= 1 << 63).then(|| (limb as i64).wrapping_neg()),
        [limb] => i64::try_from(limb).ok(),
        _ => None,
    }
}

/// The value, if it has 64 bits without sign.
fn unsigned(term: Term) -> Option<u64> {
    if let Some(value) = term.as_small() {
        return u64::try_from(value).ok();
    }
    let big = term.as_big()?;
    match *big.limbs {
        [limb] if !big.negative => Some(limb),
        _ => None,
    }
}

/// Stores what is there; whether it was.
#[inline]
unsafe fn store<T>(value: Option<T>, place: *mut T) -> c_int {
    match value {
        Some(value) => {
            // SAFETY: the library's out-parameter.
            unsafe { place.write(value) };
            1
        }
        None => 0,
    }
}

api! {
    fn enif_get_int(_env: *mut Env, term: Term, value: *mut c_int) -> c_int {
        store(term.as_small().and_then(|small| small.try_into().ok()), value)
    }

    fn enif_get_uint(_env: *mut Env, term: Term, value: *mut c_uint) -> c_int {
        store(term.as_small().and_then(|small| small.try_into().ok()), value)
    }

    fn enif_get_long(_env: *mut Env, term: Term, value: *mut c_long) -> c_int {
        store(signed(term), value)
    }

    fn enif_get_ulong(_env: *mut Env, term: Term, value: *mut c_ulong) -> c_int {
        store(unsigned(term), value)
    }

    fn enif_get_int64(_env: *mut Env, term: Term, value: *mut i64) -> c_int {
        store(signed(term), value)
    }

    fn enif_get_uint64(_env: *mut Env, term: Term, value: *mut u64) -> c_int {
        store(unsigned(term), value)
    }

    fn enif_get_double(_env: *mut Env, term: Term, value: *mut c_double) -> c_int {
        store(term.as_float(), value)
    }

    fn enif_is_number(_env: *mut Env, term: Term) -> c_int {
        c_int::from(matches!(term.shape(), Shape::Small(_) | Shape::Big(_) | Shape::Float(_)))
    }

    fn enif_make_int(_env: *mut Env, value: c_int) -> Term {
        Term::of_i32(value)
    }

    fn enif_make_uint(env: *mut Env, value: c_uint) -> Term {
        (*env).integer(i64::from(value))
    }

    fn enif_make_long(env: *mut Env, value: c_long) -> Term {
        (*env).integer(value)
    }

    fn enif_make_ulong(env: *mut Env, value: c_ulong) -> Term {
        (*env).unsigned(value)
    }

    fn enif_make_int64(env: *mut Env, value: i64) -> Term {
        (*env).integer(value)
    }

    fn enif_make_uint64(env: *mut Env, value: u64) -> Term {
        (*env).unsigned(value)
    }

    fn enif_make_double(env: *mut Env, value: c_double) -> Term {
        if value.is_finite() { (*env).float(value) } else { (*env).bad_argument() }
    }
}
