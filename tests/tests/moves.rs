//! Tunnels that move (RFC 4555 §3.5, §3.7, §3.8), with traffic on them.

use std::{collections::BTreeSet, net::IpAddr, time::Duration};

use bewick_ike::{
    CloseReason, Path,
    wire::{ExchangeType, Header},
};
use bewick_mobike::{Cause, Event, ReturnRoutability};
use bewick_tests::{
    Lab, Link, Plan, Protocol, Record, UplinkId, Verdict,
    lab::ip,
    pair::{EndId, FlowId},
};

const MS: Duration = Duration::from_millis(1);
const RTT: Duration = Duration::from_millis(20);

const WLAN: &str = "198.51.100.2";
const LTE: &str = "198.51.100.130";

fn is_esp(record: &Record) -> bool {
    record.datagram.protocol == Protocol::Esp || !record.datagram.payload.starts_with(&[0; 4])
}

fn ike_header(record: &Record) -> Option<Header> {
    let payload = &record.datagram.payload;
    let bytes =
        if record.datagram.dst.port() == 500 { payload } else { payload.strip_prefix(&[0; 4])? };
    Header::parse(bytes).ok()
}

fn flows(lab: &mut Lab, seconds: u64) -> (FlowId, FlowId) {
    let time = Duration::from_secs(seconds);
    let (client, gateway) = (lab.client, lab.gateway);
    (
        lab.world.start_flow(client, gateway, MS, time),
        lab.world.start_flow(gateway, client, MS, time),
    )
}

fn moved(lab: &Lab, end: EndId) -> Vec<(Path, Path, Cause)> {
    let moved = |event: &&Event| match event {
        Event::Moved { from, to, cause, .. } => Some((*from, *to, *cause)),
        _ => None,
    };
    lab.events(end).iter().filter_map(moved).collect()
}

/// Both ends, IKE and plane, are on the pair of these addresses.
fn assert_at(lab: &Lab, client: &str, gateway: &str) {
    let (client, gateway) = (ip(client), ip(gateway));
    let here = lab.sas(lab.client)[0].path;
    let there = lab.sas(lab.gateway)[0].path;
    assert!(lab.is_up(), "{}", lab.story());
    assert_eq!((here.local.ip(), here.remote.ip()), (client, gateway), "{}", lab.story());
    assert_eq!(there.local.ip(), gateway, "{}", lab.story());
    assert_eq!(lab.world.end(lab.client).plane.path(), Some(here), "{}", lab.story());
    assert_eq!(lab.world.end(lab.gateway).plane.path(), Some(there), "{}", lab.story());
}

#[test]
fn m_3_5_8_when_the_address_goes_both_ends_move_within_two_round_trips() {
    for v6 in [false, true] {
        let mut lab = Lab::established(Plan { v6, ..Plan::default() });
        let (out, back) = flows(&mut lab, 2);
        lab.ms(500);
        let gone = lab.world.now();
        let (wlan, before) = (lab.address(lab.wlan).to_string(), lab.children(lab.client));
        let uplink = lab.wlan;
        lab.world.set_up(uplink, false);
        lab.seconds(3);
        let lte = lab.address(lab.lte()).to_string();
        let gateway = lab.gateway_ips[0].to_string();
        assert_at(&lab, &lte, &gateway);
        let cause = Cause::AddressGone(ip(&wlan));
        let ours = moved(&lab, lab.client);
        assert_eq!(ours.len(), 1, "{}", lab.story());
        assert_eq!((ours[0].0.local.ip(), ours[0].1.local.ip()), (ip(&wlan), ip(&lte)));
        assert_eq!(ours[0].2, cause);
        let theirs = moved(&lab, lab.gateway);
        assert_eq!(theirs.len(), 1, "{}", lab.story());
        assert_eq!((theirs[0].0.remote.ip(), theirs[0].1.remote.ip()), (ip(&wlan), ip(&lte)));
        assert_eq!(theirs[0].2, Cause::PeerMoved);
        // what is inside does not notice.
        let after = lab.children(lab.client);
        assert_eq!(before[0].virtual_ips, after[0].virtual_ips);
        assert_eq!(before[0].ts_local, after[0].ts_local);
        assert_eq!(before[0].spi_in, after[0].spi_in);
        // The client's own packets go the new way at once; the gateway's one round trip after the
        // update reaches it, which is the check of the new address.
        let end = gone + Duration::from_secs(1);
        assert!(lab.world.flow(out).longest_gap(gone, end) <= RTT, "{}", lab.story());
        assert!(lab.world.flow(out).lost().is_empty());
        assert!(lab.world.flow(back).longest_gap(gone, end) <= 2 * RTT + MS, "{}", lab.story());
        assert_eq!(lab.world.flow(back).twice(), 0);
    }
}

