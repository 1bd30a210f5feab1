//! Peers that move without end, and ESP that comes from another port (RFC 4555 §3.5, §3.8, §5.3).

use std::{net::SocketAddr, time::Duration};

use bewick_ike::{Path, wire::NotifyType};
use bewick_mobike::Event;
use bewick_tests::{
    Datagram, Lab, Plan, Verdict,
    lab::ip,
    pair::EndId,
    plane::Change,
    puppet::{Heard, find, notify},
    scene::{
        ETH, GATEWAY, LTE, WLAN, answer_with, answers, ask, from, heard, ike_header, mobike, paths,
        puppet_client, third_uplink, turned, update,
    },
};

const MS: Duration = Duration::from_millis(1);

/// How often the data plane of an end was told to move something.
fn moves_of_plane(lab: &Lab, end: EndId) -> usize {
    let log = lab.world.end(end).plane.log();
    log.iter().filter(|(_, change)| matches!(change, Change::Moved(_))).count()
}

/// RFC 4555 §5.3: a peer that sends updates without end has each of them answered, but traffic runs after it
/// a few times only, and is where the last one said soon after it.
#[test]
fn m_5_3_2_a_storm_of_updates_is_answered_and_moves_traffic_a_few_times() {
    for (updates, apart) in [(100, 100), (300, 30), (400, 200)] {
        let mut lab = puppet_client(Plan::default(), mobike());
        let (client, gateway) = (lab.client, lab.gateway);
        third_uplink(&mut lab);
        let before = moves_of_plane(&lab, gateway);
        for n in 0..updates {
            let at = [LTE, ETH, WLAN][n % 3];
            ask(&mut lab, client, from(at, GATEWAY), &[update()]);
            lab.ms(apart);
        }
        let seconds = updates as u64 * apart / 1000;
        let most = 11 * usize::try_from(seconds.div_ceil(10)).expect("it is small");
        let moves = moves_of_plane(&lab, gateway) - before;
        assert!((1..=most).contains(&moves), "{updates} {apart}: {moves} moves: {}", lab.story());
        lab.seconds(3);
        assert_eq!(answers(&mut lab, client).len(), updates, "all are answered");
        let last = turned(from([LTE, ETH, WLAN][(updates - 1) % 3], GATEWAY));
        assert_eq!(lab.sas(gateway)[0].path, last, "{}", lab.story());
        assert_eq!(paths(&lab, gateway), [last].into(), "{}", lab.story());
        assert!(moves_of_plane(&lab, gateway) - before <= most + 1);
        assert!(lab.is_up(), "{}", lab.story());
        // Afterwards it is followed at once again.
        lab.seconds(30);
        ask(&mut lab, client, from(ETH, GATEWAY), &[update()]);
        lab.ms(50);
        assert_eq!(paths(&lab, gateway), [turned(from(ETH, GATEWAY))].into(), "{}", lab.story());
    }
}

/// A translator before the client: what it sends comes from the port that `port` says, an answer from the port
/// that its request went to, and what comes back is let in.
fn other_ports(lab: &mut Lab, inside: SocketAddr, mut port: impl FnMut() -> u16 + 'static) {
    let mut asked = None;
    lab.world.net.set_tap(Some(Box::new(move |_, datagram: &Datagram| {
        let mut changed = datagram.clone();
        if datagram.src == inside {
            let answers = ike_header(datagram).is_some_and(|h| h.flags.response);
            changed.src.set_port(asked.filter(|_| answers).unwrap_or_else(&mut port));
        } else if datagram.dst.ip() == inside.ip() {
            if ike_header(datagram).is_some_and(|h| !h.flags.response) {
                asked = Some(datagram.dst.port());
            }
            changed.dst = inside;
        } else {
            return Verdict::Pass;
        }
        Verdict::Replace(vec![changed])
    })));
}

/// A puppet whose ESP is in UDP, and the gateway's policy on its ports.
fn encapsulated(esp_follow: bool) -> (Lab, SocketAddr) {
    let mut plan = Plan::default();
    plan.gateway.force_encap = true;
    plan.gateway_policy.esp_follow = esp_follow;
    let lab = puppet_client(plan, mobike());
    assert!(lab.children(lab.client)[0].encap);
    let inside = lab.sas(lab.client)[0].path.local;
    (lab, inside)
}

fn cookies(lab: &mut Lab) -> Vec<Heard> {
    let client = lab.client;
    let asked = heard(lab, client).into_iter();
    asked.filter(|h| find(&h.payloads, NotifyType::COOKIE2).is_some()).collect()
}

