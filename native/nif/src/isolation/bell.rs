//! `worker_bell`, `worker_rest`: what happens when a worker rings, and what is left when it is dead.

use super::call::{go_dirty, go_on, scheduled};
use super::flight;
use super::handle::Ref;
use super::saved::self_pid;
use super::services::{News, Services, Taken};
use super::worker::Worker;
use crate::atoms;
use rustler::sys::{ErlNifEnv, ErlNifTerm, c_int};
use rustler::types::atom::Atom;
use rustler::{Encoder, Env, Error as NifError, NifResult, Term};

#[rustler::nif]
fn worker_bell<'a>(env: Env<'a>, worker: Term<'a>, mode: Atom) -> NifResult<Term<'a>> {
    let object = Ref::<Worker>::of(worker)?;
    let services = object.services();
    let serves = mode == atoms::serve();
    if serves {
        services.hold(false);
    } else if mode == atoms::hold() {
        services.hold(true);
    } else if mode != atoms::wait() {
        return Err(NifError::BadArg);
    }
    services.replies().flush(object, env.as_c_arg(), self_pid(env));
    Ok(match object.hear(env.as_c_arg()) {
        Ok(woken) if serves => serve(env, worker, woken.encode(env))?,
        Ok(woken) => bell_term(env, woken.encode(env), false, &News::none()),
        Err(failure) => {
            object.fault();
            failure.term(env)
        }
    })
}

/// Some of the event queue. `woken` is passed on.
fn serve<'a>(env: Env<'a>, worker: Term<'a>, woken: Term<'a>) -> NifResult<Term<'a>> {
    let object = Ref::<Worker>::of(worker)?;
    Ok(match Services::take_some(object, env) {
        Ok((Taken::Large, _)) => go_dirty(env, c"worker_bell", bell_dirty, &[worker, woken]),
        Ok((Taken::Busy, news)) => {
            flight::gives_way(env);
            bell_term(env, woken, true, &news)
        }
        Ok((taken, news)) => bell_term(env, woken, taken == Taken::More, &news),
        Err(failure) => {
            object.fault();
            failure.term(env)
        }
    })
}

fn bell_term<'a>(env: Env<'a>, woken: Term<'a>, more: bool, news: &News) -> Term<'a> {
    let sent: Vec<_> = news
        .sent
        .iter()
        // SAFETY: local pids are words, and terms of every environment.
        .map(|(word, messages, bytes)| (unsafe { Term::new(env, *word) }, messages, bytes))
        .collect();
    let denied: Vec<_> = news.denied.iter().map(|function| function.name()).collect();
    (atoms::ok(), woken, more, sent, denied).encode(env)
}

unsafe extern "C" fn bell_dirty(env: *mut ErlNifEnv, _argc: c_int, argv: *const ErlNifTerm) -> ErlNifTerm {
    // SAFETY: called by the VM with worker and number.
    unsafe {
        scheduled(env, argv, |env, [worker, woken]: [Term<'_>; 2]| {
            Services::decode(Ref::of(worker)?);
            Ok(go_on(env, c"worker_bell", bell_again, &[worker, woken]))
        })
    }
}

unsafe extern "C" fn bell_again(env: *mut ErlNifEnv, _argc: c_int, argv: *const ErlNifTerm) -> ErlNifTerm {
    // SAFETY: as above.
    unsafe {
        scheduled(env, argv, |env, [worker, woken]: [Term<'_>; 2]| {
            serve(env, worker, woken)
        })
    }
}

#[rustler::nif]
fn worker_rest<'a>(env: Env<'a>, worker: Term<'a>) -> NifResult<Term<'a>> {
    rest(env, worker)
}

fn rest<'a>(env: Env<'a>, worker: Term<'a>) -> NifResult<Term<'a>> {
    let object = Ref::<Worker>::of(worker)?;
    Ok(match Services::take_rest(object, env) {
        Ok(Taken::Large) => go_dirty(env, c"worker_rest", rest_dirty, &[worker]),
        Ok(Taken::More) => go_on(env, c"worker_rest", rest_again, &[worker]),
        Ok(Taken::Busy) => {
            flight::gives_way(env);
            go_on(env, c"worker_rest", rest_again, &[worker])
        }
        Ok(Taken::All | Taken::Held) => atoms::ok().encode(env),
        Err(failure) => {
            object.fault();
            failure.term(env)
        }
    })
}

unsafe extern "C" fn rest_dirty(env: *mut ErlNifEnv, _argc: c_int, argv: *const ErlNifTerm) -> ErlNifTerm {
    // SAFETY: called by the VM with the worker.
    unsafe {
        scheduled(env, argv, |env, [worker]: [Term<'_>; 1]| {
            Services::decode(Ref::of(worker)?);
            Ok(go_on(env, c"worker_rest", rest_again, &[worker]))
        })
    }
}

unsafe extern "C" fn rest_again(env: *mut ErlNifEnv, _argc: c_int, argv: *const ErlNifTerm) -> ErlNifTerm {
    // SAFETY: as above.
    unsafe { scheduled(env, argv, |env, [worker]: [Term<'_>; 1]| rest(env, worker)) }
}
