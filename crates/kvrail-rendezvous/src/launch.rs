//! Ranks from whoever started the processes: flags, torchrun, Open MPI, Slurm, Kubernetes.
//!
//! A launcher that starts another one leaves its variables behind (`srun torchrun …`, `mpirun` in a batch script), so the one
//! nearest to the process is asked first: torchrun, Open MPI, Slurm, Kubernetes. What is there must be whole and must
//! not contradict itself or the flags; else the error names the variables. Nobody guesses.

use std::fmt;

use crate::limits::WORLD_SIZE_MAX;
use crate::name::RunId;

/// Who said what this process's rank is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Source {
    /// Flags of the command line alone.
    Flags,
    /// `RANK` and `WORLD_SIZE`, as torchrun and its kin set them.
    Torchrun,
    /// `OMPI_COMM_WORLD_RANK` and `OMPI_COMM_WORLD_SIZE`.
    OpenMpi,
    /// `SLURM_PROCID` and `SLURM_NTASKS` of a task that srun started.
    Slurm,
    /// `JOB_COMPLETION_INDEX` of an indexed Job; the size must be given.
    Kubernetes,
    /// Nobody: ranks are taken first come, first served.
    FirstCome,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Flags => "flags",
            Self::Torchrun => "torchrun",
            Self::OpenMpi => "Open MPI",
            Self::Slurm => "Slurm",
            Self::Kubernetes => "Kubernetes",
            Self::FirstCome => "first come, first served",
        })
    }
}

/// What the command line says. What it says counts; a launcher that says otherwise is an error.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Flags {
    /// This process's rank.
    pub rank: Option<u32>,
    /// Members of the group.
    pub world_size: Option<u32>,
    /// The run.
    pub run_id: Option<RunId>,
    /// The only launcher to ask; [`Source::Flags`] and [`Source::FirstCome`] for none.
    pub source: Option<Source>,
}

/// A process's place in its group.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Launch {
    /// Who said so.
    pub source: Source,
    /// The rank; none where it is first come, first served.
    pub rank: Option<u32>,
    /// Members of the group.
    pub world_size: u32,
    /// The run, where the flags or the launcher name one.
    pub run_id: Option<RunId>,
    /// A host that all reach, where the launcher names one (`MASTER_ADDR`): an embedded service may be opened there. Its own
    /// port, `MASTER_PORT`, is taken by the launcher's own store.
    pub master: Option<String>,
    /// What was read, `SLURM_PROCID=3`, to be shown.
    pub evidence: Vec<String>,
}

/// Why a process's place cannot be told.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LaunchError {
    /// Some of a launcher's variables are there and others are not.
    #[error("{source_name} set {}, but not {}", .present.join(", "), .absent.join(", "))]
    Partial {
        /// The launcher.
        source_name: Source,
        /// Variables that are there.
        present: Vec<&'static str>,
        /// Variables that are not.
        absent: Vec<&'static str>,
    },
    /// A variable is not a number that it could be.
    #[error("{variable}=\"{}\" is not a number from 0 to {max}", .value.escape_debug())]
    Number {
        /// Its name.
        variable: &'static str,
        /// What it holds.
        value: String,
        /// The largest that makes sense.
        max: u32,
    },
    /// Two say different things.
    #[error("{one} contradicts {other}")]
    Contradiction {
        /// One, with its value.
        one: String,
        /// The other.
        other: String,
    },
    /// Nobody said how many members there are.
    #[error("the number of members is not known: no flag gives it, and {}", match .source_name { Some(source) => format!("{source} does not"), None => "no launcher's variables are set".into() })]
    WorldSizeUnknown {
        /// The launcher that was asked.
        source_name: Option<Source>,
    },
    /// The launcher that was asked for did not start this process.
    #[error("this process was not started by {source_name}: {} is not set", .variable)]
    NotThere {
        /// The launcher.
        source_name: Source,
        /// A variable that it always sets.
        variable: &'static str,
    },
}

