//! Descriptor lists.

use kvrail_nixl::list::{AnyList, Desc, List, MemoryKind, RegDesc, RemoteDesc, Wire};
use pyo3::exceptions::{PyIndexError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList, PyString, PyTuple};

use super::arrays;
use super::enums::Memory;
use super::errors::raised;
use super::text::Blob;

/// Descriptors that a list may be begun with.
const INITIAL_MAX: i64 = 1 << 28;

/// A descriptor from and to Python.
trait Python3: Wire + Clone + Default + PartialEq {
    /// Numbers and texts in its tuple.
    const WIDTH: usize;
    fn tuple<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>>;
}

impl Python3 for Desc {
    const WIDTH: usize = 3;
    fn tuple<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        (self.addr, self.len, self.device).into_pyobject(py)
    }
}

impl Python3 for RegDesc {
    const WIDTH: usize = 4;
    fn tuple<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        let Desc { addr, len, device } = self.desc;
        (addr, len, device, PyBytes::new(py, &self.meta)).into_pyobject(py)
    }
}

impl Python3 for RemoteDesc {
    const WIDTH: usize = 4;
    fn tuple<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        let Desc { addr, len, device } = self.desc;
        (addr, len, device, PyString::new(py, &String::from_utf8_lossy(&self.agent))).into_pyobject(py)
    }
}

/// A number of a descriptor.
fn number(tuple: &Bound<'_, PyTuple>, at: usize) -> PyResult<u64> {
    let item = tuple.get_item(at)?;
    item.extract().map_err(|_| {
        let shown = item.repr().map_or_else(|_| "?".into(), |text| text.to_string());
        PyTypeError::new_err(format!(
            "element {at} of a descriptor is an unsigned 64-bit integer, not {shown}"
        ))
    })
}

/// A descriptor of a tuple that is long enough; the error of a short one is Python's.
fn parse<D: Python3>(tuple: &Bound<'_, PyTuple>) -> PyResult<D> {
    // Its length first: a short tuple is an IndexError whatever its elements are.
    tuple.get_item(D::WIDTH - 1)?;
    let desc = Desc { addr: number(tuple, 0)?, len: number(tuple, 1)?, device: number(tuple, 2)? };
    let text = if D::WIDTH > 3 { tuple.get_item(3)?.extract::<Blob>()?.0 } else { Vec::new() };
    Ok(D::of(desc, &text))
}

fn parse_all<D: Python3>(list: &Bound<'_, PyList>) -> PyResult<Vec<D>> {
    let one = |item: Bound<'_, PyAny>| {
        let tuple = item
            .cast::<PyTuple>()
            .map_err(|_| PyTypeError::new_err("Each descriptor must be a tuple when provided as a list"))?;
        if tuple.len() != D::WIDTH {
            return Err(PyValueError::new_err(format!(
                "Each descriptor tuple must have exactly {} elements, not {}",
                D::WIDTH,
                tuple.len()
            )));
        }
        parse(tuple)
    };
    list.iter().map(one).collect()
}

/// What a list is begun with: a number of empty descriptors, a list of tuples, or an Nx3 array.
fn begin<D: Python3>(kind: Memory, descs: Option<&Bound<'_, PyAny>>) -> PyResult<List<D>> {
    let kind = MemoryKind::from(kind);
    let Some(descs) = descs else { return Ok(List::new(kind)) };
    if let Ok(list) = descs.cast::<PyList>() {
        return Ok(List { kind, descs: parse_all(list)? });
    }
    if let Ok(count) = descs.extract::<i64>() {
        let Some(count) = usize::try_from(count).ok().filter(|_| count <= INITIAL_MAX) else {
            return Err(PyValueError::new_err(format!(
                "a list begins with 0 to {INITIAL_MAX} descriptors, not {count}"
            )));
        };
        return Ok(List { kind, descs: vec![D::default(); count] });
    }
    if arrays::is_array(descs)? && D::SHAPE != RemoteDesc::SHAPE {
        let rows = arrays::rows::<3>(descs)?.into_iter();
        let descs = rows.map(|[addr, len, device]| D::of(Desc { addr, len, device }, &[]));
        return Ok(List { kind, descs: descs.collect() });
    }
    let name = descs.get_type().name()?;
    Err(PyTypeError::new_err(format!(
        "descs is a list of {}-tuples{}, not {name}",
        D::WIDTH,
        if D::SHAPE == RemoteDesc::SHAPE { "" } else { " or a Nx3 numpy array" }
    )))
}

