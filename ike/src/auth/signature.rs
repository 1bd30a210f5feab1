//! What AUTH carries when a signature proves the identity: method 14 with its AlgorithmIdentifier
//! (RFC 7427), Ed25519 in it (RFC 8420), and the older methods of RFC 4754.
//!
//! The older methods are for peers that sent no SIGNATURE_HASH_ALGORITHMS, and for them alone
//! (RFC 7427 §3). Method 1, RSA, is none of them: to the peers that have nothing else it means SHA-1
//! (RFC 7296 §3.8), which does not exist here. Nor does method 11 (P-521).

use super::der::{self, Der, DerError, tag};
use crate::{
    crypto::signature::{
        KeyKind, PublicKey, SignatureError, SignatureHash, SignatureScheme, ecdsa_to_der,
        ecdsa_to_fixed,
    },
    wire::AuthMethod,
};

use super::private_key::Signer;

/// Why an AUTH payload with a signature is not accepted, or can't be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuthSignatureError {
    /// The notify's data is no list of 16-bit numbers: INVALID_SYNTAX.
    #[error("SIGNATURE_HASH_ALGORITHMS is no list of 16-bit numbers")]
    HashList,
    /// The data is too short, or its AlgorithmIdentifier is not strict DER.
    #[error("the AUTH payload's algorithm identifier is malformed")]
    Malformed,
    /// An algorithm that is not offered here, SHA-1 among them.
    #[error("the AUTH payload is signed with an algorithm that is not accepted")]
    Algorithm,
    /// A method that does not fit: an old one though both sent SIGNATURE_HASH_ALGORITHMS, the new one
    /// though the peer sent none, or one that does not exist here.
    #[error("authentication method {} is not accepted", .0.0)]
    Method(AuthMethod),
    /// The peer knows no hash that our key can be used with.
    #[error("the peer accepts no hash that our key can sign with")]
    NoCommonHash,
    /// The signature itself.
    #[error(transparent)]
    Signature(#[from] SignatureError),
}

impl From<DerError> for AuthSignatureError {
    fn from(_: DerError) -> Self {
        AuthSignatureError::Malformed
    }
}

/// The hashes that a side accepts in signatures: the data of SIGNATURE_HASH_ALGORITHMS (RFC 7427 §4).
/// Unknown numbers and SHA-1 are left out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HashAlgorithms {
    sha256: bool,
    sha384: bool,
    sha512: bool,
    /// the number 5 of RFC 8420 §2: Ed25519 hashes by itself
    identity: bool,
}

impl HashAlgorithms {
    /// What this implementation accepts.
    pub const OURS: Self =
        HashAlgorithms { sha256: true, sha384: true, sha512: true, identity: true };

    /// Reads the data of the notify.
    ///
    /// # Errors
    /// [`AuthSignatureError::HashList`] if its length is odd.
    pub fn parse(data: &[u8]) -> Result<Self, AuthSignatureError> {
        let (numbers, rest) = data.as_chunks::<2>();
        if !rest.is_empty() {
            return Err(AuthSignatureError::HashList);
        }
        let has = |number: u16| numbers.contains(&number.to_be_bytes());
        Ok(HashAlgorithms { sha256: has(2), sha384: has(3), sha512: has(4), identity: has(5) })
    }

    /// The data of the notify.
    pub fn emit(self) -> Vec<u8> {
        [(2u16, self.sha256), (3, self.sha384), (4, self.sha512), (5, self.identity)]
            .into_iter()
            .filter(|(_, has)| *has)
            .flat_map(|(number, _)| number.to_be_bytes())
            .collect()
    }

    /// Whether signatures of this scheme are welcome.
    pub fn accept(self, scheme: SignatureScheme) -> bool {
        match scheme {
            SignatureScheme::RsaPkcs1(hash)
            | SignatureScheme::RsaPss(hash)
            | SignatureScheme::Ecdsa(hash) => match hash {
                SignatureHash::Sha256 => self.sha256,
                SignatureHash::Sha384 => self.sha384,
                SignatureHash::Sha512 => self.sha512,
            },
            SignatureScheme::Ed25519 => self.identity,
        }
    }
}

