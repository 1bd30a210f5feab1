//! What a move changes and what it leaves as it is (RFC 4555 §3.3, §3.5).

use std::{collections::BTreeSet, time::Duration};

use bewick_ike::{
    ChildSa, ConnectionId, Path,
    config::{ChildConfig, Selectors},
    wire::{ExchangeType, NotifyType, Payload},
};
use bewick_mobike::{Command, MoveTarget};
use bewick_tests::{
    Lab, Plan, Realm,
    lab::{ip, selectors},
    pair::EndId,
    puppet::notify,
    scene::{
        GATEWAY, GATEWAY2, LTE, WLAN, answer_with, answers, ask, assert_at, assert_carries,
        esp_from, from, heard, ike_header, is_esp, mobike, nat_detection, paths, puppet_client,
        puppet_gateway, turned,
    },
};

const MS: Duration = Duration::from_millis(1);
const CONNECTION: ConnectionId = ConnectionId(0);

fn two_gateways() -> Plan {
    Plan { second_gateway: true, ..Plan::default() }
}

/// Rekeys the CHILD_SAs of a puppet with a request on `path`.
fn rekey_from(lab: &mut Lab, end: EndId, path: Path) {
    lab.world.play(end, |puppet, now| {
        let sa = puppet.sa();
        puppet.endpoint.set_path(sa, path);
        puppet.endpoint.rekey_children(now, sa, None, &mut puppet.script);
    });
}

/// RFC 4555 §3.3: the addresses of a new CHILD_SA are the IKE_SA's, and not those of the request that
/// makes it. The answer goes to where the request came from all the same (§1.2).
#[test]
fn m_3_3_1_a_new_child_sa_is_on_the_pair_of_the_ike_sa_wherever_its_request_came_from() {
    let elsewhere = from(LTE, GATEWAY2);
    for by_client in [true, false] {
        let mut lab = match by_client {
            true => puppet_client(two_gateways(), mobike()),
            false => puppet_gateway(two_gateways(), mobike()),
        };
        let (puppet, ours, asked) = match by_client {
            true => (lab.client, lab.gateway, elsewhere),
            false => (lab.gateway, lab.client, turned(elsewhere)),
        };
        let before = (lab.sas(ours)[0].path, lab.children(ours));
        lab.world.net.capture.set_on(true);
        rekey_from(&mut lab, puppet, asked);
        lab.rest();
        let after = lab.children(ours);
        assert_eq!(after.len(), 1, "{}", lab.story());
        assert_ne!(after[0].id, before.1[0].id, "{}", lab.story());
        assert_eq!(after[0].path, before.0, "{}", lab.story());
        assert_eq!(lab.sas(ours)[0].path, before.0, "{}", lab.story());
        let answered = lab.world.net.capture.sent().find(|r| {
            ike_header(&r.datagram)
                .is_some_and(|h| h.flags.response && h.exchange == ExchangeType::CREATE_CHILD_SA)
        });
        let answer = &answered.expect("an answer").datagram;
        assert_eq!((answer.src, answer.dst), (asked.remote, asked.local));
    }
}

/// RFC 4555 §3.5: nothing that the initiator says moves IPsec SAs but UPDATE_SA_ADDRESSES.
#[test]
fn m_3_5_1_without_an_update_traffic_stays_where_it_is() {
    let mut lab = puppet_client(Plan::default(), mobike());
    let (client, gateway) = (lab.client, lab.gateway);
    let elsewhere = from(LTE, GATEWAY);
    let list = notify(NotifyType::ADDITIONAL_IP4_ADDRESS, [203, 0, 113, 9]);
    let mut detection = nat_detection(&mut lab, client, elsewhere);
    detection.push(notify(NotifyType::COOKIE2, [1; 16]));
    let before = lab.children(gateway);
    lab.world.net.capture.set_on(true);
    lab.world.start_flow(gateway, client, MS, Duration::from_secs(40));
    for payloads in [detection, vec![list], vec![]] {
        ask(&mut lab, client, elsewhere, &payloads);
        lab.rest();
        assert_eq!(answers(&mut lab, client).last().expect("an answer").0, elsewhere);
    }
    lab.seconds(40);
    assert_eq!(lab.children(gateway), before, "{}", lab.story());
    let esp = esp_from(&lab, &[GATEWAY]);
    assert!(esp.len() > 30_000 && esp.iter().all(|r| r.datagram.dst.ip() == ip(WLAN)));
}

