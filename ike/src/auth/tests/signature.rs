//! The AUTH payload's signature: its form, the choice of algorithm, the methods.

use super::{Signer, fixture, hex, key, keys};
use crate::{
    auth::signature::{
        AuthSignatureError, HashAlgorithms, RsaPadding, algorithm_identifier, choose, emit, parse,
        sign, verify,
    },
    crypto::signature::{KeyKind, SignatureError, SignatureHash, SignatureScheme},
    wire::AuthMethod,
};

use SignatureHash::{Sha256, Sha384, Sha512};

const ALL: [SignatureScheme; 10] = [
    SignatureScheme::RsaPkcs1(Sha256),
    SignatureScheme::RsaPkcs1(Sha384),
    SignatureScheme::RsaPkcs1(Sha512),
    SignatureScheme::RsaPss(Sha256),
    SignatureScheme::RsaPss(Sha384),
    SignatureScheme::RsaPss(Sha512),
    SignatureScheme::Ecdsa(Sha256),
    SignatureScheme::Ecdsa(Sha384),
    SignatureScheme::Ecdsa(Sha512),
    SignatureScheme::Ed25519,
];

fn parse_identifier(algorithm: &[u8]) -> Result<SignatureScheme, AuthSignatureError> {
    let mut data = vec![u8::try_from(algorithm.len()).expect("short")];
    data.extend(algorithm);
    parse(&data).map(|(scheme, rest)| {
        assert!(rest.is_empty());
        scheme
    })
}

#[test]
fn rfc_7427_algorithm_identifiers_are_those_of_appendix_a() {
    let known = [
        (SignatureScheme::RsaPkcs1(Sha256), "300d 0609 2a86 4886 f70d 0101 0b05 00"),
        (SignatureScheme::RsaPkcs1(Sha384), "300d 0609 2a86 4886 f70d 0101 0c05 00"),
        (SignatureScheme::RsaPkcs1(Sha512), "300d 0609 2a86 4886 f70d 0101 0d05 00"),
        (SignatureScheme::Ecdsa(Sha256), "300a 0608 2a86 48ce 3d04 0302"),
        (SignatureScheme::Ecdsa(Sha384), "300a 0608 2a86 48ce 3d04 0303"),
        (SignatureScheme::Ecdsa(Sha512), "300a 0608 2a86 48ce 3d04 0304"),
        // RFC 8420 appendix A
        (SignatureScheme::Ed25519, "3005 0603 2b65 70"),
        // RFC 4055 §6, without the trailer field that is the default
        (
            SignatureScheme::RsaPss(Sha256),
            "3041 0609 2a86 4886 f70d 0101 0a30 34a0 0f30 0d06 0960 8648 0165 0304 0201 0500 a11c \
             301a 0609 2a86 4886 f70d 0101 0830 0d06 0960 8648 0165 0304 0201 0500 a203 0201 20",
        ),
    ];
    for (scheme, octets) in known {
        assert_eq!(algorithm_identifier(scheme), hex(octets), "{scheme:?}");
    }
    for scheme in ALL {
        let data = emit(scheme, b"signature");
        assert_eq!(parse(&data), Ok((scheme, b"signature".as_slice())));
    }
}

#[test]
fn rfc_7427_pss_parameters_are_all_there_and_agree() {
    // Appendix A.4.3, with its trailer field.
    let spelled = "3046 0609 2a86 4886 f70d 0101 0a30 39a0 0f30 0d06 0960 8648 0165 0304 0201 0500 \
                   a11c 301a 0609 2a86 4886 f70d 0101 0830 0d06 0960 8648 0165 0304 0201 0500 a203 \
                   0201 20a3 0302 0101";
    assert_eq!(parse_identifier(&hex(spelled)), Ok(SignatureScheme::RsaPss(Sha256)));
    let spelled = hex(spelled);
    let changed = |at: usize, octet: u8| {
        let mut copy = spelled.clone();
        copy[at] = octet;
        parse_identifier(&copy)
    };
    let refused = Err(AuthSignatureError::Algorithm);
    // Appendix A.4.1 and A.4.2: both mean SHA-1.
    assert_eq!(parse_identifier(&hex("300d 0609 2a86 4886 f70d 0101 0a30 00")), refused);
    let default = "303e 0609 2a86 4886 f70d 0101 0a30 31a0 0b30 0906 052b 0e03 021a 0500 a118 3016 \
                   0609 2a86 4886 f70d 0101 0830 0906 052b 0e03 021a 0500 a203 0201 14a3 0302 0101";
    assert_eq!(parse_identifier(&hex(default)), refused);
    // No parameters at all are no PSS.
    let absent = parse_identifier(&hex("300b 0609 2a86 4886 f70d 0101 0a"));
    assert_eq!(absent, Err(AuthSignatureError::Malformed));
    assert_eq!(changed(29, 0x02), refused, "hash and mask differ");
    assert_eq!(changed(59, 0x03), refused, "mask and hash differ");
    assert_eq!(changed(46, 0x07), refused, "no MGF1");
    assert_eq!(changed(66, 0x14), refused, "salt of 20");
    assert_eq!(changed(66, 0x00), refused, "no salt (CVE-2018-6459 and its kin)");
    assert_eq!(changed(66, 0xe0), Err(AuthSignatureError::Malformed), "negative salt");
    assert_eq!(changed(71, 0x02), refused, "trailer of 2");
    assert_eq!(changed(29, 0x04), refused, "SHA-224");
}

