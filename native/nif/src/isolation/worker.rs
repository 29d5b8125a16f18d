//! `worker_*`: one worker process as the VM holds it. `README.md` has the life of a call.

use super::atom_quota::AtomsAccount;
use super::call::{go_on, scheduled};
use super::channel::Channel;
use super::failure::{Failure, Result, Unmakeable, done, unsent};
use super::flight;
use super::handle::{Handle, Kind, Object, Ref, Watch};
use super::names::Names;
use super::packets::{self, Received, Sent};
use super::remote::Releases;
use super::saved::{Saved, Waiter, self_pid};
use super::scratch;
use super::services::{Grants, Services};
use super::waiting::SlotQueue;
use super::worker_spec::Spec;
use crate::atoms;
use crate::reply::{self, map};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use parking_lot::Mutex;
use rustler::sys::{
    ErlNifEnv, ErlNifEvent, ErlNifPid, ErlNifSysInfo, ErlNifTerm, ErlNifTimeUnit, c_int, enif_monotonic_time,
    enif_system_info, enif_time_offset,
};
use rustler::types::atom::Atom;
use rustler::{Binary, Encoder, Env, Error as NifError, NifResult, Term};
use snakepit_shm_core::error::Error;
use snakepit_shm_core::mapping::Permit;
use snakepit_shm_core::ring::bell::{self, Listener, Ringer, Wait};
use snakepit_shm_core::ring::vm::{VmRing, Woken};
use snakepit_shm_core::ring::{Caller, ExecutorStatus, WorkerStatus, status};
use snakepit_wire::control::{
    self, Failed, FromWorker, Function, LIBRARIES, Load, Loaded, Process, RELEASES, Stage, System, ToWorker,
};
use snakepit_wire::{Limits, Name, NameKind};
use std::collections::HashMap;
use std::ffi::CStr;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

/// Mappings that this VM may have, regions included. The kernel allows 65,530 unless told otherwise.
const MAPPINGS: u64 = 32_768;
/// Output taken at once.
const OUTPUT: usize = 64 << 10;

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
                scratch::give_back_unheard(&unheard, source);
            }
        });
        let (control, their_control) = packets::pair()?;
        let (ringer, bell_in) = bell::pair()?;
        let (bell_out, listener) = bell::pair()?;
        let (output, their_output) =
            nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(|errno| Error::os("pipe2", errno))?;
        packets::do_not_block(&output)?;
        let names = Names::new(spec.names);
        tell_time(&ring);
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

/// What a library in the VM is told of it.
fn system() -> System {
    let mut info = MaybeUninit::<ErlNifSysInfo>::zeroed();
    // SAFETY: plain data, filled in up to the size that is given; the texts are the VM's own, for ever.
    let (info, erts, release) = unsafe {
        enif_system_info(info.as_mut_ptr(), size_of::<ErlNifSysInfo>());
        let info = info.assume_init();
        let text = |text| CStr::from_ptr(text).to_string_lossy().into_owned();
        let (erts, release) = (text(info.erts_version), text(info.otp_release));
        (info, erts, release)
    };
    System {
        driver: (info.driver_major_version, info.driver_minor_version),
        nif: (info.nif_major_version, info.nif_minor_version),
        erts,
        release,
        threads: info.thread_support,
        smp: info.smp_support,
        async_threads: info.async_threads,
        schedulers: info.scheduler_threads,
        dirty_schedulers: info.dirty_scheduler_support,
    }
}

/// How often the clocks are read, for the reading that took least.
const READINGS: usize = 4;

/// Writes into the ring what lies between the kernel's monotonic clock and the VM's time, which changes when the VM corrects it.
fn tell_time(ring: &VmRing) {
    let kernel = || {
        let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC);
        now.map_or(0, |now| now.tv_sec() * 1_000_000_000 + now.tv_nsec())
    };
    let reading = |_| {
        let before = kernel();
        // SAFETY: takes a number only.
        let vm = unsafe { enif_monotonic_time(ErlNifTimeUnit::ERL_NIF_NSEC) };
        let after = kernel();
        (after - before, vm - (before + (after - before) / 2))
    };
    if let Some((_, difference)) = (0..READINGS).map(reading).min_by_key(|(took, _)| *took) {
        // SAFETY: takes a number only.
        ring.set_clock(difference, unsafe { enif_time_offset(ErlNifTimeUnit::ERL_NIF_NSEC) });
    }
}

