//! Which etcd endpoints this host's programs would use, what is wrong with how they are written, and what each answers.

use std::collections::BTreeSet;

use crate::host::{Answer, Host, HttpAnswer, Lack};

/// Variables that name endpoints, and who reads them.
pub(super) const VARIABLES: [(&str, &str); 3] = [
    ("NIXL_ETCD_ENDPOINTS", "NIXL's metadata exchange"),
    ("ETCD_ENDPOINTS", "Dynamo"),
    ("ETCDCTL_ENDPOINTS", "etcdctl"),
];
/// What nixlbench and Dynamo use where nothing is named.
const DEFAULT: &str = "http://localhost:2379";
/// etcd's port for clients, and the one for its own members.
const CLIENT_PORT: u16 = 2379;
const PEER_PORT: u16 = 2380;
/// Most endpoints that are asked.
const ENDPOINTS_MAX: usize = 16;

/// One endpoint as it was written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Endpoint {
    /// Where it was written: `$ETCD_ENDPOINTS`, `--etcd`, `the default`.
    pub(super) source: String,
    /// As it was written.
    pub(super) written: String,
    /// What can be asked: with scheme and port, without a path.
    pub(super) url: String,
    /// Its host.
    pub(super) host: String,
    /// Its port.
    pub(super) port: u16,
    /// What is wrong with how it is written.
    pub(super) faults: Vec<Fault>,
}

/// What is wrong with how an endpoint is written.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Fault {
    /// `etcd:2379`
    NoScheme,
    /// `tcp://etcd:2379`
    OtherScheme,
    /// `http://etcd`
    NoPort,
    /// `http://etcd:2379/v3`
    Path,
    /// Spaces, `;`, brackets or quotes: not a list with commas.
    List,
}

/// Endpoints that are named, each once; the default where none is.
pub(super) fn named(host: &Host) -> Vec<Endpoint> {
    let said = host.scope().etcd.iter().map(|text| ("--etcd".to_owned(), text.as_str()));
    let set = VARIABLES.iter().filter_map(|(name, _)| Some((format!("${name}"), host.variable(name)?)));
    let mut seen = BTreeSet::new();
    let mut endpoints: Vec<Endpoint> = said
        .chain(set)
        .flat_map(|(source, text)| list(&source, text))
        .filter(|endpoint| seen.insert((endpoint.url.clone(), endpoint.faults.clone())))
        .take(ENDPOINTS_MAX)
        .collect();
    if endpoints.is_empty() {
        endpoints.extend(list("the default", DEFAULT));
    }
    endpoints
}

/// Whether anybody named an etcd: the default is looked at only if it answers.
pub(super) fn is_named(endpoints: &[Endpoint]) -> bool {
    endpoints.iter().any(|endpoint| endpoint.source != "the default")
}

/// The endpoints of one variable.
fn list(source: &str, text: &str) -> Vec<Endpoint> {
    let odd = |c: char| c.is_whitespace() || matches!(c, ';' | '[' | ']' | '"' | '\'');
    // A literal IPv6 address has brackets of its own.
    let is_list_of_another_kind =
        text.trim().contains(|c: char| c.is_whitespace() || matches!(c, ';' | '"' | '\''))
            || text.trim_start().starts_with('[') && !text.contains("]:");
    let split = |c: char| c == ',' || is_list_of_another_kind && odd(c);
    let parts = text.split(split).map(str::trim).filter(|part| !part.is_empty());
    parts
        .map(|part| {
            let mut endpoint = one(source, part);
            if is_list_of_another_kind {
                endpoint.faults.push(Fault::List);
            }
            endpoint
        })
        .collect()
}

fn one(source: &str, written: &str) -> Endpoint {
    let mut faults = Vec::new();
    let (scheme, rest) = match written.split_once("://") {
        Some((scheme @ ("http" | "https"), rest)) => (scheme, rest),
        Some((_, rest)) => {
            faults.push(Fault::OtherScheme);
            ("http", rest)
        }
        None => {
            faults.push(Fault::NoScheme);
            ("http", written)
        }
    };
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    if !path.is_empty() {
        faults.push(Fault::Path);
    }
    // Not a user's name and password: they must not get into what is told.
    let authority = authority.rsplit_once('@').map_or(authority, |(_, after)| after);
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, port.parse().ok()),
        _ => (authority, None),
    };
    if port.is_none() {
        faults.push(Fault::NoPort);
    }
    let port = port.unwrap_or(CLIENT_PORT);
    Endpoint {
        source: source.into(),
        written: kvrail_report::redact::text(written),
        url: format!("{scheme}://{host}:{port}"),
        host: host.into(),
        port,
        faults,
    }
}

impl Endpoint {
    /// Whether it names this host itself.
    pub(super) fn is_loopback(&self) -> bool {
        self.host == "localhost" || self.host == "[::1]" || self.host.starts_with("127.")
    }

    /// Whether it names the port that etcd's members speak among themselves.
    pub(super) fn is_peer_port(&self) -> bool {
        self.port == PEER_PORT
    }

    /// Its address with the port for clients.
    pub(super) fn with_client_port(&self) -> String {
        let scheme = self.url.split("://").next().unwrap_or("http");
        format!("{scheme}://{}:{CLIENT_PORT}", self.host)
    }
}

