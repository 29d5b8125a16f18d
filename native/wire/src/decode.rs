//! Bytes to terms.

use std::mem::MaybeUninit;

use crate::bytes::{Payload, Source};
use crate::error::DecodeError;
use crate::limits::{Limits, words};
use crate::tag;
use crate::term::{Builder, Name, NameKind};

#[derive(Debug, Clone, Copy)]
enum Kind {
    List,
    Tuple,
    Map,
}

/// A container that waits for its parts.
#[derive(Debug, Clone, Copy)]
struct Frame {
    kind: Kind,
    /// Parts that are still to come.
    left: u64,
    /// Where its parts begin among the values.
    base: usize,
}

/// Entries kept from one call to the next; more are given back.
const KEEP: usize = 1 << 12;

/// An atom's characters, in the longest form that they can have.
const ATOM_BYTES: usize = 4 * ATOM_CHARACTERS;
const ATOM_CHARACTERS: usize = 255;

/// The VM's own bound (`MAX_ARITYVAL`).
const MOST_ELEMENTS: u32 = (1 << 24) - 1;

/// Reads terms. Holds nothing but its stacks between calls: keep one for each thread, and small terms do not allocate.
#[derive(Debug)]
pub struct Decoder<T> {
    frames: Vec<Frame>,
    values: Vec<T>,
    /// Keys and values of a map, apart.
    keys: Vec<T>,
    seconds: Vec<T>,
    /// A big integer's magnitude or a name's key.
    bytes: Vec<u8>,
}

impl<T> Default for Decoder<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> Decoder<T> {
    #[must_use]
    pub const fn new() -> Self {
        Self {
            frames: Vec::new(),
            values: Vec::new(),
            keys: Vec::new(),
            seconds: Vec::new(),
            bytes: Vec::new(),
        }
    }

    fn clear(&mut self) {
        self.frames.clear();
        self.values.clear();
    }

    /// Gives back what an unusually large payload has left.
    #[inline]
    fn trim(&mut self) {
        if self.values.capacity() > KEEP
            || self.frames.capacity() > KEEP
            || self.keys.capacity() > KEEP
            || self.bytes.capacity() > KEEP
        {
            self.shrink();
        }
    }

    #[cold]
    fn shrink(&mut self) {
        self.frames.shrink_to(KEEP);
        self.values.shrink_to(KEEP);
        self.keys.clear();
        self.keys.shrink_to(KEEP);
        self.seconds.clear();
        self.seconds.shrink_to(KEEP);
        self.bytes.clear();
        self.bytes.shrink_to(KEEP);
    }
}

type Outcome<B, T = <B as Builder>::Term> = Result<T, DecodeError<<B as Builder>::Refusal>>;

impl<T: Copy> Decoder<T> {
    /// Reads one term, and nothing may follow it.
    #[inline]
    pub fn decode<B, S>(&mut self, source: &mut S, limits: &Limits, builder: &mut B) -> Outcome<B>
    where
        B: Builder<Term = T>,
        S: Source,
    {
        self.decode_counted(source, limits, builder).map(|(term, _)| term)
    }

    /// Reads one term, and says how many words of heap it takes.
    #[inline]
    pub fn decode_counted<B, S>(&mut self, source: &mut S, limits: &Limits, builder: &mut B) -> Outcome<B, (T, u64)>
    where
        B: Builder<Term = T>,
        S: Source,
    {
        self.trim();
        let mut reading = Reading::new(source, 1, limits, builder)?;
        let term = reading.term(self).inspect_err(|_| self.clear())?;
        reading.end()?;
        Ok((term, limits.words - reading.words))
    }

