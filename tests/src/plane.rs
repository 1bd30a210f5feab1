//! A toy data plane: does what the machines ask and carries numbered packets of fake ESP.
//!
//! A packet is SPI, sequence number, a number of the test's choice, and a checksum over these and the
//! outbound keys, so that the other end notices if the two ends' keys differ. It is strict where a
//! real plane may be lenient: everything that it is asked must make sense, and a sequence number
//! never comes twice (RFC 4303 §2.2).

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    time::Duration,
};

use bewick_ike::{ChildId, ChildMove, ChildSa, EspKeys, Mode, Path, Time, TrafficSelector};

use crate::net::{Datagram, Protocol};

/// A CHILD_SA in the toy plane.
#[derive(Clone, Debug)]
pub struct Child {
    /// as it was installed, on the path that it has now
    pub sa: ChildSa,
    sequence: u32,
    told: bool,
    retired: bool,
    seen: BTreeSet<u32>,
    /// what it may still send, if that is limited
    allowance: Option<u64>,
}

/// What a plane was asked, in order, with whether it did it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// a CHILD_SA was installed
    Installed(ChildId),
    /// CHILD_SAs were moved
    Moved(Vec<ChildMove>),
    /// a CHILD_SA was removed
    Removed(ChildId),
    /// the plane refused, for this reason
    Refused(String),
    /// others are to send instead of these
    Retired(Vec<ChildId>),
    /// these may send only so much, or as much as they like again
    Capped(Vec<ChildId>, bool),
}

/// What became of a packet that arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    /// delivered
    Packet {
        /// the CHILD_SA that it came by
        child: ChildId,
        /// the test's number in it
        number: u64,
        /// it came by another path than the CHILD_SA's (RFC 4555 §3.12)
        wrong_path: bool,
    },
    /// no CHILD_SA has its SPI
    UnknownSpi,
    /// the checksum is wrong: the ends' keys differ
    BadKeys,
    /// its sequence number was seen before
    Replayed,
    /// it is too short
    Malformed,
}

/// One end's data plane.
#[derive(Debug, Default)]
pub struct Plane {
    sent: u64,
    children: BTreeMap<ChildId, Child>,
    used: BTreeSet<ChildId>,
    refuse: u32,
    expiring: Vec<ChildId>,
    log: Vec<(Time, Change)>,
}

const PACKET: usize = 24;

impl Plane {
    /// A plane without CHILD_SAs.
    pub fn new() -> Self {
        Plane::default()
    }

    /// Makes the next `times` installs or moves fail, as a kernel may refuse them.
    pub fn refuse_next(&mut self, times: u32) {
        self.refuse = times;
    }

    /// The CHILD_SAs, oldest first.
    pub fn children(&self) -> impl Iterator<Item = &Child> {
        self.children.values()
    }

    /// All that was asked so far.
    pub fn log(&self) -> &[(Time, Change)] {
        &self.log
    }

    /// The single path that all CHILD_SAs use, if there is one.
    pub fn path(&self) -> Option<Path> {
        let paths: BTreeSet<Path> = self.children.values().map(|child| child.sa.path).collect();
        if paths.len() == 1 { paths.into_iter().next() } else { None }
    }

    /// Installs a CHILD_SA.
    ///
    /// # Errors
    /// The reason in words: asked to refuse, name or SPI used twice, reserved SPI, keys of a wrong
    /// length, no selectors, two families in the path.
    pub fn install(&mut self, now: Time, sa: ChildSa) -> Result<(), String> {
        let result = self.refusal().and_then(|()| self.check(&sa));
        let id = sa.id;
        if result.is_ok() {
            self.used.insert(id);
            let child = Child {
                sa,
                sequence: 0,
                told: false,
                retired: false,
                seen: BTreeSet::new(),
                allowance: None,
            };
            self.children.insert(id, child);
        }
        self.note(now, Change::Installed(id), result)
    }

