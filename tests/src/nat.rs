//! Network address translators, in the words of RFC 4787: mapping, filtering, expiry.
//!
//! A NAT has a realm of its own behind it ([`Realm::Behind`]) and stands in an outer realm, so NATs
//! can be nested. It translates within one address family. Like most NATs in homes and hotels it
//! passes UDP and drops ESP that is not in UDP.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use bewick_ike::{Random, Time};

use crate::{
    capture::Loss,
    net::{Datagram, Protocol, Realm},
    seed::below,
};

/// How much of the remote endpoint a NAT's rule depends on (RFC 4787 §4.1 and §5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Behaviour {
    /// nothing
    EndpointIndependent,
    /// the remote address
    AddressDependent,
    /// the remote address and port
    AddressAndPortDependent,
}

/// How a NAT behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NatConfig {
    /// when an inside endpoint gets a mapping of its own (RFC 4787 §4.1)
    pub mapping: Behaviour,
    /// from where a datagram to a mapping is let in (RFC 4787 §5)
    pub filtering: Behaviour,
    /// how long a mapping lives unused (RFC 4787 §4.3 asks for 2 minutes at least)
    pub expiry: Duration,
    /// whether inbound traffic keeps a mapping alive; outbound traffic always does
    pub inbound_refreshes: bool,
}

impl Default for NatConfig {
    /// The common home router: endpoint-independent mapping, address-and-port-dependent filtering,
    /// 2 minutes.
    fn default() -> Self {
        NatConfig {
            mapping: Behaviour::EndpointIndependent,
            filtering: Behaviour::AddressAndPortDependent,
            expiry: Duration::from_secs(120),
            inbound_refreshes: true,
        }
    }
}

const FIRST_PORT: u16 = 1024;
const PORTS: u16 = u16::MAX - FIRST_PORT;

/// What a mapping belongs to: the inside endpoint, and of the remote one as much as the mapping
/// behaviour looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    inside: SocketAddr,
    remote_ip: Option<IpAddr>,
    remote_port: Option<u16>,
}

#[derive(Debug)]
struct Mapping {
    outside: SocketAddr,
    used: Time,
    /// remote endpoints that the inside has sent to, and when a datagram last went there
    permits: BTreeMap<SocketAddr, Time>,
}

/// One NAT: its outside addresses, its behaviour and its table.
#[derive(Debug)]
pub struct Nat {
    config: NatConfig,
    outer: Realm,
    outside: Vec<IpAddr>,
    mappings: BTreeMap<Key, Mapping>,
    by_outside: BTreeMap<SocketAddr, Key>,
    forwards: BTreeMap<SocketAddr, SocketAddr>,
    port: u16,
    stride: u16,
}

impl Nat {
    pub(crate) fn new(
        config: NatConfig,
        outer: Realm,
        outside: Vec<IpAddr>,
        random: &mut Random,
    ) -> Self {
        // Any odd stride of this size meets every port before it meets one twice, as the number of
        // ports (64511 = 31 · 2081) has no factor in common with a prime; two of them are at hand.
        let stride = if random.u32().is_multiple_of(2) { 7919 } else { 10_007 };
        let port = u16::try_from(below(random, u64::from(PORTS))).unwrap_or(0);
        Nat {
            config,
            outer,
            outside,
            mappings: BTreeMap::new(),
            by_outside: BTreeMap::new(),
            forwards: BTreeMap::new(),
            port,
            stride,
        }
    }

    pub(crate) fn outer(&self) -> Realm {
        self.outer
    }

    pub(crate) fn outside(&self) -> &[IpAddr] {
        &self.outside
    }

    pub(crate) fn set_config(&mut self, config: NatConfig) {
        self.config = config;
    }

    pub(crate) fn set_outside(&mut self, outside: Vec<IpAddr>) {
        self.outside = outside;
        self.forget();
    }

    pub(crate) fn forget(&mut self) {
        self.mappings.clear();
        self.by_outside.clear();
    }

