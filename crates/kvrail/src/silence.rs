//! What the rails did while a peer was silent: the counters, and what they probably mean (KR-4).
//!
//! A fabric that drops everything says nothing: no error comes, on either side. What remains is arithmetic: packets that
//! leave and answers that do not come. The cause is judged from what was counted since the trouble began, that is since
//! the first route went down, or from all that was counted when none did.

use std::fmt;
use std::time::Duration;

use kvrail_core::engine::RailStats;
use kvrail_core::transport::{DeviceCounters, RailCounters};

/// Rails that are listed one by one; of more only these and a count.
const RAILS_LISTED: usize = 8;
/// From this share of packets on that were sent again, the path is what is wrong: one in so many.
const RETRANSMITTED_ONE_IN: u64 = 10;

/// The rails of a transport while a peer did not answer.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Silence {
    /// The transport.
    pub transport: &'static str,
    /// How long the trouble has lasted, since the first route went down; `None` when none has, and everything is
    /// counted since the rails were opened.
    pub lasted: Option<Duration>,
    /// In the order of their indices.
    pub rails: Vec<SilentRail>,
    /// What this probably comes from.
    pub cause: SilenceCause,
}

/// One rail of a [`Silence`].
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct SilentRail {
    /// Its name.
    pub name: String,
    /// What it counted since it was opened.
    pub total: RailCounters,
    /// What of that it counted since the trouble began.
    pub lately: RailCounters,
}

/// What a silence probably comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum SilenceCause {
    /// Packets leave and none comes back: a security group without a rule for its own members, in either direction, or
    /// an address that no rule covers.
    NothingComesBack,
    /// No packet leaves: the device is down, or not the one that is connected.
    NothingLeaves,
    /// Many packets are sent again: the path loses them.
    Loss,
    /// Packets come back, so that the network works: the peer's process does not do its part.
    PeerStalled,
    /// Nothing came from the peer, and the transport does not count packets.
    NoAnswer,
    /// The counters tell nothing.
    Unknown,
}

impl fmt::Display for SilenceCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NothingComesBack => {
                "packets leave and none comes back, as with a security group that does not allow its own members, or an \
                 address that no rule covers"
            }
            Self::NothingLeaves => "no packet leaves, as with a device that is down or not connected",
            Self::Loss => "many packets are sent again: the path loses them",
            Self::PeerStalled => "packets come back, so the network works and the peer's process does not",
            Self::NoAnswer => "nothing came from the peer",
            Self::Unknown => "the counters do not tell why",
        })
    }
}

/// Sums over rails.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Sums {
    posted: u64,
    completed: u64,
    received: u64,
    /// Of the rails whose device counts.
    device: Option<(u64, u64, u64)>,
}

impl Sums {
    fn of<'a>(rails: impl Iterator<Item = &'a RailCounters>) -> Self {
        rails.fold(Self::default(), |mut sums, rail| {
            sums.posted += rail.posted;
            sums.completed += rail.completed;
            sums.received += rail.received;
            if let Some(device) = &rail.device {
                let (tx, rx, again) = sums.device.unwrap_or_default();
                sums.device = Some((
                    tx + device.tx_packets,
                    rx + device.rx_packets,
                    again + device.retransmitted.unwrap_or(0),
                ));
            }
            sums
        })
    }

    fn cause(self) -> SilenceCause {
        match self.device {
            Some((0, 0, _)) => SilenceCause::NothingLeaves,
            // A device that sends again because it hears nothing is no lossy path.
            Some((_, 0, _)) => SilenceCause::NothingComesBack,
            Some((tx, _, again)) if again > 0 && again >= tx / RETRANSMITTED_ONE_IN => SilenceCause::Loss,
            Some(_) => SilenceCause::PeerStalled,
            None if self.received == 0 && self.completed == 0 => SilenceCause::NoAnswer,
            None => SilenceCause::Unknown,
        }
    }
}

