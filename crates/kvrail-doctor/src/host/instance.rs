//! The question what the instance's metadata service says: which kind of instance this is, and how each of its network
//! interfaces is attached.
//!
//! One question and not one for each path: the service wants a token first, which is a secret and must not get into a bundle.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::{Answer, Host, Lack, Live, Question};

/// Where the service is, unless the variable says otherwise that AWS's own SDKs honour.
const ENDPOINT: &str = "http://169.254.169.254";
const ENDPOINT_VARIABLE: &str = "AWS_EC2_METADATA_SERVICE_ENDPOINT";
const DISABLED_VARIABLE: &str = "AWS_EC2_METADATA_DISABLED";
/// Longest wait for the token: where the service is, it answers within a few milliseconds; where a container is a hop too far, never.
const TOKEN_PATIENCE: Duration = Duration::from_millis(400);
/// Longest wait for all of it. What has not come by then is left out.
const PATIENCE: Duration = Duration::from_millis(1200);
/// Most interfaces that are asked about; no instance has as many.
const INTERFACES_MAX: usize = 128;

/// What an instance's metadata service says of it.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct InstanceFacts {
    /// As in `p5.48xlarge`.
    pub instance_type: String,
    /// As in `i-0123456789abcdef0`.
    pub instance_id: String,
    /// As in `us-east-2`.
    pub region: String,
    /// Network interfaces, in the order of the service.
    pub interfaces: Vec<InterfaceFacts>,
    /// Whether the service stopped answering before all interfaces were told.
    pub cut_short: bool,
}

/// What it says of one network interface.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct InterfaceFacts {
    /// As in `0e:49:61:0f:c3:11`.
    pub mac: String,
    /// As in `eni-0123456789abcdef0`.
    pub id: String,
    /// Security groups, as in `sg-0123456789abcdef0`.
    pub groups: Vec<String>,
    /// The range of its subnet, as in `10.0.1.0/24`.
    pub subnet: Option<String>,
    /// The first range that its VPC was made with.
    pub vpc: Option<String>,
    /// All ranges of its VPC.
    pub vpc_all: Vec<String>,
}

struct Metadata;

impl Host {
    /// What the instance's metadata service says.
    ///
    /// # Errors
    /// [`Lack::Absent`] where this is no EC2 instance, [`Lack::Late`] where the service does not answer (a container that is a hop too far).
    pub fn instance(&self) -> Answer<InstanceFacts> {
        self.ask(&Metadata)
    }
}

impl Question for Metadata {
    const SECTION: &'static str = "instance";
    type Answer = InstanceFacts;

    fn key(&self) -> String {
        "metadata".into()
    }

    fn ask(&self, live: &Live) -> Answer<InstanceFacts> {
        let variable = |name: &str| live.variables().get(name).filter(|value| !value.is_empty());
        if variable(DISABLED_VARIABLE).is_some_and(|value| value.eq_ignore_ascii_case("true")) {
            return Err(Lack::Absent);
        }
        let named = variable(ENDPOINT_VARIABLE);
        if named.is_none() && !is_ec2(live) {
            return Err(Lack::Absent);
        }
        if !live.is_here() {
            return Err(Lack::Failed("nothing is asked of the network for another root".into()));
        }
        Session::open(named.map_or(ENDPOINT, |url| url.trim_end_matches('/')))?.tell()
    }
}

/// Whether the firmware says that this is an EC2 instance; elsewhere the address is somebody else's, or a wait for nothing.
fn is_ec2(live: &Live) -> bool {
    std::fs::read_to_string(live.path("/sys/class/dmi/id/sys_vendor"))
        .is_ok_and(|vendor| vendor.trim() == "Amazon EC2")
}

/// Requests that share a connection, a token and a deadline.
struct Session<'a> {
    agent: ureq::Agent,
    endpoint: &'a str,
    token: String,
    deadline: Instant,
}

impl<'a> Session<'a> {
    fn open(endpoint: &'a str) -> Answer<Self> {
        let deadline = Instant::now() + PATIENCE;
        let agent = super::http::agent(TOKEN_PATIENCE);
        let sent = agent
            .put(format!("{endpoint}/latest/api/token"))
            .header("X-aws-ec2-metadata-token-ttl-seconds", "60")
            .send_empty();
        let mut answer = sent.map_err(super::http::lack)?;
        if !answer.status().is_success() {
            return Err(Lack::Failed(format!("the metadata service gave no token: {}", answer.status())));
        }
        let token = super::http::body(&mut answer)?.trim().to_owned();
        Ok(Self { agent, endpoint, token, deadline })
    }

