//! A third back end, as plain as can be: for tests, fuzzing and figures, and the shortest example of both traits.

use std::collections::HashSet;
use std::convert::Infallible;

use crate::bytes::{Payload, Source, VecSink};
use crate::encode::EncoderOf;
use crate::limits::Limits;
use crate::term::{Builder, Name, Reader, View};

/// A term of a [`Heap`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Term(usize);

/// A term as a tree of its own.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    Integer(i64),
    Unsigned(u64),
    /// Least significant byte first.
    Big {
        negative: bool,
        magnitude: Vec<u8>,
    },
    Float(f64),
    Atom(String),
    Nil,
    /// The elements (one at least), and the tail of an improper list.
    List(Vec<Value>, Option<Box<Value>>),
    Tuple(Vec<Value>),
    Map(Vec<(Value, Value)>),
    Binary(Vec<u8>),
    Bits {
        bytes: Vec<u8>,
        last: u8,
    },
    Name {
        name: Name,
        key: Vec<u8>,
    },
    Resource(u64),
}

impl From<i64> for Value {
    fn from(value: i64) -> Self {
        Self::Integer(value)
    }
}

impl Value {
    #[must_use]
    pub fn atom(text: &str) -> Self {
        Self::Atom(text.into())
    }

    #[must_use]
    pub fn tuple(elements: impl IntoIterator<Item = Self>) -> Self {
        Self::Tuple(elements.into_iter().collect())
    }

    /// A proper list.
    #[must_use]
    pub fn list(elements: impl IntoIterator<Item = Self>) -> Self {
        let elements: Vec<Self> = elements.into_iter().collect();
        if elements.is_empty() {
            Self::Nil
        } else {
            Self::List(elements, None)
        }
    }

    #[must_use]
    pub fn map(pairs: impl IntoIterator<Item = (Self, Self)>) -> Self {
        Self::Map(pairs.into_iter().collect())
    }
}

#[derive(Debug, Clone)]
enum Node {
    Integer(i64),
    Unsigned(u64),
    Big(bool, Vec<u8>),
    Float(f64),
    Atom(String),
    Nil,
    Cons(Term, Term),
    Tuple(Vec<Term>),
    /// Sorted by the keys' bytes, so that equal maps have equal bytes.
    Map(Vec<(Term, Term)>),
    Binary(Vec<u8>),
    Bits(Vec<u8>, u8),
    Name(Name, Vec<u8>),
    Resource(u64),
}

/// Terms, all of which live as long as it does.
#[derive(Debug, Default)]
pub struct Heap {
    nodes: Vec<Node>,
}

impl Heap {
    #[must_use]
    pub const fn new() -> Self {
        Self { nodes: Vec::new() }
    }

    /// Forgets all terms.
    pub fn clear(&mut self) {
        self.nodes.clear();
    }

    fn push(&mut self, node: Node) -> Term {
        self.nodes.push(node);
        Term(self.nodes.len() - 1)
    }

    /// Makes a term of a tree; recurses as deep as it is. A key that is there twice counts once.
    pub fn add(&mut self, value: Value) -> Term {
        match value {
            Value::Integer(value) => self.push(Node::Integer(value)),
            Value::Unsigned(value) => self.push(Node::Unsigned(value)),
            Value::Big { negative, magnitude } => self.push(Node::Big(negative, magnitude)),
            Value::Float(value) => self.push(Node::Float(value)),
            Value::Atom(text) => self.push(Node::Atom(text)),
            Value::Nil => self.push(Node::Nil),
            Value::List(elements, tail) => {
                let elements: Vec<Term> = elements.into_iter().map(|element| self.add(element)).collect();
                let tail = self.add(tail.map_or(Value::Nil, |tail| *tail));
                elements
                    .into_iter()
                    .rev()
                    .fold(tail, |tail, head| self.cons(head, tail))
            }
            Value::Tuple(elements) => {
                let elements = elements.into_iter().map(|element| self.add(element)).collect();
                self.push(Node::Tuple(elements))
            }
            Value::Map(pairs) => {
                let pairs = pairs
                    .into_iter()
                    .map(|(key, value)| (self.add(key), self.add(value)))
                    .collect();
                let (pairs, _) = self.sorted(pairs);
                self.push(Node::Map(pairs))
            }
            Value::Binary(bytes) => self.push(Node::Binary(bytes)),
            Value::Bits { bytes, last } => self.push(Node::Bits(bytes, last)),
            Value::Name { name, key } => self.push(Node::Name(name, key)),
            Value::Resource(id) => self.push(Node::Resource(id)),
        }
    }

