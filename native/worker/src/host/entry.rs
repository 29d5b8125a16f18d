//! `ErlNifEntry`: what `nif_init` gives. Its fields depend on the version that the library was built for.

use super::env::Nif;
use super::library::{LoadCallback, UnloadCallback, UpgradeCallback};
use snakepit_wire::control::{Failed, Function, Stage};
use std::collections::HashSet;
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};

/// The newest version that this host speaks.
pub const MAJOR: c_int = 2;
pub const MINOR: c_int = 18;

/// As of 2.0. Later fields (`vm_variant` from 2.1, `options` from 2.7, the size of the resource type's callbacks from
/// 2.12, `min_erts` from 2.14) lie behind these.
#[derive(Debug)]
#[repr(C)]
struct Raw {
    major: c_int,
    minor: c_int,
    name: *const c_char,
    functions: c_int,
    table: *const u8,
    load: Option<LoadCallback>,
    reload: *const c_void,
    upgrade: Option<UpgradeCallback>,
    unload: Option<UnloadCallback>,
    vm_variant: *const c_char,
}

/// `ErlNifFunc`; from 2.7 with `flags`, hence 32 bytes and not 24.
#[repr(C)]
struct RawFunction {
    name: *const c_char,
    arity: c_uint,
    function: Option<Nif>,
    flags: c_uint,
}

const STRIDE: usize = size_of::<RawFunction>();
const OLD_STRIDE: usize = 24;

/// More functions than any library has; a larger number is garbage.
const MOST: c_int = 100_000;

/// A library's table, checked.
#[derive(Debug)]
pub struct Entry {
    pub module: String,
    pub minor: u8,
    pub load: Option<LoadCallback>,
    pub upgrade: Option<UpgradeCallback>,
    pub unload: Option<UnloadCallback>,
    pub functions: Vec<(Function, Nif)>,
}

fn failed(stage: Stage, message: String) -> Failed {
    Failed {
        stage,
        code: 0,
        message,
    }
}

impl Entry {
    /// # Safety
    /// `entry` is null or what a library's `nif_init` gave.
    pub unsafe fn read(entry: *const c_void) -> Result<Self, Failed> {
        let entry = entry.cast::<Raw>();
        if entry.is_null() {
            return Err(failed(Stage::Init, "nif_init gave no entry".to_owned()));
        }
        // SAFETY: the versions are the first fields in every version of the struct.
        let (major, minor) = unsafe { ((*entry).major, (*entry).minor) };
        if major != MAJOR || !(0..=MINOR).contains(&minor) {
            let message =
                format!("it wants version {major}.{minor} of the NIF API; 2.0 to {MAJOR}.{MINOR} are spoken");
            return Err(failed(Stage::NifVersion, message));
        }
        // SAFETY: so versions from 2.0 to 2.18 begin. `vm_variant` is read from 2.1 on only.
        let raw = unsafe { &*entry };
        if minor >= 1 {
            // SAFETY: a string of the library, or null.
            let variant = unsafe { text(raw.vm_variant) }.unwrap_or_default();
            if variant != "beam.vanilla" {
                let message = format!("it is for the VM variant `{variant}`, not `beam.vanilla`");
                return Err(failed(Stage::NifVersion, message));
            }
        }
        // SAFETY: a string of the library, or null.
        let module = unsafe { text(raw.name) }.filter(|name| !name.is_empty() && name.chars().count() <= 255);
        let Some(module) = module else {
            return Err(failed(Stage::Init, "its entry names no module".to_owned()));
        };
        if !(0..=MOST).contains(&raw.functions) || (raw.functions > 0 && raw.table.is_null()) {
            return Err(failed(
                Stage::Init,
                format!("its entry has an impossible number of functions: {}", raw.functions),
            ));
        }
        let functions = (0..raw.functions as usize)
            // SAFETY: the table has as many functions as the entry says.
            .map(|position| unsafe { function(raw.table, position, minor) })
            .collect::<Result<Vec<_>, _>>()?;
        let mut seen = HashSet::new();
        if let Some((twice, _)) = functions
            .iter()
            .find(|(function, _)| !seen.insert((&function.name, function.arity)))
        {
            // In the VM's words, which its test suite looks at.
            let message = format!("Duplicate NIF entry for {module}:{}/{}", twice.name, twice.arity);
            return Err(failed(Stage::Init, message));
        }
        Ok(Self {
            module,
            minor: minor as u8,
            load: raw.load,
            upgrade: raw.upgrade,
            unload: raw.unload,
            functions,
        })
    }
}

/// # Safety
/// `string` is null or terminated.
unsafe fn text(string: *const c_char) -> Option<String> {
    // SAFETY: not null, so terminated.
    (!string.is_null()).then(|| super::atom::from_latin1(unsafe { CStr::from_ptr(string) }.to_bytes()).into_owned())
}

/// # Safety
/// The table has a function at `position`.
unsafe fn function(table: *const u8, position: usize, minor: c_int) -> Result<(Function, Nif), Failed> {
    let stride = if minor >= 7 { STRIDE } else { OLD_STRIDE };
    // SAFETY: inside the table; `flags` is read from 2.7 on only, where the struct has it.
    let (name, arity, function, flags) = unsafe {
        let raw = table.add(position * stride).cast::<RawFunction>();
        let flags = if minor >= 7 { (*raw).flags } else { 0 };
        (text((*raw).name), (*raw).arity, (*raw).function, flags)
    };
    let (Some(name), Some(function), 0..=255, 0..=2) = (name, function, arity, flags) else {
        return Err(failed(
            Stage::Init,
            format!(
                "function {position} of its entry has no name or no address, or an \
            impossible arity ({arity}) or flags ({flags})"
            ),
        ));
    };
    Ok((Function { name, arity, flags }, function))
}
