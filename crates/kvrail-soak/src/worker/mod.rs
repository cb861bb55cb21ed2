//! The worker: one agent, told what to do by a supervisor, looking at every byte for itself.
//!
//! It decides nothing. What its peers' transfers brought is looked at in the moment in which their notification comes, by
//! the thread that it came to.

mod end;
mod many;
mod moving;
mod transport;

use std::collections::HashMap;
use std::io::{self, BufReader, BufWriter, Write};
use std::net::TcpStream;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use kvrail::{Agent, Memory, Notification, PeerEvent, Progress, Region};
use serde::{Deserialize, Serialize};

use crate::plant::Plant;
use crate::talk::{self, Count, Find, Order, Part, Tenant, Word};
use end::{End, Place, Role, Side};
use many::Heard;
use moving::Moving;

/// The argument that makes a program a worker.
pub const WORD: &str = "kvrail-worker";

/// How often a worker with something in flight looks at it.
const LOOK_EVERY: Duration = Duration::from_micros(300);
/// The same with nothing in flight.
const IDLE: Duration = Duration::from_millis(5);
/// Longest wait for a region that is deregistered.
const DEREGISTER_MAX: Duration = Duration::from_secs(15);
/// Most notifications and events that are taken in before orders are looked at again.
const AT_ONCE: usize = 256;

/// The first line that a worker says: which one it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Hello {
    pub(crate) number: u64,
    pub(crate) pid: u32,
}

/// The connection to the supervisor, shared by the worker's threads.
#[derive(Clone)]
struct Mouth(Arc<Mutex<BufWriter<TcpStream>>>);

impl Mouth {
    fn say(&self, word: &Word) {
        let mut to = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // A supervisor that is gone is noticed by the reader.
        let _ = talk::say(&mut *to, word).and_then(|()| to.flush());
    }
}

/// What both threads need.
#[derive(Default)]
struct Ends {
    ends: Mutex<HashMap<u64, End>>,
    heard: Heard,
}

