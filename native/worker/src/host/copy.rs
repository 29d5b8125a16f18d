//! Copies of terms from one env into another. Iterative: what is deep is copied bottom-up with a stack of its own.

use super::buffer::Buffer;
use super::env::Env;
use super::map;
use super::term::{Cons, Shape, Term};

/// What is still to be put together when its parts are done.
enum Step {
    Copy(Term),
    /// The list's cells have been made; heads are to be filled in from `cells` on.
    Head(*mut Cons),
    Tail(*mut Cons),
    Tuple(usize),
    Map(usize),
}

/// Copies `term` into `target`. Terms that are words are their own copies.
pub fn copy(target: &mut Env, term: Term) -> Term {
    if !term.is_boxed() && !term.is_cons() {
        return term;
    }
    let mut steps = vec![Step::Copy(term)];
    let mut done: Vec<Term> = Vec::new();
    while let Some(step) = steps.pop() {
        match step {
            Step::Copy(term) => open(target, term, &mut steps, &mut done),
            Step::Head(cell) => {
                if let Some(head) = done.pop() {
                    // SAFETY: the cell was made by `open` in the target's arena and nobody has seen it.
                    unsafe { (*cell).head = head };
                }
            }
            Step::Tail(cell) => {
                if let Some(tail) = done.pop() {
                    // SAFETY: as above.
                    unsafe { (*cell).tail = tail };
                }
            }
            Step::Tuple(arity) => {
                let elements = done.split_off(done.len() - arity);
                done.push(target.tuple(&elements));
            }
            Step::Map(pairs) => {
                let values = done.split_off(done.len() - pairs);
                let keys = done.split_off(done.len() - pairs);
                done.push(target.map(&keys, &values).unwrap_or(Term::NON_VALUE));
            }
        }
    }
    done.pop().unwrap_or(Term::NON_VALUE)
}

/// Copies what has no parts; leaves steps for what has.
fn open(target: &mut Env, term: Term, steps: &mut Vec<Step>, done: &mut Vec<Term>) {
    match term.shape() {
        Shape::Invalid | Shape::Small(_) | Shape::Atom(_) | Shape::Nil => done.push(term),
        Shape::Cons(..) => list(target, term, steps, done),
        Shape::Tuple(elements) => {
            steps.push(Step::Tuple(elements.len()));
            steps.extend(elements.iter().rev().map(|element| Step::Copy(*element)));
        }
        Shape::Map => {
            let pairs: Vec<_> = map::pairs(term).collect();
            steps.push(Step::Map(pairs.len()));
            steps.extend(pairs.iter().rev().map(|(_, value)| Step::Copy(*value)));
            steps.extend(pairs.iter().rev().map(|(key, _)| Step::Copy(*key)));
        }
        Shape::Big(big) => done.push(target.big(big.negative, big.limbs)),
        Shape::Float(value) => done.push(target.float(value)),
        Shape::Bits(bits) => {
            let copy = if bits.owner.is_null() {
                target.binary(bits.bytes(), bits.last as u8)
            } else {
                // SAFETY: the source's env holds the owner; this is a reference for the target.
                unsafe { Buffer::keep(bits.owner) };
                target.owned_binary(bits.owner, bits.data, bits.length, bits.last as u8)
            };
            done.push(copy);
        }
        Shape::Name(name) => {
            let copy = term
                .as_handle()
                .map_or(term, |handle| target.handle(name, handle.key()));
            done.push(copy);
        }
        Shape::Resource(object) => done.push(target.share_object(object)),
    }
}

/// Copies the cells of a list at once, and leaves steps for the elements that have parts.
fn list(target: &mut Env, first: Term, steps: &mut Vec<Step>, done: &mut Vec<Term>) {
    let start = target.cons(Term::NIL, Term::NIL);
    done.push(start);
    let (mut from, mut to) = (first, start);
    while let Some(cell) = from.as_cons() {
        let Some(made) = to.as_cons().map(|made| std::ptr::from_ref(made).cast_mut()) else {
            return;
        };
        let tail = cell.tail;
        let next = if tail.is_cons() {
            target.cons(Term::NIL, Term::NIL)
        } else {
            tail
        };
        let parts = |term: Term| term.is_boxed() || term.is_cons();
        // SAFETY: `made` is a cell of the target's arena that nobody has seen.
        unsafe {
            made.write(Cons {
                head: cell.head,
                tail: next,
            })
        };
        if parts(cell.head) {
            steps.push(Step::Head(made));
            steps.push(Step::Copy(cell.head));
        }
        if tail.is_boxed() {
            steps.push(Step::Tail(made));
            steps.push(Step::Copy(tail));
        }
        (from, to) = (tail, next);
    }
}
