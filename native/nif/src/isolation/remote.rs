//! Objects (resources) of a worker, as the VM holds them.
//!
//! Each time that a worker sends an object it counts one reference for the VM, and each time the VM makes a resource of its own for
//! it, whose end gives that one reference back. So there is no moment at which both sides disagree.
//!
//! An object that the VM has a handle of already is that handle again, as it would be without isolation: the same term. There is no
//! weak pointer to a resource, but the VM itself finds a living one by the external format of its reference (as it does for one that comes back from another node),
//! and makes a plain reference of it when it is gone.

use super::handle::{Kind, Object};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::CStr;
use std::sync::Arc;

/// References that the VM has dropped and the worker does not know of yet, and the handles that there are.
#[derive(Debug)]
pub struct Releases {
    incarnation: u64,
    /// None when the worker is dead.
    state: Mutex<Option<State>>,
}

#[derive(Debug, Default)]
struct State {
    ids: Vec<u64>,
    /// For each object, the handle that was made last, by the external format of its reference. Not the handle: this does not keep
    /// it alive.
    handles: HashMap<u64, Known>,
    made: u64,
}

#[derive(Debug)]
struct Known {
    serial: u64,
    reference: Box<[u8]>,
}

impl Releases {
    pub fn new(incarnation: u64) -> Self {
        Releases {
            incarnation,
            state: Mutex::new(Some(State::default())),
        }
    }

    /// Takes at most `most` of them.
    pub fn take(&self, most: usize) -> Vec<u64> {
        self.state.lock().as_mut().map_or_else(Vec::new, |state| {
            let rest = state.ids.len() - state.ids.len().min(most);
            state.ids.split_off(rest)
        })
    }

    pub fn put_back(&self, taken: Vec<u64>) {
        if let Some(state) = &mut *self.state.lock() {
            state.ids.extend(taken);
        }
    }

    pub fn pending(&self) -> usize {
        self.state.lock().as_ref().map_or(0, |state| state.ids.len())
    }

    pub fn close(&self) {
        let old = self.state.lock().take();
        drop(old);
    }

    pub fn incarnation(&self) -> u64 {
        self.incarnation
    }

    /// One reference of an object goes back to the worker.
    pub fn give_back(&self, id: u64) {
        if let Some(state) = &mut *self.state.lock() {
            state.ids.push(id);
        }
    }

    /// The external format of the reference that the VM had for the object last. That handle may be gone.
    pub fn reference(&self, id: u64) -> Option<Box<[u8]>> {
        let state = self.state.lock();
        Some(state.as_ref()?.handles.get(&id)?.reference.clone())
    }

    /// Notes the reference of a new handle.
    pub fn made(&self, remote: &Remote, reference: &[u8]) {
        if let Some(state) = &mut *self.state.lock() {
            let (serial, reference) = (remote.serial, reference.into());
            state.handles.insert(remote.id, Known { serial, reference });
        }
    }
}

#[derive(Debug)]
pub struct Remote {
    releases: Arc<Releases>,
    id: u64,
    /// Which of the handles of this worker it is: an object may get another one before the end of this one is noticed.
    serial: u64,
}

impl Remote {
    pub fn new(releases: &Arc<Releases>, id: u64) -> Self {
        let serial = releases.state.lock().as_mut().map_or(0, |state| {
            state.made += 1;
            state.made
        });
        Remote {
            releases: Arc::clone(releases),
            id,
            serial,
        }
    }

    pub fn incarnation(&self) -> u64 {
        self.releases.incarnation
    }

    pub fn id(&self) -> u64 {
        self.id
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        if let Some(state) = &mut *self.releases.state.lock() {
            state.ids.push(self.id);
            if let Entry::Occupied(known) = state.handles.entry(self.id)
                && known.get().serial == self.serial
            {
                known.remove();
            }
        }
    }
}

static KIND: Kind = Kind::new();

impl Object for Remote {
    const NAME: &'static CStr = c"snakepit_object";

    fn kind() -> &'static Kind {
        &KIND
    }
}
