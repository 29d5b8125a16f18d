//! The library that a worker loads finds its `enif_*` functions in the executable: the linker must keep and export them.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rustc-link-arg-bins=-Wl,--export-dynamic-symbol=enif_*");
}
