//! The atomics of the ring, so that the models in `tests/loom_ring.rs` run its real code.
//!
//! Nothing else in this module tree names `std::sync::atomic`.

#[cfg(loom)]
pub(crate) use loom::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, fence};
#[cfg(not(loom))]
pub(crate) use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, fence};

/// One turn of a loop that waits for another thread or process.
#[inline(always)]
pub(crate) fn relax() {
    #[cfg(loom)]
    loom::thread::yield_now();
    #[cfg(not(loom))]
    std::hint::spin_loop();
}
