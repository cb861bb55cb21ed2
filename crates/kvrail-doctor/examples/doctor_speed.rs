//! How long an examination of this host takes, by check: medians of several.
//!
//! ```sh
//! cargo run --release -p kvrail-doctor --example doctor_speed -- [RUNS] [PYTHON_ENVIRONMENT…]
//! ```

use std::collections::BTreeMap;
use std::time::Duration;

use kvrail_doctor::host::{Live, Scope};
use kvrail_doctor::render::{Manner, Report, terminal};
use kvrail_doctor::{Host, catalogue, examine};

fn median(times: &mut [Duration]) -> Duration {
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

fn main() {
    let mut words = std::env::args().skip(1);
    let runs: usize = words.next().and_then(|word| word.parse().ok()).unwrap_or(5);
    let scope = Scope { python: words.collect(), ..Scope::default() };
    let checks = catalogue::checks();
    let mut whole = Vec::new();
    let mut each: BTreeMap<&str, Vec<Duration>> = BTreeMap::new();
    let mut last = None;
    for _ in 0..runs.max(1) {
        // A new host each time: answers are remembered.
        let examination = examine(&Host::live(Live::new(), scope.clone()), &checks);
        whole.push(examination.took);
        for looked in &examination.looked {
            each.entry(looked.rule.id).or_default().push(looked.took);
        }
        last = Some(examination);
    }
    if let Some(examination) = last {
        print!("{}", terminal(&Report::of_host("this host", &examination), Manner::default()));
    }
    println!("\nmedian of {} runs: {:.1?}; the slowest checks:", whole.len(), median(&mut whole));
    let mut each: Vec<_> = each.into_iter().map(|(id, mut times)| (median(&mut times), id)).collect();
    each.sort_unstable_by(|a, b| b.cmp(a));
    for (time, id) in each.into_iter().take(12) {
        println!("{:>10.1?}  {id}", time);
    }
    if cfg!(debug_assertions) {
        println!("a debug build: these figures mean nothing");
    }
}
