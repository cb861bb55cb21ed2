//! What is etcd's own: whose keys are touched, how its troubles are told apart, TLS, users, restarts, compaction.

#![cfg(feature = "etcd")]

mod common;

use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::time::{Duration, Instant};

use common::{Etcd, LONG, Place, free_port, shared_etcd};
use kvrail_rendezvous::{
    Config, EtcdConfig, Group, JoinError, RunId, Secret, Service, ServiceError, TlsConfig,
};
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};

/// A group of one: all that it takes to see whether the service can be used.
fn alone(etcd: EtcdConfig) -> Config {
    let mut config = Config::new(Service::Etcd(etcd), 1);
    config.run_id = Some(RunId::new("alone").expect("a run id"));
    config.lease = Duration::from_secs(2);
    config.deadline = Duration::from_secs(5);
    config
}

fn at(endpoints: &str) -> EtcdConfig {
    EtcdConfig::new(endpoints).expect("endpoints")
}

fn with_tls(etcd: &Etcd, tls: TlsConfig) -> EtcdConfig {
    let mut config = at(&etcd.url);
    config.tls = tls;
    config
}

fn with_user(etcd: &Etcd, user: Option<(&str, &str)>) -> EtcdConfig {
    let mut config = at(&etcd.url);
    config.user = user.map(|(name, password)| (name.into(), Secret::new(password)));
    config
}

fn refusal(etcd: EtcdConfig) -> ServiceError {
    match Group::join(&alone(etcd)) {
        Err(JoinError::Service(error)) => error,
        other => panic!("the service is not usable, and yet: {other:?}"),
    }
}

fn joins(etcd: EtcdConfig) {
    let group = Group::join(&alone(etcd)).expect("the service can be used");
    group.publish("a", b"b", LONG).expect("it is taken");
    group.leave(LONG).expect("the service is told");
}

#[test]
fn only_the_runs_own_keys_are_touched_and_all_live_with_a_lease() {
    let test = "only_the_runs_own_keys_are_touched_and_all_live_with_a_lease";
    let Some(etcd) = Etcd::start(test, "http", &[]) else { return };
    let place = Place { service: etcd.url.clone(), run_id: "mine".into() };
    // Neighbours that a careless prefix would catch, and one that names the same rank.
    let foreign = [
        "/",
        "/kvrail/rendezvous/min",
        "/kvrail/rendezvous/mine-2/member/0",
        "/kvrail/rendezvous/mine0",
        "/other/size",
    ];
    for key in foreign {
        etcd.ctl(&["put", key, "theirs"]);
    }
    place.members(2, |rank, group| {
        group.publish("a", &[rank as u8], LONG).expect("it is taken");
        group.barrier("all", LONG).expect("all come");
        if rank == 0 {
            let keys = etcd.ctl(&["get", "--prefix", "/kvrail/rendezvous/mine/", "-w", "json"]);
            let json: serde_json::Value = serde_json::from_str(&keys).expect("JSON");
            let kvs = json["kvs"].as_array().expect("keys");
            assert!(kvs.len() >= 8, "seats, agreements, values, barriers: {keys}");
            assert!(kvs.iter().all(|kv| kv["lease"].as_i64().is_some_and(|lease| lease != 0)), "{keys}");
        }
        group.barrier("seen", LONG).expect("all come");
        group.leave(LONG).expect("the service is told");
    });
    let left: Vec<String> =
        etcd.ctl(&["get", "", "--from-key", "--keys-only"]).split_whitespace().map(Into::into).collect();
    assert_eq!(left, foreign, "nothing of the run is left, all of the others is");
}

#[test]
fn a_seat_with_something_else_in_it_is_named_and_left_alone() {
    let Some(etcd) = shared_etcd("a_seat_with_something_else_in_it_is_named_and_left_alone") else { return };
    let key = "/kvrail/rendezvous/occupied/member/0";
    etcd.ctl(&["put", key, "2"]);
    let place = Place { service: etcd.url.clone(), run_id: "occupied".into() };
    let error = Group::join(&place.config(1, 0)).expect_err("the seat is no seat");
    assert!(matches!(&error, JoinError::Foreign { key, .. } if key == "member/0"), "{error}");
    assert_eq!(etcd.ctl(&["get", key, "--print-value-only"]).trim(), "2");
}

