//! Exchanges of an established IKE_SA: liveness, DELETE, retransmission, and bad networks.

use std::{collections::BTreeMap, time::Duration};

use bewick_ike::{
    CloseReason, ConnectionId,
    wire::{Delete, ExchangeType, Flags, Header, NotifyType, Payload},
};
use bewick_mobike::Command;
use bewick_tests::{Chance, Lab, Link, Plan, Record, Verdict, lab::path, puppet::notify};

fn ike_header(record: &Record) -> Option<Header> {
    let payload = &record.datagram.payload;
    let inner =
        if record.datagram.dst.port() == 500 { payload } else { payload.strip_prefix(&[0; 4])? };
    Header::parse(inner).ok()
}

fn down() -> Command {
    Command::Down(ConnectionId(0))
}

#[test]
fn k_2_4_1_silence_leads_to_a_liveness_check_and_its_answer_keeps_the_ike_sa() {
    let mut lab = Lab::established(Plan::default());
    lab.world.net.capture.set_on(true);
    lab.seconds(600);
    assert!(lab.is_up());
    let requests = lab
        .world
        .net
        .capture
        .sent()
        .filter(|r| ike_header(r).is_some_and(|h| !h.flags.response))
        .count();
    assert!((18..=42).contains(&requests), "{requests} checks in ten minutes at 30 s");
}

#[test]
fn k_2_4_1_no_liveness_check_where_none_is_wanted() {
    let mut plan = Plan::default();
    plan.client.liveness = Duration::ZERO;
    plan.gateway.liveness = Duration::ZERO;
    let mut lab = Lab::established(plan);
    lab.world.net.capture.set_on(true);
    lab.seconds(600);
    assert!(lab.world.net.capture.sent().next().is_none());
    assert!(lab.is_up());
}

#[test]
fn m_3_11_1_a_silent_peer_is_held_for_five_minutes_and_then_given_up() {
    let mut plan = Plan { second_uplink: false, ..Plan::default() };
    plan.client_policy.hold = Duration::from_secs(330);
    plan.gateway_policy.hold = Duration::from_secs(330);
    let mut lab = Lab::established(plan);
    lab.world.net.set_links(lab.wlan, lab.wan, Link { black_hole: true, ..Link::default() });
    lab.seconds(299);
    assert_eq!(lab.sas(lab.gateway).len(), 1);
    assert_eq!(lab.children(lab.gateway).len(), 1);
    lab.seconds(100);
    assert!(lab.is_empty(), "{}", lab.story());
    for end in [lab.client, lab.gateway] {
        assert!(matches!(lab.reasons(end)[..], [CloseReason::Unanswered(_)]));
    }
}

#[test]
fn k_2_4_1_forged_messages_do_not_end_an_ike_sa() {
    let mut lab = Lab::established(Plan::default());
    let spis = lab.sas(lab.client)[0].spis;
    for from_initiator in [true, false] {
        for response in [true, false] {
            for id in 0..4 {
                for exchange in [34, 35, 36, 37, 38, 99] {
                    let flags = Flags { initiator: from_initiator, response, version: false };
                    let header = Header::new(spis, ExchangeType(exchange), flags, id);
                    let payloads = [
                        notify(NotifyType::INVALID_IKE_SPI, []),
                        notify(NotifyType::INVALID_SYNTAX, []),
                        Payload::Delete(Delete::Ike),
                    ];
                    let message =
                        bewick_ike::wire::emit_message(&header, &payloads).expect("a message");
                    let mut payload = vec![0; 4];
                    payload.extend(message);
                    let (one, other) = ("198.51.100.2:4500", "192.0.2.1:4500");
                    let way = if from_initiator { path(one, other) } else { path(other, one) };
                    let forged = bewick_tests::Datagram::udp(way.local, way.remote, payload);
                    lab.world.net.inject(forged);
                }
            }
        }
    }
    lab.world.net.capture.set_on(true);
    lab.seconds(5);
    assert!(lab.is_up(), "{}", lab.story());
    assert_eq!(lab.world.net.capture.sent().count(), 0, "K-3.14: silence");
    lab.seconds(100);
    assert!(lab.is_up(), "{}", lab.story());
}

