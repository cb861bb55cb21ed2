//! What a host is made of, as far as rails are concerned: NUMA nodes, the PCIe tree, GPUs and NICs; and which NICs
//! serve which GPU.
//!
//! [`Topology::read`] takes a [`Source`] (a sysfs root, a captured tree, or a topology that hwloc wrote) and gives a
//! plain model. What a source lacks or says badly is a fact of the model (`None`, and a [`Warning`] that names the
//! file), never an error: only a source that cannot be read at all is one. Nothing here opens a device.
//!
//! [`rails_of_gpus`] is the mapping's rule: a pure function of the model, with its contract above it. [`distance`] names
//! how far two PCI devices are from each other as `nvidia-smi topo` does.
//!
//! ```
//! use kvrail_topology::{Source, Topology};
//!
//! let topology = Topology::read(&Source::default())?;
//! for gpu in topology.gpus() {
//!     let rails = topology.rails_of_gpu(gpu.id);
//!     println!("{}: {} rails", gpu.address, rails.len());
//! }
//! # Ok::<(), kvrail_topology::TopologyError>(())
//! ```
#![forbid(unsafe_code)]

mod capture;
mod ceiling;
mod distance;
mod error;
mod files;
mod hwloc;
mod model;
mod pci;
mod rails;
mod rate;
mod sets;
mod source;
mod sysfs;

pub use ceiling::{Bound, Ceiling, host_memory_ceiling};
pub use distance::{Distance, Nearness, distance, nearness};
pub use error::TopologyError;
pub use model::{
    Bridge, Gpu, GpuId, LinkState, Nic, NicId, NicKind, NumaNode, Origin, RateSource, Topology, Warning,
};
pub use pci::{BadPciAddress, PciAddress, PciLink, PciPath, RootComplex};
pub use rails::{Assignment, Exclusion, GpuRails, Rail, rails_of_gpus, usable_nics};
pub use source::{Source, capture};
