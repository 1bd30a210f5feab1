//! A whole IKE message.

use super::{
    encrypted::Encrypted,
    error::{TooLong, WireError},
    header::Header,
    payload::{self, Payload},
    reader::Reader,
};

/// A parsed datagram.
#[derive(Clone, Debug, PartialEq)]
pub struct Message<'a> {
    /// the fixed header
    pub header: Header,
    /// the payloads in the clear, in the order in which they came
    pub payloads: Vec<Payload>,
    /// the Encrypted or Encrypted Fragment payload, which can only be the last (RFC 7296 §3.14)
    pub encrypted: Option<Encrypted<'a>>,
}

impl<'a> Message<'a> {
    /// Reads a datagram, without the non-ESP marker of RFC 3948.
    pub fn parse(datagram: &'a [u8]) -> Result<Self, WireError> {
        let header = Header::parse(datagram)?;
        header.check(datagram.len())?;
        let mut reader = Reader::new(datagram);
        reader.take(Header::LEN, "IKE header")?;
        let mut payloads = Vec::new();
        let encrypted =
            payload::parse_message(header.next_payload, datagram, &mut reader, &mut payloads)?;
        Ok(Message { header, payloads, encrypted })
    }
}

/// The octets of a message in the clear; `header`'s next payload and length are overwritten.
pub fn emit_message(header: &Header, payloads: &[Payload]) -> Result<Vec<u8>, TooLong> {
    let (next_payload, chain) = payload::emit_chain(payloads)?;
    let length = chain.len().saturating_add(Header::LEN);
    let length = u32::try_from(length).map_err(|_| TooLong { what: "message", octets: length })?;
    let header = Header { next_payload, length, ..header.clone() };
    let mut out = header.emit().to_vec();
    out.extend(chain);
    Ok(out)
}
