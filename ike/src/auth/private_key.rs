//! The key that we sign with: PKCS#8 (RFC 5958), SEC1 (RFC 5915) or PKCS#1 (RFC 8017 §A.1.2), as PEM
//! or DER.
//!
//! RSA-PSS, and ECDSA if [`PrivateKey::with_system_randomness`] asks for it, are the one place of this
//! crate that takes randomness from the operating system: `ring` signs with RSA and draws the salt
//! from its own generator alone, and there is no other RSA in constant time to be had. The other
//! schemes give the same signature for the same message: PKCS#1 v1.5 and Ed25519 by definition, ECDSA
//! by RFC 6979. Who wants a replay byte for byte chooses
//! [`RsaPadding::Pkcs1`](super::signature::RsaPadding) or injects a [`Signer`] of their own.

use p256::ecdsa::signature::hazmat::PrehashSigner;
use ring::{
    rand::SystemRandom,
    signature::{
        self as ring_signature, EcdsaKeyPair, Ed25519KeyPair, KeyPair, RsaEncoding, RsaKeyPair,
    },
};
use zeroize::Zeroizing;

use super::{
    der::{Der, tag},
    pem::{self, Label, PemError},
};
use crate::crypto::signature::{
    KeyKind, PublicKey, SignatureError, SignatureHash, SignatureScheme, ecdsa_to_der, key_kind, oid,
};

/// Signs for us: a [`PrivateKey`], or something that has one, such as a smart card.
pub trait Signer: Send + Sync {
    /// The other half of the key.
    fn public_key(&self) -> &PublicKey;

    /// A signature over `message`. For ECDSA it is a DER ECDSA-Sig-Value.
    ///
    /// # Errors
    /// [`SignatureError::WrongKind`] if the key can't make such signatures, or
    /// [`SignatureError::CannotSign`].
    fn sign(&self, scheme: SignatureScheme, message: &[u8]) -> Result<Vec<u8>, SignatureError>;
}

/// Why a file is no private key for us. Says what kind of file it is, never what is in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PrivateKeyError {
    /// No PEM and no DER of a kind that is known.
    #[error("this is no private key: a PEM file with PRIVATE KEY in its first line is expected")]
    NotAKey,
    /// A certificate, perhaps confused with the key.
    #[error("this is a certificate, not the private key that belongs to it")]
    Certificate,
    /// A public key.
    #[error("this is a public key, not the private key that belongs to it")]
    PublicKey,
    /// Needs a pass phrase.
    #[error("the private key is encrypted: decrypt it with \"openssl pkey -in FILE -out NEW\"")]
    Encrypted,
    /// More than one key.
    #[error("there is more than one private key in the file")]
    Several,
    /// The inside does not match the outside.
    #[error("the {0} is malformed or damaged")]
    Malformed(&'static str),
    /// Of a type, curve or size that does not exist here.
    #[error(
        "the {0} is of a type that is not supported: use RSA with 2048 to 8192 bits, ECDSA P-256 or \
         P-384, or Ed25519"
    )]
    Unsupported(&'static str),
}

const PKCS8: &str = "PKCS#8 private key";
const SEC1: &str = "SEC1 private key";
const PKCS1: &str = "PKCS#1 RSA private key";

/// A private key. There is no `Debug`, and nothing that gives the key itself out. Keys for ECDSA are
/// zeroed when dropped; `ring` does not do so for RSA and Ed25519.
pub struct PrivateKey {
    secret: SecretKey,
    public: PublicKey,
    /// the same ECDSA key, for signatures that need not replay
    fast: Option<EcdsaKeyPair>,
}

enum SecretKey {
    Rsa(Box<RsaKeyPair>),
    P256(p256::ecdsa::SigningKey),
    P384(p384::ecdsa::SigningKey),
    Ed25519(Ed25519KeyPair),
}

impl PrivateKey {
    /// Reads the one private key of a file: PEM, or DER of PKCS#8. `file` stays the caller's to zero.
    ///
    /// # Errors
    /// What kind of file it is instead, or what is wrong with it.
    pub fn from_file(file: &[u8]) -> Result<Self, PrivateKeyError> {
        if !pem::looks_like_pem(file) {
            // Anything may be in a file that is not marked; only what parses as PKCS#8 is one.
            return pkcs8(file).map_err(|error| match error {
                PrivateKeyError::Malformed(_) => PrivateKeyError::NotAKey,
                other => other,
            });
        }
        let blocks = pem::blocks(file).map_err(|error| match error {
            PemError::Malformed => PrivateKeyError::Malformed("PEM file"),
            PemError::Encrypted => PrivateKeyError::Encrypted,
        })?;
        let has = |label| blocks.iter().any(|block| block.label == label);
        let mut key = None;
        for block in &blocks {
            let found = match block.label {
                Label::Pkcs8 => pkcs8(&block.der)?,
                Label::Sec1 => sec1(&block.der, None, SEC1)?,
                Label::Pkcs1 => rsa(RsaKeyPair::from_der(&block.der), PKCS1)?,
                Label::EncryptedPkcs8 => return Err(PrivateKeyError::Encrypted),
                _ => continue,
            };
            if key.replace(found).is_some() {
                return Err(PrivateKeyError::Several);
            }
        }
        match key {
            Some(key) => Ok(key),
            None if has(Label::Certificate) => Err(PrivateKeyError::Certificate),
            None if has(Label::PublicKey) => Err(PrivateKeyError::PublicKey),
            None => Err(PrivateKeyError::NotAKey),
        }
    }