    /// Moves all or none.
    ///
    /// # Errors
    /// The reason in words: asked to refuse, an unknown CHILD_SA, one that is no tunnel, two families in a path.
    pub fn move_children(&mut self, now: Time, moves: &[ChildMove]) -> Result<(), String> {
        let mut result = self.refusal();
        for step in moves {
            if !self.children.contains_key(&step.id) {
                result = Err(format!("move of {:?}, which is not installed", step.id));
            }
            if self.children.get(&step.id).is_some_and(|c| c.sa.mode == Mode::Transport) {
                result = Err(format!("move of {:?}, which is in transport mode", step.id));
            }
            if step.path.local.is_ipv4() != step.path.remote.is_ipv4() {
                result = Err(format!("two families in {}", step.path));
            }
        }
        if result.is_ok() {
            for step in moves {
                if let Some(child) = self.children.get_mut(&step.id) {
                    child.sa.path = step.path;
                    child.sa.encap = step.encap;
                }
            }
        }
        self.note(now, Change::Moved(moves.to_vec()), result)
    }

    /// From now on no more than three times what comes in, or no limit again.
    pub fn cap(&mut self, now: Time, children: &[ChildId], on: bool) {
        for id in children {
            if let Some(child) = self.children.get_mut(id) {
                child.allowance = on.then_some(0);
            }
        }
        self.log.push((now, Change::Capped(children.to_vec(), on)));
    }

    /// Has others send instead of these.
    pub fn retire(&mut self, now: Time, children: &[ChildId]) {
        for id in children {
            if let Some(child) = self.children.get_mut(id) {
                child.retired = true;
            }
        }
        self.log.push((now, Change::Retired(children.to_vec())));
    }

    /// Removes a CHILD_SA; no error if it is gone already.
    pub fn remove(&mut self, now: Time, id: ChildId) {
        self.children.remove(&id);
        self.log.push((now, Change::Removed(id)));
    }

    /// A packet with `number` in it by the newest CHILD_SA that neither waits for the one before it to
    /// go nor is about to go itself, or by one that is, or `None` if there is none.
    pub fn emit(&mut self, number: u64) -> Option<Datagram> {
        let has_older = |new: &ChildSa| {
            self.children.range(..new.id).any(|(_, old)| old.sa.reqid == new.reqid && !old.retired)
        };
        let mut newest = self.children.iter().rev();
        let sender = newest
            .clone()
            .find(|(_, child)| !child.retired && (!child.sa.waits || !has_older(&child.sa)))
            .or_else(|| newest.next());
        let id = *sender?.0;
        self.emit_by(id, number)
    }

    /// A packet with `number` in it by this CHILD_SA, or `None` if there is none of that name.
    pub fn emit_by(&mut self, id: ChildId, number: u64) -> Option<Datagram> {
        let child = self.children.get_mut(&id)?;
        if let Some(allowance) = &mut child.allowance {
            *allowance = allowance.checked_sub(PACKET as u64)?;
        }
        child.sequence += 1;
        self.sent += 1;
        let (sent, octets) = (u64::from(child.sequence), PACKET as u64);
        if child.sa.limits.are_reached(sent * octets, sent)
            && !std::mem::replace(&mut child.told, true)
        {
            self.expiring.push(id);
        }
        let spi = child.sa.spi_out.0;
        let mut payload = Vec::with_capacity(PACKET);
        payload.extend(spi.to_be_bytes());
        payload.extend(child.sequence.to_be_bytes());
        payload.extend(number.to_be_bytes());
        let sum = checksum(&child.sa.keys_out, &payload);
        payload.extend(sum.to_be_bytes());
        let Path { local, remote, .. } = child.sa.path;
        Some(if child.sa.encap || child.sa.path.is_tcp() {
            Datagram::on(child.sa.path, payload)
        } else {
            let bare = |addr: SocketAddr| SocketAddr::new(addr.ip(), 0);
            Datagram { protocol: Protocol::Esp, src: bare(local), dst: bare(remote), payload }
        })
    }

    /// The packets that it has sent so far.
    pub fn sent(&self) -> u64 {
        self.sent
    }

    /// The CHILD_SAs that have reached their limits since this was asked last.
    pub fn take_expiring(&mut self) -> Vec<ChildId> {
        std::mem::take(&mut self.expiring)
    }

