//! Threads of this library run until the VM ends, so it must stay in memory although a purge of its module closes it:
//! `-z nodelete` makes the loader keep it.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("linux") {
        println!("cargo:rustc-cdylib-link-arg=-Wl,-z,nodelete");
    }
}
