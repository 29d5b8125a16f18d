//! What a library asks for while it loads, to happen when it goes: `enif_set_option`.
//!
//! A worker that is told to stop runs the callbacks of a library that is unloaded. One whose VM is gone is killed, so that
//! those of a VM that halts have nobody to run them; a library is told that they are set.

use super::env::{Env, Kind};
use super::library::{self, Library};
use std::ffi::{c_int, c_void};
use std::sync::PoisonError;

pub const DELAY_HALT: c_int = 1;
pub const ON_HALT: c_int = 2;
pub const ON_UNLOAD_THREAD: c_int = 3;

/// Gets `priv_data`.
pub type Callback = unsafe extern "C" fn(*mut c_void);

#[derive(Debug, Default)]
pub struct Options {
    loading: bool,
    /// By option.
    set: [bool; 4],
    unload_thread: Option<Callback>,
}

fn options<T>(library: &Library, work: impl FnOnce(&mut Options) -> T) -> T {
    work(&mut library.options.lock().unwrap_or_else(PoisonError::into_inner))
}

/// The load or upgrade callback runs now, or does not any more: options are set there only.
pub fn loading(library: &Library, now: bool) {
    options(library, |options| options.loading = now);
}

/// Whether it runs.
pub fn is_loading(library: &Library) -> bool {
    options(library, |options| options.loading)
}

/// 0, or `EINVAL`: outside of the load callback, twice, without a callback that the option has.
///
/// # Safety
/// `env` is null or the library's.
unsafe fn set(env: *const Env, option: c_int, callback: Option<Callback>) -> c_int {
    // SAFETY: the caller's promise.
    let env = unsafe { env.as_ref() }.filter(|env| env.kind == Kind::Callback);
    let Some(library) = env.and_then(|env| env.library) else {
        return libc::EINVAL;
    };
    let with_callback = match option {
        DELAY_HALT => false,
        ON_HALT | ON_UNLOAD_THREAD => true,
        _ => return libc::EINVAL,
    };
    options(library, |options| {
        let set = &mut options.set[option as usize];
        if !options.loading || *set || (with_callback && callback.is_none()) {
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

/// A library goes: runs what it wants a thread to do then.
pub fn thread_unloads(library: &'static Library) {
    if let Some(callback) = options(library, |options| options.unload_thread) {
        // SAFETY: the library's own callback, with its data, as the VM's schedulers call it.
        unsafe { callback(library.private()) };
    }
}

/// An executor ends, and all libraries with it.
pub fn threads_unload() {
    library::all().into_iter().for_each(thread_unloads);
}
