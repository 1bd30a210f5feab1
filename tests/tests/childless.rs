//! An IKE_AUTH whose CHILD_SA comes to nothing: the IKE_SA stands all the same (RFC 7296 §1.2, §2.21.2).

use bewick_ike::{
    ConnectionConfig, Endpoint, Random, Time,
    extension::Plain,
    wire::{AttributeValue, CfgType, Configuration, ExchangeType, NotifyType, Payload},
};
use bewick_tests::{
    hand::{
        Hand, esp_proposal, everything, full_auth, full_auth_of, full_auth_response, say, selector,
    },
    lab::{client_config, gateway_config, selectors},
    puppet::{kinds, notify},
};

fn endpoint(config: ConnectionConfig) -> Endpoint {
    Endpoint::new(Random::from_seed([7; 32]), vec![config], false)
}

fn create(spi: u32) -> Vec<Payload> {
    vec![
        esp_proposal(spi),
        Payload::Nonce(vec![7; 32]),
        Payload::TsInitiator(vec![selector("10.2.0.0/24")]),
        Payload::TsResponder(vec![everything()]),
    ]
}

/// The responder proves itself, says what is wrong with the CHILD_SA, and keeps the IKE_SA for another one;
/// not for ever, since it may be that nobody wants it.
#[test]
fn k_2_21_2_a_refused_first_child_sa_leaves_an_ike_sa_for_another_one() {
    use NotifyType as N;
    let foreign = Payload::TsResponder(vec![selector("10.77.0.0/16")]);
    let unheard = Payload::SecurityAssociation(Vec::new());
    for (refusal, at, bad) in
        [(N::TS_UNACCEPTABLE, 5, foreign), (N::NO_PROPOSAL_CHOSEN, 3, unheard)]
    {
        for comes in [true, false] {
            // A site: the peer needs no address of ours.
            let mut config = gateway_config();
            config.pools.clear();
            config.ts_remote = selectors(&["10.2.0.0/16"]);
            let mut gateway = endpoint(config);
            let mut hand = Hand::initiate(&mut gateway, &[]);
            let mut auth = full_auth(&hand);
            auth[at] = match (&bad, esp_proposal(0x1234_5678)) {
                (Payload::SecurityAssociation(_), Payload::SecurityAssociation(mut proposals)) => {
                    // A suite that nobody has: AES-GCM with a key of 8 bits.
                    proposals[0].transforms[0].key_length = Some(8);
                    Payload::SecurityAssociation(proposals)
                }
                _ => bad.clone(),
            };
            let said = say(&mut gateway, &mut hand, (ExchangeType::IKE_AUTH, false, 1), &auth);
            let answer = said.answer.expect("an answer");
            assert_eq!(kinds(&answer), [refusal], "{answer:?}");
            let proven = |p: &Payload| matches!(p, Payload::Authentication { .. });
            let of_child = |p: &Payload| {
                matches!(p, Payload::SecurityAssociation(_) | Payload::TsInitiator(_))
            };
            assert!(answer.iter().any(proven) && !answer.iter().any(of_child), "{answer:?}");
            assert!(said.closed.is_none() && said.requests.is_empty());
            let sa = gateway.status().next().expect("an IKE_SA");
            assert_eq!((sa.state, sa.children.len()), ("established", 0), "{refusal}");
            let alive = (ExchangeType::INFORMATIONAL, false, 2);
            assert_eq!(say(&mut gateway, &mut hand, alive, &[]).answer, Some(Vec::new()));
            if comes {
                let request = (ExchangeType::CREATE_CHILD_SA, false, 3);
                let said = say(&mut gateway, &mut hand, request, &create(0x5555_6666));
                assert!(kinds(&said.answer.expect("an answer")).is_empty(), "{refusal}");
            }
            gateway.timeout(Time::from_micros(29_000_000), &mut Plain);
            let state = |gateway: &Endpoint| {
                gateway.status().next().map(|sa| (sa.state, sa.children.len()))
            };
            assert_eq!(state(&gateway), Some(("established", usize::from(comes))));
            gateway.timeout(Time::from_micros(31_000_000), &mut Plain);
            let left = if comes { ("established", 1) } else { ("closing", 0) };
            assert_eq!(state(&gateway), Some(left), "{refusal}");
        }
    }
}

