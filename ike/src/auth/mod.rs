//! Proof of identity in IKE_AUTH (RFC 7296 §2.15, §2.16; RFC 7427), each side with its own kind.
//!
//! [`LocalAuth`] makes what we send, [`RemoteAuth`] checks what the peer sent. The octets that are
//! signed come from [`signed_octets`](crate::crypto::signed_octets) in either case.

use std::sync::Arc;

use crate::{
    crypto::{psk_auth, suite::Prf, verify_psk_auth},
    secret::Secret,
    wire::{AuthMethod, Identity, IdentityPattern, Payload},
};

mod clock;
pub(crate) mod der;
mod pem;
pub mod private_key;
pub mod signature;
pub mod x509;

#[cfg(test)]
mod tests;

pub use clock::WallClock;
pub use private_key::{PrivateKey, PrivateKeyError, Signer};
pub use signature::{AuthSignatureError, HashAlgorithms, RsaPadding};
pub use x509::{
    Certificate, CertificateError, Credentials, CredentialsError, RevocationPolicy, Trust,
    TrustError, UnixSeconds,
};

/// How we prove who we are.
#[derive(Clone, Debug)]
pub enum LocalAuth {
    /// with a pre-shared key
    Psk(Secret),
    /// with a signature, and a certificate for its key
    Certificate(Arc<Credentials>),
}

/// How the peer must prove who it is.
#[derive(Clone, Debug)]
pub enum RemoteAuth {
    /// with a pre-shared key
    Psk(Secret),
    /// with a signature, and a certificate that leads to an anchor
    Certificate(Arc<Trust>),
}

/// Why a proof of identity is not accepted, or ours can't be made. What is wrong is for our own log;
/// the peer is told AUTHENTICATION_FAILED and nothing else (RFC 7296 §2.21.2).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuthError {
    /// Not who was asked for.
    #[error("the peer says it is {said}, expected is {expected}")]
    Identity {
        /// the identity in its ID payload
        said: Identity,
        /// who it may be
        expected: IdentityPattern,
    },
    /// No AUTH payload.
    #[error("the peer sent no AUTH")]
    Missing,
    /// A signature where a pre-shared key is asked for, or the other way round.
    #[error("the peer proves itself with method {}, which is not what is asked for", .0.0)]
    Method(AuthMethod),
    /// The pre-shared key is another.
    #[error("the peer does not have the pre-shared key")]
    Psk,
    /// The certificates.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// The signature, or the key that it is to be made with.
    #[error(transparent)]
    Signature(#[from] AuthSignatureError),
}

impl LocalAuth {
    /// Our CERT payloads, to be sent in front of AUTH; none for a pre-shared key.
    pub fn certificates(&self) -> Vec<Payload> {
        match self {
            LocalAuth::Psk(_) => Vec::new(),
            LocalAuth::Certificate(credentials) => credentials.payloads(),
        }
    }

    /// Our AUTH payload over the octets `signed`. `peer_hashes` is what the SIGNATURE_HASH_ALGORITHMS
    /// of the peer's IKE_SA_INIT says, if we have sent ours too.
    ///
    /// # Errors
    /// [`AuthError::Signature`].
    pub fn prove(
        &self,
        prf: Prf,
        signed: &[u8],
        peer_hashes: Option<HashAlgorithms>,
    ) -> Result<Payload, AuthError> {
        let (method, data) = match self {
            LocalAuth::Psk(psk) => (AuthMethod::SHARED_KEY, psk_auth(prf, psk, signed)),
            LocalAuth::Certificate(credentials) => {
                signature::sign(credentials.signer(), credentials.padding(), peer_hashes, signed)?
            }
        };
        Ok(Payload::Authentication { method, data })
    }
}

/// What a peer says in IKE_AUTH to prove its identity.
#[derive(Clone, Copy, Debug)]
pub struct Proof<'a> {
    /// whom we asked for: the peer may be nobody else
    pub expected: &'a IdentityPattern,
    /// the identity in its ID payload
    pub identity: &'a Identity,
    /// the payloads of its message: CERT and AUTH are taken from them
    pub payloads: &'a [Payload],
    /// the negotiated pseudorandom function
    pub prf: Prf,
    /// the octets that its AUTH covers, made from the same ID payload octet for octet
    pub signed: &'a [u8],
    /// whether SIGNATURE_HASH_ALGORITHMS went both ways in IKE_SA_INIT
    pub both_sent_hashes: bool,
    /// the time of day
    pub now: UnixSeconds,
}

impl RemoteAuth {
    /// The CERTREQ that we send; none if the peer needs no certificate.
    pub fn request(&self) -> Option<Payload> {
        match self {
            RemoteAuth::Psk(_) => None,
            RemoteAuth::Certificate(trust) => Some(trust.request()),
        }
    }

    /// Checks that the peer is one that we expect, and proves it in the way that we ask for. Nothing
    /// that is secret of ours may be sent before.
    ///
    /// # Errors
    /// Any of [`AuthError`].
    pub fn verify(&self, proof: &Proof<'_>) -> Result<(), AuthError> {
        // CVE-2015-4171: a valid certificate for somebody else is worth nothing.
        if !proof.expected.matches(proof.identity) {
            let (said, expected) = (proof.identity.clone(), proof.expected.clone());
            return Err(AuthError::Identity { said, expected });
        }
        let auth = proof.payloads.iter().find_map(|payload| match payload {
            Payload::Authentication { method, data } => Some((*method, data.as_slice())),
            _ => None,
        });
        let (method, data) = auth.ok_or(AuthError::Missing)?;
        let is_psk = method == AuthMethod::SHARED_KEY;
        match self {
            RemoteAuth::Psk(psk) if is_psk => {
                verify_psk_auth(proof.prf, psk, proof.signed, data).map_err(|_| AuthError::Psk)
            }
            RemoteAuth::Certificate(trust) if !is_psk => {
                let chain = Trust::certificates(proof.payloads)?;
                let key = trust.verify(&chain, proof.identity, proof.now)?;
                let auth = (method, data);
                Ok(signature::verify(&key, proof.both_sent_hashes, auth, proof.signed)?)
            }
            _ => Err(AuthError::Method(method)),
        }
    }
}
