//! `kvrail nixlbench --help`, made from the list of flags.

use super::flags::{Declared, FLAGS, Flags, Group};

/// Columns of the text.
const WIDTH: usize = 100;
/// Where explanations begin.
const INDENT: usize = 8;

const HEAD: &str = "\
nixlbench's command line, workloads and table, over any engine

Usage: kvrail nixlbench [--flag=value | --flag value | --switch | --noswitch]...

Flags are spelled with underscores or hyphens, with one dash or two. Start it once per participant, on any hosts, in any order; \
or once, without a word about ranks or rendezvous: then it starts the other participants on this host by itself.
";

const TAIL: &str = "\
Every byte that the timed transfers moved is checked afterwards, in a pattern that names its place. GB/s are decimal.
Exit codes: 0 every figure stands; 1 a check failed (wrong bytes); 2 could not tell (usage, environment, participant).
docs/nixlbench.md says what differs from nixlbench.
";

/// The whole text.
pub(crate) fn text() -> String {
    let defaults = Flags::default();
    let mut out = String::new();
    for paragraph in HEAD.split('\n') {
        wrap(&mut out, paragraph, 0);
    }
    for (group, title) in [
        (Group::Workload, "What moves"),
        (Group::Method, "How"),
        (Group::Rendezvous, "Who meets whom"),
        (Group::Backend, "Backend and memory"),
        (Group::Ours, "Not in nixlbench"),
        (Group::Gpu, "GPU memory: understood, refused where it would change what is measured"),
    ] {
        out.push_str(&format!("{title}:\n"));
        for flag in FLAGS.iter().filter(|flag| flag.group == group) {
            describe(&mut out, flag, &defaults);
        }
        out.push('\n');
    }
    out.push_str("Storage: understood, without effect; storage backends are refused:\n");
    let names: Vec<_> = FLAGS
        .iter()
        .filter(|flag| flag.group == Group::Storage)
        .map(|flag| format!("--{}", flag.name))
        .collect();
    wrap(&mut out, &names.join(" "), 2);
    out.push('\n');
    for paragraph in TAIL.lines() {
        wrap(&mut out, paragraph, 0);
    }
    out
}

fn describe(out: &mut String, flag: &Declared, defaults: &Flags) {
    let default = defaults.show(flag.name);
    if flag.is_switch {
        out.push_str(&format!("  --{}\n", flag.name));
    } else {
        out.push_str(&format!("  --{}={}\n", flag.name, flag.placeholder));
    }
    let default = if default.is_empty() { String::new() } else { format!(" [default: {default}]") };
    wrap(out, &format!("{}{default}", flag.help), INDENT);
}

/// Appends a paragraph, broken between words.
fn wrap(out: &mut String, paragraph: &str, indent: usize) {
    let mut column = 0;
    for word in paragraph.split_whitespace() {
        let length = word.chars().count();
        if column > 0 && column + 1 + length > WIDTH {
            out.push('\n');
            column = 0;
        }
        if column == 0 {
            out.push_str(&" ".repeat(indent));
            column = indent;
        } else {
            out.push(' ');
            column += 1;
        }
        out.push_str(word);
        column += length;
    }
    out.push('\n');
}
