//! Payloads of unknown kinds in responses (RFC 7296 §2.5): one that is critical makes the response as good
//! as none, one that is not critical is skipped.

use std::time::Duration;

use bewick_ike::{
    CloseReason, Endpoint, Random, Tag, Time, TrafficSelector,
    extension::Plain,
    wire::{ExchangeType, Message, Payload, emit_chain, emit_message},
};
use bewick_mobike::Command;
use bewick_tests::{
    Lab, Plan, Verdict,
    hand::{Hand, Said, esp_proposal, full_auth, full_auth_response, selector},
    lab::{client_config, gateway_config, ip},
};

fn strange(critical: bool) -> Payload {
    Payload::Unknown { kind: 200, critical, data: vec![1, 2, 3] }
}

fn endpoint(config: bewick_ike::ConnectionConfig) -> Endpoint {
    Endpoint::new(Random::from_seed([6; 32]), vec![config], false)
}

/// A response with the strange payload at this place.
fn respond(
    endpoint: &mut Endpoint,
    hand: &mut Hand,
    (exchange, message_id): (ExchangeType, u32),
    (payloads, at, critical): (&[Payload], usize, bool),
) -> Said {
    let mut payloads = payloads.to_vec();
    payloads.insert(at, strange(critical));
    let (first, chain) = emit_chain(&payloads).expect("it fits");
    hand.say(endpoint, (exchange, true, message_id), (first, &chain))
}

/// The IKE_SA is over, and the peer, whose response it was, is told nothing: no exchange begins because of
/// an error in a response (RFC 7296 §2.21).
fn assert_rejected(endpoint: &Endpoint, said: &Said, what: &str) {
    assert!(matches!(said.closed, Some(CloseReason::Protocol(_))), "{what}: {said:?}");
    assert!(said.requests.is_empty() && said.answer.is_none(), "{what}: {said:?}");
    assert!(endpoint.is_empty(), "{what}");
}

/// Anyone can have put it into IKE_SA_INIT, so that the true response is still waited for (§2.21.1).
#[test]
fn k_2_5_2_a_response_to_ike_sa_init_with_an_unknown_critical_payload_is_as_good_as_none() {
    for all in [false, true] {
        let mut lab = Lab::new(Plan { second_uplink: false, ..Plan::default() });
        let mut spoils = true;
        lab.world.net.set_tap(Some(Box::new(move |_, datagram| {
            let Ok(message) = Message::parse(&datagram.payload) else { return Verdict::Pass };
            let head = message.header;
            if !(spoils && head.flags.response && head.exchange == ExchangeType::IKE_SA_INIT) {
                return Verdict::Pass;
            }
            spoils = all;
            let mut payloads = message.payloads;
            payloads.push(strange(true));
            let mut changed = datagram.clone();
            changed.payload = emit_message(&head, &payloads).expect("it fits");
            Verdict::Replace(vec![changed])
        })));
        let up = Command::Up(bewick_ike::ConnectionId(0));
        lab.world.command(lab.client, up).expect("a connection");
        let (client, came) = (lab.client, !all);
        lab.world.run_while_not(Duration::from_secs(100), |world| {
            world.end(client).events.iter().any(|(_, event)| event.name() == "closed")
                || (came && world.now() > Time::from_micros(3_000_000))
        });
        assert_eq!(lab.is_up(), came, "{}", lab.story());
        let unanswered = matches!(lab.reasons(client)[..], [CloseReason::Unanswered(_)]);
        assert_eq!(unanswered, all, "{}", lab.story());
    }
    // One that is not critical is skipped.
    let mut client = endpoint(client_config());
    let hand = Hand::answer(&mut client, &[strange(false)]);
    assert!(!hand.request.is_empty(), "IKE_AUTH follows");
}

#[test]
fn k_2_5_2_a_response_to_ike_auth_with_an_unknown_critical_payload_gives_no_tunnel() {
    for at in 0..=6 {
        for critical in [false, true] {
            let mut client = endpoint(client_config());
            let mut hand = Hand::answer(&mut client, &[]);
            let response = full_auth_response(&hand);
            let exchange = (ExchangeType::IKE_AUTH, 1);
            let said = respond(&mut client, &mut hand, exchange, (&response, at, critical));
            if critical {
                assert_rejected(&client, &said, &format!("at {at}"));
                continue;
            }
            let sa = client.status().next().expect("an IKE_SA");
            assert_eq!((sa.state, sa.children.len()), ("established", 1), "at {at}");
        }
    }
}

/// A gateway with an established client, which has just asked that for something.
fn asked(ask: impl FnOnce(&mut Endpoint, bewick_ike::SaId)) -> (Endpoint, Hand) {
    let mut gateway = endpoint(gateway_config());
    let mut hand = Hand::initiate(&mut gateway, &[]);
    let (first, chain) = emit_chain(&full_auth(&hand)).expect("it fits");
    hand.say(&mut gateway, (ExchangeType::IKE_AUTH, false, 1), (first, &chain));
    let id = gateway.status().next().expect("an IKE_SA").id;
    ask(&mut gateway, id);
    assert_eq!(hand.hear(&mut gateway).requests.len(), 1);
    (gateway, hand)
}

#[test]
fn k_2_5_2_a_response_to_a_later_request_with_an_unknown_critical_payload_ends_the_ike_sa() {
    type Ask = fn(&mut Endpoint, bewick_ike::SaId);
    let rekeyed = vec![
        esp_proposal(0x5555_6666),
        Payload::Nonce(vec![3; 32]),
        Payload::TsInitiator(vec![selector("10.1.0.0/16")]),
        Payload::TsResponder(vec![TrafficSelector::from_addr(ip("10.9.0.1"))]),
    ];
    let rekey: Ask = |gateway, id| gateway.rekey_children(Time::ZERO, id, None, &mut Plain);
    let check: Ask = |gateway, id| {
        assert!(gateway.request(Time::ZERO, id, &[], Tag::Liveness, &mut Plain));
    };
    for (exchange, ask, response, children) in [
        (ExchangeType::CREATE_CHILD_SA, rekey, rekeyed, 2),
        (ExchangeType::INFORMATIONAL, check, Vec::new(), 1),
    ] {
        for at in [0, response.len()] {
            for critical in [false, true] {
                let (mut gateway, mut hand) = asked(ask);
                let said =
                    respond(&mut gateway, &mut hand, (exchange, 0), (&response, at, critical));
                let what = format!("{exchange:?}, at {at}, critical: {critical}");
                if critical {
                    assert_rejected(&gateway, &said, &what);
                    continue;
                }
                let sa = gateway.status().next().expect("an IKE_SA");
                assert_eq!((sa.state, sa.children.len()), ("established", children), "{what}");
            }
        }
    }
}
