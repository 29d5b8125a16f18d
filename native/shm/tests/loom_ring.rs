//! Models of the ring: its real code on modelled atomics, every interleaving (up to a bound on preemptions).
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p snakepit_shm_core --test loom_ring --release` (its own target directory spares
//! rebuilding everything else).
#![cfg(loom)]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a model's line says what failed")]

use loom::sync::Arc;
use loom::thread;
use snakepit_shm_core::ring::bell::{self, Listener, Ringer, Wait};
use snakepit_shm_core::ring::vm::{Call, Cancel, Park, Payload, Poll, Request, VmRing, Wake};
use snakepit_shm_core::ring::worker::{Next, WorkerRing};
use snakepit_shm_core::ring::{Caller, Plan, WorkerStatus};
use std::time::Duration;

struct Model {
    vm: Arc<VmRing>,
    worker: Arc<WorkerRing>,
    into: Arc<Ringer>,
    out: Arc<Listener>,
}

fn model(slots: u32, executors: u32) -> Model {
    let plan = Plan {
        slots,
        slot_bytes: 64,
        spill_bytes: 0,
        executors,
        event_bytes: 64,
    };
    let (vm, handover) = VmRing::model(plan).unwrap();
    let (into, worker_in) = bell::pair().unwrap();
    let (worker_out, out) = bell::pair().unwrap();
    let worker = WorkerRing::model(handover, worker_in, worker_out).unwrap();
    Model {
        vm: Arc::new(vm),
        worker: Arc::new(worker),
        into: Arc::new(into),
        out: Arc::new(out),
    }
}

fn check(preemptions: usize, body: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.max_branches = 20_000;
    builder.check(body);
}

fn publish(vm: &VmRing, number: u8) -> (Call, Wake) {
    let claim = vm.claim().unwrap();
    let request = Request {
        function: u32::from(number),
        arity: 1,
        caller: Caller::default(),
    };
    vm.publish(claim, request, Payload::Bytes(&[number; 12])).unwrap()
}

/// Takes one call, as an executor does, and answers it with its own arguments.
fn serve(worker: &WorkerRing, executor: u16) {
    match worker.next(executor, Duration::ZERO, None).unwrap() {
        Next::Job(job) => {
            let copy = job.arguments(worker).to_vec();
            assert_eq!(copy, [job.function as u8; 12]);
            worker.answer(executor, job, 0, &copy).unwrap();
        }
        other => panic!("{other:?}"),
    }
}

fn expect(vm: &VmRing, call: Call, number: u8) {
    let Poll::Answered(answer) = vm.collect(&call).unwrap() else {
        panic!("no answer")
    };
    assert_eq!(vm.source(&call, &answer).private().unwrap(), [number; 12]);
    vm.release(call);
}

/// Sleeps until the call is reported.
fn sleep(model: &Model, call: &Call) {
    if model.vm.park(call) == Park::Answered {
        return;
    }
    let mut woken = 0;
    while woken == 0 {
        let Wait::Rung(rings) = model.out.wait(None).unwrap() else {
            panic!("the model's bell has no other end")
        };
        model
            .vm
            .drain(rings, |caller| {
                assert_eq!(caller.slot, call.slot());
                woken += 1;
            })
            .unwrap();
    }
    assert_eq!(woken, 1);
}

/// Neither side's sleep loses a wake-up: the executor sleeps at once, the caller parks at once. A lost one is a deadlock,
/// which loom reports. Two calls: the second one reuses cell and slot.
#[test]
fn both_sides_sleep_and_are_woken() {
    check(3, || {
        let model = model(1, 1);
        let worker = Arc::clone(&model.worker);
        let executor = thread::spawn(move || {
            serve(&worker, 0);
            serve(&worker, 0);
        });
        for number in 1..=2 {
            let (call, wake) = publish(&model.vm, number);
            if wake == Wake::Asleep {
                model.into.ring().unwrap();
            }
            sleep(&model, &call);
            expect(&model.vm, call, number);
        }
        executor.join().unwrap();
    });
}

/// Two executors take two calls: each is taken once, none is lost while one of them goes to sleep or leaves.
#[test]
fn two_executors_share_the_queue() {
    check(2, || {
        let model = model(2, 2);
        let executors: Vec<_> = (0..2)
            .map(|index| {
                let worker = Arc::clone(&model.worker);
                thread::spawn(move || serve(&worker, index))
            })
            .collect();
        let calls: Vec<_> = (1..=2)
            .map(|number| {
                let (call, wake) = publish(&model.vm, number);
                if wake == Wake::Asleep {
                    model.into.ring().unwrap();
                }
                call
            })
            .collect();
        for executor in executors {
            executor.join().unwrap();
        }
        for (call, number) in calls.into_iter().zip(1..) {
            expect(&model.vm, call, number);
        }
    });
}

/// Two callers publish at the same time; the executor sees both cells whole.
#[test]
fn two_callers_share_the_queue() {
    check(3, || {
        let model = model(2, 1);
        let callers: Vec<_> = (1..=2)
            .map(|number| {
                let (vm, into) = (Arc::clone(&model.vm), Arc::clone(&model.into));
                thread::spawn(move || {
                    let (call, wake) = publish(&vm, number);
                    if wake == Wake::Asleep {
                        into.ring().unwrap();
                    }
                    (call, number)
                })
            })
            .collect();
        serve(&model.worker, 0);
        serve(&model.worker, 0);
        for caller in callers {
            let (call, number) = caller.join().unwrap();
            expect(&model.vm, call, number);
        }
        assert_eq!(model.vm.in_flight(), 0);
    });
}

/// Answer, report and cancel race: the caller is either out and never told, or told exactly once.
#[test]
fn cancel_races_with_the_report() {
    check(3, || {
        let model = model(1, 1);
        let (call, _) = publish(&model.vm, 1);
        let parked = model.vm.park(&call);
        assert_eq!(parked, Park::Parked);
        let worker = Arc::clone(&model.worker);
        let executor = thread::spawn(move || serve(&worker, 0));
        let (vm, out) = (Arc::clone(&model.vm), Arc::clone(&model.out));
        let reactor = thread::spawn(move || {
            let mut told = 0;
            if let Wait::Rung(rings) = out.wait(None).unwrap() {
                vm.drain(rings, |_| told += 1).unwrap();
            }
            told
        });
        let cancel = model.vm.cancel(call);
        executor.join().unwrap();
        let told = reactor.join().unwrap();
        match cancel {
            Cancel::Cancelled { .. } => assert_eq!(told, 0),
            Cancel::Committed(call) => {
                assert_eq!(told, 1);
                expect(&model.vm, call, 1);
            }
        }
        assert_eq!(model.vm.in_flight(), 0);
        model.vm.unclaim(model.vm.claim().unwrap());
    });
}

/// The caller dies while the worker answers: the slot comes back once, to whoever looks first.
#[test]
fn an_abandoned_slot_comes_back_once() {
    check(3, || {
        let model = model(1, 1);
        let (call, _) = publish(&model.vm, 1);
        let worker = Arc::clone(&model.worker);
        let executor = thread::spawn(move || serve(&worker, 0));
        let vm = Arc::clone(&model.vm);
        let other = thread::spawn(move || vm.claim());
        model.vm.abandon(call);
        executor.join().unwrap();
        let claims = [other.join().unwrap(), model.vm.claim()];
        assert_eq!(claims.iter().flatten().count(), 1);
    });
}

/// The worker's death against a caller that goes to sleep: it is told, or it does not sleep.
#[test]
fn nobody_sleeps_at_a_closed_ring() {
    check(3, || {
        let model = model(1, 1);
        let (call, _) = publish(&model.vm, 1);
        let vm = Arc::clone(&model.vm);
        let death = thread::spawn(move || {
            let mut told = 0;
            vm.close(|_| told += 1);
            told
        });
        let parked = model.vm.park(&call);
        let told = death.join().unwrap();
        match parked {
            Park::Parked => assert_eq!(told, 1),
            Park::Answered => assert_eq!(told, 0),
        }
        assert!(matches!(model.vm.poll(&call).unwrap(), Poll::Dead { started: false }));
    });
}

/// Two executors answer two parked callers; the queue reports each once.
#[test]
fn completions_are_reported_once_each() {
    check(2, || {
        let model = model(2, 1);
        let calls = [publish(&model.vm, 1).0, publish(&model.vm, 2).0];
        for call in &calls {
            assert_eq!(model.vm.park(call), Park::Parked);
        }
        let worker = Arc::clone(&model.worker);
        let executor = thread::spawn(move || {
            serve(&worker, 0);
            serve(&worker, 0);
        });
        let mut told = Vec::new();
        while told.len() < 2 {
            if let Wait::Rung(rings) = model.out.wait(None).unwrap() {
                model.vm.drain(rings, |caller| told.push(caller.slot)).unwrap();
            }
        }
        executor.join().unwrap();
        told.sort_unstable();
        assert_eq!(told, [0, 1]);
        for (call, number) in calls.into_iter().zip(1..) {
            expect(&model.vm, call, number);
        }
    });
}

/// The status block is read whole or not at all.
#[test]
fn the_status_is_whole() {
    check(3, || {
        let model = model(1, 1);
        let worker = Arc::clone(&model.worker);
        let writer = thread::spawn(move || {
            worker.beat(WorkerStatus {
                beats: 1,
                beat_at: 1,
                extra: [1; 4],
                ..WorkerStatus::default()
            });
        });
        if let Some(status) = model.vm.status() {
            assert_eq!([status.beats; 4], status.extra);
            assert_eq!(status.beats, status.beat_at);
        }
        writer.join().unwrap();
    });
}

/// An event is either seen by the drain that runs, or rung for.
#[test]
fn no_event_is_left_unrung() {
    check(3, || {
        let model = model(1, 1);
        let worker = Arc::clone(&model.worker);
        let writer = thread::spawn(move || {
            worker.event(1, &[1; 8]).unwrap();
            worker.event(2, &[2; 3]).unwrap();
        });
        let mut seen = Vec::new();
        while seen.len() < 2 {
            if let Wait::Rung(_) = model.out.wait(None).unwrap() {
                let count = model
                    .vm
                    .events(8, |kind, bytes| seen.push((kind, bytes.to_vec())))
                    .unwrap();
                assert!(count < 8);
            }
        }
        writer.join().unwrap();
        assert_eq!(seen, [(1, vec![1; 8]), (2, vec![2; 3])]);
    });
}
