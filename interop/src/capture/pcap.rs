//! IKE and ESP in a capture of `tcpdump -i any`: a pcap file with Linux' cooked headers.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// LINKTYPE_LINUX_SLL2, which `-i any` gives.
pub const LINK_TYPE: u16 = 276;

const TCP: u8 = 6;
const UDP: u8 = 17;
const ESP: u8 = 50;

/// A packet of the outer network.
pub struct Packet {
    /// Where it came from.
    pub from: IpAddr,
    /// Where it went.
    pub to: IpAddr,
    /// What it carried.
    pub kind: Kind,
}

/// What a packet carries.
pub enum Kind {
    /// A message, of this exchange type (RFC 7296 §3.1).
    Ike {
        /// Whether it answers.
        is_response: bool,
        /// The exchange type.
        exchange: u8,
        /// The SPI of who has initiated the IKE_SA.
        spi_i: [u8; 8],
        /// Whether who has initiated the IKE_SA has sent it.
        by_initiator: bool,
        /// Its Message ID.
        message_id: u32,
    },
    /// ESP, in UDP or not.
    Esp,
    /// Octets of a TCP connection that both ends have agreed on (RFC 9329).
    Stream,
}

/// The IKE messages and ESP packets in a capture, in the order in which they came in.
pub fn packets(file: &[u8]) -> impl Iterator<Item = Packet> {
    let mut rest = file.get(24..).unwrap_or_default();
    std::iter::from_fn(move || {
        let [a, b, c, d] = *rest.get(8..)?.first_chunk()?;
        let end = usize::try_from(u32::from_ne_bytes([a, b, c, d])).ok()?.checked_add(16)?;
        let frame = rest.get(16..end)?;
        rest = rest.get(end..)?;
        // LINKTYPE_LINUX_SLL2: the packet's type, 4 for one that goes out, and 20 octets altogether. What goes
        // out may have waited for an Ethernet address for long.
        let came_in = frame.get(10) != Some(&4);
        Some(frame.get(20..).filter(|_| came_in).and_then(packet))
    })
    .flatten()
}

fn packet(ip: &[u8]) -> Option<Packet> {
    let first = *ip.first()?;
    let (from, to, protocol, body): (IpAddr, IpAddr, u8, &[u8]) = if first >> 4 == 6 {
        let at = |at: usize| ip.get(at..)?.first_chunk::<16>().copied();
        let (from, to) = (Ipv6Addr::from(at(8)?), Ipv6Addr::from(at(24)?));
        (from.into(), to.into(), *ip.get(6)?, ip.get(40..)?)
    } else {
        let at = |at: usize| ip.get(at..)?.first_chunk::<4>().copied();
        let (from, to) = (Ipv4Addr::from(at(12)?), Ipv4Addr::from(at(16)?));
        (from.into(), to.into(), *ip.get(9)?, ip.get(usize::from(first & 0x0f) * 4..)?)
    };
    let kind = match protocol {
        ESP => Kind::Esp,
        UDP => in_udp(body)?,
        TCP => in_tcp(body)?,
        _ => return None,
    };
    Some(Packet { from, to, kind })
}

fn in_tcp(tcp: &[u8]) -> Option<Kind> {
    let port = |at: usize| tcp.get(at..)?.first_chunk().copied().map(u16::from_be_bytes);
    let header = usize::from(*tcp.get(12)? >> 4) * 4;
    let ours = port(0)? == 4500 || port(2)? == 4500;
    // The length of the IP packet is that of the frame: these links are not padded.
    (ours && tcp.len() > header).then_some(Kind::Stream)
}

fn in_udp(udp: &[u8]) -> Option<Kind> {
    let port = |at: usize| udp.get(at..)?.first_chunk().copied().map(u16::from_be_bytes);
    let (from, to) = (port(0)?, port(2)?);
    let body = udp.get(8..)?;
    let message = match body {
        // A NAT may give a client any port.
        _ if from == 4500 || to == 4500 => match body.first_chunk()? {
            [0, 0, 0, 0] => body.get(4..)?,
            _ => return Some(Kind::Esp),
        },
        _ if from == 500 || to == 500 => body,
        _ => return None,
    };
    let (exchange, flags) = (*message.get(18)?, *message.get(19)?);
    let spi_i = *message.first_chunk()?;
    Some(Kind::Ike {
        is_response: flags & 0x20 != 0,
        exchange,
        spi_i,
        by_initiator: flags & 0x08 != 0,
        message_id: u32::from_be_bytes(*message.get(20..)?.first_chunk()?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file with a packet of each of these packet types and UDP payloads, from port 4500 to a NAT's.
    fn file(packets: &[(u8, &[u8])]) -> Vec<u8> {
        let mut file = vec![0; 24];
        for (kind, payload) in packets {
            let mut frame = vec![0; 20];
            frame[10] = *kind;
            frame.extend([0x45, 0, 0, 0, 0, 0, 0, 0, 64, UDP, 0, 0, 192, 0, 2, 1, 203, 0, 113, 9]);
            frame.extend([0x11, 0x94, 0x13, 0x88, 0, 0, 0, 0]);
            frame.extend(*payload);
            let length = (frame.len() as u32).to_ne_bytes();
            file.extend([[0; 4], [0; 4], length, length].concat());
            file.extend(frame);
        }
        file
    }

    #[test]
    fn only_tcp_with_octets_on_the_port_is_a_stream() {
        let segment = |from: u16, octets: &[u8]| {
            let header =
                [&from.to_be_bytes()[..], &[0xc0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0x50]].concat();
            [&header[..], &[0x10, 1, 0, 0, 0, 0, 0], octets].concat()
        };
        assert!(matches!(in_tcp(&segment(4500, b"IKETCP")), Some(Kind::Stream)));
        assert!(in_tcp(&segment(4500, b"")).is_none(), "an acknowledgement");
        assert!(in_tcp(&segment(80, b"GET")).is_none());
        assert!(in_tcp(b"short").is_none());
    }

    #[test]
    fn ike_and_esp_that_come_in_are_told_apart() {
        let mut answer = [0; 32];
        answer[4..12].fill(7);
        answer[4 + 23] = 9;
        answer[4 + 18] = 37;
        answer[4 + 19] = 0x20;
        let file = file(&[(0, &answer), (4, &[1; 32]), (0, &[0xff]), (0, &[1; 32])]);
        let kinds: Vec<Kind> = packets(&file).map(|packet| packet.kind).collect();
        let [Kind::Ike { is_response, exchange, spi_i, by_initiator, message_id }, Kind::Esp] =
            kinds[..]
        else {
            panic!("IKE and ESP")
        };
        assert_eq!((is_response, exchange, spi_i), (true, 37, [7; 8]));
        assert_eq!((by_initiator, message_id), (false, 9));
    }
}
