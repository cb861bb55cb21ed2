//! Joining: a seat is taken, leftovers of earlier runs are moved away, and all members agree on who they are.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::config::{Config, ConfigError};
use crate::driver::{Driver, Started};
use crate::error::ServiceError;
use crate::group::Group;
use crate::key::Key;
use crate::limits::{CHALLENGE, LEAVE};
use crate::member::{Incarnation, Member, Record, random_u64, ranks};
use crate::name::RunId;
use crate::view::{Seat, Shared, View};

/// Why this process is no member of the group.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JoinError {
    /// The configuration cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The service cannot be used.
    #[error(transparent)]
    Service(#[from] ServiceError),
    /// Some have not come in time.
    #[error("{}", missing_text(.missing, .undecided, .there, *.world_size, .run_id, *.waited))]
    Missing {
        /// Ranks that nobody holds.
        missing: Vec<u32>,
        /// Members that are there and have not agreed to the group: leftovers of a run that crashed, or just come.
        undecided: Vec<Member>,
        /// Members that are there.
        there: Vec<Member>,
        /// Members wanted.
        world_size: u32,
        /// The run.
        run_id: RunId,
        /// Time spent.
        waited: Duration,
    },
    /// A living process has the rank that this one was given.
    #[error("two processes claim rank {} of run {run_id}: {} pid {} has it and is alive, {} pid {} wants it", .holder.rank, .holder.host, .holder.pid, .claimant.host, .claimant.pid)]
    RankTaken {
        /// Who has it.
        holder: Member,
        /// This process.
        claimant: Member,
        /// The run.
        run_id: RunId,
    },
    /// All seats are held by living processes.
    #[error("run {run_id} has all its {} members already: {}", .holders.len(), list(.holders))]
    Full {
        /// Who has them.
        holders: Vec<Member>,
        /// The run.
        run_id: RunId,
    },
    /// Another living member was told of a group of another size.
    #[error("{other} of run {run_id} expects {theirs} members, this one expects {ours}")]
    WorldSizeDiffers {
        /// The other member.
        other: Member,
        /// What it expects.
        theirs: u32,
        /// What this one expects.
        ours: u32,
        /// The run.
        run_id: RunId,
    },
    /// A seat's key holds what this version of the program did not write.
    #[error("key {key} of run {run_id} holds something else than a member of this version")]
    Foreign {
        /// The key, below the run's prefix.
        key: String,
        /// The run.
        run_id: RunId,
    },
    /// Another process took this one's seat, because this one did not answer in time.
    #[error("{by} took the seat of this process, which had not answered it within {CHALLENGE:?}")]
    SeatLost {
        /// Who has it now.
        by: Member,
    },
}

impl JoinError {
    /// Whether the same call may succeed later.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Service(error) => error.is_retryable(),
            Self::Missing { .. } | Self::SeatLost { .. } => true,
            _ => false,
        }
    }

    /// What to do about it.
    #[must_use]
    pub fn hints(&self) -> Vec<String> {
        match self {
            Self::Service(error) => error.hints(),
            Self::Missing { .. } => vec![
                "check that the missing ranks were started, with the same run id and the same service".into(),
            ],
            Self::RankTaken { .. } | Self::Full { .. } => {
                vec!["give each process its own rank, or this run an id of its own".into()]
            }
            Self::WorldSizeDiffers { .. } => vec!["give all members the same number of members".into()],
            Self::Foreign { .. } => {
                vec!["use another run id, or the same version of the program everywhere".into()]
            }
            _ => Vec::new(),
        }
    }
}

fn list(members: &[Member]) -> String {
    const SHOWN: usize = 16;
    let mut text = members.iter().take(SHOWN).map(ToString::to_string).collect::<Vec<_>>().join(", ");
    if members.len() > SHOWN {
        text.push_str(&format!(" and {} more", members.len() - SHOWN));
    }
    text
}

