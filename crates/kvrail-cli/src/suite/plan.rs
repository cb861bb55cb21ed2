//! A plan: what a suite runs, in which order, on what it depends.
//!
//! A plan is a TOML file of phases, each with steps; a step is a command line of this program. Reading is pure: whatever a plan gets wrong
//! is an error that names the phase, the step and the field, before anything runs.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::needs::Need;
use crate::failure::Failure;
use crate::units;

/// Steps of a plan at most, after its matrices are expanded.
const STEPS_MAX: usize = 4096;
/// Bytes of a plan at most.
pub(super) const PLAN_BYTES_MAX: u64 = 1 << 20;
/// What a step may take when its plan does not say.
const TIMEOUT: Duration = Duration::from_secs(600);
/// Commands that a step may run.
const COMMANDS: [&str; 3] = ["bench", "nixlbench", "topo"];

/// The plans that come with the program.
pub(super) const SHIPPED: [(&str, &str); 2] =
    [("laptop", include_str!("../../plans/laptop.toml")), ("p5", include_str!("../../plans/p5.toml"))];

/// A plan, expanded and checked.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Plan {
    pub(super) name: String,
    /// One sentence.
    pub(super) about: String,
    /// What the whole run may take: steps that have not begun by then are skipped.
    pub(super) budget: Option<Duration>,
    pub(super) phases: Vec<Phase>,
}

/// Steps that belong together.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Phase {
    pub(super) id: String,
    pub(super) title: String,
    /// What this host must have for the phase to be worth running; otherwise all of it is skipped.
    pub(super) needs: BTreeSet<Need>,
    pub(super) steps: Vec<Step>,
}

/// One command.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Step {
    /// Unique within the plan, and a folder's name: `engines-read`.
    pub(super) id: String,
    pub(super) needs: BTreeSet<Need>,
    /// What runs.
    pub(super) action: Action,
    pub(super) environment: BTreeMap<String, String>,
    pub(super) timeout: Duration,
}

/// What a step does.
#[derive(Clone, PartialEq, Debug)]
pub(super) enum Action {
    /// Looks at the host.
    Preflight,
    /// Arguments of this program.
    Run(Vec<String>),
}

impl Step {
    /// What identifies the step's work: a result of another is not this step's.
    pub(super) fn fingerprint(&self) -> String {
        #[derive(Serialize)]
        struct Work<'a> {
            run: &'a [String],
            environment: &'a BTreeMap<String, String>,
        }
        let run = match &self.action {
            Action::Preflight => &[][..],
            Action::Run(words) => words,
        };
        // Only maps with keys that are no strings can fail here; there are none.
        serde_json::to_string(&Work { run, environment: &self.environment }).unwrap_or_default()
    }
}

