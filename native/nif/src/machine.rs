//! `machine`, `live`, `reaper_flush_dirty`, `identity`, `process_alive`, `effective_uid`.

use crate::reply::{done, map};
use crate::{spec, watcher};
use rustler::{Encoder, Env, Term};
use snakepit_shm_core::error::Error;
use snakepit_shm_core::machine::Machine;
use snakepit_shm_core::{descriptor, identity as process, machine as host, mapping, reaper};
use std::time::Duration;

#[rustler::nif]
fn machine(env: Env<'_>) -> Term<'_> {
    use crate::atoms as a;
    let Machine {
        page_size,
        open_files,
        max_map_count,
        memory,
        huge_pages_free,
        huge_page_size,
    } = host::machine();
    map(
        env,
        &[
            (a::page_size(), page_size.encode(env)),
            (a::open_files(), open_files.encode(env)),
            (a::max_map_count(), max_map_count.encode(env)),
            (a::memory_available(), memory.bytes.encode(env)),
            (a::memory_limited_by(), memory.limited_by.encode(env)),
            (a::huge_pages_free(), huge_pages_free.encode(env)),
            (a::huge_page_size(), huge_page_size.encode(env)),
        ],
    )
}

#[rustler::nif]
fn live(env: Env<'_>) -> Term<'_> {
    use crate::atoms as a;
    let (closing, closing_bytes) = reaper::pending();
    map(
        env,
        &[
            (a::mappings(), mapping::live().encode(env)),
            (a::descriptors(), descriptor::live().encode(env)),
            (a::closing(), closing.encode(env)),
            (a::closing_bytes(), closing_bytes.encode(env)),
            (a::watches(), watcher::live().encode(env)),
        ],
    )
}

#[rustler::nif(schedule = "DirtyIo")]
fn reaper_flush_dirty(env: Env<'_>, timeout_ms: u64) -> Term<'_> {
    // A day: so that no sum with it overflows.
    let timeout = Duration::from_millis(timeout_ms.min(86_400_000));
    let flushed = if reaper::flush(timeout) {
        Ok(())
    } else {
        Err(Error::Timeout { after_ms: timeout_ms })
    };
    done(env, flushed)
}

#[rustler::nif]
fn identity(env: Env<'_>) -> Term<'_> {
    spec::identity(env, &process::own())
}

#[rustler::nif]
fn process_alive(pid: u64, start_time: u64) -> bool {
    process::is_alive(pid, start_time)
}

#[rustler::nif]
fn effective_uid() -> u32 {
    nix::unistd::geteuid().as_raw()
}