fn missing_text(
    missing: &[u32],
    undecided: &[Member],
    there: &[Member],
    world_size: u32,
    run_id: &RunId,
    waited: Duration,
) -> String {
    let mut text = if missing.is_empty() {
        format!("run {run_id} did not come together within {waited:.1?}")
    } else {
        let (noun, verb) = if missing.len() == 1 { ("rank", "has") } else { ("ranks", "have") };
        let ranks = ranks(missing.iter().copied());
        format!("{noun} {ranks} of {world_size} {verb} not joined run {run_id} within {waited:.1?}")
    };
    match there.len() {
        0 => text.push_str("; nobody is there"),
        1 => text.push_str(&format!("; 1 is there: {}", list(there))),
        n => text.push_str(&format!("; {n} are there: {}", list(there))),
    }
    if missing.is_empty() && !undecided.is_empty() {
        text.push_str(&format!("; not agreed to the group: {}", list(undecided)));
    }
    text
}

impl Group {
    /// Joins the group and waits until all members have; in whatever order they start.
    ///
    /// # Errors
    /// [`JoinError`]; after [`Config::deadline`] it says who is missing.
    pub fn join(config: &Config) -> Result<Self, JoinError> {
        config.check()?;
        let began = Instant::now();
        let until = began.checked_add(config.deadline).unwrap_or(began + Duration::from_secs(86_400));
        let me = Member {
            rank: config.rank.unwrap_or(0),
            host: crate::member::tame_host(&config.host),
            pid: std::process::id(),
            incarnation: Incarnation::new(),
        };
        let shared = Shared::new(me.incarnation, config.world_size);
        let (driver, started) = Driver::start(config, &me, &shared, until)?;
        let mut joining = Joining { config, me, shared, driver, started, began, until };
        match joining.claim().and_then(|()| joining.agree()) {
            Ok(members) => Ok(Self::new(
                joining.me.rank,
                members,
                joining.started,
                joining.shared,
                joining.driver,
                config.world_size,
                began.elapsed(),
            )),
            Err(error) => {
                // What was claimed is free at once; nothing better can be done where even that fails.
                let _ = joining.driver.close(None, LEAVE);
                Err(error)
            }
        }
    }
}

struct Joining<'a> {
    config: &'a Config,
    me: Member,
    shared: Arc<Shared>,
    driver: Driver,
    started: Started,
    began: Instant,
    until: Instant,
}

/// What became of one who was asked whether it is alive.
enum Sign {
    Alive,
    Silent,
    /// Its seat emptied meanwhile.
    Gone,
}

/// What there is to do while the others come.
enum Step {
    Agree(u64),
    Suspect(Seat),
    Stop(JoinError),
    Done(Arc<[Member]>),
}