#[test]
fn k_1_4_1_1_a_delete_from_either_side_takes_everything_with_it() {
    for by_client in [true, false] {
        let mut lab = Lab::established(Plan::default());
        let (end, other) =
            if by_client { (lab.client, lab.gateway) } else { (lab.gateway, lab.client) };
        lab.world.command(end, down()).expect("a connection");
        assert!(lab.children(end).is_empty(), "no traffic from the command on");
        lab.seconds(15);
        assert!(lab.is_empty(), "{}", lab.story());
        assert_eq!(lab.reasons(end), [CloseReason::Local]);
        assert_eq!(lab.reasons(other), [CloseReason::PeerDeleted]);
    }
}

#[test]
fn k_1_4_1_1_crossing_deletes_end_well() {
    let mut lab = Lab::established(Plan::default());
    lab.world.command(lab.client, down()).expect("a connection");
    lab.world.command(lab.gateway, down()).expect("a connection");
    lab.seconds(60);
    assert!(lab.is_empty(), "{}", lab.story());
}

#[test]
fn a_shut_down_says_goodbye_and_a_kept_up_client_comes_back_after_a_delete() {
    let mut plan = Plan::default();
    plan.client_policy.keep_up = true;
    let mut lab = Lab::established(plan);
    lab.world.command(lab.gateway, Command::Shutdown).expect("no connection is named");
    lab.seconds(10);
    assert!(lab.is_up(), "{}", lab.story());
    lab.world.command(lab.client, Command::Shutdown).expect("no connection is named");
    lab.seconds(100);
    assert!(lab.is_empty(), "{}", lab.story());
}

#[test]
fn k_1_4_1_1_a_delete_of_the_child_sa_ends_the_tunnel() {
    let mut lab = Lab::new(Plan { puppet_client: true, ..Plan::default() });
    let client = lab.client;
    lab.world
        .play(client, |puppet, now| puppet.connect(now, path("198.51.100.2:500", "192.0.2.1:500")));
    lab.rest();
    let (ours, theirs) = (lab.children(client)[0].spi_in, lab.children(lab.gateway)[0].spi_in);
    let way = path("198.51.100.2:4500", "192.0.2.1:4500");
    // One that nobody knows gets an answer without DELETE (K-2.25-1).
    let unknown = Payload::Delete(Delete::Esp(vec![bewick_ike::EspSpi(0x1234_5678)]));
    lab.world.play(client, |puppet, now| puppet.ask(now, way, &[unknown]));
    lab.rest();
    assert!(lab.is_up(), "{}", lab.story());
    let payload = Payload::Delete(Delete::Esp(vec![ours]));
    lab.world.play(client, |puppet, now| puppet.ask(now, way, &[payload]));
    lab.rest();
    let puppet = lab.world.end_mut(client).machine.puppet();
    let answers: Vec<_> = puppet.responses().map(|(_, _, p)| p.to_vec()).collect();
    assert_eq!(answers, [vec![], vec![Payload::Delete(Delete::Esp(vec![theirs]))]]);
    assert!(lab.children(lab.gateway).is_empty());
}

#[test]
fn k_2_5_2_an_unknown_critical_payload_is_refused_and_one_that_is_not_critical_skipped() {
    let mut lab = Lab::new(Plan { puppet_client: true, ..Plan::default() });
    let client = lab.client;
    lab.world
        .play(client, |puppet, now| puppet.connect(now, path("198.51.100.2:500", "192.0.2.1:500")));
    lab.rest();
    let way = path("198.51.100.2:4500", "192.0.2.1:4500");
    for critical in [false, true] {
        let cookie = notify(NotifyType::COOKIE2, [5; 8]);
        let strange = Payload::Unknown { kind: 200, critical, data: vec![1, 2, 3] };
        let payloads = [strange, cookie.clone()];
        lab.world.play(client, |puppet, now| puppet.ask(now, way, &payloads));
        lab.rest();
        let puppet = lab.world.end_mut(client).machine.puppet();
        let answer = puppet.responses().last().expect("an answer").2.to_vec();
        let refusal = notify(NotifyType::UNSUPPORTED_CRITICAL_PAYLOAD, [200]);
        assert_eq!(answer, [if critical { refusal } else { cookie }]);
    }
    assert!(lab.is_up(), "{}", lab.story());
}

