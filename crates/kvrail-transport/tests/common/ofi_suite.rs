//! The transport contract on any libfabric provider, as a program: the properties in turn, each in a fresh world.
//!
//! ```text
//! PROVIDER RAILS[,RAILS…] [FILTER…]      as in: efa-direct 4,8 messages routes
//! ```
//! Nodes of one world take the numbers of rails in turn, so that unequal ones meet. Ends with 1 when a property does not
//! hold, and with 2 when the provider cannot be had.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use kvrail_conformance::host::LocalWorld;
use kvrail_conformance::{Limitations, PROPERTIES, Rig, World};
use kvrail_core::transport::Transport;
use kvrail_transport::ofi::{Config, Ofi, Provider};

/// Settings for the suite: short patience with what is silent.
pub(crate) fn config(provider: &str, rails: u16) -> Config {
    Config {
        provider: Provider::Named(provider.into()),
        devices: if provider == "tcp" { vec!["lo".into()] } else { Vec::new() },
        rails: Some(rails),
        stall_timeout: Duration::from_millis(300),
        ..Config::default()
    }
}

/// What is not claimed on `shm`, and why.
const SHM: &[(&str, &str)] = &[
    ("a_reset_towards_a_silent_peer_pays_all_debts", SHM_WHY),
    ("a_vanished_peer_is_reported", SHM_WHY),
    ("a_vanished_peer_does_not_disturb_others", SHM_WHY),
    ("messages_of_every_size_arrive_intact", SHM_BOTH_WAYS),
    ("messages_pass_between_ops", SHM_BOTH_WAYS),
    ("refused_ops_do_not_disturb_their_neighbours", SHM_BOTH_WAYS),
    ("both_directions_run_at_once", SHM_BOTH_WAYS),
    ("three_nodes_do_not_mix", SHM_BOTH_WAYS),
];
const SHM_BOTH_WAYS: &str = "libfabric's shm (2.5.1, 2.7) crashes when two endpoints of one process send each other more \
                             than fits a command at the same time; two processes may";
const SHM_WHY: &str = "libfabric's shm takes nothing back: a peer that polls after the endpoint of commands in its queue \
                       was closed crashes (2.5.1), so the transport waits for the peer to poll";

/// A world whose nodes have so many rails, in turn.
pub(crate) fn world(provider: &str, rails: &[u16]) -> LocalWorld {
    let provider = provider.to_string();
    let not_claimed: &'static [(&'static str, &'static str)] = if provider == "shm" { SHM } else { &[] };
    let (counts, mut nodes) = (rails.to_vec(), 0);
    let make = move || -> Box<dyn Transport> {
        let rails = counts[nodes % counts.len()];
        nodes += 1;
        Box::new(Ofi::new(config(&provider, rails)).expect("the provider was had before"))
    };
    LocalWorld::new(make).with_limitations(Limitations {
        patience: Duration::from_secs(5),
        volume: 600,
        not_claimed,
        ..Limitations::default()
    })
}

/// Runs the suite as the module says.
pub(crate) fn run(arguments: &[String]) -> ExitCode {
    let [provider, rails, filter @ ..] = arguments else {
        eprintln!("usage: PROVIDER RAILS[,RAILS…] [FILTER…]");
        return ExitCode::from(2);
    };
    let counts: Vec<u16> = rails.split(',').filter_map(|count| count.parse().ok()).collect();
    for &count in &counts {
        if let Err(error) = Ofi::new(config(provider, count)) {
            eprintln!("SKIPPED {provider}: {error}");
            error.hints().iter().for_each(|hint| eprintln!("hint: {hint}"));
            return ExitCode::from(2);
        }
    }
    let mut failed = 0;
    let is_wanted = |name: &str| filter.is_empty() || filter.iter().any(|f| name.contains(f.as_str()));
    for property in PROPERTIES.iter().filter(|property| is_wanted(property.name)) {
        let begun = Instant::now();
        let mut world = world(provider, &counts);
        if let Some((name, why)) = world.limitations().not_claimed.iter().find(|(n, _)| *n == property.name) {
            println!("SKIPPED {name} on {provider}: {why}");
            continue;
        }
        let verdict = (property.check)(&mut Rig::new(&mut world));
        let took = begun.elapsed();
        match verdict {
            Ok(()) => println!("{provider} {rails}: {} holds ({took:.1?})", property.name),
            Err(violation) => {
                failed += 1;
                println!("{provider} {rails}: {} does not hold: {violation} ({took:.1?})", property.name);
            }
        }
    }
    println!("{provider} with {rails} rails: {failed} of {} properties do not hold", PROPERTIES.len());
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::from(1) }
}
