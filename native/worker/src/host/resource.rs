//! Resources: objects of the library, counted here, known to the VM by a number.
//!
//! References are held by the library (`enif_alloc_resource`, `enif_keep_resource`), by the envs that hold a term of
//! the object, by buffers over the object's memory, and by the VM: as many as it was sent handles and has not yet
//! released. When the last reference goes, the destructor runs in the thread `callbacks`.

use super::callbacks::{self, Work};
use super::env::Env;
use super::library::Library;
use super::monitor;
use super::term::Term;
use std::alloc::{Layout, alloc, dealloc};
use std::collections::HashMap;
use std::ffi::{c_int, c_void};
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering, fence};
use std::sync::{Mutex, MutexGuard, PoisonError};

pub type Destructor = unsafe extern "C" fn(*mut Env, *mut c_void);
pub type DynamicCall = unsafe extern "C" fn(*mut Env, *mut c_void, *mut c_void);

/// `ErlNifResourceTypeInit` of 2.16; older libraries have fewer fields.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct Callbacks {
    pub destructor: Option<Destructor>,
    pub stop: Option<unsafe extern "C" fn(*mut Env, *mut c_void, c_int, c_int)>,
    pub down: Option<unsafe extern "C" fn(*mut Env, *mut c_void, *mut c_void, *mut c_void)>,
    pub members: c_int,
    pub dynamic_call: Option<DynamicCall>,
}

impl Callbacks {
    pub const NONE: Self = Self {
        destructor: None,
        stop: None,
        down: None,
        members: 0,
        dynamic_call: None,
    };

    const fn any(&self) -> bool {
        self.destructor.is_some() || self.stop.is_some() || self.down.is_some() || self.dynamic_call.is_some()
    }
}

/// What is done with a type's objects, and by whom. Never freed: one that was replaced may be in use.
#[derive(Debug)]
struct Behaviour {
    callbacks: Callbacks,
    owner: &'static Library,
}

/// `ErlNifResourceType`. Never freed: objects point to it.
#[derive(Debug)]
pub struct Type {
    pub module: Term,
    pub name: Term,
    /// If it has any callbacks, this type holds the owner.
    behaviour: AtomicPtr<Behaviour>,
    /// Its objects, and one until it is forgotten.
    references: AtomicUsize,
    /// An object of it has monitored a process.
    monitored: AtomicBool,
}

