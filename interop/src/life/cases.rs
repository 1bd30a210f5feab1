//! The tunnels that are tried, topic by topic.

pub mod addresses;
pub mod ends;
pub mod lifetimes;
pub mod moves;
pub mod names;
pub mod revocation;
pub mod sites;
pub mod transport;
pub mod traps;

use std::path::Path;

use super::act::Act;
use super::case::{Case, Outcome};
use super::hand;
use super::leak::Leak;
use super::seen::Seen;
use super::stranger;
use super::travel::Travel;
use super::unknown::Unknown;
use crate::failure::Result;
use crate::peer::Program;
use crate::peer::tunnel::{Child, Network, Proof, Signatures, Tunnel};
use crate::pki::{self, Kind};
use crate::topology::Node;

/// Each cipher for IKE and for ESP, and each key exchange, at least once.
const SUITES: &[(&str, &str)] = &[
    ("aes128gcm16-prfsha256-x25519", "aes128gcm16"),
    ("aes192gcm16-prfsha384-ecp256", "aes192gcm16"),
    ("aes256gcm16-prfsha384-ecp384", "aes256gcm16"),
    ("chacha20poly1305-prfsha256-ecp521", "chacha20poly1305"),
    ("aes128-sha256-prfsha256-modp2048", "aes128-sha256"),
    ("aes256-sha256-prfsha256-modp3072", "aes256-sha256"),
    ("aes256-sha384-prfsha384-modp4096", "aes256-sha384"),
    ("aes256-sha512-prfsha512-x25519", "aes256-sha512"),
];

/// What an initiator offers first, and what the gateway would rather have.
const FIRST: &str = "aes256gcm16-prfsha384-x25519";
const RATHER: &str = "aes256gcm16-prfsha384-ecp384";

/// Small enough for any IKE_AUTH to need several.
const SMALL: u16 = 256;

/// Every cipher and every key exchange, then a client that guesses the group wrong.
pub fn suites() -> Vec<Case> {
    let mut cases: Vec<Case> = SUITES
        .iter()
        .map(|&(ike, esp)| {
            let mut tunnel = Tunnel::default();
            for side in [&mut tunnel.client, &mut tunnel.gateway] {
                side.ike = vec![ike];
                side.esp = vec![esp];
            }
            Case { agreed: Some((ike, esp)), ..Case::new(ike, tunnel) }
        })
        .collect();
    cases.push(Case {
        seen: vec![Seen::other_group()],
        agreed: Some((RATHER, "aes256gcm16")),
        ..Case::new("another-group-first", guesses_wrong())
    });
    cases
}

/// A client whose first key exchange is not the gateway's.
fn guesses_wrong() -> Tunnel {
    let mut tunnel = Tunnel::default();
    tunnel.client.ike = vec![FIRST, RATHER];
    tunnel.gateway.ike = vec![RATHER];
    tunnel.client.esp = vec!["aes256gcm16"];
    tunnel.gateway.esp = vec!["aes256gcm16"];
    tunnel
}

/// All of IPv4 through the tunnel, which closes all of IPv6 too, and a network that wants the packets.
pub fn leaks() -> Vec<Case> {
    let case = |leak: Leak| {
        let networks = &[Network::EVERYWHERE];
        let mut tunnel =
            Tunnel { children: vec![Child { name: "net", networks }], ..Tunnel::default() };
        tunnel.client.kill_switch = Some(leak.word());
        Case { act: Act::Leak(leak), ..Case::new(leak.word(), tunnel) }
    };
    vec![case(Leak::Always), case(Leak::WhileUp)]
}

/// One end cuts its messages small, then the other.
pub fn fragments() -> Vec<Case> {
    let small = |node| {
        let mut tunnel = Tunnel::default();
        match node {
            Node::Client => tunnel.client.fragment_size = Some(SMALL),
            _ => tunnel.gateway.fragment_size = Some(SMALL),
        }
        let seen = vec![Seen::fragment(node)];
        Case { seen, ..Case::new(format!("small-{}", node.name()), tunnel) }
    };
    vec![small(Node::Client), small(Node::Gateway)]
}

