//! Loading the library of this process, as `erlang:load_nif/2` does.

use super::elf;
use super::entry::{Entry, MAJOR, Unload};
use super::env::{Env, Nif};
use super::missing;
use super::option;
use super::symbols;
use super::wire::Arguments;
use snakepit_wire::control::{Failed, Loaded, Stage};
use snakepit_wire::{Decoder, Limits, SliceSource};
use std::ffi::{CStr, CString, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicPtr, Ordering};

/// A function of the library.
#[derive(Debug, Clone, Copy)]
pub struct Function {
    pub nif: Nif,
    pub arity: u32,
    /// `ERL_NIF_DIRTY_JOB_CPU_BOUND`, `ERL_NIF_DIRTY_JOB_IO_BOUND`, or 0.
    pub flags: u32,
}

/// In the order of the library's table.
static FUNCTIONS: OnceLock<Vec<Function>> = OnceLock::new();
static UNLOAD: OnceLock<Option<Unload>> = OnceLock::new();
static MODULE: OnceLock<String> = OnceLock::new();
static PRIVATE: AtomicPtr<c_void> = AtomicPtr::new(ptr::null_mut());

/// The function at a position of the table, if it has this arity.
#[inline]
pub fn function(position: u32, arity: u32) -> Option<Function> {
    let function = FUNCTIONS.get()?.get(position as usize)?;
    (function.arity == arity).then_some(*function)
}

/// The library's module; empty before it is known.
pub fn module() -> &'static str {
    MODULE.get().map_or("", String::as_str)
}

/// What the load callback has left in `priv_data`.
pub fn private() -> *mut c_void {
    // Written by the library itself, in `start`; whoever else reads it was started, or sent a call, after that.
    PRIVATE.load(Ordering::Relaxed)
}

fn failed(stage: Stage, code: i64, message: impl Into<String>) -> Failed {
    Failed {
        stage,
        code,
        message: message.into(),
    }
}

/// Loads the library of this process: `.so` is appended to the path, as `erlang:load_nif/2` does. Once.
pub fn load(path: &Path, load_info: &[u8]) -> Result<Loaded, Failed> {
    if MODULE.get().is_some() {
        return Err(failed(Stage::Worker, 0, "this process has a library already"));
    }
    let mut file = path.as_os_str().as_bytes().to_vec();
    file.extend_from_slice(b".so");
    let imported = inspect(&file)?;
    let handle = open(file)?;
    // SAFETY: `handle` is an open library, the name is terminated.
    let init = unsafe { libc::dlsym(handle, c"nif_init".as_ptr()) };
    if init.is_null() {
        return Err(failed(
            Stage::NoInit,
            0,
            "the library has no nif_init: it is not a NIF library",
        ));
    }
    // SAFETY: a NIF library's `nif_init` has this type; what it gives is checked by `Entry::read`.
    let entry = unsafe {
        let init: extern "C" fn() -> *const c_void = std::mem::transmute(init);
        Entry::read(init())?
    };
    drop(MODULE.set(entry.module.clone()));
    start(&entry, load_info)?;
    let (functions, table): (Vec<_>, _) = entry
        .functions
        .into_iter()
        .map(|(function, nif)| {
            let (arity, flags) = (function.arity, function.flags);
            (function, Function { nif, arity, flags })
        })
        .unzip();
    drop(FUNCTIONS.set(table));
    let _ = UNLOAD.set(entry.unload);
    let missing = imported
        .into_iter()
        .filter(|symbol| !symbols::implemented(symbol))
        .collect();
    Ok(Loaded {
        module: entry.module,
        functions,
        nif_major: MAJOR as u8,
        nif_minor: entry.minor,
        missing,
    })
}

fn inspect(file: &[u8]) -> Result<Vec<String>, Failed> {
    let path = Path::new(std::ffi::OsStr::from_bytes(file));
    let told = |error: std::io::Error| {
        let stage = if error.kind() == std::io::ErrorKind::NotFound {
            Stage::NotFound
        } else {
            Stage::Open
        };
        let code = i64::from(error.raw_os_error().unwrap_or(0));
        failed(stage, code, format!("{} cannot be read: {error}", path.display()))
    };
    let bytes = std::fs::read(path).map_err(told)?;
    elf::imports(&bytes).map_err(|(stage, message)| failed(stage, 0, format!("{}: {message}", path.display())))
}

fn open(file: Vec<u8>) -> Result<*mut c_void, Failed> {
    let Ok(file) = CString::new(file) else {
        return Err(failed(Stage::NotFound, 0, "the path has a zero byte in it"));
    };
    // SAFETY: a terminated string. The library's constructors run here: this process is made for them.
    let handle = unsafe { libc::dlopen(file.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
    if !handle.is_null() {
        return Ok(handle);
    }
    // SAFETY: null or a terminated string that lives until the next call of these functions in this thread.
    let message = unsafe {
        let error = libc::dlerror();
        if error.is_null() {
            "dlopen failed".into()
        } else {
            CStr::from_ptr(error).to_string_lossy()
        }
    };
    let stage = if message.contains("undefined symbol") {
        Stage::UnresolvedSymbol
    } else {
        Stage::Open
    };
    Err(failed(stage, 0, message))
}

/// Runs the unload callback, when nothing of the library runs any more: at the end of a worker that is told to stop.
pub fn unload() {
    if let Some(Some(callback)) = UNLOAD.get() {
        let mut env = Env::callback();
        // SAFETY: the library's own callback, with an env and its data.
        unsafe { callback(&raw mut *env, private()) };
    }
}

/// Runs the load callback.
fn start(entry: &Entry, load_info: &[u8]) -> Result<(), Failed> {
    let mut env = Env::callback();
    let mut source = SliceSource::new(load_info);
    let info = Decoder::new()
        .decode(&mut source, &Limits::DEFAULT, &mut Arguments(&mut env))
        .map_err(|error| failed(Stage::LoadInfo, 0, error.to_string()))?;
    let Some(callback) = entry.load else { return Ok(()) };
    missing::taken();
    option::loading(true);
    // Its place for data is the one that `enif_priv_data` reads: libraries ask for what they have just put there.
    // SAFETY: the library's own callback, with an env, a place for its data and a term of the env.
    let code = unsafe { callback(&raw mut *env, PRIVATE.as_ptr(), info) };
    option::loading(false);
    match (missing::taken(), code) {
        (_, 0) => Ok(()),
        (Some(symbol), code) => {
            let message =
                format!("the load callback returned {code} after it called {symbol}, which is not implemented");
            Err(failed(Stage::LoadCallback, code.into(), message))
        }
        (None, code) => Err(failed(
            Stage::LoadCallback,
            code.into(),
            format!("the load callback returned {code} instead of 0"),
        )),
    }
}
