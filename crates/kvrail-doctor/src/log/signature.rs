//! What a line looks like that names a known failure: data, from which one automaton is built for all.

use std::sync::OnceLock;

use aho_corasick::automaton::Automaton as _;
use aho_corasick::dfa::DFA;
use aho_corasick::{Anchored, MatchKind};
use regex::bytes::{Regex, RegexBuilder};

use super::seen::Seen;
use super::signatures;
use crate::finding::Finding;
use crate::rule::{Confidence, Rule};

/// What a line must say.
pub(super) struct Needle {
    /// Fixed texts of which one stands in every line that is meant. They are looked for in everything, at the speed of
    /// memory; nothing else of a log is looked at closer.
    pub(super) literals: &'static [&'static str],
    /// What the line says around it. Named groups are kept as evidence.
    pub(super) pattern: &'static str,
    /// Texts that make such a line innocent.
    pub(super) unless: &'static [&'static str],
}

/// What a value of a capture means, where that is known.
pub(super) type Meaning = fn(&str) -> Option<&'static str>;

/// A known failure, and the lines that name it.
pub(super) struct Signature {
    /// What is known of it.
    pub(super) rule: Rule,
    /// Its lines.
    pub(super) needle: Needle,
    /// With fewer lines than this nothing is said.
    pub(super) least: u64,
    /// How sure the cause is.
    pub(super) confidence: Confidence,
    /// What is wrong, with captures in braces; the rule's title where one of them was never seen.
    pub(super) headline: &'static str,
    /// What to do and what to type (or nothing), with captures in braces; without those whose captures were never seen.
    pub(super) steps: &'static [(&'static str, &'static str)],
    /// What the values of a capture mean.
    pub(super) meaning: Option<(&'static str, Meaning)>,
    /// What the rest of the log says about it: may say more, or that it is none.
    pub(super) judge: fn(&Seen<'_>, Finding) -> Option<Finding>,
}

/// What signatures have in common.
pub(super) const PLAIN: Signature = Signature {
    rule: signatures::RULE,
    needle: Needle { literals: &[], pattern: "", unless: &[] },
    least: 1,
    confidence: Confidence::Likely,
    headline: "",
    steps: &[],
    meaning: None,
    judge: |_, finding| Some(finding),
};

/// A needle that can be looked for.
pub(super) struct Sharp {
    needle: &'static Needle,
    regex: OnceLock<Regex>,
}

impl Sharp {
    /// Compiled when a line first needs it: most logs need few.
    pub(super) fn regex(&self) -> &Regex {
        self.regex.get_or_init(|| {
            let built = RegexBuilder::new(self.needle.pattern).unicode(false).build();
            built.expect("patterns are fixed, and a test builds each")
        })
    }

    /// Names of the captures.
    pub(super) fn names(&self) -> impl Iterator<Item = &'static str> + use<> {
        let parts = self.needle.pattern.split("(?P<").skip(1);
        parts.filter_map(|part| part.split_once('>').map(|(name, _)| name))
    }

    /// Whether something in the line makes it innocent.
    pub(super) fn is_innocent(&self, line: &[u8]) -> bool {
        self.needle.unless.iter().any(|text| memchr::memmem::find(line, text.as_bytes()).is_some())
    }
}

/// All that is looked for, in one automaton.
pub(super) struct Engine {
    pub(super) automaton: DFA,
    /// The needle of each literal, by the automaton's pattern.
    pub(super) needle_of: Vec<u16>,
    /// Those of the signatures, then those of the marks.
    pub(super) needles: Vec<Sharp>,
    /// Length of the longest literal.
    pub(super) longest: usize,
    /// Where the automaton begins.
    pub(super) start: aho_corasick::automaton::StateID,
}

impl Engine {
    /// The one that knows everything; built once.
    pub(super) fn get() -> &'static Self {
        static ENGINE: OnceLock<Engine> = OnceLock::new();
        ENGINE.get_or_init(Self::build)
    }

    fn build() -> Self {
        let signatures = signatures::all().map(|signature| &signature.needle);
        let needles: Vec<&'static Needle> =
            signatures.chain(signatures::MARKS.iter().map(|(_, needle)| needle)).collect();
        let mut literals = Vec::new();
        let mut needle_of = Vec::new();
        for (index, needle) in needles.iter().enumerate() {
            for literal in needle.literals {
                literals.push(*literal);
                needle_of.push(u16::try_from(index).expect("there are fewer than 65,536 signatures"));
            }
        }
        let automaton = DFA::builder()
            .match_kind(MatchKind::Standard)
            .prefilter(false)
            .build(&literals)
            .expect("literals are fixed, and a test builds them");
        let start = automaton.start_state(Anchored::No).expect("it was built to be used unanchored");
        let needles = needles.into_iter().map(|needle| Sharp { needle, regex: OnceLock::new() }).collect();
        let longest = literals.iter().map(|literal| literal.len()).max().unwrap_or(0);
        Self { automaton, needle_of, needles, longest, start }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pattern_builds_and_every_literal_is_worth_looking_for() {
        for sharp in &Engine::get().needles {
            let needle = sharp.needle;
            let pattern = needle.pattern;
            sharp.regex();
            assert!(!needle.literals.is_empty(), "{pattern}");
            for literal in needle.literals {
                assert!(
                    literal.len() >= 5 && !literal.contains('\n'),
                    "`{literal}` of {pattern} is too common"
                );
            }
        }
    }

    #[test]
    fn what_a_headline_or_a_step_fills_in_is_captured() {
        for signature in signatures::all() {
            let id = signature.rule.id;
            let regex = RegexBuilder::new(signature.needle.pattern).unicode(false).build().unwrap();
            let names: Vec<_> = regex.capture_names().flatten().collect();
            let texts = signature.steps.iter().flat_map(|(text, command)| [*text, *command]);
            for text in texts.chain([signature.headline]) {
                for name in super::super::seen::placeholders(text) {
                    assert!(name == "count" || names.contains(&name), "{id}: {{{name}}} in `{text}`");
                }
            }
            if let Some((name, _)) = signature.meaning {
                assert!(names.contains(&name), "{id}: meaning of `{name}`");
            }
            assert!(!signature.headline.is_empty() && !signature.headline.ends_with('.'), "{id}");
            assert!(!signature.steps.is_empty(), "{id} says nothing of what to do");
        }
    }
}
