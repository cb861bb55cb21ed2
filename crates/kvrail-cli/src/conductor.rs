//! Several engines in turns: the conductor of their processes.
//!
//! Each engine has a process here (a player) and one at the target (a servant), on the same memory where it can be shared. All of
//! them open a case, and then one after the other does a turn of it, again and again, while the others sleep: machines drift, and
//! within one turn engines differ by themselves. A player that dies, falls silent or misses its deadline is killed, and its engine
//! gets a row that says so; the others go on.

use std::time::Duration;

use kvrail_report::{Document, Row, Used, versus};

use crate::bench::hello;
use crate::case::Case;
use crate::control::Message;
use crate::engines::{self, Choice};
use crate::failure::{Failure, Kind};
use crate::initiator::{Loans, Outcome, handling};
use crate::keeper::{self, ENGINES_MAX};
use crate::kid::{Kid, Voice};
use crate::link::Link;
use crate::meet;
use crate::pool::Backing;
use crate::rails::Say;
use crate::rows;
use crate::run::{Effort, Run};
use crate::sink::Sink;
use crate::spawn::Spawned;

/// Turns of each engine in a case: a median of fewer ratios says little.
const TURNS: u32 = 5;
/// An engine that has failed in so many cases, one after the other, is not started again.
const FAILED_CASES_MAX: u32 = 3;
/// What a player may be late beyond the deadline of a transfer, which it keeps itself.
const GRACE: Duration = Duration::from_secs(10);
/// How often per round all of the memory is gone over: filled, poisoned, checked, copied.
const HANDLINGS: u32 = 4;

/// What all players have in common.
struct Stage<'a> {
    run: &'a Run,
    /// The keeper of the servants.
    target: &'a Link,
    /// Where players find it.
    address: &'a str,
    say: Say,
}

/// Measures all cases with all engines.
///
/// # Errors
/// What ended the run early: the target is gone, or on Ctrl-C. What an engine does stands in its rows.
pub(crate) fn measure(
    run: &Run,
    target: &Link,
    address: &str,
    report: &mut Document,
    sink: &mut Sink,
) -> Result<(), Failure> {
    if run.engines.len() > ENGINES_MAX {
        return Err(Failure::usage(format!("more than {ENGINES_MAX} engines at once")));
    }
    let stage = Stage { run, target, address, say: sink.speaker() };
    stage.tell(Message::Conduct, "to keep processes")?;
    let players = run.engines.iter().cloned().map(Player::new).collect();
    let ended = measure_cases(&stage, players, report, sink);
    // Also after Ctrl-C: what was measured until then counts.
    report.judge();
    sink.text(&versus::table(report))?;
    ended
}

fn measure_cases(
    stage: &Stage<'_>,
    mut players: Vec<Player>,
    report: &mut Document,
    sink: &Sink,
) -> Result<(), Failure> {
    sink.expect(stage.run.cases.len());
    for (index, case) in stage.run.cases.iter().enumerate() {
        sink.begin(&case.to_string());
        let mut outcomes = measure_case(stage, &mut players, case)?;
        if index == 0 && stage.run.libraries.is_all() {
            leave_out(&mut players, &mut outcomes, &stage.say);
        }
        for (player, outcome) in players.iter().zip(outcomes) {
            report.results.push(row(&player.engine, case, &outcome));
            outcome.used.into_iter().for_each(|used: Used| report.met(used));
        }
        sink.step();
    }
    for player in &mut players {
        player.leave();
    }
    Ok(())
}

/// Takes out those that this pair of hosts has not: `all` asks for what is there.
fn leave_out(players: &mut Vec<Player>, outcomes: &mut Vec<Outcome>, say: &Say) {
    let absent = |outcome: &Outcome| {
        outcome.row.is_none() && outcome.failure.as_ref().is_some_and(|f| f.kind == Kind::Environment)
    };
    for (player, outcome) in players.iter().zip(outcomes.iter()) {
        if let Some(failure) = outcome.failure.as_ref().filter(|_| absent(outcome)) {
            say(&format!("left out: {}: {}", player.engine, failure.what));
            failure.hints.iter().for_each(|hint| say(&format!("  hint: {hint}")));
        }
    }
    let mut there = outcomes.iter().map(|outcome| !absent(outcome)).collect::<Vec<_>>().into_iter();
    players.retain(|_| there.next().unwrap_or(true));
    outcomes.retain(|outcome| !absent(outcome));
}

