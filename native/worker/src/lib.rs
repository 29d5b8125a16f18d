//! The host of native libraries: what `snakepit_worker` runs them in. src/host/README.md tells the design.

pub mod host;
pub mod inspect;
pub mod thread;