/// What `now` counts beyond `then`; a device that was reset begins anew.
fn since(now: &RailCounters, then: &RailCounters) -> RailCounters {
    let device = now.device.as_ref().map(|now| {
        let then = then.device.clone().unwrap_or_default();
        DeviceCounters {
            tx_packets: now.tx_packets.saturating_sub(then.tx_packets),
            rx_packets: now.rx_packets.saturating_sub(then.rx_packets),
            retransmitted: now.retransmitted.map(|n| n.saturating_sub(then.retransmitted.unwrap_or(0))),
        }
    });
    RailCounters {
        posted: now.posted.saturating_sub(then.posted),
        completed: now.completed.saturating_sub(then.completed),
        failed: now.failed.saturating_sub(then.failed),
        received: now.received.saturating_sub(then.received),
        device,
    }
}

/// The engine's own counts, for a transport that counts nothing itself.
pub(crate) fn of_engine(rails: &[RailStats]) -> Vec<RailCounters> {
    let counters = |rail: &RailStats| RailCounters {
        posted: rail.ops_posted,
        completed: rail.ops_done,
        failed: rail.ops_failed,
        received: rail.immediates + rail.messages,
        device: None,
    };
    rails.iter().map(counters).collect()
}

impl Silence {
    /// From the counters of now and those of when the trouble began.
    pub(crate) fn new(
        transport: &'static str,
        names: impl Iterator<Item = String>,
        now: Vec<RailCounters>,
        trouble: Option<(Duration, &[RailCounters])>,
    ) -> Self {
        let none = RailCounters::default();
        let before = trouble.map_or(&[][..], |(_, counters)| counters);
        let rails: Vec<SilentRail> = names
            .zip(now)
            .enumerate()
            .map(|(i, (name, total))| {
                let lately = since(&total, before.get(i).unwrap_or(&none));
                SilentRail { name, total, lately }
            })
            .collect();
        let lately = Sums::of(rails.iter().map(|rail| &rail.lately));
        let cause = lately.cause();
        Self { transport, lasted: trouble.map(|(lasted, _)| lasted), rails, cause }
    }

    /// What to do, most promising first, and then the counters of each rail.
    #[must_use]
    pub fn hints(&self) -> Vec<String> {
        let advice: &[&str] = match self.cause {
            SilenceCause::NothingComesBack => &[
                "the security group has to allow all traffic to AND from itself: for EFA a rule for 0.0.0.0/0 is not enough",
                "an address in a secondary CIDR (100.64.0.0/16, say) needs rules of its own: compare both hosts' subnets",
                "or the peer's process has died: look whether it runs",
            ],
            SilenceCause::NothingLeaves => &[
                "look at the port: /sys/class/infiniband/DEVICE/ports/1/state says ACTIVE when it is connected",
                "name the NICs that are connected: KVRAIL_OFI_DEVICES, or the program's own setting",
            ],
            SilenceCause::Loss => {
                &["name other NICs (KVRAIL_OFI_DEVICES) to find the path that loses packets, and report it"]
            }
            SilenceCause::PeerStalled => &[
                "look at the peer's process: stopped, swapped out, or with inline progress and nobody calling it",
            ],
            SilenceCause::NoAnswer => &[
                "the peer has not answered at all: is it running, and with inline progress, does it call?",
                "check that a firewall lets the transport's ports through in both directions",
            ],
            SilenceCause::Unknown => &[],
        };
        let mut hints: Vec<String> = advice.iter().map(ToString::to_string).collect();
        hints.extend(self.rails.iter().take(RAILS_LISTED).map(ToString::to_string));
        if self.rails.len() > RAILS_LISTED {
            hints.push(format!("and {} rails more", self.rails.len() - RAILS_LISTED));
        }
        hints
    }
}

impl fmt::Display for Silence {
    /// One line: what went over all rails, and the probable cause.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sums = Sums::of(self.rails.iter().map(|rail| &rail.lately));
        let Self { transport, rails, cause, .. } = self;
        write!(f, "{transport}, {} rail{}: ", rails.len(), if rails.len() == 1 { "" } else { "s" })?;
        match sums.device {
            Some((tx, rx, _)) => write!(f, "{tx} packets sent and {rx} received")?,
            None => {
                let Sums { posted, completed, received, .. } = sums;
                write!(f, "{posted} ops posted, {completed} completed and {received} messages received")?;
            }
        }
        if let Some(lasted) = self.lasted {
            write!(f, " in the last {:.1} s", lasted.as_secs_f64())?;
        }
        write!(f, "; {cause}")
    }
}