impl LaunchError {
    /// What to do about it.
    #[must_use]
    pub fn hints(&self) -> Vec<String> {
        let hint = match self {
            Self::Partial { source_name: Source::Slurm, .. } => {
                "a batch script is no task: start the members with srun, or give rank and number of members as flags"
            }
            Self::Partial { .. } | Self::Number { .. } | Self::Contradiction { .. } => {
                "give rank and number of members as flags and choose no launcher, or name the launcher to ask"
            }
            Self::WorldSizeUnknown { .. } => "give the number of members as a flag",
            Self::NotThere { .. } => "start the members with it, or give rank and number of members as flags",
        };
        vec![hint.into()]
    }
}

/// What one launcher says.
struct Said {
    rank: Fact,
    world_size: Option<Fact>,
    run_id: Option<RunId>,
    master: Option<String>,
}

/// A number and where it comes from.
struct Fact {
    variable: &'static str,
    value: u32,
}

impl fmt::Display for Fact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.variable, self.value)
    }
}

impl Launch {
    /// This process's place by flags and its environment.
    ///
    /// # Errors
    /// [`LaunchError`].
    pub fn detect(flags: &Flags) -> Result<Self, LaunchError> {
        Self::detect_in(flags, |variable| std::env::var(variable).ok())
    }

    /// The same in any environment.
    ///
    /// # Errors
    /// [`LaunchError`].
    pub fn detect_in(flags: &Flags, env: impl Fn(&str) -> Option<String>) -> Result<Self, LaunchError> {
        // An empty variable is how scripts unset one.
        let env = Env(&|variable| env(variable).filter(|value| !value.trim().is_empty()));
        let launchers = [Source::Torchrun, Source::OpenMpi, Source::Slurm, Source::Kubernetes];
        let said = match flags.source {
            Some(Source::Flags | Source::FirstCome) => None,
            Some(source) => Some((source, ask(source, &env)?.ok_or_else(|| not_there(source))?)),
            // Whoever gives both wants nobody else's opinion.
            None if flags.rank.is_some() && flags.world_size.is_some() => None,
            None => {
                let mut found = None;
                for source in launchers {
                    if let Some(said) = ask(source, &env)? {
                        found = Some((source, said));
                        break;
                    }
                }
                found
            }
        };
        let Some((source, said)) = said else {
            let world_size = flags.world_size.ok_or(LaunchError::WorldSizeUnknown { source_name: None })?;
            let source = if flags.rank.is_some() { Source::Flags } else { Source::FirstCome };
            let (rank, run_id) = (flags.rank, flags.run_id.clone());
            let launch = Self { source, rank, world_size, run_id, master: None, evidence: Vec::new() };
            return launch.sound(|rank| format!("rank {rank}"), "the number of members");
        };

        agree("rank", flags.rank, &said.rank)?;
        if let Some(size) = &said.world_size {
            agree("number of members", flags.world_size, size)?;
        }
        let size = said.world_size.as_ref();
        let world_size = flags
            .world_size
            .or(size.map(|fact| fact.value))
            .ok_or(LaunchError::WorldSizeUnknown { source_name: Some(source) })?;
        let mut evidence = vec![said.rank.to_string()];
        evidence.extend(size.map(ToString::to_string));
        let size_name = size.map_or("the number of members", |fact| fact.variable);
        let launch = Self {
            source,
            rank: Some(said.rank.value),
            world_size,
            run_id: flags.run_id.clone().or(said.run_id),
            master: said.master,
            evidence,
        };
        launch.sound(|_| said.rank.to_string(), size_name)
    }

    fn sound(self, rank_text: impl Fn(u32) -> String, size_name: &str) -> Result<Self, LaunchError> {
        match self.rank {
            Some(rank) if rank >= self.world_size => Err(LaunchError::Contradiction {
                one: rank_text(rank),
                other: format!("{size_name}={}", self.world_size),
            }),
            _ => Ok(self),
        }
    }
}

impl fmt::Display for Launch {
    /// `rank 3 of 8 by Slurm (SLURM_PROCID=3, SLURM_NTASKS=8)`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.rank {
            Some(rank) => write!(f, "rank {rank} of {} by {}", self.world_size, self.source)?,
            None => write!(f, "one of {}, {}", self.world_size, self.source)?,
        }
        if self.evidence.is_empty() { Ok(()) } else { write!(f, " ({})", self.evidence.join(", ")) }
    }
}

