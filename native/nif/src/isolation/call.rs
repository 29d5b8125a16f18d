//! `call`, `park`, `take`, `cancel`.

use super::flight::{self, Elements, Flight, GivenUp, Look, ON_SCHEDULER, Settled, Submitted, submit};
use super::handle::{Handle, Kind, Object, Ref};
use super::pool::Pool;
use super::quick::{self, Quick};
use super::saved::Waiter;
use super::services::Services;
use super::worker::Worker;
use crate::atoms;
use parking_lot::Mutex;
use rustler::sys::{ERL_NIF_DIRTY_JOB_CPU_BOUND, ErlNifEnv, ErlNifTerm, c_int, enif_make_badarg, enif_schedule_nif};
use rustler::{Encoder, Env, Error as NifError, NifResult, Term};
use snakepit_shm_core::ring::vm::{Answer, Wake};
use std::ffi::CStr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

/// The most that a caller may spin.
const LONGEST_SPIN: u32 = 1000;

/// A call that was not answered at once. Collected, it is abandoned.
#[derive(Debug)]
pub struct Ticket {
    worker: Handle<Worker>,
    flight: Mutex<Option<Flight>>,
}

static KIND: Kind = Kind::new();

impl Object for Ticket {
    const NAME: &'static CStr = c"snakepit_ticket";

    fn kind() -> &'static Kind {
        &KIND
    }
}

impl Ticket {
    fn make(flight: Flight) -> Handle<Self> {
        Handle::new(Ticket {
            worker: flight.worker().clone(),
            flight: Mutex::new(Some(flight)),
        })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Where {
    Scheduler,
    Dirty,
}

#[rustler::nif]
fn call<'a>(
    env: Env<'a>,
    pool: Term<'a>,
    function: Term<'a>,
    arguments: Term<'a>,
    spin_us: Term<'a>,
) -> NifResult<Term<'a>> {
    run(env, [pool, function, arguments, spin_us], Where::Scheduler)
}

