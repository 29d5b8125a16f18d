//! A worker that writes anything anywhere: the VM's side answers with typed faults, never leaves its memory, and keeps
//! count of its own slots.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test may: its line says why it failed"
)]

mod ring_support;

use ring_support::{Both, request, vm};
use snakepit_shm_core::ring::vm::{Cancel, Claim, Done, Park, Payload, Poll};
use snakepit_shm_core::ring::{Error, Plan};
use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// xorshift64*: fast even unoptimised.
fn random(seed: u64) -> impl FnMut() -> u64 {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    move || {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        state.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 8
    }
}

/// A value that may pass for something: the number of a call in flight, a small length, a place, an extreme.
fn plausible(next: &mut impl FnMut() -> u64, number: u64) -> u64 {
    let value = next();
    match value % 10 {
        0..=4 => number.wrapping_add(1).wrapping_sub(value >> 8 & 15),
        5 => (value >> 8 & 3) << 48 | (value >> 16 & 0x7F),
        6 => (number + 1) << 16 | (value >> 8 & 0x7F),
        7 => [0, u64::MAX, value >> 40, value >> 52][value as usize >> 8 & 3],
        _ => value,
    }
}

/// Where the worker says how far it has written its events.
const EVENT_TAIL: usize = 384;

#[test]
fn the_end_of_the_events_is_no_further_than_a_queue_is_long() {
    let both = Both::new(Plan {
        event_bytes: 4096,
        ..Plan::default()
    });
    let (start, _) = both.vm.raw();
    // SAFETY: a word of the header, which is mapped for as long as the ring is.
    let tail = unsafe { AtomicU64::from_ptr(start.add(EVENT_TAIL).cast()) };
    for round in 0..1_000u64 {
        both.worker.event(1, &[7; 16]).unwrap();
        let honest = tail.load(Ordering::Relaxed);
        assert_eq!(both.vm.events_end(), honest);
        // A lie in passing, as whoever has an answer may see it.
        for lie in [honest + (1 << 40), honest + (1 << 62), honest + 4096] {
            tail.store(lie, Ordering::Relaxed);
            let end = both.vm.events_end();
            assert!(end <= round * 24 + 4096, "{end}");
        }
        tail.store(honest, Ordering::Relaxed);
        assert!(!both.vm.events_done_until(honest));
        assert_eq!(both.vm.events(64, |_, _| {}), Ok(1));
        assert!(both.vm.events_done_until(honest));
    }
    // The lie is reached, and no more is taken for it.
    let lie = tail.load(Ordering::Relaxed) + (1 << 40);
    let honest = tail.swap(lie, Ordering::Relaxed);
    let end = both.vm.events_end();
    tail.store(honest, Ordering::Relaxed);
    let mut taken = 0;
    for _ in 0..1_000 {
        // The queue is full in the end.
        let _ = both.worker.event(1, &[7; 16]);
        taken += both.vm.events_until(Some(end), 64, |_, _| Done::Yes).unwrap();
    }
    assert_eq!(taken, 4096usize.div_ceil(24));
    assert!(both.vm.events_done_until(end));
}

#[test]
fn records_are_reported_one_by_one_to_who_has_enough_of_one() {
    let both = Both::new(Plan::default());
    for kind in 0..3 {
        both.worker.event(kind, b"x").unwrap();
    }
    for expected in 0..3 {
        let mut seen = Vec::new();
        let count = both.vm.events_until(None, 64, |kind, _| {
            seen.push(kind);
            Done::Enough
        });
        assert_eq!((count, seen), (Ok(1), vec![expected]));
    }
    assert_eq!(both.vm.events(64, |_, _| {}), Ok(0));
}

/// Where the slots of the plan below lie: header 768, status 128, two executors 128, eight cells 512.
const SLOTS: usize = 1536;