    /// Takes a packet of fake ESP.
    pub fn receive(&mut self, datagram: &Datagram) -> Received {
        let payload = &datagram.payload;
        let (Some(spi), Some(sequence), Some(number), Some(sum)) =
            (word(payload, 0), word(payload, 4), long(payload, 8), long(payload, 16))
        else {
            return Received::Malformed;
        };
        let mut children = self.children.values_mut();
        let Some(child) = children.find(|child| child.sa.spi_in.0 == spi) else {
            return Received::UnknownSpi;
        };
        if sum != checksum(&child.sa.keys_in, &payload[..16]) {
            return Received::BadKeys;
        }
        if !child.seen.insert(sequence) {
            return Received::Replayed;
        }
        let path = child.sa.path;
        let wrong_path = match datagram.protocol {
            Protocol::Udp => Path::new(datagram.dst, datagram.src) != path,
            Protocol::Tcp => Path::tcp(datagram.dst, datagram.src) != path,
            Protocol::Esp => {
                (datagram.dst.ip(), datagram.src.ip()) != (path.local.ip(), path.remote.ip())
            }
        };
        if let Some(allowance) = child.allowance.as_mut().filter(|_| !wrong_path) {
            *allowance += 3 * payload.len() as u64;
        }
        Received::Packet { child: child.sa.id, number, wrong_path }
    }

    fn refusal(&mut self) -> Result<(), String> {
        if self.refuse == 0 {
            return Ok(());
        }
        self.refuse -= 1;
        Err("the plane was told to refuse".to_owned())
    }

    fn check(&self, sa: &ChildSa) -> Result<(), String> {
        let ChildSa { id, spi_in, spi_out, suite, path, .. } = sa;
        if self.used.contains(id) {
            return Err(format!("{id:?} was used before"));
        }
        if self.children.values().any(|child| child.sa.spi_in == *spi_in) {
            return Err(format!("inbound SPI {spi_in} is in use"));
        }
        if spi_in.0 < 256 || spi_out.0 < 256 {
            return Err(format!("SPI {spi_in} or {spi_out} is reserved"));
        }
        for keys in [&sa.keys_in, &sa.keys_out] {
            if keys.encryption.len() != suite.encryption_key_len()
                || keys.integrity.len() != suite.integrity_key_len()
            {
                return Err(format!("keys of {id:?} have a wrong length"));
            }
        }
        if sa.keys_in == sa.keys_out {
            return Err(format!("{id:?} has the same keys in both directions"));
        }
        if sa.ts_local.is_empty() || sa.ts_remote.is_empty() {
            return Err(format!("{id:?} has no traffic selectors"));
        }
        if path.local.is_ipv4() != path.remote.is_ipv4() {
            return Err(format!("two families in {path}"));
        }
        let hosts = |all: &[TrafficSelector], host| {
            all.iter().all(|ts| (ts.first(), ts.last()) == (host, host))
        };
        let between_ends =
            hosts(&sa.ts_local, path.local.ip()) && hosts(&sa.ts_remote, path.remote.ip());
        if sa.mode == Mode::Transport && (sa.encap || !between_ends) {
            return Err(format!("{id:?} is in transport mode and not between the ends of {path}"));
        }
        Ok(())
    }

    fn note(&mut self, now: Time, done: Change, result: Result<(), String>) -> Result<(), String> {
        let change = match &result {
            Ok(()) => done,
            Err(reason) => Change::Refused(reason.clone()),
        };
        self.log.push((now, change));
        result
    }
}

/// Whether two installed CHILD_SAs are the two ends of one: SPIs, keys, algorithms and selectors
/// cross over. Paths are not looked at, for a NAT may be between.
pub fn are_two_ends(one: &ChildSa, other: &ChildSa) -> bool {
    one.spi_in == other.spi_out
        && one.spi_out == other.spi_in
        && one.keys_in == other.keys_out
        && one.keys_out == other.keys_in
        && one.mode == other.mode
        && one.suite == other.suite
        && one.esn == other.esn
        && one.ts_local == other.ts_remote
        && one.ts_remote == other.ts_local
        && one.encap == other.encap
}

/// Numbered packets in one direction: when each was sent and when it came.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Flow {
    sent: BTreeMap<u64, Time>,
    received: BTreeMap<u64, Time>,
    twice: u64,
}

