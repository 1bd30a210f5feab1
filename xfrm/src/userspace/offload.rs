//! Segmentation offload of the TUN device: frames that are more than one packet, and checksums.
//!
//! Before each frame stands a `virtio_net_hdr` (Linux, Documentation/networking/tuntap.rst; virtio
//! 1.2 §5.1.6). What the kernel hands over in one piece is cut here into the packets that it would
//! have made of it.

use std::ops::Range;

use super::selector::{TCP, UDP};

/// Octets of the header before each frame.
pub(super) const VNET: usize = 10;

const NEEDS_CSUM: u8 = 1;
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
/// Beside one of the kinds: the first packet alone says that the congestion window was reduced.
const GSO_ECN: u8 = 0x80;

const IPV4_HEADER: usize = 20;
const IPV6_HEADER: usize = 40;
/// Octets of all headers of a frame that is cut, at most: IP, IPv6 extensions and TCP.
pub(super) const MAX_HEADERS: usize = 512;
/// IPv6 extension headers that are looked through at most.
const MAX_EXTENSIONS: usize = 4;
const HOP_BY_HOP: u8 = 0;
const DESTINATION: u8 = 60;
/// The end of the data, and word to hand it on: the last packet has them.
const FIN_PSH: u8 = 0x09;
/// The congestion window was reduced (RFC 3168 §6.1.2): the first packet has it.
const CWR: u8 = 0x80;
/// Where a TCP header has its flags.
const TCP_FLAGS: usize = 13;

/// What a `virtio_net_hdr` says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Vnet {
    flags: u8,
    kind: u8,
    header_len: u16,
    /// octets of payload in each packet but the last
    pub(super) size: u16,
    csum_start: u16,
    csum_offset: u16,
}

impl Vnet {
    /// Reads the octets before a frame: integers are the machine's.
    pub(super) fn parse(octets: [u8; VNET]) -> Vnet {
        let [flags, kind, a, b, c, d, e, f, g, h] = octets;
        let word = |a, b| u16::from_ne_bytes([a, b]);
        let (header_len, size) = (word(a, b), word(c, d));
        Vnet { flags, kind, header_len, size, csum_start: word(e, f), csum_offset: word(g, h) }
    }

    /// As [`Vnet::parse`] reads it.
    pub(super) fn octets(self) -> [u8; VNET] {
        let [[a, b], [c, d], [e, f], [g, h]] =
            [self.header_len, self.size, self.csum_start, self.csum_offset].map(u16::to_ne_bytes);
        [self.flags, self.kind, a, b, c, d, e, f, g, h]
    }

    /// Whether the frame is to be cut.
    pub(super) fn is_big(&self) -> bool {
        self.kind != GSO_NONE
    }

    /// For a frame made of several packets of `layout`, each with `size` octets of payload but the last.
    pub(super) fn merged(layout: &Layout, size: u16) -> Vnet {
        let (kind, csum_offset) = match (layout.protocol, layout.ipv4) {
            (UDP, _) => (GSO_UDP_L4, 6),
            (_, true) => (GSO_TCPV4, 16),
            (_, false) => (GSO_TCPV6, 16),
        };
        let header_len = layout.payload as u16;
        let csum_start = layout.transport as u16;
        Vnet { flags: NEEDS_CSUM, kind, header_len, size, csum_start, csum_offset }
    }
}

/// Where the parts of a TCP or UDP packet are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) ipv4: bool,
    pub(super) protocol: u8,
    pub(super) transport: usize,
    pub(super) payload: usize,
}

impl Layout {
    /// Of a whole packet without IPv6 extension headers that is no fragment.
    pub(super) fn of(packet: &[u8]) -> Option<Layout> {
        Layout::behind(packet, 0)
    }

