//! Segments of shared memory.
//!
//! A [`Segment`](segment::Segment) is one memory object of the operating system: a header page
//! ([`header`], `LAYOUT.md`) and the data behind it. Invariants of this crate:
//!
//! * What a peer can write is copied once into private memory, checked there, and used from there.
//! * No Rust reference ever points into memory that somebody else can write. Only a [`Mapping`](mapping::Mapping)
//!   of memory that the kernel has sealed hands out a slice.
//! * The VM maps only what nobody can truncate. Everything else is reached with `pread` and `pwrite`.
//! * Every descriptor and mapping has one owner, is counted, and is bounded.
//!
//! ```
//! use snakepit_shm_core::{budget::Budget, header::Header, segment::{Plan, Segment, Wait}};
//!
//! let budget = Budget::new();
//! let charge = budget.charge(4096, 1 << 20)?;
//! let segment = Segment::create(charge, Plan::anonymous(Header::draft("shm_r1", "example", 4096)))?;
//! segment.write(0, &[b"hello"], Wait::Patient)?;
//! segment.seal(Wait::Patient)?;
//! let view = segment.view(0, 5)?;
//! segment.close(false);
//! assert_eq!(view.bytes(), b"hello");
//! # Ok::<(), snakepit_shm_core::error::Error>(())
//! ```

#[cfg(not(target_os = "linux"))]
compile_error!("snakepit_shm_core has back ends for Linux only");

pub mod backend;
pub mod budget;
mod cgroup;
pub mod copy;
pub mod descriptor;
pub mod error;
pub mod header;
pub mod headroom;
pub mod identity;
pub mod lock_file;
pub mod machine;
pub mod mapping;
pub mod reaper;
pub mod ring;
pub mod segment;
mod signal;

pub use error::{Error, Result};
