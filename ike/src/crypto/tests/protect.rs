//! The SK payload: published examples, round trips, and every way to tamper with a message.

use std::collections::BTreeSet;

use aes_gcm::aead::array::Array;
use cbc::cipher::{BlockModeEncrypt, KeyIvInit};
use ring::{aead, hmac};

use super::hex;
use crate::{child::HmacSha2, crypto::*, random::Random, secret::Secret};

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

fn keys(encryption: IkeEncryption, random: &mut Random) -> (Secret, Secret) {
    let mut e = vec![0; encryption.encryption_key_len()];
    random.fill(&mut e);
    let mut a = vec![0; encryption.integrity_key_len()];
    random.fill(&mut a);
    (Secret::new(e), Secret::new(a))
}

fn pair(encryption: IkeEncryption, random: &mut Random) -> (Sealer, Opener) {
    let (e, a) = keys(encryption, random);
    (Sealer::new(encryption, &e, &a).unwrap(), Opener::new(encryption, &e, &a).unwrap())
}

#[test]
fn k_3_14_what_is_sealed_opens_at_every_length() {
    let mut random = Random::from_seed([1; 32]);
    for encryption in ENCRYPTIONS {
        let (mut sealer, opener) = pair(encryption, &mut random);
        let prefix: [u8; 32] = random.array();
        for len in (0..=100).chain([1400, 65000]) {
            let mut plain = vec![0; len];
            random.fill(&mut plain);
            let body = sealer.seal(&mut random, &prefix, &plain).unwrap();
            assert_eq!(body.len(), sealer.sealed_len(len), "{encryption:?}");
            assert_eq!(*opener.open(&prefix, &body).unwrap(), plain, "{encryption:?}");
        }
    }
}

#[test]
fn k_3_14_every_flipped_bit_is_refused() {
    let mut random = Random::from_seed([2; 32]);
    for encryption in ENCRYPTIONS {
        let (mut sealer, opener) = pair(encryption, &mut random);
        let prefix: [u8; 32] = random.array();
        let body = sealer.seal(&mut random, &prefix, &random_plain()).unwrap();
        let message = [prefix.as_slice(), &body].concat();
        for bit in 0..message.len() * 8 {
            let mut message = message.clone();
            message[bit / 8] ^= 1 << (bit % 8);
            let (prefix, body) = message.split_at(32);
            assert_eq!(
                opener.open(prefix, body),
                Err(CryptoError::IntegrityFailed),
                "{encryption:?} bit {bit}"
            );
        }
    }
}

fn random_plain() -> [u8; 40] {
    Random::from_seed([9; 32]).array()
}

#[test]
fn k_3_14_every_other_length_is_refused() {
    let mut random = Random::from_seed([3; 32]);
    for encryption in ENCRYPTIONS {
        let (mut sealer, opener) = pair(encryption, &mut random);
        let prefix: [u8; 32] = random.array();
        let body = sealer.seal(&mut random, &prefix, &random_plain()).unwrap();
        for len in 0..body.len() {
            assert!(opener.open(&prefix, &body[..len]).is_err(), "{encryption:?} {len}");
            assert!(opener.open(&prefix, &body[body.len() - len..]).is_err(), "{encryption:?}");
        }
        for more in [1, 8, 16, 32] {
            let longer = [body.as_slice(), &vec![0; more]].concat();
            assert!(opener.open(&prefix, &longer).is_err(), "{encryption:?}");
        }
        // An AEAD also binds where the body starts; an HMAC leaves that to the lengths in the
        // header.
        if encryption.integrity().is_none() {
            let (moved, rest) = body.split_at(16);
            let longer_prefix = [prefix.as_slice(), moved].concat();
            assert!(opener.open(&longer_prefix, rest).is_err(), "{encryption:?}");
        }
    }
}

#[test]
fn k_3_14_another_key_opens_nothing() {
    let mut random = Random::from_seed([4; 32]);
    for encryption in ENCRYPTIONS {
        let (mut sealer, _) = pair(encryption, &mut random);
        let (_, opener) = pair(encryption, &mut random);
        let body = sealer.seal(&mut random, b"prefix", &random_plain()).unwrap();
        assert_eq!(opener.open(b"prefix", &body), Err(CryptoError::IntegrityFailed));
    }
}

#[test]
fn k_3_14_no_iv_comes_twice() {
    let mut random = Random::from_seed([5; 32]);
    for encryption in ENCRYPTIONS {
        let (mut sealer, _) = pair(encryption, &mut random);
        let iv_len = if encryption.integrity().is_some() { 16 } else { 8 };
        let ivs: BTreeSet<Vec<u8>> = (0..1000)
            .map(|_| sealer.seal(&mut random, b"prefix", b"plain").unwrap()[..iv_len].to_vec())
            .collect();
        assert_eq!(ivs.len(), 1000, "{encryption:?}");
    }
}

