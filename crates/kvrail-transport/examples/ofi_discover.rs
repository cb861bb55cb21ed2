//! What the libfabric transport would choose on this host, and why, without opening anything:
//! `cargo run -p kvrail-transport --example ofi_discover -- [PROVIDER [LIBRARY]]`.

use std::process::ExitCode;

use kvrail_sys::libfabric::{Library, Search};
use kvrail_topology::Topology;
use kvrail_transport::ofi::facts::LibraryFacts;
use kvrail_transport::ofi::offers::discover;
use kvrail_transport::ofi::{Config, evidence};

fn main() -> ExitCode {
    let mut words = std::env::args().skip(1);
    let (provider, library) = (words.next().unwrap_or_else(|| "auto".into()), words.next());
    match describe(&provider, library) {
        Ok(text) => {
            println!("{text}");
            ExitCode::SUCCESS
        }
        Err((error, hints)) => {
            eprintln!("error: {error}");
            hints.iter().for_each(|hint| eprintln!("hint: {hint}"));
            ExitCode::from(2)
        }
    }
}

type Said = (String, Vec<String>);

fn describe(provider: &str, library: Option<String>) -> Result<String, Said> {
    let provider = provider
        .parse()
        .map_err(|error: kvrail_transport::ofi::OpenError| (error.to_string(), error.hints()))?;
    let config = Config { provider, library: library.map(Into::into), ..Config::default() };
    let library = Library::load(&Search::new(config.library.as_deref()))
        .map_err(|error| (error.to_string(), error.hints()))?;
    let topology = Topology::read_default().ok();
    let found =
        discover(&library, &config, topology.as_ref()).map_err(|error| (error.to_string(), error.hints()))?;
    let mut text = format!("libfabric {}\nprovider {}", LibraryFacts::from(&*library), found.choice.provider);
    let granted =
        if found.immediates_take_receives { "may take receives" } else { "take no receive, or none asked" };
    text += &format!("\nimmediates {granted}; evidence {}", evidence::of(&found.choice.provider).evidence);
    for passed in &found.choice.passed {
        text += &format!("\npassed over {passed}");
    }
    for (rail, info) in found.choice.rails.iter().zip(&found.infos) {
        let pci = rail.pci.map_or_else(|| "-".into(), |pci| pci.to_string());
        let numa = rail.numa.map_or_else(|| "?".into(), |node| node.to_string());
        let entry = info.first();
        text += &format!(
            "\nrail {} ({}/{}) pci {pci} numa {numa} {} bit/s; sends {}, receives {}, inject {}, longest {}, mr_mode {:#x}",
            rail.name,
            entry.fabric_name(),
            entry.domain_name(),
            rail.rate_bps,
            entry.tx_size(),
            entry.rx_size(),
            entry.inject_bytes(),
            entry.max_msg_bytes(),
            entry.mr_mode(),
        );
    }
    for left in &found.choice.left_out {
        text += &format!("\nleft out {left}");
    }
    Ok(text)
}
