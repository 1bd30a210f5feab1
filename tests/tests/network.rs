//! The simulated network does what it is told, and the same again from the same seed.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use bewick_ike::{Path, Time};
use bewick_tests::{
    Behaviour, Chance, Datagram, Hop, HostId, Link, Loss, NatConfig, NatId, Net, Realm, UplinkId,
    Verdict,
};

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn at(text: &str) -> SocketAddr {
    text.parse().expect("an address and port")
}

fn path(local: &str, remote: &str) -> Path {
    Path::new(at(local), at(remote))
}

const MS: Duration = Duration::from_millis(1);

/// A client with an uplink in the open and one behind a NAT, and a gateway.
struct Lab {
    net: Net,
    client: HostId,
    wlan: UplinkId,
    lte: UplinkId,
    nat: NatId,
    gateway: HostId,
    wan: UplinkId,
}

fn lab(seed: u64) -> Lab {
    let mut net = Net::new(seed);
    let client = net.add_host("client");
    let gateway = net.add_host("gateway");
    let nat = net.add_nat(Realm::Internet, &[ip("203.0.113.1")], NatConfig::default());
    let wlan = net.add_uplink(client, "wlan0", Realm::Internet, &[ip("198.51.100.2")]);
    let lte = net.add_uplink(client, "lte0", Realm::Behind(nat), &[ip("10.0.0.2")]);
    let wan = net.add_uplink(gateway, "wan0", Realm::Internet, &[ip("192.0.2.1")]);
    Lab { net, client, wlan, lte, nat, gateway, wan }
}

#[test]
fn datagrams_arrive_after_the_delay_of_their_link_and_in_order() {
    let Lab { mut net, client, wlan, lte, gateway, wan, .. } = lab(1);
    net.set_links(wlan, wan, Link::of_delay(30 * MS));
    net.link(lte, wan).delay = 5 * MS;
    net.send(client, path("198.51.100.2:500", "192.0.2.1:500"), vec![1]).expect("sent");
    net.send(client, path("198.51.100.2:500", "192.0.2.1:500"), vec![2]).expect("sent");
    net.send(client, path("10.0.0.2:500", "192.0.2.1:500"), vec![3]).expect("sent");
    let got = net.run_for(100 * MS);
    let seen: Vec<_> = got.iter().map(|d| (d.time, d.datagram.payload[0])).collect();
    let ms = |n: u64| Time::from_micros(n * 1000);
    assert_eq!(seen, [(ms(5), 3), (ms(30), 1), (ms(30), 2)]);
    assert!(got.iter().all(|d| d.host == gateway && d.uplink == wan));
    assert_eq!(got[1].path(), path("192.0.2.1:500", "198.51.100.2:500"));
    assert_eq!(net.now(), ms(100));
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let run = |seed| {
        let Lab { mut net, client, wlan, wan, .. } = lab(seed);
        net.capture.set_on(true);
        let bad = Link {
            jitter: 20 * MS,
            loss: Chance::percent(20),
            duplicate: Chance::percent(20),
            reorder: Chance::percent(20),
            reorder_by: 15 * MS,
            ..Link::default()
        };
        net.set_links(wlan, wan, bad);
        for n in 0..100 {
            let way = path("198.51.100.2:500", "192.0.2.1:500");
            net.send(client, way, vec![n]).expect("sent");
            net.run_for(MS);
        }
        net.run_for(Duration::from_secs(1));
        net.capture.records().to_vec()
    };
    assert_eq!(run(7), run(7));
    assert_ne!(run(7), run(8));
    let order: Vec<_> = run(7)
        .iter()
        .filter(|record| matches!(record.hop, Hop::Delivered(_)))
        .map(|record| record.datagram.payload[0])
        .collect();
    assert!(!order.is_sorted(), "some were overtaken");
    assert!(order.len() < 110, "some were lost");
}

