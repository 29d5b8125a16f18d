//! What a library's file says before it is opened: whether it is one for this machine, and what it imports.

use object::read::elf::{ElfFile64, FileHeader};
use object::{Architecture, Endianness, Object, ObjectKind, ObjectSymbol, elf};
use snakepit_wire::control::Stage;

/// Why a file is not a library for this machine.
pub type Unfit = (Stage, String);

/// The `enif_*` functions that a library imports.
pub fn imports(bytes: &[u8]) -> Result<Vec<String>, Unfit> {
    let no_library = |why: &str| (Stage::NotALibrary, format!("the file is not a shared library: {why}"));
    if !bytes.starts_with(&elf::ELFMAG) {
        return Err(no_library("it is no ELF file"));
    }
    if bytes.get(4) == Some(&elf::ELFCLASS32) {
        return Err((
            Stage::WrongArchitecture,
            "it is a 32-bit library; this is a 64-bit machine".to_owned(),
        ));
    }
    let file = match elf::FileHeader64::<Endianness>::parse(bytes).and_then(|_| ElfFile64::<Endianness>::parse(bytes))
    {
        Ok(file) => file,
        Err(error) => return Err(no_library(&error.to_string())),
    };
    let (architecture, name) = (file.architecture(), std::env::consts::ARCH);
    let ours = match name {
        "x86_64" => architecture == Architecture::X86_64,
        "aarch64" => architecture == Architecture::Aarch64,
        _ => true,
    };
    if !ours {
        return Err((
            Stage::WrongArchitecture,
            format!("it is a library for {architecture:?}; this machine is {name}"),
        ));
    }
    if file.kind() != ObjectKind::Dynamic {
        return Err(no_library("it is an ELF file of another kind"));
    }
    let imported = file.dynamic_symbols().filter(|symbol| symbol.is_undefined());
    Ok(imported
        .filter_map(|symbol| symbol.name().ok())
        .filter(|name| name.starts_with("enif_"))
        .map(str::to_owned)
        .collect())
}
