//! Where the libraries are that a library needs, as the dynamic linker would look for them in a worker. None is opened but to
//! read it.

use super::symbols::Search;
use std::path::{Path, PathBuf};

/// How the linker's cache marks libraries of this processor, and Debian's directory of them.
const ARCHITECTURE: (u32, &str) = if cfg!(target_arch = "aarch64") {
    (0x0a00, "/lib/aarch64-linux-gnu")
} else {
    (0x0300, "/lib/x86_64-linux-gnu")
};

const CACHE: &str = "/etc/ld.so.cache";
const DEFAULT: [&str; 5] = [ARCHITECTURE.1, "/lib64", "/usr/lib64", "/lib", "/usr/lib"];

/// What `ldconfig` has found, and what `LD_LIBRARY_PATH` says here, and so in a worker that inherits the environment.
#[derive(Debug)]
pub struct Places {
    cache: Vec<u8>,
    given: String,
}

impl Places {
    pub fn of_this_machine() -> Self {
        Self {
            cache: std::fs::read(CACHE).unwrap_or_default(),
            given: std::env::var("LD_LIBRARY_PATH").unwrap_or_default(),
        }
    }

    /// The file of a library that `by` needs and has directories for.
    pub fn find(&self, name: &str, by: &Path, search: &Search) -> Option<PathBuf> {
        if name.contains('/') {
            return existing(PathBuf::from(name));
        }
        let origin = by.parent().unwrap_or(Path::new("/")).to_string_lossy();
        let own = search.path.split(':');
        let own = own.map(|part| part.replace("${ORIGIN}", &origin).replace("$ORIGIN", &origin));
        let given = self.given.split([':', ';']).map(str::to_owned);
        let in_order: [&mut dyn Iterator<Item = String>; 2] = if search.first {
            [&mut { own }, &mut { given }]
        } else {
            [&mut { given }, &mut { own }]
        };
        in_order
            .into_iter()
            .flatten()
            .filter(|directory| !directory.is_empty())
            .find_map(|directory| existing(Path::new(&directory).join(name)))
            .or_else(|| existing(self.cached(name)?))
            .or_else(|| {
                DEFAULT
                    .iter()
                    .find_map(|directory| existing(Path::new(directory).join(name)))
            })
    }

    /// The format of glibc 2.2 and later, alone or behind the one before it: a header, entries of 24 bytes with the offsets of name
    /// and path.
    fn cached(&self, name: &str) -> Option<PathBuf> {
        const MAGIC: &[u8] = b"glibc-ld.so.cache1.1";
        let cache = self.cache.get(start(&self.cache, MAGIC)?..)?;
        let number = |at: usize| super::image::half(cache, at);
        let text = |at: u32| super::image::terminated(cache.get(at as usize..)?, libc::PATH_MAX as usize);
        (0..number(20).min(1 << 20) as usize)
            .map(|position| 48 + position * 24)
            .find(|at| number(*at) & 0xff00 == ARCHITECTURE.0 && text(number(at + 4)) == Some(name.as_bytes()))
            .and_then(|at| text(number(at + 8)))
            .map(|path| PathBuf::from(String::from_utf8_lossy(path).into_owned()))
    }
}

fn start(cache: &[u8], magic: &[u8]) -> Option<usize> {
    if cache.starts_with(magic) {
        return Some(0);
    }
    // Behind `ld.so-1.7.0`, a number and as many entries of 12 bytes, aligned.
    let entries = super::image::half(cache, 12) as usize;
    let behind = entries.checked_mul(12)?.checked_add(16 + 7)? & !7;
    cache.get(behind..)?.starts_with(magic).then_some(behind)
}

fn existing(path: PathBuf) -> Option<PathBuf> {
    path.is_file().then_some(path)
}
