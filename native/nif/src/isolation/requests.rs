//! The requests of a library, one by one. `services.rs` takes them.

use super::effort::{Effort, Met};
use super::failure::{Failure, Result, Unmakeable, is_dear};
use super::flight::ON_SCHEDULER;
use super::handle::Ref;
use super::names::Holder;
use super::saved::{self, OwnEnv};
use super::scratch;
use super::services::{Function, Intake, Whereis};
use super::terms;
use super::worker::Worker;
use rustler::Env;
use rustler::sys::{
    ErlNifEnv, ErlNifPid, ErlNifPort, ErlNifTerm, enif_get_int64, enif_get_local_pid, enif_get_local_port,
    enif_get_tuple, enif_inspect_iolist_as_binary, enif_is_binary, enif_is_port_alive, enif_is_process_alive,
    enif_make_binary, enif_make_int64, enif_make_ref, enif_make_unique_integer, enif_now_time, enif_port_command,
    enif_send, enif_whereis_pid, enif_whereis_port,
};
use snakepit_shm_core::ring::vm::Done;
use snakepit_wire::control::{self, PACKET};
use snakepit_wire::service::{self, Keyed, Named, Reply, Request};
use snakepit_wire::{DecodeError, Name, NameKind};
use std::collections::HashMap;
use std::mem::MaybeUninit;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Threads of a library that are in the middle of a large term.
const STREAMS: usize = 1024;
/// Terms of the greatest length that may be on their way at once.
const TERMS: u64 = 4;
/// What a word takes.
const WORD: u64 = 8;
/// Bytes of the keys of new references that fit one answer.
const KEYS: usize = PACKET / 2;
/// What a process has to handle for a monitor, in bytes.
const SIGNALS: u64 = 256;
/// Names that are looked at, for want of free places, for one answer of them.
const LOOKS: u64 = 16_384;
/// What a key costs beside its bytes.
const EACH_KEY: usize = 32;
/// What any request takes, in quarters of a microsecond.
const LEAST: u64 = 4;
/// All that `ErlNifUniqueInteger` has.
const PROPERTIES: u32 = 3;

/// Terms in pieces, by stream. `None`: too long.
#[derive(Debug, Default)]
pub struct Parts {
    streams: HashMap<u32, Option<Vec<u8>>>,
    bytes: u64,
}

/// A message or command whose term takes more than a scheduler has time for.
#[derive(Debug)]
pub struct Job {
    pub action: Action,
    pub term: Large,
}

#[derive(Debug)]
pub enum Large {
    /// With the objects in it that were met already.
    Encoded(Vec<u8>, Met),
    /// Somebody decodes it.
    InWork,
    Ready(Decoded),
}

#[derive(Debug)]
pub struct Decoded {
    pub env: OwnEnv,
    /// `None`: it cannot be read.
    pub term: Option<ErlNifTerm>,
    /// That it takes.
    pub bytes: u64,
}

#[derive(Debug, Clone, Copy)]
pub struct Action {
    request: u32,
    kind: NameKind,
    target: Target,
}

#[derive(Debug, Clone, Copy)]
pub enum Target {
    Local(ErlNifTerm),
    /// Of another node.
    Elsewhere,
    Stale,
}

impl Parts {
    fn add(&mut self, stream: u32, bytes: &[u8], limit: u64) -> Result<()> {
        if !self.streams.contains_key(&stream) && self.streams.len() >= STREAMS {
            return Err(Failure::protocol("parts of more terms than there can be threads"));
        }
        let whole = self.streams.entry(stream).or_insert_with(|| Some(Vec::new()));
        let Some(known) = whole else { return Ok(()) };
        let length = bytes.len() as u64;
        if known.len() as u64 + length > limit || self.bytes + length > limit.saturating_mul(TERMS) {
            self.bytes -= known.len() as u64;
            *whole = None;
        } else {
            self.bytes += length;
            known.extend_from_slice(bytes);
        }
        Ok(())
    }

    /// The whole term, with its last bytes. `None`: too long.
    fn finish(&mut self, stream: u32, last: Vec<u8>) -> Option<Vec<u8>> {
        match self.streams.remove(&stream) {
            None => Some(last),
            Some(None) => None,
            Some(Some(mut bytes)) => {
                self.bytes -= bytes.len() as u64;
                bytes.extend_from_slice(&last);
                Some(bytes)
            }
        }
    }
}

