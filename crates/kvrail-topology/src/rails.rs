//! Which NICs serve which GPU: the mapping's rule.
//!
//! 1. **Who takes part.** The usable NICs: RDMA devices whose port is not down; on a host without any RDMA device, network
//!    interfaces that are not down. The others are named with the reason.
//! 2. **Each NIC goes to the GPUs nearest to it** ([`crate::nearness`]). NICs that are nearest to the same set of GPUs
//!    are divided among these evenly and in PCI order: with `k` NICs and `m` GPUs each GPU gets `⌊k/m⌋` of its own,
//!    and each of the `k mod m` others is shared by neighbours. So two NICs and one GPU give 2; four and two give 2
//!    each; one NIC and two GPUs is shared by both.
//! 3. **A GPU that is left with none** (it is nearest to no NIC) shares the NICs nearest to it; several such GPUs with
//!    the same nearest NICs divide those by 2's rule.
//!
//! From which follows, as long as there are a usable NIC and a GPU: every usable NIC serves a GPU, every GPU has a NIC,
//! and GPUs in equal places have equally many. Only the model decides, never the order of a directory.

use std::collections::BTreeMap;

use crate::ceiling::{self, Ceiling};
use crate::distance::{Distance, Nearness, nearness};
use crate::model::{GpuId, LinkState, NicId, NicKind, Topology};

/// A NIC that serves a GPU.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rail {
    /// The NIC.
    pub nic: NicId,
    /// How far it is from the GPU.
    pub distance: Distance,
    /// How many GPUs it serves, this one included.
    pub gpus: u32,
}

/// The rails of one GPU.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GpuRails {
    /// The GPU.
    pub gpu: GpuId,
    /// Its rails, nearest first, equally near ones in PCI order.
    pub rails: Vec<Rail>,
    /// What they can carry while no other GPU uses them.
    pub alone: Ceiling,
    /// What they can carry while all GPUs are busy: a NIC or link that several use is divided by their number.
    pub all_active: Ceiling,
}

/// Why a NIC serves no GPU.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Exclusion {
    /// Its link is down; the kernel's word for it.
    Down(String),
    /// It is no RDMA device, and the host has some.
    NotRdma,
}

/// Which NICs serve which GPU.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Assignment {
    /// One entry for each GPU, by ordinal.
    pub gpus: Vec<GpuRails>,
    /// NICs that take no part.
    pub excluded: Vec<(NicId, Exclusion)>,
}

/// Applies the rule that the module documents.
pub fn rails_of_gpus(topology: &Topology) -> Assignment {
    let usable = usable_nics(topology);
    let near = nearness_table(topology, &usable);
    let gpus = topology.gpus().len();
    let mut nics_of: Vec<Vec<NicId>> = vec![Vec::new(); gpus];
    if gpus > 0 {
        // 2. Pools of NICs with the same nearest GPUs.
        let mut pools: BTreeMap<Vec<usize>, Vec<NicId>> = BTreeMap::new();
        for (place, nic) in usable.iter().enumerate() {
            pools.entry(nearest(0..gpus, |gpu| near[gpu][place])).or_default().push(*nic);
        }
        for (gpus, nics) in &pools {
            divide(nics, gpus, &mut nics_of);
        }
        // 3. GPUs that no NIC is nearest to, by their nearest NICs.
        let mut pools: BTreeMap<Vec<usize>, Vec<usize>> = BTreeMap::new();
        for gpu in (0..gpus).filter(|gpu| nics_of[*gpu].is_empty()) {
            pools.entry(nearest(0..usable.len(), |place| near[gpu][place])).or_default().push(gpu);
        }
        for (places, gpus) in &pools {
            let nics: Vec<NicId> = places.iter().map(|place| usable[*place]).collect();
            divide(&nics, gpus, &mut nics_of);
        }
    }
    let mut users: BTreeMap<NicId, u32> = BTreeMap::new();
    nics_of.iter().flatten().for_each(|nic| *users.entry(*nic).or_default() += 1);
    let rails_of = |gpu: usize| {
        let with_nearness = |nic: &NicId| {
            let place = usable.binary_search(nic).unwrap_or_default();
            (near[gpu][place], *nic)
        };
        let mut rails: Vec<(Nearness, NicId)> = nics_of[gpu].iter().map(with_nearness).collect();
        rails.sort_unstable();
        let rail = |(near, nic): (Nearness, NicId)| Rail {
            nic,
            distance: near.distance,
            gpus: users.get(&nic).copied().unwrap_or(1),
        };
        rails.into_iter().map(rail).collect::<Vec<_>>()
    };
    let rails: Vec<Vec<Rail>> = (0..gpus).map(rails_of).collect();
    let ceilings = ceiling::of_gpus(topology, &rails);
    let gpus = topology.gpus().iter().zip(rails).zip(ceilings);
    let gpus =
        gpus.map(|((gpu, rails), [alone, all_active])| GpuRails { gpu: gpu.id, rails, alone, all_active });
    Assignment { gpus: gpus.collect(), excluded: excluded(topology) }
}

