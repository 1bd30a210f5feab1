//! What a half-open IKE_SA stands from somebody who has not proved who he is (RFC 7296 §2.6, RFC 8019 §4).

use bewick_ike::{
    CloseReason, Endpoint, Random, Time,
    endpoint::HalfOpenLimits,
    extension::Plain,
    wire::{ExchangeType, Flags, Header, NotifyType, Payload, emit_chain, emit_encrypted_prefix},
};
use bewick_tests::{
    hand::{Hand, Said, full_auth, full_auth_response},
    lab::{client_config, gateway_config, path},
    puppet::notify,
};

/// The failures at which a half-open IKE_SA goes.
const LIMIT: usize = 64;

/// A gateway with room for one half-open IKE_SA, and that.
fn half_open() -> (Endpoint, Hand) {
    let mut gateway = Endpoint::new(Random::from_seed([8; 32]), vec![gateway_config()], false);
    gateway.set_half_open_limits(HalfOpenLimits { most: 1, ..HalfOpenLimits::default() });
    let hand = Hand::initiate(&mut gateway, &[]);
    (gateway, hand)
}

/// Messages for the only IKE_SA that look right, as anybody can make them who has seen its SPIs.
fn forge(endpoint: &mut Endpoint, exchange: ExchangeType, message_id: u32, count: usize) {
    let sa = endpoint.status().next().expect("an IKE_SA");
    let (spis, responder) = (sa.spis, sa.role == bewick_ike::Role::Responder);
    let flags = Flags { initiator: responder, response: !responder, version: false };
    let head = Header::new(spis, exchange, flags, message_id);
    let mut message = emit_encrypted_prefix(&head, 0, 40).expect("it fits");
    message.extend([0x55; 40]);
    let way = match responder {
        true => path("192.0.2.1:500", "198.51.100.2:500"),
        false => path("198.51.100.2:500", "192.0.2.1:500"),
    };
    for _ in 0..count {
        endpoint.datagram(Time::ZERO, way, &message, &mut Plain);
    }
}

fn say(endpoint: &mut Endpoint, hand: &mut Hand, response: bool, payloads: &[Payload]) -> Said {
    let (first, chain) = emit_chain(payloads).expect("it fits");
    hand.say(endpoint, (ExchangeType::IKE_AUTH, response, 1), (first, &chain))
}

/// A message that fails its integrity check is no sign that the peer is the attacker, so that the keys are
/// kept for the true one (RFC 8019 §4.6).
#[test]
fn rfc_8019_4_6_bad_messages_below_the_limit_leave_a_half_open_ike_sa_to_its_peer() {
    let (mut gateway, mut hand) = half_open();
    // What is not due is not opened, and not counted.
    forge(&mut gateway, ExchangeType::INFORMATIONAL, 1, 2 * LIMIT);
    forge(&mut gateway, ExchangeType::IKE_AUTH, 0, 2 * LIMIT);
    forge(&mut gateway, ExchangeType::IKE_AUTH, 2, 2 * LIMIT);
    forge(&mut gateway, ExchangeType::IKE_AUTH, 1, LIMIT - 1);
    assert!(gateway.poll_output().is_none(), "there is no answer to any of them");
    assert!(Hand::try_initiate(&mut gateway, &[]).is_none(), "its place is taken");
    let auth = full_auth(&hand);
    let said = say(&mut gateway, &mut hand, false, &auth);
    assert!(said.answer.is_some() && said.closed.is_none(), "{said:?}");
    // Nobody counts what fails from then on: an established IKE_SA is for its peer to end (RFC 7296 §2.4).
    forge(&mut gateway, ExchangeType::INFORMATIONAL, 2, 2 * LIMIT);
    forge(&mut gateway, ExchangeType::IKE_AUTH, 1, 2 * LIMIT);
    assert!(gateway.poll_output().is_none());
    assert_eq!(gateway.status().next().expect("an IKE_SA").state, "established");
}

/// The time that they cost has an end, and so has the place that they hold.
#[test]
fn rfc_8019_4_6_bad_messages_up_to_the_limit_end_a_half_open_ike_sa_without_a_word() {
    let (mut gateway, mut hand) = half_open();
    forge(&mut gateway, ExchangeType::IKE_AUTH, 1, LIMIT);
    let said = hand.hear(&mut gateway);
    assert!(matches!(said.closed, Some(CloseReason::Protocol(_))), "{said:?}");
    assert_eq!((said.outputs, gateway.len()), (1, 0), "{said:?}");
    let auth = full_auth(&hand);
    let said = say(&mut gateway, &mut hand, false, &auth);
    // Nobody is there any more (RFC 7296 §2.21.4).
    assert_eq!(said.answer, Some(vec![notify(NotifyType::INVALID_IKE_SPI, [])]));
    let next = Hand::try_initiate(&mut gateway, &[]);
    let mut next = next.expect("its place is free");
    let auth = full_auth(&next);
    assert!(say(&mut gateway, &mut next, false, &auth).closed.is_none(), "and the count anew");
}

/// An initiator waits for the true answer however many others come (RFC 7296 §2.21.1).
#[test]
fn k_2_21_1_bad_answers_to_ike_auth_do_not_keep_the_true_one_from_being_taken() {
    let mut client = Endpoint::new(Random::from_seed([8; 32]), vec![client_config()], false);
    let mut hand = Hand::answer(&mut client, &[]);
    forge(&mut client, ExchangeType::IKE_AUTH, 1, 2 * LIMIT);
    assert!(client.poll_output().is_none());
    let response = full_auth_response(&hand);
    say(&mut client, &mut hand, true, &response);
    let sa = client.status().next().expect("an IKE_SA");
    assert_eq!((sa.state, sa.children.len()), ("established", 1));
}
