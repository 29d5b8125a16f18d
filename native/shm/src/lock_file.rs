//! A file that one process at a time may hold.
//!
//! `flock` ends with the process, however it ends. The path is looked at again after the lock is taken: a holder that
//! is leaving may unlink its file, and a lock on a file without a name excludes nobody.

use crate::backend::read_at;
use crate::descriptor::Descriptor;
use crate::error::{Error, Result};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::{Mode, SFlag, fstat, lstat};
use nix::unistd::{fsync, ftruncate, geteuid};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Contents may be this long.
pub const MOST: usize = 64 << 10;
const TRIES: usize = 16;

#[derive(Debug)]
pub struct LockFile {
    fd: Descriptor,
}

impl LockFile {
    /// Opens or makes the file (0600), locks it, and reads what it holds.
    pub fn acquire(path: &Path) -> Result<(Self, Vec<u8>)> {
        for _ in 0..TRIES {
            let fd = open_ours(path)?;
            // SAFETY: flock takes a descriptor that lives through the call.
            match Errno::result(unsafe { libc::flock(fd.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) }) {
                Ok(_) => {}
                Err(Errno::EWOULDBLOCK) => return Err(Error::Locked { path: path.into() }),
                Err(Errno::EINTR) => continue,
                Err(errno) => return Err(Error::os("flock", errno)),
            }
            let ours = fstat(&fd).map_err(|errno| Error::os("fstat", errno))?;
            let there = match lstat(path) {
                Ok(stat) => stat,
                Err(Errno::ENOENT) => continue,
                Err(errno) => return Err(Error::os("lstat", errno)),
            };
            if (ours.st_dev, ours.st_ino) == (there.st_dev, there.st_ino) {
                let contents = contents(&fd)?;
                return Ok((
                    LockFile {
                        fd: Descriptor::new(fd, 0, 0)?,
                    },
                    contents,
                ));
            }
        }
        // Somebody replaces it as fast as we look: whoever that is has it.
        Err(Error::Locked { path: path.into() })
    }

    /// Replaces what it holds; on disk when this returns.
    pub fn replace(&self, contents: &[u8]) -> Result<()> {
        if contents.len() > MOST {
            return Err(Error::TooLarge { limit: MOST as u64 });
        }
        let fd = self.fd.as_fd();
        let file = File::from(fd.try_clone_to_owned().map_err(|error| io_error("fcntl", &error))?);
        crate::signal::without_sigxfsz(|| -> Result<()> {
            file.write_all_at(contents, 0)
                .map_err(|error| io_error("pwrite", &error))?;
            ftruncate(&file, contents.len() as i64).map_err(|errno| Error::os("ftruncate", errno))
        })?;
        fsync(&file).map_err(|errno| Error::os("fsync", errno))
    }
}

fn open_ours(path: &Path) -> Result<OwnedFd> {
    let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
    let fd = open(path, flags, Mode::S_IRUSR | Mode::S_IWUSR).map_err(|errno| match errno {
        Errno::ENOENT => Error::NotFound,
        Errno::ELOOP | Errno::EISDIR | Errno::ENXIO => Error::NotRegularFile,
        errno => Error::os("open", errno),
    })?;
    let stat = fstat(&fd).map_err(|errno| Error::os("fstat", errno))?;
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
    Ok(fd)
}

fn contents(fd: &OwnedFd) -> Result<Vec<u8>> {
    let mut bytes = vec![0; MOST + 1];
    // SAFETY: the vector is MOST + 1 bytes long.
    let length = unsafe { read_at(fd.as_fd(), 0, bytes.as_mut_ptr(), MOST + 1) }?;
    if length > MOST {
        return Err(Error::TooLarge { limit: MOST as u64 });
    }
    bytes.truncate(length);
    Ok(bytes)
}

fn io_error(call: &'static str, error: &std::io::Error) -> Error {
    match Errno::from_raw(error.raw_os_error().unwrap_or(0)) {
        Errno::ENOSPC => Error::NoSpace {
            asked: MOST as u64,
            available: 0,
        },
        errno => Error::os(call, errno),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_holder_at_a_time() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lock");
        let (lock, contents) = LockFile::acquire(&path).unwrap();
        assert!(contents.is_empty());
        lock.replace(b"somewhat longer").unwrap();
        lock.replace(b"short").unwrap();
        assert_eq!(
            LockFile::acquire(&path).unwrap_err(),
            Error::Locked { path: path.clone() }
        );
        assert_eq!(
            lock.replace(&vec![0; MOST + 1]).unwrap_err(),
            Error::TooLarge { limit: MOST as u64 }
        );
        drop(lock);
        assert_eq!(LockFile::acquire(&path).unwrap().1, b"short");
    }

    #[test]
    fn an_unlinked_lock_excludes_nobody() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lock");
        let (_old, _) = LockFile::acquire(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert!(LockFile::acquire(&path).is_ok());
    }

    #[test]
    fn only_regular_files() {
        let directory = tempfile::tempdir().unwrap();
        let link = directory.path().join("link");
        std::os::unix::fs::symlink("/dev/null", &link).unwrap();
        assert_eq!(LockFile::acquire(&link).unwrap_err(), Error::NotRegularFile);
        assert_eq!(LockFile::acquire(directory.path()).unwrap_err(), Error::NotRegularFile);
    }
}
