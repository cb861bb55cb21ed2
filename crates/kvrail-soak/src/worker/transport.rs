//! The transport that a worker's agent has.

use kvrail::TransportConfig;

use crate::talk::Rails;

pub(super) fn transport(rails: &Rails) -> Result<TransportConfig, String> {
    match rails {
        Rails::Tcp { connections } => {
            Ok(TransportConfig::tcp("127.0.0.1:0").connections((*connections).max(1)))
        }
        Rails::Ofi { provider, .. } => Err(format!("this build has no libfabric transport for {provider}")),
    }
}
