//! The initiator's choice of a pair, and what UPDATE_SA_ADDRESSES says and is answered
//! (RFC 4555 §3.5).

use std::net::IpAddr;

use bewick_ike::{
    Path, Random,
    nat::{self, Nat},
    wire::{NotifyType, Payload},
};

use crate::{
    address::{self, LocalAddress},
    mobility::Mobility,
    notify,
    policy::TcpUse,
};

/// Every path that the IKE_SA could have, best first: our addresses in their order, with the peer's in
/// the order in which it told them, the one in use first.
pub(crate) fn candidates(mobility: &Mobility, locals: &[LocalAddress], current: Path) -> Vec<Path> {
    let mut remotes = vec![current.remote.ip()];
    remotes.retain(|remote| mobility.peer_addresses.contains(remote));
    remotes.extend(mobility.peer_addresses.iter().filter(|a| **a != current.remote.ip()));
    let cost = |remote: &IpAddr| {
        mobility.peer_costs.iter().find(|(address, _)| address == remote).map(|(_, cost)| *cost)
    };
    // The peer's own wishes count after what is in use.
    let rest = usize::from(remotes.first() == Some(&current.remote.ip()));
    remotes[rest..].sort_by_key(|remote| cost(remote).unwrap_or(u32::MAX));
    // Where traffic was last is never forgotten, whatever a list says: last, but there.
    remotes.push(mobility.children_at.remote.ip());
    let mut paths: Vec<Path> = Vec::new();
    for pair in address::pairs(locals, &remotes) {
        let path = address::path(current, pair);
        if !paths.contains(&path) {
            paths.push(path);
        }
    }
    let (tcp, ours, theirs) = mobility.tcp;
    if tcp == TcpUse::Off || ours == 0 {
        return paths;
    }
    // RFC 9329 §7.1: UDP first.
    let over_tcp = |path: &Path| {
        let (mut local, mut remote) = (path.local, path.remote);
        local.set_port(ours);
        remote.set_port(theirs);
        Path::tcp(local, remote)
    };
    let mut connections: Vec<Path> = paths.iter().map(over_tcp).collect();
    let known = |path: &Path| path.local.ip() == current.local.ip();
    if current.is_tcp() && !connections.contains(&current) && connections.iter().any(known) {
        connections.insert(0, current);
    }
    if tcp == TcpUse::Always {
        return connections;
    }
    paths.extend(connections);
    paths
}

/// The best of these paths that is not `avoid`, the current one if it can still be used.
pub(crate) fn choose(
    mobility: &Mobility,
    mut paths: Vec<Path>,
    current: Path,
    avoid: Option<Path>,
) -> Option<Path> {
    let listed = mobility.peer_addresses.contains(&current.remote.ip());
    if avoid.is_none() && listed && paths.contains(&current) {
        return Some(current);
    }
    // After the one that failed comes the next of the list, round and round.
    if let Some(at) = avoid.and_then(|avoid| paths.iter().position(|path| *path == avoid)) {
        paths.rotate_left(at + 1);
        paths.pop();
    }
    paths.first().copied()
}

/// UPDATE_SA_ADDRESSES with NAT detection, COOKIE2 and our whole list, so that the peer never has a
/// new address with an old list (RFC 4555 §3.5, §3.6).
pub(crate) fn update(
    (spis, path, force_encap): ((u64, u64), Path, bool),
    nat_t: bool,
    cookie: &[u8],
    addresses: &[IpAddr],
    random: &mut Random,
) -> Vec<Payload> {
    let mut payloads = vec![notify::empty(NotifyType::UPDATE_SA_ADDRESSES)];
    payloads.extend(detection((spis, path, force_encap), nat_t, random));
    payloads.push(notify::cookie2(cookie));
    payloads.extend(list(addresses, path, nat_t));
    payloads
}

