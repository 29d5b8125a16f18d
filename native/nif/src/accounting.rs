//! `budget_new`, `budget_usage`, `charge`, `charge_release`.

use crate::atoms;
use crate::reply::reply;
use parking_lot::Mutex;
use rustler::types::atom::Atom;
use rustler::{Env, Resource, ResourceArc, Term};
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
