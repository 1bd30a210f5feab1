//! Rekeying of IKE_SAs (RFC 7296 §1.3.2, §2.8, §2.8.2, §2.18, §2.25.2), by either end, by both at once,
//! and across everything else that can be under way.

use std::time::Duration;

use bewick_ike::ConnectionId;
use bewick_mobike::Command;
use bewick_tests::{Lab, Link, Plan, pair::EndId};

const MS: Duration = Duration::from_millis(1);
const ONE_WAY: u64 = 10;

/// What an end does in these tests, at a moment of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Act {
    RekeyIke,
    RekeyChild,
    Down,
}

fn act(lab: &mut Lab, end: EndId, act: Act) {
    let connection = ConnectionId(0);
    let command = match act {
        Act::RekeyIke => Command::RekeyIke(connection),
        Act::RekeyChild => Command::Rekey(connection),
        Act::Down => Command::Down(connection),
    };
    // After a DELETE there may be nothing left to act on.
    let _ = lab.world.command(end, command);
}

fn established(seed: u64) -> Lab {
    let mut lab = Lab::established(Plan { seed, ..Plan::default() });
    lab.link(Link::of_delay(Duration::from_millis(ONE_WAY)));
    lab
}

fn spis(lab: &Lab) -> (u64, u64) {
    lab.sas(lab.client)[0].spis
}

/// Both ends agree on one IKE_SA, which is not the one of `old`, and traffic flows.
fn assert_rekeyed(lab: &mut Lab, old: (u64, u64), what: &str) {
    assert!(lab.is_up(), "{what}: {}", lab.story());
    assert_ne!(spis(lab), old, "{what}: {}", lab.story());
    assert_flows(lab, what);
}

fn assert_flows(lab: &mut Lab, what: &str) {
    let flows = lab.flows(Duration::from_millis(200));
    lab.ms(400);
    assert_eq!(lab.lost(flows), [[0u64; 0]; 2], "{what}: {}", lab.story());
}

#[test]
fn k_2_18_1_either_end_rekeys_the_ike_sa_and_no_packet_is_lost() {
    for by_client in [true, false] {
        let mut lab = established(1);
        let old = spis(&lab);
        let children = lab.children(lab.client);
        let flows = lab.flows(Duration::from_secs(2));
        lab.ms(500);
        let end = if by_client { lab.client } else { lab.gateway };
        act(&mut lab, end, Act::RekeyIke);
        lab.seconds(3);
        assert_eq!(lab.lost(flows), [[0u64; 0]; 2], "{}", lab.story());
        assert_rekeyed(&mut lab, old, "once");
        assert_eq!(lab.children(lab.client), children, "the CHILD_SAs are inherited as they are");
        for end in [lab.client, lab.gateway] {
            assert_eq!(lab.count(end, "rekeyed"), 1, "{}", lab.story());
            assert_eq!(lab.count(end, "closed"), 0, "{}", lab.story());
        }
        // The successor works in both directions: both ends rekey all that there is again.
        for end in [lab.client, lab.gateway] {
            let old = spis(&lab);
            act(&mut lab, end, Act::RekeyIke);
            lab.seconds(1);
            act(&mut lab, end, Act::RekeyChild);
            lab.seconds(1);
            assert_rekeyed(&mut lab, old, "again");
        }
        let client = lab.client;
        act(&mut lab, client, Act::Down);
        lab.seconds(30);
        assert!(lab.is_empty(), "{}", lab.story());
    }
}

#[test]
fn k_2_8_1_an_ike_sa_is_rekeyed_when_it_is_old_enough() {
    let mut plan = Plan::default();
    plan.client.ike_lifetime = Duration::from_secs(600);
    plan.gateway.ike_lifetime = Duration::ZERO;
    let mut lab = Lab::established(plan);
    for _ in 0..3 {
        let old = spis(&lab);
        lab.seconds(465);
        assert_eq!(spis(&lab), old, "{}", lab.story());
        lab.seconds(136);
        assert_rekeyed(&mut lab, old, "by age");
    }
}

