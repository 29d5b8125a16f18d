//! Binaries. `ErlNifBinary` of a term describes the term's bytes; one of `enif_alloc_binary` owns a buffer.

use crate::host::buffer::Buffer;
use crate::host::env::Env;
use crate::host::term::{Bits, Shape, Term};
use std::ffi::{c_int, c_void};
use std::ptr;

/// `ErlNifBinary`.
#[derive(Debug)]
#[repr(C)]
pub struct Binary {
    pub size: usize,
    pub data: *mut u8,
    /// The buffer that this struct owns; null if the bytes are a term's.
    pub owner: *mut Buffer,
    spare: [*mut c_void; 2],
}

/// Memory that is not null, for binaries without bytes.
static NOTHING: [u8; 1] = [0];

impl Binary {
    /// # Safety
    /// `place` is the library's struct.
    unsafe fn describe(place: *mut Self, data: *mut u8, size: usize, owner: *mut Buffer) {
        let data = if data.is_null() {
            ptr::from_ref(&NOTHING).cast_mut().cast()
        } else {
            data
        };
        // SAFETY: valid for the fields that libraries know; `spare` stays what it is.
        unsafe {
            (*place).size = size;
            (*place).data = data;
            (*place).owner = owner;
        }
    }

    /// A buffer of its own.
    ///
    /// # Safety
    /// `place` is the library's struct.
    pub unsafe fn allocate(place: *mut Self, size: usize) -> bool {
        let buffer = Buffer::allocate(size);
        if buffer.is_null() {
            return false;
        }
        // SAFETY: just made.
        unsafe { Self::describe(place, Buffer::data(buffer), size, buffer) };
        true
    }
}

/// Walks the binaries and bytes of an iolist in order; false if it is none.
fn flatten(term: Term, take: &mut dyn FnMut(&[u8])) -> bool {
    let mut stack = vec![term];
    let mut first = true;
    while let Some(term) = stack.pop() {
        match term.shape() {
            Shape::Nil => {}
            Shape::Cons(head, tail) => {
                // A tail is a list or a binary, never a byte.
                if tail.is_small() {
                    return false;
                }
                stack.push(tail);
                stack.push(head);
            }
            Shape::Small(byte @ 0..=255) if !first => take(&[byte as u8]),
            Shape::Bits(bits) if bits.last == 0 => take(bits.bytes()),
            _ => return false,
        }
        first = false;
    }
    true
}

fn part<'a>(term: Term, position: usize, size: usize) -> Option<&'a Bits> {
    let bits = term.as_binary()?;
    (position <= bits.length && size <= bits.length - position).then_some(bits)
}

api! {
    fn enif_is_binary(_env: *mut Env, term: Term) -> c_int {
        c_int::from(term.as_binary().is_some())
    }

    fn enif_inspect_binary(_env: *mut Env, term: Term, binary: *mut Binary) -> c_int {
        match term.as_binary() {
            Some(bits) => {
                Binary::describe(binary, bits.data, bits.length, ptr::null_mut());
                1
            }
            None => 0,
        }
    }

    fn enif_inspect_iolist_as_binary(env: *mut Env, term: Term, binary: *mut Binary) -> c_int {
        if let Some(bits) = term.as_binary() {
            Binary::describe(binary, bits.data, bits.length, ptr::null_mut());
            return 1;
        }
        let mut size = 0;
        if !flatten(term, &mut |bytes| size += bytes.len()) {
            return 0;
        }
        let (flat, data) = (*env).new_binary(size, 0);
        if !flat.is_value() {
            return 0;
        }
        let mut next = data;
        flatten(term, &mut |bytes| {
            ptr::copy_nonoverlapping(bytes.as_ptr(), next, bytes.len());
            next = next.add(bytes.len());
        });
        Binary::describe(binary, data, size, ptr::null_mut());
        1
    }

    fn enif_alloc_binary(size: usize, binary: *mut Binary) -> c_int {
        c_int::from(Binary::allocate(binary, size))
    }

    fn enif_realloc_binary(binary: *mut Binary, size: usize) -> c_int {
        let (data, old, owner) = ((*binary).data, (*binary).size, (*binary).owner);
        if owner.is_null() {
            // The bytes are a term's: they are copied, and the term stays what it is.
            if !Binary::allocate(binary, size) {
                return 0;
            }
            ptr::copy_nonoverlapping(data, (*binary).data, old.min(size));
            return 1;
        }
        let buffer = Buffer::resize(owner, size);
        if buffer.is_null() {
            return 0;
        }
        Binary::describe(binary, Buffer::data(buffer), size, buffer);
        1
    }

    fn enif_release_binary(binary: *mut Binary) {
        let owner = (*binary).owner;
        if !owner.is_null() {
            (*binary).owner = ptr::null_mut();
            Buffer::release(owner);
        }
    }

    fn enif_make_binary(env: *mut Env, binary: *mut Binary) -> Term {
        let (data, size, owner) = ((*binary).data, (*binary).size, (*binary).owner);
        if owner.is_null() {
            let bytes = if size == 0 { &[] } else { std::slice::from_raw_parts(data, size) };
            return (*env).binary(bytes, 0);
        }
        (*binary).owner = ptr::null_mut();
        (*env).owned_binary(owner, data, size, 0)
    }

    fn enif_make_new_binary(env: *mut Env, size: usize, term: *mut Term) -> *mut u8 {
        let (made, data) = (*env).new_binary(size, 0);
        term.write(made);
        data
    }

    fn enif_make_sub_binary(env: *mut Env, term: Term, position: usize, size: usize) -> Term {
        match part(term, position, size) {
            Some(bits) => (*env).sub_binary(bits, position, size),
            // Undefined in the VM.
            None => (*env).bad_argument(),
        }
    }
}
