//! Bytes in and out, without a VM around them.

use crate::segment::Segment;
use crate::{Outcome, sample};
use std::fs::{self, File, OpenOptions};
use std::hint::black_box;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

/// Private memory that has been touched.
fn warm(size: usize) -> Vec<u8> {
    vec![7; size]
}

pub fn memcpy_in(size: usize, count: usize, batch: usize) -> Outcome<Vec<u64>> {
    let source = warm(size);
    let segment = Segment::create(size)?;
    // Once before the clock runs: all pages are there, as they are in a region that is written again.
    // SAFETY: both are `size` bytes long and apart, here and below.
    unsafe { libc::memcpy(segment.data().cast(), source.as_ptr().cast(), size) };
    sample(count, batch, || {
        // SAFETY: as above.
        unsafe { libc::memcpy(black_box(segment.data()).cast(), source.as_ptr().cast(), size) };
        Ok(())
    })
}

pub fn memcpy_out(size: usize, count: usize, batch: usize) -> Outcome<Vec<u64>> {
    let source = warm(size);
    let segment = Segment::create(size)?;
    // SAFETY: both are `size` bytes long and apart.
    unsafe { libc::memcpy(segment.data().cast(), source.as_ptr().cast(), size) };
    sample(count, batch, || {
        fresh(size, |target| {
            // SAFETY: `fresh` gives `size` bytes of its own.
            unsafe { libc::memcpy(target.cast(), segment.data().cast(), size) };
            Ok(())
        })
    })
}

pub fn file_in(size: usize, count: usize, batch: usize) -> Outcome<Vec<u64>> {
    let source = warm(size);
    let file = unlinked_file()?;
    file.write_all_at(&source, 0)?;
    sample(count, batch, || Ok(file.write_all_at(&source, 0)?))
}

pub fn file_out(size: usize, count: usize, batch: usize) -> Outcome<Vec<u64>> {
    let file = unlinked_file()?;
    file.write_all_at(&warm(size), 0)?;
    sample(count, batch, || {
        fresh(size, |target| {
            // SAFETY: `fresh` gives `size` bytes of its own; the kernel writes them before anybody reads them.
            let target = unsafe { std::slice::from_raw_parts_mut(target, size) };
            Ok(file.read_exact_at(target, 0)?)
        })
    })
}

/// New memory for one run, its page faults and its end included.
fn fresh(size: usize, work: impl FnOnce(*mut u8) -> Outcome<()>) -> Outcome<()> {
    // SAFETY: any size may be asked for; the answer is checked.
    let target = unsafe { libc::malloc(size) };
    if target.is_null() {
        return Err(io::Error::last_os_error().into());
    }
    let outcome = work(black_box(target).cast());
    // SAFETY: ours, and freed once.
    unsafe { libc::free(black_box(target)) };
    outcome
}

fn unlinked_file() -> io::Result<File> {
    let path = PathBuf::from(format!("/dev/shm/bench_peers_{}", std::process::id()));
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path)?;
    fs::remove_file(path)?;
    Ok(file)
}
