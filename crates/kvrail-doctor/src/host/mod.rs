//! The host that is looked at: this one, or what a bundle holds of another.
//!
//! A check asks a [`Question`]; the answer is taken from the running system or from a bundle, once, and remembered. Since
//! checks see the world through nothing else, the answers that were given are all that is needed to run them again elsewhere.

mod acs;
mod bundle;
mod elf;
mod etcd;
mod files;
mod http;
mod instance;
mod live;
mod load;
mod open;
mod run;
mod topology;

use std::any::{Any, TypeId};
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use acs::AcsRegisters;
pub use bundle::{Bundle, BundleError, SCHEMA};
pub use elf::{ElfFacts, Needed};
pub use etcd::{EtcdKey, EtcdKeys};
pub use files::{Entry, EntryKind};
pub use http::HttpAnswer;
pub use instance::{InstanceFacts, InterfaceFacts};
pub use live::Live;
pub use load::{LOAD, Loaded, PythonTrial, Reached, load_here};
pub(crate) use run::ended;
pub use run::{Ran, kill_all};

/// Why there is no answer.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Lack {
    /// What was asked for is not there.
    Absent,
    /// It is there and may not be looked at.
    Denied,
    /// No answer within the deadline.
    Late,
    /// It could not be read or done, in the system's words.
    Failed(String),
    /// The bundle does not say: nobody asked on the host where it was taken.
    NotCaptured,
}

/// An answer, or why there is none.
pub type Answer<T> = Result<T, Lack>;

impl fmt::Display for Lack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Absent => "not there",
            Self::Denied => "permission denied",
            Self::Late => "no answer in time",
            Self::Failed(why) => why,
            Self::NotCaptured => "not in the bundle",
        })
    }
}

impl From<std::io::Error> for Lack {
    fn from(error: std::io::Error) -> Self {
        match error.kind() {
            std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory => Self::Absent,
            std::io::ErrorKind::PermissionDenied => Self::Denied,
            std::io::ErrorKind::TimedOut => Self::Late,
            _ => Self::Failed(error.to_string()),
        }
    }
}

/// One kind of thing that can be asked of a host.
///
/// To add one: a type with the parameters, the answer as a type that serialises, and how a running system answers. It is recorded,
/// bundled and replayed with the others.
pub trait Question {
    /// The section of a bundle that its answers stand in, as in `file`.
    const SECTION: &'static str;
    /// What is answered.
    type Answer: Serialize + DeserializeOwned;
    /// The question as the key of its answer: a path, a command line.
    fn key(&self) -> String;
    /// The answer of a running system. By a deadline, and bounded in size.
    ///
    /// # Errors
    /// Why there is none.
    fn ask(&self, live: &Live) -> Answer<Self::Answer>;
}

/// What the user said about what is to be looked at. It is a part of a bundle, so that a replay means the same.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Scope {
    /// Roots of Python environments (`/opt/venv`), besides those that the environment and the system's `python3` lead to.
    pub python: Vec<String>,
    /// etcd endpoints (`http://etcd:2379`), besides those that the environment names.
    pub etcd: Vec<String>,
    /// The instance type (`p5.48xlarge`), where it is said and not asked of the metadata service.
    pub instance: Option<String>,
}

type Slot = Arc<OnceLock<Answer<Value>>>;
type Derived = Arc<OnceLock<Arc<dyn Any + Send + Sync>>>;

/// A host: answers questions, each once.
#[derive(Debug)]
pub struct Host {
    source: Source,
    scope: Scope,
    variables: BTreeMap<String, String>,
    /// By section and key.
    answers: Mutex<BTreeMap<(&'static str, String), Slot>>,
    /// What was made out of answers, by its type.
    derived: Mutex<HashMap<TypeId, Derived>>,
}

#[derive(Debug)]
enum Source {
    Live(Live),
    Bundle(Bundle),
}

impl Host {
    /// The host that this process runs on.
    #[must_use]
    pub fn live(live: Live, scope: Scope) -> Self {
        let variables = live.variables().clone();
        Self {
            source: Source::Live(live),
            scope,
            variables,
            answers: Mutex::default(),
            derived: Mutex::default(),
        }
    }

    /// The host that a bundle was taken on.
    #[must_use]
    pub fn replay(bundle: Bundle) -> Self {
        let (scope, variables) = (bundle.scope.clone(), bundle.variables.clone());
        Self {
            source: Source::Bundle(bundle),
            scope,
            variables,
            answers: Mutex::default(),
            derived: Mutex::default(),
        }
    }

