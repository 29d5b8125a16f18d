//! The libraries of this process: by which number the VM calls them, and how long each is needed.
//!
//! A library is held by the VM's code, until it says `Unload`, and by each type of its objects that has callbacks, until the
//! type is forgotten and its objects are gone, as in the VM. When the last hold is given up, the thread `callbacks` runs the unload callback and closes the
//! file. Calls do not hold: that would be two counted writes for each. An executor notes what it runs instead, and `Unload`
//! waits until no executor notes the library.

use super::callbacks::{self, Work};
use super::env::{Env, Nif};
use super::option::Options;
use super::term::Term;
use snakepit_wire::control::{LIBRARIES, function_place};
use std::ffi::c_void;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering, compiler_fence, fence};
use std::sync::{Mutex, PoisonError};

pub type LoadCallback = unsafe extern "C" fn(*mut Env, *mut *mut c_void, Term) -> std::ffi::c_int;
pub type UpgradeCallback =
    unsafe extern "C" fn(*mut Env, *mut *mut c_void, *mut *mut c_void, Term) -> std::ffi::c_int;
pub type UnloadCallback = unsafe extern "C" fn(*mut Env, *mut c_void);

/// A function of a library.
#[derive(Debug, Clone, Copy)]
pub struct Function {
    pub nif: Nif,
    pub arity: u32,
    /// `ERL_NIF_DIRTY_JOB_CPU_BOUND`, `ERL_NIF_DIRTY_JOB_IO_BOUND`, or 0.
    pub flags: u32,
}

/// One that was opened. Never freed, since envs and types point to it; some hundred bytes for each that was ever loaded.
#[derive(Debug)]
pub struct Library {
    pub number: u32,
    pub module: Term,
    /// In the order of its table.
    functions: Vec<Function>,
    unload: Option<UnloadCallback>,
    /// What its callbacks have left in `priv_data`.
    private: AtomicPtr<c_void>,
    pub options: Mutex<Options>,
    /// Of `dlopen`.
    handle: *mut c_void,
    holders: AtomicUsize,
}

// SAFETY: the handle is used once, by whoever gives up the last hold; the rest is constant, atomic or locked.
unsafe impl Send for Library {}
// SAFETY: as above.
unsafe impl Sync for Library {}

/// Those that can be called, each at the remainder of its number.
static TABLE: [AtomicPtr<Library>; LIBRARIES] = [const { AtomicPtr::new(ptr::null_mut()) }; LIBRARIES];

/// What each executor runs.
static EXECUTING: Mutex<Vec<&'static Running>> = Mutex::new(Vec::new());

/// The library whose function, or what it left to be cleared, an executor works on; null for none. A cache line of its own.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Running(AtomicPtr<Library>);

impl Running {
    /// A new executor's.
    pub fn register() -> &'static Self {
        let running: &'static Self = Box::leak(Box::default());
        EXECUTING.lock().unwrap_or_else(PoisonError::into_inner).push(running);
        running
    }

    /// The function with this number, if it has this arity. Its library stays until [`Running::leave`].
    #[inline]
    pub fn enter(&self, number: u32, arity: u32) -> Option<(Function, &'static Library)> {
        let (library, place) = function_place(number);
        let entry = &TABLE[library as usize % LIBRARIES];
        // Acquire: pairs with the Release of `publish`.
        let found = entry.load(Ordering::Acquire);
        // Noted, then looked at again: pairs with `Library::withdraw` and `executed`, which take the library out of the table and
        // then look here. Either they see the note, or this sees that the library is gone. Between the two stands a full barrier: one that
        // `executed` has every thread run, so that calls need none; or, where the kernel has no such thing, this thread's.
        self.0.store(found, Ordering::Relaxed);
        if BARRIERS.load(Ordering::Relaxed) {
            compiler_fence(Ordering::SeqCst);
        } else {
            fence(Ordering::SeqCst);
        }
        if found.is_null() || entry.load(Ordering::Relaxed) != found {
            self.leave();
            return None;
        }
        // SAFETY: not null, and libraries are never freed.
        let found: &'static Library = unsafe { &*found };
        let function = (found.number == library)
            .then(|| found.functions.get(place as usize))
            .flatten();
        match function {
            Some(function) if function.arity == arity => Some((*function, found)),
            _ => {
                self.leave();
                None
            }
        }
    }

    #[inline]
    pub fn leave(&self) {
        // Release: what the library's function did happens before the library is closed.
        self.0.store(ptr::null_mut(), Ordering::Release);
    }
}

/// Whether `executed` can have every thread of the process run a barrier. Set before the first executor runs anything.
static BARRIERS: AtomicBool = AtomicBool::new(false);

/// Has calls cost no barrier, where the kernel can run one in every thread when a library goes. Once, before there is a second
/// thread: of a process with several the kernel lets the caller wait for milliseconds, until each processor has heard of it.
pub fn register_barriers() {
    BARRIERS.store(barrier::register(), Ordering::Relaxed);
}

/// `membarrier(2)`: a barrier in all threads, at the cost of the one who asks.
mod barrier {
    const PRIVATE_EXPEDITED: libc::c_int = 1 << 3;
    const REGISTER_PRIVATE_EXPEDITED: libc::c_int = 1 << 4;

