//! Chains, names, usages, revocation.

use rcgen::{
    CertificateParams, ExtendedKeyUsagePurpose, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P384_SHA384,
    PKCS_ED25519, SanType, SerialNumber, date_time_ymd,
};

use super::{
    fixture,
    pki::{Holder, NOW, authority_params, dns, holder_params, root},
};
use crate::{
    auth::{
        Certificate, CertificateError, RevocationPolicy, Trust, TrustError, UnixSeconds,
        x509::{MAX_CERTIFICATES, MAX_CHAIN_OCTETS},
    },
    wire::{Identity, Payload, cert::authority_hashes},
};

fn vpn() -> Identity {
    Identity::Fqdn("vpn.example.com".into())
}

fn trust(anchor: &Holder) -> Trust {
    Trust::new(std::slice::from_ref(&anchor.certificate)).expect("an anchor")
}

/// Whether this chain proves that its first is `vpn.example.com`.
fn check(trust: &Trust, chain: &[&Certificate]) -> Result<(), CertificateError> {
    check_at(trust, chain, NOW)
}

fn check_at(
    trust: &Trust,
    chain: &[&Certificate],
    now: UnixSeconds,
) -> Result<(), CertificateError> {
    let chain: Vec<&[u8]> = chain.iter().map(|certificate| certificate.der()).collect();
    trust.verify(&chain, &vpn(), now).map(drop)
}

/// A root and a holder `vpn.example.com` whose certificate is changed before it is made.
fn changed(change: impl FnOnce(&mut CertificateParams)) -> (Holder, Holder) {
    let root = root("root");
    let mut params = holder_params(&[dns("vpn.example.com")]);
    change(&mut params);
    let holder = root.certify(params);
    (root, holder)
}

fn check_changed(change: impl FnOnce(&mut CertificateParams)) -> Result<(), CertificateError> {
    let (root, holder) = changed(change);
    check(&trust(&root), &[&holder.certificate])
}

#[test]
fn chains_of_each_kind_of_key_lead_to_the_anchor() {
    let rsa = |file| KeyPair::from_pem(std::str::from_utf8(file).expect("PEM")).expect("a key");
    let kinds: [fn() -> KeyPair; 3] = [
        || KeyPair::generate().expect("a key"),
        || KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).expect("a key"),
        || KeyPair::generate_for(&PKCS_ED25519).expect("a key"),
    ];
    let mut pairs: Vec<_> = kinds.iter().map(|kind| (kind(), kind())).collect();
    pairs.push((rsa(fixture!("rsa2048-a.pem")), rsa(fixture!("rsa2048-b.pem"))));
    for (first, second) in pairs {
        let root = root("root");
        let intermediate = root.certify_key(authority_params("intermediate"), first);
        let holder = intermediate.certify_key(holder_params(&[dns("vpn.example.com")]), second);
        let trust = trust(&root);
        let chain = [&holder.certificate, &intermediate.certificate];
        assert_eq!(check(&trust, &chain), Ok(()));
        // The root may come along, and nothing is taken from it.
        let chain = [&holder.certificate, &root.certificate, &intermediate.certificate];
        assert_eq!(check(&trust, &chain), Ok(()));
        let alone = [&holder.certificate];
        assert_eq!(check(&trust, &alone), Err(CertificateError::UnknownIssuer));
        let trust = trust.with_intermediates(std::slice::from_ref(&intermediate.certificate));
        assert_eq!(check(&trust, &alone), Ok(()));
        let key = trust.verify(&[holder.certificate.der()], &vpn(), NOW).expect("a key");
        assert_eq!(key, holder.certificate.public_key().expect("a key"));
    }
}

#[test]
fn rfc_7296_1_2_the_first_certificate_is_the_holders() {
    let root = root("root");
    let intermediate = root.certify(authority_params("intermediate"));
    let holder = intermediate.certify(holder_params(&[dns("vpn.example.com")]));
    let swapped = [&intermediate.certificate, &holder.certificate];
    assert_eq!(check(&trust(&root), &swapped), Err(CertificateError::WrongName(vpn())));
    assert_eq!(check(&trust(&root), &[]), Err(CertificateError::Missing));
    // An authority that has the holder's name is still no holder.
    let mut params = authority_params("vpn");
    params.subject_alt_names = vec![dns("vpn.example.com")];
    params.key_usages.push(KeyUsagePurpose::DigitalSignature);
    let authority = root.certify(params);
    let refused = check(&trust(&root), &[&authority.certificate]);
    assert!(matches!(refused, Err(CertificateError::Rule(_))), "{refused:?}");
}

