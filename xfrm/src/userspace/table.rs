//! The SAs of the userspace plane and how packets find theirs.
//!
//! Readers take a snapshot and never wait for a change in the making; every change builds a new table
//! and swaps it in, so that a move of any number of SAs happens between two packets (RFC 4555 §3.5).

use std::{
    net::IpAddr,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
};

use bewick_ike::{ChildId, ChildMove, ChildSa, EspSpi, Mode, Path, TrafficSelector};

use super::{sa::Sa, selector::Inner, shards::Shards};
use crate::PlaneError;

/// An SA and where it goes now.
#[derive(Clone)]
pub(super) struct Slot {
    pub(super) sa: Arc<Sa>,
    pub(super) path: Path,
    /// it is about to go, and none waits for it
    retired: bool,
}

/// A pair of selectors that leads outbound packets to an SA.
#[derive(Clone)]
struct Entry {
    local: TrafficSelector,
    remote: TrafficSelector,
    id: ChildId,
    /// the CHILD_SA that it is to succeed is still there, or it is itself about to go
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
        if sa.mode == Mode::Transport {
            return Err(PlaneError::Unsupported(
                "the userspace data plane has no transport mode: let dataplane be \"kernel\", or mode be \
                 \"tunnel\""
                    .into(),
            ));
        }
        let mut table = self.clone();
        let slot = Slot { sa: Arc::new(Sa::new(sa)?), path: sa.path, retired: false };
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

    /// The table in which others send instead of `ids`.
    pub(super) fn retired(&self, ids: &[ChildId]) -> Table {
        let mut table = self.clone();
        for id in ids {
            let Some(slot) = table.by_id.of(id).get_mut(id) else { continue };
            slot.retired = true;
            let reqid = slot.sa.reqid;
            table.enter(reqid);
        }
        table
    }

    /// Enters the selectors of an SA and of its kin anew: which of them waits depends on all of them.
    fn enter(&mut self, reqid: u32) {
        let ids = self.by_reqid.get(&reqid).cloned().unwrap_or_default();
        for &id in &ids {
            let Some(slot) = self.by_id.get(&id).cloned() else { continue };
            let stays = |other: &ChildId| self.by_id.get(other).is_some_and(|slot| !slot.retired);
            let comes = slot.sa.waits && ids.iter().any(|before| *before < id && stays(before));
            let waits = slot.retired || comes;
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
        // It still receives when it is about to go, also after a move.
        let path = Path::new("192.0.2.9:4500".parse().unwrap(), child(1).path.remote);
        let moved = ChildMove { id: ChildId(1), path, encap: true };
        for table in
            [table.retired(&[ChildId(1)]), table.retired(&[ChildId(1)]).moved(&[moved]).unwrap()]
        {
            assert_eq!(choose(&table, &packet), Some(2));
            assert!(table.inbound(child(1).spi_in).is_some());
        }
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
        let transport = ChildSa { mode: Mode::Transport, ..child(2) };
        let refusal = table.with(&transport).err().map(|error| error.to_string());
        assert!(refusal.unwrap().contains("no transport mode"));
        let same_spi = ChildSa { spi_in: child(1).spi_in, ..child(2) };
        assert!(matches!(table.with(&same_spi), Err(PlaneError::SpiInUse)));
    }
}
