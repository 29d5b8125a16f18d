//! What runs a library: loading, terms, `enif_*`. README.md tells the design.

pub mod api;
mod atom;
mod buffer;
mod callbacks;
mod clock;
mod copy;
pub(crate) mod elf;
mod entry;
mod env;
mod errno;
mod executor;
mod external;
mod fun;
mod hash;
mod heap;
mod held;
mod known;
mod lack;
mod library;
mod load;
mod map;
mod missing;
mod monitor;
mod name;
mod option;
mod order;
mod portable_hash;
mod print;
mod resource;
mod select;
mod send;
mod service;
mod size;
mod symbols;
mod term;
mod vm;
mod wire;
mod zlib;

pub use callbacks::{attended, retry, settle};
pub use clock::{Clock, follow};
pub use executor::{Call, Executor, Outcome, limits};
pub use lack::{Allocator, when_memory_lacks};
pub use library::register_barriers;
pub use load::{Wanted, load, load_wanted, unload_all};
pub use option::threads_unload;
pub use service::{Transport, answer, connect, hears, stop};
pub use symbols::{exported, implemented};
pub use vm::tell_of;

/// The VM has let go of these resources: one number for each handle that it had. Destructors run in a thread of their own.
pub fn release(ids: Vec<u64>) {
    callbacks::later(callbacks::Work::Release(ids));
}

/// Unloads a library; `done` is called when nothing runs in it any more.
pub fn unload(number: u32, done: impl FnOnce() + Send + 'static) {
    later(move || load::unload(number, done));
}

/// A process that the library monitors has ended. Its callback runs in the same thread.
pub fn down(monitor: u64) {
    callbacks::later(callbacks::Work::Down(monitor));
}

/// Has something done by the same thread, in the order of these calls: it runs code of libraries.
pub fn later(work: impl FnOnce() + Send + 'static) {
    callbacks::later(callbacks::Work::Other(Box::new(work)));
}

/// Objects of the library that are alive.
pub fn objects() -> u64 {
    resource::alive()
}