impl Flow {
    /// Notes that `number` was sent, on the way or not.
    pub fn note_sent(&mut self, now: Time, number: u64) {
        self.sent.insert(number, now);
    }

    /// Notes that `number` came.
    pub fn note_received(&mut self, now: Time, number: u64) {
        if self.received.insert(number, now).is_some() {
            self.twice += 1;
        }
    }

    /// How many were sent.
    pub fn sent(&self) -> usize {
        self.sent.len()
    }

    /// How many came.
    pub fn received(&self) -> usize {
        self.received.len()
    }

    /// How many came more than once.
    pub fn twice(&self) -> u64 {
        self.twice
    }

    /// The numbers that never came.
    pub fn lost(&self) -> Vec<u64> {
        self.sent.keys().filter(|number| !self.received.contains_key(number)).copied().collect()
    }

    /// The longest time between two arrivals from `from` on; the time since the last one counts
    /// too, up to `to`.
    pub fn longest_gap(&self, from: Time, to: Time) -> Duration {
        let mut times: Vec<Time> =
            self.received.values().copied().filter(|time| *time >= from && *time <= to).collect();
        times.sort_unstable();
        times.insert(0, from);
        times.push(to);
        times.windows(2).map(|pair| pair[1].since(pair[0])).max().unwrap_or_default()
    }

    /// When the first packet came that was sent at `time` or later.
    pub fn first_after(&self, time: Time) -> Option<Time> {
        let late = self.sent.iter().filter(|(_, sent)| **sent >= time);
        late.filter_map(|(number, _)| self.received.get(number)).min().copied()
    }
}

fn word(data: &[u8], at: usize) -> Option<u32> {
    let octets = data.get(at..at + 4)?.try_into().ok()?;
    Some(u32::from_be_bytes(octets))
}

fn long(data: &[u8], at: usize) -> Option<u64> {
    let octets = data.get(at..at + 8)?.try_into().ok()?;
    Some(u64::from_be_bytes(octets))
}

