//! Handing a call to the worker: a free slot, a place for the arguments, the queue.

use super::{CLAIMED, Call, Claim, HAS_SPILL, PUBLISHED, STATE_BITS, VmRing};
use crate::copy;
use crate::ring::atomic::{Ordering, fence};
use crate::ring::layout::{PLACE_SLOT, PLACE_SPILL, PLACE_TINY, TINY_REQUEST, cell, header};
use crate::ring::ranges::Range;
use crate::ring::{Caller, Error, Result};

/// A range of the argument area; ends with its call.
#[derive(Debug)]
#[must_use]
pub struct Spill {
    offset: u32,
    length: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    pub function: u32,
    pub arity: u16,
    pub caller: Caller,
}

/// Where the arguments are.
#[derive(Debug)]
pub enum Payload<'a> {
    /// Private bytes: up to [`TINY_REQUEST`](super::layout::TINY_REQUEST) travel with the request itself (fastest),
    /// more are copied into the slot, or else into the argument area.
    Bytes(&'a [u8]),
    /// So many bytes have been written at [`VmRing::area`].
    Slot(u32),
    /// So many bytes have been written at [`VmRing::spill_area`].
    Spill(Spill, u32),
}

/// Whether anybody watches the submission queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wake {
    /// The worker will see the call by itself: spin.
    Awake,
    /// Ring the worker's bell and park at once.
    Asleep,
}

impl VmRing {
    /// A free slot. `None`: all are taken, or the ring is closed.
    #[inline]
    pub fn claim(&self) -> Option<Claim> {
        // Relaxed: a call that is published just after the close is found dead by its first look.
        if self.closed.load(Ordering::Relaxed) {
            return None;
        }
        self.claim_free().or_else(|| {
            // Slots of callers that have gone away may have been answered meanwhile.
            (self.reclaim() > 0).then(|| self.claim_free()).flatten()
        })
    }

    #[inline]
    fn claim_free(&self) -> Option<Claim> {
        for (index, word) in self.free.iter().enumerate() {
            let mut bits = word.load(Ordering::Relaxed);
            while bits != 0 {
                // The lowest one: under light load it is always the same slot, whose lines are in the cache.
                let bit = bits.trailing_zeros();
                // Acquire: pairs with the Release in `set_free`: everything about the slot's last call is behind us.
                match word.compare_exchange_weak(bits, bits & (bits - 1), Ordering::Acquire, Ordering::Relaxed) {
                    Ok(_) => {
                        let slot = (index * 64) as u16 + bit as u16;
                        // Relaxed: the slot is ours alone, here and down to `publish`.
                        self.records[usize::from(slot)].state.store(CLAIMED, Ordering::Relaxed);
                        return Some(Claim { slot });
                    }
                    Err(found) => bits = found,
                }
            }
        }
        None
    }

    pub fn unclaim(&self, claim: Claim) {
        let record = &self.records[usize::from(claim.slot)];
        self.finish(record, claim.slot, 0);
    }

    /// Where the arguments may be written, and how many bytes. Shared memory: no reference may be made of it.
    pub fn area(&self, claim: &Claim) -> (*mut u8, usize) {
        let length = self.layout.plan.slot_bytes as usize;
        (self.memory.at(self.layout.payload(claim.slot), length), length)
    }

    /// A range of the argument area.
    pub fn spill(&self, bytes: usize) -> Result<Spill> {
        match self.spill.lock().take(bytes) {
            Ok(Range { offset, length }) => Ok(Spill { offset, length }),
            Err(available) => Err(Error::TooLarge {
                bytes: bytes as u64,
                available: u64::from(available),
            }),
        }
    }

    /// A longer range with the same contents in its first `used` bytes; on an error the old one comes back.
    pub fn grow(&self, spill: Spill, used: usize, bytes: usize) -> std::result::Result<Spill, (Spill, Error)> {
        let old = Range {
            offset: spill.offset,
            length: spill.length,
        };
        if let Some(Range { offset, length }) = self.spill.lock().extend(old, bytes) {
            return Ok(Spill { offset, length });
        }
        let new = match self.spill(bytes) {
            Ok(new) => new,
            Err(error) => return Err((spill, error)),
        };
        let used = used.min(old.length as usize);
        // SAFETY: both ranges lie in the argument area and are held by us, so they do not overlap.
        unsafe { copy::bytes(self.spill_area(&new).0, self.spill_area(&spill).0, used) };
        self.unspill(spill);
        Ok(new)
    }

    pub fn spill_area(&self, spill: &Spill) -> (*mut u8, usize) {
        let length = spill.length as usize;
        (
            self.memory.at(self.layout.arguments + spill.offset as usize, length),
            length,
        )
    }

    pub fn unspill(&self, spill: Spill) {
        self.spill.lock().give_back(Range {
            offset: spill.offset,
            length: spill.length,
        });
    }