#[rustler::nif]
fn worker_clock<'a>(worker: Term<'a>) -> NifResult<Atom> {
    tell_time(Ref::<Worker>::of(worker)?.ring());
    Ok(atoms::ok())
}

#[rustler::nif]
fn worker_new<'a>(env: Env<'a>, spec: Term<'a>) -> NifResult<Term<'a>> {
    let grants = Spec::grants(spec)?;
    let spec = Spec::read(spec)?;
    Ok(match Worker::new(&spec, grants) {
        Ok(worker) => {
            let worker = Handle::new(worker);
            let pid = self_pid(env);
            let owner = pid.and_then(|pid| worker.borrow().watch(env.as_c_arg(), &pid));
            if let Some(owner) = owner {
                let _ = worker.owner.set(owner);
            }
            worker.releases.listen(pid);
            (atoms::ok(), worker.term(env)).encode(env)
        }
        Err(failure) => failure.term(env),
    })
}

#[rustler::nif]
fn worker_select<'a>(env: Env<'a>, term: Term<'a>, channel: Atom) -> NifResult<Term<'a>> {
    let worker = Ref::<Worker>::of(term)?;
    let message = (atoms::select(), term, channel, atoms::ready_input()).encode(env);
    let selected = if channel == atoms::control() {
        worker.control.select(env, worker, message)
    } else if channel == atoms::output() {
        worker.output.select(env, worker, message)
    } else if channel != atoms::bell() {
        return Err(NifError::BadArg);
    } else if worker.bell_closed.load(Ordering::Relaxed) {
        Ok(())
    } else {
        worker.bell.select(env, worker, message)
    };
    Ok(done(env, selected.map_err(Failure::from)))
}

#[rustler::nif]
fn worker_receive<'a>(env: Env<'a>, worker: Term<'a>) -> NifResult<Term<'a>> {
    let worker = Ref::<Worker>::of(worker)?;
    let packet = match packets::receive(&worker.control) {
        Received::Packet(packet) => packet,
        Received::Again => return Ok(atoms::again().encode(env)),
        Received::Closed => return Ok(atoms::closed().encode(env)),
    };
    Ok(match control::decode::<FromWorker>(&packet) {
        Ok(message) => {
            let term = message_term(env, &message);
            match message {
                // A second one changes nothing here. Whether it was asked for, the Worker looks before it has the table used.
                FromWorker::Loaded(loaded) => {
                    let mut functions = worker.functions.lock();
                    if functions.len() < LIBRARIES {
                        functions.entry(loaded.library).or_insert(loaded.functions.into());
                    }
                }
                FromWorker::Unloaded { library } => {
                    worker.functions.lock().remove(&library);
                    worker.forget_load_info(library);
                }
                FromWorker::NotLoaded { library, .. } => worker.forget_load_info(library),
                _ => {}
            }
            (atoms::ok(), term).encode(env)
        }
        Err(error) => {
            worker.fault();
            Failure::protocol(error).term(env)
        }
    })
}

fn message_term<'a>(env: Env<'a>, message: &FromWorker) -> Term<'a> {
    use crate::atoms as a;
    match message {
        FromWorker::Hello { pid, .. } => (a::hello(), pid).encode(env),
        FromWorker::Opened(loaded) => (a::opened(), loaded_term(env, loaded)).encode(env),
        FromWorker::Loaded(loaded) => (a::loaded(), loaded_term(env, loaded)).encode(env),
        FromWorker::Failed(failed) => (a::failed(), failed_term(env, failed)).encode(env),
        FromWorker::NotLoaded { library, failed } => (a::not_loaded(), library, failed_term(env, failed)).encode(env),
        FromWorker::Unloaded { library } => (a::unloaded(), library).encode(env),
    }
}

fn failed_term<'a>(env: Env<'a>, failed: &Failed) -> Term<'a> {
    use crate::atoms as a;
    let details = [
        (a::stage(), stage(failed.stage).encode(env)),
        (a::code(), failed.code.encode(env)),
        (a::message(), failed.message.encode(env)),
    ];
    map(env, &details)
}

fn loaded_term<'a>(env: Env<'a>, loaded: &Loaded) -> Term<'a> {
    use crate::atoms as a;
    let functions: Vec<_> = loaded
        .functions
        .iter()
        .map(|function| (function.name.as_str(), function.arity, function.flags))
        .collect();
    let pairs = [
        (a::library(), loaded.library.encode(env)),
        (a::module(), loaded.module.encode(env)),
        (a::functions(), functions.encode(env)),
        (a::nif_version(), (loaded.nif_major, loaded.nif_minor).encode(env)),
        (a::missing(), loaded.missing.encode(env)),
    ];
    map(env, &pairs)
}

