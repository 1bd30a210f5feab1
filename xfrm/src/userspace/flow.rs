//! What happens to a packet: the outbound and the inbound way through the plane.

use std::{
    sync::{
        Arc, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use bewick_ike::Path;
use tokio::sync::mpsc;

use super::{
    ecn::{self, Fate},
    esp::{self, HEADROOM, NEXT_IPV4, NEXT_IPV6, NEXT_NONE, TAILROOM},
    selector::Inner,
    table::{Sa, Sequence, Shared},
    tun::Device,
};
use crate::{
    PlaneEvent,
    events::Events,
    udp::{EspSink, UdpSockets},
};

/// The largest inner packet.
const MAX_INNER: usize = 1 << 16;
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
struct AtomicDrops {
    not_ip: AtomicU64,
    no_sa: AtomicU64,
    exhausted: AtomicU64,
    send_failed: AtomicU64,
    capped: AtomicU64,
    unknown_spi: AtomicU64,
    dummies: AtomicU64,
    ecn: AtomicU64,
    device_failed: AtomicU64,
}

/// What both ways share. Without the sockets: these hold it, as their ESP sink.
pub(super) struct Flow {
    pub(super) table: Shared,
    pub(super) device: Arc<dyn Device>,
    pub(super) events: Events,
    drops: AtomicDrops,
    started: Instant,
}

impl Flow {
    pub(super) fn new(device: Arc<dyn Device>, events: mpsc::Sender<PlaneEvent>) -> Self {
        Flow {
            table: Shared::default(),
            device,
            events: Events::new(events),
            drops: AtomicDrops::default(),
            started: Instant::now(),
        }
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

    /// Carries packets from the device to `udp` until the device is stopped.
    pub(super) fn run_outbound(&self, udp: &UdpSockets) {
        let mut buffer = vec![0; HEADROOM + MAX_INNER + TAILROOM];
        let mut failing = false;
        loop {
            let Some(room) = buffer.get_mut(HEADROOM..HEADROOM + MAX_INNER) else { return };
            match self.device.read(room) {
                Ok(Some(len)) => {
                    failing = false;
                    self.outbound(udp, &mut buffer, len);
                }
                Ok(None) => return,
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

    /// Sends the inner packet of `len` octets that stands after the head room of `buffer`.
    fn outbound(&self, udp: &UdpSockets, buffer: &mut [u8], len: usize) {
        self.events.settle();
        let place = HEADROOM..HEADROOM + len;
        let Some(inner) = buffer.get(place.clone()).and_then(Inner::parse) else {
            return count(&self.drops.not_ip);
        };
        let table = self.table.load();
        let Some(slot) = table.outbound(&inner) else {
            return count(&self.drops.no_sa);
        };
        // RFC 6040 §4.1: read now, as sealing hides it.
        let class = buffer.get(place.clone()).map_or(0, ecn::traffic_class);
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
        let sealed = sa.outbound.seal(sequence, buffer, place, inner.next_header());
        let Some(packet) = sealed.ok().and_then(|range| buffer.get(range)) else {
            return count(&self.drops.send_failed);
        };
        if !sa.spend(packet.len()) {
            return count(&self.drops.capped);
        }
        match udp.send_esp(&slot.path, class, packet) {
            Ok(()) => {
                if sa.note(true, len) {
                    self.events.expire(sa.id, false);
                }
            }
            Err(error) => {
                tracing::trace!(%error, id = ?sa.id, "ESP not sent");
                count(&self.drops.send_failed);
            }
        }
    }

    /// Takes the ESP `packet` apart and delivers what is in it.
    fn inbound(&self, path: Path, class: u8, packet: &mut [u8]) {
        self.events.settle();
        let octets = packet.len();
        let Some((spi, low)) = esp::peek(packet) else {
            return count(&self.drops.unknown_spi);
        };
        let table = self.table.load();
        let Some(slot) = table.inbound(spi) else {
            return count(&self.drops.unknown_spi);
        };
        let sa = &slot.sa;
        let sequence = {
            let replay = sa.replay.lock().unwrap_or_else(PoisonError::into_inner);
            let sequence = replay.whole(low);
            // RFC 4303 §3.4.3: a copy is dropped before it costs a decryption.
            if !replay.is_fresh(sequence) {
                return count(&sa.traffic.rejected);
            }
            sequence
        };
        let Ok(opened) = sa.inbound.open(sequence, packet) else {
            return count(&sa.traffic.rejected);
        };
        if !sa.replay.lock().unwrap_or_else(PoisonError::into_inner).accept(sequence) {
            return count(&sa.traffic.rejected);
        }
        sa.arrived(self.started.elapsed());
        if path == slot.path {
            sa.earn(octets);
        } else {
            self.wrong_path(sa, path, slot.path);
        }
        if opened.next_header == NEXT_NONE {
            return count(&self.drops.dummies);
        }
        let payload = packet.get_mut(opened.payload);
        let Some((inner, payload)) = payload.and_then(|p| Some((Inner::parse(p)?, p))) else {
            return count(&sa.traffic.rejected);
        };
        // RFC 4301 §5.2: tunnel mode only, and only what this SA's selectors allow.
        if !matches!(opened.next_header, NEXT_IPV4 | NEXT_IPV6)
            || opened.next_header != inner.next_header()
            || !inner.is_inbound(&sa.ts_local, &sa.ts_remote)
        {
            return count(&sa.traffic.rejected);
        }
        let Some(payload) = payload.get_mut(..inner.len) else {
            return count(&sa.traffic.rejected);
        };
        match ecn::leave(payload, class) {
            Fate::Deliver => {}
            // RFC 6040 §4.2: to be logged, and to be silenced as any trace.
            Fate::Odd => tracing::trace!(class, id = ?sa.id, "an ECN mark that no tunnel makes"),
            Fate::Drop => {
                tracing::trace!(class, id = ?sa.id, "congestion marked for one without ECN");
                return count(&self.drops.ecn);
            }
        }
        match self.device.write(payload) {
            Ok(()) => {
                if sa.note(false, inner.len) {
                    self.events.expire(sa.id, false);
                }
            }
            Err(error) => {
                tracing::trace!(%error, id = ?sa.id, "inner packet not delivered");
                count(&self.drops.device_failed);
            }
        }
    }

    /// RFC 4555 §3.12: a packet from another path is as good as any, but moves nothing by itself.
    fn wrong_path(&self, sa: &Sa, seen: Path, expected: Path) {
        count(&sa.traffic.wrong_path);
        if seen.remote == expected.remote {
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
    fn esp(&self, path: Path, class: u8, packet: &mut [u8]) {
        self.inbound(path, class, packet);
    }
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Relaxed);
}
