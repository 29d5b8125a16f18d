//! One worker process as the VM holds it. `README.md` has the life of a call.

mod messages;
mod nifs;
mod system;

use super::atom_quota::AtomsAccount;
use super::channel::Channel;
use super::failure::{Failure, Result, Unmakeable, unsent};
use super::flight;
use super::handle::{Handle, Kind, Object, Ref, Watch};
use super::names::Names;
use super::packets::{self, Sent};
use super::remote::Releases;
use super::saved::{Saved, Waiter, self_pid};
use super::scratch;
use super::services::{Grants, Services};
use super::waiting::SlotQueue;
use super::worker_spec::Spec;
use crate::atoms;
use crate::reply;
use nix::fcntl::OFlag;
use parking_lot::Mutex;
use rustler::sys::{ErlNifEnv, ErlNifEvent, ErlNifPid, ErlNifTerm};
use rustler::{Encoder, Env, Term};
use snakepit_shm_core::error::Error;
use snakepit_shm_core::mapping::Permit;
use snakepit_shm_core::ring::bell::{self, Listener, Ringer, Wait};
use snakepit_shm_core::ring::vm::{VmRing, Woken};
use snakepit_shm_core::ring::{Caller, status};
use snakepit_wire::control::{self, Function, ToWorker};
use snakepit_wire::{Limits, Name, NameKind};
use std::collections::HashMap;
use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

/// Mappings that this VM may have, regions included. The kernel allows 65,530 unless told otherwise.
const MAPPINGS: u64 = 32_768;

static INCARNATIONS: AtomicU64 = AtomicU64::new(0);

/// What the worker's process gets: control, bell in, bell out, output. The ring's descriptor stays with the ring.
#[derive(Debug)]
struct Ends {
    control: OwnedFd,
    bell_in: Listener,
    bell_out: Ringer,
    output: OwnedFd,
}

/// The sleeping caller of a slot's call, with the call's number.
type Parked = Mutex<Option<(u64, Waiter)>>;

#[derive(Debug)]
pub struct Worker {
    incarnation: u64,
    /// Apart: its cursors have cache lines of their own, and the VM aligns resources to words only.
    ring: Box<VmRing>,
    limits: Limits,
    executors: u16,
    memory: u64,
    spin_us: u32,
    ends: Mutex<Option<Ends>>,
    control: Channel<OwnedFd>,
    bell: Channel<Listener>,
    /// The worker has closed its end: selecting would be told so at once and for ever.
    bell_closed: AtomicBool,
    output: Channel<OwnedFd>,
    ringer: Mutex<Option<Ringer>>,
    atoms: Handle<AtomsAccount>,
    names: Mutex<Names>,
    /// [`Names::replaced`], to be read without the lock.
    replaced: Arc<AtomicU64>,
    releases: Arc<Releases>,
    /// Whom to wake, by slot, with the number of the call.
    parked: Box<[Parked]>,
    /// Numbers of calls that were given up and may still be worked on.
    given_up: Mutex<Vec<u64>>,
    /// Tables of the libraries that it has loaded, by number.
    functions: Mutex<HashMap<u32, Arc<[Function]>>>,
    /// Names in what libraries are loaded with, by number.
    load_infos: Mutex<HashMap<u32, Vec<Name>>>,
    /// It was told how to work, with its first library.
    begun: AtomicBool,
    queue: OnceLock<Arc<SlotQueue>>,
    faulty: AtomicBool,
    /// What is to be done when a call ends: `SHORT`, `LEAVING`, `GIVEN_UP`.
    marks: AtomicU8,
    services: Services,
    /// The watch of its owner.
    owner: OnceLock<Watch>,
    /// The watch of who has had its process started, and closes it when the owner has ended.
    reaper: OnceLock<Watch>,
    /// Who has ended: `OWNER`, `REAPER`, `PROCESS`.
    left: AtomicU8,
    /// Calls published, but for those that threads are counting right now: the highest number plus one.
    published: AtomicU64,
    /// What calls answer that it had begun when it died, as its owner says it; or, when nothing comes from there, as the reaper did.
    end: OnceLock<Saved>,
    seen_end: OnceLock<Saved>,
}

/// A payload has found no room beside those of other calls, none of which has ended since.
const SHORT: u8 = 1;
/// Names are to be let go of when the calls are over that may answer with them.
const LEAVING: u8 = 2;
/// Names are to be let go of when calls are over that were given up.
const GIVEN_UP: u8 = 4;

