//! Traffic selectors with ports and protocols from end to end: what both sides allow is what both install,
//! and an answer with more than that is refused (RFC 7296 §2.9, §3.13.1).

use bewick_ike::{
    ChildSa, CloseReason, ConnectionId, Endpoint, Random, TrafficSelector,
    config::{ChildConfig, Selectors},
    wire::{Delete, ExchangeType, Payload},
};
use bewick_mobike::Command;
use bewick_tests::{
    Lab, Plan,
    hand::{Hand, esp_proposal, full_auth_response, respond, selector},
    lab::{ESP_GCM, client_config},
};

fn list(texts: &[&str]) -> Vec<TrafficSelector> {
    texts.iter().map(|text| selector(text)).collect()
}

/// Two sites without virtual addresses: what the client wants, what the gateway allows, each on the client's
/// side and the gateway's.
fn sites(wants: [&[&str]; 2], allows: [&[&str]; 2]) -> Lab {
    let mut plan = Plan { second_uplink: false, ..Plan::default() };
    plan.client.request_ipv4 = false;
    plan.gateway.pools.clear();
    plan.client.ts_local = Selectors::List(list(wants[0]));
    plan.client.ts_remote = Selectors::List(list(wants[1]));
    plan.gateway.ts_remote = Selectors::List(list(allows[0]));
    plan.gateway.ts_local = Selectors::List(list(allows[1]));
    let mut lab = Lab::new(plan);
    lab.up();
    lab.rest();
    lab
}

fn sides(child: &ChildSa) -> [Vec<TrafficSelector>; 2] {
    [child.ts_local.clone(), child.ts_remote.clone()]
}

type Sides = [&'static [&'static str]; 2];

#[test]
fn k_2_9_1_ports_and_protocols_are_narrowed_to_what_both_sides_allow() {
    let cases: [(&str, Sides, Sides, Sides); 10] = [
        (
            "one port out of all",
            [&["10.2.0.0/24"], &["10.1.0.0/16"]],
            [&["10.2.0.0/16"], &["10.1.0.0/16[tcp/443]"]],
            [&["10.2.0.0/24"], &["10.1.0.0/16[tcp/443]"]],
        ),
        (
            "the client wants less",
            [&["10.2.0.0/24[udp/500]"], &["10.1.0.53[udp/53]"]],
            [&["10.2.0.0/16"], &["10.1.0.0/16"]],
            [&["10.2.0.0/24[udp/500]"], &["10.1.0.53[udp/53]"]],
        ),
        (
            "ranges of ports that overlap",
            [&["10.2.0.0/24"], &["10.1.0.0/16[tcp/1000-2000]"]],
            [&["10.2.0.0/24"], &["10.1.0.0/24[tcp/1500-3000]"]],
            [&["10.2.0.0/24"], &["10.1.0.0/24[tcp/1500-2000]"]],
        ),
        (
            "ranges of addresses that overlap",
            [&["10.2.0.5-10.2.0.20"], &["10.1.0.0/16"]],
            [&["10.2.0.9-10.2.0.99[gre]"], &["10.1.0.0/16"]],
            [&["10.2.0.9-10.2.0.20[gre]"], &["10.1.0.0/16"]],
        ),
        (
            "several on each side, in the order of the offer",
            [&["10.2.0.0/24", "10.3.0.0/24"], &["10.1.0.0/24[tcp/22]", "10.1.0.0/24[udp/53]"]],
            [&["10.3.0.0/16", "10.2.0.0/16"], &["10.1.0.0/16"]],
            [&["10.2.0.0/24", "10.3.0.0/24"], &["10.1.0.0/24[tcp/22]", "10.1.0.0/24[udp/53]"]],
        ),
        (
            "of several those that are allowed",
            [&["10.2.0.0/24"], &["10.1.0.0/24[tcp/22]", "10.7.0.0/24", "10.1.0.0/24[udp/53]"]],
            [&["10.2.0.0/24"], &["10.1.0.0/16[udp]"]],
            [&["10.2.0.0/24"], &["10.1.0.0/24[udp/53]"]],
        ),
        (
            "a protocol that the other side has not goes",
            [&["10.2.0.0/24[tcp]"], &["10.1.0.0/24[udp/53]", "10.1.0.0/24[tcp/22]"]],
            [&["10.2.0.0/24"], &["10.1.0.0/16"]],
            [&["10.2.0.0/24[tcp]"], &["10.1.0.0/24[tcp/22]"]],
        ),
        (
            "both families",
            [&["10.2.0.0/24", "2001:db8:2::/48"], &["10.1.0.0/16", "2001:db8:1::/48"]],
            [&["10.2.0.0/24", "2001:db8::/32"], &["2001:db8:1::/48[tcp/443]", "10.1.0.0/16"]],
            [&["10.2.0.0/24", "2001:db8:2::/48"], &["10.1.0.0/16", "2001:db8:1::/48[tcp/443]"]],
        ),
        (
            "a family that the other side has not goes",
            [&["10.2.0.0/24", "2001:db8:2::/48"], &["2001:db8:1::/48", "10.1.0.0/16[udp]"]],
            [&["10.2.0.0/16"], &["10.1.0.0/16", "2001:db8:1::/48"]],
            [&["10.2.0.0/24"], &["10.1.0.0/16[udp]"]],
        ),
        (
            "kinds of ICMP messages, and ports that can't be seen",
            [&["10.2.0.0/24"], &["10.1.0.0/16[icmp/8]", "10.1.0.0/16[udp/opaque]"]],
            [&["10.2.0.0/24"], &["10.1.0.0/16"]],
            [&["10.2.0.0/24"], &["10.1.0.0/16[icmp/8]", "10.1.0.0/16[udp/opaque]"]],
        ),
    ];
    for (name, wants, allows, agreed) in cases {
        let mut lab = sites(wants, allows);
        let [ours, theirs] = agreed.map(list);
        // A successor has the same (RFC 7296 §2.9.2), whoever asks for it.
        for rekeys in [None, Some(lab.client), Some(lab.gateway)] {
            if let Some(end) = rekeys {
                let old = lab.children(end)[0].id;
                lab.world.command(end, Command::Rekey(ConnectionId(0))).expect("a rekey");
                lab.rest();
                assert_ne!(lab.children(end)[0].id, old, "{name}: {}", lab.story());
            }
            assert!(lab.is_up(), "{name}, {rekeys:?}: {}", lab.story());
            let here = sides(&lab.children(lab.client)[0]);
            let there = sides(&lab.children(lab.gateway)[0]);
            assert_eq!(here, [ours.clone(), theirs.clone()], "{name}, {rekeys:?}");
            assert_eq!(there, [theirs.clone(), ours.clone()], "{name}, {rekeys:?}");
        }
    }
}

