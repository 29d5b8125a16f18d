//! SIGXFSZ, kept away from the VM.
//!
//! With a file-size limit (`ulimit -f`) the kernel answers `ftruncate`, `fallocate` and `pwrite` with EFBIG *and* sends
//! SIGXFSZ, whose default action ends the process; a memfd counts as a file there. [`without_sigxfsz`] blocks the
//! signal in this thread for the length of one call and takes it off the queue when the call has raised it.

use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};
use std::mem::MaybeUninit;
use std::ptr;

/// Runs `call` with SIGXFSZ blocked in this thread and leaves none pending that was not pending before.
///
/// Without a limit, the usual case, there is no signal to block: one system call instead of four.
pub fn without_sigxfsz<T>(call: impl FnOnce() -> T) -> T {
    let _guard = is_limited().then(Blocked::new);
    call()
}

fn is_limited() -> bool {
    getrlimit(Resource::RLIMIT_FSIZE).map_or(true, |(soft, _)| soft != RLIM_INFINITY)
}

struct Blocked {
    xfsz: libc::sigset_t,
    before: libc::sigset_t,
    pending_before: bool,
}

impl Blocked {
    fn new() -> Self {
        let xfsz = only_xfsz();
        let pending_before = is_pending();
        let mut before = MaybeUninit::zeroed();
        // SAFETY: both sets are valid for the call; pthread_sigmask writes the whole of `before`.
        let before = unsafe {
            libc::pthread_sigmask(libc::SIG_BLOCK, &xfsz, before.as_mut_ptr());
            before.assume_init()
        };
        Blocked {
            xfsz,
            before,
            pending_before,
        }
    }
}

impl Drop for Blocked {
    fn drop(&mut self) {
        if !self.pending_before && is_pending() {
            let none = libc::timespec { tv_sec: 0, tv_nsec: 0 };
            // SAFETY: the set and the time are valid; without a siginfo the kernel writes nothing.
            unsafe { libc::sigtimedwait(&self.xfsz, ptr::null_mut(), &none) };
        }
        // SAFETY: `before` came from pthread_sigmask in this very thread (the guard never leaves it).
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &self.before, ptr::null_mut()) };
    }
}

fn only_xfsz() -> libc::sigset_t {
    let mut set = MaybeUninit::zeroed();
    // SAFETY: sigemptyset initialises the set, sigaddset changes it.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigaddset(set.as_mut_ptr(), libc::SIGXFSZ);
        set.assume_init()
    }
}

fn is_pending() -> bool {
    let mut set = MaybeUninit::zeroed();
    // SAFETY: sigpending initialises the set, sigismember reads it.
    unsafe {
        libc::sigpending(set.as_mut_ptr());
        libc::sigismember(set.as_ptr(), libc::SIGXFSZ) == 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_raised_signal_is_consumed() {
        let guard = Blocked::new();
        // SAFETY: a signal to the calling thread, blocked by the guard.
        unsafe { libc::pthread_kill(libc::pthread_self(), libc::SIGXFSZ) };
        assert!(is_pending());
        drop(guard);
        assert!(!is_pending());
    }

    #[test]
    fn the_mask_comes_back() {
        let set = || {
            let mut set = MaybeUninit::zeroed();
            // SAFETY: with a null set the mask is only read.
            unsafe {
                libc::pthread_sigmask(libc::SIG_BLOCK, ptr::null(), set.as_mut_ptr());
                libc::sigismember(&set.assume_init(), libc::SIGXFSZ)
            }
        };
        let before = set();
        let guard = Blocked::new();
        assert_eq!(set(), 1);
        drop(guard);
        assert_eq!(set(), before);
    }
}