const OWNER: u8 = 1;
/// Nobody will see the worker's process end.
const REAPER: u8 = 2;
/// The reaper has seen the worker's process end.
const PROCESS: u8 = 4;

static KIND: Kind = Kind::new();

impl Object for Worker {
    const NAME: &'static CStr = c"snakepit_worker";

    fn kind() -> &'static Kind {
        &KIND
    }

    fn stop(&self, event: ErlNifEvent) {
        self.control.stopped(event);
        self.bell.stopped(event);
        self.output.stopped(event);
    }

    /// The owner has ended: the end of the control socket tells the worker to go, and the reaper says [`Worker::ended`] when it has, or
    /// has said so: an owner that knows of it may end before it has closed this. Or the reaper has ended: then the warden ends, and the
    /// kernel kills its workers, which the owner looks after. When nobody is left to say anything to those who wait, it is said here.
    fn down(handle: Handle<Self>, env: *mut ErlNifEnv, _pid: ErlNifPid, watch: Watch) {
        let mark = if handle.owner.get() == Some(&watch) {
            handle.control.close(env, handle.borrow());
            OWNER
        } else if handle.reaper.get() == Some(&watch) {
            REAPER
        } else {
            return;
        };
        if handle.is_alone_after(mark) {
            Worker::abandon(handle.borrow(), env);
        }
    }
}

impl Worker {
    fn new(spec: &Spec, grants: Grants) -> Result<Self> {
        let plan = spec.plan()?;
        let incarnation = INCARNATIONS.fetch_add(1, Ordering::Relaxed) + 1;
        let mut ring = Box::new(VmRing::create(
            &format!("snakepit_ring_{incarnation}"),
            plan,
            Permit::take(MAPPINGS)?,
            0,
        )?);
        let releases = Arc::new(Releases::new(incarnation));
        let unheard = Arc::clone(&releases);
        ring.unheard(move |answer, source| {
            if matches!(answer.status & !status::QUEUED, status::VALUE | status::RAISED) {
                scratch::give_back_untaken(&unheard, source, 0);
            }
        });
        let (control, their_control) = packets::pair()?;
        let (ringer, bell_in) = bell::pair()?;
        let (bell_out, listener) = bell::pair()?;
        let (output, their_output) =
            nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(|errno| Error::os("pipe2", errno))?;
        packets::do_not_block(&output)?;
        let names = Names::new(spec.names);
        system::tell_time(&ring);
        Ok(Worker {
            incarnation,
            limits: Limits {
                bytes: u64::from(plan.slot_bytes.max(plan.spill_bytes)),
                words: spec.max_words,
                depth: spec.max_depth,
            },
            executors: spec.executors,
            memory: spec.memory,
            spin_us: spec.spin_us,
            ends: Mutex::new(Some(Ends {
                control: their_control,
                bell_in,
                bell_out,
                output: their_output,
            })),
            control: Channel::new(control),
            bell: Channel::new(listener),
            bell_closed: AtomicBool::new(false),
            output: Channel::new(output),
            ringer: Mutex::new(Some(ringer)),
            atoms: spec.atoms.clone(),
            replaced: Arc::clone(names.replaced()),
            names: Mutex::new(names),
            releases,
            parked: (0..plan.slots).map(|_| Mutex::new(None)).collect(),
            given_up: Mutex::new(Vec::new()),
            functions: Mutex::default(),
            load_infos: Mutex::default(),
            begun: AtomicBool::new(false),
            queue: OnceLock::new(),
            faulty: AtomicBool::new(false),
            marks: AtomicU8::new(0),
            services: Services::new(grants),
            owner: OnceLock::new(),
            reaper: OnceLock::new(),
            left: AtomicU8::new(0),
            published: AtomicU64::new(0),
            end: OnceLock::new(),
            seen_end: OnceLock::new(),
            ring,
        })
    }

    #[inline]
    pub fn ring(&self) -> &VmRing {
        &self.ring
    }

    pub fn incarnation(&self) -> u64 {
        self.incarnation
    }

    #[inline]
    /// The most private memory that its process may have, in bytes; 0: no bound.
    pub fn memory(&self) -> u64 {
        self.memory
    }

    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    pub fn control(&self) -> &Channel<OwnedFd> {
        &self.control
    }

    pub fn services(&self) -> &Services {
        &self.services
    }

    pub fn names(&self) -> &Mutex<Names> {
        &self.names
    }

    pub fn atoms(&self) -> &AtomsAccount {
        &self.atoms
    }

