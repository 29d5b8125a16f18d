//! `call_many`, `batch_next`, `batch_park`, `batch_unwait`, `batch_cancel`: many calls of one function.
//!
//! Calls go out in order as long as there are slots, up to three quarters of those of the pool, and outcomes are collected in
//! order. Terms live in the environment of the running function and move to the batch's own when it returns early.

use super::call::{Scheduled, Where, go_dirty, go_on, scheduled};
use super::failure::Failure;
use super::flight::{self, Elements, Flight, GivenUp, Look, ON_SCHEDULER, Settled, Submitted, submit};
use super::handle::{Handle, Kind, Object, Ref};
use super::pool::Pool;
use super::saved::{OwnEnv, Waiter};
use super::services::Services;
use super::worker::Worker;
use crate::atoms;
use crate::reply::error_term;
use parking_lot::Mutex;
use rustler::sys::{ErlNifEnv, ErlNifTerm, c_int, enif_get_list_cell, enif_make_copy, enif_make_list_from_array};
use rustler::{Encoder, Env, Error as NifError, NifResult, Term};
use snakepit_shm_core::ring::vm::Wake;
use std::collections::VecDeque;
use std::ffi::CStr;
use std::time::{Duration, Instant};

/// At most this long in one function.
const SLICE: Duration = Duration::from_micros(900);
/// How long the first call in the row is waited for when there is nothing else to do.
const SPIN: Duration = Duration::from_micros(20);
/// The clock is looked at whenever so much has been decoded, about a tenth of a millisecond's work.
const LOOK_AFTER: usize = 32 << 10;
/// What an answer costs beside its bytes.
const EACH: usize = 512;

#[derive(Debug)]
pub struct Batch {
    pool: Handle<Pool>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    env: OwnEnv,
    name: ErlNifTerm,
    /// Argument lists that have not gone out; of `env`.
    rest: ErlNifTerm,
    /// Of `env`.
    outcomes: Vec<ErlNifTerm>,
    /// In the order of the lists.
    flights: VecDeque<Flight>,
    /// Whoever waits for a slot, and not for the first call.
    waits_for_slot: Option<ErlNifTerm>,
    cancelled: Option<Cancelled>,
}

/// A batch that was given up.
#[derive(Debug)]
struct Cancelled {
    /// In the order of the lists.
    given: Vec<Given>,
    hung: Vec<Handle<Worker>>,
    /// Whether the message for whoever was parked was sent.
    sent: bool,
}

/// A call that was given up.
#[derive(Debug)]
enum Given {
    Away {
        started: bool,
    },
    /// It was answered before.
    Due(Flight),
    Lied(Failure),
}

static KIND: Kind = Kind::new();

impl Object for Batch {
    const NAME: &'static CStr = c"snakepit_batch";

    fn kind() -> &'static Kind {
        &KIND
    }
}

/// One stretch of work on a batch, in the environment of the running function.
struct Stretch<'a, 'b> {
    env: Env<'a>,
    pool: &'b Pool,
    name: ErlNifTerm,
    rest: Term<'a>,
    flights: VecDeque<Flight>,
    outcomes: Vec<Term<'a>>,
    window: usize,
    place: Where,
    begun: Instant,
    /// Calls sent and outcomes collected.
    moved: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stop {
    Done,
    Waits,
    /// The next answer is more than is decoded on a scheduler.
    Large,
    /// Before it there is a message that is more than that; or messages, and this is no scheduler.
    Queued,
    /// Before it there are messages, and others have their turn first.
    Later,
}

/// What a stretch came to.
struct Ran<'a> {
    stop: Stop,
    newer: Vec<Term<'a>>,
    rest: Term<'a>,
    /// Anything was sent or collected.
    moved: bool,
}

