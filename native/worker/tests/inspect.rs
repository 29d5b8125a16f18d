//! Reading libraries without running them: what is found, and that no file is too damaged for it.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test has one reason to fail, and the line says which"
)]

#[path = "support/library.rs"]
#[allow(dead_code, reason = "shared with other tests")]
mod library;

use proptest::prelude::*;
use snakepit_host::inspect::{Entry, Files, Import, Provider, Report, Surroundings, inspect};
use snakepit_wire::control::Stage;
use std::fmt::Write as _;
use std::io::Read as _;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::sync::OnceLock;

struct Read;

impl Files for Read {
    fn open(&self, path: &Path) -> Option<&'static [u8]> {
        // This test's own executable stands for the worker's: the build script has it export the same symbols.
        std::fs::read(path).ok().map(|bytes| &*bytes.leak())
    }
}

/// No file but the library itself.
struct Alone;

impl Files for Alone {
    fn open(&self, _path: &Path) -> Option<&'static [u8]> {
        None
    }
}

fn report(path: &Path) -> Report {
    let path = path.with_extension("so");
    let around = Surroundings {
        path: &path,
        module: "",
        vm: None,
    };
    inspect(&std::fs::read(&path).unwrap(), &around, &Read).unwrap()
}

fn only(entries: &[Entry]) -> &Entry {
    let [entry] = entries else { panic!("{entries:?}") };
    entry
}

fn import<'a>(report: &'a Report, name: &str) -> &'a Import {
    report.imports.iter().find(|import| import.name == name).unwrap()
}

#[test]
fn the_entry_of_a_library_in_c() {
    let report = report(&library::fixture("adder"));
    assert!(report.nif_init);
    let entry = only(&report.entries);
    assert_eq!(entry.module, "snakepit_adder");
    assert!(entry.minor >= 16 && entry.min_erts.as_deref().unwrap().starts_with("erts-"));
    assert_eq!(
        (entry.load, entry.reload, entry.upgrade, entry.unload),
        (true, false, true, false)
    );
    let dirty = |name: &str| {
        let function = entry.functions.iter().find(|function| function.name == name);
        function.map(|function| (function.arity, function.dirty))
    };
    assert_eq!(dirty("add"), Some((2, 0)));
    assert_eq!(dirty("sleep_forever"), Some((0, 2)));
    assert_eq!(dirty("subtract"), None);
    assert_eq!(import(&report, "enif_make_badarg").from, Provider::Worker);
    assert_eq!(
        import(&report, "nanosleep").from,
        Provider::Library("libc.so.6".to_owned())
    );
    assert_eq!(report.looked_up.len(), 0);
    assert_eq!(report.rustler, None);
    let libc = report.needed.iter().find(|(name, _)| name == "libc.so.6").unwrap();
    assert!(libc.1.as_deref().unwrap().is_file());
}

#[test]
fn packed_relocations_and_old_hash_tables() {
    let plain = only(&report(&library::fixture("adder")).entries).clone();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../test/support/fixtures/isolation/adder.c");
    let path = library::fixture("adder").with_file_name("adder_again");
    // What a linker cannot do it ignores, or it refuses; most can.
    for flags in ["-Wl,-z,pack-relative-relocs", "-Wl,--hash-style=sysv", "-Wl,-s"] {
        let made = Command::new("cc")
            .args([
                "-std=c11",
                "-D_DEFAULT_SOURCE",
                "-fPIC",
                "-shared",
                "-I",
                "/usr/lib/erlang/usr/include",
                flags,
                "-o",
            ])
            .arg(path.with_extension("so"))
            .arg(&source)
            .output()
            .unwrap();
        if made.status.success() {
            assert_eq!(only(&report(&path).entries), &plain, "{flags}");
        }
    }
}

#[test]
fn symbols_that_nobody_has() {
    let undefined = report(&library::fixture("undefined_symbol"));
    let import_of = |report: &Report, name: &str| {
        let import = import(report, name);
        (import.weak, import.from.clone())
    };
    assert_eq!(import_of(&undefined, "enif_that_nobody_has"), (false, Provider::Nobody));
    assert_eq!(
        import_of(&report(&library::fixture("unimplemented")), "enif_of_tomorrow"),
        (true, Provider::Nobody)
    );
}

