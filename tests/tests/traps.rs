//! Connections that wait for the first packet (RFC 4301 §5.1, step 3b), and what that packet's selectors
//! are for (RFC 7296 §2.9).

use bewick_ike::{
    ConnectionId, Packet, TrafficSelector,
    config::{ChildConfig, Selectors},
};
use bewick_mobike::{Command, Event, MoveTarget};
use bewick_tests::{
    Lab, Plan,
    lab::{ESP_CBC, ESP_GCM, selectors},
    node::interface,
    seed::{below, stream},
};

const CONNECTION: ConnectionId = ConnectionId(0);

/// Two sites with two networks behind the gateway, each a CHILD_SA of its own.
fn sites() -> Plan {
    let mut plan = Plan::default();
    let (ours, one, two) = (&["10.7.0.0/16"], &["10.1.0.0/16"], &["10.2.0.0/16"]);
    plan.client.request_ipv4 = false;
    (plan.client.ts_local, plan.client.ts_remote) = (selectors(ours), selectors(one));
    (plan.gateway.ts_local, plan.gateway.ts_remote) = (selectors(one), selectors(ours));
    plan.gateway.pools.clear();
    let child = |local: Selectors, remote: Selectors| ChildConfig {
        name: "two".into(),
        mode: Default::default(),
        esp_proposals: vec![ESP_CBC],
        ts_local: local,
        ts_remote: remote,
    };
    plan.client.more_children = vec![child(selectors(ours), selectors(two))];
    plan.gateway.more_children = vec![child(selectors(two), selectors(ours))];
    plan.client_policy.trap = true;
    plan
}

/// A client that waits for packets.
fn trapped(plan: Plan) -> Lab {
    let mut lab = Lab::new(plan);
    lab.world.net.capture.set_on(true);
    lab.world.command(lab.client, Command::Trap(CONNECTION)).expect("a trap");
    lab.rest();
    lab
}

fn packet(to: &str) -> Packet {
    let ts = |text: &str| text.parse::<TrafficSelector>().expect("a selector");
    Packet { local: ts("10.7.0.1[tcp/40000]"), remote: ts(&format!("{to}[tcp/80]")) }
}

/// What the CHILD_SAs of the client reach, sorted.
fn reaches(lab: &Lab) -> Vec<String> {
    let of = |child: &bewick_ike::ChildSa| format!("{:?}", child.ts_remote);
    let mut nets: Vec<String> = lab.children(lab.client).iter().map(of).collect();
    nets.sort();
    nets
}

/// How often the trap for this CHILD_SA was set.
fn set(lab: &Lab, child: usize) -> u32 {
    lab.world.end(lab.client).machine.trap(child).unwrap_or_default()
}

#[test]
fn rfc_4301_5_1_nothing_is_sent_before_the_first_packet_and_that_makes_its_own_child_sa() {
    let mut lab = trapped(sites());
    lab.seconds(600);
    assert_eq!((set(&lab, 0), set(&lab, 1)), (1, 1));
    assert_eq!(lab.world.net.capture.records().len(), 0, "{}", lab.story());
    // The second of the configuration is asked for first: it goes into IKE_AUTH.
    lab.world.caught(lab.client, 1, packet("10.2.0.9"));
    lab.rest();
    assert_ne!(lab.world.net.capture.records().len(), 0);
    assert!(lab.is_up(), "{}", lab.story());
    assert_eq!(reaches(&lab), ["[10.2.0.0/16]"]);
    assert_eq!(lab.children(lab.client)[0].suite, ESP_CBC.suite, "with its own proposals");
    assert_eq!((set(&lab, 0), set(&lab, 1)), (1, 2), "the trap is set again");
    // The other one is made by CREATE_CHILD_SA, on the same IKE_SA.
    lab.world.caught(lab.client, 0, packet("10.1.0.9"));
    lab.rest();
    assert_eq!(reaches(&lab), ["[10.1.0.0/16]", "[10.2.0.0/16]"], "{}", lab.story());
    assert!(lab.children(lab.client).iter().any(|child| child.suite == ESP_GCM.suite));
    assert_eq!(lab.sas(lab.client).len(), 1);
    assert_eq!(lab.count(lab.client, "established"), 1);
}

