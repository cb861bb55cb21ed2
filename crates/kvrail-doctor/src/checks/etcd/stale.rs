//! What killed runs left behind in etcd.
//!
//! etcd does not say when a key was written, and a key without lease says nothing of its writer. What can be told is told from how the tools
//! write: a run that lives holds keys with a lease, which vanish with it.

use std::collections::BTreeMap;

use super::{asked, count, nothing_named};
use crate::finding::{Finding, Outcome};
use crate::host::{EtcdKey, Host, Lack};
use crate::rule::{Confidence, Kind, Reference, Rule, Severity};

pub(super) static STALE_KEYS: Rule = Rule {
    id: "etcd-stale-keys",
    title: "a killed benchmark left keys in etcd that break the next run",
    severity: Severity::Error,
    kind: Kind::Host,
    cause: "nixlbench counts its participants in a key without lease; a run that was killed leaves it, and the next run counts on from there.",
    remedy: "Delete the keys of that group, and nothing else in the store.",
    story: "The next nixlbench says `Rank 2 is greater than or equal to global size 2`, or waits for peers until its time-out, although nothing was changed since it last worked.

Each participant takes its rank from xferbench/GROUP//size, adds one to it, and deletes the group's keys when it ends. The count has no lease, so that it survives a participant that is killed: \
by a time-out, by `kubectl delete pod`, by the memory limit. The next run begins to count at 2. Newer releases give their rank keys a lease; the count still has none.

Recipes say to empty the store with `etcdctl del \"\" --from-key`. That also takes Dynamo's instances, agents' metadata and whatever else is in there. The keys of the group are enough. `kvrail nixlbench` \
holds everything by leases and does not have this problem.",
    references: &[
        Reference {
            title: "nixlbench: etcd runtime",
            url: "https://github.com/ai-dynamo/nixl/blob/main/benchmark/nixlbench/src/runtime/etcd/etcd_rt.cpp",
        },
        Reference {
            title: "etcd: interacting with etcd, leases",
            url: "https://etcd.io/docs/v3.5/dev-guide/interacting_v3/",
        },
    ],
    explained_by: &["etcd-unreachable", "etcd-unhealthy"],
};

/// Where nixlbench keeps the keys of its groups.
const NIXLBENCH: &str = "xferbench/";
/// Where kvbench keeps its own, unless NIXL_ETCD_NAMESPACE says otherwise.
const KVBENCH: &str = "/nixl/kvbench";
/// Where NIXL's agents publish their metadata.
const AGENTS: &str = "/nixl/agents/";
/// Most keys that are named one by one.
const KEYS_SHOWN: usize = 6;

pub(super) fn stale_keys(host: &Host) -> Outcome {
    let Some(asked) = asked(host) else { return nothing_named() };
    // Members of one cluster tell the same keys: the first that answers is enough for each store.
    let Some((endpoint, _)) = asked.iter().find(|(_, told)| told.is_ok()) else {
        return Outcome::NotApplicable("no etcd answers".into());
    };
    let url = endpoint.url.as_str();
    let nixlbench = match host.etcd_keys(url, NIXLBENCH) {
        Ok(keys) => keys,
        Err(Lack::Failed(why)) => {
            return Outcome::NotApplicable(format!("{url} does not tell its keys: {why}"));
        }
        Err(why) => return Outcome::Unknown(format!("{url} did not tell its keys: {why}")),
    };
    let mut findings = Vec::new();
    let mut living = 0;
    for (group, keys) in groups(&nixlbench.keys) {
        if keys.iter().any(|key| key.lease != 0) {
            living += 1;
        } else {
            findings.push(left(url, group, &keys, nixlbench.revision));
        }
    }
    if let Ok(kvbench) = host.etcd_keys(url, KVBENCH)
        && !kvbench.keys.is_empty()
        && kvbench.keys.iter().all(|key| key.lease == 0)
    {
        findings.push(of_kvbench(url, &kvbench.keys, kvbench.count, kvbench.revision));
    }
    Outcome::of(findings, || {
        let agents = host.etcd_keys(url, AGENTS).map_or(0, |keys| keys.count);
        let mut parts = Vec::new();
        if living > 0 {
            parts.push(format!("{} of nixlbench alive", count(living, "group")));
        }
        if agents > 0 {
            // A living agent's look like a dead one's, and neither breaks anybody else's run.
            parts.push(format!("{agents} keys of NIXL agents, which have no lease"));
        }
        if parts.is_empty() {
            parts.push("nothing of nixlbench or NIXL".into());
        }
        format!("{url} has {}", parts.join(", "))
    })
}

/// Keys by the group of nixlbench that they belong to.
fn groups(keys: &[EtcdKey]) -> BTreeMap<&str, Vec<&EtcdKey>> {
    let mut groups: BTreeMap<&str, Vec<&EtcdKey>> = BTreeMap::new();
    for key in keys {
        let group = key.name.strip_prefix(NIXLBENCH).and_then(|rest| rest.split('/').next());
        if let Some(group) = group {
            groups.entry(group).or_default().push(key);
        }
    }
    groups
}

