//! Regions of this agent and of its peers.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use kvrail::memory::AccessError;
use kvrail::{Device, Generation, Incarnation, Memory, RegionId};
use parking_lot::Mutex;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyTuple};

use super::error::{Failure, raised};
use super::foreign::name_of;
use super::slices::{Side, Sliced, Slices, key};
use super::wait;
use crate::own::Own;

/// The registrations of one agent: they last until they are deregistered or the agent ends, whatever handles are dropped. A peer
/// would notice the end of a registration only as a failure, far from its cause.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    cells: Mutex<HashMap<(RegionId, Generation), Arc<RegionCell>>>,
}

impl Registry {
    pub(crate) fn add(self: &Arc<Self>, region: kvrail::Region, agent: Incarnation) -> Arc<RegionCell> {
        let (id, generation) = (region.id(), region.generation());
        let registry = Arc::downgrade(self);
        let cell = Arc::new(RegionCell { id, generation, agent, registry, region: Mutex::new(Some(region)) });
        self.cells.lock().insert((id, generation), cell.clone());
        cell
    }

    /// Ends all of them, as far as nothing uses them; the rest ends by itself.
    pub(crate) fn clear(&self) {
        let cells = std::mem::take(&mut *self.cells.lock());
        cells.into_values().for_each(|cell| drop(cell.take()));
    }
}

/// A registration that its agent, its Python handle, slices and plans share.
#[derive(Debug)]
pub(crate) struct RegionCell {
    pub(crate) id: RegionId,
    pub(crate) generation: Generation,
    /// The life of the agent that registered it.
    pub(crate) agent: Incarnation,
    registry: Weak<Registry>,
    /// Until it is deregistered.
    region: Mutex<Option<kvrail::Region>>,
}

impl RegionCell {
    pub(crate) fn is_registered(&self) -> bool {
        self.region.lock().is_some()
    }

    /// Takes the registration out, to end it.
    fn take(&self) -> Option<kvrail::Region> {
        let region = self.region.lock().take();
        if let Some(registry) = self.registry.upgrade() {
            registry.cells.lock().remove(&(self.id, self.generation));
        }
        region
    }

    /// A share of its memory, while it is registered. Bytes are copied without the lock.
    fn memory(&self) -> Result<Memory, Failure> {
        self.region.lock().as_ref().map(|region| region.memory().clone()).ok_or_else(|| self.gone())
    }

    /// Calls `with` on the regions of these cells, which stay registered meanwhile; an error if one is not.
    pub(crate) fn registered<T>(
        cells: &[Arc<Self>],
        with: impl FnOnce(&[&kvrail::Region]) -> T,
    ) -> Result<T, Failure> {
        // In one order, each once: two threads may name the same cells.
        let mut cells: Vec<&Arc<Self>> = cells.iter().collect();
        cells.sort_unstable_by_key(|cell| Arc::as_ptr(cell).addr());
        cells.dedup_by(|one, other| Arc::ptr_eq(one, other));
        let guards: Vec<_> = cells.iter().map(|cell| cell.region.lock()).collect();
        let mut regions = Vec::with_capacity(guards.len());
        for (guard, cell) in guards.iter().zip(cells) {
            regions.push(guard.as_ref().ok_or_else(|| cell.gone())?);
        }
        Ok(with(&regions))
    }

    pub(crate) fn gone(&self) -> Failure {
        Failure::new("AccessError", format!("{} was deregistered, or its agent was closed", self.id))
            .fact("region", self.id.0)
    }
}

/// Registered memory.
///
/// It stays registered, and kept alive, until `deregister` or the end of its agent. A context
/// manager: leaving it deregisters.
#[pyclass(frozen, weakref, module = "kvrail")]
pub(crate) struct Region {
    cell: Own<Arc<RegionCell>>,
    source: Py<PyAny>,
    address: u64,
    nbytes: u64,
    device: Device,
}

impl Region {
    pub(crate) fn new(
        registry: &Arc<Registry>,
        region: kvrail::Region,
        agent: Incarnation,
        source: Py<PyAny>,
    ) -> Self {
        let (address, nbytes, device) = (region.base(), region.len(), region.device());
        Self { cell: Own::new(registry.add(region, agent)), source, address, nbytes, device }
    }

    pub(crate) fn cell(&self) -> PyResult<&Arc<RegionCell>> {
        self.cell.get()
    }