/// RFC 4555 §3.5: with the answer to the update the CHILD_SAs are on the new pair, if they were not
/// before, and in UDP if and only if the answer shows a NAT, on whichever side.
#[test]
fn m_3_5_24_after_the_answer_all_is_on_the_new_pair_and_encapsulated_as_the_answer_says() {
    let hashes = [NotifyType::NAT_DETECTION_SOURCE_IP, NotifyType::NAT_DETECTION_DESTINATION_IP];
    for other in hashes {
        let mut lab = puppet_gateway(Plan::default(), mobike());
        let (client, gateway) = (lab.client, lab.gateway);
        answer_with(&mut lab, gateway, move |heard, honest| {
            let behind = heard.path.remote.ip() == ip(LTE);
            let changed = |payload| match payload {
                Payload::Notify(n) if behind && n.kind == other => notify(other, [9; 20]),
                payload => payload,
            };
            honest.into_iter().map(changed).collect()
        });
        assert!(!lab.children(client)[0].encap);
        for (uplink, at, encap) in [(lab.lte(), LTE, true), (lab.wlan, WLAN, false)] {
            lab.move_to(uplink);
            lab.rest();
            let child = &lab.children(client)[0];
            assert_eq!((child.path, child.encap), (from(at, GATEWAY), encap), "{}", lab.story());
            let sa = &lab.sas(client)[0];
            assert_eq!((sa.path, sa.nat.any()), (from(at, GATEWAY), encap), "{}", lab.story());
        }
    }
    // Whether traffic goes to an address that only a list names before the answer or with it is policy.
    let mut auth = mobike();
    auth.push(notify(NotifyType::ADDITIONAL_IP4_ADDRESS, [192, 0, 2, 129]));
    let mut lab = puppet_gateway(two_gateways(), auth);
    let (client, gateway) = (lab.client, lab.gateway);
    let none = notify(NotifyType::NO_ADDITIONAL_ADDRESSES, []);
    ask(&mut lab, gateway, turned(from(WLAN, GATEWAY2)), &[none]);
    lab.rest();
    assert_eq!(lab.sas(client)[0].path, from(WLAN, GATEWAY2), "{}", lab.story());
    assert_eq!(paths(&lab, client), [from(WLAN, GATEWAY2)].into(), "{}", lab.story());
}

/// What is inside a CHILD_SA: all but where it is.
fn inner(child: &ChildSa) -> ChildSa {
    ChildSa { path: from(WLAN, GATEWAY), encap: false, ..child.clone() }
}

fn inside(lab: &Lab) -> Vec<ChildSa> {
    [lab.client, lab.gateway].iter().flat_map(|end| lab.children(*end)).map(|c| inner(&c)).collect()
}

