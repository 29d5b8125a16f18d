//! The worker's side of a ring.
//!
//! Each executor thread loops: [`next`](WorkerRing::next), execute, [`answer`](WorkerRing::answer). The VM is trusted here.

use super::atomic::{AtomicBool, AtomicU64, Mutex, Ordering, OwnLine, fence, relax};
use super::bell::{self, Listener, Ringer, Wait};
use super::layout::{
    Layout, PLACE_SLOT, PLACE_SPILL, PLACE_TINY, Plan, TINY_ANSWER, TINY_REQUEST, cell, executor, header, slot, state,
};
use super::memory::Memory;
use super::ranges::{Range, Ranges};
use super::{Caller, Error, Result, WorkerStatus, status};
use crate::copy;
use std::time::{Duration, Instant};

/// The worker's side of its ring, shared by all threads.
#[derive(Debug)]
pub struct WorkerRing {
    memory: std::sync::Arc<Memory>,
    layout: Layout,
    into: Listener,
    out: Ringer,
    stopped: AtomicBool,
    /// Entries ever put into the completion queue.
    completions: OwnLine<AtomicU64>,
    /// Who watches the submission queue; looked at only when there are several executors.
    watch: Mutex<Watch>,
    /// Executors wake each other, and `stop` wakes them all.
    siblings: (Ringer, Listener),
    results: Mutex<Results>,
    /// Answers in the result area that the VM may still read. Relaxed: a hint that spares the lock.
    held: AtomicU64,
    events: Mutex<u64>,
    /// Where the last record in the event queue ends; 0 when the VM is known to have taken it. Beside `events` so that an
    /// answer looks at memory of this process only. Relaxed: a record and the answer that it comes before are of one thread, or
    /// of two that have met meanwhile.
    queued: OwnLine<AtomicU64>,
}

#[derive(Debug, Default)]
struct Watch {
    spinners: u32,
    sleepers: u32,
}

#[derive(Debug)]
struct Results {
    ranges: Ranges,
    /// By slot: the call whose answer lies there, and where.
    held: Vec<Option<(u64, Range)>>,
}

/// A call to execute. Answer it.
#[derive(Debug)]
#[must_use = "a call that is dropped is never answered"]
pub struct Job {
    pub number: u64,
    pub slot: u16,
    pub function: u32,
    pub arity: u16,
    pub caller: Caller,
    arguments: Arguments,
}

#[derive(Debug)]
enum Arguments {
    Tiny { bytes: [u8; TINY_REQUEST], length: u8 },
    Shared { offset: usize, length: usize },
}

#[derive(Debug)]
pub enum Next {
    Job(Job),
    Deadline,
    /// The VM is gone, or [`WorkerRing::stop`] was called.
    Closed,
}

/// An answer being written: the first bytes stay private, more go into the slot, still more into the result area.
///
/// The slot's memory holds the arguments too: they must have been read before the first append.
#[derive(Debug)]
pub struct Output<'a> {
    ring: &'a WorkerRing,
    job: Option<Job>,
    length: usize,
    tiny: [u8; TINY_ANSWER],
    range: Option<Range>,
}

/// An event did not fit: the VM has not taken the earlier ones yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EventQueueFull;

/// Both ends of a modelled ring's memory.
#[cfg(loom)]
#[derive(Debug)]
pub struct Handover {
    pub(crate) memory: std::sync::Arc<Memory>,
    pub(crate) layout: Layout,
}

/// How long an answer waits for room that other answers still take, and how often it looks.
const PATIENCE: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_micros(200);

/// Looks between two looks at the clock.
const LOOKS: u32 = if cfg!(loom) { 1 } else { 32 };

impl Job {
    /// The arguments as the VM has written them. Valid until the job is answered.
    #[inline]
    pub fn arguments<'a>(&'a self, ring: &'a WorkerRing) -> &'a [u8] {
        match &self.arguments {
            Arguments::Tiny { bytes, length } => &bytes[..usize::from(*length)],
            Arguments::Shared { offset, length } => {
                let start = ring.memory.at(*offset, *length);
                // SAFETY: inside the mapping. The VM, trusted here, wrote these bytes before it published the call and
                // leaves them alone until the answer; we write the slot only through the `Output`, which owns the job.
                unsafe { std::slice::from_raw_parts(start, *length) }
            }
        }
    }
}

