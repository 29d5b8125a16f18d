//! Erlang's order of terms, and identity.
//!
//! number < atom < reference < fun < port < pid < tuple < map < nil < list < bit string. Iterative: terms may be deep.

use super::atom;
use super::map;
use super::name::{self, identity};
use super::term::{Big, Bits, Shape, Term};
use super::vm;
use snakepit_wire::NameKind;
use std::cmp::Ordering;

/// Ranks of the kinds of terms.
fn rank(shape: &Shape<'_>) -> u8 {
    match shape {
        Shape::Invalid => 0,
        Shape::Small(_) | Shape::Big(_) | Shape::Float(_) => 1,
        Shape::Atom(_) => 2,
        Shape::Resource(_) => 3,
        Shape::Name(name) => match name.kind {
            NameKind::Reference => 3,
            NameKind::Fun => 4,
            NameKind::Port => 5,
            NameKind::Pid => 6,
        },
        Shape::Tuple(_) => 7,
        Shape::Map => 8,
        Shape::Nil => 9,
        Shape::Cons(..) => 10,
        Shape::Bits(_) => 11,
    }
}

/// `=:=`. `0.0` and `-0.0` differ from OTP 27 on.
#[inline]
pub fn identical(left: Term, right: Term) -> bool {
    if left == right {
        return true;
    }
    // Words without an address, apart from names, are equal only if they are the same.
    (left.is_boxed() && right.is_boxed() || left.is_cons() && right.is_cons())
        && walk(left, right, true) == Ordering::Equal
}

/// `==` and `<`: integers and floats are compared by value, but not as keys of maps.
pub fn compare(left: Term, right: Term) -> Ordering {
    walk(left, right, false)
}

fn walk(left: Term, right: Term, exact: bool) -> Ordering {
    let mut stack: Vec<(Term, Term, bool)> = Vec::new();
    let mut next = Some((left, right, exact));
    while let Some((left, right, exact)) = next.take().or_else(|| stack.pop()) {
        if left == right {
            continue;
        }
        let (one, other) = (left.shape(), right.shape());
        let order = match (one, other) {
            (Shape::Cons(head, tail), Shape::Cons(other_head, other_tail)) => {
                stack.push((tail, other_tail, exact));
                next = Some((head, other_head, exact));
                continue;
            }
            (Shape::Tuple(elements), Shape::Tuple(others)) if elements.len() == others.len() => {
                stack.extend(
                    elements
                        .iter()
                        .zip(others)
                        .rev()
                        .map(|(one, other)| (*one, *other, exact)),
                );
                continue;
            }
            (Shape::Map, Shape::Map) if map::size(left) == map::size(right) => {
                push_maps(left, right, exact, &mut stack);
                continue;
            }
            _ => leaves(left, right, &one, &other, exact),
        };
        if order != Ordering::Equal {
            return order;
        }
    }
    Ordering::Equal
}

/// Keys first, in their order, then the values in the order of their keys.
fn push_maps(left: Term, right: Term, exact: bool, stack: &mut Vec<(Term, Term, bool)>) {
    let sorted = |map| {
        let mut pairs: Vec<_> = map::pairs(map).collect();
        pairs.sort_by(|(one, _), (other, _)| walk(*one, *other, true));
        pairs
    };
    let (one, other) = (sorted(left), sorted(right));
    let both = || one.iter().zip(&other).rev();
    stack.extend(both().map(|((_, value), (_, other))| (*value, *other, exact)));
    stack.extend(both().map(|((key, _), (other, _))| (*key, *other, true)));
}

fn leaves(left: Term, right: Term, one: &Shape<'_>, other: &Shape<'_>, exact: bool) -> Ordering {
    match (one, other) {
        (Shape::Small(one), Shape::Small(other)) => one.cmp(other),
        (Shape::Atom(one), Shape::Atom(other)) => atom::text(*one).as_bytes().cmp(atom::text(*other).as_bytes()),
        (Shape::Tuple(one), Shape::Tuple(other)) => one.len().cmp(&other.len()),
        (Shape::Map, Shape::Map) => map::size(left).cmp(&map::size(right)),
        (Shape::Bits(one), Shape::Bits(other)) => bits(one, other),
        (Shape::Float(one), Shape::Float(other)) if exact && !vm::zeros_are_one() => one.total_cmp(other),
        (Shape::Float(one), Shape::Float(other)) => one.partial_cmp(other).unwrap_or(Ordering::Equal),
        (Shape::Float(_), Shape::Small(_) | Shape::Big(_)) if exact => Ordering::Greater,
        (Shape::Small(_) | Shape::Big(_), Shape::Float(_)) if exact => Ordering::Less,
        (Shape::Float(one), _) if rank(other) == 1 => integer_and_float(other, *one).reverse(),
        (_, Shape::Float(other)) if rank(one) == 1 => integer_and_float(one, *other),
        (Shape::Big(one), Shape::Big(other)) => bigs(one, other),
        (Shape::Big(big), Shape::Small(_)) => sign(big.negative),
        (Shape::Small(_), Shape::Big(big)) => sign(big.negative).reverse(),
        (Shape::Resource(one), Shape::Resource(other)) => one.cmp(other),
        (Shape::Resource(_), Shape::Name(name)) if name.kind == NameKind::Reference => Ordering::Greater,
        (Shape::Name(name), Shape::Resource(_)) if name.kind == NameKind::Reference => Ordering::Less,
        (Shape::Name(_), Shape::Name(_)) if rank(one) == rank(other) => names(left, right),
        _ => rank(one).cmp(&rank(other)),
    }
}