fn agree(what: &str, flag: Option<u32>, fact: &Fact) -> Result<(), LaunchError> {
    match flag {
        Some(given) if given != fact.value => Err(LaunchError::Contradiction {
            one: format!("the {what} {given} that was given"),
            other: fact.to_string(),
        }),
        _ => Ok(()),
    }
}

fn not_there(source: Source) -> LaunchError {
    let variable = match source {
        Source::Torchrun => "RANK",
        Source::OpenMpi => "OMPI_COMM_WORLD_RANK",
        Source::Slurm => "SLURM_PROCID",
        _ => "JOB_COMPLETION_INDEX",
    };
    LaunchError::NotThere { source_name: source, variable }
}

struct Env<'a>(&'a dyn Fn(&str) -> Option<String>);

impl Env<'_> {
    fn text(&self, variable: &str) -> Option<String> {
        (self.0)(variable)
    }

    fn number(&self, variable: &'static str, max: u32) -> Result<Option<Fact>, LaunchError> {
        let Some(text) = self.text(variable) else { return Ok(None) };
        match text.trim().parse() {
            Ok(value) if value <= max => Ok(Some(Fact { variable, value })),
            _ => Err(LaunchError::Number { variable, value: text.chars().take(64).collect(), max }),
        }
    }

    /// A rank and a size of which neither makes sense without the other.
    fn pair(
        &self,
        source_name: Source,
        rank: &'static str,
        size: &'static str,
    ) -> Result<Option<(Fact, Fact)>, LaunchError> {
        match (self.number(rank, WORLD_SIZE_MAX - 1)?, self.number(size, WORLD_SIZE_MAX)?) {
            (Some(rank), Some(size)) => Ok(Some((rank, size))),
            (None, None) => Ok(None),
            (Some(_), None) => {
                Err(LaunchError::Partial { source_name, present: vec![rank], absent: vec![size] })
            }
            (None, Some(_)) => {
                Err(LaunchError::Partial { source_name, present: vec![size], absent: vec![rank] })
            }
        }
    }

    /// Two variables that say the same must say the same.
    fn confirm(&self, fact: &Fact, also: &'static str) -> Result<(), LaunchError> {
        match self.number(also, u32::MAX)? {
            Some(other) if other.value != fact.value => {
                Err(LaunchError::Contradiction { one: fact.to_string(), other: other.to_string() })
            }
            _ => Ok(()),
        }
    }
}

fn ask(source: Source, env: &Env<'_>) -> Result<Option<Said>, LaunchError> {
    match source {
        Source::Torchrun => torchrun(env),
        Source::OpenMpi => open_mpi(env),
        Source::Slurm => slurm(env),
        Source::Kubernetes => kubernetes(env),
        Source::Flags | Source::FirstCome => Ok(None),
    }
}

fn torchrun(env: &Env<'_>) -> Result<Option<Said>, LaunchError> {
    let Some((rank, size)) = env.pair(Source::Torchrun, "RANK", "WORLD_SIZE")? else { return Ok(None) };
    // "none" is what it calls a run that nobody named.
    let run_id = env.text("TORCHELASTIC_RUN_ID").filter(|id| id != "none").and_then(|id| {
        let restarts = env.text("TORCHELASTIC_RESTART_COUNT").unwrap_or_else(|| "0".into());
        RunId::tame(&format!("torch-{id}.{restarts}"))
    });
    Ok(Some(Said { rank, world_size: Some(size), run_id, master: env.text("MASTER_ADDR") }))
}

fn open_mpi(env: &Env<'_>) -> Result<Option<Said>, LaunchError> {
    let pair = env.pair(Source::OpenMpi, "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE")?;
    let Some((rank, size)) = pair else { return Ok(None) };
    env.confirm(&rank, "PMIX_RANK")?;
    let job = env.text("PMIX_NAMESPACE").or_else(|| env.text("OMPI_MCA_ess_base_jobid"));
    let run_id = job.and_then(|job| RunId::tame(&format!("mpi-{job}")));
    Ok(Some(Said { rank, world_size: Some(size), run_id, master: None }))
}

