//! Memory of other libraries: NumPy arrays, torch tensors, whatever speaks DLPack, the CUDA array interface or the buffer protocol.
//!
//! What is taken over is an address, a length, a device, and an object that keeps the memory where it is: it is held until the
//! registration has ended, by the last completion (KR-7). Peers may write into whatever is registered, so that memory which
//! Python calls read-only is refused rather than trusted. An array need not be in C order, but its bytes must be one block
//! without gaps: a region is a range of bytes.
#![allow(unsafe_code)]

use kvrail::memory::RawMemory;
use kvrail::{Device, Memory};
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyMemoryView, PyString, PyTuple};

use super::dlpack;
use super::error::Failure;
use super::memory::Allocation;

/// Memory of another library.
#[derive(Debug)]
pub(crate) struct Foreign {
    pub(crate) address: u64,
    pub(crate) nbytes: usize,
    pub(crate) device: Device,
    /// Keeps the memory where it is.
    pub(crate) owner: Py<PyAny>,
}

/// What memory an object stands for.
pub(crate) fn memory_of(object: &Bound<'_, PyAny>) -> PyResult<Memory> {
    if let Ok(allocation) = object.cast::<Allocation>() {
        return Ok(allocation.get().memory()?.clone());
    }
    let Foreign { address, nbytes, device, owner } = foreign(object)?;
    if nbytes == 0 {
        return Err(unsuitable(object, "it has no bytes").into());
    }
    if address == 0 || address.checked_add(nbytes as u64).is_none() {
        return Err(unsuitable(object, &format!("it claims {nbytes} bytes at {address:#x}")).into());
    }
    let raw = match device {
        // SAFETY: the object says that these bytes are its own and writable, and `owner` (an export of its buffer, or the
        // object itself) keeps them allocated until the memory is dropped. Rust code forms no reference to them: Python's
        // own accesses go through pointers of C.
        Device::Host => unsafe {
            RawMemory::new(std::ptr::with_exposed_provenance_mut(address as usize), nbytes)
        },
        // SAFETY: as above; the address is the device's and is not dereferenced here.
        device => unsafe { RawMemory::on_device(address, nbytes, device) },
    };
    Ok(raw.owned_by(owner).into())
}

fn foreign(object: &Bound<'_, PyAny>) -> PyResult<Foreign> {
    let has = |name| object.hasattr(name);
    if has("data_ptr")? && has("element_size")? && has("stride")? {
        return tensor(object);
    }
    if let Some(interface) = interface(object, "__cuda_array_interface__")? {
        return array(object, &interface, Some(cuda_device(object)?));
    }
    if let Some(interface) = interface(object, "__array_interface__")?
        && !interface.get_item("data")?.is_none_or(|data| data.is_none())
    {
        return array(object, &interface, None);
    }
    if has("__dlpack__")? {
        return dlpack::offered(object);
    }
    match PyMemoryView::from(object) {
        Ok(view) => buffer(object, &view),
        Err(_) => {
            let message = format!(
                "cannot register a {}: it is no array, tensor or buffer (__array_interface__, \
                 __cuda_array_interface__, __dlpack__, the buffer protocol)",
                name_of(object)
            );
            Err(PyTypeError::new_err(message))
        }
    }
}

/// How an array's elements lie.
#[derive(Debug)]
pub(crate) struct Layout {
    pub(crate) shape: Vec<i64>,
    /// In bytes; `None`: C order without gaps.
    pub(crate) strides: Option<Vec<i64>>,
    pub(crate) itemsize: usize,
}

impl Layout {
    /// The bytes of an array whose elements fill one block without gaps, in whatever order.
    pub(crate) fn nbytes(&self, object: &Bound<'_, PyAny>) -> PyResult<usize> {
        let Self { shape, strides, itemsize } = self;
        let elements = shape.iter().try_fold(1u64, |all, n| all.checked_mul(u64::try_from(*n).ok()?));
        let nbytes = elements.and_then(|n| usize::try_from(n).ok()?.checked_mul(*itemsize));
        let Some(nbytes) = nbytes else {
            return Err(unsuitable(object, &format!("its shape is {shape:?}")).into());
        };
        let Some(strides) = strides.as_ref().filter(|_| nbytes > 0) else { return Ok(nbytes) };
        let mut order: Vec<(i64, i64)> =
            strides.iter().zip(shape).filter(|(_, n)| **n != 1).map(|(s, n)| (*s, *n)).collect();
        order.sort_unstable();
        let mut expected = *itemsize as i64;
        let dense = order.into_iter().all(|(stride, extent)| {
            let fits = stride == expected;
            expected = expected.saturating_mul(extent);
            fits
        });
        if dense && strides.len() == shape.len() {
            return Ok(nbytes);
        }
        let what = format!("its bytes are not one block: shape {shape:?}, strides {strides:?} bytes");
        Err(unsuitable(object, &what)
            .hint("register the array that it is a view of, and address its parts by offset")
            .hint("or register a contiguous copy")
            .into())
    }
}