    pub(crate) fn sliced(&self) -> PyResult<Sliced> {
        let cell = self.cell.get()?;
        if !cell.is_registered() {
            return Err(cell.gone().into());
        }
        Ok(Sliced { id: cell.id, nbytes: self.nbytes, side: Side::Local(vec![cell.clone()]) })
    }
}

#[pymethods]
impl Region {
    /// Number and generation.
    ///
    /// By it another process finds the region, with `peer.region(key)`.
    #[getter]
    fn key<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        let cell = self.cell.get()?;
        key(py, cell.id, cell.generation)
    }

    /// Bytes.
    #[getter]
    fn nbytes(&self) -> u64 {
        self.nbytes
    }

    /// Address of the first byte.
    #[getter]
    fn address(&self) -> u64 {
        self.address
    }

    /// Where the bytes are: "cpu", "cuda:0".
    #[getter]
    fn device(&self) -> String {
        device(self.device)
    }

    /// What was registered.
    #[getter]
    fn source(&self, py: Python<'_>) -> Py<PyAny> {
        self.source.clone_ref(py)
    }

    /// Whether it still is.
    #[getter]
    fn registered(&self) -> PyResult<bool> {
        Ok(self.cell.get()?.is_registered())
    }

    fn __getitem__(&self, item: &Bound<'_, PyAny>) -> PyResult<Slices> {
        self.sliced()?.item(item)
    }

    /// Blocks of one size by index.
    ///
    /// Block `i` begins at `start + i * stride`. Default: all that fit.
    /// `indices` may be a NumPy array; there is no Python loop over it.
    #[pyo3(signature = (block_bytes, indices=None, *, start=0, stride=None))]
    fn blocks(
        &self,
        block_bytes: u64,
        indices: Option<&Bound<'_, PyAny>>,
        start: u64,
        stride: Option<u64>,
    ) -> PyResult<Slices> {
        self.sliced()?.blocks(block_bytes, indices, start, stride)
    }

    /// Slices at these offsets, of one length or of one each.
    fn slices(&self, offsets: &Bound<'_, PyAny>, lengths: &Bound<'_, PyAny>) -> PyResult<Slices> {
        self.sliced()?.slices(offsets, lengths)
    }

    /// Copies bytes out.
    #[pyo3(signature = (offset=0, length=None))]
    fn read<'py>(&self, py: Python<'py>, offset: u64, length: Option<u64>) -> PyResult<Bound<'py, PyBytes>> {
        let cell = self.cell.get()?;
        let length = length.unwrap_or(self.nbytes.saturating_sub(offset));
        let memory = cell.memory()?;
        // Looked at before the bytes are allocated.
        match offset.checked_add(length) {
            Some(end) if end <= self.nbytes => {}
            _ => {
                return Err(raised(AccessError::OutOfRange { offset, len: length, memory_len: self.nbytes }));
            }
        }
        PyBytes::new_with(py, length as usize, |bytes| {
            py.detach(|| memory.read(offset as usize, bytes)).map_err(raised)
        })
    }

    /// Copies bytes in.
    #[pyo3(signature = (data, offset=0))]
    fn write(&self, py: Python<'_>, data: &Bound<'_, PyBytes>, offset: usize) -> PyResult<()> {
        let (memory, bytes) = (self.cell.get()?.memory()?, data.as_bytes());
        py.detach(|| memory.write(offset, bytes)).map_err(raised)
    }

    /// Ends the registration, and waits until nothing touches the memory any more.
    ///
    /// After `WaitTimeout` it goes on by itself, and the memory is kept until then. Twice is
    /// harmless.
    #[pyo3(signature = (timeout=30.0))]
    fn deregister(&self, py: Python<'_>, timeout: f64) -> PyResult<()> {
        let timeout: Duration = wait::timeout(timeout)?;
        let cell = self.cell.get()?;
        let ending = py.detach(|| cell.take().map(kvrail::Region::condemn));
        let Some(ending) = ending else { return Ok(()) };
        // Mostly nothing uses it; only a wait needs a thread of its own.
        let ended = if ending.is_ended() {
            py.detach(|| ending.wait(Duration::ZERO))
        } else {
            wait::aside(py, move || ending.wait(timeout))?
        };
        ended.map(drop).map_err(raised)
    }

    fn __enter__(this: Bound<'_, Self>) -> Bound<'_, Self> {
        this
    }

    #[pyo3(signature = (*_exception))]
    fn __exit__(&self, py: Python<'_>, _exception: &Bound<'_, PyTuple>) -> PyResult<()> {
        self.deregister(py, 30.0)
    }

    fn __len__(&self) -> usize {
        usize::try_from(self.nbytes).unwrap_or(usize::MAX)
    }

    fn __repr__(&self, py: Python<'_>) -> String {
        let (nbytes, device) = (self.nbytes, device(self.device));
        let source = name_of(self.source.bind(py));
        match self.cell.peek() {
            Some(cell) if cell.is_registered() => {
                format!("<kvrail.Region {}: {nbytes} bytes of a {source} on {device}>", cell.id.0)
            }
            Some(cell) => format!("<kvrail.Region {}: {nbytes} bytes, deregistered>", cell.id.0),
            None => format!("<kvrail.Region of another process: {nbytes} bytes>"),
        }
    }
}

