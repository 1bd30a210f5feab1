use bewick_ike::ChildId;
use proptest::prelude::*;

use super::{
    super::{
        offload::{
            Cut,
            tests::{Segment, datagram},
        },
        table::Table,
        tests::child,
    },
    *,
};

/// Two SAs that differ in number and selectors alone.
fn table() -> Table {
    Table::default().with(&child(1)).ok().unwrap().with(&child(2)).ok().unwrap()
}

fn sa(table: &Table, id: u64) -> &Sa {
    &table.child(ChildId(id)).unwrap().sa
}

/// What the device gets, in its order: how many packets each frame had, and its packets as the kernel
/// makes them of it again.
fn merge(packets: &[(u64, Vec<u8>)], merges: Merges) -> (Vec<usize>, Vec<Vec<u8>>) {
    let table = table();
    let mut octets: Vec<Vec<u8>> = packets.iter().map(|(_, packet)| packet.clone()).collect();
    let (mut counts, mut again) = (Vec::new(), Vec::new());
    let mut deliver = |frame: Option<Frame<'_>>| {
        let Some(frame) = frame else { return };
        let (packets, total) = (frame.packets, frame.octets);
        let before = again.len();
        frame.hand_over(|pieces| {
            let vnet = Vnet::parse(*pieces[0].first_chunk().unwrap());
            let pieces: Vec<&[u8]> = pieces[1..].iter().map(|piece| &piece[..]).collect();
            let octets = pieces.concat();
            match Cut::of(&octets, &vnet) {
                Some(cut) => {
                    let mut room = vec![0; 1 << 16];
                    let packet = |index| {
                        let len = cut.packet(&octets, index, &mut room)?;
                        Some(room[..len].to_vec())
                    };
                    again.extend((0..).map_while(packet));
                }
                None => {
                    assert!(!vnet.is_big(), "what is merged can be cut");
                    again.push(octets);
                }
            }
        });
        assert_eq!(again.len() - before, packets);
        assert_eq!(again[before..].iter().map(Vec::len).sum::<usize>(), total);
        counts.push(packets);
    };
    let mut frame: Option<Frame<'_>> = None;
    for ((id, _), octets) in packets.iter().zip(&mut octets) {
        let sa = sa(&table, *id);
        let octets = match &mut frame {
            Some(frame) => match frame.take(sa, octets) {
                Ok(()) => continue,
                Err(octets) => octets,
            },
            None => octets,
        };
        deliver(frame.replace(Frame::new(sa, octets, merges)));
    }
    deliver(frame);
    (counts, again)
}

fn counts(packets: &[Vec<u8>], merges: Merges) -> Vec<usize> {
    let on_one: Vec<_> = packets.iter().map(|packet| (1, packet.clone())).collect();
    let (counts, again) = merge(&on_one, merges);
    assert_eq!(again, packets, "the same packets in the same order");
    counts
}

/// Packets of 100 octets of data each that follow each other.
fn flow(ipv4: bool, count: u32) -> Vec<Segment> {
    let segment = |n| Segment {
        id: 7 + n as u16,
        may_fragment: true,
        ..Segment::new(ipv4, (u32::MAX - 150).wrapping_add(100 * n), &[n as u8; 100])
    };
    (0..count).map(segment).collect()
}

#[test]
fn packets_that_follow_each_other_are_one_frame() {
    for ipv4 in [true, false] {
        let tcp: Vec<_> = flow(ipv4, 5).iter().map(Segment::packet).collect();
        assert_eq!(counts(&tcp, Merges::TcpAndUdp), [5]);
        assert_eq!(counts(&tcp, Merges::Tcp), [5]);
        assert_eq!(counts(&tcp, Merges::Nothing), [1; 5]);
        let udp: Vec<_> = (0..5).map(|n| datagram(ipv4, 7 + n, &[n as u8; 36])).collect();
        assert_eq!(counts(&udp, Merges::TcpAndUdp), [5]);
        assert_eq!(counts(&udp, Merges::Tcp), [1; 5]);
    }
}