impl<'a> Stretch<'a, '_> {
    fn run(&mut self) -> Stop {
        let stop = loop {
            let sent = self.send();
            let (collected, stop) = self.collect();
            self.moved += sent + collected;
            if let Some(stop) = stop {
                break stop;
            }
            if self.flights.is_empty() && self.rest.is_empty_list() {
                break Stop::Done;
            }
            if self.begun.elapsed() >= SLICE {
                break Stop::Waits;
            }
            if sent + collected == 0 && !self.wait() {
                break Stop::Waits;
            }
        };
        flight::spent(self.env, (self.begun.elapsed().as_micros() as u32).saturating_mul(4));
        stop
    }

    /// Sends what there is room for, then wakes the workers that sleep.
    fn send(&mut self) -> usize {
        let mut sent = 0;
        let mut touched: Vec<Handle<Worker>> = Vec::new();
        while self.flights.len() < self.window && sent < 64 {
            let Ok((arguments, tail)) = self.rest.list_get_cell() else {
                break;
            };
            match self.submit(arguments) {
                Ok(Submitted::Yes(flight, _)) => {
                    let worker = flight.worker();
                    if !touched.iter().any(|known| known.incarnation() == worker.incarnation()) {
                        touched.push(worker.clone());
                    }
                    self.flights.push_back(flight);
                }
                Ok(Submitted::Full) => break,
                // Outcomes are in order: what cannot go out waits until everything before it is in.
                _ if !self.flights.is_empty() => break,
                Ok(Submitted::NoWorker) => self.outcomes.push(atoms::retry().encode(self.env)),
                Ok(Submitted::Large) => {
                    let failure = super::failure::Failure::TooLarge {
                        message: "the arguments are larger than a batch takes".to_owned(),
                    };
                    self.outcomes.push(failure.term(self.env));
                }
                Ok(Submitted::Failed(failure)) => self.outcomes.push(failure.term(self.env)),
                Err(()) => {
                    let failure = super::failure::Failure::UnsupportedTerm {
                        message: "not a list of arguments for a function of the library".to_owned(),
                    };
                    self.outcomes.push(failure.term(self.env));
                }
            }
            sent += 1;
            self.rest = tail;
        }
        for worker in touched {
            if worker.ring().wake() == Wake::Asleep {
                worker.wake_process();
            }
        }
        sent
    }

    fn submit(&self, arguments: Term<'a>) -> Result<Submitted, ()> {
        let arity = arguments.list_length().map_err(|_| ())?;
        let (Ok(short), Ok(arity)) = (u16::try_from(arity), u32::try_from(arity)) else {
            return Err(());
        };
        let Some(Some(function)) = self.pool.function(self.name, arity) else {
            return Err(());
        };
        Ok(submit(
            self.env,
            self.pool,
            function,
            short,
            Elements::of(arguments),
            ON_SCHEDULER,
            true,
        ))
    }

    /// How many were collected, and why the next one is not, if that cannot be here.
    fn collect(&mut self) -> (usize, Option<Stop>) {
        let (mut collected, mut decoded) = (0, 0);
        while let Some(flight) = self.flights.front() {
            let mut look = flight.look();
            if let Look::Answered(answer) = &look
                && !flight.is_settled(answer)
            {
                // On a dirty scheduler nothing is sent.
                if self.place == Where::Dirty {
                    Services::decode(flight.worker().borrow());
                    return (collected, Some(Stop::Queued));
                }
                match flight.settle(self.env) {
                    Settled::Yes => {}
                    Settled::Large => return (collected, Some(Stop::Queued)),
                    Settled::Later => return (collected, Some(Stop::Later)),
                    Settled::Fault(failure) => look = Look::Fault(failure),
                }
            }
            let length = match &look {
                Look::Waiting => break,
                Look::Answered(answer) => answer.length as usize,
                Look::Dead { .. } | Look::Fault(_) => 0,
            };
            if (length > ON_SCHEDULER || flight.is_dear()) && self.place == Where::Scheduler {
                return (collected, Some(Stop::Large));
            }
            let Some(flight) = self.flights.pop_front() else { break };
            match outcome(self.env, flight, look, self.place) {
                Ok(outcome) => self.outcomes.push(outcome),
                Err(flight) => {
                    self.flights.push_front(flight);
                    return (collected, Some(Stop::Large));
                }
            }
            collected += 1;
            decoded += length + EACH;
            if decoded >= LOOK_AFTER {
                if self.begun.elapsed() >= SLICE {
                    break;
                }
                decoded = 0;
            }
        }
        (collected, None)
    }

    /// Whether the first call was answered soon.
    fn wait(&self) -> bool {
        let first = self.flights.front();
        first.is_some_and(|flight| !matches!(flight.spin(SPIN), Look::Waiting))
    }
}

