//! Everything that can go wrong, with what the caller needs to act on it.

use nix::errno::Errno;
use std::path::PathBuf;
use thiserror::Error;

pub type Result<T> = std::result::Result<T, Error>;

/// A number or a text in the details of an error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    Number(u64),
    Text(String),
}

impl From<u64> for Value {
    fn from(number: u64) -> Self {
        Value::Number(number)
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Value::Text(text.to_owned())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Value::Text(text)
    }
}

impl std::fmt::Display for Value {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Value::Number(number) => write!(f, "{number}"),
            Value::Text(text) => write!(f, "{text}"),
        }
    }
}

/// The field of a header page that is not what it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Corruption {
    pub field: &'static str,
    pub found: Value,
    pub expected: Value,
}

impl Corruption {
    pub fn new(field: &'static str, found: impl Into<Value>, expected: impl Into<Value>) -> Self {
        Corruption {
            field,
            found: found.into(),
            expected: expected.into(),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Error {
    #[error("the descriptor limit is reached ({limit} open files, {reserve} of them kept in reserve)")]
    DescriptorLimit { limit: u64, reserve: u64 },
    #[error("{live} mappings are live, the limit is {limit}")]
    TooManyMappings { limit: u64, live: u64 },
    #[error("larger than a file may be here")]
    FileTooBig,
    #[error("{asked} bytes asked for, {available} available ({limited_by})")]
    NotEnoughMemory {
        asked: u64,
        available: u64,
        limited_by: String,
    },
    #[error("{asked} bytes asked for, {available} free on the file system")]
    NoSpace { asked: u64, available: u64 },
    #[error("{asked} bytes of huge pages asked for, {free} free")]
    NoHugePages { asked: u64, free: u64 },
    #[error("{used} of {limit} bytes in use, {asked} asked for")]
    MemoryLimit {
        used: u64,
        asked: u64,
        limit: u64,
        closing: u64,
    },
    #[error("the charge was taken or given back before")]
    NoCharge,
    #[error("{reason}")]
    Invalid { reason: String },
    #[error("{field}: {message}")]
    InvalidSpec { field: &'static str, message: String },
    #[error("may block: on a dirty scheduler only")]
    DirtyNeeded,
    #[error("the name is taken")]
    Exists,
    #[error("nothing has this name")]
    NotFound,
    #[error("the file system cannot hold a named object ({call}: {message})")]
    UnsupportedFilesystem { call: &'static str, message: String },
    #[error("not a regular file")]
    NotRegularFile,
    #[error("owned by user {owner}, expected {expected}")]
    WrongOwner { owner: u64, expected: u64 },
    #[error("another object has this name now")]
    Replaced,
    #[error("header field {}: found {}, expected {}", .0.field, .0.found, .0.expected)]
    Corrupted(Corruption),
    #[error("closed")]
    Closed,
    #[error("sealed")]
    Sealed,
    #[error("in use (writer {writer})")]
    Busy { writer: u64 },
    #[error("the writer is {writer}")]
    NotWriter { writer: u64 },
    #[error("{length} bytes at {offset} do not fit into {size}")]
    OutOfRange { offset: u64, length: u64, size: u64 },
    #[error("has to be read instead")]
    NotZeroCopy,
    #[error("peers may only read")]
    ReadOnly,
    #[error("a peer has sealed it and it could not be copied: {cause}")]
    SealedByPeer { cause: String },
    #[error("the file is shorter than {expected} bytes")]
    FileChanged { expected: u64, found: u64 },
    #[error("locked by another process")]
    Locked { path: PathBuf },
    #[error("larger than {limit} bytes")]
    TooLarge { limit: u64 },
    #[error("not done within {after_ms} ms")]
    Timeout { after_ms: u64 },
    #[error("the process is gone")]
    NoProcess,
    #[error("not a connected Unix socket")]
    NotUnixSocket,
    #[error("{call}: {}", .errno.desc())]
    Os { call: &'static str, errno: Errno },
}

impl Error {
    /// The error of a system call. The few numbers with a meaning of their own get it here; the rest stay numbers.
    pub fn os(call: &'static str, errno: Errno) -> Self {
        match errno {
            Errno::EMFILE | Errno::ENFILE => Error::DescriptorLimit {
                limit: crate::descriptor::soft_limit(),
                reserve: 0,
            },
            Errno::EFBIG => Error::FileTooBig,
            _ => Error::Os { call, errno },
        }
    }

    pub fn invalid(reason: impl Into<String>) -> Self {
        Error::Invalid { reason: reason.into() }
    }

    pub fn invalid_spec(field: &'static str, message: impl Into<String>) -> Self {
        Error::InvalidSpec {
            field,
            message: message.into(),
        }
    }

    pub fn corrupted(field: &'static str, found: impl Into<Value>, expected: impl Into<Value>) -> Self {
        Error::Corrupted(Corruption::new(field, found, expected))
    }

    /// Whether the system call failed with this number.
    pub fn is_os(&self, wanted: Errno) -> bool {
        matches!(self, Error::Os { errno, .. } if *errno == wanted)
    }
}

impl From<Corruption> for Error {
    fn from(corruption: Corruption) -> Self {
        Error::Corrupted(corruption)
    }
}
