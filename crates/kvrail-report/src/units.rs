//! Sizes, counts and durations as people write them: binary KiB for sizes, decimal GB/s for rates, and ranges.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// Values that one range may expand to: a bound against `1..18446744073709551615*1`-like surprises.
const RANGE_VALUES_MAX: usize = 256;

/// A number of bytes, at least 1.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Size(pub u64);

const UNITS: [(&str, u32); 4] = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];

impl FromStr for Size {
    type Err = String;

    /// `4096`, `4096B`, `4KiB`, `4K`, `4k`: always powers of 1,024. `4KB` is refused, because half of its readers
    /// would be wrong about it.
    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let unit = unit.trim();
        let bad =
            || format!("`{text}` is no size; write bytes or a binary unit, such as 4096, 32KiB or 1MiB");
        let shift = match unit.to_ascii_lowercase().as_str() {
            "" | "b" => 0,
            "k" | "kib" => 10,
            "m" | "mib" => 20,
            "g" | "gib" => 30,
            "t" | "tib" => 40,
            "kb" | "mb" | "gb" | "tb" => {
                let letter = unit.chars().next().unwrap_or('K').to_ascii_uppercase();
                return Err(format!("`{text}` is ambiguous; write {number}{letter}iB for powers of 1,024"));
            }
            _ => return Err(bad()),
        };
        if number.is_empty() {
            return Err(bad());
        }
        let number: u64 = number.parse().map_err(|_| format!("`{text}` is too large"))?;
        if number == 0 {
            return Err(format!("`{text}`: a size of zero moves nothing"));
        }
        let bytes = number.checked_shl(shift).filter(|b| b >> shift == number);
        bytes.map(Self).ok_or_else(|| format!("`{text}` is more than 64 bits can address"))
    }
}

impl fmt::Display for Size {
    /// Exact: the largest unit that divides, so that what is printed can be typed again.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, shift) in UNITS {
            if self.0 != 0 && self.0.trailing_zeros() >= shift {
                return write!(f, "{} {name}", self.0 >> shift);
            }
        }
        write!(f, "{} B", self.0)
    }
}

/// A size for reading, rounded to one decimal: `1.4 GiB`.
pub fn about(bytes: u64) -> String {
    for (name, shift) in UNITS {
        if bytes >= 1 << shift {
            let exact = Size(bytes).to_string();
            if exact.len() <= 8 {
                return exact;
            }
            return format!("{:.1} {name}", bytes as f64 / (1u64 << shift) as f64);
        }
    }
    format!("{bytes} B")
}

/// Values in ascending steps or as listed: in the order in which they were given. Parsed from `4KiB..64MiB`, `4KiB..64MiB*4` or `4KiB,1MiB`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Sweep(pub Vec<u64>);

impl Sweep {
    fn parse(text: &str, parse_one: impl Fn(&str) -> Result<u64, String>) -> Result<Self, String> {
        let mut values = Vec::new();
        for part in text.split(',') {
            match part.split_once("..") {
                None => values.push(parse_one(part)?),
                Some((first, rest)) => {
                    let (last, factor) = match rest.split_once('*') {
                        None => (rest, 2),
                        Some((last, factor)) => {
                            let factor = factor.trim().parse::<u64>().ok().filter(|f| (2..=1024).contains(f));
                            let factor = factor
                                .ok_or_else(|| format!("`{part}`: the factor is a number from 2 to 1024"))?;
                            (last, factor)
                        }
                    };
                    let (first, last) = (parse_one(first)?, parse_one(last.trim_start_matches('='))?);
                    if first > last {
                        return Err(format!("`{part}` runs backwards; write the smaller end first"));
                    }
                    let mut value = first;
                    while value < last && values.len() < RANGE_VALUES_MAX {
                        values.push(value);
                        value = value.saturating_mul(factor);
                    }
                    values.push(last);
                }
            }
            if values.len() > RANGE_VALUES_MAX {
                return Err(format!("`{text}` has more than {RANGE_VALUES_MAX} values"));
            }
        }
        for (i, value) in values.iter().enumerate() {
            if values[..i].contains(value) {
                return Err(format!("`{text}` names {value} twice"));
            }
        }
        Ok(Self(values))
    }
}

/// Parses block sizes.
pub fn sizes(text: &str) -> Result<Sweep, String> {
    Sweep::parse(text, |one| one.parse::<Size>().map(|s| s.0))
}

/// Parses counts, each at least 1.
pub fn counts(text: &str) -> Result<Sweep, String> {
    Sweep::parse(text, |one| {
        let one = one.trim();
        let n = one.parse::<u64>().map_err(|_| format!("`{one}` is no count; write 64, 1..64 or 1,16,64"))?;
        if n == 0 { Err(format!("`{one}`: a count of zero moves nothing")) } else { Ok(n) }
    })
}

/// Longest duration that an option takes.
const DURATION_MAX: Duration = Duration::from_secs(24 * 3600);

