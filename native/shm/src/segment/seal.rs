//! From writable to immutable.
//!
//! The kernel refuses `F_SEAL_WRITE` while a writable mapping stands, so ours goes first, and `F_SEAL_FUTURE_WRITE`
//! does not let it come back. While it is away the slot holds the memory without a mapping: what asks for it meanwhile,
//! or comes after a failure, finds the data by `pread`. Each way out:
//!
//! | what happens | then |
//! |---|---|
//! | sealed | mapped private and read-only; zero copy if the seals and blocks are all there |
//! | somebody maps it writable, peers may write | mapped again, still allocated, `Busy` |
//! | somebody pins it although peers may not write, or has forbidden seals | copied into a fresh object |
//! | that copy cannot be made | still allocated; `Busy` or `SealedByPeer` with the cause |
//! | closed meanwhile | what was made is dropped, `Closed` |

use super::{Memory, Phase, Segment, Wait, refusal};
use crate::backend::Object;
use crate::budget::Charge;
use crate::error::{Error, Result};
use crate::header::{DATA_OFFSET, Live, STATE, State};
use crate::mapping::{Mapping, Permit};
use std::sync::Arc;
use std::sync::atomic::Ordering;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sealed {
    /// A fresh object was needed; descriptors given out before are of the old one.
    pub copied: bool,
    pub zero_copy: bool,
}

impl Segment {
    /// Makes it immutable. Does nothing when it already is.
    ///
    /// `F_SEAL_WRITE` waits up to 150 ms for pages that somebody has pinned (a peer's `splice`), and a named object is on
    /// a file system: both are refused to a scheduler ([`Error::DirtyNeeded`]).
    pub fn seal(&self, wait: Wait) -> Result<Sealed> {
        if wait == Wait::Spin && (self.header.named || self.exported.load(Ordering::Relaxed)) {
            return Err(Error::DirtyNeeded);
        }
        if let Some(done) = self.sealed_before()? {
            return Ok(done);
        }
        let _gate = self.exclusive(wait)?;
        if let Some(done) = self.sealed_before()? {
            return Ok(done);
        }
        self.nobody_writes()?;
        let memory = self.writable()?;
        self.check(&memory)?;
        let object = Arc::clone(memory.object());
        if !object.mappable() {
            memory.publish_state(State::Sealed)?;
            return self.settle(memory, false);
        }
        // Reading a hole allocates, sealed or not: no zero copy over one.
        if object.resident()? < object.length() {
            object.reserve()?;
        }
        if object.is_pinned_by_peer()? {
            // Known beforehand: the copy is made while everything still stands.
            return match self.copy_to_fresh(&object, memory.charge()) {
                Ok(fresh) => self.settle(fresh, true),
                Err(cause) => Err(Error::SealedByPeer {
                    cause: cause.to_string(),
                }),
            };
        }
        match memory.publish_state(State::Sealed) {
            // An attempt before this one has lost the mapping, and what it has published could not be taken back.
            Err(Error::SealedByPeer { .. }) if says_sealed(&memory)? => {}
            result => result?,
        }
        drop(memory);
        let (permit, charge) = self.unmap().inspect_err(|_| self.take_back(&object))?;
        match object.seal() {
            Ok(()) => self.settle(map_sealed(object, permit, charge), false),
            Err(Error::Busy { .. }) if self.header.peers_write => {
                self.restore(object, permit, charge);
                Err(Error::Busy { writer: 0 })
            }
            Err(refused @ (Error::Busy { .. } | Error::SealedByPeer { .. })) => {
                match self.copy_to_fresh(&object, Arc::clone(&charge)) {
                    Ok(fresh) => self.settle(fresh, true),
                    Err(cause) => {
                        self.restore(object, permit, charge);
                        Err(match refused {
                            Error::SealedByPeer { .. } => Error::SealedByPeer {
                                cause: cause.to_string(),
                            },
                            other => other,
                        })
                    }
                }
            }
            Err(other) => {
                self.restore(object, permit, charge);
                Err(other)
            }
        }
    }

    /// The header must not say sealed when it did not come to that. Best effort: peers believe it, this VM does not.
    fn take_back(&self, object: &Arc<dyn Object>) {
        let _ = object.write_at(STATE as u64, &(State::Allocated as u32).to_le_bytes());
    }

