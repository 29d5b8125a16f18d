//! Specifications and headers between maps and structs.

use crate::atoms;
use crate::reply::{self, map};
use rustler::types::atom::Atom;
use rustler::{Binary, Decoder, Encoder, Env, Error as NifError, NifResult, Term, TermType};
use snakepit_shm_core::backend::HugePages;
use snakepit_shm_core::error::{Error, Result};
use snakepit_shm_core::header::{CleanupPolicy, DATA_OFFSET, Header, Live, State};
use snakepit_shm_core::identity::boot_id_hex;
use snakepit_shm_core::segment::Plan;

/// `t:Snakepit.Native.spec/0`. The outer error is `badarg` (something is missing or of a wrong type), the inner one
/// [`Error::InvalidSpec`] (a number or text that does not fit).
pub fn plan(spec: Term<'_>) -> NifResult<Result<Plan>> {
    match read_plan(spec) {
        Ok(plan) => Ok(Ok(plan)),
        Err(Flaw::Misfit(error)) => Ok(Err(error)),
        Err(Flaw::Nif(error)) => Err(error),
    }
}

enum Flaw {
    Nif(NifError),
    Misfit(Error),
}

impl From<NifError> for Flaw {
    fn from(error: NifError) -> Self {
        Flaw::Nif(error)
    }
}

fn read_plan(spec: Term<'_>) -> std::result::Result<Plan, Flaw> {
    let name: Option<Binary<'_>> = optional(spec, atoms::name(), "name")?;
    let header = Header {
        peers_write: get(spec, atoms::peers_write(), "peers_write")?,
        access_read_only: get(spec, atoms::access_read_only(), "access_read_only")?,
        owner_read_only: get(spec, atoms::owner_read_only(), "owner_read_only")?,
        mode: get(spec, atoms::mode(), "mode")?,
        cleanup_policy: cleanup_policy(get(spec, atoms::cleanup_policy(), "cleanup_policy")?)?,
        timeout: optional(spec, atoms::timeout(), "timeout")?,
        dtype: optional(spec, atoms::dtype(), "dtype")?,
        shape: optional::<Term<'_>>(spec, atoms::shape(), "shape")?
            .map(shape)
            .transpose()?,
        metadata: get(spec, atoms::metadata(), "metadata")?,
        label: optional(spec, atoms::label(), "label")?,
        id: get(spec, atoms::id(), "id")?,
        instance: get(spec, atoms::instance(), "instance")?,
        ..Header::draft("", "", get(spec, atoms::size(), "size")?)
    };
    Ok(Plan {
        header,
        path: name.map(reply::path).transpose()?,
        huge_pages: huge_pages(get(spec, atoms::huge_pages(), "huge_pages")?)?,
        reserve: get(spec, atoms::reserve(), "reserve")?,
        mapping_limit: get(spec, atoms::mapping_limit(), "mapping_limit")?,
        descriptor_reserve: get(spec, atoms::descriptor_reserve(), "descriptor_reserve")?,
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
            (a::access_read_only(), header.access_read_only.encode(env)),
            (a::owner_read_only(), header.owner_read_only.encode(env)),
            (a::mode(), header.mode.encode(env)),
            (a::cleanup_policy(), policy_atom(header.cleanup_policy).encode(env)),
            (a::timeout(), header.timeout.encode(env)),
            (a::created_at(), header.created_at.encode(env)),
            (a::dtype(), header.dtype.encode(env)),
            (a::shape(), header.shape.encode(env)),
            (a::metadata(), header.metadata.encode(env)),
            (a::label(), header.label.encode(env)),
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

fn get<'a, T: Field<'a>>(spec: Term<'a>, key: Atom, field: &'static str) -> std::result::Result<T, Flaw> {
    decode(spec.map_get(key)?, field)
}

/// A value, or `nil`.
fn optional<'a, T: Field<'a>>(
    spec: Term<'a>,
    key: Atom,
    field: &'static str,
) -> std::result::Result<Option<T>, Flaw> {
    let term = spec.map_get(key)?;
    if atoms::nil() == term {
        return Ok(None);
    }
    decode(term, field).map(Some)
}

fn shape(term: Term<'_>) -> std::result::Result<Vec<u64>, Flaw> {
    let dimensions: Vec<Term<'_>> = reply::list(term)?;
    dimensions.into_iter().map(|item| decode(item, "shape")).collect()
}

fn decode<'a, T: Field<'a>>(term: Term<'a>, field: &'static str) -> std::result::Result<T, Flaw> {
    term.decode().map_err(|_| match T::MISFIT {
        Some((kind, message)) if term.get_type() == kind => Flaw::Misfit(Error::invalid_spec(field, message)),
        _ => Flaw::Nif(NifError::BadArg),
    })
}

/// What a specification is made of. `MISFIT`: a term of this type that cannot be decoded does not fit; any other is of a
/// wrong type.
trait Field<'a>: Decoder<'a> {
    const MISFIT: Option<(TermType, &'static str)> = None;
}

impl Field<'_> for bool {}
impl Field<'_> for Atom {}
impl<'a> Field<'a> for Binary<'a> {}
impl<'a> Field<'a> for Term<'a> {}

impl Field<'_> for u32 {
    const MISFIT: Option<(TermType, &'static str)> = Some((TermType::Integer, "32 bits without a sign"));
}

impl Field<'_> for u64 {
    const MISFIT: Option<(TermType, &'static str)> = Some((TermType::Integer, "64 bits without a sign"));
}

impl Field<'_> for String {
    const MISFIT: Option<(TermType, &'static str)> = Some((TermType::Binary, "not UTF-8"));
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
