//! The functions that the executable exports to its library. Naming them here keeps them through the linker.

use super::api;
use std::ffi::c_int;

#[derive(Debug, Clone, Copy)]
pub struct Symbol {
    name: &'static str,
    /// Read by nobody: it makes the linker keep the function.
    _address: *const (),
}

// SAFETY: addresses of functions.
unsafe impl Sync for Symbol {}

impl Symbol {
    pub const fn present(name: &'static str, address: *const ()) -> Self {
        Self {
            name,
            _address: address,
        }
    }
}

// The variadic ones, which stable Rust cannot define, and the one that ends its own thread: c/variadic.c. Their types are
// not needed to take their addresses.
unsafe extern "C" {
    fn enif_make_tuple() -> c_int;
    fn enif_make_list() -> c_int;
    fn enif_fprintf() -> c_int;
    fn enif_snprintf() -> c_int;
    fn enif_vfprintf() -> c_int;
    fn enif_vsnprintf() -> c_int;
    fn enif_thread_exit() -> c_int;
    fn enif_set_option() -> c_int;
}

static OTHERS: &[Symbol] = &[
    Symbol::present("enif_make_tuple", enif_make_tuple as *const ()),
    Symbol::present("enif_make_list", enif_make_list as *const ()),
    Symbol::present("enif_fprintf", enif_fprintf as *const ()),
    Symbol::present("enif_snprintf", enif_snprintf as *const ()),
    Symbol::present("enif_vfprintf", enif_vfprintf as *const ()),
    Symbol::present("enif_vsnprintf", enif_vsnprintf as *const ()),
    Symbol::present("enif_thread_exit", enif_thread_exit as *const ()),
    Symbol::present("enif_set_option", enif_set_option as *const ()),
    Symbol::present("erl_errno_id", super::errno::erl_errno_id as *const ()),
];

static ALL: &[&[Symbol]] = &[
    OTHERS,
    super::zlib::SYMBOLS,
    api::atoms::SYMBOLS,
    api::binaries::SYMBOLS,
    api::environment::SYMBOLS,
    api::exceptions::SYMBOLS,
    api::externals::SYMBOLS,
    api::lists::SYMBOLS,
    api::locks::SYMBOLS,
    api::maps::SYMBOLS,
    api::memory::SYMBOLS,
    api::messages::SYMBOLS,
    api::monitors::SYMBOLS,
    api::numbers::SYMBOLS,
    api::processes::SYMBOLS,
    api::queues::SYMBOLS,
    api::resources::SYMBOLS,
    api::select::SYMBOLS,
    api::system::SYMBOLS,
    api::terms::SYMBOLS,
    api::threads::SYMBOLS,
    api::time::SYMBOLS,
    api::tuples::SYMBOLS,
];

/// Names of all exported functions.
pub fn exported() -> impl Iterator<Item = &'static str> {
    // `black_box`: else the table is reduced to names, and the functions to nothing.
    std::hint::black_box(ALL)
        .iter()
        .copied()
        .flatten()
        .map(|symbol| symbol.name)
}

/// Whether a function is there. (One that a library imports weakly may not be.)
pub fn implemented(name: &str) -> bool {
    exported().any(|exported| exported == name)
}
