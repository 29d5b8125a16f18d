//! What a thread keeps from call to call, so that small calls allocate nothing: the codec's stacks, buffers, and the
//! names of the last callers.

use super::effort::{Effort, Met};
use super::failure::{Failure, Result, Unmakeable, Unreadable, is_honest};
use super::outgoing::Outgoing;
use super::remote::Releases;
use super::saved::{pid_word, self_pid};
use super::terms::{Buffers, Destination, Pairs, VmBuilder, VmReader};
use super::worker::Worker;
use rustler::Env;
use rustler::schedule::consume_timeslice;
use rustler::sys::{ErlNifEnv, ErlNifTerm};
use snakepit_shm_core::ring::Caller;
use snakepit_shm_core::ring::vm::Source as Answer;
use snakepit_wire::{
    DecodeError, Decoder, EncodeError, Encoder, Limits, Name, Sink, SliceSink, SliceSource, Source, VecSink,
};
use std::cell::RefCell;
use std::mem::MaybeUninit;

/// Bytes kept from one call to the next; more are given back.
const KEEP: usize = 64 << 10;
/// Callers remembered by a thread.
const CALLERS: usize = 64;
/// Private bytes of a large answer at a time.
const CHUNK: usize = 4 << 10;
/// Answers up to here are copied out whole before they are decoded.
const WHOLE: usize = 16 << 10;

/// Arguments of a call that needs nothing else.
const SMALL: usize = 512;

pub struct Scratch {
    encoder: Encoder<ErlNifTerm, *const ErlNifTerm, Pairs>,
    decoder: Decoder<ErlNifTerm>,
    buffers: Buffers,
    bytes: Vec<u8>,
    small: [u8; SMALL],
    known: [KnownCaller; CALLERS],
    /// Quarters of a microsecond that are not reported yet.
    spent: u32,
}

impl Scratch {
    const fn new() -> Self {
        Scratch {
            encoder: Encoder::new(),
            decoder: Decoder::new(),
            buffers: Buffers::new(),
            bytes: Vec::new(),
            small: [0; SMALL],
            known: [NOBODY; CALLERS],
            spent: 0,
        }
    }

    /// The calling process as an entry of the worker's table of names; the zero entry, which nobody has, when the table is
    /// full.
    #[inline]
    pub fn caller(&mut self, env: Env<'_>, worker: &Worker) -> Caller {
        let Some(word) = self_pid(env).map(pid_word) else {
            return Caller::default();
        };
        let incarnation = worker.incarnation();
        let known = &mut self.known[place(word, incarnation)];
        if known.word == Some(word) && known.incarnation == incarnation && known.replaced == worker.replaced() {
            return known.caller;
        }
        let Some((caller, replaced)) = worker.remember(env.as_c_arg(), word) else {
            return Caller::default();
        };
        *known = KnownCaller {
            incarnation,
            replaced,
            word: Some(word),
            caller,
        };
        caller
    }

    /// Encodes a few small terms.
    #[inline]
    pub fn encode_small(
        &mut self,
        env: Env<'_>,
        worker: &Worker,
        terms: &[ErlNifTerm],
        kept: &mut Vec<Name>,
    ) -> std::result::Result<&[u8], EncodeError<Unreadable>> {
        let to = Destination {
            incarnation: worker.incarnation(),
            names: worker.names(),
            kept,
        };
        // SAFETY: the environment is the caller's, for the whole of this call.
        let mut reader = unsafe { VmReader::new(env.as_c_arg(), to, &mut self.buffers) };
        let mut sink = SliceSink::new(&mut self.small);
        self.encoder
            .encode_all(&mut reader, terms.iter().copied(), worker.limits(), &mut sink)?;
        let length = sink.position();
        Ok(&self.small[..length])
    }

    /// Decodes the one term of an answer.
    #[inline]
    pub fn decode(
        &mut self,
        env: *mut ErlNifEnv,
        worker: &Worker,
        answer: &Answer<'_>,
        effort: &mut Effort,
    ) -> std::result::Result<ErlNifTerm, DecodeError<Unmakeable>> {
        // SAFETY: the environment is the caller's, for the whole of this call.
        let mut builder = unsafe { VmBuilder::new(env, Some(worker), effort) };
        let limits = worker.limits();
        let decoded = if let Some(bytes) = answer.private() {
            self.decoder.decode(&mut SliceSource::new(bytes), limits, &mut builder)
        } else if answer.len() <= WHOLE {
            answer.read(&mut self.bytes);
            self.decoder
                .decode(&mut SliceSource::new(&self.bytes), limits, &mut builder)
        } else {
            self.decoder
                .decode(&mut AnswerSource::new(answer), limits, &mut builder)
        };
        decoded.inspect_err(|error| give_back_rest_of(worker, error, effort, answer))
    }

