//! The other side of a UCX test: this test binary again, as a process of its own, told what to do over a socket.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use kvrail::Memory;
use kvrail_engines::Engine;
use kvrail_engines::ucx::{Config, ErrorHandling, Ucx};

/// Set in the peer: the socket, what transports to use, bytes of memory, lanes.
const PEER: &str = "KVRAIL_UCX_TEST_PEER";
/// Longest wait for the peer's answer.
pub(crate) const ANSWER_MAX: Duration = Duration::from_secs(20);

/// Whether a UCX is there; else the test is skipped, and that is said past the harness.
pub(crate) fn is_there(test: &str) -> bool {
    match kvrail_sys::ucp::Library::load(&kvrail_sys::ucp::Search::new(None)) {
        Ok(_) => true,
        Err(error) if error.is_absence() => {
            assert!(std::env::var_os("CI").is_none(), "{error}");
            let line = format!("skipped: {test}: {error}\n");
            let _ = std::io::stderr().write_all(line.as_bytes());
            false
        }
        Err(error) => panic!("{error}"),
    }
}

pub(crate) fn config(tls: &str) -> Config {
    Config { tls: Some(tls.into()), ..Config::default() }
}

/// Byte `at` of memory that was filled with a seed.
pub(crate) fn pattern(seed: u64, at: u64) -> u8 {
    let word = (seed.wrapping_add(at / 8)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let word = (word ^ (word >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    (word >> (8 * (at % 8))) as u8
}

pub(crate) fn fill(memory: &Memory, seed: u64) {
    let bytes: Vec<u8> = (0..memory.len() as u64).map(|at| pattern(seed, at)).collect();
    memory.write(0, &bytes).unwrap();
}

pub(crate) fn bytes(memory: &Memory) -> Vec<u8> {
    let mut all = vec![0; memory.len()];
    memory.read(0, &mut all).unwrap();
    all
}

fn send(socket: &mut UnixStream, bytes: &[u8]) {
    socket.write_all(&(bytes.len() as u64).to_le_bytes()).unwrap();
    socket.write_all(bytes).unwrap();
}

fn receive(socket: &mut UnixStream) -> Vec<u8> {
    let mut bytes = vec![0; receive_number(socket) as usize];
    socket.read_exact(&mut bytes).unwrap();
    bytes
}

fn receive_number(socket: &mut UnixStream) -> u64 {
    let mut number = [0; 8];
    socket.read_exact(&mut number).unwrap();
    u64::from_le_bytes(number)
}

/// The peer, as its parent sees it. Killed when it is dropped.
pub(crate) struct Peer {
    child: Child,
    socket: UnixStream,
    pub(crate) metadata: Vec<u8>,
}

impl Peer {
    pub(crate) fn start(config: &Config, len: usize, lanes: u32) -> Self {
        let tls = config.tls.as_deref().unwrap_or("all");
        let watches = config.error_handling == Some(ErrorHandling::Peer);
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        listener.set_nonblocking(true).unwrap();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "the_peer_of_another_test", "--nocapture"])
            .env(PEER, format!("{}|{tls}|{watches}|{len}|{lanes}", path.display()))
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let deadline = Instant::now() + ANSWER_MAX;
        let mut socket = loop {
            match listener.accept() {
                Ok((socket, _)) => break socket,
                Err(error) => {
                    assert!(Instant::now() < deadline, "the peer does not come: {error}");
                    assert!(child.try_wait().unwrap().is_none(), "the peer ended");
                    std::thread::sleep(Duration::from_millis(2));
                }
            }
        };
        socket.set_nonblocking(false).unwrap();
        socket.set_read_timeout(Some(ANSWER_MAX)).unwrap();
        let metadata = receive(&mut socket);
        Self { child, socket, metadata }
    }

    /// Fills the peer's memory.
    pub(crate) fn fill(&mut self, seed: u64) {
        self.socket.write_all(b"f").unwrap();
        self.socket.write_all(&seed.to_le_bytes()).unwrap();
        assert_eq!(receive_number(&mut self.socket), seed);
    }

    /// The peer's memory.
    pub(crate) fn bytes(&mut self) -> Vec<u8> {
        self.socket.write_all(b"d").unwrap();
        receive(&mut self.socket)
    }

    /// How many of so many notifications the peer has within a second.
    pub(crate) fn notifications(&mut self, awaited: u64) -> u64 {
        self.socket.write_all(b"n").unwrap();
        self.socket.write_all(&awaited.to_le_bytes()).unwrap();
        receive_number(&mut self.socket)
    }

    /// Stops the peer's process: it keeps its connections and says nothing. Every thread of it stands when this returns.
    pub(crate) fn stop(&self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
        // A signal is only pending when `kill` returns, and a peer that still runs answers in a millisecond.
        let ended = rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::UNTRACED).unwrap();
        assert!(ended.is_some_and(|(_, status)| status.stopped()), "the peer did not stop: {ended:?}");
    }

    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The peer's process: drives its engine and does as it is told, until the socket closes.
pub(crate) fn serve() {
    let Ok(told) = std::env::var(PEER) else { return };
    let told: Vec<&str> = told.split('|').collect();
    let [path, tls, watches, len, lanes] = told[..] else { panic!("{told:?}") };
    let memory = Memory::shared(len.parse().unwrap()).unwrap();
    let error_handling = (watches == "true").then_some(ErrorHandling::Peer);
    let mut engine = Ucx::open(Config { error_handling, ..config(tls) }).unwrap();
    engine.lanes(lanes.parse().unwrap()).unwrap();
    engine.register(&memory).unwrap();
    let mut socket = UnixStream::connect(path).unwrap();
    send(&mut socket, &engine.metadata().unwrap());
    loop {
        engine.drive();
        socket.set_nonblocking(true).unwrap();
        let mut command = [0];
        let read = socket.read(&mut command);
        socket.set_nonblocking(false).unwrap();
        match (read, command[0]) {
            (Ok(0), _) => std::process::exit(0),
            (Err(_), _) => std::thread::yield_now(),
            (Ok(_), b'f') => {
                let seed = receive_number(&mut socket);
                fill(&memory, seed);
                socket.write_all(&seed.to_le_bytes()).unwrap();
            }
            (Ok(_), b'd') => send(&mut socket, &bytes(&memory)),
            (Ok(_), b'n') => {
                let awaited = receive_number(&mut socket);
                let come = engine.notifications(awaited, Duration::from_secs(1)).unwrap();
                socket.write_all(&come.to_le_bytes()).unwrap();
            }
            (Ok(_), other) => panic!("{other}"),
        }
    }
}
