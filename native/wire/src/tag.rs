//! The first byte of every term. `README.md` tells what follows each.

/// A pid, port, reference or fun, by its place in the VM's table for one worker.
pub const NAME: u8 = 1;
/// An object of the worker.
pub const RESOURCE: u8 = 2;
/// Reserved: a region of shared memory.
pub const REGION: u8 = 3;
/// Reserved: a published snapshot.
pub const SNAPSHOT: u8 = 4;
/// Reserved: a binary that lies elsewhere.
pub const OUT_OF_LINE: u8 = 5;

pub const NEW_FLOAT: u8 = 70;
pub const BIT_BINARY: u8 = 77;
pub const SMALL_INTEGER: u8 = 97;
pub const INTEGER: u8 = 98;
pub const ATOM: u8 = 100;
pub const SMALL_TUPLE: u8 = 104;
pub const LARGE_TUPLE: u8 = 105;
pub const NIL: u8 = 106;
pub const STRING: u8 = 107;
pub const LIST: u8 = 108;
pub const BINARY: u8 = 109;
pub const SMALL_BIG: u8 = 110;
pub const LARGE_BIG: u8 = 111;
pub const SMALL_ATOM: u8 = 115;
pub const MAP: u8 = 116;
pub const ATOM_UTF8: u8 = 118;
pub const SMALL_ATOM_UTF8: u8 = 119;

/// Tags under which the VM writes pids, ports, references and funs. A worker that could send them could name
/// anything in the VM, so they are refused by name and not merely unknown.
pub const FOREIGN_NAMES: [u8; 11] = [88, 89, 90, 101, 102, 103, 112, 113, 114, 117, 120];