    fn membarrier(command: libc::c_int) -> bool {
        // SAFETY: takes numbers only.
        unsafe { libc::syscall(libc::SYS_membarrier, command, 0, 0) == 0 }
    }

    /// For the process.
    pub fn register() -> bool {
        membarrier(REGISTER_PRIVATE_EXPEDITED)
    }

    pub fn run() -> bool {
        membarrier(PRIVATE_EXPEDITED)
    }
}

/// Whether an executor works on it. The library has been withdrawn.
fn executed(library: *const Library) -> bool {
    fence(Ordering::SeqCst);
    if BARRIERS.load(Ordering::Relaxed) && !barrier::run() {
        // Not to be known: then the library stays.
        return true;
    }
    let executing = EXECUTING.lock().unwrap_or_else(PoisonError::into_inner);
    // Acquire: pairs with `leave`.
    executing
        .iter()
        .any(|running| ptr::eq(running.0.load(Ordering::Acquire), library))
}

/// The library with this number, if it can be called.
pub fn find(number: u32) -> Option<&'static Library> {
    let found = TABLE[number as usize % LIBRARIES].load(Ordering::Acquire);
    // SAFETY: null or a library, which is never freed.
    unsafe { found.as_ref() }.filter(|found| found.number == number)
}

/// All that can be called, the newest first.
pub fn all() -> Vec<&'static Library> {
    let entries = TABLE.iter().map(|entry| entry.load(Ordering::Acquire));
    // SAFETY: null or a library, which is never freed.
    let mut found: Vec<&'static Library> = entries.filter_map(|entry| unsafe { entry.as_ref() }).collect();
    found.sort_by_key(|library| std::cmp::Reverse(library.number));
    found
}

impl Library {
    pub fn new(
        number: u32,
        module: Term,
        functions: Vec<Function>,
        unload: Option<UnloadCallback>,
        handle: *mut c_void,
    ) -> &'static Self {
        Box::leak(Box::new(Self {
            number,
            module,
            functions,
            unload,
            private: AtomicPtr::new(ptr::null_mut()),
            options: Mutex::default(),
            handle,
            holders: AtomicUsize::new(1),
        }))
    }

    /// Whether there is room for it: numbers that are alive at a time differ by their remainders.
    pub fn has_room(number: u32) -> bool {
        TABLE[number as usize % LIBRARIES].load(Ordering::Relaxed).is_null()
    }

    /// Its functions can be called from here on.
    pub fn publish(&'static self) {
        let entry = &TABLE[self.number as usize % LIBRARIES];
        // Release: pairs with the loads of `enter` and `find`.
        entry.store(ptr::from_ref(self).cast_mut(), Ordering::Release);
    }

    pub fn private(&self) -> *mut c_void {
        // Written by the library itself, while it loads; whoever else reads it was started, or sent a call, after that.
        self.private.load(Ordering::Relaxed)
    }

    pub fn set_private(&self, private: *mut c_void) {
        self.private.store(private, Ordering::Relaxed);
    }

    /// Where its callbacks write: `enif_priv_data` reads what they have just put there.
    pub fn private_place(&self) -> *mut *mut c_void {
        self.private.as_ptr()
    }

    /// Holds it, unless it is closed.
    pub fn hold(&self) -> bool {
        let another = |count: usize| (count > 0).then(|| count + 1);
        // Relaxed: a new hold is made from one that the table or a type has.
        self.holders
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, another)
            .is_ok()
    }

    /// Gives up a hold. After the last one the library is closed: not in this thread, which may be in its code, or in code that the
    /// unload callback waits for.
    pub fn let_go(&'static self) {
        // AcqRel: what every holder did happens before the library is closed.
        if self.holders.fetch_sub(1, Ordering::AcqRel) == 1 {
            callbacks::later(Work::Close(self));
        }
    }

    /// Nobody holds it: runs the unload callback and closes the library.
    pub fn end(&'static self) {
        self.run_unload();
        self.close();
    }

    pub fn run_unload(&'static self) {
        if let Some(callback) = self.unload {
            let mut env = Env::callback(Some(self));
            // SAFETY: the library's own callback, with an env and its data, once.
            unsafe { callback(&raw mut *env, self.private()) };
        }
    }

    /// Gives up what was opened and never published, without its callback.
    pub fn discard(&'static self) {
        self.close();
    }

    fn close(&self) {
        // SAFETY: opened by `dlopen`, closed once: when nobody holds the library, or nobody ever did.
        unsafe { libc::dlclose(self.handle) };
    }

    /// Nobody can call it from here on. True if this has just been so.
    pub fn withdraw(&'static self) -> bool {
        let entry = &TABLE[self.number as usize % LIBRARIES];
        let this = ptr::from_ref(self).cast_mut();
        // SeqCst, like the fence of `executed`, which comes after it: pairs with `enter`.
        entry
            .compare_exchange(this, ptr::null_mut(), Ordering::SeqCst, Ordering::Relaxed)
            .is_ok()
    }

    /// Whether an executor works on it. Executors do not say when they leave, because each call would pay for it.
    pub fn is_executed(&self) -> bool {
        executed(self)
    }
}
