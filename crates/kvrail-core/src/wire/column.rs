//! A column of integers as runs of equal steps: `(step, count)` pairs.
//!
//! Region tables are regular: ids count up, lengths repeat, bases step by a constant. A regular column of any length
//! takes a few bytes; an irregular one about as many bytes as its steps need.

use alloc::vec::Vec;

use super::{DecodeError, Reader, Writer};

fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)) as u64
}

fn unzigzag(value: u64) -> i64 {
    (value >> 1) as i64 ^ -((value & 1) as i64)
}

/// Appends the column. Its length is not written: the reader knows it.
pub fn write(out: &mut Writer<'_>, values: impl Iterator<Item = u64>) {
    let mut previous = 0u64;
    let mut run: Option<(u64, u64)> = None;
    let mut flush = |(step, count): (u64, u64)| {
        out.varint(count - 1);
        out.varint(step);
    };
    for value in values {
        let step = zigzag(value.wrapping_sub(previous) as i64);
        previous = value;
        run = match run {
            Some((s, count)) if s == step => Some((s, count + 1)),
            other => {
                if let Some(done) = other {
                    flush(done);
                }
                Some((step, 1))
            }
        };
    }
    if let Some(done) = run {
        flush(done);
    }
}

/// Reads a column of `len` values. The caller has bounded `len`.
///
/// # Errors
/// [`DecodeError`] that names the field.
pub fn read(from: &mut Reader<'_>, len: usize, field: &'static str) -> Result<Vec<u64>, DecodeError> {
    let mut values = Vec::with_capacity(len);
    let mut previous = 0u64;
    while values.len() < len {
        let count = from.bounded(len - values.len() - 1, field)? + 1;
        let step = unzigzag(from.varint(field)?) as u64;
        for _ in 0..count {
            previous = previous.wrapping_add(step);
            values.push(previous);
        }
    }
    Ok(values)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn encoded(values: &[u64]) -> Vec<u8> {
        let mut bytes = Vec::new();
        write(&mut Writer(&mut bytes), values.iter().copied());
        bytes
    }

    #[test]
    fn a_regular_column_takes_a_few_bytes() {
        let bases: Vec<u64> = (0..10_000).map(|i| 0x7f00_0000_0000 + i * 131_072).collect();
        assert!(encoded(&bases).len() < 20);
    }

    proptest! {
        #[test]
        fn columns_come_back(values: Vec<u64>) {
            let bytes = encoded(&values);
            let mut reader = Reader::new(&bytes);
            prop_assert_eq!(read(&mut reader, values.len(), "c").unwrap(), values);
            prop_assert!(reader.finish().is_ok());
        }

        #[test]
        fn any_bytes_as_a_column_end_in_values_or_an_error(bytes: Vec<u8>, len in 0usize..1000) {
            let _ = read(&mut Reader::new(&bytes), len, "c");
        }
    }
}
