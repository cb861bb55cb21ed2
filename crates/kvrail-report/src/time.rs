//! Points in time as documents write them.

use std::time::{SystemTime, UNIX_EPOCH};

/// RFC 3339, UTC, whole seconds: `2026-11-20T21:04:44Z`. A clock before 1970 gives the beginning of 1970.
#[must_use]
pub fn rfc3339(at: SystemTime) -> String {
    let seconds = at.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let (day, second) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(day);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

/// Year, month and day of the Gregorian calendar, from days since 1970-01-01. Counted in years that begin in March, so
/// that the day that leap years add is the last of its year.
fn civil(days: u64) -> (u64, u64, u64) {
    const DAYS_OF_400_YEARS: u64 = 146_097;
    let days = days + 719_468; // 0000-03-01 to 1970-01-01
    let era = days / DAYS_OF_400_YEARS;
    let of_era = days % DAYS_OF_400_YEARS;
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153; // 0 is March
    let day = of_year - (153 * month + 2) / 5 + 1;
    let (month, next) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    (era * 400 + year + next, month, day)
}

/// A name for a run that sorts by time and that no other run has: `20261120T210444Z-5d41402a`. Safe as a file name.
#[must_use]
pub fn run_id(at: SystemTime, random: u64) -> String {
    let stamp: String = rfc3339(at).chars().filter(|c| c.is_ascii_alphanumeric()).collect();
    format!("{stamp}-{:08x}", random as u32)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn days_are_those_of_the_calendar() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_795_208_684, "2026-11-20T21:04:44Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(rfc3339(UNIX_EPOCH + Duration::from_secs(seconds)), text);
        }
        assert_eq!(rfc3339(UNIX_EPOCH - Duration::from_secs(5)), "1970-01-01T00:00:00Z");
        assert_eq!(run_id(UNIX_EPOCH, 0xffff_ffff_0000_000a), "19700101T000000Z-0000000a");
    }
}
