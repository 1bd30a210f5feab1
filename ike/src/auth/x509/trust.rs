//! Whom we trust: anchors, intermediates and revocation lists of our own, and the check of a peer's
//! chain against them (RFC 5280 §6, RFC 4945 §5). Path building is webpki's, the rules around it ours.

use std::{collections::BTreeMap, fmt, time::Duration};

use rustls_pki_types::{CertificateDer, SignatureVerificationAlgorithm, TrustAnchor, UnixTime};
use webpki::{
    CertRevocationList, EndEntityCert, Error, ExpirationPolicy, ExtendedKeyUsageValidator,
    KeyPurposeIdIter, OwnedCertRevocationList, RequiredEkuNotFoundContext,
    RevocationOptionsBuilder, UnknownStatusPolicy, anchor_from_trusted_cert,
};

use super::{Certificate, CertificateError, MAX_CERTIFICATES, MAX_CHAIN_OCTETS};
use crate::{
    auth::pem::{self, Label},
    crypto::signature::PublicKey,
    wire::{CertEncoding, Identity, Payload},
};

/// Seconds since 1970-01-01 00:00 UTC. The driver reads the clock, not this crate.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct UnixSeconds(pub u64);

/// What revocation lists decide. One that is known and says "revoked" always refuses, but for `Off`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum RevocationPolicy {
    /// lists are not looked at
    Off,
    /// a list that is out of date still counts; an authority may have none; either is told in the log
    Relaxed,
    /// a list that is out of date refuses all of its authority's certificates; an authority may have
    /// none
    #[default]
    Fresh,
    /// as `Fresh`, and each authority of a chain must have one
    Required,
}

/// Why something can't be trusted in the first place: a fault of the configuration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TrustError {
    /// Nobody is trusted.
    #[error("there is no certificate of an authority to trust")]
    NoAnchor,
    /// An anchor whose certificate webpki can't read.
    #[error("a certificate that is to be trusted is malformed")]
    Anchor,
    /// A file that is no revocation list, or one of a kind that is not supported.
    #[error("the revocation list is malformed, or is a delta or indirect one")]
    RevocationList,
}

/// Whom we trust, and how strictly.
pub struct Trust {
    anchors: Vec<TrustAnchor<'static>>,
    hashes: Vec<[u8; 20]>,
    intermediates: Vec<CertificateDer<'static>>,
    lists: Vec<CertRevocationList<'static>>,
    policy: RevocationPolicy,
}

/// Signatures on certificates and revocation lists: no SHA-1, as in AUTH (RFC 8247 §3.2), and no RSA
/// below 2048 bits.
const ALGORITHMS: &[&dyn SignatureVerificationAlgorithm] = &[
    webpki::ring::ECDSA_P256_SHA256,
    webpki::ring::ECDSA_P256_SHA384,
    webpki::ring::ECDSA_P384_SHA256,
    webpki::ring::ECDSA_P384_SHA384,
    webpki::ring::ED25519,
    webpki::ring::RSA_PKCS1_2048_8192_SHA256,
    webpki::ring::RSA_PKCS1_2048_8192_SHA384,
    webpki::ring::RSA_PKCS1_2048_8192_SHA512,
    webpki::ring::RSA_PSS_2048_8192_SHA256_LEGACY_KEY,
    webpki::ring::RSA_PSS_2048_8192_SHA384_LEGACY_KEY,
    webpki::ring::RSA_PSS_2048_8192_SHA512_LEGACY_KEY,
];

impl Trust {
    /// Trusts what these authorities certify. They count as they are: their own validity is not
    /// checked (RFC 5280 §6.1.1).
    ///
    /// # Errors
    /// [`TrustError::NoAnchor`] or [`TrustError::Anchor`].
    pub fn new(anchors: &[Certificate]) -> Result<Self, TrustError> {
        if anchors.is_empty() {
            return Err(TrustError::NoAnchor);
        }
        let read = |certificate: &Certificate| {
            anchor_from_trusted_cert(&CertificateDer::from(certificate.der()))
                .map(|anchor| anchor.to_owned())
                .map_err(|_| TrustError::Anchor)
        };
        let mut hashes: Vec<_> = anchors.iter().map(Certificate::authority_hash).collect();
        hashes.sort_unstable();
        hashes.dedup();
        Ok(Trust {
            anchors: anchors.iter().map(read).collect::<Result<_, _>>()?,
            hashes,
            intermediates: Vec::new(),
            lists: Vec::new(),
            policy: RevocationPolicy::default(),
        })
    }

    /// The same with intermediates at hand for peers that leave them out.
    #[must_use]
    pub fn with_intermediates(mut self, intermediates: &[Certificate]) -> Self {
        let der = |certificate: &Certificate| CertificateDer::from(certificate.der().to_vec());
        self.intermediates.extend(intermediates.iter().map(der));
        self
    }

    /// The same with another policy about revocation.
    #[must_use]
    pub fn with_revocation_policy(mut self, policy: RevocationPolicy) -> Self {
        self.policy = policy;
        self
    }

