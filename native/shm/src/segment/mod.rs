//! A segment: one memory object, its header, and who may do what with it now.
//!
//! ```text
//!            write, fill, write_begin/end           read, view
//!               |                                      |
//! allocated ----+---- seal ----> sealed ---------------+---- close ----> closed
//!     \                                                             /
//!      `---- a check fails, or invalidate ----> invalid -----------'
//! ```
//!
//! Sequence, writer and phase are private to this process; the header's live line is only published. Two locks:
//!
//! * `gate` orders bulk work. Reads share it; writes, `seal` and the moment in which a peer's turn begins own it. A scheduler only spins on it, for [`SPIN`]; dirty ones wait [`PATIENCE`]. A sealed segment is read without it.
//! * `slot` guards the phase and the pointer to the memory, for a few instructions. It is never held over a system call
//!   on a file, and `gate` is always taken before it.
//!
//! `close` takes only `slot`: what is in flight keeps the memory alive by its `Arc` and finishes on it.

mod seal;
mod transfer;

pub use seal::Sealed;
pub use transfer::View;

use crate::backend::{self, Anonymous, Backend, HugePages, Named, Object, Request};
use crate::budget::Charge;
use crate::descriptor::Descriptor;
use crate::error::{Error, Result};
use crate::header::{self, DATA_OFFSET, Header, LIVE, Live, PAGE, Page, STATE, State};
use crate::mapping::{Mapping, Permit};
use crate::{identity, machine, reaper};
use parking_lot::{Mutex, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The writer's number that stands for this VM.
pub const VM: u64 = 1;
const SPIN: Duration = Duration::from_micros(5);
const PATIENCE: Duration = Duration::from_millis(50);
/// More writes than anybody makes, and no sum with it overflows.
const MAX_SEQUENCE: u64 = 1 << 62;

/// How long an operation may wait for others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// On a scheduler: a few microseconds.
    Spin,
    /// On a dirty scheduler: some milliseconds.
    Patient,
}

/// What a segment shall be. Identity and time of creation in the header are filled in.
#[derive(Debug, Clone)]
pub struct Plan {
    pub header: Header,
    /// Where a named one appears.
    pub path: Option<PathBuf>,
    pub huge_pages: HugePages,
    pub reserve: bool,
    pub mapping_limit: u64,
    pub descriptor_reserve: u64,
}

impl Plan {
    pub fn anonymous(header: Header) -> Self {
        Plan {
            header,
            path: None,
            huge_pages: HugePages::No,
            reserve: true,
            mapping_limit: u64::MAX,
            descriptor_reserve: 0,
        }
    }

    pub fn named(header: Header, path: &Path) -> Self {
        Plan {
            path: Some(path.to_path_buf()),
            ..Plan::anonymous(header)
        }
    }
}

/// What this process itself knows of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Info {
    pub phase: PhaseName,
    pub size: u64,
    pub length: u64,
    pub generation: u64,
    pub writer: u64,
    pub access_count: u64,
    /// Milliseconds since 1970, by the clock of now.
    pub last_access: i64,
    pub views: u64,
    pub named: bool,
    pub huge_pages: bool,
    pub peers_write: bool,
    pub zero_copy: bool,
    pub mapped: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PhaseName {
    Allocated,
    Sealed,
    Invalid,
    Closed,
}

#[derive(Debug, Clone)]
enum Phase {
    Allocated,
    Sealed { copied: bool },
    Invalid(Arc<str>),
    Closed,
}

/// The object and, where the VM may map it, the mapping. Replaced as a whole.
#[derive(Debug)]
struct Memory {
    object: Option<Arc<dyn Object>>,
    mapping: Option<Arc<Mapping>>,
    charge: Option<Arc<Charge>>,
}

impl Memory {
    fn new(object: Arc<dyn Object>, mapping: Option<Mapping>, charge: Arc<Charge>) -> Arc<Self> {
        Arc::new(Memory {
            object: Some(object),
            mapping: mapping.map(Arc::new),
            charge: Some(charge),
        })
    }

    fn object(&self) -> &Arc<dyn Object> {
        match &self.object {
            Some(object) => object,
            // Only `drop` takes it out.
            None => unreachable!("memory is used after its drop"),
        }
    }

