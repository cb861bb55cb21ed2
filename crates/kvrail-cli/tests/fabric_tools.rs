//! libfabric's own programs, as Debian builds them, on emulated nodes.

mod nodes;

use std::collections::BTreeSet;
use std::net::TcpListener;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use nodes::Fabric;
use nodes::process::{self, Finished};

const DEADLINE: Duration = Duration::from_secs(30);

/// Runs a program on a node; `None` and a word about it when this machine does not have the program.
fn on_node(fabric: &Fabric, test: &str, node: u32, program: &str, arguments: &[&str]) -> Option<Finished> {
    let mut command = fabric.command(node, program);
    match process::run(command.args(arguments), DEADLINE) {
        Ok(finished) => Some(finished),
        Err(why) if why.contains("does not start") => {
            nodes::skip(test, &format!("{why} (Debian: libfabric-bin)"));
            None
        }
        Err(why) => panic!("{why}"),
    }
}

#[test]
fn fi_info_lists_each_nic_under_both_fabrics() {
    let test = "fi_info_lists_each_nic_under_both_fabrics";
    let bench = bench!("fi_info_lists_each_nic_under_both_fabrics");
    let fabric = bench.fabric(&["--nics", "32"]);
    let Some(said) = on_node(&fabric, test, 1, "fi_info", &["-p", "efa", "-t", "FI_EP_RDM"]) else { return };
    assert!(said.status.success(), "{}", said.last_words());
    let field = |line: &str, name: &str| line.trim().strip_prefix(name).map(|rest| rest.trim().to_owned());
    let mut current = String::new();
    let mut pairs = BTreeSet::new();
    for line in said.stdout.lines() {
        if let Some(fabric) = field(line, "fabric:") {
            current = fabric;
        }
        if let Some(domain) = field(line, "domain:") {
            pairs.insert((current.clone(), domain));
        }
    }
    let expected: BTreeSet<_> = ["efa", "efa-direct"]
        .into_iter()
        .flat_map(|name| (0..32).map(move |nic| (name, nic)))
        .map(|(name, nic)| (name.to_owned(), format!("{}-rdm", fabric.device(nic))))
        .collect();
    assert_eq!(pairs, expected);
}

/// A port that was free a moment ago, for the programs' own control connection.
fn free_port() -> String {
    let probe = TcpListener::bind("127.0.0.1:0").expect("a local port");
    probe.local_addr().expect("it is bound").port().to_string()
}

fn listens(port: &str) -> bool {
    let wanted = format!(":{:04X} 00000000:0000 0A", port.parse::<u16>().expect("a port"));
    std::fs::read_to_string("/proc/net/tcp").is_ok_and(|table| table.contains(&wanted))
}

fn pingpong(test: &str, fabric: &Fabric) -> Option<[Finished; 2]> {
    let port = free_port();
    let arguments = ["-p", "efa", "-e", "rdm", "-c", "-I", "200"];
    if Command::new("fi_pingpong").arg("-h").output().is_err() {
        nodes::skip(test, "fi_pingpong does not start (Debian: libfabric-bin)");
        return None;
    }
    let (mut server, mut client) = (fabric.command(1, "fi_pingpong"), fabric.command(0, "fi_pingpong"));
    server.args(arguments).args(["-B", &port]);
    client.args(arguments).args(["-P", &port, "127.0.0.1"]);
    thread::scope(|scope| {
        let server = scope.spawn(|| process::run(&mut server, DEADLINE));
        let until = Instant::now() + DEADLINE;
        while !listens(&port) && !server.is_finished() && Instant::now() < until {
            thread::sleep(Duration::from_millis(5));
        }
        let client = process::run(&mut client, DEADLINE);
        let server = server.join().expect("the server's thread");
        Some([client.expect("the client"), server.expect("the server")])
    })
}

#[test]
fn fi_pingpong_passes_between_two_nodes() {
    let test = "fi_pingpong_passes_between_two_nodes";
    let bench = bench!("fi_pingpong_passes_between_two_nodes");
    let fabric = bench.fabric(&[]);
    let Some(ends) = pingpong(test, &fabric) else { return };
    for end in &ends {
        assert!(end.status.success(), "{}\n{}", end.last_words(), end.stdout);
        // A line of figures per size, below the heading.
        assert!(end.stdout.lines().count() >= 5, "{}", end.stdout);
    }
    assert!(fabric.counter(0, 0, "tx_pkts") >= 800 && fabric.counter(1, 0, "tx_pkts") >= 800);
}
