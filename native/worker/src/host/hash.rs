//! Hash values of terms, equal for terms that are identical.

use super::map;
use super::term::{Shape, Term};

/// A 64x64 to 128 bit product, folded: mixes both halves well in three instructions.
#[inline]
pub const fn mix(a: u64, b: u64) -> u64 {
    let product = (a ^ 0x9E37_79B9_7F4A_7C15) as u128 * (b ^ 0xD6E8_FEB8_6659_FD93) as u128;
    (product as u64) ^ (product >> 64) as u64
}

fn bytes(mut hash: u64, bytes: &[u8]) -> u64 {
    let (chunks, rest) = bytes.as_chunks::<8>();
    for chunk in chunks {
        hash = mix(hash, u64::from_le_bytes(*chunk));
    }
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    mix(mix(hash, u64::from_le_bytes(last)), bytes.len() as u64)
}

/// The hash of a term. Iterative: terms may be deep.
pub fn of(term: Term, salt: u64) -> u64 {
    if !term.is_boxed() && !term.is_cons() && term.as_local().is_none() {
        return mix(salt, term.0);
    }
    let mut stack = vec![term];
    let mut hash = salt;
    while let Some(term) = stack.pop() {
        hash = match term.shape() {
            Shape::Invalid | Shape::Small(_) | Shape::Atom(_) | Shape::Nil => mix(hash, term.0),
            Shape::Cons(head, tail) => {
                stack.push(tail);
                stack.push(head);
                mix(hash, 4)
            }
            Shape::Tuple(elements) => {
                stack.extend(elements.iter().rev());
                mix(hash, 0x100 + elements.len() as u64)
            }
            Shape::Big(big) => big
                .limbs
                .iter()
                .fold(mix(hash, u64::from(big.negative)), |hash, limb| mix(hash, *limb)),
            // Zeros are equal in some releases of the VM.
            Shape::Float(0.0) => mix(mix(hash, 6), 0),
            Shape::Float(value) => mix(mix(hash, 6), value.to_bits()),
            Shape::Bits(bits) => bytes(mix(hash, 7 + bits.last), bits.bytes()),
            // A reference comes under a new index each time, a pid never does.
            Shape::Name(_) => match term.as_handle() {
                Some(handle) if handle.length > 0 => bytes(mix(hash, 8), handle.key()),
                Some(handle) => mix(
                    mix(hash, 9),
                    u64::from(handle.index) << 32 | u64::from(handle.generation),
                ),
                None => mix(mix(hash, 9), term.0),
            },
            Shape::Resource(object) => mix(mix(hash, 10), object as u64),
            // The order of pairs is nobody's business: their hashes are added up.
            Shape::Map => {
                let sum = map::pairs(term).fold(0_u64, |sum, (key, value)| sum.wrapping_add(of(key, of(value, 11))));
                mix(mix(hash, map::size(term) as u64), sum)
            }
        };
    }
    hash
}

/// What a map finds its keys by.
#[inline]
pub fn key(term: Term) -> u64 {
    of(term, 0)
}
