//! Both sides of a ring in one process, two mappings.

mod ring_support;

use ring_support::{Both, request};
use snakepit_shm_core::ring::bell::Wait;
use snakepit_shm_core::ring::vm::{Call, Cancel, Done, Park, Payload, Poll, Wake};
use snakepit_shm_core::ring::worker::{EventQueueFull, Next};
use snakepit_shm_core::ring::{Error, Fault, Plan, WorkerStatus, status};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

#[test]
fn payloads_of_every_size_come_back() {
    let both = Both::new(Plan::default());
    let mut input = Vec::new();
    let sizes = [
        0, 1, 7, 8, 31, 32, 33, 47, 48, 49, 64, 4095, 16_383, 16_384, 16_385, 40_000, 1_000_000, 20_000_000,
    ];
    for size in sizes {
        input.resize(size, 0x5A);
        input
            .iter_mut()
            .enumerate()
            .for_each(|(index, byte)| *byte = (index * 7) as u8);
        let (call, _) = both
            .vm
            .publish(both.vm.claim().unwrap(), request(size as u32), Payload::Bytes(&input))
            .unwrap();
        let job = both.job();
        assert_eq!((job.function, job.arity), (size as u32, 2));
        assert_eq!(job.caller, request(0).caller);
        let arguments = job.arguments(&both.worker).to_vec();
        assert_eq!(arguments, input);
        let mut output = both.worker.output(job);
        for part in arguments.chunks(1 << 15) {
            output.append(part).unwrap();
        }
        output.finish(0, 3);
        assert_eq!(both.answer(call), (3, input.clone()));
    }
    assert_eq!(both.vm.in_flight(), 0);
}

#[test]
fn areas_come_back_from_calls_that_used_them() {
    let both = Both::new(Plan {
        spill_bytes: 1 << 20,
        ..Plan::default()
    });
    let big = vec![7; 900_000];
    for _ in 0..20 {
        let (call, _) = both
            .vm
            .publish(both.vm.claim().unwrap(), request(1), Payload::Bytes(&big))
            .unwrap();
        let job = both.job();
        both.worker.answer(0, job, 0, &big).unwrap();
        assert_eq!(both.answer(call).1.len(), big.len());
    }
    let held = both.vm.spill(600_000).unwrap();
    let (claim, error) = both
        .vm
        .publish(both.vm.claim().unwrap(), request(1), Payload::Bytes(&big))
        .unwrap_err();
    assert!(matches!(error, Error::TooLarge { bytes: 900_000, .. }));
    let mut spill = both.vm.grow(held, 10, 1_000_000).unwrap();
    let (pointer, length) = both.vm.spill_area(&spill);
    assert!(length >= 1_000_000);
    // SAFETY: the area is that long and ours.
    unsafe { pointer.write_bytes(3, 1_000_000) };
    spill = both.vm.grow(spill, 1_000_000, 1_048_576).unwrap();
    let (call, _) = both
        .vm
        .publish(claim, request(1), Payload::Spill(spill, 1_000_000))
        .unwrap();
    let job = both.job();
    assert!(job.arguments(&both.worker).iter().all(|byte| *byte == 3));
    let (job, error) = both.worker.answer(0, job, 0, &vec![0; 2_000_000]).unwrap_err();
    assert!(matches!(error, Error::TooLarge { bytes: 2_000_000, .. }));
    both.worker.answer(0, job, 4, b"too large").unwrap();
    assert_eq!(both.answer(call), (4, b"too large".to_vec()));
}

#[test]
fn a_full_ring_gives_nothing_and_answers_come_in_any_order() {
    let both = Both::new(Plan::default());
    let calls: Vec<_> = (0..64).map(|n| both.publish(n)).collect();
    assert!(both.vm.claim().is_none());
    let mut jobs: Vec<_> = (0..64).map(|_| both.job()).collect();
    while let Some(job) = jobs.pop() {
        let text = job.function.to_le_bytes();
        both.worker.answer(0, job, 0, &text).unwrap();
    }
    for (n, call) in calls.into_iter().enumerate() {
        assert_eq!(both.answer(call).1, (n as u32).to_le_bytes());
    }
    assert_eq!(both.vm.in_flight(), 0);
}

