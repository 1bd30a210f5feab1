//! The Configuration payload (RFC 7296 §3.15).

use std::{
    fmt,
    net::{Ipv4Addr, Ipv6Addr},
};

use ipnet::{Ipv4Net, Ipv6Net};

use super::{
    error::{TooLong, WireError},
    reader::Reader,
    writer::short,
};

/// Attributes that one Configuration payload may have; with more it is refused.
pub const MAX_ATTRIBUTES: usize = 256;

/// What a Configuration payload does; unknown values are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CfgType(pub u8);

impl CfgType {
    /// CFG_REQUEST
    pub const REQUEST: Self = Self(1);
    /// CFG_REPLY
    pub const REPLY: Self = Self(2);
    /// CFG_SET
    pub const SET: Self = Self(3);
    /// CFG_ACK
    pub const ACK: Self = Self(4);
}

/// What an attribute is about: 15 bits (RFC 7296 §3.15.1); unknown values are kept.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AttributeType(pub u16);

impl AttributeType {
    /// an inner IPv4 address
    pub const INTERNAL_IP4_ADDRESS: Self = Self(1);
    /// the netmask of that
    pub const INTERNAL_IP4_NETMASK: Self = Self(2);
    /// an IPv4 DNS server
    pub const INTERNAL_IP4_DNS: Self = Self(3);
    /// a WINS server
    pub const INTERNAL_IP4_NBNS: Self = Self(4);
    /// a DHCP server
    pub const INTERNAL_IP4_DHCP: Self = Self(6);
    /// free text
    pub const APPLICATION_VERSION: Self = Self(7);
    /// an inner IPv6 address with a prefix length
    pub const INTERNAL_IP6_ADDRESS: Self = Self(8);
    /// an IPv6 DNS server
    pub const INTERNAL_IP6_DNS: Self = Self(10);
    /// a DHCPv6 server
    pub const INTERNAL_IP6_DHCP: Self = Self(12);
    /// an IPv4 network behind the gateway
    pub const INTERNAL_IP4_SUBNET: Self = Self(13);
    /// what the sender knows
    pub const SUPPORTED_ATTRIBUTES: Self = Self(14);
    /// an IPv6 network behind the gateway
    pub const INTERNAL_IP6_SUBNET: Self = Self(15);
    /// a domain that the DNS servers are for (RFC 8598)
    pub const INTERNAL_DNS_DOMAIN: Self = Self(25);
    /// a DNSSEC trust anchor of such a domain (RFC 8598)
    pub const INTERNAL_DNSSEC_TA: Self = Self(26);
}

impl fmt::Debug for AttributeType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// One attribute as it is on the wire; [`Attribute::read`] says what it means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attribute {
    /// what it is about
    pub kind: AttributeType,
    /// empty to ask for a value, without a suggestion
    pub value: Vec<u8>,
}

/// The attributes that this implementation understands; `None` is the empty value of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AttributeValue {
    /// INTERNAL_IP4_ADDRESS
    Ip4Address(Option<Ipv4Addr>),
    /// INTERNAL_IP4_NETMASK
    Ip4Netmask(Option<Ipv4Addr>),
    /// INTERNAL_IP4_DNS
    Ip4Dns(Option<Ipv4Addr>),
    /// INTERNAL_IP6_ADDRESS with its prefix length, 0 to 128
    Ip6Address(Option<(Ipv6Addr, u8)>),
    /// INTERNAL_IP6_DNS
    Ip6Dns(Option<Ipv6Addr>),
    /// INTERNAL_IP4_SUBNET
    Ip4Subnet(Option<Ipv4Net>),
    /// INTERNAL_IP6_SUBNET
    Ip6Subnet(Option<Ipv6Net>),
    /// INTERNAL_DNS_DOMAIN (RFC 8598 §4.1)
    DnsDomain(Option<String>),
}

