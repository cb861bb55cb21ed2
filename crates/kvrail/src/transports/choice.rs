//! Which transports an agent is to have, and what becomes of those that are not possible here (E10, KR-13).

use std::sync::Arc;

use kvrail_transport::Fabric;

use super::{OpenError, TransportConfig, ofi};
use crate::builder::BuildError;
use crate::config::{Source, TRANSPORT_VARIABLE};
use crate::hints::Hints;
use crate::peer::{Absent, PassedOver, PassedOverReason};

/// Which transports: the environment's choice with the code's settings, else the code's, else the default.
pub(crate) fn choose(
    code: Option<Vec<TransportConfig>>,
    environment: Option<String>,
) -> Result<(Vec<TransportConfig>, Source), BuildError> {
    let (chosen, source_of_it) = match environment {
        Some(text) => {
            let source_of_it = Source::Environment(TRANSPORT_VARIABLE);
            if text.trim().eq_ignore_ascii_case("auto") {
                (code.unwrap_or_else(TransportConfig::auto), source_of_it)
            } else {
                let mut given = code.unwrap_or_default();
                let names = text.split(',').map(str::trim).filter(|name| !name.is_empty());
                let chosen: Result<Vec<_>, _> = names
                    .map(|name| {
                        let own = given.iter().position(|t| t.name().eq_ignore_ascii_case(name));
                        own.map(|index| given.swap_remove(index))
                            .or_else(|| TransportConfig::named(name))
                            .ok_or_else(|| BuildError::UnknownTransport { name: name.into(), source_of_it })
                    })
                    .collect();
                (chosen?, source_of_it)
            }
        }
        None => match code {
            Some(code) => (code, Source::Code),
            None => (TransportConfig::auto(), Source::Default),
        },
    };
    if chosen.is_empty() {
        return Err(BuildError::NoTransport { source_of_it });
    }
    for (index, transport) in chosen.iter().enumerate() {
        if chosen[..index].iter().any(|other| other.name() == transport.name()) {
            return Err(BuildError::DuplicateTransport { name: transport.name().into(), source_of_it });
        }
    }
    Ok((chosen, source_of_it))
}

/// A transport that was opened, or one that the agent goes without.
pub(crate) enum Opened {
    Fabric(Box<dyn Fabric>),
    Absent(Absent),
}

/// Opens a transport. One that may be missing is passed over where there is nothing for it, and with a warning where there is
/// an RDMA NIC that it cannot use. `before` is the number of those that are open already.
///
/// # Errors
/// When a transport that has to be there is not possible.
pub(crate) fn open(agent: &str, transport: TransportConfig, before: usize) -> Result<Opened, OpenError> {
    let (name, if_possible) = (transport.name(), transport.if_possible);
    let absent = |why: String| {
        let reason = PassedOverReason::NotHere(Arc::from(why));
        Opened::Absent(Absent { before, passed_over: PassedOver { transport: name, reason } })
    };
    if !if_possible {
        return transport.open().map(Opened::Fabric);
    }
    let devices = ofi::rdma_devices();
    if name == "ofi" && devices.is_empty() && !transport.names_a_provider() {
        tracing::info!(agent = %agent, "transport ofi passed over: this host has no RDMA NIC");
        return Ok(absent("this host has no RDMA NIC".into()));
    }
    match transport.open() {
        Ok(fabric) => Ok(Opened::Fabric(fabric)),
        Err(error) => {
            let nics = if name == "ofi" { nics(&devices) } else { String::new() };
            tracing::warn!(agent = %agent, "transport {name} passed over{nics}: {error}");
            for hint in error.hints() {
                tracing::warn!(agent = %agent, "hint: {hint}");
            }
            Ok(absent(error.to_string()))
        }
    }
}

/// The NICs that are there and cannot be used.
fn nics(devices: &[String]) -> String {
    match devices {
        [] => String::new(),
        [one] => format!(" although there is the RDMA NIC {one}"),
        [first, ..] => format!(" although there are {} RDMA NICs ({first} and more)", devices.len()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(choice: &(Vec<TransportConfig>, Source)) -> Vec<&'static str> {
        choice.0.iter().map(TransportConfig::name).collect()
    }

    #[test]
    fn the_environment_chooses_and_orders_but_keeps_the_codes_settings() {
        let code = || Some(vec![TransportConfig::shm(), TransportConfig::tcp("127.0.0.1:7777")]);
        let choice = choose(code(), Some(" TCP, shm".into())).unwrap();
        assert_eq!(names(&choice), ["tcp", "shm"]);
        assert!(format!("{:?}", choice.0[0]).contains("7777"));
        assert_eq!(choice.1, Source::Environment("KVRAIL_TRANSPORT"));
        assert_eq!(names(&choose(code(), Some("auto".into())).unwrap()), ["shm", "tcp"]);
        assert_eq!(names(&choose(None, Some("tcp".into())).unwrap()), ["tcp"]);
        let auto = choose(None, Some("auto".into())).unwrap();
        assert_eq!(names(&auto), ["shm", "ofi", "tcp"]);
        let waived: Vec<bool> = auto.0.iter().map(|t| t.if_possible).collect();
        assert_eq!(waived, [false, true, false], "a default may be absent, what was named may not");
        assert!(!choose(None, Some("ofi".into())).unwrap().0[0].if_possible);
    }

    #[test]
    fn a_choice_that_cannot_be_made_is_an_error_that_says_who_made_it() {
        let text = |result: Result<_, BuildError>| result.map(|_: (Vec<_>, _)| ()).unwrap_err().to_string();
        assert_eq!(
            text(choose(None, Some("efa".into()))),
            "transport \"efa\" (from KVRAIL_TRANSPORT) is unknown; there are shm, ofi, tcp"
        );
        assert_eq!(text(choose(None, Some(" ,".into()))), "no transport (from KVRAIL_TRANSPORT)");
        assert_eq!(text(choose(Some(Vec::new()), None)), "no transport (from code)");
        assert_eq!(
            text(choose(Some(vec![TransportConfig::shm(), TransportConfig::shm()]), None)),
            "transport shm is given twice (from code)"
        );
    }

    #[test]
    fn a_nic_that_cannot_be_used_is_named() {
        assert_eq!(nics(&["efa0".into()]), " although there is the RDMA NIC efa0");
        assert_eq!(nics(&["efa0".into(), "efa1".into()]), " although there are 2 RDMA NICs (efa0 and more)");
    }
}