/// Memory of a peer, as its metadata names it.
#[pyclass(frozen, eq, hash, module = "kvrail")]
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct RemoteRegion {
    peer_name: Arc<str>,
    incarnation: Incarnation,
    id: RegionId,
    generation: Generation,
    address: u64,
    nbytes: u64,
    device: Device,
}

impl RemoteRegion {
    pub(crate) fn new(peer: &kvrail::Peer, region: &kvrail::RemoteRegion) -> Self {
        Self {
            peer_name: peer.name().into(),
            incarnation: peer.incarnation(),
            id: region.id,
            generation: region.generation,
            address: region.base,
            nbytes: region.len,
            device: region.device,
        }
    }

    pub(crate) fn sliced(&self) -> Sliced {
        let side = Side::Remote {
            peer_name: self.peer_name.clone(),
            incarnation: self.incarnation,
            regions: vec![(self.id, self.generation)],
        };
        Sliced { id: self.id, nbytes: self.nbytes, side }
    }
}

#[pymethods]
impl RemoteRegion {
    /// Whose.
    #[getter]
    fn peer_name(&self) -> &str {
        &self.peer_name
    }

    /// Number and generation, as the peer's own `Region.key`.
    #[getter]
    fn key<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        key(py, self.id, self.generation)
    }

    /// Bytes.
    #[getter]
    fn nbytes(&self) -> u64 {
        self.nbytes
    }

    /// Address in the peer's process: to find a region by, not to be used here.
    #[getter]
    fn address(&self) -> u64 {
        self.address
    }

    /// Where the bytes are: "cpu", "cuda:0".
    #[getter]
    fn device(&self) -> String {
        device(self.device)
    }

    fn __getitem__(&self, item: &Bound<'_, PyAny>) -> PyResult<Slices> {
        self.sliced().item(item)
    }

    /// Blocks of one size by index.
    ///
    /// Block `i` begins at `start + i * stride`. Default: all that fit.
    #[pyo3(signature = (block_bytes, indices=None, *, start=0, stride=None))]
    fn blocks(
        &self,
        block_bytes: u64,
        indices: Option<&Bound<'_, PyAny>>,
        start: u64,
        stride: Option<u64>,
    ) -> PyResult<Slices> {
        self.sliced().blocks(block_bytes, indices, start, stride)
    }

    /// Slices at these offsets, of one length or of one each.
    fn slices(&self, offsets: &Bound<'_, PyAny>, lengths: &Bound<'_, PyAny>) -> PyResult<Slices> {
        self.sliced().slices(offsets, lengths)
    }

    fn __len__(&self) -> usize {
        usize::try_from(self.nbytes).unwrap_or(usize::MAX)
    }

    fn __repr__(&self) -> String {
        let Self { peer_name, id, nbytes, device: on, .. } = self;
        format!("<kvrail.RemoteRegion {} of {peer_name}: {nbytes} bytes on {}>", id.0, device(*on))
    }
}

/// A device as torch writes it.
fn device(device: Device) -> String {
    match device {
        Device::Host => "cpu".into(),
        Device::Cuda(ordinal) => format!("cuda:{ordinal}"),
    }
}

/// A region's key, or only its number.
pub(crate) fn read_key(object: &Bound<'_, PyAny>) -> PyResult<(RegionId, Option<Generation>)> {
    if let Ok(number) = object.extract::<u32>() {
        return Ok((RegionId(number), None));
    }
    // A list too: keys often come out of JSON.
    match object.extract::<Vec<u32>>().as_deref() {
        Ok(&[number, generation]) => Ok((RegionId(number), Some(Generation(generation)))),
        _ => Err(PyValueError::new_err("a region is named by its key, (number, generation), or its number")),
    }
}
