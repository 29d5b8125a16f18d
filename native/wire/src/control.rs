//! What VM, warden and worker tell each other outside of calls: MessagePack, one message a packet, with a version.
//!
//! A packet is bounded ([`PACKET`]), and so is every field of a message, when it is written and when it is read. What
//! can be read is what can be written.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::limits::Limits;
use crate::service::Reply;

/// Changes when a message does.
pub const VERSION: u16 = 3;

/// The largest packet.
pub const PACKET: usize = 64 << 10;

/// The longest label of a worker, for the list of processes.
pub const LABEL: usize = 64;
/// The longest path of a library: `PATH_MAX`.
pub const PATH: usize = 4096;
/// The longest load info.
pub const LOAD_INFO: usize = 48 << 10;
/// The longest text about a failure.
pub const MESSAGE: usize = 2048;
/// The longest name of a module or function: 255 characters.
pub const NAME: usize = 1020;
/// The longest name of a symbol, and how many can be missing.
pub const SYMBOL: usize = 128;
pub const MISSING: usize = 512;
pub const FUNCTIONS: usize = 4096;
/// Libraries that a worker has at a time.
pub const LIBRARIES: usize = 256;
/// Numbers of libraries are smaller. A number is that of one library only, also after it was unloaded.
pub const NUMBERS: u32 = 1 << 20;
/// The most arguments that a function of the BEAM has.
pub const ARITY: usize = 255;
/// Resources released at once.
pub const RELEASES: usize = 4096;
/// The longest text about the VM's version.
pub const VERSION_TEXT: usize = 64;
/// As many executors as the ring allows.
pub const EXECUTORS: u16 = 64;

/// To the warden. With [`ToWarden::Start`] go five descriptors: control, ring, bell in, bell out, output; and, unless the worker is to have
/// an empty environment, a sixth: a file with it, each `NAME=value` followed by a zero byte.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToWarden {
    /// `memory` bytes of private memory are the most that the process may have (`RLIMIT_DATA`); 0: as many as it likes.
    Start {
        token: u64,
        label: String,
        memory: u64,
    },
    Kill {
        token: u64,
        signal: i32,
    },
}

/// From the warden. `token` is the one that [`ToWarden::Start`] came with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromWarden {
    Hello {
        version: u16,
        pid: u32,
    },
    Started {
        token: u64,
        pid: u32,
    },
    /// `call` is the system call that failed.
    NotStarted {
        token: u64,
        call: String,
        errno: i32,
    },
    Exited {
        token: u64,
        pid: u32,
        status: Status,
    },
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Status {
    Exit(i32),
    Signal(i32),
}

/// To a worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToWorker {
    /// The first comes before everything else, and says how the process works; the others while it serves.
    Load(Load),
    /// To [`FromWorker::Opened`]: the library is wanted.
    Proceed {
        library: u32,
    },
    /// Nobody calls this library any more, or it is not wanted after all.
    Unload {
        library: u32,
    },
    /// The VM has dropped its last handle of these resources.
    Release {
        ids: Vec<u64>,
    },
    Stop,
    /// To a [`Request`](crate::service::Request).
    Answer {
        request: u32,
        reply: Reply,
    },
    /// A monitored process has ended.
    Down {
        monitor: u64,
    },
}

/// By which number a call names a function: that of its library, and its place in the library's table.
#[must_use]
pub const fn function_number(library: u32, place: u32) -> u32 {
    library * FUNCTIONS as u32 + place
}

