//! What the VM is that the library belongs to: its versions, as `enif_system_info` tells them, and what depends on them.

use super::entry::{MAJOR, MINOR};
use snakepit_wire::control::System;
use std::ffi::{CString, c_int};
use std::sync::OnceLock;

/// The VM, with texts as a library reads them.
#[derive(Debug)]
pub struct Vm {
    pub system: System,
    pub erts: CString,
    pub release: CString,
    number: u32,
}

static VM: OnceLock<Vm> = OnceLock::new();

impl Vm {
    fn new(system: System) -> Self {
        let text = |text: &str| CString::new(text).unwrap_or_default();
        Self {
            erts: text(&system.erts),
            release: text(&system.release),
            // A release that is no number is one of a time to come.
            number: system.release.parse().unwrap_or(u32::MAX),
            system,
        }
    }
}

/// Whose library it is; once, before it is loaded.
pub fn tell_of(system: System) {
    let _ = VM.set(Vm::new(system));
}

/// The VM. Without one (a test of the host alone): the first whose NIF API is all of this.
pub fn vm() -> &'static Vm {
    VM.get_or_init(|| {
        Vm::new(System {
            driver: (3, 3),
            nif: (MAJOR, MINOR),
            erts: "15.0".into(),
            release: "27".into(),
            threads: 1,
            smp: 1,
            async_threads: 1,
            schedulers: std::thread::available_parallelism().map_or(1, |count| count.get() as c_int),
            dirty_schedulers: 1,
        })
    })
}

/// Whether `enif_term_to_binary` writes all atoms as UTF-8; before, those of Latin-1 as such.
pub fn writes_utf8() -> bool {
    vm().number >= 26
}

/// Whether `0.0 =:= -0.0`.
#[inline]
pub fn zeros_are_one() -> bool {
    vm().number < 27
}
