//! Two runs against each other: what became faster, what slower, and what cannot be told for the noise.
//!
//! A difference counts when it is larger than what both runs differ by within themselves: the threshold is a floor (what
//! nobody would act on) or twice the spread of the turns, whichever is more. With enough turns on both sides a rank test has
//! to agree. A figure is never called the same for want of a look: where noise hides what would matter, that is said.

mod statistics;

use serde::Serialize;

use crate::judge::{number, shape};
use crate::{Document, Layout, Memory, Op, Row};

pub use statistics::{MANN_WHITNEY_TURNS_MIN, mann_whitney, median, spread};

/// Name and version of what [`Comparison`] is as JSON.
pub const COMPARE_SCHEMA: &str = "kvrail.compare.v1";

/// What counts as a difference.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct Limits {
    /// Differences up to this share are none, whatever the noise.
    pub floor: f64,
    /// So many spreads of the turns are noise.
    pub spreads: f64,
    /// Where noise is more than this share, no difference within it means "cannot tell", not "same".
    pub noise_max: f64,
    /// The rank test agrees below this probability of chance.
    pub chance_max: f64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { floor: 0.05, spreads: 2.0, noise_max: 0.20, chance_max: 0.05 }
    }
}

/// How a row of B stands to the one of A.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// Faster.
    Improved,
    /// Slower.
    Regressed,
    /// No difference that counts.
    Same,
    /// The noise hides what would matter, or there is too little to tell it.
    CannotTell,
    /// It had a figure that counts in A, and has none in B: failed, or wrong bytes.
    Broken,
    /// The other way round.
    Mended,
    /// No such row in B.
    OnlyInA,
    /// No such row in A.
    OnlyInB,
}

impl Standing {
    /// In words.
    #[must_use]
    pub const fn words(self) -> &'static str {
        match self {
            Self::Improved => "improved",
            Self::Regressed => "REGRESSED",
            Self::Same => "same",
            Self::CannotTell => "cannot tell",
            Self::Broken => "BROKEN",
            Self::Mended => "mended",
            Self::OnlyInA => "only in A",
            Self::OnlyInB => "only in B",
        }
    }
}

/// One pair of rows.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Pair {
    /// Engine.
    pub engine: String,
    /// What carried it.
    pub transport: Option<String>,
    /// The workload in words.
    pub shape: String,
    /// Kind of memory.
    pub memory: Memory,
    /// Posting threads.
    pub threads: u32,
    /// Median bandwidth of A, GB/s.
    pub a_gbps: Option<f64>,
    /// Median bandwidth of B, GB/s.
    pub b_gbps: Option<f64>,
    /// B's bandwidth over A's, less 1.
    pub change: Option<f64>,
    /// What a change had to exceed.
    pub threshold: Option<f64>,
    /// Probability that chance alone ranks the turns so; null with too few turns.
    pub chance: Option<f64>,
    /// Median latency of B over A's, less 1; for people.
    pub latency_change: Option<f64>,
    /// The verdict.
    pub standing: Standing,
    /// Why, where figures alone do not say it.
    pub why: Option<String>,
}

/// Two runs against each other.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Comparison {
    /// [`COMPARE_SCHEMA`].
    pub schema: &'static str,
    /// Runs of A.
    pub a: Vec<String>,
    /// Runs of B.
    pub b: Vec<String>,
    /// What counted.
    pub limits: Limits,
    /// In what the hosts and their settings differ, one line each.
    pub differences: Vec<String>,
    /// Rows of A in their order, then those only in B.
    pub pairs: Vec<Pair>,
}

/// What makes rows comparable.
#[derive(Clone, PartialEq, Debug)]
struct Key<'a> {
    engine: &'a str,
    op: Op,
    memory: Memory,
    layout: Layout,
    numbers: (u64, u64, u32, bool),
}

impl<'a> Key<'a> {
    fn new(row: &'a Row) -> Self {
        Self {
            engine: &row.engine,
            op: row.op,
            memory: row.memory,
            layout: row.layout,
            numbers: (row.block_bytes, row.batch, row.threads, row.notify),
        }
    }
}

/// Compares two runs, each of one or several documents.
#[must_use]
pub fn compare(a: &[Document], b: &[Document], limits: Limits) -> Comparison {
    let here: Vec<&Row> = a.iter().flat_map(|document| &document.results).collect();
    let there: Vec<&Row> = b.iter().flat_map(|document| &document.results).collect();
    let mut pairs: Vec<Pair> = Vec::new();
    for group in groups(&here) {
        let other = matching(group[0], &there);
        let other: Vec<&Row> = other.into_iter().filter(|row| comparable(group[0], row)).collect();
        pairs.push(pair(&group, &other, limits));
    }
    for group in groups(&there) {
        if matching(group[0], &here).is_empty() {
            pairs.push(pair(&[], &group, limits));
        }
    }
    let runs = |documents: &[Document]| documents.iter().map(|document| document.run_id.clone()).collect();
    Comparison {
        schema: COMPARE_SCHEMA,
        a: runs(a),
        b: runs(b),
        limits,
        differences: differences(a, b),
        pairs,
    }
}