#[test]
fn rfc_4301_5_1_any_number_of_packets_leads_to_one_try() {
    let mut lab = trapped(sites());
    for _ in 0..1000 {
        lab.world.caught(lab.client, 0, packet("10.1.0.9"));
        lab.world.caught(lab.client, 1, packet("10.2.0.9"));
    }
    lab.rest();
    for _ in 0..1000 {
        lab.world.caught(lab.client, 0, packet("10.1.0.9"));
    }
    lab.seconds(3);
    assert_eq!(lab.count(lab.client, "connecting"), 1, "{}", lab.story());
    assert_eq!(lab.count(lab.client, "wanted"), 2);
    assert_eq!(reaches(&lab), ["[10.1.0.0/16]", "[10.2.0.0/16]"]);
}

#[test]
fn rfc_4301_5_1_after_a_failure_the_trap_stays_and_is_asked_ever_less_often() {
    let mut plan = sites();
    plan.second_uplink = false;
    let mut lab = trapped(plan);
    lab.cut(true);
    let mut again = Vec::new();
    for round in 0..6 {
        lab.world.caught(lab.client, 0, packet("10.1.0.9"));
        let (tried, before) = (lab.world.now(), set(&lab, 0));
        while set(&lab, 0) == before {
            // Whatever comes meanwhile changes nothing.
            lab.world.caught(lab.client, 0, packet("10.1.0.9"));
            lab.ms(500);
            assert!(lab.world.now().since(tried).as_secs() < 120, "{}", lab.story());
        }
        assert_eq!(lab.count(lab.client, "connecting"), round + 1, "{}", lab.story());
        let held = lab.events(lab.client).into_iter().rev().find_map(|event| match event {
            Event::HeldOff { after, .. } => Some(after.as_secs()),
            _ => None,
        });
        again.push(held.expect("it is told"));
    }
    assert_eq!(again, [5, 10, 20, 40, 60, 60]);
    // Once the peer is there again, the next packet brings it up.
    lab.cut(false);
    lab.world.caught(lab.client, 0, packet("10.1.0.9"));
    lab.rest();
    assert!(lab.is_up(), "{}", lab.story());
    // And the next failure begins with the shortest time.
    lab.world.command(lab.gateway, Command::Down(CONNECTION)).expect("down");
    lab.seconds(2);
    lab.cut(true);
    lab.world.caught(lab.client, 0, packet("10.1.0.9"));
    lab.seconds(40);
    let last = lab.events(lab.client).into_iter().rev().find_map(|event| match event {
        Event::HeldOff { after, .. } => Some(after.as_secs()),
        _ => None,
    });
    assert_eq!(last, Some(5), "{}", lab.story());
}

#[test]
fn rfc_4301_5_1_after_a_delete_the_next_packet_makes_it_anew() {
    let mut lab = trapped(sites());
    for round in 1..4 {
        lab.world.caught(lab.client, 0, packet("10.1.0.9"));
        lab.rest();
        assert!(lab.is_up(), "{}", lab.story());
        lab.world.command(lab.gateway, Command::Down(CONNECTION)).expect("down");
        lab.seconds(30);
        assert!(lab.is_empty(), "nobody asks for it: {}", lab.story());
        assert_eq!(lab.count(lab.client, "established"), round);
        assert_eq!(set(&lab, 0), 1 + u32::try_from(round).expect("few"), "{}", lab.story());
    }
    assert_eq!(lab.count(lab.client, "held-off"), 0, "{}", lab.story());
}

