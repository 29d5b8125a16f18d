//! Codes with which a process of ours leaves by its own will. A library that calls `exit(3)` may use any of them.

/// The VM's end of the control channel is closed, or it said stop.
pub const DONE: i32 = 0;
/// Started by somebody who does not know how: roles, descriptors.
pub const USAGE: i32 = 64;
/// A message that makes no sense: the VM is of another version.
pub const PROTOCOL: i32 = 65;
/// No `Load` within the deadline.
pub const NO_LOAD: i32 = 66;
/// The warden that started this worker is gone.
pub const ORPHAN: i32 = 67;
/// A ring that cannot be mapped, a thread that cannot be started.
pub const INTERNAL: i32 = 70;
/// The library could not be loaded; `Failed` says why.
pub const NOT_LOADED: i32 = 71;
