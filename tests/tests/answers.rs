//! Responses without a payload that they must have, and responses that say less or other than they may
//! (RFC 7296 §1.2, §1.3, §2.9.2, §2.16, §2.19, §2.21).

use bewick_ike::{
    CloseReason, Endpoint, Random, Time, TrafficSelector,
    extension::Plain,
    wire::{Eap, EapCode, ExchangeType, Payload, emit_chain},
};
use bewick_tests::{
    hand::{Hand, esp_proposal, full_auth, full_auth_response, ike_proposal, respond, selector},
    lab::{client_config, gateway_config, ip},
};

fn endpoint(config: bewick_ike::ConnectionConfig) -> Endpoint {
    Endpoint::new(Random::from_seed([5; 32]), vec![config], false)
}

#[test]
fn k_1_2_3_an_ike_auth_response_with_a_payload_left_out_gives_no_tunnel() {
    let whole = 6;
    for left_out in 0..=whole {
        let mut client = endpoint(client_config());
        let mut hand = Hand::answer(&mut client, &[]);
        let mut response = full_auth_response(&hand);
        assert_eq!(response.len(), whole);
        if left_out < whole {
            response.remove(left_out);
        }
        respond(&mut client, &mut hand, (ExchangeType::IKE_AUTH, 1), &response);
        let sa = client.status().next().expect("the peer has an IKE_SA, and is told how it ends");
        let up = left_out == whole;
        assert_eq!(sa.state, if up { "established" } else { "closing" }, "without {left_out}");
        assert_eq!(sa.children.len(), usize::from(up), "without {left_out}");
    }
}

/// We do not do EAP; what a gateway says of it is no proof of anything (CVE-2021-45079).
#[test]
fn k_2_16_1_an_eap_success_is_not_taken_for_a_proof() {
    let success = || {
        let (code, data) = (EapCode::SUCCESS, Vec::new());
        Payload::Eap(Eap { code, identifier: 1, method: None, data })
    };
    for with_the_rest in [false, true] {
        let mut client = endpoint(client_config());
        let mut hand = Hand::answer(&mut client, &[]);
        let mut response = full_auth_response(&hand);
        response[1] = success();
        if !with_the_rest {
            response.truncate(2);
        }
        respond(&mut client, &mut hand, (ExchangeType::IKE_AUTH, 1), &response);
        let sa = client.status().next().expect("an IKE_SA that is being closed");
        assert_eq!((sa.state, sa.children.len()), ("closing", 0));
        assert!(sa.peer.is_empty(), "nobody has proved who he is");
    }
    // A client that asks for EAP, by leaving out AUTH, is refused.
    let mut gateway = endpoint(gateway_config());
    let mut hand = Hand::initiate(&mut gateway, &[]);
    let mut request = full_auth(&hand);
    request[1] = success();
    let (first, chain) = emit_chain(&request).expect("it fits");
    let said = hand.say(&mut gateway, (ExchangeType::IKE_AUTH, false, 1), (first, &chain));
    assert!(matches!(said.closed, Some(CloseReason::Authentication(_))), "{said:?}");
}

/// A gateway with an established client, which has just asked that for something.
fn asked(ask: impl FnOnce(&mut Endpoint, bewick_ike::SaId)) -> (Endpoint, Hand) {
    let mut gateway = endpoint(gateway_config());
    let mut hand = Hand::initiate(&mut gateway, &[]);
    let (first, chain) = emit_chain(&full_auth(&hand)).expect("it fits");
    hand.say(&mut gateway, (ExchangeType::IKE_AUTH, false, 1), (first, &chain));
    let id = gateway.status().next().expect("an IKE_SA").id;
    ask(&mut gateway, id);
    hand.hear(&mut gateway);
    (gateway, hand)
}

fn state(gateway: &Endpoint) -> (&'static str, Vec<u32>) {
    let sa = gateway.status().next().expect("an IKE_SA");
    (sa.state, sa.children.iter().map(|child| child.spi_out.0).collect())
}

