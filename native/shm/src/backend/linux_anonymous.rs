//! Anonymous memory: a memfd.
//!
//! It can neither shrink nor grow from birth (`F_SEAL_SHRINK|F_SEAL_GROW`), so a mapping of it never faults.
//! `F_SEAL_FUTURE_WRITE` confines peers of the same user, whom mode bits do not stop: it is set after our own
//! writable mapping exists (it forbids new ones) and before anybody else has the descriptor.

use super::{Backend, HugePages, Object, Request, linux, object_length};
use crate::descriptor::{Descriptor, with_reserve};
use crate::error::{Error, Result};
use crate::{headroom, machine};
use nix::errno::Errno;
use nix::sys::stat::{Mode, fchmod};
use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::Arc;

const BIRTH: i32 = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW;
const IMMUTABLE: i32 = libc::F_SEAL_WRITE | libc::F_SEAL_SHRINK | libc::F_SEAL_GROW;
/// Linux 6.3 and later; the C library's headers may be older.
const MFD_NOEXEC_SEAL: u32 = 0x0008;
/// memfd_create takes 249 bytes without the terminator.
const MAX_LABEL: usize = 249;

#[derive(Debug)]
pub struct Anonymous {
    fd: Descriptor,
    length: u64,
    huge: bool,
    request: Request,
}

impl Anonymous {
    fn make(request: Request, huge_page: Option<u64>) -> Result<Self> {
        let length = object_length(request.size, huge_page.unwrap_or_else(machine::page_size))?;
        let huge = huge_page.is_some();
        let fd = memfd(&request.label, huge).map_err(|error| with_reserve(error, request.descriptor_reserve))?;
        // Its own memory is freed by whoever unmaps or closes last; the segment knows when that is.
        let fd = Descriptor::new(fd, request.descriptor_reserve, 0)?;
        fchmod(&fd, Mode::S_IRUSR | Mode::S_IWUSR).map_err(|errno| Error::os("fchmod", errno))?;
        linux::set_length(fd.as_fd(), length)?;
        add_seals(fd.as_fd(), BIRTH).map_err(|errno| Error::os("fcntl", errno))?;
        let object = Anonymous {
            fd,
            length,
            huge,
            request,
        };
        // Huge pages are always taken at once: a late fault on them is a SIGBUS.
        if object.request.reserve || huge {
            object.reserve()?;
        }
        Ok(object)
    }

    fn make_huge(request: Request) -> Result<Self> {
        let (free, page) = machine::huge_pages();
        let asked = object_length(request.size, page)?;
        if asked > free {
            return Err(Error::NoHugePages { asked, free });
        }
        Self::make(request, Some(page)).map_err(|error| match error {
            // Somebody else was faster, or the kernel has none at all.
            Error::NoSpace { .. } | Error::NotEnoughMemory { .. } => Error::NoHugePages { asked, free },
            Error::Os {
                errno: Errno::ENODEV | Errno::ENOSYS | Errno::EINVAL | Errno::ENOENT,
                ..
            } => Error::NoHugePages { asked, free },
            other => other,
        })
    }

    fn seals(&self) -> Result<i32> {
        // SAFETY: F_GET_SEALS takes no argument and touches no memory.
        let seals = unsafe { libc::fcntl(self.fd.number(), libc::F_GET_SEALS) };
        Errno::result(seals).map_err(|errno| Error::os("fcntl", errno))
    }
}

impl Backend for Anonymous {
    const NAME: &'static str = "anonymous";

    fn create(request: Request) -> Result<Self> {
        match request.huge_pages {
            HugePages::No => Self::make(request, None),
            HugePages::Require => Self::make_huge(request),
            HugePages::Prefer => match Self::make_huge(request.clone()) {
                Err(Error::NoHugePages { .. }) => Self::make(request, None),
                result => result,
            },
        }
    }
}

impl Object for Anonymous {
    fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    fn length(&self) -> u64 {
        self.length
    }

    fn huge_pages(&self) -> bool {
        self.huge
    }

    fn mappable(&self) -> bool {
        true
    }

    fn verify(&self) -> Result<()> {
        Ok(())
    }

    fn publish(&self) -> Result<()> {
        if self.request.peers_write {
            return Ok(());
        }
        add_seals(self.fd(), libc::F_SEAL_FUTURE_WRITE).map_err(|errno| Error::os("fcntl", errno))
    }

    unsafe fn read_at(&self, offset: u64, target: *mut u8, length: usize) -> Result<usize> {
        // SAFETY: the caller's promise, passed on.
        unsafe { linux::read_at(self.fd(), offset, target, length) }
    }

    fn write_at(&self, offset: u64, source: &[u8]) -> Result<()> {
        linux::write_at(self.fd(), offset, source).map_err(|error| match error {
            // A seal of ours or of a peer stands against it, and our writable mapping is gone.
            error if error.is_os(Errno::EPERM) => Error::SealedByPeer {
                cause: "pwrite".to_owned(),
            },
            other => other,
        })
    }

