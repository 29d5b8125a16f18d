//! Memory objects of the operating system, behind one trait.
//!
//! [`Object`] is what a segment needs of one, [`Backend`] how one is made. `tests/conformance.rs` holds what
//! every back end must do and is run against each.

mod linux;
mod linux_anonymous;
mod linux_named;
mod name_lock;

pub use linux_anonymous::{Anonymous, carrier};
pub use linux_named::{Named, read_header, unlink_if};
pub use name_lock::is_served;

pub(crate) use linux::read_at;
pub(crate) use linux_anonymous::ring_memory;

use crate::descriptor::Descriptor;
use crate::error::{Error, Result};
use std::fmt::Debug;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::sync::Arc;

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum HugePages {
    #[default]
    No,
    /// Normal pages when there are not enough.
    Prefer,
    Require,
}

/// What an object shall be.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// Bytes of data; the header page comes on top.
    pub size: u64,
    /// Shown in `/proc/PID/maps` for an anonymous object.
    pub label: String,
    /// Where a named object appears when it is published.
    pub path: Option<PathBuf>,
    /// Permission bits of a named object.
    pub mode: u32,
    pub peers_write: bool,
    pub huge_pages: HugePages,
    /// Whether the memory is taken from the kernel now rather than on first use.
    pub reserve: bool,
    pub descriptor_reserve: u64,
}

/// A memory object. Its descriptor is closed with it.
pub trait Object: Send + Sync + Debug {
    fn fd(&self) -> BorrowedFd<'_>;

    /// Bytes of the whole object, a multiple of the page.
    fn length(&self) -> u64;

    fn huge_pages(&self) -> bool;

    /// Whether nobody can truncate it, so that the VM may map it.
    fn mappable(&self) -> bool;

    /// Whether it is still the object that was made or opened: its length, and its name in the file system.
    fn verify(&self) -> Result<()>;

    /// The header is written: confine peers (anonymous), or give it its name (named). Nothing before this is visible
    /// to anybody.
    fn publish(&self) -> Result<()>;

    /// Reads up to `length` bytes; fewer only at the end of the object.
    ///
    /// # Safety
    /// `target` is mapped and writable for `length` bytes.
    unsafe fn read_at(&self, offset: u64, target: *mut u8, length: usize) -> Result<usize>;

    /// Writes all of it, inside the length of the object.
    fn write_at(&self, offset: u64, source: &[u8]) -> Result<()>;

    /// Takes the memory behind the whole object from the kernel, holes too.
    fn reserve(&self) -> Result<()>;

    /// Bytes of memory (or disk) behind it.
    fn resident(&self) -> Result<u64>;

    /// Gives the memory of a range back; it reads as zeros afterwards.
    fn punch(&self, offset: u64, length: u64) -> Result<()>;

    /// Makes it immutable for ever. No writable mapping of ours may stand.
    /// [`Error::Busy`]: somebody else maps it writable. [`Error::SealedByPeer`]: a peer forbade further seals.
    fn seal(&self) -> Result<()>;

    /// Whether the kernel lets nobody change or shrink it any more.
    fn is_immutable(&self) -> Result<bool>;

    /// Whether a peer has forbidden further seals on what is not immutable yet.
    fn is_pinned_by_peer(&self) -> Result<bool>;

    /// An empty, unpublished object like this one, reserved.
    fn fresh(&self) -> Result<Arc<dyn Object>>;

    /// A descriptor for a peer.
    fn export(&self, writable: bool, descriptor_reserve: u64) -> Result<Descriptor>;

    /// Takes the name away, if the name still is this object's.
    fn unlink(&self) -> Result<()>;

    /// This VM no longer serves it: lets go of what keeps other VMs from doing so. Not left to the drop, which the
    /// reaper may do later.
    fn release(&self) {}
}

/// Makes objects.
pub trait Backend: Object + Sized + 'static {
    const NAME: &'static str;

    fn create(request: Request) -> Result<Self>;
}

/// The length of the object for `size` bytes of data: header page and data, up to a page of `page` bytes.
pub fn object_length(size: u64, page: u64) -> Result<u64> {
    crate::header::DATA_OFFSET
        .checked_add(size)
        .and_then(|length| length.checked_next_multiple_of(page))
        .filter(|length| *length <= i64::MAX as u64)
        .ok_or(Error::FileTooBig)
}
