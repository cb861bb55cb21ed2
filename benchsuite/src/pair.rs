//! The two processes of a case: an initiator that drives and times the loop, and a target that owns the other pool,
//! fills or poisons it on request and checks what reached it.
//!
//! They speak outside the timed part. The target sleeps between requests, so a one-sided loop has its core for
//! itself. It is forked from the initiator and ends with it; the fabric's target may also be a program of its own,
//! on another (emulated) node. Nobody waits for anything without a deadline.

use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::error::LimitError;
use crate::fabric::{self, Fabric, RailOffer};
use crate::line::Line;
use crate::memcpy::Memcpy;
use crate::memory::{Backing, Pool};
use crate::process_vm::ProcessVm;
use crate::report::{RequestsUs, Row};
use crate::tcp::{Part, Tcp};
use crate::workload::{Case, Kind, Op, Slots};

/// The longest that either process waits for the other.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);
/// The same for a target of its own, which also waits while the initiator fills and checks its pool.
const IDLE_DEADLINE: Duration = Duration::from_secs(300);

/// A loop that moves one batch a call.
pub(crate) trait BatchLoop {
    /// Moves the batch; returns when all of it has arrived.
    fn batch(&mut self) -> Result<(), LimitError>;
}

/// What the initiator asks the target to do.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Request {
    /// The case, for a target that is a program of its own.
    Take { case: Case },
    /// The initiator's rails.
    Meet { rails: Vec<RailOffer> },
    /// Fill the pool: it is the source.
    Fill { seed: u64 },
    /// Poison the pool: it is the destination.
    Poison,
    /// Take part in this many batches.
    Run { batches: usize },
    /// The batches are over: stop serving the fabric.
    Stop,
    /// Check the pool.
    Check { seed: u64 },
}

/// What the target answers.
#[derive(Debug, Serialize, Deserialize)]
enum Reply {
    /// The pool is mapped here; the rails that lead to it, where the loop has any.
    Ready { address: usize, rails: Vec<RailOffer> },
    /// Done as asked.
    Done,
    /// The pool holds a wrong word.
    Wrong { slot: usize, offset: usize, found: u64, expected: u64 },
    /// It could not be done.
    Failed { said: String },
}

/// Measures one case with a target that is forked for it, verified in every repetition.
pub(crate) fn measure(case: &Case) -> Result<Row, LimitError> {
    let slots = Slots::of(case)?;
    let own = Backing::of(case.memory(), slots.in_pool * case.block_bytes)?;
    let targets = Backing::of(case.memory(), slots.in_pool * case.block_bytes)?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(LimitError::os("listening"))?;
    let (near, mut far) = Line::pair(DEADLINE)?;

    // SAFETY: this process has a single thread, so the child's copy of its memory is in no half-made state.
    let pid = unsafe { libc::fork() };
    if pid < 0 {
        return Err(LimitError::last_os("forking the target"));
    }
    if pid == 0 {
        drop((near, own));
        let served = prepare_target(case).and_then(|()| {
            let pool = Pool::map(targets.as_ref(), slots.in_pool, case.block_bytes)?;
            serve(case, &slots, &pool, Some(&listener), &mut far)
        });
        // Its end is the initiator's doing: dropping that end is how the target is told to leave.
        let failed = served.as_ref().err().filter(|error| !matches!(error, LimitError::Gone));
        if let Some(error) = failed {
            eprintln!("error: the target: {error}");
        }
        process::exit(i32::from(failed.is_some()));
    }
    drop(far);
    let mut target = Target { child: Some(pid), line: near };
    if case.pin {
        pin_to(0)?;
    }
    let pool = Pool::map(own.as_ref(), slots.in_pool, case.block_bytes)?;
    pool.poison();
    let (address, rails) = target.ready()?;
    match case.kind {
        Kind::Memcpy => {
            let peers = Pool::map(targets.as_ref(), slots.in_pool, case.block_bytes)?;
            let (source, destination) = if case.op == Op::Read { (&peers, &pool) } else { (&pool, &peers) };
            let copies = Memcpy { source, destination, slots: &slots, block_bytes: case.block_bytes };
            repetitions(case, &slots, &pool, &mut target, copies)
        }
        Kind::ProcessVm => {
            let remote = (pid, address);
            let copies =
                ProcessVm::new(case.op, &pool, &slots, case.block_bytes, remote, case.slices_per_call);
            repetitions(case, &slots, &pool, &mut target, copies)
        }
        Kind::Tcp => {
            let stream = listener.local_addr().and_then(TcpStream::connect);
            let stream = stream.map_err(LimitError::os("connecting to the target"))?;
            let part = if case.op == Op::Read { Part::AskThenTake } else { Part::SendThenTake };
            let end = tcp_end(case, stream, &pool, own_slots(case.op, &slots, true), part)?;
            repetitions(case, &slots, &pool, &mut target, end)
        }
        Kind::Fabric => over_fabric(case, &slots, &pool, &mut target, rails),
    }
}

