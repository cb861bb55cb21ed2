//! Python environments of a host, and the wheels of NIXL in them.

use std::sync::Mutex;

use crate::host::{ElfFacts, EntryKind, Host};

/// Packages that have NIXL's Python API: the old single one, and those by platform.
pub const PACKAGES: [&str; 4] = ["nixl", "nixl_cu12", "nixl_cu13", "nixl_rocm"];

/// A Python environment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Environment {
    /// Its root, where `bin/python3` is, with all links followed.
    pub root: String,
    /// Whether it is one of its own (venv, conda), not the system's.
    pub own: bool,
    /// Where its packages are, with all links followed.
    pub sites: Vec<String>,
}

/// A wheel of NIXL that is installed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Wheel {
    /// Where its packages are.
    pub site: String,
    /// The package, as in `nixl_cu12`.
    pub package: String,
    /// As in `1.5.1`.
    pub version: Option<String>,
    /// What auditwheel put beside it (`nixl_cu12.libs`).
    pub libs: Option<String>,
    /// Its own libraries (`.nixl_cu12.mesonpy.libs`).
    pub core: Option<String>,
}

impl Environment {
    /// The environment of a root, of its `python`, or of a directory of packages.
    #[must_use]
    pub fn at(host: &Host, path: &str) -> Option<Self> {
        let mut path = path.trim_end_matches('/');
        if let Some((above, name)) = path.rsplit_once('/')
            && name.starts_with("python")
            && let Some(root) = above.strip_suffix("/bin")
        {
            path = root;
        }
        let root = host.entry(if path.is_empty() { "/" } else { path }).ok()?;
        if root.kind != EntryKind::Directory {
            return None;
        }
        let root = root.real;
        let join = |name: &str| format!("{}/{name}", root.trim_end_matches('/'));
        let mut libraries = vec![join("lib"), join("lib64")];
        if root == "/usr" {
            libraries.push("/usr/local/lib".into());
        }
        let mut sites: Vec<String> = Vec::new();
        let mut add = |path: &str| {
            if let Ok(entry) = host.entry(path)
                && entry.kind == EntryKind::Directory
                && !sites.contains(&entry.real)
            {
                sites.push(entry.real);
            }
        };
        for library in &libraries {
            for name in host.names(library).unwrap_or_default() {
                if name.starts_with("python3") {
                    add(&format!("{library}/{name}/site-packages"));
                    add(&format!("{library}/{name}/dist-packages"));
                }
            }
        }
        let own = host.exists(&join("pyvenv.cfg")) || host.exists(&join("conda-meta"));
        if sites.is_empty() {
            let is_site = host
                .names(&root)
                .is_ok_and(|names| names.iter().any(|name| PACKAGES.contains(&name.as_str())));
            // `pip install --target` makes one.
            return is_site.then(|| Self { sites: vec![root.clone()], root, own: true });
        }
        Some(Self { root, own, sites })
    }

    /// Those that the user named, or else the active one, or else that of the first `python3` of `PATH`.
    #[must_use]
    pub fn all(host: &Host) -> Vec<Self> {
        let named = &host.scope().python;
        let mut roots: Vec<String> = named.clone();
        if roots.is_empty() {
            roots.extend(
                ["VIRTUAL_ENV", "CONDA_PREFIX"]
                    .into_iter()
                    .filter_map(|name| host.variable(name))
                    .map(Into::into),
            );
        }
        if roots.is_empty() {
            let bins = host.variable("PATH").unwrap_or("/usr/local/bin:/usr/bin").split(':');
            let python = bins.map(|bin| format!("{bin}/python3")).find(|python| host.exists(python));
            roots.extend(python.and_then(|python| {
                python
                    .strip_suffix("/bin/python3")
                    .map(|root| if root.is_empty() { "/usr".into() } else { root.to_owned() })
            }));
        }
        let mut all: Vec<Self> = Vec::new();
        for environment in roots.iter().filter_map(|root| Self::at(host, root)) {
            if !all.contains(&environment) {
                all.push(environment);
            }
        }
        all
    }

