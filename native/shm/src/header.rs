//! The header page: `LAYOUT.md` in code.
//!
//! [`Header::decode`] takes a *private copy* of the page, checks every byte of it, and only then builds a
//! [`Header`]; the first field that fails is named. Nothing here touches shared memory.

use crate::error::{Corruption, Error};

pub const MAGIC: &[u8; 8] = b"SNKPSHM\0";
pub const LAYOUT_VERSION: u32 = 1;
pub const PAGE: usize = 4096;
pub const DATA_OFFSET: u64 = PAGE as u64;
/// The live line starts here; what is before is static and covered by the checksum.
pub const LIVE: usize = 4032;
pub const STATE: usize = 4048;
const CHECKSUM: usize = 4028;
const NO_SHAPE: u32 = u32::MAX;
const NEVER: u64 = u64::MAX;

pub const MAX_ID: usize = 127;
pub const MAX_INSTANCE: usize = 63;
pub const MAX_DTYPE: usize = 15;
pub const MAX_DIMENSIONS: usize = 32;
pub const MAX_METADATA: usize = 3072;
pub const MAX_LABEL: usize = 223;
/// The end of the year 9999, in microseconds: what calendars know.
pub const MAX_CREATED_AT: u64 = 253_402_300_799_999_999;
/// Every id begins with it.
pub const ID_PREFIX: &str = "shm_";

/// Element types and their sizes, the table of `Snakepit.SharedMemory.DType`.
pub const ITEM_SIZES: [(&str, u64); 15] = [
    ("bool", 1),
    ("int8", 1),
    ("int16", 2),
    ("int32", 4),
    ("int64", 8),
    ("uint8", 1),
    ("uint16", 2),
    ("uint32", 4),
    ("uint64", 8),
    ("float16", 2),
    ("bfloat16", 2),
    ("float32", 4),
    ("float64", 8),
    ("complex64", 8),
    ("complex128", 16),
];

const FLAG_NAMED: u32 = 1;
const FLAG_HUGE: u32 = 2;
const FLAG_PEERS_WRITE: u32 = 4;
const FLAG_ACCESS_READ_ONLY: u32 = 8;
const FLAG_OWNER_READ_ONLY: u32 = 16;
const FLAGS: u32 = FLAG_NAMED | FLAG_HUGE | FLAG_PEERS_WRITE | FLAG_ACCESS_READ_ONLY | FLAG_OWNER_READ_ONLY;
const LABEL: usize = 3664;

/// Bytes that must be zero: the gaps between fields, by name.
const RESERVED: [(&str, std::ops::Range<usize>); 6] = [
    ("reserved at 44", 44..48),
    ("reserved at 104", 104..112),
    ("reserved at 324", 324..328),
    ("reserved at 588", 588..592),
    ("reserved at 3888", LABEL + 1 + MAX_LABEL..CHECKSUM),
    ("reserved at 4052", 4052..PAGE),
];

pub type Page = [u8; PAGE];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum CleanupPolicy {
    Automatic = 1,
    Manual = 2,
    ReferenceCounted = 3,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum State {
    Allocated = 1,
    Sealed = 2,
    Freed = 3,
    Invalid = 4,
}

/// Who made a region: this boot, this pid namespace, this process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Identity {
    pub boot_id: [u8; 16],
    pub pid_namespace: u64,
    pub pid: u64,
    pub start_time: u64,
}

/// The live line as it stood in the copy. Published for peers; the VM never believes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Live {
    pub sequence: u64,
    pub writer: u64,
    pub state: State,
}

impl Live {
    pub const FRESH: Live = Live {
        sequence: 0,
        writer: 0,
        state: State::Allocated,
    };
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    pub id: String,
    pub instance: String,
    pub size: u64,
    pub named: bool,
    pub huge_pages: bool,
    pub peers_write: bool,
    /// The region's access mode is read-only.
    pub access_read_only: bool,
    /// So is its owner's permission.
    pub owner_read_only: bool,
    pub mode: u32,
    pub cleanup_policy: CleanupPolicy,
    /// Milliseconds; `None` is never.
    pub timeout: Option<u64>,
    /// Microseconds since 1970, UTC.
    pub created_at: u64,
    pub identity: Identity,
    pub dtype: Option<String>,
    pub shape: Option<Vec<u64>>,
    /// A JSON object, as text.
    pub metadata: String,
    /// The name of a named one, as its user gave it.
    pub label: Option<String>,
}

