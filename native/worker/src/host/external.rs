//! `enif_term_to_binary` and `enif_binary_to_term`: the wire's codec and the version byte.
//!
//! Pids, ports, references and funs stand in the wire as places in the VM's table, with their external format as key. So a
//! term with names is encoded with their keys, which then take the places' place; and of bytes with names only those are a
//! term whose names this worker knows already: it can make none. A resource has no bytes here.

use super::atom;
use super::env::Env;
use super::known;
use super::map::Pairs;
use super::name;
use super::term::Term;
use super::vm;
use super::wire::{Answers, Arguments};
use super::zlib;
use snakepit_wire::{Decoder, EncodeError, EncoderOf, Limits, NameKind, Reader, SliceSource, VecSink, View};
use std::borrow::Cow;

const VERSION: u8 = 131;
const COMPRESSED: u8 = 80;
const SMALL_INTEGER: u8 = 97;
const ATOM: u8 = 100;
const NIL: u8 = 106;
const STRING: u8 = 107;
const LIST: u8 = 108;
const ATOM_UTF8: u8 = 118;
const SMALL_ATOM_UTF8: u8 = 119;
/// The wire's own tag of a name.
const NAME: u8 = 1;
const ALL: Limits = Limits {
    bytes: u64::MAX,
    words: u64::MAX,
    depth: u32::MAX,
};

const RESOURCE_OUT: &str = "enif_term_to_binary of a resource";
const NAME_OUT: &str = "enif_term_to_binary of a pid or port that the VM does not know any more";
const NAME_IN: &str = "enif_binary_to_term of a pid, port, reference or fun that this worker was not given";

/// Why bytes are no term.
#[derive(Debug, PartialEq, Eq)]
pub enum Wrong {
    Malformed,
    Missing(&'static str),
}

/// [`Answers`] with the keys of names.
#[derive(Debug, Default)]
struct Keyed {
    answers: Answers,
    key: Box<[u8]>,
    names: bool,
}

impl Reader for Keyed {
    type Term = Term;
    type Tuple = *const Term;
    type Pairs = Pairs;
    type Refusal = &'static str;

    fn view(&mut self, term: Term) -> Result<View<'_, Term, *const Term>, &'static str> {
        if term.as_resource().is_some() {
            return Err(RESOURCE_OUT);
        }
        if let Some(name) = term.as_name() {
            self.names = true;
            let key = match term.as_handle() {
                Some(handle) => handle.key(),
                None => {
                    self.key = name::key(name).ok_or(NAME_OUT)?;
                    &self.key
                }
            };
            return if key.is_empty() {
                Err(NAME_OUT)
            } else {
                Ok(View::Name { name, key })
            };
        }
        self.answers
            .view(term)
            .map_err(|_| "enif_term_to_binary of what is no term")
    }

    fn element(&mut self, tuple: *const Term, index: usize) -> Term {
        self.answers.element(tuple, index)
    }

    fn pairs(&mut self, map: Term) -> Result<Pairs, &'static str> {
        Ok(super::map::pairs(map))
    }

    fn next_pair(&mut self, pairs: &mut Pairs) -> Option<(Term, Term)> {
        pairs.next()
    }
}

/// The term's bytes, or what is missing.
pub fn encode(term: Term) -> Result<Vec<u8>, &'static str> {
    let mut bytes = vec![VERSION];
    let mut sink = VecSink::new(&mut bytes, usize::MAX);
    let mut keyed = Keyed::default();
    match EncoderOf::<Keyed>::new().encode(&mut keyed, term, &ALL, &mut sink) {
        Ok(()) => {}
        Err(EncodeError::Refused(missing)) => return Err(missing),
        Err(_) => return Err("enif_term_to_binary of a term of this size"),
    }
    // Written as the wire has it, which writes no strings, and all atoms as UTF-8.
    let mut plain = vec![VERSION];
    let mut keys = |_: NameTag, bytes: &[u8], out: &mut Vec<u8>| {
        // kind, index, generation, length
        out.extend_from_slice(bytes.get(14..).unwrap_or(&[]));
        true
    };
    // What the encoder has just written can be read.
    let mut walk = Walk::new(&bytes[1..], false, true);
    walk.latin1 = !vm::writes_utf8();
    let _ = walk.rewrite(&mut plain, &mut keys);
    Ok(if walk.other { plain } else { bytes })
}

