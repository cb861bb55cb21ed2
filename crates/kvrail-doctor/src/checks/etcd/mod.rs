//! etcd: how its address is written, whether it answers, whether it is healthy, and what killed runs left in it.

mod endpoints;
mod stale;

use serde_json::Value;

use crate::examine::Check;
use crate::finding::{Finding, Outcome};
use crate::host::Host;
use crate::rule::{Confidence, Kind, Reference, Rule, Severity};
use endpoints::{Endpoint, Fault, Health, Trouble};

pub(crate) const CHECKS: &[Check] = &[
    Check { rule: &ADDRESS, look: address },
    Check { rule: &UNREACHABLE, look: unreachable },
    Check { rule: &UNHEALTHY, look: unhealthy },
    Check { rule: &stale::STALE_KEYS, look: stale::stale_keys },
];

const CLUSTERING: Reference = Reference {
    title: "etcd: configuration flags, listen-client-urls and listen-peer-urls",
    url: "https://etcd.io/docs/v3.5/op-guide/configuration/",
};

static ADDRESS: Rule = Rule {
    id: "etcd-address",
    title: "an etcd endpoint is written so that clients fail on it",
    severity: Severity::Error,
    kind: Kind::Host,
    cause: "Endpoints are URLs with scheme, host and client port, separated by commas; clients differ in what else they accept, and fail with URI errors or hang.",
    remedy: "Write http://HOST:2379, several with commas and without spaces.",
    story: "A benchmark or worker prints an error about a URI, or waits until its time-out, although etcd runs and `curl` reaches it.

Programs read their endpoints from a flag or a variable (NIXL_ETCD_ENDPOINTS, ETCD_ENDPOINTS) and hand them to different client libraries. All of them understand \
http://HOST:2379. Without a scheme, without a port, with a path, with spaces or as a JSON list, some work and some do not.

Two addresses are well written and still wrong: port 2380 is where etcd's members speak among themselves, and localhost inside a container is that container, not \
the host and not the etcd service; in Kubernetes it is http://SERVICE:2379.",
    references: &[
        CLUSTERING,
        Reference {
            title: "NIXL: metadata exchange with etcd",
            url: "https://github.com/ai-dynamo/nixl/blob/main/README.md",
        },
    ],
    explained_by: &[],
};

