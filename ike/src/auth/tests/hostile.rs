//! Octets that nobody meant to be anything: no reader may panic, whatever it says about them.

use proptest::prelude::*;

use super::{fixture, key};
use crate::{
    auth::{Certificate, HashAlgorithms, PrivateKey, signature},
    crypto::signature::{PublicKey, SignatureHash, SignatureScheme},
    wire::AuthMethod,
};

use super::Signer;

/// Nested elements with lengths that may lie.
fn almost_der() -> impl Strategy<Value = Vec<u8>> {
    let tags = [0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x30, 0x31, 0x82, 0xa0, 0xa1, 0xa3, 0x1f];
    let leaf = proptest::collection::vec(any::<u8>(), 0..12);
    leaf.prop_recursive(6, 64, 6, move |inner| {
        let element = (proptest::sample::select(tags.to_vec()), inner, 0..20u8).prop_map(
            |(tag, contents, lie)| {
                let length = u8::try_from(contents.len() & 0x7f).unwrap_or_default();
                let length = if lie == 0 { length ^ 0x81 } else { length };
                [&[tag, length], contents.as_slice()].concat()
            },
        );
        proptest::collection::vec(element, 0..6).prop_map(|elements| elements.concat())
    })
}

proptest! {
    #[test]
    fn readers_of_der_never_panic(octets in almost_der()) {
        let _ = Certificate::from_der(&octets);
        let _ = Certificate::from_file(&octets);
        let _ = PrivateKey::from_file(&octets);
        let _ = PublicKey::from_spki(&octets);
        let _ = signature::parse(&octets);
        let _ = HashAlgorithms::parse(&octets);
    }

    #[test]
    fn readers_of_pem_never_panic(text in "(-----(BEGIN|END) (CERTIFICATE|PRIVATE KEY|X)-----\n|[A-Za-z0-9+/=]{0,9}\n|\\PC{0,9}){0,9}") {
        let _ = Certificate::from_file(text.as_bytes());
        let _ = PrivateKey::from_file(text.as_bytes());
    }

    #[test]
    fn no_octets_at_random_are_a_signature(
        data in proptest::collection::vec(any::<u8>(), 0..300),
        method in 0..16u8,
        both in any::<bool>(),
    ) {
        for file in [fixture!("p256-sec1.pem"), fixture!("rsa2048-a.pem"), fixture!("ed25519.pem")] {
            let auth = (AuthMethod(method), data.as_slice());
            prop_assert!(signature::verify(key(file).public_key(), both, auth, b"octets").is_err());
        }
    }

    #[test]
    fn what_is_emitted_is_parsed(value in proptest::collection::vec(any::<u8>(), 0..600), n in 0..3usize) {
        let hash = [SignatureHash::Sha256, SignatureHash::Sha384, SignatureHash::Sha512][n];
        for scheme in [
            SignatureScheme::RsaPkcs1(hash),
            SignatureScheme::RsaPss(hash),
            SignatureScheme::Ecdsa(hash),
            SignatureScheme::Ed25519,
        ] {
            let emitted = signature::emit(scheme, &value);
            prop_assert_eq!(signature::parse(&emitted), Ok((scheme, value.as_slice())));
        }
    }
}
