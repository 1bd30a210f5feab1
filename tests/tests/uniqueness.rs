//! How many IKE_SAs there are with one peer (RFC 7296 §2.4).

use std::time::Duration;

use bewick_ike::{
    ConnectionConfig, ConnectionId,
    config::{Role, Uniqueness},
};
use bewick_mobike::{Command, ConnectionPolicy, Host, HostConfig};
use bewick_tests::{
    Lab, Plan,
    lab::{gateway_config, ip, selectors},
    node::Node,
    seed::stream,
};

/// A site's two connections towards the other: one that it starts and one that it answers.
fn site(seed: u64, local: (&str, &str), remote: (&str, &str), gateway: &str) -> Node {
    let answer = ConnectionConfig {
        local_id: local.0.parse().expect("an identity"),
        remote_id: remote.0.parse().expect("an identity"),
        ts_local: selectors(&[local.1]),
        ts_remote: selectors(&[remote.1]),
        pools: Vec::new(),
        ..gateway_config()
    };
    let start = ConnectionConfig { role: Role::Initiator, ..answer.clone() };
    let policy = ConnectionPolicy { keep_up: true, ..ConnectionPolicy::default() };
    let connections = vec![(start, policy.clone()), (answer, policy)];
    let random = stream(seed, local.0);
    let host = Host::new(HostConfig { connections, force_encap: false }, random);
    Node::honest(host, vec![ip(gateway)])
}

#[test]
fn k_2_4_2_two_gateways_that_start_at_once_end_with_one_ike_sa_and_no_gap() {
    for seed in 0..12 {
        let mut lab = Lab::new(Plan { seed, second_uplink: false, ..Plan::default() });
        let (a, b) = (("a.example.com", "10.2.0.0/16"), ("b.example.com", "10.1.0.0/16"));
        let (client, gateway) = (lab.client, lab.gateway);
        lab.world.restart(client, site(seed, a, b, "192.0.2.1"));
        lab.world.restart(gateway, site(seed, b, a, "198.51.100.2"));
        lab.world.command(client, Command::Up(ConnectionId(0))).expect("a connection");
        lab.ms(seed * 5);
        lab.world.command(gateway, Command::Up(ConnectionId(0))).expect("a connection");
        lab.ms(400);
        let (ms, time) = (Duration::from_millis(10), Duration::from_secs(10));
        let there = lab.world.start_flow(client, gateway, ms, time);
        let back = lab.world.start_flow(gateway, client, ms, time);
        lab.seconds(60);
        assert!(lab.is_up(), "seed {seed}: {}", lab.story());
        for flow in [there, back] {
            // What is under way when the one that goes is taken out, and no more.
            let lost = lab.world.flow(flow).lost();
            assert!(lost.len() <= 2, "seed {seed}: {lost:?}, {}", lab.story());
        }
    }
}

#[test]
fn k_2_4_2_uniqueness_decides_about_a_second_ike_sa() {
    for (uniqueness, expected) in
        [(Uniqueness::Replace, 1), (Uniqueness::Keep, 1), (Uniqueness::Never, 2)]
    {
        let mut plan = Plan { puppet_client: true, second_uplink: false, ..Plan::default() };
        plan.gateway.uniqueness = uniqueness;
        let mut lab = Lab::new(plan);
        let client = lab.client;
        let path = bewick_tests::lab::path("198.51.100.2:500", "192.0.2.1:500");
        lab.world.play(client, |puppet, now| puppet.connect(now, path));
        lab.rest();
        let first = lab.sas(lab.gateway)[0].spis;
        // Its first IKE_SA is alive, so that it does not say INITIAL_CONTACT.
        lab.world.play(client, |puppet, now| puppet.connect(now, path));
        // What goes stays for two seconds, for the peer to delete it itself.
        lab.seconds(4);
        let left: Vec<_> = lab.sas(lab.gateway).iter().map(|sa| sa.spis).collect();
        assert_eq!(left.len(), expected, "{uniqueness:?}: {}", lab.story());
        let stays = uniqueness != Uniqueness::Replace;
        assert_eq!(left.contains(&first), stays, "{uniqueness:?}: {}", lab.story());
        assert_eq!(lab.sas(client).len(), expected, "{uniqueness:?}: both ends agree");
    }
}
