//! The initiator: drives each case round by round, and decides which figures count.
//!
//! A round, when every transfer is verified (KR-15):
//! 1. the target poisons its blocks (or fills them, when it is the source);
//! 2. untimed transfers warm the same blocks up;
//! 3. the source gets the round's own bytes (those of the warm-up were others), and for a read the destination is poisoned
//!    again. From here on, only the timed transfers can make the bytes right;
//! 4. each slot is transferred once, timed;
//! 5. every byte is checked, where it arrived;
//! 6. the plain copy runs over the same blocks.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kvrail_engines::{Name, process_vm_denied};

use serde::{Deserialize, Serialize};

use crate::case::{Case, Geometry, Memory, Op, Transport, Verify};
use crate::ceiling::Ceiling;
use crate::control::{Message, Wound};
use crate::endpoint::{self, Course, Endpoint, Prepared, Remote};
use crate::engines::{Choice, Setup};
use crate::environment;
use crate::failure::Failure;
use crate::link::Link;
use crate::measure::{self, Extent, STAMPS_MAX, Samples, Track};
use crate::pattern::{self, Pattern, Source};
use crate::pool::{self, Loan, Pool};
use crate::rails::{self, RailLog, Say};
use crate::rows::{self, Carrier};
use crate::run::{Effort, Run};
use crate::signals;
use crate::target::{stray, verify};
use kvrail_report::{Carriage, Row, Sides, Used};

/// Rounds of a case at least: a median of fewer says little.
const ROUNDS_MIN: u32 = 5;
/// A case may take this many times its timed duration in all.
const CASE_TIMES_DURATION: u32 = 5;
/// Timed laps that nobody verifies go on for so long between two words to the target.
const LAP: Duration = Duration::from_millis(20);
/// Slowest filling, poisoning and checking that is waited for, bytes per second.
const HANDLING_BPS: u64 = 20 << 20;
/// Empty laps from which the cost of talk is taken.
const TALKS: usize = 9;
/// What every notification says.
const NOTIFICATION: &[u8] = b"kvrail bench";

/// What a case yields: a row if anything was measured, what carried it if that was found out, and how it ended.
#[derive(Serialize, Deserialize)]
pub(crate) struct Outcome {
    pub(crate) row: Option<Row>,
    pub(crate) used: Option<Used>,
    pub(crate) failure: Option<Failure>,
}

/// Memory that all engines of a case share.
#[derive(Clone, Default)]
pub(crate) struct Loans {
    pub(crate) here: Option<Loan>,
    pub(crate) there: Option<Loan>,
}

/// One engine's part in a run.
#[derive(Clone, Copy)]
pub(crate) struct Part<'a> {
    pub(crate) link: &'a Link,
    pub(crate) run: &'a Run,
    pub(crate) engine: &'a Choice,
    pub(crate) case: &'a Case,
}

/// A case, set up on both sides. Fields go in this order: transfers, then the engine, then what is left of its memory.
pub(crate) struct Open<'a> {
    plans: Vec<Vec<Prepared>>,
    remote: Remote,
    endpoint: Endpoint,
    pool: Pool,
    ceiling: Ceiling,
    geometry: Geometry,
    pattern: Pattern,
    tracks: Vec<Track>,
    samples: Samples,
    /// Rounds so far.
    rounds: u32,
    /// The blocks may hold anything: before the first round, and after others have worked on the same memory.
    spoilt: bool,
    /// Notifications that the target has not been asked about yet.
    sent: u64,
    /// CPU time of the target for the words around one lap.
    talk: Duration,
    pub(crate) carrier: Carrier,
    rails: Option<Arc<RailLog>>,
    case: &'a Case,
    link: &'a Link,
    run: &'a Run,
}

/// Whom the run talks to, and since when.
pub(crate) struct Audience<'a> {
    pub(crate) began: Instant,
    /// Hears of rails that fail and return.
    pub(crate) rails: Say,
    /// Hears what carries a case, before its first transfer.
    pub(crate) carrier: &'a mut dyn FnMut(&Carrier),
}

