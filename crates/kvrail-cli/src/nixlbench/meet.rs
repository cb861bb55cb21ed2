//! Participants come together, make sure that they were asked for the same thing, and wait for each other.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use kvrail_engines::Engine;
use kvrail_rendezvous::launch::{self, Launch, Source};
use kvrail_rendezvous::{
    Config, ConfigError, EmbeddedConfig, EtcdConfig, Group, GroupError, JoinError, RunId, Secret, Service,
    Value,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::failure::Failure;
use crate::signals;
use crate::units;

use super::engine;
use super::flags::{FLAGS, Group as Heading};
use super::settings::{Runtime, Settings};

/// The password of `--etcd_user`: not on the command line, where every user of the host can read it.
const PASSWORD_VARIABLE: &str = "KVRAIL_ETCD_PASSWORD";
/// Longest wait between two looks at Ctrl-C.
const SLICE: Duration = Duration::from_millis(500);
/// Turns of the driving thread without progress before it lets other threads on, and before it naps.
const IDLE_YIELD: u32 = 1 << 10;
const IDLE_NAP: u32 = 1 << 14;
/// Its nap.
const NAP: Duration = Duration::from_micros(50);
/// Longest wait of all.
const WAIT_MAX: Duration = Duration::from_secs(24 * 3600);

/// Flags that may differ from one participant to the other.
const OWN_FLAGS: [&str; 14] = [
    "config_file",
    "benchmark_group",
    "run_id",
    "world_size",
    "quiet",
    "rank",
    "format",
    "output",
    "engine_library",
    "engine_options",
    "asio_address",
    "asio_port",
    "runtime_type",
    "seed",
];

/// This process's place among the others, by flags or by who started it.
///
/// # Errors
/// When those contradict each other, or the launcher says half of it.
pub(crate) fn launched(settings: &Settings) -> Result<Launch, Failure> {
    let flags = launch::Flags {
        rank: settings.flags.rank,
        world_size: Some(settings.plan.participants()),
        run_id: settings.run_id().map(RunId::new).transpose().map_err(|e| Failure::usage(e.to_string()))?,
        source: None,
    };
    Launch::detect(&flags)
        .map_err(|error| error.hints().into_iter().fold(Failure::usage(error.to_string()), Failure::hint))
}

/// Joins the group.
///
/// # Errors
/// When the rendezvous cannot be used, or somebody does not come.
pub(crate) fn join(settings: &Settings, launch: &Launch) -> Result<Group, Failure> {
    let config = config(settings, launch)?;
    if launch.source != Source::FirstCome && launch.source != Source::Flags {
        settings.tell(&format!("rank and size from {}: {}", launch.source, launch.evidence.join(" ")));
    }
    let run = config.run_id.as_ref().map(|run| format!(" (run {run})")).unwrap_or_default();
    settings.tell(&format!("waiting for {} participants at {}{run}", config.world_size, config.service));
    let group = Group::join(&config).map_err(not_joined)?;
    settings.tell(&format!(
        "this is rank {}, {}; all are here after {}",
        group.rank(),
        settings.plan.side(group.rank()),
        units::span(group.joined_in())
    ));
    Ok(group)
}

fn config(settings: &Settings, launch: &Launch) -> Result<Config, Failure> {
    let flags = &settings.flags;
    let wrong = |e: ConfigError| Failure::usage(e.to_string());
    let service = match settings.runtime {
        Runtime::Embedded => {
            let host = &flags.asio_address;
            let host = if host.contains(':') { format!("[{host}]") } else { host.clone() };
            Service::Embedded(EmbeddedConfig::new(&format!("{host}:{}", flags.asio_port)).map_err(wrong)?)
        }
        Runtime::Etcd => {
            let mut etcd = EtcdConfig::new(&flags.etcd_endpoints).map_err(wrong)?;
            etcd.tls.ca = flags.etcd_ca.clone();
            etcd.tls.cert = flags.etcd_cert.clone();
            etcd.tls.key = flags.etcd_key.clone();
            if let Some(user) = &flags.etcd_user {
                let password = std::env::var(PASSWORD_VARIABLE).map_err(|_| {
                    Failure::usage(format!("--etcd_user={user} needs its password in {PASSWORD_VARIABLE}"))
                })?;
                etcd.user = Some((user.clone(), Secret::new(password)));
            }
            Service::Etcd(etcd)
        }
    };
    let mut config = Config::new(service, settings.plan.participants());
    // A process that started the others has made up an id since; else they meet under a name, as with nixlbench.
    let asked = settings.run_id().map(RunId::new).transpose();
    let default = || RunId::new(flags.benchmark_group.as_str());
    let run_id = match asked.map(|asked| asked.or_else(|| launch.run_id.clone())) {
        Ok(Some(run_id)) => Ok(run_id),
        Ok(None) => default(),
        Err(error) => Err(error),
    };
    config.run_id = Some(run_id.map_err(|e| Failure::usage(e.to_string()))?);
    config.rank = flags.rank.or(launch.rank);
    config.deadline = flags.timeout;
    Ok(config)
}

fn not_joined(error: JoinError) -> Failure {
    let failure = match &error {
        JoinError::Config(_) => Failure::usage(error.to_string()),
        JoinError::Service(_) => Failure::environment(error.to_string()),
        _ => Failure::peer(error.to_string()),
    };
    error.hints().into_iter().fold(failure, Failure::hint)
}

fn trouble(error: GroupError) -> Failure {
    match &error {
        GroupError::Service(service) => {
            service.hints().into_iter().fold(Failure::environment(error.to_string()), Failure::hint)
        }
        _ => Failure::peer(error.to_string()),
    }
}

/// What each participant says first.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(crate) struct Hello {
    version: String,
    /// Flags that all must agree about.
    flags: Vec<(String, String)>,
    /// Of the pattern; rank 0's counts.
    pub(crate) seed: u64,
    /// Where this host is reached, seen from the rendezvous.
    ip: IpAddr,
}

