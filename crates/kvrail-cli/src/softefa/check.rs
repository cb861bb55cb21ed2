//! `kvrail softefa check`.

use std::path::Path;
use std::process::ExitCode;

use serde_json::{Value, json};
use softefa::libfabric::{self, Candidate, Error, Inspection, Proof, Provider, candidates, inspect, probe};

use super::args::{Check, Format};
use super::clear_up;
use crate::failure::Failure;

pub(super) fn main(arguments: &Check) -> Result<ExitCode, Failure> {
    clear_up()?;
    let found = candidates(arguments.libfabric.as_deref()).map_err(no)?;
    let looked: Vec<(Candidate, Result<Inspection, Error>)> = found
        .into_iter()
        .map(|candidate| {
            let inspected = inspect(&candidate);
            (candidate, inspected)
        })
        .collect();
    let chosen = looked.iter().find_map(|(_, inspected)| inspected.as_ref().ok());
    let proof = chosen.map(probe);
    match arguments.format {
        Format::Json => {
            let text = serde_json::to_string_pretty(&report(&looked, proof.as_ref()))
                .map_err(|e| Failure::environment(e.to_string()))?;
            println!("{text}");
        }
        Format::Table => print!("{}", table(&looked, proof.as_ref())),
    }
    let first = looked.into_iter().find_map(|(_, inspected)| inspected.err());
    match (proof, first) {
        (Some(Ok(_)), _) => Ok(ExitCode::SUCCESS),
        (Some(Err(error)), _) | (None, Some(error)) => Err(no(error)),
        (None, None) => Err(Failure::check("no libfabric found")),
    }
}

/// The child's part of the proof: prints what libfabric offers.
pub(super) fn load(library: &Path) -> Result<ExitCode, Failure> {
    let proof = libfabric::load(library).map_err(no)?;
    let text = serde_json::to_string(&proof).map_err(|e| Failure::environment(e.to_string()))?;
    println!("{text}");
    Ok(ExitCode::SUCCESS)
}

fn no(error: Error) -> Failure {
    let failure = Failure::check(error.to_string());
    error.hints().into_iter().fold(failure, Failure::hint)
}

fn provider(inspection: &Inspection) -> String {
    match &inspection.provider {
        Provider::Library(path) => path.display().to_string(),
        _ => "inside".into(),
    }
}

fn report(looked: &[(Candidate, Result<Inspection, Error>)], proof: Option<&Result<Proof, Error>>) -> Value {
    let one = |(candidate, inspected): &(Candidate, Result<Inspection, Error>)| {
        let head = json!({ "library": candidate.library, "found_by": candidate.origin.name() });
        let rest = match inspected {
            Ok(inspection) => json!({
                "usable": true,
                "release": inspection.release.map(|r| r.to_string()),
                "efa_provider": provider(inspection),
                "imports": inspection.imports.iter().map(ToString::to_string).collect::<Vec<_>>(),
            }),
            Err(error) => json!({ "usable": false, "why": error.to_string(), "hints": error.hints() }),
        };
        merge(head, rest)
    };
    let proof = match proof {
        Some(Ok(proof)) => json!({ "works": true, "version": proof.version, "endpoints": proof.endpoints }),
        Some(Err(error)) => json!({ "works": false, "why": error.to_string() }),
        None => Value::Null,
    };
    json!({
        "schema": "softefa.check.v1",
        "candidates": looked.iter().map(one).collect::<Vec<_>>(),
        "proof": proof,
    })
}

fn merge(mut one: Value, other: Value) -> Value {
    if let (Some(one), Value::Object(other)) = (one.as_object_mut(), other) {
        one.extend(other);
    }
    one
}

fn table(looked: &[(Candidate, Result<Inspection, Error>)], proof: Option<&Result<Proof, Error>>) -> String {
    let mut out = String::new();
    let mut chosen = false;
    for (candidate, inspected) in looked {
        out += &format!("{} ({})\n", candidate.library.display(), candidate.origin.name());
        match inspected {
            Ok(inspection) => {
                let release = inspection.release.map_or_else(|| "unknown".into(), |r| r.to_string());
                out += &format!("  release       {release}\n");
                out += &format!("  efa provider  {}\n", provider(inspection));
                out += &format!(
                    "  symbols       {} of libibverbs and libefa, all provided\n",
                    inspection.imports.len()
                );
                match proof.filter(|_| !chosen) {
                    Some(Ok(proof)) => {
                        let (n, fabrics) = (proof.endpoints.len(), proof.fabrics().join(", "));
                        out += &format!("  fi_getinfo    {n} endpoints on the emulated device: {fabrics}\n");
                    }
                    Some(Err(_)) => out += "  fi_getinfo    fails\n",
                    None => {}
                }
                chosen = true;
            }
            Err(error) => out += &format!("  not usable    {error}\n"),
        }
    }
    out
}
