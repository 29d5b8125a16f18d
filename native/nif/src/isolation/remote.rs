//! Objects (resources) of a worker, as the VM holds them.
//!
//! Each time that a worker sends an object it counts one reference for the VM. The first time the VM makes a resource of its own for
//! it, whose end gives that reference back; as long as that one lives, later times are the same term, as a library
//! promises (`enif_make_resource` of one object is one term), and give theirs back at once. So there is no moment at which both sides disagree.
//!
//! A resource that may be dying cannot be asked whether it is. But the VM itself finds a living one by the external format of its
//! reference, and only a living one; so that is what is kept of it here.

use super::handle::{Kind, Object};
use crate::atoms;
use parking_lot::{Mutex, MutexGuard};
use rustler::sys::{ErlNifEnv, ErlNifPid, enif_send};
use std::collections::HashMap;
use std::ffi::CStr;
use std::sync::Arc;

/// References that the VM has dropped and the worker does not know of yet.
#[derive(Debug)]
pub struct Releases {
    incarnation: u64,
    /// None when the worker is dead.
    pending: Mutex<Option<Pending>>,
    known: Mutex<Known>,
}

#[derive(Debug)]
struct Pending {
    ids: Vec<u64>,
    /// Who sends them to the worker, and whether it knows that there are some.
    listener: Option<ErlNifPid>,
    told: bool,
}

// SAFETY: a pid is a word.
unsafe impl Send for Pending {}

/// The resources that there are, or were a moment ago.
#[derive(Debug, Default)]
pub struct Known {
    /// The external format of the term, and which of the resources of that object it is.
    objects: HashMap<u64, (u64, Box<[u8]>)>,
    made: u64,
}

impl Known {
    pub fn external(&self, id: u64) -> Option<&[u8]> {
        self.objects.get(&id).map(|(_, external)| &**external)
    }

    /// The mark of a new resource.
    pub fn next(&mut self) -> u64 {
        self.made += 1;
        self.made
    }

    pub fn put(&mut self, id: u64, mark: u64, external: &[u8]) {
        self.objects.insert(id, (mark, external.into()));
    }

    /// Unless there is another one by now.
    fn remove(&mut self, id: u64, mark: u64) {
        if self.objects.get(&id).is_some_and(|(of, _)| *of == mark) {
            self.objects.remove(&id);
        }
    }
}

impl Releases {
    pub fn new(incarnation: u64) -> Self {
        Releases {
            incarnation,
            pending: Mutex::new(Some(Pending {
                ids: Vec::new(),
                listener: None,
                told: false,
            })),
            known: Mutex::default(),
        }
    }

    pub fn incarnation(&self) -> u64 {
        self.incarnation
    }

    /// Nothing that may drop a [`Remote`] happens while it is held.
    pub fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock()
    }

    /// `:released` goes to this process when there is something to [`take`](Releases::take), once until it is taken.
    pub fn listen(&self, listener: Option<ErlNifPid>) {
        if let Some(pending) = &mut *self.pending.lock() {
            pending.listener = listener;
        }
    }

    /// One reference of the object is not needed any more. That is told with the next that ends, or at the next look.
    pub fn give_back(&self, id: u64) {
        if let Some(pending) = &mut *self.pending.lock() {
            pending.ids.push(id);
        }
    }

    /// The same, and it is told now. `env`: of a callback.
    fn give_back_now(&self, id: u64, env: *mut ErlNifEnv) {
        let listener = match &mut *self.pending.lock() {
            Some(pending) => {
                pending.ids.push(id);
                let listener = pending.listener.filter(|_| !pending.told);
                pending.told |= listener.is_some();
                listener
            }
            None => None,
        };
        if let Some(listener) = listener {
            // SAFETY: the VM calls a destructor on a scheduler, with an environment; an atom is a term of any.
            unsafe {
                enif_send(
                    env,
                    &raw const listener,
                    std::ptr::null_mut(),
                    atoms::released().as_c_arg(),
                )
            };
        }
    }

    /// Takes at most `most` of them.
    pub fn take(&self, most: usize) -> Vec<u64> {
        let mut pending = self.pending.lock();
        pending.as_mut().map_or_else(Vec::new, |Pending { ids, told, .. }| {
            *told = false;
            let rest = ids.len() - ids.len().min(most);
            ids.split_off(rest)
        })
    }

    pub fn put_back(&self, taken: Vec<u64>) {
        if let Some(pending) = &mut *self.pending.lock() {
            pending.ids.extend(taken);
        }
    }

    pub fn pending(&self) -> usize {
        self.pending.lock().as_ref().map_or(0, |pending| pending.ids.len())
    }

    pub fn close(&self) {
        let old = self.pending.lock().take();
        drop(old);
    }
}

#[derive(Debug)]
pub struct Remote {
    releases: Arc<Releases>,
    id: u64,
    mark: u64,
}

impl Remote {
    pub fn new(releases: &Arc<Releases>, id: u64, mark: u64) -> Self {
        Remote {
            releases: Arc::clone(releases),
            id,
            mark,
        }
    }

    pub fn incarnation(&self) -> u64 {
        self.releases.incarnation
    }

    pub fn id(&self) -> u64 {
        self.id
    }
}

static KIND: Kind = Kind::new();

impl Object for Remote {
    const NAME: &'static CStr = c"snakepit_object";

    fn kind() -> &'static Kind {
        &KIND
    }

    fn ends(&self, env: *mut ErlNifEnv) {
        self.releases.known().remove(self.id, self.mark);
        self.releases.give_back_now(self.id, env);
    }
}
