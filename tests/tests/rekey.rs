//! Rekeying of CHILD_SAs (RFC 7296 §1.3.3, §2.8, §2.8.1, §2.25), with traffic on them and with moves.

use std::time::Duration;

use bewick_ike::{ChildId, ChildSa, ConnectionId, Limits};
use bewick_mobike::Command;
use bewick_tests::{Lab, Link, Plan, pair::EndId, pair::FlowId, plane::Change};

const MS: Duration = Duration::from_millis(1);

fn flows(lab: &mut Lab, seconds: u64) -> [FlowId; 2] {
    lab.flows(Duration::from_secs(seconds))
}

fn rekey(lab: &mut Lab, end: EndId) {
    lab.world.command(end, Command::Rekey(ConnectionId(0))).expect("a rekey");
}

fn names(children: &[ChildSa]) -> Vec<ChildId> {
    children.iter().map(|child| child.id).collect()
}

/// Both ends have one CHILD_SA, the same, and neither is the one that was there before.
fn assert_renewed(lab: &Lab, before: &[Vec<ChildId>; 2]) {
    assert!(lab.is_up(), "{}", lab.story());
    for (end, before) in [lab.client, lab.gateway].into_iter().zip(before) {
        let now = names(&lab.children(end));
        assert!(now.iter().all(|id| !before.contains(id)), "not renewed: {}", lab.story());
    }
}

fn before(lab: &Lab) -> [Vec<ChildId>; 2] {
    [lab.client, lab.gateway].map(|end| names(&lab.children(end)))
}

fn slow(lab: &mut Lab, ms: u32) {
    lab.link(Link::of_delay(ms * MS));
}

#[test]
fn k_2_8_1_either_side_rekeys_and_no_packet_is_lost() {
    for by_client in [true, false] {
        let mut lab = Lab::established(Plan::default());
        slow(&mut lab, 10);
        let old = before(&lab);
        let (reqid, addresses) = {
            let child = &lab.children(lab.client)[0];
            (child.reqid, child.virtual_ips.clone())
        };
        let flows = flows(&mut lab, 2);
        lab.ms(500);
        let end = if by_client { lab.client } else { lab.gateway };
        rekey(&mut lab, end);
        lab.seconds(3);
        assert_renewed(&lab, &old);
        for flow in flows {
            assert_eq!(lab.world.flow(flow).lost(), [0u64; 0], "{}", lab.story());
        }
        let child = &lab.children(lab.client)[0];
        assert_eq!(child.reqid, reqid, "policies find the new states");
        assert_eq!(child.virtual_ips, addresses);
    }
}

/// A data plane may take longer than the messages do: nobody sends on an SA before the other end has it,
/// nor takes one away that the other end may still send on.
#[test]
fn k_2_8_1_no_packet_is_lost_when_the_plane_is_slow() {
    // How long each end's data plane is at work, and then says nothing, in milliseconds.
    let quick = (0, 0);
    let pace = [quick, (0, 150), (80, 0), (300, 40)];
    for (client, gateway) in pace.iter().flat_map(|one| pace.map(|other| (*one, other))) {
        for by_client in [true, false] {
            let mut lab = Lab::established(Plan::default());
            slow(&mut lab, 10);
            for (end, (work, answer)) in [(lab.client, client), (lab.gateway, gateway)] {
                let end = lab.world.end_mut(end);
                (end.work_delay, end.answer_delay) = (work * MS, answer * MS);
            }
            let flows = flows(&mut lab, 8);
            lab.ms(100);
            for nth in 0..2 {
                let old = before(&lab);
                let end = if by_client == (nth == 0) { lab.client } else { lab.gateway };
                rekey(&mut lab, end);
                lab.seconds(3);
                assert_renewed(&lab, &old);
            }
            lab.seconds(3);
            let what = format!("{client:?} and {gateway:?}, by the client: {by_client}");
            for flow in flows {
                let flow = lab.world.flow(flow);
                assert_eq!(flow.lost(), [0u64; 0], "{what}: {}", lab.story());
                assert_eq!((flow.sent(), flow.twice()), (8000, 0), "{what}");
            }
            for end in [lab.client, lab.gateway] {
                assert_eq!(lab.world.end(end).esp.unknown_spi, 0, "{what}: {}", lab.story());
            }
        }
    }
}

#[test]
fn k_2_8_1_a_child_sa_is_rekeyed_when_it_is_old_enough() {
    let mut plan = Plan::default();
    plan.client.child_lifetime = Duration::from_secs(600);
    plan.gateway.child_lifetime = Duration::ZERO;
    let mut lab = Lab::established(plan);
    for _ in 0..3 {
        let old = before(&lab);
        // What came up or was renewed up to 70 s ago stays until nine tenths of its time are over.
        lab.seconds(465);
        assert_eq!(before(&lab), old, "{}", lab.story());
        lab.seconds(136);
        assert_renewed(&lab, &old);
    }
}

