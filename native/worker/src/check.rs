//! `snakepit_worker check <library> <module> <VM's executable>`: reads a library without running it, writes what it is to standard
//! output as a term of Erlang's external format, and ends. README.md has the term.
//!
//! The file is somebody else's, so it is read here and not in the VM: what a fault in the reading could do, it does to a process
//! that has nothing. It ends after some seconds of work and within some memory, whatever the file says.

use crate::process;
use snakepit_host::inspect::{self, Entry, Files, Import, Provider, Report, Surroundings};
use snakepit_wire::control::Stage;
use std::ffi::{CStr, CString, OsStr};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Seconds of the processor, and of the clock (a file system that does not answer).
const WORK: libc::rlim_t = 20;
const CLOCK: libc::c_uint = 60;
/// Of memory of its own. Files are mapped, and do not count. Where a machine or container runs out of memory all the same, this process
/// is to be the one that ends: the largest might be the VM.
const MEMORY: libc::rlim_t = 128 << 20;

pub fn run(library: &CStr, module: &CStr, vm: &CStr) -> i32 {
    process::default_signals();
    process::no_core();
    process::limited(libc::RLIMIT_CPU, WORK);
    process::limited(libc::RLIMIT_DATA, MEMORY);
    process::first_when_memory_ends();
    // SAFETY: takes a number only. SIGALRM does what it does by default: it ends the process.
    unsafe { libc::alarm(CLOCK) };
    process::end_with_input();
    let path = Path::new(OsStr::from_bytes(library.to_bytes()));
    let vm = (!vm.is_empty()).then(|| Path::new(OsStr::from_bytes(vm.to_bytes())));
    let module = module.to_string_lossy();
    let told = map(path).and_then(|bytes| {
        let around = Surroundings {
            path,
            module: &module,
            vm,
        };
        inspect::inspect(bytes, &around, &Mapped)
    });
    let mut out = vec![VERSION];
    match told {
        Ok(report) => pair("ok", |out| describe(&report, out), &mut out),
        Err((stage, message)) => {
            tuple(3, &mut out);
            atom("error", &mut out);
            atom(word(stage), &mut out);
            text(&message, &mut out);
        }
    }
    if process::write_all(libc::STDOUT_FILENO, &out) {
        crate::exit::DONE
    } else {
        crate::exit::INTERNAL
    }
}

/// The files that the library needs.
struct Mapped;

impl Files for Mapped {
    fn open(&self, path: &Path) -> Option<&'static [u8]> {
        map(path).ok()
    }
}

/// The file's bytes. Somebody may cut it off meanwhile: then the process ends by SIGBUS, and the VM hears that.
fn map(path: &Path) -> Result<&'static [u8], (Stage, String)> {
    let failed = |error: std::io::Error| {
        let stage = if error.kind() == std::io::ErrorKind::NotFound {
            Stage::NotFound
        } else {
            Stage::Open
        };
        (stage, error.to_string())
    };
    let Ok(name) = CString::new(path.as_os_str().as_bytes()) else {
        return Err((Stage::NotFound, "the path has a zero byte in it".to_owned()));
    };
    // Not blocking: to open a pipe with a name is to wait for somebody who writes.
    let flags = libc::O_RDONLY | libc::O_CLOEXEC | libc::O_NONBLOCK | libc::O_NOCTTY;
    // SAFETY: a terminated path; the descriptor is this process's to keep.
    let fd = process::check(unsafe { libc::open(name.as_ptr(), flags) }).map_err(failed)?;
    // SAFETY: plain data, for which zeros are valid; written by the call.
    let mut status: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: an open descriptor and a place for the answer.
    process::check(unsafe { libc::fstat(fd, &raw mut status) }).map_err(failed)?;
    if status.st_mode & libc::S_IFMT != libc::S_IFREG {
        return Err((Stage::NotALibrary, format!("the file is {}", kind(status.st_mode))));
    }
    let Ok(length @ 1..) = usize::try_from(status.st_size) else {
        return Err((Stage::NotALibrary, "the file is empty".to_owned()));
    };
    // SAFETY: a new mapping, read-only and private, at an address that the kernel chooses. It is never unmapped. That another
    // process may write to the file meanwhile cannot be ruled out; nothing read is relied upon to stay.
    let address = unsafe { libc::mmap(std::ptr::null_mut(), length, libc::PROT_READ, libc::MAP_PRIVATE, fd, 0) };
    if address == libc::MAP_FAILED {
        return Err(failed(std::io::Error::last_os_error()));
    }
    // SAFETY: the mapping has so many bytes, and stays.
    Ok(unsafe { std::slice::from_raw_parts(address.cast(), length) })
}