    pub fn cons(&mut self, head: Term, tail: Term) -> Term {
        self.push(Node::Cons(head, tail))
    }

    /// The tree of a term; recurses as deep as it is.
    #[must_use]
    pub fn value(&self, term: Term) -> Value {
        match &self.nodes[term.0] {
            Node::Integer(value) => Value::Integer(*value),
            Node::Unsigned(value) => Value::Unsigned(*value),
            Node::Big(negative, magnitude) => Value::Big {
                negative: *negative,
                magnitude: magnitude.clone(),
            },
            Node::Float(value) => Value::Float(*value),
            Node::Atom(text) => Value::Atom(text.clone()),
            Node::Nil => Value::Nil,
            Node::Cons(..) => {
                let (mut elements, mut rest) = (Vec::new(), term);
                while let Node::Cons(head, tail) = self.nodes[rest.0] {
                    elements.push(self.value(head));
                    rest = tail;
                }
                let tail = match self.value(rest) {
                    Value::Nil => None,
                    tail => Some(Box::new(tail)),
                };
                Value::List(elements, tail)
            }
            Node::Tuple(elements) => Value::Tuple(elements.iter().map(|element| self.value(*element)).collect()),
            Node::Map(pairs) => Value::Map(
                pairs
                    .iter()
                    .map(|(key, value)| (self.value(*key), self.value(*value)))
                    .collect(),
            ),
            Node::Binary(bytes) => Value::Binary(bytes.clone()),
            Node::Bits(bytes, last) => Value::Bits {
                bytes: bytes.clone(),
                last: *last,
            },
            Node::Name(name, key) => Value::Name {
                name: *name,
                key: key.clone(),
            },
            Node::Resource(id) => Value::Resource(*id),
        }
    }

    /// The bytes of a term. Equal terms have equal bytes.
    fn bytes(&mut self, term: Term) -> Vec<u8> {
        let mut bytes = Vec::new();
        let limits = Limits {
            bytes: u64::MAX,
            words: u64::MAX,
            depth: u32::MAX,
        };
        // What cannot be encoded (a float that is not finite) is equal to its like; no decoder makes it.
        let _ = EncoderOf::<Self>::new().encode(self, term, &limits, &mut VecSink::new(&mut bytes, usize::MAX));
        bytes
    }

    /// In order, each key once; and whether each was there once.
    fn sorted(&mut self, pairs: Vec<(Term, Term)>) -> (Vec<(Term, Term)>, bool) {
        let given = pairs.len();
        let mut seen = HashSet::new();
        let mut keyed: Vec<(Vec<u8>, (Term, Term))> = pairs
            .into_iter()
            .map(|pair| (self.bytes(pair.0), pair))
            .filter(|(key, _)| seen.insert(key.clone()))
            .collect();
        keyed.sort_by(|(one, _), (other, _)| one.cmp(other));
        let once = keyed.len() == given;
        (keyed.into_iter().map(|(_, pair)| pair).collect(), once)
    }
}

impl Reader for Heap {
    type Term = Term;
    type Tuple = Term;
    type Pairs = (Term, usize);
    type Refusal = Infallible;