/// Measures one case from its beginning to its end.
pub(crate) fn run_case(part: Part<'_>, audience: &mut Audience<'_>) -> Outcome {
    let mut open = match Open::new(part, Loans::default(), audience) {
        Ok(open) => open,
        Err(failure) => return Outcome { row: None, used: None, failure: Some(failure) },
    };
    (audience.carrier)(&open.carrier);
    let measured = open.measure(&mut || Ok(()));
    open.conclude(measured, audience)
}

/// How much of a case is measured in one go.
#[derive(Clone, Copy)]
struct Share {
    effort: Effort,
    /// With a duration, so many rounds at least.
    rounds_min: u32,
    /// Nothing comes after it.
    last: bool,
}

/// Hears of every round, and may end what goes on.
pub(crate) type Going<'a> = dyn FnMut() -> Result<(), Failure> + 'a;

impl<'a> Open<'a> {
    /// Sets a case up on both sides.
    ///
    /// # Errors
    /// What is in the way, on either side.
    pub(crate) fn new(part: Part<'a>, loans: Loans, audience: &Audience<'_>) -> Result<Self, Failure> {
        let Part { link, run, engine, case } = part;
        let pool_bytes = if loans.here.is_some() { 0 } else { case.pool_bytes };
        let shared_host = link.same_host(&environment::boot_id());
        let pools = if shared_host { 2 * pool_bytes } else { pool_bytes };
        environment::check_memory(pools + Ceiling::bytes(case), &format!("{case}"))?;

        let Loans { here, there } = loans;
        link.send(Message::Open { engine: engine.clone(), case: Box::new(case.clone()), loan: there })?;
        let geometry = Geometry::new(case);
        let name = format!("kvrail-bench-initiator-{}-{}", std::process::id(), case.index);
        let mut endpoint = Endpoint::create(Setup {
            engine,
            name: &name,
            transport: case.transport,
            cooperate: case.cooperate,
            ip: &link.local_ip(),
            ofi: &run.ofi,
            libraries: &run.libraries,
            progress: run.progress,
            plant: run.plant,
            timeout: run.timeout,
        })?;
        endpoint.lanes(case.threads)?;
        let pool = endpoint.register(pool::obtain(here, case.memory, case.pool_bytes)?)?;
        let ceiling = Ceiling::new(case, &geometry)?;
        let within = run.timeout + handling(case.pool_bytes);
        let there = match link.receive("its memory", within)? {
            Message::Opened { carriages } => carriages,
            other => return Err(link.unexpected("its memory", &other)),
        };
        let metadata = link.receive_blob("its metadata", run.timeout)?;
        link.send_blob(endpoint.metadata()?)?;
        // A target may only come to know this side while this side makes progress.
        match link.receive_driving("to know this side", run.timeout, &|| endpoint.drive())? {
            Message::Done => {}
            other => return Err(link.unexpected("to know this side", &other)),
        }
        let remote = endpoint.connect(&metadata, run.timeout)?;
        let mut reason = reason(engine, case.transport, &remote, shared_host);
        if engine.name == Name::Kvrail
            && remote.transport() == "shm"
            && case.memory == Memory::Private
            && let Err(e) = environment::may_reach_process(link.hello.pid)
        {
            if case.transport == Transport::Shm {
                return Err(endpoint::failure(process_vm_denied(&e.to_string())));
            }
            reason +=
                "; not process_vm, which the kernel denies: private memory is copied twice, through a ring";
        }
        let transport = remote.transport().to_owned();
        // A target of kvrail has several, one for each transport; of other engines it has one, which may not know yet.
        let of = |carriages: Vec<Carriage>| match engine.name {
            Name::Kvrail => carriages.into_iter().find(|c| c.transport == transport),
            _ => carriages.into_iter().next(),
        };
        let sides = Sides { initiator: of(endpoint.carriages()), target: of(there) };
        let carrier = Carrier {
            engine: engine.clone(),
            version: endpoint.version(),
            reason,
            transport: transport.clone(),
            pages: pool.pages(),
            sides,
        };
        let source = match case.op {
            Op::Write => Source::Initiator,
            Op::Read => Source::Target,
        };
        let rails = endpoint.listen_to_rails(audience.began, audience.rails.clone());
        let mut open = Self {
            plans: Vec::new(),
            tracks: (0..case.threads).map(|_| Track::new()).collect(),
            pattern: Pattern::new(case.seed, source),
            samples: Samples::new(),
            rounds: 0,
            spoilt: true,
            sent: 0,
            talk: Duration::ZERO,
            pool,
            remote,
            endpoint,
            ceiling,
            geometry,
            carrier,
            rails,
            case,
            link,
            run,
        };
        for thread in 0..case.threads {
            let slots = (0..case.slots).map(|slot| open.prepare(thread, slot)).collect::<Result<_, _>>()?;
            open.plans.push(slots);
        }
        open.weigh_talk()?;
        Ok(open)
    }