#[test]
fn a_restart_of_etcd_within_the_lease_is_survived() {
    let Some(mut etcd) = Etcd::start("a_restart_of_etcd_within_the_lease_is_survived", "http", &[]) else {
        return;
    };
    let place = Place { service: etcd.url.clone(), run_id: "restart".into() };
    let lease = Duration::from_secs(10);
    let [zero, one] = [0, 1].map(|rank| {
        let mut config = place.config(2, rank);
        config.lease = lease;
        std::thread::spawn(move || Group::join(&config).expect("all join"))
    });
    let [zero, one] = [zero, one].map(|thread| thread.join().expect("no panic"));
    etcd.restart(Duration::from_millis(200));
    std::thread::scope(|scope| {
        scope.spawn(|| one.publish("after", b"x", LONG).expect("it is taken"));
        assert_eq!(*zero.await_value(1, "after", LONG).expect("the watch goes on"), *b"x");
    });
    for group in [zero, one] {
        group.leave(LONG).expect("the service is told");
    }
}

#[test]
fn etcd_gone_for_longer_than_the_lease_is_said() {
    let Some(etcd) = Etcd::start("etcd_gone_for_longer_than_the_lease_is_said", "http", &[]) else { return };
    let group = Group::join(&alone(at(&etcd.url))).expect("the service can be used");
    drop(etcd);
    let began = Instant::now();
    while group.check().is_ok() {
        assert!(began.elapsed() < Duration::from_secs(8), "a lease has 2 s");
        std::thread::sleep(Duration::from_millis(50));
    }
    let error = group.check().expect_err("it was one a moment ago").to_string();
    assert!(error.contains("is lost"), "{error}");
    let _ = group.leave(Duration::ZERO);
}

#[test]
fn one_endpoint_of_several_is_enough() {
    let Some(etcd) = shared_etcd("one_endpoint_of_several_is_enough") else { return };
    joins(at(&format!("http://127.0.0.1:{}, {}", free_port(), etcd.url)));
    let error = refusal(at(&format!("127.0.0.1:{},127.0.0.1:{}", free_port(), free_port())));
    assert!(matches!(&error, ServiceError::NoneUsable(all) if all.len() == 2), "{error}");
}

/// Answers every connection with the same bytes.
fn answering(bytes: &'static [u8]) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    std::thread::spawn(move || {
        for stream in listener.incoming().take(1) {
            let Ok(mut stream) = stream else { return };
            let _ = stream.read(&mut [0; 1024]);
            let _ = stream.write_all(bytes);
        }
    });
    port
}

#[test]
fn each_trouble_is_told_apart_before_anything_is_written() {
    let http = |bytes| refusal(at(&format!("http://127.0.0.1:{}", answering(bytes))));
    let error = refusal(at(&format!("http://127.0.0.1:{}", free_port())));
    assert!(matches!(error, ServiceError::Unreachable { .. }), "{error}");
    let error = refusal(at("http://no-such-host.invalid:2379"));
    assert!(matches!(error, ServiceError::Unreachable { .. }), "{error}");
    let error =
        http(b"HTTP/1.1 503 Service Unavailable\r\n\r\n{\"health\":\"false\",\"reason\":\"RAFT NO LEADER\"}");
    assert!(
        matches!(&error, ServiceError::Unhealthy { detail, .. } if detail == "RAFT NO LEADER"),
        "{error}"
    );
    let error = http(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n");
    assert!(matches!(error, ServiceError::NotTheService { .. }), "{error}");
    assert!(error.to_string().contains("404 Not Found"), "{error}");
    let error = http(b"SSH-2.0-OpenSSH_9.2\r\n");
    assert!(error.to_string().contains("it said \"SSH-2.0-OpenSSH_9.2\""), "{error}");
    // One that accepts and says nothing costs its time and no more.
    let silent = TcpListener::bind("127.0.0.1:0").expect("a port");
    let mut config = alone(at(&format!("127.0.0.1:{}", silent.local_addr().expect("an address").port())));
    config.deadline = Duration::from_millis(500);
    let began = Instant::now();
    let error = Group::join(&config).expect_err("nothing answers");
    assert!(error.to_string().contains("no answer within"), "{error}");
    assert!(began.elapsed() < Duration::from_secs(2));
}

struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    fn new() -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).expect("a certificate").pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    /// Writes a certificate for `name`, its key and this authority's own certificate; returns how a client names them.
    fn sign(&self, dir: &Path, name: &str) -> TlsConfig {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(vec![name.into()]).expect("a name");
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let cert = params.signed_by(&key, &self.issuer).expect("a certificate").pem();
        std::fs::create_dir_all(dir).expect("a directory");
        let write = |file: &str, text: &str| {
            let path = dir.join(file);
            std::fs::write(&path, text).expect("a file");
            Some(path)
        };
        TlsConfig {
            ca: write("ca.pem", &self.pem),
            cert: write("cert.pem", &cert),
            key: write("key.pem", &key.serialize_pem()),
            server_name: None,
        }
    }
}

