//! Set-up of the tunnel: RFC 7296's two first exchanges, and what of RFC 4555 goes into them.

use std::{net::IpAddr, time::Duration};

use bewick_ike::{
    crypto::IkeSuite,
    wire::{ExchangeType, Header, Message, NotifyType, Payload},
};
use bewick_mobike::Event;
use bewick_tests::{
    Lab, Link, Plan, Protocol, Record,
    lab::{ECP256_CBC, ESP_CBC, X25519_GCM, client_config, gateway_config, ip, selectors},
    puppet::{find, kinds},
};

/// The IKE message in a captured datagram.
fn ike(record: &Record) -> &[u8] {
    let payload = &record.datagram.payload;
    if record.datagram.dst.port() == 500 { payload } else { payload.get(4..).unwrap_or_default() }
}

fn header(record: &Record) -> Header {
    Header::parse(ike(record)).expect("an IKE header")
}

fn is_ike(record: &Record) -> bool {
    let datagram = &record.datagram;
    datagram.protocol == Protocol::Udp
        && (datagram.src.port() == 500
            || datagram.dst.port() == 500
            || datagram.payload.starts_with(&[0; 4]))
}

/// What the two ends sent until the tunnel stood, and the lab.
fn captured(plan: Plan) -> (Lab, Vec<Record>) {
    let mut lab = Lab::new(plan);
    lab.world.net.capture.set_on(true);
    lab.up();
    lab.rest();
    let records: Vec<Record> =
        lab.world.net.capture.sent().filter(|record| is_ike(record)).cloned().collect();
    (lab, records)
}

fn established(plan: Plan) -> (Lab, Vec<Record>) {
    let (lab, records) = captured(plan);
    assert!(lab.is_up(), "{}", lab.story());
    (lab, records)
}

fn notifies_of_init(record: &Record) -> Vec<NotifyType> {
    kinds(&Message::parse(ike(record)).expect("IKE_SA_INIT").payloads)
}

/// Traffic flows both ways.
fn carries_traffic(lab: &mut Lab) {
    let (ms, second) = (Duration::from_millis(1), Duration::from_secs(1));
    let there = lab.world.start_flow(lab.client, lab.gateway, 10 * ms, second);
    let back = lab.world.start_flow(lab.gateway, lab.client, 10 * ms, second);
    lab.world.run_for(2 * second);
    for flow in [there, back] {
        assert_eq!(lab.world.flow(flow).received(), 100, "{}", lab.story());
    }
    for end in [lab.client, lab.gateway] {
        assert_eq!(lab.world.end(end).esp.wrong_path, 0);
    }
}

#[test]
fn a_tunnel_with_a_virtual_address_comes_up_in_two_round_trips() {
    for (suite, esp) in [(X25519_GCM, None), (ECP256_CBC, Some(ESP_CBC))] {
        for v6 in [false, true] {
            let mut plan = Plan { v6, ..Plan::default() };
            plan.client.ike_proposals = vec![suite];
            if let Some(esp) = esp {
                plan.client.esp_proposals = vec![esp];
            }
            let (mut lab, records) = established(plan);
            assert_eq!(records.len(), 4);
            let child = &lab.children(lab.client)[0];
            assert_eq!(child.virtual_ips, [ip("10.9.0.1")]);
            assert_eq!(format!("{:?}", child.ts_local), "[10.9.0.1/32]");
            assert_eq!(format!("{:?}", child.ts_remote), "[10.1.0.0/16]");
            let Event::Established { established, mobike, .. } = lab.events(lab.client)[1] else {
                panic!("{}", lab.story());
            };
            assert!(mobike);
            assert_eq!(established.peer, "vpn.example.com");
            assert_eq!(established.dns, [ip("10.1.0.53")]);
            let Event::Established { established, .. } = lab.events(lab.gateway)[0] else {
                panic!("{}", lab.story());
            };
            assert_eq!(established.peer, "laptop@example.com");
            assert_eq!(established.virtual_ips, [ip("10.9.0.1")]);
            carries_traffic(&mut lab);
        }
    }
}

