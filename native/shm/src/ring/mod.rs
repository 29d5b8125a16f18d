//! The ring: calls from the VM to one worker process and back, at the speed of a cache line.
//!
//! `RING.md` describes the memory byte by byte. Invariants:
//!
//! * The VM's side trusts nothing that a worker can write: free list, records of the slots, cursors and the allocator of
//!   the argument area are private; an answer is copied out once, the copy is checked, and the copy is used.
//! * A call's number is its position in the submission queue. It never repeats, so an answer, a wait word or a
//!   completion of an earlier call in the same slot can be told from this one's.
//! * A slot whose caller has gone away is given to nobody before the worker has answered it or is dead.
//! * A call has started when the queue's head has passed its number: executors take calls in order.

#![cfg_attr(
    loom,
    allow(dead_code, reason = "the models have no system calls and no payload areas")
)]

mod atomic;
pub mod bell;
mod error;
pub mod layout;
mod memory;
mod ranges;
pub mod vm;
pub mod worker;

pub use error::{Error, Fault, Result};
pub use layout::Plan;

/// Answer statuses that both sides agree on. The ring itself only carries the number.
pub mod status {
    pub const VALUE: u16 = 0;
    pub const RAISED: u16 = 1;
    pub const NOT_IMPLEMENTED: u16 = 2;
    pub const BAD_ARGUMENTS: u16 = 3;
    pub const TOO_LARGE: u16 = 4;
    pub const NOT_ENCODABLE: u16 = 5;
    /// A bit beside any of these, set by the ring itself: there are records in the event queue that the worker put before this
    /// answer. Whoever takes the answer takes those first.
    pub const QUEUED: u16 = 0x8000;
}

/// The caller of a call, as an entry of the VM's table of names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Caller {
    pub index: u32,
    pub generation: u32,
}

/// What the worker says of itself; numbers of an untrusted party.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct WorkerStatus {
    /// Counts up with each heartbeat; 0 before the first.
    pub beats: u64,
    /// CLOCK_MONOTONIC in nanoseconds at the last heartbeat.
    pub beat_at: u64,
    /// Resident memory in bytes, or 0.
    pub resident: u64,
    /// Objects (resources) that are alive in the worker.
    pub objects: u64,
    /// Free words for the worker's owner to define.
    pub extra: [u64; 4],
}

/// One executor as it shows itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ExecutorStatus {
    /// The number of the call that it works on.
    pub call: Option<u64>,
    /// Calls answered.
    pub calls: u64,
}

impl WorkerStatus {
    pub(crate) fn to_words(self) -> [u64; layout::state::COUNT] {
        let [a, b, c, d] = self.extra;
        [self.beats, self.beat_at, self.resident, self.objects, a, b, c, d]
    }

    pub(crate) fn from_words([beats, beat_at, resident, objects, a, b, c, d]: [u64; layout::state::COUNT]) -> Self {
        WorkerStatus {
            beats,
            beat_at,
            resident,
            objects,
            extra: [a, b, c, d],
        }
    }
}
