//! Arguments on their way into the ring.
//!
//! Terms are written in small pieces, which go through a private buffer. What the buffer cannot hold goes to the argument area,
//! in a range that grows, so nothing is encoded or copied twice; the bytes of large binaries go there directly.

use snakepit_shm_core::copy;
use snakepit_shm_core::ring::Error;
use snakepit_shm_core::ring::vm::{Payload, Spill, VmRing};
use snakepit_wire::{Full, Sink};

/// What the buffer holds, and what travels in a slot.
const BUFFER: usize = 16 << 10;
/// The first range of the argument area.
const FIRST: usize = 128 << 10;

#[derive(Debug)]
pub struct Outgoing<'a> {
    ring: &'a VmRing,
    buffer: &'a mut Vec<u8>,
    /// Bytes in front of those in the buffer.
    gone: usize,
    spill: Option<Spill>,
    limit: usize,
    refused: Option<Error>,
}

impl<'a> Outgoing<'a> {
    /// `buffer` is memory to use again and again.
    pub fn new(ring: &'a VmRing, buffer: &'a mut Vec<u8>, limit: usize) -> Self {
        buffer.clear();
        Outgoing {
            ring,
            buffer,
            gone: 0,
            spill: None,
            limit,
            refused: None,
        }
    }

    /// What the ring said when it had no room, if that is why nothing more fits.
    pub fn refused(&mut self) -> Option<Error> {
        self.refused.take()
    }

    /// All of it, to be published. `None`: no room for the end.
    pub fn payload(&mut self) -> Option<Payload<'_>> {
        if self.gone > 0 {
            self.flush().ok()?;
        }
        let length = self.gone as u32;
        Some(match self.spill.take() {
            Some(spill) => Payload::Spill(spill, length),
            None => Payload::Bytes(self.buffer),
        })
    }

    fn flush(&mut self) -> Result<(), Full> {
        self.reserve(self.buffer.len())?;
        let length = self.buffer.len();
        let source = self.buffer.as_ptr();
        // SAFETY: the buffer is as long as it says, and `reserve` has made room.
        unsafe { self.append(source, length) };
        self.buffer.clear();
        Ok(())
    }

    /// Room for `more` bytes in the argument area.
    fn reserve(&mut self, more: usize) -> Result<(), Full> {
        let needed = self.gone + more;
        let found = match self.spill.take() {
            Some(spill) if self.ring.spill_area(&spill).1 >= needed => Ok(spill),
            Some(spill) => {
                // The buffer may hold what is beyond the limit by a little: never less than is needed.
                let larger = (2 * needed).min(self.limit).max(needed);
                self.ring
                    .grow(spill, self.gone, larger)
                    .or_else(|(spill, _)| self.ring.grow(spill, self.gone, needed))
                    .map_err(|(spill, error)| {
                        self.ring.unspill(spill);
                        error
                    })
            }
            None => {
                let first = needed.max(FIRST).min(self.limit.max(needed));
                self.ring.spill(first).or_else(|_| self.ring.spill(needed))
            }
        };
        match found {
            Ok(spill) => self.spill = Some(spill),
            Err(error) => self.refused = Some(error),
        }
        if self.spill.is_some() { Ok(()) } else { Err(Full) }
    }

    /// # Safety
    /// `length` private bytes are at `source`, and `reserve` has made room for them.
    unsafe fn append(&mut self, source: *const u8, length: usize) {
        if let Some(spill) = &self.spill {
            let (area, _) = self.ring.spill_area(spill);
            // SAFETY: the caller vouches for the source and the room; the range is ours until the call is over.
            unsafe { copy::bytes(area.add(self.gone), source, length) };
            self.gone += length;
        }
    }

    #[inline(never)]
    fn put_more(&mut self, bytes: &[u8]) -> Result<(), Full> {
        if bytes.len() > self.limit.saturating_sub(self.position()) {
            return Err(Full);
        }
        self.reserve(self.buffer.len() + bytes.len())?;
        self.flush()?;
        if bytes.len() < BUFFER {
            self.buffer.extend_from_slice(bytes);
        } else {
            // SAFETY: a slice is as long as it says; room for it was reserved above.
            unsafe { self.append(bytes.as_ptr(), bytes.len()) };
        }
        Ok(())
    }
}

impl Sink for Outgoing<'_> {
    #[inline]
    fn put(&mut self, bytes: &[u8]) -> Result<(), Full> {
        if self.buffer.len() + bytes.len() <= BUFFER {
            self.buffer.extend_from_slice(bytes);
            return Ok(());
        }
        self.put_more(bytes)
    }

    #[inline]
    fn position(&self) -> usize {
        self.gone + self.buffer.len()
    }

    #[inline]
    fn patch(&mut self, position: usize, bytes: [u8; 4]) {
        // What was put at once lies together, in the buffer or in the area.
        if let Some(offset) = position.checked_sub(self.gone) {
            if let Some(target) = self.buffer.get_mut(offset..).and_then(<[u8]>::first_chunk_mut::<4>) {
                *target = bytes;
            }
        } else if let Some(spill) = &self.spill
            && position + 4 <= self.gone
        {
            let (area, _) = self.ring.spill_area(spill);
            // SAFETY: inside of what was written there; the range is ours until the call is over.
            unsafe { copy::bytes(area.add(position), bytes.as_ptr(), 4) };
        }
    }
}

impl Drop for Outgoing<'_> {
    fn drop(&mut self) {
        if let Some(spill) = self.spill.take() {
            self.ring.unspill(spill);
        }
    }
}
