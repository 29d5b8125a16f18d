//! One thread that waits for the ends of processes.
//!
//! epoll over their pid file descriptors and one eventfd. The thread starts with the first watch. A message goes out
//! exactly once per watch and receiver: whoever takes the tag out of the entry sends it, and only this thread does
//! (`enif_send` with an environment of its own is for threads that are no schedulers).

use crate::atoms;
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use parking_lot::Mutex;
use rustler::env::SavedTerm;
use rustler::{Encoder, LocalPid, OwnedEnv, Term};
use snakepit_shm_core::descriptor::Descriptor;
use snakepit_shm_core::error::{Error, Result};
use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

/// The eventfd's mark among the events; ids of watches start above it.
const WAKE: u64 = 0;

/// A term that outlives the call it came with.
pub struct Tag {
    env: OwnedEnv,
    term: SavedTerm,
}

impl Tag {
    pub fn new(term: Term<'_>) -> Self {
        let env = OwnedEnv::new();
        let term = env.save(term);
        Tag { env, term }
    }

    fn send(mut self, receiver: &LocalPid) {
        let term = self.term;
        // A receiver that is gone needs no message.
        let _ = self.env.send_and_clear(receiver, |env| {
            (atoms::snakepit_peer_down(), term.load(env)).encode(env)
        });
    }
}

struct Entry {
    /// None from the end of the process on.
    pidfd: Option<Descriptor>,
    receiver: LocalPid,
    /// None from the moment it is being sent.
    tag: Option<Tag>,
}

struct Poller {
    epoll: Epoll,
    wake: EventFd,
}

struct State {
    poller: Option<Arc<Poller>>,
    entries: Option<HashMap<u64, Entry>>,
    /// Watches that were moved after the end: to be sent again.
    late: Vec<u64>,
    last_id: u64,
}

static STATE: Mutex<State> = Mutex::new(State {
    poller: None,
    entries: None,
    late: Vec::new(),
    last_id: WAKE,
});

pub fn add(pidfd: OwnedFd, receiver: LocalPid, tag: Tag) -> Result<u64> {
    let pidfd = Descriptor::new(pidfd, 0, 0)?;
    let mut state = STATE.lock();
    let poller = started(&mut state)?;
    state.last_id += 1;
    let id = state.last_id;
    let event = EpollEvent::new(EpollFlags::EPOLLIN, id);
    poller
        .epoll
        .add(pidfd.as_fd(), event)
        .map_err(|errno| Error::os("epoll_ctl", errno))?;
    // Still under the lock: an event that is there already finds its entry.
    let entry = Entry {
        pidfd: Some(pidfd),
        receiver,
        tag: Some(tag),
    };
    state.entries.get_or_insert_default().insert(id, entry);
    Ok(id)
}

pub fn redirect(id: u64, receiver: LocalPid, tag: Tag) {
    let mut state = STATE.lock();
    let Some(entry) = state.entries.get_or_insert_default().get_mut(&id) else {
        return;
    };
    entry.receiver = receiver;
    let old = entry.tag.replace(tag);
    let ended = entry.pidfd.is_none();
    if ended {
        state.late.push(id);
        if let Some(poller) = &state.poller {
            let _ = poller.wake.write(1);
        }
    }
    drop(state);
    drop(old);
}

pub fn remove(id: u64) {
    let mut state = STATE.lock();
    let entry = state.entries.get_or_insert_default().remove(&id);
    if let (Some(poller), Some(pidfd)) = (&state.poller, entry.as_ref().and_then(|entry| entry.pidfd.as_ref())) {
        let _ = poller.epoll.delete(pidfd.as_fd());
    }
    drop(state);
    drop(entry);
}

/// Watches that are open.
pub fn live() -> u64 {
    STATE.lock().entries.as_ref().map_or(0, |entries| entries.len() as u64)
}

fn started(state: &mut State) -> Result<Arc<Poller>> {
    if let Some(poller) = &state.poller {
        return Ok(Arc::clone(poller));
    }
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(|errno| Error::os("epoll_create1", errno))?;
    let wake = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
        .map_err(|errno| Error::os("eventfd", errno))?;
    epoll
        .add(&wake, EpollEvent::new(EpollFlags::EPOLLIN, WAKE))
        .map_err(|errno| Error::os("epoll_ctl", errno))?;
    let poller = Arc::new(Poller { epoll, wake });
    let thread = Arc::clone(&poller);
    std::thread::Builder::new()
        .name("snakepit_peers".to_owned())
        .spawn(move || run(&thread))
        .map_err(|error| Error::os("pthread_create", Errno::from_raw(error.raw_os_error().unwrap_or(0))))?;
    state.poller = Some(Arc::clone(&poller));
    Ok(poller)
}

fn run(poller: &Poller) {
    let mut events = [EpollEvent::empty(); 64];
    loop {
        let count = poller.epoll.wait(&mut events, EpollTimeout::NONE).unwrap_or(0);
        let ids: Vec<u64> = events[..count].iter().map(EpollEvent::data).collect();
        // What a panic leaves behind is one message that is not sent; the next ones are.
        let _ = catch_unwind(AssertUnwindSafe(|| ids.into_iter().for_each(|id| handle(poller, id))));
    }
}

fn handle(poller: &Poller, id: u64) {
    if id != WAKE {
        return ended(poller, id);
    }
    let _ = poller.wake.read();
    let late = std::mem::take(&mut STATE.lock().late);
    late.into_iter().for_each(|id| ended(poller, id));
}

fn ended(poller: &Poller, id: u64) {
    let mut state = STATE.lock();
    // Closed since the event was read: nobody waits for it.
    let Some(entry) = state.entries.get_or_insert_default().get_mut(&id) else {
        return;
    };
    let pidfd = entry.pidfd.take();
    let tag = entry.tag.take();
    let receiver = entry.receiver;
    if let Some(pidfd) = &pidfd {
        let _ = poller.epoll.delete(pidfd.as_fd());
    }
    drop(state);
    drop(pidfd);
    if let Some(tag) = tag {
        tag.send(&receiver);
    }
}
