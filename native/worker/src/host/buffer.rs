//! Reference-counted bytes behind binaries.
//!
//! A buffer is one `malloc`ed block, header first, so that [`Buffer::resize`] is a `realloc`. Bytes that belong to
//! a resource (`enif_make_resource_binary`) are a buffer too: only a header, that holds the object.

use super::resource::{self, Object};
use std::alloc::{Layout, alloc, dealloc, realloc};
use std::ptr;
use std::sync::atomic::{AtomicUsize, Ordering, fence};

/// Layouts above this are impossible, see [`Layout`].
const LIMIT: usize = isize::MAX as usize - 64;

#[derive(Debug)]
#[repr(C, align(16))]
pub struct Buffer {
    count: AtomicUsize,
    capacity: usize,
    /// Not null: the bytes are this object's.
    object: *mut Object,
}

const HEADER: usize = size_of::<Buffer>();

fn layout(capacity: usize) -> Option<Layout> {
    (capacity <= LIMIT)
        .then(|| Layout::from_size_align(HEADER + capacity, 16).ok())
        .flatten()
}

impl Buffer {
    /// A buffer with one reference; null if there is no memory. Its bytes are not initialised, as a library gets them.
    pub fn allocate(capacity: usize) -> *mut Self {
        Self::with_object(capacity, ptr::null_mut())
    }

    /// A buffer without bytes that takes over a reference to `object`.
    pub fn of_object(object: *mut Object) -> *mut Self {
        Self::with_object(0, object)
    }

    fn with_object(capacity: usize, object: *mut Object) -> *mut Self {
        let Some(layout) = layout(capacity) else {
            return ptr::null_mut();
        };
        // SAFETY: the layout has the header's size at least; a non-null answer is writable for it.
        unsafe {
            let buffer = alloc(layout).cast::<Self>();
            if !buffer.is_null() {
                buffer.write(Self {
                    count: AtomicUsize::new(1),
                    capacity,
                    object,
                });
            }
            buffer
        }
    }

    /// # Safety
    /// `buffer` is alive.
    #[inline]
    pub unsafe fn data(buffer: *mut Self) -> *mut u8 {
        // SAFETY: `allocate` reserved the header and the bytes behind it.
        unsafe { buffer.cast::<u8>().add(HEADER) }
    }

    /// # Safety
    /// `buffer` is alive, and this is a reference of the caller's.
    #[inline]
    pub unsafe fn keep(buffer: *mut Self) {
        // SAFETY: alive. Relaxed: a new reference is made from an existing one, nothing is published by it.
        unsafe { (*buffer).count.fetch_add(1, Ordering::Relaxed) };
    }

    /// # Safety
    /// The caller gives up a reference of his.
    #[inline]
    pub unsafe fn release(buffer: *mut Self) {
        // SAFETY: alive until the last reference is gone. Release pairs with the fence below: what each holder did to the
        // bytes happens before they are freed.
        unsafe {
            if (*buffer).count.fetch_sub(1, Ordering::Release) == 1 {
                fence(Ordering::Acquire);
                let (capacity, object) = ((*buffer).capacity, (*buffer).object);
                if let Some(layout) = layout(capacity) {
                    dealloc(buffer.cast(), layout);
                }
                if !object.is_null() {
                    resource::release(object);
                }
            }
        }
    }

    /// The object that the bytes belong to, or null.
    ///
    /// # Safety
    /// `buffer` is alive.
    pub unsafe fn object(buffer: *mut Self) -> *mut Object {
        // SAFETY: alive; never changed after it was made.
        unsafe { (*buffer).object }
    }

    /// Another size, contents kept as far as they fit; consumes the caller's reference and gives one to the answer. Null,
    /// and nothing changed, if there is no memory. Bytes that others refer to are copied.
    ///
    /// # Safety
    /// `buffer` is alive and the reference is the caller's; it is not an object's.
    pub unsafe fn resize(buffer: *mut Self, capacity: usize) -> *mut Self {
        // SAFETY: as for `release`; with a count of one nobody else can see the block move. Acquire pairs with the
        // Release of those who gave their references up.
        unsafe {
            let old = (*buffer).capacity;
            if (*buffer).count.load(Ordering::Acquire) == 1 {
                let (Some(from), Some(to)) = (layout(old), layout(capacity)) else {
                    return ptr::null_mut();
                };
                let moved = realloc(buffer.cast(), from, to.size()).cast::<Self>();
                if !moved.is_null() {
                    (*moved).capacity = capacity;
                }
                return moved;
            }
            let copy = Self::allocate(capacity);
            if !copy.is_null() {
                ptr::copy_nonoverlapping(Self::data(buffer), Self::data(copy), old.min(capacity));
                Self::release(buffer);
            }
            copy
        }
    }
}
