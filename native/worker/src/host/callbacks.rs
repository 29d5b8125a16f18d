//! The thread that runs what is nobody's call: destructors, down callbacks, load and unload callbacks of the libraries after
//! the first, and the closing of libraries.
//!
//! Not the thread that hears the VM: a callback may ask the VM something, and wait for the answer. And not that of who lets go
//! of the last reference: it may hold a lock that the destructor takes, run a destructor itself, one of a chain of thousands,
//! or be the thread that the unload callback joins.

use super::library::Library;
use super::monitor;
use super::resource::{self, Doomed};
use crate::thread;
use std::cell::Cell;
use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Sender};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What is to be done.
pub enum Work {
    /// The VM has dropped these handles.
    Release(Vec<u64>),
    /// A monitored process has ended.
    Down(u64),
    /// Nobody refers to this object.
    Destroy(Doomed),
    /// Nobody holds this library.
    Close(&'static Library),
    /// Loading and unloading.
    Other(Box<dyn FnOnce() + Send>),
    /// Once something holds that nobody tells.
    When(Awaited),
    /// Nothing; drops the sender.
    Settle(Sender<()>),
    /// Behind this nothing is done.
    Last(Box<dyn FnOnce() + Send>),
}

/// `work` is done when `ready` says so. Neither waits.
pub struct Awaited {
    pub ready: Box<dyn Fn() -> bool + Send>,
    pub work: Box<dyn FnOnce() + Send>,
}

impl fmt::Debug for Work {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Work")
    }
}

struct Queue {
    work: VecDeque<Work>,
    /// Started with the first work; a worker that has neither resources nor monitors has no such thread.
    thread: bool,
    sleeps: bool,
    /// Nothing is taken any more.
    ended: bool,
}

static QUEUE: Mutex<Queue> = Mutex::new(Queue {
    work: VecDeque::new(),
    thread: false,
    sleeps: false,
    ended: false,
});
static MORE: Condvar = Condvar::new();

fn queue() -> MutexGuard<'static, Queue> {
    QUEUE.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Queue {
    /// Whether there is somebody who does what is in it. Who is refused a thread may have one the next time.
    fn attended(&mut self) -> bool {
        if !self.thread && !self.ended {
            self.thread = thread::spawn(c"callbacks", serve).is_ok();
        }
        self.thread
    }

    fn wake(&mut self) {
        if std::mem::take(&mut self.sleeps) {
            MORE.notify_one();
        }
    }
}

/// What the thread has for itself.
struct Own {
    /// What its work leads to, done before any other: what comes of a message of the VM happens before the next one.
    work: VecDeque<Work>,
    awaited: Vec<Awaited>,
}

static OWN: Mutex<Own> = Mutex::new(Own {
    work: VecDeque::new(),
    awaited: Vec::new(),
});

thread_local! {
    /// This is the thread. Nothing to be dropped: a thread that ends may still let go of objects.
    static HERE: Cell<bool> = const { Cell::new(false) };
}

/// Only in the thread.
fn own<T>(use_it: impl FnOnce(&mut Own) -> T) -> Option<T> {
    HERE.get()
        .then(|| use_it(&mut OWN.lock().unwrap_or_else(PoisonError::into_inner)))
}

/// Has it done soon, in the order of these calls.
pub fn later(work: Work) {
    let mut work = Some(work);
    own(|own| own.work.extend(work.take()));
    let Some(work) = work else { return };
    // Declared before the lock, so dropped after it, if it is refused.
    let mut queue = queue();
    if queue.ended {
        return;
    }
    queue.work.push_back(work);
    if queue.work.len() >= MANY {
        BEHIND.store(true, Ordering::Relaxed);
    }
    queue.attended();
    queue.wake();
}

/// With so much to do the thread is behind, until half of it is done.
const MANY: usize = 4_096;

/// What an executor waits between two calls, at most: a destructor may wait for what the next call does.
const BREATH: Duration = Duration::from_millis(10);

/// Read by each call; written when it changes. Relaxed: a hint.
static BEHIND: AtomicBool = AtomicBool::new(false);
static FEWER: Condvar = Condvar::new();

/// An executor is between two calls. If they leave more behind than the thread gets done, it waits for the thread, so that what
/// has not ended yet does not fill the memory. (In the VM each scheduler ends what it has let go of before it goes on.)
#[inline]
pub fn keep_up() {
    if BEHIND.load(Ordering::Relaxed) {
        catch_up();
    }
}