/// The flight comes back if its answer is to be decoded on a dirty scheduler.
fn outcome(env: Env<'_>, flight: Flight, look: Look, place: Where) -> Result<Term<'_>, Flight> {
    Ok(match look {
        Look::Answered(answer) => return flight.outcome(env, env.as_c_arg(), &answer, place),
        Look::Dead { started } => flight.dead(env, started),
        Look::Fault(failure) => {
            drop(flight);
            failure.term(env)
        }
        Look::Waiting => timed_out(env, false),
    })
}

fn timed_out(env: Env<'_>, started: bool) -> Term<'_> {
    error_term(env, atoms::timeout(), &[(atoms::started(), started.encode(env))])
}

fn list<'a>(env: Env<'a>, terms: &[ErlNifTerm]) -> Term<'a> {
    // SAFETY: the terms are of the environment, as many as the slice has.
    unsafe {
        let list = enif_make_list_from_array(env.as_c_arg(), terms.as_ptr(), terms.len() as u32);
        Term::new(env, list)
    }
}

impl State {
    /// All outcomes as terms of `env`.
    fn outcomes<'a>(&self, env: Env<'a>, newer: &[Term<'a>]) -> Term<'a> {
        // SAFETY: the saved terms are alive with the batch.
        let saved = self
            .outcomes
            .iter()
            .map(|term| unsafe { enif_make_copy(env.as_c_arg(), *term) });
        let all: Vec<ErlNifTerm> = saved.chain(newer.iter().map(|term| term.as_c_arg())).collect();
        list(env, &all)
    }

    fn run<'a>(&mut self, env: Env<'a>, pool: &Pool, rest: Term<'a>, place: Where) -> Ran<'a> {
        let mut stretch = Stretch {
            env,
            pool,
            name: self.name,
            rest,
            flights: std::mem::take(&mut self.flights),
            outcomes: Vec::new(),
            window: pool.window(),
            place,
            begun: Instant::now(),
            moved: 0,
        };
        let stop = stretch.run();
        let Stretch {
            rest,
            flights,
            outcomes,
            moved,
            ..
        } = stretch;
        self.flights = flights;
        Ran {
            stop,
            newer: outcomes,
            rest,
            moved: moved != 0,
        }
    }

    fn save(&mut self, newer: &[Term<'_>]) {
        let env = &self.env;
        self.outcomes.extend(newer.iter().map(|term| env.copy(term.as_c_arg())));
    }

    /// The list that is left, as a term for looking at.
    ///
    /// # Safety
    /// The batch outlives `'a`, and nothing is made in its environment while the term is used.
    unsafe fn rest<'a>(&self, lifetime: &'a ()) -> Term<'a> {
        // SAFETY: the caller vouches for the environment.
        unsafe { Term::new(Env::new(lifetime, self.env.as_c_arg()), self.rest) }
    }
}