fn stage(stage: Stage) -> Atom {
    use crate::atoms as a;
    match stage {
        Stage::NotFound => a::not_found(),
        Stage::Open => a::open(),
        Stage::NotALibrary => a::not_a_library(),
        Stage::WrongArchitecture => a::wrong_architecture(),
        Stage::UnresolvedSymbol => a::unresolved_symbol(),
        Stage::NoInit => a::no_init(),
        Stage::Init => a::init(),
        Stage::NifVersion => a::nif_version(),
        Stage::LoadInfo => a::load_info(),
        Stage::LoadCallback => a::load_callback(),
        Stage::UpgradeCallback => a::upgrade_callback(),
        Stage::Unwanted => a::unwanted(),
        Stage::Worker => a::worker(),
    }
}

#[rustler::nif]
fn worker_load<'a>(
    env: Env<'a>,
    worker: Term<'a>,
    (library, replaces, asks): (u32, Option<u32>, bool),
    path: Binary<'a>,
    load_info: Term<'a>,
) -> NifResult<Term<'a>> {
    let worker = Ref::<Worker>::of(worker)?;
    let mut kept = Vec::new();
    let sent = scratch::encode_one(env, &worker, load_info, &mut kept, control::LOAD_INFO)
        .map_err(|failure| match failure {
            Failure::UnsupportedTerm { message } => Failure::Unsupported { message },
            other => other,
        })
        .and_then(|load_info| {
            // Relaxed: its owner alone says what to load.
            let process = (!worker.begun.load(Ordering::Relaxed)).then(|| Process {
                executors: worker.executors,
                spin_us: worker.spin_us,
                limits: *worker.limits(),
                system: system(),
            });
            let load = Load {
                library,
                replaces,
                asks,
                process,
                path: path.as_slice().to_vec(),
                load_info,
            };
            Worker::tell(worker, env, &ToWorker::Load(load))?;
            worker.begun.store(true, Ordering::Relaxed);
            Ok(())
        });
    if sent.is_err() {
        worker.forget(&kept);
    } else if !kept.is_empty() {
        worker.load_infos.lock().insert(library, kept);
    }
    Ok(done(env, sent))
}

#[rustler::nif]
fn worker_proceed<'a>(env: Env<'a>, worker: Term<'a>, library: u32) -> NifResult<Term<'a>> {
    let worker = Ref::<Worker>::of(worker)?;
    Ok(done(env, Worker::tell(worker, env, &ToWorker::Proceed { library })))
}

#[rustler::nif]
fn worker_unload<'a>(env: Env<'a>, worker: Term<'a>, library: u32) -> NifResult<Term<'a>> {
    let worker = Ref::<Worker>::of(worker)?;
    Ok(done(env, Worker::tell(worker, env, &ToWorker::Unload { library })))
}

#[rustler::nif]
fn worker_output<'a>(env: Env<'a>, worker: Term<'a>) -> NifResult<Term<'a>> {
    let worker = Ref::<Worker>::of(worker)?;
    let mut bytes = vec![0; OUTPUT];
    let got = worker.output.with(|fd| nix::unistd::read(fd, &mut bytes));
    Ok(match got {
        Some(Ok(length @ 1..)) => {
            let bytes = reply::bytes(env, bytes.get(..length).unwrap_or_default());
            (atoms::ok(), bytes).encode(env)
        }
        Some(Err(Errno::EAGAIN | Errno::EINTR)) => atoms::again().encode(env),
        None | Some(Ok(0) | Err(_)) => atoms::closed().encode(env),
    })
}

#[rustler::nif]
fn worker_close<'a>(env: Env<'a>, worker: Term<'a>, reason: Term<'a>) -> NifResult<Term<'a>> {
    close(env, worker, reason)
}

fn close<'a>(env: Env<'a>, worker: Term<'a>, reason: Term<'a>) -> NifResult<Term<'a>> {
    Ok(if Worker::close(Ref::of(worker)?, env, reason) {
        atoms::ok().encode(env)
    } else {
        go_on(env, c"worker_close", close_again, &[worker, reason])
    })
}

unsafe extern "C" fn close_again(env: *mut ErlNifEnv, _argc: c_int, argv: *const ErlNifTerm) -> ErlNifTerm {
    // SAFETY: called by the VM with worker and reason.
    unsafe {
        scheduled(env, argv, |env, [worker, reason]: [Term<'_>; 2]| {
            close(env, worker, reason)
        })
    }
}