    fn sealed_before(&self) -> Result<Option<Sealed>> {
        let slot = self.slot.lock();
        match (&slot.phase, &slot.memory) {
            (Phase::Allocated, _) => Ok(None),
            (Phase::Sealed { copied }, Some(memory)) => Ok(Some(Sealed {
                copied: *copied,
                zero_copy: memory.mapping.is_some(),
            })),
            (phase, _) => Err(refusal(phase)),
        }
    }

    /// Takes the mapping out of the slot and away. The object and the charge stay there.
    fn unmap(&self) -> Result<(Permit, Arc<Charge>)> {
        let memory = {
            let mut slot = self.slot.lock();
            let Some(memory) = slot.memory.take() else {
                return Err(refusal(&slot.phase));
            };
            slot.memory = Some(Memory::new(Arc::clone(memory.object()), None, memory.charge()));
            memory
        };
        let charge = memory.charge();
        // The gate is ours, and without it nobody holds the memory of an allocated segment (`sealed`): it is the last.
        let mapping = Arc::into_inner(memory)
            .and_then(|mut memory| memory.mapping.take())
            .and_then(Arc::into_inner);
        match mapping.and_then(Mapping::unmap) {
            Some(held) => Ok(held),
            // An earlier attempt has lost it.
            None => Ok((Permit::take(self.mapping_limit)?, charge)),
        }
    }

    /// Sealing has failed: the mapping comes back, or the data is reached by `pread` and `pwrite` from here on.
    fn restore(&self, object: Arc<dyn Object>, permit: Permit, charge: Arc<Charge>) {
        let length = object.length() as usize;
        let mapping = Mapping::writable(object.fd(), length, permit, Arc::clone(&charge)).ok();
        let memory = Memory::new(object, mapping, charge);
        let _ = memory.publish_state(State::Allocated);
        let mut slot = self.slot.lock();
        if matches!(slot.phase, Phase::Allocated) {
            slot.memory = Some(memory);
        }
    }

    /// The whole of it in an object of our own, sealed.
    fn copy_to_fresh(&self, old: &Arc<dyn Object>, charge: Arc<Charge>) -> Result<Arc<Memory>> {
        let fresh = old.fresh()?;
        // One over the limit for the length of this call: the old mapping may still stand.
        let permit = Permit::take(u64::MAX)?;
        let mapping =
            Mapping::writable(fresh.fd(), fresh.length() as usize, permit, Arc::clone(&charge)).map_err(|e| e.0)?;
        let live = Live {
            sequence: self.sequence.load(Ordering::Relaxed),
            writer: 0,
            state: State::Sealed,
        };
        mapping.write_header(&self.header.encode(live));
        let length = self.header.size as usize;
        mapping.prepare(DATA_OFFSET as usize, length);
        let target = mapping.at_writable(DATA_OFFSET as usize, length);
        // SAFETY: `at_writable` has checked the range, and nobody else has the fresh object.
        let got = unsafe { old.read_at(DATA_OFFSET, target, length) }?;
        if got < length {
            return Err(Error::corrupted("size", DATA_OFFSET + got as u64, self.length));
        }
        let Some((permit, charge)) = mapping.unmap() else {
            return Err(Error::Closed);
        };
        fresh.seal()?;
        Ok(map_sealed(fresh, permit, charge))
    }

    /// Puts the sealed memory into the slot, unless the segment has been given up meanwhile.
    fn settle(&self, memory: Arc<Memory>, copied: bool) -> Result<Sealed> {
        let zero_copy = memory.mapping.is_some();
        // A peer that could write until just now has not touched the header in the last moment either.
        self.check(&memory)?;
        let old;
        {
            let mut slot = self.slot.lock();
            if !matches!(slot.phase, Phase::Allocated) {
                return Err(refusal(&slot.phase));
            }
            slot.phase = Phase::Sealed { copied };
            old = slot.memory.replace(memory);
        }
        drop(old);
        self.touch();
        Ok(Sealed { copied, zero_copy })
    }
}

fn says_sealed(memory: &Memory) -> Result<bool> {
    let page = memory.header_page()?;
    Ok(page[STATE..STATE + 4] == (State::Sealed as u32).to_le_bytes())
}

/// Maps what has just been sealed, if the kernel really guarantees what a zero-copy binary needs.
fn map_sealed(object: Arc<dyn Object>, permit: Permit, charge: Arc<Charge>) -> Arc<Memory> {
    let length = object.length();
    let guaranteed =
        matches!(object.is_immutable(), Ok(true)) && matches!(object.resident(), Ok(bytes) if bytes >= length);
    let mapping = if guaranteed {
        // SAFETY: immutable and of constant length, as just read back from the kernel.
        unsafe { Mapping::sealed(object.fd(), length as usize, permit, Arc::clone(&charge)) }.ok()
    } else {
        None
    };
    Memory::new(object, mapping, charge)
}

