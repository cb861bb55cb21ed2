//! What a shared library's own tables say, without loading it.

use std::collections::{BTreeMap, BTreeSet};

use kvrail_sys::tables::Tables;
use serde::{Deserialize, Serialize};

use super::{Answer, Host, Lack, Live, Question};

/// Symbols that are kept by name: what checks ask for by hand. All others would make a bundle large and say nothing.
const KEPT: [&str; 6] = [
    "fi_getinfo",
    "fi_fabric",
    "ucp_init_version",
    "ibv_get_device_list",
    "nixl_capi_create_agent",
    "efadv_query_device",
];

/// How the libraries are called that have them.
const KEPT_IN: [&str; 5] = ["libfabric", "libucp", "libibverbs", "libnixl_capi", "libefa"];

/// The parts of a shared library that decide whether it can be loaded, and what it is.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ElfFacts {
    /// ELF machine number.
    pub machine: u16,
    /// Its own name.
    pub soname: Option<String>,
    /// `DT_RPATH`, as it stands.
    pub rpath: Option<String>,
    /// `DT_RUNPATH`, as it stands.
    pub runpath: Option<String>,
    /// Libraries that it needs, in order, with the symbol versions that it takes from each.
    pub needed: Vec<Needed>,
    /// Symbol versions that it defines.
    pub versions: BTreeSet<String>,
    /// Well-known symbols that it defines.
    pub symbols: BTreeSet<String>,
    /// Length of the file.
    pub bytes: u64,
}

/// A library that another one needs.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Needed {
    /// Its name, as in `libfabric.so.1`.
    pub name: String,
    /// Versions of its symbols without which it cannot be loaded (`FABRIC_1.10`).
    pub versions: BTreeSet<String>,
}

impl ElfFacts {
    /// The highest `n` of the versions `PREFIXn` that it defines, as in `FABRIC_1.`.
    #[must_use]
    pub fn level(&self, prefix: &str) -> Option<u32> {
        level(&self.versions, prefix)
    }

    /// The library of this name that it needs.
    #[must_use]
    pub fn needs(&self, name: &str) -> Option<&Needed> {
        self.needed.iter().find(|needed| needed.name == name)
    }
}

impl Needed {
    /// The highest `n` of the versions `PREFIXn` that are needed of it.
    #[must_use]
    pub fn level(&self, prefix: &str) -> Option<u32> {
        level(&self.versions, prefix)
    }
}

fn level(versions: &BTreeSet<String>, prefix: &str) -> Option<u32> {
    versions.iter().filter_map(|version| version.strip_prefix(prefix)?.parse().ok()).max()
}

impl Host {
    /// What a shared library's tables say.
    ///
    /// # Errors
    /// Why they cannot be read; [`Lack::Failed`] with the parser's words for what is no 64-bit ELF library.
    pub fn elf(&self, path: &str) -> Answer<ElfFacts> {
        self.ask(&OfLibrary(path))
    }
}

struct OfLibrary<'a>(&'a str);

impl Question for OfLibrary<'_> {
    const SECTION: &'static str = "elf";
    type Answer = ElfFacts;

    fn key(&self) -> String {
        self.0.into()
    }

    fn ask(&self, live: &Live) -> Answer<ElfFacts> {
        let path = live.path(self.0);
        let metadata = path.metadata()?;
        if !metadata.is_file() {
            return Err(Lack::Failed("not a file".into()));
        }
        let has_kept = |soname: &str| KEPT_IN.iter().any(|name| soname.starts_with(name));
        let tables = Tables::read(&path, &KEPT, has_kept).map_err(|error| Lack::Failed(error.why))?;
        let mut versions: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
        for (library, version) in &tables.requires {
            versions.entry(library).or_default().insert(version.clone());
        }
        let needed = tables.needed.iter().map(|name| Needed {
            name: name.clone(),
            versions: versions.get(name.as_str()).cloned().unwrap_or_default(),
        });
        Ok(ElfFacts {
            machine: tables.machine,
            needed: needed.collect(),
            symbols: tables.symbols,
            soname: tables.soname,
            rpath: tables.rpath,
            runpath: tables.runpath,
            versions: tables.defines,
            bytes: metadata.len(),
        })
    }
}
