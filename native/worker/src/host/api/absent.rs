//! What needs the VM's answer, and will have it through events and requests of the worker; and what 2.17 and 2.18 added to
//! look into the VM itself.

use crate::host::env::Env;
use crate::host::term::Term;
use std::ffi::{c_int, c_uint, c_void};

absent! {
    fn enif_term_size(Term) -> usize = 0_usize;
    fn enif_get_atom_cache_index(*mut Env, Term, *mut c_uint) -> c_int = 0;
    fn enif_max_atom_cache_index() -> c_uint = 0_u32;
    fn enif_set_option(*mut Env, c_int, *mut c_void) -> c_int = -1;
}
