//! Metadata exchange by name, over a real etcd: what lies there, how long, and who hears of it when it goes.
#![cfg(feature = "etcd")]

#[path = "../../kvrail-rendezvous/tests/common/mod.rs"]
mod etcd_common;
mod exchange_common;

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use etcd_common::{Etcd, free_port, shared_etcd};
use exchange_common::{Call, Fake, LONG, eventually, metadata};
use kvrail_nixl::Status;
use kvrail_nixl::exchange::{Destination, ExchangeConfig, LABEL_DEFAULT, STORE_VALUE_BYTES_MAX, StoreConfig};
use kvrail_rendezvous::Secret;

/// A namespace of one test's own.
fn config(etcd: &str, test: &str, name: &str) -> ExchangeConfig {
    let mut store = StoreConfig::new(etcd).expect("an endpoint");
    store.namespace = format!("/{test}");
    store.lease = Duration::from_secs(2);
    let mut config = ExchangeConfig::new(name);
    config.store = Some(store);
    config.watch_timeout = LONG;
    config
}

fn agent(etcd: &Etcd, test: &str, name: &str) -> Arc<Fake> {
    Fake::start(config(&etcd.url, test, name))
}

fn named() -> Destination {
    Destination::default()
}

fn keys(etcd: &Etcd, prefix: &str) -> Vec<String> {
    etcd.ctl(&["get", "--prefix", prefix, "--keys-only"]).split_whitespace().map(Into::into).collect()
}

fn publish(agent: &Fake, etcd: &Etcd, test: &str) {
    agent.exchange().send(metadata(test, "published"), &named()).expect("it is taken");
    eventually("it is there", || keys(etcd, &format!("/{test}/")).len() == 1);
}

macro_rules! etcd {
    ($test:ident) => {
        match shared_etcd(stringify!($test)) {
            Some(etcd) => (etcd, stringify!($test)),
            None => return,
        }
    };
}

#[test]
fn keys_are_those_of_nixl() {
    let (etcd, _) = etcd!(keys_are_those_of_nixl);
    let mut config = ExchangeConfig::new("keys_are_those_of_nixl");
    config.store = Some(StoreConfig::new(&etcd.url).expect("an endpoint"));
    let agent = Fake::start(config);
    agent.exchange().send(metadata("a", "x"), &named()).expect("it is taken");
    agent.exchange().send_partial(metadata("a", "y"), &Destination::label("part")).expect("it is taken");
    let expected = ["metadata", "part"].map(|label| format!("/nixl/agents//keys_are_those_of_nixl/{label}"));
    eventually("both are there", || keys(etcd, "/nixl/agents//keys_are_those_of_nixl/") == expected);
    assert_eq!(LABEL_DEFAULT, "metadata");
}

#[test]
fn what_one_sends_by_name_another_fetches() {
    let (etcd, test) = etcd!(what_one_sends_by_name_another_fetches);
    let (one, other) = (agent(etcd, test, "a"), agent(etcd, test, "b"));
    one.exchange().send(metadata("a", "all"), &named()).expect("it is taken");
    one.exchange().send_partial(metadata("a", "some"), &Destination::label("part")).expect("it is taken");
    other.exchange().fetch("a", &Destination::label("part")).expect("it is taken");
    eventually("the part is loaded", || other.calls() == [Call::Load("md:a:some".into())]);
    other.exchange().fetch("a", &named()).expect("it is taken");
    eventually("all is loaded", || other.calls().last() == Some(&Call::Load("md:a:all".into())));
}

