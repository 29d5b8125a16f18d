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
use std::collections::{BTreeMap, HashMap};
use std::ffi::CStr;
use std::sync::Arc;

/// Objects of which something waits to be given back, beyond those that the VM had at a time: a worker that does not read, and goes on sending.
const WAITING: usize = 1 << 18;

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
    /// How many references of each object: one may have been sent any number of times.
    objects: BTreeMap<u64, u64>,
    references: usize,
    /// Who sends them to the worker, and whether it knows that there are some.
    listener: Option<ErlNifPid>,
    told: bool,
}

// SAFETY: a pid is a word.
unsafe impl Send for Pending {}

impl Pending {
    fn add(&mut self, id: u64, references: u64) {
        *self.objects.entry(id).or_default() += references;
        self.references += references as usize;
    }

    fn take(&mut self, most: usize, taken: &mut Vec<u64>) {
        while taken.len() < most
            && let Some(mut object) = self.objects.first_entry()
        {
            let some = (*object.get()).min((most - taken.len()) as u64);
            taken.extend(std::iter::repeat_n(*object.key(), some as usize));
            self.references -= some as usize;
            *object.get_mut() -= some;
            if *object.get() == 0 {
                object.remove();
            }
        }
    }
}

/// The resources that there are, or were a moment ago.
#[derive(Debug, Default)]
pub struct Known {
    /// The external format of the term, and which of the resources of that object it is.
    objects: HashMap<u64, (u64, Box<[u8]>)>,
    made: u64,
    /// The most objects that there were at a time since nothing has waited to be given back.
    most: usize,
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
        self.most = self.most.max(self.objects.len());
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
                objects: BTreeMap::new(),
                references: 0,
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
            pending.add(id, 1);
        }
    }

    /// The same, and it is told now. `env`: of a callback.
    fn give_back_now(&self, id: u64, env: *mut ErlNifEnv) {
        let listener = match &mut *self.pending.lock() {
            Some(pending) => {
                pending.add(id, 1);
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
        let mut taken = Vec::new();
        let mut all = true;
        if let Some(pending) = &mut *self.pending.lock() {
            pending.told = false;
            pending.take(most, &mut taken);
            all = pending.objects.is_empty();
        }
        if all && taken.is_empty() {
            let mut known = self.known.lock();
            known.most = known.objects.len();
        }
        taken
    }

    /// The worker has no room for them. False: so many wait that it must have been told and told, and has not listened.
    pub fn put_back(&self, taken: &[u64]) -> bool {
        let most = self.known.lock().most;
        let mut pending = self.pending.lock();
        let Some(pending) = &mut *pending else { return true };
        for id in taken {
            pending.add(*id, 1);
        }
        pending.objects.len() <= most + WAITING
    }

    pub fn pending(&self) -> usize {
        self.pending.lock().as_ref().map_or(0, |pending| pending.references)
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