/// RFC 4555 §3.8: ESP from another port of the peer's moves nothing by default. An operator may let it be
/// followed: then after a COOKIE2 has been to that port and back, and only from the address of before.
#[test]
fn m_3_8_8_esp_from_another_port_is_followed_if_allowed_and_after_a_cookie() {
    for esp_follow in [false, true] {
        let (mut lab, inside) = encapsulated(esp_follow);
        let (client, gateway) = (lab.client, lab.gateway);
        let before = lab.sas(gateway)[0].path;
        other_ports(&mut lab, inside, || 31_000);
        lab.world.net.capture.set_on(true);
        let now = lab.world.now();
        lab.world.start_flow(client, gateway, 10 * MS, Duration::from_secs(2));
        lab.seconds(3);
        let to = Path::new(before.local, SocketAddr::new(inside.ip(), 31_000));
        let expected = if esp_follow { to } else { before };
        assert_eq!(lab.sas(gateway)[0].path, expected, "{}", lab.story());
        assert_eq!(paths(&lab, gateway), [expected].into(), "{}", lab.story());
        assert_eq!(cookies(&mut lab).len(), usize::from(esp_follow));
        if esp_follow {
            let moved =
                lab.world.end(gateway).events.iter().find_map(|(time, event)| {
                    matches!(event, Event::Moved { .. }).then_some(*time)
                });
            let moved = moved.expect("it moved").since(now);
            assert!(moved <= 31 * MS, "ESP there, COOKIE2 there and back: {moved:?}");
            let question = lab.world.net.capture.sent().find(|r| {
                ike_header(&r.datagram).is_some_and(|h| !h.flags.response)
                    && r.datagram.src.ip() == ip(GATEWAY)
            });
            assert_eq!(question.expect("a COOKIE2").datagram.dst, to.remote);
        }
    }
    // No echo, no move; a wrong one is the end (RFC 4555 §3.7).
    for wrong in [false, true] {
        let (mut lab, inside) = encapsulated(true);
        let (client, gateway) = (lab.client, lab.gateway);
        let before = lab.sas(gateway)[0].path;
        answer_with(&mut lab, client, move |_, _| {
            if wrong { vec![notify(NotifyType::COOKIE2, [3; 16])] } else { Vec::new() }
        });
        other_ports(&mut lab, inside, || 31_000);
        lab.world.start_flow(client, gateway, 10 * MS, Duration::from_secs(5));
        lab.seconds(6);
        if wrong {
            assert!(lab.sas(gateway).is_empty(), "{}", lab.story());
        } else {
            assert_eq!(lab.sas(gateway)[0].path, before, "{}", lab.story());
            assert_eq!(paths(&lab, gateway), [before].into(), "{}", lab.story());
            assert_eq!(lab.count(gateway, "moving"), 0);
        }
    }
    // From another address it is nobody's business.
    let (mut lab, _) = encapsulated(true);
    let (client, gateway) = (lab.client, lab.gateway);
    let before = lab.sas(gateway)[0].path;
    for _ in 0..100 {
        let sender = lab.world.end_mut(client);
        let mut packet = sender.plane.emit(u64::MAX).expect("a CHILD_SA");
        packet.src.set_ip(ip("203.0.113.66"));
        lab.world.net.inject(packet);
        lab.ms(10);
    }
    lab.rest();
    assert!(lab.world.end(gateway).esp.wrong_path >= 100);
    assert_eq!(lab.world.net.sent_to(ip("203.0.113.66")).datagrams, 0, "not even a question");
    assert_eq!(lab.sas(gateway)[0].path, before, "{}", lab.story());
    assert!(cookies(&mut lab).is_empty());
}

/// A peer whose ESP comes from two ports in turn, as behind two translators at once, does not drive the
/// gateway to and fro for ever (RFC 4555 §1.2, §3.8).
#[test]
fn m_3_8_8_a_peer_that_alternates_between_two_ports_is_not_run_after_without_end() {
    let (mut lab, inside) = encapsulated(true);
    let (client, gateway) = (lab.client, lab.gateway);
    let mut count = 0u16;
    other_ports(&mut lab, inside, move || {
        count = count.wrapping_add(1);
        31_000 + count % 2
    });
    let before = moves_of_plane(&lab, gateway);
    lab.world.start_flow(client, gateway, 10 * MS, Duration::from_secs(10));
    lab.seconds(11);
    let moves = moves_of_plane(&lab, gateway) - before;
    assert!(moves <= 11, "{moves} moves and {} questions in ten seconds", cookies(&mut lab).len());
    let asked = cookies(&mut lab).len();
    assert!(asked <= 22, "{asked} questions in ten seconds");
    assert!(lab.is_up(), "{}", lab.story());
}
