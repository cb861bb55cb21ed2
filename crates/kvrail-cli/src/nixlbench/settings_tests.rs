use crate::nixlbench::parse::{Request, request};

use super::*;

fn settings(words: &[&str]) -> Result<Settings, String> {
    let words: Vec<_> = words.iter().map(|word| (*word).to_owned()).collect();
    let Ok(Request::Run(given)) = request(&words) else { panic!("{words:?}") };
    Settings::new(&given).map_err(|e| e.to_string())
}

fn refused(words: &[&str], with: &str) {
    let error = settings(words).expect_err("refused");
    assert!(error.contains(with), "{words:?}: {error}");
}

#[test]
fn without_flags_it_is_what_nixlbench_runs() {
    let settings = settings(&[]).unwrap();
    assert_eq!(settings.direction, Direction::Write);
    assert_eq!((settings.flags.num_iter, settings.flags.warmup_iter), (1008, 112));
    assert_eq!(settings.sweep.sizes().len(), 15);
    assert_eq!(settings.flags.etcd_endpoints, "http://localhost:2379");
    assert_eq!((settings.plan.participants(), settings.run_id()), (2, None));
    assert!(!settings.names_a_rendezvous);
    assert_eq!(settings.notes.len(), 2);
}

#[test]
fn what_needs_a_gpu_is_refused_by_name() {
    refused(&["--initiator_seg_type=VRAM"], "--initiator_seg_type=VRAM: GPU memory is not supported yet");
    refused(&["--target_seg_type=vram"], "GPU memory");
    refused(&["--worker_type=nvshmem"], "nvshmem");
    refused(&["--enable_vmm"], "--enable_vmm");
    refused(&["--use_device_api"], "--use_device_api");
    refused(&["--backend=GPUNETIO"], "GPU memory");
}

#[test]
fn storage_is_refused_and_its_flags_are_noted() {
    for backend in ["GDS", "gds_mt", "POSIX", "OBJ", "AZURE_BLOB", "GUSLI", "HF3FS", "INFINIA"] {
        refused(&[&format!("--backend={backend}")], "kvrail nixlbench measures network transfers");
    }
    let settings = settings(&["--num_files=2", "--gpunetio_oob_list=x"]).unwrap();
    assert!(settings.notes.iter().any(|note| note.contains("--num_files has no effect")));
    assert!(settings.notes.iter().any(|note| note.contains("--gpunetio_oob_list has no effect")));
}

#[test]
fn words_count_in_any_case_and_unknown_ones_are_listed_against() {
    let settings = settings(&["--op_type=read", "--scheme=OneToMany", "--mode=sg", "--backend=ucx"]).unwrap();
    let flags = &settings.flags;
    assert_eq!(
        (&*flags.op_type, &*flags.scheme, &*flags.mode, &*flags.backend),
        ("READ", "onetomany", "SG", "UCX")
    );
    refused(&["--op_type=SWAP"], "none of READ, WRITE");
    refused(&["--scheme=ring"], "none of pairwise, onetomany, manytoone, tp");
    refused(&["--mode=XG"], "none of SG, MG");
    refused(&["--runtime_type=MPI"], "none of ETCD, ASIO");
}

#[test]
fn a_backend_must_be_one_that_the_engine_answers_to() {
    for (engine, backend) in [
        ("kvrail", "UCX"),
        ("kvrail", "libfabric"),
        ("ucx", "UCX"),
        ("libfabric", "LIBFABRIC"),
        ("nixl", "UCCL"),
    ] {
        assert!(settings(&[&format!("--engine={engine}"), &format!("--backend={backend}")]).is_ok());
    }
    assert!(settings(&["--engine=libfabric"]).is_ok());
    refused(
        &["--engine=ucx", "--backend=LIBFABRIC"],
        "--engine ucx answers to --backend UCX, not to LIBFABRIC",
    );
    refused(&["--engine=libfabric", "--backend=UCX"], "LIBFABRIC");
    refused(&["--engine=kvrail", "--backend=Mooncake"], "UCX and LIBFABRIC");
}

