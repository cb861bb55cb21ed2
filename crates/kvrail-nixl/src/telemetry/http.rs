//! What answers Prometheus: one page by HTTP/1.1, on one thread that serves several connections at once.
//!
//! Everything is bounded: connections, the bytes of a request, the time that a connection may take. A client that sends nothing, or a
//! byte now and then, or does not read, holds one place for that time and nobody up.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

/// Connections at a time; more wait in the system's queue.
const CONNECTIONS_MAX: usize = 16;
/// Bytes of a request's head.
const HEAD_BYTES_MAX: usize = 8192;
/// From the first byte expected to the last one taken.
const CONNECTION_TIME: Duration = Duration::from_secs(5);
/// How long nothing is accepted after the system refused to.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);
/// How long the thread sleeps when nothing happens.
const IDLE: Duration = Duration::from_secs(60);

/// What makes the page.
pub(crate) type Source = dyn Fn() -> String + Send + Sync;

/// A server; dropping it closes its port.
#[derive(Debug)]
pub(crate) struct Server {
    address: SocketAddr,
    ending: Arc<Ending>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Ending {
    wanted: AtomicBool,
    wake: OwnedFd,
}

impl Server {
    pub(crate) fn bind(address: SocketAddr, source: Arc<Source>) -> io::Result<Self> {
        let listener = TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let ending = Arc::new(Ending { wanted: AtomicBool::new(false), wake });
        let serving =
            Serving { listener, source, ending: ending.clone(), connections: Vec::new(), paused: None };
        let thread = std::thread::Builder::new().name("kvrail-metrics".to_owned());
        let thread = thread.spawn(move || serving.run())?;
        Ok(Self { address, ending, thread: Some(thread) })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.ending.wanted.store(true, Ordering::Release);
        // A full counter is a wake-up as well.
        let _ = rustix::io::write(&self.ending.wake, &1_u64.to_ne_bytes());
        // The last owner of an agent may be the page that was just made of it: a thread does not wait for itself.
        if let Some(thread) =
            self.thread.take().filter(|thread| thread.thread().id() != std::thread::current().id())
        {
            let _ = thread.join();
        }
    }
}

struct Serving {
    listener: TcpListener,
    source: Arc<Source>,
    ending: Arc<Ending>,
    connections: Vec<Connection>,
    paused: Option<Instant>,
}

impl Serving {
    fn run(mut self) {
        while !self.ending.wanted.load(Ordering::Acquire) {
            let now = Instant::now();
            self.connections.retain(|connection| connection.deadline > now);
            self.paused = self.paused.filter(|until| *until > now);
            let ready = self.wait(now);
            let (listening, ready) =
                ready.split_first().map_or((false, &[][..]), |(first, rest)| (*first, rest));
            let mut ready = ready.iter();
            let source = &*self.source;
            self.connections.retain_mut(|connection| {
                !ready.next().is_some_and(|ready| *ready) || connection.go_on(source)
            });
            if listening {
                self.accept();
            }
        }
    }

    /// Whether the listener, then each connection, has something to do.
    fn wait(&self, now: Instant) -> Vec<bool> {
        let accepting = self.paused.is_none() && self.connections.len() < CONNECTIONS_MAX;
        let mut polled = vec![PollFd::from_borrowed_fd(self.ending.wake.as_fd(), PollFlags::IN)];
        let listener = if accepting { PollFlags::IN } else { PollFlags::empty() };
        polled.push(PollFd::new(&self.listener, listener));
        polled.extend(
            self.connections.iter().map(|connection| PollFd::new(&connection.stream, connection.wants())),
        );
        let deadlines = self.connections.iter().map(|connection| connection.deadline).chain(self.paused);
        let until = deadlines.min().map_or(IDLE, |deadline| deadline.saturating_duration_since(now));
        let until = Timespec { tv_sec: until.as_secs() as _, tv_nsec: until.subsec_nanos().max(1) as _ };
        match poll(&mut polled, Some(&until)) {
            Ok(_) => polled[1..].iter().map(|polled| !polled.revents().is_empty()).collect(),
            Err(_) => Vec::new(),
        }
    }

    fn accept(&mut self) {
        match self.listener.accept() {
            Ok((stream, _)) if stream.set_nonblocking(true).is_ok() => {
                let deadline = Instant::now() + CONNECTION_TIME;
                self.connections.push(Connection { stream, deadline, head: Vec::new(), answer: None });
            }
            Err(error) if !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                self.paused = Some(Instant::now() + ACCEPT_PAUSE);
            }
            _ => {}
        }
    }
}

struct Connection {
    stream: TcpStream,
    deadline: Instant,
    head: Vec<u8>,
    /// What is sent, and how much of it was. Once all was, what the client still sends is read away so that it gets all.
    answer: Option<(Vec<u8>, usize)>,
}

impl Connection {
    fn wants(&self) -> PollFlags {
        match &self.answer {
            Some((bytes, sent)) if *sent < bytes.len() => PollFlags::OUT,
            _ => PollFlags::IN,
        }
    }