    pub fn releases(&self) -> &Arc<Releases> {
        &self.releases
    }

    /// The table of a library, once it is loaded.
    pub fn functions(&self, library: u32) -> Option<Arc<[Function]>> {
        self.functions.lock().get(&library).cloned()
    }

    /// Tells the callers that wait for a slot of its pool when one is free. Once.
    pub fn join(&self, queue: &Arc<SlotQueue>) {
        let _ = self.queue.set(Arc::clone(queue));
    }

    /// Whether calls may be given to it.
    #[inline]
    pub fn serves(&self) -> bool {
        // Relaxed: who is too late finds the ring closed.
        !self.faulty.load(Ordering::Relaxed) && !self.ring.closed()
    }

    /// It has lied, and gets no more calls.
    #[cold]
    pub fn fault(&self) {
        self.faulty.store(true, Ordering::Relaxed);
    }

    /// Notes the number of a call. A store, not an addition: it is on the way of every call.
    #[inline]
    pub fn count(&self, number: u64) {
        self.published.store(number + 1, Ordering::Relaxed);
    }

    pub fn published(&self) -> u64 {
        self.published.load(Ordering::Relaxed)
    }

    #[cold]
    pub fn wake_process(&self) {
        if let Some(ringer) = &*self.ringer.lock() {
            // A worker that cannot be woken is dead, which its owner hears otherwise.
            let _ = ringer.ring();
        }
    }

    /// Whether a call of usual size would find a slot.
    pub fn has_room(&self) -> bool {
        let in_flight = self.ring.in_flight();
        // Relaxed: whoever sees the mark too late looks again when a call ends.
        in_flight < self.parked.len() && !(in_flight > 0 && self.marks.load(Ordering::Relaxed) & SHORT != 0)
    }

    /// Notes that a payload found no room. False: nobody else is there who could make some.
    pub fn runs_short(&self) -> bool {
        self.marks.fetch_or(SHORT, Ordering::Relaxed);
        self.ring.in_flight() > 0
    }

    #[inline]
    pub fn slot_freed(&self, env: *mut ErlNifEnv) {
        if self.marks.load(Ordering::Relaxed) != 0 {
            self.call_ended();
        }
        if let Some(queue) = self.queue.get() {
            queue.slot_freed(env);
        }
    }

    #[cold]
    fn call_ended(&self) {
        // Acquire: pairs with the Release of `forget_abandoned`.
        let marks = self.marks.fetch_and(!(SHORT | GIVEN_UP), Ordering::Acquire);
        self.settle_names();
        if marks & GIVEN_UP != 0 && !self.services.reap(self) {
            self.marks.fetch_or(GIVEN_UP, Ordering::Relaxed);
        }
    }

    /// Lets go of names that the library dropped and no call can answer with any more.
    pub fn settle_names(&self) {
        if self.marks.load(Ordering::Relaxed) & LEAVING == 0 {
            return;
        }
        let mut names = self.names.lock();
        if names.settle(&self.ring) {
            // Under the lock, as where it is set.
            self.marks.fetch_and(!LEAVING, Ordering::Relaxed);
        }
    }

    /// The library has dropped these names: they go when the calls are over that are in flight now, those with a number lower than
    /// `since` excepted.
    pub fn drop_names(&self, dropped: impl Iterator<Item = Name>, since: u64) -> std::result::Result<(), Unmakeable> {
        let number = self.ring.next_number();
        let mut names = self.names.lock();
        for name in dropped {
            if names.drop_later(name, since, number)? {
                self.marks.fetch_or(LEAVING, Ordering::Relaxed);
            }
        }
        Ok(())
    }

    #[inline]
    pub fn replaced(&self) -> u64 {
        self.replaced.load(Ordering::Relaxed)
    }

    /// Puts a local pid into the table, by its word and external format.
    pub fn remember(&self, env: *mut ErlNifEnv, word: ErlNifTerm) -> Option<(Caller, u64)> {
        let mut names = self.names.lock();
        let name = names.local(env, NameKind::Pid, word, || super::terms::key(env, word));
        let replaced = self.replaced();
        drop(names);
        let (Name { index, generation, .. }, _) = name.ok()?;
        Some((Caller { index, generation }, replaced))
    }

    pub fn forget(&self, kept: &[Name]) {
        if !kept.is_empty() {
            let mut names = self.names.lock();
            kept.iter().for_each(|name| names.forget(*name));
        }
    }

