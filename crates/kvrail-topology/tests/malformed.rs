//! Sources that are damaged in any way: an error or warnings, never a panic, a hang or a read of something else.

mod hosts;

use hosts::path;
use kvrail_topology::{Topology, host_memory_ceiling};
use proptest::prelude::*;

/// Asks a topology everything.
fn use_up(topology: &Topology) {
    for gpu in topology.assignment().gpus.iter() {
        let _ = (topology.rails_of_gpu(gpu.gpu), gpu.alone.gbytes_per_second());
    }
    for node in topology.numa_nodes() {
        let _ = host_memory_ceiling(topology, &topology.rails_of_numa(node.id));
    }
    topology.warnings().iter().for_each(|warning| drop(warning.to_string()));
}

#[derive(Clone, Debug)]
enum Damage {
    Drop(prop::sample::Index),
    Content(prop::sample::Index, String),
    Link(prop::sample::Index, prop::sample::Index),
    Swap(prop::sample::Index, prop::sample::Index),
    Line(prop::sample::Index, String),
}

fn damage() -> impl Strategy<Value = Damage> {
    let at = any::<prop::sample::Index>;
    let content = prop_oneof![
        "-?[0-9]{1,20}",
        "\\PC{0,12}",
        Just("0x0302ff".into()),
        Just("4294967295".into()),
        Just("0-4000000000".into()),
        Just("-1".into()),
        Just("1e308 Gb/sec (255X XDR)".into()),
        Just("64.0 GT/s PCIe".into()),
        Just("NaN GT/s".into()),
    ];
    // A damaged structure makes all of a capture an error, so most damage is to values.
    prop_oneof![
        8 => at().prop_map(Damage::Drop),
        40 => (at(), content).prop_map(|(at, text)| Damage::Content(at, text)),
        20 => (at(), at()).prop_map(|(at, to)| Damage::Link(at, to)),
        1 => (at(), at()).prop_map(|(one, other)| Damage::Swap(one, other)),
        1 => (at(), "[ a-z0-9:/.>\t-]{0,24}").prop_map(|(at, line)| Damage::Line(at, line)),
    ]
}

fn damaged(text: &str, damages: &[Damage]) -> String {
    let mut lines: Vec<String> = text.lines().map(str::to_string).collect();
    for damage in damages {
        let count = lines.len();
        match damage {
            Damage::Drop(at) => drop(lines.remove(at.index(count - 1) + 1)),
            Damage::Content(at, text) => {
                let line = &mut lines[at.index(count)];
                if let Some((name, _)) = line.split_once('\t') {
                    *line = format!("{name}\t{text}");
                }
            }
            Damage::Link(at, to) => {
                let target = lines[to.index(count)].clone();
                let target = target.split([' ', '\t']).next_back().unwrap_or("..").to_string();
                let line = &mut lines[at.index(count)];
                let name = line.split(['\t', '>']).next().unwrap_or("x").trim_end_matches(" -").to_string();
                *line = format!("{name} -> {target}");
            }
            Damage::Swap(one, other) => lines.swap(one.index(count - 1) + 1, other.index(count - 1) + 1),
            Damage::Line(at, line) => lines.insert(at.index(count) + 1, line.clone()),
        }
        if lines.len() < 3 {
            break;
        }
    }
    lines.join("\n")
}

/// A value of an attribute: of another one, or nonsense.
fn value() -> impl Strategy<Value = String> {
    let known = [
        "OSDev",
        "PCIDev",
        "Bridge",
        "NUMANode",
        "3",
        "0-1",
        "0x00000003",
        "0xf...f",
        "0000:10:1b.0",
        "0000:[10-1",
        "0302 [10de:",
    ];
    prop_oneof![
        prop::sample::select(known.to_vec()).prop_map(String::from),
        "-?[0-9.e]{0,20}",
        "[a-zA-Z0-9:.,x\\[\\] -]{0,16}"
    ]
}

proptest! {
    #[test]
    fn no_damaged_capture_panics(damages in prop::collection::vec(damage(), 1..30), which in 0usize..3) {
        let name = ["p4d.capture", "roce.capture", "laptop.capture"][which];
        let text = damaged(&std::fs::read_to_string(path(name)).unwrap(), &damages);
        if let Ok(topology) = Topology::read_capture(&text) {
            use_up(&topology);
        }
    }

    #[test]
    fn no_damaged_xml_panics(
        values in prop::collection::vec((any::<prop::sample::Index>(), value()), 0..40),
        bytes in prop::collection::vec((any::<prop::sample::Index>(), "[<>/=\"a-z0-9&;]{0,6}", 0usize..12), 0..2),
        end in prop::option::weighted(0.1, any::<prop::sample::Index>()),
        which in 0usize..2,
    ) {
        let name = ["p4d.hwloc1.xml", "gb200.hwloc2.xml"][which];
        let whole = std::fs::read_to_string(path(name)).unwrap();
        // Every second piece between quotes is a value.
        let mut pieces: Vec<&str> = whole.split('"').collect();
        for (at, value) in &values {
            let at = at.index(pieces.len() / 2) * 2 + 1;
            pieces[at] = value;
        }
        let mut text = pieces.join("\"").into_bytes();
        for (at, put, take) in bytes {
            let at = at.index(text.len());
            let end = (at + take).min(text.len());
            text.splice(at..end, put.into_bytes());
        }
        if let Some(end) = end {
            text.truncate(end.index(text.len()));
        }
        if let Ok(topology) = Topology::read_hwloc(&String::from_utf8_lossy(&text)) {
            use_up(&topology);
        }
    }

    #[test]
    fn no_text_panics(text in "\\PC{0,200}") {
        let _ = Topology::read_hwloc(&text);
        let _ = Topology::read_capture(&format!("# kvrail sysfs capture v1\n{text}"));
    }
}

#[test]
fn deep_and_endless_documents_are_refused() {
    let deep = format!("<topology>{}", "<object type=\"Machine\">".repeat(100_000));
    assert!(Topology::read_hwloc(&deep).unwrap_err().to_string().contains("nested"));
    let bomb = "<!DOCTYPE topology [<!ENTITY a \"aaaaaaaaaa\"><!ENTITY b \"&a;&a;&a;\">]><topology><object type=\"OSDev\" name=\"&b;\"/></topology>";
    assert!(Topology::read_hwloc(bomb).is_err(), "entities of a document are not expanded");
}
