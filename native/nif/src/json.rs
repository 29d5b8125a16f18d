//! `json_decode`, `json_encode`: 64 KiB at most either way, no atom is ever made.

use crate::atoms;
use crate::reply::{self, error_term, failure, reply};
use rustler::types::map::MapIterator;
use rustler::{Binary, Encoder, Env, Term, TermType};
use serde_json::{Number, Value};
use snakepit_shm_core::error::Error;

const MOST: usize = 64 << 10;
/// The decoder's own limit (serde_json's), and the encoder's.
const DEEPEST: usize = 128;

#[rustler::nif]
fn json_decode<'a>(env: Env<'a>, text: Binary<'a>) -> Term<'a> {
    if text.len() > MOST {
        return failure(env, &Error::TooLarge { limit: MOST as u64 });
    }
    match serde_json::from_slice::<Value>(text.as_slice()) {
        Ok(value) => reply(env, Ok(term(env, &value))),
        Err(error) => invalid(env, &error.to_string()),
    }
}

#[rustler::nif]
fn json_encode<'a>(env: Env<'a>, value: Term<'a>) -> Term<'a> {
    let mut out = Vec::with_capacity(256);
    match write(&mut out, value, 0) {
        Ok(()) => reply(env, Ok(reply::bytes(env, &out))),
        Err(Refusal::TooLarge) => failure(env, &Error::TooLarge { limit: MOST as u64 }),
        Err(Refusal::NoForm(what)) => invalid(env, what),
    }
}

fn invalid<'a>(env: Env<'a>, message: &str) -> Term<'a> {
    error_term(env, atoms::invalid_json(), &[(atoms::message(), message.encode(env))])
}

/// Recursion is bounded by the decoder's own limit.
fn term<'a>(env: Env<'a>, value: &Value) -> Term<'a> {
    match value {
        Value::Null => atoms::nil().encode(env),
        Value::Bool(value) => value.encode(env),
        Value::Number(number) => number_term(env, number),
        Value::String(text) => text.encode(env),
        Value::Array(items) => items.iter().map(|item| term(env, item)).collect::<Vec<_>>().encode(env),
        Value::Object(members) => {
            let pairs: Vec<_> = members
                .iter()
                .map(|(key, value)| (key.as_str(), term(env, value)))
                .collect();
            // Of members with the same name serde_json has kept the last: all keys differ.
            Term::map_from_pairs(env, &pairs).unwrap_or_else(|_| Term::map_new(env))
        }
    }
}

fn number_term<'a>(env: Env<'a>, number: &Number) -> Term<'a> {
    if let Some(number) = number.as_i64() {
        return number.encode(env);
    }
    match number.as_u64() {
        Some(number) => number.encode(env),
        // Finite: serde_json refuses what a float cannot hold.
        None => number.as_f64().unwrap_or(0.0).encode(env),
    }
}

enum Refusal {
    TooLarge,
    NoForm(&'static str),
}

fn write(out: &mut Vec<u8>, value: Term<'_>, depth: usize) -> Result<(), Refusal> {
    // Each call adds at least a byte, so this bounds the work as well as the result.
    if out.len() > MOST {
        return Err(Refusal::TooLarge);
    }
    if depth > DEEPEST {
        return Err(Refusal::NoForm("nested too deeply"));
    }
    match value.get_type() {
        TermType::Atom => write_atom(out, value)?,
        TermType::Binary => write_text(out, binary_text(value)?)?,
        TermType::Integer => write_integer(out, value)?,
        TermType::Float => match value.decode::<f64>().ok().and_then(Number::from_f64) {
            Some(number) => out.extend_from_slice(number.to_string().as_bytes()),
            None => return Err(Refusal::NoForm("a float that is not finite")),
        },
        TermType::List => write_list(out, value, depth)?,
        TermType::Map => write_map(out, value, depth)?,
        TermType::Tuple => return Err(Refusal::NoForm("a tuple")),
        TermType::Pid => return Err(Refusal::NoForm("a pid")),
        TermType::Port => return Err(Refusal::NoForm("a port")),
        TermType::Ref => return Err(Refusal::NoForm("a reference")),
        TermType::Fun => return Err(Refusal::NoForm("a function")),
        TermType::Unknown => return Err(Refusal::NoForm("a term of unknown type")),
    }
    if out.len() > MOST {
        Err(Refusal::TooLarge)
    } else {
        Ok(())
    }
}

fn write_atom(out: &mut Vec<u8>, value: Term<'_>) -> Result<(), Refusal> {
    let plain: &[u8] = if atoms::nil() == value {
        b"null"
    } else if atoms::yes() == value {
        b"true"
    } else if atoms::no() == value {
        b"false"
    } else {
        return write_text(out, &atom_text(value)?);
    };
    out.extend_from_slice(plain);
    Ok(())
}

fn write_integer(out: &mut Vec<u8>, value: Term<'_>) -> Result<(), Refusal> {
    let text = match (value.decode::<i64>(), value.decode::<u64>()) {
        (Ok(number), _) => number.to_string(),
        (_, Ok(number)) => number.to_string(),
        _ => return Err(Refusal::NoForm("an integer of more than 64 bits")),
    };
    out.extend_from_slice(text.as_bytes());
    Ok(())
}

fn write_list(out: &mut Vec<u8>, value: Term<'_>, depth: usize) -> Result<(), Refusal> {
    let mut rest = value;
    out.push(b'[');
    let mut first = true;
    while !rest.is_empty_list() {
        let (head, tail) = rest.list_get_cell().map_err(|_| Refusal::NoForm("an improper list"))?;
        separate(out, &mut first);
        write(out, head, depth + 1)?;
        rest = tail;
    }
    out.push(b']');
    Ok(())
}

fn write_map(out: &mut Vec<u8>, value: Term<'_>, depth: usize) -> Result<(), Refusal> {
    let pairs = MapIterator::new(value).ok_or(Refusal::NoForm("a term of unknown type"))?;
    out.push(b'{');
    let mut first = true;
    for (key, value) in pairs {
        separate(out, &mut first);
        match key.get_type() {
            TermType::Binary => write_text(out, binary_text(key)?)?,
            TermType::Atom => write_text(out, &atom_text(key)?)?,
            _ => return Err(Refusal::NoForm("a key that is neither a string nor an atom")),
        }
        out.push(b':');
        write(out, value, depth + 1)?;
    }
    out.push(b'}');
    Ok(())
}

fn separate(out: &mut Vec<u8>, first: &mut bool) {
    if !std::mem::replace(first, false) {
        out.push(b',');
    }
}

fn write_text(out: &mut Vec<u8>, text: &str) -> Result<(), Refusal> {
    if text.len() > MOST {
        return Err(Refusal::TooLarge);
    }
    // Writing into a vector does not fail.
    serde_json::to_writer(out, text).map_err(|_| Refusal::TooLarge)
}

fn binary_text(value: Term<'_>) -> Result<&str, Refusal> {
    // A bitstring has the type of a binary and is none.
    let binary = Binary::from_term(value).map_err(|_| Refusal::NoForm("a bitstring"))?;
    std::str::from_utf8(binary.as_slice()).map_err(|_| Refusal::NoForm("a binary that is not UTF-8"))
}

fn atom_text(value: Term<'_>) -> Result<String, Refusal> {
    value
        .atom_to_string()
        .map_err(|_| Refusal::NoForm("an atom that is not UTF-8"))
}
