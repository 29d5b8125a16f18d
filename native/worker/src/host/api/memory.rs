//! Memory that only the library knows.

use crate::host::lack::looked_at;
use std::ffi::c_void;

api! {
    fn enif_alloc(size: usize) -> *mut c_void {
        // Nothing is something: libraries take null for no memory.
        looked_at(libc::malloc(size.max(1)))
    }

    fn enif_free(memory: *mut c_void) {
        libc::free(memory);
    }

    fn enif_realloc(memory: *mut c_void, size: usize) -> *mut c_void {
        looked_at(libc::realloc(memory, size.max(1)))
    }
}
