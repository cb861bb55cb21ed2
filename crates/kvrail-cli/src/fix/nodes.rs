//! `kvrail fix --nodes`: the same on every node of a Ray cluster or a Slurm allocation, with one line of result for each.
//!
//! The program travels: Ray's object store or `srun --bcast` brings it to nodes that do not have it. Each node's run is a
//! run of its own, with its own journal; nodes that share a file system take turns, and all but the first find nothing to do.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use clap::ValueEnum;
use serde_json::{Value, json};

use super::told::LINE;
use super::{Fix, Format};
use crate::failure::Failure;

/// Ray's side: ships the program and runs it on every node.
const RAY: &str = include_str!("nodes_ray.py");
/// Longest line of a node that is read.
const LINE_BYTES_MAX: u64 = 1 << 16;
/// Most lines of one node.
const PARTS_MAX: usize = 1 << 16;
/// How much longer than a node may take is waited for what runs on the nodes.
const GRACE: Duration = Duration::from_secs(15);
/// How long its last words are waited for once a launcher has ended.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// What brings nodes together.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(super) enum Cluster {
    /// The nodes of the Ray cluster of RAY_ADDRESS, or of this host
    Ray,
    /// The nodes of the Slurm allocation that this runs in
    Slurm,
}

/// What a node said.
#[derive(Clone, PartialEq, Debug)]
struct Said {
    node: String,
    exit: u8,
    what: Value,
}

pub(super) fn main(arguments: &Fix, cluster: Cluster) -> Result<ExitCode, Failure> {
    let program = std::env::current_exe()
        .map_err(|why| Failure::environment(format!("this program cannot find itself: {why}")))?;
    let program = program.display().to_string();
    let words = words(arguments);
    let (command, expected, script) = match cluster {
        Cluster::Slurm => {
            let (command, nodes) = slurm(arguments, &program, &words)?;
            (command, Some(nodes), None)
        }
        Cluster::Ray => {
            let (command, script) = ray(arguments, &program, &words)?;
            (command, None, Some(script))
        }
    };
    let said = gather(command, arguments.timeout + GRACE, expected.as_deref().unwrap_or_default());
    drop(script);
    if let Some(nodes) = &expected {
        sweep(arguments, nodes.len());
    }
    let said = said?;
    crate::sink::print(&told(&said, arguments.format))?;
    Ok(ExitCode::from(said.iter().map(|said| said.exit).max().unwrap_or(2)))
}

/// The command line for one node.
fn words(arguments: &Fix) -> Vec<String> {
    let mut words = vec!["fix".to_owned()];
    for name in &arguments.names {
        words.extend(name.to_possible_value().map(|value| value.get_name().to_owned()));
    }
    let mut option = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            words.push(format!("--{name}={value}"));
        }
    };
    for python in &arguments.python {
        option("python", Some(python.display().to_string()));
    }
    option("efa", arguments.efa.as_ref().map(|path| path.display().to_string()));
    option("nixl", arguments.nixl.clone());
    option("undo", arguments.undo.clone());
    option("format", Some("line".into()));
    for (name, is_set) in [("--dry-run", arguments.dry_run), ("--force", arguments.force)] {
        if is_set {
            words.push(name.into());
        }
    }
    words
}

fn slurm(arguments: &Fix, program: &str, words: &[String]) -> Result<(Command, Vec<String>), Failure> {
    let inside = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let list = inside("SLURM_JOB_NODELIST").ok_or_else(|| {
        Failure::usage("this is no Slurm allocation: SLURM_JOB_NODELIST is not set")
            .hint("salloc --nodes=2 kvrail fix --nodes slurm")
    })?;
    let missing =
        |why: &dyn std::fmt::Display| Failure::environment(format!("scontrol cannot name the nodes: {why}"));
    let named =
        Command::new("scontrol").args(["show", "hostnames", &list]).output().map_err(|why| missing(&why))?;
    let nodes: Vec<String> = String::from_utf8_lossy(&named.stdout).lines().map(str::to_owned).collect();
    if nodes.is_empty() {
        return Err(missing(&String::from_utf8_lossy(&named.stderr).trim()));
    }
    let mut command = Command::new("srun");
    on_all(&mut command, arguments, nodes.len());
    command.arg(format!("--bcast={}", shipped())).arg(program).args(words);
    Ok((command, nodes))
}

