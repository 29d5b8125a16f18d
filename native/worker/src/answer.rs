//! An answer on its way into the ring.
//!
//! Terms are written in many small pieces, which go through a private buffer; what the buffer cannot hold goes to the
//! slot, and from there to the result area, without being encoded twice. Most answers never leave the buffer before
//! they are complete.

use snakepit_shm_core::ring::status;
use snakepit_shm_core::ring::worker::{Job, Output, WorkerRing};
use snakepit_wire::{Full, Sink};

/// What the buffer holds. Larger pieces, the bytes of binaries, pass it by.
const BUFFER: usize = 16 << 10;

/// A sink that ends as the answer of a call.
#[derive(Debug)]
pub struct Answer<'a> {
    ring: &'a WorkerRing,
    buffer: &'a mut Vec<u8>,
    /// Bytes in front of those in the buffer.
    gone: usize,
    stage: Stage<'a>,
}

#[derive(Debug)]
enum Stage<'a> {
    Private(Job),
    Shared(Output<'a>),
    /// In between; never seen.
    Changing,
}

impl<'a> Answer<'a> {
    /// `buffer` is a piece of memory to use again and again. The job's arguments must have been copied.
    pub fn new(ring: &'a WorkerRing, job: Job, buffer: &'a mut Vec<u8>) -> Self {
        buffer.clear();
        Answer {
            ring,
            buffer,
            gone: 0,
            stage: Stage::Private(job),
        }
    }

    /// Answers with what was put.
    pub fn finish(mut self, executor: u16, status: u16) {
        self.stage = match std::mem::replace(&mut self.stage, Stage::Changing) {
            Stage::Private(job) => match self.ring.answer(executor, job, status, self.buffer) {
                Ok(()) => return,
                Err((job, _)) => Stage::Private(job),
            },
            shared => shared,
        };
        if self.flush().is_err() {
            return self.refuse(executor, status::TOO_LARGE, "");
        }
        if let Stage::Shared(output) = self.stage {
            output.finish(executor, status);
        }
    }

    /// Answers with a text instead of what was put. A text that does not fit is left out: the status says enough.
    pub fn refuse(mut self, executor: u16, status: u16, text: &str) {
        let mut output = match self.take_output() {
            Some(output) => output,
            None => return,
        };
        output.clear();
        if output.append(text.as_bytes()).is_err() {
            output.clear();
        }
        output.finish(executor, status);
    }

    fn take_output(&mut self) -> Option<Output<'a>> {
        match std::mem::replace(&mut self.stage, Stage::Changing) {
            Stage::Private(job) => Some(self.ring.output(job)),
            Stage::Shared(output) => Some(output),
            Stage::Changing => None,
        }
    }

    /// What is in the buffer goes to the ring.
    fn flush(&mut self) -> Result<(), Full> {
        let Some(mut output) = self.take_output() else {
            return Err(Full);
        };
        let result = output.append(self.buffer).map_err(|_| Full);
        if result.is_ok() {
            self.gone += self.buffer.len();
            self.buffer.clear();
        }
        self.stage = Stage::Shared(output);
        result
    }

    #[inline(never)]
    fn put_more(&mut self, bytes: &[u8]) -> Result<(), Full> {
        self.flush()?;
        if bytes.len() <= BUFFER {
            self.buffer.extend_from_slice(bytes);
            return Ok(());
        }
        let Stage::Shared(output) = &mut self.stage else {
            return Err(Full);
        };
        output.append(bytes).map_err(|_| Full)?;
        self.gone += bytes.len();
        Ok(())
    }
}

impl Sink for Answer<'_> {
    #[inline]
    fn put(&mut self, bytes: &[u8]) -> Result<(), Full> {
        if self.buffer.len() + bytes.len() <= BUFFER {
            self.buffer.extend_from_slice(bytes);
            return Ok(());
        }
        self.put_more(bytes)
    }

    #[inline]
    fn position(&self) -> usize {
        self.gone + self.buffer.len()
    }

    #[inline]
    fn patch(&mut self, position: usize, bytes: [u8; 4]) {
        for (position, byte) in (position..).zip(bytes) {
            if let Some(target) = position
                .checked_sub(self.gone)
                .and_then(|offset| self.buffer.get_mut(offset))
            {
                *target = byte;
            } else if let Stage::Shared(output) = &mut self.stage {
                output.patch(position, &[byte]);
            }
        }
    }
}
