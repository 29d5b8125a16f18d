//! `wait_slot`, `wait_slot_cancel`: the queue of callers that found every slot taken.
//!
//! A caller enters the queue, then looks again; whoever frees a slot looks at the queue afterwards. Between the two steps of each
//! stands a full barrier, so at least one of them sees the other. A place that is woken for nothing tries again.

use super::handle::Ref;
use super::pool::Pool;
use super::saved::{self, Waiter};
use crate::atoms;
use parking_lot::Mutex;
use rustler::sys::{ErlNifEnv, ErlNifTerm};
use rustler::types::atom::Atom;
use rustler::{Encoder, Env, NifResult, Term};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering, fence};

#[derive(Debug, Default)]
pub struct SlotQueue {
    waiters: Mutex<VecDeque<Waiter>>,
    /// How many there are, for those who look without the lock.
    length: AtomicUsize,
}

impl SlotQueue {
    pub fn length(&self) -> usize {
        self.length.load(Ordering::Relaxed)
    }

    /// A slot is free, or a worker that has some: the first in the queue may try.
    #[inline]
    pub fn slot_freed(&self, env: *mut ErlNifEnv) {
        // SeqCst: pairs with the one in `wait_slot`, see above.
        fence(Ordering::SeqCst);
        if self.length.load(Ordering::Relaxed) != 0 {
            self.wake(env, 1);
        }
    }

    #[cold]
    pub fn wake(&self, env: *mut ErlNifEnv, most: usize) {
        let mut woken = 0;
        while woken < most {
            let mut waiters = self.waiters.lock();
            let Some(waiter) = waiters.pop_front() else { return };
            self.length.store(waiters.len(), Ordering::Relaxed);
            drop(waiters);
            match waiter.wake(env) {
                Ok(()) => woken += 1,
                // On a dirty scheduler the caller itself may have been killed meanwhile: then nothing that it sends arrives.
                // Those who wait look again by themselves.
                Err(waiter) if !saved::sends(env) => {
                    let mut waiters = self.waiters.lock();
                    waiters.push_front(waiter);
                    self.length.store(waiters.len(), Ordering::Relaxed);
                    return;
                }
                // Who has died meanwhile uses no slot.
                Err(_gone) => {}
            }
        }
    }

    /// Everybody looks again: workers have come or gone.
    pub fn wake_all(&self, env: *mut ErlNifEnv) {
        self.wake(env, usize::MAX);
    }

    fn enter(&self, waiter: Waiter, limit: usize) -> bool {
        let mut waiters = self.waiters.lock();
        if waiters.len() >= limit {
            return false;
        }
        waiters.push_back(waiter);
        self.length.store(waiters.len(), Ordering::Relaxed);
        true
    }

    /// Queues the waiter for `{reference, what}`. `None`: `limit` are waiting. False: there is room, and no message will come.
    pub fn wait(&self, pool: &Pool, waiter: Waiter, reference: Term<'_>, what: Atom, limit: usize) -> Option<bool> {
        if !self.enter(waiter, limit) {
            return None;
        }
        // SeqCst: pairs with the one in `slot_freed`.
        fence(Ordering::SeqCst);
        Some(!(pool.has_room() && self.leave(reference, what)))
    }

    /// Whether this process is in it.
    pub fn has(&self, word: ErlNifTerm) -> bool {
        self.waiters.lock().iter().any(|waiter| waiter.is(word))
    }

    /// Whether it was still there.
    pub fn leave(&self, reference: Term<'_>, what: Atom) -> bool {
        let mut waiters = self.waiters.lock();
        let place = waiters.iter().position(|waiter| waiter.has(reference, what));
        let waiter = place.and_then(|place| waiters.remove(place));
        self.length.store(waiters.len(), Ordering::Relaxed);
        drop(waiters);
        waiter.is_some()
    }
}

#[rustler::nif]
fn wait_slot<'a>(env: Env<'a>, pool: Term<'a>, reference: Term<'a>, limit: usize) -> NifResult<Term<'a>> {
    let pool = Ref::<Pool>::of(pool)?;
    let queue = pool.queue();
    let Some(waiter) = Waiter::caller(env, reference, atoms::slot()) else {
        return Ok(atoms::full().encode(env));
    };
    if !queue.enter(waiter, limit) {
        return Ok(atoms::full().encode(env));
    }
    // SeqCst: pairs with the one in `slot_freed`.
    fence(Ordering::SeqCst);
    let answer = if pool.has_room() && queue.leave(reference, atoms::slot()) {
        atoms::ready()
    } else {
        atoms::waiting()
    };
    Ok(answer.encode(env))
}

#[rustler::nif]
fn wait_slot_cancel<'a>(env: Env<'a>, pool: Term<'a>, reference: Term<'a>) -> NifResult<Term<'a>> {
    let pool = Ref::<Pool>::of(pool)?;
    let queue = pool.queue();
    if queue.leave(reference, atoms::slot()) {
        return Ok(atoms::ok().encode(env));
    }
    // Its turn goes to the next one.
    queue.wake(env.as_c_arg(), 1);
    Ok(atoms::sent().encode(env))
}
