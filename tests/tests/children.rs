//! Several CHILD_SAs of one IKE_SA (RFC 7296 §1.3.1), a key exchange of their own for each (§1.3.1,
//! §2.17), and windows of more than one request (§2.3).

use std::time::Duration;

use bewick_ike::{
    ConnectionId,
    config::{ChildConfig, Childless, EspProposal},
    crypto::KeyExchangeMethod,
};
use bewick_mobike::Command;
use bewick_tests::{
    Lab, Link, Plan,
    lab::{ESP_CBC, ESP_GCM, selectors},
    pair::EndId,
};

const CONNECTION: ConnectionId = ConnectionId(0);

fn child(name: &str, net: &str) -> ChildConfig {
    ChildConfig {
        name: name.into(),
        mode: Default::default(),
        esp_proposals: vec![ESP_CBC],
        ts_local: bewick_ike::config::Selectors::Dynamic,
        ts_remote: selectors(&[net]),
    }
}

fn with_three() -> Plan {
    let mut plan = Plan::default();
    plan.client.more_children = vec![child("two", "10.2.0.0/16"), child("three", "10.3.0.0/16")];
    plan.gateway.more_children = plan.client.more_children.clone();
    for child in &mut plan.gateway.more_children {
        std::mem::swap(&mut child.ts_local, &mut child.ts_remote);
    }
    plan
}

/// What each CHILD_SA of an end reaches on the gateway's side, sorted.
fn reaches(lab: &Lab, end: EndId) -> Vec<String> {
    let client = end == lab.client;
    let mut nets: Vec<String> = lab
        .children(end)
        .iter()
        .map(|child| format!("{:?}", if client { &child.ts_remote } else { &child.ts_local }))
        .collect();
    nets.sort();
    nets
}

/// Both ends have the same CHILD_SAs, one for each of the three networks.
fn assert_three(lab: &Lab) {
    let wanted = ["[10.1.0.0/16]", "[10.2.0.0/16]", "[10.3.0.0/16]"];
    assert_eq!(reaches(lab, lab.client), wanted, "{}", lab.story());
    assert_eq!(reaches(lab, lab.gateway), wanted, "{}", lab.story());
    let there = lab.children(lab.gateway);
    for here in lab.children(lab.client) {
        let other = there.iter().find(|there| there.spi_in == here.spi_out);
        let other = other.unwrap_or_else(|| panic!("half a CHILD_SA: {}", lab.story()));
        assert_eq!(here.spi_in, other.spi_out);
        assert_eq!(here.keys_in, other.keys_out);
        assert_eq!(here.keys_out, other.keys_in);
    }
}

#[test]
fn k_1_3_1_1_an_ike_sa_has_several_child_sas_and_all_are_rekeyed_and_moved() {
    let mut lab = Lab::new(with_three());
    lab.up();
    lab.seconds(1);
    assert_three(&lab);
    let reqids: std::collections::BTreeSet<u32> =
        lab.children(lab.client).iter().map(|child| child.reqid).collect();
    assert_eq!(reqids.len(), 3, "one for each");
    for end in [lab.client, lab.gateway] {
        let old = lab.children(end);
        lab.world.command(end, Command::Rekey(CONNECTION)).expect("a rekey");
        lab.seconds(2);
        assert_three(&lab);
        assert!(lab.children(end).iter().all(|new| old.iter().all(|old| old.id != new.id)));
        lab.world.command(end, Command::RekeyIke(CONNECTION)).expect("a rekey");
        lab.seconds(2);
        assert_three(&lab);
    }
    let lte = lab.lte();
    lab.move_to(lte);
    lab.seconds(2);
    assert_three(&lab);
    let address = lab.address(lte);
    assert!(lab.children(lab.client).iter().all(|child| child.path.local.ip() == address));
    assert!(lab.children(lab.gateway).iter().all(|child| child.path.remote.ip() == address));
}

