//! Packets that are for a CHILD_SA which is not there yet: the first few of them wait for it.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bewick_ike::{Packet, TrafficSelector};

use super::{
    esp::{HEADROOM, TAILROOM},
    flow::{Flow, count},
    outbound::Group,
    selector::Inner,
};
use crate::{
    PlaneEvent,
    plane::{Trap, TrapId},
    udp::UdpSockets,
};

/// Packets that wait for one trap's CHILD_SA at most: a few of them are of use, more would be a burst.
const MOST_HELD: usize = 16;

/// How long one waits at most: after that its sender has given it up or sent it again.
const LONGEST_HELD: Duration = Duration::from_secs(3);

/// The traps that are set.
#[derive(Default)]
pub(super) struct Traps(Mutex<Vec<Set>>);

struct Set {
    trap: Trap,
    /// it has told of a packet since it was set
    told: bool,
    /// what waits, and since when on the plane's clock
    held: Vec<(Duration, Vec<u8>)>,
}

impl Traps {
    /// Sets one, or has it tell of a packet again.
    pub(super) fn set(&self, trap: &Trap) {
        let mut all = self.lock();
        match all.iter_mut().find(|set| set.trap.id == trap.id) {
            Some(set) => set.told = false,
            None => all.push(Set { trap: trap.clone(), told: false, held: Vec::new() }),
        }
    }

    /// Sets one no longer; what waits is dropped.
    pub(super) fn clear(&self, id: TrapId) {
        self.lock().retain(|set| set.trap.id != id);
    }

    pub(super) fn clear_all(&self) {
        self.lock().clear();
    }

    /// Keeps a packet that no CHILD_SA carries, if a trap is for it and has room; whether it has. `tell` is
    /// called with the first one since the trap was set, and again with the next one if it could not tell.
    fn catch(
        &self,
        now: Duration,
        inner: &Inner,
        packet: &[u8],
        tell: impl FnOnce(PlaneEvent) -> bool,
    ) -> bool {
        let mut all = self.lock();
        let Some(set) = all.iter_mut().find(|set| set.selects(inner)) else { return false };
        if !set.told
            && let Some(packet) = seen(inner)
        {
            set.told = tell(PlaneEvent::Acquire { trap: set.trap.id, packet });
        }
        set.forget(now);
        let room = set.held.len() < MOST_HELD;
        if room {
            set.held.push((now, packet.to_vec()));
        }
        room
    }