#[test]
fn a_planned_move_loses_nothing() {
    for (nat_wlan, nat_lte) in [(false, false), (true, false), (false, true), (true, true)] {
        let mut lab = Lab::established(Plan { nat_wlan, nat_lte, ..Plan::default() });
        let (out, back) = flows(&mut lab, 3);
        lab.ms(500);
        for uplink in [lab.lte(), lab.wlan, lab.lte()] {
            lab.move_to(uplink);
            lab.ms(500);
        }
        lab.seconds(3);
        for flow in [out, back] {
            let flow = lab.world.flow(flow);
            assert_eq!(flow.sent(), 3000);
            assert!(flow.lost().is_empty(), "{nat_wlan} {nat_lte}: {}", lab.story());
            assert_eq!(flow.twice(), 0);
        }
        for end in [lab.client, lab.gateway] {
            assert_eq!(moved(&lab, end).len(), 3, "{}", lab.story());
            assert!(lab.count(end, "closed") == 0);
        }
        assert_at(&lab, &lab.address(lab.lte()).to_string(), "192.0.2.1");
    }
}

#[test]
fn m_3_5_21_encapsulation_follows_nat_detection_at_both_ends() {
    for (nat_wlan, nat_lte) in [(false, true), (true, false)] {
        for rr in [ReturnRoutability::Before, ReturnRoutability::Off] {
            let mut plan = Plan { nat_wlan, nat_lte, ..Plan::default() };
            plan.gateway_policy.return_routability = rr;
            let mut lab = Lab::established(plan);
            assert_eq!(lab.children(lab.client)[0].encap, nat_wlan);
            lab.move_to(lab.lte());
            lab.rest();
            for end in [lab.client, lab.gateway] {
                assert_eq!(lab.children(end)[0].encap, nat_lte, "{}", lab.story());
                assert_eq!(lab.sas(end)[0].nat.any(), nat_lte);
                assert_eq!(lab.sas(end)[0].children[0].encap, nat_lte);
            }
            lab.move_to(lab.wlan);
            lab.rest();
            for end in [lab.client, lab.gateway] {
                assert_eq!(lab.children(end)[0].encap, nat_wlan, "{}", lab.story());
            }
        }
    }
}

#[test]
fn forced_encapsulation_stays_on_over_moves() {
    for case in 0..3 {
        let mut plan = Plan::default();
        match case {
            0 => plan.client_plane_encap = true,
            1 => plan.client.force_encap = true,
            _ => plan.gateway.force_encap = true,
        }
        let mut lab = Lab::established(plan);
        for uplink in [lab.lte(), lab.wlan] {
            lab.move_to(uplink);
            lab.rest();
            for end in [lab.client, lab.gateway] {
                assert!(lab.children(end)[0].encap, "case {case}: {}", lab.story());
            }
        }
        lab.seconds(120);
        assert!(lab.is_up());
        assert_eq!(moved(&lab, lab.client).len(), 2, "{}", lab.story());
    }
}

#[test]
fn m_3_5_10_towards_a_likely_nat_esp_is_in_udp_from_the_first_packet() {
    let mut lab = Lab::established(Plan { nat_lte: true, ..Plan::default() });
    assert!(!lab.children(lab.client)[0].encap);
    lab.world.net.capture.set_on(true);
    lab.move_to(lab.lte());
    let (_, _) = flows(&mut lab, 1);
    lab.seconds(2);
    let source = lab.address(lab.lte());
    let mut esp =
        lab.world.net.capture.sent().filter(|r| is_esp(r) && r.datagram.src.ip() == source);
    assert!(esp.next().is_some());
    let bare = |r: &Record| r.datagram.protocol == Protocol::Esp;
    assert!(!lab.world.net.capture.sent().filter(|r| r.datagram.src.ip() == source).any(bare));
}

