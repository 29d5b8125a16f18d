//! Workers that are killed at any instruction: every call ends, with the right answer or as dead; every sleeper is told.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test may: its line says why it failed"
)]

mod ring_support;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use ring_support::{request, vm};
use snakepit_shm_core::ring::Plan;
use snakepit_shm_core::ring::bell::{self, Listener, Ringer, Wait};
use snakepit_shm_core::ring::vm::{Park, Payload, Poll, VmRing, Wake};
use snakepit_shm_core::ring::worker::{Next, WorkerRing};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

const DESCRIPTORS: &str = "SNAKEPIT_RING_KILL";
const CALLERS: usize = 4;

/// Not a test: the worker process of the test below, which is this program again.
#[test]
fn worker_process() {
    let Ok(numbers) = std::env::var(DESCRIPTORS) else {
        return;
    };
    let mut ends = numbers.split(',').map(|number| {
        // SAFETY: inherited for this purpose, nobody else here owns it.
        unsafe { OwnedFd::from_raw_fd(number.parse().unwrap()) }
    });
    let memory = ends.next().unwrap();
    let into = Listener::from_fd(ends.next().unwrap());
    let out = Ringer::from_fd(ends.next().unwrap());
    let ring = WorkerRing::attach(memory.as_fd(), into, out).unwrap();
    std::thread::scope(|scope| {
        for executor in 0..2 {
            let ring = &ring;
            scope.spawn(move || {
                while let Next::Job(job) = ring.next(executor, Duration::from_micros(10), None).unwrap() {
                    let mut copy = job.arguments(ring).to_vec();
                    copy.reverse();
                    ring.answer(executor, job, 0, &copy).unwrap();
                }
            });
        }
    });
}

fn start(ring: &VmRing, into: &Listener, out: &Ringer) -> Child {
    let memory = ring.fd().unwrap();
    let numbers: [RawFd; 3] = [memory.as_raw_fd(), into.as_fd().as_raw_fd(), out.as_fd().as_raw_fd()];
    for number in numbers {
        // SAFETY: clears close-on-exec of a descriptor that is open here.
        unsafe { libc::fcntl(number, libc::F_SETFD, 0) };
    }
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "worker_process", "--test-threads=1"])
        .env(DESCRIPTORS, numbers.map(|number| number.to_string()).join(","))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

#[derive(Default)]
struct Told {
    /// By slot, the number (+ 1) of the call that was reported.
    slots: [AtomicU64; 8],
}

#[test]
fn killed_workers_leave_no_caller_behind() {
    if std::env::var(DESCRIPTORS).is_ok() {
        return;
    }
    let mut total = [0u64; 3];
    for round in 0..25u64 {
        let ring = vm(Plan {
            slots: 8,
            executors: 2,
            ..Plan::default()
        });
        let (into, worker_in) = bell::pair().unwrap();
        let (worker_out, out) = bell::pair().unwrap();
        let mut child = start(&ring, &worker_in, &worker_out);
        drop((worker_in, worker_out));
        let counts = Mutex::new([0u64; 3]);
        let told = Told::default();
        let dead = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let (ring, into, told, dead, counts) = (&ring, &into, &told, &dead, &counts);
            for caller in 0..CALLERS {
                scope.spawn(move || {
                    let mine = call_until_dead(ring, into, told, caller as u64 + round);
                    let mut counts = counts.lock().unwrap();
                    counts.iter_mut().zip(mine).for_each(|(sum, count)| *sum += count);
                });
            }
            let note = |told: &Told, slot: u16, number: u64| {
                let before = told.slots[usize::from(slot)].swap(number + 1, Ordering::SeqCst);
                assert_ne!(before, number + 1, "told twice");
            };
            scope.spawn(move || {
                while !dead.load(Ordering::Relaxed) {
                    match out.wait(Some(Instant::now() + Duration::from_millis(5))).unwrap() {
                        Wait::Rung(rings) => {
                            ring.drain(rings, |caller| note(told, caller.slot, caller.number))
                                .unwrap();
                        }
                        Wait::Deadline => {}
                        Wait::Closed => break,
                    }
                }
            });
            // Past its start in most rounds, in the middle of it in some.
            std::thread::sleep(Duration::from_micros(round * 1_300));
            kill(Pid::from_raw(child.id() as i32), Signal::SIGKILL).unwrap();
            child.wait().unwrap();
            ring.close(|caller| note(told, caller.slot, caller.number));
            dead.store(true, Ordering::Relaxed);
        });
        let counts = counts.into_inner().unwrap();
        total.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
    }
    let [answered, started, waiting] = total;
    assert!(answered > 1_000, "only {answered} calls were answered");
    assert!(started + waiting >= 25, "{started} and {waiting} died with the worker");
}

/// Calls and checks answers; ends when the ring is closed. Counts calls answered, dead but started, dead and not started.
fn call_until_dead(ring: &VmRing, into: &Ringer, told: &Told, seed: u64) -> [u64; 3] {
    let mut counts = [0; 3];
    let deadline = Instant::now() + Duration::from_secs(30);
    let mut bytes = Vec::new();
    for n in 0u64.. {
        assert!(Instant::now() < deadline, "the ring was never closed");
        let Some(claim) = ring.claim() else {
            if ring.closed() {
                break;
            }
            std::thread::yield_now();
            continue;
        };
        let length = [0, 8, 32, 40, 200, 17_000][(n % 6) as usize];
        let payload: Vec<u8> = (0..length).map(|index| (index + n * 31 + seed) as u8).collect();
        let (call, wake) = ring.publish(claim, request(1), Payload::Bytes(&payload)).unwrap();
        if wake == Wake::Asleep {
            into.ring().unwrap();
        }
        let mut poll = ring.spin(&call, Duration::from_micros(n % 30)).unwrap();
        if matches!(poll, Poll::Waiting) {
            if ring.park(&call) == Park::Parked {
                while told.slots[usize::from(call.slot())].load(Ordering::SeqCst) != call.number() + 1 {
                    assert!(Instant::now() < deadline, "never told");
                    std::thread::yield_now();
                }
            }
            poll = ring.collect(&call).unwrap();
        }
        match poll {
            Poll::Answered(answer) => {
                ring.source(&call, &answer).read(&mut bytes);
                bytes.reverse();
                assert_eq!(bytes, payload);
                counts[0] += 1;
                ring.release(call);
            }
            Poll::Dead { started } => {
                counts[if started { 1 } else { 2 }] += 1;
                ring.abandon(call);
                break;
            }
            Poll::Waiting => panic!("told too early"),
        }
    }
    counts
}
