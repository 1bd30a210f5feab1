//! Virtual addresses for clients (RFC 7296 §2.19): a lease lives as long as its IKE_SA, and an identity
//! that comes back finds its address again for as long as no other needs it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::IpNet;

use crate::{event::SaId, wire::identity::Identity};

/// Free addresses of one pool whose last holder is remembered, at most.
const MOST_REMEMBERED: usize = 4096;

/// Octets of an identity that is remembered, at most; whoever proves more than one identity fills no
/// memory with their length.
const LONGEST_REMEMBERED: usize = 256;

/// One pool of addresses of one family.
#[derive(Debug)]
pub struct Pool {
    net: IpNet,
    held: BTreeMap<IpAddr, SaId>,
    by_sa: BTreeMap<SaId, (IpAddr, Identity)>,
    remembered: Remembered,
    /// what an IKE_SA has that is to be replaced, while its successor chooses
    suspended: Vec<(SaId, IpAddr, Identity)>,
    next: u128,
}

impl Pool {
    /// A pool of every host address of `net`: for IPv4 without the network's and the broadcast
    /// address, for IPv6 without the subnet-router anycast address.
    pub fn new(net: IpNet) -> Self {
        Pool {
            net: net.trunc(),
            held: BTreeMap::new(),
            by_sa: BTreeMap::new(),
            remembered: Remembered::default(),
            suspended: Vec::new(),
            next: 0,
        }
    }

    /// Whether the pool is of IPv4.
    pub fn is_ipv4(&self) -> bool {
        matches!(self.net, IpNet::V4(_))
    }

    /// The network that the addresses are of.
    pub fn net(&self) -> IpNet {
        self.net
    }

    /// Leases an address to the IKE_SA `sa` of the peer `who`, in this order: the one that `sa` has,
    /// `wanted`, one that `who` had before, one that nobody had, the one whose holder is away longest.
    /// `None` if all are taken. One with a remembered holder goes to another only as the last resort,
    /// also if it is the one wanted.
    pub fn lease(&mut self, wanted: Option<IpAddr>, who: &Identity, sa: SaId) -> Option<IpAddr> {
        if let Some((addr, _)) = self.by_sa.get(&sa) {
            return Some(*addr);
        }
        let free = |addr: &IpAddr| {
            self.is_host(*addr)
                && !self.held.contains_key(addr)
                && self.remembered.holder(*addr).is_none_or(|holder| holder == who)
        };
        let addr = wanted
            .filter(free)
            .or_else(|| self.remembered.newest_of(who))
            .or_else(|| self.unused())
            .or_else(|| self.remembered.oldest())?;
        self.remembered.forget(addr);
        self.held.insert(addr, sa);
        self.by_sa.insert(sa, (addr, who.clone()));
        Some(addr)
    }

    /// Takes back what `sa` has.
    pub fn release(&mut self, sa: SaId) {
        let Some((addr, who)) = self.by_sa.remove(&sa) else { return };
        self.held.remove(&addr);
        self.remembered.put(addr, who);
    }

    /// Takes back what `sa` has, for an IKE_SA of the same peer to choose it; what that does not take
    /// [`Self::resume`] gives back, for its CHILD_SAs may still be there.
    pub fn suspend(&mut self, sa: SaId) {
        let Some((addr, who)) = self.by_sa.get(&sa).cloned() else { return };
        self.release(sa);
        self.suspended.push((sa, addr, who));
    }

    /// Gives back what was suspended and not taken.
    pub fn resume(&mut self) {
        for (sa, addr, who) in std::mem::take(&mut self.suspended) {
            if !self.held.contains_key(&addr) {
                self.remembered.forget(addr);
                self.held.insert(addr, sa);
                self.by_sa.insert(sa, (addr, who));
            }
        }
    }

    /// The next address in turn that is neither held nor remembered.
    fn unused(&mut self) -> Option<IpAddr> {
        let (size, used) = (self.size(), self.held.len() + self.remembered.len());
        if used as u128 >= size {
            return None;
        }
        for _ in 0..=used {
            let addr = self.nth(self.next % size);
            self.next = (self.next + 1) % size;
            if !self.held.contains_key(&addr) && self.remembered.holder(addr).is_none() {
                return Some(addr);
            }
        }
        None
    }

