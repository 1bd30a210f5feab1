//! What the operator decides of addresses (RFC 4555 §3.5, §3.6, §3.7, §5.5), and what a refusal means.

use std::{collections::BTreeSet, net::IpAddr, time::Duration};

use bewick_ike::{
    CloseReason, Path,
    wire::{NotifyType, Payload},
};
use bewick_mobike::{Cause, Event};
use bewick_tests::{
    Lab, Link, Plan, Realm,
    lab::ip,
    pair::Input,
    puppet::{find, kinds, notify},
    scene::{
        ETH, GATEWAY, GATEWAY2, LTE, WLAN, answer_with, answers, ask, assert_at, assert_carries,
        esp_from, from, heard, mobike, nat_detection, paths, puppet_client, puppet_gateway,
        third_uplink, turned, update,
    },
};

const MS: Duration = Duration::from_millis(1);
const HOLE: Link = Link { black_hole: true, ..Link::of_delay(Duration::from_millis(10)) };

fn unacceptable() -> Payload {
    notify(NotifyType::UNACCEPTABLE_ADDRESSES, [])
}

fn nets(text: &[&str]) -> Vec<ipnet::IpNet> {
    text.iter().map(|net| net.parse().expect("a network")).collect()
}

/// RFC 4555 §3.5: an update from where the peer may not be is answered with UNACCEPTABLE_ADDRESSES, with the
/// cookie that came along, and has changed nothing: not the addresses, not the encapsulation, not the list.
#[test]
fn m_3_5_16_an_update_from_a_denied_source_is_refused_and_changes_nothing() {
    for nat_wlan in [false, true] {
        let mut plan = Plan { nat_wlan, ..Plan::default() };
        plan.gateway_policy.accept.deny = nets(&["198.51.100.128/25"]);
        let mut lab = puppet_client(plan, mobike());
        let (client, gateway) = (lab.client, lab.gateway);
        let state = |lab: &Lab| {
            let sa = &lab.sas(gateway)[0];
            (sa.path, sa.nat, lab.children(gateway))
        };
        let before = state(&lab);
        lab.world.net.capture.set_on(true);
        lab.world.start_flow(gateway, client, MS, Duration::from_secs(9));
        let detection = nat_detection(&mut lab, client, from(LTE, GATEWAY));
        let list = notify(NotifyType::ADDITIONAL_IP4_ADDRESS, [203, 0, 113, 9]);
        for (cookie, others) in [(vec![7; 8], vec![]), (vec![1; 64], vec![list])] {
            let mut asked = vec![update(), notify(NotifyType::COOKIE2, cookie.clone())];
            asked.extend(detection.iter().chain(&others).cloned());
            ask(&mut lab, client, from(LTE, GATEWAY), &asked);
            lab.rest();
            let (at, answer) = answers(&mut lab, client).pop().expect("an answer");
            assert_eq!(at, from(LTE, GATEWAY));
            assert!(answer.contains(&unacceptable()), "{answer:?}");
            assert_eq!(find(&answer, NotifyType::COOKIE2), Some(&cookie[..]));
            assert_eq!(state(&lab), before, "{}", lab.story());
        }
        lab.seconds(8);
        assert_eq!(state(&lab), before, "{}", lab.story());
        assert_eq!(lab.count(gateway, "peer-addresses"), 0, "{}", lab.story());
        let to_lte = |r: &bewick_tests::Record| r.datagram.dst.ip() == ip(LTE);
        assert!(!esp_from(&lab, &[GATEWAY]).iter().any(to_lte), "{}", lab.story());
        // From where it may be it moves as ever.
        let eth = third_uplink(&mut lab);
        assert!(lab.world.net.is_up(eth));
        ask(&mut lab, client, from(ETH, GATEWAY), &[update()]);
        lab.rest();
        assert_eq!(lab.sas(gateway)[0].path, turned(from(ETH, GATEWAY)), "{}", lab.story());
    }
}