/// The initiator has an IKE_SA whatever it thinks of the CHILD_SA. Since ours is there for that CHILD_SA
/// alone, it ends: by a DELETE, for the peer has it too (RFC 7296 §2.21.2).
#[test]
fn k_2_21_2_an_initiator_that_gets_no_first_child_sa_ends_the_ike_sa_by_delete() {
    use NotifyType as N;
    for refusal in [
        N::TS_UNACCEPTABLE,
        N::NO_PROPOSAL_CHOSEN,
        N::SINGLE_PAIR_REQUIRED,
        N::INTERNAL_ADDRESS_FAILURE,
        N::FAILED_CP_REQUIRED,
    ] {
        let mut client = endpoint(client_config());
        let mut hand = Hand::answer(&mut client, &[]);
        let mut response = full_auth_response(&hand);
        response.truncate(2);
        response.push(notify(refusal, []));
        let said = say(&mut client, &mut hand, (ExchangeType::IKE_AUTH, true, 1), &response);
        let [(head, payloads)] = &said.requests[..] else { panic!("{refusal}: {said:?}") };
        assert_eq!((head.exchange, head.message_id), (ExchangeType::INFORMATIONAL, 2));
        assert!(matches!(payloads[..], [Payload::Delete(_)]), "{refusal}: {payloads:?}");
        let sa = client.status().next().expect("an IKE_SA, until the peer has answered");
        assert_eq!((sa.state, sa.peer, sa.children.len()), ("closing", "vpn.example.com", 0));
        let done = (ExchangeType::INFORMATIONAL, true, 2);
        let said = say(&mut client, &mut hand, done, &[]);
        let told = said.closed.expect("a reason").to_string();
        assert!(told.contains(refusal.name().expect("a name")), "{told}");
        assert!(client.is_empty(), "{refusal}");
    }
}

/// RFC 7296 §2.19: where a virtual address is a must, CREATE_CHILD_SA does not get round it.
#[test]
fn k_2_19_1_without_a_virtual_address_there_is_no_later_child_sa_either() {
    for offer in ["0.0.0.0/0", "198.51.100.2/32", "10.9.0.1/32"] {
        let mut gateway = endpoint(gateway_config());
        let mut hand = Hand::initiate(&mut gateway, &[]);
        let mut auth = full_auth(&hand);
        auth[2] = Payload::Configuration(Configuration::new(
            CfgType::REQUEST,
            [AttributeValue::Ip4Dns(None)],
        ));
        let said = say(&mut gateway, &mut hand, (ExchangeType::IKE_AUTH, false, 1), &auth);
        let answer = said.answer.expect("an answer");
        assert_eq!(kinds(&answer), [NotifyType::FAILED_CP_REQUIRED]);
        let mut request = create(0x5555_6666);
        request[2] = Payload::TsInitiator(vec![selector(offer)]);
        let create = (ExchangeType::CREATE_CHILD_SA, false, 2);
        let said = say(&mut gateway, &mut hand, create, &request);
        let refusal = vec![notify(NotifyType::TS_UNACCEPTABLE, [])];
        assert_eq!(said.answer, Some(refusal), "{offer}");
        assert!(said.closed.is_none());
    }
}

/// Where the data plane refuses the first CHILD_SA its address is free again, and may be another peer's by the
/// time that the first one asks for a CHILD_SA anew.
#[test]
fn k_2_19_1_an_address_that_was_given_back_comes_into_no_later_child_sa() {
    let mut config = gateway_config();
    config.pools = vec!["10.9.0.1/32".parse().expect("a network")];
    let mut gateway = endpoint(config);
    let mut hand = Hand::initiate(&mut gateway, &[]);
    hand.plane_refuses = true;
    let auth = full_auth(&hand);
    let said = say(&mut gateway, &mut hand, (ExchangeType::IKE_AUTH, false, 1), &auth);
    assert_eq!(kinds(&said.answer.expect("an answer")), [NotifyType::TEMPORARY_FAILURE]);
    hand.plane_refuses = false;
    let mut other = Hand::initiate(&mut gateway, &[]);
    let auth = full_auth_of(&other, "other@example.com");
    let said = say(&mut gateway, &mut other, (ExchangeType::IKE_AUTH, false, 1), &auth);
    let address = Payload::TsInitiator(vec![selector("10.9.0.1")]);
    assert!(said.answer.expect("an answer").contains(&address), "it is free");
    let mut request = create(0x5555_6666);
    request[2] = Payload::TsInitiator(vec![everything()]);
    let create = (ExchangeType::CREATE_CHILD_SA, false, 2);
    let said = say(&mut gateway, &mut hand, create, &request);
    assert_eq!(said.answer, Some(vec![notify(NotifyType::TS_UNACCEPTABLE, [])]));
}