#[test]
fn k_2_9_1_selectors_that_no_packet_fits_are_ts_unacceptable() {
    let cases: [(Sides, Sides); 6] = [
        ([&["10.2.0.0/24"], &["10.1.0.0/16[tcp]"]], [&["10.2.0.0/24"], &["10.1.0.0/16[udp]"]]),
        (
            [&["10.2.0.0/24"], &["10.1.0.0/16[tcp/1-99]"]],
            [&["10.2.0.0/24"], &["10.1.0.0/16[tcp/100]"]],
        ),
        (
            [&["10.2.0.0/24"], &["10.1.0.0/16[udp/opaque]"]],
            [&["10.2.0.0/24"], &["10.1.0.0/16[udp/1-65535]"]],
        ),
        ([&["10.2.0.0/24"], &["10.1.0.0/16"]], [&["10.2.0.0/24[tcp]"], &["10.1.0.0/16[udp]"]]),
        ([&["10.2.0.0/24"], &["10.1.0.0/16"]], [&["10.2.0.0/24"], &["2001:db8:1::/48"]]),
        (
            [&["10.2.0.0/24"], &["2001:db8:1::/48"]],
            [&["10.2.0.0/24"], &["10.1.0.0/16", "2001:db8:1::/48"]],
        ),
    ];
    for (wants, allows) in cases {
        let lab = sites(wants, allows);
        assert!(lab.children(lab.client).is_empty(), "{wants:?}: {}", lab.story());
        assert!(lab.children(lab.gateway).is_empty(), "{wants:?}: {}", lab.story());
        let told = |reason: &CloseReason| reason.to_string().contains("TS_UNACCEPTABLE");
        assert!(lab.reasons(lab.client).iter().any(told), "{wants:?}: {}", lab.story());
    }
}

/// What the client offers in the tests below, on its side and the gateway's.
const OFFER: Sides =
    [&["10.2.0.0/24", "2001:db8:2::/48"], &["10.1.0.0/16[tcp/443-444]", "2001:db8:1::/48"]];

/// Answers to that, and whether they stay inside it.
const ANSWERS: [(bool, Sides); 12] = [
    (true, OFFER),
    (true, [&["10.2.0.0/24"], &["10.1.0.0/16[tcp/443]"]]),
    (true, [&["10.2.0.7"], &["10.1.7.0/24[tcp/443-444]"]]),
    (true, [&["2001:db8:2::/64[udp]"], &["2001:db8:1::/64[udp/53]"]]),
    // more addresses, ports, protocols or families than were offered
    (false, [&["10.2.0.0/23"], &["10.1.0.0/16[tcp/443]"]]),
    (false, [&["10.2.0.0/24"], &["10.0.0.0/15[tcp/443]"]]),
    (false, [&["10.2.0.0/24"], &["10.1.0.0/16[tcp/443-445]"]]),
    (false, [&["10.2.0.0/24"], &["10.1.0.0/16[tcp]"]]),
    (false, [&["10.2.0.0/24"], &["10.1.0.0/16"]]),
    (false, [&["10.2.0.0/24"], &["10.1.0.0/16[udp/443]"]]),
    // one of two is wider
    (false, [&["10.2.0.0/24"], &["10.1.0.0/16[tcp/443]", "10.1.0.0/16[tcp/1]"]]),
    // each side is inside, and no packet has both families
    (false, [&["10.2.0.0/24"], &["2001:db8:1::/48"]]),
];

