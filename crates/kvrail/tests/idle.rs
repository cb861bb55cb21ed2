//! What an agent costs while nothing moves. Alone in its process, whose processor time it counts.

mod common;

use std::time::Duration;

use common::pair;
use kvrail::Progress;

#[test]
fn an_idle_agent_uses_no_processor_time() {
    let pair = pair(Progress::Thread);
    std::thread::sleep(Duration::from_millis(50));
    let before = cpu_time();
    std::thread::sleep(Duration::from_millis(300));
    let used = cpu_time() - before;
    assert!(used < Duration::from_millis(60), "{used:?} of processor time in 300 ms of idleness");
    drop(pair);
}

fn cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