/// Rows of one key and transport, together: a workload that was repeated.
fn groups<'a>(rows: &[&'a Row]) -> Vec<Vec<&'a Row>> {
    let mut groups: Vec<Vec<&Row>> = Vec::new();
    for row in rows {
        match groups.iter_mut().find(|group| Key::new(group[0]) == Key::new(row) && comparable(group[0], row))
        {
            Some(group) => group.push(row),
            None => groups.push(vec![row]),
        }
    }
    groups
}

fn matching<'a>(row: &Row, among: &[&'a Row]) -> Vec<&'a Row> {
    among.iter().copied().filter(|other| Key::new(row) == Key::new(other) && comparable(row, other)).collect()
}

/// Whether the same carried both; an engine that failed before anything did may be compared with any that asked for as much.
fn comparable(a: &Row, b: &Row) -> bool {
    match (&a.transport, &b.transport) {
        (Some(a), Some(b)) => a == b,
        _ => a.asked == b.asked,
    }
}

fn pair(a: &[&Row], b: &[&Row], limits: Limits) -> Pair {
    let counts = |rows: &[&Row]| -> Vec<f64> {
        let of = |row: &&Row| {
            let figures =
                row.figures.as_ref().filter(|_| row.bandwidth_gbps().is_some() && row.failure.is_none());
            figures.map_or_else(Vec::new, |figures| match figures.turns.as_slice() {
                [] => vec![figures.bandwidth_gbps],
                turns => turns.iter().map(|turn| turn.bandwidth_gbps).collect(),
            })
        };
        rows.iter().flat_map(of).collect()
    };
    let latency = |rows: &[&Row]| {
        median(&rows.iter().filter_map(|row| Some(row.figures.as_ref()?.latency_us.p50)).collect::<Vec<_>>())
    };
    let (turns_a, turns_b) = (counts(a), counts(b));
    let (a_gbps, b_gbps) = (median(&turns_a), median(&turns_b));
    let ratio = |a: Option<f64>, b: Option<f64>| {
        a.zip(b).map(|(a, b)| b / a - 1.0).filter(|change| change.is_finite())
    };
    let change = ratio(a_gbps, b_gbps);
    let chance = mann_whitney(&turns_a, &turns_b);
    let noise =
        spread(&turns_a).zip(spread(&turns_b)).map(|(a, b)| ((a * a + b * b) / 2.0).sqrt() * limits.spreads);
    let threshold = noise.map(|noise| noise.max(limits.floor));
    let failure =
        |rows: &[&Row]| rows.iter().find_map(|row| row.failure.as_ref().map(|failure| failure.what.clone()));
    let (standing, why) = match (a, b, change) {
        ([], ..) => (Standing::OnlyInB, None),
        (_, [], _) => (Standing::OnlyInA, None),
        (_, _, Some(change)) => decide(change, noise, chance, limits),
        _ if a_gbps.is_some() => {
            (Standing::Broken, failure(b).or_else(|| Some("its bytes arrived wrong".into())))
        }
        _ if b_gbps.is_some() => (Standing::Mended, failure(a)),
        _ => (Standing::CannotTell, Some("neither has a figure that counts".into())),
    };
    let row = a.first().or(b.first());
    Pair {
        engine: row.map_or_else(String::new, |row| row.engine.clone()),
        transport: a.iter().chain(b).find_map(|row| row.transport.clone()),
        shape: row.map_or_else(String::new, |row| shape(row)),
        memory: row.map_or(Memory::Shared, |row| row.memory),
        threads: row.map_or(1, |row| row.threads),
        a_gbps,
        b_gbps,
        change,
        threshold,
        chance,
        latency_change: ratio(latency(a), latency(b)),
        standing,
        why,
    }
}

fn decide(
    change: f64,
    noise: Option<f64>,
    chance: Option<f64>,
    limits: Limits,
) -> (Standing, Option<String>) {
    let Some(noise) = noise else {
        return if change.abs() <= limits.floor {
            (Standing::Same, None)
        } else {
            (Standing::CannotTell, Some("too few turns to know the noise".into()))
        };
    };
    if change.abs() <= noise.max(limits.floor) {
        return if noise > limits.noise_max {
            (Standing::CannotTell, Some(format!("the turns themselves differ by {:.0}%", noise * 100.0)))
        } else {
            (Standing::Same, None)
        };
    }
    match chance {
        Some(chance) if chance > limits.chance_max => (
            Standing::CannotTell,
            Some(format!("chance alone does it in {:.0}% of all cases", chance * 100.0)),
        ),
        _ if change > 0.0 => (Standing::Improved, None),
        _ => (Standing::Regressed, None),
    }
}