/// From one family to the other and back, with inner addresses of both: RFC 4555 moves the outer pair
/// alone. NATs of one family say nothing about the other.
#[test]
fn x_8_a_move_between_families_carries_inner_addresses_of_both() {
    for nat_wlan in [false, true] {
        let child = |name: &str, net: &str| ChildConfig {
            name: name.into(),
            mode: Default::default(),
            esp_proposals: vec![bewick_tests::lab::ESP_GCM],
            ts_local: Selectors::Dynamic,
            ts_remote: selectors(&[net]),
        };
        let mut plan = Plan { nat_wlan, ..Plan::default() };
        plan.client.request_ipv6 = true;
        plan.client.ts_remote = selectors(&["10.1.0.0/16", "fd10:1::/64"]);
        plan.client.more_children = vec![child("v6", "fd10:2::/64"), child("v4", "10.2.0.0/16")];
        plan.gateway.pools.push("fd09::/64".parse().expect("a network"));
        plan.gateway.ts_local = plan.client.ts_remote.clone();
        plan.gateway.more_children = plan.client.more_children.clone();
        for child in &mut plan.gateway.more_children {
            std::mem::swap(&mut child.ts_local, &mut child.ts_remote);
        }
        let mut lab = Lab::new(plan);
        let (client, gateway, lte, wan) = (lab.client, lab.gateway, lab.lte(), lab.wan);
        lab.world.net.reattach(lte, Realm::Internet, &[ip("2001:db8:3::2")]);
        lab.world.net.add_address(wan, ip("2001:db8:1::1"));
        lab.world.tell_all();
        lab.up();
        lab.rest();
        let before = inside(&lab);
        assert_eq!(before.len(), 6, "{}", lab.story());
        let families = before[0].ts_local.iter().map(|ts| ts.is_ipv4()).collect::<BTreeSet<_>>();
        assert_eq!(families.len(), 2, "{:?}", before[0].ts_local);
        for _ in 0..2 {
            for (uplink, v4) in [(lte, false), (lab.wlan, true)] {
                let flows = lab.flows(Duration::from_millis(400));
                lab.ms(100);
                lab.move_to(uplink);
                lab.ms(600);
                assert_eq!(lab.lost(flows), [[0u64; 0]; 2], "{}", lab.story());
                for end in [client, gateway] {
                    let at: Vec<Path> = paths(&lab, end).into_iter().collect();
                    assert_eq!(at, [lab.sas(end)[0].path], "{}", lab.story());
                    assert_eq!(at[0].local.is_ipv4(), v4, "{}", lab.story());
                    let encap = |child: &ChildSa| child.encap == (v4 && nat_wlan);
                    assert!(lab.children(end).iter().all(encap), "{}", lab.story());
                }
                assert_eq!(inside(&lab), before, "{}", lab.story());
                assert_carries(&mut lab);
            }
        }
    }
}

/// What is inside the tunnel notices nothing: virtual address, selectors, keys and SPIs are the same
/// after moves of every kind, and nobody asks for another address.
#[test]
fn x_14_what_is_inside_the_tunnel_stays_as_it_is_whatever_moves() {
    let mut lab = Lab::established(two_gateways());
    let before = inside(&lab);
    assert_eq!(before[0].virtual_ips, [ip("10.9.0.1")]);
    let flows = lab.flows(Duration::from_secs(8));
    let (lte, wlan, wan) = (lab.lte(), lab.wlan, lab.wan);
    lab.move_to(lte);
    lab.rest();
    lab.world.set_up(wan, false);
    lab.rest();
    lab.world.set_up(lte, false);
    lab.rest();
    assert_at(&lab, WLAN, GATEWAY2);
    lab.world.set_up(wan, true);
    lab.world.set_up(lte, true);
    lab.rest();
    lab.world.net.reattach(wlan, Realm::Internet, &[ip("203.0.113.77")]);
    lab.world.tell_all();
    lab.seconds(8);
    assert!(lab.is_up(), "{}", lab.story());
    assert_eq!(inside(&lab), before, "{}", lab.story());
    for end in [lab.client, lab.gateway] {
        assert_eq!(lab.count(end, "established"), 1, "{}", lab.story());
        assert!(lab.count(end, "moved") >= 3, "{}", lab.story());
    }
    // A transport protocol inside repeats what was on its way when an address went, and no more.
    for lost in lab.lost(flows) {
        assert!(lost.len() < 200, "{} lost: {}", lost.len(), lab.story());
    }
    let mut lab = puppet_gateway(Plan::default(), mobike());
    let gateway = lab.gateway;
    lab.move_to(lab.lte());
    lab.rest();
    let asked = heard(&mut lab, gateway);
    let configuration = |p: &Payload| matches!(p, Payload::Configuration(_));
    assert!(!asked.is_empty() && !asked.iter().any(|h| h.payloads.iter().any(configuration)));
}

