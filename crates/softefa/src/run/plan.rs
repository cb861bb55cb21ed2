//! What a fabric is to be and how it ended: the words between the program, the front and the keeper.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use softefa_fabric::{Fault, FaultKind, Model, NICS_PER_NODE_MAX, NODES_MAX, Scope};

use super::error::{Error, Told};
use super::spec::ModelFields;

/// What is to be run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Request {
    /// Name of the fabric; by default `softefa-<pid of the front>`.
    pub name: Option<String>,
    /// Emulated hosts.
    pub nodes: u32,
    /// NICs of each; by default the shape's.
    pub nics: Option<u32>,
    /// Name of the instance type that the hosts look like; `None` = generic.
    pub shape: Option<String>,
    /// Which NUMA nodes the hosts have.
    pub numa: Numa,
    /// Nominal rate of each NIC, bits per second; by default the shape's.
    pub rate_bps: Option<u64>,
    /// Seed of everything that is random.
    pub seed: u64,
    /// The network's timing.
    #[serde(with = "ModelFields")]
    pub model: Model,
    /// Faults that are active from the start.
    pub faults: Vec<FaultOrder>,
    /// The commands: none, one for all nodes, or one per node.
    pub commands: Vec<Vec<OsString>>,
    /// After how long commands that still run are ended.
    pub deadline: Option<Duration>,
    /// The commands of nodes 1 and up start once node 0 listens on this TCP port.
    pub after_listen: Option<u16>,
    /// Longest wait for that.
    pub listen_deadline: Duration,
    /// Whether the first command that fails ends the others.
    pub fail_fast: bool,
    /// Whether commands inherit stdin, stdout and stderr instead of being printed line by line.
    pub raw: bool,
    /// The libfabric that commands find, if any.
    pub libfabric: Option<Loading>,
}

/// Which NUMA nodes an emulated host has.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Numa {
    /// The shape's.
    #[default]
    Shape,
    /// At most as many as this host: the shape's are folded onto these. For programs that also ask libnuma, which
    /// cannot be pointed to another /sys.
    Host,
}

/// How the commands' loader is led to a libfabric.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Loading {
    /// The library.
    pub library: PathBuf,
    /// Directory to be searched for it; `None` where the loader finds it by itself.
    pub search: Option<PathBuf>,
    /// Directory of its provider libraries, where `efa` is one.
    pub providers: Option<PathBuf>,
}

impl Request {
    /// One node, no command, the defaults everywhere else.
    #[must_use]
    pub fn new(nodes: u32) -> Self {
        Self {
            name: None,
            nodes,
            nics: None,
            shape: None,
            numa: Numa::Shape,
            rate_bps: None,
            seed: 0,
            model: Model::default(),
            faults: Vec::new(),
            commands: Vec::new(),
            deadline: None,
            after_listen: None,
            listen_deadline: Duration::from_secs(60),
            fail_fast: false,
            raw: false,
            libfabric: None,
        }
    }

    /// What contradicts itself or a limit, before anything is made.
    pub(super) fn check(&self) -> Result<(), Error> {
        let refuse = |what: String| Err(Error::Request(what));
        if self.nodes == 0 || self.nodes > NODES_MAX {
            return refuse(format!("{} nodes: a fabric has 1 to {NODES_MAX}", self.nodes));
        }
        if let Some(nics) = self.nics.filter(|n| *n == 0 || *n > NICS_PER_NODE_MAX) {
            return refuse(format!("{nics} NICs: a node has 1 to {NICS_PER_NODE_MAX}"));
        }
        let commands = self.commands.len();
        if commands > 1 && commands != self.nodes as usize {
            return refuse(format!(
                "{commands} commands for {} nodes: give one for all, or one per node separated by `::`",
                self.nodes
            ));
        }
        if self.commands.iter().any(|words| words.first().is_none_or(|word| word.is_empty())) {
            return refuse("a command is empty".into());
        }
        if self.after_listen.is_some() && (self.nodes < 2 || commands == 0) {
            return refuse("waiting for node 0 to listen needs a command and a second node".into());
        }
        Ok(())
    }

