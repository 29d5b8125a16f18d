//! A library in this process: one for each test binary, as one for each worker.
#![allow(dead_code, reason = "each test binary uses a part")]

use snakepit_host::host::{self, Call, Executor, Outcome};
use snakepit_wire::control::{Failed, Loaded};
use snakepit_wire::reference::{Heap, Value};
use snakepit_wire::{Decoder, Encoder, Limits, Name, NameKind, SliceSource, VecSink};
use std::path::{Path, PathBuf};
use std::process::Command;

pub const CALLER: Name = Name {
    kind: NameKind::Pid,
    index: 7,
    generation: 3,
};

/// What a call gave.
#[derive(Debug, PartialEq)]
pub enum Answer {
    Value(Value),
    Raised(Value),
    Other(Outcome),
}

pub struct Library {
    loaded: Loaded,
    executor: Executor,
}

pub fn encode(terms: &[Value]) -> Vec<u8> {
    let mut heap = Heap::new();
    let terms: Vec<_> = terms.iter().map(|term| heap.add(term.clone())).collect();
    let mut bytes = Vec::new();
    let mut sink = VecSink::new(&mut bytes, usize::MAX);
    Encoder::new()
        .encode_all(&mut heap, terms, &Limits::DEFAULT, &mut sink)
        .unwrap();
    bytes
}

pub fn decode(bytes: &[u8]) -> Value {
    let mut heap = Heap::new();
    let term = Decoder::new()
        .decode(&mut SliceSource::new(bytes), &Limits::DEFAULT, &mut heap)
        .unwrap();
    heap.value(term)
}

/// Where Debian keeps a library of an OTP application.
pub fn debian(pattern: &str, file: &str) -> Option<PathBuf> {
    let applications = std::fs::read_dir("/usr/lib/erlang/lib").ok()?;
    applications
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(pattern))
        .map(|entry| entry.path().join(file))
        .find(|path| path.with_extension("so").exists())
}

/// Compiles C or C++ code into a library of this name. One that another process has open is replaced, not written to.
pub fn compile_code(name: &str, code: &Path) -> PathBuf {
    let target = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
    let fresh = target.with_extension(std::process::id().to_string());
    let compiled = Command::new("cc")
        .args([
            "-shared",
            "-fPIC",
            "-O1",
            "-g",
            "-Wall",
            "-pthread",
            "-I/usr/lib/erlang/usr/include",
            "-o",
        ])
        .args([&fresh, code])
        .args(code.extension().is_some_and(|kind| kind == "cc").then_some("-lstdc++"))
        .status()
        .unwrap();
    assert!(compiled.success());
    std::fs::rename(fresh, target.with_extension("so")).unwrap();
    target
}

/// Compiles a C library of tests/hosted/.
pub fn compile(source: &str) -> PathBuf {
    let code = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/hosted").join(source);
    compile_code(source, &code.with_extension("c"))
}

pub fn load(path: &Path, info: &Value) -> Result<Library, Failed> {
    let loaded = host::load(path, &encode(std::slice::from_ref(info)))?;
    Ok(Library {
        loaded,
        executor: Executor::new(),
    })
}

impl Library {
    pub fn loaded(&self) -> &Loaded {
        &self.loaded
    }

    /// Position of a function in the library's table.
    pub fn position(&self, name: &str, arity: usize) -> u32 {
        let of =
            |function: &snakepit_wire::control::Function| function.name == name && function.arity as usize == arity;
        self.loaded.functions.iter().position(of).unwrap() as u32
    }

    pub fn call(&mut self, name: &str, arguments: &[Value]) -> Answer {
        let mut bytes = Vec::new();
        match self.raw(name, arguments, &mut bytes, usize::MAX) {
            Outcome::Value => Answer::Value(decode(&bytes)),
            Outcome::Raised => Answer::Raised(decode(&bytes)),
            other => Answer::Other(other),
        }
    }

