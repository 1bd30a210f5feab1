//! Whole proofs: what one side makes and the other checks.

use std::sync::Arc;

use super::pki::{Holder, NOW, dns, holder_params, root};
use crate::{
    auth::{
        AuthError, AuthSignatureError, CertificateError, Credentials, CredentialsError,
        HashAlgorithms, LocalAuth, Proof, RemoteAuth, RsaPadding, Signer, Trust,
    },
    crypto::{signature::SignatureError, suite::Prf},
    secret::Secret,
    wire::{AuthMethod, CertEncoding, Identity, IdentityPattern, Payload},
};

const SIGNED: &[u8] = b"IKE_SA_INIT, nonce, prf(SK_p, ID)";

fn vpn() -> Identity {
    Identity::Fqdn("vpn.example.com".into())
}

fn credentials(holder: &Holder) -> Credentials {
    let key: Arc<dyn Signer> = Arc::new(holder.private_key());
    Credentials::new(vec![holder.certificate.clone()], key).expect("credentials")
}

fn local(holder: &Holder) -> LocalAuth {
    LocalAuth::Certificate(Arc::new(credentials(holder)))
}

fn remote(anchor: &Holder) -> RemoteAuth {
    let trust = Trust::new(std::slice::from_ref(&anchor.certificate)).expect("an anchor");
    RemoteAuth::Certificate(Arc::new(trust))
}

/// What a side sends, in the order of RFC 7296 §1.2.
fn message(local: &LocalAuth, hashes: bool) -> Vec<Payload> {
    let hashes = hashes.then_some(HashAlgorithms::OURS);
    let mut payloads = local.certificates();
    payloads.push(local.prove(Prf::HmacSha256, SIGNED, hashes).expect("AUTH"));
    payloads
}

fn check(
    remote: &RemoteAuth,
    (expected, identity): (&IdentityPattern, &Identity),
    payloads: &[Payload],
    both_sent_hashes: bool,
) -> Result<(), AuthError> {
    let prf = Prf::HmacSha256;
    let signed = SIGNED;
    remote.verify(&Proof { expected, identity, payloads, prf, signed, both_sent_hashes, now: NOW })
}

fn check_vpn(remote: &RemoteAuth, payloads: &[Payload]) -> Result<(), AuthError> {
    check(remote, (&IdentityPattern::Exactly(vpn()), &vpn()), payloads, true)
}

const WRONG: AuthError =
    AuthError::Signature(AuthSignatureError::Signature(SignatureError::Invalid));

#[test]
fn a_certificate_and_a_signature_by_its_key_prove_an_identity() {
    let root = root("root");
    let holder = root.certify(holder_params(&[dns("vpn.example.com")]));
    for hashes in [true, false] {
        let payloads = message(&local(&holder), hashes);
        let any = check(&remote(&root), (&IdentityPattern::Any, &vpn()), &payloads, hashes);
        assert_eq!(any, Ok(()));
    }
    let payloads = message(&local(&holder), true);
    assert_eq!(check_vpn(&remote(&root), &payloads), Ok(()));
    let [certificate, Payload::Authentication { method, data }] = &payloads[..] else {
        panic!("CERT, AUTH")
    };
    assert_eq!(*method, AuthMethod::DIGITAL_SIGNATURE);
    for at in 0..data.len() {
        let mut data = data.clone();
        data[at] ^= 1;
        let auth = Payload::Authentication { method: *method, data };
        assert!(check_vpn(&remote(&root), &[certificate.clone(), auth]).is_err(), "octet {at}");
    }
}

#[test]
fn another_key_of_the_same_authority_proves_nothing() {
    // CVE-2020-16088.
    let root = root("root");
    let holder = root.certify(holder_params(&[dns("vpn.example.com")]));
    let thief = root.certify(holder_params(&[dns("thief.example.com")]));
    let theirs = message(&local(&thief), true);
    let ours = message(&local(&holder), true);
    let [thief_certificate, thief_auth] = &theirs[..] else { panic!("CERT, AUTH") };
    let [certificate, _] = &ours[..] else { panic!("CERT, AUTH") };
    let remote = remote(&root);
    let with = |payloads: &[&Payload]| {
        let payloads: Vec<_> = payloads.iter().copied().cloned().collect();
        check_vpn(&remote, &payloads)
    };
    assert_eq!(with(&[certificate, thief_auth]), Err(WRONG));
    assert_eq!(with(&[certificate, thief_certificate, thief_auth]), Err(WRONG));
    let wrong_name = Err(AuthError::Certificate(CertificateError::WrongName(vpn())));
    assert_eq!(with(&[thief_certificate, thief_auth]), wrong_name);
    assert_eq!(with(&[thief_certificate, certificate, thief_auth]), wrong_name);
    // Two certificates for one name: the first holds the key (K-1.2-3).
    let second = root.certify(holder_params(&[dns("vpn.example.com")]));
    let second = message(&local(&second), true);
    assert_eq!(with(&[certificate, &second[0], &second[1]]), Err(WRONG));
    assert_eq!(with(&[&second[0], certificate, &second[1]]), Ok(()));
}

