//! Looking for an answer, and reading it: copied out once, the copy checked, and the copy used.

use super::{ANSWER_SPILLED, Call, VmRing, Wake};
use crate::copy;
use crate::ring::atomic::{Ordering, give_way, relax};
use crate::ring::layout::{PLACE_SLOT, PLACE_SPILL, PLACE_TINY, TINY_ANSWER, header, slot};
use crate::ring::{Fault, Result};
use std::time::{Duration, Instant};

/// Looks between two looks at the clock.
const LOOKS: u32 = 32;
/// What the kernel is given to let a woken worker run. Measured: 21 us at the median after 5 ms of sleep, 60 us at the 99th
/// percentile (`RING.md`). More than that is another process's time slice.
const START: Duration = Duration::from_micros(60);

/// One look at a call.
#[derive(Debug)]
pub enum Poll {
    Waiting,
    Answered(Answer),
    /// The ring is closed (the worker is dead) and there is no answer. `started`: an executor had taken the call.
    Dead {
        started: bool,
    },
}

/// An answer, copied out and checked; its payload is not (it may still change under a hostile worker).
#[derive(Debug, Clone, Copy)]
pub struct Answer {
    pub status: u16,
    pub length: u32,
    place: Place,
}

#[derive(Debug, Clone, Copy)]
enum Place {
    Tiny([u8; TINY_ANSWER]),
    Shared { offset: usize },
}

/// The bytes of an answer. Those in shared memory are copied out by [`take`](Source::take), never referred to.
#[derive(Debug)]
pub struct Source<'a> {
    ring: &'a VmRing,
    answer: &'a Answer,
}

impl VmRing {
    /// One look. A `Fault` leaves the call as it was: `abandon` it.
    #[inline]
    pub fn poll(&self, call: &Call) -> Result<Poll> {
        if self.answered(call.slot, call.number) {
            return Ok(Poll::Answered(self.read_answer(call)?));
        }
        // Acquire: pairs with the Release in `close`, which comes after the worker's death: its last stores are visible.
        if !self.closed.load(Ordering::Acquire) {
            return Ok(Poll::Waiting);
        }
        if self.answered(call.slot, call.number) {
            return Ok(Poll::Answered(self.read_answer(call)?));
        }
        Ok(Poll::Dead {
            started: self.started(call),
        })
    }

    /// As `poll`, for a call that was reported or found answered before: it is a fault when the answer has gone.
    pub fn collect(&self, call: &Call) -> Result<Poll> {
        match self.poll(call)? {
            Poll::Waiting => Err(Fault::Withdrawn { call: call.number }.into()),
            done => Ok(done),
        }
    }

    /// Looks until there is something other than `Waiting`, at most about this long.
    #[inline]
    pub fn spin(&self, call: &Call, atmost: Duration) -> Result<Poll> {
        let mut began = None;
        loop {
            for _ in 0..LOOKS {
                match self.poll(call)? {
                    Poll::Waiting => relax(),
                    done => return Ok(done),
                }
            }
            // The clock is not read before the first looks have failed: that is most of what a call may cost.
            let now = Instant::now();
            if now.duration_since(*began.get_or_insert(now)) >= atmost {
                return Ok(Poll::Waiting);
            }
        }
    }

    /// As `spin`; if the worker has just been woken (`Asleep`), it is given [`START`] first to take the call.
    pub fn attend(&self, call: &Call, wake: Wake, atmost: Duration) -> Result<Poll> {
        if wake == Wake::Asleep && !atmost.is_zero() {
            // It may have been put on this very CPU. Once: each time costs a time slice where others wait too.
            give_way();
            let began = Instant::now();
            while !self.started(call) && began.elapsed() < START {
                relax();
            }
        }
        self.spin(call, atmost)
    }

    /// Whether an executor has taken the call (the worker's word).
    pub fn started(&self, call: &Call) -> bool {
        // Acquire: pairs with the executor's Release. Of a dead worker it is final.
        let head = self.memory.word(header::HEAD).load(Ordering::Acquire);
        head > call.number
    }

    #[inline(always)]
    pub(super) fn answered(&self, index: u16, number: u64) -> bool {
        // Acquire: pairs with the executor's Release: with the number the whole answer is visible.
        let word = self.memory.word(self.layout.slot(index) + slot::ANSWERED);
        word.load(Ordering::Acquire) == number + 1
    }

