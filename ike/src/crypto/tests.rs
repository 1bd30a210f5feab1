//! Known answers and refusals.

use super::*;
use crate::{child::HmacSha2, random::Random, secret::Secret};

const ENCRYPTIONS: [IkeEncryption; 10] = [
    IkeEncryption::AesGcm16 { key_bits: 128 },
    IkeEncryption::AesGcm16 { key_bits: 192 },
    IkeEncryption::AesGcm16 { key_bits: 256 },
    IkeEncryption::ChaCha20Poly1305,
    IkeEncryption::AesCbc { key_bits: 128, integrity: HmacSha2::Sha256 },
    IkeEncryption::AesCbc { key_bits: 128, integrity: HmacSha2::Sha512 },
    IkeEncryption::AesCbc { key_bits: 192, integrity: HmacSha2::Sha384 },
    IkeEncryption::AesCbc { key_bits: 256, integrity: HmacSha2::Sha256 },
    IkeEncryption::AesCbc { key_bits: 256, integrity: HmacSha2::Sha384 },
    IkeEncryption::AesCbc { key_bits: 256, integrity: HmacSha2::Sha512 },
];

fn pair(encryption: IkeEncryption, random: &mut Random) -> (Sealer, Opener) {
    let mut e = vec![0; encryption.encryption_key_len()];
    random.fill(&mut e);
    let mut a = vec![0; encryption.integrity_key_len()];
    random.fill(&mut a);
    let (e, a) = (Secret::new(e), Secret::new(a));
    (Sealer::new(encryption, &e, &a).unwrap(), Opener::new(encryption, &e, &a).unwrap())
}

#[test]
fn k_3_14_what_is_sealed_opens_at_every_length() {
    let mut random = Random::from_seed([1; 32]);
    for encryption in ENCRYPTIONS {
        let (mut sealer, opener) = pair(encryption, &mut random);
        let prefix: [u8; 32] = random.array();
        for len in 0..=100 {
            let mut plain = vec![0; len];
            random.fill(&mut plain);
            let body = sealer.seal(&mut random, &prefix, &plain).unwrap();
            assert_eq!(body.len(), sealer.sealed_len(len), "{encryption:?}");
            assert_eq!(*opener.open(&prefix, &body).unwrap(), plain, "{encryption:?}");
        }
    }
}

/// Octets from hexadecimal digits, white space between them ignored.
fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u32> =
        text.split_whitespace().flat_map(str::chars).map(|c| c.to_digit(16).unwrap()).collect();
    assert!(digits.len().is_multiple_of(2));
    digits.chunks(2).map(|pair| (pair[0] * 16 + pair[1]) as u8).collect()
}

/// RFC 7634, Appendix B: a whole IKEv2 message.
#[test]
fn k_3_14_chacha20_poly1305_gives_the_message_of_rfc_7634() {
    let mut key: Vec<u8> = (0x80..=0x9f).collect();
    key.extend([0xa0, 0xa1, 0xa2, 0xa3]);
    let (key, none) = (Secret::new(key), Secret::default());
    let message = hex("c0c1c2c3c4c5c6c7d0d1d2d3d4d5d6d7 2e202500000000090000004529000029
         1011121314151617 610394701f8d017f7c12924889 6b71bfe25236efd7cdc67066906315b2");
    let plain = hex("0000000c000040010000000a");
    let (prefix, body) = message.split_at(32);

    let sealer = Sealer::new(IkeEncryption::ChaCha20Poly1305, &key, &none).unwrap();
    assert_eq!(sealer.seal_with_iv(&body[..8], prefix, &plain), body);
    let opener = Opener::new(IkeEncryption::ChaCha20Poly1305, &key, &none).unwrap();
    assert_eq!(*opener.open(prefix, body).unwrap(), plain);
}