// What is written in the file.

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    plan: Head,
    #[serde(default, rename = "phase")]
    phases: Vec<PhaseTable>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Head {
    name: String,
    #[serde(default)]
    about: String,
    budget: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PhaseTable {
    id: String,
    title: String,
    #[serde(default)]
    needs: Vec<String>,
    #[serde(default, rename = "step")]
    steps: Vec<StepTable>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct StepTable {
    id: String,
    #[serde(default)]
    needs: Vec<String>,
    #[serde(default)]
    preflight: bool,
    #[serde(default)]
    run: Vec<String>,
    #[serde(default)]
    matrix: BTreeMap<String, Vec<String>>,
    #[serde(default)]
    environment: BTreeMap<String, String>,
    timeout: Option<String>,
}

impl Plan {
    /// Reads a plan; `place` is what errors call it.
    ///
    /// # Errors
    /// A usage failure that names what is wrong and where.
    pub(super) fn parse(text: &str, place: &str) -> Result<Self, Failure> {
        let file: File = toml::from_str(text)
            .map_err(|e| Failure::usage(format!("{place}: {}", e.to_string().trim_end())))?;
        let wrong = |what: String| Failure::usage(format!("{place}: {what}"));
        if file.phases.is_empty() {
            return Err(wrong("a plan has at least one [[phase]]".into()));
        }
        let budget = file.plan.budget.as_deref().map(units::duration).transpose();
        let budget = budget.map_err(|e| wrong(format!("budget: {e}")))?;
        let mut ids = BTreeSet::new();
        let mut phases = Vec::new();
        for phase in file.phases {
            check_id(&phase.id).map_err(|e| wrong(format!("phase `{}`: {e}", phase.id)))?;
            let needs = needs(&phase.needs).map_err(|e| wrong(format!("phase `{}`: {e}", phase.id)))?;
            if phase.steps.is_empty() {
                return Err(wrong(format!("phase `{}` has no [[phase.step]]", phase.id)));
            }
            let mut steps = Vec::new();
            for step in &phase.steps {
                let wrong = |e: String| wrong(format!("phase `{}`, step `{}`: {e}", phase.id, step.id));
                for step in step.expand().map_err(wrong)? {
                    if !ids.insert(step.id.clone()) {
                        return Err(wrong(format!("`{}` is there twice", step.id)));
                    }
                    steps.push(step);
                }
                if ids.len() > STEPS_MAX {
                    return Err(wrong(format!("the plan has more than {STEPS_MAX} steps")));
                }
            }
            phases.push(Phase { id: phase.id, title: phase.title, needs, steps });
        }
        Ok(Self { name: file.plan.name, about: file.plan.about, budget, phases })
    }

    /// All steps, in order.
    pub(super) fn steps(&self) -> impl Iterator<Item = (&Phase, &Step)> {
        self.phases.iter().flat_map(|phase| phase.steps.iter().map(move |step| (phase, step)))
    }
}

impl StepTable {
    /// One step for each combination of the matrix, whose names stand in braces in `id`, `run` and `environment`.
    fn expand(&self) -> Result<Vec<Step>, String> {
        match (self.preflight, self.run.first()) {
            (true, Some(_)) => return Err("`preflight` and `run` exclude each other".into()),
            (true, None) => {}
            (false, None) => return Err("`run` is missing: the arguments of kvrail, `[\"bench\", …]`".into()),
            (false, Some(command)) if !COMMANDS.contains(&command.as_str()) => {
                return Err(format!("a step cannot run `{command}`; it can run {}", COMMANDS.join(", ")));
            }
            (false, Some(_)) => {}
        }
        let needs = needs(&self.needs)?;
        let timeout = self.timeout.as_deref().map(units::duration).transpose();
        let timeout = timeout.map_err(|e| format!("timeout: {e}"))?.unwrap_or(TIMEOUT);
        let mut choices: Vec<Vec<(&str, &str)>> = vec![Vec::new()];
        for (name, values) in &self.matrix {
            if values.is_empty() {
                return Err(format!("matrix.{name} has no values"));
            }
            if !self.id.contains(&format!("{{{name}}}")) {
                return Err(format!("matrix.{name}: the id must name it, as in `{}-{{{name}}}`", self.id));
            }
            if choices.len().saturating_mul(values.len()) > STEPS_MAX {
                return Err(format!("the matrix makes more than {STEPS_MAX} steps"));
            }
            choices = choices
                .into_iter()
                .flat_map(|chosen| {
                    values.iter().map(move |value| {
                        let mut chosen = chosen.clone();
                        chosen.push((name.as_str(), value.as_str()));
                        chosen
                    })
                })
                .collect();
        }
        let mut steps = Vec::new();
        for chosen in choices {
            let id = filled(&self.id, &chosen)?;
            check_id(&id).map_err(|e| format!("`{id}`: {e}"))?;
            let run = self.run.iter().map(|word| filled(word, &chosen)).collect::<Result<Vec<_>, _>>()?;
            let environment = self.environment.iter();
            let environment = environment.map(|(name, value)| Ok((name.clone(), filled(value, &chosen)?)));
            let action = if self.preflight { Action::Preflight } else { Action::Run(run) };
            steps.push(Step {
                id,
                needs: needs.clone(),
                action,
                environment: environment.collect::<Result<_, String>>()?,
                timeout,
            });
        }
        Ok(steps)
    }
}

fn needs(words: &[String]) -> Result<BTreeSet<Need>, String> {
    words.iter().map(|word| word.parse()).collect()
}

/// A folder's name: letters, digits, `-`, `_` and `.`, and no more than a file system takes.
fn check_id(id: &str) -> Result<(), String> {
    let fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let template = id.replace(['{', '}'], "");
    if id.is_empty() || id.len() > 100 || id.starts_with('.') || !template.chars().all(fine) {
        return Err(
            "an id has 1 to 100 letters, digits, `-`, `_` or `.`, and begins with none of the last".into()
        );
    }
    Ok(())
}

/// Replaces `{name}` by what was chosen for it.
fn filled(text: &str, chosen: &[(&str, &str)]) -> Result<String, String> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(open) = rest.find('{') {
        out.push_str(&rest[..open]);
        let inside = &rest[open + 1..];
        let close = inside.find('}').ok_or_else(|| format!("`{text}`: a brace is not closed"))?;
        let name = &inside[..close];
        let value = chosen.iter().find(|(known, _)| *known == name);
        let (_, value) = value.ok_or_else(|| format!("`{text}`: the matrix has no `{name}`"))?;
        out.push_str(value);
        rest = &inside[close + 1..];
    }
    out.push_str(rest);
    Ok(out)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn plan(steps: &str) -> Result<Plan, Failure> {
        let text = format!("[plan]\nname = \"x\"\n[[phase]]\nid = \"a\"\ntitle = \"A\"\n{steps}");
        Plan::parse(&text, "plan.toml")
    }

    #[test]
    fn the_shipped_plans_are_plans() {
        for (name, text) in SHIPPED {
            let plan = Plan::parse(text, name).unwrap();
            assert_eq!(plan.name, name);
            assert!(plan.steps().count() > 2 && !plan.about.is_empty());
        }
    }

    #[test]
    fn every_step_of_a_shipped_plan_is_a_command_line_that_kvrail_takes() {
        for (name, text) in SHIPPED {
            for (_, step) in Plan::parse(text, name).unwrap().steps() {
                let Action::Run(words) = &step.action else { continue };
                let words = std::iter::once("kvrail".to_string()).chain(words.iter().cloned());
                crate::understand(words).unwrap_or_else(|e| panic!("{name}, {}: {e}", step.id));
            }
        }
    }

    #[test]
    fn a_matrix_makes_a_step_of_every_combination() {
        let text = r#"
            [[phase.step]]
            id = "p2p-{p2p}-{op}"
            run = ["bench", "--op", "{op}"]
            matrix = { p2p = ["0", "1"], op = ["read", "write"] }
            environment = { FI_HMEM_DISABLE_P2P = "{p2p}" }
        "#;
        let plan = plan(text).unwrap();
        let ids: Vec<_> = plan.steps().map(|(_, step)| step.id.as_str()).collect();
        assert_eq!(ids, ["p2p-0-read", "p2p-1-read", "p2p-0-write", "p2p-1-write"]);
        let (_, last) = plan.steps().last().unwrap();
        assert_eq!(last.action, Action::Run(vec!["bench".into(), "--op".into(), "write".into()]));
        assert_eq!(last.environment["FI_HMEM_DISABLE_P2P"], "1");
    }

    #[test]
    fn what_is_wrong_is_named_with_its_place() {
        for (steps, says) in [
            ("", "has no [[phase.step]]"),
            ("[[phase.step]]\nid = \"s\"\n", "`run` is missing"),
            ("[[phase.step]]\nid = \"s\"\nrun = [\"rm\", \"-rf\"]\n", "cannot run `rm`"),
            ("[[phase.step]]\nid = \"../s\"\nrun = [\"bench\"]\n", "an id has"),
            ("[[phase.step]]\nid = \"s\"\nrun = [\"bench\", \"{op}\"]\n", "no `op`"),
            ("[[phase.step]]\nid = \"s\"\nrun = [\"bench\"]\nneeds = [\"luck\"]\n", "luck"),
            ("[[phase.step]]\nid = \"s\"\nrun = [\"bench\"]\ntimeout = \"soon\"\n", "timeout"),
            ("[[phase.step]]\nid = \"s\"\nrun = [\"bench\"]\nmatrix = { op = [\"a\"] }\n", "must name it"),
            ("[[phase.step]]\nid = \"s\"\nrun = [\"bench\"]\nfuel = 1\n", "fuel"),
            (
                "[[phase.step]]\nid = \"s\"\nrun = [\"bench\"]\n[[phase.step]]\nid = \"s\"\nrun = [\"topo\"]\n",
                "twice",
            ),
        ] {
            let failure = plan(steps).unwrap_err();
            assert!(failure.what.contains("plan.toml") && failure.what.contains(says), "{steps}: {failure}");
        }
    }

    #[test]
    fn a_changed_step_has_another_fingerprint() {
        let of = |size: &str| {
            let text = format!("[[phase.step]]\nid = \"s\"\nrun = [\"bench\", \"--block\", \"{size}\"]\n");
            plan(&text).unwrap().steps().next().map(|(_, step)| step.fingerprint()).unwrap()
        };
        assert_eq!(of("4KiB"), of("4KiB"));
        assert_ne!(of("4KiB"), of("8KiB"));
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "(\\PC|\n){0,200}") {
            let _ = Plan::parse(&text, "x");
        }
    }
}
