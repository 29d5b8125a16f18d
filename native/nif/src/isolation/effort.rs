//! What making terms takes beside their bytes, and how much of that is done at a time.
//!
//! Nine bytes buy a resource of the VM's, for which it allocates and takes locks. So a builder counts what is dear, and on a scheduler it
//! stops when that is too much for one go: the payload is decoded again, from its beginning, on a dirty one. Each time that an object stands
//! in a payload is one reference that the worker has counted, which the VM takes once: those that were met before it stopped are held
//! until then, and are not taken again.

use super::handle::{Handle, Ref};
use super::remote::Remote;
use rustler::sys::{ErlNifEnv, ErlNifTerm};
use rustler::{Env, Term};

/// What is done on a scheduler in one go, in quarters of a microsecond.
const MOST: u64 = 1_200;

/// In quarters of a microsecond.
pub const OBJECT: u64 = 6;
pub const OBJECT_AGAIN: u64 = 4;
pub const GIVEN_BACK: u64 = 1;
pub const NAME: u64 = 1;
pub const ATOM: u64 = 1;
/// What goes through the external format.
pub const EXTERNAL: u64 = 2;

#[derive(Debug)]
pub struct Effort {
    most: u64,
    /// So far, in quarters of a microsecond.
    work: u64,
    /// Objects that were met, each time that they stand there.
    met: usize,
    /// So many of them were met before.
    before: usize,
    /// Their terms, if it may have to stop.
    terms: Vec<ErlNifTerm>,
}

/// Objects of a payload that is to be decoded again. Whoever has them has taken their references.
#[derive(Debug, Default)]
pub struct Met(Vec<Handle<Remote>>);

impl Met {
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Each time that one stands there.
    pub const fn len(&self) -> usize {
        self.0.len()
    }
}

impl Effort {
    /// `met` is kept until the payload is decoded.
    #[inline]
    pub fn on_scheduler(met: &Met) -> Self {
        Effort {
            most: MOST,
            ..Effort::unbounded(met)
        }
    }

    /// As on a scheduler, all of it.
    #[inline]
    pub fn unbounded(met: &Met) -> Self {
        Effort {
            most: u64::MAX,
            work: 0,
            met: 0,
            before: met.0.len(),
            terms: Vec::new(),
        }
    }

    #[inline]
    pub fn work(&self) -> u64 {
        self.work
    }

    /// Notes work that is about to be done. False: it is to be done elsewhere.
    #[inline]
    pub fn takes(&mut self, quarters: u64) -> bool {
        self.work += quarters;
        self.work <= self.most
    }

    /// An object is met. False: its reference was taken before.
    pub fn meets(&mut self) -> bool {
        self.met += 1;
        self.met > self.before
    }

    /// Its term is made.
    pub fn made(&mut self, term: ErlNifTerm) {
        if self.most < u64::MAX {
            self.terms.push(term);
        }
    }

    /// How many objects are dealt with, from the beginning of the payload.
    pub fn dealt_with(&self) -> usize {
        self.met.max(self.before)
    }

    /// What was met until it stopped. `env`: of the terms.
    #[cold]
    pub fn met(&self, env: *mut ErlNifEnv) -> Met {
        let of = |term: &ErlNifTerm| {
            // SAFETY: the terms were made in this environment, which is alive for as long as the values, which do not leave this function.
            let term = unsafe { Term::new(Env::new(&(), env), *term) };
            Ref::<Remote>::of(term).ok().map(Ref::keep)
        };
        Met(self.terms.iter().filter_map(of).collect())
    }
}