#[rustler::nif]
fn call_many<'a>(env: Env<'a>, pool: Term<'a>, function: Term<'a>, lists: Term<'a>) -> NifResult<Term<'a>> {
    let pool = Ref::<Pool>::of(pool)?;
    let first = match lists.list_get_cell() {
        Ok((first, _)) => first,
        Err(_) if lists.is_empty_list() => {
            return Ok((atoms::done(), lists).encode(env));
        }
        Err(error) => return Err(error),
    };
    // An improper list is found out here, not in the middle.
    lists.list_length()?;
    let arity = u32::try_from(first.list_length()?).map_err(|_| NifError::BadArg)?;
    match pool.function(function.as_c_arg(), arity) {
        Some(Some(_)) => {}
        Some(None) => return Ok(atoms::undefined().encode(env)),
        None => return Ok(atoms::no_worker().encode(env)),
    }
    if pool.choose().is_none() {
        return Ok(atoms::no_worker().encode(env));
    }
    let own = OwnEnv::new();
    let mut state = State {
        name: function.as_c_arg(),
        rest: function.as_c_arg(),
        outcomes: Vec::new(),
        flights: VecDeque::new(),
        waits_for_slot: None,
        cancelled: None,
        env: own,
    };
    // A large answer is left to `batch_next`.
    let Ran { stop, newer, rest, .. } = state.run(env, &pool, lists, Where::Scheduler);
    if stop == Stop::Done {
        return Ok((atoms::done(), state.outcomes(env, &newer)).encode(env));
    }
    state.save(&newer);
    state.rest = state.env.copy(rest.as_c_arg());
    let batch = Handle::new(Batch {
        pool: pool.keep(),
        state: Mutex::new(state),
    });
    Ok((atoms::more(), batch.term(env)).encode(env))
}

#[rustler::nif]
fn batch_next<'a>(env: Env<'a>, batch: Term<'a>) -> NifResult<Term<'a>> {
    next(env, batch, Where::Scheduler)
}

