//! A call that a worker has, from `submit` to its outcome.

use super::call::Where;
use super::effort::{Effort, Met};
use super::failure::{Failure, Unreadable, is_dear};
use super::handle::Handle;
use super::pool::Pool;
use super::saved::Waiter;
use super::scratch;
use super::services::{Services, Taken};
use super::worker::Worker;
use crate::atoms;
use rustler::sys::{ErlNifEnv, ErlNifTerm, enif_get_list_cell};
use rustler::{Encoder, Env, Term};
use snakepit_shm_core::ring::vm::{Answer, Call, Cancel, Claim, Park, Poll, Request, Wake};
use snakepit_shm_core::ring::{self, status};
use snakepit_wire::{EncodeError, Name};
use std::cell::Cell;
use std::mem::MaybeUninit;
use std::time::Duration;

/// What is encoded or decoded on a scheduler; more goes to a dirty one. A binary of 64 KiB, as files and sockets are often read, is copied here,
/// with what stands around it.
pub const ON_SCHEDULER: usize = (64 << 10) + (1 << 10);
/// The longest text that an answer without a value carries.
const TEXT: usize = 4 << 10;

/// A published call. Dropped without an outcome, it is abandoned: its caller is gone.
#[derive(Debug)]
pub struct Flight {
    worker: Handle<Worker>,
    call: Option<Call>,
    kept: Vec<Name>,
    /// Somebody was told to expect a message.
    parked: Cell<bool>,
    /// Seen answered.
    due: Cell<bool>,
    queue: Cell<Queue>,
    /// Its answer was too much for a scheduler, which met these objects in it.
    dear: bool,
    met: Met,
}

/// What the worker has put into its event queue before it answered.
#[derive(Debug, Clone, Copy)]
enum Queue {
    /// Not asked.
    Unknown,
    /// To be taken up to this position.
    Until(u64),
    Taken,
    /// A full mailbox keeps it up; the answer goes ahead.
    Held(u64),
}

/// Whether an answer may be taken.
#[derive(Debug)]
pub enum Settled {
    Yes,
    /// After `Services::decode`, on a dirty scheduler.
    Large,
    /// When others have had their turn on this scheduler.
    Later,
    Fault(Failure),
}

/// What `submit` came to.
#[derive(Debug)]
pub enum Submitted {
    Yes(Flight, Wake),
    NoWorker,
    Full,
    /// More than may be encoded here.
    Large,
    Failed(Failure),
}

/// One look at a call.
#[derive(Debug)]
pub enum Look {
    Waiting,
    Answered(Answer),
    Dead { started: bool },
    Fault(Failure),
}

/// How a flight was given up.
#[derive(Debug)]
pub enum GivenUp {
    Yes { started: bool },
    TooLate,
}

/// The elements of a proper list.
#[derive(Debug, Clone, Copy)]
pub struct Elements {
    env: *mut ErlNifEnv,
    rest: ErlNifTerm,
}

impl Elements {
    /// `list` is of the environment, which outlives this.
    pub fn raw(env: *mut ErlNifEnv, list: ErlNifTerm) -> Self {
        Elements { env, rest: list }
    }

    pub fn of(list: Term<'_>) -> Self {
        Elements {
            env: list.get_env().as_c_arg(),
            rest: list.as_c_arg(),
        }
    }
}

impl Elements {
    /// What is behind the elements taken so far.
    #[inline]
    pub fn rest<'a>(&self, env: Env<'a>) -> Term<'a> {
        // SAFETY: of the environment that this was made in, which is the caller's.
        unsafe { Term::new(env, self.rest) }
    }
}

impl Iterator for Elements {
    type Item = ErlNifTerm;

    #[inline]
    fn next(&mut self) -> Option<ErlNifTerm> {
        let mut head = MaybeUninit::uninit();
        // SAFETY: the list belongs to the environment, which the caller keeps; filled in when the answer is not 0.
        unsafe {
            (enif_get_list_cell(self.env, self.rest, head.as_mut_ptr(), &raw mut self.rest) != 0)
                .then(|| head.assume_init())
        }
    }
}

