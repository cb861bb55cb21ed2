//! NumPy arrays of numbers, read where they lie. NumPy is looked for only in the hands of a caller who has imported it.
#![allow(unsafe_code)]

use std::sync::atomic::{AtomicBool, Ordering};

use numpy::{PyArray1, PyArray2, PyArrayMethods, PyUntypedArrayMethods};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyTuple};

use crate::native::foreign::interface;

/// Where an array says what it is.
const INTERFACE: &str = "__array_interface__";

/// Whether it is an array.
pub(super) fn is_array(object: &Bound<'_, PyAny>) -> PyResult<bool> {
    object.hasattr(intern!(object.py(), "__array_interface__"))
}

fn field<'py>(interface: &Bound<'py, PyDict>, key: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    interface.get_item(key)?.ok_or_else(|| PyTypeError::new_err("an array without its interface"))
}

/// Rows and address of a C-contiguous array of 8-byte integers with so many columns.
fn matrix(object: &Bound<'_, PyAny>, columns: usize) -> PyResult<(usize, usize)> {
    let py = object.py();
    let Some(interface) = interface(object, INTERFACE)? else {
        let name = object.get_type().name()?;
        return Err(PyTypeError::new_err(format!("descs must be a Nx{columns} numpy array, not {name}")));
    };
    let shape: Vec<usize> = field(&interface, intern!(py, "shape").as_any())?.extract()?;
    let rows = match shape.as_slice() {
        &[rows, found] if found == columns => rows,
        _ => {
            return Err(PyValueError::new_err(format!(
                "descs must be a Nx{columns} numpy array, not of shape {shape:?}"
            )));
        }
    };
    let kind: String = field(&interface, intern!(py, "typestr").as_any())?.extract()?;
    if !matches!(kind.as_str(), "<u8" | "<i8") {
        return Err(PyValueError::new_err(format!(
            "descs must be a Nx{columns} numpy array of uint64 or int64, not of {kind}"
        )));
    }
    let strides = interface.get_item(intern!(py, "strides"))?.filter(|strides| !strides.is_none());
    if let Some(strides) = strides {
        let strides: Vec<isize> = strides.extract()?;
        if strides != [8 * columns as isize, 8] && rows > 0 {
            return Err(PyValueError::new_err("descs must be a C-contiguous numpy array"));
        }
    }
    let data = field(&interface, intern!(py, "data").as_any())?;
    let address: usize = data.cast::<PyTuple>()?.get_item(0)?.extract()?;
    Ok((rows, address))
}

/// Whether NumPy has been imported: else nothing is an array of it.
fn numpy_is_here(py: Python<'_>) -> PyResult<bool> {
    static HERE: AtomicBool = AtomicBool::new(false);
    if HERE.load(Ordering::Relaxed) {
        return Ok(true);
    }
    let here =
        py.import(intern!(py, "sys"))?.getattr(intern!(py, "modules"))?.contains(intern!(py, "numpy"))?;
    HERE.store(here, Ordering::Relaxed);
    Ok(here)
}

/// The rows of an array with `N` columns of 64-bit integers.
pub(super) fn rows<const N: usize>(object: &Bound<'_, PyAny>) -> PyResult<Vec<[u64; N]>> {
    if numpy_is_here(object.py())?
        && let Ok(array) = object.cast::<PyArray2<u64>>()
        && array.shape()[1] == N
        // A slice is also had of an array whose columns lie one after the other, and would read those as rows.
        && array.is_c_contiguous()
        && let Ok(array) = array.try_readonly()
        && let Ok(numbers) = array.as_slice()
    {
        return Ok(numbers.as_chunks::<N>().0.to_vec());
    }
    let (rows, address) = matrix(object, N)?;
    let base = std::ptr::with_exposed_provenance::<[u64; N]>(address);
    let mut all = Vec::with_capacity(rows);
    for row in 0..rows {
        let at = base.wrapping_add(row);
        // SAFETY: the array says that `rows` rows of `N` 8-byte integers lie there without gaps. `object` keeps it allocated and the GIL, which is held
        // throughout, keeps Python code from resizing it; it need not be aligned.
        all.push(unsafe { at.read_unaligned() });
    }
    Ok(all)
}

