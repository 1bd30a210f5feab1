//! Traffic goes only to where the peer has shown that it receives (RFC 4555 §3.7, §5.3), whatever an
//! attacker on the way copies from a forged source, and however a check ends.

use std::{net::IpAddr, time::Duration};

use bewick_ike::{
    Path, Secret,
    auth::LocalAuth,
    wire::{ExchangeType, Header, NotifyType},
};
use bewick_tests::{
    Lab, Plan, Protocol, Record, Verdict,
    lab::{ip, path},
    pair::EndId,
    puppet::{Heard, find, notify},
};

const MS: Duration = Duration::from_millis(1);
const VICTIM: &str = "203.0.113.66";

fn is_esp(record: &Record) -> bool {
    record.datagram.protocol == Protocol::Esp || !record.datagram.payload.starts_with(&[0; 4])
}

fn header(payload: &[u8], port: u16) -> Option<Header> {
    Header::parse(if port == 500 { payload } else { payload.strip_prefix(&[0; 4])? }).ok()
}

/// The first message that `which` chooses arrives first from the victim's address.
fn copy_from_victim(lab: &mut Lab, to: IpAddr, which: impl Fn(&Header) -> bool + 'static) {
    let mut done = false;
    lab.world.net.set_tap(Some(Box::new(move |_, datagram| {
        let chosen = || header(&datagram.payload, datagram.dst.port()).is_some_and(|h| which(&h));
        if done || datagram.dst.ip() != to || !chosen() {
            return Verdict::Pass;
        }
        done = true;
        let mut copy = datagram.clone();
        copy.src.set_ip(ip(VICTIM));
        Verdict::Replace(vec![copy, datagram.clone()])
    })));
}

/// ESP that went to the victim while an end sent for some seconds.
fn esp_to_victim(lab: &mut Lab, from: EndId, to: EndId, seconds: u64) -> usize {
    lab.world.net.capture.set_on(true);
    lab.world.start_flow(from, to, MS, Duration::from_secs(seconds));
    lab.seconds(seconds + 1);
    let sent = lab.world.net.capture.sent();
    sent.filter(|record| record.datagram.dst.ip() == ip(VICTIM) && is_esp(record)).count()
}

/// The gateway's IKE_SA and its data plane.
fn gateway_at(lab: &Lab) -> (Path, Option<Path>) {
    (lab.sas(lab.gateway)[0].path, lab.world.end(lab.gateway).plane.path())
}

fn puppet_client() -> Lab {
    let mut lab = Lab::new(Plan { puppet_client: true, ..Plan::default() });
    let client = lab.client;
    let way = path("198.51.100.2:500", "192.0.2.1:500");
    lab.world.play(client, |puppet, now| puppet.connect(now, way));
    lab.rest();
    lab
}

const WAY: (&str, &str) = ("198.51.100.2:4500", "192.0.2.1:4500");

#[test]
fn m_5_3_2_a_copy_of_ike_auth_from_elsewhere_takes_no_traffic_along() {
    let mut lab = Lab::new(Plan::default());
    copy_from_victim(&mut lab, ip("192.0.2.1"), |h| h.exchange == ExchangeType::IKE_AUTH);
    lab.up();
    lab.rest();
    let (client, gateway) = (lab.client, lab.gateway);
    assert_eq!(esp_to_victim(&mut lab, gateway, client, 60), 0, "{}", lab.story());
    let back = lab.world.start_flow(gateway, client, MS, Duration::from_secs(1));
    lab.seconds(2);
    assert!(lab.world.flow(back).lost().is_empty(), "{}", lab.story());
    let (ike, plane) = gateway_at(&lab);
    assert_eq!(Some(ike), plane, "together again: {}", lab.story());
}

