//! `snakepit_worker`: one executable, two roles, and a tool. README.md tells their lives.
//!
//! ```text
//! snakepit_worker warden                      descriptor 3: the VM
//! snakepit_worker worker <parent> <label> <memory>     3: the VM, 4: ring, 5: bell in, 6: bell out
//! snakepit_worker check <library> <module> <VM>   reads a library, without running it
//! ```
//!
//! `main` is C's, not Rust's: the start of Rust's standard library installs a handler for SIGSEGV, and a stack that
//! overflows in somebody's library must end by that signal and not by the SIGABRT of such a handler.

#![cfg_attr(not(test), no_main)]
#![cfg_attr(test, allow(dead_code, reason = "what starts a process is not called by unit tests"))]

mod answer;
mod channel;
mod check;
mod executor;
mod exit;
mod keeper;
mod libraries;
mod output;
mod packet;
mod process;
mod warden;
mod worker;

use snakepit_host::{host, thread};
use std::ffi::CStr;

#[global_allocator]
static ALLOCATOR: host::Allocator = host::Allocator;

#[cfg(not(test))]
#[unsafe(no_mangle)]
extern "C" fn main(count: std::ffi::c_int, arguments: *const *const std::ffi::c_char) -> std::ffi::c_int {
    let arguments: Vec<&CStr> = (0..count.max(0) as usize)
        // SAFETY: the C library passes `count` terminated strings, which live as long as the process.
        .map(|position| unsafe { CStr::from_ptr(*arguments.add(position)) })
        .collect();
    run(&arguments)
}

fn run(arguments: &[&CStr]) -> i32 {
    match arguments.get(1).map(|role| role.to_bytes()) {
        Some(b"warden") => warden::run(),
        Some(b"worker") => match (number(arguments.get(2)), number(arguments.get(4))) {
            (Some(parent), Some(memory)) => process::leave(worker::run(parent, memory)),
            _ => usage(),
        },
        Some(b"check") => match arguments.get(2..) {
            Some([library, module, vm]) => check::run(library, module, vm),
            _ => usage(),
        },
        _ => usage(),
    }
}

fn number<T: std::str::FromStr>(argument: Option<&&CStr>) -> Option<T> {
    argument?.to_str().ok()?.parse().ok()
}

fn usage() -> i32 {
    process::complain(format_args!(
        "started by the Erlang VM only, with the descriptors that its README names"
    ));
    exit::USAGE
}