fn at<D>(list: &List<D>, index: usize) -> PyResult<usize> {
    if index < list.descs.len() {
        return Ok(index);
    }
    Err(PyIndexError::new_err(format!(
        "index {index} is out of range: the list has {} descriptors",
        list.descs.len()
    )))
}

/// An index: pybind takes no negative ones.
fn index_of(object: &Bound<'_, PyAny>) -> PyResult<usize> {
    let index: i64 =
        object.extract().map_err(|_| PyTypeError::new_err(format!("indices are integers, not {object}")))?;
    usize::try_from(index).map_err(|_| PyTypeError::new_err(format!("indices are not negative: {index}")))
}

macro_rules! list_class {
    ($(#[$doc:meta])* $rust:ident, $python:literal, $desc:ty, { $($more:tt)* }) => {
        $(#[$doc])*
        #[pyclass(name = $python, module = "kvrail.nixl._bindings", weakref)]
        #[derive(Clone, Debug)]
        pub(crate) struct $rust {
            pub(super) list: List<$desc>,
        }

        #[pymethods]
        impl $rust {
            #[new]
            #[pyo3(signature = (r#type, descs=None, *, init_size=None))]
            fn new(
                r#type: Memory,
                descs: Option<&Bound<'_, PyAny>>,
                init_size: Option<&Bound<'_, PyAny>>,
            ) -> PyResult<Self> {
                Ok(Self { list: begin(r#type, descs.or(init_size))? })
            }

            /// The kind of memory.
            #[pyo3(name = "getType")]
            fn get_type(&self) -> Memory {
                self.list.kind.into()
            }

            /// Number of descriptors.
            #[pyo3(name = "descCount")]
            fn desc_count(&self) -> usize {
                self.list.descs.len()
            }

            /// Whether there is none.
            #[pyo3(name = "isEmpty")]
            fn is_empty(&self) -> bool {
                self.list.descs.is_empty()
            }

            fn __len__(&self) -> usize {
                self.list.descs.len()
            }

            fn __eq__(&self, other: &Bound<'_, PyAny>) -> bool {
                other.cast::<Self>().is_ok_and(|other| other.borrow().list == self.list)
            }

            fn __getitem__<'py>(&self, py: Python<'py>, index: &Bound<'_, PyAny>) -> PyResult<Bound<'py, PyTuple>> {
                let index = index_of(index)?;
                self.list.descs[at(&self.list, index)?].tuple(py)
            }

            fn __setitem__(&mut self, index: &Bound<'_, PyAny>, desc: &Bound<'_, PyTuple>) -> PyResult<()> {
                let index = index_of(index)?;
                let index = at(&self.list, index)?;
                self.list.descs[index] = parse(desc)?;
                Ok(())
            }

            /// Appends a descriptor.
            #[pyo3(name = "addDesc")]
            fn add_desc(&mut self, desc: &Bound<'_, PyTuple>) -> PyResult<()> {
                self.list.descs.push(parse(desc)?);
                Ok(())
            }

            /// Appends a descriptor.
            fn append(&mut self, desc: &Bound<'_, PyTuple>) -> PyResult<()> {
                self.add_desc(desc)
            }

            /// Removes the descriptor at that index.
            #[pyo3(name = "remDesc")]
            fn rem_desc(&mut self, index: i64) -> PyResult<()> {
                let index = usize::try_from(index).unwrap_or(usize::MAX);
                if index >= self.list.descs.len() {
                    return Err(PyIndexError::new_err(format!("Index is out of range: the list has {} descriptors", self.list.descs.len())));
                }
                self.list.descs.remove(index);
                Ok(())
            }

            /// Removes all.
            fn clear(&mut self) {
                self.list.descs.clear();
            }

            /// Prints the list on standard output.
            fn print(&self, py: Python<'_>) -> PyResult<()> {
                py.import("builtins")?.call_method1("print", (self.__str__(),))?;
                Ok(())
            }

            fn __str__(&self) -> String {
                let mut text = format!("{} of {} descriptors in {}", $python, self.list.descs.len(), self.list.kind.name());
                for (index, desc) in self.list.descs.iter().take(SHOWN).enumerate() {
                    let Desc { addr, len, device } = desc.desc();
                    text.push_str(&format!("\n  {index}: {len} bytes at {addr:#x} of device {device}"));
                    if let Some(more) = desc.text().filter(|more| !more.is_empty()) {
                        text.push_str(&format!(", {:?}", String::from_utf8_lossy(more)));
                    }
                }
                if self.list.descs.len() > SHOWN {
                    text.push_str(&format!("\n  and {} more", self.list.descs.len() - SHOWN));
                }
                text
            }

            /// The list as bytes, for `deserialize_descs`.
            fn to_bytes<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
                PyBytes::new(py, &self.list.to_bytes())
            }

            /// A list from bytes of `to_bytes`, or of NIXL's own serialisation.
            #[staticmethod]
            fn from_bytes(data: &[u8]) -> PyResult<Self> {
                let list = List::from_bytes(data).map_err(|error| PyValueError::new_err(error.to_string()))?;
                Ok(Self { list })
            }

            fn __reduce__<'py>(slf: &Bound<'py, Self>) -> PyResult<(Bound<'py, PyAny>, (Bound<'py, PyBytes>,))> {
                let py = slf.py();
                Ok((py.get_type::<Self>().getattr("from_bytes")?, (slf.borrow().to_bytes(py),)))
            }

            $($more)*
        }
    };
}

/// Descriptors of a list that are shown.
const SHOWN: usize = 32;

fn position<D: Python3>(py: Python<'_>, list: &List<D>, desc: &Bound<'_, PyTuple>) -> PyResult<usize> {
    let desc: D = parse(desc)?;
    list.descs.iter().position(|one| *one == desc).ok_or_else(|| {
        let Desc { addr, len, device } = desc.desc();
        let what = format!("the list has no descriptor of {len} bytes at {addr:#x} of device {device}");
        raised(py, &kvrail_nixl::Error::new(kvrail_nixl::Status::NotFound, what))
    })
}

list_class! {
    /// Memory to be moved: (address, length, device).
    XferDList, "nixlXferDList", Desc, {
        /// The index of a descriptor.
        fn index(&self, py: Python<'_>, desc: &Bound<'_, PyTuple>) -> PyResult<usize> {
            position(py, &self.list, desc)
        }
    }
}

list_class! {
    /// Memory to be registered: (address, length, device, what the backend wants to know).
    RegDList, "nixlRegDList", RegDesc, {
        /// The index of a descriptor.
        fn index(&self, py: Python<'_>, desc: &Bound<'_, PyTuple>) -> PyResult<usize> {
            position(py, &self.list, desc)
        }

        /// The same memory, to be moved.
        fn trim(&self) -> XferDList {
            XferDList { list: self.list.trim() }
        }
    }
}

list_class! {
    /// Memory of named agents: (address, length, device, agent).
    RemoteDList, "nixlRemoteDList", RemoteDesc, {}
}

/// A descriptor list as bytes.
#[pyfunction]
fn serialize_descs<'py>(descs: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    let known = descs.is_instance_of::<XferDList>()
        || descs.is_instance_of::<RegDList>()
        || descs.is_instance_of::<RemoteDList>();
    if !known {
        return Err(PyTypeError::new_err(format!(
            "a descriptor list expected, not {}",
            descs.get_type().name()?
        )));
    }
    descs.call_method0("to_bytes")
}

/// A descriptor list from bytes of `serialize_descs`, or of NIXL's own serialisation.
#[pyfunction]
fn deserialize_descs<'py>(py: Python<'py>, data: &[u8]) -> PyResult<Bound<'py, PyAny>> {
    let list = AnyList::from_bytes(data).map_err(|error| PyValueError::new_err(error.to_string()))?;
    Ok(match list {
        AnyList::Xfer(list) => Bound::new(py, XferDList { list })?.into_any(),
        AnyList::Reg(list) => Bound::new(py, RegDList { list })?.into_any(),
        AnyList::Remote(list) => Bound::new(py, RemoteDList { list })?.into_any(),
    })
}

pub(super) fn add(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<XferDList>()?;
    module.add_class::<RegDList>()?;
    module.add_class::<RemoteDList>()?;
    module.add_function(wrap_pyfunction!(serialize_descs, module)?)?;
    module.add_function(wrap_pyfunction!(deserialize_descs, module)?)
}