impl Attribute {
    /// What the attribute means: `None` if its type is not one of [`AttributeValue`].
    ///
    /// A value of the wrong length or form is an error, of which RFC 7296 says no more; the caller
    /// may pass over that attribute.
    pub fn read(&self) -> Result<Option<AttributeValue>, WireError> {
        let mut reader = Reader::new(&self.value);
        let value = match self.kind {
            AttributeType::INTERNAL_IP4_ADDRESS => {
                AttributeValue::Ip4Address(optional(&mut reader, ip4)?)
            }
            AttributeType::INTERNAL_IP4_NETMASK => {
                AttributeValue::Ip4Netmask(optional(&mut reader, ip4)?)
            }
            AttributeType::INTERNAL_IP4_DNS => AttributeValue::Ip4Dns(optional(&mut reader, ip4)?),
            AttributeType::INTERNAL_IP6_ADDRESS => {
                AttributeValue::Ip6Address(optional(&mut reader, ip6_prefix)?)
            }
            AttributeType::INTERNAL_IP6_DNS => AttributeValue::Ip6Dns(optional(&mut reader, ip6)?),
            AttributeType::INTERNAL_IP4_SUBNET => {
                AttributeValue::Ip4Subnet(optional(&mut reader, ip4_subnet)?)
            }
            AttributeType::INTERNAL_IP6_SUBNET => {
                AttributeValue::Ip6Subnet(optional(&mut reader, ip6_subnet)?)
            }
            AttributeType::INTERNAL_DNS_DOMAIN => {
                AttributeValue::DnsDomain(optional(&mut reader, domain)?)
            }
            _ => return Ok(None),
        };
        reader.finish("configuration attribute")?;
        Ok(Some(value))
    }
}

fn optional<'a, T>(
    reader: &mut Reader<'a>,
    parse: impl FnOnce(&mut Reader<'a>) -> Result<T, WireError>,
) -> Result<Option<T>, WireError> {
    if reader.is_empty() { Ok(None) } else { parse(reader).map(Some) }
}

fn ip4(reader: &mut Reader<'_>) -> Result<Ipv4Addr, WireError> {
    reader.array("IPv4 address").map(Ipv4Addr::from)
}

fn ip6(reader: &mut Reader<'_>) -> Result<Ipv6Addr, WireError> {
    reader.array("IPv6 address").map(Ipv6Addr::from)
}

fn ip6_prefix(reader: &mut Reader<'_>) -> Result<(Ipv6Addr, u8), WireError> {
    let address = ip6(reader)?;
    let at = reader.at();
    match reader.u8("prefix length")? {
        prefix @ 0..=128 => Ok((address, prefix)),
        value => Err(WireError::Value { what: "prefix length", at, value: value.into() }),
    }
}

fn ip4_subnet(reader: &mut Reader<'_>) -> Result<Ipv4Net, WireError> {
    let address = ip4(reader)?;
    let at = reader.at();
    let mask = ip4(reader)?;
    let wrong = WireError::Value { what: "netmask", at, value: mask.to_bits().into() };
    Ipv4Net::with_netmask(address, mask).map_err(|_| wrong)
}

fn ip6_subnet(reader: &mut Reader<'_>) -> Result<Ipv6Net, WireError> {
    let at = reader.at();
    let (address, prefix) = ip6_prefix(reader)?;
    let wrong = WireError::Value { what: "prefix length", at, value: prefix.into() };
    Ipv6Net::new(address, prefix).map_err(|_| wrong)
}

/// A domain name in presentation format, without a NUL at its end (RFC 8598 §4.1). The text may end
/// up in a resolver's configuration, so that nothing but letters, digits and `-_.` is let through.
fn domain(reader: &mut Reader<'_>) -> Result<String, WireError> {
    let at = reader.at();
    let allowed = |octet: &u8| octet.is_ascii_alphanumeric() || b"-_.".contains(octet);
    let octets = reader.rest();
    match octets.iter().find(|octet| !allowed(octet)) {
        None => Ok(octets.iter().map(|octet| char::from(*octet)).collect()),
        Some(octet) => Err(WireError::Value { what: "domain", at, value: (*octet).into() }),
    }
}

