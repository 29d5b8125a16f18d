//! Keys of pids and ports.
//!
//! A pid is a word, so that `ErlNifPid` can be copied with `memcpy`; its key, by which it is ordered and printed, is kept
//! here. References and funs carry theirs. The VM's table is bounded, and so is this one: an index has one entry.

use super::known::Sought;
use super::service;
use snakepit_wire::service::{Named, Reply, Request};
use snakepit_wire::{Name, NameKind};
use std::collections::HashMap;
use std::sync::{PoisonError, RwLock};

// Tags of the external format.
const PID: u8 = 103;
const NEW_PID: u8 = 88;
const PORT: u8 = 102;
const NEW_PORT: u8 = 89;
const V4_PORT: u8 = 120;
const NEW_REFERENCE: u8 = 114;
const NEWER_REFERENCE: u8 = 90;

struct Entry {
    generation: u32,
    key: Box<[u8]>,
}

type Keys = HashMap<(u8, u32), Entry>;

static KEYS: RwLock<Option<Keys>> = RwLock::new(None);

/// Remembers the key of a pid or port; a later one with the same index takes its place.
pub fn learn(name: Name, key: &[u8]) {
    let place = (name.kind as u8, name.index);
    let known = KEYS.read().unwrap_or_else(PoisonError::into_inner);
    let entry = known.as_ref().and_then(|keys| keys.get(&place));
    if key.is_empty() || entry.is_some_and(|entry| entry.generation == name.generation) {
        return;
    }
    drop(known);
    let mut keys = KEYS.write().unwrap_or_else(PoisonError::into_inner);
    let entry = Entry {
        generation: name.generation,
        key: key.into(),
    };
    keys.get_or_insert_default().insert(place, entry);
}

/// What `look` makes of the key of a pid or port; `None` if there is no key.
fn known<T>(name: Name, look: impl FnOnce(&[u8]) -> T) -> Option<T> {
    let keys = KEYS.read().unwrap_or_else(PoisonError::into_inner);
    let entry = keys.as_ref()?.get(&(name.kind as u8, name.index))?;
    (entry.generation == name.generation).then(|| look(&entry.key))
}

fn asked(name: Name) -> Option<Vec<u8>> {
    let name = Named(name);
    match service::ask(|request| Request::Key { request, name }) {
        Some(Reply::Key(key)) => Some(key),
        _ => None,
    }
}

/// The key of a pid or port. One that came without (the caller's own) is asked for; `None` if the VM does not tell.
pub fn key(name: Name) -> Option<Box<[u8]>> {
    known(name, |key| key.into()).or_else(|| {
        let key = asked(name)?;
        learn(name, &key);
        Some(key.into())
    })
}

/// The key of one of the VM's own pids, as far as is known.
static HERE: RwLock<Option<Box<[u8]>>> = RwLock::new(None);

/// Whether a pid or port is of the VM's own node.
///
/// Its node is that of the caller, which may change: a node can get its name at any time, and what came with the old one is
/// of the new one then. So a node that seems to be another one is looked at again.
pub fn is_local(name: Name, caller: Option<Name>) -> bool {
    let here = |key: &[u8]| {
        let here = HERE.read().unwrap_or_else(PoisonError::into_inner);
        here.as_ref().is_some_and(|here| origin(key) == origin(here))
    };
    // Only the VM's own come without a key.
    if known(name, here).unwrap_or(true) {
        return true;
    }
    // Nobody to compare with.
    let Some(own) = caller.and_then(asked) else { return true };
    *HERE.write().unwrap_or_else(PoisonError::into_inner) = Some(own.into());
    known(name, here).unwrap_or(true) || asked(name).is_some_and(|key| here(&key))
}

/// Where a pid or port is from, node and creation: what its key has in front of and behind its numbers.
fn origin(key: &[u8]) -> Option<(&[u8], u64)> {
    let mut rest = key;
    let tag = number(&mut rest, 1)? as u8;
    let node = atom(&mut rest)?;
    let creation = match tag {
        PID | PORT => 1,
        NEW_PID | NEW_PORT | V4_PORT => 4,
        _ => return None,
    };
    let mut last = rest.get(rest.len().checked_sub(creation)?..)?;
    Some((node, number(&mut last, creation)?))
}

/// A pid or port with this key.
pub fn find(sought: &Sought<'_>) -> Option<Name> {
    let keys = KEYS.read().unwrap_or_else(PoisonError::into_inner);
    keys.as_ref()?.iter().find_map(|((kind, index), entry)| {
        let kind = NameKind::from_byte(*kind)?;
        sought.is(kind, &entry.key).then_some(Name {
            kind,
            index: *index,
            generation: entry.generation,
        })
    })
}

/// What a key tells about a pid, port or reference: enough to order them as the VM does, and to print them.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Identity {
    /// Most significant number first.
    pub numbers: [u64; 5],
    pub node: Vec<u8>,
    pub creation: u32,
}

/// Takes a key apart; `None` for a fun's or for one that is not understood, which are ordered by their bytes.
pub fn identity(kind: NameKind, key: &[u8]) -> Option<Identity> {
    let mut rest = key;
    let tag = number(&mut rest, 1)? as u8;
    let words = match tag {
        NEW_REFERENCE | NEWER_REFERENCE => number(&mut rest, 2)? as usize,
        _ => 0,
    };
    let node = atom(&mut rest)?;
    let mut numbers = [0; 5];
    let creation;
    match (kind, tag) {
        (NameKind::Pid, PID | NEW_PID) => {
            numbers[1] = number(&mut rest, 4)?;
            numbers[0] = number(&mut rest, 4)?;
            creation = number(&mut rest, if tag == PID { 1 } else { 4 })?;
        }
        (NameKind::Port, PORT | NEW_PORT | V4_PORT) => {
            numbers[0] = number(&mut rest, if tag == V4_PORT { 8 } else { 4 })?;
            creation = number(&mut rest, if tag == PORT { 1 } else { 4 })?;
        }
        (NameKind::Reference, NEW_REFERENCE | NEWER_REFERENCE) if (1..=5).contains(&words) => {
            creation = number(&mut rest, if tag == NEW_REFERENCE { 1 } else { 4 })?;
            // The first word of a reference is its least significant one.
            for word in numbers[5 - words..].iter_mut().rev() {
                *word = number(&mut rest, 4)?;
            }
        }
        _ => return None,
    }
    Some(Identity {
        numbers,
        node: node.to_vec(),
        creation: creation as u32,
    })
}

pub fn number(rest: &mut &[u8], bytes: usize) -> Option<u64> {
    let (taken, left) = rest.split_at_checked(bytes)?;
    *rest = left;
    Some(taken.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)))
}

fn atom<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = match number(rest, 1)? {
        115 | 119 => number(rest, 1)?,
        100 | 118 => number(rest, 2)?,
        _ => return None,
    };
    let (text, left) = rest.split_at_checked(length as usize)?;
    *rest = left;
    Some(text)
}