#[test]
fn k_2_9_2_1_a_successor_is_made_only_of_a_whole_answer_that_is_not_narrower() {
    let whole = |ts_r: TrafficSelector| {
        vec![
            esp_proposal(0x5555_6666),
            Payload::Nonce(vec![3; 32]),
            Payload::TsInitiator(vec![selector("10.1.0.0/16")]),
            Payload::TsResponder(vec![ts_r]),
        ]
    };
    let all = TrafficSelector::from_addr(ip("10.9.0.1"));
    let answer = |payloads: &[Payload]| {
        let (mut gateway, mut hand) =
            asked(|gateway, id| gateway.rekey_children(Time::ZERO, id, None, &mut Plain));
        respond(&mut gateway, &mut hand, (ExchangeType::CREATE_CHILD_SA, 0), payloads);
        state(&gateway)
    };
    // The old one stays until the peer has answered to its DELETE.
    assert_eq!(answer(&whole(all)), ("established", vec![0x1234_5678, 0x5555_6666]));
    for left_out in 0..4 {
        let mut payloads = whole(all);
        payloads.remove(left_out);
        assert_eq!(answer(&payloads), ("established", vec![0x1234_5678]), "without {left_out}");
    }
    let mut narrower = whole(all);
    narrower[2] = Payload::TsInitiator(vec![selector("10.1.0.0/24")]);
    assert_eq!(answer(&narrower), ("established", vec![0x1234_5678]), "narrower");
    let mut wider = whole(selector("10.9.0.0/24"));
    assert_eq!(answer(&wider), ("established", vec![0x1234_5678]), "wider");
    wider.truncate(1);
    assert_eq!(answer(&wider), ("established", vec![0x1234_5678]), "hardly anything");
}

#[test]
fn k_2_9_2_1_a_peer_may_not_make_what_is_in_use_narrower() {
    use bewick_ike::{
        EspSpi,
        wire::{Notify, NotifyType},
    };
    let (mut gateway, mut hand) = asked(|_, _| {});
    let request = [
        Payload::Notify(Notify::about_child(NotifyType::REKEY_SA, EspSpi(0x1234_5678))),
        esp_proposal(0x5555_6666),
        Payload::Nonce(vec![3; 32]),
        Payload::TsInitiator(vec![TrafficSelector::from_addr(ip("10.9.0.1"))]),
        Payload::TsResponder(vec![selector("10.1.7.0/24")]),
    ];
    let (first, chain) = emit_chain(&request).expect("it fits");
    let said = hand.say(&mut gateway, (ExchangeType::CREATE_CHILD_SA, false, 2), (first, &chain));
    let refusal = Payload::Notify(Notify::new(NotifyType::TS_UNACCEPTABLE, []));
    assert_eq!(said.answer, Some(vec![refusal]));
    assert_eq!(state(&gateway), ("established", vec![0x1234_5678]));
}

#[test]
fn k_2_18_1_a_rekey_of_the_ike_sa_with_half_an_answer_ends_it() {
    let mut key_exchange = vec![0; 32];
    key_exchange[0] = 9;
    let whole = [
        ike_proposal(0x7777),
        Payload::Nonce(vec![3; 32]),
        Payload::KeyExchange { group: 31, data: key_exchange },
    ];
    let answer = |payloads: &[Payload]| {
        let (mut gateway, mut hand) =
            asked(|gateway, id| gateway.rekey_ike(Time::ZERO, id, &mut Plain));
        respond(&mut gateway, &mut hand, (ExchangeType::CREATE_CHILD_SA, 0), payloads);
        gateway.status().next().map(|sa| (sa.state, sa.spis.1))
    };
    assert_eq!(answer(&whole), Some(("established", 0x7777)));
    for left_out in 0..whole.len() {
        let mut payloads = whole.to_vec();
        payloads.remove(left_out);
        let (state, spi) = answer(&payloads).expect("the peer is told");
        assert!(state == "closing" && spi != 0x7777, "without {left_out}: {state}");
    }
}

#[test]
fn k_2_9_1_another_child_sa_has_one_family_on_both_sides() {
    use bewick_ike::wire::{Notify, NotifyType};
    let mut config = gateway_config();
    config.ts_local = bewick_tests::lab::selectors(&["10.1.0.0/16", "2001:db8:1::/48"]);
    let mut gateway = endpoint(config);
    let mut hand = Hand::initiate(&mut gateway, &[]);
    let (first, chain) = emit_chain(&full_auth(&hand)).expect("it fits");
    hand.say(&mut gateway, (ExchangeType::IKE_AUTH, false, 1), (first, &chain));
    // Its only address is of IPv4: no packet goes from there to a network of IPv6.
    let request = [
        esp_proposal(0x5555_6666),
        Payload::Nonce(vec![3; 32]),
        Payload::TsInitiator(vec![TrafficSelector::from_addr(ip("10.9.0.1"))]),
        Payload::TsResponder(vec![selector("2001:db8:1::/48")]),
    ];
    let (first, chain) = emit_chain(&request).expect("it fits");
    let said = hand.say(&mut gateway, (ExchangeType::CREATE_CHILD_SA, false, 2), (first, &chain));
    let refusal = Payload::Notify(Notify::new(NotifyType::TS_UNACCEPTABLE, []));
    assert_eq!(said.answer, Some(vec![refusal]));
    assert_eq!(state(&gateway), ("established", vec![0x1234_5678]));
}
