//! NAT detection in INFORMATIONAL exchanges (RFC 4555 §3.8), and translators between families.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use bewick_ike::wire::{NotifyType, Payload};
use bewick_ike::{ConnectionId, nat};
use bewick_mobike::Command;
use bewick_tests::{
    Datagram, Lab, Plan, Protocol, Realm, Verdict,
    lab::ip,
    puppet::notify,
    scene::{
        GATEWAY, LTE, WLAN, answers, ask, assert_carries, from, mobike, nat_detection, paths,
        puppet_client, puppet_gateway, turned,
    },
};

fn wrong_detection() -> [Payload; 2] {
    [
        notify(NotifyType::NAT_DETECTION_SOURCE_IP, [1; 20]),
        notify(NotifyType::NAT_DETECTION_DESTINATION_IP, [2; 20]),
    ]
}

/// RFC 4555 §3.8: NAT detection may be in any INFORMATIONAL request, of either side, and is answered with
/// NAT detection of the pair of the exchange; a request without it is not.
#[test]
fn m_3_8_1_nat_detection_is_answered_in_any_informational_request_of_either_side() {
    let list = notify(NotifyType::NO_ADDITIONAL_ADDRESSES, []);
    let cookie = notify(NotifyType::COOKIE2, [5; 8]);
    let strange = notify(NotifyType(40_999), [1, 2, 3]);
    for by_client in [true, false] {
        let mut lab = match by_client {
            true => puppet_client(Plan::default(), mobike()),
            false => puppet_gateway(Plan::default(), mobike()),
        };
        let puppet = if by_client { lab.client } else { lab.gateway };
        for way in [from(WLAN, GATEWAY), from(LTE, GATEWAY)] {
            let way = if by_client { way } else { turned(way) };
            for others in [vec![], vec![list.clone()], vec![cookie.clone(), strange.clone()]] {
                for detects in [true, false] {
                    let mut asked = others.clone();
                    if detects {
                        asked.extend(nat_detection(&mut lab, puppet, way));
                    }
                    ask(&mut lab, puppet, way, &asked);
                    lab.rest();
                    let spis = lab.world.play(puppet, |puppet, _| puppet.spis());
                    let (answered, answer) = answers(&mut lab, puppet).pop().expect("an answer");
                    assert_eq!(answered, way);
                    let found = nat::detect(spis, way, &answer);
                    assert_eq!(found, detects.then(nat::Nat::default), "{asked:?}: {answer:?}");
                }
            }
        }
    }
}

/// RFC 4555 §3.8: NAT detection without an update is answered, and nothing else is done: neither the
/// addresses nor the encapsulation change, whatever the hashes say.
#[test]
fn m_3_8_3_nat_detection_without_an_update_changes_nothing_at_the_responder() {
    for nat_wlan in [false, true] {
        let plan = Plan { nat_wlan, ..Plan::default() };
        let mut lab = puppet_client(plan, mobike());
        let (client, gateway) = (lab.client, lab.gateway);
        let way = lab.sas(client)[0].path;
        let state = |lab: &Lab| {
            let sa = &lab.sas(gateway)[0];
            (sa.path, sa.nat, lab.children(gateway))
        };
        let before = state(&lab);
        assert_eq!(before.2[0].encap, nat_wlan);
        // As if there were a NAT, and as if there were none.
        let none = nat_detection(&mut lab, client, turned(before.0));
        for detection in [wrong_detection().to_vec(), none] {
            ask(&mut lab, client, way, &detection);
            lab.rest();
            assert_eq!(state(&lab), before, "{}", lab.story());
        }
        lab.seconds(100);
        assert_eq!(state(&lab), before, "{}", lab.story());
    }
}

/// RFC 4555 §3.8: SPIs are in the hashes, so that a rekey of the IKE_SA changes all of them while no NAT
/// has changed anything. At most one update comes of it, and nothing is lost.
#[test]
fn m_3_8_6_a_rekey_of_the_ike_sa_looks_like_a_new_mapping_once_at_most() {
    for by_client in [true, false] {
        let plan = Plan { nat_wlan: true, second_uplink: false, ..Plan::default() };
        let mut lab = Lab::established(plan);
        let (client, gateway) = (lab.client, lab.gateway);
        lab.seconds(40);
        let before = (lab.sas(gateway)[0].path, lab.sas(client)[0].path);
        let flows = lab.flows(Duration::from_secs(130));
        let end = if by_client { client } else { gateway };
        lab.world.command(end, Command::RekeyIke(ConnectionId(0))).expect("a rekey");
        lab.seconds(132);
        assert_eq!(lab.count(client, "rekeyed"), 1, "{}", lab.story());
        assert!(lab.count(client, "moved") <= 1, "{}", lab.story());
        assert!(lab.count(gateway, "moved") <= 1, "{}", lab.story());
        assert_eq!((lab.sas(gateway)[0].path, lab.sas(client)[0].path), before);
        assert_eq!(lab.lost(flows), [[0u64; 0]; 2], "{}", lab.story());
        assert!(lab.children(client)[0].encap && lab.is_up(), "{}", lab.story());
        // The new hashes are of use: a mapping that is lost now is found.
        lab.world.net.forget_mappings(lab.wlan_nat.expect("a NAT"));
        lab.seconds(62);
        assert_ne!(lab.sas(gateway)[0].path, before.0, "{}", lab.story());
        assert_carries(&mut lab);
    }
}