    /// Of a packet that has so many IPv6 extension headers at most, and none that changes where the
    /// packet goes to.
    fn behind(packet: &[u8], extensions: usize) -> Option<Layout> {
        let (ipv4, protocol, transport) = match packet.first()? >> 4 {
            4 => {
                let header: &[u8; IPV4_HEADER] = packet.first_chunk()?;
                if u16::from_be_bytes([header[6], header[7]]) & 0x3fff != 0 {
                    return None;
                }
                (true, header[9], usize::from(header[0] & 0xf) * 4)
            }
            6 => {
                let (mut next, mut place) = (*packet.get(6)?, IPV6_HEADER);
                for _ in 0..extensions {
                    if !matches!(next, HOP_BY_HOP | DESTINATION) {
                        break;
                    }
                    let [following, len] = *packet.get(place..)?.first_chunk()?;
                    (next, place) = (following, place + (usize::from(len) + 1) * 8);
                }
                (false, next, place)
            }
            _ => return None,
        };
        let payload = match protocol {
            TCP => transport + usize::from(*packet.get(transport + 12)? >> 4) * 4,
            UDP => transport + 8,
            _ => return None,
        };
        let least = transport + if protocol == TCP { 20 } else { 8 };
        (transport >= IPV4_HEADER && payload >= least && payload <= packet.len())
            .then_some(Layout { ipv4, protocol, transport, payload })
    }

    /// Whether the packet is as long as its header says.
    fn is_whole(&self, packet: &[u8]) -> bool {
        let (place, before) = if self.ipv4 { (2, 0) } else { (4, IPV6_HEADER) };
        get(packet, place).is_some_and(|len| usize::from(len) + before == packet.len())
    }

    /// Where the transport's checksum is.
    fn checksum(&self) -> usize {
        self.transport + if self.protocol == TCP { 16 } else { 6 }
    }

    /// The sum over the pseudo header of a packet with so many octets of transport.
    fn pseudo(&self, packet: &[u8], len: usize) -> u64 {
        let addresses = if self.ipv4 { 12..20 } else { 8..40 };
        let fixed = u64::from(self.protocol) + len as u64;
        add(packet.get(addresses).unwrap_or_default(), fixed)
    }

    /// Whether the checksums are there and right, and all lengths are those of the packet.
    pub(super) fn is_intact(&self, packet: &[u8]) -> bool {
        let body = packet.get(self.transport..).unwrap_or_default();
        let at = self.checksum();
        let header = packet.get(..self.transport).unwrap_or_default();
        let ends = self.protocol == TCP
            || packet.get(self.transport + 4..self.transport + 6)
                == Some(&(body.len() as u16).to_be_bytes());
        ends && self.is_whole(packet)
            && (!self.ipv4 || fold(add(header, 0)) == 0xffff)
            && packet.get(at..at + 2) != Some(&[0, 0])
            && fold(add(body, self.pseudo(packet, body.len()))) == 0xffff
    }

    /// Writes lengths and the IPv4 header's checksum for a packet of `len` octets.
    pub(super) fn set_len(&self, packet: &mut [u8], len: usize) -> Option<()> {
        if self.ipv4 {
            put(packet, 2, u16::try_from(len).ok()?)?;
            put(packet, 10, 0)?;
            let sum = !fold(add(packet.get(..self.transport)?, 0));
            put(packet, 10, sum)?;
        } else {
            put(packet, 4, u16::try_from(len - IPV6_HEADER).ok()?)?;
        }
        if self.protocol == UDP {
            put(packet, self.transport + 4, u16::try_from(len - self.transport).ok()?)?;
        }
        Some(())
    }

    /// Leaves the transport's checksum of a packet of `len` octets to the kernel: the sum over the
    /// pseudo header stands in its place.
    pub(super) fn leave_checksum(&self, packet: &mut [u8], len: usize) -> Option<()> {
        let sum = fold(self.pseudo(packet, len.checked_sub(self.transport)?));
        put(packet, self.checksum(), sum)
    }

    fn set_checksum(&self, packet: &mut [u8]) -> Option<()> {
        put(packet, self.checksum(), 0)?;
        let body = packet.get(self.transport..)?;
        let sum = match !fold(add(body, self.pseudo(packet, body.len()))) {
            // RFC 768: nought would mean that there is none.
            0 if self.protocol == UDP => 0xffff,
            sum => sum,
        };
        put(packet, self.checksum(), sum)
    }
}

