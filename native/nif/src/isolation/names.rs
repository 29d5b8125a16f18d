//! What a worker may name: a bounded table of terms that the VM has sent it.
//!
//! * A local pid or port is one word. It is found again by that word and stays until its place is needed: first the places of the
//!   dead are taken, then those of the longest known.
//! * Everything else (references, funs, pids and ports of other nodes) is copied. It has two holders: the call that brought it,
//!   and the library, from its `Keep` (or from the beginning, of a reference made for it) to its `Drop`. It leaves with the last
//!   of them. A `Drop` has its effect when those calls are over that were in flight when it was read and, as the worker says, may
//!   have had it: their answers may have it. (A worker that lies about that loses names before it has used them.) A name waits
//!   for one of these calls at a time, so that one which never ends keeps no others than those that it may have had.
//!
//! A place that is used again has a new generation. A name with an old one is *stale*: a library may keep what it was given.
//! One that never was is *forged*: its worker lies.

use super::failure::{Unmakeable, Unreadable};
use super::saved::Saved;
use rustler::sys::{ErlNifEnv, ErlNifPid, ErlNifTerm, enif_get_local_pid, enif_is_process_alive, enif_make_copy};
use snakepit_shm_core::ring::vm::VmRing;
use snakepit_wire::{Name, NameKind};
use std::collections::{HashMap, VecDeque};
use std::mem::MaybeUninit;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Places that are looked at in one go, and how often that is done for one name.
const PORTION: usize = 1_024;
const PORTIONS: usize = 16;

#[derive(Debug)]
enum Contents {
    Free,
    /// Word and external format.
    Local {
        word: ErlNifTerm,
        key: Arc<[u8]>,
    },
    Kept(Kept),
}

/// A term, and who holds it.
#[derive(Debug)]
struct Kept {
    saved: Saved,
    /// That a copy of it takes at most.
    words: u64,
    /// A call that is not over.
    call: bool,
    library: Library,
    /// The lowest number of a call that may have had it from the library.
    since: u64,
    /// It is among those that are to be let go of: once, however often that was asked for.
    queued: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Library {
    Out,
    Holds,
    /// Until no call is in flight that may have had it and has a lower number.
    Until(u64),
}

/// Who holds a new name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holder {
    Call,
    Library,
}

#[derive(Debug)]
struct Place {
    kind: NameKind,
    generation: u32,
    contents: Contents,
}

#[derive(Debug)]
pub struct Names {
    places: Vec<Place>,
    free: Vec<u32>,
    by_word: HashMap<ErlNifTerm, u32>,
    limit: usize,
    /// Places that the library lets go of, and of which is to be seen what they wait for.
    leaving: VecDeque<u32>,
    /// Those that wait for the end of a call, by its number.
    waiting: HashMap<u64, Vec<u32>>,
    /// Numbers of calls in flight, while they are looked at.
    in_flight: Vec<u64>,
    /// The places of local names, in the order in which they were known or last found alive.
    locals: VecDeque<u32>,
    /// Places that were looked at for want of a free one.
    looked: u64,
    /// How many names may still be replaced before the dead are looked for everywhere again.
    vain: usize,
    /// Local names that were replaced so far. Shared with those who remember names: when it has moved, what they remember is
    /// worth nothing.
    replaced: Arc<AtomicU64>,
}

impl Names {
    pub fn new(limit: usize) -> Self {
        Names {
            places: Vec::new(),
            free: Vec::new(),
            by_word: HashMap::new(),
            limit,
            leaving: VecDeque::new(),
            waiting: HashMap::new(),
            in_flight: Vec::new(),
            locals: VecDeque::new(),
            looked: 0,
            vain: 0,
            replaced: Arc::default(),
        }
    }

    pub fn replaced(&self) -> &Arc<AtomicU64> {
        &self.replaced
    }

    fn count_replaced(&self) {
        // Relaxed: who reads the old number a moment longer sends a name that is stale.
        self.replaced.fetch_add(1, Ordering::Relaxed);
    }

    /// The name of a local pid or port. `key` is asked for when it is new.
    pub fn local(
        &mut self,
        env: *mut ErlNifEnv,
        kind: NameKind,
        word: ErlNifTerm,
        key: impl FnOnce() -> Arc<[u8]>,
    ) -> Result<(Name, Arc<[u8]>), Unreadable> {
        if let Some(&index) = self.by_word.get(&word)
            && let Some(Place {
                kind,
                generation,
                contents: Contents::Local { key, .. },
            }) = self.places.get(index as usize)
        {
            let name = Name {
                kind: *kind,
                index,
                generation: *generation,
            };
            return Ok((name, Arc::clone(key)));
        }
        let index = self.place(env)?;
        let key = key();
        let contents = Contents::Local {
            word,
            key: Arc::clone(&key),
        };
        self.by_word.insert(word, index);
        self.locals.push_back(index);
        Ok((self.fill(index, kind, contents), key))
    }