#[test]
fn a_black_hole_is_per_direction_and_says_nothing() {
    let Lab { mut net, client, wlan, gateway, wan, .. } = lab(2);
    net.link(wlan, wan).black_hole = true;
    let there = path("198.51.100.2:500", "192.0.2.1:500");
    let back = path("192.0.2.1:500", "198.51.100.2:500");
    assert_eq!(net.send(client, there, vec![0]), Ok(()));
    assert_eq!(net.send(gateway, back, vec![0]), Ok(()));
    let got = net.run_for(100 * MS);
    assert_eq!(got.len(), 1);
    assert_eq!(got[0].host, client);
    assert_eq!(net.lost(Loss::BlackHole).datagrams, 1);
    net.link(wlan, wan).black_hole = false;
    net.set_black_hole(wlan, false, true);
    assert_eq!(net.send(client, there, vec![0]), Ok(()));
    assert_eq!(net.send(gateway, back, vec![0]), Ok(()));
    let got = net.run_for(100 * MS);
    assert_eq!(got.len(), 1);
    assert_eq!(got[0].host, gateway);
}

#[test]
fn an_uplink_that_is_down_neither_sends_nor_receives() {
    let Lab { mut net, client, wlan, gateway, .. } = lab(3);
    let there = path("198.51.100.2:500", "192.0.2.1:500");
    let back = path("192.0.2.1:500", "198.51.100.2:500");
    net.send(gateway, back, vec![0]).expect("sent");
    net.set_up(wlan, false);
    assert_eq!(net.send(client, there, vec![0]), Err(Loss::NoSource));
    assert!(net.run_for(100 * MS).is_empty());
    assert_eq!(net.lost(Loss::Down).datagrams, 1);
    net.set_up(wlan, true);
    net.remove_address(wlan, ip("198.51.100.2"));
    assert_eq!(net.send(client, there, vec![0]), Err(Loss::NoSource));
    net.add_address(wlan, ip("198.51.100.3"));
    let new = path("198.51.100.3:500", "192.0.2.1:500");
    assert_eq!(net.send(client, new, vec![0]), Ok(()));
    let names: Vec<_> = net
        .addresses(client)
        .iter()
        .map(|(up, ip)| format!("{} {ip}", net.uplink_name(*up)))
        .collect();
    assert_eq!(names, ["wlan0 198.51.100.3", "lte0 10.0.0.2"]);
}

#[test]
fn what_nobody_receives_is_counted_and_kept() {
    let Lab { mut net, client, .. } = lab(4);
    let victim = ip("192.0.2.66");
    assert_eq!(net.sent_to(victim).datagrams, 0);
    net.send(client, path("10.0.0.2:500", "192.0.2.66:500"), vec![0; 100]).expect("sent");
    assert!(net.run_for(100 * MS).is_empty());
    assert_eq!(net.lost(Loss::Nobody).datagrams, 1);
    assert_eq!(net.sent_to(victim).datagrams, 1);
    assert_eq!(net.sent_to(victim).octets, 128);
    assert_eq!(net.to_nobody()[0].1.src.ip(), ip("203.0.113.1"), "seen after the NAT");
}

#[test]
fn a_packet_bigger_than_the_mtu_is_lost() {
    let Lab { mut net, client, wlan, wan, .. } = lab(5);
    net.link(wlan, wan).mtu = Some(1280);
    let way = path("198.51.100.2:500", "192.0.2.1:500");
    net.send(client, way, vec![0; 1280 - 28]).expect("sent");
    net.send(client, way, vec![0; 1280 - 27]).expect("sent");
    assert_eq!(net.run_for(100 * MS).len(), 1);
    assert_eq!(net.lost(Loss::TooBig).datagrams, 1);
}

