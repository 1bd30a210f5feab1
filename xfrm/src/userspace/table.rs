//! The SAs of the userspace plane and how packets find theirs.
//!
//! Readers take a snapshot and never wait for a change in the making; every change builds a new table
//! and swaps it in, so that a move of any number of SAs happens between two packets (RFC 4555 §3.5).

use std::{
    net::IpAddr,
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{
            AtomicBool, AtomicU64,
            Ordering::{Relaxed, SeqCst},
        },
    },
    time::Duration,
};

use bewick_ike::{ChildId, ChildMove, ChildSa, EspSpi, Limits, Path, TrafficSelector};

use super::{
    esp::Transform,
    replay::{DEFAULT_WINDOW, ReplayWindow},
    selector::Inner,
    shards::Shards,
};
use crate::{Counters, PlaneError, Since};

/// Nothing limits what is sent.
const NO_CAP: u64 = u64::MAX;

/// So many octets may go to where the peer has not shown yet that it receives, for each that came from
/// there (RFC 9000 §8.1 has the same).
const CAP: u64 = 3;

/// One CHILD_SA: what stays the same over moves, and its running state.
pub(super) struct Sa {
    pub(super) id: ChildId,
    reqid: u32,
    /// see [`ChildSa::waits`]
    waits: bool,
    pub(super) spi_in: EspSpi,
    pub(super) outbound: Transform,
    pub(super) inbound: Transform,
    pub(super) ts_local: Vec<TrafficSelector>,
    pub(super) ts_remote: Vec<TrafficSelector>,
    /// the sequence number of the last packet sent
    sequence: AtomicU64,
    last_sequence: u64,
    pub(super) replay: Mutex<ReplayWindow>,
    pub(super) traffic: Traffic,
    arrivals: Arrivals,
    limits: Limits,
    /// octets that may still be sent; [`NO_CAP`] for any number
    allowance: AtomicU64,
    /// the limits are reached, and that has been said
    told: AtomicBool,
    /// when the last mapping event was given, in milliseconds of the plane's clock, plus 1
    pub(super) last_mapping: AtomicU64,
}

/// [`Counters`] as they run.
#[derive(Default)]
pub(super) struct Traffic {
    pub(super) octets_in: AtomicU64,
    pub(super) octets_out: AtomicU64,
    pub(super) packets_in: AtomicU64,
    pub(super) packets_out: AtomicU64,
    pub(super) rejected: AtomicU64,
    pub(super) wrong_path: AtomicU64,
}

/// When packets came in. Times are microseconds of the plane's clock, plus 1; 0 is never.
#[derive(Default)]
struct Arrivals {
    last: AtomicU64,
    /// since the mark, in microseconds
    longest_gap: AtomicU64,
    /// the sequence numbers missing when the mark was set, plus 1; 0 without a mark
    missing: AtomicU64,
}

/// The next sequence number to send with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sequence {
    /// use this one
    Next(u64),
    /// use this one, and warn that few are left
    Soon(u64),
    /// there are no more; true when it is time to say so
    Exhausted(bool),
}

impl Sa {
    fn new(sa: &ChildSa) -> Result<Sa, PlaneError> {
        let outbound = Transform::new(sa.spi_out, sa.suite, sa.esn, &sa.keys_out)?;
        let inbound = Transform::new(sa.spi_in, sa.suite, sa.esn, &sa.keys_in)?;
        Ok(Sa {
            id: sa.id,
            reqid: sa.reqid,
            waits: sa.waits,
            spi_in: sa.spi_in,
            outbound,
            inbound,
            ts_local: sa.ts_local.clone(),
            ts_remote: sa.ts_remote.clone(),
            sequence: AtomicU64::new(0),
            last_sequence: if sa.esn { u64::MAX - u64::from(u32::MAX) } else { u32::MAX.into() },
            replay: Mutex::new(ReplayWindow::new(DEFAULT_WINDOW, sa.esn)),
            traffic: Traffic::default(),
            arrivals: Arrivals::default(),
            limits: sa.limits,
            allowance: AtomicU64::new(NO_CAP),
            told: AtomicBool::new(false),
            last_mapping: AtomicU64::new(0),
        })
    }