#[test]
fn identities_are_those_of_the_subject_alt_name_or_the_whole_subject() {
    let (_, holder) = changed(|params| {
        params.subject_alt_names.extend([
            SanType::Rfc822Name("alice@example.com".try_into().expect("ASCII")),
            SanType::IpAddress("192.0.2.1".parse().expect("an address")),
            SanType::IpAddress("2001:db8::1".parse().expect("an address")),
            dns("*.wild.example.com"),
        ]);
    });
    let certificate = &holder.certificate;
    let is_for = |text: &str| certificate.is_for(&text.parse().expect("an identity"));
    for yes in
        ["vpn.example.com", "VPN.Example.com", "alice@example.com", "192.0.2.1", "2001:db8::1"]
    {
        assert!(is_for(yes), "{yes}");
    }
    for no in [
        "holder", // the common name
        "example.com",
        "a.vpn.example.com",
        "vpn.example.com.",
        "Alice@example.com",
        "bob@example.com",
        "192.0.2.2",
        "2001:db8::2",
        "x.wild.example.com",
        "keyid:vpn.example.com",
    ] {
        assert!(!is_for(no), "{no}");
    }
    assert!(!certificate.is_for(&Identity::Fqdn("*.wild.example.com".into())));
    // A name of one type is none of another.
    assert!(!certificate.is_for(&Identity::Fqdn("192.0.2.1".into())));
    assert!(!certificate.is_for(&Identity::Email("vpn.example.com".into())));
    let subject = certificate.subject().to_vec();
    assert!(certificate.is_for(&Identity::DistinguishedName(subject.clone())));
    let mut other = subject.clone();
    *other.last_mut().expect("octets") ^= 1;
    assert!(!certificate.is_for(&Identity::DistinguishedName(other)));
    assert!(!certificate.is_for(&Identity::DistinguishedName(subject[..subject.len() - 1].into())));
    let (_, nameless) = changed(|params| params.distinguished_name = Default::default());
    assert!(!nameless.certificate.is_for(&Identity::DistinguishedName(vec![0x30, 0])));
}

#[test]
fn certificates_count_from_their_first_to_their_last_second() {
    let (root, holder) = changed(|params| {
        params.not_before = date_time_ymd(2027, 1, 1);
        params.not_after = date_time_ymd(2027, 2, 1);
    });
    let at = |seconds| check_at(&trust(&root), &[&holder.certificate], UnixSeconds(seconds));
    let (first, last) = (1_798_761_600, 1_801_440_000);
    assert_eq!(at(first - 1), Err(CertificateError::NotYetValid));
    assert_eq!(at(first), Ok(()));
    assert_eq!(at(last), Ok(()));
    assert_eq!(at(last + 1), Err(CertificateError::Expired));
    assert_eq!(at(0), Err(CertificateError::NotYetValid));
    assert_eq!(at(u64::MAX), Err(CertificateError::Expired));
}

#[test]
fn an_intermediate_must_be_in_date_too() {
    let root = root("root");
    let mut params = authority_params("intermediate");
    params.not_after = date_time_ymd(2026, 6, 1);
    let intermediate = root.certify(params);
    let holder = intermediate.certify(holder_params(&[dns("vpn.example.com")]));
    let chain = [&holder.certificate, &intermediate.certificate];
    assert_eq!(check(&trust(&root), &chain), Err(CertificateError::Expired));
}