#[test]
fn a_library_that_needs_another() {
    let inner = library::library("inner", "int inner(void) { return 1; }");
    let source = library::library("outer", "extern int inner(void); int outer(void) { return inner(); }");
    let outer = source.with_file_name("outer_linked.so");
    let linked = Command::new("cc")
        .args(["-shared", "-fPIC", "-Wl,-rpath,$ORIGIN", "-o"])
        .arg(&outer)
        .arg(source.with_extension("c"))
        .arg("-L")
        .arg(inner.parent().unwrap())
        .arg("-l:inner.so")
        .status()
        .unwrap();
    assert!(linked.success());
    let found = report(&outer.with_extension(""));
    assert_eq!(import(&found, "inner").from, Provider::Library("inner.so".to_owned()));
    assert!(
        found
            .needed
            .contains(&("inner.so".to_owned(), Some(inner.with_extension("so"))))
    );
    std::fs::remove_file(inner.with_extension("so")).unwrap();
    let lost = report(&outer.with_extension(""));
    assert_eq!(import(&lost, "inner").from, Provider::Nobody);
    assert!(lost.needed.contains(&("inner.so".to_owned(), None)));
}

#[test]
fn a_library_that_the_environment_says_where_to_find() {
    let inner = library::library("given_inner", "int given_inner(void) { return 1; }").with_extension("so");
    let source = library::library(
        "given",
        "extern int given_inner(void); int given(void) { return given_inner(); }",
    );
    let outer = source.with_file_name("given_linked.so");
    let linked = Command::new("cc")
        .args(["-shared", "-fPIC", "-o"])
        .arg(&outer)
        .arg(source.with_extension("c"))
        .arg("-L")
        .arg(inner.parent().unwrap())
        .arg("-l:given_inner.so")
        .status()
        .unwrap();
    assert!(linked.success());
    let finds = |directory: &Path| {
        let output = Command::new(env!("CARGO_BIN_EXE_snakepit_worker"))
            .arg("check")
            .arg(&outer)
            .args(["", ""])
            .env("LD_LIBRARY_PATH", directory)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        let place = inner.as_os_str().as_encoded_bytes();
        output.stdout.windows(place.len()).any(|bytes| bytes == place)
    };
    assert!(finds(inner.parent().unwrap()));
    assert!(!finds(Path::new("/nonexistent")));
}

// As `man ld.so` has it: DT_RPATH, LD_LIBRARY_PATH, DT_RUNPATH.
#[test]
fn directories_of_the_library_and_of_the_environment() {
    let own = library::library("ordered_inner", "int ordered_inner(void) { return 1; }").with_extension("so");
    let given = own.with_file_name("ordered_given");
    std::fs::create_dir_all(&given).unwrap();
    std::fs::copy(&own, given.join("ordered_inner.so")).unwrap();
    let code = "extern int ordered_inner(void); int ordered(void) { return ordered_inner(); }";
    let source = library::library("ordered", code);
    for (tags, first) in [
        ("--disable-new-dtags", own.clone()),
        ("--enable-new-dtags", given.join("ordered_inner.so")),
    ] {
        let outer = source.with_file_name("ordered_linked.so");
        let linked = Command::new("cc")
            .args(["-shared", "-fPIC", &format!("-Wl,{tags},-rpath,$ORIGIN"), "-o"])
            .arg(&outer)
            .arg(source.with_extension("c"))
            .arg("-L")
            .arg(own.parent().unwrap())
            .arg("-l:ordered_inner.so")
            .status()
            .unwrap();
        assert!(linked.success());
        let checked = Command::new(env!("CARGO_BIN_EXE_snakepit_worker"))
            .arg("check")
            .arg(&outer)
            .args(["", ""])
            .env("LD_LIBRARY_PATH", &given)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert!(checked.status.success(), "{checked:?}");
        let place = first.as_os_str().as_encoded_bytes();
        assert!(
            checked.stdout.windows(place.len()).any(|bytes| bytes == place),
            "{tags}"
        );
    }
}

