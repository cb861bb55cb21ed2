//! Who is on the page: the agents of this process that share an endpoint.
//!
//! A process has one endpoint for all its agents. It opens with the first of them and closes with the last.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::http::Server;
use super::settings::{Endpoint, MULTIPROC_DIR, PROMETHEUS_PORT};
use super::shared::{Share, Sharing};
use super::{Subject, page};
use crate::error::{Error, Result, Status};

/// The endpoints that are open in this process.
static OPEN: Mutex<Vec<Weak<Exporter>>> = Mutex::new(Vec::new());

/// One endpoint, or one share of an endpoint.
#[derive(Debug)]
struct Exporter {
    endpoint: Endpoint,
    share: Option<Share>,
    subjects: Arc<Subjects>,
    publisher: Publisher,
    process: u32,
}

/// What publishes; stopped when the last agent goes.
#[derive(Debug)]
enum Publisher {
    Alone(Server),
    Sharing { _member: Sharing },
}

/// The agents of a page.
#[derive(Debug, Default)]
pub(super) struct Subjects(Mutex<Vec<Arc<Subject>>>);

impl Subjects {
    pub(super) fn page(&self) -> String {
        // Not rendered under the lock: agents ask their rails.
        let subjects = self.0.lock().clone();
        page::render(&subjects)
    }
}

/// An agent's place on a page; left when dropped.
#[derive(Debug)]
pub(super) struct Published {
    exporter: Option<Arc<Exporter>>,
    subject: Arc<Subject>,
}

/// Puts an agent on the page of this process. None when another process has the port, which is said and is no error: every rank of a
/// host tries to have it.
///
/// # Errors
/// [`Status::Backend`] when an agent of that name is on it, or it is not to be had for another reason.
pub(super) fn publish(
    subject: Arc<Subject>,
    endpoint: Endpoint,
    share: Option<&Share>,
) -> Result<Option<Published>> {
    let mut open = OPEN.lock();
    open.retain(|exporter| exporter.strong_count() > 0);
    let process = std::process::id();
    let fits = |exporter: &Arc<Exporter>| {
        exporter.process == process && exporter.endpoint == endpoint && exporter.share.as_ref() == share
    };
    let found = open.iter().filter_map(Weak::upgrade).find(fits);
    let exporter = match found {
        Some(exporter) => exporter,
        None => match Exporter::open(endpoint, share) {
            Ok(exporter) => {
                let exporter = Arc::new(exporter);
                open.push(Arc::downgrade(&exporter));
                exporter
            }
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                tracing::warn!(
                    "another process has {}: the metrics of agent {} are counted and not served; NIXL_TELEMETRY_EXPORTER=prometheus_mp serves those of all processes",
                    address(endpoint),
                    subject.name
                );
                return Ok(None);
            }
            Err(error) => {
                let error = match share {
                    None => Error::new(
                        Status::Backend,
                        format!("cannot serve metrics at {}: {error}", address(endpoint)),
                    )
                    .hint(format!("{PROMETHEUS_PORT} has to be a port that this process may open")),
                    Some(share) => Error::new(
                        Status::Backend,
                        format!("cannot share metrics in {}: {error}", share.dir.display()),
                    )
                    .hint(format!("{MULTIPROC_DIR} has to be a directory that this process may write to")),
                };
                return Err(error);
            }
        },
    };
    let mut subjects = exporter.subjects.0.lock();
    if subjects.iter().any(|other| other.name == subject.name) {
        let what = format!("an agent named \"{}\" is on the page of metrics of this process", subject.name);
        return Err(Error::new(Status::Backend, what).hint("give each agent a name of its own"));
    }
    subjects.push(subject.clone());
    drop(subjects);
    Ok(Some(Published { exporter: Some(exporter), subject }))
}

impl Published {
    /// Where the page is, if this process serves it alone.
    pub(super) fn address(&self) -> Option<SocketAddr> {
        match &self.exporter.as_ref()?.publisher {
            Publisher::Alone(server) => Some(server.address()),
            Publisher::Sharing { .. } => None,
        }
    }
}

impl Drop for Published {
    fn drop(&mut self) {
        let Some(exporter) = self.exporter.take() else { return };
        if exporter.process != std::process::id() {
            // Forked: its thread, and perhaps a holder of the lock, are not here.
            std::mem::forget(exporter);
            return;
        }
        // Held while the last one closes the port, so that nobody tries to open it meanwhile.
        let _open = OPEN.lock();
        if Arc::strong_count(&exporter) > 1 {
            exporter.subjects.0.lock().retain(|subject| !Arc::ptr_eq(subject, &self.subject));
        }
        // The last one is still on the last page.
        drop(exporter);
    }
}

impl Exporter {
    fn open(endpoint: Endpoint, share: Option<&Share>) -> io::Result<Self> {
        let subjects = Arc::<Subjects>::default();
        let publisher = match share {
            None => {
                let source = subjects.clone();
                let server = Server::bind(address(endpoint), Arc::new(move || source.page()))?;
                tracing::info!("metrics are served at http://{}/metrics", server.address());
                Publisher::Alone(server)
            }
            Some(share) => Publisher::Sharing {
                _member: Sharing::begin(share.clone(), address(endpoint), subjects.clone())?,
            },
        };
        let process = std::process::id();
        Ok(Self { endpoint, share: share.cloned(), subjects, publisher, process })
    }
}

fn address(endpoint: Endpoint) -> SocketAddr {
    let ip = if endpoint.local { Ipv4Addr::LOCALHOST } else { Ipv4Addr::UNSPECIFIED };
    (ip, endpoint.port).into()
}
