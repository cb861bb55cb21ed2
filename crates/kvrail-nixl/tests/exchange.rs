//! Metadata exchange by address: what gets where, in which order, and how it ends.

mod exchange_common;

use std::io::Read;
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use exchange_common::{Call, Fake, LONG, eventually, metadata};
use kvrail_nixl::Status;
use kvrail_nixl::exchange::{Destination, Exchange, ExchangeConfig, Host, STORE_VALUE_BYTES_MAX};

/// A peer that takes connections and says nothing.
struct Mute {
    listener: TcpListener,
}

impl Mute {
    fn new() -> Self {
        Self { listener: TcpListener::bind("127.0.0.1:0").expect("a port") }
    }

    fn place(&self) -> Destination {
        Destination::at("127.0.0.1", self.listener.local_addr().expect("it is bound").port())
    }
}

#[test]
fn what_an_agent_without_a_listener_sends_is_loaded_when_the_call_returns() {
    let (sender, receiver) = (Fake::quiet("a"), Fake::listening("b"));
    sender.exchange().send(metadata("a", "part"), &receiver.place()).expect("it is taken");
    assert_eq!(receiver.calls(), [Call::Load("md:a:part".into())]);
    sender.exchange().invalidate(&receiver.place()).expect("it is taken");
    assert!(!receiver.knows("a"));
}

#[test]
fn a_fetch_needs_no_listener_and_brings_all_of_the_metadata() {
    let (one, other) = (Fake::quiet("a"), Fake::listening("b"));
    one.exchange().fetch("b", &other.place()).expect("it is taken");
    one.await_known("b");
    assert_eq!(one.calls(), [Call::Load("md:b:all".into())]);
}

#[test]
fn agents_that_listen_exchange_and_forget() {
    let (one, other) = (Fake::listening("a"), Fake::listening("b"));
    one.exchange().fetch("b", &other.place()).expect("it is taken");
    one.exchange().send(metadata("a", "x"), &other.place()).expect("it is taken");
    one.await_known("b");
    other.await_known("a");
    one.exchange().invalidate(&other.place()).expect("it is taken");
    other.await_forgotten("a");
    assert!(one.knows("b"), "only the other one was asked to forget");
}

#[test]
fn names_and_addresses_of_both_families_are_addresses() {
    let receiver = Fake::listening("b");
    for host in ["localhost", "127.0.0.1", "::1"] {
        if host == "::1" && TcpListener::bind("[::1]:0").is_err() {
            eprintln!(
                "skipped: names_and_addresses_of_both_families_are_addresses: ::1: this host has no IPv6"
            );
            continue;
        }
        let sender = Fake::quiet("a");
        let place = Destination::at(host, receiver.port());
        sender.exchange().send(metadata(host, "x"), &place).expect("it is taken");
        eventually(host, || {
            receiver
                .calls()
                .last()
                .is_some_and(|call| matches!(call, Call::Load(text) if text.contains(&host[..2])))
        });
    }
}

#[test]
fn a_port_that_is_taken_is_an_error_that_says_so() {
    let taken = Fake::listening("a");
    let mut config = ExchangeConfig::new("b");
    config.listen = Some(taken.port());
    let host: Arc<dyn Host> = taken.clone();
    let error = Exchange::start(Arc::downgrade(&host), config).expect_err("the port is taken");
    assert_eq!(error.status, Status::Backend);
    assert!(error.what.contains(&taken.port().to_string()) && error.what.contains("in use"), "{error}");
}

#[test]
fn without_an_address_and_a_store_every_call_is_invalid() {
    let agent = Fake::listening("a");
    let exchange = agent.exchange();
    for to in [Destination::default(), Destination::label("x"), Destination::at("", 8888)] {
        for result in [
            exchange.check(&to),
            exchange.send(metadata("a", "x"), &to),
            exchange.send_partial(metadata("a", "x"), &to),
            exchange.fetch("b", &to),
            exchange.invalidate(&to),
        ] {
            assert_eq!(result.expect_err("there is nowhere to go").status, Status::InvalidParam);
        }
    }
}

#[test]
fn a_dead_address_is_no_error_of_the_call_and_holds_nobody_up() {
    let port = TcpListener::bind("127.0.0.1:0").and_then(|port| port.local_addr()).expect("a port").port();
    let agent = Fake::quiet("a");
    let began = Instant::now();
    for host in ["127.0.0.1", "no.such.host.invalid", "not an address"] {
        agent.exchange().send(metadata("a", "x"), &Destination::at(host, port)).expect("it is only logged");
        agent.exchange().fetch("b", &Destination::at(host, port)).expect("it is only logged");
    }
    assert!(began.elapsed() < LONG, "{:?}", began.elapsed());
}