/// Library and place of a function's number.
#[must_use]
pub const fn function_place(number: u32) -> (u32, u32) {
    (number / FUNCTIONS as u32, number % FUNCTIONS as u32)
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Load {
    pub library: u32,
    /// The library whose successor this one is: its upgrade callback runs, not its load callback.
    pub replaces: Option<u32>,
    /// Whether it is to be asked, when the library is open, if it is wanted: before anything of it runs but its constructors.
    pub asks: bool,
    /// In the first one only.
    pub process: Option<Process>,
    /// As `erlang:load_nif/2` takes it: without the extension.
    #[serde(with = "serde_bytes")]
    pub path: Vec<u8>,
    /// One term.
    #[serde(with = "serde_bytes")]
    pub load_info: Vec<u8>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    pub executors: u16,
    /// How long an executor looks for the next call before it sleeps, in microseconds.
    pub spin_us: u32,
    /// What the VM accepts as an answer.
    pub limits: Limits,
    pub system: System,
}

/// What `enif_system_info` says in the VM, which is what it says in the worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct System {
    /// Major and minor version of the drivers' interface, and of that of NIFs.
    pub driver: (i32, i32),
    pub nif: (i32, i32),
    pub erts: String,
    pub release: String,
    pub threads: i32,
    pub smp: i32,
    pub async_threads: i32,
    pub schedulers: i32,
    pub dirty_schedulers: i32,
}

