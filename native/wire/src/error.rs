//! What can be wrong with a payload.

use thiserror::Error;

/// The sink takes no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("the payload does not fit the room for it")]
pub struct Full;

/// Why terms could not be written. `F` is the reader's own reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum EncodeError<F> {
    #[error("the payload does not fit the room for it")]
    Full,
    #[error("the payload is larger than {0} bytes")]
    Bytes(u64),
    #[error("the payload would take more than {0} words of heap")]
    Words(u64),
    #[error("the term is nested deeper than {0} levels")]
    Depth(u32),
    #[error("a float is not finite")]
    NotFinite,
    /// The reader's own terms contradict themselves.
    #[error("{0}")]
    Inconsistent(&'static str),
    #[error("{0}")]
    Refused(F),
}

impl<F> From<Full> for EncodeError<F> {
    #[inline]
    fn from(Full: Full) -> Self {
        Self::Full
    }
}

/// Why a payload could not be read. `F` is the builder's own reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum DecodeError<F> {
    #[error("the payload is larger than {0} bytes")]
    Bytes(u64),
    #[error("the payload would take more than {0} words of heap")]
    Words(u64),
    #[error("the term is nested deeper than {0} levels")]
    Depth(u32),
    #[error("the payload ends inside a term")]
    Truncated,
    #[error("{0} bytes follow the last term")]
    Trailing(usize),
    #[error("no term starts with the byte {0}")]
    Tag(u8),
    #[error("a pid, port, reference or fun written as bytes (tag {0}) is not accepted")]
    ForeignName(u8),
    #[error("terms with the tag {0} are reserved and not supported yet")]
    Reserved(u8),
    #[error("{0}")]
    Malformed(&'static str),
    #[error("a map holds a key twice")]
    DuplicateKey,
    #[error("{0}")]
    Refused(F),
}
