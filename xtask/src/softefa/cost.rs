//! `cargo xtask softefa cost`: what a descriptor costs of kvrail's own code on the caller's core.
//!
//! `drive cost` moves very many small blocks, one descriptor each, with progress made by the caller, in one function. Under
//! valgrind's callgrind, which is told to count in that function alone, instructions are summed by shared object: kvrail and
//! all it is made of is the program itself; libfabric, the provider and the device are libraries. libc's share that kvrail
//! calls itself (memory, locks) is kvrail's as well.
//!
//! Instructions become nanoseconds by callgrind's own estimate of cycles: one an instruction, 10 a mispredicted branch or a miss
//! of the first cache, 100 a miss of the last; and by the processor's clock. A real core retires several instructions a cycle,
//! so the estimate is an upper bound in all but name.
//!
//! Where `perf` is there, the same program also runs at full speed, sampled by the clock (`cpu-clock`, which needs no
//! counters of the processor's): CPU time in the program's own code, polls for completions that are not there yet included.
//! That is the figure that is held against the bound; without `perf` it is the estimate.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use super::callgrind::Profile;
use super::compare::Op;
use super::engines::meeting_place;
use super::{Bench, Common, node};
use crate::compare::report;
use crate::process;

const NS_MAX: f64 = 200.0;
const DEADLINE: Duration = Duration::from_secs(600);
/// The function that `drive cost` measures, as callgrind matches names.
const FUNCTION: &str = "drive::cost::timed_transfers*";
/// Of the clock that samples.
const SAMPLE_NS: u64 = 250_000;
const BRANCH_CYCLES: u64 = 10;
const FIRST_MISS_CYCLES: u64 = 10;
const LAST_MISS_CYCLES: u64 = 100;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    common: Common,
    /// Provider of libfabric: tcp, shm; efa and efa-direct run on two emulated nodes
    #[arg(long, default_value = "tcp")]
    provider: String,
    /// Rails
    #[arg(long, default_value_t = 1)]
    rails: u32,
    /// read, write
    #[arg(long, value_enum, value_delimiter = ',', default_values = ["read", "write"])]
    op: Vec<Op>,
    /// Bytes of a block
    #[arg(long, default_value_t = 4096)]
    block: u32,
    /// Blocks of a transfer
    #[arg(long, default_value_t = 12_800)]
    blocks: u32,
    /// Transfers that are counted
    #[arg(long, default_value_t = 5)]
    transfers: u32,
    /// kvrail's transport, to see what the engine costs without libfabric
    #[arg(long, default_value = "ofi")]
    transport: String,
    /// Functions of kvrail's that are named on stderr, most instructions first
    #[arg(long, default_value_t = 10)]
    functions: usize,
}

/// Per descriptor.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Cost {
    instructions: f64,
    cycles: f64,
}

