//! The transport ofi as an agent configures it: which of its settings the environment overrides, and whether this host
//! has what it is for.

use std::fs;
use std::path::{Path, PathBuf};

use kvrail_transport::{Fabric, ofi};

use crate::config::{Config, ConfigError, Settings, Source, Text};

/// What stands for no choice in a textual knob.
const AUTO: &str = "auto";
/// What stands for every device.
const ALL: &str = "all";

/// Writes down what the program has set.
pub(crate) fn tell(own: &ofi::Config, settings: &mut Settings) {
    let default = ofi::Config::default();
    let mut told = |id, differs: bool, value: String| {
        if differs {
            settings.set_text(id, value);
        }
    };
    told(Text::OfiProvider, own.provider != default.provider, own.provider.to_string());
    told(Text::OfiDevices, !own.devices.is_empty(), own.devices.join(","));
    told(Text::OfiRails, own.rails.is_some(), own.rails.unwrap_or_default().to_string());
    told(Text::OfiAffinity, own.affinity != default.affinity, own.affinity.to_string());
    let library = own.library.as_deref().unwrap_or(Path::new("")).display().to_string();
    told(Text::Libfabric, own.library.is_some(), library);
}

/// Takes over what the environment says. What the program has set keeps its own types: a path need not be a text.
pub(crate) fn configure(own: &mut ofi::Config, config: &Config) -> Result<(), ConfigError> {
    for id in Text::ALL {
        let (text, source) = config.text(id);
        if !matches!(source, Source::Environment(_)) {
            continue;
        }
        let malformed = || config.no_such_form(id);
        let auto = text.eq_ignore_ascii_case(AUTO);
        match id {
            Text::OfiProvider => own.provider = text.parse().map_err(|_| malformed())?,
            Text::OfiDevices => {
                let names = text.split(',').map(str::trim).filter(|name| !name.is_empty());
                let all = text.eq_ignore_ascii_case(ALL);
                own.devices = if all { Vec::new() } else { names.map(str::to_owned).collect() };
            }
            Text::OfiRails if auto => own.rails = None,
            Text::OfiRails => own.rails = Some(text.parse().map_err(|_| malformed())?),
            Text::OfiAffinity => own.affinity = text.parse().map_err(|_| malformed())?,
            Text::Libfabric => own.library = (!auto).then(|| PathBuf::from(text)),
        }
    }
    Ok(())
}

/// Opens it.
pub(crate) fn open(config: ofi::Config) -> Result<Box<dyn Fabric>, ofi::OpenError> {
    Ok(Box::new(ofi::Ofi::new(config)?))
}

/// The RDMA devices that the kernel has, whatever drives them.
pub(crate) fn rdma_devices() -> Vec<String> {
    // Where libfabric's providers look, too.
    let entries = fs::read_dir(ofi::counters::sysfs_root(None).join("class/infiniband"))
        .into_iter()
        .flatten()
        .flatten();
    let mut names: Vec<String> =
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    fn configured(mut own: ofi::Config, environment: &[(&str, &str)]) -> Result<ofi::Config, String> {
        let mut settings = Settings::default();
        tell(&own, &mut settings);
        let value = |variable| {
            environment.iter().find(|(name, _)| *name == variable).map(|(_, value)| (*value).to_owned())
        };
        let config = settings.resolve(value).map_err(|e| e.to_string())?;
        configure(&mut own, &config).map_err(|e| e.to_string())?;
        Ok(own)
    }

    #[test]
    fn the_environment_overrides_each_setting_and_leaves_the_others() {
        let code = ofi::Config {
            provider: ofi::Provider::Named("efa".into()),
            devices: vec!["a".into()],
            rails: Some(4),
            ..Default::default()
        };
        let own = configured(code.clone(), &[]).unwrap();
        assert_eq!(own, code);
        let own = configured(
            code.clone(),
            &[
                ("KVRAIL_OFI_PROVIDER", "tcp"),
                ("KVRAIL_OFI_DEVICES", "eth0, eth1"),
                ("KVRAIL_OFI_AFFINITY", "all"),
                ("KVRAIL_LIBFABRIC", "/opt/lib"),
            ],
        )
        .unwrap();
        assert_eq!(own.provider, ofi::Provider::Named("tcp".into()));
        assert_eq!(own.devices, ["eth0", "eth1"]);
        assert_eq!((own.rails, own.affinity), (Some(4), ofi::Affinity::All));
        assert_eq!(own.library, Some("/opt/lib".into()));
        let auto =
            [("KVRAIL_OFI_RAILS", "auto"), ("KVRAIL_OFI_DEVICES", "all"), ("KVRAIL_OFI_PROVIDER", "auto")];
        let own = configured(code, &auto).unwrap();
        assert_eq!(own, ofi::Config::default());
    }

    #[test]
    fn a_text_that_says_nothing_is_refused_with_what_can_be_said() {
        let refused = |name, value| configured(ofi::Config::default(), &[(name, value)]).unwrap_err();
        assert_eq!(
            refused("KVRAIL_OFI_RAILS", "many"),
            "ofi_rails is \"many\" (from KVRAIL_OFI_RAILS); it is auto, or a number from 1 to 64"
        );
        assert!(refused("KVRAIL_OFI_AFFINITY", "near").contains("numa or all"));
        assert!(refused("KVRAIL_OFI_PROVIDER", "no way").contains("efa-direct"));
    }
}