/// Gives a call to a worker of the pool. `limit`: bytes of arguments.
#[inline]
pub fn submit(
    env: Env<'_>,
    pool: &Pool,
    function: u32,
    arity: u16,
    arguments: Elements,
    limit: usize,
    quietly: bool,
) -> Submitted {
    let Some(worker) = pool.choose() else {
        return Submitted::NoWorker;
    };
    let (worker, claim) = match worker.ring().claim() {
        Some(claim) => (worker, claim),
        None => match another(pool, &worker) {
            Some(found) => found,
            None => return Submitted::Full,
        },
    };
    match send(env, worker, claim, function, arity, arguments, limit, quietly) {
        Err(EncodeError::Refused(Unreadable::Elsewhere(incarnation))) => {
            let Some(worker) = pool.incarnation(incarnation) else {
                return Submitted::Failed(EncodeError::Refused(Unreadable::Elsewhere(incarnation)).into());
            };
            let Some(claim) = worker.ring().claim() else {
                return Submitted::Full;
            };
            send(env, worker, claim, function, arity, arguments, limit, quietly)
                .unwrap_or_else(|error| Submitted::Failed(error.into()))
        }
        Ok(submitted) => submitted,
        Err(EncodeError::Full) => Submitted::Large,
        Err(error) => Submitted::Failed(error.into()),
    }
}

#[cold]
fn another(pool: &Pool, than: &Handle<Worker>) -> Option<(Handle<Worker>, Claim)> {
    pool.others(than)
        .into_iter()
        .find_map(|worker| worker.ring().claim().map(|claim| (worker, claim)))
}

#[inline]
fn send(
    env: Env<'_>,
    worker: Handle<Worker>,
    claim: Claim,
    function: u32,
    arity: u16,
    arguments: Elements,
    limit: usize,
    quietly: bool,
) -> Result<Submitted, EncodeError<Unreadable>> {
    let ring = worker.ring();
    let request = Request {
        function,
        arity,
        caller: scratch::with(|scratch| scratch.caller(env, &worker)),
    };
    let mut kept = Vec::new();
    let limit = limit.min(worker.limits().bytes as usize);
    let outcome = scratch::encode(env, &worker, arguments, &mut kept, limit, |encoded, mut outgoing| {
        let payload = match encoded {
            Ok(()) => outgoing.payload(),
            Err(_) => None,
        };
        let Some(payload) = payload else {
            ring.unclaim(claim);
            return match (outgoing.refused(), encoded) {
                (Some(error), _) => Ok(Err(refused(&worker, error))),
                (None, Err(error)) => Err(error),
                (None, Ok(())) => Ok(Err(Submitted::Full)),
            };
        };
        let published = if quietly {
            ring.publish_quietly(claim, request, payload)
                .map(|call| (call, Wake::Awake))
        } else {
            ring.publish(claim, request, payload)
        };
        Ok(published.map_err(|(claim, error)| {
            ring.unclaim(claim);
            refused(&worker, error)
        }))
    });
    match outcome {
        Ok(Ok((call, wake))) => {
            worker.count(call.number());
            spent(env, 2);
            Ok(Submitted::Yes(Flight::new(worker, call, kept), wake))
        }
        Ok(Err(refused)) => {
            worker.forget(&kept);
            Ok(refused)
        }
        Err(error) => {
            worker.forget(&kept);
            Err(error)
        }
    }
}

/// The arguments found no place: for now, because of others, or never.
#[cold]
fn refused(worker: &Worker, error: ring::Error) -> Submitted {
    let plan = worker.ring().plan();
    match error {
        ring::Error::TooLarge { bytes, .. }
            if bytes <= u64::from(plan.spill_bytes.max(plan.slot_bytes)) && worker.runs_short() =>
        {
            Submitted::Full
        }
        other => Submitted::Failed(other.into()),
    }
}

impl Flight {
    pub fn new(worker: Handle<Worker>, call: Call, kept: Vec<Name>) -> Self {
        Flight {
            worker,
            call: Some(call),
            kept,
            parked: Cell::new(false),
            due: Cell::new(false),
            queue: Cell::new(Queue::Unknown),
            dear: false,
            met: Met::default(),
        }
    }

    /// As a flight whose answer takes more than a scheduler has time for.
    pub fn having_met(mut self, met: Met) -> Self {
        self.dear = true;
        self.met = met;
        self
    }

    /// Whether its answer has been found to take more than a scheduler has time for. It is not tried there again.
    #[inline]
    pub fn is_dear(&self) -> bool {
        self.dear
    }

    /// Whether nothing is left of what the worker has said before this answer.
    #[inline]
    pub fn is_settled(&self, answer: &Answer) -> bool {
        answer.status & status::QUEUED == 0 || matches!(self.queue.get(), Queue::Taken | Queue::Held(_))
    }

