//! nixlbench's output, to the byte: the configuration as it echoes it, the header and the rows.
//!
//! Parsers of nixlbench's output look for these labels and split these columns, so that widths, precision and trailing blanks are as
//! there. Two things are different on purpose. The utilisation is of the line rate of the rails really used, not of an assumed
//! 50 GB/s, and `nan` where no line rate is known. And where several initiators take part in another scheme than pairwise, there is one
//! row for all of them, in the wide form, instead of one on each process's stdout.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use super::flags::Flags;
use super::plan::{Mode, Plan, Scheme};
use super::settings::{Runtime, Settings};

const SEPARATOR_COLUMNS: usize = 160;
const OPTION_COLUMNS: usize = 60;

/// One size's figures, as the columns name them.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Line {
    pub(crate) block_bytes: u64,
    pub(crate) batch: u64,
    /// Of rank 0, 10^9 bytes per second.
    pub(crate) bandwidth_gbps: f64,
    /// Of all initiators, 10^9 bytes per second.
    pub(crate) aggregate_gbps: f64,
    /// Of the aggregate in the line rate of the rails used; none when that is unknown.
    pub(crate) utilisation_percent: Option<f64>,
    /// Time per block of rank 0, µs.
    pub(crate) latency_us: f64,
    pub(crate) prepare_us: Pair,
    pub(crate) post_us: Pair,
    pub(crate) transfer_us: Pair,
}

/// What two columns say of one step of a transfer.
#[derive(Clone, Copy, PartialEq, Default, Debug, Serialize, Deserialize)]
pub(crate) struct Pair {
    pub(crate) mean: f64,
    pub(crate) p99: f64,
}

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
        (Some(scheme), Some(at)) if scheme + 3 <= at => format!("{}{}", &endpoint[..scheme + 3], &endpoint[at + 1..]),
        (None, Some(at)) => endpoint[at + 1..].to_owned(),
        _ => endpoint.to_owned(),
    };
    endpoints.split(',').map(hide).collect::<Vec<_>>().join(",")
}

const NARROW: [(&str, usize); 10] = [
    ("Block Size (B)", 20),
    ("Batch Size", 15),
    ("B/W (GB/Sec)", 15),
    ("Avg Lat. (us)", 15),
    ("Avg Prep (us)", 15),
    ("P99 Prep (us)", 15),
    ("Avg Post (us)", 15),
    ("P99 Post (us)", 15),
    ("Avg Tx (us)", 15),
    ("P99 Tx (us)", 15),
];

/// Between bandwidth and latency.
const WIDE: [(&str, usize); 2] = [("Aggregate B/W (GB/Sec)", 25), ("Network Util (%)", 20)];

/// Columns before those of the wide form.
const LEAD: usize = 3;

fn columns(wide: bool) -> impl Iterator<Item = (&'static str, usize)> {
    let between: &[_] = if wide { &WIDE } else { &[] };
    NARROW[..LEAD].iter().chain(between).chain(&NARROW[LEAD..]).copied()
}

/// The two lines above the rows.
pub(crate) fn header(wide: bool) -> String {
    let mut out = String::new();
    for (label, width) in columns(wide) {
        let _ = write!(out, "{label:<width$}");
    }
    let _ = writeln!(out, "\n{}", "-".repeat(SEPARATOR_COLUMNS));
    out
}

impl Line {
    /// The row.
    pub(crate) fn row(&self, wide: bool) -> String {
        let rate = |value: f64| format!("{value:.6}");
        let time = |value: f64| format!("{value:.1}");
        let mut cells =
            vec![self.block_bytes.to_string(), self.batch.to_string(), rate(self.bandwidth_gbps)];
        if wide {
            let percent = self.utilisation_percent.map_or_else(|| "nan".into(), rate);
            cells.extend([rate(self.aggregate_gbps), percent]);
        }
        cells.push(time(self.latency_us));
        for pair in [self.prepare_us, self.post_us, self.transfer_us] {
            cells.extend([time(pair.mean), time(pair.p99)]);
        }
        let mut out = String::new();
        for (cell, (_, width)) in cells.iter().zip(columns(wide)) {
            let _ = write!(out, "{cell:<width$}");
        }
        out.push('\n');
        out
    }
}

#[cfg(test)]
#[path = "table_tests.rs"]
mod tests;