/// Indices: a one-dimensional array of integers, or a list of them.
pub(super) fn indices(object: &Bound<'_, PyAny>, what: &str) -> PyResult<Vec<u32>> {
    if let Ok(list) = object.cast::<PyList>() {
        return list.iter().map(|item| index(&item, what)).collect();
    }
    let py = object.py();
    if numpy_is_here(py)? {
        macro_rules! whole {
            ($($type:ty),+) => {$(
                if let Ok(array) = object.cast::<PyArray1<$type>>()
                    && let Ok(array) = array.try_readonly()
                    && let Ok(numbers) = array.as_slice()
                {
                    // Usual, and many at a time: all of them fit. Of a negative number the upper bits are set.
                    if numbers.iter().fold(0, |all, &number| all | number as u64) <= u64::from(u32::MAX) {
                        return Ok(numbers.iter().map(|&number| number as u32).collect());
                    }
                    return Ok(numbers.iter().map(|&number| u32::try_from(number).unwrap_or(u32::MAX)).collect());
                }
            )+};
        }
        whole!(i64, i32, u32, u64);
    }
    let Some(interface) = interface(object, INTERFACE)? else {
        let items = object.try_iter().map_err(|_| {
            PyTypeError::new_err(format!("{what} indices are a list or an array of integers, not {object}"))
        })?;
        return items.map(|item| index(&item?, what)).collect();
    };
    let shape: Vec<usize> = field(&interface, intern!(py, "shape").as_any())?.extract()?;
    let &[count] = shape.as_slice() else {
        return Err(PyValueError::new_err(format!(
            "{what} indices numpy array must be 1D, not of shape {shape:?}"
        )));
    };
    let kind: String = field(&interface, intern!(py, "typestr").as_any())?.extract()?;
    let width: isize = match kind.as_bytes() {
        [b'<' | b'|', b'i' | b'u', b'1'] => 1,
        [b'<', b'i' | b'u', b'2'] => 2,
        [b'<', b'i' | b'u', b'4'] => 4,
        [b'<', b'i' | b'u', b'8'] => 8,
        _ => {
            return Err(PyValueError::new_err(format!(
                "{what} indices numpy array must be of integers, not of {kind}"
            )));
        }
    };
    let strides = interface.get_item(intern!(py, "strides"))?.filter(|strides| !strides.is_none());
    let stride = match strides {
        Some(strides) => strides.cast::<PyTuple>()?.get_item(0)?.extract()?,
        None => width,
    };
    let data = field(&interface, intern!(py, "data").as_any())?;
    let address: usize = data.cast::<PyTuple>()?.get_item(0)?.extract()?;
    let base = std::ptr::with_exposed_provenance::<u8>(address);
    let mut all = Vec::with_capacity(count);
    // What does not fit (a negative number, a huge one) becomes an index that no list has.
    macro_rules! gather {
        ($type:ty) => {
            for i in 0..count {
                let at = base.wrapping_offset(i as isize * stride).cast::<$type>();
                // SAFETY: the array says that element `i` of `count` lies there. `object` keeps it allocated and the GIL, which is held throughout, keeps
                // Python code from resizing it; it need not be aligned.
                let number = unsafe { at.read_unaligned() };
                all.push(u32::try_from(number).unwrap_or(u32::MAX));
            }
        };
    }
    match (kind.as_bytes()[1], width) {
        (b'i', 1) => gather!(i8),
        (b'i', 2) => gather!(i16),
        (b'i', 4) => gather!(i32),
        (b'i', _) => gather!(i64),
        (_, 1) => gather!(u8),
        (_, 2) => gather!(u16),
        (_, 4) => gather!(u32),
        (_, _) => gather!(u64),
    }
    Ok(all)
}

fn index(item: &Bound<'_, PyAny>, what: &str) -> PyResult<u32> {
    let number: i64 = item.extract().map_err(|_| {
        let name = item.get_type().name().map_or_else(|_| "?".into(), |name| name.to_string());
        PyTypeError::new_err(format!("{what} indices are integers, not {name}"))
    })?;
    Ok(u32::try_from(number).unwrap_or(u32::MAX))
}