#[test]
fn a_tunnel_with_addresses_of_both_families_and_one_of_networks_come_up() {
    let mut plan = Plan::default();
    plan.client.request_ipv6 = true;
    plan.client.ts_remote = selectors(&["10.1.0.0/16", "2001:db8:10::/48"]);
    plan.gateway.ts_local = selectors(&["10.1.0.0/16", "2001:db8:10::/48"]);
    plan.gateway.pools.push("2001:db8:99::/64".parse().expect("a network"));
    let (lab, _) = established(plan);
    let child = &lab.children(lab.client)[0];
    assert_eq!(child.virtual_ips, [ip("10.9.0.1"), ip("2001:db8:99::1")]);

    let mut plan = Plan::default();
    plan.client.request_ipv4 = false;
    plan.client.ts_local = selectors(&["10.2.0.0/24", "10.3.0.0/24"]);
    plan.gateway.pools.clear();
    plan.gateway.ts_remote = selectors(&["10.2.0.0/16"]);
    let (lab, _) = established(plan);
    let child = &lab.children(lab.client)[0];
    assert!(child.virtual_ips.is_empty());
    assert_eq!(format!("{:?}", child.ts_local), "[10.2.0.0/24]", "K-2.9-1: narrowed");
}

#[test]
fn k_1_2_2_invalid_ke_payload_leads_to_the_other_group_with_the_same_proposals() {
    let mut plan = Plan::default();
    plan.gateway.ike_proposals = vec![ECP256_CBC];
    let (_, records) = established(plan);
    assert_eq!(records.len(), 6);
    let payloads = |at: usize| Message::parse(ike(&records[at])).expect("a message").payloads;
    assert_eq!(kinds(&payloads(1)), [NotifyType::INVALID_KE_PAYLOAD]);
    assert_eq!(find(&payloads(1), NotifyType::INVALID_KE_PAYLOAD), Some(&[0, 19][..]));
    let sa = |payloads: &[Payload]| {
        payloads.iter().find(|p| matches!(p, Payload::SecurityAssociation(_))).cloned()
    };
    let group = |payloads: &[Payload]| {
        payloads.iter().find_map(|p| match p {
            Payload::KeyExchange { group, .. } => Some(*group),
            _ => None,
        })
    };
    assert_eq!(sa(&payloads(0)), sa(&payloads(2)));
    assert_eq!((group(&payloads(0)), group(&payloads(2))), (Some(31), Some(19)));
    assert_eq!(header(&records[0]).spi_i, header(&records[2]).spi_i);
}

/// IKE_SA_INITs of others, so that the gateway asks for cookies.
fn crowd(lab: &mut Lab, suite: IkeSuite) {
    let request = {
        let mut plan = Plan { seed: 77, ..Plan::default() };
        plan.client.ike_proposals = vec![suite];
        let mut other = Lab::new(plan);
        other.world.net.capture.set_on(true);
        other.up();
        let first = other.world.net.capture.sent().next().expect("IKE_SA_INIT");
        first.datagram.clone()
    };
    for n in 1..=32_u8 {
        let mut copy = request.clone();
        copy.src.set_ip(IpAddr::from([203, 0, 113, 100 + n]));
        copy.payload[0] = n;
        lab.world.net.inject(copy);
    }
    lab.ms(50);
}

