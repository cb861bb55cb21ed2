//! The flags of the transport ofi: each side has its own, and an environment variable may not contradict them.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use kvrail::TransportConfig;
use kvrail::config::TEXTS;
use kvrail::ofi::{Affinity, Provider};

use crate::failure::Failure;

/// What is asked of libfabric on this side.
#[derive(Args, Clone, PartialEq, Eq, Debug, Default)]
#[command(next_help_heading = "libfabric (this side)")]
pub(crate) struct Flags {
    /// Provider: efa-direct, efa, cxi, verbs, tcp, shm [default: the best with an RDMA NIC]
    #[arg(long, value_name = "NAME", value_parser = provider)]
    pub(crate) provider: Option<Provider>,
    /// NICs, comma-separated [default: all]
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    pub(crate) devices: Vec<String>,
    /// Number of rails [default: one per NIC]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    pub(crate) rails: Option<u16>,
    /// libfabric.so.1 or its directory [default: searched for]
    #[arg(long, value_name = "PATH")]
    pub(crate) libfabric: Option<PathBuf>,
    /// Rails that memory is registered on [default: numa]
    #[arg(long, value_enum)]
    pub(crate) affinity: Option<Near>,
}

/// Which rails memory is registered on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum Near {
    /// Those near it.
    Numa,
    /// All.
    All,
}

fn provider(text: &str) -> Result<Provider, String> {
    text.parse().map_err(|error: kvrail::ofi::OpenError| error.to_string())
}

impl Flags {
    /// The flags that were given, with their values as the command line takes them.
    fn given(&self) -> Vec<(&'static str, OsString)> {
        let affinity = self.affinity.map(|near| match near {
            Near::Numa => "numa",
            Near::All => "all",
        });
        let devices = (!self.devices.is_empty()).then(|| self.devices.join(","));
        [
            ("--provider", self.provider.as_ref().map(|p| p.to_string().into())),
            ("--devices", devices.map(Into::into)),
            ("--rails", self.rails.map(|n| n.to_string().into())),
            ("--libfabric", self.libfabric.clone().map(Into::into)),
            ("--affinity", affinity.map(Into::into)),
        ]
        .into_iter()
        .filter_map(|(flag, value)| Some((flag, value?)))
        .collect()
    }

    /// The same words again, for a target that is started here.
    pub(crate) fn words(&self) -> Vec<OsString> {
        self.given().into_iter().flat_map(|(flag, value)| [flag.into(), value]).collect()
    }

    /// The first flag that was given.
    pub(crate) fn first(&self) -> Option<&'static str> {
        self.given().first().map(|(flag, _)| *flag)
    }

    /// The library lets the environment win over the program. A flag is the word of the same person, so that a
    /// contradiction is a mistake.
    ///
    /// # Errors
    /// A usage failure that names both.
    pub(crate) fn check(&self, environment: impl Fn(&str) -> Option<String>) -> Result<(), Failure> {
        for (flag, value) in self.given() {
            let name = flag.trim_start_matches("--");
            let Some(knob) = TEXTS.iter().find(|knob| knob.name.trim_start_matches("ofi_") == name) else {
                continue;
            };
            let set = environment(knob.variable).filter(|text| !text.trim().is_empty());
            if let Some(set) = set.filter(|set| *set.trim() != *value) {
                let value = value.to_string_lossy();
                return Err(Failure::usage(format!("{flag} {value} and {}={set} contradict", knob.variable))
                    .hint(format!("unset {}, or leave {flag} out", knob.variable)));
            }
        }
        Ok(())
    }

    /// What the library is told.
    pub(crate) fn transport(&self) -> TransportConfig {
        let mut transport = TransportConfig::ofi().devices(self.devices.clone());
        if let Some(provider) = &self.provider {
            transport = transport.provider(provider.clone());
        }
        if let Some(rails) = self.rails {
            transport = transport.rails(rails);
        }
        if let Some(path) = &self.libfabric {
            transport = transport.libfabric(path);
        }
        match self.affinity {
            Some(Near::Numa) => transport.affinity(Affinity::Numa),
            Some(Near::All) => transport.affinity(Affinity::All),
            None => transport,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags() -> Flags {
        Flags {
            provider: Some("efa-direct".parse().unwrap()),
            devices: vec!["a".into(), "b".into()],
            rails: Some(2),
            libfabric: Some("/opt/lib".into()),
            affinity: Some(Near::All),
        }
    }

    #[test]
    fn a_started_target_gets_the_same_flags() {
        let words: Vec<_> = flags().words().into_iter().map(|w| w.into_string().unwrap()).collect();
        assert_eq!(
            words.join(" "),
            "--provider efa-direct --devices a,b --rails 2 --libfabric /opt/lib --affinity all"
        );
        assert!(Flags::default().words().is_empty());
    }

    #[test]
    fn a_flag_and_a_variable_that_contradict_are_a_mistake() {
        let check = |name: &'static str, value: &'static str| {
            flags().check(|variable| (variable == name).then(|| value.to_owned()))
        };
        assert_eq!(check("KVRAIL_OFI_PROVIDER", "efa-direct"), Ok(()));
        assert_eq!(check("KVRAIL_LIBFABRIC", " "), Ok(()));
        for (name, value) in [
            ("KVRAIL_OFI_PROVIDER", "tcp"),
            ("KVRAIL_OFI_DEVICES", "c"),
            ("KVRAIL_OFI_RAILS", "3"),
            ("KVRAIL_LIBFABRIC", "/usr/lib"),
            ("KVRAIL_OFI_AFFINITY", "numa"),
        ] {
            let failure = check(name, value).unwrap_err();
            assert!(failure.what.contains(name) && failure.what.contains("--"), "{failure}");
        }
    }
}
