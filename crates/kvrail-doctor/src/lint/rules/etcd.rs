//! etcd: how it is addressed, what is deleted in it, and what stands in for its readiness.

use super::super::facts::{Variable, Workload, option};
use super::super::read::{Command, Word};
use super::{Look, Reference, rule};
use crate::finding::Finding;
use crate::rule::{Confidence, Rule, Severity};

pub(crate) const RULES: &[&Rule] = &[&ADDRESS, &WIPE, &SLEEP];

const ETCDCTL: Reference = Reference {
    title: "etcd: interacting with etcd",
    url: "https://etcd.io/docs/v3.5/dev-guide/interacting_v3/",
};

static ADDRESS: Rule = rule(
    "lint-etcd-address",
    Severity::Error,
    "an etcd endpoint without its scheme or its port",
    [
        "The etcd clients of NIXL and nixlbench take endpoints as URLs and refuse others, or wait for a name that cannot be resolved.",
        "Write http://host:2379, several of them with commas between.",
        "An error about a URI or a scheme from one client while another works with the same text: etcdctl adds http:// by itself, the C++ client in NIXL and nixlbench does not, and takes `etcd-service:2379` for the scheme etcd-service. Without a port some clients try 80.",
    ],
    &[ETCDCTL, Reference { title: "NIXL: etcd metadata exchange", url: "https://github.com/ai-dynamo/nixl" }],
);

static WIPE: Rule = rule(
    "lint-etcd-wipe",
    Severity::Error,
    "a script deletes everything in etcd",
    [
        "`etcdctl del \"\" --prefix` matches every key of the store, those of other runs, of Dynamo and of whatever else uses this etcd included.",
        "Delete only your own run's prefix, or give each run a name of its own so that nothing has to be deleted.",
        "A benchmark that cleans up before it begins ends everybody else's run: their members wait for peers whose keys are gone. With --from-key and --prefix together etcdctl refuses the command, so that the keys are not deleted either and the next run \
meets those of the last. nixlbench keeps its keys under xferbench/<benchmark_group>; a new group for each run needs no cleaning at all.",
    ],
    &[ETCDCTL],
);

static SLEEP: Rule = rule(
    "lint-fixed-sleep",
    Severity::Note,
    "a fixed sleep stands in for readiness",
    [
        "The script waits for a time and not for what it needs, which is too short on a slow day and too long on all others.",
        "Wait for the condition, with a deadline.",
        "A run fails once in ten with a time-out at the rendezvous, and passes when it is tried again: the image was pulled more slowly than the sleep, or the target was not yet registered. It becomes worse with more nodes, and longer sleeps hide it without mending it.",
    ],
    &[Reference {
        title: "Kubernetes: kubectl wait",
        url: "https://kubernetes.io/docs/reference/kubectl/generated/kubectl_wait/",
    }],
);

pub(crate) fn look(look: &mut Look<'_>) {
    let facts = look.facts;
    for workload in &facts.workloads {
        addresses(look, workload);
        for command in &workload.commands {
            wipe(look, workload, command);
        }
        sleeps(look, workload);
    }
}

fn addresses(look: &mut Look<'_>, workload: &Workload) {
    const VARIABLES: [&str; 3] = ["NIXL_ETCD_ENDPOINTS", "ETCD_ENDPOINTS", "DYN_ETCD_ENDPOINTS"];
    let before: Vec<Variable> = workload.scoped().collect();
    for variable in workload.variables.iter().chain(&before) {
        if let Some(value) = variable.value.as_ref().filter(|_| VARIABLES.contains(&variable.name.as_str())) {
            address(look, workload, value, |fixed| variable.written(fixed));
        }
    }
    for command in &workload.commands {
        let bench = command.words.iter().any(|word| word.str().rsplit('/').next() == Some("nixlbench"));
        let names = ["--etcd_endpoints", "--etcd-endpoints"];
        if let Some(word) = option(&command.words, &names).filter(|_| bench) {
            address(look, workload, word, |fixed| format!("--etcd_endpoints {fixed}"));
        }
    }
}

