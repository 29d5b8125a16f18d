//! The pipe behind stdout and stderr, kept moving.
//!
//! A library that prints to a pipe that nobody empties sleeps in `write` for ever. So the worker can read that pipe
//! itself: when it has been full for as long as [`PATIENCE`] beats, what is in it (the oldest) is thrown away, and who
//! waits goes on. A non-blocking pipe would be worse: Rust's `println!` panics over what it cannot write.

use crate::packet::wait_for;
use std::os::fd::AsRawFd;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

const STDOUT: RawFd = 1;
/// Beats of the heart, of half a second each.
const PATIENCE: u32 = 4;

#[derive(Debug)]
pub struct OutputPipe {
    reader: Option<OwnedFd>,
    full: u32,
}

impl OutputPipe {
    /// Opens the reading end of our own output, if it is a pipe and /proc is there.
    pub fn open() -> Self {
        OutputPipe {
            reader: is_pipe().then(open_reader).flatten(),
            full: 0,
        }
    }

    /// To be called with each beat.
    pub fn look(&mut self) {
        let Some(reader) = &self.reader else { return };
        let mut poll = [libc::pollfd {
            fd: STDOUT,
            events: libc::POLLOUT,
            revents: 0,
        }];
        if wait_for(&mut poll, 0) {
            self.full = 0;
            return;
        }
        self.full += 1;
        if self.full >= PATIENCE {
            self.full = 0;
            let mut lost = [0_u8; 4096];
            // As much as the smallest pipe holds and no more: what is printed meanwhile shall stay.
            for _ in 0..16 {
                // SAFETY: the pointer and the length are those of one array; the descriptor does not block.
                if unsafe { libc::read(reader.as_raw_fd(), lost.as_mut_ptr().cast(), lost.len()) } <= 0 {
                    break;
                }
            }
        }
    }
}

fn is_pipe() -> bool {
    // SAFETY: all zeroes is a valid stat, which the call fills.
    unsafe {
        let mut stat: libc::stat = std::mem::zeroed();
        libc::fstat(STDOUT, &mut stat) == 0 && stat.st_mode & libc::S_IFMT == libc::S_IFIFO
    }
}

fn open_reader() -> Option<OwnedFd> {
    let flags = libc::O_RDONLY | libc::O_NONBLOCK | libc::O_CLOEXEC;
    // SAFETY: a terminated path; a new descriptor has no other owner.
    unsafe {
        let fd = libc::open(c"/proc/self/fd/1".as_ptr(), flags);
        (fd >= 0).then(|| OwnedFd::from_raw_fd(fd))
    }
}
