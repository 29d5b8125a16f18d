//! What the worker's process is told of the VM: versions, threads, its time.

use rustler::sys::{ErlNifSysInfo, ErlNifTimeUnit, enif_monotonic_time, enif_system_info, enif_time_offset};
use snakepit_shm_core::ring::vm::VmRing;
use snakepit_wire::control::System;
use std::ffi::CStr;
use std::mem::MaybeUninit;

/// What a library in the VM is told of it.
pub(super) fn system() -> System {
    let mut info = MaybeUninit::<ErlNifSysInfo>::zeroed();
    // SAFETY: plain data, filled in up to the size that is given; the texts are the VM's own, for ever.
    let (info, erts, release) = unsafe {
        enif_system_info(info.as_mut_ptr(), size_of::<ErlNifSysInfo>());
        let info = info.assume_init();
        let text = |text| CStr::from_ptr(text).to_string_lossy().into_owned();
        let (erts, release) = (text(info.erts_version), text(info.otp_release));
        (info, erts, release)
    };
    System {
        driver: (info.driver_major_version, info.driver_minor_version),
        nif: (info.nif_major_version, info.nif_minor_version),
        erts,
        release,
        threads: info.thread_support,
        smp: info.smp_support,
        async_threads: info.async_threads,
        schedulers: info.scheduler_threads,
        dirty_schedulers: info.dirty_scheduler_support,
    }
}

/// How often the clocks are read, for the reading that took least.
const READINGS: usize = 4;

/// Writes into the ring what lies between the kernel's monotonic clock and the VM's time, which changes when the VM corrects it.
pub(super) fn tell_time(ring: &VmRing) {
    let kernel = || {
        let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC);
        now.map_or(0, |now| now.tv_sec() * 1_000_000_000 + now.tv_nsec())
    };
    let reading = |_| {
        let before = kernel();
        // SAFETY: takes a number only.
        let vm = unsafe { enif_monotonic_time(ErlNifTimeUnit::ERL_NIF_NSEC) };
        let after = kernel();
        (after - before, vm - (before + (after - before) / 2))
    };
    if let Some((_, difference)) = (0..READINGS).map(reading).min_by_key(|(took, _)| *took) {
        // SAFETY: takes a number only.
        ring.set_clock(difference, unsafe { enif_time_offset(ErlNifTimeUnit::ERL_NIF_NSEC) });
    }
}
