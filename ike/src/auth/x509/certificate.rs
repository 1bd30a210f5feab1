//! What a certificate says about its holder, read without belief: only a path to an anchor makes it
//! true (see [`super::Trust`]).

use std::net::IpAddr;

use ring::digest;

use super::CertificateError;
use crate::{
    auth::{
        der::{Der, DerError, tag},
        pem::{self, Label},
    },
    crypto::signature::{PublicKey, SignatureError},
    wire::{IdKind, Identification, Identity},
};

mod oid {
    pub(super) const KEY_USAGE: &[u8] = &[0x55, 0x1d, 0x0f];
    pub(super) const SUBJECT_ALT_NAME: &[u8] = &[0x55, 0x1d, 0x11];
}

/// A certificate, taken apart.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Certificate {
    der: Vec<u8>,
    issuer: Vec<u8>,
    subject: Vec<u8>,
    spki: Vec<u8>,
    names: Vec<Identity>,
    may_sign: bool,
}

impl From<DerError> for CertificateError {
    fn from(_: DerError) -> Self {
        CertificateError::Malformed
    }
}

impl Certificate {
    /// Reads one DER certificate.
    ///
    /// # Errors
    /// [`CertificateError::Malformed`].
    pub fn from_der(octets: &[u8]) -> Result<Self, CertificateError> {
        let mut outer = Der::new(octets);
        let mut certificate = outer.inside(tag::SEQUENCE)?;
        outer.finish()?;
        let mut tbs = certificate.inside(tag::SEQUENCE)?;
        certificate.value(tag::SEQUENCE)?;
        certificate.value(tag::BIT_STRING)?;
        certificate.finish()?;
        tbs.optional(tag::constructed(0))?; // version; webpki insists on 3
        tbs.value(tag::INTEGER)?; // serial number
        tbs.value(tag::SEQUENCE)?; // signature algorithm
        let mut sequence = || {
            let element = tbs.optional(tag::SEQUENCE)?.ok_or(DerError)?;
            Ok::<_, DerError>(element.whole.to_vec())
        };
        let (issuer, _validity, subject, spki) =
            (sequence()?, sequence()?, sequence()?, sequence()?);
        tbs.optional(tag::primitive(1))?; // issuerUniqueID
        tbs.optional(tag::primitive(2))?; // subjectUniqueID
        let extensions = tbs.optional(tag::constructed(3))?;
        tbs.finish()?;
        let der = octets.to_vec();
        let mut out = Certificate { der, issuer, subject, spki, names: Vec::new(), may_sign: true };
        if let Some(extensions) = extensions {
            out.read_extensions(Der::new(extensions.value))?;
        }
        Ok(out)
    }

    /// Reads all certificates of a file, PEM or one in DER.
    ///
    /// # Errors
    /// [`CertificateError::Malformed`], or [`CertificateError::Missing`] if there is none.
    pub fn from_file(file: &[u8]) -> Result<Vec<Self>, CertificateError> {
        if !pem::looks_like_pem(file) {
            return Certificate::from_der(file).map(|certificate| vec![certificate]);
        }
        let blocks = pem::blocks(file).map_err(|_| CertificateError::Malformed)?;
        let certificates: Vec<_> = blocks
            .iter()
            .filter(|block| block.label == Label::Certificate)
            .map(|block| Certificate::from_der(&block.der))
            .collect::<Result<_, _>>()?;
        if certificates.is_empty() { Err(CertificateError::Missing) } else { Ok(certificates) }
    }

    fn read_extensions(&mut self, mut outer: Der<'_>) -> Result<(), CertificateError> {
        let mut extensions = outer.inside(tag::SEQUENCE)?;
        outer.finish()?;
        let (mut seen_names, mut seen_usage) = (false, false);
        while !extensions.is_empty() {
            let mut extension = extensions.inside(tag::SEQUENCE)?;
            let name = extension.value(tag::OID)?;
            extension.optional(tag::BOOLEAN)?;
            let value = Der::new(extension.value(tag::OCTET_STRING)?);
            extension.finish()?;
            // RFC 5280 §4.2: an extension comes once, or it would depend on the reader what it says.
            let again = match name {
                oid::SUBJECT_ALT_NAME => {
                    self.read_names(value)?;
                    std::mem::replace(&mut seen_names, true)
                }
                oid::KEY_USAGE => {
                    self.may_sign = may_sign(value)?;
                    std::mem::replace(&mut seen_usage, true)
                }
                _ => false,
            };
            if again {
                return Err(CertificateError::Malformed);
            }
        }
        Ok(())
    }