/// The term at the beginning of `bytes`, and how many of them it took.
pub fn decode(env: &mut Env, bytes: &[u8], safe: bool) -> Result<(Term, usize), Wrong> {
    let Some((&VERSION, body)) = bytes.split_first() else {
        return Err(Wrong::Malformed);
    };
    let (body, compressed) = match body.split_first() {
        Some((&COMPRESSED, rest)) => {
            let (size, data) = rest.split_first_chunk().ok_or(Wrong::Malformed)?;
            let size = u32::from_be_bytes(*size) as usize;
            let (inflated, taken) = zlib::inflated(data, size).ok_or(Wrong::Malformed)?;
            (Cow::Owned(inflated), Some(taken + 5))
        }
        _ => (Cow::Borrowed(body), None),
    };
    let (term, length) = plain(env, &body, safe)?;
    match compressed {
        // All that was compressed is the term.
        Some(_) if length != body.len() => Err(Wrong::Malformed),
        Some(taken) => Ok((term, taken + 1)),
        None => Ok((term, length + 1)),
    }
}

/// The term at the beginning of bytes that have no version in front, and how many of them it took.
pub fn decode_plain(env: &mut Env, bytes: &[u8]) -> Result<(Term, usize), Wrong> {
    plain(env, bytes, false)
}

fn plain(env: &mut Env, body: &[u8], safe: bool) -> Result<(Term, usize), Wrong> {
    let mut walk = Walk::new(body, safe, false);
    let mut wire = Vec::new();
    let mut places = |tag: NameTag, bytes: &[u8], out: &mut Vec<u8>| {
        let found = known::name(env, tag.kind(), bytes);
        if let Some(name) = found {
            out.extend([NAME, name.kind as u8]);
            out.extend(name.index.to_be_bytes());
            out.extend(name.generation.to_be_bytes());
            out.extend((bytes.len() as u32).to_be_bytes());
            out.extend_from_slice(bytes);
        }
        found.is_some()
    };
    let length = walk.rewrite(&mut wire, &mut places)?;
    let term = if walk.other { &wire } else { &body[..length] };
    let decoded = Decoder::new().decode(&mut SliceSource::new(term), &ALL, &mut Arguments(env));
    decoded.map(|term| (term, length)).map_err(|_| Wrong::Malformed)
}

/// The text in Latin-1 of an atom that is written in UTF-8, if it can be.
fn latin1(bytes: &[u8]) -> Option<Vec<u8>> {
    let text = match bytes {
        [SMALL_ATOM_UTF8, _, text @ ..] | [ATOM_UTF8, _, _, text @ ..] => std::str::from_utf8(text).ok()?,
        _ => return None,
    };
    text.chars().map(|character| u8::try_from(character).ok()).collect()
}

/// What a name turns out to be from its tag.
#[derive(Debug, Clone, Copy)]
struct NameTag(u8);

impl NameTag {
    const fn kind(self) -> NameKind {
        match self.0 {
            88 | 103 => NameKind::Pid,
            89 | 102 | 120 => NameKind::Port,
            90 | 101 | 114 => NameKind::Reference,
            _ => NameKind::Fun,
        }
    }
}

/// A walk over the bytes of a term, tag by tag.
struct Walk<'a> {
    rest: &'a [u8],
    all: usize,
    /// All its atoms must be there already, and no funs.
    safe: bool,
    /// The wire's names, not Erlang's.
    wire: bool,
    /// Atoms of Latin-1 become such.
    latin1: bool,
    /// Something is written in another way.
    other: bool,
}

/// Writes for a name (tag included) what stands for it; false if nothing does.
type Replace<'a> = dyn FnMut(NameTag, &[u8], &mut Vec<u8>) -> bool + 'a;

impl<'a> Walk<'a> {
    const fn new(bytes: &'a [u8], safe: bool, wire: bool) -> Self {
        Self {
            rest: bytes,
            all: bytes.len(),
            safe,
            wire,
            latin1: false,
            other: false,
        }
    }

    /// Goes over one term and says how many bytes it takes. All of it is written to `out` if something in it is `other`.
    fn rewrite(&mut self, out: &mut Vec<u8>, replace: &mut Replace<'_>) -> Result<usize, Wrong> {
        let start = self.rest;
        // Up to here it is in `out`, or needs not be.
        let mut written = 0;
        let mut pending = 1_u64;
        while pending > 0 {
            pending -= 1;
            let from = start.len() - self.rest.len();
            let tag = self.number(1)? as u8;
            if self.wire
                && tag == LIST
                && let Some(bytes) = self.string()
            {
                self.other = true;
                out.extend_from_slice(&start[written..from]);
                out.push(STRING);
                out.extend((bytes.len() as u16).to_be_bytes());
                out.extend(bytes);
                written = start.len() - self.rest.len();
                continue;
            }
            if !self.name(tag)? {
                let skipped = self.length(tag, &mut pending)?;
                self.skip(skipped)?;
                let to = start.len() - self.rest.len();
                if self.latin1
                    && let Some(text) = latin1(&start[from..to])
                {
                    self.other = true;
                    out.extend_from_slice(&start[written..from]);
                    out.push(ATOM);
                    out.extend((text.len() as u16).to_be_bytes());
                    out.extend(text);
                    written = to;
                }
                continue;
            }
            let to = start.len() - self.rest.len();
            self.other = true;
            out.extend_from_slice(&start[written..from]);
            if !replace(NameTag(tag), &start[from..to], out) {
                return Err(Wrong::Missing(NAME_IN));
            }
            written = to;
        }
        let length = self.all - self.rest.len();
        if self.other {
            out.extend_from_slice(&start[written..length]);
        }
        Ok(length)
    }

