//! What an update says, and what the peer may make of it: puppets on the other side (RFC 4555 §3.5, §3.7,
//! §3.8, §4.2.4).

use std::net::IpAddr;

use bewick_ike::{
    CloseReason, Path, nat,
    wire::{NotifyType, Payload},
};
use bewick_tests::{
    Lab, Plan,
    lab::{ip, path},
    puppet::{find, kinds, notify},
    scene::{LTE, WLAN, answer_with, heard},
};

fn puppet_gateway(second_uplink: bool) -> Lab {
    let lab = Lab::new(Plan { puppet_gateway: true, second_uplink, ..Plan::default() });
    let mut lab = lab;
    lab.up();
    lab.rest();
    assert_eq!(lab.sas(lab.client)[0].state, "established", "{}", lab.story());
    lab
}

#[test]
fn m_3_5_12_the_update_says_what_it_may_and_nothing_else() {
    let mut lab = puppet_gateway(true);
    lab.move_to(lab.lte());
    lab.rest();
    let gateway = lab.gateway;
    let heard = heard(&mut lab, gateway);
    assert_eq!(heard.len(), 1, "{heard:?}");
    assert_eq!(heard[0].path.remote, format!("{LTE}:4500").parse().expect("an address"));
    let kinds = kinds(&heard[0].payloads);
    assert_eq!(kinds.len(), heard[0].payloads.len());
    let expected = [
        NotifyType::UPDATE_SA_ADDRESSES,
        NotifyType::NAT_DETECTION_SOURCE_IP,
        NotifyType::NAT_DETECTION_DESTINATION_IP,
        NotifyType::COOKIE2,
        NotifyType::ADDITIONAL_IP4_ADDRESS,
    ];
    assert_eq!(kinds, expected);
    assert_eq!(find(&heard[0].payloads, NotifyType::UPDATE_SA_ADDRESSES), Some(&[][..]));
    let spis = lab.world.play(gateway, |puppet, _| puppet.spis());
    let nat = nat::detect(spis, heard[0].path, &heard[0].payloads).expect("NAT detection");
    assert!(!nat.any());
}

#[test]
fn m_3_7_9_another_cookie2_closes_the_ike_sa_and_its_children() {
    let mut lab = puppet_gateway(true);
    let gateway = lab.gateway;
    answer_with(&mut lab, gateway, |_, honest| {
        honest
            .into_iter()
            .map(|payload| match payload {
                Payload::Notify(n) if n.kind == NotifyType::COOKIE2 => {
                    let mut data = n.data;
                    data[0] ^= 1;
                    notify(NotifyType::COOKIE2, data)
                }
                other => other,
            })
            .collect()
    });
    lab.move_to(lab.lte());
    lab.rest();
    assert_eq!(lab.reasons(lab.client), [CloseReason::Cookie2]);
    assert!(lab.children(lab.client).is_empty());
    assert!(lab.sas(lab.client).is_empty());
    lab.seconds(60);
    assert!(lab.world.end(lab.client).machine.host().is_empty());
}

/// A puppet client whose tunnel is up, with the first uplink's path.
fn puppet_client() -> (Lab, Path) {
    let mut lab = Lab::new(Plan { puppet_client: true, ..Plan::default() });
    let client = lab.client;
    lab.world
        .play(client, |puppet, now| puppet.connect(now, path("198.51.100.2:500", "192.0.2.1:500")));
    lab.rest();
    assert!(lab.is_up(), "{}", lab.story());
    (lab, path("198.51.100.2:4500", "192.0.2.1:4500"))
}

fn lte_path() -> Path {
    path("198.51.100.130:4500", "192.0.2.1:4500")
}

fn update() -> Vec<Payload> {
    vec![notify(NotifyType::UPDATE_SA_ADDRESSES, []), notify(NotifyType::COOKIE2, [7; 9])]
}

#[test]
fn m_3_7_9_another_cookie2_closes_the_ike_sa_at_the_responder_too() {
    let (mut lab, _) = puppet_client();
    let client = lab.client;
    answer_with(&mut lab, client, |_, _| vec![notify(NotifyType::COOKIE2, [9; 16])]);
    lab.world.play(client, |puppet, now| puppet.ask(now, lte_path(), &update()));
    lab.rest();
    assert_eq!(lab.reasons(lab.gateway), [CloseReason::Cookie2]);
    assert!(lab.children(lab.gateway).is_empty());
}