    pub(crate) fn forward(&mut self, outside: SocketAddr, inside: SocketAddr) {
        self.forwards.insert(outside, inside);
    }

    /// The inside endpoint of a mapping or a forward, whether or not it has expired.
    pub(crate) fn peek(&self, outside: SocketAddr) -> Option<SocketAddr> {
        let mapped = || self.by_outside.get(&outside).map(|key| key.inside);
        self.forwards.get(&outside).copied().or_else(mapped)
    }

    /// The outside endpoints that `inside` has now, in order.
    pub(crate) fn mapped(&self, inside: SocketAddr, now: Time) -> BTreeSet<SocketAddr> {
        let live = |m: &&Mapping| self.alive(m.used, now);
        let own = self.mappings.iter().filter(|(key, _)| key.inside == inside).map(|(_, m)| m);
        own.filter(live).map(|m| m.outside).collect()
    }

    /// Translates a datagram on its way out; makes or refreshes its mapping.
    pub(crate) fn outbound(&mut self, now: Time, datagram: &mut Datagram) -> Result<(), Loss> {
        if datagram.protocol == Protocol::Esp {
            return Err(Loss::NatProtocol);
        }
        let (inside, remote) = (datagram.src, datagram.dst);
        if let Some((outside, _)) = self.forwards.iter().find(|(_, to)| **to == inside) {
            datagram.src = *outside;
            return Ok(());
        }
        let key = match self.config.mapping {
            Behaviour::EndpointIndependent => Key { inside, remote_ip: None, remote_port: None },
            Behaviour::AddressDependent => {
                Key { inside, remote_ip: Some(remote.ip()), remote_port: None }
            }
            Behaviour::AddressAndPortDependent => {
                Key { inside, remote_ip: Some(remote.ip()), remote_port: Some(remote.port()) }
            }
        };
        self.expire(now);
        if !self.mappings.contains_key(&key) {
            let outside = self.allocate(inside).ok_or(Loss::NatPorts)?;
            self.by_outside.insert(outside, key);
            self.mappings.insert(key, Mapping { outside, used: now, permits: BTreeMap::new() });
        }
        let mapping = self.mappings.get_mut(&key).ok_or(Loss::NatPorts)?;
        mapping.used = now;
        mapping.permits.insert(remote, now);
        datagram.src = mapping.outside;
        Ok(())
    }

    /// Translates a datagram on its way in, if a mapping or a forward lets it in.
    pub(crate) fn inbound(&mut self, now: Time, datagram: &mut Datagram) -> Result<(), Loss> {
        if datagram.protocol == Protocol::Esp {
            return Err(Loss::NatProtocol);
        }
        if let Some(inside) = self.forwards.get(&datagram.dst) {
            datagram.dst = *inside;
            return Ok(());
        }
        self.expire(now);
        let key = *self.by_outside.get(&datagram.dst).ok_or(Loss::NatNoMapping)?;
        let config = self.config;
        let mapping = self.mappings.get_mut(&key).ok_or(Loss::NatNoMapping)?;
        let remote = datagram.src;
        let fresh = |sent: &Time| now.since(*sent) < config.expiry;
        let permitted = match config.filtering {
            Behaviour::EndpointIndependent => true,
            Behaviour::AddressDependent => {
                mapping.permits.iter().any(|(to, sent)| to.ip() == remote.ip() && fresh(sent))
            }
            Behaviour::AddressAndPortDependent => mapping.permits.get(&remote).is_some_and(fresh),
        };
        if !permitted {
            return Err(Loss::NatFiltered);
        }
        if config.inbound_refreshes {
            mapping.used = now;
            for (to, sent) in &mut mapping.permits {
                if to.ip() == remote.ip() {
                    *sent = now;
                }
            }
        }
        datagram.dst = key.inside;
        Ok(())
    }

    fn alive(&self, used: Time, now: Time) -> bool {
        now.since(used) < self.config.expiry
    }

    fn expire(&mut self, now: Time) {
        let expiry = self.config.expiry;
        self.mappings.retain(|_, mapping| now.since(mapping.used) < expiry);
        let mappings = &self.mappings;
        self.by_outside.retain(|_, key| mappings.contains_key(key));
    }

