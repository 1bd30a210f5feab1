//! Traffic that follows a peer before it has shown that it receives there, and how little of it
//! (RFC 4555 §3.7, §5.3).

use std::time::Duration;

use bewick_mobike::ReturnRoutability;
use bewick_tests::{
    Lab, Plan, Protocol, Record, Verdict,
    lab::ip,
    pair::{EndId, FlowId},
};

const MS: Duration = Duration::from_millis(1);
const VICTIM: &str = "203.0.113.66";
const LTE: &str = "198.51.100.130";

fn is_esp(record: &Record) -> bool {
    record.datagram.protocol == Protocol::Esp || !record.datagram.payload.starts_with(&[0; 4])
}

fn after() -> Lab {
    let mut plan = Plan::default();
    plan.gateway_policy.return_routability = ReturnRoutability::After;
    Lab::established(plan)
}

fn flow(lab: &mut Lab, from: EndId, to: EndId, seconds: u64) -> FlowId {
    lab.world.start_flow(from, to, MS, Duration::from_secs(seconds))
}

#[test]
fn m_3_7_4_traffic_follows_at_once_and_the_check_comes_after() {
    let mut lab = after();
    let (client, gateway) = (lab.client, lab.gateway);
    let back = flow(&mut lab, gateway, client, 3);
    flow(&mut lab, client, gateway, 3);
    lab.ms(500);
    lab.world.net.capture.set_on(true);
    let gone = lab.world.now();
    let wlan = lab.wlan;
    lab.world.set_up(wlan, false);
    lab.seconds(3);
    let gap = lab.world.flow(back).longest_gap(gone, gone + Duration::from_secs(2));
    assert!(gap <= 25 * MS, "one round trip: {gap:?}, {}", lab.story());
    assert!(lab.is_up());
    // And the limit is lifted by the proof: all of it comes.
    assert!(lab.world.flow(back).lost().len() <= 25, "{}", lab.story());
}

#[test]
fn m_5_3_2_before_the_proof_no_more_than_three_times_what_came() {
    // An update copied by somebody on the way, from the victim's address: the gateway believes it, and
    // nobody answers from there.
    for talks in [0, 1] {
        let mut lab = after();
        let (client, gateway) = (lab.client, lab.gateway);
        let mut done = false;
        lab.world.net.set_tap(Some(Box::new(move |_, datagram| {
            if done || datagram.src.ip() != ip(LTE) || !datagram.payload.starts_with(&[0; 4]) {
                return Verdict::Pass;
            }
            done = true;
            let mut copy = datagram.clone();
            copy.src.set_ip(ip(VICTIM));
            Verdict::Replace(vec![copy])
        })));
        lab.world.net.capture.set_on(true);
        flow(&mut lab, gateway, client, 30);
        // The true client goes on sending from its true address: it counts for nothing there.
        if talks == 1 {
            flow(&mut lab, client, gateway, 30);
        }
        lab.move_to(lab.lte());
        lab.seconds(30);
        let to_victim = |record: &&Record| record.datagram.dst.ip() == ip(VICTIM);
        let octets = |esp: bool| -> usize {
            let sent = lab.world.net.capture.sent();
            sent.filter(to_victim)
                .filter(|r| is_esp(r) == esp)
                .map(|r| r.datagram.payload.len())
                .sum()
        };
        assert_eq!(octets(true), 0, "no ESP ever came from there: {}", lab.story());
        // The update itself was 200 octets or so; a check is no longer, and is asked five times.
        assert!(octets(false) <= 6 * 300, "{}", octets(false));
        // The failure is undone: IKE and ESP are together where the peer is.
        lab.seconds(40);
        let there = lab.sas(gateway)[0].path;
        assert_eq!(lab.world.end(gateway).plane.path(), Some(there), "{}", lab.story());
        assert_ne!(there.remote.ip(), ip(VICTIM), "{}", lab.story());
    }
}

#[test]
fn m_3_7_4_what_comes_from_there_opens_the_way_three_times_as_wide() {
    // The gateway's check never arrives; the client's traffic does.
    let mut lab = after();
    let (client, gateway) = (lab.client, lab.gateway);
    lab.world.net.capture.set_on(true);
    lab.world.net.set_tap(Some(Box::new(|_, datagram| {
        let to_client = datagram.dst.ip() == ip(LTE) && datagram.src.ip() == ip("192.0.2.1");
        let ike = datagram.dst.port() == 4500 && datagram.payload.starts_with(&[0; 4]);
        if to_client && ike { Verdict::Drop } else { Verdict::Pass }
    })));
    flow(&mut lab, gateway, client, 4);
    lab.move_to(lab.lte());
    lab.world.start_flow(client, gateway, 100 * MS, Duration::from_secs(2));
    lab.seconds(2);
    let sent = |from: &str, to: &str| -> usize {
        let (from, to) = (ip(from), ip(to));
        let sent = lab.world.net.capture.sent().filter(|r| is_esp(r));
        sent.filter(|r| r.datagram.src.ip() == from && r.datagram.dst.ip() == to)
            .map(|r| r.datagram.payload.len())
            .sum()
    };
    let (received, back) = (sent(LTE, "192.0.2.1"), sent("192.0.2.1", LTE));
    assert!(back > 2 * received && back <= 3 * received, "{received} in, {back} out");
}