#[test]
fn k_2_6_1_with_many_half_open_a_cookie_comes_first_and_nothing_else_changes() {
    let mut lab = Lab::new(Plan::default());
    crowd(&mut lab, X25519_GCM);
    assert_eq!(lab.world.end(lab.gateway).machine.host().len(), 32);
    lab.world.net.capture.set_on(true);
    lab.up();
    assert_eq!(lab.sas(lab.client)[0].state, "established", "{}", lab.story());
    let records: Vec<Record> = lab.world.net.capture.sent().cloned().collect();
    assert_eq!(records.len(), 6);
    assert_eq!(notifies_of_init(&records[1]), [NotifyType::COOKIE]);
    let first = Message::parse(ike(&records[0])).expect("IKE_SA_INIT").payloads;
    let answer = Message::parse(ike(&records[1])).expect("COOKIE").payloads;
    let second = Message::parse(ike(&records[2])).expect("IKE_SA_INIT").payloads;
    assert_eq!(second[0], answer[0]);
    let same = |p: &&Payload| !matches!(p, Payload::Notify(_));
    let (first, second): (Vec<_>, Vec<_>) =
        (first.iter().filter(same).collect(), second[1..].iter().filter(same).collect());
    assert_eq!(first, second);
    lab.seconds(40);
    assert_eq!(lab.world.end(lab.gateway).machine.host().len(), 1, "half-open ones expire");
}

#[test]
fn k_2_6_2_a_cookie_and_then_another_group_lead_to_a_tunnel() {
    let mut plan = Plan::default();
    plan.client.ike_proposals = vec![X25519_GCM, ECP256_CBC];
    plan.gateway.ike_proposals = vec![ECP256_CBC];
    let mut lab = Lab::new(plan);
    crowd(&mut lab, ECP256_CBC);
    lab.world.net.capture.set_on(true);
    lab.up();
    assert_eq!(lab.sas(lab.client)[0].state, "established", "{}", lab.story());
    let answers: Vec<_> = lab
        .world
        .net
        .capture
        .sent()
        .filter(|record| record.datagram.src.ip() == ip("192.0.2.1"))
        .filter(|record| header(record).exchange == ExchangeType::IKE_SA_INIT)
        .map(notifies_of_init)
        .collect();
    assert_eq!(answers[0], [NotifyType::COOKIE]);
    assert_eq!(answers[1], [NotifyType::INVALID_KE_PAYLOAD]);
    assert_eq!(answers.len(), 3, "the cookie is good for the second try");
}

#[test]
fn m_3_3_3_port_4500_from_ike_auth_on_even_without_a_nat() {
    let (lab, records) = established(Plan::default());
    let ports: Vec<_> =
        records.iter().map(|r| (r.datagram.src.port(), r.datagram.dst.port())).collect();
    assert_eq!(ports, [(500, 500), (500, 500), (4500, 4500), (4500, 4500)]);
    assert!(records[2..].iter().all(|r| r.datagram.payload.starts_with(&[0; 4])));
    assert!(!lab.children(lab.client)[0].encap, "no NAT, no UDP around ESP");
}

#[test]
fn k_2_23_1_without_mobike_and_nat_everything_stays_on_port_500() {
    let mut plan = Plan::default();
    plan.client.mobike = false;
    let (mut lab, records) = established(plan);
    assert!(records.iter().all(|r| r.datagram.src.port() == 500 && r.datagram.dst.port() == 500));
    carries_traffic(&mut lab);
}

#[test]
fn k_2_23_1_esp_goes_in_udp_exactly_where_a_nat_is() {
    for v6 in [false, true] {
        for (nat_wlan, nat_gateway, mobike) in [
            (false, false, true),
            (true, false, true),
            (false, true, true),
            (true, true, true),
            (true, false, false),
            (false, true, false),
        ] {
            let mut plan = Plan { v6, nat_wlan, nat_gateway, ..Plan::default() };
            plan.client.mobike = mobike;
            let (mut lab, records) = established(plan);
            for end in [lab.client, lab.gateway] {
                assert_eq!(lab.children(end)[0].encap, nat_wlan || nat_gateway);
                let nat = lab.sas(end)[0].nat;
                let own = if end == lab.client { nat_wlan } else { nat_gateway };
                let other = if end == lab.client { nat_gateway } else { nat_wlan };
                assert_eq!((nat.local, nat.remote), (own, other));
            }
            assert_eq!(records[2].datagram.dst.port(), 4500);
            carries_traffic(&mut lab);
        }
    }
}

