//! Packets over a Unix `SOCK_SEQPACKET` socket: one message each, descriptors beside it.

use crate::process::check;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::{io, mem, ptr};

/// Descriptors that are taken out of one packet; the kernel closes what is beyond.
const DESCRIPTORS: usize = 8;

/// One end of a socket pair.
#[derive(Debug)]
pub struct Packets {
    fd: OwnedFd,
}

/// What [`Packets::receive`] found.
#[derive(Debug)]
pub enum Received {
    /// The packet is in the first `length` bytes of the buffer. `cut` if bytes or descriptors did not fit: the latter
    /// is also what the kernel says when this process may open no more.
    Packet {
        length: usize,
        descriptors: Vec<OwnedFd>,
        cut: bool,
    },
    /// None now.
    Nothing,
    /// The other end is closed, or the socket is of no use any more.
    Closed,
}

impl Packets {
    /// Takes an inherited descriptor, which must be such a socket.
    pub fn adopt(number: RawFd) -> io::Result<Self> {
        let mut kind: libc::c_int = 0;
        let mut length = mem::size_of_val(&kind) as libc::socklen_t;
        // SAFETY: value and length are valid for the call; the number is only looked at.
        check(unsafe {
            let value = ptr::from_mut(&mut kind).cast();
            libc::getsockopt(number, libc::SOL_SOCKET, libc::SO_TYPE, value, &mut length)
        })?;
        if kind != libc::SOCK_SEQPACKET {
            return Err(io::Error::from_raw_os_error(libc::EPROTOTYPE));
        }
        crate::process::close_on_exec(number)?;
        // SAFETY: open, as getsockopt has just found; whoever started this process gave it to this role alone.
        let fd = unsafe { OwnedFd::from_raw_fd(number) };
        Ok(Packets { fd })
    }

    /// The number, to poll on.
    pub fn number(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    /// Sends one packet without waiting; false when the other end has too many unread.
    pub fn send(&self, packet: &[u8]) -> io::Result<bool> {
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        // SAFETY: the pointer and the length are those of one slice.
        let sent = unsafe { libc::send(self.number(), packet.as_ptr().cast(), packet.len(), flags) };
        if sent >= 0 {
            return Ok(true);
        }
        match io::Error::last_os_error() {
            full if full.kind() == io::ErrorKind::WouldBlock => Ok(false),
            error => Err(error),
        }
    }

    /// Sends one packet, waiting as long as it takes: for processes that end by a signal when nobody reads them.
    pub fn send_patiently(&self, packet: &[u8]) -> io::Result<()> {
        while !self.send(packet)? {
            self.wait(libc::POLLOUT, -1);
        }
        Ok(())
    }

    /// Takes the next packet without waiting.
    pub fn receive(&self, buffer: &mut [u8]) -> Received {
        // Aligned as a control message must be.
        let mut control = [0_u64; 16];
        let mut part = libc::iovec {
            iov_base: buffer.as_mut_ptr().cast(),
            iov_len: buffer.len(),
        };
        // SAFETY: all zeroes is a valid msghdr; its private padding forbids a literal.
        let mut message: libc::msghdr = unsafe { MaybeUninit::zeroed().assume_init() };
        message.msg_iov = &mut part;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        // SAFETY: arithmetic only.
        message.msg_controllen = unsafe { libc::CMSG_SPACE((DESCRIPTORS * mem::size_of::<RawFd>()) as u32) } as _;
        let flags = libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC;
        let length = loop {
            // SAFETY: every pointer of the message is valid for the length beside it.
            let length = unsafe { libc::recvmsg(self.number(), &mut message, flags) };
            if length >= 0 {
                break length as usize;
            }
            match io::Error::last_os_error().kind() {
                io::ErrorKind::Interrupted => continue,
                io::ErrorKind::WouldBlock => return Received::Nothing,
                _ => return Received::Closed,
            }
        };
        let descriptors = taken(&message);
        if length == 0 {
            return Received::Closed;
        }
        Received::Packet {
            length,
            descriptors,
            cut: message.msg_flags & (libc::MSG_TRUNC | libc::MSG_CTRUNC) != 0,
        }
    }

    /// Waits for `events`; false after `milliseconds` (negative: never).
    pub fn wait(&self, events: libc::c_short, milliseconds: libc::c_int) -> bool {
        let mut poll = [libc::pollfd {
            fd: self.number(),
            events,
            revents: 0,
        }];
        wait_for(&mut poll, milliseconds)
    }
}

/// `poll(2)`; false when the time is over or a signal came.
pub fn wait_for(descriptors: &mut [libc::pollfd], milliseconds: libc::c_int) -> bool {
    // SAFETY: the pointer and the length are those of one slice.
    unsafe {
        libc::poll(
            descriptors.as_mut_ptr(),
            descriptors.len() as libc::nfds_t,
            milliseconds,
        ) > 0
    }
}

/// Owns the descriptors that came with a message: first of all, so that none is lost whatever is wrong with the rest.
fn taken(message: &libc::msghdr) -> Vec<OwnedFd> {
    let mut descriptors = Vec::new();
    // SAFETY: the kernel has filled the control buffer and set its length; the macros stay inside of it. Each number
    // in a message of SCM_RIGHTS is a descriptor that this process has got just now and that nobody else owns.
    unsafe {
        let mut header = libc::CMSG_FIRSTHDR(message);
        while !header.is_null() {
            if (*header).cmsg_level == libc::SOL_SOCKET && (*header).cmsg_type == libc::SCM_RIGHTS {
                let bytes = (*header).cmsg_len as usize - libc::CMSG_LEN(0) as usize;
                let first = libc::CMSG_DATA(header).cast::<RawFd>();
                for position in 0..bytes / mem::size_of::<RawFd>() {
                    descriptors.push(OwnedFd::from_raw_fd(first.add(position).read_unaligned()));
                }
            }
            header = libc::CMSG_NXTHDR(message, header);
        }
    }
    descriptors
}
