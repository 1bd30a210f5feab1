//! Requests without a payload that they must have, with one twice, and with lengths that lie: the RFC's
//! answer each time (RFC 7296 §1.2, §1.3, §2.5, §2.19, §2.21, §3).

use bewick_ike::{
    ConnectionId, Endpoint, EspSpi, Output, Random, Time,
    extension::Plain,
    wire::{
        AttributeValue, CfgType, Configuration, Delete, ExchangeType, Flags, Header, NotifyType,
        Payload, emit_chain, emit_message, notify::Notify,
    },
};
use bewick_tests::{
    hand::{Hand, Said, esp_proposal, everything, full_auth, ike_proposal},
    lab::{client_config, gateway_config, path},
    puppet::{kinds, notify},
};

const GENERIC: usize = 4;
const HEADER: usize = 28;
/// Where the header has the kind of the first payload, and the length of the message.
const FIRST_PAYLOAD: usize = 16;
const MESSAGE_LENGTH: usize = 24;

fn gateway() -> Endpoint {
    Endpoint::new(Random::from_seed([9; 32]), vec![gateway_config()], false)
}

fn say(
    endpoint: &mut Endpoint,
    hand: &mut Hand,
    kind: (ExchangeType, u32),
    all: &[Payload],
) -> Said {
    let (first, chain) = emit_chain(all).expect("it fits");
    hand.say(endpoint, (kind.0, false, kind.1), (first, &chain))
}

fn established() -> (Endpoint, Hand) {
    let mut endpoint = gateway();
    let mut hand = Hand::initiate(&mut endpoint, &[]);
    let auth = full_auth(&hand);
    let said = say(&mut endpoint, &mut hand, (ExchangeType::IKE_AUTH, 1), &auth);
    assert!(said.closed.is_none(), "{said:?}");
    (endpoint, hand)
}

/// Ni, and KE of the lab's group.
fn nonce() -> Payload {
    Payload::Nonce(vec![7; 32])
}

fn key_exchange() -> Payload {
    // The base point of Curve25519 is a public value like any other.
    let mut data = vec![0; 32];
    data[0] = 9;
    Payload::KeyExchange { group: 31, data }
}

fn selectors() -> [Payload; 2] {
    let client = bewick_ike::TrafficSelector::from_addr(bewick_tests::lab::ip("10.9.0.1"));
    [Payload::TsInitiator(vec![client]), Payload::TsResponder(vec![everything()])]
}

fn new_child() -> Vec<Payload> {
    let [ts_i, ts_r] = selectors();
    vec![esp_proposal(0x9999_0001), nonce(), ts_i, ts_r]
}

fn rekey_child() -> Vec<Payload> {
    let mut payloads = new_child();
    let old = Notify::about_child(NotifyType::REKEY_SA, EspSpi(0x1234_5678));
    payloads.insert(0, Payload::Notify(old));
    payloads
}

fn rekey_ike() -> Vec<Payload> {
    vec![ike_proposal(0x7777), nonce(), key_exchange()]
}

/// What an established IKE_SA says to a request, and whether it is still there.
fn answer(exchange: ExchangeType, payloads: &[Payload]) -> (Vec<Payload>, bool) {
    let (mut endpoint, mut hand) = established();
    let said = say(&mut endpoint, &mut hand, (exchange, 2), payloads);
    (said.answer.expect("RFC 7296 §2.21.3: each request gets an answer"), said.closed.is_none())
}

#[test]
fn k_1_2_3_ike_sa_init_with_a_payload_left_out_or_twice_gets_no_answer() {
    let mut random = Random::from_seed([1; 32]);
    let exchange = bewick_ike::crypto::KeyExchange::generate(
        bewick_tests::lab::X25519_GCM.key_exchange,
        &mut random,
    );
    let mut proposal = ike_proposal(0);
    if let Payload::SecurityAssociation(proposals) = &mut proposal {
        proposals.iter_mut().for_each(|proposal| proposal.spi.clear());
    }
    let public = Payload::KeyExchange { group: 31, data: exchange.public().to_vec() };
    let whole = vec![proposal, public, nonce()];
    let sends = |payloads: &[Payload]| {
        let mut endpoint = gateway();
        let flags = Flags { initiator: true, response: false, version: false };
        let head = Header::new((5, 0), ExchangeType::IKE_SA_INIT, flags, 0);
        let message = emit_message(&head, payloads).expect("it fits");
        let way = path("192.0.2.1:500", "198.51.100.2:500");
        endpoint.datagram(Time::ZERO, way, &message, &mut Plain);
        (endpoint.poll_output().is_some(), endpoint.len())
    };
    assert_eq!(sends(&whole), (true, 1));
    for at in 0..whole.len() {
        let mut without = whole.clone();
        let one = without.remove(at);
        assert_eq!(sends(&without), (false, 0), "without {one:?}");
        let mut twice = whole.clone();
        twice.insert(at, one);
        assert_eq!(sends(&twice), (false, 0), "{at} twice");
    }
}

