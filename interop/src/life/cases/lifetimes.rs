//! New keys because the old ones were in use for long enough.

use crate::life::act::Act;
use crate::life::case::Case;
use crate::peer::tunnel::{Side, Tunnel};
use crate::peer::{Plane, Program};
use crate::topology::Node;

/// The least that bewick takes as a limit.
const OCTETS: u32 = 1_000_000;

/// By time from either end, of either kind, and after so many octets; from bewick after so many packets too.
///
/// In the guest, where daemons need a while to say what they have, the keys live for longer, and the IKE_SA is left
/// out: the kernel has no part in it.
pub fn lifetimes(client: Program, plane: Plane) -> Vec<Case> {
    let in_guest = plane.is_in_kernel();
    let mut cases = Vec::new();
    for node in [Node::Client, Node::Gateway] {
        let seconds = Some(if in_guest { 7 } else { 3 });
        let case = |what: &str, act, set: &dyn Fn(&mut Side)| {
            let mut tunnel = Tunnel::default();
            set(if node == Node::Client { &mut tunnel.client } else { &mut tunnel.gateway });
            Case { act, ..Case::new(format!("{what}-from-{}", node.name()), tunnel) }
        };
        cases.push(case("child", Act::AwaitChildren, &|side| side.child_lifetime = seconds));
        if !in_guest {
            cases.push(case("ike", Act::AwaitIke, &|side| side.ike_lifetime = seconds));
        }
        cases.push(case("octets", Act::AwaitOctets, &|side| side.child_octets = Some(OCTETS)));
        let is_bewick = (node == Node::Client) == (client == Program::Bewick);
        if is_bewick {
            cases
                .push(case("packets", Act::AwaitChildren, &|side| side.child_packets = Some(1000)));
        }
    }
    cases
}
