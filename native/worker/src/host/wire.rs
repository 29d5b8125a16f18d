//! The worker's terms as a back end of the codec.

use super::atom;
use super::env::Env;
use super::map::{self, Pairs};
use super::name;
use super::resource;
use super::term::{Cons, Shape, Term};
use snakepit_wire::{Builder, Name, NameKind, Payload, Reader, Source, View};
use std::mem::MaybeUninit;
use thiserror::Error;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Refusal {
    #[error("an atom has more than 255 characters, or there are too many")]
    Atom,
    #[error("there is no memory for a binary of {0} bytes")]
    Memory(usize),
    #[error("the resource {0} is not one of this worker")]
    Resource(u64),
    #[error("the index {0} of a pid or port is out of range")]
    Index(u32),
    #[error("the library gave a word that is no term")]
    Invalid,
}

/// Makes arguments in an env.
#[derive(Debug)]
pub struct Arguments<'a>(pub &'a mut Env);

impl Arguments<'_> {
    fn bytes<S: Source>(&mut self, payload: Payload<'_, S>, last: u8) -> Result<Term, Refusal> {
        let length = payload.length();
        let (term, data) = self.0.new_binary(length, last);
        if data.is_null() {
            return Err(Refusal::Memory(length));
        }
        // SAFETY: `new_binary` gave `length` bytes that nobody has seen.
        payload.copy_to(unsafe { std::slice::from_raw_parts_mut(data.cast::<MaybeUninit<u8>>(), length) });
        Ok(term)
    }
}

impl Builder for Arguments<'_> {
    type Term = Term;
    type Refusal = Refusal;

    const KEYS: bool = true;

    #[inline]
    fn integer(&mut self, value: i64) -> Result<Term, Refusal> {
        Ok(self.0.integer(value))
    }

    #[inline]
    fn unsigned(&mut self, value: u64) -> Result<Term, Refusal> {
        Ok(self.0.unsigned(value))
    }

    fn big(&mut self, negative: bool, magnitude: &[u8]) -> Result<Term, Refusal> {
        let limb = |bytes: &[u8]| bytes.iter().rev().fold(0, |limb, byte| limb << 8 | u64::from(*byte));
        let limbs: Vec<u64> = magnitude.chunks(8).map(limb).collect();
        Ok(self.0.big(negative, &limbs))
    }

    #[inline]
    fn float(&mut self, value: f64) -> Result<Term, Refusal> {
        Ok(self.0.float(value))
    }

    #[inline]
    fn atom(&mut self, text: &str) -> Result<Term, Refusal> {
        atom::make(text).ok_or(Refusal::Atom)
    }

    #[inline]
    fn nil(&mut self) -> Result<Term, Refusal> {
        Ok(Term::NIL)
    }

    #[inline]
    fn list(&mut self, elements: &[Term], tail: Option<Term>) -> Result<Term, Refusal> {
        Ok(self.0.list(elements, tail.unwrap_or(Term::NIL)))
    }

    #[inline]
    fn tuple(&mut self, elements: &[Term]) -> Result<Term, Refusal> {
        Ok(self.0.tuple(elements))
    }

    fn map(&mut self, keys: &[Term], values: &[Term]) -> Result<Option<Term>, Refusal> {
        Ok(self.0.map(keys, values))
    }

    #[inline]
    fn binary<S: Source>(&mut self, payload: Payload<'_, S>) -> Result<Term, Refusal> {
        self.bytes(payload, 0)
    }

    fn bits<S: Source>(&mut self, payload: Payload<'_, S>, last: u8) -> Result<Term, Refusal> {
        self.bytes(payload, last)
    }

    fn name(&mut self, name: Name, key: &[u8]) -> Result<Term, Refusal> {
        if matches!(name.kind, NameKind::Reference | NameKind::Fun) {
            return Ok(self.0.handle(name, key));
        }
        let term = Term::local(name).ok_or(Refusal::Index(name.index))?;
        name::learn(name, key);
        Ok(term)
    }

    fn resource(&mut self, id: u64) -> Result<Term, Refusal> {
        let object = resource::receive(id).ok_or(Refusal::Resource(id))?;
        Ok(self.0.object(object))
    }
}

/// Looks at an answer. Keeps which resources it has sent, so that an answer that is not sent after all can be undone.
#[derive(Debug, Default)]
pub struct Answers {
    sent: Vec<u64>,
    magnitude: Vec<u8>,
}

impl Answers {
    /// The VM will see what was encoded.
    pub fn commit(&mut self) {
        self.sent.clear();
    }

    /// The VM will not see it.
    pub fn undo(&mut self) {
        resource::dropped(&self.sent);
        self.sent.clear();
    }
}

impl Reader for Answers {
    type Term = Term;
    type Tuple = *const Term;
    type Pairs = Pairs;
    type Refusal = Refusal;

    #[inline]
    fn view(&mut self, term: Term) -> Result<View<'_, Term, *const Term>, Refusal> {
        Ok(match term.shape() {
            Shape::Small(value) => View::Integer(value),
            Shape::Atom(number) => View::Atom(atom::text(number)),
            Shape::Nil => View::Nil,
            Shape::Cons(head, tail) => View::Cons(head, tail),
            Shape::Tuple(elements) => View::Tuple(elements.as_ptr(), elements.len()),
            Shape::Float(value) => View::Float(value),
            Shape::Bits(bits) if bits.last == 0 => View::Binary(bits.bytes()),
            Shape::Bits(bits) => View::Bits {
                bytes: bits.bytes(),
                last: bits.last as u8,
            },
            Shape::Name(name) => View::Name { name, key: &[] },
            Shape::Map => View::Map(map::size(term)),
            Shape::Big(big) => match *big.limbs {
                [limb] if !big.negative => match i64::try_from(limb) {
                    Ok(value) => View::Integer(value),
                    Err(_) => View::Unsigned(limb),
                },
                [limb] if limb <= 1 << 63 => View::Integer((limb as i64).wrapping_neg()),
                _ => {
                    self.magnitude.clear();
                    self.magnitude
                        .extend(big.limbs.iter().flat_map(|limb| limb.to_le_bytes()));
                    View::Big {
                        negative: big.negative,
                        magnitude: &self.magnitude,
                    }
                }
            },
            Shape::Resource(object) => {
                let id = resource::send(object);
                self.sent.push(id);
                View::Resource(id)
            }
            Shape::Invalid => return Err(Refusal::Invalid),
        })
    }

    #[inline]
    fn cell(&mut self, term: Term) -> Option<(Term, Term)> {
        term.as_cons().map(|cell: &Cons| (cell.head, cell.tail))
    }

    #[inline]
    fn element(&mut self, tuple: *const Term, index: usize) -> Term {
        // SAFETY: `view` gave the address of a tuple's elements, and `index` is below their number.
        unsafe { *tuple.add(index) }
    }

    fn pairs(&mut self, map: Term) -> Result<Pairs, Refusal> {
        Ok(map::pairs(map))
    }

    #[inline]
    fn next_pair(&mut self, pairs: &mut Pairs) -> Option<(Term, Term)> {
        pairs.next()
    }
}