    /// Whether it goes on.
    fn go_on(&mut self, source: &Source) -> bool {
        let step = match &mut self.answer {
            Some((bytes, sent)) if *sent < bytes.len() => self.stream.write(&bytes[*sent..]).map(|count| {
                *sent += count;
                *sent < bytes.len() || self.stream.shutdown(Shutdown::Write).is_ok()
            }),
            Some(_) => self.stream.read(&mut [0; 4096]).map(|count| count > 0),
            None => self.receive(source),
        };
        step.unwrap_or_else(|error| matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted))
    }

    fn receive(&mut self, source: &Source) -> io::Result<bool> {
        let mut bytes = [0; 4096];
        let count = self.stream.read(&mut bytes)?;
        self.head.extend_from_slice(&bytes[..count]);
        let whole = self.head.windows(4).any(|end| end == b"\r\n\r\n")
            || self.head.windows(2).any(|end| end == b"\n\n");
        if whole {
            self.answer = Some((answer(&self.head, source), 0));
        } else if self.head.len() > HEAD_BYTES_MAX {
            self.answer =
                Some((response("431 Request Header Fields Too Large", "the request is too long\n", true), 0));
        }
        Ok(count > 0 || self.answer.is_some())
    }
}

fn answer(head: &[u8], source: &Source) -> Vec<u8> {
    let line = head.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let line = String::from_utf8_lossy(line);
    let mut words = line.split_ascii_whitespace();
    let (method, target, version) = (words.next(), words.next(), words.next());
    let with_body = method != Some("HEAD");
    match (method, target, version) {
        (_, None, _) | (_, _, None) => response("400 Bad Request", "this is not HTTP\n", true),
        (_, _, Some(version)) if !version.starts_with("HTTP/1.") => {
            response("505 HTTP Version Not Supported", "HTTP/1.1 is spoken here\n", true)
        }
        (Some("GET" | "HEAD"), Some(target), _) => match target.split('?').next() {
            Some("/metrics") => response("200 OK", &source(), with_body),
            _ => response("404 Not Found", "the page is /metrics\n", with_body),
        },
        _ => response("405 Method Not Allowed", "the page is there to GET\n", true),
    }
}

fn response(status: &str, body: &str, with_body: bool) -> Vec<u8> {
    let allow = if status.starts_with("405") { "Allow: GET, HEAD\r\n" } else { "" };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\nContent-Length: {}\r\n{allow}Connection: close\r\n\r\n",
        body.len()
    );
    let body = if with_body { body } else { "" };
    [head.as_bytes(), body.as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(page: &str) -> Server {
        let page = page.to_owned();
        Server::bind(([127, 0, 0, 1], 0).into(), Arc::new(move || page.clone())).unwrap()
    }

    fn connect(server: &Server) -> TcpStream {
        let stream = TcpStream::connect(server.address()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream
    }

    fn ask(server: &Server, request: &[u8]) -> String {
        let mut stream = connect(server);
        stream.write_all(request).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    #[test]
    fn the_page_is_served_and_what_is_no_request_for_it_is_told_so() {
        let server = server("a_total 1\n");
        let page = ask(&server, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
        assert!(
            page.starts_with("HTTP/1.1 200 OK\r\n") && page.ends_with("Connection: close\r\n\r\na_total 1\n"),
            "{page}"
        );
        assert!(page.contains("Content-Length: 10\r\n"));
        let head = ask(&server, b"HEAD /metrics?x=y HTTP/1.0\r\n\r\n");
        assert!(head.starts_with("HTTP/1.1 200") && head.ends_with("\r\n\r\n"));
        for (request, status) in [
            (&b"GET / HTTP/1.1\r\n\r\n"[..], "404"),
            (b"POST /metrics HTTP/1.1\r\n\r\n", "405"),
            (b"GET /metrics HTTP/2\r\n\r\n", "505"),
            (b"\r\n\r\n", "400"),
            (b"\xff\xfe\0\r\n\r\n", "400"),
            (&[b'x'; HEAD_BYTES_MAX + 1], "431"),
        ] {
            let answer = ask(&server, request);
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
        }
    }

    #[test]
    fn clients_that_dawdle_hold_nobody_up_and_a_long_page_is_whole() {
        let server = server(&"0123456789".repeat(300_000));
        let _silent: Vec<_> = (0..5).map(|_| connect(&server)).collect();
        let mut slow = connect(&server);
        slow.write_all(b"GET /met").unwrap();
        let mut deaf = connect(&server);
        deaf.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").unwrap();
        let begin = Instant::now();
        for _ in 0..3 {
            let page = ask(&server, b"GET /metrics HTTP/1.1\r\n\r\n");
            assert_eq!(page.split("\r\n\r\n").nth(1).unwrap().len(), 3_000_000);
        }
        assert!(begin.elapsed() < CONNECTION_TIME);
        slow.write_all(b"rics HTTP/1.1\r\n\r\n").unwrap();
        let mut page = String::new();
        slow.read_to_string(&mut page).unwrap();
        assert!(page.starts_with("HTTP/1.1 200"));
    }

    #[test]
    fn the_port_is_free_once_the_server_is_gone_though_clients_are_not() {
        let server = server("");
        let address = server.address();
        let client = connect(&server);
        let begin = Instant::now();
        drop(server);
        assert!(begin.elapsed() < Duration::from_secs(4));
        let again = Server::bind(address, Arc::new(String::new)).unwrap();
        drop((client, again));
    }
}
