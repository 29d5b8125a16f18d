//! What a library asks of the VM while it runs: requests of its process, which travel as records of the ring's event queue
//! (kind [`KIND`]), and the VM's answers, which travel as [`ToWorker`](crate::control::ToWorker) packets.
//!
//! A request with a number is answered once, by the number; one with the number 0 is not answered. Requests of one thread are
//! taken in their order. Names are those of the VM's table: the VM refuses any other.

use crate::control::{ControlError, Message, bound};
use crate::term::{Name, NameKind};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The kind of the event records that carry requests.
pub const KIND: u32 = 1;
/// The kind of those that are a message which is not answered, in one piece: most of what a library sends. [`message_to`], and the term.
pub const MESSAGE: u32 = 2;
/// Bytes in front of the term of such a record.
pub const MESSAGE_HEAD: usize = 8;
/// The most bytes of a term in one request; what is longer goes ahead in [`Request::Part`]s.
pub const PIECE: usize = 16 << 10;
/// References asked for, and names kept or dropped, at once.
pub const NAMES: usize = 256;
/// The longest atom, and so the longest registered name: 255 characters.
pub const ATOM: usize = 1020;
/// The longest external format of a pid, port or reference: a node's name and some numbers.
pub const KEY: usize = 2048;
/// The longest external format of an integer that the VM makes.
pub const INTEGER: usize = 32;

/// From a worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// The next bytes of a term whose last ones come with a `Send` or `Command` of the same stream. A stream is a thread's.
    Part {
        stream: u32,
        #[serde(with = "serde_bytes")]
        bytes: Vec<u8>,
    },
    /// `enif_send`: one term to a local process. `Yes`, or `No` when it does not live. See also [`MESSAGE`].
    Send {
        request: u32,
        to: Named,
        stream: u32,
        #[serde(with = "serde_bytes")]
        term: Vec<u8>,
    },
    /// `enif_port_command`: one term, iodata. `Yes`, `No`, or `Refused` without a grant.
    Command {
        request: u32,
        to: Named,
        stream: u32,
        #[serde(with = "serde_bytes")]
        term: Vec<u8>,
    },
    /// `enif_whereis_pid`, `enif_whereis_port`: `Names` with one, `No`, or `Refused` without a grant.
    WhereIs { request: u32, port: bool, name: String },
    /// `enif_make_existing_atom`, of an atom that the worker does not know: `Yes` or `No`.
    Exists { request: u32, name: String },
    /// `enif_is_process_alive`, `enif_is_port_alive`: `Yes` or `No`.
    IsAlive { request: u32, name: Named },
    /// `enif_make_ref`: `Names` with new references, `count` or as many as there is room for. Each stays until it is dropped.
    References { request: u32, count: u32 },
    /// `enif_make_unique_integer`: `Integer`. `properties` are those of `ErlNifUniqueInteger`.
    Unique { request: u32, properties: u32 },
    /// `enif_now_time`: `Integer`, microseconds that no other answer of the VM has.
    Now { request: u32 },
    /// `enif_monitor_process`: `Yes`, or `No` when it does not live. Its end is told as `Down` with `monitor`, unless a
    /// `Demonitor` came first. `object`: whose monitor it is, by the number that the object has in terms.
    Monitor {
        request: u32,
        monitor: u64,
        object: u64,
        pid: Named,
    },
    /// `enif_demonitor_process`. Not answered: a `Down` may still be on its way.
    Demonitor { monitor: u64 },
    /// The external format of a pid, port or reference that came without (the caller's own): `Key`, or `No` for one that is
    /// no longer in the table.
    Key { request: u32, name: Named },
    /// References and funs that outlive the call which brought them, once for each name and holder; not answered.
    Keep { names: Vec<Named> },
    /// Kept ones and made references that nobody holds any more; not answered. The VM lets go of them when the calls that may
    /// still answer with them are over. No call with a number below `since` has ever had one of them.
    Drop {
        names: Vec<Named>,
        #[serde(default)]
        since: u64,
    },
}

/// The VM's answer to a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    Yes,
    No,
    Names(Vec<Keyed>),
    /// The external format (without version byte) of an integer.
    Integer(#[serde(with = "serde_bytes")] Vec<u8>),
    /// The external format (without version byte) of a name.
    Key(#[serde(with = "serde_bytes")] Vec<u8>),
    /// Not granted, a name that is none, a term that cannot be read.
    Refused,
}

/// The head of a [`MESSAGE`] to a pid.
#[must_use]
pub fn message_to(to: Name) -> [u8; MESSAGE_HEAD] {
    let mut head = [0; MESSAGE_HEAD];
    head[..4].copy_from_slice(&to.index.to_be_bytes());
    head[4..].copy_from_slice(&to.generation.to_be_bytes());
    head
}

/// The pid and the term of a [`MESSAGE`].
pub fn message(record: &[u8]) -> Result<(Name, &[u8]), ControlError> {
    let short = || ControlError::Malformed("a message has no receiver".into());
    let (index, rest) = record.split_first_chunk().ok_or_else(short)?;
    let (generation, term) = rest.split_first_chunk().ok_or_else(short)?;
    bound("term", term.len(), PIECE)?;
    let to = Name {
        kind: NameKind::Pid,
        index: u32::from_be_bytes(*index),
        generation: u32::from_be_bytes(*generation),
    };
    Ok((to, term))
}

/// A [`Name`] in a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Named(pub Name);

/// A name and its external format.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Keyed {
    pub name: Named,
    #[serde(with = "serde_bytes")]
    pub key: Vec<u8>,
}

impl Serialize for Named {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Name {
            kind,
            index,
            generation,
        } = self.0;
        (kind as u8, index, generation).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Named {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (kind, index, generation) = <(u8, u32, u32)>::deserialize(deserializer)?;
        let kind = NameKind::from_byte(kind).ok_or_else(|| D::Error::custom("a name has no such kind"))?;
        Ok(Named(Name {
            kind,
            index,
            generation,
        }))
    }
}

impl Message for Request {
    fn check(&self) -> Result<(), ControlError> {
        match self {
            Self::Part { bytes, .. } => bound("bytes", bytes.len(), PIECE),
            Self::Send { term, .. } | Self::Command { term, .. } => bound("term", term.len(), PIECE),
            Self::WhereIs { name, .. } | Self::Exists { name, .. } => bound("name", name.len(), ATOM),
            Self::References { count, .. } => bound("count", usize::try_from(*count).unwrap_or(usize::MAX), NAMES),
            Self::Keep { names } | Self::Drop { names, .. } => bound("names", names.len(), NAMES),
            Self::IsAlive { .. }
            | Self::Unique { .. }
            | Self::Now { .. }
            | Self::Monitor { .. }
            | Self::Demonitor { .. }
            | Self::Key { .. } => Ok(()),
        }
    }
}

impl Reply {
    /// Whether every field keeps its bound.
    pub(crate) fn check(&self) -> Result<(), ControlError> {
        match self {
            Self::Names(names) => {
                bound("names", names.len(), NAMES)?;
                names.iter().try_for_each(|keyed| bound("key", keyed.key.len(), KEY))
            }
            Self::Integer(bytes) => bound("integer", bytes.len(), INTEGER),
            Self::Key(bytes) => bound("key", bytes.len(), KEY),
            Self::Yes | Self::No | Self::Refused => Ok(()),
        }
    }
}
