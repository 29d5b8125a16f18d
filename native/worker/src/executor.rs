//! An executor: takes calls from the ring, has the host run them, writes the answers where the VM will read them.

use crate::host::{self, Outcome};
use crate::{exit, process};
use snakepit_shm_core::ring::status;
use snakepit_shm_core::ring::worker::{Job, Next, Output, WorkerRing};
use snakepit_wire::{Name, NameKind, VecSink};
use std::time::Duration;

/// Copies of arguments above this size are not kept.
const SCRATCH: usize = 64 << 10;

/// Serves calls until the ring is stopped or the VM is gone. One thread for each `index`.
pub fn serve(ring: &WorkerRing, index: u16, spin: Duration) {
    let mut executor = Executor {
        host: host::Executor::new(),
        ring,
        index,
        slot_bytes: ring.plan().slot_bytes as usize,
        most: (ring.plan().spill_bytes as usize).max(ring.plan().slot_bytes as usize),
        scratch: Vec::new(),
        answer: Vec::new(),
    };
    loop {
        match ring.next(index, spin, None) {
            Ok(Next::Job(job)) => executor.run(job),
            Ok(Next::Deadline) => {}
            Ok(Next::Closed) => return,
            Err(error) => {
                eprintln!("snakepit_worker: executor {index} cannot take calls: {error}");
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
    /// The most that an answer can be.
    most: usize,
    scratch: Vec<u8>,
    answer: Vec<u8>,
}

impl Executor<'_> {
    fn run(&mut self, job: Job) {
        let (function, arity) = (job.function, u32::from(job.arity));
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
        self.answer.clear();
        let outcome = {
            let call = host::Call {
                function,
                arity,
                // SAFETY: either our own copy, which nobody touches before the call is over, or the argument half of
                // the spill area: the VM leaves it alone until the call is answered, and answers never go there.
                arguments: unsafe { &*arguments },
                caller,
            };
            self.host.call(&call, &mut VecSink::new(&mut self.answer, self.most))
        };
        self.finish(self.ring.output(job), outcome);
        for kept in [&mut self.scratch, &mut self.answer] {
            if kept.capacity() > SCRATCH {
                *kept = Vec::new();
            }
        }
    }

    fn finish(&self, mut output: Output<'_>, outcome: Outcome) {
        let (status, text) = match outcome {
            Outcome::Value if output.append(&self.answer).is_ok() => return output.finish(self.index, status::VALUE),
            Outcome::Raised if output.append(&self.answer).is_ok() => {
                return output.finish(self.index, status::RAISED);
            }
            Outcome::Value | Outcome::Raised => (status::TOO_LARGE, String::new()),
            Outcome::NotImplemented(symbol) => (status::NOT_IMPLEMENTED, symbol.to_owned()),
            Outcome::BadArguments(reason) => (status::BAD_ARGUMENTS, reason),
            Outcome::TooLarge => (status::TOO_LARGE, String::new()),
            Outcome::NotEncodable(reason) => (status::NOT_ENCODABLE, reason),
        };
        output.clear();
        // A text that does not fit is left out; the status says enough.
        if output.append(text.as_bytes()).is_err() {
            output.clear();
        }
        output.finish(self.index, status);
    }
}