/// How our RSA key pads; a peer can't say which it knows.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum RsaPadding {
    /// RSASSA-PSS, which RFC 8247 §3.2 asks for
    #[default]
    Pss,
    /// RSASSA-PKCS1-v1_5, for peers without PSS
    Pkcs1,
}

/// The scheme for our kind of key that the peer's list allows, best first.
pub fn choose(kind: KeyKind, padding: RsaPadding, peer: HashAlgorithms) -> Option<SignatureScheme> {
    use SignatureHash::{Sha256, Sha384, Sha512};
    let with = |hashes: [SignatureHash; 3], scheme: fn(SignatureHash) -> SignatureScheme| {
        hashes.into_iter().map(scheme).find(|scheme| peer.accept(*scheme))
    };
    match (kind, padding) {
        (KeyKind::Rsa, RsaPadding::Pss) => with([Sha256, Sha384, Sha512], SignatureScheme::RsaPss),
        (KeyKind::Rsa, RsaPadding::Pkcs1) => {
            with([Sha256, Sha384, Sha512], SignatureScheme::RsaPkcs1)
        }
        (KeyKind::P256, _) => with([Sha256, Sha384, Sha512], SignatureScheme::Ecdsa),
        (KeyKind::P384, _) => with([Sha384, Sha512, Sha256], SignatureScheme::Ecdsa),
        (KeyKind::Ed25519, _) => {
            Some(SignatureScheme::Ed25519).filter(|scheme| peer.accept(*scheme))
        }
    }
}

/// Signs `message` for AUTH. `peer` is what the peer's SIGNATURE_HASH_ALGORITHMS said, if it sent one
/// and we did.
///
/// # Errors
/// [`AuthSignatureError::NoCommonHash`], also for an RSA or Ed25519 key and a peer without the notify,
/// or what the key says.
pub fn sign(
    signer: &dyn Signer,
    padding: RsaPadding,
    peer: Option<HashAlgorithms>,
    message: &[u8],
) -> Result<(AuthMethod, Vec<u8>), AuthSignatureError> {
    let kind = signer.public_key().kind();
    if let Some(peer) = peer {
        let scheme = choose(kind, padding, peer).ok_or(AuthSignatureError::NoCommonHash)?;
        let signature = signer.sign(scheme, message)?;
        return Ok((AuthMethod::DIGITAL_SIGNATURE, emit(scheme, &signature)));
    }
    let (method, scheme) = match kind {
        KeyKind::P256 => (AuthMethod::ECDSA_256, SignatureScheme::Ecdsa(SignatureHash::Sha256)),
        KeyKind::P384 => (AuthMethod::ECDSA_384, SignatureScheme::Ecdsa(SignatureHash::Sha384)),
        KeyKind::Rsa | KeyKind::Ed25519 => return Err(AuthSignatureError::NoCommonHash),
    };
    let signature = signer.sign(scheme, message)?;
    // RFC 4754 §7: two numbers of fixed length, not DER.
    ecdsa_to_fixed(kind, &signature)
        .map(|fixed| (method, fixed))
        .ok_or(AuthSignatureError::Signature(SignatureError::CannotSign))
}

/// Checks the method and data of the peer's AUTH payload against its key. `both_sent_hashes` says
/// whether SIGNATURE_HASH_ALGORITHMS went both ways in IKE_SA_INIT.
///
/// # Errors
/// Any of [`AuthSignatureError`] but the list's and the choice's.
pub fn verify(
    key: &PublicKey,
    both_sent_hashes: bool,
    (method, data): (AuthMethod, &[u8]),
    message: &[u8],
) -> Result<(), AuthSignatureError> {
    // RFC 7427 §3: with the notify in both directions method 14 is a must, else it is forbidden.
    if (method == AuthMethod::DIGITAL_SIGNATURE) != both_sent_hashes {
        return Err(AuthSignatureError::Method(method));
    }
    let old_ecdsa = |kind: KeyKind, hash: SignatureHash| {
        if key.kind() != kind {
            return Err(SignatureError::WrongKind);
        }
        let signature = ecdsa_to_der(kind, data).ok_or(SignatureError::Invalid)?;
        key.verify(SignatureScheme::Ecdsa(hash), message, &signature)
    };
    match method {
        AuthMethod::DIGITAL_SIGNATURE => {
            let (scheme, signature) = parse(data)?;
            Ok(key.verify(scheme, message, signature)?)
        }
        AuthMethod::ECDSA_256 => Ok(old_ecdsa(KeyKind::P256, SignatureHash::Sha256)?),
        AuthMethod::ECDSA_384 => Ok(old_ecdsa(KeyKind::P384, SignatureHash::Sha384)?),
        other => Err(AuthSignatureError::Method(other)),
    }
}

