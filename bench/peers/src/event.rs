//! Two sleeping processes on two processors, each of which wakes the other through an eventfd: what a call to a worker that
//! sleeps costs the kernel alone.

use crate::os::check;
use crate::partner::{self, Partner};
use crate::{Outcome, nanoseconds};
use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::thread;
use std::time::{Duration, Instant};

const LEAVE: u64 = 1 << 32;

/// Each of `count` round trips, with a gap in front of it in which both sleep.
pub fn round_trips(count: usize, gap: Duration) -> Outcome<Vec<u64>> {
    let [here, there, ..] = processors()?[..] else {
        return Err("a round trip between two processors needs two".into());
    };
    let before = affinity()?;
    let (forth, back) = (event()?, event()?);
    let partner = Partner::start(&["event", &there.to_string()], &[forth.as_fd(), back.as_fd()])?;
    pin(here)?;
    let samples = (0..=count)
        .map(|_| {
            thread::sleep(gap);
            let start = Instant::now();
            add(&forth, 1)?;
            take(&back)?;
            Ok(nanoseconds(start))
        })
        // The first one waited until the other process was there.
        .skip(1)
        .collect::<io::Result<Vec<u64>>>();
    add(&forth, LEAVE)?;
    partner.wait()?;
    set_affinity(&before)?;
    Ok(samples?)
}

/// The other process.
pub fn answer(processor: usize) -> Outcome<()> {
    // SAFETY: started by `round_trips` with two descriptors, each asked for once.
    let (forth, back) = unsafe { (partner::given(0), partner::given(1)) };
    pin(processor)?;
    while take(&forth)? < LEAVE {
        add(&back, 1)?;
    }
    Ok(())
}

fn event() -> io::Result<OwnedFd> {
    // SAFETY: takes integers.
    let number = check(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) })?;
    // SAFETY: the kernel has just made it, nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

fn add(event: &OwnedFd, number: u64) -> io::Result<()> {
    // SAFETY: eight bytes, which live through the call.
    match unsafe { libc::write(event.as_raw_fd(), (&raw const number).cast(), 8) } {
        8 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn take(event: &OwnedFd) -> io::Result<u64> {
    let mut number = 0_u64;
    // SAFETY: eight bytes of ours, written through the call.
    match unsafe { libc::read(event.as_raw_fd(), (&raw mut number).cast(), 8) } {
        8 => Ok(number),
        _ => Err(io::Error::last_os_error()),
    }
}

// ── Processors ──────────────────────────────────────────────────────────────────────────────────────────────────────

fn affinity() -> io::Result<libc::cpu_set_t> {
    // SAFETY: all zeros is an empty set.
    let mut set: libc::cpu_set_t = unsafe { mem::zeroed() };
    // SAFETY: writes at most that many bytes of a set of ours.
    check(unsafe { libc::sched_getaffinity(0, mem::size_of_val(&set), &mut set) })?;
    Ok(set)
}

fn set_affinity(set: &libc::cpu_set_t) -> io::Result<()> {
    // SAFETY: reads that many bytes of a set of ours.
    check(unsafe { libc::sched_setaffinity(0, mem::size_of_val(set), set) }).map(drop)
}

/// Those on which we may run.
fn processors() -> io::Result<Vec<usize>> {
    let set = affinity()?;
    // SAFETY: the number is below the size of the set.
    let may = |&number: &usize| unsafe { libc::CPU_ISSET(number, &set) };
    Ok((0..libc::CPU_SETSIZE as usize).filter(may).collect())
}

fn pin(processor: usize) -> io::Result<()> {
    // SAFETY: all zeros is an empty set.
    let mut set: libc::cpu_set_t = unsafe { mem::zeroed() };
    // SAFETY: the number came out of such a set.
    unsafe { libc::CPU_SET(processor, &mut set) };
    set_affinity(&set)
}
