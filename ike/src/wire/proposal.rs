//! Proposals and transforms of the SA payload (RFC 7296 §3.3).

use std::fmt;

use super::{
    error::{TooLong, WireError},
    reader::Reader,
    writer::{octet, short},
};

/// Proposals that one SA payload may have; with more it is refused.
pub const MAX_PROPOSALS: usize = 64;

/// Octets that the SPI of a proposal may have: those of an IKE SPI.
const MAX_SPI_LEN: usize = 8;

/// Attributes that one transform may have; one alone is defined.
const MAX_ATTRIBUTES: usize = 16;

const KEY_LENGTH: u16 = 14;

/// The protocol that an SA is for (RFC 7296 §3.3.1); unknown values are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Protocol(pub u8);

impl Protocol {
    /// In a Notify without an SPI.
    pub const NONE: Self = Self(0);
    /// an IKE_SA
    pub const IKE: Self = Self(1);
    /// AH
    pub const AH: Self = Self(2);
    /// ESP
    pub const ESP: Self = Self(3);
}

/// What a transform chooses (RFC 7296 §3.3.2); unknown values are kept.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TransformType(pub u8);

impl TransformType {
    /// encryption
    pub const ENCR: Self = Self(1);
    /// pseudorandom function
    pub const PRF: Self = Self(2);
    /// integrity
    pub const INTEG: Self = Self(3);
    /// key exchange method (Diffie-Hellman group)
    pub const KE: Self = Self(4);
    /// extended sequence numbers
    pub const ESN: Self = Self(5);
    /// additional key exchange 1 (RFC 9370)
    pub const ADDKE1: Self = Self(6);
    /// additional key exchange 2
    pub const ADDKE2: Self = Self(7);
    /// additional key exchange 3
    pub const ADDKE3: Self = Self(8);
    /// additional key exchange 4
    pub const ADDKE4: Self = Self(9);
    /// additional key exchange 5
    pub const ADDKE5: Self = Self(10);
    /// additional key exchange 6
    pub const ADDKE6: Self = Self(11);
    /// additional key exchange 7
    pub const ADDKE7: Self = Self(12);
}

impl fmt::Display for TransformType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::ENCR => f.write_str("ENCR"),
            Self::PRF => f.write_str("PRF"),
            Self::INTEG => f.write_str("INTEG"),
            Self::KE => f.write_str("KE"),
            Self::ESN => f.write_str("ESN"),
            Self(kind @ 6..=12) => write!(f, "ADDKE{}", kind.saturating_sub(5)),
            Self(other) => write!(f, "transform type {other}"),
        }
    }
}

impl fmt::Debug for TransformType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Transform IDs of type [`TransformType::ENCR`], in an IKE_SA or in ESP.
#[allow(missing_docs, reason = "the names are those of the IANA registry")]
pub mod encr {
    pub const DES: u16 = 2;
    pub const TRIPLE_DES: u16 = 3;
    pub const NULL: u16 = 11;
    pub const AES_CBC: u16 = 12;
    pub const AES_CTR: u16 = 13;
    pub const AES_CCM_8: u16 = 14;
    pub const AES_CCM_12: u16 = 15;
    pub const AES_CCM_16: u16 = 16;
    pub const AES_GCM_8: u16 = 18;
    pub const AES_GCM_12: u16 = 19;
    pub const AES_GCM_16: u16 = 20;
    pub const NULL_AUTH_AES_GMAC: u16 = 21;
    pub const CHACHA20_POLY1305: u16 = 28;
    pub const AES_CCM_8_IIV: u16 = 29;
    pub const AES_GCM_16_IIV: u16 = 30;
    pub const CHACHA20_POLY1305_IIV: u16 = 31;
}

/// Transform IDs of type [`TransformType::PRF`].
#[allow(missing_docs, reason = "the names are those of the IANA registry")]
pub mod prf {
    pub const HMAC_MD5: u16 = 1;
    pub const HMAC_SHA1: u16 = 2;
    pub const AES128_XCBC: u16 = 4;
    pub const HMAC_SHA2_256: u16 = 5;
    pub const HMAC_SHA2_384: u16 = 6;
    pub const HMAC_SHA2_512: u16 = 7;
    pub const AES128_CMAC: u16 = 8;
}

/// Transform IDs of type [`TransformType::INTEG`].
#[allow(missing_docs, reason = "the names are those of the IANA registry")]
pub mod integ {
    pub const NONE: u16 = 0;
    pub const HMAC_MD5_96: u16 = 1;
    pub const HMAC_SHA1_96: u16 = 2;
    pub const AES_XCBC_96: u16 = 5;
    pub const AES_CMAC_96: u16 = 8;
    pub const HMAC_SHA2_256_128: u16 = 12;
    pub const HMAC_SHA2_384_192: u16 = 13;
    pub const HMAC_SHA2_512_256: u16 = 14;
}

