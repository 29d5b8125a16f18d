//! What a library's file says of it, without running any of it: for `snakepit_worker check`.
//!
//! The file may be damaged, or made to do harm. All of it is read through slices with their ends, all counts have bounds, and this is a
//! process of its own (`check.rs`), whose memory and time are limited.

mod entry;
mod image;
mod names;
mod needed;
mod pointers;
mod symbols;
mod words;

pub use entry::{Entry, Function};

use crate::host::elf::Unfit;
use image::Image;
use names::Names;
use needed::Places;
use pointers::Pointers;
use snakepit_wire::control::Stage;
use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use symbols::Symbols;

/// All libraries that a library needs, and those that they need.
const MOST_LIBRARIES: usize = 512;
/// What is told of them.
const MOST_IMPORTS: usize = 20_000;

/// Where a symbol comes from that a library imports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Provider {
    /// This executable: the worker that would load it.
    Worker,
    /// One of the libraries that it needs, by its name.
    Library(String),
    /// The VM's executable, and no worker.
    Vm,
    Nobody,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Import {
    pub name: String,
    /// The library does without it.
    pub weak: bool,
    pub from: Provider,
}

#[derive(Debug)]
pub struct Report {
    pub soname: Option<String>,
    /// Whether it is a NIF library at all.
    pub nif_init: bool,
    /// Those that lie complete in its data.
    pub entries: Vec<Entry>,
    pub imports: Vec<Import>,
    /// Functions of the API whose names it has among its constants, and whether this executable has them.
    pub looked_up: BTreeMap<String, bool>,
    pub rustler: Option<String>,
    /// Whether the asked name is among its constants.
    pub mentions: bool,
    /// Libraries that it needs, directly or not, and where they are.
    pub needed: Vec<(String, Option<PathBuf>)>,
}

/// The bytes of a file, for as long as this process lives.
pub trait Files {
    fn open(&self, path: &Path) -> Option<&'static [u8]>;
}

/// What else is looked at.
#[derive(Debug)]
pub struct Surroundings<'a> {
    pub path: &'a Path,
    /// The name to look for among the constants.
    pub module: &'a str,
    pub vm: Option<&'a Path>,
}

/// Reads a library.
pub fn inspect(bytes: &[u8], around: &Surroundings<'_>, files: &impl Files) -> Result<Report, Unfit> {
    let image = Image::parse(bytes)?;
    let Some(symbols) = Symbols::read(&image) else {
        let message = "the file is damaged or cut off: its symbols are not where it says".to_owned();
        return Err((Stage::NotALibrary, message));
    };
    let nif_init = symbols
        .visible()
        .any(|symbol| symbol.defined && symbol.name == b"nif_init");
    let mut names = Names::default();
    let entries = entry::find(&image, &Pointers::read(&image, &symbols), &mut names);
    let ours = exports(files.open(Path::new("/proc/self/exe")));
    let looked_up = words::looked_up(&image, &symbols)
        .into_iter()
        .map(|name| {
            let present = ours.contains(&name);
            (name, present)
        })
        .collect();
    let Some(wanted) = imports(&symbols, &mut names) else {
        let message = "the names of the symbols that it needs take more than any library's".to_owned();
        return Err((Stage::NotALibrary, message));
    };
    let (found, needed) = providers(&image, &symbols, around.path, &wanted, files);
    let vm = exports(around.vm.and_then(|path| files.open(path)));
    let from = |name: &String| {
        if ours.contains(name) {
            Provider::Worker
        } else if let Some(library) = found.get(name) {
            Provider::Library(library.clone())
        } else if vm.contains(name) {
            Provider::Vm
        } else {
            Provider::Nobody
        }
    };
    Ok(Report {
        soname: symbols.soname(&image),
        nif_init,
        entries,
        imports: wanted
            .iter()
            .take(MOST_IMPORTS)
            .map(|(name, weak)| Import {
                name: name.clone(),
                weak: *weak,
                from: from(name),
            })
            .collect(),
        looked_up,
        rustler: words::rustler(&image),
        mentions: words::mentions(&image, around.module),
        needed,
    })
}

/// What a library imports, and whether it does without. None: too much.
fn imports(symbols: &Symbols<'_>, names: &mut Names) -> Option<BTreeMap<String, bool>> {
    let mut all = BTreeMap::new();
    for symbol in symbols.visible().filter(|symbol| !symbol.defined) {
        let name = names.keep(&String::from_utf8_lossy(symbol.name))?;
        *all.entry(name).or_insert(true) &= symbol.weak;
    }
    Some(all)
}

/// What an executable has for libraries.
fn exports(bytes: Option<&[u8]>) -> HashSet<String> {
    let image = bytes.and_then(|bytes| Image::parse(bytes).ok());
    let Some((image, symbols)) = image.and_then(|image| {
        let symbols = Symbols::read(&image)?;
        Some((image, symbols))
    }) else {
        return HashSet::new();
    };
    drop(image);
    symbols
        .visible()
        .filter(|symbol| symbol.defined)
        .map(|symbol| String::from_utf8_lossy(symbol.name).into_owned())
        .collect()
}

type Found = (BTreeMap<String, String>, Vec<(String, Option<PathBuf>)>);

/// Which of the needed libraries has which of the wanted symbols, breadth first, as the dynamic linker looks.
fn providers(
    image: &Image<'_>,
    symbols: &Symbols<'_>,
    path: &Path,
    wanted: &BTreeMap<String, bool>,
    files: &impl Files,
) -> Found {
    let places = Places::of_this_machine();
    let mut found = BTreeMap::new();
    let mut needed = Vec::new();
    let mut seen = BTreeSet::new();
    let mut queue = VecDeque::new();
    let mut enqueue = |image: &Image<'_>, symbols: &Symbols<'_>, by: &Path, queue: &mut VecDeque<_>| {
        // Shared by all that this one needs: it may be long.
        let search = Rc::new(symbols.search(image));
        for name in symbols.needed(image) {
            if seen.len() < MOST_LIBRARIES && seen.insert(name.clone()) {
                queue.push_back((name, by.to_owned(), Rc::clone(&search)));
            }
        }
    };
    enqueue(image, symbols, path, &mut queue);
    while let Some((name, by, search)) = queue.pop_front() {
        let place = places.find(&name, &by, &search);
        let bytes = place.as_deref().and_then(|place| files.open(place));
        needed.push((name.clone(), place.clone()));
        let Some((image, place)) = bytes.and_then(|bytes| Image::parse(bytes).ok()).zip(place) else {
            continue;
        };
        let Some(symbols) = Symbols::read(&image) else { continue };
        for symbol in symbols.visible().filter(|symbol| symbol.defined) {
            if let Ok(symbol) = std::str::from_utf8(symbol.name)
                && wanted.contains_key(symbol)
            {
                found.entry(symbol.to_owned()).or_insert_with(|| name.clone());
            }
        }
        enqueue(&image, &symbols, &place, &mut queue);
    }
    (found, needed)
}
