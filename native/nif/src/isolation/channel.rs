//! A descriptor that the VM may watch (`enif_select`), closed exactly once and never while it is watched.
//!
//! ```text
//! open ──close──▶ closed                     never selected: nobody else has it
//!   └────close──▶ stopping ──stop()──▶ closed     the VM is asked to let go, and says when it has
//! ```
//! While the VM watches, it keeps the owner alive: a descriptor that is still open when its owner goes was never
//! selected, or the VM has let it go.

use super::handle::{Object, Ref};
use nix::errno::Errno;
use parking_lot::Mutex;
use rustler::sys::{
    ERL_NIF_SELECT_READ, ERL_NIF_SELECT_STOP, ERL_NIF_SELECT_WRITE, ErlNifEnv, ErlNifEvent, ErlNifPid, ErlNifTerm,
    enif_select_x, enif_self,
};
use rustler::types::atom::nil;
use rustler::{Env, Term};
use snakepit_shm_core::error::{Error, Result};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd};
use std::ptr::{self, null, null_mut};

/// Of `enum ErlNifSelectFlags`: the message is the caller's.
const CUSTOM_MSG: i32 = 1 << 4;
/// Of what `enif_select` answers.
const INVALID_EVENT: i32 = 1 << 2;

#[derive(Debug)]
enum State<T> {
    Open { fd: T, selected: bool },
    Stopping(T),
    Closed,
}

/// `D` owns the descriptor.
#[derive(Debug)]
pub struct Channel<D>(Mutex<State<D>>);

impl<D: AsFd> Channel<D> {
    pub fn new(fd: D) -> Self {
        Channel(Mutex::new(State::Open { fd, selected: false }))
    }

    /// Uses the descriptor, which stays open meanwhile.
    pub fn with<R>(&self, usage: impl FnOnce(&D) -> R) -> Option<R> {
        match &*self.0.lock() {
            State::Open { fd, .. } => Some(usage(fd)),
            State::Stopping(_) | State::Closed => None,
        }
    }

    /// Has `message` sent to the calling process, once, when there is something to read.
    pub fn select<T: Object>(&self, env: Env<'_>, owner: Ref<'_, T>, message: Term<'_>) -> Result<()> {
        let mut state = self.0.lock();
        let State::Open { fd, selected } = &mut *state else {
            return Err(Error::Closed);
        };
        let mut pid = MaybeUninit::uninit();
        // SAFETY: called by a process. The owner is a live resource whose `stop` closes the descriptor; the message is
        // of the caller's environment, so it is copied (no message environment).
        let answer = unsafe {
            enif_self(env.as_c_arg(), pid.as_mut_ptr());
            enif_select_x(
                env.as_c_arg(),
                fd.as_fd().as_raw_fd(),
                ERL_NIF_SELECT_READ | CUSTOM_MSG,
                owner.as_c_arg(),
                pid.as_ptr(),
                message.as_c_arg(),
                null_mut(),
            )
        };
        if answer < 0 {
            let errno = if answer & INVALID_EVENT != 0 {
                Errno::EBADF
            } else {
                Errno::EINVAL
            };
            return Err(Error::os("enif_select", errno));
        }
        *selected = true;
        Ok(())
    }

    /// Has `message` sent to `pid`, once, when something can be written. `message` is of the environment.
    pub fn select_output<T: Object>(
        &self,
        env: *mut ErlNifEnv,
        owner: Ref<'_, T>,
        pid: &ErlNifPid,
        message: ErlNifTerm,
    ) -> Result<()> {
        let mut state = self.0.lock();
        let State::Open { fd, selected } = &mut *state else {
            return Err(Error::Closed);
        };
        // SAFETY: the owner is a live resource whose `stop` closes the descriptor; the message is copied.
        let answer = unsafe {
            enif_select_x(
                env,
                fd.as_fd().as_raw_fd(),
                ERL_NIF_SELECT_WRITE | CUSTOM_MSG,
                owner.as_c_arg(),
                ptr::from_ref(pid),
                message,
                null_mut(),
            )
        };
        if answer < 0 {
            return Err(Error::os("enif_select", Errno::EINVAL));
        }
        *selected = true;
        Ok(())
    }

    /// Closes it now, or as soon as the VM has let go. Does nothing the second time.
    pub fn close<T: Object>(&self, env: *mut ErlNifEnv, owner: Ref<'_, T>) {
        let mut state = self.0.lock();
        match std::mem::replace(&mut *state, State::Closed) {
            State::Open { fd, selected: true } => {
                let event = fd.as_fd().as_raw_fd();
                *state = State::Stopping(fd);
                // `stop` may be called before this returns, and takes the lock.
                drop(state);
                self.stop_watching(env, event, owner);
            }
            State::Open { fd, selected: false } => {
                drop(state);
                drop(fd);
            }
            other => *state = other,
        }
    }

    fn stop_watching<T: Object>(&self, env: *mut ErlNifEnv, event: ErlNifEvent, owner: Ref<'_, T>) {
        // SAFETY: the descriptor is open (state `Stopping` owns it), the owner alive.
        let answer = unsafe {
            enif_select_x(
                env,
                event,
                ERL_NIF_SELECT_STOP,
                owner.as_c_arg(),
                null(),
                nil().as_c_arg(),
                null_mut(),
            )
        };
        if answer < 0 {
            // The VM does not know it, so it does not watch it either.
            self.stopped(event);
        }
    }

    /// From the owner's `stop`.
    pub fn stopped(&self, event: ErlNifEvent) {
        let mut state = self.0.lock();
        if matches!(&*state, State::Stopping(fd) if fd.as_fd().as_raw_fd() == event) {
            let old = std::mem::replace(&mut *state, State::Closed);
            drop(state);
            drop(old);
        }
    }
}