    /// What waits and `carried` says that a CHILD_SA is there for, in the order in which it came.
    fn take(&self, now: Duration, carried: impl Fn(&Inner) -> bool) -> Vec<Vec<u8>> {
        let mut taken = Vec::new();
        for set in self.lock().iter_mut().filter(|set| !set.held.is_empty()) {
            set.forget(now);
            let ready =
                |(_, packet): &mut (_, Vec<u8>)| Inner::parse(packet).is_some_and(|i| carried(&i));
            taken.extend(set.held.extract_if(.., ready).map(|(_, packet)| packet));
        }
        taken
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Set>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Set {
    fn selects(&self, inner: &Inner) -> bool {
        let Trap { ts_local, ts_remote, .. } = &self.trap;
        ts_local.iter().any(|local| ts_remote.iter().any(|remote| inner.is_outbound(local, remote)))
    }

    /// Drops what has waited for too long.
    fn forget(&mut self, now: Duration) {
        self.held.retain(|(since, _)| now.saturating_sub(*since) <= LONGEST_HELD);
    }
}

/// A packet as selectors can say it.
fn seen(inner: &Inner) -> Option<Packet> {
    let ports = inner.ports.filter(|_| TrafficSelector::has_ports(inner.protocol));
    let side = |address, port: Option<u16>| {
        let ports = port.map_or((0, u16::MAX), |port| (port, port));
        TrafficSelector::new(inner.protocol, ports, address, address)
    };
    Some(Packet {
        local: side(inner.source, ports.map(|ports| ports.0))?,
        remote: side(inner.destination, ports.map(|ports| ports.1))?,
    })
}

impl Flow {
    /// A packet from the device that no CHILD_SA carried when the table was looked at.
    pub(super) fn uncarried(&self, udp: &UdpSockets, inner: &Inner, packet: &[u8]) {
        let tell = |event| self.events.hint(event);
        if !self.traps.catch(self.now(), inner, packet, tell) {
            return count(&self.drops.no_sa);
        }
        // Its CHILD_SA may have come meanwhile, whose installation has found nothing that waits.
        if self.table.load().outbound(inner).is_some() {
            self.send_held(udp);
        }
    }

    /// Sends what has waited for a CHILD_SA that is there now.
    pub(super) fn send_held(&self, udp: &UdpSockets) {
        let table = self.table.load();
        let held = self.traps.take(self.now(), |inner| table.outbound(inner).is_some());
        for packet in held {
            let Some(lead) = self.lead(&table, &packet) else {
                count(&self.drops.no_sa);
                continue;
            };
            let mut arena = vec![0; HEADROOM + packet.len() + TAILROOM];
            let place = HEADROOM..HEADROOM + packet.len();
            if let Some(room) = arena.get_mut(place.clone()) {
                room.copy_from_slice(&packet);
            }
            let mut group = Group::new(Vec::new());
            self.packet(udp, &mut arena, place, &lead, &mut group);
            self.flush(udp, &arena, &mut group);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::selector::tests::udp, *};

    fn trap(id: u32, remote: &str) -> Trap {
        let ts = |text: &str| vec![text.parse().unwrap()];
        Trap { id: TrapId(id), ts_local: ts("10.9.0.0/24"), ts_remote: ts(remote), if_id: None }
    }

    fn packet_of(source: &str, destination: &str, from: u16, to: u16) -> Vec<u8> {
        udp(source, destination, (from, to), b"")
    }

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// Catches one; whether it was kept, and what was told.
    fn caught(traps: &Traps, now: Duration, packet: &[u8]) -> (bool, Option<PlaneEvent>) {
        let mut told = None;
        let inner = Inner::parse(packet).unwrap();
        let kept = traps.catch(now, &inner, packet, |event| told.replace(event).is_none());
        (kept, told)
    }

    #[test]
    fn rfc_4301_5_1_the_first_packet_is_told_once_until_the_trap_is_set_again() {
        let traps = Traps::default();
        let one = packet_of("10.9.0.7", "10.1.2.3", 40000, 80);
        assert_eq!(caught(&traps, ms(0), &one), (false, None));
        traps.set(&trap(3, "10.1.0.0/16"));
        let local = "10.9.0.7[udp/40000]".parse().unwrap();
        let remote = "10.1.2.3[udp/80]".parse().unwrap();
        let packet = Packet { local, remote };
        let event = PlaneEvent::Acquire { trap: TrapId(3), packet };
        assert_eq!(caught(&traps, ms(0), &one), (true, Some(event.clone())));
        assert_eq!(caught(&traps, ms(1), &one), (true, None));
        traps.set(&trap(3, "10.1.0.0/16"));
        // A queue that is full takes nothing: the next packet tells.
        let inner = Inner::parse(&one).unwrap();
        assert!(traps.catch(ms(2), &inner, &one, |_| false));
        assert_eq!(caught(&traps, ms(3), &one), (true, Some(event)));
        let other = packet_of("10.9.0.7", "10.2.2.3", 40000, 80);
        assert_eq!(caught(&traps, ms(4), &other), (false, None));
        let stranger = packet_of("10.8.0.7", "10.1.2.3", 40000, 80);
        assert_eq!(caught(&traps, ms(4), &stranger), (false, None));
        traps.clear(TrapId(3));
        assert_eq!(caught(&traps, ms(5), &one), (false, None));
    }

    #[test]
    fn rfc_4301_5_1_sixteen_packets_wait_for_three_seconds_and_in_their_order() {
        let traps = Traps::default();
        traps.set(&trap(1, "10.1.0.0/16"));
        traps.set(&trap(2, "10.2.0.0/16"));
        let to = |net: u8, port| packet_of("10.9.0.7", &format!("10.{net}.0.1"), port, 80);
        for port in 0..20 {
            let kept = caught(&traps, ms(u64::from(port) * 10), &to(1, port)).0;
            assert_eq!(kept, port < 16, "{port}");
        }
        assert!(caught(&traps, ms(200), &to(2, 1)).0, "each has its own room");
        let first = |inner: &Inner| inner.destination.to_string().starts_with("10.1.");
        // Those of the first 50 ms are too old by now.
        let taken = traps.take(ms(3050), first);
        assert_eq!(taken, (5..16).map(|port| to(1, port)).collect::<Vec<_>>());
        assert!(traps.take(ms(3050), first).is_empty());
        assert_eq!(traps.take(ms(3060), |_| true), [to(2, 1)]);
        assert!(caught(&traps, ms(4000), &to(1, 0)).0, "there is room again");
    }
}
