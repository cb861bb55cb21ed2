//! What happened, as a hash always and as text on demand: two runs of one seed are the same run exactly when their
//! hashes are equal.

use kvrail_core::time::Time;

use crate::rng::mix;

/// The record of one run.
#[derive(Clone, Debug, Default)]
pub struct Trace {
    hash: u64,
    records: u64,
    text: Option<Vec<String>>,
}

/// Lines kept as text; the last ones matter when something went wrong.
const LINES_MAX: usize = 400_000;

impl Trace {
    /// A record that also keeps text when `text` is set.
    #[must_use]
    pub fn new(text: bool) -> Self {
        Self { hash: 0xCBF2_9CE4_8422_2325, records: 0, text: text.then(Vec::new) }
    }

    /// Adds one event: `what`, and its facts with their names.
    pub fn record(&mut self, now: Time, what: &'static str, facts: &[(&'static str, u64)]) {
        self.records += 1;
        let mut h = self.hash ^ now.0;
        // The name's length and first byte tell the kinds of records apart well enough, and cheaply.
        h = h.rotate_left(7)
            ^ (what.len() as u64) << 8
            ^ u64::from(what.as_bytes().first().copied().unwrap_or(0));
        for (_, value) in facts {
            h = (h ^ value).wrapping_mul(0x0000_0100_0000_01B3).rotate_left(23);
        }
        self.hash = mix(h);
        if let Some(lines) = &mut self.text
            && lines.len() < LINES_MAX
        {
            let mut line = format!("{now}  {what}");
            for (name, value) in facts {
                line.push_str(&format!(" {name}={value}"));
            }
            lines.push(line);
        }
    }

    /// Adds a line for the reader only. The text is made only when it is kept.
    pub fn note(&mut self, now: Time, line: impl FnOnce() -> String) {
        if let Some(lines) = &mut self.text
            && lines.len() < LINES_MAX
        {
            lines.push(format!("{now}  {}", line()));
        }
    }

    /// The hash of all records so far.
    #[must_use]
    pub const fn hash(&self) -> u64 {
        self.hash
    }

    /// Records so far.
    #[must_use]
    pub const fn records(&self) -> u64 {
        self.records
    }

    /// The text, if it was kept.
    #[must_use]
    pub fn lines(&self) -> &[String] {
        self.text.as_deref().unwrap_or(&[])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_time_and_values_change_the_hash_and_text_does_not() {
        let run = |text, records: &[(u64, &'static str, u64)]| {
            let mut trace = Trace::new(text);
            for (at, what, value) in records {
                trace.record(Time(*at), what, &[("value", *value)]);
                trace.note(Time(*at), || "for the reader".into());
            }
            trace.hash()
        };
        let plain = run(false, &[(1, "post", 5), (2, "land", 6)]);
        assert_eq!(plain, run(true, &[(1, "post", 5), (2, "land", 6)]));
        assert_ne!(plain, run(false, &[(2, "land", 6), (1, "post", 5)]));
        assert_ne!(plain, run(false, &[(1, "post", 5), (2, "land", 7)]));
        assert_ne!(plain, run(false, &[(1, "post", 5), (3, "land", 6)]));
    }
}
