//! Black box: `kvrail nixlbench` as scripts use it: several processes, its table, its exit codes.

mod program;
#[path = "../../kvrail-engines/tests/nixl/wheel.rs"]
#[allow(dead_code)] // This test needs a part of it.
mod wheel;

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::time::{Duration, Instant};

use program::{Ended, Running, free_port, kvrail, start};

/// A run that takes no time: two block sizes, one of them large.
const QUICK: &str = "--engine=kvrail --start_block_size=65536 --max_block_size=131072 --num_iter=32 --warmup_iter=16 \
                     --total_buffer_size=50331648";

/// Rows of a table: the lines that begin with a number.
fn rows(stdout: &str) -> Vec<Vec<f64>> {
    let is_row = |line: &&str| line.starts_with(|c: char| c.is_ascii_digit());
    let cells = |line: &str| line.split_whitespace().map(|cell| cell.parse().unwrap()).collect();
    stdout.lines().filter(is_row).map(cells).collect()
}

/// Starts `count` participants that meet at a port of one of them.
fn participants(count: u32, words: &str) -> Vec<Running> {
    let port = free_port();
    (0..count)
        .map(|_| start(&format!("nixlbench --runtime_type=ASIO --asio_port={port} --timeout=30s {words}")))
        .collect()
}

/// All succeed, and the one that is rank 0 prints.
fn table(running: Vec<Running>) -> String {
    let ended: Vec<Ended> = running.into_iter().map(Running::end).collect();
    ended.iter().for_each(|e| e.exits(0));
    let mut printed = ended.into_iter().map(|e| e.stdout).filter(|stdout| !stdout.is_empty());
    let table = printed.next().expect("rank 0 prints a table");
    assert_eq!(printed.next(), None, "nobody else prints");
    table
}

#[test]
fn without_a_word_about_rendezvous_it_starts_its_own_target() {
    let run = kvrail(&format!("nixlbench {QUICK}"));
    run.exits(0);
    assert!(
        run.stderr.contains("no rendezvous was named: a target is started on this host"),
        "{}",
        run.stderr
    );
    assert!(run.stdout.contains("NIXLBench Configuration\n"));
    assert!(run.stdout.contains("Op type (--op_type=[READ,WRITE])                            : WRITE\n"));
    assert!(run.stdout.contains("\nBlock Size (B)      Batch Size     B/W (GB/Sec)   Avg Lat. (us)  "));
    let rows = rows(&run.stdout);
    assert_eq!(
        rows.iter().map(|row| (row[0], row[1])).collect::<Vec<_>>(),
        [(65536.0, 1.0), (131072.0, 1.0)]
    );
    for row in rows {
        assert_eq!(row.len(), 10);
        // Bandwidth and latency are of the same time.
        assert!((row[2] * row[3] * 1e3 / row[0] - 1.0).abs() < 0.05, "{row:?}");
    }
}

#[test]
fn every_way_of_moving_is_verified() {
    for words in [
        "--op_type=READ --max_batch_size=4 --num_threads=2 --pipeline_depth=3",
        "--recreate_xfer --memory=shared --check_consistency",
        "--reregister_mem --memory=shared",
        "--mode=MG --num_initiator_dev=2 --num_target_dev=2 --enable_pt",
        "--mode=MG --scheme=tp --num_initiator_dev=3 --num_target_dev=2 --op_type=READ",
        "--prepared_xfer --start_block_size=1048576 --max_block_size=2097152",
    ] {
        let run = kvrail(&format!("nixlbench {QUICK} {words}"));
        run.exits(0);
        assert!(!rows(&run.stdout).is_empty(), "{words}");
    }
}

/// Once after the warm-up: what a later transfer repairs would not be seen, nor would it be wrong.
#[test]
fn every_planted_defect_is_caught_and_ends_with_exit_code_1() {
    let once = "--start_block_size=2097152 --max_block_size=2097152 --start_batch_size=3 --max_batch_size=3 --num_iter=16 \
                --warmup_iter=16";
    for (plant, named) in [
        ("swapped", &["swapped: the bytes belong to block"][..]),
        ("wrong-offset", &["wrong offset", "never written", "swapped"]),
        ("stale", &["stale"]),
        ("zeros", &["zeros"]),
        ("flip-bit", &["1 bit flipped"]),
        ("short-tail", &["short tail"]),
    ] {
        for op in ["READ", "WRITE"] {
            let run = kvrail(&format!("nixlbench {QUICK} {once} --op_type={op} --plant={plant}"));
            run.exits(1);
            assert!(run.stderr.contains("rank "), "{plant} {op}: {}", run.stderr);
            assert!(named.iter().any(|named| run.stderr.contains(named)), "{plant} {op}: {}", run.stderr);
            assert!(rows(&run.stdout).is_empty(), "a wrong figure is no figure: {}", run.stdout);
        }
    }
}

#[test]
fn two_participants_meet_and_the_first_is_the_initiator() {
    let table = table(participants(2, QUICK));
    assert!(
        table.contains("Runtime (--runtime_type=[ETCD,ASIO])                        : ASIO\n"),
        "{table}"
    );
    assert_eq!(rows(&table).len(), 2);
}

