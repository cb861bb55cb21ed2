//! What a shared library says about itself: machine, imports and exports with their versions, search paths.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use object::elf::{
    self, DT_NEEDED, DT_RPATH, DT_RUNPATH, DT_SONAME, EM_AARCH64, EM_X86_64, FileHeader64, SHN_UNDEF,
    STB_WEAK,
};
use object::read::elf::{Dyn, FileHeader, Sym};
use object::{Endianness, SectionIndex};

/// A file that cannot be read, or is no 64-bit ELF library.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{} is no library that can be read: {why}", path.display())]
pub struct Unreadable {
    /// The file.
    pub path: PathBuf,
    /// What the system or the parser says.
    pub why: String,
}

/// The parts of a shared library that decide whether it can be loaded.
#[derive(Clone, Debug, Default)]
pub struct Elf {
    /// ELF machine number.
    pub machine: u16,
    /// Its own name.
    pub soname: Option<String>,
    /// Libraries that it needs.
    pub needed: Vec<String>,
    /// Directories that its `DT_RPATH` puts before `LD_LIBRARY_PATH`.
    pub rpath: Option<String>,
    /// Directories that its `DT_RUNPATH` puts behind `LD_LIBRARY_PATH`.
    pub runpath: Option<String>,
    /// Symbols that it takes from others.
    pub imports: Vec<Import>,
    /// Symbols that it gives, with their versions.
    pub exports: BTreeSet<(String, Option<String>)>,
    /// Versions that it defines.
    pub versions: BTreeSet<String>,
}

/// A symbol that a library takes from another.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Import {
    /// Its name.
    pub symbol: String,
    /// The version that it was linked against.
    pub version: Option<String>,
    /// The library that has to define that version.
    pub library: Option<String>,
    /// Whether the library can do without it.
    pub weak: bool,
}

impl std::fmt::Display for Import {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.symbol)?;
        self.version.as_ref().map_or(Ok(()), |version| write!(f, "@{version}"))
    }
}

/// ELF machine number of the machine that this program runs on.
pub const HOST: u16 = if cfg!(target_arch = "aarch64") { EM_AARCH64 } else { EM_X86_64 };

/// A machine's name, as in `x86-64`.
#[must_use]
pub fn machine_name(machine: u16) -> String {
    match machine {
        EM_X86_64 => "x86-64".into(),
        EM_AARCH64 => "aarch64".into(),
        elf::EM_386 => "i386".into(),
        elf::EM_PPC64 => "ppc64".into(),
        other => format!("ELF machine {other}"),
    }
}

impl Elf {
    /// Reads a file.
    ///
    /// # Errors
    /// When it cannot be read or is no 64-bit ELF library.
    pub fn read(path: &Path) -> Result<Self, Unreadable> {
        let unreadable = |why: String| Unreadable { path: path.into(), why };
        let data = std::fs::read(path).map_err(|e| unreadable(e.to_string()))?;
        Self::parse(&data).map_err(|e| unreadable(e.to_string()))
    }

    /// Reads the bytes of a file.
    ///
    /// # Errors
    /// When they are no 64-bit ELF library, or one that lies about itself.
    pub fn parse(data: &[u8]) -> object::Result<Self> {
        let header = FileHeader64::<Endianness>::parse(data)?;
        let endian = header.endian()?;
        let sections = header.sections(endian, data)?;
        let mut elf = Self { machine: header.e_machine(endian), ..Self::default() };
        if let Some((entries, link)) = sections.dynamic(endian, data)? {
            let strings = sections.strings(endian, data, link)?;
            for entry in entries {
                let text =
                    || entry.string(endian, strings).ok().map(|s| String::from_utf8_lossy(s).into_owned());
                match u32::try_from(entry.d_tag(endian)).unwrap_or(0) {
                    DT_SONAME => elf.soname = text(),
                    DT_NEEDED => elf.needed.extend(text()),
                    DT_RPATH => elf.rpath = text(),
                    DT_RUNPATH => elf.runpath = text(),
                    _ => {}
                }
            }
        }
        let symbols = sections.symbols(endian, data, elf::SHT_DYNSYM)?;
        let versions = sections.versions(endian, data)?;
        for (index, symbol) in symbols.enumerate() {
            let name = symbols.symbol_name(endian, symbol)?;
            if name.is_empty() {
                continue;
            }
            let name = String::from_utf8_lossy(name).into_owned();
            let version = match &versions {
                Some(table) => table.version(table.version_index(endian, index))?,
                None => None,
            };
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            let version_name = version.map(|v| text(v.name()));
            if symbol.st_shndx(endian) == SHN_UNDEF {
                elf.imports.push(Import {
                    symbol: name,
                    version: version_name,
                    library: version.and_then(|v| v.file()).map(text),
                    weak: symbol.st_bind() == STB_WEAK,
                });
            } else {
                elf.exports.insert((name, version_name));
            }
        }
        if let Some((definitions, link)) = sections.gnu_verdef(endian, data)? {
            elf.define(endian, definitions, data, &sections, link)?;
        }
        elf.imports.sort();
        Ok(elf)
    }

    fn define(
        &mut self,
        endian: Endianness,
        mut definitions: object::read::elf::VerdefIterator<'_, FileHeader64<Endianness>>,
        data: &[u8],
        sections: &object::read::elf::SectionTable<'_, FileHeader64<Endianness>>,
        link: SectionIndex,
    ) -> object::Result<()> {
        let strings = sections.strings(endian, data, link)?;
        while let Some((definition, mut names)) = definitions.next()? {
            // The first definition is the library's own name.
            if definition.vd_flags.get(endian) & elf::VER_FLG_BASE == 0
                && let Some(name) = names.next()?
            {
                self.versions.insert(String::from_utf8_lossy(name.name(endian, strings)?).into_owned());
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_s_c_library_is_read() {
        let libc = std::fs::read_to_string("/proc/self/maps").unwrap();
        let libc =
            libc.lines().find_map(|l| l.split_whitespace().last().filter(|p| p.contains("/libc.so.6")));
        let elf = Elf::read(Path::new(libc.unwrap())).unwrap();
        assert_eq!((elf.machine, elf.soname.as_deref()), (HOST, Some("libc.so.6")));
        assert!(
            elf.versions.contains("GLIBC_2.17") && !elf.versions.contains("libc.so.6"),
            "{:?}",
            elf.versions
        );
        assert!(elf.exports.iter().any(|(name, version)| name == "memcpy" && version.is_some()));
        assert!(elf.imports.iter().all(|import| !import.symbol.is_empty()));
    }

    #[test]
    fn what_is_no_library_is_an_error() {
        for bytes in [&b""[..], b"#!/bin/sh\n", b"\x7fELF\x02\x01\x01", &[0x7f; 4096]] {
            assert!(Elf::parse(bytes).is_err());
        }
    }
}
