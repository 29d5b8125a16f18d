//! I/O queues and vectors: bytes of binaries, referred to and not copied, in the form that `writev(2)` takes.

use super::binaries::Binary;
use crate::host::buffer::Buffer;
use crate::host::env::Env;
use crate::host::term::{Bits, Term};
use libc::iovec;
use std::collections::VecDeque;
use std::ffi::{c_int, c_void};
use std::ptr;

/// The part of a buffer that is still in a queue. Holds a reference to it.
#[derive(Debug)]
struct Piece {
    buffer: *mut Buffer,
    data: *mut u8,
    length: usize,
}

/// `ErlNifIOQueue`.
#[derive(Debug, Default)]
pub struct Queue {
    pieces: VecDeque<Piece>,
    size: usize,
    /// What `enif_ioq_peek` gave last.
    peeked: Vec<iovec>,
}

const FEW: usize = 16;

/// `ErlNifIOVec`. Libraries have them on their stacks, too.
#[derive(Debug)]
#[repr(C)]
pub struct Vector {
    count: c_int,
    size: usize,
    parts: *mut iovec,
    buffers: *mut *mut Buffer,
    flags: c_int,
    few_parts: [iovec; FEW],
    few_buffers: [*mut c_void; FEW],
}

/// Flags of a vector: it is of no env, so that `enif_free_iovec` lets go of its buffers and of its arrays; and it was made
/// here, not by the library.
const LOOSE: c_int = 1;
const MADE: c_int = 2;

/// Parts that `writev(2)` takes at once.
const MOST: usize = 1024;

/// `ERL_NIF_IOQ_NORMAL`.
const NORMAL: c_int = 1;

impl Drop for Piece {
    fn drop(&mut self) {
        // SAFETY: the piece's reference.
        unsafe { Buffer::release(self.buffer) };
    }
}

impl Queue {
    /// Takes over a reference to the buffer.
    fn push(&mut self, buffer: *mut Buffer, data: *mut u8, length: usize) {
        let piece = Piece { buffer, data, length };
        if length > 0 {
            self.size += length;
            self.pieces.push_back(piece);
        }
    }

    fn drop_bytes(&mut self, mut count: usize) {
        self.size -= count;
        while let Some(first) = self.pieces.front_mut() {
            if count < first.length {
                // SAFETY: inside the piece.
                first.data = unsafe { first.data.add(count) };
                first.length -= count;
                return;
            }
            count -= first.length;
            self.pieces.pop_front();
        }
    }
}

/// A buffer with a copy of these bytes; null if there is no memory.
unsafe fn copied(data: *const u8, length: usize) -> *mut Buffer {
    let buffer = Buffer::allocate(length);
    if !buffer.is_null() {
        // SAFETY: as many bytes as were allocated; the caller's are there.
        unsafe { ptr::copy_nonoverlapping(data, Buffer::data(buffer), length) };
    }
    buffer
}

/// A reference to the buffer under a binary, and where the bytes are in it; null if there is no memory.
unsafe fn referred(bits: &Bits) -> (*mut Buffer, *mut u8) {
    // SAFETY: the binary's bytes and owner are alive while its env is; the copy is new.
    unsafe {
        if bits.owner.is_null() {
            let buffer = copied(bits.data, bits.length);
            let data = if buffer.is_null() {
                ptr::null_mut()
            } else {
                Buffer::data(buffer)
            };
            return (buffer, data);
        }
        Buffer::keep(bits.owner);
        (bits.owner, bits.data)
    }
}

/// The binaries at the beginning of a list, `most` at the most, and what follows them; `None` if one is no binary or the
/// list ends with something else than `[]`.
fn binaries<'a>(list: Term, most: usize) -> Option<(Vec<&'a Bits>, Term)> {
    let mut found = Vec::new();
    let mut rest = list;
    while let Some(cell) = rest.as_cons().filter(|_| found.len() < most) {
        found.push(cell.head.as_binary()?);
        rest = cell.tail;
    }
    rest.is_list().then_some((found, rest))
}

/// Room for `count` values: in the env, or from `malloc`.
unsafe fn room<T>(env: *mut Env, count: usize) -> *mut T {
    // SAFETY: the library's env, if it is not null.
    unsafe {
        if env.is_null() {
            libc::malloc(count.max(1) * size_of::<T>()).cast()
        } else {
            (*env).allocate((count * size_of::<T>()).div_ceil(8)).cast()
        }
    }
}