    fn charge(&self) -> Arc<Charge> {
        match &self.charge {
            Some(charge) => Arc::clone(charge),
            None => unreachable!("memory is used after its drop"),
        }
    }

    fn writable_mapping(&self) -> Option<&Mapping> {
        self.mapping.as_deref().filter(|mapping| mapping.is_writable())
    }

    /// A private copy of the header page as it stands in the object.
    fn header_page(&self) -> Result<Box<Page>> {
        if let Some(mapping) = &self.mapping {
            return Ok(mapping.header_page());
        }
        let mut page = Box::new([0; PAGE]);
        // SAFETY: the page is private and PAGE bytes long.
        let got = unsafe { self.object().read_at(0, page.as_mut_ptr(), PAGE) }?;
        if got < PAGE {
            return Err(Error::corrupted("size", got as u64, self.object().length()));
        }
        Ok(page)
    }

    fn publish_begin(&self, sequence: u64, writer: u64) -> Result<()> {
        match self.writable_mapping() {
            Some(mapping) => mapping.publish_begin(sequence, writer),
            // One system call orders before the next; the kernel copies forwards, the sequence first.
            None => self.object().write_at(LIVE as u64, &two_words(sequence, writer))?,
        }
        Ok(())
    }

    fn publish_end(&self, sequence: u64) -> Result<()> {
        match self.writable_mapping() {
            Some(mapping) => mapping.publish_end(sequence),
            None => self.object().write_at(LIVE as u64, &two_words(sequence, 0))?,
        }
        Ok(())
    }

    fn publish_state(&self, state: State) -> Result<()> {
        match self.writable_mapping() {
            Some(mapping) => mapping.publish_state(state as u32),
            None => self.object().write_at(STATE as u64, &(state as u32).to_le_bytes())?,
        }
        Ok(())
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        let (Some(object), Some(charge)) = (self.object.take(), self.charge.take()) else {
            return;
        };
        let bytes = object.length();
        // Nothing is in flight any more: the next VM may have it.
        object.release();
        // Without a mapping the last close is what frees the pages; with one, unmapping is, and closing is cheap.
        if self.mapping.is_none() && bytes >= reaper::LARGE && Arc::strong_count(&object) == 1 {
            let mark = (Arc::strong_count(&charge) == 1).then(|| charge.mark_closing());
            reaper::submit(bytes, move || {
                drop(object);
                drop(mark);
                drop(charge);
            });
        }
        // Otherwise the fields go here, and the mapping, which holds the charge too, after them.
    }
}

fn two_words(first: u64, second: u64) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&first.to_le_bytes());
    bytes[8..].copy_from_slice(&second.to_le_bytes());
    bytes
}

#[derive(Debug)]
struct Slot {
    phase: Phase,
    memory: Option<Arc<Memory>>,
}

#[derive(Debug)]
pub struct Segment {
    header: Header,
    /// The static part as it must stand in the object, where somebody else could change it.
    page: Option<Box<Page>>,
    length: u64,
    mapping_limit: u64,
    descriptor_reserve: u64,
    gate: RwLock<()>,
    slot: Mutex<Slot>,
    /// One end of a peer's turn at a time.
    ending: Mutex<()>,
    // Changed by who owns the gate, which orders them (Relaxed), and by the end of a peer's turn. Statistics read them
    // without either.
    sequence: AtomicU64,
    writer: AtomicU64,
    /// Whether a peer has ever had it. Set before the descriptor is made, so Relaxed: a peer that has one came later.
    exported: AtomicBool,
    // Statistics: Relaxed.
    access_count: AtomicU64,
    /// Monotonic: a step of the clock makes nothing look unused.
    last_use: AtomicI64,
    views: Arc<AtomicU64>,
}

