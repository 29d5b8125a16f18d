//! The way of a library's requests: records in the ring's event queue.

use snakepit_host::host::Transport;
use snakepit_shm_core::ring::worker::WorkerRing;
use std::time::Duration;

/// Between two looks for room in a queue that is full. The VM is told of the first record in it and takes all of them.
const PAUSE: Duration = Duration::from_micros(200);

#[derive(Debug)]
pub struct Requests {
    ring: &'static WorkerRing,
}

impl Requests {
    pub const fn new(ring: &'static WorkerRing) -> Self {
        Self { ring }
    }
}

impl Transport for Requests {
    fn longest(&self) -> usize {
        self.ring.longest_event()
    }

    fn put(&self, kind: u32, record: &[u8]) -> bool {
        while self.ring.event(kind, record).is_err() {
            // The VM may not look any more. (When it is gone, so is this process.)
            if self.ring.stopped() {
                return false;
            }
            std::thread::sleep(PAUSE);
        }
        true
    }
}
