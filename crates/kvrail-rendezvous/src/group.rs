//! A group that has come together: what its members tell each other, and how they part.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::driver::{Driver, Started};
use crate::error::{Loss, ServiceError};
use crate::key::Key;
use crate::limits::{KEYS_PER_MEMBER_MAX, LEAVE, MEMBER_BYTES_MAX, REASON_BYTES_MAX, VALUE_BYTES_MAX};
use crate::member::{Incarnation, Member, Parting, Record, ranks, tame};
use crate::name::{NameError, RunId, check_name};
use crate::view::{Shared, View};

/// Why something could not be said to the group, or was not heard of it.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GroupError {
    /// A member was lost. From then on all waiting in the group ends so.
    #[error("{member} {how}; this member waited for {waiting} in run {run_id}")]
    MemberLost {
        /// Who.
        member: Member,
        /// How.
        how: Loss,
        /// What was awaited.
        waiting: String,
        /// The run.
        run_id: RunId,
    },
    /// A member has left in order, and cannot say what is awaited of it any more.
    #[error("{member} has left run {run_id}; this member waits for {waiting}")]
    MemberLeft {
        /// Who.
        member: Member,
        /// What was awaited.
        waiting: String,
        /// The run.
        run_id: RunId,
    },
    /// A member has not published a key in time.
    #[error("{member} has not published \"{key}\" in run {run_id} within {waited:.1?}; it is alive")]
    NotPublished {
        /// Who.
        member: Member,
        /// What.
        key: String,
        /// The run.
        run_id: RunId,
        /// Time spent.
        waited: Duration,
    },
    /// Members have not come to a barrier, gathering or broadcast in time.
    #[error("{}", not_arrived_text(.missing, .what, *.world_size, .run_id, *.waited))]
    NotArrived {
        /// Who.
        missing: Vec<Member>,
        /// Where to, `barrier "warm"`.
        what: String,
        /// Members of the group.
        world_size: u32,
        /// The run.
        run_id: RunId,
        /// Time spent.
        waited: Duration,
    },
    /// A key is published once in a member's life, so that nobody can see an old value of it.
    #[error("\"{key}\" is published already")]
    AlreadyPublished {
        /// The key.
        key: String,
    },
    /// No member has this rank.
    #[error("there is no rank {rank} in a group of {world_size}")]
    NoSuchRank {
        /// As it was given.
        rank: u32,
        /// Members of the group.
        world_size: u32,
    },
    /// Not a name.
    #[error(transparent)]
    Name(#[from] NameError),
    /// A value is too long.
    #[error("the value of \"{name}\" has {len} bytes; at most {VALUE_BYTES_MAX} are allowed")]
    ValueTooLong {
        /// Its name.
        name: String,
        /// Its bytes.
        len: usize,
    },
    /// This member has published as much as it may.
    #[error(
        "this member has published {keys} values of {bytes} bytes; at most {KEYS_PER_MEMBER_MAX} of {MEMBER_BYTES_MAX} bytes are allowed"
    )]
    TooMuch {
        /// Values, with the one that was refused.
        keys: usize,
        /// Their bytes.
        bytes: usize,
    },
    /// The service can no longer be used.
    #[error(transparent)]
    Service(#[from] ServiceError),
}

impl GroupError {
    /// The member that is to blame, if one is.
    #[must_use]
    pub fn member(&self) -> Option<&Member> {
        match self {
            Self::MemberLost { member, .. }
            | Self::MemberLeft { member, .. }
            | Self::NotPublished { member, .. } => Some(member),
            Self::NotArrived { missing, .. } => missing.first(),
            _ => None,
        }
    }

    /// Whether the same call may succeed later in the same group.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(
            self,
            Self::NotPublished { .. }
                | Self::NotArrived { .. }
                | Self::Service(ServiceError::Deadline { .. })
        )
    }
}

/// `rank 1 of 2 has not come to barrier "warm" of run X within 10.0s; it is alive: rank 1 (node-a pid 4711)`.
fn not_arrived_text(
    missing: &[Member],
    what: &str,
    world_size: u32,
    run_id: &RunId,
    waited: Duration,
) -> String {
    const SHOWN: usize = 16;
    let (noun, verb, alive) =
        if missing.len() == 1 { ("rank", "has", "it is") } else { ("ranks", "have", "they are") };
    let ranks = ranks(missing.iter().map(|member| member.rank));
    let names = missing.iter().take(SHOWN).map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let more = if missing.len() > SHOWN { ", …" } else { "" };
    format!(
        "{noun} {ranks} of {world_size} {verb} not come to {what} of run {run_id} within {waited:.1?}; {alive} alive: {names}{more}"
    )
}

