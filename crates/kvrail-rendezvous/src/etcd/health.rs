//! `GET /health` of each endpoint, before anything else: gRPC says of most troubles only "transport error".

use std::io;
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{self, AlertDescription};

use super::tls::Material;
use crate::config::{Endpoint, EtcdConfig};
use crate::error::ServiceError;

/// Longest time for one endpoint.
const CHECK_MAX: Duration = Duration::from_secs(5);
/// Longest answer that is read, bytes; etcd's has a hundred.
const ANSWER_BYTES_MAX: usize = 16 << 10;
/// What Go's servers say to plain text where they speak TLS.
const TO_HTTPS: &[u8] = b"HTTP request to an HTTPS server";

/// The endpoints that are healthy; an error says of each what is wrong when none is.
pub(super) async fn check(
    etcd: &EtcdConfig,
    tls: Option<&Material>,
    until: Instant,
) -> Result<Vec<Endpoint>, ServiceError> {
    let until = until.min(Instant::now() + CHECK_MAX);
    let checks: Vec<_> = etcd
        .endpoints
        .iter()
        .map(|endpoint| {
            let probe = Probe {
                endpoint: endpoint.clone(),
                tls: tls.filter(|_| endpoint.tls).map(|tls| (tls.config.clone(), tls.has_identity())),
                server_name: etcd.tls.server_name.clone().unwrap_or_else(|| endpoint.host.clone()),
            };
            tokio::spawn(async move {
                let began = Instant::now();
                let checked = crate::driver::until(until, probe.check()).await;
                checked.unwrap_or_else(|| {
                    let detail = format!("no answer within {:.1?}", began.elapsed());
                    Err(ServiceError::Unreachable { endpoint: probe.endpoint.to_string(), detail })
                })
            })
        })
        .collect();
    let (mut healthy, mut errors) = (Vec::new(), Vec::new());
    for (endpoint, check) in etcd.endpoints.iter().zip(checks) {
        match check.await {
            Ok(Ok(())) => healthy.push(endpoint.clone()),
            Ok(Err(error)) => errors.push(error),
            Err(error) => {
                errors.push(ServiceError::Local { doing: "check health", detail: error.to_string() })
            }
        }
    }
    if healthy.is_empty() {
        return Err(match errors.pop() {
            Some(only) if errors.is_empty() => only,
            Some(last) => {
                errors.push(last);
                ServiceError::NoneUsable(errors)
            }
            None => ServiceError::NoneUsable(errors),
        });
    }
    for error in errors {
        tracing::warn!("not used: {error}");
    }
    Ok(healthy)
}

struct Probe {
    endpoint: Endpoint,
    /// And whether a client certificate is in it.
    tls: Option<(std::sync::Arc<rustls::ClientConfig>, bool)>,
    server_name: String,
}

impl Probe {
    async fn check(&self) -> Result<(), ServiceError> {
        let endpoint = self.endpoint.to_string();
        let stream = self.connect().await?;
        let answer = match &self.tls {
            None => self.exchange(stream).await,
            Some((config, _)) => {
                let name =
                    ServerName::try_from(self.server_name.clone()).map_err(|error| ServiceError::Tls {
                        endpoint: endpoint.clone(),
                        detail: format!("\"{}\": {error}", self.server_name),
                    })?;
                match TlsConnector::from(config.clone()).connect(name, stream).await {
                    Ok(stream) => self.exchange(stream).await,
                    Err(error) => Err(error),
                }
            }
        };
        let answer = match answer {
            Ok(answer) => answer,
            // etcd without TLS ends a connection that begins with it, and says nothing.
            Err(error) if self.tls.is_some() && rustls_error(&error).is_none() && self.is_plain().await => {
                return Err(ServiceError::PlainExpected { endpoint });
            }
            Err(error) => return Err(self.explain(&error)),
        };
        // A TLS server answers plain text with an alert, or, in Go, with words.
        if self.tls.is_none() && (answer.first() == Some(&0x15) || contains(&answer, TO_HTTPS)) {
            return Err(ServiceError::TlsExpected { endpoint });
        }
        self.read(&answer)
    }

    async fn connect(&self) -> Result<TcpStream, ServiceError> {
        let connected = TcpStream::connect((self.endpoint.host.as_str(), self.endpoint.port)).await;
        connected.map_err(|error| ServiceError::Unreachable {
            endpoint: self.endpoint.to_string(),
            detail: error.to_string(),
        })
    }

