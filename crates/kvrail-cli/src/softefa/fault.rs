//! `kvrail softefa fault`.

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use softefa::run::{FaultOrder, FaultStatus, find, open, status};
use softefa_fabric::{FaultKind, clock};

use super::args::{Deed, Fault, Format};
use super::quantities::{self, Rate};
use super::{failure, status as table};
use crate::failure::Failure;

pub(super) fn main(arguments: &Fault) -> Result<ExitCode, Failure> {
    if arguments.begins.is_some() {
        return Err(Failure::usage("--in belongs to the faults of `kvrail softefa run --fault`")
            .hint("sleep before this command instead"));
    }
    let order = match arguments.deed {
        Deed::Set(kind) => Some(order(kind, arguments).map_err(Failure::usage)?),
        _ => None,
    };
    let live = find(arguments.which.name.as_deref()).map_err(failure)?;
    match (arguments.deed, order) {
        (Deed::Set(_), Some(order)) => {
            let fabric = open(&live.path).map_err(failure)?;
            order.check(fabric.nodes(), fabric.nics_per_node()).map_err(failure)?;
            let id = fabric
                .add_fault(&order.fault(clock::now_ns()))
                .map_err(|e| Failure::environment(e.to_string()).hint("kvrail softefa fault clear"))?;
            println!("{id}");
        }
        (Deed::Clear, _) => clear(arguments, &open(&live.path).map_err(failure)?)?,
        _ => {
            none(arguments, 0).map_err(Failure::usage)?;
            let faults = status(&live, None).map_err(failure)?.faults;
            list(&faults, arguments.format)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn clear(arguments: &Fault, fabric: &softefa_fabric::Fabric) -> Result<(), Failure> {
    none(arguments, 1).map_err(Failure::usage)?;
    let active = || fabric.faults().iter().map(|fault| fault.id).collect::<Vec<_>>();
    let Some(text) = arguments.values.first() else {
        let cleared = active().into_iter().filter(|id| fabric.clear_fault(*id)).count();
        eprintln!("{cleared} faults cleared");
        return Ok(());
    };
    let id = text.parse().map_err(|_| Failure::usage(format!("`{text}` is no number of a fault")))?;
    if fabric.clear_fault(id) {
        return Ok(());
    }
    let active: Vec<_> = active().iter().map(ToString::to_string).collect();
    let are = if active.is_empty() {
        "no fault is active".into()
    } else {
        format!("active are {}", active.join(", "))
    };
    Err(Failure::usage(format!("fault {id} is not active; {are}")))
}

fn list(faults: &[FaultStatus], format: Format) -> Result<(), Failure> {
    match format {
        Format::Json => {
            let text =
                serde_json::to_string_pretty(faults).map_err(|e| Failure::environment(e.to_string()))?;
            println!("{text}");
        }
        Format::Table if faults.is_empty() => eprintln!("no fault is active"),
        Format::Table => print!("{}", table::faults(faults)),
    }
    Ok(())
}

/// A fault as one text, with the words that the command line takes.
pub(super) fn parse(text: &str) -> Result<FaultOrder, String> {
    /// The words as a command line of their own.
    #[derive(Parser)]
    #[command(name = "fault", no_binary_name = true, disable_help_flag = true)]
    struct Words {
        #[command(flatten)]
        fault: Fault,
    }
    let words = Words::try_parse_from(text.split_whitespace()).map_err(|error| {
        let text = error.to_string();
        text.trim_start_matches("error: ").split("\n\nUsage").next().unwrap_or_default().trim().to_owned()
    })?;
    match words.fault.deed {
        Deed::Set(kind) => order(kind, &words.fault),
        _ => Err("name a kind of fault".into()),
    }
}

/// Refuses more values than a kind takes.
fn none(arguments: &Fault, takes: usize) -> Result<(), String> {
    match arguments.values.get(takes) {
        None => Ok(()),
        Some(text) if takes == 0 => Err(format!("`{text}` is too much: it takes no value")),
        Some(text) => {
            Err(format!("`{text}` is too much: it takes {takes} value{}", if takes == 1 { "" } else { "s" }))
        }
    }
}

fn order(kind: FaultKind, arguments: &Fault) -> Result<FaultOrder, String> {
    let mut order = FaultOrder::new(kind);
    order.node = arguments.node;
    order.nic = arguments.nic;
    order.peer_node = arguments.peer_node;
    order.peer_nic = arguments.peer_nic;
    order.begins = arguments.begins.unwrap_or_default();
    order.lasts = arguments.lasts;
    order.count = arguments.count;
    order.after = arguments.after;
    order.probability_ppm = arguments.probability.unwrap_or(order.probability_ppm);
    let ns = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    let value = |n: usize| arguments.values.get(n).map(String::as_str);
    let needs = |what: &str| format!("{kind} needs a value: {what}");
    if arguments.silent && kind != FaultKind::BlackHole {
        return Err("--silent belongs to black-hole; no-egress and secondary-cidr always are".into());
    }
    if arguments.link_event && kind != FaultKind::RailDown {
        return Err("--link-event belongs to rail-down".into());
    }
    if arguments.capacity.is_some() && kind != FaultKind::CqOverflow {
        return Err("--capacity belongs to cq-overflow".into());
    }
    match kind {
        FaultKind::BlackHole => {
            none(arguments, 0)?;
            order.amount = u64::from(arguments.silent);
        }
        FaultKind::RailDown => {
            none(arguments, 0)?;
            order.amount = u64::from(arguments.link_event);
        }
        FaultKind::Drop => {
            none(arguments, 1)?;
            order.probability_ppm = match (value(0), arguments.probability) {
                (Some(text), None) => quantities::share(text)?,
                (None, Some(ppm)) => ppm,
                (Some(_), Some(_)) => return Err("drop has its share twice".into()),
                (None, None) => return Err(needs("the share of packets, as in `drop 1%`")),
            };
        }
        FaultKind::Delay => {
            none(arguments, 2)?;
            let text = value(0).ok_or_else(|| needs("how late, as in `delay 200us 50us`"))?;
            order.amount = ns(quantities::time(text)?);
            order.spread = value(1).map(quantities::time).transpose()?.map_or(0, ns);
        }
        FaultKind::Rate => {
            none(arguments, 1)?;
            let text = value(0).ok_or_else(|| needs("how fast, as in `rate 10Gbps`"))?;
            order.amount = match quantities::rate(text)? {
                Rate::Bits(bits) => bits,
                Rate::Unlimited => return Err("a rate of none is no fault".into()),
            };
        }
        FaultKind::Unreachable | FaultKind::Unresponsive => {
            none(arguments, 1)?;
            order.amount = value(0).map(quantities::time).transpose()?.map_or(0, ns);
        }
        FaultKind::CqOverflow => {
            none(arguments, 0)?;
            order.amount =
                arguments.capacity.ok_or("cq-overflow needs --capacity N, the entries that a queue holds")?;
        }
        _ => none(arguments, 0)?,
    }
    Ok(order)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn each_kind_takes_its_own_values() {
        let of = |text: &str| parse(text).unwrap();
        assert_eq!(of("drop 1% --node 0").probability_ppm, 10_000);
        let delay = of("delay 200us 50us --nic 3 --for 5s --count 7");
        assert_eq!((delay.amount, delay.spread, delay.nic, delay.count), (200_000, 50_000, Some(3), Some(7)));
        assert_eq!(delay.lasts, Some(Duration::from_secs(5)));
        assert_eq!(of("rail-down --in 4s --for 3s").begins, Duration::from_secs(4));
        assert_eq!(of("rate 10").amount, 10_000_000_000);
        assert_eq!(of("black-hole --silent --peer-node 1").amount, 1);
        assert_eq!(of("rail-down --link-event").amount, 1);
        assert_eq!(of("unresponsive 3s").amount, 3_000_000_000);
        assert_eq!(of("missing-ah").kind, FaultKind::MissingHandle);
        assert_eq!(of("no-registration --after 100").after, 100);
        assert_eq!(of("cq-overflow --capacity 16").amount, 16);
        for text in [
            "drop",
            "delay",
            "rate none",
            "rail-down 5",
            "cq-overflow",
            "drop 1% --silent",
            "drop 1% --link-event",
            "list",
            "",
            "delay x",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_misspelt_fault_gets_a_suggestion_and_the_list() {
        let why = parse("rail-dwon --nic 3").unwrap_err();
        assert!(why.contains("'rail-down'") && why.contains("secondary-cidr"), "{why}");
        assert!(!why.contains("Usage"), "{why}");
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "\\PC{0,40}") {
            let _ = parse(&text);
            let _ = parse(&format!("delay {text}"));
        }
    }
}