/// The finding for a group of which nothing has a lease.
fn left(url: &str, group: &str, keys: &[&EtcdKey], revision: u64) -> Finding {
    let has = |name: &str| keys.iter().any(|key| key.name.ends_with(name));
    // Releases that give rank keys a lease leave the count alone. In older ones nothing has a lease, and a run that lives looks the same.
    let counted_only = has("/size") && !keys.iter().any(|key| key.name.contains("/rank/"));
    let finding = Finding::new(
        &STALE_KEYS,
        format!("a run of nixlbench that is gone left {} of the group `{group}`", count(keys.len(), "key")),
    )
    .cause(if counted_only {
        "The count of participants is there and no participant holds a lease: the next run of this group takes ranks that are too high, and fails or waits."
    } else {
        "No key of the group has a lease: unless an old nixlbench runs right now, a killed one left them, and the next run takes ranks that are too high."
    })
    .confidence(if counted_only { Confidence::Certain } else { Confidence::Likely });
    let finding = with_keys(finding, keys, revision);
    let names: Vec<&str> = keys.iter().map(|key| key.name.as_str()).collect();
    delete(finding, url, &names, &format!("{NIXLBENCH}{group}/"))
}

fn of_kvbench(url: &str, keys: &[EtcdKey], total: u64, revision: u64) -> Finding {
    let keys: Vec<&EtcdKey> = keys.iter().collect();
    let finding = Finding::new(
        &STALE_KEYS,
        format!("{total} keys of kvbench below {KVBENCH}, none with a lease"),
    )
    .cause("kvbench's barriers and results have no lease: unless one runs right now, a killed run left them.")
    .severity(Severity::Note)
    .confidence(Confidence::Possible);
    let names: Vec<&str> = keys.iter().map(|key| key.name.as_str()).collect();
    let prefix = if total as usize > names.len() { &names[..0] } else { &names[..] };
    delete(with_keys(finding, &keys, revision), url, prefix, KVBENCH)
}

fn with_keys(finding: Finding, keys: &[&EtcdKey], revision: u64) -> Finding {
    let shown = keys.iter().take(KEYS_SHOWN).fold(finding, |finding, key| {
        let since = revision.saturating_sub(key.modified);
        finding.evidence(
            &key.name,
            format!("no lease, written at revision {}, {since} changes of the store ago", key.modified),
        )
    });
    match keys.len().saturating_sub(KEYS_SHOWN) {
        0 => shown,
        more => shown.evidence("etcd", format!("and {more} more")),
    }
}

/// The commands that delete these keys and no others.
fn delete(finding: Finding, url: &str, names: &[&str], prefix: &str) -> Finding {
    if names.is_empty() || names.len() > KEYS_SHOWN {
        return finding.fix(
            "delete what is below this prefix, and nothing else",
            format!("ETCDCTL_API=3 etcdctl --endpoints={url} del --prefix {}", quoted(prefix)),
        );
    }
    let commands: Vec<String> = names
        .iter()
        .map(|name| format!("ETCDCTL_API=3 etcdctl --endpoints={url} del {}", quoted(name)))
        .collect();
    finding.fix("delete these keys, and nothing else", commands.join(" && "))
}

/// A word as a shell takes it. Names come from the store: anybody can have written them.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-=:+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.into();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::host::Bundle;

    fn with(keys: &serde_json::Value) -> Outcome {
        let bundle = json!({
            "schema": "kvrail.bundle.v1", "complete": true, "variables": {"ETCD_ENDPOINTS": "http://etcd:2379"},
            "answers": {
                "http": {"GET http://etcd:2379/health": {"status": 200, "body": "{\"health\":\"true\"}"}},
                "etcd": {
                    "http://etcd:2379 xferbench/": {"revision": 40, "count": 1, "keys": keys},
                    "http://etcd:2379 /nixl/kvbench": {},
                    "http://etcd:2379 /nixl/agents/": {"count": 3},
                },
            },
        });
        stale_keys(&Host::replay(Bundle::parse(&bundle.to_string()).unwrap()))
    }

    #[test]
    fn a_count_without_participants_is_found_and_a_living_run_is_not() {
        let size = json!({"name": "xferbench/default//size", "modified": 12});
        let ill = with(&json!([size]));
        let [finding] = ill.findings() else { panic!("{ill:?}") };
        assert_eq!(finding.confidence, Confidence::Certain);
        assert_eq!(
            finding.fix[0].command.as_deref(),
            Some("ETCDCTL_API=3 etcdctl --endpoints=http://etcd:2379 del xferbench/default//size")
        );
        assert!(finding.evidence[0].seen.contains("28 changes"), "{finding:?}");
        let alive = json!({"name": "xferbench/default//rank/0", "lease": 7});
        assert!(matches!(with(&json!([alive, size])), Outcome::Healthy(_)));
        let old = with(&json!([{"name": "xferbench/default//rank/0"}, size]));
        assert_eq!(old.findings()[0].confidence, Confidence::Likely);
        assert!(matches!(with(&json!([])), Outcome::Healthy(says) if says.contains("3 keys of NIXL agents")));
    }

    #[test]
    fn many_keys_are_deleted_by_their_groups_prefix_and_names_are_quoted() {
        let many: Vec<_> =
            (0..40).map(|i| json!({"name": format!("xferbench/a b'c//barrier/{i:02}")})).collect();
        let ill = with(&json!(many));
        let command = ill.findings()[0].fix[0].command.clone().unwrap();
        assert!(command.ends_with(r"del --prefix 'xferbench/a b'\''c/'"), "{command}");
        assert_eq!(ill.findings()[0].evidence.len(), KEYS_SHOWN + 1);
    }
}