#[rustler::nif]
fn worker_ended<'a>(env: Env<'a>, worker: Term<'a>, reason: Term<'a>) -> NifResult<Term<'a>> {
    ended(env, worker, reason)
}

fn ended<'a>(env: Env<'a>, worker: Term<'a>, reason: Term<'a>) -> NifResult<Term<'a>> {
    let known = (!reason.is_atom()).then_some(reason);
    Ok(if Worker::ended(Ref::of(worker)?, env, known) {
        atoms::ok().encode(env)
    } else {
        go_on(env, c"worker_ended", ended_again, &[worker, reason])
    })
}

unsafe extern "C" fn ended_again(env: *mut ErlNifEnv, _argc: c_int, argv: *const ErlNifTerm) -> ErlNifTerm {
    // SAFETY: called by the VM with worker and reason.
    unsafe {
        scheduled(env, argv, |env, [worker, reason]: [Term<'_>; 2]| {
            ended(env, worker, reason)
        })
    }
}

#[rustler::nif]
fn worker_stop<'a>(env: Env<'a>, worker: Term<'a>) -> NifResult<Term<'a>> {
    let worker = Ref::<Worker>::of(worker)?;
    Ok(done(env, Worker::tell(worker, env, &ToWorker::Stop)))
}

#[rustler::nif]
fn worker_awaited<'a>(worker: Term<'a>, pid: Term<'a>) -> NifResult<bool> {
    Ok(Ref::<Worker>::of(worker)?.is_awaited(pid.as_c_arg()))
}

#[rustler::nif]
fn worker_flush<'a>(env: Env<'a>, worker: Term<'a>) -> NifResult<Term<'a>> {
    let worker = Ref::<Worker>::of(worker)?;
    let taken = worker.releases.take(RELEASES);
    if !taken.is_empty() {
        let message = ToWorker::Release { ids: taken };
        if let Err(failure) = worker.send(&message) {
            if let (ToWorker::Release { ids }, Failure::Busy) = (message, &failure)
                && !worker.releases.put_back(&ids)
            {
                worker.fault();
                return Ok(Failure::protocol("it does not read which objects are given back").term(env));
            }
            return Ok(failure.term(env));
        }
    }
    Ok((atoms::ok(), worker.releases.pending()).encode(env))
}

#[rustler::nif]
fn worker_status<'a>(env: Env<'a>, worker: Term<'a>) -> NifResult<Term<'a>> {
    use crate::atoms as a;
    let worker = Ref::<Worker>::of(worker)?;
    let ring = worker.ring();
    let executors: Vec<ExecutorStatus> = (0..worker.executors).map(|index| ring.executor(index)).collect();
    let calls: u64 = executors
        .iter()
        .fold(0, |sum: u64, executor| sum.wrapping_add(executor.calls));
    let in_progress: Vec<Option<u64>> = executors.iter().map(|executor| executor.call).collect();
    let status = ring.status().map(|status| status_term(env, &status));
    let lacked = ring.lacked().map(|at| monotonic().saturating_sub(at) / 1_000_000);
    let pairs = [
        (a::in_flight(), ring.in_flight().encode(env)),
        (a::slots(), worker.parked.len().encode(env)),
        (a::calls(), calls.encode(env)),
        (a::executors(), in_progress.encode(env)),
        (a::closed(), ring.closed().encode(env)),
        (a::faulty(), worker.faulty.load(Ordering::Relaxed).encode(env)),
        (a::bell_closed(), worker.bell_closed.load(Ordering::Relaxed).encode(env)),
        (a::orphans(), worker.orphans().encode(env)),
        (a::releases(), worker.releases.pending().encode(env)),
        (a::status(), status.encode(env)),
        (a::lacked_ms(), lacked.encode(env)),
    ];
    Ok(map(env, &pairs))
}

fn monotonic() -> u64 {
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC)
        .map_or(0, |now| now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64)
}

fn status_term<'a>(env: Env<'a>, status: &WorkerStatus) -> Term<'a> {
    use crate::atoms as a;
    let age = (status.beats > 0).then(|| monotonic().saturating_sub(status.beat_at) / 1_000_000);
    let pairs = [
        (a::beats(), status.beats.encode(env)),
        (a::beat_age_ms(), age.encode(env)),
        (a::resident(), status.resident.encode(env)),
        (a::objects(), status.objects.encode(env)),
    ];
    map(env, &pairs)
}
