//! EAP messages as the EAP payload carries them (RFC 7296 §3.16; RFC 3748 §4).

use std::fmt;

use super::{
    error::{TooLong, WireError},
    reader::Reader,
    writer::short,
};

/// The kind of an EAP message; unknown values are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct EapCode(pub u8);

impl EapCode {
    /// From the authenticator.
    pub const REQUEST: Self = Self(1);
    /// From the peer.
    pub const RESPONSE: Self = Self(2);
    /// The end, without a type.
    pub const SUCCESS: Self = Self(3);
    /// The end, without a type.
    pub const FAILURE: Self = Self(4);
}

/// An EAP message. `Debug` shows the length of the data alone, for it may hold a password.
#[derive(Clone, PartialEq, Eq)]
pub struct Eap {
    /// request, response, success or failure
    pub code: EapCode,
    /// the same in a response as in its request
    pub identifier: u8,
    /// the EAP method; `None` for success and failure
    pub method: Option<u8>,
    /// what the method says
    pub data: Vec<u8>,
}

impl Eap {
    /// Reads a message that fills `octets`.
    pub fn from_octets(octets: &[u8]) -> Result<Self, WireError> {
        Eap::parse(&mut Reader::new(octets))
    }

    pub(super) fn parse(reader: &mut Reader<'_>) -> Result<Self, WireError> {
        let (at, expected) = (reader.at(), reader.left());
        let code = EapCode(reader.u8("EAP code")?);
        let identifier = reader.u8("EAP identifier")?;
        let found = usize::from(reader.u16("EAP length")?);
        if found != expected {
            return Err(WireError::Length { what: "EAP length", at: at + 2, found, expected });
        }
        let method = match code {
            EapCode::REQUEST | EapCode::RESPONSE => Some(reader.u8("EAP type")?),
            _ => None,
        };
        if code == EapCode::SUCCESS || code == EapCode::FAILURE {
            reader.finish("EAP success or failure")?;
        }
        Ok(Eap { code, identifier, method, data: reader.rest().to_vec() })
    }

    /// The octets of the message.
    pub fn emit(&self) -> Result<Vec<u8>, TooLong> {
        let header_len = if self.method.is_some() { 5 } else { 4 };
        let length = short(self.data.len().saturating_add(header_len), "EAP message")?;
        let mut out = vec![self.code.0, self.identifier];
        out.extend(length);
        out.extend(self.method);
        out.extend(&self.data);
        Ok(out)
    }
}

impl fmt::Debug for Eap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Eap")
            .field("code", &self.code)
            .field("identifier", &self.identifier)
            .field("method", &self.method)
            .field("data", &format_args!("{} octets", self.data.len()))
            .finish()
    }
}