    /// The same key, and its ECDSA signatures with the curve's own hash come from `ring`, which on
    /// P-256 is some ten times as fast. Their nonces mix the key and the message with randomness of
    /// the operating system, so that they differ from run to run. Other keys stay as they are.
    #[must_use]
    pub fn with_system_randomness(mut self) -> Self {
        let public = &self.public.octets();
        let pair = |algorithm, scalar: &[u8]| {
            let random = SystemRandom::new();
            EcdsaKeyPair::from_private_key_and_public_key(algorithm, scalar, public, &random).ok()
        };
        self.fast = match &self.secret {
            SecretKey::P256(key) => {
                let scalar = Zeroizing::new(<[u8; 32]>::from(key.to_bytes()));
                pair(&ring_signature::ECDSA_P256_SHA256_ASN1_SIGNING, &*scalar)
            }
            SecretKey::P384(key) => {
                let scalar = Zeroizing::new(<[u8; 48]>::from(key.to_bytes()));
                pair(&ring_signature::ECDSA_P384_SHA384_ASN1_SIGNING, &*scalar)
            }
            SecretKey::Rsa(_) | SecretKey::Ed25519(_) => None,
        };
        self
    }
}

/// RFC 5958 §2: version, algorithm, key, and then attributes and public key, which are passed over.
fn pkcs8(octets: &[u8]) -> Result<PrivateKey, PrivateKeyError> {
    let malformed = |_| PrivateKeyError::Malformed(PKCS8);
    let mut outer = Der::new(octets);
    let mut info = outer.inside(tag::SEQUENCE).map_err(malformed)?;
    outer.finish().map_err(malformed)?;
    info.unsigned().map_err(malformed)?;
    let mut algorithm = info.inside(tag::SEQUENCE).map_err(malformed)?;
    let key = info.value(tag::OCTET_STRING).map_err(malformed)?;
    let kind = key_kind(&mut algorithm).map_err(|error| match error {
        SignatureError::UnsupportedKey => PrivateKeyError::Unsupported(PKCS8),
        _ => PrivateKeyError::Malformed(PKCS8),
    })?;
    match kind {
        KeyKind::Rsa => rsa(RsaKeyPair::from_pkcs8(octets), PKCS8),
        KeyKind::P256 | KeyKind::P384 => sec1(key, Some(kind), PKCS8),
        KeyKind::Ed25519 => {
            let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(octets)
                .map_err(|_| PrivateKeyError::Malformed(PKCS8))?;
            let public = PublicKey::new(kind, pair.public_key().as_ref())
                .map_err(|_| PrivateKeyError::Malformed(PKCS8))?;
            Ok(PrivateKey { secret: SecretKey::Ed25519(pair), public, fast: None })
        }
    }
}

fn rsa(
    pair: Result<RsaKeyPair, ring::error::KeyRejected>,
    file: &'static str,
) -> Result<PrivateKey, PrivateKeyError> {
    let pair = pair.map_err(|rejected| match rejected.to_string().as_str() {
        "TooSmall" | "TooLarge" | "PrivateModulusLenNotMultipleOf512Bits" => {
            PrivateKeyError::Unsupported(file)
        }
        _ => PrivateKeyError::Malformed(file),
    })?;
    let public = PublicKey::new(KeyKind::Rsa, pair.public().as_ref())
        .map_err(|_| PrivateKeyError::Unsupported(file))?;
    Ok(PrivateKey { secret: SecretKey::Rsa(Box::new(pair)), public, fast: None })
}