fn on_all(command: &mut Command, arguments: &Fix, nodes: usize) {
    command.args([format!("--nodes={nodes}"), format!("--ntasks={nodes}")]);
    command.args(["--ntasks-per-node=1", "--overlap", "--kill-on-bad-exit=0", "--input=none"]);
    command.args(&arguments.srun);
}

/// Where the program is on the nodes.
fn shipped() -> String {
    format!("/tmp/kvrail-fix-{}", std::process::id())
}

/// Removes the program from the nodes, which `srun --bcast` leaves there.
fn sweep(arguments: &Fix, nodes: usize) {
    let mut command = Command::new("srun");
    on_all(&mut command, arguments, nodes);
    command.args(["rm", "-f", &shipped()]);
    let _ = gather(command, GRACE, &[]);
}

fn ray(arguments: &Fix, program: &str, words: &[String]) -> Result<(Command, Script), Failure> {
    let named = arguments.python.iter().map(|python| match python.is_dir() {
        true => python.join("bin/python3").display().to_string(),
        false => python.display().to_string(),
    });
    // The environment that is to be mended need not be the one that has Ray.
    let has_ray = |python: &String| {
        let mut command = Command::new(python);
        command.args(["-B", "-c", "import ray, sys; sys.exit(not hasattr(ray, 'init'))"]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    };
    let python = named.chain(["python3".to_owned()]).find(has_ray).ok_or_else(|| {
        Failure::environment("no Python here has Ray: neither that of --python nor python3")
            .hint("activate the environment of the cluster: its python3 has to be the first of PATH")
    })?;
    let script = Script::new()?;
    let mut command = Command::new(&python);
    command
        .arg("-B")
        .arg(script.0.join(Script::NAME))
        .arg(program)
        .arg(arguments.timeout.as_secs().max(1).to_string())
        .args(words);
    Ok((command, script))
}

/// The driver's script, as long as it is needed, in a directory of its own: Python looks for modules beside it.
struct Script(std::path::PathBuf);

impl Script {
    const NAME: &str = "driver.py";

    fn new() -> Result<Self, Failure> {
        let path = std::env::temp_dir().join(format!("kvrail-fix-{}-{:x}", std::process::id(), random()));
        let wrong = |why: std::io::Error| Failure::environment(format!("{}: {why}", path.display()));
        let mut builder = std::fs::DirBuilder::new();
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700).create(&path).map_err(wrong)?;
        let script = Self(path.clone());
        std::fs::write(path.join(Self::NAME), RAY).map_err(wrong)?;
        Ok(script)
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A number that nobody else has: from the hasher's keys.
fn random() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    std::collections::hash_map::RandomState::new().build_hasher().finish()
}

/// What the nodes say, until all have or the deadline has passed.
fn gather(mut command: Command, patience: Duration, expected: &[String]) -> Result<Vec<Said>, Failure> {
    let name = command.get_program().to_string_lossy().into_owned();
    let deadline = Instant::now() + patience;
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = child.map_err(|why| Failure::environment(format!("{name}: {why}")))?;
    let (lines, talk) = (listen(child.stdout.take()), listen(child.stderr.take()));
    let mut said: BTreeMap<String, Said> = BTreeMap::new();
    let mut parts = Parts::default();
    let mut late = false;
    loop {
        match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(line) => {
                if let Some(one) = parts.add(&line) {
                    said.insert(one.node.clone(), one);
                }
            }
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                late = true;
                break;
            }
        }
    }
    let ended = end(&mut child, late);
    // What it said last is on its way; whoever it left behind may hold the stream open for ever.
    let until = Instant::now() + LAST_WORDS;
    let next = || talk.recv_timeout(until.saturating_duration_since(Instant::now())).ok();
    let talk: Vec<String> = std::iter::from_fn(next).collect();
    let last = talk.iter().rfind(|line| !line.trim().is_empty()).map(|line| line.trim().to_owned());
    for node in expected {
        said.entry(node.clone()).or_insert_with(|| {
            let why = if late {
                format!("no answer within {patience:?}")
            } else {
                last.clone().unwrap_or_else(|| format!("{name} {ended}"))
            };
            Said { node: node.clone(), exit: 2, what: json!({"error": why}) }
        });
    }
    if said.is_empty() {
        let why = if late { format!("no answer within {patience:?}") } else { last.unwrap_or(ended) };
        return Err(Failure::environment(format!("no node answered: {name}: {why}")).hint(match name.as_str() {
            "srun" => "`srun --overlap hostname` in this allocation should name every node",
            _ => "`ray status` should show the cluster; name its Python with --python, its head with RAY_ADDRESS",
        }));
    }
    Ok(said.into_values().collect())
}

