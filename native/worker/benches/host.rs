//! What a call costs inside of the worker: decode the arguments, run the function, encode what it gives. No ring.
//!
//! `cargo bench -p snakepit_worker --bench host`

#![allow(clippy::unwrap_used, clippy::panic, reason = "a benchmark that cannot run says so")]

#[path = "../tests/hosted/mod.rs"]
mod hosted;

use hosted::{CALLER, atom, binary};
use snakepit_host::host::{Call, Executor, Outcome};
use snakepit_wire::VecSink;
use snakepit_wire::reference::Value;
use std::hint::black_box;
use std::time::Instant;

const ROUNDS: u32 = 20;

/// Nanoseconds of one call, the median of some rounds.
fn measure(library: &hosted::Library, name: &str, arguments: &[Value], calls: u32) -> f64 {
    let encoded = hosted::encode(arguments);
    let call = Call {
        function: library.position(name, arguments.len()),
        arity: arguments.len() as u32,
        arguments: &encoded,
        caller: CALLER,
    };
    let mut executor = Executor::new();
    let mut answer = Vec::with_capacity(1 << 24);
    let mut rounds: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            let start = Instant::now();
            for _ in 0..calls {
                answer.clear();
                let outcome = executor.call(black_box(&call), &mut VecSink::new(&mut answer, usize::MAX));
                assert_eq!(outcome, Outcome::Value);
                executor.clear();
            }
            start.elapsed().as_nanos() as f64 / f64::from(calls)
        })
        .collect();
    rounds.sort_by(f64::total_cmp);
    rounds[rounds.len() / 2]
}

fn main() {
    let library = hosted::load(&hosted::compile("terms"), &Value::Integer(42)).unwrap();
    let numbers = || Value::list((0..10).map(Value::Integer));
    let cases: [(&str, &str, Vec<Value>); 6] = [
        ("add(1, 2)", "add", vec![Value::Integer(1), Value::Integer(2)]),
        ("echo(atom)", "echo", vec![atom("hello")]),
        ("echo([0..9])", "echo", vec![numbers()]),
        (
            "echo(map of 10)",
            "echo",
            vec![Value::map((0..10).map(|key| (Value::Integer(key), atom("v"))))],
        ),
        ("echo(64 bytes)", "echo", vec![binary([0; 64])]),
        ("echo(4 KiB)", "echo", vec![binary([0; 4096])]),
    ];
    for (title, name, arguments) in cases {
        println!("{title:<16} {:>9.1} ns", measure(&library, name, &arguments, 100_000));
    }
    println!(
        "{:<16} {:>9.1} us",
        "map of 20,000",
        measure(&library, "map_many", &[Value::Integer(20_000)], 3) / 1e3
    );
}