    /// Takes what is left of it. On a scheduler.
    #[cold]
    pub fn settle(&self, env: Env<'_>) -> Settled {
        let position = match self.queue.get() {
            Queue::Until(position) => position,
            Queue::Unknown => self.worker.ring().events_end(),
            Queue::Taken | Queue::Held(_) => return Settled::Yes,
        };
        self.queue.set(Queue::Until(position));
        match Services::take_until(self.worker.borrow(), env, position) {
            Ok(Taken::All) => self.queue.set(Queue::Taken),
            Ok(Taken::Held) => self.queue.set(Queue::Held(position)),
            Ok(Taken::Large) => return Settled::Large,
            Ok(Taken::More) => return Settled::Later,
            Ok(Taken::Busy) => {
                gives_way(env);
                return Settled::Later;
            }
            Err(failure) => {
                self.worker.fault();
                return Settled::Fault(failure.by(&self.worker));
            }
        }
        Settled::Yes
    }

    /// The names that the call has brought go, or when the queue was taken: the library may keep some.
    #[inline]
    fn forget(&mut self) {
        match self.queue.get() {
            Queue::Held(position) if !self.kept.is_empty() => {
                let kept = std::mem::take(&mut self.kept);
                self.worker.services().forget_later(position, kept);
            }
            _ => self.worker.forget(&self.kept),
        }
    }

    pub fn worker(&self) -> &Handle<Worker> {
        &self.worker
    }

    #[inline]
    fn seen(&self, poll: ring::Result<Poll>) -> Look {
        match poll {
            Ok(Poll::Waiting) => Look::Waiting,
            Ok(Poll::Answered(answer)) => Look::Answered(answer),
            Ok(Poll::Dead { started }) => Look::Dead { started },
            Err(fault) => {
                self.worker.fault();
                Look::Fault(Failure::from(fault).by(&self.worker))
            }
        }
    }

    #[inline]
    pub fn look(&self) -> Look {
        match &self.call {
            // Told that it is answered: an answer that has gone is a lie, not a reason to wait.
            Some(call)
                if self.due.get() || (self.parked.get() && !self.worker.is_waiting(call.slot(), call.number())) =>
            {
                self.seen(self.worker.ring().collect(call))
            }
            Some(call) => self.seen(self.worker.ring().poll(call)),
            None => Look::Dead { started: false },
        }
    }

    #[inline]
    pub fn spin(&self, at_most: Duration) -> Look {
        match &self.call {
            Some(call) => self.seen(self.worker.ring().spin(call, at_most)),
            None => Look::Dead { started: false },
        }
    }

    pub fn attend(&self, wake: Wake, at_most: Duration) -> Look {
        match &self.call {
            Some(call) => self.seen(self.worker.ring().attend(call, wake, at_most)),
            None => Look::Dead { started: false },
        }
    }

    /// Whether somebody was told to expect a message.
    pub fn is_parked(&self) -> bool {
        self.parked.get()
    }

    /// True: the waiter will be sent its message. False: it is ready, and no message will come.
    pub fn park(&self, waiter: Waiter) -> bool {
        let Some(call) = &self.call else { return false };
        // On record first: from `park` on the answer may come at any moment.
        self.worker.waits(call.slot(), call.number(), waiter);
        match self.worker.ring().park(call) {
            Park::Parked => {
                self.parked.set(true);
                true
            }
            Park::Answered => {
                drop(self.worker.waits_no_more(call.slot(), call.number()));
                self.due.set(true);
                false
            }
        }
    }

    /// Takes the caller off the record. True: no message has been or will be sent.
    pub fn unpark(&self) -> bool {
        let call = self.call.as_ref();
        call.is_some_and(|call| self.worker.waits_no_more(call.slot(), call.number()).is_some())
    }

    /// Gives it up, unless its answer (and the message to a parked caller) was faster.
    pub fn give_up(&mut self) -> GivenUp {
        let Some(call) = self.call.take() else {
            return GivenUp::Yes { started: false };
        };
        let (slot, number) = (call.slot(), call.number());
        match self.worker.ring().cancel(call) {
            Cancel::Cancelled { started } => {
                drop(self.worker.waits_no_more(slot, number));
                self.worker
                    .forget_abandoned(slot, number, std::mem::take(&mut self.kept));
                self.worker.gave_up(number);
                GivenUp::Yes { started }
            }
            Cancel::Committed(call) => {
                self.call = Some(call);
                self.due.set(true);
                GivenUp::TooLate
            }
        }
    }