    fn first_host(&self) -> u128 {
        match self.net {
            IpNet::V4(net) if net.prefix_len() >= 31 => 0,
            IpNet::V6(net) if net.prefix_len() >= 127 => 0,
            _ => 1,
        }
    }

    /// How many addresses there are.
    pub fn size(&self) -> u128 {
        match self.net {
            IpNet::V4(net) => match net.prefix_len() {
                32 => 1,
                31 => 2,
                len => (1 << (32 - len)) - 2,
            },
            IpNet::V6(net) => match net.prefix_len() {
                128 => 1,
                127 => 2,
                0 => u128::MAX,
                len => (1 << (128 - len)) - 1,
            },
        }
    }

    fn nth(&self, n: u128) -> IpAddr {
        let offset = n + self.first_host();
        match self.net {
            IpNet::V4(net) => {
                Ipv4Addr::from_bits(net.network().to_bits().wrapping_add(offset as u32)).into()
            }
            IpNet::V6(net) => {
                Ipv6Addr::from_bits(net.network().to_bits().wrapping_add(offset)).into()
            }
        }
    }

    fn is_host(&self, addr: IpAddr) -> bool {
        self.net.contains(&addr)
            && (self.first_host() == 0
                || (addr != self.net.network()
                    && (!addr.is_ipv4() || addr != self.net.broadcast())))
    }
}

/// Who had which free address last.
#[derive(Debug, Default)]
struct Remembered {
    holders: BTreeMap<IpAddr, (u64, Identity)>,
    by_age: BTreeMap<u64, IpAddr>,
    by_holder: BTreeSet<(Identity, u64)>,
    stamp: u64,
}

impl Remembered {
    fn len(&self) -> usize {
        self.holders.len()
    }

    fn holder(&self, addr: IpAddr) -> Option<&Identity> {
        self.holders.get(&addr).map(|(_, who)| who)
    }

    fn oldest(&self) -> Option<IpAddr> {
        self.by_age.values().next().copied()
    }

    fn newest_of(&self, who: &Identity) -> Option<IpAddr> {
        let range = (who.clone(), 0)..=(who.clone(), u64::MAX);
        let (_, stamp) = self.by_holder.range(range).next_back()?;
        self.by_age.get(stamp).copied()
    }

    fn put(&mut self, addr: IpAddr, who: Identity) {
        if who.to_wire().data.len() > LONGEST_REMEMBERED {
            return;
        }
        if self.len() >= MOST_REMEMBERED
            && let Some(oldest) = self.oldest()
        {
            self.forget(oldest);
        }
        self.stamp += 1;
        self.by_age.insert(self.stamp, addr);
        self.by_holder.insert((who.clone(), self.stamp));
        self.holders.insert(addr, (self.stamp, who));
    }