#[test]
fn m_3_5_9_the_client_s_esp_goes_the_new_way_before_the_answer() {
    let mut lab = Lab::established(Plan::default());
    let (_, _) = flows(&mut lab, 1);
    lab.ms(100);
    lab.world.net.capture.set_on(true);
    let now = lab.world.now();
    lab.move_to(lab.lte());
    lab.ms(100);
    let first = lab
        .world
        .net
        .capture
        .sent()
        .find(|r| is_esp(r) && r.datagram.src.ip() == ip(LTE))
        .expect("ESP on the new path");
    assert!(first.time.since(now) <= MS);
}

#[test]
fn m_3_5_19_no_esp_goes_to_a_new_address_before_its_cookie2_came_back() {
    let mut lab = Lab::established(Plan::default());
    let (_, back) = flows(&mut lab, 2);
    lab.ms(500);
    lab.world.net.capture.set_on(true);
    let start = lab.world.now();
    lab.move_to(lab.lte());
    lab.seconds(2);
    // Update, answer and check, echo: three ways of 10 ms.
    let echo = start + 30 * MS;
    let records = lab.world.net.capture.records();
    let to = |record: &&Record, address: &str| {
        is_esp(record)
            && record.datagram.src.ip() == ip("192.0.2.1")
            && record.datagram.dst.ip() == ip(address)
            && matches!(record.hop, bewick_tests::Hop::Sent(_))
    };
    let first = records.iter().find(|r| to(r, LTE)).expect("ESP to the new address");
    assert!(first.time >= echo, "{:?}", first.time);
    assert!(first.time <= echo + MS);
    let last = records.iter().rfind(|r| to(r, WLAN)).expect("ESP to the old one");
    assert!(last.time + MS >= echo, "until then it went to the old one");
    assert!(lab.world.flow(back).lost().is_empty());
}

#[test]
fn m_3_7_2_a_trusted_peer_is_followed_at_once() {
    let mut plan = Plan::default();
    plan.gateway_policy.return_routability = ReturnRoutability::Off;
    let mut lab = Lab::established(plan);
    let (_, back) = flows(&mut lab, 2);
    lab.ms(500);
    lab.world.net.capture.set_on(true);
    let start = lab.world.now();
    lab.move_to(lab.lte());
    lab.seconds(2);
    let gateway = ip("192.0.2.1");
    let first = lab
        .world
        .net
        .capture
        .sent()
        .find(|r| is_esp(r) && r.datagram.src.ip() == gateway && r.datagram.dst.ip() == ip(LTE))
        .expect("ESP to the new address");
    assert!(first.time.since(start) <= RTT / 2 + MS);
    assert!(lab.world.flow(back).lost().is_empty());
}

#[test]
fn m_3_5_13_two_moves_within_a_round_trip_end_at_the_second() {
    for ms in [0, 1, 5, 10, 15, 19, 25, 35] {
        let mut lab = Lab::established(Plan::default());
        let (out, back) = flows(&mut lab, 2);
        lab.ms(100);
        lab.world.net.capture.set_on(true);
        lab.move_to(lab.lte());
        lab.ms(ms);
        lab.move_to(lab.wlan);
        lab.seconds(3);
        assert_at(&lab, WLAN, "192.0.2.1");
        for flow in [out, back] {
            assert!(lab.world.flow(flow).lost().is_empty(), "{ms} ms: {}", lab.story());
        }
        assert!(lab.count(lab.client, "moved") >= 1, "{}", lab.story());
        let ids: BTreeSet<u32> = lab
            .world
            .net
            .capture
            .sent()
            .filter_map(ike_header)
            .filter(|h| h.flags.initiator && !h.flags.response)
            .map(|h| h.message_id)
            .collect();
        assert_eq!(ids.len(), 2, "two updates: {ids:?}");
    }
}