    /// Whether a plain request is answered, where TLS was not.
    async fn is_plain(&self) -> bool {
        let Ok(stream) = self.connect().await else { return false };
        let answer = self.exchange(stream).await;
        answer.is_ok_and(|answer| answer.starts_with(b"HTTP/") && !contains(&answer, TO_HTTPS))
    }

    async fn exchange(&self, mut stream: impl AsyncRead + AsyncWrite + Unpin) -> io::Result<Vec<u8>> {
        let request = format!(
            "GET /health HTTP/1.1\r\nHost: {}\r\nAccept: application/json\r\nConnection: close\r\n\r\n",
            self.endpoint.authority()
        );
        stream.write_all(request.as_bytes()).await?;
        stream.flush().await?;
        let mut answer = Vec::new();
        let mut chunk = [0; 2048];
        while answer.len() < ANSWER_BYTES_MAX && parse(&answer).is_none() {
            match stream.read(&mut chunk).await {
                Ok(0) => break,
                Ok(n) => answer.extend_from_slice(&chunk[..n]),
                // Without a close of TLS's own, what came is still what came.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => break,
                Err(error) if answer.is_empty() => return Err(error),
                Err(_) => break,
            }
        }
        if answer.is_empty() { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(answer) }
    }

    fn read(&self, answer: &[u8]) -> Result<(), ServiceError> {
        let endpoint = self.endpoint.to_string();
        let first = String::from_utf8_lossy(&answer[..answer.len().min(80)]);
        let first = crate::member::tame(first.lines().next().unwrap_or_default(), 80);
        let other =
            |detail| ServiceError::NotTheService { endpoint: endpoint.clone(), expected: "etcd", detail };
        if !answer.starts_with(b"HTTP/") {
            return Err(other(format!("to GET /health it said \"{}\"", first.escape_default())));
        }
        let Some(body) = parse(answer) else {
            return Err(other(format!("GET /health gave \"{}\" and no JSON", first.escape_default())));
        };
        match body.get("health") {
            Some(value) if value == "true" || value == &serde_json::Value::Bool(true) => Ok(()),
            Some(_) => {
                let reason = body.get("reason").and_then(serde_json::Value::as_str).unwrap_or_default();
                let detail = if reason.is_empty() { "it says so itself, without a reason" } else { reason };
                Err(ServiceError::Unhealthy { endpoint, detail: crate::member::tame(detail, 256) })
            }
            None => Err(other("GET /health gave JSON without \"health\"".into())),
        }
    }

    fn explain(&self, error: &io::Error) -> ServiceError {
        let endpoint = self.endpoint.to_string();
        let given = match &self.tls {
            Some((_, given)) => *given,
            // A TLS server that closes without a word is the likeliest to answer so.
            None if error.kind() == io::ErrorKind::UnexpectedEof => {
                return ServiceError::TlsExpected { endpoint };
            }
            None => return ServiceError::Unreachable { endpoint, detail: error.to_string() },
        };
        match rustls_error(error) {
            Some(rustls::Error::InvalidMessage(_)) => ServiceError::PlainExpected { endpoint },
            Some(rustls::Error::InvalidCertificate(why)) => {
                ServiceError::ServerCertificate { endpoint, detail: why.to_string() }
            }
            Some(rustls::Error::AlertReceived(
                alert @ (AlertDescription::CertificateRequired
                | AlertDescription::BadCertificate
                | AlertDescription::UnsupportedCertificate
                | AlertDescription::CertificateUnknown
                | AlertDescription::CertificateExpired
                | AlertDescription::CertificateRevoked
                | AlertDescription::UnknownCA
                | AlertDescription::AccessDenied),
            )) => ServiceError::ClientCertificate { endpoint, given, detail: format!("TLS alert {alert:?}") },
            Some(other) => ServiceError::Tls { endpoint, detail: other.to_string() },
            None => ServiceError::Tls { endpoint, detail: error.to_string() },
        }
    }
}

fn rustls_error(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}

/// The JSON object of an answer, once it is there in full.
fn parse(answer: &[u8]) -> Option<serde_json::Value> {
    let head = answer.windows(4).position(|window| window == b"\r\n\r\n")?;
    let body = &answer[head + 4..];
    let start = body.iter().position(|&byte| byte == b'{')?;
    let end = body.iter().rposition(|&byte| byte == b'}')?;
    serde_json::from_slice(body.get(start..=end)?).ok()
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}