#[test]
fn rfc_4301_5_1_a_peer_that_deletes_at_once_is_not_asked_in_a_loop() {
    let mut lab = trapped(sites());
    for _ in 0..50 {
        lab.world.caught(lab.client, 0, packet("10.1.0.9"));
        lab.ms(100);
        let _ = lab.world.command(lab.gateway, Command::Down(CONNECTION));
        lab.ms(100);
    }
    // After 1, 2 and 4 s.
    let tries = lab.count(lab.client, "connecting");
    assert!((3..=5).contains(&tries), "{tries} in 10 s: {}", lab.story());
    assert_ne!(lab.count(lab.client, "held-off"), 0, "it is told");
    for _ in 0..3000 {
        lab.world.caught(lab.client, 0, packet("10.1.0.9"));
        lab.ms(100);
        let _ = lab.world.command(lab.gateway, Command::Down(CONNECTION));
        lab.ms(100);
    }
    // And in the end once a minute.
    let more = lab.count(lab.client, "connecting") - tries;
    assert!((10..=14).contains(&more), "{more} in 10 minutes: {}", lab.story());
    // One that lasts ends that.
    lab.seconds(60);
    lab.world.caught(lab.client, 0, packet("10.1.0.9"));
    lab.seconds(20);
    let before = lab.count(lab.client, "connecting");
    for _ in 0..2 {
        assert!(lab.is_up(), "{}", lab.story());
        lab.world.command(lab.gateway, Command::Down(CONNECTION)).expect("down");
        lab.ms(500);
        lab.world.caught(lab.client, 0, packet("10.1.0.9"));
        lab.seconds(20);
    }
    assert_eq!(lab.count(lab.client, "connecting"), before + 2);
}

#[test]
fn rfc_4301_5_1_a_packet_that_comes_right_after_a_delete_is_not_forgotten() {
    let mut lab = trapped(sites());
    lab.world.caught(lab.client, 0, packet("10.1.0.9"));
    lab.ms(200);
    assert!(lab.is_up(), "{}", lab.story());
    lab.world.command(lab.gateway, Command::Down(CONNECTION)).expect("down");
    lab.ms(200);
    // No other packet comes: this one may be the first of three that a program sends.
    lab.world.caught(lab.client, 0, packet("10.1.0.9"));
    lab.ms(100);
    assert!(!lab.is_up(), "too soon");
    lab.seconds(2);
    assert!(lab.is_up(), "{}", lab.story());
    assert_eq!((lab.count(lab.client, "connecting"), lab.count(lab.client, "held-off")), (2, 0));
}

#[test]
fn rfc_4301_5_1_what_the_data_plane_can_not_catch_is_asked_for_again() {
    let mut lab = trapped(sites());
    let before = set(&lab, 0);
    lab.world.uncaught(lab.client, 0);
    lab.seconds(59);
    assert_eq!(set(&lab, 0), before);
    lab.seconds(2);
    assert_eq!((set(&lab, 0), set(&lab, 1)), (before + 1, 1));
}

#[test]
fn rfc_4301_5_1_a_child_sa_that_is_refused_is_held_off_and_the_ike_sa_stays() {
    let mut plan = sites();
    plan.gateway.more_children.clear();
    let mut lab = trapped(plan);
    lab.world.caught(lab.client, 0, packet("10.1.0.9"));
    lab.rest();
    lab.world.caught(lab.client, 1, packet("10.2.0.9"));
    lab.rest();
    assert!(lab.is_up(), "{}", lab.story());
    assert_eq!(lab.count(lab.client, "held-off"), 1, "{}", lab.story());
    assert_eq!(set(&lab, 1), 1, "it is silent");
    lab.seconds(5);
    assert_eq!(set(&lab, 1), 2, "{}", lab.story());
    // The machine does not ask again by itself.
    let refused = lab.count(lab.client, "refused");
    lab.seconds(600);
    assert_eq!(lab.count(lab.client, "refused"), refused, "{}", lab.story());
}