/// A row for what an engine made of a case, also when that is nothing.
fn row(engine: &Choice, case: &Case, outcome: &Outcome) -> Row {
    let row = outcome.row.clone().unwrap_or_else(|| rows::empty(engine, case));
    // Who is the engine's peer is the engine, too.
    let failure = outcome.failure.clone().map(|failure| match failure.kind {
        Kind::Peer => Failure { kind: Kind::Engine, ..failure },
        _ => failure,
    });
    Row { failure, ..row }
}

/// What the failures of engines mean for the run as a whole.
///
/// # Errors
/// A check that failed in any engine, else that engines failed.
pub(crate) fn verdict(report: &Document) -> Result<(), Failure> {
    let failed = |kind: Option<Kind>| {
        let rows = report.results.iter();
        rows.filter_map(move |row| {
            let failure = row.failure.as_ref()?;
            kind.is_none_or(|kind| failure.kind == kind).then_some((row, failure))
        })
    };
    let count = |what: usize| if what == 1 { "one row".into() } else { format!("{what} rows") };
    if let Some((row, failure)) = failed(Some(Kind::Check)).next() {
        let rows = count(failed(Some(Kind::Check)).count());
        let what = format!("wrong bytes in {rows}; first {}: {}", row.engine, failure.what);
        return Err(failure.hints.iter().fold(Failure::check(what), |f, hint| f.hint(hint.clone())));
    }
    if let Some((row, failure)) = failed(None).next() {
        let what = format!(
            "{} without figures that count; first {}: {}",
            count(failed(None).count()),
            row.engine,
            failure.what
        );
        return Err(failure.hints.iter().fold(Failure::engine(what), |f, hint| f.hint(hint.clone())));
    }
    Ok(())
}

fn measure_case(stage: &Stage<'_>, players: &mut [Player], case: &Case) -> Result<Vec<Outcome>, Failure> {
    // Held until every player is done with it.
    let mut pool = None;
    let mut there = None;
    let mut here = None;
    if players.iter().any(Player::plays) {
        pool = keeper::lend(case.memory, case.pool_bytes)?;
        here = pool.as_ref().and_then(Backing::lend);
        stage.target.send(Message::Lend { memory: case.memory, bytes: case.pool_bytes })?;
        there = match stage.target.receive("its memory", stage.within(case))? {
            Message::Lent { loan } => loan,
            Message::Refused { failure } => return Err(failure.told_by("target")),
            other => return Err(stage.target.unexpected("its memory", &other)),
        };
    }
    let mut outcomes: Vec<Option<Outcome>> = Vec::new();
    for player in players.iter_mut() {
        let loans = Loans { here: here.clone(), there: there.clone() };
        outcomes.push(player.begin(stage, case, loans)?);
    }
    let shares = shares(stage.run.effort);
    for (turn, &effort) in shares.iter().enumerate() {
        for (player, outcome) in players.iter_mut().zip(&mut outcomes) {
            if outcome.is_none() {
                *outcome = player.turn(stage, case, effort, turn + 1 == shares.len())?;
                if let (Some(pool), Some(outcome)) = (&pool, outcome)
                    && outcome.failure.is_some()
                {
                    // Others must not be blamed for what it left.
                    pool.poison();
                    stage.tell(Message::Poison, "to poison its memory")?;
                }
            }
        }
    }
    let mut ended = Vec::with_capacity(players.len());
    for (player, outcome) in players.iter_mut().zip(outcomes) {
        let outcome = match outcome {
            Some(outcome) => outcome,
            None => player.end(stage, case)?,
        };
        player.failed_cases = if outcome.failure.is_some() { player.failed_cases + 1 } else { 0 };
        if let Some(failure) = outcome.failure.as_ref().filter(|_| player.failed_cases == FAILED_CASES_MAX) {
            player.given_up = Some(failure.clone());
        }
        ended.push(outcome);
    }
    Ok(ended)
}