    /// The command of a node.
    pub(super) fn command(&self, node: u32) -> Option<&[OsString]> {
        let command =
            if self.commands.len() == 1 { self.commands.first() } else { self.commands.get(node as usize) };
        command.map(Vec::as_slice)
    }
}

/// A fault that is to be set.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct FaultOrder {
    /// What goes wrong.
    #[serde(with = "kind_name")]
    pub kind: FaultKind,
    /// Node that it sits on; `None` = all.
    pub node: Option<u32>,
    /// NIC that it sits on; `None` = all.
    pub nic: Option<u32>,
    /// Node at the other side; `None` = any.
    pub peer_node: Option<u32>,
    /// NIC at the other side; `None` = any.
    pub peer_nic: Option<u32>,
    /// When it is set, counted from when the fabric is up: for the faults of a [`Request`], whose keeper sets them.
    #[serde(default)]
    pub begins: Duration,
    /// When it ends by itself, counted from when it is set.
    pub lasts: Option<Duration>,
    /// How many operations are let through before.
    pub after: u64,
    /// How often it bites at most.
    pub count: Option<u64>,
    /// How often it bites, in millionths.
    pub probability_ppm: u32,
    /// What the kind says, in its unit: see [`FaultKind`].
    pub amount: u64,
    /// What the kind says.
    pub spread: u64,
}

impl FaultOrder {
    /// A fault everywhere, always, until it is cleared.
    #[must_use]
    pub fn new(kind: FaultKind) -> Self {
        Self {
            kind,
            node: None,
            nic: None,
            peer_node: None,
            peer_nic: None,
            begins: Duration::ZERO,
            lasts: None,
            after: 0,
            count: None,
            probability_ppm: 1_000_000,
            amount: 0,
            spread: 0,
        }
    }

    /// The fault as the segment holds it, set at `now_ns` of the fabric's clock.
    #[must_use]
    pub fn fault(&self, now_ns: u64) -> Fault {
        let lasts = |d: Duration| now_ns.saturating_add(u64::try_from(d.as_nanos()).unwrap_or(u64::MAX));
        Fault {
            until_ns: self.lasts.map_or(u64::MAX, lasts),
            after: self.after,
            count: self.count.unwrap_or(u64::MAX),
            probability_ppm: self.probability_ppm,
            amount: self.amount,
            spread: self.spread,
            ..Fault::new(self.kind, self.scope())
        }
    }

    /// Whom it concerns.
    #[must_use]
    pub fn scope(&self) -> Scope {
        Scope { node: self.node, nic: self.nic, peer_node: self.peer_node, peer_nic: self.peer_nic }
    }

    /// What it breaks and where, with the words of the command line.
    #[must_use]
    pub fn words(&self) -> String {
        let places = [
            ("node", self.node),
            ("nic", self.nic),
            ("peer-node", self.peer_node),
            ("peer-nic", self.peer_nic),
        ];
        let place = |(flag, at): (&str, Option<u32>)| at.map(|at| format!(" --{flag} {at}"));
        self.kind.name().to_owned() + &places.into_iter().filter_map(place).collect::<String>()
    }

    /// Whether its nodes and NICs exist.
    ///
    /// # Errors
    /// [`Error::Request`] that says what exists.
    pub fn check(&self, nodes: u32, nics: u32) -> Result<(), Error> {
        for (what, value, exist) in [
            ("node", self.node, nodes),
            ("peer node", self.peer_node, nodes),
            ("NIC", self.nic, nics),
            ("peer NIC", self.peer_nic, nics),
        ] {
            if let Some(value) = value.filter(|v| *v >= exist) {
                let all = if exist == 1 { "only 0".into() } else { format!("0 to {}", exist - 1) };
                return Err(Error::Request(format!("there is no {what} {value}: this fabric has {all}")));
            }
        }
        Ok(())
    }
}

/// Fault kinds travel by name.
mod kind_name {
    use serde::{Deserialize, Deserializer, Serializer};
    use softefa_fabric::FaultKind;

    pub(super) fn serialize<S: Serializer>(kind: &FaultKind, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(kind.name())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<FaultKind, D::Error> {
        String::deserialize(from)?.parse().map_err(serde::de::Error::custom)
    }
}

/// How the command of a node ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    /// By itself, with this code.
    Exited(i32),
    /// By a signal that the supervisor did not send.
    Signalled(i32),
    /// Ended by the supervisor, because the fabric was taken down.
    Stopped,
    /// It was never started.
    NotStarted,
}

