//! Where everything lies in the memory of a ring. `RING.md` is the same in words.

use super::error::{Error, Result};

pub const MAGIC: u64 = u64::from_le_bytes(*b"SNPKRING");
pub const VERSION: u64 = 2;
/// Bytes of a payload that fit into a submission cell, and into an answer line.
pub const TINY_REQUEST: usize = 32;
pub const TINY_ANSWER: usize = 48;

pub(crate) const LINE: usize = 64;
const PAGE: usize = 4096;

/// The sizes of a ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// Calls in flight; a power of two, 1 to 1024.
    pub slots: u32,
    /// Payload of a slot, shared by arguments and answer; a multiple of 64, up to 1 MiB.
    pub slot_bytes: u32,
    /// Payloads beyond a slot, one area this large each way; a multiple of 4096, up to 2 GiB. The memory is sparse.
    pub spill_bytes: u32,
    /// Threads of the worker that execute calls, 1 to 64.
    pub executors: u32,
    /// Bytes of the event queue; a power of two, 4096 to 16 MiB.
    pub event_bytes: u32,
}

impl Default for Plan {
    fn default() -> Self {
        Plan {
            slots: 64,
            slot_bytes: 16 << 10,
            spill_bytes: 32 << 20,
            executors: 1,
            event_bytes: 64 << 10,
        }
    }
}

/// Offsets, computed from a plan that has been checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    pub plan: Plan,
    pub(crate) status: usize,
    pub(crate) executors: usize,
    pub(crate) submissions: usize,
    pub(crate) slots: usize,
    pub(crate) completions: usize,
    pub(crate) completion_cells: usize,
    pub(crate) events: usize,
    pub(crate) payloads: usize,
    pub(crate) arguments: usize,
    pub(crate) results: usize,
    pub(crate) total: usize,
}

/// Words of the header page.
pub(crate) mod header {
    pub const MAGIC: usize = 0;
    pub const VERSION: usize = 8;
    pub const SLOTS: usize = 16;
    pub const SLOT_BYTES: usize = 24;
    pub const SPILL_BYTES: usize = 32;
    pub const EXECUTORS: usize = 40;
    pub const EVENT_BYTES: usize = 48;
    pub const TOTAL: usize = 56;
    /// Own line, worker: calls below this position have been taken by an executor.
    pub const HEAD: usize = 128;
    /// Own line, worker: not 0 when nobody watches the submission queue.
    pub const NEED_WAKEUP: usize = 256;
    /// Own line, worker: bytes ever written to the event queue.
    pub const EVENT_TAIL: usize = 384;
    /// Own line, VM: bytes of the event queue that it has taken.
    pub const EVENT_HEAD: usize = 512;
    /// Own line, VM: nanoseconds from the kernel's monotonic clock to the VM's monotonic time.
    pub const CLOCK: usize = 640;
    /// On the same line, VM: nanoseconds from there to the VM's system time.
    pub const CLOCK_OFFSET: usize = 648;
    pub const END: usize = 768;
}

/// Words of a submission cell (one line, written by the VM).
pub(crate) mod cell {
    pub const BYTES: usize = 64;
    /// Position + 1 once the cell is complete.
    pub const READY: usize = 0;
    /// function u32, arity u16, slot u16
    pub const WHAT: usize = 8;
    /// caller index u32, generation u32
    pub const CALLER: usize = 16;
    /// length u32, place u16
    pub const PAYLOAD: usize = 24;
    /// 32 bytes of payload, or the offset in the argument area
    pub const TINY: usize = 32;
}

/// Words of a slot (two lines: the worker's, the VM's).
pub(crate) mod slot {
    pub const BYTES: usize = 128;
    /// Call number + 1 once the answer is complete.
    pub const ANSWERED: usize = 0;
    /// length u32, status u16, place u16
    pub const PAYLOAD: usize = 8;
    /// 48 bytes of payload, or the offset in the result area
    pub const TINY: usize = 16;
    /// VM: call number + 1 of the call whose caller sleeps.
    pub const WAIT: usize = 64;
    /// VM: call number + 1 of the last call whose answer in the result area is no longer needed.
    pub const RELEASED: usize = 72;
}

/// Words of an executor (one line, written by it).
pub(crate) mod executor {
    pub const BYTES: usize = 64;
    /// Call number + 1 while it works on one.
    pub const CALL: usize = 0;
    pub const CALLS: usize = 8;
}

