//! The codec against the VM's own `term_to_binary/1`: fixed bytes that are checked in, and random terms where a VM is.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails where it stands")]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use snakepit_wire::reference::{Heap, Value};
use snakepit_wire::{DecodeError, Decoder, Encoder, Limits, SliceSource, VecSink};

fn hex(text: &str) -> Vec<u8> {
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    assert!(rest.is_empty());
    let byte = |pair: &[u8; 2]| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap();
    pairs.iter().map(byte).collect()
}

fn vectors() -> BTreeMap<&'static str, Vec<u8>> {
    let lines = include_str!("vectors.txt").lines();
    lines
        .map(|line| line.split_once(' ').unwrap())
        .map(|(name, bytes)| (name, hex(bytes)))
        .collect()
}

fn decode(bytes: &[u8]) -> Result<Value, DecodeError<std::convert::Infallible>> {
    let mut heap = Heap::new();
    let term = Decoder::new().decode(&mut SliceSource::new(bytes), &Limits::DEFAULT, &mut heap)?;
    Ok(heap.value(term))
}

fn encode(value: Value) -> Vec<u8> {
    let mut heap = Heap::new();
    let term = heap.add(value);
    let mut bytes = Vec::new();
    Encoder::new()
        .encode(
            &mut heap,
            term,
            &Limits::DEFAULT,
            &mut VecSink::new(&mut bytes, 1 << 20),
        )
        .unwrap();
    bytes
}

fn big(negative: bool, zeros: usize, low: u8, high: u8) -> Value {
    let mut magnitude = vec![0; zeros];
    magnitude[0] = low;
    magnitude.push(high);
    Value::Big { negative, magnitude }
}

/// What the terms of `vectors.txt` are.
fn expected() -> Vec<(&'static str, Value)> {
    let int = Value::from;
    vec![
        ("zero", int(0)),
        ("byte", int(255)),
        ("256", int(256)),
        ("minus_one", int(-1)),
        ("max_32", int(i32::MAX.into())),
        ("min_32", int(i32::MIN.into())),
        ("above_32", int(1 << 31)),
        ("below_32", int(-(1 << 31) - 1)),
        ("max_60", int((1 << 59) - 1)),
        ("max_64", int(i64::MAX)),
        ("min_64", int(i64::MIN)),
        ("above_64", Value::Unsigned(1 << 63)),
        ("max_u64", Value::Unsigned(u64::MAX)),
        (
            "below_64",
            Value::Big {
                negative: true,
                magnitude: vec![1, 0, 0, 0, 0, 0, 0, 0x80],
            },
        ),
        ("above_u64", big(false, 8, 0, 1)),
        ("big_256_bytes", big(false, 255, 0, 1)),
        ("float", Value::Float(1.5)),
        ("minus_zero", Value::Float(-0.0)),
        ("atom", Value::atom("ok")),
        ("empty_atom", Value::atom("")),
        ("latin1_atom", Value::atom("é")),
        ("utf8_atom", Value::atom("Ж😀")),
        ("long_atom", Value::Atom("€".repeat(255))),
        ("nil", Value::Nil),
        ("string", Value::list([int(97), int(98), int(99)])),
        ("list", Value::list([int(1), int(256)])),
        ("improper", Value::List(vec![int(1), int(2)], Some(Box::new(int(3))))),
        ("nested", Value::list([Value::Nil, Value::list([Value::Nil])])),
        ("empty_tuple", Value::tuple([])),
        ("pair", Value::tuple([Value::atom("ok"), int(3)])),
        ("large_tuple", Value::Tuple(vec![Value::Nil; 256])),
        ("empty_map", Value::map([])),
        ("map", Value::map([(Value::atom("a"), int(1))])),
        ("empty_binary", Value::Binary(vec![])),
        ("binary", Value::Binary(b"hello".into())),
        (
            "bits",
            Value::Bits {
                bytes: vec![0b1010_0000],
                last: 3,
            },
        ),
        (
            "bits_13",
            Value::Bits {
                bytes: vec![0b0001_1111, 0b1111_1000],
                last: 5,
            },
        ),
    ]
}

#[test]
fn the_vms_bytes_are_read_as_its_terms() {
    let vectors = vectors();
    for (name, value) in expected() {
        assert_eq!(decode(&vectors[name]), Ok(value), "{name}");
    }
}

#[test]
fn the_same_bytes_are_written() {
    let vectors = vectors();
    for (name, value) in expected() {
        // The VM packs lists of bytes into a string, and older ones write short atoms in Latin-1.
        if !["string", "atom", "empty_atom", "latin1_atom", "pair", "map"].contains(&name) {
            assert_eq!(encode(value), vectors[name], "{name}");
        }
    }
}

#[test]
fn real_pids_ports_references_and_funs_are_refused() {
    let mut refused = 0;
    for (name, bytes) in vectors().iter().filter(|(name, _)| name.starts_with("foreign_")) {
        assert_eq!(decode(bytes), Err(DecodeError::ForeignName(bytes[0])), "{name}");
        refused += 1;
    }
    assert_eq!(refused, 5);
}

#[test]
fn every_vector_is_looked_at() {
    let names = expected().len() + 5;
    assert_eq!(vectors().len(), names);
}

fn oracle(arguments: &[&str]) -> Option<Output> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/oracle.escript");
    Command::new("escript").arg(script).args(arguments).output().ok()
}

#[test]
fn random_terms_of_a_vm_come_back_to_it_unchanged() {
    // Without a VM on the path there is no oracle; `make test` always has one.
    let Some(terms) = oracle(&["terms", "20", "1000"]) else {
        return;
    };
    assert!(terms.status.success(), "{terms:?}");
    let mut answer = String::new();
    for line in str::from_utf8(&terms.stdout).unwrap().lines() {
        let value = decode(&hex(line)).unwrap_or_else(|error| panic!("{error}: {line}"));
        answer.extend(encode(value).iter().map(|byte| format!("{byte:02x}")));
        answer.push('\n');
    }
    let file = std::env::temp_dir().join(format!("snakepit_wire_oracle_{}", std::process::id()));
    fs::write(&file, answer).unwrap();
    let check = oracle(&["check", "20", "1000", file.to_str().unwrap()]).unwrap();
    fs::remove_file(&file).unwrap();
    assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stdout));
}
