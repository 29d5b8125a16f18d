//! Descriptors that the library waits for.

use crate::host::env::Env;
use crate::host::resource;
use crate::host::select::{self, Selection};
use crate::host::send;
use crate::host::term::Term;
use snakepit_wire::NameKind;
use std::ffi::{c_int, c_void};

unsafe fn select(
    env: *mut Env,
    fd: c_int,
    mode: c_int,
    data: *mut c_void,
    receiver: *const Term,
    term: Term,
    message_env: *mut Env,
) -> c_int {
    // SAFETY: the library's env (none in a thread of its own, which names a receiver), object, out-parameters.
    unsafe {
        let receiver = match (receiver.as_ref(), env.as_ref()) {
            (Some(receiver), _) => *receiver,
            (None, Some(env)) => env.caller,
            (None, None) => Term::NON_VALUE,
        };
        let selection = Selection {
            fd,
            mode,
            object: resource::of_data(data),
            receiver: receiver.as_local().filter(|name| name.kind == NameKind::Pid),
            term,
        };
        let result = select::select(&selection);
        if result >= 0 && mode & select::CUSTOM != 0 && mode & (select::STOP | select::CANCEL) == 0 {
            send::spent(message_env);
        }
        result
    }
}

api! {
    fn enif_select(
        env: *mut Env,
        fd: c_int,
        mode: c_int,
        data: *mut c_void,
        receiver: *const Term,
        reference: Term,
    ) -> c_int {
        select(env, fd, mode, data, receiver, reference, std::ptr::null_mut())
    }

    fn enif_select_x(
        env: *mut Env,
        fd: c_int,
        mode: c_int,
        data: *mut c_void,
        receiver: *const Term,
        message: Term,
        message_env: *mut Env,
    ) -> c_int {
        select(env, fd, mode, data, receiver, message, message_env)
    }
}
