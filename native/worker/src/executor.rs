//! An executor: takes calls from the ring, has the host run them, writes the answers where the VM will read them.

use crate::answer::Answer;
use crate::host::{self, Outcome};
use crate::{exit, process};
use snakepit_shm_core::ring::status;
use snakepit_shm_core::ring::worker::{Job, Next, WorkerRing};
use snakepit_wire::{Name, NameKind};
use std::time::Duration;

/// Serves calls until the ring is stopped or the VM is gone. One thread for each `index`.
pub fn serve(ring: &WorkerRing, index: u16, spin: Duration) {
    let mut executor = Executor {
        host: host::Executor::new(),
        ring,
        index,
        slot_bytes: ring.plan().slot_bytes as usize,
        scratch: Vec::new(),
        buffer: Vec::new(),
    };
    loop {
        match ring.next(index, spin, None) {
            Ok(Next::Job(job)) => executor.run(job),
            Ok(Next::Deadline) => {}
            Ok(Next::Closed) => {
                // A worker whose VM is gone has no time for that.
                if ring.stopped() {
                    host::threads_unload();
                }
                return;
            }
            Err(error) => {
                process::complain(format_args!("executor {index} cannot take calls: {error}"));
                process::leave(exit::INTERNAL);
            }
        }
    }
}

struct Executor<'a> {
    host: host::Executor,
    ring: &'a WorkerRing,
    index: u16,
    slot_bytes: usize,
    /// Arguments that lay where the answer will be.
    scratch: Vec<u8>,
    buffer: Vec<u8>,
}

impl Executor<'_> {
    fn run(&mut self, job: Job) {
        let (function, arity) = (job.function, u32::from(job.arity));
        self.host.number(job.number);
        let caller = Name {
            kind: NameKind::Pid,
            index: job.caller.index,
            generation: job.caller.generation,
        };
        let bytes = job.arguments(self.ring);
        let arguments: *const [u8] = if bytes.len() <= self.slot_bytes {
            // The answer is written to where these lie.
            self.scratch.clear();
            self.scratch.extend_from_slice(bytes);
            self.scratch.as_slice()
        } else {
            bytes
        };
        let mut answer = Answer::new(self.ring, job, &mut self.buffer);
        let call = host::Call {
            function,
            arity,
            // SAFETY: either our own copy, which nobody touches before the call is over, or the argument half of the
            // spill area: the VM leaves it alone until the call is answered, and answers never go there.
            arguments: unsafe { &*arguments },
            caller,
        };
        match self.host.call(&call, &mut answer) {
            Outcome::Value => answer.finish(self.index, status::VALUE),
            Outcome::Raised => answer.finish(self.index, status::RAISED),
            Outcome::NotImplemented(symbol) => answer.refuse(self.index, status::NOT_IMPLEMENTED, symbol),
            Outcome::BadArguments(reason) => answer.refuse(self.index, status::BAD_ARGUMENTS, &reason),
            Outcome::TooLarge => answer.refuse(self.index, status::TOO_LARGE, ""),
            Outcome::NotEncodable(reason) => answer.refuse(self.index, status::NOT_ENCODABLE, &reason),
        }
        // After the answer: the VM does not wait for memory that is given back.
        self.host.clear();
    }
}
