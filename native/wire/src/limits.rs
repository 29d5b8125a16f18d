//! What one payload may cost its receiver.

use serde::{Deserialize, Serialize};

/// Bounds of one payload: all arguments of a call together, or one answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Encoded size.
    pub bytes: u64,
    /// Words (of 8 bytes) that the VM's heap will hold, counted as [`words`] does.
    pub words: u64,
    /// Containers inside each other. A list is one level, whatever its length.
    pub depth: u32,
}

impl Limits {
    pub const DEFAULT: Self = Self {
        bytes: 64 << 20,
        words: 32 << 20,
        depth: 100_000,
    };
}

impl Default for Limits {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// Heap words of each kind of term, as the VM lays them out (OTP 25 to 29, the largest of them where they differ).
pub mod words {
    /// Up to here a binary's bytes lie on the heap themselves.
    const HEAP_BINARY: u64 = 64;
    /// A map of more pairs is a hash trie.
    const FLAT_MAP: u64 = 32;

    /// A local pid or port is no word at all; a reference, a fun, a far pid is copied from the table.
    pub const NAME: u64 = 4;
    /// Four words of heap, and some twenty outside of it.
    pub const RESOURCE: u64 = 24;
    pub const FLOAT: u64 = 2;
    pub const CELL: u64 = 2;
    /// In front of a bit string's binary.
    pub const BITS: u64 = 6;

    /// Integers of 60 bits fit the term itself.
    #[inline]
    #[must_use]
    pub const fn integer(value: i64) -> u64 {
        const SMALL: i64 = 1 << 59;
        if value >= -SMALL && value < SMALL { 0 } else { 2 }
    }

    #[inline]
    #[must_use]
    pub const fn big(bytes: usize) -> u64 {
        1 + (bytes as u64).div_ceil(8)
    }

    #[inline]
    #[must_use]
    pub const fn tuple(arity: usize) -> u64 {
        1 + arity as u64
    }

    /// A trie costs a cell for each pair, its slot in a node, and the nodes' headers: 3.8 words on average.
    #[inline]
    #[must_use]
    pub const fn map(pairs: usize) -> u64 {
        let pairs = pairs as u64;
        if pairs <= FLAT_MAP {
            4 + 2 * pairs
        } else {
            4 + 4 * pairs
        }
    }

    /// The bytes of a large binary lie outside of the heap: [`Limits::bytes`](super::Limits::bytes) bounds them.
    #[inline]
    #[must_use]
    pub const fn binary(bytes: usize) -> u64 {
        let bytes = bytes as u64;
        if bytes <= HEAP_BINARY { 2 + bytes.div_ceil(8) } else { 6 }
    }
}
