//! Memory that was asked for and not there.
//!
//! Whoever asks gets null, as everywhere; most end the process then, some way or other. That it may have been for this
//! reason is noted for whoever finds it dead.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::OnceLock;

static NOTE: OnceLock<&'static (dyn Fn() + Sync)> = OnceLock::new();

/// Has `note` called whenever there was no memory; it must not ask for any. Once.
pub fn when_memory_lacks(note: &'static (dyn Fn() + Sync)) {
    let _ = NOTE.set(note);
}

/// A pointer that is null if there was no memory.
#[inline]
pub fn looked_at<T>(memory: *mut T) -> *mut T {
    if memory.is_null() {
        note();
    }
    memory
}

#[cold]
fn note() {
    if let Some(note) = NOTE.get() {
        note();
    }
}

/// The C library's, which libraries use too; what it does not have is noted.
#[derive(Debug)]
pub struct Allocator;

// SAFETY: all of it is `System`'s; a pointer is looked at, and `note` does not allocate.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promises are those that `System` wants.
        looked_at(unsafe { System.alloc(layout) })
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as above.
        looked_at(unsafe { System.alloc_zeroed(layout) })
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: as above.
        looked_at(unsafe { System.realloc(memory, layout, size) })
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(memory, layout) }
    }
}
