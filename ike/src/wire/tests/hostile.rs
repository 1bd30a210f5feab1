//! Octets from somebody who means harm: nothing panics, nothing is believed.

use proptest::prelude::*;

use super::*;

fn sample() -> Vec<u8> {
    emit_message(&header(ExchangeType::IKE_SA_INIT), &one_of_each()).expect("sample")
}

/// Everything that reads octets from the peer.
fn read(octets: &[u8]) {
    let Ok(message) = Message::parse(octets) else { return };
    read_payloads(&message.payloads);
    if let Some(encrypted) = message.encrypted {
        read_chain(encrypted.first_inner, encrypted.body);
    }
}

fn read_chain(first: u8, octets: &[u8]) {
    if let Ok(payloads) = parse_chain(first, octets) {
        read_payloads(&payloads);
        assert!(emit_chain(&payloads).is_ok());
    }
}

fn read_payloads(payloads: &[Payload]) {
    let any: IdentityPattern = "*.example.com".parse().expect("pattern");
    for payload in payloads {
        let _ = format!("{payload:?}");
        match payload {
            Payload::IdInitiator(id) | Payload::IdResponder(id) => {
                let _ = Identity::from_wire(id).map(|id| (any.matches(&id), id.to_string()));
            }
            Payload::Configuration(configuration) => drop(configuration.values().count()),
            Payload::Notify(notify) => drop(notify.esp_spi()),
            Payload::CertificateRequest { data, .. } => drop(cert::authority_hashes(data)),
            Payload::Certificate { data, .. } => drop(cert::hash_and_url(data)),
            _ => {}
        }
    }
}

#[test]
fn k_3_1_every_truncation_is_an_error() {
    let octets = sample();
    assert!(Message::parse(&octets).is_ok());
    for cut in 0..octets.len() {
        assert!(Message::parse(&octets[..cut]).is_err(), "{cut} octets");
        // The same with a header that owns up to the length.
        let mut honest = octets[..cut].to_vec();
        if let Some(length) = honest.get_mut(24..28) {
            length.copy_from_slice(&u32::try_from(cut).expect("short").to_be_bytes());
            assert!(Message::parse(&honest).is_err(), "{cut} octets, honestly");
        }
    }
}

#[test]
fn k_3_2_every_truncated_chain_is_an_error() {
    for payload in one_of_each() {
        let (first, octets) = emit_chain(std::slice::from_ref(&payload)).expect("sample");
        for cut in 0..octets.len() {
            assert!(parse_chain(first, &octets[..cut]).is_err(), "{payload:?} cut to {cut}");
        }
    }
}

#[test]
fn k_3_2_a_payload_length_that_lies_is_an_error() {
    for payload in one_of_each() {
        let (first, good) = emit_chain(std::slice::from_ref(&payload)).expect("sample");
        let length = u16::from_be_bytes([good[2], good[3]]);
        for lie in [0, 3, length - 1, length + 1, 0xffff] {
            let mut octets = good.clone();
            octets[2..4].copy_from_slice(&lie.to_be_bytes());
            assert!(parse_chain(first, &octets).is_err(), "{payload:?} says {lie}");
        }
    }
}

#[test]
fn every_octet_changed_to_every_value_is_read_without_panic() {
    let good = sample();
    for at in 0..good.len() {
        for value in 0..=255 {
            let mut octets = good.clone();
            octets[at] = value;
            read(&octets);
        }
    }
}

proptest! {
    #[test]
    fn random_octets_do_not_panic(octets in prop::collection::vec(any::<u8>(), 0..400)) {
        read(&octets);
    }

    #[test]
    fn random_chains_do_not_panic(
        first in prop_oneof![33_u8..=54, any::<u8>()],
        octets in prop::collection::vec(any::<u8>(), 0..400),
    ) {
        read_chain(first, &octets);
    }

    #[test]
    fn random_bodies_of_known_payloads_do_not_panic(
        kind in 33_u8..=54,
        body in prop::collection::vec(prop_oneof![0_u8..=8, any::<u8>()], 0..80),
    ) {
        read_chain(kind, &chain(&body));
    }

    #[test]
    fn flipped_bits_do_not_panic(flips in prop::collection::vec((0_usize..1000, 0_u8..8), 1..6)) {
        let mut octets = sample();
        for (at, bit) in flips {
            let at = at % octets.len();
            octets[at] ^= 1 << bit;
        }
        read(&octets);
    }
}