#[test]
fn names_that_are_looked_up_and_a_name_among_the_constants() {
    let code = "const char *names[] = {\"enif_make_int\", \"enif_of_tomorrow\", \"the_module\"}; int nif_init(void) { return 0; }";
    let path = library::library("looking", code).with_extension("so");
    let bytes = std::fs::read(&path).unwrap();
    let asked = |module: &str| {
        let around = Surroundings {
            path: &path,
            module,
            vm: None,
        };
        inspect(&bytes, &around, &Read).unwrap()
    };
    let found = asked("the_module");
    let looked_up: Vec<_> = found.looked_up.into_iter().collect();
    assert_eq!(
        looked_up,
        [
            ("enif_make_int".to_owned(), true),
            ("enif_of_tomorrow".to_owned(), false)
        ]
    );
    assert!(found.mentions && found.nif_init && found.entries.is_empty());
    assert!(!asked("the_mod").mentions);
}

// ── What is no library ──────────────────────────────────────────────────────────────────────────────────────────────

/// What the executable says of a path.
fn check(path: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_snakepit_worker"))
        .arg("check")
        .arg(path)
        .args(["", ""])
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

#[track_caller]
fn refused(path: &Path, stage: &str, words: &str) {
    let output = check(path);
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        text.contains("error") && text.contains(stage) && text.contains(words),
        "{text:?}"
    );
}

#[test]
fn files_that_are_no_libraries() {
    let directory = library::file("empty", b"");
    refused(&directory.with_extension("so"), "not_a_library", "empty");
    refused(directory.parent().unwrap(), "not_a_library", "a directory");
    refused(Path::new("/dev/null"), "not_a_library", "a device");
    refused(
        &library::file("text", b"text").with_extension("so"),
        "not_a_library",
        "no ELF file",
    );
    refused(Path::new("/nowhere/at.so"), "not_found", "No such file");
    let pipe = directory.with_file_name("pipe.so");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    refused(&pipe, "not_a_library", "a pipe");
}

#[test]
fn a_huge_file() {
    let path = library::file(
        "huge",
        &std::fs::read(library::fixture("adder").with_extension("so")).unwrap(),
    );
    let file = std::fs::OpenOptions::new()
        .write(true)
        .open(path.with_extension("so"))
        .unwrap();
    file.set_len(1 << 40).unwrap();
    let output = check(&path.with_extension("so"));
    file.set_len(0).unwrap();
    assert!(
        output.status.success() && output.stdout.starts_with(&[131, 104, 2, 119, 2, b'o', b'k']),
        "{output:?}"
    );
}

/// Of a library that needs so many functions that nobody has, and one more with this name.
fn needy(name: &str, count: usize, longest: &str) -> PathBuf {
    let mut code = format!("void {longest}(void);\nvoid nif_init(void) {{ {longest}(); }}\n");
    for n in 0..count {
        writeln!(
            code,
            "void a_function_that_nobody_has_{n}(void);\nvoid call_{n}(void) {{ a_function_that_nobody_has_{n}(); }}"
        )
        .unwrap();
    }
    library::library(name, &code).with_extension("so")
}

#[test]
fn names_that_overlap() {
    let longest = "y".repeat(60_000);
    let path = needy("overlapping", 2000, &longest);
    let mut bytes = std::fs::read(&path).unwrap();
    let word = |bytes: &[u8], at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) as usize;
    // The headers of its segments (2 is the dynamic one), and in that the addresses of strings (5) and symbols (6), which are their places in
    // the file: they are at its beginning.
    let headers = word(&bytes, 32);
    let dynamic = (0..)
        .map(|n| headers + n * 56)
        .find(|header| bytes[*header..*header + 4] == [2, 0, 0, 0]);
    let dynamic = word(&bytes, dynamic.unwrap() + 8);
    let tag = |tag: usize| {
        let entry = (0..)
            .map(|n| dynamic + n * 16)
            .find(|entry| word(&bytes, *entry) == tag);
        word(&bytes, entry.unwrap() + 8)
    };
    let (strings, symbols) = (tag(5), tag(6));
    let long = bytes
        .windows(longest.len())
        .position(|window| window == longest.as_bytes())
        .unwrap()
        - strings;
    // All that nobody has are called by the end of the long name.
    for symbol in (1..=2000).map(|n| symbols + n * 24) {
        assert_eq!(bytes[symbol + 6..symbol + 8], [0, 0]);
        let name = u32::try_from(long + (symbol - symbols) / 24).unwrap();
        bytes[symbol..symbol + 4].copy_from_slice(&name.to_le_bytes());
    }
    std::fs::write(&path, bytes).unwrap();
    refused(&path, "not_a_library", "the names of the symbols that it needs");
}