/// A torch tensor, by its methods; torch itself is never imported.
fn tensor(object: &Bound<'_, PyAny>) -> PyResult<Foreign> {
    let refused = |error: PyErr| -> PyErr {
        let failure = unsuitable(object, &format!("its memory cannot be named: {error}"));
        failure.hint("dense tensors of a storage can be registered").into()
    };
    let kind = object.getattr("device")?.getattr("type")?;
    let device = match kind.extract::<String>()?.as_str() {
        "cpu" => Device::Host,
        "cuda" => Device::Cuda(object.call_method0("get_device")?.extract()?),
        other => {
            let hint = "host memory and memory of CUDA devices can be registered";
            return Err(unsuitable(object, &format!("it is on {other}")).hint(hint).into());
        }
    };
    for (lazy, resolve) in [("is_conj", "resolve_conj"), ("is_neg", "resolve_neg")] {
        if object.hasattr(lazy)? && object.call_method0(lazy)?.is_truthy()? {
            let what = format!("its bytes are not its values: {lazy}()");
            return Err(unsuitable(object, &what).hint(format!("register tensor.{resolve}()")).into());
        }
    }
    let itemsize: usize = object.call_method0("element_size")?.extract()?;
    let strides: Vec<i64> = object.call_method0("stride").and_then(|s| s.extract()).map_err(refused)?;
    let shape: Vec<i64> = object.getattr("shape")?.extract()?;
    let strides = strides.iter().map(|stride| stride.saturating_mul(itemsize as i64)).collect();
    let nbytes = Layout { shape, strides: Some(strides), itemsize }.nbytes(object)?;
    let owner = pinned(object, device)?;
    let address = object.call_method0("data_ptr").and_then(|p| p.extract()).map_err(refused)?;
    Ok(Foreign { address, nbytes, device, owner })
}

/// A second handle to a tensor's storage. `tensor.set_` and `tensor.data = …` do not reach it; and since torch marks a storage that
/// NumPy sees as fixed, a view of it, where one can be had, makes `resize_` an error instead of freed memory.
fn pinned(object: &Bound<'_, PyAny>, device: Device) -> PyResult<Py<PyAny>> {
    let py = object.py();
    if !object.hasattr("detach")? {
        return Ok(object.clone().unbind());
    }
    let handle = object.call_method0("detach")?;
    if device != Device::Host || !handle.hasattr("numpy")? {
        return Ok(handle.unbind());
    }
    let view = handle.call_method0("numpy").or_else(|_| {
        // A type that NumPy does not know: bfloat16, float8.
        let bytes = py.import("torch")?.getattr("uint8")?;
        handle.call_method1("reshape", (-1,))?.call_method1("view", (bytes,))?.call_method0("numpy")
    });
    match view {
        Ok(view) => Ok(PyTuple::new(py, [handle, view])?.into_any().unbind()),
        Err(_) => Ok(handle.unbind()),
    }
}

/// An array interface of that name, if the object has one.
pub(crate) fn interface<'py>(object: &Bound<'py, PyAny>, name: &str) -> PyResult<Option<Bound<'py, PyDict>>> {
    match object.getattr_opt(name)? {
        Some(interface) => Ok(interface.cast_into::<PyDict>().ok()),
        None => Ok(None),
    }
}