#[test]
fn k_1_2_3_ike_auth_with_a_payload_left_out_gets_what_the_rfc_says() {
    use NotifyType as N;
    let left_out = [
        ("IDi", N::AUTHENTICATION_FAILED, false),
        ("AUTH", N::AUTHENTICATION_FAILED, false),
        // RFC 7296 §2.19: the IKE_SA stands, the CHILD_SA does not.
        ("CP", N::FAILED_CP_REQUIRED, true),
        // RFC 7296 §2.21.2: the request was not understood, and there is no IKE_SA.
        ("SA", N::INVALID_SYNTAX, false),
        ("TSi", N::INVALID_SYNTAX, false),
        ("TSr", N::INVALID_SYNTAX, false),
    ];
    for (at, (name, expected, stands)) in left_out.into_iter().enumerate() {
        for twice in [false, true] {
            let mut endpoint = gateway();
            let mut hand = Hand::initiate(&mut endpoint, &[]);
            let mut auth = full_auth(&hand);
            let one = auth.remove(at);
            if twice {
                // The first of two counts; the RFC asks for no more.
                auth.insert(at, one.clone());
                auth.push(one);
            }
            let said = say(&mut endpoint, &mut hand, (ExchangeType::IKE_AUTH, 1), &auth);
            let answer = said.answer.expect("an answer");
            if twice {
                assert!(!kinds(&answer).iter().any(|kind| kind.is_error()), "{name}: {answer:?}");
                assert!(said.closed.is_none(), "{name}");
                continue;
            }
            let errors: Vec<N> = kinds(&answer).into_iter().filter(|k| k.is_error()).collect();
            assert_eq!(errors, [expected], "without {name}: {answer:?}");
            assert_eq!(said.closed.is_none(), stands, "without {name}");
            let proven = answer.iter().any(|p| matches!(p, Payload::Authentication { .. }));
            assert_eq!(proven, stands, "without {name}: nothing is said of us to a stranger");
        }
    }
}

#[test]
fn k_2_21_1_create_child_sa_with_a_payload_left_out_is_invalid_syntax_and_the_end() {
    for (name, whole) in
        [("new", new_child()), ("rekey", rekey_child()), ("rekey of the IKE_SA", rekey_ike())]
    {
        let (said, stands) = answer(ExchangeType::CREATE_CHILD_SA, &whole);
        assert!(stands && !kinds(&said).iter().any(|kind| kind.is_error()), "{name}: {said:?}");
        for at in 0..whole.len() {
            let mut without = whole.clone();
            let one = without.remove(at);
            let (said, stands) = answer(ExchangeType::CREATE_CHILD_SA, &without);
            if matches!(one, Payload::Notify(_)) {
                // Without REKEY_SA it is another CHILD_SA (RFC 7296 §1.3.1).
                assert!(stands && kinds(&said).is_empty(), "{name}: {said:?}");
            } else {
                assert_eq!(said, [notify(NotifyType::INVALID_SYNTAX, [])], "{name}, {one:?}");
                assert!(!stands, "{name} without {one:?}");
            }
            let mut twice = whole.clone();
            twice.insert(at, one);
            let (said, stands) = answer(ExchangeType::CREATE_CHILD_SA, &twice);
            assert!(stands && !kinds(&said).iter().any(|k| k.is_error()), "{name}, {at} twice");
        }
    }
}