impl WorkerRing {
    /// Checks and maps what the VM has handed over: seals, size, header. `into` and `out` are the doorbells.
    #[cfg(not(loom))]
    pub fn attach(memory: std::os::fd::BorrowedFd<'_>, into: Listener, out: Ringer) -> Result<Self> {
        use nix::errno::Errno;
        use std::os::fd::AsRawFd;

        const NEEDED: i32 = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;
        // SAFETY: F_GET_SEALS takes no argument and touches no memory.
        let seals = Errno::result(unsafe { libc::fcntl(memory.as_raw_fd(), libc::F_GET_SEALS) })
            .map_err(|errno| Error::os("fcntl", errno))?;
        if seals & NEEDED != NEEDED {
            return Err(Error::BadMemory {
                field: "its set of seals",
                found: seals as u64,
            });
        }
        let size = nix::sys::stat::fstat(memory)
            .map_err(|errno| Error::os("fstat", errno))?
            .st_size;
        let size = usize::try_from(size).unwrap_or(0);
        if size < header::END {
            return Err(Error::BadMemory {
                field: "its size",
                found: size as u64,
            });
        }
        let map = Memory::map(memory, size, None)?;
        let layout = read_header(&map, size)?;
        map.populate(layout.payloads);
        Self::new(std::sync::Arc::new(map), layout, into, out)
    }

    #[cfg(loom)]
    pub fn model(handover: Handover, into: Listener, out: Ringer) -> Result<Self> {
        Self::new(handover.memory, handover.layout, into, out)
    }

    fn new(memory: std::sync::Arc<Memory>, layout: Layout, into: Listener, out: Ringer) -> Result<Self> {
        #[cfg(not(loom))]
        let siblings = bell::pair()?;
        #[cfg(loom)]
        let siblings = (into.ringer(), bell::pair()?.1);
        Ok(WorkerRing {
            memory,
            layout,
            into,
            out,
            stopped: AtomicBool::new(false),
            completions: OwnLine(AtomicU64::new(0)),
            watch: Mutex::new(Watch::default()),
            siblings,
            results: Mutex::new(Results {
                ranges: Ranges::new(layout.plan.spill_bytes),
                held: vec![None; layout.plan.slots as usize],
            }),
            held: AtomicU64::new(0),
            events: Mutex::new(0),
            queued: OwnLine(AtomicU64::new(0)),
        })
    }

    pub fn plan(&self) -> Plan {
        self.layout.plan
    }

    /// The next call for an executor (0 to `executors - 1`, one thread each): looks for `spin`, then sleeps on the bell.
    #[inline]
    pub fn next(&self, executor: u16, spin: Duration, deadline: Option<Instant>) -> Result<Next> {
        let several = self.layout.plan.executors > 1;
        if several {
            self.watch_on(0);
        }
        let result = self.watch_queue(executor, spin, deadline);
        if several {
            self.watch_off();
        }
        result
    }

    fn watch_queue(&self, executor: u16, spin: Duration, deadline: Option<Instant>) -> Result<Next> {
        let mut began = None;
        loop {
            for _ in 0..LOOKS {
                if let Some(job) = self.take(executor) {
                    return Ok(Next::Job(job));
                }
                relax();
            }
            // Relaxed: only a flag; `stop` wakes who sleeps.
            if self.stopped.load(Ordering::Relaxed) {
                // Hand the ring of `stop` on: one listener takes all that a bell has.
                let _ = self.siblings.0.ring();
                return Ok(Next::Closed);
            }
            let now = Instant::now();
            if now.duration_since(*began.get_or_insert(now)) < spin {
                continue;
            }
            if deadline.is_some_and(|deadline| now >= deadline) {
                return Ok(Next::Deadline);
            }
            if self.sleep(deadline)? == Wait::Closed {
                return Ok(Next::Closed);
            }
            began = None;
        }
    }