/// The NICs that can be rails, in PCI order: point 1 of the rule.
pub fn usable_nics(topology: &Topology) -> Vec<NicId> {
    let kind = kind_of_rails(topology);
    let usable = topology.nics().iter().filter(|nic| nic.kind == kind && nic.state.is_usable());
    usable.map(|nic| nic.id).collect()
}

/// An RDMA device that is down still decides: rails never turn to Ethernet in silence.
fn kind_of_rails(topology: &Topology) -> NicKind {
    let rdma = topology.nics().iter().any(|nic| nic.kind == NicKind::Rdma);
    if rdma { NicKind::Rdma } else { NicKind::Ethernet }
}

fn excluded(topology: &Topology) -> Vec<(NicId, Exclusion)> {
    let kind = kind_of_rails(topology);
    let why = |nic: &crate::model::Nic| match &nic.state {
        _ if nic.kind != kind => Some((nic.id, Exclusion::NotRdma)),
        LinkState::Down(word) => Some((nic.id, Exclusion::Down(word.clone()))),
        LinkState::Up | LinkState::Unknown => None,
    };
    topology.nics().iter().filter_map(why).collect()
}

/// Nearness of each usable NIC to each GPU.
fn nearness_table(topology: &Topology, usable: &[NicId]) -> Vec<Vec<Nearness>> {
    let row = |gpu| {
        let nics = usable.iter().filter_map(|nic| topology.nic(*nic));
        nics.map(|nic| nearness(topology, gpu, nic)).collect()
    };
    topology.gpus().iter().map(row).collect()
}

/// All of `among` that are nearest.
fn nearest(among: std::ops::Range<usize>, near: impl Fn(usize) -> Nearness) -> Vec<usize> {
    let best = among.clone().map(&near).min();
    among.filter(|it| Some(near(*it)) == best).collect()
}

/// Divides `nics` among `gpus` evenly: whole ones first, then each of what remains for a run of neighbours.
fn divide(nics: &[NicId], gpus: &[usize], nics_of: &mut [Vec<NicId>]) {
    if gpus.is_empty() {
        return;
    }
    let own = nics.len() / gpus.len();
    let rest = &nics[own * gpus.len()..];
    for (place, gpu) in gpus.iter().enumerate() {
        nics_of[*gpu].extend(&nics[place * own..][..own]);
        nics_of[*gpu].extend(rest.get(place * rest.len() / gpus.len()));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn divided(nics: u32, gpus: usize) -> Vec<Vec<u32>> {
        let mut nics_of = vec![Vec::new(); gpus];
        let (nics, all): (Vec<NicId>, Vec<usize>) = ((0..nics).map(NicId).collect(), (0..gpus).collect());
        divide(&nics, &all, &mut nics_of);
        nics_of.into_iter().map(|nics| nics.into_iter().map(|nic| nic.0).collect()).collect()
    }

    #[test]
    fn nics_are_divided_in_order() {
        assert_eq!(divided(4, 2), [[0, 1], [2, 3]]);
        assert_eq!(divided(1, 2), [[0], [0]]);
        assert_eq!(divided(2, 4), [[0], [0], [1], [1]]);
        assert_eq!(divided(3, 2), [[0, 2], [1, 2]]);
        assert_eq!(divided(0, 2), [[0u32; 0], []]);
    }

    proptest! {
        #[test]
        fn a_division_is_even_and_leaves_no_nic_out(nics in 1u32..70, gpus in 1usize..20) {
            let divided = divided(nics, gpus);
            let each = (nics as usize).div_ceil(gpus);
            prop_assert!(divided.iter().all(|nics| nics.len() == each));
            let mut users = vec![0u32; nics as usize];
            divided.iter().flatten().for_each(|nic| users[*nic as usize] += 1);
            prop_assert!(users.iter().all(|count| *count > 0));
            let shared: Vec<u32> = users.into_iter().filter(|count| *count > 1).collect();
            let spread = shared.iter().max().zip(shared.iter().min()).map_or(0, |(most, least)| most - least);
            prop_assert!(spread <= 1);
        }
    }
}
