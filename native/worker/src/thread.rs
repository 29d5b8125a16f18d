//! Threads that run code of a library.
//!
//! The standard library's threads have a guard of one page, which a large frame steps over; the kernel gives the main
//! thread's stack a gap of 256 pages, and these get the same. What overflows meets memory that is not there: SIGSEGV.

use crate::process::STACK_BYTES;
use std::ffi::{CStr, c_void};
use std::mem::MaybeUninit;
use std::{io, ptr};

const GUARD_BYTES: usize = 1 << 20;

/// A thread that can be waited for.
#[derive(Debug)]
pub struct Thread {
    id: libc::pthread_t,
}

struct Start {
    name: &'static CStr,
    body: Box<dyn FnOnce() + Send>,
}

extern "C" fn enter(start: *mut c_void) -> *mut c_void {
    // SAFETY: `spawn` gave this box away to this thread alone.
    let start = unsafe { Box::from_raw(start.cast::<Start>()) };
    crate::process::set_name(start.name);
    (start.body)();
    ptr::null_mut()
}

/// Starts a thread with the stack of an executor.
pub fn spawn(name: &'static CStr, body: impl FnOnce() + Send + 'static) -> io::Result<Thread> {
    let start = Box::into_raw(Box::new(Start {
        name,
        body: Box::new(body),
    }));
    let mut attributes = MaybeUninit::uninit();
    let mut id = MaybeUninit::uninit();
    // SAFETY: the attributes are initialised before they are used and destroyed after; `enter` takes the box if the
    // thread starts, and it comes back to us if not.
    unsafe {
        libc::pthread_attr_init(attributes.as_mut_ptr());
        libc::pthread_attr_setstacksize(attributes.as_mut_ptr(), STACK_BYTES);
        libc::pthread_attr_setguardsize(attributes.as_mut_ptr(), GUARD_BYTES);
        let error = libc::pthread_create(id.as_mut_ptr(), attributes.as_ptr(), enter, start.cast());
        libc::pthread_attr_destroy(attributes.as_mut_ptr());
        if error != 0 {
            drop(Box::from_raw(start));
            return Err(io::Error::from_raw_os_error(error));
        }
        Ok(Thread { id: id.assume_init() })
    }
}

impl Thread {
    /// Until the thread has ended.
    pub fn join(self) {
        // SAFETY: a thread that `spawn` has started joinable and that nobody else joins, since this takes `self`.
        unsafe { libc::pthread_join(self.id, ptr::null_mut()) };
    }
}
