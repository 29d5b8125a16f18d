//! `erlang:phash2/1`: the same number for the same term in every VM, and so here. (Salts do nothing in the VM either.)
//!
//! Bob Jenkins' hash of 1996, as the VM feeds it (`make_hash2` of OTP's utils.c): the value so far goes into the next step.

use super::atom;
use super::env::Env;
use super::external;
use super::fun::Fun;
use super::map;
use super::name::{self, identity};
use super::term::{Bits, Shape, Term};
use snakepit_wire::NameKind;

const GOLDEN: u32 = 0x9E37_79B9;

/// A constant of each kind of term: a multiple of the golden ratio.
const fn constant(factor: u32) -> u32 {
    GOLDEN.wrapping_mul(factor)
}

const NIL: u32 = constant(2);
const ATOM: u32 = constant(3);
const BYTES: u32 = constant(4);
const PID: u32 = constant(5);
const PORT: u32 = constant(6);
const REFERENCE: u32 = constant(7);
const TUPLE: u32 = constant(9);
const NEGATIVE: u32 = constant(10);
const POSITIVE: u32 = constant(11);
const FLOAT: u32 = constant(12);
const BINARY: u32 = constant(13);
const FUNCTION: u32 = constant(14);
const LAST_BITS: u32 = constant(15);
const MAP: u32 = constant(16);
const PAIRS: u32 = constant(19);

/// The hash of an empty list that nothing goes before.
const NIL_ALONE: u32 = 3_468_870_702;

#[allow(clippy::many_single_char_names, reason = "Jenkins' names")]
const fn mix(mut a: u32, mut b: u32, mut c: u32) -> [u32; 3] {
    a = a.wrapping_sub(b).wrapping_sub(c) ^ (c >> 13);
    b = b.wrapping_sub(c).wrapping_sub(a) ^ (a << 8);
    c = c.wrapping_sub(a).wrapping_sub(b) ^ (b >> 13);
    a = a.wrapping_sub(b).wrapping_sub(c) ^ (c >> 12);
    b = b.wrapping_sub(c).wrapping_sub(a) ^ (a << 16);
    c = c.wrapping_sub(a).wrapping_sub(b) ^ (b >> 5);
    a = a.wrapping_sub(b).wrapping_sub(c) ^ (c >> 3);
    b = b.wrapping_sub(c).wrapping_sub(a) ^ (a << 10);
    c = c.wrapping_sub(a).wrapping_sub(b) ^ (b >> 15);
    [a, b, c]
}

const fn two(hash: u32, first: u32, second: u32, constant: u32) -> u32 {
    mix(constant.wrapping_add(first), constant.wrapping_add(second), hash)[2]
}

const fn one(hash: u32, value: u32, constant: u32) -> u32 {
    two(hash, value, 0, constant)
}

const fn halves(hash: u32, value: u64, constant: u32) -> u32 {
    two(hash, value as u32, (value >> 32) as u32, constant)
}

enum Step {
    Term(Term),
    /// The pair before it has its hash.
    Pair,
    /// All pairs have theirs: the hash and the pairs' sum of what goes before the map.
    MapEnd(u32, u32),
}

/// The hash; `None` for a term with a resource in it, or a name whose key is not known or has names that are not.
pub fn of(term: Term) -> Option<u32> {
    let mut steps = vec![Step::Term(term)];
    let (mut hash, mut pairs) = (0, 0);
    // Where the terms are that funs close over.
    let mut scratch = Vec::new();
    while let Some(step) = steps.pop() {
        match step {
            Step::Pair => {
                pairs ^= hash;
                hash = 0;
            }
            Step::MapEnd(before, pairs_before) => {
                hash = one(before, pairs, PAIRS);
                pairs = pairs_before;
            }
            Step::Term(term) => hash = enter(term, hash, &mut pairs, &mut steps, &mut scratch)?,
        }
    }
    Some(hash & ((1 << 27) - 1))
}

/// The hash with what the term is by itself; its parts become steps.
fn enter(term: Term, hash: u32, pairs: &mut u32, steps: &mut Vec<Step>, scratch: &mut Vec<Env>) -> Option<u32> {
    Some(match term.shape() {
        Shape::Invalid | Shape::Resource(_) => return None,
        Shape::Small(value) => small(hash, value),
        Shape::Big(big) => {
            let constant = if big.negative { NEGATIVE } else { POSITIVE };
            big.limbs.iter().fold(hash, |hash, limb| halves(hash, *limb, constant))
        }
        Shape::Float(value) => {
            // Both zeros are one.
            let bits = if value == 0.0 { 0 } else { value.to_bits() };
            two(hash, (bits >> 32) as u32, bits as u32, FLOAT)
        }
        Shape::Atom(number) if hash == 0 => of_atom(atom::text(number)),
        Shape::Atom(number) => one(hash, of_atom(atom::text(number)), ATOM),
        Shape::Nil if hash == 0 => NIL_ALONE,
        Shape::Nil => one(hash, 2, NIL),
        Shape::Cons(..) => list(term, hash, steps),
        Shape::Tuple(elements) => {
            steps.extend(elements.iter().rev().map(|element| Step::Term(*element)));
            one(hash, elements.len() as u32, TUPLE)
        }
        Shape::Bits(bits) => of_bits(bits, hash),
        Shape::Name(name) if name.kind == NameKind::Fun => {
            let key = term.as_handle()?.key();
            of_fun(&Fun::parse(key)?, hash, steps, scratch)?
        }
        Shape::Name(name) => {
            let key = match term.as_handle() {
                Some(handle) => identity(name.kind, handle.key()),
                None => name::key(name).and_then(|key| identity(name.kind, &key)),
            };
            let numbers = key?.numbers;
            match name.kind {
                NameKind::Pid => one(hash, numbers[1] as u32, PID),
                NameKind::Port => halves(hash, numbers[0], PORT),
                NameKind::Reference => one(hash, numbers[4] as u32, REFERENCE),
                NameKind::Fun => return None,
            }
        }
        Shape::Map => {
            let hash = one(hash, map::size(term) as u32, MAP);
            if map::size(term) == 0 {
                return Some(hash);
            }
            steps.push(Step::MapEnd(hash, *pairs));
            *pairs = 0;
            for (key, value) in map::pairs(term) {
                steps.extend([Step::Pair, Step::Term(value), Step::Term(key)]);
            }
            0
        }
    })
}

