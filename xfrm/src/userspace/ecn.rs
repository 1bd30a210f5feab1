//! The traffic class across the tunnel: ECN by RFC 6040, DSCP by RFC 4301 §5.1.2.
//!
//! Going in, the outer header gets the whole inner octet: ECN in normal mode (RFC 6040 §4.1), as
//! both ends of an IKEv2 tunnel know it (§4.3), and the DSCP, as Linux does unless it is told not to,
//! so that both planes treat a packet alike. Coming out, the inner DSCP stays and ECN is combined
//! (§4.2).

/// The ECN field within the traffic class (RFC 3168 §5); the rest is the DSCP.
const ECN: u8 = 0b11;
/// The sender does not understand ECN.
const NOT_ECT: u8 = 0b00;
const ECT_1: u8 = 0b01;
const ECT_0: u8 = 0b10;
/// Congestion experienced.
const CE: u8 = 0b11;

/// What becomes of a packet that leaves the tunnel (RFC 6040 §4.2).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Fate {
    /// it goes on; its ECN field is right
    Deliver,
    /// so does it, but no tunnel is known to make this combination of inner and outer field
    Odd,
    /// it signals congestion to a transport that would not understand
    Drop,
}

/// The traffic class of an inner packet, 0 if there is none to be seen.
pub(super) fn traffic_class(packet: &[u8]) -> u8 {
    match *packet {
        [first, class, ..] if first >> 4 == 4 => class,
        [first, second, ..] if first >> 4 == 6 => first << 4 | second >> 4,
        _ => 0,
    }
}

/// Combines the ECN field of the inner `packet` with that of the outer header's class.
pub(super) fn leave(packet: &mut [u8], outer: u8) -> Fate {
    let inner = traffic_class(packet) & ECN;
    let Some((ecn, fate)) = combine(inner, outer & ECN) else {
        return Fate::Drop;
    };
    if ecn != inner {
        set_ecn(packet, ecn);
    }
    fate
}

/// RFC 6040 §4.2, figure 4; `None` where the packet is to be dropped.
fn combine(inner: u8, outer: u8) -> Option<(u8, Fate)> {
    Some(match (inner, outer) {
        (NOT_ECT, NOT_ECT) => (NOT_ECT, Fate::Deliver),
        (NOT_ECT, CE) => return None,
        (NOT_ECT, _) => (NOT_ECT, Fate::Odd),
        (ECT_0, ECT_1 | CE) => (outer, Fate::Deliver),
        (ECT_1, CE) => (CE, Fate::Deliver),
        (ECT_1, ECT_0) | (CE, ECT_1) => (inner, Fate::Odd),
        _ => (inner, Fate::Deliver),
    })
}

/// Writes the ECN field and, in IPv4, what it changes in the header checksum.
fn set_ecn(packet: &mut [u8], ecn: u8) {
    match packet {
        [first, class, _, _, _, _, _, _, _, _, c0, c1, ..] if *first >> 4 == 4 => {
            let old = u16::from_be_bytes([*first, *class]);
            *class = *class & !ECN | ecn;
            let new = u16::from_be_bytes([*first, *class]);
            [*c0, *c1] = updated(u16::from_be_bytes([*c0, *c1]), old, new).to_be_bytes();
        }
        [first, second, ..] if *first >> 4 == 6 => *second = *second & !(ECN << 4) | ecn << 4,
        _ => {}
    }
}

/// The checksum of a header in which one word has changed (RFC 1624 §3, equation 3).
fn updated(checksum: u16, old: u16, new: u16) -> u16 {
    let sum = u32::from(!checksum) + u32::from(!old) + u32::from(new);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    !(sum as u16)
}

#[cfg(test)]
pub(super) mod tests {
    use super::{super::selector::tests::udp, *};

