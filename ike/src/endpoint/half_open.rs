//! IKE_SAs whose peers have not proved who they are: how many there may be, of all and from one place
//! (RFC 7296 §2.6, RFC 8019 §4).

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use crate::event::SaId;

/// When the endpoint asks for cookies, and how much of the half-open it keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HalfOpenLimits {
    /// from this many on, IKE_SA_INIT is answered with a COOKIE (RFC 7296 §2.6); 0 for always
    pub cookies_from: usize,
    /// more than this are not kept
    pub most: usize,
    /// nor more than this from one IPv4 address or one IPv6 network of 64 bits (RFC 8019 §4.2)
    pub most_of_one: usize,
}

impl Default for HalfOpenLimits {
    fn default() -> Self {
        HalfOpenLimits { cookies_from: 32, most: 4096, most_of_one: 128 }
    }
}

/// How long a half-open IKE_SA waits for IKE_AUTH.
const TIME: Duration = Duration::from_secs(30);

/// The same when cookies are asked for (RFC 8019 §4.1).
const TIME_CROWDED: Duration = Duration::from_secs(5);

/// The initiator's SPI and where its IKE_SA_INIT came from.
pub(super) type Name = (u64, SocketAddr);

/// The half-open IKE_SAs. What is kept is bounded by their number.
#[derive(Debug, Default)]
pub(super) struct HalfOpen {
    pub(super) limits: HalfOpenLimits,
    /// more than one IKE_SA can have the same name, by chance or by somebody's intent
    by_name: BTreeSet<(Name, SaId)>,
    by_place: BTreeMap<IpAddr, usize>,
}

/// One who can send from an address can send from all of its network (RFC 8019 §4.2).
fn place(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(address) => {
            Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into()
        }
    }
}

impl HalfOpen {
    /// Those with this name; what else was in their IKE_SA_INIT tells them apart (RFC 7296 §2.1).
    pub(super) fn find(&self, name: Name) -> impl Iterator<Item = SaId> {
        self.by_name.range((name, SaId(0))..=(name, SaId(u64::MAX))).map(|(_, id)| *id)
    }

    /// Whether a peer has to show first that it receives where it says that it is: when there are many, or
    /// many from there, so that nobody takes another one's places with a forged address.
    pub(super) fn is_crowded(&self, from: SocketAddr) -> bool {
        self.by_name.len() >= self.limits.cookies_from
            || self.of_place(from) >= self.limits.most_of_one / 2
    }

    fn of_place(&self, from: SocketAddr) -> usize {
        self.by_place.get(&place(from.ip())).copied().unwrap_or_default()
    }

    /// Whether there is room for one more from there.
    pub(super) fn has_room(&self, from: SocketAddr) -> bool {
        self.by_name.len() < self.limits.most && self.of_place(from) < self.limits.most_of_one
    }

    /// How long one that comes now may stay half open.
    pub(super) fn time(&self) -> Duration {
        // Where cookies are asked for in any case, or soon, they are no sign of an attack.
        let usual = HalfOpenLimits::default().cookies_from;
        let many = self.by_name.len() >= self.limits.cookies_from.max(usual);
        if many { TIME_CROWDED } else { TIME }
    }

    pub(super) fn insert(&mut self, name: Name, id: SaId) {
        if self.by_name.insert((name, id)) {
            *self.by_place.entry(place(name.1.ip())).or_default() += 1;
        }
    }

    pub(super) fn remove(&mut self, name: Name, id: SaId) {
        if !self.by_name.remove(&(name, id)) {
            return;
        }
        let place = place(name.1.ip());
        if let Some(count) = self.by_place.get_mut(&place) {
            *count -= 1;
            if *count == 0 {
                self.by_place.remove(&place);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(text: &str) -> SocketAddr {
        SocketAddr::new(text.parse().unwrap(), 500)
    }

    #[test]
    fn rfc_8019_4_2_one_network_does_not_take_all_the_places() {
        let mut half_open = HalfOpen {
            limits: HalfOpenLimits { cookies_from: 4, most: 5, most_of_one: 2 },
            ..HalfOpen::default()
        };
        assert!(!half_open.is_crowded(from("2001:db8::1")));
        half_open.insert((1, from("2001:db8::1")), SaId(1));
        half_open.insert((2, from("2001:db8::2")), SaId(2));
        assert!(half_open.is_crowded(from("2001:db8::3")), "from there");
        assert!(!half_open.is_crowded(from("192.0.2.1")), "but not from elsewhere");
        assert!(!half_open.has_room(from("2001:db8::ffff:3")));
        assert!(half_open.has_room(from("2001:db8:0:1::1")));
        half_open.insert((3, from("192.0.2.1")), SaId(3));
        half_open.insert((4, from("192.0.2.1")), SaId(4));
        assert!(half_open.is_crowded(from("203.0.113.1")), "now from everywhere");
        assert!(!half_open.has_room(from("192.0.2.1")));
        assert!(half_open.has_room(from("192.0.2.2")));
        half_open.insert((5, from("192.0.2.2")), SaId(5));
        assert!(!half_open.has_room(from("192.0.2.3")), "all places are taken");
        half_open.remove((1, from("2001:db8::1")), SaId(1));
        half_open.remove((1, from("2001:db8::1")), SaId(1));
        assert!(half_open.has_room(from("2001:db8::9")));
        for (spi, address) in
            [(2, "2001:db8::2"), (3, "192.0.2.1"), (4, "192.0.2.1"), (5, "192.0.2.2")]
        {
            half_open.remove((spi, from(address)), SaId(spi));
        }
        assert!(half_open.by_place.is_empty(), "nothing is kept of those that are gone");
    }
}