/// A value that a member published.
pub type Value = Arc<[u8]>;

/// A group whose members have all come. Made by [`Group::join`].
///
/// Dropping it without [`Group::leave`] tells the others that this member gave up.
pub struct Group {
    rank: u32,
    world_size: u32,
    members: Arc<[Member]>,
    started: Started,
    shared: Arc<Shared>,
    driver: Driver,
    joined_in: Duration,
    own: Mutex<Own>,
    left: bool,
}

/// What this member has published.
#[derive(Default)]
struct Own {
    /// Names of values, and their bytes.
    values: HashMap<String, usize>,
    bytes: usize,
    /// Rounds that were gone through, by kind and name.
    rounds: BTreeMap<(Meeting, String), u64>,
}

/// What members come together for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Meeting {
    Barrier,
    Gather,
    Broadcast,
}

impl Meeting {
    const fn letter(self) -> char {
        match self {
            Self::Barrier => 'b',
            Self::Gather => 'g',
            Self::Broadcast => 'c',
        }
    }

    const fn noun(self) -> &'static str {
        match self {
            Self::Barrier => "barrier",
            Self::Gather => "gathering",
            Self::Broadcast => "broadcast",
        }
    }
}

impl Group {
    #[allow(clippy::too_many_arguments)]
    pub(crate) fn new(
        rank: u32,
        members: Arc<[Member]>,
        started: Started,
        shared: Arc<Shared>,
        driver: Driver,
        world_size: u32,
        joined_in: Duration,
    ) -> Self {
        let own = Mutex::default();
        Self { rank, world_size, members, started, shared, driver, joined_in, own, left: false }
    }

    /// This member's rank.
    #[must_use]
    pub fn rank(&self) -> u32 {
        self.rank
    }

    /// Members of the group.
    #[must_use]
    pub fn world_size(&self) -> u32 {
        self.world_size
    }

    /// The run.
    #[must_use]
    pub fn run_id(&self) -> &RunId {
        &self.started.run_id
    }

    /// All members, this one too, by rank.
    #[must_use]
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// What the group met over, for people: `etcd 3.5.9 at http://a:2379`.
    #[must_use]
    pub fn service(&self) -> &str {
        &self.started.service
    }

    /// Time from this member's start until all had come.
    #[must_use]
    pub fn joined_in(&self) -> Duration {
        self.joined_in
    }

    /// Whether all is well, without waiting.
    ///
    /// # Errors
    /// [`GroupError::MemberLost`], [`GroupError::Service`].
    pub fn check(&self) -> Result<(), GroupError> {
        self.shared.look(|view| self.trouble(view, "nothing")).map_or(Ok(()), Err)
    }

    /// Publishes a value for [`Group::await_value`] of the others, once per key. It can be read until the group ends, also
    /// when this member has left.
    ///
    /// # Errors
    /// [`GroupError`]; `deadline` is how long the service may take.
    pub fn publish(&self, key: &str, bytes: &[u8], deadline: Duration) -> Result<(), GroupError> {
        check_name(key)?;
        let name = format!("u/{key}");
        if self.own.lock().values.contains_key(&name) {
            return Err(GroupError::AlreadyPublished { key: key.into() });
        }
        self.put(name, bytes, None, after(deadline), &format!("the service to take \"{key}\""))
    }

    /// Waits for what `rank` publishes under `key`.
    ///
    /// # Errors
    /// [`GroupError`].
    pub fn await_value(&self, rank: u32, key: &str, deadline: Duration) -> Result<Value, GroupError> {
        check_name(key)?;
        let member = self
            .members
            .get(rank as usize)
            .ok_or(GroupError::NoSuchRank { rank, world_size: self.world_size })?;
        let (began, name) = (Instant::now(), format!("u/{key}"));
        let waiting = || format!("\"{key}\" of rank {rank}");
        let found = self.shared.wait(after(deadline), |view| {
            if let Some(value) = view.value(member.incarnation, &name) {
                return Some(Ok(value.clone()));
            }
            self.trouble(view, &waiting()).or_else(|| self.absence(view, member, &waiting())).map(Err)
        });
        found.unwrap_or_else(|_| {
            Err(GroupError::NotPublished {
                member: member.clone(),
                key: key.into(),
                run_id: self.run_id().clone(),
                waited: began.elapsed(),
            })
        })
    }

