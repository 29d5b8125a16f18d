//! Objects (resources) of a worker, as the VM holds them.
//!
//! Each time that a worker sends an object it counts one reference for the VM, and each time the VM makes a resource of its own for
//! it, whose end gives that one reference back. So there is no moment at which both sides disagree.

use super::handle::{Kind, Object};
use parking_lot::Mutex;
use std::ffi::CStr;
use std::sync::Arc;

/// References that the VM has dropped and the worker does not know of yet.
#[derive(Debug)]
pub struct Releases {
    incarnation: u64,
    /// None when the worker is dead.
    ids: Mutex<Option<Vec<u64>>>,
}

impl Releases {
    pub fn new(incarnation: u64) -> Self {
        Releases {
            incarnation,
            ids: Mutex::new(Some(Vec::new())),
        }
    }

    /// Takes at most `most` of them.
    pub fn take(&self, most: usize) -> Vec<u64> {
        let mut ids = self.ids.lock();
        ids.as_mut().map_or_else(Vec::new, |ids| {
            let rest = ids.len() - ids.len().min(most);
            ids.split_off(rest)
        })
    }

    pub fn put_back(&self, taken: Vec<u64>) {
        if let Some(ids) = &mut *self.ids.lock() {
            ids.extend(taken);
        }
    }

    pub fn pending(&self) -> usize {
        self.ids.lock().as_ref().map_or(0, Vec::len)
    }

    pub fn close(&self) {
        let old = self.ids.lock().take();
        drop(old);
    }
}

#[derive(Debug)]
pub struct Remote {
    releases: Arc<Releases>,
    id: u64,
}

impl Remote {
    pub fn new(releases: &Arc<Releases>, id: u64) -> Self {
        Remote {
            releases: Arc::clone(releases),
            id,
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
        if let Some(ids) = &mut *self.releases.ids.lock() {
            ids.push(self.id);
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
