//! What two hosts told each other and what their rails did: all that a judgement is made of.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::host::InstanceFacts;

/// The schema of the figures of a probe.
pub const SCHEMA: &str = "kvrail.probe.v1";

/// What a probe saw.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Facts {
    /// The side that was asked to probe.
    pub here: Side,
    /// The side that listened.
    pub there: Side,
    /// What carried the bytes: libfabric's provider (`efa-direct`), or `tcp`.
    pub carrier: String,
    /// Whether the user named the carrier: then nobody is surprised by it.
    pub carrier_named: bool,
    /// Whether the provider emulates (reads, writes) by messages, here and there; `None` where it cannot be asked.
    pub emulated: [Option<(bool, bool)>; 2],
    /// The rails, in the order of the NICs here.
    pub rails: Vec<Rail>,
}

/// What one side says of itself.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Side {
    /// Host name; in a Kubernetes pod the pod's.
    pub host: String,
    /// The node's name, where the environment says it (`NODE_NAME`).
    pub node_name: Option<String>,
    /// Identity of the machine: equal on both sides when they share one.
    pub machine: String,
    /// Version of the program.
    pub kvrail: String,
    /// A debug build: its figures mean nothing.
    pub debug_build: bool,
    /// Whether its devices are emulated: its figures say nothing about a NIC.
    pub emulated: bool,
    /// Its RDMA devices.
    pub nics: Vec<Nic>,
    /// The libfabric that is loaded there, and what it drives the devices with.
    pub libfabric: Option<Libfabric>,
    /// Why no provider of libfabric drives an RDMA device there.
    pub no_provider: Option<String>,
    /// The environment, as far as it concerns transfers; without secrets.
    pub variables: BTreeMap<String, String>,
    /// What the metadata service of an EC2 instance says.
    pub instance: Option<InstanceFacts>,
    /// What `aws ec2 describe-security-groups` prints of its groups, where that may be asked.
    pub security_groups: Option<String>,
}

/// An RDMA device.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Nic {
    /// As in `rdmap79s0`.
    pub name: String,
    /// Kernel driver, as in `efa`.
    pub driver: Option<String>,
    /// Line rate, bits per second; 0 when unknown.
    pub rate_bps: u64,
    /// The kernel's word for a port that is not up.
    pub down: Option<String>,
}

/// A libfabric.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Libfabric {
    /// Where it is.
    pub path: String,
    /// The release that its file name stands for, as in `v2.5`.
    pub file: Option<String>,
    /// The release that it says it is, as in `2.5`.
    pub release: String,
    /// Its highest symbol version, as in `FABRIC_1.9`.
    pub symbols: String,
    /// The provider that it drives RDMA devices with, as in `efa-direct`.
    pub provider: String,
}

/// A NIC here and a NIC there, and what came of small transfers between them.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Rail {
    /// The device here; empty for a transport without devices.
    pub here: String,
    /// The device there.
    pub there: String,
    /// The lower of their line rates, bits per second; 0 when unknown.
    pub rate_bps: u64,
    /// How far it came.
    pub end: End,
    /// What was written from here to there.
    pub write: Option<Figures>,
    /// What was read from there to here.
    pub read: Option<Figures>,
    /// Bytes that arrived wrong.
    pub wrong: Vec<Wrong>,
    /// What the device here counted during the probe; `None` where it has no counters that can be read.
    pub counted_here: Option<Counted>,
    /// What the device there counted.
    pub counted_there: Option<Counted>,
}

/// How far a rail came.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(tag = "how", rename_all = "snake_case")]
pub enum End {
    /// Everything that was tried ended in time.
    #[default]
    Works,
    /// The device could not be opened.
    NotOpened {
        /// On which side.
        at: Place,
        /// Why not.
        why: String,
    },
    /// The two ends never met: a greeting was not answered.
    NotMet {
        /// What this side's engine says.
        why: String,
    },
    /// They met, and a transfer failed or did not end in time.
    Failed {
        /// Which: `write of 8 bytes`.
        step: String,
        /// What the engine says.
        why: String,
    },
    /// The probe's time was over before this rail was measured; the first bytes were right.
    NotMeasured,
}

/// A side.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    /// That which was asked to probe.
    Here,
    /// That which listened.
    There,
}

/// What was measured in one direction.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Figures {
    /// Median time of 8 bytes from posting to completion, microseconds.
    pub latency_us: f64,
    /// Rate of blocks of 1 MiB, bytes per second; 0 where it was not measured.
    pub bytes_per_s: f64,
}

/// Bytes that arrived wrong.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Wrong {
    /// Which transfer: `write of 4 MiB`.
    pub step: String,
    /// What they look like: `zeros`, `never written`, `stale`.
    pub like: String,
    /// The first bad byte's offset in the transfer.
    pub offset: u64,
    /// How many are wrong.
    pub bytes: u64,
}

/// What a device counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Counted {
    /// Packets sent.
    pub tx: u64,
    /// Packets received.
    pub rx: u64,
    /// Packets sent again, where that is counted.
    pub again: Option<u64>,
}

impl Facts {
    /// A side.
    #[must_use]
    pub fn side(&self, place: Place) -> &Side {
        match place {
            Place::Here => &self.here,
            Place::There => &self.there,
        }
    }

    /// Whether what carried the bytes drives RDMA devices.
    #[must_use]
    pub fn is_fabric(&self) -> bool {
        !matches!(self.carrier.as_str(), "tcp" | "shm" | "sockets")
    }
}

impl Side {
    /// The names of both the host and, where it differs, its node.
    #[must_use]
    pub fn name(&self) -> String {
        match &self.node_name {
            Some(node) if *node != self.host => format!("{} (node {node})", self.host),
            _ => self.host.clone(),
        }
    }
}

impl Rail {
    /// Whether bytes went over it both ways.
    #[must_use]
    pub fn works(&self) -> bool {
        matches!(self.end, End::Works | End::NotMeasured)
    }

    /// Its devices, as one name.
    #[must_use]
    pub fn name(&self) -> String {
        match (self.here.as_str(), self.there.as_str()) {
            ("", "") => "tcp".into(),
            (here, there) if here == there => here.into(),
            (here, there) => format!("{here} to {there}"),
        }
    }

    /// Its better rate, bytes per second; nothing where none was measured.
    #[must_use]
    pub fn rate(&self) -> Option<f64> {
        let rates = [self.write, self.read].into_iter().flatten().map(|figures| figures.bytes_per_s);
        rates.filter(|rate| *rate > 0.0).reduce(f64::max)
    }

    /// What it can carry, bytes per second; nothing when unknown.
    #[must_use]
    pub fn line(&self) -> Option<f64> {
        (self.rate_bps > 0).then_some(self.rate_bps as f64 / 8.0)
    }
}
