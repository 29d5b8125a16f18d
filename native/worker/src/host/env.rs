//! `ErlNifEnv`: where terms live.
//!
//! An arena of words that only grows until it is cleared, so that addresses stay (`enif_get_tuple` hands out interior
//! pointers), and a list of the buffers and objects that its terms refer to.

use super::buffer::Buffer;
use super::held;
use super::known::Sought;
use super::library::Library;
use super::resource::{self, Object};
use super::term::{Handle, Term};
use snakepit_wire::Name;
use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::ffi::c_int;
use std::ptr;

/// A function of the library.
pub type Nif = unsafe extern "C" fn(*mut Env, c_int, *const Term) -> Term;

/// What `enif_schedule_nif` has asked for.
#[derive(Debug)]
pub struct Scheduled {
    pub function: Nif,
    pub flags: u32,
    pub arguments: Vec<Term>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Of a call.
    Call,
    /// Of `load`, or of a destructor.
    Callback,
    /// `enif_alloc_env`.
    Independent,
}

#[derive(Debug)]
struct Chunk {
    start: *mut u64,
    words: usize,
}

/// Words of the first chunk of a call's env.
const FIRST: usize = 2 << 10;
/// Chunks double up to here (8 MiB).
const LARGEST: usize = 1 << 20;
/// A chunk up to this size (256 KiB) is kept when the env is cleared.
const KEPT: usize = 32 << 10;

#[derive(Debug)]
pub struct Env {
    cursor: *mut u64,
    end: *mut u64,
    chunks: Vec<Chunk>,
    buffers: Vec<*mut Buffer>,
    objects: Vec<*mut Object>,
    /// References and funs that the VM keeps for this env.
    names: Vec<Name>,
    /// References and funs that lie in the arena.
    handles: Vec<*const Handle>,
    pub exception: Option<Term>,
    pub scheduled: Option<Scheduled>,
    /// The calling process, as a word; THE_NON_VALUE when there is none.
    pub caller: Term,
    pub kind: Kind,
    /// Whose functions or callbacks run on it; none for independent ones.
    pub library: Option<&'static Library>,
}

impl Env {
    fn new(kind: Kind) -> Box<Self> {
        Box::new(Self {
            cursor: ptr::null_mut(),
            end: ptr::null_mut(),
            chunks: Vec::new(),
            buffers: Vec::new(),
            objects: Vec::new(),
            names: Vec::new(),
            handles: Vec::new(),
            exception: None,
            scheduled: None,
            caller: Term::NON_VALUE,
            kind,
            library: None,
        })
    }

    pub fn call() -> Box<Self> {
        Self::new(Kind::Call)
    }

    pub fn callback(library: Option<&'static Library>) -> Box<Self> {
        let mut env = Self::new(Kind::Callback);
        env.library = library;
        env
    }

    pub fn independent() -> Box<Self> {
        Self::new(Kind::Independent)
    }

    /// Room for `words` words, not initialised. They stay where they are until the env is cleared.
    #[inline]
    pub fn allocate(&mut self, words: usize) -> *mut u64 {
        if (self.end as usize) - (self.cursor as usize) < words.saturating_mul(8) {
            self.grow(words);
        }
        let place = self.cursor;
        // SAFETY: the chunk has at least `words` words behind the cursor.
        self.cursor = unsafe { place.add(words) };
        place
    }

    #[cold]
    fn grow(&mut self, words: usize) {
        let next = self.chunks.last().map_or(FIRST, |last| (last.words * 2).min(LARGEST));
        let size = next.max(words);
        let Ok(layout) = Layout::array::<u64>(size) else {
            handle_alloc_error(Layout::new::<u64>());
        };
        // SAFETY: the layout is not empty.
        let start = unsafe { alloc(layout) }.cast::<u64>();
        if start.is_null() {
            handle_alloc_error(layout);
        }
        self.chunks.push(Chunk { start, words: size });
        self.cursor = start;
        // SAFETY: one past the end of the chunk.
        self.end = unsafe { start.add(size) };
    }

