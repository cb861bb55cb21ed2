//! The probable cause of a peer's silence, from what the rails counted while it lasted (KR-4).
//!
//! A fabric that drops packets by rule says so to nobody: no error, no completion. What tells the causes apart is
//! whether the device sent, and whether anything came back. The rule is a pure function of two readings, for any
//! transport that counts.

use std::fmt;

use kvrail_core::transport::{DeviceCounters, RailCounters};

/// What one rail counted while the peer was silent.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Growth {
    /// Ops and messages handed to the fabric.
    pub posted: u64,
    /// Those reported as done.
    pub completed: u64,
    /// Messages and immediates that arrived.
    pub received: u64,
    /// Packets that the device sent and received, where it counts.
    pub packets: Option<(u64, u64)>,
    /// Packets sent again, where the device counts them.
    pub retransmitted: Option<u64>,
    /// Whether the device received any packet before, since the rail was opened.
    pub received_before: bool,
}

impl Growth {
    /// From a reading before to one after; for what was counted since the rail was opened, before is
    /// [`RailCounters::default`].
    #[must_use]
    pub fn between(before: &RailCounters, after: &RailCounters) -> Self {
        let zero = DeviceCounters::default();
        let old = before.device.as_ref().unwrap_or(&zero);
        let device = after.device.as_ref();
        let grown = |now: u64, then: u64| now.saturating_sub(then);
        Self {
            posted: grown(after.posted, before.posted),
            completed: grown(after.completed, before.completed),
            received: grown(after.received, before.received),
            packets: device
                .map(|now| (grown(now.tx_packets, old.tx_packets), grown(now.rx_packets, old.rx_packets))),
            retransmitted: device
                .and_then(|now| now.retransmitted)
                .map(|now| grown(now, old.retransmitted.unwrap_or(0))),
            received_before: old.rx_packets > 0,
        }
    }
}

/// Why a peer is probably silent.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Cause {
    /// The devices send and nothing comes back, nor ever did: something between drops by rule.
    NothingReturns {
        /// Packets sent.
        sent: u64,
    },
    /// The devices send and nothing comes back; it did before: the peer's host or NIC, or a rule that was changed.
    NoLongerReturns {
        /// Packets sent.
        sent: u64,
    },
    /// Ops were posted and the devices sent nothing.
    NothingLeaves {
        /// Ops and messages posted.
        posted: u64,
    },
    /// The peer's packets arrive and nothing that was sent was acknowledged: one direction is blocked.
    NothingArrives {
        /// Packets sent.
        sent: u64,
        /// Packets received.
        received: u64,
    },
    /// Packets go both ways, and the peer's NIC acknowledges: the fabric works, and the peer's process does not answer.
    PeerDoesNotAnswer {
        /// Packets sent.
        sent: u64,
        /// Packets received.
        received: u64,
        /// Ops and messages that the fabric reported as done.
        completed: u64,
    },
    /// Some rails work and others are dead: indices of the dead ones.
    SomeRails {
        /// Rails that sent and to which nothing came back, or that sent nothing of what was posted.
        dead: Vec<usize>,
        /// Rails over which packets went both ways.
        alive: Vec<usize>,
    },
    /// Nothing was handed to the fabric meanwhile: what is awaited is not of this side's asking.
    NothingAsked,
    /// No device counts where it can be read.
    Uncounted {
        /// Ops and messages posted.
        posted: u64,
        /// Those reported as done.
        completed: u64,
    },
}

/// What a single rail shows.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sign {
    Alive,
    NothingReturns,
    NothingLeaves,
    Idle,
    Uncounted,
}

fn sign(rail: &Growth) -> Sign {
    match rail.packets {
        None => Sign::Uncounted,
        // Something came over this rail, or the peer's NIC acknowledged: without that nothing completes on a fabric
        // whose device counts.
        Some((_, rx)) if rx > 0 || rail.completed > 0 => Sign::Alive,
        Some((tx, _)) if tx > 0 => Sign::NothingReturns,
        Some(_) if rail.posted > rail.completed => Sign::NothingLeaves,
        Some(_) => Sign::Idle,
    }
}

