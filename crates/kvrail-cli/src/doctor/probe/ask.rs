//! The side that probes: pairs the NICs, moves bytes over each pair, counts on both sides, and tells what is wrong.

use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use kvrail_doctor::probe::{self, End as Ended, Facts, Figures, Nic, Place, RULES, Rail, Side, Wrong};
use kvrail_doctor::render::Report;
use kvrail_doctor::rule::Kind;

use super::Probe;
use super::end::{BLOCK_BYTES, End, Opening, SMALL_BYTES};
use super::listen::{Ends, open, say};
use super::side::{Here, TCP};
use super::word::{Opened, Word};
use crate::bench::hello;
use crate::control::Message;
use crate::environment;
use crate::failure::{self, Failure};
use crate::link::Link;
use crate::meet;
use crate::pattern::Source;
use crate::signals;

/// Longest wait for the other side's word; opening 64 devices is the longest of what it does between two.
const WORD_MAX: Duration = Duration::from_secs(60);
/// Small transfers of one rail: as many, or for as long, whichever ends first.
const LATENCIES: usize = 200;
const LATENCY_TIME: Duration = Duration::from_millis(10);
/// Large transfers of one rail: for as long, and so many at least.
const RATE_TIME: Duration = Duration::from_millis(25);
const RATES_MIN: u32 = 2;
/// How often a rail that looks slow is measured again.
const AGAIN_MAX: usize = 2;
/// How old an emulated device's counters may be.
const COUNTERS_LATE: Duration = Duration::from_millis(250);

/// Probes the host at an address.
pub(super) fn main(arguments: &Probe, address: &str) -> Result<ExitCode, Failure> {
    let begin = Instant::now();
    let socket = meet::connect(address, arguments.timeout).map_err(|failure| match failure.kind {
        failure::Kind::Peer => Failure { hints: Vec::new(), ..failure }
            .hint("start the other side there: kvrail doctor probe --listen")
            .hint("or let TCP port 7200 pass between the hosts"),
        _ => failure,
    })?;
    let link = Link::open(socket, hello("prober"))?;
    let facts = probe_over(arguments, &link, begin + arguments.timeout);
    let _ = match &facts {
        Ok(_) => link.send(Message::Bye),
        Err(failure) => link.send(Message::Abort { failure: failure.clone() }),
    };
    arguments.telling.tell(&report(&facts?).took(begin.elapsed()))
}

fn report(facts: &Facts) -> Report {
    let subject = format!("{} and {} over {}", facts.here.name(), facts.there.name(), facts.carrier);
    let mut data = serde_json::to_value(facts).unwrap_or_default();
    data["schema"] = probe::SCHEMA.into();
    // What belongs to the account and not to the probe.
    for side in ["here", "there"] {
        if let Some(side) = data[side].as_object_mut() {
            side.remove("security_groups");
        }
    }
    let report = Report::of_findings(Kind::Probe, subject, RULES, probe::judge(facts))
        .table(probe::table(facts))
        .data(data);
    let late = facts.rails.iter().filter(|rail| rail.end == Ended::NotMeasured).count();
    if late == 0 {
        return report;
    }
    report.unread(
        format!("the rates of {late} rails"),
        "the time was over; raise --timeout, or probe fewer with --rails",
    )
}

fn probe_over(arguments: &Probe, link: &Link, until: Instant) -> Result<Facts, Failure> {
    let here = Here::look(arguments.over.as_deref(), arguments.libfabric.as_deref());
    say(link, Word::Side { side: Box::new(here.side.clone()) })?;
    let awaited = "what it is";
    let there = match receive(link, awaited)? {
        Word::Side { side } => *side,
        other => return Err(link.unexpected(awaited, &other)),
    };
    let carrier = carrier(&here.side, &there, arguments.over.as_deref());
    let pairs = pairs(&here.side, &there, &carrier, arguments.rails);
    let seed = environment::random_seed();
    let (ours, theirs): (Vec<String>, Vec<String>) =
        pairs.iter().map(|(ours, theirs, _)| (ours.clone(), theirs.clone())).unzip();
    let patience_ms = u64::try_from(arguments.patience.as_millis()).unwrap_or(u64::MAX).max(1);
    say(link, Word::Open { carrier: carrier.clone(), devices: theirs, seed, patience_ms })?;
    let ip = link.local_ip();
    let opening = Opening {
        carrier: &carrier,
        device: "",
        ip: &ip,
        library: arguments.libfabric.as_deref(),
        source: Source::Initiator,
        seed,
        index: 0,
        patience: arguments.patience,
    };
    let ends = Ends(open(&opening, &ours));
    let rails =
        pairs.into_iter().map(|(here, there, rate_bps)| Rail { here, there, rate_bps, ..Rail::default() });
    let mut probing = Probing { link, ends, rails: rails.collect(), until };
    let emulated = probing.meet()?;
    probing.greet();
    probing.touch()?;
    probing.measure()?;
    if here.side.emulated || there.emulated {
        thread::sleep(COUNTERS_LATE);
    }
    probing.count()?;
    let mut facts = Facts {
        here: here.side.clone(),
        there,
        carrier,
        carrier_named: arguments.over.is_some(),
        emulated,
        rails: std::mem::take(&mut probing.rails),
    };
    drop(probing);
    if facts.is_fabric() && facts.rails.iter().any(|rail| !rail.works()) {
        say(link, Word::AskGroups)?;
        facts.here.security_groups = here.groups();
        let awaited = "its security groups";
        facts.there.security_groups = match receive(link, awaited)? {
            Word::Groups { groups } => groups,
            other => return Err(link.unexpected(awaited, &other)),
        };
    }
    Ok(facts)
}