/// Writes the checksum that the kernel has left to us; `None` if its place makes no sense.
pub(super) fn complete(packet: &mut [u8], vnet: &Vnet) -> Option<()> {
    if vnet.flags & NEEDS_CSUM == 0 {
        return Some(());
    }
    let start = usize::from(vnet.csum_start);
    let place = start + usize::from(vnet.csum_offset);
    let is_udp = vnet.csum_offset == 6;
    let sum = match !fold(add(packet.get(start..)?, 0)) {
        0 if is_udp => 0xffff,
        sum => sum,
    };
    put(packet, place, sum)
}

/// How a frame that is more than one packet is to be cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cut {
    layout: Layout,
    /// octets of payload in each packet but the last
    size: u16,
}

impl Cut {
    /// `None` if the frame is not what its header says, or is not whole.
    pub(super) fn of(frame: &[u8], vnet: &Vnet) -> Option<Cut> {
        let layout = Layout::behind(frame, MAX_EXTENSIONS)?;
        let fits = match vnet.kind & !GSO_ECN {
            GSO_TCPV4 => layout.protocol == TCP && layout.ipv4,
            GSO_TCPV6 => layout.protocol == TCP && !layout.ipv4,
            GSO_UDP_L4 => layout.protocol == UDP,
            _ => false,
        };
        // What is larger than the length field can say was not asked for.
        (fits && layout.is_whole(frame) && vnet.size > 0 && layout.payload <= MAX_HEADERS)
            .then_some(Cut { layout, size: vnet.size })
    }

    /// Octets of the longest of the packets.
    pub(super) fn longest(&self) -> usize {
        self.layout.payload + usize::from(self.size)
    }

    /// Writes packet `index` to `to` and gives its length; `None` after the last one.
    pub(super) fn packet(&self, frame: &[u8], index: usize, to: &mut [u8]) -> Option<usize> {
        let Cut { layout, size } = *self;
        let Range { start, end } = piece(frame.len() - layout.payload, size, index)?;
        let payload = frame.get(layout.payload + start..layout.payload + end)?;
        let len = layout.payload + payload.len();
        let packet = to.get_mut(..len)?;
        let (header, body) = packet.split_at_mut_checked(layout.payload)?;
        header.copy_from_slice(frame.get(..layout.payload)?);
        body.copy_from_slice(payload);
        if layout.ipv4 {
            put(packet, 4, get(frame, 4)?.wrapping_add(index as u16))?;
        }
        if layout.protocol == TCP {
            let place = layout.transport + 4;
            let number = packet.get_mut(place..)?.first_chunk_mut::<4>()?;
            *number = u32::from_be_bytes(*number).wrapping_add(start as u32).to_be_bytes();
            let flags = packet.get_mut(layout.transport + TCP_FLAGS)?;
            if layout.payload + end < frame.len() {
                *flags &= !FIN_PSH;
            }
            if index > 0 {
                *flags &= !CWR;
            }
        }
        layout.set_len(packet, len)?;
        layout.set_checksum(packet)?;
        Some(len)
    }
}

/// Where payload `index` is; `None` after the last one.
fn piece(len: usize, size: u16, index: usize) -> Option<Range<usize>> {
    let size = usize::from(size);
    let start = index.checked_mul(size)?;
    (size > 0 && start < len).then(|| start..len.min(start + size))
}

fn get(packet: &[u8], place: usize) -> Option<u16> {
    packet.get(place..)?.first_chunk().map(|octets| u16::from_be_bytes(*octets))
}

fn put(packet: &mut [u8], place: usize, value: u16) -> Option<()> {
    *packet.get_mut(place..)?.first_chunk_mut::<2>()? = value.to_be_bytes();
    Some(())
}

/// Adds words (RFC 1071), the last one filled up with nought, to a sum of big-endian ones.
fn add(octets: &[u8], start: u64) -> u64 {
    // RFC 1071 §2 (B): in the machine's own order, which costs nothing, and swapped once.
    let (words, rest) = octets.as_chunks::<4>();
    let sum: u64 = words.iter().map(|word| u64::from(u32::from_ne_bytes(*word))).sum();
    let mut last = [0; 4];
    for (to, from) in last.iter_mut().zip(rest) {
        *to = *from;
    }
    let sum = fold(sum + u64::from(u32::from_ne_bytes(last)));
    start + u64::from(u16::from_be_bytes(sum.to_ne_bytes()))
}

fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

#[cfg(test)]
pub(super) mod tests;