    /// Forgets the names of a call that was given up, when it is over.
    pub fn forget_abandoned(&self, slot: u16, number: u64, names: Vec<Name>) {
        if !names.is_empty() {
            self.services.forget_abandoned(slot, number, names);
            // After they are on record; who takes the mark away first looks there afterwards.
            self.marks.fetch_or(GIVEN_UP, Ordering::Release);
        }
    }

    /// Puts the caller of a call on record. Before the ring is told.
    pub fn waits(&self, slot: u16, number: u64, waiter: Waiter) {
        if let Some(place) = self.parked.get(usize::from(slot)) {
            let old = place.lock().replace((number, waiter));
            drop(old);
        }
    }

    /// Takes the caller of this very call off the record.
    pub fn waits_no_more(&self, slot: u16, number: u64) -> Option<Waiter> {
        let mut place = self.parked.get(usize::from(slot))?.lock();
        match &*place {
            Some((found, _)) if *found == number => place.take().map(|(_, waiter)| waiter),
            _ => None,
        }
    }

    /// A call that nobody waits for any more.
    #[cold]
    pub fn gave_up(&self, number: u64) {
        let mut given_up = self.given_up.lock();
        if given_up.len() >= 4 * self.parked.len() {
            self.settle(&mut given_up);
        }
        given_up.push(number);
    }

    /// Numbers of the calls that executors (by their own word) work on for nobody.
    fn orphans(&self) -> Vec<u64> {
        let mut given_up = self.given_up.lock();
        self.settle(&mut given_up);
        self.at_work().filter(|call| given_up.contains(call)).collect()
    }

    /// Forgets what is neither worked on nor can still be in the queue.
    fn settle(&self, given_up: &mut Vec<u64>) {
        let queued = self.published().saturating_sub(self.parked.len() as u64);
        let at_work: Vec<u64> = self.at_work().collect();
        given_up.retain(|number| *number >= queued || at_work.contains(number));
    }

    fn at_work(&self) -> impl Iterator<Item = u64> {
        (0..self.executors).filter_map(|index| self.ring.executor(index).call)
    }

    /// Whether the caller of this very call is on record.
    pub fn is_waiting(&self, slot: u16, number: u64) -> bool {
        let place = self.parked.get(usize::from(slot));
        place.is_some_and(|place| matches!(&*place.lock(), Some((found, _)) if *found == number))
    }

    /// Whether this process sleeps until a call of this worker is done, or a slot is free.
    fn is_awaited(&self, pid: ErlNifTerm) -> bool {
        let parked = |place: &Parked| matches!(&*place.lock(), Some((_, waiter)) if waiter.is(pid));
        self.parked.iter().any(parked) || self.queue.get().is_some_and(|queue| queue.has(pid))
    }

    fn woken(&self, env: *mut ErlNifEnv, Woken { slot, number }: Woken) {
        if let Some(waiter) = self.waits_no_more(slot, number) {
            // Who is gone needs no message.
            let _ = waiter.wake(env);
        }
    }

    /// Has the calling process told for its reaper. Before the worker's process is started: the caller lives.
    pub fn reaped_by_caller(worker: Ref<'_, Self>, env: Env<'_>) {
        let watch = self_pid(env).and_then(|pid| worker.watch(env.as_c_arg(), &pid));
        if let Some(watch) = watch {
            let _ = worker.reaper.set(watch);
        }
    }

    /// Notes an end. True: the owner's is among them, and nobody is waited for any more.
    fn is_alone_after(&self, mark: u8) -> bool {
        // AcqRel: whoever comes second sees what the first has done.
        let left = self.left.fetch_or(mark, Ordering::AcqRel) | mark;
        left & OWNER != 0 && left != OWNER
    }

    /// Nobody of ours saw its process end. It is about to, but calls that it had not begun are not given to others: it might begin them still.
    pub fn abandoned(&self) -> bool {
        self.left.load(Ordering::Acquire) == OWNER | REAPER && self.end.get().is_none()
    }

