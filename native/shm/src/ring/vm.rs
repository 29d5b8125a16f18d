//! The VM's side of a ring. Everything that a worker can write is hostile here.
//!
//! A call's life: [`claim`](VmRing::claim) a slot, put the arguments, [`publish`](VmRing::publish),
//! [`spin`](VmRing::spin) or [`poll`](VmRing::poll); if that takes too long [`park`](VmRing::park), sleep until
//! [`drain`](VmRing::drain) reports the slot; copy the answer out; [`release`](VmRing::release). A caller that gives up
//! [`cancel`](VmRing::cancel)s (it races with `drain`: exactly one of both wins), one that has died is
//! [`abandon`](VmRing::abandon)ed. All methods take `&self` and may be called from any thread; a [`Call`] belongs to one
//! caller and is neither cloned nor used by two threads at once.

use super::atomic::{AtomicBool, AtomicU64, AtomicUsize, Mutex, Ordering, OwnLine, fence, give_way, relax};
use super::layout::{
    Layout, PLACE_SLOT, PLACE_SPILL, PLACE_TINY, Plan, TINY_ANSWER, TINY_REQUEST, cell, executor, header, slot, state,
};
use super::memory::Memory;
use super::ranges::{Range, Ranges};
use super::{Caller, Error, ExecutorStatus, Fault, Result, WorkerStatus};
use crate::copy;
#[cfg(not(loom))]
use crate::{descriptor::Descriptor, mapping::Permit};
use std::fmt::{self, Debug, Formatter};
use std::sync::Arc;
use std::time::{Duration, Instant};

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

/// Rings beyond those that parked calls and events account for: a ring and what it was for cross on their way.
const SPARE_RINGS: u64 = 64;
/// Tries at a seqlock before the reader gives up on its writer.
const TRIES: usize = if cfg!(loom) { 2 } else { 64 };
/// Looks between two looks at the clock.
const LOOKS: u32 = 32;
/// What the kernel is given to let a woken worker run. Measured: 21 us at the median after 5 ms of sleep, 60 us at the 99th
/// percentile (`RING.md`). More than that is another process's time slice.
const START: Duration = Duration::from_micros(60);

#[derive(Debug)]
struct Completions {
    /// The next position to read. Private: what the worker says of it is not asked.
    head: u64,
    rings: u64,
}

#[derive(Debug)]
struct Events {
    /// Bytes taken.
    head: u64,
    taken: u64,
    /// Length of the record that was reported and is not done with.
    undone: Option<u64>,
    scratch: Vec<u8>,
}

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

/// A range of the argument area; ends with its call.
#[derive(Debug)]
#[must_use]
pub struct Spill {
    offset: u32,
    length: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    pub function: u32,
    pub arity: u16,
    pub caller: Caller,
}

/// Where the arguments are.
#[derive(Debug)]
pub enum Payload<'a> {
    /// Private bytes: up to [`TINY_REQUEST`](super::layout::TINY_REQUEST) travel with the request itself (fastest),
    /// more are copied into the slot, or else into the argument area.
    Bytes(&'a [u8]),
    /// So many bytes have been written at [`VmRing::area`].
    Slot(u32),
    /// So many bytes have been written at [`VmRing::spill_area`].
    Spill(Spill, u32),
}

/// Whether anybody watches the submission queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wake {
    /// The worker will see the call by itself: spin.
    Awake,
    /// Ring the worker's bell and park at once.
    Asleep,
}

/// One look at a call.
#[derive(Debug)]
pub enum Poll {
    Waiting,
    Answered(Answer),
    /// The ring is closed (the worker is dead) and there is no answer. `started`: an executor had taken the call.
    Dead {
        started: bool,
    },
}

/// An answer, copied out and checked; its payload is not (it may still change under a hostile worker).
#[derive(Debug, Clone, Copy)]
pub struct Answer {
    pub status: u16,
    pub length: u32,
    place: Place,
}

#[derive(Debug, Clone, Copy)]
enum Place {
    Tiny([u8; TINY_ANSWER]),
    Shared { offset: usize },
}

/// The bytes of an answer. Those in shared memory are copied out by [`take`](Source::take), never referred to.
#[derive(Debug)]
pub struct Source<'a> {
    ring: &'a VmRing,
    answer: &'a Answer,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Park {
    /// [`VmRing::drain`] will report the slot.
    Parked,
    /// The answer is there; nothing will be reported. Poll.
    Answered,
}

#[derive(Debug)]
pub enum Cancel {
    /// The caller is out; nothing will be reported. The slot comes back when the worker answers or is dead.
    Cancelled { started: bool },
    /// Too late: the call is answered (and, if it was parked, reported or about to be). Poll, then release.
    Committed(Call),
}

