//! How fast the emulated wire is between two processes: `cargo run --release -p softefa-verbs --example wire [SECONDS]`.
//!
//! The model's times are 0, so that what is measured is this program and the machine: copies, system calls, cache lines. One process
//! writes, the other one polls (`polling`), or leaves everything to its device thread (`asleep`).

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use softefa_fabric::{Counter, Fabric, Limits, Model, NicIndex, NicSpec, Spec};
use softefa_verbs::nic::{
    Access, CompletionQueue, Device, Flags, Host, Opcode, Payload, QueuePair, Segment, SendRequest, State,
    Status,
};

const NICS: usize = 4;
const PD: u32 = 1;
const QKEY: u32 = 7;
/// Bytes that each NIC writes to and from.
const BUFFER: usize = 16 << 20;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.as_slice() {
        [role, dir, mode] if role == "target" => target(Path::new(dir), mode == "polling"),
        [] => measure(Duration::from_secs(2)),
        [seconds] => measure(Duration::from_secs_f64(seconds.parse().expect("a number of seconds"))),
        _ => panic!("usage: wire [SECONDS]"),
    }
}

/// A queue pair of one NIC with a registered buffer.
struct End {
    device: Device,
    cq: Arc<CompletionQueue>,
    qp: Arc<QueuePair>,
    buffer: Vec<u8>,
    key: u32,
}

fn end(device: &Device) -> End {
    let limits = device.limits();
    let cq = CompletionQueue::new(device, limits.completion_queue, None, 0).expect("a completion queue");
    let qp = QueuePair::new(device, PD, &cq, &cq, limits.send_queue, limits.receive_queue, Flags::default())
        .expect("a queue pair");
    qp.set_qkey(QKEY);
    for state in [State::Init, State::Rtr, State::Rts] {
        qp.set_state(state);
    }
    let buffer = vec![1; BUFFER];
    let addr = buffer.as_ptr() as u64;
    let access = Access(Access::LOCAL_WRITE.0 | Access::REMOTE_READ.0 | Access::REMOTE_WRITE.0);
    let key = device.register(PD, addr, BUFFER as u64, addr, access).expect("a region");
    End { device: device.clone(), cq, qp, buffer, key }
}

