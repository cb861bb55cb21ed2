//! Says what would carry transfers from this host: transports, provider, libfabric, rails, and what was passed over.
//!
//! ```sh
//! cargo run -p kvrail --example what_carries
//! KVRAIL_TRANSPORT=ofi KVRAIL_OFI_PROVIDER=tcp cargo run -p kvrail --example what_carries
//! ```

use std::process::ExitCode;

use kvrail::{Agent, Hints};

fn main() -> ExitCode {
    let agent = match Agent::builder("what-carries").build() {
        Ok(agent) => agent,
        Err(error) => {
            eprintln!("error: {error}");
            error.hints().iter().for_each(|hint| eprintln!("hint: {hint}"));
            return ExitCode::FAILURE;
        }
    };
    let facts = agent.facts();
    println!("chosen by {}, in this order:", facts.chosen_by);
    for transport in &facts.transports {
        println!("- {transport}");
        for line in
            transport.ofi.iter().flat_map(|ofi| ofi.to_string().lines().map(String::from).collect::<Vec<_>>())
        {
            println!("  {line}");
        }
    }
    for passed in &facts.passed_over {
        println!("- not {}: {}", passed.transport, passed.reason);
    }
    for (knob, value, source) in agent.config().texts() {
        println!("{} = {value} (from {source}); {}: {}", knob.name, knob.variable, knob.form);
    }
    ExitCode::SUCCESS
}
