//! TLS for a control API that is offered beyond this machine: the operator's certificate and key.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// A certificate and its key, ready for connections.
#[derive(Clone)]
pub struct Tls(TlsAcceptor);

/// Why there is no TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file is not there, or not in PEM.
    #[error("read {what} from {}: {cause}", path.display())]
    File {
        /// What was looked for.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// What was found.
        cause: pem::Error,
    },
    /// It has no certificate in it.
    #[error("{} has no certificate in it: write the chain in PEM, the server's own first", .0.display())]
    NoCertificate(PathBuf),
    /// They do not belong together, or are of a kind that is not understood.
    #[error("the certificate and its key: {0}")]
    Unfit(#[from] rustls::Error),
}

impl Tls {
    /// Reads a chain of certificates, the server's own first, and its key, both in PEM.
    ///
    /// # Errors
    /// When there is none, or one is not the other's.
    pub fn read(certificate: &Path, key: &Path) -> Result<Self, TlsError> {
        let error = |what, path: &Path, cause| TlsError::File {
            what,
            path: path.to_owned(),
            cause,
        };
        let chain = CertificateDer::pem_file_iter(certificate)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .map_err(|cause| error("a certificate", certificate, cause))?;
        if chain.is_empty() {
            return Err(TlsError::NoCertificate(certificate.to_owned()));
        }
        let key = PrivateKeyDer::from_pem_file(key)
            .map_err(|cause| error("a private key", key, cause))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let settings = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(chain, key)?;
        Ok(Self(TlsAcceptor::from(Arc::new(settings))))
    }

    /// Agrees with a client on a connection.
    ///
    /// # Errors
    /// When it speaks no TLS, or none that we do.
    pub(super) async fn accept(&self, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        self.0.accept(stream).await
    }
}
