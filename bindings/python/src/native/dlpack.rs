//! Reading what a DLPack capsule says of a tensor.
//!
//! The capsule is never consumed: it is kept, and with it the tensor; its own destructor gives the tensor back to the producer when
//! the last registration of it has ended.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_void};

use kvrail::Device;
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::{PyCapsule, PyCapsuleMethods, PyDict};

use super::foreign::{Foreign, Layout, unsuitable};

const LEGACY: &CStr = c"dltensor";
const VERSIONED: &CStr = c"dltensor_versioned";
/// The newest major version whose layout this module knows.
const MAJOR: u32 = 1;

const FLAG_READ_ONLY: u64 = 1;
const FLAG_COPIED: u64 = 2;

const CPU: i32 = 1;
const CUDA: i32 = 2;
const CUDA_HOST: i32 = 3;

/// Dimensions that are believed; more are damage.
const DIMENSIONS_MAX: i32 = 64;

/// `DLTensor` of dlpack.h, the same in every version.
#[repr(C)]
#[derive(Clone, Copy)]
struct Tensor {
    data: *mut c_void,
    device_type: i32,
    device_id: i32,
    dimensions: i32,
    code: u8,
    bits: u8,
    lanes: u16,
    shape: *const i64,
    strides: *const i64,
    byte_offset: u64,
}

/// `DLManagedTensorVersioned`, up to and with the tensor.
#[repr(C)]
#[derive(Clone, Copy)]
struct Versioned {
    major: u32,
    minor: u32,
    manager: *mut c_void,
    deleter: *const c_void,
    flags: u64,
    tensor: Tensor,
}

/// What an object offers by `__dlpack__`.
pub(crate) fn offered(object: &Bound<'_, PyAny>) -> PyResult<Foreign> {
    let py = object.py();
    let arguments = PyDict::new(py);
    arguments.set_item("max_version", (MAJOR, 0))?;
    arguments.set_item("copy", false)?;
    let capsule = match object.call_method("__dlpack__", (), Some(&arguments)) {
        // Producers from before version 1 know neither argument.
        Err(error) if error.is_instance_of::<PyTypeError>(py) => object.call_method0("__dlpack__")?,
        other => other?,
    };
    let capsule = capsule.cast_into::<PyCapsule>()?;
    let (tensor, flags) = read(object, &capsule)?;
    if flags & FLAG_READ_ONLY != 0 {
        return Err(super::foreign::read_only(object));
    }
    if flags & FLAG_COPIED != 0 {
        return Err(unsuitable(object, "its __dlpack__ hands out a copy, which nobody else would see").into());
    }
    let device = match (tensor.device_type, u16::try_from(tensor.device_id)) {
        (CPU | CUDA_HOST, _) => Device::Host,
        (CUDA, Ok(ordinal)) => Device::Cuda(ordinal),
        (kind, _) => {
            let what = format!("it is on DLPack device {kind}:{}", tensor.device_id);
            let hint = "host memory and memory of CUDA devices can be registered";
            return Err(unsuitable(object, &what).hint(hint).into());
        }
    };
    let layout = layout(object, &tensor)?;
    let nbytes = layout.nbytes(object)?;
    let address = (tensor.data.addr() as u64).wrapping_add(tensor.byte_offset);
    Ok(Foreign { address, nbytes, device, owner: capsule.into_any().unbind() })
}

/// The tensor in a capsule that nobody has consumed, and its flags.
fn read(object: &Bound<'_, PyAny>, capsule: &Bound<'_, PyCapsule>) -> PyResult<(Tensor, u64)> {
    if capsule.is_valid_checked(Some(VERSIONED)) {
        let pointer = capsule.pointer_checked(Some(VERSIONED))?.cast::<Versioned>().as_ptr();
        // SAFETY: a capsule of this name points to a `DLManagedTensorVersioned` as long as it is not consumed, and this one was
        // made for this call. Every major version begins with its number.
        let major = unsafe { pointer.cast::<u32>().read_unaligned() };
        if major != MAJOR {
            return Err(unsuitable(object, &format!("its DLPack is of version {major}, not {MAJOR}")).into());
        }
        // SAFETY: as above, and the major version says that the layout is this one.
        let versioned = unsafe { pointer.read_unaligned() };
        return Ok((versioned.tensor, versioned.flags));
    }
    if capsule.is_valid_checked(Some(LEGACY)) {
        let pointer = capsule.pointer_checked(Some(LEGACY))?.cast::<Tensor>().as_ptr();
        // SAFETY: a capsule of this name points to a `DLManagedTensor`, which begins with its tensor, as long as it is not
        // consumed, and this one was made for this call.
        return Ok((unsafe { pointer.read_unaligned() }, 0));
    }
    Err(unsuitable(object, "its __dlpack__ hands out something that is no DLPack capsule").into())
}

fn layout(object: &Bound<'_, PyAny>, tensor: &Tensor) -> PyResult<Layout> {
    let bits = u64::from(tensor.bits) * u64::from(tensor.lanes);
    if bits == 0 || bits % 8 != 0 {
        return Err(unsuitable(object, &format!("its elements have {bits} bits")).into());
    }
    let Some(dimensions) =
        (0..=DIMENSIONS_MAX).contains(&tensor.dimensions).then_some(tensor.dimensions as usize)
    else {
        return Err(unsuitable(object, &format!("it has {} dimensions", tensor.dimensions)).into());
    };
    let itemsize = (bits / 8) as usize;
    let shape = list(tensor.shape, dimensions);
    let strides = (!tensor.strides.is_null()).then(|| {
        list(tensor.strides, dimensions).iter().map(|n| n.saturating_mul(itemsize as i64)).collect()
    });
    Ok(Layout { shape, strides, itemsize })
}

/// `count` numbers of a live tensor's shape or strides.
fn list(from: *const i64, count: usize) -> Vec<i64> {
    if from.is_null() {
        return Vec::new();
    }
    // SAFETY: DLPack promises `ndim` entries at both pointers as long as the tensor lives, which the caller's capsule sees to.
    (0..count).map(|i| unsafe { from.wrapping_add(i).read_unaligned() }).collect()
}