    /// Reads `count` terms, and nothing may follow them. The limits hold for all of them together.
    #[inline]
    pub fn decode_all<B, S>(
        &mut self,
        source: &mut S,
        count: usize,
        limits: &Limits,
        builder: &mut B,
    ) -> Outcome<B, &[T]>
    where
        B: Builder<Term = T>,
        S: Source,
    {
        self.clear();
        self.trim();
        let mut reading = Reading::new(source, count, limits, builder)?;
        for _ in 0..count {
            let term = reading.term(self).inspect_err(|_| self.clear())?;
            self.values.push(term);
        }
        reading.end()?;
        Ok(&self.values)
    }
}

/// One payload being read.
struct Reading<'a, B, S> {
    source: &'a mut S,
    limits: &'a Limits,
    builder: &'a mut B,
    /// What is left of them.
    words: u64,
    /// Terms that were announced and have not begun. Each has a byte at least, so there are never more than bytes
    /// remain.
    pending: u64,
}

impl<'a, B: Builder, S: Source> Reading<'a, B, S> {
    #[inline]
    fn new(source: &'a mut S, count: usize, limits: &'a Limits, builder: &'a mut B) -> Outcome<B, Self> {
        let remaining = source.remaining() as u64;
        if remaining > limits.bytes {
            return Err(DecodeError::Bytes(limits.bytes));
        }
        let pending = count as u64;
        if pending > remaining {
            return Err(DecodeError::Truncated);
        }
        Ok(Self {
            source,
            limits,
            builder,
            words: limits.words,
            pending,
        })
    }

    #[inline]
    fn end(&self) -> Outcome<B, ()> {
        match self.source.remaining() {
            0 => Ok(()),
            rest => Err(DecodeError::Trailing(rest)),
        }
    }

    /// Reads a term; the decoder's stacks are afterwards as they were before.
    #[inline]
    fn term(&mut self, stacks: &mut Decoder<B::Term>) -> Outcome<B> {
        let depth = stacks.frames.len();
        loop {
            let (value, nil) = match self.open(stacks)? {
                Some(complete) => complete,
                None => continue,
            };
            if stacks.frames.len() == depth {
                return Ok(value);
            }
            if let Some(value) = self.close(stacks, depth, value, nil)? {
                return Ok(value);
            }
        }
    }