/// FNV-1a over keys and data: tells keys apart, protects nothing.
fn checksum(keys: &EspKeys, data: &[u8]) -> u64 {
    let all = keys.encryption.expose().iter().chain(keys.integrity.expose()).chain(data);
    all.fold(0xcbf2_9ce4_8422_2325, |sum, octet| {
        (sum ^ u64::from(*octet)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use bewick_ike::{EspSpi, EspSuite, Secret, TrafficSelector};

    use super::*;

    const NOW: Time = Time::ZERO;

    fn at(text: &str) -> SocketAddr {
        text.parse().expect("an address and port")
    }

    fn keys(fill: u8) -> EspKeys {
        EspKeys { encryption: vec![fill; 20].into(), integrity: Secret::default() }
    }

    fn ends(encap: bool) -> (ChildSa, ChildSa) {
        let net: IpAddr = "10.1.0.1".parse().expect("an address");
        let virtual_ip: IpAddr = "10.9.0.1".parse().expect("an address");
        let one = ChildSa {
            id: ChildId(1),
            reqid: 1,
            spi_in: EspSpi(0x1000),
            spi_out: EspSpi(0x2000),
            mode: Default::default(),
            suite: EspSuite::AesGcm16 { key_bits: 128 },
            esn: false,
            keys_in: keys(1),
            keys_out: keys(2),
            ts_local: vec![TrafficSelector::from_addr(virtual_ip)],
            ts_remote: vec![TrafficSelector::from_addr(net)],
            path: Path::new(at("198.51.100.2:4500"), at("192.0.2.1:4500")),
            encap,
            virtual_ips: vec![virtual_ip],
            waits: false,
            limits: Default::default(),
            carriage: Default::default(),
        };
        let other = ChildSa {
            id: ChildId(7),
            spi_in: one.spi_out,
            spi_out: one.spi_in,
            keys_in: keys(2),
            keys_out: keys(1),
            ts_local: one.ts_remote.clone(),
            ts_remote: one.ts_local.clone(),
            path: Path::new(one.path.remote, one.path.local),
            virtual_ips: Vec::new(),
            waits: false,
            ..one.clone()
        };
        (one, other)
    }

    #[test]
    fn a_packet_crosses_with_and_without_udp() {
        for encap in [false, true] {
            let (one, other) = ends(encap);
            assert!(are_two_ends(&one, &other));
            let (mut left, mut right) = (Plane::new(), Plane::new());
            left.install(NOW, one).expect("installed");
            right.install(NOW, other).expect("installed");
            let packet = left.emit(42).expect("a packet");
            assert_eq!(packet.protocol == Protocol::Udp, encap);
            let child = ChildId(7);
            let good = Received::Packet { child, number: 42, wrong_path: false };
            assert_eq!(right.receive(&packet), good);
            assert_eq!(right.receive(&packet), Received::Replayed);
            let mut next = left.emit(43).expect("a packet");
            next.src = at("198.51.100.3:4500");
            let stray = Received::Packet { child, number: 43, wrong_path: true };
            assert_eq!(right.receive(&next), stray);
        }
    }

    #[test]
    fn different_keys_and_unknown_spis_are_noticed() {
        let (one, mut other) = ends(true);
        let (mut left, mut right) = (Plane::new(), Plane::new());
        left.install(NOW, one.clone()).expect("installed");
        let packet = left.emit(1).expect("a packet");
        assert_eq!(right.receive(&packet), Received::UnknownSpi);
        other.keys_in = keys(9);
        assert!(!are_two_ends(&one, &other));
        right.install(NOW, other).expect("installed");
        assert_eq!(right.receive(&packet), Received::BadKeys);
    }

    #[test]
    fn a_move_is_all_or_nothing_and_keeps_the_sequence_number() {
        let (one, _) = ends(true);
        let (id, old) = (one.id, one.path);
        let mut plane = Plane::new();
        plane.install(NOW, one).expect("installed");
        plane.emit(1);
        let path = Path::new(at("10.0.0.2:4500"), old.remote);
        let good = ChildMove { id, path, encap: true };
        let unknown = ChildMove { id: ChildId(99), path, encap: true };
        assert!(plane.move_children(NOW, &[good, unknown]).is_err());
        assert_eq!(plane.path(), Some(old));
        plane.refuse_next(1);
        assert!(plane.move_children(NOW, &[good]).is_err());
        assert_eq!(plane.path(), Some(old));
        assert!(plane.move_children(NOW, &[good]).is_ok());
        assert_eq!(plane.path(), Some(path));
        let packet = plane.emit(2).expect("a packet");
        assert_eq!(packet.src, path.local);
        assert_eq!(word(&packet.payload, 4), Some(2));
    }

    #[test]
    fn nonsense_is_refused() {
        let (one, _) = ends(true);
        let mut plane = Plane::new();
        let short = EspKeys { encryption: vec![1; 16].into(), integrity: Secret::default() };
        assert!(plane.install(NOW, ChildSa { keys_in: short, ..one.clone() }).is_err());
        assert!(plane.install(NOW, ChildSa { spi_in: EspSpi(255), ..one.clone() }).is_err());
        assert!(plane.install(NOW, ChildSa { keys_in: keys(2), ..one.clone() }).is_err());
        assert!(plane.install(NOW, one.clone()).is_ok());
        assert!(plane.install(NOW, ChildSa { id: ChildId(2), ..one.clone() }).is_err());
        plane.remove(NOW, one.id);
        assert!(plane.install(NOW, one).is_err(), "a name is never used again");
        assert_eq!(plane.log().len(), 7);
    }

    #[test]
    fn a_flow_knows_its_gap_and_its_losses() {
        let ms = |n: u64| Time::from_micros(n * 1000);
        let mut flow = Flow::default();
        for n in 0..10 {
            flow.note_sent(ms(n), n);
            if !(3..6).contains(&n) {
                flow.note_received(ms(n + 20), n);
            }
        }
        assert_eq!(flow.lost(), [3, 4, 5]);
        assert_eq!(flow.longest_gap(ms(20), ms(29)), Duration::from_millis(4));
        assert_eq!(flow.longest_gap(ms(20), ms(40)), Duration::from_millis(11));
        assert_eq!(flow.first_after(ms(3)), Some(ms(26)));
        assert_eq!((flow.sent(), flow.received(), flow.twice()), (10, 7, 0));
    }
}