    fn prepare(&mut self, thread: u32, slot: u32) -> Result<Prepared, Failure> {
        let blocks = Geometry::slot(self.case, thread, slot);
        let (local, remote) = (&self.geometry.initiator[blocks.clone()], &self.geometry.target[blocks]);
        let course = Course {
            op: self.case.op,
            lane: thread,
            here: local,
            there: remote,
            block_bytes: self.case.block_bytes,
            notification: self.case.notify.then_some(NOTIFICATION),
        };
        let (prepared, took) = self.endpoint.prepare(&self.remote, self.rails.as_ref(), course)?;
        measure::record(&mut self.samples.prepare, took);
        Ok(prepared)
    }

    /// Measures all of the case, each round a turn of its own. `going` hears of every round, and may end it.
    fn measure(&mut self, going: &mut Going<'_>) -> Result<(), Failure> {
        let share = Share { effort: self.run.effort, rounds_min: ROUNDS_MIN, last: true };
        self.measure_share(share, going, &mut |samples| samples.end_turn())?;
        self.samples.end_turn();
        Ok(())
    }

    /// Measures a share of the case, which is one turn, and lets the target rest.
    ///
    /// # Errors
    /// What ended it early.
    pub(crate) fn turn(&mut self, effort: Effort, last: bool, going: &mut Going<'_>) -> Result<(), Failure> {
        self.spoilt = true;
        let first = self.rounds == 0;
        self.measure_share(Share { effort, rounds_min: 1, last }, going, &mut |_| {})?;
        self.samples.end_turn();
        if first {
            self.look_beside_blocks()?;
        }
        self.ask(Message::Rest, "to rest")
    }

    /// Lets the target rest until the first turn.
    ///
    /// # Errors
    /// When it is gone.
    pub(crate) fn rested(self) -> Result<Self, Failure> {
        self.ask(Message::Rest, "to rest")?;
        Ok(self)
    }

    fn measure_share(
        &mut self,
        share: Share,
        going: &mut Going<'_>,
        each: &mut dyn FnMut(&mut Samples),
    ) -> Result<(), Failure> {
        let (begin, wall) = (Instant::now(), self.samples.wall);
        let (mut rounds, mut timed) = (0, 0);
        loop {
            let (enough, left) = match share.effort {
                Effort::Iterations(n) => (timed >= n, n - timed.min(n)),
                Effort::Duration(d) => {
                    let long = self.samples.wall - wall >= d || begin.elapsed() >= d * CASE_TIMES_DURATION;
                    (rounds >= share.rounds_min && long, u64::MAX)
                }
            };
            if enough {
                break;
            }
            // The last transfers of a run that is verified at its end go like those of one that is verified
            // throughout.
            let last = share.last && left <= u64::from(self.case.slots);
            let verified = self.case.verify == Verify::Every || (self.case.verify == Verify::Last && last);
            timed += self.round(left, verified)?;
            each(&mut self.samples);
            rounds += 1;
            going()?;
        }
        if share.last && self.case.verify == Verify::Last && matches!(share.effort, Effort::Duration(_)) {
            self.round(u64::from(self.case.slots), true)?;
        }
        Ok(())
    }

