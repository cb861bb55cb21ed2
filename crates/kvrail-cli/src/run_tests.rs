//! Flags that agree, flags that do not, and any words at all.

use proptest::prelude::*;

use clap::Parser;

use super::*;
use crate::args::{Cli, Command};

fn resolve(flags: &str) -> Result<Run, Failure> {
    let words = ["kvrail", "bench"].into_iter().chain(flags.split_whitespace());
    match Cli::try_parse_from(words) {
        Ok(Cli { command: Command::Bench(bench) }) => bench.resolve(1),
        Ok(_) => unreachable!("the words say bench"),
        Err(e) => Err(Failure::usage(e.to_string())),
    }
}

#[test]
fn the_command_is_well_formed() {
    use clap::CommandFactory;
    Cli::command().debug_assert();
}

#[test]
fn no_arguments_sweep_both_directions_on_this_host() {
    let run = resolve("").unwrap();
    assert_eq!(run.place, Place::Both);
    assert_eq!(run.cases.len(), 16);
    assert_eq!((run.cases[0].block_bytes, run.cases[7].block_bytes), (4096, 64 << 20));
    assert_eq!((run.cases[0].op, run.cases[8].op), (Op::Write, Op::Read));
    assert!(run.cases.iter().enumerate().all(|(i, c)| c.index == i as u32 && c.verify == Verify::Every));
}

#[test]
fn the_kv_preset_is_the_shape_of_a_paged_cache() {
    let run = resolve("--preset kv --op read --memory private,shared").unwrap();
    assert_eq!(run.cases.len(), 2);
    let case = &run.cases[0];
    assert_eq!((case.block_bytes, case.batch, case.layout), (32 << 10, 12_800, Layout::Scattered));
    assert_eq!(case.pool_bytes / case.block_bytes, 16_384);
}

#[test]
fn an_address_implies_its_role() {
    assert_eq!(resolve("--listen :7").unwrap().place, Place::Target(":7".into()));
    assert_eq!(resolve("--connect a:7").unwrap().place, Place::Initiator("a:7".into()));
    assert_eq!(resolve("--rendezvous a:7").unwrap().place, Place::Auto("a:7".into()));
    assert_eq!(resolve("--role target").unwrap().place, Place::Target(LISTEN.into()));
}

#[test]
fn flags_that_contradict_each_other_are_refused() {
    for flags in [
        "--iterations 5 --duration 1s",
        "--iterations 0",
        "--duration 0",
        "--threads 0",
        "--threads 257",
        "--preset kv --block 4KiB",
        "--role target --connect a:1",
        "--role initiator",
        "--role initiator --connect a:1 --listen b:1",
        "--role auto",
        "--listen a:1 --connect b:1",
        "--role target --op write",
        "--role target --format json",
        "--role target --kind control",
        "--kind control --block 4KiB",
        "--op write,write",
        "--op copy",
        "--transport rdma",
        "--transport tcp --provider efa",
        "--engine kvrail:tcp --provider efa",
        "--engine kvrail:tcp --transport tcp",
        "--engine kvrail,kvrail",
        "--engine nccl",
        "--engine ucx --transport tcp",
        "--engine ucx --progress thread",
        "--engine memcpy --provider tcp",
        "--engine memcpy --kind control",
        "--engine kvrail,ucx --kind control",
        "--backend UCX",
        "--ucx /usr/lib",
        "--role target --engine ucx",
        "--role target --backend UCX",
        "--transport ofi --rails 0",
        "--transport ofi --rails 65",
        "--transport ofi --provider no,way",
        "--transport ofi --affinity near",
        "--block 64KiB..4KiB",
        "--block 4KB",
        "--batch 0",
        "--pool 1MiB --block 1MiB --batch 4",
        "--batch 99999999999 --block 1GiB",
        "--block 1..256 --batch 1..1024*2 --memory shared,private,huge --threads 0",
        "--connect a:1 --inject-corruption 0:0:0",
        "--inject-corruption 0:0",
    ] {
        assert!(resolve(flags).is_err(), "{flags}");
    }
}

#[test]
fn each_side_has_its_own_flags_of_libfabric() {
    let run = resolve("--transport ofi --provider efa --rails 4 --connect a:1").unwrap();
    assert_eq!((run.cases[0].transport, run.ofi.rails), (Transport::Ofi, Some(4)));
    assert_eq!(resolve("--role target --provider efa --devices a,b").unwrap().ofi.devices, ["a", "b"]);
}

#[test]
fn a_flag_acts_on_an_engine_that_is_there() {
    for flags in [
        "--engine kvrail,nixl,ucx,libfabric,memcpy --backend LIBFABRIC --ucx-tls tcp,self --provider tcp",
        "--engine libfabric --provider tcp --rails 2",
        "--engine nixl --progress thread",
        "--engine kvrail:shm,kvrail:tcp,memcpy",
        "--role target --nixl /opt/nixl --ucx /opt/ucx",
    ] {
        assert!(resolve(flags).is_ok(), "{flags}");
    }
}

#[test]
fn a_given_pool_takes_slots_before_it_is_refused() {
    let run = resolve("--block 4KiB --pool 40KiB --op write").unwrap();
    assert_eq!(run.cases[0].slots, 8);
}

proptest! {
    #[test]
    fn no_command_line_panics(words in prop::collection::vec(word(), 0..8)) {
        let words = ["kvrail".to_string(), "bench".into()].into_iter().chain(words);
        if let Ok(Cli { command: Command::Bench(bench) }) = Cli::try_parse_from(words)
            && let Ok(run) = bench.resolve(1)
        {
            prop_assert!(run.cases.iter().all(|c| c.check().is_ok()));
        }
    }
}

fn word() -> impl Strategy<Value = String> {
    let flags = [
        "--role",
        "--listen",
        "--connect",
        "--rendezvous",
        "--timeout",
        "--kind",
        "--preset",
        "--op",
        "--block",
        "--batch",
        "--layout",
        "--pool",
        "--memory",
        "--transport",
        "--engine",
        "--backend",
        "--ucx-tls",
        "--provider",
        "--devices",
        "--rails",
        "--libfabric",
        "--affinity",
        "--threads",
        "--progress",
        "--notify",
        "--iterations",
        "--duration",
        "--warmup",
        "--verify",
        "--seed",
        "--format",
        "--output",
    ];
    let values = [
        "target",
        "auto",
        "kv",
        "write,read",
        "4KiB..64MiB",
        "1..64",
        "scattered",
        "1MiB",
        "private",
        "shm",
        "kvrail,ucx",
        "nixl:UCX,kvrail:tcp",
        "ofi",
        "efa",
        "all",
        "4",
        "inline",
        "1s",
        "0",
        "last",
        "json",
        "x",
        "18446744073709551615",
        "1TiB",
        "127.0.0.1:1",
    ];
    prop_oneof![
        4 => prop::sample::select(flags.to_vec()).prop_map(str::to_string),
        4 => prop::sample::select(values.to_vec()).prop_map(str::to_string),
        1 => "\\PC{0,12}",
    ]
}
