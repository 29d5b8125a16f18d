//! The way that most calls take: a few small arguments, an idle worker that is awake, a small answer within the time that the
//! caller spins. No reference is counted, no lock but the pool's read lock is taken, nothing is allocated. Whatever is different takes
//! the way in `call.rs`, from the beginning or from where this one has got to.

use super::effort::{Effort, Met};
use super::failure::{Failure, is_dear};
use super::flight::{Elements, Flight};
use super::handle::Handle;
use super::pool::Pool;
use super::scratch::{self, Scratch};
use super::worker::Worker;
use crate::atoms;
use rustler::sys::{ErlNifTerm, enif_make_tuple_from_array};
use rustler::types::atom::Atom;
use rustler::{Env, Term};
use snakepit_shm_core::ring::status;
use snakepit_shm_core::ring::vm::{Answer, Call, Payload, Poll, Request, VmRing, Wake};

/// Arguments.
const ARGUMENTS: usize = 8;
/// The longest answer.
const ANSWER: u32 = 4 << 10;
/// Looks without a pause: until a call of half a microsecond is answered, more or less.
const EAGER: u32 = 400;

#[derive(Debug)]
pub enum Quick<'a> {
    Done(Term<'a>),
    /// It is on its way, and this is no longer the quick one.
    Late(Flight, Wake),
    /// It was answered with what cannot be taken.
    Refused(Flight, Failure),
    /// It was answered with what takes a scheduler too long.
    Dear(Flight),
    /// Nothing has been done.
    No,
}

#[inline]
pub fn call<'a>(env: Env<'a>, pool: &Pool, name: Term<'a>, list: Term<'a>, waits: bool) -> Quick<'a> {
    let mut arguments = [name.as_c_arg(); ARGUMENTS];
    let mut elements = Elements::of(list);
    let mut arity = 0;
    for element in elements.by_ref() {
        let Some(place) = arguments.get_mut(arity) else {
            return Quick::No;
        };
        *place = element;
        arity += 1;
    }
    let Some(Some(function)) = pool.function(name.as_c_arg(), arity as u32) else {
        return Quick::No;
    };
    // Improper, or no list at all.
    if !elements.rest(env).is_empty_list() {
        return Quick::No;
    }
    let went = pool
        .with_idle(|worker| scratch::with(|scratch| go(env, worker, scratch, function, &arguments[..arity], waits)));
    went.unwrap_or(Quick::No)
}

#[inline]
fn go<'a>(
    env: Env<'a>,
    worker: &Handle<Worker>,
    scratch: &mut Scratch,
    function: u32,
    arguments: &[ErlNifTerm],
    waits: bool,
) -> Quick<'a> {
    let ring = worker.ring();
    let mut kept = Vec::new();
    let caller = scratch.caller(env, worker);
    let Ok(bytes) = scratch.encode_small(env, worker, arguments, &mut kept) else {
        worker.forget(&kept);
        return Quick::No;
    };
    let Some(claim) = ring.claim() else {
        worker.forget(&kept);
        return Quick::No;
    };
    let request = Request {
        function,
        arity: arguments.len() as u16,
        caller,
    };
    let (call, wake) = match ring.publish(claim, request, Payload::Bytes(bytes)) {
        Ok(published) => published,
        Err((claim, _)) => {
            ring.unclaim(claim);
            worker.forget(&kept);
            return Quick::No;
        }
    };
    worker.count(call.number());
    scratch.spend(env, 2);
    if wake == Wake::Asleep {
        return Quick::Late(Flight::new(worker.clone(), call, kept), wake);
    }
    match look(ring, &call, if waits { EAGER } else { 1 }) {
        Some(answer) if answer.length <= ANSWER && matches!(answer.status, status::VALUE | status::RAISED) => {
            let source = ring.source(&call, &answer);
            let mut effort = Effort::on_scheduler(&Met::default());
            let decoded = scratch.decode(env.as_c_arg(), worker, &source, &mut effort);
            if effort.work() > 0 {
                scratch.spend(env, effort.work() as u32);
            }
            let value = match decoded {
                Ok(value) => value,
                dear if is_dear(&dear) => {
                    let met = effort.met(env.as_c_arg());
                    return Quick::Dear(Flight::new(worker.clone(), call, kept).having_met(met));
                }
                // Not decoded again: objects of the worker would be counted twice.
                Err(error) => return Quick::Refused(Flight::new(worker.clone(), call, kept), error.into()),
            };
            ring.release(call);
            worker.forget(&kept);
            worker.slot_freed(env.as_c_arg());
            let tag = if answer.status == status::VALUE {
                atoms::ok()
            } else {
                atoms::raised()
            };
            Quick::Done(pair(env, tag, value))
        }
        _ => Quick::Late(Flight::new(worker.clone(), call, kept), wake),
    }
}

/// The answer, if there is one soon. What is wrong is found out by the next look.
#[inline]
fn look(ring: &VmRing, call: &Call, times: u32) -> Option<Answer> {
    for _ in 0..times {
        match ring.poll(call) {
            Ok(Poll::Waiting) => {}
            Ok(Poll::Answered(answer)) => return Some(answer),
            Ok(Poll::Dead { .. }) | Err(_) => return None,
        }
    }
    None
}

#[inline]
fn pair(env: Env<'_>, tag: Atom, value: ErlNifTerm) -> Term<'_> {
    let parts = [tag.as_c_arg(), value];
    // SAFETY: an atom, and a term of the environment.
    unsafe { Term::new(env, enif_make_tuple_from_array(env.as_c_arg(), parts.as_ptr(), 2)) }
}
