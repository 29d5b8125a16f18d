//! Callers that sleep until their answer is there, and how they are found when the worker rings or is dead.

use super::release::RECLAIMED;
use super::{ABANDONED, COMMITTED, Call, PARKED, PUBLISHED, STATE, STATE_BITS, VmRing};
use crate::ring::Fault;
use crate::ring::atomic::{Ordering, fence};
use crate::ring::layout::slot;

/// Rings beyond those that parked calls and events account for: a ring and what it was for cross on their way.
const SPARE_RINGS: u64 = 64;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Park {
    /// [`VmRing::drain`] will report the slot.
    Parked,
    /// The answer is there; nothing will be reported. Poll.
    Answered,
}

/// A parked caller to wake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Woken {
    pub slot: u16,
    pub number: u64,
}

#[derive(Debug)]
pub(super) struct Completions {
    /// The next position to read. Private: what the worker says of it is not asked.
    pub(super) head: u64,
    pub(super) rings: u64,
}

impl VmRing {
    /// The caller goes to sleep. Whoever is to be woken must be on record (by slot) before this.
    pub fn park(&self, call: &Call) -> Park {
        let record = &self.records[usize::from(call.slot)];
        let parked = call.number << STATE_BITS | PARKED;
        // Relaxed: a credit must merely be there before the worker can use it; the worker sees the wait word later still.
        self.parks.fetch_add(1, Ordering::Relaxed);
        // Release: pairs with the Acquire in `report`: what the caller has put on record is visible there.
        record.state.store(parked, Ordering::Release);
        let wait = self.memory.word(self.layout.slot(call.slot) + slot::WAIT);
        wait.store(call.number + 1, Ordering::Relaxed);
        // SeqCst: pairs with the fence in the worker's `finish` (it answers, then looks at the wait word), and with the one
        // in `close`. One of both sees the other.
        fence(Ordering::SeqCst);
        if !self.answered(call.slot, call.number) && !self.closed.load(Ordering::Acquire) {
            return Park::Parked;
        }
        let published = call.number << STATE_BITS | PUBLISHED;
        // AcqRel: whoever loses this race is behind the winner.
        match record
            .state
            .compare_exchange(parked, published, Ordering::AcqRel, Ordering::Acquire)
        {
            Ok(_) => Park::Answered,
            // Reported already: the message is on its way.
            Err(_) => Park::Parked,
        }
    }

    /// After the worker has rung `rings` times (from [`Listener::silence`](super::bell::Listener::silence)): reports each
    /// parked call that is answered, once, and says how many. `report` must not call `drain` or `close`.
    pub fn drain(&self, rings: u64, mut report: impl FnMut(Woken)) -> std::result::Result<usize, Fault> {
        let mut queue = self.completions.lock();
        queue.rings = queue.rings.saturating_add(rings);
        let (mut reported, mut reclaimed) = (0, 0);
        for _ in 0..self.layout.completion_cells {
            // Acquire: pairs with the executor's Release: the answer is visible with the entry.
            let entry = self
                .memory
                .word(self.layout.completion(queue.head))
                .load(Ordering::Acquire);
            if entry >> 16 != (queue.head + 1) & (u64::MAX >> 16) {
                break;
            }
            queue.head += 1;
            let index = entry as usize & (self.records.len() - 1);
            reported += usize::from(self.report(index, &mut report, &mut reclaimed));
        }
        // An entry may still be being written, the queue may have gone around, the worker may lie: look for ourselves.
        if (reported as u64) < rings {
            // In this order: whatever was put into the queue before the entry that we go on with is answered by now.
            self.catch_up(&mut queue);
            for index in 0..self.records.len() {
                reported += usize::from(self.report(index, &mut report, &mut reclaimed));
            }
        }
        // Relaxed: the worker can have rung for a park only after it. Rings for records that are being taken are among the spare
        // ones.
        let allowed = self.parks.load(Ordering::Relaxed) + self.events_taken.load(Ordering::Relaxed) + SPARE_RINGS;
        if queue.rings > allowed {
            return Err(Fault::TooManyRings {
                rings: queue.rings,
                allowed,
            });
        }
        Ok(reported)
    }

    /// After the queue has gone around: goes on with the oldest entry that is there. A worker that lies about positions
    /// makes us scan, nothing else.
    fn catch_up(&self, queue: &mut Completions) {
        let position = self
            .memory
            .word(self.layout.completion(queue.head))
            .load(Ordering::Acquire)
            >> 16;
        if position > queue.head + 1 {
            queue.head = position;
        }
    }

    /// Reports a slot's caller if it is parked and answered; frees the slot if nobody waits for it, or leaves that to the next look.
    fn report(&self, index: usize, report: &mut impl FnMut(Woken), reclaimed: &mut usize) -> bool {
        let record = &self.records[index];
        // Acquire: pairs with the Release in `park`.
        let current = record.state.load(Ordering::Acquire);
        let number = current >> STATE_BITS;
        match current & STATE {
            PARKED => self.answered(index as u16, number) && self.commit(index, current, report),
            ABANDONED => {
                if *reclaimed < RECLAIMED {
                    *reclaimed += usize::from(self.reclaim_one(record, index as u16));
                }
                false
            }
            _ => false,
        }
    }

    fn commit(&self, index: usize, current: u64, report: &mut impl FnMut(Woken)) -> bool {
        let number = current >> STATE_BITS;
        // AcqRel: races with `cancel`, `abandon` and the recheck in `park`; one wins.
        let won = self.records[index]
            .state
            .compare_exchange(
                current,
                number << STATE_BITS | COMMITTED,
                Ordering::AcqRel,
                Ordering::Relaxed,
            )
            .is_ok();
        if won {
            report(Woken {
                slot: index as u16,
                number,
            });
        }
        won
    }

    /// The worker is dead: from here on `poll` answers `Dead` where there is no answer, parked calls are reported, `claim`
    /// gives nothing. Call it when the process is gone, not before: an answer may still come till then.
    pub fn close(&self, mut report: impl FnMut(Woken)) {
        // Release: pairs with the Acquire in `poll` and `park`.
        self.closed.store(true, Ordering::Release);
        // SeqCst: pairs with the fence in `park`: either it sees the flag, or we see its state.
        fence(Ordering::SeqCst);
        for (index, record) in self.records.iter().enumerate() {
            let current = record.state.load(Ordering::Acquire);
            if current & STATE == PARKED {
                self.commit(index, current, &mut report);
            }
        }
    }
}