pub(super) fn run(args: &Args) -> Result<u8, String> {
    let bench = Bench::prepare(&args.common)?;
    let drive = super::build("kvrail-benchsuite", "drive")?;
    fs::create_dir_all(&bench.target).map_err(|error| format!("{}: {error}", bench.target.display()))?;
    let ghz = clock_ghz()?;
    println!("# What a descriptor costs of kvrail's own code\n\n- {}", report::machine());
    println!(
        "- {} on {}, {} rails, {} transfers of {} x {} bytes; estimated cycles at {ghz:.2} GHz; sampled: CPU time in kvrail's \
         code at full speed, polls included\n",
        args.transport, args.provider, args.rails, args.transfers, args.blocks, args.block
    );
    println!(
        "| op | kvrail, instructions | in libc for kvrail | estimated, ns | sampled, ns | required | | everything, instructions |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    let mut code = 0;
    for op in args.op.iter().map(|op| op.name()) {
        let (profile, descriptors) = count(args, &bench, &drive, op)?;
        let (own, libc) = costs(&profile, &drive, descriptors);
        let per = |instructions: u64| instructions as f64 / descriptors as f64;
        let estimated = (own.cycles + libc.cycles) / ghz;
        let sampled =
            sample(args, &bench, &drive, op).map_err(|why| eprintln!("skipped: sampling by perf: {why}"));
        let missed = sampled.unwrap_or(estimated) > NS_MAX;
        code = code.max(u8::from(missed));
        println!(
            "| {op} | {:.0} | {:.0} | {estimated:.0} | {} | ≤ {NS_MAX:.0} | {} | {:.0} |",
            own.instructions,
            libc.instructions,
            sampled.map_or_else(|()| "–".into(), |ns| format!("{ns:.0}")),
            if missed { "**missed**" } else { "met" },
            per(profile.own(|_| true, "Ir")),
        );
        for (object, instructions) in profile.objects().into_iter().take(5) {
            eprintln!("{op}: {:8.1} instructions a descriptor in {object}", per(instructions));
        }
        for (function, instructions) in profile.functions(is_of(&drive)).into_iter().take(args.functions) {
            eprintln!("{op}: {:8.1} of kvrail's in {function}", per(instructions));
        }
    }
    Ok(code)
}

/// Whether an object is the program.
fn is_of(drive: &Path) -> impl Fn(&str) -> bool {
    move |path| Path::new(path).file_name() == drive.file_name()
}

/// Of the program itself, and of libc on its behalf.
fn costs(profile: &Profile, drive: &Path, descriptors: u64) -> (Cost, Cost) {
    let is_libc = |path: &str| {
        let name = Path::new(path).file_name().and_then(|name| name.to_str()).unwrap_or_default();
        ["libc.so", "libc-", "libm.so", "libpthread", "libgcc_s", "ld-linux"]
            .iter()
            .any(|part| name.starts_with(part))
    };
    let per = |of: &dyn Fn(&str) -> u64| {
        let misses = |names: &[&str]| names.iter().map(|name| of(name)).sum::<u64>();
        let cycles = of("Ir")
            + BRANCH_CYCLES * misses(&["Bcm", "Bim"])
            + FIRST_MISS_CYCLES * misses(&["I1mr", "D1mr", "D1mw"])
            + LAST_MISS_CYCLES * misses(&["ILmr", "DLmr", "DLmw"]);
        let per = |figure: u64| figure as f64 / descriptors as f64;
        Cost { instructions: per(of("Ir")), cycles: per(cycles) }
    };
    (
        per(&|event| profile.own(is_of(drive), event)),
        per(&|event| profile.calls(is_of(drive), is_libc, event)),
    )
}

/// Runs the driver under callgrind; what it counted, and of how many descriptors.
fn count(args: &Args, bench: &Bench, drive: &Path, op: &str) -> Result<(Profile, u64), String> {
    let out = bench.target.join(node::name("callgrind"));
    let mut valgrind = Command::new("valgrind");
    valgrind.args(["--tool=callgrind", "--cache-sim=yes", "--branch-sim=yes", "--quiet"]);
    valgrind.args(["--collect-atstart=no", "--compress-pos=no", &format!("--toggle-collect={FUNCTION}")]);
    valgrind.arg(format!("--callgrind-out-file={}", out.display()));
    let row = drive_under(args, bench, drive, op, args.transfers, valgrind)?;
    let text = fs::read_to_string(&out).map_err(|error| format!("{}: {error}", out.display()))?;
    let _ = fs::remove_file(&out);
    let descriptors = row.get("descriptors").and_then(Value::as_u64).filter(|&count| count > 0);
    Ok((Profile::read(&text)?, descriptors.ok_or("the driver moved no descriptor")?))
}

/// Runs the driver at full speed under perf; nanoseconds a descriptor in its own code.
fn sample(args: &Args, bench: &Bench, drive: &Path, op: &str) -> Result<f64, String> {
    /// So long that what comes before and after the transfers does not show.
    const TIMES: u32 = 40;
    let out: PathBuf = bench.target.join(node::name("perf"));
    let mut perf = Command::new("perf");
    perf.args(["record", "--quiet", "-e", "cpu-clock:u", "-c", &SAMPLE_NS.to_string(), "-o"]);
    perf.arg(&out).arg("--");
    let row = drive_under(args, bench, drive, op, args.transfers * TIMES, perf)?;
    let mut told = Command::new("perf");
    told.args(["script", "-F", "ip,sym,dso", "-i"]).arg(&out);
    let told = process::run(&mut told, DEADLINE)?;
    let _ = fs::remove_file(&out);
    if !told.status.success() {
        return Err(told.last_words());
    }
    let descriptors = row.get("descriptors").and_then(Value::as_f64).unwrap_or(f64::NAN);
    Ok(own_samples(&told.stdout, drive) as f64 * SAMPLE_NS as f64 / descriptors)
}

/// Samples in the program's own code: `perf script` puts each on a line that ends in the object, in brackets.
fn own_samples(script: &str, drive: &Path) -> usize {
    let name = drive.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let end = format!("/{name})");
    script.lines().filter(|line| line.trim_end().ends_with(&end)).count()
}

/// Runs both sides, the initiator under another program; what it printed.
fn drive_under(
    args: &Args,
    bench: &Bench,
    drive: &Path,
    op: &str,
    transfers: u32,
    mut under: Command,
) -> Result<Value, String> {
    let meet = meeting_place()?;
    let (block, blocks) = (args.block.to_string(), args.blocks.to_string());
    let shape = ["--meet", &meet, "--block", &block, "--blocks", &blocks];
    let transfers = transfers.to_string();
    let initiator = under.arg(drive).arg("cost").args(shape).args(["--op", op, "--transfers", &transfers]);
    let mut target = Command::new(drive);
    target.arg("target").args(shape);
    let stdout =
        if args.provider.starts_with("efa") {
            let deadline = node::seconds(DEADLINE);
            let run = super::node::Run::new(bench, &node::name("cost"), args.rails, &bench.libfabric)
                .option(&["--deadline", &deadline, "--instant"]);
            let run = node::on_ofi(run, &args.provider, args.rails);
            let finished = process::run(&mut run.on_two_nodes(initiator, &target), DEADLINE + node::AROUND)?;
            if !finished.status.success() {
                return Err(format!("it ended with {}: {}", finished.status, node::words(&finished.stderr)));
            }
            super::engines::json_of_node0(&finished.stdout)
        } else {
            let environment = [
                ("KVRAIL_TRANSPORT", args.transport.clone()),
                ("KVRAIL_OFI_PROVIDER", args.provider.clone()),
                ("KVRAIL_OFI_RAILS", args.rails.to_string()),
                ("KVRAIL_LIBFABRIC", bench.libfabric.display().to_string()),
            ];
            let target = target.envs(environment.clone()).stdin(Stdio::null()).stdout(Stdio::null()).spawn();
            let _target =
                Ends(target.map_err(|error| format!("{} does not start: {error}", drive.display()))?);
            let finished = process::run(initiator.envs(environment), DEADLINE)?;
            if !finished.status.success() {
                return Err(format!("it ended with {}: {}", finished.status, node::words(&finished.stderr)));
            }
            finished.stdout
        };
    let row: Value = serde_json::from_str(stdout.trim()).map_err(|error| format!("no JSON: {error}"))?;
    match row.get("verified").and_then(Value::as_bool) {
        Some(true) => Ok(row),
        _ => Err("the driver does not say that its bytes were verified".into()),
    }
}

/// Ends a program that was left.
struct Ends(Child);

impl Drop for Ends {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Of the first processor, as the kernel tells it.
fn clock_ghz() -> Result<f64, String> {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = info.lines().find_map(|line| line.strip_prefix("cpu MHz"));
    let mhz = line.and_then(|line| line.split_once(':')).and_then(|(_, mhz)| mhz.trim().parse::<f64>().ok());
    mhz.map(|mhz| mhz / 1e3).ok_or_else(|| "/proc/cpuinfo does not tell the processor's clock".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cycles_add_what_misses_cost_and_libc_counts_where_kvrail_calls_it() {
        let file = "events: Ir Bcm Bim I1mr ILmr D1mr DLmr D1mw DLmw\n\
                    ob=(1) /target/release/drive\n1 1000 2 1 0 0 3 1\n\
                    cob=(2) /lib/libc.so.6\ncalls=1 0\n2 50\n\
                    cob=(3) /lib/libfabric.so.1\ncalls=1 0\n2 9000\n\
                    ob=(2)\n5 80\nob=(3)\n5 8970\n";
        let profile = Profile::read(file).unwrap();
        let (own, libc) = costs(&profile, Path::new("/elsewhere/drive"), 10);
        assert_eq!(own, Cost { instructions: 100.0, cycles: (1000 + 30 + 30 + 100) as f64 / 10.0 });
        assert_eq!(libc, Cost { instructions: 5.0, cycles: 5.0 });
    }

    #[test]
    fn a_sample_is_the_program_s_when_its_object_is() {
        let script = " 55d0 kvrail::plan (/t/release/drive)\n 7f00 fi_cq_read (/t/libfabric.so.1)\n 1 [unknown] ([unknown])\n";
        assert_eq!(own_samples(script, Path::new("/t/release/drive")), 1);
    }
}
