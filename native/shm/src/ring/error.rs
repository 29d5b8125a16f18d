//! What can go wrong with a ring.

use nix::errno::Errno;
use thiserror::Error;

pub type Result<T> = std::result::Result<T, Error>;

#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Error {
    #[error("{call} failed: {errno}")]
    Os { call: &'static str, errno: Errno },
    #[error("{field} of a ring is {value}; it must be {expected}")]
    BadPlan {
        field: &'static str,
        value: u64,
        expected: &'static str,
    },
    /// What a worker was handed is not a ring (worker side), or is one that somebody could still truncate.
    #[error("this is not a ring: {field} is {found}")]
    BadMemory { field: &'static str, found: u64 },
    /// A limit of ours on descriptors or mappings.
    #[error("{0}")]
    Limit(crate::Error),
    /// The payload fits neither into a slot nor into what is left of the spill area.
    #[error("{bytes} bytes do not fit; at most {available} can be placed now")]
    TooLarge { bytes: u64, available: u64 },
    #[error("{0}")]
    Protocol(#[from] Fault),
}

impl Error {
    pub(crate) fn os(call: &'static str, errno: Errno) -> Self {
        Error::Os { call, errno }
    }

    #[cfg(not(loom))]
    pub(crate) fn from_limit(error: crate::Error) -> Self {
        match error {
            crate::Error::Os { call, errno, .. } => Error::Os { call, errno },
            other => Error::Limit(other),
        }
    }
}

/// A worker has written what a correct worker never writes. It is to be killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Fault {
    #[error("an answer says that its payload lies in place {place}, which does not exist")]
    Place { place: u16 },
    #[error("an answer says that its payload is {length} bytes long; its place has {capacity}")]
    Length { length: u64, capacity: u64 },
    #[error("an answer says that its payload lies at {offset} of the result area and is {length} bytes long")]
    Spill { offset: u64, length: u64 },
    #[error("the answer to call {call} was there and is there no longer")]
    Withdrawn { call: u64 },
    #[error("the worker rang the bell {rings} times, {allowed} times at most were called for")]
    TooManyRings { rings: u64, allowed: u64 },
    #[error("the event queue's end is {tail}, its beginning is {head}, its size {capacity}")]
    EventCursor { head: u64, tail: u64, capacity: u64 },
    #[error("an event record says that it is {length} bytes long; {available} are there")]
    EventLength { length: u64, available: u64 },
}
