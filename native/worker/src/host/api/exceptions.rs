//! Exceptions, and functions that go on later.

use crate::host::env::{Env, Nif, Scheduled};
use crate::host::term::Term;
use std::ffi::{CStr, c_char, c_int};

api! {
    fn enif_make_badarg(env: *mut Env) -> Term {
        (*env).bad_argument()
    }

    fn enif_raise_exception(env: *mut Env, reason: Term) -> Term {
        (*env).raise(reason)
    }

    fn enif_is_exception(env: *mut Env, term: Term) -> c_int {
        c_int::from(!term.is_value() && (*env).exception.is_some())
    }

    fn enif_has_pending_exception(env: *mut Env, reason: *mut Term) -> c_int {
        let Some(raised) = (*env).exception else { return 0 };
        if !reason.is_null() {
            reason.write(raised);
        }
        1
    }

    fn enif_schedule_nif(
        env: *mut Env,
        name: *const c_char,
        flags: c_int,
        function: Option<Nif>,
        count: c_int,
        arguments: *const Term,
    ) -> Term {
        let (Some(function), 0..=3, 0..=255) = (function, flags, count) else { return (*env).bad_argument() };
        if name.is_null() || CStr::from_ptr(name).count_bytes() > 255 {
            return (*env).bad_argument();
        }
        let arguments = if count == 0 { &[] } else { std::slice::from_raw_parts(arguments, count as usize) };
        (*env).scheduled = Some(Scheduled { function, flags: flags as u32, arguments: arguments.to_vec() });
        Term::NON_VALUE
    }

    fn enif_consume_timeslice(_env: *mut Env, _percent: c_int) -> c_int {
        // Nobody else waits for an executor's time: a library never has to give way.
        0
    }
}