#[test]
fn rfc_4301_5_1_what_the_data_plane_refuses_is_held_off_too() {
    let mut lab = trapped(sites());
    // The first one with its IKE_SA, the other one beside it.
    for (child, net) in [(0, "10.1.0.9"), (1, "10.2.0.9")] {
        let (held, refused) = (lab.count(lab.client, "held-off"), lab.reasons(lab.client).len());
        lab.world.end_mut(lab.client).plane.refuse_next(1);
        lab.world.caught(lab.client, child, packet(net));
        lab.seconds(3);
        assert_eq!(reaches(&lab).len(), child, "{}", lab.story());
        assert_eq!(lab.children(lab.gateway).len(), child, "{}", lab.story());
        assert_eq!(lab.count(lab.client, "held-off"), held + 1, "{}", lab.story());
        lab.seconds(300);
        assert_eq!(lab.count(lab.client, "held-off"), held + 1, "{}", lab.story());
        assert!(lab.reasons(lab.client).len() <= refused + 2, "{}", lab.story());
        lab.world.caught(lab.client, child, packet(net));
        lab.seconds(3);
        assert_eq!(reaches(&lab).len(), child + 1, "{}", lab.story());
    }
}

#[test]
fn rfc_4301_5_1_where_no_trap_is_set_a_packet_starts_nothing() {
    let mut lab = trapped(sites());
    lab.world.caught(lab.client, 2, packet("10.1.0.9"));
    lab.world.command(lab.client, Command::Down(CONNECTION)).expect("down");
    assert_eq!(lab.world.end(lab.client).machine.trap(0), None, "the trap goes with it");
    lab.world.caught(lab.client, 0, packet("10.1.0.9"));
    lab.seconds(10);
    assert_eq!(lab.world.net.capture.records().len(), 0, "{}", lab.story());
    // And is there again with the connection, which then comes up whole.
    lab.up();
    lab.rest();
    assert_eq!(reaches(&lab), ["[10.1.0.0/16]", "[10.2.0.0/16]"], "{}", lab.story());
    assert_eq!((set(&lab, 0), set(&lab, 1)), (1, 1));
}

#[test]
fn rfc_4301_5_1_up_makes_what_no_packet_has_asked_for() {
    let mut lab = trapped(sites());
    lab.world.caught(lab.client, 1, packet("10.2.0.9"));
    lab.rest();
    assert_eq!(reaches(&lab), ["[10.2.0.0/16]"]);
    lab.world.command(lab.client, Command::Up(CONNECTION)).expect("up");
    lab.rest();
    assert_eq!(reaches(&lab), ["[10.1.0.0/16]", "[10.2.0.0/16]"], "{}", lab.story());
    assert_eq!(lab.sas(lab.client).len(), 1);
}

#[test]
fn rfc_4301_5_1_a_tunnel_made_for_a_packet_moves_while_another_packet_waits() {
    let mut lab = trapped(sites());
    lab.world.caught(lab.client, 1, packet("10.2.0.9"));
    lab.rest();
    let lte = lab.lte();
    lab.move_to(lte);
    lab.world.caught(lab.client, 0, packet("10.1.0.9"));
    lab.seconds(2);
    assert_eq!(reaches(&lab), ["[10.1.0.0/16]", "[10.2.0.0/16]"], "{}", lab.story());
    let address = lab.address(lte);
    for (end, children) in [(lab.client, 2), (lab.gateway, 2)] {
        assert_eq!(lab.children(end).len(), children);
    }
    let all = lab.children(lab.client);
    assert!(all.iter().all(|child| child.path.local.ip() == address), "{}", lab.story());
}

