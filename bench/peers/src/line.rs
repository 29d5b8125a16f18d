//! One cache line, written in turn by two processes that spin: what no call between two processes can be faster than.

use crate::os::check;
use crate::partner::{self, Partner};
use crate::{Outcome, nanoseconds, work};
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

const PAGE: usize = 4096;
const LEAVE: u64 = u64::MAX;

/// Each of `count` round trips, with so much work of our own in front of each.
pub fn round_trips(count: usize, work_ns: u64) -> Outcome<Vec<u64>> {
    let memory = memory()?;
    let word = map(&memory)?;
    let partner = Partner::start(&["line"], &[memory.as_fd()])?;
    // Odd is a question, the even number after it the answer. Release here, Acquire there, and back: the pair of both
    // stores is the other side's load.
    let mut turn = 1;
    let mut ask = || {
        word.store(turn, Ordering::Release);
        while word.load(Ordering::Acquire) == turn {}
        turn += 2;
    };
    ask();
    let samples = (0..count)
        .map(|_| {
            work(work_ns);
            let start = Instant::now();
            ask();
            nanoseconds(start)
        })
        .collect();
    word.store(LEAVE, Ordering::Release);
    partner.wait()?;
    Ok(samples)
}

/// The other process.
pub fn answer() -> Outcome<()> {
    // SAFETY: started by `round_trips` with one descriptor.
    let memory = unsafe { partner::given(0) };
    let word = map(&memory)?;
    loop {
        match word.load(Ordering::Acquire) {
            LEAVE => return Ok(()),
            turn if turn % 2 == 1 => word.store(turn + 1, Ordering::Release),
            _ => {}
        }
    }
}

fn memory() -> io::Result<OwnedFd> {
    // SAFETY: a string that ends in NUL, and flags.
    let number = check(unsafe { libc::memfd_create(c"bench_line".as_ptr(), libc::MFD_CLOEXEC) })?;
    // SAFETY: the kernel has just made it, nobody else owns it.
    let memory = unsafe { OwnedFd::from_raw_fd(number) };
    // SAFETY: takes integers.
    check(unsafe { libc::ftruncate(memory.as_raw_fd(), PAGE as libc::off_t) })?;
    Ok(memory)
}

fn map(memory: &OwnedFd) -> io::Result<&'static AtomicU64> {
    let both = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a new mapping, of a file that is as long and stays so.
    let page = unsafe { libc::mmap(ptr::null_mut(), PAGE, both, libc::MAP_SHARED, memory.as_raw_fd(), 0) };
    if page == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a page is aligned and begins with zeros; it is never unmapped, and only ever used as atomic words.
    Ok(unsafe { AtomicU64::from_ptr(page.cast()) })
}