/// A gateway that asks for a cookie, alone and together with another group (RFC 7296 §2.6.1).
pub fn cookies() -> Vec<Case> {
    let asked = || vec![Seen::cookie(Node::Gateway), Seen::cookie(Node::Client)];
    let mut tunnel = Tunnel::default();
    tunnel.gateway.cookies = true;
    let mut other_group = guesses_wrong();
    other_group.gateway.cookies = true;
    other_group.gateway.ike.push(stranger::SUITE);
    let mut seen = asked();
    seen.push(Seen::other_group());
    vec![
        Case { seen: asked(), ..Case::new("cookie", tunnel) },
        Case { seen, ..Case::new("cookie-and-another-group", other_group) },
    ]
}

/// Both ends with a certificate of each kind, one from an intermediate authority, two kinds, and a
/// certificate at one end only.
///
/// # Errors
/// The certificates could not be made in `folder`.
pub fn certificates(folder: &Path) -> Result<Vec<Case>> {
    let make = |node, kind| pki::make(folder, node, kind, false).map(Proof::Certificate);
    let case = |name: &str, client: Proof, gateway: Proof| {
        let mut tunnel = Tunnel::default();
        (tunnel.client.proof, tunnel.gateway.proof) = (client, gateway);
        Case::new(name, tunnel)
    };
    let mut cases = Vec::new();
    for kind in [Kind::Rsa, Kind::Ecdsa256, Kind::Ecdsa384, Kind::Ed25519] {
        let (client, gateway) = (make(Node::Client, kind)?, make(Node::Gateway, kind)?);
        cases.push(case(kind.name(), client, gateway));
    }
    let chained =
        |node| pki::make(&folder.join("chain"), node, Kind::Ecdsa256, true).map(Proof::Certificate);
    cases.push(case("chain", chained(Node::Client)?, chained(Node::Gateway)?));
    let (client, gateway) = (make(Node::Client, Kind::Rsa)?, make(Node::Gateway, Kind::Ed25519)?);
    cases.push(case("rsa-to-ed25519", client.clone(), gateway.clone()));
    cases.push(case("psk-to-certificate", Proof::Psk, gateway));
    cases.push(case("certificate-to-psk", client, Proof::Psk));

    let (client, gateway) =
        (make(Node::Client, Kind::Ecdsa256)?, make(Node::Gateway, Kind::Ecdsa256)?);
    let mut revoked = case("revoked", client.clone(), gateway.clone());
    revoked.tunnel.gateway.revoked = Some(pki::list(folder, Node::Client, Kind::Ecdsa256, true)?);
    // The gateway trusts an authority of the same name, not this one.
    let mut stranger = case("other-authority", client, gateway);
    if let (Proof::Certificate(files), Proof::Certificate(other)) =
        (&mut stranger.tunnel.client.proof, chained(Node::Client)?)
    {
        files.ca = other.ca;
    }
    cases.extend([revoked, stranger].map(|case| Case { outcome: Outcome::NoIkeSa, ..case }));
    cases.extend(revocation::lists(folder)?);
    Ok(cases)
}

fn two_children() -> Vec<Child> {
    vec![
        Child { name: "net", networks: &[Network::FIRST] },
        Child { name: "other", networks: &[Network::SECOND] },
    ]
}

/// Two networks as two CHILD_SAs.
///
/// strongSwan as the gateway passes over the Vendor ID that bewick asks by whether its peer is one too.
pub fn children(client: Program) -> Vec<Case> {
    let tunnel = Tunnel { children: two_children(), ..Tunnel::default() };
    let said: &[(Program, &'static [&'static str])] = match client {
        Program::Bewick => &[(Program::Strongswan, &["found payload of type VENDOR_ID"])],
        _ => &[],
    };
    let said = said.to_vec();
    vec![Case { act: Act::RekeyChildren, said, ..Case::new("two-children", tunnel) }]
}

/// What comes of an IKE_SA without a first CHILD_SA, by what the client says of it and the gateway.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Alone {
    /// It is made so, and each CHILD_SA has a key exchange of its own.
    Yes,
    /// It is not, and the CHILD_SA has the keys of the IKE_SA.
    No,
    /// There is no IKE_SA.
    Refused,
    /// There is one, and the gateway refuses the CHILD_SA in IKE_AUTH.
    NoChild,
}

