//! Lists of integers from Python: NumPy arrays without a Python loop, ranges, and whatever iterates.
#![allow(unsafe_code)]

use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyRange, PyRangeMethods};

use super::foreign::{interface, name_of};

/// One number for all slices, or one for each.
#[derive(Debug)]
pub(crate) enum Integers {
    One(u64),
    Many(Vec<u64>),
}

impl Integers {
    /// From an integer or a list of them; `what` names it in errors.
    pub(crate) fn read(object: &Bound<'_, PyAny>, what: &str) -> PyResult<Self> {
        if let Ok(one) = object.extract::<u64>() {
            return Ok(Self::One(one));
        }
        many(object, what).map(Self::Many)
    }
}

/// A list of integers that are not negative; `what` names it in errors.
pub(crate) fn many(object: &Bound<'_, PyAny>, what: &str) -> PyResult<Vec<u64>> {
    if let Some(interface) = interface(object, "__array_interface__")? {
        return array(object, &interface, what);
    }
    if let Ok(range) = object.cast::<PyRange>() {
        let (start, step) = (range.start()? as i64, range.step()? as i64);
        let numbers = (0..range.len()?).map(|i| start + i as i64 * step);
        return numbers.enumerate().map(|(i, n)| positive(i, n, what)).collect();
    }
    // A torch tensor is a NumPy array in disguise; without NumPy, and for array.array and memoryview, a list is next best.
    if object.hasattr("data_ptr")?
        && object.hasattr("numpy")?
        && let Ok(view) = object.call_method0("numpy")
        && let Some(interface) = interface(&view, "__array_interface__")?
    {
        return array(&view, &interface, what);
    }
    let list = if object.hasattr("tolist")? { object.call_method0("tolist")? } else { object.clone() };
    let Ok(items) = list.try_iter() else {
        let message = format!("{what} are integers in an array or a sequence, not a {}", name_of(object));
        return Err(PyTypeError::new_err(message));
    };
    let mut numbers = Vec::with_capacity(list.len().unwrap_or(0).min(1 << 24));
    for (i, item) in items.enumerate() {
        let item = item?;
        // Whatever has an `__index__`; a float has none.
        let number: i128 = item.extract().map_err(|_| {
            PyTypeError::new_err(format!("{what}[{i}] is a {}, not an integer", name_of(&item)))
        })?;
        let number = u64::try_from(number)
            .map_err(|_| PyValueError::new_err(format!("{what}[{i}] is {number}: not in 0..2**64")))?;
        numbers.push(number);
    }
    Ok(numbers)
}

fn positive(index: usize, number: i64, what: &str) -> PyResult<u64> {
    u64::try_from(number).map_err(|_| PyValueError::new_err(format!("{what}[{index}] is {number}: negative")))
}

/// The numbers of a one-dimensional array of integers, of any width and stride.
fn array(object: &Bound<'_, PyAny>, interface: &Bound<'_, PyDict>, what: &str) -> PyResult<Vec<u64>> {
    let wrong = |is: &str| PyTypeError::new_err(format!("{what} are integers in one dimension, not {is}"));
    let item = |key: &str| interface.get_item(key)?.ok_or_else(|| wrong("this"));
    let typestr: String = item("typestr")?.extract()?;
    let shape: Vec<usize> = item("shape")?.extract()?;
    let [count] = shape[..] else {
        return Err(wrong(&format!("of shape {shape:?}")));
    };
    if typestr.starts_with('>') {
        return Err(wrong(&format!("of the other byte order ({typestr})")));
    }
    let width = match typestr.get(1..) {
        Some("i1" | "u1") => 1,
        Some("i2" | "u2") => 2,
        Some("i4" | "u4") => 4,
        Some("i8" | "u8") => 8,
        _ => return Err(wrong(&format!("of type {typestr}"))),
    };
    let signed = typestr.get(1..2) == Some("i");
    let stride = match interface.get_item("strides")?.filter(|strides| !strides.is_none()) {
        Some(strides) => strides.extract::<(isize,)>()?.0,
        None => width,
    };
    if count == 0 {
        return Ok(Vec::new());
    }
    let (address, _): (usize, bool) = item("data")?.extract()?;
    let base = std::ptr::with_exposed_provenance::<u8>(address);
    let mut numbers = Vec::with_capacity(count);
    macro_rules! gather {
        ($type:ty) => {
            for i in 0..count {
                let at = base.wrapping_offset(i as isize * stride).cast::<$type>();
                // SAFETY: the array says that element `i` of `count` is at this address. `object` keeps it allocated, and
                // the GIL, held throughout, keeps Python code from resizing it; elements need not be aligned.
                let number = unsafe { at.read_unaligned() };
                numbers.push(number as u64);
            }
        };
    }
    match (signed, width) {
        (true, 1) => gather!(i8),
        (true, 2) => gather!(i16),
        (true, 4) => gather!(i32),
        (true, _) => gather!(i64),
        (false, 1) => gather!(u8),
        (false, 2) => gather!(u16),
        (false, 4) => gather!(u32),
        (false, _) => gather!(u64),
    }
    // Widened with their sign: a negative number is one whose top bit is set.
    if signed && let Some(i) = numbers.iter().position(|n| *n > i64::MAX as u64) {
        let message = format!("{what}[{i}] is {}: negative", numbers[i] as i64);
        return Err(PyValueError::new_err(message));
    }
    let _alive_until_here = object;
    Ok(numbers)
}
