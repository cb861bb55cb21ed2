//! A fabric in a temporary directory with several hosts in this process, and shorthand for what tests do with them.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of it")]

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use softefa_fabric::{Counter, Fabric, Fault, FaultKind, Limits, Model, NicIndex, NicSpec, Scope, Spec};
use softefa_verbs::nic::{
    Access, Completion, CompletionQueue, Device, Flags, Host, Opcode, Payload, QueuePair, ReceiveRequest,
    Segment, SendRequest, State, Status,
};

/// Protection domain of everything that does not ask for another.
pub const PD: u32 = 3;
/// Queue key of all queue pairs here.
pub const QKEY: u32 = 0x1234_5678;
/// How long a test waits for what has to come.
pub const SOON: Duration = Duration::from_secs(20);

/// A fabric, and its file's directory.
pub struct Net {
    pub dir: tempfile::TempDir,
    pub fabric: Fabric,
}

impl Net {
    pub fn new(nodes: u32, nics: usize, model: Model) -> Net {
        Net::with(nodes, nics, model, Limits::default())
    }

    pub fn with(nodes: u32, nics: usize, model: Model, limits: Limits) -> Net {
        let base = if Path::new("/dev/shm").is_dir() { "/dev/shm" } else { "/tmp" };
        let dir = tempfile::tempdir_in(base).unwrap();
        let nics =
            (0..nics).map(|i| NicSpec { name: format!("rdmap{i}s0"), rate_bps: 100_000_000_000 }).collect();
        let spec = Spec { nodes, nics, seed: 11, model, limits };
        let fabric = Fabric::create(&dir.path().join(softefa_fabric::SEGMENT_FILE), &spec).unwrap();
        Net { dir, fabric }
    }

    pub fn host(&self, node: u32) -> Host {
        Host::open(self.dir.path(), node).unwrap()
    }

    pub fn counter(&self, node: u32, nic: u32, counter: Counter) -> u64 {
        self.fabric.nic(NicIndex { node, nic }).unwrap().counter(counter)
    }

    pub fn fault(&self, kind: FaultKind, scope: Scope) -> u32 {
        self.fabric.add_fault(&Fault::new(kind, scope)).unwrap()
    }
}

/// From any NIC of node 0 to any of node 1.
pub fn forward() -> Scope {
    Scope { node: Some(0), peer_node: Some(1), ..Scope::default() }
}

/// A queue pair with its completion queue and a registered buffer.
pub struct End {
    pub device: Device,
    pub cq: Arc<CompletionQueue>,
    pub qp: Arc<QueuePair>,
    pub buffer: Vec<u8>,
    pub key: u32,
}

pub const ALL_ACCESS: Access = Access(Access::LOCAL_WRITE.0 | Access::REMOTE_READ.0 | Access::REMOTE_WRITE.0);

impl End {
    pub fn new(host: &Host, nic: usize, bytes: usize) -> End {
        End::with(host, nic, bytes, 32_768, Flags::default())
    }

    pub fn with(host: &Host, nic: usize, bytes: usize, cq: u32, flags: Flags) -> End {
        let cq = CompletionQueue::new(&host.devices()[nic], cq, None, 1).unwrap();
        End::on(&host.devices()[nic], cq, bytes, flags)
    }

    pub fn on(device: &Device, cq: Arc<CompletionQueue>, bytes: usize, flags: Flags) -> End {
        let device = device.clone();
        let limits = device.limits();
        let qp =
            QueuePair::new(&device, PD, &cq, &cq, limits.send_queue, limits.receive_queue, flags).unwrap();
        qp.set_qkey(QKEY);
        for state in [State::Init, State::Rtr, State::Rts] {
            qp.set_state(state);
        }
        let buffer = vec![0; bytes.max(1)];
        let addr = buffer.as_ptr() as u64;
        let key = device.register(PD, addr, buffer.len() as u64, addr, ALL_ACCESS).unwrap();
        End { device, cq, qp, buffer, key }
    }