    /// One round; the number of timed transfers per thread.
    fn round(&mut self, left: u64, verified: bool) -> Result<u64, Failure> {
        if signals::interrupted() {
            return Err(Failure::interrupted());
        }
        if let Some(rails) = &self.rails {
            rails.look();
        }
        let slots = u64::from(self.case.slots).min(left) as usize;
        // The last transfers on each slot are left to a verified round.
        let room = usize::try_from(left - slots as u64).unwrap_or(usize::MAX).min(STAMPS_MAX);
        let room = if self.case.verify == Verify::Last { room } else { STAMPS_MAX.min(left as usize) };
        // Odd: the warm-up before it has the even number below.
        let number = self.rounds * 2 + 1;
        self.rounds += 1;
        let fresh = verified || std::mem::take(&mut self.spoilt);
        self.plans[0][0] = self.prepare(0, 0)?;
        if fresh {
            // What a source holds while transfers are warmed up is of another round, so that bytes that stay from then are
            // seen to be stale.
            let source_number = if self.run.warmup > 0 { number - 1 } else { number };
            let target_number = if self.case.op == Op::Read { source_number } else { number };
            self.ask(Message::Reset { round: target_number }, "to prepare its memory")?;
            if self.case.op == Op::Write {
                self.fill(source_number);
            }
        }
        if fresh || self.run.warmup > 0 {
            self.warm_up()?;
        }
        if fresh {
            match self.case.op {
                Op::Write => self.fill(number),
                Op::Read => {
                    if self.run.warmup > 0 {
                        self.ask(Message::Reset { round: number }, "to prepare its memory")?;
                    }
                    self.poison();
                }
            }
        }
        self.ask(Message::Mark, "to be ready")?;
        let extent = if verified {
            Extent { slots, at_least: Duration::ZERO, transfers_max: slots }
        } else {
            Extent { slots, at_least: LAP, transfers_max: room }
        };
        let (wall, cpu) = self.lap(extent)?;
        let transfers = self.tracks[0].len();
        self.count_sent();
        let sent = std::mem::take(&mut self.sent);
        let target_looks = verified && self.case.op == Op::Write;
        let damage = self.settle(number, slots as u32, target_looks, sent)?;
        let damage = match self.case.op {
            Op::Read if verified => self.look(number, slots as u32)?,
            _ => damage,
        };
        self.samples.add_lap(self.case, &self.tracks, wall);
        self.samples.cpu_initiator += cpu;
        if let Some(wound) = damage {
            return Err(wounded(self.case, &wound));
        }
        if self.run.warmup > 0 {
            self.ceiling.lap(&self.pool);
        }
        let wall = self.ceiling.lap(&self.pool);
        self.samples.add_ceiling(u64::from(self.case.threads) * u64::from(self.case.slots), wall);
        Ok(transfers as u64)
    }

    fn lap(&mut self, extent: Extent) -> Result<(Duration, Duration), Failure> {
        let before = measure::cpu_time();
        let wall = measure::lap(self.link.pulse(), extent, &mut self.plans, &mut self.tracks)?;
        Ok((wall, measure::cpu_time().saturating_sub(before)))
    }

    fn warm_up(&mut self) -> Result<(), Failure> {
        let slots = self.case.slots as usize;
        let extent = Extent { slots, at_least: Duration::ZERO, transfers_max: slots };
        for _ in 0..self.run.warmup {
            measure::lap(self.link.pulse(), extent, &mut self.plans, &mut self.tracks)?;
            self.count_sent();
        }
        Ok(())
    }