fn receive(link: &Link, awaited: &str) -> Result<Word, Failure> {
    match link.receive(awaited, WORD_MAX)? {
        Message::Probe { word } => Ok(*word),
        other => Err(link.unexpected(awaited, &other)),
    }
}

/// What carries the bytes: what the user named, else the best that both sides have.
fn carrier(here: &Side, there: &Side, over: Option<&str>) -> String {
    if let Some(named) = over {
        return named.into();
    }
    let provider = |side: &Side| side.libfabric.as_ref().map(|library| library.provider.clone());
    match (provider(here), provider(there)) {
        (Some(ours), Some(theirs)) if ours == theirs => ours,
        // Whoever has efa-direct has efa, too.
        (Some(ours), Some(theirs)) if [&ours, &theirs].iter().all(|name| name.starts_with("efa")) => {
            "efa".into()
        }
        _ => TCP.into(),
    }
}

/// The devices of each rail with the lower of their rates: every NIC of both sides is in one at least.
fn pairs(here: &Side, there: &Side, carrier: &str, most: usize) -> Vec<(String, String, u64)> {
    let up = |side: &Side| side.nics.iter().filter(|nic| nic.down.is_none()).cloned().collect::<Vec<Nic>>();
    let (ours, theirs) = (up(here), up(there));
    if carrier == TCP || ours.is_empty() || theirs.is_empty() {
        return vec![Default::default()];
    }
    let pair = |index: usize| {
        let (ours, theirs) = (&ours[index % ours.len()], &theirs[index % theirs.len()]);
        (ours.name.clone(), theirs.name.clone(), ours.rate_bps.min(theirs.rate_bps))
    };
    (0..ours.len().max(theirs.len()).min(most)).map(pair).collect()
}

/// A transfer by its name: `write of 4 MiB`.
pub(super) fn step_name(write: bool, bytes: u64) -> String {
    let word = if write { "write" } else { "read" };
    format!("{word} of {}", kvrail_report::units::about(bytes))
}

/// A probe under way.
struct Probing<'a> {
    link: &'a Link,
    ends: Ends,
    rails: Vec<Rail>,
    until: Instant,
}

