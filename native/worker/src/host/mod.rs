//! What runs a library: loading, terms, `enif_*`. README.md tells the design.

pub mod api;
mod atom;
mod buffer;
mod copy;
mod elf;
mod entry;
mod env;
mod executor;
mod external;
mod hash;
mod heap;
mod load;
mod map;
mod missing;
mod name;
mod order;
mod portable_hash;
mod print;
mod resource;
mod symbols;
mod term;
mod wire;

pub use executor::{Call, Executor, Outcome, limits};
pub use load::load;
pub use symbols::{exported, implemented};

/// The VM has let go of these resources: one number for each handle that it had.
pub fn release(ids: &[u64]) {
    resource::dropped(ids);
}
