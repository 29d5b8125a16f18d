//! What runs a library: loading, terms, `enif_*`.

use snakepit_wire::control::{Failed, Loaded, Stage};
use snakepit_wire::{Limits, Name, Sink};
use std::path::Path;

/// How a call ended. The payload of `Value` and `Raised` has been written.
#[derive(Debug)]
#[allow(dead_code)]
pub enum Outcome {
    Value,
    Raised,
    NotImplemented(&'static str),
    BadArguments(String),
    TooLarge,
    NotEncodable(String),
}

/// A call of the library.
#[derive(Debug)]
#[allow(dead_code)]
pub struct Call<'a> {
    pub function: u32,
    pub arity: u32,
    pub arguments: &'a [u8],
    pub caller: Name,
}

/// What runs calls in one thread.
#[derive(Debug)]
pub struct Executor;

/// Bounds of every answer; once, before [`load`].
pub fn limits(_limits: Limits) {}

/// Loads the library of this process.
pub fn load(_path: &Path, _load_info: &[u8]) -> Result<Loaded, Failed> {
    Err(Failed {
        stage: Stage::Worker,
        code: 0,
        message: "this worker was built without a host for libraries".to_owned(),
    })
}

/// The VM has let go of these resources.
pub fn release(_ids: &[u64]) {}

impl Executor {
    pub fn new() -> Self {
        Executor
    }

    pub fn call<S: Sink>(&mut self, _call: &Call<'_>, _answer: &mut S) -> Outcome {
        Outcome::NotImplemented("a host for libraries")
    }
}
