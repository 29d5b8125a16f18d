//! The other side of bench/run.exs: a line with a command in, a line with nanoseconds out.
//!
//! ```text
//! segment SIZE COUNT             the system calls of one anonymous region, made and given back; COUNT times
//! hold COUNT SIZE                keeps so many of them from here on
//! memcpy in|out SIZE COUNT BATCH into mapped memory, or out of it into fresh memory
//! file in|out SIZE COUNT BATCH   the same with pwrite and pread, on a file under /dev/shm
//! crate create|open SIZE COUNT   the shared_memory crate
//! line COUNT WORK                a cache line to and fro between two processes that spin
//! event COUNT GAP                an eventfd to and fro between two pinned processes that sleep
//! iceoryx COUNT WORK             request and response of iceoryx2
//! kill PID                       SIGKILL; the clock (CLOCK_MONOTONIC) before it, and when the process had ended
//! ```
//!
//! With BATCH each number is the mean of that many runs, otherwise each run is timed alone. WORK and GAP are nanoseconds in
//! front of each run, spent working or asleep.
//!
//! `bench_peers partner ...` is the other process of a round trip.

mod copy;
mod death;
mod event;
mod foreign;
mod iceoryx;
mod line;
mod os;
mod partner;
mod segment;

use std::io::{self, BufRead, Write};
use std::time::{Duration, Instant};

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

fn main() -> Outcome<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => serve().map_err(Into::into),
        ["partner", "line"] => line::answer(),
        ["partner", "event", processor] => event::answer(processor.parse()?),
        ["partner", "iceoryx", name] => iceoryx::answer(name),
        _ => Err("commands come by standard input".into()),
    }
}

fn serve() -> io::Result<()> {
    let mut held = Vec::new();
    let mut out = io::stdout().lock();
    for line in io::stdin().lock().lines() {
        match answer(&line?, &mut held) {
            Ok(numbers) => {
                let text: Vec<String> = numbers.iter().map(u64::to_string).collect();
                writeln!(out, "ok {}", text.join(" "))?;
            }
            Err(error) => writeln!(out, "error {error}")?,
        }
        out.flush()?;
    }
    Ok(())
}

fn answer(line: &str, held: &mut Vec<segment::Segment>) -> Outcome<Vec<u64>> {
    let words: Vec<&str> = line.split_whitespace().collect();
    match words.as_slice() {
        ["segment", size, count] => segments(size.parse()?, count.parse()?),
        ["hold", count, size] => {
            let (count, size): (usize, usize) = (count.parse()?, size.parse()?);
            held.truncate(count);
            while held.len() < count {
                held.push(segment::Segment::create(size)?);
            }
            Ok(vec![])
        }
        ["memcpy", "in", size, count, batch] => copy::memcpy_in(size.parse()?, count.parse()?, batch.parse()?),
        ["memcpy", "out", size, count, batch] => copy::memcpy_out(size.parse()?, count.parse()?, batch.parse()?),
        ["file", "in", size, count, batch] => copy::file_in(size.parse()?, count.parse()?, batch.parse()?),
        ["file", "out", size, count, batch] => copy::file_out(size.parse()?, count.parse()?, batch.parse()?),
        ["crate", "create", size, count] => foreign::create(size.parse()?, count.parse()?),
        ["crate", "open", size, count] => foreign::open(size.parse()?, count.parse()?),
        ["line", count, work] => line::round_trips(count.parse()?, work.parse()?),
        ["event", count, gap] => event::round_trips(count.parse()?, Duration::from_nanos(gap.parse()?)),
        ["iceoryx", count, work] => iceoryx::round_trips(count.parse()?, work.parse()?),
        ["kill", pid] => death::kill(pid.parse()?),
        _ => Err(format!("unknown command: {line}").into()),
    }
}

fn segments(size: usize, count: usize) -> Outcome<Vec<u64>> {
    sample(count, 1, || {
        drop(segment::Segment::create(size)?);
        Ok(())
    })
}

/// `count` samples; each is the mean of `batch` runs.
fn sample(count: usize, batch: usize, mut run: impl FnMut() -> Outcome<()>) -> Outcome<Vec<u64>> {
    (0..count)
        .map(|_| {
            let start = Instant::now();
            for _ in 0..batch {
                run()?;
            }
            Ok(nanoseconds(start) / batch.max(1) as u64)
        })
        .collect()
}

/// Busy for that long.
fn work(nanoseconds: u64) {
    let start = Instant::now();
    while self::nanoseconds(start) < nanoseconds {}
}

fn nanoseconds(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX)
}