#[test]
fn a_fetch_waits_for_what_is_sent_later_and_for_some_time_only() {
    let (etcd, test) = etcd!(a_fetch_waits_for_what_is_sent_later_and_for_some_time_only);
    let (one, other) = (agent(etcd, test, "a"), agent(etcd, test, "b"));
    other.exchange().fetch("a", &named()).expect("it is taken");
    std::thread::sleep(Duration::from_millis(300));
    one.exchange().send(metadata("a", "late"), &named()).expect("it is taken");
    other.await_known("a");

    let mut hasty = config(&etcd.url, test, "c");
    hasty.watch_timeout = Duration::from_millis(100);
    let hasty = Fake::start(hasty);
    hasty.exchange().fetch("d", &named()).expect("it is taken");
    std::thread::sleep(Duration::from_secs(1));
    let fourth = agent(etcd, test, "d");
    fourth.exchange().send(metadata("d", "too late"), &named()).expect("it is taken");
    // Errands for one agent keep their order: this fetch ends after the first one has.
    hasty.exchange().fetch("a", &named()).expect("it is taken");
    hasty.await_known("a");
    assert!(!hasty.knows("d"));
}

#[test]
fn whoever_fetched_an_agent_forgets_it_when_it_invalidates_and_may_fetch_it_again() {
    let (etcd, test) = etcd!(whoever_fetched_an_agent_forgets_it_when_it_invalidates_and_may_fetch_it_again);
    let (one, other, third) = (agent(etcd, test, "a"), agent(etcd, test, "b"), agent(etcd, test, "c"));
    for _ in 0..3 {
        one.exchange().send(metadata("a", "x"), &named()).expect("it is taken");
        one.exchange().send_partial(metadata("a", "y"), &Destination::label("part")).expect("it is taken");
        other.exchange().fetch("a", &named()).expect("it is taken");
        third.exchange().fetch("a", &Destination::label("part")).expect("it is taken");
        other.await_known("a");
        third.await_known("a");
        one.exchange().invalidate(&named()).expect("it is taken");
        other.await_forgotten("a");
        third.await_forgotten("a");
        assert_eq!(keys(etcd, &format!("/{test}/")), Vec::<String>::new());
    }
}

#[test]
fn a_key_that_somebody_deletes_is_noticed_and_one_that_nobody_watches_is_not() {
    let (etcd, test) = etcd!(a_key_that_somebody_deletes_is_noticed_and_one_that_nobody_watches_is_not);
    let (one, other) = (agent(etcd, test, "a"), agent(etcd, test, "b"));
    publish(&one, etcd, test);
    for name in ["gone", "stays"] {
        etcd.ctl(&["put", &format!("/{test}/{name}/metadata"), &format!("md:{name}:x")]);
        other.exchange().fetch(name, &named()).expect("it is taken");
        other.await_known(name);
    }
    other.exchange().unwatch("stays");
    // Goes the same way as the call before, and ends after it.
    other.exchange().fetch("stays", &Destination::label("none")).expect("it is taken");
    std::thread::sleep(Duration::from_millis(200));
    etcd.ctl(&["del", &format!("/{test}/stays/metadata")]);
    etcd.ctl(&["del", &format!("/{test}/gone/metadata")]);
    other.await_forgotten("gone");
    assert!(other.knows("stays"));
}

#[test]
fn an_agent_that_ends_takes_its_keys_with_it_and_leaves_its_successors() {
    let (etcd, test) = etcd!(an_agent_that_ends_takes_its_keys_with_it_and_leaves_its_successors);
    let (old, watcher) = (agent(etcd, test, "a"), agent(etcd, test, "b"));
    old.exchange().send_partial(metadata("a", "old"), &Destination::label("part")).expect("it is taken");
    old.exchange().send(metadata("a", "old"), &named()).expect("it is taken");
    watcher.exchange().fetch("a", &named()).expect("it is taken");
    watcher.await_known("a");
    let new = agent(etcd, test, "a");
    new.exchange().send(metadata("a", "new"), &named()).expect("it is taken");
    let value = || etcd.ctl(&["get", &format!("/{test}/a/metadata"), "--print-value-only"]);
    eventually("the new one's is there", || value().trim() == "md:a:new");
    drop(old);
    assert_eq!(keys(etcd, &format!("/{test}/")), [format!("/{test}/a/metadata")]);
    std::thread::sleep(Duration::from_millis(300));
    assert!(watcher.knows("a"), "the key was never gone");
    drop(new);
    watcher.await_forgotten("a");
    assert_eq!(keys(etcd, &format!("/{test}/")), Vec::<String>::new());
}