impl Intake {
    pub fn serve(&mut self, worker: Ref<'_, Worker>, env: Env<'_>, kind: u32, bytes: &[u8]) -> Result<Done> {
        match kind {
            service::KIND => {}
            service::MESSAGE => {
                let (to, term) = service::message(bytes).map_err(Failure::protocol)?;
                self.works(env, LEAST + bytes.len() as u64 / 64);
                let action = Action::new(&worker, 0, Named(to), NameKind::Pid)?;
                return self.small(worker, env, action, term);
            }
            _ => return Err(Failure::protocol(format!("an event of the kind {kind}"))),
        }
        let request: Request = control::decode(bytes).map_err(Failure::protocol)?;
        self.works(env, weight(&request) + bytes.len() as u64 / 64);
        let looked = worker.names().lock().looked();
        let done = self.request(worker, env, request)?;
        // A full table makes names dear.
        let looks = worker.names().lock().looked() - looked;
        self.works(env, looks / 4);
        Ok(done)
    }

    fn request(&mut self, worker: Ref<'_, Worker>, env: Env<'_>, request: Request) -> Result<Done> {
        let services = worker.services();
        let raw = env.as_c_arg();
        let answer = |request, reply| services.replies().answer(worker, raw, request, reply);
        match request {
            Request::Part { stream, bytes } => self.parts.add(stream, &bytes, worker.limits().bytes)?,
            Request::Send {
                request,
                to,
                stream,
                term,
            } => {
                let action = Action::new(&worker, request, to, NameKind::Pid)?;
                return self.message(worker, env, action, stream, term);
            }
            Request::Command {
                request,
                to,
                stream,
                term,
            } => {
                let action = Action::new(&worker, request, to, NameKind::Port)?;
                return self.message(worker, env, action, stream, term);
            }
            Request::WhereIs { request, port, name } => {
                let reply = self.whereis(&worker, raw, port, &name);
                answer(request, reply);
            }
            Request::Exists { request, name } => {
                let atom = terms::existing_atom(self.env.as_c_arg(), &name);
                answer(request, if atom.is_some() { Reply::Yes } else { Reply::No });
            }
            Request::IsAlive { request, name } => answer(request, is_alive(&worker, raw, name.0)?),
            Request::References { request, count } => {
                let reply = self.references(&worker, count);
                answer(request, reply);
            }
            Request::Unique { request, properties } => {
                if properties & !PROPERTIES != 0 {
                    return Err(Failure::protocol(format!("integers have no property {properties}")));
                }
                answer(request, self.unique(properties));
            }
            Request::Now { request } => answer(request, self.now()),
            Request::Monitor {
                request,
                monitor,
                object,
                pid,
            } => self.monitor(worker, raw, request, (monitor, object), pid.0)?,
            Request::Demonitor { monitor } => services.monitors().remove(raw, monitor),
            Request::Key { request, name } => answer(request, key(&worker, raw, name.0)?),
            Request::Keep { names } => {
                let mut table = worker.names().lock();
                names.iter().try_for_each(|name| table.hold(name.0)).map_err(fault)?;
            }
            Request::Drop { names, since } => {
                worker
                    .drop_names(names.iter().map(|name| name.0), since)
                    .map_err(fault)?;
            }
        }
        Ok(Done::Yes)
    }

    // ── Messages ─────────────────────────────────────────────────────────────────────────────────────────────────

    fn message(
        &mut self,
        worker: Ref<'_, Worker>,
        env: Env<'_>,
        action: Action,
        stream: u32,
        last: Vec<u8>,
    ) -> Result<Done> {
        let Some(bytes) = self.parts.finish(stream, last) else {
            let replies = worker.services().replies();
            replies.answer(worker, env.as_c_arg(), action.request, Reply::Refused);
            return Ok(Done::Yes);
        };
        if bytes.len() > ON_SCHEDULER {
            self.job = Some(Job {
                action,
                term: Large::Encoded(bytes, Met::default()),
            });
            return Ok(Done::NotYet);
        }
        self.small(worker, env, action, &bytes)
    }

    /// A term that is decoded on a scheduler, unless it turns out to be too much for that.
    fn small(&mut self, worker: Ref<'_, Worker>, env: Env<'_>, action: Action, bytes: &[u8]) -> Result<Done> {
        let mut effort = Effort::on_scheduler(&Met::default());
        let raw = self.env.as_c_arg();
        let decoded = scratch::decode_counted(raw, Some(&worker), worker.limits(), bytes, &mut effort);
        self.works(env, effort.work());
        if is_dear(&decoded) {
            let term = Large::Encoded(bytes.to_vec(), effort.met(raw));
            self.env.clear();
            self.job = Some(Job { action, term });
            return Ok(Done::NotYet);
        }
        let (term, size) = readable(decoded, bytes.len())?;
        let term = term.and_then(|term| action.content(self.env.as_c_arg(), term));
        self.works(env, size / 256);
        let reply = if self.has_sent_enough() {
            Reply::Refused
        } else {
            deliver(&worker, env, action, self.env.as_c_arg(), term)
        };
        self.env.clear();
        self.done(worker, env, action, size, reply);
        Ok(Done::Yes)
    }

