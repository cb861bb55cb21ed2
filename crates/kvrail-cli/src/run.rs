//! What the flags add up to: who this process is, which cases it runs, and how long.
//!
//! Resolution is pure. Whatever two flags contradict each other about is an error here, before a socket is opened or a
//! page is touched (KR-13).

use std::time::Duration;

use kvrail_engines::{Name, Plant};
use serde::{Deserialize, Serialize};

use crate::args::{Bench, Conducted, Format, Injection, Preset, Role, What};
use crate::case::{Case, Layout, Memory, Op, Progress, Transport, Verify};
use crate::engines::{self, Choice};
use crate::failure::Failure;

/// Who this process is, once the flags agree.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Place {
    /// Both sides on this host: starts the target itself.
    Both,
    /// Waits at an address.
    Target(String),
    /// Goes to an address.
    Initiator(String),
    /// Whoever binds it first is target.
    Auto(String),
}

/// When a case has been measured enough.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Effort {
    /// So many timed transfers per thread.
    Iterations(u64),
    /// So much timed time.
    Duration(Duration),
}

/// What the flags add up to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Run {
    pub(crate) place: Place,
    pub(crate) timeout: Duration,
    /// What is measured, in turns where there are several.
    pub(crate) engines: Vec<Choice>,
    pub(crate) cases: Vec<Case>,
    /// Transports for `--kind control`.
    pub(crate) control: Option<Vec<Transport>>,
    pub(crate) effort: Effort,
    pub(crate) warmup: u32,
    pub(crate) progress: Progress,
    /// Where this side's libraries are.
    pub(crate) libraries: crate::engines::Flags,
    /// What this side asks of libfabric.
    pub(crate) ofi: crate::ofi::Flags,
    pub(crate) seed: u64,
    pub(crate) spawned: bool,
    /// What this process is in a run of several engines, when it was started for one of them.
    pub(crate) conducted: Option<Conducted>,
    pub(crate) injection: Option<Injection>,
    /// A defect on the path of every engine.
    pub(crate) plant: Option<Plant>,
}

const TIMEOUT: Duration = Duration::from_secs(60);
const DURATION: Duration = Duration::from_millis(400);
const LISTEN: &str = "127.0.0.1:7100";
/// Cases of a run at most.
const CASES_MAX: usize = 4096;

impl Run {
    /// Whether each engine has processes of its own: where several take turns, and for any that is other people's code.
    pub(crate) fn is_conducted(&self) -> bool {
        self.control.is_none()
            && (self.engines.len() > 1 || self.engines.iter().any(|e| engines::is_foreign(e.name)))
    }
}

impl Bench {
    /// Adds the flags up.
    ///
    /// # Errors
    /// A usage failure when two contradict each other, or a case cannot exist.
    pub(crate) fn resolve(&self, random_seed: u64) -> Result<Run, Failure> {
        let place = self.place()?;
        if matches!(place, Place::Target(_)) {
            self.refuse_workload_at_target()?;
        }
        if self.kind == What::Control {
            self.refuse_workload_for_control()?;
        }
        if self.injection_is_misplaced(&place) {
            return Err(Failure::usage("--inject-corruption is for a target"));
        }
        let timeout = self.timeout.unwrap_or(TIMEOUT);
        let seed = self.seed.unwrap_or(random_seed);
        let transports = unique(&self.transport, "--transport", Transport::Auto)?;
        let engines = match place {
            Place::Target(_) => Vec::new(),
            // Who started it has checked its flags.
            _ if self.conducted.is_some() => self.engines.choices()?,
            _ => self.engines_for(&transports)?,
        };
        // One engine with a way of its own is as if --transport had named it.
        let transports = match engines.as_slice() {
            [Choice { name: Name::Kvrail, .. }] => engines[0].transport().map_or(transports, |one| vec![one]),
            _ => transports,
        };
        let control = (self.kind == What::Control).then(|| transports.clone());
        let cases = if control.is_some() { Vec::new() } else { self.cases(&transports, seed, timeout)? };
        let effort = match (self.iterations, self.duration) {
            (Some(n), _) => Effort::Iterations(n),
            (None, d) => Effort::Duration(d.unwrap_or(DURATION)),
        };
        Ok(Run {
            place,
            timeout,
            engines,
            cases,
            control,
            effort,
            warmup: self.warmup.unwrap_or(1),
            progress: self.progress.unwrap_or(Progress::Inline),
            libraries: self.engines.clone(),
            ofi: self.ofi.clone(),
            seed,
            spawned: self.spawned,
            conducted: self.conducted,
            injection: self.inject_corruption,
            plant: self.plant,
        })
    }