/// RFC 4555 §3.8: with MOBIKE the dynamic update of RFC 7296 §2.23 does not happen. A genuine message from
/// a new port of the peer's NAT is answered there, whatever it is, and moves nothing without an update.
#[test]
fn m_3_8_7_a_message_from_another_port_of_the_nat_is_answered_there_and_moves_nothing() {
    let mut lab = puppet_client(Plan { nat_wlan: true, ..Plan::default() }, mobike());
    let (client, gateway) = (lab.client, lab.gateway);
    let nat = lab.wlan_nat.expect("a NAT");
    let way = lab.sas(client)[0].path;
    let before = (lab.sas(gateway)[0].path, paths(&lab, gateway));
    lab.world.net.forget_mappings(nat);
    let list = notify(NotifyType::NO_ADDITIONAL_ADDRESSES, []);
    for payloads in [vec![], vec![list], nat_detection(&mut lab, client, way)] {
        ask(&mut lab, client, way, &payloads);
        lab.rest();
        assert_eq!((lab.sas(gateway)[0].path, paths(&lab, gateway)), before, "{}", lab.story());
    }
    assert_eq!(answers(&mut lab, client).len(), 3, "each through the new mapping");
    assert!(!lab.world.net.mapped(nat, way.local).contains(&before.0.remote));
    // Nor does a request for a new CHILD_SA.
    lab.world.play(client, |puppet, now| {
        let sa = puppet.sa();
        puppet.endpoint.rekey_children(now, sa, None, &mut puppet.script);
    });
    lab.rest();
    assert_eq!((lab.sas(gateway)[0].path, paths(&lab, gateway)), before, "{}", lab.story());
    assert!(lab.is_up(), "{}", lab.story());
}

/// The address that a translator of RFC 6146 has outside.
const OUTSIDE: &str = "203.0.113.64";

/// What RFC 6052 makes of the gateway's address.
const SYNTHETIC: &str = "64:ff9b::192.0.2.1";

/// A translator between IPv6 and IPv4 (RFC 6146), which knows nothing but UDP: ports are what they were,
/// and who was last inside is inside.
fn translate(lab: &mut Lab) {
    let mut inside: Option<IpAddr> = None;
    let at = |address: &str, port: u16| SocketAddr::new(ip(address), port);
    lab.world.net.set_tap(Some(Box::new(move |_, datagram| {
        let (src, dst) = (datagram.src, datagram.dst);
        let to = if dst.ip() == ip(SYNTHETIC) {
            inside = Some(src.ip());
            (at(OUTSIDE, src.port()), at(GATEWAY, dst.port()))
        } else if let Some(inside) = inside.filter(|_| dst.ip() == ip(OUTSIDE)) {
            (at(SYNTHETIC, src.port()), SocketAddr::new(inside, dst.port()))
        } else {
            return Verdict::Pass;
        };
        match datagram.protocol {
            Protocol::Udp => {
                Verdict::Replace(vec![Datagram::udp(to.0, to.1, datagram.payload.clone())])
            }
            Protocol::Esp | Protocol::Tcp => Verdict::Drop,
        }
    })));
}

fn assert_encapsulated(lab: &mut Lab, encap: bool) {
    for end in [lab.client, lab.gateway] {
        assert!(lab.children(end).iter().all(|c| c.encap == encap), "{}", lab.story());
        assert_eq!(lab.sas(end)[0].nat.any(), encap, "{}", lab.story());
    }
    assert_carries(lab);
}

/// A translator between the families is a NAT to both ends (RFC 4555 §3.8, RFC 7296 §2.23): whether all
/// of it is in the network, or a part in the host (RFC 6877), ESP goes in UDP from the move on.
#[test]
fn x_9_behind_nat64_and_464xlat_esp_goes_in_udp() {
    // NAT64, from one network of that kind to another.
    let mut lab = Lab::new(Plan::default());
    let (client, wlan, lte) = (lab.client, lab.wlan, lab.lte());
    lab.world.net.reattach(wlan, Realm::Internet, &[ip("2001:db8:2::2")]);
    lab.world.net.reattach(lte, Realm::Internet, &[ip("2001:db8:3::2")]);
    lab.world.end_mut(client).machine.set_gateways(vec![ip(SYNTHETIC)]);
    lab.world.tell_all();
    translate(&mut lab);
    lab.up();
    lab.rest();
    assert_encapsulated(&mut lab, true);
    for uplink in [lte, wlan] {
        lab.move_to(uplink);
        lab.rest();
        assert_eq!(lab.sas(client)[0].path.local.ip(), lab.address(uplink), "{}", lab.story());
        assert_encapsulated(&mut lab, true);
    }

    // 464XLAT: the client has an IPv4 address that nobody else has (RFC 7335), and UDP gets through.
    let mut lab = Lab::established(Plan::default());
    let (wlan, lte) = (lab.wlan, lab.lte());
    let outside = [ip(OUTSIDE)];
    let xlat = lab.world.net.add_nat(Realm::Internet, &outside, Default::default());
    lab.world.net.reattach(lte, Realm::Behind(xlat), &[ip("192.0.0.2")]);
    lab.world.tell_all();
    lab.rest();
    assert_encapsulated(&mut lab, false);
    for (uplink, encap) in [(lte, true), (wlan, false), (lte, true)] {
        lab.move_to(uplink);
        lab.rest();
        assert_eq!(lab.sas(lab.client)[0].path.local.ip(), lab.address(uplink), "{}", lab.story());
        assert_encapsulated(&mut lab, encap);
    }
}
