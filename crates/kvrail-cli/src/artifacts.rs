//! `--artifacts DIR`: a folder per run with all that a colleague asks for: results in every form, the log, and what the
//! host says of its fabric and GPUs. What does not exist is named as absent, never invented.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{Read, Write as _};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use kvrail_report::{Document, redact};

use crate::failure::Failure;
use crate::report::{Format, for_terminal, render};

/// Longest run of a tool that describes the host.
const TOOL_MAX: Duration = Duration::from_secs(10);
/// Output of a tool that is kept.
const TOOL_BYTES_MAX: u64 = 4 << 20;
/// Log that is kept; what comes after is on the terminal only.
const LOG_BYTES_MAX: u64 = 64 << 20;
/// How long the log is waited for at the end: a child of a child may hold it open.
const LOG_END_MAX: Duration = Duration::from_secs(1);

/// The folder of a run that is going on. From its creation on, everything that is said on stderr, by this process, its
/// children and the libraries in them, goes to the log as well.
pub(crate) struct Artifacts {
    folder: PathBuf,
    log: &'static str,
    tee: Option<Tee>,
}

/// Which side the folder is of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Side {
    Initiator,
    Target,
}

impl Artifacts {
    /// Makes `DIR/kvrail-bench-RUN` and begins the log.
    ///
    /// # Errors
    /// When the folder cannot be made.
    pub(crate) fn begin(above: &Path, run: &str, side: Side) -> Result<Self, Failure> {
        let folder = above.join(format!("kvrail-bench-{run}"));
        let failed = |e: std::io::Error| {
            Failure::environment(format!("cannot write artefacts to {}: {e}", folder.display()))
                .hint("choose another folder for --artifacts")
        };
        fs::create_dir_all(&folder).map_err(failed)?;
        let log = match side {
            Side::Initiator => "initiator.log",
            Side::Target => "target.log",
        };
        let file = File::create(folder.join(log)).map_err(failed)?;
        let tee = Tee::begin(file).map_err(failed)?;
        Ok(Self { folder, log, tee: Some(tee) })
    }

    /// Ends the log of a side that has no document.
    pub(crate) fn end(mut self) {
        drop(self.tee.take());
        eprintln!("log: {}", self.folder.join(self.log).display());
    }

    /// Writes what the run yielded.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub(crate) fn finish(mut self, document: &Document) -> Result<(), Failure> {
        let mut files = Files { folder: self.folder.clone(), list: Vec::new() };
        let one = std::slice::from_ref(document);
        for (name, what, format) in [
            ("results.json", "the document, from which all else is made", Format::Json),
            ("results.csv", "one line per row", Format::Csv),
            ("results.html", "one page with charts, for people", Format::Html),
            ("results.md", "for people and issues", Format::Markdown),
            ("results.junit.xml", "for continuous integration", Format::Junit),
        ] {
            files.put(name, what, &render(format, one))?;
        }
        for facts in FACTS {
            match (facts.read)() {
                Ok(text) => files.put(facts.name, facts.what, &redact::text(&text))?,
                Err(why) => files.absent(facts.name, &why),
            }
        }
        drop(self.tee.take());
        files
            .list
            .push((self.log.into(), "all that was said on stderr, by the engines' libraries too".into()));
        files.absent("target.log", &target_log(document));
        let report = test_report(document, &files.list);
        files.put("test-report.txt", "", &report)?;
        eprintln!("artefacts: {}", self.folder.display());
        Ok(())
    }
}

fn target_log(document: &Document) -> String {
    let sides = &document.environment;
    match (&sides.initiator, &sides.target) {
        (Some(here), Some(there)) if here.host != there.host => {
            format!("on {}: start the target with --artifacts as well", there.host)
        }
        _ => "a target that was started by the initiator speaks into initiator.log".into(),
    }
}

/// What is in the folder, by name; what is absent, with the reason.
struct Files {
    folder: PathBuf,
    list: Vec<(String, String)>,
}

impl Files {
    fn put(&mut self, name: &str, what: &str, text: &str) -> Result<(), Failure> {
        let path = self.folder.join(name);
        fs::write(&path, text)
            .map_err(|e| Failure::environment(format!("cannot write {}: {e}", path.display())))?;
        self.list.push((name.into(), what.into()));
        Ok(())
    }

    fn absent(&mut self, name: &str, why: &str) {
        self.list.push((name.into(), format!("absent: {why}")));
    }
}

/// The run in short, and what lies in the folder.
fn test_report(document: &Document, files: &[(String, String)]) -> String {
    let mut out = format!("kvrail bench, run {}, begun {}\n", document.run_id, document.started);
    let _ = writeln!(out, "command: {}", document.command.join(" "));
    let _ = writeln!(out, "seed: {}", document.seed);
    for (side, host) in
        [("initiator", &document.environment.initiator), ("target", &document.environment.target)]
    {
        match host {
            Some(host) => {
                let _ = writeln!(
                    out,
                    "{side}: {}, {}, {}, kvrail {}",
                    host.host, host.kernel, host.cpu, host.kvrail
                );
            }
            None => {
                let _ = writeln!(out, "{side}: never met");
            }
        }
    }
    let result = match (document.complete, document.verified) {
        (true, true) => "complete, every byte that was to be looked at was right",
        (true, false) => "complete, but not every figure counts",
        (false, _) => "incomplete",
    };
    let _ = writeln!(out, "result: {result}");
    if let Some(failure) = &document.failure {
        let _ = writeln!(out, "ended early: {}", failure.what);
    }
    let _ = writeln!(out, "\n{}", for_terminal(document));
    let verdicts =
        document.results.iter().flat_map(|row| row.verdicts.iter().map(move |verdict| (row, verdict)));
    for (row, verdict) in verdicts {
        let _ = writeln!(
            out,
            "{}, {} of {} bytes: {}: {}",
            row.engine,
            row.op,
            row.transfer_bytes(),
            verdict.id,
            verdict.text
        );
    }
    let _ = writeln!(out, "\nfiles:");
    for (name, what) in files {
        let _ = writeln!(out, "  {name:<18} {what}");
    }
    out
}