#[test]
fn a_killed_process_leaves_no_key() {
    let (etcd, test) = etcd!(a_killed_process_leaves_no_key);
    let mut child = Command::new(std::env::current_exe().expect("this program"))
        .args(["participant", "--exact", "--ignored", "--nocapture", "--test-threads=1"])
        .env("KVRAIL_TEST_AGENT", format!("{} {test}", etcd.url))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("this program starts");
    let watcher = agent(etcd, test, "b");
    watcher.exchange().fetch("killed", &named()).expect("it is taken");
    watcher.await_known("killed");
    let lines = BufReader::new(child.stdout.take().expect("it was asked for")).lines();
    assert!(lines.map_while(Result::ok).any(|line| line.ends_with("published")));
    // Longer than the lease: it is being renewed.
    std::thread::sleep(Duration::from_secs(3));
    assert!(watcher.knows("killed"));
    child.kill().expect("it can be killed");
    child.wait().expect("it has ended");
    watcher.await_forgotten("killed");
    assert_eq!(keys(etcd, &format!("/{test}/")), Vec::<String>::new());
}

/// What the killed process does.
#[test]
#[ignore = "another process's part"]
fn participant() {
    let Ok(told) = std::env::var("KVRAIL_TEST_AGENT") else { return };
    let (url, test) = told.split_once(' ').expect("two words");
    let agent = Fake::start(config(url, test, "killed"));
    agent.exchange().send(metadata("killed", "x"), &named()).expect("it is taken");
    let mut out = std::io::stdout().lock();
    writeln!(out, "published").expect("somebody reads");
    out.flush().expect("somebody reads");
    std::thread::sleep(3 * LONG);
}

#[test]
fn keys_that_etcd_lost_come_back() {
    let (etcd, test) = etcd!(keys_that_etcd_lost_come_back);
    let one = agent(etcd, test, "a");
    publish(&one, etcd, test);
    let answer = etcd.ctl(&["get", &format!("/{test}/a/metadata"), "-w", "json"]);
    let lease = answer.split("\"lease\":").nth(1).expect("it has a lease");
    let lease: i64 =
        lease.split(|c: char| !c.is_ascii_digit()).next().expect("digits").parse().expect("a number");
    etcd.ctl(&["lease", "revoke", &format!("{lease:x}")]);
    eventually("it is there again", || keys(etcd, &format!("/{test}/")).len() == 1);
}

#[test]
fn a_restart_of_etcd_is_survived_and_what_goes_after_it_is_noticed() {
    let test = "a_restart_of_etcd_is_survived_and_what_goes_after_it_is_noticed";
    let Some(mut etcd) = Etcd::start(test, "http", &[]) else { return };
    let (one, other) = (agent(&etcd, test, "a"), agent(&etcd, test, "b"));
    publish(&one, &etcd, test);
    etcd.ctl(&["put", &format!("/{test}/forever/metadata"), "md:forever:x"]);
    other.exchange().fetch("forever", &named()).expect("it is taken");
    other.await_known("forever");
    etcd.restart(Duration::from_millis(200));
    etcd.ctl(&["del", &format!("/{test}/forever/metadata")]);
    other.await_forgotten("forever");
    // Whatever became of the lease meanwhile.
    std::thread::sleep(Duration::from_secs(3));
    eventually("the other one's is there", || keys(&etcd, &format!("/{test}/")).len() == 1);
    other.exchange().fetch("a", &named()).expect("it is taken");
    eventually("it is loaded", || {
        other.calls().iter().any(|call| matches!(call, Call::Load(text) if text.contains("published")))
    });
}

