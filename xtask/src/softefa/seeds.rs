//! `cargo xtask softefa seeds`: the simulator's seeds, played in virtual time and by processes on emulated NICs, and set side by side.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use kvrail_soak::seeds::{self, End, Script, Verdict};

use super::Common;
use super::kvrail_soak::programs;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    common: Common,
    /// The first seed
    #[arg(long, default_value_t = 1)]
    from: u64,
    /// How many
    #[arg(long, default_value_t = 50)]
    count: u64,
    /// The provider on emulated NICs
    #[arg(long, default_value = "efa-direct")]
    provider: String,
    /// The simulator only
    #[arg(long)]
    simulate: bool,
    /// Say how each transfer ended
    #[arg(long)]
    every: bool,
}

/// How often a pair of ends was seen: in the simulator, on emulated NICs, and why they may differ.
type Pairs = BTreeMap<(Option<End>, Option<End>, Option<&'static str>), u64>;

pub(super) fn run(args: &Args) -> Result<u8, String> {
    let programs = if args.simulate { None } else { Some(programs(&args.common, false)?) };
    let (mut same, mut explained, mut unexplained, mut wrong) = (0, 0, 0, 0);
    let mut pairs = Pairs::new();
    let mut times = (Duration::ZERO, Duration::ZERO);
    for seed in args.from..args.from.saturating_add(args.count) {
        let script = Script::of(seed);
        let began = Instant::now();
        let simulated = seeds::simulate(&script);
        times.0 += began.elapsed();
        let began = Instant::now();
        let emulated = match &programs {
            Some(programs) => seeds::emulate(programs, &args.provider, &script)
                .map_err(|why| format!("seed {seed}: {why}"))?,
            None => simulated.clone(),
        };
        times.1 += began.elapsed();
        let verdict = seeds::compare(&script, &simulated, &emulated);
        for line in &verdict.lines {
            *pairs.entry((line.simulated, line.emulated, line.why)).or_default() += 1;
        }
        let differing = verdict.lines.len() - verdict.same();
        let strange = verdict.lines.iter().filter(|line| !line.is_fine()).count();
        same += verdict.same();
        explained += differing - strange;
        unexplained += strange;
        wrong += verdict.wrong.len();
        say(seed, &script, &verdict, args);
    }
    println!("\n| Simulator | Emulated NICs | Transfers | Why they differ |\n|---|---|---|---|");
    let text = |end: &Option<End>| end.map_or_else(|| "never ended".into(), |end| end.to_string());
    for ((simulated, emulated, why), count) in &pairs {
        let why = why.unwrap_or(if simulated == emulated { "" } else { "UNEXPLAINED" });
        println!("| {} | {} | {count} | {why} |", text(simulated), text(emulated));
    }
    println!(
        "\n{} seeds: {same} transfers ended alike, {explained} differ for a reason, {unexplained} without; {wrong} violations; \
         simulated in {:.1} s, emulated in {:.1} s",
        args.count,
        times.0.as_secs_f64(),
        times.1.as_secs_f64()
    );
    Ok(u8::from(unexplained + wrong > 0))
}

fn say(seed: u64, script: &Script, verdict: &Verdict, args: &Args) {
    let fine = if verdict.is_fine() { "alike" } else { "DIFFERS" };
    println!(
        "seed {seed}: {fine}, {} of {} the same; {}",
        verdict.same(),
        verdict.lines.len(),
        script.summary()
    );
    for what in &verdict.wrong {
        println!("  VIOLATION {what}");
    }
    for line in &verdict.lines {
        if args.every || line.simulated != line.emulated {
            let text = |end: Option<End>| end.map_or_else(|| "never ended".into(), |end| end.to_string());
            let at =
                script.posted_at(line.number).map_or_else(|| "at last".into(), |at| format!("at {at} ms"));
            let why = match line.why {
                Some(why) => why,
                None if line.simulated == line.emulated => "",
                None => "UNEXPLAINED",
            };
            println!(
                "  transfer {} posted {at}: simulator {}, emulated {} {why}",
                line.number,
                text(line.simulated),
                text(line.emulated)
            );
        }
    }
    if !verdict.is_fine() {
        println!(
            "  again: cargo xtask softefa seeds --from {seed} --count 1 --provider {} --every",
            args.provider
        );
    }
}