#[cold]
fn catch_up() {
    let behind = |_: &mut Queue| BEHIND.load(Ordering::Relaxed);
    drop(FEWER.wait_timeout_while(queue(), BREATH, behind));
}

/// Whether anything is going to be done: false when the thread cannot be started now.
pub fn attended() -> bool {
    queue().attended()
}

/// Tries to start the thread once more, if something waits for it.
pub fn retry() {
    let mut queue = queue();
    if !queue.work.is_empty() {
        queue.attended();
    }
}

/// Waits until all that was there before has been done.
pub fn settle() {
    let (done, waiting) = mpsc::channel();
    // The thread does not wait for itself.
    if own(|_| ()).is_some() {
        return;
    }
    {
        let mut queue = queue();
        let nothing = !queue.thread && queue.work.is_empty();
        if nothing || !queue.attended() {
            return;
        }
    }
    later(Work::Settle(done));
    // An error: the sender is gone, as it should be.
    let _ = waiting.recv();
}

/// Has `work` done when all that was there before has been, and nothing after it; waits for it. Not for longer than `patience`
/// until it begins: what is done before may go on for ever, and then `work` is not done.
pub fn end(patience: Duration, work: impl FnOnce() + Send + 'static) {
    let (sender, begun) = mpsc::channel();
    let last = Work::Last(Box::new(move || {
        // Who would hear it has lost patience, otherwise.
        let _ = sender.send(());
        work();
    }));
    let attended = {
        let mut queue = queue();
        queue.ended = true;
        queue.work.push_back(last);
        queue.wake();
        std::mem::replace(&mut queue.thread, true)
    };
    if !attended {
        // It had nothing to do, or could not be started.
        serve();
    } else if begun.recv_timeout(patience).is_ok() {
        // An error: the sender is gone, as it should be.
        let _ = begun.recv();
    }
}

/// Between two looks at what is awaited: at first, and at most.
const SHORTEST: Duration = Duration::from_micros(50);
const LONGEST: Duration = Duration::from_millis(20);

/// The thread.
fn serve() {
    // A signal that a library waits for is not for this thread.
    thread::block_signals();
    HERE.set(true);
    let mut pause = SHORTEST;
    let mut look_at = None;
    loop {
        match next(look_at) {
            Some(Work::Last(work)) => {
                look();
                // What this leads to is refused.
                HERE.set(false);
                return work();
            }
            Some(work) => all_of(work),
            None => {
                look();
                pause = (pause * 2).min(LONGEST);
                look_at = None;
            }
        }
        if own(|own| own.awaited.is_empty()) == Some(true) {
            (pause, look_at) = (SHORTEST, None);
        } else if look_at.is_none() {
            look_at = Some(Instant::now() + pause);
        }
    }
}

/// The next work; `None` when it is time to look at what is awaited.
fn next(look_at: Option<Instant>) -> Option<Work> {
    let mut queue = queue();
    loop {
        let rest = look_at.map(|at| at.saturating_duration_since(Instant::now()));
        if rest == Some(Duration::ZERO) {
            return None;
        }
        if let Some(work) = queue.work.pop_front() {
            if queue.work.len() < MANY / 2 && BEHIND.swap(false, Ordering::Relaxed) {
                FEWER.notify_all();
            }
            return Some(work);
        }
        queue.sleeps = true;
        queue = match rest {
            Some(rest) => MORE.wait_timeout(queue, rest).unwrap_or_else(PoisonError::into_inner).0,
            None => MORE.wait(queue).unwrap_or_else(PoisonError::into_inner),
        };
        queue.sleeps = false;
    }
}

/// Does what is not awaited any more.
fn look() {
    let awaited = own(|own| std::mem::take(&mut own.awaited)).unwrap_or_default();
    for Awaited { ready, work } in awaited {
        if ready() {
            all_of(Work::Other(work));
        } else {
            own(|own| own.awaited.push(Awaited { ready, work }));
        }
    }
}

/// Does it and all that it leads to: one after the other, however long the chain.
fn all_of(work: Work) {
    let mut next = Some(work);
    while let Some(work) = next {
        run(work);
        next = own(|own| own.work.pop_front()).flatten();
    }
}

fn run(work: Work) {
    match work {
        Work::Release(numbers) => resource::dropped(&numbers),
        Work::Down(number) => monitor::down(number),
        Work::Destroy(object) => object.destroy(),
        Work::Close(library) => library.end(),
        Work::Other(work) | Work::Last(work) => work(),
        Work::When(awaited) => drop(own(|own| own.awaited.push(awaited))),
        Work::Settle(done) => drop(done),
    }
}
