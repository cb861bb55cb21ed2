//! What differs between the worlds, and why it may.
//!
//! Both worlds decide alike; they do not hurry alike. A transfer that is done before a fault strikes in one world may be in flight then in the
//! other. So a difference is allowed where something that depends on the moment happened while the transfer was under way in either world,
//! and only to the classes that it can lead to.

use super::script::{STALL_MS, UNRESPONSIVE_MS};
use super::{End, Played, Script, Strike};
use crate::talk::Class;

/// How long after the fault's own moment it still counts as having struck: when it is noticed.
const NOTICE_MS: u64 = 2 * STALL_MS + UNRESPONSIVE_MS;
/// How far apart the worlds' clocks may be.
const SKEW_MS: u64 = 250;

/// One transfer in both worlds.
#[derive(Clone, Debug)]
pub struct Line {
    /// Its number.
    pub number: usize,
    /// Its end in the simulator.
    pub simulated: Option<End>,
    /// Its end on emulated NICs.
    pub emulated: Option<End>,
    /// Why they may differ; none when they do not, or when nothing explains it.
    pub why: Option<&'static str>,
}

impl Line {
    /// Whether the ends are the same or explained.
    #[must_use]
    pub fn is_fine(&self) -> bool {
        self.simulated == self.emulated || self.why.is_some()
    }
}

/// A seed in both worlds.
#[derive(Clone, Debug)]
pub struct Verdict {
    /// Every transfer.
    pub lines: Vec<Line>,
    /// What must not be, in either.
    pub wrong: Vec<String>,
}

impl Verdict {
    /// Nothing is wrong, and every difference is explained.
    #[must_use]
    pub fn is_fine(&self) -> bool {
        self.wrong.is_empty() && self.lines.iter().all(Line::is_fine)
    }

    /// Transfers that ended in the same class.
    #[must_use]
    pub fn same(&self) -> usize {
        self.lines.iter().filter(|line| line.simulated == line.emulated).count()
    }
}

/// Sets the worlds side by side.
#[must_use]
pub fn compare(script: &Script, simulated: &Played, emulated: &Played) -> Verdict {
    let mut wrong: Vec<String> = simulated.wrong.iter().map(|what| format!("simulator: {what}")).collect();
    wrong.extend(emulated.wrong.iter().map(|what| format!("emulated: {what}")));
    let mut lines = Vec::new();
    for number in 0..script.posts.len() {
        let (a, b) =
            (simulated.ends.get(number).copied().flatten(), emulated.ends.get(number).copied().flatten());
        let (simulated, emulated) = (a.map(|(end, _)| end), b.map(|(end, _)| end));
        let took = a.map_or(0, |(_, ms)| ms).max(b.map_or(0, |(_, ms)| ms));
        let why =
            (simulated != emulated).then(|| explain(script, number, simulated, emulated, took)).flatten();
        if number >= script.demanded {
            for (world, end) in [("simulator", simulated), ("emulated", emulated)] {
                if end != Some(End::Done) {
                    wrong.push(format!(
                        "{world}: transfer {number}, after everything had mended, ended as {end:?}"
                    ));
                }
            }
        }
        lines.push(Line { number, simulated, emulated, why });
    }
    Verdict { lines, wrong }
}

/// Why two ends may differ.
fn explain(
    script: &Script,
    number: usize,
    a: Option<End>,
    b: Option<End>,
    took_ms: u64,
) -> Option<&'static str> {
    let (a, b) = (a?, b?);
    let post = script.posts[number];
    let one_is = |end: End| a == end || b == end;
    let both = |allowed: &dyn Fn(End) -> bool| allowed(a) && allowed(b);
    if post.cancel_us.is_some() && one_is(End::Failed(Class::Cancelled)) {
        return Some("the cancel and the end race: which is first is timing");
    }
    let posted = script.posted_at(number)?;
    let (from, to) = (posted.saturating_sub(SKEW_MS), posted + took_ms + SKEW_MS);
    let during = |notice: u64, wanted: &dyn Fn(Strike) -> bool| {
        script.strikes().any(|(at, strike)| wanted(strike) && at <= to && at + notice + SKEW_MS >= from)
    };
    // A process that dies ends its own transfers without a word, and its peer's in one of the ways to say that it is gone.
    let restarted = during(NOTICE_MS, &|strike| matches!(strike, Strike::Restart(_)));
    if restarted
        && both(&|end| !matches!(end, End::Failed(Class::Cancelled | Class::Overshoot | Class::Other)))
    {
        return Some("a process died meanwhile: what it had done by then is timing");
    }
    let broken = |strike: Strike| {
        !matches!(strike, Strike::Restart(_) | Strike::Late | Strike::Heal | Strike::RailUp(..))
    };
    let ends_at_the_limit = both(&|end| {
        matches!(end, End::Done | End::Failed(Class::Deadline | Class::Unconfirmed | Class::PeerLost))
    });
    if ends_at_the_limit && during(script.heal_ms, &broken) {
        return Some("no way was left for a while: whether it comes back before the deadline is timing");
    }
    None
}
