//! What a call through the ring costs between two processes, and what it costs to wake one of them.
//!
//! `cargo run --release -p snakepit_shm_core --example ring_bench [awake | asleep | bells]` (all of them by default). The
//! second process is this program again.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a program for a terminal")]

use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use snakepit_shm_core::mapping::Permit;
use snakepit_shm_core::ring::bell::{self, Listener, Ringer, Wait};
use snakepit_shm_core::ring::vm::{Call, Park, Payload, Poll, Request, VmRing, Wake};
use snakepit_shm_core::ring::worker::{Next, WorkerRing};
use snakepit_shm_core::ring::{Caller, Plan};
use std::hint::{black_box, spin_loop};
use std::io::{PipeReader, PipeWriter, Read, Write};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.first().map(String::as_str) {
        Some("--worker") => worker(&arguments[1..]),
        Some("--echo") => echo(&arguments[1..]),
        choice => {
            let wanted = |part| choice.is_none_or(|choice| choice == part);
            if wanted("awake") {
                lines();
                awake();
            }
            if wanted("asleep") {
                asleep();
            }
            if wanted("bells") {
                bells();
            }
        }
    }
}

const REQUEST: Request = Request {
    function: 1,
    arity: 2,
    caller: Caller {
        index: 0,
        generation: 1,
    },
};
/// As much as the arguments of `add(1, 2)` are on the wire.
const ARGUMENTS: [u8; 4] = [97, 1, 97, 2];

