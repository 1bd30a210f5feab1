//! Signatures: RSA (RFC 8017) with PKCS#1 v1.5 or PSS, ECDSA on P-256 and P-384, Ed25519 (RFC 8032).
//!
//! SHA-1 does not exist here (RFC 8247 §3.2), nor do RSA keys outside of 2048 to 8192 bits (§3.1).

use p256::ecdsa::signature::hazmat::PrehashVerifier;
use ring::{digest, signature as ring_signature};

use crate::auth::der::{self, Der, DerError, tag};

/// The hash inside a signature.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum SignatureHash {
    /// SHA2-256
    Sha256,
    /// SHA2-384
    Sha384,
    /// SHA2-512
    Sha512,
}

impl SignatureHash {
    /// Octets of output; also the length of the salt in RSASSA-PSS.
    pub fn len(self) -> usize {
        match self {
            SignatureHash::Sha256 => 32,
            SignatureHash::Sha384 => 48,
            SignatureHash::Sha512 => 64,
        }
    }

    /// Never: for the sake of [`SignatureHash::len`].
    pub fn is_empty(self) -> bool {
        false
    }

    pub(crate) fn digest(self, message: &[u8]) -> digest::Digest {
        let algorithm = match self {
            SignatureHash::Sha256 => &digest::SHA256,
            SignatureHash::Sha384 => &digest::SHA384,
            SignatureHash::Sha512 => &digest::SHA512,
        };
        digest::digest(algorithm, message)
    }
}

/// How a signature is made.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum SignatureScheme {
    /// RSASSA-PKCS1-v1_5
    RsaPkcs1(SignatureHash),
    /// RSASSA-PSS with MGF1, one hash for both, and a salt as long as the hash (RFC 8247 §3.2)
    RsaPss(SignatureHash),
    /// ECDSA, on the curve of the key; the value is a DER ECDSA-Sig-Value (RFC 3279 §2.2.3)
    Ecdsa(SignatureHash),
    /// Ed25519, without pre-hash (RFC 8420 §2)
    Ed25519,
}

/// What kind of key signs.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum KeyKind {
    /// RSA with 2048 to 8192 bits
    Rsa,
    /// ECDSA on P-256
    P256,
    /// ECDSA on P-384
    P384,
    /// Ed25519
    Ed25519,
}

impl KeyKind {
    /// Whether such a key makes such signatures.
    pub fn makes(self, scheme: SignatureScheme) -> bool {
        matches!(
            (self, scheme),
            (KeyKind::Rsa, SignatureScheme::RsaPkcs1(_) | SignatureScheme::RsaPss(_))
                | (KeyKind::P256 | KeyKind::P384, SignatureScheme::Ecdsa(_))
                | (KeyKind::Ed25519, SignatureScheme::Ed25519)
        )
    }

    /// Octets of a coordinate, and of each half of an ECDSA signature; none if it is no such key.
    pub(crate) fn field_len(self) -> Option<usize> {
        match self {
            KeyKind::P256 => Some(32),
            KeyKind::P384 => Some(48),
            KeyKind::Rsa | KeyKind::Ed25519 => None,
        }
    }
}

/// Why a signature, or the key for it, is not accepted; carries no octet of either.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// The SubjectPublicKeyInfo can't be read.
    #[error("the public key is malformed")]
    MalformedKey,
    /// A key type or curve that is not one of [`KeyKind`].
    #[error("the public key is none of RSA, ECDSA P-256, ECDSA P-384 and Ed25519")]
    UnsupportedKey,
    /// A scheme that the key can't have been used with.
    #[error("the signature's algorithm does not fit the key")]
    WrongKind,
    /// The signature is not this key's over this message, or an RSA key is too small or too large.
    #[error("the signature is wrong")]
    Invalid,
    /// Our own key failed to sign.
    #[error("the private key can't sign")]
    CannotSign,
}

impl From<DerError> for SignatureError {
    fn from(_: DerError) -> Self {
        SignatureError::MalformedKey
    }
}