#[test]
fn extended_key_usage_is_ipsec_ike_server_auth_any_or_none() {
    use ExtendedKeyUsagePurpose::{Any, ClientAuth, CodeSigning, Other, ServerAuth};
    let ipsec_ike = || Other(vec![1, 3, 6, 1, 5, 5, 7, 3, 17]);
    let with = |usages: Vec<_>| check_changed(|params| params.extended_key_usages = usages);
    assert_eq!(with(vec![]), Ok(()));
    assert_eq!(with(vec![ipsec_ike()]), Ok(()));
    assert_eq!(with(vec![ServerAuth]), Ok(()));
    assert_eq!(with(vec![Any]), Ok(()));
    assert_eq!(with(vec![ClientAuth, CodeSigning, ipsec_ike()]), Ok(()));
    let refused = Err(CertificateError::ExtendedKeyUsage);
    assert_eq!(with(vec![ClientAuth]), refused);
    assert_eq!(with(vec![CodeSigning, ClientAuth]), refused);
    // The arc around ipsecIKE is not ipsecIKE.
    assert_eq!(with(vec![Other(vec![1, 3, 6, 1, 5, 5, 7, 3, 17, 1])]), refused);
    assert_eq!(with(vec![Other(vec![1, 3, 6, 1, 5, 5, 7, 3])]), refused);
}

#[test]
fn key_usage_must_allow_signatures() {
    use KeyUsagePurpose::{ContentCommitment, DigitalSignature, KeyAgreement, KeyEncipherment};
    let with = |usages: Vec<_>| check_changed(|params| params.key_usages = usages);
    assert_eq!(with(vec![DigitalSignature]), Ok(()));
    assert_eq!(with(vec![ContentCommitment, KeyAgreement]), Ok(()));
    assert_eq!(with(vec![KeyEncipherment, KeyAgreement]), Err(CertificateError::KeyUsage));
}

#[test]
fn holders_and_strangers_certify_nobody() {
    let (root, holder) = changed(|_| {});
    let forged = holder.certify(holder_params(&[dns("vpn.example.com")]));
    let chain = [&forged.certificate, &holder.certificate];
    assert!(check(&trust(&root), &chain).is_err());
    // Another authority with the same name.
    let other = super::pki::root("root");
    assert_eq!(check(&trust(&other), &[&holder.certificate]), Err(CertificateError::Signature));
    // An authority that comes along by itself.
    let stranger = super::pki::root("stranger");
    let chain = [&holder.certificate, &root.certificate];
    assert_eq!(check(&trust(&stranger), &chain), Err(CertificateError::UnknownIssuer));
}

#[test]
fn chains_that_go_round_come_to_an_end() {
    // Each of two authorities has certified the other; neither is trusted.
    let (a, b) = (root("a"), root("b"));
    let a_by_b = b.certify_key(authority_params("a"), copy(&a.key));
    let b_by_a = a.certify_key(authority_params("b"), copy(&b.key));
    let holder = a.certify(holder_params(&[dns("vpn.example.com")]));
    let chain = [&holder.certificate, &a_by_b.certificate, &b_by_a.certificate];
    let stranger = root("stranger");
    let refused = check(&trust(&stranger), &chain);
    assert!(matches!(refused, Err(CertificateError::UnknownIssuer | CertificateError::TooDeep)));
    // And where one is trusted, the loop does not hide it.
    assert_eq!(check(&trust(&b), &chain), Ok(()));
    // Many authorities of one name and one key: every order of them is a path.
    let mut params = authority_params("a");
    let tangle: Vec<_> = (0..9u8)
        .map(|n| {
            params.serial_number = Some(SerialNumber::from(vec![n + 1]));
            a.certify_key(params.clone(), KeyPair::generate().expect("a key")).certificate
        })
        .collect();
    let chain: Vec<_> = std::iter::once(&holder.certificate).chain(&tangle).collect();
    assert!(check(&trust(&stranger), &chain).is_err());
}