/// An IKE_SA alone, in the words of both ends. Those with `prefer` are for when that end is bewick.
pub fn childless(client: Program) -> Vec<Case> {
    use Alone::{No, NoChild, Refused, Yes};
    let words: &[(&str, &str, Alone)] = match client {
        Program::Bewick => &[
            ("force", "allow", Yes),
            ("force", "force", Yes),
            ("force", "never", Refused),
            ("prefer", "allow", Yes),
            ("prefer", "force", Yes),
            ("prefer", "never", No),
            ("allow", "force", Refused),
        ],
        _ => &[
            ("force", "allow", Yes),
            ("force", "force", Yes),
            ("force", "prefer", Yes),
            ("force", "never", Refused),
            ("allow", "prefer", No),
            ("allow", "force", NoChild),
        ],
    };
    let case = |&(client, gateway, alone): &(&'static str, &'static str, Alone)| {
        let mut tunnel = Tunnel::default();
        if alone == Yes {
            tunnel.children = two_children();
        }
        tunnel.client.childless = Some(client);
        tunnel.gateway.childless = Some(gateway);
        let tunnel = both(tunnel, &["aes256gcm16-x25519"]);
        let beyond = Some([if alone == Yes { "x25519" } else { "" }; 2]);
        let outcome = match alone {
            Yes | No => Outcome::Up,
            Refused => Outcome::NoIkeSa,
            NoChild => Outcome::NoChildSa,
        };
        Case { beyond, outcome, ..Case::new(format!("{client}-to-{gateway}"), tunnel) }
    };
    words.iter().map(case).collect()
}

/// The same ESP proposals at both ends.
fn both(mut tunnel: Tunnel, esp: &[&'static str]) -> Tunnel {
    tunnel.client.esp = esp.to_vec();
    tunnel.gateway.esp = esp.to_vec();
    tunnel
}

/// Sequence numbers of 64 bits and of 32, and a client that would rather have the former.
pub fn esn() -> Vec<Case> {
    let case = |name: &str, act, esp: &[&'static str], beyond| {
        let tunnel = both(Tunnel::default(), esp);
        Case { act, beyond: Some(beyond), ..Case::new(name, tunnel) }
    };
    let (with, without) = ("aes256gcm16-esn", "aes256gcm16");
    let mut rather = case("gateway-without", Act::Nothing, &[with, without], [""; 2]);
    rather.tunnel.gateway.esp = vec![without];
    vec![
        case("on", Act::RekeyChildren, &["aes256gcm16-x25519-esn"], ["esn", "x25519-esn"]),
        case("on-cbc", Act::Nothing, &["aes128-sha256-esn"], ["esn"; 2]),
        case("off", Act::Nothing, &[without], [""; 2]),
        rather,
    ]
}

/// New keys for the CHILD_SA from a key exchange of their own, and one whose first guess is wrong.
pub fn secrecy() -> Vec<Case> {
    let case = |name: &str, esp: &[&'static str], exchange| {
        let tunnel = both(Tunnel::default(), esp);
        Case { act: Act::RekeyChildren, beyond: Some(["", exchange]), ..Case::new(name, tunnel) }
    };
    let (x25519, ecp256) = ("aes256gcm16-x25519", "aes256gcm16-ecp256");
    let mut other = case("another-group-first", &[x25519, ecp256], "ecp256");
    other.tunnel.gateway.esp = vec![ecp256];
    vec![case("x25519", &[x25519], "x25519"), case("ecp256", &[ecp256], "ecp256"), other]
}

/// A client that proves anew who it is: the next IKE_SA stands before the last one goes.
pub fn reauthentication(client: Program) -> Vec<Case> {
    let order = &[
        "IKE_SA tunnel[2] state change: CONNECTING => ESTABLISHED",
        "IKE_SA tunnel[1] state change: ESTABLISHED => DELETING",
        "IKE_SA tunnel[3] state change: CONNECTING => ESTABLISHED",
        "IKE_SA tunnel[2] state change: ESTABLISHED => DELETING",
    ];
    // strongSwan's first packets for the new CHILD_SA may be at bewick before its keys are in place.
    let lost_in_a_row = if client == Program::Bewick { 1 } else { 0 };
    vec![Case { lost_in_a_row, ..reauthenticates("twice", Tunnel::default(), order) }]
}

/// The same with two CHILD_SAs: both stand anew before the last IKE_SA goes.
pub fn reauthentication_of_two() -> Vec<Case> {
    let order = &[
        "CHILD_SA other{4} established",
        "IKE_SA tunnel[1] state change: ESTABLISHED => DELETING",
        "CHILD_SA other{6} established",
        "IKE_SA tunnel[2] state change: ESTABLISHED => DELETING",
    ];
    let tunnel = Tunnel { children: two_children(), ..Tunnel::default() };
    // A gateway, bewick too, uses the second one at once, when the client's keys may not be in place yet.
    vec![Case { lost_in_a_row: 1, ..reauthenticates("two-children", tunnel, order) }]
}

fn reauthenticates(name: &str, mut tunnel: Tunnel, order: &'static [&'static str]) -> Case {
    tunnel.client.reauth_lifetime = Some(3);
    let said = vec![(Program::Strongswan, order)];
    Case { act: Act::Reauthenticate, said, ..Case::new(name, tunnel) }
}

