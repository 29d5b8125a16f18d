//! Terms to bytes.

use crate::bytes::Sink;
use crate::error::{EncodeError, Full};
use crate::limits::{Limits, words};
use crate::tag;
use crate::term::{Name, Reader, View};

/// What is open while the terms inside it are written.
#[derive(Debug)]
enum Frame<T, U, P> {
    /// `count` elements are written, `rest` is left; the count goes to `at` in the end.
    List {
        rest: T,
        count: u32,
        at: usize,
    },
    Tuple {
        tuple: U,
        next: usize,
        arity: usize,
    },
    Map {
        pairs: P,
        left: usize,
        value: Option<T>,
    },
    /// A list whose tail is being written: still a level, as it is for the decoder.
    Tail,
}

/// Frames kept from one call to the next; more are given back.
const KEEP: usize = 1 << 10;

/// Writes terms. Holds nothing but its stack between calls: keep one for each thread, and only deep terms allocate.
///
/// `T`, `U` and `P` are the reader's term, tuple and walk through a map.
#[derive(Debug)]
pub struct Encoder<T, U, P> {
    stack: Vec<Frame<T, U, P>>,
}

/// The encoder that fits a reader.
pub type EncoderOf<R> = Encoder<<R as Reader>::Term, <R as Reader>::Tuple, <R as Reader>::Pairs>;

impl<T, U, P> Default for Encoder<T, U, P> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T, U, P> Encoder<T, U, P> {
    #[must_use]
    pub const fn new() -> Self {
        Self { stack: Vec::new() }
    }
}

type Outcome<R> = Result<(), EncodeError<<R as Reader>::Refusal>>;

impl<T: Copy, U: Copy, P> Encoder<T, U, P> {
    /// Writes one term.
    #[inline]
    pub fn encode<R, S>(&mut self, reader: &mut R, term: T, limits: &Limits, sink: &mut S) -> Outcome<R>
    where
        R: Reader<Term = T, Tuple = U, Pairs = P>,
        S: Sink,
    {
        self.encode_all(reader, [term], limits, sink)
    }

    /// Writes terms one after the other; the limits hold for all of them together.
    #[inline]
    pub fn encode_all<R, S>(
        &mut self,
        reader: &mut R,
        terms: impl IntoIterator<Item = T>,
        limits: &Limits,
        sink: &mut S,
    ) -> Outcome<R>
    where
        R: Reader<Term = T, Tuple = U, Pairs = P>,
        S: Sink,
    {
        let start = sink.position();
        let mut writing = Writing {
            reader,
            sink,
            limits,
            start,
            words: limits.words,
        };
        for term in terms {
            writing
                .term(&mut self.stack, term)
                .inspect_err(|_| self.stack.clear())?;
        }
        if self.stack.capacity() > KEEP {
            self.stack.shrink_to(KEEP);
        }
        room(writing.sink, start, limits, 0)
    }
}

/// One payload being written.
struct Writing<'a, R, S> {
    reader: &'a mut R,
    sink: &'a mut S,
    limits: &'a Limits,
    start: usize,
    /// What is left of them.
    words: u64,
}

type FrameOf<R> = Frame<<R as Reader>::Term, <R as Reader>::Tuple, <R as Reader>::Pairs>;
type Stack<R> = Vec<FrameOf<R>>;