/// Why the fabric was taken down.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// All commands had ended.
    Finished,
    /// A command had failed, and the request says that this ends the others.
    Failed,
    /// Commands still ran at the deadline.
    Deadline,
    /// A signal, by its number.
    Signal(i32),
    /// Nobody reads what the commands print.
    Unread,
}

/// How a fabric ended.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Outcome {
    /// Why.
    pub cause: Cause,
    /// How each node's command ended; empty without commands.
    pub ends: Vec<End>,
}

impl Outcome {
    /// Whether every command ended by itself with code 0.
    #[must_use]
    pub fn is_success(&self) -> bool {
        self.cause == Cause::Finished && self.ends.iter().all(|end| *end == End::Exited(0))
    }
}

/// What the front tells the keeper.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Order {
    /// First of all: what to do. `front` is the front's process id.
    Set { request: Box<Request>, front: i32 },
    /// Pass this signal on to the commands, and take the fabric down once they have had time to react.
    Signal(i32),
    /// Take the fabric down now.
    Stop(Cause),
}

/// What the keeper tells the front.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Report {
    /// Where the fabric is made: from now on the front could clean up.
    Made { path: PathBuf },
    /// The fabric is up.
    Up { name: String, nics: u32, seconds: f64 },
    /// Something that people want to know.
    Note(String),
    /// The command of a node has ended, and these still run.
    Ended { node: u32, end: End, running: Vec<u32> },
    /// It could not be done; everything has been removed.
    Failed(Told),
    /// Everything has been removed.
    Done(Outcome),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_travels_as_it_is() {
        let mut request = Request::new(2);
        request.faults.push(FaultOrder { node: Some(1), ..FaultOrder::new(FaultKind::BlackHole) });
        request.commands = vec![vec!["a\n".into(), std::os::unix::ffi::OsStringExt::from_vec(vec![0xff, 1])]];
        let text = serde_json::to_string(&request).unwrap();
        assert!(text.contains("\"black-hole\"") && !text.contains('\n'), "{text}");
        let back: Request = serde_json::from_str(&text).unwrap();
        assert_eq!(
            (back.commands, back.faults, back.model),
            (request.commands, request.faults, request.model)
        );
    }

    #[test]
    fn contradictions_are_refused_with_what_is_possible() {
        let refused = |change: &dyn Fn(&mut Request)| {
            let mut request = Request::new(2);
            change(&mut request);
            request.check().unwrap_err().to_string()
        };
        assert!(refused(&|r| r.nodes = 0).contains("1 to 16"));
        assert!(refused(&|r| r.nics = Some(1000)).contains("1 to 64"));
        assert!(refused(&|r| r.commands = vec![vec!["a".into()]; 3]).contains("3 commands for 2 nodes"));
        assert!(refused(&|r| r.commands = vec![vec![]]).contains("empty"));
        assert!(refused(&|r| r.after_listen = Some(1)).contains("needs a command"));
        assert!(Request::new(2).check().is_ok());
    }

    #[test]
    fn a_fault_is_told_with_the_words_that_set_it() {
        let order = FaultOrder { node: Some(1), nic: Some(3), ..FaultOrder::new(FaultKind::RailDown) };
        assert_eq!(order.words(), "rail-down --node 1 --nic 3");
        assert_eq!(FaultOrder::new(FaultKind::NoEgress).words(), "no-egress");
    }

    #[test]
    fn a_fault_on_what_is_not_there_says_what_is() {
        let order = FaultOrder { nic: Some(4), ..FaultOrder::new(FaultKind::RailDown) };
        assert!(order.check(2, 4).unwrap_err().to_string().contains("no NIC 4: this fabric has 0 to 3"));
        assert!(order.check(2, 5).is_ok());
        let order = FaultOrder { peer_node: Some(1), ..FaultOrder::new(FaultKind::RailDown) };
        assert!(order.check(1, 4).unwrap_err().to_string().contains("only 0"));
    }
}