#[test]
fn m_5_3_2_a_list_from_elsewhere_takes_no_traffic_along() {
    let plan = Plan { puppet_gateway: true, second_uplink: false, ..Plan::default() };
    let mut lab = Lab::new(plan);
    lab.up();
    lab.rest();
    let client_ip = lab.address(lab.wlan);
    copy_from_victim(&mut lab, client_ip, |h| !h.flags.response);
    let (client, gateway) = (lab.client, lab.gateway);
    let way = path("192.0.2.1:4500", "198.51.100.2:4500");
    lab.world.play(gateway, |puppet, now| {
        puppet.ask(now, way, &[notify(NotifyType::NO_ADDITIONAL_ADDRESSES, [])])
    });
    assert_eq!(esp_to_victim(&mut lab, client, gateway, 60), 0, "{}", lab.story());
    let here = lab.sas(client)[0].path;
    assert_eq!(here.remote.ip(), ip("192.0.2.1"), "the proven address is used again");
    assert_eq!(lab.world.end(client).plane.path(), Some(here), "{}", lab.story());
}

#[test]
fn x_6_a_check_that_nobody_answers_keeps_the_old_pair_and_the_ike_sa() {
    let mut lab = puppet_client();
    copy_from_victim(&mut lab, ip("192.0.2.1"), |h| !h.flags.response);
    let (client, way) = (lab.client, path(WAY.0, WAY.1));
    lab.world.play(client, |puppet, now| {
        puppet.ask(now, way, &[notify(NotifyType::UPDATE_SA_ADDRESSES, [])])
    });
    lab.rest();
    for _ in 0..40 {
        lab.seconds(20);
        lab.world.play(client, |puppet, now| puppet.ask(now, way, &[]));
    }
    lab.rest();
    assert_eq!(lab.sas(lab.gateway).len(), 1, "{}", lab.story());
    let (ike, plane) = gateway_at(&lab);
    assert_eq!((ike.remote.ip(), Some(ike)), (ip("198.51.100.2"), plane), "{}", lab.story());
}

#[test]
fn x_6_a_check_that_is_answered_without_its_cookie_is_repeated_and_then_given_up() {
    let mut lab = puppet_client();
    let client = lab.client;
    lab.world.play(client, |puppet, _| {
        puppet.script.answerer = Some(Box::new(|_, _| Vec::new()));
    });
    lab.world.play(client, |puppet, now| {
        let way = path("198.51.100.130:4500", "192.0.2.1:4500");
        puppet.ask(now, way, &[notify(NotifyType::UPDATE_SA_ADDRESSES, [])])
    });
    lab.seconds(20);
    let heard = lab.world.play(client, |puppet, _| {
        let cookie = |heard: &&Heard| find(&heard.payloads, NotifyType::COOKIE2).is_some();
        puppet.script.heard.iter().filter(cookie).count()
    });
    assert_eq!(heard, 3, "{}", lab.story());
    let (ike, plane) = gateway_at(&lab);
    assert_eq!(Some(ike), plane, "not half-moved: {}", lab.story());
}

#[test]
fn k_2_6_1_attempts_with_a_wrong_key_count_as_half_open_and_lead_to_cookies() {
    let mut plan = Plan { puppet_client: true, ..Plan::default() };
    plan.client.local_auth = LocalAuth::Psk(Secret::new(b"wrong".to_vec()));
    let mut lab = Lab::new(plan);
    lab.world.net.capture.set_on(true);
    let client = lab.client;
    for _ in 0..200 {
        let way = path("198.51.100.2:500", "192.0.2.1:500");
        lab.world.play(client, |puppet, now| puppet.connect(now, way));
        lab.ms(1);
    }
    lab.ms(100);
    let cookie = |record: &&Record| {
        let message = bewick_ike::wire::Message::parse(&record.datagram.payload);
        message.is_ok_and(|m| {
            m.header.flags.response && find(&m.payloads, NotifyType::COOKIE).is_some()
        })
    };
    assert!(lab.world.net.capture.sent().filter(cookie).count() > 100, "cookies are asked for");
}
