//! `enif_term_to_binary` and `enif_binary_to_term`: the wire's codec and the version byte.
//!
//! Names and resources have no bytes in a worker: a term with one in it is not implemented, and says so. Nor are
//! compressed terms.

use super::atom;
use super::env::Env;
use super::map::Pairs;
use super::term::Term;
use super::wire::{Answers, Arguments};
use snakepit_wire::{Decoder, EncodeError, EncoderOf, Limits, Reader, SliceSource, VecSink, View};

const VERSION: u8 = 131;
const ALL: Limits = Limits {
    bytes: u64::MAX,
    words: u64::MAX,
    depth: u32::MAX,
};

const NAMES_OUT: &str = "enif_term_to_binary of a pid, port, reference, fun or resource";
const NAMES_IN: &str = "enif_binary_to_term of a pid, port, reference or fun";
const COMPRESSED: &str = "enif_binary_to_term of a compressed term";

/// Why bytes are no term.
#[derive(Debug, PartialEq, Eq)]
pub enum Wrong {
    Malformed,
    Missing(&'static str),
}

/// [`Answers`] without names.
#[derive(Debug, Default)]
struct Plain(Answers);

impl Reader for Plain {
    type Term = Term;
    type Tuple = *const Term;
    type Pairs = Pairs;
    type Refusal = &'static str;

    fn view(&mut self, term: Term) -> Result<View<'_, Term, *const Term>, &'static str> {
        if term.as_name().is_some() || term.as_resource().is_some() {
            return Err(NAMES_OUT);
        }
        self.0.view(term).map_err(|_| "enif_term_to_binary of what is no term")
    }

    fn element(&mut self, tuple: *const Term, index: usize) -> Term {
        self.0.element(tuple, index)
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
    match EncoderOf::<Plain>::new().encode(&mut Plain::default(), term, &ALL, &mut sink) {
        Ok(()) => Ok(bytes),
        Err(EncodeError::Refused(missing)) => Err(missing),
        Err(_) => Err("enif_term_to_binary of a term of this size"),
    }
}

/// The term at the beginning of `bytes`, and how many of them it took.
pub fn decode(env: &mut Env, bytes: &[u8], safe: bool) -> Result<(Term, usize), Wrong> {
    let Some((&VERSION, body)) = bytes.split_first() else {
        return Err(Wrong::Malformed);
    };
    let length = measure(body, safe)?;
    let decoded = Decoder::new().decode(&mut SliceSource::new(&body[..length]), &ALL, &mut Arguments(env));
    decoded.map(|term| (term, length + 1)).map_err(|_| Wrong::Malformed)
}

/// How many bytes the first term takes. With `safe`, all its atoms are there already.
fn measure(bytes: &[u8], safe: bool) -> Result<usize, Wrong> {
    let mut rest = bytes;
    let mut pending = 1_u64;
    while pending > 0 {
        pending -= 1;
        let tag = number(&mut rest, 1)?;
        let skipped = match tag {
            97 => 1,
            98 => 4,
            70 => 8,
            106 => 0,
            110 => number(&mut rest, 1)? + 1,
            111 => number(&mut rest, 4)? + 1,
            109 => number(&mut rest, 4)?,
            77 => number(&mut rest, 4)? + 1,
            107 => number(&mut rest, 2)?,
            100 | 118 => known(rest, number(&mut { rest }, 2)?, 2, tag == 100, safe)?,
            115 | 119 => known(rest, number(&mut { rest }, 1)?, 1, tag == 115, safe)?,
            104 => parts(&mut pending, number(&mut rest, 1)?),
            105 => parts(&mut pending, number(&mut rest, 4)?),
            108 => parts(&mut pending, number(&mut rest, 4)? + 1),
            116 => parts(&mut pending, number(&mut rest, 4)? * 2),
            80 => return Err(Wrong::Missing(COMPRESSED)),
            88..=90 | 101..=103 | 112..=114 | 117 | 120 => return Err(Wrong::Missing(NAMES_IN)),
            _ => return Err(Wrong::Malformed),
        };
        let skipped = usize::try_from(skipped).map_err(|_| Wrong::Malformed)?;
        rest = rest.get(skipped..).ok_or(Wrong::Malformed)?;
    }
    Ok(bytes.len() - rest.len())
}

fn parts(pending: &mut u64, count: u64) -> u64 {
    *pending += count;
    0
}

fn number(rest: &mut &[u8], bytes: usize) -> Result<u64, Wrong> {
    let (taken, left) = rest.split_at_checked(bytes).ok_or(Wrong::Malformed)?;
    *rest = left;
    Ok(taken.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)))
}

/// The bytes of an atom with its length in front.
fn known(rest: &[u8], length: u64, head: usize, latin1: bool, safe: bool) -> Result<u64, Wrong> {
    let all = head as u64 + length;
    let text = rest.get(head..all as usize).ok_or(Wrong::Malformed)?;
    let there = || {
        let text = if latin1 {
            atom::from_latin1(text)
        } else {
            std::str::from_utf8(text).ok()?.into()
        };
        atom::existing(&text)
    };
    if safe && there().is_none() {
        Err(Wrong::Malformed)
    } else {
        Ok(all)
    }
}