    /// Reports time spent on a scheduler, in quarters of a microsecond. A slice is a millisecond; the VM takes hundredths,
    /// so what is less adds up. Counted, not measured: a look at the clock costs a tenth of a call.
    #[inline]
    pub fn spend(&mut self, env: Env<'_>, quarters: u32) {
        const HUNDREDTH: u32 = 40;
        self.spent = self.spent.saturating_add(quarters);
        if self.spent >= HUNDREDTH {
            consume_timeslice(env, (self.spent / HUNDREDTH).min(100) as i32);
            self.spent %= HUNDREDTH;
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct KnownCaller {
    incarnation: u64,
    replaced: u64,
    word: Option<ErlNifTerm>,
    caller: Caller,
}

const NOBODY: KnownCaller = KnownCaller {
    incarnation: 0,
    replaced: 0,
    word: None,
    caller: Caller {
        index: 0,
        generation: 0,
    },
};

thread_local! {
    static SCRATCH: RefCell<Scratch> = const { RefCell::new(Scratch::new()) };
}

/// A destructor in the middle of a call could come here again: it gets a scratch of its own.
#[inline]
pub fn with<R>(usage: impl FnOnce(&mut Scratch) -> R) -> R {
    SCRATCH.with(|scratch| match scratch.try_borrow_mut() {
        Ok(mut scratch) => {
            let answer = usage(&mut scratch);
            if scratch.bytes.capacity() > KEEP {
                scratch.bytes = Vec::new();
            }
            answer
        }
        Err(_) => usage(&mut Scratch::new()),
    })
}

#[inline]
fn place(word: ErlNifTerm, incarnation: u64) -> usize {
    let mixed = (word_bits(word) as u64 ^ incarnation.rotate_left(32)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    (mixed >> 58) as usize % CALLERS
}

/// The bits of a term. For hashing and comparing immediate terms only.
#[inline]
pub fn word_bits(term: ErlNifTerm) -> usize {
    // SAFETY: `ErlNifTerm` is a transparent word.
    unsafe { std::mem::transmute::<ErlNifTerm, usize>(term) }
}

/// Encodes the terms one after the other, at most `limit` bytes, on their way into the worker's ring.
pub fn encode<R>(
    env: Env<'_>,
    worker: &Worker,
    terms: impl IntoIterator<Item = ErlNifTerm>,
    kept: &mut Vec<Name>,
    limit: usize,
    usage: impl FnOnce(std::result::Result<(), EncodeError<Unreadable>>, Outgoing<'_>) -> R,
) -> R {
    with(|scratch| {
        let to = Destination {
            incarnation: worker.incarnation(),
            names: worker.names(),
            kept,
        };
        // SAFETY: the environment is the caller's, for the whole of this call.
        let mut reader = unsafe { VmReader::new(env.as_c_arg(), to, &mut scratch.buffers) };
        let mut sink = Outgoing::new(worker.ring(), &mut scratch.bytes, limit);
        let encoded = scratch
            .encoder
            .encode_all(&mut reader, terms, worker.limits(), &mut sink);
        usage(encoded, sink)
    })
}

/// One term as bytes.
pub fn encode_one(
    env: Env<'_>,
    worker: &Worker,
    term: rustler::Term<'_>,
    kept: &mut Vec<Name>,
    limit: usize,
) -> Result<Vec<u8>> {
    let to = Destination {
        incarnation: worker.incarnation(),
        names: worker.names(),
        kept,
    };
    let limits = Limits {
        bytes: limit as u64,
        ..*worker.limits()
    };
    encode_plain(env, to, term, &limits).map_err(Failure::from)
}

/// Encodes for nobody.
pub fn encode_plain(
    env: Env<'_>,
    to: Destination<'_>,
    term: rustler::Term<'_>,
    limits: &Limits,
) -> std::result::Result<Vec<u8>, EncodeError<Unreadable>> {
    with(|scratch| {
        let mut bytes = Vec::new();
        // SAFETY: the environment is the caller's, for the whole of this call.
        let mut reader = unsafe { VmReader::new(env.as_c_arg(), to, &mut scratch.buffers) };
        let mut sink = VecSink::new(&mut bytes, limits.bytes as usize);
        scratch
            .encoder
            .encode(&mut reader, term.as_c_arg(), limits, &mut sink)?;
        Ok(bytes)
    })
}

/// Decodes one term out of private bytes.
pub fn decode_plain(
    env: *mut ErlNifEnv,
    from: Option<&Worker>,
    limits: &Limits,
    bytes: &[u8],
) -> std::result::Result<ErlNifTerm, DecodeError<Unmakeable>> {
    decode_counted(env, from, limits, bytes, &mut Effort::unbounded(&Met::default())).map(|(term, _)| term)
}

/// Decodes one term out of private bytes, and says how many words it takes, with the copies of what it names.
pub fn decode_counted(
    env: *mut ErlNifEnv,
    from: Option<&Worker>,
    limits: &Limits,
    bytes: &[u8],
    effort: &mut Effort,
) -> std::result::Result<(ErlNifTerm, u64), DecodeError<Unmakeable>> {
    let decoded = with(|scratch| {
        // SAFETY: the environment is the caller's, for the whole of this call.
        let mut builder = unsafe { VmBuilder::new(env, from, effort) };
        let (term, words) = scratch
            .decoder
            .decode_counted(&mut SliceSource::new(bytes), limits, &mut builder)?;
        Ok((term, words.saturating_add(builder.copied())))
    });
    decoded.inspect_err(|error| {
        if let Some(worker) = from {
            give_back_rest(worker, error, effort, &mut SliceSource::new(bytes));
        }
    })
}

#[cold]
#[inline(never)]
fn give_back_rest_of(worker: &Worker, error: &DecodeError<Unmakeable>, effort: &mut Effort, answer: &Answer<'_>) {
    give_back_rest(worker, error, effort, &mut AnswerSource::new(answer));
}

/// The worker has counted all objects of a payload that the VM has not read to its end. A worker that writes something else there meanwhile
/// is told of objects that it has not sent.
#[cold]
fn give_back_rest<S: Source>(worker: &Worker, error: &DecodeError<Unmakeable>, effort: &mut Effort, source: &mut S) {
    if !is_honest(error) {
        return;
    }
    let (mut place, dealt_with) = (0, effort.dealt_with());
    snakepit_wire::objects(source, u64::MAX, |id| {
        place += 1;
        if place > dealt_with {
            effort.takes(super::effort::GIVEN_BACK);
            worker.releases().give_back(id);
        }
    });
}

/// The terms of an answer that are looked at for objects when nobody takes it: some 0.2 ms, on whatever scheduler finds it.
const UNTAKEN: u64 = 1 << 14;

/// Gives back the objects of an answer that nobody takes, but for the first `made`: the worker has counted them. They end with the worker if they
/// lie far behind.
pub fn give_back_untaken(releases: &Releases, answer: &Answer<'_>, made: usize) {
    let mut place = 0;
    snakepit_wire::objects(&mut AnswerSource::new(answer), UNTAKEN, |id| {
        place += 1;
        if place > made {
            releases.give_back(id);
        }
    });
}

/// A large answer: small pieces through a private chunk, bulk straight to where it goes. No byte is read twice.
struct AnswerSource<'a> {
    answer: &'a Answer<'a>,
    /// What has been copied out of the ring.
    taken: usize,
    chunk: [u8; CHUNK],
    next: usize,
    end: usize,
}

impl<'a> AnswerSource<'a> {
    fn new(answer: &'a Answer<'a>) -> Self {
        AnswerSource {
            answer,
            taken: 0,
            chunk: [0; CHUNK],
            next: 0,
            end: 0,
        }
    }

    /// Fills the chunk behind what is left in it.
    fn refill(&mut self) {
        self.chunk.copy_within(self.next..self.end, 0);
        self.end -= self.next;
        self.next = 0;
        let length = (self.answer.len() - self.taken).min(CHUNK - self.end);
        // SAFETY: so many bytes of the chunk are behind its end.
        if unsafe {
            self.answer
                .take(self.taken, self.chunk.as_mut_ptr().add(self.end), length)
        } {
            self.taken += length;
            self.end += length;
        }
    }
}

// SAFETY: `copy_to` writes the whole target, out of the chunk and out of the ring, or answers false.
unsafe impl Source for AnswerSource<'_> {
    #[inline]
    fn remaining(&self) -> usize {
        self.end - self.next + self.answer.len() - self.taken
    }

    #[inline]
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        if self.end - self.next < N {
            self.refill();
        }
        let bytes = self.chunk[self.next..self.end].first_chunk::<N>()?;
        self.next += N;
        Some(*bytes)
    }

    fn copy_to(&mut self, target: &mut [MaybeUninit<u8>]) -> bool {
        if target.len() > self.remaining() {
            return false;
        }
        let private = target.len().min(self.end - self.next);
        let (first, rest) = target.split_at_mut(private);
        first.write_copy_of_slice(&self.chunk[self.next..self.next + private]);
        self.next += private;
        // SAFETY: the rest of the target is private memory of that length.
        let copied = rest.is_empty() || unsafe { self.answer.take(self.taken, rest.as_mut_ptr().cast(), rest.len()) };
        if copied {
            self.taken += rest.len();
        }
        copied
    }

    fn skip(&mut self, length: usize) -> bool {
        if length > self.remaining() {
            return false;
        }
        let private = length.min(self.end - self.next);
        self.next += private;
        self.taken += length - private;
        true
    }
}
