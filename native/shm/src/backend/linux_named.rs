//! Named memory: a file on a tmpfs (or on a disk, then it survives a reboot).
//!
//! Whoever may write the file may truncate it, so the VM never maps it: `pread` and `pwrite` come back short where
//! a mapping would fault. It is made without a name (`O_TMPFILE`), written, and linked last: a creator that is killed
//! leaves nothing behind, and nobody ever opens one that is half made. The VM that serves it holds a lock on it, from
//! before it has its name until it is closed (`name_lock.rs`).

use super::name_lock::NameLock;
use super::{Backend, HugePages, Object, Request, linux, object_length};
use crate::descriptor::{Descriptor, with_reserve};
use crate::error::{Error, Result};
use crate::header::{Header, Live, PAGE, Page};
use crate::signal::without_sigxfsz;
use crate::{headroom, machine};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, open};
use nix::sys::stat::{FileStat, Mode, SFlag, fchmod, lstat};
use nix::sys::statfs::{TMPFS_MAGIC, fstatfs};
use nix::sys::statvfs::fstatvfs;
use nix::unistd::{geteuid, linkat, unlink};
use parking_lot::Mutex;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

#[derive(Debug)]
pub struct Named {
    fd: Descriptor,
    length: u64,
    path: PathBuf,
    /// Device and inode: the path may mean another file later.
    file: (u64, u64),
    mode: u32,
    peers_write: bool,
    /// None from `release` on.
    lock: Mutex<Option<Arc<NameLock>>>,
}

impl Named {
    /// Opens an object that exists: a regular file of ours, not through a symbolic link, and locks it: nothing of it is
    /// believed that was seen before. [`Error::Locked`]: another process serves it. The header is not looked at.
    pub fn open(path: &Path, descriptor_reserve: u64) -> Result<Self> {
        let (fd, stat) = open_ours(path, OFlag::O_RDWR).map_err(|error| with_reserve(error, descriptor_reserve))?;
        let fd = Descriptor::new(fd, descriptor_reserve, 0)?;
        let file = (stat.st_dev, stat.st_ino);
        let lock = NameLock::take(fd.as_fd(), file, path, descriptor_reserve)?;
        // Whoever had the lock before us may have taken the name away, and somebody may have given it to another file.
        name_is_of(path, file)?;
        let stat = linux::stat(fd.as_fd())?;
        Ok(Named {
            fd,
            length: length_of(&stat),
            path: path.to_path_buf(),
            file,
            mode: stat.st_mode & 0o777,
            peers_write: true,
            lock: Mutex::new(Some(lock)),
        })
    }

    /// A private copy of the header page.
    pub fn header_page(&self) -> Result<Box<Page>> {
        read_page(self.fd())
    }

    /// Peers get what the header, checked by the caller, says.
    pub fn set_peers_write(&mut self, peers_write: bool) {
        self.peers_write = peers_write;
    }

    /// Takes the memory of a file that somebody has left with holes.
    pub fn fill_holes(&self) -> Result<()> {
        if self.resident()? < self.length {
            self.reserve()?;
        }
        Ok(())
    }

    fn space(&self, wanted: u64) -> Result<()> {
        let space = fstatvfs(self.fd()).map_err(|errno| Error::os("fstatvfs", errno))?;
        let available = space.blocks_available().saturating_mul(space.fragment_size());
        // A tmpfs without a limit says zero blocks in all.
        if space.blocks() > 0 && wanted > available {
            return Err(Error::NoSpace {
                asked: wanted,
                available,
            });
        }
        Ok(())
    }
}

impl Backend for Named {
    const NAME: &'static str = "named";

    fn create(request: Request) -> Result<Self> {
        let path = request.path.ok_or_else(|| Error::invalid_spec("name", "none given"))?;
        let length = object_length(request.size, machine::page_size())?;
        if request.huge_pages == HugePages::Require {
            // A hugetlbfs takes no pwrite, and without it the VM cannot reach what others may truncate.
            return Err(Error::NoHugePages { asked: length, free: 0 });
        }
        if path.file_name().is_none() {
            return Err(Error::invalid_spec("name", "not the path of a file"));
        }
        let directory = path
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty())
            .unwrap_or(Path::new("."));
        let fd = open_nameless(directory).map_err(|error| with_reserve(error, request.descriptor_reserve))?;
        let fd = Descriptor::new(fd, request.descriptor_reserve, 0)?;
        let stat = linux::stat(fd.as_fd())?;
        let file = (stat.st_dev, stat.st_ino);
        // Nobody else can have it yet: it has no name.
        let lock = NameLock::take(fd.as_fd(), file, &path, request.descriptor_reserve)?;
        let object = Named {
            fd,
            length,
            path,
            file,
            mode: request.mode,
            peers_write: request.peers_write,
            lock: Mutex::new(Some(lock)),
        };
        linux::set_length(object.fd(), length)?;
        if request.reserve {
            object.reserve()?;
        }
        Ok(object)
    }
}

