//! Certificates (RFC 5280, RFC 4945): what one says, whom we trust, and what we show.

mod certificate;
mod credentials;
mod trust;

pub use certificate::Certificate;
pub use credentials::{Credentials, CredentialsError};
pub use trust::{RevocationPolicy, Trust, TrustError, UnixSeconds};

use crate::wire::Identity;

/// Certificates that a chain may have; webpki looks at no more than six between the first and the
/// anchor.
pub const MAX_CERTIFICATES: usize = 10;

/// Octets that all certificates of a chain may have together.
pub const MAX_CHAIN_OCTETS: usize = 64 * 1024;

/// Why a certificate, or the chain that it stands on, is not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    /// No CERT payload with an X.509 certificate.
    #[error("the peer sent no certificate")]
    Missing,
    /// More than [`MAX_CERTIFICATES`] or [`MAX_CHAIN_OCTETS`].
    #[error("the peer's certificates are too many or too large")]
    TooMuch,
    /// Not a certificate, or not one of version 3.
    #[error("a certificate is malformed")]
    Malformed,
    /// The identity is neither a subjectAltName nor the subject.
    #[error("the certificate is not for {0}")]
    WrongName(Identity),
    /// A key usage without digitalSignature and nonRepudiation (RFC 4945 §5.1.3.2).
    #[error("the certificate's key usage does not allow signatures")]
    KeyUsage,
    /// An extended key usage without ipsecIKE, serverAuth and anyExtendedKeyUsage.
    #[error(
        "the extended key usage of a certificate does not allow IKE: it needs ipsecIKE, serverAuth, \
         any, or no such extension"
    )]
    ExtendedKeyUsage,
    /// Out of date.
    #[error("a certificate has expired")]
    Expired,
    /// Of the future.
    #[error("a certificate is not valid yet")]
    NotYetValid,
    /// No path to an anchor of ours.
    #[error("the certificate is not issued by an authority that is trusted here")]
    UnknownIssuer,
    /// A path with more intermediates, or more ways to look for one, than are followed.
    #[error("the certificate chain is too long or too tangled")]
    TooDeep,
    /// On a revocation list.
    #[error("a certificate has been revoked")]
    Revoked,
    /// The revocation list should have been replaced by now, and the policy insists.
    #[error("the revocation list of an authority is out of date")]
    StaleRevocationList,
    /// No revocation list speaks about it, and the policy insists.
    #[error("there is no revocation list for a certificate's authority")]
    UnknownRevocation,
    /// The issuer's signature is not the issuer's.
    #[error("the signature on a certificate or revocation list is wrong")]
    Signature,
    /// SHA-1, MD5, a short RSA key, or a key type that does not exist here.
    #[error(
        "a certificate or revocation list has a key or signature algorithm that is not accepted"
    )]
    Algorithm,
    /// Any other rule of RFC 5280: the word is webpki's.
    #[error("a certificate breaks a rule: {0}")]
    Rule(String),
}