/// RFC 4555 does not touch selectors: where they are the outer address of old they stay that address,
/// and a rekey after the move asks for them again.
#[test]
fn x_16_selectors_of_the_outer_address_stay_when_it_changes() {
    let own = selectors(&["198.51.100.2/32"]);
    for ts_local in [own.clone(), Selectors::Dynamic] {
        let mut plan = Plan::default();
        plan.client.request_ipv4 = false;
        plan.client.ts_local = ts_local;
        plan.gateway.pools = Vec::new();
        plan.gateway.ts_remote = own.clone();
        let mut lab = Lab::established(plan);
        let before = inside(&lab);
        let expected = [bewick_ike::TrafficSelector::from_addr(ip(WLAN))];
        assert_eq!(before[0].ts_local, expected, "{}", lab.story());
        lab.move_to(lab.lte());
        lab.rest();
        assert_at(&lab, LTE, GATEWAY);
        assert_eq!(inside(&lab), before, "{}", lab.story());
        for end in [lab.client, lab.gateway] {
            lab.world.command(end, Command::Rekey(CONNECTION)).expect("a rekey");
            lab.rest();
            assert_at(&lab, LTE, GATEWAY);
            assert_eq!(lab.children(lab.client)[0].ts_local, expected, "{}", lab.story());
            assert_eq!(lab.children(lab.gateway)[0].ts_remote, expected, "{}", lab.story());
        }
    }
}

/// A sequence number that comes again with the same key is the end of AES-GCM (RFC 4106 §2), and one that
/// begins anew is thrown away by the peer (RFC 4303 §3.4.3): over moves of every kind, and where the data
/// plane refuses one, none comes twice, and what was received once is not taken again elsewhere.
#[test]
fn x_20_no_sequence_number_of_a_child_sa_comes_twice_whatever_moves() {
    let mut plan = Plan { nat_lte: true, ..two_gateways() };
    plan.client_policy.keep_up = true;
    let mut lab = Lab::established(plan);
    let (lte, wlan, wan) = (lab.lte(), lab.wlan, lab.wan);
    lab.world.net.capture.set_on(true);
    lab.flows(Duration::from_secs(45));
    for round in 0..40 {
        let target = MoveTarget::Address(lab.address(if round % 2 == 0 { lte } else { wlan }));
        // There may be nothing to move just then.
        let _ = lab.world.command(lab.client, Command::Move(CONNECTION, target));
        lab.ms(7 * round);
        match round {
            10 | 20 => lab.world.set_up(wan, round == 20),
            15 => lab.world.command(lab.gateway, Command::Rekey(CONNECTION)).expect("a rekey"),
            25 | 30 => {
                let end = if round == 25 { lab.client } else { lab.gateway };
                lab.world.end_mut(end).plane.refuse_next(1);
            }
            _ => {}
        }
        lab.ms(200);
        if round % 8 == 7 {
            // After a refusal the tunnel is set up anew.
            lab.seconds(5);
        }
    }
    lab.seconds(20);
    assert!(lab.is_up(), "{}", lab.story());
    let mut seen = BTreeSet::new();
    let mut spis = BTreeSet::new();
    for record in lab.world.net.capture.sent().filter(|r| is_esp(&r.datagram)) {
        let numbers = &record.datagram.payload[..8];
        spis.insert(numbers[..4].to_vec());
        assert!(seen.insert(numbers.to_vec()), "twice: {record:?}, {}", lab.story());
    }
    assert!(spis.len() >= 6, "the CHILD_SA was replaced on the way: {}", spis.len());
    for end in [lab.client, lab.gateway] {
        assert_eq!(lab.world.end(end).esp.replayed, 0);
    }
    // The replay window moves along.
    lab.world.net.capture.clear();
    assert_carries(&mut lab);
    let old = esp_from(&lab, &[GATEWAY, GATEWAY2]).pop().expect("ESP").datagram;
    lab.move_to(if lab.sas(lab.client)[0].path.local.ip() == ip(WLAN) { lte } else { wlan });
    lab.rest();
    let before = lab.world.end(lab.client).esp;
    let mut again = old.clone();
    again.src = lab.sas(lab.gateway)[0].path.local;
    let host = lab.gateway_host;
    lab.world.net.send_datagram(host, again).expect("its source is there");
    lab.rest();
    let after = lab.world.end(lab.client).esp;
    assert_eq!((after.delivered, after.wrong_path), (before.delivered, before.wrong_path));
}
