//! Resources of the VM without a look-up by type, and with the callbacks `stop` and `down`.
//!
//! rustler finds the type of each resource argument in a hash table (20 ns, a twentieth of a call) and has no `stop`, which
//! `enif_select` needs. Everything here is what rustler does otherwise.

use rustler::sys::{
    ErlNifEnv, ErlNifEvent, ErlNifMonitor, ErlNifPid, ErlNifResourceDown, ErlNifResourceDtor, ErlNifResourceFlags,
    ErlNifResourceStop, ErlNifResourceType, ErlNifResourceTypeInit, c_int, c_void, enif_alloc_resource,
    enif_compare_monitors, enif_demonitor_process, enif_get_resource, enif_init_resource_type, enif_keep_resource,
    enif_make_resource, enif_monitor_process, enif_release_resource,
};
use rustler::{Env, Error as NifError, NifResult, Term};
use std::ffi::CStr;
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ops::Deref;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::{self, NonNull, null_mut};
use std::sync::atomic::{AtomicPtr, Ordering};

/// The VM's mark of a resource type, filled in when the library is loaded.
#[derive(Debug)]
pub struct Kind(AtomicPtr<ErlNifResourceType>);

impl Kind {
    pub const fn new() -> Self {
        Kind(AtomicPtr::new(null_mut()))
    }

    fn get(&self) -> *const ErlNifResourceType {
        // Relaxed: written before the VM calls any function of this library, which the loading orders.
        self.0.load(Ordering::Relaxed)
    }
}

/// What can be the contents of a resource.
pub trait Object: Send + Sync + Sized + 'static {
    const NAME: &'static CStr;

    fn kind() -> &'static Kind;

    /// The VM no longer watches `event`, which can be closed now.
    fn stop(&self, event: ErlNifEvent) {
        let _ = event;
    }

    /// Nobody refers to it any more. `env` is nobody's.
    fn ends(&self, env: *mut ErlNifEnv) {
        let _ = env;
    }

    /// A process of [`Ref::watch`] has ended. `env` is nobody's.
    fn down(handle: Handle<Self>, env: *mut ErlNifEnv, pid: ErlNifPid, watch: Watch) {
        let _ = (handle, env, pid, watch);
    }
}

/// The VM's mark of a process that a resource watches.
#[derive(Debug, Clone, Copy)]
pub struct Watch(ErlNifMonitor);

impl PartialEq for Watch {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Watch {}

impl PartialOrd for Watch {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Watch {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        // SAFETY: both were filled in by the VM.
        unsafe { enif_compare_monitors(&raw const self.0, &raw const other.0) }.cmp(&0)
    }
}

/// Registers the type. Only from the library's load callback; false: the VM refuses.
pub fn register<T: Object>(env: Env<'_>) -> bool {
    const { assert!(align_of::<T>() <= 8, "the VM aligns resources to words") };
    let init = ErlNifResourceTypeInit {
        dtor: destroyed::<T> as *const ErlNifResourceDtor,
        stop: stopped::<T> as *const ErlNifResourceStop,
        down: down::<T> as *const ErlNifResourceDown,
        members: 3,
        dyncall: ptr::null(),
    };
    let mut tried = MaybeUninit::uninit();
    // SAFETY: called while loading, with callbacks of the types that the members are for.
    let kind = unsafe {
        enif_init_resource_type(
            env.as_c_arg(),
            T::NAME.as_ptr(),
            &raw const init,
            ErlNifResourceFlags::ERL_NIF_RT_CREATE,
            tried.as_mut_ptr(),
        )
    };
    T::kind().0.store(kind.cast_mut(), Ordering::Relaxed);
    !kind.is_null()
}

unsafe extern "C" fn destroyed<T: Object>(env: *mut ErlNifEnv, object: *mut c_void) {
    let object = object.cast::<T>();
    // A panic must not cross into the VM; what it leaves behind is leaked.
    // SAFETY: the last use of the object, which `Handle::new` has written.
    let _ = catch_unwind(AssertUnwindSafe(|| unsafe {
        (*object).ends(env);
        object.drop_in_place();
    }));
}

unsafe extern "C" fn stopped<T: Object>(
    _env: *mut ErlNifEnv,
    object: *mut c_void,
    event: ErlNifEvent,
    _is_direct_call: c_int,
) {
    // SAFETY: the VM keeps the object during the callback, and `Handle::new` has written it.
    let object = unsafe { &*object.cast::<T>() };
    let _ = catch_unwind(AssertUnwindSafe(|| object.stop(event)));
}

unsafe extern "C" fn down<T: Object>(
    env: *mut ErlNifEnv,
    object: *mut c_void,
    pid: *const ErlNifPid,
    monitor: *const ErlNifMonitor,
) {
    let Some(object) = NonNull::new(object.cast::<T>()) else {
        return;
    };
    // SAFETY: the VM keeps the object during the callback, and hands over a pid and a monitor.
    let (handle, pid, watch) = unsafe { (Handle::kept(object), pid.read(), Watch(monitor.read())) };
    let _ = catch_unwind(AssertUnwindSafe(|| T::down(handle, env, pid, watch)));
}

/// Owns one reference of a resource.
#[derive(Debug)]
pub struct Handle<T: Object>(NonNull<T>);

// SAFETY: the VM counts references atomically, and the object is Send and Sync.
unsafe impl<T: Object> Send for Handle<T> {}
// SAFETY: as above.
unsafe impl<T: Object> Sync for Handle<T> {}

impl<T: Object> Handle<T> {
    pub fn new(object: T) -> Self {
        // SAFETY: the type was registered before any function of the library could be called; the memory is as large and
        // as aligned (checked in `register`) as `T`, and written before anybody sees it.
        unsafe {
            let memory = enif_alloc_resource(T::kind().get(), size_of::<T>()).cast::<T>();
            memory.write(object);
            Handle(NonNull::new_unchecked(memory))
        }
    }

