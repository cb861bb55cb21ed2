//! The transport contract on libfabric's `efa-direct` and `efa` providers, over an emulated device: with one rail, several,
//! 32, and unequal ones.
//!
//! This program is also what runs on the emulated node, so that it has a `main` of its own, which understands the words of
//! cargo's test harness that people use: filters, `--exact`, `--list`. Skipped, and said so, where no libfabric with EFA is
//! to be had.

// Without cargo's harness the unit tests of what it includes are not there, and what they import is unused.
#[allow(unused_imports)]
mod nodes;

mod asked;
// The suite is a program of the transport's tests.
#[path = "../../kvrail-transport/tests/common/ofi_suite.rs"]
mod ofi_suite;

use std::process::{Command, ExitCode};

use nodes::Libfabric;

/// The word by which this program knows that it runs on a node.
const WORD: &str = "conform";

/// A run of the suite: its name, provider, rails of the nodes in turn, and properties (none = all).
type Lane = (&'static str, &'static str, &'static str, &'static [&'static str]);

/// Where there are many rails, the properties that have to do with them: the others take long and see nothing new.
const MANY: &[&str] = &["caps", "route", "random", "messages", "unequal", "region", "vanished_peer_is"];

const LANES: [Lane; 9] = [
    ("efa_direct_with_one_rail", "efa-direct", "1", &[]),
    ("efa_direct_with_four_rails", "efa-direct", "4", &[]),
    ("efa_direct_with_four_rails_and_eight", "efa-direct", "4,8", &[]),
    ("efa_direct_with_32_rails_and_one", "efa-direct", "32,1", MANY),
    ("efa_direct_with_32_rails", "efa-direct", "32", MANY),
    ("efa_with_one_rail", "efa", "1", &[]),
    ("efa_with_four_rails", "efa", "4", &[]),
    ("efa_with_four_rails_and_eight", "efa", "4,8", MANY),
    ("efa_with_32_rails", "efa", "32", MANY),
];

fn run(libfabric: &Libfabric, &(name, provider, rails, properties): &Lane) -> bool {
    let most = rails.split(',').filter_map(|count| count.parse().ok()).max().unwrap_or(1u32);
    let ended = Command::new(env!("CARGO_BIN_EXE_kvrail"))
        .args(["softefa", "run", "--nodes", "1", "--nics", &most.to_string(), "--instant", "--loopback"])
        .arg("--libfabric")
        .arg(&libfabric.directory)
        .arg("--")
        .arg(std::env::current_exe().expect("this program has a file"))
        .args([WORD, provider, rails])
        .args(properties)
        .env("KVRAIL_LIBFABRIC", &libfabric.directory)
        .output()
        .expect("kvrail starts");
    let said = String::from_utf8_lossy(&ended.stdout);
    if ended.status.success() {
        println!("test {name} ... ok");
        return true;
    }
    let broken: Vec<&str> = said.lines().filter(|line| line.contains("does not hold: ")).collect();
    println!("test {name} ... FAILED");
    println!("{}\n{}", broken.join("\n"), String::from_utf8_lossy(&ended.stderr));
    false
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().is_some_and(|word| word == WORD) {
        return ofi_suite::run(&arguments[1..]);
    }
    let wanted = asked::wanted(&LANES, |(name, ..)| *name, &arguments);
    if wanted.is_empty() {
        return ExitCode::SUCCESS;
    }
    let libfabric = match Libfabric::find() {
        Ok(libfabric) => libfabric,
        Err(why) => {
            wanted.iter().for_each(|(name, ..)| nodes::skip(name, &why));
            return ExitCode::SUCCESS;
        }
    };
    let failed = wanted.iter().filter(|lane| !run(&libfabric, lane)).count();
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::from(1) }
}
