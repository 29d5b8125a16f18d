//! A term: one word whose low three bits say what it is.
//!
//! ```text
//! 000 special    0 is THE_NON_VALUE, nothing else
//! 001 integer    61 bits, signed
//! 010 nil
//! 011 atom       number in the process-wide table; odd, as in the VM: OTP's own crypto has `atom & condition`
//! 100 cons       address of two words
//! 101 boxed      address of a header word; its low 8 bits are the kind, the others a size
//! 110 pid        index (29 bits) and generation (32 bits) in the VM's table for this worker
//! 111 port       the same
//! ```
//!
//! Atoms are odd, as the VM's are: OTP's crypto ends its walk over a table with `atom & (atom != atom_false)`.
//!
//! The functions that compare and hash get no env, so words describe themselves. Whatever a boxed word points to lives
//! in the arena of an env or in a buffer that the env holds. A word that a library invents is trusted like every other
//! word: this is the library's own process, and a crash here is what it would be in the VM, only smaller.

use super::buffer::Buffer;
use super::resource::Object;
use snakepit_wire::{Name, NameKind};

/// `ERL_NIF_TERM`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(transparent)]
pub struct Term(pub u64);

const TAG: u64 = 7;
const INTEGER: u64 = 1;
const NIL: u64 = 2;
const ATOM: u64 = 3;
const CONS: u64 = 4;
const BOXED: u64 = 5;
const PID: u64 = 6;
const PORT: u64 = 7;

pub const SMALL_MAX: i64 = (1 << 60) - 1;
pub const SMALL_MIN: i64 = -(1 << 60);

/// Indices of pids and ports have 29 bits.
const INDEX_END: u32 = 1 << 29;

/// Kinds of boxed terms, the low byte of the header.
pub mod kind {
    pub const TUPLE: u64 = 1;
    pub const BIG: u64 = 2;
    pub const FLOAT: u64 = 3;
    pub const BITS: u64 = 4;
    pub const NAME: u64 = 5;
    pub const RESOURCE: u64 = 6;
    pub const MAP_FLAT: u64 = 7;
    pub const MAP_TRIE: u64 = 8;
    /// Parts of a trie; no library sees them.
    pub const NODE: u64 = 9;
    pub const COLLISION: u64 = 10;
}

/// Magnitude and sign of an integer outside of 61 bits. Limbs of 64 bits, least significant first, the last not zero.
#[derive(Debug, Clone, Copy)]
pub struct Big<'a> {
    pub negative: bool,
    pub limbs: &'a [u64],
}

/// A binary (`last` is 0) or a bit string (`last` bits of the last byte, the upper ones, belong to it).
#[derive(Debug)]
#[repr(C)]
pub struct Bits {
    pub header: u64,
    pub data: *mut u8,
    /// Bytes, a last incomplete one included.
    pub length: usize,
    /// Null when the bytes lie in the arena itself.
    pub owner: *mut Buffer,
    pub last: u64,
}

/// A reference or a fun of the VM. Its key, `length` bytes, follows.
#[derive(Debug)]
#[repr(C)]
pub struct Handle {
    pub header: u64,
    pub index: u32,
    pub generation: u32,
    pub kind: u64,
    pub length: usize,
}

#[derive(Debug)]
#[repr(C)]
pub struct ResourceTerm {
    pub header: u64,
    pub object: *mut Object,
}

#[derive(Debug)]
#[repr(C)]
pub struct Cons {
    pub head: Term,
    pub tail: Term,
}