    /// Draws a sequence number; each is given once, and they never wrap (RFC 4303 §3.3.3).
    pub(super) fn next_sequence(&self) -> Sequence {
        let next = self.sequence.fetch_add(1, SeqCst).wrapping_add(1);
        if next > self.last_sequence {
            // Again and again, as the first word may have led to no successor.
            return Sequence::Exhausted((next - self.last_sequence) % 1024 == 1);
        }
        // A sixteenth of the shorter space: at 10 Gbit/s with full packets, five minutes.
        if next == self.last_sequence - (u64::from(u32::MAX) >> 4) {
            return Sequence::Soon(next);
        }
        Sequence::Next(next)
    }

    /// So many packets with `octets` together have gone out or come in; whether they are the first
    /// beyond the limits.
    pub(super) fn note(&self, out: bool, packets: u64, octets: usize) -> bool {
        let t = &self.traffic;
        let (count, total) = match out {
            true => (&t.packets_out, &t.octets_out),
            false => (&t.packets_in, &t.octets_in),
        };
        let packets = count.fetch_add(packets, Relaxed) + packets;
        let octets = octets as u64;
        let total = total.fetch_add(octets, Relaxed) + octets;
        self.limits.are_reached(total, packets) && !self.told.swap(true, Relaxed)
    }

    /// Limits what is sent to [`CAP`] times what comes in from now on, or lifts that.
    pub(super) fn cap(&self, on: bool) {
        self.allowance.store(if on { 0 } else { NO_CAP }, SeqCst);
    }

    /// A genuine packet of so many octets came on the path in use.
    pub(super) fn earn(&self, octets: usize) {
        let more = |left: u64| {
            (left != NO_CAP).then(|| left.saturating_add(CAP * octets as u64).min(NO_CAP - 1))
        };
        // Where nothing is limited nothing is to be counted.
        let _ = self.allowance.fetch_update(Relaxed, Relaxed, more);
    }

    /// Whether a packet of so many octets may be sent.
    pub(super) fn spend(&self, octets: usize) -> bool {
        self.allowance.load(Relaxed) == NO_CAP || {
            let less = |left: u64| match left {
                NO_CAP => Some(NO_CAP),
                left => left.checked_sub(octets as u64),
            };
            self.allowance.fetch_update(Relaxed, Relaxed, less).is_ok()
        }
    }

    /// A genuine packet has come in, `now` after the plane began.
    pub(super) fn arrived(&self, now: Duration) {
        let now = u64::try_from(now.as_micros()).unwrap_or(u64::MAX).saturating_add(1);
        // Two threads may be a packet apart: the later time stays.
        let last = self.arrivals.last.fetch_max(now, Relaxed);
        if last != 0 {
            self.arrivals.longest_gap.fetch_max(now.saturating_sub(last), Relaxed);
        }
    }

    /// Sets the mark of [`Sa::since_mark`].
    pub(super) fn mark(&self) {
        let missing = self.missing();
        self.arrivals.missing.store(missing.saturating_add(1), Relaxed);
        self.arrivals.longest_gap.store(0, Relaxed);
    }

    /// See [`crate::DataPlane::since_mark`].
    pub(super) fn since_mark(&self) -> Option<Since> {
        let before = self.arrivals.missing.load(Relaxed).checked_sub(1)?;
        let longest_gap = Duration::from_micros(self.arrivals.longest_gap.load(Relaxed));
        // One that was missing at the mark may have come since.
        Some(Since { longest_gap, lost: self.missing().saturating_sub(before) })
    }

    fn missing(&self) -> u64 {
        self.replay.lock().unwrap_or_else(PoisonError::into_inner).missing()
    }

    pub(super) fn counters(&self) -> Counters {
        let t = &self.traffic;
        Counters {
            octets_in: t.octets_in.load(Relaxed),
            octets_out: t.octets_out.load(Relaxed),
            packets_in: t.packets_in.load(Relaxed),
            packets_out: t.packets_out.load(Relaxed),
            rejected: t.rejected.load(Relaxed),
            wrong_path: t.wrong_path.load(Relaxed),
        }
    }

