//! Virtual addresses and what else a gateway tells (RFC 7296 §2.19, §3.15; RFC 8598).

use bewick_ike::CloseReason;
use bewick_mobike::{Command, Event};
use bewick_tests::{
    Lab, Plan,
    lab::{ip, selectors},
};

#[test]
fn k_rfc_8598_domains_and_networks_are_told_with_the_servers_and_never_without() {
    for servers in [true, false] {
        let mut plan = Plan::default();
        plan.gateway.dns_domains = vec!["corp.example.com".into()];
        if !servers {
            plan.gateway.dns.clear();
        }
        let lab = Lab::established(plan);
        let news = lab.events(lab.client).into_iter().find_map(|event| match event {
            Event::Established { established, .. } => Some(established.clone()),
            _ => None,
        });
        let news = news.expect("it is up");
        assert_eq!(news.domains.len(), usize::from(servers));
        assert_eq!(news.subnets, ["10.1.0.0/16".parse().expect("a network")]);
    }
}

#[test]
fn k_2_19_1_an_address_that_no_host_can_have_is_refused() {
    for net in ["127.0.0.1/32", "224.0.0.7/32", "255.255.255.255/32"] {
        let mut plan = Plan::default();
        plan.gateway.pools = vec![net.parse().expect("a network")];
        let mut lab = Lab::new(plan);
        lab.up();
        lab.rest();
        assert!(lab.is_empty() || lab.sas(lab.client).is_empty(), "{}", lab.story());
        let told = |r: &CloseReason| r.to_string().contains("which no host can have");
        assert!(lab.reasons(lab.client).iter().any(told), "{}", lab.story());
    }
}

#[test]
fn k_2_19_1_a_refused_child_sa_keeps_no_address_and_its_ike_sa_goes() {
    let mut plan = Plan::default();
    plan.gateway.pools = vec!["10.9.0.7/32".parse().expect("a network")];
    plan.client.ts_remote = selectors(&["10.77.0.0/16"]);
    plan.puppet_client = true;
    let mut lab = Lab::new(plan);
    let client = lab.client;
    lab.world.play(client, |puppet, now| {
        puppet.connect(now, bewick_tests::lab::path("198.51.100.2:500", "192.0.2.1:500"))
    });
    lab.rest();
    assert!(lab.children(lab.gateway).is_empty(), "{}", lab.story());
    lab.seconds(60);
    assert!(lab.sas(lab.gateway).is_empty(), "{}", lab.story());
}

#[test]
fn k_2_19_1_a_client_that_comes_back_has_its_address_again() {
    let mut lab = Lab::established(Plan::default());
    assert_eq!(lab.children(lab.client)[0].virtual_ips, [ip("10.9.0.1")]);
    let (client, connection) = (lab.client, bewick_ike::ConnectionId(0));
    lab.world.command(client, Command::Down(connection)).expect("a connection");
    lab.seconds(20);
    lab.world.end_mut(client).events.clear();
    lab.up();
    lab.rest();
    assert_eq!(lab.children(lab.client)[0].virtual_ips, [ip("10.9.0.1")], "{}", lab.story());
}
