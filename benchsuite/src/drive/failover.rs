//! A rail's death in the middle of a transfer: what it costs.
//!
//! All times are of one clock, in this process, from the posting of the transfer that they belong to. The strike is a
//! command, run by a thread while this one makes progress; the rail dies while it runs.

use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use kvrail::PeerEvent;

use crate::DriveError;
use crate::session::{DEADLINE, Op, Session, Shape};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Where the target waits
    #[arg(long, value_name = "HOST:PORT")]
    meet: String,
    #[arg(long, value_enum, default_value = "write")]
    op: Op,
    #[command(flatten)]
    shape: Shape,
    /// Transfers before the one that is struck
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    undisturbed: u32,
    /// The command that kills the rail
    #[arg(long, value_name = "COMMAND")]
    strike: String,
    /// When it is run: this share of an undisturbed transfer after the posting
    #[arg(long, default_value_t = 0.3, value_parser = share)]
    at: f64,
    /// The command that brings the rail back, before a last transfer
    #[arg(long, value_name = "COMMAND")]
    mend: Option<String>,
    /// Longest wait for the rail to be used again
    #[arg(long, default_value_t = 20)]
    return_s: u64,
}

fn share(text: &str) -> Result<f64, String> {
    let share = text.parse().ok().filter(|share| (0.0..1.0).contains(share));
    share.ok_or_else(|| "a share is a number from 0 up to 1".into())
}

/// Milliseconds throughout.
#[derive(Debug, serde::Serialize)]
struct Row {
    schema: &'static str,
    transport: &'static str,
    op: Op,
    bytes: u64,
    undisturbed_ms: Vec<f64>,
    disturbed_ms: f64,
    /// When the command began and ended.
    strike_ms: (f64, f64),
    /// When the first route was reported down; none: never.
    reported_ms: Option<f64>,
    /// What was reported first.
    reported: Option<String>,
    routes_down: usize,
    ops: u32,
    retried_ops: u32,
    /// From the end of the mending command to the first route that was up again.
    returned_ms: Option<f64>,
    /// A transfer after the return.
    after_ms: Option<f64>,
    verified: bool,
}

pub(crate) fn run(args: &Args) -> Result<(), DriveError> {
    let mut session = Session::open(&args.meet, args.op, args.shape.layout())?;
    let mut seed = 1;
    moved(&mut session, seed, |_| Ok(()))?;
    let mut undisturbed_ms = Vec::new();
    for _ in 0..args.undisturbed {
        seed += 1;
        undisturbed_ms.push(ms(moved(&mut session, seed, |_| Ok(()))?.took));
    }
    session.take_events();
    let usual = median(&undisturbed_ms);

    let pause = Duration::from_secs_f64(usual * args.at / 1e3);
    let (command, mut striker) = (args.strike.clone(), None);
    seed += 1;
    let struck = moved(&mut session, seed, |posted| {
        striker = Some(thread::spawn(move || {
            thread::sleep(pause.saturating_sub(posted.elapsed()));
            carry_out(&command)
        }));
        Ok(())
    })?;
    let strike = striker.map(thread::JoinHandle::join);
    let Some(Ok(strike)) = strike else { return Err(DriveError::Other("the striking thread ended".into())) };
    let strike = strike?;
    let since = |at: Instant| ms(at.saturating_duration_since(struck.posted));
    let downs = |events: &[(Instant, PeerEvent)]| -> Vec<(Instant, String)> {
        let down = |(at, event): &(Instant, PeerEvent)| match event {
            PeerEvent::RouteDown { .. } => Some((*at, format!("{event:?}"))),
            _ => None,
        };
        events.iter().filter_map(down).collect()
    };
    let downs = downs(&session.take_events());

    let (mut returned_ms, mut after_ms) = (None, None);
    if let Some(mend) = &args.mend {
        let (_, mended) = carry_out(mend)?;
        returned_ms = until_up(&mut session, mended, Duration::from_secs(args.return_s)).map(ms);
        seed += 1;
        after_ms = Some(ms(moved(&mut session, seed, |_| Ok(()))?.took));
    }
    let row = Row {
        schema: "kvrail.failover.v1",
        transport: session.transport(),
        op: args.op,
        bytes: struck.report.bytes,
        undisturbed_ms,
        disturbed_ms: ms(struck.took),
        strike_ms: (since(strike.0), since(strike.1)),
        reported_ms: downs.first().map(|(at, _)| since(*at)),
        reported: downs.first().map(|(_, said)| said.clone()),
        routes_down: downs.len(),
        ops: struck.report.ops,
        retried_ops: struck.report.retried_ops,
        returned_ms,
        after_ms,
        verified: true,
    };
    println!("{}", serde_json::to_string(&row).map_err(DriveError::in_doing("writing JSON"))?);
    session.close()
}

/// A transfer that has ended well, with every byte checked.
struct Moved {
    posted: Instant,
    took: Duration,
    report: kvrail::Report,
}

fn moved(
    session: &mut Session,
    seed: u64,
    once_posted: impl FnOnce(Instant) -> Result<(), DriveError>,
) -> Result<Moved, DriveError> {
    session.prepare(seed)?;
    let posted = Instant::now();
    let transfer = session.post()?;
    once_posted(posted)?;
    let mut ended = None;
    session.until("a transfer to end", |_| {
        ended = transfer.poll();
        ended.is_some()
    })?;
    let took = posted.elapsed();
    let Some(Ok(report)) = ended else {
        let error = ended.and_then(Result::err);
        return Err(DriveError::Other(
            error.map_or_else(|| "no end".into(), |error| format!("a transfer: {error}")),
        ));
    };
    session.turn();
    session.check(seed)?;
    Ok(Moved { posted, took, report })
}

/// How long after `mended` the first route was up again.
fn until_up(session: &mut Session, mended: Instant, within: Duration) -> Option<Duration> {
    let within = within.min(DEADLINE);
    while mended.elapsed() < within {
        session.turn();
        let up =
            |(at, event): &(Instant, PeerEvent)| matches!(event, PeerEvent::RouteUp { .. }).then_some(*at);
        if let Some(at) = session.take_events().iter().find_map(up) {
            return Some(at.saturating_duration_since(mended));
        }
        thread::sleep(Duration::from_micros(200));
    }
    None
}

/// Runs a command; when it began and ended.
fn carry_out(command: &str) -> Result<(Instant, Instant), DriveError> {
    let began = Instant::now();
    let ended = Command::new("sh").args(["-c", command]).stdin(Stdio::null()).stdout(Stdio::null()).status();
    match ended {
        Ok(status) if status.success() => Ok((began, Instant::now())),
        Ok(status) => Err(DriveError::Other(format!("`{command}` ended with {status}"))),
        Err(error) => Err(DriveError::Other(format!("`{command}`: {error}"))),
    }
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

fn median(figures: &[f64]) -> f64 {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(0.0)
}