#[test]
fn keys_of_a_wrong_length_are_refused() {
    let mut random = Random::from_seed([6; 32]);
    for encryption in ENCRYPTIONS {
        let (e, a) = keys(encryption, &mut random);
        let longer = |key: &Secret| Secret::new([key.expose(), &[0]].concat());
        let shorter =
            |key: &Secret| Secret::new(key.expose()[..key.len().saturating_sub(1)].into());
        for (e, a) in [
            (longer(&e), a.clone()),
            (shorter(&e), a.clone()),
            (Secret::default(), a.clone()),
            (e.clone(), longer(&a)),
        ] {
            assert_eq!(Sealer::new(encryption, &e, &a).err(), Some(CryptoError::KeyLength));
            assert_eq!(Opener::new(encryption, &e, &a).err(), Some(CryptoError::KeyLength));
        }
    }
    for key_bits in [0, 8, 64, 160, 512] {
        let integrity = HmacSha2::Sha256;
        for encryption in
            [IkeEncryption::AesGcm16 { key_bits }, IkeEncryption::AesCbc { key_bits, integrity }]
        {
            let (e, a) = keys(encryption, &mut random);
            assert_eq!(Sealer::new(encryption, &e, &a).err(), Some(CryptoError::KeyLength));
        }
    }
}

/// A sender of its own, for the plaintexts that ours never makes: `content` goes in whole.
fn seal_content(chacha: bool, e: &Secret, a: &Secret, prefix: &[u8], content: &[u8]) -> Vec<u8> {
    if chacha {
        let (key, salt) = e.expose().split_at(32);
        let nonce: [u8; 12] = [salt, b"\0\0\0\0\0\0\0\x07"].concat().try_into().unwrap();
        let key = aead::UnboundKey::new(&aead::CHACHA20_POLY1305, key).unwrap();
        let mut sealed = content.to_vec();
        aead::LessSafeKey::new(key)
            .seal_in_place_append_tag(
                aead::Nonce::assume_unique_for_key(nonce),
                aead::Aad::from(prefix),
                &mut sealed,
            )
            .unwrap();
        [&nonce[4..], &sealed].concat()
    } else {
        let iv = [7; 16];
        let mut sealed = content.to_vec();
        let (blocks, rest) = Array::slice_as_chunks_mut(&mut sealed);
        assert!(rest.is_empty());
        cbc::Encryptor::<aes::Aes128>::new_from_slices(e.expose(), &iv)
            .unwrap()
            .encrypt_blocks(blocks);
        let body = [iv.as_slice(), &sealed].concat();
        let key = hmac::Key::new(hmac::HMAC_SHA256, a.expose());
        let mac = hmac::sign(&key, &[prefix, &body].concat());
        [body.as_slice(), &mac.as_ref()[..16]].concat()
    }
}

fn seal_content_cases() -> [(bool, IkeEncryption); 2] {
    [
        (true, IkeEncryption::ChaCha20Poly1305),
        (false, IkeEncryption::AesCbc { key_bits: 128, integrity: HmacSha2::Sha256 }),
    ]
}

#[test]
fn k_3_14_any_padding_is_accepted() {
    let mut random = Random::from_seed([7; 32]);
    for (chacha, encryption) in seal_content_cases() {
        let (e, a) = keys(encryption, &mut random);
        let opener = Opener::new(encryption, &e, &a).unwrap();
        for pad in 0..=255u8 {
            // A whole number of blocks, for CBC.
            let len = (usize::from(pad) + 1).next_multiple_of(16) + 32 - usize::from(pad) - 1;
            let mut content = vec![0; len + usize::from(pad)];
            random.fill(&mut content);
            let plain = content[..len].to_vec();
            content.push(pad);
            let body = seal_content(chacha, &e, &a, b"prefix", &content);
            assert_eq!(*opener.open(b"prefix", &body).unwrap(), plain, "{encryption:?} {pad}");
        }
        // All padding: no payload at all is the caller's to judge.
        let content = [[0xee; 31].as_slice(), &[31]].concat();
        let body = seal_content(chacha, &e, &a, b"prefix", &content);
        assert!(opener.open(b"prefix", &body).unwrap().is_empty());
    }
}

