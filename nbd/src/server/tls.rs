//! TLS on a connection, and who the peer is by its certificate.

use super::link::Link;
use crate::error::NbdError;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection};
use std::collections::BTreeSet;
use std::io::{self, IoSlice, Read, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// Bytes encrypted before they are sent: four records of TLS.
const PLAIN_AT_ONCE: usize = 64 << 10;
/// Bytes received at once, before they are decrypted.
const CIPHER_AT_ONCE: usize = 64 << 10;

/// How a listener does TLS: its certificate, and whose certificates it accepts. There is no way to accept clients without one.
#[derive(Clone, Debug)]
pub struct TlsSettings {
    pub(super) config: Arc<ServerConfig>,
}

impl TlsSettings {
    /// As [`TlsSettings::new`], from files in PEM: the chain of the server with its own certificate first, its key, and the
    /// authorities that sign for clients.
    ///
    /// # Errors
    /// When one of them cannot be read, holds nothing of its kind, or they do not fit together.
    pub fn from_files(certificates: &Path, key: &Path, client_authorities: &Path) -> Result<Self, NbdError> {
        let failed = |path: &Path, why: &dyn std::fmt::Display| NbdError::Tls(format!("{}: {why}", path.display()));
        let chain = |path: &Path| -> Result<Vec<CertificateDer<'static>>, NbdError> {
            let found = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
            match found {
                Ok(found) if found.is_empty() => Err(failed(path, &"no certificate in it")),
                found => found.map_err(|error| failed(path, &error)),
            }
        };
        let secret = PrivateKeyDer::from_pem_file(key).map_err(|error| failed(key, &error))?;
        Self::new(chain(certificates)?, secret, chain(client_authorities)?)
    }

    /// `certificates` with the server's own first, its `key`, and the authorities that sign for clients.
    ///
    /// # Errors
    /// When these do not fit together.
    pub fn new(
        certificates: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
        client_authorities: Vec<CertificateDer<'static>>,
    ) -> Result<Self, NbdError> {
        let failed = |error: &dyn std::fmt::Display| NbdError::Tls(error.to_string());
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut roots = RootCertStore::empty();
        for authority in client_authorities {
            roots.add(authority).map_err(|error| failed(&error))?;
        }
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
            .build()
            .map_err(|error| failed(&error))?;
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| failed(&error))?
            .with_client_cert_verifier(verifier)
            .with_single_cert(certificates, key)
            .map_err(|error| failed(&error))?;
        // Connections last for days; none is resumed.
        config.send_tls13_tickets = 0;
        Ok(Self {
            config: Arc::new(config),
        })
    }
}

/// The TLS of one connection.
pub(super) struct Secure {
    connection: Mutex<ServerConnection>,
    /// Received and not decrypted yet. Only the receiver touches it.
    received: Mutex<Received>,
    /// Encrypted and not sent yet. Only the sender touches it.
    outgoing: Mutex<Vec<u8>>,
}

struct Received {
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Secure {
    pub(super) fn handshake(link: &Link, config: &Arc<ServerConfig>, deadline: Instant) -> io::Result<Self> {
        let mut connection = ServerConnection::new(config.clone()).map_err(io::Error::other)?;
        let mut stream = Stream { link, deadline };
        while connection.is_handshaking() {
            connection.complete_io(&mut stream)?;
        }
        while connection.wants_write() {
            connection.write_tls(&mut stream)?;
        }
        connection.set_buffer_limit(Some(2 * PLAIN_AT_ONCE));
        Ok(Self {
            connection: Mutex::new(connection),
            received: Mutex::new(Received {
                bytes: vec![0; CIPHER_AT_ONCE].into_boxed_slice(),
                start: 0,
                end: 0,
            }),
            outgoing: Mutex::default(),
        })
    }

    fn connection(&self) -> MutexGuard<'_, ServerConnection> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn recv(&self, link: &Link, buf: &mut [u8]) -> io::Result<usize> {
        let mut received = self.received.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let mut connection = self.connection();
            match connection.reader().read(buf) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                done => return done,
            }
            if received.start < received.end {
                let held = &mut *received;
                let mut bytes = &held.bytes[held.start..held.end];
                let taken = connection.read_tls(&mut bytes)?;
                held.start += taken;
                connection.process_new_packets().map_err(io::Error::other)?;
                continue;
            }
            drop(connection);
            let count = link.recv_raw(&mut received.bytes)?;
            if count == 0 {
                return Ok(0);
            }
            (received.start, received.end) = (0, count);
        }
    }

    /// Encrypts some of `slices` and sends it all, waiting.
    pub(super) fn send(&self, link: &Link, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut outgoing = self.outgoing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut taken = 0;
        let mut connection = self.connection();
        for slice in slices {
            let some = &slice[..slice.len().min(PLAIN_AT_ONCE - taken)];
            let wrote = connection.writer().write(some)?;
            taken += wrote;
            if wrote < slice.len() {
                break;
            }
        }
        while connection.wants_write() {
            connection.write_tls(&mut *outgoing)?;
        }
        // What waits for the socket must not keep the receiver from decrypting.
        drop(connection);
        let mut sent = 0;
        while sent < outgoing.len() {
            sent += link.send_raw(&[IoSlice::new(&outgoing[sent..])], true)?;
        }
        outgoing.clear();
        Ok(taken)
    }

    /// Tells the peer that nothing follows, so that it knows nothing was cut off.
    pub(super) fn finish(&self, link: &Link) {
        self.connection().send_close_notify();
        // A peer that is gone needs not be told.
        let _ = self.send(link, &[]);
    }

    /// Names of the peer in its certificate: `uri:`, `dns:` and `cn:`.
    pub(super) fn peer_names(&self) -> BTreeSet<String> {
        let connection = self.connection();
        let Some(certificate) = connection.peer_certificates().and_then(<[_]>::first) else {
            return BTreeSet::new();
        };
        names(certificate)
    }
}