/// What each turn does: all together what was asked for, and none of them nothing.
fn shares(effort: Effort) -> Vec<Effort> {
    match effort {
        Effort::Duration(all) => vec![Effort::Duration(all / TURNS); TURNS as usize],
        Effort::Iterations(all) => {
            let turns = u64::from(TURNS).min(all);
            (0..turns).map(|turn| Effort::Iterations(all * (turn + 1) / turns - all * turn / turns)).collect()
        }
    }
}

impl Stage<'_> {
    /// Tells the target something that it answers with `Done`.
    fn tell(&self, message: Message, what: &str) -> Result<(), Failure> {
        self.target.send(message)?;
        self.done(what)
    }

    fn done(&self, what: &str) -> Result<(), Failure> {
        match self.target.receive(what, self.run.timeout + GRACE)? {
            Message::Done => Ok(()),
            other => Err(self.target.unexpected(what, &other)),
        }
    }

    /// How long a round may take.
    fn within(&self, case: &Case) -> Duration {
        self.run.timeout + GRACE + handling(case.pool_bytes) * HANDLINGS
    }
}

/// One engine.
struct Player {
    engine: Choice,
    process: Option<Process>,
    failed_cases: u32,
    /// Why it is not started again.
    given_up: Option<Failure>,
}

/// Its process here. The link goes first: then the process ends by itself.
struct Process {
    link: Link,
    kid: Kid,
}

/// Whether something concerns one engine, or the run.
enum Trouble {
    Engine(Failure),
    Run(Failure),
}

impl Player {
    fn new(engine: Choice) -> Self {
        Self { engine, process: None, failed_cases: 0, given_up: None }
    }

    fn plays(&self) -> bool {
        self.given_up.is_none()
    }

    /// Sets a case up; an outcome if that is already its end.
    fn begin(&mut self, stage: &Stage<'_>, case: &Case, loans: Loans) -> Result<Option<Outcome>, Failure> {
        if let Some(failure) = &self.given_up {
            let what =
                format!("not started again after {FAILED_CASES_MAX} failed cases; last: {}", failure.what);
            return Ok(Some(failed(Failure { what, ..failure.clone() })));
        }
        if self.process.is_none() {
            match self.start(stage) {
                Ok(process) => self.process = Some(process),
                Err(Trouble::Run(failure)) => return Err(failure),
                Err(Trouble::Engine(failure)) => return self.lose(stage, failure).map(Some),
            }
        }
        let mut case = case.clone();
        case.transport = self.engine.transport().unwrap_or(case.transport);
        let Loans { here, there } = loans;
        let within = stage.within(&case);
        let begin = Message::Begin { case: Box::new(case), here, there };
        // Both sides set up, and the engine may take its time to meet.
        self.ask(stage, begin, "both sides of the case", within * 2, |answer| {
            matches!(answer, Message::Begun)
        })
    }

    fn start(&self, stage: &Stage<'_>) -> Result<Process, Trouble> {
        let engine = &self.engine;
        // Before the target waits for anybody.
        engines::surroundings(engine, &stage.run.libraries)
            .map_err(|e| Trouble::Engine(crate::endpoint::failure(e)))?;
        stage.target.send(Message::Expect { engine: engine.clone() }).map_err(Trouble::Run)?;
        let awaited = "to expect an engine";
        match stage.target.receive(awaited, stage.run.timeout + GRACE).map_err(Trouble::Run)? {
            Message::Done => {}
            Message::Refused { failure } => return Err(Trouble::Engine(failure.told_by("target"))),
            other => return Err(Trouble::Run(stage.target.unexpected(awaited, &other))),
        }
        let voice = Voice { name: engine.to_string(), say: stage.say.clone() };
        let spawned = Spawned::player(stage.run, engine, stage.address, voice).map_err(Trouble::Run)?;
        let mut link = meet::connect(&spawned.address(), stage.run.timeout)
            .and_then(|socket| Link::open(socket, hello("conductor")))
            .map_err(Trouble::Run)?;
        link.name_peer(format!("process of {engine}"));
        let process = Process { link, kid: spawned.kid };
        let awaited = "to serve an engine";
        match stage.target.receive(awaited, stage.run.timeout + GRACE).map_err(Trouble::Run)? {
            Message::Done => Ok(process),
            Message::Refused { failure } => Err(Trouble::Engine(failure.told_by("target"))),
            other => Err(Trouble::Run(stage.target.unexpected(awaited, &other))),
        }
    }

