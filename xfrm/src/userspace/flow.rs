//! What happens to a packet: the outbound and the inbound way through the plane.

use std::{
    io::{self, IoSlice},
    sync::{
        Arc, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use bewick_ike::Path;
use tokio::sync::mpsc;

use super::{
    ecn::{self, Fate},
    esp::{self, NEXT_IPV4, NEXT_IPV6, NEXT_NONE},
    merge::Frame,
    offload::{Cut, Vnet},
    selector::Inner,
    table::{Sa, Shared, Table},
    trap::Traps,
    tun::Device,
};
use crate::{
    PlaneEvent,
    events::Events,
    udp::{EspPacket, EspSink},
};

/// Mapping events of one SA are at least this far apart, in milliseconds.
const MAPPING_INTERVAL: u64 = 1000;

/// Packets that the plane dropped and that no SA's counters show.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Drops {
    /// inner packets from the device that are not IP
    pub not_ip: u64,
    /// inner packets from the device that no CHILD_SA carries
    pub no_sa: u64,
    /// inner packets whose CHILD_SA had no sequence number left
    pub exhausted: u64,
    /// ESP packets that the system refused to send
    pub send_failed: u64,
    /// ESP packets that were too much for an address where the peer has not shown yet that it receives
    pub capped: u64,
    /// ESP packets with an SPI that is not ours
    pub unknown_spi: u64,
    /// dummy packets (RFC 4303 §2.6), which are dropped as they should be
    pub dummies: u64,
    /// inner packets without ECN that came marked "congestion experienced" (RFC 6040 §4.2)
    pub ecn: u64,
    /// inner packets that the device refused
    pub device_failed: u64,
}

#[derive(Default)]
pub(super) struct AtomicDrops {
    pub(super) not_ip: AtomicU64,
    pub(super) no_sa: AtomicU64,
    pub(super) exhausted: AtomicU64,
    pub(super) send_failed: AtomicU64,
    pub(super) capped: AtomicU64,
    pub(super) unknown_spi: AtomicU64,
    pub(super) dummies: AtomicU64,
    pub(super) ecn: AtomicU64,
    pub(super) device_failed: AtomicU64,
}

/// What both ways share. Without the sockets: these hold it, as their ESP sink.
pub(super) struct Flow {
    pub(super) table: Shared,
    pub(super) device: Arc<dyn Device>,
    pub(super) events: Events,
    pub(super) drops: AtomicDrops,
    pub(super) traps: Traps,
    started: Instant,
}

impl Flow {
    pub(super) fn new(device: Arc<dyn Device>, events: mpsc::Sender<PlaneEvent>) -> Self {
        Flow {
            table: Shared::default(),
            device,
            events: Events::new(events),
            drops: AtomicDrops::default(),
            traps: Traps::default(),
            started: Instant::now(),
        }
    }

    /// The plane's clock.
    pub(super) fn now(&self) -> Duration {
        self.started.elapsed()
    }

    pub(super) fn drops(&self) -> Drops {
        let d = &self.drops;
        Drops {
            not_ip: d.not_ip.load(Relaxed),
            no_sa: d.no_sa.load(Relaxed),
            exhausted: d.exhausted.load(Relaxed),
            send_failed: d.send_failed.load(Relaxed),
            capped: d.capped.load(Relaxed),
            unknown_spi: d.unknown_spi.load(Relaxed),
            dummies: d.dummies.load(Relaxed),
            ecn: d.ecn.load(Relaxed),
            device_failed: d.device_failed.load(Relaxed),
        }
    }

    /// Takes ESP packets apart and delivers what is in them, what makes one frame in one piece.
    fn inbound<'a>(&self, packets: impl Iterator<Item = EspPacket<'a>>) {
        self.events.settle();
        let table = self.table.load();
        let now = self.started.elapsed();
        let merges = self.device.merges();
        let mut frame: Option<Frame<'_>> = None;
        for EspPacket { path, class, octets } in packets {
            let Some((sa, inner)) = self.open(&table, now, path, class, octets) else { continue };
            let inner = match &mut frame {
                Some(frame) => match frame.take(sa, inner) {
                    Ok(()) => continue,
                    Err(inner) => inner,
                },
                None => inner,
            };
            // One after the other, so that nothing overtakes.
            self.deliver(frame.replace(Frame::new(sa, inner, merges)));
        }
        self.deliver(frame);
    }

    fn deliver(&self, frame: Option<Frame<'_>>) {
        let Some(frame) = frame else { return };
        let (sa, packets, octets) = (frame.sa, frame.packets as u64, frame.octets);
        match frame.hand_over(|pieces| self.write(pieces)) {
            Ok(()) => {
                if sa.note(false, packets, octets) {
                    self.events.expire(sa.id, false);
                }
            }
            Err(error) => {
                tracing::trace!(%error, id = ?sa.id, packets, "inner packets not delivered");
                self.drops.device_failed.fetch_add(packets, Relaxed);
            }
        }
    }

    /// Writes a frame to the device; packet by packet where the kernel takes it in no other way.
    fn write(&self, pieces: &[IoSlice<'_>]) -> io::Result<()> {
        let refused = match self.device.write(pieces) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) && pieces.len() > 2 => error,
            result => return result,
        };
        let vnet = pieces.first().and_then(|vnet| vnet.first_chunk()).copied().map(Vnet::parse);
        let frame = pieces.get(1..).unwrap_or_default();
        let frame: Vec<u8> = frame.iter().flat_map(|piece| piece.iter().copied()).collect();
        let Some(cut) = vnet.and_then(|vnet| Cut::of(&frame, &vnet)) else { return Err(refused) };
        let header = Vnet::default().octets();
        let mut packet = vec![0; cut.longest()];
        let mut result = Ok(());
        for index in 0.. {
            let len = cut.packet(&frame, index, &mut packet);
            let Some(packet) = len.and_then(|len| packet.get(..len)) else { break };
            let pieces = [IoSlice::new(&header), IoSlice::new(packet)];
            result = result.and(self.device.write(&pieces));
        }
        result
    }

    /// Takes one ESP packet apart: its SA, and the inner packet if that may be delivered.
    fn open<'t, 'p>(
        &self,
        table: &'t Table,
        now: Duration,
        path: Path,
        class: u8,
        packet: &'p mut [u8],
    ) -> Option<(&'t Sa, &'p mut [u8])> {
        let octets = packet.len();
        let Some((spi, low)) = esp::peek(packet) else {
            return skip(&self.drops.unknown_spi);
        };
        let Some(slot) = table.inbound(spi) else {
            return skip(&self.drops.unknown_spi);
        };
        let sa: &Sa = &slot.sa;
        let sequence = {
            let replay = sa.replay.lock().unwrap_or_else(PoisonError::into_inner);
            let sequence = replay.whole(low);
            // RFC 4303 §3.4.3: a copy is dropped before it costs a decryption.
            if !replay.is_fresh(sequence) {
                return skip(&sa.traffic.rejected);
            }
            sequence
        };
        let Ok(opened) = sa.inbound.open(sequence, packet) else {
            return skip(&sa.traffic.rejected);
        };
        if !sa.replay.lock().unwrap_or_else(PoisonError::into_inner).accept(sequence) {
            return skip(&sa.traffic.rejected);
        }
        sa.arrived(now);
        if path == slot.path {
            sa.earn(octets);
        } else {
            self.wrong_path(sa, path, slot.path);
        }
        if opened.next_header == NEXT_NONE {
            return skip(&self.drops.dummies);
        }
        let payload = packet.get_mut(opened.payload);
        let Some((inner, payload)) = payload.and_then(|p| Some((Inner::parse(p)?, p))) else {
            return skip(&sa.traffic.rejected);
        };
        // RFC 4301 §5.2: tunnel mode only, and only what this SA's selectors allow.
        if !matches!(opened.next_header, NEXT_IPV4 | NEXT_IPV6)
            || opened.next_header != inner.next_header()
            || !inner.is_inbound(&sa.ts_local, &sa.ts_remote)
        {
            return skip(&sa.traffic.rejected);
        }
        let Some(payload) = payload.get_mut(..inner.len) else {
            return skip(&sa.traffic.rejected);
        };
        match ecn::leave(payload, class) {
            Fate::Deliver => {}
            // RFC 6040 §4.2: to be logged, and to be silenced as any trace.
            Fate::Odd => tracing::trace!(class, id = ?sa.id, "an ECN mark that no tunnel makes"),
            Fate::Drop => {
                tracing::trace!(class, id = ?sa.id, "congestion marked for one without ECN");
                return skip(&self.drops.ecn);
            }
        }
        Some((sa, payload))
    }

    /// RFC 4555 §3.12: a packet from another path is as good as any, but moves nothing by itself.
    fn wrong_path(&self, sa: &Sa, seen: Path, expected: Path) {
        count(&sa.traffic.wrong_path);
        // A connection is no mapping of a NAT's.
        if seen.remote == expected.remote || seen.is_tcp() {
            return;
        }
        let now = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX - 1) + 1;
        let last = sa.last_mapping.load(Relaxed);
        let due = last == 0 || now.saturating_sub(last) >= MAPPING_INTERVAL;
        if due && sa.last_mapping.compare_exchange(last, now, Relaxed, Relaxed).is_ok() {
            self.events.hint(PlaneEvent::Mapping { id: sa.id, seen: seen.remote });
        }
    }
}

impl EspSink for Flow {
    fn esp(&self, path: Path, class: u8, octets: &mut [u8]) {
        self.inbound(std::iter::once(EspPacket { path, class, octets }));
    }

    fn esp_batch<'a>(&self, packets: &mut dyn Iterator<Item = EspPacket<'a>>) {
        self.inbound(packets);
    }
}

/// Counts a packet that goes no further.
fn skip<T>(counter: &AtomicU64) -> Option<T> {
    count(counter);
    None
}

pub(super) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Relaxed);
}
