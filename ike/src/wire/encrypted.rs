//! The outside of Encrypted (RFC 7296 §3.14) and Encrypted Fragment payloads (RFC 7383 §2.5).
//!
//! What is inside `body` depends on the negotiated transforms: IV, ciphertext and integrity check
//! value for an AEAD (RFC 5282 §3), the same with padding inside the ciphertext for CBC.

use super::{
    error::{TooLong, WireError},
    header::Header,
    payload::PayloadKind,
    reader::Reader,
    writer::generic_header,
};

/// Which part of a message a fragment is (RFC 7383 §2.5): `1 <= number <= total`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Fragment {
    /// this fragment, counted from 1
    pub number: u16,
    /// how many there are
    pub total: u16,
}

/// An Encrypted or Encrypted Fragment payload, still closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Encrypted<'a> {
    /// kind of the first payload inside, 0 if there is none or in a fragment after the first
    pub first_inner: u8,
    /// set for an Encrypted Fragment payload
    pub fragment: Option<Fragment>,
    /// the datagram up to `body`: the associated data (RFC 5282 §5.1)
    pub aad: &'a [u8],
    /// IV, ciphertext and integrity check value
    pub body: &'a [u8],
}

impl<'a> Encrypted<'a> {
    /// Reads the last payload of `datagram`, whose generic header is already behind `body`.
    pub(super) fn parse(
        kind: u8,
        next: u8,
        datagram: &'a [u8],
        mut body: Reader<'a>,
    ) -> Result<Self, WireError> {
        let fragment = match PayloadKind(kind) {
            PayloadKind::ENCRYPTED_FRAGMENT => Some(Fragment::parse(&mut body)?),
            _ => None,
        };
        // RFC 7383 §2.5: only the first fragment says what the first payload inside is.
        let first_inner = match fragment {
            Some(Fragment { number, .. }) if number > 1 => 0,
            _ => next,
        };
        let aad = datagram.get(..body.at()).unwrap_or_default();
        Ok(Encrypted { first_inner, fragment, aad, body: body.rest() })
    }
}

impl Fragment {
    fn parse(reader: &mut Reader<'_>) -> Result<Self, WireError> {
        let at = reader.at();
        let number = reader.u16("fragment number")?;
        let total = reader.u16("total fragments")?;
        // RFC 7383 §2.6: both non-zero, and the number not above the total.
        if number == 0 || number > total {
            return Err(WireError::Value { what: "fragment number", at, value: number.into() });
        }
        Ok(Fragment { number, total })
    }
}

/// The start of a message that is one Encrypted payload: IKE header and generic payload header.
///
/// The caller appends `body_len` octets of IV, ciphertext and integrity check value; what is
/// returned here is the associated data. `header`'s next payload and length are overwritten.
pub fn emit_encrypted_prefix(
    header: &Header,
    first_inner: u8,
    body_len: usize,
) -> Result<Vec<u8>, TooLong> {
    emit_prefix(header, first_inner, None, body_len)
}

/// As [`emit_encrypted_prefix`] for one fragment of a message (RFC 7383 §2.5).
///
/// `first_inner` counts in the first fragment alone; the others say 0.
pub fn emit_fragment_prefix(
    header: &Header,
    first_inner: u8,
    fragment: Fragment,
    body_len: usize,
) -> Result<Vec<u8>, TooLong> {
    let first_inner = if fragment.number == 1 { first_inner } else { 0 };
    emit_prefix(header, first_inner, Some(fragment), body_len)
}

fn emit_prefix(
    header: &Header,
    first_inner: u8,
    fragment: Option<Fragment>,
    body_len: usize,
) -> Result<Vec<u8>, TooLong> {
    let (kind, numbers_len) = match fragment {
        None => (PayloadKind::ENCRYPTED, 0),
        Some(_) => (PayloadKind::ENCRYPTED_FRAGMENT, 4),
    };
    let body_len = body_len.saturating_add(numbers_len);
    let length = body_len.saturating_add(Header::LEN + 4);
    let length = u32::try_from(length).map_err(|_| TooLong { what: "message", octets: length })?;
    let header = Header { next_payload: kind.0, length, ..header.clone() };
    let mut out = header.emit().to_vec();
    generic_header(&mut out, first_inner, false, body_len)?;
    if let Some(Fragment { number, total }) = fragment {
        out.extend(number.to_be_bytes());
        out.extend(total.to_be_bytes());
    }
    Ok(out)
}
