//! From the device to the peer, in batches: what waits in the device is read, cut, sealed and sent with
//! as few system calls as its paths allow.

use std::{ops::Range, sync::atomic::Ordering::Relaxed, thread, time::Duration};

use super::{
    ecn,
    esp::{HEADROOM, TAILROOM},
    flow::{Flow, count},
    offload::{self, Cut, Vnet},
    selector::Inner,
    table::{Sequence, Slot, Table},
    tun::Read,
};
use crate::udp::{MAX_SEGMENTS, UdpSockets};

/// The largest frame.
const MAX_FRAME: usize = 1 << 16;
/// Frames that are read before what they became is sent.
const FRAMES: usize = 64;
/// Octets that are sealed before they are sent: a frame, what it is cut into, and the small ones before.
const ARENA: usize = 6 * MAX_FRAME;
/// What has to be free for one more frame: itself, and the packets that it may be cut into.
const ROOM: usize = 3 * MAX_FRAME;
/// Octets of UDP payload in one send: all of it is one datagram until it is cut.
const MAX_SEND: usize = 65_000;

/// Sealed packets that go out with one call: on one path, in one class, of one length but the last.
pub(super) struct Group<'a> {
    slot: Option<&'a Slot>,
    class: u8,
    len: usize,
    /// from the first packet's start on
    total: usize,
    packets: Vec<Range<usize>>,
    /// octets of their inner packets
    inner: [u16; MAX_SEGMENTS],
    closed: bool,
}

impl Flow {
    /// Carries packets from the device to `udp` until the device is stopped.
    pub(super) fn run_outbound(&self, udp: &UdpSockets) {
        let mut arena = vec![0; ARENA];
        let mut ranges = Vec::with_capacity(MAX_SEGMENTS);
        let mut failing = false;
        loop {
            match self.batch(udp, &mut arena, &mut ranges) {
                Ok(true) => failing = false,
                Ok(false) => return,
                Err(error) => {
                    // Somebody removed the device: said once, and then there is nothing to carry.
                    if !failing {
                        tracing::error!(%error, "reading from the tunnel device");
                    }
                    failing = true;
                    thread::sleep(Duration::from_millis(100));
                }
            }
        }
    }

    /// Waits for a frame and sends it with those that are there already; false if it is time to stop.
    fn batch(
        &self,
        udp: &UdpSockets,
        arena: &mut [u8],
        ranges: &mut Vec<Range<usize>>,
    ) -> std::io::Result<bool> {
        let read = |arena: &mut [u8], free: usize, wait| {
            let room = arena.get_mut(free + HEADROOM..free + HEADROOM + MAX_FRAME);
            self.device.read(room.unwrap_or_default(), wait)
        };
        let mut frame = match read(arena, 0, true)? {
            Read::Frame(vnet, len) => (vnet, len),
            Read::Nothing => return Ok(true),
            Read::Stopped => return Ok(false),
        };
        self.events.settle();
        let (mut free, mut frames) = (0, 0);
        loop {
            let version = self.table.version();
            let table = self.table.load();
            let mut group = Group::new(std::mem::take(ranges));
            let end = loop {
                free = self.frame(udp, &table, arena, free, frame, &mut group);
                frames += 1;
                if frames == FRAMES || free + ROOM > arena.len() {
                    break Some(Ok(true));
                }
                frame = match read(arena, free, false) {
                    Ok(Read::Frame(vnet, len)) => (vnet, len),
                    Ok(Read::Nothing) => break Some(Ok(true)),
                    Ok(Read::Stopped) => break Some(Ok(false)),
                    Err(error) => break Some(Err(error)),
                };
                // A packet that comes after a change, such as a move, is not to go the way before it.
                if self.table.version() != version {
                    break None;
                }
            };
            self.flush(udp, arena, &mut group);
            *ranges = group.packets;
            if let Some(end) = end {
                return end;
            }
        }
    }

