//! Every state of an IKE_SA against every exchange, as request and as response: what is processed and
//! what is dropped (RFC 7296 §1.2, §2.2, §2.21, §3.1). All messages are genuine; the states alone decide.

use bewick_ike::{
    ConnectionConfig, ConnectionId, Endpoint, Random, Time,
    crypto::psk_auth,
    extension::Plain,
    wire::{AuthMethod, ExchangeType, Payload, emit_chain},
};
use bewick_tests::{
    hand::{Hand, full_auth},
    lab::{X25519_GCM, client_config, gateway_config, path, psk},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// responder: IKE_SA_INIT answered
    HalfOpen,
    /// responder: the data plane is at work on the first CHILD_SA
    Installing,
    Established,
    RekeyingChild,
    RekeyingIke,
    /// our DELETE is out
    Closing,
    /// the peer's DELETE has been answered
    Lingering,
    /// initiator: IKE_AUTH is out
    AuthSent,
}

use State::*;

const STATES: [State; 8] =
    [HalfOpen, Installing, Established, RekeyingChild, RekeyingIke, Closing, Lingering, AuthSent];

const EXCHANGES: [u8; 8] = [34, 35, 36, 37, 38, 43, 44, 240];
const IKE_AUTH: u8 = 35;
const CREATE_CHILD_SA: u8 = 36;
const INFORMATIONAL: u8 = 37;

/// What is processed; all else is dropped without a sign.
fn is_processed(state: State, exchange: u8, response: bool) -> bool {
    match (state, response) {
        (HalfOpen, false) => exchange == IKE_AUTH,
        (Established | RekeyingChild | RekeyingIke | Closing, false) => {
            exchange == CREATE_CHILD_SA || exchange == INFORMATIONAL
        }
        (RekeyingChild | RekeyingIke, true) => exchange == CREATE_CHILD_SA,
        (Closing, true) => exchange == INFORMATIONAL,
        (AuthSent, true) => exchange == IKE_AUTH,
        (HalfOpen | Installing | Established | Lingering, true)
        | (Installing | Lingering | AuthSent, false) => false,
    }
}

fn endpoint(config: ConnectionConfig) -> Endpoint {
    Endpoint::new(Random::from_seed([7; 32]), vec![config], false)
}

/// An endpoint in that state, and its peer.
fn reach(state: State) -> (Endpoint, Hand) {
    if state == AuthSent {
        let mut endpoint = endpoint(client_config());
        let hand = Hand::answer(&mut endpoint, &[]);
        assert!(!hand.request.is_empty(), "IKE_AUTH is out");
        return (endpoint, hand);
    }
    let mut endpoint = endpoint(gateway_config());
    let mut hand = Hand::initiate(&mut endpoint, &[]);
    if state == HalfOpen {
        return (endpoint, hand);
    }
    let auth = full_auth(&hand);
    if state == Installing {
        // The data plane does not answer.
        hand.authenticate(&mut endpoint, &auth);
        return (endpoint, hand);
    }
    let (first, chain) = emit_chain(&auth).expect("it fits");
    let said = hand.say(&mut endpoint, (ExchangeType::IKE_AUTH, false, 1), (first, &chain));
    assert!(said.answer.is_some() && said.closed.is_none(), "{said:?}");
    let id = endpoint.status().next().expect("an IKE_SA").id;
    match state {
        RekeyingChild => endpoint.rekey_children(Time::ZERO, id, None, &mut Plain),
        RekeyingIke => endpoint.rekey_ike(Time::ZERO, id, &mut Plain),
        Closing => endpoint.close(Time::ZERO, id, &mut Plain),
        Lingering => {
            let delete = [Payload::Delete(bewick_ike::wire::Delete::Ike)];
            let (first, chain) = emit_chain(&delete).expect("it fits");
            let exchange = (ExchangeType::INFORMATIONAL, false, 2);
            let said = hand.say(&mut endpoint, exchange, (first, &chain));
            assert!(said.answer.is_some() && said.closed.is_some(), "{said:?}");
        }
        _ => {}
    }
    hand.hear(&mut endpoint);
    (endpoint, hand)
}

#[test]
fn k_1_2_1_each_state_processes_what_it_expects_and_drops_the_rest() {
    for state in STATES {
        for exchange in EXCHANGES {
            for response in [false, true] {
                let (mut endpoint, mut hand) = reach(state);
                // The next request of the peer's, or the answer to the only one of ours.
                let message_id = match (state, response) {
                    (HalfOpen, false) | (AuthSent, true) => 1,
                    (Lingering, false) => 3,
                    (AuthSent, false) | (_, true) => 0,
                    (_, false) => 2,
                };
                let message = (ExchangeType(exchange), response, message_id);
                let said = hand.say(&mut endpoint, message, (0, &[]));
                let what = format!("{state:?}, {exchange}, response: {response}: {said:?}");
                assert_eq!(said.outputs > 0, is_processed(state, exchange, response), "{what}");
                // RFC 7296 §2.21: a response is never answered.
                assert!(!response || said.answer.is_none(), "{what}");
            }
        }
    }
}

/// Until the answer to IKE_SA_INIT there are no keys, and nothing else is looked at.
#[test]
fn k_1_2_1_before_the_answer_to_ike_sa_init_nothing_else_counts() {
    use bewick_ike::wire::{Flags, Header, emit_encrypted_prefix};
    for exchange in EXCHANGES {
        for response in [false, true] {
            let mut endpoint = endpoint(client_config());
            let way = path("198.51.100.2:500", "192.0.2.1:500");
            let started = endpoint.connect(Time::ZERO, ConnectionId(0), way, &mut Plain);
            started.expect("a connection");
            let spi_i = endpoint.status().next().expect("an IKE_SA").spis.0;
            while endpoint.poll_output().is_some() {}
            let flags = Flags { initiator: false, response, version: false };
            let head = Header::new((spi_i, 7), ExchangeType(exchange), flags, 0);
            let mut message = emit_encrypted_prefix(&head, 0, 40).expect("it fits");
            message.extend([0x55; 40]);
            endpoint.datagram(Time::ZERO, way, &message, &mut Plain);
            assert!(endpoint.poll_output().is_none(), "{exchange}, response: {response}");
            assert_eq!(endpoint.len(), 1);
        }
    }
}

#[test]
fn k_1_2_1_the_hand_is_a_peer_with_the_right_key_and_no_other() {
    let mut endpoint = endpoint(gateway_config());
    let mut hand = Hand::initiate(&mut endpoint, &[]);
    let mut auth = full_auth(&hand);
    let wrong = psk_auth(X25519_GCM.prf, &psk(), b"something else");
    auth[1] = Payload::Authentication { method: AuthMethod::SHARED_KEY, data: wrong };
    let (first, chain) = emit_chain(&auth).expect("it fits");
    let said = hand.say(&mut endpoint, (ExchangeType::IKE_AUTH, false, 1), (first, &chain));
    assert!(said.closed.is_some(), "{said:?}");
}