#[test]
fn m_3_5_11_a_request_in_flight_goes_on_with_the_same_octets_on_the_new_pair() {
    let mut lab = Lab::established(Plan::default());
    let hole = Link { black_hole: true, ..Link::default() };
    lab.world.net.set_links(lab.wlan, lab.wan, hole);
    lab.seconds(29);
    lab.world.net.capture.set_on(true);
    // The liveness check goes out and is lost.
    let sent = lab.world.end(lab.client).transmitted;
    let client = lab.client;
    lab.world.run_while_not(Duration::from_secs(5), |world| world.end(client).transmitted > sent);
    lab.ms(100);
    lab.move_to(lab.lte());
    lab.seconds(2);
    assert_at(&lab, LTE, "192.0.2.1");
    let requests: Vec<&Record> = lab
        .world
        .net
        .capture
        .sent()
        .filter(|r| ike_header(r).is_some_and(|h| h.flags.initiator && !h.flags.response))
        .collect();
    let first = requests[0];
    assert_eq!(first.datagram.src.ip(), ip(WLAN));
    let again: Vec<_> =
        requests.iter().filter(|r| r.datagram.payload == first.datagram.payload).collect();
    assert!(
        again.iter().any(|r| r.datagram.src.ip() == ip(LTE)),
        "the same octets on the new pair"
    );
    let id = |r: &Record| ike_header(r).expect("IKE").message_id;
    let update = requests.iter().find(|r| id(r) == id(first) + 1).expect("the update");
    let answered = lab
        .world
        .net
        .capture
        .delivered()
        .find(|r| ike_header(r).is_some_and(|h| h.flags.response && h.message_id == id(first)))
        .expect("the answer");
    assert!(update.time >= answered.time, "M-3.5-12: when the window allows");
    assert_eq!(update.datagram.src.ip(), ip(LTE));
}

#[test]
fn stranded_and_back_again() {
    for back_on_lte in [false, true] {
        let mut lab = Lab::established(Plan::default());
        let (out, back) = flows(&mut lab, 60);
        let (wlan, lte) = (lab.wlan, lab.lte());
        lab.world.set_up(lte, false);
        lab.ms(500);
        lab.world.set_up(wlan, false);
        lab.seconds(20);
        assert_eq!(lab.count(lab.client, "stranded"), 1, "{}", lab.story());
        assert_eq!(lab.sas(lab.client).len(), 1);
        lab.world.set_up(if back_on_lte { lte } else { wlan }, true);
        let returned = lab.world.now();
        lab.ms(500);
        assert_at(&lab, if back_on_lte { LTE } else { WLAN }, "192.0.2.1");
        for flow in [out, back] {
            let first = lab.world.flow(flow).first_after(returned).expect("traffic again");
            assert!(first.since(returned) <= 2 * RTT + MS, "{:?}", lab.story());
        }
        assert_eq!(lab.count(lab.client, "stranded"), 1);
    }
}

#[test]
fn m_3_8_4_a_lost_nat_mapping_is_found_by_the_liveness_check() {
    for seconds in [1, 45] {
        let mut lab = Lab::established(Plan { nat_wlan: true, ..Plan::default() });
        lab.seconds(seconds);
        let nat = lab.wlan_nat.expect("a NAT");
        let before = lab.sas(lab.gateway)[0].path.remote;
        lab.world.net.forget_mappings(nat);
        let (out, back) = flows(&mut lab, 60);
        lab.seconds(62);
        let after = lab.sas(lab.gateway)[0].path.remote;
        assert_ne!(before, after, "after {seconds} s: {}", lab.story());
        assert_at(&lab, "192.168.1.2", "192.0.2.1");
        let moves = moved(&lab, lab.client);
        assert_eq!(moves.len(), 1, "{}", lab.story());
        assert_eq!(moves[0].2, Cause::NatMapping);
        assert!(lab.world.flow(out).lost().is_empty());
        let lost = lab.world.flow(back).lost().len();
        assert!(lost <= 31_000, "{lost}");
        lab.seconds(300);
        assert_eq!(moved(&lab, lab.client).len(), 1, "and no update without a change");
    }
}

#[test]
fn m_3_12_3_keepalives_go_on_the_current_pair_alone_and_only_behind_a_nat() {
    let mut lab = Lab::established(Plan { nat_wlan: true, ..Plan::default() });
    lab.world.net.capture.set_on(true);
    let keepalives = |lab: &Lab| {
        let sent = lab.world.net.capture.sent();
        let only: Vec<_> = sent.filter(|r| r.datagram.payload == [0xff]).cloned().collect();
        only
    };
    lab.seconds(100);
    let first = keepalives(&lab);
    assert!((4..=6).contains(&first.len()), "{}", first.len());
    assert!(first.iter().all(|r| r.datagram.src == "192.168.1.2:4500".parse().expect("one")));
    lab.move_to(lab.lte());
    lab.seconds(100);
    assert_eq!(keepalives(&lab).len(), first.len());
}

