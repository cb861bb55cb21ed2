//! InfiniBand's rate codes: what they are in Mb/s, and in multiples of 2.5 Gb/s.

use core::ffi::{c_int, c_uint};

/// The code for "as fast as the port", which is also the answer for a rate that has no code.
const IBV_RATE_MAX: c_uint = 0;

struct Rate {
    code: c_uint,
    mbps: c_int,
    /// `None` for the rates that have no code as a multiple.
    multiple: Option<c_int>,
}

const fn rate(code: c_uint, mbps: c_int, multiple: Option<c_int>) -> Rate {
    Rate { code, mbps, multiple }
}

const RATES: [Rate; 23] = [
    rate(2, 2_500, Some(1)),
    rate(3, 10_000, Some(4)),
    rate(4, 30_000, Some(12)),
    rate(5, 5_000, Some(2)),
    rate(6, 20_000, Some(8)),
    rate(7, 40_000, Some(16)),
    rate(8, 60_000, Some(24)),
    rate(9, 80_000, Some(32)),
    rate(10, 120_000, Some(48)),
    rate(11, 14_062, None),
    rate(12, 56_250, None),
    rate(13, 112_500, None),
    rate(14, 168_750, None),
    rate(15, 25_781, None),
    rate(16, 103_125, None),
    rate(17, 206_250, None),
    rate(18, 309_375, None),
    rate(19, 28_125, Some(11)),
    rate(20, 53_125, Some(20)),
    rate(21, 425_000, Some(160)),
    rate(22, 637_500, Some(240)),
    rate(23, 850_000, Some(320)),
    rate(24, 1_275_000, Some(480)),
];

fn find(matches: impl Fn(&Rate) -> bool) -> Option<&'static Rate> {
    RATES.iter().find(|rate| matches(rate))
}

#[unsafe(no_mangle)]
extern "C" fn ibv_rate_to_mult(code: c_uint) -> c_int {
    find(|rate| rate.code == code).and_then(|rate| rate.multiple).unwrap_or(-1)
}

#[unsafe(no_mangle)]
extern "C" fn mult_to_ibv_rate(multiple: c_int) -> c_uint {
    find(|rate| rate.multiple == Some(multiple)).map_or(IBV_RATE_MAX, |rate| rate.code)
}

#[unsafe(no_mangle)]
extern "C" fn ibv_rate_to_mbps(code: c_uint) -> c_int {
    find(|rate| rate.code == code).map_or(-1, |rate| rate.mbps)
}

#[unsafe(no_mangle)]
extern "C" fn mbps_to_ibv_rate(mbps: c_int) -> c_uint {
    find(|rate| rate.mbps == mbps).map_or(IBV_RATE_MAX, |rate| rate.code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_comes_back_from_its_code_and_no_other_number_has_one() {
        for rate in &RATES {
            assert_eq!(mbps_to_ibv_rate(ibv_rate_to_mbps(rate.code)), rate.code);
            if let Some(multiple) = rate.multiple {
                assert_eq!(mult_to_ibv_rate(multiple), rate.code);
            }
        }
        assert_eq!((ibv_rate_to_mbps(1), ibv_rate_to_mult(99)), (-1, -1));
        assert_eq!((mbps_to_ibv_rate(7), mult_to_ibv_rate(-1)), (IBV_RATE_MAX, IBV_RATE_MAX));
    }
}