/// The probable cause of a silence, from what each rail counted meanwhile (in the order of their indices).
#[must_use]
pub fn probable_cause(rails: &[Growth]) -> Cause {
    let sum = |of: fn(&Growth) -> u64| rails.iter().map(of).fold(0u64, u64::saturating_add);
    let (posted, completed) = (sum(|rail| rail.posted), sum(|rail| rail.completed));
    let sent = sum(|rail| rail.packets.map_or(0, |(tx, _)| tx));
    let received = sum(|rail| rail.packets.map_or(0, |(_, rx)| rx));
    let with = |wanted: &[Sign]| -> Vec<usize> {
        let shows = |(_, rail): &(usize, &Growth)| wanted.contains(&sign(rail));
        rails.iter().enumerate().filter(shows).map(|(at, _)| at).collect()
    };
    let counted = rails.iter().any(|rail| rail.packets.is_some());
    if posted == 0 && sent == 0 && received == 0 {
        return Cause::NothingAsked;
    }
    if !counted {
        return Cause::Uncounted { posted, completed };
    }
    let alive = with(&[Sign::Alive]);
    let dead = with(&[Sign::NothingReturns, Sign::NothingLeaves]);
    if !alive.is_empty() {
        return if dead.is_empty() && completed == 0 && posted > 0 && sent > 0 {
            Cause::NothingArrives { sent, received }
        } else if dead.is_empty() {
            Cause::PeerDoesNotAnswer { sent, received, completed }
        } else {
            Cause::SomeRails { dead, alive }
        };
    }
    if sent > 0 {
        let before = rails.iter().any(|rail| rail.received_before);
        return if before { Cause::NoLongerReturns { sent } } else { Cause::NothingReturns { sent } };
    }
    if dead.is_empty() { Cause::Uncounted { posted, completed } } else { Cause::NothingLeaves { posted } }
}

/// The same from two readings of [`kvrail_core::transport::Transport::rail_counters`]; rails that the first lacks count
/// from zero.
#[must_use]
pub fn probable_cause_between(before: &[RailCounters], after: &[RailCounters]) -> Cause {
    let zero = RailCounters::default();
    let growth = |(at, now): (usize, &RailCounters)| Growth::between(before.get(at).unwrap_or(&zero), now);
    probable_cause(&after.iter().enumerate().map(growth).collect::<Vec<_>>())
}

fn rails(indices: &[usize]) -> String {
    let names: Vec<String> = indices.iter().take(8).map(ToString::to_string).collect();
    let more = indices.len().saturating_sub(names.len());
    let listed = names.join(", ");
    if more == 0 { listed } else { format!("{listed} and {more} more") }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NothingReturns { sent } => write!(
                f,
                "{sent} packets were sent and none has ever come back: a security group or route between the hosts \
                 probably drops them"
            ),
            Self::NoLongerReturns { sent } => write!(
                f,
                "{sent} packets were sent and none came back, as they did before: the peer's host or NIC has \
                 probably failed, or a security rule was changed"
            ),
            Self::NothingLeaves { posted } => write!(
                f,
                "{posted} operations were posted and the devices sent no packet: probably the wrong device, or one \
                 that is not configured"
            ),
            Self::NothingArrives { sent, received } => write!(
                f,
                "{received} packets came in, and none of the {sent} sent was acknowledged: what this host sends is \
                 probably dropped on its way"
            ),
            Self::PeerDoesNotAnswer { sent, received, completed } => write!(
                f,
                "the fabric works ({sent} packets sent, {received} received, {completed} operations done): the \
                 peer's process is probably busy or stopped"
            ),
            Self::SomeRails { dead, alive } => {
                write!(f, "packets return on rails {} and not on rails {}", rails(alive), rails(dead))
            }
            Self::NothingAsked => {
                f.write_str("nothing was posted meanwhile: the peer was not asked for anything")
            }
            Self::Uncounted { posted, completed } => write!(
                f,
                "{posted} operations were posted and {completed} completed; the devices' own counters cannot be \
                 read, so nothing tells a dropped packet from a stopped peer"
            ),
        }
    }
}

