//! Descriptors with an owner: counted, close-on-exec, below a limit, closed once.

use crate::error::{Error, Result};
use crate::reaper;
use nix::sys::resource::{Resource, getrlimit};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU64, Ordering};

// A statistic; nothing is ordered by it.
static LIVE: AtomicU64 = AtomicU64::new(0);

/// Descriptors of this library that are open.
pub fn live() -> u64 {
    LIVE.load(Ordering::Relaxed)
}

/// The soft limit of open files; all ones when there is none.
pub fn soft_limit() -> u64 {
    getrlimit(Resource::RLIMIT_NOFILE).map_or(u64::MAX, |(soft, _)| soft)
}

/// An open descriptor.
///
/// `bytes` is what the kernel may have to free when it is closed last: from [`reaper::LARGE`] on the reaper closes it.
#[derive(Debug)]
pub struct Descriptor {
    fd: Option<OwnedFd>,
    bytes: u64,
}

impl Descriptor {
    /// Takes a new descriptor, unless its number is among the last `reserve` below the limit: those stay free for
    /// the rest of the VM.
    pub fn new(fd: OwnedFd, reserve: u64, bytes: u64) -> Result<Self> {
        let limit = soft_limit();
        if fd.as_raw_fd() as u64 >= limit.saturating_sub(reserve) {
            return Err(Error::DescriptorLimit { limit, reserve });
        }
        LIVE.fetch_add(1, Ordering::Relaxed);
        Ok(Descriptor { fd: Some(fd), bytes })
    }

    /// The number, for a message that passes the descriptor on.
    pub fn number(&self) -> RawFd {
        self.as_fd().as_raw_fd()
    }

    /// Closes it here and now, whatever it weighs. For callers that know that it is not the last reference.
    pub fn close(mut self) {
        self.bytes = 0;
    }
}

impl AsFd for Descriptor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.fd {
            Some(fd) => fd.as_fd(),
            // Only `drop` takes it out.
            None => unreachable!("a descriptor is used after its drop"),
        }
    }
}

impl AsRawFd for Descriptor {
    fn as_raw_fd(&self) -> RawFd {
        self.number()
    }
}

impl Drop for Descriptor {
    fn drop(&mut self) {
        let Some(fd) = self.fd.take() else { return };
        let close = move || {
            drop(fd);
            LIVE.fetch_sub(1, Ordering::Relaxed);
        };
        if self.bytes >= reaper::LARGE {
            reaper::submit(0, close)
        } else {
            close()
        }
    }
}

/// Adds the reserve to a limit that the kernel itself has enforced.
pub(crate) fn with_reserve(error: Error, reserve: u64) -> Error {
    match error {
        Error::DescriptorLimit { limit, .. } => Error::DescriptorLimit { limit, reserve },
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    #[test]
    fn the_reserve_is_kept_free() {
        let limit = soft_limit();
        let open = || OwnedFd::from(File::open("/dev/null").unwrap());
        assert_eq!(
            Descriptor::new(open(), limit, 0).unwrap_err(),
            Error::DescriptorLimit { limit, reserve: limit }
        );
        assert!(Descriptor::new(open(), 0, 0).is_ok());
    }
}