    /// The engines, once it is sure that every flag about one has one to act on (KR-13).
    fn engines_for(&self, transports: &[Transport]) -> Result<Vec<Choice>, Failure> {
        let engines = self.engines.choices()?;
        let has = |name| engines.iter().any(|choice| choice.name == name);
        let needs =
            |flag: &str, what: &str| Err(Failure::usage(format!("{flag} has no effect without {what}")));
        for (flag, given, used, by) in [
            ("--transport", !self.transport.is_empty(), has(Name::Kvrail), "--engine kvrail"),
            ("--nixl", self.engines.nixl.is_some(), has(Name::Nixl), "--engine nixl"),
            ("--ucx", self.engines.ucx.is_some(), has(Name::Ucx), "--engine ucx"),
            ("--cooperate", self.cooperate.is_some(), has(Name::Kvrail), "--engine kvrail"),
            ("--affinity", self.ofi.affinity.is_some(), has(Name::Kvrail), "--engine kvrail"),
            ("--kind control", self.kind == What::Control, has(Name::Kvrail), "--engine kvrail"),
            (
                "--progress",
                self.progress.is_some(),
                has(Name::Kvrail) || has(Name::Nixl),
                "--engine kvrail or nixl",
            ),
        ] {
            if given && !used {
                return needs(flag, by);
            }
        }
        if self.kind == What::Control && engines.len() > 1 {
            return Err(Failure::usage("--kind control measures kvrail alone"));
        }
        let own = || engines.iter().filter(|choice| choice.name == Name::Kvrail);
        if !self.transport.is_empty() && own().all(|choice| choice.way.is_some()) {
            return Err(Failure::usage("--transport and a transport in --engine contradict each other")
                .hint("leave one of them out"));
        }
        let over_libfabric = |choice: &Choice| match choice.transport() {
            Some(transport) => matches!(transport, Transport::Ofi | Transport::Auto),
            None => transports.iter().any(|t| matches!(t, Transport::Ofi | Transport::Auto)),
        };
        match self.ofi.first() {
            Some(flag) if !has(Name::Libfabric) && !own().any(over_libfabric) => {
                needs(flag, "--transport ofi or --engine libfabric")
            }
            _ => Ok(engines),
        }
    }

    fn place(&self) -> Result<Place, Failure> {
        if self.conducted == Some(Conducted::Target) {
            return Ok(Place::Target(String::new()));
        }
        let alone = |flag: &str, role: &str| {
            Err(Failure::usage(format!("{flag} belongs to --role {role}, not to this role"))
                .hint("see the examples of: kvrail help bench"))
        };
        let role = match (self.role, &self.listen, &self.connect, &self.rendezvous) {
            (Some(role), ..) => Some(role),
            (None, Some(_), None, None) => Some(Role::Target),
            (None, None, Some(_), None) => Some(Role::Initiator),
            (None, None, None, Some(_)) => Some(Role::Auto),
            (None, None, None, None) => None,
            _ => {
                return Err(Failure::usage("--listen, --connect and --rendezvous exclude each other").hint(
                    "a target listens, an initiator connects, and two --role auto meet at a rendezvous",
                ));
            }
        };
        match role {
            None => Ok(Place::Both),
            Some(Role::Target) if self.connect.is_some() => alone("--connect", "initiator"),
            Some(Role::Initiator) if self.listen.is_some() => alone("--listen", "target"),
            Some(Role::Target | Role::Initiator) if self.rendezvous.is_some() => {
                alone("--rendezvous", "auto")
            }
            Some(Role::Auto) if self.listen.is_some() => alone("--listen", "target"),
            Some(Role::Auto) if self.connect.is_some() => alone("--connect", "initiator"),
            Some(Role::Target) => Ok(Place::Target(self.listen.clone().unwrap_or_else(|| LISTEN.into()))),
            Some(Role::Initiator) => match &self.connect {
                Some(address) => Ok(Place::Initiator(address.clone())),
                None => Err(Failure::usage("--role initiator needs to know its target")
                    .hint("add --connect HOST:PORT, or leave --role out to start both sides on this host")),
            },
            Some(Role::Auto) => match &self.rendezvous {
                Some(address) => Ok(Place::Auto(address.clone())),
                None => Err(Failure::usage("--role auto needs a place to meet")
                    .hint("add --rendezvous HOST:PORT with an address of one of the two hosts")),
            },
        }
    }

