//! Real clusters on one host: Slurm with two slurmd, Ray with three nodes.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::made::{Made, image, run};
use super::wheel::{environment, had};
use super::{ended, fix};

/// Slurm's daemons, ended with the test.
struct Slurm {
    directory: tempfile::TempDir,
    daemons: Vec<Child>,
}

impl Drop for Slurm {
    fn drop(&mut self) {
        for daemon in self.daemons.iter_mut().rev() {
            let pid = rustix::process::Pid::from_child(daemon);
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        for daemon in &mut self.daemons {
            let deadline = Instant::now() + Duration::from_secs(10);
            while daemon.try_wait().is_ok_and(|ended| ended.is_none()) && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(50));
            }
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
    }
}

/// A port that nobody uses at the moment.
fn port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

impl Slurm {
    fn start() -> Result<Self, String> {
        for program in ["slurmctld", "slurmd", "salloc"] {
            // Daemons are in /usr/sbin, which is not in everybody's PATH.
            if !run("sh", &["-c", &format!("PATH=$PATH:/usr/sbin:/sbin command -v {program}")]).0 {
                return Err(format!("{program} is not installed (Debian: slurmctld slurmd slurm-client)"));
            }
        }
        if !rustix::process::geteuid().is_root() {
            return Err("slurmd wants to be root".into());
        }
        let directory = tempfile::tempdir().map_err(|error| error.to_string())?;
        let at = directory.path().display();
        let host = run("hostname", &["-s"]).1.trim().to_owned();
        fs::create_dir(directory.path().join("state")).unwrap();
        let mut text = format!(
            "ClusterName=kvrail\nSlurmctldHost={host}(127.0.0.1)\nSlurmctldPort={}\nSlurmUser=root\nSlurmdUser=root\nAuthType=auth/none\nCredType=cred/none\n\
             StateSaveLocation={at}/state\nSlurmdSpoolDir={at}/spool-%n\nSlurmdPidFile={at}/slurmd-%n.pid\nSlurmctldPidFile={at}/slurmctld.pid\n\
             SlurmctldLogFile={at}/slurmctld.log\nSlurmdLogFile={at}/slurmd-%n.log\nProctrackType=proctrack/pgid\nTaskPlugin=task/none\nSelectType=select/cons_tres\n\
             SwitchType=switch/none\nMpiDefault=none\nReturnToService=2\nSlurmdParameters=config_overrides\n",
            port()
        );
        for node in ["kv1", "kv2"] {
            text +=
                &format!("NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={} CPUs=1\n", port());
            fs::create_dir(directory.path().join(format!("spool-{node}"))).unwrap();
        }
        text += "PartitionName=all Nodes=kv1,kv2 Default=YES MaxTime=INFINITE State=UP\n";
        fs::write(directory.path().join("slurm.conf"), text).unwrap();
        let mut slurm = Self { directory, daemons: Vec::new() };
        for words in
            [&["slurmctld", "-D"][..], &["slurmd", "-D", "-N", "kv1"], &["slurmd", "-D", "-N", "kv2"]]
        {
            let mut command = slurm.command(words);
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            slurm.daemons.push(command.spawn().map_err(|error| format!("{}: {error}", words[0]))?);
        }
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let ready = slurm.command(&["salloc", "-Q", "-N2", "--immediate=5", "srun", "true"]).output();
            if ready.is_ok_and(|output| output.status.success()) {
                return Ok(slurm);
            }
            if Instant::now() > deadline {
                let log =
                    fs::read_to_string(slurm.directory.path().join("slurmctld.log")).unwrap_or_default();
                return Err(format!(
                    "two nodes were not up in 60 s: {}",
                    log.lines().next_back().unwrap_or_default()
                ));
            }
            std::thread::sleep(Duration::from_millis(300));
        }
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new("env");
        command.arg(format!("PATH={}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default()));
        command.args(words).env("SLURM_CONF", self.directory.path().join("slurm.conf"));
        command
    }

    /// Runs `kvrail fix` in an allocation of both nodes.
    fn fix(&self, made: &Made, arguments: &[&str]) -> (i32, String) {
        let mut command = self.command(&["salloc", "-Q", "-N2"]);
        let inner = fix(made);
        command
            .arg(inner.get_program())
            .args(inner.get_args())
            .args(["--nodes", "slurm", "--timeout", "2m"])
            .args(arguments);
        ended(&command.env_remove("LD_LIBRARY_PATH").output().unwrap())
    }
}

#[test]
fn every_node_of_a_slurm_allocation_is_mended_and_says_so() {
    let Some(slurm) = had("kvrail fix --nodes slurm", Slurm::start()) else { return };
    let made = Made::new("FABRIC_1.8", "FABRIC_1.9");
    let before = image(&made.root);
    let (code, said) = slurm.fix(&made, &[]);
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("kv1  ") && said.contains("kv2  "), "{said}");
    // Both see the same environment: one changes it, the other finds it done.
    assert_eq!(
        (said.matches("1 paths changed").count(), said.matches("nothing to do").count()),
        (1, 1),
        "{said}"
    );
    assert_eq!(made.which(), "the system's");
    let (code, said) = slurm.fix(&made, &["--python=/nonexistent"]);
    assert_eq!(
        (code, said.matches("failed: /nonexistent is no Python environment").count()),
        (2, 2),
        "{said}"
    );
    let (code, said) = slurm.fix(&made, &["--undo"]);
    assert_eq!((code, said.matches("is taken back").count()), (0, 1), "{said}");
    assert_eq!(image(&made.root), before);
}

