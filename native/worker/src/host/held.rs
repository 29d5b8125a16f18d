//! References and funs that a library holds for longer than a call: which of them the VM must keep for it.
//!
//! What comes with a call is in the VM's table until the call is over. A copy in an independent env outlives that, so the VM
//! is told to keep it when the first such copy is made, and to drop it when the last one is gone. A reference that the
//! library makes is kept from the beginning. They are made ahead, some at a time, and dropped some at a time.

use super::executor;
use super::known::Sought;
use super::service;
use snakepit_wire::service::{Keyed, NAMES, Named, Reply, Request};
use snakepit_wire::{Name, NameKind};
use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// References asked for at once. Few: they take places in the VM's table, which may have 64 in all.
const STOCK: u32 = 16;
/// Made references that nobody needs any more are told at the latest when there are so many.
const DONE: usize = 16;

#[derive(Debug)]
struct Holders {
    key: Box<[u8]>,
    count: usize,
    /// Made here, and not kept by a request.
    made: bool,
    /// The lowest number of a call that may answer with it.
    since: u64,
}

/// Names to be dropped, and the lowest number of a call that may answer with one.
struct Dropped {
    names: Vec<Named>,
    since: u64,
}

impl Default for Dropped {
    fn default() -> Self {
        Self {
            names: Vec::new(),
            since: executor::NO_CALL,
        }
    }
}

impl Dropped {
    fn add(&mut self, name: Name, since: u64) {
        self.names.push(Named(name));
        self.since = self.since.min(since);
    }
}

/// How many names are held: spares those who have none the lock. Relaxed: who copies a name knows of a holder of it.
static COUNT: AtomicUsize = AtomicUsize::new(0);

#[derive(Default)]
struct Held {
    names: HashMap<Name, Holders>,
    /// Made by the VM and not used yet.
    stock: Vec<Keyed>,
    /// Made references that nobody holds any more.
    done: Dropped,
}

static HELD: Mutex<Option<Held>> = Mutex::new(None);

/// Requests go out under this lock, so that they arrive in the order of what they tell.
fn held() -> MutexGuard<'static, Option<Held>> {
    HELD.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One holder more.
pub fn hold(name: Name, key: &[u8]) {
    let mut held = held();
    let names = &mut held.get_or_insert_default().names;
    let holders = names.entry(name).or_insert_with(|| Holders {
        key: key.into(),
        count: 0,
        made: false,
        since: executor::NO_CALL,
    });
    holders.count += 1;
    holders.since = holders.since.min(executor::call_number());
    if holders.count == 1 {
        COUNT.fetch_add(1, Ordering::Relaxed);
        service::tell(&Request::Keep {
            names: vec![Named(name)],
        });
    }
}

/// The call of this thread has a name in its env, and may answer with it.
#[inline]
pub fn had(name: Name) {
    if COUNT.load(Ordering::Relaxed) > 0
        && let Some(holders) = held().as_mut().and_then(|held| held.names.get_mut(&name))
    {
        holders.since = holders.since.min(executor::call_number());
    }
}

/// A name that is held.
pub fn find(sought: &Sought<'_>) -> Option<Name> {
    let held = held();
    let mut names = held.as_ref()?.names.iter();
    names
        .find(|(name, holders)| sought.is(name.kind, &holders.key))
        .map(|(name, _)| *name)
}

/// One holder less, of each.
pub fn let_go(names: &[Name]) {
    let mut held = held();
    let Some(held) = held.as_mut() else { return };
    let mut dropped = Dropped::default();
    for name in names {
        let Some(holders) = held.names.get_mut(name) else {
            continue;
        };
        holders.count -= 1;
        if holders.count == 0 {
            let (made, since) = (holders.made, holders.since);
            held.names.remove(name);
            COUNT.fetch_sub(1, Ordering::Relaxed);
            if made {
                held.done.add(*name, since);
            } else {
                dropped.add(*name, since);
            }
        }
    }
    tell_dropped(&dropped);
    if held.done.names.len() >= DONE {
        tell_dropped(&std::mem::take(&mut held.done));
    }
}

fn tell_dropped(dropped: &Dropped) {
    for names in dropped.names.chunks(NAMES) {
        service::tell(&Request::Drop {
            names: names.to_vec(),
            since: dropped.since,
        });
    }
}

/// A new reference, with one holder; `None` when the VM makes none.
pub fn make() -> Option<Keyed> {
    let stocked = |made: Option<Vec<Keyed>>| {
        let mut held = held();
        let held = held.get_or_insert_default();
        held.stock.extend(made.into_iter().flatten());
        let keyed = held.stock.pop()?;
        let holders = Holders {
            key: keyed.key.clone().into(),
            count: 1,
            made: true,
            since: executor::call_number(),
        };
        COUNT.fetch_add(1, Ordering::Relaxed);
        held.names.insert(keyed.name.0, holders);
        Some(keyed)
    };
    stocked(None).or_else(|| {
        let done = held().as_mut().map(|held| std::mem::take(&mut held.done));
        tell_dropped(&done.unwrap_or_default());
        let ask = |count| service::ask(|request| Request::References { request, count });
        let reply = match ask(STOCK) {
            // A table that has no room for so many may have some for one.
            Some(Reply::Refused) => ask(1),
            reply => reply,
        };
        let Some(Reply::Names(names)) = reply else {
            return None;
        };
        let of_this_kind = names.iter().all(|keyed| keyed.name.0.kind == NameKind::Reference);
        stocked(of_this_kind.then_some(names))
    })
}
