//! What the tests of segments share.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test may: its line says why it failed"
)]
#![allow(dead_code)]

use nix::errno::Errno;
use snakepit_shm_core::backend::Object;
use snakepit_shm_core::descriptor::Descriptor;
use snakepit_shm_core::error::Result;
use snakepit_shm_core::segment::{Segment, Wait};
use std::fs::File;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

/// A directory of its own on the tmpfs, gone at the end.
pub struct Place {
    directory: tempfile::TempDir,
    files: tempfile::TempDir,
}

impl Place {
    pub fn new() -> Self {
        let directory = tempfile::Builder::new()
            .prefix("snakepit-test-")
            .tempdir_in("/dev/shm")
            .unwrap();
        Place {
            directory,
            files: tempfile::tempdir().unwrap(),
        }
    }

    /// Where the named object goes.
    pub fn path(&self) -> PathBuf {
        self.directory.path().join("object")
    }

    pub fn directory(&self) -> PathBuf {
        self.directory.path().to_path_buf()
    }

    /// A file for anything else.
    pub fn file(&self, name: &str) -> PathBuf {
        self.files.path().join(name)
    }

    pub fn is_empty(&self) -> bool {
        std::fs::read_dir(self.directory.path()).unwrap().next().is_none()
    }
}

pub fn read_of(object: &dyn Object, offset: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    // SAFETY: the vector is `length` bytes long.
    let got = unsafe { object.read_at(offset, bytes.as_mut_ptr(), length) }.unwrap();
    bytes.truncate(got);
    bytes
}

pub fn read(segment: &Segment, offset: u64, length: usize) -> Result<Vec<u8>> {
    let mut bytes = vec![MaybeUninit::new(0xAA); length];
    segment.read(offset, &mut bytes, Wait::Patient)?;
    // SAFETY: initialised above, and by `read`.
    Ok(bytes.into_iter().map(|byte| unsafe { byte.assume_init() }).collect())
}

/// A peer's way of writing: through its descriptor.
pub fn write_through(peer: &Descriptor, offset: u64, bytes: &[u8]) -> std::io::Result<()> {
    file(peer).write_all_at(bytes, offset)
}

pub fn read_through(peer: &Descriptor, offset: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    file(peer).read_exact_at(&mut bytes, offset).unwrap();
    bytes
}

/// (sequence, writer, state) as a peer sees them.
pub fn live_line(peer: &Descriptor) -> (u64, u64, u32) {
    let line = read_through(peer, 4032, 20);
    let word = |at: usize| u64::from_le_bytes(line[at..at + 8].try_into().unwrap());
    (word(0), word(8), u32::from_le_bytes(line[16..20].try_into().unwrap()))
}

/// As any process that has the object open for writing can.
pub fn add_seals(file: &impl AsRawFd, seals: i32) -> std::result::Result<(), Errno> {
    // SAFETY: F_ADD_SEALS takes an integer and touches no memory.
    Errno::result(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals) }).map(drop)
}

pub fn file(peer: &Descriptor) -> File {
    File::from(peer.as_fd().try_clone_to_owned().unwrap())
}