    /// Gives a value and takes those of all members, by rank. Each member calls it, as often as the others, under the
    /// same names; a call that ran out of time may be repeated, and what was given first counts.
    ///
    /// # Errors
    /// [`GroupError`].
    pub fn gather(&self, name: &str, bytes: &[u8], deadline: Duration) -> Result<Vec<Value>, GroupError> {
        self.meet(Meeting::Gather, name, bytes, deadline)
    }

    /// Takes the value that the member of rank `root` gives, which is the only one whose `bytes` count. All members
    /// call it; none goes on before all have.
    ///
    /// # Errors
    /// [`GroupError`].
    pub fn broadcast(
        &self,
        name: &str,
        root: u32,
        bytes: &[u8],
        deadline: Duration,
    ) -> Result<Value, GroupError> {
        let bytes = if root == self.rank { bytes } else { &[] };
        let no_such_rank = GroupError::NoSuchRank { rank: root, world_size: self.world_size };
        if root >= self.world_size {
            return Err(no_such_rank);
        }
        let mut values = self.meet(Meeting::Broadcast, name, bytes, deadline)?;
        if (root as usize) < values.len() { Ok(values.swap_remove(root as usize)) } else { Err(no_such_rank) }
    }

    /// Waits until all members are here, as often as they call it.
    ///
    /// # Errors
    /// [`GroupError`].
    pub fn barrier(&self, name: &str, deadline: Duration) -> Result<(), GroupError> {
        self.meet(Meeting::Barrier, name, &[], deadline).map(|_| ())
    }

    /// Leaves in order. Who hosts an embedded service waits for the others to leave as well, at most `linger`.
    ///
    /// # Errors
    /// [`ServiceError`], when the service could not be told; the lease tells the others then.
    pub fn leave(mut self, linger: Duration) -> Result<(), ServiceError> {
        self.part(Parting::Left, linger)
    }

    /// Leaves and tells the others why this member cannot go on; their waiting ends with it.
    ///
    /// # Errors
    /// As [`Group::leave`].
    pub fn give_up(mut self, reason: &str) -> Result<(), ServiceError> {
        self.part(Parting::GaveUp(tame(reason, REASON_BYTES_MAX)), LEAVE)
    }

    fn part(&mut self, parting: Parting, linger: Duration) -> Result<(), ServiceError> {
        self.left = true;
        let member = self.me().clone();
        let record = Record { member, world_size: self.world_size, parting: Some(parting) };
        self.driver.close(Some((Key::Member(self.rank).to_string(), record.encode().into())), linger)
    }

    fn me(&self) -> &Member {
        &self.members[self.rank as usize]
    }

    /// One round of a meeting: gives this member's value, waits for all, takes theirs.
    fn meet(
        &self,
        meeting: Meeting,
        name: &str,
        bytes: &[u8],
        deadline: Duration,
    ) -> Result<Vec<Value>, GroupError> {
        check_name(name)?;
        let (began, until) = (Instant::now(), after(deadline));
        let what = || format!("{} \"{name}\"", meeting.noun());
        let key = (meeting, name.to_string());
        let round = self.own.lock().rounds.get(&key).copied().unwrap_or(0);
        let of = |round: u64| format!("{}/{name}/{round}", meeting.letter());
        let mine = of(round);
        if !self.own.lock().values.contains_key(&mine) {
            // Who is in this round has been through the last one, so that all have read the one before.
            self.put(mine.clone(), bytes, round.checked_sub(2).map(of), until, &what())?;
        }
        let found = self.shared.wait(until, |view| {
            let values: Option<Vec<Value>> =
                self.members.iter().map(|m| view.value(m.incarnation, &mine).cloned()).collect();
            if let Some(values) = values {
                return Some(Ok(values));
            }
            let absent = |member: &Member| match view.value(member.incarnation, &mine) {
                Some(_) => None,
                None => self.absence(view, member, &what()),
            };
            self.trouble(view, &what()).or_else(|| self.members.iter().find_map(absent)).map(Err)
        });
        let values = found.unwrap_or_else(|view| {
            let here = |member: &&Member| view.value(member.incarnation, &mine).is_some();
            Err(GroupError::NotArrived {
                missing: self.members.iter().filter(|member| !here(member)).cloned().collect(),
                what: what(),
                world_size: self.world_size,
                run_id: self.run_id().clone(),
                waited: began.elapsed(),
            })
        })?;
        self.own.lock().rounds.insert(key, round + 1);
        Ok(values)
    }

