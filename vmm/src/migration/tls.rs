//! TLS 1.3 on a migration's connections, with an identity for each migration.
//!
//! The destination makes a key for one migration and says its public half to
//! whoever gave the order ([`Identity::public_key`]). That goes up to the controller
//! and down to the source beside the token, over the same channel, and the
//! source talks to nobody else ([`client`]). The source shows the token inside the
//! encryption, so each side knows the other, with no certificate, no authority
//! and no date to expire. The key is a raw one (RFC 7250) and never written
//! anywhere.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;

use ballast_model::{Refusal, RefusalCode};
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{
    CertificateDer, PrivatePkcs8KeyDer, ServerName, SubjectPublicKeyInfoDer, UnixTime,
};
use rustls::server::AlwaysResolvesServerRawPublicKeys;
use rustls::sign::CertifiedKey;
use rustls::version::TLS13;
use rustls::{
    CertificateError, ClientConfig, ClientConnection, Connection, DigitallySignedStruct, Error,
    ServerConfig, ServerConnection, SignatureScheme,
};

/// An Ed25519 key's length, in bytes.
const SEED_BYTES: usize = 32;
/// PKCS #8 in front of an Ed25519 seed (RFC 8410, section 7).
const PKCS8_HEAD: [u8; 16] =
    [0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];
/// A public key's length as it is told to the source, in bytes.
pub(crate) const PUBLIC_KEY_BYTES: usize = 44;
/// Plaintext a connection takes in at a time.
const BUFFER_BYTES: usize = 256 << 10;

/// What a destination is known by during one migration.
#[derive(Clone)]
pub(crate) struct Identity {
    config: Arc<ServerConfig>,
    public_key: Vec<u8>,
}

impl std::fmt::Debug for Identity {
    /// Without the private key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity").field("public_key", &self.public_key).finish_non_exhaustive()
    }
}

/// AES with 128 bits first: a CPU has an instruction for it.
fn provider() -> Arc<CryptoProvider> {
    let mut provider = ring::default_provider();
    provider.cipher_suites = vec![
        ring::cipher_suite::TLS13_AES_128_GCM_SHA256,
        ring::cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
    ];
    Arc::new(provider)
}

fn refused(what: &str, error: impl std::fmt::Display) -> Refusal {
    Refusal::new(
        RefusalCode::Internal,
        format!("the migration cannot be encrypted: {what}: {error}"),
        "report a defect, and switch TLS off for migrations until it is mended",
    )
}

impl Identity {
    /// A new one.
    ///
    /// # Errors
    /// `Internal` when the system has no random numbers.
    pub(crate) fn new() -> Result<Self, Refusal> {
        let provider = provider();
        let mut key = PKCS8_HEAD.to_vec();
        key.resize(PKCS8_HEAD.len() + SEED_BYTES, 0);
        let seed = &mut key[PKCS8_HEAD.len()..];
        let filled = provider.secure_random.fill(seed);
        filled.map_err(|_| refused("a key", "the system has no random numbers"))?;
        let key = ring::sign::any_eddsa_type(&PrivatePkcs8KeyDer::from(key))
            .map_err(|error| refused("a key", error))?;
        let public_key = key.public_key().map(|key| key.to_vec());
        let public_key = public_key.ok_or_else(|| refused("a key", "it has no public half"))?;
        let raw = CertifiedKey::new(vec![CertificateDer::from(public_key.clone())], key);
        let resolver = AlwaysResolvesServerRawPublicKeys::new(Arc::new(raw));
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])
            .map_err(|error| refused("TLS 1.3", error))?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(resolver));
        // Nothing but frames may come from the destination: its silence is listened to.
        config.send_tls13_tickets = 0;
        Ok(Self { config: Arc::new(config), public_key })
    }

    /// What the source has to be told: [`PUBLIC_KEY_BYTES`] bytes.
    pub(crate) fn public_key(&self) -> &[u8] {
        &self.public_key
    }

    /// A connection that has just come in, once its handshake is done; `channel` is how.
    pub(crate) fn accept(&self, channel: &mut (impl Read + Write)) -> io::Result<Connection> {
        let connection = ServerConnection::new(Arc::clone(&self.config));
        handshake(Connection::Server(connection.map_err(io::Error::other)?), channel)
    }
}

/// A source's side, for the destination with this public key and no other.
///
/// # Errors
/// `Internal` when TLS 1.3 cannot be had.
pub(crate) fn client(public_key: &[u8]) -> Result<Arc<ClientConfig>, Refusal> {
    let provider = provider();
    let pinned = Pinned { public_key: public_key.to_vec(), provider: Arc::clone(&provider) };
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])
        .map_err(|error| refused("TLS 1.3", error))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(pinned))
        .with_no_client_auth();
    config.resumption = Resumption::disabled();
    config.enable_sni = false;
    Ok(Arc::new(config))
}

/// The source's end of a connection, once its handshake is done.
pub(crate) fn connect(config: Arc<ClientConfig>, tcp: &mut TcpStream) -> io::Result<Connection> {
    let name = ServerName::IpAddress(tcp.peer_addr()?.ip().into());
    let connection = ClientConnection::new(config, name).map_err(io::Error::other)?;
    handshake(Connection::Client(connection), tcp)
}

fn handshake(
    mut connection: Connection,
    channel: &mut (impl Read + Write),
) -> io::Result<Connection> {
    connection.set_buffer_limit(Some(BUFFER_BYTES));
    while connection.is_handshaking() {
        connection.complete_io(channel)?;
    }
    Ok(connection)
}

/// Believes one key.
#[derive(Debug)]
struct Pinned {
    public_key: Vec<u8>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if end_entity.as_ref() == self.public_key {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(CertificateError::ApplicationVerificationFailure.into())
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("only TLS 1.3 is spoken".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let key = SubjectPublicKeyInfoDer::from(cert.as_ref());
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature_with_raw_key(message, &key, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::super::wire::{Decrypted, Wire};
    use super::*;

    /// What the two ends say of a handshake in which the source expects `expected`.
    fn meet(identity: &Identity, expected: &[u8]) -> (io::Result<()>, io::Result<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::scope(|scope| {
            let there = scope.spawn(|| {
                let (mut tcp, _) = listener.accept().unwrap();
                let mut tls = identity.accept(&mut tcp)?;
                let mut word = [0; 5];
                Decrypted { tls: &mut tls, from: &mut tcp }.read_exact(&mut word)?;
                assert_eq!(&word, b"token");
                Ok(())
            });
            let here = || {
                let tcp = TcpStream::connect(address)?;
                let config = client(expected).unwrap();
                Wire::of_source(tcp, Some(&config))?.write_all(b"token")
            };
            (here(), there.join().unwrap())
        })
    }

    #[test]
    fn a_source_talks_to_the_destination_it_was_told_of_and_to_no_other() {
        let (identity, other) = (Identity::new().unwrap(), Identity::new().unwrap());
        assert_eq!(identity.public_key().len(), PUBLIC_KEY_BYTES);
        assert_ne!(identity.public_key(), other.public_key());
        let (here, there) = meet(&identity, identity.public_key());
        here.unwrap();
        there.unwrap();
        let (here, there) = meet(&other, identity.public_key());
        assert!(here.is_err() && there.is_err());
    }

    #[test]
    fn a_private_key_is_not_shown() {
        let identity = Identity::new().unwrap();
        assert!(!format!("{identity:?}").contains("config"), "{identity:?}");
    }
}