    /// Seals what is in the frame after the head room at `free`; where there is room now.
    fn frame<'a>(
        &self,
        udp: &UdpSockets,
        table: &'a Table,
        arena: &mut [u8],
        free: usize,
        (vnet, len): (Vnet, usize),
        group: &mut Group<'a>,
    ) -> usize {
        let start = free + HEADROOM;
        if !vnet.is_big() {
            let whole = arena.get_mut(start..start + len);
            if whole.and_then(|packet| offload::complete(packet, &vnet)).is_none() {
                count(&self.drops.not_ip);
                return free;
            }
            self.packet(udp, table, arena, start..start + len, group);
            return start + len + TAILROOM;
        }
        let (behind, mut index) = (start + len, 0);
        let cut = arena.get(start..behind).and_then(|frame| Cut::of(frame, &vnet));
        let Some(cut) = cut else {
            count(&self.drops.not_ip);
            return free;
        };
        let mut next = behind;
        loop {
            if next + HEADROOM + cut.longest() + TAILROOM > arena.len() {
                if next == behind {
                    // There is room for any that the device may give.
                    count(&self.drops.not_ip);
                    return free;
                }
                // What is sealed goes out, and makes room behind the frame.
                self.flush(udp, arena, group);
                next = behind;
            }
            let place = next + HEADROOM;
            let Some((before, after)) = arena.split_at_mut_checked(place) else { break };
            let frame = before.get(start..behind).unwrap_or_default();
            let Some(len) = cut.packet(frame, index, after) else { break };
            self.packet(udp, table, arena, place..place + len, group);
            (next, index) = (place + len + TAILROOM, index + 1);
        }
        next
    }

    /// Seals the inner packet at `place` and puts it into the group, or begins another.
    pub(super) fn packet<'a>(
        &self,
        udp: &UdpSockets,
        table: &'a Table,
        arena: &mut [u8],
        place: Range<usize>,
        group: &mut Group<'a>,
    ) {
        let Some(inner) = arena.get(place.clone()).and_then(Inner::parse) else {
            return count(&self.drops.not_ip);
        };
        let Some(slot) = table.outbound(&inner) else {
            return self.uncarried(udp, &inner, arena.get(place).unwrap_or_default());
        };
        // RFC 6040 §4.1: read now, as sealing hides it.
        let class = arena.get(place.clone()).map_or(0, ecn::traffic_class);
        let sa = &slot.sa;
        let sequence = match sa.next_sequence() {
            Sequence::Next(sequence) => sequence,
            Sequence::Soon(sequence) => {
                self.events.expire(sa.id, false);
                sequence
            }
            Sequence::Exhausted(say) => {
                if say {
                    self.events.expire(sa.id, true);
                }
                return count(&self.drops.exhausted);
            }
        };
        let Ok(octets) = u16::try_from(place.len()) else {
            return count(&self.drops.not_ip);
        };
        let Ok(sealed) = sa.outbound.seal(sequence, arena, place, inner.next_header()) else {
            return count(&self.drops.send_failed);
        };
        if !sa.spend(sealed.len()) {
            return count(&self.drops.capped);
        }
        if !group.takes(slot, class, sealed.len()) {
            self.flush(udp, arena, group);
            (group.slot, group.class, group.len) = (Some(slot), class, sealed.len());
        }
        // A shorter one is the last of its group.
        group.closed = sealed.len() < group.len;
        group.total += sealed.len();
        if let Some(inner) = group.inner.get_mut(group.packets.len()) {
            *inner = octets;
        }
        group.packets.push(sealed);
    }

    pub(super) fn flush(&self, udp: &UdpSockets, arena: &[u8], group: &mut Group<'_>) {
        let Some(slot) = group.slot.take() else { return };
        let Group { class, len, packets, inner, .. } = group;
        let sa = &slot.sa;
        udp.send_esp_batch(&slot.path, *class, arena, packets, *len, |which, result| {
            let count = which.len() as u64;
            match result {
                Ok(()) => {
                    let inner = inner.get(which).unwrap_or_default();
                    if sa.note(true, count, inner.iter().map(|len| usize::from(*len)).sum()) {
                        self.events.expire(sa.id, false);
                    }
                }
                Err(error) => {
                    tracing::trace!(%error, id = ?sa.id, count, "ESP not sent");
                    self.drops.send_failed.fetch_add(count, Relaxed);
                }
            }
        });
        group.packets.clear();
        (group.total, group.closed) = (0, false);
    }
}

impl Group<'_> {
    /// An empty one, which puts its packets into this empty list.
    pub(super) fn new(packets: Vec<Range<usize>>) -> Self {
        let inner = [0; MAX_SEGMENTS];
        Group { slot: None, class: 0, len: 0, total: 0, packets, inner, closed: false }
    }

    fn takes(&self, slot: &Slot, class: u8, len: usize) -> bool {
        self.slot.is_some_and(|own| std::ptr::eq(own, slot) || own.sa.id == slot.sa.id)
            && !self.closed
            && self.class == class
            && len <= self.len
            && self.packets.len() < MAX_SEGMENTS
            && self.total + len <= MAX_SEND
    }
}
