//! `enif_select`: descriptors of the library, watched by one thread with an epoll set.
//!
//! An event is selected once and sent once. A descriptor is known from its first selection until it is stopped, and its
//! object is held as long. The thread may have an event of a descriptor that was stopped meanwhile, and whose number is
//! another one's by now: each has a token, and what does not match is dropped. So it is always safe to call the stop callback
//! at once.

use super::atom;
use super::copy;
use super::env::Env;
use super::resource::{self, Object};
use super::send;
use super::term::Term;
use crate::thread;
use snakepit_wire::Name;
use std::collections::HashMap;
use std::ffi::c_int;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

/// `ErlNifSelectFlags`.
pub const READ: c_int = 1;
pub const WRITE: c_int = 1 << 1;
pub const STOP: c_int = 1 << 2;
pub const CANCEL: c_int = 1 << 3;
pub const CUSTOM: c_int = 1 << 4;
pub const ERROR: c_int = 1 << 5;

/// What `enif_select` gives. A failure is negative.
const STOP_CALLED: c_int = 1;
const INVALID_EVENT: c_int = c_int::MIN | 1 << 2;
const FAILED: c_int = c_int::MIN | 1 << 3;
const CANCELLED: [c_int; 3] = [1 << 4, 1 << 5, 1 << 6];

/// Kinds of events, with the flag, the event of epoll and the atom of each.
const KINDS: [(c_int, u32, &str); 3] = [
    (READ, libc::EPOLLIN as u32, "ready_input"),
    (WRITE, libc::EPOLLOUT as u32, "ready_output"),
    // Reported whether it is asked for or not.
    (ERROR, libc::EPOLLERR as u32, "ready_error"),
];
const TROUBLE: u32 = (libc::EPOLLERR | libc::EPOLLHUP) as u32;

/// A message that waits for its event, in an env of its own.
struct Waiting {
    receiver: Name,
    env: Box<Env>,
    message: Term,
}

// SAFETY: the env is this message's alone, and what its terms refer to is counted atomically.
unsafe impl Send for Waiting {}

struct Watched {
    /// A reference of ours.
    object: *mut Object,
    token: u32,
    /// By kind.
    waiting: [Option<Waiting>; 3],
}

// SAFETY: objects are counted atomically.
unsafe impl Send for Watched {}

#[derive(Default)]
struct Table {
    tokens: u32,
    watched: HashMap<RawFd, Watched>,
}

static TABLE: Mutex<Option<Table>> = Mutex::new(None);

fn table() -> MutexGuard<'static, Option<Table>> {
    TABLE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The epoll set, whose thread was started with it. `None` if there can be none.
static SET: LazyLock<Option<OwnedFd>> = LazyLock::new(|| {
    // SAFETY: takes a number only; the descriptor is new and nobody else's.
    let set = unsafe {
        match libc::epoll_create1(libc::EPOLL_CLOEXEC) {
            -1 => return None,
            fd => OwnedFd::from_raw_fd(fd),
        }
    };
    let number = set.as_raw_fd();
    thread::spawn(c"select", move || watch(number)).ok()?;
    Some(set)
});

/// What the library asks for.
#[derive(Debug, Clone, Copy)]
pub struct Selection {
    pub fd: c_int,
    pub mode: c_int,
    /// Held by the caller.
    pub object: *mut Object,
    pub receiver: Option<Name>,
    /// The message itself, or the reference in it.
    pub term: Term,
}

impl Selection {
    /// The message for a kind of event.
    fn message(&self, event: &str) -> (Box<Env>, Term) {
        let mut env = Env::independent();
        let term = copy::copy(&mut env, self.term);
        if self.mode & CUSTOM != 0 {
            return (env, term);
        }
        let atom = |text| atom::make(text).unwrap_or(Term::NIL);
        let object = env.share_object(self.object);
        let message = env.tuple(&[atom("select"), object, term, atom(event)]);
        (env, message)
    }
}