    /// Its Python.
    #[must_use]
    pub fn python(&self, host: &Host) -> String {
        let mut candidates =
            ["python3", "python"].map(|name| format!("{}/bin/{name}", self.root)).into_iter();
        candidates.find(|python| host.exists(python)).unwrap_or_else(|| "python3".into())
    }

    /// The wheels of NIXL in it.
    #[must_use]
    pub fn wheels(&self, host: &Host) -> Vec<Wheel> {
        let mut wheels = Vec::new();
        for site in &self.sites {
            let names = host.names(site).unwrap_or_default();
            for package in PACKAGES {
                let directory =
                    |name: String| Some(format!("{site}/{name}")).filter(|_| names.contains(&name));
                let (libs, core) =
                    (directory(format!("{package}.libs")), directory(format!(".{package}.mesonpy.libs")));
                let api = host.exists(&format!("{site}/{package}/_api.py"));
                if libs.is_none() && core.is_none() && !api {
                    continue;
                }
                let version = names.iter().find_map(|name| {
                    name.strip_prefix(package)?
                        .strip_prefix('-')?
                        .strip_suffix(".dist-info")
                        .map(str::to_owned)
                });
                wheels.push(Wheel { site: site.clone(), package: package.into(), version, libs, core });
            }
        }
        wheels
    }
}

impl Wheel {
    /// It, as people call it.
    #[must_use]
    pub fn name(&self) -> String {
        match &self.version {
            Some(version) => format!("{} {version}", self.package),
            None => self.package.clone(),
        }
    }

    /// The directories that have its shared libraries.
    fn directories(&self) -> Vec<String> {
        let mut directories = Vec::new();
        if let Some(libs) = &self.libs {
            directories.extend([libs.clone(), format!("{libs}/nixl"), format!("{libs}/ucx")]);
        }
        if let Some(core) = &self.core {
            directories.extend([core.clone(), format!("{core}/plugins")]);
        }
        directories.push(format!("{}/{}", self.site, self.package));
        directories
    }

    /// Its shared libraries, with what their tables say; links that lead nowhere have none.
    pub(super) fn objects(&self, host: &Host) -> Vec<(String, Option<ElfFacts>)> {
        let mut paths = Vec::new();
        for directory in self.directories() {
            for name in host.names(&directory).unwrap_or_default() {
                if name.contains(".so") {
                    paths.push(format!("{directory}/{name}"));
                }
            }
        }
        let objects = Mutex::new(Vec::with_capacity(paths.len()));
        std::thread::scope(|scope| {
            for part in paths.chunks(paths.len().div_ceil(4).max(1)) {
                let objects = &objects;
                scope.spawn(move || {
                    for path in part {
                        let facts = host.elf(path).ok();
                        objects
                            .lock()
                            .unwrap_or_else(std::sync::PoisonError::into_inner)
                            .push((path.clone(), facts));
                    }
                });
            }
        });
        let mut objects = objects.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        objects.sort_by(|a, b| a.0.cmp(&b.0));
        objects
    }

    /// Its plugins of some backends, wherever it has them.
    pub(super) fn plugins(&self, host: &Host, backends: &[&str]) -> Vec<(String, ElfFacts)> {
        let places = [
            self.libs.as_ref().map(|libs| format!("{libs}/nixl")),
            self.core.as_ref().map(|core| format!("{core}/plugins")),
        ];
        let paths = places
            .into_iter()
            .flatten()
            .flat_map(|place| backends.iter().map(move |backend| format!("{place}/libplugin_{backend}.so")));
        paths
            .filter_map(|path| Some((host.elf(&path).ok()?, path)))
            .map(|(facts, path)| (path, facts))
            .collect()
    }

    /// The module through which Python loads it.
    pub(super) fn bindings(&self, host: &Host) -> Option<String> {
        let directory = format!("{}/{}", self.site, self.package);
        let names = host.names(&directory).ok()?;
        let name = names.iter().find(|name| name.starts_with("_bindings.") && name.ends_with(".so"))?;
        Some(format!("{directory}/{name}"))
    }
}