impl From<AttributeValue> for Attribute {
    fn from(value: AttributeValue) -> Self {
        let ip4 = |address: Option<Ipv4Addr>| address.map(|address| address.octets().to_vec());
        let (kind, value) = match value {
            AttributeValue::Ip4Address(address) => {
                (AttributeType::INTERNAL_IP4_ADDRESS, ip4(address))
            }
            AttributeValue::Ip4Netmask(mask) => (AttributeType::INTERNAL_IP4_NETMASK, ip4(mask)),
            AttributeValue::Ip4Dns(address) => (AttributeType::INTERNAL_IP4_DNS, ip4(address)),
            AttributeValue::Ip6Address(address) => (
                AttributeType::INTERNAL_IP6_ADDRESS,
                address.map(|(address, prefix)| [&address.octets()[..], &[prefix]].concat()),
            ),
            AttributeValue::Ip6Dns(address) => {
                (AttributeType::INTERNAL_IP6_DNS, address.map(|address| address.octets().to_vec()))
            }
            AttributeValue::Ip4Subnet(net) => (
                AttributeType::INTERNAL_IP4_SUBNET,
                net.map(|net| [net.addr().octets(), net.netmask().octets()].concat()),
            ),
            AttributeValue::Ip6Subnet(net) => (
                AttributeType::INTERNAL_IP6_SUBNET,
                net.map(|net| [&net.addr().octets()[..], &[net.prefix_len()]].concat()),
            ),
            AttributeValue::DnsDomain(domain) => {
                (AttributeType::INTERNAL_DNS_DOMAIN, domain.map(String::into_bytes))
            }
        };
        Attribute { kind, value: value.unwrap_or_default() }
    }
}

/// A Configuration payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Configuration {
    /// what it does
    pub kind: CfgType,
    /// what it is about, unknown attributes too
    pub attributes: Vec<Attribute>,
}

impl Configuration {
    /// A payload to send.
    pub fn new(kind: CfgType, values: impl IntoIterator<Item = AttributeValue>) -> Self {
        Configuration { kind, attributes: values.into_iter().map(Attribute::from).collect() }
    }

    /// The attributes that are understood and well formed; the others are passed over, as
    /// RFC 7296 §3.15.1 asks for unknown ones.
    pub fn values(&self) -> impl Iterator<Item = AttributeValue> {
        self.attributes.iter().filter_map(|attribute| attribute.read().ok().flatten())
    }

    pub(super) fn parse(reader: &mut Reader<'_>) -> Result<Self, WireError> {
        let kind = CfgType(reader.u8("CFG type")?);
        reader.take(3, "CP reserved field")?;
        let mut attributes = Vec::new();
        while !reader.is_empty() {
            if attributes.len() >= MAX_ATTRIBUTES {
                let (what, at) = ("configuration attributes", reader.at());
                return Err(WireError::TooMany { what, at, limit: MAX_ATTRIBUTES });
            }
            // The top bit is reserved.
            let kind = AttributeType(reader.u16("attribute type")? & 0x7fff);
            let length = reader.u16("attribute length")?;
            let value = reader.take(length.into(), "attribute value")?.to_vec();
            attributes.push(Attribute { kind, value });
        }
        Ok(Configuration { kind, attributes })
    }

    pub(super) fn emit(&self, out: &mut Vec<u8>) -> Result<(), TooLong> {
        out.extend([self.kind.0, 0, 0, 0]);
        for Attribute { kind, value } in &self.attributes {
            out.extend((kind.0 & 0x7fff).to_be_bytes());
            out.extend(short(value.len(), "configuration attribute")?);
            out.extend(value);
        }
        Ok(())
    }
}