impl Ends {
    fn lock(&self) -> MutexGuard<'_, HashMap<u64, End>> {
        self.ends.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Runs as a worker: `ADDRESS NUMBER` after the word.
#[must_use]
pub fn main(words: impl Iterator<Item = String>) -> ExitCode {
    let words: Vec<String> = words.collect();
    let [address, number] = words.as_slice() else {
        eprintln!("error: a worker needs the supervisor's address and its number");
        return ExitCode::from(2);
    };
    let Ok(number) = number.parse() else {
        eprintln!("error: {number} is no number");
        return ExitCode::from(2);
    };
    match serve(address, number) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: the supervisor at {address}: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve(address: &str, number: u64) -> io::Result<ExitCode> {
    let socket = TcpStream::connect(address)?;
    socket.set_nodelay(true)?;
    let mut reader = BufReader::new(socket.try_clone()?);
    let mut writer = BufWriter::new(socket);
    talk::say(&mut writer, &Hello { number, pid: std::process::id() })?;
    writer.flush()?;
    let mouth = Mouth(Arc::new(Mutex::new(writer)));
    let (send, orders) = mpsc::channel();
    thread::spawn(move || {
        while let Ok(Some(order)) = talk::hear::<Order>(&mut reader) {
            if send.send(order).is_err() {
                return;
            }
        }
        // The channel closes: without a supervisor there is nothing to do.
    });
    let Ok(Order::Be(part)) = orders.recv() else { return Ok(ExitCode::FAILURE) };
    let mut worker = match Worker::begin(part, mouth.clone()) {
        Ok(worker) => worker,
        Err(what) => {
            eprintln!("error: {what}");
            mouth.say(&Word::Cannot { what });
            return Ok(ExitCode::FAILURE);
        }
    };
    Ok(worker.work(&orders))
}

struct Worker {
    part: Part,
    agent: Agent,
    memory: Vec<Memory>,
    regions: Vec<Option<Region>>,
    ends: Arc<Ends>,
    moving: HashMap<u64, Moving>,
    mouth: Mouth,
    over: Arc<AtomicBool>,
    /// Postings so far: defects bite now and then.
    posted: u64,
    leaked: Vec<Region>,
    listener: Option<JoinHandle<()>>,
}

impl Worker {
    fn begin(part: Part, mouth: Mouth) -> Result<Self, String> {
        let said = |e: &dyn std::error::Error| e.to_string();
        let progress = if part.thread { Progress::Thread } else { Progress::Inline };
        let agent = Agent::builder(part.name.clone())
            .transports([transport::transport(&part.rails)?])
            .progress(progress)
            .peer_timeout(Duration::from_millis(part.peer_timeout_ms))
            .close_timeout(Duration::from_secs(10))
            .ignore_environment()
            .build()
            .map_err(|e| said(&e))?;
        let memory: Vec<Memory> = part
            .regions
            .iter()
            .map(|bytes| Memory::private(*bytes as usize))
            .collect::<Result<_, _>>()
            .map_err(|e| said(&e))?;
        for memory in &memory {
            // All of it is there from the start: what grows later is a leak.
            memory.fill(0, memory.len(), 0xA5).map_err(|e| said(&e))?;
        }
        let regions = agent.register_many(memory.clone()).map_err(|e| said(&e))?;
        let rails = agent.stats().transports.iter().flat_map(|t| &t.rails).map(|r| r.name.clone()).collect();
        mouth.say(&Word::Am { tenants: regions.iter().map(tenant).collect(), rails });
        let mut worker = Self {
            agent,
            memory,
            regions: regions.into_iter().map(Some).collect(),
            ends: Arc::default(),
            moving: HashMap::new(),
            mouth,
            over: Arc::default(),
            posted: 0,
            leaked: Vec::new(),
            listener: None,
            part,
        };
        if worker.part.thread {
            worker.listener = Some(worker.listen());
        }
        Ok(worker)
    }

    /// Looks at notifications in a thread of its own, so that none waits for the worker's other work.
    fn listen(&self) -> JoinHandle<()> {
        let (agent, ends, mouth) = (self.agent.clone(), self.ends.clone(), self.mouth.clone());
        let over = self.over.clone();
        thread::spawn(move || {
            while !over.load(Ordering::Acquire) {
                if let Ok(notification) = agent.wait_notification(Duration::from_millis(200)) {
                    hear(&ends, &mouth, &notification);
                }
            }
        })
    }

    fn work(&mut self, orders: &Receiver<Order>) -> ExitCode {
        loop {
            let busy = !self.moving.is_empty() || !self.part.thread;
            match orders.recv_timeout(if busy { LOOK_EVERY } else { IDLE }) {
                Ok(Order::End) => return self.end(),
                Ok(order) => self.obey(order),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return ExitCode::FAILURE,
            }
            self.look();
        }
    }

    fn look(&mut self) {
        if !self.part.thread {
            for _ in 0..AT_ONCE {
                let Some(notification) = self.agent.poll_notification() else { break };
                hear(&self.ends, &self.mouth, &notification);
            }
        }
        self.watch();
        for _ in 0..AT_ONCE {
            let Some(event) = self.agent.poll_event() else { break };
            self.tell(event);
        }
    }

    fn tell(&self, event: PeerEvent) {
        let word = match event {
            PeerEvent::Lost { peer_name, cause } => {
                Word::Lost { peer: peer_name.to_string(), cause: cause.to_string() }
            }
            PeerEvent::TransferFailed { message, .. } => match number(&message) {
                Some((b'N', id)) => Word::ToldOfFailure { id },
                _ => Word::Cannot { what: format!("heard of the failure of a mangled message {message:?}") },
            },
            PeerEvent::RouteDown { peer_name, route, error, .. } => {
                Word::Route { peer: peer_name.to_string(), what: format!("{route} down: {error}") }
            }
            PeerEvent::RouteUp { peer_name, route, .. } => {
                Word::Route { peer: peer_name.to_string(), what: format!("{route} up") }
            }
            _ => return,
        };
        self.mouth.say(&word);
    }

    fn obey(&mut self, order: Order) {
        let word = match order {
            Order::Be(_) | Order::End => return,
            Order::Describe => match self.agent.metadata() {
                Ok(bytes) => Word::Metadata { metadata: talk::hex(&bytes) },
                Err(error) => Word::Cannot { what: format!("cannot describe: {error}") },
            },
            Order::Meet { metadata } => Word::Met { peer: self.meet(&metadata) },
            Order::Expect { id, way, shape, extent } => {
                let role = if way == talk::Way::Write { Role::Target } else { Role::Source };
                let place = Place {
                    region: extent.region,
                    memory: self.memory[extent.region].clone(),
                    offset: extent.offset,
                };
                match End::prepare(self.part.seed, id, role, Side::Responder, &shape.layout(), place) {
                    Ok(end) => {
                        self.ends.lock().insert(id, end);
                        Word::Ready { id }
                    }
                    Err(what) => Word::Cannot { what },
                }
            }
            Order::Post(posting) => return self.post(posting),
            Order::Settle { id, find } => self.settle(id, find),
            Order::Release { id } => {
                let wrong = self.ends.lock().remove(&id).and_then(|end| end.check_quiet());
                Word::Released { id, wrong }
            }
            Order::Renew { region } => Word::Renewed { region, tenant: self.renew(region) },
            Order::Send { peer, number } => {
                let message = message(b'M', number);
                let sent = self.agent.peer(&peer).map(|peer| self.agent.send(&peer, message));
                Word::Sent { number, accepted: matches!(sent, Some(Ok(()))) }
            }
            Order::Burst { peer, count } => self.burst(&peer, count),
            Order::Visit { metadata, count } => match talk::bytes(&metadata) {
                Some(metadata) => self.visit(&metadata, count),
                None => Word::Cannot { what: "no hexadecimal digits".into() },
            },
            Order::Count => Word::Counted(self.count()),
        };
        self.mouth.say(&word);
    }

    fn meet(&self, metadata: &str) -> Result<String, String> {
        let bytes = talk::bytes(metadata).ok_or("no hexadecimal digits")?;
        self.agent.connect(&bytes).map(|peer| peer.name().to_owned()).map_err(|error| error.to_string())
    }

    fn settle(&mut self, id: u64, find: Find) -> Word {
        let mut ends = self.ends.lock();
        // One that was refused before it had an end here.
        let Some(end) = ends.get_mut(&id) else { return Word::Settled { id, wrong: None } };
        if end.role == Role::Target && find == Find::All {
            match self.part.plant {
                Some(Plant::FlipByte) => end.spoil(true),
                Some(Plant::Spill) => end.spoil(false),
                _ => {}
            }
        }
        let wrong = end.check(find);
        let put = end.retire();
        match (wrong, put) {
            (wrong, Ok(())) => Word::Settled { id, wrong },
            (_, Err(what)) => Word::Cannot { what },
        }
    }

    /// Deregisters a region under whoever uses it from afar. Once that has returned, the memory is this process's own.
    fn renew(&mut self, number: usize) -> Result<Tenant, String> {
        let region = self.regions[number].take().ok_or("the region is not registered")?;
        let memory = region.deregister(DEREGISTER_MAX).map_err(|error| error.to_string())?;
        let mut ends = self.ends.lock();
        for end in ends.values_mut().filter(|end| end.region == number && !end.is_retired()) {
            end.retire()?;
        }
        drop(ends);
        let region = self.agent.register(memory).map_err(|error| error.to_string())?;
        let tenant = tenant(&region);
        self.regions[number] = Some(region);
        Ok(tenant)
    }

    fn count(&mut self) -> Count {
        if self.part.plant == Some(Plant::LeakRegion)
            && let Ok(memory) = Memory::private(4096)
        {
            self.leaked.extend(self.agent.register(memory));
        }
        let stats = self.agent.stats();
        let resident = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
        let pages = resident.split(' ').nth(1).and_then(|n| n.parse::<u64>().ok()).unwrap_or(0);
        Count {
            resident_kib: pages * kvrail::memory::page_bytes() as u64 / 1024,
            regions: stats.regions,
            transfers: stats.transports.iter().map(|t| t.transfers_in_flight).sum(),
            peers: stats.peers,
            unknown: stats.transports.iter().map(|t| t.engine.completions_unknown).sum(),
            descriptors: std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count),
            heard: self.ends.heard.count.load(Ordering::Acquire),
            heard_twice: self.ends.heard.twice.load(Ordering::Acquire),
        }
    }

    fn end(&mut self) -> ExitCode {
        if self.part.plant == Some(Plant::Linger) {
            thread::sleep(Duration::from_secs(60));
        }
        self.over.store(true, Ordering::Release);
        let undrained = self.agent.close().err().map_or(0, |error| error.transfers);
        // Its share of the agent must be gone before the process is: libraries end then.
        if let Some(listener) = self.listener.take() {
            let _ = listener.join();
        }
        self.look();
        self.mouth.say(&Word::Ending { undrained });
        ExitCode::SUCCESS
    }
}

fn tenant(region: &Region) -> Tenant {
    Tenant { id: region.id().0, generation: region.generation().0 }
}

/// What a notification or a message says.
fn message(kind: u8, number: u64) -> Vec<u8> {
    let mut message = vec![kind];
    message.extend(number.to_le_bytes());
    message
}

fn number(message: &[u8]) -> Option<(u8, u64)> {
    let (kind, rest) = message.split_first()?;
    Some((*kind, u64::from_le_bytes(rest.try_into().ok()?)))
}

/// Takes a notification in, and looks at the bytes that it stands for.
fn hear(ends: &Ends, mouth: &Mouth, notification: &Notification) {
    let word = match number(&notification.message) {
        Some((b'M', number)) => Word::Heard { number },
        Some((b'B', number)) => return ends.heard.hear(number),
        Some((b'N', id)) => {
            let mut ends = ends.lock();
            let wrong = match ends.get_mut(&id) {
                Some(end) if end.is_retired() => None,
                Some(end) if end.role == Role::Target => end.check(Find::All).map(|wrong| wrong.what),
                // The bytes have left: the memory is this process's own again.
                Some(end) => end.check(Find::All).map(|wrong| wrong.what).or(end.retire().err()),
                None => None,
            };
            Word::Notified { id, peer: notification.peer_name.to_string(), wrong }
        }
        _ => Word::Cannot { what: format!("a mangled notification: {:?}", notification.message) },
    };
    mouth.say(&word);
}
