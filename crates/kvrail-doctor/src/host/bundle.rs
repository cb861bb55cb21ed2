//! A bundle: the questions that were asked on a host, with their answers, in one JSON file without secrets.
//!
//! ```json
//! {
//!   "schema": "kvrail.bundle.v1",
//!   "complete": false,
//!   "variables": {"FI_PROVIDER": "efa"},
//!   "answers": {
//!     "file": {"/proc/sys/vm/nr_hugepages": "0\n", "/proc/modules": ["efa 98304 0 - Live 0x0", "ib_core …"]},
//!     "directory": {"/dev/infiniband": {"lack": "absent"}},
//!     "command": {"nvidia-smi -L": {"lack": {"failed": "…"}}}
//!   }
//! }
//! ```
//!
//! An answer is data of its section, or `{"lack": …}`. A text may be an array of its lines, which is how people write it. In a bundle
//! that is `complete`, whatever it does not mention is not there: such bundles are written by hand, from what is known of a host.

use std::collections::BTreeMap;

use kvrail_report::redact;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Answer, Lack, Scope};

/// The schema that is written, and read.
pub const SCHEMA: &str = "kvrail.bundle.v1";
/// Longest bundle that is read.
const BYTES_MAX: usize = 256 << 20;

/// Answers of a host.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bundle {
    schema: String,
    /// What wrote it.
    #[serde(default)]
    pub kvrail: String,
    /// When, as seconds since 1970.
    #[serde(default)]
    pub taken: u64,
    /// Whether what is not mentioned is not there.
    #[serde(default)]
    pub complete: bool,
    /// What the user said about what is to be looked at.
    #[serde(default)]
    pub scope: Scope,
    /// The environment.
    #[serde(default)]
    pub variables: BTreeMap<String, String>,
    /// Answers by section and key.
    #[serde(default)]
    pub answers: BTreeMap<String, BTreeMap<String, Value>>,
}

/// Why a text is no bundle.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BundleError {
    /// No JSON, or of another shape.
    #[error("not a bundle of kvrail doctor: {0}")]
    Shape(String),
    /// Of another version.
    #[error("a bundle of schema `{found}`, and this program reads `{SCHEMA}`")]
    Schema {
        /// What it says.
        found: String,
    },
    /// Longer than any host makes it.
    #[error("longer than {} MiB", BYTES_MAX >> 20)]
    TooLong,
}

impl Bundle {
    pub(super) fn new<'a>(
        scope: Scope,
        variables: &BTreeMap<String, String>,
        given: impl Iterator<Item = (&'static str, &'a String, &'a Answer<Value>)>,
    ) -> Self {
        let mut answers: BTreeMap<String, BTreeMap<String, Value>> = BTreeMap::new();
        for (section, key, answer) in given {
            let value = match answer {
                Ok(value) => without_secrets(value),
                Err(lack) => serde_json::json!({ "lack": lack }),
            };
            answers.entry(section.into()).or_default().insert(redact::text(key), value);
        }
        let hidden = |(name, value): (&String, &String)| (name.clone(), redact::value(name, value));
        let taken = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default().as_secs();
        Self {
            schema: SCHEMA.into(),
            kvrail: env!("CARGO_PKG_VERSION").into(),
            taken,
            complete: false,
            scope: Scope {
                python: scope.python.iter().map(|path| redact::text(path)).collect(),
                etcd: scope.etcd.iter().map(|url| redact::text(url)).collect(),
                instance: scope.instance.as_deref().map(redact::text),
            },
            variables: variables.iter().map(hidden).collect(),
            answers,
        }
    }