#[test]
fn k_1_2_1_nothing_but_ike_auth_comes_before_the_ike_sa_stands() {
    let mut lab = Lab::new(Plan::default());
    // The IKE_AUTH request becomes an INFORMATIONAL or CREATE_CHILD_SA one on its way.
    for exchange in [36, 37] {
        lab.world.net.set_tap(Some(Box::new(move |_, datagram| {
            let mut changed = datagram.clone();
            if let Some(octet) = changed.payload.get_mut(4 + 18).filter(|octet| **octet == 35) {
                *octet = exchange;
                return Verdict::Replace(vec![changed]);
            }
            Verdict::Pass
        })));
        lab.up();
        lab.seconds(5);
        assert!(lab.children(lab.gateway).is_empty());
        assert_eq!(lab.count(lab.gateway, "established"), 0);
    }
}

/// Loses every nth datagram of each side, or doubles it, at each of the first places.
#[test]
fn k_2_1_1_any_one_message_may_be_lost_doubled_or_late_in_every_exchange() {
    for kind in ["lost", "doubled", "late"] {
        for place in 0..12 {
            let mut lab = Lab::new(Plan::default());
            let mut count = 0;
            let mut held = None;
            lab.world.net.set_tap(Some(Box::new(move |_, datagram| {
                count += 1;
                if count - 1 == place {
                    return match kind {
                        "lost" => Verdict::Drop,
                        "doubled" => Verdict::Replace(vec![datagram.clone(), datagram.clone()]),
                        _ => {
                            held = Some(datagram.clone());
                            Verdict::Drop
                        }
                    };
                }
                match held.take() {
                    Some(late) => Verdict::Replace(vec![datagram.clone(), late]),
                    None => Verdict::Pass,
                }
            })));
            let up = Command::Up(ConnectionId(0));
            // With one uplink, for another one would be tried meanwhile.
            let (wlan, lte) = (lab.wlan, lab.lte());
            lab.world.set_up(lte, false);
            lab.world.command(lab.client, up).expect("a connection");
            lab.seconds(3);
            assert!(lab.is_up(), "{kind} {place}: {}", lab.story());
            lab.world.set_up(lte, true);
            lab.seconds(3);
            assert_eq!(lab.sas(lab.client)[0].path.local.ip(), lab.address(wlan));
            lab.move_to(lte);
            lab.seconds(3);
            assert_eq!(lab.count(lab.client, "moved"), 1, "{kind} {place}: {}", lab.story());
            assert_eq!(lab.count(lab.gateway, "moved"), 1, "{kind} {place}: {}", lab.story());
            assert!(lab.is_up());
            lab.seconds(35);
            lab.world.command(lab.client, down()).expect("a connection");
            lab.seconds(60);
            assert!(lab.is_empty(), "{kind} {place}: {}", lab.story());
            for end in [lab.client, lab.gateway] {
                assert_eq!(lab.count(end, "established"), 1, "{kind} {place}: {}", lab.story());
                assert_eq!(lab.count(end, "closed"), 1, "{kind} {place}: {}", lab.story());
            }
        }
    }
}