fn kind(mode: libc::mode_t) -> &'static str {
    match mode & libc::S_IFMT {
        libc::S_IFDIR => "a directory",
        libc::S_IFIFO => "a pipe",
        libc::S_IFSOCK => "a socket",
        libc::S_IFCHR | libc::S_IFBLK => "a device",
        _ => "no regular file",
    }
}

fn word(stage: Stage) -> &'static str {
    match stage {
        Stage::NotFound => "not_found",
        Stage::WrongArchitecture => "wrong_architecture",
        Stage::NotALibrary => "not_a_library",
        _ => "open",
    }
}

// ── The term ────────────────────────────────────────────────────────────────────────────────────────────────────────

const VERSION: u8 = 131;
const INTEGER: u8 = 98;
const TUPLE: u8 = 104;
const NIL: u8 = 106;
const LIST: u8 = 108;
const BINARY: u8 = 109;
const MAP: u8 = 116;
const ATOM: u8 = 119;

fn describe(report: &Report, out: &mut Vec<u8>) {
    out.push(MAP);
    length(8, out);
    key("soname", out, |out| optional(report.soname.as_deref(), out));
    key("nif_init", out, |out| boolean(report.nif_init, out));
    key("entries", out, |out| list(&report.entries, entry, out));
    key("imports", out, |out| list(&report.imports, import, out));
    key("looked_up", out, |out| {
        let names: Vec<_> = report.looked_up.iter().collect();
        list(
            &names,
            |(name, present), out| {
                tuple(2, out);
                text(name, out);
                boolean(**present, out);
            },
            out,
        );
    });
    key("rustler", out, |out| optional(report.rustler.as_deref(), out));
    key("mentions", out, |out| boolean(report.mentions, out));
    key("needed", out, |out| {
        list(
            &report.needed,
            |(name, path), out| {
                tuple(2, out);
                text(name, out);
                optional(path.as_ref().map(|path| path.to_string_lossy()).as_deref(), out);
            },
            out,
        );
    });
}

fn entry(entry: &Entry, out: &mut Vec<u8>) {
    out.push(MAP);
    length(8, out);
    key("module", out, |out| text(&entry.module, out));
    key("minor", out, |out| integer(entry.minor, out));
    key("functions", out, |out| {
        list(
            &entry.functions,
            |function, out| {
                tuple(3, out);
                text(&function.name, out);
                integer(function.arity, out);
                integer(function.dirty, out);
            },
            out,
        );
    });
    key("load", out, |out| boolean(entry.load, out));
    key("reload", out, |out| boolean(entry.reload, out));
    key("upgrade", out, |out| boolean(entry.upgrade, out));
    key("unload", out, |out| boolean(entry.unload, out));
    key("min_erts", out, |out| optional(entry.min_erts.as_deref(), out));
}

fn import(import: &Import, out: &mut Vec<u8>) {
    tuple(3, out);
    text(&import.name, out);
    boolean(import.weak, out);
    match &import.from {
        Provider::Worker => atom("worker", out),
        Provider::Vm => atom("vm", out),
        Provider::Nobody => atom("nobody", out),
        Provider::Library(name) => text(name, out),
    }
}

fn length(length: usize, out: &mut Vec<u8>) {
    // All of them are bounded far below.
    out.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes());
}

fn integer(number: u32, out: &mut Vec<u8>) {
    out.push(INTEGER);
    // As above.
    out.extend_from_slice(&i32::try_from(number).unwrap_or(i32::MAX).to_be_bytes());
}

fn tuple(arity: u8, out: &mut Vec<u8>) {
    out.extend_from_slice(&[TUPLE, arity]);
}

fn pair(tag: &str, value: impl FnOnce(&mut Vec<u8>), out: &mut Vec<u8>) {
    tuple(2, out);
    atom(tag, out);
    value(out);
}

fn key(name: &str, out: &mut Vec<u8>, value: impl FnOnce(&mut Vec<u8>)) {
    atom(name, out);
    value(out);
}

/// Names of ours only, all of them short.
fn atom(name: &str, out: &mut Vec<u8>) {
    out.extend_from_slice(&[ATOM, name.len() as u8]);
    out.extend_from_slice(name.as_bytes());
}

fn boolean(value: bool, out: &mut Vec<u8>) {
    atom(if value { "true" } else { "false" }, out);
}

fn text(text: &str, out: &mut Vec<u8>) {
    out.push(BINARY);
    length(text.len(), out);
    out.extend_from_slice(text.as_bytes());
}

fn optional(value: Option<&str>, out: &mut Vec<u8>) {
    match value {
        Some(value) => text(value, out),
        None => atom("nil", out),
    }
}

fn list<T>(items: &[T], each: impl Fn(&T, &mut Vec<u8>), out: &mut Vec<u8>) {
    if !items.is_empty() {
        out.push(LIST);
        length(items.len(), out);
        for item in items {
            each(item, out);
        }
    }
    out.push(NIL);
}
