//! Moves that meet everything else that can be under way (RFC 4555 §3.5; RFC 7296 §2.3, §2.8, §2.25): by
//! the millisecond, with one way of 10 ms, so that all orders of the messages come.

use std::time::Duration;

use bewick_ike::{ConnectionId, wire::ExchangeType};
use bewick_mobike::{Command, MoveTarget};
use bewick_tests::{
    Lab, Plan, UplinkId,
    lab::ip,
    scene::{
        GATEWAY, LTE, WLAN, assert_at, assert_carries, from, ike_header, paths, turned, with_three,
    },
};

const CONNECTION: ConnectionId = ConnectionId(0);
const ONE_WAY: u64 = 10;

/// The rekeys of both ends, the client's first, each with each.
const REKEYS: [[Command; 2]; 4] = {
    use Command::{Rekey, RekeyIke};
    [
        [Rekey(CONNECTION), Rekey(CONNECTION)],
        [Rekey(CONNECTION), RekeyIke(CONNECTION)],
        [RekeyIke(CONNECTION), Rekey(CONNECTION)],
        [RekeyIke(CONNECTION), RekeyIke(CONNECTION)],
    ]
};

fn established(seed: u64, window: u32) -> Lab {
    let mut plan = Plan { seed, ..Plan::default() };
    (plan.client.window, plan.gateway.window) = (window, window);
    Lab::established(plan)
}

/// The client goes to an uplink, if there is anything left that could.
fn go(lab: &mut Lab, uplink: UplinkId) {
    let target = MoveTarget::Address(lab.address(uplink));
    let _ = lab.world.command(lab.client, Command::Move(CONNECTION, target));
}

/// Both ends do something at once, the client first.
fn both(lab: &mut Lab, commands: &[Command; 2]) {
    for (end, command) in [lab.client, lab.gateway].into_iter().zip(commands) {
        let _ = lab.world.command(end, command.clone());
    }
}

/// Both ends agree, are on the first pair, and carry traffic.
fn assert_back(lab: &mut Lab, what: &str) {
    let here = lab.sas(lab.client).first().map(|sa| sa.path);
    assert!(lab.is_up() && here == Some(from(WLAN, GATEWAY)), "{what}: {}", lab.story());
    assert_at(lab, WLAN, GATEWAY);
    assert_carries(lab);
}

/// A move, rekeys of both ends at once, and a move back, in either order of the first two: no packet is
/// lost while both pairs work, and the ends agree on the CHILD_SA, the IKE_SA and the pair.
#[test]
fn x_4_moves_around_rekeys_of_both_ends_at_once_lose_nothing() {
    for window in [1, 4] {
        for rekeys in &REKEYS {
            for apart in 0..=(5 * ONE_WAY) {
                for move_first in [true, false] {
                    let mut lab = established(apart, window);
                    let old = lab.sas(lab.client)[0].spis;
                    let (wlan, lte) = (lab.wlan, lab.lte());
                    let flows = lab.flows(Duration::from_millis(1000));
                    lab.ms(20);
                    for step in [move_first, !move_first] {
                        if step {
                            go(&mut lab, lte)
                        } else {
                            both(&mut lab, rekeys)
                        }
                        lab.ms(apart);
                    }
                    go(&mut lab, wlan);
                    lab.seconds(3);
                    let what = format!("window {window}, {rekeys:?}, {apart} ms, {move_first}");
                    assert_eq!(lab.lost(flows), [[0u64; 0]; 2], "{what}: {}", lab.story());
                    assert_back(&mut lab, &what);
                    // What met the other's rekey is tried again later (RFC 7296 §2.25).
                    lab.seconds(400);
                    assert_back(&mut lab, &what);
                    let is_ike = |c: &Command| matches!(c, Command::RekeyIke(_));
                    let rekeyed = lab.sas(lab.client)[0].spis != old;
                    assert_eq!(rekeyed, rekeys.iter().any(is_ike), "{what}: {}", lab.story());
                }
            }
        }
    }
}

/// The same with three CHILD_SAs and data planes that take their time: all of them end on one pair, none is
/// left over, and each carries traffic.
#[test]
fn x_4_moves_around_rekeys_take_all_child_sas_along_however_slow_the_planes_are() {
    for (window, delay) in [(1, 0), (1, 15), (4, 0), (4, 15), (4, 35)] {
        for rekeys in &REKEYS {
            for apart in 0..=(4 * ONE_WAY) {
                let mut plan = Plan { seed: apart, ..with_three() };
                (plan.client.window, plan.gateway.window) = (window, window);
                let mut lab = Lab::new(plan);
                let ends = [lab.client, lab.gateway];
                let (wlan, lte) = (lab.wlan, lab.lte());
                lab.up();
                lab.rest();
                for end in ends {
                    lab.world.end_mut(end).answer_delay = Duration::from_millis(delay);
                }
                both(&mut lab, rekeys);
                lab.ms(apart);
                go(&mut lab, lte);
                lab.ms(apart);
                both(&mut lab, rekeys);
                go(&mut lab, wlan);
                for wait in [5, 400] {
                    lab.seconds(wait);
                    let what =
                        format!("window {window}, {delay}, {rekeys:?}, {apart} ms, {wait} s");
                    let here = from(WLAN, GATEWAY);
                    for (end, at) in ends.into_iter().zip([here, turned(here)]) {
                        assert_eq!(lab.sas(end).len(), 1, "{what}: {}", lab.story());
                        assert_eq!(lab.sas(end)[0].path, at, "{what}: {}", lab.story());
                        assert_eq!(paths(&lab, end), [at].into(), "{what}: {}", lab.story());
                        assert_eq!(lab.children(end).len(), 3, "{what}: {}", lab.story());
                    }
                    assert_carries(&mut lab);
                }
            }
        }
    }
}