impl Header {
    /// A header with defaults for everything that is not the region's name or size.
    pub fn draft(id: &str, instance: &str, size: u64) -> Self {
        Header {
            id: id.to_owned(),
            instance: instance.to_owned(),
            size,
            named: false,
            huge_pages: false,
            peers_write: false,
            access_read_only: false,
            owner_read_only: false,
            mode: 0o600,
            cleanup_policy: CleanupPolicy::Automatic,
            timeout: None,
            created_at: 0,
            identity: Identity::default(),
            dtype: None,
            shape: None,
            metadata: String::new(),
            label: None,
        }
    }

    /// Whether it fits into a page. The same limits as `decode`; the fields by the names of a specification
    /// ([`Error::InvalidSpec`]).
    pub fn check(&self) -> Result<(), Error> {
        let refuse = |field, message: String| Err(Error::invalid_spec(field, message));
        text_fits("id", &self.id, 1, MAX_ID)?;
        if !self.id.starts_with(ID_PREFIX) {
            return refuse("id", format!("begins with {ID_PREFIX}"));
        }
        text_fits("instance", &self.instance, 0, MAX_INSTANCE)?;
        if self.size == 0 || self.size > MAX_SIZE {
            return refuse("size", format!("1 to {MAX_SIZE} bytes"));
        }
        if self.mode & !0o777 != 0 {
            return refuse("mode", "permission bits only".to_owned());
        }
        if self.timeout == Some(NEVER) {
            return refuse("timeout", format!("at most {} ms", NEVER - 1));
        }
        if self.created_at > MAX_CREATED_AT {
            return refuse("created_at", format!("at most {MAX_CREATED_AT}"));
        }
        if self.dtype.as_deref().is_some_and(|dtype| item_size(dtype).is_none()) {
            return refuse("dtype", "not a known name".to_owned());
        }
        if self.shape.as_ref().is_some_and(|shape| shape.len() > MAX_DIMENSIONS) {
            return refuse("shape", format!("at most {MAX_DIMENSIONS} dimensions"));
        }
        if let Some(bytes) = self.odd_shape() {
            return refuse("shape", format!("{bytes} bytes, the size is {}", self.size));
        }
        if self.metadata.len() > MAX_METADATA {
            return refuse("metadata", format!("at most {MAX_METADATA} bytes of JSON"));
        }
        if let Some(label) = &self.label {
            text_fits("label", label, 1, MAX_LABEL)?;
            if !self.named {
                return refuse("label", "an anonymous region has none".to_owned());
            }
        }
        Ok(())
    }

    /// How many bytes type and shape make, as text, if that is not the size.
    fn odd_shape(&self) -> Option<String> {
        let item = item_size(self.dtype.as_deref()?)?;
        let shape = self.shape.as_ref()?;
        // An overflow is no size either: with a zero among the dimensions it would be 0.
        match shape
            .iter()
            .try_fold(item, |bytes, dimension| bytes.checked_mul(*dimension))
        {
            Some(bytes) if bytes == self.size => None,
            Some(bytes) => Some(bytes.to_string()),
            None => Some("too many".to_owned()),
        }
    }

