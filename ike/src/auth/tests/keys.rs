//! Key files.

use super::{Signer, fixture, key};
use crate::{
    auth::{PrivateKey, PrivateKeyError},
    crypto::signature::{KeyKind, SignatureError, SignatureHash, SignatureScheme},
};

fn refused(file: &[u8]) -> PrivateKeyError {
    PrivateKey::from_file(file).err().expect("no key")
}

#[test]
fn key_files_in_each_form_give_the_same_key() {
    let pkcs8 = key(fixture!("rsa2048-a.pem"));
    let pkcs1 = key(fixture!("rsa2048-a-pkcs1.pem"));
    assert_eq!(pkcs8.public_key(), pkcs1.public_key());
    let pkcs8 = key(fixture!("p256-pkcs8.pem"));
    let sec1 = key(fixture!("p256-sec1.pem"));
    assert_eq!(pkcs8.public_key(), sec1.public_key());
    assert_eq!(pkcs8.public_key().kind(), KeyKind::P256);
    assert_eq!(key(fixture!("p384-sec1.pem")).public_key().kind(), KeyKind::P384);
    assert_eq!(key(fixture!("ed25519.pem")).public_key().kind(), KeyKind::Ed25519);
}

#[test]
fn a_pkcs8_key_is_read_as_der_too() {
    let blocks = crate::auth::pem::blocks(fixture!("p256-pkcs8.pem")).expect("PEM");
    let from_der = key(&blocks[0].der);
    assert_eq!(from_der.public_key(), key(fixture!("p256-sec1.pem")).public_key());
}

#[test]
fn files_that_are_no_key_for_us_are_named_by_kind() {
    assert_eq!(refused(fixture!("p256-encrypted.pem")), PrivateKeyError::Encrypted);
    assert!(matches!(refused(fixture!("p521-sec1.pem")), PrivateKeyError::Unsupported(_)));
    assert!(matches!(refused(fixture!("rsa1024.pem")), PrivateKeyError::Unsupported(_)));
    assert_eq!(refused(b""), PrivateKeyError::NotAKey);
    assert_eq!(refused(&[0x30, 0x80, 0, 0]), PrivateKeyError::NotAKey);
    let two = [fixture!("ed25519.pem"), fixture!("p256-pkcs8.pem")].concat();
    assert_eq!(refused(&two), PrivateKeyError::Several);
    let certificate = b"-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n";
    assert_eq!(refused(certificate), PrivateKeyError::Certificate);
    let old = b"-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n";
    assert_eq!(refused(old), PrivateKeyError::Encrypted);
}

#[test]
fn a_key_file_cut_short_anywhere_is_an_error_and_no_panic() {
    for file in [fixture!("p256-sec1.pem"), fixture!("ed25519.pem"), fixture!("rsa2048-a.pem")] {
        // The newline at the end may be missing.
        for length in 0..file.len() - 1 {
            refused(&file[..length]);
        }
        let block = &crate::auth::pem::blocks(file).expect("PEM").pop().expect("a key").der;
        for length in 0..block.len() {
            refused(&block[..length]);
        }
    }
}

#[test]
fn errors_about_key_files_do_not_show_what_is_in_them() {
    let damaged = b"-----BEGIN PRIVATE KEY-----\nc2VjcmV0c2VjcmV0\n-----END PRIVATE KEY-----\n";
    let error = refused(damaged);
    assert!(matches!(error, PrivateKeyError::Malformed(_)));
    for text in [error.to_string(), format!("{error:?}")] {
        assert!(!text.contains("c2Vj") && !text.contains("secret"), "{text}");
    }
}

#[test]
fn a_key_does_not_sign_with_another_kinds_scheme() {
    let schemes = [
        SignatureScheme::RsaPkcs1(SignatureHash::Sha256),
        SignatureScheme::RsaPss(SignatureHash::Sha256),
        SignatureScheme::Ecdsa(SignatureHash::Sha256),
        SignatureScheme::Ed25519,
    ];
    for key in super::keys() {
        for scheme in schemes {
            let made = key.sign(scheme, b"message");
            if key.public_key().kind().makes(scheme) {
                let signature = made.expect("a signature");
                assert_eq!(key.public_key().verify(scheme, b"message", &signature), Ok(()));
                assert_eq!(
                    key.public_key().verify(scheme, b"massage", &signature),
                    Err(SignatureError::Invalid)
                );
            } else {
                assert_eq!(made, Err(SignatureError::WrongKind));
                assert_eq!(
                    key.public_key().verify(scheme, b"message", &[0; 64]),
                    Err(SignatureError::WrongKind)
                );
            }
        }
    }
}

#[test]
fn signatures_but_those_of_rsa_pss_replay_byte_for_byte() {
    for key in super::keys() {
        let scheme = match key.public_key().kind() {
            KeyKind::Rsa => SignatureScheme::RsaPkcs1(SignatureHash::Sha512),
            KeyKind::P256 | KeyKind::P384 => SignatureScheme::Ecdsa(SignatureHash::Sha512),
            KeyKind::Ed25519 => SignatureScheme::Ed25519,
        };
        assert_eq!(key.sign(scheme, b"once"), key.sign(scheme, b"once"));
    }
}

#[test]
fn fast_ecdsa_signatures_are_the_same_keys() {
    for key in super::keys() {
        let kind = key.public_key().kind();
        let key = key.with_system_randomness();
        for hash in [SignatureHash::Sha256, SignatureHash::Sha384, SignatureHash::Sha512] {
            let scheme = SignatureScheme::Ecdsa(hash);
            if kind.makes(scheme) {
                let signature = key.sign(scheme, b"message").expect("a signature");
                assert_eq!(key.public_key().verify(scheme, b"message", &signature), Ok(()));
            } else {
                assert_eq!(key.sign(scheme, b"message"), Err(SignatureError::WrongKind));
            }
        }
    }
    let key = key(fixture!("p256-sec1.pem")).with_system_randomness();
    let scheme = SignatureScheme::Ecdsa(SignatureHash::Sha256);
    assert_ne!(key.sign(scheme, b"once"), key.sign(scheme, b"once"));
}

/// RFC 6979 §A.2.5: P-256 with SHA-256, message "sample".
#[test]
fn ecdsa_makes_the_signature_of_rfc_6979() {
    let sec1 = super::hex(
        "3031 020101 0420 C9AFA9D845BA75166B5C215767B1D6934E50C3DB36E89B127B8A622B120F6721 \
         a00a 06082a8648ce3d030107",
    );
    // PKCS#8 around it, so that no PEM has to be made.
    let mut file = super::hex("3049 020100 3013 06072a8648ce3d0201 06082a8648ce3d030107 0433");
    // 0x33 = 51 octets; the outer length is 3 + 21 + 2 + 51 = 77 = 0x4d.
    file[1] = 0x4d;
    file.extend(&sec1);
    let signature = key(&file)
        .sign(SignatureScheme::Ecdsa(SignatureHash::Sha256), b"sample")
        .expect("a signature");
    let fixed = crate::crypto::signature::ecdsa_to_fixed(KeyKind::P256, &signature);
    let expected = super::hex(
        "EFD48B2AACB6A8FD1140DD9CD45E81D69D2C877B56AAF991C34D0EA84EAF3716\
         F7CB1C942D657C41D436C7A1B6E29F65F3E900DBB9AFF4064DC4AB2F843ACDA8",
    );
    assert_eq!(fixed, Some(expected));
}
