//! Alternatives that are asked while all is well, and what they may and may not change (RFC 4555 §1.2,
//! §3.10, §3.12).

use std::time::Duration;

use bewick_ike::{
    Path,
    wire::{ExchangeType, NotifyType},
};
use bewick_tests::{
    Lab, Link, Plan, Record, UplinkId,
    lab::ip,
    pair::{EndId, Input},
    puppet::{Heard, find, kinds},
    scene::{
        GATEWAY, GATEWAY2, LTE, WLAN, assert_at, assert_carries, esp_from, from, heard, ike_header,
        is_esp, mobike, paths, puppet_gateway, turned,
    },
};

const MS: Duration = Duration::from_millis(1);
const HOLE: Link = Link { black_hole: true, ..Link::of_delay(Duration::from_millis(10)) };

/// A plan whose client asks its alternatives so often.
fn plan(seconds: u64) -> Plan {
    let mut plan = Plan::default();
    plan.client_policy.standby = Duration::from_secs(seconds);
    plan
}

fn requests(lab: &Lab, source: &str) -> Vec<Record> {
    let is_request = |r: &&Record| {
        ike_header(&r.datagram).is_some_and(|h| !h.flags.response)
            && r.datagram.src.ip() == ip(source)
    };
    lab.world.net.capture.sent().filter(is_request).cloned().collect()
}

/// RFC 4555 §3.10: a path test is an INFORMATIONAL exchange without an update, and may go on while all is
/// well: on the alternative at the interval that the operator says, and no more often.
#[test]
fn m_3_10_1_an_alternative_is_asked_at_the_interval_and_without_an_update() {
    for interval in [5, 20] {
        let mut lab = puppet_gateway(plan(interval), mobike());
        let (client, gateway) = (lab.client, lab.gateway);
        let before = (lab.sas(client)[0].path, lab.children(client));
        lab.seconds(200);
        let there = |h: &Heard| h.path == turned(from(LTE, GATEWAY));
        let probes: Vec<Heard> = heard(&mut lab, gateway).into_iter().filter(there).collect();
        let most = 200 / usize::try_from(interval).expect("it is small") + 1;
        assert!((most * 3 / 4..=most).contains(&probes.len()), "{interval}: {}", probes.len());
        for pair in probes.windows(2) {
            let apart = pair[1].time.since(pair[0].time).as_millis();
            let wanted = u128::from(interval) * 1000;
            assert!((wanted..=wanted * 5 / 4).contains(&apart), "{interval}: {apart} ms");
        }
        let mut cookies = std::collections::BTreeSet::new();
        for probe in &probes {
            let expected = [
                NotifyType::COOKIE2,
                NotifyType::NAT_DETECTION_SOURCE_IP,
                NotifyType::NAT_DETECTION_DESTINATION_IP,
            ];
            assert_eq!(kinds(&probe.payloads), expected);
            assert_eq!(probe.payloads.len(), 3);
            let cookie = find(&probe.payloads, NotifyType::COOKIE2).expect("a cookie").to_vec();
            assert!(cookies.insert(cookie), "each has its own");
        }
        assert_eq!((lab.sas(client)[0].path, lab.children(client)), before);
        assert_eq!(lab.count(client, "moving"), 0, "{}", lab.story());
    }
    let mut lab = puppet_gateway(plan(0), mobike());
    let gateway = lab.gateway;
    lab.seconds(200);
    let there = |h: &Heard| h.path.remote.ip() == ip(LTE);
    assert!(!heard(&mut lab, gateway).iter().any(there), "zero is never");
}

/// RFC 4555 §3.10: where each octet costs money nothing is asked, unless the operator says so; a move there
/// works all the same.
#[test]
fn m_3_10_1_a_metered_uplink_is_not_asked_unless_the_operator_says_so() {
    for standby_metered in [false, true] {
        let mut plan = Plan { puppet_gateway: true, ..plan(10) };
        plan.client_policy.standby_metered = standby_metered;
        let mut lab = Lab::new(plan);
        let (client, gateway, lte) = (lab.client, lab.gateway, lab.lte());
        lab.world.end_mut(client).machine.set_metered(&[lte]);
        lab.world.tell_addresses(client);
        lab.up();
        lab.world.net.capture.set_on(true);
        lab.seconds(120);
        let asked = requests(&lab, LTE).len();
        assert_eq!(asked > 5, standby_metered, "{asked}");
        assert_eq!(asked > 0, standby_metered, "{asked}");
        lab.move_to(lte);
        lab.rest();
        assert_eq!(paths(&lab, client), [from(LTE, GATEWAY)].into(), "{}", lab.story());
        let is_update = |h: &Heard| find(&h.payloads, NotifyType::UPDATE_SA_ADDRESSES).is_some();
        let updates: Vec<Heard> = heard(&mut lab, gateway).into_iter().filter(is_update).collect();
        assert_eq!(updates.len(), 1, "{updates:?}");
        assert_eq!(updates[0].path, turned(from(LTE, GATEWAY)));
    }
}