impl fmt::Display for SilentRail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let RailCounters { posted, completed, failed, received, device } = &self.total;
        write!(
            f,
            "rail {}: {posted} posted, {completed} completed, {failed} failed, {received} received",
            self.name
        )?;
        if let Some(DeviceCounters { tx_packets, rx_packets, retransmitted }) = device {
            write!(f, "; its device: {tx_packets} packets sent, {rx_packets} received")?;
            if let Some(again) = retransmitted {
                write!(f, ", {again} sent again")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(posted: u64, completed: u64, received: u64, device: Option<(u64, u64, u64)>) -> RailCounters {
        let device = device.map(|(tx_packets, rx_packets, again)| DeviceCounters {
            tx_packets,
            rx_packets,
            retransmitted: Some(again),
        });
        RailCounters { posted, completed, failed: 0, received, device }
    }

    fn silence(now: RailCounters, trouble: Option<&RailCounters>) -> Silence {
        let then = trouble.map(|then| vec![then.clone()]);
        let trouble = then.as_deref().map(|then| (Duration::from_millis(4200), then));
        Silence::new("ofi", std::iter::once("rdmap79s0".into()), vec![now], trouble)
    }

    #[test]
    fn packets_that_leave_unanswered_are_a_missing_rule_of_the_security_group() {
        let silence = silence(counted(3, 0, 0, Some((40, 0, 0))), None);
        assert_eq!(silence.cause, SilenceCause::NothingComesBack);
        assert_eq!(
            silence.to_string(),
            "ofi, 1 rail: 40 packets sent and 0 received; packets leave and none comes back, as with a security group \
             that does not allow its own members, or an address that no rule covers"
        );
        let hints = silence.hints();
        assert!(hints[0].contains("security group") && hints[1].contains("secondary CIDR"), "{hints:?}");
        assert!(
            hints[3].contains("rail rdmap79s0: 3 posted") && hints[3].contains("40 packets sent"),
            "{hints:?}"
        );
    }

    #[test]
    fn what_was_received_before_the_trouble_does_not_hide_it() {
        let before = counted(1000, 1000, 1000, Some((5000, 5000, 3)));
        let now = counted(1012, 1000, 1000, Some((5030, 5000, 3)));
        let silence = silence(now, Some(&before));
        assert_eq!(silence.cause, SilenceCause::NothingComesBack);
        assert!(
            silence.to_string().contains("30 packets sent and 0 received in the last 4.2 s"),
            "{silence}"
        );
    }

    #[test]
    fn each_pattern_of_counters_has_its_own_cause() {
        let of = |posted, completed, received, device| {
            silence(counted(posted, completed, received, device), None).cause
        };
        assert_eq!(of(5, 0, 0, Some((0, 0, 0))), SilenceCause::NothingLeaves);
        assert_eq!(of(5, 1, 1, Some((100, 90, 0))), SilenceCause::PeerStalled);
        assert_eq!(of(5, 1, 1, Some((100, 20, 40))), SilenceCause::Loss);
        assert_eq!(of(5, 1, 1, Some((100, 0, 40))), SilenceCause::NothingComesBack);
        assert_eq!(of(5, 0, 0, None), SilenceCause::NoAnswer);
        assert_eq!(of(5, 4, 0, None), SilenceCause::Unknown);
        assert_eq!(of(0, 0, 0, None), SilenceCause::NoAnswer);
    }

    #[test]
    fn a_device_that_begins_to_count_anew_is_no_panic() {
        let silence = silence(counted(0, 0, 0, Some((1, 0, 0))), Some(&counted(9, 9, 9, Some((9, 9, 9)))));
        assert_eq!(silence.rails[0].lately, counted(0, 0, 0, Some((0, 0, 0))));
    }

    #[test]
    fn of_many_rails_some_are_listed_and_the_rest_is_counted() {
        let names = (0..32).map(|i| format!("efa{i}"));
        let silence = Silence::new("ofi", names, vec![RailCounters::default(); 32], None);
        assert_eq!(silence.hints().iter().filter(|hint| hint.starts_with("rail ")).count(), RAILS_LISTED);
        assert_eq!(silence.hints().last().unwrap(), "and 24 rails more");
    }
}
