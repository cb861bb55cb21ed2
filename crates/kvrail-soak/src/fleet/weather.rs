//! Faults and other troubles of a run, and which errors they explain.

use std::time::{Duration, Instant};

use kvrail_sim::rng::Rng;

use crate::talk::Class;

/// How long after its end a fault still explains an error: packets, routes and peers that were given up.
const AFTERMATH: Duration = Duration::from_secs(6);

/// A fault as `kvrail softefa fault` takes it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fault {
    /// Kind and values.
    pub kind: &'static str,
    /// Where it sits.
    pub node: Option<usize>,
    /// On which NIC.
    pub nic: Option<usize>,
    /// Whose traffic it concerns.
    pub peer_node: Option<usize>,
    /// Bites so often of 100.
    pub percent: Option<u64>,
    /// Ends by itself, milliseconds.
    pub lasts_ms: Option<u64>,
}

/// Kinds of a random schedule: words, whether it can be confined to a NIC.
const KINDS: [(&str, bool); 16] = [
    ("rail-down", true),
    ("rail-down", true),
    ("rail-down", true),
    ("black-hole", true),
    ("black-hole --silent", true),
    ("no-egress", true),
    ("secondary-cidr", true),
    ("drop 2%", true),
    ("delay 2ms 2ms", true),
    ("rate 2Gbps", true),
    ("bad-key", true),
    ("missing-handle", true),
    ("not-ready", true),
    ("peer-restarted", true),
    ("unreachable", true),
    ("unresponsive", true),
];

impl Fault {
    /// Any fault.
    pub(super) fn random(rng: &mut Rng, nodes: usize, nics: usize, longest_ms: u64) -> Self {
        let (kind, confined) = rng.pick(&KINDS);
        let on_nic = confined && nics > 1 && rng.chance(800_000);
        Self {
            kind,
            node: Some(rng.index(nodes)),
            nic: on_nic.then(|| rng.index(nics)),
            peer_node: None,
            percent: rng.chance(200_000).then(|| rng.within(5, 60)),
            lasts_ms: Some(rng.within(20, longest_ms)),
        }
    }

    /// The words of `kvrail softefa fault`.
    #[must_use]
    pub fn words(&self) -> Vec<String> {
        let mut words: Vec<String> = self.kind.split(' ').map(str::to_owned).collect();
        let mut add = |flag: &str, value: Option<String>| {
            words.extend(value.into_iter().flat_map(|value| [flag.to_owned(), value]));
        };
        add("--node", self.node.map(|n| n.to_string()));
        add("--nic", self.nic.map(|n| n.to_string()));
        add("--peer-node", self.peer_node.map(|n| n.to_string()));
        // `drop` takes its share as its value.
        let percent = self.percent.filter(|_| !self.kind.starts_with("drop"));
        add("--probability", percent.map(|p| format!("{p}%")));
        add("--for", self.lasts_ms.map(|ms| format!("{ms}ms")));
        words
    }

    /// It makes things slow, and nothing else.
    fn only_delays(&self) -> bool {
        ["drop", "delay", "rate", "not-ready"].iter().any(|kind| self.kind.starts_with(kind))
    }

    /// Other rails stand when it has struck, and can take over.
    fn spares_rails(&self, rails: usize) -> bool {
        let survivable = [
            "rail-down",
            "black-hole",
            "no-egress",
            "secondary-cidr",
            "missing-handle",
            "unreachable",
            "unresponsive",
            "peer-restarted",
        ];
        self.nic.is_some() && rails > 1 && survivable.iter().any(|kind| self.kind.starts_with(kind))
    }
}

/// What has gone wrong, and when.
#[derive(Debug, Default)]
pub(super) struct Weather {
    faults: Vec<(Fault, Instant, Instant)>,
    /// A node's process was killed.
    kills: Vec<(usize, Instant)>,
    /// One node has lost another.
    partings: Vec<(usize, usize, Instant)>,
    /// A node's region was registered anew.
    renewals: Vec<(usize, Instant)>,
}

