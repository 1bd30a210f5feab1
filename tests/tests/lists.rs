//! Lists of addresses (RFC 4555 §3.4, §3.6).

use std::net::IpAddr;

use bewick_ike::{
    Path,
    wire::{NotifyType, Payload},
};
use bewick_mobike::{Cause, Event};
use bewick_tests::{
    Lab, Plan,
    lab::{ip, path},
    pair::EndId,
    puppet::{Heard, find, kinds, notify},
};

const WLAN: &str = "198.51.100.2";
const LTE: &str = "198.51.100.130";

fn v4(text: &str) -> Payload {
    let IpAddr::V4(address) = ip(text) else { panic!("{text} is not IPv4") };
    notify(NotifyType::ADDITIONAL_IP4_ADDRESS, address.octets())
}

fn none() -> Payload {
    notify(NotifyType::NO_ADDITIONAL_ADDRESSES, [])
}

fn is_list(payload: &Payload) -> bool {
    let kinds = kinds(std::slice::from_ref(payload));
    [
        NotifyType::ADDITIONAL_IP4_ADDRESS,
        NotifyType::ADDITIONAL_IP6_ADDRESS,
        NotifyType::NO_ADDITIONAL_ADDRESSES,
    ]
    .contains(&kinds[0])
}

fn heard(lab: &mut Lab, end: EndId) -> Vec<Heard> {
    lab.world.play(end, |puppet, _| puppet.script.heard.clone())
}

/// A puppet gateway and a client of ours.
fn puppet_gateway(auth: &[Payload]) -> Lab {
    let mut lab = Lab::new(Plan { puppet_gateway: true, ..Plan::default() });
    let gateway = lab.gateway;
    lab.world.play(gateway, |puppet, _| puppet.script.auth.extend_from_slice(auth));
    lab.up();
    lab.rest();
    assert_eq!(lab.sas(lab.client)[0].state, "established", "{}", lab.story());
    lab
}

/// A puppet client and a gateway of ours.
fn puppet_client(second_gateway: bool) -> (Lab, Path) {
    let mut lab = Lab::new(Plan { puppet_client: true, second_gateway, ..Plan::default() });
    let client = lab.client;
    lab.world
        .play(client, |puppet, now| puppet.connect(now, path("198.51.100.2:500", "192.0.2.1:500")));
    lab.rest();
    (lab, path("198.51.100.2:4500", "192.0.2.1:4500"))
}

/// The lists that an end was told, in order.
fn told(lab: &Lab, end: EndId) -> Vec<Vec<IpAddr>> {
    let list = |event: &&Event| match event {
        Event::PeerAddresses { addresses, .. } => Some(addresses.clone()),
        _ => None,
    };
    lab.events(end).iter().filter_map(list).collect()
}

#[test]
fn m_3_6_1_a_list_is_the_source_and_the_additional_addresses() {
    let mut lab = puppet_gateway(&[]);
    let gateway = lab.gateway;
    let (lte, wlan) = (lab.lte(), lab.wlan);
    lab.world.set_up(lte, false);
    lab.rest();
    lab.world.set_up(lte, true);
    lab.rest();
    lab.world.net.add_address(wlan, ip("2001:db8:9::9"));
    lab.world.tell_all();
    lab.rest();
    let heard = heard(&mut lab, gateway);
    let lists: Vec<Vec<Payload>> = heard
        .iter()
        .map(|heard| heard.payloads.iter().filter(|p| is_list(p)).cloned().collect())
        .collect();
    let IpAddr::V6(v6) = ip("2001:db8:9::9") else { panic!("IPv6") };
    let v6 = notify(NotifyType::ADDITIONAL_IP6_ADDRESS, v6.octets());
    assert_eq!(lists, [vec![none()], vec![v4(LTE)], vec![v4(LTE), v6]]);
    assert!(heard.iter().all(|heard| heard.path.remote.ip() == ip(WLAN)));
    let update = NotifyType::UPDATE_SA_ADDRESSES;
    assert!(heard.iter().all(|heard| find(&heard.payloads, update).is_none()));
    assert_eq!(lab.count(lab.client, "moving"), 0, "the address in use stays");
}

