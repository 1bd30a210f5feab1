//! How many IKE_SAs there are with one peer (RFC 7296 §2.4).

use std::time::Duration;

use bewick_ike::{
    CloseReason, ConnectionConfig, ConnectionId, Endpoint, Random, Tag, Time,
    config::{Role, Uniqueness},
    extension::Plain,
    wire::{ExchangeType, NotifyType, Payload},
};
use bewick_mobike::{Command, ConnectionPolicy, Host, HostConfig};
use bewick_tests::{
    Lab, Plan,
    hand::{Hand, Said, esp_proposal, everything, full_auth_of, full_auth_response, respond, say},
    lab::{client_config, gateway_config, ip, selectors},
    node::Node,
    puppet::{kinds, notify},
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
    let host = Host::new(HostConfig { connections, ..HostConfig::default() }, random);
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
        let (ms, time) = (Duration::from_millis(1), Duration::from_secs(10));
        let there = lab.world.start_flow(client, gateway, ms, time);
        let back = lab.world.start_flow(gateway, client, ms, time);
        lab.seconds(60);
        assert!(lab.is_up(), "seed {seed}: {}", lab.story());
        for flow in [there, back] {
            // Nothing is sent on the one that goes once its DELETE is under way, and what comes on it is taken.
            let lost = lab.world.flow(flow).lost();
            assert!(lost.is_empty(), "seed {seed}: {lost:?}, {}", lab.story());
        }
    }
}

/// RFC 7296 §2.4: a peer that takes our IKE_AUTH late may end the IKE_SA that it has started meanwhile, without a
/// word, for our INITIAL_CONTACT says that there is none. What is left is the one that both have.
#[test]
fn k_2_4_2_what_the_peer_has_ended_because_of_our_initial_contact_goes() {
    // Whichever of the two would be the one to go for its SPIs.
    for seed in 0..8 {
        let answer = ConnectionConfig {
            remote_id: "vpn.example.com".parse().expect("an identity"),
            local_id: LAPTOP.parse().expect("an identity"),
            ..gateway_config()
        };
        let connections = vec![client_config(), answer];
        let mut ours = Endpoint::new(Random::from_seed([seed; 32]), connections, false);
        let mut late = Hand::answer(&mut ours, &[]);
        let mut theirs = Hand::initiate(&mut ours, &[]);
        let auth = full_auth_of(&theirs, "vpn.example.com");
        say(&mut ours, &mut theirs, (ExchangeType::IKE_AUTH, false, 1), &auth);
        let first = standing(&ours);
        assert_eq!(first.len(), 1, "the peer's");
        let response = full_auth_response(&late);
        respond(&mut ours, &mut late, (ExchangeType::IKE_AUTH, 1), &response);
        assert_eq!(standing(&ours).len(), 2);
        // It is asked at once, and does not answer.
        ours.timeout(Time::from_micros(1), &mut Plain);
        let said = theirs.hear(&mut ours);
        assert!(matches!(&said.requests[..], [(_, p)] if p.is_empty()), "{said:?}");
        ours.timeout(Time::from_micros(2_100_000), &mut Plain);
        theirs.hear(&mut ours);
        ours.timeout(Time::from_micros(4_900_000), &mut Plain);
        let left = standing(&ours);
        assert_eq!(left.len(), 1, "seed {seed}");
        assert_ne!(left, first, "ours is the one that both have");
    }
}