    /// The page, with the given live line. `check` must have passed: what is too long is cut, never spilled.
    pub fn encode(&self, live: Live) -> Page {
        let mut page = [0u8; PAGE];
        let p = &mut page[..];
        p[0..8].copy_from_slice(MAGIC);
        put_u32(p, 8, LAYOUT_VERSION);
        put_u32(p, 12, PAGE as u32);
        put_u64(p, 16, DATA_OFFSET);
        put_u64(p, 24, self.size);
        put_u32(p, 32, self.flags());
        put_u32(p, 36, self.mode);
        put_u32(p, 40, self.cleanup_policy as u32);
        put_u64(p, 48, self.timeout.unwrap_or(NEVER));
        put_u64(p, 56, self.created_at);
        p[64..80].copy_from_slice(&self.identity.boot_id);
        put_u64(p, 80, self.identity.pid_namespace);
        put_u64(p, 88, self.identity.pid);
        put_u64(p, 96, self.identity.start_time);
        put_short(p, 112, MAX_ID, &self.id);
        put_short(p, 240, MAX_INSTANCE, &self.instance);
        put_short(p, 304, MAX_DTYPE, self.dtype.as_deref().unwrap_or(""));
        match &self.shape {
            None => put_u32(p, 320, NO_SHAPE),
            Some(shape) => {
                let shape = &shape[..shape.len().min(MAX_DIMENSIONS)];
                put_u32(p, 320, shape.len() as u32);
                for (i, dimension) in shape.iter().enumerate() {
                    put_u64(p, 328 + 8 * i, *dimension);
                }
            }
        }
        let metadata = &self.metadata.as_bytes()[..self.metadata.len().min(MAX_METADATA)];
        put_u32(p, 584, metadata.len() as u32);
        p[592..592 + metadata.len()].copy_from_slice(metadata);
        put_short(p, LABEL, MAX_LABEL, self.label.as_deref().unwrap_or(""));
        let checksum = crc32fast::hash(&p[..CHECKSUM]);
        put_u32(p, CHECKSUM, checksum);
        put_u64(p, LIVE, live.sequence);
        put_u64(p, LIVE + 8, live.writer);
        put_u32(p, STATE, live.state as u32);
        page
    }

    /// Checks a private copy of the page and takes it apart. `object_length` is the length of the whole object.
    pub fn decode(page: &Page, object_length: u64) -> Result<(Header, Live), Corruption> {
        let p = &page[..];
        if &p[0..8] != MAGIC {
            return Err(Corruption::new("magic", printable(&p[0..8]), printable(MAGIC)));
        }
        expect_u32(p, 8, "layout version", LAYOUT_VERSION)?;
        expect_u32(p, 12, "header size", PAGE as u32)?;
        if get_u64(p, 16) != DATA_OFFSET {
            return Err(Corruption::new("data offset", get_u64(p, 16), DATA_OFFSET));
        }
        let size = get_u64(p, 24);
        match DATA_OFFSET.checked_add(size) {
            Some(end) if size > 0 && end <= object_length => {}
            _ => {
                let most = object_length.saturating_sub(DATA_OFFSET);
                return Err(Corruption::new("data size", size, format!("1 to {most}")));
            }
        }
        let flags = get_u32(p, 32);
        if flags & !FLAGS != 0 {
            return Err(Corruption::new("flags", u64::from(flags), "bits 0 to 4"));
        }
        let mode = get_u32(p, 36);
        if mode & !0o777 != 0 {
            return Err(Corruption::new("mode", u64::from(mode), "permission bits"));
        }
        let cleanup_policy = match get_u32(p, 40) {
            1 => CleanupPolicy::Automatic,
            2 => CleanupPolicy::Manual,
            3 => CleanupPolicy::ReferenceCounted,
            other => return Err(Corruption::new("cleanup policy", u64::from(other), "1 to 3")),
        };
        let created_at = get_u64(p, 56);
        if created_at > MAX_CREATED_AT {
            return Err(Corruption::new(
                "created at",
                created_at,
                format!("at most {MAX_CREATED_AT}"),
            ));
        }
        let id = get_short(p, 112, MAX_ID, "id")?;
        if !id.starts_with(ID_PREFIX) {
            return Err(Corruption::new(
                "id",
                printable(id.as_bytes()),
                format!("{ID_PREFIX}..."),
            ));
        }
        let instance = get_short(p, 240, MAX_INSTANCE, "instance")?;
        let dtype = get_short(p, 304, MAX_DTYPE, "dtype")?;
        if !dtype.is_empty() && item_size(&dtype).is_none() {
            return Err(Corruption::new("dtype", printable(dtype.as_bytes()), "a known name"));
        }
        let shape = get_shape(p)?;
        let metadata = get_metadata(p)?;
        let label = get_short(p, LABEL, MAX_LABEL, "name")?;
        if !label.is_empty() && flags & FLAG_NAMED == 0 {
            return Err(Corruption::new(
                "name",
                printable(label.as_bytes()),
                "none: it is anonymous",
            ));
        }
        for (name, range) in RESERVED {
            if let Some(byte) = p[range].iter().find(|byte| **byte != 0) {
                return Err(Corruption::new(name, u64::from(*byte), 0));
            }
        }
        let checksum = crc32fast::hash(&p[..CHECKSUM]);
        expect_u32(p, CHECKSUM, "checksum", checksum)?;
        let state = match get_u32(p, STATE) {
            1 => State::Allocated,
            2 => State::Sealed,
            3 => State::Freed,
            4 => State::Invalid,
            other => return Err(Corruption::new("state", u64::from(other), "1 to 4")),
        };
        let mut boot_id = [0; 16];
        boot_id.copy_from_slice(&p[64..80]);
        let timeout = get_u64(p, 48);
        let header = Header {
            id,
            instance,
            size,
            named: flags & FLAG_NAMED != 0,
            huge_pages: flags & FLAG_HUGE != 0,
            peers_write: flags & FLAG_PEERS_WRITE != 0,
            access_read_only: flags & FLAG_ACCESS_READ_ONLY != 0,
            owner_read_only: flags & FLAG_OWNER_READ_ONLY != 0,
            mode,
            cleanup_policy,
            timeout: (timeout != NEVER).then_some(timeout),
            created_at,
            identity: Identity {
                boot_id,
                pid_namespace: get_u64(p, 80),
                pid: get_u64(p, 88),
                start_time: get_u64(p, 96),
            },
            dtype: (!dtype.is_empty()).then_some(dtype),
            shape,
            metadata,
            label: (!label.is_empty()).then_some(label),
        };
        if let Some(bytes) = header.odd_shape() {
            let expected = format!("{size} bytes");
            return Err(Corruption::new("shape", format!("{bytes} bytes"), expected));
        }
        let live = Live {
            sequence: get_u64(p, LIVE),
            writer: get_u64(p, LIVE + 8),
            state,
        };
        Ok((header, live))
    }