/// Parses `2`, `2s`, `1.5s`, `250ms`, `5m`; more than zero, at most a day.
pub fn duration(text: &str) -> Result<Duration, String> {
    let trimmed = text.trim();
    let unit = trimmed.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(trimmed.len());
    let (number, unit) = trimmed.split_at(unit);
    let scale = match unit.trim() {
        "" | "s" => 1.0,
        "ms" => 1e-3,
        "m" | "min" => 60.0,
        "h" => 3600.0,
        _ => return Err(format!("`{text}` is no duration; write 250ms, 2s or 5m")),
    };
    let number: f64 =
        number.parse().map_err(|_| format!("`{text}` is no duration; write 250ms, 2s or 5m"))?;
    let seconds = number * scale;
    if !(seconds > 0.0 && seconds <= DURATION_MAX.as_secs_f64()) {
        return Err(format!("`{text}` is outside of more than zero to one day"));
    }
    Ok(Duration::from_secs_f64(seconds))
}

/// A duration for reading: `250 ms`, `2 s`, `1.5 s`.
pub fn span(duration: Duration) -> String {
    let seconds = duration.as_secs_f64();
    if seconds < 1.0 {
        format!("{} ms", (seconds * 1e3).round())
    } else {
        format!("{} s", (seconds * 10.0).round() / 10.0)
    }
}

/// Microseconds in at most six characters and at least three significant digits: `0.312`, `14.7`, `1,204`.
pub fn micros(us: f64) -> String {
    match us {
        us if !us.is_finite() => "-".into(),
        us if us < 9.9995 => format!("{us:.3}"),
        us if us < 99.995 => format!("{us:.2}"),
        us if us < 999.95 => format!("{us:.1}"),
        us => grouped(us.round() as u64),
    }
}

/// Thousands separated: `12,800`.
pub fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(c);
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes_are_binary_and_ambiguous_ones_are_refused() {
        for (text, bytes) in
            [("1", 1), ("4096", 4096), ("4k", 4096), ("4 KiB", 4096), ("64MiB", 64 << 20), ("2G", 2 << 30)]
        {
            assert_eq!(text.parse::<Size>(), Ok(Size(bytes)), "{text}");
        }
        assert!("4KB".parse::<Size>().unwrap_err().contains("4KiB"));
        for text in ["", "0", "-1", "4XiB", "KiB", "1.5MiB", "99999999999999999999", "99999999TiB", "½"] {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_range_doubles_unless_told_otherwise() {
        assert_eq!(sizes("4KiB..32KiB").unwrap().0, [4096, 8192, 16384, 32768]);
        assert_eq!(sizes("4KiB..64KiB*4").unwrap().0, [4096, 16384, 65536]);
        assert_eq!(sizes("4KiB..5KiB").unwrap().0, [4096, 5120]);
        assert_eq!(counts("1,16,256").unwrap().0, [1, 16, 256]);
        assert_eq!(counts("7").unwrap().0, [7]);
        for text in ["8..4", "0..4", "1..", "..4", "1,,2", "1..4*1", "1..4*x", "4,4", "", "a"] {
            assert!(counts(text).is_err(), "{text}");
        }
    }

    #[test]
    fn durations_need_no_unit_and_have_limits() {
        assert_eq!(duration("2"), Ok(Duration::from_secs(2)));
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(duration("1.5s"), Ok(Duration::from_millis(1500)));
        assert_eq!(duration("5m"), Ok(Duration::from_secs(300)));
        for text in ["", "0", "-1s", "1d", "1.2.3", "25h", "inf", "nan"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn figures_keep_three_digits_in_six_characters() {
        assert_eq!(micros(0.3124), "0.312");
        assert_eq!(micros(14.7), "14.70");
        assert_eq!(micros(123.44), "123.4");
        assert_eq!(micros(44321.2), "44,321");
        assert_eq!(grouped(12_800), "12,800");
        assert_eq!(grouped(1_234_567), "1,234,567");
        assert_eq!(grouped(7), "7");
    }

    proptest! {
        #[test]
        fn what_is_printed_can_be_typed_again(bytes in 1u64..) {
            prop_assert_eq!(Size(bytes).to_string().parse::<Size>(), Ok(Size(bytes)));
        }

        #[test]
        fn no_text_panics(text in "\\PC{0,24}") {
            let _ = (text.parse::<Size>(), sizes(&text), counts(&text), duration(&text));
        }

        #[test]
        fn a_range_covers_both_ends_in_bounded_steps(first in 1u64.., last in 1u64.., factor in 2u64..=1024) {
            prop_assume!(first <= last);
            let values = counts(&format!("{first}..{last}*{factor}")).unwrap().0;
            prop_assert_eq!((values[0], *values.last().unwrap()), (first, last));
            for pair in values.windows(2) {
                prop_assert!(pair[0] < pair[1] && pair[1] <= pair[0].saturating_mul(factor));
            }
        }
    }
}
