//! Who moves what to whom: a pure function of scheme and counts.
//!
//! An initiator device and a target device that move blocks between them are a *link*. Each device's buffer is cut into one *share*
//! per link, in proportion to the link's *weight*: the shares of a device are in order, disjoint, and cover its buffer exactly. A
//! transfer of batch size n moves n blocks per unit of weight.
//!
//! * pairwise: device i with device i. Where counts differ, those that the smaller side lacks go round robin.
//! * onetomany, manytoone: every initiator with every target. With one initiator or one target, that is what the names say.
//! * tp: the whole buffer is divided over all initiators, and over all targets; a link is where two parts overlap, and its weight is how
//!   much, in units of the smallest overlap. So two initiators and four targets have four links, three and two also, with
//!   weights 2, 1, 1, 2.
//!
//! A block lies at the same index of both shares of its link. Where a share has room for fewer blocks than a thread moves, blocks
//! begin again at its start, on both sides alike, so that aliased blocks carry the same bytes.

use std::fmt;
use std::ops::Range;

/// Devices of one side.
pub(crate) const DEVICES_MAX: u32 = 1024;
/// Links of one plan: each is a connection between two engines.
pub(crate) const LINKS_MAX: usize = 1 << 16;
/// Where shares begin, as far as they are large enough: a page, so that no two links share one.
const PAGE: u64 = 4096;
const HUGE_PAGE: u64 = 2 << 20;

/// Who moves to whom.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Scheme {
    Pairwise,
    OneToMany,
    ManyToOne,
    Tp,
}

impl Scheme {
    pub(crate) const ALL: [Self; 4] = [Self::Pairwise, Self::OneToMany, Self::ManyToOne, Self::Tp];

    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Pairwise => "pairwise",
            Self::OneToMany => "onetomany",
            Self::ManyToOne => "manytoone",
            Self::Tp => "tp",
        }
    }
}

/// How devices become processes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Mode {
    /// A process per device.
    Single,
    /// A process per side.
    Multi,
}

/// What a plan is made from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Shape {
    pub(crate) scheme: Scheme,
    pub(crate) mode: Mode,
    pub(crate) initiators: u32,
    pub(crate) targets: u32,
    pub(crate) threads: u32,
    /// Divided over the devices of a side and the threads.
    pub(crate) total_bytes: u64,
    pub(crate) huge_pages: bool,
}

/// Which side.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Side {
    Initiator,
    Target,
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Initiator => "initiator",
            Self::Target => "target",
        })
    }
}

/// Two devices that move blocks.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Link {
    /// Device among initiators.
    pub(crate) initiator: u32,
    /// Device among targets.
    pub(crate) target: u32,
    /// Batches per transfer.
    pub(crate) weight: u32,
    /// Its share of the initiator's buffer of one thread.
    pub(crate) at_initiator: Range<u64>,
    /// Its share of the target's buffer of one thread.
    pub(crate) at_target: Range<u64>,
}

impl Link {
    /// Blocks of this size that both shares have room for.
    fn room(&self, block_bytes: u64) -> u64 {
        let smaller =
            (self.at_initiator.end - self.at_initiator.start).min(self.at_target.end - self.at_target.start);
        smaller / block_bytes
    }
}

/// A size of the sweep.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Size {
    pub(crate) block_bytes: u64,
    /// Blocks per transfer and unit of weight.
    pub(crate) batch: u64,
}

/// What one initiator process moves to one target process: one link in mode SG, all of them in mode MG.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Route<'a> {
    /// Rank of the initiator.
    pub(crate) initiator: u32,
    /// Rank of the target.
    pub(crate) target: u32,
    pub(crate) links: &'a [Link],
}

/// Where the blocks of a transfer are, in the memory of each process: block i of one with block i of the other.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(crate) struct Places {
    pub(crate) initiator: Vec<u64>,
    pub(crate) target: Vec<u64>,
}

/// Who moves what to whom.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Plan {
    shape: Shape,
    links: Vec<Link>,
}

