//! Two agents that know each other, and what they say to each other beside the transfers, by kvrail's own messages.

use std::time::{Duration, Instant};

use kvrail::{Agent, Memory, Peer, PeerEvent, PeerState, Plan, Progress, Region};
use serde::{Deserialize, Serialize};

use crate::DriveError;
use crate::pool::{Layout, Side};

/// Longest wait for the other side.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);
/// How long a target waits for its initiator's next word.
const IDLE_DEADLINE: Duration = Duration::from_secs(300);
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Direction, seen from the initiator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Op {
    /// From the target to the initiator
    Read,
    /// From the initiator to the target
    Write,
}

#[derive(Debug, clap::Args)]
pub(crate) struct TargetArgs {
    /// Where the initiator finds this side
    #[arg(long, value_name = "HOST:PORT")]
    meet: String,
    #[command(flatten)]
    shape: Shape,
}

/// What both sides must be told alike.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct Shape {
    /// Bytes of one block
    #[arg(long, default_value_t = 32 << 10, value_parser = clap::value_parser!(u32).range(1..=1 << 30))]
    block: u32,
    /// Blocks of one transfer
    #[arg(long, default_value_t = 12_800, value_parser = clap::value_parser!(u32).range(1..=1 << 22))]
    blocks: u32,
}

impl Shape {
    pub(crate) fn layout(self) -> Layout {
        Layout { block_bytes: self.block as usize, blocks: self.blocks as usize }
    }
}

/// What the initiator says.
#[derive(Debug, Serialize, Deserialize)]
enum Say {
    Fill { seed: u64 },
    Poison,
    Check { seed: u64 },
    Leave,
}

fn region(agent: &Agent, layout: Layout) -> Result<Region, DriveError> {
    let memory = Memory::private(layout.region_bytes()).map_err(DriveError::in_doing("allocating"))?;
    agent.register(memory).map_err(DriveError::in_doing("registering"))
}

/// The target's life.
pub(crate) fn be_target(args: &TargetArgs) -> Result<(), DriveError> {
    let layout = args.shape.layout();
    let agent = Agent::builder("target").progress(Progress::Thread).build();
    let agent = agent.map_err(DriveError::in_doing("creating an agent"))?;
    let region = region(&agent, layout)?;
    let server =
        agent.serve(args.meet.as_str()).map_err(DriveError::in_doing("waiting for the initiator"))?;
    let peer = server.accept(IDLE_DEADLINE).map_err(DriveError::in_doing("waiting for the initiator"))?;
    loop {
        let said = agent.wait_notification(IDLE_DEADLINE).map_err(DriveError::in_doing("listening"))?;
        let Ok(say) = serde_json::from_slice(&said.message) else { continue };
        let done = match say {
            Say::Fill { seed } => layout.fill(&region, seed),
            Say::Poison => layout.poison(&region),
            Say::Check { seed } => layout.check(&region, Side::Target, seed),
            Say::Leave => break,
        };
        let answer: Result<(), String> = done.map_err(|error| error.to_string());
        let answer = serde_json::to_vec(&answer).map_err(DriveError::in_doing("answering"))?;
        agent.send(&peer, answer).map_err(DriveError::in_doing("answering"))?;
    }
    agent.close().map_err(DriveError::in_doing("closing"))
}

/// The initiator's side.
pub(crate) struct Session {
    pub(crate) agent: Agent,
    pub(crate) plan: Plan,
    op: Op,
    layout: Layout,
    region: Region,
    peer: Peer,
    events: Vec<(Instant, PeerEvent)>,
}

