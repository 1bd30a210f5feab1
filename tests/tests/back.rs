//! The way back to the better uplink, when it works again.

use std::time::Duration;

use bewick_mobike::{Cause, Command, Event, MoveTarget};
use bewick_tests::{
    Lab, Link, Plan,
    scene::{GATEWAY, LTE, WLAN, assert_at, ike_header},
};

const HOLE: Link = Link { black_hole: true, ..Link::of_delay(Duration::from_millis(10)) };
const GOOD: Link = Link::of_delay(Duration::from_millis(10));

fn plan() -> Plan {
    let mut plan = Plan::default();
    plan.client_policy.back_after = Duration::from_secs(10);
    plan
}

fn causes(lab: &Lab) -> Vec<Cause> {
    let cause = |event: &&Event| match event {
        Event::Moving { cause, .. } => Some(*cause),
        _ => None,
    };
    lab.events(lab.client).iter().filter_map(cause).collect()
}

/// The better uplink goes away, and the tunnel follows.
fn away(plan: Plan) -> Lab {
    let mut lab = Lab::established(plan);
    let wlan = lab.wlan;
    lab.world.set_up(wlan, false);
    lab.seconds(2);
    assert_at(&lab, LTE, GATEWAY);
    lab
}

#[test]
fn the_better_uplink_is_taken_when_it_has_worked_for_the_time_and_nothing_is_lost() {
    let mut lab = away(plan());
    let wlan = lab.wlan;
    lab.world.set_up(wlan, true);
    let flows = lab.flows(Duration::from_secs(25));
    lab.seconds(9);
    assert_at(&lab, LTE, GATEWAY);
    lab.seconds(6);
    assert_at(&lab, WLAN, GATEWAY);
    lab.seconds(12);
    assert_eq!(causes(&lab).last(), Some(&Cause::Better), "{}", lab.story());
    assert_eq!(lab.lost(flows), [Vec::<u64>::new(), Vec::new()], "{}", lab.story());
    // And there it stays, and asks no more.
    lab.world.net.capture.set_on(true);
    lab.seconds(600);
    assert_at(&lab, WLAN, GATEWAY);
    let elsewhere =
        lab.world.net.capture.sent().filter(|r| {
            ike_header(&r.datagram).is_some() && r.datagram.src.ip().to_string() == LTE
        });
    assert_eq!(elsewhere.count(), 0);
}

#[test]
fn zero_is_never_and_what_the_operator_chose_is_kept() {
    let mut never = plan();
    never.client_policy.back_after = Duration::ZERO;
    let mut lab = away(never);
    let wlan = lab.wlan;
    lab.world.set_up(wlan, true);
    lab.seconds(600);
    assert_at(&lab, LTE, GATEWAY);
    let mut lab = Lab::established(plan());
    let target = MoveTarget::Address(lab.address(lab.lte()));
    let connection = bewick_ike::ConnectionId(0);
    lab.world.command(lab.client, Command::Move(connection, target)).expect("a connection");
    lab.seconds(600);
    assert_at(&lab, LTE, GATEWAY);
    // Until it has to be left: then the best is best again.
    let (wlan, lte) = (lab.wlan, lab.lte());
    lab.world.set_up(lte, false);
    lab.seconds(2);
    assert_at(&lab, WLAN, GATEWAY);
    lab.world.set_up(lte, true);
    lab.seconds(2);
    lab.world.set_up(wlan, false);
    lab.seconds(2);
    lab.world.set_up(wlan, true);
    lab.seconds(30);
    assert_at(&lab, WLAN, GATEWAY);
}

#[test]
fn a_path_that_does_not_answer_is_not_taken_and_asked_ever_more_rarely() {
    let mut lab = Lab::established(plan());
    let (wlan, wan) = (lab.wlan, lab.wan);
    lab.world.net.set_links(wlan, wan, HOLE);
    lab.flows(Duration::from_secs(4));
    lab.seconds(5);
    assert_at(&lab, LTE, GATEWAY);
    lab.world.net.capture.set_on(true);
    lab.seconds(3600);
    assert_at(&lab, LTE, GATEWAY);
    let asked = lab.world.net.capture.sent().filter(|r| r.datagram.src.ip().to_string() == WLAN);
    let asked = asked.count();
    assert!((50..=75).contains(&asked), "once a minute in the end: {asked}");
    lab.world.net.set_links(wlan, wan, GOOD);
    lab.seconds(90);
    assert_at(&lab, WLAN, GATEWAY);
}

#[test]
fn one_that_answers_now_and_then_is_not_taken() {
    let mut lab = Lab::established(plan());
    let (wlan, wan) = (lab.wlan, lab.wan);
    lab.world.net.set_links(wlan, wan, HOLE);
    lab.flows(Duration::from_secs(4));
    lab.seconds(5);
    for _ in 0..100 {
        lab.world.net.set_links(wlan, wan, GOOD);
        lab.seconds(6);
        lab.world.net.set_links(wlan, wan, HOLE);
        lab.seconds(4);
    }
    assert_at(&lab, LTE, GATEWAY);
    assert!(!causes(&lab).contains(&Cause::Better), "{}", lab.story());
}

#[test]
fn an_uplink_that_comes_and_goes_is_trusted_for_longer_each_time() {
    let mut lab = away(plan());
    let (wlan, client) = (lab.wlan, lab.client);
    let mut waits = Vec::new();
    for _ in 0..9 {
        lab.world.set_up(wlan, true);
        let from = lab.world.now();
        let there = lab.world.run_while_not(Duration::from_secs(3600), |world| {
            let sas = world.end(client).machine.host().status();
            sas.filter(|sa| sa.path.local.ip().to_string() == WLAN).count() == 1
        });
        assert!(there, "{}", lab.story());
        waits.push(lab.world.now().since(from).as_secs());
        lab.seconds(3);
        lab.world.set_up(wlan, false);
        lab.seconds(2);
        assert_at(&lab, LTE, GATEWAY);
    }
    assert!((10..=16).contains(&waits[0]), "{waits:?}");
    assert!(waits.windows(2).all(|w| w[0] <= w[1] + 5), "{waits:?}");
    assert!((640..=660).contains(&waits[8]), "no longer than that: {waits:?}");
    // One that stays is forgiven.
    lab.world.set_up(wlan, true);
    lab.seconds(700 + 301);
    assert_at(&lab, WLAN, GATEWAY);
    lab.world.set_up(wlan, false);
    lab.seconds(2);
    lab.world.set_up(wlan, true);
    lab.seconds(16);
    assert_at(&lab, WLAN, GATEWAY);
}