/// What a word turns out to be.
#[derive(Debug, Clone, Copy)]
pub enum Shape<'a> {
    Invalid,
    Small(i64),
    Atom(u32),
    Nil,
    Cons(Term, Term),
    Tuple(&'a [Term]),
    Big(Big<'a>),
    Float(f64),
    Bits(&'a Bits),
    /// Pid, port, reference, fun.
    Name(Name),
    Resource(*mut Object),
    Map,
}

impl Term {
    pub const NON_VALUE: Self = Self(0);
    pub const NIL: Self = Self(NIL);

    #[inline]
    pub const fn small(value: i64) -> Option<Self> {
        if value >= SMALL_MIN && value <= SMALL_MAX {
            Some(Self(((value as u64) << 3) | INTEGER))
        } else {
            None
        }
    }

    #[inline]
    pub const fn of_i32(value: i32) -> Self {
        Self(((value as i64 as u64) << 3) | INTEGER)
    }

    #[inline]
    pub const fn atom(number: u32) -> Self {
        Self(((number as u64) << 3) | ATOM)
    }

    #[inline]
    pub fn cons(cell: *const Cons) -> Self {
        Self(cell as u64 | CONS)
    }

    #[inline]
    pub fn boxed(header: *const u64) -> Self {
        Self(header as u64 | BOXED)
    }

    /// A pid or port as a word; `None` if the index is out of range.
    #[inline]
    pub fn local(name: Name) -> Option<Self> {
        let tag = match name.kind {
            NameKind::Pid => PID,
            NameKind::Port => PORT,
            NameKind::Reference | NameKind::Fun => return None,
        };
        (name.index < INDEX_END)
            .then(|| Self((u64::from(name.index) << 35) | (u64::from(name.generation) << 3) | tag))
    }

    #[inline]
    pub const fn is_value(self) -> bool {
        self.0 != 0
    }

    #[inline]
    pub const fn is_small(self) -> bool {
        self.0 & TAG == INTEGER
    }

    #[inline]
    pub const fn is_atom(self) -> bool {
        self.0 & TAG == ATOM
    }

    #[inline]
    pub const fn is_cons(self) -> bool {
        self.0 & TAG == CONS
    }

    #[inline]
    pub const fn is_boxed(self) -> bool {
        self.0 & TAG == BOXED
    }

    #[inline]
    pub const fn is_list(self) -> bool {
        self.is_cons() || self.0 == Self::NIL.0
    }

    #[inline]
    pub const fn as_small(self) -> Option<i64> {
        if self.is_small() {
            Some(self.0 as i64 >> 3)
        } else {
            None
        }
    }

    #[inline]
    pub const fn as_atom(self) -> Option<u32> {
        if self.is_atom() {
            Some((self.0 >> 3) as u32)
        } else {
            None
        }
    }

    /// A pid's or port's name.
    #[inline]
    pub const fn as_local(self) -> Option<Name> {
        let kind = match self.0 & TAG {
            PID => NameKind::Pid,
            PORT => NameKind::Port,
            _ => return None,
        };
        Some(Name {
            kind,
            index: (self.0 >> 35) as u32,
            generation: (self.0 >> 3) as u32,
        })
    }

    #[inline]
    pub fn as_cons<'a>(self) -> Option<&'a Cons> {
        // SAFETY: a word with this tag is the address of a cell in a live env (see the module's head).
        self.is_cons().then(|| unsafe { &*((self.0 & !TAG) as *const Cons) })
    }

    /// The header's address, if the term is boxed.
    #[inline]
    pub fn pointer(self) -> Option<*const u64> {
        self.is_boxed().then_some((self.0 & !TAG) as *const u64)
    }

    /// The header, if the term is boxed.
    #[inline]
    pub fn header(self) -> Option<u64> {
        // SAFETY: a word with this tag is the address of a header in a live env.
        self.pointer().map(|pointer| unsafe { *pointer })
    }

    #[inline]
    pub fn is_kind(self, kind: u64) -> bool {
        self.header().is_some_and(|header| header & 0xFF == kind)
    }

    /// The boxed term, if it is of this kind.
    #[inline]
    fn of_kind<'a, T>(self, kind: u64) -> Option<&'a T> {
        let pointer = self.pointer().filter(|_| self.is_kind(kind))?;
        // SAFETY: the header says that it begins a `T`, see each kind's maker in heap.rs.
        Some(unsafe { &*pointer.cast::<T>() })
    }

    #[inline]
    pub fn as_tuple<'a>(self) -> Option<&'a [Term]> {
        let pointer = self.pointer()?;
        let header = self.header().filter(|header| header & 0xFF == kind::TUPLE)?;
        // SAFETY: a tuple's header is followed by as many words as it says.
        Some(unsafe { std::slice::from_raw_parts(pointer.add(1).cast(), (header >> 8) as usize) })
    }

    #[inline]
    pub fn as_float(self) -> Option<f64> {
        self.of_kind::<[u64; 2]>(kind::FLOAT)
            .map(|words| f64::from_bits(words[1]))
    }

    #[inline]
    pub fn as_bits<'a>(self) -> Option<&'a Bits> {
        self.of_kind(kind::BITS)
    }

    /// A binary of whole bytes.
    #[inline]
    pub fn as_binary<'a>(self) -> Option<&'a Bits> {
        self.as_bits().filter(|bits| bits.last == 0)
    }

    pub fn as_big<'a>(self) -> Option<Big<'a>> {
        let pointer = self.pointer()?;
        let header = self.header().filter(|header| header & 0xFF == kind::BIG)?;
        // SAFETY: a big integer's header is followed by as many limbs as it says.
        let limbs = unsafe { std::slice::from_raw_parts(pointer.add(1), (header >> 9) as usize) };
        Some(Big {
            negative: header >> 8 & 1 == 1,
            limbs,
        })
    }

    #[inline]
    pub fn as_handle<'a>(self) -> Option<&'a Handle> {
        self.of_kind(kind::NAME)
    }

    #[inline]
    pub fn as_resource(self) -> Option<*mut Object> {
        self.of_kind::<ResourceTerm>(kind::RESOURCE).map(|term| term.object)
    }

    #[inline]
    pub fn is_map(self) -> bool {
        matches!(
            self.header().map(|header| header & 0xFF),
            Some(kind::MAP_FLAT | kind::MAP_TRIE)
        )
    }

    /// Pid, port, reference or fun.
    pub fn as_name(self) -> Option<Name> {
        self.as_local().or_else(|| self.as_handle().map(Handle::name))
    }

    #[inline]
    pub fn shape<'a>(self) -> Shape<'a> {
        match self.0 & TAG {
            INTEGER => Shape::Small(self.0 as i64 >> 3),
            ATOM => Shape::Atom((self.0 >> 3) as u32),
            NIL => Shape::Nil,
            CONS => self
                .as_cons()
                .map_or(Shape::Invalid, |cell| Shape::Cons(cell.head, cell.tail)),
            BOXED => self.boxed_shape(),
            PID | PORT => self.as_local().map_or(Shape::Invalid, Shape::Name),
            _ => Shape::Invalid,
        }
    }

    fn boxed_shape<'a>(self) -> Shape<'a> {
        let shape = match self.header().map(|header| header & 0xFF) {
            Some(kind::TUPLE) => self.as_tuple().map(Shape::Tuple),
            Some(kind::BIG) => self.as_big().map(Shape::Big),
            Some(kind::FLOAT) => self.as_float().map(Shape::Float),
            Some(kind::BITS) => self.as_bits().map(Shape::Bits),
            Some(kind::NAME) => self.as_name().map(Shape::Name),
            Some(kind::RESOURCE) => self.as_resource().map(Shape::Resource),
            Some(kind::MAP_FLAT | kind::MAP_TRIE) => Some(Shape::Map),
            _ => None,
        };
        shape.unwrap_or(Shape::Invalid)
    }
}

impl Bits {
    #[inline]
    pub fn bytes(&self) -> &[u8] {
        if self.length == 0 {
            return &[];
        }
        // SAFETY: `data` and `length` describe bytes of the arena or of `owner`, which the env holds.
        unsafe { std::slice::from_raw_parts(self.data, self.length) }
    }

    /// Length in bits.
    #[inline]
    pub fn bit_length(&self) -> u64 {
        let all = self.length as u64 * 8;
        if self.last == 0 { all } else { all - 8 + self.last }
    }
}

impl Handle {
    pub fn name(&self) -> Name {
        let kind = NameKind::from_byte(self.kind as u8).unwrap_or(NameKind::Reference);
        Name {
            kind,
            index: self.index,
            generation: self.generation,
        }
    }

    pub fn key(&self) -> &[u8] {
        // SAFETY: heap.rs writes `length` bytes behind the struct.
        unsafe { std::slice::from_raw_parts(std::ptr::from_ref(self).add(1).cast::<u8>(), self.length) }
    }
}
