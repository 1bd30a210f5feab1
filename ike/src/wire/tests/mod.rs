//! Tests of the wire format, named for the rules of RFC 7296 that they prove.

mod header;
mod hostile;
mod identity;
mod payloads;
mod round_trip;

use super::*;
use crate::{EspSpi, TrafficSelector};

/// A header as an initiator sends it.
fn header(exchange: ExchangeType) -> Header {
    let flags = Flags { initiator: true, ..Flags::default() };
    Header::new((0x0102_0304_0506_0708, 0x1112_1314_1516_1718), exchange, flags, 7)
}

fn offer() -> Vec<Proposal> {
    let spi = vec![0xc0, 0xff, 0xee, 0x01];
    let transforms = vec![
        Transform::encryption(proposal::encr::AES_GCM_16, Some(256)),
        Transform::encryption(proposal::encr::CHACHA20_POLY1305, None),
        Transform::new(TransformType::ESN, proposal::esn::NO),
    ];
    let first = Proposal { number: 1, protocol: Protocol::ESP, spi: spi.clone(), transforms };
    let transforms = vec![
        Transform::encryption(proposal::encr::AES_CBC, Some(128)),
        Transform::new(TransformType::INTEG, proposal::integ::HMAC_SHA2_256_128),
        Transform::new(TransformType::ESN, proposal::esn::NO),
    ];
    vec![first, Proposal { number: 2, protocol: Protocol::ESP, spi, transforms }]
}

/// One payload of every kind that can be in the clear.
fn one_of_each() -> Vec<Payload> {
    let selectors = vec![
        TrafficSelector::from_net("10.9.0.0/24".parse().expect("network")),
        TrafficSelector::from_net("2001:db8::/32".parse().expect("network")),
    ];
    let values = [
        AttributeValue::Ip4Address(Some([10, 9, 0, 1].into())),
        AttributeValue::Ip6Address(None),
        AttributeValue::Ip4Subnet(Some("10.1.0.0/16".parse().expect("network"))),
    ];
    let client: Identity = "laptop@example.com".parse().expect("identity");
    let gateway: Identity = "vpn.example.com".parse().expect("identity");
    let method = AuthMethod::SHARED_KEY;
    let encoding = CertEncoding::X509_SIGNATURE;
    vec![
        Payload::SecurityAssociation(offer()),
        Payload::KeyExchange { group: proposal::ke::CURVE25519, data: vec![0xab; 32] },
        Payload::Nonce(vec![0x5a; 32]),
        Payload::IdInitiator(client.to_wire()),
        Payload::IdResponder(gateway.to_wire()),
        Payload::Certificate { encoding, data: vec![0x30, 0x00] },
        Payload::CertificateRequest { encoding, data: vec![0x11; 40] },
        Payload::Authentication { method, data: vec![0x77; 32] },
        Payload::Notify(Notify::new(NotifyType::MOBIKE_SUPPORTED, [])),
        Payload::Notify(Notify::about_child(NotifyType::REKEY_SA, EspSpi(0xc0ff_ee01))),
        Payload::Delete(Delete::Esp(vec![EspSpi(0x1000), EspSpi(0x1001)])),
        Payload::Delete(Delete::Ike),
        Payload::VendorId(b"somebody".to_vec()),
        Payload::TsInitiator(selectors.clone()),
        Payload::TsResponder(selectors),
        Payload::Configuration(Configuration::new(CfgType::REQUEST, values)),
        Payload::Eap(Eap { code: EapCode::REQUEST, identifier: 3, method: Some(1), data: vec![9] }),
        Payload::Unknown { kind: 200, critical: false, data: vec![1, 2, 3] },
        Payload::Unknown { kind: 201, critical: true, data: Vec::new() },
    ]
}

/// The octets of one payload with `body` in a chain of its own.
fn chain(body: &[u8]) -> Vec<u8> {
    let length = u16::try_from(body.len() + 4).expect("short body");
    [&[0, 0], &length.to_be_bytes()[..], body].concat()
}

/// Parses `body` as the one payload of this kind.
fn parse_one(kind: PayloadKind, body: &[u8]) -> Result<Payload, WireError> {
    let mut payloads = parse_chain(kind.0, &chain(body))?;
    Ok(payloads.remove(0))
}