impl Type {
    #[inline]
    pub fn callbacks(&self) -> &'static Callbacks {
        &self.behaviour().callbacks
    }

    fn behaviour(&self) -> &'static Behaviour {
        // SAFETY: from a box that is never freed. Acquire pairs with the Release of `become`.
        unsafe { &*self.behaviour.load(Ordering::Acquire) }
    }

    fn become_owned(&self, callbacks: Callbacks, owner: &'static Library) -> &'static Behaviour {
        let new = Box::into_raw(Box::new(Behaviour { callbacks, owner }));
        // SAFETY: as in `behaviour`.
        unsafe { &*self.behaviour.swap(new, Ordering::AcqRel) }
    }

    /// Runs a callback of the type, if `pick` finds one, with an env of the owner's. The owner stays meanwhile.
    pub fn run<C>(&self, pick: impl Fn(&Callbacks) -> Option<C>, callback: impl FnOnce(C, &'static Library)) -> bool {
        let (picked, owner) = loop {
            let behaviour = self.behaviour();
            let Some(picked) = pick(&behaviour.callbacks) else {
                return false;
            };
            // Not held: it was taken over just now, or its owner would not be gone.
            if behaviour.owner.hold() {
                if ptr::eq(behaviour, self.behaviour()) {
                    break (picked, behaviour.owner);
                }
                behaviour.owner.let_go();
            }
        };
        callback(picked, owner);
        owner.let_go();
        true
    }

    /// An object of it monitors a process.
    pub fn monitors(&self) {
        // Relaxed: read by whoever lets go of the last reference to that object.
        self.monitored.store(true, Ordering::Relaxed);
    }

    fn let_go(&self) {
        // AcqRel: what was done to the objects happens before their library is closed.
        if self.references.fetch_sub(1, Ordering::AcqRel) == 1 {
            let behaviour = self.behaviour();
            if behaviour.callbacks.any() {
                behaviour.owner.let_go();
            }
        }
    }
}

/// In front of the library's own bytes.
#[derive(Debug)]
#[repr(C, align(16))]
pub struct Object {
    kind: *const Type,
    count: AtomicUsize,
    size: usize,
    /// It keeps its number until it ends, also while the VM has no handle to it.
    numbered: AtomicBool,
}

const HEADER: usize = size_of::<Object>();

static ALIVE: AtomicU64 = AtomicU64::new(0);

static TYPES: Mutex<Vec<&'static Type>> = Mutex::new(Vec::new());

/// Objects that the VM has handles to, or knows as those that watch processes.
struct Known {
    next: u64,
    objects: HashMap<u64, Sent>,
    numbers: HashMap<usize, u64>,
}

struct Sent {
    /// With a reference, as long as there are handles.
    object: *mut Object,
    handles: u64,
}

impl Known {
    fn number(&mut self, object: *mut Object) -> u64 {
        let number = *self.numbers.entry(object as usize).or_insert_with(|| {
            self.next += 1;
            self.next - 1
        });
        self.objects.entry(number).or_insert(Sent { object, handles: 0 });
        number
    }

    fn forget(&mut self, number: u64) {
        if let Some(sent) = self.objects.remove(&number) {
            self.numbers.remove(&(sent.object as usize));
        }
    }
}

// SAFETY: the pointer is a counted reference to an object that any thread may release.
unsafe impl Send for Sent {}

static KNOWN: Mutex<Option<Known>> = Mutex::new(None);

fn known<T>(work: impl FnOnce(&mut Known) -> T) -> T {
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    work(known.get_or_insert_with(|| Known {
        next: 1,
        objects: HashMap::new(),
        numbers: HashMap::new(),
    }))
}

/// Finds a type by module and name. What the callback that runs has opened itself is not there yet, as in the VM.
pub fn find(module: Term, name: Term) -> Option<&'static Type> {
    let types = TYPES.lock().unwrap_or_else(PoisonError::into_inner);
    types
        .iter()
        .copied()
        .find(|kind| kind.module == module && kind.name == name)
}

/// What a load or upgrade callback has opened so far. It counts when the callback has succeeded.
static OPENED: Mutex<Vec<Opened>> = Mutex::new(Vec::new());

struct Opened {
    kind: &'static Type,
    /// Of a type that is taken over; a new one has them already.
    takes_over: Option<Callbacks>,
}

fn opened() -> MutexGuard<'static, Vec<Opened>> {
    OPENED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// All of them, the last one first. Not under the lock any more: what is done with them may run code of a library.
fn take_opened() -> impl Iterator<Item = Opened> {
    std::mem::take(&mut *opened()).into_iter().rev()
}

/// A new type.
pub fn create(owner: &'static Library, name: Term, callbacks: Callbacks) -> &'static Type {
    let kind: &'static Type = Box::leak(Box::new(Type {
        module: owner.module,
        name,
        behaviour: AtomicPtr::new(Box::into_raw(Box::new(Behaviour { callbacks, owner }))),
        references: AtomicUsize::new(1),
        monitored: AtomicBool::new(false),
    }));
    let takes_over = None;
    opened().push(Opened { kind, takes_over });
    kind
}

/// The callbacks of a type become others', with the success of the load or upgrade callback that runs.
pub fn take_over(kind: &'static Type, callbacks: Callbacks) {
    let takes_over = Some(callbacks);
    opened().push(Opened { kind, takes_over });
}

/// The library's callback has succeeded: it has what it has opened. Of two with the same name, the one that was opened first counts:
/// it is the one that is found, or its callbacks are those of the type that both take over.
///
/// A type that was found to be taken over is still there: nothing is disowned while a library is being loaded.
pub fn commit(library: &'static Library) {
    for Opened { kind, takes_over } in take_opened() {
        let callbacks = takes_over.unwrap_or(*kind.callbacks());
        if callbacks.any() {
            // It is being loaded, so it is not closed.
            library.hold();
        }
        if takes_over.is_some() {
            let before = kind.become_owned(callbacks, library);
            if before.callbacks.any() {
                before.owner.let_go();
            }
        } else {
            TYPES.lock().unwrap_or_else(PoisonError::into_inner).insert(0, kind);
        }
    }
}