/// What stands in the way to an endpoint.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Trouble {
    /// Nobody listens on the port.
    Refused,
    /// No answer in time: dropped on the way, or a host that is gone.
    Silent,
    /// The name has no address.
    Name,
    /// There is no way there.
    Route,
    /// Somebody answers, and TLS fails.
    Tls(String),
    /// Somebody answers who is no etcd.
    Stranger(String),
    /// Anything else, in the system's words.
    Other(String),
}

/// What an endpoint answers to `/health`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Health {
    /// Whether it says that it is healthy.
    pub(super) well: bool,
    /// Why not, where it says so (etcd 3.5 and later).
    pub(super) reason: String,
}

/// Asks each endpoint for its health, all at once: each may take the whole deadline.
pub(super) fn health(host: &Host, endpoints: &[Endpoint]) -> Vec<Result<Health, Trouble>> {
    std::thread::scope(|scope| {
        let asked: Vec<_> = endpoints
            .iter()
            .map(|endpoint| scope.spawn(|| read(host.get(&format!("{}/health", endpoint.url), &[]))))
            .collect();
        let lost = |_| Err(Trouble::Other("the question was lost".into()));
        asked.into_iter().map(|thread| thread.join().unwrap_or_else(lost)).collect()
    })
}

fn read(answer: Answer<HttpAnswer>) -> Result<Health, Trouble> {
    let answer = answer.map_err(trouble)?;
    let told: Option<serde_json::Value> = serde_json::from_str(&answer.body).ok();
    let said = told.as_ref().and_then(|told| told.get("health"));
    let Some(said) = said else {
        let first = answer.body.lines().next().unwrap_or_default();
        let body: String = first.chars().take(80).collect();
        return Err(Trouble::Stranger(format!("{} {body}", answer.status).trim_end().into()));
    };
    let reason = told.as_ref().and_then(|told| told.get("reason")?.as_str()).unwrap_or_default();
    Ok(Health { well: said == "true" || said == true, reason: reason.into() })
}

/// Which of the ways to fail it was. The words are the system's and the HTTP client's.
fn trouble(lack: Lack) -> Trouble {
    let Lack::Failed(why) = lack else { return Trouble::Silent };
    let has = |part: &str| why.to_ascii_lowercase().contains(part);
    if has("refused") {
        Trouble::Refused
    } else if has("host not found") || has("lookup") || has("name or service") || has("name resolution") {
        Trouble::Name
    } else if has("unreachable") || has("no route") {
        Trouble::Route
    } else if has("certificate") || has("tls") || has("corrupt message") {
        Trouble::Tls(why)
    } else {
        Trouble::Other(why)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(text: &str) -> Vec<(String, Vec<Fault>)> {
        list("$X", text).into_iter().map(|endpoint| (endpoint.url, endpoint.faults)).collect()
    }

    #[test]
    fn endpoints_are_read_and_what_is_wrong_with_them_is_told() {
        for well in
            ["http://etcd:2379", "https://etcd.default.svc:2379/", "http://[::1]:2379", "http://10.0.0.1:1"]
        {
            assert_eq!(faults(well)[0].1, [], "{well}");
        }
        assert_eq!(faults("http://a:2379, http://b:2379").len(), 2);
        assert_eq!(faults("http://u:hunter2@a:2379")[0].0, "http://a:2379");
        for (text, url, fault) in [
            ("etcd:2379", "http://etcd:2379", Fault::NoScheme),
            ("grpc://etcd:2379", "http://etcd:2379", Fault::OtherScheme),
            ("http://etcd", "http://etcd:2379", Fault::NoPort),
            ("http://[::1]", "http://[::1]:2379", Fault::NoPort),
            ("http://etcd:2379/v3", "http://etcd:2379", Fault::Path),
            ("http://a:2379;http://b:2379", "http://a:2379", Fault::List),
            (r#"["http://a:2379","http://b:2379"]"#, "http://a:2379", Fault::List),
            ("http://a:2379 http://b:2379", "http://a:2379", Fault::List),
        ] {
            let read = faults(text);
            assert_eq!((read[0].0.as_str(), &read[0].1[..]), (url, &[fault][..]), "{text}");
        }
    }

    #[test]
    fn ways_to_fail_are_told_apart() {
        let failed = |why: &str| trouble(Lack::Failed(why.into()));
        assert_eq!(failed("io: Connection refused (os error 111)"), Trouble::Refused);
        assert_eq!(
            failed("io: failed to lookup address information: Name or service not known"),
            Trouble::Name
        );
        assert_eq!(failed("host not found"), Trouble::Name);
        assert_eq!(failed("io: Network is unreachable (os error 101)"), Trouble::Route);
        assert!(matches!(failed("rustls: invalid peer certificate: UnknownIssuer"), Trouble::Tls(_)));
        assert_eq!(trouble(Lack::Late), Trouble::Silent);
        let page = |status, body: &str| read(Ok(HttpAnswer { status, body: body.into() }));
        assert!(page(200, r#"{"health":"true"}"#).unwrap().well);
        let ill = page(503, r#"{"health":"false","reason":"ALARM NOSPACE"}"#).unwrap();
        assert_eq!((ill.well, ill.reason.as_str()), (false, "ALARM NOSPACE"));
        assert!(matches!(page(404, "404 page not found\n"), Err(Trouble::Stranger(_))));
    }
}
