//! The transport contract, on shared memory: once for each way that bytes can take.
#![cfg(target_os = "linux")]

use kvrail_conformance::host::{LocalWorld, Memory};
use kvrail_transport::memory::{Options, SharedMemory};
use kvrail_transport::shm::{Config, Shm};

fn world(config: Config) -> LocalWorld {
    LocalWorld::new(move || Box::new(Shm::open(config.clone()).expect("shared memory can be set up")))
}

struct Shared(SharedMemory);

impl Memory for Shared {
    fn base(&self) -> u64 {
        self.0.as_ptr() as u64
    }

    fn write(&self, offset: usize, bytes: &[u8]) {
        self.0.write(offset, bytes);
    }

    fn read(&self, offset: usize, bytes: &mut [u8]) {
        self.0.read(offset, bytes);
    }
}

fn shared(bytes: usize) -> Box<dyn Memory> {
    Box::new(Shared(SharedMemory::allocate(bytes, Options::default()).expect("memory")))
}

/// Every other memory is shareable.
fn mixed() -> impl FnMut(usize) -> Box<dyn Memory> {
    let mut count = 0;
    move |bytes| {
        count += 1;
        if count % 2 == 0 {
            shared(bytes)
        } else {
            Box::new(kvrail_conformance::host::PrivateMemory::new(bytes))
        }
    }
}

mod mapped {
    use super::*;
    kvrail_conformance::conformance_suite!(|| world(Config::default()).with_memory(shared));
    kvrail_conformance::conformance_canaries!(|| world(Config::default()).with_memory(shared));
}

mod by_the_kernel {
    use super::*;
    kvrail_conformance::conformance_suite!(|| world(Config { cooperate: false, ..Config::default() }));
}

mod by_both_cores {
    use super::*;
    kvrail_conformance::conformance_suite!(|| world(Config { cooperate_bytes_min: 1, ..Config::default() }));
}

mod by_the_ring_alone {
    use super::*;
    kvrail_conformance::conformance_suite!(|| world(Config { process_vm: false, ..Config::default() }));
}

mod on_mixed_memory {
    use super::*;
    kvrail_conformance::conformance_suite!(|| world(Config::default()).with_memory(mixed()));
}
