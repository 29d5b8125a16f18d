//! The VM's side of a ring. Everything that a worker can write is hostile here.
//!
//! A call's life: [`claim`](VmRing::claim) a slot, put the arguments, [`publish`](VmRing::publish),
//! [`spin`](VmRing::spin) or [`poll`](VmRing::poll); if that takes too long [`park`](VmRing::park), sleep until
//! [`drain`](VmRing::drain) reports the slot; copy the answer out; [`release`](VmRing::release). A caller that gives up
//! [`cancel`](VmRing::cancel)s (it races with `drain`: exactly one of both wins), one that has died is
//! [`abandon`](VmRing::abandon)ed. All methods take `&self` and may be called from any thread; a [`Call`] belongs to one
//! caller and is neither cloned nor used by two threads at once.

mod answer;
mod events;
mod parked;
mod release;
mod submit;

pub use answer::{Answer, Poll, Source};
pub use events::Done;
pub use parked::{Park, Woken};
pub use release::Cancel;
pub use submit::{Payload, Request, Spill, Wake};

use super::atomic::{AtomicBool, AtomicU64, AtomicUsize, Mutex, Ordering, OwnLine, fence, relax};
use super::layout::{Layout, Plan, executor, header, state};
use super::memory::Memory;
use super::ranges::Ranges;
use super::{Error, ExecutorStatus, Result, WorkerStatus};
#[cfg(not(loom))]
use crate::{descriptor::Descriptor, mapping::Permit};
use events::Events;
use parked::Completions;
use std::fmt::{self, Debug, Formatter};
use std::sync::Arc;

/// The VM's side of one worker's ring.
#[derive(Debug)]
pub struct VmRing {
    memory: OwnLine<Arc<Memory>>,
    layout: Layout,
    records: Vec<Record>,
    /// The worker is dead. Read at every look, written once.
    closed: AtomicBool,
    /// One bit a slot, set when it is free.
    free: Vec<OwnLine<AtomicU64>>,
    /// The next call's number: the next position of the submission queue.
    tail: OwnLine<AtomicU64>,
    /// Calls to `park`: the rings that the worker is entitled to.
    parks: OwnLine<AtomicU64>,
    /// Slots in the state `ABANDONED`.
    abandoned: AtomicUsize,
    completions: Mutex<Completions>,
    events: Mutex<Events>,
    /// [`Events::head`], to be read without the lock.
    events_head: AtomicU64,
    /// Records taken out of the event queue: rings that the worker is entitled to as well.
    events_taken: AtomicU64,
    spill: Mutex<Ranges>,
    /// Who is shown the answers that no caller takes.
    unheard: Unheard,
    #[cfg(not(loom))]
    fd: Mutex<Option<Arc<Descriptor>>>,
}

/// See [`VmRing::unheard`].
type Hears = Box<dyn Fn(&Answer, &Source<'_>) + Send + Sync>;

#[derive(Default)]
struct Unheard(Option<Hears>);

impl Debug for Unheard {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("Unheard").finish_non_exhaustive()
    }
}

/// What the VM knows of a slot; nobody else can write it.
#[derive(Debug)]
#[repr(align(128))]
struct Record {
    /// The call's number and, in the low bits, its state. Only `PARKED` is left by compare-and-swap (caller, `drain` and
    /// `close` race there), and `ABANDONED`; everything else belongs to the one who holds the `Claim` or `Call`.
    state: AtomicU64,
    /// `HAS_SPILL`, `ANSWER_SPILLED`
    flags: AtomicU64,
    /// Offset and length of the range of the argument area.
    spill: AtomicU64,
}

const FREE: u64 = 0;
const CLAIMED: u64 = 1;
const PUBLISHED: u64 = 2;
const PARKED: u64 = 3;
/// The caller of a parked call is being told.
const COMMITTED: u64 = 4;
const ABANDONED: u64 = 5;
const STATE: u64 = 7;
const STATE_BITS: u32 = 3;

const HAS_SPILL: u64 = 1;
const ANSWER_SPILLED: u64 = 2;

/// Tries at a seqlock before the reader gives up on its writer.
const TRIES: usize = if cfg!(loom) { 2 } else { 64 };

