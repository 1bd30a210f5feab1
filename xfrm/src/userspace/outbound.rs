//! From the device to the peer, in batches: what waits in the device is read, cut, sealed and sent with
//! as few system calls as its paths allow.

use std::{ops::Range, sync::atomic::Ordering::Relaxed, thread, time::Duration};

use super::{
    ecn,
    esp::{HEADROOM, TAILROOM},
    flow::{Flow, count, skip},
    offload::{self, Cut, Vnet},
    sa::{Sequence, Turn},
    selector::Inner,
    table::{Slot, Table},
    tun::{Device, Read},
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
pub(super) const MAX_SEND: usize = 65_500;

/// What the packets of one frame have in common.
pub(super) struct Lead<'a> {
    slot: &'a Slot,
    /// RFC 6040 §4.1: read before sealing hides it
    class: u8,
    next_header: u8,
}

/// Sealed packets that go out with one call: on one path, in one class, of one length but the last.
pub(super) struct Group<'a> {
    /// whose they are, and the right to send there
    slot: Option<(&'a Slot, Turn<'a>)>,
    class: u8,
    len: usize,
    total: usize,
    packets: Vec<Range<usize>>,
    /// octets of their inner packets
    inner: [u16; MAX_SEGMENTS],
    closed: bool,
}

impl Flow {
    /// Carries packets from a queue of the device to `udp` until the device is stopped.
    pub(super) fn run_outbound(&self, queue: &dyn Device, udp: &UdpSockets) {
        let mut arena = vec![0; ARENA];
        let mut ranges = Vec::with_capacity(MAX_SEGMENTS);
        let mut failing = false;
        loop {
            match self.batch(queue, udp, &mut arena, &mut ranges) {
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
        queue: &dyn Device,
        udp: &UdpSockets,
        arena: &mut [u8],
        ranges: &mut Vec<Range<usize>>,
    ) -> std::io::Result<bool> {
        let read = |arena: &mut [u8], free: usize, wait| {
            let room = arena.get_mut(free + HEADROOM..free + HEADROOM + MAX_FRAME);
            queue.read(room.unwrap_or_default(), wait)
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
        let place = free + HEADROOM..free + HEADROOM + len;
        let Some(frame) = arena.get_mut(place.clone()) else { return free };
        if vnet.is_big() {
            return match Cut::of(frame, &vnet) {
                Some(cut) => self.pieces(udp, table, arena, place, &cut, group),
                None => {
                    count(&self.drops.not_ip);
                    free
                }
            };
        }
        if offload::complete(frame, &vnet).is_none() {
            count(&self.drops.not_ip);
            return free;
        }
        let Some(lead) = self.lead(table, frame) else {
            // It may send by itself, so nobody holds the right to.
            self.flush(udp, arena, group);
            self.left_over(udp, arena.get(place).unwrap_or_default());
            return free;
        };
        self.packet(udp, arena, place, &lead, group).unwrap_or(free)
    }

    /// Seals, behind it, the packets that the frame at `place` is cut into; where there is room then.
    fn pieces<'a>(
        &self,
        udp: &UdpSockets,
        table: &'a Table,
        arena: &mut [u8],
        place: Range<usize>,
        cut: &Cut,
        group: &mut Group<'a>,
    ) -> usize {
        let behind = place.end;
        let frame = arena.get(place.clone()).unwrap_or_default();
        // They have one header, so one SA carries them all.
        let lead = self.lead(table, frame);
        if lead.is_none() {
            self.flush(udp, arena, group);
        }
        let head = lead.as_ref().map_or(0, |lead| lead.slot.sa.outbound.head());
        let (mut next, mut index) = (behind, 0);
        loop {
            if next + head + cut.longest() + TAILROOM > arena.len() {
                if next == behind {
                    // There is room for any that the device may give.
                    count(&self.drops.not_ip);
                    return behind;
                }
                // What is sealed goes out, and makes room behind the frame.
                self.flush(udp, arena, group);
                next = behind;
            }
            let start = next + head;
            let Some((before, after)) = arena.split_at_mut_checked(start) else { break };
            let frame = before.get(place.clone()).unwrap_or_default();
            let Some(len) = cut.packet(frame, index, after) else { break };
            let packet = start..start + len;
            match &lead {
                // One right behind the other: a send then has one piece.
                Some(lead) => {
                    next = self.packet(udp, arena, packet, lead, group).unwrap_or(next);
                }
                None => self.left_over(udp, arena.get(packet).unwrap_or_default()),
            }
            index += 1;
        }
        next
    }

    /// Which SA carries `packet`, and how.
    pub(super) fn lead<'a>(&self, table: &'a Table, packet: &[u8]) -> Option<Lead<'a>> {
        let inner = Inner::parse(packet)?;
        let slot = table.outbound(&inner)?;
        Some(Lead { slot, class: ecn::traffic_class(packet), next_header: inner.next_header() })
    }

    /// A packet that no SA carries may be one that is to wait for it.
    fn left_over(&self, udp: &UdpSockets, packet: &[u8]) {
        match Inner::parse(packet) {
            Some(inner) => self.uncarried(udp, &inner, packet),
            None => count(&self.drops.not_ip),
        }
    }

    /// Seals the inner packet at `place` and puts it into the group, or begins another; where it ends
    /// if it is to be sent.
    pub(super) fn packet<'a>(
        &self,
        udp: &UdpSockets,
        arena: &mut [u8],
        place: Range<usize>,
        lead: &Lead<'a>,
        group: &mut Group<'a>,
    ) -> Option<usize> {
        let Lead { slot, class, next_header } = *lead;
        let sa = &slot.sa;
        let Ok(octets) = u16::try_from(place.len()) else { return skip(&self.drops.not_ip) };
        let len = sa.outbound.sealed_len(place.len());
        if !sa.spend(len) {
            return skip(&self.drops.capped);
        }
        if !group.takes(slot, class, len) {
            self.flush(udp, arena, group);
            (group.slot, group.class, group.len) = (Some((slot, sa.turn())), class, len);
        }
        let Some((_, turn)) = &mut group.slot else { return skip(&self.drops.send_failed) };
        let sequence = match turn.draw() {
            Sequence::Next(sequence) => sequence,
            Sequence::Soon(sequence) => {
                self.events.expire(sa.id, false);
                sequence
            }
            Sequence::Exhausted(say) => {
                if say {
                    self.events.expire(sa.id, true);
                }
                return skip(&self.drops.exhausted);
            }
        };
        let Ok(sealed) = sa.outbound.seal(sequence, arena, place, next_header) else {
            return skip(&self.drops.send_failed);
        };
        // A shorter one is the last of its group.
        group.closed = len < group.len;
        group.total += len;
        if let Some(inner) = group.inner.get_mut(group.packets.len()) {
            *inner = octets;
        }
        let end = sealed.end;
        group.packets.push(sealed);
        Some(end)
    }

    pub(super) fn flush(&self, udp: &UdpSockets, arena: &[u8], group: &mut Group<'_>) {
        // The next may send when this has been.
        let Some((slot, _turn)) = group.slot.take() else { return };
        if group.packets.is_empty() {
            return;
        }
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
        self.slot
            .as_ref()
            .is_some_and(|(own, _)| std::ptr::eq(*own, slot) || own.sa.id == slot.sa.id)
            && !self.closed
            && self.class == class
            && len <= self.len
            && self.packets.len() < MAX_SEGMENTS
            && self.total + len <= MAX_SEND
    }
}