    /// The name of any other term, held by its call until `forget`, or by the library until `drop_later`. `words`: at least what
    /// a copy of it takes; the bytes of its external format are more than that.
    pub fn keep(
        &mut self,
        env: *mut ErlNifEnv,
        kind: NameKind,
        term: ErlNifTerm,
        words: u64,
        holder: Holder,
    ) -> Result<Name, Unreadable> {
        let index = self.place(env)?;
        let kept = Kept {
            saved: Saved::new(term),
            words: words.max(1),
            call: holder == Holder::Call,
            library: match holder {
                Holder::Call => Library::Out,
                Holder::Library => Library::Holds,
            },
            since: u64::MAX,
            queued: false,
        };
        Ok(self.fill(index, kind, Contents::Kept(kept)))
    }

    /// The call that brought it is over.
    pub fn forget(&mut self, name: Name) {
        if let Some(kept) = self.kept(name) {
            kept.call = false;
            if kept.library == Library::Out {
                self.free(name.index);
            }
        }
    }

    /// The library holds it from now on. One that is stale, or was none of those that leave, stays what it is.
    pub fn hold(&mut self, name: Name) -> Result<(), Unmakeable> {
        self.check(name)?;
        if let Some(kept) = self.kept(name) {
            kept.library = Library::Holds;
        }
        Ok(())
    }

    /// The library lets go of it as soon as no call is in flight with a number from `since` on and lower than `number`. True: there is
    /// one to [`settle`](Names::settle).
    pub fn drop_later(&mut self, name: Name, since: u64, number: u64) -> Result<bool, Unmakeable> {
        self.check(name)?;
        let Some(kept) = self.kept(name) else { return Ok(false) };
        if kept.library == Library::Out {
            return Ok(false);
        }
        kept.library = Library::Until(number);
        // Those of an earlier time that it was kept count, too.
        kept.since = kept.since.min(since);
        if !std::mem::replace(&mut kept.queued, true) {
            self.leaving.push_back(name.index);
        }
        Ok(true)
    }

    /// Lets go of what may go now, or some of it. True: nothing is left to be settled.
    pub fn settle(&mut self, ring: &VmRing) -> bool {
        ring.calls_in_flight(&mut self.in_flight);
        let over = |call: &u64| self.in_flight.binary_search(call).is_err();
        // No more than there are slots.
        let ended: Vec<u64> = self.waiting.keys().copied().filter(over).collect();
        for call in ended {
            self.leaving.extend(self.waiting.remove(&call).unwrap_or_default());
        }
        for _ in 0..PORTION {
            let Some(index) = self.leaving.pop_front() else { break };
            let Some(Place {
                contents: Contents::Kept(kept),
                ..
            }) = self.places.get_mut(index as usize)
            else {
                continue;
            };
            let Library::Until(number) = kept.library else {
                // It is kept again.
                kept.queued = false;
                continue;
            };
            let next = self.in_flight.partition_point(|call| *call < kept.since);
            if let Some(call) = self.in_flight.get(next).filter(|call| **call < number) {
                self.waiting.entry(*call).or_default().push(index);
                continue;
            }
            (kept.library, kept.queued, kept.since) = (Library::Out, false, u64::MAX);
            if !kept.call {
                self.free(index);
            }
        }
        self.leaving.is_empty() && self.waiting.is_empty()
    }

    /// How many places were looked at for want of a free one, so far.
    pub fn looked(&self) -> u64 {
        self.looked
    }

    fn kept(&mut self, name: Name) -> Option<&mut Kept> {
        match self.places.get_mut(name.index as usize) {
            Some(Place {
                generation,
                contents: Contents::Kept(kept),
                ..
            }) if *generation == name.generation => Some(kept),
            _ => None,
        }
    }

    fn free(&mut self, index: u32) {
        if let Some(place) = self.places.get_mut(index as usize) {
            place.contents = Contents::Free;
            self.free.push(index);
        }
    }

    /// What a copy of the term behind the name takes, at most, in words.
    pub fn words(&self, name: Name) -> u64 {
        match self.places.get(name.index as usize) {
            Some(Place {
                contents: Contents::Kept(kept),
                ..
            }) => kept.words,
            _ => 0,
        }
    }

    /// Whether it is a name: stale ones are, forged ones are not.
    fn check(&self, name: Name) -> Result<(), Unmakeable> {
        match self.find(name) {
            Err(Unmakeable::Forged) => Err(Unmakeable::Forged),
            _ => Ok(()),
        }
    }