    /// The bytes of a proper list (behind its tag) of up to 65,535 bytes, which the VM writes as a string; then it is skipped.
    fn string(&mut self) -> Option<Vec<u8>> {
        let (count, elements) = self.rest.split_first_chunk()?;
        let count = usize::from(u16::try_from(u32::from_be_bytes(*count)).ok()?);
        let (elements, rest) = elements.split_at_checked(2 * count)?;
        let byte = |element: &[u8]| match element {
            [SMALL_INTEGER, byte] => Some(*byte),
            _ => None,
        };
        let bytes = elements.chunks(2).map(byte).collect::<Option<Vec<u8>>>()?;
        let (&NIL, rest) = rest.split_first()? else {
            return None;
        };
        self.rest = rest;
        Some(bytes)
    }

    /// How many bytes follow the tag and its lengths.
    fn length(&mut self, tag: u8, pending: &mut u64) -> Result<u64, Wrong> {
        let mut parts = |count| {
            *pending += count;
            0
        };
        Ok(match tag {
            97 => 1,
            98 => 4,
            70 => 8,
            106 => 0,
            110 => self.number(1)? + 1,
            111 => self.number(4)? + 1,
            109 => self.number(4)?,
            77 => self.number(4)? + 1,
            107 => self.number(2)?,
            100 | 115 | 118 | 119 => {
                self.atom(tag)?;
                0
            }
            104 => parts(self.number(1)?),
            105 => parts(self.number(4)?),
            108 => parts(self.number(4)? + 1),
            116 => parts(self.number(4)? * 2),
            _ => return Err(Wrong::Malformed),
        })
    }

    /// Whether the tag is a name's; then all of it is skipped.
    fn name(&mut self, tag: u8) -> Result<bool, Wrong> {
        if self.wire {
            if tag == NAME {
                self.skip(9)?;
                let length = self.number(4)?;
                self.skip(length)?;
            }
            return Ok(tag == NAME);
        }
        let behind_node = match tag {
            88 => 12,
            103 => 9,
            89 => 8,
            102 | 101 => 5,
            120 => 12,
            90 | 114 => {
                let words = self.number(2)?;
                4 * words + if tag == 90 { 4 } else { 1 }
            }
            112 => {
                // Counts itself.
                let length = self.number(4)?.checked_sub(4).ok_or(Wrong::Malformed)?;
                self.skip(length)?;
                return self.fun();
            }
            113 => {
                for _ in 0..2 {
                    let tag = self.number(1)? as u8;
                    self.atom(tag)?;
                }
                // An arity: a small integer.
                self.skip(2)?;
                return self.fun();
            }
            _ => return Ok(false),
        };
        let tag = self.number(1)? as u8;
        // The name of a node makes no atom here: what has it is found as a whole, or not at all.
        let safe = std::mem::replace(&mut self.safe, false);
        self.atom(tag)?;
        self.safe = safe;
        self.skip(behind_node)?;
        Ok(true)
    }

    const fn fun(&self) -> Result<bool, Wrong> {
        if self.safe { Err(Wrong::Malformed) } else { Ok(true) }
    }

    /// An atom's length and text.
    fn atom(&mut self, tag: u8) -> Result<(), Wrong> {
        let (length, latin1) = match tag {
            100 | 115 => (self.number(if tag == 100 { 2 } else { 1 })?, true),
            118 | 119 => (self.number(if tag == 118 { 2 } else { 1 })?, false),
            _ => return Err(Wrong::Malformed),
        };
        let text = self.skip(length)?;
        let there = || {
            let text = if latin1 {
                atom::from_latin1(text)
            } else {
                std::str::from_utf8(text).ok()?.into()
            };
            atom::existing_in_vm(&text)
        };
        if self.safe && there().is_none() {
            return Err(Wrong::Malformed);
        }
        Ok(())
    }

    fn skip(&mut self, bytes: u64) -> Result<&'a [u8], Wrong> {
        let bytes = usize::try_from(bytes).map_err(|_| Wrong::Malformed)?;
        let (taken, rest) = self.rest.split_at_checked(bytes).ok_or(Wrong::Malformed)?;
        self.rest = rest;
        Ok(taken)
    }

    fn number(&mut self, bytes: u64) -> Result<u64, Wrong> {
        let taken = self.skip(bytes)?;
        Ok(taken.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }
}
