//! One endpoint for the processes of a host: each writes its page to a directory, one of them serves all pages as one.
//!
//! Pages are files that are replaced whole, so that a reader never sees half of one. A file that was not replaced for the stale time
//! belongs to a process that ended, or hangs, and is removed by whoever serves. Who serves is who holds a lock on a file of the
//! directory; the system gives it up when that process ends, however it ends, and the next one to try has it.

use std::collections::HashMap;
use std::fmt::Write;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::io::Read;
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use parking_lot::{Condvar, Mutex};
use rustix::fs::{FlockOperation, flock};

use super::http::Server;
use super::prometheus::Subjects;

/// What a page's file is called: before and after what tells its process.
const PREFIX: &str = "kvrail-";
const SUFFIX: &str = ".prom";
/// A page is not written more often, however short the interval: it is read every few seconds.
const INTERVAL_MIN: Duration = Duration::from_secs(1);
/// Intervals after which a page is stale at the soonest: a busy host is late.
const STALE_INTERVALS: u32 = 3;
const PAGES_MAX: usize = 1024;
const PAGE_BYTES_MAX: u64 = 4 << 20;

/// What processes share.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Share {
    pub(super) dir: PathBuf,
    interval: Duration,
    stale: Duration,
}

impl Share {
    /// Pages in `dir`, written every `interval`, gone when they were not for `stale`.
    pub(super) fn new(dir: PathBuf, interval: Duration, stale: Duration) -> Self {
        let interval = interval.max(INTERVAL_MIN);
        Self { dir, interval, stale: stale.max(STALE_INTERVALS * interval) }
    }
}

/// The thread that writes this process's page and tries to become the one that serves.
#[derive(Debug)]
pub(super) struct Sharing {
    ending: Arc<(Mutex<bool>, Condvar)>,
    thread: Option<JoinHandle<()>>,
}

impl Sharing {
    pub(super) fn begin(share: Share, address: SocketAddr, subjects: Arc<Subjects>) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o755).create(&share.dir)?;
        let lock = share.dir.join(format!("{PREFIX}owner.{address}.lock"));
        let lock = OpenOptions::new().write(true).create(true).truncate(false).mode(0o644).open(lock)?;
        // Processes of several containers may have the same number.
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_nanos();
        let page = share.dir.join(format!("{PREFIX}{}-{now}{SUFFIX}", std::process::id()));
        // Found out here, where it can be an error.
        replace(&page, &subjects.page())?;
        let ending = Arc::new((Mutex::new(false), Condvar::new()));
        let member =
            Member { share, address, subjects, page, lock, server: None, failing: false, refused: false };
        let thread = std::thread::Builder::new().name("kvrail-metrics".to_owned());
        let thread = thread.spawn({
            let ending = ending.clone();
            move || member.run(&ending)
        })?;
        Ok(Self { ending, thread: Some(thread) })
    }
}

impl Drop for Sharing {
    fn drop(&mut self) {
        *self.ending.0.lock() = true;
        self.ending.1.notify_one();
        // The last owner of an agent may be the page that was just made of it: a thread does not wait for itself.
        if let Some(thread) =
            self.thread.take().filter(|thread| thread.thread().id() != std::thread::current().id())
        {
            let _ = thread.join();
        }
    }
}

struct Member {
    share: Share,
    address: SocketAddr,
    subjects: Arc<Subjects>,
    page: PathBuf,
    lock: File,
    server: Option<Server>,
    failing: bool,
    refused: bool,
}

impl Member {
    /// The last page stays, so that what a process counted last is still read.
    fn run(mut self, ending: &(Mutex<bool>, Condvar)) {
        loop {
            self.elect();
            let ended = {
                let mut ended = ending.0.lock();
                if !*ended {
                    let _ = ending.1.wait_for(&mut ended, self.share.interval);
                }
                *ended
            };
            let written = replace(&self.page, &self.subjects.page());
            if let Err(error) = &written
                && !self.failing
            {
                tracing::warn!("cannot write metrics to {}: {error}", self.page.display());
            }
            self.failing = written.is_err();
            if ended {
                return;
            }
        }
    }

    fn elect(&mut self) {
        if self.server.is_some() || flock(&self.lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            return;
        }
        let share = self.share.clone();
        match Server::bind(self.address, Arc::new(move || gather(&share))) {
            Ok(server) => {
                tracing::info!(
                    "the metrics in {} are served at http://{}/metrics",
                    self.share.dir.display(),
                    server.address()
                );
                self.server = Some(server);
            }
            Err(error) => {
                // Kept would keep others from trying.
                let _ = flock(&self.lock, FlockOperation::Unlock);
                if !self.refused {
                    tracing::warn!(
                        "cannot serve the metrics in {} at {}: {error}",
                        self.share.dir.display(),
                        self.address
                    );
                }
                self.refused = true;
            }
        }
    }
}

