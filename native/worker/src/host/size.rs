//! What a term takes on the VM's heap, in words: its flat size, as the VM counts it.

use super::map;
use super::name;
use super::term::{Shape, Term};
use snakepit_wire::NameKind;
use snakepit_wire::limits::words;

/// A reference, or the one that stands for a resource.
const REFERENCE: u64 = 3;
/// A reference of two words more: an alias.
const LONG_REFERENCE: u64 = 4;
/// In front of the binary of a bit string.
const SUB_BINARY: u64 = 5;
const FLAT_MAP: u64 = 32;

/// Words of a term, parts that occur twice counted twice. A map of more than 32 pairs is estimated: its shape depends on
/// hash values that are the VM's own.
pub fn of(term: Term) -> u64 {
    let mut stack = vec![term];
    let mut sum = 0_u64;
    while let Some(term) = stack.pop() {
        sum += match term.shape() {
            Shape::Invalid | Shape::Atom(_) | Shape::Nil => 0,
            Shape::Small(value) => words::integer(value),
            Shape::Big(big) => words::big(big.limbs.len() * 8),
            Shape::Float(_) => words::FLOAT,
            Shape::Cons(head, tail) => {
                stack.extend([tail, head]);
                words::CELL
            }
            // The empty one is the same everywhere.
            Shape::Tuple([]) => 0,
            Shape::Tuple(elements) => {
                stack.extend(elements);
                words::tuple(elements.len())
            }
            Shape::Map => {
                stack.extend(map::pairs(term).flat_map(|(key, value)| [key, value]));
                of_map(map::size(term) as u64)
            }
            Shape::Bits(bits) if bits.last == 0 => words::binary(bits.length),
            Shape::Bits(bits) => SUB_BINARY + words::binary(bits.length),
            Shape::Resource(_) => REFERENCE,
            Shape::Name(name) => match name.kind {
                NameKind::Pid | NameKind::Port => 0,
                NameKind::Fun => words::NAME,
                NameKind::Reference => {
                    let key = term
                        .as_handle()
                        .and_then(|handle| name::identity(name.kind, handle.key()));
                    match key {
                        Some(key) if key.numbers[..2] != [0, 0] => LONG_REFERENCE,
                        _ => REFERENCE,
                    }
                }
            },
        };
    }
    sum
}

fn of_map(pairs: u64) -> u64 {
    match pairs {
        0 => 3,
        1..=FLAT_MAP => 4 + 2 * pairs,
        // On average: a cell for each pair, its slot, and the nodes' headers.
        _ => pairs * 15 / 4,
    }
}
