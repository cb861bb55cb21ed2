//! Files as people write them. `fixtures/lint/good` are whole manifests, scripts and settings in which nothing may be found; each file of
//! `fixtures/lint/bad` is one of them with a mistake, and names the rules that must be found (`# finds: …`; for JSON the file's name):
//! those and no others.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use kvrail_doctor::lint::{self, Kind, Linted, Source};
use kvrail_doctor::{Severity, catalogue};
use proptest::prelude::*;

fn files(of: &str) -> Vec<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/lint").join(of);
    let entries = directory.read_dir().unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
    let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

fn read(path: &Path) -> Source {
    lint::read_file(path.to_str().unwrap()).unwrap()
}

fn told(report: &Linted) -> String {
    let found = report.findings.iter().map(|finding| {
        let at = finding.location.as_ref().unwrap();
        format!("  {}:{} {}: {}", at.line, at.column.unwrap_or(0), finding.rule.id, finding.title)
    });
    let errors = report.errors.iter().map(|error| format!("  {error}"));
    found.chain(errors).collect::<Vec<_>>().join("\n")
}

#[test]
fn nothing_is_found_in_good_files() {
    let files = files("good");
    assert!(files.len() >= 10);
    let mut wrong = Vec::new();
    for file in files {
        let report = lint::lint(&[read(&file)], None);
        if !report.findings.is_empty() || !report.errors.is_empty() {
            wrong.push(format!("{}:\n{}", file.display(), told(&report)));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn each_bad_file_is_found_for_its_mistake_and_for_nothing_else() {
    let (mut wrong, mut covered) = (Vec::new(), BTreeSet::new());
    for file in files("bad") {
        let source = read(&file);
        let expected: BTreeSet<String> =
            match source.text.lines().find_map(|line| line.strip_prefix("# finds: ")) {
                Some(ids) => ids.split(", ").map(str::to_owned).collect(),
                None => [file.file_stem().unwrap().to_string_lossy().into_owned()].into(),
            };
        let lines: Vec<String> = source.text.lines().map(str::to_owned).collect();
        let report = lint::lint(&[source], None);
        let found: BTreeSet<String> =
            report.findings.iter().map(|finding| finding.rule.id.to_owned()).collect();
        if found != expected || !report.errors.is_empty() {
            wrong.push(format!("{}: expected {expected:?}\n{}", file.display(), told(&report)));
        }
        for finding in &report.findings {
            let at = finding.location.as_ref().unwrap();
            let line = lines
                .get(at.line as usize - 1)
                .unwrap_or_else(|| panic!("{}: line {}", file.display(), at.line));
            assert!(at.column.unwrap() as usize <= line.chars().count() + 1, "{}: {at:?}", file.display());
            assert!(!finding.fix.is_empty(), "{}: {} has no fix", file.display(), finding.rule.id);
            assert!(!finding.title.is_empty() && finding.title.len() < 220, "{}", finding.title);
        }
        covered.extend(found);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let uncovered: Vec<_> =
        lint::RULES.iter().map(|rule| rule.id).filter(|id| !covered.contains(*id)).collect();
    assert!(uncovered.is_empty(), "no bad file for {uncovered:?}");
    assert!(lint::RULES.iter().all(|rule| catalogue::rule(rule.id).is_ok()));
}

fn one(text: &str) -> Linted {
    lint::lint(&[Source { name: "file".into(), text: text.into() }], None)
}

#[test]
fn a_mistake_has_its_exact_place_through_every_layer_of_quoting() {
    let manifest =
        read(&files("bad").into_iter().find(|file| file.ends_with("backend-name-vllm.yaml")).unwrap());
    let report = lint::lint(std::slice::from_ref(&manifest), None);
    let at = report.findings[0].location.clone().unwrap();
    let line = manifest.text.lines().nth(at.line as usize - 1).unwrap();
    assert_eq!(&line[at.column.unwrap() as usize - 1..][..11], "\"Libfabric\"", "{at:?}");
}

#[test]
fn two_files_are_one_deployment() {
    let engine = |role: &str, size: u32| Source {
        name: format!("{role}.sh"),
        text: format!(
            "vllm serve m --tensor-parallel-size {size} --kv-transfer-config '{{\"kv_connector\":\"NixlConnector\",\"kv_role\":\"{role}\"}}'\n"
        ),
    };
    let report = lint::lint(&[engine("kv_producer", 4), engine("kv_consumer", 6)], None);
    let [finding] = report.findings.as_slice() else { panic!("{}", told(&report)) };
    assert_eq!(
        (finding.rule.id, finding.location.as_ref().unwrap().file.as_str()),
        ("lint-tensor-parallel", "kv_consumer.sh")
    );
    assert!(lint::lint(&[engine("kv_producer", 4), engine("kv_consumer", 8)], None).findings.is_empty());
}

#[test]
fn what_cannot_be_read_is_told_with_its_place() {
    let report = one("apiVersion: v1\nkind: Pod\nspec:\n  containers: [\n    {{ .Values.containers }}\n");
    assert!(report.errors[0].to_string().starts_with("file:"), "{}", told(&report));
    assert!(report.errors[0].to_string().contains("helm template"), "{}", told(&report));
    for (bytes, told) in
        [(b"a\xff".to_vec(), "byte 1"), (b"\x00ELF".to_vec(), "byte 0"), (vec![b'a'; 5 << 20], "4 MiB")]
    {
        let error = lint::from_bytes("file", bytes).unwrap_err().to_string();
        assert!(error.contains(told), "{error}");
    }
    let directory = tempfile::tempdir().unwrap();
    let error = lint::read_file(directory.path().to_str().unwrap()).unwrap_err().to_string();
    assert!(error.contains("is a directory"), "{error}");
    assert!(lint::read_file("/nowhere/at/all").is_err());
    assert!(lint::read_file("/dev/zero").is_err());
    assert_eq!(one("").errors.len(), 1);
}

#[test]
fn a_secret_is_never_repeated() {
    let report = one("#!/bin/bash\nexport HF_TOKEN=hf_verysecretvalue\nvllm serve m\n");
    assert_eq!(report.findings[0].severity, Severity::Note);
    assert!(!serde_json::to_string(&report.findings).unwrap().contains("verysecret"));
}

#[test]
fn a_mistake_that_is_repeated_ten_thousand_times_does_not_fill_the_screen() {
    let script = "export FI_LOG_LEVEL=debug\n".repeat(10_000);
    let report = lint::lint(&[Source { name: "f".into(), text: script }], Some(Kind::Shell));
    assert_eq!(report.findings.len(), 200);
    assert_eq!(report.findings.iter().map(|finding| finding.count).sum::<u64>(), 10_000);
}

#[test]
fn hostile_files_take_no_longer_than_long_ones() {
    let full = |piece: &str| piece.repeat((1 << 20) / piece.len());
    let pods = full(
        "---\napiVersion: v1\nkind: Pod\nspec: {containers: [{name: a, resources: {limits: {vpc.amazonaws.com/efa: 1}}}]}\n",
    );
    let engine = "vllm serve m --kv-transfer-config '{\"kv_connector\":\"NixlConnector\",\"kv_role\":\"kv_producer\"}' &\n";
    let hostile = [
        ("one line of JSON", format!("{{\"a\": [{}1]}}", full("\"b c\", "))),
        ("one line of shell", full("a'b'c\\d ")),
        ("one word", full("'a'b")),
        ("substitutions", full("$(a ")),
        ("braces", full("${")),
        ("back quotes", full("a`b ")),
        ("here-documents", full("cat <<A\n")),
        ("assignments", full("export LD_LIBRARY_PATH=/usr/lib:/opt/amazon/efa/lib\n")),
        ("engines", full(engine)),
        ("roles", full(&format!("{engine}{}", engine.replace("producer", "consumer")))),
        ("pods", pods),
        ("flow sequences", full("[")),
        ("plain lines", full("a: b\n- c\n")),
        ("keys", full("a: {b: c}\n")),
        ("folded", format!("a: >-\n{}", full("  b c\n"))),
        ("literal", format!("a: |\n{}", full("  b c\n"))),
        ("quoted", format!("a: \"{}\"", full("b\\tc "))),
        ("anchors", full("- &a b\n- *a\n")),
        ("comments", full("# x\n")),
        ("tabs", full("\t")),
        ("batch", full("#SBATCH -N1 --ntasks=2\n")),
        ("environment", full("FI_PROVDER=efa\n")),
    ];
    let mut slow = Vec::new();
    for (what, text) in hostile {
        let begin = std::time::Instant::now();
        let report = lint::lint(&[Source { name: "f".into(), text }], None);
        let took = begin.elapsed();
        eprintln!("{what}: {took:?}, {} findings, {} errors", report.findings.len(), report.errors.len());
        if took.as_secs() >= 5 {
            slow.push(format!("{what}: {took:?}"));
        }
    }
    assert!(slow.is_empty(), "{slow:?}");
}

/// Pieces of which such files are made, and of which broken ones are.
fn pieces() -> impl Strategy<Value = String> {
    let pieces = prop::sample::select(vec![
        "apiVersion: v1\n",
        "kind: Pod\n",
        "spec:\n",
        "  containers:\n",
        "  - name: a\n",
        "    env:\n",
        "    - {name: X, value: \"$Y\"}\n",
        "    args: [bash, -c, \"",
        "|\n",
        ">-\n",
        "&a ",
        "*a ",
        "<<: *a\n",
        "- ",
        "[",
        "]",
        "{",
        "}",
        "\"",
        "'",
        ": ",
        ",",
        "\\",
        "\n",
        "  ",
        "\t",
        "$(",
        ")",
        "${",
        "`",
        "<<EOF\n",
        "EOF\n",
        "#SBATCH -N",
        "--kv-transfer-config ",
        "--kv-transfer-config.kv_role",
        "=",
        "é",
        "\u{feff}",
        "\r\n",
        "resources: {limits: {nvidia.com/gpu: 9999999999999999999}}\n",
        "replicas: 18446744073709551615\n",
        "size: 99999999999\n",
        "UCX_TLS=",
        "vllm serve ",
        "etcdctl del ",
        "FROM x\nENV ",
        "{\"kv_connector\":\"NixlConnector\"",
        "LD_LIBRARY_PATH=/opt/amazon/efa/lib:",
        "nixlbench ",
        "---\n",
        "!!binary ",
        "? ",
        "%YAML 9\n",
    ]);
    prop::collection::vec(pieces, 0..60).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_file_makes_it_panic(text in pieces(), kind in prop::option::of(prop::sample::select(Kind::ALL.to_vec()))) {
        let report = lint::lint(&[Source { name: "f".into(), text }], kind);
        for finding in &report.findings {
            let at = finding.location.as_ref().unwrap();
            prop_assert!(at.line >= 1 && at.column.unwrap() >= 1);
        }
    }

    #[test]
    fn no_damage_to_a_good_file_makes_it_panic(which in 0..15_usize, cut in 0..4000_usize, insert in pieces()) {
        let files = files("good");
        let text = read(&files[which % files.len()]).text;
        let mut cut = cut % (text.len() + 1);
        while !text.is_char_boundary(cut) {
            cut -= 1;
        }
        let text = format!("{}{insert}{}", &text[..cut], &text[cut..]);
        let _ = lint::lint(&[Source { name: "f".into(), text }], None);
    }
}
