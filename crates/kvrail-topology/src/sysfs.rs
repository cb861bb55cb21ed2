//! Reads a topology from a sysfs tree.

pub(crate) mod devices;
mod nics;

use std::collections::BTreeSet;

use crate::files::{Fault, Tree};
use crate::model::{Facts, NUMA_NODES_MAX, NumaNode};
use crate::sets;

/// Reads everything; what is missing or bad becomes a warning.
pub(crate) fn read(tree: &Tree<'_>) -> Facts {
    let mut reader = Reader { tree, facts: Facts::default(), without_numa: BTreeSet::new() };
    reader.facts.machine = reader.text("class/dmi/id/product_name").filter(|name| !name.is_empty());
    reader.numa_nodes();
    reader.gpus();
    reader.rdma_devices();
    reader.interfaces();
    reader.bridges();
    reader.report_missing_nodes();
    reader.facts
}

struct Reader<'a> {
    tree: &'a Tree<'a>,
    facts: Facts,
    /// Devices that name no NUMA node on a host with several.
    without_numa: BTreeSet<String>,
}

impl Reader<'_> {
    fn warn(&mut self, place: &str, what: impl Into<String>) {
        self.facts.warn(place, what);
    }

    /// The value, or a warning and what stands for nothing.
    fn or_warn<T: Default>(&mut self, read: Result<T, Fault>) -> T {
        read.unwrap_or_else(|Fault { place, what }| {
            self.facts.warn(place, what);
            T::default()
        })
    }

    /// The text of a file that may be missing.
    fn text(&mut self, path: &str) -> Option<String> {
        let read = self.tree.text(path);
        self.or_warn(read)
    }

    fn names(&mut self, path: &str) -> Vec<String> {
        let read = self.tree.names(path);
        self.or_warn(read)
    }

    /// What `parse` makes of a file's text; a warning with `otherwise` where the file is there but makes no sense.
    fn parsed<T>(&mut self, path: &str, otherwise: &str, parse: impl Fn(&str) -> Option<T>) -> Option<T> {
        let text = self.text(path)?;
        let value = parse(&text);
        if value.is_none() {
            self.warn(path, format!("`{}` makes no sense; {otherwise}", shown(&text)));
        }
        value
    }

    fn numa_nodes(&mut self) {
        const NODES: &str = "devices/system/node";
        let names = self.names(NODES);
        let mut ids: Vec<u32> =
            names.iter().filter_map(|name| name.strip_prefix("node")?.parse().ok()).collect();
        ids.sort_unstable();
        ids.truncate(NUMA_NODES_MAX);
        if ids.is_empty() {
            self.warn(NODES, "no NUMA node is shown; devices of different root complexes cannot be compared");
        }
        for &id in &ids {
            let path = format!("{NODES}/node{id}");
            let cpus = self.parsed(&format!("{path}/cpulist"), "its CPUs are left out", sets::parse_list);
            let memory = self.parsed(&format!("{path}/meminfo"), "its memory is left out", memory_bytes);
            let row = self.parsed(&format!("{path}/distance"), "its distances are left out", |text| {
                text.split_whitespace().map(|it| it.parse().ok()).collect::<Option<Vec<u32>>>()
            });
            // One entry for each node that is online, in order.
            let row = row.filter(|row| row.len() == ids.len()).unwrap_or_default();
            self.facts.numa_nodes.push(NumaNode {
                id,
                cpus: cpus.unwrap_or_default(),
                memory_bytes: memory,
                distances: ids.iter().copied().zip(row).collect(),
            });
        }
    }
}

/// The beginning of a text, to be quoted.
fn shown(text: &str) -> String {
    text.chars().take(40).flat_map(char::escape_default).collect()
}

/// `MemTotal` of a node's `meminfo`.
fn memory_bytes(text: &str) -> Option<u64> {
    let (_, rest) = text.split_once("MemTotal:")?;
    let kib: u64 = rest.split_whitespace().next()?.parse().ok()?;
    kib.checked_mul(1024)
}
