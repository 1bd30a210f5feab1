//! What proves that the peer is where it says, and what does not (RFC 4555 §3.7, §3.12).

use std::{collections::BTreeSet, time::Duration};

use bewick_ike::{
    EspSpi,
    wire::{Delete, NotifyType, Payload},
};
use bewick_mobike::{ConnectionPolicy, Event, ReturnRoutability};
use bewick_tests::{
    Lab, Link, Plan, Verdict,
    lab::ip,
    pair::EndId,
    puppet::{Heard, find, notify},
    scene::{
        ETH, GATEWAY, LTE, WLAN, answer_with, answers, ask, assert_at, esp_from, from, heard,
        ike_header, is_esp, mobike, nat_detection, paths, puppet_client, puppet_gateway,
        third_uplink, turned, update,
    },
};

const MS: Duration = Duration::from_millis(1);
const VICTIM: &str = "203.0.113.66";

fn cookie_of(heard: &Heard) -> Option<Vec<u8>> {
    find(&heard.payloads, NotifyType::COOKIE2).map(<[u8]>::to_vec)
}

/// RFC 4555 §3.7: the check is the default, and each new address has one of its own.
#[test]
fn m_3_7_1_by_default_each_new_address_is_checked() {
    let gateway_policy = ConnectionPolicy::default();
    let mut lab = puppet_client(Plan { gateway_policy, ..Plan::default() }, mobike());
    let (client, gateway) = (lab.client, lab.gateway);
    third_uplink(&mut lab);
    lab.world.net.capture.set_on(true);
    lab.world.start_flow(gateway, client, MS, Duration::from_secs(3));
    let mut cookies = BTreeSet::new();
    for address in [LTE, ETH] {
        let way = from(address, GATEWAY);
        ask(&mut lab, client, way, &[update()]);
        lab.rest();
        let there: Vec<Heard> =
            heard(&mut lab, client).into_iter().filter(|heard| heard.path == way).collect();
        let check = there.iter().find_map(|heard| Some((heard.time, cookie_of(heard)?)));
        let (checked, cookie) = check.expect("a check at the new address");
        assert!((8..=64).contains(&cookie.len()), "{cookie:?}");
        assert!(cookies.insert(cookie), "each check has a cookie of its own");
        let mut esp = esp_from(&lab, &[GATEWAY]).into_iter();
        let first = esp.find(|r| r.datagram.dst.ip() == ip(address)).expect("it moved");
        assert!(first.time >= checked, "only then does traffic follow: {}", lab.story());
        assert_eq!(paths(&lab, gateway), [turned(way)].into(), "{}", lab.story());
    }
}

/// RFC 4555 §3.7: COOKIE2 may be in any INFORMATIONAL request, of either side.
#[test]
fn m_3_7_6_cookie2_is_echoed_in_any_informational_request_of_either_side() {
    for by_client in [true, false] {
        let mut lab = match by_client {
            true => puppet_client(Plan::default(), mobike()),
            false => puppet_gateway(Plan::default(), mobike()),
        };
        let puppet = if by_client { lab.client } else { lab.gateway };
        let ways = [from(WLAN, GATEWAY), from(LTE, GATEWAY)];
        let ways = ways.map(|way| if by_client { way } else { turned(way) });
        let detection = nat_detection(&mut lab, puppet, ways[0]);
        let company = [
            vec![],
            vec![notify(NotifyType::NO_ADDITIONAL_ADDRESSES, [])],
            detection,
            vec![Payload::Delete(Delete::Esp(vec![EspSpi(0x1234_5678)]))],
            vec![notify(NotifyType(40_999), [1, 2, 3])],
            vec![update()],
        ];
        for (n, others) in (1..).zip(company) {
            for (way, m) in ways.into_iter().zip(1..) {
                let cookie = [n, m, 3, 4, 5, 6, 7, 8, 9];
                let mut asked = others.clone();
                asked.push(notify(NotifyType::COOKIE2, cookie));
                ask(&mut lab, puppet, way, &asked);
                lab.rest();
                let (answered, answer) = answers(&mut lab, puppet).pop().expect("an answer");
                assert_eq!(answered, way);
                let echo = find(&answer, NotifyType::COOKIE2);
                assert_eq!(echo, Some(&cookie[..]), "{asked:?}: {answer:?}");
            }
        }
    }
}

/// How a puppet changes the cookie that it is to echo.
type Change = fn(&mut Vec<u8>);

/// Lets the puppet at `end` echo what `change` makes of a cookie.
fn echo(lab: &mut Lab, end: EndId, change: Change) {
    answer_with(lab, end, move |_, honest| {
        let changed = |payload| match payload {
            Payload::Notify(mut n) if n.kind == NotifyType::COOKIE2 => {
                change(&mut n.data);
                Payload::Notify(n)
            }
            payload => payload,
        };
        honest.into_iter().map(changed).collect()
    });
}