    /// What a call answers that a dead worker had begun.
    pub fn end<'a>(&self, env: Env<'a>) -> Term<'a> {
        match self.end.get().or_else(|| self.seen_end.get()) {
            Some(reason) => (atoms::error(), reason.load(env)).encode(env),
            None if self.abandoned() => {
                let because = [(atoms::because(), atoms::abandoned().encode(env))];
                reply::error_term(env, atoms::not_loaded(), &because)
            }
            None => reply::error_term(env, atoms::crashed(), &[]),
        }
    }

    /// Takes what the worker has rung for: callers whose calls are done are told.
    pub fn hear(&self, env: *mut ErlNifEnv) -> Result<usize> {
        let rings = match self.bell.with(Listener::silence).ok_or(Error::Closed)?? {
            Wait::Rung(rings) => rings,
            Wait::Deadline => 0,
            Wait::Closed => {
                self.bell_closed.store(true, Ordering::Relaxed);
                0
            }
        };
        let woken = self.ring.drain(rings, |woken| self.woken(env, woken))?;
        self.slot_freed(env);
        Ok(woken)
    }

    /// Now or not at all, and perhaps before what waits.
    fn send(&self, message: &ToWorker) -> Result<()> {
        let packet = control::encode(message).map_err(unsent)?;
        match packets::post(&self.control, &packet, &[]) {
            Sent::Yes => Ok(()),
            Sent::Busy => Err(Failure::Busy),
            Sent::Closed => Err(Error::Closed.into()),
        }
    }

    fn tell(worker: Ref<'_, Self>, env: Env<'_>, message: &ToWorker) -> Result<()> {
        worker.services.replies().tell(worker, env.as_c_arg(), message)
    }

    /// A library is gone, and what it was loaded with. Its copies of that are kept by a request that may be in the queue still.
    fn forget_load_info(&self, library: u32) {
        let Some(names) = self.load_infos.lock().remove(&library) else {
            return;
        };
        let position = self.ring.events_end();
        if self.ring.events_done_until(position) {
            self.forget(&names);
        } else {
            self.services.forget_later(position, names);
        }
    }

    /// Lets `usage` pass on the worker's ends (control, ring, bell in, bell out, output), and closes them here.
    pub fn hand_over<R>(&self, usage: impl FnOnce(&[RawFd; 5]) -> R) -> Result<R> {
        let ends = self.ends.lock().take().ok_or(Error::Closed)?;
        let ring = self.ring.fd().ok_or(Error::Closed)?.as_raw_fd();
        let answer = usage(&[
            ends.control.as_raw_fd(),
            ring,
            ends.bell_in.as_fd().as_raw_fd(),
            ends.bell_out.as_fd().as_raw_fd(),
            ends.output.as_raw_fd(),
        ]);
        self.ring.forget_fd();
        Ok(answer)
    }

    /// False: there is more to do, after others had their turn.
    fn close(worker: Ref<'_, Self>, env: Env<'_>, reason: Term<'_>) -> bool {
        let _ = worker.end.set(Saved::new(reason.as_c_arg()));
        let raw = env.as_c_arg();
        worker.fault();
        Services::close(worker);
        if !worker.services.monitors().close(raw) {
            flight::gives_way(env);
            return false;
        }
        Worker::shut(worker, raw);
        true
    }

    /// Once more does nothing.
    fn shut(worker: Ref<'_, Self>, env: *mut ErlNifEnv) {
        worker.ring.close(|woken| worker.woken(env, woken));
        worker.control.close(env, worker);
        worker.bell.close(env, worker);
        worker.output.close(env, worker);
        drop(worker.ends.lock().take());
        drop(worker.ringer.lock().take());
        worker.releases.close();
        if let Some(queue) = worker.queue.get() {
            queue.wake_all(env);
        }
    }

    /// Its process has ended, and the owner was told; `None`: nobody will see it end. An owner that has ended, or ends before it has closed
    /// this, does nothing about it. False as for `close`: monitors have no use any more.
    fn ended(worker: Ref<'_, Self>, env: Env<'_>, reason: Option<Term<'_>>) -> bool {
        let mark = match reason {
            Some(reason) => {
                let _ = worker.seen_end.set(Saved::new(reason.as_c_arg()));
                PROCESS
            }
            None => REAPER,
        };
        let alone = worker.is_alone_after(mark);
        if (alone || mark == PROCESS) && !worker.services.monitors().close(env.as_c_arg()) {
            flight::gives_way(env);
            return false;
        }
        if alone {
            Worker::abandon(worker, env.as_c_arg());
        }
        true
    }

    /// As `close`, by nobody: `env` may have no process, and there is no later. Most monitors have ended by now, unless the reaper was killed too.
    #[cold]
    fn abandon(worker: Ref<'_, Self>, env: *mut ErlNifEnv) {
        worker.fault();
        Services::close(worker);
        while !worker.services.monitors().close(env) {}
        Worker::shut(worker, env);
    }
}
