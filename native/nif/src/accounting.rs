//! `budget_new`, `budget_usage`, `charge`, `charge_release`.

use crate::atoms;
use crate::reply::reply;
use parking_lot::Mutex;
use rustler::types::atom::Atom;
use rustler::{Decoder, Env, NifResult, Resource, ResourceArc, Term};
use snakepit_shm_core::budget::{Budget, Charge};
use snakepit_shm_core::error::{Error, Result};

pub struct BudgetResource(Budget);

#[rustler::resource_impl]
impl Resource for BudgetResource {}

/// Holds the charge until a segment takes it or it is released.
pub struct ChargeResource(Mutex<Option<Charge>>);

#[rustler::resource_impl]
impl Resource for ChargeResource {}

impl ChargeResource {
    pub fn take(&self) -> Result<Charge> {
        self.0.lock().take().ok_or(Error::NoCharge)
    }
}

/// What pays for a segment: a charge that was taken before, or one out of a budget now.
pub enum Account {
    Charged(ResourceArc<ChargeResource>),
    Open {
        budget: ResourceArc<BudgetResource>,
        bytes: u64,
        limit: u64,
    },
}

impl Account {
    pub fn pay(&self) -> Result<Charge> {
        match self {
            Account::Charged(charge) => charge.take(),
            Account::Open { budget, bytes, limit } => budget.0.charge(*bytes, *limit),
        }
    }

    /// What has been taken before and will not be used.
    pub fn release(&self) {
        if let Account::Charged(charge) = self {
            drop(charge.take());
        }
    }
}

impl<'a> Decoder<'a> for Account {
    fn decode(term: Term<'a>) -> NifResult<Self> {
        if let Ok(charge) = term.decode() {
            return Ok(Account::Charged(charge));
        }
        let (budget, bytes, limit) = term.decode()?;
        Ok(Account::Open { budget, bytes, limit })
    }
}

#[rustler::nif]
fn budget_new() -> ResourceArc<BudgetResource> {
    ResourceArc::new(BudgetResource(Budget::new()))
}

#[rustler::nif]
fn budget_usage(budget: ResourceArc<BudgetResource>) -> (u64, u64) {
    budget.0.usage()
}

#[rustler::nif]
fn charge(env: Env<'_>, budget: ResourceArc<BudgetResource>, bytes: u64, limit: u64) -> Term<'_> {
    let charged = budget.0.charge(bytes, limit);
    reply(
        env,
        charged.map(|charge| ResourceArc::new(ChargeResource(Mutex::new(Some(charge))))),
    )
}

#[rustler::nif]
fn charge_release(charge: ResourceArc<ChargeResource>) -> Atom {
    let released = charge.0.lock().take();
    drop(released);
    atoms::ok()
}