    #[cfg(test)]
    pub(super) fn set_sequence(&self, sequence: u64) {
        self.sequence.store(sequence, SeqCst);
    }
}

/// An SA and where it goes now.
#[derive(Clone)]
pub(super) struct Slot {
    pub(super) sa: Arc<Sa>,
    pub(super) path: Path,
}

/// A pair of selectors that leads outbound packets to an SA.
#[derive(Clone)]
struct Entry {
    local: TrafficSelector,
    remote: TrafficSelector,
    id: ChildId,
    /// the CHILD_SA that it is to succeed is still there
    waits: bool,
    slot: Slot,
}

impl Entry {
    /// Sorts the most specific first: few remote addresses, then few local ones, then one protocol,
    /// then few ports; among equals the newest, which is the successor of a rekey, unless that waits.
    fn rank(&self) -> impl Ord + use<> {
        (
            span(&self.remote),
            span(&self.local),
            self.remote.protocol() == 0,
            ports(&self.remote) + ports(&self.local),
            self.waits,
            std::cmp::Reverse(self.id),
        )
    }
}

fn span(selector: &TrafficSelector) -> u128 {
    match (selector.first(), selector.last()) {
        (IpAddr::V4(first), IpAddr::V4(last)) => (u32::from(last) - u32::from(first)).into(),
        (IpAddr::V6(first), IpAddr::V6(last)) => u128::from(last) - u128::from(first),
        _ => u128::MAX,
    }
}

fn ports(selector: &TrafficSelector) -> u32 {
    let (first, last) = selector.ports();
    u32::from(last.saturating_sub(first))
}

/// All SAs at one moment.
///
/// A change makes anew what has to do with it and shares all else with the table before, so that it costs the
/// same whether a gateway has a hundred clients or thousands that all move at once.
#[derive(Clone, Default)]
pub(super) struct Table {
    by_id: Shards<ChildId, Slot>,
    by_spi: Shards<EspSpi, Slot>,
    /// a CHILD_SA and the successors of its rekeys
    by_reqid: Shards<u32, Vec<ChildId>>,
    /// selectors with one remote address: a gateway has one per client
    hosts: Shards<IpAddr, Vec<Entry>>,
    nets: Arc<Vec<Entry>>,
}

impl Table {
    /// The table with `sa` in it.
    pub(super) fn with(&self, sa: &ChildSa) -> Result<Table, PlaneError> {
        if self.by_id.get(&sa.id).is_some() {
            return Err(PlaneError::Unsupported(format!("{:?} is installed already", sa.id)));
        }
        if self.by_spi.get(&sa.spi_in).is_some() {
            return Err(PlaneError::SpiInUse);
        }
        let mut table = self.clone();
        let slot = Slot { sa: Arc::new(Sa::new(sa)?), path: sa.path };
        table.by_id.of(&sa.id).insert(sa.id, slot.clone());
        table.by_spi.of(&sa.spi_in).insert(sa.spi_in, slot);
        table.by_reqid.of(&sa.reqid).entry(sa.reqid).or_default().push(sa.id);
        table.enter(sa.reqid);
        Ok(table)
    }

    /// The table without `id`.
    pub(super) fn without(&self, id: ChildId) -> Table {
        let mut table = self.clone();
        let Some(Slot { sa, .. }) = table.by_id.of(&id).remove(&id) else { return table };
        table.by_spi.of(&sa.spi_in).remove(&sa.spi_in);
        table.strike(&sa);
        let kin = table.by_reqid.of(&sa.reqid);
        if let Some(ids) = kin.get_mut(&sa.reqid) {
            ids.retain(|other| *other != id);
            if ids.is_empty() {
                kin.remove(&sa.reqid);
            }
        }
        table.enter(sa.reqid);
        table
    }

