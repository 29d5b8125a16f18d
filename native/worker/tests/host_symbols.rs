//! Every function of the NIF API is exported, and what the linker has kept can be found as a library finds it.

#![allow(
    clippy::unwrap_used,
    reason = "a test has one reason to fail, and the line says which"
)]

use std::collections::BTreeSet;
use std::ffi::CString;

const HEADER: &str = "/usr/lib/erlang/usr/include/erl_nif_api_funcs.h";

/// Later than the header of OTP 25: of 2.17 and 2.18.
const LATER: [&str; 7] = [
    "enif_get_atom_cache_index",
    "enif_get_string_length",
    "enif_make_new_atom",
    "enif_make_new_atom_len",
    "enif_max_atom_cache_index",
    "enif_set_option",
    "enif_term_size",
];

#[test]
fn all_functions_of_the_header_are_exported() {
    let exported: BTreeSet<&str> = snakepit_host::host::exported().collect();
    let header = std::fs::read_to_string(HEADER).unwrap();
    let declared: BTreeSet<&str> = header
        .lines()
        .filter(|line| line.starts_with("ERL_NIF_API_FUNC_DECL("))
        .filter_map(|line| {
            line.split(['(', ','])
                .map(str::trim)
                .find(|part| part.starts_with("enif_"))
        })
        .chain(LATER)
        .collect();
    assert!(declared.len() > 169, "{}", declared.len());
    let lacking: Vec<_> = declared.difference(&exported).collect();
    assert_eq!(lacking, Vec::<&&str>::new());
}

#[test]
fn exported_functions_are_found_by_the_loader() {
    for name in snakepit_host::host::exported() {
        let symbol = CString::new(name).unwrap();
        // SAFETY: the program itself, and a terminated name.
        let found = unsafe { libc::dlsym(libc::RTLD_DEFAULT, symbol.as_ptr()) };
        assert!(!found.is_null(), "{name}");
    }
}
