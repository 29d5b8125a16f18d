//! Bytes in, bytes out, and views.

use super::{Memory, Segment, VM, Wait};
use crate::backend;
use crate::error::{Error, Result};
use crate::header::DATA_OFFSET;
use crate::mapping::Mapping;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::{Mode, SFlag, fstat};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Between two files through private memory, this much at once.
const BUFFER: usize = 1 << 20;

impl Segment {
    /// Whether there are `length` bytes at `offset`, before anything is allocated for them.
    pub fn check_range(&self, offset: u64, length: u64) -> Result<()> {
        self.range(offset, length)
    }

    /// Copies the whole of `target` out, from `offset` of the data. Never torn by a write of this VM or a peer's turn.
    pub fn read(&self, offset: u64, target: &mut [MaybeUninit<u8>], wait: Wait) -> Result<()> {
        self.range(offset, target.len() as u64)?;
        if let Some(memory) = self.sealed()? {
            // Of a named one only the header is sealed: whoever can write the file still can.
            if self.header().named {
                self.check(&memory)?;
            }
            self.copy_out(&memory, offset, target)?;
        } else {
            let _gate = self.shared(wait)?;
            self.nobody_writes()?;
            let (memory, _) = self.current()?;
            self.check(&memory)?;
            self.copy_out(&memory, offset, target)?;
        }
        self.touch();
        Ok(())
    }

    /// Copies the parts in, one behind the other. Answers the new generation.
    pub fn write(&self, offset: u64, parts: &[&[u8]], wait: Wait) -> Result<u64> {
        let length = parts
            .iter()
            .try_fold(0u64, |sum, part| sum.checked_add(part.len() as u64));
        let length = length.unwrap_or(u64::MAX);
        self.range(offset, length)?;
        self.take_turn(wait, |memory| {
            let mut at = DATA_OFFSET + offset;
            if let Some(mapping) = memory.writable_mapping() {
                mapping.prepare(at as usize, length as usize);
            }
            for part in parts.iter().filter(|part| !part.is_empty()) {
                match memory.writable_mapping() {
                    Some(mapping) => mapping.copy_in(at as usize, part),
                    None => memory.object().write_at(at, part)?,
                }
                at += part.len() as u64;
            }
            Ok(())
        })
    }

    /// Copies `length` bytes of a file, from `file_offset`, to the start of the data.
    pub fn fill(&self, path: &Path, file_offset: u64, length: u64) -> Result<u64> {
        self.range(0, length)?;
        // O_NONBLOCK: a FIFO with this name must not hold us up before it is recognised.
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
        let file = open(path, flags, Mode::empty()).map_err(|errno| match errno {
            Errno::ENOENT => Error::NotFound,
            Errno::ENXIO => Error::NotRegularFile,
            errno => Error::os("open", errno),
        })?;
        let stat = fstat(&file).map_err(|errno| Error::os("fstat", errno))?;
        if SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT != SFlag::S_IFREG {
            return Err(Error::NotRegularFile);
        }
        let end = file_offset.checked_add(length).ok_or(Error::FileTooBig)?;
        let found = u64::try_from(stat.st_size).unwrap_or(0);
        if found < end {
            return Err(Error::FileChanged { expected: end, found });
        }
        self.take_turn(Wait::Patient, |memory| {
            fill_from(memory, file.as_fd(), file_offset, length as usize)
        })
    }

    /// What `view` checks and notes, for who has a view of the whole already.
    pub fn look(&self, offset: u64, length: u64) -> Result<()> {
        self.range(offset, length)?;
        self.sealed()?.ok_or(Error::NotZeroCopy)?;
        self.touch();
        Ok(())
    }

    /// A part of sealed memory, without copying.
    pub fn view(&self, offset: u64, length: u64) -> Result<View> {
        self.range(offset, length)?;
        let memory = self.sealed()?.ok_or(Error::NotZeroCopy)?;
        let mapping = memory
            .mapping
            .as_ref()
            .filter(|mapping| !mapping.is_writable())
            .ok_or(Error::NotZeroCopy)?;
        self.touch();
        self.views.fetch_add(1, Ordering::Relaxed);
        Ok(View {
            mapping: Arc::clone(mapping),
            start: (DATA_OFFSET + offset) as usize,
            length: length as usize,
            count: Arc::clone(&self.views),
        })
    }

