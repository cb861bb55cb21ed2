//! An agent that only notes what its exchange asks of it.
#![allow(dead_code)] // Each test program uses its part.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use kvrail_nixl::exchange::{Destination, Exchange, ExchangeConfig, Host};
use kvrail_nixl::{Error, Result, Status};

/// Long enough for anything that is to happen, on a busy machine.
pub(crate) const LONG: Duration = Duration::from_secs(20);

/// What a call from the exchange did.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Call {
    Load(String),
    Forget(String),
}

type Hook = Box<dyn Fn(&str) + Send + Sync>;

/// An agent whose metadata is `md:NAME:REST`.
pub(crate) struct Fake {
    name: String,
    calls: Mutex<Vec<Call>>,
    known: Mutex<BTreeSet<String>>,
    /// Called in every load, with the metadata.
    on_load: Option<Hook>,
    exchange: OnceLock<Exchange>,
}

pub(crate) fn metadata(name: &str, rest: &str) -> Vec<u8> {
    format!("md:{name}:{rest}").into_bytes()
}

impl Host for Fake {
    fn name(&self) -> &str {
        &self.name
    }

    fn metadata(&self) -> Result<Vec<u8>> {
        Ok(metadata(&self.name, "all"))
    }

    fn load(&self, metadata: &[u8]) -> Result<String> {
        let text = String::from_utf8_lossy(&metadata[..metadata.len().min(200)]);
        let parts: Vec<&str> = text.split(':').collect();
        let ["md", name, ..] = parts[..] else {
            return Err(Error::new(Status::Mismatch, "these bytes are no metadata"));
        };
        if let Some(hook) = &self.on_load {
            hook(&text);
        }
        self.known.lock().expect("no panic").insert(name.into());
        self.calls.lock().expect("no panic").push(Call::Load(text.clone().into_owned()));
        Ok(name.into())
    }

    fn forget(&self, name: &str) {
        self.known.lock().expect("no panic").remove(name);
        self.calls.lock().expect("no panic").push(Call::Forget(name.into()));
    }
}

impl Fake {
    pub(crate) fn start(config: ExchangeConfig) -> Arc<Self> {
        Self::with_hook(config, None)
    }

    pub(crate) fn with_hook(config: ExchangeConfig, on_load: Option<Hook>) -> Arc<Self> {
        let name = config.agent.clone();
        let fake = Arc::new(Self {
            name,
            calls: Mutex::default(),
            known: Mutex::default(),
            on_load,
            exchange: OnceLock::new(),
        });
        let host: Arc<dyn Host> = fake.clone();
        let exchange = Exchange::start(Arc::downgrade(&host), config).expect("the exchange starts");
        let _ = fake.exchange.set(exchange);
        fake
    }

    /// An agent that listens on any free port.
    pub(crate) fn listening(name: &str) -> Arc<Self> {
        let mut config = ExchangeConfig::new(name);
        config.listen = Some(0);
        Self::start(config)
    }

    /// One that does not.
    pub(crate) fn quiet(name: &str) -> Arc<Self> {
        Self::start(ExchangeConfig::new(name))
    }

    pub(crate) fn exchange(&self) -> &Exchange {
        self.exchange.get().expect("it was started")
    }

    pub(crate) fn port(&self) -> u16 {
        self.exchange().port().expect("it listens")
    }

    /// Where it is, for others.
    pub(crate) fn place(&self) -> Destination {
        Destination::at("127.0.0.1", self.port())
    }

    pub(crate) fn knows(&self, name: &str) -> bool {
        self.known.lock().expect("no panic").contains(name)
    }

    pub(crate) fn calls(&self) -> Vec<Call> {
        self.calls.lock().expect("no panic").clone()
    }

    pub(crate) fn await_known(&self, name: &str) {
        eventually(&format!("{} knows {name}", self.name), || self.knows(name));
    }

    pub(crate) fn await_forgotten(&self, name: &str) {
        eventually(&format!("{} forgets {name}", self.name), || !self.knows(name));
    }
}

pub(crate) fn eventually(what: &str, done: impl Fn() -> bool) {
    let began = Instant::now();
    while !done() {
        assert!(began.elapsed() < LONG, "not within {LONG:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
