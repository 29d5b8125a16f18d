//! Mutexes, condition variables, read-write locks: the C library's, with a name.

use std::cell::UnsafeCell;
use std::ffi::{CStr, CString, c_char, c_int};

/// A lock and its name. Never moves, since the C library may keep its address.
#[derive(Debug)]
#[repr(C)]
pub struct Named<T> {
    lock: UnsafeCell<T>,
    name: CString,
}

pub type Mutex = Named<libc::pthread_mutex_t>;
pub type Condition = Named<libc::pthread_cond_t>;
pub type ReadWriteLock = Named<libc::pthread_rwlock_t>;

/// # Safety
/// `name` is null or terminated.
pub unsafe fn owned_name(name: *const c_char) -> CString {
    if name.is_null() {
        return CString::default();
    }
    // SAFETY: not null, so terminated.
    unsafe { CStr::from_ptr(name) }.to_owned()
}

/// # Safety
/// `name` is null or terminated.
unsafe fn create<T>(lock: T, name: *const c_char) -> *mut Named<T> {
    // SAFETY: the caller's promise.
    let name = unsafe { owned_name(name) };
    Box::into_raw(Box::new(Named {
        lock: UnsafeCell::new(lock),
        name,
    }))
}

/// # Safety
/// `lock` is one of ours and alive, or null.
unsafe fn name<T>(lock: *mut Named<T>) -> *mut c_char {
    if lock.is_null() {
        return std::ptr::null_mut();
    }
    // SAFETY: alive; the name is as old as the lock.
    unsafe { (*lock).name.as_ptr().cast_mut() }
}

api! {
    fn enif_mutex_create(name: *mut c_char) -> *mut Mutex {
        create(libc::PTHREAD_MUTEX_INITIALIZER, name)
    }

    fn enif_mutex_destroy(mutex: *mut Mutex) {
        libc::pthread_mutex_destroy((*mutex).lock.get());
        drop(Box::from_raw(mutex));
    }

    fn enif_mutex_trylock(mutex: *mut Mutex) -> c_int {
        libc::pthread_mutex_trylock((*mutex).lock.get())
    }

    fn enif_mutex_lock(mutex: *mut Mutex) {
        libc::pthread_mutex_lock((*mutex).lock.get());
    }

    fn enif_mutex_unlock(mutex: *mut Mutex) {
        libc::pthread_mutex_unlock((*mutex).lock.get());
    }

    fn enif_mutex_name(mutex: *mut Mutex) -> *mut c_char {
        self::name(mutex)
    }

    fn enif_cond_create(name: *mut c_char) -> *mut Condition {
        create(libc::PTHREAD_COND_INITIALIZER, name)
    }

    fn enif_cond_destroy(condition: *mut Condition) {
        libc::pthread_cond_destroy((*condition).lock.get());
        drop(Box::from_raw(condition));
    }

    fn enif_cond_signal(condition: *mut Condition) {
        libc::pthread_cond_signal((*condition).lock.get());
    }

    fn enif_cond_broadcast(condition: *mut Condition) {
        libc::pthread_cond_broadcast((*condition).lock.get());
    }

    fn enif_cond_wait(condition: *mut Condition, mutex: *mut Mutex) {
        libc::pthread_cond_wait((*condition).lock.get(), (*mutex).lock.get());
    }

    fn enif_cond_name(condition: *mut Condition) -> *mut c_char {
        self::name(condition)
    }

    fn enif_rwlock_create(name: *mut c_char) -> *mut ReadWriteLock {
        create(libc::PTHREAD_RWLOCK_INITIALIZER, name)
    }

    fn enif_rwlock_destroy(lock: *mut ReadWriteLock) {
        libc::pthread_rwlock_destroy((*lock).lock.get());
        drop(Box::from_raw(lock));
    }

    fn enif_rwlock_tryrlock(lock: *mut ReadWriteLock) -> c_int {
        libc::pthread_rwlock_tryrdlock((*lock).lock.get())
    }

    fn enif_rwlock_rlock(lock: *mut ReadWriteLock) {
        libc::pthread_rwlock_rdlock((*lock).lock.get());
    }

    fn enif_rwlock_runlock(lock: *mut ReadWriteLock) {
        libc::pthread_rwlock_unlock((*lock).lock.get());
    }

    fn enif_rwlock_tryrwlock(lock: *mut ReadWriteLock) -> c_int {
        libc::pthread_rwlock_trywrlock((*lock).lock.get())
    }

    fn enif_rwlock_rwlock(lock: *mut ReadWriteLock) {
        libc::pthread_rwlock_wrlock((*lock).lock.get());
    }

    fn enif_rwlock_rwunlock(lock: *mut ReadWriteLock) {
        libc::pthread_rwlock_unlock((*lock).lock.get());
    }

    fn enif_rwlock_name(lock: *mut ReadWriteLock) -> *mut c_char {
        self::name(lock)
    }
}
