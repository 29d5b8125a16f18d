//! Tuples. The variadic `enif_make_tuple` is C's.

use crate::host::env::Env;
use crate::host::term::Term;
use std::ffi::{c_int, c_uint};

api! {
    fn enif_is_tuple(_env: *mut Env, term: Term) -> c_int {
        c_int::from(term.as_tuple().is_some())
    }

    fn enif_get_tuple(_env: *mut Env, term: Term, arity: *mut c_int, elements: *mut *const Term) -> c_int {
        match term.as_tuple() {
            Some(tuple) => {
                arity.write(tuple.len() as c_int);
                elements.write(tuple.as_ptr());
                1
            }
            None => 0,
        }
    }

    fn enif_make_tuple_from_array(env: *mut Env, elements: *const Term, count: c_uint) -> Term {
        if count == 0 {
            return (*env).tuple(&[]);
        }
        (*env).tuple(std::slice::from_raw_parts(elements, count as usize))
    }
}