#[test]
fn k_2_9_1_a_gateway_that_narrows_keeps_the_packet_that_asked() {
    let mut plan = sites();
    // It takes no more than one of the hosts and a network, and the packet's is the former.
    plan.gateway.ts_local = selectors(&["10.1.5.0/24", "10.1.0.9/32"]);
    let mut lab = trapped(plan);
    lab.world.caught(lab.client, 0, packet("10.1.0.9"));
    lab.rest();
    assert!(lab.is_up(), "{}", lab.story());
    assert_eq!(reaches(&lab), ["[10.1.0.9/32, 10.1.5.0/24]"], "the packet's comes first");
    // What it has left out is not asked for again and again.
    lab.world.caught(lab.client, 0, packet("10.1.9.9"));
    lab.seconds(59);
    assert_eq!((lab.count(lab.client, "held-off"), set(&lab, 0)), (1, 2), "{}", lab.story());
    lab.seconds(1);
    assert_eq!(set(&lab, 0), 3, "{}", lab.story());
}

#[test]
fn k_2_8_3_1_a_reauthentication_makes_what_there_was() {
    let mut plan = sites();
    plan.client.reauth_lifetime = std::time::Duration::from_secs(300);
    let mut lab = trapped(plan);
    lab.world.caught(lab.client, 1, packet("10.2.0.9"));
    lab.rest();
    let old = lab.sas(lab.client)[0].spis;
    lab.seconds(310);
    assert!(lab.is_up(), "{}", lab.story());
    assert_ne!(lab.sas(lab.client)[0].spis, old);
    assert_eq!(reaches(&lab), ["[10.2.0.0/16]"], "{}", lab.story());
}

/// Traps as a data plane has them: silent from the first packet on until they are set again.
struct Silent([u32; 2]);

impl Silent {
    /// A packet for a CHILD_SA that no CHILD_SA carries; told if the trap is not silent.
    fn packet(&mut self, lab: &mut Lab, child: usize) {
        let (to, net) = [("10.1.0.9", "10.1."), ("10.2.0.9", "10.2.")][child];
        let carried =
            lab.children(lab.client).iter().any(|c| format!("{:?}", c.ts_remote).contains(net));
        if !carried && set(lab, child) > self.0[child] {
            self.0[child] = set(lab, child);
            lab.world.caught(lab.client, child, packet(to));
        }
    }
}

#[test]
fn rfc_4301_5_1_whatever_happens_no_trap_stays_silent() {
    for seed in 0..400 {
        let mut plan = sites();
        plan.seed = seed;
        for config in [&mut plan.client, &mut plan.gateway] {
            config.liveness = std::time::Duration::from_secs(10);
            config.retransmission.give_up = std::time::Duration::from_secs(40);
        }
        let (mut lab, mut random) = (trapped(plan), stream(seed, "traps"));
        let mut silent = Silent([0; 2]);
        for _ in 0..40 {
            let child = usize::from(below(&mut random, 2) == 0);
            let end = if below(&mut random, 2) == 0 { lab.client } else { lab.gateway };
            match below(&mut random, 10) {
                0..4 => silent.packet(&mut lab, child),
                4 => lab.cut(true),
                5 => lab.cut(false),
                6 => drop(lab.world.command(lab.gateway, Command::Down(CONNECTION))),
                7 => drop(lab.world.command(end, Command::Rekey(CONNECTION))),
                8 => drop(lab.world.command(end, Command::RekeyIke(CONNECTION))),
                _ => {
                    let uplink = if child == 0 { lab.wlan } else { lab.lte() };
                    let target = MoveTarget::Interface(interface(uplink));
                    drop(lab.world.command(lab.client, Command::Move(CONNECTION, target)));
                }
            }
            lab.ms(below(&mut random, 4000));
        }
        lab.cut(false);
        lab.seconds(120);
        for child in [0, 1] {
            silent.packet(&mut lab, child);
            lab.seconds(3);
        }
        assert_eq!(reaches(&lab), ["[10.1.0.0/16]", "[10.2.0.0/16]"], "{seed}: {}", lab.story());
        assert_eq!(lab.sas(lab.client).len(), 1, "{seed}: {}", lab.story());
        assert_eq!(lab.children(lab.gateway).len(), 2, "{seed}: {}", lab.story());
    }
}