/// RSA keys that sign with PSS at both ends.
///
/// # Errors
/// The certificates could not be made in `folder`.
pub fn rsa_pss(folder: &Path) -> Result<Vec<Case>> {
    let make = |node| pki::make(folder, node, Kind::Rsa, false).map(Proof::Certificate);
    let (client, gateway) = (make(Node::Client)?, make(Node::Gateway)?);
    let case = |name: &str, signatures, own: &'static [&'static str]| {
        let mut tunnel = Tunnel::default();
        for (side, proof) in [(&mut tunnel.client, &client), (&mut tunnel.gateway, &gateway)] {
            side.proof = proof.clone();
            side.signatures = signatures;
        }
        let peer: &[&str] = &["' with RSA_EMSA_PSS_SHA2_256_SALT_32 successful"];
        let said = vec![(Program::Strongswan, own), (Program::Strongswan, peer)];
        Case { said, ..Case::new(name, tunnel) }
    };
    let these = |own| Signatures::These(own, "rsa/pss-sha256");
    Ok(vec![
        case("by-setting", Signatures::Pss, &["(myself) with RSA_EMSA_PSS_SHA2_256"]),
        case("sha256", these("rsa/pss-sha256"), &["(myself) with RSA_EMSA_PSS_SHA2_256"]),
        case("sha384", these("rsa/pss-sha384"), &["(myself) with RSA_EMSA_PSS_SHA2_384"]),
        case("sha512", these("rsa/pss-sha512"), &["(myself) with RSA_EMSA_PSS_SHA2_512"]),
    ])
}

/// A bewick that takes four requests at once, and a strongSwan that takes one.
pub fn windows() -> Vec<Case> {
    let case = |name: &str, act| {
        let mut tunnel = Tunnel { children: two_children(), ..Tunnel::default() };
        for side in [&mut tunnel.client, &mut tunnel.gateway] {
            side.window = Some(4);
            // The client has two CHILD_SAs to ask for as soon as there is an IKE_SA.
            side.childless = Some("force");
        }
        let said: Vec<(_, &'static [&'static str])> =
            vec![(Program::Strongswan, &["N(SET_WINSIZE)"])];
        Case { act, said, at_once: Some(1), ..Case::new(name, tunnel) }
    };
    vec![case("new-child-keys", Act::RekeyChildren), case("new-ike-keys", Act::RekeyIke)]
}

/// A peer by hand that says what bewick does not know.
pub fn unknown(client: Program) -> Vec<Case> {
    let more: &[(&str, Unknown)] = match client {
        Program::Bewick => &[("error-in-answer", Unknown::ErrorInAnswer)],
        _ => &[
            ("critical-in-ike-sa-init", Unknown::CriticalInInit),
            ("critical-in-ike-auth", Unknown::CriticalInAuth),
        ],
    };
    let case = |&(name, unknown): &(&str, Unknown)| {
        let mut tunnel = Tunnel { site: &[Network::SITE], ..Tunnel::default() };
        for side in [&mut tunnel.client, &mut tunnel.gateway] {
            // The hand knows no MOBIKE.
            (side.ike, side.esp, side.stays) = (vec![hand::SUITE], vec!["aes256gcm16"], true);
        }
        Case { act: Act::Unknown(unknown), ..Case::new(name, tunnel) }
    };
    [("anything", Unknown::Anything)].iter().chain(more).map(case).collect()
}

fn inside(name: &str, networks: &'static [Network], over_ipv6: bool) -> Case {
    let children = vec![Child { name: "net", networks }];
    Case::new(name, Tunnel { children, over_ipv6, ..Tunnel::default() })
}

