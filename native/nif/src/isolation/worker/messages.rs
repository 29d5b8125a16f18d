//! What the worker's process says, as terms for its owner.

use crate::atoms as a;
use crate::reply::map;
use rustler::types::atom::Atom;
use rustler::{Encoder, Env, Term};
use snakepit_wire::control::{Failed, FromWorker, Loaded, Stage};

pub(super) fn message_term<'a>(env: Env<'a>, message: &FromWorker) -> Term<'a> {
    match message {
        FromWorker::Hello { pid, .. } => (a::hello(), pid).encode(env),
        FromWorker::Opened(loaded) => (a::opened(), loaded_term(env, loaded)).encode(env),
        FromWorker::Loaded(loaded) => (a::loaded(), loaded_term(env, loaded)).encode(env),
        FromWorker::Failed(failed) => (a::failed(), failed_term(env, failed)).encode(env),
        FromWorker::NotLoaded { library, failed } => (a::not_loaded(), library, failed_term(env, failed)).encode(env),
        FromWorker::Unloaded { library } => (a::unloaded(), library).encode(env),
    }
}

fn failed_term<'a>(env: Env<'a>, failed: &Failed) -> Term<'a> {
    let details = [
        (a::stage(), stage(failed.stage).encode(env)),
        (a::code(), failed.code.encode(env)),
        (a::message(), failed.message.encode(env)),
    ];
    map(env, &details)
}

fn loaded_term<'a>(env: Env<'a>, loaded: &Loaded) -> Term<'a> {
    let functions: Vec<_> = loaded
        .functions
        .iter()
        .map(|function| (function.name.as_str(), function.arity, function.flags))
        .collect();
    let pairs = [
        (a::library(), loaded.library.encode(env)),
        (a::module(), loaded.module.encode(env)),
        (a::functions(), functions.encode(env)),
        (a::nif_version(), (loaded.nif_major, loaded.nif_minor).encode(env)),
        (a::missing(), loaded.missing.encode(env)),
    ];
    map(env, &pairs)
}

fn stage(stage: Stage) -> Atom {
    match stage {
        Stage::NotFound => a::not_found(),
        Stage::Open => a::open(),
        Stage::NotALibrary => a::not_a_library(),
        Stage::WrongArchitecture => a::wrong_architecture(),
        Stage::UnresolvedSymbol => a::unresolved_symbol(),
        Stage::NoInit => a::no_init(),
        Stage::Init => a::init(),
        Stage::NifVersion => a::nif_version(),
        Stage::LoadInfo => a::load_info(),
        Stage::LoadCallback => a::load_callback(),
        Stage::UpgradeCallback => a::upgrade_callback(),
        Stage::Unwanted => a::unwanted(),
        Stage::Worker => a::worker(),
    }
}