/// RFC 7296 §2.8.2: whatever the order of the messages, one IKE_SA is left with the CHILD_SAs, and no
/// packet of theirs is lost. One way takes 10 ms, so that the distances in milliseconds go through every
/// order in which the four messages and the DELETEs can be sent and received.
#[test]
fn k_2_8_2_1_rekeys_of_the_ike_sa_that_cross_leave_one() {
    for seed in 0..6 {
        for apart in 0..=(5 * ONE_WAY) {
            for client_first in [true, false] {
                let mut lab = established(seed);
                let old = spis(&lab);
                let flows = lab.flows(Duration::from_millis(1500));
                lab.ms(20);
                let (one, other) = match client_first {
                    true => (lab.client, lab.gateway),
                    false => (lab.gateway, lab.client),
                };
                act(&mut lab, one, Act::RekeyIke);
                lab.ms(apart);
                act(&mut lab, other, Act::RekeyIke);
                lab.seconds(2);
                let what = format!("{apart} ms apart, seed {seed}, client first: {client_first}");
                assert_eq!(lab.lost(flows), [[0u64; 0]; 2], "{what}: {}", lab.story());
                assert_rekeyed(&mut lab, old, &what);
            }
        }
    }
}

/// RFC 7296 §2.25.1, §2.25.2: each thing that an end can start against each that the other can, in
/// every order of their messages.
#[test]
fn k_2_25_1_whatever_meets_a_rekey_ends_the_same_at_both_ends() {
    use Act::{Down, RekeyChild, RekeyIke};
    let pairs = [
        (RekeyIke, RekeyChild),
        (RekeyChild, RekeyIke),
        (RekeyIke, Down),
        (RekeyChild, Down),
        (Down, RekeyIke),
        (Down, RekeyChild),
        (Down, Down),
    ];
    for (ours, theirs) in pairs {
        for apart in 0..=(5 * ONE_WAY) {
            for client_first in [true, false] {
                let mut lab = established(apart);
                let (client, gateway) = (lab.client, lab.gateway);
                let (first, second) = match client_first {
                    true => ((client, ours), (gateway, theirs)),
                    false => ((gateway, theirs), (client, ours)),
                };
                act(&mut lab, first.0, first.1);
                lab.ms(apart);
                act(&mut lab, second.0, second.1);
                lab.seconds(400);
                let what = format!("{ours:?} and {theirs:?}, {apart} ms, {client_first}");
                if ours == Down || theirs == Down {
                    assert!(lab.is_empty(), "{what}: {}", lab.story());
                } else {
                    assert!(lab.is_up(), "{what}: {}", lab.story());
                    assert_flows(&mut lab, &what);
                }
            }
        }
    }
}

/// One message after the other is lost, of one rekey and of two that cross.
#[test]
fn k_2_8_2_1_a_lost_message_leaves_one_ike_sa() {
    for both in [false, true] {
        for by_client in [true, false] {
            for from in (0..60).step_by(3) {
                let mut lab = established(from);
                let old = spis(&lab);
                let (one, other) = match by_client {
                    true => (lab.client, lab.gateway),
                    false => (lab.gateway, lab.client),
                };
                act(&mut lab, one, Act::RekeyIke);
                if both {
                    lab.ms(4);
                    act(&mut lab, other, Act::RekeyIke);
                }
                lab.ms(from);
                lab.cut(true);
                lab.ms(4);
                lab.cut(false);
                lab.seconds(20);
                let what = format!("lost from {from} ms on, both {both}, client {by_client}");
                assert_rekeyed(&mut lab, old, &what);
            }
        }
    }
}

