//! Reads what callgrind counted, by shared object: whose instructions they were.
//!
//! The format is one of lines: `ob=` says in which object the following costs lie, `cob=` and `calls=` announce a line with
//! the inclusive cost of a call, other lines that begin with a position carry own costs. Names are given once with a
//! number in brackets and then by that number alone; objects and functions have numbers of their own.

use std::collections::BTreeMap;

/// libc's functions that call the program's `main`: what they include is the program's.
const STARTS_MAIN: [&str; 2] = ["(below main)", "__libc_start"];

/// Costs by object, one number per event.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Profile {
    pub(super) events: Vec<String>,
    /// Own costs of each object's code.
    own: BTreeMap<String, Vec<u64>>,
    /// Own cost of each object's functions, of the first event.
    functions: BTreeMap<(String, String), u64>,
    /// Inclusive costs of calls from one object into another.
    calls: BTreeMap<(String, String), Vec<u64>>,
}

impl Profile {
    /// From a file of callgrind's.
    pub(super) fn read(text: &str) -> Result<Self, String> {
        let mut profile = Self::default();
        let (mut objects, mut functions) = (Names::default(), Names::default());
        let (mut object, mut called, mut is_call) = (String::new(), None, false);
        let (mut function, mut starts_main) = (String::new(), false);
        for line in text.lines() {
            if let Some(events) = line.strip_prefix("events: ") {
                profile.events = events.split_whitespace().map(str::to_owned).collect();
            } else if let Some(text) = line.strip_prefix("ob=") {
                object = objects.name(text);
            } else if let Some(text) = line.strip_prefix("cob=").or_else(|| line.strip_prefix("cobj=")) {
                called = Some(objects.name(text));
            } else if let Some(text) = line.strip_prefix("fn=") {
                function = functions.name(text);
            } else if let Some(text) = line.strip_prefix("cfn=") {
                starts_main = STARTS_MAIN.iter().any(|name| functions.name(text).starts_with(name));
            } else if line.starts_with("calls=") {
                is_call = true;
            } else if line
                .starts_with(|first: char| first.is_ascii_digit() || matches!(first, '+' | '-' | '*'))
            {
                let costs = line.split_whitespace().skip(1).map(str::parse::<u64>);
                let costs: Vec<u64> =
                    costs.collect::<Result<_, _>>().map_err(|error| format!("`{line}`: {error}"))?;
                if is_call {
                    let to = called.take().unwrap_or_else(|| object.clone());
                    if !starts_main {
                        add(profile.calls.entry((object.clone(), to)).or_default(), &costs);
                    }
                    is_call = false;
                } else {
                    add(profile.own.entry(object.clone()).or_default(), &costs);
                    let place = (object.clone(), function.clone());
                    *profile.functions.entry(place).or_default() += costs.first().copied().unwrap_or(0);
                }
            }
        }
        if profile.events.is_empty() || profile.own.is_empty() {
            return Err(
                "callgrind counted nothing: was the function that it was told to look at called?".into()
            );
        }
        Ok(profile)
    }

    /// One event's own cost of the objects whose path ends so.
    pub(super) fn own(&self, object: impl Fn(&str) -> bool, event: &str) -> u64 {
        let Some(at) = self.events.iter().position(|name| name == event) else { return 0 };
        let of = self.own.iter().filter(|(path, _)| object(path));
        of.map(|(_, costs)| costs.get(at).copied().unwrap_or(0)).sum()
    }

    /// One event's inclusive cost of calls between objects.
    pub(super) fn calls(&self, from: impl Fn(&str) -> bool, to: impl Fn(&str) -> bool, event: &str) -> u64 {
        let Some(at) = self.events.iter().position(|name| name == event) else { return 0 };
        let of = self.calls.iter().filter(|((caller, called), _)| from(caller) && to(called));
        of.map(|(_, costs)| costs.get(at).copied().unwrap_or(0)).sum()
    }

    /// The objects, most of the first event first.
    pub(super) fn objects(&self) -> Vec<(&str, u64)> {
        let first = |costs: &[u64]| costs.first().copied().unwrap_or(0);
        let mut objects: Vec<_> =
            self.own.iter().map(|(path, costs)| (path.as_str(), first(costs))).collect();
        objects.sort_by_key(|(_, cost)| std::cmp::Reverse(*cost));
        objects
    }
}

impl Profile {
    /// The functions of the objects, most of the first event first.
    pub(super) fn functions(&self, object: impl Fn(&str) -> bool) -> Vec<(&str, u64)> {
        let of = self.functions.iter().filter(|((path, _), _)| object(path));
        let mut functions: Vec<_> = of.map(|((_, name), cost)| (name.as_str(), *cost)).collect();
        functions.sort_by_key(|(_, cost)| std::cmp::Reverse(*cost));
        functions
    }
}

/// Names that are given once.
#[derive(Debug, Default)]
struct Names(BTreeMap<String, String>);

impl Names {
    fn name(&mut self, text: &str) -> String {
        match text.split_once(' ') {
            Some((number, name)) if number.starts_with('(') && number.ends_with(')') => {
                self.0.insert(number.to_owned(), name.to_owned());
                name.to_owned()
            }
            _ => self.0.get(text).cloned().unwrap_or_else(|| text.to_owned()),
        }
    }
}

/// Trailing zeros are left out in the file.
fn add(sum: &mut Vec<u64>, costs: &[u64]) {
    sum.resize(sum.len().max(costs.len()), 0);
    sum.iter_mut().zip(costs).for_each(|(sum, cost)| *sum += cost);
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "\
# callgrind format
version: 1
positions: line
events: Ir Bcm
fl=(1) src/cost.rs
ob=(1) /bin/drive
fn=(1) timed
16 400 2
cob=(2) /lib/libfabric.so.1
cfn=(2) fi_read
calls=3 50
+1 3000 7
* 20
cob=(3) /lib/libc.so.6
cfn=(3) memcpy
calls=2 0
17 60
cob=(3)
cfn=(4) (below main)
calls=1 0
17 99999
calls=1 5
18 33

ob=(2)
fn=(2)
50 2900
ob=(3)
fn=(3)
0 160 1
";

    #[test]
    fn own_costs_and_calls_are_told_apart_by_object() {
        let profile = Profile::read(FILE).unwrap();
        let is = |end: &'static str| move |path: &str| path.ends_with(end);
        assert_eq!(profile.own(is("drive"), "Ir"), 420);
        assert_eq!(profile.own(is("drive"), "Bcm"), 2);
        assert_eq!(profile.own(is("libfabric.so.1"), "Ir"), 2900);
        assert_eq!(profile.calls(is("drive"), is("libc.so.6"), "Ir"), 60);
        assert_eq!(profile.calls(is("drive"), is("libfabric.so.1"), "Bcm"), 7);
        assert_eq!(profile.own(is("drive"), "DLmr"), 0);
        assert_eq!(profile.functions(is("drive")), [("timed", 420)]);
        assert_eq!(profile.objects()[0], ("/lib/libfabric.so.1", 2900));
    }

    #[test]
    fn an_empty_profile_is_said_and_not_zero() {
        assert!(Profile::read("events: Ir\n").unwrap_err().contains("nothing"));
        assert!(Profile::read("").is_err());
    }
}
