//! Where bytes go, and where they come from.

use std::mem::MaybeUninit;

use crate::error::Full;

/// Takes bytes, one piece after the other.
pub trait Sink {
    fn put(&mut self, bytes: &[u8]) -> Result<(), Full>;

    /// A few bytes whose number is known when compiling.
    #[inline]
    fn put_array<const N: usize>(&mut self, bytes: [u8; N]) -> Result<(), Full> {
        self.put(&bytes)
    }

    /// How many bytes it has taken.
    fn position(&self) -> usize;

    /// Writes again what was put at `position`: the length of a list is known when its end is.
    fn patch(&mut self, position: usize, bytes: [u8; 4]);
}

/// Bytes that are skipped at once.
const SKIPPED: usize = 1 << 10;

/// Gives bytes, each at most once and in order, so that nobody who writes them meanwhile can be read twice.
///
/// # Safety
/// [`Source::copy_to`] has written every byte of its target when it returns true.
pub unsafe trait Source {
    fn remaining(&self) -> usize;

    /// `None`, and nothing taken, if fewer remain.
    fn take<const N: usize>(&mut self) -> Option<[u8; N]>;

    /// False, and nothing taken, if fewer remain.
    fn copy_to(&mut self, target: &mut [MaybeUninit<u8>]) -> bool;

    /// Takes `length` bytes that nobody needs. False, and nothing taken, if fewer remain.
    fn skip(&mut self, length: usize) -> bool {
        let mut chunk = [MaybeUninit::uninit(); SKIPPED];
        let mut left = length;
        length <= self.remaining()
            && loop {
                let some = left.min(SKIPPED);
                if left == 0 || !self.copy_to(&mut chunk[..some]) {
                    break left == 0;
                }
                left -= some;
            }
    }
}

/// The bytes of a binary, still in their source. To be copied once, to where the binary lives.
#[derive(Debug)]
pub struct Payload<'a, S> {
    source: &'a mut S,
    length: usize,
    mask: u8,
}

impl<'a, S: Source> Payload<'a, S> {
    /// The next `length` bytes, if there are so many.
    #[inline]
    #[must_use]
    pub fn new(source: &'a mut S, length: usize) -> Option<Self> {
        (length <= source.remaining()).then_some(Self {
            source,
            length,
            mask: 0xFF,
        })
    }

    /// Of the last byte only the upper `last` (1 to 8) bits.
    #[inline]
    #[must_use]
    pub(crate) fn masked(mut self, last: u8) -> Self {
        self.mask = 0xFF_u8 << (8 - last.clamp(1, 8));
        self
    }

    #[inline]
    #[must_use]
    pub const fn length(&self) -> usize {
        self.length
    }

    /// Fills `target`, which is as long as the payload. (A shorter one loses the rest, a longer one is zero behind it.)
    #[inline]
    pub fn copy_to(self, target: &mut [MaybeUninit<u8>]) -> &mut [u8] {
        let length = self.length.min(target.len());
        let (bytes, behind) = target.split_at_mut(length);
        if !self.source.copy_to(bytes) {
            bytes.fill(MaybeUninit::new(0));
        }
        behind.fill(MaybeUninit::new(0));
        for _ in length..self.length {
            self.source.take::<1>();
        }
        // SAFETY: the source or the lines above have written all of both halves.
        let target = unsafe { &mut *(std::ptr::from_mut(target) as *mut [u8]) };
        if self.mask != 0xFF
            && length == self.length
            && let Some(last) = target[..length].last_mut()
        {
            *last &= self.mask;
        }
        target
    }

    /// Appends it to `target`.
    pub fn append_to(self, target: &mut Vec<u8>) {
        let length = self.length;
        let before = target.len();
        target.reserve(length);
        self.copy_to(&mut target.spare_capacity_mut()[..length]);
        // SAFETY: `copy_to` has written the `length` bytes behind the old end.
        unsafe { target.set_len(before + length) };
    }
}

/// Private memory, read.
#[derive(Debug, Clone)]
pub struct SliceSource<'a> {
    rest: &'a [u8],
}