#[test]
fn m_3_2_2_without_mobike_a_client_that_loses_its_address_sets_up_anew() {
    for keep_up in [false, true] {
        let mut plan = Plan::default();
        plan.gateway.mobike = false;
        plan.client_policy.keep_up = keep_up;
        let mut lab = Lab::established(plan);
        let uplink = lab.wlan;
        lab.world.set_up(uplink, false);
        lab.seconds(5);
        assert_at(&lab, LTE, "192.0.2.1");
        assert_eq!(lab.reasons(lab.client), [CloseReason::AddressGone(ip(WLAN))]);
        assert_eq!(lab.reasons(lab.gateway), [CloseReason::Replaced]);
    }
}

fn second_gateway() -> Plan {
    Plan { second_gateway: true, ..Plan::default() }
}

#[test]
fn m_3_5_25_a_responder_whose_own_address_goes_moves_and_says_so() {
    let mut lab = Lab::established(second_gateway());
    let (out, back) = flows(&mut lab, 5);
    lab.ms(500);
    let (wan, gone) = (lab.wan, lab.world.now());
    lab.world.set_up(wan, false);
    lab.seconds(6);
    assert_at(&lab, WLAN, "192.0.2.129");
    let cause = Cause::PeerAddressGone(ip("192.0.2.1"));
    assert_eq!(moved(&lab, lab.client).iter().map(|m| m.2).collect::<Vec<_>>(), [cause]);
    let theirs = moved(&lab, lab.gateway);
    assert_eq!(theirs.len(), 1, "{}", lab.story());
    let end = gone + Duration::from_secs(1);
    assert!(lab.world.flow(back).longest_gap(gone, end) <= RTT, "{}", lab.story());
    assert!(lab.world.flow(out).longest_gap(gone, end) <= 2 * RTT + MS, "{}", lab.story());
    assert!(lab.world.flow(back).lost().is_empty());
}

#[test]
fn m_3_4_4_a_responder_whose_addresses_stay_never_uses_the_list() {
    let mut lab = Lab::established(Plan::default());
    let hole = Link { black_hole: true, ..Link::default() };
    lab.world.net.set_links(lab.wlan, lab.wan, hole);
    lab.world.net.set_links(lab.lte(), lab.wan, hole);
    let (_, _) = flows(&mut lab, 100);
    lab.world.net.capture.set_on(true);
    lab.seconds(100);
    let gateway = ip("192.0.2.1");
    let mut sent = lab.world.net.capture.sent().filter(|r| r.datagram.src.ip() == gateway);
    assert!(sent.all(|r| r.datagram.dst.ip() == ip(WLAN)));
}

#[test]
fn m_3_5_4_a_pair_that_swallows_everything_is_left_for_another() {
    let mut lab = Lab::established(Plan::default());
    lab.seconds(10);
    let hole = Link { black_hole: true, ..Link::default() };
    lab.world.net.set_links(lab.wlan, lab.wan, hole);
    lab.seconds(45);
    assert_at(&lab, LTE, "192.0.2.1");
    assert_eq!(moved(&lab, lab.client)[0].2, Cause::NoAnswer);
}

#[test]
fn m_3_5_4_a_gateway_that_answers_nowhere_is_given_up_and_tried_anew() {
    let mut plan = Plan::default();
    plan.client_policy.keep_up = true;
    let mut lab = Lab::established(plan);
    // The gateway restarts and knows of nothing, behind a network that is down.
    let fresh = lab.gateway_machine(1);
    let gateway = lab.gateway;
    lab.world.restart(gateway, fresh);
    lab.cut(true);
    let sent = lab.world.end(lab.client).transmitted;
    lab.seconds(360);
    let asked = lab.world.end(lab.client).transmitted - sent;
    lab.cut(false);
    lab.seconds(60);
    assert!(lab.is_up(), "{}", lab.story());
    assert!(asked <= 100, "{asked} messages to a peer that is silent");
}

#[test]
fn x_17_delete_wins_over_an_update() {
    for ms in [0, 5, 12, 18, 25] {
        for by_client in [false, true] {
            let mut lab = Lab::established(Plan::default());
            let down = bewick_mobike::Command::Down(bewick_ike::ConnectionId(0));
            lab.move_to(lab.lte());
            lab.ms(ms);
            let end = if by_client { lab.client } else { lab.gateway };
            lab.world.command(end, down).expect("a connection");
            lab.seconds(15);
            assert!(lab.is_empty(), "{ms} {by_client}: {}", lab.story());
            assert_eq!(lab.count(lab.client, "closed"), 1);
            assert_eq!(lab.count(lab.gateway, "closed"), 1);
        }
    }
}

