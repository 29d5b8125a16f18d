//! What the VM says about libraries: loading, asking back, unloading, and the answers.

use crate::packet::Packets;
use crate::{host, process};
use snakepit_wire::control::{self, Failed, FromWorker, Load, Loaded, Stage};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Whether the library that is open is wanted; one at a time is asked about.
static ASKED: Mutex<Asked> = Mutex::new(Asked::Nothing);
static ANSWERED: Condvar = Condvar::new();

enum Asked {
    Nothing,
    About(u32),
    Answered(bool),
    /// The VM answers nothing any more.
    Stopped,
}

fn asked() -> MutexGuard<'static, Asked> {
    ASKED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Loads a library, in this thread.
pub fn load(vm: &'static Packets, load: &Load) -> Result<Loaded, Failed> {
    let wanted = host::Wanted {
        number: load.library,
        replaces: load.replaces,
        path: Path::new(OsStr::from_bytes(&load.path)),
        load_info: &load.load_info,
    };
    let loaded = host::load_wanted(&wanted, |opened| !load.asks || wants(vm, opened));
    loaded.map_err(|mut failed| {
        failed.message = bounded(failed.message);
        failed
    })
}

fn wants(vm: &'static Packets, opened: &Loaded) -> bool {
    {
        let mut asked = asked();
        if matches!(*asked, Asked::Stopped) {
            return false;
        }
        *asked = Asked::About(opened.library);
    }
    tell(vm, &FromWorker::Opened(opened.clone()));
    let mut asked = asked();
    loop {
        match *asked {
            Asked::Answered(wanted) => {
                *asked = Asked::Nothing;
                return wanted;
            }
            Asked::Stopped => return false,
            Asked::About(_) | Asked::Nothing => {
                asked = ANSWERED.wait(asked).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }
}

/// The VM's answer. False when nobody has asked about this library.
pub fn answer(library: u32, wanted: bool) -> bool {
    let mut asked = asked();
    let about = matches!(*asked, Asked::About(number) if number == library);
    if about {
        *asked = Asked::Answered(wanted);
        ANSWERED.notify_all();
    }
    about
}

/// Nothing is answered from here on.
pub fn stop() {
    *asked() = Asked::Stopped;
    ANSWERED.notify_all();
}

/// Loads another library, soon.
pub fn load_later(vm: &'static Packets, another: Load) {
    // Who waits for the library should not wait for a thread that may never be there.
    if !host::attended() {
        let failed = Failed {
            stage: Stage::Worker,
            code: 0,
            message: "there is no thread to be had that would load it".to_owned(),
        };
        let library = another.library;
        return tell(vm, &FromWorker::NotLoaded { library, failed });
    }
    host::later(move || {
        let library = another.library;
        let message = match load(vm, &another) {
            Ok(loaded) => FromWorker::Loaded(loaded),
            Err(failed) => FromWorker::NotLoaded { library, failed },
        };
        tell(vm, &message);
    });
}

/// Unloads a library, when what was to be loaded before has been.
pub fn unload_later(vm: &'static Packets, library: u32) {
    if !answer(library, false) {
        host::unload(library, move || tell(vm, &FromWorker::Unloaded { library }));
    }
}

/// Sends a message. One that breaks a bound becomes a failure that says so; a VM that is gone needs none.
pub fn tell(vm: &Packets, message: &FromWorker) {
    let packet = control::encode(message).or_else(|error| {
        let failed = Failed {
            stage: Stage::Worker,
            code: 0,
            message: bounded(format!("the library cannot be described: {error}")),
        };
        control::encode(&match message {
            FromWorker::Opened(loaded) | FromWorker::Loaded(loaded) if loaded.library > 0 => FromWorker::NotLoaded {
                library: loaded.library,
                failed,
            },
            _ => FromWorker::Failed(failed),
        })
    });
    match packet {
        Ok(packet) => drop(vm.send_patiently(&packet)),
        Err(error) => process::complain(format_args!("a message cannot be written: {error}")),
    }
}

/// As much of a text as a message takes.
pub fn bounded(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(control::MESSAGE));
    text
}
