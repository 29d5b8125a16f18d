//! A library as the dynamic linker would map it: bytes by their address. Every number in the file is somebody's claim.

use object::LittleEndian;
use object::elf::{PF_W, PF_X, PT_DYNAMIC, PT_LOAD};
use object::read::elf::{FileHeader, ProgramHeader};
use snakepit_wire::control::Stage;

use crate::host::elf::{self, Unfit};

/// More parts than any linker makes.
const MOST_SEGMENTS: usize = 256;

/// A part of the file that is mapped.
#[derive(Debug, Clone, Copy)]
pub struct Segment<'a> {
    address: u64,
    pub bytes: &'a [u8],
    /// What it will be in memory; what lies behind `bytes` is zero.
    memory: u64,
    executable: bool,
    pub writable: bool,
}

#[derive(Debug)]
pub struct Image<'a> {
    pub segments: Vec<Segment<'a>>,
    /// Tag and value of what the linker is told.
    pub dynamic: Vec<(i64, u64)>,
}

impl<'a> Image<'a> {
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Unfit> {
        let header = elf::fits(bytes)?;
        let broken = |what: &str| (Stage::NotALibrary, format!("the file is damaged or cut off: {what}"));
        let headers = header
            .program_headers(LittleEndian, bytes)
            .map_err(|_| broken("its table of segments is not there"))?;
        if headers.len() > MOST_SEGMENTS {
            return Err(broken("it has too many segments"));
        }
        let mut segments = Vec::new();
        let mut dynamic = None;
        for header in headers {
            let kind = header.p_type(LittleEndian);
            if kind != PT_LOAD && kind != PT_DYNAMIC {
                continue;
            }
            let bytes = header
                .data(LittleEndian, bytes)
                .map_err(|()| broken("a segment ends behind it"))?;
            if kind == PT_DYNAMIC {
                dynamic = Some(bytes);
                continue;
            }
            let flags = header.p_flags(LittleEndian);
            segments.push(Segment {
                address: header.p_vaddr(LittleEndian),
                bytes,
                memory: header.p_memsz(LittleEndian),
                executable: flags & PF_X != 0,
                writable: flags & PF_W != 0,
            });
        }
        let Some(dynamic) = dynamic else {
            return Err((
                Stage::NotALibrary,
                "the file is not a shared library: it has no dynamic segment".to_owned(),
            ));
        };
        let dynamic = dynamic
            .chunks_exact(16)
            .map(|entry| (word(entry, 0).cast_signed(), word(entry, 8)))
            .take_while(|(tag, _)| *tag != 0)
            .take(MOST_SEGMENTS * 16)
            .collect();
        Ok(Self { segments, dynamic })
    }

    /// The value of a tag of the dynamic segment, if it is there.
    pub fn tag(&self, tag: i64) -> Option<u64> {
        self.dynamic
            .iter()
            .find(|(found, _)| *found == tag)
            .map(|(_, value)| *value)
    }

    /// All bytes of the file from an address to the end of its segment.
    pub fn from(&self, address: u64) -> Option<&'a [u8]> {
        self.segments.iter().find_map(|segment| {
            let offset = address.checked_sub(segment.address)?;
            segment
                .bytes
                .get(usize::try_from(offset).ok()?..)
                .filter(|rest| !rest.is_empty())
        })
    }

    /// Exactly so many.
    pub fn at(&self, address: u64, length: usize) -> Option<&'a [u8]> {
        self.from(address)?.get(..length)
    }

    pub fn u32(&self, address: u64) -> Option<u32> {
        self.at(address, 4).map(|bytes| half(bytes, 0))
    }

    pub fn u64(&self, address: u64) -> Option<u64> {
        self.at(address, 8).map(|bytes| word(bytes, 0))
    }

    /// A terminated string of at most `most` bytes.
    pub fn string(&self, address: u64, most: usize) -> Option<&'a [u8]> {
        terminated(self.from(address)?, most)
    }

    pub fn executable(&self, address: u64) -> bool {
        self.segments.iter().any(|segment| {
            segment.executable
                && address
                    .checked_sub(segment.address)
                    .is_some_and(|offset| offset < segment.memory)
        })
    }

    /// What is mapped and neither code nor written to: among it the constants of the library.
    pub fn constants(&self) -> impl Iterator<Item = &Segment<'a>> {
        self.segments.iter().filter(|segment| !segment.writable)
    }
}

/// The bytes before the first zero, if that comes soon enough.
pub fn terminated(bytes: &[u8], most: usize) -> Option<&[u8]> {
    let bytes = bytes.get(..bytes.len().min(most.saturating_add(1)))?;
    bytes
        .iter()
        .position(|byte| *byte == 0)
        .and_then(|end| bytes.get(..end))
}

/// A number in `bytes`, 0 where they end before it.
pub fn word(bytes: &[u8], at: usize) -> u64 {
    let mut number = [0; 8];
    if let Some(bytes) = bytes.get(at..at.saturating_add(8)) {
        number.copy_from_slice(bytes);
    }
    u64::from_le_bytes(number)
}

pub fn half(bytes: &[u8], at: usize) -> u32 {
    let mut number = [0; 4];
    if let Some(bytes) = bytes.get(at..at.saturating_add(4)) {
        number.copy_from_slice(bytes);
    }
    u32::from_le_bytes(number)
}