#[test]
fn k_1_3_1_1_a_child_sa_that_the_gateway_does_not_know_leaves_the_others() {
    let mut plan = with_three();
    plan.gateway.more_children.remove(0);
    let mut lab = Lab::new(plan);
    lab.up();
    lab.seconds(1);
    assert_eq!(reaches(&lab, lab.client), ["[10.1.0.0/16]", "[10.3.0.0/16]"], "{}", lab.story());
    assert_eq!(reaches(&lab, lab.gateway), ["[10.1.0.0/16]", "[10.3.0.0/16]"]);
    let told = lab.reasons(lab.client).iter().any(|r| r.to_string().contains("TS_UNACCEPTABLE"));
    assert!(told, "the operator is told why: {}", lab.story());
}

fn with(esp: EspProposal, method: KeyExchangeMethod) -> EspProposal {
    EspProposal { key_exchange: Some(method), ..esp }
}

#[test]
fn k_1_3_1_2_each_rekey_has_a_key_exchange_of_its_own() {
    use KeyExchangeMethod::{Ecp256, X25519};
    let mine = [with(ESP_GCM, X25519), with(ESP_GCM, Ecp256)];
    // The second gateway wants another group than the one that the client guesses.
    for theirs in [vec![mine[0]], vec![mine[1]], vec![mine[1], mine[0]]] {
        for by_client in [true, false] {
            let mut plan = Plan::default();
            plan.client.esp_proposals = mine.to_vec();
            plan.gateway.esp_proposals = theirs.clone();
            let mut lab = Lab::established(plan);
            lab.link(Link::of_delay(Duration::from_millis(10)));
            let flows = lab.flows(Duration::from_secs(2));
            let old = lab.children(lab.client)[0].id;
            let end = if by_client { lab.client } else { lab.gateway };
            lab.world.command(end, Command::Rekey(CONNECTION)).expect("a rekey");
            lab.seconds(3);
            assert!(lab.is_up(), "{}", lab.story());
            assert_ne!(lab.children(lab.client)[0].id, old, "{}", lab.story());
            assert_eq!(lab.lost(flows), [[0u64; 0]; 2], "{}", lab.story());
        }
    }
}

#[test]
fn k_1_3_1_2_without_a_common_key_exchange_the_old_child_sa_stays() {
    let mut plan = Plan::default();
    plan.client.esp_proposals = vec![with(ESP_GCM, KeyExchangeMethod::X25519)];
    plan.gateway.esp_proposals = vec![with(ESP_GCM, KeyExchangeMethod::Ecp384)];
    let mut lab = Lab::established(plan);
    let old = lab.children(lab.client);
    let client = lab.client;
    lab.world.command(client, Command::Rekey(CONNECTION)).expect("a rekey");
    lab.seconds(5);
    assert!(lab.is_up(), "{}", lab.story());
    assert_eq!(lab.children(lab.client), old, "{}", lab.story());
}

/// With windows of more than one, what is outstanding does not stand in the way of anything else; the
/// windows are those that both ends said, and a successor of the IKE_SA has them too.
#[test]
fn k_2_3_1_wide_windows_carry_requests_side_by_side_and_survive_a_rekey() {
    let time_of = |windows: (u32, u32)| {
        let mut plan = with_three();
        (plan.client.window, plan.gateway.window) = windows;
        let mut lab = Lab::new(plan);
        lab.up();
        lab.seconds(1);
        lab.link(Link::of_delay(Duration::from_millis(50)));
        let client = lab.client;
        lab.world.command(client, Command::RekeyIke(CONNECTION)).expect("a rekey");
        lab.seconds(1);
        // A rekey is out, and then the client moves.
        lab.world.command(client, Command::Rekey(CONNECTION)).expect("a rekey");
        lab.ms(10);
        let began = lab.world.now();
        let lte = lab.lte();
        lab.move_to(lte);
        let address = lab.address(lte);
        let gateway = lab.gateway;
        let there = |world: &bewick_tests::pair::World<bewick_tests::Node>| {
            world.end(gateway).plane.path().is_some_and(|path| path.remote.ip() == address)
        };
        lab.world.run_while_not(Duration::from_secs(5), there);
        let took = lab.world.now().since(began);
        lab.seconds(5);
        assert_three(&lab);
        took
    };
    let narrow = time_of((1, 1));
    let wide = time_of((4, 4));
    assert!(wide + Duration::from_millis(80) <= narrow, "{wide:?} and {narrow:?}");
    // A peer that takes one at a time gets one at a time.
    assert_eq!(time_of((4, 1)), narrow);
}