fn slurm(env: &Env<'_>) -> Result<Option<Said>, LaunchError> {
    // The shell of an allocation has a number of tasks, and is none.
    let Some(rank) = env.number("SLURM_PROCID", WORLD_SIZE_MAX - 1)? else { return Ok(None) };
    let (present, absent) = (vec!["SLURM_PROCID"], |variable| vec![variable]);
    let partial = |variable| LaunchError::Partial {
        source_name: Source::Slurm,
        present: present.clone(),
        absent: absent(variable),
    };
    // A step's own count is the one that its ranks are below; the job's may be another.
    let size = match env.number("SLURM_STEP_NUM_TASKS", WORLD_SIZE_MAX)? {
        Some(size) => size,
        None => env.number("SLURM_NTASKS", WORLD_SIZE_MAX)?.ok_or_else(|| partial("SLURM_NTASKS"))?,
    };
    let step = env.text("SLURM_STEP_ID").or_else(|| env.text("SLURM_STEPID"));
    let step = step.ok_or_else(|| partial("SLURM_STEP_ID"))?;
    let job = env
        .text("SLURM_JOB_ID")
        .or_else(|| env.text("SLURM_JOBID"))
        .ok_or_else(|| partial("SLURM_JOB_ID"))?;
    let restarts = env.text("SLURM_RESTART_COUNT").map_or_else(String::new, |count| format!(".{count}"));
    let run_id = RunId::tame(&format!("slurm-{job}.{step}{restarts}"));
    Ok(Some(Said { rank, world_size: Some(size), run_id, master: None }))
}

