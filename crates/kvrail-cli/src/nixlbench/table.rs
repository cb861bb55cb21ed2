//! The configuration as nixlbench echoes it, to the byte, and which of its two tables a run gets.
//!
//! Parsers of nixlbench's output look for these labels. The table itself is [`kvrail_report::nixlbench_table`]. Where several initiators take
//! part in another scheme than pairwise, there is one row for all of them, in the wide form, instead of one on each process's stdout.

use std::fmt::Write as _;

use super::flags::Flags;
use super::plan::{Mode, Plan, Scheme};
use super::settings::{Runtime, Settings};

const SEPARATOR_COLUMNS: usize = 160;
const OPTION_COLUMNS: usize = 60;

/// Whether there are columns for all initiators together.
pub(crate) fn is_wide(plan: &Plan) -> bool {
    let shape = plan.shape();
    shape.mode == Mode::Single
        && (plan.initiators() > 1 || (shape.scheme == Scheme::Pairwise && plan.participants() > 2))
}

/// The configuration, with the blank line after it.
pub(crate) fn configuration(settings: &Settings) -> String {
    let flags = &settings.flags;
    let mut out = String::new();
    let stars = "*".repeat(SEPARATOR_COLUMNS);
    let _ = writeln!(out, "{stars}\nNIXLBench Configuration\n{stars}");
    for (label, value) in options(flags, settings.runtime) {
        let _ = writeln!(out, "{label:<OPTION_COLUMNS$}: {value}");
    }
    let _ = writeln!(out, "{}\n", "-".repeat(SEPARATOR_COLUMNS));
    out
}

fn options(flags: &Flags, runtime: Runtime) -> Vec<(&'static str, String)> {
    let bit = |flag: bool| u8::from(flag).to_string();
    let mut options = vec![("Runtime (--runtime_type=[ETCD,ASIO])", flags.runtime_type.clone())];
    match runtime {
        // Credentials in the address are nobody's business.
        Runtime::Etcd => options.push(("ETCD Endpoint ", without_credentials(&flags.etcd_endpoints))),
        Runtime::Embedded => options.extend([
            ("ASIO Address (--asio_address) ", flags.asio_address.clone()),
            ("ASIO Port (--asio_port) ", flags.asio_port.to_string()),
        ]),
    }
    options.extend([
        ("Worker type (--worker_type=[nixl,nvshmem])", flags.worker_type.clone()),
        ("Backend (--backend=[UCX,GDS,GDS_MT,POSIX,Mooncake,HF3FS,OBJ,AZURE_BLOB])", flags.backend.clone()),
        ("Enable pt (--enable_pt=[0,1])", bit(flags.enable_pt)),
        ("Progress threads (--progress_threads=N)", flags.progress_threads.to_string()),
        ("Device list (--device_list=dev1,dev2,...)", flags.device_list.clone()),
        ("Enable VMM (--enable_vmm=[0,1])", bit(flags.enable_vmm)),
        ("Recreate xfer each iteration (--recreate_xfer=[0,1])", bit(flags.recreate_xfer)),
        ("Re-register memory each iteration (--reregister_mem=[0,1])", bit(flags.reregister_mem)),
        ("Prepared xfer (prep+make) (--prepared_xfer=[0,1])", bit(flags.prepared_xfer)),
        ("Pipeline depth (--pipeline_depth=N)", flags.pipeline_depth.to_string()),
        ("Use hugepages (--use_hugepages=[0,1])", bit(flags.use_hugepages)),
        ("Initiator seg type (--initiator_seg_type=[DRAM,VRAM])", flags.initiator_seg_type.clone()),
        ("Target seg type (--target_seg_type=[DRAM,VRAM])", flags.target_seg_type.clone()),
        ("Scheme (--scheme=[pairwise,manytoone,onetomany,tp])", flags.scheme.clone()),
        ("Mode (--mode=[SG,MG])", flags.mode.clone()),
        ("Op type (--op_type=[READ,WRITE])", flags.op_type.clone()),
        ("Check consistency (--check_consistency=[0,1])", bit(flags.check_consistency)),
        ("Total buffer size (--total_buffer_size=N)", flags.total_buffer_size.to_string()),
        ("Num initiator dev (--num_initiator_dev=N)", flags.num_initiator_dev.to_string()),
        ("Num target dev (--num_target_dev=N)", flags.num_target_dev.to_string()),
        ("Start block size (--start_block_size=N)", flags.start_block_size.to_string()),
        ("Max block size (--max_block_size=N)", flags.max_block_size.to_string()),
        ("Start batch size (--start_batch_size=N)", flags.start_batch_size.to_string()),
        ("Max batch size (--max_batch_size=N)", flags.max_batch_size.to_string()),
        ("Num iter (--num_iter=N)", flags.num_iter.to_string()),
        ("Warmup iter (--warmup_iter=N)", flags.warmup_iter.to_string()),
        ("Large block iter factor (--large_blk_iter_ftr=N)", flags.large_blk_iter_ftr.to_string()),
        ("Num threads (--num_threads=N)", flags.num_threads.to_string()),
        ("Use Device API (--use_device_api=[0,1])", bit(flags.use_device_api)),
    ]);
    options
}

/// Addresses, each without what stands before an `@`.
pub(crate) fn without_credentials(endpoints: &str) -> String {
    let hide = |endpoint: &str| match (endpoint.find("://"), endpoint.rfind('@')) {
        (Some(scheme), Some(at)) if scheme + 3 <= at => {
            format!("{}{}", &endpoint[..scheme + 3], &endpoint[at + 1..])
        }
        (None, Some(at)) => endpoint[at + 1..].to_owned(),
        _ => endpoint.to_owned(),
    };
    endpoints.split(',').map(hide).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
#[path = "table_tests.rs"]
mod tests;
