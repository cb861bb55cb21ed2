//! Installed C headers, asked by a compiler that only checks.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

/// One figure, as Rust has it and as C says it.
pub(crate) struct Figure {
    pub(crate) label: String,
    pub(crate) rust: i64,
    pub(crate) c: String,
}

/// The C compiler: `CC`, else `cc`. It only checks, so that a cross compiler checks another machine's layout.
fn cc(include: Option<&Path>) -> Command {
    let mut command = Command::new(std::env::var_os("CC").unwrap_or_else(|| "cc".into()));
    if let Some(include) = include {
        command.arg("-I").arg(include);
    }
    command.args(["-fsyntax-only", "-fmax-errors=0", "-w", "-x", "c", "-"]);
    command.stdin(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// What the compiler says of a program; `Ok` when it has no objection.
pub(crate) fn compile(include: Option<&Path>, program: &str) -> Result<(), String> {
    let mut child = cc(include).spawn().map_err(|error| error.to_string())?;
    let mut stdin = child.stdin.take().ok_or("no input")?;
    stdin.write_all(program.as_bytes()).map_err(|error| error.to_string())?;
    drop(stdin);
    let output = child.wait_with_output().map_err(|error| error.to_string())?;
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
}

/// Labels of the figures that headers have no name for.
pub(crate) fn lacking(headers: &str, include: Option<&Path>, figures: &[Figure]) -> BTreeSet<String> {
    // One program for all: each figure stands on a line of its own number, and the compiler names the lines that it objects to.
    let begin = headers.lines().count() + 1;
    let mut program = headers.to_owned();
    for (index, Figure { c, .. }) in figures.iter().enumerate() {
        program.push_str(&format!("long long figure_{index} = (long long)({c});\n"));
    }
    let Err(said) = compile(include, &program) else { return BTreeSet::new() };
    let mut lacking = BTreeSet::new();
    for line in said.lines().filter(|line| line.contains("error:")) {
        let number =
            line.strip_prefix("<stdin>:").and_then(|rest| rest.split(':').next()?.parse::<usize>().ok());
        match number.and_then(|number| figures.get(number.checked_sub(begin)?)) {
            Some(figure) => lacking.insert(figure.label.clone()),
            None => panic!("{line}"),
        };
    }
    lacking
}

/// Panics with the compiler's words where headers say otherwise.
pub(crate) fn agree(headers: &str, include: Option<&Path>, figures: &[&Figure]) {
    let mut program = headers.to_owned();
    for Figure { label, rust, c } in figures {
        program
            .push_str(&format!("_Static_assert((long long)({c}) == {rust}LL, \"{label}: {rust} here\");\n"));
    }
    if let Err(said) = compile(include, &program) {
        panic!("{said}");
    }
}

/// Past the test harness, which keeps to itself what a passing test prints.
pub(crate) fn say(line: &str) {
    let _ = std::io::stderr().write_all(format!("{line}\n").as_bytes());
}