#[test]
fn rfc_7427_trailing_octets_in_the_algorithm_identifier_are_refused() {
    for scheme in ALL {
        let good = algorithm_identifier(scheme);
        let mut behind = good.clone();
        behind.push(0);
        assert_eq!(parse_identifier(&behind), Err(AuthSignatureError::Malformed), "{scheme:?}");
        // CVE-2018-16151: one octet more inside of the outer sequence.
        let mut inside = behind.clone();
        inside[1] += 1;
        assert_eq!(parse_identifier(&inside), Err(AuthSignatureError::Malformed), "{scheme:?}");
        // And a well-formed element there.
        let mut inside = good.clone();
        inside[1] += 2;
        inside.extend([5, 0]);
        let found = parse_identifier(&inside);
        assert_eq!(found, Err(AuthSignatureError::Malformed), "{scheme:?}");
        for length in 0..good.len() {
            assert_eq!(parse_identifier(&good[..length]), Err(AuthSignatureError::Malformed));
        }
    }
    assert_eq!(parse(&[]), Err(AuthSignatureError::Malformed));
    assert_eq!(parse(&[200, 0x30]), Err(AuthSignatureError::Malformed));
}

#[test]
fn rfc_7427_a_length_that_is_not_the_shortest_is_refused() {
    let long = hex("30810a 0608 2a86 48ce 3d04 0302");
    assert_eq!(parse_identifier(&long), Err(AuthSignatureError::Malformed));
    let indefinite = hex("3080 0608 2a86 48ce 3d04 0302 0000");
    assert_eq!(parse_identifier(&indefinite), Err(AuthSignatureError::Malformed));
}

#[test]
fn rfc_8247_sha1_signatures_are_refused() {
    for octets in [
        "300d 0609 2a86 4886 f70d 0101 0505 00", // sha1WithRSAEncryption
        "3009 0607 2a86 48ce 3d04 01",           // ecdsa-with-sha1
        "3009 0607 2a86 48ce 3804 03",           // dsa-with-sha1
        "300b 0609 6086 4801 6503 0403 02",      // dsa-with-sha256
    ] {
        assert_eq!(parse_identifier(&hex(octets)), Err(AuthSignatureError::Algorithm));
    }
    // A peer that knows SHA-1 alone gets nothing signed.
    let only_sha1 = HashAlgorithms::parse(&[0, 1]).expect("a list");
    for key in keys() {
        let made = sign(&key, RsaPadding::Pss, Some(only_sha1), b"octets");
        assert_eq!(made, Err(AuthSignatureError::NoCommonHash));
    }
    // Method 1 with SHA-1: made with OpenSSL over "octets" by rsa2048-a.
    let data = fixture!("rsa2048-a-sha1.sig");
    let rsa = key(fixture!("rsa2048-a.pem"));
    let refused = verify(rsa.public_key(), false, (AuthMethod::RSA_SIGNATURE, data), b"octets");
    assert_eq!(refused, Err(AuthSignatureError::Method(AuthMethod::RSA_SIGNATURE)));
}