impl Joining<'_> {
    fn claim(&mut self) -> Result<(), JoinError> {
        match self.config.rank {
            Some(rank) => self.claim_seat(rank),
            None => self.claim_any(),
        }
    }

    /// Takes the seat of a rank, after whoever has it and does not answer was moved away.
    fn claim_seat(&self, rank: u32) -> Result<(), JoinError> {
        loop {
            if self.create(rank)? {
                return Ok(());
            }
            // The service may be ahead of what this member has seen.
            let caught_up = Instant::now() + CHALLENGE;
            let seat = self.shared.wait(caught_up.min(self.until), |view| {
                let seat = view.seats.get(&rank).cloned();
                (seat.is_some() || view.foreign.contains(&rank) || view.failed.is_some()).then_some(seat)
            });
            let Ok(seat) = seat else {
                self.check_time()?;
                continue;
            };
            self.check_service()?;
            let Some(seat) = seat else { return Err(self.foreign(rank)) };
            match self.challenge(&[&seat])?.first() {
                Some(Sign::Alive) => {
                    return Err(JoinError::RankTaken {
                        holder: seat.record.member,
                        claimant: self.me.clone(),
                        run_id: self.started.run_id.clone(),
                    });
                }
                Some(Sign::Silent) => self.evict(&seat)?,
                Some(Sign::Gone) | None => {}
            }
            self.check_time()?;
        }
    }

    /// Takes the lowest free seat; where several want one at once, the next try is at random.
    fn claim_any(&mut self) -> Result<(), JoinError> {
        let mut lost = BTreeSet::new();
        loop {
            self.check_service()?;
            let free: Vec<u32> = self.shared.look(|view| {
                let held = |rank: &u32| view.seats.contains_key(rank) || view.foreign.contains(rank);
                (0..self.config.world_size).filter(|rank| !held(rank) && !lost.contains(rank)).collect()
            });
            let at = if lost.is_empty() { 0 } else { random_u64() as usize % free.len().max(1) };
            if let Some(&rank) = free.get(at) {
                self.me.rank = rank;
                if self.create(rank)? {
                    return Ok(());
                }
                lost.insert(rank);
                continue;
            }
            // All are held; those that were lost to others must have been seen by now.
            lost.clear();
            let caught_up = (Instant::now() + CHALLENGE).min(self.until);
            let full = |view: &View| {
                (0..self.config.world_size)
                    .all(|rank| view.seats.contains_key(&rank) || view.foreign.contains(&rank))
                    .then(|| view.seats.values().cloned().collect::<Vec<_>>())
            };
            let Ok(seats) = self.shared.wait(caught_up, full) else {
                self.check_time()?;
                continue;
            };
            let signs = self.challenge(&seats.iter().collect::<Vec<_>>())?;
            let mut freed = false;
            for (seat, sign) in seats.iter().zip(&signs) {
                match sign {
                    Sign::Alive => {}
                    Sign::Silent => {
                        self.evict(seat)?;
                        freed = true;
                    }
                    Sign::Gone => freed = true,
                }
            }
            if !freed {
                let holders = seats.into_iter().map(|seat| seat.record.member).collect();
                return Err(JoinError::Full { holders, run_id: self.started.run_id.clone() });
            }
            self.check_time()?;
        }
    }

    /// Waits until all seats are held by members that agree on who they are.
    fn agree(&self) -> Result<Arc<[Member]>, JoinError> {
        let mut agreed = None;
        let mut seen = false;
        let mut asked = BTreeSet::new();
        loop {
            let step = self.shared.wait(self.until, |view| self.next_step(view, agreed, &mut seen, &asked));
            match step {
                Ok(Step::Done(members)) => return Ok(members),
                Ok(Step::Stop(error)) => return Err(error),
                Ok(Step::Agree(digest)) => {
                    let value = format!("{digest:016x}").into_bytes().into();
                    self.driver.put(
                        Key::Ready(self.me.incarnation).to_string(),
                        value,
                        None,
                        self.grace(),
                    )?;
                    agreed = Some(digest);
                }
                Ok(Step::Suspect(seat)) => {
                    let member = seat.record.member.clone();
                    match self.challenge(&[&seat])?.first() {
                        // Who just left, or gave up, is on its way out.
                        Some(Sign::Alive) if seat.record.parting.is_none() => {
                            return Err(JoinError::WorldSizeDiffers {
                                other: member,
                                theirs: seat.record.world_size,
                                ours: self.config.world_size,
                                run_id: self.started.run_id.clone(),
                            });
                        }
                        Some(Sign::Silent) => self.evict(&seat)?,
                        _ => {}
                    }
                    asked.insert(member.incarnation);
                }
                Err(view) => return Err(self.missing(&view)),
            }
        }
    }

    fn next_step(
        &self,
        view: &View,
        agreed: Option<u64>,
        seen: &mut bool,
        asked: &BTreeSet<Incarnation>,
    ) -> Option<Step> {
        if let Some(error) = &view.failed {
            return Some(Step::Stop(error.clone().into()));
        }
        if let Some(members) = &view.sealed {
            return Some(Step::Done(members.clone()));
        }
        match view.seats.get(&self.me.rank).map(|seat| &seat.record.member) {
            Some(holder) if holder.incarnation == self.me.incarnation => *seen = true,
            Some(holder) if *seen => return Some(Step::Stop(JoinError::SeatLost { by: holder.clone() })),
            _ => {}
        }
        // Whoever comes later finds out and goes, so that those who are right are not told that they are wrong.
        let mine = view.seats.get(&self.me.rank).filter(|_| *seen).map_or(0, |seat| seat.arrival);
        let other_size = |seat: &&Seat| {
            seat.record.world_size != self.config.world_size
                && seat.arrival < mine
                && !asked.contains(&seat.record.member.incarnation)
        };
        if let Some(seat) = view.seats.values().find(other_size) {
            return Some(Step::Suspect(seat.clone()));
        }
        match view.candidate() {
            Some(digest) if *seen && agreed != Some(digest) => Some(Step::Agree(digest)),
            _ => None,
        }
    }

    fn create(&self, rank: u32) -> Result<bool, JoinError> {
        let member = Member { rank, ..self.me.clone() };
        let record = Record { member, world_size: self.config.world_size, parting: None };
        Ok(self.driver.create(Key::Member(rank).to_string(), record.encode().into(), self.grace())?)
    }

    /// Asks holders of seats whether they are alive, all at the same time.
    fn challenge(&self, seats: &[&Seat]) -> Result<Vec<Sign>, JoinError> {
        for seat in seats {
            let holder = seat.record.member.incarnation;
            let key = Key::Challenge { holder, from: self.me.incarnation }.to_string();
            self.driver.put(key, Arc::default(), None, self.grace())?;
        }
        let sign = |view: &View, seat: &Seat| {
            let Member { rank, incarnation, .. } = seat.record.member;
            if view.answered(incarnation) {
                Sign::Alive
            } else if view.seats.get(&rank).is_some_and(|now| now.record.member.incarnation == incarnation) {
                Sign::Silent
            } else {
                Sign::Gone
            }
        };
        let signs = |view: &View| seats.iter().map(|seat| sign(view, seat)).collect::<Vec<_>>();
        let known = self.shared.wait(Instant::now() + CHALLENGE, |view| {
            let signs = signs(view);
            let decided = signs.iter().all(|sign| !matches!(sign, Sign::Silent));
            (decided || view.failed.is_some()).then_some(signs)
        });
        let known = known.unwrap_or_else(|view| signs(&view));
        // Silence means nothing where nothing could have been heard.
        self.check_service()?;
        Ok(known)
    }

    fn evict(&self, seat: &Seat) -> Result<(), JoinError> {
        let member = &seat.record.member;
        tracing::info!("run {}: {member} does not answer; its seat is taken from it", self.started.run_id);
        Ok(self.driver.evict(Key::Member(member.rank).to_string(), seat.owner, self.grace())?)
    }

    /// Requests may take a moment longer than the group has to come together, so that its end is said as what it is.
    fn grace(&self) -> Instant {
        self.until + CHALLENGE
    }

    fn check_service(&self) -> Result<(), JoinError> {
        self.shared.look(|view| view.failed.clone()).map_or(Ok(()), |error| Err(error.into()))
    }

    fn check_time(&self) -> Result<(), JoinError> {
        self.check_service()?;
        if Instant::now() < self.until { Ok(()) } else { Err(self.shared.look(|view| self.missing(view))) }
    }

    fn foreign(&self, rank: u32) -> JoinError {
        JoinError::Foreign { key: Key::Member(rank).to_string(), run_id: self.started.run_id.clone() }
    }

    fn missing(&self, view: &View) -> JoinError {
        let world = 0..self.config.world_size;
        if let Some(&rank) = view.foreign.first() {
            return self.foreign(rank);
        }
        let there: Vec<Member> =
            view.seats.range(world.clone()).map(|(_, seat)| seat.record.member.clone()).collect();
        JoinError::Missing {
            missing: world.filter(|rank| !view.seats.contains_key(rank)).collect(),
            undecided: there.iter().filter(|member| !view.agrees(member.rank)).cloned().collect(),
            there,
            world_size: self.config.world_size,
            run_id: self.started.run_id.clone(),
            waited: self.began.elapsed(),
        }
    }
}