/// The kernel looks whether what comes is protected as its policy says, which names one reqid: as long as both
/// stand the peer may send on either.
#[test]
fn k_2_4_2_what_was_started_from_either_end_is_bound_to_the_same_policies() {
    let mut lab = Lab::new(Plan { second_uplink: false, ..Plan::default() });
    let (a, b) = (("a.example.com", "10.2.0.0/16"), ("b.example.com", "10.1.0.0/16"));
    let (client, gateway) = (lab.client, lab.gateway);
    lab.world.restart(client, site(1, a, b, "192.0.2.1"));
    lab.world.restart(gateway, site(1, b, a, "198.51.100.2"));
    for end in [client, gateway] {
        lab.world.command(end, Command::Up(ConnectionId(0))).expect("a connection");
    }
    lab.ms(400);
    for end in [client, gateway] {
        let children = lab.children(end);
        let [one, other] = &children[..] else { panic!("{}", lab.story()) };
        assert_eq!(one.reqid, other.reqid, "{}", lab.story());
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

const LAPTOP: &str = "laptop@example.com";

fn endpoint(uniqueness: Uniqueness) -> Endpoint {
    let config = ConnectionConfig { uniqueness, ..gateway_config() };
    Endpoint::new(Random::from_seed([3; 32]), vec![config], false)
}

fn initial_contact() -> Payload {
    notify(NotifyType::INITIAL_CONTACT, [])
}

/// A peer of this identity comes, and says INITIAL_CONTACT or not; `spoilt` spoils its AUTH.
fn come(endpoint: &mut Endpoint, who: &str, first: bool, spoilt: &[u8]) -> (Hand, Said) {
    let mut hand = Hand::initiate(endpoint, &[]);
    let mut auth = full_auth_of(&hand, who);
    if let Payload::Authentication { data, .. } = &mut auth[1] {
        data.extend_from_slice(spoilt);
    }
    auth.extend(first.then(initial_contact));
    let said = say(endpoint, &mut hand, (ExchangeType::IKE_AUTH, false, 1), &auth);
    (hand, said)
}

/// The IKE_SAs that stand, the oldest first.
fn standing(endpoint: &Endpoint) -> Vec<u64> {
    let stands = endpoint.status().filter(|sa| sa.state == "established");
    stands.map(|sa| sa.id.0).collect()
}

/// RFC 7296 §2.4: INITIAL_CONTACT is for the first IKE_AUTH. In a later message it would end what the
/// peer has begun since, so that it is passed over there.
#[test]
fn k_2_4_2_initial_contact_outside_ike_auth_is_ignored() {
    let mut gateway = endpoint(Uniqueness::Never);
    let (_, said) = come(&mut gateway, LAPTOP, false, &[]);
    assert!(said.closed.is_none(), "{said:?}");
    let (mut hand, _) = come(&mut gateway, LAPTOP, false, &[]);
    let both = standing(&gateway);
    assert_eq!(both.len(), 2);
    let contact = initial_contact();
    let informational = (ExchangeType::INFORMATIONAL, false, 2);
    let said = say(&mut gateway, &mut hand, informational, std::slice::from_ref(&contact));
    assert_eq!(said.answer, Some(Vec::new()));
    assert_eq!((said.outputs, standing(&gateway)), (1, both.clone()), "INFORMATIONAL");
    let create = [
        contact.clone(),
        esp_proposal(0x5555_6666),
        Payload::Nonce(vec![7; 32]),
        Payload::TsInitiator(vec![everything()]),
        Payload::TsResponder(vec![everything()]),
    ];
    let said = say(&mut gateway, &mut hand, (ExchangeType::CREATE_CHILD_SA, false, 3), &create);
    assert!(said.closed.is_none() && said.answer.is_some(), "{said:?}");
    assert_eq!(standing(&gateway), both, "CREATE_CHILD_SA");
    let id = gateway.status().last().expect("the second").id;
    assert!(gateway.request(Time::ZERO, id, &[], Tag::Liveness, &mut Plain));
    hand.hear(&mut gateway);
    say(&mut gateway, &mut hand, (ExchangeType::INFORMATIONAL, true, 0), &[contact]);
    assert_eq!(standing(&gateway), both, "in a response");
}

/// "keep" is for a peer that is alive. INITIAL_CONTACT says that it knows of no IKE_SA, so that what is
/// kept for it is dead (RFC 7296 §2.4); but only the peer itself can say so.
#[test]
fn k_2_4_2_keep_gives_way_to_a_proven_initial_contact_alone() {
    let mut gateway = endpoint(Uniqueness::Keep);
    come(&mut gateway, LAPTOP, false, &[]);
    let first = standing(&gateway);
    assert_eq!(first.len(), 1);
    for (initial, proof) in [(false, &[][..]), (true, &[1]), (false, &[1])] {
        let (_, said) = come(&mut gateway, LAPTOP, initial, proof);
        let answer = said.answer.expect("an answer");
        assert_eq!(kinds(&answer), [NotifyType::AUTHENTICATION_FAILED], "{initial}, {proof:?}");
        assert_eq!(standing(&gateway), first, "{initial}, {proof:?}");
    }
    // Somebody else's first contact is no business of this one's.
    come(&mut gateway, "other@example.com", true, &[]);
    let two = standing(&gateway);
    assert_eq!((two.len(), two[0]), (2, first[0]));
    let (_, said) = come(&mut gateway, LAPTOP, true, &[]);
    assert_eq!(said.closed, Some(CloseReason::Replaced), "without a DELETE: nobody is there");
    let now = standing(&gateway);
    assert!(now.len() == 2 && now[0] == two[1] && !now.contains(&first[0]), "{now:?}");
}

/// What one identity can take up has an end, also where its IKE_SAs stand side by side.
#[test]
fn k_2_4_2_never_keeps_sixteen_of_one_identity_and_the_oldest_goes() {
    let mut gateway = endpoint(Uniqueness::Never);
    come(&mut gateway, "other@example.com", false, &[]);
    let mut hands: Vec<Hand> = (0..16).map(|_| come(&mut gateway, LAPTOP, false, &[]).0).collect();
    let soon = |ms: u64| Time::from_micros(ms * 1000);
    gateway.timeout(soon(2500), &mut Plain);
    let full = standing(&gateway);
    assert_eq!(full.len(), 17, "sixteen and the other one");
    hands.push(come(&mut gateway, LAPTOP, false, &[]).0);
    // The oldest stays until the new one carries traffic (RFC 7296 §2.8.3), and then gets a DELETE.
    gateway.timeout(soon(1900), &mut Plain);
    assert_eq!(standing(&gateway).len(), 18);
    gateway.timeout(soon(2100), &mut Plain);
    let said = hands[0].hear(&mut gateway);
    assert!(matches!(&said.requests[..], [(_, p)] if matches!(p[..], [Payload::Delete(_)])));
    let left = standing(&gateway);
    assert_eq!(left.len(), 17, "{left:?}");
    assert!(left.contains(&full[0]), "that of the other one, though older, is not counted");
    assert!(!left.contains(&full[1]), "the oldest of its own goes");
}