    fn count_sent(&mut self) {
        if self.case.notify {
            self.sent += self.tracks.iter().map(|t| t.len() as u64).sum::<u64>();
        }
    }

    fn fill(&self, round: u32) {
        for &offset in &self.geometry.initiator {
            self.pattern.fill(&self.pool, round, offset, self.case.block_bytes);
        }
    }

    fn poison(&self) {
        for &offset in &self.geometry.initiator {
            pattern::poison(&self.pool, offset, self.case.block_bytes);
        }
    }

    fn look(&self, round: u32, slots: u32) -> Result<Option<Wound>, Failure> {
        let geometry = &self.geometry;
        verify(self.case, self.pattern, &self.pool, &geometry.initiator, &geometry.target, round, slots)
    }

    /// Tells the target something that it answers with `Done`.
    fn ask(&self, message: Message, what: &str) -> Result<(), Failure> {
        self.link.send(message)?;
        match self.receive(what)? {
            Message::Done => Ok(()),
            other => Err(self.link.unexpected(what, &other)),
        }
    }

    /// Waits for the target, and meanwhile drives the agent: with inline progress nobody else does, and what it has
    /// to say to its peer beside the transfers would stay unsaid.
    fn receive(&self, awaited: &str) -> Result<Message, Failure> {
        let drive = || {
            self.endpoint.drive();
        };
        self.link.receive_while(awaited, self.within(), Some(&drive))
    }

    /// Measures what the words around a lap cost the target, so that its CPU time is that of the transfers.
    fn weigh_talk(&mut self) -> Result<(), Failure> {
        let mut costs = Vec::with_capacity(TALKS);
        for _ in 0..TALKS {
            let before = self.samples.cpu_target;
            self.ask(Message::Mark, "to be ready")?;
            self.settle(0, 0, false, 0)?;
            costs.push(self.samples.cpu_target - before);
        }
        costs.sort_unstable();
        self.talk = costs[TALKS / 2];
        self.samples.cpu_target = Duration::ZERO;
        Ok(())
    }

    fn settle(&mut self, round: u32, slots: u32, verify: bool, sent: u64) -> Result<Option<Wound>, Failure> {
        self.link.send(Message::Settle { round, transfers: slots, verify, notifications: sent })?;
        let awaited = "its view of the round";
        match self.receive(awaited)? {
            Message::Settled { cpu_ns, damage, late_ns } => {
                self.samples.late = self.samples.late.max(Duration::from_nanos(late_ns));
                self.samples.cpu_target += Duration::from_nanos(cpu_ns).saturating_sub(self.talk);
                Ok(damage)
            }
            other => Err(self.link.unexpected(awaited, &other)),
        }
    }

    /// Ends the case on both sides: what came of it.
    pub(crate) fn conclude(mut self, measured: Result<(), Failure>, audience: &Audience<'_>) -> Outcome {
        let case = self.case;
        let ended = measured.and_then(|()| self.close_target()).map_err(|f| self.link.explain(f));
        let wrong = matches!(&ended, Err(f) if f.kind == crate::failure::Kind::Check);
        let verified = !wrong && case.verify != Verify::Off;
        // Transfers that were measured before the interruption were verified, each in its round.
        let counts = self.samples.transfers > 0 && (ended.is_ok() || wrong || case.verify == Verify::Every);
        let rails = self.rails.as_ref().map(|rails| rails.sum_up(&self.carrier.transport));
        let (rails, events) = rails.unwrap_or_default();
        for line in rails.iter().filter_map(|rail| rails::trouble(rail, ended.is_ok())) {
            (audience.rails)(&line);
        }
        self.look_again();
        let row = counts.then(|| rows::row(case, &self.carrier, &self.samples, verified, (rails, events)));
        Outcome { row, used: Some(self.carrier.used()), failure: ended.err() }
    }

