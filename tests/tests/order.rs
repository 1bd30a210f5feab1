//! Requests that overtake each other, and moves that meet each other (RFC 4555 §3.5, §3.6, §3.7).

use std::{collections::BTreeSet, net::IpAddr, time::Duration};

use bewick_ike::{ConnectionId, Path, wire::NotifyType};
use bewick_mobike::{Command, Event};
use bewick_tests::{
    Lab, Plan, UplinkId,
    lab::ip,
    pair::EndId,
    puppet::{Heard, find, notify},
    scene::{
        ETH, GATEWAY, GATEWAY2, LTE, WLAN, answers, ask, assert_at, esp_from, from, heard,
        ike_header, mobike, paths, puppet_client, puppet_gateway, third_uplink, turned, update,
    },
};

const MS: Duration = Duration::from_millis(1);

/// Windows of four requests in both directions (RFC 7296 §2.3).
fn wide() -> Plan {
    let mut plan = Plan::default();
    (plan.client.window, plan.gateway.window) = (4, 4);
    plan
}

fn slow(lab: &mut Lab, from: UplinkId, to: UplinkId, ms: u64) {
    lab.world.net.link(from, to).delay = Duration::from_millis(ms);
}

/// RFC 4555 §3.5: an update that arrives after a later one is answered, and moves nothing.
#[test]
fn m_3_5_14_an_update_that_comes_after_a_later_one_is_answered_and_moves_nothing() {
    for late in [50, 95, 150] {
        let mut lab = puppet_client(wide(), mobike());
        let (client, gateway) = (lab.client, lab.gateway);
        third_uplink(&mut lab);
        let (lte, wan) = (lab.lte(), lab.wan);
        slow(&mut lab, lte, wan, late);
        let cookie = |n| notify(NotifyType::COOKIE2, [n; 8]);
        ask(&mut lab, client, from(LTE, GATEWAY), &[update(), cookie(1)]);
        lab.ms(1);
        ask(&mut lab, client, from(ETH, GATEWAY), &[update(), cookie(2)]);
        lab.seconds(3);
        let got = answers(&mut lab, client);
        let expected =
            [(from(ETH, GATEWAY), vec![cookie(2)]), (from(LTE, GATEWAY), vec![cookie(1)])];
        assert_eq!(got, expected, "both are answered, each where it came from");
        let at = turned(from(ETH, GATEWAY));
        assert_eq!(lab.sas(gateway)[0].path, at, "{late} ms: {}", lab.story());
        assert_eq!(paths(&lab, gateway), [at].into(), "{late} ms: {}", lab.story());
        assert_eq!(lab.count(gateway, "moved"), 1, "{late} ms: {}", lab.story());
    }
}

/// The lists that an end was told, in order.
fn told(lab: &Lab, end: EndId) -> Vec<Vec<IpAddr>> {
    let list = |event: &&Event| match event {
        Event::PeerAddresses { addresses, .. } => Some(addresses.clone()),
        _ => None,
    };
    lab.events(end).iter().filter_map(list).collect()
}