#[test]
fn rfc_7427_the_hash_is_one_that_the_peer_sent() {
    let ours = HashAlgorithms::OURS.emit();
    assert_eq!(ours, [0, 2, 0, 3, 0, 4, 0, 5]);
    assert_eq!(HashAlgorithms::parse(&ours), Ok(HashAlgorithms::OURS));
    assert_eq!(HashAlgorithms::parse(&[0, 2, 0]), Err(AuthSignatureError::HashList));
    let list = |data: &[u8]| HashAlgorithms::parse(data).expect("a list");
    let pss = RsaPadding::Pss;
    let scheme = |kind, padding, data: &[u8]| choose(kind, padding, list(data));
    assert_eq!(
        scheme(KeyKind::Rsa, pss, &[0, 1, 0, 4, 0, 3]),
        Some(SignatureScheme::RsaPss(Sha384))
    );
    assert_eq!(
        scheme(KeyKind::Rsa, RsaPadding::Pkcs1, &[0, 4]),
        Some(SignatureScheme::RsaPkcs1(Sha512))
    );
    assert_eq!(scheme(KeyKind::P256, pss, &ours), Some(SignatureScheme::Ecdsa(Sha256)));
    assert_eq!(scheme(KeyKind::P384, pss, &ours), Some(SignatureScheme::Ecdsa(Sha384)));
    assert_eq!(scheme(KeyKind::P384, pss, &[0, 2]), Some(SignatureScheme::Ecdsa(Sha256)));
    // RFC 8420 §2: Identity is number 5, and unknown numbers are passed over.
    assert_eq!(scheme(KeyKind::Ed25519, pss, &[0, 2, 0, 3, 0, 4]), None);
    assert_eq!(scheme(KeyKind::Ed25519, pss, &[0xff, 0xff, 0, 5]), Some(SignatureScheme::Ed25519));
    assert_eq!(scheme(KeyKind::Rsa, pss, &[]), None);
}

#[test]
fn rfc_7427_each_kind_of_key_proves_itself_with_method_14() {
    for key in keys() {
        for padding in [RsaPadding::Pss, RsaPadding::Pkcs1] {
            for list in [[0, 2, 0, 5], [0, 3, 0, 5], [0, 4, 0, 5]] {
                let peer = HashAlgorithms::parse(&list).expect("a list");
                let (method, data) =
                    sign(&key, padding, Some(peer), b"octets").expect("a signature");
                assert_eq!(method, AuthMethod::DIGITAL_SIGNATURE);
                let check =
                    |both, message: &[u8]| verify(key.public_key(), both, (method, &data), message);
                assert_eq!(check(true, b"octets"), Ok(()));
                let wrong = Err(AuthSignatureError::Signature(SignatureError::Invalid));
                assert_eq!(check(true, b"octetz"), wrong);
                assert_eq!(check(false, b"octets"), Err(AuthSignatureError::Method(method)));
            }
        }
    }
}

#[test]
fn rfc_7427_the_old_methods_are_for_peers_without_the_notify_alone() {
    let [rsa, p256, p384, ed25519] = keys();
    for (key, old) in [(&p256, AuthMethod::ECDSA_256), (&p384, AuthMethod::ECDSA_384)] {
        let (method, data) = sign(key, RsaPadding::Pss, None, b"octets").expect("a signature");
        assert_eq!(method, old);
        let check = |both, message: &[u8]| verify(key.public_key(), both, (old, &data), message);
        assert_eq!(check(false, b"octets"), Ok(()));
        assert!(check(false, b"octetz").is_err());
        assert_eq!(check(true, b"octets"), Err(AuthSignatureError::Method(old)));
        if let Some(length) = key.public_key().kind().field_len() {
            // RFC 4754 §7: fixed length.
            assert_eq!(data.len(), 2 * length);
            let longer = [&data[..], &[0]].concat();
            assert!(verify(key.public_key(), false, (old, &longer), b"octets").is_err());
        }
    }
    // RFC 8420: Ed25519 exists in method 14 alone; RSA does so here.
    for key in [&ed25519, &rsa] {
        let made = sign(key, RsaPadding::Pkcs1, None, b"octets");
        assert_eq!(made, Err(AuthSignatureError::NoCommonHash));
    }
    for method in [0, 1, 2, 3, 11, 12, 13, 15].map(AuthMethod) {
        let refused = verify(rsa.public_key(), false, (method, &[0; 256]), b"octets");
        assert_eq!(refused, Err(AuthSignatureError::Method(method)));
    }
    // A method of another curve than the key's.
    let refused = verify(p256.public_key(), false, (AuthMethod::ECDSA_384, &[1; 96]), b"octets");
    assert_eq!(refused, Err(AuthSignatureError::Signature(SignatureError::WrongKind)));
}

#[test]
fn a_signature_of_another_kind_than_the_key_is_refused() {
    let keys = keys();
    for signer in &keys {
        let peer = Some(HashAlgorithms::OURS);
        let (method, data) = sign(signer, RsaPadding::Pss, peer, b"octets").expect("a signature");
        for other in keys.iter().filter(|other| other.public_key() != signer.public_key()) {
            assert!(verify(other.public_key(), true, (method, &data), b"octets").is_err());
        }
    }
}
