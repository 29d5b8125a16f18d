//! Threads of this library run until the VM ends, so it must stay in memory although a purge of its module closes it:
//! `-z nodelete` makes the loader keep it.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    match std::env::var("CARGO_CFG_TARGET_OS").as_deref() {
        Ok("linux") => println!("cargo:rustc-cdylib-link-arg=-Wl,-z,nodelete"),
        // The VM has the enif functions; the linker of macOS must be told not to look for them.
        Ok("macos") => println!("cargo:rustc-cdylib-link-arg=-Wl,-undefined,dynamic_lookup"),
        _ => {}
    }
}