#[test]
fn a_frame_ends_after_a_push_and_after_a_shorter_packet() {
    let mut pushed = flow(true, 5);
    pushed[2].flags |= PSH;
    let packets: Vec<_> = pushed.iter().map(Segment::packet).collect();
    assert_eq!(counts(&packets, Merges::Tcp), [3, 2]);
    let mut shorter = flow(true, 5);
    shorter[2].data.pop();
    for later in &mut shorter[3..] {
        later.number = later.number.wrapping_sub(1);
    }
    let packets: Vec<_> = shorter.iter().map(Segment::packet).collect();
    assert_eq!(counts(&packets, Merges::Tcp), [3, 2]);
}

/// What is done to the third of three packets.
type Change<'a> = &'a dyn Fn(&mut Vec<u8>);

#[test]
fn a_packet_that_differs_in_treatment_or_flow_is_not_merged() {
    let tcp = |change: &dyn Fn(&mut Segment)| {
        let mut flow = flow(true, 3);
        change(&mut flow[2]);
        let packets: Vec<_> = flow.iter().map(Segment::packet).collect();
        counts(&packets, Merges::TcpAndUdp)
    };
    assert_eq!(tcp(&|_| {}), [3]);
    assert_eq!(tcp(&|s| s.class = 3), [2, 1], "congestion was experienced");
    assert_eq!(tcp(&|s| s.class = 1), [2, 1], "ECN");
    assert_eq!(tcp(&|s| s.class |= 0xb8), [2, 1], "DSCP");
    assert_eq!(tcp(&|s| s.number = s.number.wrapping_sub(1)), [2, 1], "an octet again");
    assert_eq!(tcp(&|s| s.number = s.number.wrapping_add(1)), [2, 1], "an octet is missing");
    assert_eq!(tcp(&|s| s.number = s.number.wrapping_sub(200)), [2, 1], "a packet again");
    assert_eq!(tcp(&|s| s.ports.0 += 1), [2, 1]);
    assert_eq!(tcp(&|s| s.ports.1 += 1), [2, 1]);
    assert_eq!(tcp(&|s| s.id += 1), [2, 1], "another number for its fragments");
    assert_eq!(tcp(&|s| s.may_fragment = false), [2, 1]);
    assert_eq!(tcp(&|s| s.data.clear()), [2, 1], "an acknowledgement");
    assert_eq!(tcp(&|s| s.data.push(0)), [2, 1], "longer");
    for flag in [0x01, 0x02, 0x04, 0x20, 0x40, 0x80] {
        assert_eq!(tcp(&|s| s.flags |= flag), [2, 1], "flag {flag:#x}");
    }
    assert_eq!(tcp(&|s| s.flags = 0), [2, 1], "acknowledges nothing");
    assert_eq!(tcp(&|s| s.ipv4 = false), [2, 1]);
}

/// Where the checksum is made right again, another octet of the header has to matter by itself; where it
/// is not, the packet goes on as it came, for its receiver to drop.
#[test]
fn each_octet_of_the_headers_and_a_wrong_checksum_keep_a_packet_apart() {
    for ipv4 in [true, false] {
        let packets: Vec<_> = flow(ipv4, 3).iter().map(Segment::packet).collect();
        let of = |change: Change<'_>| {
            let mut packets = packets.clone();
            change(&mut packets[2]);
            counts(&packets, Merges::TcpAndUdp)
        };
        for place in 0..packets[2].len() {
            assert_eq!(of(&|packet| packet[place] ^= 0x10), [2, 1], "octet {place}");
        }
        let at = Layout::of(&packets[2]).unwrap();
        // TTL or hop limit, addresses; acknowledgement, window, urgent pointer, options.
        let header = if ipv4 { [8, 13, 17] } else { [7, 20, 30] };
        let transport = [8, 11, 14, 15, 19, 22, 27, 31].map(|place| at.transport + place);
        for place in header.into_iter().chain(transport) {
            let changed = of(&|packet| {
                packet[place] ^= 1;
                let len = packet.len();
                at.set_len(packet, len).unwrap();
                at.leave_checksum(packet, len).unwrap();
                let vnet = Vnet::merged(&at, 0);
                super::super::offload::complete(packet, &vnet).unwrap();
                assert!(at.is_intact(packet));
            });
            assert_eq!(changed, [2, 1], "octet {place}");
        }
    }
}

