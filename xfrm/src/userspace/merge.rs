//! Makes one frame of packets that follow each other in a TCP or UDP flow, as the kernel's own receive
//! offload does.

use std::io::IoSlice;

use super::{
    offload::{Layout, VNET, Vnet},
    sa::Sa,
    selector::{TCP, UDP},
    tun::Merges,
};

/// Packets in one frame at most.
pub(super) const MOST: usize = 64;
/// Octets of a frame at most: the length field of IP has 16 bits.
const MAX_FRAME: usize = 65_000;
/// TCP flags that a packet in the middle may have (ACK), and the last one (PSH).
const ACK: u8 = 0x10;
const PSH: u8 = 0x08;

/// Packets that go to the device as one frame; they all came on one SA.
pub(super) struct Frame<'a> {
    pub(super) sa: &'a Sa,
    head: &'a mut [u8],
    /// where there is nothing to merge with it there is none
    layout: Option<Layout>,
    tails: [&'a [u8]; MOST],
    pub(super) packets: usize,
    /// of all its packets, headers too
    pub(super) octets: usize,
    len: usize,
    size: usize,
    open: bool,
}

impl<'a> Frame<'a> {
    /// A frame with one packet; others may come as far as the device `merges`.
    pub(super) fn new(sa: &'a Sa, packet: &'a mut [u8], merges: Merges) -> Self {
        let len = packet.len();
        let layout = Layout::of(packet).filter(|at| can_be_first(packet, at, merges));
        let size = layout.map_or(0, |at| len - at.payload);
        Frame {
            sa,
            head: packet,
            layout,
            tails: [&[]; MOST],
            packets: 1,
            octets: len,
            len,
            size,
            open: layout.is_some(),
        }
    }

    /// Takes `packet` in, or gives it back if it does not continue this frame.
    pub(super) fn take(&mut self, sa: &Sa, packet: &'a mut [u8]) -> Result<(), &'a mut [u8]> {
        let Some(at) = self.layout.filter(|_| self.open && std::ptr::eq(self.sa, sa)) else {
            return Err(packet);
        };
        let payload = packet.len().saturating_sub(at.payload);
        if payload == 0
            || payload > self.size
            || self.packets >= MOST
            || self.len + payload > MAX_FRAME
            || Layout::of(packet) != Some(at)
            || self.continues(&at, packet).is_none()
            || !at.is_intact(packet)
        {
            return Err(packet);
        }
        let pushed =
            at.protocol == TCP && packet.get(at.transport + 13).is_some_and(|f| f & PSH != 0);
        if pushed && let Some(flags) = self.head.get_mut(at.transport + 13) {
            *flags |= PSH;
        }
        // A shorter one is the last, and so is one that asks to be handed on.
        self.open = payload == self.size && !pushed;
        self.octets += packet.len();
        let packet: &'a [u8] = packet;
        if let (Some(tail), Some(body)) =
            (self.tails.get_mut(self.packets - 1), packet.get(at.payload..))
        {
            *tail = body;
        }
        self.packets += 1;
        self.len += payload;
        Ok(())
    }

    /// Whether all that the headers say fits to what is here already.
    fn continues(&self, at: &Layout, packet: &[u8]) -> Option<()> {
        let same =
            |range: std::ops::Range<usize>| self.head.get(range.clone()) == packet.get(range);
        // Length, identification and checksum differ; the rest is one flow with one treatment.
        let ip = match at.ipv4 {
            true => same(0..2) && same(6..10) && same(12..at.transport) && self.follows(packet),
            false => same(0..4) && same(6..at.transport),
        };
        let transport = at.transport;
        let fits = ip
            && match at.protocol {
                UDP => same(transport..transport + 4),
                _ => {
                    let number = |packet: &[u8]| {
                        let octets = packet.get(transport + 4..)?.first_chunk::<4>()?;
                        Some(u32::from_be_bytes(*octets))
                    };
                    let next = number(self.head)?.wrapping_add((self.len - at.payload) as u32);
                    let flags = *packet.get(transport + 13)?;
                    number(packet)? == next
                        && flags & !PSH == ACK
                        && same(transport..transport + 4)
                        && same(transport + 8..transport + 13)
                        && same(transport + 14..transport + 16)
                        && same(transport + 18..at.payload)
                }
            };
        fits.then_some(())
    }

    /// Where IPv4 may fragment, the numbers that fragments go by have to be as if cut from one frame.
    fn follows(&self, packet: &[u8]) -> bool {
        let id = |packet: &[u8]| Some(u16::from_be_bytes(*packet.get(4..)?.first_chunk()?));
        let may_fragment = packet.get(6).is_some_and(|flags| flags & 0x40 == 0);
        !may_fragment || id(packet) == id(self.head).map(|id| id.wrapping_add(self.packets as u16))
    }

    /// Hands the frame over: what stands before it, and its pieces.
    pub(super) fn hand_over<T>(self, write: impl FnOnce(&[IoSlice<'_>]) -> T) -> T {
        let mut vnet = Vnet::default();
        if self.packets > 1
            && let Some(at) = self.layout
        {
            vnet = Vnet::merged(&at, self.size as u16);
            // Neither fails: the layout is the packet's, and the frame's length fits.
            let _ = at.set_len(self.head, self.len);
            let _ = at.leave_checksum(self.head, self.len);
        }
        let vnet: [u8; VNET] = vnet.octets();
        let mut slices = [IoSlice::new(&[]); MOST + 1];
        let pieces = [&vnet[..], self.head].into_iter().chain(self.tails);
        for (slice, piece) in slices.iter_mut().zip(pieces) {
            *slice = IoSlice::new(piece);
        }
        write(slices.get(..=self.packets).unwrap_or(&slices))
    }
}

/// Only a packet whose checksum is right begins a frame: the kernel makes a new one for all.
fn can_be_first(packet: &[u8], at: &Layout, merges: Merges) -> bool {
    let wanted = match merges {
        Merges::Nothing => false,
        Merges::Tcp => at.protocol == TCP,
        Merges::TcpAndUdp => true,
    };
    let plain = at.protocol == UDP || packet.get(at.transport + 13) == Some(&ACK);
    wanted
        && plain
        && (!at.ipv4 || at.transport == 20)
        && packet.len() > at.payload
        && at.is_intact(packet)
}

#[cfg(test)]
mod tests;