/// It has failed.
pub fn roll_back() {
    for Opened { kind, takes_over } in take_opened() {
        if takes_over.is_none() {
            // Objects that it has made all the same have nobody who knows them.
            let owner = kind.behaviour().owner;
            kind.become_owned(Callbacks::NONE, owner);
        }
    }
}

/// Forgets the types of a library that is unloaded. It is held by those of them that still have objects. Not while another library
/// is being loaded, which may be taking them over.
pub fn disown(library: &'static Library) {
    let mut forgotten = Vec::new();
    TYPES.lock().unwrap_or_else(PoisonError::into_inner).retain(|kind| {
        let keeps = !ptr::eq(kind.behaviour().owner, library);
        if !keeps {
            forgotten.push(*kind);
        }
        keeps
    });
    forgotten.into_iter().for_each(Type::let_go);
}

fn layout(size: usize) -> Option<Layout> {
    Layout::from_size_align(HEADER.checked_add(size)?, 16).ok()
}

/// A new object with one reference; null if there is no memory.
pub fn allocate(kind: *const Type, size: usize) -> *mut Object {
    let Some(layout) = layout(size) else {
        return ptr::null_mut();
    };
    // SAFETY: the layout holds a header at least.
    unsafe {
        let object = alloc(layout).cast::<Object>();
        if !object.is_null() {
            // Relaxed: a figure.
            ALIVE.fetch_add(1, Ordering::Relaxed);
            // The library has the type, so it is not gone.
            (*kind).references.fetch_add(1, Ordering::Relaxed);
            object.write(Object {
                kind,
                count: AtomicUsize::new(1),
                size,
                numbered: AtomicBool::new(false),
            });
        }
        object
    }
}

/// The library's bytes.
///
/// # Safety
/// `object` is alive.
#[inline]
pub unsafe fn data(object: *mut Object) -> *mut c_void {
    // SAFETY: `allocate` reserved the header and the bytes behind it.
    unsafe { object.cast::<u8>().add(HEADER).cast() }
}

/// The object of a library's pointer.
///
/// # Safety
/// `data` is what `enif_alloc_resource` gave.
#[inline]
pub unsafe fn of_data(data: *mut c_void) -> *mut Object {
    // SAFETY: the inverse of `data`.
    unsafe { data.cast::<u8>().sub(HEADER).cast() }
}

/// # Safety
/// `object` is alive.
pub unsafe fn kind(object: *mut Object) -> *const Type {
    // SAFETY: alive; written once.
    unsafe { (*object).kind }
}

/// # Safety
/// `object` is alive.
pub unsafe fn size(object: *mut Object) -> usize {
    // SAFETY: alive; written once.
    unsafe { (*object).size }
}

/// # Safety
/// `object` is alive.
#[inline]
pub unsafe fn keep(object: *mut Object) {
    // SAFETY: alive. Relaxed: a new reference is made from an existing one.
    unsafe { (*object).count.fetch_add(1, Ordering::Relaxed) };
}

/// A reference to an object, if there is still one.
///
/// # Safety
/// The memory of `object` has not been given back.
pub unsafe fn keep_unless_gone(object: *mut Object) -> bool {
    let another = |count: usize| (count > 0).then(|| count + 1);
    // SAFETY: not given back. Relaxed: as in `keep`, once there is one.
    unsafe {
        (*object)
            .count
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, another)
            .is_ok()
    }
}

/// # Safety
/// The caller gives up a reference of his.
pub unsafe fn release(object: *mut Object) {
    // SAFETY: alive until the last reference is gone. Release pairs with the fence: what each holder did to the object
    // happens before its destructor runs.
    unsafe {
        if (*object).count.fetch_sub(1, Ordering::Release) == 1 {
            fence(Ordering::Acquire);
            if (*(*object).kind).callbacks().any() {
                callbacks::later(Work::Destroy(Doomed(object)));
            } else {
                free(object);
            }
        }
    }
}

/// An object that nobody refers to. Dropped, it stays for good.
#[derive(Debug)]
pub struct Doomed(*mut Object);

// SAFETY: nobody else has it, and what was done to it happens before that.
unsafe impl Send for Doomed {}

