//! What was seen where: a record of each datagram at each hop, and a pcap file of them.

use std::{
    fmt, io,
    io::Write,
    net::{IpAddr, SocketAddr},
};

use bewick_ike::Time;

use crate::net::{Datagram, NatId, Protocol, UplinkId};

/// Why a datagram did not arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Loss {
    /// the sender has no uplink that is up and owns the source address
    NoSource,
    /// source and destination are of different families
    Family,
    /// nobody has the destination address
    Nobody,
    /// the receiver's uplink is down
    Down,
    /// the link lost it by chance
    Chance,
    /// the link or the uplink is a black hole
    BlackHole,
    /// the packet is bigger than the link's MTU
    TooBig,
    /// the tap took it
    Tap,
    /// a NAT passes UDP only
    NatProtocol,
    /// a NAT has no outside address of the family or no port left
    NatPorts,
    /// a NAT has no mapping for the destination
    NatNoMapping,
    /// a NAT has a mapping but the source is not let in
    NatFiltered,
}

/// Where a datagram was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hop {
    /// a host gave it to this uplink
    Sent(UplinkId),
    /// a NAT translated its source
    NatOut(NatId),
    /// a NAT translated its destination
    NatIn(NatId),
    /// a host received it on this uplink
    Delivered(UplinkId),
    /// it ended here
    Lost(Loss),
}

/// One sighting of a datagram.
#[derive(Clone, PartialEq, Eq)]
pub struct Record {
    /// when
    pub time: Time,
    /// where
    pub hop: Hop,
    /// the datagram as it was after the hop
    pub datagram: Datagram,
}

impl fmt::Debug for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {:?} {:?}", self.time, self.hop, self.datagram)
    }
}

/// All sightings since the capture was switched on.
#[derive(Debug, Default)]
pub struct Capture {
    on: bool,
    records: Vec<Record>,
}

impl Capture {
    /// Switches recording on or off; what is recorded stays.
    pub fn set_on(&mut self, on: bool) {
        self.on = on;
    }

    /// All records, oldest first.
    pub fn records(&self) -> &[Record] {
        &self.records
    }

    /// Datagrams as hosts sent them, oldest first.
    pub fn sent(&self) -> impl Iterator<Item = &Record> {
        self.records.iter().filter(|record| matches!(record.hop, Hop::Sent(_)))
    }

    /// Datagrams as hosts received them, oldest first.
    pub fn delivered(&self) -> impl Iterator<Item = &Record> {
        self.records.iter().filter(|record| matches!(record.hop, Hop::Delivered(_)))
    }

    /// Forgets all records.
    pub fn clear(&mut self) {
        self.records.clear();
    }

    pub(crate) fn record(&mut self, time: Time, hop: Hop, datagram: &Datagram) {
        if self.on {
            self.records.push(Record { time, hop, datagram: datagram.clone() });
        }
    }

    /// Writes the records that `wanted` picks as a classic pcap file of raw IP packets.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn write_pcap(&self, mut out: impl Write, wanted: fn(&Hop) -> bool) -> io::Result<()> {
        out.write_all(&0xa1b2_c3d4_u32.to_be_bytes())?;
        out.write_all(&[0, 2, 0, 4])?;
        out.write_all(&[0; 8])?;
        out.write_all(&65_535_u32.to_be_bytes())?;
        out.write_all(&LINKTYPE_RAW.to_be_bytes())?;
        for record in self.records.iter().filter(|record| wanted(&record.hop)) {
            let packet = ip_packet(&record.datagram);
            let micros = record.time.as_micros();
            for number in [micros / 1_000_000, micros % 1_000_000] {
                out.write_all(&u32::try_from(number).unwrap_or(u32::MAX).to_be_bytes())?;
            }
            let len = u32::try_from(packet.len()).unwrap_or(u32::MAX).to_be_bytes();
            out.write_all(&len)?;
            out.write_all(&len)?;
            out.write_all(&packet)?;
        }
        Ok(())
    }
}

const LINKTYPE_RAW: u32 = 101;
const ESP: u8 = 50;
const UDP: u8 = 17;
const TCP: u8 = 6;

