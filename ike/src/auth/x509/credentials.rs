//! What we show and sign with: a chain of certificates, our own first, and the key that belongs to it.

use std::{fmt, sync::Arc};

use super::{Certificate, CertificateError, MAX_CERTIFICATES, MAX_CHAIN_OCTETS};
use crate::{
    auth::{private_key::Signer, signature::RsaPadding},
    wire::{CertEncoding, Identity, Payload, cert::authority_hashes},
};

/// Why certificates and a key do not go together.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CredentialsError {
    /// No certificate.
    #[error("there is no certificate to go with the private key")]
    Missing,
    /// More than [`MAX_CERTIFICATES`] or [`MAX_CHAIN_OCTETS`].
    #[error("the certificates are too many or too large: at most 10 with 65536 octets together")]
    TooMuch,
    /// The first certificate has another key.
    #[error("the first certificate does not belong to the private key: put the holder's own first")]
    OtherKey,
    /// The first certificate can't be used to sign AUTH.
    #[error(transparent)]
    Certificate(CertificateError),
}

/// Certificates, and the key of the first.
#[derive(Clone)]
pub struct Credentials {
    chain: Vec<Certificate>,
    signer: Arc<dyn Signer>,
    padding: RsaPadding,
    /// authorities that this chain leads to
    authorities: Vec<[u8; 20]>,
}

impl Credentials {
    /// Takes `chain`, the holder's own certificate first and then the intermediates, and checks that
    /// the key belongs to the first.
    ///
    /// # Errors
    /// [`CredentialsError`].
    pub fn new(chain: Vec<Certificate>, signer: Arc<dyn Signer>) -> Result<Self, CredentialsError> {
        let first = chain.first().ok_or(CredentialsError::Missing)?;
        let octets: usize = chain.iter().map(|certificate| certificate.der().len()).sum();
        if chain.len() > MAX_CERTIFICATES || octets > MAX_CHAIN_OCTETS {
            return Err(CredentialsError::TooMuch);
        }
        let malformed = |_| CredentialsError::Certificate(CertificateError::Algorithm);
        if first.public_key().map_err(malformed)? != *signer.public_key() {
            return Err(CredentialsError::OtherKey);
        }
        if !first.may_sign() {
            return Err(CredentialsError::Certificate(CertificateError::KeyUsage));
        }
        let authorities = chain.iter().skip(1).map(Certificate::authority_hash).collect();
        Ok(Credentials { chain, signer, padding: RsaPadding::default(), authorities })
    }

    /// The same with another padding for an RSA key.
    #[must_use]
    pub fn with_rsa_padding(mut self, padding: RsaPadding) -> Self {
        self.padding = padding;
        self
    }

    /// The same, knowing the authorities among `roots` that have issued a certificate of the chain:
    /// peers ask for them in CERTREQ, and they are not in the chain.
    #[must_use]
    pub fn with_roots(mut self, roots: &[Certificate]) -> Self {
        let issuers = |root: &&Certificate| {
            self.chain.iter().any(|certificate| certificate.issuer() == root.subject())
        };
        self.authorities.extend(roots.iter().filter(issuers).map(Certificate::authority_hash));
        self
    }

    /// Whether our own certificate is for this identity, without which no peer would accept it.
    pub fn are_for(&self, identity: &Identity) -> bool {
        self.chain.first().is_some_and(|certificate| certificate.is_for(identity))
    }

    /// Whether a CERTREQ among `payloads` names an authority of ours, or none in particular. It helps
    /// to choose between several; it is no reason to send nothing (RFC 7296 §3.7).
    pub fn are_asked_for(&self, payloads: &[Payload]) -> bool {
        payloads.iter().any(|payload| match payload {
            Payload::CertificateRequest { encoding: CertEncoding::X509_SIGNATURE, data } => {
                let hashes = authority_hashes(data).unwrap_or_default();
                data.is_empty() || hashes.iter().any(|hash| self.authorities.contains(hash))
            }
            _ => false,
        })
    }

    /// The CERT payloads. The first holds the key that AUTH is signed with (RFC 7296 §1.2). A root is
    /// not among them: who trusts it has it, and others take nothing from it.
    pub fn payloads(&self) -> Vec<Payload> {
        let payload = |certificate: &Certificate| Payload::Certificate {
            encoding: CertEncoding::X509_SIGNATURE,
            data: certificate.der().to_vec(),
        };
        let is_root = |certificate: &Certificate| certificate.issuer() == certificate.subject();
        let others = self.chain.iter().skip(1).filter(|certificate| !is_root(certificate));
        self.chain.iter().take(1).chain(others).map(payload).collect()
    }

    /// The certificates, our own first.
    pub fn chain(&self) -> &[Certificate] {
        &self.chain
    }

    pub(crate) fn signer(&self) -> &dyn Signer {
        &*self.signer
    }

    pub(crate) fn padding(&self) -> RsaPadding {
        self.padding
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Credentials({} certificates)", self.chain.len())
    }
}
