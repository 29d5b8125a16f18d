//! The processes that a library watches, for objects of it.
//!
//! `process_info(Pid, monitored_by)` shows who watches: in the VM the object itself. So an object that watches has a resource of the
//! VM's, a [`Watcher`], which leads to the object when it is given back to the library, and each of the library's monitors is a
//! monitor of the VM by it. The object's own handle cannot be that resource: it would have to live as long as the monitors do, and
//! so would the object. A watcher is no handle: the worker counts none for it, and it leads nowhere when the object has ended.

use super::handle::{Handle, Kind, Object, Ref, Watch};
use super::replies::Replies;
use super::worker::Worker;
use parking_lot::Mutex;
use rustler::sys::{ErlNifEnv, ErlNifPid};
use snakepit_wire::service::Reply;
use std::collections::{BTreeMap, HashMap};
use std::ffi::CStr;

/// Monitors of one worker. Their ends, all at once, fit what may wait for the worker.
const MOST: usize = 16_384;
/// Monitors that are given up at once.
const PORTION: usize = 1_024;

/// An object of the library that watches processes. It keeps its worker for them, until the worker's monitors are closed: when it
/// has ended.
#[derive(Debug)]
pub struct Watcher {
    worker: Handle<Worker>,
    id: u64,
}

impl Watcher {
    pub fn incarnation(&self) -> u64 {
        self.worker.incarnation()
    }

    pub fn id(&self) -> u64 {
        self.id
    }
}

static KIND: Kind = Kind::new();

impl Object for Watcher {
    const NAME: &'static CStr = c"snakepit_watcher";

    fn kind() -> &'static Kind {
        &KIND
    }

    fn down(watcher: Handle<Self>, env: *mut ErlNifEnv, _pid: ErlNifPid, watch: Watch) {
        let services = watcher.worker.services();
        services
            .monitors()
            .ended(watcher.worker.borrow(), env, services.replies(), &watch);
    }
}

#[derive(Debug, Default)]
pub struct Monitors(Mutex<Table>);

#[derive(Debug, Default)]
struct Table {
    /// Object and watch, by the library's number.
    active: HashMap<u64, (u64, Watch)>,
    numbers: BTreeMap<Watch, u64>,
    /// Watchers by object, and how many monitors each has.
    watchers: HashMap<u64, (Handle<Watcher>, usize)>,
    closed: bool,
}

impl Monitors {
    /// Watches a process for an object, and answers the request: before its end can be told. `None`: there is a monitor of that
    /// number. True: the process has got a signal.
    pub fn add(
        &self,
        worker: Ref<'_, Worker>,
        env: *mut ErlNifEnv,
        replies: &Replies,
        request: u32,
        number: u64,
        object: u64,
        pid: &ErlNifPid,
    ) -> Option<bool> {
        let mut table = self.0.lock();
        if table.active.contains_key(&number) {
            return None;
        }
        let reply = if table.active.len() >= MOST || table.closed {
            Reply::Refused
        } else if table.watch(worker, env, number, object, pid) {
            Reply::Yes
        } else {
            Reply::No
        };
        let watched = reply == Reply::Yes;
        replies.answer(worker, env, request, reply);
        Some(watched)
    }

    pub fn remove(&self, env: *mut ErlNifEnv, number: u64) {
        let removed = self.0.lock().remove(number);
        // Without the table: an end that is being told at this moment is not known there any more.
        if let Some((watcher, watch)) = removed {
            watcher.borrow().unwatch(env, &watch);
        }
    }

    /// A process has ended. A watch that is not known was given up at the same moment.
    fn ended(&self, worker: Ref<'_, Worker>, env: *mut ErlNifEnv, replies: &Replies, watch: &Watch) {
        let mut table = self.0.lock();
        let Some(number) = table.numbers.get(watch).copied() else {
            return;
        };
        let removed = table.remove(number);
        drop(table);
        drop(removed);
        replies.down(worker, env, number);
    }

    /// All monitors end, or some of them: false when there are others.
    pub fn close(&self, env: *mut ErlNifEnv) -> bool {
        let mut table = self.0.lock();
        table.closed = true;
        let some: Vec<u64> = table.active.keys().take(PORTION).copied().collect();
        let some: Vec<_> = some.iter().filter_map(|number| table.remove(*number)).collect();
        let none = table.active.is_empty();
        drop(table);
        for (watcher, watch) in some {
            watcher.borrow().unwatch(env, &watch);
        }
        none
    }
}

impl Table {
    fn watch(
        &mut self,
        worker: Ref<'_, Worker>,
        env: *mut ErlNifEnv,
        number: u64,
        object: u64,
        pid: &ErlNifPid,
    ) -> bool {
        let watcher = match self.watchers.get(&object) {
            Some((watcher, _)) => watcher.clone(),
            None => Handle::new(Watcher {
                worker: worker.keep(),
                id: object,
            }),
        };
        let Some(watch) = watcher.borrow().watch(env, pid) else {
            return false;
        };
        self.watchers.entry(object).or_insert((watcher, 0)).1 += 1;
        self.active.insert(number, (object, watch));
        self.numbers.insert(watch, number);
        true
    }

    fn remove(&mut self, number: u64) -> Option<(Handle<Watcher>, Watch)> {
        let (object, watch) = self.active.remove(&number)?;
        self.numbers.remove(&watch);
        let (watcher, count) = self.watchers.get_mut(&object)?;
        *count -= 1;
        let watcher = watcher.clone();
        if *count == 0 {
            self.watchers.remove(&object);
        }
        Some((watcher, watch))
    }
}