impl<R: Reader, S: Sink> Writing<'_, R, S> {
    #[inline]
    fn term(&mut self, stack: &mut Stack<R>, term: R::Term) -> Outcome<R> {
        let mut term = term;
        loop {
            if let Some(head) = self.open(stack, term)? {
                term = head;
            } else if let Some(next) = self.next(stack)? {
                term = next;
            } else {
                return Ok(());
            }
        }
    }

    /// Writes a term without parts, or the beginning of one and leaves it open. A list answers its head: it is known
    /// already.
    #[inline]
    fn open(&mut self, stack: &mut Stack<R>, term: R::Term) -> Result<Option<R::Term>, EncodeError<R::Refusal>> {
        let view = self.reader.view(term).map_err(EncodeError::Refused)?;
        match view {
            View::Integer(value) => {
                self.words = charge(self.words, self.limits, words::integer(value))?;
                if let Ok(value) = u8::try_from(value) {
                    self.sink.put_array([tag::SMALL_INTEGER, value])?;
                } else if let Ok(value) = i32::try_from(value) {
                    let [a, b, c, d] = value.to_be_bytes();
                    self.sink.put_array([tag::INTEGER, a, b, c, d])?;
                } else {
                    put_magnitude(self.sink, value < 0, value.unsigned_abs())?;
                }
            }
            View::Unsigned(value) => {
                self.words = charge(self.words, self.limits, words::big(8))?;
                put_magnitude(self.sink, false, value)?;
            }
            View::Big { negative, magnitude } => {
                let zeros = magnitude.iter().rev().take_while(|byte| **byte == 0).count();
                let magnitude = &magnitude[..magnitude.len() - zeros];
                self.words = charge(self.words, self.limits, words::big(magnitude.len()))?;
                room(self.sink, self.start, self.limits, magnitude.len())?;
                let length = length(magnitude.len(), self.limits)?;
                match u8::try_from(length) {
                    Ok(length) => self.sink.put_array([tag::SMALL_BIG, length, negative.into()])?,
                    Err(_) => {
                        let [a, b, c, d] = length.to_be_bytes();
                        self.sink.put_array([tag::LARGE_BIG, a, b, c, d, negative.into()])?;
                    }
                }
                self.sink.put(magnitude)?;
            }
            View::Float(value) => {
                if !value.is_finite() {
                    return Err(EncodeError::NotFinite);
                }
                self.words = charge(self.words, self.limits, words::FLOAT)?;
                let [a, b, c, d, e, f, g, h] = value.to_be_bytes();
                self.sink.put_array([tag::NEW_FLOAT, a, b, c, d, e, f, g, h])?;
            }
            View::Atom(text) => {
                match u16::try_from(text.len()) {
                    Ok(length @ ..=255) => {
                        let [_, length] = length.to_be_bytes();
                        self.sink.put_array([tag::SMALL_ATOM_UTF8, length])?;
                    }
                    Ok(length @ ..=1020) => {
                        let [a, b] = length.to_be_bytes();
                        self.sink.put_array([tag::ATOM_UTF8, a, b])?;
                    }
                    _ => return Err(EncodeError::Inconsistent("an atom has more than 255 characters")),
                }
                self.sink.put(text.as_bytes())?;
            }
            View::Nil => self.sink.put_array([tag::NIL])?,
            View::Cons(head, tail) => {
                self.words = charge(self.words, self.limits, words::CELL)?;
                self.sink.put_array([tag::LIST, 0, 0, 0, 0])?;
                let at = self.sink.position() - 4;
                self.push(
                    stack,
                    Frame::List {
                        rest: tail,
                        count: 1,
                        at,
                    },
                )?;
                return Ok(Some(head));
            }
            View::Tuple(tuple, arity) => {
                self.words = charge(self.words, self.limits, words::tuple(arity))?;
                let length = length(arity, self.limits)?;
                match u8::try_from(length) {
                    Ok(length) => self.sink.put_array([tag::SMALL_TUPLE, length])?,
                    Err(_) => {
                        let [a, b, c, d] = length.to_be_bytes();
                        self.sink.put_array([tag::LARGE_TUPLE, a, b, c, d])?;
                    }
                }
                if arity > 0 {
                    self.push(stack, Frame::Tuple { tuple, next: 0, arity })?;
                }
            }
            View::Map(left) => {
                self.words = charge(self.words, self.limits, words::map(left))?;
                let [a, b, c, d] = length(left, self.limits)?.to_be_bytes();
                self.sink.put_array([tag::MAP, a, b, c, d])?;
                if left > 0 {
                    let pairs = self.reader.pairs(term).map_err(EncodeError::Refused)?;
                    self.push(
                        stack,
                        Frame::Map {
                            pairs,
                            left,
                            value: None,
                        },
                    )?;
                }
            }
            View::Binary(bytes) => {
                self.words = charge(self.words, self.limits, words::binary(bytes.len()))?;
                room(self.sink, self.start, self.limits, bytes.len())?;
                let [a, b, c, d] = length(bytes.len(), self.limits)?.to_be_bytes();
                self.sink.put_array([tag::BINARY, a, b, c, d])?;
                self.sink.put(bytes)?;
            }
            View::Bits { bytes, last } => {
                if bytes.is_empty() || !(1..=7).contains(&last) {
                    return Err(EncodeError::Inconsistent("a bit string has no bits in its last byte"));
                }
                let cost = words::BITS + words::binary(bytes.len());
                self.words = charge(self.words, self.limits, cost)?;
                room(self.sink, self.start, self.limits, bytes.len())?;
                let [a, b, c, d] = length(bytes.len(), self.limits)?.to_be_bytes();
                self.sink.put_array([tag::BIT_BINARY, a, b, c, d, last])?;
                if let [before @ .., byte] = bytes {
                    self.sink.put(before)?;
                    self.sink.put_array([byte & (0xFF << (8 - last))])?;
                }
            }
            View::Name {
                name:
                    Name {
                        kind,
                        index,
                        generation,
                    },
                key,
            } => {
                self.words = charge(self.words, self.limits, words::NAME)?;
                room(self.sink, self.start, self.limits, key.len())?;
                let length = length(key.len(), self.limits)?;
                self.sink.put_array([tag::NAME, kind as u8])?;
                self.sink.put_array(index.to_be_bytes())?;
                self.sink.put_array(generation.to_be_bytes())?;
                self.sink.put_array(length.to_be_bytes())?;
                self.sink.put(key)?;
            }
            View::Resource(id) => {
                self.words = charge(self.words, self.limits, words::RESOURCE)?;
                let [a, b, c, d, e, f, g, h] = id.to_be_bytes();
                self.sink.put_array([tag::RESOURCE, a, b, c, d, e, f, g, h])?;
            }
        }
        Ok(None)
    }

    /// The next term inside what is open; closes what is complete.
    #[inline]
    fn next(&mut self, stack: &mut Stack<R>) -> Result<Option<R::Term>, EncodeError<R::Refusal>> {
        while let Some(frame) = stack.last_mut() {
            match frame {
                Frame::List { rest, count, at } => {
                    if let Some((head, tail)) = self.reader.cell(*rest) {
                        self.words = charge(self.words, self.limits, words::CELL)?;
                        *rest = tail;
                        *count = count.checked_add(1).ok_or(EncodeError::Words(self.limits.words))?;
                        return Ok(Some(head));
                    }
                    self.sink.patch(*at, count.to_be_bytes());
                    let tail = *rest;
                    *frame = Frame::Tail;
                    return Ok(Some(tail));
                }
                Frame::Tuple { tuple, next, arity } => {
                    if next < arity {
                        let element = self.reader.element(*tuple, *next);
                        *next += 1;
                        return Ok(Some(element));
                    }
                }
                Frame::Map { pairs, left, value } => {
                    if let Some(value) = value.take() {
                        return Ok(Some(value));
                    }
                    if *left > 0 {
                        let pair = self.reader.next_pair(pairs);
                        let (key, second) = pair.ok_or(EncodeError::Inconsistent("a map ends early"))?;
                        *left -= 1;
                        *value = Some(second);
                        return Ok(Some(key));
                    }
                }
                Frame::Tail => {}
            }
            stack.pop();
        }
        Ok(None)
    }

    #[inline]
    fn push(&mut self, stack: &mut Stack<R>, frame: FrameOf<R>) -> Outcome<R> {
        if stack.len() >= self.limits.depth as usize {
            return Err(EncodeError::Depth(self.limits.depth));
        }
        stack.push(frame);
        Ok(())
    }
}

