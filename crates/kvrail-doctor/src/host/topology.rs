//! The question what the host is made of: NUMA nodes, PCIe tree, GPUs, NICs.

use kvrail_topology::{Topology, capture};

use super::{Answer, Host, Lack, Live, Question};

struct Sysfs;

impl Host {
    /// The host's topology. What a bundle holds of it is the capture that `kvrail topo --capture` writes.
    ///
    /// # Errors
    /// Why it cannot be read.
    pub fn topology(&self) -> Answer<Topology> {
        let text = self.ask(&Sysfs)?;
        Topology::read_capture(&text).map_err(|error| Lack::Failed(error.to_string()))
    }
}

impl Question for Sysfs {
    const SECTION: &'static str = "topology";
    type Answer = String;

    fn key(&self) -> String {
        "/sys".into()
    }

    fn ask(&self, live: &Live) -> Answer<String> {
        let root = live.path("/sys");
        root.metadata()?;
        capture(&root, &[]).map_err(|error| Lack::Failed(error.to_string()))
    }
}