impl Watched {
    fn interest(&self) -> u32 {
        let wanted = self.waiting.iter().zip(KINDS).filter(|(waiting, _)| waiting.is_some());
        wanted.fold(libc::EPOLLONESHOT as u32, |all, (_, (_, event, _))| all | event)
    }

    fn waits(&self) -> bool {
        self.waiting.iter().any(Option::is_some)
    }

    /// Takes the messages of what has happened. Trouble that nobody waits for wakes who waits for anything.
    fn happened(&mut self, events: u32) -> Vec<Waiting> {
        let trouble = events & TROUBLE != 0;
        let all = trouble && self.waiting[2].is_none();
        let happens = |event: u32| all || events & event != 0 || (trouble && event == KINDS[2].1);
        let kinds = self.waiting.iter_mut().zip(KINDS);
        kinds
            .filter(|(_, (_, event, _))| happens(*event))
            .filter_map(|(waiting, _)| waiting.take())
            .collect()
    }

    /// Has epoll report what is waited for, once.
    fn arm(&self, fd: RawFd) -> io::Result<()> {
        let set = SET.as_ref().ok_or(io::ErrorKind::OutOfMemory)?.as_raw_fd();
        let mut event = libc::epoll_event {
            events: self.interest(),
            u64: u64::from(self.token) << 32 | fd as u64,
        };
        let mut control = |operation| {
            // SAFETY: the event is valid for the call; numbers that mean nothing are refused.
            match unsafe { libc::epoll_ctl(set, operation, fd, &raw mut event) } {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            }
        };
        // A descriptor that the library has closed without a stop is gone from the set, and its number may be another's.
        match control(libc::EPOLL_CTL_MOD) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => control(libc::EPOLL_CTL_ADD),
            result => result,
        }
    }
}

fn forget(fd: RawFd) {
    if let Some(set) = &*SET {
        // SAFETY: takes numbers only; an error says that it is not there.
        unsafe { libc::epoll_ctl(set.as_raw_fd(), libc::EPOLL_CTL_DEL, fd, std::ptr::null_mut()) };
    }
}

/// Sends outside of the table's lock: it may wait.
fn deliver(messages: Vec<Waiting>) {
    for waiting in messages {
        send::notify(waiting.receiver, waiting.message);
        drop(waiting.env);
    }
}

/// The thread.
fn watch(set: RawFd) {
    // A signal that a library waits for is not for this thread.
    thread::block_signals();
    let mut events = [libc::epoll_event { events: 0, u64: 0 }; 64];
    loop {
        // SAFETY: as many events as the array has.
        let count = unsafe { libc::epoll_wait(set, events.as_mut_ptr(), events.len() as c_int, -1) };
        for event in &events[..count.max(0) as usize] {
            deliver(fired(event.u64, event.events));
        }
    }
}

fn fired(data: u64, events: u32) -> Vec<Waiting> {
    let mut table = table();
    let fd = data as u32 as RawFd;
    let watched = table.as_mut().and_then(|table| table.watched.get_mut(&fd));
    let Some(watched) = watched.filter(|watched| watched.token == (data >> 32) as u32) else {
        return Vec::new();
    };
    let mut messages = watched.happened(events);
    if watched.waits() && watched.arm(fd).is_err() {
        // It can be watched no longer: who waits finds out by using it.
        messages.extend(watched.happened(TROUBLE));
        messages.extend(watched.happened(TROUBLE));
    }
    messages
}

/// Gives up what another object had selected, as if it had been stopped without its callback.
fn stolen(table: &mut Table, selection: &Selection) -> Option<Watched> {
    let other = table
        .watched
        .get(&selection.fd)
        .is_some_and(|watched| watched.object != selection.object);
    if !other {
        return None;
    }
    forget(selection.fd);
    table.watched.remove(&selection.fd)
}

fn end(watched: Option<Watched>) {
    if let Some(watched) = watched {
        // SAFETY: the reference that `on` took.
        unsafe { resource::release(watched.object) };
    }
}

/// Highest number that a descriptor can have, and one.
fn descriptors() -> u64 {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the struct is valid for the call.
    unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) };
    limit.rlim_max
}