    /// Hands the call to the worker. Fails only when the payload fits nowhere; the claim comes back then.
    #[inline]
    pub fn publish(
        &self,
        claim: Claim,
        request: Request,
        payload: Payload<'_>,
    ) -> std::result::Result<(Call, Wake), (Claim, Error)> {
        let call = self.publish_quietly(claim, request, payload)?;
        Ok((call, self.wake()))
    }

    /// As `publish`, without asking whether the worker is awake: for batches, which ask once with [`wake`](VmRing::wake).
    #[inline]
    pub fn publish_quietly(
        &self,
        claim: Claim,
        request: Request,
        payload: Payload<'_>,
    ) -> std::result::Result<Call, (Claim, Error)> {
        let mut tiny = [0; TINY_REQUEST];
        let (place, length) = match payload {
            Payload::Bytes(bytes) if bytes.len() <= TINY_REQUEST => {
                tiny[..bytes.len()].copy_from_slice(bytes);
                (PLACE_TINY, bytes.len() as u32)
            }
            other => match self.place(&claim, other) {
                Ok((place, offset, length)) => {
                    tiny[..8].copy_from_slice(&u64::from(offset).to_ne_bytes());
                    (place, length)
                }
                Err(error) => return Err((claim, error)),
            },
        };
        let record = &self.records[usize::from(claim.slot)];
        // AcqRel: whoever took this cell's last position a lap ago released a slot that was published again since, at or
        // before this position. Each publisher is behind its predecessors, so the executor's reads of the cell are behind us.
        let number = self.tail.fetch_add(1, Ordering::AcqRel);
        record.state.store(number << STATE_BITS | PUBLISHED, Ordering::Relaxed);
        let line = self.layout.submission(number);
        let word = |offset: usize| self.memory.word(line + offset);
        let what = u64::from(request.function) | u64::from(request.arity) << 32 | u64::from(claim.slot) << 48;
        let caller = u64::from(request.caller.index) | u64::from(request.caller.generation) << 32;
        // Relaxed: the Release below publishes all of the line.
        word(cell::WHAT).store(what, Ordering::Relaxed);
        word(cell::CALLER).store(caller, Ordering::Relaxed);
        word(cell::PAYLOAD).store(u64::from(length) | u64::from(place) << 32, Ordering::Relaxed);
        let words = if place == PLACE_TINY {
            (length as usize).div_ceil(8)
        } else {
            1
        };
        for (index, bytes) in tiny.as_chunks::<8>().0.iter().enumerate().take(words) {
            word(cell::TINY + index * 8).store(u64::from_ne_bytes(*bytes), Ordering::Relaxed);
        }
        // Release: pairs with the executor's Acquire load; with it the executor sees cell and payload.
        word(cell::READY).store(number + 1, Ordering::Release);
        Ok(Call {
            number,
            slot: claim.slot,
        })
    }

    /// Puts a payload that is not tiny; notes a range of the argument area in the slot's record.
    #[inline(never)]
    fn place(&self, claim: &Claim, payload: Payload<'_>) -> Result<(u16, u32, u32)> {
        let capacity = self.layout.plan.slot_bytes;
        match payload {
            Payload::Slot(length) if length <= capacity => Ok((PLACE_SLOT, 0, length)),
            Payload::Slot(length) => Err(Error::TooLarge {
                bytes: u64::from(length),
                available: u64::from(capacity),
            }),
            Payload::Bytes(bytes) if bytes.len() <= capacity as usize => {
                // SAFETY: the area is at least as long; private bytes do not lie in it.
                unsafe { copy::bytes(self.area(claim).0, bytes.as_ptr(), bytes.len()) };
                Ok((PLACE_SLOT, 0, bytes.len() as u32))
            }
            Payload::Bytes(bytes) => {
                let spill = self.spill(bytes.len())?;
                // SAFETY: as above.
                unsafe { copy::bytes(self.spill_area(&spill).0, bytes.as_ptr(), bytes.len()) };
                self.place(claim, Payload::Spill(spill, bytes.len() as u32))
            }
            Payload::Spill(spill, length) => {
                if length > spill.length {
                    let available = u64::from(spill.length);
                    self.unspill(spill);
                    return Err(Error::TooLarge {
                        bytes: u64::from(length),
                        available,
                    });
                }
                let record = &self.records[usize::from(claim.slot)];
                let range = u64::from(spill.offset) << 32 | u64::from(spill.length);
                // Relaxed: the slot is ours alone.
                record.spill.store(range, Ordering::Relaxed);
                record.flags.store(HAS_SPILL, Ordering::Relaxed);
                Ok((PLACE_SPILL, spill.offset, length))
            }
        }
    }

    /// Whether the worker must be woken for what has been published up to now. A full barrier.
    #[inline]
    pub fn wake(&self) -> Wake {
        // SeqCst: pairs with the fence in the worker's `sleep` (it raises the flag, then looks at the queue). One of both
        // sees the other.
        fence(Ordering::SeqCst);
        match self.memory.word(header::NEED_WAKEUP).load(Ordering::Relaxed) {
            0 => Wake::Awake,
            _ => Wake::Asleep,
        }
    }
}
