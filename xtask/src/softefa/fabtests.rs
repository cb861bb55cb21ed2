//! `cargo xtask softefa fabtests`: libfabric's own tests between two emulated nodes.
//!
//! They are not packaged. Their source is in Debian's source package of libfabric, which apt fetches with a list of
//! its own, and is built once (it needs autoconf, automake, libtool and make).

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::node::{self, Run};
use super::{Bench, Common, Tally};
use crate::{process, venv};

const DEADLINE: Duration = Duration::from_secs(60);
const BUILD_DEADLINE: Duration = Duration::from_secs(1200);
/// The release whose source holds fabtests as well: Debian 13 has libfabric 2.1.
const RELEASE: &str = "trixie";
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// Written last, so that an interrupted build is not taken for a whole one.
const WHOLE: &str = ".whole";

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    common: Common,
    /// A directory with built fabtests, instead of those from Debian's source
    #[arg(long)]
    fabtests: Option<PathBuf>,
    /// Only tests whose line contains one of these
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Name the tests and end
    #[arg(long)]
    list: bool,
}

/// Tests with a server and a client. `-v` verifies the data. `fi_rma_pingpong -o write` is not among them: it takes the
/// last byte of a write for the whole of it, which an unordered device does not promise (it fails here, as it should).
const PAIRS: &[&str] = &[
    "fi_rdm",
    "fi_rdm_pingpong -I 100 -v",
    "fi_rdm_bw -I 100 -v",
    "fi_rdm_tagged_pingpong -I 100 -v",
    "fi_rdm_tagged_bw -I 100 -v",
    "fi_rdm_tagged_peek",
    "fi_rma_pingpong -o writedata -I 100 -v",
    "fi_rma_bw -o write -I 100 -v",
    "fi_rma_bw -o writedata -I 100 -v",
    "fi_rma_bw -o read -I 100 -v",
    "fi_rdm_atomic -I 10",
    "fi_unexpected_msg -I 10 -v",
    "fi_multi_recv",
    "fi_cq_data",
    "fi_inject_test -A inject",
    "fi_recv_cancel",
    "fi_flood",
    "fi_rdm_multi_client",
    "fi_multi_ep",
    "fi_efa_rnr_queue_resend",
    "fi_efa_rdm_remote_exit_early",
];
/// Tests of one process. `-p efa` is theirs too, but for the provider's own.
const ALONE: &[&str] = &[
    "fi_getinfo_test -p efa",
    "fi_dom_test -p efa",
    "fi_mr_test -p efa",
    "fi_cq_test -p efa",
    "fi_eq_test -p efa",
    "fi_cntr_test -p efa",
    "fi_setopt_test -p efa",
    "fi_mr_cache_evict -p efa",
    "fi_av_test -p efa -g 1.2.3.4 -n 1",
    "fi_efa_info_test",
];

pub(super) fn run(args: &Args) -> Result<u8, String> {
    let wanted =
        |line: &str| args.only.is_empty() || args.only.iter().any(|part| line.contains(part.as_str()));
    let pairs = ["efa", "efa-direct"]
        .into_iter()
        .flat_map(|fabric| PAIRS.iter().map(move |test| format!("{test} -p efa -f {fabric}")));
    let pairs: Vec<String> = pairs.filter(|line| wanted(line)).collect();
    let alone: Vec<&str> = ALONE.iter().copied().filter(|line| wanted(line)).collect();
    if args.list {
        pairs.iter().map(String::as_str).chain(alone).for_each(|line| println!("{line}"));
        return Ok(0);
    }
    let bench = Bench::prepare(&args.common)?;
    let programs = match &args.fabtests {
        Some(named) => super::absolute(named)?,
        None => build(&bench)?,
    };
    let deadline = ["--deadline", &node::seconds(DEADLINE)];
    let mut tally = Tally::default();
    for line in &alone {
        let run = Run::new(&bench, &node::name("fabtests"), 2, &bench.libfabric).option(&deadline);
        judge(
            &mut tally,
            line,
            &programs,
            run.on_next_node(words(&programs, line, &[])).on_next_node(["true"]),
        );
    }
    for line in &pairs {
        let port = free_port()?;
        let exchange = format!("-E={port}");
        let run = Run::new(&bench, &node::name("fabtests"), 1, &bench.libfabric)
            .option(&deadline)
            .option(&["--after-listen", &port])
            .on_next_node(words(&programs, line, &[&exchange]))
            .on_next_node(words(&programs, line, &[&exchange, "127.0.0.1"]));
        judge(&mut tally, line, &programs, run);
    }
    Ok(tally.code())
}

fn words(programs: &Path, line: &str, more: &[&str]) -> Vec<String> {
    let mut words: Vec<String> = line.split(' ').chain(more.iter().copied()).map(str::to_owned).collect();
    words[0] = programs.join(&words[0]).display().to_string();
    words
}

