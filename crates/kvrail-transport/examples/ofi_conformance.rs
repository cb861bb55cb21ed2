//! Holds the libfabric transport to its contract on whatever provider a host has: real NICs included.
//!
//! ```text
//! cargo run --release -p kvrail-transport --example ofi_conformance -- efa-direct 4
//! ```

#[path = "../tests/common/ofi_suite.rs"]
mod ofi_suite;

fn main() -> std::process::ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    ofi_suite::run(&arguments)
}
