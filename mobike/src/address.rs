//! Our addresses, and the pairs that they make with the peer's.

use std::{
    cmp::Reverse,
    net::{IpAddr, SocketAddr},
};

use bewick_ike::Path;

use crate::policy::is_private;

/// One of our addresses that packets can be sent from: assigned and not tentative, its interface up
/// and with a route.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LocalAddress {
    /// what the operator says of its uplink: the smaller, the better, before all else
    pub cost: u32,
    /// of the route through its interface: the smaller, the better
    pub metric: u32,
    /// the address
    pub address: IpAddr,
    /// the name of its interface
    pub interface: String,
    /// each octet costs money: nothing is sent there that has not to be
    pub metered: bool,
}

/// Every pair of one of `locals` and one of `remotes` of the same family, best first: what the operator
/// says of the uplink, the metric of its route, what RFC 6724 §6 says of the addresses, then the order of
/// `remotes`.
pub(crate) fn pairs(locals: &[LocalAddress], remotes: &[IpAddr]) -> Vec<(IpAddr, IpAddr)> {
    let mut locals: Vec<&LocalAddress> = locals.iter().collect();
    locals.sort();
    let mut pairs: Vec<(&LocalAddress, IpAddr)> = locals
        .into_iter()
        .flat_map(|local| remotes.iter().map(move |remote| (local, *remote)))
        .filter(|(local, remote)| local.address.is_ipv4() == remote.is_ipv4())
        .collect();
    pairs.sort_by_key(|(local, remote)| {
        (local.cost, local.metric, Reverse(preference(local.address, *remote)))
    });
    pairs.into_iter().map(|(local, remote)| (local.address, remote)).collect()
}

/// RFC 6724 §6, rules 2, 5 and 6, as far as addresses alone tell: the more, the better.
fn preference(local: IpAddr, remote: IpAddr) -> (bool, bool, u8) {
    let ((ours, _), (theirs, precedence)) = (policy(local), policy(remote));
    (is_private(local) == is_private(remote) || local.is_ipv4(), ours == theirs, precedence)
}

/// The label and the precedence of an address (RFC 6724 §2.1).
fn policy(address: IpAddr) -> (u8, u8) {
    let IpAddr::V6(address) = address else { return (4, 35) };
    match address.segments() {
        [0x2002, ..] => (2, 30),
        [0x2001, 0, ..] => (5, 5),
        [first, ..] if first & 0xfe00 == 0xfc00 => (13, 3),
        [first, ..] if first & 0xffc0 == 0xfec0 => (11, 1),
        [0x3ffe, ..] => (12, 1),
        _ => (1, 40),
    }
}

/// The port of IKE and ESP in UDP (RFC 3948 §2.1), for one who comes back from TCP.
const NAT_PORT: u16 = 4500;

/// The path over UDP of an IKE_SA that is up: both ends on port 4500 (RFC 4555 §3.3), the peer's port as it is
/// if its address stays.
pub(crate) fn path(current: Path, (local, remote): (IpAddr, IpAddr)) -> Path {
    if current.is_tcp() {
        return Path::new(SocketAddr::new(local, NAT_PORT), SocketAddr::new(remote, NAT_PORT));
    }
    let remote_port = match remote == current.remote.ip() {
        true => current.remote.port(),
        // RFC 7296 §2.23: 4500, or 500 with a peer that has no NAT traversal.
        false => current.local.port(),
    };
    Path::new(SocketAddr::new(local, current.local.port()), SocketAddr::new(remote, remote_port))
}

/// Whether a NAT on the way is likely: we have a private address and the peer a public one. Then ESP
/// goes in UDP from the first packet on (RFC 4555 §3.5, step 3).
pub(crate) fn suggests_nat(path: Path) -> bool {
    is_private(path.local.ip()) && !is_private(path.remote.ip())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn local(address: &str, metric: u32) -> LocalAddress {
        LocalAddress {
            cost: 0,
            metric,
            address: address.parse().unwrap(),
            interface: "eth".into(),
            metered: false,
        }
    }

    #[test]
    fn pairs_keep_to_the_family_and_the_metric() {
        let locals = [local("10.0.0.2", 200), local("10.0.1.2", 100), local("2001:db8::2", 50)];
        let remotes = ["192.0.2.1".parse().unwrap(), "2001:db8:1::1".parse().unwrap()];
        let text: Vec<String> =
            pairs(&locals, &remotes).iter().map(|(l, r)| format!("{l} {r}")).collect();
        assert_eq!(text, ["2001:db8::2 2001:db8:1::1", "10.0.1.2 192.0.2.1", "10.0.0.2 192.0.2.1"]);
    }

    #[test]
    fn addresses_of_one_uplink_are_in_the_order_of_rfc_6724() {
        let locals = [
            local("192.0.2.9", 100),
            local("fd00::9", 100),
            local("2001:db8::9", 100),
            local("2002:c000:209::9", 100),
        ];
        let remotes = ["198.51.100.1", "2001:db8:1::1"].map(|text| text.parse().unwrap());
        let order: Vec<String> =
            pairs(&locals, &remotes).iter().map(|(local, _)| local.to_string()).collect();
        assert_eq!(order, ["2001:db8::9", "192.0.2.9", "2002:c000:209::9", "fd00::9"]);
        let mut cheap = locals.to_vec();
        cheap[0].cost = 0;
        cheap[1..].iter_mut().for_each(|local| local.cost = 1);
        assert_eq!(pairs(&cheap, &remotes)[0].0.to_string(), "192.0.2.9", "policy comes first");
    }

    #[test]
    fn m_3_5_10_a_private_address_towards_a_public_one_suggests_a_nat() {
        let path = |l: &str, r: &str| Path::new(l.parse().unwrap(), r.parse().unwrap());
        assert!(suggests_nat(path("192.168.1.2:4500", "203.0.113.1:4500")));
        assert!(suggests_nat(path("100.64.0.2:4500", "203.0.113.1:4500")));
        assert!(!suggests_nat(path("198.51.100.2:4500", "203.0.113.1:4500")));
        assert!(!suggests_nat(path("10.0.0.2:4500", "10.1.0.1:4500")));
    }
}