    /// Writes a value of this member, within its limits, and deletes one that nobody needs any more.
    fn put(
        &self,
        name: String,
        bytes: &[u8],
        spent: Option<String>,
        until: Instant,
        waiting: &str,
    ) -> Result<(), GroupError> {
        if bytes.len() > VALUE_BYTES_MAX {
            return Err(GroupError::ValueTooLong { name, len: bytes.len() });
        }
        let owner = self.me().incarnation;
        {
            let mut own = self.own.lock();
            let freed = spent.as_ref().and_then(|spent| own.values.remove(spent));
            own.bytes -= freed.unwrap_or(0);
            let (keys, total) = (own.values.len() + 1, own.bytes + bytes.len());
            if keys > KEYS_PER_MEMBER_MAX || total > MEMBER_BYTES_MAX {
                return Err(GroupError::TooMuch { keys, bytes: total });
            }
            own.values.insert(name.clone(), bytes.len());
            own.bytes = total;
        }
        if let Some(trouble) = self.shared.look(|view| self.trouble(view, waiting)) {
            return Err(trouble);
        }
        let key = Key::Value { owner, name: &name }.to_string();
        let spent = spent.map(|name| Key::Value { owner, name: &name }.to_string());
        self.driver.put(key, bytes.into(), spent, until).map_err(|error| {
            // What is only late will still be written; what was refused was not.
            if !matches!(error, ServiceError::Deadline { .. }) {
                let mut own = self.own.lock();
                let len = own.values.remove(&name).unwrap_or(0);
                own.bytes -= len;
            }
            // A broken connection is how a dead host of the service is seen.
            self.shared.look(|view| self.trouble(view, waiting)).unwrap_or(GroupError::Service(error))
        })
    }

    /// What makes all waiting in the group vain.
    fn trouble(&self, view: &View, waiting: &str) -> Option<GroupError> {
        let lost = |member: &Member, how: &Loss| GroupError::MemberLost {
            member: member.clone(),
            how: how.clone(),
            waiting: waiting.into(),
            run_id: self.run_id().clone(),
        };
        if let Some((rank, how)) = &view.lost {
            return Some(lost(self.members.get(*rank as usize)?, how));
        }
        let error = view.failed.as_ref()?;
        let hosting = |host: Incarnation| self.members.iter().find(|member| member.incarnation == host);
        match (error, self.started.host.and_then(hosting)) {
            (ServiceError::Lost { .. }, Some(host)) if host.rank != self.rank => {
                Some(lost(host, &Loss::Vanished))
            }
            _ => Some(GroupError::Service(error.clone())),
        }
    }

    /// What makes waiting for this member vain.
    fn absence(&self, view: &View, member: &Member, waiting: &str) -> Option<GroupError> {
        view.parting(member.rank)?;
        let (member, waiting, run_id) = (member.clone(), waiting.into(), self.run_id().clone());
        Some(GroupError::MemberLeft { member, waiting, run_id })
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if !self.left {
            let reason =
                if std::thread::panicking() { "it panicked" } else { "it ended without leaving the group" };
            // The others learn it from the lease where they cannot be told.
            let _ = self.part(Parting::GaveUp(reason.into()), LEAVE);
        }
    }
}

impl fmt::Debug for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Group")
            .field("run_id", &self.started.run_id)
            .field("rank", &self.rank)
            .field("world_size", &self.world_size)
            .field("service", &self.started.service)
            .finish_non_exhaustive()
    }
}

fn after(deadline: Duration) -> Instant {
    let now = Instant::now();
    now.checked_add(deadline).unwrap_or(now + Duration::from_secs(86_400))
}
