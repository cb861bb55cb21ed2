//! The command line of `kvrail softefa`.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::PossibleValue;
use clap::{Args, Subcommand, ValueEnum};
use softefa_fabric::FaultKind;

use super::quantities;
use crate::units;

#[derive(Subcommand, Debug)]
pub(crate) enum Softefa {
    /// Set up hosts with emulated EFA devices, run a command on each, and leave nothing behind
    #[command(after_long_help = RUN_EXAMPLES)]
    Run(Box<Run>),
    /// Open a shell, or run a command, on a node of a live fabric
    Shell(Shell),
    /// Show live fabrics: NICs, counters, faults, processes
    Status(Status),
    /// Break a live fabric, show what is broken, and mend it
    #[command(after_long_help = FAULT_EXAMPLES)]
    Fault(Box<Fault>),
    /// Find libfabric and say whether its efa provider runs on the emulated device
    Check(Check),
    /// The keeper of a fabric
    #[command(hide = true)]
    Keep,
    /// Loads libfabric and prints what it offers
    #[command(hide = true)]
    Load { library: PathBuf },
}

const RUN_EXAMPLES: &str = "\
Examples:
  kvrail softefa run -- fi_info -p efa                          on each of two nodes
  kvrail softefa run --nics 4 --after-listen 47592 -- fi_pingpong -p efa :: fi_pingpong -p efa localhost
  kvrail softefa run --shape p5 --fault 'rail-down --node 1 --nic 3 --in 4s --for 5s' -- ./job.sh
  kvrail softefa run                                            no command: stays up for `kvrail softefa shell`

A command sees SOFTEFA_NODE and SOFTEFA_NODES. Its libibverbs.so.1 and libefa.so.1 are the emulated device's.

Exit codes: 0 every command ended with 0; 1 a command failed or ran into the deadline; 2 could not run.";

const FAULT_EXAMPLES: &str = "\
Examples:
  kvrail softefa fault rail-down --node 0 --nic 3 --for 5s      dies and comes back
  kvrail softefa fault no-egress --node 0                       a security group without egress: silence
  kvrail softefa fault black-hole --node 0 --peer-node 1 --silent
  kvrail softefa fault drop 1% --node 0
  kvrail softefa fault delay 200us 50us --node 1 --nic 0
  kvrail softefa fault list
  kvrail softefa fault clear 3                                  without a number: all";

/// What is set up, and what runs on it.
#[derive(Args, Debug)]
pub(crate) struct Run {
    /// Emulated hosts
    #[arg(long, value_name = "N", default_value_t = 2, help_heading = "Fabric")]
    pub(crate) nodes: u32,
    /// NICs of each host [default: the shape's, else 1]
    #[arg(long, value_name = "N", help_heading = "Fabric")]
    pub(crate) nics: Option<u32>,
    /// Instance type that the hosts look like, with its PCIe tree in /sys [default: generic]
    #[arg(long, value_name = "TYPE", help_heading = "Fabric", value_parser = shapes())]
    pub(crate) shape: Option<String>,
    /// NUMA nodes: the shape's, or folded to this host's for programs that ask libnuma as well as /sys
    #[arg(long, value_enum, default_value_t = Numa::Shape, help_heading = "Fabric")]
    pub(crate) numa: Numa,
    /// Name, for the other commands [default: softefa-PID]
    #[arg(long, value_name = "NAME", help_heading = "Fabric")]
    pub(crate) name: Option<String>,
    /// Seed of everything that is random [default: random, and printed]
    #[arg(long, value_name = "N", help_heading = "Fabric")]
    pub(crate) seed: Option<u64>,
    /// libfabric.so.1 or its directory, or `none` for commands without libfabric [default: see `check`]
    #[arg(long, value_name = "PATH", help_heading = "Fabric")]
    pub(crate) libfabric: Option<PathBuf>,

    /// One way, NIC to NIC, without load [default: 12us]
    #[arg(long, value_name = "TIME", value_parser = quantities::time, help_heading = "Network")]
    pub(crate) latency: Option<Duration>,
    /// Mean of the exponential spread on top; makes packets overtake each other [default: 4us]
    #[arg(long, value_name = "TIME", value_parser = quantities::time, help_heading = "Network")]
    pub(crate) jitter: Option<Duration>,
    /// Rate of each NIC, 100Gbps, or `none` for as fast as memory [default: the shape's]
    #[arg(long, value_name = "RATE", value_parser = quantities::rate, help_heading = "Network")]
    pub(crate) rate: Option<quantities::Rate>,
    /// Share of packets that are retransmitted and 0.5 to 4 ms late [default: 0.1%]
    #[arg(long, value_name = "SHARE", value_parser = quantities::share, help_heading = "Network")]
    pub(crate) tail: Option<u32>,
    /// How long after the acknowledgement bytes become visible at the target [default: before it]
    #[arg(long, value_name = "TIME", value_parser = quantities::time, help_heading = "Network")]
    pub(crate) commit_delay: Option<Duration>,
    /// Let a NIC send to itself; EFA drops such packets silently
    #[arg(long, help_heading = "Network")]
    pub(crate) loopback: bool,
    /// When an operation without any answer ends with an error [default: 2s]
    #[arg(long, value_name = "TIME", value_parser = quantities::time, help_heading = "Network")]
    pub(crate) unresponsive_after: Option<Duration>,
    /// No latency, jitter, tail or rate: as fast as this machine copies
    #[arg(long, conflicts_with_all = ["latency", "jitter", "rate", "tail"], help_heading = "Network")]
    pub(crate) instant: bool,
    /// A fault from the start, as `kvrail softefa fault` takes it; may be repeated
    #[arg(long, value_name = "FAULT", help_heading = "Network")]
    pub(crate) fault: Vec<String>,

