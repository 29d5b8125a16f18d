//! The event queue: what the worker says without having been asked, record by record.

use super::VmRing;
use crate::ring::Fault;
use crate::ring::atomic::{Ordering, fence};
use crate::ring::layout::header;

/// Whether a record of the event queue has been dealt with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Done {
    Yes,
    /// And no other record is to be reported now.
    Enough,
    NotYet,
}

#[derive(Debug)]
pub(super) struct Events {
    /// Bytes taken.
    head: u64,
    /// Length of the record that was reported and is not done with.
    undone: Option<u64>,
    scratch: Vec<u8>,
}

struct EventHead {
    kind: u32,
    bytes: u64,
}

impl Events {
    pub(super) fn new() -> Self {
        Events {
            head: 0,
            undone: None,
            scratch: Vec::new(),
        }
    }
}

impl VmRing {
    /// Takes at most `most` records out of the event queue; `report` gets kind and a private copy. When as many came, there
    /// may be more, and the worker will not ring for them: call again. `report` must not call `events` or `drain`, and does
    /// what the record says before it returns: the worker is told so by the cursor.
    pub fn events(&self, most: usize, mut report: impl FnMut(u32, &[u8])) -> std::result::Result<usize, Fault> {
        self.events_until(None, most, |kind, bytes| {
            report(kind, bytes);
            Done::Yes
        })
    }

    /// As `events`, but no further than to the position `end` (of [`events_end`](VmRing::events_end)). A record with which
    /// `report` is not done stays in the queue, and is not reported again: nothing is until [`event_done`](VmRing::event_done).
    pub fn events_until(
        &self,
        end: Option<u64>,
        most: usize,
        mut report: impl FnMut(u32, &[u8]) -> Done,
    ) -> std::result::Result<usize, Fault> {
        let mut queue = self.events.lock();
        let queue = &mut *queue;
        let capacity = u64::from(self.layout.plan.event_bytes);
        let mut count = 0;
        while count < most && queue.undone.is_none() && end.is_none_or(|end| is_before(queue.head, end)) {
            // Acquire: pairs with the worker's Release: the records are visible with the cursor.
            let tail = self.memory.word(header::EVENT_TAIL).load(Ordering::Acquire);
            let available = tail.wrapping_sub(queue.head);
            if available > capacity || !tail.is_multiple_of(8) {
                return Err(Fault::EventCursor {
                    head: queue.head,
                    tail,
                    capacity,
                });
            }
            if available == 0 {
                break;
            }
            let record = self.read_event(queue, available)?;
            count += 1;
            // Relaxed: a count; see `drain`.
            self.events_taken.fetch_add(1, Ordering::Relaxed);
            match report(record.kind, &queue.scratch) {
                Done::Yes => self.pass(queue, record.bytes),
                Done::Enough => {
                    self.pass(queue, record.bytes);
                    break;
                }
                Done::NotYet => queue.undone = Some(record.bytes),
            }
        }
        Ok(count)
    }

    /// The record with which `report` was not done is done with.
    pub fn event_done(&self) {
        let mut queue = self.events.lock();
        if let Some(bytes) = queue.undone.take() {
            self.pass(&mut queue, bytes);
        }
    }

    fn pass(&self, queue: &mut Events, bytes: u64) {
        queue.head = queue.head.wrapping_add(bytes);
        // Before the worker is told, and Release, for whoever asks without the lock: what the record says is done.
        self.events_head.store(queue.head, Ordering::Release);
        // Release: pairs with the worker's Acquire: we have read what it may overwrite now, and done what it said: an answer
        // without `status::QUEUED` comes after it.
        self.memory
            .word(header::EVENT_HEAD)
            .store(queue.head, Ordering::Release);
        // SeqCst: pairs with the fence in the worker's `event` (it moves its cursor, then looks at ours): a record that we
        // do not see at the next turn is rung for.
        fence(Ordering::SeqCst);
    }

    /// Where the last record of the event queue ends, by the worker's word, which is taken for no more than a full queue. What it
    /// has put before an answer lies before the position that is read after the answer was seen.
    pub fn events_end(&self) -> u64 {
        // Acquire: pairs with the worker's Release. The head in this order: the worker has seen ours move before it moved its
        // own, and we see with the one what was stored before the other. So only a lie is further away than a queue is long.
        let tail = self.memory.word(header::EVENT_TAIL).load(Ordering::Acquire);
        let furthest = self
            .events_head
            .load(Ordering::Relaxed)
            .wrapping_add(u64::from(self.layout.plan.event_bytes));
        if is_before(furthest, tail) { furthest } else { tail }
    }

    /// Whether all records up to a position are done with.
    pub fn events_done_until(&self, end: u64) -> bool {
        // Acquire: pairs with the Release in `pass`.
        !is_before(self.events_head.load(Ordering::Acquire), end)
    }

    /// Copies one record into the scratch buffer: first its head, then, when its length is plausible, the rest.
    fn read_event(&self, queue: &mut Events, available: u64) -> std::result::Result<EventHead, Fault> {
        let mask = self.layout.plan.event_bytes as usize - 1;
        let word = |position: u64| {
            let offset = self.layout.events + (position as usize & mask);
            // Relaxed: acquired with the cursor.
            self.memory.word(offset).load(Ordering::Relaxed)
        };
        let head = word(queue.head);
        let length = head & u64::from(u32::MAX);
        let bytes = 8 + length.next_multiple_of(8);
        if bytes > available {
            return Err(Fault::EventLength {
                length,
                available: available - 8,
            });
        }
        queue.scratch.clear();
        for position in (8..bytes).step_by(8) {
            queue
                .scratch
                .extend_from_slice(&word(queue.head + position).to_ne_bytes());
        }
        queue.scratch.truncate(length as usize);
        Ok(EventHead {
            kind: (head >> 32) as u32,
            bytes,
        })
    }
}

/// Of two positions that are not further apart than a queue is long, or than a lie may put them.
fn is_before(position: u64, end: u64) -> bool {
    end.wrapping_sub(position).cast_signed() > 0
}
