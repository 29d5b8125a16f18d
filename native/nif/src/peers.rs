//! `peer_watch`, `peer_watch_move`, `peer_watch_close`: who is at the other end of a socket, and when it ends.

use crate::atoms;
use crate::reply::{failure, map};
use crate::watcher::{self, Tag};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustler::types::atom::Atom;
use rustler::{Encoder, Env, LocalPid, Resource, ResourceArc, Term};
use snakepit_shm_core::error::{Error, Result};
use snakepit_shm_core::identity;
use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// Linux 6.5 and later; the C library's headers may be older.
const SO_PEERPIDFD: i32 = 77;

/// The watch ends when it is closed or collected.
pub struct WatchResource(u64);

#[rustler::resource_impl]
impl Resource for WatchResource {}

impl Drop for WatchResource {
    fn drop(&mut self) {
        watcher::remove(self.0);
    }
}

struct Peer {
    pid: u64,
    uid: u32,
    gid: u32,
    start_time: u64,
    pidfd: OwnedFd,
}

#[rustler::nif]
fn peer_watch<'a>(env: Env<'a>, socket: i64, receiver: LocalPid, tag: Term<'a>) -> Term<'a> {
    let watched = peer_of(socket).and_then(|peer| {
        let details = map(
            env,
            &[
                (atoms::pid(), peer.pid.encode(env)),
                (atoms::uid(), peer.uid.encode(env)),
                (atoms::gid(), peer.gid.encode(env)),
                (atoms::start_time(), peer.start_time.encode(env)),
            ],
        );
        let id = watcher::add(peer.pidfd, receiver, Tag::new(tag))?;
        Ok((ResourceArc::new(WatchResource(id)), details))
    });
    match watched {
        Ok((watch, details)) => (atoms::ok(), watch, details).encode(env),
        Err(error) => failure(env, &error),
    }
}

#[rustler::nif]
fn peer_watch_move(watch: ResourceArc<WatchResource>, receiver: LocalPid, tag: Term<'_>) -> Atom {
    watcher::redirect(watch.0, receiver, Tag::new(tag));
    atoms::ok()
}

#[rustler::nif]
fn peer_watch_close(watch: ResourceArc<WatchResource>) -> Atom {
    watcher::remove(watch.0);
    atoms::ok()
}

fn peer_of(socket: i64) -> Result<Peer> {
    let socket = RawFd::try_from(socket).map_err(|_| Error::NotUnixSocket)?;
    // The number is Elixir's, who keeps its socket open. If it means something else by now, or nothing, the kernel says
    // so here; nothing is read, written or closed through it.
    let domain: libc::c_int = option(socket, libc::SO_DOMAIN).map_err(|_| Error::NotUnixSocket)?;
    if domain != libc::AF_UNIX {
        return Err(Error::NotUnixSocket);
    }
    let credentials: libc::ucred = option(socket, libc::SO_PEERCRED).map_err(|_| Error::NotUnixSocket)?;
    if credentials.uid == libc::uid_t::MAX {
        // Not connected to anybody.
        return Err(Error::NotUnixSocket);
    }
    // Zero: in a pid namespace that is not below ours.
    let pid = u64::try_from(credentials.pid).unwrap_or(0);
    let (pidfd, start_time) = match option::<RawFd>(socket, SO_PEERPIDFD) {
        Ok(number) => {
            // SAFETY: getsockopt has just made this descriptor, nobody else owns it.
            let pidfd = unsafe { OwnedFd::from_raw_fd(number) };
            // Read while the process still holds its pid: the look below proves that it did.
            (pidfd, identity::start_time(pid).unwrap_or(0))
        }
        Err(Errno::ENOPROTOOPT) => by_pid(pid)?,
        Err(Errno::EMFILE | Errno::ENFILE) => return Err(Error::os("getsockopt", Errno::EMFILE)),
        Err(_) => return Err(Error::NoProcess),
    };
    if has_ended(pidfd.as_fd()) {
        return Err(Error::NoProcess);
    }
    Ok(Peer {
        pid,
        uid: credentials.uid,
        gid: credentials.gid,
        start_time,
        pidfd,
    })
}

/// Before Linux 6.5: the pid of the credentials may have been used again. The same start time before and after shows
/// that the descriptor is of the process that we have looked at; that it connected is for the caller's protocol.
fn by_pid(pid: u64) -> Result<(OwnedFd, u64)> {
    let before = identity::start_time(pid).ok_or(Error::NoProcess)?;
    // SAFETY: pidfd_open takes two integers.
    let number = unsafe { libc::syscall(libc::SYS_pidfd_open, pid as libc::pid_t, 0) };
    let number = Errno::result(number).map_err(|errno| match errno {
        Errno::ESRCH | Errno::EINVAL => Error::NoProcess,
        errno => Error::os("pidfd_open", errno),
    })?;
    // SAFETY: pidfd_open has just made this descriptor, nobody else owns it.
    let pidfd = unsafe { OwnedFd::from_raw_fd(number as RawFd) };
    if identity::start_time(pid) != Some(before) {
        return Err(Error::NoProcess);
    }
    Ok((pidfd, before))
}

fn has_ended(pidfd: BorrowedFd<'_>) -> bool {
    let mut descriptors = [PollFd::new(pidfd, PollFlags::POLLIN)];
    matches!(poll(&mut descriptors, PollTimeout::ZERO), Ok(count) if count > 0)
}

/// Reads a socket option of type `T`, which must be made of integers only.
fn option<T: Copy>(socket: RawFd, name: i32) -> std::result::Result<T, Errno> {
    let mut value = MaybeUninit::<T>::zeroed();
    let mut length = size_of::<T>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes into `value`; a number that is no descriptor is an error.
    let outcome = unsafe {
        libc::getsockopt(
            socket,
            libc::SOL_SOCKET,
            name,
            value.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    Errno::result(outcome)?;
    if length as usize != size_of::<T>() {
        return Err(Errno::EPROTO);
    }
    // SAFETY: zeroed before, and made of integers: any bytes are a value.
    Ok(unsafe { value.assume_init() })
}
