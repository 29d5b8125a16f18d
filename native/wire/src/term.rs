//! The two ends of the codec: something that looks at terms, and something that makes them.

use std::fmt::{Debug, Display};

use crate::bytes::{Payload, Source};

/// What a name in the VM's table stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum NameKind {
    Pid = 0,
    Port = 1,
    Reference = 2,
    Fun = 3,
}

impl NameKind {
    #[inline]
    #[must_use]
    pub const fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            0 => Some(Self::Pid),
            1 => Some(Self::Port),
            2 => Some(Self::Reference),
            3 => Some(Self::Fun),
            _ => None,
        }
    }
}

/// A pid, port, reference or fun, by its place in the VM's table for one worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Name {
    pub kind: NameKind,
    pub index: u32,
    pub generation: u32,
}

/// What a [`Reader`] sees at a term.
#[derive(Debug, Clone, Copy)]
pub enum View<'a, Term, Tuple> {
    Integer(i64),
    /// An integer above `i64::MAX`.
    Unsigned(u64),
    /// Any other integer: its magnitude, least significant byte first. Leading zeros do no harm.
    Big {
        negative: bool,
        magnitude: &'a [u8],
    },
    Float(f64),
    Atom(&'a str),
    Nil,
    /// Head and tail.
    Cons(Term, Term),
    /// The tuple, to be asked for its elements, and their number.
    Tuple(Tuple, usize),
    /// The number of pairs.
    Map(usize),
    Binary(&'a [u8]),
    /// `last` (1 to 7) bits of the last byte belong to the bit string, the upper ones.
    Bits {
        bytes: &'a [u8],
        last: u8,
    },
    /// `key` is the term's own external format, by which the worker orders, hashes and prints it; empty when the
    /// worker sends.
    Name {
        name: Name,
        key: &'a [u8],
    },
    Resource(u64),
}

/// Looks at terms. What a [`View`] borrows is read before the reader is asked again.
pub trait Reader {
    type Term: Copy;
    /// A tuple that [`Reader::view`] has seen; often the address of its elements.
    type Tuple: Copy;
    /// A walk through a map. Dropped when it is over or given up.
    type Pairs;
    /// Why this reader will not have a term sent.
    type Refusal: Debug + Display;

    fn view(&mut self, term: Self::Term) -> Result<View<'_, Self::Term, Self::Tuple>, Self::Refusal>;

    /// Head and tail, if `term` is a list cell. Asked once for each cell, so worth a shorter way than [`Reader::view`].
    #[inline]
    fn cell(&mut self, term: Self::Term) -> Option<(Self::Term, Self::Term)> {
        match self.view(term) {
            Ok(View::Cons(head, tail)) => Some((head, tail)),
            _ => None,
        }
    }

    /// `index` is below the number that [`Reader::view`] told.
    fn element(&mut self, tuple: Self::Tuple, index: usize) -> Self::Term;

    fn pairs(&mut self, map: Self::Term) -> Result<Self::Pairs, Self::Refusal>;

    fn next_pair(&mut self, pairs: &mut Self::Pairs) -> Option<(Self::Term, Self::Term)>;
}

/// Makes terms. Terms come bottom-up: parts first, then what holds them.
pub trait Builder {
    type Term: Copy;
    /// Why this builder will not make a term: no such name, a stale resource, an atom over budget, no memory.
    type Refusal: Debug + Display;

    /// Whether names come with keys: the worker's builder says yes, the VM's no, and then one is malformed.
    const KEYS: bool;

    fn integer(&mut self, value: i64) -> Result<Self::Term, Self::Refusal>;

    /// `value` is above `i64::MAX`.
    fn unsigned(&mut self, value: u64) -> Result<Self::Term, Self::Refusal>;

    /// `magnitude` is least significant byte first, has no leading zeros, and fits neither [`Builder::integer`] nor
    /// [`Builder::unsigned`].
    fn big(&mut self, negative: bool, magnitude: &[u8]) -> Result<Self::Term, Self::Refusal>;

    /// `value` is finite.
    fn float(&mut self, value: f64) -> Result<Self::Term, Self::Refusal>;

    /// `text` has at most 255 characters.
    fn atom(&mut self, text: &str) -> Result<Self::Term, Self::Refusal>;

    fn nil(&mut self) -> Result<Self::Term, Self::Refusal>;

    /// `elements` is not empty; no `tail` is a proper list.
    fn list(&mut self, elements: &[Self::Term], tail: Option<Self::Term>) -> Result<Self::Term, Self::Refusal>;

    fn tuple(&mut self, elements: &[Self::Term]) -> Result<Self::Term, Self::Refusal>;

    /// Both are equally long. `None`: a key is there twice.
    fn map(&mut self, keys: &[Self::Term], values: &[Self::Term]) -> Result<Option<Self::Term>, Self::Refusal>;

    /// Takes `payload` whole, once.
    fn binary<S: Source>(&mut self, payload: Payload<'_, S>) -> Result<Self::Term, Self::Refusal>;

    /// `last` (1 to 7) bits of the payload's last byte count, the upper ones; the others arrive as zeros.
    fn bits<S: Source>(&mut self, payload: Payload<'_, S>, last: u8) -> Result<Self::Term, Self::Refusal>;

    fn name(&mut self, name: Name, key: &[u8]) -> Result<Self::Term, Self::Refusal>;

    fn resource(&mut self, id: u64) -> Result<Self::Term, Self::Refusal>;
}