#[test]
fn k_2_10_1_a_nonce_shorter_than_half_the_prf_key_is_refused() {
    // PRF_HMAC_SHA2_384: 24 octets at least.
    for (octets, fits) in [(16, false), (23, false), (24, true), (256, true), (257, false)] {
        for whole in [new_child(), rekey_ike()] {
            let mut payloads = whole;
            for payload in &mut payloads {
                if let Payload::Nonce(nonce) = payload {
                    *nonce = vec![1; octets];
                }
            }
            let (said, stands) = answer(ExchangeType::CREATE_CHILD_SA, &payloads);
            assert_eq!(stands, fits, "{octets}: {said:?}");
            let refused = said == [notify(NotifyType::INVALID_SYNTAX, [])];
            assert_eq!(refused, !fits, "{octets}: {said:?}");
        }
    }
}

/// A changed octet or more of a chain: in which payload, where, and what stands there.
type Lie = (u8, usize, Vec<u8>);

/// Each length and count of a chain with values that can't be true (RFC 7296 §3.2, §3.3, §3.10, §3.11,
/// §3.13, §3.15.1).
fn lies(first: u8, chain: &[u8]) -> Vec<Lie> {
    let mut all = Vec::new();
    let (mut kind, mut at) = (first, 0);
    while at < chain.len() {
        let length = u16::from_be_bytes([chain[at + 2], chain[at + 3]]);
        let body = at + GENERIC;
        let lengths = [0, 3, length - 1, length + 1, u16::MAX];
        let mut lies: Vec<(usize, Vec<u8>)> =
            lengths.iter().map(|length| (at + 2, length.to_be_bytes().to_vec())).collect();
        match kind {
            // SA: proposal length, SPI size, number of transforms, transform length, attribute length
            33 => {
                lies.extend([
                    (body + 2, vec![0, 0]),
                    (body + 2, vec![0, 7]),
                    (body + 2, vec![0xff, 0xff]),
                    (body + 6, vec![0xff]),
                    (body + 7, vec![0]),
                    (body + 7, vec![0xff]),
                ]);
                let transform = body + 8 + usize::from(chain[body + 6]);
                lies.extend([
                    (transform + 2, vec![0, 0]),
                    (transform + 2, vec![0, 7]),
                    (transform + 2, vec![0xff, 0xff]),
                ]);
            }
            // notify: SPI size
            41 => lies.push((body + 1, vec![0xff])),
            // Delete: SPI size and number of SPIs
            42 => lies.extend([
                (body + 1, vec![0]),
                (body + 1, vec![8]),
                (body + 2, vec![0, 2]),
                (body + 2, vec![0xff, 0xff]),
            ]),
            // TS: number of selectors, selector length
            44 | 45 => lies.extend([
                (body, vec![2]),
                (body, vec![0xff]),
                (body + 4 + 2, vec![0, 0]),
                (body + 4 + 2, vec![0, 15]),
                (body + 4 + 2, vec![0xff, 0xff]),
            ]),
            // CP: attribute length
            47 => lies.extend([
                (body + 4 + 2, vec![0, 1]),
                (body + 4 + 2, vec![0, 4]),
                (body + 4 + 2, vec![0xff, 0xff]),
            ]),
            _ => {}
        }
        all.extend(lies.into_iter().map(|(place, value)| (kind, place, value)));
        kind = chain[at];
        at += usize::from(length);
    }
    all
}

/// The chain with that in it.
fn with(chain: &[u8], (_, place, value): &Lie) -> Vec<u8> {
    let mut chain = chain.to_vec();
    chain[*place..place + value.len()].copy_from_slice(value);
    chain
}

/// Each length and count in each request is changed; whatever the value, the answer is INVALID_SYNTAX and
/// the end of the IKE_SA.
#[test]
fn k_3_2_a_length_that_lies_is_invalid_syntax_and_the_end() {
    use ExchangeType as E;
    let delete = vec![Payload::Delete(Delete::Esp(vec![EspSpi(0x1234_5678)]))];
    let asks = [AttributeValue::Ip4Address(None)];
    let configuration = Payload::Configuration(Configuration::new(CfgType::REQUEST, asks));
    let requests = [
        (E::CREATE_CHILD_SA, new_child()),
        (E::CREATE_CHILD_SA, rekey_child()),
        (E::CREATE_CHILD_SA, rekey_ike()),
        (E::INFORMATIONAL, delete),
        (E::INFORMATIONAL, vec![notify(NotifyType::COOKIE2, [1; 8]), configuration]),
    ];
    for (exchange, payloads) in requests {
        let (first, chain) = emit_chain(&payloads).expect("it fits");
        for lie in lies(first, &chain) {
            let (mut endpoint, mut hand) = established();
            let said = hand.say(&mut endpoint, (exchange, false, 2), (first, &with(&chain, &lie)));
            let syntax = [notify(NotifyType::INVALID_SYNTAX, [])];
            assert_eq!(said.answer.as_deref(), Some(&syntax[..]), "{exchange:?}, {lie:?}");
            assert!(said.closed.is_some(), "{exchange:?}, {lie:?}");
        }
    }
}