/// The data of an AUTH payload with method 14: length octet, AlgorithmIdentifier, signature
/// (RFC 7427 §3).
pub fn emit(scheme: SignatureScheme, signature: &[u8]) -> Vec<u8> {
    let algorithm = algorithm_identifier(scheme);
    // The longest, of RSASSA-PSS, has 67 octets.
    let mut out = vec![u8::try_from(algorithm.len()).unwrap_or(u8::MAX)];
    out.extend(algorithm);
    out.extend(signature);
    out
}

/// Splits the data of an AUTH payload with method 14.
///
/// # Errors
/// [`AuthSignatureError::Malformed`] or [`AuthSignatureError::Algorithm`].
pub fn parse(data: &[u8]) -> Result<(SignatureScheme, &[u8]), AuthSignatureError> {
    let (length, rest) = data.split_first().ok_or(AuthSignatureError::Malformed)?;
    let (algorithm, signature) =
        rest.split_at_checked(usize::from(*length)).ok_or(AuthSignatureError::Malformed)?;
    Ok((parse_algorithm(algorithm)?, signature))
}

mod oid {
    pub(super) const RSA_SHA256: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0b];
    pub(super) const RSA_SHA384: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0c];
    pub(super) const RSA_SHA512: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0d];
    pub(super) const RSA_PSS: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0a];
    pub(super) const MGF1: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x08];
    pub(super) const ECDSA_SHA256: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02];
    pub(super) const ECDSA_SHA384: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x03];
    pub(super) const ECDSA_SHA512: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x04];
    pub(super) const ED25519: &[u8] = &[0x2b, 0x65, 0x70];
    pub(super) const SHA256: &[u8] = &[0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01];
    pub(super) const SHA384: &[u8] = &[0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x02];
    pub(super) const SHA512: &[u8] = &[0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x03];
}

/// The DER AlgorithmIdentifier of a scheme (RFC 7427 appendix A, RFC 8420 appendix A).
pub fn algorithm_identifier(scheme: SignatureScheme) -> Vec<u8> {
    use SignatureHash::{Sha256, Sha384, Sha512};
    let sequence = |contents: &[&[u8]]| der::element(tag::SEQUENCE, &contents.concat());
    let oid = |oid: &[u8]| der::element(tag::OID, oid);
    let null = der::element(tag::NULL, &[]);
    match scheme {
        SignatureScheme::RsaPkcs1(hash) => {
            let name = match hash {
                Sha256 => oid::RSA_SHA256,
                Sha384 => oid::RSA_SHA384,
                Sha512 => oid::RSA_SHA512,
            };
            sequence(&[&oid(name), &null])
        }
        SignatureScheme::Ecdsa(hash) => {
            let name = match hash {
                Sha256 => oid::ECDSA_SHA256,
                Sha384 => oid::ECDSA_SHA384,
                Sha512 => oid::ECDSA_SHA512,
            };
            sequence(&[&oid(name)])
        }
        SignatureScheme::Ed25519 => sequence(&[&oid(oid::ED25519)]),
        SignatureScheme::RsaPss(hash) => {
            let (name, salt) = match hash {
                Sha256 => (oid::SHA256, 32),
                Sha384 => (oid::SHA384, 48),
                Sha512 => (oid::SHA512, 64),
            };
            let hash = sequence(&[&oid(name), &null]);
            let mask = sequence(&[&oid(oid::MGF1), &hash]);
            // The trailer field has its default, which DER leaves out.
            let parameters = sequence(&[
                &der::element(tag::constructed(0), &hash),
                &der::element(tag::constructed(1), &mask),
                &der::element(tag::constructed(2), &der::unsigned(&[salt])),
            ]);
            sequence(&[&oid(oid::RSA_PSS), &parameters])
        }
    }
}