    /// Answers, and counts what was sent.
    pub fn done(&mut self, worker: Ref<'_, Worker>, env: Env<'_>, action: Action, bytes: u64, reply: Reply) {
        match action.target {
            Target::Local(word) if reply == Reply::Yes => self.sends(word, bytes),
            _ if reply == Reply::Refused
                && action.kind == NameKind::Port
                && !worker.services().grants.port_command =>
            {
                self.deny(Function::PortCommand);
            }
            _ => {}
        }
        worker
            .services()
            .replies()
            .answer(worker, env.as_c_arg(), action.request, reply);
    }

    // ── Everything else ──────────────────────────────────────────────────────────────────────────────────────────

    fn whereis(&mut self, worker: &Worker, env: *mut ErlNifEnv, port: bool, name: &str) -> Reply {
        let granted = match &worker.services().grants.whereis {
            Whereis::All => true,
            Whereis::These(names) => names.iter().any(|granted| granted == name),
        };
        if !granted {
            self.deny(if port {
                Function::WhereisPort
            } else {
                Function::WhereisPid
            });
            return Reply::Refused;
        }
        let Some(atom) = terms::existing_atom(env, name) else {
            return Reply::No;
        };
        let kind = if port { NameKind::Port } else { NameKind::Pid };
        let Some(word) = registered(env, kind, atom) else {
            return Reply::No;
        };
        let named = worker
            .names()
            .lock()
            .local(env, kind, word, || terms::key(env, word))
            .map(|(name, key)| keyed(name, &key));
        named.map_or(Reply::Refused, |keyed| Reply::Names(vec![keyed]))
    }

    /// New references, as many as fit an answer and the table, and do not take long to find places for: the library asks again for others.
    fn references(&mut self, worker: &Worker, count: u32) -> Reply {
        let env = self.env.as_c_arg();
        let mut made: Vec<Keyed> = Vec::new();
        let mut bytes = 0;
        let looked = worker.names().lock().looked();
        for _ in 0..count {
            // SAFETY: our own environment, which is alive.
            let term = unsafe { enif_make_ref(env) };
            let key = terms::key(env, term);
            let words = key.len() as u64;
            bytes += key.len() + EACH_KEY;
            if bytes > KEYS && !made.is_empty() {
                break;
            }
            let mut names = worker.names().lock();
            if names.looked() - looked > LOOKS && !made.is_empty() {
                break;
            }
            match names.keep(env, NameKind::Reference, term, words, Holder::Library) {
                Ok(name) => made.push(keyed(name, &key)),
                Err(_) => break,
            }
        }
        self.env.clear();
        if made.is_empty() && count > 0 {
            return Reply::Refused;
        }
        Reply::Names(made)
    }

    fn unique(&mut self, properties: u32) -> Reply {
        let env = self.env.as_c_arg();
        // SAFETY: our own environment; the properties are some that there are.
        let term = unsafe { enif_make_unique_integer(env, properties.cast_signed()) };
        let bytes = terms::key(env, term).to_vec();
        self.env.clear();
        Reply::Integer(bytes)
    }

    fn now(&mut self) -> Reply {
        let env = self.env.as_c_arg();
        let (mut arity, mut parts) = (0, std::ptr::null());
        // SAFETY: our own environment; a tuple of three integers, which is read before the environment is cleared.
        let microseconds = unsafe {
            let now = enif_now_time(env);
            enif_get_tuple(env, now, &raw mut arity, &raw mut parts);
            let part = |index| {
                let mut number = 0;
                enif_get_int64(env, *parts.add(index), &raw mut number);
                number
            };
            let seconds = part(0) * 1_000_000 + part(1);
            enif_make_int64(env, seconds * 1_000_000 + part(2))
        };
        let bytes = terms::key(env, microseconds).to_vec();
        self.env.clear();
        Reply::Integer(bytes)
    }