fn client(more: bool) -> Endpoint {
    let mut config = client_config();
    let (ts_local, ts_remote) = (Selectors::List(list(OFFER[0])), Selectors::List(list(OFFER[1])));
    if more {
        let esp_proposals = vec![ESP_GCM];
        let child = ChildConfig {
            name: "two".into(),
            mode: Default::default(),
            esp_proposals,
            ts_local,
            ts_remote,
        };
        config.more_children = vec![child];
    } else {
        (config.ts_local, config.ts_remote) = (ts_local, ts_remote);
        config.request_ipv4 = false;
    }
    Endpoint::new(Random::from_seed([9; 32]), vec![config], false)
}

fn selectors(answer: Sides) -> [Payload; 2] {
    [Payload::TsInitiator(list(answer[0])), Payload::TsResponder(list(answer[1]))]
}

/// A responder may choose a subset and nothing else; what is wider would let it draw traffic to itself.
#[test]
fn k_2_9_1_an_answer_wider_than_the_offer_gives_no_child_sa() {
    for (inside, answer) in ANSWERS {
        let mut client = client(false);
        let mut hand = Hand::answer(&mut client, &[]);
        let mut response = full_auth_response(&hand);
        response.truncate(4);
        response.remove(2);
        response.extend(selectors(answer));
        let said = respond(&mut client, &mut hand, (ExchangeType::IKE_AUTH, 1), &response);
        let sa = client.status().next().expect("an IKE_SA, or one that ends by DELETE");
        let state = if inside { "established" } else { "closing" };
        assert_eq!((sa.state, sa.children.len()), (state, usize::from(inside)), "{answer:?}");
        let deletes =
            |(_, payloads): &(_, Vec<Payload>)| payloads.contains(&Payload::Delete(Delete::Ike));
        assert_eq!(said.requests.iter().any(deletes), !inside, "{answer:?}: {said:?}");
        if inside {
            assert_eq!(sa.children[0].ts_local, list(answer[0]));
            assert_eq!(sa.children[0].ts_remote, list(answer[1]));
        }
    }
}

/// The same of CREATE_CHILD_SA: there the IKE_SA stays, and the peer is told that the CHILD_SA goes which it
/// has and we have not.
#[test]
fn k_2_9_1_an_answer_wider_than_the_offer_gives_no_further_child_sa() {
    for (inside, answer) in ANSWERS {
        let mut client = client(true);
        let mut hand = Hand::answer(&mut client, &[]);
        let response = full_auth_response(&hand);
        let said = respond(&mut client, &mut hand, (ExchangeType::IKE_AUTH, 1), &response);
        let [(head, asked)] = &said.requests[..] else { panic!("CREATE_CHILD_SA: {said:?}") };
        assert_eq!(head.exchange, ExchangeType::CREATE_CHILD_SA);
        for payload in selectors(OFFER) {
            assert!(asked.contains(&payload), "{asked:?}");
        }
        let mut response = vec![esp_proposal(0x5555_6666), Payload::Nonce(vec![3; 32])];
        response.extend(selectors(answer));
        let exchange = (ExchangeType::CREATE_CHILD_SA, head.message_id);
        respond(&mut client, &mut hand, exchange, &response);
        // The host's part: what waits for the window goes out.
        let id = client.status().next().expect("an IKE_SA").id;
        client.proceed(bewick_ike::Time::ZERO, id, &mut bewick_ike::extension::Plain);
        let said = hand.hear(&mut client);
        let sa = client.status().next().expect("an IKE_SA");
        assert_eq!((sa.state, sa.children.len()), ("established", 1 + usize::from(inside)));
        let ours = asked.iter().find_map(|payload| match payload {
            Payload::SecurityAssociation(proposals) => Some(proposals[0].spi.clone()),
            _ => None,
        });
        let deleted =
            said.requests.iter().flat_map(|(_, payloads)| payloads).find_map(
                |payload| match payload {
                    Payload::Delete(Delete::Esp(spis)) => Some(spis[0].0.to_be_bytes().to_vec()),
                    _ => None,
                },
            );
        assert_eq!(deleted, ours.filter(|_| !inside), "{answer:?}: {said:?}");
    }
}