impl Probing<'_> {
    /// Exchanges metadata. What the providers emulate on both sides.
    fn meet(&mut self) -> Result<[Option<(bool, bool)>; 2], Failure> {
        let link = self.link;
        let awaited = "which rails are open";
        let opened = match receive(link, awaited)? {
            Word::Opened { rails } if rails.len() == self.rails.len() => rails,
            other => return Err(link.unexpected(awaited, &other)),
        };
        let mut emulated = [None; 2];
        let mut meet = Vec::new();
        for (index, (rail, opened)) in self.rails.iter_mut().zip(&opened).enumerate() {
            let Opened { failure, emulated: theirs } = opened;
            emulated[1] = emulated[1].max(*theirs);
            let metadata = match failure {
                Some(why) => {
                    rail.end = Ended::NotOpened { at: Place::There, why: why.clone() };
                    None
                }
                None => Some(link.receive_blob("a rail's metadata", WORD_MAX)?),
            };
            match (&mut self.ends.0[index], metadata) {
                (Err(refused), _) => {
                    emulated[0] = emulated[0].max(refused.emulated);
                    rail.end = Ended::NotOpened { at: Place::Here, why: refused.why.clone() };
                }
                (Ok(end), Some(metadata)) => {
                    emulated[0] = emulated[0].max(end.emulated);
                    match end.metadata().and_then(|ours| Ok((ours, end.meet(&metadata)?))) {
                        Ok((ours, ())) => meet.push((index as u16, ours)),
                        Err(why) => rail.end = Ended::NotMet { why },
                    }
                }
                (Ok(_), None) => {}
            }
        }
        say(link, Word::Meet { rails: meet.iter().map(|(index, _)| *index).collect() })?;
        let (indices, blobs): (Vec<u16>, Vec<Vec<u8>>) = meet.into_iter().unzip();
        blobs.into_iter().try_for_each(|blob| link.send_blob(blob))?;
        let awaited = "whether its rails know ours";
        match receive(link, awaited)? {
            Word::Met { failures } if failures.len() == indices.len() => {
                for (index, failure) in indices.into_iter().zip(failures) {
                    if let Some(why) = failure {
                        self.rails[usize::from(index)].end = Ended::NotMet { why };
                    }
                }
            }
            other => return Err(link.unexpected(awaited, &other)),
        }
        Ok(emulated)
    }

    /// Waits for the answers to the greetings, of all rails at once: one that is dead takes all its patience.
    fn greet(&mut self) {
        self.at_once(|end| end.greet().map_err(|why| Ended::NotMet { why }));
    }

    /// Moves a few bytes both ways, over all rails at once, and looks at them.
    fn touch(&mut self) -> Result<(), Failure> {
        self.at_once(|end| {
            for write in [true, false] {
                let step = if write { end.write(SMALL_BYTES) } else { end.read(SMALL_BYTES) };
                let failed = |why| Ended::Failed { step: step_name(write, SMALL_BYTES), why };
                step.and_then(|step| step.once()).map_err(failed)?;
            }
            Ok(())
        });
        for index in 0..self.rails.len() {
            if self.rails[index].end == Ended::Works {
                self.look(index, SMALL_BYTES)?;
            }
        }
        Ok(())
    }

    /// Does something with the end of each rail that works so far, all at once, and notes how it ended.
    fn at_once(&mut self, work: impl Fn(&End) -> Result<(), Ended> + Sync) {
        let work = &work;
        thread::scope(|scope| {
            let ends = self.ends.0.iter().zip(&mut self.rails);
            for (end, rail) in ends {
                if let (Ok(end), Ended::Works) = (end, &rail.end) {
                    scope.spawn(move || {
                        if let Err(ended) = work(end) {
                            rail.end = ended;
                        }
                    });
                }
            }
        });
    }

    /// Looks at what a rail has moved, on both sides.
    fn look(&mut self, index: usize, bytes: u64) -> Result<(), Failure> {
        let awaited = "what it has received";
        say(self.link, Word::Check { rail: index as u16, bytes })?;
        let theirs: Option<Wrong> = match receive(self.link, awaited)? {
            Word::Checked { wrong } => wrong,
            other => return Err(self.link.unexpected(awaited, &other)),
        };
        let ours =
            self.ends.0[index].as_ref().ok().and_then(|end| end.check(&step_name(false, bytes), bytes));
        self.rails[index].wrong.extend(theirs.into_iter().chain(ours));
        Ok(())
    }

    /// Measures the rails that work, one after the other: at once they would measure this host. What looks slow is measured
    /// again: a scheduler's whim is no rail's fault.
    fn measure(&mut self) -> Result<(), Failure> {
        for index in 0..self.rails.len() {
            if self.rails[index].end != Ended::Works {
                continue;
            }
            if Instant::now() >= self.until {
                self.rails[index].end = Ended::NotMeasured;
                continue;
            }
            self.measure_rail(index)?;
        }
        for _ in 0..AGAIN_MAX {
            for index in probe::far_below(&self.rails) {
                if self.rails[index].end == Ended::Works && Instant::now() < self.until {
                    self.measure_rail(index)?;
                }
            }
        }
        Ok(())
    }

    /// Measures one rail in both directions, looks at every byte, and keeps the better figures.
    fn measure_rail(&mut self, index: usize) -> Result<(), Failure> {
        if signals::interrupted() {
            return Err(Failure::interrupted());
        }
        let Ok(end) = &self.ends.0[index] else { return Ok(()) };
        end.poison();
        let awaited = "that its memory is poisoned";
        say(self.link, Word::Poison { rail: index as u16 })?;
        match receive(self.link, awaited)? {
            Word::Poisoned => {}
            other => return Err(self.link.unexpected(awaited, &other)),
        }
        let both = |measure: fn(&End, bool) -> Result<f64, String>, bytes| {
            let one = |write| {
                measure(end, write).map_err(|why| Ended::Failed { step: step_name(write, bytes), why })
            };
            Ok([one(true)?, one(false)?])
        };
        let measured = both(latency, SMALL_BYTES).and_then(|us| Ok((us, both(rate, BLOCK_BYTES)?)));
        let (us, rates) = match measured {
            Ok(measured) => measured,
            Err(ended) => {
                self.rails[index].end = ended;
                return Ok(());
            }
        };
        let rail = &mut self.rails[index];
        for (figures, (us, rate)) in
            [&mut rail.write, &mut rail.read].into_iter().zip(us.into_iter().zip(rates))
        {
            let before = figures.unwrap_or(Figures { latency_us: us, bytes_per_s: rate });
            *figures = Some(Figures {
                latency_us: before.latency_us.min(us),
                bytes_per_s: before.bytes_per_s.max(rate),
            });
        }
        self.look(index, BLOCK_BYTES)
    }

    /// What the devices of both sides have counted.
    fn count(&mut self) -> Result<(), Failure> {
        let awaited = "what its devices have counted";
        say(self.link, Word::Count)?;
        let theirs = match receive(self.link, awaited)? {
            Word::Counted { rails } if rails.len() == self.rails.len() => rails,
            other => return Err(self.link.unexpected(awaited, &other)),
        };
        for ((rail, end), theirs) in self.rails.iter_mut().zip(&self.ends.0).zip(theirs) {
            rail.counted_here = end.as_ref().ok().and_then(End::counted);
            rail.counted_there = theirs;
        }
        Ok(())
    }
}

