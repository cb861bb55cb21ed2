//! What each provider grants: decided once, in one table, with the reason (KR-2).

use std::time::Duration;

use kvrail_core::transport::Evidence;

/// What is known of a provider before it is opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Grants {
    /// Its name, as in [`super::Provider`].
    pub provider: &'static str,
    /// What proves that a write is visible at the target.
    pub evidence: Evidence,
    /// Why.
    pub why: &'static str,
    /// How long after a failed op, or after its endpoint was closed, bytes of it may still land.
    pub linger: Duration,
    /// Why that long.
    pub linger_why: &'static str,
    /// Whether the target's own check of keys can be relied upon; if not, kvrail's checks before posting are the only ones.
    pub checks_keys: bool,
}

const EFA: &str = "a completion says that the peer's NIC has acknowledged the data, not that it is visible";
const EFA_LINGER: &str = "packets that were on their way, and their retransmissions, end within milliseconds";

/// The providers that are known. Others are treated as [`UNKNOWN`].
pub const TABLE: [Grants; 5] = [
    Grants {
        provider: "efa-direct",
        evidence: Evidence::Counted,
        why: EFA,
        linger: Duration::from_millis(20),
        linger_why: EFA_LINGER,
        checks_keys: true,
    },
    Grants {
        provider: "efa",
        evidence: Evidence::Counted,
        why: EFA,
        linger: Duration::from_millis(20),
        linger_why: EFA_LINGER,
        checks_keys: true,
    },
    Grants {
        provider: "tcp",
        evidence: Evidence::Delivered,
        why: "FI_DELIVERY_COMPLETE is granted: the target answers after it has placed the bytes",
        linger: Duration::from_millis(200),
        linger_why: "what lies in the sockets' buffers is still read by the target after this side has closed",
        checks_keys: false,
    },
    Grants {
        provider: "shm",
        evidence: Evidence::Counted,
        why: "its completion also comes for a write that the target refused",
        linger: Duration::from_millis(200),
        linger_why: "a command that lies in the target's queue is carried out when the target polls",
        checks_keys: false,
    },
    Grants {
        provider: "verbs",
        evidence: Evidence::Counted,
        why: "an acknowledgement comes from the peer's NIC, and may precede visibility",
        linger: Duration::from_millis(200),
        linger_why: "packets on their way after the queue pair went into its error state",
        checks_keys: true,
    },
];

/// What holds for a provider that nobody has studied: the strictest of everything.
pub const UNKNOWN: Grants = Grants {
    provider: "others",
    evidence: Evidence::Counted,
    why: "nothing is known of what its completions prove",
    linger: Duration::from_millis(500),
    linger_why: "nothing is known of how long its packets live",
    checks_keys: false,
};

/// What a provider grants.
#[must_use]
pub fn of(provider: &str) -> &'static Grants {
    TABLE.iter().find(|grants| grants.provider == provider).unwrap_or(&UNKNOWN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_says_of_each_provider_what_the_table_does() {
        let page = include_str!("../../../../docs/libfabric.md");
        let all = || TABLE.iter().chain([&UNKNOWN]);
        let row = |first: &str, cell: &dyn Fn(&Grants) -> String| {
            let cells: Vec<String> = all().map(cell).collect();
            format!("| {first} | {} |", cells.join(" | "))
        };
        let names = all().map(|grants| match grants.provider {
            "others" => "others".to_string(),
            name => format!("`{name}`"),
        });
        assert!(page.contains(&format!("| | {} |", names.collect::<Vec<_>>().join(" | "))));
        for row in [
            row("evidence of a write", &|grants| grants.evidence.to_string()),
            row("bytes may land after a failure for", &|grants| format!("{} ms", grants.linger.as_millis())),
        ] {
            assert!(page.contains(&row), "docs/libfabric.md should have a row {row}");
        }
    }

    #[test]
    fn only_a_provider_whose_completion_proves_delivery_is_believed() {
        let delivered: Vec<_> = TABLE
            .iter()
            .filter(|grants| grants.evidence == Evidence::Delivered)
            .map(|g| g.provider)
            .collect();
        assert_eq!(delivered, ["tcp"]);
        assert_eq!(of("psm3").evidence, Evidence::Counted);
        assert!(TABLE.iter().all(|grants| grants.linger <= UNKNOWN.linger), "unknown is the most careful");
    }
}
