//! Making terms in the arena of an env. The layouts are those that term.rs reads.

use super::buffer::Buffer;
use super::env::Env;
use super::resource::{self, Object};
use super::term::{Bits, Cons, Handle, ResourceTerm, Term, kind};
use snakepit_wire::Name;
use std::ptr;

/// Binaries up to here lie in the arena.
const INLINE: usize = 64;

const fn words<T>() -> usize {
    size_of::<T>() / 8
}

impl Env {
    #[inline]
    fn place<T>(&mut self, value: T) -> *mut T {
        const { assert!(size_of::<T>().is_multiple_of(8) && align_of::<T>() <= 8) };
        let place = self.allocate(words::<T>()).cast::<T>();
        // SAFETY: `allocate` gave so many words, aligned to words.
        unsafe { place.write(value) };
        place
    }

    #[inline]
    pub fn cons(&mut self, head: Term, tail: Term) -> Term {
        Term::cons(self.place(Cons { head, tail }))
    }

    /// A list of these elements that ends with `tail`.
    pub fn list(&mut self, elements: &[Term], tail: Term) -> Term {
        if elements.is_empty() {
            return tail;
        }
        let cells = self.allocate(elements.len() * 2).cast::<Cons>();
        for (index, head) in elements.iter().enumerate() {
            // SAFETY: cell `index` is one of those just allocated; the next one's address is inside or one behind.
            unsafe {
                let tail = if index + 1 == elements.len() {
                    tail
                } else {
                    Term::cons(cells.add(index + 1))
                };
                cells.add(index).write(Cons { head: *head, tail });
            }
        }
        Term::cons(cells)
    }

    #[inline]
    pub fn tuple(&mut self, elements: &[Term]) -> Term {
        let place = self.allocate(1 + elements.len());
        // SAFETY: so many words were just allocated.
        unsafe {
            place.write((elements.len() as u64) << 8 | kind::TUPLE);
            ptr::copy_nonoverlapping(elements.as_ptr(), place.add(1).cast(), elements.len());
        }
        Term::boxed(place)
    }

    #[inline]
    pub fn integer(&mut self, value: i64) -> Term {
        Term::small(value).unwrap_or_else(|| self.big(value < 0, &[value.unsigned_abs()]))
    }

    #[inline]
    pub fn unsigned(&mut self, value: u64) -> Term {
        i64::try_from(value)
            .ok()
            .and_then(Term::small)
            .unwrap_or_else(|| self.big(false, &[value]))
    }

    /// An integer outside of 61 bits, without leading zeros.
    pub fn big(&mut self, negative: bool, limbs: &[u64]) -> Term {
        let place = self.allocate(1 + limbs.len());
        // SAFETY: so many words were just allocated.
        unsafe {
            place.write((limbs.len() as u64) << 9 | u64::from(negative) << 8 | kind::BIG);
            ptr::copy_nonoverlapping(limbs.as_ptr(), place.add(1), limbs.len());
        }
        Term::boxed(place)
    }

    /// `value` is finite.
    #[inline]
    pub fn float(&mut self, value: f64) -> Term {
        Term::boxed(self.place([kind::FLOAT, value.to_bits()]).cast())
    }

    /// A binary that the caller fills; null if there is no memory.
    #[inline]
    pub fn new_binary(&mut self, length: usize, last: u8) -> (Term, *mut u8) {
        if length <= INLINE {
            let place = self.allocate(words::<Bits>() + length.div_ceil(8));
            // SAFETY: the bytes are the words behind the header, just allocated.
            let data = unsafe { place.add(words::<Bits>()).cast::<u8>() };
            return (Self::describe(place.cast(), data, length, ptr::null_mut(), last), data);
        }
        let buffer = Buffer::allocate(length);
        if buffer.is_null() {
            return (Term::NON_VALUE, ptr::null_mut());
        }
        // SAFETY: just made.
        let data = unsafe { Buffer::data(buffer) };
        (self.owned_binary(buffer, data, length, last), data)
    }

    /// A binary over bytes of a buffer. Takes over a reference to the buffer.
    pub fn owned_binary(&mut self, owner: *mut Buffer, data: *mut u8, length: usize, last: u8) -> Term {
        self.hold_buffer(owner);
        let place = self.allocate(words::<Bits>());
        Self::describe(place.cast(), data, length, owner, last)
    }

    /// Part of a binary, sharing its bytes.
    pub fn sub_binary(&mut self, whole: &Bits, position: usize, length: usize) -> Term {
        // SAFETY: the caller has checked that the part lies inside.
        let data = unsafe { whole.data.add(position) };
        let place = self.allocate(words::<Bits>());
        // The env holds the owner already: `whole` is one of its terms.
        Self::describe(place.cast(), data, length, whole.owner, 0)
    }

    #[inline]
    fn describe(place: *mut Bits, data: *mut u8, length: usize, owner: *mut Buffer, last: u8) -> Term {
        // SAFETY: the callers have allocated the words of a `Bits` at `place`.
        unsafe {
            place.write(Bits {
                header: kind::BITS,
                data,
                length,
                owner,
                last: u64::from(last),
            })
        };
        Term::boxed(place.cast())
    }

    /// A copy of these bytes as a binary; THE_NON_VALUE if there is no memory.
    pub fn binary(&mut self, bytes: &[u8], last: u8) -> Term {
        let (term, data) = self.new_binary(bytes.len(), last);
        if !data.is_null() {
            // SAFETY: `data` has the length asked for and is new.
            unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), data, bytes.len()) };
        }
        term
    }

    /// A reference or a fun.
    pub fn handle(&mut self, name: Name, key: &[u8]) -> Term {
        self.hold_name(name, key);
        self.place_handle(name, key)
    }

    /// A reference that was just made. Takes over the holder that it was made with.
    pub fn made_reference(&mut self, name: Name, key: &[u8]) -> Term {
        self.hold_made(name);
        self.place_handle(name, key)
    }

    fn place_handle(&mut self, name: Name, key: &[u8]) -> Term {
        let place = self.allocate(words::<Handle>() + key.len().div_ceil(8));
        let handle = Handle {
            header: kind::NAME,
            index: name.index,
            generation: name.generation,
            kind: name.kind as u64,
            length: key.len(),
        };
        // SAFETY: the words of the struct and of the key behind it were just allocated.
        unsafe {
            place.cast::<Handle>().write(handle);
            ptr::copy_nonoverlapping(key.as_ptr(), place.add(words::<Handle>()).cast(), key.len());
        }
        self.has_handle(place.cast());
        Term::boxed(place)
    }

    /// A term of an object. Takes over a reference to it.
    pub fn object(&mut self, object: *mut Object) -> Term {
        self.hold_object(object);
        Term::boxed(
            self.place(ResourceTerm {
                header: kind::RESOURCE,
                object,
            })
            .cast(),
        )
    }

    /// A term of an object that stays the caller's too.
    pub fn share_object(&mut self, object: *mut Object) -> Term {
        // SAFETY: the caller holds it.
        unsafe { resource::keep(object) };
        self.object(object)
    }
}
