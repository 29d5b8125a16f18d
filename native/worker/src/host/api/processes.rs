//! Pids and ports.

use crate::host::atom;
use crate::host::env::{Env, Kind};
use crate::host::term::Term;
use snakepit_wire::NameKind;
use std::ffi::{c_int, c_void};
use std::ptr;

/// The word of a pid or port of this node.
fn local(term: Term, kind: NameKind) -> bool {
    term.as_local().is_some_and(|name| name.kind == kind)
}

api! {
    fn enif_self(env: *mut Env, pid: *mut Term) -> *mut Term {
        if (*env).kind != Kind::Call || !(*env).caller.is_value() {
            return ptr::null_mut();
        }
        pid.write((*env).caller);
        pid
    }

    fn enif_get_local_pid(_env: *mut Env, term: Term, pid: *mut Term) -> c_int {
        if !local(term, NameKind::Pid) {
            return 0;
        }
        pid.write(term);
        1
    }

    fn enif_get_local_port(_env: *mut Env, term: Term, port: *mut Term) -> c_int {
        if !local(term, NameKind::Port) {
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
        // A caller that has died meanwhile is not told to the worker.
        c_int::from((*env).kind == Kind::Call)
    }

    fn enif_compare_monitors(left: *const c_void, right: *const c_void) -> c_int {
        // `ErlNifMonitor` is 32 bytes.
        let (left, right) = (*left.cast::<[u8; 32]>(), *right.cast::<[u8; 32]>());
        left.cmp(&right) as c_int
    }
}