/// RFC 4555 §3.5: of a refusal the client goes on to another of its addresses, or back to where it was, or,
/// if it is welcome nowhere, gives the IKE_SA up; it never stays where it is not wanted.
#[test]
fn m_3_5_23_a_refused_client_goes_elsewhere_or_back_or_gives_up() {
    for (denied, ends_at) in [(vec![LTE], ETH), (vec![LTE, ETH], WLAN), (vec![ETH], LTE)] {
        let mut plan = Plan::default();
        let nets: Vec<String> = denied.iter().map(|address| format!("{address}/32")).collect();
        plan.gateway_policy.accept.deny =
            nets.iter().map(|net| net.parse().expect("a network")).collect();
        let mut lab = Lab::established(plan);
        third_uplink(&mut lab);
        lab.world.tell_all();
        lab.rest();
        let [out, back] = lab.flows(Duration::from_secs(3));
        lab.ms(100);
        lab.move_to(lab.lte());
        lab.seconds(4);
        assert_at(&lab, ends_at, GATEWAY);
        let gateways: Vec<IpAddr> = lab
            .events(lab.gateway)
            .iter()
            .filter_map(|event| match event {
                Event::Moved { to, .. } => Some(to.remote.ip()),
                _ => None,
            })
            .collect();
        assert!(!gateways.iter().any(|at| denied.iter().any(|d| ip(d) == *at)), "{gateways:?}");
        assert_eq!(lab.lost([out, back]), [[0u64; 0]; 2], "{}", lab.story());
        assert_carries(&mut lab);
    }
    for keep_up in [false, true] {
        let mut plan = Plan::default();
        plan.client_policy.keep_up = keep_up;
        let mut lab = puppet_gateway(plan, mobike());
        let (client, gateway) = (lab.client, lab.gateway);
        answer_with(&mut lab, gateway, |heard, mut honest| {
            if find(&heard.payloads, NotifyType::UPDATE_SA_ADDRESSES).is_some() {
                honest.insert(0, unacceptable());
            }
            honest
        });
        lab.move_to(lab.lte());
        lab.rest();
        let text = |reason: &CloseReason| reason.to_string().contains("none of our addresses");
        assert_eq!(lab.reasons(client).iter().filter(|r| text(r)).count(), 1, "{}", lab.story());
        lab.seconds(20);
        assert_eq!(lab.children(client).len(), usize::from(keep_up), "{}", lab.story());
    }
}

/// RFC 4555 §4.1.1: UNACCEPTABLE_ADDRESSES is the answer to an update and nothing else. In a request, or in
/// the answer to one without an update, it says nothing.
#[test]
fn m_4_1_1_1_unacceptable_addresses_says_nothing_but_in_the_answer_to_an_update() {
    let mut lab = puppet_gateway(Plan::default(), mobike());
    let (client, gateway) = (lab.client, lab.gateway);
    let state = |lab: &Lab| (lab.sas(client)[0].path, lab.children(client));
    let before = state(&lab);
    for way in [from(WLAN, GATEWAY), from(LTE, GATEWAY)] {
        for with_update in [false, true] {
            let mut asked = vec![unacceptable()];
            if with_update {
                asked.push(update());
            }
            ask(&mut lab, gateway, turned(way), &asked);
            lab.rest();
            assert_eq!(answers(&mut lab, gateway).pop().expect("an answer").0, turned(way));
            assert_eq!(state(&lab), before, "{}", lab.story());
        }
    }
    // To a question, to a list, to a liveness check.
    answer_with(&mut lab, gateway, |_, mut honest| {
        honest.insert(0, unacceptable());
        honest
    });
    let asked = heard(&mut lab, gateway).len();
    lab.world.input(client, Input::Unreachable(from(WLAN, GATEWAY)));
    lab.rest();
    third_uplink(&mut lab);
    lab.world.tell_addresses(client);
    lab.rest();
    lab.seconds(100);
    let heard = heard(&mut lab, gateway).split_off(asked);
    assert!(heard.len() >= 3, "{heard:?}");
    assert!(heard.iter().all(|h| find(&h.payloads, NotifyType::UPDATE_SA_ADDRESSES).is_none()));
    assert_eq!(state(&lab), before, "{}", lab.story());
    assert_eq!(lab.count(client, "moving"), 0, "{}", lab.story());
    // Nor is it of any use in the answer to the check of a new address.
    let mut lab = puppet_client(Plan::default(), mobike());
    let (client, gateway) = (lab.client, lab.gateway);
    answer_with(&mut lab, client, |_, mut honest| {
        honest.insert(0, unacceptable());
        honest
    });
    let at = lab.sas(gateway)[0].path;
    lab.world.input(gateway, Input::Unreachable(at));
    lab.rest();
    assert_eq!((lab.sas(gateway)[0].path, lab.sas(gateway).len()), (at, 1), "{}", lab.story());
    assert_eq!(paths(&lab, gateway), [at].into());
}

