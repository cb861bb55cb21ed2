//! Black box: what `kvrail softefa` says and does. Output, exit codes and messages are the contract.

mod fabric;

use std::time::{Duration, Instant};

use fabric::{Place, signal, until};

/// No libfabric is looked for.
const BARE: [&str; 3] = ["run", "--libfabric", "none"];

fn words<'a>(more: &[&'a str]) -> Vec<&'a str> {
    BARE.iter().copied().chain(more.iter().copied()).collect()
}

#[test]
fn a_command_sees_its_node_and_finds_the_emulated_device_first() {
    let place = Place::new();
    let ended = place.softefa(&words(&[
        "--",
        "sh",
        "-c",
        "env; ls -L $SOFTEFA_DIR/lib; ls -d $SYSFS_PATH; ls $SOFTEFA_DIR",
    ]));
    ended.exits(0);
    for node in 0..2 {
        let has = |what: &str| {
            let line = format!("node{node} | {what}");
            assert!(ended.stdout.lines().any(|l| l.starts_with(&line)), "{line}\n{}", ended.stdout);
        };
        let base = place.path().display();
        has(&format!("SOFTEFA_DIR={base}/softefa-"));
        has(&format!("SOFTEFA_NODE={node}"));
        has("SOFTEFA_NODES=2");
        has(&format!("LD_LIBRARY_PATH={base}/softefa-"));
        has(&format!("SYSFS_PATH={base}/softefa-"));
        has(&format!("HWLOC_FSROOT={base}/softefa-"));
        for file in ["libibverbs.so.1", "libefa.so.1", "fabric", "lock", "spec.json", "node0", "node1"] {
            has(file);
        }
    }
    place.is_empty();
}

#[test]
fn each_node_runs_its_own_command_and_lines_never_mix() {
    let place = Place::new();
    let lines = "i=0; while [ $i -lt 300 ]; do printf %s a; echo b; i=$((i+1)); done";
    let ended =
        place.softefa(&words(&["--", "sh", "-c", lines, "::", "sh", "-c", "echo only; echo err >&2"]));
    ended.exits(0);
    assert_eq!(ended.stdout.lines().filter(|l| *l == "node0 | ab").count(), 300, "{}", ended.stdout);
    assert_eq!(ended.stdout.lines().filter(|l| *l == "node1 | only").count(), 1);
    assert!(ended.stderr.contains("node1 | err\n"), "{}", ended.stderr);
}

#[test]
fn a_single_node_prints_without_a_prefix_and_reads_our_stdin() {
    let place = Place::new();
    let mut command = place.command(&words(&["--nodes", "1", "--", "cat"]));
    let (reader, mut writer) = std::io::pipe().unwrap();
    command.stdin(reader);
    let run = fabric::Running::of(command);
    std::io::Write::write_all(&mut writer, b"through\n").unwrap();
    drop(writer);
    let ended = run.end();
    ended.exits(0);
    assert_eq!(ended.stdout, "through\n");
}

#[test]
fn a_failed_command_is_named_and_makes_the_exit_code_1() {
    let place = Place::new();
    let ended = place.softefa(&words(&["--", "sh", "-c", "exit $((SOFTEFA_NODE * 3))"]));
    ended.exits(1);
    assert!(ended.stderr.contains("error: node1 (`sh`) exited with 3"), "{}", ended.stderr);
    let ended = place.softefa(&words(&["--", "sh", "-c", "kill -SEGV $$"]));
    ended.exits(1);
    assert!(ended.stderr.contains("node0 (`sh`) was ended by SIGSEGV"), "{}", ended.stderr);
    let ended = place.softefa(&words(&["--", "/no/such/program"]));
    ended.exits(2);
    assert!(ended.stderr.contains("node0 cannot run `/no/such/program`: No such file"), "{}", ended.stderr);
    place.is_empty();
}

#[test]
fn with_fail_fast_the_first_failure_ends_the_others() {
    let place = Place::new();
    let begun = Instant::now();
    let ended = place.softefa(&words(&["--fail-fast", "--", "false", "::", "sleep", &place.mark]));
    ended.exits(1);
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    assert!(ended.stderr.contains("node0 (`false`) exited with 1"), "{}", ended.stderr);
    place.is_empty();
}

#[test]
fn contradictions_are_refused_before_anything_is_made() {
    let place = Place::new();
    for (arguments, why) in [
        (vec!["--nodes", "0", "--", "true"], "0 nodes: a fabric has 1 to 16"),
        (vec!["--nics", "65", "--", "true"], "65 NICs: a node has 1 to 64"),
        (vec!["--nodes", "3", "--", "true", "::", "true"], "2 commands for 3 nodes"),
        (vec!["--", "true", "::"], "a command is empty"),
        (vec!["--name", "a/b", "--", "true"], "`a/b` is no name"),
        (vec!["--fault", "rail-dwon", "--", "true"], "'rail-down'"),
        (vec!["--fault", "rail-down --nic 7", "--", "true"], "there is no NIC 7: this fabric has"),
        (vec!["--after-listen", "7100"], "needs a command and a second node"),
        (vec!["--latency", "soon", "--", "true"], "`soon` is no time"),
        (vec!["--shape", "p99", "--", "true"], "p99"),
    ] {
        let ended = place.softefa(&words(&arguments));
        ended.exits(2);
        assert!(ended.stderr.contains(why), "{arguments:?}: {}", ended.stderr);
    }
    place.is_empty();
}