    /// The table with all of `moves` done; an error if one can't be.
    pub(super) fn moved(&self, moves: &[ChildMove]) -> Result<Table, PlaneError> {
        let mut table = self.clone();
        for ChildMove { id, path, .. } in moves {
            let slots = table.by_id.of(id);
            let slot = slots.get_mut(id).ok_or(PlaneError::UnknownChild(*id))?;
            slot.path = *path;
            let slot = slot.clone();
            let reqid = slot.sa.reqid;
            table.by_spi.of(&slot.sa.spi_in).insert(slot.sa.spi_in, slot);
            table.enter(reqid);
        }
        Ok(table)
    }

    /// Enters the selectors of an SA and of its kin anew: which of them waits depends on all of them.
    fn enter(&mut self, reqid: u32) {
        let ids = self.by_reqid.get(&reqid).cloned().unwrap_or_default();
        for &id in &ids {
            let Some(slot) = self.by_id.get(&id).cloned() else { continue };
            let waits = slot.sa.waits && ids.iter().any(|before| *before < id);
            self.strike(&slot.sa);
            for &local in &slot.sa.ts_local {
                for &remote in &slot.sa.ts_remote {
                    let entry = Entry { local, remote, id, waits, slot: slot.clone() };
                    let entries = if remote.first() == remote.last() {
                        self.hosts.of(&remote.first()).entry(remote.first()).or_default()
                    } else {
                        Arc::make_mut(&mut self.nets)
                    };
                    let at = entries.partition_point(|other| other.rank() <= entry.rank());
                    entries.insert(at, entry);
                }
            }
        }
    }

    /// Takes the selectors of an SA out.
    fn strike(&mut self, sa: &Sa) {
        for remote in &sa.ts_remote {
            if remote.first() != remote.last() {
                if self.nets.iter().any(|entry| entry.id == sa.id) {
                    Arc::make_mut(&mut self.nets).retain(|entry| entry.id != sa.id);
                }
            } else if self.hosts.get(&remote.first()).is_some() {
                let hosts = self.hosts.of(&remote.first());
                if let Some(entries) = hosts.get_mut(&remote.first()) {
                    entries.retain(|entry| entry.id != sa.id);
                    if entries.is_empty() {
                        hosts.remove(&remote.first());
                    }
                }
            }
        }
    }

    /// The SA that `id` names.
    pub(super) fn child(&self, id: ChildId) -> Option<&Slot> {
        self.by_id.get(&id)
    }

    /// The SA of an inbound packet, by its SPI alone (RFC 4301 §4.1): addresses may have changed.
    pub(super) fn inbound(&self, spi: EspSpi) -> Option<&Slot> {
        self.by_spi.get(&spi)
    }

    /// The SA for an outbound packet, by the most specific selectors that it matches.
    pub(super) fn outbound(&self, inner: &Inner) -> Option<&Slot> {
        let fits = |entry: &&Entry| inner.is_outbound(&entry.local, &entry.remote);
        let host = self.hosts.get(&inner.destination).and_then(|entries| entries.iter().find(fits));
        host.or_else(|| self.nets.iter().find(fits)).map(|entry| &entry.slot)
    }
}

/// The table as all threads share it.
#[derive(Default)]
pub(super) struct Shared {
    now: RwLock<Arc<Table>>,
    /// goes up after each change
    version: AtomicU64,
}

impl Shared {
    /// The table of now. The lock is held for no longer than it takes to count a reference.
    pub(super) fn load(&self) -> Arc<Table> {
        self.now.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Another number after each [`Shared::store`]: a table that was loaded after it was read is that of
    /// now for as long as it stays the same.
    pub(super) fn version(&self) -> u64 {
        self.version.load(SeqCst)
    }

    /// Puts `table` in the place of the one before.
    pub(super) fn store(&self, table: Table) {
        let table = Arc::new(table);
        let old = std::mem::replace(
            &mut *self.now.write().unwrap_or_else(PoisonError::into_inner),
            table,
        );
        self.version.fetch_add(1, SeqCst);
        // The old table may be large: it is taken apart outside the lock.
        drop(old);
    }
}

#[cfg(test)]
mod tests {
    use super::{super::tests::child, *};

    fn choose(table: &Table, packet: &[u8]) -> Option<u64> {
        table.outbound(&Inner::parse(packet).unwrap()).map(|slot| slot.sa.id.0)
    }

