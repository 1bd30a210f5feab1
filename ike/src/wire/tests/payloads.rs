//! Each payload's own rules (RFC 7296 §3.3 to §3.16).

use super::*;

#[test]
fn k_2_10_1_nonce_has_16_to_256_octets() {
    for (octets, good) in [(0, false), (15, false), (16, true), (256, true), (257, false)] {
        let nonce = parse_one(PayloadKind::NONCE, &vec![1; octets]);
        assert_eq!(nonce.is_ok(), good, "{octets}");
    }
}

#[test]
fn k_3_3_proposals_are_laid_out_as_figures_7_to_9_say() {
    let body = [
        &[2, 0, 0, 40, 1, 3, 4, 3, 0xc0, 0xff, 0xee, 0x01][..],
        &[3, 0, 0, 12, 1, 0, 0, 20, 0x80, 14, 1, 0],
        &[3, 0, 0, 8, 1, 0, 0, 28],
        &[0, 0, 0, 8, 5, 0, 0, 0],
        &[0, 0, 0, 40, 2, 3, 4, 3, 0xc0, 0xff, 0xee, 0x01],
        &[3, 0, 0, 12, 1, 0, 0, 12, 0x80, 14, 0, 128],
        &[3, 0, 0, 8, 3, 0, 0, 12],
        &[0, 0, 0, 8, 5, 0, 0, 0],
    ]
    .concat();
    let expected = Payload::SecurityAssociation(offer());
    assert_eq!(parse_one(PayloadKind::SECURITY_ASSOCIATION, &body).as_ref(), Ok(&expected));
    assert_eq!(emit_chain(&[expected]), Ok((33, chain(&body))));
}

#[test]
fn k_3_3_lengths_counts_and_last_fields_must_agree() {
    let (_, good) = emit_chain(&[Payload::SecurityAssociation(offer())]).expect("sample");
    // Offsets in the chain: length, count and SPI size of the first proposal and of a transform.
    for (at, what) in [
        (4, "last substructure of the proposal"),
        (7, "proposal length"),
        (8, "proposal number"),
        (10, "SPI size"),
        (11, "number of transforms"),
        (16, "last substructure of the transform"),
        (19, "transform length"),
    ] {
        for lie in [good[at].wrapping_sub(1), good[at].wrapping_add(1), 0xff] {
            let mut octets = good.clone();
            octets[at] = lie;
            assert!(parse_chain(33, &octets).is_err(), "{what} {lie}");
        }
    }
}

#[test]
fn k_3_3_an_sa_payload_has_a_proposal() {
    assert!(parse_one(PayloadKind::SECURITY_ASSOCIATION, &[]).is_err());
}

#[test]
fn k_3_3_5_a_strange_attribute_is_kept_and_marks_its_transform() {
    let transform = |attributes: &[u8]| {
        let length = u8::try_from(attributes.len() + 8).expect("short");
        let body =
            [&[0, 0, 0, length + 8, 1, 1, 0, 1][..], &[0, 0, 0, length, 1, 0, 0, 12], attributes]
                .concat();
        let payload = parse_one(PayloadKind::SECURITY_ASSOCIATION, &body).expect("well-formed");
        assert_eq!(emit_chain(std::slice::from_ref(&payload)), Ok((33, chain(&body))));
        match payload {
            Payload::SecurityAssociation(mut proposals) => proposals.remove(0).transforms.remove(0),
            other => panic!("{other:?}"),
        }
    };
    let plain = transform(&[0x80, 14, 0, 128]);
    assert_eq!((plain.key_length, plain.has_unknown_attributes()), (Some(128), false));
    let none = transform(&[]);
    assert_eq!((none.key_length, none.has_unknown_attributes()), (None, false));
    let twice = transform(&[0x80, 14, 0, 128, 0x80, 14, 1, 0]);
    assert_eq!((twice.key_length, twice.has_unknown_attributes()), (Some(128), true));
    let long = transform(&[0, 14, 0, 2, 0, 128]);
    assert_eq!((long.key_length, long.has_unknown_attributes()), (None, true));
    let unknown = transform(&[0x80, 99, 0, 1]);
    assert_eq!((unknown.key_length, unknown.has_unknown_attributes()), (None, true));
}

#[test]
fn k_3_5_reserved_octets_of_an_identification_stay_in_what_is_signed() {
    let body = [2, 0xde, 0xad, 0x01, b'a', b'.', b'b'];
    match parse_one(PayloadKind::ID_INITIATOR, &body) {
        Ok(Payload::IdInitiator(id)) => assert_eq!(id.body(), body),
        other => panic!("{other:?}"),
    }
}

