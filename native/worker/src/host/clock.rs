//! The VM's time. The kernel's monotonic clock is the same everywhere; what lies between it and the VM's own monotonic and system
//! time the VM tells, again and again.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

/// What the VM has told last, in nanoseconds.
pub trait Clock: Sync {
    /// From `CLOCK_MONOTONIC` to the VM's monotonic time.
    fn difference(&self) -> i64;

    /// From the VM's monotonic time to its system time.
    fn offset(&self) -> i64;
}

static CLOCK: OnceLock<&'static dyn Clock> = OnceLock::new();

/// From whom the time is; once, before the library is loaded. Without it, time is the kernel's.
pub fn follow(clock: &'static dyn Clock) {
    let _ = CLOCK.set(clock);
}

/// Nanoseconds of a clock of the kernel.
pub fn kernel(id: libc::clockid_t) -> i64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a valid place; the clocks that are asked for always exist.
    unsafe { libc::clock_gettime(id, &raw mut time) };
    time.tv_sec * 1_000_000_000 + time.tv_nsec
}

/// The VM's monotonic time in nanoseconds. What the VM tells may be less than what it told before; time never is.
pub fn monotonic() -> i64 {
    static LAST: AtomicI64 = AtomicI64::new(i64::MIN);
    let now = kernel(libc::CLOCK_MONOTONIC) + CLOCK.get().map_or(0, |clock| clock.difference());
    // Relaxed: threads that have seen each other's times are ordered by what let them, and so are these.
    LAST.fetch_max(now, Ordering::Relaxed).max(now)
}

/// From [`monotonic`] to the VM's system time, in nanoseconds.
pub fn offset() -> i64 {
    static OWN: OnceLock<i64> = OnceLock::new();
    CLOCK.get().map_or_else(
        || *OWN.get_or_init(|| kernel(libc::CLOCK_REALTIME) - kernel(libc::CLOCK_MONOTONIC)),
        |clock| clock.offset(),
    )
}

/// The VM's system time in microseconds, later than every answer before. For when the VM does not answer any more.
pub fn later() -> i64 {
    static LAST: Mutex<i64> = Mutex::new(0);
    let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
    *last = ((monotonic() + offset()) / 1_000).max(*last + 1);
    *last
}
