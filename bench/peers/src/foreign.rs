//! The `shared_memory` crate. Giving back is not timed.

use crate::{Outcome, nanoseconds};
use shared_memory::ShmemConf;
use std::time::Instant;

pub fn create(size: usize, count: usize) -> Outcome<Vec<u64>> {
    (0..count)
        .map(|_| {
            let start = Instant::now();
            let memory = ShmemConf::new().size(size).create()?;
            let took = nanoseconds(start);
            drop(memory);
            Ok(took)
        })
        .collect()
}

pub fn open(size: usize, count: usize) -> Outcome<Vec<u64>> {
    let owner = ShmemConf::new().size(size).create()?;
    (0..count)
        .map(|_| {
            let start = Instant::now();
            let memory = ShmemConf::new().os_id(owner.get_os_id()).open()?;
            let took = nanoseconds(start);
            drop(memory);
            Ok(took)
        })
        .collect()
}