/// In what the hosts differ, of the first document of each run.
fn differences(a: &[Document], b: &[Document]) -> Vec<String> {
    let (Some(a), Some(b)) = (a.first(), b.first()) else { return Vec::new() };
    let mut out = Vec::new();
    let sides = |document: &Document| {
        let (prints, hosts) = (&document.fingerprint, &document.environment);
        [
            ("initiator", prints.initiator.clone(), hosts.initiator.clone()),
            ("target", prints.target.clone(), hosts.target.clone()),
        ]
    };
    for ((side, print_a, host_a), (_, print_b, host_b)) in sides(a).into_iter().zip(sides(b)) {
        let mut said = Vec::new();
        if let (Some(a), Some(b)) = (&host_a, &host_b) {
            let mut say = |what: &str, a: &str, b: &str| {
                if a != b {
                    said.push(format!("{what}: {a} in A, {b} in B"));
                }
            };
            say("host", &a.host, &b.host);
            say("CPU", &a.cpu, &b.cpu);
            say("CPUs", &a.cpus.to_string(), &b.cpus.to_string());
            say("build", &a.profile, &b.profile);
        }
        match (print_a, print_b) {
            (Some(a), Some(b)) => said.extend(a.differences(&b)),
            (None, None) => {}
            _ => {
                said.push("a fingerprint is in one run only: versions and settings cannot be compared".into())
            }
        }
        // On one host both sides say the same.
        said.retain(|line| !out.iter().any(|told: &String| told.ends_with(line.as_str())));
        out.extend(said.into_iter().map(|line| format!("{side}: {line}")));
    }
    out
}

impl Comparison {
    /// How many pairs stand so.
    #[must_use]
    pub fn count(&self, standing: Standing) -> usize {
        self.pairs.iter().filter(|pair| pair.standing == standing).count()
    }

    /// 0: nothing regressed; 1: something did, or broke; 2: nothing could be compared.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        use Standing::{Broken, Improved, Mended, Regressed, Same};
        match () {
            () if self.count(Regressed) + self.count(Broken) > 0 => 1,
            () if self.count(Improved) + self.count(Same) + self.count(Mended) > 0 => 0,
            () => 2,
        }
    }

    /// As JSON, with a final newline.
    #[must_use]
    pub fn json(&self) -> String {
        serde_json::to_string(self).map_or_else(|e| format!("{{\"error\":\"{e}\"}}"), |s| s + "\n")
    }

    /// For a terminal.
    #[must_use]
    pub fn text(&self) -> String {
        let mut out = String::new();
        for line in &self.differences {
            out += &format!("differs: {line}\n");
        }
        if !out.is_empty() {
            out.push('\n');
        }
        out += &format!(
            "{:<44} {:>8} {:>8} {:>8} {:>6} {:>8}  verdict\n",
            "bandwidth, GB/s", "A", "B", "change", "noise", "p50"
        );
        let gbps = |gbps: Option<f64>| gbps.map_or_else(|| "-".into(), number);
        let percent =
            |share: Option<f64>| share.map_or_else(|| "-".into(), |share| format!("{:+.1}%", share * 100.0));
        let mut above = None;
        for pair in &self.pairs {
            let threads =
                if pair.threads == 1 { String::new() } else { format!(", {} threads", pair.threads) };
            let transport = pair.transport.as_deref().unwrap_or("unknown transport");
            let now = format!("{} over {transport}, {} memory{threads}", pair.engine, pair.memory);
            if above.as_ref() != Some(&now) {
                out += &format!("{now}\n");
                above = Some(now);
            }
            out += &format!(
                "  {:<42} {:>8} {:>8} {:>8} {:>6} {:>8}  {}\n",
                pair.shape,
                gbps(pair.a_gbps),
                gbps(pair.b_gbps),
                percent(pair.change),
                pair.threshold.map_or_else(|| "-".into(), |share| format!("{:.1}%", share * 100.0)),
                percent(pair.latency_change),
                pair.standing.words(),
            );
            if let Some(why) = &pair.why {
                out += &format!("  {:<42} {why}\n", "");
            }
        }
        out.push('\n');
        out + &self.summary() + "\n"
    }

    /// One line: `12 same, 1 regressed`.
    #[must_use]
    pub fn summary(&self) -> String {
        use Standing::{Broken, CannotTell, Improved, Mended, OnlyInA, OnlyInB, Regressed, Same};
        let parts: Vec<String> = [Broken, Regressed, Improved, Mended, Same, CannotTell, OnlyInA, OnlyInB]
            .into_iter()
            .filter(|standing| self.count(*standing) > 0)
            .map(|standing| format!("{} {}", self.count(standing), standing.words()))
            .collect();
        if parts.is_empty() { "no rows at all".into() } else { parts.join(", ") }
    }
}

#[cfg(test)]
#[path = "compare_tests.rs"]
mod tests;
