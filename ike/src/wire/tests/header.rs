//! The header and the frame of a message (RFC 7296 §2.5, §3.1, §3.2, §3.14; RFC 7383 §2.5).

use super::*;

fn sample() -> Vec<u8> {
    emit_message(&header(ExchangeType::INFORMATIONAL), &[]).expect("empty message")
}

#[test]
fn k_3_1_header_is_laid_out_as_figure_4_says() {
    let expected = [
        &[1, 2, 3, 4, 5, 6, 7, 8, 0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x18][..],
        &[0, 0x20, 37, 0x08, 0, 0, 0, 7, 0, 0, 0, 28],
    ]
    .concat();
    assert_eq!(sample(), expected);
    let message = Message::parse(&expected).expect("well-formed");
    assert_eq!(message.header, Header { length: 28, ..header(ExchangeType::INFORMATIONAL) });
    assert!(message.payloads.is_empty() && message.encrypted.is_none());
}

#[test]
fn k_3_1_length_is_that_of_the_datagram() {
    let mut octets = sample();
    octets.push(0);
    let wrong =
        |found, expected| WireError::Length { what: "message length", at: 24, found, expected };
    assert_eq!(Message::parse(&octets), Err(wrong(28, 29)));
    octets.pop();
    octets[27] = 27;
    assert_eq!(Message::parse(&octets), Err(wrong(27, 28)));
    octets[24..].fill(0xff);
    assert_eq!(Message::parse(&octets), Err(wrong(0xffff_ffff, 28)));
}

#[test]
fn k_3_1_initiator_spi_is_not_zero() {
    let mut octets = sample();
    octets[..8].fill(0);
    let error = WireError::Value { what: "initiator SPI", at: 0, value: 0 };
    assert_eq!(Message::parse(&octets), Err(error));
}

#[test]
fn k_3_1_each_flag_is_a_bit_of_its_own_and_the_others_are_ignored() {
    for (octet, initiator, response, version) in [
        (0x08, true, false, false),
        (0x20, false, true, false),
        (0x10, false, false, true),
        (0xc7, false, false, false),
        (0xff, true, true, true),
    ] {
        let mut octets = sample();
        octets[19] = octet;
        let message = Message::parse(&octets).expect("flags don't make a message malformed");
        assert_eq!(message.header.flags, Flags { initiator, response, version });
    }
    assert_eq!(sample()[19] & 0x10, 0, "V is clear in what we send");
}

#[test]
fn k_2_5_1_other_major_version_is_told_apart_whatever_else_is_wrong() {
    for major in [0, 1, 3, 15] {
        let mut octets = sample();
        octets[17] = major << 4;
        octets[27] = 99;
        assert_eq!(Message::parse(&octets), Err(WireError::MajorVersion { major }));
        let header = Header::parse(&octets).expect("the fields can still be read for the answer");
        assert_eq!((header.version, header.message_id), ((major, 0), 7));
    }
}

#[test]
fn k_2_5_1_minor_version_is_ignored() {
    let mut octets = sample();
    octets[17] = 0x2f;
    let message = Message::parse(&octets).expect("a later minor version");
    assert_eq!(message.header.version, (2, 15));
}

#[test]
fn k_2_5_1_reserved_bits_are_ignored_and_payload_order_is_free() {
    let mut payloads = one_of_each();
    payloads.reverse();
    let (first, mut octets) = emit_chain(&payloads).expect("sample");
    let mut at = 0;
    while at < octets.len() {
        octets[at + 1] |= 0x7f;
        at += usize::from(u16::from_be_bytes([octets[at + 2], octets[at + 3]]));
    }
    assert_eq!(parse_chain(first, &octets).as_ref(), Ok(&payloads));
}

#[test]
fn k_2_5_2_critical_bit_counts_for_unknown_payloads_alone() {
    let mut octets = chain(&[0x5a; 16]);
    octets[1] = 0x80;
    let nonce = parse_chain(PayloadKind::NONCE.0, &octets).expect("known kind");
    assert_eq!(nonce, [Payload::Nonce(vec![0x5a; 16])]);
    let unknown = parse_chain(222, &octets).expect("unknown kind");
    assert_eq!(unknown, [Payload::Unknown { kind: 222, critical: true, data: vec![0x5a; 16] }]);
    assert_eq!(emit_chain(&unknown), Ok((222, octets.clone())));
    octets[1] = 0;
    let unknown = parse_chain(222, &octets).expect("unknown kind");
    assert_eq!(unknown, [Payload::Unknown { kind: 222, critical: false, data: vec![0x5a; 16] }]);
    assert_eq!(emit_chain(&unknown), Ok((222, octets)));
}

#[test]
fn k_3_2_payload_length_covers_its_own_header() {
    for length in 0..4 {
        let error = parse_chain(43, &[0, 0, 0, length]);
        let found = usize::from(length);
        let expected = WireError::Length { what: "payload length", at: 2, found, expected: 4 };
        assert_eq!(error, Err(expected));
    }
}

