//! The libraries of test/support/fixtures/isolation, compiled when they are first asked for.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, OnceLock};

/// The path of a fixture, without the extension.
pub fn fixture(name: &str) -> PathBuf {
    static MADE: Mutex<Option<HashMap<String, PathBuf>>> = Mutex::new(None);
    let mut made = MADE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    made.get_or_insert_default()
        .entry(name.to_owned())
        .or_insert_with(|| {
            let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../test/support/fixtures/isolation");
            compile(&fixtures.join(format!("{name}.c")), name)
        })
        .clone()
}

/// A library of tests/hosted/.
pub fn hosted(name: &str) -> PathBuf {
    static MADE: Mutex<()> = Mutex::new(());
    let _one_after_the_other = MADE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let path = directory().join(name);
    if path.with_extension("so").exists() {
        return path;
    }
    let hosted = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/hosted");
    compile(&hosted.join(format!("{name}.c")), name)
}

/// A library out of a few lines of C.
pub fn library(name: &str, text: &str) -> PathBuf {
    let source = directory().join(format!("{name}.c"));
    std::fs::write(&source, text).unwrap();
    compile(&source, name)
}

/// A file that is not what its name says.
pub fn file(name: &str, content: &[u8]) -> PathBuf {
    let path = directory().join(name);
    std::fs::write(path.with_extension("so"), content).unwrap();
    path
}

fn compile(source: &Path, name: &str) -> PathBuf {
    let path = directory().join(name);
    let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".to_owned());
    let output = Command::new(compiler)
        .args([
            "-std=c11",
            "-D_DEFAULT_SOURCE",
            "-O2",
            "-fPIC",
            "-shared",
            "-pthread",
            "-I",
        ])
        .arg(include())
        .arg("-o")
        .arg(path.with_extension("so"))
        .arg(source)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    path
}

/// Of this run.
fn directory() -> &'static Path {
    static DIRECTORY: OnceLock<PathBuf> = OnceLock::new();
    DIRECTORY.get_or_init(|| {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("libraries-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        path
    })
}

/// Where erl_nif.h is.
fn include() -> PathBuf {
    let usual = Path::new("/usr/lib/erlang/usr/include");
    if usual.join("erl_nif.h").exists() {
        return usual.to_owned();
    }
    let output = Command::new("erl")
        .args(["-noshell", "-eval", "io:put_chars(code:root_dir()), halt()."])
        .output()
        .unwrap();
    Path::new(str::from_utf8(&output.stdout).unwrap()).join("usr/include")
}
