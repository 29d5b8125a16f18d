//! Mappings: owned, counted, bounded, never in a core dump, unmapped by the reaper when large.

use crate::budget::Charge;
use crate::error::{Error, Result};
use crate::header::{LIVE, PAGE, Page, STATE};
use crate::{copy, reaper};
use memmap2::{Advice, Mmap, MmapOptions, MmapRaw};
use nix::errno::Errno;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};

// Counts permits. The compare-and-swap keeps the limit; nothing else is ordered by it.
static LIVE_MAPPINGS: AtomicU64 = AtomicU64::new(0);

/// Mappings of this library in this process, those that the reaper has not unmapped yet included.
pub fn live() -> u64 {
    LIVE_MAPPINGS.load(Ordering::Relaxed)
}

/// The right to one mapping. At `vm.max_map_count` even `malloc` fails, so ours are bounded well below it.
#[derive(Debug)]
pub struct Permit(());

impl Permit {
    pub fn take(limit: u64) -> Result<Self> {
        LIVE_MAPPINGS
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |live| {
                (live < limit).then_some(live + 1)
            })
            .map(|_| Permit(()))
            .map_err(|live| Error::TooManyMappings { limit, live })
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        LIVE_MAPPINGS.fetch_sub(1, Ordering::Relaxed);
    }
}

#[derive(Debug)]
enum Memory {
    /// Shared and writable. Peers may write too: no reference into it, ever.
    #[expect(dead_code, reason = "owned for its drop; reached through `start`")]
    Writable(MmapRaw),
    /// Private and read-only, over an object that the kernel has sealed against writing and shrinking.
    Sealed(Mmap),
}

#[derive(Debug)]
struct Held {
    memory: Memory,
    permit: Permit,
    charge: Arc<Charge>,
}

/// A whole object, header page and data, in our address space.
#[derive(Debug)]
pub struct Mapping {
    held: Option<Held>,
    start: *mut u8,
    length: usize,
    /// Up to here a writable mapping has its page tables. Only a hint (Relaxed): wrong, it costs time.
    touched: AtomicUsize,
}

/// From here on a first write has its pages mapped by one system call instead of a fault for each.
const POPULATE_FROM: usize = 64 << 10;

