//! Times, rates and shares of a network, as people write them.

use std::time::Duration;

/// Longest time of a model, which is also what its 64-bit nanoseconds hold with room for sums.
const TIME_MAX: Duration = Duration::from_secs(3600);
/// Units of time, seconds.
const TIMES: [(&str, f64); 6] =
    [("ns", 1e-9), ("us", 1e-6), ("\u{b5}s", 1e-6), ("ms", 1e-3), ("s", 1.0), ("m", 60.0)];
/// Units of rate, bits per second.
const RATES: [(&str, f64); 8] = [
    ("gbps", 1e9),
    ("gbit/s", 1e9),
    ("gb/s", 8e9),
    ("mbps", 1e6),
    ("mbit/s", 1e6),
    ("mb/s", 8e6),
    ("kbps", 1e3),
    ("bps", 1.0),
];

/// A NIC's rate.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Rate {
    /// As fast as memory.
    Unlimited,
    /// Bits per second.
    Bits(u64),
}

fn split(text: &str) -> (&str, &str) {
    let text = text.trim();
    let (number, unit) =
        text.split_at(text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len()));
    (number, unit.trim())
}

/// Parses `15us`, `1.5ms`, `2s`, `0`; a bare number is microseconds, the network's own unit.
pub(crate) fn time(text: &str) -> Result<Duration, String> {
    let bad = || format!("`{text}` is no time; write 15us, 0.5ms or 2s");
    let (number, unit) = split(text);
    let unit = if unit.is_empty() { "us" } else { unit };
    let (_, scale) = TIMES.into_iter().find(|(name, _)| *name == unit).ok_or_else(bad)?;
    let seconds = number.parse::<f64>().map_err(|_| bad())? * scale;
    if seconds > TIME_MAX.as_secs_f64() {
        return Err(format!("`{text}` is more than an hour"));
    }
    Duration::try_from_secs_f64(seconds).map_err(|_| bad())
}

/// Parses `100Gbps`, `12.5GB/s`, `none`; a bare number is Gb/s.
pub(crate) fn rate(text: &str) -> Result<Rate, String> {
    let bad = || format!("`{text}` is no rate; write 100Gbps, or `none` for as fast as memory");
    if text.trim().eq_ignore_ascii_case("none") {
        return Ok(Rate::Unlimited);
    }
    let (number, unit) = split(text);
    let unit = if unit.is_empty() { "gbps".into() } else { unit.to_ascii_lowercase() };
    let (_, scale) = RATES.into_iter().find(|(name, _)| *name == unit).ok_or_else(bad)?;
    let bits = number.parse::<f64>().map_err(|_| bad())? * scale;
    if !(1e3..=1e14).contains(&bits) {
        return Err(format!("`{text}` is outside of 1 kbps to 100,000 Gbps"));
    }
    Ok(Rate::Bits(bits as u64))
}

/// Parses `1%`, `0.01`, `100ppm` to millionths.
pub(crate) fn share(text: &str) -> Result<u32, String> {
    let bad = || format!("`{text}` is no share; write 1%, 0.01 or 100ppm");
    let (number, unit) = split(text);
    let scale = match unit {
        "%" => 1e4,
        "" => 1e6,
        "ppm" => 1.0,
        _ => return Err(bad()),
    };
    let ppm = number.parse::<f64>().map_err(|_| bad())? * scale;
    if !(0.0..=1e6).contains(&ppm) {
        return Err(format!("`{text}` is more than all; did you mean {number}%?"));
    }
    Ok(ppm.round() as u32)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn quantities_are_read_as_they_are_written() {
        assert_eq!(time("15us"), Ok(Duration::from_micros(15)));
        assert_eq!(time("15"), Ok(Duration::from_micros(15)));
        assert_eq!(time("0"), Ok(Duration::ZERO));
        assert_eq!(time("1.5 ms"), Ok(Duration::from_micros(1500)));
        assert_eq!(rate("100Gbps"), Ok(Rate::Bits(100_000_000_000)));
        assert_eq!(rate("12.5GB/s"), Ok(Rate::Bits(100_000_000_000)));
        assert_eq!(rate("none"), Ok(Rate::Unlimited));
        assert_eq!((share("1%"), share("0.01"), share("100ppm")), (Ok(10_000), Ok(10_000), Ok(100)));
        for text in ["", "-1us", "1 hour", "nan", "inf", "2h", "1e9", "us"] {
            assert!(time(text).is_err(), "{text}");
        }
        assert!(rate("0").is_err() && rate("fast").is_err());
        assert!(share("5").unwrap_err().contains("5%"));
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "\\PC{0,16}") {
            let _ = (time(&text), rate(&text), share(&text));
        }
    }
}