impl Segment {
    /// Makes one. When it fails nothing is left: no descriptor, no mapping, no file, no charge.
    pub fn create(charge: Charge, plan: Plan) -> Result<Self> {
        let Plan {
            mut header,
            path,
            huge_pages,
            reserve,
            mapping_limit,
            descriptor_reserve,
        } = plan;
        header.named = path.is_some();
        header.identity = identity::own();
        header.created_at = u64::try_from(since_1970().as_micros()).unwrap_or(0);
        header.check()?;
        if header.peers_write && huge_pages != HugePages::No {
            // A peer that writes there can take the pool's last page and let the VM fault.
            return Err(Error::invalid_spec("huge_pages", "not for memory that peers may write"));
        }
        let request = Request {
            size: header.size,
            label: ["snakepit:", &header.id].concat(),
            path,
            mode: header.mode,
            peers_write: header.peers_write,
            huge_pages,
            reserve,
            descriptor_reserve,
        };
        let charge = Arc::new(charge);
        let (page, memory) = if header.named {
            let object = Named::create(request)?;
            let page = header.encode(Live::FRESH);
            object.write_at(0, &page[..])?;
            object.publish()?;
            (Some(Box::new(page)), Memory::new(Arc::new(object), None, charge))
        } else {
            let permit = Permit::take(mapping_limit)?;
            let object = Anonymous::create(request)?;
            header.huge_pages = object.huge_pages();
            let page = header.encode(Live::FRESH);
            let length = object.length() as usize;
            let mapping = Mapping::writable(object.fd(), length, permit, Arc::clone(&charge)).map_err(|e| e.0)?;
            mapping.write_header(&page);
            object.publish()?;
            let page = header.peers_write.then(|| Box::new(page));
            (page, Memory::new(Arc::new(object), Some(mapping), charge))
        };
        Ok(Self::assemble(
            header,
            page,
            memory,
            Phase::Allocated,
            0,
            mapping_limit,
            descriptor_reserve,
        ))
    }

    /// Opens a named object that exists, takes its lock, and checks its header.
    ///
    /// Data of which nobody knows what they are come as an invalid segment: of a writer that ended in the middle, or
    /// marked invalid. It can be closed and unlinked, nothing else.
    pub fn open(charge: Charge, path: &Path, descriptor_reserve: u64) -> Result<(Self, Live)> {
        let mut object = Named::open(path, descriptor_reserve)?;
        let page = object.header_page()?;
        let (header, live) = Header::decode(&page, object.length())?;
        if !header.named {
            return Err(Error::corrupted("flags", "anonymous", "named"));
        }
        let expected = backend::object_length(header.size, machine::page_size())?;
        if object.length() != expected {
            return Err(Error::corrupted("size", object.length(), expected));
        }
        let Live {
            sequence,
            writer,
            state,
        } = live;
        if sequence > MAX_SEQUENCE {
            return Err(Error::corrupted(
                "sequence",
                sequence,
                format!("at most {MAX_SEQUENCE}"),
            ));
        }
        let phase = match state {
            State::Freed => return Err(Error::corrupted("state", "freed", "allocated or sealed")),
            State::Invalid => Phase::Invalid("marked invalid in its header".into()),
            _ if sequence % 2 == 1 => {
                let reason = format!("a writer ({writer}) ended in the middle of a write, sequence {sequence}");
                Phase::Invalid(reason.into())
            }
            State::Allocated => Phase::Allocated,
            State::Sealed => Phase::Sealed { copied: false },
        };
        if !matches!(phase, Phase::Invalid(_)) {
            object.fill_holes()?;
        }
        object.set_peers_write(header.peers_write);
        let memory = Memory::new(Arc::new(object), None, Arc::new(charge));
        Ok((
            Self::assemble(
                header,
                Some(page),
                memory,
                phase,
                sequence,
                u64::MAX,
                descriptor_reserve,
            ),
            live,
        ))
    }

    fn assemble(
        header: Header,
        page: Option<Box<Page>>,
        memory: Arc<Memory>,
        phase: Phase,
        sequence: u64,
        mapping_limit: u64,
        descriptor_reserve: u64,
    ) -> Self {
        Segment {
            length: memory.object().length(),
            header,
            page,
            mapping_limit,
            descriptor_reserve,
            gate: RwLock::new(()),
            ending: Mutex::new(()),
            slot: Mutex::new(Slot {
                phase,
                memory: Some(memory),
            }),
            sequence: AtomicU64::new(sequence),
            writer: AtomicU64::new(0),
            exported: AtomicBool::new(false),
            access_count: AtomicU64::new(0),
            last_use: AtomicI64::new(monotonic_ms()),
            views: Arc::default(),
        }
    }

