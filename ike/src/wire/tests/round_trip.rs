//! What is parsed, emitted and parsed again is the same.

use std::net::{Ipv4Addr, Ipv6Addr};

use proptest::{collection::vec, option, prelude::*};

use super::*;
use crate::wire::proposal::TransformAttributeValue;

fn octets(max: usize) -> impl Strategy<Value = Vec<u8>> + Clone {
    vec(any::<u8>(), 0..=max)
}

fn attribute() -> impl Strategy<Value = TransformAttribute> {
    let short = (0_u16..0x8000, any::<u16>())
        .prop_filter("the first short Key Length is a field of its own", |(kind, _)| *kind != 14)
        .prop_map(|(kind, value)| (kind, TransformAttributeValue::Short(value)));
    let long =
        (0_u16..0x8000, octets(9)).prop_map(|(kind, v)| (kind, TransformAttributeValue::Long(v)));
    prop_oneof![short, long].prop_map(|(kind, value)| TransformAttribute { kind, value })
}

fn transform() -> impl Strategy<Value = Transform> {
    (any::<u8>(), any::<u16>(), option::of(any::<u16>()), vec(attribute(), 0..3)).prop_map(
        |(kind, id, key_length, unknown_attributes)| Transform {
            kind: TransformType(kind),
            id,
            key_length,
            unknown_attributes,
        },
    )
}

fn proposals() -> impl Strategy<Value = Vec<Proposal>> {
    let proposal = (any::<u8>(), octets(8), vec(transform(), 0..6));
    (1_u8..200, vec(proposal, 1..5)).prop_map(|(first, list)| {
        let numbered = (first..).zip(list);
        numbered
            .map(|(number, (protocol, spi, transforms))| Proposal {
                number,
                protocol: Protocol(protocol),
                spi,
                transforms,
            })
            .collect()
    })
}

fn identification() -> impl Strategy<Value = Identification> {
    (any::<u8>(), any::<[u8; 3]>(), octets(40)).prop_map(|(kind, reserved, data)| Identification {
        kind: IdKind(kind),
        reserved,
        data,
    })
}

fn notify() -> impl Strategy<Value = Notify> {
    (any::<u8>(), octets(12), any::<u16>(), octets(40)).prop_map(|(protocol, spi, kind, data)| {
        Notify { protocol: Protocol(protocol), spi, kind: NotifyType(kind), data }
    })
}

fn delete() -> impl Strategy<Value = Delete> {
    let spis = vec(any::<u32>().prop_map(EspSpi), 0..9);
    prop_oneof![Just(Delete::Ike), spis.clone().prop_map(Delete::Esp), spis.prop_map(Delete::Ah)]
}

fn selectors() -> impl Strategy<Value = Vec<TrafficSelector>> {
    let v4 = any::<(u32, u32)>()
        .prop_map(|(a, b)| (Ipv4Addr::from(a.min(b)).into(), Ipv4Addr::from(a.max(b)).into()));
    let v6 = any::<(u128, u128)>()
        .prop_map(|(a, b)| (Ipv6Addr::from(a.min(b)).into(), Ipv6Addr::from(a.max(b)).into()));
    let ports = any::<(u16, u16)>().prop_map(|(a, b)| (a.min(b), a.max(b)));
    let ports = prop_oneof![ports, Just((65535, 0))];
    let selector = (any::<u8>(), ports, prop_oneof![v4, v6])
        .prop_filter_map("every part is in order", |(protocol, ports, (first, last))| {
            TrafficSelector::new(protocol, ports, first, last)
        });
    vec(selector, 1..9)
}

fn configuration() -> impl Strategy<Value = Configuration> {
    let attribute = (0_u16..0x8000, octets(20))
        .prop_map(|(kind, value)| Attribute { kind: AttributeType(kind), value });
    (any::<u8>(), vec(attribute, 0..6))
        .prop_map(|(kind, attributes)| Configuration { kind: CfgType(kind), attributes })
}

fn eap() -> impl Strategy<Value = Eap> {
    let end = (3_u8..=4, any::<u8>(), Just(None), Just(Vec::new()));
    let talk = (1_u8..=2, any::<u8>(), any::<u8>().prop_map(Some), octets(40));
    let other = (5_u8.., any::<u8>(), Just(None), octets(40));
    prop_oneof![end, talk, other].prop_map(|(code, identifier, method, data)| Eap {
        code: EapCode(code),
        identifier,
        method,
        data,
    })
}