#[test]
fn a_parked_caller_is_reported_once() {
    let both = Both::new(Plan::default());
    let call = both.publish(1);
    let job = both.job();
    assert_eq!(both.vm.park(&call), Park::Parked);
    both.worker.answer(0, job, 0, b"x").unwrap();
    assert_eq!(both.woken(), [call.slot()]);
    assert!(both.woken().is_empty());
    assert_eq!(both.answer(call).1, b"x");

    let call = both.publish(2);
    let job = both.job();
    both.worker.answer(0, job, 0, b"y").unwrap();
    assert_eq!(both.vm.park(&call), Park::Answered);
    assert!(both.woken().is_empty());
    assert_eq!(both.answer(call).1, b"y");
}

#[test]
fn a_cancelled_slot_comes_back_when_the_worker_has_answered() {
    let both = Both::new(Plan {
        slots: 1,
        ..Plan::default()
    });
    for park in [false, true] {
        let call = both.publish(1);
        let job = both.job();
        if park {
            assert_eq!(both.vm.park(&call), Park::Parked);
        }
        assert!(matches!(both.vm.cancel(call), Cancel::Cancelled { started: true }));
        assert!(both.vm.claim().is_none());
        both.worker.answer(0, job, 0, b"late").unwrap();
        assert!(both.woken().is_empty());
        both.vm.unclaim(both.vm.claim().unwrap());
    }
    let call = both.publish(3);
    assert!(matches!(both.vm.cancel(call), Cancel::Cancelled { started: false }));
    let job = both.job();
    both.worker.answer(0, job, 0, &[1; 100]).unwrap();
    let call = both.publish(4);
    let job = both.job();
    both.worker.answer(0, job, 0, b"now").unwrap();
    let Cancel::Committed(call) = both.vm.cancel(call) else {
        panic!("it was answered")
    };
    assert_eq!(both.answer(call).1, b"now");
}

#[test]
fn cancel_loses_against_a_report() {
    let both = Both::new(Plan::default());
    let call = both.publish(1);
    let job = both.job();
    assert_eq!(both.vm.park(&call), Park::Parked);
    both.worker.answer(0, job, 0, b"x").unwrap();
    assert_eq!(both.woken().len(), 1);
    assert!(matches!(both.vm.cancel(call), Cancel::Committed(_)));
}

#[test]
fn an_abandoned_slot_is_free_after_the_answer() {
    let both = Both::new(Plan {
        slots: 2,
        ..Plan::default()
    });
    let (early, late) = (both.publish(1), both.publish(2));
    let (first, second) = (both.job(), both.job());
    both.worker.answer(0, first, 0, &[9; 20_000]).unwrap();
    both.vm.abandon(early);
    assert_eq!(both.vm.in_flight(), 1);
    both.vm.abandon(late);
    assert_eq!(both.vm.in_flight(), 1);
    both.worker.answer(0, second, 0, b"").unwrap();
    assert_eq!(both.vm.in_flight(), 0);
}

#[test]
fn an_answer_that_nobody_takes_is_shown_once() {
    let mut both = Both::new(Plan::default());
    let heard = Arc::new(Mutex::new(Vec::new()));
    let hears = Arc::clone(&heard);
    both.vm.unheard(move |answer, source| {
        let mut bytes = Vec::new();
        source.read(&mut bytes);
        hears.lock().unwrap().push((answer.status, bytes));
    });
    let calls: Vec<_> = (0..5).map(|n| both.publish(n)).collect();
    let [early, late, parked, taken, dead]: [Call; 5] = calls.try_into().unwrap();
    let jobs: Vec<_> = (0..5).map(|_| both.job()).collect();
    let [first, second, third, fourth, _never]: [_; 5] = jobs.try_into().ok().unwrap();
    let shown = || std::mem::take(&mut *heard.lock().unwrap());

    both.worker.answer(0, first, 3, &[9; 20_000]).unwrap();
    both.vm.abandon(early);
    assert_eq!(shown(), [(3, vec![9; 20_000])]);
    both.vm.abandon(late);
    assert_eq!(shown(), []);
    both.worker.answer(0, second, 0, b"late").unwrap();
    assert_eq!(both.vm.in_flight(), 3);
    assert_eq!(shown(), [(0, b"late".to_vec())]);

    assert_eq!(both.vm.park(&parked), Park::Parked);
    both.worker.answer(0, third, 0, b"parked").unwrap();
    both.vm.drain(1, |_| ()).unwrap();
    both.vm.abandon(parked);
    assert_eq!(shown(), [(0, b"parked".to_vec())]);

    both.worker.answer(0, fourth, 0, b"taken").unwrap();
    assert!(matches!(both.vm.poll(&taken).unwrap(), Poll::Answered(_)));
    both.vm.release(taken);
    both.vm.abandon(dead);
    both.vm.close(|_| ());
    assert_eq!(shown(), []);
}