/// Measures one case of the fabric with a target that waits at `place`.
pub(crate) fn initiate(case: &Case, place: &str) -> Result<Row, LimitError> {
    let slots = Slots::of(case)?;
    let mut target = Target { child: None, line: Line::call(place, DEADLINE)? };
    target.line.send(&Request::Take { case: case.clone() })?;
    let pool = Pool::map(None, slots.in_pool, case.block_bytes)?;
    pool.poison();
    let (_, rails) = target.ready()?;
    over_fabric(case, &slots, &pool, &mut target, rails)
}

/// Is the target of one case, for an initiator that comes to `place`. `library` is this side's.
pub(crate) fn be_target(place: &str, library: Option<std::path::PathBuf>) -> Result<(), LimitError> {
    let mut line = Line::answer(place, IDLE_DEADLINE)?;
    let case = match line.receive()? {
        Request::Take { case } => Case { library, ..case },
        other => return Err(LimitError::Peer { said: format!("{other:?} instead of a case") }),
    };
    let served = Slots::of(&case).and_then(|slots| {
        let pool = Pool::map(None, slots.in_pool, case.block_bytes)?;
        serve(&case, &slots, &pool, None, &mut line)
    });
    match served {
        Err(LimitError::Gone) => Ok(()),
        other => other,
    }
}

fn over_fabric(
    case: &Case,
    slots: &Slots,
    pool: &Pool,
    target: &mut Target,
    rails: Vec<RailOffer>,
) -> Result<Row, LimitError> {
    let mut own = Fabric::open(&case.fabric_options(), false, pool)?;
    own.meet(&rails)?;
    target.ask(&Request::Meet { rails: own.offers().to_vec() })?;
    let about = own.facts();
    let loop_ = fabric::Initiator::new(own, case, slots, pool);
    Ok(repetitions(case, slots, pool, target, loop_)?.over(about))
}

/// Warm-up, then fresh patterns and poison, then the timed requests, then the check of every byte.
fn repetitions(
    case: &Case,
    slots: &Slots,
    pool: &Pool,
    target: &mut Target,
    mut loop_: impl BatchLoop,
) -> Result<Row, LimitError> {
    let mut measured = Vec::with_capacity(case.repetitions);
    for seed in 1..=case.repetitions as u64 {
        target.run(case, case.warmup, &mut loop_)?;
        match case.op {
            Op::Read => {
                target.ask(&Request::Fill { seed })?;
                pool.poison();
            }
            Op::Write => {
                pool.fill(seed);
                target.ask(&Request::Poison)?;
            }
        }
        measured.push(target.run(case, case.iterations, &mut loop_)?);
        match case.op {
            Op::Read => pool.check(seed, &slots.destination, &slots.source)?,
            Op::Write => target.ask(&Request::Check { seed })?,
        }
    }
    Ok(Row::verified(case, &measured))
}

/// The slots of a process's own pool.
fn own_slots(op: Op, slots: &Slots, is_initiator: bool) -> &[usize] {
    if (op == Op::Read) == is_initiator { &slots.destination } else { &slots.source }
}

fn tcp_end<'a>(
    case: &Case,
    stream: TcpStream,
    pool: &'a Pool,
    slots: &'a [usize],
    part: Part,
) -> Result<Tcp<'a>, LimitError> {
    Tcp::settings(&stream)?;
    Ok(Tcp { stream, pool, slots, block_bytes: case.block_bytes, part, wait: case.wait })
}

/// The target as the initiator sees it. Dropping it ends the process.
struct Target {
    /// None of a program of its own.
    child: Option<libc::pid_t>,
    line: Line,
}

impl Target {
    /// Waits until its pool and rails are there.
    fn ready(&mut self) -> Result<(usize, Vec<RailOffer>), LimitError> {
        match self.line.receive()? {
            Reply::Ready { address, rails } => Ok((address, rails)),
            Reply::Failed { said } => Err(LimitError::Peer { said }),
            other => Err(LimitError::Peer { said: format!("{other:?}") }),
        }
    }

    fn ask(&mut self, request: &Request) -> Result<(), LimitError> {
        self.line.send(request)?;
        self.done()
    }

    fn done(&mut self) -> Result<(), LimitError> {
        match self.line.receive()? {
            Reply::Done => Ok(()),
            Reply::Wrong { slot, offset, found, expected } => {
                Err(LimitError::WrongBytes { slot, offset, found, expected })
            }
            Reply::Failed { said } => Err(LimitError::Peer { said }),
            Reply::Ready { .. } => Err(LimitError::Peer { said: "an answer to no question".into() }),
        }
    }