impl Object for Named {
    fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    fn length(&self) -> u64 {
        self.length
    }

    fn huge_pages(&self) -> bool {
        false
    }

    fn mappable(&self) -> bool {
        false
    }

    fn verify(&self) -> Result<()> {
        let stat = linux::stat(self.fd())?;
        if stat.st_nlink == 0 {
            return Err(Error::corrupted("unlinked", "no name left", "its name"));
        }
        match length_of(&stat) {
            length if length == self.length => Ok(()),
            length => Err(Error::corrupted("size", length, self.length)),
        }
    }

    fn publish(&self) -> Result<()> {
        fchmod(self.fd(), Mode::from_bits_truncate(self.mode)).map_err(|errno| Error::os("fchmod", errno))?;
        let proc_path = format!("/proc/self/fd/{}", self.fd.number());
        let linked = match linkat(
            AT_FDCWD,
            proc_path.as_str(),
            AT_FDCWD,
            &self.path,
            AtFlags::AT_SYMLINK_FOLLOW,
        ) {
            // Without /proc: needs CAP_DAC_READ_SEARCH, or Linux 6.10.
            Err(Errno::ENOENT) => linkat(self.fd(), "", AT_FDCWD, &self.path, AtFlags::AT_EMPTY_PATH),
            result => result,
        };
        linked.map_err(|errno| match errno {
            Errno::EEXIST => Error::Exists,
            Errno::ENOSPC | Errno::EDQUOT => Error::NoSpace {
                asked: self.length,
                available: 0,
            },
            Errno::EOPNOTSUPP => Error::UnsupportedFilesystem {
                call: "linkat",
                message: errno.desc().to_owned(),
            },
            errno => Error::os("linkat", errno),
        })
    }

    unsafe fn read_at(&self, offset: u64, target: *mut u8, length: usize) -> Result<usize> {
        // SAFETY: the caller's promise, passed on.
        unsafe { linux::read_at(self.fd(), offset, target, length) }
    }

    fn write_at(&self, offset: u64, source: &[u8]) -> Result<()> {
        linux::write_at(self.fd(), offset, source)
    }

    fn reserve(&self) -> Result<()> {
        let wanted = self.length.saturating_sub(self.resident()?);
        self.space(wanted)?;
        let in_memory = fstatfs(self.fd()).is_ok_and(|fs| fs.filesystem_type() == TMPFS_MAGIC);
        let grant = if in_memory { Some(headroom::ask(wanted)?) } else { None };
        // Somebody may have truncated it: then it grows again.
        match without_sigxfsz(|| linux::reserve(self.fd(), self.length, grant)) {
            // This file system cannot reserve; a write may then run out of space later, and says so.
            Err(Error::Os {
                errno: Errno::EOPNOTSUPP,
                ..
            }) => Ok(()),
            // Opened for reading only.
            Err(Error::Os {
                errno: Errno::EBADF, ..
            }) => Err(Error::ReadOnly),
            Err(Error::NoSpace { asked, .. }) => {
                let available = fstatvfs(self.fd()).map_or(0, |space| {
                    space.blocks_available().saturating_mul(space.fragment_size())
                });
                Err(Error::NoSpace { asked, available })
            }
            result => result,
        }
    }

    fn resident(&self) -> Result<u64> {
        linux::resident(self.fd())
    }

    fn punch(&self, offset: u64, length: u64) -> Result<()> {
        linux::punch(self.fd(), offset, length)
    }

    fn seal(&self) -> Result<()> {
        Ok(())
    }

    fn is_immutable(&self) -> Result<bool> {
        Ok(false)
    }

    fn is_pinned_by_peer(&self) -> Result<bool> {
        Ok(false)
    }

    fn fresh(&self) -> Result<Arc<dyn Object>> {
        Err(Error::NotZeroCopy)
    }

    fn export(&self, writable: bool, descriptor_reserve: u64) -> Result<Descriptor> {
        if writable && !self.peers_write {
            return Err(Error::ReadOnly);
        }
        linux::export(self, writable, false, descriptor_reserve)
    }

