//! Transfers of this worker: posted, watched, cancelled, and seen to end once.

use std::time::{Duration, Instant};

use kvrail::engine_error::{PlanError, PostTransferError};
use kvrail::{Descriptors, Hints, Plan, PostError, PrepareError, Slice, Transfer};

use super::end::{End, Place, Role, Side};
use super::{Worker, message};
use crate::layout::Layout;
use crate::plant::Plant;
use crate::talk::{Class, Find, Outcome, Posting, Way, Word};

/// Every so many postings a defect bites.
const BITES: u64 = 4;
/// How long after the end a planted late write begins: the target has been poisoned again by then.
const STALE_AFTER: Duration = Duration::from_millis(40);

/// How much earlier than its bytes a planted notification is sent.
const EARLY_BY: Duration = Duration::from_millis(20);

/// A transfer in flight.
pub(super) struct Moving {
    transfer: Option<Transfer>,
    plan: Option<Plan>,
    posting: Posting,
    posted: Instant,
    cancel_at: Option<Instant>,
    /// A defect of this one.
    plant: Option<Plant>,
    ended: Option<Instant>,
}

/// Why nothing was posted.
struct Refusal(Class, String);

impl Worker {
    pub(super) fn post(&mut self, posting: Posting) {
        self.posted += 1;
        let id = posting.id;
        let bites = self.posted.is_multiple_of(BITES);
        let of_write = [
            Plant::ShortTail,
            Plant::RegionBase,
            Plant::FalseDone,
            Plant::EarlyNotification,
            Plant::DoubleNotification,
            Plant::NoNotification,
            Plant::StaleWrite,
        ];
        let plant = self
            .part
            .plant
            .filter(|plant| bites && (posting.way == Way::Write || !of_write.contains(plant)))
            .filter(|plant| {
                posting.notify
                    || !matches!(
                        plant,
                        Plant::EarlyNotification | Plant::DoubleNotification | Plant::NoNotification
                    )
            });
        if self.part.plant == Some(Plant::LeakMemory) {
            std::mem::forget(std::hint::black_box(vec![1u8; 4 << 20]));
        }
        let began = Instant::now();
        match self.start(&posting, plant) {
            Ok((transfer, plan)) => {
                let posted = Instant::now();
                let cancel_at = posting.cancel_us.map(|us| posted + Duration::from_micros(us));
                self.mouth.say(&Word::Posted { id, took_us: began.elapsed().as_micros() as u64 });
                let moving = Moving { transfer, plan, posting, posted, cancel_at, plant, ended: None };
                self.moving.insert(id, moving);
                self.watch();
            }
            Err(Refusal(class, text)) => self.mouth.say(&Word::Refused { id, class, text }),
        }
    }

    fn start(
        &mut self,
        posting: &Posting,
        plant: Option<Plant>,
    ) -> Result<(Option<Transfer>, Option<Plan>), Refusal> {
        let layout = posting.shape.layout();
        let region = self.regions[posting.local.region].as_ref();
        let region = region.ok_or_else(|| Refusal(Class::Other, "the local region is gone".into()))?;
        let role = if posting.way == Way::Write { Role::Source } else { Role::Target };
        let place = Place {
            region: posting.local.region,
            memory: region.memory().clone(),
            offset: posting.local.offset,
        };
        let end = End::prepare(self.part.seed, posting.id, role, Side::Initiator, &layout, place);
        self.ends.lock().insert(posting.id, end.map_err(|what| Refusal(Class::Other, what))?);
        let gone = || Refusal(Class::UnknownPeer, format!("{} is not known", posting.peer));
        let peer = self.agent.peer(&posting.peer).ok_or_else(gone)?;
        let regions = peer.regions();
        let remote = regions
            .iter()
            .find(|r| r.id.0 == posting.tenant.id && r.generation.0 == posting.tenant.generation);
        let stale = || Refusal(Class::StaleRegion, format!("{:?} is not known", posting.tenant));
        let remote = remote.ok_or_else(stale)?;
        let (ours, theirs) = slices(
            &layout,
            plant,
            |offset, len| region.slice(posting.local.offset + offset, len).map_err(other),
            |offset, len| {
                let base = if plant == Some(Plant::RegionBase) { 0 } else { posting.remote.offset + offset };
                remote.slice(base, len).map_err(other)
            },
        )?;
        if plant == Some(Plant::FalseDone) {
            return Ok((None, None));
        }
        let plan = self.agent.prepare(&peer, &ours, &theirs).map_err(|e| prepare_refused(&e))?;
        let say = |times| {
            for _ in 0..times {
                let _ = self.agent.send(&peer, message(b'N', posting.id));
            }
        };
        let mut post = match posting.way {
            Way::Write => plan.write(),
            Way::Read => plan.read(),
        };
        post = post.timeout(Duration::from_millis(posting.timeout_ms));
        match plant {
            Some(Plant::EarlyNotification) => {
                say(1);
                // It must win the race with the bytes, also on a busy machine.
                std::thread::sleep(EARLY_BY);
            }
            Some(Plant::NoNotification) => {}
            _ if posting.notify => post = post.notify(message(b'N', posting.id)),
            _ => {}
        }
        let transfer = post.post().map_err(|e| post_refused(&e))?;
        Ok((Some(transfer), Some(plan)))
    }