/// Replaces a file whole.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    let new = path.with_extension("new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o644).open(&new)?;
    io::Write::write_all(&mut file, text.as_bytes())?;
    fs::rename(&new, path)
}

/// The pages of all processes as one, and the removal of those that are stale.
fn gather(share: &Share) -> String {
    let mut pages = Vec::new();
    let Ok(entries) = fs::read_dir(&share.dir) else { return String::new() };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let Some(name) = name.to_str().filter(|name| name.starts_with(PREFIX) && name.ends_with(SUFFIX))
        else {
            continue;
        };
        let path = share.dir.join(name);
        let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
        let age = metadata.modified().map(|at| SystemTime::now().duration_since(at).unwrap_or_default());
        if age.is_ok_and(|age| age > share.stale) {
            let _ = fs::remove_file(&path);
        } else if metadata.is_file() && metadata.len() <= PAGE_BYTES_MAX && pages.len() < PAGES_MAX {
            pages.push(path);
        }
    }
    pages.sort();
    let mut merged = Merged::default();
    for path in pages {
        let mut text = String::new();
        // One that cannot be read is one that just went.
        if File::open(&path).and_then(|file| file.take(PAGE_BYTES_MAX).read_to_string(&mut text)).is_ok() {
            merged.add(&text);
        }
    }
    merged.text()
}

/// Families in the order of their coming, each with the samples of all pages: the format wants a family in one piece.
#[derive(Default)]
struct Merged {
    families: Vec<(String, String, String)>,
    places: HashMap<String, usize>,
}

impl Merged {
    fn add(&mut self, page: &str) {
        let mut place = None;
        for line in page.lines() {
            let mut words = line.splitn(4, ' ');
            match (words.next(), words.next(), words.next()) {
                (Some("#"), Some("HELP"), Some(name)) => {
                    place = Some(*self.places.entry(name.to_owned()).or_insert_with(|| {
                        self.families.push((name.to_owned(), format!("{line}\n"), String::new()));
                        self.families.len() - 1
                    }));
                }
                (Some("#"), Some("TYPE"), Some(name)) => {
                    if let Some((family, header, _)) = place.map(|place| &mut self.families[place])
                        && family == name
                        && header.lines().count() == 1
                    {
                        let _ = writeln!(header, "{line}");
                    }
                }
                _ => {
                    if let Some((family, _, samples)) = place.map(|place| &mut self.families[place])
                        && line.starts_with(family.as_str())
                    {
                        let _ = writeln!(samples, "{line}");
                    }
                }
            }
        }
    }

    fn text(self) -> String {
        self.families.into_iter().map(|(_, header, samples)| header + &samples).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_one_with_each_family_in_one_piece() {
        let mut merged = Merged::default();
        merged.add("# HELP a_total of a\n# TYPE a_total counter\na_total{p=\"1\"} 1\n# HELP b of b\n# TYPE b gauge\nb{p=\"1\"} 2\n");
        merged.add("junk\n# TYPE x gauge\n# HELP b of b\n# TYPE b gauge\nb{p=\"2\"} 3\nc 7\n# HELP a_total of a\n# TYPE a_total counter\na_total{p=\"2\"} 4\n");
        assert_eq!(
            merged.text(),
            "# HELP a_total of a\n# TYPE a_total counter\na_total{p=\"1\"} 1\na_total{p=\"2\"} 4\n\
             # HELP b of b\n# TYPE b gauge\nb{p=\"1\"} 2\nb{p=\"2\"} 3\n"
        );
    }

    #[test]
    fn a_stale_page_is_removed_and_what_is_no_page_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let share = |stale| Share { dir: dir.path().into(), interval: Duration::ZERO, stale };
        let page = dir.path().join("kvrail-1.prom");
        replace(&page, "# HELP a b\n# TYPE a gauge\na 1\n").unwrap();
        fs::write(dir.path().join("other.prom"), "# HELP x y\nx 1\n").unwrap();
        fs::write(dir.path().join("kvrail-2.prom"), b"\xff\xff").unwrap();
        fs::create_dir(dir.path().join("kvrail-3.prom")).unwrap();
        assert_eq!(gather(&share(Duration::from_secs(60))), "# HELP a b\n# TYPE a gauge\na 1\n");
        std::thread::sleep(Duration::from_millis(30));
        assert_eq!(gather(&share(Duration::from_millis(10))), "");
        assert!(!page.exists() && dir.path().join("other.prom").exists());
    }
}