#[test]
fn of_certificates_with_the_same_names_two_are_looked_at() {
    let root = root("root");
    let authority = root.certify(authority_params("a"));
    let holder = authority.certify(holder_params(&[dns("vpn.example.com")]));
    let forged = super::pki::root("root").certify(authority_params("a"));
    let (holder, good, bad) = (&holder.certificate, &authority.certificate, &forged.certificate);
    assert_eq!(check(&trust(&root), &[holder, good, bad, bad]), Ok(()));
    assert_eq!(check(&trust(&root), &[holder, bad, good, bad]), Ok(()));
    assert!(check(&trust(&root), &[holder, bad, bad, good]).is_err());
    // Others in between do not count.
    let other = root.certify(authority_params("b"));
    let chain = [holder, bad, &other.certificate, &root.certificate, good];
    assert_eq!(check(&trust(&root), &chain), Ok(()));
}

fn copy(key: &KeyPair) -> KeyPair {
    KeyPair::try_from(key.serialized_der()).expect("a key")
}

#[test]
fn chains_have_a_depth_a_count_and_a_size() {
    let root = root("root");
    let chain_of = |intermediates: usize| {
        let mut chain: Vec<Holder> = Vec::new();
        for n in 0..intermediates {
            let issuer = chain.last().unwrap_or(&root);
            chain.push(issuer.certify(authority_params(&format!("intermediate {n}"))));
        }
        let issuer = chain.last().unwrap_or(&root);
        chain.push(issuer.certify(holder_params(&[dns("vpn.example.com")])));
        chain.reverse();
        chain
    };
    let check_chain = |chain: &[Holder]| {
        let chain: Vec<_> = chain.iter().map(|holder| &holder.certificate).collect();
        check(&trust(&root), &chain)
    };
    assert_eq!(check_chain(&chain_of(6)), Ok(()));
    assert_eq!(check_chain(&chain_of(7)), Err(CertificateError::TooDeep));
    assert_eq!(check_chain(&chain_of(10)), Err(CertificateError::TooMuch));
    let holder = root.certify(holder_params(&[dns("vpn.example.com")]));
    let large = vec![0x30; MAX_CHAIN_OCTETS];
    let refused = trust(&root).verify(&[holder.certificate.der(), &large], &vpn(), NOW);
    assert_eq!(refused, Err(CertificateError::TooMuch));
    let encoding = crate::wire::CertEncoding::X509_SIGNATURE;
    let payload = Payload::Certificate { encoding, data: vec![0x30, 0] };
    let many = vec![payload; MAX_CERTIFICATES + 1];
    assert_eq!(Trust::certificates(&many), Err(CertificateError::TooMuch));
    let large = vec![Payload::Certificate { encoding, data: large }, many[0].clone()];
    assert_eq!(Trust::certificates(&large), Err(CertificateError::TooMuch));
}

#[test]
fn revoked_and_stale_are_refused_as_the_policy_says() {
    use RevocationPolicy::{Fresh, Off, Relaxed, Required};
    let (root, holder) = changed(|_| {});
    let with = |lists: &[Vec<u8>], policy| {
        let mut trust = trust(&root).with_revocation_policy(policy);
        for list in lists {
            trust.add_revocation_lists(list).expect("a list");
        }
        check(&trust, &[&holder.certificate])
    };
    let revoked = [root.revocation_list(true, (2027, 2))];
    let clear = [root.revocation_list(false, (2027, 2))];
    let stale = [root.revocation_list(false, (2027, 1))];
    let stale_and_revoked = [root.revocation_list(true, (2027, 1))];
    let refused = |error| Err(error);
    assert_eq!(RevocationPolicy::default(), Fresh);
    for policy in [Fresh, Relaxed, Required] {
        assert_eq!(with(&revoked, policy), refused(CertificateError::Revoked));
        assert_eq!(with(&clear, policy), Ok(()));
        assert!(with(&stale_and_revoked, policy).is_err());
    }
    assert_eq!(with(&stale_and_revoked, Relaxed), refused(CertificateError::Revoked));
    assert_eq!(with(&stale, Relaxed), Ok(()));
    for policy in [Fresh, Required] {
        assert_eq!(with(&stale, policy), refused(CertificateError::StaleRevocationList));
    }
    // No list at all, and one of an authority that has nothing to do with it.
    let other = [super::pki::root("other").revocation_list(true, (2027, 2))];
    for lists in [&[] as &[_], &other] {
        assert_eq!(with(lists, Fresh), Ok(()));
        assert_eq!(with(lists, Required), refused(CertificateError::UnknownRevocation));
    }
    // A list in the authority's name that is not signed by it does not make a certificate good.
    let forged = [super::pki::root("root").revocation_list(false, (2027, 2))];
    assert!(with(&forged, Fresh).is_err());
    assert_eq!(with(&revoked, Off), Ok(()));
    // The later of two lists counts.
    let [clear, revoked] = [clear, revoked].map(|[list]| list);
    assert_eq!(with(&[revoked.clone(), clear.clone()], Fresh), Ok(()));
    assert_eq!(with(&[clear, revoked], Fresh), refused(CertificateError::Revoked));
}

