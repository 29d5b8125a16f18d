//! The library that a worker loads finds its `enif_*` functions in the executable: the linker must keep and export them.

/// What a library finds in the VM's executable: the NIF API, a name of the drivers' API that some use, and zlib.
const EXPORTED: [&str; 12] = [
    "enif_*",
    "erl_errno_id",
    "adler32*",
    "compress",
    "compress[2B]*",
    "crc32*",
    "deflate*",
    "get_crc_table",
    "inflate*",
    "uncompress",
    "uncompress2",
    "z[El]*",
];

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
        for symbols in EXPORTED {
            println!("cargo:rustc-link-arg-{kind}=-Wl,--export-dynamic-symbol={symbols}");
        }
    }
}