    /// Drives `batches` requests, one after the other.
    fn run(
        &mut self,
        case: &Case,
        batches: usize,
        loop_: &mut impl BatchLoop,
    ) -> Result<RequestsUs, LimitError> {
        let both_sides = matches!(case.kind, Kind::Tcp | Kind::Fabric);
        if both_sides {
            self.line.send(&Request::Run { batches })?;
        }
        let mut requests_us = Vec::with_capacity(batches);
        for _ in 0..batches {
            let began = Instant::now();
            loop_.batch()?;
            requests_us.push(began.elapsed().as_secs_f64() * 1e6);
        }
        if case.kind == Kind::Fabric {
            self.line.send(&Request::Stop)?;
        }
        if both_sides {
            self.done()?;
        }
        Ok(requests_us)
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        let Some(pid) = self.child else { return };
        // SAFETY: `pid` is our own child, not yet waited for, so it names no other process.
        unsafe { libc::kill(pid, libc::SIGKILL) };
        // SAFETY: as above; a null status is allowed.
        unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) };
    }
}

/// Ties the target's life to the initiator's, and pins it where asked.
fn prepare_target(case: &Case) -> Result<(), LimitError> {
    // SAFETY: PR_SET_PDEATHSIG takes one integer and touches no memory.
    if unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) } != 0 {
        return Err(LimitError::last_os("tying the target's life to ours"));
    }
    if case.pin { pin_to(1) } else { Ok(()) }
}

/// The target's other end of a loop that takes both sides.
enum End<'a> {
    Passive,
    Tcp(Tcp<'a>),
    Fabric(fabric::Target<'a>),
}

/// The target's life: requests until the initiator closes its end. `listener` is for the tcp loop's connection.
fn serve(
    case: &Case,
    slots: &Slots,
    pool: &Pool,
    listener: Option<&TcpListener>,
    line: &mut Line,
) -> Result<(), LimitError> {
    pool.poison();
    let fabric = match case.kind {
        Kind::Fabric => match Fabric::open(&case.fabric_options(), true, pool) {
            Ok(fabric) => Some(fabric),
            Err(error) => {
                line.send(&Reply::Failed { said: error.to_string() })?;
                return Err(error);
            }
        },
        _ => None,
    };
    let rails = fabric.as_ref().map(|fabric| fabric.offers().to_vec()).unwrap_or_default();
    line.send(&Reply::Ready { address: pool.address(), rails })?;
    let mut end = match (case.kind, listener, fabric) {
        (Kind::Tcp, Some(listener), _) => {
            let (stream, _) = listener.accept().map_err(LimitError::os("accepting the initiator"))?;
            let part = if case.op == Op::Read { Part::TakeThenSend } else { Part::TakeThenConfirm };
            End::Tcp(tcp_end(case, stream, pool, own_slots(case.op, slots, false), part)?)
        }
        (_, _, Some(fabric)) => End::Fabric(fabric::Target::new(fabric, case)),
        _ => End::Passive,
    };
    loop {
        let outcome = match line.receive()? {
            Request::Fill { seed } => {
                pool.fill(seed);
                Ok(())
            }
            Request::Poison => {
                pool.poison();
                Ok(())
            }
            Request::Meet { rails } => match &mut end {
                End::Fabric(fabric) => fabric.meet(&rails),
                End::Passive | End::Tcp(_) => Ok(()),
            },
            Request::Run { batches } => match &mut end {
                End::Passive => Ok(()),
                End::Tcp(tcp) => (0..batches).try_for_each(|_| tcp.batch()),
                End::Fabric(fabric) => fabric.serve(line),
            },
            Request::Check { seed } => pool.check(seed, &slots.destination, &slots.source),
            Request::Take { .. } | Request::Stop => continue,
        };
        line.send(&match outcome {
            Ok(()) => Reply::Done,
            Err(LimitError::WrongBytes { slot, offset, found, expected }) => {
                Reply::Wrong { slot, offset, found, expected }
            }
            Err(error) => Reply::Failed { said: error.to_string() },
        })?;
    }
}

fn pin_to(processor: usize) -> Result<(), LimitError> {
    // SAFETY: a processor set is a bit array; all zeroes is the empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: `processor` is 0 or 1, inside the fixed-size set.
    unsafe { libc::CPU_SET(processor, &mut set) };
    // SAFETY: the set is initialised and its size is passed with it; 0 is the calling thread.
    if unsafe { libc::sched_setaffinity(0, size_of_val(&set), &set) } != 0 {
        return Err(LimitError::last_os("pinning to a processor"));
    }
    Ok(())
}