#[test]
fn a_nat_translates_both_ways_and_a_forgotten_mapping_is_deaf() {
    let Lab { mut net, client, nat, gateway, .. } = lab(6);
    net.send(client, path("10.0.0.2:4500", "192.0.2.1:4500"), vec![1]).expect("sent");
    let got = net.run_for(100 * MS);
    let seen = got[0].path();
    assert_eq!(seen.remote.ip(), ip("203.0.113.1"));
    assert_eq!(net.mapped(nat, at("10.0.0.2:4500")).into_iter().next(), Some(seen.remote));
    net.send(gateway, seen, vec![2]).expect("sent");
    let got = net.run_for(100 * MS);
    assert_eq!(got[0].path(), path("10.0.0.2:4500", "192.0.2.1:4500"));
    net.forget_mappings(nat);
    net.send(gateway, seen, vec![3]).expect("sent");
    assert!(net.run_for(100 * MS).is_empty());
    assert_eq!(net.lost(Loss::NatNoMapping).datagrams, 1);
    net.send(client, path("10.0.0.2:4500", "192.0.2.1:4500"), vec![4]).expect("sent");
    let after = net.run_for(100 * MS)[0].path();
    assert_eq!(after.remote.ip(), seen.remote.ip());
    assert_ne!(after.remote.port(), seen.remote.port());
    net.renumber_nat(nat, &[ip("203.0.113.9")]);
    net.send(client, path("10.0.0.2:4500", "192.0.2.1:4500"), vec![5]).expect("sent");
    assert_eq!(net.run_for(100 * MS)[0].path().remote.ip(), ip("203.0.113.9"));
}

#[test]
fn a_mapping_expires_by_the_virtual_clock() {
    let Lab { mut net, client, nat, gateway, .. } = lab(7);
    let config = NatConfig { expiry: Duration::from_secs(30), ..NatConfig::default() };
    net.set_nat_config(nat, config);
    net.send(client, path("10.0.0.2:4500", "192.0.2.1:4500"), vec![1]).expect("sent");
    let seen = net.run_for(Duration::from_secs(29))[0].path();
    net.send(gateway, seen, vec![2]).expect("sent");
    assert_eq!(net.run_for(Duration::from_secs(31)).len(), 1);
    net.send(gateway, seen, vec![3]).expect("sent");
    assert!(net.run_for(Duration::from_secs(1)).is_empty());
}

#[test]
fn a_gateway_behind_a_forwarding_nat_is_reached_by_a_client_behind_another() {
    let mut net = Net::new(8);
    let client = net.add_host("client");
    let gateway = net.add_host("gateway");
    let home = net.add_nat(Realm::Internet, &[ip("203.0.113.1")], NatConfig::default());
    let carrier = net.add_nat(Realm::Internet, &[ip("203.0.113.2")], NatConfig::default());
    let nested = net.add_nat(Realm::Behind(carrier), &[ip("100.64.0.5")], NatConfig::default());
    net.add_uplink(gateway, "wan0", Realm::Behind(home), &[ip("192.168.1.2")]);
    net.add_uplink(client, "lte0", Realm::Behind(nested), &[ip("10.0.0.2")]);
    net.forward(home, at("203.0.113.1:4500"), at("192.168.1.2:4500"));
    net.send(client, path("10.0.0.2:4500", "203.0.113.1:4500"), vec![1]).expect("sent");
    let got = net.run_for(100 * MS);
    assert_eq!(got[0].host, gateway);
    assert_eq!(got[0].path().local, at("192.168.1.2:4500"));
    assert_eq!(got[0].path().remote.ip(), ip("203.0.113.2"));
    net.send(gateway, got[0].path(), vec![2]).expect("sent");
    let got = net.run_for(100 * MS);
    assert_eq!(got[0].path(), path("10.0.0.2:4500", "203.0.113.1:4500"));
}

#[test]
fn filtering_keeps_a_second_gateway_address_out_until_the_client_has_sent_to_it() {
    let Lab { mut net, client, nat, gateway, wan, .. } = lab(9);
    net.add_address(wan, ip("192.0.2.2"));
    net.send(client, path("10.0.0.2:4500", "192.0.2.1:4500"), vec![1]).expect("sent");
    let outside = net.run_for(100 * MS)[0].path().remote;
    let other = Path::new(at("192.0.2.2:4500"), outside);
    net.send(gateway, other, vec![2]).expect("sent");
    assert!(net.run_for(100 * MS).is_empty());
    assert_eq!(net.lost(Loss::NatFiltered).datagrams, 1);
    net.send(client, path("10.0.0.2:4500", "192.0.2.2:4500"), vec![3]).expect("sent");
    net.run_for(100 * MS);
    net.send(gateway, other, vec![4]).expect("sent");
    assert_eq!(net.run_for(100 * MS).len(), 1);
    let open = NatConfig { filtering: Behaviour::EndpointIndependent, ..NatConfig::default() };
    net.set_nat_config(nat, open);
    net.inject(Datagram::udp(at("198.51.100.99:1"), outside, vec![5]));
    assert_eq!(net.run_for(100 * MS).len(), 1, "a forged source gets through an open filter");
}

