//! Isolated libraries: `warden_*`, `worker_*`, `pool_*`, calls. `native/nif/README.md` has the life of a call.

mod atom_quota;
mod batch;
mod bell;
mod call;
mod channel;
mod codec;
mod effort;
mod failure;
mod flight;
mod handle;
mod monitors;
mod names;
mod outgoing;
mod packets;
mod pool;
mod quick;
mod recent_atoms;
mod remote;
mod replies;
mod requests;
mod saved;
mod scratch;
mod services;
mod spawn;
mod terms;
mod waiting;
mod warden;
mod worker;
mod worker_spec;

use rustler::Env;

/// Registers the resource types. Only while the library is being loaded.
pub fn load(env: Env<'_>) -> bool {
    handle::register::<atom_quota::AtomsAccount>(env)
        && handle::register::<batch::Batch>(env)
        && handle::register::<call::Ticket>(env)
        && handle::register::<pool::Pool>(env)
        && handle::register::<monitors::Watcher>(env)
        && handle::register::<remote::Remote>(env)
        && handle::register::<warden::Warden>(env)
        && handle::register::<worker::Worker>(env)
}