pub(crate) mod oid {
    pub(crate) const RSA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01];
    pub(crate) const EC: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01];
    pub(crate) const P256: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
    pub(crate) const P384: &[u8] = &[0x2b, 0x81, 0x04, 0x00, 0x22];
    pub(crate) const ED25519: &[u8] = &[0x2b, 0x65, 0x70];
}

/// A key that verifies signatures.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PublicKey {
    kind: KeyKind,
    octets: Vec<u8>,
}

impl PublicKey {
    /// A key in the form that the BIT STRING of a SubjectPublicKeyInfo has: an RSAPublicKey, an
    /// uncompressed point, or the 32 octets of Ed25519.
    pub(crate) fn new(kind: KeyKind, octets: &[u8]) -> Result<Self, SignatureError> {
        let sound = match kind {
            KeyKind::Rsa => {
                let mut key = Der::new(octets);
                let mut numbers = key.inside(tag::SEQUENCE)?;
                key.finish()?;
                let (modulus, _exponent) = (numbers.unsigned()?, numbers.unsigned()?);
                numbers.finish()?;
                // The bounds of the exponent, and the exact ones of the modulus, are ring's.
                (256..=1024).contains(&modulus.len())
            }
            KeyKind::P256 => octets.len() == 65 && octets.first() == Some(&4),
            KeyKind::P384 => octets.len() == 97 && octets.first() == Some(&4),
            KeyKind::Ed25519 => octets.len() == 32,
        };
        let key = PublicKey { kind, octets: octets.to_vec() };
        if sound { Ok(key) } else { Err(SignatureError::UnsupportedKey) }
    }

    /// Reads a DER SubjectPublicKeyInfo (RFC 5280 §4.1.2.7).
    ///
    /// # Errors
    /// [`SignatureError::MalformedKey`] or [`SignatureError::UnsupportedKey`].
    pub fn from_spki(spki: &[u8]) -> Result<Self, SignatureError> {
        let mut outer = Der::new(spki);
        let mut info = outer.inside(tag::SEQUENCE)?;
        outer.finish()?;
        let mut algorithm = info.inside(tag::SEQUENCE)?;
        let octets = info.bit_string()?;
        info.finish()?;
        PublicKey::new(key_kind(&mut algorithm)?, octets)
    }

    /// What kind of key it is.
    pub fn kind(&self) -> KeyKind {
        self.kind
    }

    /// The key as the BIT STRING of a SubjectPublicKeyInfo has it.
    pub(crate) fn octets(&self) -> &[u8] {
        &self.octets
    }

    /// Checks a signature over `message`.
    ///
    /// # Errors
    /// [`SignatureError::WrongKind`] if this key can't make such signatures, or
    /// [`SignatureError::Invalid`].
    pub fn verify(
        &self,
        scheme: SignatureScheme,
        message: &[u8],
        signature: &[u8],
    ) -> Result<(), SignatureError> {
        use SignatureHash::{Sha256, Sha384, Sha512};
        use SignatureScheme::{Ecdsa, Ed25519, RsaPkcs1, RsaPss};
        let algorithm: &dyn ring_signature::VerificationAlgorithm = match (self.kind, scheme) {
            (KeyKind::Rsa, RsaPkcs1(Sha256)) => &ring_signature::RSA_PKCS1_2048_8192_SHA256,
            (KeyKind::Rsa, RsaPkcs1(Sha384)) => &ring_signature::RSA_PKCS1_2048_8192_SHA384,
            (KeyKind::Rsa, RsaPkcs1(Sha512)) => &ring_signature::RSA_PKCS1_2048_8192_SHA512,
            (KeyKind::Rsa, RsaPss(Sha256)) => &ring_signature::RSA_PSS_2048_8192_SHA256,
            (KeyKind::Rsa, RsaPss(Sha384)) => &ring_signature::RSA_PSS_2048_8192_SHA384,
            (KeyKind::Rsa, RsaPss(Sha512)) => &ring_signature::RSA_PSS_2048_8192_SHA512,
            (KeyKind::P256, Ecdsa(Sha256)) => &ring_signature::ECDSA_P256_SHA256_ASN1,
            (KeyKind::P256, Ecdsa(Sha384)) => &ring_signature::ECDSA_P256_SHA384_ASN1,
            (KeyKind::P384, Ecdsa(Sha256)) => &ring_signature::ECDSA_P384_SHA256_ASN1,
            (KeyKind::P384, Ecdsa(Sha384)) => &ring_signature::ECDSA_P384_SHA384_ASN1,
            (KeyKind::P256 | KeyKind::P384, Ecdsa(Sha512)) => {
                return self.verify_ecdsa_sha512(message, signature);
            }
            (KeyKind::Ed25519, Ed25519) => &ring_signature::ED25519,
            _ => return Err(SignatureError::WrongKind),
        };
        ring_signature::UnparsedPublicKey::new(algorithm, &self.octets)
            .verify(message, signature)
            .map_err(|_| SignatureError::Invalid)
    }