/// A slot that is ours and not published yet. Give it to [`VmRing::publish`] or [`VmRing::unclaim`].
#[derive(Debug)]
#[must_use = "a slot that is dropped is lost"]
pub struct Claim {
    slot: u16,
}

/// A call that the worker has, or has answered. Ends with `release`, `cancel` or `abandon`.
#[derive(Debug)]
#[must_use = "a slot that is dropped is lost"]
pub struct Call {
    number: u64,
    slot: u16,
}

impl Claim {
    pub fn slot(&self) -> u16 {
        self.slot
    }
}

impl Call {
    pub fn slot(&self) -> u16 {
        self.slot
    }

    /// The position in the submission queue; never repeats within a ring.
    pub fn number(&self) -> u64 {
        self.number
    }
}

impl VmRing {
    /// Makes the memory (sealed from birth), maps it, writes the header. `reserve`: descriptors to leave free below the
    /// process's limit.
    #[cfg(not(loom))]
    pub fn create(label: &str, plan: Plan, permit: Permit, reserve: u64) -> Result<Self> {
        use crate::backend;
        use std::os::fd::AsFd;

        let layout = plan.layout()?;
        let fd = backend::ring_memory(label, layout.total as u64, reserve).map_err(Error::from_limit)?;
        let memory = Memory::map(fd.as_fd(), layout.total, Some(permit))?;
        memory.populate(layout.payloads);
        for (offset, value) in layout.header() {
            // Relaxed: the worker gets the descriptor by a system call later.
            memory.word(offset).store(value, Ordering::Relaxed);
        }
        Ok(VmRing {
            fd: Mutex::new(Some(Arc::new(fd))),
            ..VmRing::over(Arc::new(memory), layout)
        })
    }

    /// A ring in modelled memory, for both sides.
    #[cfg(loom)]
    pub fn model(plan: Plan) -> Result<(Self, super::worker::Handover)> {
        let layout = plan.layout()?;
        let memory = Arc::new(Memory::model(&layout));
        let handover = super::worker::Handover {
            memory: Arc::clone(&memory),
            layout,
        };
        Ok((VmRing::over(memory, layout), handover))
    }

    fn over(memory: Arc<Memory>, layout: Layout) -> Self {
        let plan = layout.plan;
        VmRing {
            memory: OwnLine(memory),
            records: records(plan),
            closed: AtomicBool::new(false),
            free: free_bits(plan),
            tail: OwnLine(AtomicU64::new(0)),
            parks: OwnLine(AtomicU64::new(0)),
            abandoned: AtomicUsize::new(0),
            completions: Mutex::new(Completions { head: 0, rings: 0 }),
            events: Mutex::new(Events::new()),
            events_head: AtomicU64::new(0),
            events_taken: AtomicU64::new(0),
            spill: Mutex::new(Ranges::new(plan.spill_bytes)),
            unheard: Unheard::default(),
            layout,
            #[cfg(not(loom))]
            fd: Mutex::new(None),
        }
    }

    pub fn plan(&self) -> Plan {
        self.layout.plan
    }

