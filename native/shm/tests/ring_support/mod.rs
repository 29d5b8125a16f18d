//! Both sides of a ring.
#![allow(dead_code, reason = "each test file uses a part of it")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a module of tests")]

use snakepit_shm_core::mapping::Permit;
use snakepit_shm_core::ring::bell::{self, Listener, Ringer, Wait};
use snakepit_shm_core::ring::vm::{Call, Payload, Poll, Request, VmRing};
use snakepit_shm_core::ring::worker::{Job, Next, WorkerRing};
use snakepit_shm_core::ring::{Caller, Plan};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

pub struct Both {
    pub vm: VmRing,
    pub worker: WorkerRing,
    /// Wakes the worker.
    pub into: Ringer,
    /// Wakes us.
    pub out: Listener,
}

pub fn vm(plan: Plan) -> VmRing {
    VmRing::create("ring_test", plan, Permit::take(u64::MAX).unwrap(), 0).unwrap()
}

pub fn request(function: u32) -> Request {
    Request {
        function,
        arity: 2,
        caller: Caller {
            index: 5,
            generation: 0xFFFF_FFFF,
        },
    }
}

impl Both {
    pub fn new(plan: Plan) -> Self {
        let vm = vm(plan);
        let (into, worker_in) = bell::pair().unwrap();
        let (worker_out, out) = bell::pair().unwrap();
        let fd = vm.fd().unwrap();
        let worker = WorkerRing::attach(fd.as_fd(), worker_in, worker_out).unwrap();
        Both { vm, worker, into, out }
    }

    pub fn publish(&self, function: u32) -> Call {
        let claim = self.vm.claim().unwrap();
        self.vm
            .publish(claim, request(function), Payload::Bytes(&[]))
            .unwrap()
            .0
    }

    pub fn job(&self) -> Job {
        match self.worker.next(0, Duration::ZERO, Some(Instant::now())).unwrap() {
            Next::Job(job) => job,
            other => panic!("no call: {other:?}"),
        }
    }

    /// The answer, after which the slot is free.
    pub fn answer(&self, call: Call) -> (u16, Vec<u8>) {
        let Poll::Answered(answer) = self.vm.spin(&call, Duration::from_secs(20)).unwrap() else {
            panic!("no answer")
        };
        let mut bytes = Vec::new();
        self.vm.source(&call, &answer).read(&mut bytes);
        self.vm.release(call);
        (answer.status, bytes)
    }

    /// The slots whose callers are to be woken now.
    pub fn woken(&self) -> Vec<u16> {
        let Wait::Rung(rings) = self.out.silence().unwrap() else {
            panic!("both ends are open")
        };
        let mut slots = Vec::new();
        self.vm.drain(rings, |caller| slots.push(caller.slot)).unwrap();
        slots
    }
}
