//! `cargo xtask softefa bench`: kvrail over the real efa provider on two emulated nodes; a rail dies in the middle of a
//! transfer and returns, and every byte is right.
//!
//! It prints the command line that it runs, for a person to run alone, and afterwards looks in the report for what the
//! run was to show: a rail that went down, every case verified, and the rail in use again.

use std::ffi::OsString;
use std::fs;
use std::net::TcpListener;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use super::node::{self, Run};
use super::{Bench, Common};

const DEADLINE: Duration = Duration::from_secs(240);
/// What is asked of a single transfer: far more than a dead rail costs.
const TIMEOUT: &str = "60s";

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    common: Common,
    /// Instance type that both nodes look like
    #[arg(long, default_value = "p5")]
    shape: String,
    /// NICs of each node, instead of the shape's
    #[arg(long)]
    nics: Option<u32>,
    /// Provider of libfabric: efa-direct, efa
    #[arg(long, default_value = "efa-direct")]
    provider: String,
    /// The target's NIC that dies
    #[arg(long, default_value_t = 3)]
    nic: u32,
    /// When it dies, counted from when the fabric is up
    #[arg(long, default_value = "8s", value_name = "DURATION")]
    dies: String,
    /// How long it is dead
    #[arg(long, default_value = "5s", value_name = "DURATION")]
    dead_for: String,
    /// Timed seconds of the case; in all up to five times that
    #[arg(long, default_value = "6s", value_name = "DURATION")]
    duration: String,
    /// No rail dies
    #[arg(long)]
    healthy: bool,
}

pub(super) fn run(args: &Args) -> Result<u8, String> {
    let bench = Bench::prepare(&args.common)?;
    fs::create_dir_all(&bench.target).map_err(|error| format!("{}: {error}", bench.target.display()))?;
    let report = bench.target.join(node::name("bench") + ".json");
    let mut command = command(args, &bench, &report.display().to_string())?;
    eprintln!("{}\n", shown(&command));
    let ended = command.status().map_err(|error| format!("kvrail does not start: {error}"))?;
    let seen = fs::read_to_string(&report).ok().and_then(|text| serde_json::from_str::<Value>(&text).ok());
    let _ = fs::remove_file(&report);
    if !ended.success() {
        eprintln!("FAIL: it ended with {ended}");
        return Ok(1);
    }
    let verdict = judge(&seen.unwrap_or(Value::Null), args.healthy);
    eprintln!(
        "\n{}",
        verdict.as_ref().map_or_else(|why| format!("FAIL: {why}"), |what| format!("pass: {what}"))
    );
    eprintln!(
        "On machines with EFA the same needs no emulation:\n  there: kvrail bench --listen 0.0.0.0:7100 --provider {0}\n  here:  \
         kvrail bench --connect THERE:7100 --transport ofi --provider {0}",
        args.provider
    );
    Ok(u8::from(verdict.is_err()))
}

fn command(args: &Args, bench: &Bench, report: &str) -> Result<Command, String> {
    let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
    let address = free.map_err(|error| format!("no port is free: {error}"))?.to_string();
    let fault = format!("rail-down --node 0 --nic {} --in {} --for {}", args.nic, args.dies, args.dead_for);
    let mut run = Run::shaped(bench, &node::name("bench"), &args.shape, &bench.libfabric);
    if let Some(nics) = args.nics {
        run = run.option(&["--nics", &nics.to_string()]);
    }
    if !args.healthy {
        run = run.option(&["--fault", &fault]);
    }
    let kvrail: OsString = bench.kvrail.clone().into();
    let words = |rest: &[&str]| {
        std::iter::once(kvrail.clone()).chain(rest.iter().map(Into::into)).collect::<Vec<_>>()
    };
    let target = words(&["bench", "--listen", &address, "--provider", &args.provider, "--timeout", TIMEOUT]);
    let initiator = words(&[
        "bench",
        "--connect",
        &address,
        "--transport",
        "ofi",
        "--provider",
        &args.provider,
        "--timeout",
        TIMEOUT,
        "--op",
        "write",
        "--block",
        "32KiB",
        "--batch",
        "4096",
        "--layout",
        "scattered",
        "--duration",
        &args.duration,
        "--format",
        "json",
        "--output",
        report,
    ]);
    Ok(run
        .option(&["--deadline", &node::seconds(DEADLINE), "--fail-fast"])
        .on_next_node(target)
        .on_next_node(initiator)
        .command())
}

