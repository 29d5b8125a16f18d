//! The VM's side of a ring. Everything that a worker can write is hostile here.
//!
//! A call's life: [`claim`](VmRing::claim) a slot, put the arguments, [`publish`](VmRing::publish),
//! [`spin`](VmRing::spin) or [`poll`](VmRing::poll); if that takes too long [`park`](VmRing::park), sleep until
//! [`drain`](VmRing::drain) reports the slot; copy the answer out; [`release`](VmRing::release). A caller that gives up
//! [`cancel`](VmRing::cancel)s (it races with `drain`: exactly one of both wins), one that has died is
//! [`abandon`](VmRing::abandon)ed. All methods take `&self` and may be called from any thread; a [`Call`] belongs to one
//! caller and is neither cloned nor used by two threads at once.

use super::layout::{Plan, TINY_ANSWER};
use super::{Caller, Error, ExecutorStatus, Fault, Result, WorkerStatus};
use crate::mapping::Permit;
use std::os::fd::BorrowedFd;
use std::time::Duration;

/// The VM's side of one worker's ring.
#[derive(Debug)]
pub struct VmRing {}

/// A slot that is ours and not published yet. Give it to [`VmRing::publish`] or [`VmRing::unclaim`].
#[derive(Debug)]
#[must_use = "a slot that is dropped is lost"]
pub struct Claim {
    slot: u16,
}

/// A call that the worker has, or has answered. Ends with `release`, `cancel` or `abandon`.
#[derive(Debug)]
#[must_use = "a slot that is dropped is lost"]
pub struct Call {
    number: u64,
    slot: u16,
}

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

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Park {
    /// [`VmRing::drain`] will report the slot.
    Parked,
    /// The answer is there; nothing will be reported. Poll.
    Answered,
}

#[derive(Debug)]
pub enum Cancel {
    /// The caller is out; nothing will be reported. The slot comes back when the worker answers or is dead.
    Cancelled { started: bool },
    /// Too late: the call is answered (and, if it was parked, reported or about to be). Poll, then release.
    Committed(Call),
}

/// A parked caller to wake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Woken {
    pub slot: u16,
    pub number: u64,
}

impl Claim {
    pub fn slot(&self) -> u16 {
        self.slot
    }
}

impl Call {
    pub fn slot(&self) -> u16 {
        self.slot
    }

    /// The position in the submission queue; never repeats within a ring.
    pub fn number(&self) -> u64 {
        self.number
    }
}

impl VmRing {
    /// Makes the memory (sealed from birth), maps it, writes the header. `reserve`: descriptors to leave free below the limit.
    pub fn create(label: &str, plan: Plan, permit: Permit, reserve: u64) -> Result<Self> {
        let _ = (label, plan.layout()?, permit, reserve);
        Err(Error::os("memfd_create", nix::errno::Errno::ENOSYS))
    }

    pub fn plan(&self) -> Plan {
        Plan::default()
    }

    /// The memory, to be handed to the worker. `None` after [`forget_fd`](VmRing::forget_fd).
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// Closes our descriptor once the worker has its own; the mapping stays.
    pub fn forget_fd(&self) {}

    /// A free slot, the most recently used first. `None`: all are taken.
    pub fn claim(&self) -> Option<Claim> {
        None
    }

    pub fn unclaim(&self, _claim: Claim) {}

    /// Where the arguments may be written, and how many bytes.
    pub fn area(&self, _claim: &Claim) -> (*mut u8, usize) {
        (std::ptr::null_mut(), 0)
    }

    /// A range of the argument area.
    pub fn spill(&self, bytes: usize) -> Result<Spill> {
        Err(Error::TooLarge {
            bytes: bytes as u64,
            available: 0,
        })
    }

    pub fn spill_area(&self, _spill: &Spill) -> (*mut u8, usize) {
        (std::ptr::null_mut(), 0)
    }

    pub fn unspill(&self, _spill: Spill) {}

    /// Hands the call to the worker. Fails only when `Payload::Bytes` fits nowhere; the claim comes back then.
    pub fn publish(
        &self,
        claim: Claim,
        _request: Request,
        _payload: Payload<'_>,
    ) -> std::result::Result<(Call, Wake), (Claim, Error)> {
        Err((claim, Error::TooLarge { bytes: 0, available: 0 }))
    }

    /// As `publish`, without asking whether the worker is awake: for batches, which ask once with [`wake`](VmRing::wake).
    pub fn publish_quietly(
        &self,
        claim: Claim,
        _request: Request,
        _payload: Payload<'_>,
    ) -> std::result::Result<Call, (Claim, Error)> {
        Err((claim, Error::TooLarge { bytes: 0, available: 0 }))
    }

    /// Whether the worker must be woken for what has been published up to now. A full barrier.
    pub fn wake(&self) -> Wake {
        Wake::Asleep
    }

    /// One look.
    pub fn poll(&self, _call: &Call) -> Result<Poll> {
        Ok(Poll::Waiting)
    }

    /// Looks until there is something other than `Waiting`, at most this long.
    pub fn spin(&self, call: &Call, _atmost: Duration) -> Result<Poll> {
        self.poll(call)
    }

    /// Whether an executor has taken the call (the worker's word).
    pub fn started(&self, _call: &Call) -> bool {
        false
    }

    /// The payload of an answer.
    pub fn source<'a>(&'a self, _call: &Call, answer: &'a Answer) -> Source<'a> {
        Source { ring: self, answer }
    }

    /// The caller goes to sleep. Whoever is to be woken must be on record (by slot) before this.
    pub fn park(&self, _call: &Call) -> Park {
        Park::Parked
    }

    /// The caller does not want the answer any more.
    pub fn cancel(&self, _call: Call) -> Cancel {
        Cancel::Cancelled { started: false }
    }

    /// The caller is gone: nobody will be told. The slot comes back when the worker answers or is dead.
    pub fn abandon(&self, _call: Call) {}

    /// The caller has its answer.
    pub fn release(&self, _call: Call) {}

    /// After the worker has rung `rings` times (from [`Listener::silence`](super::bell::Listener::silence)): reports each
    /// parked call that is answered, once.
    pub fn drain(&self, _rings: u64, _report: impl FnMut(Woken)) -> std::result::Result<usize, Fault> {
        Ok(0)
    }

    /// Takes at most `most` records out of the event queue; `report` gets kind and a private copy.
    pub fn events(&self, _most: usize, _report: impl FnMut(u32, &[u8])) -> std::result::Result<usize, Fault> {
        Ok(0)
    }

    /// The worker is dead: from here on `poll` answers `Dead` where there is no answer, parked calls are reported, `claim`
    /// gives nothing. Again: nothing happens.
    pub fn close(&self, _report: impl FnMut(Woken)) {}

    pub fn closed(&self) -> bool {
        false
    }

    /// Slots that are not free.
    pub fn in_flight(&self) -> usize {
        0
    }

    /// What the worker says of itself; `None` when it was being written at every try.
    pub fn status(&self) -> Option<WorkerStatus> {
        None
    }

    pub fn executor(&self, _index: u16) -> ExecutorStatus {
        ExecutorStatus::default()
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
    pub unsafe fn take(&self, offset: usize, _target: *mut u8, length: usize) -> bool {
        let _ = (self.ring, &self.answer.place);
        match self.answer.place {
            Place::Tiny(_) => offset + length <= self.len(),
            Place::Shared { offset: start } => start + offset + length <= self.len(),
        }
    }

    /// Replaces the contents of `target` by the whole payload.
    pub fn read(&self, target: &mut Vec<u8>) {
        target.clear();
    }
}