static UNREACHABLE: Rule = Rule {
    id: "etcd-unreachable",
    title: "an etcd that programs here are told to use does not answer",
    severity: Severity::Error,
    kind: Kind::Host,
    cause: "The endpoint refuses connections, is silent, or its name has no address.",
    remedy: "Start etcd, or correct the endpoint; behind a silent one look for a network policy or security group.",
    story: "Workers find no peers, nixlbench waits and ends with a time-out, and agents' metadata never arrive. The message, if there is one, speaks of a deadline and not of \
etcd.

The three ways to fail mean different things. Refused: the host is right and nothing listens on that port, so etcd is not running there, or listens on its loopback only \
(its --listen-client-urls default is http://localhost:2379). No answer: packets are dropped, by a network policy, a security group or because the host is gone. No address: the name is wrong here; \
a Kubernetes service is known by its short name in its own namespace only.",
    references: &[CLUSTERING],
    explained_by: &["etcd-address"],
};

static UNHEALTHY: Rule = Rule {
    id: "etcd-unhealthy",
    title: "an etcd answers and says that it is not healthy",
    severity: Severity::Error,
    kind: Kind::Host,
    cause: "etcd has raised an alarm or has no leader: reads may work, and writes fail.",
    remedy: "With the alarm NOSPACE compact, defragment and disarm; without a leader restore a majority of the members.",
    story: "Everything that was registered before can still be read, and nothing new appears: writes fail with `etcdserver: mvcc: database space exceeded`, or every request ends with `etcdserver: no leader`. \
Clients that retry look as if they hang.

etcd keeps each version of each key until it is compacted, and has a quota (2 GB unless --quota-backend-bytes says otherwise). Agents that publish megabytes of metadata again and again \
reach it in days. Once it is reached, the alarm NOSPACE stays until it is disarmed, even after keys were deleted.

Without a leader a majority of the members is not there: most often a StatefulSet whose pods lost their volumes or their names.",
    references: &[
        Reference { title: "etcd: maintenance, space quota", url: "https://etcd.io/docs/v3.5/op-guide/maintenance/" },
        Reference { title: "etcd: monitoring, health check", url: "https://etcd.io/docs/v3.5/op-guide/monitoring/" },
    ],
    explained_by: &["etcd-unreachable"],
};

/// Endpoints that are named, with what each answered; none where none is named and the default does not answer.
fn asked(host: &Host) -> Option<Vec<(Endpoint, Result<Health, Trouble>)>> {
    let named = endpoints::named(host);
    let told = endpoints::health(host, &named);
    let pairs: Vec<_> = named.into_iter().zip(told).collect();
    let is_named = endpoints::is_named(&pairs.iter().map(|(e, _)| e.clone()).collect::<Vec<_>>());
    (is_named || pairs.iter().any(|(_, told)| told.is_ok())).then_some(pairs)
}

fn nothing_named() -> Outcome {
    let names: Vec<_> = endpoints::VARIABLES.iter().map(|(name, _)| *name).collect();
    Outcome::NotApplicable(format!("no etcd is named by --etcd, {}", names.join(", ")))
}

fn address(host: &Host) -> Outcome {
    let Some(asked) = asked(host) else { return nothing_named() };
    let mut findings: Vec<Finding> = Vec::new();
    for (endpoint, told) in &asked {
        if let Some(fault) = endpoint.faults.iter().min() {
            findings.push(badly_written(endpoint, *fault));
        }
        if told.is_err() && endpoint.is_peer_port() {
            findings.push(
                Finding::new(&ADDRESS, format!("{} names etcd's port for its own members", endpoint.url))
                    .cause("Port 2380 is where etcd's members speak among themselves; clients are served on 2379.")
                    .evidence(&endpoint.source, &endpoint.written)
                    .fix("name the clients' port", set(endpoint, &endpoint.with_client_port())),
            );
        }
        if told.is_err() && endpoint.is_loopback() && endpoint.source != "the default" {
            if let Some(container) = container(host) {
                findings.push(
                    Finding::new(&ADDRESS, format!("{} is this {container} itself, and no etcd runs in it", endpoint.url))
                        .cause(format!("localhost inside a {container} is not its host: etcd is reached by the name of its service."))
                        .evidence(&endpoint.source, &endpoint.written)
                        .fix("name etcd's service, for instance", set(endpoint, "http://etcd-service:2379"))
                        .confidence(Confidence::Likely),
                );
            }
        }
        if let Err(Trouble::Stranger(said)) = told
            && said.contains("HTTPS server")
        {
            let https = endpoint.url.replacen("http://", "https://", 1);
            findings.push(
                Finding::new(&ADDRESS, format!("{} speaks TLS, and the endpoint says http", endpoint.url))
                    .cause("etcd was started with certificates: its endpoints begin with https.")
                    .evidence(format!("GET {}/health", endpoint.url), said)
                    .fix("say https", set(endpoint, &https)),
            );
        }
    }
    let schemes = |scheme: &str| asked.iter().any(|(endpoint, _)| endpoint.written.starts_with(scheme));
    if schemes("http://") && schemes("https://") {
        let all: Vec<_> = asked.iter().map(|(endpoint, _)| endpoint.written.as_str()).collect();
        findings.push(
            Finding::new(&ADDRESS, "some etcd endpoints say http and some https")
                .cause("The members of a cluster serve clients either with TLS or without: a client fails whenever it happens to choose the other kind.")
                .evidence("endpoints", all.join(", "))
                .advice("write all of them with the scheme that etcd's --listen-client-urls has")
                .severity(Severity::Warning)
                .confidence(Confidence::Likely),
        );
    }
    Outcome::of(findings, || format!("{} well written", count(asked.len(), "endpoint")))
}

fn badly_written(endpoint: &Endpoint, fault: Fault) -> Finding {
    let written = &endpoint.written;
    let (title, severity) = match fault {
        Fault::NoScheme => (format!("{written} has no scheme: some clients refuse it"), Severity::Warning),
        Fault::OtherScheme => {
            (format!("{written}: etcd's endpoints begin with http or https"), Severity::Error)
        }
        Fault::NoPort => (format!("{written} has no port: clients go to port 80 or 443"), Severity::Error),
        Fault::Path => (format!("{written} has a path: some clients refuse it"), Severity::Warning),
        Fault::List => {
            (format!("the endpoints in {} are not a list with commas", endpoint.source), Severity::Error)
        }
    };
    Finding::new(&ADDRESS, title)
        .severity(severity)
        .evidence(&endpoint.source, written)
        .fix("write it as a URL", set(endpoint, &endpoint.url))
}

/// The command that corrects an endpoint where it was written.
fn set(endpoint: &Endpoint, url: &str) -> String {
    match endpoint.source.strip_prefix('$') {
        Some(name) => format!("export {name}={url}"),
        None => format!("kvrail doctor --etcd {url}"),
    }
}

/// What kind of container this is, if it is one.
fn container(host: &Host) -> Option<&'static str> {
    if host.variable("KUBERNETES_SERVICE_HOST").is_some() {
        return Some("pod");
    }
    (host.exists("/.dockerenv") || host.exists("/run/.containerenv")).then_some("container")
}

