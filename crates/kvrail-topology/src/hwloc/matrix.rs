//! Distances between NUMA nodes: `<distances2 type="NUMANode" …>` of hwloc 2.x.

use std::collections::BTreeMap;

/// Most numbers of one matrix: 1,024 nodes squared.
const NUMBERS_MAX: usize = 1 << 20;

/// The matrix being read, and the last one of latencies that was read in full.
#[derive(Default)]
pub(super) struct Matrix {
    reading: Option<Part>,
    nodes: Vec<u32>,
    values: Vec<u32>,
    done: Option<(Vec<u32>, Vec<u32>)>,
}

#[derive(Clone, Copy)]
enum Part {
    Matrix,
    Nodes,
    Values,
}

impl Matrix {
    pub(super) fn begin(&mut self, element: &[u8], attribute: impl Fn(&str) -> Option<String>) {
        match (element, self.reading) {
            (b"distances2", _) => {
                let is = |name: &str, value: &str| attribute(name).is_none_or(|it| it == value);
                let wanted = is("type", "NUMANode") && is("indexing", "os") && is("name", "NUMALatency");
                self.reading = wanted.then_some(Part::Matrix);
                (self.nodes, self.values) = (Vec::new(), Vec::new());
            }
            (b"indexes", Some(_)) => self.reading = Some(Part::Nodes),
            (b"u64values", Some(_)) => self.reading = Some(Part::Values),
            _ => {}
        }
    }

    pub(super) fn text(&mut self, text: &str) {
        let into = match self.reading {
            Some(Part::Nodes) => &mut self.nodes,
            Some(Part::Values) => &mut self.values,
            _ => return,
        };
        let room = NUMBERS_MAX.saturating_sub(into.len());
        into.extend(text.split_whitespace().map_while(|it| it.parse::<u32>().ok()).take(room));
    }

    pub(super) fn end(&mut self, element: &[u8]) {
        match (element, self.reading) {
            (b"indexes" | b"u64values", Some(_)) => self.reading = Some(Part::Matrix),
            (b"distances2", Some(_)) => {
                self.reading = None;
                let (nodes, values) = (std::mem::take(&mut self.nodes), std::mem::take(&mut self.values));
                if nodes.len().checked_mul(nodes.len()) == Some(values.len()) {
                    self.done = Some((nodes, values));
                }
            }
            _ => {}
        }
    }

    /// Distances of `node` to each node.
    pub(super) fn row(&self, node: u32) -> BTreeMap<u32, u32> {
        let Some((nodes, values)) = &self.done else { return BTreeMap::new() };
        let Some(place) = nodes.iter().position(|it| *it == node) else { return BTreeMap::new() };
        let row = values.iter().skip(place * nodes.len()).take(nodes.len());
        nodes.iter().copied().zip(row.copied()).collect()
    }
}
