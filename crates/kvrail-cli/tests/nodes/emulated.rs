//! A fabric that `kvrail softefa run` keeps up for a test, and the ways into it.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use softefa::run::{self, Live, Spec};
use softefa_fabric::Fault;

use super::probe::Probe;
use super::{Bench, Libfabric};

/// Two nodes come up in a fraction of this on an idle machine.
const UP_DEADLINE: Duration = Duration::from_secs(30);
const DOWN_DEADLINE: Duration = Duration::from_secs(20);
const FLUSH_DEADLINE: Duration = Duration::from_secs(5);
/// The same order of packets in every run, as far as timing allows.
const SEED: &str = "20261120";

/// Two nodes, until it is dropped.
pub(crate) struct Fabric {
    front: Child,
    talk: Receiver<String>,
    live: Live,
    spec: Spec,
    segment: softefa_fabric::Fabric,
}

impl Fabric {
    pub(crate) fn start(libfabric: &Libfabric, options: &[&str]) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let mut command = Command::new(env!("CARGO_BIN_EXE_kvrail"));
        command
            .args(["softefa", "run", "--name", &name, "--seed", SEED, "--libfabric"])
            .arg(&libfabric.directory);
        command.args(options).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut front = command.spawn().expect("kvrail starts");
        let (send, talk) = mpsc::channel();
        let stderr = BufReader::new(front.stderr.take().expect("it was asked for"));
        thread::spawn(move || stderr.lines().map_while(Result::ok).try_for_each(|line| send.send(line)));
        let up = format!("fabric {name}: ");
        let until = Instant::now() + UP_DEADLINE;
        let mut said = Vec::new();
        while said.last().is_none_or(|line: &String| !line.starts_with(&up)) {
            match talk.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(line) => said.push(line),
                Err(error) => {
                    let _ = front.kill();
                    panic!("the fabric does not come up ({error}):\n{}", said.join("\n"));
                }
            }
        }
        let live = run::find(Some(&name)).expect("it is up");
        let spec = Spec::read(&live.path).expect("it is described");
        let segment = run::open(&live.path).expect("it has a segment");
        Self { front, talk, live, spec, segment }
    }

    /// A program on a node, not started yet.
    pub(crate) fn command(&self, node: u32, program: &str) -> Command {
        let mut command = Command::new(program);
        command.envs(run::of_node(&self.live.path, &self.spec, node));
        command
    }

    /// A probe on a node.
    pub(crate) fn probe(&self, bench: &Bench, node: u32) -> Probe {
        let program = bench.probe.to_str().expect("the build's directory has a plain name");
        Probe::spawn(&format!("node{node}"), self.command(node, program))
    }

    /// Breaks something; the fault's number.
    pub(crate) fn fault(&self, fault: Fault) -> u32 {
        self.segment.add_fault(&fault).expect("there is room for a fault")
    }

    /// Mends it.
    pub(crate) fn clear(&self, fault: u32) {
        assert!(self.segment.clear_fault(fault), "fault {fault} was not active");
    }

    /// Name of the NIC on every node.
    pub(crate) fn device(&self, nic: u32) -> &str {
        &self.spec.devices[nic as usize].name
    }

    /// A counter of a NIC's port, read where the kernel's driver has it.
    pub(crate) fn counter(&self, node: u32, nic: u32, name: &str) -> u64 {
        self.read(node, nic, &format!("ports/1/hw_counters/{name}"))
    }

    /// A counter of the device itself.
    pub(crate) fn device_counter(&self, node: u32, nic: u32, name: &str) -> u64 {
        self.read(node, nic, &format!("hw_counters/{name}"))
    }

    fn read(&self, node: u32, nic: u32, file: &str) -> u64 {
        let asked = self.segment.request_flush();
        let until = Instant::now() + FLUSH_DEADLINE;
        // Numbers wrap: older ones are behind by less than half of their range.
        while asked.wrapping_sub(self.segment.flushed()) as i32 > 0 {
            assert!(Instant::now() < until, "the keeper does not write counters");
            thread::sleep(Duration::from_millis(2));
        }
        let device: PathBuf = ["sys/class/infiniband", self.device(nic)].iter().collect();
        let path = self.live.path.join(format!("node{node}")).join(device).join(file);
        let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        text.trim().parse().unwrap_or_else(|_| panic!("{}: {text:?}", path.display()))
    }
}

impl Drop for Fabric {
    fn drop(&mut self) {
        if let Some(pid) = rustix::process::Pid::from_raw(self.front.id() as i32) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let until = Instant::now() + DOWN_DEADLINE;
        while matches!(self.front.try_wait(), Ok(None)) && Instant::now() < until {
            thread::sleep(Duration::from_millis(5));
        }
        let _ = self.front.kill();
        let _ = self.front.wait();
        let said: Vec<String> = self.talk.try_iter().collect();
        if !thread::panicking() {
            assert!(!self.live.path.exists(), "the fabric left its directory: {}", said.join("\n"));
        }
    }
}