/// RFC 5915 §3. The curve is named inside, unless PKCS#8 around it has named it.
fn sec1(
    octets: &[u8],
    outside: Option<KeyKind>,
    file: &'static str,
) -> Result<PrivateKey, PrivateKeyError> {
    let malformed = PrivateKeyError::Malformed(file);
    let unreadable = |_| malformed;
    let mut outer = Der::new(octets);
    let mut key = outer.inside(tag::SEQUENCE).map_err(unreadable)?;
    outer.finish().map_err(unreadable)?;
    if key.unsigned().map_err(unreadable)? != [1] {
        return Err(malformed);
    }
    let scalar = key.value(tag::OCTET_STRING).map_err(unreadable)?;
    let curve = key.optional(tag::constructed(0)).map_err(unreadable)?;
    let stored = key.optional(tag::constructed(1)).map_err(unreadable)?;
    key.finish().map_err(unreadable)?;
    let inside = match curve.map(|curve| Der::new(curve.value).value(tag::OID)) {
        None => None,
        Some(Ok(oid::P256)) => Some(KeyKind::P256),
        Some(Ok(oid::P384)) => Some(KeyKind::P384),
        Some(_) => return Err(PrivateKeyError::Unsupported(file)),
    };
    let kind = match (inside, outside) {
        (Some(inside), Some(outside)) if inside != outside => return Err(malformed),
        (inside, outside) => inside.or(outside).ok_or(malformed)?,
    };
    let (secret, point) = if kind == KeyKind::P256 {
        let key = p256::ecdsa::SigningKey::from_slice(scalar).map_err(|_| malformed)?;
        let point = key.verifying_key().to_sec1_point(false);
        (SecretKey::P256(key), point.as_bytes().to_vec())
    } else {
        let key = p384::ecdsa::SigningKey::from_slice(scalar).map_err(|_| malformed)?;
        let point = key.verifying_key().to_sec1_point(false);
        (SecretKey::P384(key), point.as_bytes().to_vec())
    };
    if let Some(stored) = stored {
        // A key file whose halves do not belong together is damaged.
        let stored = Der::new(stored.value).bit_string().map_err(unreadable)?;
        if stored.first() == Some(&4) && stored != point {
            return Err(malformed);
        }
    }
    let public = PublicKey::new(kind, &point).map_err(|_| malformed)?;
    Ok(PrivateKey { secret, public, fast: None })
}

impl Signer for PrivateKey {
    fn public_key(&self) -> &PublicKey {
        &self.public
    }

    fn sign(&self, scheme: SignatureScheme, message: &[u8]) -> Result<Vec<u8>, SignatureError> {
        use SignatureHash::{Sha256, Sha384, Sha512};
        let failed = SignatureError::CannotSign;
        let own_hash = match self.public.kind() {
            KeyKind::P256 => scheme == SignatureScheme::Ecdsa(Sha256),
            KeyKind::P384 => scheme == SignatureScheme::Ecdsa(Sha384),
            KeyKind::Rsa | KeyKind::Ed25519 => false,
        };
        if let Some(pair) = self.fast.as_ref().filter(|_| own_hash) {
            let signature = pair.sign(&SystemRandom::new(), message).map_err(|_| failed)?;
            return Ok(signature.as_ref().to_vec());
        }
        match (&self.secret, scheme) {
            (SecretKey::Rsa(pair), scheme) => {
                let encoding: &'static dyn RsaEncoding = match scheme {
                    SignatureScheme::RsaPkcs1(Sha256) => &ring_signature::RSA_PKCS1_SHA256,
                    SignatureScheme::RsaPkcs1(Sha384) => &ring_signature::RSA_PKCS1_SHA384,
                    SignatureScheme::RsaPkcs1(Sha512) => &ring_signature::RSA_PKCS1_SHA512,
                    SignatureScheme::RsaPss(Sha256) => &ring_signature::RSA_PSS_SHA256,
                    SignatureScheme::RsaPss(Sha384) => &ring_signature::RSA_PSS_SHA384,
                    SignatureScheme::RsaPss(Sha512) => &ring_signature::RSA_PSS_SHA512,
                    _ => return Err(SignatureError::WrongKind),
                };
                let mut out = vec![0; pair.public().modulus_len()];
                pair.sign(encoding, &SystemRandom::new(), message, &mut out).map_err(|_| failed)?;
                Ok(out)
            }
            (SecretKey::P256(key), SignatureScheme::Ecdsa(hash)) => {
                let digest = hash.digest(message);
                let signature: p256::ecdsa::Signature =
                    key.sign_prehash(digest.as_ref()).map_err(|_| failed)?;
                ecdsa_to_der(KeyKind::P256, &signature.to_bytes()).ok_or(failed)
            }
            (SecretKey::P384(key), SignatureScheme::Ecdsa(hash)) => {
                let digest = hash.digest(message);
                let signature: p384::ecdsa::Signature =
                    key.sign_prehash(digest.as_ref()).map_err(|_| failed)?;
                ecdsa_to_der(KeyKind::P384, &signature.to_bytes()).ok_or(failed)
            }
            (SecretKey::Ed25519(pair), SignatureScheme::Ed25519) => {
                Ok(pair.sign(message).as_ref().to_vec())
            }
            _ => Err(SignatureError::WrongKind),
        }
    }
}
