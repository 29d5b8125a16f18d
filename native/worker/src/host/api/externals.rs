//! The external term format.

use super::binaries::Binary;
use crate::host::env::Env;
use crate::host::external;
use crate::host::missing;
use crate::host::term::Term;
use std::ffi::{c_int, c_uint};
use std::ptr;

/// Atoms that are not there yet are refused, as are funs.
const SAFE: c_uint = 0x2000_0000;

api! {
    fn enif_term_to_binary(_env: *mut Env, term: Term, binary: *mut Binary) -> c_int {
        let bytes = match external::encode(term) {
            Ok(bytes) => bytes,
            Err(symbol) => {
                missing::called(symbol);
                return 0;
            }
        };
        if !Binary::allocate(binary, bytes.len()) {
            return 0;
        }
        ptr::copy_nonoverlapping(bytes.as_ptr(), (*binary).data, bytes.len());
        1
    }

    fn enif_binary_to_term(env: *mut Env, data: *const u8, size: usize, term: *mut Term, options: c_uint) -> usize {
        if options != 0 && options != SAFE {
            return 0;
        }
        let bytes = if size == 0 { &[] } else { std::slice::from_raw_parts(data, size) };
        match external::decode(&mut *env, bytes, options == SAFE) {
            Ok((made, read)) => {
                term.write(made);
                read
            }
            Err(external::Wrong::Malformed) => 0,
            Err(external::Wrong::Missing(symbol)) => {
                missing::called(symbol);
                0
            }
        }
    }
}