#[test]
fn k_3_2_a_chain_ends_where_its_octets_end() {
    let stray = WireError::Trailing { what: "last payload", at: 4, octets: 1 };
    assert_eq!(parse_chain(43, &[0, 0, 0, 4, 9]), Err(stray));
    let missing = WireError::Truncated { what: "next payload", at: 4, needed: 1, left: 0 };
    assert_eq!(parse_chain(43, &[43, 0, 0, 4]), Err(missing));
    let nothing = WireError::Trailing { what: "last payload", at: 0, octets: 4 };
    assert_eq!(parse_chain(0, &[0, 0, 0, 4]), Err(nothing));
}

#[test]
fn k_3_2_a_chain_is_bounded() {
    let payloads = vec![Payload::VendorId(Vec::new()); payload::MAX_PAYLOADS];
    let (first, mut octets) = emit_chain(&payloads).expect("sample");
    assert_eq!(parse_chain(first, &octets), Ok(payloads));
    let last = octets.len() - 4;
    octets[last] = 43;
    octets.extend([0, 0, 0, 4]);
    let error = parse_chain(first, &octets);
    assert!(matches!(error, Err(WireError::TooMany { what: "payloads", at: 512, .. })));
}

#[test]
fn k_3_14_encrypted_payload_hands_out_its_associated_data_and_body() {
    let header = header(ExchangeType::IKE_AUTH);
    let mut octets = emit_encrypted_prefix(&header, 35, 5).expect("short");
    let aad = octets.clone();
    octets.extend(b"abcde");
    assert_eq!(aad.len(), 32);
    let message = Message::parse(&octets).expect("well-formed");
    assert_eq!((message.header.next_payload, message.header.length), (46, 37));
    let expected = Encrypted { first_inner: 35, fragment: None, aad: &aad, body: b"abcde" };
    assert_eq!((message.encrypted, message.payloads), (Some(expected), Vec::new()));
}

#[test]
fn k_3_14_encrypted_payload_is_the_last_and_is_not_nested() {
    let header = header(ExchangeType::IKE_AUTH);
    let mut octets = emit_encrypted_prefix(&header, 35, 1).expect("short");
    octets.extend([0xee, 0, 0, 0, 4]);
    octets[27] += 4;
    let error = WireError::Trailing { what: "Encrypted payload", at: 33, octets: 4 };
    assert_eq!(Message::parse(&octets), Err(error));
    for kind in [46, 53] {
        let error = WireError::Value { what: "inner payload kind", at: 0, value: kind.into() };
        assert_eq!(parse_chain(kind, &[0, 0, 0, 8, 0, 1, 0, 1]), Err(error));
    }
}

#[test]
fn k_3_14_payloads_in_the_clear_may_come_before_the_encrypted_one() {
    let header = header(ExchangeType::INFORMATIONAL);
    let mut octets = emit_message(&header, &[Payload::VendorId(b"v".to_vec())]).expect("short");
    octets[28] = 46;
    octets.extend([41, 0, 0, 6, 0xaa, 0xbb]);
    octets[27] = 39;
    let message = Message::parse(&octets).expect("well-formed");
    assert_eq!(message.payloads, [Payload::VendorId(b"v".to_vec())]);
    let encrypted = message.encrypted.expect("encrypted");
    assert_eq!((encrypted.first_inner, encrypted.body), (41, &[0xaa, 0xbb][..]));
    assert_eq!(encrypted.aad, &octets[..37]);
}

#[test]
fn f_1_fragment_number_and_total_are_not_zero_and_in_order() {
    let header = header(ExchangeType::IKE_AUTH);
    for (number, total, good) in
        [(1, 1, true), (2, 3, true), (3, 3, true), (0, 3, false), (0, 0, false), (4, 3, false)]
    {
        let fragment = Fragment { number, total };
        let mut octets = emit_fragment_prefix(&header, 35, fragment, 2).expect("short");
        let aad = octets.clone();
        octets.extend([0xaa, 0xbb]);
        let message = Message::parse(&octets);
        assert_eq!(message.is_ok(), good, "{number} of {total}");
        if let Ok(Message { encrypted: Some(encrypted), .. }) = message {
            assert_eq!(encrypted.fragment, Some(fragment));
            assert_eq!((encrypted.aad, encrypted.body), (&aad[..], &[0xaa, 0xbb][..]));
        }
    }
}

#[test]
fn f_5_next_payload_counts_in_the_first_fragment_alone() {
    let header = header(ExchangeType::IKE_AUTH);
    for (number, first_inner) in [(1, 35), (2, 0)] {
        let fragment = Fragment { number, total: 2 };
        let mut octets = emit_fragment_prefix(&header, 35, fragment, 0).expect("short");
        assert_eq!(octets[28], first_inner);
        octets[28] = 35;
        let encrypted = Message::parse(&octets).expect("well-formed").encrypted;
        assert_eq!(encrypted.map(|encrypted| encrypted.first_inner), Some(first_inner));
    }
}

#[test]
fn what_does_not_fit_its_length_field_is_not_sent() {
    let header = header(ExchangeType::IKE_AUTH);
    let payload = |octets| Payload::VendorId(vec![0; octets]);
    assert!(emit_chain(&[payload(65531)]).is_ok());
    let error = TooLong { what: "payload", octets: 65536 };
    assert_eq!(emit_chain(&[payload(65532)]), Err(error));
    assert_eq!(emit_encrypted_prefix(&header, 0, 65532), Err(error));
    let spis = Delete::Esp(vec![EspSpi(1); 65536]);
    assert!(emit_chain(&[Payload::Delete(spis)]).is_err());
}
