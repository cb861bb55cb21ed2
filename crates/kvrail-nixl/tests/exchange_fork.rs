//! What is a whole process's: forks and threads. One test, so that nothing else runs in this process.

mod exchange_common;

use std::net::TcpStream;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use exchange_common::{Fake, LONG, metadata};
use kvrail_nixl::Status;
use kvrail_nixl::exchange::ExchangeConfig;

fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").expect("it is Linux").count()
}

/// Runs `child` in a forked process; its exit status comes back at the latest after [`LONG`].
fn forked(child: impl FnOnce() -> bool) -> i32 {
    // SAFETY: no other thread of this process holds a lock that the child takes: the exchanges' threads wait in epoll, and
    // glibc makes its allocator usable after a fork.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0, "it can fork");
    if pid == 0 {
        let well = std::panic::catch_unwind(std::panic::AssertUnwindSafe(child)).unwrap_or(false);
        // SAFETY: ends this process without running anything of the parent's.
        unsafe { libc::_exit(i32::from(!well)) };
    }
    let began = Instant::now();
    loop {
        let mut status = 0;
        // SAFETY: `status` is a valid place for the time of the call, `pid` is this process's own child.
        let ended = unsafe { libc::waitpid(pid, &raw mut status, libc::WNOHANG) };
        if ended == pid {
            return status;
        }
        assert!(began.elapsed() < LONG, "the child hangs");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_forked_child_is_refused_and_disturbs_nobody_and_nothing_runs_after_the_end() {
    let before = threads();
    {
        let quiet = Fake::quiet("q");
        assert_eq!(threads(), before, "an agent that exchanges nothing has no thread");
        drop(quiet);
    }
    let (agent, other) = (Fake::listening("a"), Fake::listening("b"));
    let place = other.place();
    agent.exchange().fetch("b", &place).expect("it is taken");
    agent.await_known("b");

    let in_child = (agent.clone(), place.clone());
    let status = forked(move || {
        let (agent, place) = in_child;
        let refused = agent.exchange().send(metadata("a", "child"), &place);
        let refused = refused.is_err_and(|error| error.status == Status::NotAllowed);
        // The parent's owners are in the child too: all of them go, and nothing of the parent's is joined or shut down.
        drop(agent);
        refused
    });
    assert_eq!(status, 0);
    drop_in_child(ExchangeConfig::new("c"));

    agent.exchange().send(metadata("a", "after"), &place).expect("it is taken");
    other.await_known("a");
    other.exchange().fetch("a", &agent.place()).expect("it is taken");

    // A child that goes on has the listener's descriptor: the port is closed all the same, and can be had again.
    let (reads, writes) = std::io::pipe().expect("a pipe");
    let (reads, writes): (OwnedFd, OwnedFd) = (reads.into(), writes.into());
    let held = std::thread::spawn({
        let fd = reads.as_raw_fd();
        let parents = writes.as_raw_fd();
        move || {
            forked(move || {
                let mut byte = 0u8;
                // SAFETY: the parent's end of the pipe, which this process has no use for.
                unsafe { libc::close(parents) };
                // SAFETY: one byte is written at most, into `byte`.
                unsafe { libc::read(fd, (&raw mut byte).cast(), 1) };
                true
            })
        }
    });
    std::thread::sleep(Duration::from_millis(200));
    let port = agent.port();
    drop(agent);
    assert!(TcpStream::connect(("127.0.0.1", port)).is_err(), "nobody listens there");
    let mut config = ExchangeConfig::new("a");
    config.listen = Some(port);
    let again = Fake::start(config);
    assert_eq!(again.port(), port);
    drop(writes);
    assert_eq!(held.join().expect("no panic"), 0);
    drop((again, other));
    assert_eq!(threads(), before, "every thread has ended with its agent");
}

/// An agent whose only owner is in the child when it is dropped there.
fn drop_in_child(mut config: ExchangeConfig) {
    config.listen = Some(0);
    let agent = Fake::start(config);
    let port = agent.port();
    let raw = std::sync::Arc::into_raw(agent);
    let status = forked(move || {
        // SAFETY: the pointer is `into_raw`'s, and in this process it is used once.
        drop(unsafe { std::sync::Arc::from_raw(raw) });
        true
    });
    assert_eq!(status, 0);
    assert!(TcpStream::connect(("127.0.0.1", port)).is_ok(), "the parent still listens");
    // SAFETY: the pointer is `into_raw`'s, and in this process it is used once.
    drop(unsafe { std::sync::Arc::from_raw(raw) });
}
