//! Threads that run code of a library.
//!
//! The standard library's threads have a guard of one page, which a large frame steps over; the kernel gives the main
//! thread's stack a gap of 256 pages, and these get the same. What overflows meets memory that is not there: SIGSEGV.

use std::ffi::{CStr, c_void};
use std::mem::MaybeUninit;
use std::{io, mem, ptr};

/// The stack of every thread that runs code of a library.
pub const STACK_BYTES: usize = 8 << 20;

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
    set_name(start.name);
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

/// The name that `ps` and `top` show; an exec of `/proc/self/exe` leaves it at `exe`.
pub fn set_name(name: &CStr) {
    // SAFETY: the kernel reads at most 16 bytes of a terminated string.
    unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr()) };
}

/// Blocks all signals in the calling thread, those excepted that it raises by its own fault.
pub fn block_signals() {
    // SAFETY: the set is initialised by sigfillset and only read afterwards.
    unsafe {
        let mut set = mem::zeroed();
        libc::sigfillset(&mut set);
        for fault in [
            libc::SIGSEGV,
            libc::SIGBUS,
            libc::SIGILL,
            libc::SIGFPE,
            libc::SIGABRT,
            libc::SIGTRAP,
        ] {
            libc::sigdelset(&mut set, fault);
        }
        libc::pthread_sigmask(libc::SIG_SETMASK, &set, ptr::null_mut());
    }
}
