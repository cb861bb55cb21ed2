//! Which release of libfabric a library is, from its file name and its symbol versions.
//!
//! libfabric raises the library's minor number with every feature release (libtool's `-version-info` in its
//! Makefile.am): 1.17 is `libfabric.so.1.20.x`, 2.0 is `.1.26`, 2.5 is `.1.31`. Where the file has no such name, the
//! highest version of `fi_getinfo` narrows it down (libfabric.map.in).

use std::fmt;
use std::path::Path;

/// A release, or what is known of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Release {
    /// Feature release, as in `v2.5`.
    Exact {
        /// `2` of 2.5.
        major: u32,
        /// `5` of 2.5.
        minor: u32,
    },
    /// One of the releases from the first to the last, as `(major, minor)`; no last = and later.
    Between {
        /// The earliest.
        first: (u32, u32),
        /// The latest.
        last: Option<(u32, u32)>,
    },
}

/// Library minor number of v1.14; each feature release adds one, and v2.0 follows v1.22.
const MINOR_OF_1_14: u32 = 17;
/// Library minor number of v2.0.
const MINOR_OF_2_0: u32 = 26;

/// First release with each highest symbol version, `FABRIC_1.n`.
const FIRST: [(u32, (u32, u32)); 5] = [(6, (1, 14)), (7, (1, 20)), (8, (2, 0)), (9, (2, 5)), (10, (2, 7))];

impl Release {
    /// The release of a library: from its real file name, else from the symbol versions that it defines.
    #[must_use]
    pub fn of<'a>(library: &Path, versions: impl Iterator<Item = &'a str>) -> Option<Self> {
        let real = library.canonicalize().unwrap_or_else(|_| library.into());
        real.file_name()
            .and_then(|name| Self::of_name(name.to_str()?))
            .or_else(|| Self::of_versions(versions))
    }

    /// From a file name, as in `libfabric.so.1.31.0`; none when it does not tell.
    #[must_use]
    pub fn of_name(name: &str) -> Option<Self> {
        let mut numbers = name.strip_prefix("libfabric.so.1.")?.split('.');
        let minor: u32 = numbers.next()?.parse().ok()?;
        match minor {
            MINOR_OF_2_0.. => Some(Self::Exact { major: 2, minor: minor - MINOR_OF_2_0 }),
            MINOR_OF_1_14.. => Some(Self::Exact { major: 1, minor: minor - MINOR_OF_1_14 + 14 }),
            _ => None,
        }
    }

    /// From the names of the symbol versions that a library defines, as in `FABRIC_1.9`.
    #[must_use]
    pub fn of_versions<'a>(versions: impl Iterator<Item = &'a str>) -> Option<Self> {
        let highest = versions.filter_map(|v| v.strip_prefix("FABRIC_1.")?.parse::<u32>().ok()).max()?;
        let at = FIRST.iter().rposition(|(version, _)| *version <= highest)?;
        let before =
            |(major, minor): (u32, u32)| if (major, minor) == (2, 0) { (1, 22) } else { (major, minor - 1) };
        Some(Self::Between { first: FIRST[at].1, last: FIRST.get(at + 1).map(|(_, next)| before(*next)) })
    }
}

impl fmt::Display for Release {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact { major, minor } => write!(f, "v{major}.{minor}"),
            Self::Between { first: (a, b), last: Some((c, d)) } => write!(f, "v{a}.{b} to v{c}.{d}"),
            Self::Between { first: (a, b), last: None } => write!(f, "v{a}.{b} or later"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_names_tell_the_release() {
        for (name, release) in [
            ("libfabric.so.1.17.1", "v1.14"),
            ("libfabric.so.1.20.0", "v1.17"),
            ("libfabric.so.1.25.0", "v1.22"),
            ("libfabric.so.1.26.0", "v2.0"),
            ("libfabric.so.1.31.1", "v2.5"),
        ] {
            assert_eq!(Release::of_name(name).unwrap().to_string(), release, "{name}");
        }
        for name in ["libfabric.so.1", "libfabric.so.1.", "libfabric.so.1.3.2", "libc.so.6"] {
            assert_eq!(Release::of_name(name), None, "{name}");
        }
    }

    #[test]
    fn symbol_versions_narrow_it_down() {
        let of = |versions: &[&str]| Release::of_versions(versions.iter().copied()).unwrap().to_string();
        assert_eq!(of(&["FABRIC_1.0", "FABRIC_1.6"]), "v1.14 to v1.19");
        assert_eq!(of(&["FABRIC_1.7"]), "v1.20 to v1.22");
        assert_eq!(of(&["FABRIC_1.9", "FABRIC_1.8"]), "v2.5 to v2.6");
        assert_eq!(of(&["FABRIC_1.12"]), "v2.7 or later");
        assert_eq!(Release::of_versions(["GLIBC_2.17"].into_iter()), None);
    }
}