    /// Adds the revocation lists of a file, PEM or one in DER. A later list of an authority replaces
    /// an earlier one. Its signature is checked when it is used.
    ///
    /// # Errors
    /// [`TrustError::RevocationList`].
    pub fn add_revocation_lists(&mut self, file: &[u8]) -> Result<(), TrustError> {
        let malformed = |_| TrustError::RevocationList;
        let read = |der: &[u8]| {
            OwnedCertRevocationList::from_der(der)
                .map(CertRevocationList::from)
                .map_err(|_| TrustError::RevocationList)
        };
        let lists = if pem::looks_like_pem(file) {
            let blocks = pem::blocks(file).map_err(malformed)?;
            let lists = blocks.iter().filter(|block| block.label == Label::Crl);
            lists.map(|block| read(&block.der)).collect::<Result<Vec<_>, _>>()?
        } else {
            vec![read(file)?]
        };
        if lists.is_empty() {
            return Err(TrustError::RevocationList);
        }
        for list in lists {
            self.lists.retain(|old| {
                old.issuer() != list.issuer()
                    || old.issuing_distribution_point() != list.issuing_distribution_point()
            });
            self.lists.push(list);
        }
        Ok(())
    }

    /// The names of our anchors in a CERTREQ, in order.
    pub fn authorities(&self) -> &[[u8; 20]] {
        &self.hashes
    }

    /// The CERTREQ that names our anchors (RFC 7296 §3.7).
    pub fn request(&self) -> Payload {
        Trust::request_of(self.hashes.iter().copied())
    }

    /// A CERTREQ that names these authorities, or asks for any X.509 certificate if there are none.
    pub fn request_of(authorities: impl IntoIterator<Item = [u8; 20]>) -> Payload {
        Payload::CertificateRequest {
            encoding: CertEncoding::X509_SIGNATURE,
            data: authorities.into_iter().flatten().collect(),
        }
    }

    /// The X.509 certificates among `payloads`, in their order. Other encodings are passed over:
    /// nothing is fetched, and only our own revocation lists count.
    ///
    /// # Errors
    /// [`CertificateError::TooMuch`].
    pub fn certificates(payloads: &[Payload]) -> Result<Vec<&[u8]>, CertificateError> {
        let chain: Vec<&[u8]> = payloads
            .iter()
            .filter_map(|payload| match payload {
                Payload::Certificate { encoding: CertEncoding::X509_SIGNATURE, data } => {
                    Some(data.as_slice())
                }
                _ => None,
            })
            .collect();
        let octets: usize = chain.iter().map(|certificate| certificate.len()).sum();
        if chain.len() > MAX_CERTIFICATES || octets > MAX_CHAIN_OCTETS {
            return Err(CertificateError::TooMuch);
        }
        Ok(chain)
    }

    /// Checks at the time `now` that the first certificate of `chain` is for `identity` and leads to
    /// an anchor, and gives its key, with which AUTH must be signed (RFC 7296 §1.2). The others may
    /// come in any order; of those with the same subject and issuer the first two are looked at.
    ///
    /// # Errors
    /// Any of [`CertificateError`].
    pub fn verify(
        &self,
        chain: &[&[u8]],
        identity: &Identity,
        now: UnixSeconds,
    ) -> Result<PublicKey, CertificateError> {
        let (first, others) = chain.split_first().ok_or(CertificateError::Missing)?;
        let octets: usize = chain.iter().map(|certificate| certificate.len()).sum();
        if chain.len() > MAX_CERTIFICATES || octets > MAX_CHAIN_OCTETS {
            return Err(CertificateError::TooMuch);
        }
        // What costs little comes first; none of it is true before the path is found.
        let certificate = Certificate::from_der(first)?;
        if !certificate.is_for(identity) {
            return Err(CertificateError::WrongName(identity.clone()));
        }
        if !certificate.may_sign() {
            return Err(CertificateError::KeyUsage);
        }
        let key = certificate.public_key().map_err(|_| CertificateError::Algorithm)?;
        let others = &untangled(others);
        if self.policy == RevocationPolicy::Relaxed && !self.lists.is_empty() {
            // What is let pass is not kept silent.
            let strictly = self.find_path(first, others, now, RevocationPolicy::Required);
            if let Err(error) = strictly {
                self.find_path(first, others, now, RevocationPolicy::Relaxed)?;
                tracing::warn!(%identity, "a certificate is accepted all the same: {error}");
            }
            return Ok(key);
        }
        self.find_path(first, others, now, self.policy)?;
        Ok(key)
    }

