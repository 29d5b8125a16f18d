//! `{:error, {reason, details}}` of what has to do with workers. What the operating system refuses is the core's error.

use crate::atoms;
use crate::isolation::handle::Handle;
use crate::isolation::worker::Worker;
use crate::reply::{error_term, failure};
use rustler::{Encoder, Env, Term};
use snakepit_shm_core::error::Error;
use snakepit_shm_core::ring;
use snakepit_wire::control::ControlError;
use snakepit_wire::{DecodeError, EncodeError};
use thiserror::Error as ThisError;

pub type Result<T> = std::result::Result<T, Failure>;

#[derive(Debug)]
pub enum Failure {
    Core(Error),
    /// A peer has said what a correct one never says.
    Protocol {
        message: String,
        worker: Option<Handle<Worker>>,
    },
    /// The socket's buffer is full.
    Busy,
    /// A bound on a payload.
    TooLarge {
        message: String,
    },
    TooManyNames {
        limit: u64,
    },
    TooManyAtoms {
        limit: u64,
    },
    Stale {
        message: String,
    },
    /// The worker could not read or write a term.
    UnsupportedTerm {
        message: String,
    },
    Unsupported {
        message: String,
    },
    NotImplemented {
        symbol: String,
    },
    Mismatch {
        message: String,
    },
}

impl Failure {
    pub fn protocol(message: impl ToString) -> Self {
        Failure::Protocol {
            message: message.to_string(),
            worker: None,
        }
    }

    /// Names the worker that is to be killed for it.
    pub fn by(self, culprit: &Handle<Worker>) -> Self {
        match self {
            Failure::Protocol { message, worker: None } => Failure::Protocol {
                message,
                worker: Some(culprit.clone()),
            },
            other => other,
        }
    }

    #[cold]
    pub fn term<'a>(&self, env: Env<'a>) -> Term<'a> {
        use crate::atoms as a;
        let text = |text: &String| (a::message(), text.encode(env));
        match self {
            Failure::Core(error) => failure(env, error),
            Failure::Protocol { message, worker: None } => error_term(env, a::protocol(), &[text(message)]),
            Failure::Protocol {
                message,
                worker: Some(worker),
            } => error_term(env, a::protocol(), &[text(message), (a::worker(), worker.term(env))]),
            Failure::Busy => error_term(env, a::busy(), &[]),
            Failure::TooLarge { message } => error_term(env, a::too_large(), &[text(message)]),
            Failure::TooManyNames { limit } => {
                error_term(env, a::too_many_names(), &[(a::limit(), limit.encode(env))])
            }
            Failure::TooManyAtoms { limit } => {
                error_term(env, a::too_many_atoms(), &[(a::limit(), limit.encode(env))])
            }
            Failure::Stale { message } => error_term(env, a::stale(), &[text(message)]),
            Failure::UnsupportedTerm { message } => error_term(env, a::unsupported_term(), &[text(message)]),
            Failure::Unsupported { message } => error_term(env, a::unsupported(), &[text(message)]),
            Failure::NotImplemented { symbol } => {
                error_term(env, a::not_implemented(), &[(a::symbol(), symbol.encode(env))])
            }
            Failure::Mismatch { message } => error_term(env, a::mismatch(), &[text(message)]),
        }
    }
}