/// The command line as a shell takes it, an option or a node's command on each line.
fn shown(command: &Command) -> String {
    let quoted = |word: &std::ffi::OsStr| {
        let word = word.to_string_lossy();
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,".contains(c);
        if !word.is_empty() && word.chars().all(plain) { word.into_owned() } else { format!("'{word}'") }
    };
    let mut out = quoted(command.get_program());
    let mut in_command = false;
    for word in command.get_args() {
        let breaks =
            word == "--" || word == "::" || (!in_command && word.to_string_lossy().starts_with("--"));
        in_command |= word == "--";
        out += if breaks { " \\\n    " } else { " " };
        out += &quoted(word);
    }
    out
}

/// What the report shows, or what it lacks.
fn judge(report: &Value, healthy: bool) -> Result<String, String> {
    if report["verified"] != true {
        return Err("not every byte was verified".into());
    }
    let row = &report["results"][0];
    let rails = row["rails"].as_array().map_or(0, Vec::len);
    let what = format!(
        "{rails} rails, {} transfers, {:.1} GB verified",
        row["iterations"],
        row["bytes"].as_f64().unwrap_or_default() / 1e9
    );
    if healthy {
        return Ok(what);
    }
    let empty = Vec::new();
    let events = row["rail_events"].as_array().unwrap_or(&empty);
    let at =
        |up: bool| events.iter().find(|event| event["up"] == up).and_then(|event| event["at_s"].as_f64());
    let down = at(false).ok_or("no rail went down while the case ran: make it longer with --duration")?;
    let up = at(true).ok_or("the rail did not return while the case ran: make it longer with --duration")?;
    let used = row["rails"].as_array().unwrap_or(&empty).iter();
    let used: u64 = used.filter_map(|rail| rail["bytes_since_return"].as_u64()).sum();
    if used == 0 {
        return Err("the rail returned and was not used again".into());
    }
    Ok(format!(
        "{what}; a rail went down at {down:.1} s, was up again at {up:.1} s and has carried {:.1} MB since",
        used as f64 / 1e6
    ))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_command_line_can_be_pasted() {
        let mut command = Command::new("kvrail");
        command.args([
            "softefa",
            "run",
            "--fault",
            "rail-down --nic 3",
            "--",
            "kvrail",
            "bench",
            "--rails",
            "2",
        ]);
        command.args(["::", "true"]);
        assert_eq!(
            shown(&command),
            "kvrail softefa run \\\n     --fault 'rail-down --nic 3' \\\n     -- kvrail bench --rails 2 \\\n     :: true"
                .replace("\n     ", "\n    ")
        );
    }

    #[test]
    fn a_run_passes_only_with_a_rail_that_died_and_was_used_again() {
        let report = |events: Value, since: Value| {
            json!({"verified": true, "results": [{"iterations": 3, "bytes": 3e9, "rail_events": events,
                "rails": [{"bytes_since_return": since}]}]})
        };
        let both = json!([{"up": false, "at_s": 4.0}, {"up": true, "at_s": 9.0}]);
        assert!(judge(&report(both.clone(), json!(5_000_000)), false).unwrap().contains("at 9.0 s"));
        assert!(judge(&report(both, json!(0)), false).is_err());
        assert!(judge(&report(json!([{"up": false, "at_s": 4.0}]), Value::Null), false).is_err());
        assert!(judge(&report(json!([]), Value::Null), false).is_err());
        assert!(judge(&report(json!([]), Value::Null), true).is_ok());
        assert!(judge(&json!({"verified": false}), true).is_err());
    }
}
