//! One thread that unmaps and closes what is large.
//!
//! Unmapping 1 GiB takes 150 ms, and the last close of an unlinked file takes as long. Destructors run on the VM's
//! schedulers, so from [`LARGE`] bytes on they hand the work over. The thread starts with the first job, does them in
//! order, and outlives a job that panics. Its queue is bounded by what may live at all (mappings, descriptors).

use parking_lot::{Condvar, Mutex};
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

/// From here on memory is given back by the thread: 1 MiB unmaps in about 0.15 ms.
pub const LARGE: u64 = 1 << 20;

type Job = Box<dyn FnOnce() + Send>;

struct State {
    queue: VecDeque<(u64, Job)>,
    running: bool,
    submitted: u64,
    done: u64,
    bytes: u64,
}

static STATE: Mutex<State> = Mutex::new(State {
    queue: VecDeque::new(),
    running: false,
    submitted: 0,
    done: 0,
    bytes: 0,
});
static WORK: Condvar = Condvar::new();
static DONE: Condvar = Condvar::new();

/// Has `job` done by the reaper's thread. `bytes` is what it will give back, for [`pending`].
pub fn submit(bytes: u64, job: impl FnOnce() + Send + 'static) {
    let mut state = STATE.lock();
    if !state.running {
        // Started under the lock: there is never a second one.
        let started = std::thread::Builder::new()
            .name("snakepit_reaper".to_owned())
            .spawn(run);
        if started.is_err() {
            // No thread to be had: late is better than never.
            drop(state);
            return job();
        }
        state.running = true;
    }
    state.submitted += 1;
    state.bytes += bytes;
    state.queue.push_back((bytes, Box::new(job)));
    drop(state);
    WORK.notify_one();
}

/// Jobs not done yet, and their bytes.
pub fn pending() -> (u64, u64) {
    let state = STATE.lock();
    (state.submitted - state.done, state.bytes)
}

/// Waits until all that was submitted before this call is done. False when `timeout` passes first.
pub fn flush(timeout: Duration) -> bool {
    let deadline = Instant::now() + timeout;
    let mut state = STATE.lock();
    let ticket = state.submitted;
    // One thread, first in, first out: `done` passes the ticket exactly when the last of them is finished.
    while state.done < ticket {
        if DONE.wait_until(&mut state, deadline).timed_out() {
            return state.done >= ticket;
        }
    }
    true
}

fn run() {
    let mut state = STATE.lock();
    loop {
        let Some((bytes, job)) = state.queue.pop_front() else {
            WORK.wait(&mut state);
            continue;
        };
        drop(state);
        // A job owns what it gives back, nobody else sees it: nothing is left half-done by a panic.
        let _ = catch_unwind(AssertUnwindSafe(job));
        state = STATE.lock();
        state.done += 1;
        state.bytes -= bytes;
        DONE.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn a_panic_does_not_stop_it() {
        let count = Arc::new(AtomicUsize::new(0));
        submit(1, || std::panic::resume_unwind(Box::new("a job that fails")));
        let seen = Arc::clone(&count);
        submit(1, move || {
            seen.fetch_add(1, Ordering::Relaxed);
        });
        assert!(flush(Duration::from_secs(10)));
        assert_eq!(count.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn a_flush_has_a_deadline() {
        let (release, wait) = std::sync::mpsc::channel::<()>();
        submit(7, move || {
            let _ = wait.recv();
        });
        assert!(!flush(Duration::from_millis(1)));
        assert!(pending().1 >= 7);
        drop(release);
        assert!(flush(Duration::from_secs(10)));
    }
}
