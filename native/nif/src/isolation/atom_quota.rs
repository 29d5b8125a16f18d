//! `atoms_new`, `atoms_used`: how many new atoms a library may make. Atoms are never collected, so neither are charges.

use super::handle::{Handle, Kind, Object, Ref};
use rustler::{Encoder, Env, NifResult, Term};
use std::ffi::CStr;
use std::sync::atomic::{AtomicU64, Ordering};

#[derive(Debug)]
pub struct AtomsAccount {
    limit: u64,
    used: AtomicU64,
}

static KIND: Kind = Kind::new();

impl Object for AtomsAccount {
    const NAME: &'static CStr = c"snakepit_atoms";

    fn kind() -> &'static Kind {
        &KIND
    }
}

impl AtomsAccount {
    /// Takes one. The limit when there is none left.
    pub fn charge(&self) -> Result<(), u64> {
        // Relaxed: a counter, nothing is ordered by it.
        self.used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
                (used < self.limit).then_some(used + 1)
            })
            .map(|_| ())
            .map_err(|_| self.limit)
    }
}

#[rustler::nif]
fn atoms_new(env: Env<'_>, limit: u64) -> Term<'_> {
    Handle::new(AtomsAccount {
        limit,
        used: AtomicU64::new(0),
    })
    .term(env)
}

#[rustler::nif]
fn atoms_used<'a>(env: Env<'a>, account: Term<'a>) -> NifResult<Term<'a>> {
    let account = Ref::<AtomsAccount>::of(account)?;
    Ok(account.used.load(Ordering::Relaxed).encode(env))
}