/// Words of the status block: a sequence, then what it guards.
pub(crate) mod state {
    pub const SEQUENCE: usize = 0;
    pub const WORDS: usize = 8;
    pub const COUNT: usize = 8;
    /// Beside what the sequence guards: when the worker had no memory to give.
    pub const LACKED: usize = 72;
    pub const BYTES: usize = 128;
}

pub(crate) const PLACE_TINY: u16 = 0;
pub(crate) const PLACE_SLOT: u16 = 1;
pub(crate) const PLACE_SPILL: u16 = 2;

impl Plan {
    pub fn layout(self) -> Result<Layout> {
        let bad = |field, value: u32, expected| Error::BadPlan {
            field,
            value: u64::from(value),
            expected,
        };
        if !self.slots.is_power_of_two() || self.slots > 1024 {
            return Err(bad("slots", self.slots, "a power of two from 1 to 1024"));
        }
        if self.slot_bytes == 0 || !self.slot_bytes.is_multiple_of(64) || self.slot_bytes > 1 << 20 {
            return Err(bad(
                "slot_bytes",
                self.slot_bytes,
                "a multiple of 64 from 64 to 1048576",
            ));
        }
        if !self.spill_bytes.is_multiple_of(PAGE as u32) || self.spill_bytes > 2 << 30 {
            return Err(bad(
                "spill_bytes",
                self.spill_bytes,
                "a multiple of 4096 up to 2147483648",
            ));
        }
        if !(1..=64).contains(&self.executors) {
            return Err(bad("executors", self.executors, "from 1 to 64"));
        }
        if !self.event_bytes.is_power_of_two() || !(64..=16 << 20).contains(&self.event_bytes) {
            return Err(bad(
                "event_bytes",
                self.event_bytes,
                "a power of two from 64 to 16777216",
            ));
        }
        Ok(self.lay_out())
    }

    /// The order: words first, then bytes, each area at a line, the bytes at a page.
    fn lay_out(self) -> Layout {
        let slots = self.slots as usize;
        let status = header::END;
        let executors = status + state::BYTES;
        let submissions = (executors + self.executors as usize * executor::BYTES).next_multiple_of(2 * LINE);
        let slot_table = submissions + slots * cell::BYTES.max(LINE);
        let slot_table = slot_table.next_multiple_of(2 * LINE);
        let completions = slot_table + slots * slot::BYTES;
        let completion_cells = 2 * slots;
        let events = (completions + completion_cells * 8).next_multiple_of(2 * LINE);
        let payloads = (events + self.event_bytes as usize).next_multiple_of(PAGE);
        let arguments = (payloads + slots * self.slot_bytes as usize).next_multiple_of(PAGE);
        let results = arguments + self.spill_bytes as usize;
        Layout {
            plan: self,
            status,
            executors,
            submissions,
            slots: slot_table,
            completions,
            completion_cells,
            events,
            payloads,
            arguments,
            results,
            total: results + self.spill_bytes as usize,
        }
    }
}

impl Layout {
    /// The words of the header page, with their offsets.
    pub(crate) fn header(&self) -> [(usize, u64); 8] {
        let plan = self.plan;
        [
            (header::MAGIC, MAGIC),
            (header::VERSION, VERSION),
            (header::SLOTS, u64::from(plan.slots)),
            (header::SLOT_BYTES, u64::from(plan.slot_bytes)),
            (header::SPILL_BYTES, u64::from(plan.spill_bytes)),
            (header::EXECUTORS, u64::from(plan.executors)),
            (header::EVENT_BYTES, u64::from(plan.event_bytes)),
            (header::TOTAL, self.total as u64),
        ]
    }

    /// Bytes of the memory object.
    pub fn total(&self) -> usize {
        self.total
    }

    pub(crate) fn slot(&self, index: u16) -> usize {
        self.slots + usize::from(index) * slot::BYTES
    }

    pub(crate) fn payload(&self, index: u16) -> usize {
        self.payloads + usize::from(index) * self.plan.slot_bytes as usize
    }

    pub(crate) fn submission(&self, position: u64) -> usize {
        self.submissions + (position as usize & (self.plan.slots as usize - 1)) * cell::BYTES
    }

    pub(crate) fn completion(&self, position: u64) -> usize {
        self.completions + (position as usize & (self.completion_cells - 1)) * 8
    }

    pub(crate) fn executor(&self, index: u16) -> usize {
        self.executors + usize::from(index) * executor::BYTES
    }
}