#[test]
fn m_3_7_3_without_an_echo_esp_stays_where_it_was() {
    let (mut lab, old) = puppet_client();
    let client = lab.client;
    answer_with(&mut lab, client, |_, _| Vec::new());
    lab.world.play(client, |puppet, now| puppet.ask(now, lte_path(), &update()));
    lab.rest();
    let stays = Path::new(old.remote, old.local);
    assert_eq!(lab.world.end(lab.gateway).plane.path(), Some(stays), "{}", lab.story());
    assert_eq!(lab.sas(lab.gateway).len(), 1, "an echo that is missing proves nothing (X-6)");
}

/// Stricter than RFC 4555 §3.7, where any answer will do: one that was meant for another question, and was on
/// its way before the peer was elsewhere, shows nothing.
#[test]
fn m_3_7_5_an_answer_proves_the_address_if_it_has_the_cookie_of_the_question() {
    let (mut lab, old) = puppet_client();
    let client = lab.client;
    answer_with(&mut lab, client, |_, answer| {
        let cookie = |p: &Payload| matches!(p, Payload::Notify(n) if n.kind == NotifyType::COOKIE2);
        answer.into_iter().filter(|payload| !cookie(payload)).collect()
    });
    lab.world.play(client, |puppet, now| puppet.ask(now, lte_path(), &update()));
    lab.rest();
    let at = |lab: &Lab| lab.world.end(lab.gateway).plane.path().expect("a CHILD_SA");
    assert_eq!(at(&lab), Path::new(old.remote, old.local), "{}", lab.story());
    answer_with(&mut lab, client, |_, answer| answer);
    lab.world.play(client, |puppet, now| puppet.ask(now, lte_path(), &update()));
    lab.rest();
    assert_eq!(at(&lab).remote.ip(), ip(LTE), "{}", lab.story());
}

#[test]
fn m_3_7_7_the_cookie_goes_back_as_it_is_and_a_malformed_one_does_not() {
    let (mut lab, old) = puppet_client();
    let client = lab.client;
    for len in [7, 8, 9, 64, 65] {
        let cookie: Vec<u8> = (1..=len).collect();
        let payload = notify(NotifyType::COOKIE2, cookie.clone());
        lab.world.play(client, |puppet, now| puppet.ask(now, old, &[payload]));
        lab.rest();
        let puppet = lab.world.end_mut(client).machine.puppet();
        let (_, _, answer) = puppet.responses().last().expect("an answer");
        let echo = find(answer, NotifyType::COOKIE2);
        assert_eq!(echo, (8..=64).contains(&len).then_some(&cookie[..]), "{len} octets");
    }
    assert!(lab.is_up());
}

#[test]
fn m_3_8_2_nat_detection_is_answered_for_the_pair_of_the_exchange_and_moves_nothing() {
    let (mut lab, old) = puppet_client();
    let client = lab.client;
    for asked in [old, lte_path()] {
        let spis = lab.world.play(client, |puppet, _| puppet.spis());
        let wrong = vec![
            notify(NotifyType::NAT_DETECTION_SOURCE_IP, [1; 20]),
            notify(NotifyType::NAT_DETECTION_DESTINATION_IP, [2; 20]),
        ];
        lab.world.play(client, |puppet, now| puppet.ask(now, asked, &wrong));
        lab.rest();
        let puppet = lab.world.end_mut(client).machine.puppet();
        let (_, answered, answer) = puppet.responses().last().expect("an answer");
        assert_eq!(answered, asked, "M-1.2-3: to where the request came from");
        assert_eq!(nat::detect(spis, asked, answer), Some(nat::Nat::default()));
        assert_eq!(find(answer, NotifyType::COOKIE2), None);
    }
    let stays = Path::new(old.remote, old.local);
    assert_eq!(lab.sas(lab.gateway)[0].path, stays, "M-3.8-3, M-3.8-7");
    assert_eq!(lab.world.end(lab.gateway).plane.path(), Some(stays), "M-3.5-1");
    assert!(!lab.children(lab.gateway)[0].encap);
}

