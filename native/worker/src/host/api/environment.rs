//! Envs that no call owns.

use crate::host::env::{Env, Kind};
use crate::host::library::Library;
use std::ffi::c_void;
use std::ptr;

api! {
    fn enif_alloc_env() -> *mut Env {
        Box::into_raw(Env::independent())
    }

    fn enif_free_env(env: *mut Env) {
        if !env.is_null() && (*env).kind == Kind::Independent {
            drop(Box::from_raw(env));
        }
    }

    fn enif_clear_env(env: *mut Env) {
        (*env).clear();
    }

    fn enif_priv_data(env: *mut Env) -> *mut c_void {
        (*env).library.map_or(ptr::null_mut(), Library::private)
    }
}