/// Outer and inner packets of different families, and both inside.
pub fn families() -> Vec<Case> {
    vec![
        inside("ipv4-in-ipv6", &[Network::FIRST], true),
        inside("ipv6-in-ipv4", &[Network::IPV6], false),
        inside("both-in-ipv4", &[Network::FIRST, Network::IPV6], false),
        inside("both-in-ipv6", &[Network::FIRST, Network::IPV6], true),
    ]
}

/// What of this differs from one kernel path to another.
pub fn families_in_kernel() -> Vec<Case> {
    vec![
        inside("ipv4-in-ipv6", &[Network::FIRST], true),
        inside("both-in-ipv4", &[Network::FIRST, Network::IPV6], false),
    ]
}

/// New keys for the CHILD_SA.
pub fn rekey_child() -> Vec<Case> {
    vec![Case { act: Act::RekeyChildren, ..Case::new("rekey-child", Tunnel::default()) }]
}

/// New keys for the IKE_SA.
pub fn rekey_ike() -> Vec<Case> {
    vec![Case { act: Act::RekeyIke, ..Case::new("rekey-ike", Tunnel::default()) }]
}

fn travels(name: impl Into<String>, travel: Travel) -> Case {
    let mut tunnel = Tunnel::default();
    tunnel.client.asks_again_soon = true;
    tunnel.gateway.asks_again_soon = true;
    Case { act: Act::Travel(travel), ..Case::new(name, tunnel) }
}

/// The current path drops everything.
pub fn silent_path() -> Vec<Case> {
    vec![travels("silent-path", Travel::SilentPath)]
}

/// One uplink has IPv4 alone, the other IPv6 alone.
pub fn families_move() -> Vec<Case> {
    vec![travels("ipv4-ipv6-ipv4", Travel::Families)]
}

/// Two CHILD_SAs and a lost uplink.
pub fn two_children_move() -> Vec<Case> {
    let mut case = travels("two-children", Travel::LosesUplink);
    case.tunnel.children = two_children();
    vec![case]
}

/// New keys asked for on a path that is lost before the answer comes.
pub fn move_during_rekey(client: Program) -> Vec<Case> {
    let mut cases = Vec::new();
    for by in [Node::Client, Node::Gateway] {
        for (what, ike) in [("child", false), ("ike", true)] {
            let name = format!("{what}-keys-from-{}", by.name());
            // strongSwan asks again and again on the path that is gone, and moves only after the answer.
            // It gives the CHILD_SAs new keys after each move in userspace.
            let put_off = ike && (client, by) == (Program::Strongswan, Node::Gateway);
            let unheard = (client, by) != (Program::Strongswan, Node::Client);
            let case = travels(name, Travel::DuringRekey { ike, by, unheard, put_off });
            cases.push(case);
        }
    }
    cases
}

/// A gateway with two addresses.
pub fn gateway_loses_address() -> Vec<Case> {
    vec![travels("gateway-loses-address", Travel::GatewayLosesAddress)]
}

/// A NAT that forgets, and gives other ports from then on.
pub fn nat_mappings(client: Program) -> Vec<Case> {
    let mut under_way = travels("nat-mappings", Travel::NatForgets);
    if client == Program::Strongswan {
        // It sees the change in an answer to such a question, if the one before had an answer too.
        under_way.tunnel.client.liveness = Some(1);
    }
    let mut at_rest = travels("at-rest", Travel::ForgottenAtRest);
    at_rest.tunnel.client.liveness = Some(1);
    vec![under_way, at_rest]
}

/// XFRM interfaces at both ends, and at one of them.
pub fn interfaces() -> Vec<Case> {
    let case = |name, client, gateway| {
        let mut case = travels(name, Travel::LosesUplink);
        (case.tunnel.client.if_id, case.tunnel.gateway.if_id) = (client, gateway);
        case
    };
    vec![case("both", Some(42), Some(7)), case("client", Some(42), None)]
}

/// A move on request.
pub fn planned() -> Vec<Case> {
    vec![travels("planned", Travel::Planned)]
}

/// Moves in a kernel.
pub fn moves(client: Program) -> Vec<Case> {
    let rekey = move_during_rekey(client).into_iter();
    let rekey = rekey.filter(|case| case.name == "child-keys-from-gateway");
    two_children_move().into_iter().chain(rekey).chain(gateway_loses_address()).collect()
}