    /// Says that nobody watches, makes sure that there is nothing to do, and waits for the bell.
    fn sleep(&self, deadline: Option<Instant>) -> Result<Wait> {
        let several = self.layout.plan.executors > 1;
        let flag = self.memory.word(header::NEED_WAKEUP);
        if several {
            let mut watch = self.watch.lock();
            watch.spinners -= 1;
            watch.sleepers += 1;
            if watch.spinners == 0 {
                flag.store(1, Ordering::Relaxed);
            }
        } else {
            flag.store(1, Ordering::Relaxed);
        }
        // SeqCst: pairs with the fence in the VM's `wake` (it publishes, then reads the flag). One of both sees the other.
        fence(Ordering::SeqCst);
        let result = if self.waiting() || self.stopped.load(Ordering::Relaxed) {
            Ok(Wait::Rung(0))
        } else {
            self.into.wait_also(Some(&self.siblings.1), deadline)
        };
        if several {
            self.watch_on(1);
        } else {
            flag.store(0, Ordering::Relaxed);
        }
        result
    }

    fn watch_on(&self, slept: u32) {
        let mut watch = self.watch.lock();
        watch.sleepers -= slept;
        watch.spinners += 1;
        self.memory.word(header::NEED_WAKEUP).store(0, Ordering::Relaxed);
    }

    /// One watcher less. If it was the last and others sleep, the VM must ring from now on, and what it has published
    /// without ringing is for one of those.
    fn watch_off(&self) {
        let mut watch = self.watch.lock();
        watch.spinners -= 1;
        if watch.spinners > 0 || watch.sleepers == 0 {
            return;
        }
        self.memory.word(header::NEED_WAKEUP).store(1, Ordering::Relaxed);
        drop(watch);
        // SeqCst: as in `sleep`.
        fence(Ordering::SeqCst);
        if self.waiting() {
            // An error of a pipe of our own: the call waits for the next executor that looks.
            let _ = self.siblings.0.ring();
        }
    }

    /// Whether there is a call that nobody has taken.
    fn waiting(&self) -> bool {
        let head = self.memory.word(header::HEAD).load(Ordering::Acquire);
        let line = self.layout.submission(head);
        self.memory.word(line + cell::READY).load(Ordering::Acquire) == head + 1
    }

