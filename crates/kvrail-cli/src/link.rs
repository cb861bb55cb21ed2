//! The control link at run time: one socket, one reader thread, one heartbeat.
//!
//! Whoever waits for the peer waits here, with a deadline, and learns within a second that the peer's process died,
//! within [`SILENCE_MAX`] that its host did, and within a moment that someone pressed Ctrl-C.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::control::{self, Frame, Hello, Message, PREAMBLE_BYTES, ProtocolError};
use crate::failure::{Failure, Kind};
use crate::signals;
use crate::units;

/// A peer that sends nothing at all for so long is given up: its heart beats every [`BEAT`].
const SILENCE_MAX: Duration = Duration::from_secs(10);
const BEAT: Duration = Duration::from_millis(500);
const _: () = assert!(SILENCE_MAX.as_millis() >= 10 * BEAT.as_millis(), "a late beat or two is no death");

/// How often a wait looks at Ctrl-C and the deadline.
const TICK: Duration = Duration::from_millis(50);
/// How long after a failure the peer's own account of it is waited for.
const LAST_WORDS: Duration = Duration::from_millis(300);
/// How often a wait calls what is to be done meanwhile.
const IDLE_TICK: Duration = Duration::from_millis(1);
/// Calls of an engine between two looks at the inbox.
const DRIVES: u32 = 16;
/// An engine that had something to do is driven without a pause for so long.
const DRIVING: Duration = Duration::from_millis(2);
/// Pause of an engine that has had nothing to do.
const DRIVING_NAP: Duration = Duration::from_micros(20);
/// Frames read ahead; more stay in the socket (backpressure).
const INBOX_FRAMES: usize = 16;
/// How long the first bytes of a connection may take.
const GREETING_MAX: Duration = Duration::from_secs(5);

/// An open control link.
pub(crate) struct Link {
    socket: TcpStream,
    writer: Arc<Mutex<TcpStream>>,
    inbox: Receiver<io::Result<Frame>>,
    pulse: Arc<Pulse>,
    stop: Arc<AtomicBool>,
    /// What the peer is called in messages: `target 10.0.0.7:7100`.
    peer: String,
    /// What the peer said about itself.
    pub(crate) hello: Hello,
}