#[test]
fn scribbling_over_all_of_it_gives_faults_and_nothing_else() {
    let plan = Plan {
        slots: 8,
        slot_bytes: 256,
        spill_bytes: 1 << 16,
        executors: 2,
        event_bytes: 4096,
    };
    let ring = vm(plan);
    let (start, length) = ring.raw();
    let start = start as usize;
    // Everything but the areas beyond the slots.
    let control = plan.layout().unwrap().total() - 2 * plan.spill_bytes as usize;
    let stop = AtomicBool::new(false);
    let latest = AtomicU64::new(0);
    let mut seen = HashSet::new();
    let (mut answers, mut deaths, mut round) = (0, 0, 0u64);
    std::thread::scope(|scope| {
        for seed in [1, 2] {
            let (stop, latest) = (&stop, &latest);
            scope.spawn(move || {
                let mut next = random(seed);
                while !stop.load(Ordering::Relaxed) {
                    let number = latest.load(Ordering::Relaxed);
                    let (offset, value) = match next() % 16 {
                        0 => (next() as usize % (length / 8) * 8, next()),
                        1 => (next() as usize % (control / 8) * 8, plausible(&mut next, number)),
                        // Everything up to the event queue.
                        2..8 => (next() as usize % (2560 / 8) * 8, plausible(&mut next, number)),
                        8..11 => (
                            SLOTS + next() as usize % 8 * 128 + 8,
                            ((next() % 4) << 48) | (next() % 300),
                        ),
                        // The words that say that a slot is answered (RING.md), for one of the latest calls.
                        _ => (
                            SLOTS + next() as usize % 8 * 128,
                            (number + 1).saturating_sub(next() % 8),
                        ),
                    };
                    let word = (start + offset) as *mut u64;
                    // SAFETY: inside the mapping, aligned, atomic: what a worker could do.
                    unsafe { AtomicU64::from_ptr(word) }.store(value, Ordering::Relaxed);
                }
            });
        }
        let mut next = random(3);
        let mut bytes = Vec::new();
        let mut fault = |error: Error| {
            let Error::Protocol(fault) = error else {
                panic!("{error}")
            };
            seen.insert(std::mem::discriminant(&fault));
        };
        let deadline = Instant::now() + Duration::from_secs(4);
        while round < 40_000 && Instant::now() < deadline {
            let Some(claim) = ring.claim() else {
                // Everything was abandoned to a worker that does not answer: answers turn up by scribbling.
                std::hint::spin_loop();
                continue;
            };
            round += 1;
            let payload = vec![7; next() as usize % 400];
            let Ok((call, _)) = ring.publish(claim, request(1), Payload::Bytes(&payload)) else {
                panic!("the argument area is ours")
            };
            latest.store(call.number(), Ordering::Relaxed);
            let poll = match round % 3 {
                0 => ring.spin(&call, Duration::from_micros(20)),
                1 => {
                    // Whether it sleeps or not, the look afterwards says what there is.
                    let _: Park = ring.park(&call);
                    ring.drain(next() % 2, |_| ())
                        .map(drop)
                        .unwrap_or_else(|error| fault(error.into()));
                    ring.collect(&call)
                }
                _ => ring.poll(&call),
            };
            match poll {
                Ok(Poll::Answered(answer)) => {
                    answers += 1;
                    let source = ring.source(&call, &answer);
                    source.read(&mut bytes);
                    assert_eq!(bytes.len(), answer.length as usize);
                    assert!(bytes.len() <= plan.spill_bytes as usize);
                    ring.release(call);
                }
                Ok(Poll::Dead { .. }) => deaths += 1,
                Ok(Poll::Waiting) => match ring.cancel(call) {
                    Cancel::Cancelled { .. } => {}
                    Cancel::Committed(call) => ring.abandon(call),
                },
                Err(error) => {
                    fault(error);
                    ring.abandon(call);
                }
            }
            let events = ring.events(4, |_, bytes| assert!(bytes.len() <= 4096));
            events.map(drop).unwrap_or_else(|error| fault(error.into()));
            let _ = (ring.status(), ring.executor((round % 4) as u16));
            assert!(ring.in_flight() <= 8);
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert_eq!(deaths, 0);
    assert!(answers > 0, "no answer was ever plausible in {round} rounds");
    assert!(seen.len() >= 4, "only {} kinds of fault", seen.len());
    // Every slot is given out at most once.
    let claims: Vec<Claim> = std::iter::from_fn(|| ring.claim()).collect();
    let slots: HashSet<u16> = claims.iter().map(Claim::slot).collect();
    assert_eq!(slots.len(), claims.len());
    claims.into_iter().for_each(|claim| ring.unclaim(claim));
}