    /// Looks at everything in flight.
    pub(super) fn watch(&mut self) {
        let now = Instant::now();
        let mut over = Vec::new();
        let mut words = Vec::new();
        for (id, moving) in &mut self.moving {
            if moving.cancel_at.is_some_and(|at| at <= now) {
                moving.cancel_at = None;
                moving.transfer.iter().for_each(Transfer::cancel);
            }
            if let Some(ended) = moving.ended {
                // A defect: the same bytes once more.
                if now >= ended + STALE_AFTER {
                    let again = moving.plan.as_ref().map(|plan| plan.write().post());
                    if let Some(Ok(transfer)) = again {
                        let _ = transfer.wait_timeout(Duration::from_secs(5));
                    }
                    over.push(*id);
                }
                continue;
            }
            let result = match &moving.transfer {
                Some(transfer) => transfer.poll(),
                None => {
                    words.push(moving.end(Outcome::Done { ops: 0, retried: 0 }));
                    over.push(*id);
                    continue;
                }
            };
            let Some(result) = result else { continue };
            let mut outcome = match result {
                Ok(report) => Outcome::Done { ops: report.ops, retried: report.retried_ops },
                Err(error) => Outcome::Failed {
                    class: Class::of(&error),
                    text: error.to_string(),
                    hints: error.hints(),
                },
            };
            match moving.plant {
                Some(Plant::NeverEnds) => continue,
                Some(Plant::UnexplainedError) => {
                    outcome = Outcome::Failed { class: Class::Op, text: "planted".into(), hints: Vec::new() };
                }
                Some(Plant::EndedTwice) => words.push(moving.end(outcome.clone())),
                Some(Plant::DoubleNotification) => {
                    if let Some(peer) = self.agent.peer(&moving.posting.peer) {
                        let _ = self.agent.send(&peer, message(b'N', *id));
                    }
                }
                _ => {}
            }
            words.push(moving.end(outcome));
            moving.ended = Some(now);
            if moving.plant != Some(Plant::StaleWrite) {
                over.push(*id);
            }
        }
        over.iter().for_each(|id| _ = self.moving.remove(id));
        words.iter().for_each(|word| self.mouth.say(word));
    }
}

impl Moving {
    fn end(&self, outcome: Outcome) -> Word {
        Word::Ended { id: self.posting.id, outcome, took_us: self.posted.elapsed().as_micros() as u64 }
    }
}

impl Find {
    /// What must be at the target after an ending.
    #[must_use]
    pub fn after(outcome: &Outcome) -> Self {
        match outcome {
            Outcome::Done { .. } => Self::All,
            Outcome::Failed { .. } => Self::Some,
        }
    }
}

/// Both sides' descriptors.
fn slices(
    layout: &Layout,
    plant: Option<Plant>,
    ours: impl Fn(u64, u64) -> Result<Slice, Refusal>,
    theirs: impl Fn(u64, u64) -> Result<Slice, Refusal>,
) -> Result<(Descriptors, Descriptors), Refusal> {
    let last = layout.spans.len() - 1;
    let len = |i: usize, len: u64| {
        if plant == Some(Plant::ShortTail) && i == last && (len > 1 || last == 0) {
            len.max(2) - 1
        } else {
            len
        }
    };
    let spans = || layout.spans.iter().enumerate();
    let local = spans().map(|(i, s)| ours(s.local, len(i, s.len))).collect::<Result<Vec<_>, _>>()?;
    let remote = spans().map(|(i, s)| theirs(s.remote, len(i, s.len))).collect::<Result<Vec<_>, _>>()?;
    Ok((local.into_iter().collect(), remote.into_iter().collect()))
}

fn other(error: impl std::fmt::Display) -> Refusal {
    Refusal(Class::Other, error.to_string())
}

fn prepare_refused(error: &PrepareError) -> Refusal {
    let class = match error {
        PrepareError::Plan { error: PlanError::UnknownPeer(_), .. } => Class::UnknownPeer,
        PrepareError::Plan { error: PlanError::UnknownRegion { .. }, .. } => Class::StaleRegion,
        _ => Class::Other,
    };
    Refusal(class, error.to_string())
}

fn post_refused(error: &PostError) -> Refusal {
    let class = match error {
        PostError::Refused { error: PostTransferError::UnknownPeer(_), .. } => Class::UnknownPeer,
        PostError::Refused { error: PostTransferError::StaleRemoteRegion(_), .. } => Class::StaleRegion,
        _ => Class::Other,
    };
    Refusal(class, error.to_string())
}
