//! Memory that kvrail allocates: what peers of the same host map.

use kvrail::Memory;
use kvrail::memory::{HugePages, Options, PrivateMemory, SharedMemory};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

use super::error::raised;
use crate::own::Own;

/// An allocation; lives as long as this object, its views, and whatever is registered of it.
#[pyclass(frozen, subclass, module = "kvrail")]
pub(crate) struct Allocation {
    memory: Own<Memory>,
}

#[pymethods]
impl Allocation {
    #[new]
    #[pyo3(signature = (nbytes, *, shared=true, huge_pages="prefer", prefault=false))]
    fn new(py: Python<'_>, nbytes: usize, shared: bool, huge_pages: &str, prefault: bool) -> PyResult<Self> {
        let huge_pages = match huge_pages {
            "never" => HugePages::Never,
            "prefer" => HugePages::Prefer,
            "require" => HugePages::Require,
            other => {
                let message = format!("huge_pages is \"never\", \"prefer\" or \"require\", not \"{other}\"");
                return Err(PyValueError::new_err(message));
            }
        };
        let options = Options { huge_pages, prefault };
        let memory = py.detach(|| match shared {
            true => SharedMemory::allocate(nbytes, options).map(Memory::from),
            false => PrivateMemory::allocate(nbytes, options).map(Memory::from),
        });
        Ok(Self { memory: Own::new(memory.map_err(raised)?) })
    }

    /// Address of the first byte.
    #[getter]
    fn address(&self) -> PyResult<u64> {
        Ok(self.memory()?.base())
    }

    /// Bytes.
    #[getter]
    fn nbytes(&self) -> PyResult<usize> {
        Ok(self.memory()?.len())
    }

    /// Its bytes, as NumPy reads them: `numpy.asarray` makes a view and keeps this object.
    #[getter(__array_interface__)]
    fn array_interface<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let memory = self.memory()?;
        let interface = PyDict::new(py);
        interface.set_item("version", 3)?;
        interface.set_item("shape", PyTuple::new(py, [memory.len()])?)?;
        interface.set_item("typestr", "|u1")?;
        interface.set_item("data", (memory.base(), false))?;
        Ok(interface)
    }
}

impl Allocation {
    pub(crate) fn memory(&self) -> PyResult<&Memory> {
        self.memory.get()
    }
}