    /// The next free outside endpoint. Ports come round last, so that a mapping that is made anew
    /// differs from the one that was forgotten.
    fn allocate(&mut self, inside: SocketAddr) -> Option<SocketAddr> {
        let ip = *self.outside.iter().find(|ip| ip.is_ipv4() == inside.is_ipv4())?;
        for _ in 0..PORTS {
            let next = (u32::from(self.port) + u32::from(self.stride)) % u32::from(PORTS);
            self.port = u16::try_from(next).ok()?;
            let outside = SocketAddr::new(ip, FIRST_PORT + self.port);
            if !self.by_outside.contains_key(&outside) && !self.forwards.contains_key(&outside) {
                return Some(outside);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seed::stream;

    const NOW: Time = Time::ZERO;

    fn at(text: &str) -> SocketAddr {
        text.parse().expect("an address and port")
    }

    fn nat(mapping: Behaviour, filtering: Behaviour) -> Nat {
        let config = NatConfig { mapping, filtering, ..NatConfig::default() };
        let outside = vec!["203.0.113.1".parse().expect("an address")];
        Nat::new(config, Realm::Internet, outside, &mut stream(1, "nat"))
    }

    fn out(nat: &mut Nat, now: Time, src: &str, dst: &str) -> SocketAddr {
        let mut datagram = Datagram::udp(at(src), at(dst), Vec::new());
        nat.outbound(now, &mut datagram).expect("a mapping");
        assert_eq!(datagram.dst, at(dst));
        datagram.src
    }

    fn back(nat: &mut Nat, now: Time, src: &str, dst: SocketAddr) -> Result<SocketAddr, Loss> {
        let mut datagram = Datagram::udp(at(src), dst, Vec::new());
        nat.inbound(now, &mut datagram).map(|()| datagram.dst)
    }

    #[test]
    fn mapping_depends_on_what_it_is_said_to_depend_on() {
        use Behaviour::*;
        let table = [
            (EndpointIndependent, true, true),
            (AddressDependent, true, false),
            (AddressAndPortDependent, false, false),
        ];
        for (mapping, same_over_ports, same_over_addresses) in table {
            let mut nat = nat(mapping, EndpointIndependent);
            let one = out(&mut nat, NOW, "10.0.0.2:500", "192.0.2.1:500");
            assert_eq!(one.ip(), nat.outside()[0]);
            assert_eq!(one, out(&mut nat, NOW, "10.0.0.2:500", "192.0.2.1:500"));
            let port = out(&mut nat, NOW, "10.0.0.2:500", "192.0.2.1:4500");
            assert_eq!(one == port, same_over_ports, "{mapping:?}");
            let address = out(&mut nat, NOW, "10.0.0.2:500", "192.0.2.2:500");
            assert_eq!(one == address, same_over_addresses, "{mapping:?}");
            let inside = out(&mut nat, NOW, "10.0.0.3:500", "192.0.2.1:500");
            assert_ne!(one, inside);
        }
    }

    #[test]
    fn filtering_table() {
        use Behaviour::*;
        // (filtering, same address other port, other address)
        let table = [
            (EndpointIndependent, true, true),
            (AddressDependent, true, false),
            (AddressAndPortDependent, false, false),
        ];
        for (filtering, port, address) in table {
            let mut nat = nat(EndpointIndependent, filtering);
            let outside = out(&mut nat, NOW, "10.0.0.2:500", "192.0.2.1:500");
            let inside = Ok(at("10.0.0.2:500"));
            let expected = |open: bool| if open { inside } else { Err(Loss::NatFiltered) };
            assert_eq!(back(&mut nat, NOW, "192.0.2.1:500", outside), inside);
            assert_eq!(back(&mut nat, NOW, "192.0.2.1:501", outside), expected(port));
            assert_eq!(back(&mut nat, NOW, "192.0.2.2:500", outside), expected(address));
            let nobody = SocketAddr::new(outside.ip(), outside.port() ^ 1);
            assert_eq!(back(&mut nat, NOW, "192.0.2.1:500", nobody), Err(Loss::NatNoMapping));
        }
    }

    #[test]
    fn an_unused_mapping_expires_and_its_successor_has_another_port() {
        let mut nat = nat(Behaviour::EndpointIndependent, Behaviour::EndpointIndependent);
        let first = out(&mut nat, NOW, "10.0.0.2:4500", "192.0.2.1:4500");
        let used = NOW + Duration::from_secs(119);
        assert!(back(&mut nat, used, "192.0.2.1:4500", first).is_ok());
        let alive = used + Duration::from_secs(119);
        assert_eq!(nat.mapped(at("10.0.0.2:4500"), alive), BTreeSet::from([first]));
        let late = used + Duration::from_secs(120);
        assert_eq!(back(&mut nat, late, "192.0.2.1:4500", first), Err(Loss::NatNoMapping));
        assert_ne!(out(&mut nat, late, "10.0.0.2:4500", "192.0.2.1:4500"), first);
    }

    #[test]
    fn inbound_traffic_does_not_refresh_if_so_configured() {
        let mut nat = nat(Behaviour::EndpointIndependent, Behaviour::EndpointIndependent);
        nat.set_config(NatConfig { inbound_refreshes: false, ..nat.config });
        let outside = out(&mut nat, NOW, "10.0.0.2:4500", "192.0.2.1:4500");
        let later = NOW + Duration::from_secs(100);
        assert!(back(&mut nat, later, "192.0.2.1:4500", outside).is_ok());
        let late = NOW + Duration::from_secs(121);
        assert_eq!(back(&mut nat, late, "192.0.2.1:4500", outside), Err(Loss::NatNoMapping));
    }

    #[test]
    fn forgetting_all_mappings_rebinds() {
        let mut nat = nat(Behaviour::EndpointIndependent, Behaviour::EndpointIndependent);
        let first = out(&mut nat, NOW, "10.0.0.2:4500", "192.0.2.1:4500");
        nat.forget();
        assert_eq!(back(&mut nat, NOW, "192.0.2.1:4500", first), Err(Loss::NatNoMapping));
        assert_ne!(out(&mut nat, NOW, "10.0.0.2:4500", "192.0.2.1:4500"), first);
    }

    #[test]
    fn a_forward_works_in_both_directions_for_anybody() {
        let mut nat = nat(Behaviour::EndpointIndependent, Behaviour::AddressAndPortDependent);
        nat.forward(at("203.0.113.1:4500"), at("10.0.0.9:4500"));
        let inside = back(&mut nat, NOW, "198.51.100.7:33333", at("203.0.113.1:4500"));
        assert_eq!(inside, Ok(at("10.0.0.9:4500")));
        let outside = out(&mut nat, NOW, "10.0.0.9:4500", "198.51.100.7:33333");
        assert_eq!(outside, at("203.0.113.1:4500"));
    }

    #[test]
    fn every_port_is_used_before_the_nat_gives_up() {
        let mut nat = nat(Behaviour::EndpointIndependent, Behaviour::EndpointIndependent);
        let mut seen = BTreeSet::new();
        for _ in 0..PORTS {
            // Bypasses the table, whose upkeep is linear: only the walk over the ports is at stake.
            seen.insert(nat.allocate(at("10.0.0.2:1")).expect("a port"));
        }
        assert_eq!(seen.len(), usize::from(PORTS));
    }

    #[test]
    fn esp_without_udp_does_not_pass() {
        let mut nat = nat(Behaviour::EndpointIndependent, Behaviour::EndpointIndependent);
        let (src, dst) = (at("10.0.0.2:0"), at("192.0.2.1:0"));
        let mut esp = Datagram { protocol: Protocol::Esp, src, dst, payload: vec![0; 8] };
        assert_eq!(nat.outbound(NOW, &mut esp), Err(Loss::NatProtocol));
        assert_eq!(nat.inbound(NOW, &mut esp), Err(Loss::NatProtocol));
    }
}
