//! A term that outlives the call it came with, in an environment of its own.

use rustler::sys::{
    ErlNifEnv, ErlNifPid, ErlNifTerm, enif_alloc_env, enif_clear_env, enif_free_env, enif_make_copy,
    enif_make_tuple_from_array, enif_self, enif_send,
};
use rustler::{Env, Term};
use std::mem::MaybeUninit;

use rustler::types::atom::Atom;

/// Owns an environment.
#[derive(Debug)]
pub struct OwnEnv(*mut ErlNifEnv);

// SAFETY: an environment may move between threads; nobody shares this one.
unsafe impl Send for OwnEnv {}

impl OwnEnv {
    pub fn new() -> Self {
        // SAFETY: without conditions; the VM ends when there is no memory.
        OwnEnv(unsafe { enif_alloc_env() })
    }

    pub fn as_c_arg(&self) -> *mut ErlNifEnv {
        self.0
    }

    /// Its terms are gone.
    pub fn clear(&mut self) {
        // SAFETY: the environment is alive; nobody else has its terms.
        unsafe { enif_clear_env(self.0) };
    }

    pub fn copy(&self, term: ErlNifTerm) -> ErlNifTerm {
        // SAFETY: the environment is alive, the term is of a live environment.
        unsafe { enif_make_copy(self.0, term) }
    }
}

impl Drop for OwnEnv {
    fn drop(&mut self) {
        // SAFETY: ours, freed once.
        unsafe { enif_free_env(self.0) };
    }
}

#[derive(Debug)]
pub struct Saved {
    env: OwnEnv,
    term: ErlNifTerm,
}

// SAFETY: after `new` the environment is only read (copied from).
unsafe impl Sync for Saved {}

impl Saved {
    pub fn new(term: ErlNifTerm) -> Self {
        let env = OwnEnv::new();
        let term = env.copy(term);
        Saved { env, term }
    }

    pub fn raw(&self) -> ErlNifTerm {
        self.term
    }

    pub fn load<'a>(&self, env: Env<'a>) -> Term<'a> {
        let _ = &self.env;
        // SAFETY: our term is alive; the copy belongs to the caller's environment.
        unsafe { Term::new(env, enif_make_copy(env.as_c_arg(), self.term)) }
    }
}

/// Somebody who waits for `{ref, what}`.
#[derive(Debug)]
pub struct Waiter {
    pid: ErlNifPid,
    env: OwnEnv,
    message: ErlNifTerm,
}

// SAFETY: pid and term are words; the environment may move.
unsafe impl Send for Waiter {}

impl Waiter {
    /// The calling process. `None`: it is being ended.
    pub fn caller(env: Env<'_>, reference: Term<'_>, what: Atom) -> Option<Self> {
        let pid = self_pid(env)?;
        let own = OwnEnv::new();
        let parts = [own.copy(reference.as_c_arg()), what.as_c_arg()];
        // SAFETY: both terms are of the environment (atoms are of any).
        let message = unsafe { enif_make_tuple_from_array(own.as_c_arg(), parts.as_ptr(), 2) };
        Some(Waiter { pid, env: own, message })
    }

    /// Sends the message. `env`: of the process that runs this. The waiter comes back if the message was not sent: the
    /// receiver is gone, and needs none, or the sender is ([`sends`]).
    pub fn wake(self, env: *mut ErlNifEnv) -> Result<(), Self> {
        // SAFETY: the message is of the environment that goes with it, and still there if it was not sent.
        let sent = unsafe { enif_send(env, &raw const self.pid, self.env.as_c_arg(), self.message) != 0 };
        if sent { Ok(()) } else { Err(self) }
    }

    /// Whether it is this process, by its word.
    pub fn is(&self, word: ErlNifTerm) -> bool {
        pid_word(self.pid) == word
    }

    /// Whether it waits with this reference.
    pub fn has(&self, reference: Term<'_>, what: Atom) -> bool {
        let env = reference.get_env().as_c_arg();
        let parts = [reference.as_c_arg(), what.as_c_arg()];
        // SAFETY: terms of live environments; comparing reads only.
        unsafe {
            let message = enif_make_tuple_from_array(env, parts.as_ptr(), 2);
            rustler::sys::enif_is_identical(message, self.message) != 0
        }
    }
}

/// Whether what the process of `env` sends arrives: not when it is being ended while it runs on a dirty scheduler. An
/// environment without a process sends always.
pub fn sends(env: *mut ErlNifEnv) -> bool {
    let mut pid = MaybeUninit::uninit();
    // SAFETY: the environment is alive unless it is null. The VM takes one without a process (of a callback) for an error, so it is asked
    // first whether there is one.
    unsafe {
        env.is_null()
            || enif_self(env, pid.as_mut_ptr()).is_null()
            || rustler::sys::enif_is_current_process_alive(env) != 0
    }
}

pub fn self_pid(env: Env<'_>) -> Option<ErlNifPid> {
    let mut pid = MaybeUninit::uninit();
    // SAFETY: filled in unless the answer is null.
    unsafe {
        if enif_self(env.as_c_arg(), pid.as_mut_ptr()).is_null() {
            None
        } else {
            Some(pid.assume_init())
        }
    }
}

/// The pid's own word: for a local one it is the whole term.
pub fn pid_word(pid: ErlNifPid) -> ErlNifTerm {
    // SAFETY: the function is a macro of C that reads the structure's only field.
    unsafe { rustler::sys::enif_make_pid(std::ptr::null_mut(), pid) }
}