    /// One write of this VM: the gate, the checks, an odd sequence, `work`, an even sequence.
    ///
    /// When `work` fails the turn still ends, and counts: part of the data may have changed.
    pub(super) fn take_turn(&self, wait: Wait, work: impl FnOnce(&Memory) -> Result<()>) -> Result<u64> {
        if self.sealed()?.is_some() {
            return Err(Error::Sealed);
        }
        let _gate = self.exclusive(wait)?;
        let memory = self.writable()?;
        self.nobody_writes()?;
        self.check(&memory)?;
        let turn = Turn::begin(self, &memory)?;
        let outcome = work(&memory);
        let generation = turn.end();
        outcome?;
        self.touch();
        generation
    }

    fn copy_out(&self, memory: &Memory, offset: u64, target: &mut [MaybeUninit<u8>]) -> Result<()> {
        let at = DATA_OFFSET + offset;
        let start = target.as_mut_ptr().cast::<u8>();
        if let Some(mapping) = &memory.mapping {
            // SAFETY: the target is a private slice of this length.
            unsafe { mapping.copy_out(at as usize, start, target.len()) };
            return Ok(());
        }
        // SAFETY: the target is a private slice of this length.
        let got = unsafe { memory.object().read_at(at, start, target.len()) }?;
        if got < target.len() {
            let error = Error::corrupted("size", at + got as u64, self.length);
            self.condemn(&error);
            return Err(error);
        }
        Ok(())
    }
}

fn fill_from(memory: &Memory, file: BorrowedFd<'_>, file_offset: u64, length: usize) -> Result<()> {
    let got = match memory.writable_mapping() {
        Some(mapping) => {
            mapping.prepare(DATA_OFFSET as usize, length);
            let target = mapping.at_writable(DATA_OFFSET as usize, length);
            // SAFETY: `at_writable` has checked the range; the memory cannot be truncated. The kernel writes there.
            unsafe { backend::read_at(file, file_offset, target, length) }?
        }
        None => fill_through_buffer(memory, file, file_offset, length)?,
    };
    if got < length {
        let (expected, found) = (file_offset + length as u64, file_offset + got as u64);
        return Err(Error::FileChanged { expected, found });
    }
    Ok(())
}

fn fill_through_buffer(memory: &Memory, file: BorrowedFd<'_>, file_offset: u64, length: usize) -> Result<usize> {
    let mut buffer = vec![0; BUFFER.min(length)];
    let mut done = 0;
    while done < length {
        let wanted = buffer.len().min(length - done);
        // SAFETY: the buffer is private and at least `wanted` long.
        let got = unsafe { backend::read_at(file, file_offset + done as u64, buffer.as_mut_ptr(), wanted) }?;
        memory.object().write_at(DATA_OFFSET + done as u64, &buffer[..got])?;
        done += got;
        if got < wanted {
            break;
        }
    }
    Ok(done)
}

/// A write in progress. Ends when dropped, too: a panic between the two publications leaves no odd sequence.
struct Turn<'a> {
    segment: &'a Segment,
    memory: &'a Memory,
    open: bool,
}

impl<'a> Turn<'a> {
    fn begin(segment: &'a Segment, memory: &'a Memory) -> Result<Self> {
        // The gate is ours: nobody else changes the two.
        let sequence = segment.sequence.load(Ordering::Relaxed) + 1;
        memory.publish_begin(sequence, VM)?;
        segment.sequence.store(sequence, Ordering::Relaxed);
        segment.writer.store(VM, Ordering::Relaxed);
        Ok(Turn {
            segment,
            memory,
            open: true,
        })
    }

    fn end(mut self) -> Result<u64> {
        self.finish()
    }

    fn finish(&mut self) -> Result<u64> {
        self.open = false;
        let sequence = self.segment.sequence.load(Ordering::Relaxed) + 1;
        self.segment.sequence.store(sequence, Ordering::Relaxed);
        self.segment.writer.store(0, Ordering::Relaxed);
        self.memory.publish_end(sequence)?;
        Ok(sequence / 2)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if self.open {
            let _ = self.finish();
        }
    }
}

/// Immutable bytes that outlive their segment.
#[derive(Debug)]
pub struct View {
    mapping: Arc<Mapping>,
    start: usize,
    length: usize,
    count: Arc<AtomicU64>,
}

impl View {
    pub fn bytes(&self) -> &[u8] {
        // Both exist: `view` has checked the mapping's kind and the range.
        match self.mapping.sealed_bytes() {
            Some(bytes) => &bytes[self.start..self.start + self.length],
            None => &[],
        }
    }
}

impl Drop for View {
    fn drop(&mut self) {
        self.count.fetch_sub(1, Ordering::Relaxed);
    }
}
