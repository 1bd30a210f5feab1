//! Payloads and their chain (RFC 7296 §3.2).

use std::fmt;

use super::{
    cert::CertEncoding,
    config::Configuration,
    delete::Delete,
    eap::Eap,
    encrypted::Encrypted,
    error::{TooLong, WireError},
    identity::Identification,
    notify::Notify,
    proposal::{self, Proposal},
    reader::Reader,
    selector,
    writer::generic_header,
};
use crate::TrafficSelector;

/// Payloads that one message may have; with more it is refused, so that the chain is bounded.
pub const MAX_PAYLOADS: usize = 128;

/// The number of a payload kind (RFC 7296 §3.2).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PayloadKind(pub u8);

impl PayloadKind {
    /// No payload follows.
    pub const NONE: Self = Self(0);
    /// SA
    pub const SECURITY_ASSOCIATION: Self = Self(33);
    /// KE
    pub const KEY_EXCHANGE: Self = Self(34);
    /// IDi
    pub const ID_INITIATOR: Self = Self(35);
    /// IDr
    pub const ID_RESPONDER: Self = Self(36);
    /// CERT
    pub const CERTIFICATE: Self = Self(37);
    /// CERTREQ
    pub const CERTIFICATE_REQUEST: Self = Self(38);
    /// AUTH
    pub const AUTHENTICATION: Self = Self(39);
    /// Ni, Nr
    pub const NONCE: Self = Self(40);
    /// N
    pub const NOTIFY: Self = Self(41);
    /// D
    pub const DELETE: Self = Self(42);
    /// V
    pub const VENDOR_ID: Self = Self(43);
    /// TSi
    pub const TS_INITIATOR: Self = Self(44);
    /// TSr
    pub const TS_RESPONDER: Self = Self(45);
    /// SK
    pub const ENCRYPTED: Self = Self(46);
    /// CP
    pub const CONFIGURATION: Self = Self(47);
    /// EAP
    pub const EAP: Self = Self(48);
    /// SKF (RFC 7383 §2.5)
    pub const ENCRYPTED_FRAGMENT: Self = Self(53);

    fn is_encrypted(self) -> bool {
        self == Self::ENCRYPTED || self == Self::ENCRYPTED_FRAGMENT
    }
}

impl fmt::Display for PayloadKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match *self {
            Self::NONE => "none",
            Self::SECURITY_ASSOCIATION => "SA",
            Self::KEY_EXCHANGE => "KE",
            Self::ID_INITIATOR => "IDi",
            Self::ID_RESPONDER => "IDr",
            Self::CERTIFICATE => "CERT",
            Self::CERTIFICATE_REQUEST => "CERTREQ",
            Self::AUTHENTICATION => "AUTH",
            Self::NONCE => "NONCE",
            Self::NOTIFY => "N",
            Self::DELETE => "D",
            Self::VENDOR_ID => "V",
            Self::TS_INITIATOR => "TSi",
            Self::TS_RESPONDER => "TSr",
            Self::ENCRYPTED => "SK",
            Self::CONFIGURATION => "CP",
            Self::EAP => "EAP",
            Self::ENCRYPTED_FRAGMENT => "SKF",
            Self(other) => return write!(f, "payload {other}"),
        })
    }
}

impl fmt::Debug for PayloadKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// How the AUTH payload was computed (RFC 7296 §3.8); unknown values are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AuthMethod(pub u8);

impl AuthMethod {
    /// RSASSA-PKCS1-v1_5
    pub const RSA_SIGNATURE: Self = Self(1);
    /// Shared key message integrity code (RFC 7296 §2.15)
    pub const SHARED_KEY: Self = Self(2);
    /// DSS with SHA-1
    pub const DSS_SIGNATURE: Self = Self(3);
    /// ECDSA with SHA-256 on P-256 (RFC 4754)
    pub const ECDSA_256: Self = Self(9);
    /// ECDSA with SHA-384 on P-384 (RFC 4754)
    pub const ECDSA_384: Self = Self(10);
    /// ECDSA with SHA-512 on P-521 (RFC 4754)
    pub const ECDSA_521: Self = Self(11);
    /// NULL authentication (RFC 7619)
    pub const NULL: Self = Self(13);
    /// Digital signature with an algorithm identifier (RFC 7427)
    pub const DIGITAL_SIGNATURE: Self = Self(14);
}

