//! What a worker may name: a bounded table of terms that the VM has sent it.
//!
//! * A local pid or port is one word. It is found again by that word and stays until its place is needed: first the places of the
//!   dead are taken, then those of the longest known.
//! * Everything else (references, funs, pids and ports of other nodes) is copied, and leaves with the call that brought it.
//!
//! A place that is used again has a new generation. A name with an old one is *stale*: a library may keep what it was given.
//! One that never was is *forged*: its worker lies.

use super::failure::{Unmakeable, Unreadable};
use super::saved::Saved;
use rustler::sys::{ErlNifEnv, ErlNifPid, ErlNifTerm, enif_get_local_pid, enif_is_process_alive, enif_make_copy};
use snakepit_wire::{Name, NameKind};
use std::collections::HashMap;
use std::mem::MaybeUninit;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

#[derive(Debug)]
enum Contents {
    Free,
    /// Word and external format.
    Local {
        word: ErlNifTerm,
        key: Arc<[u8]>,
    },
    /// The term, and the words that a copy of it takes at most.
    Kept(Saved, u64),
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
    /// The next local name to be replaced.
    hand: usize,
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
            hand: 0,
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
        Ok((self.fill(index, kind, contents), key))
    }

    /// The name of any other term, to be dropped with `forget`. `words`: at least what a copy of it takes; the bytes of its
    /// external format are more than that.
    pub fn keep(
        &mut self,
        env: *mut ErlNifEnv,
        kind: NameKind,
        term: ErlNifTerm,
        words: u64,
    ) -> Result<Name, Unreadable> {
        let index = self.place(env)?;
        Ok(self.fill(index, kind, Contents::Kept(Saved::new(term), words.max(1))))
    }

    pub fn forget(&mut self, name: Name) {
        if let Some(place) = self.places.get_mut(name.index as usize)
            && place.generation == name.generation
            && matches!(place.contents, Contents::Kept(..))
        {
            place.contents = Contents::Free;
            self.free.push(name.index);
        }
    }

    /// What a copy of the term behind the name takes, at most, in words.
    pub fn words(&self, name: Name) -> u64 {
        match self.places.get(name.index as usize) {
            Some(Place {
                contents: Contents::Kept(_, words),
                ..
            }) => *words,
            _ => 0,
        }
    }

    /// The term behind a name that the worker sent.
    pub fn term(&self, env: *mut ErlNifEnv, name: Name) -> Result<ErlNifTerm, Unmakeable> {
        let place = self.places.get(name.index as usize).ok_or(Unmakeable::Forged)?;
        if name.generation == place.generation && name.kind == place.kind {
            match &place.contents {
                Contents::Local { word, .. } => return Ok(*word),
                // SAFETY: the saved term is alive as long as its place.
                Contents::Kept(saved, _) => return Ok(unsafe { enif_make_copy(env, saved.raw()) }),
                Contents::Free => return Err(Unmakeable::Stale),
            }
        }
        if name.generation < place.generation {
            Err(Unmakeable::Stale)
        } else {
            Err(Unmakeable::Forged)
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
        self.purge(env);
        if let Some(index) = self.free.pop() {
            return Ok(index);
        }
        self.replace().ok_or(Unreadable::Names {
            limit: self.limit as u64,
        })
    }

    /// Drops the names of local processes that have ended. Looks at no more than 1,024 places a time: it runs on a scheduler.
    fn purge(&mut self, env: *mut ErlNifEnv) {
        let length = self.places.len();
        for step in 0..length.min(1024) {
            let index = (self.hand + step) % length;
            let Contents::Local { word, .. } = &self.places[index].contents else {
                continue;
            };
            let word = *word;
            if is_dead(env, word) {
                self.by_word.remove(&word);
                self.places[index].contents = Contents::Free;
                self.free.push(index as u32);
                self.count_replaced();
            }
        }
    }

    /// Takes the place of the local name that has been known longest, roughly.
    fn replace(&mut self) -> Option<u32> {
        let length = self.places.len();
        for _ in 0..length {
            let index = self.hand;
            self.hand = (self.hand + 1) % length;
            if let Contents::Local { word, .. } = &self.places[index].contents {
                self.by_word.remove(word);
                self.places[index].contents = Contents::Free;
                self.count_replaced();
                return Some(index as u32);
            }
        }
        None
    }
}

/// Ports are taken for alive: they are few.
fn is_dead(env: *mut ErlNifEnv, word: ErlNifTerm) -> bool {
    let mut pid = MaybeUninit::<ErlNifPid>::uninit();
    // SAFETY: the word is a local pid or port, which is a term of any environment; `pid` is read when it was filled in.
    unsafe { enif_get_local_pid(env, word, pid.as_mut_ptr()) != 0 && enif_is_process_alive(env, pid.as_ptr()) == 0 }
}
