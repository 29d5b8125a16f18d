//! Espresso as the crate itself isolated it: a forked process for each call. Commands come as lines, answers go as lines.
//!
//! ```text
//! each <count> <file>                    the time of each call, nanoseconds
//! together <threads> <count> <file>      of so many calls, shared among threads: the time of all
//! result <file> <to>                     the minimized PLA goes to another file
//! ```

use espresso_logic::{Cover, PLACover, PLAType};
use std::io::{BufRead, Write};
use std::time::Instant;

type Failure = Box<dyn std::error::Error + Send + Sync>;

fn main() -> Result<(), Failure> {
    let mut output = std::io::stdout();
    for line in std::io::stdin().lock().lines() {
        let answer = match command(&line?) {
            Ok(numbers) => numbers
                .iter()
                .fold("ok".to_owned(), |text, number| format!("{text} {number}")),
            Err(error) => format!("error {error}"),
        };
        writeln!(output, "{answer}")?;
        output.flush()?;
    }
    Ok(())
}

fn command(line: &str) -> Result<Vec<u128>, Failure> {
    let words: Vec<&str> = line.split(' ').collect();
    match *words {
        ["each", count, file] => {
            let text = std::fs::read_to_string(file)?;
            (0..count.parse::<usize>()?)
                .map(|_| {
                    let start = Instant::now();
                    minimize(&text)?;
                    Ok(start.elapsed().as_nanos())
                })
                .collect()
        }
        ["together", threads, count, file] => {
            let text = std::fs::read_to_string(file)?;
            let (threads, count): (usize, usize) = (threads.parse()?, count.parse()?);
            let start = Instant::now();
            std::thread::scope(|scope| {
                let running: Vec<_> = (0..threads)
                    .map(|_| scope.spawn(|| (0..count / threads).try_for_each(|_| minimize(&text).map(drop))))
                    .collect();
                running
                    .into_iter()
                    .try_for_each(|thread| thread.join().map_err(|_| "a thread has panicked")?)
            })?;
            Ok(vec![start.elapsed().as_nanos()])
        }
        ["result", file, to] => {
            std::fs::write(to, minimize(&std::fs::read_to_string(file)?)?)?;
            Ok(vec![])
        }
        _ => Err(format!("not understood: {line}").into()),
    }
}

fn minimize(text: &str) -> Result<String, Failure> {
    let mut cover = PLACover::from_pla_content(text)?;
    cover.minimize()?;
    Ok(cover.to_pla_string(PLAType::F)?)
}