// SAFETY: a mapping belongs to the process, not to a thread, and every access through `start` is a raw copy or an atomic.
unsafe impl Send for Mapping {}
// SAFETY: as above; concurrent copies may tear, which the callers' locks exclude where it matters.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `length` bytes shared and writable. The object must be sealed against shrinking.
    ///
    /// When it fails, the permit comes back with the error.
    pub fn writable(
        fd: BorrowedFd<'_>,
        length: usize,
        permit: Permit,
        charge: Arc<Charge>,
    ) -> std::result::Result<Self, (Error, Permit)> {
        match MmapOptions::new().len(length).map_raw(fd.as_raw_fd()) {
            Ok(raw) => {
                // Best effort: without it a core dump is larger, nothing else.
                let _ = raw.advise(Advice::DontDump);
                let start = raw.as_mut_ptr();
                Ok(Mapping {
                    held: Some(Held {
                        memory: Memory::Writable(raw),
                        permit,
                        charge,
                    }),
                    start,
                    length,
                    // The header is written before anything else.
                    touched: AtomicUsize::new(PAGE),
                })
            }
            Err(error) => Err((map_error(&error), permit)),
        }
    }

    /// Maps `length` bytes private and read-only.
    ///
    /// # Safety
    /// The object is sealed against writing and shrinking (`F_SEAL_WRITE`, `F_SEAL_SHRINK`) and at least `length` long.
    pub unsafe fn sealed(
        fd: BorrowedFd<'_>,
        length: usize,
        permit: Permit,
        charge: Arc<Charge>,
    ) -> std::result::Result<Self, (Error, Permit)> {
        // SAFETY: sealed, says the caller: the bytes can neither change nor go away.
        match unsafe { MmapOptions::new().len(length).map_copy_read_only(fd.as_raw_fd()) } {
            Ok(map) => {
                let _ = map.advise(Advice::DontDump);
                let start = map.as_ptr().cast_mut();
                Ok(Mapping {
                    held: Some(Held {
                        memory: Memory::Sealed(map),
                        permit,
                        charge,
                    }),
                    start,
                    length,
                    touched: AtomicUsize::new(0),
                })
            }
            Err(error) => Err((map_error(&error), permit)),
        }
    }

    /// Unmaps here and now (dirty schedulers only) and keeps the right to map again.
    pub fn unmap(mut self) -> Option<(Permit, Arc<Charge>)> {
        self.held.take().map(|Held { memory, permit, charge }| {
            drop(memory);
            (permit, charge)
        })
    }

    pub fn is_writable(&self) -> bool {
        matches!(
            &self.held,
            Some(Held {
                memory: Memory::Writable(_),
                ..
            })
        )
    }

    /// The bytes, if nobody can change them any more.
    pub fn sealed_bytes(&self) -> Option<&[u8]> {
        match &self.held {
            Some(Held {
                memory: Memory::Sealed(map),
                ..
            }) => Some(map),
            _ => None,
        }
    }

    /// Copies `length` bytes at `offset` of the object out. The range must lie inside.
    ///
    /// # Safety
    /// `target` is private memory of at least `length` bytes.
    pub unsafe fn copy_out(&self, offset: usize, target: *mut u8, length: usize) {
        let source = self.at(offset, length);
        // SAFETY: `at` has checked the source, which cannot shrink; the caller vouches for the target.
        unsafe { copy::bytes(target, source, length) };
    }

    /// Copies private bytes to `offset` of the object. The range must lie inside, the mapping be writable.
    pub fn copy_in(&self, offset: usize, source: &[u8]) {
        let target = self.at_writable(offset, source.len());
        // SAFETY: the target is checked and cannot shrink; the source is an ordinary slice, hence not this mapping.
        unsafe { copy::bytes(target, source.as_ptr(), source.len()) };
    }

    /// Before a large write: maps the pages of the range that have not been written through this mapping yet.
    ///
    /// A fault a page makes the first 64 MiB take 40 ms, this and the copy 21 ms. Done again it would cost half a copy,
    /// hence the mark.
    pub fn prepare(&self, offset: usize, length: usize) {
        let touched = self.touched.load(Ordering::Relaxed);
        let end = offset.saturating_add(length).min(self.length);
        if length < POPULATE_FROM || end <= touched || !self.is_writable() {
            return;
        }
        let page = PAGE.max(crate::machine::page_size() as usize);
        let first = offset.max(touched) / page * page;
        // SAFETY: the range lies in this mapping and begins with a page; the advice changes no contents. Best effort: before
        // Linux 5.14 it is EINVAL, and the pages fault in one by one.
        unsafe { libc::madvise(self.start.add(first).cast(), end - first, libc::MADV_POPULATE_WRITE) };
        if offset <= touched {
            self.touched.store(end, Ordering::Relaxed);
        }
    }

    /// A pointer for the kernel to read or write `length` bytes at `offset`. The mapping must be writable.
    pub(crate) fn at_writable(&self, offset: usize, length: usize) -> *mut u8 {
        assert!(self.is_writable(), "a sealed mapping is never written");
        self.at(offset, length)
    }

    /// A private copy of the header page.
    pub fn header_page(&self) -> Box<Page> {
        let mut page = Box::new([0; PAGE]);
        // SAFETY: the page is private and PAGE bytes long.
        unsafe { self.copy_out(0, page.as_mut_ptr(), PAGE) };
        page
    }

    /// Writes the first page before anybody else has the object.
    pub fn write_header(&self, page: &Page) {
        self.copy_in(0, page);
    }

    /// Publishes that `writer` has begun: an odd sequence. Everything the caller writes afterwards comes later for
    /// every reader too.
    pub fn publish_begin(&self, sequence: u64, writer: u64) {
        // Relaxed, then a Release fence: pairs with the Acquire fence in the reader (Python: the two loads of the
        // sequence around its copy). Whoever sees any of the data also sees the odd sequence.
        self.word(LIVE).store(sequence, Ordering::Relaxed);
        fence(Ordering::Release);
        self.word(LIVE + 8).store(writer, Ordering::Relaxed);
    }

    /// Publishes that the writer has finished: an even sequence.
    pub fn publish_end(&self, sequence: u64) {
        self.word(LIVE + 8).store(0, Ordering::Relaxed);
        // Release: pairs with the reader's first (Acquire) load. Whoever sees the even number sees all the data.
        self.word(LIVE).store(sequence, Ordering::Release);
    }

    /// Publishes the state for peers.
    pub fn publish_state(&self, state: u32) {
        let target = self.at_writable(STATE, 4).cast::<u32>();
        // SAFETY: inside the mapping, aligned (the mapping is to a page, STATE to 4), and only ever used atomically.
        // Release: a peer that sees the state sees what was written before it (its Acquire load).
        unsafe { AtomicU32::from_ptr(target) }.store(state, Ordering::Release);
    }

    fn word(&self, offset: usize) -> &AtomicU64 {
        let target = self.at_writable(offset, 8).cast::<u64>();
        // SAFETY: inside the mapping, which lives as long as `self`; aligned to 8; both sides use it atomically only.
        unsafe { AtomicU64::from_ptr(target) }
    }

    fn at(&self, offset: usize, length: usize) -> *mut u8 {
        let end = offset.checked_add(length);
        assert!(end.is_some_and(|end| end <= self.length), "outside the mapping");
        // SAFETY: checked just above.
        unsafe { self.start.add(offset) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        let Some(held) = self.held.take() else { return };
        let bytes = self.length as u64;
        if bytes < reaper::LARGE {
            return release(held);
        }
        // The last one takes the charge along: say that its bytes are on their way back.
        let mark = (Arc::strong_count(&held.charge) == 1).then(|| held.charge.mark_closing());
        reaper::submit(bytes, move || {
            // The mark ends before the charge does: never both "closing" and no longer "used".
            let Held { memory, permit, charge } = held;
            drop(memory);
            drop(permit);
            drop(mark);
            drop(charge);
        });
    }
}

/// Memory first: a permit or a charge is given back only when the memory is really gone.
fn release(Held { memory, permit, charge }: Held) {
    drop(memory);
    drop(permit);
    drop(charge);
}

fn map_error(error: &std::io::Error) -> Error {
    Error::os("mmap", Errno::from_raw(error.raw_os_error().unwrap_or(0)))
}