#[test]
fn an_uplink_that_changes_its_network_has_its_old_address_no_more() {
    let Lab { mut net, client, wlan, nat, gateway, .. } = lab(10);
    net.reattach(wlan, Realm::Behind(nat), &[ip("10.0.0.7")]);
    let old = path("198.51.100.2:500", "192.0.2.1:500");
    assert_eq!(net.send(client, old, vec![1]), Err(Loss::NoSource));
    net.send(gateway, path("192.0.2.1:500", "198.51.100.2:500"), vec![2]).expect("sent");
    net.send(client, path("10.0.0.7:500", "192.0.2.1:500"), vec![3]).expect("sent");
    let got = net.run_for(100 * MS);
    assert_eq!(got.len(), 1);
    assert_eq!(got[0].path().remote.ip(), ip("203.0.113.1"));
}

#[test]
fn the_tap_can_drop_copy_and_change() {
    let Lab { mut net, client, .. } = lab(11);
    net.set_tap(Some(Box::new(|_, datagram| match datagram.payload[0] {
        0 => Verdict::Drop,
        1 => Verdict::Replace(vec![datagram.clone(), datagram.clone()]),
        _ => Verdict::Pass,
    })));
    for n in 0..3 {
        net.send(client, path("10.0.0.2:500", "192.0.2.1:500"), vec![n]).expect("sent");
    }
    let got = net.run_for(100 * MS);
    let seen: Vec<_> = got.iter().map(|d| d.datagram.payload[0]).collect();
    assert_eq!(seen, [1, 1, 2]);
    assert_eq!(net.lost(Loss::Tap).datagrams, 1);
}

#[test]
fn the_capture_shows_a_datagram_at_every_hop() {
    let Lab { mut net, client, lte, nat, gateway, wan, .. } = lab(12);
    net.capture.set_on(true);
    net.send(client, path("10.0.0.2:500", "192.0.2.1:500"), vec![1]).expect("sent");
    let back = net.run_for(100 * MS)[0].path();
    net.send(gateway, back, vec![2]).expect("sent");
    net.run_for(100 * MS);
    let hops: Vec<_> = net.capture.records().iter().map(|record| record.hop).collect();
    let expected = [
        Hop::Sent(lte),
        Hop::NatOut(nat),
        Hop::Delivered(wan),
        Hop::Sent(wan),
        Hop::NatIn(nat),
        Hop::Delivered(lte),
    ];
    assert_eq!(hops, expected);
    assert_eq!(net.capture.sent().count(), 2);
    assert_eq!(net.capture.delivered().count(), 2);
}

#[test]
fn ipv6_goes_the_same_ways() {
    let mut net = Net::new(13);
    let client = net.add_host("client");
    let gateway = net.add_host("gateway");
    let nat = net.add_nat(Realm::Internet, &[ip("2001:db8:1::1")], NatConfig::default());
    net.add_uplink(client, "lte0", Realm::Behind(nat), &[ip("fd00::2"), ip("10.0.0.2")]);
    net.add_uplink(gateway, "wan0", Realm::Internet, &[ip("2001:db8::1"), ip("192.0.2.1")]);
    net.send(client, path("[fd00::2]:4500", "[2001:db8::1]:4500"), vec![1]).expect("sent");
    let seen = net.run_for(100 * MS)[0].path();
    assert_eq!(seen.remote.ip(), ip("2001:db8:1::1"));
    let mixed = path("10.0.0.2:4500", "[2001:db8::1]:4500");
    assert_eq!(net.send(client, mixed, vec![1]), Err(Loss::Family));
    net.send(client, path("10.0.0.2:4500", "192.0.2.1:4500"), vec![1]).expect("handed over");
    assert_eq!(net.lost(Loss::NatPorts).datagrams, 1, "the NAT has no IPv4 address");
}