    fn monitor(
        &mut self,
        worker: Ref<'_, Worker>,
        env: *mut ErlNifEnv,
        request: u32,
        (number, object): (u64, u64),
        name: Name,
    ) -> Result<()> {
        let (replies, monitors) = (worker.services().replies(), worker.services().monitors());
        match target(&worker, name, NameKind::Pid)? {
            Target::Local(word) => match local_pid(env, word) {
                Some(pid) => match monitors.add(worker, env, replies, request, number, object, &pid) {
                    // It gets a signal as others get a message, and another one when the monitor ends.
                    Some(true) => self.sends(word, SIGNALS),
                    Some(false) => {}
                    None => return Err(Failure::protocol("two monitors have one number")),
                },
                None => replies.answer(worker, env, request, Reply::No),
            },
            Target::Elsewhere => replies.answer(worker, env, request, Reply::No),
            Target::Stale => replies.answer(worker, env, request, Reply::Refused),
        }
        Ok(())
    }
}

impl Action {
    fn new(worker: &Worker, request: u32, to: Named, kind: NameKind) -> Result<Self> {
        Ok(Action {
            request,
            kind,
            target: target(worker, to.0, kind)?,
        })
    }

    /// What is sent of a term: itself, and to a port its bytes, in one piece. `None`: that is no iodata, which the VM would log.
    fn content(&self, env: *mut ErlNifEnv, term: ErlNifTerm) -> Option<ErlNifTerm> {
        if self.kind != NameKind::Port {
            return Some(term);
        }
        let mut bytes = MaybeUninit::uninit();
        // SAFETY: the term is of the environment; the bytes are filled in when the answer is not 0, and are the environment's.
        unsafe {
            if enif_inspect_iolist_as_binary(env, term, bytes.as_mut_ptr()) == 0 {
                None
            } else if enif_is_binary(env, term) != 0 {
                Some(term)
            } else {
                Some(enif_make_binary(env, bytes.as_mut_ptr()))
            }
        }
    }
}

/// A lie, unless the name is merely one that is no more.
fn fault(error: Unmakeable) -> Failure {
    Failure::from(DecodeError::Refused(error))
}

fn target(worker: &Worker, name: Name, kind: NameKind) -> Result<Target> {
    if name.kind != kind {
        return Err(Failure::protocol("a name of another kind than the request is for"));
    }
    match worker.names().lock().word(name) {
        Ok(Some(word)) => Ok(Target::Local(word)),
        Ok(None) => Ok(Target::Elsewhere),
        Err(Unmakeable::Stale) => Ok(Target::Stale),
        Err(error) => Err(fault(error)),
    }
}

/// Decodes a large term.
pub fn decode(worker: &Worker, action: Action, bytes: &[u8], met: &Met) -> Result<Decoded> {
    // Whatever happens in there, the queue does not wait for it for ever.
    let decoded = catch_unwind(AssertUnwindSafe(|| {
        let env = OwnEnv::new();
        let mut effort = Effort::unbounded(met);
        let decoded = scratch::decode_counted(env.as_c_arg(), Some(worker), worker.limits(), bytes, &mut effort);
        let (term, bytes) = readable(decoded, bytes.len())?;
        let term = term.and_then(|term| action.content(env.as_c_arg(), term));
        Ok(Decoded { env, term, bytes })
    }));
    decoded.unwrap_or_else(|_| Err(Failure::protocol("a term cannot be decoded")))
}

/// The term, and the bytes that it takes in the VM: its words and those of what it names, and those that were sent (large
/// binaries lie outside of the heap). No term: beyond a limit, or with a name that is no more.
fn readable(
    decoded: std::result::Result<(ErlNifTerm, u64), DecodeError<Unmakeable>>,
    length: usize,
) -> Result<(Option<ErlNifTerm>, u64)> {
    let length = length as u64;
    match decoded.map_err(Failure::from) {
        Ok((term, words)) => Ok((Some(term), words.saturating_mul(WORD).saturating_add(length))),
        Err(lie @ Failure::Protocol { .. }) => Err(lie),
        Err(_) => Ok((None, length)),
    }
}

/// What serving it takes, in quarters of a microsecond, beside its bytes.
fn weight(request: &Request) -> u64 {
    LEAST
        + match request {
            Request::References { count, .. } => 2 * u64::from(*count),
            Request::Keep { names } | Request::Drop { names, .. } => names.len() as u64 / 4,
            Request::Monitor { .. } | Request::Demonitor { .. } => 4,
            _ => 0,
        }
}