#[inline]
fn run<'a>(env: Env<'a>, arguments: [Term<'a>; 4], place: Where) -> NifResult<Term<'a>> {
    let [pool, name, list, spin] = arguments;
    let pool = Ref::<Pool>::of(pool)?;
    let spin_us = spin.decode::<u32>().map_err(|_| NifError::BadArg)?.min(LONGEST_SPIN);
    if place == Where::Scheduler {
        match quick::call(env, &pool, name, list, spin_us > 0) {
            Quick::Done(term) => return Ok(term),
            Quick::Late(flight, wake) => return Ok(late(env, flight, wake, spin_us, place)),
            Quick::Refused(flight, failure) => return Ok(flight.refused(env, failure)),
            Quick::Dear(flight) => return Ok(elsewhere(env, flight)),
            Quick::No => {}
        }
    }
    let arity = list.list_length()?;
    if !name.is_atom() {
        return Err(NifError::BadArg);
    }
    let (Ok(short), Ok(arity)) = (u16::try_from(arity), u32::try_from(arity)) else {
        return Ok(atoms::undefined().encode(env));
    };
    let function = match pool.function(name.as_c_arg(), arity) {
        Some(Some(function)) => function,
        Some(None) => return Ok(atoms::undefined().encode(env)),
        None => return Ok(atoms::no_worker().encode(env)),
    };
    let limit = match place {
        Where::Scheduler => ON_SCHEDULER,
        Where::Dirty => usize::MAX,
    };
    let (flight, wake) = match submit(env, &pool, function, short, Elements::of(list), limit, false) {
        Submitted::Yes(flight, wake) => (flight, wake),
        Submitted::Large if place == Where::Scheduler => return Ok(go_dirty(env, c"call", call_dirty, &arguments)),
        Submitted::Large => {
            let failure = super::failure::Failure::TooLarge {
                message: "the arguments are larger than the worker's memory for them".to_owned(),
            };
            return Ok(failure.term(env));
        }
        Submitted::NoWorker => return Ok(atoms::no_worker().encode(env)),
        Submitted::Full => return Ok(atoms::full().encode(env)),
        Submitted::Failed(failure) => return Ok(failure.term(env)),
    };
    Ok(late(env, flight, wake, spin_us, place))
}

/// Waits a little for what was not answered at once.
#[cold]
fn late(env: Env<'_>, flight: Flight, wake: Wake, spin_us: u32, place: Where) -> Term<'_> {
    flight.wake(wake);
    let began = Instant::now();
    let look = flight.attend(wake, Duration::from_micros(spin_us.into()));
    if place == Where::Scheduler {
        flight::spent(env, (began.elapsed().as_nanos() / 250) as u32);
    }
    match look {
        Look::Answered(answer) => answered(env, flight, &answer, place),
        Look::Waiting => pending(env, flight),
        other => unanswered(env, flight, other),
    }
}

fn pending(env: Env<'_>, flight: Flight) -> Term<'_> {
    (atoms::pending(), Ticket::make(flight).term(env)).encode(env)
}

#[inline]
fn answered<'a>(env: Env<'a>, flight: Flight, answer: &Answer, place: Where) -> Term<'a> {
    if !flight.is_settled(answer) {
        // On a dirty scheduler nothing is sent: the caller is told to take it on another.
        if place == Where::Dirty {
            return pending(env, flight);
        }
        match flight.settle(env) {
            Settled::Yes => {}
            Settled::Large => {
                let ticket = Ticket::make(flight).term(env);
                return go_dirty(env, c"take", settle_dirty, &[ticket]);
            }
            Settled::Later => {
                let ticket = Ticket::make(flight).term(env);
                return go_on(env, c"take", take_again, &[ticket]);
            }
            Settled::Fault(failure) => return flight.refused(env, failure),
        }
    }
    if answer.length as usize > ON_SCHEDULER && place == Where::Scheduler {
        return elsewhere(env, flight);
    }
    if place == Where::Scheduler && answer.length > 1024 {
        // About 4 ns a byte for terms; binaries are faster.
        flight::spent(env, answer.length / 64);
    }
    match flight.outcome(env, env.as_c_arg(), answer, place) {
        Ok(outcome) => outcome,
        Err(flight) => elsewhere(env, flight),
    }
}

/// Takes an answer on a dirty scheduler.
#[cold]
fn elsewhere(env: Env<'_>, flight: Flight) -> Term<'_> {
    let ticket = Ticket::make(flight).term(env);
    go_dirty(env, c"take", take_dirty, &[ticket])
}

#[cold]
fn unanswered(env: Env<'_>, flight: Flight, look: Look) -> Term<'_> {
    match look {
        Look::Dead { started } => flight.dead(env, started),
        Look::Fault(failure) => {
            drop(flight);
            failure.term(env)
        }
        Look::Waiting | Look::Answered(_) => pending(env, flight),
    }
}

pub type Scheduled = unsafe extern "C" fn(*mut ErlNifEnv, c_int, *const ErlNifTerm) -> ErlNifTerm;

#[cold]
pub fn go_dirty<'a>(env: Env<'a>, name: &CStr, function: Scheduled, arguments: &[Term<'a>]) -> Term<'a> {
    schedule(env, name, function, arguments, ERL_NIF_DIRTY_JOB_CPU_BOUND as c_int)
}

/// On a scheduler.
#[cold]
pub fn go_on<'a>(env: Env<'a>, name: &CStr, function: Scheduled, arguments: &[Term<'a>]) -> Term<'a> {
    schedule(env, name, function, arguments, 0)
}

fn schedule<'a>(env: Env<'a>, name: &CStr, function: Scheduled, arguments: &[Term<'a>], flags: c_int) -> Term<'a> {
    let raw: Vec<ErlNifTerm> = arguments.iter().map(|term| term.as_c_arg()).collect();
    // SAFETY: the terms are of the environment; the VM copies name and array.
    unsafe {
        let term = enif_schedule_nif(
            env.as_c_arg(),
            name.as_ptr(),
            flags,
            function,
            raw.len() as c_int,
            raw.as_ptr(),
        );
        Term::new(env, term)
    }
}

/// The body of a function that the VM calls through `enif_schedule_nif`.
///
/// # Safety
/// `env` and `argv` are as the VM gives them to such a function, with `N` arguments.
pub unsafe fn scheduled<const N: usize>(
    env: *mut ErlNifEnv,
    argv: *const ErlNifTerm,
    body: impl for<'a> FnOnce(Env<'a>, [Term<'a>; N]) -> NifResult<Term<'a>>,
) -> ErlNifTerm {
    let lifetime = ();
    let answer = catch_unwind(AssertUnwindSafe(|| {
        // SAFETY: the environment lives until we return, and there are N terms.
        let (safe, arguments) = unsafe {
            let safe = Env::new(&lifetime, env);
            (
                safe,
                std::array::from_fn(|index| Term::new(safe, argv.add(index).read())),
            )
        };
        body(safe, arguments).ok().map(|term| term.as_c_arg())
    }));
    match answer {
        Ok(Some(term)) => term,
        // SAFETY: the environment lives until we return.
        Ok(None) | Err(_) => unsafe { enif_make_badarg(env) },
    }
}

unsafe extern "C" fn call_dirty(env: *mut ErlNifEnv, _argc: c_int, argv: *const ErlNifTerm) -> ErlNifTerm {
    // SAFETY: called by the VM with the four arguments of `call`.
    unsafe {
        scheduled(env, argv, |env, arguments: [Term<'_>; 4]| {
            run(env, arguments, Where::Dirty)
        })
    }
}

unsafe extern "C" fn take_dirty(env: *mut ErlNifEnv, _argc: c_int, argv: *const ErlNifTerm) -> ErlNifTerm {
    // SAFETY: called by the VM with the one argument of `take`.
    unsafe {
        scheduled(env, argv, |env, [ticket]: [Term<'_>; 1]| {
            take_from(env, ticket, Where::Dirty)
        })
    }
}

/// What was queued before the answer has a large term: it is decoded here, and sent on a scheduler.
unsafe extern "C" fn settle_dirty(env: *mut ErlNifEnv, _argc: c_int, argv: *const ErlNifTerm) -> ErlNifTerm {
    // SAFETY: called by the VM with a ticket.
    unsafe {
        scheduled(env, argv, |env, [ticket]: [Term<'_>; 1]| {
            Services::decode(Ref::<Ticket>::of(ticket)?.worker.borrow());
            Ok(go_on(env, c"take", take_again, &[ticket]))
        })
    }
}

unsafe extern "C" fn take_again(env: *mut ErlNifEnv, _argc: c_int, argv: *const ErlNifTerm) -> ErlNifTerm {
    // SAFETY: as above.
    unsafe {
        scheduled(env, argv, |env, [ticket]: [Term<'_>; 1]| {
            take_from(env, ticket, Where::Scheduler)
        })
    }
}

#[rustler::nif]
fn park<'a>(env: Env<'a>, ticket: Term<'a>, reference: Term<'a>) -> NifResult<Term<'a>> {
    let ticket = Ref::<Ticket>::of(ticket)?;
    let waiter = Waiter::caller(env, reference, atoms::done()).ok_or(NifError::BadArg)?;
    let flight = ticket.flight.lock();
    let parked = flight.as_ref().is_some_and(|flight| flight.park(waiter));
    Ok(if parked { atoms::parked() } else { atoms::ready() }.encode(env))
}

#[rustler::nif]
fn take<'a>(env: Env<'a>, ticket: Term<'a>) -> NifResult<Term<'a>> {
    take_from(env, ticket, Where::Scheduler)
}

fn take_from<'a>(env: Env<'a>, term: Term<'a>, place: Where) -> NifResult<Term<'a>> {
    let ticket = Ref::<Ticket>::of(term)?;
    let mut guard = ticket.flight.lock();
    let look = guard.as_ref().ok_or(NifError::BadArg)?.look();
    if let (Look::Answered(answer), Where::Scheduler, Some(flight)) = (&look, place, guard.as_ref())
        && !flight.is_settled(answer)
    {
        match flight.settle(env) {
            Settled::Yes => {}
            Settled::Large => return Ok(go_dirty(env, c"take", settle_dirty, &[term])),
            Settled::Later => return Ok(go_on(env, c"take", take_again, &[term])),
            Settled::Fault(failure) => {
                let flight = guard.take().ok_or(NifError::BadArg)?;
                drop(guard);
                return Ok(flight.refused(env, failure));
            }
        }
    }
    let large = matches!(&look, Look::Answered(answer) if answer.length as usize > ON_SCHEDULER);
    if large && place == Where::Scheduler {
        return Ok(go_dirty(env, c"take", take_dirty, &[term]));
    }
    if matches!(look, Look::Waiting) {
        return Ok(atoms::pending().encode(env));
    }
    let flight = guard.take().ok_or(NifError::BadArg)?;
    drop(guard);
    Ok(match look {
        Look::Answered(answer) => answered(env, flight, &answer, place),
        other => unanswered(env, flight, other),
    })
}

#[rustler::nif]
fn cancel<'a>(env: Env<'a>, ticket: Term<'a>) -> NifResult<Term<'a>> {
    let ticket = Ref::<Ticket>::of(ticket)?;
    let mut guard = ticket.flight.lock();
    let given_up = guard.as_mut().map_or(GivenUp::Yes { started: false }, Flight::give_up);
    Ok(match given_up {
        GivenUp::Yes { started } => {
            let flight = guard.take();
            drop(guard);
            drop(flight);
            (atoms::cancelled(), started, ticket.worker.term(env)).encode(env)
        }
        GivenUp::TooLate => atoms::ready().encode(env),
    })
}