/// RFC 4555 §3.7, §3.10: probes change nothing at the gateway. But an address that has echoed a COOKIE2 of
/// the gateway's meanwhile needs no other one when the update comes: traffic follows with it.
#[test]
fn m_3_10_1_probes_change_nothing_and_spare_the_later_update_its_check() {
    for warm in [false, true] {
        let mut lab = Lab::established(plan(if warm { 10 } else { 0 }));
        let (client, gateway) = (lab.client, lab.gateway);
        let before = (lab.sas(gateway)[0].path, lab.children(gateway));
        let log = lab.world.end(gateway).plane.log().len();
        for _ in 0..30 {
            lab.seconds(1);
            assert_eq!((lab.sas(gateway)[0].path, lab.children(gateway)), before);
        }
        assert_eq!(lab.world.end(gateway).plane.log().len(), log, "{}", lab.story());
        lab.world.net.capture.set_on(true);
        let flows = lab.flows(Duration::from_secs(2));
        lab.ms(100);
        let now = lab.world.now();
        lab.move_to(lab.lte());
        lab.seconds(3);
        let first = esp_from(&lab, &[GATEWAY])
            .into_iter()
            .find(|r| r.datagram.dst.ip() == ip(LTE))
            .expect("traffic follows");
        let after = first.time.since(now);
        assert_eq!(after <= 11 * MS, warm, "{after:?}: {}", lab.story());
        let asked = requests(&lab, GATEWAY);
        let checks = asked.iter().filter(|r| r.datagram.dst.ip() == ip(LTE));
        assert_eq!(checks.count(), usize::from(!warm), "{}", lab.story());
        assert_at(&lab, LTE, GATEWAY);
        assert_eq!(lab.lost(flows), [[0u64; 0]; 2], "{}", lab.story());
        assert_eq!(lab.count(client, "moved"), 1);
    }
}

/// RFC 4555 §3.12: keepalives are for the pair in use alone; that others are asked now and then, and are
/// behind NATs too, does not change that.
#[test]
fn m_3_12_3_a_candidate_that_is_asked_gets_no_keepalive() {
    let nats = Plan { nat_wlan: true, nat_lte: true, second_gateway: true, ..plan(10) };
    let mut lab = Lab::established(nats);
    lab.world.net.capture.set_on(true);
    let keepalives = |lab: &Lab| {
        let sent = lab.world.net.capture.sent().filter(|r| r.datagram.payload == [0xff]);
        sent.map(|r| Path::new(r.datagram.src, r.datagram.dst)).collect::<Vec<_>>()
    };
    for uplink in [lab.wlan, lab.lte(), lab.wlan] {
        if lab.sas(lab.client)[0].path.local.ip() != lab.address(uplink) {
            lab.move_to(uplink);
            lab.rest();
        }
        lab.world.net.capture.clear();
        lab.seconds(100);
        let at = lab.sas(lab.client)[0].path;
        assert_eq!(at.local.ip(), lab.address(uplink), "{}", lab.story());
        let sent = keepalives(&lab);
        assert!((4..=6).contains(&sent.len()), "{sent:?}");
        assert!(sent.iter().all(|path| *path == at), "{at}: {sent:?}");
        let asked = lab.world.net.capture.sent().any(|r| {
            r.datagram.src.ip() != at.local.ip()
                && ike_header(&r.datagram)
                    .is_some_and(|h| h.exchange == ExchangeType::INFORMATIONAL)
        });
        assert!(asked, "others were asked meanwhile");
    }
}