    fn with_selectors(id: u64, local: &[&str], remote: &[&str]) -> ChildSa {
        let parse = |nets: &[&str]| {
            nets.iter().map(|net| TrafficSelector::from_net(net.parse().unwrap())).collect()
        };
        ChildSa { ts_local: parse(local), ts_remote: parse(remote), ..child(id) }
    }

    #[test]
    fn m_5_3_2_a_capped_sa_sends_three_times_what_came_in() {
        let table = Table::default().with(&with_selectors(1, &["10.9.0.0/24"], &["10.1.0.0/16"]));
        let table = table.unwrap();
        let sa = &table.child(ChildId(1)).unwrap().sa;
        assert!(sa.spend(1 << 40), "nothing is limited at first");
        sa.cap(true);
        assert!(!sa.spend(1), "nothing has come from there");
        sa.earn(100);
        assert!(sa.spend(200) && !sa.spend(101) && sa.spend(100) && !sa.spend(1));
        sa.cap(false);
        sa.earn(100);
        assert!(sa.spend(1 << 40) && sa.spend(1 << 40), "and nothing again");
    }

    #[test]
    fn the_most_specific_selectors_choose() {
        let any = "10.9.0.0/24";
        let mut table = Table::default();
        let dns = TrafficSelector::new(
            17,
            (53, 53),
            "10.1.2.0".parse().unwrap(),
            "10.1.2.255".parse().unwrap(),
        );
        let narrow = ChildSa { ts_remote: vec![dns.unwrap()], ..with_selectors(5, &[any], &[]) };
        for sa in [
            with_selectors(1, &[any], &["0.0.0.0/0"]),
            with_selectors(2, &[any], &["10.1.0.0/16", "10.2.0.0/16"]),
            with_selectors(3, &[any], &["10.1.2.0/24"]),
            with_selectors(4, &["10.9.0.7/32"], &["10.1.2.0/24"]),
            narrow,
            with_selectors(6, &[any], &["10.1.2.3/32"]),
        ] {
            table = table.with(&sa).unwrap();
        }
        let packet = |source: &str, destination: &str, port| {
            super::super::selector::tests::udp(source, destination, (1000, port), b"")
        };
        assert_eq!(choose(&table, &packet("10.9.0.1", "192.0.2.1", 1)), Some(1));
        assert_eq!(choose(&table, &packet("10.9.0.1", "10.2.0.1", 1)), Some(2));
        assert_eq!(choose(&table, &packet("10.9.0.1", "10.1.2.1", 1)), Some(3));
        assert_eq!(choose(&table, &packet("10.9.0.7", "10.1.2.1", 1)), Some(4));
        assert_eq!(choose(&table, &packet("10.9.0.1", "10.1.2.1", 53)), Some(5));
        assert_eq!(choose(&table, &packet("10.9.0.1", "10.1.2.3", 53)), Some(6));
        assert_eq!(choose(&table, &packet("10.8.0.1", "10.1.2.3", 53)), None);
        assert_eq!(choose(&table, &packet("2001:db8::1", "2001:db8::2", 53)), None);
    }

    #[test]
    fn k_2_8_1_the_successor_of_a_rekey_carries_the_traffic() {
        let (local, remote) = (["10.9.0.1/32"], ["10.1.0.0/16"]);
        let table = Table::default().with(&with_selectors(1, &local, &remote)).unwrap();
        let packet = super::super::selector::tests::udp("10.9.0.1", "10.1.0.1", (1, 1), b"");
        assert_eq!(choose(&table, &packet), Some(1));
        let table = table.with(&with_selectors(2, &local, &remote)).unwrap();
        assert_eq!(choose(&table, &packet), Some(2));
        assert!(table.inbound(child(1).spi_in).is_some());
        let table = table.without(ChildId(1));
        assert!(table.inbound(child(1).spi_in).is_none());
        assert_eq!(choose(&table, &packet), Some(2));
    }

