//! Slices: parts of regions, in the order in which they are paired; built from whole arrays of numbers.
//!
//! Slices remember whose regions they are of, in which life and generation, and local ones keep their region registered. So slices of
//! another agent, of a restarted peer, or of a region that was replaced are errors when a plan is made, never other bytes (KR-9, KR-11).

use std::borrow::Cow;
use std::collections::HashSet;
use std::sync::Arc;

use kvrail::memory::AccessError;
use kvrail::{Descriptors, Generation, Incarnation, Peer, RegionId};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PySlice, PyTuple};

use super::error::{Failure, raised};
use super::integers::{self, Integers};
use super::region::{Region, RegionCell, RemoteRegion};
use crate::own::Own;

/// An ordered list of slices of one side.
///
/// Slice `i` of one side of a plan is paired with slice `i` of the other.
/// Made by `region[start:stop]`, `region.blocks(…)` and `region.slices(…)`; joined by `+` and
/// `concat`.
#[pyclass(frozen, module = "kvrail")]
pub(crate) struct Slices {
    list: Descriptors,
    side: Own<Side>,
}

/// A region's number and its tenant.
pub(crate) type Key = (RegionId, Generation);

/// Whose regions the slices are of.
#[derive(Clone, Debug)]
pub(crate) enum Side {
    /// This process's; they stay registered as long as nobody deregisters them.
    Local(Vec<Arc<RegionCell>>),
    /// A peer's, in the life and the generations that are meant.
    Remote { peer_name: Arc<str>, incarnation: Incarnation, regions: Vec<Key> },
}

/// A region whose slices are taken.
pub(crate) struct Sliced {
    pub(crate) id: RegionId,
    pub(crate) nbytes: u64,
    pub(crate) side: Side,
}

impl Sliced {
    fn with(self, list: Descriptors) -> Slices {
        Slices { list, side: Own::new(self.side) }
    }

    fn check(&self, offset: u64, length: u64) -> PyResult<()> {
        match offset.checked_add(length) {
            Some(end) if end <= self.nbytes => Ok(()),
            _ => Err(raised(AccessError::OutOfRange { offset, len: length, memory_len: self.nbytes })),
        }
    }

    /// All of it, as one slice.
    fn whole_list(&self) -> Descriptors {
        let mut list = Descriptors::with_capacity(1);
        list.push(self.id, 0, self.nbytes);
        list
    }

    /// `region[start:stop]`, exactly: bounds are not clamped, for a short block would be a wrong copy.
    pub(crate) fn item(self, key: &Bound<'_, PyAny>) -> PyResult<Slices> {
        let Ok(key) = key.cast::<PySlice>() else {
            return Err(PyTypeError::new_err("a region is sliced: region[start:stop], in bytes"));
        };
        if !key.getattr("step")?.is_none() {
            let message = "a region has no step; region.blocks(…, stride=…) takes regular parts";
            return Err(PyValueError::new_err(message));
        }
        let bound = |name, otherwise| -> PyResult<u64> {
            let bound = key.getattr(name)?;
            if bound.is_none() { Ok(otherwise) } else { not_negative(&bound, name) }
        };
        let (start, stop) = (bound("start", 0)?, bound("stop", self.nbytes)?);
        let Some(length) = stop.checked_sub(start).filter(|length| *length > 0) else {
            return Err(PyValueError::new_err(format!("region[{start}:{stop}] has no bytes")));
        };
        self.check(start, length)?;
        let mut list = Descriptors::with_capacity(1);
        list.push(self.id, start, length);
        Ok(self.with(list))
    }

