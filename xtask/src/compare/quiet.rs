//! Waits until the machine has nothing else to do, as far as it ever will.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

const LOOK: Duration = Duration::from_millis(250);
/// Of all processors together: a fifth of one on a machine of two.
const BUSY_SHARE_MAX: f64 = 0.1;

/// Waits for a quiet moment, at most `patience`; whether there was one.
pub(crate) fn wait(patience: Duration) -> bool {
    let began = Instant::now();
    loop {
        match busy_share() {
            Some(share) if share > BUSY_SHARE_MAX => {}
            _ => return true,
        }
        if began.elapsed() >= patience {
            return false;
        }
    }
}

/// The share of processor time that was used in the next moment; none where the kernel does not tell.
fn busy_share() -> Option<f64> {
    let (busy_before, all_before) = times()?;
    thread::sleep(LOOK);
    let (busy, all) = times()?;
    let all = all.checked_sub(all_before).filter(|&all| all > 0)?;
    Some(busy.checked_sub(busy_before)? as f64 / all as f64)
}

fn times() -> Option<(u64, u64)> {
    busy_and_all(fs::read_to_string("/proc/stat").ok()?.lines().next()?)
}

/// From the first line of /proc/stat: `cpu user nice system idle iowait irq softirq steal ...`.
fn busy_and_all(line: &str) -> Option<(u64, u64)> {
    let fields: Vec<u64> =
        line.split_whitespace().skip(1).take(8).map(str::parse).collect::<Result<_, _>>().ok()?;
    let all: u64 = fields.iter().sum();
    Some((all - fields.get(3)? - fields.get(4)?, all))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_and_iowait_are_not_busy() {
        assert_eq!(busy_and_all("cpu  10 1 5 100 20 2 3 4 99 99"), Some((25, 145)));
        assert_eq!(busy_and_all("cpu"), None);
    }
}
