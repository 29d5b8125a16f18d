//! The end of a call: its caller has the answer, does not want it any more, or is gone. What the slot held comes back.

use super::{
    ABANDONED, ANSWER_SPILLED, CLAIMED, Call, FREE, HAS_SPILL, PARKED, PUBLISHED, Record, STATE, STATE_BITS, Unheard,
    VmRing,
};
use crate::ring::atomic::Ordering;
use crate::ring::layout::slot;
use crate::ring::ranges::Range;

#[derive(Debug)]
pub enum Cancel {
    /// The caller is out; nothing will be reported. The slot comes back when the worker answers or is dead.
    Cancelled { started: bool },
    /// Too late: the call is answered (and, if it was parked, reported or about to be). Poll, then release.
    Committed(Call),
}

/// Slots that come back at a time, if their callers are gone: their answers are looked through (`unheard`), by somebody who has not got all
/// day.
pub(super) const RECLAIMED: usize = 16;

impl VmRing {
    /// The caller does not want the answer any more.
    pub fn cancel(&self, call: Call) -> Cancel {
        let record = &self.records[usize::from(call.slot)];
        // Relaxed: only `drain` and `close` change it beside us, once; a stale value fails the compare-and-swap.
        if record.state.load(Ordering::Relaxed) & STATE == PUBLISHED && self.answered(call.slot, call.number) {
            return Cancel::Committed(call);
        }
        if self.leave(record, call.number) {
            Cancel::Cancelled {
                started: self.started(&call),
            }
        } else {
            Cancel::Committed(call)
        }
    }

    /// The caller is gone: nobody will be told. The slot comes back when the worker answers or is dead.
    pub fn abandon(&self, call: Call) {
        let record = &self.records[usize::from(call.slot)];
        if !self.leave(record, call.number) {
            self.nobody_hears(&call);
            return self.release(call);
        }
        self.reclaim_one(record, call.slot);
    }

    /// Whether this very call was given up, and the worker may still be at it.
    pub fn is_abandoned(&self, slot: u16, number: u64) -> bool {
        let record = self.records.get(usize::from(slot));
        // Acquire: whoever gave the slot back had seen the answer.
        record.is_some_and(|record| record.state.load(Ordering::Acquire) == number << STATE_BITS | ABANDONED)
    }

    /// `PUBLISHED` or `PARKED` becomes `ABANDONED`; false: the call is committed.
    fn leave(&self, record: &Record, number: u64) -> bool {
        let abandoned = number << STATE_BITS | ABANDONED;
        // Counted first: whoever finds the state takes one off. Relaxed: a wrong count costs or saves one look.
        self.abandoned.fetch_add(1, Ordering::Relaxed);
        // Relaxed: ours, but for the two transitions out of `PARKED`, which make the compare-and-swap fail.
        let mut current = record.state.load(Ordering::Relaxed);
        while matches!(current & STATE, PUBLISHED | PARKED) {
            // AcqRel: whoever loses this race is behind the winner; Release also hands the record to `reclaim`.
            match record
                .state
                .compare_exchange(current, abandoned, Ordering::AcqRel, Ordering::Acquire)
            {
                Ok(_) => return true,
                Err(found) => current = found,
            }
        }
        self.abandoned.fetch_sub(1, Ordering::Relaxed);
        false
    }

    /// An answer that nobody takes, if it is one. Of a dead worker it does not matter any more.
    fn nobody_hears(&self, call: &Call) {
        let Unheard(Some(hears)) = &self.unheard else { return };
        if !self.closed.load(Ordering::Relaxed)
            && self.answered(call.slot, call.number)
            && let Ok(answer) = self.read_answer(call)
        {
            hears(&answer, &self.source(call, &answer));
        }
    }

    /// The caller has its answer.
    #[inline]
    pub fn release(&self, call: Call) {
        self.finish(&self.records[usize::from(call.slot)], call.slot, call.number);
    }

    #[inline]
    pub(super) fn finish(&self, record: &Record, index: u16, number: u64) {
        // Relaxed: the flags are the owner's; the Release in `set_free` hands everything on.
        let flags = record.flags.load(Ordering::Relaxed);
        if flags != 0 {
            self.give_back(record, index, number, flags);
        }
        record.state.store(FREE, Ordering::Relaxed);
        self.set_free(index);
    }

    #[inline]
    fn set_free(&self, index: u16) {
        // Release: pairs with the Acquire in `claim_free`.
        self.free[usize::from(index) / 64].fetch_or(1 << (index % 64), Ordering::Release);
    }

    #[inline(never)]
    fn give_back(&self, record: &Record, index: u16, number: u64, flags: u64) {
        record.flags.store(0, Ordering::Relaxed);
        if flags & ANSWER_SPILLED != 0 {
            // Release: pairs with the worker's Acquire: our reads of the range are behind whoever writes it next.
            let released = self.memory.word(self.layout.slot(index) + slot::RELEASED);
            released.store(number + 1, Ordering::Release);
        }
        if flags & HAS_SPILL != 0 {
            let range = record.spill.load(Ordering::Relaxed);
            self.spill.lock().give_back(Range {
                offset: (range >> 32) as u32,
                length: range as u32,
            });
        }
    }

    /// Frees slots whose callers are gone and which are answered, [`RECLAIMED`] of them; says how many.
    pub(super) fn reclaim(&self) -> usize {
        if self.abandoned.load(Ordering::Relaxed) == 0 {
            return 0;
        }
        let slots = self.records.iter().enumerate();
        slots
            .filter(|(index, record)| self.reclaim_one(record, *index as u16))
            .take(RECLAIMED)
            .count()
    }

    pub(super) fn reclaim_one(&self, record: &Record, index: u16) -> bool {
        // Acquire: pairs with the Release in `leave`.
        let current = record.state.load(Ordering::Acquire);
        let number = current >> STATE_BITS;
        if current & STATE != ABANDONED || !self.answered(index, number) {
            return false;
        }
        // AcqRel: one of several that found it frees it.
        let won = record
            .state
            .compare_exchange(current, CLAIMED, Ordering::AcqRel, Ordering::Relaxed)
            .is_ok();
        if won {
            self.abandoned.fetch_sub(1, Ordering::Relaxed);
            self.nobody_hears(&Call { slot: index, number });
            // Where its answer lies nobody may have looked: say that it is not needed, wherever it is.
            record.flags.fetch_or(ANSWER_SPILLED, Ordering::Relaxed);
            self.finish(record, index, number);
        }
        won
    }
}
