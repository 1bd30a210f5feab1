//! What the client is told of the network inside: virtual addresses and DNS servers (RFC 7296 §2.19).

use std::net::{IpAddr, Ipv4Addr};

use crate::life::act::Act;
use crate::life::case::Case;
use crate::life::outside::Outside;
use crate::life::second::Second;
use crate::peer::Program;
use crate::peer::tunnel::{Child, Network, Tunnel};

/// The name of the other client.
const SECOND_ID: &str = "phone@example.com";

const EVERYWHERE: &[Network] = &[Network::EVERYWHERE];

/// An address of one family, one that is asked for, a pool of one address, DNS servers, all traffic through the
/// tunnel, and what is not of the gateway's network beside it.
pub fn virtual_addresses(client: Program) -> Vec<Case> {
    let with = |children, over_ipv6| Tunnel { children, over_ipv6, ..Tunnel::default() };
    let net = |networks| vec![Child { name: "net", networks }];
    let ipv6 = with(net(&[Network::IPV6]), true);
    let of_one = Tunnel { pools: &["10.9.0.7/32"], ..Tunnel::default() };
    let dns = Tunnel { dns: &["10.1.0.53", "10.1.0.54"], ..Tunnel::default() };
    let mut cases = vec![
        Case::new("ipv6-alone", ipv6),
        Case { given: Some(Ipv4Addr::new(10, 9, 0, 7).into()), ..Case::new("pool-of-one", of_one) },
        Case::new("dns", dns),
        outside("all-traffic", Outside::Through, with(net(EVERYWHERE), false)),
        outside("split", Outside::Beside, Tunnel::default()),
    ];
    if client == Program::Strongswan {
        let asks = Tunnel { asks_for: Some("10.9.0.77"), ..Tunnel::default() };
        let given = Some(IpAddr::V4(Ipv4Addr::new(10, 9, 0, 77)));
        cases.push(Case { given, ..Case::new("asked-for", asks) });
        let taken =
            Tunnel { asks_for: Some("10.8.0.1"), pools: &["10.9.0.7/32"], ..Tunnel::default() };
        let given = Some(IpAddr::V4(Ipv4Addr::new(10, 9, 0, 7)));
        cases.push(Case { given, ..Case::new("asked-for-another", taken) });
    }
    cases
}

/// The client has something to say to a host outside.
fn outside(name: &str, outside: Outside, tunnel: Tunnel) -> Case {
    let (seen, unseen) = (outside.seen(), outside.unseen());
    Case { act: Act::Outside(outside), seen, unseen, ..Case::new(name, tunnel) }
}

/// Another client, behind the same NAT, with a name of its own or the same.
pub fn two_clients(client: Program) -> Vec<Case> {
    let case = |name: &str, second, tunnel: Tunnel| Case {
        act: Act::Second(second),
        ..Case::new(name, Tunnel { second: Some(SECOND_ID), ..tunnel })
    };
    let pools = |pools| Tunnel { pools, ..Tunnel::default() };
    let mut never = Tunnel::default();
    never.gateway.unique = Some("never");
    // A strongSwan says INITIAL_CONTACT otherwise, and is taken at its word.
    never.client.unique = Some("never");
    let mut cases = vec![
        case("two-names", Second::Joins, Tunnel::default()),
        case("two-pools", Second::Joins, pools(&["10.9.0.7/32", "10.9.0.128/25"])),
        case("none-left", Second::IsRefused, pools(&["10.9.0.7/32"])),
        case("same-name", Second::Replaces, Tunnel::default()),
        case("same-name-kept", Second::IsKeptToo, never),
    ];
    if client == Program::Strongswan {
        let same = Tunnel { asks_for: Some("10.9.0.77"), ..Tunnel::default() };
        cases.push(case("same-address-wanted", Second::Joins, same));
        let mut keep = Tunnel::default();
        keep.client.unique = Some("never");
        keep.gateway.unique = Some("keep");
        cases.push(case("same-name-turned-away", Second::IsTurnedAway, keep));
    }
    cases
}