    /// What the header says, as this VM has written or checked it.
    pub fn header(&self) -> &Header {
        &self.header
    }

    pub fn size(&self) -> u64 {
        self.header.size
    }

    pub fn info(&self) -> Info {
        let slot = self.slot.lock();
        let mapping = slot.memory.as_ref().and_then(|memory| memory.mapping.as_ref());
        Info {
            phase: match &slot.phase {
                Phase::Allocated => PhaseName::Allocated,
                Phase::Sealed { .. } => PhaseName::Sealed,
                Phase::Invalid(_) => PhaseName::Invalid,
                Phase::Closed => PhaseName::Closed,
            },
            size: self.header.size,
            length: self.length,
            generation: self.sequence.load(Ordering::Relaxed) / 2,
            writer: self.writer.load(Ordering::Relaxed),
            access_count: self.access_count.load(Ordering::Relaxed),
            last_access: wall_ms().saturating_sub_unsigned(self.idle()),
            views: self.views.load(Ordering::Relaxed),
            named: self.header.named,
            huge_pages: self.header.huge_pages,
            peers_write: self.header.peers_write,
            zero_copy: mapping.is_some_and(|mapping| !mapping.is_writable()),
            mapped: mapping.is_some(),
        }
    }

    /// Completed writes.
    pub fn generation(&self) -> Result<u64> {
        match &self.slot.lock().phase {
            Phase::Allocated | Phase::Sealed { .. } => Ok(self.sequence.load(Ordering::Relaxed) / 2),
            other => Err(refusal(other)),
        }
    }

    /// Milliseconds since the last use.
    pub fn idle(&self) -> u64 {
        let since = monotonic_ms().saturating_sub(self.last_use.load(Ordering::Relaxed));
        u64::try_from(since).unwrap_or(0)
    }

    /// Counts as a use.
    pub fn touch(&self) {
        self.access_count.fetch_add(1, Ordering::Relaxed);
        self.last_use.store(monotonic_ms(), Ordering::Relaxed);
    }

    /// Bytes of memory behind it.
    pub fn resident(&self) -> Result<u64> {
        self.object()?.resident()
    }

    /// Gives the memory of a range of the data back; it then reads as zeros. A write like any other.
    pub fn punch(&self, offset: u64, length: u64, wait: Wait) -> Result<u64> {
        self.range(offset, length)?;
        self.take_turn(wait, |memory| memory.object().punch(DATA_OFFSET + offset, length))
    }

    /// A descriptor for a peer.
    pub fn export(&self, writable: bool) -> Result<Descriptor> {
        let sealed = matches!(self.slot.lock().phase, Phase::Sealed { .. });
        if writable && sealed {
            return Err(Error::ReadOnly);
        }
        let object = self.object()?;
        self.exported.store(true, Ordering::Relaxed);
        object.export(writable, self.descriptor_reserve)
    }

    /// A peer starts writing. Until its turn ends reads and writes of the VM are refused.
    pub fn write_begin(&self, writer: u64) -> Result<()> {
        if writer <= VM {
            return Err(Error::invalid("writer: numbers over 1 are peers'"));
        }
        let _gate = self.exclusive(Wait::Spin)?;
        let memory = self.writable()?;
        self.nobody_writes()?;
        self.check(&memory)?;
        let sequence = self.sequence.load(Ordering::Relaxed) + 1;
        memory.publish_begin(sequence, writer)?;
        self.writer.store(writer, Ordering::Relaxed);
        self.sequence.store(sequence, Ordering::Relaxed);
        self.touch();
        Ok(())
    }

