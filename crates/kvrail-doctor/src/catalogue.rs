//! All that is known: every rule, by kind and by id.

use crate::examine::Check;
use crate::rule::{Kind, Rule};
use crate::{checks, lint, log, probe};

/// The checks of a host, in the order in which they are told.
#[must_use]
pub fn checks() -> Vec<&'static Check> {
    checks::ALL.iter().flat_map(|area| area.checks).collect()
}

/// Every rule of every kind.
#[must_use]
pub fn rules() -> Vec<&'static Rule> {
    let others = [lint::RULES, log::RULES, probe::RULES];
    checks().into_iter().map(|check| check.rule).chain(others.into_iter().flatten().copied()).collect()
}

/// The area that a rule is told under: that of its check, or the word of its kind.
#[must_use]
pub fn area(rule: &Rule) -> &'static str {
    let area = checks::ALL.iter().find(|area| area.checks.iter().any(|check| check.rule.id == rule.id));
    area.map_or(rule.kind.word(), |area| area.name)
}

/// The rule of an id.
///
/// # Errors
/// The ids that are most like it.
pub fn rule(id: &str) -> Result<&'static Rule, Vec<&'static str>> {
    let rules = rules();
    if let Some(rule) = rules.iter().find(|rule| rule.id.eq_ignore_ascii_case(id)) {
        return Ok(rule);
    }
    let mut alike: Vec<_> = rules.iter().map(|rule| (strsim::jaro_winkler(rule.id, id), rule.id)).collect();
    alike.sort_by(|a, b| b.0.total_cmp(&a.0));
    Err(alike.into_iter().filter(|(likeness, _)| *likeness > 0.7).take(3).map(|(_, id)| id).collect())
}

/// The checks of some ids; all where none is named.
///
/// # Errors
/// The id that is none of a check of a host.
pub fn select(ids: &[String]) -> Result<Vec<&'static Check>, String> {
    if ids.is_empty() {
        return Ok(checks());
    }
    let mut selected = Vec::new();
    for id in ids {
        let check = checks().into_iter().find(|check| check.rule.id.eq_ignore_ascii_case(id));
        selected.push(check.ok_or_else(|| match rule(id) {
            Ok(rule) => {
                format!("`{}` is a rule of `kvrail doctor {}`, not a check of this host", rule.id, rule.kind)
            }
            Err(alike) if alike.is_empty() => {
                format!("there is no check `{id}`: `kvrail doctor --list` has all")
            }
            Err(alike) => format!("there is no check `{id}`; did you mean {}?", alike.join(", ")),
        })?);
    }
    Ok(selected)
}

/// How a kind of rule is asked for on the command line.
#[must_use]
pub fn command(kind: Kind) -> &'static str {
    match kind {
        Kind::Host => "kvrail doctor",
        Kind::Lint => "kvrail doctor lint FILE…",
        Kind::Log => "kvrail doctor log FILE…",
        Kind::Probe => "kvrail doctor probe HOST",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rule_is_told_whole_and_under_one_name() {
        let rules = rules();
        for (index, rule) in rules.iter().enumerate() {
            let id = rule.id;
            assert!(rules[..index].iter().all(|other| other.id != id), "{id} is there twice");
            let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
            assert!(!id.is_empty() && id.chars().all(plain), "{id}");
            for (what, text) in [("title", rule.title), ("cause", rule.cause), ("remedy", rule.remedy)] {
                assert!(text.len() >= 12 && !text.contains('\n'), "{id}: {what} `{text}`");
            }
            assert!(rule.title.len() <= 100 && !rule.title.ends_with('.'), "{id}: `{}`", rule.title);
            assert!(rule.story.len() >= 200, "{id}: the page of help has {} characters", rule.story.len());
            assert!(!rule.references.is_empty(), "{id} names nothing that it builds on");
            assert!(
                rule.references.iter().all(|r| r.url.starts_with("https://") && !r.title.is_empty()),
                "{id}"
            );
            for cause in rule.explained_by {
                assert!(
                    rules.iter().any(|other| other.id == *cause && other.id != id),
                    "{id}: explained by `{cause}`"
                );
            }
        }
    }

    #[test]
    fn an_id_that_is_none_is_answered_with_those_that_are_like_it() {
        assert_eq!(rule("MEMLOCK").unwrap().id, "memlock");
        assert!(rule("memlok").unwrap_err().contains(&"memlock"));
        assert!(select(&["memlok".into()]).unwrap_err().contains("memlock"));
        assert_eq!(select(&[]).unwrap().len(), checks().len());
    }
}