#[test]
fn answers_that_nobody_takes_are_shown_a_few_at_a_time() {
    let mut both = Both::new(Plan::default());
    let heard = Arc::new(Mutex::new(0));
    let hears = Arc::clone(&heard);
    both.vm.unheard(move |_, _| *hears.lock().unwrap() += 1);
    let calls: Vec<_> = (0..40).map(|n| both.publish(n)).collect();
    for call in calls {
        both.vm.abandon(call);
    }
    for _ in 0..40 {
        let job = both.job();
        both.worker.answer(0, job, 0, b"x").unwrap();
    }
    let shown = || std::mem::take(&mut *heard.lock().unwrap());
    both.vm.drain(40, |_| ()).unwrap();
    assert_eq!(shown(), 16);
    assert_eq!((both.vm.in_flight(), shown()), (8, 16));
    assert_eq!((both.vm.in_flight(), shown()), (0, 8));
}

#[test]
fn the_death_of_the_worker_reports_everybody() {
    let both = Both::new(Plan::default());
    let calls: Vec<_> = (0..4).map(|n| both.publish(n)).collect();
    let (answered, _started) = (both.job(), both.job());
    both.worker.answer(0, answered, 0, b"done").unwrap();
    assert_eq!(both.vm.park(&calls[1]), Park::Parked);
    assert_eq!(both.vm.park(&calls[2]), Park::Parked);
    let mut woken = Vec::new();
    both.vm.close(|caller| woken.push(caller.slot));
    assert_eq!(woken, [1, 2]);
    both.vm.close(|_| panic!("once"));
    assert!(both.vm.claim().is_none());
    let seen: Vec<_> = calls.iter().map(|call| both.vm.collect(call).unwrap()).collect();
    assert!(matches!(seen[0], Poll::Answered(_)));
    assert!(matches!(seen[1], Poll::Dead { started: true }));
    assert!(matches!(seen[2], Poll::Dead { started: false }));
    assert_eq!(both.vm.park(&calls[3]), Park::Answered);
    assert!(matches!(
        both.vm.poll(&calls[3]).unwrap(),
        Poll::Dead { started: false }
    ));
}

#[test]
fn an_idle_worker_sleeps_and_is_woken() {
    for executors in [1, 3] {
        let both = Both::new(Plan {
            executors,
            ..Plan::default()
        });
        std::thread::scope(|scope| {
            for executor in 0..executors as u16 {
                let worker = &both.worker;
                scope.spawn(move || {
                    while let Next::Job(job) = worker.next(executor, Duration::from_micros(20), None).unwrap() {
                        let text = job.function.to_le_bytes();
                        worker.answer(executor, job, 0, &text).unwrap();
                    }
                });
            }
            for n in 0..200u32 {
                std::thread::sleep(Duration::from_micros(u64::from(n % 7) * 20));
                let claim = both.vm.claim().unwrap();
                let (call, wake) = both.vm.publish(claim, request(n), Payload::Bytes(&[])).unwrap();
                if wake == Wake::Asleep {
                    both.into.ring().unwrap();
                }
                if both.vm.park(&call) == Park::Parked {
                    let deadline = Instant::now() + Duration::from_secs(5);
                    loop {
                        let Wait::Rung(rings) = both.out.wait(Some(deadline)).unwrap() else {
                            panic!("not woken at call {n}")
                        };
                        let mut woken = 0;
                        both.vm.drain(rings, |_| woken += 1).unwrap();
                        if woken > 0 {
                            break;
                        }
                    }
                }
                assert_eq!(both.answer(call).1, n.to_le_bytes());
            }
            both.worker.stop();
        });
    }
}

#[test]
fn a_woken_worker_is_waited_for_but_not_for_ever() {
    let both = Both::new(Plan::default());
    let long = Duration::from_secs(20);
    let first = both.publish(1);
    // Nobody takes it, and it does not wait for ever.
    assert!(matches!(
        both.vm.attend(&first, Wake::Asleep, Duration::from_micros(1)).unwrap(),
        Poll::Waiting
    ));
    let job = both.job();
    let second = both.publish(2);
    assert!(matches!(
        both.vm.attend(&second, Wake::Asleep, Duration::from_micros(1)).unwrap(),
        Poll::Waiting
    ));
    both.worker.answer(0, job, 0, &[1]).unwrap();
    assert!(matches!(
        both.vm.attend(&first, Wake::Asleep, Duration::ZERO).unwrap(),
        Poll::Answered(_)
    ));
    assert_eq!(both.answer(first).1, [1]);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let job = both.job();
            both.worker.answer(0, job, 0, &[2]).unwrap();
        });
        assert!(matches!(
            both.vm.attend(&second, Wake::Asleep, long).unwrap(),
            Poll::Answered(_)
        ));
    });
    assert_eq!(both.answer(second).1, [2]);
}

