//! `wire_encode`, `wire_decode`: the codec for tests and diagnosis.

use super::failure::Failure;
use super::names::Names;
use super::scratch;
use super::terms::Destination;
use crate::atoms;
use crate::reply;
use parking_lot::Mutex;
use rustler::{Binary, Encoder, Env, NifResult, Term};
use snakepit_wire::Limits;

const BYTES: u64 = 16 << 20;
/// Names in one term.
const NAMES: usize = 1024;

const LIMITS: Limits = Limits {
    bytes: BYTES,
    ..Limits::DEFAULT
};

#[rustler::nif(schedule = "DirtyCpu")]
fn wire_encode<'a>(env: Env<'a>, term: Term<'a>) -> Term<'a> {
    let mut kept = Vec::new();
    let names = Mutex::new(Names::new(NAMES));
    let to = Destination {
        incarnation: 0,
        names: &names,
        kept: &mut kept,
    };
    match scratch::encode_plain(env, to, term, &LIMITS) {
        Ok(bytes) => (atoms::ok(), reply::bytes(env, &bytes)).encode(env),
        Err(error) => Failure::from(error).term(env),
    }
}

#[rustler::nif(schedule = "DirtyCpu")]
fn wire_decode<'a>(env: Env<'a>, binary: Binary<'a>) -> NifResult<Term<'a>> {
    Ok(
        match scratch::decode_plain(env.as_c_arg(), None, &LIMITS, binary.as_slice()) {
            // SAFETY: just made in this environment.
            Ok(term) => (atoms::ok(), unsafe { Term::new(env, term) }).encode(env),
            Err(error) => Failure::from(error).term(env),
        },
    )
}
