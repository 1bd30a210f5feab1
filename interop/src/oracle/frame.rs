//! A line of `tshark -T fields`: an IKE message or an ESP packet of the outer network.

use std::net::{IpAddr, SocketAddr};

/// RFC 7296 §3.1.
const IKE_SA_INIT: u8 = 34;

/// What tshark is asked for, in this order.
pub const FIELDS: [&str; 24] = [
    "frame.number",
    "sll.pkttype",
    "ip.src",
    "ip.dst",
    "ipv6.src",
    "ipv6.dst",
    "udp.srcport",
    "udp.dstport",
    "isakmp.ispi",
    "isakmp.rspi",
    "isakmp.typepayload",
    "isakmp.exchangetype",
    "isakmp.flag_i",
    "isakmp.flag_r",
    "isakmp.messageid",
    "isakmp.notify.msgtype",
    "isakmp.enc.data",
    "isakmp.enc.decrypted",
    "esp.spi",
    "esp.sequence",
    "_ws.malformed",
    "ip.ttl",
    "ipv6.hlim",
    "isakmp.notify.data",
];

/// What hosts put there at first.
pub const FRESH: u8 = 64;

/// One frame.
#[derive(Debug, Clone)]
pub struct Frame {
    /// Its number in the capture.
    pub number: u64,
    /// Whether the router took it in; else it went out.
    pub came_in: bool,
    /// From where to where.
    pub ends: Option<(SocketAddr, SocketAddr)>,
    /// The IKE message, if it is one.
    pub ike: Option<Ike>,
    /// SPI and sequence number, if it is ESP.
    pub esp: Option<(u32, u32)>,
    /// tshark could not make sense of all of it.
    pub malformed: bool,
    /// How many routers more it may pass.
    pub hops: u8,
}

/// An IKE message.
#[derive(Debug, Clone)]
pub struct Ike {
    /// The initiator's SPI, 16 hex digits.
    pub spi_i: String,
    /// The responder's.
    pub spi_r: String,
    /// The exchange type.
    pub exchange: u8,
    /// The initiator of the IKE_SA has sent it.
    pub by_initiator: bool,
    /// It answers.
    pub is_response: bool,
    /// Its Message ID.
    pub message_id: u32,
    /// The types of all notifies in it.
    pub notifies: Vec<u32>,
    /// Their data, in hex; a tshark that has no word for none may give less of them.
    pub data: Vec<String>,
    /// The types of all payloads in it.
    pub payloads: Vec<u8>,
    /// It has an encrypted payload.
    pub is_sealed: bool,
    /// That could be opened.
    pub is_open: bool,
}

impl Ike {
    /// Names its exchange among those of the capture.
    pub fn name(&self) -> (String, String, u8, u32) {
        // The request of IKE_SA_INIT has no SPI of the responder's yet (RFC 7296 §2.6).
        let spi_r = if self.exchange == IKE_SA_INIT { "" } else { &self.spi_r };
        (self.spi_i.clone(), spi_r.to_owned(), self.exchange, self.message_id)
    }
}

/// Reads a line; `None` if it is none of a frame.
pub fn parse(line: &str) -> Option<Frame> {
    let fields: Vec<&str> = line.split('\t').collect();
    let get = |name: &str| {
        let at = FIELDS.iter().position(|field| *field == name)?;
        fields.get(at).copied().filter(|value| !value.is_empty())
    };
    // Of what is inside an ICMP error or a tunnel comes after the outer one.
    let first = |name: &str| get(name).and_then(|value| value.split(';').next());
    let all = |name: &str| get(name).map(|value| value.split(';')).into_iter().flatten();
    let ip = |v4: &str, v6: &str| -> Option<IpAddr> {
        first(v4).or_else(|| first(v6)).and_then(|text| text.parse().ok())
    };
    let port = |name: &str| first(name).and_then(|text| text.parse().ok()).unwrap_or(0);
    let ends = match (ip("ip.src", "ipv6.src"), ip("ip.dst", "ipv6.dst")) {
        (Some(from), Some(to)) => Some((
            SocketAddr::new(from, port("udp.srcport")),
            SocketAddr::new(to, port("udp.dstport")),
        )),
        _ => None,
    };
    let esp = first("esp.spi").and_then(number).zip(first("esp.sequence").and_then(number));
    Some(Frame {
        number: get("frame.number")?.parse().ok()?,
        came_in: first("sll.pkttype") != Some("4"),
        ends,
        ike: ike(&first, &|name| all(name).map(str::to_owned).collect()),
        esp,
        malformed: get("_ws.malformed").is_some(),
        hops: first("ip.ttl")
            .or_else(|| first("ipv6.hlim"))
            .and_then(|text| text.parse().ok())
            .unwrap_or(FRESH),
    })
}

