//! What an engine really used (KR-13): what a report prints beside its figures, never what was asked for.

/// One transport of an engine, as it is.
#[derive(Clone, PartialEq, Debug)]
pub struct Used {
    /// Release of the engine, as it says itself.
    pub version: String,
    /// What carries bytes, in the engine's own words: `shm`, `ofi`, `tcp`, `UCX`, `LIBFABRIC`, `memcpy`; `unknown` where the engine
    /// does not say.
    pub transport: String,
    /// What proves that a write is visible at the peer: `counted`, `delivered`, `flushed`, `copied`, `notified`, `none`…
    pub evidence: String,
    /// The rails that it uses, in its own order; empty where it does not say.
    pub rails: Vec<Rail>,
    /// Whatever else says what was used: `provider`, `library`, `plugin`, `lanes`…
    pub facts: Vec<Fact>,
    /// What only kvrail's own libfabric transport knows.
    pub ofi: Option<Box<kvrail::ofi::Facts>>,
}

/// One rail.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rail {
    /// The NIC's name, as its provider has it.
    pub name: String,
    /// Line rate, bits per second; 0 when unknown.
    pub rate_bps: u64,
    /// PCI address; none when unknown.
    pub pci: Option<String>,
    /// NUMA node; none when unknown.
    pub numa: Option<u16>,
}

/// Something worth knowing, by name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fact {
    /// Its name, in lower case: `provider`.
    pub name: String,
    /// Its value.
    pub value: String,
}

impl Fact {
    /// A fact.
    pub fn new(name: impl Into<String>, value: impl Into<String>) -> Self {
        Self { name: name.into(), value: value.into() }
    }
}
