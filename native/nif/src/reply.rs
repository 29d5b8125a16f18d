//! Results and errors as terms, and the arguments that rustler does not decode as we need them.

use crate::atoms;
use rustler::types::atom::Atom;
use rustler::{Binary, Decoder, Encoder, Env, Error as NifError, NifResult, OwnedBinary, Term};
use snakepit_shm_core::error::{Error, Result, Value};
use std::os::unix::ffi::OsStrExt;

/// `{:ok, value}` or `{:error, {reason, details}}`.
pub fn reply<'a, T: Encoder>(env: Env<'a>, result: Result<T>) -> Term<'a> {
    match result {
        Ok(value) => (atoms::ok(), value).encode(env),
        Err(error) => failure(env, &error),
    }
}

/// `:ok` or `{:error, {reason, details}}`.
pub fn done(env: Env<'_>, result: Result<()>) -> Term<'_> {
    match result {
        Ok(()) => atoms::ok().encode(env),
        Err(error) => failure(env, &error),
    }
}

pub fn failure<'a>(env: Env<'a>, error: &Error) -> Term<'a> {
    let (reason, details) = describe(env, error);
    error_term(env, reason, &details)
}

pub fn error_term<'a>(env: Env<'a>, reason: Atom, details: &[(Atom, Term<'a>)]) -> Term<'a> {
    (atoms::error(), (reason, map(env, details))).encode(env)
}

/// A map from pairs whose keys all differ.
pub fn map<'a>(env: Env<'a>, pairs: &[(Atom, Term<'a>)]) -> Term<'a> {
    // Only equal keys could make it fail.
    Term::map_from_pairs(env, pairs).unwrap_or_else(|_| Term::map_new(env))
}

/// Bytes as a binary.
pub fn bytes<'a>(env: Env<'a>, bytes: &[u8]) -> Term<'a> {
    OwnedBinary::from_slice(bytes).release(env).encode(env)
}

/// A path of the file system from a binary. A zero byte in it is `badarg`, as in Elixir's `File`.
pub fn path(binary: Binary<'_>) -> NifResult<std::path::PathBuf> {
    if binary.is_empty() || binary.as_slice().contains(&0) {
        return Err(NifError::BadArg);
    }
    Ok(std::ffi::OsStr::from_bytes(binary.as_slice()).into())
}

/// A proper list of `T`. rustler's own decoder panics on an improper one.
pub fn list<'a, T: Decoder<'a>>(term: Term<'a>) -> NifResult<Vec<T>> {
    let mut items = Vec::with_capacity(term.list_length()?);
    let mut rest = term;
    while !rest.is_empty_list() {
        let (head, tail) = rest.list_get_cell()?;
        items.push(head.decode().map_err(|_| NifError::BadArg)?);
        rest = tail;
    }
    Ok(items)
}

fn describe<'a>(env: Env<'a>, error: &Error) -> (Atom, Vec<(Atom, Term<'a>)>) {
    use crate::atoms as a;
    let n = |number: &u64| number.encode(env);
    let t = |text: &str| text.encode(env);
    // For reasons of which Elixir knows only the name.
    let sentence = (a::message(), t(&error.to_string()));
    match error {
        Error::DescriptorLimit { limit, reserve } => {
            (a::emfile(), vec![(a::limit(), n(limit)), (a::reserve(), n(reserve))])
        }
        Error::TooManyMappings { limit, live } => (
            a::too_many_mappings(),
            vec![(a::limit(), n(limit)), (a::live(), n(live))],
        ),
        Error::FileTooBig => (a::efbig(), vec![]),
        Error::NotEnoughMemory {
            asked,
            available,
            limited_by,
        } => (
            a::not_enough_memory(),
            vec![
                (a::asked(), n(asked)),
                (a::available(), n(available)),
                (a::limited_by(), t(limited_by)),
            ],
        ),
        Error::NoSpace { asked, available } => (
            a::enospc(),
            vec![(a::asked(), n(asked)), (a::available(), n(available))],
        ),
        Error::NoHugePages { asked, free } => {
            (a::no_huge_pages(), vec![(a::asked(), n(asked)), (a::free(), n(free))])
        }
        Error::MemoryLimit {
            used,
            asked,
            limit,
            closing,
        } => (
            a::memory_limit_exceeded(),
            vec![
                (a::used(), n(used)),
                (a::asked(), n(asked)),
                (a::limit(), n(limit)),
                (a::closing(), n(closing)),
            ],
        ),
        Error::NoCharge => (a::charge_spent(), vec![sentence]),
        Error::Invalid { reason } => (a::invalid(), vec![(a::reason(), t(reason)), (a::cause(), t(reason))]),
        Error::InvalidSpec { field, message } => (
            a::invalid_spec(),
            vec![(a::field(), t(field)), (a::message(), t(message))],
        ),
        Error::DirtyNeeded => (a::dirty_needed(), vec![]),
        Error::Exists => (a::exists(), vec![]),
        Error::NotFound => (a::not_found(), vec![]),
        Error::UnsupportedFilesystem { call, message } => (
            a::unsupported_filesystem(),
            vec![(a::call(), t(call)), (a::message(), t(message))],
        ),
        Error::NotRegularFile => (a::not_regular_file(), vec![sentence]),
        Error::WrongOwner { owner, expected } => (
            a::wrong_owner(),
            vec![(a::owner(), n(owner)), (a::expected(), n(expected)), sentence],
        ),
        Error::Replaced => (a::replaced(), vec![sentence]),
        Error::Corrupted(corruption) => (
            a::corrupted(),
            vec![
                (a::field(), t(corruption.field)),
                (a::found(), value(env, &corruption.found)),
                (a::expected(), value(env, &corruption.expected)),
            ],
        ),
        Error::Closed => (a::closed(), vec![]),
        Error::Sealed => (a::sealed(), vec![]),
        Error::Busy { writer } => (a::busy(), vec![(a::writer(), n(writer))]),
        Error::NotWriter { writer } => (a::not_writer(), vec![(a::writer(), n(writer))]),
        Error::OutOfRange { offset, length, size } => (
            a::out_of_range(),
            vec![(a::offset(), n(offset)), (a::length(), n(length)), (a::size(), n(size))],
        ),
        Error::NotZeroCopy => (a::not_zero_copy(), vec![]),
        Error::ReadOnly => (a::read_only(), vec![]),
        Error::SealedByPeer { cause } => (a::sealed_by_peer(), vec![(a::cause(), t(cause))]),
        Error::FileChanged { expected, found } => (
            a::file_changed(),
            vec![(a::expected(), n(expected)), (a::found(), n(found))],
        ),
        Error::Locked { path } => (a::locked(), vec![(a::path(), bytes(env, path.as_os_str().as_bytes()))]),
        Error::TooLarge { limit } => (a::too_large(), vec![(a::limit(), n(limit)), sentence]),
        Error::Timeout { after_ms } => (a::timeout(), vec![(a::after_ms(), n(after_ms))]),
        Error::NoProcess => (a::no_process(), vec![]),
        Error::NotUnixSocket => (a::not_unix_socket(), vec![sentence]),
        Error::Os { call, errno } => (
            a::os_error(),
            vec![
                (a::call(), t(call)),
                (a::errno(), (*errno as i32).encode(env)),
                (a::message(), t(&format!("{errno:?}: {}", errno.desc()))),
            ],
        ),
    }
}

fn value<'a>(env: Env<'a>, value: &Value) -> Term<'a> {
    match value {
        Value::Number(number) => number.encode(env),
        Value::Text(text) => text.encode(env),
    }
}