impl Plan {
    /// The plan of a shape, whose counts are at least 1 and whose total is a multiple of devices times threads on both sides.
    ///
    /// # Errors
    /// When it would be too large.
    pub(crate) fn new(shape: Shape) -> Result<Self, String> {
        let pairs = pairs(shape.scheme, shape.initiators, shape.targets)?;
        let initiator_shares =
            shares(&pairs, |pair| pair.0, shape.buffer_bytes(Side::Initiator), shape.huge_pages);
        let target_shares = shares(&pairs, |pair| pair.1, shape.buffer_bytes(Side::Target), shape.huge_pages);
        let links = pairs
            .into_iter()
            .zip(initiator_shares.into_iter().zip(target_shares))
            .map(|((initiator, target, weight), (at_initiator, at_target))| Link {
                initiator,
                target,
                weight,
                at_initiator,
                at_target,
            })
            .collect();
        Ok(Self { shape, links })
    }

    pub(crate) fn shape(&self) -> &Shape {
        &self.shape
    }

    #[cfg(test)]
    pub(crate) fn links(&self) -> &[Link] {
        &self.links
    }

    /// Processes.
    pub(crate) fn participants(&self) -> u32 {
        match self.shape.mode {
            Mode::Single => self.shape.initiators + self.shape.targets,
            Mode::Multi => 2,
        }
    }

    /// Processes that post.
    pub(crate) fn initiators(&self) -> u32 {
        match self.shape.mode {
            Mode::Single => self.shape.initiators,
            Mode::Multi => 1,
        }
    }

    /// Initiators come first.
    pub(crate) fn side(&self, rank: u32) -> Side {
        if rank < self.initiators() { Side::Initiator } else { Side::Target }
    }

    /// Memory of a process.
    pub(crate) fn pool_bytes(&self, side: Side) -> u64 {
        self.shape.buffer_bytes(side) * u64::from(self.shape.threads) * u64::from(self.devices(side))
    }

    /// Devices of a process.
    fn devices(&self, side: Side) -> u32 {
        match (self.shape.mode, side) {
            (Mode::Single, _) => 1,
            (Mode::Multi, Side::Initiator) => self.shape.initiators,
            (Mode::Multi, Side::Target) => self.shape.targets,
        }
    }

    /// Every route, initiators in order.
    pub(crate) fn routes(&self) -> Vec<Route<'_>> {
        match self.shape.mode {
            Mode::Multi => vec![Route { initiator: 0, target: 1, links: &self.links }],
            Mode::Single => self
                .links
                .chunks(1)
                .map(|links| Route {
                    initiator: links[0].initiator,
                    target: self.shape.initiators + links[0].target,
                    links,
                })
                .collect(),
        }
    }

    /// Batches that all initiators together move per transfer.
    pub(crate) fn weight(&self, initiator: u32) -> u64 {
        self.routes()
            .iter()
            .filter(|route| route.initiator == initiator)
            .flat_map(|route| route.links)
            .map(|link| u64::from(link.weight))
            .sum()
    }

    /// A link whose shares have no room for a single block of this size.
    pub(crate) fn too_small_for(&self, block_bytes: u64) -> Option<&Link> {
        self.links.iter().find(|link| link.room(block_bytes) == 0)
    }

    /// Whether some blocks of a thread must lie where others do.
    pub(crate) fn aliases(&self, size: Size, slots: u64) -> bool {
        self.links.iter().any(|link| {
            let blocks = slots.saturating_mul(size.batch).saturating_mul(u64::from(link.weight));
            link.room(size.block_bytes) < blocks
        })
    }

    /// Where the blocks of one slot of one thread are on a route. Every link of the plan has room for a block.
    pub(crate) fn places(&self, route: Route<'_>, thread: u32, slot: u64, size: Size) -> Places {
        let mut places = Places::default();
        for link in route.links {
            let count = size.batch * u64::from(link.weight);
            let room = link.room(size.block_bytes).max(1);
            let initiator = self.base(Side::Initiator, link.initiator, thread) + link.at_initiator.start;
            let target = self.base(Side::Target, link.target, thread) + link.at_target.start;
            for index in slot * count..(slot + 1) * count {
                let at = index % room * size.block_bytes;
                places.initiator.push(initiator + at);
                places.target.push(target + at);
            }
        }
        places
    }

    /// Where the buffer of a device and thread begins in its process's memory.
    fn base(&self, side: Side, device: u32, thread: u32) -> u64 {
        let buffers = match self.shape.mode {
            Mode::Single => u64::from(thread),
            Mode::Multi => u64::from(thread) * u64::from(self.devices(side)) + u64::from(device),
        };
        buffers * self.shape.buffer_bytes(side)
    }
}

