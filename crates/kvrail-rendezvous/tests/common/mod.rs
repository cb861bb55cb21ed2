//! A real etcd that ends with the test, free ports, and processes that can be killed.
#![allow(dead_code)] // Each test program uses its part.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use kvrail_rendezvous::{Config, Group, GroupError, RunId, Service};

/// Long enough for anything that is to succeed, on a busy machine.
pub(crate) const LONG: Duration = Duration::from_secs(20);

pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a free port").port()
}

/// An etcd of this test's own. It ends when its standard input does: with this value, or with the test's process.
pub(crate) struct Etcd {
    pub(crate) url: String,
    port: u16,
    peer: u16,
    extra: Vec<String>,
    pub(crate) dir: PathBuf,
    shell: Child,
    stdin: Option<ChildStdin>,
}

impl Etcd {
    /// None, and said past the harness, where there is no etcd; with CI set that is a failure.
    pub(crate) fn start(test: &str, scheme: &str, extra: &[String]) -> Option<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        if !on_path("etcd") {
            assert!(std::env::var_os("CI").is_none(), "no etcd on PATH (Debian: etcd-server)");
            let line = format!("skipped: {test}: no etcd on PATH (Debian: etcd-server)\n");
            let _ = std::io::stderr().write_all(line.as_bytes());
            return None;
        }
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("kvrail-etcd-{}-{count}", std::process::id()));
        let (port, peer) = (free_port(), free_port());
        let url = format!("{scheme}://127.0.0.1:{port}");
        let (shell, stdin) = spawn(&url, peer, &dir, extra);
        let etcd = Self { url, port, peer, extra: extra.to_vec(), dir, shell, stdin: Some(stdin) };
        etcd.wait();
        Some(etcd)
    }

    fn wait(&self) {
        let began = Instant::now();
        while TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            assert!(began.elapsed() < LONG, "etcd did not start; see {}", self.dir.join("log").display());
            std::thread::sleep(Duration::from_millis(20));
        }
        // A port that listens is not yet a cluster with a leader.
        while self.url.starts_with("http:") && !self.healthy() {
            assert!(began.elapsed() < LONG, "etcd is not healthy; see {}", self.dir.join("log").display());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn healthy(&self) -> bool {
        let Ok(mut stream) = TcpStream::connect(("127.0.0.1", self.port)) else { return false };
        let _ = stream.write_all(b"GET /health HTTP/1.0\r\n\r\n");
        BufReader::new(stream).lines().map_while(Result::ok).any(|line| line.contains("\"true\""))
    }

    /// Ends it, and starts it again with what it had stored.
    pub(crate) fn restart(&mut self, pause: Duration) {
        let kept = self.dir.with_extension("kept");
        std::fs::rename(&self.dir, &kept).expect("its directory moves");
        self.end();
        std::thread::sleep(pause);
        std::fs::rename(&kept, &self.dir).expect("its directory moves back");
        let (shell, stdin) = spawn(&self.url, self.peer, &self.dir, &self.extra);
        (self.shell, self.stdin) = (shell, Some(stdin));
        self.wait();
    }

    fn end(&mut self) {
        drop(self.stdin.take());
        let _ = self.shell.wait();
    }

    /// Runs etcdctl (or fails), as whoever `extra` says.
    pub(crate) fn ctl(&self, args: &[&str]) -> String {
        let output = Command::new("etcdctl")
            .env("ETCDCTL_API", "3")
            .arg(format!("--endpoints={}", self.url))
            .args(args)
            .output()
            .expect("etcdctl runs (Debian: etcd-client)");
        assert!(output.status.success(), "etcdctl {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.end();
    }
}

fn spawn(url: &str, peer: u16, dir: &Path, extra: &[String]) -> (Child, ChildStdin) {
    std::fs::create_dir_all(dir).expect("a directory for etcd");
    let script = "dir=$1; shift; etcd \"$@\" >\"$dir/log\" 2>&1 & p=$!; cat >/dev/null; kill $p; wait $p; rm -rf \"$dir\"";
    let peer = format!("http://127.0.0.1:{peer}");
    let mut shell = Command::new("sh")
        .args(["-c", script, "sh"])
        .arg(dir)
        .args(["--name", "one", "--data-dir"])
        .arg(dir.join("data"))
        .args(["--listen-client-urls", url, "--advertise-client-urls", url])
        .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
        .args(["--initial-cluster", &format!("one={peer}"), "--logger", "zap"])
        .args(extra)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("a shell");
    let stdin = shell.stdin.take().expect("it was asked for");
    (shell, stdin)
}

fn on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
}

