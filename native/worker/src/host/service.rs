//! Asking the VM: requests go out through the transport that the worker has (the ring's event queue), replies come in by
//! whoever hears the VM (the worker's keeper). Any thread may ask, also while the library loads.
//!
//! Without a transport (a test of the host alone) nothing is answered, and every question fails.

use snakepit_wire::control::encode;
use snakepit_wire::service::{KIND, MESSAGE, Reply, Request};
use std::cell::Cell;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};

/// What carries requests to the VM.
pub trait Transport: Sync {
    /// The longest record that it takes.
    fn longest(&self) -> usize;

    /// Puts a record (of the kind `service::KIND` or `service::MESSAGE`) behind those that are there, and waits for room as long
    /// as the VM takes records. False when it takes no more.
    fn put(&self, kind: u32, record: &[u8]) -> bool;
}

static TRANSPORT: OnceLock<&'static dyn Transport> = OnceLock::new();

/// The VM answers no more.
static STOPPED: AtomicBool = AtomicBool::new(false);

static ASKED: Mutex<Asked> = Mutex::new(Asked { last: 0, waiting: None });

thread_local! {
    /// This thread hears the VM: if it waited for an answer, nobody would bring it.
    static HEARS: Cell<bool> = const { Cell::new(false) };
}

struct Asked {
    last: u32,
    waiting: Option<HashMap<u32, Arc<Waiter>>>,
}

#[derive(Default)]
struct Waiter {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
enum State {
    #[default]
    Waiting,
    Answered(Reply),
    GivenUp,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// By what the library's requests travel; once, before it is loaded.
pub fn connect(transport: &'static dyn Transport) {
    let _ = TRANSPORT.set(transport);
}

/// The calling thread is the one that will call [`answer`].
pub fn hears() {
    HEARS.set(true);
}

/// The VM's answer to a request. One that nobody waits for is nobody's.
pub fn answer(request: u32, reply: Reply) {
    let waiter = lock(&ASKED)
        .waiting
        .as_mut()
        .and_then(|waiting| waiting.remove(&request));
    if let Some(waiter) = waiter {
        waiter.end(State::Answered(reply));
    }
}

/// The VM will answer nothing any more: who waits stops waiting, and nobody begins to.
pub fn stop() {
    let waiting = {
        let mut asked = lock(&ASKED);
        // Relaxed: the lock orders it for those who begin to wait.
        STOPPED.store(true, Ordering::Relaxed);
        asked.waiting.take()
    };
    for waiter in waiting.into_iter().flat_map(HashMap::into_values) {
        waiter.end(State::GivenUp);
    }
}

impl Waiter {
    fn end(&self, state: State) {
        *lock(&self.state) = state;
        self.changed.notify_one();
    }

    fn wait(&self) -> Option<Reply> {
        let mut state = lock(&self.state);
        loop {
            match std::mem::take(&mut *state) {
                State::Answered(reply) => return Some(reply),
                State::GivenUp => return None,
                State::Waiting => state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }
}

/// The VM's reply; `None` when there is none to be had. `request` makes the request with a number.
pub fn ask(request: impl FnOnce(u32) -> Request) -> Option<Reply> {
    TRANSPORT.get().filter(|_| !HEARS.get())?;
    let (number, waiter) = enter()?;
    if !tell(&request(number)) {
        lock(&ASKED)
            .waiting
            .as_mut()
            .and_then(|waiting| waiting.remove(&number));
        return None;
    }
    waiter.wait()
}

/// A number that no request has which waits for its answer, and where that will come to.
fn enter() -> Option<(u32, Arc<Waiter>)> {
    let mut asked = lock(&ASKED);
    // Relaxed: written under the lock that is held here.
    if STOPPED.load(Ordering::Relaxed) {
        return None;
    }
    let Asked { last, waiting } = &mut *asked;
    let waiting = waiting.get_or_insert_default();
    loop {
        *last = last.wrapping_add(1);
        // 0 asks for no answer.
        if *last != 0 && !waiting.contains_key(last) {
            let waiter = Arc::<Waiter>::default();
            waiting.insert(*last, Arc::clone(&waiter));
            return Some((*last, waiter));
        }
    }
}

/// Sends a request; false when it cannot be had that the VM gets it.
pub fn tell(request: &Request) -> bool {
    let Some(transport) = TRANSPORT.get() else {
        return false;
    };
    // A request that breaks a bound is not one that the VM could answer.
    encode(request).is_ok_and(|record| record.len() <= transport.longest() && transport.put(KIND, &record))
}

/// Sends a message that is not to be answered: `record` is its head and its term, of one [`piece`] at most.
pub fn tell_message(record: &[u8]) -> bool {
    TRANSPORT.get().is_some_and(|transport| transport.put(MESSAGE, record))
}

/// As much of a term as goes into one request, with what stands around it.
pub fn piece() -> usize {
    /// Version, names of fields, numbers.
    const AROUND: usize = 128;
    let longest = TRANSPORT.get().map_or(0, |transport| transport.longest());
    snakepit_wire::service::PIECE.min(longest.saturating_sub(AROUND))
}
