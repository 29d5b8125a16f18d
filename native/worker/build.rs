//! The library that a worker loads finds its `enif_*` functions in the executable: the linker must keep and export them.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=c");
    cc::Build::new()
        .file("c/variadic.c")
        .flag("-fexceptions")
        .warnings(true)
        .link_lib_modifier("+whole-archive")
        .compile("snakepit_variadic");
    for kind in ["bins", "tests", "benches"] {
        println!("cargo:rustc-link-arg-{kind}=-Wl,--export-dynamic-symbol=enif_*");
    }
}