#[test]
fn nothing_is_merged_across_sas() {
    let packets: Vec<_> = flow(true, 4).iter().map(Segment::packet).collect();
    let with_sas: Vec<_> = [1, 1, 2, 2].into_iter().zip(packets.clone()).collect();
    assert_eq!(merge(&with_sas, Merges::TcpAndUdp), (vec![2, 2], packets.clone()));
    let taking_turns: Vec<_> = [1, 2, 1, 2].into_iter().zip(packets.clone()).collect();
    assert_eq!(merge(&taking_turns, Merges::TcpAndUdp), (vec![1; 4], packets));
}

#[test]
fn a_frame_has_64_packets_and_fits_into_16_bits() {
    let udp: Vec<_> = (0..130).map(|n| datagram(true, n, &[n as u8; 10])).collect();
    assert_eq!(counts(&udp, Merges::TcpAndUdp), [64, 64, 2]);
    let large: Vec<_> = (0..10).map(|n| datagram(false, n, &[n as u8; 20_000])).collect();
    assert_eq!(counts(&large, Merges::TcpAndUdp), [3, 3, 3, 1]);
    let largest: Vec<_> = (0..3).map(|n| datagram(true, n, &[n as u8; 65_507])).collect();
    assert_eq!(counts(&largest, Merges::TcpAndUdp), [1; 3]);
}

#[test]
fn a_datagram_without_a_checksum_stays_without() {
    let mut packets: Vec<_> = (0..3).map(|n| datagram(true, n, &[n as u8; 36])).collect();
    packets.iter_mut().for_each(|packet| packet[26..28].fill(0));
    assert_eq!(counts(&packets, Merges::TcpAndUdp), [1; 3]);
}

#[test]
fn fragments_and_what_is_no_tcp_or_udp_go_alone() {
    let mut fragments: Vec<_> = flow(true, 3).iter().map(Segment::packet).collect();
    fragments.iter_mut().for_each(|packet| packet[6] = 0x20);
    assert_eq!(counts(&fragments, Merges::TcpAndUdp), [1; 3]);
    let mut other: Vec<_> = flow(false, 3).iter().map(Segment::packet).collect();
    other.iter_mut().for_each(|packet| packet[6] = 58);
    assert_eq!(counts(&other, Merges::TcpAndUdp), [1; 3]);
    assert_eq!(counts(&[vec![0x45], vec![], vec![0x60; 39]], Merges::TcpAndUdp), [1; 3]);
}

proptest! {
    /// Of whatever comes the device makes again what came, in the same order: `counts` looks.
    #[test]
    fn what_is_merged_is_cut_into_what_came(
        ipv4: bool,
        steps in prop::collection::vec((0u8..12, 1usize..5), 1..150),
    ) {
        let mut next = Segment { may_fragment: true, ..Segment::new(ipv4, 0, &[1; 50]) };
        let mut packets = Vec::new();
        for (kind, value) in steps {
            let mut this = next.clone();
            match kind {
                0 => this.data.truncate(50 - value),
                1 => this.flags |= 1 << value,
                2 => this.number = this.number.wrapping_add(value as u32),
                3 => this.class ^= value as u8,
                4 => this.ports.0 ^= value as u16,
                5 => this.id ^= value as u16,
                6 => this.data.clear(),
                7 => {
                    packets.push(datagram(ipv4, this.id, &vec![3; value]));
                    next.id = this.id.wrapping_add(1);
                    continue;
                }
                _ => {}
            }
            next.id = this.id.wrapping_add(1);
            next.number = this.number.wrapping_add(this.data.len() as u32);
            packets.push(this.packet());
        }
        counts(&packets, Merges::TcpAndUdp);
    }
}