#[test]
fn k_2_1_1_on_a_bad_network_requests_and_responses_repeat_the_same_octets() {
    let mut lab = Lab::new(Plan::default());
    let bad = Link {
        loss: Chance::percent(25),
        duplicate: Chance::percent(20),
        reorder: Chance::percent(20),
        reorder_by: Duration::from_millis(30),
        jitter: Duration::from_millis(20),
        ..Link::default()
    };
    lab.world.net.set_default_link(bad);
    lab.world.net.capture.set_on(true);
    lab.up();
    for n in 0..20 {
        lab.seconds(35);
        if !lab.is_up() {
            continue;
        }
        lab.move_to(if n % 2 == 0 { lab.lte() } else { lab.wlan });
    }
    lab.seconds(60);
    assert!(lab.is_up(), "{}", lab.story());
    type Key = (u64, u64, bool, bool, u32, u8);
    let mut seen = BTreeMap::<Key, Vec<u8>>::new();
    let mut repeats = 0;
    for record in lab.world.net.capture.sent() {
        let Some(h) = ike_header(record).filter(|h| h.exchange != ExchangeType::IKE_SA_INIT) else {
            continue;
        };
        let key =
            (h.spi_i, h.spi_r, h.flags.initiator, h.flags.response, h.message_id, h.exchange.0);
        let octets = &record.datagram.payload;
        repeats += usize::from(seen.contains_key(&key));
        assert_eq!(seen.entry(key).or_insert_with(|| octets.clone()), octets);
    }
    assert!(repeats > 10, "{repeats}");
}

#[test]
fn k_2_1_1_a_request_before_the_last_one_gets_silence() {
    let mut lab = Lab::established(Plan::default());
    lab.world.net.capture.set_on(true);
    lab.move_to(lab.lte());
    lab.rest();
    lab.move_to(lab.wlan);
    lab.rest();
    let requests: Vec<_> = lab
        .world
        .net
        .capture
        .sent()
        .filter(|r| ike_header(r).is_some_and(|h| h.flags.initiator && !h.flags.response))
        .map(|r| r.datagram.clone())
        .collect();
    lab.world.net.capture.clear();
    lab.world.net.inject(requests[0].clone());
    lab.rest();
    assert_eq!(lab.world.net.capture.sent().count(), 0);
    lab.world.net.inject(requests[requests.len() - 1].clone());
    lab.rest();
    assert_eq!(lab.world.net.capture.sent().count(), 1);
}

#[test]
fn k_2_21_1_a_bad_payload_inside_a_genuine_message_ends_the_ike_sa_with_invalid_syntax() {
    let mut lab = Lab::new(Plan { puppet_client: true, ..Plan::default() });
    let client = lab.client;
    lab.world
        .play(client, |puppet, now| puppet.connect(now, path("198.51.100.2:500", "192.0.2.1:500")));
    lab.rest();
    let way = path("198.51.100.2:4500", "192.0.2.1:4500");
    // A Nonce payload of 3 octets can't be (K-2.10-1).
    let bad = Payload::Unknown { kind: 40, critical: false, data: vec![1, 2, 3] };
    lab.world.play(client, |puppet, now| puppet.ask(now, way, &[bad]));
    lab.seconds(15);
    assert!(lab.sas(lab.gateway).is_empty(), "{}", lab.story());
    assert!(lab.children(lab.gateway).is_empty());
    assert!(matches!(lab.reasons(lab.gateway)[..], [CloseReason::Protocol(_)]));
    assert!(lab.children(client).is_empty(), "and the peer ends it too");
}

#[test]
fn k_2_8_1_asking_twice_for_a_rekey_leaves_one_child_sa() {
    for ms in [0, 5, 25, 45, 70] {
        for (first, second) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
            let mut lab = Lab::established(Plan::default());
            let ends = [lab.client, lab.gateway];
            for end in ends {
                lab.world.end_mut(end).answer_delay = Duration::from_millis(40);
            }
            let rekey = || Command::Rekey(ConnectionId(0));
            lab.world.command(ends[first], rekey()).expect("a connection");
            lab.ms(ms);
            lab.world.command(ends[second], rekey()).expect("a connection");
            lab.seconds(20);
            assert!(lab.is_up(), "{ms} ms, {first} and {second}: {}", lab.story());
        }
    }
}