/// RFC 4555 §3.6: whoever has decided to ignore the peer's lists answers them all the same, and sends nothing
/// to what they name, even when the address in use falls silent; who heeds them is there in seconds.
#[test]
fn m_3_6_9_lists_may_be_ignored_and_are_answered_all_the_same() {
    let list = || notify(NotifyType::ADDITIONAL_IP4_ADDRESS, [192, 0, 2, 129]);
    for heeded in [false, true] {
        let mut plan = Plan { second_gateway: true, ..Plan::default() };
        plan.client_policy.accept_peer_addresses = heeded;
        let mut auth = mobike();
        auth.push(list());
        let mut lab = puppet_gateway(plan, auth);
        let (client, gateway) = (lab.client, lab.gateway);
        let at = lab.sas(client)[0].path;
        let cookie = notify(NotifyType::COOKIE2, [4; 9]);
        ask(&mut lab, gateway, turned(at), &[list(), cookie.clone()]);
        lab.rest();
        assert_eq!(answers(&mut lab, gateway).pop(), Some((turned(at), vec![cookie])));
        assert_eq!(lab.count(client, "peer-addresses"), usize::from(heeded), "{}", lab.story());
        // Neither does a list without the address in use make it go.
        let wan = lab.wan;
        for uplink in [lab.wlan, lab.lte()] {
            lab.world.net.set_links(uplink, wan, HOLE);
        }
        lab.world.input(client, Input::Unreachable(at));
        lab.seconds(10);
        let there = lab.world.net.sent_to(ip(GATEWAY2)).datagrams;
        assert_eq!(there > 0, heeded, "{there}: {}", lab.story());
        assert_eq!(lab.sas(client)[0].path.remote.ip() == ip(GATEWAY2), heeded);
    }
    for heeded in [false, true] {
        let mut plan = Plan { second_gateway: true, ..Plan::default() };
        plan.gateway_policy.accept_peer_addresses = heeded;
        let mut auth = mobike();
        auth.push(notify(NotifyType::ADDITIONAL_IP4_ADDRESS, [203, 0, 113, 9]));
        let mut lab = puppet_client(plan, auth);
        let (client, gateway) = (lab.client, lab.gateway);
        let at = lab.sas(client)[0].path;
        let none = notify(NotifyType::NO_ADDITIONAL_ADDRESSES, []);
        for asked in [list(), none] {
            ask(&mut lab, client, at, &[asked]);
            lab.rest();
            assert_eq!(answers(&mut lab, client).pop(), Some((at, vec![])));
        }
        assert_eq!(lab.count(gateway, "peer-addresses"), 2 * usize::from(heeded));
        // A list that is ignored is none to take an update's place, nor in its way.
        ask(&mut lab, client, from(LTE, GATEWAY), &[update(), list()]);
        lab.rest();
        assert_eq!(lab.sas(gateway)[0].path, turned(from(LTE, GATEWAY)), "{}", lab.story());
    }
}

/// All addresses that the puppet gateway was told of.
fn told(lab: &mut Lab) -> BTreeSet<IpAddr> {
    let gateway = lab.gateway;
    let auth = lab.world.play(gateway, |puppet, _| puppet.script.auth_heard.clone());
    let mut all: Vec<Payload> = heard(lab, gateway).into_iter().flat_map(|h| h.payloads).collect();
    all.extend(auth);
    let address = |payload: &Payload| match payload {
        Payload::Notify(n) if n.kind == NotifyType::ADDITIONAL_IP4_ADDRESS => {
            Some(IpAddr::from(<[u8; 4]>::try_from(n.data.as_slice()).expect("four octets")))
        }
        Payload::Notify(n) if n.kind == NotifyType::ADDITIONAL_IP6_ADDRESS => {
            Some(IpAddr::from(<[u8; 16]>::try_from(n.data.as_slice()).expect("16 octets")))
        }
        _ => None,
    };
    all.iter().filter_map(address).collect()
}