    /// A peer has finished, or somebody finishes for it because it died.
    ///
    /// Never `Busy`, and without the gate: as long as the turn stands, whoever owns the gate finds a writer and leaves.
    pub fn write_end(&self, writer: u64) -> Result<u64> {
        let _ending = self.ending.lock();
        let current = self.writer.load(Ordering::Relaxed);
        if current != writer || writer <= VM {
            return Err(Error::NotWriter { writer: current });
        }
        let sequence = self.sequence.load(Ordering::Relaxed) + 1;
        // The memory is let go before the turn ends: then nobody is in the way of `seal`.
        let published = self.writable().and_then(|memory| memory.publish_end(sequence));
        // The turn ends whatever has become of the memory.
        self.sequence.store(sequence, Ordering::Relaxed);
        // Release: pairs with `nobody_writes`. Who finds no writer counts on from this sequence.
        self.writer.store(0, Ordering::Release);
        published?;
        self.touch();
        Ok(sequence / 2)
    }

    /// Nobody reads it any more. Views that exist live on: their memory cannot change.
    pub fn invalidate(&self, reason: &str) {
        let memory = {
            let mut slot = self.slot.lock();
            let writable = match slot.phase {
                Phase::Allocated => true,
                Phase::Sealed { .. } => false,
                Phase::Invalid(_) | Phase::Closed => return,
            };
            slot.phase = Phase::Invalid(reason.into());
            // The mapping is written under the lock, so that `seal` finds nobody else holding it.
            match slot.memory.as_ref().filter(|_| writable || self.header.named) {
                Some(memory) if memory.mapping.is_some() => {
                    let _ = memory.publish_state(State::Invalid);
                    None
                }
                other => other.map(Arc::clone),
            }
        };
        if let Some(memory) = memory {
            self.mark_object(&memory, State::Invalid);
        }
    }

    /// Gives the memory up. Operations in flight finish, views live on, large memory is unmapped by the reaper.
    pub fn close(&self, unlink: bool) {
        let (memory, writable) = {
            let mut slot = self.slot.lock();
            let writable = !matches!(slot.phase, Phase::Sealed { .. });
            slot.phase = Phase::Closed;
            (slot.memory.take(), writable)
        };
        let Some(memory) = memory else { return };
        if self.header.named {
            // Without `unlink` it goes on living for others: nothing is freed.
            if unlink {
                self.mark_object(&memory, State::Freed);
                let _ = memory.object().unlink();
            }
        } else if writable {
            let _ = memory.publish_state(State::Freed);
        }
    }

    /// The state in a file's header, for peers. Best effort, and never into a file that has been truncated or replaced.
    fn mark_object(&self, memory: &Memory, state: State) {
        if memory.object().verify().is_ok() {
            let _ = memory.publish_state(state);
        }
    }

    fn range(&self, offset: u64, length: u64) -> Result<()> {
        match offset.checked_add(length) {
            Some(end) if end <= self.header.size => Ok(()),
            _ => Err(Error::OutOfRange {
                offset,
                length,
                size: self.header.size,
            }),
        }
    }