#[test]
fn m_3_6_2_a_new_list_replaces_the_old_one_whole() {
    let (mut lab, way) = puppet_client(false);
    let client = lab.client;
    let first = [v4("203.0.113.10"), v4("203.0.113.11"), v4("203.0.113.12")];
    lab.world.play(client, |puppet, now| puppet.ask(now, way, &first));
    lab.rest();
    let from_lte = path("198.51.100.130:4500", "192.0.2.1:4500");
    lab.world.play(client, |puppet, now| puppet.ask(now, from_lte, &[v4("203.0.113.13")]));
    lab.rest();
    lab.world.play(client, |puppet, now| puppet.ask(now, way, &[none()]));
    lab.rest();
    let expected = [
        vec![ip(WLAN), ip("203.0.113.10"), ip("203.0.113.11"), ip("203.0.113.12")],
        vec![ip(LTE), ip("203.0.113.13")],
        vec![ip(WLAN)],
    ];
    assert_eq!(told(&lab, lab.gateway), expected);
    // M-3.6-5: each was answered; M-3.4-2: and nothing was sent to any of them.
    let puppet = lab.world.end_mut(client).machine.puppet();
    assert!(puppet.responses().all(|(_, _, answer)| answer.is_empty()));
    assert_eq!(puppet.responses().count(), 3);
    lab.seconds(100);
    for n in 10..14 {
        let address = ip(&format!("203.0.113.{n}"));
        assert_eq!(lab.world.net.sent_to(address).datagrams, 0);
    }
}

#[test]
fn m_3_6_5_a_list_with_a_cookie_is_answered_with_the_cookie() {
    let (mut lab, way) = puppet_client(false);
    let client = lab.client;
    let cookie = notify(NotifyType::COOKIE2, [3; 20]);
    let request = [none(), cookie.clone()];
    lab.world.play(client, |puppet, now| puppet.ask(now, way, &request));
    lab.rest();
    let puppet = lab.world.end_mut(client).machine.puppet();
    assert_eq!(puppet.responses().last().expect("an answer").2, [cookie]);
}

#[test]
fn m_3_6_6_a_list_may_come_with_an_update() {
    let (mut lab, _) = puppet_client(false);
    let client = lab.client;
    let from_lte = path("198.51.100.130:4500", "192.0.2.1:4500");
    let request = [notify(NotifyType::UPDATE_SA_ADDRESSES, []), v4("203.0.113.13")];
    lab.world.play(client, |puppet, now| puppet.ask(now, from_lte, &request));
    lab.rest();
    assert_eq!(told(&lab, lab.gateway), [vec![ip(LTE), ip("203.0.113.13")]]);
    let at = Path::new(from_lte.remote, from_lte.local);
    assert_eq!(lab.sas(lab.gateway)[0].path, at);
    assert_eq!(lab.world.end(lab.gateway).plane.path(), Some(at));
}

#[test]
fn m_3_4_5_addresses_that_can_be_nobody_s_lead_to_nothing() {
    let strange = ["127.0.0.1", "0.0.0.0", "10.1.0.5", "224.0.0.1", "255.255.255.255"];
    let list: Vec<Payload> = strange.iter().map(|text| v4(text)).collect();
    let mut lab = puppet_gateway(&list);
    lab.seconds(20);
    lab.move_to(lab.lte());
    lab.seconds(100);
    // Not even when the address in use is silent; a private one may well be the gateway's, and is tried.
    let hole = bewick_tests::Link { black_hole: true, ..Default::default() };
    lab.world.net.set_default_link(hole);
    lab.seconds(200);
    let strange = strange.into_iter().filter(|text| *text != "10.1.0.5");
    for text in strange {
        assert_eq!(lab.world.net.sent_to(ip(text)).datagrams, 0, "{text}");
    }
}

#[test]
fn m_3_4_3_an_address_of_the_gateway_s_list_is_tried_when_the_one_in_use_is_silent() {
    let mut plan = Plan { second_gateway: true, second_uplink: false, ..Plan::default() };
    plan.client.liveness = std::time::Duration::from_secs(10);
    let mut lab = Lab::established(plan);
    // The first uplink of the gateway swallows everything and looks well.
    let (wan, wlan) = (lab.wan, lab.wlan);
    let hole = bewick_tests::Link { black_hole: true, ..Default::default() };
    lab.world.net.set_links(wlan, wan, hole);
    lab.seconds(20);
    let at = lab.sas(lab.client)[0].path;
    assert_eq!(at.remote.ip(), ip("192.0.2.129"), "{}", lab.story());
    assert!(lab.is_up());
    assert_eq!(lab.world.end(lab.gateway).plane.path().map(|p| p.local.ip()), Some(at.remote.ip()));
}

