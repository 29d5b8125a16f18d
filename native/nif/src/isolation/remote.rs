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
use rustler::{Encoder, Env};
use std::collections::HashMap;
use std::ffi::CStr;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

/// References that the VM has dropped and the worker does not know of yet.
#[derive(Debug)]
pub struct Releases {
    incarnation: u64,
    /// None when the worker is dead.
    ids: Mutex<Option<Vec<u64>>>,
    known: Mutex<Known>,
    /// Who is told that there is something to be taken.
    owner: OnceLock<Owner>,
    /// It was, and has not looked since.
    told: AtomicBool,
}

#[derive(Debug)]
struct Owner(ErlNifPid);

// SAFETY: a pid is a word.
unsafe impl Send for Owner {}
// SAFETY: as above.
unsafe impl Sync for Owner {}

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
            ids: Mutex::new(Some(Vec::new())),
            known: Mutex::default(),
            owner: OnceLock::new(),
            told: AtomicBool::new(false),
        }
    }

    pub fn incarnation(&self) -> u64 {
        self.incarnation
    }

    /// Nothing that may drop a [`Remote`] happens while it is held.
    pub fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock()
    }

    /// One reference of the object is not needed any more.
    pub fn give_back(&self, id: u64) {
        if let Some(ids) = &mut *self.ids.lock() {
            ids.push(id);
        }
    }

    /// Sends `{:releases, incarnation}` to this process when there is something to take, and again when there is after it has
    /// taken. Once.
    pub fn tells(&self, owner: ErlNifPid) {
        let _ = self.owner.set(Owner(owner));
    }

    fn tell(&self, env: *mut ErlNifEnv) {
        // AcqRel: pairs with the Release of `take`; who takes after that finds what was given back before this.
        if self.told.swap(true, Ordering::AcqRel) {
            return;
        }
        if let Some(Owner(owner)) = self.owner.get() {
            // SAFETY: the environment is the callback's, and alive for the whole of it.
            let safe = unsafe { Env::new(&(), env) };
            let message = (atoms::releases(), self.incarnation).encode(safe);
            // SAFETY: the message is of the environment and is copied. An owner that is gone needs none.
            unsafe { enif_send(env, &raw const *owner, null_mut(), message.as_c_arg()) };
        }
    }

    /// Takes at most `most` of them.
    pub fn take(&self, most: usize) -> Vec<u64> {
        self.told.store(false, Ordering::Release);
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

impl Drop for Remote {
    fn drop(&mut self) {
        self.releases.known().remove(self.id, self.mark);
    }
}

static KIND: Kind = Kind::new();

impl Object for Remote {
    const NAME: &'static CStr = c"snakepit_object";

    fn kind() -> &'static Kind {
        &KIND
    }

    fn ended(&self, env: *mut ErlNifEnv) {
        self.releases.give_back(self.id);
        self.releases.tell(env);
    }
}
