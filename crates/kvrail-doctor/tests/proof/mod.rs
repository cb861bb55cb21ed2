//! How each rule is proved, read from what proves it: fixtures say what they find, and a test that makes the real condition says so in a line
//! `/// Proves: ID, …` above it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use kvrail_doctor::catalogue;
use kvrail_doctor::rule::{Kind, Rule};

/// What proves one rule.
#[derive(Default, Debug)]
pub(crate) struct Proof {
    /// Tests that make the real condition, with their files.
    pub(crate) real: Vec<(String, String)>,
    /// Fixtures in which it is found.
    pub(crate) broken: Vec<String>,
    /// Fixtures like these in which it is not.
    pub(crate) healthy: Vec<String>,
}

/// A test that says what it proves.
pub(crate) struct Claim {
    pub(crate) file: String,
    pub(crate) test: String,
    pub(crate) ids: Vec<String>,
    /// What stands in it.
    pub(crate) body: String,
}

fn below(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// Names and texts of the files of a directory, in order.
fn files(of: &str) -> Vec<(String, String)> {
    let entries = below(of).read_dir().unwrap_or_else(|error| panic!("{of}: {error}"));
    let mut files: Vec<_> = entries
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_file())
        .map(|path| {
            let text = String::from_utf8_lossy(&std::fs::read(&path).unwrap()).into_owned();
            (path.file_name().unwrap().to_string_lossy().into_owned(), text)
        })
        .collect();
    files.sort();
    files
}

/// Ids that are listed in a line.
fn listed(line: &str) -> Vec<String> {
    line.split([',', ' ']).filter(|id| !id.is_empty()).map(str::to_owned).collect()
}

/// Every test that says what it proves.
pub(crate) fn claims() -> Vec<Claim> {
    let mut claims = Vec::new();
    for (file, text) in
        files("../kvrail-cli/tests").into_iter().filter(|(file, _)| file.starts_with("doctor_"))
    {
        for part in text.split("/// Proves: ").skip(1) {
            let (ids, rest) = part.split_once('\n').unwrap_or((part, ""));
            let test = rest
                .split_once("fn ")
                .and_then(|(_, rest)| rest.split_once('('))
                .map_or("", |(name, _)| name);
            let body = rest.split("\n}\n").next().unwrap_or(rest);
            claims.push(Claim { file: file.clone(), test: test.into(), ids: listed(ids), body: body.into() });
        }
    }
    claims
}

/// What proves each rule, by its id.
pub(crate) fn all() -> BTreeMap<String, Proof> {
    let mut all: BTreeMap<String, Proof> = BTreeMap::new();
    for claim in claims() {
        for id in claim.ids {
            all.entry(id).or_default().real.push((claim.test.clone(), claim.file.clone()));
        }
    }
    for (name, text) in files("fixtures/broken") {
        let fixture: serde_json::Value = serde_json::from_str(&text).unwrap();
        for id in fixture["finds"].as_array().unwrap() {
            let proof = all.entry(id.as_str().unwrap().to_owned()).or_default();
            proof.broken.push(format!("broken/{name}"));
            proof.healthy = vec!["p5-healthy".into()];
        }
    }
    for (name, text) in files("fixtures/lint/bad") {
        let finds = text.lines().find_map(|line| line.strip_prefix("# finds: ")).map(listed);
        for id in finds.unwrap_or_else(|| vec![name.trim_end_matches(".json").to_owned()]) {
            let proof = all.entry(id).or_default();
            proof.broken.push(format!("lint/bad/{name}"));
            proof.healthy = vec!["lint/good".into()];
        }
    }
    for (name, text) in files("fixtures/log/broken") {
        for id in listed(text.lines().next().and_then(|line| line.strip_prefix("finds: ")).unwrap()) {
            all.entry(id).or_default().broken.push(format!("log/broken/{name}"));
        }
    }
    for (name, _) in files("fixtures/log/healthy") {
        all.entry(name.trim_end_matches(".log").to_owned())
            .or_default()
            .healthy
            .push(format!("log/healthy/{name}"));
    }
    // Two hosts have no bundle: what they would see of each other is given to the judge.
    let judged = std::fs::read_to_string(below("src/probe/judge_tests.rs")).unwrap();
    for part in judged.split("#[test]").skip(1) {
        let name =
            part.split_once("fn ").and_then(|(_, rest)| rest.split_once('(')).map_or("", |(name, _)| name);
        for rule in catalogue::rules().iter().filter(|rule| rule.kind == Kind::Probe) {
            if part.contains(&format!("\"{}\"", rule.id)) {
                all.entry(rule.id.into())
                    .or_default()
                    .broken
                    .push(format!("judge_tests: {}", name.replace('_', " ")));
            }
        }
    }
    for claim in claims().into_iter().filter(|claim| claim.file == "doctor_probe.rs") {
        for id in claim.ids {
            all.entry(id).or_default().healthy = vec!["doctor_probe.rs: healthy nodes are silent".into()];
        }
    }
    all
}

/// The table of the documentation.
pub(crate) fn markdown() -> String {
    let all = all();
    let mut out = String::from(
        "\n## How each rule is proved\n\nA test makes the real condition where a machine without GPUs and RDMA can have it: NIXL's wheels with something \
         broken, old libraries, real etcds, limits, namespaces, emulated EFA devices. A fixture replays what it cannot have: a bundle, a file or a log in \
         which the rule finds what it should, and nothing else is found. Each has a healthy twin, in which it is silent. Tests are those of \
         `crates/kvrail-cli/tests`, fixtures those of `crates/kvrail-doctor/fixtures`; what a rule of `lint` looks at is a file, so that its fixtures are \
         the real condition.\n\n| rule | real condition | found in | silent in |\n|---|---|---|---|\n",
    );
    let none = Proof::default();
    for rule in catalogue::rules() {
        let proof = all.get(rule.id).unwrap_or(&none);
        let mut tests: Vec<String> =
            proof.real.iter().map(|(test, file)| format!("{file}: {}", test.replace('_', " "))).collect();
        tests.sort();
        let _ = writeln!(
            out,
            "| `{}` | {} | {} | {} |",
            rule.id,
            tests.join("; "),
            code(&proof.broken),
            code(&proof.healthy)
        );
    }
    out
}

fn code(names: &[String]) -> String {
    const TOLD: usize = 3;
    let told: Vec<String> = names.iter().take(TOLD).map(|name| format!("`{name}`")).collect();
    let more = names.len().saturating_sub(TOLD);
    if more > 0 { format!("{} and {more} more", told.join(", ")) } else { told.join(", ") }
}

/// Whether nothing proves a rule: rules of logs and files have fixtures of both kinds, others a fixture or a real condition.
pub(crate) fn is_unproved(rule: &Rule, proof: Option<&Proof>) -> bool {
    let Some(proof) = proof else { return true };
    match rule.kind {
        Kind::Log | Kind::Lint => proof.broken.is_empty() || proof.healthy.is_empty(),
        Kind::Probe | Kind::Host => proof.broken.is_empty() && proof.real.is_empty(),
    }
}
