//! What is the embedded service's own: who opens the port, what happens when that one dies, and what else may knock.

mod common;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use common::{LONG, Place, Process, free_port};
use kvrail_rendezvous::wire::Message;
use kvrail_rendezvous::{
    Config, EmbeddedConfig, Group, GroupError, Host, Hosting, JoinError, Loss, RunId, Service, ServiceError,
};

#[test]
#[ignore = "a member in a process of its own; other tests start it"]
fn participant() {
    common::participate();
}

fn place() -> Place {
    Place::embedded("embedded").expect("a port is all that it takes")
}

#[test]
fn the_one_who_hosts_is_named_when_it_dies() {
    let place = place();
    let mut host = Process::start(&place, 3, 0, "joined");
    host.await_line("joining");
    // It has the port before the others come.
    while TcpStream::connect(place.service.trim_start_matches("tcp://")).is_err() {
        std::thread::sleep(Duration::from_millis(5));
    }
    let mut host = Some(host);
    std::thread::scope(|scope| {
        let join = |rank| scope.spawn(move || Group::join(&rank).expect("all join"));
        let groups =
            [1, 2].map(|rank| join(place.config(3, rank))).map(|thread| thread.join().expect("no panic"));
        let process = host.take().expect("it runs");
        let pid = process.pid();
        process.kill();
        let began = Instant::now();
        for group in groups {
            let error = group.barrier("never", LONG).expect_err("rank 0 is gone");
            let GroupError::MemberLost { member, how, .. } = &error else { panic!("{error}") };
            assert_eq!((member.rank, member.pid, how), (0, pid, &Loss::Vanished));
            let _ = group.leave(LONG);
        }
        assert!(began.elapsed() < Duration::from_secs(2), "the kernel tells at once: {:?}", began.elapsed());
    });
}

#[test]
fn those_who_were_told_no_run_take_the_hosts() {
    let place = place();
    let ids = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..3)
            .map(|rank| {
                let mut config = place.config(3, rank);
                config.run_id = None;
                scope.spawn(move || {
                    let group = Group::join(&config).expect("all join");
                    let id = group.run_id().clone();
                    group.leave(LONG).expect("the service is told");
                    id
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect::<Vec<_>>()
    });
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
}

#[test]
fn a_program_that_is_no_member_may_host() {
    let run_id = RunId::generate();
    let host = Host::start("127.0.0.1:0", run_id.clone()).expect("a port is free");
    let place = Place { service: format!("tcp://{}", host.address()), run_id: run_id.to_string() };
    place.members(4, |rank, group| {
        let all = group.gather("rank", &[rank as u8], LONG).expect("all give");
        assert_eq!(all.len(), 4);
        group.leave(LONG).expect("the service is told");
    });
    // Nobody is left to wait for.
    let began = Instant::now();
    host.end(LONG);
    assert!(began.elapsed() < Duration::from_secs(2));
}

#[test]
fn the_one_who_hosts_leaves_last() {
    place().members(3, |rank, group| {
        group.barrier("work", LONG).expect("all come");
        // Whoever hosts may want to leave first: the others go on for a while.
        if rank != 0 {
            std::thread::sleep(Duration::from_millis(200));
            let peer = 3 - rank;
            group.publish("late", &[rank as u8], LONG).expect("the service is there");
            assert_eq!(*group.await_value(peer, "late", LONG).expect("it goes on"), [peer as u8]);
        }
        group.leave(LONG).expect("the service is told");
    });
}

#[test]
fn a_run_does_not_take_members_of_another() {
    let host = Host::start("127.0.0.1:0", RunId::new("theirs").expect("a run id")).expect("a port is free");
    let place = Place { service: format!("tcp://{}", host.address()), run_id: "ours".into() };
    let mut config = place.config(1, 0);
    config.deadline = Duration::from_millis(300);
    let error = Group::join(&config).expect_err("it is another run's");
    assert!(error.to_string().ends_with("refuses: it is for run theirs"), "{error}");
}

#[test]
fn nobody_there_is_said_with_the_attempts_made() {
    let mut config = place().config(2, 1);
    let Service::Embedded(embedded) = &mut config.service else { panic!("it is embedded") };
    embedded.hosting = Hosting::Never;
    config.deadline = Duration::from_millis(300);
    let error = Group::join(&config).expect_err("nobody hosts");
    assert!(
        matches!(&error, JoinError::Service(ServiceError::Unreachable { detail, .. }) if detail.contains("attempts in")),
        "{error}"
    );
}

#[test]
fn the_one_who_must_host_and_cannot_says_so_at_once() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = format!("tcp://{}", taken.local_addr().expect("an address"));
    for address in [address.as_str(), "tcp://192.0.2.1:5555"] {
        let mut embedded = EmbeddedConfig::new(address).expect("an address");
        embedded.hosting = Hosting::Always;
        let began = Instant::now();
        let error =
            Group::join(&Config::new(Service::Embedded(embedded), 1)).expect_err("the port is not to be had");
        assert!(matches!(error, JoinError::Service(ServiceError::Local { .. })), "{error}");
        assert!(began.elapsed() < Duration::from_secs(2));
    }
}