/// The pairs of an end's ESP in the order in which they were used.
fn pairs_of(lab: &Lab, sources: &[&str]) -> Vec<Path> {
    let mut pairs: Vec<Path> = Vec::new();
    pairs.extend(esp_from(lab, sources).iter().map(|r| Path::new(r.datagram.src, r.datagram.dst)));
    pairs.dedup();
    pairs
}

/// RFC 4555 §1.2: however many pairs are asked at a time, traffic is on one alone: during warm standby,
/// during races that the pair in use wins, and over those that it loses.
#[test]
fn m_1_2_2_while_others_are_asked_traffic_has_one_pair() {
    for seed in 0..8 {
        let plan = Plan { second_gateway: true, seed, ..plan(1) };
        let mut lab = Lab::established(plan);
        let (client, wlan, wan) = (lab.client, lab.wlan, lab.wan);
        let hole = |lab: &mut Lab, from: UplinkId, to: UplinkId, on: bool| {
            let link = if on { HOLE } else { Link::of_delay(10 * MS) };
            lab.world.net.set_links(from, to, link);
        };
        lab.world.net.capture.set_on(true);
        lab.flows(Duration::from_secs(14));
        lab.seconds(3);
        // Short silence with a hint: others are asked, and the pair in use is there again.
        for _ in 0..3 {
            hole(&mut lab, wlan, wan, true);
            lab.world.input(client, Input::Unreachable(from(WLAN, GATEWAY)));
            lab.ms(250 + 10 * seed);
            hole(&mut lab, wlan, wan, false);
            lab.seconds(2);
        }
        let elsewhere = requests(&lab, LTE).len();
        assert!(elsewhere > 3, "others were asked: {elsewhere}");
        let moves = lab.count(client, "moving");
        assert_eq!(moves, 0, "{}", lab.story());
        for sources in [[WLAN, LTE], [GATEWAY, GATEWAY2]] {
            assert_eq!(pairs_of(&lab, &sources).len(), 1, "{seed}: {}", lab.story());
        }
        // The pair dies.
        hole(&mut lab, wlan, wan, true);
        lab.seconds(6);
        let moves = lab.count(client, "moved");
        assert!(moves >= 1, "{}", lab.story());
        for (end, sources) in [(client, [WLAN, LTE]), (lab.gateway, [GATEWAY, GATEWAY2])] {
            let moves = lab.count(end, "moving");
            let pairs = pairs_of(&lab, &sources);
            assert!(pairs.len() <= moves + 1, "{seed}: {pairs:?}: {}", lab.story());
            assert_eq!(paths(&lab, end).len(), 1);
        }
        hole(&mut lab, wlan, wan, false);
        lab.seconds(2);
        assert_carries(&mut lab);
    }
}

/// Sends what an end emits from another source, as somebody who copies it could.
fn astray(lab: &mut Lab, end: EndId, source: &str) {
    let sender = lab.world.end_mut(end);
    let mut packet = sender.plane.emit(u64::MAX).expect("a CHILD_SA");
    packet.src.set_ip(ip(source));
    assert!(is_esp(&packet));
    lab.world.net.inject(packet);
}

/// RFC 4555 §3.12: the outer addresses of ESP are looked at: what comes on another pair is delivered and
/// counted apart, and does not make a silent pair look alive.
#[test]
fn m_3_12_1_esp_on_another_pair_is_counted_apart_and_hides_no_silence() {
    let mut lab = Lab::established(Plan::default());
    let (client, gateway, wlan, wan) = (lab.client, lab.gateway, lab.wlan, lab.wan);
    let before = lab.world.end(client).esp;
    for _ in 0..10 {
        astray(&mut lab, gateway, "203.0.113.66");
    }
    lab.rest();
    let mut expected = before;
    expected.wrong_path += 10;
    assert_eq!(lab.world.end(client).esp, expected);
    assert_eq!(lab.sas(client)[0].path, from(WLAN, GATEWAY));
    // The pair dies while ESP comes in from elsewhere all the time.
    lab.world.net.set_links(wlan, wan, HOLE);
    lab.world.start_flow(client, gateway, 10 * MS, Duration::from_secs(5));
    for _ in 0..40 {
        astray(&mut lab, gateway, "203.0.113.66");
        lab.ms(100);
    }
    assert_at(&lab, LTE, GATEWAY);
    assert!(lab.world.end(client).esp.wrong_path > before.wrong_path + 30);
}