    /// A term without parts, and whether it is nil; or `None`: a container is open.
    #[inline]
    fn open(&mut self, stacks: &mut Decoder<B::Term>) -> Outcome<B, Option<(B::Term, bool)>> {
        let [tag] = self.take()?;
        self.pending -= 1;
        let made = match tag {
            tag::SMALL_INTEGER => {
                let [value] = self.take()?;
                self.builder.integer(value.into())
            }
            tag::INTEGER => {
                let value = i32::from_be_bytes(self.take()?);
                self.builder.integer(value.into())
            }
            tag::SMALL_ATOM_UTF8 => {
                let [length] = self.take()?;
                return self.atom(length.into()).map(complete);
            }
            tag::NIL => {
                let nil = self.builder.nil().map_err(DecodeError::Refused)?;
                return Ok(Some((nil, true)));
            }
            tag::SMALL_TUPLE => {
                let [arity] = self.take()?;
                return self.tuple(stacks, arity.into());
            }
            tag::LARGE_TUPLE => {
                let arity = self.length()?;
                return self.tuple(stacks, arity);
            }
            tag::LIST => {
                let count = self.length()?;
                self.charge(words::CELL * u64::from(count))?;
                self.push(stacks, Kind::List, u64::from(count) + 1)?;
                return Ok(None);
            }
            tag::STRING => {
                let length = u16::from_be_bytes(self.take()?);
                return self.string(stacks, length).map(Some);
            }
            tag::MAP => {
                let count = self.length()?;
                self.charge(words::map(size(count)))?;
                if count > 0 {
                    self.push(stacks, Kind::Map, 2 * u64::from(count))?;
                    return Ok(None);
                }
                return self.map(&[], &[]).map(complete);
            }
            tag::BINARY => {
                let length = size(self.length()?);
                self.charge(words::binary(length))?;
                let payload = Payload::new(self.source, length).ok_or(DecodeError::Truncated)?;
                self.builder.binary(payload)
            }
            tag::BIT_BINARY => {
                let length = size(self.length()?);
                let [last] = self.take()?;
                if last > 8 || (last == 0) != (length == 0) {
                    return Err(DecodeError::Malformed(
                        "a bit string's last byte has no such number of bits",
                    ));
                }
                self.charge(words::BITS + words::binary(length))?;
                let payload = Payload::new(self.source, length).ok_or(DecodeError::Truncated)?;
                match last {
                    0 | 8 => self.builder.binary(payload),
                    _ => self.builder.bits(payload.masked(last), last),
                }
            }
            tag::NEW_FLOAT => {
                let value = f64::from_be_bytes(self.take()?);
                if !value.is_finite() {
                    return Err(DecodeError::Malformed("a float is not finite"));
                }
                self.charge(words::FLOAT)?;
                self.builder.float(value)
            }
            tag::SMALL_BIG => {
                let [length, sign] = self.take()?;
                return self.big(stacks, length.into(), sign).map(complete);
            }
            tag::LARGE_BIG => {
                let length = self.length()?;
                let [sign] = self.take()?;
                return self.big(stacks, size(length), sign).map(complete);
            }
            tag::ATOM_UTF8 => {
                let length = u16::from_be_bytes(self.take()?);
                return self.atom(length.into()).map(complete);
            }
            tag::SMALL_ATOM => {
                let [length] = self.take()?;
                return self.latin1_atom(length.into()).map(complete);
            }
            tag::ATOM => {
                let length = u16::from_be_bytes(self.take()?);
                return self.latin1_atom(length.into()).map(complete);
            }
            tag::NAME => return self.name(stacks).map(complete),
            tag::RESOURCE => {
                let id = u64::from_be_bytes(self.take()?);
                self.charge(words::RESOURCE)?;
                self.builder.resource(id)
            }
            _ => return Err(refuse(tag)),
        };
        made.map(complete).map_err(DecodeError::Refused)
    }

    /// Puts a complete term into what is open, closes what is complete by it. `Some`: all is.
    #[inline]
    fn close(
        &mut self,
        stacks: &mut Decoder<B::Term>,
        depth: usize,
        mut value: B::Term,
        mut nil: bool,
    ) -> Outcome<B, Option<B::Term>> {
        while stacks.frames.len() > depth {
            let Some(frame) = stacks.frames.last_mut() else { break };
            frame.left -= 1;
            if frame.left > 0 {
                stacks.values.push(value);
                return Ok(None);
            }
            let Frame { kind, base, .. } = *frame;
            stacks.frames.pop();
            match kind {
                Kind::List => {
                    let elements = &stacks.values[base..];
                    // The format allows a list of no elements: it is its tail.
                    if !elements.is_empty() {
                        let tail = (!nil).then_some(value);
                        value = self.builder.list(elements, tail).map_err(DecodeError::Refused)?;
                        nil = false;
                    }
                }
                Kind::Tuple => {
                    stacks.values.push(value);
                    value = self
                        .builder
                        .tuple(&stacks.values[base..])
                        .map_err(DecodeError::Refused)?;
                    nil = false;
                }
                Kind::Map => {
                    stacks.values.push(value);
                    let (pairs, _) = stacks.values[base..].as_chunks::<2>();
                    stacks.keys.clear();
                    stacks.keys.extend(pairs.iter().map(|[key, _]| *key));
                    stacks.seconds.clear();
                    stacks.seconds.extend(pairs.iter().map(|[_, value]| *value));
                    value = self.map(&stacks.keys, &stacks.seconds)?;
                    nil = false;
                }
            }
            stacks.values.truncate(base);
        }
        Ok(Some(value))
    }

    #[inline]
    fn take<const N: usize>(&mut self) -> Outcome<B, [u8; N]> {
        self.source.take().ok_or(DecodeError::Truncated)
    }

