//! The faults that NIXL is put under, and what each stands for in a data centre.

/// One fault.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scenario {
    /// As `kvrail softefa fault` takes it; empty = none.
    pub(super) fault: &'static str,
    /// What it stands for.
    pub(super) meaning: &'static str,
    pub(super) when: When,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum When {
    /// Between two transfers.
    Running,
    /// Before the peers start.
    FromTheStart,
    /// No fault of the fabric: the target's process is killed between two transfers.
    TargetKilled,
}

const fn running(fault: &'static str, meaning: &'static str) -> Scenario {
    Scenario { fault, meaning, when: When::Running }
}

/// Two nodes with two rails each; node 0 initiates.
pub(super) const SCENARIOS: &[Scenario] = &[
    running("", "nothing: the canary"),
    running("rail-down --node 0 --nic 0", "one of the initiator's two NICs dies"),
    running("rail-down --node 1 --nic 0", "one of the target's two NICs dies"),
    running(
        "black-hole --node 0 --nic 0 --peer-node 1",
        "a path loses everything in one direction; the device reports it",
    ),
    running("black-hole --silent --node 0 --nic 0 --peer-node 1", "the same, never reported"),
    running("no-egress --node 0", "the security group loses its rule for members' egress"),
    running("secondary-cidr --node 1", "the target's address is in a CIDR that no rule covers"),
    Scenario { fault: "no-egress --node 0", meaning: "that rule was never there", when: When::FromTheStart },
    running("drop 10%", "one packet in ten is lost and sent again"),
    running("delay 5ms", "every packet is 5 ms late"),
    running("rate 1Gbps --node 0", "the initiator's NICs send at 1 Gb/s"),
    running("bad-key --node 0", "the target's registration is gone or its key stale"),
    running("missing-ah --node 0", "the target has no address handle for the initiator"),
    running("not-ready --node 0", "the target has no receive posted"),
    running("peer-restarted --node 0", "the target's queue pair is gone"),
    running("unreachable --node 0", "the target is never heard"),
    running("unresponsive --node 0", "the target has stopped answering"),
    running(
        "no-registration --node 0",
        "the initiator's registrations are used up after its buffers were registered",
    ),
    Scenario {
        fault: "no-registration --node 0",
        meaning: "they were used up from the start",
        when: When::FromTheStart,
    },
    running("cq-overflow --node 0 --capacity 16", "completions are not read as fast as they come"),
    Scenario { fault: "", meaning: "the target's process is killed", when: When::TargetKilled },
];