    /// End commands that still run after this time
    #[arg(long, value_name = "DURATION", value_parser = units::duration, help_heading = "Commands")]
    pub(crate) deadline: Option<Duration>,
    /// Start the commands of nodes 1 and up once node 0 listens on this TCP port
    #[arg(long, value_name = "PORT", help_heading = "Commands", value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) after_listen: Option<u16>,
    /// Longest wait for that
    #[arg(long, value_name = "DURATION", value_parser = units::duration, default_value = "60s", help_heading = "Commands", requires = "after_listen")]
    pub(crate) listen_deadline: Duration,
    /// The first command that fails ends the others
    #[arg(long, help_heading = "Commands")]
    pub(crate) fail_fast: bool,
    /// Give commands this terminal instead of printing their lines with the node's name
    #[arg(long, help_heading = "Commands")]
    pub(crate) raw: bool,
    /// Say nothing but errors
    #[arg(long, short, help_heading = "Commands")]
    pub(crate) quiet: bool,
    /// The command for every node, or one per node: COMMAND :: COMMAND OF NODE 1 :: …
    #[arg(last = true, value_name = "COMMAND")]
    pub(crate) command: Vec<OsString>,
}

/// Names of shapes; whole instance types are understood too.
fn shapes() -> impl clap::builder::TypedValueParser<Value = String> {
    use clap::builder::{PossibleValuesParser, TypedValueParser};
    let shape = |name: &str| match softefa::shape::Shape::named(name) {
        Ok(shape) => {
            let (nics, gpus) = (shape.nics.len(), shape.gpus.len());
            PossibleValue::new(name.to_owned())
                .help(format!("{nics} NICs, {gpus} GPUs, {} NUMA nodes", shape.numa_nodes.len()))
                .alias(shape.instance_type)
        }
        Err(_) => PossibleValue::new(name.to_owned()),
    };
    let generic =
        PossibleValue::new("generic").help("as many NICs as --nics says behind one switch, no GPUs");
    let named = softefa::shape::NAMES.into_iter().map(shape);
    PossibleValuesParser::new(std::iter::once(generic).chain(named)).map(|name| name)
}

/// Whose NUMA nodes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum Numa {
    /// As the instance type has.
    Shape,
    /// At most as many as this host.
    Host,
}

/// Which live fabric.
#[derive(Args, Debug)]
pub(crate) struct Which {
    /// Name of the fabric [default: the only one that lives]
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<String>,
}

/// Where to go, and to do what.
#[derive(Args, Debug)]
pub(crate) struct Shell {
    /// Which node
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) node: u32,
    #[command(flatten)]
    pub(crate) which: Which,
    /// Instead of $SHELL
    #[arg(last = true, value_name = "COMMAND")]
    pub(crate) command: Vec<OsString>,
}

/// How a result is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum Format {
    /// For people.
    Table,
    /// For programs.
    Json,
}

/// What is shown.
#[derive(Args, Debug)]
pub(crate) struct Status {
    #[command(flatten)]
    pub(crate) which: Which,
    /// Watch for this long and show what changed
    #[arg(long, value_name = "DURATION", value_parser = units::duration)]
    pub(crate) watch: Option<Duration>,
    /// Also NICs on which nothing has happened
    #[arg(long)]
    pub(crate) all: bool,
    /// How it is written
    #[arg(long, value_enum, default_value_t = Format::Table)]
    pub(crate) format: Format,
}

/// What to look at.
#[derive(Args, Debug)]
pub(crate) struct Check {
    /// libfabric.so.1 or its directory
    #[arg(long, value_name = "PATH")]
    pub(crate) libfabric: Option<PathBuf>,
    /// How it is written
    #[arg(long, value_enum, default_value_t = Format::Table)]
    pub(crate) format: Format,
}

/// What `fault` is asked to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Deed {
    /// Show what is broken.
    List,
    /// Mend one, or all.
    Clear,
    /// Break something.
    Set(FaultKind),
}