/// Says where its buffers are, then polls or sleeps until its input ends.
fn target(dir: &Path, polls: bool) {
    let host = Host::open(dir, 1).expect("a host");
    let ends: Vec<End> = host.devices().iter().map(end).collect();
    for (nic, end) in ends.iter().enumerate() {
        let peer = NicIndex { node: 0, nic: nic as u32 };
        end.device.address_handle(PD, peer.gid()).expect("a handle");
        println!("{} {} {}", end.qp.number(), end.key, end.buffer.as_ptr() as u64);
    }
    println!("ready");
    let over = Arc::new(AtomicU64::new(0));
    let ended = over.clone();
    std::thread::spawn(move || {
        let _ = std::io::read_to_string(std::io::stdin());
        ended.store(1, Ordering::Release);
    });
    while over.load(Ordering::Acquire) == 0 {
        if polls {
            for end in &ends {
                let _ = end.cq.poll();
            }
        } else {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

struct Peer {
    process: Child,
    /// Queue pair, key, address.
    ends: Vec<(u32, u32, u64)>,
}

fn peer(dir: &Path, mode: &str) -> Peer {
    use std::io::BufRead;
    let program = std::env::current_exe().expect("this program");
    let mut process = Command::new(program)
        .args(["target", dir.to_str().expect("a plain path"), mode])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the target");
    let output = process.stdout.take().expect("its output");
    let lines = std::io::BufReader::new(output).lines().map_while(Result::ok);
    let ends = lines
        .take_while(|line| line != "ready")
        .map(|line| {
            let n: Vec<u64> = line.split(' ').map(|n| n.parse().expect("a number")).collect();
            (n[0] as u32, n[1] as u32, n[2])
        })
        .collect();
    Peer { process, ends }
}

impl Drop for Peer {
    fn drop(&mut self) {
        drop(self.process.stdin.take());
        let _ = self.process.wait();
    }
}

fn measure(time: Duration) {
    if cfg!(debug_assertions) {
        eprintln!("a debug build: its figures mean nothing");
    }
    for mode in ["polling", "asleep"] {
        let dir = tempfile::tempdir_in("/dev/shm").expect("a directory");
        let nics =
            (0..NICS).map(|i| NicSpec { name: format!("rdmap{i}s0"), rate_bps: 100_000_000_000 }).collect();
        let model = Model::instant();
        let spec = Spec { nodes: 2, nics, seed: 1, model, limits: Limits::default() };
        let fabric = Fabric::create(&dir.path().join(softefa_fabric::SEGMENT_FILE), &spec).expect("a fabric");
        let peer = peer(dir.path(), mode);
        let host = Host::open(dir.path(), 0).expect("a host");
        let ends: Vec<End> = host.devices().iter().map(end).collect();
        for (nic, end) in ends.iter().enumerate() {
            let peer = NicIndex { node: 1, nic: nic as u32 };
            end.device.address_handle(PD, peer.gid()).expect("a handle");
        }
        for opcode in [Opcode::Write, Opcode::Read] {
            for size in [1 << 20, 64 << 10, 8 << 10] {
                let bytes = stream(&ends, &peer, opcode, size, time);
                println!(
                    "target {mode:8} {opcode:?} {:5} KiB over {NICS} NICs: {:.2} GB/s",
                    size >> 10,
                    bytes / 1e9
                );
            }
            let mut times = latency(&ends[0], &peer, opcode, time);
            times.sort_unstable();
            let at = |q: f64| times[(times.len() as f64 * q) as usize] as f64 / 1e3;
            println!(
                "target {mode:8} {opcode:?} 8 B, one at a time: p50 {:.1} µs, p99 {:.1} µs",
                at(0.5),
                at(0.99)
            );
        }
        let received = fabric.nic(NicIndex { node: 1, nic: 0 }).expect("a NIC");
        assert_eq!(received.counter(Counter::RxDrops), 0);
        println!("idle for 2 s: this process used {:.1} ms of CPU time", idle(Duration::from_secs(2)));
    }
}

fn request(end: &End, peer: &Peer, nic: usize, opcode: Opcode, at: usize, size: usize) -> SendRequest {
    let (qpn, key, addr) = peer.ends[nic];
    let segment = Segment { addr: end.buffer.as_ptr() as u64 + at as u64, len: size as u32, key: end.key };
    SendRequest {
        id: at as u64,
        opcode,
        immediate: None,
        remote_key: key,
        remote_addr: addr + at as u64,
        payload: Payload::Segments { count: 1, list: [segment, Segment::default()] },
        to: Some(NicIndex { node: 1, nic: nic as u32 }.gid()),
        qpn,
        qkey: QKEY,
    }
}

/// Bytes per second with several operations in flight on each NIC.
fn stream(ends: &[End], peer: &Peer, opcode: Opcode, size: usize, time: Duration) -> f64 {
    const IN_FLIGHT: usize = 16;
    let begin = Instant::now();
    let mut posted = vec![0_usize; ends.len()];
    let mut in_flight = vec![0_usize; ends.len()];
    let mut done = 0_usize;
    loop {
        let over = begin.elapsed() >= time;
        for (nic, end) in ends.iter().enumerate() {
            while !over && in_flight[nic] < IN_FLIGHT {
                let at = posted[nic] * size % BUFFER;
                end.qp.post_send(&[request(end, peer, nic, opcode, at, size)]).expect("room");
                posted[nic] += 1;
                in_flight[nic] += 1;
            }
            while let Some(completion) = end.cq.poll() {
                assert_eq!(completion.status, Status::Ok);
                in_flight[nic] -= 1;
                done += 1;
            }
        }
        if over && in_flight.iter().all(|n| *n == 0) {
            return (done * size) as f64 / begin.elapsed().as_secs_f64();
        }
    }
}

/// Nanoseconds from posting to completion, one operation after the other.
fn latency(end: &End, peer: &Peer, opcode: Opcode, time: Duration) -> Vec<u64> {
    let begin = Instant::now();
    let mut times = Vec::new();
    while begin.elapsed() < time {
        let posted = Instant::now();
        end.qp.post_send(&[request(end, peer, 0, opcode, 0, 8)]).expect("room");
        let completion = loop {
            if let Some(completion) = end.cq.poll() {
                break completion;
            }
        };
        assert_eq!(completion.status, Status::Ok);
        times.push(posted.elapsed().as_nanos() as u64);
    }
    times
}

/// Milliseconds of CPU time that this process uses while it does nothing.
fn idle(time: Duration) -> f64 {
    let used = || {
        // SAFETY: the structure is integers.
        let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
        // SAFETY: `usage` is a place for one.
        unsafe { libc::getrusage(libc::RUSAGE_SELF, &mut usage) };
        let ms = |t: libc::timeval| t.tv_sec as f64 * 1e3 + t.tv_usec as f64 / 1e3;
        ms(usage.ru_utime) + ms(usage.ru_stime)
    };
    let before = used();
    std::thread::sleep(time);
    used() - before
}
