//! Whether memory can still be had, asked before it is taken.
//!
//! Over a cgroup's limit `fallocate` does not fail: the process is killed. So every reservation is compared first with
//! the least of `MemAvailable` and what the cgroups leave. Reading those costs about 14 us, so a sample serves
//! for 100 ms and is debited in between; a refusal is always decided on a fresh one.

use crate::cgroup::{self, Place};
use crate::error::{Error, Result};
use parking_lot::Mutex;
use std::fs;
use std::time::{Duration, Instant};

const SERVES: Duration = Duration::from_millis(100);
/// Kept free for everybody else between our sample and the kernel's own accounting.
const MARGIN: u64 = 16 << 20;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Available {
    pub bytes: u64,
    /// `"MemAvailable"`, or the file of the cgroup's limit.
    pub limited_by: String,
}

struct State {
    sample: Option<(Instant, Available)>,
    /// Granted and not yet seen by any sample: still being reserved by somebody.
    in_flight: u64,
    places: Option<Vec<Place>>,
}

static STATE: Mutex<State> = Mutex::new(State {
    sample: None,
    in_flight: 0,
    places: None,
});

impl State {
    fn refresh(&mut self, older_than: Duration) -> &mut Available {
        let stale = self.sample.as_ref().is_none_or(|(at, _)| at.elapsed() >= older_than);
        if stale {
            let places = self.places.get_or_insert_with(cgroup::places);
            self.sample = Some((Instant::now(), measure(places)));
        }
        &mut self.sample.get_or_insert_with(|| (Instant::now(), measure(&[]))).1
    }

    fn left(&mut self, older_than: Duration) -> u64 {
        let in_flight = self.in_flight;
        self.refresh(older_than)
            .bytes
            .saturating_sub(MARGIN)
            .saturating_sub(in_flight)
    }
}

/// Memory granted to one reservation, until the kernel has handed it out.
#[derive(Debug)]
pub struct Grant {
    left: u64,
}

/// Asks for `bytes`.
pub fn ask(bytes: u64) -> Result<Grant> {
    let mut state = STATE.lock();
    if bytes > state.left(SERVES) && bytes > state.left(Duration::ZERO) {
        let available = state.left(SERVES);
        let limited_by = state.refresh(SERVES).limited_by.clone();
        return Err(Error::NotEnoughMemory {
            asked: bytes,
            available,
            limited_by,
        });
    }
    state.in_flight += bytes;
    Ok(Grant { left: bytes })
}

impl Grant {
    /// Before the next step of a long reservation: is the rest still there?
    pub fn check(&self) -> Result<()> {
        let mut state = STATE.lock();
        let others = state.in_flight.saturating_sub(self.left);
        let available = state.refresh(SERVES).bytes.saturating_sub(others);
        if self.left > available {
            let limited_by = state.refresh(SERVES).limited_by.clone();
            return Err(Error::NotEnoughMemory {
                asked: self.left,
                available,
                limited_by,
            });
        }
        Ok(())
    }

    /// The kernel has handed out so much of it.
    pub fn taken(&mut self, bytes: u64) {
        let bytes = bytes.min(self.left);
        self.left -= bytes;
        let mut state = STATE.lock();
        state.in_flight -= bytes;
        if let Some((_, available)) = &mut state.sample {
            available.bytes = available.bytes.saturating_sub(bytes);
        }
    }
}

impl Drop for Grant {
    fn drop(&mut self) {
        if self.left > 0 {
            STATE.lock().in_flight -= self.left;
        }
    }
}

/// What is available now, for `machine/0`.
pub fn available() -> Available {
    STATE.lock().refresh(SERVES).clone()
}

fn measure(places: &[Place]) -> Available {
    let machine = Available {
        bytes: mem_available().unwrap_or(0),
        limited_by: "MemAvailable".to_owned(),
    };
    match cgroup::room(places) {
        Some(room) if room.free < machine.bytes => Available {
            bytes: room.free,
            limited_by: room.file,
        },
        _ => machine,
    }
}

fn mem_available() -> Option<u64> {
    crate::machine::meminfo(&fs::read_to_string("/proc/meminfo").ok()?, "MemAvailable")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_than_the_machine_has_is_refused_by_name() {
        match ask(1 << 50) {
            Err(Error::NotEnoughMemory {
                asked,
                available,
                limited_by,
            }) => {
                assert_eq!(asked, 1 << 50);
                assert!(available > 0 && available < 1 << 50);
                assert!(!limited_by.is_empty());
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_grant_counts_until_it_is_taken_or_dropped() {
        let all = available().bytes;
        let big = all / 2;
        let mut held = ask(big).unwrap();
        assert!(
            ask(big).is_err(),
            "half is granted, the margin is kept: another half cannot be"
        );
        held.taken(1);
        held.check().unwrap();
        drop(held);
        assert!(ask(big).is_ok());
    }
}