#[test]
fn callers_and_executors_in_parallel_never_mix_answers() {
    let both = Both::new(Plan {
        slots: 8,
        executors: 4,
        ..Plan::default()
    });
    std::thread::scope(|scope| {
        for executor in 0..4 {
            let worker = &both.worker;
            scope.spawn(move || {
                while let Next::Job(job) = worker.next(executor, Duration::from_micros(5), None).unwrap() {
                    let copy = job.arguments(worker).to_vec();
                    worker.answer(executor, job, 0, &copy).unwrap();
                }
            });
        }
        let callers: Vec<_> = (0..4u64)
            .map(|caller| {
                let both = &both;
                scope.spawn(move || {
                    for n in 0..2_000u64 {
                        let payload = [caller, n, caller ^ n, !n, n * 3, 5].map(u64::to_le_bytes).concat();
                        let payload = &payload[..if n % 3 == 0 { 48 } else { 24 }];
                        let claim = loop {
                            match both.vm.claim() {
                                Some(claim) => break claim,
                                None => std::thread::yield_now(),
                            }
                        };
                        let (call, wake) = both.vm.publish(claim, request(1), Payload::Bytes(payload)).unwrap();
                        if wake == Wake::Asleep {
                            both.into.ring().unwrap();
                        }
                        assert_eq!(both.answer(call).1, payload);
                    }
                })
            })
            .collect();
        let results: Vec<_> = callers.into_iter().map(|caller| caller.join()).collect();
        both.worker.stop();
        assert!(results.iter().all(Result::is_ok));
    });
    assert_eq!(both.vm.in_flight(), 0);
}

#[test]
fn events_arrive_in_order_and_are_bounded() {
    let both = Both::new(Plan {
        event_bytes: 4096,
        ..Plan::default()
    });
    let mut sent = 0u32;
    let mut seen = 0u32;
    for round in 0..50usize {
        while both
            .worker
            .event(sent, &vec![sent as u8; (sent as usize * 13 + round) % 300])
            .is_ok()
        {
            sent += 1;
        }
        while both
            .vm
            .events(7, |kind, bytes| {
                assert_eq!(kind, seen);
                assert!(bytes.iter().all(|byte| *byte == seen as u8));
                seen += 1;
            })
            .unwrap()
            == 7
        {}
    }
    assert_eq!(seen, sent);
    assert!(sent > 500);
    assert_eq!(both.worker.event(0, &vec![0; 4089]), Err(EventQueueFull));
    let Wait::Rung(rings) = both.out.silence().unwrap() else {
        panic!("both ends are open")
    };
    assert_eq!(rings, 50);
    assert_eq!(both.vm.drain(rings, |_| panic!("nobody waits")), Ok(0));
}

#[test]
fn too_many_rings_are_a_fault() {
    let both = Both::new(Plan::default());
    assert_eq!(both.vm.drain(64, |_| ()), Ok(0));
    assert_eq!(
        both.vm.drain(1, |_| ()),
        Err(Fault::TooManyRings { rings: 65, allowed: 64 })
    );
}

#[test]
fn that_memory_was_lacking_is_beside_the_status() {
    let both = Both::new(Plan::default());
    assert_eq!(both.vm.lacked(), None);
    both.worker.lacked(7);
    both.worker.beat(WorkerStatus {
        extra: [1; 4],
        ..WorkerStatus::default()
    });
    assert_eq!(both.vm.lacked(), Some(7));
    assert_eq!(both.vm.status().unwrap().extra, [1; 4]);
}