    /// The outcome of an answered call, as a term of `env`. `caller`: the environment of the process that runs this. On a scheduler it comes
    /// back if it takes too much there.
    #[inline]
    pub fn outcome<'a>(
        mut self,
        env: Env<'a>,
        caller: *mut ErlNifEnv,
        answer: &Answer,
        place: Where,
    ) -> Result<Term<'a>, Self> {
        let Some(call) = self.call.take() else {
            return Ok(atoms::retry().encode(env));
        };
        let mut effort = match place {
            Where::Scheduler => Effort::on_scheduler(&self.met),
            Where::Dirty => Effort::unbounded(&self.met),
        };
        let source = self.worker.ring().source(&call, answer);
        let status = answer.status & !status::QUEUED;
        let outcome = match status {
            status::VALUE | status::RAISED => {
                let decoded = scratch::with(|scratch| {
                    let decoded = scratch.decode(env.as_c_arg(), &self.worker, &source, &mut effort);
                    if effort.work() > 0 && place == Where::Scheduler {
                        scratch.spend(env, effort.work() as u32);
                    }
                    decoded
                });
                if is_dear(&decoded) {
                    let met = effort.met(env.as_c_arg());
                    self.call = Some(call);
                    return Err(self.having_met(met));
                }
                // SAFETY: just made in this environment.
                match decoded.map(|term| unsafe { Term::new(env, term) }) {
                    Ok(term) if status == status::VALUE => (atoms::ok(), term).encode(env),
                    Ok(term) => (atoms::raised(), term).encode(env),
                    Err(error) => self.failed(error.into()).term(env),
                }
            }
            other => {
                let mut text = Vec::new();
                if source.len() <= TEXT {
                    source.read(&mut text);
                }
                self.failed(without_value(other, &String::from_utf8_lossy(&text)))
                    .term(env)
            }
        };
        self.worker.ring().release(call);
        self.forget();
        self.worker.slot_freed(caller);
        Ok(outcome)
    }

    /// The outcome of an answer that could not be taken.
    #[cold]
    pub fn refused(mut self, env: Env<'_>, failure: Failure) -> Term<'_> {
        let outcome = self.failed(failure).term(env);
        if let Some(call) = self.call.take() {
            self.worker.ring().release(call);
            self.forget();
            self.worker.slot_freed(env.as_c_arg());
        }
        outcome
    }

    #[cold]
    fn failed(&self, failure: Failure) -> Failure {
        if matches!(failure, Failure::Protocol { .. }) {
            self.worker.fault();
        }
        failure.by(&self.worker)
    }

    /// The outcome of a call whose worker has died.
    #[cold]
    pub fn dead<'a>(mut self, env: Env<'a>, started: bool) -> Term<'a> {
        if let Some(call) = self.call.take() {
            self.worker.ring().release(call);
            self.worker.forget(&self.kept);
        }
        if started || self.worker.abandoned() {
            self.worker.end(env)
        } else {
            atoms::retry().encode(env)
        }
    }

    /// What is to be done for a worker that does not look at its queue.
    pub fn wake(&self, wake: Wake) {
        if wake == Wake::Asleep {
            self.worker.wake_process();
        }
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        if let Some(call) = self.call.take() {
            let (slot, number) = (call.slot(), call.number());
            drop(self.worker.waits_no_more(slot, number));
            self.worker.gave_up(number);
            if self.met.is_empty() {
                self.worker.ring().abandon(call);
            } else {
                // It is answered. The objects in it that were met have been made, and are given back as such; those behind are not.
                if let Ok(Poll::Answered(answer)) = self.worker.ring().poll(&call) {
                    let source = self.worker.ring().source(&call, &answer);
                    scratch::give_back_untaken(self.worker.releases(), &source, self.met.len());
                }
                self.worker.ring().release(call);
            }
            // It may be worked on, and what it is called with kept.
            self.worker
                .forget_abandoned(slot, number, std::mem::take(&mut self.kept));
        }
    }
}

#[cold]
fn without_value(status: u16, text: &str) -> Failure {
    let text = text.to_owned();
    match status {
        status::NOT_IMPLEMENTED => Failure::NotImplemented { symbol: text },
        status::BAD_ARGUMENTS => Failure::UnsupportedTerm {
            message: format!("the worker cannot read the arguments: {text}"),
        },
        status::NOT_ENCODABLE => Failure::UnsupportedTerm {
            message: format!("the worker cannot send the result: {text}"),
        },
        status::TOO_LARGE => Failure::TooLarge {
            message: format!("result: {text}"),
        },
        other => Failure::protocol(format!("an answer has the status {other}")),
    }
}

/// Reports time spent on a scheduler, in quarters of a microsecond.
pub fn spent(env: Env<'_>, quarters: u32) {
    scratch::with(|scratch| scratch.spend(env, quarters));
}

/// Reports a whole slice, so that others run before this process goes on.
pub fn gives_way(env: Env<'_>) {
    spent(env, 4_000);
}
