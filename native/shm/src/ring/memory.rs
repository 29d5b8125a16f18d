//! The memory under a ring: a sealed memfd, mapped; under loom a table of modelled words.

use super::atomic::AtomicU64;
use super::error::{Error, Result};
use nix::errno::Errno;

#[cfg(not(loom))]
#[derive(Debug)]
pub(crate) struct Memory {
    map: memmap2::MmapRaw,
    start: *mut u8,
    length: usize,
}

#[cfg(not(loom))]
// SAFETY: a mapping belongs to the process, not to a thread; every access is an atomic word or a raw copy.
unsafe impl Send for Memory {}
#[cfg(not(loom))]
// SAFETY: as above.
unsafe impl Sync for Memory {}

#[cfg(not(loom))]
impl Memory {
    /// Maps a memfd that is sealed against shrinking and at least `length` long.
    pub fn map(fd: std::os::fd::BorrowedFd<'_>, length: usize) -> Result<Self> {
        use std::os::fd::AsRawFd;
        let map = memmap2::MmapOptions::new()
            .len(length)
            .map_raw(fd.as_raw_fd())
            .map_err(|error| Error::os("mmap", Errno::from_raw(error.raw_os_error().unwrap_or(0))))?;
        // Best effort: without it a core dump is larger, nothing else.
        let _ = map.advise(memmap2::Advice::DontDump);
        let start = map.as_mut_ptr();
        Ok(Memory { map, start, length })
    }

    /// The word at an offset of the layout.
    #[inline(always)]
    pub fn word(&self, offset: usize) -> &AtomicU64 {
        debug_assert!(offset.is_multiple_of(8) && offset + 8 <= self.length);
        // SAFETY: offsets come out of the layout with private, masked indices, so they lie inside the mapping, which
        // cannot shrink and lives as long as `self`; aligned to 8; control words are only ever used atomically.
        unsafe { AtomicU64::from_ptr(self.start.add(offset).cast()) }
    }

    /// A pointer to `length` bytes at an offset that the caller has checked.
    #[inline(always)]
    pub fn at(&self, offset: usize, length: usize) -> *mut u8 {
        assert!(
            offset.checked_add(length).is_some_and(|end| end <= self.length),
            "outside the ring"
        );
        // SAFETY: checked just above.
        unsafe { self.start.add(offset) }
    }

    pub fn length(&self) -> usize {
        debug_assert_eq!(self.map.len(), self.length);
        self.length
    }
}