#[test]
fn four_participants_in_pairs_have_a_column_for_all_of_them() {
    let table = table(participants(4, &format!("{QUICK} --num_initiator_dev=2 --num_target_dev=2")));
    assert!(table.contains("Aggregate B/W (GB/Sec)   Network Util (%)    Avg Lat. (us)"), "{table}");
    for row in rows(&table) {
        assert!(row[3] > row[2], "the aggregate is more than rank 0's: {row:?}");
        assert!(row[4].is_nan(), "no line rate is known of shared memory: {row:?}");
    }
}

#[test]
fn eight_participants_of_unequal_sides_move_in_every_scheme() {
    for scheme in ["pairwise", "onetomany", "manytoone", "tp"] {
        let words = format!(
            "{QUICK} --num_initiator_dev=3 --num_target_dev=5 --scheme={scheme} --op_type=READ --total_buffer_size=62914560"
        );
        assert_eq!(rows(&table(participants(8, &words))).len(), 2, "{scheme}");
    }
}

#[test]
fn one_to_many_and_many_to_one_are_what_they_say() {
    let one = table(participants(4, &format!("{QUICK} --scheme=onetomany --num_target_dev=3")));
    assert!(!one.contains("Aggregate"), "{one}");
    let many = table(participants(4, &format!("{QUICK} --scheme=manytoone --num_initiator_dev=3")));
    assert!(many.contains("Aggregate"), "{many}");
}

/// A participant whose stderr has said that all have joined.
struct Joined {
    child: Child,
    stderr: BufReader<ChildStderr>,
}