    /// RFC 5280 §4.2.1.6. Names of other types, and those that are not what their type says, are
    /// passed over: they match nothing.
    fn read_names(&mut self, mut outer: Der<'_>) -> Result<(), DerError> {
        const RFC822: u8 = tag::primitive(1);
        const DNS: u8 = tag::primitive(2);
        const ADDRESS: u8 = tag::primitive(7);
        let mut names = outer.inside(tag::SEQUENCE)?;
        outer.finish()?;
        while !names.is_empty() {
            let name = names.any()?;
            let kind = match (name.tag, name.value.len()) {
                (RFC822, _) => IdKind::RFC822,
                (DNS, _) => IdKind::FQDN,
                (ADDRESS, 4) => IdKind::IPV4,
                (ADDRESS, 16) => IdKind::IPV6,
                _ => continue,
            };
            // RFC 4945 §5.1.3.6 and its like: no wildcards. And IA5String is ASCII.
            let text = kind == IdKind::RFC822 || kind == IdKind::FQDN;
            if text && (!name.value.is_ascii() || name.value.contains(&b'*')) {
                continue;
            }
            self.names.extend(Identity::from_wire(&Identification::new(kind, name.value)).ok());
        }
        Ok(())
    }

    /// The octets that go into a CERT payload.
    pub fn der(&self) -> &[u8] {
        &self.der
    }

    /// The subject: a DER Name, as in an ID_DER_ASN1_DN.
    pub fn subject(&self) -> &[u8] {
        &self.subject
    }

    /// The issuer: a DER Name.
    pub fn issuer(&self) -> &[u8] {
        &self.issuer
    }

    /// The subjectAltNames that an identity can be matched to.
    pub fn names(&self) -> &[Identity] {
        &self.names
    }

    /// The holder's key.
    ///
    /// # Errors
    /// [`SignatureError`] if it is malformed or of a type that does not exist here.
    pub fn public_key(&self) -> Result<PublicKey, SignatureError> {
        PublicKey::from_spki(&self.spki)
    }

    /// The name of this authority in a CERTREQ: SHA-1 of its SubjectPublicKeyInfo (RFC 7296 §3.7).
    /// Nothing rests on that hash, which merely helps to choose.
    pub fn authority_hash(&self) -> [u8; 20] {
        let hash = digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, &self.spki);
        hash.as_ref().first_chunk().copied().unwrap_or_default()
    }

    /// Whether the key usage, if there is one, allows AUTH to be signed (RFC 4945 §5.1.3.2).
    pub fn may_sign(&self) -> bool {
        self.may_sign
    }

    /// Whether `identity` is the holder's: a domain, mail address or IP address among the
    /// subjectAltNames, or octet for octet the subject. The subject's common name is no identity
    /// (RFC 4945 §5.1.3.6), nor is a key ID.
    pub fn is_for(&self, identity: &Identity) -> bool {
        match identity {
            Identity::Address(IpAddr::V4(_) | IpAddr::V6(_))
            | Identity::Fqdn(_)
            | Identity::Email(_) => self.names.iter().any(|name| name.is(identity)),
            // An empty sequence names nobody (RFC 5280 §4.1.2.6).
            Identity::DistinguishedName(name) => name.len() > 2 && *name == self.subject,
            Identity::KeyId(_) | Identity::Other(..) => false,
        }
    }
}

/// RFC 5280 §4.2.1.3: bit 0 is digitalSignature, bit 1 is nonRepudiation.
fn may_sign(mut value: Der<'_>) -> Result<bool, DerError> {
    let bits = value.value(tag::BIT_STRING)?;
    value.finish()?;
    match bits {
        [0..=7, first, ..] => Ok(first & 0xc0 != 0),
        [0] => Ok(false),
        _ => Err(DerError),
    }
}