fn names(certificate: &CertificateDer<'_>) -> BTreeSet<String> {
    // It was verified in the handshake, so it parses; if not, it has no name and gets nothing that is for names.
    let Ok(parsed) = webpki::EndEntityCert::try_from(certificate) else {
        return BTreeSet::new();
    };
    let uris = parsed.valid_uri_names().map(|name| format!("uri:{name}"));
    let hosts = parsed.valid_dns_names().map(|name| format!("dns:{name}"));
    let common = common_name(parsed.subject()).map(|name| format!("cn:{name}"));
    uris.chain(hosts).chain(common).collect()
}

/// The common name in the content of a DER-encoded subject: a list of sets of pairs of identifier and text.
fn common_name(mut subject: &[u8]) -> Option<String> {
    /// Identifier 2.5.4.3.
    const COMMON_NAME: [u8; 3] = [0x55, 4, 3];
    while !subject.is_empty() {
        let (set, rest) = der(subject, 0x31)?;
        subject = rest;
        let (pair, _) = der(set, 0x30)?;
        let (identifier, value) = der(pair, 6)?;
        if identifier == COMMON_NAME {
            let kind = *value.first()?;
            // UTF8String and PrintableString; nobody writes others any more.
            let (text, _) = matches!(kind, 0x0c | 0x13).then(|| der(value, kind))??;
            return String::from_utf8(text.to_vec()).ok();
        }
    }
    None
}

/// Content of the element of type `tag` at the start, and what follows it. Lengths up to 65535.
fn der(bytes: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (&found, rest) = bytes.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (len, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        0x81 => rest.split_first().map(|(len, rest)| (usize::from(*len), rest))?,
        0x82 => rest
            .split_first_chunk::<2>()
            .map(|(len, rest)| (usize::from(u16::from_be_bytes(*len)), rest))?,
        _ => return None,
    };
    (found == tag).then(|| rest.split_at_checked(len))?
}

/// The socket while the handshake lasts.
struct Stream<'a> {
    link: &'a Link,
    deadline: Instant,
}

impl Read for Stream<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.link.set_deadline(self.deadline)?;
        self.link.recv_raw(buf)
    }
}

impl Write for Stream<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.link.set_deadline(self.deadline)?;
        self.link.send_raw(&[IoSlice::new(buf)], true)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_common_name_is_found_where_it_stands() {
        // C=DE, CN=node; the O before it holds the bytes of a common name, as text.
        let subject = [
            &[0x31, 11, 0x30, 9, 6, 3, 0x55, 4, 6, 0x13, 2, b'D', b'E'][..],
            &[0x31, 14, 0x30, 12, 6, 3, 0x55, 4, 10, 0x0c, 5, 6, 3, 0x55, 4, 3][..],
            &[0x31, 13, 0x30, 11, 6, 3, 0x55, 4, 3, 0x0c, 4, b'n', b'o', b'd', b'e'][..],
        ]
        .concat();
        assert_eq!(common_name(&subject).as_deref(), Some("node"));
        for cut in 0..subject.len() {
            assert_eq!(common_name(&subject[..cut]), None);
        }
    }
}
