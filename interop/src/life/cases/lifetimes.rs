//! New keys because the old ones were in use for long enough.

use crate::life::act::Act;
use crate::life::case::Case;
use crate::peer::Program;
use crate::peer::tunnel::{Side, Tunnel};
use crate::topology::Node;

/// By time from either end, of either kind; from bewick after so many packets too.
pub fn lifetimes(client: Program) -> Vec<Case> {
    let mut cases = Vec::new();
    for node in [Node::Client, Node::Gateway] {
        let case = |what: &str, act, set: fn(&mut Side)| {
            let mut tunnel = Tunnel::default();
            set(if node == Node::Client { &mut tunnel.client } else { &mut tunnel.gateway });
            Case { act, ..Case::new(format!("{what}-from-{}", node.name()), tunnel) }
        };
        cases.push(case("child", Act::AwaitChildren, |side| side.child_lifetime = Some(3)));
        cases.push(case("ike", Act::AwaitIke, |side| side.ike_lifetime = Some(3)));
        let is_bewick = (node == Node::Client) == (client == Program::Bewick);
        if is_bewick {
            cases.push(case("packets", Act::AwaitChildren, |side| side.child_packets = Some(1000)));
        }
    }
    cases
}
