//! The question whether this process may open a device: permission bits do not say what a container's device rules allow.

use std::sync::mpsc;

use rustix::fs::{Mode, OFlags};

use super::files::EntryKind;
use super::{Answer, Host, Lack, Live, Question};

impl Host {
    /// Opens a device for reading and writing, and closes it. Nothing is asked of the device.
    ///
    /// # Errors
    /// [`Lack::Denied`] where it may not be opened, [`Lack::Late`] when its driver did not answer, [`Lack::Failed`] for what is no
    /// device.
    pub fn opens(&self, path: &str) -> Answer<()> {
        self.ask(&Opens(path)).map(|_: bool| ())
    }
}

struct Opens<'a>(&'a str);

impl Question for Opens<'_> {
    const SECTION: &'static str = "open";
    type Answer = bool;

    fn key(&self) -> String {
        self.0.into()
    }

    fn ask(&self, live: &Live) -> Answer<bool> {
        let path = live.path(self.0);
        if super::files::kind_of(&path)? != EntryKind::Device {
            return Err(Lack::Failed("not a device".into()));
        }
        let (done, answer) = mpsc::channel();
        // A driver that resets its device holds up whoever opens it: that must hold up a thread of its own.
        std::thread::spawn(move || {
            let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
            let opened = rustix::fs::open(path, flags, Mode::empty()).map(drop);
            let _ = done.send(opened.map_err(|errno| Lack::from(std::io::Error::from(errno))));
        });
        answer.recv_timeout(live.patience()).unwrap_or(Err(Lack::Late)).map(|()| true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::Scope;

    #[test]
    fn devices_are_opened_and_nothing_else() {
        let host = Host::live(Live::new(), Scope::default());
        assert_eq!(host.opens("/dev/null"), Ok(()));
        assert_eq!(host.opens("/dev/kvrail-no-such-device"), Err(Lack::Absent));
        assert!(matches!(host.opens("/proc/self/status"), Err(Lack::Failed(_))));
        assert!(host.bundle().to_json().contains(r#""open""#));
    }
}
