//! Monitors.

use crate::host::env::Env;
use crate::host::monitor::{self, Monitor};
use crate::host::resource;
use crate::host::term::Term;
use std::ffi::{c_int, c_void};

api! {
    fn enif_monitor_process(_env: *mut Env, data: *mut c_void, process: *const Term, place: *mut Monitor) -> c_int {
        let object = resource::of_data(data);
        let kind = &*resource::kind(object);
        if kind.callbacks().down.is_none() {
            return -1;
        }
        kind.monitors();
        let Some(monitor) = monitor::start(object, *process) else { return 1 };
        if !place.is_null() {
            place.write(monitor);
        }
        0
    }

    fn enif_demonitor_process(_env: *mut Env, data: *mut c_void, monitor: *const Monitor) -> c_int {
        c_int::from(!monitor::end(resource::of_data(data), &*monitor))
    }

    fn enif_make_monitor_term(env: *mut Env, monitor: *const Monitor) -> Term {
        monitor::reference(&mut *env, &*monitor).unwrap_or_else(|| (*env).bad_argument())
    }

    fn enif_compare_monitors(left: *const Monitor, right: *const Monitor) -> c_int {
        (*left).compare(&*right) as c_int
    }
}