#[test]
fn counts_are_at_least_one_and_bounded() {
    for flag in ["num_initiator_dev", "num_target_dev", "num_threads", "pipeline_depth"] {
        for value in ["0", "-1", "2000000000"] {
            refused(&[&format!("--{flag}={value}")], &format!("--{flag}={value} is not from 1 to "));
        }
    }
    refused(&["--num_iter=0"], "at least 1");
    refused(&["--num_iter=2147483647"], "too large");
    refused(&["--warmup_iter=-1"], "at least 0");
    refused(&["--large_blk_iter_ftr=0"], "at least 1");
    refused(&["--start_block_size=0"], "at least 1");
    refused(&["--start_batch_size=4", "--max_batch_size=2"], "nothing to measure");
    refused(&["--max_batch_size=99999999999"], "above");
}

#[test]
fn iterations_are_split_over_threads_and_rounded_up() {
    let settings =
        settings(&["--num_threads=3", "--num_iter=100", "--warmup_iter=0", "--total_buffer_size=3221225472"]);
    let settings = settings.unwrap();
    assert_eq!((settings.flags.num_iter, settings.flags.warmup_iter), (144, 0));
    assert_eq!(settings.sweep.turns(4096).timed, 48);
    assert_eq!(settings.sweep.turns(2 << 20).timed, 3);
}

#[test]
fn buffers_must_be_divisible_and_large_enough() {
    refused(&["--num_threads=3"], "the next one is 8589934593");
    refused(&["--total_buffer_size=1048576"], "do not fit into --total_buffer_size / --num_initiator_dev");
    refused(&["--max_block_size=18446744073709551615", "--max_batch_size=2"], "do not fit");
    // Each pair fits into what its side has, but not into what its thread has of it.
    refused(
        &["--num_threads=64", "--num_initiator_dev=8", "--num_target_dev=8"],
        "a block of 64 MiB does not fit between initiator device 0 and target device 0",
    );
    let rounded = settings(&["--use_hugepages", "--total_buffer_size=134217729"]).unwrap();
    assert_eq!(rounded.flags.total_buffer_size, 136_314_880);
}

#[test]
fn blocks_that_share_memory_are_said() {
    let settings =
        settings(&["--pipeline_depth=4", "--total_buffer_size=134217728", "--max_block_size=67108864"])
            .unwrap();
    assert!(
        settings.notes.iter().any(|note| note.contains("lie in the same memory")),
        "{:?}",
        settings.notes
    );
}

#[test]
fn reregistering_recreates_and_excludes_prepared() {
    let settings = settings(&["--reregister_mem"]).unwrap();
    assert!(settings.flags.recreate_xfer);
    refused(&["--reregister_mem", "--prepared_xfer"], "exclude each other");
}

#[test]
fn devices_are_one_for_each_pair() {
    let settings =
        settings(&["--device_list=mlx5_0,mlx5_1", "--num_initiator_dev=2", "--num_target_dev=2"]).unwrap();
    assert_eq!(settings.devices, Some(vec!["mlx5_0".into(), "mlx5_1".into()]));
    refused(&["--device_list=a,b"], "2 names for 1 initiator and 1 target");
    refused(&["--device_list=a,,b"], "empty name");
    refused(&["--device_list=a", "--scheme=tp"], "no pairs");
}

#[test]
fn the_world_has_as_many_members_as_devices() {
    assert!(settings(&["--world_size=2", "--rank=1"]).unwrap().names_a_rendezvous);
    refused(&["--world_size=3"], "are 2 participants");
    refused(&["--rank=2"], "end at 1");
    assert!(settings(&["--mode=MG", "--num_initiator_dev=4", "--world_size=2"]).is_ok());
}

#[test]
fn flags_of_the_other_rendezvous_are_noted() {
    let settings = settings(&["--runtime_type=asio", "--etcd_endpoints=http://x:1"]).unwrap();
    assert_eq!(settings.runtime, Runtime::Embedded);
    assert!(settings.notes.iter().any(|n| n == "--etcd_endpoints has no effect without --runtime_type=ETCD"));
}
