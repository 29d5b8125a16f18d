//! The keeper: the worker's thread that runs no calls.
//!
//! It hears the VM (control channel: also the answers to what the library asks), shows that the process lives (heartbeat), and keeps the output moving. It runs
//! while the library loads, too: a constructor that hangs does not keep a worker whose VM is gone.

use crate::output::OutputPipe;
use crate::packet::{Packets, Received};
use crate::{exit, host, libraries, process, thread};
use snakepit_shm_core::ring::WorkerStatus;
use snakepit_shm_core::ring::worker::WorkerRing;
use snakepit_wire::control::{self, ToWorker};
use std::io;
use std::time::{Duration, Instant};

/// Between two beats of the heart.
const BEAT: Duration = Duration::from_millis(500);

/// Starts the thread. It ends with the process.
pub fn start(vm: &'static Packets, ring: &'static WorkerRing) -> io::Result<()> {
    let mut keeper = Keeper {
        vm,
        ring,
        output: OutputPipe::open(),
        beats: 0,
    };
    keeper.beat();
    thread::spawn(c"keeper", move || keeper.keep()).map(drop)
}

struct Keeper {
    vm: &'static Packets,
    ring: &'static WorkerRing,
    output: OutputPipe,
    beats: u64,
}

impl Keeper {
    fn keep(mut self) {
        // A signal that a library waits for is not for this thread.
        thread::block_signals();
        host::hears();
        let mut buffer = vec![0; control::PACKET];
        let mut next = Instant::now() + BEAT;
        loop {
            let now = Instant::now();
            if now >= next {
                self.beat();
                self.output.look();
                host::retry();
                next = now + BEAT;
            }
            let rest = next.saturating_duration_since(Instant::now());
            // One more: poll takes whole milliseconds and would wake up too early.
            if self.vm.wait(libc::POLLIN, rest.as_millis() as libc::c_int + 1) {
                self.hear(&mut buffer);
            }
        }
    }

    fn hear(&mut self, buffer: &mut [u8]) {
        match self.vm.receive(buffer) {
            Received::Nothing => {}
            Received::Closed => process::leave(exit::DONE),
            Received::Packet { length, .. } => match control::decode(&buffer[..length]) {
                Ok(ToWorker::Release { ids }) => host::release(ids),
                Ok(ToWorker::Answer { request, reply }) => host::answer(request, reply),
                Ok(ToWorker::Down { monitor }) => host::down(monitor),
                // The executors end when they have answered what they work on; the main thread then leaves.
                Ok(ToWorker::Stop) => {
                    self.ring.stop();
                    host::stop();
                    libraries::stop();
                }
                Ok(ToWorker::Load(load)) if load.process.is_none() => libraries::load_later(self.vm, load),
                Ok(ToWorker::Load(_)) => refuse("a second beginning"),
                Ok(ToWorker::Proceed { library }) if libraries::answer(library, true) => {}
                Ok(ToWorker::Proceed { .. }) => refuse("an answer that nobody waits for"),
                Ok(ToWorker::Unload { library }) => libraries::unload_later(self.vm, library),
                Err(error) => refuse(&error.to_string()),
            },
        }
    }

    fn beat(&mut self) {
        self.beats += 1;
        self.ring.beat(WorkerStatus {
            beats: self.beats,
            beat_at: monotonic(),
            resident: resident(),
            objects: host::objects(),
            ..WorkerStatus::default()
        });
    }
}

fn refuse(what: &str) -> ! {
    process::complain(format_args!("the VM sent {what}"));
    process::leave(exit::PROTOCOL)
}

/// CLOCK_MONOTONIC in nanoseconds.
pub fn monotonic() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the struct is valid for the call.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut now) };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// Resident memory in bytes; 0 without /proc.
fn resident() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm")
        .ok()
        .and_then(|statm| statm.split(' ').nth(1)?.parse::<u64>().ok())
        .unwrap_or(0);
    // SAFETY: takes a number only.
    pages * unsafe { libc::sysconf(libc::_SC_PAGESIZE) } as u64
}