/// The etcd that all tests of a program share, in plain text and without users.
pub(crate) fn shared_etcd(test: &str) -> Option<&'static Etcd> {
    static SHARED: OnceLock<Option<Etcd>> = OnceLock::new();
    let etcd = SHARED.get_or_init(|| Etcd::start(test, "http", &[])).as_ref();
    if etcd.is_none() {
        let line = format!("skipped: {test}: no etcd on PATH (Debian: etcd-server)\n");
        let _ = std::io::stderr().write_all(line.as_bytes());
    }
    etcd
}

/// A run of its own for one test, over one kind of service.
#[derive(Clone)]
pub(crate) struct Place {
    pub(crate) service: String,
    pub(crate) run_id: String,
}

impl Place {
    pub(crate) fn embedded(test: &str) -> Option<Self> {
        Some(Self { service: format!("tcp://127.0.0.1:{}", free_port()), run_id: run_id(test) })
    }

    pub(crate) fn etcd(test: &str) -> Option<Self> {
        shared_etcd(test).map(|etcd| Self { service: etcd.url.clone(), run_id: run_id(test) })
    }

    pub(crate) fn config(&self, world_size: u32, rank: impl Into<Option<u32>>) -> Config {
        let mut config = Config::new(Service::parse(&self.service).expect("a service"), world_size);
        config.run_id = Some(RunId::new(&self.run_id).expect("a run id"));
        config.rank = rank.into();
        config.deadline = LONG;
        config.lease = Duration::from_secs(2);
        config
    }

    /// The members of a whole group, each on a thread of its own.
    pub(crate) fn members<T: Send>(
        &self,
        world_size: u32,
        member: impl Fn(u32, Group) -> T + Sync,
    ) -> Vec<T> {
        std::thread::scope(|scope| {
            let member = &member;
            let threads: Vec<_> = (0..world_size)
                .map(|rank| {
                    let config = self.config(world_size, rank);
                    scope.spawn(move || member(rank, Group::join(&config).expect("all join")))
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().expect("no member panics")).collect()
        })
    }
}

fn run_id(test: &str) -> String {
    let tame: String =
        test.chars().map(|c| if c.is_ascii_alphanumeric() || c == '_' { c } else { '.' }).collect();
    format!("{tame}-{}", std::process::id())
}

/// A member in a process of its own, which goes as far as it is told and then waits to be killed.
pub(crate) struct Process {
    child: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Process {
    /// Runs test `participant` of this test program as another process.
    pub(crate) fn start(place: &Place, world_size: u32, rank: u32, step: &str) -> Self {
        let mut child = Command::new(std::env::current_exe().expect("this program"))
            .args(["participant", "--exact", "--ignored", "--nocapture", "--test-threads=1"])
            .env(
                "KVRAIL_TEST_MEMBER",
                format!("{} {} {world_size} {rank} {step}", place.service, place.run_id),
            )
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("this program starts");
        let stdout = child.stdout.take().expect("it was asked for");
        Self { child, lines: BufReader::new(stdout).lines() }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until the process says that it is there.
    pub(crate) fn await_line(&mut self, line: &str) {
        let found = self.lines.by_ref().map_while(Result::ok).any(|said| said.ends_with(line));
        assert!(found, "the process ended before it said {line:?}");
    }

    pub(crate) fn kill(mut self) {
        self.child.kill().expect("it can be killed");
        self.child.wait().expect("it has ended");
    }
}

/// What a [`Process`] does: says where it is, line by line.
pub(crate) fn participate() {
    let Ok(member) = std::env::var("KVRAIL_TEST_MEMBER") else { return };
    let parts: Vec<&str> = member.split(' ').collect();
    let [service, run_id, world_size, rank, step] = parts[..] else { panic!("{member}") };
    let place = Place { service: service.into(), run_id: run_id.into() };
    let config = place.config(world_size.parse().expect("a number"), rank.parse::<u32>().expect("a number"));
    say("joining");
    let group = Group::join(&config).expect("the group comes together");
    say("joined");
    let result = match step {
        "joining" | "joined" => Ok(()),
        "published" => group.publish("address", b"here", LONG).inspect(|()| say("published")),
        "barrier" => {
            say("barrier");
            group.barrier("never", LONG)
        }
        _ => panic!("{step}"),
    };
    if let Err(GroupError::MemberLost { member, .. }) = &result {
        say(&format!("lost {}", member.rank));
    }
    std::thread::sleep(3 * LONG);
}

fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{line}");
    let _ = out.flush();
}
