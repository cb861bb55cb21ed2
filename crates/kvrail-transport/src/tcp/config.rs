//! What can be chosen about a [`super::Tcp`], and what it counts.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

/// Settings of a [`super::Tcp`]. The defaults suit a LAN and reveal nothing: they listen on loopback.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where to listen; port 0 takes a free one. An unspecified address advertises every interface's. Default:
    /// `127.0.0.1:0`.
    pub listen: Vec<SocketAddr>,
    /// Addresses to advertise instead of those listened on (behind address translation). Default: none.
    pub advertise: Vec<SocketAddr>,
    /// Rails: connections per peer, 1 to [`kvrail_core::limits::RAILS_MAX`]. More than one helps where a single
    /// stream is bound by one flow's congestion window or one core. Default: 2.
    pub connections: u16,
    /// Ops in flight per connection, 1 to 4,096. Default: 2,048.
    pub ops_in_flight_max: u32,
    /// Kernel buffers per connection and direction, bytes. `None` gives 1 MiB on loopback, where more only thrashes the
    /// caches, and the kernel's own tuning elsewhere. Default: `None`.
    pub socket_buffer_bytes: Option<usize>,
    /// How long connecting and greeting may take. Default: 3 s.
    pub connect_timeout: Duration,
    /// How long sent bytes may stay unacknowledged before the kernel declares the connection dead (TCP_USER_TIMEOUT),
    /// and how long an idle connection may be silent (keep-alive). Default: 10 s.
    pub dead_after: Duration,
    /// Reported as [`kvrail_core::transport::Caps::stall_timeout`]. Default: 5 s.
    pub stall_timeout: Duration,
    /// After a connection broke, how long to try to have the peer confirm that it is closed there too, before its
    /// writes are reported as failed regardless. See the module's text on fencing. Default: 3 s.
    pub fence_timeout: Duration,
    /// First and largest pause between attempts to reconnect. Default: 20 ms to 2 s.
    pub backoff: (Duration, Duration),
    /// Connections that were accepted and have not greeted yet. The oldest is closed when one more comes. Default: 128.
    pub handshakes_max: usize,
    /// Connections that were accepted and have greeted. Default: 16,384.
    pub accepted_max: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: vec![SocketAddr::from((Ipv4Addr::LOCALHOST, 0))],
            advertise: Vec::new(),
            connections: 2,
            ops_in_flight_max: 2_048,
            socket_buffer_bytes: None,
            connect_timeout: Duration::from_secs(3),
            dead_after: Duration::from_secs(10),
            stall_timeout: Duration::from_secs(5),
            fence_timeout: Duration::from_secs(3),
            backoff: (Duration::from_millis(20), Duration::from_secs(2)),
            handshakes_max: 128,
            accepted_max: 16_384,
        }
    }
}

/// What went over one local rail since the beginning, all peers together. Bytes are those of the wire, frames
/// included.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RailCounters {
    /// Bytes handed to the kernel.
    pub tx_bytes: u64,
    /// Bytes taken from the kernel.
    pub rx_bytes: u64,
    /// Own ops that completed.
    pub ops_completed: u64,
    /// Own ops that failed.
    pub ops_failed: u64,
    /// Peers' ops that were executed here.
    pub ops_served: u64,
    /// Peers' ops that were refused here.
    pub ops_refused: u64,
    /// Messages sent.
    pub messages_tx: u64,
    /// Messages received.
    pub messages_rx: u64,
    /// Connections that came up.
    pub connects: u64,
    /// Connections that broke or were reset.
    pub breaks: u64,
}

/// What concerns the whole transport.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counters {
    /// Connections shown out: garbage, another version, no knowledge of the instance, too slow.
    pub strangers: u64,
    /// Failed connections whose end the peer confirmed.
    pub fenced: u64,
    /// Failed connections that were given up without the peer's word, after [`Config::fence_timeout`].
    pub unfenced: u64,
    /// Peers that were found to be gone.
    pub peers_gone: u64,
}
