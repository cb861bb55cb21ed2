//! The transport that a worker's agent has.

use std::time::Duration;

use kvrail::TransportConfig;
use kvrail::ofi::{Affinity, Provider};

use crate::talk::Rails;

pub(super) fn transport(rails: &Rails) -> Result<TransportConfig, String> {
    match rails {
        Rails::Tcp { connections } => {
            Ok(TransportConfig::tcp("127.0.0.1:0").connections((*connections).max(1)))
        }
        Rails::Ofi { provider, libfabric, count, stall_ms } => {
            let provider: Provider =
                provider.parse().map_err(|error| format!("provider {provider}: {error}"))?;
            // All rails for all memory: emulated nodes have this host's NUMA nodes, not their own.
            let mut config = TransportConfig::ofi().provider(provider).affinity(Affinity::All);
            if let Some(path) = libfabric {
                config = config.libfabric(path);
            }
            if let Some(count) = count {
                config = config.rails(*count);
            }
            if let Some(ms) = stall_ms {
                config = config.stall_timeout(Duration::from_millis(*ms));
            }
            Ok(config)
        }
    }
}