    fn flags(&self) -> u32 {
        let mut flags = 0;
        for (bit, set) in [
            (FLAG_NAMED, self.named),
            (FLAG_HUGE, self.huge_pages),
            (FLAG_PEERS_WRITE, self.peers_write),
            (FLAG_ACCESS_READ_ONLY, self.access_read_only),
            (FLAG_OWNER_READ_ONLY, self.owner_read_only),
        ] {
            if set {
                flags |= bit;
            }
        }
        flags
    }
}

/// Largest data size: far over any machine's memory, small enough that no sum with it overflows.
pub const MAX_SIZE: u64 = 1 << 56;

/// Names the first difference between the static part of `found` (a private copy of the shared page) and
/// `expected` (the page that this VM wrote or has checked).
pub fn compare(found: &Page, expected: &Page, object_length: u64) -> Result<(), Corruption> {
    if found[..LIVE] == expected[..LIVE] {
        return Ok(());
    }
    Header::decode(found, object_length)?;
    // Every check passes and the bytes still differ: somebody has written a consistent header of his own.
    let offset = found.iter().zip(expected.iter()).position(|(f, e)| f != e).unwrap_or(0);
    Err(Corruption::new(
        field_at(offset),
        u64::from(found[offset]),
        u64::from(expected[offset]),
    ))
}

fn field_at(offset: usize) -> &'static str {
    const FIELDS: [(usize, &str); 19] = [
        (0, "magic"),
        (8, "layout version"),
        (16, "data offset"),
        (24, "data size"),
        (32, "flags"),
        (36, "mode"),
        (40, "cleanup policy"),
        (48, "timeout"),
        (56, "created at"),
        (64, "boot id"),
        (80, "pid namespace"),
        (88, "pid"),
        (96, "start time"),
        (112, "id"),
        (240, "instance"),
        (304, "dtype"),
        (320, "shape"),
        (584, "metadata"),
        (LABEL, "name"),
    ];
    FIELDS
        .iter()
        .rev()
        .find(|(start, _)| *start <= offset)
        .map_or("magic", |(_, name)| name)
}