    /// # Safety
    /// `object` is alive and was made by `new`.
    unsafe fn kept(object: NonNull<T>) -> Self {
        // SAFETY: the caller vouches for the object.
        unsafe { enif_keep_resource(object.as_ptr().cast()) };
        Handle(object)
    }

    pub fn term<'a>(&self, env: Env<'a>) -> Term<'a> {
        // SAFETY: we own a reference, and the environment is the caller's.
        unsafe { Term::new(env, enif_make_resource(env.as_c_arg(), self.0.as_ptr().cast())) }
    }

    pub fn borrow(&self) -> Ref<'_, T> {
        Ref(self.0, PhantomData)
    }
}

impl<T: Object> Clone for Handle<T> {
    fn clone(&self) -> Self {
        // SAFETY: we own a reference.
        unsafe { Handle::kept(self.0) }
    }
}

impl<T: Object> Drop for Handle<T> {
    fn drop(&mut self) {
        // SAFETY: our own reference, given back once.
        unsafe { enif_release_resource(self.0.as_ptr().cast()) };
    }
}

impl<T: Object> Deref for Handle<T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: our reference keeps it alive.
        unsafe { self.0.as_ref() }
    }
}

/// A resource that somebody else keeps alive for `'a`: a term, or a handle.
#[derive(Debug)]
pub struct Ref<'a, T: Object>(NonNull<T>, PhantomData<&'a T>);

impl<T: Object> Clone for Ref<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T: Object> Copy for Ref<'_, T> {}

impl<'a, T: Object> Ref<'a, T> {
    /// The resource behind a term; `badarg` if it is something else.
    #[inline]
    pub fn of(term: Term<'a>) -> NifResult<Self> {
        let mut object = ptr::null();
        // SAFETY: the term belongs to its environment; the type is registered.
        let found = unsafe {
            enif_get_resource(
                term.get_env().as_c_arg(),
                term.as_c_arg(),
                T::kind().get(),
                &raw mut object,
            )
        };
        let object = NonNull::new(object.cast_mut().cast::<T>());
        match object {
            Some(object) if found != 0 => Ok(Ref(object, PhantomData)),
            _ => Err(NifError::BadArg),
        }
    }

    pub fn keep(self) -> Handle<T> {
        // SAFETY: alive for `'a`, and made by `Handle::new`: only such have the type.
        unsafe { Handle::kept(self.0) }
    }

    /// Has [`Object::down`] called, once, when the process ends. `None`: it has ended already.
    pub fn watch(self, env: *mut ErlNifEnv, pid: &ErlNifPid) -> Option<Watch> {
        let mut monitor = MaybeUninit::zeroed();
        // SAFETY: the object is alive; the monitor is filled in when the answer is 0.
        unsafe {
            let failed = enif_monitor_process(env, self.as_c_arg(), ptr::from_ref(pid), monitor.as_mut_ptr());
            (failed == 0).then(|| Watch(monitor.assume_init()))
        }
    }

    /// It is not called any more, unless it is being called already.
    pub fn unwatch(self, env: *mut ErlNifEnv, watch: &Watch) {
        // SAFETY: the object is alive; the monitor was filled in by the VM. One that has fired is unknown to it.
        unsafe { enif_demonitor_process(env, self.as_c_arg(), &raw const watch.0) };
    }

    /// As the VM's functions take it.
    pub fn as_c_arg(self) -> *mut c_void {
        self.0.as_ptr().cast()
    }

    #[inline]
    pub fn get(self) -> &'a T {
        // SAFETY: alive for `'a`.
        unsafe { self.0.as_ref() }
    }
}

impl<T: Object> Deref for Ref<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        self.get()
    }
}