/// What an error has to be explained by.
#[derive(Clone, Copy, Debug)]
pub(super) struct Case {
    pub(super) initiator: usize,
    pub(super) responder: usize,
    /// Rails of the one with fewer.
    pub(super) rails: usize,
    pub(super) began: Instant,
    pub(super) class: Class,
}

impl Weather {
    pub(super) fn fault(&mut self, fault: Fault, now: Instant) {
        let until = fault.lasts_ms.map_or(now + Duration::from_secs(86_400), |ms| {
            now + Duration::from_millis(ms) + Duration::from_millis(50)
        });
        self.faults.push((fault, now, until));
    }

    pub(super) fn clear(&mut self, now: Instant) {
        self.faults.iter_mut().for_each(|(.., until)| *until = (*until).min(now));
    }

    pub(super) fn killed(&mut self, node: usize, now: Instant) {
        self.kills.push((node, now));
    }

    pub(super) fn parted(&mut self, a: usize, b: usize, now: Instant) {
        self.partings.push((a, b, now));
    }

    pub(super) fn renewed(&mut self, node: usize, now: Instant) {
        self.renewals.push((node, now));
    }

    /// Whether two nodes have lost each other since.
    pub(super) fn parted_since(&self, a: usize, b: usize, since: Instant) -> bool {
        let pair = |x: usize, y: usize| (x, y) == (a, b) || (x, y) == (b, a);
        self.partings.iter().any(|(x, y, at)| pair(*x, *y) && *at + AFTERMATH >= since)
            || self.kills.iter().any(|(node, at)| (*node == a || *node == b) && *at + AFTERMATH >= since)
    }

    /// What is forgotten: it can explain nothing any more.
    pub(super) fn forget_before(&mut self, oldest: Instant) {
        let old = oldest.checked_sub(2 * AFTERMATH).unwrap_or(oldest);
        self.faults.retain(|(.., until)| *until >= old);
        self.kills.retain(|(_, at)| *at >= old);
        self.partings.retain(|(.., at)| *at >= old);
        self.renewals.retain(|(_, at)| *at >= old);
    }

    /// Whether anything that happened explains this ending.
    pub(super) fn explains(&self, case: &Case) -> bool {
        let Case { initiator, responder, rails, began, class } = *case;
        let since = |until: Instant| until + AFTERMATH >= began;
        let ours = |node: usize| node == initiator || node == responder;
        let killed = self.kills.iter().any(|(node, at)| ours(*node) && since(*at));
        let parted = self.parted_since(initiator, responder, began);
        let renewed = self.renewals.iter().any(|(node, at)| *node == responder && since(*at));
        if killed || parted && matches!(class, Class::PeerLost | Class::UnknownPeer | Class::StaleRegion) {
            return true;
        }
        if renewed && matches!(class, Class::BadKey | Class::Op | Class::StaleRegion | Class::PeerLost) {
            return true;
        }
        let struck: Vec<&Fault> = self
            .faults
            .iter()
            .filter(|(fault, _, until)| since(*until) && !fault.only_delays() && fault.node.is_none_or(ours))
            .map(|(fault, ..)| fault)
            .collect();
        match struck.as_slice() {
            [] => false,
            // One of several rails: its work moves to the others, and nothing fails.
            [one] if one.spares_rails(rails) => false,
            _ => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_dead_rail_of_two_explains_nothing_and_both_do() {
        let mut weather = Weather::default();
        let now = Instant::now();
        let down = |nic| Fault {
            kind: "rail-down",
            node: Some(0),
            nic: Some(nic),
            peer_node: None,
            percent: None,
            lasts_ms: Some(1000),
        };
        let case = Case { initiator: 1, responder: 0, rails: 2, began: now, class: Class::Deadline };
        assert!(!weather.explains(&case));
        weather.fault(down(0), now);
        assert!(!weather.explains(&case));
        assert!(weather.explains(&Case { rails: 1, ..case }));
        weather.fault(down(1), now);
        assert!(weather.explains(&case));
        assert!(!weather.explains(&Case { began: now + Duration::from_secs(60), ..case }));
        assert!(!weather.explains(&Case { initiator: 1, responder: 2, ..case }));
    }
}
