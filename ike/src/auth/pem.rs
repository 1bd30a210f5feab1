//! PEM (RFC 7468): the blocks of a file, in their order. What a block holds is zeroed when dropped.

use base64ct::{Base64, Encoding};
use zeroize::Zeroizing;

/// One block.
pub(crate) struct Block {
    pub(crate) label: Label,
    pub(crate) der: Zeroizing<Vec<u8>>,
}

/// What the block says it is. Labels that are of no use here are not kept: an error may name a label,
/// and must not print what a file happens to hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Label {
    Certificate,
    Crl,
    Pkcs8,
    EncryptedPkcs8,
    Sec1,
    Pkcs1,
    PublicKey,
    Other,
}

impl Label {
    fn of(text: &str) -> Self {
        match text {
            "CERTIFICATE" | "X509 CERTIFICATE" => Label::Certificate,
            "X509 CRL" => Label::Crl,
            "PRIVATE KEY" => Label::Pkcs8,
            "ENCRYPTED PRIVATE KEY" => Label::EncryptedPkcs8,
            "EC PRIVATE KEY" => Label::Sec1,
            "RSA PRIVATE KEY" => Label::Pkcs1,
            "PUBLIC KEY" => Label::PublicKey,
            _ => Label::Other,
        }
    }
}

/// A block that does not end, or whose contents are no base64.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PemError {
    Malformed,
    /// the contents are encrypted in the old way of OpenSSL, which RFC 7468 does not have
    Encrypted,
}

/// Whether there is a block in `file`, as opposed to plain DER.
pub(crate) fn looks_like_pem(file: &[u8]) -> bool {
    file.windows(BEGIN.len()).any(|window| window == BEGIN.as_bytes())
}

const BEGIN: &str = "-----BEGIN ";

/// All blocks of `file`; text around them is passed over.
pub(crate) fn blocks(file: &[u8]) -> Result<Vec<Block>, PemError> {
    // Some certificate files have a comment in front of each block, in any character set.
    let mut lines = file.split(|octet| *octet == b'\n').map(<[u8]>::trim_ascii);
    let mut out = Vec::new();
    while let Some(line) = lines.next() {
        let Some(name) = boundary(line, BEGIN) else { continue };
        let mut base64 = Zeroizing::new(String::with_capacity(file.len()));
        loop {
            let line = lines.next().ok_or(PemError::Malformed)?;
            if let Some(end) = boundary(line, "-----END ") {
                if end != name {
                    return Err(PemError::Malformed);
                }
                break;
            }
            if line.starts_with(b"Proc-Type:") {
                return Err(PemError::Encrypted);
            }
            base64.push_str(std::str::from_utf8(line).map_err(|_| PemError::Malformed)?);
        }
        let label = Label::of(name);
        let der = Base64::decode_vec(&base64).map(Zeroizing::new);
        match der {
            Ok(der) => out.push(Block { label, der }),
            // Whatever else is in the file need not be what we can read.
            Err(_) if label == Label::Other => {}
            Err(_) => return Err(PemError::Malformed),
        }
    }
    Ok(out)
}

fn boundary<'a>(line: &'a [u8], start: &str) -> Option<&'a str> {
    let label = line.strip_prefix(start.as_bytes())?.strip_suffix(b"-----")?;
    std::str::from_utf8(label).ok()
}