    #[inline]
    fn take(&self, executor: u16) -> Option<Job> {
        let head_word = self.memory.word(header::HEAD);
        // Acquire: pairs with the Release of the executor that took the call before.
        let head = head_word.load(Ordering::Acquire);
        let line = self.layout.submission(head);
        let word = |offset: usize| self.memory.word(line + offset);
        // Acquire: pairs with the VM's Release in `publish`.
        if word(cell::READY).load(Ordering::Acquire) != head + 1 {
            return None;
        }
        // The VM writes this cell again only after a call of this or a later position has been answered, hence after the
        // head has passed us: when the compare-and-swap succeeds, what was read before it is whole.
        let what = word(cell::WHAT).load(Ordering::Relaxed);
        let caller = word(cell::CALLER).load(Ordering::Relaxed);
        let payload = word(cell::PAYLOAD).load(Ordering::Relaxed);
        let mut tiny = [0; TINY_REQUEST];
        for (index, bytes) in tiny.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            *bytes = word(cell::TINY + index * 8).load(Ordering::Relaxed).to_ne_bytes();
        }
        if self.layout.plan.executors == 1 {
            // Release: the reads above are behind it for the VM, which gets here by way of our answer.
            head_word.store(head + 1, Ordering::Release);
        } else {
            // AcqRel: Release as above, Acquire to be behind the earlier executors.
            head_word
                .compare_exchange(head, head + 1, Ordering::AcqRel, Ordering::Relaxed)
                .ok()?;
        }
        let line = self.layout.executor(executor);
        // Relaxed: shown to whoever asks, nothing depends on it.
        self.memory
            .word(line + executor::CALL)
            .store(head + 1, Ordering::Relaxed);
        let job = Job {
            number: head,
            slot: (what >> 48) as u16 & (self.layout.plan.slots - 1) as u16,
            function: what as u32,
            arity: (what >> 32) as u16,
            caller: Caller {
                index: caller as u32,
                generation: (caller >> 32) as u32,
            },
            arguments: self.locate(what, payload, tiny),
        };
        if self.held.load(Ordering::Relaxed) > 0 {
            self.forget(job.slot);
        }
        Some(job)
    }

    #[inline]
    fn locate(&self, what: u64, payload: u64, tiny: [u8; TINY_REQUEST]) -> Arguments {
        let length = payload as u32 as usize;
        match (payload >> 32) as u16 {
            PLACE_TINY => Arguments::Tiny {
                bytes: tiny,
                length: length.min(TINY_REQUEST) as u8,
            },
            PLACE_SLOT => Arguments::Shared {
                offset: self
                    .layout
                    .payload((what >> 48) as u16 & (self.layout.plan.slots - 1) as u16),
                length: length.min(self.layout.plan.slot_bytes as usize),
            },
            _ => {
                let [a, b, c, d, ..] = tiny;
                let offset = (u32::from_ne_bytes([a, b, c, d])).min(self.layout.plan.spill_bytes) as usize;
                Arguments::Shared {
                    offset: self.layout.arguments + offset,
                    length: length.min(self.layout.plan.spill_bytes as usize - offset),
                }
            }
        }
    }

    /// The slot carries a new call: the VM needs the answer of the old one no longer.
    #[inline(never)]
    fn forget(&self, slot: u16) {
        let mut results = self.results.lock();
        if let Some((_, range)) = results.held[usize::from(slot)].take() {
            results.ranges.give_back(range);
            self.held.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// A range of the result area for an answer that needs `bytes` now and may grow. If answers that the VM has not read yet are
    /// in its way, they are waited for, a while: a caller that never takes its answer must not stop the worker.
    fn reserve(&self, bytes: usize) -> std::result::Result<Range, u32> {
        let started = Instant::now();
        loop {
            let full = {
                let mut results = self.results.lock();
                self.collect(&mut results);
                let doubled = results.ranges.take(bytes.saturating_mul(2));
                match doubled.or_else(|_| results.ranges.take(bytes)) {
                    Ok(range) => return Ok(range),
                    Err(available) => available,
                }
            };
            let in_the_way = self.held.load(Ordering::Relaxed) > 0;
            if !in_the_way || bytes > self.layout.plan.spill_bytes as usize || started.elapsed() >= PATIENCE {
                return Err(full);
            }
            std::thread::sleep(PAUSE);
        }
    }

    fn collect(&self, results: &mut Results) {
        if self.held.load(Ordering::Relaxed) == 0 {
            return;
        }
        for index in 0..results.held.len() {
            let Some((number, range)) = results.held[index] else {
                continue;
            };
            // Acquire: pairs with the VM's Release: it has read what we may overwrite now.
            let released = self.memory.word(self.layout.slot(index as u16) + slot::RELEASED);
            if released.load(Ordering::Acquire) == number + 1 {
                results.held[index] = None;
                results.ranges.give_back(range);
                self.held.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }

    /// Starts an answer that is not known as one slice of bytes.
    #[inline]
    pub fn output(&self, job: Job) -> Output<'_> {
        Output {
            ring: self,
            job: Some(job),
            length: 0,
            tiny: [0; TINY_ANSWER],
            range: None,
        }
    }

    /// Answers with bytes that are at hand. `TooLarge` answers nothing and gives the job back.
    #[inline]
    #[expect(
        clippy::result_large_err,
        reason = "the job comes back whole; it happens once in a blue moon"
    )]
    pub fn answer(
        &self,
        executor: u16,
        job: Job,
        status: u16,
        payload: &[u8],
    ) -> std::result::Result<(), (Job, Error)> {
        if payload.len() <= TINY_ANSWER {
            let mut tiny = [0; TINY_ANSWER];
            tiny[..payload.len()].copy_from_slice(payload);
            self.publish(executor, &job, status, PLACE_TINY, payload.len(), &tiny);
            return Ok(());
        }
        let mut output = self.output(job);
        match output.append(payload) {
            Ok(()) => {
                output.finish(executor, status);
                Ok(())
            }
            Err(error) => match output.cancel() {
                Some(job) => Err((job, error)),
                None => Ok(()),
            },
        }
    }

    #[inline]
    fn publish(&self, executor: u16, job: &Job, status: u16, place: u16, length: usize, tiny: &[u8; TINY_ANSWER]) {
        let line = self.layout.slot(job.slot);
        let word = |offset: usize| self.memory.word(line + offset);
        let status = status | self.queued();
        let payload = length as u64 | u64::from(status) << 32 | u64::from(place) << 48;
        // Relaxed: the Release below publishes all of the line.
        word(slot::PAYLOAD).store(payload, Ordering::Relaxed);
        let words = if place == PLACE_TINY { length.div_ceil(8) } else { 1 };
        for (index, bytes) in tiny.as_chunks::<8>().0.iter().enumerate().take(words) {
            word(slot::TINY + index * 8).store(u64::from_ne_bytes(*bytes), Ordering::Relaxed);
        }
        // Release: pairs with the VM's Acquire: with the number it sees line and payload.
        word(slot::ANSWERED).store(job.number + 1, Ordering::Release);
        let own = self.layout.executor(executor);
        let calls = self.memory.word(own + executor::CALLS);
        // Relaxed, and one writer: shown to whoever asks.
        calls.store(calls.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        self.memory.word(own + executor::CALL).store(0, Ordering::Relaxed);
        // SeqCst: pairs with the fence in the VM's `park` (it says that it sleeps, then looks at the answer).
        fence(Ordering::SeqCst);
        if word(slot::WAIT).load(Ordering::Relaxed) == job.number + 1 {
            self.report(job);
        }
    }

    /// `status::QUEUED`, if the event queue has records that the VM has not done with.
    #[inline]
    fn queued(&self) -> u16 {
        match self.queued.load(Ordering::Relaxed) {
            0 => 0,
            end => self.still_queued(end),
        }
    }

    #[cold]
    fn still_queued(&self, end: u64) -> u16 {
        // Acquire: pairs with the VM's Release: what it did with the records is done.
        if self.memory.word(header::EVENT_HEAD).load(Ordering::Acquire) < end {
            return status::QUEUED;
        }
        // It fails when there is a new record, which a later answer sees.
        let _ = self
            .queued
            .compare_exchange(end, 0, Ordering::Relaxed, Ordering::Relaxed);
        0
    }

    /// Puts the slot into the completion queue and rings.
    #[inline(never)]
    fn report(&self, job: &Job) {
        // AcqRel: an entry further on is behind the answers of all entries before it.
        let position = self.completions.fetch_add(1, Ordering::AcqRel);
        let entry = (position + 1) << 16 | u64::from(job.slot);
        // Release: pairs with the VM's Acquire.
        self.memory
            .word(self.layout.completion(position))
            .store(entry, Ordering::Release);
        // It fails only when the descriptor is no pipe: then the caller waits until its deadline.
        let _ = self.out.ring();
    }

    /// What the VM has told of its time last: nanoseconds from the kernel's monotonic clock to the VM's, and from there to its
    /// system time.
    pub fn clock(&self) -> (i64, i64) {
        // Relaxed: two figures, each of which is true by itself.
        let word = |offset| self.memory.word(offset).load(Ordering::Relaxed).cast_signed();
        (word(header::CLOCK), word(header::CLOCK_OFFSET))
    }

    /// A heartbeat with what the worker has to say. One thread at a time: a second one waits.
    pub fn beat(&self, status: WorkerStatus) {
        let guard = self.events.lock();
        let word = |offset: usize| self.memory.word(self.layout.status + offset);
        let sequence = word(state::SEQUENCE).load(Ordering::Relaxed);
        // Relaxed, then a Release fence: pairs with the reader's Acquire fence: whoever sees a new word sees the odd number.
        word(state::SEQUENCE).store(sequence + 1, Ordering::Relaxed);
        fence(Ordering::Release);
        for (index, value) in status.to_words().into_iter().enumerate() {
            word(state::WORDS + index * 8).store(value, Ordering::Relaxed);
        }
        // Release: pairs with the reader's first load.
        word(state::SEQUENCE).store(sequence + 2, Ordering::Release);
        drop(guard);
    }

    /// Memory was asked for and not there: when, on CLOCK_MONOTONIC in nanoseconds. Any thread, at any place.
    pub fn lacked(&self, at: u64) {
        // Relaxed: one word, which is read when this process has ended.
        self.memory
            .word(self.layout.status + state::LACKED)
            .store(at, Ordering::Relaxed);
    }

    /// Appends an event and rings if the VM has taken all earlier ones.
    pub fn event(&self, kind: u32, payload: &[u8]) -> std::result::Result<(), EventQueueFull> {
        let capacity = u64::from(self.layout.plan.event_bytes);
        let bytes = 8 + (payload.len() as u64).next_multiple_of(8);
        let mut tail = self.events.lock();
        let head_word = self.memory.word(header::EVENT_HEAD);
        // Acquire: pairs with the VM's Release: it has read what we overwrite.
        let head = head_word.load(Ordering::Acquire);
        if bytes > capacity - (*tail - head).min(capacity) {
            return Err(EventQueueFull);
        }
        let mask = capacity as usize - 1;
        let store = |position: u64, value: u64| {
            let offset = self.layout.events + (position as usize & mask);
            // Relaxed: published by the cursor.
            self.memory.word(offset).store(value, Ordering::Relaxed);
        };
        store(*tail, payload.len() as u64 | u64::from(kind) << 32);
        for (index, chunk) in payload.chunks(8).enumerate() {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            store(*tail + 8 + index as u64 * 8, u64::from_ne_bytes(word));
        }
        let begin = *tail;
        *tail += bytes;
        self.queued.store(*tail, Ordering::Relaxed);
        // Release: pairs with the VM's Acquire: the record is visible with the cursor.
        self.memory.word(header::EVENT_TAIL).store(*tail, Ordering::Release);
        // SeqCst: pairs with the fence in the VM's `events` (it moves its cursor, then looks at ours).
        fence(Ordering::SeqCst);
        if head_word.load(Ordering::Relaxed) == begin {
            let _ = self.out.ring();
        }
        Ok(())
    }

    /// The longest record that the event queue takes at all.
    pub fn longest_event(&self) -> usize {
        self.layout.plan.event_bytes as usize - 8
    }

    /// Whether [`stop`](Self::stop) was called.
    pub fn stopped(&self) -> bool {
        // Relaxed: only a flag.
        self.stopped.load(Ordering::Relaxed)
    }

    /// Ends all `next`.
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
        // SeqCst: pairs with the fence in `sleep`: it sees the flag, or its thread hears one of the rings.
        fence(Ordering::SeqCst);
        let _ = self.siblings.0.ring();
    }

    fn at(&self, offset: usize, length: usize) -> *mut u8 {
        self.memory.at(offset, length)
    }
}

