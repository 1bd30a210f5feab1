//! More moves: through a gateway's NAT, many one after the other, and none where an end does not move.

use super::{travels, two_children};
use crate::life::act::Act;
use crate::life::case::Case;
use crate::life::outstanding::{Outstanding, Question};
use crate::life::seen::Seen;
use crate::life::travel::Travel;
use crate::peer::tunnel::{Network, Tunnel};
use crate::peer::{Plane, Program};
use crate::topology::Node;

const LIVENESS: (&str, Question) = ("liveness", Question::Liveness);
const END: (&str, Question) = ("child-end", Question::End);
const OLD_END: (&str, Question) = ("old-child-end", Question::OldEnd);
const CHILD: (&str, Question) = ("new-child", Question::Child);

/// Each end alone stays where it is, then both.
pub fn mobike_off() -> Vec<Case> {
    let case = |name: &str, client, gateway| {
        let mut tunnel = Tunnel { children: two_children(), ..Tunnel::default() };
        tunnel.client.stays = client;
        tunnel.gateway.stays = gateway;
        // Of two CHILD_SAs that are made anew strongSwan takes the wrong one for a packet, in userspace.
        let mut anew = travels(format!("{name}-uplink-lost"), Travel::Anew);
        (anew.tunnel.client.stays, anew.tunnel.gateway.stays) = (client, gateway);
        [Case { act: Act::RekeyIke, ..Case::new(name, tunnel) }, anew]
    };
    [
        case("client-stays", true, false),
        case("gateway-stays", false, true),
        case("both-stay", true, true),
    ]
    .concat()
}

/// Each kind of question but for new keys, from each end that asks it.
pub fn during_question(client: Program) -> Vec<Case> {
    let mut cases = Vec::new();
    for by in [Node::Client, Node::Gateway] {
        let is_bewick = (by == Node::Client) == (client == Program::Bewick);
        let questions: &[(&str, Question)] = match (is_bewick, by) {
            (true, Node::Client) => &[LIVENESS, OLD_END, CHILD],
            // Who answers asks for no CHILD_SA, and leaves it to a client that moves to ask whether all is well.
            (true, _) => &[OLD_END],
            // Nor has bewick a word for the end of one.
            (false, _) => &[LIVENESS, END, OLD_END, CHILD],
        };
        for &(what, question) in questions {
            // strongSwan asks again and again on the path that is gone, and moves only after the answer.
            let unheard = (client, by) != (Program::Strongswan, Node::Client)
                || question == Question::Liveness;
            let outstanding = Outstanding { question, by, unheard };
            let name = format!("{what}-from-{}", by.name());
            let mut case = travels(name, Travel::Outstanding(outstanding));
            let tunnel = &mut case.tunnel;
            (tunnel.site, tunnel.children) = (&[Network::SITE], two_children());
            if question == Question::Liveness && !(is_bewick && by == Node::Client) {
                let side = if by.is_client() { &mut tunnel.client } else { &mut tunnel.gateway };
                side.liveness = Some(1);
            }
            // A client that finds out first moves, and nobody has a reason to ask.
            tunnel.client.patient = question == Question::Liveness && !by.is_client();
            // So it makes what is missing when it is told to.
            tunnel.trap = client == Program::Bewick && question == Question::Child;
            cases.push(case);
        }
    }
    cases
}

/// Five moves while much goes through the tunnel, and a move that is taken back at once: before it is answered,
/// where the kernel can make the way long.
pub fn many(plane: Plane) -> Vec<Case> {
    let mut cases = vec![
        travels("transfer", Travel::Transfer),
        travels("there-and-back", Travel::ThereAndBack),
    ];
    if plane.is_in_kernel() {
        cases.push(travels("within-a-round-trip", Travel::WithinARoundTrip));
    }
    cases
}

/// The gateway is behind a NAT.
pub fn gateway_behind_nat() -> Vec<Case> {
    let mut case = travels("gateway-behind-nat", Travel::LosesUplink);
    case.tunnel.gateway_behind_nat = true;
    vec![case]
}

/// UDP, TCP, and UDP again.
pub fn tcp_fallback() -> Vec<Case> {
    let mut case = travels("udp-tcp-udp", Travel::FallsBackToTcp);
    case.tunnel.tcp = true;
    case.tunnel.children = two_children();
    case.seen = vec![Seen::stream()];
    vec![case]
}

/// Nothing but TCP from the start.
pub fn tcp_only() -> Vec<Case> {
    let tunnel = Tunnel { tcp: true, children: two_children(), ..Tunnel::default() };
    let act = |name: &str, act| Case {
        act,
        seen: vec![Seen::stream()],
        ..Case::new(name, tunnel.clone())
    };
    vec![
        act("set-up", Act::Nothing),
        act("rekey-child", Act::RekeyChildren),
        act("rekey-ike", Act::RekeyIke),
        act("client-dies", Act::ClientDies),
        act("move", Act::Travel(Travel::LosesUplink)),
    ]
}

/// UDP around ESP where no NAT asks for it, because the client wants it.
pub fn forced_encap() -> Vec<Case> {
    let mut tunnel = Tunnel::default();
    tunnel.client.force_encap = true;
    let seen = vec![Seen::esp_in_udp(Node::Client), Seen::esp_in_udp(Node::Gateway)];
    let unseen = vec![Seen::bare_esp()];
    let mut moves = travels("move", Travel::LosesUplink);
    moves.tunnel.client.force_encap = true;
    (moves.seen, moves.unseen) = (seen.clone(), unseen.clone());
    let new_keys = Case { act: Act::RekeyChildren, seen, unseen, ..Case::new("new-keys", tunnel) };
    vec![new_keys, moves]
}

/// A network that delays, loses and reorders.
pub fn rough() -> Vec<Case> {
    vec![travels("lossy", Travel::Rough)]
}

/// A NAT that remembers no longer than 20 s.
pub fn nat_forgets_soon() -> Vec<Case> {
    vec![travels("idle", Travel::Idle)]
}

/// A gateway whose addresses come and go, and a client's whose spare one does: strongSwan hears or says it
/// (RFC 4555 §3.4, §3.6).
pub fn announced() -> Vec<Case> {
    let none: &[&str] = &["N(NO_ADD_ADDR)", "N(ADD_4_ADDR)"];
    let case = |name: &str, travel, said| {
        let said = vec![(Program::Strongswan, said)];
        Case { said, ..travels(name, travel) }
    };
    vec![
        case("comes-and-goes", Travel::Announced, &["N(ADD_4_ADDR)", "N(NO_ADD_ADDR)"]),
        case("client-s-spare", Travel::SpareComesAndGoes, none),
    ]
}