/// Bytes of an element, by the name of its type.
pub fn item_size(dtype: &str) -> Option<u64> {
    ITEM_SIZES
        .iter()
        .find(|(name, _)| *name == dtype)
        .map(|(_, size)| *size)
}

fn text_fits(field: &'static str, text: &str, least: usize, most: usize) -> Result<(), Error> {
    if text.len() < least || text.len() > most {
        return Err(Error::invalid_spec(field, format!("{least} to {most} bytes of UTF-8")));
    }
    Ok(())
}

fn put_u32(page: &mut [u8], offset: usize, value: u32) {
    page[offset..offset + 4].copy_from_slice(&value.to_le_bytes());
}

fn put_u64(page: &mut [u8], offset: usize, value: u64) {
    page[offset..offset + 8].copy_from_slice(&value.to_le_bytes());
}

fn put_short(page: &mut [u8], offset: usize, most: usize, text: &str) {
    let bytes = &text.as_bytes()[..text.len().min(most)];
    page[offset] = bytes.len() as u8;
    page[offset + 1..offset + 1 + bytes.len()].copy_from_slice(bytes);
}

fn get_u32(page: &[u8], offset: usize) -> u32 {
    let mut bytes = [0; 4];
    bytes.copy_from_slice(&page[offset..offset + 4]);
    u32::from_le_bytes(bytes)
}

fn get_u64(page: &[u8], offset: usize) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&page[offset..offset + 8]);
    u64::from_le_bytes(bytes)
}

fn expect_u32(page: &[u8], offset: usize, name: &'static str, expected: u32) -> Result<(), Corruption> {
    match get_u32(page, offset) {
        found if found == expected => Ok(()),
        found => Err(Corruption::new(name, u64::from(found), u64::from(expected))),
    }
}

fn get_short(page: &[u8], offset: usize, most: usize, name: &'static str) -> Result<String, Corruption> {
    let length = usize::from(page[offset]);
    if length > most {
        return Err(Corruption::new(name, length as u64, format!("at most {most} bytes")));
    }
    get_text(&page[offset + 1..offset + 1 + most], length, name)
}

/// The first `length` bytes as UTF-8; the rest of the field must be zero.
fn get_text(field: &[u8], length: usize, name: &'static str) -> Result<String, Corruption> {
    let (text, rest) = field.split_at(length);
    if rest.iter().any(|byte| *byte != 0) {
        return Err(Corruption::new(name, "bytes behind its end", "zeros"));
    }
    match std::str::from_utf8(text) {
        Ok(text) => Ok(text.to_owned()),
        Err(_) => Err(Corruption::new(name, printable(text), "UTF-8")),
    }
}

fn get_shape(page: &[u8]) -> Result<Option<Vec<u64>>, Corruption> {
    let count = get_u32(page, 320);
    let used = match count {
        NO_SHAPE => 0,
        count if count as usize <= MAX_DIMENSIONS => count as usize,
        count => {
            return Err(Corruption::new(
                "dimensions",
                u64::from(count),
                format!("at most {MAX_DIMENSIONS}"),
            ));
        }
    };
    let all: Vec<u64> = (0..MAX_DIMENSIONS).map(|i| get_u64(page, 328 + 8 * i)).collect();
    if let Some(extra) = all[used..].iter().find(|dimension| **dimension != 0) {
        return Err(Corruption::new("shape", *extra, 0));
    }
    Ok((count != NO_SHAPE).then(|| all[..used].to_vec()))
}

fn get_metadata(page: &[u8]) -> Result<String, Corruption> {
    let length = get_u32(page, 584);
    if length as usize > MAX_METADATA {
        return Err(Corruption::new(
            "metadata length",
            u64::from(length),
            format!("at most {MAX_METADATA}"),
        ));
    }
    get_text(&page[592..592 + MAX_METADATA], length as usize, "metadata")
}

/// Foreign bytes as text that can be printed anywhere.
fn printable(bytes: &[u8]) -> String {
    bytes.escape_ascii().to_string()
}