fn unreachable(host: &Host) -> Outcome {
    let Some(asked) = asked(host) else { return nothing_named() };
    let reached = asked.iter().filter(|(_, told)| told.is_ok()).count();
    let mut findings: Vec<Finding> = Vec::new();
    for (endpoint, told) in &asked {
        let Err(trouble) = told else { continue };
        let Endpoint { host: name, port, url, .. } = endpoint;
        let (what, cause, next) = match trouble {
            Trouble::Refused => (
                format!("{url} refuses connections"),
                format!("{name} is there, and nothing listens on port {port}: etcd is not running, or listens on its own loopback only."),
                format!("ss -ltn 'sport = :{port}'"),
            ),
            Trouble::Silent => (
                format!("{url} does not answer"),
                format!("Packets to {name} are dropped: by a network policy, a security group or a firewall, or because the host is gone."),
                format!("nc -vz -w 3 {name} {port}"),
            ),
            Trouble::Name => (
                format!("{name} has no address"),
                "The name is not known here; a Kubernetes service is known by its short name in its own namespace only.".into(),
                format!("getent hosts {name}"),
            ),
            Trouble::Route => (
                format!("there is no route to {url}"),
                format!("This host's network has no way to {name}."),
                format!("ip route get {name}"),
            ),
            Trouble::Stranger(said) => (
                format!("{url} answers and is no etcd"),
                format!("What listens there answers `{said}` to the question for etcd's health."),
                format!("curl -sv {url}/health"),
            ),
            Trouble::Other(why) => (
                format!("{url} cannot be asked: {why}"),
                UNREACHABLE.cause.into(),
                format!("curl -sv {url}/health"),
            ),
            // Somebody answers; whether their certificate is right is not for this program to say: it has not the clients' CA.
            Trouble::Tls(_) => continue,
        };
        findings.push(
            Finding::new(&UNREACHABLE, what)
                .cause(cause)
                .evidence(&endpoint.source, &endpoint.written)
                .fix("look at it", next)
                .severity(if reached > 0 { Severity::Warning } else { Severity::Error }),
        );
    }
    Outcome::of(findings, || {
        let urls: Vec<_> = asked.iter().map(|(endpoint, _)| endpoint.url.as_str()).collect();
        format!("{} answers", urls.join(", "))
    })
}

fn unhealthy(host: &Host) -> Outcome {
    let Some(asked) = asked(host) else { return nothing_named() };
    let mut findings = Vec::new();
    let mut well = Vec::new();
    for (endpoint, told) in &asked {
        match told {
            Ok(health) if health.well => well.push(format!("{} ({})", endpoint.url, version(host, endpoint))),
            Ok(health) => findings.push(ill(host, endpoint, health)),
            Err(_) => {}
        }
    }
    if findings.is_empty() && well.is_empty() {
        return Outcome::NotApplicable("no etcd answers".into());
    }
    Outcome::of(findings, || format!("{} is healthy", well.join(", ")))
}

fn version(host: &Host, endpoint: &Endpoint) -> String {
    let told = host.get(&format!("{}/version", endpoint.url), &[]).ok();
    let told: Option<Value> = told.and_then(|answer| serde_json::from_str(&answer.body).ok());
    let version = told.as_ref().and_then(|told| told.get("etcdserver")?.as_str());
    version.map_or_else(
        || "etcd".into(),
        |version| format!("etcd {}", version.chars().take(24).collect::<String>()),
    )
}

fn ill(host: &Host, endpoint: &Endpoint, health: &Health) -> Finding {
    let url = &endpoint.url;
    let said = if health.reason.is_empty() { "health is false" } else { &health.reason };
    let finding = |title: String| Finding::new(&UNHEALTHY, title).evidence(format!("GET {url}/health"), said);
    let alarms = alarms(host, url);
    let ctl = format!("etcdctl --endpoints={url}");
    if alarms.iter().any(|alarm| alarm == "NOSPACE") || health.reason.contains("NOSPACE") {
        return finding(format!("{url} is full: it takes no more writes"))
            .cause("The database has reached its quota; the alarm NOSPACE stays, and all writes fail, until it is disarmed.")
            .evidence(format!("POST {url}/v3/maintenance/alarm"), "NOSPACE")
            .fix(
                "drop old versions of keys",
                format!("{ctl} compact $({ctl} endpoint status --write-out=json | grep -o '\"revision\":[0-9]*' | head -n 1 | cut -d: -f2)"),
            )
            .fix("give the space back", format!("{ctl} defrag"))
            .fix("allow writes again", format!("{ctl} alarm disarm"))
            .advice("if it fills again within days, raise --quota-backend-bytes and set --auto-compaction-retention=1h");
    }
    if alarms.iter().any(|alarm| alarm == "CORRUPT") {
        return finding(format!("{url} has found its data corrupt"))
            .cause("A member's data differ from the others'; etcd takes no more writes.")
            .advice("remove the member, delete its data, and add it anew");
    }
    finding(format!("{url} says that it is not healthy: {said}"))
        .cause("Without an alarm it is mostly the leader that is missing: a majority of the members does not answer.")
        .fix("see which members answer", format!("{ctl} endpoint status --cluster -w table"))
        .confidence(Confidence::Likely)
}

/// Alarms that are raised, by name.
fn alarms(host: &Host, url: &str) -> Vec<String> {
    let told = host.post(
        &format!("{url}/v3/maintenance/alarm"),
        &[("Content-Type", "application/json")],
        r#"{"action":"GET"}"#,
    );
    let told: Option<Value> = told.ok().and_then(|answer| serde_json::from_str(&answer.body).ok());
    let raised = told.as_ref().and_then(|told| told.get("alarms")?.as_array()).into_iter().flatten();
    raised.filter_map(|alarm| alarm.get("alarm")?.as_str().map(str::to_owned)).collect()
}

fn count(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}