#[cfg(test)]
mod tests {
    //! A mapping that somebody made before `F_SEAL_FUTURE_WRITE` was set: out of reach from outside, because `create`
    //! gives nobody the time.

    use super::*;
    use crate::backend::{Anonymous, Backend, Request};
    use crate::budget::Budget;
    use crate::header::Header;
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    use std::mem::MaybeUninit;
    use std::os::fd::AsRawFd;

    const SIZE: u64 = 2 << 20;

    /// A confined segment, and a foreign writable mapping that is older than its confinement.
    fn pinned() -> (Segment, memmap2::MmapRaw) {
        let charge = Arc::new(Budget::new().charge(SIZE, SIZE).unwrap());
        let object = Anonymous::create(Request {
            size: SIZE,
            reserve: true,
            ..Request::default()
        })
        .unwrap();
        let header = Header::draft("shm_pinned", "tests", SIZE);
        let page = header.encode(Live::FRESH);
        let permit = Permit::take(u64::MAX).unwrap();
        let length = object.length() as usize;
        let mapping = Mapping::writable(object.fd(), length, permit, Arc::clone(&charge)).unwrap();
        mapping.write_header(&page);
        let foreign = memmap2::MmapOptions::new()
            .len(length)
            .map_raw(object.fd().as_raw_fd())
            .unwrap();
        object.publish().unwrap();
        let memory = Memory::new(Arc::new(object), Some(mapping), charge);
        let segment = Segment::assemble(header, None, memory, Phase::Allocated, 0, u64::MAX, 0);
        segment.write(0, &[b"pinned"], Wait::Spin).unwrap();
        (segment, foreign)
    }

    fn read(segment: &Segment) -> Vec<u8> {
        let mut bytes = [MaybeUninit::new(0); 6];
        segment.read(0, &mut bytes, Wait::Spin).unwrap();
        // SAFETY: initialised above.
        bytes.iter().map(|byte| unsafe { byte.assume_init() }).collect()
    }

    #[test]
    fn what_is_pinned_is_copied() {
        let (segment, _foreign) = pinned();
        assert_eq!(
            segment.seal(Wait::Patient),
            Ok(Sealed {
                copied: true,
                zero_copy: true
            })
        );
        assert_eq!(segment.view(0, 6).unwrap().bytes(), b"pinned");
        assert_eq!(segment.generation(), Ok(1));
    }

    #[test]
    fn without_a_copy_it_stays_readable_and_can_be_sealed_later() {
        let (segment, foreign) = pinned();
        // No file may be larger than 1 MiB now: the fresh object cannot be made.
        let (soft, hard) = getrlimit(Resource::RLIMIT_FSIZE).unwrap();
        setrlimit(Resource::RLIMIT_FSIZE, 1 << 20, hard).unwrap();
        let refused = segment.seal(Wait::Patient);
        setrlimit(Resource::RLIMIT_FSIZE, soft, hard).unwrap();
        assert_eq!(refused, Err(Error::Busy { writer: 0 }));
        // The confinement does not let the mapping come back: by system calls from here on.
        assert!(!segment.info().mapped);
        assert_eq!(read(&segment), b"pinned");
        assert!(matches!(
            segment.write(0, &[b"x"], Wait::Spin),
            Err(Error::SealedByPeer { .. })
        ));
        assert_eq!(segment.generation(), Ok(1));
        drop(foreign);
        assert_eq!(
            segment.seal(Wait::Patient),
            Ok(Sealed {
                copied: false,
                zero_copy: true
            })
        );
        assert_eq!(segment.view(0, 6).unwrap().bytes(), b"pinned");
    }

    #[test]
    fn a_segment_closed_during_the_seal_keeps_nothing() {
        let (segment, _foreign) = pinned();
        let gate = segment.exclusive(Wait::Spin).unwrap();
        let (permit, charge) = segment.unmap().unwrap();
        segment.close(false);
        let object = Arc::new(
            Anonymous::create(Request {
                size: SIZE,
                ..Request::default()
            })
            .unwrap(),
        );
        assert_eq!(
            segment.settle(map_sealed(object, permit, charge), false),
            Err(Error::Closed)
        );
        drop(gate);
        assert!(segment.slot.lock().memory.is_none());
    }
}
