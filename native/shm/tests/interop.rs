//! Foreign programs: the `shared_memory` crate maps a named object, Python's standard library too.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test may: its line says why it failed"
)]

mod support;

use shared_memory::ShmemConf;
use snakepit_shm_core::budget::Budget;
use snakepit_shm_core::header::{DATA_OFFSET, Header};
use snakepit_shm_core::segment::{Plan, Segment, Wait};
use std::path::PathBuf;
use std::process::Command;
use support::read;

/// Names in /dev/shm itself: `shm_open` knows no directories. Gone when the test ends, however it ends.
struct Name(String);

impl Name {
    fn new(what: &str) -> Self {
        Name(format!("snakepit-interop-{what}-{}", std::process::id()))
    }

    fn path(&self) -> PathBuf {
        PathBuf::from("/dev/shm").join(&self.0)
    }
}

impl Drop for Name {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(self.path());
    }
}

fn create(name: &Name) -> Segment {
    let header = Header {
        peers_write: true,
        ..Header::draft("shm_interop", "tests", 1000)
    };
    Segment::create(Budget::new().charge(1, 1).unwrap(), Plan::named(header, &name.path())).unwrap()
}

#[test]
fn the_shared_memory_crate_reads_and_writes_our_object() {
    let name = Name::new("crate");
    let segment = create(&name);
    segment.write(10, &[b"from the VM"], Wait::Spin).unwrap();
    let foreign = ShmemConf::new().os_id(format!("/{}", name.0)).open().unwrap();
    assert_eq!(foreign.len(), 8192);
    // SAFETY: the mapping is 8,192 bytes long, and nobody else writes in this test.
    unsafe {
        let data = foreign.as_ptr().add(DATA_OFFSET as usize);
        assert_eq!(std::slice::from_raw_parts(data.add(10), 11), b"from the VM");
        data.add(500).copy_from_nonoverlapping(b"from the crate".as_ptr(), 14);
    }
    assert_eq!(read(&segment, 500, 14).unwrap(), b"from the crate");
}

#[test]
fn python_reads_and_writes_our_object() {
    let name = Name::new("python");
    let segment = create(&name);
    segment.write(0, &[b"from the VM"], Wait::Spin).unwrap();
    let script = format!(
        "from multiprocessing import resource_tracker, shared_memory\n\
         s = shared_memory.SharedMemory('{0}')\n\
         resource_tracker.unregister(s._name, 'shared_memory')\n\
         assert bytes(s.buf[4096:4107]) == b'from the VM'\n\
         assert int.from_bytes(s.buf[4032:4040], 'little') == 2\n\
         s.buf[4200:4211] = b'from Python'\n\
         s.close()\n",
        name.0
    );
    match Command::new("python3").arg("-c").arg(script).status() {
        Ok(status) => assert!(status.success()),
        // No Python here: the crate above has shown the same.
        Err(_) => return,
    }
    assert_eq!(read(&segment, 104, 11).unwrap(), b"from Python");
}