#[test]
fn a_base_without_room_is_refused_with_both_figures() {
    let place = Place::new();
    // A directory is always there; a file system of one MiB takes a mount, which a test may not have.
    let mut command = place.command(&words(&["--", "true"]));
    command.env("SOFTEFA_BASE", "/proc");
    let ended = fabric::Running::of(command).end();
    ended.exits(2);
    assert!(ended.stderr.contains("no directory can hold the fabric: /proc"), "{}", ended.stderr);
    assert!(ended.stderr.contains("hint: set SOFTEFA_BASE"), "{}", ended.stderr);
}

#[test]
fn node_1_starts_once_node_0_listens() {
    let place = Place::new();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
    let server = format!(
        "import socket,time; time.sleep(0.3); s=socket.create_server(('127.0.0.1',{port})); s.settimeout(20); \
         c,_=s.accept(); print('got', c.recv(9).decode())"
    );
    let client = format!("import socket; socket.create_connection(('127.0.0.1',{port})).send(b'hello')");
    let arguments = ["--after-listen", &port, "--", "python3", "-c", &server, "::", "python3", "-c", &client];
    let ended = place.softefa(&words(&arguments));
    ended.exits(0);
    assert!(ended.stdout.contains("node0 | got hello"), "{}", ended.stdout);
    // A listener elsewhere is not node 0's.
    let other = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = other.local_addr().unwrap().port().to_string();
    let arguments = ["--after-listen", &port, "--listen-deadline", "200ms", "--", "sleep", &place.mark];
    let ended = place.softefa(&words(&arguments));
    ended.exits(2);
    assert!(ended.stderr.contains("did not listen on port"), "{}", ended.stderr);
    assert!(ended.stderr.contains("a process outside of node 0 listens"), "{}", ended.stderr);
    let ended = place.softefa(&words(&["--after-listen", &port, "--", "true"]));
    ended.exits(2);
    assert!(ended.stderr.contains("node0 ended before it listened"), "{}", ended.stderr);
    place.is_empty();
}

#[test]
fn two_fabrics_live_side_by_side_and_have_to_be_named() {
    let place = Place::new();
    let script = format!("sleep {}", place.mark);
    let one = place.run_ready(&["--name", "one"], 1, &script);
    let two = place.run_ready(&["--name", "two", "--nics", "3"], 2, &script);
    let ended = place.softefa(&["shell", "--", "true"]);
    ended.exits(2);
    assert!(
        ended.stderr.contains("2 fabrics are live") && ended.stderr.contains("one, two"),
        "{}",
        ended.stderr
    );
    let ended = place.softefa(&["shell", "--name", "three", "--", "true"]);
    ended.exits(2);
    assert!(ended.stderr.contains("no live fabric is named three"), "{}", ended.stderr);
    let ended = place.softefa(&words(&["--name", "one", "--", "true"]));
    ended.exits(2);
    assert!(ended.stderr.contains("named one is live already"), "{}", ended.stderr);
    let ended = place.softefa(&["status", "--format", "json"]);
    ended.exits(0);
    let status: serde_json::Value = serde_json::from_str(&ended.stdout).unwrap();
    let nics: Vec<usize> =
        status["fabrics"].as_array().unwrap().iter().map(|f| f["nics"].as_array().unwrap().len()).collect();
    assert_eq!(nics, [1, 6], "{}", ended.stdout);
    signal(one.pid(), "INT");
    one.end().exits(2);
    place.softefa(&["shell", "--node", "1", "--", "sh", "-c", "test $SOFTEFA_NODE = 1"]).exits(0);
    signal(two.pid(), "INT");
    two.end().exits(2);
    place.is_empty();
}

#[test]
fn without_a_command_the_fabric_stays_until_ctrl_c() {
    let place = Place::new();
    let run = place.start(&words(&["--name", "idle"]));
    until("it is up", || place.softefa(&["shell", "--name", "idle", "--", "true"]).status.success());
    let ended = place.softefa(&["shell", "--node", "2", "--", "true"]);
    ended.exits(2);
    assert!(ended.stderr.contains("there is no node 2: fabric idle has 0 to 1"), "{}", ended.stderr);
    place.softefa(&["shell", "--node", "1", "--", "sh", "-c", "exit 7"]).exits(7);
    signal(run.pid(), "INT");
    run.end().exits(0);
    place.is_empty();
}