    fn get(&self, path: &str) -> Answer<String> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Lack::Late);
        }
        let request = self
            .agent
            .get(format!("{}/latest/meta-data/{path}", self.endpoint))
            .header("X-aws-ec2-metadata-token", &self.token);
        let sent = request.config().timeout_global(Some(left.min(TOKEN_PATIENCE))).build().call();
        let mut answer = sent.map_err(super::http::lack)?;
        match answer.status().as_u16() {
            200 => super::http::body(&mut answer).map(|text| text.trim().to_owned()),
            404 => Err(Lack::Absent),
            status => Err(Lack::Failed(format!("the metadata service says {status} to {path}"))),
        }
    }

    fn lines(&self, path: &str) -> Answer<Vec<String>> {
        match self.get(path) {
            Ok(text) => Ok(text.lines().map(|line| line.trim().to_owned()).collect()),
            // An interface without addresses of its own (EFA-only) has no such entry.
            Err(Lack::Absent) => Ok(Vec::new()),
            Err(lack) => Err(lack),
        }
    }

    fn tell(&self) -> Answer<InstanceFacts> {
        let mut facts = InstanceFacts {
            instance_type: self.get("instance-type")?,
            instance_id: self.get("instance-id").unwrap_or_default(),
            region: self.get("placement/region").unwrap_or_default(),
            ..InstanceFacts::default()
        };
        for mac in self.lines("network/interfaces/macs/")?.iter().take(INTERFACES_MAX) {
            match self.interface(mac.trim_end_matches('/')) {
                Ok(interface) => facts.interfaces.push(interface),
                Err(_) => {
                    facts.cut_short = true;
                    break;
                }
            }
        }
        Ok(facts)
    }

    fn interface(&self, mac: &str) -> Answer<InterfaceFacts> {
        let of = |what: &str| self.lines(&format!("network/interfaces/macs/{mac}/{what}"));
        let one = |what: &str| of(what).map(|lines| lines.into_iter().next());
        Ok(InterfaceFacts {
            mac: mac.into(),
            id: one("interface-id")?.unwrap_or_default(),
            groups: of("security-group-ids")?,
            subnet: one("subnet-ipv4-cidr-block")?,
            vpc: one("vpc-ipv4-cidr-block")?,
            vpc_all: of("vpc-ipv4-cidr-blocks")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Read, Write};
    use std::net::TcpListener;

    use super::*;
    use crate::host::Scope;

    /// A metadata service that wants its token, until the test's process ends.
    fn service(pages: &'static [(&'static str, &'static str)]) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                std::thread::spawn(move || {
                    let mut reader = BufReader::new(stream.try_clone().unwrap());
                    let mut stream = stream;
                    loop {
                        let mut head = Vec::new();
                        for line in reader.by_ref().lines().map_while(Result::ok) {
                            if line.is_empty() {
                                break;
                            }
                            head.push(line);
                        }
                        let Some(first) = head.first() else { return };
                        let words: Vec<_> = first.split(' ').collect();
                        let has = |wanted: &str| head.iter().any(|line| line.eq_ignore_ascii_case(wanted));
                        let (status, body) = match words[..] {
                            ["PUT", "/latest/api/token", _]
                                if has("X-aws-ec2-metadata-token-ttl-seconds: 60") =>
                            {
                                ("200 OK", "a-token")
                            }
                            ["GET", path, _] if has("X-aws-ec2-metadata-token: a-token") => pages
                                .iter()
                                .find(|(page, _)| path == format!("/latest/meta-data/{page}"))
                                .map_or(("404 Not Found", ""), |(_, body)| ("200 OK", body)),
                            _ => ("401 Unauthorized", ""),
                        };
                        let length = body.len();
                        let _ = write!(stream, "HTTP/1.1 {status}\r\nContent-Length: {length}\r\n\r\n{body}");
                    }
                });
            }
        });
        format!("http://{address}")
    }

    #[test]
    fn the_service_is_asked_with_its_token_and_the_token_stays_out_of_the_bundle() {
        let url = service(&[
            ("instance-type", "p5.48xlarge"),
            ("instance-id", "i-0123456789abcdef0"),
            ("placement/region", "us-east-2"),
            ("network/interfaces/macs/", "0e:49:61:0f:c3:11/\n0e:49:61:0f:c3:12/"),
            ("network/interfaces/macs/0e:49:61:0f:c3:11/interface-id", "eni-1"),
            ("network/interfaces/macs/0e:49:61:0f:c3:11/security-group-ids", "sg-1\nsg-2"),
            ("network/interfaces/macs/0e:49:61:0f:c3:11/subnet-ipv4-cidr-block", "100.64.1.0/24"),
            ("network/interfaces/macs/0e:49:61:0f:c3:11/vpc-ipv4-cidr-block", "10.0.0.0/16"),
            ("network/interfaces/macs/0e:49:61:0f:c3:11/vpc-ipv4-cidr-blocks", "10.0.0.0/16\n100.64.0.0/16"),
            ("network/interfaces/macs/0e:49:61:0f:c3:12/interface-id", "eni-2"),
        ]);
        let live = Live::new().with_variables([(ENDPOINT_VARIABLE, url.as_str())]);
        let host = Host::live(live, Scope::default());
        let facts = host.instance().unwrap();
        assert_eq!(
            (facts.instance_type.as_str(), facts.region.as_str(), facts.cut_short),
            ("p5.48xlarge", "us-east-2", false)
        );
        let [first, second] = &facts.interfaces[..] else { panic!("{facts:?}") };
        assert_eq!(first.groups, ["sg-1", "sg-2"]);
        assert_eq!(
            (first.subnet.as_deref(), first.vpc.as_deref()),
            (Some("100.64.1.0/24"), Some("10.0.0.0/16"))
        );
        assert_eq!((second.id.as_str(), second.subnet.as_deref()), ("eni-2", None), "an EFA-only interface");
        assert!(!host.bundle().to_json().contains("a-token"));
    }

    #[test]
    fn outside_of_ec2_nothing_is_asked_and_a_service_that_is_silent_costs_less_than_half_a_second() {
        let root = tempfile::tempdir().unwrap();
        let host = Host::live(Live::new().with_root(root.path()).with_variables([]), Scope::default());
        assert_eq!(host.instance(), Err(Lack::Absent));
        let silent = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", silent.local_addr().unwrap());
        let begin = Instant::now();
        let with = |more: &[(&'static str, &'static str)]| {
            let variables = [(ENDPOINT_VARIABLE, url.as_str())].into_iter().chain(more.iter().copied());
            Host::live(Live::new().with_variables(variables), Scope::default())
        };
        assert_eq!(with(&[]).instance(), Err(Lack::Late));
        assert!(begin.elapsed() < Duration::from_millis(500), "{:?}", begin.elapsed());
        assert_eq!(with(&[(DISABLED_VARIABLE, "true")]).instance(), Err(Lack::Absent));
    }
}
