//! What CERT and CERTREQ payloads carry (RFC 7296 §3.6, §3.7).

/// The encoding of a certificate (RFC 7296 §3.6); unknown values are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CertEncoding(pub u8);

impl CertEncoding {
    /// A DER certificate.
    pub const X509_SIGNATURE: Self = Self(4);
    /// A DER revocation list.
    pub const CRL: Self = Self(7);
    /// SHA-1 and URL of a certificate.
    pub const HASH_AND_URL: Self = Self(12);
    /// SHA-1 and URL of a bundle of certificates.
    pub const HASH_AND_URL_BUNDLE: Self = Self(13);
    /// An OCSP response, or in a request the responders that are trusted (RFC 4806).
    pub const OCSP_CONTENT: Self = Self(14);
    /// A SubjectPublicKeyInfo (RFC 7670).
    pub const RAW_PUBLIC_KEY: Self = Self(15);
}

/// The authorities that the data of a CERTREQ names: SHA-1 of each one's public key.
///
/// `None` if the data is not a list of 20-octet hashes (RFC 7296 §3.7).
pub fn authority_hashes(data: &[u8]) -> Option<&[[u8; 20]]> {
    let (hashes, rest) = data.as_chunks();
    rest.is_empty().then_some(hashes)
}

/// Hash and URL of a CERT payload with one of the two such encodings.
///
/// `None` if it is too short, or if the URL is not printable ASCII.
pub fn hash_and_url(data: &[u8]) -> Option<(&[u8; 20], &str)> {
    let (hash, url) = data.split_first_chunk()?;
    let url = std::str::from_utf8(url).ok()?;
    (!url.is_empty() && url.bytes().all(|octet| octet.is_ascii_graphic())).then_some((hash, url))
}