    /// Blocks of one size, by index: block `i` begins at `start + i * stride`.
    pub(crate) fn blocks(
        self,
        block_bytes: u64,
        indices: Option<&Bound<'_, PyAny>>,
        start: u64,
        stride: Option<u64>,
    ) -> PyResult<Slices> {
        let stride = stride.unwrap_or(block_bytes);
        if block_bytes == 0 {
            return Err(PyValueError::new_err("a block has at least one byte"));
        }
        if stride < block_bytes {
            let message = format!("blocks of {block_bytes} bytes overlap at a stride of {stride}");
            return Err(PyValueError::new_err(message));
        }
        let mut list = Descriptors::new();
        let Some(indices) = indices else {
            self.check(start, block_bytes)?;
            let count = (self.nbytes - start - block_bytes) / stride + 1;
            let count = u32::try_from(count)
                .map_err(|_| PyValueError::new_err(format!("{count} blocks are too many for one list")))?;
            list.push_strided(self.id, start, block_bytes, stride, count);
            return Ok(self.with(list));
        };
        let indices = match Integers::read(indices, "indices")? {
            Integers::One(index) => vec![index],
            Integers::Many(indices) => indices,
        };
        // Neighbours become one run, which costs the planner one step.
        let mut rest = &indices[..];
        while let Some(first) = rest.first() {
            let run = rest.windows(2).take_while(|pair| pair[0].checked_add(1) == Some(pair[1])).count() + 1;
            let run = run.min(u32::MAX as usize);
            let offset_of = |index: u64| index.checked_mul(stride).and_then(|n| n.checked_add(start));
            let (first, last) = (offset_of(*first), offset_of(rest[run - 1]));
            self.check(last.unwrap_or(u64::MAX), block_bytes)?;
            if let Some(first) = first {
                list.push_strided(self.id, first, block_bytes, stride, run as u32);
            }
            rest = &rest[run..];
        }
        Ok(self.with(list))
    }

    /// Slices at any offsets, of one length or of one each.
    pub(crate) fn slices(self, offsets: &Bound<'_, PyAny>, lengths: &Bound<'_, PyAny>) -> PyResult<Slices> {
        let offsets = integers::many(offsets, "offsets")?;
        let lengths = Integers::read(lengths, "lengths")?;
        if let Integers::Many(lengths) = &lengths
            && lengths.len() != offsets.len()
        {
            let message = format!("{} offsets and {} lengths", offsets.len(), lengths.len());
            return Err(PyValueError::new_err(message));
        }
        let mut list = Descriptors::with_capacity(offsets.len());
        for (i, offset) in offsets.iter().enumerate() {
            let length = match &lengths {
                Integers::One(length) => *length,
                Integers::Many(lengths) => lengths[i],
            };
            if length == 0 {
                return Err(PyValueError::new_err(format!("slice {i} has no bytes")));
            }
            self.check(*offset, length)?;
            list.push(self.id, *offset, length);
        }
        Ok(self.with(list))
    }
}

fn not_negative(value: &Bound<'_, PyAny>, name: &str) -> PyResult<u64> {
    let number: i128 = value.extract()?;
    u64::try_from(number).map_err(|_| PyValueError::new_err(format!("{name} is {number}: not in 0..2**64")))
}

#[pymethods]
impl Slices {
    fn __len__(&self) -> usize {
        usize::try_from(self.list.len()).unwrap_or(usize::MAX)
    }

    /// Sum of the slices' lengths.
    #[getter]
    fn nbytes(&self) -> u64 {
        self.list.bytes()
    }

    fn __add__(&self, other: &Bound<'_, Slices>) -> PyResult<Self> {
        join(&[self, other.get()])
    }

    fn __repr__(&self) -> String {
        let of = match self.side.peek() {
            Some(Side::Local(regions)) => match &regions[..] {
                [region] => format!("{} of this process", region.id),
                regions => format!("{} regions of this process", regions.len()),
            },
            Some(Side::Remote { peer_name, regions, .. }) => match &regions[..] {
                [(region, _)] => format!("{region} of {peer_name}"),
                regions => format!("{} regions of {peer_name}", regions.len()),
            },
            None => "another process".into(),
        };
        format!("<kvrail.Slices: {} slices, {} bytes, of {of}>", self.list.len(), self.list.bytes())
    }
}

/// Several lists as one, in order.
#[pyfunction]
pub(crate) fn concat(lists: &Bound<'_, PyAny>) -> PyResult<Slices> {
    let lists: Vec<Bound<'_, Slices>> =
        lists.try_iter()?.map(|list| Ok(list?.cast_into::<Slices>()?)).collect::<PyResult<_>>()?;
    let lists: Vec<&Slices> = lists.iter().map(Bound::get).collect();
    join(&lists)
}

