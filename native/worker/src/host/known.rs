//! Names by their external format: what this worker was given, and nothing else.

use super::env::Env;
use super::held;
use super::name::{self, Identity, identity};
use snakepit_wire::{Name, NameKind};

/// Whether two formats mean the same. A node may be written in more than one way; a fun has one.
#[derive(Debug)]
pub struct Sought<'a> {
    kind: NameKind,
    key: &'a [u8],
    identity: Option<Identity>,
}

impl<'a> Sought<'a> {
    fn new(kind: NameKind, key: &'a [u8]) -> Self {
        Self {
            kind,
            key,
            identity: identity(kind, key),
        }
    }

    pub fn is(&self, kind: NameKind, key: &[u8]) -> bool {
        kind == self.kind && (key == self.key || self.identity.is_some() && identity(kind, key) == self.identity)
    }
}

/// A name that this worker was given: a pid or port at any time, a reference or fun that it holds, or that is in the env.
pub fn name(env: &Env, kind: NameKind, key: &[u8]) -> Option<Name> {
    let sought = Sought::new(kind, key);
    match kind {
        NameKind::Pid | NameKind::Port => name::find(&sought),
        NameKind::Reference | NameKind::Fun => env.find_name(&sought).or_else(|| held::find(&sought)),
    }
}