impl Session {
    /// Creates an agent whose caller makes its progress, meets the target at `place`, prepares the transfer.
    pub(crate) fn open(place: &str, op: Op, layout: Layout) -> Result<Self, DriveError> {
        let agent = Agent::builder("initiator").progress(Progress::Inline).timeout(DEADLINE).build();
        let agent = agent.map_err(DriveError::in_doing("creating an agent"))?;
        let own = region(&agent, layout)?;
        let peer = agent.connect_to(place, DEADLINE).map_err(DriveError::in_doing("meeting the target"))?;
        let remote = peer.regions().into_iter().next();
        let remote = remote.ok_or_else(|| DriveError::Other("the target offers no memory".into()))?;
        let (here, there) = (layout.own(Side::Initiator, &own)?, layout.remote(Side::Target, &remote)?);
        let plan = agent.prepare(&peer, &here, &there).map_err(DriveError::in_doing("preparing"))?;
        let mut session = Self { agent, plan, op, layout, region: own, peer, events: Vec::new() };
        session.until("the target to be ready", |session| session.peer.state() == PeerState::Ready)?;
        Ok(session)
    }

    /// The transport that was chosen.
    pub(crate) fn transport(&self) -> &'static str {
        self.peer.transport()
    }

    /// Progress, and the events that came with it, with the time at which they were seen.
    pub(crate) fn turn(&mut self) {
        self.agent.progress();
        while let Some(event) = self.agent.poll_event() {
            self.events.push((Instant::now(), event));
        }
    }

    /// The events since the last call.
    pub(crate) fn take_events(&mut self) -> Vec<(Instant, PeerEvent)> {
        std::mem::take(&mut self.events)
    }

    /// Makes progress until something is so.
    pub(crate) fn until(
        &mut self,
        what: &'static str,
        mut is: impl FnMut(&mut Self) -> bool,
    ) -> Result<(), DriveError> {
        let deadline = Instant::now() + DEADLINE;
        while !is(self) {
            if Instant::now() > deadline {
                return Err(DriveError::Other(format!("waited {} s for {what}", DEADLINE.as_secs())));
            }
            self.turn();
        }
        Ok(())
    }

    /// Fresh bytes at the source, poison at the destination.
    pub(crate) fn prepare(&mut self, seed: u64) -> Result<(), DriveError> {
        match self.op {
            Op::Read => {
                self.layout.poison(&self.region)?;
                self.ask(&Say::Fill { seed })
            }
            Op::Write => {
                self.layout.fill(&self.region, seed)?;
                self.ask(&Say::Poison)
            }
        }
    }

    /// Every byte of the destination.
    pub(crate) fn check(&mut self, seed: u64) -> Result<(), DriveError> {
        match self.op {
            Op::Read => self.layout.check(&self.region, Side::Initiator, seed),
            Op::Write => self.ask(&Say::Check { seed }),
        }
    }

    /// The transfer, ready to be posted.
    pub(crate) fn post(&self) -> Result<kvrail::Transfer, DriveError> {
        let post = match self.op {
            Op::Read => self.plan.read(),
            Op::Write => self.plan.write(),
        };
        post.post().map_err(DriveError::in_doing("posting"))
    }

    fn ask(&mut self, say: &Say) -> Result<(), DriveError> {
        let message = serde_json::to_vec(say).map_err(DriveError::in_doing("asking the target"))?;
        self.agent.send(&self.peer, message).map_err(DriveError::in_doing("asking the target"))?;
        let mut answer = None;
        self.until("the target's answer", |session| {
            answer = session.agent.poll_notification();
            answer.is_some()
        })?;
        let answer = answer.map(|answer| answer.message).unwrap_or_default();
        let answer: Result<(), String> =
            serde_json::from_slice(&answer).map_err(DriveError::in_doing("reading the target's answer"))?;
        answer.map_err(DriveError::WrongBytes)
    }

    /// Lets the target go.
    pub(crate) fn close(mut self) -> Result<(), DriveError> {
        let leave = serde_json::to_vec(&Say::Leave).map_err(DriveError::in_doing("leaving"))?;
        self.agent.send(&self.peer, leave).map_err(DriveError::in_doing("leaving"))?;
        // The word is on its way once progress was made; the target's end is not waited for.
        let until = Instant::now() + LOOK_EVERY;
        while Instant::now() < until {
            self.turn();
        }
        drop(self.plan);
        self.agent.close().map_err(DriveError::in_doing("closing"))
    }
}