struct Peer {
    ring: VmRing,
    into: Ringer,
    out: Listener,
    child: Child,
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn peer(pinned: bool, spin: Duration) -> Peer {
    let ring = VmRing::create("ring_bench", Plan::default(), Permit::take(u64::MAX).unwrap(), 0).unwrap();
    let (into, worker_in) = bell::pair().unwrap();
    let (worker_out, out) = bell::pair().unwrap();
    let fd = ring.fd().unwrap();
    let descriptors = [
        fd.as_raw_fd(),
        worker_in.as_fd().as_raw_fd(),
        worker_out.as_fd().as_raw_fd(),
    ];
    let child = spawn("--worker", pinned, &descriptors, spin.as_micros() as u64);
    Peer { ring, into, out, child }
}

/// This program again, with a few descriptors.
fn spawn(role: &str, pinned: bool, descriptors: &[RawFd], number: u64) -> Child {
    for fd in descriptors {
        // SAFETY: clears close-on-exec of a descriptor that is open here.
        unsafe { libc::fcntl(*fd, libc::F_SETFD, 0) };
    }
    pin(pinned, 0);
    Command::new(std::env::current_exe().unwrap())
        .arg(role)
        .arg(if pinned { "1" } else { "-" })
        .arg(number.to_string())
        .args(descriptors.iter().map(RawFd::to_string))
        .stdin(Stdio::null())
        .spawn()
        .unwrap()
}

fn pin(pinned: bool, core: usize) {
    let mut cores = CpuSet::new();
    for index in 0..CpuSet::count() {
        if !pinned || index == core {
            let _ = cores.set(index);
        }
    }
    let _ = sched_setaffinity(Pid::from_raw(0), &cores);
}

fn descriptor(text: &str) -> OwnedFd {
    // SAFETY: the parent has passed this descriptor on, nobody else here owns it.
    unsafe { OwnedFd::from_raw_fd(text.parse().unwrap()) }
}

fn worker(arguments: &[String]) {
    pin(arguments[0] == "1", 1);
    let spin = Duration::from_micros(arguments[1].parse().unwrap());
    let into = Listener::from_fd(descriptor(&arguments[3]));
    let out = Ringer::from_fd(descriptor(&arguments[4]));
    let ring = WorkerRing::attach(descriptor(&arguments[2]).as_fd(), into, out).unwrap();
    while let Next::Job(job) = ring.next(0, spin, None).unwrap() {
        // The sum of two small integers, so that the arguments are read and the answer depends on them.
        let answer = match job.arguments(&ring) {
            [97, a, 97, b] => [97, a.wrapping_add(*b)],
            _ => [0, 0],
        };
        ring.answer(0, job, 0, &answer).unwrap();
    }
}

fn finish(peer: &Peer, call: Call) {
    let Poll::Answered(answer) = peer.ring.spin(&call, Duration::from_secs(10)).unwrap() else {
        panic!("no answer")
    };
    let source = peer.ring.source(&call, &answer);
    assert_eq!(black_box(source.private()), Some(&[97, 3][..]));
    peer.ring.release(call);
}

fn call(peer: &Peer) -> (Call, Wake) {
    let claim = peer.ring.claim().unwrap();
    peer.ring.publish(claim, REQUEST, Payload::Bytes(&ARGUMENTS)).unwrap()
}

/// The floor: two words on lines of their own, and nothing else. Between two threads: the lines do not know the difference.
fn lines() {
    #[repr(align(128))]
    struct Line(AtomicU32);
    const TRIPS: u32 = 400_000;
    let lines = [Line(AtomicU32::new(0)), Line(AtomicU32::new(0))];
    let mut times = Vec::with_capacity(TRIPS as usize);
    std::thread::scope(|scope| {
        let lines = &lines;
        scope.spawn(move || {
            pin(true, 1);
            for trip in 1..=TRIPS {
                while lines[0].0.load(Ordering::Acquire) != trip {
                    spin_loop();
                }
                lines[1].0.store(trip, Ordering::Release);
            }
        });
        pin(true, 0);
        for trip in 1..=TRIPS {
            let began = Instant::now();
            lines[0].0.store(trip, Ordering::Release);
            while lines[1].0.load(Ordering::Acquire) != trip {
                spin_loop();
            }
            times.push(began.elapsed());
        }
    });
    report("bare cache-line round trip, pinned", &mut times);
}

fn awake() {
    for pinned in [true, false] {
        let peer = peer(pinned, Duration::from_secs(3600));
        for pause in [Duration::ZERO, Duration::from_micros(5)] {
            const CALLS: usize = 400_000;
            let mut times = Vec::with_capacity(CALLS);
            for index in 0..CALLS + 20_000 {
                let began = Instant::now();
                let (call, _) = call(&peer);
                finish(&peer, call);
                if index >= 20_000 {
                    times.push(began.elapsed());
                }
                while began.elapsed() < pause {
                    spin_loop();
                }
            }
            let between = format!("{} us between calls", pause.as_micros());
            report(&format!("empty call awake, {}, {between}", kind(pinned)), &mut times);
        }
        // The clock takes part of it: many calls between two looks.
        let began = Instant::now();
        for _ in 0..1_000_000 {
            let (call, _) = call(&peer);
            finish(&peer, call);
        }
        let each = began.elapsed().as_nanos() as f64 / 1e6;
        println!(
            "empty call awake, {}, mean without a clock: {:.3} us",
            kind(pinned),
            each / 1000.0
        );
        batch(&peer, pinned);
    }
    let mut times: Vec<Duration> = (0..100_000).map(|_| Instant::now().elapsed()).collect();
    report("two looks at the clock", &mut times);
}

/// 32 calls published, then collected.
fn batch(peer: &Peer, pinned: bool) {
    const ROUNDS: u32 = 30_000;
    let began = Instant::now();
    let mut calls = Vec::with_capacity(32);
    for _ in 0..ROUNDS {
        for _ in 0..32 {
            let claim = peer.ring.claim().unwrap();
            let call = peer.ring.publish_quietly(claim, REQUEST, Payload::Bytes(&ARGUMENTS));
            calls.push(call.unwrap());
        }
        black_box(peer.ring.wake());
        for call in calls.drain(..) {
            finish(peer, call);
        }
    }
    let rate = f64::from(ROUNDS * 32) / began.elapsed().as_secs_f64() / 1e6;
    println!("32 calls in flight, {}: {rate:.2} million a second", kind(pinned));
}

fn asleep() {
    for pinned in [true, false] {
        for gap in [1, 5, 20] {
            let peer = peer(pinned, Duration::from_micros(50));
            let mut times = Vec::new();
            for _ in 0..(2_000 / gap).clamp(100, 500) {
                std::thread::sleep(Duration::from_millis(gap));
                let began = Instant::now();
                let (call, wake) = call(&peer);
                if wake == Wake::Asleep {
                    peer.into.ring().unwrap();
                }
                if peer.ring.park(&call) == Park::Parked {
                    let mut woken = 0;
                    while woken == 0 {
                        match peer.out.wait(None).unwrap() {
                            Wait::Rung(rings) => peer.ring.drain(rings, |_| woken += 1).unwrap(),
                            other => panic!("{other:?}"),
                        };
                    }
                }
                finish(&peer, call);
                times.push(began.elapsed());
            }
            report(&format!("call asleep, {}, gap {gap} ms", kind(pinned)), &mut times);
        }
    }
}

fn kind(pinned: bool) -> &'static str {
    if pinned { "pinned" } else { "unpinned" }
}

fn report(what: &str, times: &mut [Duration]) {
    times.sort();
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize].as_nanos() as f64 / 1000.0;
    println!(
        "{what}: p50 {:.3} us, p99 {:.3}, p99.9 {:.3}",
        at(0.5),
        at(0.99),
        at(0.999)
    );
}

/// The bells that were compared: a round trip asleep each, both processes sleep.
trait Bell {
    fn ring(&mut self);
    fn wait(&mut self);
}

struct Eventfd(OwnedFd, OwnedFd);

impl Bell for Eventfd {
    fn ring(&mut self) {
        nix::unistd::write(&self.0, &1u64.to_ne_bytes()).unwrap();
    }

    fn wait(&mut self) {
        nix::unistd::read(&self.1, &mut [0; 8]).unwrap();
    }
}

struct BlockingPipe(PipeWriter, PipeReader);

