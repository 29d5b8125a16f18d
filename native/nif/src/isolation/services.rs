//! What a library asks of the VM: the records of its worker's event queue, taken in order and served here.
//!
//! The queue is taken by the process that hears the worker's bell, and by whoever takes an answer before which something was
//! queued, on schedulers only: a process that is ended while it runs on a dirty one sends nothing any more. A term that is too
//! large to be decoded on a scheduler stops the queue; it is decoded on a dirty scheduler, and sent by whoever goes on. Whoever takes
//! the queue does so for half a millisecond, by weight of the records, and lets others run before it goes on.

use super::effort::Met;
use super::failure::{Failure, Result};
use super::flight;
use super::handle::Ref;
use super::monitors::Monitors;
use super::replies::Replies;
use super::requests::{self, Action, Decoded, Job, Large, Parts, deliver};
use super::saved::{OwnEnv, pid_word, self_pid};
use super::worker::Worker;
use crate::atoms;
use parking_lot::Mutex;
use rustler::sys::{ErlNifTerm, enif_send};
use rustler::{Encoder, Env};
use snakepit_shm_core::ring::vm::Done;
use snakepit_wire::Name;
use std::collections::{HashMap, VecDeque};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Records between two looks at what else there is to do.
const STRETCH: usize = 64;
/// Work that is done without giving way, in quarters of a microsecond.
const SLICE: u64 = 2_000;
/// What is sent to one process, and to all, before somebody looks whether they keep up.
pub(super) const EACH: Amount = Amount {
    messages: 1_000,
    bytes: 1 << 20,
};
pub(super) const ALL: Amount = Amount {
    messages: 10_000,
    bytes: 16 << 20,
};
/// What is sent at most before the process that hears the bell has taken note: callers that take the queue wait for it. And what is
/// still sent for a worker that is dead.
const MOST: Amount = Amount {
    messages: 4 * ALL.messages,
    bytes: 4 * ALL.bytes,
};
/// How long a scheduler waits for another one to be done with the queue, before it does something else.
const PATIENCE: Duration = Duration::from_micros(200);
/// What a library may do beyond the names that it was given.
#[derive(Debug)]
pub struct Grants {
    pub whereis: Whereis,
    pub port_command: bool,
}

#[derive(Debug)]
pub enum Whereis {
    All,
    These(Vec<String>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Amount {
    messages: u64,
    bytes: u64,
}

impl Amount {
    pub(super) const NOTHING: Amount = Amount { messages: 0, bytes: 0 };

    pub(super) fn add(&mut self, bytes: u64) {
        self.messages += 1;
        self.bytes += bytes;
    }

    pub(super) fn reaches(self, limit: Amount) -> bool {
        self.messages >= limit.messages || self.bytes >= limit.bytes
    }
}

#[derive(Debug)]
pub struct Services {
    pub(super) grants: Grants,
    intake: Mutex<Intake>,
    /// A mailbox is full: nothing is taken out of the queue until the process that hears the bell says so.
    held: AtomicBool,
    /// The worker has lied, or is dead.
    over: AtomicBool,
    replies: Replies,
    monitors: Monitors,
    /// Names of calls that were over before the queue was taken up to a position: there may be a `Keep` in it.
    later: Mutex<VecDeque<(u64, Vec<Name>)>>,
    /// Names of calls that were given up and are worked on, by slot and number.
    abandoned: Mutex<Vec<(u16, u64, Vec<Name>)>>,
    /// Where the queue of a dead worker ends.
    rest: OnceLock<u64>,
}

/// The queue's other end.
#[derive(Debug)]
pub(super) struct Intake {
    /// For one term at a time.
    pub(super) env: OwnEnv,
    pub(super) parts: Parts,
    /// The record that the ring holds until it is done with.
    pub(super) job: Option<Job>,
    pub(super) sent: HashMap<ErlNifTerm, Amount>,
    pub(super) sent_to_all: Amount,
    /// Somebody is to look at mailboxes.
    pub(super) pressed: bool,
    /// What was refused for want of a grant, and whether that was told.
    denied: [Option<bool>; Function::ALL.len()],
    /// What was told last, and to whom.
    told: Option<(Option<ErlNifTerm>, News)>,
    /// Whoever hears the bell was told to look.
    nudged: bool,
    /// Found on a dirty scheduler.
    lie: Option<Failure>,
    /// What was done since the last time that it gave way, in quarters of a microsecond.
    work: u64,
    /// The worker is dead: nobody is asked whether processes keep up.
    pub(super) rest: bool,
}

// SAFETY: terms here are words (local pids and ports, atoms), or of an environment that goes with them.
unsafe impl Send for Intake {}

/// What needs a grant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Function {
    WhereisPid,
    WhereisPort,
    PortCommand,
}

impl Function {
    const ALL: [Function; 3] = [Function::WhereisPid, Function::WhereisPort, Function::PortCommand];

