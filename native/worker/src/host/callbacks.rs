//! The thread that runs what the VM sets off: destructors of objects whose last handle it has dropped, and down callbacks of
//! monitors, load and unload callbacks of the libraries after the first. Not the one that hears the VM: a callback may ask the VM something, and wait for the answer.

use super::monitor;
use super::resource;
use crate::thread;
use std::fmt;
use std::sync::LazyLock;
use std::sync::mpsc::{self, Sender};

/// What the VM has told.
pub enum Work {
    Release(Vec<u64>),
    Down(u64),
    /// Loading and unloading.
    Other(Box<dyn FnOnce() + Send>),
    /// Nothing; drops the sender.
    Settle(Sender<()>),
}

impl fmt::Debug for Work {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Work")
    }
}

/// Started by the first of it; a worker that has neither resources nor monitors has no such thread.
static WORK: LazyLock<Option<Sender<Work>>> = LazyLock::new(|| {
    let (sender, receiver) = mpsc::channel();
    let started = thread::spawn(c"callbacks", move || {
        // A signal that a library waits for is not for this thread.
        thread::block_signals();
        while let Ok(work) = receiver.recv() {
            run(work);
        }
    });
    started.is_ok().then_some(sender)
});

/// Has it done soon, in the order of these calls.
pub fn later(work: Work) {
    match &*WORK {
        Some(sender) => {
            // The receiver lives as long as the process.
            let _ = sender.send(work);
        }
        // No thread can be had. Here a callback that asks the VM gets no answer, instead of waiting for ever.
        None => run(work),
    }
}

fn run(work: Work) {
    match work {
        Work::Release(numbers) => resource::dropped(&numbers),
        Work::Down(number) => monitor::down(number),
        Work::Other(work) => work(),
        Work::Settle(done) => drop(done),
    }
}

/// Waits until all that was there before has been done.
pub fn settle() {
    let (done, waiting) = mpsc::channel();
    later(Work::Settle(done));
    // An error: the sender is gone, as it should be.
    let _ = waiting.recv();
}
