//! What a descriptor costs on the caller's core: very many of them, small, in one function.

use std::time::{Duration, Instant};

use kvrail::Transfer;

use crate::DriveError;
use crate::session::{Op, Session, Shape};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Where the target waits
    #[arg(long, value_name = "HOST:PORT")]
    meet: String,
    #[arg(long, value_enum, default_value = "read")]
    op: Op,
    #[command(flatten)]
    shape: Shape,
    /// Transfers in the function that is measured
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    transfers: u32,
}

#[derive(Debug, serde::Serialize)]
struct Row {
    schema: &'static str,
    transport: &'static str,
    op: Op,
    /// Descriptors that were moved in the function that is measured.
    descriptors: u64,
    /// Fabric operations that they took.
    ops: u64,
    wall_s: f64,
    verified: bool,
}

pub(crate) fn run(args: &Args) -> Result<(), DriveError> {
    let layout = args.shape.layout();
    let mut session = Session::open(&args.meet, args.op, layout)?;
    // Connections, registrations and caches are made by the first one.
    let mut transfer = session.post()?;
    ended(&transfer)?;
    session.prepare(1)?;
    let began = Instant::now();
    timed_transfers(&mut transfer, args.transfers)?;
    let wall = began.elapsed();
    session.check(1)?;
    let transfers = u64::from(args.transfers);
    let row = Row {
        schema: "kvrail.cost.v1",
        transport: session.transport(),
        op: args.op,
        descriptors: layout.blocks as u64 * transfers,
        ops: session.plan.ops() as u64 * transfers,
        wall_s: wall.as_secs_f64(),
        verified: true,
    };
    println!("{}", serde_json::to_string(&row).map_err(DriveError::in_doing("writing JSON"))?);
    session.close()
}

/// All that is measured: posting and waiting, with the progress made in between, in this thread. Profilers are told to look
/// at this function alone, so it has a name of its own and calls no closure of its own.
#[inline(never)]
fn timed_transfers(transfer: &mut Transfer, count: u32) -> Result<(), DriveError> {
    for _ in 0..count {
        if let Err(error) = transfer.post() {
            return Err(DriveError::Other(format!("posting: {error}")));
        }
        ended(transfer)?;
    }
    Ok(())
}

fn ended(transfer: &Transfer) -> Result<(), DriveError> {
    match transfer.wait_timeout(Duration::from_secs(300)) {
        Some(Ok(_)) => Ok(()),
        Some(Err(error)) => Err(DriveError::Other(format!("a transfer: {error}"))),
        None => Err(DriveError::Other("a transfer did not end".into())),
    }
}