/// `:ok` or the failure.
pub fn done(env: Env<'_>, result: Result<()>) -> Term<'_> {
    match result {
        Ok(()) => atoms::ok().encode(env),
        Err(failure) => failure.term(env),
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Failure::Core(error)
    }
}

impl From<ring::Error> for Failure {
    fn from(error: ring::Error) -> Self {
        match error {
            ring::Error::Os { call, errno } => Failure::Core(Error::os(call, errno)),
            ring::Error::BadPlan { field, expected, .. } => {
                Failure::Core(Error::invalid_spec(field, format!("must be {expected}")))
            }
            ring::Error::Limit(error) => Failure::Core(error),
            ring::Error::TooLarge { .. } => Failure::TooLarge {
                message: error.to_string(),
            },
            ring::Error::BadMemory { .. } | ring::Error::Protocol(_) => Failure::protocol(error),
        }
    }
}

impl From<ring::Fault> for Failure {
    fn from(fault: ring::Fault) -> Self {
        Failure::protocol(fault)
    }
}

/// Not ours to blame on anybody: what we wrote ourselves did not fit.
pub fn unsent(error: ControlError) -> Failure {
    match error {
        ControlError::Packet { .. } | ControlError::Field { .. } => Failure::TooLarge {
            message: error.to_string(),
        },
        other => Failure::Unsupported {
            message: other.to_string(),
        },
    }
}

/// Why a term of the VM does not go to a worker.
#[derive(Debug, Clone, Copy, ThisError)]
pub enum Unreadable {
    #[error("all names of the table are in use by calls")]
    Names { limit: u64 },
    /// The resource lives in the worker with this number.
    #[error("a resource of another worker, or of one that has ended")]
    Elsewhere(u64),
    #[error("the VM could not write the term")]
    Odd,
}

/// Why a term of a worker is not made in the VM.
#[derive(Debug, Clone, Copy, ThisError)]
pub enum Unmakeable {
    #[error("a pid, port, reference or fun that it was never given")]
    Forged,
    #[error("a reference, fun or pid of a call that has ended")]
    Stale,
    #[error("resources are not accepted here")]
    NoResources,
    #[error("more new atoms than the library may make")]
    Atoms { limit: u64 },
    #[error("the VM has no memory for it")]
    Memory,
    #[error("the VM refuses the term")]
    Refused,
    #[error("too much for a scheduler")]
    Dear,
}

/// Whether a payload is to be decoded elsewhere.
pub fn is_dear<T>(decoded: &std::result::Result<T, DecodeError<Unmakeable>>) -> bool {
    matches!(decoded, Err(DecodeError::Refused(Unmakeable::Dear)))
}

/// Whether a correct worker could have sent what was refused: its handles count.
pub fn is_honest(error: &DecodeError<Unmakeable>) -> bool {
    matches!(
        error,
        DecodeError::Refused(Unmakeable::Stale | Unmakeable::Atoms { .. } | Unmakeable::Memory)
            | DecodeError::Bytes(_)
            | DecodeError::Words(_)
            | DecodeError::Depth(_)
    )
}

impl From<EncodeError<Unreadable>> for Failure {
    #[cold]
    fn from(error: EncodeError<Unreadable>) -> Self {
        match error {
            EncodeError::Refused(Unreadable::Names { limit }) => Failure::TooManyNames { limit },
            EncodeError::Refused(Unreadable::Elsewhere(_)) => Failure::Stale {
                message: error.to_string(),
            },
            EncodeError::Refused(Unreadable::Odd) | EncodeError::NotFinite | EncodeError::Inconsistent(_) => {
                Failure::UnsupportedTerm {
                    message: error.to_string(),
                }
            }
            EncodeError::Full | EncodeError::Bytes(_) | EncodeError::Words(_) | EncodeError::Depth(_) => {
                Failure::TooLarge {
                    message: format!("arguments: {error}"),
                }
            }
        }
    }
}

impl From<DecodeError<Unmakeable>> for Failure {
    #[cold]
    fn from(error: DecodeError<Unmakeable>) -> Self {
        match error {
            DecodeError::Refused(Unmakeable::Stale) => Failure::Stale {
                message: error.to_string(),
            },
            DecodeError::Refused(Unmakeable::Atoms { limit }) => Failure::TooManyAtoms { limit },
            DecodeError::Refused(Unmakeable::Memory | Unmakeable::Dear)
            | DecodeError::Bytes(_)
            | DecodeError::Words(_)
            | DecodeError::Depth(_) => Failure::TooLarge {
                message: format!("result: {error}"),
            },
            other => Failure::protocol(other),
        }
    }
}
