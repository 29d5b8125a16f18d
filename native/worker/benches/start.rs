//! What a worker costs: from the request to the first answer, and what it keeps when idle.
//!
//! `cargo bench -p snakepit_worker`. Bars: 5 ms and 3 MB.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a benchmark may: its line says why it failed"
)]

#[path = "../tests/support/mod.rs"]
mod support;

use snakepit_shm_core::ring::Plan;
use snakepit_wire::control::{FromWarden, FromWorker};
use std::time::{Duration, Instant};
use support::{Warden, int, library::fixture, plan, value};

const ROUNDS: usize = 200;

fn main() {
    let library = fixture("adder");
    let warden = Warden::start();
    let stages = ["started", "hello", "loaded", "first call", "death to report"];
    let mut times: Vec<Vec<Duration>> = vec![Vec::new(); stages.len()];
    let mut memory = None;
    for round in 0..ROUNDS {
        let begin = Instant::now();
        let mut worker = warden.ask(plan());
        match warden.hear() {
            FromWarden::Started { pid, .. } => worker.pid = pid,
            other => panic!("{other:?}"),
        }
        times[0].push(begin.elapsed());
        assert!(matches!(worker.hear(), Some(FromWorker::Hello { .. })));
        times[1].push(begin.elapsed());
        worker.load(&library, 1);
        times[2].push(begin.elapsed());
        assert_eq!(worker.call("add", &[int(1), int(2)]), value(int(3)));
        times[3].push(begin.elapsed());
        if round == ROUNDS - 1 {
            std::thread::sleep(Duration::from_secs(1));
            memory = Some(private(worker.pid));
        }
        let killed = Instant::now();
        // SAFETY: takes numbers only; the warden has not reaped it.
        unsafe { libc::kill(worker.pid as i32, libc::SIGKILL) };
        warden.ended(&worker);
        times[4].push(killed.elapsed());
    }
    println!("{ROUNDS} workers, one after the other, milliseconds since the request (p50, p90, p99):");
    for (stage, times) in stages.iter().zip(&mut times) {
        times.sort();
        let at = |percent: usize| times[(times.len() - 1) * percent / 100].as_secs_f64() * 1e3;
        println!("  {stage:<16} {:6.2} {:6.2} {:6.2}", at(50), at(90), at(99));
    }
    let mut worker = warden.worker_with(Plan { executors: 1, ..plan() });
    worker.load(&library, 1);
    let calls = awake(&worker);
    println!("a call of add(1, 2) from Rust, worker awake, p50: {calls} ns");
    let (own, parts) = memory.unwrap();
    println!("private memory of an idle worker, without ring and library: {own} KiB");
    for (name, kilobytes) in parts {
        println!("  {kilobytes:>6} {name}");
    }
}

/// A call to a worker that is awake: the p50, in nanoseconds, with the reading of a clock in it.
fn awake(worker: &support::Worker) -> u128 {
    let function = worker.function("add", 2);
    let mut times: Vec<_> = (0..200_000)
        .map(|_| {
            let begin = Instant::now();
            let call = worker.submit(function, 2, &[97, 1, 97, 2]);
            assert_eq!(worker.answer(call, support::PATIENCE), value(int(3)));
            begin.elapsed().as_nanos()
        })
        .collect();
    times.sort_unstable();
    times[times.len() / 2]
}

/// KiB that nobody shares, by mapping; the ring and the library are not counted in the sum.
fn private(pid: u32) -> (u64, Vec<(String, u64)>) {
    let smaps = std::fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap();
    let mut parts: Vec<(String, u64)> = Vec::new();
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        let first = words.next().unwrap();
        if !first.ends_with(':') {
            let name = words.nth(4).unwrap_or("(anonymous)");
            parts.push((name.rsplit('/').next().unwrap().to_owned(), 0));
        } else if first.starts_with("Private_") {
            parts.last_mut().unwrap().1 += words.next().unwrap().parse::<u64>().unwrap();
        }
    }
    let mut sums: Vec<(String, u64)> = Vec::new();
    for (name, kilobytes) in parts.into_iter().filter(|(_, kilobytes)| *kilobytes > 0) {
        match sums.iter_mut().find(|(known, _)| *known == name) {
            Some((_, sum)) => *sum += kilobytes,
            None => sums.push((name, kilobytes)),
        }
    }
    sums.sort_by_key(|(_, kilobytes)| std::cmp::Reverse(*kilobytes));
    let foreign = |name: &str| name.starts_with("memfd:") || name.starts_with("adder");
    let own = sums
        .iter()
        .filter(|(name, _)| !foreign(name))
        .map(|(_, kilobytes)| kilobytes)
        .sum();
    (own, sums)
}
