//! An executor runs calls in one thread: decodes the arguments into its env, runs the function and whatever it schedules,
//! encodes what comes of it, clears the env.

use super::callbacks;
use super::env::Env;
use super::library::Running;
use super::missing;
use super::term::Term;
use super::wire::{Answers, Arguments, Refusal};
use snakepit_wire::{Decoder, EncodeError, EncoderOf, Limits, Name, Sink, SliceSource};
use std::cell::Cell;
use std::ffi::c_int;
use std::sync::OnceLock;

/// How a call ended. The payload of `Value` and `Raised` has been written.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    Value,
    Raised,
    NotImplemented(&'static str),
    BadArguments(String),
    TooLarge,
    NotEncodable(String),
}

/// A call of the library.
#[derive(Debug)]
pub struct Call<'a> {
    pub function: u32,
    pub arity: u32,
    pub arguments: &'a [u8],
    pub caller: Name,
}

thread_local! {
    /// Of the function that runs in this thread.
    static FLAGS: Cell<u32> = const { Cell::new(0) };
    static NUMBER: Cell<u64> = const { Cell::new(NO_CALL) };
}

/// More than any call's number.
pub const NO_CALL: u64 = u64::MAX;

/// The number of the call that this thread works on, or [`NO_CALL`].
pub fn call_number() -> u64 {
    NUMBER.get()
}

/// The dirty flags of the function that runs in this thread; 0 for none.
pub fn dirty_flags() -> u32 {
    FLAGS.get()
}

static LIMITS: OnceLock<Limits> = OnceLock::new();

/// Bounds of every answer; once, before [`load()`].
pub fn limits(limits: Limits) {
    let _ = LIMITS.set(limits);
}

/// Bounds of what leaves the worker.
pub fn bounds() -> Limits {
    LIMITS.get().copied().unwrap_or(Limits::DEFAULT)
}

/// What runs calls in one thread.
#[derive(Debug)]
pub struct Executor {
    /// From a box. The library gets this pointer; no reference to the env lives while the library runs.
    env: *mut Env,
    decoder: Decoder<Term>,
    encoder: EncoderOf<Answers>,
    answers: Answers,
    limits: Limits,
    /// A call was made since the env was cleared.
    used: bool,
    running: &'static Running,
}

// SAFETY: the env is the executor's alone, its buffers and objects are counted atomically, and between calls no term and
// no frame of the codecs is left.
unsafe impl Send for Executor {}

impl Default for Executor {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Executor {
    fn drop(&mut self) {
        // SAFETY: `new` made it from a box, and no library function runs on it any more.
        drop(unsafe { Box::from_raw(self.env) });
    }
}

impl Executor {
    pub fn new() -> Self {
        Self {
            env: Box::into_raw(Env::call()),
            decoder: Decoder::new(),
            encoder: EncoderOf::<Answers>::new(),
            answers: Answers::default(),
            limits: bounds(),
            used: false,
            running: Running::register(),
        }
    }

    /// The number of the next call, by which the VM knows which calls may answer with what.
    #[inline]
    pub fn number(&mut self, number: u64) {
        NUMBER.set(number);
    }

    /// Lets go of what the last call has made: to be called when its answer is on its way. (Else the next call does.)
    #[inline]
    pub fn clear(&mut self) {
        // SAFETY: the library function has returned; the env is the executor's alone.
        unsafe { (*self.env).clear() };
        self.used = false;
        self.running.leave();
        NUMBER.set(NO_CALL);
        callbacks::keep_up();
    }

    #[inline]
    pub fn call<S: Sink>(&mut self, call: &Call<'_>, answer: &mut S) -> Outcome {
        if self.used {
            let number = NUMBER.get();
            self.clear();
            NUMBER.set(number);
        }
        let Some((function, library)) = self.running.enter(call.function, call.arity) else {
            return Outcome::BadArguments(format!("there is no function {}/{}", call.function, call.arity));
        };
        self.used = true;
        missing::taken();
        let arguments = {
            // SAFETY: no library function runs on this env now, so this is the only reference to it.
            let env = unsafe { &mut *self.env };
            env.library = Some(library);
            env.caller = Term::local(call.caller).unwrap_or(Term::NON_VALUE);
            // What the VM sends is bounded there, and by the slot; nothing of it is refused here again.
            const SENT: Limits = Limits {
                bytes: u64::MAX,
                words: u64::MAX,
                depth: u32::MAX,
            };
            let mut source = SliceSource::new(call.arguments);
            let count = call.arity as usize;
            match self.decoder.decode_all(&mut source, count, &SENT, &mut Arguments(env)) {
                Ok(arguments) => arguments,
                Err(error) => return Outcome::BadArguments(error.to_string()),
            }
        };
        FLAGS.set(function.flags);
        // SAFETY: the function is one of the library's table, of this arity; the arguments are terms of this env.
        let mut result = unsafe { (function.nif)(self.env, call.arity as c_int, arguments.as_ptr()) };
        loop {
            // SAFETY: the library function has returned.
            let env = unsafe { &mut *self.env };
            if let Some(symbol) = missing::taken() {
                return Outcome::NotImplemented(symbol);
            }
            if let Some(reason) = env.exception {
                return self.encode(reason, answer, Outcome::Raised);
            }
            if result.is_value() {
                return self.encode(result, answer, Outcome::Value);
            }
            let Some(next) = env.scheduled.take() else {
                return Outcome::NotEncodable("the function returned no term and raised nothing".to_owned());
            };
            FLAGS.set(next.flags);
            // SAFETY: the library asked for this function with these arguments, and they are terms of this env. The
            // vector lives until the function has returned.
            result = unsafe { (next.function)(self.env, next.arguments.len() as c_int, next.arguments.as_ptr()) };
        }
    }

    #[inline]
    fn encode<S: Sink>(&mut self, term: Term, answer: &mut S, outcome: Outcome) -> Outcome {
        match self.encoder.encode(&mut self.answers, term, &self.limits, answer) {
            Ok(()) => {
                self.answers.commit();
                outcome
            }
            Err(error) => {
                self.answers.undo();
                Self::failed(error)
            }
        }
    }

    #[cold]
    fn failed(error: EncodeError<Refusal>) -> Outcome {
        match error {
            EncodeError::Full | EncodeError::Bytes(_) | EncodeError::Words(_) => Outcome::TooLarge,
            other => Outcome::NotEncodable(other.to_string()),
        }
    }
}
