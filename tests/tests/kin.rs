//! What two Bewicks tell each other beyond RFC 4555, and nobody else.

use bewick_ike::{
    Time,
    wire::{NotifyType, Payload},
};
use bewick_mobike::{Cause, Event, Hint};
use bewick_tests::{Lab, Link, Plan, lab::ip, puppet::kinds};

/// What the client knows of its pairs now.
fn pairs(lab: &Lab) -> Vec<bewick_mobike::PairStatus> {
    let id = lab.sas(lab.client)[0].id;
    let now: Time = lab.world.now();
    lab.world.end(lab.client).machine.host().pairs(now, id)
}

fn warm() -> Plan {
    let mut plan = Plan::default();
    plan.client_policy.standby = std::time::Duration::from_secs(5);
    plan
}

#[test]
fn a_client_behind_a_nat_learns_as_whom_it_is_seen() {
    let mut lab = Lab::established(Plan { nat_wlan: true, ..warm() });
    lab.seconds(40);
    let pairs = pairs(&lab);
    let seen = pairs[0].seen.expect("the gateway has said so");
    assert_eq!(seen.ip(), ip("203.0.113.1"));
    assert_eq!(seen, lab.sas(lab.gateway)[0].path.remote);
    assert_eq!(pairs[1].seen, Some("198.51.100.130:4500".parse().expect("an address")));
}

#[test]
fn others_are_told_nothing_of_the_kind() {
    // A client that does not say that it is one of us, and what our gateway answers it.
    let mut lab = Lab::new(Plan { puppet_client: true, ..Plan::default() });
    let client = lab.client;
    let way = bewick_tests::lab::path("198.51.100.2:500", "192.0.2.1:500");
    lab.world.play(client, |puppet, now| puppet.connect(now, way));
    lab.rest();
    let way = bewick_tests::lab::path("198.51.100.2:4500", "192.0.2.1:4500");
    lab.world.play(client, |puppet, now| puppet.ask(now, way, &[]));
    lab.rest();
    let answers: Vec<Vec<Payload>> = lab.world.play(client, |puppet, _| {
        puppet.responses().map(|(_, _, payloads)| payloads.to_vec()).collect()
    });
    assert!(!answers.is_empty());
    let private = |kind: &NotifyType| kind.0 >= 40_960;
    assert!(!answers.iter().any(|payloads| kinds(payloads).iter().any(private)), "{answers:?}");
}

#[test]
fn a_gateway_whose_answers_do_not_arrive_asks_for_another_pair() {
    // Nothing but liveness goes on, and only what the gateway sends to the first uplink is lost.
    let mut lab = Lab::established(warm());
    lab.seconds(12);
    let (wan, wlan) = (lab.wan, lab.wlan);
    *lab.world.net.link(wan, wlan) = Link { black_hole: true, ..Link::default() };
    lab.seconds(40);
    let asked = |event: &&Event| matches!(event, Event::Suspected { hint: Hint::Asked, .. });
    let unanswered =
        |event: &&Event| matches!(event, Event::Suspected { hint: Hint::Unanswered, .. });
    let events = lab.events(lab.client);
    assert!(events.iter().any(asked) || events.iter().any(unanswered), "{}", lab.story());
    let moved = |event: &&&Event| matches!(event, Event::Moved { cause: Cause::NoAnswer, .. });
    assert_eq!(events.iter().filter(moved).count(), 1, "{}", lab.story());
    let pairs = pairs(&lab);
    assert_eq!(pairs[0].path.local.ip(), lab.address(lab.lte()));
    // And the operator sees that the old one works in one direction.
    let old = pairs.iter().find(|pair| pair.path.local.ip() == ip("198.51.100.2"));
    assert!(old.expect("it is still there").one_way, "{pairs:?}");
}
