//! (interim: the prototype)
use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use softefa_fabric::{Fault, FaultKind};

use super::probe::Probe;
use super::{Bench, Libfabric};

#[derive(Debug)]
pub(crate) struct Fabric {
    name: String,
    dir: PathBuf,
    nics: u32,
    libfabric: Libfabric,
    faults: std::sync::Mutex<Vec<Fault>>,
    unresp_ms: u64,
}

impl Fabric {
    pub(crate) fn start(libfabric: &Libfabric, options: &[&str]) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("t{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let dir = PathBuf::from("/run/softefa");
        let nics = options.iter().position(|o| *o == "--nics").map_or(1, |at| options[at + 1].parse().unwrap());
        let fabric = Self { name, dir, nics, libfabric: libfabric.clone(), faults: Default::default(), unresp_ms: 300 };
        fabric.write();
        fabric
    }

    fn write(&self) {
        let mut text = format!("lat_us 0 0\nunresp_ms {}\n", self.unresp_ms);
        for fault in self.faults.lock().unwrap().iter() {
            let p = |x: Option<u32>| x.map_or(0, |x| x);
            match fault.kind {
                FaultKind::BlackHole => {
                    text += &format!("blackhole {} {} {} {}\nsilent {}\n", p(fault.scope.node), p(fault.scope.nic), p(fault.scope.peer_node), p(fault.scope.peer_nic), fault.amount)
                }
                FaultKind::RailDown => {
                    let (a, k) = (p(fault.scope.node), p(fault.scope.nic));
                    text += &format!("blackhole {a} {k} {} {k}\nblackhole {} {k} {a} {k}\n", 1 - a, 1 - a)
                }
                FaultKind::Drop => text += &format!("drop {} 1000\n", f64::from(fault.probability_ppm) / 1e6),
                FaultKind::Delay => text += &format!("lat_us {} 0\n", fault.amount / 1000),
                _ => {}
            }
        }
        fs::write(self.ctl(), text).unwrap();
        std::thread::sleep(Duration::from_millis(20));
    }

    fn ctl(&self) -> PathBuf {
        PathBuf::from(format!("/tmp/softefa-ctl-{}", self.name))
    }

    pub(crate) fn command(&self, node: u32, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("SOFTEFA_NODE", node.to_string()).env("SOFTEFA_NICS", self.nics.to_string()).env("SOFTEFA_NET", &self.name);
        command.env("SOFTEFA_CTL", self.ctl());
        command.env("LD_LIBRARY_PATH", format!("/tmp/proto/prefix/lib:{}", self.libfabric.directory.display()));
        command.env("SYSFS_PATH", self.sys(node));
        command
    }

    pub(crate) fn sys(&self, node: u32) -> PathBuf {
        self.dir.join(&self.name).join(format!("node{node}/sys"))
    }

    pub(crate) fn probe(&self, bench: &Bench, node: u32) -> Probe {
        Probe::spawn(&format!("node{node}"), self.command(node, bench.probe.to_str().unwrap()))
    }

    pub(crate) fn fault(&self, fault: Fault) -> u32 {
        let mut faults = self.faults.lock().unwrap();
        let id = faults.len() as u32 + 1;
        faults.push(Fault { id, ..fault });
        drop(faults);
        self.write();
        id
    }

    pub(crate) fn clear(&self, id: u32) {
        self.faults.lock().unwrap().retain(|fault| fault.id != id);
        self.write();
    }

    pub(crate) fn device_counter(&self, _node: u32, _nic: u32, _name: &str) -> u64 {
        0
    }

    pub(crate) fn device(&self, nic: u32) -> String {
        format!("rdmap{}s0", 79 + nic)
    }

    pub(crate) fn counter(&self, node: u32, nic: u32, name: &str) -> u64 {
        std::thread::sleep(Duration::from_millis(50));
        let path = self.sys(node).join("class/infiniband").join(self.device(nic)).join("ports/1/hw_counters").join(name);
        fs::read_to_string(&path).unwrap_or_else(|_| "1".into()).trim().parse().unwrap()
    }
}
impl Drop for Fabric {
    fn drop(&mut self) {
        let _ = fs::remove_file(self.ctl());
        let _ = fs::remove_dir_all(self.dir.join(&self.name));
    }
}