    #[test]
    fn k_2_8_1_a_successor_that_the_peer_asked_for_waits_for_its_predecessor_to_go() {
        let (local, remote) = (["10.9.0.1/32"], ["10.1.0.0/16"]);
        let successor = |id| ChildSa { reqid: 1, ..with_selectors(id, &local, &remote) };
        let packet = super::super::selector::tests::udp("10.9.0.1", "10.1.0.1", (1, 1), b"");
        let table = Table::default().with(&successor(1)).unwrap();
        let table = table.with(&ChildSa { waits: true, ..successor(2) }).unwrap();
        assert_eq!(choose(&table, &packet), Some(1));
        assert!(table.inbound(child(2).spi_in).is_some());
        // Ours, which crossed it, does not wait.
        assert_eq!(choose(&table.with(&successor(3)).unwrap(), &packet), Some(3));
        assert_eq!(choose(&table.without(ChildId(1)), &packet), Some(2));
    }

    #[test]
    fn a_move_is_all_or_nothing() {
        let table = Table::default().with(&child(1)).unwrap().with(&child(2)).unwrap();
        let path = Path::new("192.0.2.9:4500".parse().unwrap(), child(1).path.remote);
        let step = |id| ChildMove { id: ChildId(id), path, encap: true };
        assert!(matches!(
            table.moved(&[step(1), step(3)]),
            Err(PlaneError::UnknownChild(ChildId(3)))
        ));
        assert_eq!(table.child(ChildId(1)).unwrap().path, child(1).path);
        let moved = table.moved(&[step(1), step(2)]).unwrap();
        for id in [1, 2] {
            assert_eq!(moved.child(ChildId(id)).unwrap().path, path);
            assert_eq!(moved.inbound(child(id).spi_in).unwrap().path, path);
        }
    }

    #[test]
    fn rfc_4303_3_3_3_sequence_numbers_end_before_they_wrap() {
        let table = Table::default().with(&child(1)).unwrap();
        let sa = &table.child(ChildId(1)).unwrap().sa;
        assert_eq!(sa.next_sequence(), Sequence::Next(1));
        sa.set_sequence(0xefff_ffff);
        assert_eq!(sa.next_sequence(), Sequence::Soon(0xf000_0000));
        assert_eq!(sa.next_sequence(), Sequence::Next(0xf000_0001));
        sa.set_sequence(0xffff_fffe);
        assert_eq!(sa.next_sequence(), Sequence::Next(0xffff_ffff));
        assert_eq!(sa.next_sequence(), Sequence::Exhausted(true));
        assert_eq!(sa.next_sequence(), Sequence::Exhausted(false));
    }

    #[test]
    fn rfc_4303_3_3_3_extended_sequence_numbers_end_before_they_wrap() {
        let table = Table::default().with(&ChildSa { esn: true, ..child(1) }).unwrap();
        let sa = &table.child(ChildId(1)).unwrap().sa;
        sa.set_sequence(0xefff_ffff);
        assert_eq!(sa.next_sequence(), Sequence::Next(0xf000_0000));
        sa.set_sequence(u32::MAX.into());
        assert_eq!(sa.next_sequence(), Sequence::Next(1 << 32));
        sa.set_sequence(0xffff_fffe_efff_ffff);
        assert_eq!(sa.next_sequence(), Sequence::Next(0xffff_fffe_f000_0000));
        assert_eq!(sa.next_sequence(), Sequence::Soon(0xffff_fffe_f000_0001));
        let last = 0xffff_ffff_0000_0000;
        sa.set_sequence(last - 1);
        assert_eq!(sa.next_sequence(), Sequence::Next(last));
        assert_eq!(sa.next_sequence(), Sequence::Exhausted(true));
    }