    fn shared(&self, wait: Wait) -> Result<RwLockReadGuard<'_, ()>> {
        let guard = match wait {
            Wait::Spin => spin(|| self.gate.try_read()),
            Wait::Patient => self.gate.try_read_for(PATIENCE),
        };
        // Only an owner of the gate is in a reader's way: this VM, if it is not a peer.
        guard.ok_or_else(|| Error::Busy {
            writer: self.writer.load(Ordering::Relaxed).max(VM),
        })
    }

    fn exclusive(&self, wait: Wait) -> Result<RwLockWriteGuard<'_, ()>> {
        let guard = match wait {
            Wait::Spin => spin(|| self.gate.try_write()),
            Wait::Patient => self.gate.try_write_for(PATIENCE),
        };
        guard.ok_or_else(|| Error::Busy {
            writer: self.writer.load(Ordering::Relaxed),
        })
    }

    /// The memory, for who holds the gate.
    fn current(&self) -> Result<(Arc<Memory>, bool)> {
        let slot = self.slot.lock();
        match (&slot.phase, &slot.memory) {
            (Phase::Allocated, Some(memory)) => Ok((Arc::clone(memory), false)),
            (Phase::Sealed { .. }, Some(memory)) => Ok((Arc::clone(memory), true)),
            (phase, _) => Err(refusal(phase)),
        }
    }

    /// The memory, if it is sealed: no gate needed. Otherwise nothing is held: who has no gate must not keep `seal`
    /// from being the only one that holds the memory.
    fn sealed(&self) -> Result<Option<Arc<Memory>>> {
        let slot = self.slot.lock();
        match (&slot.phase, &slot.memory) {
            (Phase::Allocated, _) => Ok(None),
            (Phase::Sealed { .. }, Some(memory)) => Ok(Some(Arc::clone(memory))),
            (phase, _) => Err(refusal(phase)),
        }
    }

    fn writable(&self) -> Result<Arc<Memory>> {
        match self.current()? {
            (memory, false) => Ok(memory),
            (_, true) => Err(Error::Sealed),
        }
    }

    fn object(&self) -> Result<Arc<dyn Object>> {
        let slot = self.slot.lock();
        match (&slot.phase, &slot.memory) {
            (Phase::Allocated | Phase::Sealed { .. }, Some(memory)) => Ok(Arc::clone(memory.object())),
            (phase, _) => Err(refusal(phase)),
        }
    }

    fn nobody_writes(&self) -> Result<()> {
        // Acquire: pairs with the end of a peer's turn, which does not take the gate.
        match self.writer.load(Ordering::Acquire) {
            0 => Ok(()),
            writer => Err(Error::Busy { writer }),
        }
    }

    /// Copy, check, use: whether the object still is what this VM made, wherever somebody else could have changed it.
    fn check(&self, memory: &Memory) -> Result<()> {
        let Some(expected) = &self.page else { return Ok(()) };
        let checked = memory
            .object()
            .verify()
            .and_then(|()| memory.header_page())
            .and_then(|page| header::compare(&page, expected, self.length).map_err(Error::from));
        checked.inspect_err(|error| self.condemn(error))
    }

    /// Remembers the first corruption as the reason for all that follows.
    fn condemn(&self, error: &Error) {
        if !matches!(error, Error::Corrupted(_)) {
            return;
        }
        let mut slot = self.slot.lock();
        if matches!(slot.phase, Phase::Invalid(_) | Phase::Closed) {
            return;
        }
        slot.phase = Phase::Invalid(error.to_string().into());
        // A file that somebody has put in the place of ours is not written to.
        if let Some(mapping) = slot.memory.as_ref().and_then(|memory| memory.writable_mapping()) {
            mapping.publish_state(State::Invalid as u32);
        }
    }
}

impl Drop for Segment {
    fn drop(&mut self) {
        self.close(false);
    }
}

fn refusal(phase: &Phase) -> Error {
    match phase {
        Phase::Invalid(reason) => Error::invalid(&**reason),
        Phase::Closed => Error::Closed,
        // The memory is out of the slot only when the phase is Closed.
        Phase::Allocated | Phase::Sealed { .. } => Error::Closed,
    }
}

fn spin<T>(mut attempt: impl FnMut() -> Option<T>) -> Option<T> {
    if let Some(value) = attempt() {
        return Some(value);
    }
    let deadline = Instant::now() + SPIN;
    loop {
        for _ in 0..32 {
            std::hint::spin_loop();
        }
        if let Some(value) = attempt() {
            return Some(value);
        }
        if Instant::now() >= deadline {
            return None;
        }
    }
}

fn since_1970() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// For the time of the last use, which every view and read notes: to the kernel's tick, for a tenth of what the exact time
/// costs. That is 4 ms at most, and some tens of them where a hypervisor keeps the CPU that ticks from running.
fn monotonic_ms() -> i64 {
    use nix::time::{ClockId, clock_gettime};
    clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE).map_or(0, |now| now.tv_sec() * 1000 + now.tv_nsec() / 1_000_000)
}

fn wall_ms() -> i64 {
    i64::try_from(since_1970().as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::budget::Budget;

    #[test]
    fn a_turn_can_always_be_ended() {
        let plan = Plan::anonymous(Header::draft("shm_turn", "tests", 100));
        let segment = Segment::create(Budget::new().charge(1, 1).unwrap(), plan).unwrap();
        segment.write_begin(9).unwrap();
        // Somebody who looks whether he may read, and is put to sleep by the kernel just then.
        let gate = segment.gate.read();
        assert_eq!(segment.write_end(9), Ok(1));
        drop(gate);
        assert_eq!(segment.write(0, &[b"x"], Wait::Spin), Ok(2));
    }
}