impl Bell for BlockingPipe {
    fn ring(&mut self) {
        self.0.write_all(&[1]).unwrap();
    }

    fn wait(&mut self) {
        self.1.read_exact(&mut [0]).unwrap();
    }
}

/// Ours: `ppoll` for the deadline, then a read that does not block.
struct Ours(Ringer, Listener);

impl Bell for Ours {
    fn ring(&mut self) {
        self.0.ring().unwrap();
    }

    fn wait(&mut self) {
        self.1.wait(None).unwrap();
    }
}

struct Futex {
    ring: *const AtomicU32,
    wait: *const AtomicU32,
    seen: u32,
}

impl Bell for Futex {
    fn ring(&mut self) {
        // SAFETY: a word of a mapping that lives as long as the process. The futex is shared between processes.
        unsafe {
            (*self.ring).fetch_add(1, Ordering::SeqCst);
            libc::syscall(libc::SYS_futex, self.ring, libc::FUTEX_WAKE, 1);
        }
    }

    fn wait(&mut self) {
        // SAFETY: as above.
        unsafe {
            while (*self.wait).load(Ordering::SeqCst) == self.seen {
                libc::syscall(libc::SYS_futex, self.wait, libc::FUTEX_WAIT, self.seen, 0usize);
            }
        }
        self.seen = self.seen.wrapping_add(1);
    }
}

const BELLS: [&str; 4] = ["eventfd", "pipe, blocking", "pipe, polled (ours)", "shared futex"];

/// `there` is rung by the first process, `back` by the second.
fn make(index: usize, [there_read, there_write, back_read, back_write]: [OwnedFd; 4], first: bool) -> Box<dyn Bell> {
    let (write, read) = if first {
        (there_write, back_read)
    } else {
        (back_write, there_read)
    };
    match index {
        0 => Box::new(Eventfd(write, read)),
        1 => Box::new(BlockingPipe(write.into(), read.into())),
        2 => Box::new(Ours(Ringer::from_fd(write), Listener::from_fd(read))),
        _ => {
            let map = memmap2::MmapOptions::new()
                .len(4096)
                .map_raw(write.as_raw_fd())
                .unwrap();
            let words = map.as_mut_ptr().cast::<AtomicU32>().cast_const();
            std::mem::forget(map);
            let (ring, wait) = if first { (0, 64) } else { (64, 0) };
            Box::new(Futex {
                ring: words.wrapping_add(ring),
                wait: words.wrapping_add(wait),
                seen: 0,
            })
        }
    }
}

fn descriptors(index: usize) -> [OwnedFd; 4] {
    match index {
        0 => {
            let make = || {
                // SAFETY: eventfd makes a descriptor that nobody else owns.
                unsafe { OwnedFd::from_raw_fd(libc::eventfd(0, libc::EFD_CLOEXEC)) }
            };
            let (there, back) = (make(), make());
            [there.try_clone().unwrap(), there, back.try_clone().unwrap(), back]
        }
        1 => {
            let (a, b) = std::io::pipe().unwrap();
            let (c, d) = std::io::pipe().unwrap();
            [a.into(), b.into(), c.into(), d.into()]
        }
        2 => {
            let (a, b) = bell::pair().unwrap();
            let (c, d) = bell::pair().unwrap();
            [b.into_fd(), a.into_fd(), d.into_fd(), c.into_fd()]
        }
        _ => {
            // SAFETY: the name is terminated; the descriptor is new.
            let fd = unsafe { OwnedFd::from_raw_fd(libc::memfd_create(c"futex".as_ptr(), libc::MFD_CLOEXEC)) };
            nix::unistd::ftruncate(&fd, 4096).unwrap();
            let clone = || fd.try_clone().unwrap();
            [clone(), clone(), clone(), clone()]
        }
    }
}

fn echo(arguments: &[String]) {
    pin(arguments[0] == "1", 1);
    let ends = [2, 3, 4, 5].map(|index| descriptor(&arguments[index]));
    let mut bell = make(arguments[1].parse().unwrap(), ends, false);
    loop {
        bell.wait();
        bell.ring();
    }
}

fn bells() {
    for pinned in [true, false] {
        for (index, name) in BELLS.iter().enumerate() {
            for gap in [1, 5, 20] {
                let ends = descriptors(index);
                let numbers = ends.each_ref().map(AsRawFd::as_raw_fd);
                let mut child = spawn("--echo", pinned, &numbers, index as u64);
                let mut bell = make(index, ends, true);
                let mut times = Vec::new();
                for _ in 0..(2_000 / gap).clamp(100, 500) {
                    std::thread::sleep(Duration::from_millis(gap));
                    let began = Instant::now();
                    bell.ring();
                    bell.wait();
                    times.push(began.elapsed());
                }
                let _ = child.kill();
                let _ = child.wait();
                report(&format!("{name}, {}, gap {gap} ms", kind(pinned)), &mut times);
            }
        }
    }
}