#[test]
fn errands_for_one_address_keep_their_order() {
    let (sender, receiver) = (Fake::listening("a"), Fake::listening("b"));
    let texts: Vec<String> = (0..200).map(|i| i.to_string()).collect();
    for text in &texts {
        sender.exchange().send(metadata("a", text), &receiver.place()).expect("it is taken");
    }
    sender.exchange().invalidate(&receiver.place()).expect("it is taken");
    eventually("all have come", || receiver.calls().len() == texts.len() + 1);
    let mut expected: Vec<Call> = texts.iter().map(|text| Call::Load(format!("md:a:{text}"))).collect();
    expected.push(Call::Forget("a".into()));
    assert_eq!(receiver.calls(), expected);
}

#[test]
fn a_mute_peer_holds_up_nobody_else_and_not_the_end() {
    let mute = Mute::new();
    let (agent, other) = (Fake::listening("a"), Fake::listening("b"));
    for _ in 0..50 {
        agent.exchange().fetch("c", &mute.place()).expect("it is taken");
    }
    agent.exchange().fetch("b", &other.place()).expect("it is taken");
    agent.await_known("b");
    let began = Instant::now();
    drop(agent);
    assert!(began.elapsed() < Duration::from_secs(2), "fetches end at once: {:?}", began.elapsed());

    let agent = Fake::listening("a");
    agent.exchange().send(metadata("a", "x"), &mute.place()).expect("it is taken");
    let (mut stream, _) = mute.listener.accept().expect("it comes");
    let began = Instant::now();
    drop(agent);
    assert!(began.elapsed() < Duration::from_secs(6), "a send has a little more: {:?}", began.elapsed());
    stream.set_read_timeout(Some(LONG)).expect("a deadline");
    let mut bytes = Vec::new();
    let _ = stream.read_to_end(&mut bytes);
    assert!(bytes.starts_with(b"KVNX"), "the connection was open, and is closed");
}

#[test]
fn what_was_queued_before_the_end_is_sent() {
    let (sender, receiver) = (Fake::listening("a"), Fake::listening("b"));
    for i in 0..20 {
        sender.exchange().send(metadata("a", &i.to_string()), &receiver.place()).expect("it is taken");
    }
    drop(sender);
    assert_eq!(receiver.calls().len(), 20);
}

#[test]
fn metadata_of_any_length_up_to_the_limit_goes_through() {
    let (sender, receiver) = (Fake::quiet("a"), Fake::listening("b"));
    for len in [1, 256 << 10, (256 << 10) + 1, 33 << 20] {
        let mut blob = metadata("a", &len.to_string());
        blob.resize(blob.len() + 1 + len, b':');
        sender.exchange().send(blob, &receiver.place()).expect("it is taken");
        eventually("it has come", || {
            receiver
                .calls()
                .iter()
                .any(|call| matches!(call, Call::Load(text) if text.contains(&format!("a:{len}:"))))
        });
    }
    let error =
        sender.exchange().send(vec![0; (64 << 20) + 1], &receiver.place()).expect_err("it is too long");
    assert_eq!(error.status, Status::InvalidParam);
    const { assert!(STORE_VALUE_BYTES_MAX < 64 << 20, "etcd's limit is the smaller one") };
}

#[test]
fn the_queue_is_bounded_in_errands_and_bytes() {
    let mute = Mute::new();
    let agent = Fake::listening("a");
    let refused = (0..20_000).find_map(|i| {
        let fetched = agent.exchange().fetch("b", &mute.place());
        fetched.err().map(|error| (i, error))
    });
    let (count, error) = refused.expect("there is a limit");
    assert_eq!((count, error.status), (16 << 10, Status::NotAllowed));
    drop(agent);

    let agent = Fake::listening("a");
    let refused = (0..6).find_map(|i| {
        let sent = agent.exchange().send(vec![0; 60 << 20], &mute.place());
        sent.err().map(|error| (i, error))
    });
    let (count, error) = refused.expect("there is a limit");
    assert_eq!((count, error.status), (4, Status::NotAllowed), "{error}");
}

#[test]
fn the_last_owner_may_be_a_thread_of_the_exchange() {
    let (entered, loading) = channel();
    let (go_on, goes_on) = channel::<()>();
    let goes_on = std::sync::Mutex::new(goes_on);
    let mut config = ExchangeConfig::new("b");
    config.listen = Some(0);
    let hook = move |_: &str| {
        let _ = entered.send(());
        let _ = goes_on.lock().expect("no panic").recv();
    };
    let receiver = Fake::with_hook(config, Some(Box::new(hook)));
    let sender = Fake::listening("a");
    let place = receiver.place();
    sender.exchange().send(metadata("a", "x"), &place).expect("it is taken");
    loading.recv_timeout(LONG).expect("it is being loaded");
    let gone = Arc::downgrade(&receiver);
    drop(receiver);
    assert!(gone.upgrade().is_some(), "the load still has it");
    drop(go_on);
    eventually("the agent has ended", || gone.upgrade().is_none());
    eventually("its port is closed", || {
        std::net::TcpStream::connect(("127.0.0.1", place.address.as_ref().expect("it has one").1)).is_err()
    });
}