/// In the middle of its answer: nobody takes that, and it is longer than a pipe. With what it has said so far.
fn answering(path: &Path) -> (Child, ChildStdout) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_snakepit_worker"))
        .arg("check")
        .arg(path)
        .args(["", ""])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = child.stdout.take().unwrap();
    output.read_exact(&mut [0]).unwrap();
    (child, output)
}

#[test]
fn it_is_the_first_to_go_and_ends_with_its_input() {
    let path = needy("needy", 4000, "nobody_has_this");
    let (mut child, output) = answering(&path);
    let of = |what: &str| std::fs::read_to_string(format!("/proc/{}/{what}", child.id())).unwrap();
    assert_eq!(of("oom_score_adj").trim(), "1000");
    let limits = of("limits");
    let data = limits.lines().find(|line| line.starts_with("Max data size")).unwrap();
    assert!(data.split_whitespace().any(|word| word == "134217728"), "{data}");
    drop(child.stdin.take());
    assert_eq!(child.wait().unwrap().signal(), Some(nix::libc::SIGIO));
    drop(output);
}

#[test]
fn a_library_of_another_kind_of_machine() {
    let mut bytes = adder().to_vec();
    bytes[18] = 243;
    refused(
        &library::file("riscv", &bytes).with_extension("so"),
        "wrong_architecture",
        "riscv",
    );
    bytes[4] = 1;
    refused(
        &library::file("small", &bytes).with_extension("so"),
        "wrong_architecture",
        "32-bit",
    );
}

fn adder() -> &'static [u8] {
    static ADDER: OnceLock<Vec<u8>> = OnceLock::new();
    ADDER.get_or_init(|| std::fs::read(library::fixture("adder").with_extension("so")).unwrap())
}

/// Whatever it makes of it, it comes to an end.
fn read(bytes: &[u8]) -> Result<Report, (Stage, String)> {
    let around = Surroundings {
        path: Path::new("/nowhere/damaged.so"),
        module: "snakepit_adder",
        vm: None,
    };
    inspect(bytes, &around, &Alone)
}

#[test]
fn every_place_where_a_file_may_be_cut_off() {
    let whole = adder();
    // All of the tables at the start, where most is decided, and then by steps.
    for length in (0..4096.min(whole.len())).chain((4096..whole.len()).step_by(97)) {
        drop(read(&whole[..length]));
    }
    assert!(read(&whole[..100]).is_err());
    assert!(read(whole).is_ok());
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 400, ..ProptestConfig::default() })]

    /// Single bytes, most of them in the headers and tables.
    #[test]
    fn damaged_bytes(damage in prop::collection::vec((any::<prop::sample::Index>(), any::<bool>(), any::<u8>()), 1..16)) {
        let mut bytes = adder().to_vec();
        let (whole, start) = (bytes.len(), 2048.min(bytes.len()));
        for (place, early, value) in damage {
            let place = place.index(if early { start } else { whole });
            bytes[place] = value;
        }
        drop(read(&bytes));
    }

    /// Numbers of eight bytes that are chosen to be wrong: at the ends of the address space, just beyond a segment.
    #[test]
    fn damaged_numbers(damage in prop::collection::vec((any::<prop::sample::Index>(), 0..6_usize), 1..8)) {
        let mut bytes = adder().to_vec();
        let words = bytes.len() / 8;
        for (place, value) in damage {
            let value = [u64::MAX, u64::MAX - 7, i64::MAX as u64, 1 << 47, 0, bytes.len() as u64][value];
            let place = place.index(words) * 8;
            bytes[place..place + 8].copy_from_slice(&value.to_le_bytes());
        }
        drop(read(&bytes));
    }

    /// A good beginning, and then anything.
    #[test]
    fn garbage(rest in prop::collection::vec(any::<u8>(), 0..4096)) {
        let mut bytes = adder()[..64].to_vec();
        bytes.extend(rest);
        drop(read(&bytes));
    }
}