/// What the fun closes over becomes steps.
fn of_fun(fun: &Fun<'_>, hash: u32, steps: &mut Vec<Step>, scratch: &mut Vec<Env>) -> Option<u32> {
    match fun {
        Fun::External {
            module,
            function,
            arity,
        } => {
            let hash = two(hash, *arity, of_atom(module), GOLDEN);
            Some(one(hash, of_atom(function), FUNCTION))
        }
        Fun::Local {
            module,
            index,
            old_unique,
            free,
            environment,
        } => {
            let hash = two(hash, *free, of_atom(module), GOLDEN);
            let hash = two(hash, *index, *old_unique, GOLDEN);
            let mut env = Env::callback(None);
            let mut terms = Vec::new();
            let mut rest = *environment;
            for _ in 0..*free {
                let (term, taken) = external::decode_plain(&mut env, rest).ok()?;
                terms.push(Step::Term(term));
                rest = rest.get(taken..)?;
            }
            // Its terms stay where they are.
            scratch.push(*env);
            steps.extend(terms.into_iter().rev());
            Some(hash)
        }
    }
}

/// Of 28 bits, or of up to 60.
fn small(hash: u32, value: i64) -> u32 {
    if !(-(1 << 27)..1 << 27).contains(&value) {
        let constant = if value < 0 { NEGATIVE } else { POSITIVE };
        return halves(hash, value.unsigned_abs(), constant);
    }
    let value = value as i32;
    // Negative ones are mixed twice.
    let hash = if value < 0 {
        one(hash, value.wrapping_neg() as u32, GOLDEN)
    } else {
        hash
    };
    one(hash, value as u32, GOLDEN)
}

/// Bytes at the beginning of a list are taken four at a time; what comes after them is left to the next steps.
fn list(list: Term, mut hash: u32, steps: &mut Vec<Step>) -> u32 {
    let (mut bytes, mut count) = (0_u32, 0);
    let mut rest = list;
    while let Some(cell) = rest.as_cons() {
        let Some(byte) = cell.head.as_small().and_then(|head| u8::try_from(head).ok()) else {
            break;
        };
        bytes = bytes << 8 | u32::from(byte);
        count += 1;
        if count == 4 {
            hash = one(hash, bytes, BYTES);
            (bytes, count) = (0, 0);
        }
        rest = cell.tail;
    }
    if count > 0 {
        hash = one(hash, bytes, BYTES);
    }
    match rest.as_cons() {
        Some(cell) => steps.extend([Step::Term(cell.tail), Step::Term(cell.head)]),
        None => steps.push(Step::Term(rest)),
    }
    hash
}

fn of_bits(bits: &Bits, hash: u32) -> u32 {
    let start = BINARY.wrapping_add(hash);
    let last = bits.last as u32;
    let whole = if last == 0 { bits.length } else { bits.length - 1 };
    let (bytes, rest) = bits.bytes().split_at(whole);
    if bits.length == 0 {
        return start;
    }
    let hash = of_bytes(bytes, start);
    match rest.first() {
        Some(byte) => two(hash, last, u32::from(*byte) >> (8 - last), LAST_BITS),
        None => hash,
    }
}

fn of_bytes(bytes: &[u8], start: u32) -> u32 {
    let (mut a, mut b, mut c) = (GOLDEN, GOLDEN, start);
    let word = |bytes: &[u8]| {
        bytes
            .iter()
            .rev()
            .fold(0_u32, |word, byte| word << 8 | u32::from(*byte))
    };
    let (blocks, rest) = bytes.as_chunks::<12>();
    for block in blocks {
        a = a.wrapping_add(word(&block[..4]));
        b = b.wrapping_add(word(&block[4..8]));
        c = c.wrapping_add(word(&block[8..]));
        [a, b, c] = mix(a, b, c);
    }
    let part = |from: usize, to: usize| word(rest.get(from.min(rest.len())..to.min(rest.len())).unwrap_or(&[]));
    // The lowest byte of the last word is the length's.
    c = c.wrapping_add(bytes.len() as u32).wrapping_add(part(8, 11) << 8);
    mix(a.wrapping_add(part(0, 4)), b.wrapping_add(part(4, 8)), c)[2]
}

/// P. J. Weinberger's hash of the text; characters up to 255 are one step.
fn of_atom(text: &str) -> u32 {
    let step = |hash: u32, value: u32| {
        let hash = (hash << 4).wrapping_add(value);
        let high = hash & 0xF000_0000;
        hash ^ (high >> 24) ^ high
    };
    let mut room = [0; 4];
    text.chars().fold(0, |hash, character| match u32::from(character) {
        // As the VM folds the two bytes of UTF-8: into eight bits.
        code @ 0x80..=0xFF => step(hash, code),
        _ => character
            .encode_utf8(&mut room)
            .bytes()
            .fold(hash, |hash, byte| step(hash, byte.into())),
    })
}