    /// Flags that describe the workload, and whether they were given.
    fn workload_flags(&self) -> [(&'static str, bool); 20] {
        [
            ("--preset", self.preset.is_some()),
            ("--op", !self.op.is_empty()),
            ("--block", self.block.is_some()),
            ("--batch", self.batch.is_some()),
            ("--layout", self.layout.is_some()),
            ("--pool", self.pool.is_some()),
            ("--memory", !self.memory.is_empty()),
            ("--threads", self.threads.is_some()),
            ("--progress", self.progress.is_some()),
            ("--cooperate", self.cooperate.is_some()),
            ("--notify", self.notify),
            ("--iterations", self.iterations.is_some()),
            ("--duration", self.duration.is_some()),
            ("--warmup", self.warmup.is_some()),
            ("--verify", self.verify.is_some()),
            ("--transport", !self.transport.is_empty()),
            ("--seed", self.seed.is_some()),
            ("--engine", !self.engines.engine.is_empty()),
            ("--backend", self.engines.backend.is_some()),
            ("--ucx-tls", self.engines.ucx_tls.is_some()),
        ]
    }

    fn refuse_workload_at_target(&self) -> Result<(), Failure> {
        let mut given: Vec<_> = self.workload_flags().iter().filter(|f| f.1).map(|f| f.0).collect();
        if self.kind == What::Control {
            given.push("--kind");
        }
        if self.output.is_some() || self.format != Format::Table {
            given.push("--format/--output");
        }
        match given.first() {
            None => Ok(()),
            Some(flag) => Err(Failure::usage(format!("{flag} has no effect at a target"))
                .hint("the initiator decides what is measured; give the flag there")),
        }
    }

    fn refuse_workload_for_control(&self) -> Result<(), Failure> {
        let flags = self.workload_flags();
        match flags
            .iter()
            .find(|(name, given)| *given && !matches!(*name, "--transport" | "--seed" | "--engine"))
        {
            None => Ok(()),
            Some((flag, _)) => Err(Failure::usage(format!("{flag} has no effect with --kind control"))
                .hint("it measures agent creation, registration, metadata and import; no block is moved")),
        }
    }

    fn injection_is_misplaced(&self, place: &Place) -> bool {
        self.inject_corruption.is_some() && matches!(place, Place::Initiator(_))
    }

    fn cases(&self, transports: &[Transport], seed: u64, timeout: Duration) -> Result<Vec<Case>, Failure> {
        let ops =
            if self.op.is_empty() { vec![Op::Write, Op::Read] } else { unique(&self.op, "--op", Op::Write)? };
        let memories = unique(&self.memory, "--memory", Memory::Shared)?;
        let (blocks, batches, layout, pool) = match self.preset {
            Some(Preset::Kv) => (vec![32 << 10], vec![12_800], Layout::Scattered, Some(512 << 20)),
            None => (
                self.block.clone().map_or_else(|| (0..8).map(|i| 4096 << (2 * i)).collect(), |s| s.0),
                self.batch.clone().map_or_else(|| vec![1], |s| s.0),
                self.layout.unwrap_or(Layout::Contiguous),
                self.pool.map(|s| s.0),
            ),
        };
        let count = [transports.len(), memories.len(), ops.len(), batches.len(), blocks.len()];
        if count.iter().product::<usize>() > CASES_MAX {
            return Err(Failure::usage(format!("these ranges make more than {CASES_MAX} cases"))
                .hint("use a list instead of a range, or a larger factor: 4KiB..64MiB*4"));
        }
        let mut cases = Vec::new();
        for &transport in transports {
            for &memory in &memories {
                for &op in &ops {
                    for &batch in &batches {
                        for &block_bytes in &blocks {
                            let mut case = Case {
                                index: cases.len() as u32,
                                op,
                                transport,
                                memory,
                                layout,
                                block_bytes,
                                batch,
                                threads: self.threads.unwrap_or(1),
                                slots: Case::slots_for(block_bytes, batch, self.iterations),
                                pool_bytes: pool.unwrap_or(0),
                                notify: self.notify,
                                cooperate: self.cooperate.unwrap_or_default(),
                                verify: self.verify.unwrap_or(Verify::Every),
                                seed,
                                timeout_ms: timeout.as_millis().try_into().unwrap_or(u64::MAX),
                            };
                            if pool.is_none() {
                                case.pool_bytes = case.pool_bytes_default().unwrap_or(0);
                            } else {
                                case.fit_slots_to_pool();
                            }
                            case.check()?;
                            cases.push(case);
                        }
                    }
                }
            }
        }
        Ok(cases)
    }
}

fn unique<T: Copy + PartialEq + std::fmt::Display>(
    given: &[T],
    flag: &str,
    default: T,
) -> Result<Vec<T>, Failure> {
    if given.is_empty() {
        return Ok(vec![default]);
    }
    for (i, value) in given.iter().enumerate() {
        if given[..i].contains(value) {
            return Err(Failure::usage(format!("{flag} names {value} twice")));
        }
    }
    Ok(given.to_vec())
}

#[cfg(test)]
#[path = "run_tests.rs"]
mod tests;
