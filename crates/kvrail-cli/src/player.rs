//! A player: the initiator of one engine among several. It does its turns when the conductor tells it to, and sleeps in between.

use std::net::TcpListener;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::bench::hello;
use crate::control::Message;
use crate::engines::Choice;
use crate::failure::Failure;
use crate::initiator::{Audience, Loans, Open, Outcome, Part};
use crate::keeper::CASE_MAX;
use crate::kid;
use crate::link::Link;
use crate::meet;
use crate::rows::Carrier;
use crate::run::Run;

/// At most so often the conductor hears that a turn goes on.
const GOING: Duration = Duration::from_secs(1);

/// What whoever reads along knows already.
struct Told {
    /// When this engine's part began: rails that fail are told with the time.
    began: Instant,
    /// What carries its bytes.
    carrier: String,
}

/// Plays one engine of a run to the end.
///
/// # Errors
/// What ended it early; the conductor has been told.
pub(crate) fn play(run: &Run, engine: &Choice, target: &str) -> Result<(), Failure> {
    let failed = |e: std::io::Error| Failure::environment(format!("cannot listen on this host: {e}"));
    let listener = TcpListener::bind("127.0.0.1:0").map_err(failed)?;
    kid::report_to_parent(listener.local_addr().map_err(failed)?)?;
    let (socket, _) = meet::accept(&listener, run.timeout)?;
    let conductor = Link::open(socket, hello("player"))?;
    let ended = play_cases(run, engine, target, &conductor);
    if let Err(failure) = &ended {
        // If the conductor is gone, so is who would want to know.
        let _ = conductor.send(Message::Abort { failure: failure.clone() });
    }
    ended
}

fn play_cases(run: &Run, engine: &Choice, target: &str, conductor: &Link) -> Result<(), Failure> {
    let link = Link::open(meet::connect(target, run.timeout)?, hello("initiator"))?;
    let awaited = "the next case";
    let mut told = Told { began: Instant::now(), carrier: String::new() };
    loop {
        match conductor.receive(awaited, CASE_MAX)? {
            Message::Begin { case, here, there } => {
                let part = Part { link: &link, run, engine, case: &case };
                let outcome = play_case(part, Loans { here, there }, conductor, &mut told)?;
                conductor.send(Message::Over)?;
                let bytes = serde_json::to_vec(&outcome)
                    .map_err(|e| Failure::environment(format!("cannot tell the outcome: {e}")))?;
                conductor.send_blob(bytes)?;
                if let Some(failure) = outcome.failure {
                    // What is left of the engine is not to be trusted: the conductor starts another process. The target
                    // may be the one that failed, or gone.
                    let _ = link.send(Message::Abort { failure: Failure { hints: Vec::new(), ..failure } });
                    return Ok(());
                }
            }
            Message::Bye => return link.send(Message::Bye),
            other => return Err(conductor.unexpected(awaited, &other)),
        }
    }
}

/// Plays one case. An error is one between this process and its conductor; what happens to the engine is in the outcome.
fn play_case(part: Part<'_>, loans: Loans, conductor: &Link, told: &mut Told) -> Result<Outcome, Failure> {
    let mut silent = |_: &Carrier| {};
    let audience = Audience {
        began: told.began,
        rails: Arc::new(|line: &str| eprintln!("{line}")),
        carrier: &mut silent,
    };
    let mut open = match Open::new(part, loans, &audience).and_then(Open::rested) {
        Ok(open) => open,
        Err(failure) => {
            return Ok(Outcome { row: None, used: None, failure: Some(part.link.explain(failure)) });
        }
    };
    let carrier = format!("transport {}: {}", open.carrier.transport, open.carrier.reason);
    if told.carrier != carrier {
        eprintln!("{carrier}");
        told.carrier = carrier;
    }
    conductor.send(Message::Begun)?;
    let awaited = "its turn";
    loop {
        let drive = || open.drive();
        match conductor.receive_dozing(awaited, CASE_MAX, &drive)? {
            Message::Turn { effort, last } => {
                let mut last_said = Instant::now();
                let mut going = || {
                    if last_said.elapsed() >= GOING {
                        last_said = Instant::now();
                        conductor.send(Message::Going)?;
                    }
                    Ok(())
                };
                if let Err(failure) = open.turn(effort, last, &mut going) {
                    return Ok(open.conclude(Err(failure), &audience));
                }
                conductor.send(Message::Turned)?;
            }
            Message::End => return Ok(open.conclude(Ok(()), &audience)),
            other => return Err(conductor.unexpected(awaited, &other)),
        }
    }
}