api! {
    fn enif_ioq_create(options: c_int) -> *mut Queue {
        if options == NORMAL { Box::into_raw(Box::default()) } else { ptr::null_mut() }
    }

    fn enif_ioq_destroy(queue: *mut Queue) {
        drop(Box::from_raw(queue));
    }

    fn enif_ioq_size(queue: *mut Queue) -> usize {
        (*queue).size
    }

    fn enif_ioq_enq_binary(queue: *mut Queue, binary: *mut Binary, skip: usize) -> c_int {
        let Some(length) = (*binary).size.checked_sub(skip) else { return 0 };
        let (data, mut buffer) = ((*binary).data.add(skip), (*binary).owner);
        let mut from = data;
        if buffer.is_null() {
            buffer = copied(data, length);
            if buffer.is_null() {
                return 0;
            }
            from = Buffer::data(buffer);
        }
        (*binary).owner = ptr::null_mut();
        (*queue).push(buffer, from, length);
        1
    }

    fn enif_ioq_enqv(queue: *mut Queue, vector: *mut Vector, skip: usize) -> c_int {
        if skip > (*vector).size {
            return 0;
        }
        let mut skip = skip;
        for position in 0..(*vector).count as usize {
            let part = *(*vector).parts.add(position);
            let skipped = skip.min(part.iov_len);
            skip -= skipped;
            let (data, length) = (part.iov_base.cast::<u8>().add(skipped), part.iov_len - skipped);
            let owner = if (*vector).buffers.is_null() { ptr::null_mut() } else { *(*vector).buffers.add(position) };
            if owner.is_null() {
                let buffer = copied(data, length);
                if buffer.is_null() {
                    return 0;
                }
                (*queue).push(buffer, Buffer::data(buffer), length);
            } else {
                Buffer::keep(owner);
                (*queue).push(owner, data, length);
            }
        }
        1
    }

    fn enif_ioq_deq(queue: *mut Queue, count: usize, size: *mut usize) -> c_int {
        if count > (*queue).size {
            return 0;
        }
        (*queue).drop_bytes(count);
        if !size.is_null() {
            size.write((*queue).size);
        }
        1
    }

    fn enif_ioq_peek(queue: *mut Queue, count: *mut c_int) -> *mut iovec {
        let queue = &mut *queue;
        let part = |piece: &Piece| iovec { iov_base: piece.data.cast(), iov_len: piece.length };
        queue.peeked.clear();
        queue.peeked.extend(queue.pieces.iter().map(part));
        if !count.is_null() {
            count.write(queue.peeked.len() as c_int);
        }
        queue.peeked.as_mut_ptr()
    }

    fn enif_ioq_peek_head(env: *mut Env, queue: *mut Queue, size: *mut usize, head: *mut Term) -> c_int {
        let queue = &*queue;
        let Some(first) = queue.pieces.front() else { return 0 };
        if !size.is_null() {
            size.write(first.length);
        }
        Buffer::keep(first.buffer);
        head.write((*env).owned_binary(first.buffer, first.data, first.length, 0));
        1
    }

    fn enif_inspect_iovec(
        env: *mut Env,
        most: usize,
        list: Term,
        tail: *mut Term,
        vector: *mut *mut Vector,
    ) -> c_int {
        let most = if most == 0 { MOST } else { most.min(MOST) };
        let Some((parts, rest)) = binaries(list, most) else { return 0 };
        let mut flags = if env.is_null() { LOOSE } else { 0 };
        if (*vector).is_null() {
            flags |= MADE;
            vector.write(room(env, 1));
        }
        let made = *vector;
        let (places, buffers) = (room::<iovec>(env, parts.len()), room::<*mut Buffer>(env, parts.len()));
        if made.is_null() || places.is_null() || buffers.is_null() {
            return 0;
        }
        let mut size = 0;
        for (position, bits) in parts.iter().enumerate() {
            let (buffer, data) = referred(bits);
            if buffer.is_null() {
                return 0;
            }
            if !env.is_null() {
                (*env).hold_buffer(buffer);
            }
            places.add(position).write(iovec { iov_base: data.cast(), iov_len: bits.length });
            buffers.add(position).write(buffer);
            size += bits.length;
        }
        (*made).count = parts.len() as c_int;
        (*made).size = size;
        (*made).parts = places;
        (*made).buffers = buffers;
        (*made).flags = flags;
        tail.write(rest);
        1
    }

    fn enif_free_iovec(vector: *mut Vector) {
        // One of an env ends with it.
        if (*vector).flags & LOOSE == 0 {
            return;
        }
        for position in 0..(*vector).count as usize {
            Buffer::release(*(*vector).buffers.add(position));
        }
        libc::free((*vector).parts.cast());
        libc::free((*vector).buffers.cast());
        if (*vector).flags & MADE != 0 {
            libc::free(vector.cast());
        }
    }
}
