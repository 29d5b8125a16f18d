//! Specifications and headers between maps and structs.

use crate::atoms;
use crate::reply::{self, map};
use rustler::types::atom::Atom;
use rustler::{Binary, Decoder, Encoder, Env, Error as NifError, NifResult, Term};
use snakepit_shm_core::backend::HugePages;
use snakepit_shm_core::header::{CleanupPolicy, DATA_OFFSET, Header, Live, State};
use snakepit_shm_core::identity::boot_id_hex;
use snakepit_shm_core::segment::Plan;

/// `t:Snakepit.Native.spec/0`.
pub fn plan(spec: Term<'_>) -> NifResult<Plan> {
    let name: Option<Binary<'_>> = optional(spec, atoms::name())?;
    let header = Header {
        peers_write: get(spec, atoms::peers_write())?,
        mode: get(spec, atoms::mode())?,
        cleanup_policy: cleanup_policy(get(spec, atoms::cleanup_policy())?)?,
        timeout: optional(spec, atoms::timeout())?,
        dtype: optional(spec, atoms::dtype())?,
        shape: optional::<Term<'_>>(spec, atoms::shape())?
            .map(reply::list)
            .transpose()?,
        metadata: get(spec, atoms::metadata())?,
        ..Header::draft(
            get::<String>(spec, atoms::id())?.as_str(),
            get::<String>(spec, atoms::instance())?.as_str(),
            get(spec, atoms::size())?,
        )
    };
    Ok(Plan {
        header,
        path: name.map(reply::path).transpose()?,
        huge_pages: huge_pages(get(spec, atoms::huge_pages())?)?,
        reserve: get(spec, atoms::reserve())?,
        mapping_limit: get(spec, atoms::mapping_limit())?,
        descriptor_reserve: get(spec, atoms::descriptor_reserve())?,
    })
}

/// `t:Snakepit.Native.header/0`.
pub fn header<'a>(env: Env<'a>, header: &Header, live: Live) -> Term<'a> {
    use crate::atoms as a;
    let identity = identity(env, &header.identity);
    map(
        env,
        &[
            (a::id(), header.id.encode(env)),
            (a::instance(), header.instance.encode(env)),
            (a::size(), header.size.encode(env)),
            (a::data_offset(), DATA_OFFSET.encode(env)),
            (a::named(), header.named.encode(env)),
            (a::huge_pages(), header.huge_pages.encode(env)),
            (a::peers_write(), header.peers_write.encode(env)),
            (a::mode(), header.mode.encode(env)),
            (a::cleanup_policy(), policy_atom(header.cleanup_policy).encode(env)),
            (a::timeout(), header.timeout.encode(env)),
            (a::created_at(), header.created_at.encode(env)),
            (a::dtype(), header.dtype.encode(env)),
            (a::shape(), header.shape.encode(env)),
            (a::metadata(), header.metadata.encode(env)),
            (a::identity(), identity),
            (a::sequence(), live.sequence.encode(env)),
            (a::writer(), live.writer.encode(env)),
            (a::state(), state_atom(live.state).encode(env)),
        ],
    )
}

pub fn identity<'a>(env: Env<'a>, identity: &snakepit_shm_core::header::Identity) -> Term<'a> {
    (
        boot_id_hex(&identity.boot_id),
        identity.pid_namespace,
        identity.pid,
        identity.start_time,
    )
        .encode(env)
}

fn get<'a, T: Decoder<'a>>(spec: Term<'a>, key: Atom) -> NifResult<T> {
    spec.map_get(key)?.decode().map_err(|_| NifError::BadArg)
}

/// A value, or `nil`.
fn optional<'a, T: Decoder<'a>>(spec: Term<'a>, key: Atom) -> NifResult<Option<T>> {
    let term = spec.map_get(key)?;
    if atoms::nil() == term {
        return Ok(None);
    }
    term.decode().map(Some).map_err(|_| NifError::BadArg)
}

fn huge_pages(atom: Atom) -> NifResult<HugePages> {
    match atom {
        atom if atom == atoms::no_huge() => Ok(HugePages::No),
        atom if atom == atoms::prefer() => Ok(HugePages::Prefer),
        atom if atom == atoms::require() => Ok(HugePages::Require),
        _ => Err(NifError::BadArg),
    }
}

fn cleanup_policy(atom: Atom) -> NifResult<CleanupPolicy> {
    [
        CleanupPolicy::Automatic,
        CleanupPolicy::Manual,
        CleanupPolicy::ReferenceCounted,
    ]
    .into_iter()
    .find(|policy| policy_atom(*policy) == atom)
    .ok_or(NifError::BadArg)
}

fn policy_atom(policy: CleanupPolicy) -> Atom {
    match policy {
        CleanupPolicy::Automatic => atoms::automatic(),
        CleanupPolicy::Manual => atoms::manual(),
        CleanupPolicy::ReferenceCounted => atoms::reference_counted(),
    }
}

fn state_atom(state: State) -> Atom {
    match state {
        State::Allocated => atoms::allocated(),
        State::Sealed => atoms::sealed(),
        State::Freed => atoms::freed(),
        State::Invalid => atoms::invalid(),
    }
}
