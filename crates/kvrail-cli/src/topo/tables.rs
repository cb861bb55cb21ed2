//! Tables below the tree: distances, rails of GPUs, rails of host memory.

use kvrail_topology::{Ceiling, Distance, Topology, distance, host_memory_ceiling};

use super::paint::Paint;
use super::view;

/// Columns of GPUs that fit beside the name of a NIC.
const GPUS_A_TABLE: usize = 16;
/// Columns for the names of a GPU's rails; more go on the next line.
const RAILS_WIDTH: usize = 43;
const _: () = assert!(
    4 + 13 + RAILS_WIDTH + 1 + 7 + 6 + 2 + "NIC link 0000:00:00.0 +9".len() <= 100,
    "the table of rails fits a terminal of 100 columns"
);

/// How far each NIC is from each GPU; rails are marked.
pub(super) fn distances(topology: &Topology, paint: Paint) -> String {
    let (gpus, nics) = (topology.gpus(), topology.nics());
    if gpus.is_empty() || nics.is_empty() {
        return String::new();
    }
    let width = nics.iter().map(|nic| nic.name.chars().count()).max().unwrap_or(0).max("distance".len());
    let mut seen = Vec::new();
    let mut out = String::new();
    for gpus in gpus.chunks(GPUS_A_TABLE) {
        let heads: String = gpus
            .iter()
            .map(|gpu| paint.group(gpu.id.0, &format!(" {:>4} ", format!("GPU{}", gpu.id.0))))
            .collect();
        out += &format!("{:<width$}{}\n", "distance", heads.trim_end_matches(' '));
        for nic in nics {
            out += &format!("{:<width$}", nic.name);
            for gpu in gpus {
                let far = distance(topology, gpu, nic);
                seen.push(far);
                let rails = &topology.assignment().gpus[gpu.id.0 as usize].rails;
                let serves = rails.iter().any(|rail| rail.nic == nic.id);
                let cell = format!(" {:>4}{}", far, if serves { '*' } else { ' ' });
                out += &if serves { paint.group(gpu.id.0, &cell) } else { paint.faint(&cell) };
            }
            out.truncate(out.trim_end_matches(' ').len());
            out += "\n";
        }
    }
    seen.sort_unstable();
    seen.dedup();
    let meaning = |distance: Distance| format!("  {:<4}  {}\n", distance.name(), distance.meaning());
    out += "  *     serves that GPU\n";
    seen.into_iter().for_each(|distance| out += &meaning(distance));
    out
}

/// The rails of each GPU and what they carry.
pub(super) fn rails(topology: &Topology, paint: Paint) -> String {
    if topology.gpus().is_empty() {
        return String::new();
    }
    let mut out = format!(
        "{:<3} {:<12} {:<RAILS_WIDTH$} {:>6} {:>6}  {}\n",
        "GPU", "address", "rails", "alone", "all", "set by"
    );
    for (gpu, rails) in topology.gpus().iter().zip(&topology.assignment().gpus) {
        let names: Vec<&str> = rails
            .rails
            .iter()
            .filter_map(|rail| topology.nic(rail.nic))
            .map(|nic| nic.name.as_str())
            .collect();
        let mut lines = wrapped(&names, RAILS_WIDTH).into_iter();
        let first = lines.next().unwrap_or_else(|| "none".into());
        let facts =
            format!("{:>6} {:>6}  {}", gbytes(&rails.alone), gbytes(&rails.all_active), set_by(&rails.alone));
        let ordinal = paint.group(gpu.id.0, &format!("{:<3}", gpu.id.0));
        out += &format!("{ordinal} {:<12} {first:<RAILS_WIDTH$} {facts}\n", gpu.address.to_string());
        lines.for_each(|line| out += &format!("{:<3} {:<12} {line}\n", "", ""));
    }
    out += "  GB/s in one direction: while no other GPU transfers; while all do\n";
    if topology.assignment().gpus.iter().any(|gpu| !gpu.alone.complete) {
        out += "  ≥     without the NICs whose line rate is not known\n";
    }
    out
}

/// The rails of each NUMA node's memory.
pub(super) fn host_memory(topology: &Topology, _paint: Paint) -> String {
    let with_rails: Vec<_> = topology
        .numa_nodes()
        .iter()
        .filter(|node| !node.cpus.is_empty() || topology.numa_nodes().len() == 1)
        .map(|node| (node.id, topology.rails_of_numa(node.id)))
        .filter(|(_, rails)| !rails.is_empty())
        .collect();
    if with_rails.is_empty() {
        return String::new();
    }
    let mut out =
        format!("{:<11} {:>5} {:>10} {:>8}  {}\n", "host memory", "rails", "line rate", "ceiling", "set by");
    for (node, rails) in with_rails {
        let ceiling = host_memory_ceiling(topology, &rails);
        out += &format!(
            "{:<11} {:>5} {:>10} {:>8}  {}\n",
            format!("NUMA node {node}"),
            rails.len(),
            view::gbytes_number(ceiling.line_rate_bps),
            gbytes(&ceiling),
            set_by(&ceiling)
        );
    }
    out += "  GB/s in one direction; a virtual machine may show slower links than there are\n";
    out
}

fn gbytes(ceiling: &Ceiling) -> String {
    match (ceiling.complete, ceiling.bps) {
        (true, bps) => view::gbytes_number(bps),
        (false, 0) => "?".into(),
        (false, bps) => format!("≥{}", view::gbytes_number(bps)),
    }
}

/// What sets a ceiling, and how many more links do.
fn set_by(ceiling: &Ceiling) -> String {
    match ceiling.links {
        0 | 1 => view::bound(ceiling),
        links => format!("{} +{}", view::bound(ceiling), links - 1),
    }
}

/// Words on lines of at most `width`, but for words that are longer.
fn wrapped(words: &[&str], width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in words {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push((*word).to_string()),
        }
    }
    lines
}