#[test]
fn k_2_8_1_a_child_sa_is_rekeyed_when_enough_has_gone_through_it() {
    let by_packets = Limits { octets: None, packets: Some(1000) };
    let by_octets = Limits { octets: Some(24_000), packets: None };
    for limits in [by_packets, by_octets] {
        for at_client in [true, false] {
            let mut plan = Plan::default();
            match at_client {
                true => plan.client.child_limits = limits,
                false => plan.gateway.child_limits = limits,
            }
            let mut lab = Lab::established(plan);
            slow(&mut lab, 10);
            let old = before(&lab);
            let flows = flows(&mut lab, 4);
            // 1,000 packets less a tenth by chance, one each millisecond.
            lab.ms(890);
            assert_eq!(before(&lab), old, "{}", lab.story());
            lab.ms(200);
            assert_renewed(&lab, &old);
            lab.seconds(4);
            for flow in flows {
                assert_eq!(lab.world.flow(flow).lost(), [0u64; 0], "{}", lab.story());
            }
            let renewed = lab.world.end(lab.client).plane.log().iter();
            let installs = renewed.filter(|(_, change)| matches!(change, Change::Installed(_)));
            assert!((5..=6).contains(&installs.count()), "{}", lab.story());
        }
    }
}

/// RFC 7296 §2.8.1: of two that cross, the one with the lowest nonce goes; whatever the times, one is
/// left and traffic flows.
#[test]
fn k_2_8_1_1_rekeys_that_cross_leave_one_child_sa() {
    for seed in 0..20 {
        for apart in [0, 1, 5, 9, 10, 11, 15, 19, 20, 21, 25, 30, 35, 39, 40, 41, 45] {
            let mut lab = Lab::established(Plan { seed, ..Plan::default() });
            slow(&mut lab, 10);
            let old = before(&lab);
            let (client, gateway) = (lab.client, lab.gateway);
            rekey(&mut lab, client);
            lab.ms(apart);
            // The client's may be through already; then the gateway rekeys the new one.
            rekey(&mut lab, gateway);
            lab.seconds(1);
            assert_renewed(&lab, &old);
            let flows = flows(&mut lab, 1);
            lab.seconds(2);
            for flow in flows {
                let lost = lab.world.flow(flow).lost();
                assert!(lost.is_empty(), "{apart} ms apart, seed {seed}: {}", lab.story());
            }
        }
    }
}

/// With loss and reordering nothing can be said of single packets, but both ends end up with one and
/// the same CHILD_SA.
#[test]
fn k_2_25_1_rekeys_that_cross_on_a_bad_network_leave_one_child_sa() {
    for seed in 0..60 {
        let mut lab = Lab::established(Plan { seed, ..Plan::default() });
        lab.link(Link::bad(10 * MS));
        let old = before(&lab);
        let (client, gateway) = (lab.client, lab.gateway);
        rekey(&mut lab, client);
        lab.ms(seed % 40);
        rekey(&mut lab, gateway);
        lab.seconds(60);
        slow(&mut lab, 10);
        lab.seconds(200);
        assert_renewed(&lab, &old);
        let flows = flows(&mut lab, 1);
        lab.seconds(2);
        for flow in flows {
            assert!(lab.world.flow(flow).lost().is_empty(), "seed {seed}: {}", lab.story());
        }
    }
}

#[test]
fn x_4_a_move_while_a_child_sa_is_rekeyed_takes_both_along() {
    for by_client in [true, false] {
        for after in [0, 5, 10, 15, 20, 25, 30, 35, 40, 45] {
            let mut lab = Lab::established(Plan::default());
            slow(&mut lab, 10);
            let old = before(&lab);
            let flows = flows(&mut lab, 2);
            lab.ms(300);
            let end = if by_client { lab.client } else { lab.gateway };
            rekey(&mut lab, end);
            lab.ms(after);
            let lte = lab.lte();
            lab.move_to(lte);
            lab.seconds(4);
            assert_renewed(&lab, &old);
            let address = lab.address(lte);
            let here = lab.world.end(lab.client).plane.path();
            assert_eq!(here.map(|p| p.local.ip()), Some(address), "{}", lab.story());
            for flow in flows {
                let lost = lab.world.flow(flow).lost();
                assert!(lost.is_empty(), "moved {after} ms after: {}", lab.story());
            }
        }
    }
}

#[test]
fn k_2_8_1_a_refused_successor_leaves_the_old_child_sa() {
    for by_client in [true, false] {
        for refuser_is_client in [true, false] {
            let mut lab = Lab::established(Plan::default());
            let old = before(&lab);
            let refuser = if refuser_is_client { lab.client } else { lab.gateway };
            lab.world.end_mut(refuser).plane.refuse_next(1);
            let end = if by_client { lab.client } else { lab.gateway };
            rekey(&mut lab, end);
            lab.seconds(2);
            assert!(lab.is_up(), "{}", lab.story());
            assert_eq!(before(&lab), old, "{}", lab.story());
            // It is tried again, by itself.
            lab.seconds(150);
            assert_renewed(&lab, &old);
        }
    }
}

#[test]
fn many_moves_bring_new_keys() {
    let mut lab = Lab::established(Plan::default());
    let old = before(&lab);
    for _ in 0..20 {
        let (lte, wlan) = (lab.lte(), lab.wlan);
        lab.move_to(lte);
        lab.rest();
        lab.move_to(wlan);
        lab.rest();
    }
    lab.seconds(5);
    assert_renewed(&lab, &old);
}
