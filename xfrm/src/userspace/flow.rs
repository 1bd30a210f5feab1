//! What happens to a packet: the outbound and the inbound way through the plane.

use std::{
    io::{self, IoSlice},
    sync::{
        Arc, MutexGuard,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use bewick_ike::{EspSpi, Path};
use tokio::sync::mpsc;

use super::{
    early::Early,
    ecn::{self, Fate},
    esp::{self, NEXT_IPV4, NEXT_IPV6, NEXT_NONE},
    merge::Frame,
    offload::{Cut, Vnet},
    replay::ReplayWindow,
    sa::Sa,
    selector::Inner,
    table::{Shared, Slot},
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
    /// ESP packets with an SPI that is not ours, or not yet; those that were let in later do not count
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
    /// the device's, one for each pair of threads; one at least
    pub(super) queues: Vec<Arc<dyn Device>>,
    pub(super) events: Events,
    pub(super) drops: AtomicDrops,
    pub(super) traps: Traps,
    early: Early,
    started: Instant,
}

impl Flow {
    pub(super) fn new(queues: Vec<Arc<dyn Device>>, events: mpsc::Sender<PlaneEvent>) -> Self {
        Flow {
            table: Shared::default(),
            queues,
            events: Events::new(events),
            drops: AtomicDrops::default(),
            traps: Traps::default(),
            early: Early::default(),
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
    fn inbound<'a>(&self, lane: usize, packets: impl Iterator<Item = EspPacket<'a>>) {
        // A flow that is written to a queue is read from it too: both ways have one processor's caches.
        let Some(queue) = self.queues.get(lane % self.queues.len().max(1)) else { return };
        let queue = &**queue;
        self.events.settle();
        let table = self.table.load();
        let now = self.started.elapsed();
        let merges = queue.merges();
        let mut frame: Option<Frame<'_>> = None;
        let mut run: Option<Run<'_>> = None;
        for EspPacket { path, class, octets } in packets {
            let Some((spi, low)) = esp::peek(octets) else {
                count(&self.drops.unknown_spi);
                continue;
            };
            if run.as_ref().is_none_or(|run| run.slot.sa.spi_in != spi) {
                // One after the other: whoever has a window never waits for a second one.
                run = None;
                let Some(slot) = table.inbound(spi) else {
                    count(&self.drops.unknown_spi);
                    let kept = self.early.keep(now, spi, (path, class), octets);
                    // It may have come to be known meanwhile.
                    if kept && self.table.load().inbound(spi).is_some() {
                        self.let_in(spi);
                    }
                    continue;
                };
                run = Some(Run { slot, replay: None, arrived: false });
            }
            let Some(run) = &mut run else { continue };
            let Some(inner) = self.open(run, low, now, path, class, octets) else { continue };
            let sa = &*run.slot.sa;
            let inner = match &mut frame {
                Some(frame) => match frame.take(sa, inner) {
                    Ok(()) => continue,
                    Err(inner) => inner,
                },
                None => inner,
            };
            // One after the other, so that nothing overtakes.
            self.deliver(queue, frame.replace(Frame::new(sa, inner, merges)));
        }
        self.deliver(queue, frame);
    }

    /// Takes in what was there before the CHILD_SA of this SPI.
    pub(super) fn let_in(&self, spi: EspSpi) {
        let mut early = self.early.take(self.now(), spi);
        self.drops.unknown_spi.fetch_sub(early.len() as u64, Relaxed);
        self.inbound(
            0,
            early.iter_mut().map(|one| EspPacket {
                path: one.path,
                class: one.class,
                octets: &mut one.octets,
            }),
        );
    }

    fn deliver(&self, queue: &dyn Device, frame: Option<Frame<'_>>) {
        let Some(frame) = frame else { return };
        let (sa, packets, octets) = (frame.sa, frame.packets as u64, frame.octets);
        match frame.hand_over(|pieces| write(queue, pieces)) {
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

    /// Takes one ESP packet of the run apart: the inner packet if that may be delivered.
    fn open<'p>(
        &self,
        run: &mut Run<'_>,
        low: u32,
        now: Duration,
        path: Path,
        class: u8,
        packet: &'p mut [u8],
    ) -> Option<&'p mut [u8]> {
        let octets = packet.len();
        let slot = run.slot;
        let sa = &*slot.sa;
        let expected = path == run.slot.path;
        let window = run.window();
        let sequence = window.whole(low);
        let fresh = window.is_fresh(sequence);
        // Anyone can send what fails the check below, and is not to keep the peer's own packets waiting.
        run.keep(expected);
        // RFC 4303 §3.4.3: a copy is dropped before it costs a decryption.
        if !fresh {
            return skip(&sa.traffic.rejected);
        }
        let Ok(opened) = sa.inbound.open(sequence, packet) else {
            return skip(&sa.traffic.rejected);
        };
        let accepted = run.window().accept(sequence);
        run.keep(expected);
        if !accepted {
            return skip(&sa.traffic.rejected);
        }
        if !std::mem::replace(&mut run.arrived, true) {
            sa.arrived(now);
        }
        if expected {
            sa.earn(octets);
        } else {
            self.wrong_path(sa, path, run.slot.path);
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
        Some(payload)
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

/// Packets of one SA that came one after the other.
struct Run<'t> {
    slot: &'t Slot,
    /// kept from one packet of the peer's path to the next, which all come to this thread
    replay: Option<MutexGuard<'t, ReplayWindow>>,
    /// the time of the first has been noted, which is that of all
    arrived: bool,
}

impl Run<'_> {
    fn window(&mut self) -> &mut ReplayWindow {
        let slot = self.slot;
        self.replay.get_or_insert_with(|| slot.sa.replay())
    }

    /// Lets others have the window, unless it is to be kept.
    fn keep(&mut self, keep: bool) {
        if !keep {
            self.replay = None;
        }
    }
}

impl EspSink for Flow {
    fn esp(&self, path: Path, class: u8, octets: &mut [u8]) {
        self.inbound(0, std::iter::once(EspPacket { path, class, octets }));
    }

    fn esp_batch<'a>(&self, lane: usize, packets: &mut dyn Iterator<Item = EspPacket<'a>>) {
        self.inbound(lane, packets);
    }
}

/// Writes a frame to the device; packet by packet where the kernel takes it in no other way.
fn write(queue: &dyn Device, pieces: &[IoSlice<'_>]) -> io::Result<()> {
    let refused = match queue.write(pieces) {
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
        result = result.and(queue.write(&pieces));
    }
    result
}

/// Counts a packet that goes no further.
pub(super) fn skip<T>(counter: &AtomicU64) -> Option<T> {
    count(counter);
    None
}

pub(super) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Relaxed);
}
