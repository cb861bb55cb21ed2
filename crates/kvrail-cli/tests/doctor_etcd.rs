//! `kvrail doctor` on real etcds: one that is healthy, one with what killed benchmarks leave behind, one that is full, and addresses at which
//! there is none.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Long enough for an etcd to start on a busy machine.
const LONG: Duration = Duration::from_secs(60);

/// An etcd of this test's own; it ends with it.
struct Etcd {
    child: Child,
    url: String,
    _folder: tempfile::TempDir,
}

impl Etcd {
    /// None, and said by name, where there is none.
    fn start(test: &str, more: &[&str]) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let (client, peer) = (free_port(), free_port());
        let url = format!("http://127.0.0.1:{client}");
        let peer = format!("http://127.0.0.1:{peer}");
        let mut command = Command::new("etcd");
        command.arg("--data-dir").arg(folder.path().join("data"));
        command.args(["--listen-client-urls", &url, "--advertise-client-urls", &url]);
        command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
        command.args(["--initial-cluster", &format!("default={peer}"), "--unsafe-no-fsync"]).args(more);
        let Ok(child) = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()
        else {
            assert!(std::env::var_os("CI").is_none(), "no etcd on PATH (Debian: etcd-server)");
            eprintln!("skipped: {test}: no etcd on PATH (Debian: etcd-server)");
            return None;
        };
        let etcd = Self { child, url, _folder: folder };
        let begin = Instant::now();
        while !etcd.answers(client) {
            assert!(begin.elapsed() < LONG, "etcd did not start");
            std::thread::sleep(Duration::from_millis(20));
        }
        Some(etcd)
    }

    /// Whether it has a leader already.
    fn answers(&self, port: u16) -> bool {
        let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) else { return false };
        let _ = stream.set_read_timeout(Some(Duration::from_secs(5)));
        let _ = stream.write_all(b"GET /health HTTP/1.0\r\n\r\n");
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer);
        answer.contains("\"true\"")
    }

    fn ctl(&self, words: &[&str]) -> Output {
        let mut command = Command::new("etcdctl");
        command.env("ETCDCTL_API", "3").arg(format!("--endpoints={}", self.url)).args(words);
        command.stdin(Stdio::null()).output().expect("etcdctl runs (Debian: etcd-client)")
    }

    fn put(&self, key: &str, value: &str) {
        assert!(self.ctl(&["put", key, value]).status.success(), "{key}");
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a free port").port()
}

/// What the doctor says of an etcd: its exit code, its words, how long it took.
fn doctor(url: &str) -> (Option<i32>, String, Duration) {
    let begin = Instant::now();
    let mut command = Command::new(env!("CARGO_BIN_EXE_kvrail"));
    command.args(["doctor", "--verbose", "--etcd", url]);
    command.args(["--check", "etcd-address,etcd-unreachable,etcd-unhealthy,etcd-stale-keys"]);
    for name in ["NIXL_ETCD_ENDPOINTS", "ETCD_ENDPOINTS", "ETCDCTL_ENDPOINTS", "KUBERNETES_SERVICE_HOST"] {
        command.env_remove(name);
    }
    let output = command.stdin(Stdio::null()).output().unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned(), begin.elapsed())
}

/// Proves: etcd-stale-keys
#[test]
fn a_killed_nixlbenchs_keys_are_found_and_the_fix_deletes_them_and_no_others() {
    let Some(etcd) = Etcd::start("a_killed_nixlbenchs_keys_are_found", &[]) else { return };
    let (code, text, _) = doctor(&etcd.url);
    assert_eq!(code, Some(0), "an empty etcd is well: {text}");
    // As nixlbench leaves them: the rank has gone with its lease, the count has none.
    etcd.put("xferbench/default//size", "2");
    etcd.put("v1/instances/dynamo/backend/generate", "{}");
    let (code, text, _) = doctor(&etcd.url);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("etcd-stale-keys") && text.contains("xferbench/default//size"), "{text}");
    assert!(!text.contains("v1/instances"), "somebody else's keys are none of this: {text}");
    let at = text.find("ETCDCTL_API=3 etcdctl").expect("the fix can be typed");
    let fix = text[at..].lines().next().unwrap();
    assert!(Command::new("sh").args(["-c", fix]).stdout(Stdio::null()).status().unwrap().success(), "{fix}");
    let left = String::from_utf8(etcd.ctl(&["get", "", "--from-key", "--keys-only"]).stdout).unwrap();
    assert_eq!(left.split_whitespace().collect::<Vec<_>>(), ["v1/instances/dynamo/backend/generate"]);
    assert_eq!(doctor(&etcd.url).0, Some(0));
}

#[test]
fn a_run_that_lives_is_left_alone() {
    let Some(etcd) = Etcd::start("a_run_that_lives_is_left_alone", &[]) else { return };
    let granted = String::from_utf8(etcd.ctl(&["lease", "grant", "600"]).stdout).unwrap();
    let lease = granted.split_whitespace().nth(1).unwrap();
    let with_lease = etcd.ctl(&["put", &format!("--lease={lease}"), "xferbench/default//rank/0", "active"]);
    assert!(with_lease.status.success());
    etcd.put("xferbench/default//size", "1");
    let (code, text, _) = doctor(&etcd.url);
    assert_eq!(code, Some(0), "{text}");
    assert!(etcd.ctl(&["lease", "revoke", lease]).status.success(), "the participant dies");
    assert_eq!(doctor(&etcd.url).0, Some(1));
}

/// Proves: etcd-unhealthy
#[test]
fn an_etcd_that_is_full_is_told_with_the_commands_that_make_room() {
    let Some(etcd) = Etcd::start("an_etcd_that_is_full", &["--quota-backend-bytes=65536"]) else { return };
    assert_eq!(doctor(&etcd.url).0, Some(0), "before it is full");
    let value = "x".repeat(20_000);
    let full = (0..32).any(|i| !etcd.ctl(&["put", &format!("agents/{i}"), &value]).status.success());
    assert!(full, "a store of 64 KiB takes no 640 KB");
    let (code, text, _) = doctor(&etcd.url);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("etcd-unhealthy") && text.contains("takes no more writes"), "{text}");
    assert!(text.contains("compact") && text.contains("defrag") && text.contains("alarm disarm"), "{text}");
}

/// Proves: etcd-unreachable
#[test]
fn a_port_that_nobody_listens_on_an_address_that_is_silent_and_a_name_that_is_none_are_told_apart() {
    let (code, text, _) = doctor(&format!("http://127.0.0.1:{}", free_port()));
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("etcd-unreachable") && text.contains("refuses connections"), "{text}");
    // It takes connections and never answers, as a black hole whose handshake a proxy completes.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let (code, text, took) = doctor(&format!("http://{}", silent.local_addr().unwrap()));
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("does not answer"), "{text}");
    assert!(took < Duration::from_secs(10), "by a deadline: {took:?}");
    let (code, text, _) = doctor("http://no-such-etcd.invalid:2379");
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("has no address") || text.contains("does not answer"), "{text}");
}

/// Proves: etcd-address
#[test]
fn an_address_that_some_clients_refuse_is_found_although_etcd_answers() {
    let Some(etcd) = Etcd::start("an_address_that_some_clients_refuse", &[]) else { return };
    let (code, text, _) = doctor(etcd.url.trim_start_matches("http://"));
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("etcd-address") && text.contains(&etcd.url), "{text}");
    assert!(text.contains("is healthy"), "it is asked all the same: {text}");
}
