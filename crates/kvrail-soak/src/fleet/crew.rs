//! The workers as a supervisor holds them: processes with a connection each.

use std::io::{self, BufReader, BufWriter, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::{Duration, Instant};

use super::place::Place;
use crate::talk::{self, Order, Part, Word};
use crate::worker::Hello;

/// Longest time until a started worker calls.
const CALL_MAX: Duration = Duration::from_secs(30);

/// A worker in one of its lives.
#[derive(Debug)]
pub struct Mate {
    /// Its number, never used twice.
    pub number: u64,
    child: Child,
    to: BufWriter<TcpStream>,
}

/// What happened at a worker.
#[derive(Debug)]
pub enum Said {
    /// It spoke.
    Word(Word),
    /// Its connection ended.
    Gone,
}

/// All workers of a place.
#[derive(Debug)]
pub struct Crew {
    listener: TcpListener,
    address: SocketAddr,
    said: Receiver<(u64, Said)>,
    sayer: Sender<(u64, Said)>,
    numbers: u64,
}

impl Crew {
    /// Listens for workers.
    ///
    /// # Errors
    /// The operating system's.
    pub fn new() -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let (sayer, said) = mpsc::channel();
        Ok(Self { listener, address, said, sayer, numbers: 0 })
    }

    /// Starts a worker on a node, and tells it what it is.
    ///
    /// # Errors
    /// It does not start, or does not call.
    pub fn start(&mut self, place: &Place, node: usize, part: &Part) -> Result<Mate, String> {
        self.numbers += 1;
        let number = self.numbers;
        let mut command = place.worker(node);
        command.args([self.address.to_string(), number.to_string()]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::inherit());
        let mut child = command.spawn().map_err(|e| format!("a worker does not start: {e}"))?;
        let socket = match self.accept(number, &mut child) {
            Ok(socket) => socket,
            Err(why) => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(format!("worker {} on node {node}: {why}", part.name));
            }
        };
        let reader = socket.try_clone().map_err(|e| e.to_string())?;
        self.read(number, reader);
        let mut mate = Mate { number, child, to: BufWriter::new(socket) };
        mate.order(&Order::Be(part.clone()));
        Ok(mate)
    }

    fn accept(&self, number: u64, child: &mut Child) -> Result<TcpStream, String> {
        let until = Instant::now() + CALL_MAX;
        while Instant::now() < until {
            match self.listener.accept() {
                Ok((socket, _)) => {
                    socket.set_nonblocking(false).map_err(|e| e.to_string())?;
                    socket.set_read_timeout(Some(CALL_MAX)).map_err(|e| e.to_string())?;
                    socket.set_nodelay(true).map_err(|e| e.to_string())?;
                    // A byte at a time, so that nothing after the line is taken away from the reader.
                    let mut first = BufReader::with_capacity(1, &socket);
                    match talk::hear::<Hello>(&mut first) {
                        Ok(Some(hello)) if hello.number == number => {
                            socket.set_read_timeout(None).map_err(|e| e.to_string())?;
                            return Ok(socket);
                        }
                        // A stranger, or a worker that was given up.
                        _ => continue,
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if let Ok(Some(status)) = child.try_wait() {
                        return Err(format!("it ended at once: {status}"));
                    }
                    thread::sleep(Duration::from_millis(2));
                }
                Err(error) => return Err(error.to_string()),
            }
        }
        Err(format!("it has not called within {} s", CALL_MAX.as_secs()))
    }

    fn read(&self, number: u64, socket: TcpStream) {
        let sayer = self.sayer.clone();
        thread::spawn(move || {
            let mut reader = BufReader::new(socket);
            while let Ok(Some(word)) = talk::hear::<Word>(&mut reader) {
                if sayer.send((number, Said::Word(word))).is_err() {
                    return;
                }
            }
            let _ = sayer.send((number, Said::Gone));
        });
    }

    /// The next that any worker says, and which one.
    #[must_use]
    pub fn next(&self, longest: Duration) -> Option<(u64, Said)> {
        self.said.recv_timeout(longest).ok()
    }
}

impl Mate {
    /// Gives an order. A worker that is gone is noticed by its reader.
    pub fn order(&mut self, order: &Order) {
        let _ = talk::say(&mut self.to, order).and_then(|()| self.to.flush());
    }

    /// Its process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Kills it.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Waits for its end.
    #[must_use]
    pub fn wait(&mut self, longest: Duration) -> Option<ExitStatus> {
        let until = Instant::now() + longest;
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) => return Some(status),
                Ok(None) if Instant::now() < until => thread::sleep(Duration::from_millis(2)),
                _ => return None,
            }
        }
    }
}

impl Drop for Mate {
    fn drop(&mut self) {
        if !matches!(self.child.try_wait(), Ok(Some(_))) {
            self.kill();
        }
    }
}
