//! Command lines as gflags reads them, and `--config_file`.
//!
//! One dash or two, underscores or hyphens, `--flag=value` or `--flag value`; a boolean may stand alone, be negated (`--noflag`) or
//! take `=value`, but never the next word. Of a repeated flag the last one counts. What nixlbench lets pass without a word is an
//! error here: an unknown flag or key, a value of another type, a word that belongs to no flag.

use std::collections::BTreeMap;
use std::path::Path;

use crate::failure::Failure;

use super::flags::{self, Declared, Flags};

/// Bytes of a configuration file: a hundred times what every flag needs.
const CONFIG_BYTES_MAX: u64 = 1 << 20;

/// Where a value comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Source {
    CommandLine,
    ConfigFile,
}

/// What was asked for.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Request {
    /// A run.
    Run(Box<Given>),
    /// The help.
    Help,
    /// The version.
    Version,
}

/// The flags, and which of them somebody gave.
#[derive(Clone, Default, PartialEq, Debug)]
pub(crate) struct Given {
    pub(crate) flags: Flags,
    sources: BTreeMap<&'static str, Source>,
}

impl Given {
    /// Whether the flag was given, and where.
    pub(crate) fn source(&self, name: &str) -> Option<Source> {
        self.sources.get(name).copied()
    }

    /// The flags that were given.
    pub(crate) fn names(&self) -> impl Iterator<Item = &'static str> + '_ {
        self.sources.keys().copied()
    }

    fn set(&mut self, flag: &'static Declared, word: &str, source: Source) -> Result<(), String> {
        self.flags.set(flag.name, word)?;
        self.sources.insert(flag.name, source);
        Ok(())
    }
}

/// Reads a command line, and the configuration file that it names.
///
/// # Errors
/// The first word or key that is not understood, with what may have been meant.
pub(crate) fn request(words: &[String]) -> Result<Request, Failure> {
    let mut given = Given::default();
    let mut words = words.iter().map(String::as_str);
    while let Some(word) = words.next() {
        match read_word(word)? {
            Word::Help => return Ok(Request::Help),
            Word::Version => return Ok(Request::Version),
            Word::Flag(flag, value) => {
                let value = match value {
                    Some(value) => value,
                    None if flag.is_switch => "true",
                    None => words.next().ok_or_else(|| {
                        Failure::usage(format!("--{} needs a value ({})", flag.name, flag.placeholder))
                    })?,
                };
                given
                    .set(flag, value, Source::CommandLine)
                    .map_err(|why| Failure::usage(format!("--{}: {why}", flag.name)))?;
            }
        }
    }
    if !given.flags.config_file.is_empty() {
        let path = given.flags.config_file.clone();
        read_config(Path::new(&path), &mut given)?;
    }
    Ok(Request::Run(Box::new(given)))
}

enum Word<'a> {
    Help,
    Version,
    Flag(&'static Declared, Option<&'a str>),
}

fn read_word(word: &str) -> Result<Word<'_>, Failure> {
    let Some(body) = word.strip_prefix("--").or_else(|| word.strip_prefix('-')).filter(|b| !b.is_empty())
    else {
        return Err(Failure::usage(format!("`{word}` belongs to no flag"))
            .hint("booleans take their value as --flag=true or --noflag, never as the next word"));
    };
    let (name, value) = match body.split_once('=') {
        Some((name, value)) => (name, Some(value)),
        None => (body, None),
    };
    match name {
        "help" | "h" | "helpfull" | "helpshort" => return Ok(Word::Help),
        "version" => return Ok(Word::Version),
        "flagfile" | "fromenv" | "tryfromenv" => {
            return Err(Failure::usage(format!("--{name} is not taken, by nixlbench neither"))
                .hint("write the flags into a TOML file and name it by --config_file"));
        }
        _ => {}
    }
    if let Some(flag) = flags::find(name) {
        return Ok(Word::Flag(flag, value));
    }
    let negated = name.strip_prefix("no").map(|rest| rest.strip_prefix(['-', '_']).unwrap_or(rest));
    if let Some(flag) = negated.and_then(flags::find).filter(|flag| flag.is_switch) {
        return match value {
            None => Ok(Word::Flag(flag, Some("false"))),
            Some(_) => Err(Failure::usage(format!("--{name} takes no value; write --{}=…", flag.name))),
        };
    }
    let unknown = Failure::usage(format!("there is no flag --{name}"));
    Err(match flags::nearest(name) {
        Some(near) => unknown.hint(format!("did you mean --{near}?")),
        None => unknown.hint("`kvrail nixlbench --help` lists them"),
    })
}

/// Reads what the command line does not say from a TOML file of nixlbench: the same names at the top level.
fn read_config(path: &Path, given: &mut Given) -> Result<(), Failure> {
    let shown = path.display();
    let unreadable =
        |e: std::io::Error| Failure::environment(format!("cannot read --config_file {shown}: {e}"));
    let bytes = std::fs::metadata(path).map_err(unreadable)?.len();
    if bytes > CONFIG_BYTES_MAX {
        return Err(Failure::environment(format!(
            "--config_file {shown} has {bytes} bytes, more than the {CONFIG_BYTES_MAX} that are read"
        )));
    }
    let text = std::fs::read_to_string(path).map_err(unreadable)?;
    config(&text, given).map_err(|why| Failure::usage(format!("--config_file {shown}: {why}")))
}

/// Takes in the text of a configuration file.
pub(super) fn config(text: &str, given: &mut Given) -> Result<(), String> {
    let table: toml::Table =
        text.parse().map_err(|e: toml::de::Error| e.to_string().trim_end().to_owned())?;
    for (key, value) in &table {
        let flag = flags::find(key).filter(|flag| flag.name != "config_file").ok_or_else(|| {
            let near = flags::nearest(key).filter(|near| *near != "config_file");
            let near = near.map(|near| format!("; did you mean `{near}`?")).unwrap_or_default();
            format!("there is no flag `{key}`{near}")
        })?;
        let word = match value {
            toml::Value::String(text) => text.clone(),
            toml::Value::Integer(number) => number.to_string(),
            toml::Value::Boolean(truth) => truth.to_string(),
            other => {
                return Err(format!(
                    "`{key}` is a {}; it should be a string, a whole number or a boolean",
                    other.type_str()
                ));
            }
        };
        // The command line wins, but the file has to make sense nevertheless.
        if given.source(flag.name) == Some(Source::CommandLine) {
            Flags::default().set(flag.name, &word).map_err(|why| format!("`{key}`: {why}"))?;
        } else {
            given.set(flag, &word, Source::ConfigFile).map_err(|why| format!("`{key}`: {why}"))?;
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "parse_tests.rs"]
mod tests;