/// One payload in the clear, or one that was inside an Encrypted payload.
///
/// The critical bit counts for unknown kinds alone (RFC 7296 §3.2), so only they keep it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Payload {
    /// RFC 7296 §3.3
    SecurityAssociation(Vec<Proposal>),
    /// RFC 7296 §3.4
    KeyExchange {
        /// the key exchange method, as in a transform of type 4
        group: u16,
        /// the public value
        data: Vec<u8>,
    },
    /// RFC 7296 §3.5
    IdInitiator(Identification),
    /// RFC 7296 §3.5
    IdResponder(Identification),
    /// RFC 7296 §3.6
    Certificate {
        /// what `data` is
        encoding: CertEncoding,
        /// the certificate, or where to find it
        data: Vec<u8>,
    },
    /// RFC 7296 §3.7
    CertificateRequest {
        /// the encoding that is asked for
        encoding: CertEncoding,
        /// acceptable authorities, see [`super::cert::authority_hashes`]
        data: Vec<u8>,
    },
    /// RFC 7296 §3.8
    Authentication {
        /// how `data` was computed
        method: AuthMethod,
        /// the proof
        data: Vec<u8>,
    },
    /// RFC 7296 §3.9: 16 to 256 octets
    Nonce(Vec<u8>),
    /// RFC 7296 §3.10
    Notify(Notify),
    /// RFC 7296 §3.11
    Delete(Delete),
    /// RFC 7296 §3.12
    VendorId(Vec<u8>),
    /// RFC 7296 §3.13; selectors of unknown types are left out
    TsInitiator(Vec<TrafficSelector>),
    /// RFC 7296 §3.13; selectors of unknown types are left out
    TsResponder(Vec<TrafficSelector>),
    /// RFC 7296 §3.15
    Configuration(Configuration),
    /// RFC 7296 §3.16
    Eap(Eap),
    /// Any other kind. If `critical`, the message is to be refused (RFC 7296 §2.5).
    Unknown {
        /// its number
        kind: u8,
        /// whether the sender wants the message refused
        critical: bool,
        /// the octets after the generic header
        data: Vec<u8>,
    },
}

impl Payload {
    /// The number of its kind.
    pub fn kind(&self) -> u8 {
        let kind = match self {
            Payload::SecurityAssociation(_) => PayloadKind::SECURITY_ASSOCIATION,
            Payload::KeyExchange { .. } => PayloadKind::KEY_EXCHANGE,
            Payload::IdInitiator(_) => PayloadKind::ID_INITIATOR,
            Payload::IdResponder(_) => PayloadKind::ID_RESPONDER,
            Payload::Certificate { .. } => PayloadKind::CERTIFICATE,
            Payload::CertificateRequest { .. } => PayloadKind::CERTIFICATE_REQUEST,
            Payload::Authentication { .. } => PayloadKind::AUTHENTICATION,
            Payload::Nonce(_) => PayloadKind::NONCE,
            Payload::Notify(_) => PayloadKind::NOTIFY,
            Payload::Delete(_) => PayloadKind::DELETE,
            Payload::VendorId(_) => PayloadKind::VENDOR_ID,
            Payload::TsInitiator(_) => PayloadKind::TS_INITIATOR,
            Payload::TsResponder(_) => PayloadKind::TS_RESPONDER,
            Payload::Configuration(_) => PayloadKind::CONFIGURATION,
            Payload::Eap(_) => PayloadKind::EAP,
            Payload::Unknown { kind, .. } => PayloadKind(*kind),
        };
        kind.0
    }

    fn parse(kind: PayloadKind, critical: bool, mut body: Reader<'_>) -> Result<Self, WireError> {
        let body = &mut body;
        Ok(match kind {
            PayloadKind::SECURITY_ASSOCIATION => {
                Payload::SecurityAssociation(proposal::parse_all(body)?)
            }
            PayloadKind::KEY_EXCHANGE => {
                let group = body.u16("key exchange method")?;
                body.take(2, "KE reserved field")?;
                Payload::KeyExchange { group, data: body.rest().to_vec() }
            }
            PayloadKind::ID_INITIATOR => Payload::IdInitiator(Identification::parse(body)?),
            PayloadKind::ID_RESPONDER => Payload::IdResponder(Identification::parse(body)?),
            PayloadKind::CERTIFICATE => Payload::Certificate {
                encoding: CertEncoding(body.u8("certificate encoding")?),
                data: body.rest().to_vec(),
            },
            PayloadKind::CERTIFICATE_REQUEST => Payload::CertificateRequest {
                encoding: CertEncoding(body.u8("certificate encoding")?),
                data: body.rest().to_vec(),
            },
            PayloadKind::AUTHENTICATION => {
                let method = AuthMethod(body.u8("authentication method")?);
                body.take(3, "AUTH reserved field")?;
                Payload::Authentication { method, data: body.rest().to_vec() }
            }
            PayloadKind::NONCE => {
                let at = body.at();
                let nonce = body.rest().to_vec();
                // RFC 7296 §3.9
                if !(16..=256).contains(&nonce.len()) {
                    let expected = nonce.len().clamp(16, 256);
                    let what = "nonce length";
                    return Err(WireError::Length { what, at, found: nonce.len(), expected });
                }
                Payload::Nonce(nonce)
            }
            PayloadKind::NOTIFY => Payload::Notify(Notify::parse(body)?),
            PayloadKind::DELETE => Payload::Delete(Delete::parse(body)?),
            PayloadKind::VENDOR_ID => Payload::VendorId(body.rest().to_vec()),
            PayloadKind::TS_INITIATOR => Payload::TsInitiator(selector::parse_all(body)?),
            PayloadKind::TS_RESPONDER => Payload::TsResponder(selector::parse_all(body)?),
            PayloadKind::CONFIGURATION => Payload::Configuration(Configuration::parse(body)?),
            PayloadKind::EAP => Payload::Eap(Eap::parse(body)?),
            PayloadKind(kind) => Payload::Unknown { kind, critical, data: body.rest().to_vec() },
        })
    }