    pub fn addr(&self, offset: usize) -> u64 {
        self.buffer.as_ptr() as u64 + offset as u64
    }

    pub fn knows(&self, other: &End) {
        self.device.address_handle(PD, other.device.gid()).unwrap();
    }

    pub fn segment(&self, offset: usize, len: usize) -> Segment {
        Segment { addr: self.addr(offset), len: len as u32, key: self.key }
    }

    pub fn request(&self, opcode: Opcode, id: u64, to: &End, from: (usize, usize), at: usize) -> SendRequest {
        SendRequest {
            id,
            opcode,
            immediate: None,
            remote_key: to.key,
            remote_addr: to.addr(at),
            payload: segments(&[self.segment(from.0, from.1)]),
            to: Some(to.device.gid()),
            qpn: to.qp.number(),
            qkey: QKEY,
        }
    }

    pub fn write(&self, id: u64, to: &End, from: (usize, usize), at: usize) {
        self.qp.post_send(&[self.request(Opcode::Write, id, to, from, at)]).unwrap();
    }

    pub fn read(&self, id: u64, of: &End, into: (usize, usize), at: usize) {
        self.qp.post_send(&[self.request(Opcode::Read, id, of, into, at)]).unwrap();
    }

    pub fn send(&self, id: u64, to: &End, from: (usize, usize)) {
        self.qp.post_send(&[self.request(Opcode::Send, id, to, from, 0)]).unwrap();
    }

    pub fn receive(&self, id: u64, offset: usize, len: usize) {
        self.qp.post_receive(&ReceiveRequest { id, into: self.segment(offset, len) }).unwrap();
    }

    /// The next completion; fails the test when none comes.
    pub fn wait(&self) -> Completion {
        self.wait_for(SOON).expect("a completion in time")
    }

    pub fn wait_for(&self, timeout: Duration) -> Option<Completion> {
        let begin = Instant::now();
        loop {
            if let Some(completion) = self.cq.poll() {
                return Some(completion);
            }
            if begin.elapsed() > timeout {
                return None;
            }
            std::thread::yield_now();
        }
    }

    pub fn wait_ok(&self) -> Completion {
        let completion = self.wait();
        assert_eq!(completion.status, Status::Ok, "{completion:?}");
        completion
    }

    /// Nothing completes for a while.
    pub fn wait_for_nothing(&self, time: Duration) {
        if let Some(completion) = self.wait_for(time) {
            panic!("{completion:?}");
        }
    }

    pub fn close(&self) {
        self.qp.close();
        self.cq.close();
    }
}

impl Drop for End {
    /// The device must not touch the buffer any more when its memory becomes somebody else's.
    fn drop(&mut self) {
        self.qp.close();
        let _ = self.device.deregister(self.key);
    }
}

pub fn segments(list: &[Segment]) -> Payload {
    let mut all = [Segment::default(); 2];
    all[..list.len()].copy_from_slice(list);
    Payload::Segments { count: list.len() as u8, list: all }
}

/// Two hosts on two nodes with a queue pair each, which know each other.
pub struct Duo {
    pub a: End,
    pub b: End,
    pub hosts: [Host; 2],
    pub net: Net,
}

impl Duo {
    pub fn new(model: Model, bytes: usize) -> Duo {
        Duo::of(Net::new(2, 2, model), bytes, Flags::default())
    }

    pub fn of(net: Net, bytes: usize, flags: Flags) -> Duo {
        let hosts = [net.host(0), net.host(1)];
        let a = End::with(&hosts[0], 0, bytes, 32_768, flags);
        let b = End::with(&hosts[1], 0, bytes, 32_768, flags);
        a.knows(&b);
        b.knows(&a);
        Duo { a, b, hosts, net }
    }
}

/// Bytes that differ everywhere.
pub fn pattern(seed: u64, bytes: &mut [u8]) {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    for chunk in bytes.chunks_mut(8) {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        chunk.copy_from_slice(&x.to_le_bytes()[..chunk.len()]);
    }
}