/// All that `fault` can be asked, in the order of its help.
static DEEDS: [Deed; FaultKind::ALL.len() + 2] = {
    let mut deeds = [Deed::List; FaultKind::ALL.len() + 2];
    deeds[1] = Deed::Clear;
    let mut i = 0;
    while i < FaultKind::ALL.len() {
        deeds[i + 2] = Deed::Set(FaultKind::ALL[i]);
        i += 1;
    }
    deeds
};

impl ValueEnum for Deed {
    fn value_variants<'a>() -> &'a [Self] {
        &DEEDS
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(match self {
            Self::List => PossibleValue::new("list").help("Show the faults that are active"),
            Self::Clear => PossibleValue::new("clear").help("End one, by its number, or all"),
            Self::Set(FaultKind::MissingHandle) => {
                PossibleValue::new("missing-handle").alias("missing-ah").help(help(FaultKind::MissingHandle))
            }
            Self::Set(kind) => PossibleValue::new(kind.name()).help(help(*kind)),
        })
    }
}

/// What a kind does, in one line.
const fn help(kind: FaultKind) -> &'static str {
    match kind {
        FaultKind::RailDown => "The NIC neither sends nor receives; operations end with 13 or 15",
        FaultKind::BlackHole => "Packets to the peer vanish; --silent: no error ever",
        FaultKind::NoEgress => "A security group without egress: packets count as sent, nobody says a word",
        FaultKind::SecondaryCidr => "An address that no rule covers: silence both ways",
        FaultKind::Drop => "SHARE of the packets are lost and sent again: `drop 1%`",
        FaultKind::Delay => "Packets are late by TIME [SPREAD]: `delay 200us 50us`",
        FaultKind::Rate => "The NIC is slower: `rate 10Gbps`",
        FaultKind::BadKey => "Remote keys are found invalid: status 7",
        FaultKind::MissingHandle => "The peer has no address handle for this NIC: status 14",
        FaultKind::NotReady => "The peer has no receive posted: status 10",
        FaultKind::PeerRestarted => "The peer's queue pair is gone: status 9",
        FaultKind::Unreachable => "The peer was never reached: status 15 [after TIME]",
        FaultKind::Unresponsive => "The peer has stopped answering: status 13 [after TIME]",
        FaultKind::NoRegistration => "Registrations of memory fail with ENOMEM; --after N of them",
        FaultKind::CqOverflow => "Completion queues overflow; --capacity N entries",
    }
}

/// What is to be broken, where, for how long.
#[derive(Args, Debug)]
pub(crate) struct Fault {
    /// What goes wrong; or `list`, or `clear`
    #[arg(value_enum, value_name = "KIND", hide_possible_values = false)]
    pub(crate) deed: Deed,
    /// What the kind takes; the number for `clear`
    #[arg(value_name = "VALUE")]
    pub(crate) values: Vec<String>,
    #[command(flatten)]
    pub(crate) which: Which,
    /// Node that it sits on [default: all]
    #[arg(long, value_name = "N", help_heading = "Where")]
    pub(crate) node: Option<u32>,
    /// NIC of that node [default: all]
    #[arg(long, value_name = "N", help_heading = "Where")]
    pub(crate) nic: Option<u32>,
    /// Node at the other side [default: any]
    #[arg(long, value_name = "N", help_heading = "Where")]
    pub(crate) peer_node: Option<u32>,
    /// NIC at the other side [default: any]
    #[arg(long, value_name = "N", help_heading = "Where")]
    pub(crate) peer_nic: Option<u32>,
    /// Begins this long after the fabric is up; for `run --fault`
    #[arg(long = "in", value_name = "DURATION", value_parser = units::duration, help_heading = "When")]
    pub(crate) begins: Option<Duration>,
    /// Ends by itself after this time
    #[arg(long = "for", value_name = "DURATION", value_parser = units::duration, help_heading = "When")]
    pub(crate) lasts: Option<Duration>,
    /// Ends after it has bitten this often
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..), help_heading = "When")]
    pub(crate) count: Option<u64>,
    /// Lets this many operations through first
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "When")]
    pub(crate) after: u64,
    /// Bites only this share of the times
    #[arg(long, value_name = "SHARE", value_parser = quantities::share, help_heading = "When")]
    pub(crate) probability: Option<u32>,
    /// No error, ever
    #[arg(long, help_heading = "Kind")]
    pub(crate) silent: bool,
    /// Tell the NIC's own programs that the link went down, by an asynchronous event
    #[arg(long, help_heading = "Kind")]
    pub(crate) link_event: bool,
    /// Entries that completion queues hold
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..), help_heading = "Kind")]
    pub(crate) capacity: Option<u64>,
    /// How `list` is written
    #[arg(long, value_enum, default_value_t = Format::Table)]
    pub(crate) format: Format,
}