#[test]
fn files_that_are_no_revocation_list_are_refused() {
    let root = root("root");
    let list = root.revocation_list(true, (2027, 2));
    let mut trust = trust(&root);
    for file in [b"".as_slice(), fixture!("sha1-ca.crt.pem"), &list[..list.len() - 1]] {
        assert_eq!(trust.add_revocation_lists(file), Err(TrustError::RevocationList));
    }
    assert_eq!(Trust::new(&[]).map(drop), Err(TrustError::NoAnchor));
}

#[test]
fn rfc_8247_certificates_with_sha1_or_short_keys_are_refused() {
    let read = |file| Certificate::from_file(file).expect("a certificate").remove(0);
    let trust = Trust::new(&[read(fixture!("sha1-ca.crt.pem"))]).expect("an anchor");
    let good = read(fixture!("sha256-leaf.crt.pem"));
    assert_eq!(check(&trust, &[&good]), Ok(()));
    for refused in [fixture!("sha1-leaf.crt.pem"), fixture!("rsa1024-leaf.crt.pem")] {
        assert_eq!(check(&trust, &[&read(refused)]), Err(CertificateError::Algorithm));
    }
}

#[test]
fn a_certificate_cut_short_or_with_something_behind_is_malformed() {
    let (root, holder) = changed(|_| {});
    let der = holder.certificate.der();
    for length in 0..der.len() {
        assert_eq!(Certificate::from_der(&der[..length]), Err(CertificateError::Malformed));
    }
    let longer = [der, &[0]].concat();
    let refused = trust(&root).verify(&[&longer], &vpn(), NOW);
    assert_eq!(refused, Err(CertificateError::Malformed));
    assert_eq!(Certificate::from_file(b"no certificate"), Err(CertificateError::Malformed));
    let key = Certificate::from_file(fixture!("ed25519.pem"));
    assert_eq!(key, Err(CertificateError::Missing));
    // Whatever octet is changed: no panic, and never another name.
    for at in 0..der.len() {
        for octet in [0x00, 0x01, 0x30, 0x7f, 0x80, 0xff] {
            let mut changed = der.to_vec();
            if std::mem::replace(&mut changed[at], octet) != octet {
                assert!(trust(&root).verify(&[&changed], &vpn(), NOW).is_err(), "{at} {octet}");
            }
        }
    }
}

#[test]
fn certreq_names_each_anchor_by_the_hash_of_its_key() {
    let (a, b) = (root("a"), root("b"));
    let anchors = [a.certificate.clone(), b.certificate.clone(), a.certificate.clone()];
    let trust = Trust::new(&anchors).expect("anchors");
    let Payload::CertificateRequest { encoding, data } = trust.request() else {
        panic!("no CERTREQ")
    };
    assert_eq!(encoding, crate::wire::CertEncoding::X509_SIGNATURE);
    let hashes = authority_hashes(&data).expect("hashes");
    assert_eq!(hashes.len(), 2);
    assert!(hashes.contains(&a.certificate.authority_hash()));
    assert!(hashes.contains(&b.certificate.authority_hash()));
    // As OpenSSL computes it: openssl x509 -pubkey, then pkey -outform DER, then sha1.
    let known = Certificate::from_file(fixture!("sha1-ca.crt.pem")).expect("a certificate");
    assert_eq!(known[0].authority_hash().to_vec(), super::hex(SHA1_CA_KEY));
}

const SHA1_CA_KEY: &str = "d5b9500ae28d4446c1f5476fa3eb2870adc6b8b1";
