//! Settings as what they are pasted into: a shell, a pod, a file of variables, a program.

use std::fmt::Write as _;

use serde_json::json;

use super::backend::name;
use super::{Backend, Role, Settings};

/// Widest comment.
const WIDTH: usize = 100;

/// For a shell, with the reason above each value.
#[must_use]
pub fn shell(settings: &Settings) -> String {
    let mut out = heading(settings);
    for variable in &settings.variables {
        out.push('\n');
        comment(&mut out, "", &variable.why);
        let _ = writeln!(out, "export {}={}", variable.name, word(&variable.value));
    }
    out.push('\n');
    for flag in &settings.flags {
        for why in &flag.why {
            comment(&mut out, "", &format!("{}: {why}", flag.name));
        }
    }
    let _ = write!(out, "{}", program(settings));
    for flag in &settings.flags {
        let _ = write!(out, " \\\n    {} {}", flag.name, word(&flag.value));
    }
    out.push('\n');
    out
}

/// A file of variables, as `docker run --env-file` and systemd read it.
#[must_use]
pub fn env(settings: &Settings) -> String {
    let mut out = heading(settings);
    for variable in &settings.variables {
        out.push('\n');
        comment(&mut out, "", &variable.why);
        let _ = writeln!(out, "{}={}", variable.name, variable.value);
    }
    out
}

/// The flags on one line, as words of a shell.
#[must_use]
pub fn args(settings: &Settings) -> String {
    let words = settings.flags.iter().map(|flag| format!("{} {}", flag.name, word(&flag.value)));
    words.collect::<Vec<_>>().join(" ") + "\n"
}

/// The part of a container in a pod's specification.
#[must_use]
pub fn yaml(settings: &Settings) -> String {
    let mut out = heading(settings);
    out.push_str("env:\n");
    for variable in &settings.variables {
        comment(&mut out, "  ", &variable.why);
        let _ = writeln!(out, "  - name: {}", variable.name);
        match variable.field {
            Some(field) => {
                let _ = writeln!(out, "    valueFrom:\n      fieldRef:\n        fieldPath: {field}");
            }
            None => {
                let _ = writeln!(out, "    value: {}", quoted(&variable.value));
            }
        }
    }
    let (head, rest) = command(settings);
    let _ =
        writeln!(out, "command: [{}]", head.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(", "));
    out.push_str("args:\n");
    for word in rest {
        // What a shell would expand, Kubernetes expands in parentheses, if the container has such a variable.
        let word = if word == "$MODEL" { "$(MODEL)".into() } else { word };
        let _ = writeln!(out, "  - {}", quoted(&word));
    }
    for flag in &settings.flags {
        for why in &flag.why {
            comment(&mut out, "  ", why);
        }
        let _ = writeln!(out, "  - {}\n  - {}", quoted(flag.name), quoted(&flag.value));
    }
    out
}

/// A document: schema `kvrail.config.v1`.
#[must_use]
pub fn json(settings: &Settings) -> String {
    let mut document = json!({ "schema": "kvrail.config.v1", "kvrail": env!("CARGO_PKG_VERSION") });
    if let (Some(to), Ok(serde_json::Value::Object(from))) =
        (document.as_object_mut(), serde_json::to_value(settings))
    {
        to.extend(from);
    }
    if let Some(flag) = settings.flags.iter().find(|flag| flag.name == "--kv-transfer-config") {
        document["kv_transfer_config"] = serde_json::from_str(&flag.value).unwrap_or_default();
    }
    serde_json::to_string_pretty(&document).unwrap_or_default() + "\n"
}

fn heading(settings: &Settings) -> String {
    let role = match settings.role {
        Role::Prefill => "for prefill",
        Role::Decode => "for decode",
        Role::Both => "for prefill and decode",
    };
    let mut out = String::new();
    comment(&mut out, "", &format!("{}, {role}; found here: {}", name(settings.engine), settings.found));
    let carried = match settings.backend {
        Backend::Kvrail => "carried by kvrail".to_string(),
        backend => format!("carried by NIXL's {}", backend.word()),
    };
    comment(&mut out, "", &format!("{carried}: {}", settings.because));
    for warning in &settings.warnings {
        comment(&mut out, "", &format!("careful: {warning}"));
    }
    out
}

fn comment(out: &mut String, indent: &str, text: &str) {
    // A line end in a name of the host must not end the comment: what follows would be run.
    let text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let prefix = format!("{indent}# ");
    let options = textwrap::Options::new(WIDTH)
        .initial_indent(&prefix)
        .subsequent_indent(&prefix)
        .break_words(false)
        .word_splitter(textwrap::WordSplitter::NoHyphenation);
    for line in textwrap::wrap(&text, options) {
        let _ = writeln!(out, "{}", line.trim_end());
    }
}

/// The words of the program up to its flags, those that start it and the rest.
fn command(settings: &Settings) -> (Vec<String>, Vec<String>) {
    let flags = settings.program.iter().position(|word| word.starts_with("--") || word.starts_with('$'));
    let (head, rest) = settings.program.split_at(flags.unwrap_or(settings.program.len()));
    (head.to_vec(), rest.to_vec())
}

fn program(settings: &Settings) -> String {
    let words = settings.program.iter().map(|it| if it == "$MODEL" { "\"$MODEL\"".into() } else { word(it) });
    words.collect::<Vec<_>>().join(" ")
}

/// A word of a shell that means itself.
fn word(text: &str) -> String {
    let plain = |c: char| {
        c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | '/' | ':' | ',' | '=' | '@' | '%' | '+')
    };
    if !text.is_empty() && text.chars().all(plain) {
        text.into()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

/// A scalar of YAML that is a text, whatever is in it: JSON's texts are YAML's.
fn quoted(text: &str) -> String {
    serde_json::Value::String(text.into()).to_string()
}