#[test]
fn m_3_5_5_a_list_without_the_address_in_use_makes_the_client_move() {
    let mut plan = Plan { puppet_gateway: true, second_gateway: true, ..Plan::default() };
    plan.second_uplink = false;
    let mut lab = Lab::new(plan);
    lab.up();
    lab.rest();
    let gateway = lab.gateway;
    let from_second = path("192.0.2.129:4500", "198.51.100.2:4500");
    // With the address in use on the list nothing happens.
    let both = [v4("192.0.2.1")];
    lab.world.play(gateway, |puppet, now| puppet.ask(now, from_second, &both));
    lab.rest();
    assert_eq!(lab.count(lab.client, "moving"), 0);
    lab.world.play(gateway, |puppet, now| puppet.ask(now, from_second, &[none()]));
    lab.rest();
    assert_eq!(lab.sas(lab.client)[0].path.remote.ip(), ip("192.0.2.129"), "{}", lab.story());
    let cause = lab.events(lab.client).into_iter().find_map(|event| match event {
        Event::Moved { cause, .. } => Some(*cause),
        _ => None,
    });
    assert_eq!(cause, Some(Cause::PeerAddressGone(ip("192.0.2.1"))));
    let last = heard(&mut lab, gateway).pop().expect("an update");
    assert!(find(&last.payloads, NotifyType::UPDATE_SA_ADDRESSES).is_some());
    assert_eq!(last.path.local.ip(), ip("192.0.2.129"));
}

#[test]
fn m_3_6_8_a_responder_that_loses_its_address_tells_its_list_from_another() {
    let (mut lab, _) = puppet_client(true);
    let client = lab.client;
    let wan = lab.wan;
    lab.world.set_up(wan, false);
    lab.rest();
    let heard = heard(&mut lab, client);
    let last = heard.last().expect("a list");
    assert_eq!(last.path.remote.ip(), ip("192.0.2.129"));
    assert_eq!(last.payloads, [none()]);
    let at = Path::new(last.path.remote, last.path.local);
    assert_eq!(lab.sas(lab.gateway)[0].path, at);
    assert_eq!(lab.world.end(lab.gateway).plane.path(), Some(at));
}

#[test]
fn m_2_3_1_a_responder_tells_its_list_although_a_nat_lets_nothing_in() {
    let plan =
        Plan { nat_wlan: true, second_gateway: true, second_uplink: false, ..Plan::default() };
    let mut lab = Lab::established(plan);
    lab.world.net.capture.set_on(true);
    let wan = lab.wan;
    lab.world.set_up(wan, false);
    lab.seconds(20);
    let second = ip("192.0.2.129");
    let tries = lab.world.net.capture.sent().filter(|r| r.datagram.src.ip() == second).count();
    assert!(tries >= 3, "{tries}");
    assert_eq!(lab.sas(lab.gateway).len(), 1);
    // The client knows the second address, and tries it when the first is silent.
    lab.seconds(60);
    assert_eq!(lab.sas(lab.client)[0].path.remote.ip(), second, "{}", lab.story());
    assert!(lab.is_up());
}

#[test]
fn m_3_6_7_after_an_update_that_went_out_from_two_sources_comes_another() {
    let mut lab = puppet_gateway(&[]);
    let (gateway, wlan, lte) = (lab.gateway, lab.wlan, lab.lte());
    // The update from the second uplink is lost, and goes out again from the first.
    lab.world.net.set_black_hole(lte, true, true);
    lab.move_to(lte);
    lab.ms(100);
    lab.move_to(wlan);
    lab.rest();
    let heard = heard(&mut lab, gateway);
    let updates: Vec<_> = heard
        .iter()
        .filter(|h| find(&h.payloads, NotifyType::UPDATE_SA_ADDRESSES).is_some())
        .map(|h| (h.message_id, h.path.remote.ip()))
        .collect();
    assert_eq!(updates.len(), 2, "{updates:?}");
    assert_eq!(updates[0].0 + 1, updates[1].0);
    assert!(updates.iter().all(|(_, from)| *from == ip(WLAN)));
}

#[test]
fn m_3_6_1_a_changed_list_is_told_once_and_not_again_and_again() {
    let mut lab = puppet_gateway(&[]);
    let (gateway, lte) = (lab.gateway, lab.lte());
    lab.world.set_up(lte, false);
    lab.seconds(25);
    lab.world.tell_all();
    lab.rest();
    let lists = heard(&mut lab, gateway).iter().filter(|h| h.payloads.iter().any(is_list)).count();
    assert_eq!(lists, 1);
}

/// An address that is no more is taken back also where no other one is told (RFC 4555 §3.6).
#[test]
fn m_3_6_2_the_last_address_that_was_told_is_taken_back() {
    let mut lab = Lab::established(Plan { nat_wlan: true, ..Plan::default() });
    let (gateway, lte) = (lab.gateway, lab.lte());
    lab.world.set_up(lte, false);
    lab.rest();
    assert_eq!(told(&lab, gateway).last(), Some(&vec![ip("203.0.113.1")]), "{}", lab.story());
}