/// From a worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromWorker {
    Hello {
        version: u16,
        pid: u32,
    },
    /// What [`FromWorker::Loaded`] will say; a `Load` has asked for it.
    Opened(Loaded),
    Loaded(Loaded),
    /// The first library, or the process: it leaves.
    Failed(Failed),
    /// Another library. Nothing of it is left, and the process goes on.
    NotLoaded {
        library: u32,
        failed: Failed,
    },
    /// Nothing of it runs any more. What its objects need stays until they are gone.
    Unloaded {
        library: u32,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loaded {
    pub library: u32,
    pub module: String,
    /// In the library's order: a call names a function by its place here.
    pub functions: Vec<Function>,
    pub nif_major: u8,
    pub nif_minor: u8,
    /// Imported `enif_*` that the worker does not implement.
    pub missing: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Function {
    pub name: String,
    pub arity: u32,
    /// Of the library's table: 1 is a dirty CPU function, 2 a dirty I/O one.
    pub flags: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failed {
    pub stage: Stage,
    /// What the stage gives: an errno, the callback's return value, else 0.
    pub code: i64,
    pub message: String,
}

/// Where a load failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Stage {
    /// There is no such file.
    NotFound,
    /// The file cannot be opened or mapped, or a library that it needs.
    Open,
    NotALibrary,
    WrongArchitecture,
    /// A symbol that it imports is nowhere.
    UnresolvedSymbol,
    /// It has no `nif_init`.
    NoInit,
    /// `nif_init` gave nothing, or something impossible.
    Init,
    /// It was built for a NIF version that the worker does not speak.
    NifVersion,
    /// The load info could not be decoded.
    LoadInfo,
    /// The load callback returned something else than 0.
    LoadCallback,
    /// It has no upgrade callback, or that returned something else than 0.
    UpgradeCallback,
    /// The VM did not want what was opened.
    Unwanted,
    /// The worker itself: ring, threads, memory.
    Worker,
}

impl Stage {
    /// Every stage, for whoever turns them into something else.
    pub const ALL: [Self; 13] = [
        Self::NotFound,
        Self::Open,
        Self::NotALibrary,
        Self::WrongArchitecture,
        Self::UnresolvedSymbol,
        Self::NoInit,
        Self::Init,
        Self::NifVersion,
        Self::LoadInfo,
        Self::LoadCallback,
        Self::UpgradeCallback,
        Self::Unwanted,
        Self::Worker,
    ];
}

/// What is wrong with a packet.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ControlError {
    #[error("a message of {length} bytes is larger than a packet ({PACKET})")]
    Packet { length: usize },
    #[error("the message has version {found}, this side speaks {VERSION}")]
    Version { found: u16 },
    #[error("{field} is {length} long, at most {limit} is allowed")]
    Field {
        field: &'static str,
        length: usize,
        limit: usize,
    },
    #[error("{0} bytes follow the message")]
    Trailing(usize),
    #[error("not a message: {0}")]
    Malformed(String),
}

/// One direction of the conversation.
pub trait Message: Serialize + DeserializeOwned {
    /// Whether every field keeps its bound.
    fn check(&self) -> Result<(), ControlError>;
}

/// The packet for a message: the version, two bytes, and the message.
pub fn encode<M: Message>(message: &M) -> Result<Vec<u8>, ControlError> {
    message.check()?;
    let mut packet = VERSION.to_be_bytes().to_vec();
    rmp_serde::encode::write(&mut packet, message).map_err(|error| ControlError::Malformed(error.to_string()))?;
    if packet.len() > PACKET {
        return Err(ControlError::Packet { length: packet.len() });
    }
    Ok(packet)
}

/// The message in a packet.
pub fn decode<M: Message>(packet: &[u8]) -> Result<M, ControlError> {
    if packet.len() > PACKET {
        return Err(ControlError::Packet { length: packet.len() });
    }
    let Some((version, mut rest)) = packet.split_first_chunk() else {
        return Err(ControlError::Malformed("the packet has no version".into()));
    };
    let found = u16::from_be_bytes(*version);
    if found != VERSION {
        return Err(ControlError::Version { found });
    }
    let message = M::deserialize(&mut rmp_serde::Deserializer::new(&mut rest));
    let message = message.map_err(|error| ControlError::Malformed(error.to_string()))?;
    if !rest.is_empty() {
        return Err(ControlError::Trailing(rest.len()));
    }
    message.check()?;
    Ok(message)
}

pub(crate) fn bound(field: &'static str, length: usize, limit: usize) -> Result<(), ControlError> {
    if length <= limit {
        Ok(())
    } else {
        Err(ControlError::Field { field, length, limit })
    }
}

fn number(library: u32) -> Result<(), ControlError> {
    bound("library", library as usize, NUMBERS as usize - 1)
}

impl Message for ToWarden {
    fn check(&self) -> Result<(), ControlError> {
        match self {
            Self::Start { label, .. } => bound("label", label.len(), LABEL),
            Self::Kill { .. } => Ok(()),
        }
    }
}

impl Message for FromWarden {
    fn check(&self) -> Result<(), ControlError> {
        match self {
            Self::NotStarted { call, .. } => bound("call", call.len(), SYMBOL),
            Self::Hello { .. } | Self::Started { .. } | Self::Exited { .. } => Ok(()),
        }
    }
}

impl Message for ToWorker {
    fn check(&self) -> Result<(), ControlError> {
        match self {
            Self::Load(load) => {
                bound("path", load.path.len(), PATH)?;
                bound("load_info", load.load_info.len(), LOAD_INFO)?;
                number(load.library)?;
                load.replaces.map_or(Ok(()), number)?;
                load.process.as_ref().map_or(Ok(()), |process| {
                    bound("executors", process.executors.into(), EXECUTORS.into())?;
                    bound("erts", process.system.erts.len(), VERSION_TEXT)?;
                    bound("release", process.system.release.len(), VERSION_TEXT)
                })
            }
            Self::Proceed { library } | Self::Unload { library } => number(*library),
            Self::Release { ids } => bound("ids", ids.len(), RELEASES),
            Self::Answer { reply, .. } => reply.check(),
            Self::Stop | Self::Down { .. } => Ok(()),
        }
    }
}

impl Message for FromWorker {
    fn check(&self) -> Result<(), ControlError> {
        match self {
            Self::Hello { .. } => Ok(()),
            Self::Opened(loaded) | Self::Loaded(loaded) => {
                number(loaded.library)?;
                bound("module", loaded.module.len(), NAME)?;
                bound("functions", loaded.functions.len(), FUNCTIONS)?;
                for function in &loaded.functions {
                    bound("function", function.name.len(), NAME)?;
                    bound("arity", usize::try_from(function.arity).unwrap_or(usize::MAX), ARITY)?;
                }
                bound("missing", loaded.missing.len(), MISSING)?;
                loaded
                    .missing
                    .iter()
                    .try_for_each(|symbol| bound("symbol", symbol.len(), SYMBOL))
            }
            Self::Failed(failed) => bound("message", failed.message.len(), MESSAGE),
            Self::NotLoaded { library, failed } => {
                number(*library)?;
                bound("message", failed.message.len(), MESSAGE)
            }
            Self::Unloaded { library } => number(*library),
        }
    }
}