/// NAT detection for a message on `path`, if NAT traversal is on.
pub(crate) fn detection(
    (spis, path, force_encap): ((u64, u64), Path, bool),
    nat_t: bool,
    random: &mut Random,
) -> Vec<Payload> {
    match nat_t {
        true => nat::payloads(spis, path, force_encap, random).to_vec(),
        false => Vec::new(),
    }
}

/// Our whole list for a message on `path` (RFC 4555 §3.6); without NAT traversal the message says where it
/// comes from (§3.9).
pub(crate) fn list(addresses: &[IpAddr], path: Path, nat_t: bool) -> Vec<Payload> {
    let mut payloads = notify::address_list(addresses, path.local.ip());
    if !nat_t {
        payloads.push(notify::no_nats(path));
    }
    payloads
}

/// What the answer to UPDATE_SA_ADDRESSES means.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// the peer has our new addresses; NATs as its hashes show them
    Updated(Option<Nat>),
    /// UNACCEPTABLE_ADDRESSES
    Unacceptable,
    /// UNEXPECTED_NAT_DETECTED: what came there had other addresses (RFC 4555 §3.9)
    NatDetected,
    /// another cookie than ours: close the IKE_SA (RFC 4555 §3.7)
    WrongCookie,
    /// no cookie, though we sent one: the peer has not acted on it
    NotMoved,
}

/// Reads the answer that came on `path`.
pub(crate) fn verdict(
    spis: (u64, u64),
    path: Path,
    nat_t: bool,
    cookie: &[u8],
    payloads: &[Payload],
) -> Verdict {
    match notify::read_cookie2(payloads) {
        Some(echo) if echo != cookie => return Verdict::WrongCookie,
        _ if notify::has(payloads, NotifyType::UNEXPECTED_NAT_DETECTED) => {
            return Verdict::NatDetected;
        }
        // RFC 7296 §3.10.1: with any error the whole request has failed.
        _ if notify::has_error(payloads) => {
            return Verdict::Unacceptable;
        }
        None => return Verdict::NotMoved,
        Some(_) => {}
    }
    match nat::detect(spis, path, payloads) {
        // RFC 4555 §3.8: who is asked with NAT detection answers with it, if he has done what was asked.
        None if nat_t => Verdict::NotMoved,
        nat => Verdict::Updated(nat),
    }
}

/// The hash of how the peer sees us, from a message with NAT detection.
pub(crate) fn seen_as(payloads: &[Payload]) -> Option<Vec<u8>> {
    payloads.iter().find_map(|payload| match payload {
        Payload::Notify(n) if n.kind == NotifyType::NAT_DETECTION_DESTINATION_IP => {
            Some(n.data.clone())
        }
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use bewick_ike::{ConnectionId, Role, SaId, SaView};

    use super::*;

    #[test]
    fn the_peer_s_cheaper_address_comes_first_after_the_one_in_use() {
        let at = |text: &str| text.parse().unwrap();
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let path = Path::new(at("198.51.100.2:4500"), at("192.0.2.1:4500"));
        let (id, connection, role) = (SaId(1), ConnectionId(0), Role::Initiator);
        let view = SaView { id, connection, role, spi_i: 1, spi_r: 2, epoch: 0, path };
        let mut mobility = Mobility::new(&view);
        let told = ["192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.4"].map(ip);
        mobility.peer_addresses = told.to_vec();
        let locals = [LocalAddress {
            cost: 0,
            metric: 0,
            address: ip("198.51.100.2"),
            interface: "wlan0".into(),
            metered: false,
        }];
        let order = |mobility: &Mobility| -> Vec<IpAddr> {
            candidates(mobility, &locals, path).iter().map(|path| path.remote.ip()).collect()
        };
        assert_eq!(order(&mobility), told);
        mobility.peer_costs = vec![(told[1], 300), (told[3], 10)];
        assert_eq!(order(&mobility), [told[0], told[3], told[1], told[2]]);
    }
}
