use proptest::prelude::*;

use super::*;

const SYN: u8 = 0x02;
const PSH: u8 = 0x08;
const ACK: u8 = 0x10;
const FIN: u8 = 0x01;

/// A TCP packet as a test wants it, from the client's side to the gateway's.
#[derive(Clone, Debug)]
pub(crate) struct Segment {
    pub(crate) ipv4: bool,
    pub(crate) class: u8,
    pub(crate) id: u16,
    pub(crate) may_fragment: bool,
    pub(crate) number: u32,
    pub(crate) flags: u8,
    pub(crate) ports: (u16, u16),
    pub(crate) data: Vec<u8>,
}

impl Segment {
    pub(crate) fn new(ipv4: bool, number: u32, data: &[u8]) -> Segment {
        let data = data.to_vec();
        let (id, ports) = (7, (1000, 7));
        Segment { ipv4, class: 2, id, may_fragment: false, number, flags: ACK, ports, data }
    }

    /// With a timestamp option and all checksums.
    pub(crate) fn packet(&self) -> Vec<u8> {
        let mut tcp = [self.ports.0.to_be_bytes(), self.ports.1.to_be_bytes()].concat();
        tcp.extend(self.number.to_be_bytes());
        tcp.extend([0, 0, 0, 9, 8 << 4, self.flags, 1, 0, 0, 0, 0, 0]);
        tcp.extend([1, 1, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8]);
        tcp.extend(&self.data);
        let fragment = if self.may_fragment { 0 } else { 0x40 };
        ip(self.ipv4, (self.class, self.id, fragment), TCP, tcp)
    }
}

/// A UDP packet with its checksum.
pub(crate) fn datagram(ipv4: bool, id: u16, data: &[u8]) -> Vec<u8> {
    let mut udp = vec![3, 232, 0, 7];
    udp.extend(((8 + data.len()) as u16).to_be_bytes());
    udp.extend([0, 0]);
    udp.extend(data);
    ip(ipv4, (0, id, 0), UDP, udp)
}

