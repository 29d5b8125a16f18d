//! The worker's side of a ring.
//!
//! Each executor thread loops: [`next`](WorkerRing::next), execute, [`answer`](WorkerRing::answer). The VM is trusted here.

use super::bell::{Listener, Ringer};
use super::layout::Plan;
use super::{Caller, Error, Result, WorkerStatus};
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

/// The worker's side of its ring, shared by all threads.
#[derive(Debug)]
pub struct WorkerRing {}

/// A call to execute. Answer it.
#[derive(Debug)]
#[must_use = "a call that is dropped is never answered"]
pub struct Job {
    pub number: u64,
    pub slot: u16,
    pub function: u32,
    pub arity: u16,
    pub caller: Caller,
}

#[derive(Debug)]
pub enum Next {
    Job(Job),
    Deadline,
    /// The VM is gone, or [`WorkerRing::stop`] was called.
    Closed,
}

/// An answer being written: the first bytes stay private, more go into the slot, still more into the result area.
/// It owns the job's slot memory, so the arguments must have been read before the first append.
#[derive(Debug)]
pub struct Output<'a> {
    ring: &'a WorkerRing,
    job: Job,
}

/// An event did not fit: the VM has not taken the earlier ones yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EventQueueFull;

impl Job {
    /// The arguments as the VM has written them. Valid until the job is answered.
    pub fn arguments<'a>(&'a self, _ring: &'a WorkerRing) -> &'a [u8] {
        &[]
    }
}

impl WorkerRing {
    /// Checks and maps what the VM has handed over: seals, size, header. `into` and `out` are the doorbells.
    pub fn attach(_memory: BorrowedFd<'_>, _into: Listener, _out: Ringer) -> Result<Self> {
        Err(Error::BadMemory {
            field: "magic",
            found: 0,
        })
    }

    pub fn plan(&self) -> Plan {
        Plan::default()
    }

    /// The next call for an executor (0 to `executors - 1`, one thread each): looks for `spin`, then sleeps on the bell.
    pub fn next(&self, _executor: u16, _spin: Duration, _deadline: Option<Instant>) -> Result<Next> {
        Ok(Next::Closed)
    }

    /// Starts an answer that is not known as one slice of bytes.
    pub fn output(&self, job: Job) -> Output<'_> {
        Output { ring: self, job }
    }

    /// Answers with bytes that are at hand. `TooLarge` answers nothing and gives the job back.
    pub fn answer(
        &self,
        executor: u16,
        job: Job,
        status: u16,
        payload: &[u8],
    ) -> std::result::Result<(), (Job, Error)> {
        let mut output = self.output(job);
        match output.append(payload) {
            Ok(()) => {
                output.finish(executor, status);
                Ok(())
            }
            Err(error) => Err((output.cancel(), error)),
        }
    }

    /// A heartbeat with what the worker has to say. One thread at a time.
    pub fn beat(&self, _status: WorkerStatus) {}

    /// Appends an event and rings if the VM may not look by itself.
    pub fn event(&self, _kind: u32, _payload: &[u8]) -> std::result::Result<(), EventQueueFull> {
        Err(EventQueueFull)
    }

    /// Ends all `next`.
    pub fn stop(&self) {}
}

impl Output<'_> {
    /// Appends bytes; on an error nothing has been appended, and the output can be cleared and used for another answer.
    pub fn append(&mut self, _bytes: &[u8]) -> Result<()> {
        Ok(())
    }

    pub fn len(&self) -> usize {
        0
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Drops what was appended.
    pub fn clear(&mut self) {}

    /// Publishes the answer; wakes the caller if it sleeps.
    pub fn finish(self, _executor: u16, _status: u16) {
        let _ = self.ring;
    }

    /// Gives the job back, unanswered.
    pub fn cancel(self) -> Job {
        self.job
    }
}