    /// Holds a buffer until the env is cleared: takes over a reference of the caller's.
    #[inline]
    pub fn hold_buffer(&mut self, buffer: *mut Buffer) {
        self.buffers.push(buffer);
    }

    /// Holds an object until the env is cleared: takes over a reference of the caller's.
    #[inline]
    pub fn hold_object(&mut self, object: *mut Object) {
        self.objects.push(object);
    }

    /// Has the VM keep a name until the env is cleared, if it outlives the call that has brought it. In a call's env it is
    /// remembered which call may answer with it.
    #[inline]
    pub fn hold_name(&mut self, name: Name, key: &[u8]) {
        if self.kind == Kind::Independent {
            held::hold(name, key);
            self.names.push(name);
        } else {
            held::had(name);
        }
    }

    /// A reference or fun was placed in the arena.
    pub fn has_handle(&mut self, handle: *const Handle) {
        self.handles.push(handle);
    }

    /// A reference or fun of this env.
    pub fn find_name(&self, sought: &Sought<'_>) -> Option<Name> {
        // SAFETY: the arena is cleared together with this list.
        let mut handles = self.handles.iter().map(|handle| unsafe { &**handle });
        let found = handles.find(|handle| sought.is(handle.name().kind, handle.key()));
        found.map(Handle::name)
    }

    /// Holds a new reference until the env is cleared: takes over the holder that it was made with.
    pub fn hold_made(&mut self, name: Name) {
        self.names.push(name);
    }

    /// An exception stays, whatever the function returns.
    pub fn raise(&mut self, reason: Term) -> Term {
        self.exception = Some(reason);
        Term::NON_VALUE
    }

    pub fn bad_argument(&mut self) -> Term {
        self.raise(super::atom::BADARG)
    }

    /// Ends all terms of this env.
    #[inline]
    pub fn clear(&mut self) {
        self.exception = None;
        self.scheduled = None;
        self.handles.clear();
        if !self.buffers.is_empty() || !self.objects.is_empty() || !self.names.is_empty() {
            self.let_go();
        }
        if self.chunks.len() > 1 || self.chunks.first().is_some_and(|chunk| chunk.words > KEPT) {
            self.trim();
        }
        self.cursor = self.chunks.first().map_or(ptr::null_mut(), |chunk| chunk.start);
    }

    #[cold]
    fn let_go(&mut self) {
        for buffer in std::mem::take(&mut self.buffers) {
            // SAFETY: `hold_buffer` was given the reference.
            unsafe { Buffer::release(buffer) };
        }
        for object in std::mem::take(&mut self.objects) {
            // SAFETY: `hold_object` was given the reference.
            unsafe { resource::release(object) };
        }
        if !self.names.is_empty() {
            held::let_go(&std::mem::take(&mut self.names));
        }
    }

    /// Keeps the largest chunk that is not too large.
    #[cold]
    fn trim(&mut self) {
        let keep = (0..self.chunks.len())
            .filter(|index| self.chunks[*index].words <= KEPT)
            .max_by_key(|index| self.chunks[*index].words);
        let kept = keep.map(|index| self.chunks.swap_remove(index));
        self.chunks.drain(..).for_each(free);
        self.end = ptr::null_mut();
        if let Some(chunk) = kept {
            // SAFETY: one past the end of the chunk.
            self.end = unsafe { chunk.start.add(chunk.words) };
            self.chunks.push(chunk);
        }
    }
}

fn free(chunk: Chunk) {
    if let Ok(layout) = Layout::array::<u64>(chunk.words) {
        // SAFETY: `grow` allocated it with this layout, and its terms have ended.
        unsafe { dealloc(chunk.start.cast(), layout) };
    }
}

impl Drop for Env {
    fn drop(&mut self) {
        self.let_go();
        self.chunks.drain(..).for_each(free);
    }
}