/// RFC 4555 §3.6: a list that arrives after a later one is answered, and is not taken. That goes for
/// both roles, and for a list that comes with a late update.
#[test]
fn m_3_6_3_a_list_that_comes_after_a_later_one_is_answered_and_not_taken() {
    let list = |last: u8| notify(NotifyType::ADDITIONAL_IP4_ADDRESS, [203, 0, 113, last]);
    for with_update in [false, true] {
        let mut lab = puppet_client(wide(), mobike());
        let (client, gateway) = (lab.client, lab.gateway);
        let (lte, wan) = (lab.lte(), lab.wan);
        slow(&mut lab, lte, wan, 90);
        let mut early = vec![list(10)];
        if with_update {
            early.insert(0, update());
        }
        ask(&mut lab, client, from(LTE, GATEWAY), &early);
        lab.ms(1);
        let mut late = early.clone();
        late.pop();
        late.push(list(11));
        ask(&mut lab, client, from(WLAN, GATEWAY), &late);
        lab.seconds(3);
        let got: Vec<Path> = answers(&mut lab, client).into_iter().map(|a| a.0).collect();
        assert_eq!(got, [from(WLAN, GATEWAY), from(LTE, GATEWAY)]);
        assert_eq!(told(&lab, gateway), [[ip(WLAN), ip("203.0.113.11")]], "{}", lab.story());
        let at = turned(from(WLAN, GATEWAY));
        assert_eq!((lab.sas(gateway)[0].path, paths(&lab, gateway)), (at, [at].into()));
    }
    let mut plan = wide();
    plan.second_gateway = true;
    let mut lab = puppet_gateway(plan, mobike());
    let (client, gateway) = (lab.client, lab.gateway);
    let (wan2, wlan) = (lab.wan2.expect("a second uplink"), lab.wlan);
    slow(&mut lab, wan2, wlan, 90);
    let here = notify(NotifyType::ADDITIONAL_IP4_ADDRESS, [192, 0, 2, 1]);
    ask(&mut lab, gateway, turned(from(WLAN, GATEWAY2)), &[here, list(10)]);
    lab.ms(1);
    ask(&mut lab, gateway, turned(from(WLAN, GATEWAY)), &[list(11)]);
    lab.seconds(3);
    assert_eq!(answers(&mut lab, gateway).len(), 2);
    assert_eq!(told(&lab, client), [[ip(GATEWAY), ip("203.0.113.11")]], "{}", lab.story());
}

/// The pairs of COOKIE2 that a puppet was asked for, with where each came to.
fn checks(lab: &mut Lab, end: EndId) -> Vec<(IpAddr, Vec<u8>)> {
    let cookie = |heard: &Heard| {
        let cookie = find(&heard.payloads, NotifyType::COOKIE2)?;
        Some((heard.path.local.ip(), cookie.to_vec()))
    };
    heard(lab, end).iter().filter_map(cookie).collect()
}

/// RFC 4555 §3.7: what proves that the peer is at one address proves nothing about the next. An update
/// during the check of an earlier one needs a check of its own, and the earlier check's end, whenever
/// it comes, sends no traffic to where the peer has left.
#[test]
fn x_5_an_update_during_the_check_of_an_earlier_one_gets_a_check_of_its_own() {
    for window in [1, 4] {
        for back in (7..150).step_by(7) {
            let mut plan = wide();
            // How many requests the gateway may have out.
            plan.client.window = window;
            let mut lab = puppet_client(plan, mobike());
            let (client, gateway) = (lab.client, lab.gateway);
            third_uplink(&mut lab);
            let (lte, wan) = (lab.lte(), lab.wan);
            lab.world.net.capture.set_on(true);
            lab.world.start_flow(gateway, client, MS, Duration::from_secs(8));
            // The check of the second uplink is out for long.
            slow(&mut lab, wan, lte, back);
            ask(&mut lab, client, from(LTE, GATEWAY), &[update()]);
            lab.ms(11);
            ask(&mut lab, client, from(ETH, GATEWAY), &[update()]);
            lab.seconds(10);
            let what = format!("window {window}, {back} ms: {}", lab.story());
            let at = turned(from(ETH, GATEWAY));
            assert_eq!(lab.sas(gateway)[0].path, at, "{what}");
            assert_eq!(paths(&lab, gateway), [at].into(), "{what}");
            let checks = checks(&mut lab, client);
            let cookies = |address: &str| -> BTreeSet<&[u8]> {
                let there = checks.iter().filter(|(at, _)| *at == ip(address));
                there.map(|(_, cookie)| &cookie[..]).collect()
            };
            let (first, second) = (cookies(LTE), cookies(ETH));
            assert!(second.difference(&first).next().is_some(), "a cookie of its own: {what}");
            let esp = esp_from(&lab, &[GATEWAY]);
            let there = esp.iter().filter(|r| r.datagram.dst.ip() == ip(LTE)).count();
            assert_eq!(there, 0, "the peer has left before it was proven there: {what}");
        }
    }
}