    /// RFC 6040 figure 4: inner field, outer field, what goes on, whether the combination is odd.
    const FIGURE_4: [(u8, u8, Option<u8>, bool); 16] = [
        (NOT_ECT, NOT_ECT, Some(NOT_ECT), false),
        (NOT_ECT, ECT_0, Some(NOT_ECT), true),
        (NOT_ECT, ECT_1, Some(NOT_ECT), true),
        (NOT_ECT, CE, None, true),
        (ECT_0, NOT_ECT, Some(ECT_0), false),
        (ECT_0, ECT_0, Some(ECT_0), false),
        (ECT_0, ECT_1, Some(ECT_1), false),
        (ECT_0, CE, Some(CE), false),
        (ECT_1, NOT_ECT, Some(ECT_1), false),
        (ECT_1, ECT_0, Some(ECT_1), true),
        (ECT_1, ECT_1, Some(ECT_1), false),
        (ECT_1, CE, Some(CE), false),
        (CE, NOT_ECT, Some(CE), false),
        (CE, ECT_0, Some(CE), false),
        (CE, ECT_1, Some(CE), true),
        (CE, CE, Some(CE), false),
    ];

    /// The sum of all words of an IPv4 header, which is 0xffff if its checksum is right.
    fn sum(header: &[u8]) -> u16 {
        let words = header.chunks(2).map(|word| u32::from(word[0]) << 8 | u32::from(word[1]));
        let mut sum: u32 = words.sum();
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum as u16
    }

    /// The IP packet `packet` with the traffic class `class` and a right checksum.
    pub(crate) fn marked(mut packet: Vec<u8>, class: u8) -> Vec<u8> {
        if packet[0] >> 4 == 4 {
            packet[1] = class;
            packet[10..12].fill(0);
            let checksum = !sum(&packet[..20]);
            packet[10..12].copy_from_slice(&checksum.to_be_bytes());
        } else {
            packet[0] = 0x60 | class >> 4;
            packet[1] = class << 4 | packet[1] & 0xf;
        }
        packet
    }

    fn packet(ipv4: bool, class: u8, seed: u8) -> Vec<u8> {
        let mut packet = match ipv4 {
            true => udp("10.9.0.1", "10.1.0.1", (1, 2), b"data"),
            false => udp("2001:db8::1", "2001:db8::2", (1, 2), b"data"),
        };
        // A part of the identification or of the flow label.
        packet[if ipv4 { 5 } else { 1 }] = seed & 0xf;
        packet[3] ^= if ipv4 { 0 } else { seed };
        marked(packet, class)
    }

    #[test]
    fn k_2_24_ecn_leaves_the_tunnel_as_figure_4_of_rfc_6040_says() {
        for (inner, outer, expected, odd) in FIGURE_4 {
            for ipv4 in [true, false] {
                // With every DSCP inside and another one outside, which has no say.
                for dscp in 0..64 {
                    let before = packet(ipv4, dscp << 2 | inner, dscp);
                    let mut after = before.clone();
                    let fate = leave(&mut after, !dscp << 2 | outer);
                    let case = format!("inner {inner:02b} outer {outer:02b} IPv4 {ipv4}");
                    let Some(ecn) = expected else {
                        assert_eq!((fate, &after), (Fate::Drop, &before), "{case}");
                        continue;
                    };
                    assert_eq!(fate, if odd { Fate::Odd } else { Fate::Deliver }, "{case}");
                    assert_eq!(after, packet(ipv4, dscp << 2 | ecn, dscp), "{case}");
                }
            }
        }
    }

    #[test]
    fn k_2_24_a_changed_mark_leaves_the_ipv4_checksum_right() {
        for seed in 0..=u8::MAX {
            for class in 0..=u8::MAX {
                let mut packet = packet(true, class, seed);
                set_ecn(&mut packet, CE);
                assert_eq!(sum(&packet[..20]), 0xffff);
                assert_eq!(traffic_class(&packet), class | CE);
            }
        }
    }

    #[test]
    fn a_traffic_class_is_looked_for_in_ip_alone() {
        for class in 0..=u8::MAX {
            assert_eq!(traffic_class(&packet(true, class, 0)), class);
            assert_eq!(traffic_class(&packet(false, class, 0)), class);
        }
        for other in [&[][..], &[0x45], &[0x60], &[0x5f, 0xff, 0xff]] {
            let mut octets = other.to_vec();
            assert_eq!(traffic_class(&octets), 0);
            set_ecn(&mut octets, CE);
            assert_eq!(octets, other);
        }
    }
}
