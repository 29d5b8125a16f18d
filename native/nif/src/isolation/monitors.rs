//! The processes that a library watches. One watch of the VM for each process, however many monitors the library has of it.

use super::handle::{Ref, Watch};
use super::replies::Replies;
use super::saved::pid_word;
use super::worker::Worker;
use parking_lot::Mutex;
use rustler::sys::{ErlNifEnv, ErlNifPid, ErlNifTerm, enif_is_process_alive};
use snakepit_wire::service::Reply;
use std::collections::{HashMap, HashSet};

/// Monitors of one worker. Their ends, all at once, fit what may wait for the worker.
const MOST: usize = 16_384;
/// Watches that are given up at once.
const PORTION: usize = 1_024;

#[derive(Debug, Default)]
pub struct Monitors(Mutex<Table>);

#[derive(Debug, Default)]
struct Table {
    by_number: HashMap<u64, ErlNifTerm>,
    by_pid: HashMap<ErlNifTerm, Watched>,
    closed: bool,
}

// SAFETY: pids of local processes are words.
unsafe impl Send for Table {}

#[derive(Debug)]
struct Watched {
    watch: Watch,
    numbers: HashSet<u64>,
}

impl Monitors {
    /// Watches a process, and answers the request: before its end can be told. `None`: there is a monitor of that number. True: the
    /// process has got a signal.
    pub fn add(
        &self,
        worker: Ref<'_, Worker>,
        env: *mut ErlNifEnv,
        replies: &Replies,
        request: u32,
        number: u64,
        pid: &ErlNifPid,
    ) -> Option<bool> {
        let mut table = self.0.lock();
        if table.by_number.contains_key(&number) {
            return None;
        }
        let reply = if table.by_number.len() >= MOST || table.closed {
            Reply::Refused
        } else if table.watch(worker, env, number, pid) {
            Reply::Yes
        } else {
            Reply::No
        };
        let watched = reply == Reply::Yes;
        replies.answer(worker, env, request, reply);
        Some(watched)
    }

    pub fn remove(&self, worker: Ref<'_, Worker>, env: *mut ErlNifEnv, number: u64) {
        let mut table = self.0.lock();
        let Some(word) = table.by_number.remove(&number) else {
            return;
        };
        let Some(watched) = table.by_pid.get_mut(&word) else {
            return;
        };
        watched.numbers.remove(&number);
        if watched.numbers.is_empty() {
            worker.unwatch(env, &watched.watch);
            table.by_pid.remove(&word);
        }
    }

    /// The process has ended. A watch that is not known was given up at the same moment.
    pub fn ended(
        &self,
        worker: Ref<'_, Worker>,
        env: *mut ErlNifEnv,
        replies: &Replies,
        pid: ErlNifPid,
        watch: Watch,
    ) {
        let word = pid_word(pid);
        let mut table = self.0.lock();
        if table.by_pid.get(&word).is_none_or(|watched| watched.watch != watch) {
            return;
        }
        let Some(Watched { numbers, .. }) = table.by_pid.remove(&word) else {
            return;
        };
        for number in &numbers {
            table.by_number.remove(number);
        }
        drop(table);
        // Told without the table: there may be thousands.
        replies.downs(worker, env, numbers.into_iter());
    }

    /// All monitors end, or some of them: false when there are others.
    pub fn close(&self, worker: Ref<'_, Worker>, env: *mut ErlNifEnv) -> bool {
        let mut table = self.0.lock();
        table.closed = true;
        table.by_number = HashMap::new();
        let some: Vec<ErlNifTerm> = table.by_pid.keys().take(PORTION).copied().collect();
        for word in some {
            if let Some(watched) = table.by_pid.remove(&word) {
                worker.unwatch(env, &watched.watch);
            }
        }
        table.by_pid.is_empty()
    }
}

impl Table {
    fn watch(&mut self, worker: Ref<'_, Worker>, env: *mut ErlNifEnv, number: u64, pid: &ErlNifPid) -> bool {
        let word = pid_word(*pid);
        match self.by_pid.get_mut(&word) {
            Some(watched) => {
                // SAFETY: the environment is alive, the pid one of the VM's.
                if unsafe { enif_is_process_alive(env, pid) } == 0 {
                    // Its end is being told to the others.
                    return false;
                }
                watched.numbers.insert(number);
            }
            None => {
                let Some(watch) = worker.watch(env, pid) else {
                    return false;
                };
                let numbers = HashSet::from([number]);
                self.by_pid.insert(word, Watched { watch, numbers });
            }
        }
        self.by_number.insert(number, word);
        true
    }
}