/// The same where each pair dies when the client leaves it, with everything that is on its way there.
#[test]
fn x_4_addresses_that_go_around_rekeys_of_both_ends_at_once_leave_a_tunnel_that_works() {
    for window in [1, 4] {
        for rekeys in &REKEYS {
            for apart in 0..=(5 * ONE_WAY) {
                let mut lab = established(apart, window);
                let (wlan, lte) = (lab.wlan, lab.lte());
                both(&mut lab, rekeys);
                lab.ms(apart);
                lab.world.set_up(wlan, false);
                lab.ms(apart);
                both(&mut lab, rekeys);
                lab.world.set_up(wlan, true);
                lab.world.set_up(lte, false);
                lab.seconds(10);
                let what = format!("window {window}, {rekeys:?}, {apart} ms");
                let here = lab.sas(lab.client)[0].path;
                assert_eq!(here.local.ip(), ip(WLAN), "{what}: {}", lab.story());
                let flows = lab.flows(Duration::from_millis(100));
                lab.ms(200);
                assert_eq!(lab.lost(flows), [[0u64; 0]; 2], "{what}: {}", lab.story());
                lab.seconds(400);
                assert_back(&mut lab, &what);
            }
        }
    }
}

/// A move, rekeys of both ends at once, a DELETE of either end or of both at once, and another move: in the
/// end nothing is left at either end, and nothing came to life after the DELETE.
#[test]
fn x_4_a_delete_between_rekeys_and_moves_leaves_nothing() {
    for window in [1, 4] {
        for rekeys in &REKEYS {
            for apart in 0..=(4 * ONE_WAY) {
                for by in [[true, false], [false, true], [true, true]] {
                    let mut lab = established(apart, window);
                    let (wlan, lte) = (lab.wlan, lab.lte());
                    let ends = [lab.client, lab.gateway];
                    go(&mut lab, lte);
                    lab.ms(apart / 2);
                    both(&mut lab, rekeys);
                    lab.ms(apart);
                    for (end, _) in ends.into_iter().zip(by).filter(|(_, by)| *by) {
                        lab.world.command(end, Command::Down(CONNECTION)).expect("its connection");
                    }
                    lab.ms(apart / 3);
                    go(&mut lab, wlan);
                    lab.seconds(400);
                    let what = format!("window {window}, {rekeys:?}, {apart} ms, {by:?}");
                    assert!(lab.is_empty(), "{what}: {}", lab.story());
                    for end in ends {
                        assert_eq!(lab.count(end, "established"), 1, "{what}: {}", lab.story());
                        assert_eq!(lab.count(end, "closed"), 1, "{what}: {}", lab.story());
                    }
                }
            }
        }
    }
}

/// A request of the gateway's that is out when the client moves goes to the new pair as soon as the update
/// has come, with the same octets (RFC 7296 §2.1): it waits for no timer, and the peer is not given up.
#[test]
fn x_2_a_request_of_the_responder_s_goes_on_at_the_new_pair_with_the_same_octets() {
    let creates = [ExchangeType::CREATE_CHILD_SA; 2];
    let commands = [Command::Rekey(CONNECTION), Command::RekeyIke(CONNECTION)];
    let rekeys = commands.map(Some).into_iter().zip(creates);
    let all = rekeys.chain([(None, ExchangeType::INFORMATIONAL)]);
    for (command, exchange) in all {
        for window in [1, 4] {
            let mut plan = Plan::default();
            (plan.client.window, plan.gateway.window) = (window, window);
            // The gateway is the one that asks.
            plan.client.liveness = Duration::ZERO;
            plan.gateway_policy.hold = Duration::from_secs(60);
            let mut lab = Lab::established(plan);
            let (gateway, wan, wlan, lte) = (lab.gateway, lab.wan, lab.wlan, lab.lte());
            lab.world.net.link(wan, wlan).black_hole = true;
            lab.world.net.capture.set_on(true);
            let sent = lab.world.end(gateway).transmitted;
            if let Some(command) = command.clone() {
                lab.world.command(gateway, command).expect("a rekey");
            }
            let asks = |world: &bewick_tests::pair::World<_>| {
                let end: &bewick_tests::pair::End<bewick_tests::Node> = world.end(gateway);
                end.transmitted > sent
            };
            assert!(lab.world.run_while_not(Duration::from_secs(60), asks), "{}", lab.story());
            lab.ms(50);
            let moved = lab.world.now();
            lab.move_to(lte);
            lab.seconds(5);
            let to = |address: &str| {
                let requests = lab.world.net.capture.sent().filter(|r| {
                    r.datagram.dst.ip() == ip(address)
                        && ike_header(&r.datagram)
                            .is_some_and(|h| !h.flags.response && h.exchange == exchange)
                });
                requests.cloned().collect::<Vec<_>>()
            };
            let what = format!("{command:?}, window {window}: {}", lab.story());
            let first = to(WLAN).swap_remove(0);
            let again = to(LTE).into_iter().find(|r| r.datagram.payload == first.datagram.payload);
            let again = again.expect("the same octets at the new pair").time.since(moved);
            assert!(again <= Duration::from_millis(3 * ONE_WAY), "{again:?}, {what}");
            assert_at(&lab, LTE, GATEWAY);
            assert_carries(&mut lab);
            let rekeyed = lab.count(gateway, "rekeyed");
            assert_eq!(rekeyed, usize::from(command == Some(Command::RekeyIke(CONNECTION))));
        }
    }
}
