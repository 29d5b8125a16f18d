//! Messages to processes and ports.

use crate::host::env::Env;
use crate::host::send;
use crate::host::term::Term;
use snakepit_wire::{Name, NameKind};
use std::ffi::c_int;

/// Whom a library's struct means.
fn receiver(term: Term, kind: NameKind) -> Option<Name> {
    term.as_local().filter(|name| name.kind == kind)
}

api! {
    fn enif_send(_env: *mut Env, to: *const Term, message_env: *mut Env, message: Term) -> c_int {
        let Some(to) = receiver(*to, NameKind::Pid) else { return 0 };
        if !send::message(to, message) {
            return 0;
        }
        send::spent(message_env);
        1
    }

    fn enif_port_command(_env: *mut Env, to: *const Term, _message_env: *mut Env, message: Term) -> c_int {
        // The VM does not look at the message's env either.
        receiver(*to, NameKind::Port).map_or(0, |to| c_int::from(send::command(to, message)))
    }
}
