//! The Delete payload (RFC 7296 §3.11).

use super::{
    error::{TooLong, WireError},
    proposal::Protocol,
    reader::Reader,
    writer::short,
};
use crate::EspSpi;

/// SAs that the sender has removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Delete {
    /// The IKE_SA of the message.
    Ike,
    /// CHILD_SAs, by the SPIs that the sender expects in packets to it.
    Esp(Vec<EspSpi>),
    /// AH SAs, which we never have.
    Ah(Vec<EspSpi>),
}

impl Delete {
    pub(super) fn parse(reader: &mut Reader<'_>) -> Result<Self, WireError> {
        let at = reader.at();
        let protocol = Protocol(reader.u8("Delete protocol")?);
        let spi_size = usize::from(reader.u8("Delete SPI size")?);
        let count = usize::from(reader.u16("number of SPIs")?);
        // The size is zero for IKE and four for AH and ESP.
        let expected = match protocol {
            Protocol::IKE => 0,
            Protocol::ESP | Protocol::AH => 4,
            Protocol(value) => {
                return Err(WireError::Value { what: "Delete protocol", at, value: value.into() });
            }
        };
        if spi_size != expected {
            let (what, at, found) = ("Delete SPI size", at + 1, spi_size);
            return Err(WireError::Length { what, at, found, expected });
        }
        // Both factors are at most 65535, so that the product fits.
        let mut spis = reader.sub(count * spi_size, "SPIs to delete")?;
        reader.finish("SPIs to delete")?;
        let mut list = Vec::new();
        while !spis.is_empty() {
            list.push(EspSpi(spis.u32("SPI to delete")?));
        }
        Ok(match protocol {
            Protocol::IKE => Delete::Ike,
            Protocol::AH => Delete::Ah(list),
            _ => Delete::Esp(list),
        })
    }

    pub(super) fn emit(&self, out: &mut Vec<u8>) -> Result<(), TooLong> {
        let (protocol, spi_size, spis) = match self {
            Delete::Ike => (Protocol::IKE, 0, [].as_slice()),
            Delete::Esp(spis) => (Protocol::ESP, 4, spis.as_slice()),
            Delete::Ah(spis) => (Protocol::AH, 4, spis.as_slice()),
        };
        out.extend([protocol.0, spi_size]);
        out.extend(short(spis.len(), "SPIs to delete")?);
        out.extend(spis.iter().flat_map(|spi| spi.0.to_be_bytes()));
        Ok(())
    }
}
