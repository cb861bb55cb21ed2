//! The target of a run of several engines: it keeps one process for each, and memory that they share.
//!
//! Each engine's initiator comes over a link of its own, when the conductor has announced it, and the link goes to a process that
//! was started for it. The keeper itself loads no engine, so that none can take it down; it ends with its conductor, and its
//! processes end with it.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use crate::case::Memory;
use crate::control::Message;
use crate::engines::Choice;
use crate::environment;
use crate::failure::Failure;
use crate::kid::{Kid, Voice};
use crate::link::Link;
use crate::meet;
use crate::pool::{self, Backing};
use crate::run::Run;
use crate::spawn;

/// A case of many engines may take so long; a conductor that dies or falls silent is noticed much earlier.
pub(crate) const CASE_MAX: Duration = Duration::from_secs(24 * 3600);
/// Engines of a run at most.
pub(crate) const ENGINES_MAX: usize = 16;

/// Keeps processes for a conductor to the end.
///
/// # Errors
/// What ended the run early.
pub(crate) fn keep(link: &Link, run: &Run, listener: &TcpListener) -> Result<(), Failure> {
    link.send(Message::Done)?;
    let mut kids: BTreeMap<Choice, Kid> = BTreeMap::new();
    let mut pool: Option<Backing> = None;
    let awaited = "the next engine or case";
    loop {
        match link.receive(awaited, CASE_MAX)? {
            Message::Expect { engine } => {
                if kids.len() >= ENGINES_MAX && !kids.contains_key(&engine) {
                    return Err(Failure::usage(format!("more than {ENGINES_MAX} engines at once")));
                }
                end(&mut kids, &engine);
                match expect(link, run, listener, &engine) {
                    Ok(kid) => {
                        kids.insert(engine, kid);
                        link.send(Message::Done)?;
                    }
                    Err(failure) => link.send(Message::Refused { failure })?,
                }
            }
            Message::Dismiss { engine } => {
                end(&mut kids, &engine);
                link.send(Message::Done)?;
            }
            Message::Lend { memory, bytes } => {
                // The old one first: both together may be more than the host has.
                drop(pool.take());
                match lend(memory, bytes) {
                    Ok(backing) => {
                        let loan = backing.as_ref().and_then(Backing::lend);
                        pool = backing;
                        link.send(Message::Lent { loan })?;
                    }
                    Err(failure) => link.send(Message::Refused { failure })?,
                }
            }
            Message::Poison => {
                if let Some(pool) = &pool {
                    pool.poison();
                }
                link.send(Message::Done)?;
            }
            Message::Bye => return Ok(()),
            other => return Err(link.unexpected(awaited, &other)),
        }
    }
}

fn end(kids: &mut BTreeMap<Choice, Kid>, engine: &Choice) {
    if let Some(mut kid) = kids.remove(engine) {
        kid.kill();
    }
}

/// Lets the conductor's next process in, and starts who serves it.
fn expect(link: &Link, run: &Run, listener: &TcpListener, engine: &Choice) -> Result<Kid, Failure> {
    // What is missing here is better said before anybody comes.
    crate::engines::surroundings(engine, &run.libraries).map_err(crate::endpoint::failure)?;
    link.send(Message::Done)?;
    let gone = || match link.pulse().gone() {
        true => Err(Failure::peer("the conductor is gone")),
        false => Ok(()),
    };
    let (socket, _) = meet::accept_while(listener, run.timeout, &gone)?;
    let say: crate::rails::Say = Arc::new(|line: &str| eprintln!("{line}"));
    spawn::servant(run, engine, socket, Voice { name: format!("{engine}, target"), say })
}

/// Memory for all engines of a case.
///
/// # Errors
/// When there is not so much.
pub(crate) fn lend(memory: Memory, bytes: u64) -> Result<Option<Backing>, Failure> {
    if memory == Memory::Private {
        return Ok(None);
    }
    environment::check_memory(bytes, "the memory that all engines share")?;
    let backing = pool::allocate(memory, bytes)?;
    backing.poison();
    Ok(Some(backing))
}