impl Joined {
    /// Starts ranks 0 and 1, and waits until they have met.
    fn pair(words: &str) -> [Self; 2] {
        let start = |rank: u32| {
            let mut command = Command::new(env!("CARGO_BIN_EXE_kvrail"));
            command.args(words.split_whitespace()).arg(format!("--rank={rank}"));
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
            let mut child = command.spawn().unwrap();
            let stderr = BufReader::new(child.stderr.take().unwrap());
            Self { child, stderr }
        };
        let mut pair = [start(0), start(1)];
        for joined in &mut pair {
            let mut line = String::new();
            while !line.contains("all are here") {
                line.clear();
                assert!(joined.stderr.read_line(&mut line).unwrap() > 0, "it ended before all were there");
            }
        }
        pair
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Its exit code, and what else it said.
    fn end(mut self) -> (Option<i32>, String) {
        let mut talk = String::new();
        self.stderr.read_to_string(&mut talk).unwrap();
        (self.child.wait().unwrap().code(), talk)
    }
}

impl Drop for Joined {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Hours of transfers.
const LONG: &str = "--engine=kvrail --max_block_size=4096 --num_iter=2000000000 --warmup_iter=16 --total_buffer_size=1048576";

#[test]
fn a_killed_participant_ends_the_others_and_the_next_run_works_at_once() {
    let port = free_port();
    let words = format!("nixlbench --runtime_type=ASIO --asio_port={port} --timeout=30s");
    // While engines are made, while they meet, and in the timed part; once the one that hosts the rendezvous, and once the other.
    for (delay_ms, killed) in [(0, 0), (30, 1), (700, 0), (700, 1)] {
        let [zero, one] = Joined::pair(&format!("{words} {LONG}"));
        std::thread::sleep(Duration::from_millis(delay_ms));
        let (mut victim, survivor) = if killed == 0 { (zero, one) } else { (one, zero) };
        victim.kill();
        let began = Instant::now();
        let (code, talk) = survivor.end();
        assert_eq!(code, Some(2), "{talk}");
        assert!(began.elapsed() < Duration::from_secs(10), "{:?}: {talk}", began.elapsed());
        assert!(talk.contains(&format!("rank {killed} (")), "who was lost is named: {talk}");
    }
    let again = format!("{words} {QUICK}");
    table(vec![start(&again), start(&again)]);
}

#[test]
fn participants_that_were_asked_for_different_things_say_what_differs() {
    let port = free_port();
    let words = format!("nixlbench --runtime_type=ASIO --asio_port={port} --timeout=30s {QUICK}");
    let (one, other) =
        (start(&format!("{words} --rank=0")), start(&format!("{words} --rank=1 --op_type=READ")));
    let other = other.end();
    other.exits(2);
    assert!(
        other.stderr.contains("rank 1 was started with --op_type=READ, rank 0 with --op_type=WRITE"),
        "{}",
        other.stderr
    );
    one.end().exits(2);
}

#[test]
fn who_does_not_come_is_named() {
    let port = free_port();
    let run =
        kvrail(&format!("nixlbench --runtime_type=ASIO --asio_port={port} --rank=0 --timeout=1s {QUICK}"));
    run.exits(2);
    assert!(run.stderr.contains("rank 1 of 2 has not joined run default"), "{}", run.stderr);
}

#[test]
fn what_cannot_be_done_is_refused_before_anything_starts() {
    for (words, with) in [
        ("--initiator_seg_type=VRAM", "GPU memory is not supported yet"),
        ("--backend=POSIX", "kvrail nixlbench measures network transfers"),
        ("--worker_type=nvshmem", "nvshmem"),
        ("--start_blok_size=1", "did you mean --start_block_size?"),
        ("--engine=none", "there is no engine `none`"),
    ] {
        let run = kvrail(&format!("nixlbench {words}"));
        run.exits(2);
        assert!(run.stderr.contains(with) && run.stdout.is_empty(), "{words}: {}", run.stderr);
    }
}

#[test]
fn a_file_holds_flags_and_the_result_is_a_document_too() {
    let folder = tempfile::tempdir().unwrap();
    let (config, output) = (folder.path().join("bench.toml"), folder.path().join("run.json"));
    std::fs::write(
        &config,
        "start_block_size = 65536\nmax_block_size = 65536\nnum_iter = 32\nop_type = 'READ'\n",
    )
    .unwrap();
    let run = kvrail(&format!(
        "nixlbench --engine=kvrail --config_file={} --warmup_iter=0 --total_buffer_size=1048576 --format=csv --output={}",
        config.display(),
        output.display()
    ));
    run.exits(0);
    assert_eq!(run.stdout.lines().count(), 2, "a header and a row: {}", run.stdout);
    let document: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(output).unwrap()).unwrap();
    assert_eq!(document["schema"], "kvrail.bench.v1");
    assert_eq!(document["verified"], true);
    assert_eq!(document["results"][0]["op"], "read");
    assert_eq!(document["results"][0]["iterations"], 32);
    assert_eq!(document["results"][0]["latency_us"]["count"], 32);
}

#[test]
fn ranks_come_from_open_mpi() {
    let port = free_port();
    let start = |rank: u32| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kvrail"));
        command.arg("nixlbench").args(QUICK.split_whitespace()).arg("--timeout=30s");
        command.args(["--runtime_type=ASIO", &format!("--asio_port={port}")]);
        command.env("OMPI_COMM_WORLD_RANK", rank.to_string()).env("OMPI_COMM_WORLD_SIZE", "2");
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let (target, initiator) = (start(1), start(0));
    let (target, initiator) = (target.wait_with_output().unwrap(), initiator.wait_with_output().unwrap());
    let talk = String::from_utf8_lossy(&initiator.stderr).into_owned();
    assert!(target.status.success() && initiator.status.success(), "{talk}");
    assert!(
        talk.contains("rank and size from Open MPI") && talk.contains("this is rank 0, initiator"),
        "{talk}"
    );
    assert!(target.stdout.is_empty());
    assert_eq!(rows(&String::from_utf8_lossy(&initiator.stdout)).len(), 2);
}

/// An etcd of this test's own; it ends with it. None, and said by name, where there is none.
struct Etcd {
    child: std::process::Child,
    port: u16,
    _folder: tempfile::TempDir,
}

impl Etcd {
    fn start(test: &str) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let (port, peer) = (free_port(), free_port());
        let client = format!("http://127.0.0.1:{port}");
        let peer = format!("http://127.0.0.1:{peer}");
        let mut command = Command::new("etcd");
        command.arg("--data-dir").arg(folder.path().join("data"));
        command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
        command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
        command.args(["--initial-cluster", &format!("default={peer}"), "--unsafe-no-fsync"]);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let Ok(child) = child else {
            assert!(std::env::var_os("CI").is_none(), "no etcd on PATH (Debian: etcd-server)");
            eprintln!("skipped: {test}: no etcd on PATH (Debian: etcd-server)");
            return None;
        };
        drop(program::connect(port));
        Some(Self { child, port, _folder: folder })
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn participants_meet_at_a_real_etcd_and_a_killed_run_does_not_hurt_the_next() {
    let Some(etcd) = Etcd::start("participants_meet_at_a_real_etcd") else { return };
    let words = format!("nixlbench --etcd_endpoints=http://127.0.0.1:{} --timeout=60s", etcd.port);
    for mut participant in Joined::pair(&format!("{words} {LONG}")) {
        participant.kill();
    }
    // The same group, at once.
    let quick = format!("{words} {QUICK}");
    let table = table(vec![start(&quick), start(&quick)]);
    assert!(table.contains(&format!(
        "ETCD Endpoint                                               : http://127.0.0.1:{}\n",
        etcd.port
    )));
    assert_eq!(rows(&table).len(), 2);
}

#[test]
fn the_real_nixl_moves_the_same_workload() {
    let Some(root) = wheel::nixl("the_real_nixl_moves_the_same_workload") else { return };
    let quick = QUICK.replace("--engine=kvrail", &format!("--engine_library={}", root.display()));
    for words in [
        "--op_type=WRITE",
        "--op_type=READ --num_threads=2 --max_batch_size=2 --recreate_xfer",
        "--reregister_mem",
    ] {
        let run = kvrail(&format!("nixlbench --backend=ucx {quick} {words}"));
        run.exits(0);
        assert!(!rows(&run.stdout).is_empty(), "{}", run.stdout);
    }
}
