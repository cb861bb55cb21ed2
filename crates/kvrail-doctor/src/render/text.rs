//! Text on its way out: without secrets, without what a terminal would obey, in the characters that it can show.

use kvrail_report::redact;
use textwrap::{Options, WordSplitter, WrapAlgorithm};

/// A text of the outside as it may be shown: no secrets, and no character that a terminal or a browser would act upon instead
/// of showing it. Line ends and tabs stay.
pub(super) fn clean(text: &str) -> String {
    shown(&redact::text(text))
}

/// The same of what was seen at a place: what a variable with a secret's name holds goes as a whole.
pub(super) fn clean_seen(source: &str, seen: &str) -> String {
    let seen = match source.strip_prefix('$') {
        Some(variable) => redact::value(variable, seen),
        None => redact::text(seen),
    };
    one_line(&shown(&seen))
}

/// The same on one line.
pub(super) fn clean_line(text: &str) -> String {
    one_line(&clean(text))
}

fn one_line(text: &str) -> String {
    if !text.contains(['\n', '\t']) {
        return text.trim().into();
    }
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    lines.map(|line| line.replace('\t', " ")).collect::<Vec<_>>().join(" ⏎ ")
}

fn shown(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.replace("\r\n", "\n").chars() {
        if matches!(c, '\n' | '\t') {
            out.push(c);
        } else if c.is_control() || turns_direction(c) {
            out.extend(c.escape_unicode());
        } else {
            out.push(c);
        }
    }
    out
}

/// Characters that make text read differently from what it is.
fn turns_direction(c: char) -> bool {
    matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{200e}' | '\u{200f}' | '\u{feff}')
}

/// What a terminal without UTF-8 shows: the typographic characters of kvrail's own texts in ASCII. Names of the host stay
/// what they are.
pub(super) fn ascii(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '…' => out.push_str("..."),
            '–' | '—' | '‑' | '−' => out.push('-'),
            '→' => out.push_str("->"),
            '×' => out.push('x'),
            '·' | '•' => out.push('*'),
            'µ' | 'μ' => out.push('u'),
            '≥' => out.push_str(">="),
            '≤' => out.push_str("<="),
            '“' | '”' => out.push('"'),
            '‘' | '’' => out.push('\''),
            '✓' => out.push_str("ok"),
            '✗' => out.push('!'),
            '⏎' => out.push('|'),
            '\u{a0}' => out.push(' '),
            other => out.push(other),
        }
    }
    out
}

/// Adds a paragraph, wrapped, its first line behind `first` and the others behind `rest`. Words are never broken: paths and
/// commands are there to be copied.
pub(super) fn paragraph(out: &mut String, width: usize, first: &str, rest: &str, text: &str) {
    let options = Options::new(width.max(24))
        .initial_indent(first)
        .subsequent_indent(rest)
        .break_words(false)
        .word_splitter(WordSplitter::NoHyphenation)
        .wrap_algorithm(WrapAlgorithm::FirstFit);
    for line in textwrap::wrap(text, options) {
        out.push_str(line.trim_end());
        out.push('\n');
    }
}

/// The beginning of a text that is too long for where it stands.
pub(super) fn cut(text: &str, characters: usize) -> String {
    if text.chars().count() <= characters {
        return text.into();
    }
    text.chars().take(characters.saturating_sub(1)).chain(std::iter::once('…')).collect()
}

/// How long something took, for people.
pub(super) fn seconds(took: std::time::Duration) -> String {
    match took.as_secs_f64() {
        s if s < 0.1 => format!("{:.0} ms", s * 1e3),
        s if s < 10.0 => format!("{s:.2} s"),
        s => format!("{s:.0} s"),
    }
}

/// `1 error`, `2 errors`.
pub(super) fn counted(count: usize, one: &str) -> String {
    if count == 1 { format!("1 {one}") } else { format!("{count} {one}s") }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_a_terminal_would_obey_is_shown_instead() {
        assert_eq!(clean("a\x1b[31mred\u{202e}b"), "a\\u{1b}[31mred\\u{202e}b");
        assert_eq!(clean_line("one\r\ntwo\n\n\tthree"), "one ⏎ two ⏎ three");
        assert_eq!(clean_seen("$HF_TOKEN", "hunter2"), "[redacted]");
        assert_eq!(clean_seen("/proc/x", "  efa 1 "), "efa 1");
    }

    #[test]
    fn a_path_is_never_broken_and_wide_characters_count_for_two() {
        let path =
            "/opt/venv/lib/python3.12/site-packages/.nixl_cu12.mesonpy.libs/plugins/libplugin_LIBFABRIC.so";
        let mut out = String::new();
        paragraph(&mut out, 40, "  fix: ", "       ", &format!("the library {path} needs it"));
        assert!(out.lines().any(|line| line.trim() == path), "{out}");
        let mut wide = String::new();
        paragraph(&mut wide, 24, "", "", "漢字漢字 漢字漢字 漢字漢字");
        assert_eq!(wide.lines().count(), 2, "{wide}");
    }

    proptest! {
        #[test]
        fn whatever_comes_in_nothing_that_acts_comes_out(any in any::<String>()) {
            let out = clean_line(&any);
            prop_assert!(!out.chars().any(|c| c.is_control() || turns_direction(c)), "{out:?}");
            prop_assert_eq!(clean_line(&out), out.clone());
        }
    }
}
