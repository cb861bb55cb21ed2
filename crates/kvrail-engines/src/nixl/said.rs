//! What NIXL, UCX and libfabric say of themselves in their logs, as facts.
//!
//! The lines are the same in NIXL 1.0 to 1.5 and UCX 1.18 to 1.23, except where noted; a line that is not understood is no fact.

use std::collections::{BTreeMap, VecDeque};

/// Complaints that are kept, newest last.
const COMPLAINTS_MAX: usize = 4;
/// Bytes of one that are kept.
const COMPLAINT_BYTES_MAX: usize = 300;
/// Rails, and kinds of transfers, that are kept.
const ENTRIES_MAX: usize = 256;

/// Facts out of logs.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Said {
    /// `1.5.1 (git: 1d2a52eb)`
    pub(super) version: Option<String>,
    /// LIBFABRIC's provider.
    pub(super) provider: Option<String>,
    /// LIBFABRIC's rails: device by number.
    pub(super) devices: BTreeMap<u32, String>,
    /// The rails that the memory was registered on.
    pub(super) memory_rails: Vec<u32>,
    /// `1.23.0`; since NIXL 1.5.
    pub(super) ucx: Option<String>,
    /// How UCX moves bytes to or from other processes: `remote memory write by ucp_put*…` → `0..inf zero-copy cma/memory`.
    pub(super) routes: BTreeMap<String, Vec<String>>,
    /// Warnings and errors.
    pub(super) complaints: VecDeque<String>,
    /// The table of UCX's that is being read: its endpoint and its operation.
    table: Option<(String, Option<String>)>,
}

impl Said {
    /// Takes in more of the logs.
    pub(super) fn take_in(&mut self, text: &str) {
        for line in text.lines() {
            if let Some((severity, message)) = of_nixl(line) {
                self.nixl(message);
                if severity != 'I' {
                    self.complain(message);
                }
            } else if let Some(rest) = of_ucx(line) {
                match table_cells(rest) {
                    Some(cells) => self.ucx_table(&cells),
                    None if ["ERROR", "WARN", "FATAL"].iter().any(|word| rest.contains(word)) => {
                        self.complain(rest)
                    }
                    None => {}
                }
            }
        }
    }

    /// The newest complaint.
    pub(super) fn last_words(&self) -> Option<&str> {
        self.complaints.back().map(String::as_str)
    }

    fn complain(&mut self, what: &str) {
        let end = (0..=what.len().min(COMPLAINT_BYTES_MAX))
            .rev()
            .find(|end| what.is_char_boundary(*end))
            .unwrap_or(0);
        if self.complaints.len() == COMPLAINTS_MAX {
            self.complaints.pop_front();
        }
        self.complaints.push_back(what[..end].trim().to_owned());
    }

    fn nixl(&mut self, message: &str) {
        if let Some(version) = message.strip_prefix("NIXL version: ") {
            self.version = Some(version.trim().to_owned());
        } else if let Some((_, provider)) = message.split_once(" rails using provider=") {
            self.provider = Some(provider.trim().to_owned());
        } else if let Some(rest) = message.strip_prefix("Created rail ") {
            // `0 (device=eth0, provider=tcp)`
            let number = rest.split(' ').next().and_then(|number| number.parse().ok());
            let device = rest.split_once("device=").and_then(|(_, rest)| rest.split([',', ')']).next());
            if let (Some(number), Some(device)) = (number, device)
                && self.devices.len() < ENTRIES_MAX
            {
                self.devices.insert(number, device.to_owned());
            }
        } else if let Some(rest) = message.strip_prefix("Registered memory on rail ") {
            let number =
                rest.split(|c: char| !c.is_ascii_digit()).next().and_then(|number| number.parse().ok());
            if let Some(number) = number
                && !self.memory_rails.contains(&number)
                && self.memory_rails.len() < ENTRIES_MAX
            {
                self.memory_rails.push(number);
            }
        } else if let Some(rest) = message.strip_prefix("NIXL UCX backend bound to UCX ") {
            self.ucx = rest.split(' ').next().map(str::to_owned);
        }
    }