impl Cause {
    /// What to look at, one line each, the likeliest first.
    #[must_use]
    pub fn hints(&self) -> &'static [&'static str] {
        match self {
            Self::NothingReturns { .. } => &[
                "EFA needs an egress rule of the security group to itself; 0.0.0.0/0 does not cover it",
                "EFA needs an inbound rule from the security group to itself: all traffic",
                "addresses in a secondary CIDR of the VPC (100.64.0.0/16) need rules and routes of their own",
                "both hosts have to be in one subnet",
            ],
            Self::NoLongerReturns { .. } => &[
                "look at the peer's host: is it up, and are its NICs' ports active",
                "was a security group or a route changed since the connection was made",
            ],
            Self::NothingLeaves { .. } => &[
                "is this the device that was meant: the start log lists the rails with their NICs",
                "is the port active, and its driver bound: ports/1/state below /sys/class/infiniband",
            ],
            Self::NothingArrives { .. } => &[
                "this host's security group needs an egress rule to itself; 0.0.0.0/0 does not cover EFA",
                "the peer's needs an inbound rule from this host's: all traffic",
            ],
            Self::PeerDoesNotAnswer { .. } => &[
                "look at the peer's process: stopped, in a long kernel call, or not polling",
                "the counters belong to the device: other processes' packets count too",
            ],
            Self::SomeRails { .. } => &[
                "compare the dead rails' NICs on both hosts: security groups are attached to each interface",
            ],
            Self::NothingAsked => &["look at the peer: it was to begin"],
            Self::Uncounted { .. } => &[
                "the counters are below /sys/class/infiniband/DEVICE/ports/1; a container may hide them",
                "on tcp, look at the peer's process and at firewalls",
            ],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counters(posted: u64, completed: u64, device: Option<(u64, u64)>) -> RailCounters {
        let device = device.map(|(tx_packets, rx_packets)| DeviceCounters {
            tx_packets,
            rx_packets,
            retransmitted: Some(0),
        });
        RailCounters { posted, completed, device, ..RailCounters::default() }
    }

    fn cause(before: &[RailCounters], after: &[RailCounters]) -> Cause {
        probable_cause_between(before, after)
    }

    #[test]
    fn a_direction_that_is_blocked_is_told_from_a_peer_that_does_not_answer() {
        let blocked = cause(&[], &[counters(9, 0, Some((27, 10)))]);
        assert_eq!(blocked, Cause::NothingArrives { sent: 27, received: 10 });
        assert!(blocked.hints()[0].contains("egress"));
        let stopped = cause(&[], &[counters(9, 4, Some((27, 10)))]);
        assert!(matches!(stopped, Cause::PeerDoesNotAnswer { completed: 4, .. }));
    }

    #[test]
    fn a_security_group_without_egress_to_itself_is_told_from_a_wrong_device() {
        let none = counters(0, 0, Some((0, 0)));
        let dropped = cause(std::slice::from_ref(&none), &[counters(10, 0, Some((40, 0)))]);
        assert_eq!(dropped, Cause::NothingReturns { sent: 40 });
        assert!(dropped.hints()[0].contains("0.0.0.0/0"));
        assert!(dropped.hints().iter().any(|hint| hint.contains("100.64")));
        let wrong = cause(&[none], &[counters(10, 0, Some((0, 0)))]);
        assert_eq!(wrong, Cause::NothingLeaves { posted: 10 });
        assert!(wrong.to_string().contains("wrong device"));
    }

    #[test]
    fn a_stopped_peer_still_acknowledges_packets() {
        let before = counters(5, 5, Some((100, 100)));
        let after = counters(9, 9, Some((104, 104)));
        let stopped = Cause::PeerDoesNotAnswer { sent: 4, received: 4, completed: 4 };
        assert_eq!(cause(std::slice::from_ref(&before), &[after]), stopped);
        // Where acknowledgements are not counted as packets, completions tell.
        let after = counters(9, 9, Some((104, 100)));
        let stopped = Cause::PeerDoesNotAnswer { sent: 4, received: 0, completed: 4 };
        assert_eq!(cause(&[before], &[after]), stopped);
    }

    #[test]
    fn a_peer_that_answered_before_is_not_blamed_on_first_configuration() {
        let before = counters(5, 5, Some((100, 90)));
        let after = counters(9, 5, Some((180, 90)));
        assert_eq!(cause(&[before], &[after]), Cause::NoLongerReturns { sent: 80 });
    }

    #[test]
    fn dead_rails_are_told_from_living_ones() {
        let before = vec![counters(0, 0, Some((0, 0))); 3];
        let after =
            [counters(4, 0, Some((8, 0))), counters(4, 4, Some((8, 8))), counters(0, 0, Some((0, 0)))];
        let found = cause(&before, &after);
        assert_eq!(found, Cause::SomeRails { dead: vec![0], alive: vec![1] });
        assert_eq!(found.to_string(), "packets return on rails 1 and not on rails 0");
        let many = Cause::SomeRails { dead: (0..12).collect(), alive: vec![12] };
        assert!(many.to_string().ends_with("6, 7 and 4 more"), "{many}");
    }

    #[test]
    fn without_counters_nothing_is_claimed() {
        let after = [counters(4, 1, None)];
        let found = cause(&[], &after);
        assert_eq!(found, Cause::Uncounted { posted: 4, completed: 1 });
        assert!(found.to_string().contains("cannot be read"));
        assert_eq!(cause(&[], &[]), Cause::NothingAsked);
        assert_eq!(cause(&[], &[counters(0, 0, Some((0, 0)))]), Cause::NothingAsked);
        // A device that was replaced in between counts from zero again: nothing is negative.
        let gone = cause(&[counters(9, 9, Some((90, 90)))], &[counters(9, 9, Some((0, 0)))]);
        assert_eq!(gone, Cause::NothingAsked);
    }

    #[test]
    fn every_cause_says_something_and_what_to_look_at() {
        for cause in [
            Cause::NothingReturns { sent: 1 },
            Cause::NoLongerReturns { sent: 1 },
            Cause::NothingLeaves { posted: 1 },
            Cause::PeerDoesNotAnswer { sent: 1, received: 1, completed: 1 },
            Cause::SomeRails { dead: vec![1], alive: vec![2] },
            Cause::NothingAsked,
            Cause::Uncounted { posted: 1, completed: 0 },
        ] {
            assert!(!cause.to_string().is_empty() && !cause.hints().is_empty());
        }
    }
}
