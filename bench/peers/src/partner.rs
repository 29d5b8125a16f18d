//! The other process of a round trip: this program once more, with descriptors of ours as its 3, 4, ...

use crate::Outcome;
use crate::os::check;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

const FIRST: RawFd = 3;
// Where copies of ours lie while 3, 4, ... are being taken.
const ASIDE: RawFd = 64;

pub struct Partner(Child);

impl Partner {
    /// Runs `words` in `main`, and is killed when this is dropped or when we die.
    pub fn start(words: &[&str], descriptors: &[BorrowedFd<'_>]) -> Outcome<Self> {
        let given: Vec<RawFd> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
        let mut command = Command::new("/proc/self/exe");
        command
            .arg("partner")
            .args(words)
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        // SAFETY: prctl, fcntl and dup2 are async-signal-safe and take integers; `given` is only read.
        unsafe {
            command.pre_exec(move || {
                check(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL))?;
                // Aside first: one of ours may be 3 itself.
                for (i, &number) in given.iter().enumerate() {
                    check(libc::dup2(number, ASIDE + i as RawFd))?;
                }
                for i in 0..given.len() as RawFd {
                    check(libc::dup2(ASIDE + i, FIRST + i))?;
                    check(libc::close(ASIDE + i))?;
                }
                Ok(())
            });
        }
        Ok(Self(command.spawn()?))
    }

    /// An error if it has ended.
    pub fn check(&mut self) -> Outcome<()> {
        match self.0.try_wait()? {
            None => Ok(()),
            Some(status) => Err(format!("the other process ended: {status}").into()),
        }
    }

    /// Waits for the end of one that has been told to leave.
    pub fn wait(mut self) -> io::Result<()> {
        self.0.wait().map(drop)
    }
}

impl Drop for Partner {
    fn drop(&mut self) {
        // Both fail where it has ended and been waited for.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// In the other process: descriptor number `i` of those that it was given.
///
/// # Safety
/// To be asked for once each, in a process that `Partner::start` has started with so many.
pub unsafe fn given(i: RawFd) -> OwnedFd {
    // SAFETY: the caller's promise: open, and nobody else's.
    unsafe { OwnedFd::from_raw_fd(FIRST + i) }
}
