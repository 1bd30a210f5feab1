//! Traffic selectors as an operator writes them: `10.1.0.0/16`, `10.1.0.5-10.1.0.9`,
//! `10.1.0.0/16[tcp/443]`, `2001:db8::/64[udp/1000-2000]`, `0.0.0.0/0[icmp/8]`.

use std::{fmt, net::IpAddr, str::FromStr};

use ipnet::IpNet;
use thiserror::Error;

use super::{ANY, OPAQUE, TrafficSelector};

const ICMP: u8 = 1;
const ICMPV6: u8 = 58;

/// Protocols that have a name, and those of them that have ports.
const NAMES: [(&str, u8); 11] = [
    ("icmp", ICMP),
    ("tcp", 6),
    ("udp", 17),
    ("dccp", 33),
    ("gre", 47),
    ("esp", 50),
    ("ah", 51),
    ("icmpv6", ICMPV6),
    ("sctp", 132),
    ("mobility", 135),
    ("udplite", 136),
];

/// Text that is no traffic selector, with what to write instead.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SelectorError {
    /// Neither a network nor a range of addresses.
    #[error(
        "{0:?} is not a network; expected one such as \"10.1.0.0/16\", \"10.1.0.5-10.1.0.9\" or \
         \"10.1.0.0/16[tcp/443]\""
    )]
    Network(String),
    /// A network with host bits.
    #[error("{0:?} has bits set beyond its prefix; did you mean \"{1}\"?")]
    HostBits(String, IpNet),
    /// A range that ends before it begins, or in the other family.
    #[error("{0:?} is no range: its end must not be lower than its start, nor of another family")]
    Range(String),
    /// A protocol without name or number.
    #[error(
        "{0:?} is no protocol; expected a number from 1 to 255 or one of icmp, tcp, udp, dccp, gre, \
         esp, ah, icmpv6, sctp, mobility, udplite"
    )]
    Protocol(String),
    /// Ports that are none.
    #[error("{0:?} is no port; expected one such as 443, a range such as 1000-2000, or opaque")]
    Port(String),
    /// An ICMP message that is none.
    #[error(
        "{0:?} is no kind of ICMP message; expected a type such as 8, or type.code such as 3.4"
    )]
    Icmp(String),
}

impl FromStr for TrafficSelector {
    type Err = SelectorError;

    fn from_str(text: &str) -> Result<Self, SelectorError> {
        let (addresses, inside) = match text.split_once('[') {
            None => (text, None),
            Some((addresses, inside)) => match inside.strip_suffix(']') {
                Some(inside) => (addresses, Some(inside)),
                None => return Err(SelectorError::Network(text.into())),
            },
        };
        let (first, last) = range(addresses)?;
        let (protocol, ports) = inside.map(upper_layer).transpose()?.unwrap_or((0, ANY));
        TrafficSelector::new(protocol, ports, first, last)
            .ok_or_else(|| SelectorError::Range(text.into()))
    }
}

fn range(text: &str) -> Result<(IpAddr, IpAddr), SelectorError> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok((address, address));
    }
    let bad = || SelectorError::Network(text.into());
    if let Some((first, last)) = text.split_once('-') {
        let address = |text: &str| text.trim().parse::<IpAddr>().map_err(|_| bad());
        return Ok((address(first)?, address(last)?));
    }
    let net: IpNet = text.parse().map_err(|_| bad())?;
    if net != net.trunc() {
        return Err(SelectorError::HostBits(text.into(), net.trunc()));
    }
    let all = TrafficSelector::from_net(net);
    Ok((all.first, all.last))
}

/// What stands in brackets: a protocol, and ports or kinds of ICMP messages.
fn upper_layer(text: &str) -> Result<(u8, (u16, u16)), SelectorError> {
    let (name, ports) = match text.split_once('/') {
        None => (text, None),
        Some((name, ports)) => (name, Some(ports)),
    };
    let named = NAMES.iter().find(|(known, _)| *known == name).map(|(_, number)| *number);
    let protocol = named
        .or_else(|| name.parse().ok().filter(|number| *number != 0))
        .ok_or_else(|| SelectorError::Protocol(name.into()))?;
    let ports = match ports {
        None => ANY,
        Some("opaque") => OPAQUE,
        Some(text) => {
            let (first, last) = text.split_once('-').unwrap_or((text, text));
            match protocol {
                ICMP | ICMPV6 => (message(first, 0)?, message(last, u8::MAX)?),
                _ => (port(first)?, port(last)?),
            }
        }
    };
    if ports != OPAQUE && ports.0 > ports.1 {
        return Err(SelectorError::Port(text.into()));
    }
    Ok((protocol, ports))
}

fn port(text: &str) -> Result<u16, SelectorError> {
    text.parse().map_err(|_| SelectorError::Port(text.into()))
}

/// Type and code of ICMP, which stand where ports do (RFC 7296 §3.13.1).
fn message(text: &str, any_code: u8) -> Result<u16, SelectorError> {
    let number = |part: &str| part.parse::<u8>().map_err(|_| SelectorError::Icmp(text.into()));
    let (kind, code) = match text.split_once('.') {
        None => (number(text)?, any_code),
        Some((kind, code)) => (number(kind)?, number(code)?),
    };
    Ok(u16::from_be_bytes([kind, code]))
}

impl fmt::Display for TrafficSelector {
    /// In the words of the configuration.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.nets().as_slice() {
            [net] => write!(f, "{net}")?,
            _ => write!(f, "{}-{}", self.first, self.last)?,
        }
        if self.protocol == 0 && self.ports == ANY {
            return Ok(());
        }
        match NAMES.iter().find(|(_, number)| *number == self.protocol) {
            Some((name, _)) => write!(f, "[{name}")?,
            None => write!(f, "[{}", self.protocol)?,
        }
        let (first, last) = self.ports;
        match (self.protocol, self.ports) {
            (_, ANY) => {}
            (_, OPAQUE) => f.write_str("/opaque")?,
            (ICMP | ICMPV6, _) => {
                let ([first, from], [last, to]) = (first.to_be_bytes(), last.to_be_bytes());
                match (first == last, from, to) {
                    (true, 0, u8::MAX) => write!(f, "/{first}")?,
                    (false, 0, u8::MAX) => write!(f, "/{first}-{last}")?,
                    (true, _, _) if from == to => write!(f, "/{first}.{from}")?,
                    _ => write!(f, "/{first}.{from}-{last}.{to}")?,
                }
            }
            _ if first == last => write!(f, "/{first}")?,
            _ => write!(f, "/{first}-{last}")?,
        }
        f.write_str("]")
    }
}