fn ip(ipv4: bool, (class, id, fragment): (u8, u16, u8), protocol: u8, body: Vec<u8>) -> Vec<u8> {
    let mut packet = if ipv4 {
        let [l0, l1] = ((20 + body.len()) as u16).to_be_bytes();
        let [i0, i1] = id.to_be_bytes();
        let mut header = vec![0x45, class, l0, l1, i0, i1, fragment, 0, 64, protocol, 0, 0];
        header.extend([10, 9, 0, 1, 10, 1, 0, 1]);
        let sum = !naive(&header, 0);
        header[10..12].copy_from_slice(&sum.to_be_bytes());
        header
    } else {
        let [l0, l1] = (body.len() as u16).to_be_bytes();
        let mut header = vec![0x60 | class >> 4, class << 4, 0, 0, l0, l1, protocol, 64];
        for net in [9, 1] {
            header.extend([0x20, 1, 0xd, 0xb8, 0, net, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        }
        header
    };
    let transport = packet.len();
    packet.extend(body);
    let place = transport + if protocol == TCP { 16 } else { 6 };
    let sum = match !naive(&packet[transport..], pseudo(&packet, transport, protocol)) {
        0 if protocol == UDP => 0xffff,
        sum => sum,
    };
    packet[place..place + 2].copy_from_slice(&sum.to_be_bytes());
    packet
}

/// RFC 1071 as its first page has it: 16 bits after 16 bits.
fn naive(octets: &[u8], start: u32) -> u16 {
    let words =
        octets.chunks(2).map(|w| u32::from(w[0]) << 8 | w.get(1).map_or(0, |b| (*b).into()));
    let sum = words.fold(start, |sum, word| (sum + word) % 0xffff);
    // Nought and 0xffff are the same number; all that is summed here is not all nought.
    if sum == 0 { 0xffff } else { sum as u16 }
}

fn pseudo(packet: &[u8], transport: usize, protocol: u8) -> u32 {
    let addresses = if packet[0] >> 4 == 4 { &packet[12..20] } else { &packet[8..40] };
    u32::from(naive(addresses, u32::from(protocol) + (packet.len() - transport) as u32))
}

/// Whether a host would take the packet.
fn check(packet: &[u8], transport: usize, protocol: u8) {
    if packet[0] >> 4 == 4 {
        assert_eq!(naive(&packet[..20], 0), 0xffff, "IPv4 header checksum");
        assert_eq!(usize::from(get(packet, 2).unwrap()), packet.len());
    } else {
        assert_eq!(usize::from(get(packet, 4).unwrap()) + 40, packet.len());
    }
    let body = &packet[transport..];
    assert_eq!(naive(body, pseudo(packet, transport, protocol)), 0xffff, "checksum");
    if protocol == UDP {
        assert_eq!(usize::from(get(body, 4).unwrap()), body.len());
        assert_ne!(body[6..8], [0, 0], "no checksum");
    }
}

/// A frame as the kernel hands it over: the checksum is left to us.
fn frame(packet: &[u8], size: u16) -> (Vec<u8>, Vnet) {
    let layout = Layout::of(packet).unwrap();
    let mut frame = packet.to_vec();
    layout.leave_checksum(&mut frame, packet.len()).unwrap();
    (frame, Vnet::merged(&layout, size))
}

fn cut_all(frame: &[u8], vnet: &Vnet) -> Option<Vec<Vec<u8>>> {
    let cut = Cut::of(frame, vnet)?;
    let mut room = vec![0; 1 << 16];
    let packet = |index| cut.packet(frame, index, &mut room).map(|len| room[..len].to_vec());
    Some((0..).map_while(packet).collect())
}

fn data(len: usize) -> Vec<u8> {
    (0..len).map(|n| (n * 7 % 251) as u8).collect()
}

#[test]
fn a_tcp_frame_is_cut_into_what_the_kernel_would_send() {
    for ipv4 in [true, false] {
        let flags = ACK | PSH | FIN | CWR;
        let whole = Segment { id: 0xffff, flags, ..Segment::new(ipv4, u32::MAX - 99, &data(3001)) };
        let (frame, vnet) = frame(&whole.packet(), 1000);
        let packets = cut_all(&frame, &vnet).unwrap();
        assert_eq!(packets.len(), 4);
        for (index, packet) in packets.iter().enumerate() {
            // Ours to say field by field, and no less: the rest is as in the frame.
            let middle = |first, last| match index {
                0 => first,
                3 => last,
                _ => ACK,
            };
            let expected = Segment {
                id: 0xffffu16.wrapping_add(index as u16),
                number: whole.number.wrapping_add(1000 * index as u32),
                flags: middle(ACK | CWR, ACK | PSH | FIN),
                data: whole.data[1000 * index..3001.min(1000 * (index + 1))].to_vec(),
                ..whole.clone()
            };
            assert_eq!(*packet, expected.packet(), "IPv4 {ipv4}, packet {index}");
            check(packet, if ipv4 { 20 } else { 40 }, TCP);
        }
        // Where the kernel says that the flow knows ECN it is the same.
        let ecn = Vnet { kind: vnet.kind | GSO_ECN, ..vnet };
        assert_eq!(cut_all(&frame, &ecn).unwrap(), packets);
    }
}

#[test]
fn a_frame_of_one_packet_keeps_all_flags() {
    let segment = Segment { flags: ACK | PSH | FIN | CWR, ..Segment::new(true, 5, &data(1000)) };
    let (frame, vnet) = frame(&segment.packet(), 1000);
    assert_eq!(cut_all(&frame, &vnet).unwrap(), [segment.packet()]);
}

#[test]
fn a_udp_frame_is_cut_and_each_packet_has_a_checksum() {
    for ipv4 in [true, false] {
        let data = data(130);
        let (frame, vnet) = frame(&datagram(ipv4, 9, &data), 36);
        let expected = data.chunks(36).zip(9..).map(|(data, id)| datagram(ipv4, id, data));
        let packets = cut_all(&frame, &vnet).unwrap();
        assert_eq!(packets, expected.collect::<Vec<_>>());
        packets.iter().for_each(|packet| check(packet, if ipv4 { 20 } else { 40 }, UDP));
    }
}

/// RFC 768: a checksum of nought is sent as all ones.
#[test]
fn a_udp_checksum_is_never_nought() {
    let mut seen = 0;
    for word in 0..=u16::MAX {
        let packet = datagram(true, 9, &word.to_be_bytes());
        let (mut left, vnet) = frame(&packet, 2);
        assert_eq!(cut_all(&left, &vnet).unwrap(), std::slice::from_ref(&packet));
        complete(&mut left, &Vnet { kind: GSO_NONE, ..vnet }).unwrap();
        assert_eq!(left, packet);
        seen += u32::from(packet[26..28] == [0xff, 0xff]);
    }
    assert!(seen > 0, "one word makes it nought");
}

#[test]
fn a_checksum_that_is_left_to_us_is_written() {
    for ipv4 in [true, false] {
        for packet in [Segment::new(ipv4, 1, &data(77)).packet(), datagram(ipv4, 1, &data(33))] {
            let (mut left, vnet) = frame(&packet, 0);
            assert_ne!(left, packet);
            complete(&mut left, &Vnet { kind: GSO_NONE, ..vnet }).unwrap();
            assert_eq!(left, packet);
            // One that was not left to us stays as it is, right or wrong.
            left[30] ^= 1;
            let before = left.clone();
            complete(&mut left, &Vnet::default()).unwrap();
            assert_eq!(left, before);
        }
    }
}

#[test]
fn ipv6_extension_headers_are_in_every_packet() {
    let plain = Segment::new(false, 1, &data(2500)).packet();
    let mut packet = plain[..40].to_vec();
    packet[6] = HOP_BY_HOP;
    packet.extend([DESTINATION, 0, 1, 4, 0, 0, 0, 0]);
    packet.extend([TCP, 1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    packet.extend(&plain[40..]);
    let len = packet.len() as u16 - 40;
    put(&mut packet, 4, len).unwrap();
    assert_eq!(Layout::of(&packet), None, "nothing is merged with it");
    let kind = GSO_TCPV6;
    let vnet = Vnet { flags: NEEDS_CSUM, kind, size: 1000, csum_start: 64, ..Vnet::default() };
    let packets = cut_all(&packet, &vnet).unwrap();
    assert_eq!(packets.len(), 3);
    for (part, data) in packets.iter().zip(data(2500).chunks(1000)) {
        assert_eq!(part[6..64][2..], packet[6..64][2..]);
        assert_eq!(part[64 + 32..], *data);
        check(part, 64, TCP);
    }
    // A routing header changes the destination that the checksum is over.
    packet[40] = 43;
    assert_eq!(cut_all(&packet, &vnet), None);
}

#[test]
fn what_is_not_what_its_header_says_is_not_cut() {
    let (frame, vnet) = frame(&Segment::new(true, 1, &data(3000)).packet(), 1000);
    assert!(cut_all(&frame, &vnet).is_some());
    let with = |change: &dyn Fn(&mut Vec<u8>, &mut Vnet)| {
        let (mut frame, mut vnet) = (frame.clone(), vnet);
        change(&mut frame, &mut vnet);
        cut_all(&frame, &vnet)
    };
    assert_eq!(with(&|_, vnet| vnet.size = 0), None);
    for kind in (0..=u8::MAX).filter(|kind| kind & !GSO_ECN != GSO_TCPV4) {
        assert_eq!(with(&|_, vnet| vnet.kind = kind), None, "kind {kind}");
    }
    assert_eq!(with(&|frame, _| frame.truncate(2000)), None, "cut short");
    assert_eq!(with(&|frame, _| frame.push(0)), None, "longer than it says");
    assert_eq!(with(&|frame, _| frame.clear()), None);
    assert_eq!(with(&|frame, _| frame[9] = 1), None, "not TCP");
    assert_eq!(with(&|frame, _| frame[6] = 0x20), None, "a fragment");
    assert_eq!(with(&|frame, _| frame[0] = 0x44), None, "a header of 16 octets");
    assert_eq!(with(&|frame, _| frame[32] = 0x40), None, "a TCP header of 16 octets");
    // A header alone is cut into nothing.
    let header = Segment::new(true, 1, &[]).packet();
    assert_eq!(cut_all(&header, &vnet), Some(Vec::new()));
}

#[test]
fn a_checksum_outside_of_the_packet_is_refused() {
    let packet = datagram(true, 1, &data(9));
    let len = packet.len() as u16;
    for (csum_start, csum_offset) in
        [(len + 1, 0), (len, 0), (0, len), (20, len - 21), (u16::MAX, u16::MAX)]
    {
        let vnet = Vnet { flags: NEEDS_CSUM, csum_start, csum_offset, ..Vnet::default() };
        let mut left = packet.clone();
        assert_eq!(complete(&mut left, &vnet), None, "{vnet:?}");
        assert_eq!(left, packet);
    }
}

#[test]
fn a_header_is_written_as_it_is_read() {
    let vnet = Vnet::parse([1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
    assert_eq!(vnet.octets(), [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
    assert_eq!(vnet.size, u16::from_ne_bytes([5, 6]));
    assert!(vnet.is_big() && !Vnet::default().is_big());
}

#[test]
fn a_wrong_checksum_is_noticed_wherever_it_is_wrong() {
    for len in [0, 1, 2, 3, 4, 5, 63, 64] {
        let packet = Segment { flags: ACK | SYN, ..Segment::new(true, 1, &data(len)) }.packet();
        let layout = Layout::of(&packet).unwrap();
        assert!(layout.is_intact(&packet));
        for bit in 0..packet.len() * 8 {
            let mut wrong = packet.clone();
            wrong[bit / 8] ^= 1 << (bit % 8);
            assert!(!layout.is_intact(&wrong), "{len} octets, bit {bit}");
        }
    }
}

proptest! {
    /// Whatever the device gives: no panic, nothing larger than the room, no more than the frame has.
    #[test]
    fn any_frame_is_cut_or_refused(
        header in any::<[u8; VNET]>(),
        kind in prop::sample::select(vec![GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, 0x81]),
        flips in prop::collection::vec((0usize..90, any::<u8>()), 0..6),
        ipv4: bool, udp: bool, len in 0usize..4000, room in 0usize..3000,
    ) {
        let mut packet = match udp {
            true => datagram(ipv4, 1, &data(len)),
            false => Segment::new(ipv4, 1, &data(len)).packet(),
        };
        for (place, value) in flips {
            if let Some(octet) = packet.get_mut(place) {
                *octet = value;
            }
        }
        let vnet = Vnet { kind, ..Vnet::parse(header) };
        let _ = complete(&mut packet.clone(), &vnet);
        let mut to = vec![0; room];
        if let Some(cut) = Cut::of(&packet, &vnet) {
            let mut octets = 0;
            for index in 0..=packet.len() {
                let Some(len) = cut.packet(&packet, index, &mut to) else { break };
                prop_assert!(len <= room.min(cut.longest()));
                octets += len - cut.layout.payload;
            }
            prop_assert!(octets <= packet.len());
        }
    }
}
