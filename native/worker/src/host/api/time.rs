//! Clocks.

use super::processes::integer;
use crate::host::clock;
use crate::host::env::Env;
use crate::host::service;
use crate::host::term::Term;
use snakepit_wire::service::Request;
use std::ffi::c_int;

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
        convert(clock::monotonic(), NANOSECONDS, unit)
    }

    fn enif_time_offset(unit: c_int) -> i64 {
        convert(clock::offset(), NANOSECONDS, unit)
    }

    fn enif_convert_time_unit(value: i64, from: c_int, to: c_int) -> i64 {
        convert(value, from, to)
    }

    fn enif_now_time(env: *mut Env) -> Term {
        // No two answers are alike, in all of the VM: only it can give them.
        let reply = service::ask(|request| Request::Now { request });
        match integer(&mut *env, reply).and_then(Term::as_small) {
            Some(microseconds) => triple(&mut *env, microseconds),
            None => triple(&mut *env, clock::later()),
        }
    }

    fn enif_cpu_time(env: *mut Env) -> Term {
        triple(&mut *env, clock::kernel(libc::CLOCK_PROCESS_CPUTIME_ID) / 1_000)
    }
}