/// What is done while the peer is waited for.
#[derive(Clone, Copy)]
enum Meanwhile<'a> {
    Sleep,
    /// Called every now and then.
    Look(&'a dyn Fn()),
    /// Called seldom, as of an engine that rests.
    Doze(&'a dyn Fn()),
    /// Called without a pause as long as it says that there was something to do.
    Drive(&'a dyn Fn() -> bool),
}

/// When the peer was last heard, and whether its socket is closed: what a measured loop may look at.
pub(crate) struct Pulse {
    origin: Instant,
    last_ms: AtomicU64,
    gone: AtomicBool,
}

impl Pulse {
    /// Of a peer that was heard now.
    #[cfg(test)]
    pub(crate) fn fresh() -> Self {
        Self { origin: Instant::now(), last_ms: AtomicU64::new(0), gone: AtomicBool::new(false) }
    }

    fn now(&self) {
        self.last_ms.store(self.origin.elapsed().as_millis() as u64, Ordering::Relaxed);
    }
    /// Whether the peer's process is known to be gone: a few loads, cheap enough for the slow path of a wait.
    pub(crate) fn gone(&self) -> bool {
        self.gone.load(Ordering::Relaxed) || self.silence() > SILENCE_MAX
    }
    fn silence(&self) -> Duration {
        let last = Duration::from_millis(self.last_ms.load(Ordering::Relaxed));
        self.origin.elapsed().saturating_sub(last)
    }
}

impl Link {
    /// Greets the peer on a fresh connection.
    ///
    /// # Errors
    /// When the peer is no kvrail bench, of another version, of the same role, or silent.
    pub(crate) fn open(socket: TcpStream, hello: Hello) -> Result<Self, Failure> {
        let address = socket.peer_addr().map_or_else(|_| "?".into(), |a| a.to_string());
        let other = match hello.role.as_str() {
            "initiator" => "target",
            "target" => "initiator",
            "conductor" => "player",
            "prober" => "listener",
            "listener" => "prober",
            _ => "conductor",
        };
        let peer = format!("{other} {address}");
        let failed = |e: io::Error| lost(&peer, &e, "in the greeting");
        socket.set_nodelay(true).map_err(failed)?;
        socket.set_read_timeout(Some(GREETING_MAX)).map_err(failed)?;
        socket.set_write_timeout(Some(SILENCE_MAX)).map_err(failed)?;
        let mut stream = socket.try_clone().map_err(failed)?;
        stream.write_all(&control::preamble()).map_err(failed)?;
        let mut preamble = [0; PREAMBLE_BYTES];
        stream.read_exact(&mut preamble).map_err(failed)?;
        control::check_preamble(&preamble).map_err(|e| unlike(&peer, &e))?;
        let bytes =
            control::encode(&Frame::Message(Message::Hello(hello.clone()))).map_err(|e| unlike(&peer, &e))?;
        stream.write_all(&bytes).map_err(failed)?;
        let theirs = match control::read_frame(&mut stream).map_err(failed)? {
            Frame::Message(Message::Hello(theirs)) => theirs,
            Frame::Message(Message::Abort { failure }) => return Err(failure.told_by(&peer)),
            other => return Err(Failure::peer(format!("{peer} did not introduce itself: {other:?}"))),
        };
        if theirs.role == hello.role {
            return Err(Failure::peer(format!("both sides are {}s; {address} is one too", hello.role))
                .hint("start one side with --role target and the other with --role initiator"));
        }
        if theirs.role != other {
            return Err(Failure::peer(format!("{peer} is a {}", theirs.role)));
        }
        // A probe finds out what differs; it compares no figures.
        if theirs.program != hello.program && hello.role != "prober" && hello.role != "listener" {
            return Err(Failure::peer(format!(
                "{peer} is kvrail {}, this is kvrail {}; their figures do not mix",
                theirs.program, hello.program
            ))
            .hint("install the same version on both hosts"));
        }
        socket.set_read_timeout(None).map_err(failed)?;
        Self::start(socket, stream, peer, theirs)
    }

    fn start(socket: TcpStream, reader: TcpStream, peer: String, hello: Hello) -> Result<Self, Failure> {
        let failed = |e: io::Error| lost(&peer, &e, "in the greeting");
        let writer = Arc::new(Mutex::new(socket.try_clone().map_err(failed)?));
        let pulse = Arc::new(Pulse {
            origin: Instant::now(),
            last_ms: AtomicU64::new(0),
            gone: AtomicBool::new(false),
        });
        let stop = Arc::new(AtomicBool::new(false));
        let (sender, inbox) = sync_channel(INBOX_FRAMES);
        let spawn = |name: &str, body: Box<dyn FnOnce() + Send>| {
            thread::Builder::new()
                .name(name.into())
                .spawn(body)
                .map(|_| ())
                .map_err(|e| Failure::environment(format!("cannot start a thread: {e}")))
        };
        let reading = Arc::clone(&pulse);
        spawn("kvrail-link", Box::new(move || read_loop(reader, &sender, &reading)))?;
        let (beating, stopping) = (Arc::clone(&writer), Arc::clone(&stop));
        spawn("kvrail-beat", Box::new(move || beat_loop(&beating, &stopping)))?;
        Ok(Self { socket, writer, inbox, pulse, stop, peer, hello })
    }

    /// The address that the control link has here: where a tcp transport should listen, too.
    pub(crate) fn local_ip(&self) -> String {
        self.socket.local_addr().map_or_else(|_| "127.0.0.1".into(), |a| a.ip().to_string())
    }

    /// What the peer is called from here on.
    pub(crate) fn name_peer(&mut self, name: String) {
        self.peer = name;
    }

    /// Both ends run on one kernel.
    pub(crate) fn same_host(&self, ours: &str) -> bool {
        !ours.is_empty() && self.hello.boot_id == ours
    }

    /// The peer's signs of life.
    pub(crate) fn pulse(&self) -> &Pulse {
        &self.pulse
    }

    /// Says something.
    ///
    /// # Errors
    /// When the peer is gone.
    pub(crate) fn send(&self, message: Message) -> Result<(), Failure> {
        self.send_frame(&Frame::Message(message))
    }

    /// Sends metadata.
    ///
    /// # Errors
    /// When the peer is gone, or the metadata is longer than the protocol allows.
    pub(crate) fn send_blob(&self, bytes: Vec<u8>) -> Result<(), Failure> {
        self.send_frame(&Frame::Blob(bytes))
    }

    fn send_frame(&self, frame: &Frame) -> Result<(), Failure> {
        let bytes = control::encode(frame).map_err(|e| Failure::peer(format!("this side {e}")))?;
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        writer.write_all(&bytes).map_err(|e| lost(&self.peer, &e, "while it was told what to do"))
    }

    /// A better explanation for a failure that may be the peer's end: its own last words, or that its process is
    /// gone, if either is learnt within a moment.
    pub(crate) fn explain(&self, failure: Failure) -> Failure {
        if failure.kind != Kind::Peer {
            return failure;
        }
        let until = Instant::now() + LAST_WORDS;
        loop {
            match self.inbox.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(Ok(Frame::Message(Message::Abort { failure }))) => return failure.told_by(&self.peer),
                Ok(Ok(_)) => {}
                Ok(Err(e)) => {
                    let ended = lost(&self.peer, &e, "in mid-run");
                    return Failure { what: format!("{}; {}", ended.what, failure.what), ..ended };
                }
                Err(_) => return failure,
            }
        }
    }

    /// Waits for the next message.
    ///
    /// # Errors
    /// When the peer aborts, dies or is silent, when `within` is over, or on Ctrl-C.
    pub(crate) fn receive(&self, awaited: &str, within: Duration) -> Result<Message, Failure> {
        self.receive_while(awaited, within, None)
    }

    /// The same, and meanwhile calls `idle` every now and then.
    ///
    /// # Errors
    /// As [`Link::receive`].
    pub(crate) fn receive_while(
        &self,
        awaited: &str,
        within: Duration,
        idle: Option<&dyn Fn()>,
    ) -> Result<Message, Failure> {
        let meanwhile = idle.map_or(Meanwhile::Sleep, Meanwhile::Look);
        self.receive_message(awaited, within, meanwhile)
    }

    /// The same, and meanwhile calls `drive`, which says whether there was anything to do, without a pause as long as there is.
    ///
    /// # Errors
    /// As [`Link::receive`].
    pub(crate) fn receive_driving(
        &self,
        awaited: &str,
        within: Duration,
        drive: &dyn Fn() -> bool,
    ) -> Result<Message, Failure> {
        self.receive_message(awaited, within, Meanwhile::Drive(drive))
    }

    /// The same, and calls `drive` seldom: an engine that rests has signs of life to give, no more.
    ///
    /// # Errors
    /// As [`Link::receive`].
    pub(crate) fn receive_dozing(
        &self,
        awaited: &str,
        within: Duration,
        drive: &dyn Fn(),
    ) -> Result<Message, Failure> {
        self.receive_message(awaited, within, Meanwhile::Doze(drive))
    }

    fn receive_message(
        &self,
        awaited: &str,
        within: Duration,
        meanwhile: Meanwhile<'_>,
    ) -> Result<Message, Failure> {
        match self.receive_frame(awaited, within, meanwhile)? {
            Frame::Message(message) => Ok(message),
            other => Err(self.unexpected(awaited, &other)),
        }
    }

    /// Waits for metadata.
    ///
    /// # Errors
    /// As [`Link::receive`].
    pub(crate) fn receive_blob(&self, awaited: &str, within: Duration) -> Result<Vec<u8>, Failure> {
        match self.receive_frame(awaited, within, Meanwhile::Sleep)? {
            Frame::Blob(bytes) => Ok(bytes),
            other => Err(self.unexpected(awaited, &other)),
        }
    }

    /// The failure for something that does not belong here.
    pub(crate) fn unexpected(&self, awaited: &str, got: &dyn std::fmt::Debug) -> Failure {
        let mut got = format!("{got:?}");
        got.truncate(got.char_indices().nth(80).map_or(got.len(), |(i, _)| i));
        Failure::peer(format!("{} was to send {awaited} and sent {got}", self.peer))
    }

    /// The next frame, if it comes in time; without any, no system call is made.
    fn next(&self, within: Duration) -> Result<io::Result<Frame>, RecvTimeoutError> {
        if within.is_zero() {
            return self.inbox.try_recv().map_err(|e| match e {
                TryRecvError::Empty => RecvTimeoutError::Timeout,
                TryRecvError::Disconnected => RecvTimeoutError::Disconnected,
            });
        }
        self.inbox.recv_timeout(within)
    }

    fn receive_frame(
        &self,
        awaited: &str,
        within: Duration,
        meanwhile: Meanwhile<'_>,
    ) -> Result<Frame, Failure> {
        let deadline = Instant::now() + within;
        let mut busy = Instant::now();
        loop {
            let tick = match meanwhile {
                Meanwhile::Sleep => TICK,
                Meanwhile::Doze(look) => {
                    look();
                    TICK
                }
                Meanwhile::Look(look) => {
                    look();
                    IDLE_TICK
                }
                Meanwhile::Drive(drive) => {
                    let mut any = false;
                    for _ in 0..DRIVES {
                        any |= drive();
                    }
                    if any {
                        busy = Instant::now();
                    }
                    if busy.elapsed() < DRIVING { Duration::ZERO } else { DRIVING_NAP }
                }
            };
            if signals::interrupted() {
                return Err(Failure::interrupted());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            match self.next(left.min(tick)) {
                Ok(Ok(Frame::Message(Message::Abort { failure }))) => {
                    return Err(failure.told_by(&self.peer));
                }
                Ok(Ok(frame)) => return Ok(frame),
                Ok(Err(e)) => return Err(lost(&self.peer, &e, &format!("while {awaited} was awaited"))),
                Err(RecvTimeoutError::Disconnected) => {
                    let e = io::ErrorKind::UnexpectedEof.into();
                    return Err(lost(&self.peer, &e, &format!("while {awaited} was awaited")));
                }
                Err(RecvTimeoutError::Timeout) if left <= tick => {
                    return Err(Failure::peer(format!(
                        "{} did not send {awaited} within {}, though its heart beats",
                        self.peer,
                        units::span(within)
                    ))
                    .hint("raise --timeout if the sizes are large for that host"));
                }
                Err(RecvTimeoutError::Timeout) if self.pulse.silence() > SILENCE_MAX => {
                    return Err(Failure::peer(format!(
                        "{} is silent for {} while {awaited} was awaited: it is stopped, or its host or the network is gone",
                        self.peer,
                        units::span(SILENCE_MAX)
                    )));
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Ends the reader thread; what was sent before is still delivered. Errors mean that it is closed already.
        let _ = self.socket.shutdown(Shutdown::Write);
        let _ = self.socket.set_read_timeout(Some(TICK));
    }
}

fn read_loop(mut socket: TcpStream, inbox: &SyncSender<io::Result<Frame>>, heard: &Pulse) {
    loop {
        let frame = control::read_frame(&mut socket);
        heard.now();
        match frame {
            Ok(Frame::Beat) => {}
            Ok(frame) => {
                if inbox.send(Ok(frame)).is_err() {
                    return;
                }
            }
            Err(e) => {
                heard.gone.store(true, Ordering::Relaxed);
                let _ = inbox.send(Err(e));
                return;
            }
        }
    }
}

fn beat_loop(writer: &Mutex<TcpStream>, stop: &AtomicBool) {
    let Ok(beat) = control::encode(&Frame::Beat) else { return };
    while !stop.load(Ordering::Relaxed) {
        let sent = writer.lock().unwrap_or_else(PoisonError::into_inner).write_all(&beat);
        if sent.is_err() {
            return;
        }
        thread::sleep(BEAT);
    }
}

fn lost(peer: &str, e: &io::Error, when: &str) -> Failure {
    let how = match e.kind() {
        io::ErrorKind::UnexpectedEof => "closed the link: its process ended or was killed".into(),
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionAborted => {
            "reset the link: its process was killed".into()
        }
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => "does not answer".into(),
        io::ErrorKind::InvalidData => return Failure::peer(format!("{peer} {e} ({when})")),
        _ => format!("cannot be reached: {e}"),
    };
    Failure::peer(format!("{peer} {how} ({when})"))
}

fn unlike(peer: &str, e: &ProtocolError) -> Failure {
    let failure = Failure::peer(format!("{peer} {e}"));
    match e {
        ProtocolError::Version(_) => failure.hint("install the same version of kvrail on both hosts"),
        _ => failure.hint("check the address: another program listens there"),
    }
}