    pub fn name(self) -> &'static str {
        match self {
            Function::WhereisPid => "enif_whereis_pid",
            Function::WhereisPort => "enif_whereis_port",
            Function::PortCommand => "enif_port_command",
        }
    }
}

/// How far the queue was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    All,
    /// There is more, or somebody is to look at mailboxes first.
    More,
    /// It is not taken now.
    Held,
    /// A dirty scheduler has to decode a term.
    Large,
    /// Somebody else is at it: to be tried again.
    Busy,
}

/// What the process that hears the bell has to know.
#[derive(Debug, Clone)]
pub struct News {
    /// What was sent to whom since the last time: word of the pid, messages, bytes.
    pub sent: Vec<(ErlNifTerm, u64, u64)>,
    pub denied: Vec<Function>,
}

impl Services {
    pub fn new(grants: Grants) -> Self {
        Services {
            grants,
            intake: Mutex::new(Intake {
                env: OwnEnv::new(),
                parts: Parts::default(),
                job: None,
                sent: HashMap::new(),
                sent_to_all: Amount::NOTHING,
                pressed: false,
                denied: [None; Function::ALL.len()],
                told: None,
                nudged: false,
                lie: None,
                work: 0,
                rest: false,
            }),
            held: AtomicBool::new(false),
            over: AtomicBool::new(false),
            replies: Replies::default(),
            monitors: Monitors::default(),
            later: Mutex::default(),
            abandoned: Mutex::default(),
            rest: OnceLock::new(),
        }
    }

    pub fn replies(&self) -> &Replies {
        &self.replies
    }

    pub fn monitors(&self) -> &Monitors {
        &self.monitors
    }

    pub fn hold(&self, held: bool) {
        // Relaxed: whoever sees it late takes a little more, or a little later.
        self.held.store(held, Ordering::Relaxed);
    }

    /// The names of a call that is over; they go when the queue is taken up to the position.
    pub fn forget_later(&self, position: u64, names: Vec<Name>) {
        self.later.lock().push_back((position, names));
    }

    /// The names of a call that was given up: they go when its slot was given back, and the queue taken up to there.
    pub fn forget_abandoned(&self, slot: u16, number: u64, names: Vec<Name>) {
        self.abandoned.lock().push((slot, number, names));
    }

    /// Lets go of the names of given-up calls that are over. True: there are no others.
    pub fn reap(&self, worker: &Worker) -> bool {
        let mut abandoned = self.abandoned.lock();
        let over: Vec<_> = abandoned
            .extract_if(.., |(slot, number, _)| !worker.ring().is_abandoned(*slot, *number))
            .collect();
        let none = abandoned.is_empty();
        drop(abandoned);
        if !over.is_empty() {
            let position = worker.ring().events_end();
            for (_, _, names) in over {
                if worker.ring().events_done_until(position) {
                    worker.forget(&names);
                } else {
                    self.forget_later(position, names);
                }
            }
        }
        none
    }

    fn is_over(&self) -> bool {
        // Relaxed: whoever sees it late takes a little more.
        self.over.load(Ordering::Relaxed)
    }

    /// Takes what was in the queue before a position, or some of it: for whoever has an answer that comes after it.
    pub fn take_until(worker: Ref<'_, Worker>, env: Env<'_>, position: u64) -> Result<Taken> {
        let services = worker.services();
        if services.held.load(Ordering::Relaxed) {
            return Ok(Taken::Held);
        }
        let Some(mut intake) = services.intake.try_lock_for(PATIENCE) else {
            return Ok(Taken::Busy);
        };
        let taken = intake.take(worker, env, Some(position))?;
        intake.nudge(worker, env);
        Ok(taken)
    }

