//! Certificates and keys from files, for the health check and for gRPC.

use std::path::Path;
use std::sync::Arc;

use etcd_client::{Certificate, Identity, TlsOptions};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto};

use crate::config::EtcdConfig;
use crate::error::ServiceError;

/// Largest certificate or key file, bytes.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// What TLS needs, read and checked.
pub(super) struct Material {
    /// For the health check.
    pub(super) config: Arc<ClientConfig>,
    ca: Option<Vec<u8>>,
    identity: Option<(Vec<u8>, Vec<u8>)>,
}

impl Material {
    /// Reads the files; nothing where no endpoint speaks TLS.
    pub(super) fn load(etcd: &EtcdConfig) -> Result<Option<Self>, ServiceError> {
        if !etcd.endpoints.iter().any(|endpoint| endpoint.tls) {
            return Ok(None);
        }
        let files = &etcd.tls;
        let mut roots = RootCertStore::empty();
        let ca = match &files.ca {
            Some(path) => {
                let what = "CA certificates";
                let pem = read(what, path)?;
                for certificate in certificates(what, path, &pem)? {
                    roots.add(certificate).map_err(|error| bad(what, path, &error))?;
                }
                Some(pem)
            }
            None => {
                // Some of a system's certificates may be unreadable; one that is needed then shows as untrusted.
                roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
                None
            }
        };
        let builder = ClientConfig::builder_with_provider(Arc::new(crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| ServiceError::Local { doing: "set TLS up", detail: error.to_string() })?
            .with_root_certificates(roots);
        let (config, identity) = match (&files.cert, &files.key) {
            (Some(cert_path), Some(key_path)) => {
                let cert = read("client certificate", cert_path)?;
                let key = read("client key", key_path)?;
                let chain = certificates("client certificate", cert_path, &cert)?;
                // A reader's error could repeat a part of the file, which is a key's: it is not shown.
                let secret = PrivateKeyDer::from_pem_slice(&key)
                    .map_err(|_| bad("client key", key_path, &"it has no private key in PEM"))?;
                let config = builder
                    .with_client_auth_cert(chain, secret)
                    .map_err(|error| bad("client certificate", cert_path, &error))?;
                (config, Some((cert, key)))
            }
            (None, None) => (builder.with_no_client_auth(), None),
            (Some(path), None) => return Err(bad("client certificate", path, &"its key is not given")),
            (None, Some(path)) => return Err(bad("client key", path, &"its certificate is not given")),
        };
        Ok(Some(Self { config: Arc::new(config), ca, identity }))
    }

    /// Whether a client certificate was given.
    pub(super) fn has_identity(&self) -> bool {
        self.identity.is_some()
    }

    /// The same for gRPC.
    pub(super) fn for_grpc(&self, etcd: &EtcdConfig) -> TlsOptions {
        let mut options = TlsOptions::new();
        options = match &self.ca {
            Some(pem) => options.ca_certificate(Certificate::from_pem(pem)),
            None => options.with_native_roots(),
        };
        if let Some((cert, key)) = &self.identity {
            options = options.identity(Identity::from_pem(cert, key));
        }
        if let Some(name) = &etcd.tls.server_name {
            options = options.domain_name(name.as_str());
        }
        options
    }
}

fn read(what: &'static str, path: &Path) -> Result<Vec<u8>, ServiceError> {
    use std::io::Read;
    let file = std::fs::File::open(path).map_err(|error| bad(what, path, &error))?;
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(|error| bad(what, path, &error))?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(bad(what, path, &format_args!("it has more than {FILE_BYTES_MAX} bytes")));
    }
    Ok(bytes)
}

fn certificates(
    what: &'static str,
    path: &Path,
    pem: &[u8],
) -> Result<Vec<CertificateDer<'static>>, ServiceError> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match all {
        Ok(all) if all.is_empty() => Err(bad(what, path, &"it has no certificate in PEM")),
        Ok(all) => Ok(all),
        Err(error) => Err(bad(what, path, &error)),
    }
}

fn bad(what: &'static str, path: &Path, detail: &dyn std::fmt::Display) -> ServiceError {
    ServiceError::TlsFile { what, path: path.into(), detail: detail.to_string() }
}
