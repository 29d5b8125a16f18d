//! Pids, ports and references: what the VM knows of them.

use crate::host::env::{Env, Kind};
use crate::host::term::Term;
use crate::host::wire::Arguments;
use crate::host::{atom, held, name, service};
use snakepit_wire::service::{Named, Reply, Request};
use snakepit_wire::{Decoder, Limits, NameKind, SliceSource};
use std::ffi::c_int;
use std::ptr;

/// The word of a pid or port.
fn is(term: Term, kind: NameKind) -> bool {
    term.as_local().is_some_and(|name| name.kind == kind)
}

/// The word of a pid or port of the VM's own node.
unsafe fn local(env: *const Env, term: Term, kind: NameKind) -> bool {
    // SAFETY: the library's env, or null in a thread of its own.
    let caller = unsafe { env.as_ref() }.and_then(|env| env.caller.as_local());
    term.as_local()
        .is_some_and(|name| name.kind == kind && name::is_local(name, caller))
}

/// Asks whether a process or port lives.
fn lives(term: Term) -> bool {
    let asked = |name| service::ask(|request| Request::IsAlive { request, name });
    term.as_local()
        .is_some_and(|name| asked(Named(name)) == Some(Reply::Yes))
}

/// Asks who has a registered name. Who is none of this kind, or is not granted, is nobody.
unsafe fn registered(name: Term, kind: NameKind, place: *mut Term) -> c_int {
    let Some(number) = name.as_atom() else { return 0 };
    let name = atom::text(number).to_owned();
    let port = kind == NameKind::Port;
    let Some(Reply::Names(names)) = service::ask(|request| Request::WhereIs { request, port, name }) else {
        return 0;
    };
    let found = names.first().filter(|found| found.name.0.kind == kind);
    let Some((found, term)) = found.and_then(|found| Some((found, Term::local(found.name.0)?))) else {
        return 0;
    };
    name::learn(found.name.0, &found.key);
    // SAFETY: the library's out-parameter.
    unsafe { place.write(term) };
    1
}

/// The integer that the VM has answered.
pub fn integer(env: &mut Env, reply: Option<Reply>) -> Option<Term> {
    let Some(Reply::Integer(bytes)) = reply else {
        return None;
    };
    let mut source = SliceSource::new(&bytes);
    Decoder::new()
        .decode(&mut source, &Limits::DEFAULT, &mut Arguments(env))
        .ok()
}

api! {
    fn enif_self(env: *mut Env, pid: *mut Term) -> *mut Term {
        if (*env).kind != Kind::Call || !(*env).caller.is_value() {
            return ptr::null_mut();
        }
        pid.write((*env).caller);
        pid
    }

    fn enif_get_local_pid(env: *mut Env, term: Term, pid: *mut Term) -> c_int {
        if !local(env, term, NameKind::Pid) {
            return 0;
        }
        pid.write(term);
        1
    }

    fn enif_get_local_port(env: *mut Env, term: Term, port: *mut Term) -> c_int {
        if !local(env, term, NameKind::Port) {
            return 0;
        }
        port.write(term);
        1
    }

    fn enif_set_pid_undefined(pid: *mut Term) {
        pid.write(atom::UNDEFINED);
    }

    fn enif_is_pid_undefined(pid: *const Term) -> c_int {
        c_int::from(*pid == atom::UNDEFINED)
    }

    fn enif_is_current_process_alive(env: *mut Env) -> c_int {
        // The VM aborts without a process.
        c_int::from((*env).kind == Kind::Call && lives((*env).caller))
    }

    fn enif_is_process_alive(_env: *mut Env, pid: *mut Term) -> c_int {
        c_int::from(is(*pid, NameKind::Pid) && lives(*pid))
    }

    fn enif_is_port_alive(_env: *mut Env, port: *mut Term) -> c_int {
        c_int::from(is(*port, NameKind::Port) && lives(*port))
    }

    fn enif_whereis_pid(_env: *mut Env, name: Term, pid: *mut Term) -> c_int {
        registered(name, NameKind::Pid, pid)
    }

    fn enif_whereis_port(_env: *mut Env, name: Term, port: *mut Term) -> c_int {
        registered(name, NameKind::Port, port)
    }

    fn enif_make_ref(env: *mut Env) -> Term {
        match held::make() {
            Some(made) => (*env).made_reference(made.name.0, &made.key),
            None => (*env).bad_argument(),
        }
    }

    fn enif_make_unique_integer(env: *mut Env, properties: c_int) -> Term {
        // Positive, monotonic; the VM takes no notice of other bits.
        let properties = properties as u32 & 3;
        let reply = service::ask(|request| Request::Unique { request, properties });
        let made = integer(&mut *env, reply);
        made.unwrap_or_else(|| (*env).bad_argument())
    }
}
