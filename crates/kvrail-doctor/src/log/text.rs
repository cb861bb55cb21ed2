//! Lines as people read them: without colours and control characters, without secrets, short; and the time that one begins with.

use std::sync::OnceLock;
use std::time::{Duration, UNIX_EPOCH};

use regex::bytes::Regex;

/// A line without its escape sequences: CSI (`ESC [ … letter`), OSC (`ESC ] … BEL`) and two-character ones.
pub(super) fn without_colours(line: &[u8], into: &mut Vec<u8>) {
    into.clear();
    let mut rest = line;
    while let Some(at) = memchr::memchr(0x1b, rest) {
        into.extend_from_slice(&rest[..at]);
        rest = &rest[at + 1..];
        let taken = match rest.first() {
            Some(b'[') => 1 + rest[1..].iter().position(|b| (0x40..=0x7e).contains(b)).map_or(0, |n| n + 1),
            Some(b']') => 1 + rest[1..].iter().position(|b| *b == 0x07).map_or(0, |n| n + 1),
            Some(_) => 1,
            None => 0,
        };
        rest = &rest[taken..];
    }
    into.extend_from_slice(rest);
}

/// Bytes as text of one line without control characters.
pub(super) fn plain(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect::<String>().trim().to_owned()
}

/// As much of a line as fits into so many bytes, with what stands at `at`, and without secrets.
pub(super) fn excerpt(line: &[u8], at: usize, bytes: usize) -> String {
    if line.len() <= bytes {
        return kvrail_report::redact::text(&plain(line));
    }
    // What was recognised is told to its end rather than what precedes it.
    let start = at.saturating_sub(bytes / 8).min(line.len() - bytes);
    let text = kvrail_report::redact::text(&plain(&line[start..start + bytes]));
    let text = text.trim_matches('\u{fffd}');
    let (before, after) = (start > 0, start + bytes < line.len());
    format!("{}{text}{}", if before { "…" } else { "" }, if after { "…" } else { "" })
}

/// The time that a line begins with, as it is written there; seconds of an epoch as UTC.
pub(super) fn time(head: &[u8]) -> Option<String> {
    static TIMES: OnceLock<Regex> = OnceLock::new();
    // The most exact first: a date contains what the later ones look for.
    let times = TIMES.get_or_init(|| {
        Regex::new(
            r"(?x-u)
            (?P<text>
                \d{4}[-/]\d\d[-/]\d\d[T\x20]\d\d:\d\d:\d\d(?:[.,]\d{1,9})?(?:Z|[+-]\d\d:?\d\d)?
              | \b\d\d-\d\d\ \d\d:\d\d:\d\d
              | \b[A-Z][a-z]{2}\ [\ \d]\d\ \d\d:\d\d:\d\d
              | \b\d\d:\d\d:\d\d(?:[.,]\d{1,9})?
            )
            | libfabric:\d+:(?P<epoch>\d{9,10}):
            | \[(?P<ucx>\d{9,10})\.\d{6}\]
            | \[\ *(?P<boot>\d{1,7}\.\d{6})\]",
        )
        .expect("the pattern is fixed, and a test uses it")
    });
    let found = times.captures(head)?;
    if let Some(text) = found.name("text") {
        return Some(plain(text.as_bytes()));
    }
    if let Some(seconds) = found.name("epoch").or_else(|| found.name("ucx")) {
        let seconds = plain(seconds.as_bytes()).parse().ok()?;
        return Some(kvrail_report::time::rfc3339(UNIX_EPOCH + Duration::from_secs(seconds)));
    }
    found.name("boot").map(|boot| format!("{} s after boot", plain(boot.as_bytes())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_go_and_the_text_stays() {
        let mut out = Vec::new();
        without_colours(b"\x1b[36m(pid=7)\x1b[0m a \x1b]0;title\x07b\x1b", &mut out);
        assert_eq!(out, b"(pid=7) a b");
    }

    #[test]
    fn times_of_the_engines_are_read() {
        for (line, expected) in [
            ("2026-02-06 09:13:10 NIXL INFO Backend", Some("2026-02-06 09:13:10")),
            ("2025-05-16T04:56:18.119Z ERROR engine", Some("2025-05-16T04:56:18.119Z")),
            ("(EngineCore_DP0 pid=3) WARNING 09-24 16:35:21 [nixl.py:1]", Some("09-24 16:35:21")),
            ("[2025-10-15 11:03:35 DP6 TP6] Some", Some("2025-10-15 11:03:35")),
            ("Oct  7 12:00:01 host kernel: NVRM", Some("Oct  7 12:00:01")),
            ("libfabric:1242394:1760404169::efa:cq", Some("2025-10-14T01:09:29Z")),
            ("[1506866470.744682] [host:1:0] ib.c:1 UCX", Some("2017-10-01T14:01:10Z")),
            ("[12345.678901] NVRM: Xid", Some("12345.678901 s after boot")),
            ("I0206 09:13:10.123456 12 x.cc:1]", Some("09:13:10.123456")),
            ("no time at all", None),
        ] {
            assert_eq!(time(line.as_bytes()).as_deref(), expected, "{line}");
        }
    }

    #[test]
    fn an_excerpt_holds_what_was_recognised_and_no_secret() {
        let line = format!("{}RKEY not registered password=hunter2 {}", "x".repeat(900), "y".repeat(900));
        let text = excerpt(line.as_bytes(), 900, 200);
        assert!(text.contains("RKEY not registered") && !text.contains("hunter2"), "{text}");
        assert!(text.starts_with('…') && text.ends_with('…') && text.len() < 260, "{text}");
    }
}