    /// Takes some of the queue, and tells what there is to know: for the process that hears the bell.
    pub fn take_some(worker: Ref<'_, Worker>, env: Env<'_>) -> Result<(Taken, News)> {
        let services = worker.services();
        let Some(mut intake) = services.intake.try_lock_for(PATIENCE) else {
            return Ok((Taken::Busy, News::none()));
        };
        intake.nudged = false;
        let mut taken = if intake.pressed {
            Taken::More
        } else {
            intake.take(worker, env, None)?
        };
        if intake.pressed && taken == Taken::All {
            taken = Taken::More;
        }
        let listener = self_pid(env).map(pid_word);
        Ok((taken, intake.news_for(listener)))
    }

    /// Takes what a dead worker has left in its queue, or some of it: no more than is there at first, in case it is not dead
    /// after all, or another process has its memory.
    pub fn take_rest(worker: Ref<'_, Worker>, env: Env<'_>) -> Result<Taken> {
        let services = worker.services();
        let position = *services.rest.get_or_init(|| worker.ring().events_end());
        let Some(mut intake) = services.intake.try_lock_for(PATIENCE) else {
            return Ok(Taken::Busy);
        };
        intake.rest = true;
        intake.take(worker, env, Some(position))
    }

    /// Decodes the large term at which the queue has stopped, if nobody does. Takes its time, during which others find the queue
    /// busy, and do not wait.
    pub fn decode(worker: Ref<'_, Worker>) {
        let services = worker.services();
        if services.is_over() {
            return;
        }
        let Some((action, bytes, met)) = services.intake.lock().begin() else {
            return;
        };
        let decoded = requests::decode(&worker, action, &bytes, &met);
        let left = services.intake.lock().put_back(decoded);
        drop(left);
    }

    /// The worker is dead, and its queue was taken.
    pub fn close(worker: Ref<'_, Worker>) {
        let services = worker.services();
        // First: who is at the queue stops.
        services.over.store(true, Ordering::Relaxed);
        services.replies.close();
        let mut intake = services.intake.lock();
        let left = (intake.job.take(), std::mem::take(&mut intake.parts));
        drop(intake);
        drop(left);
        services.later.lock().clear();
        services.abandoned.lock().clear();
    }

    /// Forgets the names of calls after which the queue was taken.
    fn catch_up(&self, worker: &Worker) {
        let mut later = self.later.lock();
        while let Some((position, _)) = later.front()
            && worker.ring().events_done_until(*position)
            && let Some((_, names)) = later.pop_front()
        {
            worker.forget(&names);
        }
    }
}

impl News {
    pub fn none() -> Self {
        News {
            sent: Vec::new(),
            denied: Vec::new(),
        }
    }
}

impl Intake {
    /// Some of the queue, up to a position.
    fn take(&mut self, worker: Ref<'_, Worker>, env: Env<'_>, until: Option<u64>) -> Result<Taken> {
        let services = worker.services();
        self.work = 0;
        loop {
            if let Some(lie) = self.lie.take() {
                return Err(lied(services, lie));
            }
            if services.is_over() {
                return Ok(Taken::All);
            }
            if until.is_some() && self.is_ahead() {
                // Until its sending is taken note of.
                return Ok(Taken::Busy);
            }
            match self.job.take_if(|job| matches!(job.term, Large::Ready(_))) {
                Some(Job {
                    action,
                    term: Large::Ready(decoded),
                }) => {
                    let reply = deliver(&worker, env, action, decoded.env.as_c_arg(), decoded.term);
                    self.done(worker, env, action, decoded.bytes, reply);
                    worker.ring().event_done();
                }
                _ => match &self.job {
                    Some(job) if matches!(job.term, Large::Encoded(..)) => return Ok(Taken::Large),
                    Some(_) => return Ok(Taken::Busy),
                    None => {}
                },
            }
            let (mut fault, mut stopped) = (None, false);
            let count = worker.ring().events_until(until, STRETCH, |kind, bytes| {
                let done = self.serve(worker, env, kind, bytes).unwrap_or_else(|failure| {
                    fault = Some(failure);
                    Done::NotYet
                });
                stopped = self.gives_way(until);
                if stopped && done == Done::Yes {
                    Done::Enough
                } else {
                    done
                }
            });
            let count = count.map_err(|fault| lied(services, fault.into()))?;
            if let Some(failure) = fault {
                return Err(lied(services, failure));
            }
            if services.replies.overflow() {
                return Err(lied(
                    services,
                    Failure::protocol("it asks, and does not read the answers"),
                ));
            }
            services.catch_up(&worker);
            worker.settle_names();
            if self.job.is_none() && count < STRETCH && !stopped {
                return Ok(Taken::All);
            }
            if self.gives_way(until) {
                return Ok(Taken::More);
            }
        }
    }

