//! `kvrail softefa status`.

use std::process::ExitCode;

use serde_json::json;
use softefa::run::{Error, FaultStatus, Live, NicStatus, Status as Fabric, find, live, status};
use softefa_fabric::Counter;

use super::args::{Format, Status};
use super::{clear_up, failure};
use crate::failure::Failure;
use crate::units::{about, grouped};

pub(super) fn main(arguments: &Status) -> Result<ExitCode, Failure> {
    clear_up()?;
    let chosen: Vec<Live> = match &arguments.which.name {
        Some(name) => vec![find(Some(name)).map_err(failure)?],
        None => live(),
    };
    let mut fabrics = Vec::new();
    for live in &chosen {
        match status(live, arguments.watch) {
            Ok(fabric) => fabrics.push(fabric),
            Err(error @ Error::NotUp(_)) if arguments.which.name.is_none() => eprintln!("note: {error}"),
            Err(error) => return Err(failure(error)),
        }
    }
    match arguments.format {
        Format::Json => {
            let all = json!({ "schema": "softefa.fabrics.v1", "fabrics": fabrics });
            let text = serde_json::to_string_pretty(&all).map_err(|e| Failure::environment(e.to_string()))?;
            println!("{text}");
        }
        Format::Table if fabrics.is_empty() => eprintln!("no fabric is live"),
        Format::Table => {
            let tables: Vec<String> = fabrics.iter().map(|fabric| table(fabric, arguments.all)).collect();
            print!("{}", tables.join("\n"));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Lines of cells, each column as wide as its widest; the first to the left, numbers to the right.
fn columns(left: usize, lines: &[Vec<String>]) -> String {
    let width = |column: usize| {
        lines.iter().filter_map(|l| l.get(column)).map(|c| c.chars().count()).max().unwrap_or(0)
    };
    let mut out = String::new();
    for line in lines {
        let mut text = String::new();
        for (column, cell) in line.iter().enumerate() {
            let gap = if column == 0 { "" } else { "  " };
            let width = width(column);
            text +=
                &if column < left { format!("{gap}{cell:<width$}") } else { format!("{gap}{cell:>width$}") };
        }
        out += text.trim_end();
        out += "\n";
    }
    out
}

fn cells<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.map(String::from).to_vec()
}

fn table(fabric: &Fabric, all: bool) -> String {
    let spec = &fabric.spec;
    let mut out = format!(
        "fabric {}: {} nodes, {} NICs each, shape {}, seed {}, keeper {}\n{}\n",
        spec.name,
        spec.nodes,
        spec.devices.len(),
        spec.shape,
        spec.seed,
        spec.keeper_pid,
        fabric.path.display()
    );
    let (shown, idle): (Vec<&NicStatus>, Vec<_>) = fabric.nics.iter().partition(|nic| all || !nic.is_idle());
    if !shown.is_empty() {
        out += "\n";
        out += &nics(&shown, fabric.watched_s);
    }
    if !idle.is_empty() {
        let more = if shown.is_empty() { "" } else { "more " };
        out += &format!("{} {more}NICs are up, and nothing has happened on them\n", idle.len());
    }
    if !fabric.faults.is_empty() {
        out += "\n";
        out += &faults(&fabric.faults);
    }
    if !fabric.processes.is_empty() {
        out += "\n";
        let mut lines = vec![cells(["node", "pid", "process"])];
        lines.extend(
            fabric.processes.iter().map(|p| vec![p.node.to_string(), p.pid.to_string(), p.command.clone()]),
        );
        out += &columns(3, &lines);
    }
    out
}

/// The NICs, and by how much they changed if they were watched.
fn nics(nics: &[&NicStatus], watched_s: Option<f64>) -> String {
    const SHOWN: [Counter; 6] = [
        Counter::TxPackets,
        Counter::TxBytes,
        Counter::RxPackets,
        Counter::RxBytes,
        Counter::RetransmittedPackets,
        Counter::UnresponsiveRemotes,
    ];
    let rate = |bps: u64| format!("{} Gb/s", bps as f64 / 1e9);
    let bytes = [Counter::TxBytes, Counter::RxBytes];
    let amount = |counter: Counter, n: u64| if bytes.contains(&counter) { about(n) } else { grouped(n) };
    let mut head = cells(["node", "nic", "device", "state", "rate", "faults", "qps"]);
    head.extend(["tx_pkts", "tx", "rx_pkts", "rx", "retrans", "unresp"].map(String::from));
    let mut lines = vec![head];
    for nic in nics {
        let faults: Vec<_> = nic.faults.iter().map(ToString::to_string).collect();
        let mut line = vec![
            nic.node.to_string(),
            nic.nic.to_string(),
            nic.name.clone(),
            nic.state.into(),
            rate(nic.rate_bps),
            if faults.is_empty() { "-".into() } else { faults.join(",") },
            nic.queue_pairs.to_string(),
        ];
        line.extend(SHOWN.map(|counter| amount(counter, nic.counter(counter))));
        lines.push(line);
    }
    let mut out = columns(4, &lines);
    if let Some(seconds) = watched_s {
        out += &format!("\nchanged within {seconds:.1} s\n");
        let mut lines = Vec::new();
        for nic in nics {
            for (name, grown) in &nic.changed {
                let per_s = grouped((*grown as f64 / seconds) as u64);
                lines.push(vec![
                    format!("node{}", nic.node),
                    nic.name.clone(),
                    (*name).into(),
                    format!("+{}", grouped(*grown)),
                    format!("{per_s}/s"),
                ]);
            }
        }
        out += &if lines.is_empty() { "nothing\n".into() } else { columns(3, &lines) };
    }
    out
}

/// The faults, one line each.
pub(super) fn faults(faults: &[FaultStatus]) -> String {
    let place = |node: Option<u32>, nic: Option<u32>| {
        let part = |what, n: Option<u32>| n.map_or_else(|| format!("any {what}"), |n| format!("{what} {n}"));
        format!("{}, {}", part("node", node), part("NIC", nic))
    };
    let mut lines = vec![cells(["fault", "kind", "on", "towards", "ends", "hits"])];
    for fault in faults {
        let mut ends: Vec<String> = Vec::new();
        ends.extend(fault.ends_in_s.map(|s| format!("in {s:.1} s")));
        ends.extend(fault.count_left.map(|n| format!("after {n} more")));
        lines.push(vec![
            fault.id.to_string(),
            describe(fault),
            place(fault.node, fault.nic),
            place(fault.peer_node, fault.peer_nic),
            if ends.is_empty() { "-".into() } else { ends.join(", ") },
            grouped(fault.hits),
        ]);
    }
    columns(5, &lines)
}

/// Kind and values, as they can be typed again.
fn describe(fault: &FaultStatus) -> String {
    let time = |ns: u64| format!("{}us", ns as f64 / 1e3);
    let mut text = fault.kind.clone();
    match fault.kind.as_str() {
        "black-hole" if fault.amount == 1 => text += " --silent",
        "delay" if fault.spread > 0 => text += &format!(" {} {}", time(fault.amount), time(fault.spread)),
        "delay" => text += &format!(" {}", time(fault.amount)),
        "unreachable" | "unresponsive" if fault.amount > 0 => text += &format!(" {}", time(fault.amount)),
        "rate" => text += &format!(" {}Gbps", fault.amount as f64 / 1e9),
        "cq-overflow" => text += &format!(" --capacity {}", fault.amount),
        _ => {}
    }
    match fault.kind.as_str() {
        "drop" => text += &format!(" {}%", fault.probability * 100.0),
        _ if fault.probability < 1.0 => text += &format!(" --probability {}%", fault.probability * 100.0),
        _ => {}
    }
    if fault.after > 0 {
        text += &format!(" --after {}", fault.after);
    }
    text
}