fn join(lists: &[&Slices]) -> PyResult<Slices> {
    let Some(first) = lists.first() else { return Err(PyValueError::new_err("there is no list to join")) };
    let mut list = Descriptors::with_capacity(lists.iter().map(|part| part.list.runs().len()).sum());
    let mut side = match first.side.get()? {
        Side::Local(_) => Side::Local(Vec::new()),
        Side::Remote { peer_name, incarnation, .. } => {
            Side::Remote { peer_name: peer_name.clone(), incarnation: *incarnation, regions: Vec::new() }
        }
    };
    let mut seen = HashSet::new();
    for part in lists {
        for run in part.list.runs() {
            list.push_strided(run.region, run.offset, run.len, run.stride, run.count);
        }
        match (&mut side, part.side.get()?) {
            (Side::Local(all), Side::Local(more)) => {
                all.extend(
                    more.iter().filter(|cell| seen.insert((cell.agent, cell.id, cell.generation))).cloned(),
                );
            }
            (
                Side::Remote { incarnation, regions, .. },
                Side::Remote { incarnation: other, regions: more, .. },
            ) if incarnation == other => {
                regions
                    .extend(more.iter().filter(|(id, generation)| seen.insert((*other, *id, *generation))));
            }
            _ => return Err(PyValueError::new_err("slices of one list are all local, or all of one peer")),
        }
    }
    let agents: HashSet<_> = match &side {
        Side::Local(cells) => cells.iter().map(|cell| cell.agent).collect(),
        Side::Remote { .. } => HashSet::new(),
    };
    if agents.len() > 1 {
        return Err(PyValueError::new_err("slices of one list are of one agent's regions"));
    }
    Ok(Slices { list, side: Own::new(side) })
}

/// One side of a plan as it was given: slices, or a whole region. Lists are long and stay where they are.
pub(crate) struct Given<'a> {
    list: Cow<'a, Descriptors>,
    side: Cow<'a, Side>,
}

impl<'a> Given<'a> {
    pub(crate) fn read(object: &'a Bound<'_, PyAny>) -> PyResult<Self> {
        if let Ok(slices) = object.cast::<Slices>() {
            let slices = slices.get();
            return Ok(Self { list: Cow::Borrowed(&slices.list), side: Cow::Borrowed(slices.side.get()?) });
        }
        let whole = if let Ok(region) = object.cast::<Region>() {
            region.get().sliced()?
        } else if let Ok(region) = object.cast::<RemoteRegion>() {
            region.get().sliced()
        } else {
            let kind = super::foreign::name_of(object);
            let message =
                format!("a plan pairs slices of regions (region[a:b], region.blocks(…)), not a {kind}");
            return Err(PyTypeError::new_err(message));
        };
        let list = whole.whole_list();
        Ok(Self { list: Cow::Owned(list), side: Cow::Owned(whole.side) })
    }

    /// The slices and their regions, which have to be this agent's.
    pub(crate) fn local(&self, agent: Incarnation) -> Result<(&Descriptors, &[Arc<RegionCell>]), Failure> {
        match &*self.side {
            Side::Local(cells) => match cells.iter().find(|cell| cell.agent != agent) {
                Some(cell) => Err(Failure::new("PrepareError", format!("{} is another agent's", cell.id))
                    .hint("slice regions that this agent registered")
                    .fact("region", cell.id.0)),
                None => Ok((&self.list, cells)),
            },
            Side::Remote { peer_name, .. } => {
                let message = format!("the local slices are of {peer_name}'s regions");
                Err(Failure::new("PrepareError", message).hint("the order is prepare(peer, local, remote)"))
            }
        }
    }

    /// The slices and their regions, which have to be this peer's.
    pub(crate) fn remote(&self, peer: &Peer) -> Result<(&Descriptors, &[Key]), Failure> {
        let refused = |message: String| Failure::new("PrepareError", message).fact("peer_name", peer.name());
        match &*self.side {
            Side::Local(_) => Err(refused("the remote slices are of this process's regions".into())
                .hint("the order is prepare(peer, local, remote)")),
            Side::Remote { incarnation, peer_name, .. } if *incarnation != peer.incarnation() => {
                let name = peer.name();
                let who = if **peer_name == *name {
                    format!("{name} in an earlier life")
                } else {
                    format!("{peer_name}, not {name}")
                };
                Err(refused(format!("the remote slices are of {who}"))
                    .hint("take the slices from the regions of the peer that the plan is for"))
            }
            Side::Remote { regions, .. } => Ok((&self.list, regions)),
        }
    }
}

/// `(number, generation)`: how a region is named to another process.
pub(crate) fn key<'py>(
    py: Python<'py>,
    id: RegionId,
    generation: Generation,
) -> PyResult<Bound<'py, PyTuple>> {
    PyTuple::new(py, [id.0, generation.0])
}