    fn unlink(&self) -> Result<()> {
        name_is_of(&self.path, self.file)?;
        remove(&self.path)
    }

    fn release(&self) {
        let lock = self.lock.lock().take();
        drop(lock);
    }
}

/// Reads and checks the header of the object at `path`; its length comes with it.
pub fn read_header(path: &Path) -> Result<(Header, Live, u64)> {
    let (header, live, stat) = inspect(path)?;
    Ok((header, live, length_of(&stat)))
}

/// Removes the object at `path` if it holds the region `id`. Between the look and the removal somebody of the same user
/// could put another file there; the kernel has no call for "unlink this inode".
pub fn unlink_if(path: &Path, id: &str) -> Result<()> {
    let (header, _, stat) = inspect(path)?;
    if header.id != id {
        return Err(Error::Replaced);
    }
    name_is_of(path, (stat.st_dev, stat.st_ino))?;
    remove(path)
}

fn name_is_of(path: &Path, file: (u64, u64)) -> Result<()> {
    match lstat(path) {
        Ok(now) if (now.st_dev, now.st_ino) == file => Ok(()),
        Ok(_) => Err(Error::Replaced),
        Err(Errno::ENOENT) => Err(Error::NotFound),
        Err(errno) => Err(Error::os("lstat", errno)),
    }
}

fn inspect(path: &Path) -> Result<(Header, Live, FileStat)> {
    let (fd, stat) = open_ours(path, OFlag::O_RDONLY)?;
    let page = read_page(fd.as_fd())?;
    let (header, live) = Header::decode(&page, length_of(&stat))?;
    Ok((header, live, stat))
}

fn open_ours(path: &Path, access: OFlag) -> Result<(OwnedFd, FileStat)> {
    // O_NONBLOCK: a FIFO or a device with this name must not hold us up before it is recognised.
    let flags = access | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    let opened = match open(path, flags, Mode::empty()) {
        // Made without write permission for its owner: it can still be read.
        Err(Errno::EACCES) if access == OFlag::O_RDWR => {
            open(path, (flags & !OFlag::O_ACCMODE) | OFlag::O_RDONLY, Mode::empty())
        }
        result => result,
    };
    let fd = opened.map_err(|errno| match errno {
        Errno::ENOENT => Error::NotFound,
        // A symbolic link, a directory, a socket.
        Errno::ELOOP | Errno::EISDIR | Errno::ENXIO => Error::NotRegularFile,
        errno => Error::os("open", errno),
    })?;
    let stat = linux::stat(fd.as_fd())?;
    if SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT != SFlag::S_IFREG {
        return Err(Error::NotRegularFile);
    }
    let expected = geteuid().as_raw();
    if stat.st_uid != expected {
        return Err(Error::WrongOwner {
            owner: u64::from(stat.st_uid),
            expected: u64::from(expected),
        });
    }
    Ok((fd, stat))
}

fn open_nameless(directory: &Path) -> Result<OwnedFd> {
    let flags = OFlag::O_TMPFILE | OFlag::O_RDWR | OFlag::O_CLOEXEC;
    open(directory, flags, Mode::S_IRUSR | Mode::S_IWUSR).map_err(|errno| match errno {
        Errno::ENOENT | Errno::ENOTDIR => Error::NotFound,
        Errno::ENOSPC | Errno::EDQUOT => Error::NoSpace { asked: 0, available: 0 },
        // The file system has no O_TMPFILE (EISDIR: neither has the kernel).
        Errno::EOPNOTSUPP | Errno::EISDIR | Errno::EINVAL => Error::UnsupportedFilesystem {
            call: "open",
            message: errno.desc().to_owned(),
        },
        errno => Error::os("open", errno),
    })
}

fn read_page(fd: BorrowedFd<'_>) -> Result<Box<Page>> {
    let mut page = Box::new([0; PAGE]);
    // SAFETY: the page is private and PAGE bytes long.
    let got = unsafe { linux::read_at(fd, 0, page.as_mut_ptr(), PAGE) }?;
    if got < PAGE {
        return Err(Error::corrupted("size", got as u64, format!("at least {PAGE}")));
    }
    Ok(page)
}

fn length_of(stat: &FileStat) -> u64 {
    u64::try_from(stat.st_size).unwrap_or(0)
}

fn remove(path: &Path) -> Result<()> {
    match unlink(path) {
        Ok(()) => Ok(()),
        Err(Errno::ENOENT) => Err(Error::NotFound),
        Err(errno) => Err(Error::os("unlink", errno)),
    }
}
