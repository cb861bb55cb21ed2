//! The target: offers memory, prepares it for each round, and says afterwards what it holds.
//!
//! It obeys one initiator at a time, checks all that it is told (it is input from outside), and ends when that
//! initiator says so, dies or falls silent.

use std::net::TcpListener;
use std::time::{Duration, Instant};

use kvrail_engines::Name;

use crate::args::Injection;
use crate::case::{Case, GUARD_BYTES, Geometry, Op, Progress};
use crate::control::{Message, Wound};
use crate::control_path;
use crate::endpoint::Endpoint;
use crate::engines::{Choice, Setup};
use crate::environment;
use crate::failure::Failure;
use crate::keeper;
use crate::link::Link;
use crate::measure;
use crate::pattern::{self, Block, Bytes, Pattern, Places, Source};
use crate::pool::{self, Loan, Pool};
use crate::run::Run;
use crate::signals;

/// Longest wait for the initiator's next word inside a case: a round of large transfers may take this long. (A dead
/// or silent initiator is noticed much earlier.)
pub(crate) const ROUND_MAX: Duration = Duration::from_secs(900);
/// Longest wait for notifications whose transfers have ended at the initiator.
const NOTIFICATIONS_MAX: Duration = Duration::from_secs(5);
/// How long bytes may come after their write has ended, where nothing else is promised.
const LATE_MAX: Duration = Duration::from_secs(2);
const LATE_TICK: Duration = Duration::from_micros(200);

/// Serves one initiator to the end; or a conductor, if it may listen for what that brings.
///
/// # Errors
/// What ended the run early; the initiator has been told, too.
pub(crate) fn serve(link: &Link, run: &Run, listener: Option<&TcpListener>) -> Result<(), Failure> {
    let ended = serve_cases(link, run, listener);
    if let Err(failure) = &ended {
        // If the link is gone, so is who would want to know.
        let _ = link.send(Message::Abort { failure: failure.clone() });
    }
    ended
}

fn serve_cases(link: &Link, run: &Run, listener: Option<&TcpListener>) -> Result<(), Failure> {
    let awaited = "the next case";
    loop {
        match link.receive(awaited, ROUND_MAX)? {
            Message::Open { engine, case, loan } => {
                Served::open(link, &engine, *case, loan, run)?.run(link)?;
            }
            Message::Conduct => match listener {
                Some(listener) => return keeper::keep(link, run, listener),
                None => return Err(Failure::peer("a process of one engine was told to keep others")),
            },
            Message::OpenControl { regions, transport } => {
                control_path::serve(link, regions, transport, run)?
            }
            Message::Bye => return Ok(()),
            other => return Err(link.unexpected(awaited, &other)),
        }
    }
}

/// A case in progress.
struct Served {
    case: Case,
    geometry: Geometry,
    endpoint: Endpoint,
    pool: Pool,
    pattern: Pattern,
    injection: Option<Injection>,
}

impl Served {
    fn open(
        link: &Link,
        engine: &Choice,
        case: Case,
        loan: Option<Loan>,
        run: &Run,
    ) -> Result<Self, Failure> {
        case.check()?;
        if loan.is_none() {
            environment::check_memory(case.pool_bytes, "the target")?;
        }
        let injection = run.injection.filter(|i| i.case == case.index);
        if injection.is_some_and(|i| i.block >= case.blocks() || i.offset >= case.block_bytes) {
            return Err(Failure::usage(format!("--inject-corruption is outside of {case}")));
        }
        let name = format!("kvrail-bench-target-{}-{}", std::process::id(), case.index);
        let mut endpoint = Endpoint::create(Setup {
            engine,
            name: &name,
            transport: case.transport,
            cooperate: case.cooperate,
            ip: &link.local_ip(),
            ofi: &run.ofi,
            libraries: &run.libraries,
            // A thread of NIXL's never sleeps, also while others have their turn: it is driven instead.
            progress: if engine.name == Name::Nixl { Progress::Inline } else { Progress::Thread },
            plant: None,
            timeout: run.timeout,
        })?;
        let pool = endpoint.register(pool::obtain(loan, case.memory, case.pool_bytes)?)?;
        let source = match case.op {
            Op::Write => Source::Initiator,
            Op::Read => Source::Target,
        };
        let pattern = Pattern::new(case.seed, source);
        let geometry = Geometry::new(&case);
        link.send(Message::Opened { carriages: endpoint.carriages() })?;
        link.send_blob(endpoint.metadata()?)?;
        endpoint.admit(&link.receive_blob("its metadata", run.timeout)?)?;
        link.send(Message::Done)?;
        Ok(Self { case, geometry, endpoint, pool, pattern, injection })
    }