#[test]
fn what_etcd_would_not_take_is_an_error_of_the_call() {
    let (etcd, test) = etcd!(what_etcd_would_not_take_is_an_error_of_the_call);
    let (one, other) = (agent(etcd, test, "a"), agent(etcd, test, "b"));
    let mut longest = metadata("a", "long");
    longest.resize(STORE_VALUE_BYTES_MAX, b'.');
    let too_long = [&longest[..], b"."].concat();
    let error = one.exchange().send(too_long, &named()).expect_err("it is too long");
    assert!(
        error.status == Status::InvalidParam && error.what.contains(&STORE_VALUE_BYTES_MAX.to_string()),
        "{error}"
    );
    one.exchange().send(longest, &named()).expect("it is taken");
    other.exchange().fetch("a", &named()).expect("it is taken");
    other.await_known("a");
    let error = one.exchange().send_partial(metadata("a", "x"), &named()).expect_err("it needs a label");
    assert_eq!(error.status, Status::InvalidParam);
    let label = Destination::label("l".repeat(2000));
    assert_eq!(one.exchange().fetch("a", &label).expect_err("no such label").status, Status::InvalidParam);
}

#[test]
fn an_etcd_that_is_not_there_is_no_error_of_a_call_and_holds_up_no_end() {
    let place = format!("http://127.0.0.1:{}", free_port());
    let agent = Fake::start(config(&place, "nowhere", "a"));
    let began = Instant::now();
    agent.exchange().send(metadata("a", "x"), &named()).expect("it is only logged");
    agent.exchange().fetch("b", &named()).expect("it is only logged");
    agent.exchange().invalidate(&named()).expect("it is only logged");
    drop(agent);
    assert!(began.elapsed() < Duration::from_secs(6), "{:?}", began.elapsed());
}

#[test]
fn users_are_let_in_and_passwords_are_shown_nowhere() {
    let test = "users_are_let_in_and_passwords_are_shown_nowhere";
    let Some(etcd) = Etcd::start(test, "http", &[]) else { return };
    for args in [
        &["user", "add", "root:hunter2"][..],
        &["user", "grant-role", "root", "root"],
        &["user", "add", "kv:swordfish"],
        &["role", "add", "kv"],
        &["role", "grant-permission", "kv", "--prefix=true", "readwrite", &format!("/{test}/")],
        &["user", "grant-role", "kv", "kv"],
        &["auth", "enable"],
    ] {
        etcd.ctl(args);
    }
    let with_user = |name: &str, password: &str| {
        let mut config = config(&etcd.url, test, name);
        if let Some(store) = &mut config.store {
            store.etcd.user = Some(("kv".into(), Secret::new(password)));
        }
        assert!(!format!("{config:?}").contains(password));
        Fake::start(config)
    };
    let (one, other, denied) =
        (with_user("a", "swordfish"), with_user("b", "swordfish"), with_user("c", "password1"));
    one.exchange().send(metadata("a", "x"), &named()).expect("it is taken");
    other.exchange().fetch("a", &named()).expect("it is taken");
    other.await_known("a");
    denied.exchange().fetch("a", &named()).expect("it is only logged");
    drop(one);
    other.await_forgotten("a");
    assert!(!denied.knows("a"));
}

#[test]
fn no_deletion_is_missed_however_fetches_and_invalidations_fall() {
    let (etcd, test) = etcd!(no_deletion_is_missed_however_fetches_and_invalidations_fall);
    let (one, other) = (agent(etcd, test, "a"), agent(etcd, test, "b"));
    for round in 0..100 {
        one.exchange().send(metadata("a", &round.to_string()), &named()).expect("it is taken");
        other.exchange().fetch("a", &named()).expect("it is taken");
        if round % 3 == 0 {
            std::thread::sleep(Duration::from_millis(round % 7));
        }
        one.exchange().invalidate(&named()).expect("it is taken");
    }
    // Whatever was loaded when: in the end the key is gone, and fetches that are left wait for it.
    eventually("the key is gone for good", || {
        std::thread::sleep(Duration::from_millis(300));
        keys(etcd, &format!("/{test}/")).is_empty() && !other.knows("a")
    });
    std::thread::sleep(Duration::from_millis(300));
    assert!(!other.knows("a"));
    let loads = other.calls().iter().filter(|call| matches!(call, Call::Load(_))).count();
    let forgets = other.calls().iter().filter(|call| matches!(call, Call::Forget(_))).count();
    assert!(loads > 0 && forgets > 0, "{loads} loads, {forgets} forgotten");
}
