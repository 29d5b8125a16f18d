//! The system calls that one anonymous region takes by its design, and nothing else.

use crate::os::check;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr;

const PAGE: usize = 4096;
/// Memory is reserved in steps, as the library does.
const STEP: usize = 64 << 20;
/// Linux 6.3 and later.
const MFD_NOEXEC_SEAL: u32 = 0x0008;

/// A memfd and its mapping. Given back by dropping it: munmap, then close.
pub struct Segment {
    fd: OwnedFd,
    start: *mut u8,
    length: usize,
}

impl Segment {
    /// Room for `size` bytes behind a header page, header and first data page touched.
    pub fn create(size: usize) -> io::Result<Self> {
        let length = (PAGE + size).next_multiple_of(PAGE);
        let fd = memfd()?;
        let number = fd.as_raw_fd();
        // Whether descriptors are about to run out.
        limit(libc::RLIMIT_NOFILE)?;
        // SAFETY: these calls take integers and touch no memory of ours.
        unsafe {
            check(libc::fchmod(number, 0o600))?;
            // Whether SIGXFSZ must be blocked.
            limit(libc::RLIMIT_FSIZE)?;
            check(libc::ftruncate(number, length as libc::off_t))?;
            check(libc::fcntl(
                number,
                libc::F_ADD_SEALS,
                libc::F_SEAL_SHRINK | libc::F_SEAL_GROW,
            ))?;
            for offset in (0..length).step_by(STEP) {
                let step = STEP.min(length - offset);
                check(libc::fallocate(number, 0, offset as libc::off_t, step as libc::off_t))?;
            }
        }
        let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
        // SAFETY: a new mapping, placed by the kernel.
        let start = unsafe { libc::mmap(ptr::null_mut(), length, protection, flags, number, 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let segment = Segment {
            fd,
            start: start.cast(),
            length,
        };
        // SAFETY: the range is the mapping just made; nobody else has it, and it is over a page long.
        unsafe {
            check(libc::madvise(start, length, libc::MADV_DONTDUMP))?;
            ptr::write_bytes(segment.start, 1, PAGE);
            segment.start.add(PAGE).write_volatile(1);
        }
        // SAFETY: takes an integer.
        check(unsafe { libc::fcntl(segment.fd.as_raw_fd(), libc::F_ADD_SEALS, libc::F_SEAL_FUTURE_WRITE) })?;
        Ok(segment)
    }

    /// The data, behind the header page.
    pub fn data(&self) -> *mut u8 {
        // SAFETY: a mapping is longer than its header page.
        unsafe { self.start.add(PAGE) }
    }
}

impl Drop for Segment {
    fn drop(&mut self) {
        // SAFETY: our own mapping, and nothing refers to it any more.
        unsafe { libc::munmap(self.start.cast(), self.length) };
    }
}

fn limit(which: libc::__rlimit_resource_t) -> io::Result<u64> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the structure is ours.
    check(unsafe { libc::getrlimit(which, &mut limit) })?;
    Ok(limit.rlim_cur)
}

fn memfd() -> io::Result<OwnedFd> {
    let name = c"snakepit_bench_peer".as_ptr();
    let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
    // SAFETY: the name is terminated and static.
    let mut number = unsafe { libc::memfd_create(name, flags | MFD_NOEXEC_SEAL) };
    if number < 0 {
        // SAFETY: as above.
        number = unsafe { libc::memfd_create(name, flags) };
    }
    check(number)?;
    // SAFETY: the kernel has just made it, nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}
