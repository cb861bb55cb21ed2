//! Starting the program and looking at what it leaves.

#![allow(dead_code)] // Each test binary uses its part.

use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Longest run of a test's program.
const END_MAX: Duration = Duration::from_secs(120);

/// What a program left.
pub(crate) struct Ended {
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    status: ExitStatus,
}

impl Ended {
    /// Asserts the exit code.
    #[track_caller]
    pub(crate) fn exits(&self, code: i32) {
        assert_eq!(self.status.code(), Some(code), "stdout:\n{}\nstderr:\n{}", self.stdout, self.stderr);
    }
}

impl Ended {
    /// Whether its exit code was 0.
    pub(crate) fn succeeded(&self) -> bool {
        self.status.success()
    }
}

/// A program that runs. Killed when a test ends without having waited for it.
pub(crate) struct Running {
    child: Child,
    pipes: Option<(JoinHandle<String>, JoinHandle<String>)>,
}

fn drain(mut pipe: impl Read + Send + 'static) -> JoinHandle<String> {
    std::thread::spawn(move || {
        let mut text = Vec::new();
        let _ = pipe.read_to_end(&mut text);
        String::from_utf8_lossy(&text).into_owned()
    })
}

fn spawn(mut command: Command) -> std::io::Result<Running> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).env_remove("KVRAIL_TRANSPORT");
    let mut child = command.spawn()?;
    let pipes = (drain(child.stdout.take().unwrap()), drain(child.stderr.take().unwrap()));
    Ok(Running { child, pipes: Some(pipes) })
}

/// Starts `kvrail` with words.
pub(crate) fn start(words: &str) -> Running {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kvrail"));
    command.args(words.split_whitespace());
    spawn(command).unwrap()
}

/// Runs `kvrail` with words to its end.
pub(crate) fn kvrail(words: &str) -> Ended {
    start(words).end()
}

impl Running {
    /// Waits for its end.
    pub(crate) fn end(mut self) -> Ended {
        let deadline = Instant::now() + END_MAX;
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            if Instant::now() > deadline {
                self.kill();
                panic!("it did not end within {END_MAX:?}");
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        let (stdout, stderr) = self.pipes.take().unwrap();
        Ended { stdout: stdout.join().unwrap(), stderr: stderr.join().unwrap(), status }
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// SIGINT, as a terminal's Ctrl-C.
    pub(crate) fn interrupt(&self) {
        let status = Command::new("kill").args(["-INT", &self.child.id().to_string()]).status();
        assert!(status.unwrap().success());
    }

    /// Its process.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Its child processes.
    pub(crate) fn children(&self) -> Vec<u32> {
        let pid = self.child.id();
        let text = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
        text.split_whitespace().map(|p| p.parse().unwrap()).collect()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A port that was free a moment ago.
pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Connects to a program that is about to listen.
pub(crate) fn connect(port: u16) -> TcpStream {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        match TcpStream::connect(("127.0.0.1", port)) {
            Ok(socket) => return socket,
            Err(e) => assert!(Instant::now() < deadline, "{e}"),
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Runs a copy of the program that its user may execute but not read, as user 65534; nothing when this is not
/// possible here.
pub(crate) fn unreadable(words: &str) -> Option<Ended> {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("kvrail");
    std::fs::copy(env!("CARGO_BIN_EXE_kvrail"), &copy).unwrap();
    std::fs::set_permissions(&copy, std::fs::Permissions::from_mode(0o711)).unwrap();
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o711)).unwrap();
    let mut command = Command::new("setpriv");
    command.args([
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
        "--bounding-set=-all",
        "--inh-caps=-all",
    ]);
    command.arg(&copy);
    let mut probe = Command::new("setpriv");
    probe.args(["--reuid=65534", "--regid=65534", "--clear-groups", "true"]);
    if !probe.status().is_ok_and(|s| s.success()) {
        return None;
    }
    command.args(words.split_whitespace());
    Some(spawn(command).unwrap().end())
}