/// Transform IDs of type [`TransformType::KE`] and of the additional key exchanges.
#[allow(missing_docs, reason = "the names are those of the IANA registry")]
pub mod ke {
    pub const NONE: u16 = 0;
    pub const MODP_768: u16 = 1;
    pub const MODP_1024: u16 = 2;
    pub const MODP_1536: u16 = 5;
    pub const MODP_2048: u16 = 14;
    pub const MODP_3072: u16 = 15;
    pub const MODP_4096: u16 = 16;
    pub const MODP_6144: u16 = 17;
    pub const MODP_8192: u16 = 18;
    pub const ECP_256: u16 = 19;
    pub const ECP_384: u16 = 20;
    pub const ECP_521: u16 = 21;
    pub const CURVE25519: u16 = 31;
    pub const CURVE448: u16 = 32;
    pub const ML_KEM_512: u16 = 35;
    pub const ML_KEM_768: u16 = 36;
    pub const ML_KEM_1024: u16 = 37;
}

/// Transform IDs of type [`TransformType::ESN`].
#[allow(missing_docs, reason = "the names are those of the IANA registry")]
pub mod esn {
    pub const NO: u16 = 0;
    pub const YES: u16 = 1;
}

/// An attribute of a transform that is not a well-formed, first Key Length.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TransformAttribute {
    /// 15 bits
    pub kind: u16,
    /// the value
    pub value: TransformAttributeValue,
}

/// The two formats of an attribute (RFC 7296 §3.3.5).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TransformAttributeValue {
    /// AF=1
    Short(u16),
    /// AF=0
    Long(Vec<u8>),
}

/// One choice of a proposal (RFC 7296 §3.3.2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transform {
    /// what is chosen
    pub kind: TransformType,
    /// which one, see [`encr`], [`prf`], [`integ`], [`ke`] and [`esn`]
    pub id: u16,
    /// bits of key, if said
    pub key_length: Option<u16>,
    /// Anything else, a repeated Key Length and one in the long format among it. A transform that
    /// has any of these is not acceptable (RFC 7296 §3.3.6).
    pub unknown_attributes: Vec<TransformAttribute>,
}

impl Transform {
    /// A transform without attributes.
    pub fn new(kind: TransformType, id: u16) -> Self {
        Transform { kind, id, key_length: None, unknown_attributes: Vec::new() }
    }

    /// An encryption algorithm with a key length in bits.
    pub fn encryption(id: u16, key_length: Option<u16>) -> Self {
        Transform { key_length, ..Transform::new(TransformType::ENCR, id) }
    }

    /// Whether it has an attribute that we don't understand (RFC 7296 §3.3.6).
    pub fn has_unknown_attributes(&self) -> bool {
        !self.unknown_attributes.is_empty()
    }

    fn parse(reader: &mut Reader<'_>) -> Result<Self, WireError> {
        let mut body = substructure(reader, 3, "transform")?;
        let kind = TransformType(body.u8("transform type")?);
        body.take(1, "transform reserved field")?;
        let mut transform = Transform::new(kind, body.u16("transform ID")?);
        while !body.is_empty() {
            transform.parse_attribute(&mut body)?;
        }
        Ok(transform)
    }

    fn parse_attribute(&mut self, reader: &mut Reader<'_>) -> Result<(), WireError> {
        let at = reader.at();
        let field = reader.u16("attribute type")?;
        let content = reader.u16("attribute value or length")?;
        let (short, kind) = (field & 0x8000 != 0, field & 0x7fff);
        if short && kind == KEY_LENGTH && self.key_length.is_none() {
            self.key_length = Some(content);
            return Ok(());
        }
        let value = match short {
            true => TransformAttributeValue::Short(content),
            false => {
                let value = reader.take(content.into(), "attribute value")?;
                TransformAttributeValue::Long(value.to_vec())
            }
        };
        if self.unknown_attributes.len() >= MAX_ATTRIBUTES {
            let (what, limit) = ("attributes of a transform", MAX_ATTRIBUTES);
            return Err(WireError::TooMany { what, at, limit });
        }
        self.unknown_attributes.push(TransformAttribute { kind, value });
        Ok(())
    }

    fn emit(&self, last: bool, out: &mut Vec<u8>) -> Result<(), TooLong> {
        let mut body = vec![self.kind.0, 0];
        body.extend(self.id.to_be_bytes());
        if let Some(bits) = self.key_length {
            body.extend((0x8000 | KEY_LENGTH).to_be_bytes());
            body.extend(bits.to_be_bytes());
        }
        for TransformAttribute { kind, value } in &self.unknown_attributes {
            match value {
                TransformAttributeValue::Short(value) => {
                    body.extend((0x8000 | kind).to_be_bytes());
                    body.extend(value.to_be_bytes());
                }
                TransformAttributeValue::Long(value) => {
                    body.extend((kind & 0x7fff).to_be_bytes());
                    body.extend(short(value.len(), "attribute of a transform")?);
                    body.extend(value);
                }
            }
        }
        emit_substructure(if last { 0 } else { 3 }, &body, "transform", out)
    }
}

impl fmt::Display for Transform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind, self.id)?;
        if let Some(bits) = self.key_length {
            write!(f, "/{bits}")?;
        }
        if self.has_unknown_attributes() { f.write_str(" with unknown attributes") } else { Ok(()) }
    }
}