    fn turn(
        &mut self,
        stage: &Stage<'_>,
        case: &Case,
        effort: Effort,
        last: bool,
    ) -> Result<Option<Outcome>, Failure> {
        let turn = Message::Turn { effort, last };
        self.ask(stage, turn, "the end of its turn", stage.within(case), |answer| {
            matches!(answer, Message::Turned)
        })
    }

    fn end(&mut self, stage: &Stage<'_>, case: &Case) -> Result<Outcome, Failure> {
        let outcome = self.ask(stage, Message::End, "its figures", stage.within(case), |_| false)?;
        outcome.map_or_else(|| Ok(failed(Failure::engine("it gave no figures"))), Ok)
    }

    /// Tells the player something. Nothing when it answers as wanted; else what came of the case.
    fn ask(
        &mut self,
        stage: &Stage<'_>,
        message: Message,
        awaited: &str,
        within: Duration,
        wanted: impl Fn(&Message) -> bool,
    ) -> Result<Option<Outcome>, Failure> {
        let Some(process) = &self.process else {
            return Ok(Some(failed(Failure::engine("its process is gone"))));
        };
        let answer = (|| {
            process.link.send(message)?;
            loop {
                match process.link.receive(awaited, within)? {
                    Message::Going => {}
                    Message::Over => {
                        let bytes = process.link.receive_blob(awaited, within)?;
                        let outcome: Outcome = serde_json::from_slice(&bytes)
                            .map_err(|e| Failure::peer(format!("its outcome cannot be understood: {e}")))?;
                        return Ok(Some(outcome));
                    }
                    answer if wanted(&answer) => return Ok(None),
                    other => return Err(process.link.unexpected(awaited, &other)),
                }
            }
        })();
        match answer {
            Ok(Some(outcome)) if outcome.failure.is_some() => {
                self.dismiss(stage)?;
                Ok(Some(outcome))
            }
            Ok(outcome) => Ok(outcome),
            Err(failure) if failure.kind == Kind::Interrupted => Err(failure),
            Err(failure) => self.lose(stage, failure).map(Some),
        }
    }

    /// The process is dead, silent or late: it is ended, here and there.
    fn lose(&mut self, stage: &Stage<'_>, failure: Failure) -> Result<Outcome, Failure> {
        let account = match &mut self.process {
            Some(process) => {
                let account = process.kid.account();
                process.kid.kill();
                account
            }
            None => String::new(),
        };
        self.dismiss(stage)?;
        let Failure { kind, what, hints } = failure;
        let kind = if kind == Kind::Peer { Kind::Engine } else { kind };
        Ok(failed(Failure { kind, what: what + &account, hints }))
    }

    fn dismiss(&mut self, stage: &Stage<'_>) -> Result<(), Failure> {
        self.process = None;
        let engine = self.engine.clone();
        stage.tell(Message::Dismiss { engine }, "to end a process")
    }

    /// The run is over.
    fn leave(&mut self) {
        if let Some(process) = self.process.take() {
            // One that is gone meanwhile has nothing left to do.
            let _ = process.link.send(Message::Bye);
        }
    }
}

fn failed(failure: Failure) -> Outcome {
    Outcome { row: None, used: None, failure: Some(failure) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_share_what_was_asked_for_and_none_is_empty() {
        for all in [1, 2, 4, 5, 6, 99, 1000] {
            let shares = shares(Effort::Iterations(all));
            let counts = shares.iter().map(|share| match share {
                Effort::Iterations(n) => *n,
                Effort::Duration(_) => unreachable!("iterations were asked for"),
            });
            let counts: Vec<u64> = counts.collect();
            assert_eq!(counts.iter().sum::<u64>(), all);
            assert!(counts.iter().all(|n| *n > 0), "{counts:?}");
        }
        let shares = shares(Effort::Duration(Duration::from_secs(1)));
        assert_eq!(shares, vec![Effort::Duration(Duration::from_millis(200)); 5]);
    }
}
