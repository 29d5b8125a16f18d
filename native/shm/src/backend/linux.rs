//! System calls that both Linux back ends make.

use crate::backend::Object;
use crate::descriptor::{Descriptor, with_reserve};
use crate::error::{Error, Result};
use crate::headroom::Grant;
use crate::signal::without_sigxfsz;
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, FcntlArg, OFlag, fallocate, fcntl, open};
use nix::sys::stat::{FileStat, Mode, fchmod, fstat};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Reserving goes in steps: each is preceded by a look at what is left.
const STEP: u64 = 64 << 20;
/// The kernel moves no more than this at once.
const MOST: usize = 0x7fff_f000;

pub(super) fn stat(fd: BorrowedFd<'_>) -> Result<FileStat> {
    fstat(fd).map_err(|errno| Error::os("fstat", errno))
}

pub(super) fn resident(fd: BorrowedFd<'_>) -> Result<u64> {
    Ok(u64::try_from(stat(fd)?.st_blocks).unwrap_or(0) * 512)
}

pub(super) fn set_length(fd: BorrowedFd<'_>, length: u64) -> Result<()> {
    without_sigxfsz(|| nix::unistd::ftruncate(fd, length as i64)).map_err(|errno| Error::os("ftruncate", errno))
}

/// Takes the memory behind `length` bytes. Whatever it fails with, the caller drops the object.
///
/// SIGXFSZ comes only when the object grows by it: the caller knows whether it can.
pub(super) fn reserve(fd: BorrowedFd<'_>, length: u64, mut grant: Option<Grant>) -> Result<()> {
    let mut offset = 0;
    while offset < length {
        let step = STEP.min(length - offset);
        // The first step has just been granted.
        if let Some(grant) = grant.as_ref().filter(|_| offset > 0) {
            grant.check()?;
        }
        match fallocate(fd, FallocateFlags::empty(), offset as i64, step as i64) {
            Ok(()) => {}
            Err(Errno::EINTR) => continue,
            Err(Errno::ENOSPC | Errno::EDQUOT) => {
                return Err(Error::NoSpace {
                    asked: length,
                    available: offset,
                });
            }
            Err(Errno::ENOMEM) => {
                let limited_by = "fallocate".to_owned();
                return Err(Error::NotEnoughMemory {
                    asked: length,
                    available: offset,
                    limited_by,
                });
            }
            Err(errno) => return Err(Error::os("fallocate", errno)),
        }
        if let Some(grant) = &mut grant {
            grant.taken(step);
        }
        offset += step;
    }
    Ok(())
}

/// Reads until `length` bytes are there or the file ends.
///
/// # Safety
/// `target` is mapped and writable for `length` bytes.
pub(crate) unsafe fn read_at(fd: BorrowedFd<'_>, offset: u64, target: *mut u8, length: usize) -> Result<usize> {
    let mut done = 0;
    while done < length {
        let most = (length - done).min(MOST);
        // SAFETY: the caller vouches for the whole range, and this is the rest of it. The kernel does the writing, so it
        // may be memory that others write too.
        let got = unsafe {
            libc::pread(
                fd.as_raw_fd(),
                target.add(done).cast(),
                most,
                (offset + done as u64) as libc::off_t,
            )
        };
        match Errno::result(got) {
            Ok(0) => break,
            Ok(count) => done += count as usize,
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(Error::os("pread", errno)),
        }
    }
    Ok(done)
}

pub(super) fn write_at(fd: BorrowedFd<'_>, offset: u64, source: &[u8]) -> Result<()> {
    let mut done = 0;
    while done < source.len() {
        let rest = &source[done..];
        // SAFETY: the pointer and the length are those of a slice.
        let put = without_sigxfsz(|| unsafe {
            libc::pwrite(
                fd.as_raw_fd(),
                rest.as_ptr().cast(),
                rest.len().min(MOST),
                (offset + done as u64) as libc::off_t,
            )
        });
        match Errno::result(put) {
            Ok(0) => {
                return Err(Error::NoSpace {
                    asked: source.len() as u64,
                    available: done as u64,
                });
            }
            Ok(count) => done += count as usize,
            Err(Errno::EINTR) => {}
            Err(Errno::ENOSPC | Errno::EDQUOT) => {
                return Err(Error::NoSpace {
                    asked: source.len() as u64,
                    available: done as u64,
                });
            }
            Err(Errno::EBADF) => return Err(Error::ReadOnly),
            Err(errno) => return Err(Error::os("pwrite", errno)),
        }
    }
    Ok(())
}

pub(super) fn punch(fd: BorrowedFd<'_>, offset: u64, length: u64) -> Result<()> {
    let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    fallocate(fd, flags, offset as i64, length as i64).map_err(|errno| Error::os("fallocate", errno))
}

/// A descriptor for a peer: a second opening of the object for reading, a duplicate for writing.
///
/// `confined` says that a duplicate of our own descriptor gives no write access (it is the fallback without /proc).
pub(super) fn export(object: &dyn Object, writable: bool, confined: bool, reserve: u64) -> Result<Descriptor> {
    let result = if writable {
        duplicate(object.fd())
    } else {
        match reopen_read_only(object.fd()).or_else(|error| restore_mode(object.fd(), error)) {
            Err(error) if confined && (error.is_os(Errno::ENOENT) || error.is_os(Errno::EACCES)) => {
                duplicate(object.fd())
            }
            result => result,
        }
    };
    let fd = result.map_err(|error| with_reserve(error, reserve))?;
    Descriptor::new(fd, reserve, object.length())
}

/// A peer of our own user may have taken the owner's rights from the object (`fchmod` works on any descriptor of it); they
/// are ours to give again.
fn restore_mode(fd: BorrowedFd<'_>, error: Error) -> Result<OwnedFd> {
    if !error.is_os(Errno::EACCES) {
        return Err(error);
    }
    let mode = fstat(fd).map_err(|errno| Error::os("fstat", errno))?.st_mode;
    let mode = Mode::from_bits_truncate(mode) | Mode::S_IRUSR | Mode::S_IWUSR;
    fchmod(fd, mode).map_err(|errno| Error::os("fchmod", errno))?;
    reopen_read_only(fd)
}

fn reopen_read_only(fd: BorrowedFd<'_>) -> Result<OwnedFd> {
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    open(path.as_str(), OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty()).map_err(|errno| Error::os("open", errno))
}

fn duplicate(fd: BorrowedFd<'_>) -> Result<OwnedFd> {
    let number = fcntl(fd, FcntlArg::F_DUPFD_CLOEXEC(3)).map_err(|errno| Error::os("fcntl", errno))?;
    // SAFETY: fcntl has just made this descriptor, nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}
