//! `kvrail topo` from outside: every format, captures, exit codes, what goes to which stream.

use std::path::PathBuf;
use std::process::{Command, Output};

use serde_json::Value;

fn fixture(name: &str) -> String {
    let fixtures = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../kvrail-topology/fixtures");
    fixtures.join(name).to_str().unwrap().to_string()
}

fn topo(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kvrail"));
    command.arg("topo").args(arguments).env_remove("SYSFS_PATH");
    command.output().unwrap()
}

fn stdout(output: &Output) -> &str {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    std::str::from_utf8(&output.stdout).unwrap()
}

fn stderr(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).unwrap()
}

const CAPTURES: [&str; 13] = [
    "p4d",
    "p5",
    "p5en",
    "p6-b200",
    "p6-b300",
    "gb200",
    "laptop",
    "roce",
    "nic-down",
    "no-numa",
    "bad-values",
    "bad-links",
    "gpus-without-nic",
];

#[test]
fn the_drawing_shows_a_p5_with_four_rails_a_gpu() {
    let output = topo(&["--sysfs", &fixture("p5.capture")]);
    let text = stdout(&output);
    assert!(text.starts_with("p5.48xlarge: 2 NUMA nodes, 8 GPUs, 32 RDMA NICs (3200 Gb/s up)\n"), "{text}");
    for line in [
        "NUMA node 0 · CPUs 0-47,96-143 · 1024.0 GiB",
        "├─ root complex 0000:44 · switch 0000:45:00.0 · uplink Gen4 x8 (15.8 GB/s)",
        "│  ├─ NIC rdmap79s0   0000:4f:00.0  efa        100 Gb/s  up → GPU 0",
        "   └─ GPU 7           0000:ca:00.0  H100 SXM5 80GB · Gen5 x16 (63.0 GB/s)",
        "rdmap79s0   PIX* NODE  NODE  NODE   SYS   SYS   SYS   SYS",
        "0    0000:53:00.0 rdmap79s0 rdmap80s0 rdmap81s0 rdmap82s0        50.0    50.0  line rate",
        "NUMA node 1    16      200.0     63.0  uplink 0000:89:00.0 +3",
    ] {
        // The tables' columns may move; the tree's may not, its lines lead somewhere.
        let same = |it: &str| {
            it == line || (!line.contains('─') && it.split_whitespace().eq(line.split_whitespace()))
        };
        assert!(text.lines().any(same), "{line}\n{text}");
    }
    assert_eq!(stderr(&output), "");
}

#[test]
fn every_drawing_is_at_most_100_columns_and_plain_into_a_pipe() {
    for name in CAPTURES {
        let output = topo(&["--sysfs", &fixture(&format!("{name}.capture"))]);
        let text = stdout(&output);
        let widest = text.lines().max_by_key(|line| line.chars().count()).unwrap();
        assert!(widest.chars().count() <= 100, "{name}: {widest}");
        assert!(!text.contains('\u{1b}'), "{name}: colours into a pipe");
        assert!(text.lines().all(|line| line == line.trim_end()), "{name}: space at the end of a line");
    }
}

#[test]
fn json_says_the_same_as_the_drawing() {
    let output = topo(&["--sysfs", &fixture("nic-down.capture"), "--format", "json"]);
    let host: Value = serde_json::from_str(stdout(&output)).unwrap();
    assert_eq!(host["schema"], "kvrail.topo.v1");
    assert_eq!(host["source"]["kind"], "sysfs");
    assert_eq!(host["machine"], "p4d.24xlarge");
    assert_eq!(host["numa_nodes"][0]["rails"], serde_json::json!(["rdmap16s27"]));
    let gpu = &host["gpus"][4];
    assert_eq!((&gpu["ordinal"], &gpu["address"]), (&4.into(), &"0000:90:1c.0".into()));
    let rail = serde_json::json!([{"nic": "rdmap144s27", "distance": "PHB", "gpus_sharing": 2}]);
    assert_eq!(gpu["rails"], rail);
    assert_eq!(gpu["ceiling_alone"]["bps"], 100_000_000_000u64);
    assert_eq!(gpu["ceiling_all_active"]["bps"], 50_000_000_000u64);
    assert_eq!(gpu["ceiling_alone"]["bound"], "line_rate");
    assert_eq!(gpu["distances"]["rdmap16s27"], "SYS");
    let nics = host["nics"].as_array().unwrap();
    let down = nics.iter().find(|nic| nic["name"] == "rdmap32s27").unwrap();
    assert_eq!((&down["state"], &down["excluded"]), (&"down".into(), &"down".into()));
    assert_eq!(down["gpus"], serde_json::json!([]));
    assert_eq!(host["warnings"], serde_json::json!([]));
}