/// RFC 4555 §5.5: nobody has to be told of all addresses. A container's or an inner one is in no message,
/// neither in IKE_AUTH nor in an update nor in a list, unless the operator names its network; and who says
/// that none is announced announces none.
#[test]
fn m_5_5_1_addresses_that_are_not_to_be_told_are_in_no_message() {
    const CONTAINER: &str = "172.17.0.1";
    const LOCAL: &str = "fd00::7";
    let default = [WLAN, LTE].map(ip).to_vec();
    let cases = [
        (None, default.clone()),
        (Some(vec![]), vec![]),
        (Some(nets(&["198.51.100.128/25"])), vec![ip(LTE)]),
        (Some(nets(&["172.16.0.0/12"])), vec![ip(CONTAINER)]),
    ];
    for (announce, expected) in cases {
        let mut plan = Plan { puppet_gateway: true, ..Plan::default() };
        plan.client_policy.announce = announce.clone();
        let mut lab = Lab::new(plan);
        for (name, address) in [("docker0", CONTAINER), ("br0", LOCAL)] {
            lab.world.net.add_uplink(lab.client_host, name, Realm::Internet, &[ip(address)]);
        }
        lab.world.tell_all();
        lab.up();
        lab.rest();
        // Updates from either uplink, and a list.
        lab.move_to(lab.lte());
        lab.rest();
        lab.move_to(lab.wlan);
        lab.rest();
        let lte = lab.lte();
        lab.world.set_up(lte, false);
        lab.rest();
        lab.world.set_up(lte, true);
        lab.rest();
        let gateway = lab.gateway;
        assert_eq!(lab.sas(lab.client)[0].path, from(WLAN, GATEWAY), "{}", lab.story());
        assert_eq!(told(&mut lab), expected.into_iter().collect(), "{announce:?}");
        let none = |h: &bewick_tests::puppet::Heard| {
            kinds(&h.payloads).contains(&NotifyType::NO_ADDITIONAL_ADDRESSES)
        };
        let says_none = heard(&mut lab, gateway).iter().any(none);
        assert!(says_none || announce != Some(vec![]), "{announce:?}");
    }
}

/// An update is answered with the right cookie, but without the NAT detection that was asked for, by a peer
/// that has not moved (RFC 4555 §3.8): the client is back where traffic works, or sets up anew.
#[test]
fn x_18b_an_answer_with_its_cookie_but_without_nat_detection_is_no_move() {
    for everywhere in [false, true] {
        let mut plan = Plan::default();
        plan.client_policy.keep_up = true;
        let mut lab = puppet_gateway(plan, mobike());
        let (client, gateway) = (lab.client, lab.gateway);
        answer_with(&mut lab, gateway, move |heard, honest| {
            let is_update = find(&heard.payloads, NotifyType::UPDATE_SA_ADDRESSES).is_some();
            let fails = is_update && (everywhere || heard.path.remote.ip() == ip(LTE));
            let cookie =
                |payload: &Payload| kinds(std::slice::from_ref(payload)) == [NotifyType::COOKIE2];
            honest.into_iter().filter(|payload| !fails || cookie(payload)).collect()
        });
        lab.move_to(lab.lte());
        lab.seconds(20);
        assert!(lab.is_up(), "{everywhere}: {}", lab.story());
        let to_lte =
            |event: &&&Event| matches!(event, Event::Moved { to, .. } if to.local.ip() == ip(LTE));
        assert_eq!(lab.events(client).iter().filter(to_lte).count(), 0, "{}", lab.story());
        let there: Path = lab.children(gateway)[0].path;
        assert_eq!(lab.children(client)[0].path, turned(there), "{everywhere}: {}", lab.story());
        let refused = |event: &&&Event| matches!(event, Event::Moving { cause: Cause::Refused, to, .. } if to.local.ip() == ip(WLAN));
        assert_eq!(lab.events(client).iter().filter(refused).count(), 1, "{}", lab.story());
        let renewed = lab.count(client, "established") == 2;
        assert_eq!(renewed, everywhere, "{}", lab.story());
    }
}

/// The policy holds from the first address on, not only for those that the peer moves to.
#[test]
fn m_3_5_16_a_peer_does_not_come_up_from_where_it_may_not_go() {
    let mut plan = Plan::default();
    plan.gateway_policy.accept.deny = vec!["198.51.100.2/32".parse().expect("a network")];
    let mut lab = Lab::new(plan);
    lab.up();
    lab.seconds(40);
    assert!(lab.is_empty(), "{}", lab.story());
    assert_eq!(lab.count(lab.gateway, "established"), 0);
    let (wlan, client) = (lab.wlan, lab.client);
    lab.world.set_up(wlan, false);
    lab.world
        .command(client, bewick_mobike::Command::Up(bewick_ike::ConnectionId(0)))
        .expect("its connection");
    lab.seconds(5);
    assert!(lab.is_up(), "from the other address: {}", lab.story());
}
