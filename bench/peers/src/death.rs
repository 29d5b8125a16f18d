//! How long a process takes to be dead.

use crate::Outcome;
use crate::os::check;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

const DEADLINE_MS: libc::c_int = 10_000;

/// Kills it; answers the clock before the signal and when its pid file descriptor became readable.
pub fn kill(pid: libc::pid_t) -> Outcome<Vec<u64>> {
    // SAFETY: takes integers.
    let number = check(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) } as libc::c_int)?;
    // SAFETY: the kernel has just made it, nobody else owns it.
    let process = unsafe { OwnedFd::from_raw_fd(number) };
    let sent = now()?;
    // SAFETY: takes integers.
    check(unsafe { libc::kill(pid, libc::SIGKILL) })?;
    let mut poll = libc::pollfd {
        fd: process.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one entry, which lives through the call.
    if check(unsafe { libc::poll(&mut poll, 1, DEADLINE_MS) })? == 0 {
        return Err("the process did not end".into());
    }
    Ok(vec![sent, now()?])
}

/// The clock of Erlang's `os:perf_counter/0`.
fn now() -> io::Result<u64> {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes one timespec, which is ours.
    check(unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) })?;
    Ok(time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64)
}