    /// Reads a bundle.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, BundleError> {
        if text.len() > BYTES_MAX {
            return Err(BundleError::TooLong);
        }
        let shape = |error: serde_json::Error| BundleError::Shape(error.to_string());
        let value: Value = serde_json::from_str(text).map_err(shape)?;
        match value.get("schema").and_then(Value::as_str) {
            Some(SCHEMA) => serde_json::from_value(value).map_err(shape),
            Some(found) => Err(BundleError::Schema { found: found.chars().take(64).collect() }),
            None => Err(BundleError::Shape("it names no schema".into())),
        }
    }

    /// The file's text.
    #[must_use]
    pub fn to_json(&self) -> String {
        // Plain data with string keys: it always serialises.
        serde_json::to_string_pretty(self).unwrap_or_default() + "\n"
    }

    /// How many answers it has.
    #[must_use]
    pub fn len(&self) -> usize {
        self.answers.values().map(BTreeMap::len).sum()
    }

    /// Whether it has no answer.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(super) fn answer(&self, section: &str, key: &str) -> Answer<Value> {
        let answer =
            self.answers.get(section).and_then(|of| of.get(key).or_else(|| of.get(&redact::text(key))));
        match answer {
            None if self.complete => Err(Lack::Absent),
            None => Err(Lack::NotCaptured),
            Some(value) => match value.get("lack") {
                Some(lack) => Err(Lack::deserialize(lack).unwrap_or(Lack::NotCaptured)),
                None if is_text(section) => Ok(joined(value)),
                None => Ok(value.clone()),
            },
        }
    }
}

/// Sections whose answers are texts.
fn is_text(section: &str) -> bool {
    matches!(section, "file" | "topology")
}

/// A text that was written as its lines.
fn joined(value: &Value) -> Value {
    let Value::Array(lines) = value else { return value.clone() };
    Value::String(lines.iter().filter_map(Value::as_str).flat_map(|line| [line, "\n"]).collect())
}

fn without_secrets(value: &Value) -> Value {
    match value {
        Value::String(text) => Value::String(redact::text(text)),
        Value::Array(values) => values.iter().map(without_secrets).collect(),
        Value::Object(fields) => {
            let hidden = |(name, value): (&String, &Value)| match value {
                Value::String(text) => (name.clone(), Value::String(redact::value(name, text))),
                other => (name.clone(), without_secrets(other)),
            };
            Value::Object(fields.iter().map(hidden).collect())
        }
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::Host;

    #[test]
    fn a_bundle_that_people_write_may_have_lines_and_be_complete() {
        let text = r#"{"schema": "kvrail.bundle.v1", "complete": true, "variables": {"A": "1"},
            "answers": {"file": {"/m": ["efa 1", "b 2"], "/n": {"lack": "denied"}}}}"#;
        let host = Host::replay(Bundle::parse(text).unwrap());
        assert_eq!(host.read("/m").unwrap(), "efa 1\nb 2\n");
        assert_eq!(host.read("/n"), Err(Lack::Denied));
        assert_eq!(host.read("/o"), Err(Lack::Absent));
    }

    #[test]
    fn what_is_no_bundle_is_an_error_that_says_so() {
        for (text, says) in [
            ("", "not a bundle"),
            ("{}", "names no schema"),
            (r#"{"schema": "kvrail.bundle.v2"}"#, "`kvrail.bundle.v2`"),
            (r#"{"schema": "kvrail.bundle.v1", "answers": 1}"#, "not a bundle"),
            (r#"{"schema": "kvrail.bundle.v1", "answer": {}}"#, "unknown field"),
        ] {
            assert!(Bundle::parse(text).unwrap_err().to_string().contains(says), "{text}");
        }
    }

    #[test]
    fn an_answer_of_another_shape_is_a_lack_and_no_panic() {
        let text =
            r#"{"schema": "kvrail.bundle.v1", "answers": {"command": {"x": 1}, "file": {"/a": {"b": 1}}}}"#;
        let host = Host::replay(Bundle::parse(text).unwrap());
        assert!(matches!(host.run(&["x"]), Err(Lack::Failed(_))));
        assert!(matches!(host.read("/a"), Err(Lack::Failed(_))));
    }
}
