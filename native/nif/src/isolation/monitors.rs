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
    /// Watches a process, and answers the request: before its end can be told. False: there is a monitor of that number.
    pub fn add(
        &self,
        worker: Ref<'_, Worker>,
        env: *mut ErlNifEnv,
        replies: &Replies,
        request: u32,
        number: u64,
        pid: &ErlNifPid,
    ) -> bool {
        let mut table = self.0.lock();
        if table.by_number.contains_key(&number) {
            return false;
        }
        let reply = if table.by_number.len() >= MOST || table.closed {
            Reply::Refused
        } else if table.watch(worker, env, number, pid) {
            Reply::Yes
        } else {
            Reply::No
        };
        replies.answer(worker, env, request, reply);
        true
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
        let numbers = table.by_pid.remove(&word).map(|watched| watched.numbers);
        for number in numbers.into_iter().flatten() {
            table.by_number.remove(&number);
            replies.down(worker, env, number);
        }
    }

    /// All monitors end.
    pub fn close(&self, worker: Ref<'_, Worker>, env: *mut ErlNifEnv) {
        let mut table = self.0.lock();
        table.closed = true;
        table.by_number.clear();
        for (_, watched) in table.by_pid.drain() {
            worker.unwatch(env, &watched.watch);
        }
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
