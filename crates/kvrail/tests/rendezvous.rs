//! Metadata exchange over a connection: start order, several peers, strangers, deadlines.

mod common;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use common::{Net, PATIENCE};
use kvrail::rendezvous::{AcceptError, ConnectToError, ExchangeError, frame};
use kvrail::{Agent, Hints, Progress};

fn agent(net: &Net, name: &str) -> Agent {
    Agent::builder(name)
        .transports([net.transport()])
        .progress(Progress::Inline)
        .ignore_environment()
        .build()
        .unwrap()
}

#[test]
fn start_order_does_not_matter() {
    let net = Net::default();
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let (early, late) = (agent(&net, "early"), agent(&net, "late"));
    std::thread::scope(|scope| {
        let connecting = scope.spawn(|| early.connect_to(&free, PATIENCE));
        std::thread::sleep(Duration::from_millis(60));
        let server = late.serve(free.as_str()).unwrap();
        assert_eq!(server.accept(PATIENCE).unwrap().name(), "early");
        assert_eq!(connecting.join().unwrap().unwrap().name(), "late");
    });
}

#[test]
fn many_peers_meet_one_server_at_once() {
    let net = Net::default();
    let server_agent = agent(&net, "server");
    let server = server_agent.serve("127.0.0.1:0").unwrap();
    let address = server.local_addr().to_string();
    let clients: Vec<_> = (0..40).map(|i| agent(&net, &format!("client-{i}"))).collect();
    std::thread::scope(|scope| {
        for client in &clients {
            scope.spawn(|| client.connect_to(&address, PATIENCE).unwrap());
        }
    });
    let mut names: Vec<_> =
        clients.iter().map(|_| server.accept(PATIENCE).unwrap().name().to_string()).collect();
    names.sort();
    names.dedup();
    assert_eq!((names.len(), server_agent.peers().len()), (40, 40));
}

#[test]
fn nobody_there_is_a_deadline_with_attempts_and_a_hint() {
    let net = Net::default();
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let started = Instant::now();
    let error = agent(&net, "a").connect_to(&free, Duration::from_millis(80)).unwrap_err();
    assert!(started.elapsed() < Duration::from_secs(3));
    assert!(matches!(&error, ConnectToError::Deadline { attempts: 2.., .. }), "{error}");
    assert!(error.is_retryable() && error.to_string().contains(&free) && !error.hints().is_empty());
    assert!(matches!(agent(&net, "b").connect_to("no port", PATIENCE), Err(ConnectToError::Address { .. })));
}

#[test]
fn a_listener_that_says_nothing_is_a_deadline_that_names_the_step() {
    let net = Net::default();
    let mute = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = mute.local_addr().unwrap().to_string();
    let error = agent(&net, "a").connect_to(&address, Duration::from_millis(60)).unwrap_err();
    assert!(error.to_string().contains("waiting for the other agent's metadata"), "{error}");
}

#[test]
fn strangers_harm_nobody() {
    let net = Net::default();
    let server_agent = agent(&net, "server");
    let server = server_agent.serve("127.0.0.1:0").unwrap();
    let mut browser = TcpStream::connect(server.local_addr()).unwrap();
    browser.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    assert!(matches!(
        server.accept(PATIENCE),
        Err(AcceptError::Exchange { source: ExchangeError::Frame { .. }, .. })
    ));
    let mut liar = TcpStream::connect(server.local_addr()).unwrap();
    liar.write_all(&frame::Header::new(frame::Kind::Metadata, 9).unwrap().encode()).unwrap();
    liar.write_all(b"not a bit").unwrap();
    let mut answer = Vec::new();
    liar.read_to_end(&mut answer).unwrap();
    let header = frame::Header::decode(answer[..12].try_into().unwrap()).unwrap();
    assert_eq!(header.kind, frame::Kind::Refused);
    assert!(String::from_utf8_lossy(&answer[12..]).contains("cannot read the metadata"));
    assert!(matches!(
        server.accept(PATIENCE),
        Err(AcceptError::Exchange { source: ExchangeError::Rejected { .. }, .. })
    ));
    let mut future = TcpStream::connect(server.local_addr()).unwrap();
    let mut header = frame::Header::new(frame::Kind::Metadata, 0).unwrap().encode();
    header[4] = 9;
    future.write_all(&header).unwrap();
    let mut answer = Vec::new();
    future.read_to_end(&mut answer).unwrap();
    assert!(String::from_utf8_lossy(&answer[12..]).contains("version 9"));
    assert!(server.accept(PATIENCE).is_err());
    let client = agent(&net, "client");
    client.connect_to(&server.local_addr().to_string(), PATIENCE).unwrap();
    assert_eq!(server.accept(PATIENCE).unwrap().name(), "client");
    assert!(matches!(server.accept(Duration::from_millis(1)), Err(AcceptError::Deadline { failed: 3, .. })));
}

#[test]
fn a_server_ends_at_once_even_with_a_silent_connection_open() {
    let net = Net::default();
    let server = agent(&net, "server").serve("127.0.0.1:0").unwrap();
    let _silent = TcpStream::connect(server.local_addr()).unwrap();
    std::thread::sleep(Duration::from_millis(30));
    let started = Instant::now();
    drop(server);
    assert!(started.elapsed() < Duration::from_secs(2));
}

#[test]
fn a_taken_port_is_an_error_with_a_hint() {
    let net = Net::default();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let error = agent(&net, "a").serve(taken.local_addr().unwrap()).unwrap_err();
    assert!(error.is_retryable() && !error.hints().is_empty(), "{error}");
}