/// One alternative of an SA payload (RFC 7296 §3.3.1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proposal {
    /// 1 for the first of an offer; the number of the chosen one in an answer
    pub number: u8,
    /// what the SA is for
    pub protocol: Protocol,
    /// the sender's SPI: 8 octets for IKE (none in an initial exchange), 4 for ESP and AH
    pub spi: Vec<u8>,
    /// the choices, OR within a type and AND between types; may be empty
    pub transforms: Vec<Transform>,
}

impl Proposal {
    /// The transforms of one type, in the order of preference.
    pub fn of(&self, kind: TransformType) -> impl Iterator<Item = &Transform> {
        self.transforms.iter().filter(move |transform| transform.kind == kind)
    }

    fn parse(reader: &mut Reader<'_>) -> Result<Self, WireError> {
        let mut body = substructure(reader, 2, "proposal")?;
        let number = body.u8("proposal number")?;
        let protocol = Protocol(body.u8("proposal protocol")?);
        let at = body.at();
        let spi_len = usize::from(body.u8("proposal SPI size")?);
        let count = usize::from(body.u8("number of transforms")?);
        if spi_len > MAX_SPI_LEN {
            let (what, found, expected) = ("proposal SPI size", spi_len, MAX_SPI_LEN);
            return Err(WireError::Length { what, at, found, expected });
        }
        let spi = body.take(spi_len, "proposal SPI")?.to_vec();
        // The count is one octet, which bounds the list.
        let mut transforms = Vec::new();
        while !body.is_empty() {
            transforms.push(Transform::parse(&mut body)?);
        }
        // §3.3: the counts must be consistent with the lengths.
        if transforms.len() != count {
            let (what, at, expected) = ("number of transforms", at + 1, transforms.len());
            return Err(WireError::Length { what, at, found: count, expected });
        }
        Ok(Proposal { number, protocol, spi, transforms })
    }

    fn emit(&self, last: bool, out: &mut Vec<u8>) -> Result<(), TooLong> {
        let mut body = vec![
            self.number,
            self.protocol.0,
            octet(self.spi.len(), "proposal SPI")?,
            octet(self.transforms.len(), "transforms")?,
        ];
        body.extend(&self.spi);
        for (transform, last) in with_last(&self.transforms) {
            transform.emit(last, &mut body)?;
        }
        emit_substructure(if last { 0 } else { 2 }, &body, "proposal", out)
    }
}

/// Reads the body of an SA payload: at least one proposal, numbered one after the other.
pub(super) fn parse_all(reader: &mut Reader<'_>) -> Result<Vec<Proposal>, WireError> {
    let mut proposals: Vec<Proposal> = Vec::new();
    loop {
        let at = reader.at();
        if proposals.len() >= MAX_PROPOSALS {
            return Err(WireError::TooMany { what: "proposals", at, limit: MAX_PROPOSALS });
        }
        let proposal = Proposal::parse(reader)?;
        // §3.3: each number is one greater than the previous one.
        let previous = proposals.last().map(|previous| previous.number);
        if previous.is_some_and(|previous| previous.checked_add(1) != Some(proposal.number)) {
            let value = proposal.number.into();
            return Err(WireError::Value { what: "proposal number", at: at + 4, value });
        }
        proposals.push(proposal);
        if reader.is_empty() {
            return Ok(proposals);
        }
    }
}

/// Writes the body of an SA payload.
pub(super) fn emit_all(proposals: &[Proposal], out: &mut Vec<u8>) -> Result<(), TooLong> {
    with_last(proposals).try_for_each(|(proposal, last)| proposal.emit(last, out))
}

fn with_last<T>(items: &[T]) -> impl Iterator<Item = (&T, bool)> {
    items.iter().enumerate().map(|(index, item)| (item, index + 1 == items.len()))
}

/// The body of the next proposal or transform, whose first octet is `more` or, in the last, 0.
fn substructure<'a>(
    reader: &mut Reader<'a>,
    more: u8,
    what: &'static str,
) -> Result<Reader<'a>, WireError> {
    let at = reader.at();
    let last_substruc = reader.u8("last substructure field")?;
    reader.take(1, "reserved field")?;
    let length = usize::from(reader.u16("substructure length")?);
    let Some(body_len) = length.checked_sub(4) else {
        let what = "substructure length";
        return Err(WireError::Length { what, at: at + 2, found: length, expected: 8 });
    };
    let body = reader.sub(body_len, what)?;
    let expected = if reader.is_empty() { 0 } else { more };
    if last_substruc != expected {
        let value = last_substruc.into();
        return Err(WireError::Value { what: "last substructure field", at, value });
    }
    Ok(body)
}

fn emit_substructure(
    more: u8,
    body: &[u8],
    what: &'static str,
    out: &mut Vec<u8>,
) -> Result<(), TooLong> {
    let length = short(body.len().saturating_add(4), what)?;
    out.extend([more, 0]);
    out.extend(length);
    out.extend(body);
    Ok(())
}
