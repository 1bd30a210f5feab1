//! How an IKE_SA ends, and what comes after it.

use crate::life::act::Act;
use crate::life::case::Case;
use crate::life::dying::Death;
use crate::peer::Program;
use crate::peer::tunnel::Tunnel;
use crate::topology::Node;

/// How it ends; that the client deletes it is how every case ends.
pub fn ends(client: Program) -> Vec<Case> {
    let case = |name, act| Case { act, ..Case::new(name, Tunnel::default()) };
    let mut elsewhere = case("client-dies-elsewhere", Act::Dies(Death::ClientIsElsewhere));
    if client == Program::Strongswan {
        // INITIAL_CONTACT alone has bewick let an older IKE_SA go then, as `no` does with strongSwan.
        elsewhere.tunnel.gateway.unique = Some("keep");
    }
    vec![
        case("gateway-deletes", Act::GatewayDeletes),
        case("client-dies", Act::ClientDies),
        elsewhere,
        case("gateway-restarts", Act::GatewayRestarts),
    ]
}

/// An end that is killed: the other finds out by asking, each second if it may.
pub fn deaths() -> Vec<Case> {
    let case = |name, death| {
        let mut tunnel = Tunnel::default();
        for side in [&mut tunnel.client, &mut tunnel.gateway] {
            (side.liveness, side.gives_up_soon) = (Some(1), true);
        }
        Case { act: Act::Dies(death), ..Case::new(name, tunnel) }
    };
    let mut crash = case("gateway-crashes", Death::GatewayIsBack);
    crash.tunnel.client.keeps_up = true;
    vec![
        case("gateway-killed", Death::Stays(Node::Gateway)),
        case("client-killed", Death::Stays(Node::Client)),
        crash,
    ]
}