/// A client that goes and a gateway that loses its address at the same time: both requests are answered,
/// the client decides where they meet, and nobody sends anything to a third address.
#[test]
fn x_7_a_move_that_meets_the_gateway_s_own_ends_at_the_client_s_update() {
    for (window, client_first) in [(1, true), (1, false), (4, true), (4, false)] {
        for apart in 0..45 {
            let mut plan = Plan { second_gateway: true, seed: apart, ..wide() };
            (plan.client.window, plan.gateway.window) = (window, window);
            let mut lab = Lab::established(plan);
            let (wlan, wan) = (lab.wlan, lab.wan);
            let gone = if client_first { [wlan, wan] } else { [wan, wlan] };
            lab.world.set_up(gone[0], false);
            lab.ms(apart);
            lab.world.set_up(gone[1], false);
            lab.seconds(20);
            assert_at(&lab, LTE, GATEWAY2);
            let known = [WLAN, LTE, GATEWAY, GATEWAY2].map(ip);
            let mut sent = lab.world.net.destinations().keys();
            assert!(sent.all(|to| known.contains(to)), "{:?}", lab.world.net.destinations());
            let flows = lab.flows(Duration::from_millis(200));
            lab.ms(400);
            assert_eq!(lab.lost(flows), [[0u64; 0]; 2], "{window} {apart}: {}", lab.story());
        }
    }
}

/// The client moves while a rekey of the IKE_SA is out, so that the update waits for it: what is to be
/// said goes over to the new IKE_SA (RFC 4555 §3.5), where Message IDs begin anew (RFC 7296 §2.18).
#[test]
fn x_3_an_update_that_waits_for_a_rekey_of_the_ike_sa_goes_out_on_the_new_one() {
    let mut moved_on_new = 0;
    let kinds = [1, 4].into_iter().flat_map(|window| [(window, true), (window, false)]);
    for ((window, by_client), after) in kinds.flat_map(|kind| (0..45).map(move |n| (kind, n))) {
        let mut plan = Plan { second_gateway: true, ..Plan::default() };
        (plan.client.window, plan.gateway.window) = (window, window);
        let mut lab = Lab::established(plan);
        let (client, gateway) = (lab.client, lab.gateway);
        // So that Message IDs of the old one are beyond those of the new one.
        for uplink in [lab.lte(), lab.wlan, lab.lte(), lab.wlan] {
            lab.move_to(uplink);
            lab.rest();
        }
        let old = lab.sas(client)[0].spis;
        lab.world.net.capture.set_on(true);
        let end = if by_client { client } else { gateway };
        lab.world.command(end, Command::RekeyIke(ConnectionId(0))).expect("a rekey");
        lab.ms(after);
        lab.move_to(lab.lte());
        lab.seconds(3);
        let new = lab.sas(client)[0].spis;
        let what = format!("{after} ms, window {window}, {by_client}: {}", lab.story());
        assert_ne!(new, old, "{what}");
        assert_at(&lab, LTE, GATEWAY);
        assert_eq!(lab.count(gateway, "moved"), 5, "{what}");
        // The first request on the new one is the update: to delete the old one is for the old one.
        let on_new = lab.world.net.capture.sent().any(|r| {
            r.datagram.src.ip() == ip(LTE)
                && ike_header(&r.datagram).is_some_and(|h| {
                    !h.flags.response && (h.spi_i, h.spi_r) == new && h.message_id == 0
                })
        });
        moved_on_new += usize::from(on_new);
        // Role, MOBIKE and the peer's list are the new one's too: it moves again, and follows the
        // gateway to an address that only the list of the old one named.
        lab.move_to(lab.wlan);
        lab.rest();
        assert_at(&lab, WLAN, GATEWAY);
        let wan = lab.wan;
        lab.world.net.set_up(wan, false);
        lab.seconds(90);
        lab.world.tell_all();
        lab.seconds(5);
        assert_at(&lab, WLAN, GATEWAY2);
    }
    assert!(moved_on_new >= 20, "{moved_on_new} updates waited for the rekey");
}
