//! One message a packet, over a SEQPACKET socket that does not block.

use super::channel::Channel;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, recv, send, sendmsg, socketpair,
};
use snakepit_shm_core::error::{Error, Result};
use snakepit_wire::control::PACKET;
use std::io::IoSlice;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

/// Two connected ends, close-on-exec: ours does not block, the other does.
pub fn pair() -> Result<(OwnedFd, OwnedFd)> {
    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
        .map_err(|errno| Error::os("socketpair", errno))?;
    do_not_block(&ours)?;
    Ok((ours, theirs))
}

pub fn do_not_block(fd: &OwnedFd) -> Result<()> {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    fcntl(fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))
        .map(|_| ())
        .map_err(|errno| Error::os("fcntl", errno))
}

#[derive(Debug)]
pub enum Received {
    Packet(Vec<u8>),
    Again,
    Closed,
}

/// The next packet. Never with descriptors: `recv` has no room for them, and the kernel drops them.
pub fn receive(channel: &Channel<OwnedFd>) -> Received {
    let mut packet = vec![0; PACKET + 1];
    let flags = MsgFlags::MSG_DONTWAIT;
    let got = channel.with(|fd| {
        loop {
            match recv(fd.as_raw_fd(), &mut packet, flags) {
                Err(Errno::EINTR) => {}
                other => return other,
            }
        }
    });
    match got {
        // A packet of no bytes cannot be told from the end, and nobody sends one.
        None | Some(Ok(0)) => Received::Closed,
        Some(Ok(length)) => {
            packet.truncate(length);
            Received::Packet(packet)
        }
        Some(Err(Errno::EAGAIN)) => Received::Again,
        Some(Err(_)) => Received::Closed,
    }
}

#[derive(Debug, PartialEq, Eq)]
pub enum Sent {
    Yes,
    Busy,
    Closed,
}

pub fn post(channel: &Channel<OwnedFd>, packet: &[u8], descriptors: &[RawFd]) -> Sent {
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    let sent = channel.with(|fd| {
        loop {
            let sent = if descriptors.is_empty() {
                send(fd.as_raw_fd(), packet, flags)
            } else {
                let rights = [ControlMessage::ScmRights(descriptors)];
                sendmsg::<()>(fd.as_raw_fd(), &[IoSlice::new(packet)], &rights, flags, None)
            };
            if sent != Err(Errno::EINTR) {
                return sent;
            }
        }
    });
    match sent {
        Some(Ok(_)) => Sent::Yes,
        Some(Err(Errno::EAGAIN | Errno::ENOBUFS | Errno::ETOOMANYREFS)) => Sent::Busy,
        None | Some(Err(_)) => Sent::Closed,
    }
}
