//! What the rails did while a peer was silent: the counters, and what they probably mean (KR-4).
//!
//! A fabric that drops everything says nothing: no error comes, on either side. What remains is arithmetic: packets that
//! leave and answers that do not come. The cause is judged from what was counted since the trouble began, that is since
//! the first route went down, or from all that was counted when none did.

use std::fmt;
use std::time::Duration;

use kvrail_core::engine::RailStats;
use kvrail_core::transport::{DeviceCounters, RailCounters};
use kvrail_transport::silence::{Cause, probable_cause_between};

/// Rails that are listed one by one; of more only these and a count.
const RAILS_LISTED: usize = 8;

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
    pub cause: Cause,
}

/// One rail of a [`Silence`].
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct SilentRail {
    /// Its name.
    pub name: String,
    /// What it has counted since it was opened.
    pub counters: RailCounters,
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
        let cause = match probable_cause_between(trouble.map_or(&[], |(_, then)| then), &now) {
            // The engine counts no greetings: that nothing is counted does not mean that nobody was asked.
            Cause::NothingAsked if now.iter().all(|rail| rail.device.is_none()) => {
                Cause::Uncounted { posted: 0, completed: 0 }
            }
            cause => cause,
        };
        let rails = names.zip(now).map(|(name, counters)| SilentRail { name, counters }).collect();
        Self { transport, lasted: trouble.map(|(lasted, _)| lasted), rails, cause }
    }

    /// What to do, most promising first, and then the counters of each rail.
    #[must_use]
    pub fn hints(&self) -> Vec<String> {
        let mut hints: Vec<String> = self.cause.hints().iter().map(ToString::to_string).collect();
        hints.extend(self.rails.iter().take(RAILS_LISTED).map(ToString::to_string));
        if self.rails.len() > RAILS_LISTED {
            hints.push(format!("and {} rails more", self.rails.len() - RAILS_LISTED));
        }
        hints
    }
}

impl fmt::Display for Silence {
    /// One line: over how many rails, for how long, and the probable cause with what was counted.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { transport, rails, cause, lasted } = self;
        write!(f, "{transport}, {} rail{}", rails.len(), if rails.len() == 1 { "" } else { "s" })?;
        if let Some(lasted) = lasted {
            write!(f, ", in the last {:.1} s", lasted.as_secs_f64())?;
        }
        write!(f, ": {cause}")
    }
}

impl fmt::Display for SilentRail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let RailCounters { posted, completed, failed, received, device } = &self.counters;
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

    fn counted(posted: u64, completed: u64, device: Option<(u64, u64)>) -> RailCounters {
        let device = device.map(|(tx_packets, rx_packets)| DeviceCounters {
            tx_packets,
            rx_packets,
            retransmitted: Some(3),
        });
        RailCounters { posted, completed, failed: 0, received: completed, device }
    }

    fn silence(now: RailCounters, trouble: Option<&RailCounters>) -> Silence {
        let then = trouble.map(|then| vec![then.clone()]);
        let trouble = then.as_deref().map(|then| (Duration::from_millis(4200), then));
        Silence::new("ofi", std::iter::once("rdmap79s0".into()), vec![now], trouble)
    }

    #[test]
    fn facts_are_one_line_and_advice_and_counters_are_hints() {
        let silence = silence(counted(3, 0, Some((40, 0))), None);
        let text = silence.to_string();
        assert!(text.starts_with("ofi, 1 rail: 40 packets were sent and none has ever come back"), "{text}");
        let hints = silence.hints();
        assert!(hints[0].contains("security group"), "{hints:?}");
        let rail = "rail rdmap79s0: 3 posted, 0 completed, 0 failed, 0 received; its device: 40 packets sent, 0 \
                    received, 3 sent again";
        assert_eq!(hints.last().unwrap(), rail);
    }

    #[test]
    fn what_was_received_before_the_trouble_does_not_hide_it() {
        let before = counted(1000, 1000, Some((5000, 5000)));
        let silence = silence(counted(1012, 1000, Some((5030, 5000))), Some(&before));
        assert_eq!(silence.cause, Cause::NoLongerReturns { sent: 30 });
        assert!(silence.to_string().starts_with("ofi, 1 rail, in the last 4.2 s: 30 packets"), "{silence}");
    }

    #[test]
    fn a_transport_without_counters_claims_nothing() {
        assert_eq!(silence(counted(0, 0, None), None).cause, Cause::Uncounted { posted: 0, completed: 0 });
    }

    #[test]
    fn of_many_rails_some_are_listed_and_the_rest_is_counted() {
        let names = (0..32).map(|i| format!("efa{i}"));
        let silence = Silence::new("ofi", names, vec![RailCounters::default(); 32], None);
        assert_eq!(silence.hints().iter().filter(|hint| hint.starts_with("rail ")).count(), RAILS_LISTED);
        assert_eq!(silence.hints().last().unwrap(), "and 24 rails more");
    }
}
