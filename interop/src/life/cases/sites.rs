//! Two networks, one behind each end, and no virtual address.

use crate::life::act::Act;
use crate::life::case::Case;
use crate::peer::tunnel::{Child, Network, Tunnel};

/// One CHILD_SA and two, and the families in each other.
pub fn sites() -> Vec<Case> {
    let net = |networks| vec![Child { name: "net", networks }];
    let case = |name: &str, act, site, children, over_ipv6| {
        let tunnel = Tunnel { site, children, over_ipv6, ..Tunnel::default() };
        Case { act, ..Case::new(name, tunnel) }
    };
    let (v4, v6) = (&[Network::SITE], &[Network::SITE_6]);
    vec![
        case("one-child", Act::RekeyChildren, v4, net(&[Network::FIRST]), false),
        case("two-children", Act::RekeyChildren, v4, super::two_children(), false),
        case("two-networks", Act::RekeyIke, v4, net(&[Network::FIRST, Network::SECOND]), false),
        case("ipv4-in-ipv6", Act::Nothing, v4, net(&[Network::FIRST]), true),
        case("ipv6-in-ipv4", Act::Nothing, v6, net(&[Network::IPV6]), false),
        case("client-dies", Act::ClientDies, v4, net(&[Network::FIRST]), false),
    ]
}

/// Both sites start at once, told so or by themselves; strongSwan lets two IKE_SAs be, or has one alone, where bewick
/// does not begin anew when its own is deleted.
pub fn both_start() -> Vec<Case> {
    let case = |name: &str, at_once, unique, late| {
        let children = vec![Child { name: "net", networks: &[Network::FIRST] }];
        let site = &[Network::SITE];
        let mut tunnel = Tunnel { site, children, mutual: true, at_once, ..Tunnel::default() };
        (tunnel.client.id, tunnel.gateway.id) = (Some("a.example.com"), Some("b.example.com"));
        for side in [&mut tunnel.client, &mut tunnel.gateway] {
            side.asks_again_soon = true;
            side.unique = unique;
        }
        Case { act: Act::Meet { late }, ..Case::new(name, tunnel) }
    };
    vec![
        case("told-so", false, None, false),
        case("by-themselves", true, None, false),
        case("one-alone", false, Some("replace"), false),
        case("proof-is-late", true, None, true),
    ]
}