    fn run(mut self, link: &Link) -> Result<(), Failure> {
        let awaited = "the next step of the case";
        let mut mark = measure::cpu_time();
        let mut rests = false;
        loop {
            match self.receive(link, awaited, std::mem::take(&mut rests))? {
                Message::Rest => {
                    link.send(Message::Done)?;
                    rests = true;
                }
                Message::Reset { round } => {
                    self.reset(round)?;
                    link.send(Message::Done)?;
                }
                Message::Mark => {
                    link.send(Message::Done)?;
                    mark = measure::cpu_time();
                }
                Message::Settle { round, transfers, verify, notifications } => {
                    let cpu = measure::cpu_time().saturating_sub(mark);
                    if notifications > 0 {
                        self.count_notifications(notifications)?;
                    }
                    let (damage, late) =
                        if verify { self.verify_late(round, transfers)? } else { (None, Duration::ZERO) };
                    let ns = |time: Duration| time.as_nanos().try_into().unwrap_or(u64::MAX);
                    link.send(Message::Settled { cpu_ns: ns(cpu), damage, late_ns: ns(late) })?;
                }
                Message::Look => {
                    let stray = stray(&self.case, &self.geometry.target, &self.pool);
                    link.send(Message::Looked { stray })?;
                }
                Message::Close => {
                    let stray = stray(&self.case, &self.geometry.target, &self.pool);
                    drop(self);
                    return link.send(Message::Closed { stray });
                }
                other => return Err(link.unexpected(awaited, &other)),
            }
        }
    }

    /// Waits for the initiator, and drives the engine where nobody else does.
    fn receive(&self, link: &Link, awaited: &str, rests: bool) -> Result<Message, Failure> {
        if rests {
            let drive = || {
                self.endpoint.drive();
            };
            return link.receive_dozing(awaited, keeper::CASE_MAX, &drive);
        }
        if self.endpoint.needs_driving() {
            return link.receive_driving(awaited, ROUND_MAX, &|| self.endpoint.drive());
        }
        link.receive(awaited, ROUND_MAX)
    }

    /// Poisons the blocks, or fills them when they are the source.
    fn reset(&mut self, round: u32) -> Result<(), Failure> {
        for (i, &offset) in self.geometry.target.iter().enumerate() {
            if i % 1024 == 0 && signals::interrupted() {
                return Err(Failure::interrupted());
            }
            match self.case.op {
                Op::Write => pattern::poison(&self.pool, offset, self.case.block_bytes),
                Op::Read => self.pattern.fill(&self.pool, round, offset, self.case.block_bytes),
            }
        }
        if self.case.op == Op::Read {
            self.inject();
        }
        Ok(())
    }

    /// Looks at the blocks; again for a while where the engine does not promise that a write which has ended is visible. How long that
    /// took is as much a result as the bytes.
    fn verify_late(&mut self, round: u32, transfers: u32) -> Result<(Option<Wound>, Duration), Failure> {
        let begin = Instant::now();
        let mut damage = self.verify(round, transfers)?;
        let mut late = Duration::ZERO;
        while damage.is_some() && !self.endpoint.completes_visible() && begin.elapsed() < LATE_MAX {
            self.endpoint.drive();
            std::thread::sleep(LATE_TICK);
            late = begin.elapsed();
            damage = self.verify(round, transfers)?;
        }
        Ok((damage, late))
    }

    fn verify(&mut self, round: u32, transfers: u32) -> Result<Option<Wound>, Failure> {
        self.inject();
        let slots = transfers.min(self.case.slots);
        verify(
            &self.case,
            self.pattern,
            &self.pool,
            &self.geometry.target,
            &self.geometry.initiator,
            round,
            slots,
        )
    }

    fn inject(&self) {
        let Some(injection) = self.injection else { return };
        let Some(block) = self.geometry.target.get(injection.block as usize) else { return };
        let mut byte = [0];
        self.pool.read(block + injection.offset, &mut byte);
        self.pool.write(block + injection.offset, &[!byte[0]]);
    }

    fn count_notifications(&self, awaited: u64) -> Result<(), Failure> {
        let seen = self.endpoint.notifications(awaited, NOTIFICATIONS_MAX)?;
        if seen == awaited {
            return Ok(());
        }
        Err(Failure::check(format!(
            "{}: {awaited} transfers with notification have ended at the initiator and {seen} notifications \
             arrived at the target",
            self.case
        )))
    }
}

/// Checks the blocks of the first `slots` slots of every thread: `here` against the pattern of `source`.
///
/// # Errors
/// On Ctrl-C.
pub(crate) fn verify(
    case: &Case,
    pattern: Pattern,
    pool: &Pool,
    here: &[u64],
    source: &[u64],
    round: u32,
    slots: u32,
) -> Result<Option<Wound>, Failure> {
    for thread in 0..case.threads {
        for slot in 0..slots {
            if signals::interrupted() {
                return Err(Failure::interrupted());
            }
            for block in Geometry::slot(case, thread, slot) {
                let expected = Block {
                    offset: here[block],
                    source_offset: source[block],
                    len: case.block_bytes,
                    round,
                    region_bytes: case.pool_bytes,
                };
                if let Err(mut damage) = pattern.check(pool, &expected) {
                    let (block_bytes, region_bytes) = (case.block_bytes, case.pool_bytes);
                    let places = Places { here, source, block_bytes, region_bytes };
                    damage.name_blocks(pattern, pool, &places, round);
                    return Ok(Some(Wound { case: case.index, round, block: block as u64, damage: *damage }));
                }
            }
        }
    }
    Ok(None)
}

/// The first byte outside every block that is no longer poison: something wrote where nothing was to be written.
pub(crate) fn stray(case: &Case, blocks: &[u64], pool: &Pool) -> Option<u64> {
    pattern::stray(pool, blocks, case.block_bytes, case.pool_bytes)
}

const _: () = assert!(GUARD_BYTES > 0, "contiguous blocks have something before and behind them to look at");