#[test]
fn the_status_is_read_whole() {
    let both = Both::new(Plan::default());
    assert_eq!(both.vm.status(), Some(WorkerStatus::default()));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for n in 1..=20_000 {
                both.worker.beat(WorkerStatus {
                    beats: n,
                    beat_at: n,
                    resident: n,
                    objects: n,
                    extra: [n; 4],
                });
            }
        });
        for _ in 0..20_000 {
            if let Some(status) = both.vm.status() {
                assert_eq!((status.beat_at, status.extra), (status.beats, [status.beats; 4]));
            }
        }
    });
    let call = both.publish(1);
    let job = both.job();
    assert_eq!(both.vm.executor(0).call, Some(0));
    both.worker.answer(0, job, 0, b"").unwrap();
    assert_eq!((both.vm.executor(0).call, both.vm.executor(0).calls), (None, 1));
    assert_eq!(both.vm.executor(7).calls, 0);
    both.vm.abandon(call);
}

#[test]
fn plans_are_checked() {
    for plan in [
        Plan {
            slots: 0,
            ..Plan::default()
        },
        Plan {
            slots: 3,
            ..Plan::default()
        },
        Plan {
            slots: 2048,
            ..Plan::default()
        },
        Plan {
            slot_bytes: 100,
            ..Plan::default()
        },
        Plan {
            spill_bytes: 5,
            ..Plan::default()
        },
        Plan {
            executors: 0,
            ..Plan::default()
        },
        Plan {
            executors: 65,
            ..Plan::default()
        },
        Plan {
            event_bytes: 1000,
            ..Plan::default()
        },
    ] {
        assert!(matches!(plan.layout(), Err(Error::BadPlan { .. })), "{plan:?}");
    }
}

#[test]
fn an_answer_says_that_records_come_before_it() {
    let both = Both::new(Plan::default());
    let status_of_a_call = || {
        let call = both.publish(1);
        both.worker.answer(0, both.job(), status::RAISED, b"x").unwrap();
        both.answer(call).0
    };
    assert_eq!(status_of_a_call(), status::RAISED);
    both.worker.event(1, b"one").unwrap();
    both.worker.event(1, b"two").unwrap();
    assert_eq!(status_of_a_call(), status::RAISED | status::QUEUED);
    assert_eq!(both.vm.events(1, |_, _| {}), Ok(1));
    assert_eq!(status_of_a_call(), status::RAISED | status::QUEUED);
    let seen = both.vm.events(1, |_, _| {
        // A record that is being worked on has not been done with.
        assert_eq!(status_of_a_call(), status::RAISED | status::QUEUED);
    });
    assert_eq!(seen, Ok(1));
    assert_eq!(status_of_a_call(), status::RAISED);
    assert_eq!(status_of_a_call(), status::RAISED);
}

#[test]
fn a_record_that_is_not_done_with_stays_and_is_not_read_again() {
    let both = Both::new(Plan::default());
    for record in [b"a", b"b", b"c", b"d"] {
        both.worker.event(1, record).unwrap();
    }
    let end = both.vm.events_end();
    both.worker.event(1, b"e").unwrap();
    let mut seen = Vec::new();
    let mut take = |end, most, stop: &[u8]| {
        let taken = both.vm.events_until(end, most, |_, bytes| {
            seen.extend_from_slice(bytes);
            if bytes == stop { Done::NotYet } else { Done::Yes }
        });
        taken.unwrap()
    };
    assert_eq!(take(Some(end), 9, b"b"), 2);
    assert_eq!(take(Some(end), 9, b""), 0);
    // A record has sixteen bytes.
    assert!(both.vm.events_done_until(16) && !both.vm.events_done_until(32));
    both.vm.event_done();
    assert!(both.vm.events_done_until(32));
    both.vm.event_done();
    assert_eq!(take(Some(end), 9, b""), 2);
    assert!(both.vm.events_done_until(end));
    assert_eq!(take(Some(end), 9, b""), 0);
    assert_eq!(take(None, 9, b""), 1);
    assert_eq!(seen, b"abcde");
}

#[test]
fn calls_in_flight_are_known_by_their_numbers() {
    let both = Both::new(Plan::default());
    let in_flight = || {
        let mut numbers = vec![7];
        both.vm.calls_in_flight(&mut numbers);
        numbers
    };
    assert_eq!((both.vm.next_number(), in_flight()), (0, vec![]));
    let first = both.publish(1);
    let second = both.publish(1);
    assert_eq!((both.vm.next_number(), in_flight()), (2, vec![0, 1]));
    both.worker.answer(0, both.job(), 0, b"").unwrap();
    // Answered, and not taken.
    assert_eq!(in_flight(), [0, 1]);
    both.answer(first);
    assert_eq!(in_flight(), [1]);
    // Of one that was given up nobody takes the answer.
    both.vm.abandon(second);
    assert_eq!(in_flight(), []);
}