impl<'a> SliceSource<'a> {
    #[inline]
    #[must_use]
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }
}

// SAFETY: `copy_to` copies as many bytes as the target has, or answers false.
unsafe impl Source for SliceSource<'_> {
    #[inline]
    fn remaining(&self) -> usize {
        self.rest.len()
    }

    #[inline]
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (bytes, rest) = self.rest.split_first_chunk::<N>()?;
        self.rest = rest;
        Some(*bytes)
    }

    #[inline]
    fn copy_to(&mut self, target: &mut [MaybeUninit<u8>]) -> bool {
        let Some((bytes, rest)) = self.rest.split_at_checked(target.len()) else {
            return false;
        };
        target.write_copy_of_slice(bytes);
        self.rest = rest;
        true
    }

    fn skip(&mut self, length: usize) -> bool {
        let rest = self.rest.get(length..);
        self.rest = rest.unwrap_or(self.rest);
        rest.is_some()
    }
}

/// Private memory of a fixed size, written.
#[derive(Debug)]
pub struct SliceSink<'a> {
    bytes: &'a mut [u8],
    position: usize,
}

impl<'a> SliceSink<'a> {
    #[inline]
    #[must_use]
    pub fn new(bytes: &'a mut [u8]) -> Self {
        Self { bytes, position: 0 }
    }

    #[inline]
    #[must_use]
    pub fn written(&self) -> &[u8] {
        &self.bytes[..self.position]
    }
}

impl Sink for SliceSink<'_> {
    #[inline]
    fn put(&mut self, bytes: &[u8]) -> Result<(), Full> {
        let room = self.bytes.get_mut(self.position..).ok_or(Full)?;
        let room = room.get_mut(..bytes.len()).ok_or(Full)?;
        room.copy_from_slice(bytes);
        self.position += bytes.len();
        Ok(())
    }

    #[inline]
    fn put_array<const N: usize>(&mut self, bytes: [u8; N]) -> Result<(), Full> {
        let room = self.bytes.get_mut(self.position..).ok_or(Full)?;
        *room.first_chunk_mut::<N>().ok_or(Full)? = bytes;
        self.position += N;
        Ok(())
    }

    #[inline]
    fn position(&self) -> usize {
        self.position
    }

    #[inline]
    fn patch(&mut self, position: usize, bytes: [u8; 4]) {
        if let Some(target) = self.bytes.get_mut(position..).and_then(<[u8]>::first_chunk_mut::<4>) {
            *target = bytes;
        }
    }
}

/// Appends to a vector, up to a bound.
#[derive(Debug)]
pub struct VecSink<'a> {
    bytes: &'a mut Vec<u8>,
    start: usize,
    limit: usize,
}

impl<'a> VecSink<'a> {
    /// Takes at most `limit` bytes.
    #[inline]
    #[must_use]
    pub fn new(bytes: &'a mut Vec<u8>, limit: usize) -> Self {
        let start = bytes.len();
        Self { bytes, start, limit }
    }
}

impl Sink for VecSink<'_> {
    #[inline]
    fn put(&mut self, bytes: &[u8]) -> Result<(), Full> {
        if bytes.len() > self.limit - self.position() {
            return Err(Full);
        }
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }

    #[inline]
    fn position(&self) -> usize {
        self.bytes.len() - self.start
    }

    #[inline]
    fn patch(&mut self, position: usize, bytes: [u8; 4]) {
        let target = self.bytes.get_mut(self.start + position..);
        if let Some(target) = target.and_then(<[u8]>::first_chunk_mut::<4>) {
            *target = bytes;
        }
    }
}

/// Takes everything and keeps only its size: how much room a payload will need.
#[derive(Debug, Clone, Copy, Default)]
pub struct Measure {
    position: usize,
}

impl Sink for Measure {
    #[inline]
    fn put(&mut self, bytes: &[u8]) -> Result<(), Full> {
        self.position += bytes.len();
        Ok(())
    }

    #[inline]
    fn position(&self) -> usize {
        self.position
    }

    #[inline]
    fn patch(&mut self, _position: usize, _bytes: [u8; 4]) {}
}
