//! The tables of a library that the loader reads before it maps it: a few kilobytes of a file that may have a hundred megabytes.
//!
//! [`Elf`](crate::elf::Elf) says more, symbol by symbol, and reads the whole file for it.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::Path;

use object::elf::{
    self, DT_NEEDED, DT_RPATH, DT_RUNPATH, DT_SONAME, FileHeader64, SHN_UNDEF, SHT_DYNAMIC, SHT_DYNSYM,
    SHT_GNU_VERDEF, SHT_GNU_VERNEED, VER_FLG_WEAK,
};
use object::read::elf::{Dyn, FileHeader, SectionHeader, SectionTable, Sym};
use object::read::{ReadCache, ReadRef, StringTable};
use object::{Endianness, SectionIndex};

use crate::elf::Unreadable;

/// What the loader reads of a library before it maps it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Tables {
    /// ELF machine number.
    pub machine: u16,
    /// Its own name.
    pub soname: Option<String>,
    /// Libraries that it needs, in order.
    pub needed: Vec<String>,
    /// `DT_RPATH`, as it stands.
    pub rpath: Option<String>,
    /// `DT_RUNPATH`, as it stands.
    pub runpath: Option<String>,
    /// Versions without which the loader refuses it, each with the library that has to define it.
    pub requires: BTreeSet<(String, String)>,
    /// Versions that it defines.
    pub defines: BTreeSet<String>,
    /// Those of the symbols that were asked for that it defines.
    pub symbols: BTreeSet<String>,
}

impl Tables {
    /// Reads them, and looks for some symbols where the library's own name is one of those that have them.
    ///
    /// # Errors
    /// When the file cannot be read or is no 64-bit ELF library, or one that lies about itself.
    pub fn read(path: &Path, symbols: &[&str], of: impl Fn(&str) -> bool) -> Result<Self, Unreadable> {
        let unreadable = |why: String| Unreadable { path: path.into(), why };
        let file = File::open(path).map_err(|error| unreadable(error.to_string()))?;
        let cache = ReadCache::new(file);
        Self::parse(&cache, symbols, of).map_err(|error| unreadable(error.to_string()))
    }

    fn parse<'data, R: ReadRef<'data>>(
        data: R,
        symbols: &[&str],
        of: impl Fn(&str) -> bool,
    ) -> object::Result<Self> {
        let header = FileHeader64::<Endianness>::parse(data)?;
        let endian = header.endian()?;
        let sections = header.sections(endian, data)?;
        let mut tables = Self { machine: header.e_machine(endian), ..Self::default() };
        for section in sections.iter() {
            let strings = || strings(&sections, endian, data, section.link(endian));
            match section.sh_type(endian) {
                SHT_DYNAMIC => {
                    if let Some((entries, _)) = section.dynamic(endian, data)? {
                        tables.take_dynamic(endian, entries, strings()?);
                    }
                }
                SHT_GNU_VERNEED => {
                    if let Some((mut needs, _)) = section.gnu_verneed(endian, data)? {
                        let strings = strings()?;
                        while let Some((need, mut versions)) = needs.next()? {
                            let library = text(need.file(endian, strings)?);
                            while let Some(version) = versions.next()? {
                                if version.vna_flags.get(endian) & VER_FLG_WEAK == 0 {
                                    let name = text(version.name(endian, strings)?);
                                    tables.requires.insert((library.clone(), name));
                                }
                            }
                        }
                    }
                }
                SHT_GNU_VERDEF => {
                    if let Some((mut definitions, _)) = section.gnu_verdef(endian, data)? {
                        let strings = strings()?;
                        while let Some((definition, mut names)) = definitions.next()? {
                            // The first definition is the library's own name.
                            if definition.vd_flags.get(endian) & elf::VER_FLG_BASE == 0
                                && let Some(name) = names.next()?
                            {
                                tables.defines.insert(text(name.name(endian, strings)?));
                            }
                        }
                    }
                }
                _ => {}
            }
        }
        if !symbols.is_empty() && tables.soname.as_deref().is_some_and(of) {
            for section in sections.iter().filter(|section| section.sh_type(endian) == SHT_DYNSYM) {
                let strings = strings(&sections, endian, data, section.link(endian))?;
                let entries: &[elf::Sym64<Endianness>] = section.data_as_array(endian, data)?;
                let defined = entries.iter().filter(|symbol| symbol.st_shndx(endian) != SHN_UNDEF);
                for name in defined.filter_map(|symbol| symbol.name(endian, strings).ok()) {
                    if let Some(wanted) = symbols.iter().find(|wanted| wanted.as_bytes() == name) {
                        tables.symbols.insert((*wanted).to_owned());
                    }
                }
            }
        }
        Ok(tables)
    }

    fn take_dynamic(
        &mut self,
        endian: Endianness,
        entries: &[elf::Dyn64<Endianness>],
        strings: StringTable<'_>,
    ) {
        for entry in entries {
            let value = || entry.string(endian, strings).ok().map(text);
            match u32::try_from(entry.d_tag(endian)).unwrap_or(0) {
                DT_SONAME => self.soname = value(),
                DT_NEEDED => self.needed.extend(value()),
                DT_RPATH => self.rpath = value(),
                DT_RUNPATH => self.runpath = value(),
                _ => {}
            }
        }
    }
}

/// A table of strings, read at once: string by string every one would be a read of its own.
fn strings<'data, R: ReadRef<'data>>(
    sections: &SectionTable<'data, FileHeader64<Endianness>, R>,
    endian: Endianness,
    data: R,
    section: SectionIndex,
) -> object::Result<StringTable<'data>> {
    let bytes = sections.section(section)?.data(endian, data)?;
    Ok(StringTable::new(bytes, 0, bytes.len() as u64))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::elf::Elf;

    #[test]
    fn they_say_what_the_whole_file_says() {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let mapped: BTreeSet<&str> = maps
            .lines()
            .filter_map(|line| line.split_whitespace().last())
            .filter(|p| p.contains(".so"))
            .collect();
        assert!(!mapped.is_empty());
        for path in mapped {
            let whole = Elf::read(Path::new(path)).unwrap();
            let tables = Tables::read(Path::new(path), &["memcpy"], |name| name == "libc.so.6").unwrap();
            assert_eq!(
                (tables.machine, &tables.soname, &tables.needed),
                (whole.machine, &whole.soname, &whole.needed)
            );
            assert_eq!((&tables.rpath, &tables.runpath), (&whole.rpath, &whole.runpath));
            assert_eq!(tables.defines, whole.versions, "{path}");
            let strong = whole.imports.iter().filter(|import| !import.weak);
            for import in strong {
                if let (Some(library), Some(version)) = (&import.library, &import.version) {
                    assert!(tables.requires.contains(&(library.clone(), version.clone())), "{path} {import}");
                }
            }
            assert_eq!(tables.symbols.contains("memcpy"), path.contains("/libc.so.6"), "{path}");
        }
    }

    #[test]
    fn what_is_no_library_is_an_error() {
        for bytes in [&b""[..], b"#!/bin/sh\n", b"\x7fELF\x02\x01\x01", &[0x7f; 4096]] {
            assert!(Tables::parse(bytes, &[], |_| true).is_err());
        }
        assert!(Tables::read(Path::new("/nonexistent"), &[], |_| true).is_err());
    }
}
