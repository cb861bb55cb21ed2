//! The transport contract on libfabric's `tcp` and `shm` providers; EFA's is in the program's tests, which emulate it.

use std::time::Duration;

use kvrail_conformance::host::LocalWorld;
use kvrail_conformance::{Limitations, World};
use kvrail_core::transport::Transport;
use kvrail_transport::ofi::{Config, Ofi, Provider};

fn config(provider: &str, rails: u16) -> Config {
    Config {
        provider: Provider::Named(provider.into()),
        devices: if provider == "tcp" { vec!["lo".into()] } else { Vec::new() },
        rails: Some(rails),
        stall_timeout: Duration::from_millis(300),
        ..Config::default()
    }
}

fn world(config: Config) -> Box<dyn World> {
    let make =
        move || -> Box<dyn Transport> { Box::new(Ofi::new(config.clone()).expect("was opened before")) };
    let world = LocalWorld::new(make).with_limitations(Limitations {
        patience: Duration::from_secs(5),
        volume: 600,
        ..Limitations::default()
    });
    Box::new(world)
}

macro_rules! suite {
    ($name:ident, $config:expr) => {
        mod $name {
            use super::*;
            fn make() -> LocalBoxed {
                LocalBoxed(world($config))
            }
            kvrail_conformance::conformance_suite!(make);
        }
    };
}

struct LocalBoxed(Box<dyn World>);

impl World for LocalBoxed {
    fn add_node(&mut self) -> kvrail_conformance::NodeId {
        self.0.add_node()
    }
    fn drop_node(&mut self, node: kvrail_conformance::NodeId) {
        self.0.drop_node(node)
    }
    fn transport(&mut self, node: kvrail_conformance::NodeId) -> &mut dyn Transport {
        self.0.transport(node)
    }
    fn alloc(&mut self, node: kvrail_conformance::NodeId, bytes: usize) -> u64 {
        self.0.alloc(node, bytes)
    }
    fn write_memory(&mut self, node: kvrail_conformance::NodeId, base: u64, offset: u64, bytes: &[u8]) {
        self.0.write_memory(node, base, offset, bytes)
    }
    fn read_memory(&mut self, node: kvrail_conformance::NodeId, base: u64, offset: u64, bytes: &mut [u8]) {
        self.0.read_memory(node, base, offset, bytes)
    }
    fn now(&self) -> kvrail_core::time::Time {
        self.0.now()
    }
    fn step(&mut self) {
        self.0.step()
    }
    fn limitations(&self) -> Limitations {
        self.0.limitations()
    }
}

suite!(tcp_1_rail, config("tcp", 1));
suite!(tcp_4_rails, config("tcp", 4));
suite!(shm_1_rail, config("shm", 1));