fn ike<'a>(
    first: &impl Fn(&str) -> Option<&'a str>,
    all: &impl Fn(&str) -> Vec<String>,
) -> Option<Ike> {
    let flag = |name: &str| matches!(first(name), Some("1" | "True"));
    Some(Ike {
        spi_i: first("isakmp.ispi")?.replace(':', ""),
        spi_r: first("isakmp.rspi")?.replace(':', ""),
        exchange: first("isakmp.exchangetype")?.parse().ok()?,
        by_initiator: flag("isakmp.flag_i"),
        is_response: flag("isakmp.flag_r"),
        message_id: number(first("isakmp.messageid")?)?,
        notifies: all("isakmp.notify.msgtype").iter().filter_map(|text| number(text)).collect(),
        data: all("isakmp.notify.data").iter().map(|text| text.replace(':', "")).collect(),
        payloads: all("isakmp.typepayload").iter().filter_map(|text| text.parse().ok()).collect(),
        is_sealed: first("isakmp.enc.data").is_some(),
        is_open: first("isakmp.enc.decrypted").is_some(),
    })
}

/// A number in decimal, or in hexadecimal behind 0x.
fn number(text: &str) -> Option<u32> {
    match text.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

/// Frames for the tests of rules.
#[cfg(test)]
pub mod made {
    use super::{Frame, parse};

    /// Where the client is at first.
    pub const CLIENT: &str = "198.51.100.2";
    /// Where the gateway is.
    pub const GATEWAY: &str = "192.0.2.1";

    /// A line of tshark's for an IKE message that could be opened.
    pub fn line(
        (number, kind): (u64, u8),
        (from, to): (&str, &str),
        (exchange, response, id): (u8, bool, u32),
        payloads: &str,
        notifies: &str,
    ) -> Frame {
        let by_initiator = u8::from(from == CLIENT);
        let text = format!(
            "{number}\t{kind}\t{from}\t{to}\t\t\t4500\t4500\t0102030405060708\t1112131415161718\t\
             {payloads}\t{exchange}\t{by_initiator}\t{}\t0x{id:08x}\t{notifies}\tab\tcd\t\t\t\t64\t",
            u8::from(response)
        );
        parse(&text).expect("a frame")
    }

    /// One for an ESP packet to this address, from the other end.
    pub fn esp(number: u64, to: &str, sequence: u32, hops: u8) -> Frame {
        let from = if to == GATEWAY { CLIENT } else { GATEWAY };
        let text = format!(
            "{number}\t0\t{from}\t{to}\t\t\t4500\t4500\t\t\t\t\t\t\t\t\t\t\t0x00001111\t{sequence}\t\t{hops}\t"
        );
        parse(&text).expect("a frame")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_read_and_what_is_inside_does_not_count() {
        let line = "12\t4\t192.0.2.1;10.0.0.1\t198.51.100.2;10.0.0.2\t\t\t4500;7\t31000;9\t\
                    01:02:03:04:05:06:07:08\t1112131415161718\t46;41;41\t37\t0\t1\t0x00000003\t\
                    16388;16389\taabb\tccdd\t\t\t\t64\t\taa:01;bb02";
        let frame = parse(line).expect("a frame");
        assert_eq!((frame.number, frame.came_in, frame.malformed), (12, false, false));
        let (from, to) = frame.ends.expect("addresses");
        assert_eq!(
            (from.to_string(), to.to_string()),
            ("192.0.2.1:4500".into(), "198.51.100.2:31000".into())
        );
        let ike = frame.ike.expect("a message");
        assert_eq!(ike.name(), ("0102030405060708".into(), "1112131415161718".into(), 37, 3));
        assert!(ike.is_response && !ike.by_initiator && ike.is_open && ike.is_sealed);
        assert_eq!((ike.notifies, ike.payloads), (vec![16388, 16389], vec![46, 41, 41]));
        assert_eq!(ike.data, ["aa01", "bb02"]);
        assert!(parse("").is_none());
    }
}