#[test]
fn k_3_10_notify_without_its_whole_spi_is_malformed() {
    assert!(parse_one(PayloadKind::NOTIFY, &[3, 4, 0x40, 9, 1, 2, 3]).is_err());
    assert!(parse_one(PayloadKind::NOTIFY, &[0, 255, 0x40, 9]).is_err());
    match parse_one(PayloadKind::NOTIFY, &[3, 4, 0x40, 9, 1, 2, 3, 4, 5]) {
        Ok(Payload::Notify(notify)) => {
            assert_eq!(
                (notify.kind, notify.esp_spi()),
                (NotifyType::REKEY_SA, Some(EspSpi(0x01020304)))
            );
            assert_eq!(notify.data, [5]);
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn k_3_10_1_error_types_are_those_below_16384() {
    for (number, error) in [(1, true), (8192, true), (16383, true), (16384, false), (65535, false)]
    {
        assert_eq!(NotifyType(number).is_error(), error, "{number}");
    }
    assert_eq!(NotifyType::AUTHENTICATION_FAILED.to_string(), "AUTHENTICATION_FAILED");
    assert_eq!(NotifyType(12345).to_string(), "notify 12345");
}

#[test]
fn k_1_4_1_1_delete_has_the_spi_size_of_its_protocol_and_its_count_of_spis() {
    let delete = |body: &[u8]| parse_one(PayloadKind::DELETE, body);
    assert_eq!(delete(&[1, 0, 0, 0]), Ok(Payload::Delete(Delete::Ike)));
    let esp = Delete::Esp(vec![EspSpi(0x1234)]);
    assert_eq!(delete(&[3, 4, 0, 1, 0, 0, 0x12, 0x34]), Ok(Payload::Delete(esp)));
    let ah = Delete::Ah(vec![EspSpi(1)]);
    assert_eq!(delete(&[2, 4, 0, 1, 0, 0, 0, 1]), Ok(Payload::Delete(ah)));
    for body in [
        &[3, 8, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1][..],
        &[3, 0, 0, 0],
        &[3, 255, 255, 255, 0, 0, 0, 1],
        &[3, 4, 0, 2, 0, 0, 0, 1],
        &[3, 4, 0, 1, 0, 0, 0, 1, 0],
        &[3, 4, 0, 0, 0, 0, 0, 1],
        &[1, 8, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1],
        &[1, 0, 0, 0, 0],
        &[0, 0, 0, 0],
        &[4, 4, 0, 1, 0, 0, 0, 1],
    ] {
        assert!(delete(body).is_err(), "{body:x?}");
    }
}

const V4: [u8; 16] = [7, 17, 0, 16, 0, 53, 0, 53, 10, 0, 0, 1, 10, 0, 0, 9];

fn selectors(count: u8, list: &[&[u8]]) -> Result<Vec<TrafficSelector>, WireError> {
    let body = [&[count, 0, 0, 0][..], &list.concat()].concat();
    match parse_one(PayloadKind::TS_INITIATOR, &body)? {
        Payload::TsInitiator(selectors) => Ok(selectors),
        other => panic!("{other:?}"),
    }
}

#[test]
fn k_3_13_selectors_are_laid_out_as_figure_20_says() {
    let expected = TrafficSelector::new(17, (53, 53), [10, 0, 0, 1].into(), [10, 0, 0, 9].into());
    assert_eq!(selectors(1, &[&V4]), Ok(expected.into_iter().collect()));
    let mut v6 = vec![8, 0, 0, 40, 0, 0, 0xff, 0xff];
    v6.extend([0; 16]);
    v6.extend([0xff; 16]);
    let all = TrafficSelector::from_net("::/0".parse().expect("network"));
    assert_eq!(selectors(1, &[&v6]), Ok(vec![all]));
}

#[test]
fn k_3_13_a_selector_of_an_unknown_type_is_passed_over() {
    let unknown = [10, 0, 0, 6, 1, 2];
    assert_eq!(selectors(2, &[&unknown, &V4]).map(|list| list.len()), Ok(1));
    assert_eq!(selectors(1, &[&unknown]), Ok(Vec::new()));
    assert!(selectors(1, &[&[10, 0, 0, 3]]).is_err());
}

#[test]
fn k_3_13_counts_lengths_and_ranges_of_selectors_must_hold() {
    assert!(selectors(0, &[]).is_err());
    assert!(selectors(2, &[&V4]).is_err());
    assert!(selectors(1, &[&V4, &V4]).is_err());
    // Length, start port above end port, start address above end address.
    for (at, value) in [(3, 15), (3, 17), (3, 40), (5, 54), (11, 10)] {
        let mut selector = V4;
        selector[at] = value;
        assert!(selectors(1, &[&selector]).is_err(), "{at} {value}");
    }
    let mut opaque = V4;
    opaque[4..8].copy_from_slice(&[0xff, 0xff, 0, 0]);
    assert_eq!(selectors(1, &[&opaque]).map(|list| list[0].ports()), Ok((65535, 0)));
}

#[test]
fn k_3_15_attributes_have_the_lengths_of_their_types() {
    let read = |kind: u16, value: &[u8]| {
        let kind = AttributeType(kind);
        Attribute { kind, value: value.to_vec() }.read()
    };
    let all = [
        (1, vec![0, 4]),
        (2, vec![0, 4]),
        (3, vec![0, 4]),
        (8, vec![0, 17]),
        (10, vec![0, 16]),
        (13, vec![0, 8]),
        (15, vec![0, 17]),
    ];
    for (kind, right) in all {
        for octets in 0..=20 {
            let value = read(kind, &vec![0; octets]);
            assert_eq!(value.is_ok(), right.contains(&octets), "{kind} {octets}");
        }
    }
    assert_eq!(read(4000, &[1, 2, 3]), Ok(None));
    assert!(read(13, &[10, 0, 0, 0, 255, 0, 255, 0]).is_err(), "a netmask with a hole");
    assert!(read(8, &[&[0; 16][..], &[129]].concat()).is_err(), "a prefix of 129 bits");
    assert!(read(25, b"example.com").is_ok());
    assert!(read(25, b"example.com\0").is_err());
    assert!(read(25, b"a\nnameserver 192.0.2.9").is_err());
}

#[test]
fn k_3_15_1_unknown_and_malformed_attributes_are_passed_over() {
    let body = [
        &[2, 0, 0, 0][..],
        &[0x7f, 0xff, 0, 1, 9],
        &[0, 1, 0, 3, 1, 2, 3],
        &[0x80, 1, 0, 4, 10, 9, 0, 1],
    ]
    .concat();
    match parse_one(PayloadKind::CONFIGURATION, &body) {
        Ok(Payload::Configuration(configuration)) => {
            let values: Vec<_> = configuration.values().collect();
            assert_eq!(values, [AttributeValue::Ip4Address(Some([10, 9, 0, 1].into()))]);
            assert_eq!(configuration.attributes.len(), 3);
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn k_3_15_an_attribute_can_not_reach_beyond_its_payload() {
    assert!(parse_one(PayloadKind::CONFIGURATION, &[2, 0, 0, 0, 0, 1, 0, 5, 1, 2, 3, 4]).is_err());
    assert!(parse_one(PayloadKind::CONFIGURATION, &[2, 0, 0, 0, 0, 1, 0]).is_err());
    let many = [0, 1, 0, 0].repeat(config::MAX_ATTRIBUTES + 1);
    let error = parse_one(PayloadKind::CONFIGURATION, &[&[1, 0, 0, 0][..], &many].concat());
    assert!(matches!(error, Err(WireError::TooMany { .. })));
}

#[test]
fn k_3_16_eap_length_is_four_less_than_the_payload_length() {
    let eap = |body: &[u8]| parse_one(PayloadKind::EAP, body).is_ok();
    assert!(eap(&[1, 7, 0, 6, 26, 1]));
    assert!(eap(&[3, 7, 0, 4]));
    assert!(!eap(&[1, 7, 0, 5, 26, 1]));
    assert!(!eap(&[1, 7, 0, 7, 26, 1]));
    assert!(!eap(&[1, 7, 0, 4]), "a request has a type");
    assert!(!eap(&[3, 7, 0, 5, 0]), "success has none");
    assert!(!eap(&[1, 7, 0]));
}

#[test]
fn eap_data_is_not_printed() {
    let data = b"hunter2".to_vec();
    let eap = Eap { code: EapCode::RESPONSE, identifier: 1, method: Some(6), data };
    let text = format!("{:?}", Payload::Eap(eap));
    assert!(!text.contains("hunter2") && !text.contains("104"), "{text}");
}

#[test]
fn k_3_7_certificate_request_data_is_a_list_of_hashes() {
    assert_eq!(cert::authority_hashes(&[1; 40]), Some(&[[1; 20]; 2][..]));
    assert_eq!(cert::authority_hashes(&[]), Some(&[][..]));
    assert_eq!(cert::authority_hashes(&[1; 39]), None);
}

#[test]
fn k_3_6_hash_and_url_is_a_hash_and_printable_ascii() {
    let data = [&[1; 20][..], b"http://example.com/c"].concat();
    assert_eq!(cert::hash_and_url(&data), Some((&[1; 20], "http://example.com/c")));
    assert_eq!(cert::hash_and_url(&data[..20]), None);
    assert_eq!(cert::hash_and_url(&[1; 19]), None);
    assert_eq!(cert::hash_and_url(&[&data[..], b"\n"].concat()), None);
}