#[test]
fn faults_are_set_listed_and_cleared_on_a_live_fabric() {
    let place = Place::new();
    let run = place.run_ready(&["--nics", "4", "--fault", "drop 1%"], 2, &format!("sleep {}", place.mark));
    let set = place.softefa(&["fault", "delay", "200us", "50us", "--node", "0", "--nic", "3", "--for", "1h"]);
    set.exits(0);
    let id = set.stdout.trim().to_owned();
    place.softefa(&["fault", "rail-down", "--node", "1"]).exits(0);
    let list = place.softefa(&["fault", "list", "--format", "json"]);
    list.exits(0);
    let faults: serde_json::Value = serde_json::from_str(&list.stdout).unwrap();
    assert_eq!(faults.as_array().unwrap().len(), 3, "{}", list.stdout);
    assert_eq!((&faults[0]["kind"], &faults[0]["probability"]), (&"drop".into(), &0.01.into()));
    assert_eq!((&faults[1]["amount"], &faults[1]["nic"]), (&200_000.into(), &3.into()));
    let table = place.softefa(&["status"]);
    table.exits(0);
    assert!(table.stdout.contains("delay 200us 50us") && table.stdout.contains("down"), "{}", table.stdout);
    assert!(table.stdout.lines().all(|l| l.chars().count() <= 110), "{}", table.stdout);
    place.softefa(&["fault", "clear", &id]).exits(0);
    let again = place.softefa(&["fault", "clear", &id]);
    again.exits(2);
    assert!(again.stderr.contains("is not active; active are 1, 3"), "{}", again.stderr);
    for (arguments, why) in [
        (&["fault", "rail-dwon"][..], "similar value exists: 'rail-down'"),
        (&["fault", "rail-dwon"], "secondary-cidr"),
        (&["fault", "rail-down", "--nic", "4"], "there is no NIC 4: this fabric has 0 to 3"),
        (&["fault", "rail-down", "--node", "2"], "there is no node 2: this fabric has 0 to 1"),
        (&["fault", "drop"], "drop needs a value"),
        (&["fault", "rail-down", "5"], "it takes no value"),
    ] {
        let ended = place.softefa(arguments);
        ended.exits(2);
        assert!(ended.stderr.contains(why), "{arguments:?}: {}", ended.stderr);
    }
    place.softefa(&["fault", "clear"]).exits(0);
    let list = place.softefa(&["fault", "list"]);
    assert_eq!((list.stdout.as_str(), list.stderr.trim()), ("", "no fault is active"));
    drop(run);
    place.is_empty();
}

#[test]
fn a_named_libfabric_has_to_be_usable_and_check_says_why_not() {
    let place = Place::new();
    let missing = place.path().join("none-here");
    let missing = missing.to_str().unwrap();
    let ended = place.softefa(&["run", "--libfabric", missing, "--", "true"]);
    ended.exits(2);
    assert!(
        ended.stderr.contains("holds no libfabric.so.1; it was named by --libfabric"),
        "{}",
        ended.stderr
    );
    let ended = place.softefa(&["check", "--libfabric", missing]);
    ended.exits(1);
    let text = place.path().join("libfabric.so.1");
    std::fs::write(&text, "text").unwrap();
    let ended = place.softefa(&["check", "--libfabric", text.to_str().unwrap()]);
    ended.exits(1);
    assert!(ended.stderr.contains("is no library that can be read"), "{}", ended.stderr);
    let mut other = std::fs::read(env!("CARGO_BIN_EXE_kvrail")).unwrap();
    // A library without efa provider: any other ELF file. Then another machine's: byte 18 of the header.
    std::fs::write(&text, &other).unwrap();
    let ended = place.softefa(&["check", "--libfabric", text.to_str().unwrap(), "--format", "json"]);
    ended.exits(1);
    let report: serde_json::Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!(report["candidates"][0]["usable"], false);
    assert!(
        ended.stderr.contains("has no efa provider") && ended.stderr.contains("pip install mpich"),
        "{}",
        ended.stderr
    );
    other[18] = 8;
    std::fs::write(&text, &other).unwrap();
    let ended = place.softefa(&["check", "--libfabric", text.to_str().unwrap()]);
    ended.exits(1);
    assert!(ended.stderr.contains("is for ELF machine 8, this machine is"), "{}", ended.stderr);
    std::fs::remove_file(&text).unwrap();
    place.is_empty();
}

#[test]
fn a_reader_that_leaves_ends_the_run() {
    let place = Place::new();
    let mut command = place.command(&words(&["--", "sh", "-c", "while :; do echo line || exit; done"]));
    let (reader, writer) = std::io::pipe().unwrap();
    command.stdout(writer).stderr(std::process::Stdio::null());
    let mut child = command.spawn().unwrap();
    drop(command);
    let mut first = [0; 4];
    std::io::Read::read_exact(&mut &reader, &mut first).unwrap();
    assert_eq!(&first, b"node", "whichever node comes first");
    drop(reader);
    until("it ends", || child.try_wait().unwrap().is_some());
    place.is_empty();
}

#[test]
fn two_nodes_of_32_nics_are_up_in_no_time() {
    let place = Place::new();
    let begun = Instant::now();
    let ended = place.softefa(&words(&["--nics", "32", "--", "sh", "-c", "du -sk $SOFTEFA_DIR | cut -f1"]));
    ended.exits(0);
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    let kib: u64 = ended.stdout.lines().next().unwrap().rsplit(' ').next().unwrap().parse().unwrap();
    assert!(kib < 1 << 20, "{kib} KiB");
    place.is_empty();
}
