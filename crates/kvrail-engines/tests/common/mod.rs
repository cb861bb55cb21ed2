//! A target in a process of its own: this test program again, as its test [`CHILD`] alone, told what to do over its stdin.

use std::io::{BufRead, BufReader, Write as _};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use kvrail::Memory;
use kvrail_engines::{Blocks, Direction, Engine, EngineError, PeerId, Posting};

/// The test that is a target when it is told so, and passes otherwise.
pub(crate) const CHILD: &str = "a_target_for_the_other_tests";
const VARIABLE: &str = "KVRAIL_ENGINES_TEST_TARGET";
/// Before every line that is meant for the parent: the harness prints, too.
const MARK: &str = "@@ ";
/// Longest wait for anything.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

pub(crate) const POOL: usize = 1 << 20;
pub(crate) const BLOCK: u64 = 12_345;

/// What the words of [`Target::start`] stand for.
pub(crate) type Make = fn(&str) -> (Box<dyn Engine>, Memory);

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap()).collect()
}

/// A byte that is another one at every offset, for every seed.
fn byte(seed: u64, offset: u64) -> u8 {
    ((offset ^ seed.rotate_left(17)).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8
}

pub(crate) fn fill(memory: &Memory, seed: u64) {
    let bytes: Vec<u8> = (0..memory.len() as u64).map(|i| byte(seed, i)).collect();
    memory.write(0, &bytes).unwrap();
}

/// The first offset of a block that is not what the other side had there.
pub(crate) fn wrong(memory: &Memory, seed: u64, here: &[u64], there: &[u64]) -> Option<u64> {
    let mut bytes = vec![0; BLOCK as usize];
    here.iter().zip(there).find_map(|(&here, &there)| {
        memory.read(here as usize, &mut bytes).unwrap();
        bytes.iter().zip(there..).position(|(&b, at)| b != byte(seed, at)).map(|i| here + i as u64)
    })
}

/// Is the target, if this process is one.
pub(crate) fn be_target(make: Make) {
    let Ok(words) = std::env::var(VARIABLE) else { return };
    let (mut engine, memory) = make(&words);
    let (sender, lines) = channel();
    thread::spawn(move || {
        std::io::stdin().lock().lines().map_while(Result::ok).all(|l| sender.send(l).is_ok())
    });
    let say = |text: &str| {
        let mut out = std::io::stdout().lock();
        writeln!(out, "\n{MARK}{text}").and_then(|()| out.flush()).unwrap();
    };
    engine.register(&memory).unwrap();
    say(&hex(&engine.metadata().unwrap()));
    loop {
        let line = loop {
            match lines.recv_timeout(Duration::ZERO) {
                Ok(line) => break line,
                Err(RecvTimeoutError::Timeout) if engine.drive() => {}
                Err(RecvTimeoutError::Timeout) => thread::sleep(Duration::from_micros(20)),
                Err(RecvTimeoutError::Disconnected) => return,
            }
        };
        let words: Vec<&str> = line.split(' ').collect();
        let list = |text: &str| -> Vec<u64> { text.split(',').map(|n| n.parse().unwrap()).collect() };
        match words[..] {
            ["admit", metadata] => say(&format!("{:?}", engine.admit(&unhex(metadata)).map_err(|e| e.what))),
            ["fill", seed] => {
                fill(&memory, seed.parse().unwrap());
                say("Ok(())");
            }
            ["wrong", seed, here, there] => {
                say(&format!("{:?}", wrong(&memory, seed.parse().unwrap(), &list(here), &list(there))));
            }
            _ => panic!("{line}"),
        }
    }
}

/// The child.
pub(crate) struct Target {
    child: Child,
    stdin: ChildStdin,
    lines: Receiver<String>,
    pub(crate) metadata: Vec<u8>,
}

impl Target {
    pub(crate) fn start(words: &str) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", CHILD, "--nocapture"])
            .env(VARIABLE, words)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdin = child.stdin.take().unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = channel();
        thread::spawn(move || {
            let marked = out.lines().map_while(Result::ok);
            marked.filter_map(|l| l.strip_prefix(MARK).map(String::from)).all(|l| sender.send(l).is_ok())
        });
        let metadata = lines.recv_timeout(DEADLINE).expect("the target's metadata");
        Self { child, stdin, lines, metadata: unhex(&metadata) }
    }

    pub(crate) fn ask(&mut self, line: &str) -> String {
        writeln!(self.stdin, "{line}").unwrap();
        self.lines.recv_timeout(DEADLINE).unwrap_or_else(|e| panic!("{line}: {e}"))
    }

    pub(crate) fn admit(&mut self, metadata: &[u8]) -> String {
        self.ask(&format!("admit {}", hex(metadata)))
    }

    pub(crate) fn wrong(&mut self, seed: u64, here: &[u64], there: &[u64]) -> String {
        let list = |of: &[u64]| of.iter().map(u64::to_string).collect::<Vec<_>>().join(",");
        self.ask(&format!("wrong {seed} {} {}", list(here), list(there)))
    }

    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An initiator that has met its target.
pub(crate) struct Pair {
    pub(crate) engine: Box<dyn Engine>,
    pub(crate) memory: Memory,
    pub(crate) target: Target,
    pub(crate) peer: PeerId,
}

impl Pair {
    pub(crate) fn meet(make: Make, words: &str, lanes: u32) -> Self {
        let mut target = Target::start(words);
        let (mut engine, memory) = make(words);
        engine.lanes(lanes).unwrap();
        engine.register(&memory).unwrap();
        assert_eq!(target.admit(&engine.metadata().unwrap()), "Ok(())");
        let peer = engine.connect(&target.metadata.clone(), DEADLINE).unwrap();
        Self { engine, memory, target, peer }
    }

    pub(crate) fn prepare(
        &self,
        direction: Direction,
        lane: u32,
        (local, remote): (&[u64], &[u64]),
    ) -> Box<dyn Posting> {
        let blocks = Blocks {
            direction,
            peer: self.peer,
            lane,
            local,
            remote,
            block_bytes: BLOCK,
            notification: None,
            timeout: DEADLINE,
        };
        self.engine.prepare(&blocks).unwrap()
    }

    /// Writes and reads blocks in disorder a few times, and looks at every byte of them.
    pub(crate) fn moves_right_bytes_both_ways(&mut self, lanes: u32) {
        let places: Vec<u64> = (0..60).map(|i| (i * 37 % 61 + 1) * BLOCK).collect();
        let (local, remote) = places.split_at(30);
        for direction in [Direction::Write, Direction::Read] {
            let mut postings: Vec<_> =
                (0..lanes).map(|lane| self.prepare(direction, lane, (local, remote))).collect();
            for seed in 1..=3 {
                // The same seed on both sides: a byte is that of its offset at the source.
                let (ours, theirs) = (seed * 2, seed * 2 + 1);
                fill(&self.memory, ours);
                assert_eq!(self.target.ask(&format!("fill {theirs}")), "Ok(())");
                for posting in &mut postings {
                    finish(&mut **posting).unwrap();
                }
                match direction {
                    Direction::Write => assert_eq!(self.target.wrong(ours, remote, local), "None"),
                    Direction::Read => assert_eq!(wrong(&self.memory, theirs, local, remote), None),
                }
            }
        }
    }
}

/// Posts, and waits for the end.
pub(crate) fn finish(posting: &mut dyn Posting) -> Result<(), EngineError> {
    posting.post()?;
    posting.wait(DEADLINE).expect("the transfer ends in time")
}

/// Posts until a transfer fails, which the peer's end should bring about.
pub(crate) fn fails_in_time(posting: &mut dyn Posting, within: Duration) -> EngineError {
    let deadline = Instant::now() + within;
    loop {
        if let Err(error) = posting.post() {
            return error;
        }
        match posting.wait(deadline.saturating_duration_since(Instant::now())) {
            Some(Ok(())) if Instant::now() < deadline => {}
            Some(Err(error)) => return error,
            other => panic!("{other:?} although the peer is gone"),
        }
    }
}