/// RFC 4555 §3.7: whoever sent COOKIE2 compares the echo, to the last bit. One that is wrong sends no
/// traffic to where it was to, and ends the IKE_SA.
#[test]
fn m_3_7_8_the_echo_is_compared_to_the_last_bit_by_either_side() {
    let right: Change = |_| {};
    let wrong: [Change; 4] = [
        |cookie| *cookie.last_mut().expect("a cookie") ^= 1,
        |cookie| cookie[0] ^= 0x80,
        |cookie| cookie.insert(0, 0),
        |cookie| cookie.iter_mut().for_each(|octet| *octet = 0),
    ];
    for (change, is_right) in [(right, true)].into_iter().chain(wrong.map(|change| (change, false)))
    {
        let mut lab = puppet_client(Plan::default(), mobike());
        let (client, gateway) = (lab.client, lab.gateway);
        lab.world.net.capture.set_on(true);
        lab.world.start_flow(gateway, client, MS, Duration::from_secs(3));
        echo(&mut lab, client, change);
        ask(&mut lab, client, from(LTE, GATEWAY), &[update()]);
        lab.seconds(10);
        assert_eq!(lab.sas(gateway).len(), usize::from(is_right), "{}", lab.story());
        assert_eq!(lab.children(gateway).len(), usize::from(is_right), "{}", lab.story());
        let mut esp = esp_from(&lab, &[GATEWAY]).into_iter();
        assert_eq!(esp.any(|r| r.datagram.dst.ip() == ip(LTE)), is_right, "{}", lab.story());

        let mut lab = puppet_gateway(Plan::default(), mobike());
        let (client, gateway) = (lab.client, lab.gateway);
        echo(&mut lab, gateway, change);
        lab.move_to(lab.lte());
        lab.seconds(10);
        assert_eq!(lab.sas(client).len(), usize::from(is_right), "{}", lab.story());
        assert_eq!(lab.children(client).len(), usize::from(is_right), "{}", lab.story());
        assert_eq!(lab.count(client, "moved"), usize::from(is_right), "{}", lab.story());
    }
}

/// RFC 4555 §3.12: ESP on another pair than the IKE_SA's does not show that the peer is alive, nor that it
/// knows the pair: the liveness check goes out as in silence, and silence ends the IKE_SA.
#[test]
fn m_3_12_2_esp_on_another_pair_is_no_sign_of_life() {
    for from_client in [true, false] {
        let mut plan = Plan { second_uplink: false, ..Plan::default() };
        plan.client_policy.hold = Duration::from_secs(330);
        // A gateway asks when half of that is over.
        plan.gateway_policy.hold = Duration::from_secs(60);
        let mut lab = Lab::established(plan);
        let (client, gateway) = (lab.client, lab.gateway);
        let (sender, listener) = if from_client { (client, gateway) } else { (gateway, client) };
        // IKE is lost; ESP goes on from an address that the sender had, or never had.
        lab.world.net.set_tap(Some(Box::new(|_, datagram| {
            if !is_esp(datagram) {
                return Verdict::Drop;
            }
            let mut elsewhere = datagram.clone();
            elsewhere.src.set_ip(ip(VICTIM));
            Verdict::Replace(vec![elsewhere])
        })));
        lab.world.net.capture.set_on(true);
        let began = lab.world.now();
        lab.world.start_flow(sender, listener, 100 * MS, Duration::from_secs(700));
        lab.seconds(700);
        assert!(lab.world.end(listener).esp.wrong_path > 300, "{:?}", lab.world.end(listener).esp);
        let at = if from_client { GATEWAY } else { WLAN };
        let checks = lab.world.net.capture.sent().find(|r| {
            let request = ike_header(&r.datagram).is_some_and(|h| !h.flags.response);
            request && r.datagram.src.ip() == ip(at)
        });
        let first = checks.expect("a liveness check").time.since(began);
        assert!(first <= Duration::from_secs(45), "after {first:?}, where 30 s is asked for");
        assert!(lab.sas(listener).is_empty(), "{}", lab.story());
        assert!(lab.children(listener).is_empty(), "{}", lab.story());
        let victim = esp_from(&lab, &[at]).into_iter().find(|r| r.datagram.dst.ip() == ip(VICTIM));
        assert!(victim.is_none(), "nor is it followed: {victim:?}");
    }
}

