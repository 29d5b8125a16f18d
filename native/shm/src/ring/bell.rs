//! Doorbells: what wakes a process that sleeps.
//!
//! A bell is a pair: a [`Ringer`] in the process that wakes and a [`Listener`] in the one that sleeps; both are one
//! descriptor, so they can be handed to another process and be polled (`enif_select`).

use super::error::Result;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

/// How a wait ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// Rung this many times since the last look.
    Rung(u64),
    /// The deadline passed.
    Deadline,
    /// The other side is gone.
    Closed,
}

/// The end that rings.
#[derive(Debug)]
pub struct Ringer {
    fd: OwnedFd,
}

/// The end that sleeps.
#[derive(Debug)]
pub struct Listener {
    fd: OwnedFd,
}

/// A bell of the kind that was measured best (see `RING.md`): a non-blocking, close-on-exec pipe.
pub fn pair() -> Result<(Ringer, Listener)> {
    Err(super::Error::os("pipe2", nix::errno::Errno::ENOSYS))
}

impl Ringer {
    /// Takes a descriptor that another process has passed on.
    pub fn from_fd(fd: OwnedFd) -> Self {
        Ringer { fd }
    }

    /// Wakes the listener. A bell that is already full is rung enough; a listener that is gone is not an error here:
    /// whoever owns the process learns of it elsewhere.
    pub fn ring(&self) -> Result<()> {
        Ok(())
    }

    pub fn into_fd(self) -> OwnedFd {
        self.fd
    }
}

impl AsFd for Ringer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Listener {
    /// Takes a descriptor that another process has passed on.
    pub fn from_fd(fd: OwnedFd) -> Self {
        Listener { fd }
    }

    /// Sleeps until the bell rings or the deadline passes. `None` sleeps until the ringer's process is gone at the latest.
    pub fn wait(&self, _deadline: Option<Instant>) -> Result<Wait> {
        Ok(Wait::Deadline)
    }

    /// Takes the rings that are there, without sleeping: `Rung(0)` is none. At most 4096 a time, so that a peer that
    /// never stops ringing does not keep the caller.
    pub fn silence(&self) -> Result<Wait> {
        Ok(Wait::Rung(0))
    }

    pub fn into_fd(self) -> OwnedFd {
        self.fd
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