    /// A table: a title of two rows (endpoint, operation), a head, and rows of range, description, configuration.
    fn ucx_table(&mut self, cells: &[&str]) {
        match cells {
            [title] if title.contains("cfg#") => self.table = Some(((*title).to_owned(), None)),
            [operation] => {
                if let Some((_, what)) = &mut self.table {
                    *what = Some((*operation).to_owned());
                }
            }
            [range, how, with] if *range != "Range" => {
                let Some((endpoint, Some(operation))) = &self.table else { return };
                // A worker's connection to itself carries nothing of a transfer.
                if !operation.starts_with("remote memory") || endpoint.contains(" self cfg#") {
                    return;
                }
                if self.routes.len() < ENTRIES_MAX {
                    let ranges = self.routes.entry(operation.clone()).or_default();
                    let range = format!("{range} {how} {with}");
                    if !ranges.contains(&range) && ranges.len() < ENTRIES_MAX {
                        ranges.push(range);
                    }
                }
            }
            _ => {}
        }
    }

    /// How UCX moves bytes that way, in its own words: the ranges of the operation that a request of many blocks uses.
    pub(super) fn route(&self, verb: &str) -> Option<String> {
        let of_verb = |name: &&String| name.starts_with(&format!("remote memory {verb} "));
        let name = self.routes.keys().filter(of_verb).max_by_key(|name| name.contains("(multi)"))?;
        self.routes.get(name).map(|ranges| ranges.join(", "))
    }

    /// The devices in UCX's words about transfers, as `mlx5_0` of `rc_mlx5/mlx5_0:1`; memory of the same host is none.
    pub(super) fn ucx_devices(&self) -> Vec<String> {
        let words = self.routes.values().flatten().flat_map(|range| range.split([' ', ',']));
        let mut devices: Vec<_> = words
            .filter_map(|word| word.split('/').nth(1))
            .map(|device| device.split(':').next().unwrap_or(device).to_owned())
            .filter(|device| device != "memory" && !device.is_empty())
            .collect();
        devices.sort();
        devices.dedup();
        devices
    }
}

/// Severity and message of a line of Abseil's log: `I1120 21:06:40.465411   23948 nixl_log.cpp:80] NIXL version: …`.
fn of_nixl(line: &str) -> Option<(char, &str)> {
    let mut letters = line.chars();
    let severity = letters.next().filter(|letter| "IWEF".contains(*letter))?;
    if !letters.by_ref().take(4).all(|letter| letter.is_ascii_digit()) {
        return None;
    }
    let (head, message) = line.split_once("] ")?;
    (head.contains(':') && head.len() < 200).then_some((severity, message))
}

/// What follows the stamp of a line of UCX's log: `[1795208800.945676] [vm:23948:0]   | …`.
fn of_ucx(line: &str) -> Option<&str> {
    let (stamp, rest) = line.strip_prefix('[')?.split_once("] [")?;
    let is_stamp = stamp.contains('.') && stamp.chars().all(|c| c.is_ascii_digit() || c == '.');
    is_stamp.then_some(rest.split_once(']')?.1)
}

/// The cells of a row of a table; none at all for its rules.
fn table_cells(rest: &str) -> Option<Vec<&str>> {
    let row = rest.trim();
    if row.starts_with("+-") {
        return Some(Vec::new());
    }
    let inner = row.strip_prefix('|')?.strip_suffix('|')?;
    Some(inner.split(" | ").map(str::trim).collect())
}