/// The datagram as an IP packet, with checksums.
fn ip_packet(datagram: &Datagram) -> Vec<u8> {
    let protocol = match datagram.protocol {
        Protocol::Udp => UDP,
        Protocol::Tcp => TCP,
        Protocol::Esp => ESP,
    };
    let mut body = Vec::with_capacity(datagram.payload.len() + 8);
    if protocol == UDP {
        let len = u16::try_from(datagram.payload.len() + 8).unwrap_or(u16::MAX);
        body.extend(datagram.src.port().to_be_bytes());
        body.extend(datagram.dst.port().to_be_bytes());
        body.extend(len.to_be_bytes());
        body.extend([0, 0]);
    }
    body.extend(&datagram.payload);
    let len = u16::try_from(body.len()).unwrap_or(u16::MAX);
    let (src, dst) = (octets(datagram.src), octets(datagram.dst));
    if protocol == UDP {
        let pseudo = [&src[..], &dst[..], &[0, UDP], &len.to_be_bytes(), &body];
        let sum = match checksum(&pseudo.concat()) {
            0 => 0xffff_u16,
            sum => sum,
        };
        body.splice(6..8, sum.to_be_bytes());
    }
    let mut packet = Vec::with_capacity(body.len() + 40);
    if datagram.dst.is_ipv4() {
        packet.extend([0x45, 0]);
        packet.extend(len.saturating_add(20).to_be_bytes());
        packet.extend([0, 0, 0, 0, 64, protocol, 0, 0]);
        packet.extend(src);
        packet.extend(dst);
        let sum = checksum(&packet);
        packet.splice(10..12, sum.to_be_bytes());
    } else {
        packet.extend([0x60, 0, 0, 0]);
        packet.extend(len.to_be_bytes());
        packet.extend([protocol, 64]);
        packet.extend(src);
        packet.extend(dst);
    }
    packet.extend(body);
    packet
}

fn octets(addr: SocketAddr) -> Vec<u8> {
    match addr.ip() {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

/// The Internet checksum (RFC 1071); an odd last octet counts as the high half.
fn checksum(data: &[u8]) -> u16 {
    let mut sum: u64 = 0;
    for pair in data.chunks(2) {
        let low = pair.get(1).copied().unwrap_or(0);
        sum += u64::from(u16::from_be_bytes([pair[0], low]));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> SocketAddr {
        text.parse().expect("an address and port")
    }

    #[test]
    fn checksums_of_a_packet_verify() {
        for (src, dst, header) in
            [("10.0.0.1:500", "10.0.0.2:4500", 20), ("[2001:db8::1]:500", "[2001:db8::2]:500", 40)]
        {
            let datagram = Datagram::udp(at(src), at(dst), b"odd".to_vec());
            let packet = ip_packet(&datagram);
            assert_eq!(packet.len(), header + 8 + 3);
            if header == 20 {
                assert_eq!(checksum(&packet[..header]), 0);
            }
            let len = 11_u16.to_be_bytes();
            let pseudo =
                [&octets(at(src))[..], &octets(at(dst)), &[0, UDP], &len, &packet[header..]];
            assert_eq!(checksum(&pseudo.concat()), 0);
        }
    }

    #[test]
    fn a_pcap_file_holds_what_was_picked() {
        let mut capture = Capture::default();
        let datagram = Datagram::udp(at("10.0.0.1:500"), at("10.0.0.2:500"), vec![1, 2, 3, 4]);
        capture.record(Time::ZERO, Hop::Lost(Loss::Nobody), &datagram);
        assert!(capture.records().is_empty(), "a capture starts switched off");
        capture.set_on(true);
        capture.record(Time::from_micros(1_000_002), Hop::Sent(UplinkId(0)), &datagram);
        capture.record(Time::from_micros(1_000_003), Hop::Lost(Loss::Nobody), &datagram);
        let mut file = Vec::new();
        capture.write_pcap(&mut file, |hop| matches!(hop, Hop::Sent(_))).expect("memory");
        assert_eq!(file.len(), 24 + 16 + 20 + 8 + 4);
        assert_eq!(file[24..32], [0, 0, 0, 1, 0, 0, 0, 2]);
        assert_eq!(file[file.len() - 4..], [1, 2, 3, 4]);
    }
}