    /// Some engines know only after a transfer what they used.
    fn look_again(&mut self) {
        if self.carrier.engine.name == Name::Kvrail {
            return;
        }
        if let Some(now) = self.endpoint.carriages().into_iter().next() {
            self.carrier.transport.clone_from(&now.transport);
            self.carrier.sides.initiator = Some(now);
            self.carrier.version = self.endpoint.version();
        }
    }

    /// Ends the case at the target and looks beside the blocks, on both sides.
    fn close_target(&mut self) -> Result<(), Failure> {
        self.plans.clear();
        self.link.send(Message::Close)?;
        let awaited = "the end of the case";
        let there = match self.receive(awaited)? {
            Message::Closed { stray } => stray,
            other => return Err(self.link.unexpected(awaited, &other)),
        };
        self.beside_blocks(there)
    }

    /// Looks beside the blocks on both sides, while the case goes on: of engines that share memory, the one whose turn it
    /// was is to blame.
    fn look_beside_blocks(&self) -> Result<(), Failure> {
        self.link.send(Message::Look)?;
        let awaited = "its look beside the blocks";
        match self.receive(awaited)? {
            Message::Looked { stray } => self.beside_blocks(stray),
            other => Err(self.link.unexpected(awaited, &other)),
        }
    }

    fn beside_blocks(&self, there: Option<u64>) -> Result<(), Failure> {
        let here = stray(self.case, &self.geometry.initiator, &self.pool);
        for (whose, at) in [("target", there), ("initiator", here)] {
            if let Some(at) = at {
                return Err(Failure::check(format!(
                    "case {} ({}): the byte at offset {at} of the {whose}'s region belongs to no block and was \
                     overwritten",
                    self.case.index, self.case
                )));
            }
        }
        Ok(())
    }

    /// Drives the engine where nobody else does: between turns it has signs of life to give.
    pub(crate) fn drive(&self) {
        self.endpoint.drive();
    }

    fn within(&self) -> Duration {
        self.run.timeout + handling(self.case.pool_bytes)
    }
}

/// How long filling, poisoning and checking of so much may take.
pub(crate) fn handling(bytes: u64) -> Duration {
    Duration::from_secs(bytes / HANDLING_BPS)
}

/// Why this transport and no other (KR-13).
fn reason(engine: &Choice, asked: Transport, remote: &Remote, same_host: bool) -> String {
    if engine.name != Name::Kvrail {
        return match &engine.way {
            None => format!("as {} chose", engine.name),
            Some(way) => format!("as told: {way}"),
        };
    }
    let mut reasons = match (asked, remote.transport(), same_host) {
        (Transport::Auto, "shm", _) => vec!["the fastest, both processes are on this host".into()],
        (Transport::Auto, _, false) => vec!["the processes are on different hosts".into()],
        (Transport::Auto, ..) => vec!["the best of those that reach the target".into()],
        (Transport::Shm | Transport::Ofi | Transport::Tcp, ..) => vec!["as told by --transport".into()],
    };
    reasons.extend(remote.passed_over().iter().cloned());
    reasons.join("; ")
}

fn wounded(case: &Case, wound: &Wound) -> Failure {
    let damage = &wound.damage;
    let (slots, batch) = (u64::from(case.slots), case.batch);
    let (thread, slot, block) =
        (wound.block / batch / slots, wound.block / batch % slots, wound.block % batch);
    let bytes =
        if damage.bad_bytes == 1 { "1 byte is".into() } else { format!("{} bytes are", damage.bad_bytes) };
    Failure::check(format!(
        "case {} ({case}): block {}, offset {}: expected {:#04x}, found {:#04x}; {bytes} wrong of {}; {}",
        case.index, wound.block, damage.offset, damage.expected, damage.found, case.block_bytes, damage.kind
    ))
    .hint(format!(
        "block {} is number {block} of the transfer in slot {slot} of thread {thread}, round {}; the byte is at offset \
         {} of the region that it arrived in",
        wound.block, wound.round, damage.region_offset
    ))
    .hint(format!("the figures of this case do not count; repeat it with --seed {}", case.seed))
}
