//! References and funs that a library holds for longer than a call: which of them the VM must keep for it.
//!
//! What comes with a call is in the VM's table until the call is over. A copy in an independent env outlives that, so the VM
//! is told to keep it when the first such copy is made, and to drop it when the last one is gone. A reference that the
//! library makes is kept from the beginning. They are made ahead, some at a time, and dropped some at a time.

use super::known::Sought;
use super::service;
use snakepit_wire::service::{Keyed, NAMES, Named, Reply, Request};
use snakepit_wire::{Name, NameKind};
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// References asked for at once: so many first, and twice as many each time.
const STOCK: u32 = 16;
/// Made references that nobody needs any more are told at the latest when there are so many.
const DONE: usize = 64;

#[derive(Debug)]
struct Holders {
    key: Box<[u8]>,
    count: usize,
    /// Made here, and not kept by a request.
    made: bool,
}

#[derive(Default)]
struct Held {
    names: HashMap<Name, Holders>,
    /// Made by the VM and not used yet.
    stock: Vec<Keyed>,
    /// How many were asked for last.
    asked: u32,
    /// Made references that nobody holds any more.
    done: Vec<Named>,
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
    });
    holders.count += 1;
    if holders.count == 1 {
        service::tell(&Request::Keep {
            names: vec![Named(name)],
        });
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
    let mut dropped = Vec::new();
    for name in names {
        let Some(holders) = held.names.get_mut(name) else {
            continue;
        };
        holders.count -= 1;
        if holders.count == 0 {
            let made = holders.made;
            held.names.remove(name);
            if made {
                held.done.push(Named(*name));
            } else {
                dropped.push(Named(*name));
            }
        }
    }
    tell_dropped(&dropped);
    if held.done.len() >= DONE {
        tell_dropped(&std::mem::take(&mut held.done));
    }
}

fn tell_dropped(names: &[Named]) {
    for names in names.chunks(NAMES) {
        service::tell(&Request::Drop { names: names.to_vec() });
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
        };
        held.names.insert(keyed.name.0, holders);
        Some(keyed)
    };
    stocked(None).or_else(|| {
        let (done, count) = {
            let mut held = held();
            let held = held.get_or_insert_default();
            held.asked = (held.asked * 2).clamp(STOCK, NAMES as u32);
            (std::mem::take(&mut held.done), held.asked)
        };
        tell_dropped(&done);
        let reply = service::ask(|request| Request::References { request, count });
        let Some(Reply::Names(names)) = reply else {
            return None;
        };
        let of_this_kind = names.iter().all(|keyed| keyed.name.0.kind == NameKind::Reference);
        stocked(of_this_kind.then_some(names))
    })
}