fn payload() -> impl Strategy<Value = Payload> {
    let certificate = (any::<u8>().prop_map(CertEncoding), octets(60));
    prop_oneof![
        proposals().prop_map(Payload::SecurityAssociation),
        (any::<u16>(), octets(60)).prop_map(|(group, data)| Payload::KeyExchange { group, data }),
        identification().prop_map(Payload::IdInitiator),
        identification().prop_map(Payload::IdResponder),
        certificate.clone().prop_map(|(encoding, data)| Payload::Certificate { encoding, data }),
        certificate.prop_map(|(encoding, data)| Payload::CertificateRequest { encoding, data }),
        (any::<u8>().prop_map(AuthMethod), octets(60))
            .prop_map(|(method, data)| Payload::Authentication { method, data }),
        vec(any::<u8>(), 16..=256).prop_map(Payload::Nonce),
        notify().prop_map(Payload::Notify),
        delete().prop_map(Payload::Delete),
        octets(60).prop_map(Payload::VendorId),
        selectors().prop_map(Payload::TsInitiator),
        selectors().prop_map(Payload::TsResponder),
        configuration().prop_map(Payload::Configuration),
        eap().prop_map(Payload::Eap),
        (prop_oneof![1_u8..33, 49_u8..53, 54_u8..], any::<bool>(), octets(60))
            .prop_map(|(kind, critical, data)| Payload::Unknown { kind, critical, data }),
    ]
}

proptest! {
    #[test]
    fn k_3_2_chains_survive(payloads in vec(payload(), 0..8)) {
        let (first, octets) = emit_chain(&payloads).expect("fits");
        let parsed = parse_chain(first, &octets).expect("well-formed");
        prop_assert_eq!(&parsed, &payloads);
        prop_assert_eq!(emit_chain(&parsed), Ok((first, octets)));
    }

    #[test]
    fn k_3_1_messages_survive(
        payloads in vec(payload(), 0..4),
        (spi_i, spi_r, message_id) in (1_u64.., any::<u64>(), any::<u32>()),
        (exchange, initiator, response, version, minor) in
            (any::<u8>(), any::<bool>(), any::<bool>(), any::<bool>(), 0_u8..16),
    ) {
        let flags = Flags { initiator, response, version };
        let mut header = Header::new((spi_i, spi_r), ExchangeType(exchange), flags, message_id);
        header.version = (2, minor);
        let octets = emit_message(&header, &payloads).expect("fits");
        let message = Message::parse(&octets).expect("well-formed");
        header.next_payload = payloads.first().map_or(0, Payload::kind);
        header.length = u32::try_from(octets.len()).expect("fits");
        prop_assert_eq!(&message.header, &header);
        prop_assert_eq!(&message.payloads, &payloads);
        prop_assert_eq!(emit_message(&message.header, &message.payloads), Ok(octets));
    }

    #[test]
    fn k_3_14_encrypted_messages_survive(
        first in any::<u8>(),
        fragment in option::of((1_u16..9, 0_u16..9)),
        body in octets(200),
    ) {
        let header = header(ExchangeType::INFORMATIONAL);
        let fragment =
            fragment.map(|(number, more)| Fragment { number, total: number + more });
        let mut octets = match fragment {
            None => emit_encrypted_prefix(&header, first, body.len()),
            Some(fragment) => emit_fragment_prefix(&header, first, fragment, body.len()),
        }
        .expect("fits");
        let aad = octets.clone();
        octets.extend(&body);
        let encrypted = Message::parse(&octets).expect("well-formed").encrypted;
        let first_inner = if fragment.is_some_and(|f| f.number > 1) { 0 } else { first };
        let (aad, body) = (&aad[..], &body[..]);
        prop_assert_eq!(encrypted, Some(Encrypted { first_inner, fragment, aad, body }));
    }

    #[test]
    fn k_3_15_attribute_values_survive(
        (v4, mask, v6, prefix) in (any::<u32>(), 0_u8..=32, any::<u128>(), 0_u8..=128),
        empty in any::<bool>(),
    ) {
        let (ip4, ip6) = (Ipv4Addr::from(v4), Ipv6Addr::from(v6));
        let net4 = ipnet::Ipv4Net::new(ip4, mask).expect("prefix");
        let net6 = ipnet::Ipv6Net::new(ip6, prefix).expect("prefix");
        let values = [
            AttributeValue::Ip4Address((!empty).then_some(ip4)),
            AttributeValue::Ip4Netmask((!empty).then_some(net4.netmask())),
            AttributeValue::Ip4Dns((!empty).then_some(ip4)),
            AttributeValue::Ip6Address((!empty).then_some((ip6, prefix))),
            AttributeValue::Ip6Dns((!empty).then_some(ip6)),
            AttributeValue::Ip4Subnet((!empty).then_some(net4)),
            AttributeValue::Ip6Subnet((!empty).then_some(net6)),
            AttributeValue::DnsDomain((!empty).then_some("example.com".to_owned())),
        ];
        let configuration = Configuration::new(CfgType::REPLY, values.clone());
        prop_assert_eq!(configuration.values().collect::<Vec<_>>(), values);
    }

    #[test]
    fn k_3_5_identities_survive(text in "[a-z0-9.-]{1,20}|[a-z.]{1,8}@[a-z.]{1,8}|keyid:.{1,9}") {
        if let Ok(identity) = text.parse::<Identity>() {
            prop_assert_eq!(Identity::from_wire(&identity.to_wire()), Ok(identity.clone()));
            prop_assert_eq!(identity.to_string().parse(), Ok(identity));
        }
    }
}