    fn reserve(&self) -> Result<()> {
        // Huge pages come out of a pool that MemAvailable does not count.
        let grant = if self.huge {
            None
        } else {
            Some(headroom::ask(self.length)?)
        };
        // Sealed against growing.
        linux::reserve(self.fd(), self.length, grant)
    }

    fn resident(&self) -> Result<u64> {
        linux::resident(self.fd())
    }

    fn punch(&self, offset: u64, length: u64) -> Result<()> {
        linux::punch(self.fd(), offset, length)
    }

    fn seal(&self) -> Result<()> {
        match add_seals(self.fd(), libc::F_SEAL_WRITE | libc::F_SEAL_SEAL) {
            Ok(()) => Ok(()),
            Err(Errno::EBUSY) => Err(Error::Busy { writer: 0 }),
            // A peer was faster. What it has set may be all that we want.
            Err(Errno::EPERM) if self.is_immutable()? => Ok(()),
            Err(Errno::EPERM) => Err(Error::SealedByPeer {
                cause: "F_SEAL_SEAL".to_owned(),
            }),
            Err(errno) => Err(Error::os("fcntl", errno)),
        }
    }

    fn is_immutable(&self) -> Result<bool> {
        // With a mask: the kernel may know and set more seals (F_SEAL_EXEC).
        Ok(self.seals()? & IMMUTABLE == IMMUTABLE)
    }

    fn is_pinned_by_peer(&self) -> Result<bool> {
        let seals = self.seals()?;
        Ok(seals & libc::F_SEAL_SEAL != 0 && seals & IMMUTABLE != IMMUTABLE)
    }

    fn fresh(&self) -> Result<Arc<dyn Object>> {
        let page = self.huge.then(|| machine::huge_pages().1);
        let object = Self::make(
            Request {
                reserve: true,
                ..self.request.clone()
            },
            page,
        )?;
        Ok(Arc::new(object))
    }

    fn export(&self, writable: bool, descriptor_reserve: u64) -> Result<Descriptor> {
        if writable && !self.request.peers_write {
            return Err(Error::ReadOnly);
        }
        linux::export(self, writable, !self.request.peers_write, descriptor_reserve)
    }

    fn unlink(&self) -> Result<()> {
        Ok(())
    }
}

/// A sparse memfd for a ring: both sides write it, nobody ever changes its size or its seals.
pub(crate) fn ring_memory(label: &str, length: u64, reserve: u64) -> Result<Descriptor> {
    let fd = memfd(label, false).map_err(|error| with_reserve(error, reserve))?;
    let fd = Descriptor::new(fd, reserve, 0)?;
    fchmod(&fd, Mode::S_IRUSR | Mode::S_IWUSR).map_err(|errno| Error::os("fchmod", errno))?;
    linux::set_length(fd.as_fd(), length)?;
    add_seals(fd.as_fd(), BIRTH | libc::F_SEAL_SEAL).map_err(|errno| Error::os("fcntl", errno))?;
    Ok(fd)
}

/// Bytes for another process that are too many for a packet: a memfd that nobody can change.
pub fn carrier(label: &str, bytes: &[u8]) -> Result<OwnedFd> {
    let fd = memfd(label, false)?;
    linux::write_at(fd.as_fd(), 0, bytes)?;
    add_seals(fd.as_fd(), IMMUTABLE | libc::F_SEAL_SEAL).map_err(|errno| Error::os("fcntl", errno))?;
    Ok(fd)
}

fn memfd(label: &str, huge: bool) -> Result<OwnedFd> {
    let mut end = label.len().min(MAX_LABEL);
    while !label.is_char_boundary(end) {
        end -= 1;
    }
    // A name with a zero byte in it, which no identifier has, would be none.
    let name = CString::new(&label[..end]).unwrap_or_default();
    let mut flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
    if huge {
        flags |= libc::MFD_HUGETLB;
    }
    let make = |flags: u32| {
        // SAFETY: the name is terminated and lives through the call.
        let fd = Errno::result(unsafe { libc::memfd_create(name.as_ptr(), flags) })?;
        // SAFETY: memfd_create has just made this descriptor, nobody else owns it.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    };
    match make(flags | MFD_NOEXEC_SEAL) {
        // Linux before 6.3 does not know the flag.
        Err(Errno::EINVAL) => make(flags),
        result => result,
    }
    .map_err(|errno| Error::os("memfd_create", errno))
}

fn add_seals(fd: BorrowedFd<'_>, seals: i32) -> std::result::Result<(), Errno> {
    // SAFETY: F_ADD_SEALS takes an integer and touches no memory.
    Errno::result(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_ADD_SEALS, seals) }).map(drop)
}
