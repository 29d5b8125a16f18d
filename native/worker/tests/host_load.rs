//! Loading: each library in a process of its own, which is this test binary again.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test has one reason to fail, and the line says which"
)]

mod hosted;

use hosted::Answer;
use snakepit_wire::reference::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const PATH: &str = "SNAKEPIT_TEST_LIBRARY";

/// Not a test: what the others start in a process of its own.
#[test]
#[ignore = "started by the other tests"]
fn child() {
    let Some(path) = std::env::var_os(PATH) else { return };
    match hosted::load(Path::new(&path), &Value::Integer(3)) {
        Err(failed) => println!("\nFAILED {:?} {} {}", failed.stage, failed.code, failed.message),
        Ok(mut library) => {
            let loaded = library.loaded();
            println!(
                "\nLOADED {} {}.{} {:?}",
                loaded.module, loaded.nif_major, loaded.nif_minor, loaded.missing
            );
            for function in loaded.functions.clone() {
                let arguments = vec![Value::Integer(1); function.arity as usize];
                let answer = match library.call(&function.name, &arguments) {
                    Answer::Value(value) => format!("{value:?}"),
                    other => format!("{other:?}"),
                };
                println!(
                    "CALLED {}/{} {} {answer}",
                    function.name, function.arity, function.flags
                );
            }
        }
    }
}

/// What loading a library, and calling its functions, tells.
fn loading(path: &Path) -> Vec<String> {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--ignored", "--nocapture"])
        .env(PATH, path)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let told = |line: &&str| ["FAILED", "LOADED", "CALLED"].iter().any(|word| line.starts_with(word));
    text.lines().filter(told).map(str::to_owned).collect()
}

fn place(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name)
}

/// A library of this C code, without `.so`.
fn library(name: &str, code: &str) -> PathBuf {
    let source = place(name).with_extension("c");
    std::fs::write(&source, code).unwrap();
    hosted::compile_code(name, &source)
}

#[track_caller]
fn fails(path: &Path, stage: &str, words: &str) {
    let told = loading(path);
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].starts_with(&format!("FAILED {stage} ")), "{told:?}");
    assert!(told[0].contains(words), "{told:?}");
}

/// A library that `erl_nif.h` did not describe.
fn entry(fields: &str) -> String {
    format!(
        "struct entry {{ int major, minor; const char *name; int count; void *functions; void *load, *reload, \
         *upgrade, *unload; const char *variant; }};\n\
         static struct entry entry = {{ {fields} }};\nvoid *nif_init(void) {{ return &entry; }}\n"
    )
}

#[test]
fn a_file_that_is_not_there() {
    fails(&place("nowhere"), "NotFound", "cannot be read");
}

#[test]
fn a_file_that_is_no_library() {
    let path = place("text");
    std::fs::write(path.with_extension("so"), "not a library").unwrap();
    fails(&path, "NotALibrary", "no ELF file");
    std::fs::write(path.with_extension("so"), b"\x7fELF\x02\x01\x01 and then nothing").unwrap();
    fails(&path, "NotALibrary", "not a shared library");
}

#[test]
fn a_library_of_another_machine() {
    let path = library("other_machine", "int nothing;");
    let file = path.with_extension("so");
    let mut bytes = std::fs::read(&file).unwrap();
    // e_machine: of RISC-V.
    bytes[18..20].copy_from_slice(&[243, 0]);
    std::fs::write(&file, &bytes).unwrap();
    fails(&path, "WrongArchitecture", "riscv");
    bytes[4] = 1;
    std::fs::write(&file, &bytes).unwrap();
    fails(&path, "WrongArchitecture", "32-bit");
}

#[test]
fn a_library_that_is_no_nif_library() {
    fails(&library("no_init", "int nothing;"), "NoInit", "nif_init");
}

#[test]
fn a_library_that_needs_what_is_nowhere() {
    let path = library(
        "undefined",
        "extern int nowhere_to_be_found(void); int f(void) { return nowhere_to_be_found(); }",
    );
    fails(&path, "UnresolvedSymbol", "nowhere_to_be_found");
}

#[test]
fn an_impossible_entry() {
    let cases = [
        ("void *nif_init(void) { return 0; }".to_owned(), "Init", "no entry"),
        (
            entry("2, 99, \"m\", 0, 0, 0, 0, 0, 0, \"beam.vanilla\""),
            "NifVersion",
            "2.99",
        ),
        (entry("1, 0, \"m\""), "NifVersion", "1.0"),
        (
            entry("2, 4, \"m\", 0, 0, 0, 0, 0, 0, \"beam.other\""),
            "NifVersion",
            "beam.other",
        ),
        (
            entry("2, 4, 0, 0, 0, 0, 0, 0, 0, \"beam.vanilla\""),
            "Init",
            "no module",
        ),
        (entry("2, 4, \"m\", -1, 0, 0, 0, 0, 0, \"beam.vanilla\""), "Init", "-1"),
        (
            entry("2, 4, \"m\", 1, 0, 0, 0, 0, 0, \"beam.vanilla\""),
            "Init",
            "impossible",
        ),
    ];
    for (position, (code, stage, words)) in cases.into_iter().enumerate() {
        fails(&library(&format!("entry{position}"), &code), stage, words);
    }
}

