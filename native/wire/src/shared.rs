//! Memory that another process may read and write at the same time.
//!
//! No reference ever points there. Small pieces move as relaxed atomic bytes (they order nothing: the ring's sequence
//! words do), bulk through the caller's copy, which the compiler must not see through.

use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicU8, Ordering};

use crate::bytes::{Sink, Source};
use crate::error::Full;

/// Copies (target, source, length) between private and shared memory that do not overlap.
pub type Copy = unsafe fn(*mut u8, *const u8, usize);

/// Up to here byte by byte, without a call.
const FEW: usize = 16;

/// Shared memory, read: each byte at most once.
#[derive(Debug)]
pub struct SharedSource {
    next: *const u8,
    remaining: usize,
    copy: Copy,
}

impl SharedSource {
    /// # Safety
    /// `length` bytes from `start` on stay mapped, readable and not truncatable for as long as this value lives, and
    /// `copy` copies exactly the range it is given.
    #[inline]
    #[must_use]
    pub const unsafe fn new(start: *const u8, length: usize, copy: Copy) -> Self {
        Self {
            next: start,
            remaining: length,
            copy,
        }
    }

    /// Moves on by `length`, which was compared with `remaining`.
    #[inline]
    fn advance(&mut self, length: usize) {
        // SAFETY: at most one past the end of the range that `new` was given.
        self.next = unsafe { self.next.add(length) };
        self.remaining -= length;
    }

    /// # Safety
    /// `offset` is below `remaining`.
    #[inline]
    unsafe fn byte(&self, offset: usize) -> u8 {
        // SAFETY: in the range that `new` vouches for; a byte is always aligned, and only loaded. Relaxed: pairs with
        // nothing, the ring's acquire load of the sequence word came before.
        unsafe { AtomicU8::from_ptr(self.next.add(offset).cast_mut()).load(Ordering::Relaxed) }
    }
}

// SAFETY: `copy_to` writes every byte of the target, one by one or through `copy`, or answers false.
unsafe impl Source for SharedSource {
    #[inline]
    fn remaining(&self) -> usize {
        self.remaining
    }

    #[inline]
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        if self.remaining < N {
            return None;
        }
        // SAFETY: `offset` is below N, which is at most `remaining`.
        let bytes = std::array::from_fn(|offset| unsafe { self.byte(offset) });
        self.advance(N);
        Some(bytes)
    }

    #[inline]
    fn copy_to(&mut self, target: &mut [MaybeUninit<u8>]) -> bool {
        let length = target.len();
        if length > self.remaining {
            return false;
        }
        if length <= FEW {
            for (offset, target) in target.iter_mut().enumerate() {
                // SAFETY: `offset` is below `length`, which is at most `remaining`.
                target.write(unsafe { self.byte(offset) });
            }
        } else {
            // SAFETY: `length` bytes remain; the target is private and as long.
            unsafe { (self.copy)(target.as_mut_ptr().cast(), self.next, length) };
        }
        self.advance(length);
        true
    }
}

/// Shared memory, written.
#[derive(Debug)]
pub struct SharedSink {
    start: *mut u8,
    capacity: usize,
    position: usize,
    copy: Copy,
}

impl SharedSink {
    /// # Safety
    /// `capacity` bytes from `start` on stay mapped, writable and not truncatable for as long as this value lives, and
    /// `copy` copies exactly the range it is given.
    #[inline]
    #[must_use]
    pub const unsafe fn new(start: *mut u8, capacity: usize, copy: Copy) -> Self {
        Self {
            start,
            capacity,
            position: 0,
            copy,
        }
    }

    /// # Safety
    /// `position` is below `capacity`.
    #[inline]
    unsafe fn store(&mut self, position: usize, byte: u8) {
        // SAFETY: in the range that `new` vouches for; a byte is always aligned. Relaxed: pairs with nothing, the
        // ring's release store of the sequence word comes after.
        unsafe { AtomicU8::from_ptr(self.start.add(position)).store(byte, Ordering::Relaxed) };
    }
}

impl Sink for SharedSink {
    #[inline]
    fn put(&mut self, bytes: &[u8]) -> Result<(), Full> {
        if bytes.len() > self.capacity - self.position {
            return Err(Full);
        }
        if bytes.len() <= FEW {
            for (offset, byte) in bytes.iter().enumerate() {
                // SAFETY: `position + bytes.len()` is at most `capacity`.
                unsafe { self.store(self.position + offset, *byte) };
            }
        } else {
            // SAFETY: so many bytes are free from `position` on; the source is private.
            unsafe { (self.copy)(self.start.add(self.position), bytes.as_ptr(), bytes.len()) };
        }
        self.position += bytes.len();
        Ok(())
    }

    #[inline]
    fn put_array<const N: usize>(&mut self, bytes: [u8; N]) -> Result<(), Full> {
        if N > self.capacity - self.position {
            return Err(Full);
        }
        for (offset, byte) in bytes.into_iter().enumerate() {
            // SAFETY: `position + N` is at most `capacity`.
            unsafe { self.store(self.position + offset, byte) };
        }
        self.position += N;
        Ok(())
    }

    #[inline]
    fn position(&self) -> usize {
        self.position
    }

    #[inline]
    fn patch(&mut self, position: usize, bytes: [u8; 4]) {
        if position.checked_add(4).is_some_and(|end| end <= self.position) {
            for (offset, byte) in bytes.into_iter().enumerate() {
                // SAFETY: `position + 4` is at most what was written, which is at most `capacity`.
                unsafe { self.store(position + offset, byte) };
            }
        }
    }
}
