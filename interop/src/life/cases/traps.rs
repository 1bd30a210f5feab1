//! Clients that wait for packets.

use crate::life::act::Act;
use crate::life::case::Case;
use crate::peer::tunnel::{Child, Network, Tunnel};

/// One CHILD_SA and two, each with a trap of its own.
pub fn traps() -> Vec<Case> {
    let case = |name: &str, children| {
        let tunnel = Tunnel { site: &[Network::SITE], children, trap: true, ..Tunnel::default() };
        Case { act: Act::Trap, ..Case::new(name, tunnel) }
    };
    vec![
        case("one-child", vec![Child { name: "net", networks: &[Network::FIRST] }]),
        case("two-children", super::two_children()),
    ]
}