impl Shape {
    /// Bytes of one device's buffer of one thread.
    pub(crate) fn buffer_bytes(&self, side: Side) -> u64 {
        let devices = match side {
            Side::Initiator => self.initiators,
            Side::Target => self.targets,
        };
        self.total_bytes / (u64::from(devices) * u64::from(self.threads))
    }
}

/// The links of a scheme as (initiator, target, weight), initiators in order, and for each its targets.
fn pairs(scheme: Scheme, initiators: u32, targets: u32) -> Result<Vec<(u32, u32, u32)>, String> {
    if initiators > DEVICES_MAX || targets > DEVICES_MAX {
        return Err(format!("more than {DEVICES_MAX} devices on one side"));
    }
    let mut pairs = match scheme {
        Scheme::Pairwise => {
            (0..initiators.max(targets)).map(|k| (k % initiators, k % targets, 1)).collect::<Vec<_>>()
        }
        Scheme::OneToMany | Scheme::ManyToOne => {
            if initiators as usize * targets as usize > LINKS_MAX {
                return Err(format!("{initiators} x {targets} links are more than {LINKS_MAX}"));
            }
            (0..initiators).flat_map(|i| (0..targets).map(move |t| (i, t, 1))).collect()
        }
        Scheme::Tp => overlaps(initiators, targets),
    };
    pairs.sort_unstable();
    Ok(pairs)
}

/// Where two divisions of one whole overlap, and by how many of the units that both can be counted in.
fn overlaps(initiators: u32, targets: u32) -> Vec<(u32, u32, u32)> {
    let whole = initiators / gcd(initiators, targets) * targets;
    let (of_initiator, of_target) = (whole / initiators, whole / targets);
    let mut pairs = Vec::new();
    let mut at = 0;
    while at < whole {
        let (initiator, target) = (at / of_initiator, at / of_target);
        let end = ((initiator + 1) * of_initiator).min((target + 1) * of_target);
        pairs.push((initiator, target, end - at));
        at = end;
    }
    pairs
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// Cuts each device's buffer among its links by their weights, in the order of the links.
fn shares(
    pairs: &[(u32, u32, u32)],
    device: impl Fn(&(u32, u32, u32)) -> u32,
    buffer_bytes: u64,
    huge_pages: bool,
) -> Vec<Range<u64>> {
    let devices = pairs.iter().map(|pair| device(pair) as usize + 1).max().unwrap_or(0);
    let mut whole = vec![0u64; devices];
    for pair in pairs {
        whole[device(pair) as usize] += u64::from(pair.2);
    }
    let mut done = vec![0u64; devices];
    pairs
        .iter()
        .map(|pair| {
            let (whole, done) = (whole[device(pair) as usize], &mut done[device(pair) as usize]);
            let start = cut(buffer_bytes, *done, whole, huge_pages);
            *done += u64::from(pair.2);
            start..cut(buffer_bytes, *done, whole, huge_pages)
        })
        .collect()
}

/// The byte at `part / whole` of a buffer, down to where a page begins if the pieces are that large.
fn cut(bytes: u64, part: u64, whole: u64, huge_pages: bool) -> u64 {
    if part == whole {
        return bytes;
    }
    // Devices and their links are bounded, so that the product of 128 bits is exact.
    let at = (u128::from(bytes) * u128::from(part) / u128::from(whole)) as u64;
    let piece = bytes / whole;
    let align = if huge_pages && piece >= HUGE_PAGE {
        HUGE_PAGE
    } else if piece >= PAGE {
        PAGE
    } else {
        1
    };
    at / align * align
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