/// NumPy's array interface, or its twin of CUDA.
fn array(
    object: &Bound<'_, PyAny>,
    interface: &Bound<'_, PyDict>,
    device: Option<Device>,
) -> PyResult<Foreign> {
    let typestr: String = required(object, interface, "typestr")?.extract()?;
    let holds_objects = typestr.get(1..2) == Some("O")
        || object.getattr_opt("dtype")?.is_some_and(|dtype| {
            dtype.getattr("hasobject").is_ok_and(|objects| objects.is_truthy().unwrap_or(false))
        });
    if holds_objects {
        return Err(unsuitable(object, "it holds Python objects, not bytes").into());
    }
    // Behind the size may stand a unit: <M8[ns].
    let digits = typestr.get(2..).map(|size| size.split_once('[').map_or(size, |(digits, _)| digits));
    let itemsize = digits.and_then(|size| size.parse::<usize>().ok());
    let Some(itemsize) = itemsize.filter(|_| !typestr.starts_with("|t")) else {
        return Err(unsuitable(object, &format!("its typestr is {typestr:?}")).into());
    };
    // Unicode elements count characters, of four bytes each.
    let itemsize = if typestr.get(1..2) == Some("U") { itemsize * 4 } else { itemsize };
    let (address, read_only): (u64, bool) = required(object, interface, "data")?.extract()?;
    if read_only {
        return Err(self::read_only(object));
    }
    let shape = required(object, interface, "shape")?.extract()?;
    let strides = interface.get_item("strides")?.filter(|strides| !strides.is_none());
    let strides = strides.map(|strides| strides.extract()).transpose()?;
    let nbytes = Layout { shape, strides, itemsize }.nbytes(object)?;
    let device = device.unwrap_or(Device::Host);
    Ok(Foreign { address, nbytes, device, owner: object.clone().unbind() })
}

fn required<'py>(
    object: &Bound<'py, PyAny>,
    interface: &Bound<'py, PyDict>,
    key: &str,
) -> PyResult<Bound<'py, PyAny>> {
    let value = interface.get_item(key)?;
    value.ok_or_else(|| unsuitable(object, &format!("its array interface has no {key:?}")).into())
}

/// Which GPU an array is on: the CUDA array interface does not say, the array's DLPack half or its `device` does.
fn cuda_device(object: &Bound<'_, PyAny>) -> PyResult<Device> {
    let ordinal: Option<u16> = if object.hasattr("__dlpack_device__")? {
        let (_, ordinal): (i32, u16) = object.call_method0("__dlpack_device__")?.extract()?;
        Some(ordinal)
    } else {
        let device = object.getattr_opt("device")?;
        device.and_then(|device| device.getattr("id").ok()?.extract().ok())
    };
    match ordinal {
        Some(ordinal) => Ok(Device::Cuda(ordinal)),
        None => Err(unsuitable(object, "it does not say which GPU it is on")
            .hint("give it __dlpack_device__, or register a torch tensor or CuPy array of the same memory")
            .into()),
    }
}

/// A buffer. The limited API of Python 3.10 has no buffers, ctypes has: its object holds the export and names the address.
fn buffer(object: &Bound<'_, PyAny>, view: &Bound<'_, PyMemoryView>) -> PyResult<Foreign> {
    let py = object.py();
    if view.getattr("readonly")?.is_truthy()? {
        return Err(read_only(object));
    }
    if !view.getattr("c_contiguous")?.is_truthy()? {
        let (shape, strides): (Vec<i64>, Vec<i64>) =
            (view.getattr("shape")?.extract()?, view.getattr("strides")?.extract()?);
        let itemsize = view.getattr("itemsize")?.extract()?;
        // Fails for all but dense arrays in another order, which `from_buffer` below refuses.
        Layout { shape, strides: Some(strides), itemsize }.nbytes(object)?;
    }
    let nbytes: usize = view.getattr("nbytes")?.extract()?;
    if nbytes == 0 {
        return Err(unsuitable(object, "it has no bytes").into());
    }
    let ctypes = py.import("ctypes")?;
    let array = ctypes.getattr("c_char")?.mul(nbytes)?.call_method1("from_buffer", (view,));
    let array = array.map_err(|error| PyErr::from(unsuitable(object, &error.value(py).to_string())))?;
    let address = ctypes.call_method1("addressof", (&array,))?.extract()?;
    Ok(Foreign { address, nbytes, device: Device::Host, owner: array.unbind() })
}

/// The error for memory that cannot be a region.
pub(crate) fn unsuitable(object: &Bound<'_, PyAny>, what: &str) -> Failure {
    Failure::new("UnsuitableMemory", format!("cannot register a {}: {what}", name_of(object)))
}

pub(crate) fn read_only(object: &Bound<'_, PyAny>) -> PyErr {
    unsuitable(object, "it is read-only, and peers may write to whatever is registered")
        .hint("register a writable copy: bytearray, numpy.array(…), tensor.clone()")
        .into()
}

/// What kind of object it is, for messages.
pub(crate) fn name_of(object: &Bound<'_, PyAny>) -> String {
    let kind = object.get_type();
    let name = kind.fully_qualified_name();
    name.map_or_else(|_| "object".into(), |name: Bound<'_, PyString>| name.to_string())
}
