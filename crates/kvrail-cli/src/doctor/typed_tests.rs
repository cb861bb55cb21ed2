//! What findings say to type is typed here, as far as the command line's own parser.

use std::collections::BTreeSet;

use clap::Parser as _;
use clap::error::ErrorKind;
use kvrail_doctor::host::Bundle;
use kvrail_doctor::render::Report;
use kvrail_doctor::{Finding, Host, catalogue, examine, lint, log};

use crate::args::Cli;

// The tests of doctor use the rest.
#[allow(dead_code)]
#[path = "../../../kvrail-doctor/tests/patients/mod.rs"]
mod patients;

/// The commands of kvrail among those of a line of a shell.
fn commands(line: &str) -> impl Iterator<Item = &str> {
    line.split([';', '&', '|', '\n']).map(str::trim).filter(|command| command.starts_with("kvrail "))
}

/// The words of a command that quotes nothing but whole words.
fn parsed(command: &str) -> Result<(), ErrorKind> {
    let words = command.split_whitespace().map(|word| word.trim_matches('\''));
    Cli::try_parse_from(words).map(drop).map_err(|error| error.kind())
}

/// What is found in all fixtures: of hosts, of files, of logs.
fn findings() -> Vec<Finding> {
    let mut all = Vec::new();
    for patient in patients::broken() {
        let host = Host::replay(Bundle::parse(&patient.bundle.to_string()).unwrap());
        all.extend(examine(&host, &catalogue::checks()).findings().cloned());
    }
    for file in fixtures("lint/bad") {
        all.extend(lint::lint(&[lint::read_file(&file).unwrap()], None).findings);
    }
    for file in fixtures("log/broken") {
        let mut logs = log::Logs::new();
        logs.read(&file, std::fs::File::open(&file).unwrap()).unwrap();
        let report: Report = logs.conclude();
        all.extend(report.told().iter().map(|told| told.finding.clone()));
    }
    all
}

fn fixtures(of: &str) -> Vec<String> {
    let at = format!("{}/../kvrail-doctor/fixtures/{of}", env!("CARGO_MANIFEST_DIR"));
    let entries = std::fs::read_dir(at).unwrap();
    entries.map(|entry| entry.unwrap().path().display().to_string()).collect()
}

#[test]
fn every_command_that_a_finding_says_to_type_is_one() {
    let mut seen = BTreeSet::new();
    for finding in findings() {
        for command in finding.fix.iter().filter_map(|step| step.command.as_deref()).flat_map(commands) {
            seen.insert(command.split_whitespace().take(3).collect::<Vec<_>>().join(" "));
            let id = finding.rule.id;
            // `--help` is an answer, too.
            let kind = parsed(command).err().filter(|kind| *kind != ErrorKind::DisplayHelp);
            assert_eq!(kind, None, "{id}: {command}");
        }
    }
    for remedy in ["bundled-libraries", "loader-path", "libfabric", "default-backend", "install-nixl"] {
        assert!(seen.contains(&format!("kvrail fix {remedy}")), "{remedy} mends nothing: {seen:?}");
    }
}

#[test]
fn every_command_that_a_page_of_help_names_is_one() {
    let mut count = 0;
    for rule in catalogue::rules() {
        for text in [rule.cause, rule.remedy, rule.story] {
            for command in text.split('`').skip(1).step_by(2).filter(|code| code.starts_with("kvrail ")) {
                count += 1;
                // In a text, `kvrail doctor log` is the name of a command, which may want more.
                let kind = parsed(command).err();
                let is_name = kind.is_none_or(|kind| {
                    matches!(
                        kind,
                        ErrorKind::MissingRequiredArgument
                            | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
                    )
                });
                assert!(is_name, "{}: {command}: {kind:?}", rule.id);
            }
        }
    }
    assert!(count > 0);
}

/// One list is of what agents read, the other of what doctor knows.
#[test]
fn doctor_knows_every_setting_of_kvrail() {
    use kvrail::config::{KNOBS, TEXTS};
    let all = KNOBS.iter().map(|knob| knob.variable).chain(TEXTS.iter().map(|text| text.variable));
    for name in all.chain([kvrail::config::TRANSPORT_VARIABLE]) {
        assert!(kvrail_doctor::known::KVRAIL.contains(&name), "{name}");
    }
}