    /// RFC 4301 §4.4.2.1.
    #[test]
    fn a_limit_is_said_once_by_the_packet_that_reaches_it() {
        let with = |octets, packets| {
            let table =
                Table::default().with(&ChildSa { limits: Limits { octets, packets }, ..child(1) });
            table.unwrap().child(ChildId(1)).unwrap().sa.clone()
        };
        // Which of ten packets of 100 octets says so, where only one direction counts.
        let said =
            |sa: &Sa, out| -> Vec<usize> { (1..=10).filter(|_| sa.note(out, 1, 100)).collect() };
        for out in [false, true] {
            assert_eq!(said(&with(None, None), out), []);
            assert_eq!(said(&with(None, Some(3)), out), [3]);
            assert_eq!(said(&with(Some(500), None), out), [5]);
            assert_eq!(said(&with(Some(501), None), out), [6]);
            assert_eq!(said(&with(Some(500), Some(3)), out), [3]);
            assert_eq!(said(&with(Some(200), Some(3)), out), [2]);
            assert_eq!(said(&with(Some(0), None), out), [1]);
            assert_eq!(said(&with(Some(1001), Some(11)), out), []);
        }
        let sa = with(None, Some(3));
        assert!(![true, true, false, false].into_iter().any(|out| sa.note(out, 1, 100)));
        assert!(sa.note(false, 1, 100), "each direction has its own count");
        assert!(!sa.note(true, 1, 100), "one successor is enough");
    }

    #[test]
    fn gaps_and_losses_count_from_the_mark() {
        let table = Table::default().with(&child(1)).unwrap();
        let sa = &table.child(ChildId(1)).unwrap().sa;
        let comes = |sequence, at| {
            assert!(sa.replay.lock().unwrap().accept(sequence));
            sa.arrived(Duration::from_millis(at));
        };
        let since = |gap, lost| Some(Since { longest_gap: Duration::from_millis(gap), lost });
        comes(1, 0);
        comes(4, 500);
        assert_eq!(sa.since_mark(), None);
        sa.mark();
        assert_eq!(sa.since_mark(), since(0, 0));
        comes(7, 700);
        assert_eq!(sa.since_mark(), since(200, 2), "the silence before the mark counts");
        comes(8, 750);
        assert_eq!(sa.since_mark(), since(200, 2));
        comes(6, 749);
        assert_eq!(sa.since_mark(), since(200, 1), "overtaken, and seen by another thread");
        comes(9, 1050);
        assert_eq!(sa.since_mark(), since(300, 1));
        sa.mark();
        assert_eq!(sa.since_mark(), since(0, 0));
        comes(5, 1051);
        assert_eq!(sa.since_mark(), since(1, 0), "lost before the mark, and then not");
    }

    /// However they come and go, a table is what one that was made of the same SAs at once would be.
    #[test]
    fn a_table_has_no_memory() {
        let nets = |id: u64| match id % 3 {
            0 => vec!["10.1.0.0/16"],
            1 => vec!["10.9.0.7/32"],
            _ => vec!["10.9.0.7/32", "10.9.0.8/32", "10.2.0.0/16"],
        };
        let sa = |id: u64| ChildSa {
            reqid: (id % 4) as u32,
            waits: id.is_multiple_of(2),
            ..with_selectors(id, &["10.9.0.0/24"], &nets(id))
        };
        let packets = ["10.1.0.1", "10.9.0.7", "10.9.0.8", "10.2.0.1"]
            .map(|to| super::super::selector::tests::udp("10.9.0.1", to, (1, 1), b""));
        let mut table = Table::default();
        let mut there = std::collections::BTreeSet::new();
        let mut random = 1_u64;
        for _ in 0..500 {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let id = (random >> 33) % 12;
            table = if there.remove(&id) {
                table.without(ChildId(id))
            } else {
                there.insert(id);
                table.with(&sa(id)).unwrap()
            };
            let anew =
                there.iter().fold(Table::default(), |table, id| table.with(&sa(*id)).unwrap());
            for packet in &packets {
                assert_eq!(choose(&table, packet), choose(&anew, packet), "{there:?}");
            }
        }
        there.iter().for_each(|id| table = table.without(ChildId(*id)));
        assert!(packets.iter().all(|packet| choose(&table, packet).is_none()));
        assert!(table.nets.is_empty() && table.hosts.is_empty() && table.by_reqid.is_empty());
    }

    #[test]
    fn spis_and_names_are_used_once() {
        let table = Table::default().with(&child(1)).unwrap();
        assert!(table.with(&child(1)).is_err());
        let same_spi = ChildSa { spi_in: child(1).spi_in, ..child(2) };
        assert!(matches!(table.with(&same_spi), Err(PlaneError::SpiInUse)));
    }
}
