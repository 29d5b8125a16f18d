//! Who serves a named object: `flock(LOCK_EX)` on its file, held by one VM at a time.
//!
//! On an open file description of its own. A duplicate of the one that peers get would share the lock, and a peer that
//! outlives the VM would keep it. The kernel lets it go when the VM ends, however it ends. Inside one VM segments of the
//! same file share it: the question is only which process serves.

use crate::descriptor::{Descriptor, with_reserve};
use crate::error::{Error, Result};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::Duration;

/// Device and inode.
pub(super) type File = (u64, u64);

// Those of this VM. Held over no system call but the one that gives a lock back.
static HELD: Mutex<BTreeMap<File, Weak<NameLock>>> = Mutex::new(BTreeMap::new());

/// A probe (`is_served`) holds a shared lock for some microseconds, and a lock of this VM may just be on its way back.
/// Only what is still locked after all tries is somebody's.
const TRIES: u32 = 10;
const PAUSE: Duration = Duration::from_millis(2);

/// The lock, until the last segment of this VM lets it go.
#[derive(Debug)]
pub(super) struct NameLock {
    fd: Descriptor,
    file: File,
}

impl NameLock {
    /// Takes it for the file that `fd` is of. `path` is for the error. Waits up to 20 ms.
    pub(super) fn take(fd: BorrowedFd<'_>, file: File, path: &Path, reserve: u64) -> Result<Arc<Self>> {
        let own = Descriptor::new(reopen(fd).map_err(|error| with_reserve(error, reserve))?, reserve, 0)?;
        for _ in 0..TRIES {
            if let Some(lock) = HELD.lock().get(&file).and_then(Weak::upgrade) {
                return Ok(lock);
            }
            if flock(own.as_fd(), libc::LOCK_EX | libc::LOCK_NB)? {
                let lock = Arc::new(NameLock { fd: own, file });
                // Nobody else's is thrown out: whoever had one had the kernel's lock too.
                HELD.lock().insert(file, Arc::downgrade(&lock));
                return Ok(lock);
            }
            std::thread::sleep(PAUSE);
        }
        Err(Error::Locked { path: path.into() })
    }
}

impl Drop for NameLock {
    fn drop(&mut self) {
        let mut held = HELD.lock();
        // Not only by closing: a child between its fork and its exec has a duplicate.
        let _ = flock(self.fd.as_fd(), libc::LOCK_UN);
        if held.get(&self.file).is_some_and(|lock| lock.strong_count() == 0) {
            held.remove(&self.file);
        }
    }
}

/// Whether a VM, this one or another, serves the object at `path`. False when there is none, and for what cannot be one
/// (a link, a directory). When it cannot be found out, as of a file that we may not open, somebody may.
pub fn is_served(path: &Path) -> bool {
    // O_NONBLOCK: a FIFO with this name must not hold us up.
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    let file = match open(path, flags, Mode::empty()) {
        Ok(file) => file,
        Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP | Errno::EISDIR | Errno::ENXIO) => return false,
        Err(_) => return true,
    };
    match flock(file.as_fd(), libc::LOCK_SH | libc::LOCK_NB) {
        Ok(free) => {
            if free {
                let _ = flock(file.as_fd(), libc::LOCK_UN);
            }
            !free
        }
        // A file system without locks cannot hold an object that is served.
        Err(Error::UnsupportedFilesystem { .. }) => false,
        Err(_) => true,
    }
}

fn reopen(fd: BorrowedFd<'_>) -> Result<OwnedFd> {
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    open(path.as_str(), OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty()).map_err(|errno| Error::os("open", errno))
}

/// Whether it has worked at once.
fn flock(fd: BorrowedFd<'_>, operation: i32) -> Result<bool> {
    loop {
        // SAFETY: flock takes a descriptor, which lives through the call, and an integer.
        match Errno::result(unsafe { libc::flock(fd.as_raw_fd(), operation) }) {
            Ok(_) => return Ok(true),
            Err(Errno::EWOULDBLOCK) => return Ok(false),
            Err(Errno::EINTR) => {}
            Err(errno @ (Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::ENOLCK)) => {
                return Err(Error::UnsupportedFilesystem {
                    call: "flock",
                    message: errno.desc().to_owned(),
                });
            }
            Err(errno) => return Err(Error::os("flock", errno)),
        }
    }
}