#[test]
fn k_2_23_1_esp_goes_in_udp_where_one_side_can_or_wants_nothing_else() {
    for mobike in [true, false] {
        for case in ["client's plane", "client's configuration", "gateway's configuration"] {
            let mut plan = Plan::default();
            plan.client.mobike = mobike;
            match case {
                "client's plane" => plan.client_plane_encap = true,
                "client's configuration" => plan.client.force_encap = true,
                _ => plan.gateway.force_encap = true,
            }
            let (mut lab, _) = established(plan);
            assert!(lab.children(lab.client)[0].encap, "{case}");
            assert!(lab.children(lab.gateway)[0].encap, "{case}");
            carries_traffic(&mut lab);
        }
    }
}

#[test]
fn m_3_2_1_mobike_supported_stands_in_both_messages_of_ike_auth() {
    let (mut lab, _) = captured(Plan { puppet_gateway: true, ..Plan::default() });
    let gateway = lab.gateway;
    let heard = lab.world.play(gateway, |puppet, _| puppet.script.auth_heard.clone());
    assert!(heard.iter().any(|p| matches!(p, Payload::SecurityAssociation(_))));
    assert_eq!(find(&heard, NotifyType::MOBIKE_SUPPORTED), Some(&[][..]));
    let mut plan = Plan { puppet_client: true, ..Plan::default() };
    plan.second_uplink = false;
    let mut lab = Lab::new(plan);
    let client = lab.client;
    lab.world.play(client, |puppet, now| {
        puppet.connect(now, bewick_tests::lab::path("198.51.100.2:500", "192.0.2.1:500"))
    });
    lab.rest();
    let heard = lab.world.play(client, |puppet, _| puppet.script.auth_heard.clone());
    assert_eq!(find(&heard, NotifyType::MOBIKE_SUPPORTED), Some(&[][..]));
    assert!(lab.is_up());
}

#[test]
fn m_3_2_2_mobike_needs_both_sides() {
    for (client, gateway) in [(true, false), (false, true), (false, false)] {
        let mut plan = Plan::default();
        plan.client.mobike = client;
        plan.gateway.mobike = gateway;
        let (lab, _) = established(plan);
        for end in [lab.client, lab.gateway] {
            let news = lab.events(end).into_iter().find_map(|event| match event {
                Event::Established { mobike, .. } => Some(*mobike),
                _ => None,
            });
            assert_eq!(news, Some(false));
        }
    }
}

#[test]
fn m_3_3_2_the_addresses_are_those_of_the_header_of_ike_auth() {
    let plan = Plan { nat_wlan: true, ..Plan::default() };
    let (lab, _) = established(plan);
    let nat = lab.wlan_nat.expect("a NAT");
    let inside = "192.168.1.2:4500".parse().expect("an address");
    let mapped = lab.world.net.mapped(nat, inside).into_iter().next().expect("a mapping");
    assert_eq!(lab.sas(lab.gateway)[0].path.remote, mapped);
    assert_eq!(lab.children(lab.gateway)[0].path.remote, mapped);
}

#[test]
fn m_3_4_1_both_sides_tell_their_additional_addresses_in_ike_auth() {
    let plan = Plan { puppet_gateway: true, ..Plan::default() };
    let (mut lab, _) = captured(plan);
    let gateway = lab.gateway;
    let heard = lab.world.play(gateway, |puppet, _| puppet.script.auth_heard.clone());
    let extra = find(&heard, NotifyType::ADDITIONAL_IP4_ADDRESS);
    assert_eq!(extra, Some(&[198, 51, 100, 130][..]));
    assert_eq!(find(&heard, NotifyType::NO_ADDITIONAL_ADDRESSES), None);
    let plan = Plan { puppet_gateway: true, second_uplink: false, ..Plan::default() };
    let (mut lab, _) = captured(plan);
    let heard = lab.world.play(gateway, |puppet, _| puppet.script.auth_heard.clone());
    assert_eq!(find(&heard, NotifyType::ADDITIONAL_IP4_ADDRESS), None);
    assert_eq!(find(&heard, NotifyType::NO_ADDITIONAL_ADDRESSES), Some(&[][..]));
}

