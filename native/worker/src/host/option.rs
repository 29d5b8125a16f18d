//! What a library asks for while it loads, to happen when it goes: `enif_set_option`.
//!
//! A worker that is told to stop runs the callbacks of a library that is unloaded. One whose VM is gone is killed, so that
//! those of a VM that halts have nobody to run them; a library is told that they are set.

use super::env::{Env, Kind};
use super::load;
use std::ffi::{c_int, c_void};
use std::sync::{Mutex, PoisonError};

pub const DELAY_HALT: c_int = 1;
pub const ON_HALT: c_int = 2;
pub const ON_UNLOAD_THREAD: c_int = 3;

/// Gets `priv_data`.
pub type Callback = unsafe extern "C" fn(*mut c_void);

struct Options {
    loading: bool,
    /// By option.
    set: [bool; 4],
    unload_thread: Option<Callback>,
}

static OPTIONS: Mutex<Options> = Mutex::new(Options {
    loading: false,
    set: [false; 4],
    unload_thread: None,
});

fn options<T>(work: impl FnOnce(&mut Options) -> T) -> T {
    work(&mut OPTIONS.lock().unwrap_or_else(PoisonError::into_inner))
}

/// The load callback runs now, or does not any more: options are set there only.
pub fn loading(now: bool) {
    options(|options| options.loading = now);
}

/// 0, or `EINVAL`: outside of the load callback, twice, without a callback that the option has.
///
/// # Safety
/// `env` is null or the library's.
unsafe fn set(env: *const Env, option: c_int, callback: Option<Callback>) -> c_int {
    // SAFETY: the caller's promise.
    let of_load = unsafe { env.as_ref() }.is_some_and(|env| env.kind == Kind::Callback);
    let with_callback = match option {
        DELAY_HALT => false,
        ON_HALT | ON_UNLOAD_THREAD => true,
        _ => return libc::EINVAL,
    };
    options(|options| {
        let set = &mut options.set[option as usize];
        if !of_load || !options.loading || *set || (with_callback && callback.is_none()) {
            return libc::EINVAL;
        }
        *set = true;
        if option == ON_UNLOAD_THREAD {
            options.unload_thread = callback;
        }
        0
    })
}

/// For c/variadic.c: `enif_set_option`, which has a third argument for the options with a callback only.
///
/// # Safety
/// As the library calls it.
#[unsafe(no_mangle)]
unsafe extern "C" fn snakepit_set_option(env: *const Env, option: c_int, callback: Option<Callback>) -> c_int {
    // SAFETY: the library's env.
    unsafe { set(env, option, callback) }
}

/// An executor ends, and the library with it: runs what it wants each thread to do then.
pub fn thread_unloads() {
    if let Some(callback) = options(|options| options.unload_thread) {
        // SAFETY: the library's own callback, with its data, as the VM's schedulers call it.
        unsafe { callback(load::private()) };
    }
}
