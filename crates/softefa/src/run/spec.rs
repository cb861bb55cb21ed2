//! `spec.json`: what a fabric is, for people and for programs that look at a live one.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use softefa_fabric::Model;

use super::error::Error;

/// Name of the file in the run directory.
pub(super) const FILE: &str = "spec.json";
/// Schema that this version writes.
const SCHEMA: &str = "softefa.spec.v1";

/// What a fabric is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Spec {
    /// Schema of this file: `softefa.spec.v1`.
    pub schema: String,
    /// Name of the fabric.
    pub name: String,
    /// When it was made, seconds since 1970.
    pub made_unix_s: u64,
    /// Process id of the front.
    pub front_pid: i32,
    /// Process id of the keeper.
    pub keeper_pid: i32,
    /// Emulated hosts.
    pub nodes: u32,
    /// The instance type that they look like.
    pub shape: String,
    /// Seed of everything that is random.
    pub seed: u64,
    /// The network's timing, nanoseconds.
    #[serde(with = "ModelFields")]
    pub model: Model,
    /// The devices of each node, in the order of their numbers.
    pub devices: Vec<Device>,
    /// The libfabric that commands find.
    pub libfabric: Option<PathBuf>,
    /// Directory that the loader searches for it, where it has to be told.
    pub libfabric_search: Option<PathBuf>,
    /// Directory of its provider libraries, where `efa` is one.
    pub libfabric_providers: Option<PathBuf>,
}

/// One NIC of each node.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Device {
    /// Its name.
    pub name: String,
    /// Nominal rate, bits per second.
    pub rate_bps: u64,
}

impl Spec {
    /// The schema that this version writes.
    pub(super) fn schema() -> String {
        SCHEMA.into()
    }

    /// Reads the one of a run directory.
    ///
    /// # Errors
    /// [`Error::NotUp`] when there is none; when it is not of this version.
    pub fn read(directory: &Path) -> Result<Self, Error> {
        let path = directory.join(FILE);
        let text = fs::read(&path).map_err(|e| match e.kind() {
            // It is the last file to be written.
            std::io::ErrorKind::NotFound => {
                Error::NotUp(directory.file_name().unwrap_or_default().to_string_lossy().into_owned())
            }
            _ => Error::at("read", &path, e),
        })?;
        let spec: Self = serde_json::from_slice(&text).map_err(|e| Error::at("read", &path, e))?;
        if spec.schema != SCHEMA {
            let other = std::io::Error::other(format!("it is {}, not {SCHEMA}", spec.schema));
            return Err(Error::at("read", &path, other));
        }
        Ok(spec)
    }

    /// Writes it, so that no reader ever sees half of it.
    pub(super) fn write(&self, directory: &Path) -> Result<(), Error> {
        let (path, draft) = (directory.join(FILE), directory.join(".spec.json"));
        let mut text = serde_json::to_vec_pretty(self).map_err(|e| Error::at("write", &path, e))?;
        text.push(b'\n');
        let written = fs::write(&draft, text).and_then(|()| fs::rename(&draft, &path));
        written.map_err(|e| Error::at("write", &path, e))
    }
}

/// The fields of [`Model`] in JSON. The compiler checks that none is missing.
#[derive(Serialize, Deserialize)]
#[serde(remote = "Model")]
pub(super) struct ModelFields {
    base_ns: u64,
    jitter_ns: u64,
    tail_ppm: u64,
    tail_min_ns: u64,
    tail_max_ns: u64,
    commit_ns: u64,
    unresponsive_ns: u64,
    retransmit_ns: u64,
    rnr_wait_ns: u64,
    goodput_permille: u64,
    loopback: u64,
    rated: u64,
}