/// A replayed update is answered from the cache, to where it says that it comes from (RFC 7296 §2.1), and
/// moves nothing: neither during the check of the genuine one nor after it, nor without checks.
#[test]
fn x_11_a_replayed_update_from_a_forged_source_moves_nothing() {
    for rr in [ReturnRoutability::Before, ReturnRoutability::Off] {
        for after in [1, 5, 9, 15, 25, 35, 500] {
            let mut plan = Plan::default();
            plan.gateway_policy.return_routability = rr;
            let mut lab = Lab::established(plan);
            lab.world.net.capture.set_on(true);
            let flows = lab.flows(Duration::from_secs(3));
            lab.move_to(lab.lte());
            lab.ms(after);
            let is_update = |r: &&bewick_tests::Record| {
                let request = ike_header(&r.datagram).is_some_and(|h| !h.flags.response);
                request && r.datagram.src.ip() == ip(LTE)
            };
            let mut copy =
                lab.world.net.capture.sent().find(is_update).expect("the update").datagram.clone();
            copy.src.set_ip(ip(VICTIM));
            lab.world.net.inject(copy);
            lab.seconds(5);
            let what = format!("{rr:?} {after} ms: {}", lab.story());
            assert_at(&lab, LTE, GATEWAY);
            assert_eq!(lab.count(lab.gateway, "moved"), 1, "{what}");
            let sent: Vec<_> = lab
                .world
                .net
                .capture
                .sent()
                .filter(|r| r.datagram.dst.ip() == ip(VICTIM))
                .map(|r| ike_header(&r.datagram).map(|h| h.flags.response))
                .collect();
            assert_eq!(sent, [Some(true)], "the cached answer alone: {what}");
            assert_eq!(lab.lost(flows), [[0u64; 0]; 2], "{what}");
        }
    }
}

/// A liveness check that is answered on the old pair says nothing about the new one: a client that went to
/// a pair that swallows everything leaves it, although such an answer came after it had gone.
#[test]
fn x_13_an_answer_on_the_old_pair_does_not_prove_the_new_one() {
    let mut lab = Lab::established(Plan::default());
    let (client, gateway, lte) = (lab.client, lab.gateway, lab.lte());
    lab.world.net.link(lab.wan, lab.wlan).delay = 120 * MS;
    let (sent, answered) = (lab.world.end(client).transmitted, lab.world.end(gateway).transmitted);
    let asks = lab.world.run_while_not(Duration::from_secs(60), |world| {
        world.end(client).transmitted > sent && world.end(gateway).transmitted > answered
    });
    assert!(asks, "{}", lab.story());
    let asked = lab.world.end(client).transmitted;
    lab.world.net.set_black_hole(lte, true, true);
    lab.move_to(lte);
    lab.seconds(60);
    assert!(lab.world.end(client).transmitted > asked);
    let at_lte =
        |event: &&Event| matches!(event, Event::Moved { to, .. } if to.local.ip() == ip(LTE));
    assert!(!lab.events(client).iter().any(at_lte), "nobody has answered there: {}", lab.story());
    assert_at(&lab, WLAN, GATEWAY);
}

/// A move begins the time to the next liveness check anew: a new pair that falls silent at once is found
/// silent as soon as an old one.
#[test]
fn x_13_a_move_begins_the_time_of_the_liveness_check_anew() {
    for before in [1, 20, 29] {
        let mut lab = Lab::established(Plan::default());
        lab.seconds(before);
        lab.move_to(lab.lte());
        lab.rest();
        assert_at(&lab, LTE, GATEWAY);
        lab.world.net.capture.set_on(true);
        let moved = lab.world.now();
        lab.seconds(100);
        let source = [ip(LTE), ip(GATEWAY)];
        let request = |r: &&bewick_tests::Record| {
            let request = ike_header(&r.datagram).is_some_and(|h| !h.flags.response);
            request && source.contains(&r.datagram.src.ip())
        };
        let first = lab.world.net.capture.sent().find(request).expect("a check");
        let after = first.time.since(moved);
        assert!((25..=45).contains(&after.as_secs()), "{before} s: {after:?}");
        assert_eq!(first.datagram.dst.port(), 4500);

        let (lte, wan) = (lab.lte(), lab.wan);
        lab.world.net.set_links(lte, wan, Link { black_hole: true, ..Link::default() });
        lab.seconds(60);
        assert_at(&lab, WLAN, GATEWAY);
    }
}

/// An answer to an update without what was asked for comes from a gateway that has not moved: it goes on
/// sending to the old pair, and takes what comes from there. The client is back there, or sets up anew.
#[test]
fn x_18b_an_answer_without_what_was_asked_for_never_leaves_a_black_hole() {
    let lacks: [fn(&Payload) -> bool; 2] = [
        |_| true,
        |payload| matches!(payload, Payload::Notify(n) if n.kind == NotifyType::COOKIE2),
    ];
    for (n, lack) in lacks.into_iter().enumerate() {
        for everywhere in [false, true] {
            let mut plan = Plan::default();
            plan.client_policy.keep_up = true;
            let mut lab = puppet_gateway(plan, mobike());
            let (client, gateway) = (lab.client, lab.gateway);
            answer_with(&mut lab, gateway, move |heard, honest| {
                let is_update = find(&heard.payloads, NotifyType::UPDATE_SA_ADDRESSES).is_some();
                let from_lte = heard.path.remote.ip() == ip(LTE);
                let fails = is_update && (everywhere || from_lte);
                honest.into_iter().filter(|payload| !fails || !lack(payload)).collect()
            });
            lab.move_to(lab.lte());
            lab.seconds(20);
            let what = format!("{n} {everywhere}: {}", lab.story());
            assert!(lab.is_up(), "{what}");
            let there = lab.children(gateway)[0].path;
            assert_eq!(lab.children(client)[0].path, turned(there), "{what}");
        }
    }
}
