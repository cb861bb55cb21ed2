//! The two processes of a case: an initiator that drives and times the loop, and a target that is forked from
//! it, owns the other pool, fills or poisons it on request and checks what reached it.
//!
//! They speak in JSON lines over a socket pair, outside the timed part. The target sleeps between requests, so
//! a one-sided loop has its core for itself. The initiator waits for nothing without a
//! deadline; the target ends with it.

use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::process;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::error::LimitError;
use crate::memcpy::Memcpy;
use crate::memory::{Backing, Pool};
use crate::process_vm::ProcessVm;
use crate::report::{RequestsUs, Row};
use crate::tcp::{Part, Tcp};
use crate::workload::{Case, Kind, Op, Slots};

/// The longest that either process waits for the other.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// A loop that moves one batch a call.
pub(crate) trait BatchLoop {
    /// Moves the batch; returns when all of it has arrived.
    fn batch(&mut self) -> Result<(), LimitError>;
}

/// What the initiator asks the target to do.
#[derive(Debug, Serialize, Deserialize)]
enum Request {
    /// Fill the pool: it is the source.
    Fill { seed: u64 },
    /// Poison the pool: it is the destination.
    Poison,
    /// Take part in this many batches.
    Run { batches: usize },
    /// Check the pool.
    Check { seed: u64 },
}

/// What the target answers.
#[derive(Debug, Serialize, Deserialize)]
enum Reply {
    /// The pool is mapped here.
    Ready { address: usize },
    /// Done as asked.
    Done,
    /// The pool holds a wrong word.
    Wrong { slot: usize, offset: usize, found: u64, expected: u64 },
    /// It could not be done.
    Failed { said: String },
}

/// Measures one case, verified in every repetition.
pub(crate) fn measure(case: &Case) -> Result<Row, LimitError> {
    let slots = Slots::of(case)?;
    let own = Backing::of(case.memory(), slots.in_pool * case.block_bytes)?;
    let targets = Backing::of(case.memory(), slots.in_pool * case.block_bytes)?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(LimitError::os("listening"))?;
    let (near, far) = UnixStream::pair().map_err(LimitError::os("making a socket pair"))?;

    // SAFETY: this process has a single thread, so the child's copy of its memory is in no half-made state.
    let pid = unsafe { libc::fork() };
    if pid < 0 {
        return Err(LimitError::last_os("forking the target"));
    }
    if pid == 0 {
        drop((near, own));
        let served = prepare_target(case).and_then(|()| {
            let pool = Pool::map(targets.as_ref(), slots.in_pool, case.block_bytes)?;
            serve(case, &slots, &pool, &listener, &mut Line { reader: BufReader::new(far) })
        });
        if let Err(error) = &served {
            eprintln!("error: the target: {error}");
        }
        process::exit(i32::from(served.is_err()));
    }
    drop(far);
    // The target's own waits need no deadline: its life ends with ours.
    near.set_read_timeout(Some(DEADLINE)).map_err(LimitError::os("setting a deadline"))?;
    let mut target = Target { pid, line: Line { reader: BufReader::new(near) } };
    if case.pin {
        pin_to(0)?;
    }
    let pool = Pool::map(own.as_ref(), slots.in_pool, case.block_bytes)?;
    pool.poison();
    let address = match target.line.receive()? {
        Reply::Ready { address } => address,
        other => return Err(LimitError::Peer { said: format!("{other:?}") }),
    };
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
    }
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
    pid: libc::pid_t,
    line: Line,
}

impl Target {
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
        let both_sides = case.kind == Kind::Tcp;
        if both_sides {
            self.line.send(&Request::Run { batches })?;
        }
        let mut requests_us = Vec::with_capacity(batches);
        for _ in 0..batches {
            let began = Instant::now();
            loop_.batch()?;
            requests_us.push(began.elapsed().as_secs_f64() * 1e6);
        }
        if both_sides {
            self.done()?;
        }
        Ok(requests_us)
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        // SAFETY: `pid` is our own child, not yet waited for, so it names no other process.
        unsafe { libc::kill(self.pid, libc::SIGKILL) };
        // SAFETY: as above; a null status is allowed.
        unsafe { libc::waitpid(self.pid, std::ptr::null_mut(), 0) };
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

/// The target's life: requests until the initiator closes its end.
fn serve(
    case: &Case,
    slots: &Slots,
    pool: &Pool,
    listener: &TcpListener,
    line: &mut Line,
) -> Result<(), LimitError> {
    pool.poison();
    line.send(&Reply::Ready { address: pool.address() })?;
    let mut connection = match case.kind {
        Kind::Tcp => {
            let (stream, _) = listener.accept().map_err(LimitError::os("accepting the initiator"))?;
            let part = if case.op == Op::Read { Part::TakeThenSend } else { Part::TakeThenConfirm };
            Some(tcp_end(case, stream, pool, own_slots(case.op, slots, false), part)?)
        }
        Kind::Memcpy | Kind::ProcessVm => None,
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
            Request::Run { batches } => {
                connection.as_mut().map_or(Ok(()), |end| (0..batches).try_for_each(|_| end.batch()))
            }
            Request::Check { seed } => pool.check(seed, &slots.destination, &slots.source),
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

/// One process's end of the socket pair.
struct Line {
    reader: BufReader<UnixStream>,
}

impl Line {
    fn send(&mut self, message: &impl Serialize) -> Result<(), LimitError> {
        let doing = "speaking to the other process";
        let mut text = serde_json::to_vec(message).map_err(|error| LimitError::os(doing)(error.into()))?;
        text.push(b'\n');
        self.reader.get_mut().write_all(&text).map_err(LimitError::os(doing))
    }

    fn receive<T: for<'de> Deserialize<'de>>(&mut self) -> Result<T, LimitError> {
        let mut text = String::new();
        self.reader.read_line(&mut text).map_err(LimitError::os("waiting for the other process"))?;
        serde_json::from_str(&text).map_err(|_| LimitError::Peer { said: format!("{text:?}, not an answer") })
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
