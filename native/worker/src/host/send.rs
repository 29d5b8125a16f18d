//! Messages: terms that leave the worker outside of an answer.
//!
//! Whether a process lives, only the VM knows, and asking it for each message would cost a round trip for each. So the first
//! message to a process is a question; after a yes the next ones are told and not asked, for 10 ms or 1,000 of them. A no is
//! final: a process that is dead stays so.

use super::env::Env;
use super::executor;
use super::missing;
use super::service;
use super::term::Term;
use super::wire::Answers;
use snakepit_wire::service::{MESSAGE_HEAD, Named, Reply, Request, message_to};
use snakepit_wire::{EncodeError, EncoderOf, Name, VecSink};
use std::cell::Cell;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A yes holds for so many messages, and no longer than this.
const MESSAGES: u32 = 1_000;
const TRUST: Duration = Duration::from_millis(10);

/// An encoder with its memory, and the stream of its pieces.
struct Sender {
    encoder: EncoderOf<Answers>,
    answers: Answers,
    /// Room for the head of a message, and the term.
    bytes: Vec<u8>,
    stream: u32,
}

/// A sender keeps no more than this for the next message.
const KEPT: usize = 64 << 10;

thread_local! {
    /// Taken out while it is used.
    static SENDER: Cell<Option<Box<Sender>>> = const { Cell::new(None) };
}

impl Sender {
    fn take() -> Box<Self> {
        static STREAMS: AtomicU32 = AtomicU32::new(1);
        SENDER.take().unwrap_or_else(|| {
            Box::new(Self {
                encoder: EncoderOf::<Answers>::new(),
                answers: Answers::default(),
                bytes: Vec::new(),
                // Relaxed: a number that is given once.
                stream: STREAMS.fetch_add(1, Ordering::Relaxed),
            })
        })
    }

    fn give_back(mut self: Box<Self>) {
        self.bytes.clear();
        self.bytes.shrink_to(KEPT);
        SENDER.set(Some(self));
    }

    fn encode(&mut self, term: Term) -> bool {
        self.bytes.resize(MESSAGE_HEAD, 0);
        let mut sink = VecSink::new(&mut self.bytes, usize::MAX);
        let encoded = self
            .encoder
            .encode(&mut self.answers, term, &executor::bounds(), &mut sink);
        if let Err(error) = &encoded {
            // The call says so: a library takes a message that is not sent for a process that is dead.
            missing::called(match error {
                EncodeError::Bytes(_) | EncodeError::Words(_) | EncodeError::Full => {
                    "a message that is larger than an answer may be"
                }
                _ => "a message that is no term which can be sent",
            });
        }
        encoded.is_ok()
    }

    /// The message as a record, if it is one piece.
    fn record(&mut self, to: Name) -> Option<&[u8]> {
        let (head, term) = self.bytes.split_first_chunk_mut()?;
        if term.len() > service::piece() {
            return None;
        }
        *head = message_to(to);
        Some(&self.bytes)
    }

    /// All but the last piece, which is left for the request itself.
    fn parts(&self) -> Option<Vec<u8>> {
        let piece = service::piece();
        let term = self.bytes.get(MESSAGE_HEAD..)?;
        if piece == 0 {
            return None;
        }
        let whole = term.len().saturating_sub(1) / piece * piece;
        for bytes in term[..whole].chunks(piece) {
            let bytes = bytes.to_vec();
            let stream = self.stream;
            if !service::tell(&Request::Part { stream, bytes }) {
                return None;
            }
        }
        Some(term[whole..].to_vec())
    }
}

impl Sender {
    /// What was encoded.
    fn send(&mut self, way: Way, to: Name, asked: bool) -> Option<Reply> {
        if let (Way::Message, false) = (way, asked)
            && let Some(record) = self.record(to)
        {
            return service::tell_message(record).then_some(Reply::Yes);
        }
        let (to, stream, term) = (Named(to), self.stream, self.parts()?);
        let request = |request| match way {
            Way::Message => Request::Send {
                request,
                to,
                stream,
                term,
            },
            Way::PortCommand => Request::Command {
                request,
                to,
                stream,
                term,
            },
        };
        if asked {
            service::ask(request)
        } else {
            service::tell(&request(0)).then_some(Reply::Yes)
        }
    }
}

/// What a request with a term asks for.
#[derive(Debug, Clone, Copy)]
pub enum Way {
    Message,
    PortCommand,
}

/// Sends a term. `None` when the VM did not get it; `Yes` when it was not asked.
///
/// What the VM gets it holds, whatever it answers: it gives back the handles of a message that nobody takes as it gives back
/// all others.
fn transmit(way: Way, to: Name, term: Term, asked: bool) -> Option<Reply> {
    let mut sender = Sender::take();
    let reply = if sender.encode(term) {
        sender.send(way, to, asked)
    } else {
        None
    };
    let mut answers = std::mem::take(&mut sender.answers);
    sender.give_back();
    match reply {
        Some(_) => answers.commit(),
        None => answers.undo(),
    }
    reply
}

/// What is known of a process. One for each place in the VM's table, which is bounded.
struct Peer {
    generation: u32,
    state: State,
}

#[derive(Clone, Copy)]
enum State {
    Dead,
    Lives { until: Instant, messages: u32 },
}

static PEERS: Mutex<Option<HashMap<u32, Peer>>> = Mutex::new(None);

fn peers() -> MutexGuard<'static, Option<HashMap<u32, Peer>>> {
    PEERS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether a process lives, if that need not be asked. Counts a message.
fn trusted(name: Name) -> Option<bool> {
    let mut peers = peers();
    let peer = peers.as_mut()?.get_mut(&name.index)?;
    if peer.generation != name.generation {
        return None;
    }
    match &mut peer.state {
        State::Dead => Some(false),
        State::Lives { until, messages } => {
            *messages = messages.checked_sub(1)?;
            (Instant::now() < *until).then_some(true)
        }
    }
}

/// The VM has said whether a process lives.
fn learn(name: Name, lives: bool) {
    let state = if lives {
        State::Lives {
            until: Instant::now() + TRUST,
            messages: MESSAGES,
        }
    } else {
        State::Dead
    };
    let generation = name.generation;
    peers()
        .get_or_insert_default()
        .insert(name.index, Peer { generation, state });
}

/// `enif_send`: whether the process lives, as far as is known.
pub fn message(to: Name, term: Term) -> bool {
    let trusted = trusted(to);
    if trusted == Some(false) {
        return false;
    }
    match transmit(Way::Message, to, term, trusted.is_none()) {
        Some(Reply::Yes) => {
            if trusted.is_none() {
                learn(to, true);
            }
            true
        }
        Some(Reply::No) => {
            learn(to, false);
            false
        }
        _ => false,
    }
}

/// A message of the host's own, by which nobody learns whether the process lives.
pub fn notify(to: Name, term: Term) {
    transmit(Way::Message, to, term, false);
}

/// `enif_port_command`
pub fn command(to: Name, term: Term) -> bool {
    transmit(Way::PortCommand, to, term, true) == Some(Reply::Yes)
}

/// Ends the terms of the env that a message was made in: the receiver has it.
///
/// # Safety
/// `env` is null or the library's, which does not use its terms any more.
pub unsafe fn spent(env: *mut Env) {
    if !env.is_null() {
        // SAFETY: not null, and nobody else uses it.
        unsafe { (*env).clear() };
    }
}