#[test]
fn k_3_14_a_pad_length_beyond_the_content_is_refused() {
    let mut random = Random::from_seed([8; 32]);
    for (chacha, encryption) in seal_content_cases() {
        let (e, a) = keys(encryption, &mut random);
        let opener = Opener::new(encryption, &e, &a).unwrap();
        for pad in 16..=255u8 {
            let content = [[pad; 15].as_slice(), &[pad]].concat();
            let body = seal_content(chacha, &e, &a, b"prefix", &content);
            assert_eq!(opener.open(b"prefix", &body), Err(CryptoError::InvalidPadding), "{pad}");
        }
        let empty = seal_content(chacha, &e, &a, b"prefix", &[]);
        let expected =
            if chacha { CryptoError::InvalidPadding } else { CryptoError::MalformedCiphertext };
        assert_eq!(opener.open(b"prefix", &empty), Err(expected));
    }
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

/// draft-mcgrew-gcm-test-01: ESP packets. Their last octet is a Next Header of 1; in an SK payload
/// it is a Pad Length, so that ours reads two octets less.
#[test]
fn k_3_14_aes_gcm_opens_the_packets_of_draft_mcgrew() {
    for (key, salt, iv, prefix, plain, sealed) in [
        (
            "4c80cdefbb5d10da906ac73c3613a634",
            "2e443b68",
            "4956ed7e3b244cfe",
            "000043218765432100000000",
            "45000048699a000080114db7c0a80102c0a801010a9bf15638d3010000010000
             00000000045f736970045f756470037369700963796265726369747902646b00
             0021000101020201",
            "fecf537e729d5b07dc30df528dd22b768d1b98736696a6fd348509fa13ceac34
             cfa2436f14a3f3cf65925bf1f4a13c5d15b21e1884f5ff6247aeabb786b93bce
             61bc17d768fd9732 459018148f6cbe722fd04796562dfdb4",
        ),
        (
            "feffe9928665731c6d6a8f9467308308feffe9928665731c",
            "cafebabe",
            "facedbaddecaf888",
            "0000a5f80000000a",
            "45000028a4ad4000400678800a01038f0a010612802306b8cb712602dd6bb03e
             501016d075680001",
            "a5b1f8066029aea40e598b8122de02420938b3ab33f828e687b8858b5bfbdbd0
             315b27452144cc77 95457b9652037f5318027b5b4cd7a636",
        ),
        (
            "abbccddef00112233445566778899aababbccddef00112233445566778899aab",
            "11223344",
            "0102030405060708",
            "4a2cbfe300000002",
            "4500003069a6400080062690c0a801029389155e0a9e008b2dc57ee000000000
             7002400020bf0000020405b40101040201020201",
            "ff425c9b724599df7a3bcd510194e00d6a78107f1b0b1cbf06efae9d65a5d763
             748a637985771d347f0545659f14e99def842d8e b335f4eecfdbf831824b4c4915956c96",
        ),
    ] {
        let key = hex(key);
        let encryption = IkeEncryption::AesGcm16 { key_bits: key.len() as u16 * 8 };
        let key = Secret::new([key, hex(salt)].concat());
        let none = Secret::default();
        let (prefix, plain) = (hex(prefix), hex(plain));
        let body = [hex(iv), hex(sealed)].concat();

        let opener = Opener::new(encryption, &key, &none).unwrap();
        assert_eq!(*opener.open(&prefix, &body).unwrap(), plain[..plain.len() - 2]);
        // Ours ends in a Pad Length of 0: all ciphertext before that octet is the same.
        let sealer = Sealer::new(encryption, &key, &none).unwrap();
        let ours = sealer.seal_with_iv(&hex(iv), &prefix, &plain[..plain.len() - 1]);
        assert_eq!(ours.len(), body.len());
        assert_eq!(ours[..8 + plain.len() - 1], body[..8 + plain.len() - 1]);
    }
}

/// RFC 3602 §4, case 4, with our last block behind it, and the HMAC over all of it.
#[test]
fn k_3_14_aes_cbc_gives_the_ciphertext_of_rfc_3602() {
    let encryption = IkeEncryption::AesCbc { key_bits: 128, integrity: HmacSha2::Sha256 };
    let key = Secret::new(hex("56e47a38c5598974bc46903dba290349"));
    let sk_a = Secret::new(vec![0x0b; 32]);
    let iv = hex("8ce82eefbea0da3c44699ed7db51b7d9");
    let plain: Vec<u8> = (0xa0..=0xdf).collect();
    let ciphertext = hex("c30e32ffedc0774e6aff6af0869f71aa0f3af07a9a31a9c684db207eb0ef8e4e
         35907aa632c3ffdf868bb7b29d3d46ad83ce9f9a102ee99d49a53e87f4c3da55");

    let body = Sealer::new(encryption, &key, &sk_a).unwrap().seal_with_iv(&iv, b"prefix", &plain);
    assert_eq!(body.len(), 16 + 64 + 16 + 16);
    assert_eq!(body[..16], iv);
    assert_eq!(body[16..80], ciphertext);
    let (message, icv) = body.split_at(96);
    assert_eq!(icv, &mac_sha256(sk_a.expose(), &[b"prefix", message])[..16]);
    let opener = Opener::new(encryption, &key, &sk_a).unwrap();
    assert_eq!(*opener.open(b"prefix", &body).unwrap(), plain);
}
