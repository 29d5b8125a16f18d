//! Clocks.

use crate::host::env::Env;
use crate::host::term::Term;
use std::ffi::c_int;
use std::sync::Mutex;
use std::sync::{OnceLock, PoisonError};

/// `ERL_NIF_TIME_ERROR`.
const ERROR: i64 = i64::MIN;
const NANOSECONDS: c_int = 3;

/// Units a second has, for `ErlNifTimeUnit`.
const fn per_second(unit: c_int) -> Option<i128> {
    match unit {
        0 => Some(1),
        1 => Some(1_000),
        2 => Some(1_000_000),
        3 => Some(1_000_000_000),
        _ => None,
    }
}

/// Rounded down, as the VM does.
fn convert(value: i64, from: c_int, to: c_int) -> i64 {
    let (Some(from), Some(to)) = (per_second(from), per_second(to)) else {
        return ERROR;
    };
    i64::try_from((i128::from(value) * to).div_euclid(from)).unwrap_or(ERROR)
}

fn clock(id: libc::clockid_t) -> i64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a valid place; these clocks always exist.
    unsafe { libc::clock_gettime(id, &raw mut time) };
    time.tv_sec * 1_000_000_000 + time.tv_nsec
}

/// From monotonic to system time; does not change while the process runs.
fn offset() -> i64 {
    static OFFSET: OnceLock<i64> = OnceLock::new();
    *OFFSET.get_or_init(|| clock(libc::CLOCK_REALTIME) - clock(libc::CLOCK_MONOTONIC))
}

fn triple(env: &mut Env, microseconds: i64) -> Term {
    let parts = [
        microseconds / 1_000_000_000_000,
        microseconds / 1_000_000 % 1_000_000,
        microseconds % 1_000_000,
    ];
    let parts = parts.map(|part| env.integer(part));
    env.tuple(&parts)
}

api! {
    fn enif_monotonic_time(unit: c_int) -> i64 {
        convert(clock(libc::CLOCK_MONOTONIC), NANOSECONDS, unit)
    }

    fn enif_time_offset(unit: c_int) -> i64 {
        convert(offset(), NANOSECONDS, unit)
    }

    fn enif_convert_time_unit(value: i64, from: c_int, to: c_int) -> i64 {
        convert(value, from, to)
    }

    fn enif_now_time(env: *mut Env) -> Term {
        // Every answer is later than the one before.
        static LAST: Mutex<i64> = Mutex::new(0);
        let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
        *last = (clock(libc::CLOCK_REALTIME) / 1_000).max(*last + 1);
        triple(&mut *env, *last)
    }

    fn enif_cpu_time(env: *mut Env) -> Term {
        triple(&mut *env, clock(libc::CLOCK_PROCESS_CPUTIME_ID) / 1_000)
    }
}