    pub fn raw(&mut self, name: &str, arguments: &[Value], answer: &mut Vec<u8>, room: usize) -> Outcome {
        let encoded = encode(arguments);
        let call = Call {
            function: self.position(name, arguments.len()),
            arity: arguments.len() as u32,
            arguments: &encoded,
            caller: CALLER,
        };
        let outcome = self.executor.call(&call, &mut VecSink::new(answer, room));
        self.executor.clear();
        outcome
    }

    /// The value of a call that gives one.
    pub fn value(&mut self, name: &str, arguments: &[Value]) -> Value {
        match self.call(name, arguments) {
            Answer::Value(value) => value,
            other => panic!("{name}: {other:?}"),
        }
    }
}

pub fn binary(bytes: impl AsRef<[u8]>) -> Value {
    Value::Binary(bytes.as_ref().to_vec())
}

pub fn atom(text: &str) -> Value {
    Value::atom(text)
}

pub fn int(value: i64) -> Value {
    Value::Integer(value)
}

pub fn text(text: &str) -> Value {
    Value::list(text.bytes().map(|byte| int(byte.into())))
}

pub fn name(kind: NameKind, index: u32, key: &[u8]) -> Value {
    let name = Name {
        kind,
        index,
        generation: 1,
    };
    Value::Name {
        name,
        key: key.to_vec(),
    }
}

/// The key of a local pid with this number.
pub fn pid_key(number: u32) -> Vec<u8> {
    let mut key = vec![88, 119, 13];
    key.extend_from_slice(b"nonode@nohost");
    key.extend_from_slice(&number.to_be_bytes());
    key.extend_from_slice(&[0, 0, 0, 0, 0, 0, 0, 0]);
    key
}

pub fn pid(index: u32, number: u32) -> Value {
    name(NameKind::Pid, index, &pid_key(number))
}

/// The key of a reference with these words, the most significant first.
pub fn reference(index: u32, words: [u32; 3]) -> Value {
    let mut key = vec![90, 0, 3, 119, 13];
    key.extend_from_slice(b"nonode@nohost");
    key.extend_from_slice(&[0, 0, 0, 0]);
    words
        .iter()
        .rev()
        .for_each(|word| key.extend_from_slice(&word.to_be_bytes()));
    name(NameKind::Reference, index, &key)
}

pub fn big(negative: bool, magnitude: &[u8]) -> Value {
    Value::Big {
        negative,
        magnitude: magnitude.to_vec(),
    }
}

/// One of each kind, and each edge of the integers.
pub fn samples() -> Vec<Value> {
    let many = Value::map((0..100).map(|key| (int(key), binary(vec![key as u8; 70]))));
    vec![
        int(0),
        int(-1),
        int((1 << 59) - 1),
        int(1 << 60),
        int(-(1 << 60)),
        int(-(1 << 60) - 1),
        int(i64::MAX),
        int(i64::MIN),
        Value::Unsigned(u64::MAX),
        big(false, &[0, 0, 0, 0, 0, 0, 0, 0, 1]),
        big(true, &[1, 0, 0, 0, 0, 0, 0, 128]),
        big(true, &[9; 300]),
        Value::Float(-0.0),
        Value::Float(1e300),
        atom("hello"),
        atom("\u{3b1}\u{3b2}"),
        atom(""),
        Value::Nil,
        Value::list([int(1), Value::list([int(2), Value::Nil])]),
        Value::List(vec![int(1), int(2)], Some(Box::new(atom("tail")))),
        Value::tuple([]),
        Value::tuple([atom("a"), Value::tuple([int(1)])]),
        Value::map([]),
        Value::map([(atom("a"), int(1)), (Value::Float(1.0), int(2)), (int(1), int(3))]),
        many,
        binary(""),
        binary("short"),
        binary(vec![7; 100_000]),
        Value::Bits {
            bytes: vec![1, 0b1010_0000],
            last: 3,
        },
    ]
}