#[test]
fn m_3_5_18_the_answer_to_an_update_is_cookie2_and_nat_detection_if_asked() {
    let (mut lab, _) = puppet_client();
    let client = lab.client;
    lab.world.play(client, |puppet, now| puppet.ask(now, lte_path(), &update()));
    lab.rest();
    let spis = lab.world.play(client, |puppet, _| puppet.spis());
    let puppet = lab.world.end_mut(client).machine.puppet();
    let (_, _, answer) = puppet.responses().last().expect("an answer");
    assert_eq!(answer, [notify(NotifyType::COOKIE2, [7; 9])]);
    let there = Path::new(lte_path().remote, lte_path().local);
    assert_eq!(lab.world.end(lab.gateway).plane.path(), Some(there));
    let old = path("198.51.100.2:4500", "192.0.2.1:4500");
    let mut with_nat = vec![notify(NotifyType::UPDATE_SA_ADDRESSES, [])];
    let mut random = bewick_ike::Random::from_seed([1; 32]);
    with_nat.extend(nat::payloads(spis, old, false, &mut random));
    lab.world.play(client, |puppet, now| puppet.ask(now, old, &with_nat));
    lab.rest();
    let puppet = lab.world.end_mut(client).machine.puppet();
    let (_, _, answer) = puppet.responses().last().expect("an answer");
    assert_eq!(answer.len(), 2);
    assert_eq!(nat::detect(spis, old, answer), Some(nat::Nat::default()));
}

#[test]
fn m_4_2_4_1_an_update_from_the_responder_or_without_mobike_moves_nothing() {
    let mut lab = puppet_gateway(true);
    let gateway = lab.gateway;
    let before = lab.sas(lab.client)[0].path;
    let from = path("192.0.2.1:4500", "198.51.100.130:4500");
    lab.world.play(gateway, |puppet, now| puppet.ask(now, from, &update()));
    lab.rest();
    assert_eq!(lab.sas(lab.client)[0].path, before);
    assert_eq!(lab.world.end(lab.client).plane.path(), Some(before));
    let puppet = lab.world.end_mut(gateway).machine.puppet();
    let (_, answered, _) = puppet.responses().last().expect("an answer");
    assert_eq!(answered, from);

    let mut plan = Plan { puppet_client: true, ..Plan::default() };
    plan.gateway.mobike = false;
    let mut lab = Lab::new(plan);
    let client = lab.client;
    lab.world
        .play(client, |puppet, now| puppet.connect(now, path("198.51.100.2:500", "192.0.2.1:500")));
    lab.rest();
    let stays = lab.sas(lab.gateway)[0].path;
    lab.world.play(client, |puppet, now| puppet.ask(now, lte_path(), &update()));
    lab.rest();
    let puppet = lab.world.end_mut(client).machine.puppet();
    let (_, _, answer) = puppet.responses().last().expect("an answer");
    assert!(answer.is_empty(), "M-3.2-2: an empty answer, {answer:?}");
    assert_eq!(lab.sas(lab.gateway)[0].path, stays);
}

#[test]
fn m_3_5_6_unacceptable_addresses_lead_to_another_pair_and_not_into_a_loop() {
    let mut lab = puppet_gateway(true);
    let gateway = lab.gateway;
    // Only the first uplink is acceptable.
    answer_with(&mut lab, gateway, |heard, mut honest| {
        if heard.path.remote.ip() == ip(LTE) {
            honest.insert(0, notify(NotifyType::UNACCEPTABLE_ADDRESSES, []));
        }
        honest
    });
    lab.move_to(lab.lte());
    lab.rest();
    assert_eq!(lab.sas(lab.client)[0].path.local.ip(), ip(WLAN), "{}", lab.story());
    assert_eq!(lab.world.end(lab.client).plane.path(), Some(lab.sas(lab.client)[0].path));
    // No pair at all is acceptable.
    answer_with(&mut lab, gateway, |_, mut honest| {
        honest.insert(0, notify(NotifyType::UNACCEPTABLE_ADDRESSES, []));
        honest
    });
    let before = heard(&mut lab, gateway).len();
    lab.move_to(lab.lte());
    lab.seconds(10);
    let asked = heard(&mut lab, gateway).len() - before;
    assert!(asked <= 10, "{asked} updates in ten seconds");
}

#[test]
fn m_3_5_22_an_answer_to_an_overtaken_update_says_nothing() {
    let mut lab = puppet_gateway(true);
    let gateway = lab.gateway;
    // The answer for the second uplink is an error, and comes when the client is back already.
    answer_with(&mut lab, gateway, |heard, mut honest| {
        if heard.path.remote.ip() == ip(LTE) {
            honest.insert(0, notify(NotifyType::UNACCEPTABLE_ADDRESSES, []));
        }
        honest
    });
    lab.move_to(lab.lte());
    lab.ms(15);
    lab.move_to(lab.wlan);
    lab.rest();
    assert_eq!(lab.sas(lab.client)[0].path.local.ip(), ip(WLAN));
    let sources: Vec<IpAddr> =
        heard(&mut lab, gateway).iter().map(|heard| heard.path.remote.ip()).collect();
    assert_eq!(sources, [ip(LTE), ip(WLAN)]);
    assert_eq!(lab.count(lab.client, "moving"), 2, "{}", lab.story());
}
