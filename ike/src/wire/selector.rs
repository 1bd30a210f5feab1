//! Traffic selectors on the wire (RFC 7296 §3.13).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{
    error::{TooLong, WireError},
    reader::Reader,
    writer::octet,
};
use crate::TrafficSelector;

const TS_IPV4_ADDR_RANGE: u8 = 7;
const TS_IPV6_ADDR_RANGE: u8 = 8;
const IPV4_LEN: u16 = 16;
const IPV6_LEN: u16 = 40;

/// Reads the body of a TS payload. The count is one octet, which bounds the list.
pub(super) fn parse_all(reader: &mut Reader<'_>) -> Result<Vec<TrafficSelector>, WireError> {
    let at = reader.at();
    let count = reader.u8("number of traffic selectors")?;
    reader.take(3, "TS reserved field")?;
    if count == 0 {
        let what = "number of traffic selectors";
        return Err(WireError::Length { what, at, found: 0, expected: 1 });
    }
    let mut selectors = Vec::new();
    for _ in 0..count {
        selectors.extend(parse(reader)?);
    }
    reader.finish("traffic selectors")?;
    Ok(selectors)
}

/// One selector, or `None` if it is of an unknown type.
fn parse(reader: &mut Reader<'_>) -> Result<Option<TrafficSelector>, WireError> {
    let at = reader.at();
    let kind = reader.u8("TS type")?;
    let protocol = reader.u8("TS protocol")?;
    let length = reader.u16("selector length")?;
    let wrong_length = |expected: u16| {
        let (found, expected) = (length.into(), expected.into());
        WireError::Length { what: "selector length", at: at + 2, found, expected }
    };
    let expected = match kind {
        TS_IPV4_ADDR_RANGE => IPV4_LEN,
        TS_IPV6_ADDR_RANGE => IPV6_LEN,
        _ => {
            let body = length.checked_sub(4).ok_or(wrong_length(4))?;
            reader.take(body.into(), "traffic selector")?;
            return Ok(None);
        }
    };
    if length != expected {
        return Err(wrong_length(expected));
    }
    let ports = (reader.u16("start port")?, reader.u16("end port")?);
    let mut address = |what| -> Result<IpAddr, WireError> {
        Ok(match kind {
            TS_IPV4_ADDR_RANGE => Ipv4Addr::from(reader.array(what)?).into(),
            _ => Ipv6Addr::from(reader.array(what)?).into(),
        })
    };
    let (first, last) = (address("starting address")?, address("ending address")?);
    let selector = TrafficSelector::new(protocol, ports, first, last);
    let backwards = WireError::Value { what: "range of a selector", at, value: kind.into() };
    selector.map(Some).ok_or(backwards)
}

/// Writes the body of a TS payload.
pub(super) fn emit_all(selectors: &[TrafficSelector], out: &mut Vec<u8>) -> Result<(), TooLong> {
    out.extend([octet(selectors.len(), "traffic selectors")?, 0, 0, 0]);
    for selector in selectors {
        let (kind, length) = match selector.is_ipv4() {
            true => (TS_IPV4_ADDR_RANGE, IPV4_LEN),
            false => (TS_IPV6_ADDR_RANGE, IPV6_LEN),
        };
        let (start, end) = selector.ports();
        out.extend([kind, selector.protocol()]);
        out.extend(length.to_be_bytes());
        out.extend(start.to_be_bytes());
        out.extend(end.to_be_bytes());
        for address in [selector.first(), selector.last()] {
            match address {
                IpAddr::V4(address) => out.extend(address.octets()),
                IpAddr::V6(address) => out.extend(address.octets()),
            }
        }
    }
    Ok(())
}