/// # Safety
/// The caller holds the object; the term belongs to a live env.
pub unsafe fn select(selection: &Selection) -> c_int {
    if selection.fd < 0 || selection.fd as u64 >= descriptors() {
        return INVALID_EVENT;
    }
    if selection.mode & STOP != 0 {
        return stop(selection);
    }
    if selection.mode & CANCEL != 0 {
        return cancel(selection);
    }
    on(selection)
}

fn on(selection: &Selection) -> c_int {
    let Some(receiver) = selection.receiver else {
        return FAILED;
    };
    let wanted = KINDS.map(|(flag, _, event)| {
        (selection.mode & flag != 0).then(|| {
            let (env, message) = selection.message(event);
            Waiting { receiver, env, message }
        })
    });
    let mut replaced = Vec::new();
    let mut ready = Vec::new();
    let (result, other) = {
        let mut table = table();
        let table = table.get_or_insert_default();
        let other = stolen(table, selection);
        let known = table.watched.contains_key(&selection.fd);
        if !known {
            table.tokens = table.tokens.wrapping_add(1);
            // SAFETY: the caller holds it.
            unsafe { resource::keep(selection.object) };
        }
        let token = table.tokens;
        let watched = table.watched.entry(selection.fd).or_insert_with(|| Watched {
            object: selection.object,
            token,
            waiting: [None, None, None],
        });
        for (place, wanted) in watched.waiting.iter_mut().zip(wanted) {
            if let Some(wanted) = wanted {
                replaced.extend(place.replace(wanted));
            }
        }
        match watched.arm(selection.fd) {
            Ok(()) => (0, other),
            // A file: always ready.
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
                ready = watched.happened(TROUBLE);
                (0, other)
            }
            Err(_) => {
                replaced.extend(watched.waiting.iter_mut().filter_map(Option::take));
                let forgotten = if known {
                    None
                } else {
                    table.watched.remove(&selection.fd)
                };
                (FAILED, forgotten.or(other))
            }
        }
    };
    drop(replaced);
    end(other);
    deliver(ready);
    result
}

/// Takes the messages of these kinds, and says which there were.
fn taken(watched: &mut Watched, mode: c_int, messages: &mut Vec<Waiting>) -> c_int {
    let mut result = 0;
    for ((place, (flag, ..)), cancelled) in watched.waiting.iter_mut().zip(KINDS).zip(CANCELLED) {
        if mode & flag != 0
            && let Some(waiting) = place.take()
        {
            messages.push(waiting);
            result |= cancelled;
        }
    }
    result
}

fn cancel(selection: &Selection) -> c_int {
    let mut messages = Vec::new();
    let (result, other) = {
        let mut table = table();
        let Some(table) = table.as_mut() else { return 0 };
        let other = stolen(table, selection);
        let result = match table.watched.get_mut(&selection.fd) {
            None => 0,
            Some(watched) => {
                let cancelled = taken(watched, selection.mode, &mut messages);
                if cancelled == 0 || watched.arm(selection.fd).is_ok() {
                    cancelled
                } else {
                    FAILED
                }
            }
        };
        (result, other)
    };
    drop(messages);
    end(other);
    result
}

fn stop(selection: &Selection) -> c_int {
    let mut messages = Vec::new();
    let (result, watched, other) = {
        let mut table = table();
        let other = table.as_mut().and_then(|table| stolen(table, selection));
        let mut watched = table.as_mut().and_then(|table| table.watched.remove(&selection.fd));
        let result = watched.as_mut().map_or(0, |watched| {
            forget(selection.fd);
            // As the VM does: an error that was waited for is not told.
            taken(watched, READ | WRITE, &mut messages)
        });
        (result, watched, other)
    };
    drop(messages);
    end(other);
    // SAFETY: the caller holds the object.
    unsafe {
        (*resource::kind(selection.object)).run(
            |callbacks| callbacks.stop,
            |callback, owner| {
                let mut env = Env::callback(Some(owner));
                callback(&raw mut *env, resource::data(selection.object), selection.fd, 1);
            },
        );
    }
    end(watched);
    result | STOP_CALLED
}
