//! Transport mode, which is between the two ends themselves.

use crate::life::act::Act;
use crate::life::case::{Case, Outcome};
use crate::life::seen::Seen;
use crate::peer::Program;
use crate::peer::tunnel::{Child, Network, Side, Tunnel};
use crate::topology::{FIRST_UPLINK, GATEWAY};

const CLIENT: Network =
    Network { prefix: "198.51.100.2/32", host: std::net::IpAddr::V4(FIRST_UPLINK) };
const SERVER: Network = Network { prefix: "192.0.2.1/32", host: std::net::IpAddr::V4(GATEWAY) };
const CLIENT_ICMP: Network = Network { prefix: "198.51.100.2/32[icmp]", ..CLIENT };
const SERVER_ICMP: Network = Network { prefix: "192.0.2.1/32[icmp]", ..SERVER };

/// Everything between the two ends with new keys, one protocol of it, and ends that want different modes.
pub fn transport(client: Program) -> Vec<Case> {
    let tunnel = |networks, site, [client, gateway]: [bool; 2]| {
        let side = |transport| Side { transport, ..Side::default() };
        let children = vec![Child { name: "net", networks }];
        Tunnel { client: side(client), gateway: side(gateway), children, site, ..Tunnel::default() }
    };
    let hosts = |name: &str, modes| Case {
        seen: vec![Seen::bare_esp()],
        unseen: vec![Seen::between_ends()],
        ..Case::new(name, tunnel(&[SERVER], &[CLIENT], modes))
    };
    let both = [true, true];
    let refused = |name: &str, modes, outcome| Case {
        outcome,
        ..Case::new(name, tunnel(&[SERVER], &[CLIENT], modes))
    };
    let mut cases = vec![
        Case { act: Act::RekeyChildren, ..hosts("all-traffic", both) },
        Case {
            seen: vec![Seen::bare_esp()],
            unseen: vec![Seen::between_ends()],
            ..Case::new("icmp-alone", tunnel(&[SERVER_ICMP], &[CLIENT_ICMP], both))
        },
        Case { act: Act::GatewayDeletes, ..hosts("gateway-deletes", both) },
    ];
    match client {
        // RFC 7296 §1.3.1: an initiator that does not want what it got deletes it.
        Program::Bewick => {
            cases.push(refused("gateway-declines", [true, false], Outcome::NoIkeSa));
            let mut moves = hosts("made-anew-by-a-move", both);
            (moves.act, moves.tunnel.unnamed) = (Act::LeaveBehind, true);
            cases.push(moves);
        }
        // strongSwan takes a tunnel instead.
        _ => {
            cases.push(hosts("gateway-declines", [true, false]));
            cases.push(refused("gateway-insists", [false, true], Outcome::NoChildSa));
        }
    }
    cases
}