fn judge(tally: &mut Tally, line: &str, programs: &Path, run: Run) {
    let program = line.split(' ').next().unwrap_or(line);
    if !programs.join(program).exists() {
        return tally.skip(line, "it is not among these fabtests");
    }
    let mut command = run.command();
    match process::run(&mut command, DEADLINE + node::AROUND) {
        Err(why) => tally.fail(line, &why),
        Ok(finished) if finished.status.success() => tally.pass(line),
        Ok(finished) => {
            let said = format!("{}{}", finished.stdout, finished.stderr);
            match said.lines().find(|line| not_offered(line)) {
                // What this build of libfabric does not have is not the device's.
                Some(line_of_it) => {
                    tally.skip(line, &format!("not in this libfabric: {}", line_of_it.trim()))
                }
                None => {
                    let error = said.lines().rev().find(|line| line.contains("ret=")).map(str::to_owned);
                    tally.fail(line, error.unwrap_or_else(|| finished.last_words()).trim());
                }
            }
        }
    }
}

/// `fi_getinfo` found no such endpoint, or the provider does not implement the object.
fn not_offered(line: &str) -> bool {
    line.contains("fi_getinfo()") && line.contains("ret=-61") || line.contains("ret=-38")
}

fn free_port() -> Result<String, String> {
    let port = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
    port.map(|address| address.port().to_string()).map_err(|error| format!("no free port: {error}"))
}

/// Where this machine's own apt gets Debian from.
fn debian() -> Result<String, String> {
    let mut ask = Command::new("apt-get");
    ask.args(["indextargets", "--format", "$(CODENAME) $(REPO_URI)", "Created-By: Packages"]);
    let told = ask.output().map_err(|e| format!("apt-get: {e}"))?;
    let told = String::from_utf8_lossy(&told.stdout);
    // Releases are one word; what is beside them (bookworm-updates) lies elsewhere.
    let mut main =
        told.lines().filter_map(|line| line.split_once(' ')).filter(|(name, _)| !name.contains('-'));
    let (_, uri) = main.next().ok_or("apt knows no Debian release: apt-get update first")?;
    Ok(uri.to_owned())
}

/// Fetches and builds fabtests, once; the directory of the programs.
fn build(bench: &Bench) -> Result<PathBuf, String> {
    let place = bench.target.join("fabtests");
    let programs = place.join("installed/bin");
    if place.join(WHOLE).exists() {
        return Ok(programs);
    }
    for tool in ["autoconf", "automake", "libtoolize", "make", "cc"] {
        let there = Command::new(tool).arg("--version").output().is_ok();
        if !there {
            return Err(format!(
                "fabtests are built with {tool}: apt install autoconf automake libtool make gcc"
            ));
        }
    }
    eprintln!("fetching and building fabtests in {}", place.display());
    let wrong = |error: std::io::Error| format!("{}: {error}", place.display());
    fs::create_dir_all(place.join("lists/partial")).map_err(wrong)?;
    let sources = format!("deb-src [signed-by={KEYRING}] {} {RELEASE} main\n", debian()?);
    fs::write(place.join("sources.list"), sources).map_err(wrong)?;
    let apt = |words: &[&str]| {
        let mut apt = Command::new("apt-get");
        apt.current_dir(&place)
            .arg("-o")
            .arg(format!("Dir::Etc::SourceList={}", place.join("sources.list").display()));
        apt.args(["-o", "Dir::Etc::SourceParts=-", "-o"]);
        apt.arg(format!("Dir::State::Lists={}", place.join("lists").display()));
        apt.args(["-o", "Dir::Cache::pkgcache=", "-o", "Dir::Cache::srcpkgcache="]).args(words);
        venv::succeed(&mut apt)
    };
    apt(&["update"])?;
    apt(&["source", "--download-only", "--tar-only", &format!("libfabric/{RELEASE}")])?;
    let entries = fs::read_dir(&place).map_err(wrong)?.flatten().map(|entry| entry.path());
    let mut archives = entries.filter(|path| path.to_string_lossy().contains(".orig.tar"));
    let archive = archives.next().ok_or("apt-get source brought no archive")?;
    let source = place.join("source");
    fs::create_dir_all(&source).map_err(wrong)?;
    venv::succeed(
        Command::new("tar").args(["--strip-components=1", "-xf"]).arg(&archive).arg("-C").arg(&source),
    )?;
    let prefix = place.join("installed");
    let library = format!(
        "./autogen.sh && ./configure -q --prefix='{0}' --enable-only --enable-tcp && make -s -j2 install",
        prefix.display()
    );
    let tests = format!(
        "./autogen.sh && ./configure -q --prefix='{0}' --with-libfabric='{0}' && make -s -j2 install",
        prefix.display()
    );
    for (script, at) in [(library, source.clone()), (tests, source.join("fabtests"))] {
        let finished =
            process::run(Command::new("sh").args(["-c", &script]).current_dir(at), BUILD_DEADLINE)?;
        if !finished.status.success() {
            return Err(format!("fabtests do not build: {}", finished.last_words()));
        }
    }
    fs::write(place.join(WHOLE), "").map_err(wrong)?;
    Ok(programs)
}
