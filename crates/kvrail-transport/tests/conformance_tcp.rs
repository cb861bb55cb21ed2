//! The transport contract, on TCP over loopback.

use std::time::Duration;

use kvrail_conformance::Limitations;
use kvrail_conformance::host::LocalWorld;
use kvrail_transport::tcp::{Config, Tcp};

fn world(config: Config) -> LocalWorld {
    let make = move || -> Box<dyn kvrail_core::transport::Transport> {
        Box::new(Tcp::new(config.clone()).expect("loopback is there"))
    };
    LocalWorld::new(make)
        .with_limitations(Limitations { patience: Duration::from_secs(5), ..Limitations::default() })
}

fn quick() -> Config {
    Config {
        fence_timeout: Duration::from_millis(200),
        stall_timeout: Duration::from_millis(300),
        backoff: (Duration::from_millis(2), Duration::from_millis(50)),
        ..Config::default()
    }
}

mod v4 {
    kvrail_conformance::conformance_suite!(|| super::world(super::quick()));
    kvrail_conformance::conformance_canaries!(|| super::world(super::quick()));
}

/// One connection, a short queue, small kernel buffers: everything is cut into pieces and nothing fits at once.
mod narrow {
    use super::*;

    kvrail_conformance::conformance_suite!(|| world(Config {
        connections: 1,
        ops_in_flight_max: 7,
        socket_buffer_bytes: Some(24 << 10),
        ..quick()
    }));
}

/// Another address family, and more connections than usual.
mod v6 {
    use super::*;

    kvrail_conformance::conformance_suite!(|| world(Config {
        listen: vec!["[::1]:0".parse().expect("an address")],
        connections: 5,
        ..quick()
    }));
}
