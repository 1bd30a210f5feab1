//! IKE_SAs of peers that do not do MOBIKE, and a NAT between them (RFC 7296 §2.23).

use std::time::Duration;

use bewick_mobike::Command;
use bewick_tests::{Lab, Plan};

#[test]
fn k_2_23_2_without_mobike_the_end_that_is_not_behind_a_nat_follows_the_other_s_mapping() {
    let mut plan = Plan { nat_wlan: true, second_uplink: false, ..Plan::default() };
    plan.gateway.mobike = false;
    let mut lab = Lab::established(plan);
    lab.seconds(45);
    let nat = lab.wlan_nat.expect("a NAT");
    let (client, gateway) = (lab.client, lab.gateway);
    let [ours, theirs] = [client, gateway].map(|end| lab.sas(end)[0].path);
    lab.world.net.forget_mappings(nat);
    // The client's next liveness check shows the gateway where it is now.
    let flows = lab.flows(Duration::from_secs(60));
    lab.seconds(62);
    assert!(lab.is_up(), "{}", lab.story());
    assert_ne!(lab.sas(gateway)[0].path.remote, theirs.remote, "{}", lab.story());
    assert_eq!(lab.sas(client)[0].path, ours, "the end behind the NAT stays: {}", lab.story());
    let [out, back] = lab.lost(flows);
    assert!(out.is_empty(), "{}", lab.story());
    assert!(back.len() <= 31_000, "{}", back.len());
    // From then on it is as before.
    let flows = lab.flows(Duration::from_secs(1));
    lab.seconds(2);
    assert_eq!(lab.lost(flows), [[0u64; 0]; 2], "{}", lab.story());
    assert_eq!(lab.count(gateway, "moved"), 1, "{}", lab.story());
}

#[test]
fn k_2_23_2_without_a_nat_nobody_is_followed() {
    let mut plan = Plan::default();
    plan.client.mobike = false;
    let mut lab = Lab::established(plan);
    let (client, gateway) = (lab.client, lab.gateway);
    let before = lab.sas(gateway)[0].path;
    let lte = lab.lte();
    let target = bewick_mobike::MoveTarget::Address(lab.address(lte));
    let moved = lab.world.command(client, Command::Move(bewick_ike::ConnectionId(0), target));
    assert!(moved.is_err(), "the operator is told that it can't move");
    lab.seconds(90);
    assert_eq!(lab.sas(gateway)[0].path, before);
}