fn address(look: &mut Look<'_>, workload: &Workload, word: &Word, fix: impl Fn(&str) -> String) {
    let text = word.str();
    if text.is_empty() || text.starts_with('$') || text.contains("$(") {
        return;
    }
    let wrong = text.split(',').find(|endpoint| {
        let schemed = endpoint.split_once("://");
        let rest = schemed.map_or(*endpoint, |(_, rest)| rest);
        schemed.is_none() || !rest.contains(':') && !rest.contains('$')
    });
    let Some(wrong) = wrong else { return };
    let each = text.split(',').map(|endpoint| {
        let (scheme, rest) = endpoint.split_once("://").unwrap_or(("http", endpoint));
        if rest.contains(':') { format!("{scheme}://{rest}") } else { format!("{scheme}://{rest}:2379") }
    });
    let fixed = each.collect::<Vec<_>>().join(",");
    let what = if wrong.contains("://") { "no port" } else { "no scheme" };
    let finding =
        Finding::new(&ADDRESS, format!("the etcd endpoint {wrong} has {what}")).fix("as a URL", fix(&fixed));
    look.find(workload.file, word.at(), finding);
}

fn wipe(look: &mut Look<'_>, workload: &Workload, command: &Command) {
    let Some(begin) = command.words.iter().position(|word| word.str().rsplit('/').next() == Some("etcdctl"))
    else {
        return;
    };
    let words = &command.words[begin..];
    let Some(del) = words.iter().position(|word| word.str() == "del") else { return };
    let range = words.iter().any(|word| matches!(word.str(), "--prefix" | "--from-key"));
    // Flags that take no value: the word behind `del` that is no flag is the key.
    let mut keys = words[del + 1..]
        .iter()
        .filter(|word| !word.str().starts_with("--") && !matches!(word.str(), "true" | "false"));
    let everything = keys.next().is_none_or(|key| matches!(key.str(), "" | "\0" | "/" | "\\0"));
    if !range || !everything {
        return;
    }
    let both = words.iter().any(|word| word.str() == "--prefix")
        && words.iter().any(|word| word.str() == "--from-key");
    let before: Vec<&str> = command.words[..begin].iter().map(Word::str).collect();
    let prefix = if before.is_empty() { String::new() } else { format!("{} ", before.join(" ")) };
    let title = if both {
        "etcdctl del \"\" with --from-key and --prefix: refused as it is, and with either of them everything is deleted"
    } else {
        "etcdctl deletes every key of the store"
    };
    let finding = Finding::new(&WIPE, title)
        .fix("your own keys only", format!("{prefix}etcdctl del --prefix \"xferbench/$BENCHMARK_GROUP\""))
        .fix(
            "or a new group for each run, and nothing to delete",
            "nixlbench --benchmark_group \"run-$(date +%s)\" …",
        );
    look.find(workload.file, command.words[begin].at(), finding);
}

fn sleeps(look: &mut Look<'_>, workload: &Workload) {
    let relevant = workload.measures()
        || !workload.engines.is_empty()
        || workload.runs("etcd")
        || workload.runs("kubectl") && {
            workload
                .commands
                .iter()
                .flat_map(|command| &command.words)
                .any(|word| word.str().contains("nixl") || word.str().contains("etcd"))
        };
    if !relevant || workload.container.is_some() {
        return;
    }
    for command in workload.commands.iter().filter(|command| command.program() == "sleep" && !command.looped)
    {
        let seconds =
            command.words.get(1).and_then(|word| word.str().trim_end_matches('s').parse::<f64>().ok());
        if seconds.is_some_and(|seconds| (3.0..3600.0).contains(&seconds)) {
            let title = format!("the script sleeps {} s and hopes", seconds.unwrap_or(0.0));
            let finding = Finding::new(&SLEEP, title)
                .confidence(Confidence::Possible)
                .fix(
                    "until a pod is ready",
                    "kubectl wait --for=condition=Ready pod/nixl-bench-node2 --timeout=300s",
                )
                .fix(
                    "until a port answers",
                    "timeout 300 bash -c 'until nc -z HOST PORT; do sleep 0.2; done'",
                );
            look.find(workload.file, command.at(), finding);
        }
    }
}
