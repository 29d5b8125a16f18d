//! Loading and unloading libraries, as `erlang:load_nif/2` and the purge of a module's code do.

use super::callbacks::{self, Awaited, Work};
use super::elf;
use super::entry::{Entry, MAJOR};
use super::env::Env;
use super::library::{self, Function, Library};
use super::missing;
use super::option;
use super::resource;
use super::symbols;
use super::wire::Arguments;
use super::{atom, term::Term};
use snakepit_wire::control::{Failed, Loaded, Stage};
use snakepit_wire::{Decoder, Limits, SliceSource};
use std::ffi::{CStr, CString, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

/// A library to be loaded.
#[derive(Debug)]
pub struct Wanted<'a> {
    pub number: u32,
    /// Whose successor it is: if that is still there, the upgrade callback runs with its data.
    pub replaces: Option<u32>,
    /// `.so` is appended, as `erlang:load_nif/2` does.
    pub path: &'a Path,
    /// One term.
    pub load_info: &'a [u8],
}

fn failed(stage: Stage, code: i64, message: impl Into<String>) -> Failed {
    Failed {
        stage,
        code,
        message: message.into(),
    }
}

/// Loads the first library of this process.
pub fn load(path: &Path, load_info: &[u8]) -> Result<Loaded, Failed> {
    let wanted = Wanted {
        number: 0,
        replaces: None,
        path,
        load_info,
    };
    load_wanted(&wanted, |_| true)
}

/// Loads a library; one after the other. `proceed` is asked when the library is open and none of its callbacks has run. When it fails, nothing
/// of the library is left.
pub fn load_wanted(wanted: &Wanted<'_>, proceed: impl FnOnce(&Loaded) -> bool) -> Result<Loaded, Failed> {
    if !Library::has_room(wanted.number) {
        return Err(failed(Stage::Worker, 0, "there is a library in its place"));
    }
    let mut file = wanted.path.as_os_str().as_bytes().to_vec();
    file.extend_from_slice(b".so");
    let imported = inspect(&file)?;
    let handle = open(file)?;
    let entry = entry(handle).and_then(|entry| Ok((module(&entry)?, entry)));
    let (module, entry) = entry.inspect_err(|_| {
        // SAFETY: just opened, and nothing of it is kept.
        unsafe { libc::dlclose(handle) };
    })?;
    let (functions, table): (Vec<_>, Vec<_>) = entry
        .functions
        .iter()
        .map(|(function, nif)| {
            let (nif, arity, flags) = (*nif, function.arity, function.flags);
            (function.clone(), Function { nif, arity, flags })
        })
        .unzip();
    let missing = imported
        .into_iter()
        .filter(|symbol| !symbols::implemented(symbol))
        .collect();
    let loaded = Loaded {
        library: wanted.number,
        module: entry.module.clone(),
        functions,
        nif_major: MAJOR as u8,
        nif_minor: entry.minor,
        missing,
    };
    let library = Library::new(wanted.number, module, table, entry.unload, handle);
    let started = if proceed(&loaded) {
        option::loading(library, true);
        let started = start(library, &entry, wanted);
        option::loading(library, false);
        started
    } else {
        Err(failed(Stage::Unwanted, 0, "it is not wanted"))
    };
    match started {
        Ok(()) => {
            resource::commit(library);
            library.publish();
            Ok(loaded)
        }
        Err(error) => {
            resource::roll_back();
            // An object that its callback has made and let go of: its destructor may run.
            callbacks::settle();
            library.discard();
            Err(error)
        }
    }
}

fn entry(handle: *mut c_void) -> Result<Entry, Failed> {
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
    unsafe {
        let init: extern "C" fn() -> *const c_void = std::mem::transmute(init);
        Entry::read(init())
    }
}

fn module(entry: &Entry) -> Result<Term, Failed> {
    atom::make(&entry.module).ok_or_else(|| failed(Stage::Init, 0, "its module's name cannot be an atom"))
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

/// Runs the load or upgrade callback.
fn start(library: &'static Library, entry: &Entry, wanted: &Wanted<'_>) -> Result<(), Failed> {
    let mut env = Env::callback(Some(library));
    let mut source = SliceSource::new(wanted.load_info);
    let info = Decoder::new()
        .decode(&mut source, &Limits::DEFAULT, &mut Arguments(&mut env))
        .map_err(|error| failed(Stage::LoadInfo, 0, error.to_string()))?;
    let old = wanted.replaces.and_then(library::find);
    missing::taken();
    let (stage, name, code) = if let Some(old) = old {
        let Some(callback) = entry.upgrade else {
            let message = "Upgrade not supported by this NIF library.";
            return Err(failed(Stage::UpgradeCallback, 0, message));
        };
        let before = old.private();
        // SAFETY: the library's own callback, with an env, places for its data and its predecessor's, which is not unloaded
        // while another is being loaded, and a term of the env.
        let code = unsafe { callback(&raw mut *env, library.private_place(), old.private_place(), info) };
        if code != 0 {
            old.set_private(before);
        }
        (Stage::UpgradeCallback, "upgrade", code)
    } else {
        let Some(callback) = entry.load else { return Ok(()) };
        // SAFETY: the library's own callback, with an env, a place for its data and a term of the env.
        let code = unsafe { callback(&raw mut *env, library.private_place(), info) };
        (Stage::LoadCallback, "load", code)
    };
    match (missing::taken(), code) {
        (_, 0) => Ok(()),
        (Some(symbol), code) => {
            let message =
                format!("the {name} callback returned {code} after it called {symbol}, which is not implemented");
            Err(failed(stage, code.into(), message))
        }
        (None, code) => Err(failed(
            stage,
            code.into(),
            format!("the {name} callback returned {code} instead of 0"),
        )),
    }
}

/// Unloads a library while others stay, in the thread `callbacks`, so never while another one is being loaded: its functions cannot be
/// called any more; when no call of it runs, its types are forgotten and, when no object of them is left that needs it, its
/// unload callback runs. `done` is called before that last condition, and after the callback if nothing needs the library.
pub fn unload(number: u32, done: impl FnOnce() + Send + 'static) {
    let Some(library) = library::find(number).filter(|library| library.withdraw()) else {
        return done();
    };
    let work = move || {
        option::thread_unloads(library);
        resource::disown(library);
        library.let_go();
        callbacks::later(Work::Other(Box::new(done)));
    };
    if library.is_executed() {
        // A call that goes on and on keeps nobody else waiting.
        callbacks::later(Work::When(Awaited {
            ready: Box::new(|| !library.is_executed()),
            work: Box::new(work),
        }));
    } else {
        work();
    }
}

/// For destructors and what else is to be done before the unload callbacks of a worker that is told to stop. The VM's patience
/// with the process is less; this bound is for one that has forgotten it.
const PATIENCE: Duration = Duration::from_secs(2);

/// Runs the unload callbacks, when no call of the libraries runs any more: at the end of a worker that is told to stop. What the
/// VM has told before is done first, and nothing after it: they run neither before a destructor that is due nor beside one.
/// When that does not come to an end, they do not run.
pub fn unload_all() {
    callbacks::end(PATIENCE, || {
        for library in library::all() {
            if library.withdraw() {
                library.run_unload();
            }
        }
    });
}