/// RFC 7296 §2.21.2: what is malformed in IKE_AUTH leaves no IKE_SA, and says nothing of us.
#[test]
fn k_3_2_a_length_that_lies_in_ike_auth_is_invalid_syntax_and_no_ike_sa() {
    let whole = |hand: &Hand| {
        let mut auth = full_auth(hand);
        auth.insert(2, notify(NotifyType::INITIAL_CONTACT, []));
        emit_chain(&auth).expect("it fits")
    };
    let mut endpoint = gateway();
    let hand = Hand::initiate(&mut endpoint, &[]);
    let (first, chain) = whole(&hand);
    // The lengths are the same in each of them, AUTH is not.
    for lie in lies(first, &chain) {
        let mut endpoint = gateway();
        let mut hand = Hand::initiate(&mut endpoint, &[]);
        let (first, chain) = whole(&hand);
        let message = (first, &with(&chain, &lie)[..]);
        let said = hand.say(&mut endpoint, (ExchangeType::IKE_AUTH, false, 1), message);
        let syntax = [notify(NotifyType::INVALID_SYNTAX, [])];
        assert_eq!(said.answer.as_deref(), Some(&syntax[..]), "{lie:?}");
        assert!(said.closed.is_some() && endpoint.status().next().is_none(), "{lie:?}");
    }
}

/// RFC 7296 §2.21.1: nothing protects IKE_SA_INIT, and what is malformed there gets no answer and leaves
/// nothing; in a response it is as if none had come.
#[test]
fn k_3_2_a_length_that_lies_in_ike_sa_init_gets_no_answer_and_keeps_nothing() {
    let mut client = Endpoint::new(Random::from_seed([2; 32]), vec![client_config()], false);
    let way = path("198.51.100.2:500", "192.0.2.1:500");
    client.connect(Time::ZERO, ConnectionId(0), way, &mut Plain).expect("a connection");
    let back = path("192.0.2.1:500", "198.51.100.2:500");
    let Some(Output::Transmit(request)) = client.poll_output() else { panic!("IKE_SA_INIT") };
    let request = request.bytes;
    let answers = |message: &[u8]| {
        let mut endpoint = gateway();
        endpoint.datagram(Time::ZERO, back, message, &mut Plain);
        let answer = endpoint.poll_output();
        (answer, endpoint.len())
    };
    let (Some(Output::Transmit(response)), 1) = answers(&request) else { panic!("an answer") };
    let response = response.bytes;
    while client.poll_output().is_some() {}
    let changed = |whole: &[u8]| -> Vec<(Lie, Vec<u8>)> {
        let (head, chain) = whole.split_at(HEADER);
        let inside = lies(head[FIRST_PAYLOAD], chain).into_iter();
        let inside = inside.map(|lie| (lie.clone(), [head, &with(chain, &lie)].concat()));
        // The length of the whole message (RFC 7296 §3.1).
        let len = u32::try_from(whole.len()).expect("it is short");
        let lengths = [0, 27, 28, len - 1, len + 1, u32::MAX].into_iter();
        let outside = lengths.map(|length| {
            let lie = (0, MESSAGE_LENGTH, length.to_be_bytes().to_vec());
            (lie.clone(), with(whole, &lie))
        });
        inside.chain(outside).collect()
    };
    for (lie, message) in changed(&request) {
        let (answer, kept) = answers(&message);
        assert!(answer.is_none() && kept == 0, "{lie:?}: {answer:?}");
    }
    for (lie, message) in changed(&response) {
        client.datagram(Time::ZERO, way, &message, &mut Plain);
        assert!(client.poll_output().is_none(), "{lie:?}");
    }
    client.datagram(Time::ZERO, way, &response, &mut Plain);
    assert!(client.poll_output().is_some(), "the true one is still waited for");
}