#[test]
fn m_3_4_2_a_list_alone_sends_nothing_anywhere() {
    let plan = Plan { second_gateway: true, ..Plan::default() };
    let (mut lab, _) = established(plan);
    lab.seconds(100);
    for address in ["198.51.100.130", "192.0.2.129"] {
        assert_eq!(lab.world.net.sent_to(ip(address)).datagrams, 0, "{address}");
    }
}

#[test]
fn m_3_1_1_a_pair_that_swallows_the_first_message_is_left_for_another() {
    for keep_up in [false, true] {
        let mut plan = Plan::default();
        plan.client_policy.keep_up = keep_up;
        let mut lab = Lab::new(plan);
        let hole = Link { black_hole: true, ..Link::default() };
        lab.world.net.set_links(lab.wlan, lab.wan, hole);
        lab.up();
        lab.seconds(60);
        assert!(lab.is_up(), "keep_up {keep_up}: {}", lab.story());
        assert_eq!(lab.sas(lab.client)[0].path.local.ip(), ip("198.51.100.130"));
    }
}

#[test]
fn an_address_that_goes_during_the_handshake_is_left_for_another() {
    for ms in [5, 15, 25, 35] {
        let mut lab = Lab::new(Plan::default());
        let command = bewick_mobike::Command::Up(bewick_ike::ConnectionId(0));
        lab.world.command(lab.client, command).expect("a connection");
        lab.ms(ms);
        let wlan = lab.wlan;
        lab.world.set_up(wlan, false);
        lab.seconds(60);
        assert!(lab.is_up(), "after {ms} ms: {}", lab.story());
        assert_eq!(lab.sas(lab.client)[0].path.local.ip(), ip("198.51.100.130"));
    }
}

#[test]
fn k_2_4_2_a_restarted_client_takes_the_place_of_its_old_self() {
    let mut plan = Plan::default();
    // The only address of the pool must be free for it again.
    plan.gateway.pools = vec!["10.9.0.7/32".parse().expect("a network")];
    let (mut lab, _) = established(plan);
    let fresh = lab.client_machine(1);
    let client = lab.client;
    lab.world.end_mut(client).events.clear();
    lab.world.restart(client, fresh);
    lab.up();
    lab.rest();
    assert!(lab.is_up(), "{}", lab.story());
    assert_eq!(lab.count(lab.gateway, "closed"), 1);
}

#[test]
fn two_clients_of_one_gateway_keep_apart() {
    let mut one = client_config();
    one.local_id = "other@example.com".parse().expect("an identity");
    let mut lab = Lab::established(Plan { gateway: gateway_config(), ..Plan::default() });
    let host = lab.world.net.add_host("other");
    lab.world.net.add_uplink(host, "eth0", bewick_tests::Realm::Internet, &[ip("203.0.113.50")]);
    let other = Lab::new(Plan { seed: 9, client: one, ..Plan::default() }).client_machine(0);
    let other = lab.world.add_end(host, other);
    let command = bewick_mobike::Command::Up(bewick_ike::ConnectionId(0));
    lab.world.command(other, command).expect("a connection");
    lab.rest();
    assert_eq!(lab.sas(lab.gateway).len(), 2, "{}", lab.story());
    assert_eq!(lab.children(other)[0].virtual_ips, [ip("10.9.0.2")]);
    assert_eq!(lab.count(lab.gateway, "closed"), 0);
}