/// What is left of `words` after `cost`.
#[inline]
fn charge<F>(words: u64, limits: &Limits, cost: u64) -> Result<u64, EncodeError<F>> {
    words.checked_sub(cost).ok_or(EncodeError::Words(limits.words))
}

/// Whether so many bytes may follow what was written since `start`.
#[inline]
fn room<F>(sink: &impl Sink, start: usize, limits: &Limits, bytes: usize) -> Result<(), EncodeError<F>> {
    let written = (sink.position() - start) as u64;
    if written.saturating_add(bytes as u64) > limits.bytes {
        return Err(EncodeError::Bytes(limits.bytes));
    }
    Ok(())
}

/// Lengths and arities have 32 bits.
#[inline]
fn length<F>(length: usize, limits: &Limits) -> Result<u32, EncodeError<F>> {
    u32::try_from(length).map_err(|_| EncodeError::Bytes(limits.bytes))
}

/// An integer of more than 32 bits.
#[inline]
fn put_magnitude(sink: &mut impl Sink, negative: bool, magnitude: u64) -> Result<(), Full> {
    let length = 8 - magnitude.leading_zeros() / 8;
    let [length, ..] = length.to_le_bytes();
    sink.put_array([tag::SMALL_BIG, length, negative.into()])?;
    sink.put(&magnitude.to_le_bytes()[..usize::from(length)])
}