impl Hello {
    pub(crate) fn new(settings: &Settings, seed: u64) -> Self {
        let shared = FLAGS.iter().filter(|flag| {
            let ours = flag.name.starts_with("etcd_") || OWN_FLAGS.contains(&flag.name);
            !ours && flag.group != Heading::Storage && flag.group != Heading::Gpu
        });
        Self {
            version: crate::environment::VERSION.into(),
            flags: shared.map(|flag| (flag.name.to_owned(), settings.flags.show(flag.name))).collect(),
            seed,
            ip: seen_from_the_rendezvous(settings),
        }
    }

    /// Whether all were asked for the same.
    ///
    /// # Errors
    /// The first difference between this rank and rank 0.
    pub(crate) fn agree(&self, first: &Self, rank: u32) -> Result<(), Failure> {
        if self.version != first.version {
            return Err(Failure::peer(format!(
                "rank {rank} is kvrail {}, rank 0 is kvrail {}",
                self.version, first.version
            ))
            .hint("run the same version everywhere"));
        }
        for ((name, ours), (_, theirs)) in self.flags.iter().zip(&first.flags) {
            if ours != theirs {
                return Err(Failure::usage(format!(
                    "rank {rank} was started with --{name}={ours}, rank 0 with --{name}={theirs}"
                ))
                .hint("start all participants with the same flags; ranks and files may differ"));
            }
        }
        Ok(())
    }
}

fn seen_from_the_rendezvous(settings: &Settings) -> IpAddr {
    match settings.runtime {
        Runtime::Embedded => engine::address_towards(&settings.flags.asio_address, settings.flags.asio_port),
        Runtime::Etcd => match EtcdConfig::new(&settings.flags.etcd_endpoints) {
            Ok(etcd) if !etcd.endpoints.is_empty() => {
                engine::address_towards(&etcd.endpoints[0].host, etcd.endpoints[0].port)
            }
            _ => IpAddr::from([127, 0, 0, 1]),
        },
    }
}

/// Where the others reach this host. One that has the rendezvous itself may have seen only its loopback interface.
pub(crate) fn address(group: &Group, hellos: &[Hello]) -> IpAddr {
    let own = hellos[group.rank() as usize].ip;
    let members = group.members();
    let elsewhere = members.iter().any(|member| member.host != members[group.rank() as usize].host);
    let other = hellos.iter().map(|hello| hello.ip).find(|ip| !ip.is_loopback());
    match other {
        Some(other) if own.is_loopback() && elsewhere => engine::address_towards(&other.to_string(), 9),
        _ => own,
    }
}

