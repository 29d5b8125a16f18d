//! What the external format of a fun tells: enough for its hash.

use super::atom;
use super::name::number;
use std::borrow::Cow;

/// A fun taken apart.
#[derive(Debug, PartialEq, Eq)]
pub enum Fun<'a> {
    /// `fun Module:Function/Arity`
    External {
        module: Cow<'a, str>,
        function: Cow<'a, str>,
        arity: u32,
    },
    Local {
        module: Cow<'a, str>,
        index: u32,
        /// What it was told from others by before there were better ways.
        old_unique: u32,
        free: u32,
        /// The terms that it closes over, one after the other.
        environment: &'a [u8],
    },
}

const EXTERNAL: u64 = 113;
const LOCAL: u64 = 112;

impl<'a> Fun<'a> {
    /// `None` for what is no fun's format, or one of before R9.
    pub fn parse(key: &'a [u8]) -> Option<Self> {
        let mut rest = key;
        match number(&mut rest, 1)? {
            EXTERNAL => Some(Self::External {
                module: text(&mut rest)?,
                function: text(&mut rest)?,
                arity: integer(&mut rest)?,
            }),
            LOCAL => {
                // Size, arity and the checksum of the module.
                skip(&mut rest, 4 + 1 + 16)?;
                let index = number(&mut rest, 4)? as u32;
                let free = number(&mut rest, 4)? as u32;
                let module = text(&mut rest)?;
                let _old_index = integer(&mut rest)?;
                let old_unique = integer(&mut rest)?;
                creator(&mut rest)?;
                Some(Self::Local {
                    module,
                    index,
                    old_unique,
                    free,
                    environment: rest,
                })
            }
            _ => None,
        }
    }
}

fn skip<'a>(rest: &mut &'a [u8], bytes: usize) -> Option<&'a [u8]> {
    let (taken, left) = rest.split_at_checked(bytes)?;
    *rest = left;
    Some(taken)
}

fn text<'a>(rest: &mut &'a [u8]) -> Option<Cow<'a, str>> {
    let tag = number(rest, 1)?;
    let length = number(rest, if matches!(tag, 100 | 118) { 2 } else { 1 })?;
    let text = skip(rest, length as usize)?;
    match tag {
        100 | 115 => Some(atom::from_latin1(text)),
        118 | 119 => std::str::from_utf8(text).ok().map(Cow::Borrowed),
        _ => None,
    }
}

/// A small integer, or one of 32 bits, as its bits.
fn integer(rest: &mut &[u8]) -> Option<u32> {
    match number(rest, 1)? {
        97 => Some(number(rest, 1)? as u32),
        98 => Some(number(rest, 4)? as u32),
        _ => None,
    }
}

/// The process that has made it.
fn creator(rest: &mut &[u8]) -> Option<()> {
    let numbers = match number(rest, 1)? {
        88 => 12,
        103 => 9,
        _ => return None,
    };
    text(rest)?;
    skip(rest, numbers).map(drop)
}