    /// The pair that ring lacks, and that peers choose who like the longest hash best.
    fn verify_ecdsa_sha512(&self, message: &[u8], signature: &[u8]) -> Result<(), SignatureError> {
        let invalid = |_| SignatureError::Invalid;
        let hash = SignatureHash::Sha512.digest(message);
        let fixed = ecdsa_to_fixed(self.kind, signature).ok_or(SignatureError::Invalid)?;
        if self.kind == KeyKind::P256 {
            let key = p256::ecdsa::VerifyingKey::from_sec1_bytes(&self.octets).map_err(invalid)?;
            let signature = p256::ecdsa::Signature::from_slice(&fixed).map_err(invalid)?;
            key.verify_prehash(hash.as_ref(), &signature).map_err(invalid)
        } else {
            let key = p384::ecdsa::VerifyingKey::from_sec1_bytes(&self.octets).map_err(invalid)?;
            let signature = p384::ecdsa::Signature::from_slice(&fixed).map_err(invalid)?;
            key.verify_prehash(hash.as_ref(), &signature).map_err(invalid)
        }
    }
}

/// Reads the contents of a key's AlgorithmIdentifier to their end.
pub(crate) fn key_kind(algorithm: &mut Der<'_>) -> Result<KeyKind, SignatureError> {
    let kind = match algorithm.value(tag::OID)? {
        // RFC 3279 §2.3.1: the parameters are NULL.
        oid::RSA => match algorithm.value(tag::NULL)? {
            [] => KeyKind::Rsa,
            _ => return Err(SignatureError::MalformedKey),
        },
        oid::EC => match algorithm.value(tag::OID) {
            Ok(oid::P256) => KeyKind::P256,
            Ok(oid::P384) => KeyKind::P384,
            // Other curves, and parameters that spell out a curve of the sender's own making.
            _ => return Err(SignatureError::UnsupportedKey),
        },
        oid::ED25519 => KeyKind::Ed25519,
        _ => return Err(SignatureError::UnsupportedKey),
    };
    algorithm.finish()?;
    Ok(kind)
}

/// An ECDSA-Sig-Value as the two numbers behind each other, each as long as the curve's field
/// (RFC 4754 §7); none if it is not strict DER or a number is too long.
pub(crate) fn ecdsa_to_fixed(kind: KeyKind, der: &[u8]) -> Option<Vec<u8>> {
    let len = kind.field_len()?;
    let mut outer = Der::new(der);
    let mut numbers = outer.inside(tag::SEQUENCE).ok()?;
    let (r, s) = (numbers.unsigned().ok()?, numbers.unsigned().ok()?);
    numbers.finish().ok()?;
    outer.finish().ok()?;
    let mut out = Vec::with_capacity(2 * len);
    for number in [r, s] {
        out.resize(out.len() + len.checked_sub(number.len())?, 0);
        out.extend(number);
    }
    Some(out)
}

/// The other way; none if the length is not the curve's.
pub(crate) fn ecdsa_to_der(kind: KeyKind, fixed: &[u8]) -> Option<Vec<u8>> {
    let (r, s) = fixed.split_at_checked(kind.field_len()?)?;
    (r.len() == s.len())
        .then(|| der::element(tag::SEQUENCE, &[der::unsigned(r), der::unsigned(s)].concat()))
}