    #[inline]
    fn length(&mut self) -> Outcome<B, u32> {
        self.take().map(u32::from_be_bytes)
    }

    #[inline]
    fn charge(&mut self, cost: u64) -> Outcome<B, ()> {
        self.words = self
            .words
            .checked_sub(cost)
            .ok_or(DecodeError::Words(self.limits.words))?;
        Ok(())
    }

    /// Opens a container of `parts`. Nothing is reserved for more parts than the remaining bytes can hold.
    #[inline]
    fn push(&mut self, stacks: &mut Decoder<B::Term>, kind: Kind, parts: u64) -> Outcome<B, ()> {
        if stacks.frames.len() >= size(self.limits.depth) {
            return Err(DecodeError::Depth(self.limits.depth));
        }
        self.pending += parts;
        if self.pending > self.source.remaining() as u64 {
            return Err(DecodeError::Truncated);
        }
        stacks.frames.push(Frame {
            kind,
            left: parts,
            base: stacks.values.len(),
        });
        Ok(())
    }

    #[inline]
    fn tuple(&mut self, stacks: &mut Decoder<B::Term>, arity: u32) -> Outcome<B, Option<(B::Term, bool)>> {
        self.charge(words::tuple(size(arity)))?;
        if arity == 0 {
            return self.builder.tuple(&[]).map(complete).map_err(DecodeError::Refused);
        }
        self.push(stacks, Kind::Tuple, arity.into())?;
        if arity > MOST_ELEMENTS {
            return Err(DecodeError::Malformed("a tuple has more elements than the VM allows"));
        }
        Ok(None)
    }

    #[inline]
    fn map(&mut self, keys: &[B::Term], values: &[B::Term]) -> Outcome<B> {
        let map = self.builder.map(keys, values).map_err(DecodeError::Refused)?;
        map.ok_or(DecodeError::DuplicateKey)
    }

    /// A list of bytes as integers.
    fn string(&mut self, stacks: &mut Decoder<B::Term>, length: u16) -> Outcome<B, (B::Term, bool)> {
        self.charge(words::CELL * u64::from(length))?;
        if usize::from(length) > self.source.remaining() {
            return Err(DecodeError::Truncated);
        }
        let base = stacks.values.len();
        for _ in 0..length {
            let [byte] = self.take()?;
            stacks
                .values
                .push(self.builder.integer(byte.into()).map_err(DecodeError::Refused)?);
        }
        let list = match &stacks.values[base..] {
            [] => self.builder.nil(),
            elements => self.builder.list(elements, None),
        };
        stacks.values.truncate(base);
        Ok((list.map_err(DecodeError::Refused)?, length == 0))
    }

    #[inline]
    fn atom(&mut self, length: usize) -> Outcome<B> {
        let mut buffer = [MaybeUninit::<u8>::uninit(); ATOM_BYTES];
        let room = buffer.get_mut(..length).ok_or(DecodeError::Malformed(LONG_ATOM))?;
        let payload = Payload::new(self.source, length).ok_or(DecodeError::Truncated)?;
        let text = str::from_utf8(payload.copy_to(room));
        let text = text.map_err(|_| DecodeError::Malformed("an atom is not UTF-8"))?;
        if length > ATOM_CHARACTERS && text.chars().count() > ATOM_CHARACTERS {
            return Err(DecodeError::Malformed(LONG_ATOM));
        }
        self.builder.atom(text).map_err(DecodeError::Refused)
    }

    fn latin1_atom(&mut self, length: usize) -> Outcome<B> {
        let mut buffer = [MaybeUninit::<u8>::uninit(); ATOM_CHARACTERS];
        let room = buffer.get_mut(..length).ok_or(DecodeError::Malformed(LONG_ATOM))?;
        let payload = Payload::new(self.source, length).ok_or(DecodeError::Truncated)?;
        // Latin-1 is Unicode's first 256 characters.
        let text: String = payload.copy_to(room).iter().map(|byte| char::from(*byte)).collect();
        self.builder.atom(&text).map_err(DecodeError::Refused)
    }