#[test]
fn the_peer_that_was_asked_for_is_the_one_that_is_checked() {
    let root = root("root");
    let other = root.certify(holder_params(&[dns("other.example.com")]));
    let payloads = message(&local(&other), true);
    let other = Identity::Fqdn("other.example.com".into());
    let expected = IdentityPattern::Exactly(vpn());
    let refused = check(&remote(&root), (&expected, &other), &payloads, true);
    assert_eq!(refused, Err(AuthError::Identity { said: other.clone(), expected }));
    // Before anything else is looked at.
    let expected = IdentityPattern::Exactly(vpn());
    let refused = check(&remote(&root), (&expected, &other), &[], true);
    assert!(matches!(refused, Err(AuthError::Identity { .. })));
    let pattern = "*.example.com".parse().expect("a pattern");
    assert_eq!(check(&remote(&root), (&pattern, &other), &payloads, true), Ok(()));
}

#[test]
fn each_side_has_its_own_kind_of_proof() {
    let root = root("root");
    let holder = root.certify(holder_params(&[dns("vpn.example.com")]));
    let psk = || Secret::new(b"a pre-shared key of some length".to_vec());
    let by_psk = message(&LocalAuth::Psk(psk()), true);
    let by_certificate = message(&local(&holder), true);
    assert_eq!(by_psk.len(), 1);
    let psk_remote = RemoteAuth::Psk(psk());
    assert_eq!(check_vpn(&psk_remote, &by_psk), Ok(()));
    let other = RemoteAuth::Psk(Secret::new(b"another".to_vec()));
    assert_eq!(check_vpn(&other, &by_psk), Err(AuthError::Psk));
    let refused = check_vpn(&psk_remote, &by_certificate);
    assert_eq!(refused, Err(AuthError::Method(AuthMethod::DIGITAL_SIGNATURE)));
    let refused = check_vpn(&remote(&root), &by_psk);
    assert_eq!(refused, Err(AuthError::Method(AuthMethod::SHARED_KEY)));
    assert_eq!(check_vpn(&psk_remote, &[]), Err(AuthError::Missing));
    let auth_alone = &by_certificate[1..];
    let refused = check_vpn(&remote(&root), auth_alone);
    assert_eq!(refused, Err(AuthError::Certificate(CertificateError::Missing)));
    assert!(psk_remote.request().is_none() && remote(&root).request().is_some());
}

#[test]
fn rsa_proves_with_either_padding() {
    let root = root("root");
    let file = super::fixture!("rsa2048-a.pem");
    let pair = rcgen::KeyPair::from_pem(std::str::from_utf8(file).expect("PEM")).expect("a key");
    let holder = root.certify_key(holder_params(&[dns("vpn.example.com")]), pair);
    for padding in [RsaPadding::Pss, RsaPadding::Pkcs1] {
        let credentials = credentials(&holder).with_rsa_padding(padding);
        let local = LocalAuth::Certificate(Arc::new(credentials));
        assert_eq!(check_vpn(&remote(&root), &message(&local, true)), Ok(()));
    }
}

#[test]
fn credentials_belong_together() {
    let root = root("root");
    let holder = root.certify(holder_params(&[dns("vpn.example.com")]));
    let other = root.certify(holder_params(&[dns("vpn.example.com")]));
    let key = || -> Arc<dyn Signer> { Arc::new(holder.private_key()) };
    let made = |chain: &[&Holder]| {
        let chain = chain.iter().map(|holder| holder.certificate.clone()).collect();
        Credentials::new(chain, key()).map(drop)
    };
    assert_eq!(made(&[&holder, &root]), Ok(()));
    assert_eq!(made(&[]), Err(CredentialsError::Missing));
    assert_eq!(made(&[&other]), Err(CredentialsError::OtherKey));
    // In the wrong order.
    assert_eq!(made(&[&root, &holder]), Err(CredentialsError::OtherKey));
    assert_eq!(made(&[&holder; 11]), Err(CredentialsError::TooMuch));
    assert!(credentials(&holder).are_for(&vpn()));
    assert!(!credentials(&holder).are_for(&Identity::Fqdn("other.example.com".into())));
}

#[test]
fn certreq_tells_which_credentials_are_asked_for() {
    let (a, b) = (root("a"), root("b"));
    let holder = a.certify(holder_params(&[dns("vpn.example.com")]));
    let roots = [a.certificate.clone(), b.certificate.clone()];
    let credentials = credentials(&holder).with_roots(&roots);
    let request = |anchor: &Holder| remote(anchor).request().expect("CERTREQ");
    assert!(credentials.are_asked_for(&[request(&a)]));
    assert!(!credentials.are_asked_for(&[request(&b)]));
    assert!(credentials.are_asked_for(&[request(&b), request(&a)]));
    assert!(!credentials.are_asked_for(&[]));
    let encoding = CertEncoding::X509_SIGNATURE;
    let whichever = Payload::CertificateRequest { encoding, data: Vec::new() };
    assert!(credentials.are_asked_for(&[whichever]));
    let odd = Payload::CertificateRequest { encoding, data: vec![0; 21] };
    assert!(!credentials.are_asked_for(&[odd]));
}

#[test]
fn no_secret_is_printed() {
    let root = root("root");
    let holder = root.certify(holder_params(&[dns("vpn.example.com")]));
    let psk = LocalAuth::Psk(Secret::new(b"hunter2hunter2".to_vec()));
    assert!(!format!("{psk:?}").contains("hunter2"));
    let text = format!("{:?}", local(&holder));
    assert_eq!(text, "Certificate(Credentials(1 certificates))");
}