#[test]
fn x_10_a_repeated_request_is_answered_where_it_came_from_and_moves_nothing() {
    let mut lab = Lab::established(Plan::default());
    lab.world.net.capture.set_on(true);
    lab.move_to(lab.lte());
    lab.rest();
    lab.move_to(lab.wlan);
    lab.rest();
    // The last update again, as it was, from an address of somebody else: X-11.
    let update = lab
        .world
        .net
        .capture
        .sent()
        .filter(|r| ike_header(r).is_some_and(|h| h.flags.initiator && !h.flags.response))
        .last()
        .expect("an update")
        .datagram
        .clone();
    let answer = lab
        .world
        .net
        .capture
        .sent()
        .filter(|r| ike_header(r).is_some_and(|h| !h.flags.initiator && h.flags.response))
        .last()
        .expect("its answer")
        .datagram
        .clone();
    let before = (lab.sas(lab.gateway)[0].path, lab.world.end(lab.gateway).plane.log().len());
    for victim in ["203.0.113.66", LTE] {
        lab.world.net.capture.clear();
        let mut copy = update.clone();
        copy.src.set_ip(ip(victim));
        lab.world.net.inject(copy);
        lab.rest();
        let sent: Vec<_> = lab.world.net.capture.sent().map(|r| r.datagram.clone()).collect();
        assert_eq!(sent.len(), 1, "{sent:?}");
        assert_eq!(sent[0].dst.ip(), ip(victim));
        assert_eq!(sent[0].payload, answer.payload, "K-2.1-1: from the cache");
    }
    let after = (lab.sas(lab.gateway)[0].path, lab.world.end(lab.gateway).plane.log().len());
    assert_eq!(before, after);
}

#[test]
fn x_19_a_plane_that_refuses_to_move_leaves_no_half_moved_tunnel() {
    for at_client in [true, false] {
        let mut plan = Plan::default();
        plan.client_policy.keep_up = true;
        let mut lab = Lab::established(plan);
        let end = if at_client { lab.client } else { lab.gateway };
        lab.world.end_mut(end).plane.refuse_next(1);
        lab.move_to(lab.lte());
        lab.seconds(20);
        assert_eq!(lab.count(end, "move-failed"), 1, "{}", lab.story());
        assert!(lab.is_up(), "set up anew: {}", lab.story());
        for end in [lab.client, lab.gateway] {
            assert!(lab.count(end, "closed") >= 1);
        }
    }
}

#[test]
fn a_slow_plane_delays_a_move_and_breaks_nothing() {
    let mut lab = Lab::established(Plan::default());
    for end in [lab.client, lab.gateway] {
        lab.world.end_mut(end).answer_delay = 50 * MS;
    }
    for uplink in [lab.lte(), lab.wlan, lab.lte()] {
        lab.move_to(uplink);
        lab.ms(30);
    }
    lab.seconds(2);
    assert_at(&lab, LTE, "192.0.2.1");
    for end in [lab.client, lab.gateway] {
        assert!(lab.count(end, "moved") >= 1, "{}", lab.story());
    }
}

#[test]
fn m_3_5_17_an_update_through_a_nat_gives_the_mapped_address() {
    let mut lab = Lab::established(Plan { nat_lte: true, ..Plan::default() });
    lab.move_to(lab.lte());
    lab.rest();
    let nat = lab.lte_nat.expect("a NAT");
    let inside = "10.0.0.2:4500".parse().expect("an address");
    let mapped = lab.world.net.mapped(nat, inside).into_iter().next().expect("a mapping");
    assert_eq!(lab.sas(lab.gateway)[0].path.remote, mapped);
    assert_at(&lab, "10.0.0.2", "192.0.2.1");
}

#[test]
fn x_18_moves_work_with_the_gateway_behind_a_nat() {
    for nat_lte in [false, true] {
        let plan = Plan { nat_gateway: true, nat_lte, ..Plan::default() };
        let mut lab = Lab::established(plan);
        let (out, back) = flows(&mut lab, 3);
        lab.ms(200);
        lab.move_to(lab.lte());
        lab.rest();
        lab.move_to(lab.wlan);
        lab.seconds(3);
        assert!(lab.is_up());
        for flow in [out, back] {
            assert!(lab.world.flow(flow).lost().is_empty(), "{}", lab.story());
        }
        assert_eq!(moved(&lab, lab.gateway).len(), 2);
    }
}

