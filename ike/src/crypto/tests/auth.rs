//! The AUTH value, the NAT detection hash and the keyed hash. The answers were computed with
//! another implementation of HMAC and SHA-1; RFC 7296 has none.

use super::hex;
use crate::{crypto::*, secret::Secret};

const ID_BODY: &[u8] = b"\x02\0\0\0gateway.example.com";

fn signed(prf: Prf) -> Vec<u8> {
    let sk_p = Secret::new((0..prf.key_len() as u8).collect());
    let nonce: Vec<u8> = (0x20..0x40).collect();
    signed_octets(prf, &sk_p, b"first message", &nonce, ID_BODY)
}

#[test]
fn k_2_15_1_auth_is_the_prf_of_the_padded_psk_over_the_signed_octets() {
    let psk = Secret::new(b"correct horse battery staple".to_vec());
    for (prf, answer) in [
        (Prf::HmacSha256, "c9dd47bc1911254a9eeefe5c82b27a3db11089a5a05e7d8fd26879759c02bdc9"),
        (
            Prf::HmacSha384,
            "b67815df3545139534404b496eee5df5a3981d31ae4928ed
             20f9383e4d7d351ff0f4f56446c11076f5fda183d598cd0e",
        ),
        (
            Prf::HmacSha512,
            "96026326f4fc938facdd6da287656cde868602f388372c1107cfd33bd096a161
             31482c5fe4baac0e09e3c3ee572deef0262ea0eeeb6029a7b79c9cebf3ba7856",
        ),
    ] {
        let signed = signed(prf);
        let auth = psk_auth(prf, &psk, &signed);
        assert_eq!(auth, hex(answer), "{prf:?}");
        assert_eq!(verify_psk_auth(prf, &psk, &signed, &auth), Ok(()));
    }
}

#[test]
fn k_2_15_1_any_other_auth_is_refused() {
    let prf = Prf::HmacSha256;
    let psk = Secret::new(b"secret".to_vec());
    let signed = signed(prf);
    let auth = psk_auth(prf, &psk, &signed);
    let refused = |psk: &Secret, signed: &[u8], auth: &[u8]| {
        assert_eq!(verify_psk_auth(prf, psk, signed, auth), Err(CryptoError::AuthenticationFailed));
    };
    for bit in 0..auth.len() * 8 {
        let mut other = auth.clone();
        other[bit / 8] ^= 1 << (bit % 8);
        refused(&psk, &signed, &other);
    }
    for bit in 0..signed.len() * 8 {
        let mut other = signed.clone();
        other[bit / 8] ^= 1 << (bit % 8);
        refused(&psk, &other, &auth);
    }
    // A value that is cut short, or longer, proves nothing; nor does another key.
    refused(&psk, &signed, &[]);
    refused(&psk, &signed, &auth[..auth.len() - 1]);
    refused(&psk, &signed, &[auth.as_slice(), &[0]].concat());
    refused(&Secret::new(b"Secret".to_vec()), &signed, &auth);
}

#[test]
fn k_2_23_nat_detection_hashes_spis_address_and_port() {
    let spi_i = [0xc0, 0xc1, 0xc2, 0xc3, 0xc4, 0xc5, 0xc6, 0xc7];
    let spi_r = [0xd0, 0xd1, 0xd2, 0xd3, 0xd4, 0xd5, 0xd6, 0xd7];
    for (address, answer) in [
        ("192.0.2.1:500", "125898e9316465b8697b2b9157ccbe108a54a2cc"),
        ("[::ffff:192.0.2.1]:500", "125898e9316465b8697b2b9157ccbe108a54a2cc"),
        ("[2001:db8::1]:4500", "3c82ae1475df7310d5ea4bbd27f8e02c97fec660"),
    ] {
        let hash = nat_detection_hash(&spi_i, &spi_r, address.parse().unwrap());
        assert_eq!(hash.to_vec(), hex(answer), "{address}");
    }
}

#[test]
fn mac_sha256_gives_the_answer_of_rfc_4868() {
    assert_eq!(
        mac_sha256(b"Jefe", &[b"what do ya want ", b"for nothing?"]).to_vec(),
        hex("5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"),
    );
    assert!(constant_time_eq(b"same", b"same"));
    assert!(!constant_time_eq(b"same", b"sane"));
    assert!(!constant_time_eq(b"same", b"sam"));
    assert!(constant_time_eq(b"", b""));
}

#[test]
fn no_secret_is_printed() {
    let secret = Secret::new(vec![0xa5; 36]);
    let none = Secret::default();
    let encryption = IkeEncryption::ChaCha20Poly1305;
    let mut random = crate::Random::from_seed([0xa5; 32]);
    let keys = SkKeys {
        d: secret.clone(),
        ai: none.clone(),
        ar: none.clone(),
        ei: secret.clone(),
        er: secret.clone(),
        pi: secret.clone(),
        pr: secret.clone(),
    };
    let text = format!(
        "{:?} {:?} {:?} {:?}",
        keys,
        Sealer::new(encryption, &secret, &none).unwrap(),
        Opener::new(encryption, &secret, &none).unwrap(),
        KeyExchange::generate(KeyExchangeMethod::Ecp256, &mut random),
    );
    assert!(!text.contains("165") && !text.to_lowercase().contains("a5"), "{text}");
}