    fn big(&mut self, stacks: &mut Decoder<B::Term>, length: usize, sign: u8) -> Outcome<B> {
        if sign > 1 {
            return Err(DecodeError::Malformed("an integer's sign is neither 0 nor 1"));
        }
        let negative = sign == 1;
        if length > self.source.remaining() {
            return Err(DecodeError::Truncated);
        }
        let mut room = [MaybeUninit::<u8>::uninit(); 8];
        if let Some(room) = room.get_mut(..length) {
            let payload = Payload::new(self.source, length).ok_or(DecodeError::Truncated)?;
            let mut word = [0; 8];
            word[..length].copy_from_slice(payload.copy_to(room));
            let value = u64::from_le_bytes(word);
            // What fits a word costs what the encoder says, however it is spelled.
            self.charge(signed(negative, value).map_or(words::big(8), words::integer))?;
            return self.word(negative, value);
        }
        self.charge(words::big(length))?;
        stacks.bytes.clear();
        Payload::new(self.source, length)
            .ok_or(DecodeError::Truncated)?
            .append_to(&mut stacks.bytes);
        let zeros = stacks.bytes.iter().rev().take_while(|byte| **byte == 0).count();
        let bytes = &stacks.bytes[..stacks.bytes.len() - zeros];
        if bytes.len() > 8 {
            return self.builder.big(negative, bytes).map_err(DecodeError::Refused);
        }
        let mut word = [0; 8];
        word[..bytes.len()].copy_from_slice(bytes);
        self.word(negative, u64::from_le_bytes(word))
    }

    fn word(&mut self, negative: bool, value: u64) -> Outcome<B> {
        let made = match signed(negative, value) {
            Some(value) => self.builder.integer(value),
            None if negative => self.builder.big(true, &value.to_le_bytes()),
            None => self.builder.unsigned(value),
        };
        made.map_err(DecodeError::Refused)
    }

    fn name(&mut self, stacks: &mut Decoder<B::Term>) -> Outcome<B> {
        let [kind] = self.take()?;
        let kind = NameKind::from_byte(kind).ok_or(DecodeError::Malformed("there is no such kind of name"))?;
        let (index, generation) = (self.length()?, self.length()?);
        let length = size(self.length()?);
        if length > 0 && !B::KEYS {
            return Err(DecodeError::Malformed("a name has a key, which only the VM may send"));
        }
        self.charge(words::NAME)?;
        let key = Payload::new(self.source, length).ok_or(DecodeError::Truncated)?;
        stacks.bytes.clear();
        key.append_to(&mut stacks.bytes);
        let name = Name {
            kind,
            index,
            generation,
        };
        self.builder.name(name, &stacks.bytes).map_err(DecodeError::Refused)
    }
}

/// The integer of this sign and magnitude, if it has 64 bits.
fn signed(negative: bool, magnitude: u64) -> Option<i64> {
    if negative {
        0_i64.checked_sub_unsigned(magnitude)
    } else {
        i64::try_from(magnitude).ok()
    }
}

const LONG_ATOM: &str = "an atom has more than 255 characters";

#[inline]
fn complete<T>(term: T) -> Option<(T, bool)> {
    Some((term, false))
}

/// 32 bits fit an address on every machine that runs a BEAM; if not, no payload is so long either.
#[inline]
fn size(length: u32) -> usize {
    usize::try_from(length).unwrap_or(usize::MAX)
}

#[cold]
fn refuse<F>(tag: u8) -> DecodeError<F> {
    match tag {
        tag::REGION | tag::SNAPSHOT | tag::OUT_OF_LINE => DecodeError::Reserved(tag),
        _ if tag::FOREIGN_NAMES.contains(&tag) => DecodeError::ForeignName(tag),
        _ => DecodeError::Tag(tag),
    }
}