impl Doomed {
    /// Runs the destructor. In the thread `callbacks` only: no down callback of the object runs beside it, and a monitor that
    /// it makes has ended when the VM's word of it is read.
    pub fn destroy(self) {
        let Self(object) = self;
        // SAFETY: alive, types live for ever. The count is raised to one for the time that the destructor runs, so that it can make
        // a term of the object. One that the destructor gives away lives on.
        unsafe {
            // First: nobody finds it any more.
            forget(object);
            let destroyed = (*(*object).kind).run(
                |callbacks| callbacks.destructor,
                |destructor, owner| {
                    (*object).count.store(1, Ordering::Relaxed);
                    let mut env = Env::callback(Some(owner));
                    destructor(&raw mut *env, data(object));
                },
            );
            if destroyed {
                if (*object).count.fetch_sub(1, Ordering::Release) != 1 {
                    return;
                }
                fence(Ordering::Acquire);
            }
            // Once more: what the destructor has monitored.
            free(object);
        }
    }
}

/// Takes away the number and the monitors of an object that is about to end.
///
/// # Safety
/// Nobody refers to `object`.
unsafe fn forget(object: *mut Object) {
    // SAFETY: alive, types live for ever. Relaxed: what others did to the object happens before.
    unsafe {
        if (*object).numbered.swap(false, Ordering::Relaxed) {
            unnumber(object);
        }
        if (*(*object).kind).monitored.load(Ordering::Relaxed) {
            monitor::end_all(object);
        }
    }
}

/// Gives the memory back.
///
/// # Safety
/// Nobody refers to `object`, and its destructor, if it has one, has run.
unsafe fn free(object: *mut Object) {
    // SAFETY: as above.
    unsafe {
        forget(object);
        let kind = &*(*object).kind;
        if let Some(layout) = layout((*object).size) {
            dealloc(object.cast(), layout);
            ALIVE.fetch_sub(1, Ordering::Relaxed);
        }
        kind.let_go();
    }
}

/// Objects that have not ended.
pub fn alive() -> u64 {
    ALIVE.load(Ordering::Relaxed)
}

/// The number under which the VM gets a handle to this object. The VM holds a reference for each handle.
pub fn send(object: *mut Object) -> u64 {
    known(|known| {
        let number = known.number(object);
        if let Some(sent) = known.objects.get_mut(&number) {
            if sent.handles == 0 {
                // SAFETY: the sender's env holds it, so it is alive. This is the reference of all handles together.
                unsafe { keep(object) };
            }
            sent.handles += 1;
        }
        number
    })
}

/// The number of an object that the VM may have no handle to. The object has it until it ends.
///
/// # Safety
/// The caller holds the object.
pub unsafe fn number(object: *mut Object) -> u64 {
    // SAFETY: alive. Relaxed: who destroys it comes after all who held it.
    unsafe { (*object).numbered.store(true, Ordering::Relaxed) };
    known(|known| known.number(object))
}

/// Takes away the number of an object that is about to end.
fn unnumber(object: *mut Object) {
    known(|known| {
        if let Some(number) = known.numbers.get(&(object as usize)).copied() {
            known.forget(number);
        }
    });
}

/// The object with this number, with a reference for the caller.
pub fn receive(number: u64) -> Option<*mut Object> {
    known(|known| {
        let sent = known.objects.get(&number)?;
        // SAFETY: while the table is locked, the table's reference keeps it alive, if there are handles; else it was not given
        // back, because it loses its number first.
        unsafe { keep_unless_gone(sent.object) }.then_some(sent.object)
    })
}

/// The VM has dropped a handle to each of these.
pub fn dropped(numbers: &[u64]) {
    for number in numbers {
        let last = known(|known| {
            let sent = known.objects.get_mut(number)?;
            sent.handles = sent.handles.checked_sub(1)?;
            if sent.handles > 0 {
                return None;
            }
            let object = sent.object;
            // SAFETY: the table's reference keeps it alive. Relaxed: whoever gives it a number meanwhile does so under this lock
            // too, and finds the entry or makes one.
            if !unsafe { (*object).numbered.load(Ordering::Relaxed) } {
                known.forget(*number);
            }
            Some(object)
        });
        if let Some(object) = last {
            // SAFETY: the table's reference, which is nobody's any more. Outside of the lock, which its end takes.
            unsafe { release(object) };
        }
    }
}