    /// Shows each answer that no caller takes to `hears`, before its slot comes back: it may carry what the worker has counted. By whoever finds
    /// the answer, who may be on his way to something else and holds locks of the ring: `hears` is quick, and leaves the ring alone.
    pub fn unheard(&mut self, hears: impl Fn(&Answer, &Source<'_>) + Send + Sync + 'static) {
        self.unheard = Unheard(Some(Box::new(hears)));
    }

    /// The memory's descriptor, to be handed to the worker. `None` after [`forget_fd`](VmRing::forget_fd).
    #[cfg(not(loom))]
    pub fn fd(&self) -> Option<Arc<Descriptor>> {
        self.fd.lock().clone()
    }

    /// Closes our descriptor once the worker has its own; the mapping stays.
    #[cfg(not(loom))]
    pub fn forget_fd(&self) {
        // Not closed under the lock.
        let fd = self.fd.lock().take();
        drop(fd);
    }

    /// The number of the next call.
    pub fn next_number(&self) -> u64 {
        // Relaxed: of a call whose answer has been seen the number is behind us.
        self.tail.load(Ordering::Relaxed)
    }

    /// The numbers of the calls whose answers somebody may still take, in their order. One that is being published right now may be
    /// missed; the worker cannot have seen it either.
    pub fn calls_in_flight(&self, numbers: &mut Vec<u64>) {
        numbers.clear();
        numbers.extend(self.records.iter().filter_map(|record| {
            // Acquire: pairs with the Release of whoever hands the record on.
            let current = record.state.load(Ordering::Acquire);
            matches!(current & STATE, PUBLISHED | PARKED | COMMITTED).then_some(current >> STATE_BITS)
        }));
        numbers.sort_unstable();
    }

    pub fn closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Slots that are not free.
    pub fn in_flight(&self) -> usize {
        self.reclaim();
        let free: u32 = self
            .free
            .iter()
            .map(|word| word.load(Ordering::Relaxed).count_ones())
            .sum();
        self.records.len().saturating_sub(free as usize)
    }

    /// Tells the worker the VM's time: nanoseconds from the kernel's monotonic clock to the VM's, and from there to its system
    /// time.
    pub fn set_clock(&self, monotonic: i64, offset: i64) {
        // Relaxed: two figures, each of which is true by itself.
        self.memory
            .word(header::CLOCK)
            .store(monotonic.cast_unsigned(), Ordering::Relaxed);
        self.memory
            .word(header::CLOCK_OFFSET)
            .store(offset.cast_unsigned(), Ordering::Relaxed);
    }

    /// What the worker says of itself; `None` when it was being written at every try.
    pub fn status(&self) -> Option<WorkerStatus> {
        let word = |offset: usize| self.memory.word(self.layout.status + offset);
        for _ in 0..TRIES {
            // Acquire, the words Relaxed, an Acquire fence, the sequence again: pairs with the writer's Release fence and
            // Release store in `beat`.
            let before = word(state::SEQUENCE).load(Ordering::Acquire);
            let mut words = [0; state::COUNT];
            for (index, value) in words.iter_mut().enumerate() {
                *value = word(state::WORDS + index * 8).load(Ordering::Relaxed);
            }
            fence(Ordering::Acquire);
            if before.is_multiple_of(2) && word(state::SEQUENCE).load(Ordering::Relaxed) == before {
                return Some(WorkerStatus::from_words(words));
            }
            relax();
        }
        None
    }

    /// When the worker last had no memory to give, on CLOCK_MONOTONIC in nanoseconds. It says so itself.
    pub fn lacked(&self) -> Option<u64> {
        // Relaxed: a figure; who reads it to explain an end reads it after the end.
        let at = self
            .memory
            .word(self.layout.status + state::LACKED)
            .load(Ordering::Relaxed);
        (at > 0).then_some(at)
    }

    /// What an executor says of itself; nothing for an index that the plan does not have.
    pub fn executor(&self, index: u16) -> ExecutorStatus {
        if u32::from(index) >= self.layout.plan.executors {
            return ExecutorStatus::default();
        }
        let line = self.layout.executor(index);
        // Relaxed: two figures, nothing depends on them.
        ExecutorStatus {
            call: self
                .memory
                .word(line + executor::CALL)
                .load(Ordering::Relaxed)
                .checked_sub(1),
            calls: self.memory.word(line + executor::CALLS).load(Ordering::Relaxed),
        }
    }

    /// The shared memory, for the tests that play the hostile worker.
    #[doc(hidden)]
    pub fn raw(&self) -> (*mut u8, usize) {
        (self.memory.at(0, self.layout.total), self.layout.total)
    }
}

fn records(plan: Plan) -> Vec<Record> {
    let record = |_| Record {
        state: AtomicU64::new(FREE),
        flags: AtomicU64::new(0),
        spill: AtomicU64::new(0),
    };
    (0..plan.slots).map(record).collect()
}

fn free_bits(plan: Plan) -> Vec<OwnLine<AtomicU64>> {
    let bits = |word: u32| {
        let count = (plan.slots - word * 64).min(64);
        OwnLine(AtomicU64::new(u64::MAX >> (64 - count)))
    };
    (0..plan.slots.div_ceil(64)).map(bits).collect()
}