fn listen(stream: Option<impl Read + Send + 'static>) -> Receiver<String> {
    let (sender, receiver) = channel();
    if let Some(stream) = stream {
        std::thread::spawn(move || {
            let mut reader = BufReader::new(stream);
            loop {
                let mut line = Vec::new();
                match reader.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut line) {
                    Ok(0) | Err(_) => return,
                    Ok(_) if sender.send(String::from_utf8_lossy(&line).into_owned()).is_err() => return,
                    Ok(_) => {}
                }
            }
        });
    }
    receiver
}

/// Waits for the launcher's end, which has come or is made to.
fn end(child: &mut Child, late: bool) -> String {
    if late {
        // srun passes this on to the nodes; what does not heed it is killed.
        let pid = rustix::process::Pid::from_child(child);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        for _ in 0..50 {
            if let Ok(Some(status)) = child.try_wait() {
                return status.to_string();
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        let _ = child.kill();
    }
    child.wait().map_or_else(|why| why.to_string(), |status| status.to_string())
}

/// Lines of nodes, until a node's are complete.
#[derive(Default)]
struct Parts(BTreeMap<String, BTreeMap<usize, Vec<u8>>>);

impl Parts {
    fn add(&mut self, line: &str) -> Option<Said> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [LINE, node, index, count, hexadecimal] = words[..] else { return None };
        let (index, count) = (index.parse::<usize>().ok()?, count.parse::<usize>().ok()?);
        let digits = hexadecimal.as_bytes().chunks(2).map(std::str::from_utf8);
        let bytes: Option<Vec<u8>> = digits.map(|digits| u8::from_str_radix(digits.ok()?, 16).ok()).collect();
        let parts = self.0.entry(node.into()).or_default();
        if index >= count || count > PARTS_MAX {
            return None;
        }
        parts.insert(index, bytes?);
        if parts.len() < count {
            return None;
        }
        let whole: Vec<u8> = parts.values().flatten().copied().collect();
        let value: Value = serde_json::from_slice(&whole).ok()?;
        let exit = u8::try_from(value["exit"].as_u64()?).unwrap_or(2);
        Some(Said { node: node.into(), exit, what: value["said"].clone() })
    }
}

fn told(said: &[Said], format: Format) -> String {
    if format == Format::Json {
        let nodes: Vec<Value> = said
            .iter()
            .map(|said| json!({"node": said.node, "exit": said.exit, "said": said.what}))
            .collect();
        return serde_json::to_string_pretty(&json!({"schema": "kvrail.fix-nodes.v1", "nodes": nodes}))
            .unwrap_or_default()
            + "\n";
    }
    let width = said.iter().map(|said| said.node.len()).max().unwrap_or_default();
    let mut text = String::new();
    for said in said {
        let _ = writeln!(text, "{:width$}  {}", said.node, one_line(said));
    }
    text
}

fn one_line(said: &Said) -> String {
    let what = &said.what;
    if let Some(error) = what["error"].as_str() {
        return format!("failed: {error}");
    }
    if let Some(run) = what["undone"].as_str() {
        return format!("run {run} is taken back");
    }
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let mut parts: Vec<String> = Vec::new();
    for install in list(&what["installs"]) {
        let packages: Vec<String> =
            list(&install["packages"]).iter().filter_map(|p| p.as_str().map(str::to_owned)).collect();
        match (packages.is_empty(), install["run"].is_null()) {
            (true, _) => parts.push(install["says"].as_str().unwrap_or_default().to_owned()),
            (false, true) => parts.push(format!("would install {}", packages.join(" "))),
            (false, false) => parts.push(format!("installed {}", packages.join(" "))),
        }
    }
    let installed: usize =
        list(&what["installs"]).iter().map(|install| list(&install["packages"]).len()).sum();
    let changes = what["changes"].as_u64().unwrap_or(0).saturating_sub(installed as u64);
    let verb = if what["changed"].as_bool() == Some(true) { "changed" } else { "would change" };
    if changes > 0 {
        parts.push(format!("{changes} paths {verb}"));
    } else if parts.is_empty() {
        parts.push("nothing to do".into());
    }
    for environment in list(&what["environments"]) {
        for remedy in list(&environment["remedies"]) {
            if remedy["state"] == "refused" {
                let says: Vec<String> =
                    list(&remedy["says"]).iter().filter_map(|s| s.as_str().map(str::to_owned)).collect();
                parts.push(format!(
                    "{} not done: {}",
                    remedy["remedy"].as_str().unwrap_or_default(),
                    says.join("; ")
                ));
            }
        }
    }
    parts.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_says_nothing_is_a_node_that_failed() {
        let mut command = Command::new("sh");
        command.args(["-c", r#"echo noise; echo kvrail-fix a 1 2 7d7d; echo kvrail-fix b 0 2 7b; echo kvrail-fix a 0 2 7b2265786974223a302c2273616964223a7b226368616e676573223a322c226368616e676564223a74727565; echo broken >&2"#]);
        let said = gather(command, Duration::from_secs(20), &["a".into(), "b".into()]).unwrap();
        assert_eq!(
            said.iter().map(|said| (said.node.as_str(), said.exit)).collect::<Vec<_>>(),
            [("a", 0), ("b", 2)]
        );
        assert_eq!(told(&said, Format::Text), "a  2 paths changed\nb  failed: broken\n");
    }

    #[test]
    fn a_launcher_that_hangs_is_ended_at_the_deadline() {
        let mut command = Command::new("sh");
        command
            .args(["-c", r#"echo kvrail-fix a 0 1 7b2265786974223a302c2273616964223a7b7d7d; exec sleep 60"#]);
        let begin = Instant::now();
        let said = gather(command, Duration::from_millis(500), &["a".into(), "b".into()]).unwrap();
        assert!(begin.elapsed() < Duration::from_secs(20));
        assert!(one_line(&said[1]).contains("no answer within"), "{said:?}");
    }

    #[test]
    fn a_launcher_that_is_missing_or_reaches_nobody_is_an_error() {
        let wrong = gather(Command::new("kvrail-no-such-launcher"), Duration::from_secs(1), &[]).unwrap_err();
        assert!(wrong.what.contains("kvrail-no-such-launcher"), "{wrong}");
        let mut command = Command::new("sh");
        command.args(["-c", "echo 'no cluster' >&2; exit 1"]);
        let wrong = gather(command, Duration::from_secs(20), &[]).unwrap_err();
        assert!(wrong.what.contains("no cluster"), "{wrong}");
    }
}