    /// The octets after the generic header.
    fn emit_body(&self) -> Result<Vec<u8>, TooLong> {
        let mut out = Vec::new();
        match self {
            Payload::SecurityAssociation(proposals) => proposal::emit_all(proposals, &mut out)?,
            Payload::KeyExchange { group, data } => {
                out.extend(group.to_be_bytes());
                out.extend([0; 2]);
                out.extend(data);
            }
            Payload::IdInitiator(id) | Payload::IdResponder(id) => out = id.body(),
            Payload::Certificate { encoding, data }
            | Payload::CertificateRequest { encoding, data } => {
                out.push(encoding.0);
                out.extend(data);
            }
            Payload::Authentication { method, data } => {
                out.extend([method.0, 0, 0, 0]);
                out.extend(data);
            }
            Payload::Nonce(data) | Payload::VendorId(data) => out.extend(data),
            Payload::Notify(notify) => notify.emit(&mut out)?,
            Payload::Delete(delete) => delete.emit(&mut out)?,
            Payload::TsInitiator(selectors) | Payload::TsResponder(selectors) => {
                selector::emit_all(selectors, &mut out)?;
            }
            Payload::Configuration(configuration) => configuration.emit(&mut out)?,
            Payload::Eap(eap) => out = eap.emit()?,
            Payload::Unknown { data, .. } => out.extend(data),
        }
        Ok(out)
    }

    fn critical(&self) -> bool {
        matches!(self, Payload::Unknown { critical: true, .. })
    }
}

/// Reads a chain of payloads that starts with kind `next_payload` and fills `octets`.
///
/// For the decrypted inside of an Encrypted payload; another one in there is an error
/// (RFC 7296 §3.1).
pub fn parse_chain(next_payload: u8, octets: &[u8]) -> Result<Vec<Payload>, WireError> {
    let mut payloads = Vec::new();
    let mut reader = Reader::new(octets);
    let mut next = next_payload;
    while next != 0 {
        let raw = RawPayload::parse(next, &mut reader, payloads.len())?;
        if raw.kind.is_encrypted() {
            let value = raw.kind.0.into();
            return Err(WireError::Value { what: "inner payload kind", at: raw.at, value });
        }
        payloads.push(Payload::parse(raw.kind, raw.critical, raw.body)?);
        next = raw.next;
    }
    reader.finish("last payload")?;
    Ok(payloads)
}

/// Reads the payloads after the header of `datagram`, of which the last may be encrypted.
pub(super) fn parse_message<'a>(
    next_payload: u8,
    datagram: &'a [u8],
    reader: &mut Reader<'a>,
    payloads: &mut Vec<Payload>,
) -> Result<Option<Encrypted<'a>>, WireError> {
    let mut next = next_payload;
    while next != 0 {
        let raw = RawPayload::parse(next, reader, payloads.len())?;
        if raw.kind.is_encrypted() {
            // RFC 7296 §3.14: the last payload, and its next payload is the first one inside.
            reader.finish("Encrypted payload")?;
            return Encrypted::parse(raw.kind.0, raw.next, datagram, raw.body).map(Some);
        }
        payloads.push(Payload::parse(raw.kind, raw.critical, raw.body)?);
        next = raw.next;
    }
    reader.finish("last payload")?;
    Ok(None)
}

/// A payload whose generic header is read and whose body is not.
struct RawPayload<'a> {
    at: usize,
    kind: PayloadKind,
    critical: bool,
    next: u8,
    body: Reader<'a>,
}

impl<'a> RawPayload<'a> {
    fn parse(kind: u8, reader: &mut Reader<'a>, already: usize) -> Result<Self, WireError> {
        let at = reader.at();
        if already >= MAX_PAYLOADS {
            return Err(WireError::TooMany { what: "payloads", at, limit: MAX_PAYLOADS });
        }
        let next = reader.u8("next payload")?;
        let critical = reader.u8("critical bit")? & 0x80 != 0;
        let length = usize::from(reader.u16("payload length")?);
        let Some(body_len) = length.checked_sub(4) else {
            let what = "payload length";
            return Err(WireError::Length { what, at: at + 2, found: length, expected: 4 });
        };
        let body = reader.sub(body_len, "payload")?;
        Ok(RawPayload { at, kind: PayloadKind(kind), critical, next, body })
    }
}

/// The octets of a chain of payloads, and the kind of the first (0 if there is none).
pub fn emit_chain(payloads: &[Payload]) -> Result<(u8, Vec<u8>), TooLong> {
    let first = payloads.first().map_or(0, Payload::kind);
    let following = payloads.iter().skip(1).map(Payload::kind).chain([0]);
    let mut out = Vec::new();
    for (payload, next) in payloads.iter().zip(following) {
        let body = payload.emit_body()?;
        generic_header(&mut out, next, payload.critical(), body.len())?;
        out.extend(body);
    }
    Ok((first, out))
}