    /// What the user said about what is to be looked at.
    #[must_use]
    pub fn scope(&self) -> &Scope {
        &self.scope
    }

    /// Whether this is the host that the process runs on.
    #[must_use]
    pub fn is_live(&self) -> bool {
        matches!(self.source, Source::Live(_))
    }

    /// An environment variable, where it is set and not empty.
    #[must_use]
    pub fn variable(&self, name: &str) -> Option<&str> {
        self.variables.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// All environment variables, by name.
    pub fn variables(&self) -> impl Iterator<Item = (&str, &str)> {
        self.variables.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// Asks, or remembers what was answered.
    ///
    /// # Errors
    /// Why there is no answer.
    pub fn ask<Q: Question>(&self, question: &Q) -> Answer<Q::Answer> {
        let slot = {
            let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(answers.entry((Q::SECTION, question.key())).or_default())
        };
        let value = slot.get_or_init(|| match &self.source {
            Source::Live(live) => question.ask(live).map(|answer| {
                // Answers are plain data with string keys: they always serialise.
                serde_json::to_value(answer).unwrap_or(Value::Null)
            }),
            Source::Bundle(bundle) => bundle.answer(Q::SECTION, &question.key()),
        });
        let value = value.as_ref().map_err(Clone::clone)?;
        Q::Answer::deserialize(value)
            .map_err(|error| Lack::Failed(format!("an answer of another shape in the bundle: {error}")))
    }

    /// What several checks make out of answers: made by the first that wants it, for all.
    pub(crate) fn once<T: Any + Send + Sync>(&self, make: impl FnOnce(&Self) -> T) -> Arc<T> {
        let slot = {
            let mut derived = self.derived.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(derived.entry(TypeId::of::<T>()).or_default())
        };
        let made: &Arc<dyn Any + Send + Sync> = slot.get_or_init(|| Arc::new(make(self)));
        let made = Arc::clone(made).downcast::<T>();
        made.unwrap_or_else(|_| unreachable!("it is kept under its own type"))
    }

    /// Everything that was asked so far with its answer, secrets taken out: what [`Host::replay`] needs to say the same elsewhere.
    #[must_use]
    pub fn bundle(&self) -> Bundle {
        let answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        let given = answers.iter().filter_map(|((section, key), slot)| Some((*section, key, slot.get()?)));
        Bundle::new(self.scope.clone(), &self.variables, given)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_asked_is_answered_the_same_from_the_bundle_and_the_rest_is_not_captured() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("a"), "one\n").unwrap();
        let live = Live::new()
            .with_root(directory.path())
            .with_variables([("FI_PROVIDER", "efa"), ("HF_TOKEN", "hunter2")]);
        let host = Host::live(live, Scope::default());
        assert_eq!(host.read("/a").unwrap(), "one\n");
        assert_eq!(host.read("/b"), Err(Lack::Absent));
        std::fs::write(directory.path().join("a"), "two\n").unwrap();
        assert_eq!(host.read("/a").unwrap(), "one\n", "an answer is given once");
        let text = host.bundle().to_json();
        assert!(!text.contains("hunter2"), "{text}");
        let replay = Host::replay(Bundle::parse(&text).unwrap());
        assert_eq!(replay.read("/a").unwrap(), "one\n");
        assert_eq!(replay.read("/b"), Err(Lack::Absent));
        assert_eq!(replay.read("/c"), Err(Lack::NotCaptured));
        assert_eq!(replay.variable("FI_PROVIDER"), Some("efa"));
        assert!(replay.variable("HF_TOKEN").is_some_and(|value| value != "hunter2"));
    }

    #[test]
    fn one_question_that_many_ask_at_once_is_asked_once() {
        use std::sync::atomic::{AtomicU32, Ordering};
        static ASKED: AtomicU32 = AtomicU32::new(0);
        struct Slow;
        impl Question for Slow {
            const SECTION: &'static str = "slow";
            type Answer = u32;
            fn key(&self) -> String {
                "it".into()
            }
            fn ask(&self, _: &Live) -> Answer<u32> {
                std::thread::sleep(std::time::Duration::from_millis(20));
                Ok(ASKED.fetch_add(1, Ordering::SeqCst))
            }
        }
        let host = Host::live(Live::new(), Scope::default());
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| assert_eq!(host.ask(&Slow), Ok(0)));
            }
        });
    }
}
