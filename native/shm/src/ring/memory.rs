//! The memory under a ring: a sealed memfd, mapped; under loom a table of modelled words.

#[cfg(not(loom))]
pub(crate) use real::Memory;

#[cfg(loom)]
pub(crate) use model::Memory;

#[cfg(not(loom))]
mod real {
    use crate::mapping::Permit;
    use crate::reaper;
    use crate::ring::atomic::AtomicU64;
    use crate::ring::error::{Error, Result};
    use memmap2::{Advice, MmapOptions, MmapRaw};
    use nix::errno::Errno;
    use std::os::fd::{AsRawFd, BorrowedFd};

    #[derive(Debug)]
    pub(crate) struct Memory {
        /// Owned for its drop; reached through `start`. `None` only while it is dropped.
        held: Option<Held>,
        start: *mut u8,
        length: usize,
    }

    /// In this order: the permit is given back when the memory is really gone.
    #[derive(Debug)]
    struct Held {
        #[expect(dead_code, reason = "owned for its drop")]
        map: MmapRaw,
        /// The VM's; a worker has one mapping and needs no right to it.
        permit: Option<Permit>,
    }

    // SAFETY: a mapping belongs to the process, not to a thread; every access is an atomic word or a raw copy.
    unsafe impl Send for Memory {}
    // SAFETY: as above.
    unsafe impl Sync for Memory {}

    impl Memory {
        /// Maps a memfd that is sealed against shrinking and at least `length` long.
        pub fn map(fd: BorrowedFd<'_>, length: usize, permit: Option<Permit>) -> Result<Self> {
            let map = MmapOptions::new()
                .len(length)
                .map_raw(fd.as_raw_fd())
                .map_err(|error| Error::os("mmap", Errno::from_raw(error.raw_os_error().unwrap_or(0))))?;
            // Best effort: without it a core dump is larger, nothing else.
            let _ = map.advise(Advice::DontDump);
            let start = map.as_mut_ptr();
            Ok(Memory {
                held: Some(Held { map, permit }),
                start,
                length,
            })
        }

        /// Takes the page faults of the first `length` bytes now. Best effort: before Linux 5.14 they come one by one.
        pub fn populate(&self, length: usize) {
            let length = length.min(self.length);
            // SAFETY: the range begins with the mapping and lies inside; the advice changes no contents.
            unsafe { libc::madvise(self.start.cast(), length, libc::MADV_POPULATE_WRITE) };
        }

        /// The word at an offset of the layout.
        #[inline(always)]
        pub fn word(&self, offset: usize) -> &AtomicU64 {
            debug_assert!(offset.is_multiple_of(8) && offset + 8 <= self.length);
            // SAFETY: offsets come out of the layout with private, masked indices, so they lie inside the mapping, which
            // cannot shrink and lives as long as `self`; aligned to 8; words are only ever used atomically.
            unsafe { AtomicU64::from_ptr(self.start.add(offset).cast()) }
        }

        /// A pointer to `length` bytes at an offset.
        #[inline]
        pub fn at(&self, offset: usize, length: usize) -> *mut u8 {
            assert!(
                offset.checked_add(length).is_some_and(|end| end <= self.length),
                "outside the ring"
            );
            // SAFETY: checked just above.
            unsafe { self.start.add(offset) }
        }
    }

    impl Drop for Memory {
        fn drop(&mut self) {
            let Some(held) = self.held.take() else { return };
            let bytes = self.length as u64;
            // The VM drops its rings on schedulers. A worker's process ends with its ring: no thread for that.
            if held.permit.is_some() && bytes >= reaper::LARGE {
                reaper::submit(bytes, move || drop(held));
            }
        }
    }
}

#[cfg(loom)]
mod model {
    use crate::ring::atomic::AtomicU64;
    use crate::ring::layout::Layout;

    /// The control words alone: payloads of the models are tiny, and so travel in words.
    #[derive(Debug)]
    pub(crate) struct Memory {
        words: Vec<AtomicU64>,
    }

    impl Memory {
        pub fn model(layout: &Layout) -> Self {
            let length = layout.events + layout.plan.event_bytes as usize;
            Memory {
                words: (0..length / 8).map(|_| AtomicU64::new(0)).collect(),
            }
        }

        pub fn word(&self, offset: usize) -> &AtomicU64 {
            &self.words[offset / 8]
        }

        pub fn at(&self, _offset: usize, _length: usize) -> *mut u8 {
            unreachable!("the models have no payload areas")
        }
    }
}
