//! Doorbells: what wakes a process that sleeps.
//!
//! A bell is a pair: a [`Ringer`] in the process that wakes and a [`Listener`] in the one that sleeps; both are one
//! descriptor, so they can be handed to another process and be polled (`enif_select`).

#[cfg(loom)]
pub use model::{Listener, Ringer, pair};
#[cfg(not(loom))]
pub use pipe::{Listener, Ringer, pair};

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

/// Rings taken by one look at most.
pub const MOST_RINGS: usize = 1024;

#[cfg(not(loom))]
mod pipe {
    use super::{MOST_RINGS, Wait};
    use crate::ring::error::{Error, Result};
    use nix::errno::Errno;
    use nix::fcntl::OFlag;
    use nix::unistd::pipe2;
    use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
    use std::time::{Duration, Instant};

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

    /// A bell: a non-blocking, close-on-exec pipe, the kind that was measured best (see `RING.md`).
    pub fn pair() -> Result<(Ringer, Listener)> {
        let (read, write) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).map_err(|errno| Error::os("pipe2", errno))?;
        Ok((Ringer { fd: write }, Listener { fd: read }))
    }

    impl Ringer {
        /// Takes a descriptor that another process has passed on.
        pub fn from_fd(fd: OwnedFd) -> Self {
            Ringer { fd }
        }

        /// Wakes the listener. A bell that is already full is rung enough; a listener that is gone is not an error
        /// here: whoever owns the process learns of it elsewhere.
        ///
        /// The calling process ignores SIGPIPE (the BEAM and Rust's runtime do).
        pub fn ring(&self) -> Result<()> {
            loop {
                match nix::unistd::write(&self.fd, &[1]) {
                    Ok(_) | Err(Errno::EAGAIN | Errno::EPIPE) => return Ok(()),
                    Err(Errno::EINTR) => {}
                    Err(errno) => return Err(Error::os("write", errno)),
                }
            }
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

        /// Sleeps until the bell rings or the deadline passes. `None` sleeps until the ringer's process is gone at the
        /// latest: a pipe without writers wakes its readers.
        pub fn wait(&self, deadline: Option<Instant>) -> Result<Wait> {
            self.wait_also(None, deadline)
        }

        /// As `wait`, woken by a second bell too. The second one's rings are not counted.
        pub(crate) fn wait_also(&self, other: Option<&Listener>, deadline: Option<Instant>) -> Result<Wait> {
            loop {
                match poll(self, other, deadline)? {
                    false => return Ok(Wait::Deadline),
                    true => {
                        let inner = match other {
                            Some(other) => other.silence()?,
                            None => Wait::Rung(0),
                        };
                        // Another thread may have taken what woke us: then sleep on, unless the second bell rang.
                        match (self.silence()?, inner) {
                            (Wait::Rung(0), Wait::Rung(0)) => {}
                            (result, _) => return Ok(result),
                        }
                    }
                }
            }
        }

        /// Takes the rings that are there, without sleeping: `Rung(0)` is none. At most [`MOST_RINGS`] a time, so that
        /// a peer that never stops ringing does not keep the caller.
        pub fn silence(&self) -> Result<Wait> {
            // What a worker writes into the pipe is counted and never looked at.
            let mut bytes = [0; MOST_RINGS];
            loop {
                return match nix::unistd::read(&self.fd, &mut bytes) {
                    Ok(0) => Ok(Wait::Closed),
                    Ok(rings) => Ok(Wait::Rung(rings as u64)),
                    Err(Errno::EAGAIN) => Ok(Wait::Rung(0)),
                    Err(Errno::EINTR) => continue,
                    Err(errno) => Err(Error::os("read", errno)),
                };
            }
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

    /// Whether one of them is readable or hung up before the deadline.
    fn poll(first: &Listener, second: Option<&Listener>, deadline: Option<Instant>) -> Result<bool> {
        let entry = |fd: i32| libc::pollfd {
            fd,
            events: libc::POLLIN,
            revents: 0,
        };
        // The kernel leaves out an entry with a negative descriptor.
        let mut entries = [
            entry(first.fd.as_raw_fd()),
            entry(second.map_or(-1, |second| second.fd.as_raw_fd())),
        ];
        let count = if second.is_some() { 2 } else { 1 };
        loop {
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            let timeout = left.map(timespec);
            let timeout = timeout.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
            // SAFETY: the entries and the timeout live through the call; no signal mask is given.
            let ready = unsafe { libc::ppoll(entries.as_mut_ptr(), count, timeout, std::ptr::null()) };
            match Errno::result(ready) {
                Ok(0) => return Ok(false),
                Ok(_) => return Ok(true),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(Error::os("ppoll", errno)),
            }
        }
    }

    fn timespec(duration: Duration) -> libc::timespec {
        libc::timespec {
            tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(duration.subsec_nanos()),
        }
    }
}

#[cfg(loom)]
mod model {
    use super::Wait;
    use crate::ring::error::Result;
    use loom::sync::{Arc, Condvar, Mutex};
    use std::time::Instant;

    #[derive(Debug)]
    struct Bell {
        rings: Mutex<u64>,
        rung: Condvar,
    }

    #[derive(Debug)]
    pub struct Ringer(Arc<Bell>);

    #[derive(Debug)]
    pub struct Listener(Arc<Bell>);

    pub fn pair() -> Result<(Ringer, Listener)> {
        let bell = Arc::new(Bell {
            rings: Mutex::new(0),
            rung: Condvar::new(),
        });
        Ok((Ringer(Arc::clone(&bell)), Listener(bell)))
    }

    impl Ringer {
        pub fn ring(&self) -> Result<()> {
            *self.0.rings.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) += 1;
            self.0.rung.notify_all();
            Ok(())
        }
    }

    impl Listener {
        /// Another end that rings this bell.
        pub(crate) fn ringer(&self) -> Ringer {
            Ringer(Arc::clone(&self.0))
        }

        /// Without a deadline: a model that loses a wake-up deadlocks, and loom says so.
        pub fn wait(&self, _deadline: Option<Instant>) -> Result<Wait> {
            let mut rings = self.0.rings.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            while *rings == 0 {
                rings = self.0.rung.wait(rings).unwrap_or_else(|poisoned| poisoned.into_inner());
            }
            Ok(Wait::Rung(std::mem::take(&mut *rings)))
        }

        /// Executors wake each other with the first bell in the models.
        pub(crate) fn wait_also(&self, _other: Option<&Listener>, deadline: Option<Instant>) -> Result<Wait> {
            self.wait(deadline)
        }

        pub fn silence(&self) -> Result<Wait> {
            let mut rings = self.0.rings.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            Ok(Wait::Rung(std::mem::take(&mut *rings)))
        }
    }
}