#[test]
fn outside_of_an_allocation_slurm_is_an_error_that_says_what_to_type() {
    let made = Made::new("FABRIC_1.8", "FABRIC_1.9");
    let output = fix(&made).args(["--nodes", "slurm"]).env_remove("SLURM_JOB_NODELIST").output().unwrap();
    let (code, said) = ended(&output);
    assert!(code == 2 && said.contains("salloc --nodes=2 kvrail fix --nodes slurm"), "{said}");
}

/// An environment with Ray, made once.
fn ray() -> Result<PathBuf, String> {
    environment("ray", &["ray==2.60.0"], &[], Duration::from_secs(400))
}

/// Starts a cluster of three nodes, runs a command line with its address, and ends.
const CLUSTER: &str = "\
import os, subprocess, sys
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={'num_cpus': 1, 'object_store_memory': 300 * 2**20, 'include_dashboard': False})
for _ in range(2):
    cluster.add_node(num_cpus=1, object_store_memory=300 * 2**20)
cluster.wait_for_nodes()
code = subprocess.run(sys.argv[1:], env=dict(os.environ, RAY_ADDRESS=cluster.address), timeout=200).returncode
cluster.shutdown()
os._exit(code)
";

#[test]
fn every_node_of_a_ray_cluster_is_mended_and_says_so() {
    let Some(ray) = had("kvrail fix --nodes ray", ray()) else { return };
    let made = Made::new("FABRIC_1.8", "FABRIC_1.9");
    let before = image(&made.root);
    let inner = fix(&made);
    let mut command = Command::new("timeout");
    command
        .arg("280")
        .arg(ray.join("bin/python"))
        .args(["-B", "-c", CLUSTER])
        .arg(inner.get_program())
        .args(inner.get_args());
    command
        .args(["--nodes", "ray", "--timeout", "2m"])
        .env_remove("LD_LIBRARY_PATH")
        .env_remove("RAY_ADDRESS");
    let path = format!("{}:{}", ray.join("bin").display(), std::env::var("PATH").unwrap_or_default());
    let (code, said) = ended(&command.env("PATH", path).output().unwrap());
    assert_eq!(code, 0, "{said}");
    assert_eq!(
        (said.matches("1 paths changed").count(), said.matches("nothing to do").count()),
        (1, 2),
        "{said}"
    );
    assert_eq!(made.which(), "the system's");
    super::made_back(&made);
    assert_eq!(image(&made.root), before);
}

#[test]
fn a_ray_cluster_that_does_not_answer_is_an_error_at_the_deadline() {
    let Some(ray) = had("kvrail fix --nodes ray, no answer", ray()) else { return };
    let made = Made::new("FABRIC_1.8", "FABRIC_1.9");
    let path = format!("{}:{}", ray.join("bin").display(), std::env::var("PATH").unwrap_or_default());
    let output = fix(&made)
        .args(["--nodes", "ray", "--timeout", "5s"])
        .env("PATH", path)
        // Nobody answers there.
        .env("RAY_ADDRESS", "127.0.0.1:9")
        .output()
        .unwrap();
    let (code, said) = ended(&output);
    assert!(code == 2 && said.contains("no node answered"), "{code} {said}");
}