#[cfg(not(loom))]
fn read_header(map: &Memory, size: usize) -> Result<Layout> {
    let word = |offset: usize| map.word(offset).load(Ordering::Relaxed);
    let small = |offset: usize| u32::try_from(word(offset)).unwrap_or(u32::MAX);
    for (field, offset, expected) in [
        ("magic", header::MAGIC, super::layout::MAGIC),
        ("layout version", header::VERSION, super::layout::VERSION),
    ] {
        if word(offset) != expected {
            return Err(Error::BadMemory {
                field,
                found: word(offset),
            });
        }
    }
    let layout = Plan {
        slots: small(header::SLOTS),
        slot_bytes: small(header::SLOT_BYTES),
        spill_bytes: small(header::SPILL_BYTES),
        executors: small(header::EXECUTORS),
        event_bytes: small(header::EVENT_BYTES),
    }
    .layout()?;
    if word(header::TOTAL) != layout.total as u64 || size < layout.total {
        return Err(Error::BadMemory {
            field: "its total size",
            found: word(header::TOTAL).min(size as u64),
        });
    }
    Ok(layout)
}

impl Output<'_> {
    /// Appends bytes; on an error nothing has been appended, and the output can be cleared and used for another answer.
    #[inline]
    pub fn append(&mut self, bytes: &[u8]) -> Result<()> {
        let end = self.length + bytes.len();
        if end <= TINY_ANSWER {
            self.tiny[self.length..end].copy_from_slice(bytes);
            self.length = end;
            return Ok(());
        }
        self.append_shared(bytes, end)
    }

    #[inline(never)]
    fn append_shared(&mut self, bytes: &[u8], end: usize) -> Result<()> {
        let target = self.room(end)?;
        if self.length <= TINY_ANSWER {
            // SAFETY: `room` has at least `end` bytes, all that is private included; private bytes do not lie in it.
            unsafe { copy::bytes(target, self.tiny.as_ptr(), self.length) };
        }
        // SAFETY: as above.
        unsafe { copy::bytes(target.add(self.length), bytes.as_ptr(), bytes.len()) };
        self.length = end;
        Ok(())
    }

    /// Where an answer of `bytes` goes; moves there what is already in shared memory.
    fn room(&mut self, bytes: usize) -> Result<*mut u8> {
        let ring = self.ring;
        let capacity = ring.layout.plan.slot_bytes as usize;
        let slot = self.job.as_ref().map_or(0, |job| job.slot);
        let payload = ring.layout.payload(slot);
        if bytes <= capacity {
            return Ok(ring.at(payload, bytes));
        }
        let place = |range: Range| ring.at(ring.layout.results + range.offset as usize, range.length as usize);
        let too_large = |available: u32| Error::TooLarge {
            bytes: bytes as u64,
            available: u64::from(available),
        };
        let Some(old) = self.range else {
            let range = ring.reserve(bytes).map_err(too_large)?;
            self.range = Some(range);
            if self.length > TINY_ANSWER {
                let source = ring.at(payload, self.length);
                // SAFETY: slot and result area do not overlap; both are at least this long.
                unsafe { copy::bytes(place(range), source, self.length) };
            }
            return Ok(place(range));
        };
        if bytes <= old.length as usize {
            return Ok(place(old));
        }
        let longer = {
            let mut results = ring.results.lock();
            ring.collect(&mut results);
            let doubled = results.ranges.extend(old, bytes.saturating_mul(2));
            doubled.or_else(|| results.ranges.extend(old, bytes))
        };
        let range = match longer {
            Some(range) => range,
            None => {
                let range = ring.reserve(bytes).map_err(too_large)?;
                // SAFETY: two ranges that are both held do not overlap; the new one is longer.
                unsafe { copy::bytes(place(range), place(old), self.length) };
                ring.results.lock().ranges.give_back(old);
                range
            }
        };
        self.range = Some(range);
        Ok(place(range))
    }

    /// Writes again what was appended at `position`. Outside of what was appended nothing is written.
    pub fn patch(&mut self, position: usize, bytes: &[u8]) {
        let Some(end) = position.checked_add(bytes.len()).filter(|end| *end <= self.length) else {
            return;
        };
        if self.length <= TINY_ANSWER {
            self.tiny[position..end].copy_from_slice(bytes);
            return;
        }
        let layout = &self.ring.layout;
        let start = match (&self.range, &self.job) {
            (Some(range), _) => layout.results + range.offset as usize,
            (None, Some(job)) => layout.payload(job.slot),
            (None, None) => return,
        };
        let target = self.ring.at(start + position, bytes.len());
        // SAFETY: inside of what `append` has written, which no reference points to; the source is private.
        unsafe { copy::bytes(target, bytes.as_ptr(), bytes.len()) };
    }

    pub fn len(&self) -> usize {
        self.length
    }

    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Drops what was appended.
    pub fn clear(&mut self) {
        self.length = 0;
        if let Some(range) = self.range.take() {
            self.ring.results.lock().ranges.give_back(range);
        }
    }

    /// The job that is being answered.
    pub fn job(&self) -> Option<&Job> {
        self.job.as_ref()
    }

    /// Publishes the answer; wakes the caller if it sleeps.
    #[inline]
    pub fn finish(mut self, executor: u16, status: u16) {
        let Some(job) = self.job.take() else { return };
        let mut tiny = self.tiny;
        let place = match self.range.take() {
            Some(range) => {
                tiny[..8].copy_from_slice(&u64::from(range.offset).to_ne_bytes());
                let mut results = self.ring.results.lock();
                let range = results.ranges.shrink(range, self.length);
                let before = results.held[usize::from(job.slot)].replace((job.number, range));
                match before {
                    Some((_, range)) => results.ranges.give_back(range),
                    None => drop(self.ring.held.fetch_add(1, Ordering::Relaxed)),
                }
                PLACE_SPILL
            }
            None if self.length <= TINY_ANSWER => PLACE_TINY,
            None => PLACE_SLOT,
        };
        self.ring.publish(executor, &job, status, place, self.length, &tiny);
    }

    /// Gives the job back, unanswered.
    pub fn cancel(mut self) -> Option<Job> {
        self.job.take()
    }
}

impl Drop for Output<'_> {
    fn drop(&mut self) {
        self.clear();
    }
}
