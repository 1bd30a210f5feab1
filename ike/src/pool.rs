//! Virtual addresses for clients (RFC 7296 §2.19): a lease lives as long as its IKE_SA.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::IpNet;

use crate::event::SaId;

/// One pool of addresses of one family.
#[derive(Debug)]
pub struct Pool {
    net: IpNet,
    leases: BTreeMap<IpAddr, SaId>,
    next: u128,
}

impl Pool {
    /// A pool of every host address of `net`: for IPv4 without the network's and the broadcast
    /// address, for IPv6 without the subnet-router anycast address.
    pub fn new(net: IpNet) -> Self {
        Pool { net: net.trunc(), leases: BTreeMap::new(), next: 0 }
    }

    /// Whether the pool is of IPv4.
    pub fn is_ipv4(&self) -> bool {
        matches!(self.net, IpNet::V4(_))
    }

    /// Leases `wanted` if it is free and in the pool, else the next free address; `None` if all are
    /// taken.
    ///
    /// Addresses are handed out in turn, so that one just returned is not at once another's.
    pub fn lease(&mut self, wanted: Option<IpAddr>, sa: SaId) -> Option<IpAddr> {
        if let Some(addr) = wanted.filter(|addr| self.is_host(*addr))
            && let Entry::Vacant(free) = self.leases.entry(addr)
        {
            free.insert(sa);
            return Some(addr);
        }
        let size = self.size();
        if self.leases.len() as u128 >= size {
            return None;
        }
        for _ in 0..=self.leases.len() {
            let addr = self.nth(self.next % size);
            self.next = (self.next + 1) % size;
            if let Entry::Vacant(free) = self.leases.entry(addr) {
                free.insert(sa);
                return Some(addr);
            }
        }
        None
    }

    /// Returns every lease of `sa`.
    pub fn release(&mut self, sa: SaId) {
        self.leases.retain(|_, holder| *holder != sa);
    }

    fn first_host(&self) -> u128 {
        match self.net {
            IpNet::V4(net) if net.prefix_len() >= 31 => 0,
            IpNet::V6(net) if net.prefix_len() >= 127 => 0,
            _ => 1,
        }
    }

    fn size(&self) -> u128 {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn k_2_19_1_a_pool_hands_out_each_host_address_once_and_says_when_it_is_empty() {
        let mut pool = Pool::new("10.9.0.0/30".parse().unwrap());
        let a = pool.lease(None, SaId(1)).unwrap();
        let b = pool.lease(None, SaId(2)).unwrap();
        assert_eq!([a.to_string(), b.to_string()], ["10.9.0.1", "10.9.0.2"]);
        assert_eq!(pool.lease(None, SaId(3)), None);
        pool.release(SaId(1));
        assert_eq!(pool.lease(Some("10.9.0.3".parse().unwrap()), SaId(3)), Some(a));
    }

    #[test]
    fn k_2_19_1_a_free_wanted_address_is_given() {
        let mut pool = Pool::new("2001:db8::/64".parse().unwrap());
        let wanted = "2001:db8::77".parse().unwrap();
        assert_eq!(pool.lease(Some(wanted), SaId(1)), Some(wanted));
        assert_eq!(pool.lease(Some(wanted), SaId(2)), Some("2001:db8::1".parse().unwrap()));
    }
}