    fn find_path(
        &self,
        first: &[u8],
        others: &[&[u8]],
        now: UnixSeconds,
        policy: RevocationPolicy,
    ) -> Result<(), CertificateError> {
        let first = CertificateDer::from(first);
        let first = EndEntityCert::try_from(&first).map_err(reason)?;
        let ours = self.intermediates.iter().map(|certificate| certificate.as_ref());
        let intermediates: Vec<_> =
            others.iter().copied().chain(ours).map(CertificateDer::from).collect();
        let lists: Vec<_> = self.lists.iter().collect();
        let revocation = match (policy, RevocationOptionsBuilder::new(&lists)) {
            (RevocationPolicy::Off, _) => None,
            // webpki can't be asked to insist on lists when there are none.
            (RevocationPolicy::Required, Err(_)) => {
                return Err(CertificateError::UnknownRevocation);
            }
            (_, Err(_)) => None,
            (policy, Ok(builder)) => {
                let unknown = match policy {
                    RevocationPolicy::Required => UnknownStatusPolicy::Deny,
                    _ => UnknownStatusPolicy::Allow,
                };
                let stale = match policy {
                    RevocationPolicy::Relaxed => ExpirationPolicy::Ignore,
                    _ => ExpirationPolicy::Enforce,
                };
                let builder = builder.with_status_policy(unknown).with_expiration_policy(stale);
                Some(builder.build())
            }
        };
        let now = UnixTime::since_unix_epoch(Duration::from_secs(now.0));
        first
            .verify_for_usage(
                ALGORITHMS,
                &self.anchors,
                &intermediates,
                now,
                IkeUsage,
                revocation,
                None,
            )
            .map(drop)
            .map_err(reason)
    }
}

/// At most two certificates of each pair of names, which is enough for one and its renewal. Each more
/// multiplies the paths to try: a stranger can make them, and it is we who check the signatures.
fn untangled<'a>(certificates: &[&'a [u8]]) -> Vec<&'a [u8]> {
    let mut seen = BTreeMap::<_, usize>::new();
    let keep = |der: &&[u8]| {
        let Ok(certificate) = Certificate::from_der(der) else { return false };
        let names = (certificate.subject().to_vec(), certificate.issuer().to_vec());
        let count = seen.entry(names).or_default();
        *count += 1;
        *count <= 2
    };
    certificates.iter().copied().filter(keep).collect()
}

impl fmt::Debug for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (anchors, lists) = (self.anchors.len(), self.lists.len());
        write!(f, "Trust({anchors} anchors, {lists} revocation lists)")
    }
}

/// The extended key usage that IKE asks for (RFC 4945 §5.1.3.12): ipsecIKE, any, or no such extension;
/// and serverAuth, since that is what public authorities issue for gateways.
struct IkeUsage;

impl ExtendedKeyUsageValidator for IkeUsage {
    fn validate(&self, purposes: KeyPurposeIdIter<'_, '_>) -> Result<(), Error> {
        const IPSEC_IKE: [usize; 9] = [1, 3, 6, 1, 5, 5, 7, 3, 17];
        const SERVER_AUTH: [usize; 9] = [1, 3, 6, 1, 5, 5, 7, 3, 1];
        const ANY: [usize; 5] = [2, 5, 29, 37, 0];
        let mut present = Vec::new();
        for purpose in purposes {
            let purpose = purpose?.to_decoded_oid();
            if purpose == IPSEC_IKE || purpose == SERVER_AUTH || purpose == ANY {
                return Ok(());
            }
            present.push(purpose);
        }
        if present.is_empty() {
            return Ok(());
        }
        Err(Error::RequiredEkuNotFoundContext(RequiredEkuNotFoundContext {
            required: webpki::KeyUsage::server_auth(),
            present,
        }))
    }
}

fn reason(error: Error) -> CertificateError {
    match error {
        Error::BadDer | Error::BadDerTime | Error::TrailingData(_) => CertificateError::Malformed,
        Error::CertExpired { .. } => CertificateError::Expired,
        Error::CertNotValidYet { .. } => CertificateError::NotYetValid,
        Error::CertRevoked => CertificateError::Revoked,
        Error::CrlExpired { .. } => CertificateError::StaleRevocationList,
        Error::UnknownRevocationStatus => CertificateError::UnknownRevocation,
        Error::UnknownIssuer => CertificateError::UnknownIssuer,
        Error::RequiredEkuNotFoundContext(_) => CertificateError::ExtendedKeyUsage,
        Error::MaximumPathDepthExceeded
        | Error::MaximumPathBuildCallsExceeded
        | Error::MaximumSignatureChecksExceeded
        | Error::MaximumNameConstraintComparisonsExceeded => CertificateError::TooDeep,
        Error::InvalidSignatureForPublicKey | Error::InvalidCrlSignatureForPublicKey => {
            CertificateError::Signature
        }
        Error::UnsupportedSignatureAlgorithmContext(_)
        | Error::UnsupportedSignatureAlgorithmForPublicKeyContext(_)
        | Error::UnsupportedCrlSignatureAlgorithmContext(_)
        | Error::UnsupportedCrlSignatureAlgorithmForPublicKeyContext(_)
        | Error::SignatureAlgorithmMismatch => CertificateError::Algorithm,
        other => CertificateError::Rule(format!("{other:?}")),
    }
}