    /// Whether it is enough for now.
    fn gives_way(&self, until: Option<u64>) -> bool {
        self.work >= SLICE || if until.is_some() { self.is_ahead() } else { self.pressed }
    }

    /// Whether so much was sent that somebody has to take note before there is more.
    fn is_ahead(&self) -> bool {
        !self.rest && self.sent_to_all.reaches(MOST)
    }

    /// Whether a dead worker has sent enough.
    pub(super) fn has_sent_enough(&self) -> bool {
        self.rest && self.sent_to_all.reaches(MOST)
    }

    /// Notes work, in quarters of a microsecond.
    pub(super) fn works(&mut self, env: Env<'_>, quarters: u64) {
        self.work = self.work.saturating_add(quarters);
        flight::spent(env, u32::try_from(quarters).unwrap_or(u32::MAX));
    }

    /// Notes what was sent to a process.
    pub(super) fn sends(&mut self, word: ErlNifTerm, bytes: u64) {
        let amount = self.sent.entry(word).or_insert(Amount::NOTHING);
        amount.add(bytes);
        self.sent_to_all.add(bytes);
        self.pressed |= amount.reaches(EACH) || self.sent_to_all.reaches(ALL);
    }

    /// The bytes of the term at which the queue has stopped, for one who decodes them.
    fn begin(&mut self) -> Option<(Action, Vec<u8>, Met)> {
        let job = self.job.as_mut()?;
        match std::mem::replace(&mut job.term, Large::InWork) {
            Large::Encoded(bytes, met) => Some((job.action, bytes, met)),
            other => {
                job.term = other;
                None
            }
        }
    }

    /// What came of it; what nobody wants any more comes back, to be dropped without the lock.
    fn put_back(&mut self, decoded: Result<Decoded>) -> Option<Decoded> {
        match (decoded, &mut self.job) {
            (Ok(decoded), Some(job)) => {
                job.term = Large::Ready(decoded);
                None
            }
            (Ok(decoded), None) => Some(decoded),
            (Err(lie), _) => {
                self.lie = Some(lie);
                None
            }
        }
    }

    pub(super) fn deny(&mut self, function: Function) {
        self.denied[function as usize].get_or_insert(false);
    }

    /// The news, with those that were told to another one last, who may have ended before it did anything about them.
    fn news_for(&mut self, listener: Option<ErlNifTerm>) -> News {
        let earlier = self.told.take().filter(|(to, _)| *to != listener);
        let mut news = earlier.map_or_else(News::none, |(_, news)| news);
        let News { sent, denied } = self.news();
        news.sent.extend(sent);
        news.denied.extend(denied);
        if !news.sent.is_empty() || !news.denied.is_empty() {
            self.told = Some((listener, news.clone()));
        }
        news
    }

    fn news(&mut self) -> News {
        let mut news = News::none();
        for (function, told) in Function::ALL.into_iter().zip(&mut self.denied) {
            if *told == Some(false) {
                *told = Some(true);
                news.denied.push(function);
            }
        }
        if std::mem::take(&mut self.pressed) {
            let everything = self.sent_to_all.reaches(ALL);
            self.sent.retain(|word, amount| {
                let told = everything || amount.reaches(EACH);
                if told {
                    news.sent.push((*word, amount.messages, amount.bytes));
                    self.sent_to_all.messages -= amount.messages;
                    self.sent_to_all.bytes -= amount.bytes;
                }
                !told
            });
        }
        news
    }

    /// Has whoever hears the bell ask for the news.
    fn nudge(&mut self, worker: Ref<'_, Worker>, env: Env<'_>) {
        let wanted = self.pressed || self.denied.contains(&Some(false));
        if self.nudged || !wanted {
            return;
        }
        let Some(listener) = worker.services().replies.listener() else {
            return;
        };
        let message = (
            atoms::select(),
            worker.keep().term(env),
            atoms::bell(),
            atoms::ready_input(),
        );
        // SAFETY: the message is of the caller's environment, which is copied.
        let sent = unsafe {
            enif_send(
                env.as_c_arg(),
                &raw const listener,
                std::ptr::null_mut(),
                message.encode(env).as_c_arg(),
            )
        };
        self.nudged = sent != 0;
    }
}

/// Nothing more is heard of it.
fn lied(services: &Services, failure: Failure) -> Failure {
    services.over.store(true, Ordering::Relaxed);
    failure
}