/// The median time of a few bytes, microseconds.
fn latency(end: &End, write: bool) -> Result<f64, String> {
    let step = if write { end.write(SMALL_BYTES)? } else { end.read(SMALL_BYTES)? };
    let begin = Instant::now();
    let mut times = Vec::with_capacity(LATENCIES);
    while times.len() < LATENCIES && (times.is_empty() || begin.elapsed() < LATENCY_TIME) {
        times.push(step.once()?);
    }
    times.sort_unstable();
    Ok(times[times.len() / 2].as_secs_f64() * 1e6)
}

/// The rate of large transfers, bytes per second.
fn rate(end: &End, write: bool) -> Result<f64, String> {
    let step = if write { end.write(BLOCK_BYTES)? } else { end.read(BLOCK_BYTES)? };
    // The first touches pages and opens windows.
    step.once()?;
    let begin = Instant::now();
    let mut times = 0;
    while times < RATES_MIN || begin.elapsed() < RATE_TIME {
        step.once()?;
        times += 1;
    }
    Ok(f64::from(times) * BLOCK_BYTES as f64 / begin.elapsed().as_secs_f64())
}

#[cfg(test)]
mod tests {
    use kvrail_doctor::probe::Libfabric;

    use super::*;

    fn side(nics: usize, provider: Option<&str>) -> Side {
        let nic = |at: usize| Nic { name: format!("rdmap{at}s0"), rate_bps: 100, ..Nic::default() };
        let libfabric = provider.map(|name| Libfabric { provider: name.into(), ..Libfabric::default() });
        Side { nics: (0..nics).map(nic).collect(), libfabric, ..Side::default() }
    }

    #[test]
    fn every_nic_of_both_sides_is_in_a_pair() {
        for (ours, theirs) in [(4, 4), (4, 1), (1, 4), (3, 2)] {
            let pairs = pairs(&side(ours, None), &side(theirs, None), "efa", 64);
            assert_eq!(pairs.len(), ours.max(theirs));
            for at in 0..ours {
                assert!(pairs.iter().any(|(here, ..)| *here == format!("rdmap{at}s0")));
            }
            for at in 0..theirs {
                assert!(pairs.iter().any(|(_, there, _)| *there == format!("rdmap{at}s0")));
            }
        }
        assert_eq!(pairs(&side(32, None), &side(32, None), "efa", 4).len(), 4);
        assert_eq!(pairs(&side(4, None), &side(4, None), TCP, 64).len(), 1);
        assert_eq!(pairs(&side(0, None), &side(4, None), "efa", 64).len(), 1);
    }

    #[test]
    fn the_carrier_is_the_best_that_both_have_or_what_was_named() {
        let of = |ours, theirs, over| carrier(&side(1, ours), &side(1, theirs), over);
        assert_eq!(of(Some("efa-direct"), Some("efa-direct"), None), "efa-direct");
        assert_eq!(of(Some("efa-direct"), Some("efa"), None), "efa");
        assert_eq!(of(Some("efa-direct"), None, None), TCP);
        assert_eq!(of(Some("efa"), Some("verbs"), None), TCP);
        assert_eq!(of(Some("efa-direct"), Some("efa-direct"), Some("efa")), "efa");
    }
}
