//! What a library has of the VM through the ring: the way of its requests, which are records in the event queue, and the VM's time.

use snakepit_host::host::{Clock, Transport};
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

/// The VM's time, as the VM has written it into the ring last.
#[derive(Debug)]
pub struct VmTime {
    ring: &'static WorkerRing,
}

impl VmTime {
    pub const fn new(ring: &'static WorkerRing) -> Self {
        Self { ring }
    }
}

impl Clock for VmTime {
    fn difference(&self) -> i64 {
        self.ring.clock().0
    }

    fn offset(&self) -> i64 {
        self.ring.clock().1
    }
}