/// A file of facts about this host.
struct Facts {
    name: &'static str,
    what: &'static str,
    read: fn() -> Result<String, String>,
}

const FACTS: [Facts; 4] = [
    Facts { name: "fi_info.txt", what: "libfabric's providers and devices", read: || tool("fi_info", &[]) },
    Facts { name: "gpu-info.txt", what: "GPUs, and how they are connected", read: gpus },
    Facts { name: "efa-devices.txt", what: "RDMA devices and their counters", read: rdma_devices },
    Facts { name: "topology.txt", what: "NUMA nodes, PCIe tree, rails", read: crate::topo::drawing },
];

fn gpus() -> Result<String, String> {
    Ok(tool("nvidia-smi", &[])? + "\n" + &tool("nvidia-smi", &["topo", "-m"])?)
}

/// Devices of `class/infiniband` with what the kernel says of them.
fn rdma_devices() -> Result<String, String> {
    let class = Path::new("/sys/class/infiniband");
    let devices = fs::read_dir(class).map_err(|_| "this host has no RDMA device".to_string())?;
    let mut names: Vec<PathBuf> = devices.filter_map(|device| Some(device.ok()?.path())).collect();
    names.sort_unstable();
    let mut out = String::new();
    for device in names {
        let _ = writeln!(out, "{}", device.file_name().unwrap_or_default().to_string_lossy());
        let port = device.join("ports/1");
        let say = |out: &mut String, name: &str, path: PathBuf| {
            if let Ok(text) = fs::read_to_string(path) {
                let _ = writeln!(out, "  {name}: {}", text.trim());
            }
        };
        for (name, path) in [
            ("state", port.join("state")),
            ("rate", port.join("rate")),
            ("link layer", port.join("link_layer")),
            ("firmware", device.join("fw_ver")),
            ("NUMA node", device.join("device/numa_node")),
        ] {
            say(&mut out, name, path);
        }
        let counters = fs::read_dir(port.join("hw_counters")).into_iter().flatten();
        let mut counters: Vec<PathBuf> = counters.filter_map(|counter| Some(counter.ok()?.path())).collect();
        counters.sort_unstable();
        for counter in counters {
            let name = counter.file_name().unwrap_or_default().to_string_lossy().into_owned();
            say(&mut out, &name, counter);
        }
    }
    if out.is_empty() { Err("this host has no RDMA device".into()) } else { Ok(out) }
}

/// What a tool of this host says, if it is there and ends in time.
fn tool(name: &str, words: &[&str]) -> Result<String, String> {
    // EFA's installer puts its tools where no PATH leads.
    let places = [PathBuf::from(name), Path::new("/opt/amazon/efa/bin").join(name)];
    let start = |program: &PathBuf| {
        let mut command = Command::new(program);
        command.args(words).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().ok()
    };
    let mut child = places.iter().find_map(start).ok_or_else(|| format!("there is no {name} here"))?;
    let (sender, receiver) = channel();
    if let Some(stdout) = child.stdout.take() {
        thread::spawn(move || {
            let mut text = Vec::new();
            let _ = stdout.take(TOOL_BYTES_MAX).read_to_end(&mut text);
            let _ = sender.send(text);
        });
    }
    let text = receiver.recv_timeout(TOOL_MAX);
    // It has closed its output, or is late: either way it is not waited for any longer.
    let deadline = Instant::now() + LOG_END_MAX;
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break Some(status),
            Ok(None) if Instant::now() < deadline && text.is_ok() => thread::sleep(Duration::from_millis(5)),
            _ => break None,
        }
    };
    if status.is_none() {
        let _ = child.kill();
        let _ = child.wait();
    }
    let text = text.map_err(|_| format!("{name} did not end within {} s", TOOL_MAX.as_secs()))?;
    match status {
        Some(status) if !status.success() => Err(format!("{name} says that there is nothing ({status})")),
        _ => Ok(format!("$ {name} {}\n{}", words.join(" "), String::from_utf8_lossy(&text))),
    }
}

/// Stderr, on its way through a pipe to where it went before and to a file.
struct Tee {
    before: OwnedFd,
    ended: Receiver<()>,
}

impl Tee {
    fn begin(mut file: File) -> std::io::Result<Self> {
        let before = std::os::fd::AsFd::as_fd(&std::io::stderr()).try_clone_to_owned()?;
        let (mut from, to) = std::io::pipe()?;
        let mut terminal = File::from(before.try_clone()?);
        rustix::stdio::dup2_stderr(&to)?;
        let (sender, ended) = channel();
        thread::spawn(move || {
            let mut bytes = [0; 16 << 10];
            let mut room = LOG_BYTES_MAX;
            while let Ok(count @ 1..) = from.read(&mut bytes) {
                // Neither a closed terminal nor a full disk may stop what is measured.
                let _ = terminal.write_all(&bytes[..count]);
                let kept = count.min(usize::try_from(room).unwrap_or(usize::MAX));
                let _ = file.write_all(&bytes[..kept]);
                room -= kept as u64;
            }
            let _ = sender.send(());
        });
        Ok(Self { before, ended })
    }
}

impl Drop for Tee {
    fn drop(&mut self) {
        // With this the last writer of the pipe is gone, unless a child holds it.
        if rustix::stdio::dup2_stderr(&self.before).is_ok() {
            let _ = self.ended.recv_timeout(LOG_END_MAX);
        }
    }
}