/// A directory that goes with the test.
struct Dir(std::path::PathBuf);

impl Dir {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("kvrail-tls-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a directory");
        Self(path)
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn tls_flags(files: &TlsConfig, clients: bool) -> Vec<String> {
    let flag = |name: &str, path: &Option<std::path::PathBuf>| {
        format!("--{name}={}", path.as_ref().expect("a path").display())
    };
    let mut flags = vec![flag("cert-file", &files.cert), flag("key-file", &files.key)];
    if clients {
        flags.extend([flag("trusted-ca-file", &files.ca), "--client-cert-auth".into()]);
    }
    flags
}

#[test]
fn tls_is_spoken_and_its_troubles_are_told_apart() {
    let dir = Dir::new("server");
    let (ours, theirs) = (Authority::new(), Authority::new());
    let good = ours.sign(&dir.0.join("good"), "127.0.0.1");
    let Some(etcd) =
        Etcd::start("tls_is_spoken_and_its_troubles_are_told_apart", "https", &tls_flags(&good, false))
    else {
        return;
    };
    let with = |tls: TlsConfig| with_tls(&etcd, tls);
    let ca_only = TlsConfig { cert: None, key: None, ..good.clone() };
    joins_when_ready(&with(ca_only.clone()));

    let error = refusal(at(&etcd.url.replace("https", "http")));
    assert!(matches!(error, ServiceError::TlsExpected { .. }), "{error}");
    // The system's authorities do not know ours; neither does another one of our making.
    let stranger = theirs.sign(&dir.0.join("stranger"), "127.0.0.1");
    for tls in [TlsConfig::default(), TlsConfig { cert: None, key: None, ..stranger }] {
        let error = refusal(with(tls));
        assert!(matches!(error, ServiceError::ServerCertificate { .. }), "{error}");
    }
    let error = refusal(with(TlsConfig { server_name: Some("etcd-7".into()), ..ca_only.clone() }));
    assert!(matches!(error, ServiceError::ServerCertificate { .. }), "{error}");
    let error = refusal(with(TlsConfig { ca: Some("/no/such.pem".into()), ..ca_only.clone() }));
    assert!(matches!(error, ServiceError::TlsFile { what: "CA certificates", .. }), "{error}");
    let error = refusal(with(TlsConfig { ca: good.key.clone(), ..ca_only.clone() }));
    assert!(error.to_string().contains("no certificate in PEM"), "{error}");
    let error = refusal(with(TlsConfig { cert: good.cert.clone(), ..ca_only }));
    assert!(error.to_string().contains("its key is not given"), "{error}");

    if let Some(plain) = shared_etcd("TLS asked of a plain etcd") {
        let error = refusal(at(&plain.url.replace("http", "https")));
        assert!(matches!(error, ServiceError::PlainExpected { .. }), "{error}");
    }
}

#[test]
fn a_client_certificate_is_given_where_one_is_wanted() {
    let dir = Dir::new("client");
    let (ours, theirs) = (Authority::new(), Authority::new());
    let good = ours.sign(&dir.0.join("good"), "127.0.0.1");
    let Some(etcd) =
        Etcd::start("a_client_certificate_is_given_where_one_is_wanted", "https", &tls_flags(&good, true))
    else {
        return;
    };
    let with = |tls: TlsConfig| with_tls(&etcd, tls);
    joins_when_ready(&with(good.clone()));
    let error = refusal(with(TlsConfig { cert: None, key: None, ..good.clone() }));
    assert!(matches!(error, ServiceError::ClientCertificate { given: false, .. }), "{error}");
    let stranger = theirs.sign(&dir.0.join("stranger"), "127.0.0.1");
    let error = refusal(with(TlsConfig { ca: good.ca.clone(), ..stranger }));
    assert!(matches!(error, ServiceError::ClientCertificate { given: true, .. }), "{error}");
}

/// With TLS the fixture cannot ask whether etcd has a leader yet: the first member may be refused as unhealthy.
fn joins_when_ready(etcd: &EtcdConfig) {
    let began = Instant::now();
    loop {
        match Group::join(&alone(etcd.clone())) {
            Ok(group) => return group.leave(LONG).expect("the service is told"),
            Err(error) if error.is_retryable() && began.elapsed() < LONG => {
                std::thread::sleep(Duration::from_millis(50));
            }
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn users_are_let_in_by_their_passwords_and_roles() {
    let Some(etcd) = Etcd::start("users_are_let_in_by_their_passwords_and_roles", "http", &[]) else {
        return;
    };
    for args in [
        &["user", "add", "root:hunter2"][..],
        &["user", "grant-role", "root", "root"],
        &["user", "add", "bench:swordfish"],
        &["role", "add", "bench"],
        &["role", "grant-permission", "bench", "readwrite", "/kvrail/rendezvous/", "/kvrail/rendezvous0"],
        &["user", "grant-role", "bench", "bench"],
        &["user", "add", "guest:guest"],
        &["auth", "enable"],
    ] {
        etcd.ctl(args);
    }
    let with = |user| with_user(&etcd, user);
    joins(with(Some(("root", "hunter2"))));
    joins(with(Some(("bench", "swordfish"))));
    let error = refusal(with(None));
    assert!(matches!(error, ServiceError::AuthenticationNeeded { .. }), "{error}");
    for user in [("root", "password1"), ("nobody", "password1")] {
        let error = refusal(with(Some(user)));
        assert!(
            matches!(&error, ServiceError::AuthenticationDenied { user: u, .. } if u == user.0),
            "{error}"
        );
        assert!(!format!("{error} {error:?} {:?}", with(Some(user))).contains("password1"));
    }
    let error = refusal(with(Some(("guest", "guest"))));
    assert!(
        matches!(&error, ServiceError::PermissionDenied { user: Some(user), prefix, .. } if user == "guest" && prefix == "/kvrail/rendezvous/alone/"),
        "{error}"
    );
    let mut elsewhere = with(Some(("bench", "swordfish")));
    elsewhere.namespace = "/elsewhere".into();
    let error = refusal(elsewhere);
    assert!(matches!(error, ServiceError::PermissionDenied { .. }), "{error}");
}

#[test]
fn a_user_where_etcd_has_no_users_does_no_harm() {
    let Some(etcd) = shared_etcd("a_user_where_etcd_has_no_users_does_no_harm") else { return };
    let mut config = alone(with_user(etcd, Some(("root", "x"))));
    config.run_id = Some(RunId::new("no-users").expect("a run id"));
    Group::join(&config).expect("the service can be used").leave(LONG).expect("the service is told");
}

#[test]
fn a_history_that_was_compacted_is_taken_up_where_it_stands() {
    let Some(etcd) = Etcd::start("a_history_that_was_compacted_is_taken_up_where_it_stands", "http", &[])
    else {
        return;
    };
    let place = Place { service: etcd.url.clone(), run_id: "compact".into() };
    place.members(2, |rank, group| {
        for round in 0..5 {
            group.barrier("round", LONG).expect("all come");
            if rank == 0 {
                let status = etcd.ctl(&["endpoint", "status", "-w", "json"]);
                let json: serde_json::Value = serde_json::from_str(&status).expect("JSON");
                let revision = json[0]["Status"]["header"]["revision"].as_i64().expect("a revision");
                etcd.ctl(&["compact", &revision.to_string()]);
                group.publish(&format!("after-{round}"), b"x", LONG).expect("it is taken");
            }
            group.await_value(0, &format!("after-{round}"), LONG).expect("rank 0 publishes");
        }
        group.leave(LONG).expect("the service is told");
    });
}