unsafe extern "C" fn next_dirty(env: *mut ErlNifEnv, _argc: c_int, argv: *const ErlNifTerm) -> ErlNifTerm {
    // SAFETY: called by the VM with the one argument of `batch_next`.
    unsafe { scheduled(env, argv, |env, [batch]: [Term<'_>; 1]| next(env, batch, Where::Dirty)) }
}

unsafe extern "C" fn next_again(env: *mut ErlNifEnv, _argc: c_int, argv: *const ErlNifTerm) -> ErlNifTerm {
    // SAFETY: as above.
    unsafe {
        scheduled(env, argv, |env, [batch]: [Term<'_>; 1]| {
            next(env, batch, Where::Scheduler)
        })
    }
}

fn next<'a>(env: Env<'a>, term: Term<'a>, place: Where) -> NifResult<Term<'a>> {
    let batch = Ref::<Batch>::of(term)?;
    let mut state = batch.state.lock();
    state.waits_for_slot = None;
    let lifetime = ();
    // The terms that are left stay in the batch's environment; they are only looked at.
    // SAFETY: the batch is alive, and the environment is written only below, after the stretch.
    let rest = unsafe { Term::new(env, state.rest(&lifetime).as_c_arg()) };
    let Ran {
        stop,
        newer,
        rest,
        moved,
    } = state.run(env, &batch.pool, rest, place);
    state.rest = rest.as_c_arg();
    if stop == Stop::Done {
        return Ok((atoms::done(), state.outcomes(env, &newer)).encode(env));
    }
    state.save(&newer);
    Ok(match stop {
        Stop::Later => go_on(env, c"batch_next", next_again, &[term]),
        Stop::Queued if place == Where::Dirty => go_on(env, c"batch_next", next_again, &[term]),
        Stop::Large | Stop::Queued => go_dirty(env, c"batch_next", next_dirty, &[term]),
        _ if moved => (atoms::more(), term).encode(env),
        _ => (atoms::full(), term).encode(env),
    })
}

#[rustler::nif]
fn batch_park<'a>(env: Env<'a>, batch: Term<'a>, reference: Term<'a>, limit: usize) -> NifResult<Term<'a>> {
    let batch = Ref::<Batch>::of(batch)?;
    let waiter = Waiter::caller(env, reference, atoms::done()).ok_or(NifError::BadArg)?;
    let mut state = batch.state.lock();
    let parked = match state.flights.front() {
        Some(first) => first.park(waiter),
        // Every slot is taken by others.
        None if state.rest_is_empty() => false,
        None => {
            let queue = batch.pool.queue();
            let Some(waits) = queue.wait(&batch.pool, waiter, reference, atoms::done(), limit) else {
                return Ok(atoms::full().encode(env));
            };
            if waits {
                let saved = state.env.copy(reference.as_c_arg());
                state.waits_for_slot = Some(saved);
            }
            waits
        }
    };
    Ok(if parked { atoms::parked() } else { atoms::ready() }.encode(env))
}

impl State {
    fn rest_is_empty(&self) -> bool {
        let (mut head, mut tail) = (self.rest, self.rest);
        // SAFETY: the list is of the environment; both are only written.
        unsafe { enif_get_list_cell(self.env.as_c_arg(), self.rest, &raw mut head, &raw mut tail) == 0 }
    }

    /// Whether it was still in the queue for a slot; `None` when it does not wait for one.
    fn leave_queue(&mut self, env: Env<'_>, pool: &Pool) -> Option<bool> {
        let reference = self.waits_for_slot.take()?;
        // SAFETY: the reference is alive with the batch; it is only compared.
        let reference = unsafe { Term::new(env, enif_make_copy(env.as_c_arg(), reference)) };
        Some(pool.queue().leave(reference, atoms::done()))
    }

    /// Counts what has not gone out.
    fn rest_length(&self) -> usize {
        Elements::raw(self.env.as_c_arg(), self.rest).count()
    }
}

/// Out of the queue for a slot: a slot whose call was given up comes back without a word, so one has to look.
#[rustler::nif]
fn batch_unwait<'a>(env: Env<'a>, batch: Term<'a>) -> NifResult<Term<'a>> {
    let batch = Ref::<Batch>::of(batch)?;
    let mut state = batch.state.lock();
    let left = state.leave_queue(env, &batch.pool);
    Ok(match left {
        None => atoms::waiting(),
        Some(true) => atoms::ok(),
        Some(false) => atoms::sent(),
    }
    .encode(env))
}

#[rustler::nif]
fn batch_cancel<'a>(env: Env<'a>, batch: Term<'a>) -> NifResult<Term<'a>> {
    cancel(env, batch)
}

/// Gives the calls up, and takes what workers have said before those that were answered.
fn cancel<'a>(env: Env<'a>, term: Term<'a>) -> NifResult<Term<'a>> {
    let batch = Ref::<Batch>::of(term)?;
    let mut state = batch.state.lock();
    let mut cancelled = match state.cancelled.take() {
        Some(cancelled) => cancelled,
        None => state.give_up(env, &batch.pool),
    };
    let mut next = c"batch_cancel";
    let mut function: Scheduled = cancel_dirty;
    for given in &mut cancelled.given {
        match given.settle(env) {
            Settled::Yes => {}
            Settled::Large => {
                (next, function) = (c"batch_settle", settle_dirty);
                break;
            }
            Settled::Later => {
                state.cancelled = Some(cancelled);
                return Ok(go_on(env, c"batch_cancel", cancel_again, &[term]));
            }
            Settled::Fault(failure) => *given = Given::Lied(failure),
        }
    }
    state.cancelled = Some(cancelled);
    // Dirty in any case: every answer that has come is decoded, however large.
    Ok(go_dirty(env, next, function, &[term]))
}

unsafe extern "C" fn settle_dirty(env: *mut ErlNifEnv, _argc: c_int, argv: *const ErlNifTerm) -> ErlNifTerm {
    // SAFETY: called by the VM with the one argument of `batch_cancel`.
    unsafe {
        scheduled(env, argv, |env, [term]: [Term<'_>; 1]| {
            let batch = Ref::<Batch>::of(term)?;
            let workers: Vec<Handle<Worker>> = batch
                .state
                .lock()
                .cancelled
                .iter()
                .flat_map(Cancelled::workers)
                .collect();
            for worker in workers {
                Services::decode(worker.borrow());
            }
            Ok(go_on(env, c"batch_cancel", cancel_again, &[term]))
        })
    }
}

unsafe extern "C" fn cancel_again(env: *mut ErlNifEnv, _argc: c_int, argv: *const ErlNifTerm) -> ErlNifTerm {
    // SAFETY: as above.
    unsafe { scheduled(env, argv, |env, [batch]: [Term<'_>; 1]| cancel(env, batch)) }
}

unsafe extern "C" fn cancel_dirty(env: *mut ErlNifEnv, _argc: c_int, argv: *const ErlNifTerm) -> ErlNifTerm {
    // SAFETY: as above.
    unsafe { scheduled(env, argv, |env, [batch]: [Term<'_>; 1]| collect_cancelled(env, batch)) }
}

fn collect_cancelled<'a>(env: Env<'a>, batch: Term<'a>) -> NifResult<Term<'a>> {
    let batch = Ref::<Batch>::of(batch)?;
    let mut state = batch.state.lock();
    let Cancelled { given, hung, sent } = state.cancelled.take().ok_or(NifError::BadArg)?;
    let mut newer: Vec<Term<'_>> = given
        .into_iter()
        .map(|given| match given {
            Given::Away { started } => timed_out(env, started),
            Given::Lied(failure) => failure.term(env),
            Given::Due(flight) => {
                let look = flight.look();
                // As if it were, where nothing goes to another one.
                outcome(env, flight, look, Where::Dirty).unwrap_or_else(|_| timed_out(env, true))
            }
        })
        .collect();
    for _ in 0..state.rest_length() {
        newer.push(timed_out(env, false));
    }
    let outcomes = state.outcomes(env, &newer);
    let hung: Vec<Term<'_>> = hung.iter().map(|worker| worker.term(env)).collect();
    state.outcomes.clear();
    Ok((outcomes, hung, sent).encode(env))
}

impl Cancelled {
    /// Those that may have said something before their answers.
    fn workers(&self) -> impl Iterator<Item = Handle<Worker>> {
        self.given.iter().filter_map(|given| match given {
            Given::Due(flight) => Some(flight.worker().clone()),
            Given::Away { .. } | Given::Lied(_) => None,
        })
    }
}

impl Given {
    fn settle(&self, env: Env<'_>) -> Settled {
        match self {
            Given::Due(flight) => match flight.look() {
                Look::Answered(answer) if !flight.is_settled(&answer) => flight.settle(env),
                _ => Settled::Yes,
            },
            Given::Away { .. } | Given::Lied(_) => Settled::Yes,
        }
    }
}

impl State {
    fn give_up(&mut self, env: Env<'_>, pool: &Pool) -> Cancelled {
        let mut sent = self.leave_queue(env, pool) == Some(false);
        if sent {
            // Its turn goes to the next one.
            pool.queue().wake(env.as_c_arg(), 1);
        }
        let mut hung: Vec<Handle<Worker>> = Vec::new();
        let mut given = Vec::new();
        for (index, mut flight) in std::mem::take(&mut self.flights).into_iter().enumerate() {
            let parked = index == 0 && flight.is_parked();
            given.push(match flight.give_up() {
                GivenUp::Yes { started } => {
                    let worker = flight.worker();
                    if started && !hung.iter().any(|known| known.incarnation() == worker.incarnation()) {
                        hung.push(worker.clone());
                    }
                    Given::Away { started }
                }
                GivenUp::TooLate => {
                    // Off the record before the slot is given back: the next one to park there replaces the record, and a
                    // message that was about to be sent would never be.
                    sent |= parked && !flight.unpark();
                    Given::Due(flight)
                }
            });
        }
        Cancelled { given, hung, sent }
    }
}