    #[inline]
    fn view(&mut self, term: Term) -> Result<View<'_, Term, Term>, Infallible> {
        Ok(match &self.nodes[term.0] {
            Node::Integer(value) => View::Integer(*value),
            Node::Unsigned(value) => View::Unsigned(*value),
            Node::Big(negative, magnitude) => View::Big {
                negative: *negative,
                magnitude,
            },
            Node::Float(value) => View::Float(*value),
            Node::Atom(text) => View::Atom(text),
            Node::Nil => View::Nil,
            Node::Cons(head, tail) => View::Cons(*head, *tail),
            Node::Tuple(elements) => View::Tuple(term, elements.len()),
            Node::Map(pairs) => View::Map(pairs.len()),
            Node::Binary(bytes) => View::Binary(bytes),
            Node::Bits(bytes, last) => View::Bits { bytes, last: *last },
            Node::Name(name, key) => View::Name { name: *name, key },
            Node::Resource(id) => View::Resource(*id),
        })
    }

    #[inline]
    fn element(&mut self, tuple: Term, index: usize) -> Term {
        match &self.nodes[tuple.0] {
            Node::Tuple(elements) => elements[index],
            _ => tuple,
        }
    }

    fn pairs(&mut self, map: Term) -> Result<(Term, usize), Infallible> {
        Ok((map, 0))
    }

    fn next_pair(&mut self, (map, next): &mut (Term, usize)) -> Option<(Term, Term)> {
        let Node::Map(pairs) = &self.nodes[map.0] else {
            return None;
        };
        let pair = pairs.get(*next).copied();
        *next += 1;
        pair
    }
}

impl Builder for Heap {
    type Term = Term;
    type Refusal = Infallible;
    const KEYS: bool = true;

    #[inline]
    fn integer(&mut self, value: i64) -> Result<Term, Infallible> {
        Ok(self.push(Node::Integer(value)))
    }

    fn unsigned(&mut self, value: u64) -> Result<Term, Infallible> {
        Ok(self.push(Node::Unsigned(value)))
    }

    fn big(&mut self, negative: bool, magnitude: &[u8]) -> Result<Term, Infallible> {
        Ok(self.push(Node::Big(negative, magnitude.into())))
    }

    fn float(&mut self, value: f64) -> Result<Term, Infallible> {
        Ok(self.push(Node::Float(value)))
    }

    fn atom(&mut self, text: &str) -> Result<Term, Infallible> {
        Ok(self.push(Node::Atom(text.into())))
    }

    fn nil(&mut self) -> Result<Term, Infallible> {
        Ok(self.push(Node::Nil))
    }

    fn list(&mut self, elements: &[Term], tail: Option<Term>) -> Result<Term, Infallible> {
        let tail = tail.unwrap_or_else(|| self.push(Node::Nil));
        Ok(elements.iter().rev().fold(tail, |tail, head| self.cons(*head, tail)))
    }

    fn tuple(&mut self, elements: &[Term]) -> Result<Term, Infallible> {
        Ok(self.push(Node::Tuple(elements.into())))
    }

    fn map(&mut self, keys: &[Term], values: &[Term]) -> Result<Option<Term>, Infallible> {
        let (pairs, once) = self.sorted(keys.iter().copied().zip(values.iter().copied()).collect());
        Ok(once.then(|| self.push(Node::Map(pairs))))
    }

    fn binary<S: Source>(&mut self, payload: Payload<'_, S>) -> Result<Term, Infallible> {
        let mut bytes = Vec::new();
        payload.append_to(&mut bytes);
        Ok(self.push(Node::Binary(bytes)))
    }

    fn bits<S: Source>(&mut self, payload: Payload<'_, S>, last: u8) -> Result<Term, Infallible> {
        let mut bytes = Vec::new();
        payload.append_to(&mut bytes);
        Ok(self.push(Node::Bits(bytes, last)))
    }

    fn name(&mut self, name: Name, key: &[u8]) -> Result<Term, Infallible> {
        Ok(self.push(Node::Name(name, key.into())))
    }

    fn resource(&mut self, id: u64) -> Result<Term, Infallible> {
        Ok(self.push(Node::Resource(id)))
    }
}