    /// Copies the answer line out, each word once, and checks the copy.
    #[inline]
    pub(super) fn read_answer(&self, call: &Call) -> std::result::Result<Answer, Fault> {
        let line = self.layout.slot(call.slot);
        // Relaxed: `answered` has acquired them; a hostile worker may tear them, which the checks bear.
        let word = |offset: usize| self.memory.word(line + offset).load(Ordering::Relaxed);
        let payload = word(slot::PAYLOAD);
        let (length, status, place) = (payload as u32, (payload >> 32) as u16, (payload >> 48) as u16);
        let place = match place {
            PLACE_TINY => {
                if length as usize > TINY_ANSWER {
                    return Err(Fault::Length {
                        length: u64::from(length),
                        capacity: TINY_ANSWER as u64,
                    });
                }
                let mut tiny = [0; TINY_ANSWER];
                let words = (length as usize).div_ceil(8);
                for (index, bytes) in tiny.as_chunks_mut::<8>().0.iter_mut().enumerate().take(words) {
                    *bytes = word(slot::TINY + index * 8).to_ne_bytes();
                }
                Place::Tiny(tiny)
            }
            other => self.shared_place(call, other, length, word(slot::TINY))?,
        };
        Ok(Answer { status, length, place })
    }

    #[inline(never)]
    fn shared_place(&self, call: &Call, place: u16, length: u32, offset: u64) -> std::result::Result<Place, Fault> {
        let plan = self.layout.plan;
        match place {
            PLACE_SLOT if length <= plan.slot_bytes => Ok(Place::Shared {
                offset: self.layout.payload(call.slot),
            }),
            PLACE_SLOT => Err(Fault::Length {
                length: u64::from(length),
                capacity: u64::from(plan.slot_bytes),
            }),
            PLACE_SPILL => {
                let spill = u64::from(plan.spill_bytes);
                if offset > spill || u64::from(length) > spill - offset {
                    return Err(Fault::Spill {
                        offset,
                        length: u64::from(length),
                    });
                }
                // Relaxed: read by whoever releases the call, which is its owner.
                self.records[usize::from(call.slot)]
                    .flags
                    .fetch_or(ANSWER_SPILLED, Ordering::Relaxed);
                Ok(Place::Shared {
                    offset: self.layout.results + offset as usize,
                })
            }
            place => Err(Fault::Place { place }),
        }
    }

    /// The payload of an answer.
    pub fn source<'a>(&'a self, _call: &Call, answer: &'a Answer) -> Source<'a> {
        Source { ring: self, answer }
    }
}

impl Source<'_> {
    pub fn len(&self) -> usize {
        self.answer.length as usize
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The payload, if it is private already (a tiny one).
    #[inline]
    pub fn private(&self) -> Option<&[u8]> {
        match &self.answer.place {
            Place::Tiny(bytes) => bytes.get(..self.len()),
            Place::Shared { .. } => None,
        }
    }

    /// Copies `length` bytes at `offset` out; false (and nothing done) when the range is outside.
    ///
    /// # Safety
    /// `target` is private memory of at least `length` bytes.
    pub unsafe fn take(&self, offset: usize, target: *mut u8, length: usize) -> bool {
        if offset.checked_add(length).is_none_or(|end| end > self.len()) {
            return false;
        }
        let source = match &self.answer.place {
            Place::Tiny(bytes) => bytes.as_ptr().wrapping_add(offset),
            Place::Shared { offset: start } => self.ring.memory.at(start + offset, length).cast_const(),
        };
        // SAFETY: checked just above and in `read_answer`; the mapping cannot shrink; the caller vouches for the target.
        unsafe { copy::bytes(target, source, length) };
        true
    }

    /// Replaces the contents of `target` by the whole payload.
    pub fn read(&self, target: &mut Vec<u8>) {
        target.clear();
        target.reserve(self.len());
        // SAFETY: reserved just above; `take` writes all of it, or nothing when it says false.
        unsafe {
            if self.take(0, target.as_mut_ptr(), self.len()) {
                target.set_len(self.len());
            }
        }
    }
}