/// RFC 6023: IKE_AUTH makes no CHILD_SA, CREATE_CHILD_SA makes all of them, and a client that moves
/// meanwhile has them where it is.
#[test]
fn rfc_6023_all_child_sas_come_by_create_child_sa() {
    for childless in [Childless::Prefer, Childless::Force] {
        for moves in [false, true] {
            let mut plan = with_three();
            plan.client.childless = childless;
            let mut lab = Lab::new(plan);
            lab.link(Link::of_delay(Duration::from_millis(10)));
            let client = lab.client;
            lab.world.command(client, Command::Up(CONNECTION)).expect("a connection");
            // IKE_AUTH is answered after 40 ms.
            lab.ms(45);
            assert_eq!(lab.count(client, "established"), 1, "{}", lab.story());
            assert!(lab.children(client).is_empty(), "{}", lab.story());
            let lte = lab.lte();
            if moves {
                lab.move_to(lte);
            }
            lab.seconds(60);
            assert_three(&lab);
            let address = lab.address(if moves { lte } else { lab.wlan });
            for child in lab.children(client) {
                assert_eq!(child.path.local.ip(), address, "{}", lab.story());
                assert_eq!(format!("{:?}", child.ts_local), "[10.9.0.1/32]");
            }
            for child in lab.children(lab.gateway) {
                assert_eq!(child.path.remote.ip(), address, "{}", lab.story());
            }
        }
    }
}

#[test]
fn rfc_6023_a_responder_that_does_not_take_it_is_not_asked() {
    for (childless, up) in [(Childless::Prefer, true), (Childless::Force, false)] {
        let mut plan = Plan::default();
        plan.client.childless = childless;
        plan.gateway.childless = Childless::Never;
        let mut lab = Lab::new(plan);
        let client = lab.client;
        lab.world.command(client, Command::Up(CONNECTION)).expect("a connection");
        lab.seconds(2);
        assert_eq!(lab.is_up(), up, "{}", lab.story());
        let told =
            lab.reasons(client).iter().any(|reason| reason.to_string().contains("childless"));
        assert_eq!(told, !up, "{}", lab.story());
    }
}

#[test]
fn rfc_6023_a_responder_that_wants_it_refuses_a_first_child_sa() {
    let mut plan = Plan::default();
    plan.gateway.childless = Childless::Force;
    let mut lab = Lab::new(plan);
    let client = lab.client;
    lab.world.command(client, Command::Up(CONNECTION)).expect("a connection");
    lab.seconds(2);
    assert!(!lab.is_up() && lab.children(client).is_empty(), "{}", lab.story());
}

/// RFC 7296 §2.8.3: each network has a tunnel at every moment.
#[test]
fn k_2_8_3_1_a_reauthentication_makes_all_child_sas_before_it_breaks() {
    let mut plan = with_three();
    plan.client.reauth_lifetime = Duration::from_secs(600);
    let mut lab = Lab::established(plan);
    lab.link(Link::of_delay(Duration::from_millis(20)));
    lab.seconds(1);
    let (client, gateway) = (lab.client, lab.gateway);
    let mut all = reaches(&lab, client);
    all.dedup();
    assert_eq!(all.len(), 3);
    let old = lab.sas(client)[0].spis;
    let mut ms = 0;
    while lab.sas(client).iter().any(|sa| sa.spis == old) {
        for end in [client, gateway] {
            let mut now = reaches(&lab, end);
            now.dedup();
            assert_eq!(now, all, "{}", lab.story());
        }
        lab.ms(5);
        ms += 5;
        assert!(ms < 700_000, "it is reauthenticated: {}", lab.story());
    }
    lab.seconds(5);
    assert_eq!(lab.sas(client).len(), 1);
    assert_eq!(lab.children(client).len(), 3, "{}", lab.story());
    assert_eq!(lab.children(gateway).len(), 3, "{}", lab.story());
}