/// Reads an AlgorithmIdentifier to its end.
fn parse_algorithm(octets: &[u8]) -> Result<SignatureScheme, AuthSignatureError> {
    use SignatureHash::{Sha256, Sha384, Sha512};
    let mut outer = Der::new(octets);
    let mut inner = outer.inside(tag::SEQUENCE)?;
    // CVE-2018-16151: whatever is not looked at is room for a forger.
    outer.finish()?;
    let rsa = |hash, mut parameters: Der<'_>| {
        // RFC 4055 §5: the parameters are NULL, and peers that leave them out are to be understood.
        optional_null(&mut parameters)?;
        Ok(SignatureScheme::RsaPkcs1(hash))
    };
    let without = |scheme, parameters: Der<'_>| {
        parameters.finish()?;
        Ok(scheme)
    };
    match inner.value(tag::OID)? {
        oid::RSA_SHA256 => rsa(Sha256, inner),
        oid::RSA_SHA384 => rsa(Sha384, inner),
        oid::RSA_SHA512 => rsa(Sha512, inner),
        oid::ECDSA_SHA256 => without(SignatureScheme::Ecdsa(Sha256), inner),
        oid::ECDSA_SHA384 => without(SignatureScheme::Ecdsa(Sha384), inner),
        oid::ECDSA_SHA512 => without(SignatureScheme::Ecdsa(Sha512), inner),
        oid::ED25519 => without(SignatureScheme::Ed25519, inner),
        oid::RSA_PSS => pss(inner),
        _ => Err(AuthSignatureError::Algorithm),
    }
}

/// The parameters of RSASSA-PSS (RFC 4055 §3.1). What is absent is SHA-1 by default, so hash, mask
/// and salt must all be there, and agree (RFC 8247 §3.2).
fn pss(mut inner: Der<'_>) -> Result<SignatureScheme, AuthSignatureError> {
    let mut parameters = inner.inside(tag::SEQUENCE)?;
    inner.finish()?;
    let mut field = |number| parameters.optional(tag::constructed(number));
    let (hash, mask, salt, trailer) = (field(0)?, field(1)?, field(2)?, field(3)?);
    parameters.finish()?;
    let (Some(hash), Some(mask), Some(salt)) = (hash, mask, salt) else {
        return Err(AuthSignatureError::Algorithm);
    };
    let hash = hash_identifier(hash.value)?;
    let mut mask_outer = Der::new(mask.value);
    let mut mask = mask_outer.inside(tag::SEQUENCE)?;
    mask_outer.finish()?;
    let generator = mask.value(tag::OID)?;
    let mask_hash = mask.any()?;
    mask.finish()?;
    let mut salt_outer = Der::new(salt.value);
    let salt = salt_outer.unsigned()?;
    salt_outer.finish()?;
    let mut trailer_is_one = true;
    if let Some(trailer) = trailer {
        // Not DER, since it is the default, but what RFC 7427 appendix A.4.3 shows.
        let mut outer = Der::new(trailer.value);
        trailer_is_one = outer.unsigned()? == [1];
        outer.finish()?;
    }
    let salt_fits = <[u8; 1]>::try_from(salt).is_ok_and(|[octet]| usize::from(octet) == hash.len());
    let agree = generator == oid::MGF1 && hash_identifier(mask_hash.whole)? == hash;
    if agree && salt_fits && trailer_is_one {
        Ok(SignatureScheme::RsaPss(hash))
    } else {
        Err(AuthSignatureError::Algorithm)
    }
}

/// The AlgorithmIdentifier of a hash.
fn hash_identifier(octets: &[u8]) -> Result<SignatureHash, AuthSignatureError> {
    let mut outer = Der::new(octets);
    let mut inner = outer.inside(tag::SEQUENCE)?;
    outer.finish()?;
    let name = inner.value(tag::OID)?;
    optional_null(&mut inner)?;
    match name {
        oid::SHA256 => Ok(SignatureHash::Sha256),
        oid::SHA384 => Ok(SignatureHash::Sha384),
        oid::SHA512 => Ok(SignatureHash::Sha512),
        _ => Err(AuthSignatureError::Algorithm),
    }
}

/// NULL or nothing (RFC 4055 §2.1), and then the end.
fn optional_null(parameters: &mut Der<'_>) -> Result<(), DerError> {
    match parameters.optional(tag::NULL)? {
        Some(null) if !null.value.is_empty() => Err(DerError),
        _ => parameters.finish(),
    }
}