    fn forget(&mut self, addr: IpAddr) {
        if let Some((stamp, who)) = self.holders.remove(&addr) {
            self.by_age.remove(&stamp);
            self.by_holder.remove(&(who, stamp));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(net: &str) -> Pool {
        Pool::new(net.parse().unwrap())
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn who(n: u64) -> Identity {
        format!("peer{n}@example.com").parse().unwrap()
    }

    /// The `n`th IKE_SA, of the `n`th peer.
    fn lease(pool: &mut Pool, wanted: Option<&str>, n: u64) -> Option<String> {
        pool.lease(wanted.map(ip), &who(n), SaId(n)).map(|addr| addr.to_string())
    }

    #[test]
    fn k_2_19_1_a_successor_takes_the_address_or_its_holder_keeps_it() {
        let mut pool = pool("10.9.0.0/30");
        lease(&mut pool, None, 1).unwrap();
        lease(&mut pool, None, 2).unwrap();
        pool.suspend(SaId(1));
        assert_eq!(pool.lease(None, &who(1), SaId(11)), Some(ip("10.9.0.1")));
        pool.resume();
        pool.release(SaId(1));
        assert_eq!(pool.lease(None, &who(3), SaId(3)), None, "it is the successor's");
        pool.suspend(SaId(2));
        pool.resume();
        assert_eq!(pool.lease(None, &who(3), SaId(3)), None, "nobody took it: it is kept");
        pool.release(SaId(2));
        assert_eq!(pool.lease(None, &who(3), SaId(3)), Some(ip("10.9.0.2")));
    }

    #[test]
    fn k_2_19_1_a_pool_hands_out_each_host_address_once_and_says_when_it_is_empty() {
        let mut pool = pool("10.9.0.0/30");
        assert_eq!(pool.size(), 2);
        assert_eq!(lease(&mut pool, None, 1).unwrap(), "10.9.0.1");
        assert_eq!(lease(&mut pool, None, 2).unwrap(), "10.9.0.2");
        assert_eq!(lease(&mut pool, None, 3), None);
        pool.release(SaId(1));
        assert_eq!(lease(&mut pool, Some("10.9.0.3"), 3).unwrap(), "10.9.0.1");
        assert_eq!(lease(&mut pool, None, 3).unwrap(), "10.9.0.1", "it has one");
    }

    #[test]
    fn k_2_19_1_a_free_wanted_address_is_given() {
        let mut pool = pool("2001:db8::/64");
        assert_eq!(lease(&mut pool, Some("2001:db8::77"), 1).unwrap(), "2001:db8::77");
        assert_eq!(lease(&mut pool, Some("2001:db8::77"), 2).unwrap(), "2001:db8::1");
        assert_eq!(lease(&mut pool, Some("2001:db8::"), 3).unwrap(), "2001:db8::2", "anycast");
    }

    #[test]
    fn k_2_19_1_who_comes_back_gets_its_address_again_while_others_remain() {
        let mut pool = pool("10.9.0.0/29");
        for n in 1..=3 {
            lease(&mut pool, None, n);
        }
        pool.release(SaId(2));
        pool.release(SaId(1));
        // 10.9.0.2 is kept for its last holder, even from one that asks for it.
        assert_eq!(lease(&mut pool, Some("10.9.0.2"), 4).unwrap(), "10.9.0.4");
        assert_eq!(pool.lease(None, &who(1), SaId(11)), Some(ip("10.9.0.1")));
        // A second IKE_SA of the same identity has an address of its own.
        assert_eq!(pool.lease(None, &who(1), SaId(21)), Some(ip("10.9.0.5")));
        assert_eq!(pool.lease(None, &who(2), SaId(12)), Some(ip("10.9.0.2")));
    }

    #[test]
    fn k_2_19_1_the_address_of_the_longest_absent_goes_first_when_no_other_is_left() {
        let mut pool = pool("10.9.0.0/29");
        for n in 1..=6 {
            lease(&mut pool, None, n);
        }
        for n in [3, 1, 5] {
            pool.release(SaId(n));
        }
        assert_eq!(lease(&mut pool, None, 7).unwrap(), "10.9.0.3");
        assert_eq!(lease(&mut pool, Some("10.9.0.5"), 8).unwrap(), "10.9.0.1");
        assert_eq!(lease(&mut pool, None, 9).unwrap(), "10.9.0.5");
        assert_eq!(lease(&mut pool, None, 10), None);
    }

    #[test]
    fn k_2_19_1_what_is_remembered_has_an_end() {
        let mut pool = pool("2001:db8::/64");
        for n in 0..2 * MOST_REMEMBERED as u64 {
            lease(&mut pool, None, n);
            pool.release(SaId(n));
        }
        assert_eq!(pool.remembered.len(), MOST_REMEMBERED);
        assert_eq!(pool.remembered.by_age.len(), MOST_REMEMBERED);
        assert_eq!(pool.remembered.by_holder.len(), MOST_REMEMBERED);
        assert!(pool.held.is_empty() && pool.by_sa.is_empty());
        let long: Identity = format!("{}.example", "a".repeat(LONGEST_REMEMBERED)).parse().unwrap();
        let before = pool.remembered.stamp;
        pool.lease(None, &long, SaId(0)).unwrap();
        pool.release(SaId(0));
        assert_eq!(pool.remembered.stamp, before);
    }

    #[test]
    fn k_2_19_1_a_static_address_is_a_pool_of_one() {
        let mut pool = pool("10.9.0.7/32");
        assert_eq!(lease(&mut pool, None, 1).unwrap(), "10.9.0.7");
        assert_eq!(lease(&mut pool, None, 2), None);
    }
}