#[test]
fn k_2_8_2_1_on_a_bad_network_one_ike_sa_is_left() {
    for seed in 0..60 {
        let mut lab = Lab::established(Plan { seed, ..Plan::default() });
        lab.link(Link::bad(10 * MS));
        let old = spis(&lab);
        let (client, gateway) = (lab.client, lab.gateway);
        act(&mut lab, client, Act::RekeyIke);
        lab.ms(seed % 40);
        act(&mut lab, gateway, if seed % 2 == 0 { Act::RekeyIke } else { Act::RekeyChild });
        lab.seconds(60);
        lab.link(Link::of_delay(10 * MS));
        lab.seconds(400);
        assert_rekeyed(&mut lab, old, &format!("seed {seed}"));
    }
}

/// The client moves at each moment of a rekey of the IKE_SA, by either end, while its old path swallows
/// everything: the tunnel is at the new address, and no rekey stands in its way for long.
#[test]
fn x_4_a_move_while_the_ike_sa_is_rekeyed_takes_it_along() {
    for by_client in [true, false] {
        for after in 0..45 {
            let mut lab = established(after);
            let old = spis(&lab);
            let end = if by_client { lab.client } else { lab.gateway };
            act(&mut lab, end, Act::RekeyIke);
            lab.ms(after);
            let wlan = lab.wlan;
            lab.world.set_up(wlan, false);
            lab.seconds(3);
            let what = format!("moved {after} ms after, by the client: {by_client}");
            let address = lab.address(lab.lte());
            for end in [lab.client, lab.gateway] {
                let path = lab.sas(end)[0].path;
                let there = if end == lab.client { path.local } else { path.remote };
                assert_eq!(there.ip(), address, "{what}: {}", lab.story());
            }
            assert_flows(&mut lab, &what);
            lab.seconds(400);
            assert_rekeyed(&mut lab, old, &what);
        }
    }
}

/// RFC 7296 §2.8.3: a whole new IKE_SA takes the old one's place, with the same virtual address, before
/// the old one goes: no packet is lost, and the gateway has one IKE_SA of the client's again.
#[test]
fn k_2_8_3_1_reauthentication_makes_before_it_breaks() {
    let mut plan = Plan::default();
    plan.client.reauth_lifetime = Duration::from_secs(600);
    let mut lab = Lab::established(plan);
    lab.link(Link::of_delay(Duration::from_millis(ONE_WAY)));
    lab.seconds(500);
    for work in [0, 0, 15] {
        // A data plane that takes its time sends on the old one no longer when its DELETE is answered.
        lab.world.end_mut(lab.gateway).work_delay = Duration::from_millis(work);
        let old = spis(&lab);
        let address = lab.children(lab.client)[0].virtual_ips.clone();
        let flows = lab.flows(Duration::from_secs(660));
        lab.seconds(662);
        assert_eq!(lab.lost(flows), [[0u64; 0]; 2], "{}", lab.story());
        assert_rekeyed(&mut lab, old, "reauthenticated");
        assert_eq!(lab.children(lab.client)[0].virtual_ips, address, "{}", lab.story());
    }
    let client = lab.client;
    act(&mut lab, client, Act::Down);
    lab.seconds(30);
    assert!(lab.is_empty(), "{}", lab.story());
}

/// If the new one does not come up, the old one stays, and it is tried again.
#[test]
fn k_2_8_3_1_a_reauthentication_that_fails_breaks_nothing() {
    let mut plan = Plan::default();
    plan.client.reauth_lifetime = Duration::from_secs(600);
    let mut lab = Lab::established(plan);
    lab.seconds(500);
    let old = spis(&lab);
    let gateway = lab.gateway;
    let closed = bewick_ike::endpoint::HalfOpenLimits { most: 0, ..Default::default() };
    lab.world.end_mut(gateway).machine.host_mut().set_half_open_limits(closed);
    lab.seconds(200);
    assert_eq!(spis(&lab), old);
    assert_flows(&mut lab, "the old one stays");
    lab.world.end_mut(gateway).machine.host_mut().set_half_open_limits(Default::default());
    lab.seconds(300);
    assert_rekeyed(&mut lab, old, "tried again");
}
