//! What a library's file says before it is opened: whether it is one for this machine, and what it imports.

use object::read::elf::{ElfFile64, FileHeader};
use object::{LittleEndian, Object, ObjectSymbol, elf};
use snakepit_wire::control::Stage;

/// Why a file is not a library for this machine.
pub type Unfit = (Stage, String);

/// The header of a library for this machine.
pub fn fits(bytes: &[u8]) -> Result<&elf::FileHeader64<LittleEndian>, Unfit> {
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
    let header = elf::FileHeader64::<LittleEndian>::parse(bytes).map_err(|error| no_library(&error.to_string()))?;
    let (machine, name) = (header.e_machine(LittleEndian), std::env::consts::ARCH);
    let ours = match name {
        "x86_64" => machine == elf::EM_X86_64,
        "aarch64" => machine == elf::EM_AARCH64,
        _ => true,
    };
    if !ours || !header.is_little_endian() {
        return Err((
            Stage::WrongArchitecture,
            format!("it is a library for {}; this machine is {name}", processor(machine)),
        ));
    }
    if header.e_type(LittleEndian) != elf::ET_DYN {
        return Err(no_library("it is an ELF file of another kind"));
    }
    Ok(header)
}

fn processor(machine: u16) -> String {
    let known = match machine {
        elf::EM_X86_64 => "x86_64",
        elf::EM_AARCH64 => "aarch64",
        elf::EM_386 => "i386",
        elf::EM_ARM => "arm",
        elf::EM_RISCV => "riscv",
        elf::EM_PPC64 => "powerpc64",
        elf::EM_S390 => "s390",
        _ => return format!("processor {machine}"),
    };
    known.to_owned()
}

/// The `enif_*` functions that a library imports.
pub fn imports(bytes: &[u8]) -> Result<Vec<String>, Unfit> {
    fits(bytes)?;
    let file = ElfFile64::<LittleEndian>::parse(bytes).map_err(|error| {
        let message = format!("the file is not a shared library: {error}");
        (Stage::NotALibrary, message)
    })?;
    let imported = file.dynamic_symbols().filter(|symbol| symbol.is_undefined());
    Ok(imported
        .filter_map(|symbol| symbol.name().ok())
        .filter(|name| name.starts_with("enif_"))
        .map(str::to_owned)
        .collect())
}