#[test]
fn x_12_the_first_copy_from_a_forged_source_gets_no_esp() {
    let mut lab = Lab::established(Plan::default());
    let victim = ip("203.0.113.66");
    let (_, back) = flows(&mut lab, 5);
    lab.ms(100);
    // An attacker on the way of the update delivers it first, from the victim's address.
    let mut done = false;
    lab.world.net.set_tap(Some(Box::new(move |_, datagram| {
        if !done && datagram.src.ip() == ip(LTE) && datagram.payload.starts_with(&[0; 4]) {
            done = true;
            let mut copy = datagram.clone();
            copy.src.set_ip(victim);
            return Verdict::Replace(vec![copy, datagram.clone()]);
        }
        Verdict::Pass
    })));
    lab.world.net.capture.set_on(true);
    lab.move_to(lab.lte());
    lab.seconds(5);
    let mut to_victim = lab.world.net.capture.sent().filter(|r| r.datagram.dst.ip() == victim);
    assert!(!to_victim.any(is_esp), "{}", lab.story());
    let tally = lab.world.net.sent_to(victim);
    assert!(tally.datagrams <= 8, "M-5.3-2: {tally:?}");
    assert!(lab.world.flow(back).lost().is_empty(), "traffic stays where it was");
}

#[test]
fn k_2_1_1_every_retransmission_is_the_same_octet_for_octet() {
    let mut lab = Lab::established(Plan::default());
    lab.world.net.set_links(lab.wlan, lab.wan, Link { black_hole: true, ..Link::default() });
    let lte: UplinkId = lab.lte();
    lab.world.set_up(lte, false);
    lab.world.net.capture.set_on(true);
    lab.seconds(120);
    let mut by_id = std::collections::BTreeMap::<(IpAddr, u32), BTreeSet<Vec<u8>>>::new();
    for record in lab.world.net.capture.sent() {
        let header = ike_header(record).expect("IKE");
        assert_eq!(header.exchange, ExchangeType::INFORMATIONAL);
        let key = (record.datagram.src.ip(), header.message_id);
        by_id.entry(key).or_default().insert(record.datagram.payload.clone());
    }
    assert!(lab.world.net.capture.sent().count() > 6);
    assert!(by_id.values().all(|octets| octets.len() == 1));
}

#[test]
fn m_3_5_25_a_responder_s_address_that_comes_back_is_used_again_unless_the_initiator_has_followed()
{
    for follows in [true, false] {
        let mut lab = Lab::established(second_gateway());
        let (wan, wlan) = (lab.wan, lab.wlan);
        if !follows {
            // The client hears nothing of it.
            lab.world.net.set_black_hole(wlan, false, true);
        }
        lab.world.set_up(wan, false);
        lab.ms(300);
        lab.world.set_up(wan, true);
        lab.world.net.set_black_hole(wlan, false, false);
        lab.seconds(3);
        assert_at(&lab, WLAN, if follows { "192.0.2.129" } else { "192.0.2.1" });
    }
}

#[test]
fn m_3_5_19_a_responder_that_loses_its_address_during_the_check_sends_no_esp_to_the_new_one() {
    let mut lab = Lab::established(second_gateway());
    let (_, _) = flows(&mut lab, 5);
    lab.ms(100);
    lab.world.net.capture.set_on(true);
    // The check of the new address stays unanswered.
    let (wan, lte) = (lab.wan, lab.lte());
    lab.world.net.set_black_hole(lte, false, true);
    lab.move_to(lte);
    lab.ms(15);
    lab.world.set_up(wan, false);
    lab.seconds(1);
    let lte_ip = lab.address(lte);
    let gateways = [ip("192.0.2.1"), ip("192.0.2.129")];
    let esp = |record: &&Record| {
        is_esp(record)
            && gateways.contains(&record.datagram.src.ip())
            && record.datagram.dst.ip() == lte_ip
    };
    assert_eq!(lab.world.net.capture.sent().filter(esp).count(), 0, "{}", lab.story());
    lab.world.net.set_black_hole(lte, false, false);
    lab.seconds(5);
    // The client has seen that it hears nothing there, and is back.
    assert_at(&lab, WLAN, "192.0.2.129");
}
