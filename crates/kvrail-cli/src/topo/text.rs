//! The drawing for terminals: the tree, the distances, the rails; 100 columns, but for names that are longer.

use std::collections::BTreeMap;

use kvrail_topology::{GpuId, LinkState, NicId, Topology};

use super::paint::Paint;
use super::tables;
use super::view::{self, Part, Root, Switch};

/// Draws everything.
pub(super) fn draw(topology: &Topology, colours: bool) -> String {
    let paint = Paint(colours);
    let mut drawing = Drawing {
        topology,
        paint,
        served: view::gpus_of_nics(topology),
        name_width: topology.nics().iter().map(|nic| nic.name.chars().count()).max().unwrap_or(0).min(24),
        out: String::new(),
    };
    drawing.out += &format!("{}\n", paint.strong(&view::summary(topology)));
    drawing.tree();
    let mut out = drawing.out;
    for table in [
        tables::distances(topology, paint),
        tables::rails(topology, paint),
        tables::host_memory(topology, paint),
    ] {
        if !table.is_empty() {
            out += "\n";
            out += &table;
        }
    }
    let remarks = view::remarks(topology);
    if !remarks.is_empty() {
        out += "\n";
        remarks.iter().for_each(|remark| out += &format!("{remark}\n"));
    }
    out
}

struct Drawing<'a> {
    topology: &'a Topology,
    paint: Paint,
    served: BTreeMap<NicId, Vec<GpuId>>,
    name_width: usize,
    out: String,
}

impl Drawing<'_> {
    fn tree(&mut self) {
        for node in view::nodes(self.topology) {
            let title = match node.id {
                None => "NUMA node unknown".to_string(),
                Some(id) => {
                    let facts = self.topology.numa_node(id);
                    let mut said = vec![format!("NUMA node {id}")];
                    said.extend(
                        facts
                            .map(|it| it.cpu_list())
                            .filter(|it| !it.is_empty())
                            .map(|it| format!("CPUs {it}")),
                    );
                    let memory = facts.and_then(|it| it.memory_bytes);
                    said.extend(
                        memory.map(|bytes| format!("{:.1} GiB", bytes as f64 / f64::from(1u32 << 30))),
                    );
                    said.join(" · ")
                }
            };
            self.out += &format!("\n{}\n", self.paint.strong(&title));
            let last = node.roots.len();
            for (place, Root { root, parts }) in node.roots.iter().enumerate() {
                let title = match root {
                    Some(root) => format!("root complex {root}"),
                    None => "place not known".into(),
                };
                self.below("", place + 1 == last, &title, parts);
            }
            if node.roots.is_empty() {
                self.line("", true, &self.paint.faint("no GPU, no NIC"));
            }
        }
    }

    fn line(&mut self, indent: &str, last: bool, text: &str) {
        let branch = if last { "└─ " } else { "├─ " };
        self.out += &format!("{}{text}\n", self.paint.faint(&format!("{indent}{branch}")));
    }

    fn below(&mut self, indent: &str, last: bool, title: &str, parts: &[Part]) {
        // A root complex with one switch, as most have, takes one line.
        if let [Part::Switch(switch)] = parts {
            let title = format!("{title} · {}", switch_title(switch));
            return self.below(indent, last, &title, &switch.parts);
        }
        self.line(indent, last, title);
        let indent = format!("{indent}{}", if last { "   " } else { "│  " });
        for (place, part) in parts.iter().enumerate() {
            let last = place + 1 == parts.len();
            match part {
                Part::Switch(switch) => self.below(&indent, last, &switch_title(switch), &switch.parts),
                Part::Gpu(gpu) => self.line(&indent, last, &self.gpu(*gpu)),
                Part::Nic(nic) => self.line(&indent, last, &self.nic(*nic)),
            }
        }
    }

    fn gpu(&self, id: GpuId) -> String {
        let Some(gpu) = self.topology.gpu(id) else { return String::new() };
        let width = self.name_width;
        let name = self.paint.group(id.0, &format!("GPU {:<width$}", id.0));
        let model = gpu.model.clone().unwrap_or_else(|| match gpu.device_id {
            Some(id) => format!("NVIDIA 10de:{id:04x}"),
            None => "NVIDIA".into(),
        });
        let link = gpu.link.map(|link| format!(" · {}", view::link(link))).unwrap_or_default();
        let coherent = if gpu.coherent { " · NVLink-C2C" } else { "" };
        format!("{name}  {}  {model}{link}{coherent}", self.paint.faint(&gpu.address.to_string()))
    }

    fn nic(&self, id: NicId) -> String {
        let Some(nic) = self.topology.nic(id) else { return String::new() };
        let width = self.name_width;
        let name = format!("NIC {:<width$}", nic.name);
        let served = self.served.get(&id).map_or(&[][..], |gpus| gpus);
        let name = match (&nic.state, served.first()) {
            (LinkState::Down(_), _) => self.paint.alarm(&name),
            (_, Some(gpu)) => self.paint.group(gpu.0, &name),
            (_, None) => name,
        };
        let address = nic.pci.map_or_else(|| "-".into(), |address| address.to_string());
        let state = match &nic.state {
            LinkState::Down(_) => self.paint.alarm(&view::state(nic)),
            _ => view::state(nic),
        };
        let gpus: Vec<String> = served.iter().map(|gpu| gpu.0.to_string()).collect();
        let serves = if gpus.is_empty() { String::new() } else { format!(" → GPU {}", gpus.join(", ")) };
        let facts = format!("{:<9} {:>9}  {state}", view::kind(nic), view::rate(nic));
        format!("{name}  {}  {facts}{serves}", self.paint.faint(&format!("{address:<12}")))
    }
}

fn switch_title(switch: &Switch) -> String {
    let uplink = switch.uplink.map(|link| format!(" · uplink {}", view::link(link))).unwrap_or_default();
    format!("switch {}{uplink}", switch.address)
}
