//! Much of one thing: transfers by the ten thousand on one pair, agents by the hundred in one process. For limits that are met only so.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use kvrail::{Agent, Memory, Peer, Transfer};

use super::transport;
use super::{Worker, message};
use crate::talk::Word;

/// Transfers in flight of a burst.
const WINDOW: usize = 128;
/// Bytes of each.
const BYTES: u64 = 64;
/// What each is given.
const TIMEOUT: Duration = Duration::from_secs(20);

/// Notifications of bursts that came.
#[derive(Debug, Default)]
pub(super) struct Heard {
    /// How many.
    pub(super) count: AtomicU64,
    /// A bit for each number, so that one that comes twice is seen.
    seen: Mutex<Vec<u64>>,
    /// How many came twice.
    pub(super) twice: AtomicU64,
}

impl Heard {
    pub(super) fn hear(&self, number: u64) {
        // Numbers are of a peer that counts from zero; one far outside would be a stranger's.
        const MOST: u64 = 1 << 24;
        let (word, bit) = ((number.min(MOST) / 64) as usize, 1 << (number % 64));
        let Ok(mut seen) = self.seen.lock() else { return };
        if seen.len() <= word {
            seen.resize(word + 1, 0);
        }
        if seen[word] & bit != 0 {
            self.twice.fetch_add(1, Ordering::Relaxed);
        }
        seen[word] |= bit;
        self.count.fetch_add(1, Ordering::Relaxed);
    }
}

impl Worker {
    /// Posts that many small writes, each with a notification, some at a time.
    pub(super) fn burst(&self, peer: &str, count: u64) -> Word {
        let began = Instant::now();
        let done = self.agent.peer(peer).ok_or_else(|| format!("{peer} is not known"));
        let done = done.and_then(|peer| burst(&self.agent, &peer, self.regions[0].as_ref(), count));
        Word::BurstEnded { done, took_us: began.elapsed().as_micros() as u64 }
    }

    /// Makes that many agents, one after the other, each of which meets a peer, writes to it, and leaves.
    pub(super) fn visit(&self, metadata: &[u8], count: u64) -> Word {
        let began = Instant::now();
        let done = (0..count).try_fold(0, |done, number| self.call_on(metadata, number).map(|()| done + 1));
        Word::BurstEnded { done, took_us: began.elapsed().as_micros() as u64 }
    }

    fn call_on(&self, metadata: &[u8], number: u64) -> Result<(), String> {
        let wrong = |what: &str, error: &dyn std::fmt::Display| format!("visitor {number} {what}: {error}");
        let agent = Agent::builder(format!("visitor-{number}"))
            .transports([transport::transport(&self.part.rails)?])
            .ignore_environment()
            .build()
            .map_err(|e| wrong("is not built", &e))?;
        let memory = Memory::private(BYTES as usize).map_err(|e| wrong("has no memory", &e))?;
        let region = agent.register(memory).map_err(|e| wrong("cannot register", &e))?;
        let peer = agent.connect(metadata).map_err(|e| wrong("cannot connect", &e))?;
        let remote = peer.regions().first().copied().ok_or("the peer has no region")?;
        let ours = region.slice(0, BYTES).map_err(|e| wrong("has no slice", &e))?;
        let theirs = remote.slice(0, BYTES).map_err(|e| wrong("finds no slice", &e))?;
        let plan = agent.prepare(&peer, &ours, &theirs).map_err(|e| wrong("has no plan", &e))?;
        let post = plan.write().notify(message(b'B', number)).timeout(TIMEOUT).post();
        post.map_err(|e| wrong("cannot post", &e))?.wait().map_err(|e| wrong("is not served", &e))?;
        agent.close().map_err(|e| wrong("cannot leave", &e))
    }
}

fn burst(agent: &Agent, peer: &Peer, region: Option<&kvrail::Region>, count: u64) -> Result<u64, String> {
    let region = region.ok_or("the region is gone")?;
    let remote = peer.regions().first().copied().ok_or("the peer has no region")?;
    let said = |error: &dyn std::fmt::Display| error.to_string();
    let ours = region.slice(0, BYTES).map_err(|e| said(&e))?;
    let theirs = remote.slice(0, BYTES).map_err(|e| said(&e))?;
    let plan = agent.prepare(peer, &ours, &theirs).map_err(|e| said(&e))?;
    let mut moving: VecDeque<(u64, Transfer)> = VecDeque::new();
    let end = |(number, transfer): (u64, Transfer)| {
        transfer.wait().map(drop).map_err(|error| format!("transfer {number}: {error}"))
    };
    for number in 0..count {
        if moving.len() == WINDOW
            && let Some(oldest) = moving.pop_front()
        {
            end(oldest)?;
        }
        let post = plan.write().notify(message(b'B', number)).timeout(TIMEOUT).post();
        moving.push_back((number, post.map_err(|error| format!("transfer {number}: {error}"))?));
    }
    moving.into_iter().try_for_each(end)?;
    Ok(count)
}