#[test]
fn something_else_at_the_port_is_recognised() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    std::thread::spawn(move || {
        for stream in listener.incoming().take(8) {
            let Ok(mut stream) = stream else { return };
            let _ = stream.read(&mut [0; 256]);
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
        }
    });
    let error =
        Group::join(&Config::new(Service::parse(&format!("tcp://{address}")).expect("an address"), 1))
            .expect_err("it is a web server");
    assert!(error.to_string().contains("is not a kvrail rendezvous: it began with \"HTTP\""), "{error}");
}

#[test]
fn what_knocks_at_the_port_does_not_disturb_the_group() {
    let place = place();
    let address = place.service.trim_start_matches("tcp://").to_string();
    place.members(2, |rank, group| {
        if rank == 0 {
            let mut silent = Vec::new();
            for bytes in [
                b"GET / HTTP/1.1\r\n\r\n".to_vec(),
                vec![0xff; 4096],
                Message::Ping.encode(),
                Message::Current.encode(),
                Message::Create { seq: 1, key: "member/0".into(), value: b"x".as_slice().into() }.encode(),
            ] {
                let mut stream = TcpStream::connect(&address).expect("it listens");
                stream.write_all(&bytes).expect("it is taken");
                stream.set_read_timeout(Some(LONG)).expect("a timeout");
                let mut answer = Vec::new();
                let _ = stream.read_to_end(&mut answer);
                assert!(answer.starts_with(b"KVRG"), "it says why: {answer:?}");
                silent.push(TcpStream::connect(&address).expect("it listens"));
            }
            // A member by its hello, a nuisance after it: keys of others, keys that are none, and too many.
            let hello = Message::Hello {
                run_id: String::new(),
                incarnation: 9,
                host: "x".into(),
                pid: 1,
                lease_ms: 0,
            };
            let mut stream = TcpStream::connect(&address).expect("it listens");
            stream.write_all(&hello.encode()).expect("it is taken");
            for key in ["member/0", "member/1", "nonsense", "value/0000000000000009/a"] {
                let write = Message::Write {
                    seq: 1,
                    key: key.into(),
                    delete: "member/1".into(),
                    value: b"x".as_slice().into(),
                };
                stream.write_all(&write.encode()).expect("it is taken");
            }
            drop(stream);
        }
        group.barrier("unharmed", LONG).expect("all come");
        group.check().expect("all is well");
        group.leave(LONG).expect("the service is told");
    });
}

#[test]
fn a_port_is_used_again_at_once_by_the_next_run() {
    let place = Place { service: format!("tcp://127.0.0.1:{}", free_port()), run_id: "again".into() };
    for _ in 0..5 {
        place.members(3, |_, group| {
            group.barrier("all", LONG).expect("all come");
            group.leave(LONG).expect("the service is told");
        });
    }
}
