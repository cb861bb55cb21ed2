//! Bundles on disk: what one host answered, written where it was asked, read anywhere.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::time::{Duration, SystemTime};

use kvrail_doctor::Host;
use kvrail_doctor::host::Bundle;

use super::telling::write_whole;
use crate::failure::Failure;

/// Longest file that is read. A bundle refuses more by itself; this keeps it out of memory.
const BYTES_MAX: u64 = (256 << 20) + 1;
/// Where the kernel says what the host is called.
const HOSTNAME: &str = "/proc/sys/kernel/hostname";

/// The host of a bundle, and how it is called in a report.
pub(super) fn read(path: &Path) -> Result<(Host, String), Failure> {
    let name = path.display();
    let failed =
        |error: std::io::Error| Failure::environment(format!("cannot read the bundle {name}: {error}"));
    let mut bytes = Vec::new();
    File::open(path).and_then(|file| file.take(BYTES_MAX).read_to_end(&mut bytes)).map_err(failed)?;
    let text = String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        Failure::environment(format!("{name} is not a bundle of kvrail doctor: byte {at} is no UTF-8"))
    })?;
    let bundle = Bundle::parse(&text).map_err(|error| {
        Failure::environment(format!("{name}: {error}"))
            .hint("a bundle is what `kvrail doctor --bundle FILE` writes on the host in question")
    })?;
    let subject = subject(path, &bundle);
    Ok((Host::replay(bundle), subject))
}

fn subject(path: &Path, bundle: &Bundle) -> String {
    let by = if bundle.kvrail.is_empty() { String::new() } else { format!(" by kvrail {}", bundle.kvrail) };
    let at =
        SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(bundle.taken)).filter(|_| bundle.taken > 0);
    let at = at.map(|at| format!(", taken {}{by}", kvrail_report::time::rfc3339(at))).unwrap_or_default();
    let host = Host::replay(bundle.clone());
    let of = host.value(HOSTNAME).map_or_else(|_| String::new(), |name| format!(" of {name}"));
    format!("bundle {}{of}{at}", path.display())
}

/// How this host is called in a report. Asked before anything else, so that a bundle knows it too.
pub(super) fn this_host(host: &Host) -> String {
    host.value(HOSTNAME).map_or_else(|_| "this host".into(), |name| format!("this host, {name}"))
}

/// Writes what the host has answered, for its owner alone to read, and says what is in it.
pub(super) fn write(path: &Path, host: &Host) -> Result<(), Failure> {
    let bundle = host.bundle();
    let text = bundle.to_json();
    write_whole(path, text.as_bytes(), 0o600)?;
    let parts: Vec<String> =
        bundle.answers.iter().map(|(section, of)| format!("{section} {}", of.len())).collect();
    crate::sink::talk(&format!(
        "bundle: {}, {}, {} answers ({}), {} variables; secrets that show as such are taken out: look through it before you send it\n\
         bundle: kvrail doctor --from {}",
        path.display(),
        kvrail_report::units::about(text.len() as u64),
        bundle.len(),
        parts.join(", "),
        bundle.variables.len(),
        path.display(),
    ));
    Ok(())
}