#[test]
fn a_load_callback_that_refuses() {
    let code = "#include <erl_nif.h>\n\
        static int load(ErlNifEnv *e, void **p, ERL_NIF_TERM i) { int n; enif_get_int(e, i, &n); return 14 + n; }\n\
        static ErlNifFunc functions[] = {};\nERL_NIF_INIT(m, functions, load, NULL, NULL, NULL)\n";
    fails(&library("refuses", code), "LoadCallback 17", "returned 17");
}

#[test]
fn a_load_callback_that_needs_what_is_not_there() {
    let code = "#include <erl_nif.h>\n\
        static int load(ErlNifEnv *e, void **p, ERL_NIF_TERM i) { ErlNifResourceType *t = \
            enif_open_resource_type(e, 0, \"t\", 0, ERL_NIF_RT_CREATE, 0); ErlNifBinary b; \
            return !enif_term_to_binary(e, enif_make_resource(e, enif_alloc_resource(t, 1)), &b); }\n\
        static ErlNifFunc functions[] = {};\nERL_NIF_INIT(m, functions, load, NULL, NULL, NULL)\n";
    fails(
        &library("needs", code),
        "LoadCallback 1",
        "enif_term_to_binary of a resource",
    );
}

/// The struct of a function had no flags before 2.7, and that of the library no variant before 2.1.
#[test]
fn libraries_of_old_versions() {
    let code = |fields: &str| {
        let head = "typedef unsigned long term;\nextern term enif_make_int(void *, int);\n\
            static term one(void *e, int c, const term *a) { return enif_make_int(e, 1); }\n\
            static term two(void *e, int c, const term *a) { return enif_make_int(e, 2); }\n\
            static struct { const char *name; unsigned arity; void *function; } functions[] = \
            {{\"one\", 0, one}, {\"two\", 1, two}};\n";
        format!("{head}{}", entry(fields))
    };
    let called = [
        "CALLED one/0 0 Integer(1)".to_owned(),
        "CALLED two/1 0 Integer(2)".to_owned(),
    ];
    let path = library(
        "before_flags",
        &code("2, 6, \"old\", 2, functions, 0, 0, 0, 0, \"beam.vanilla\""),
    );
    let told = loading(&path);
    assert_eq!(told[0], "LOADED old 2.6 []");
    assert_eq!(told[1..], called);
    let path = library("before_variants", &code("2, 0, \"older\", 2, functions"));
    assert_eq!(loading(&path)[1..], called);
}

#[test]
fn what_is_imported_and_missing_is_told() {
    let code = "#include <erl_nif.h>\n\
        __attribute__((weak)) extern int enif_of_tomorrow(void);\n\
        static ERL_NIF_TERM f(ErlNifEnv *e, int c, const ERL_NIF_TERM a[]) \
            { return enif_make_int(e, enif_of_tomorrow ? enif_of_tomorrow() : 7); }\n\
        static ErlNifFunc functions[] = {{\"f\", 0, f, ERL_NIF_DIRTY_JOB_CPU_BOUND}};\n\
        ERL_NIF_INIT(m, functions, NULL, NULL, NULL, NULL)\n";
    let told = loading(&library("missing", code));
    assert_eq!(told[0], "LOADED m 2.16 [\"enif_of_tomorrow\"]");
    assert_eq!(told[1], "CALLED f/0 1 Integer(7)");
}

/// As in the VM, whose executable has zlib and the names of system errors.
#[test]
fn libraries_find_what_they_take_from_the_executable() {
    let code = "#include <erl_nif.h>\n#include <string.h>\n#include <errno.h>\n\
        extern int compress(unsigned char *, unsigned long *, const unsigned char *, unsigned long);\n\
        extern int uncompress(unsigned char *, unsigned long *, const unsigned char *, unsigned long);\n\
        extern unsigned long crc32(unsigned long, const unsigned char *, unsigned);\n\
        extern char *erl_errno_id(int);\n\
        static ERL_NIF_TERM f(ErlNifEnv *e, int c, const ERL_NIF_TERM a[]) {\n\
            unsigned char small[100], large[100]; unsigned long packed = 100, length = 100;\n\
            int done = !compress(small, &packed, (void *)\"again and again and again\", 25) &&\n\
                !uncompress(large, &length, small, packed);\n\
            return enif_make_tuple4(e, enif_make_int(e, done && length == 25 && !memcmp(large, \"again and\", 9)),\n\
                enif_make_ulong(e, crc32(0, (void *)\"123456789\", 9)),\n\
                enif_make_atom(e, erl_errno_id(ENOENT)), enif_make_atom(e, erl_errno_id(-5))); }\n\
        static ErlNifFunc functions[] = {{\"f\", 0, f}};\nERL_NIF_INIT(m, functions, NULL, NULL, NULL, NULL)\n";
    let told = loading(&library("executable", code));
    let expected = "CALLED f/0 0 Tuple([Integer(1), Integer(3421780262), Atom(\"enoent\"), Atom(\"unknown\")])";
    assert_eq!(told[1], expected);
}