    fn find(&self, name: Name) -> Result<&Contents, Unmakeable> {
        let place = self.places.get(name.index as usize).ok_or(Unmakeable::Forged)?;
        if name.generation == place.generation && name.kind == place.kind {
            return match &place.contents {
                Contents::Free => Err(Unmakeable::Stale),
                contents => Ok(contents),
            };
        }
        if name.generation < place.generation {
            Err(Unmakeable::Stale)
        } else {
            Err(Unmakeable::Forged)
        }
    }

    /// The word of a local pid or port; `None`: it is something else, of which a message cannot be a target.
    pub fn word(&self, name: Name) -> Result<Option<ErlNifTerm>, Unmakeable> {
        Ok(match self.find(name)? {
            Contents::Local { word, .. } => Some(*word),
            Contents::Kept(_) | Contents::Free => None,
        })
    }

    /// The external format of the term behind a name.
    pub fn key(&self, env: *mut ErlNifEnv, name: Name) -> Result<Arc<[u8]>, Unmakeable> {
        match self.find(name)? {
            Contents::Local { key, .. } => Ok(Arc::clone(key)),
            Contents::Kept(kept) => Ok(super::terms::key(env, kept.saved.raw())),
            Contents::Free => Err(Unmakeable::Stale),
        }
    }

    /// The term behind a name that the worker sent.
    pub fn term(&self, env: *mut ErlNifEnv, name: Name) -> Result<ErlNifTerm, Unmakeable> {
        match self.find(name)? {
            Contents::Local { word, .. } => Ok(*word),
            // SAFETY: the saved term is alive as long as its place.
            Contents::Kept(kept) => Ok(unsafe { enif_make_copy(env, kept.saved.raw()) }),
            Contents::Free => Err(Unmakeable::Stale),
        }
    }

    fn fill(&mut self, index: u32, kind: NameKind, contents: Contents) -> Name {
        let mut generation = 1;
        match self.places.get_mut(index as usize) {
            Some(place) => {
                generation = place.generation.wrapping_add(1);
                *place = Place {
                    kind,
                    generation,
                    contents,
                };
            }
            None => self.places.push(Place {
                kind,
                generation,
                contents,
            }),
        }
        Name {
            kind,
            index,
            generation,
        }
    }

    /// A free place, or one past the end.
    fn place(&mut self, env: *mut ErlNifEnv) -> Result<u32, Unreadable> {
        if let Some(index) = self.free.pop() {
            return Ok(index);
        }
        let length = self.places.len();
        if length < self.limit {
            return u32::try_from(length).map_err(|_| Unreadable::Odd);
        }
        // A living one is replaced only when the dead were looked for among all of them, or as many as one goes through at once.
        // Where all were alive a moment ago that is not done again for each name.
        let portions = if self.vain > 0 {
            1
        } else {
            self.locals.len().div_ceil(PORTION).clamp(1, PORTIONS)
        };
        for _ in 0..portions {
            self.purge(env);
            if let Some(index) = self.free.pop() {
                self.vain = 0;
                return Ok(index);
            }
        }
        self.vain = if self.vain > 0 { self.vain - 1 } else { PORTION };
        self.replace().ok_or(Unreadable::Names {
            limit: self.limit as u64,
        })
    }

    /// Drops the names of local processes that have ended. Looks at no more than `PORTION` places, and at others the next time.
    fn purge(&mut self, env: *mut ErlNifEnv) {
        for _ in 0..self.locals.len().min(PORTION) {
            let Some(index) = self.locals.pop_front() else { break };
            self.looked += 1;
            match self.places.get(index as usize) {
                Some(Place {
                    contents: Contents::Local { word, .. },
                    ..
                }) if !is_dead(env, *word) => self.locals.push_back(index),
                _ => {
                    self.drop_local(index);
                    self.free.push(index);
                }
            }
        }
    }

    /// Takes the place of the local name that has been known longest, or not been looked at for longest. What is kept has its place.
    fn replace(&mut self) -> Option<u32> {
        let index = self.locals.pop_front()?;
        self.drop_local(index);
        Some(index)
    }

    fn drop_local(&mut self, index: u32) {
        if let Some(place) = self.places.get_mut(index as usize)
            && let Contents::Local { word, .. } = &place.contents
        {
            self.by_word.remove(word);
            place.contents = Contents::Free;
            self.count_replaced();
        }
    }
}

/// Ports are taken for alive: they are few.
fn is_dead(env: *mut ErlNifEnv, word: ErlNifTerm) -> bool {
    let mut pid = MaybeUninit::<ErlNifPid>::uninit();
    // SAFETY: the word is a local pid or port, which is a term of any environment; `pid` is read when it was filled in.
    unsafe { enif_get_local_pid(env, word, pid.as_mut_ptr()) != 0 && enif_is_process_alive(env, pid.as_ptr()) == 0 }
}