fn kubernetes(env: &Env<'_>) -> Result<Option<Said>, LaunchError> {
    let Some(rank) = env.number("JOB_COMPLETION_INDEX", WORLD_SIZE_MAX - 1)? else { return Ok(None) };
    // The pods of an indexed Job have its name and their index as their host's name.
    let job = env.text("HOSTNAME").and_then(|host| {
        host.strip_suffix(&format!("-{}", rank.value)).filter(|job| !job.is_empty()).map(Into::into)
    });
    let run_id = job.and_then(|job: String| RunId::tame(&format!("job-{job}")));
    Ok(Some(Said { rank, world_size: None, run_id, master: None }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn detect(flags: &Flags, env: &[(&str, &str)]) -> Result<Launch, LaunchError> {
        let find =
            |variable: &str| env.iter().find(|(name, _)| *name == variable).map(|(_, v)| v.to_string());
        Launch::detect_in(flags, find)
    }

    fn flags(rank: Option<u32>, world_size: Option<u32>) -> Flags {
        Flags { rank, world_size, ..Flags::default() }
    }

    const SLURM: [(&str, &str); 5] = [
        ("SLURM_PROCID", "3"),
        ("SLURM_NTASKS", "8"),
        ("SLURM_STEP_NUM_TASKS", "8"),
        ("SLURM_JOB_ID", "4711"),
        ("SLURM_STEP_ID", "0"),
    ];

    #[test]
    fn each_launcher_is_understood() {
        let launch = detect(&Flags::default(), &SLURM).unwrap();
        assert_eq!(launch.to_string(), "rank 3 of 8 by Slurm (SLURM_PROCID=3, SLURM_STEP_NUM_TASKS=8)");
        assert_eq!(launch.run_id.unwrap().as_str(), "slurm-4711.0");

        let mpi = [
            ("OMPI_COMM_WORLD_RANK", "1"),
            ("OMPI_COMM_WORLD_SIZE", "2"),
            ("PMIX_RANK", "1"),
            ("PMIX_NAMESPACE", "prterun-a-7@1"),
        ];
        let launch = detect(&Flags::default(), &mpi).unwrap();
        assert_eq!((launch.source, launch.rank, launch.world_size), (Source::OpenMpi, Some(1), 2));
        assert_eq!(launch.run_id.unwrap().as_str(), "mpi-prterun-a-7@1");

        let torch = [
            ("RANK", "0"),
            ("WORLD_SIZE", "4"),
            ("MASTER_ADDR", "node-0"),
            ("MASTER_PORT", "29500"),
            ("TORCHELASTIC_RUN_ID", "r1"),
            ("TORCHELASTIC_RESTART_COUNT", "2"),
        ];
        let launch = detect(&Flags::default(), &torch).unwrap();
        assert_eq!((launch.source, launch.rank, launch.world_size), (Source::Torchrun, Some(0), 4));
        assert_eq!(
            (launch.run_id.unwrap().as_str(), launch.master.as_deref()),
            ("torch-r1.2", Some("node-0"))
        );

        let job = [("JOB_COMPLETION_INDEX", "2"), ("HOSTNAME", "bench-2")];
        let launch = detect(&flags(None, Some(4)), &job).unwrap();
        assert_eq!((launch.source, launch.rank, launch.world_size), (Source::Kubernetes, Some(2), 4));
        assert_eq!(launch.run_id.unwrap().as_str(), "job-bench");
        let error = detect(&Flags::default(), &job).unwrap_err().to_string();
        assert_eq!(error, "the number of members is not known: no flag gives it, and Kubernetes does not");
    }

    #[test]
    fn without_a_launcher_ranks_are_given_or_taken() {
        assert_eq!(detect(&flags(Some(1), Some(2)), &[]).unwrap().source, Source::Flags);
        let launch = detect(&flags(None, Some(2)), &[]).unwrap();
        assert_eq!((launch.source, launch.rank), (Source::FirstCome, None));
        assert!(matches!(
            detect(&Flags::default(), &[]),
            Err(LaunchError::WorldSizeUnknown { source_name: None })
        ));
        assert!(detect(&flags(Some(2), Some(2)), &[]).is_err());
    }

    #[test]
    fn the_launcher_nearest_to_the_process_is_asked_first() {
        let mut env = SLURM.to_vec();
        env.extend([("RANK", "12"), ("WORLD_SIZE", "64")]);
        let launch = detect(&Flags::default(), &env).unwrap();
        assert_eq!((launch.source, launch.rank, launch.world_size), (Source::Torchrun, Some(12), 64));
        let asked = Flags { source: Some(Source::Slurm), ..Flags::default() };
        assert_eq!(detect(&asked, &env).unwrap().source, Source::Slurm);
        // Both flags given: whatever the environment says, even nonsense.
        env.push(("OMPI_COMM_WORLD_RANK", "x"));
        assert_eq!(detect(&flags(Some(0), Some(1)), &env).unwrap().source, Source::Flags);
    }

    #[test]
    fn what_is_partial_or_contradictory_is_named() {
        let text = |flags: &Flags, env: &[(&str, &str)]| detect(flags, env).unwrap_err().to_string();
        let none = Flags::default();
        assert_eq!(text(&none, &[("RANK", "1")]), "torchrun set RANK, but not WORLD_SIZE");
        assert_eq!(
            text(&none, &[("OMPI_COMM_WORLD_SIZE", "2")]),
            "Open MPI set OMPI_COMM_WORLD_SIZE, but not OMPI_COMM_WORLD_RANK"
        );
        assert_eq!(text(&none, &SLURM[..4]), "Slurm set SLURM_PROCID, but not SLURM_STEP_ID");
        assert_eq!(text(&none, &[("RANK", "4"), ("WORLD_SIZE", "4")]), "RANK=4 contradicts WORLD_SIZE=4");
        assert_eq!(
            text(&none, &[("RANK", "-1"), ("WORLD_SIZE", "4")]),
            "RANK=\"-1\" is not a number from 0 to 1023"
        );
        let mpi = [("OMPI_COMM_WORLD_RANK", "1"), ("OMPI_COMM_WORLD_SIZE", "2"), ("PMIX_RANK", "0")];
        assert_eq!(text(&none, &mpi), "OMPI_COMM_WORLD_RANK=1 contradicts PMIX_RANK=0");
        assert_eq!(
            text(&flags(None, Some(9)), &SLURM),
            "the number of members 9 that was given contradicts SLURM_STEP_NUM_TASKS=8"
        );
        assert_eq!(
            text(&flags(Some(1), None), &SLURM),
            "the rank 1 that was given contradicts SLURM_PROCID=3"
        );
        let asked = Flags { source: Some(Source::Slurm), ..Flags::default() };
        assert_eq!(text(&asked, &[]), "this process was not started by Slurm: SLURM_PROCID is not set");
    }
}