/// How a number of this sign stands to all smaller ones.
const fn sign(negative: bool) -> Ordering {
    if negative { Ordering::Less } else { Ordering::Greater }
}

fn bigs(one: &Big<'_>, other: &Big<'_>) -> Ordering {
    match (one.negative, other.negative) {
        (false, true) => Ordering::Greater,
        (true, false) => Ordering::Less,
        (negative, _) => {
            let order = magnitudes(one.limbs, other.limbs);
            if negative { order.reverse() } else { order }
        }
    }
}

fn magnitudes(one: &[u64], other: &[u64]) -> Ordering {
    one.len()
        .cmp(&other.len())
        .then_with(|| one.iter().rev().cmp(other.iter().rev()))
}

/// Exact: neither is rounded.
fn integer_and_float(integer: &Shape<'_>, float: f64) -> Ordering {
    let small;
    let (negative, limbs) = match integer {
        Shape::Small(value) => {
            small = [value.unsigned_abs()];
            (*value < 0, &small[..])
        }
        Shape::Big(big) => (big.negative, big.limbs),
        _ => return Ordering::Equal,
    };
    let zero = limbs.iter().all(|limb| *limb == 0);
    if zero || float == 0.0 || negative != (float < 0.0) {
        let integer = if zero {
            0
        } else if negative {
            -1
        } else {
            1
        };
        let float = if float == 0.0 {
            0
        } else if float < 0.0 {
            -1
        } else {
            1
        };
        return integer.cmp(&float);
    }
    let order = magnitude_and_float(limbs, float.abs());
    if negative { order.reverse() } else { order }
}

fn magnitude_and_float(limbs: &[u64], float: f64) -> Ordering {
    let length = limbs.len() as u64 * 64 - u64::from(limbs.last().map_or(64, |limb| limb.leading_zeros()));
    let bits = float.to_bits();
    let exponent = (bits >> 52) as i64 - 1075;
    let mantissa = if exponent == -1075 {
        (bits << 1) & ((1 << 53) - 1)
    } else {
        bits & ((1 << 52) - 1) | (1 << 52)
    };
    let float_length = exponent + 64 - i64::from(mantissa.leading_zeros());
    if length as i64 != float_length {
        return (length as i64).cmp(&float_length);
    }
    // Equally many bits in front of the point: bring both to the mantissa's, and see what is left over on either side.
    if exponent < 0 {
        let whole = mantissa >> -exponent;
        let fraction = mantissa & ((1 << -exponent) - 1);
        let order = limbs.first().copied().unwrap_or(0).cmp(&whole);
        return order.then(if fraction == 0 { Ordering::Equal } else { Ordering::Less });
    }
    let shift = exponent as usize;
    let at = |index: usize| limbs.get(index).copied().unwrap_or(0);
    let high = at(shift / 64 + 1).checked_shl(64 - shift as u32 % 64).unwrap_or(0);
    let top = at(shift / 64) >> (shift % 64) | high;
    let rest = limbs[..shift / 64].iter().any(|limb| *limb != 0) || at(shift / 64) & ((1 << (shift % 64)) - 1) != 0;
    top.cmp(&mantissa)
        .then(if rest { Ordering::Greater } else { Ordering::Equal })
}

fn bits(one: &Bits, other: &Bits) -> Ordering {
    let common = one.bit_length().min(other.bit_length());
    let whole = (common / 8) as usize;
    let order = one.bytes()[..whole].cmp(&other.bytes()[..whole]);
    let rest = (common % 8) as u32;
    let last = |bits: &Bits| bits.bytes().get(whole).map_or(0, |byte| u32::from(*byte) >> (8 - rest));
    let order = if rest == 0 {
        order
    } else {
        order.then_with(|| last(one).cmp(&last(other)))
    };
    order.then_with(|| one.bit_length().cmp(&other.bit_length()))
}

/// Names of one kind: by what their keys say; by their place in the VM's table when a key is not known.
fn names(left: Term, right: Term) -> Ordering {
    let (Some(one), Some(other)) = (left.as_name(), right.as_name()) else {
        return Ordering::Equal;
    };
    let place = (one.index, one.generation).cmp(&(other.index, other.generation));
    let by_keys =
        |one_key: &[u8], other_key: &[u8]| match (identity(one.kind, one_key), identity(other.kind, other_key)) {
            (Some(one), Some(other)) => one.cmp(&other),
            _ => one_key.cmp(other_key),
        };
    if let (Some(one), Some(other)) = (left.as_handle(), right.as_handle()) {
        let known = one.length > 0 && other.length > 0;
        return if known { by_keys(one.key(), other.key()) } else { place };
    }
    match (name::key(one), name::key(other)) {
        (Some(one), Some(other)) => by_keys(&one, &other).then(place),
        _ => place,
    }
}