/// Whether a record of the event queue has been dealt with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Done {
    Yes,
    /// And no other record is to be reported now.
    Enough,
    NotYet,
}

/// A parked caller to wake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Woken {
    pub slot: u16,
    pub number: u64,
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
            memory: OwnLine(Arc::new(memory)),
            records: records(plan),
            closed: AtomicBool::new(false),
            free: free_bits(plan),
            tail: OwnLine(AtomicU64::new(0)),
            parks: OwnLine(AtomicU64::new(0)),
            abandoned: AtomicUsize::new(0),
            completions: Mutex::new(Completions { head: 0, rings: 0 }),
            events: Mutex::new(Events::new()),
            events_head: AtomicU64::new(0),
            spill: Mutex::new(Ranges::new(plan.spill_bytes)),
            unheard: Unheard::default(),
            layout,
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
        let ring = VmRing {
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
            spill: Mutex::new(Ranges::new(plan.spill_bytes)),
            unheard: Unheard::default(),
            layout,
        };
        Ok((ring, handover))
    }

    pub fn plan(&self) -> Plan {
        self.layout.plan
    }

    /// Shows each answer that no caller takes to `hears`, before its slot comes back: it may carry what the worker has counted. By whoever finds
    /// the answer, who may be on his way to something else and holds locks of the ring: `hears` is quick, and leaves the ring alone.
    pub fn unheard(&mut self, hears: impl Fn(&Answer, &Source<'_>) + Send + Sync + 'static) {
        self.unheard = Unheard(Some(Box::new(hears)));
    }

    /// An answer that nobody takes, if it is one. Of a dead worker it does not matter any more.
    fn nobody_hears(&self, call: &Call) {
        let Unheard(Some(hears)) = &self.unheard else { return };
        if !self.closed.load(Ordering::Relaxed)
            && self.answered(call.slot, call.number)
            && let Ok(answer) = self.read_answer(call)
        {
            hears(&answer, &self.source(call, &answer));
        }
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

    /// A free slot. `None`: all are taken, or the ring is closed.
    #[inline]
    pub fn claim(&self) -> Option<Claim> {
        // Relaxed: a call that is published just after the close is found dead by its first look.
        if self.closed.load(Ordering::Relaxed) {
            return None;
        }
        self.claim_free().or_else(|| {
            // Slots of callers that have gone away may have been answered meanwhile.
            (self.reclaim() > 0).then(|| self.claim_free()).flatten()
        })
    }

    #[inline]
    fn claim_free(&self) -> Option<Claim> {
        for (index, word) in self.free.iter().enumerate() {
            let mut bits = word.load(Ordering::Relaxed);
            while bits != 0 {
                // The lowest one: under light load it is always the same slot, whose lines are in the cache.
                let bit = bits.trailing_zeros();
                // Acquire: pairs with the Release in `set_free`: everything about the slot's last call is behind us.
                match word.compare_exchange_weak(bits, bits & (bits - 1), Ordering::Acquire, Ordering::Relaxed) {
                    Ok(_) => {
                        let slot = (index * 64) as u16 + bit as u16;
                        // Relaxed: the slot is ours alone, here and down to `publish`.
                        self.records[usize::from(slot)].state.store(CLAIMED, Ordering::Relaxed);
                        return Some(Claim { slot });
                    }
                    Err(found) => bits = found,
                }
            }
        }
        None
    }

    pub fn unclaim(&self, claim: Claim) {
        let record = &self.records[usize::from(claim.slot)];
        self.finish(record, claim.slot, 0);
    }

    /// Where the arguments may be written, and how many bytes. Shared memory: no reference may be made of it.
    pub fn area(&self, claim: &Claim) -> (*mut u8, usize) {
        let length = self.layout.plan.slot_bytes as usize;
        (self.memory.at(self.layout.payload(claim.slot), length), length)
    }

    /// A range of the argument area.
    pub fn spill(&self, bytes: usize) -> Result<Spill> {
        match self.spill.lock().take(bytes) {
            Ok(Range { offset, length }) => Ok(Spill { offset, length }),
            Err(available) => Err(Error::TooLarge {
                bytes: bytes as u64,
                available: u64::from(available),
            }),
        }
    }

    /// A longer range with the same contents in its first `used` bytes; on an error the old one comes back.
    pub fn grow(&self, spill: Spill, used: usize, bytes: usize) -> std::result::Result<Spill, (Spill, Error)> {
        let old = Range {
            offset: spill.offset,
            length: spill.length,
        };
        if let Some(Range { offset, length }) = self.spill.lock().extend(old, bytes) {
            return Ok(Spill { offset, length });
        }
        let new = match self.spill(bytes) {
            Ok(new) => new,
            Err(error) => return Err((spill, error)),
        };
        let used = used.min(old.length as usize);
        // SAFETY: both ranges lie in the argument area and are held by us, so they do not overlap.
        unsafe { copy::bytes(self.spill_area(&new).0, self.spill_area(&spill).0, used) };
        self.unspill(spill);
        Ok(new)
    }

    pub fn spill_area(&self, spill: &Spill) -> (*mut u8, usize) {
        let length = spill.length as usize;
        (
            self.memory.at(self.layout.arguments + spill.offset as usize, length),
            length,
        )
    }

    pub fn unspill(&self, spill: Spill) {
        self.spill.lock().give_back(Range {
            offset: spill.offset,
            length: spill.length,
        });
    }

    /// Hands the call to the worker. Fails only when the payload fits nowhere; the claim comes back then.
    #[inline]
    pub fn publish(
        &self,
        claim: Claim,
        request: Request,
        payload: Payload<'_>,
    ) -> std::result::Result<(Call, Wake), (Claim, Error)> {
        let call = self.publish_quietly(claim, request, payload)?;
        Ok((call, self.wake()))
    }

    /// As `publish`, without asking whether the worker is awake: for batches, which ask once with [`wake`](VmRing::wake).
    #[inline]
    pub fn publish_quietly(
        &self,
        claim: Claim,
        request: Request,
        payload: Payload<'_>,
    ) -> std::result::Result<Call, (Claim, Error)> {
        let mut tiny = [0; TINY_REQUEST];
        let (place, length) = match payload {
            Payload::Bytes(bytes) if bytes.len() <= TINY_REQUEST => {
                tiny[..bytes.len()].copy_from_slice(bytes);
                (PLACE_TINY, bytes.len() as u32)
            }
            other => match self.place(&claim, other) {
                Ok((place, offset, length)) => {
                    tiny[..8].copy_from_slice(&u64::from(offset).to_ne_bytes());
                    (place, length)
                }
                Err(error) => return Err((claim, error)),
            },
        };
        let record = &self.records[usize::from(claim.slot)];
        // AcqRel: whoever took this cell's last position a lap ago released a slot that was published again since, at or
        // before this position. Each publisher is behind its predecessors, so the executor's reads of the cell are behind us.
        let number = self.tail.fetch_add(1, Ordering::AcqRel);
        record.state.store(number << STATE_BITS | PUBLISHED, Ordering::Relaxed);
        let line = self.layout.submission(number);
        let word = |offset: usize| self.memory.word(line + offset);
        let what = u64::from(request.function) | u64::from(request.arity) << 32 | u64::from(claim.slot) << 48;
        let caller = u64::from(request.caller.index) | u64::from(request.caller.generation) << 32;
        // Relaxed: the Release below publishes all of the line.
        word(cell::WHAT).store(what, Ordering::Relaxed);
        word(cell::CALLER).store(caller, Ordering::Relaxed);
        word(cell::PAYLOAD).store(u64::from(length) | u64::from(place) << 32, Ordering::Relaxed);
        let words = if place == PLACE_TINY {
            (length as usize).div_ceil(8)
        } else {
            1
        };
        for (index, bytes) in tiny.as_chunks::<8>().0.iter().enumerate().take(words) {
            word(cell::TINY + index * 8).store(u64::from_ne_bytes(*bytes), Ordering::Relaxed);
        }
        // Release: pairs with the executor's Acquire load; with it the executor sees cell and payload.
        word(cell::READY).store(number + 1, Ordering::Release);
        Ok(Call {
            number,
            slot: claim.slot,
        })
    }

    /// Puts a payload that is not tiny; notes a range of the argument area in the slot's record.
    #[inline(never)]
    fn place(&self, claim: &Claim, payload: Payload<'_>) -> Result<(u16, u32, u32)> {
        let capacity = self.layout.plan.slot_bytes;
        match payload {
            Payload::Slot(length) if length <= capacity => Ok((PLACE_SLOT, 0, length)),
            Payload::Slot(length) => Err(Error::TooLarge {
                bytes: u64::from(length),
                available: u64::from(capacity),
            }),
            Payload::Bytes(bytes) if bytes.len() <= capacity as usize => {
                // SAFETY: the area is at least as long; private bytes do not lie in it.
                unsafe { copy::bytes(self.area(claim).0, bytes.as_ptr(), bytes.len()) };
                Ok((PLACE_SLOT, 0, bytes.len() as u32))
            }
            Payload::Bytes(bytes) => {
                let spill = self.spill(bytes.len())?;
                // SAFETY: as above.
                unsafe { copy::bytes(self.spill_area(&spill).0, bytes.as_ptr(), bytes.len()) };
                self.place(claim, Payload::Spill(spill, bytes.len() as u32))
            }
            Payload::Spill(spill, length) => {
                if length > spill.length {
                    let available = u64::from(spill.length);
                    self.unspill(spill);
                    return Err(Error::TooLarge {
                        bytes: u64::from(length),
                        available,
                    });
                }
                let record = &self.records[usize::from(claim.slot)];
                let range = u64::from(spill.offset) << 32 | u64::from(spill.length);
                // Relaxed: the slot is ours alone.
                record.spill.store(range, Ordering::Relaxed);
                record.flags.store(HAS_SPILL, Ordering::Relaxed);
                Ok((PLACE_SPILL, spill.offset, length))
            }
        }
    }

    /// Whether the worker must be woken for what has been published up to now. A full barrier.
    #[inline]
    pub fn wake(&self) -> Wake {
        // SeqCst: pairs with the fence in the worker's `sleep` (it raises the flag, then looks at the queue). One of both
        // sees the other.
        fence(Ordering::SeqCst);
        match self.memory.word(header::NEED_WAKEUP).load(Ordering::Relaxed) {
            0 => Wake::Awake,
            _ => Wake::Asleep,
        }
    }

    /// One look. A `Fault` leaves the call as it was: `abandon` it.
    #[inline]
    pub fn poll(&self, call: &Call) -> Result<Poll> {
        if self.answered(call.slot, call.number) {
            return Ok(Poll::Answered(self.read_answer(call)?));
        }
        // Acquire: pairs with the Release in `close`, which comes after the worker's death: its last stores are visible.
        if !self.closed.load(Ordering::Acquire) {
            return Ok(Poll::Waiting);
        }
        if self.answered(call.slot, call.number) {
            return Ok(Poll::Answered(self.read_answer(call)?));
        }
        Ok(Poll::Dead {
            started: self.started(call),
        })
    }

    /// As `poll`, for a call that was reported or found answered before: it is a fault when the answer has gone.
    pub fn collect(&self, call: &Call) -> Result<Poll> {
        match self.poll(call)? {
            Poll::Waiting => Err(Fault::Withdrawn { call: call.number }.into()),
            done => Ok(done),
        }
    }

    /// Looks until there is something other than `Waiting`, at most about this long.
    #[inline]
    pub fn spin(&self, call: &Call, atmost: Duration) -> Result<Poll> {
        let mut began = None;
        loop {
            for _ in 0..LOOKS {
                match self.poll(call)? {
                    Poll::Waiting => relax(),
                    done => return Ok(done),
                }
            }
            // The clock is not read before the first looks have failed: that is most of what a call may cost.
            let now = Instant::now();
            if now.duration_since(*began.get_or_insert(now)) >= atmost {
                return Ok(Poll::Waiting);
            }
        }
    }

    /// As `spin`; if the worker has just been woken (`Asleep`), it is given [`START`] first to take the call.
    pub fn attend(&self, call: &Call, wake: Wake, atmost: Duration) -> Result<Poll> {
        if wake == Wake::Asleep && !atmost.is_zero() {
            // It may have been put on this very CPU. Once: each time costs a time slice where others wait too.
            give_way();
            let began = Instant::now();
            while !self.started(call) && began.elapsed() < START {
                relax();
            }
        }
        self.spin(call, atmost)
    }

    /// Whether an executor has taken the call (the worker's word).
    pub fn started(&self, call: &Call) -> bool {
        // Acquire: pairs with the executor's Release. Of a dead worker it is final.
        let head = self.memory.word(header::HEAD).load(Ordering::Acquire);
        head > call.number
    }

    #[inline(always)]
    fn answered(&self, index: u16, number: u64) -> bool {
        // Acquire: pairs with the executor's Release: with the number the whole answer is visible.
        let word = self.memory.word(self.layout.slot(index) + slot::ANSWERED);
        word.load(Ordering::Acquire) == number + 1
    }

    /// Copies the answer line out, each word once, and checks the copy.
    #[inline]
    fn read_answer(&self, call: &Call) -> std::result::Result<Answer, Fault> {
        let line = self.layout.slot(call.slot);
        // Relaxed: `answered` has acquired them; a hostile worker may tear them, which the checks bear.
        let word = |offset: usize| self.memory.word(line + offset).load(Ordering::Relaxed);
        let payload = word(slot::PAYLOAD);
        let (length, status, place) = (payload as u32, (payload >> 32) as u16, (payload >> 48) as u16);
        let place = match place {
            PLACE_TINY => {
                if length as usize > TINY_ANSWER {
                    return Err(Fault::Length {
                        length: u64::from(length),
                        capacity: TINY_ANSWER as u64,
                    });
                }
                let mut tiny = [0; TINY_ANSWER];
                let words = (length as usize).div_ceil(8);
                for (index, bytes) in tiny.as_chunks_mut::<8>().0.iter_mut().enumerate().take(words) {
                    *bytes = word(slot::TINY + index * 8).to_ne_bytes();
                }
                Place::Tiny(tiny)
            }
            other => self.shared_place(call, other, length, word(slot::TINY))?,
        };
        Ok(Answer { status, length, place })
    }

    #[inline(never)]
    fn shared_place(&self, call: &Call, place: u16, length: u32, offset: u64) -> std::result::Result<Place, Fault> {
        let plan = self.layout.plan;
        match place {
            PLACE_SLOT if length <= plan.slot_bytes => Ok(Place::Shared {
                offset: self.layout.payload(call.slot),
            }),
            PLACE_SLOT => Err(Fault::Length {
                length: u64::from(length),
                capacity: u64::from(plan.slot_bytes),
            }),
            PLACE_SPILL => {
                let spill = u64::from(plan.spill_bytes);
                if offset > spill || u64::from(length) > spill - offset {
                    return Err(Fault::Spill {
                        offset,
                        length: u64::from(length),
                    });
                }
                // Relaxed: read by whoever releases the call, which is its owner.
                self.records[usize::from(call.slot)]
                    .flags
                    .fetch_or(ANSWER_SPILLED, Ordering::Relaxed);
                Ok(Place::Shared {
                    offset: self.layout.results + offset as usize,
                })
            }
            place => Err(Fault::Place { place }),
        }
    }

    /// The payload of an answer.
    pub fn source<'a>(&'a self, _call: &Call, answer: &'a Answer) -> Source<'a> {
        Source { ring: self, answer }
    }

    /// The caller goes to sleep. Whoever is to be woken must be on record (by slot) before this.
    pub fn park(&self, call: &Call) -> Park {
        let record = &self.records[usize::from(call.slot)];
        let parked = call.number << STATE_BITS | PARKED;
        // Relaxed: a credit must merely be there before the worker can use it; the worker sees the wait word later still.
        self.parks.fetch_add(1, Ordering::Relaxed);
        // Release: pairs with the Acquire in `report`: what the caller has put on record is visible there.
        record.state.store(parked, Ordering::Release);
        let wait = self.memory.word(self.layout.slot(call.slot) + slot::WAIT);
        wait.store(call.number + 1, Ordering::Relaxed);
        // SeqCst: pairs with the fence in the worker's `finish` (it answers, then looks at the wait word), and with the one
        // in `close`. One of both sees the other.
        fence(Ordering::SeqCst);
        if !self.answered(call.slot, call.number) && !self.closed.load(Ordering::Acquire) {
            return Park::Parked;
        }
        let published = call.number << STATE_BITS | PUBLISHED;
        // AcqRel: whoever loses this race is behind the winner.
        match record
            .state
            .compare_exchange(parked, published, Ordering::AcqRel, Ordering::Acquire)
        {
            Ok(_) => Park::Answered,
            // Reported already: the message is on its way.
            Err(_) => Park::Parked,
        }
    }

    /// The caller does not want the answer any more.
    pub fn cancel(&self, call: Call) -> Cancel {
        let record = &self.records[usize::from(call.slot)];
        // Relaxed: only `drain` and `close` change it beside us, once; a stale value fails the compare-and-swap.
        if record.state.load(Ordering::Relaxed) & STATE == PUBLISHED && self.answered(call.slot, call.number) {
            return Cancel::Committed(call);
        }
        if self.leave(record, call.number) {
            Cancel::Cancelled {
                started: self.started(&call),
            }
        } else {
            Cancel::Committed(call)
        }
    }

    /// The caller is gone: nobody will be told. The slot comes back when the worker answers or is dead.
    pub fn abandon(&self, call: Call) {
        let record = &self.records[usize::from(call.slot)];
        if !self.leave(record, call.number) {
            self.nobody_hears(&call);
            return self.release(call);
        }
        self.reclaim_one(record, call.slot);
    }

    /// Whether this very call was given up, and the worker may still be at it.
    pub fn is_abandoned(&self, slot: u16, number: u64) -> bool {
        let record = self.records.get(usize::from(slot));
        // Acquire: whoever gave the slot back had seen the answer.
        record.is_some_and(|record| record.state.load(Ordering::Acquire) == number << STATE_BITS | ABANDONED)
    }

    /// `PUBLISHED` or `PARKED` becomes `ABANDONED`; false: the call is committed.
    fn leave(&self, record: &Record, number: u64) -> bool {
        let abandoned = number << STATE_BITS | ABANDONED;
        // Counted first: whoever finds the state takes one off. Relaxed: a wrong count costs or saves one look.
        self.abandoned.fetch_add(1, Ordering::Relaxed);
        // Relaxed: ours, but for the two transitions out of `PARKED`, which make the compare-and-swap fail.
        let mut current = record.state.load(Ordering::Relaxed);
        while matches!(current & STATE, PUBLISHED | PARKED) {
            // AcqRel: whoever loses this race is behind the winner; Release also hands the record to `reclaim`.
            match record
                .state
                .compare_exchange(current, abandoned, Ordering::AcqRel, Ordering::Acquire)
            {
                Ok(_) => return true,
                Err(found) => current = found,
            }
        }
        self.abandoned.fetch_sub(1, Ordering::Relaxed);
        false
    }

    /// The caller has its answer.
    #[inline]
    pub fn release(&self, call: Call) {
        self.finish(&self.records[usize::from(call.slot)], call.slot, call.number);
    }

    #[inline]
    fn finish(&self, record: &Record, index: u16, number: u64) {
        // Relaxed: the flags are the owner's; the Release in `set_free` hands everything on.
        let flags = record.flags.load(Ordering::Relaxed);
        if flags != 0 {
            self.give_back(record, index, number, flags);
        }
        record.state.store(FREE, Ordering::Relaxed);
        self.set_free(index);
    }

    #[inline]
    fn set_free(&self, index: u16) {
        // Release: pairs with the Acquire in `claim_free`.
        self.free[usize::from(index) / 64].fetch_or(1 << (index % 64), Ordering::Release);
    }

    #[inline(never)]
    fn give_back(&self, record: &Record, index: u16, number: u64, flags: u64) {
        record.flags.store(0, Ordering::Relaxed);
        if flags & ANSWER_SPILLED != 0 {
            // Release: pairs with the worker's Acquire: our reads of the range are behind whoever writes it next.
            let released = self.memory.word(self.layout.slot(index) + slot::RELEASED);
            released.store(number + 1, Ordering::Release);
        }
        if flags & HAS_SPILL != 0 {
            let range = record.spill.load(Ordering::Relaxed);
            self.spill.lock().give_back(Range {
                offset: (range >> 32) as u32,
                length: range as u32,
            });
        }
    }

    /// Frees the slots whose callers are gone and which are answered; says how many.
    fn reclaim(&self) -> usize {
        if self.abandoned.load(Ordering::Relaxed) == 0 {
            return 0;
        }
        let slots = self.records.iter().enumerate();
        slots
            .filter(|(index, record)| self.reclaim_one(record, *index as u16))
            .count()
    }

    fn reclaim_one(&self, record: &Record, index: u16) -> bool {
        // Acquire: pairs with the Release in `leave`.
        let current = record.state.load(Ordering::Acquire);
        let number = current >> STATE_BITS;
        if current & STATE != ABANDONED || !self.answered(index, number) {
            return false;
        }
        // AcqRel: one of several that found it frees it.
        let won = record
            .state
            .compare_exchange(current, CLAIMED, Ordering::AcqRel, Ordering::Relaxed)
            .is_ok();
        if won {
            self.abandoned.fetch_sub(1, Ordering::Relaxed);
            self.nobody_hears(&Call { slot: index, number });
            // Where its answer lies nobody may have looked: say that it is not needed, wherever it is.
            record.flags.fetch_or(ANSWER_SPILLED, Ordering::Relaxed);
            self.finish(record, index, number);
        }
        won
    }

    /// After the worker has rung `rings` times (from [`Listener::silence`](super::bell::Listener::silence)): reports each
    /// parked call that is answered, once, and says how many. `report` must not call `drain` or `close`.
    pub fn drain(&self, rings: u64, mut report: impl FnMut(Woken)) -> std::result::Result<usize, Fault> {
        let taken = self.events.lock().taken;
        let mut queue = self.completions.lock();
        queue.rings = queue.rings.saturating_add(rings);
        let mut reported = 0;
        for _ in 0..self.layout.completion_cells {
            // Acquire: pairs with the executor's Release: the answer is visible with the entry.
            let entry = self
                .memory
                .word(self.layout.completion(queue.head))
                .load(Ordering::Acquire);
            if entry >> 16 != (queue.head + 1) & (u64::MAX >> 16) {
                break;
            }
            queue.head += 1;
            let index = entry as usize & (self.records.len() - 1);
            reported += usize::from(self.report(index, &mut report));
        }
        // An entry may still be being written, the queue may have gone around, the worker may lie: look for ourselves.
        if (reported as u64) < rings {
            // In this order: whatever was put into the queue before the entry that we go on with is answered by now.
            self.catch_up(&mut queue);
            for index in 0..self.records.len() {
                reported += usize::from(self.report(index, &mut report));
            }
        }
        // Relaxed: the worker can have rung for a park only after it.
        let allowed = self.parks.load(Ordering::Relaxed) + taken + SPARE_RINGS;
        if queue.rings > allowed {
            return Err(Fault::TooManyRings {
                rings: queue.rings,
                allowed,
            });
        }
        Ok(reported)
    }

    /// After the queue has gone around: goes on with the oldest entry that is there. A worker that lies about positions
    /// makes us scan, nothing else.
    fn catch_up(&self, queue: &mut Completions) {
        let position = self
            .memory
            .word(self.layout.completion(queue.head))
            .load(Ordering::Acquire)
            >> 16;
        if position > queue.head + 1 {
            queue.head = position;
        }
    }

    /// Reports a slot's caller if it is parked and answered; frees the slot if nobody waits for it.
    fn report(&self, index: usize, report: &mut impl FnMut(Woken)) -> bool {
        let record = &self.records[index];
        // Acquire: pairs with the Release in `park`.
        let current = record.state.load(Ordering::Acquire);
        let number = current >> STATE_BITS;
        match current & STATE {
            PARKED => self.answered(index as u16, number) && self.commit(index, current, report),
            ABANDONED => {
                self.reclaim_one(record, index as u16);
                false
            }
            _ => false,
        }
    }

    fn commit(&self, index: usize, current: u64, report: &mut impl FnMut(Woken)) -> bool {
        let number = current >> STATE_BITS;
        // AcqRel: races with `cancel`, `abandon` and the recheck in `park`; one wins.
        let won = self.records[index]
            .state
            .compare_exchange(
                current,
                number << STATE_BITS | COMMITTED,
                Ordering::AcqRel,
                Ordering::Relaxed,
            )
            .is_ok();
        if won {
            report(Woken {
                slot: index as u16,
                number,
            });
        }
        won
    }

    /// Takes at most `most` records out of the event queue; `report` gets kind and a private copy. When as many came, there
    /// may be more, and the worker will not ring for them: call again. `report` must not call `events` or `drain`, and does
    /// what the record says before it returns: the worker is told so by the cursor.
    pub fn events(&self, most: usize, mut report: impl FnMut(u32, &[u8])) -> std::result::Result<usize, Fault> {
        self.events_until(None, most, |kind, bytes| {
            report(kind, bytes);
            Done::Yes
        })
    }

    /// As `events`, but no further than to the position `end` (of [`events_end`](VmRing::events_end)). A record with which
    /// `report` is not done stays in the queue, and is not reported again: nothing is until [`event_done`](VmRing::event_done).
    pub fn events_until(
        &self,
        end: Option<u64>,
        most: usize,
        mut report: impl FnMut(u32, &[u8]) -> Done,
    ) -> std::result::Result<usize, Fault> {
        let mut queue = self.events.lock();
        let queue = &mut *queue;
        let capacity = u64::from(self.layout.plan.event_bytes);
        let mut count = 0;
        while count < most && queue.undone.is_none() && end.is_none_or(|end| is_before(queue.head, end)) {
            // Acquire: pairs with the worker's Release: the records are visible with the cursor.
            let tail = self.memory.word(header::EVENT_TAIL).load(Ordering::Acquire);
            let available = tail.wrapping_sub(queue.head);
            if available > capacity || !tail.is_multiple_of(8) {
                return Err(Fault::EventCursor {
                    head: queue.head,
                    tail,
                    capacity,
                });
            }
            if available == 0 {
                break;
            }
            let record = self.read_event(queue, available)?;
            count += 1;
            queue.taken += 1;
            match report(record.kind, &queue.scratch) {
                Done::Yes => self.pass(queue, record.bytes),
                Done::Enough => {
                    self.pass(queue, record.bytes);
                    break;
                }
                Done::NotYet => queue.undone = Some(record.bytes),
            }
        }
        Ok(count)
    }

    /// The record with which `report` was not done is done with.
    pub fn event_done(&self) {
        let mut queue = self.events.lock();
        if let Some(bytes) = queue.undone.take() {
            self.pass(&mut queue, bytes);
        }
    }

    fn pass(&self, queue: &mut Events, bytes: u64) {
        queue.head = queue.head.wrapping_add(bytes);
        // Before the worker is told, and Release, for whoever asks without the lock: what the record says is done.
        self.events_head.store(queue.head, Ordering::Release);
        // Release: pairs with the worker's Acquire: we have read what it may overwrite now, and done what it said: an answer
        // without `status::QUEUED` comes after it.
        self.memory
            .word(header::EVENT_HEAD)
            .store(queue.head, Ordering::Release);
        // SeqCst: pairs with the fence in the worker's `event` (it moves its cursor, then looks at ours): a record that we
        // do not see at the next turn is rung for.
        fence(Ordering::SeqCst);
    }

    /// Where the last record of the event queue ends, by the worker's word, which is taken for no more than a full queue. What it
    /// has put before an answer lies before the position that is read after the answer was seen.
    pub fn events_end(&self) -> u64 {
        // Acquire: pairs with the worker's Release. The head in this order: the worker has seen ours move before it moved its
        // own, and we see with the one what was stored before the other. So only a lie is further away than a queue is long.
        let tail = self.memory.word(header::EVENT_TAIL).load(Ordering::Acquire);
        let furthest = self
            .events_head
            .load(Ordering::Relaxed)
            .wrapping_add(u64::from(self.layout.plan.event_bytes));
        if is_before(furthest, tail) { furthest } else { tail }
    }

    /// Whether all records up to a position are done with.
    pub fn events_done_until(&self, end: u64) -> bool {
        // Acquire: pairs with the Release in `pass`.
        !is_before(self.events_head.load(Ordering::Acquire), end)
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

    /// Copies one record into the scratch buffer: first its head, then, when its length is plausible, the rest.
    fn read_event(&self, queue: &mut Events, available: u64) -> std::result::Result<EventHead, Fault> {
        let mask = self.layout.plan.event_bytes as usize - 1;
        let word = |position: u64| {
            let offset = self.layout.events + (position as usize & mask);
            // Relaxed: acquired with the cursor.
            self.memory.word(offset).load(Ordering::Relaxed)
        };
        let head = word(queue.head);
        let length = head & u64::from(u32::MAX);
        let bytes = 8 + length.next_multiple_of(8);
        if bytes > available {
            return Err(Fault::EventLength {
                length,
                available: available - 8,
            });
        }
        queue.scratch.clear();
        for position in (8..bytes).step_by(8) {
            queue
                .scratch
                .extend_from_slice(&word(queue.head + position).to_ne_bytes());
        }
        queue.scratch.truncate(length as usize);
        Ok(EventHead {
            kind: (head >> 32) as u32,
            bytes,
        })
    }

    /// The worker is dead: from here on `poll` answers `Dead` where there is no answer, parked calls are reported, `claim`
    /// gives nothing. Call it when the process is gone, not before: an answer may still come till then.
    pub fn close(&self, mut report: impl FnMut(Woken)) {
        // Release: pairs with the Acquire in `poll` and `park`.
        self.closed.store(true, Ordering::Release);
        // SeqCst: pairs with the fence in `park`: either it sees the flag, or we see its state.
        fence(Ordering::SeqCst);
        for (index, record) in self.records.iter().enumerate() {
            let current = record.state.load(Ordering::Acquire);
            if current & STATE == PARKED {
                self.commit(index, current, &mut report);
            }
        }
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

struct EventHead {
    kind: u32,
    bytes: u64,
}

impl Events {
    fn new() -> Self {
        Events {
            head: 0,
            taken: 0,
            undone: None,
            scratch: Vec::new(),
        }
    }
}

/// Of two positions that are not further apart than a queue is long, or than a lie may put them.
fn is_before(position: u64, end: u64) -> bool {
    end.wrapping_sub(position).cast_signed() > 0
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

impl Source<'_> {
    pub fn len(&self) -> usize {
        self.answer.length as usize
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The payload, if it is private already (a tiny one).
    #[inline]
    pub fn private(&self) -> Option<&[u8]> {
        match &self.answer.place {
            Place::Tiny(bytes) => bytes.get(..self.len()),
            Place::Shared { .. } => None,
        }
    }

    /// Copies `length` bytes at `offset` out; false (and nothing done) when the range is outside.
    ///
    /// # Safety
    /// `target` is private memory of at least `length` bytes.
    pub unsafe fn take(&self, offset: usize, target: *mut u8, length: usize) -> bool {
        if offset.checked_add(length).is_none_or(|end| end > self.len()) {
            return false;
        }
        let source = match &self.answer.place {
            Place::Tiny(bytes) => bytes.as_ptr().wrapping_add(offset),
            Place::Shared { offset: start } => self.ring.memory.at(start + offset, length).cast_const(),
        };
        // SAFETY: checked just above and in `read_answer`; the mapping cannot shrink; the caller vouches for the target.
        unsafe { copy::bytes(target, source, length) };
        true
    }

    /// Replaces the contents of `target` by the whole payload.
    pub fn read(&self, target: &mut Vec<u8>) {
        target.clear();
        target.reserve(self.len());
        // SAFETY: reserved just above; `take` writes all of it, or nothing when it says false.
        unsafe {
            if self.take(0, target.as_mut_ptr(), self.len()) {
                target.set_len(self.len());
            }
        }
    }
}