/// Waits of one participant for the others.
#[derive(Clone, Copy)]
pub(crate) struct Together<'a> {
    pub(crate) group: &'a Group,
    /// Driven meanwhile, if it must be.
    pub(crate) engine: Option<&'a dyn Engine>,
    pub(crate) timeout: Duration,
}

impl Together<'_> {
    /// Gives a value and takes everybody's, by rank, within `rounds` times the timeout.
    ///
    /// # Errors
    /// When somebody is lost, does not come, or sends what is no such value; Ctrl-C.
    pub(crate) fn gather<T: Serialize + DeserializeOwned>(
        &self,
        step: &str,
        mine: &T,
        rounds: u32,
    ) -> Result<Vec<T>, Failure> {
        let bytes = serde_json::to_vec(mine)
            .map_err(|e| Failure::environment(format!("what {step} says cannot be written: {e}")))?;
        let read = |(rank, value): (usize, &Value)| {
            serde_json::from_slice(value).map_err(|e| {
                Failure::peer(format!("what rank {rank} says at {step} is not understood: {e}"))
                    .hint("run the same version everywhere")
            })
        };
        self.gather_bytes(step, &bytes, rounds)?.iter().enumerate().map(read).collect()
    }

    /// The same for bytes.
    ///
    /// # Errors
    /// Likewise.
    pub(crate) fn gather_bytes(&self, step: &str, mine: &[u8], rounds: u32) -> Result<Vec<Value>, Failure> {
        let within = self.timeout.saturating_mul(rounds.max(1)).min(WAIT_MAX);
        driving(self.engine, || {
            let deadline = Instant::now() + within;
            loop {
                if signals::interrupted() {
                    return Err(Failure::interrupted());
                }
                match self.group.gather(step, mine, SLICE) {
                    Ok(values) => return Ok(values),
                    Err(error) if error.is_retryable() && Instant::now() < deadline => {}
                    Err(GroupError::NotArrived { missing, .. }) => {
                        let missing: Vec<_> = missing.iter().map(ToString::to_string).collect();
                        return Err(Failure::peer(format!(
                            "not at \"{step}\" within {}, though alive: {}",
                            units::span(within),
                            missing.join(", ")
                        ))
                        .hint("raise --timeout if the sizes are large for these hosts"));
                    }
                    Err(error) => return Err(trouble(error)),
                }
            }
        })
    }

    /// Waits until everybody is here.
    ///
    /// # Errors
    /// Likewise.
    pub(crate) fn barrier(&self, step: &str, rounds: u32) -> Result<(), Failure> {
        self.gather_bytes(step, &[], rounds).map(|_| ())
    }

    /// Whether to go on.
    ///
    /// # Errors
    /// Ctrl-C, or somebody is lost.
    pub(crate) fn check(&self) -> Result<(), Failure> {
        if signals::interrupted() {
            return Err(Failure::interrupted());
        }
        self.group.check().map_err(trouble)
    }
}

/// Does something while another thread drives the engine, if somebody must.
fn driving<T>(engine: Option<&dyn Engine>, work: impl FnOnce() -> T) -> T {
    use std::sync::atomic::{AtomicBool, Ordering};
    let Some(engine) = engine.filter(|engine| engine.needs_driving()) else { return work() };
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut idle = 0u32;
            while !done.load(Ordering::Relaxed) {
                idle = if engine.drive() { 0 } else { idle.saturating_add(1) };
                match idle {
                    0..IDLE_YIELD => std::hint::spin_loop(),
                    IDLE_YIELD..IDLE_NAP => std::thread::yield_now(),
                    _ => std::thread::sleep(NAP),
                }
            }
        });
        // Also when the work panics: the scope waits for the thread.
        let _end = End(&done);
        work()
    })
}

/// Ends the driving thread.
struct End<'a>(&'a std::sync::atomic::AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, std::sync::atomic::Ordering::Relaxed);
    }
}