/// Sends the term, which is of its own environment; that is to be cleared. The term is made in any case, and then not sent: its objects
/// were counted by the worker.
pub fn deliver(
    worker: &Worker,
    env: Env<'_>,
    action: Action,
    message: *mut ErlNifEnv,
    term: Option<ErlNifTerm>,
) -> Reply {
    let command = action.kind == NameKind::Port;
    if command && !worker.services().grants.port_command {
        return Reply::Refused;
    }
    let (word, term) = match (action.target, term) {
        (Target::Local(word), Some(term)) => (word, term),
        (Target::Elsewhere, Some(_)) => return Reply::No,
        (Target::Stale, _) | (_, None) => return Reply::Refused,
    };
    let raw = env.as_c_arg();
    // SAFETY: called by a process on a scheduler (a port that is closed ends the VM on a dirty one). The term is of the message's
    // environment, which nobody else has.
    let sent = unsafe {
        if command {
            local_port(raw, word).is_some_and(|port| enif_port_command(raw, &raw const port, message, term) != 0)
        } else {
            local_pid(raw, word).is_some_and(|pid| enif_send(raw, &raw const pid, message, term) != 0)
        }
    };
    yes_or_no(sent)
}

fn yes_or_no(yes: bool) -> Reply {
    if yes { Reply::Yes } else { Reply::No }
}

fn is_alive(worker: &Worker, env: *mut ErlNifEnv, name: Name) -> Result<Reply> {
    if !matches!(name.kind, NameKind::Pid | NameKind::Port) {
        return Err(Failure::protocol("only processes and ports live"));
    }
    let Target::Local(word) = target(worker, name, name.kind)? else {
        return Ok(Reply::No);
    };
    // SAFETY: called by a process; pid and port are the VM's.
    let alive = unsafe {
        if name.kind == NameKind::Pid {
            local_pid(env, word).is_some_and(|pid| enif_is_process_alive(env, &raw const pid) != 0)
        } else {
            local_port(env, word).is_some_and(|mut port| enif_is_port_alive(env, &raw mut port) != 0)
        }
    };
    Ok(yes_or_no(alive))
}

fn key(worker: &Worker, env: *mut ErlNifEnv, name: Name) -> Result<Reply> {
    if name.kind == NameKind::Fun {
        return Err(Failure::protocol("a fun comes with its external format"));
    }
    match worker.names().lock().key(env, name) {
        Ok(key) => Ok(Reply::Key(key.to_vec())),
        Err(Unmakeable::Stale) => Ok(Reply::No),
        Err(error) => Err(fault(error)),
    }
}

fn keyed(name: Name, key: &[u8]) -> Keyed {
    Keyed {
        name: Named(name),
        key: key.to_vec(),
    }
}

fn local_pid(env: *mut ErlNifEnv, word: ErlNifTerm) -> Option<ErlNifPid> {
    let mut pid = MaybeUninit::uninit();
    // SAFETY: a local pid is a term of any environment; filled in when the answer is not 0.
    unsafe { (enif_get_local_pid(env, word, pid.as_mut_ptr()) != 0).then(|| pid.assume_init()) }
}

fn local_port(env: *mut ErlNifEnv, word: ErlNifTerm) -> Option<ErlNifPort> {
    let mut port = MaybeUninit::uninit();
    // SAFETY: as above.
    unsafe { (enif_get_local_port(env, word, port.as_mut_ptr()) != 0).then(|| port.assume_init()) }
}

/// The process or port that has the name.
fn registered(env: *mut ErlNifEnv, kind: NameKind, name: ErlNifTerm) -> Option<ErlNifTerm> {
    // SAFETY: called by a process, with an atom; filled in when the answer is not 0.
    unsafe {
        if kind == NameKind::Pid {
            let mut pid = MaybeUninit::uninit();
            (enif_whereis_pid(env, name, pid.as_mut_ptr()) != 0).then(|| saved::pid_word(pid.assume_init()))
        } else {
            let mut port = MaybeUninit::<ErlNifPort>::uninit();
            (enif_whereis_port(env, name, port.as_mut_ptr()) != 0).then(|| port_word(port.assume_init()))
        }
    }
}

/// The port's own word: for a local one it is the whole term.
fn port_word(port: ErlNifPort) -> ErlNifTerm {
    const { assert!(size_of::<ErlNifPort>() == size_of::<ErlNifTerm>()) };
    // SAFETY: the structure's only field, as `enif_make_port` would read it, which is not among the functions of version 2.16.
    unsafe { std::mem::transmute::<ErlNifPort, ErlNifTerm>(port) }
}