#[test]
fn warnings_go_to_stderr_and_into_json() {
    let output = topo(&["--sysfs", &fixture("bad-values.capture"), "--format", "json"]);
    let host: Value = serde_json::from_str(stdout(&output)).unwrap();
    assert_eq!(host["warnings"].as_array().unwrap().len(), 3);
    assert_eq!(stderr(&output).lines().filter(|line| line.starts_with("warning: ")).count(), 3);
    assert!(stderr(&output).contains("rdmap32s27/ports/1/rate: `very fast` is no rate"));
}

#[test]
fn every_svg_is_well_formed_and_names_every_device() {
    for name in CAPTURES {
        let source = fixture(&format!("{name}.capture"));
        let json = topo(&["--sysfs", &source, "--format", "json"]);
        let host: Value = serde_json::from_str(stdout(&json)).unwrap();
        let output = topo(&["--sysfs", &source, "--format", "svg"]);
        let svg = stdout(&output);
        assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"), "{name}");
        for tag in ["text", "style", "title", "svg"] {
            let opened = svg.matches(&format!("<{tag}>")).count() + svg.matches(&format!("<{tag} ")).count();
            assert_eq!(opened, svg.matches(&format!("</{tag}>")).count(), "{name} {tag}");
        }
        for nic in host["nics"].as_array().unwrap() {
            assert!(svg.contains(nic["name"].as_str().unwrap()), "{name} {nic}");
        }
        for gpu in host["gpus"].as_array().unwrap() {
            assert!(svg.contains(&format!("GPU {} ·", gpu["ordinal"])), "{name} {gpu}");
        }
        assert_eq!(svg.contains("leaf down\""), host["nics"].to_string().contains("\"down\""), "{name}");
        assert!(!svg.contains("href") && !svg.contains("<script"), "{name}: not self-contained");
    }
}

#[test]
fn markup_in_a_name_stays_text() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("host.capture");
    let capture = "# kvrail sysfs capture v1\nclass/dmi/id/product_name\t<script>&\"\ndevices/x\t1\n";
    std::fs::write(&file, capture).unwrap();
    let output = topo(&["--sysfs", file.to_str().unwrap(), "--format", "svg"]);
    assert!(stdout(&output).contains("&lt;script&gt;&amp;"), "{}", stdout(&output));
}

#[test]
fn hwloc_xml_is_a_source_too() {
    let output = topo(&["--hwloc", &fixture("p5en.hwloc2.xml")]);
    let rails = "0    0000:59:00.0 rdmap85s0 rdmap86s0                           50.0    50.0  line rate";
    let same = |line: &str| line.split_whitespace().eq(rails.split_whitespace());
    assert!(stdout(&output).lines().any(same), "{}", stdout(&output));
}

#[test]
fn a_capture_is_read_back_as_the_same_host() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("copy.capture");
    let file = file.to_str().unwrap();
    let source = fixture("gb200.capture");
    let written = topo(&["--sysfs", &source, "--capture", file]);
    assert_eq!(stdout(&written), "");
    assert!(stderr(&written).starts_with("note: wrote "), "{}", stderr(&written));
    let first = topo(&["--sysfs", &source]);
    let second = topo(&["--sysfs", file]);
    assert_eq!(stdout(&first), stdout(&second));
}

#[test]
fn the_sysfs_of_an_emulated_host_is_the_default_where_its_variable_is_set() {
    let folder = tempfile::tempdir().unwrap();
    let shape = softefa::shape::Shape::named("p4d").unwrap();
    let names = softefa::sysfs::CounterNames::EFA;
    let root = softefa::sysfs::Root::create(&folder.path().join("node"), &shape, 0, 4, |_| [2; 16], names);
    let mut command = Command::new(env!("CARGO_BIN_EXE_kvrail"));
    let output = command.arg("topo").env("SYSFS_PATH", root.unwrap().sys()).output().unwrap();
    let captured = topo(&["--sysfs", &fixture("p4d.capture")]);
    assert_eq!(stdout(&output), stdout(&captured));
}

#[test]
fn a_host_without_gpu_or_rdma_says_so_and_is_no_failure() {
    let output = topo(&["--sysfs", &fixture("laptop.capture")]);
    let text = stdout(&output);
    assert!(text.contains("No NVIDIA GPU"), "{text}");
    assert!(text.contains("No RDMA device"), "{text}");
    // This very host, whatever it is.
    assert!(topo(&[]).status.success());
}

#[test]
fn a_source_that_cannot_be_read_is_exit_code_2_with_a_hint() {
    let folder = tempfile::tempdir().unwrap();
    let empty = folder.path().to_str().unwrap();
    let xml = fixture("p5en.hwloc2.xml");
    let capture = fixture("p4d.capture");
    for arguments in [
        ["--sysfs", "/nonexistent/sys"],
        ["--sysfs", empty],
        ["--sysfs", &xml],
        ["--hwloc", &capture],
        ["--output", "/nonexistent/file"],
    ] {
        let output = topo(&arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(stderr(&output).starts_with("error: "), "{}", stderr(&output));
        assert!(arguments[0] == "--output" || stderr(&output).contains("\nhint: "), "{}", stderr(&output));
        assert_eq!(output.stdout, b"");
    }
}
