//! Threads of the library and their own data. `enif_thread_exit` is C's: it unwinds through the library's frames and C's
//! alone.

use super::locks::owned_name;
use crate::host::executor;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::ffi::{CString, c_char, c_int, c_void};
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::atomic::{AtomicI32, Ordering};

pub type Body = unsafe extern "C" fn(*mut c_void) -> *mut c_void;

/// `ErlNifTid` points to one. Belongs to who joins the thread.
#[derive(Debug)]
pub struct Thread {
    id: libc::pthread_t,
    body: Option<Body>,
    argument: *mut c_void,
    name: CString,
}

/// `ErlNifThreadOpts`.
#[derive(Debug)]
#[repr(C)]
pub struct Options {
    /// In 1024 words; negative: the default.
    suggested_stack_size: c_int,
}

/// Stack of a thread that names none, in bytes.
const STACK: usize = 8 << 20;
const SMALLEST_STACK: usize = 64 << 10;

unsafe extern "C" {
    /// Calls `snakepit_thread_body` with what it is given; in C, so that `pthread_exit` meets no frame of Rust's.
    fn snakepit_thread_start(thread: *mut c_void) -> *mut c_void;
}

thread_local! {
    static SELF: Cell<*mut Thread> = const { Cell::new(ptr::null_mut()) };
    /// By key. Not the C library's: it has 1024 keys, the VM as many as one likes.
    static DATA: RefCell<HashMap<c_int, *mut c_void>> = RefCell::default();
}

/// The next key. Keys are not used again, so what a thread has under a destroyed one is found by nobody.
static KEYS: AtomicI32 = AtomicI32::new(0);

/// None: there is nothing, or the thread is so near its end that there is nothing any more.
fn own(usage: impl FnOnce(&mut HashMap<c_int, *mut c_void>) -> Option<*mut c_void>) -> Option<*mut c_void> {
    DATA.try_with(|data| usage(&mut data.borrow_mut())).ok().flatten()
}

/// What the thread is to run.
///
/// # Safety
/// `thread` is one that `enif_thread_create` made; the out-parameters are valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn snakepit_thread_body(thread: *mut Thread, argument: *mut *mut c_void) -> Option<Body> {
    SELF.set(thread);
    // SAFETY: the caller's promise; `thread` was complete before the thread started.
    unsafe {
        argument.write((*thread).argument);
        (*thread).body
    }
}

fn stack(options: *const Options) -> usize {
    // SAFETY: null or the library's options.
    let kilowords =
        unsafe { options.as_ref() }.and_then(|options| usize::try_from(options.suggested_stack_size).ok());
    kilowords.map_or(STACK, |kilowords| kilowords.saturating_mul(8 << 10).max(SMALLEST_STACK))
}

api! {
    fn enif_thread_opts_create(_name: *mut c_char) -> *mut Options {
        Box::into_raw(Box::new(Options { suggested_stack_size: -1 }))
    }

    fn enif_thread_opts_destroy(options: *mut Options) {
        if !options.is_null() {
            drop(Box::from_raw(options));
        }
    }

    fn enif_thread_create(
        name: *mut c_char,
        tid: *mut *mut Thread,
        body: Option<Body>,
        argument: *mut c_void,
        options: *mut Options,
    ) -> c_int {
        let thread = Box::into_raw(Box::new(Thread { id: 0, body, argument, name: owned_name(name) }));
        let mut attributes = MaybeUninit::uninit();
        libc::pthread_attr_init(attributes.as_mut_ptr());
        libc::pthread_attr_setstacksize(attributes.as_mut_ptr(), stack(options));
        let mut id = MaybeUninit::uninit();
        let start: extern "C" fn(*mut c_void) -> *mut c_void = std::mem::transmute(snakepit_thread_start as *const ());
        let error = libc::pthread_create(id.as_mut_ptr(), attributes.as_ptr(), start, thread.cast());
        libc::pthread_attr_destroy(attributes.as_mut_ptr());
        if error != 0 {
            drop(Box::from_raw(thread));
            return error;
        }
        // Only who joins reads it, and he has the pointer from here.
        (&raw mut (*thread).id).write(id.assume_init());
        tid.write(thread);
        0
    }

    fn enif_thread_self() -> *mut Thread {
        if SELF.get().is_null() {
            // A thread that the library did not make: an executor. It lives as long as the process.
            let id = libc::pthread_self();
            let thread = Thread { id, body: None, argument: ptr::null_mut(), name: CString::default() };
            SELF.set(Box::into_raw(Box::new(thread)));
        }
        SELF.get()
    }

    fn enif_equal_tids(one: *mut Thread, other: *mut Thread) -> c_int {
        c_int::from(ptr::eq(one, other))
    }

    fn enif_thread_join(thread: *mut Thread, result: *mut *mut c_void) -> c_int {
        let error = libc::pthread_join((*thread).id, result);
        if error == 0 {
            drop(Box::from_raw(thread));
        }
        error
    }

    fn enif_thread_name(thread: *mut Thread) -> *mut c_char {
        if thread.is_null() { ptr::null_mut() } else { (*thread).name.as_ptr().cast_mut() }
    }

    fn enif_thread_type() -> c_int {
        // Threads of the library are no schedulers: 0. Executors are those that the VM would have chosen: a normal one for a
        // normal function (1), dirty ones for CPU (2) and I/O (3).
        let of_library = !SELF.get().is_null() && (*SELF.get()).body.is_some();
        if of_library { 0 } else { 1 + executor::dirty_flags() as c_int }
    }

    fn enif_tsd_key_create(_name: *mut c_char, key: *mut c_int) -> c_int {
        // Relaxed: only that it is nobody else's.
        key.write(KEYS.fetch_add(1, Ordering::Relaxed));
        0
    }

    fn enif_tsd_key_destroy(key: c_int) {
        // Other threads keep what they have put there: nobody can ask for it any more.
        own(|data| data.remove(&key));
    }

    fn enif_tsd_set(key: c_int, data: *mut c_void) {
        own(|own| own.insert(key, data));
    }

    fn enif_tsd_get(key: c_int) -> *mut c_void {
        own(|data| data.get(&key).copied()).unwrap_or(ptr::null_mut())
    }
}