/// Whether a line was only written because the surroundings asked for it.
pub(super) fn is_for_machines(line: &str) -> bool {
    match of_nixl(line) {
        Some((severity, _)) => severity == 'I',
        None => of_ucx(line).is_some_and(|rest| table_cells(rest).is_some()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIBFABRIC: &str = "\
I1120 21:07:46.074171   25047 nixl_log.cpp:80] NIXL version: 1.4.0 (git: 51a42f86)
I1120 21:07:46.108647   25047 libfabric_topology.cpp:142] Discovered 1 tcp devices (TCP fallback)
I1120 21:07:46.116633   25047 libfabric_rail_manager.cpp:359] Created rail 0 (device=eth0, provider=tcp)
I1120 21:07:46.116636   25047 libfabric_rail_manager.cpp:232] Created 1 rails using provider=tcp
I1120 21:07:46.116640   25047 libfabric_rail_manager.cpp:816] Registered memory on rail 0 (mr: 0x1)
E1120 21:07:46.116692   25047 nixl_agent.cpp:318] getPluginParams: backend 'X' not found
a line of somebody else's
";

    const UCX: &str = "\
[1.971882] [vm:23949:0]   +--------+-------------+-----------------------------------+
[1.971882] [vm:23949:0]   | initiator self cfg#0                                     |
[1.971882] [vm:23949:0]   | remote memory read by ucp_get* into host memory from host |
[1.971882] [vm:23949:0]   +--------+-------------+-----------------------------------+
[1.971882] [vm:23949:0]   | 0..inf | zero-copy   | self/memory                       |
[1.971882] [vm:23949:0]   +--------+-------------+-----------------------------------+
[1.971882] [vm:23949:0]   | initiator inter-node cfg#1                                      |
[1.971882] [vm:23949:0]   | remote memory read by ucp_get*(multi) into host memory from host |
[1.971882] [vm:23949:0]   +--------+-------------+-----------------------------------+
[1.971882] [vm:23949:0]   | Range  | Description |              Config               |
[1.971882] [vm:23949:0]   +--------+-------------+-----------------------------------+
[1.971882] [vm:23949:0]   | 0..inf | zero-copy   | 50% on rc_mlx5/mlx5_0:1 and 50% on rc_mlx5/mlx5_1:1/path0 |
[1.971882] [vm:23949:0]   +--------+-------------+-----------------------------------+
[1.971882] [vm:23949:0]        tcp_ep.c:1 UCX  ERROR connect to 10.0.0.1 failed
";

    #[test]
    fn provider_rails_and_complaints_are_taken_from_nixls_words() {
        let mut said = Said::default();
        said.take_in(LIBFABRIC);
        assert_eq!(said.version.as_deref(), Some("1.4.0 (git: 51a42f86)"));
        assert_eq!(
            (said.provider.as_deref(), said.devices.get(&0).map(String::as_str)),
            (Some("tcp"), Some("eth0"))
        );
        assert_eq!(said.memory_rails, [0]);
        assert_eq!(said.last_words(), Some("getPluginParams: backend 'X' not found"));
    }

    #[test]
    fn ucxs_tables_say_which_devices_carry_which_ranges() {
        let mut said = Said::default();
        said.take_in(UCX);
        let route = said.route("read").unwrap();
        assert_eq!(route, "0..inf zero-copy 50% on rc_mlx5/mlx5_0:1 and 50% on rc_mlx5/mlx5_1:1/path0");
        assert_eq!(said.ucx_devices(), ["mlx5_0", "mlx5_1"]);
        assert_eq!(said.route("write"), None);
        assert!(said.last_words().unwrap().ends_with("connect to 10.0.0.1 failed"));
    }

    #[test]
    fn what_a_person_should_see_is_not_for_machines() {
        let passed: Vec<_> =
            LIBFABRIC.lines().chain(UCX.lines()).filter(|line| !is_for_machines(line)).collect();
        assert_eq!(passed.len(), 3, "{passed:?}");
    }

    #[test]
    fn logs_that_make_no_sense_are_no_facts() {
        let mut said = Said::default();
        for line in [
            "I",
            "I1120",
            "[1.2] [",
            "[1.2] [x]",
            "[1.2] [x] | |",
            "|a|b|c|",
            "I1120 a:b] Created rail x (device=",
        ] {
            said.take_in(line);
        }
        said.take_in(&format!("E1120 1:2 x:1] {}", "ä".repeat(4000)));
        assert!(said.last_words().unwrap().len() <= COMPLAINT_BYTES_MAX);
        assert!(said.devices.is_empty() && said.routes.is_empty() && said.version.is_none());
        said.take_in(&"E1120 1:2 x:1] y\n".repeat(100));
        assert_eq!(said.complaints.len(), COMPLAINTS_MAX);
    }
}
