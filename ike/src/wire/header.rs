//! The IKE header (RFC 7296 §3.1).

use std::fmt;

use super::{error::WireError, reader::Reader};

/// What an exchange is for (RFC 7296 §3.1); unknown values are kept.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ExchangeType(pub u8);

impl ExchangeType {
    /// RFC 7296 §1.2
    pub const IKE_SA_INIT: Self = Self(34);
    /// RFC 7296 §1.2
    pub const IKE_AUTH: Self = Self(35);
    /// RFC 7296 §1.3
    pub const CREATE_CHILD_SA: Self = Self(36);
    /// RFC 7296 §1.4
    pub const INFORMATIONAL: Self = Self(37);
    /// RFC 5723 §4.3
    pub const IKE_SESSION_RESUME: Self = Self(38);
    /// RFC 9242 §3
    pub const IKE_INTERMEDIATE: Self = Self(43);
    /// RFC 9370 §2.2.4
    pub const IKE_FOLLOWUP_KE: Self = Self(44);
}

impl fmt::Display for ExchangeType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match *self {
            Self::IKE_SA_INIT => "IKE_SA_INIT",
            Self::IKE_AUTH => "IKE_AUTH",
            Self::CREATE_CHILD_SA => "CREATE_CHILD_SA",
            Self::INFORMATIONAL => "INFORMATIONAL",
            Self::IKE_SESSION_RESUME => "IKE_SESSION_RESUME",
            Self::IKE_INTERMEDIATE => "IKE_INTERMEDIATE",
            Self::IKE_FOLLOWUP_KE => "IKE_FOLLOWUP_KE",
            Self(other) => return write!(f, "exchange {other}"),
        })
    }
}

impl fmt::Debug for ExchangeType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The flag bits of the header (RFC 7296 §3.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Flags {
    /// I: sent by the original initiator of this IKE_SA.
    pub initiator: bool,
    /// R: a response.
    pub response: bool,
    /// V: the sender speaks a higher major version too. Clear when sending, ignored on receipt.
    pub version: bool,
}

const INITIATOR: u8 = 0x08;
const VERSION: u8 = 0x10;
const RESPONSE: u8 = 0x20;

impl Flags {
    fn from_octet(octet: u8) -> Self {
        Flags {
            initiator: octet & INITIATOR != 0,
            response: octet & RESPONSE != 0,
            version: octet & VERSION != 0,
        }
    }

    fn octet(self) -> u8 {
        let bit = |set: bool, bit: u8| if set { bit } else { 0 };
        bit(self.initiator, INITIATOR) | bit(self.response, RESPONSE) | bit(self.version, VERSION)
    }
}

/// The fixed header of every IKE message.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Header {
    /// SPI of the original initiator, never 0
    pub spi_i: u64,
    /// SPI of the original responder, 0 in the first request
    pub spi_r: u64,
    /// kind of the first payload, 0 if there is none
    pub next_payload: u8,
    /// major and minor version, (2, 0) for what we send
    pub version: (u8, u8),
    /// what the message is for
    pub exchange: ExchangeType,
    /// direction and role
    pub flags: Flags,
    /// counts the requests of one side
    pub message_id: u32,
    /// octets of the whole message, this header included
    pub length: u32,
}

impl Header {
    /// Octets of the header.
    pub const LEN: usize = 28;

    /// A header to send; the emitters fill in `next_payload` and `length`.
    pub fn new(
        (spi_i, spi_r): (u64, u64),
        exchange: ExchangeType,
        flags: Flags,
        message_id: u32,
    ) -> Self {
        let (next_payload, length) = (0, 0);
        let version = (2, 0);
        Header { spi_i, spi_r, next_payload, version, exchange, flags, message_id, length }
    }

    /// Reads the fields alone, so that a message of another version can still be answered.
    ///
    /// [`Header::check`] says whether they make sense.
    pub fn parse(datagram: &[u8]) -> Result<Self, WireError> {
        let mut reader = Reader::new(datagram);
        let mut reader = reader.sub(Self::LEN, "IKE header")?;
        let spi_i = reader.u64("initiator SPI")?;
        let spi_r = reader.u64("responder SPI")?;
        let next_payload = reader.u8("next payload")?;
        let version = reader.u8("version")?;
        Ok(Header {
            spi_i,
            spi_r,
            next_payload,
            version: (version >> 4, version & 0x0f),
            exchange: ExchangeType(reader.u8("exchange type")?),
            flags: Flags::from_octet(reader.u8("flags")?),
            message_id: reader.u32("message ID")?,
            length: reader.u32("message length")?,
        })
    }

    /// Holds the header against RFC 7296 §3.1 and the length of the datagram that carried it.
    pub fn check(&self, datagram_len: usize) -> Result<(), WireError> {
        // §2.5: the minor version is ignored. Of another major version we know no more than this.
        if self.version.0 != 2 {
            return Err(WireError::MajorVersion { major: self.version.0 });
        }
        if self.spi_i == 0 {
            return Err(WireError::Value { what: "initiator SPI", at: 0, value: 0 });
        }
        let found = usize::try_from(self.length).unwrap_or(usize::MAX);
        if found != datagram_len {
            let what = "message length";
            return Err(WireError::Length { what, at: 24, found, expected: datagram_len });
        }
        Ok(())
    }

    /// The octets of the header.
    pub fn emit(&self) -> [u8; Self::LEN] {
        let mut octets = [0; Self::LEN];
        let fields = self
            .spi_i
            .to_be_bytes()
            .into_iter()
            .chain(self.spi_r.to_be_bytes())
            .chain([
                self.next_payload,
                self.version.0 << 4 | self.version.1 & 0x0f,
                self.exchange.0,
                self.flags.octet(),
            ])
            .chain(self.message_id.to_be_bytes())
            .chain(self.length.to_be_bytes());
        for (octet, field) in octets.iter_mut().zip(fields) {
            *octet = field;
        }
        octets
    }
}
