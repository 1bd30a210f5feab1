//! What a peer may say in IKE_SA_INIT and IKE_AUTH about certificates and signatures, octet by octet,
//! and what an endpoint says itself (RFC 7296 §3.6 to §3.8; RFC 7427; RFC 8420).

use bewick_ike::{
    CloseReason, ConnectionConfig, ConnectionId, Endpoint, Event, Output, Random,
    auth::{HashAlgorithms, LocalAuth, RemoteAuth, UnixSeconds, WallClock},
    crypto::Prf,
    extension::Plain,
    wire::{
        AuthMethod, CertEncoding, Identity, Message, NotifyType, Payload, PayloadKind,
        cert::authority_hashes, emit_message,
    },
};
use bewick_tests::{
    hand::Hand,
    lab::{BEGIN, client_config, gateway_config, path, psk},
    pki::{Holder, chain, holder_params, root},
    puppet::{find, kinds, notify},
};
use proptest::prelude::*;
use rcgen::{KeyPair, PKCS_ECDSA_P384_SHA384, PKCS_ED25519};

const RSA: &str = include_str!("../../ike/src/auth/tests/fixtures/rsa2048-a.pem");
const LAPTOP: &str = "laptop@example.com";
const VPN: &str = "vpn.example.com";
const PRF: Prf = bewick_tests::lab::X25519_GCM.prf;

fn id(text: &str) -> Identity {
    text.parse().expect("an identity")
}

fn endpoint(mut config: ConnectionConfig, auth: (LocalAuth, RemoteAuth)) -> Endpoint {
    (config.local_auth, config.remote_auth) = auth;
    start(vec![config])
}

fn start(connections: Vec<ConnectionConfig>) -> Endpoint {
    let mut endpoint = Endpoint::new(Random::from_seed([3; 32]), connections, false);
    endpoint.set_wall_clock(WallClock::new(bewick_ike::Time::ZERO, BEGIN));
    endpoint
}

/// A root, and a gateway that asks for certificates of it and shows one.
fn gateway() -> (Holder, Endpoint) {
    let root = root("root");
    let vpn = root.certify(holder_params(VPN));
    let endpoint = endpoint(gateway_config(), (vpn.as_local(), root.as_remote()));
    (root, endpoint)
}

/// A root, and a client that asks for certificates of it and shows one.
fn client() -> (Holder, Endpoint) {
    let root = root("root");
    let laptop = root.certify(holder_params(LAPTOP));
    let endpoint = endpoint(client_config(), (laptop.as_local(), root.as_remote()));
    (root, endpoint)
}

/// SIGNATURE_HASH_ALGORITHMS with these numbers.
fn hashes(numbers: &[u16]) -> Payload {
    let data: Vec<u8> = numbers.iter().flat_map(|number| number.to_be_bytes()).collect();
    notify(NotifyType::SIGNATURE_HASH_ALGORITHMS, data)
}

fn all_hashes() -> Payload {
    hashes(&[2, 3, 4, 5])
}

/// CERT and AUTH, as an honest peer of ours makes them.
fn proof(hand: &Hand, identity: &Identity, local: &LocalAuth, hashes: bool) -> Vec<Payload> {
    let hashes = hashes.then_some(HashAlgorithms::OURS);
    let mut payloads = local.certificates();
    payloads.push(local.prove(PRF, &hand.signed(identity), hashes).expect("AUTH"));
    payloads
}

/// The gateway accepts what the initiator says. There is no CHILD_SA, which was not asked for.
fn accepts(gateway: &mut Endpoint, hand: &mut Hand, payloads: &[Payload]) -> Vec<Payload> {
    let (answer, reasons) = ask(gateway, hand, payloads);
    let accepted = answer.iter().any(|p| matches!(p, Payload::Authentication { .. }));
    assert!(accepted, "{reasons:?}");
    answer
}

/// The gateway refuses what the initiator says for this reason, and tells it nothing.
fn refuses(gateway: &mut Endpoint, hand: &mut Hand, payloads: &[Payload], why: &str) {
    let (answer, reasons) = ask(gateway, hand, payloads);
    assert_eq!(answer, [notify(NotifyType::AUTHENTICATION_FAILED, [])]);
    assert!(
        matches!(&reasons[..], [CloseReason::Authentication(text)] if text.contains(why)),
        "{reasons:?}"
    );
}

fn ask(
    gateway: &mut Endpoint,
    hand: &mut Hand,
    payloads: &[Payload],
) -> (Vec<Payload>, Vec<CloseReason>) {
    let mut message = vec![Payload::IdInitiator(id(LAPTOP).to_wire())];
    message.extend_from_slice(payloads);
    hand.authenticate(gateway, &message)
}

/// Whether the client accepts what the responder says, or else why not.
fn client_says(client: &mut Endpoint, hand: &mut Hand, payloads: &[Payload]) -> Result<(), String> {
    let mut message = vec![Payload::IdResponder(id(VPN).to_wire())];
    message.extend_from_slice(payloads);
    let (_, reasons) = hand.authenticate(client, &message);
    match &reasons[..] {
        // Authenticated, and then there is no CHILD_SA.
        [CloseReason::Child(_)] => Ok(()),
        [CloseReason::Authentication(text)] => Err(text.clone()),
        other => panic!("{other:?}"),
    }
}

fn kind_of(payload: &Payload) -> PayloadKind {
    PayloadKind(payload.kind())
}

fn method(payloads: &[Payload]) -> AuthMethod {
    let method = payloads.iter().find_map(|payload| match payload {
        Payload::Authentication { method, .. } => Some(*method),
        _ => None,
    });
    method.expect("AUTH")
}

#[test]
fn rfc_7427_both_sides_send_their_hashes_in_ike_sa_init() {
    let (_, mut gateway) = gateway();
    let hand = Hand::initiate(&mut gateway, &[all_hashes()]);
    let data = find(&hand.init, NotifyType::SIGNATURE_HASH_ALGORITHMS);
    assert_eq!(data, Some(&[0, 2, 0, 3, 0, 4, 0, 5][..]), "and no SHA-1");
    let (_, mut client) = client();
    let hand = Hand::answer(&mut client, &[all_hashes()]);
    assert_eq!(find(&hand.init, NotifyType::SIGNATURE_HASH_ALGORITHMS), data);
    // With pre-shared keys there is nothing to sign.
    let mut gateway = start(vec![gateway_config()]);
    let hand = Hand::initiate(&mut gateway, &[all_hashes()]);
    assert!(!kinds(&hand.init).contains(&NotifyType::SIGNATURE_HASH_ALGORITHMS));
    let hand = Hand::answer(&mut start(vec![client_config()]), &[]);
    assert!(!kinds(&hand.init).contains(&NotifyType::SIGNATURE_HASH_ALGORITHMS));
}

#[test]
fn rfc_7427_method_14_is_a_must_once_both_sent_the_notify() {
    let (root, mut gateway) = gateway();
    let laptop = root.certify(holder_params(LAPTOP)).as_local();
    let mut hand = Hand::initiate(&mut gateway, &[all_hashes()]);
    let old = proof(&hand, &id(LAPTOP), &laptop, false);
    refuses(&mut gateway, &mut hand, &old, "authentication method 9 is not accepted");
    let (root, mut gateway) = self::gateway();
    let laptop = root.certify(holder_params(LAPTOP)).as_local();
    let mut hand = Hand::initiate(&mut gateway, &[]);
    let new = proof(&hand, &id(LAPTOP), &laptop, true);
    refuses(&mut gateway, &mut hand, &new, "authentication method 14 is not accepted");
    let (root, mut client) = client();
    let vpn = root.certify(holder_params(VPN)).as_local();
    let mut hand = Hand::answer(&mut client, &[all_hashes()]);
    assert_eq!(method(&hand.request), AuthMethod::DIGITAL_SIGNATURE);
    let old = proof(&hand, &id(VPN), &vpn, false);
    let refused = client_says(&mut client, &mut hand, &old).expect_err("an old method");
    assert!(refused.contains("authentication method 9 is not accepted"), "{refused}");
}

#[test]
fn rfc_7427_without_the_notify_ecdsa_has_its_old_methods() {
    let p384 = || KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).expect("a key");
    let p256 = || KeyPair::generate().expect("a key");
    let kinds: [(fn() -> KeyPair, _); 2] =
        [(p256, AuthMethod::ECDSA_256), (p384, AuthMethod::ECDSA_384)];
    for (key, expected) in kinds {
        let root = root("root");
        let laptop = root.certify_key(holder_params(LAPTOP), key()).as_local();
        let vpn = root.certify_key(holder_params(VPN), key()).as_local();
        let mut gateway = endpoint(gateway_config(), (vpn.clone(), root.as_remote()));
        let mut hand = Hand::initiate(&mut gateway, &[]);
        assert!(!self::kinds(&hand.init).contains(&NotifyType::SIGNATURE_HASH_ALGORITHMS));
        let payloads = proof(&hand, &id(LAPTOP), &laptop, false);
        assert_eq!(method(&payloads), expected);
        let answer = accepts(&mut gateway, &mut hand, &payloads);
        assert_eq!(method(&answer), expected);
        let mut client = endpoint(client_config(), (laptop, root.as_remote()));
        let mut hand = Hand::answer(&mut client, &[]);
        assert_eq!(method(&hand.request), expected);
        let payloads = proof(&hand, &id(VPN), &vpn, false);
        assert_eq!(client_says(&mut client, &mut hand, &payloads), Ok(()));
    }
}

#[test]
fn rfc_8247_method_1_which_means_sha_1_is_neither_made_nor_accepted() {
    let root = root("root");
    let key = || KeyPair::from_pem(RSA).expect("a key");
    let laptop = root.certify_key(holder_params(LAPTOP), key()).as_local();
    let vpn = root.certify_key(holder_params(VPN), key()).as_local();
    let mut gateway = endpoint(gateway_config(), (vpn, root.as_remote()));
    let mut hand = Hand::initiate(&mut gateway, &[]);
    let data = vec![1; 256];
    let auth = Payload::Authentication { method: AuthMethod::RSA_SIGNATURE, data };
    let payloads = [laptop.certificates(), vec![auth]].concat();
    refuses(&mut gateway, &mut hand, &payloads, "authentication method 1 is not accepted");
    let mut client = endpoint(client_config(), (laptop, root.as_remote()));
    let hand = Hand::answer(&mut client, &[]);
    assert!(hand.request.is_empty());
    assert!(matches!(hand.reasons[..], [CloseReason::Authentication(_)]), "{:?}", hand.reasons);
}

#[test]
fn rfc_7427_a_peer_that_knows_sha_1_alone_gets_nothing_signed() {
    for list in [&[1][..], &[]] {
        let (_, mut client) = client();
        let hand = Hand::answer(&mut client, &[hashes(list)]);
        assert!(hand.request.is_empty());
        let [CloseReason::Authentication(text)] = &hand.reasons[..] else {
            panic!("{:?}", hand.reasons)
        };
        assert!(text.contains("accepts no hash that our key can sign with"), "{text}");
        let (root, mut gateway) = gateway();
        let laptop = root.certify(holder_params(LAPTOP)).as_local();
        let mut hand = Hand::initiate(&mut gateway, &[hashes(list)]);
        let payloads = proof(&hand, &id(LAPTOP), &laptop, true);
        refuses(&mut gateway, &mut hand, &payloads, "accepts no hash that our key can sign with");
    }
}

#[test]
fn rfc_7427_the_signature_has_a_hash_of_the_peers_list() {
    let (_, mut client) = client();
    for (list, oid) in [([2], 2), ([3], 3), ([4], 4)] {
        let hand = Hand::answer(&mut client, &[hashes(&list)]);
        let data = hand.request.iter().find_map(|payload| match payload {
            Payload::Authentication { data, .. } => Some(data),
            _ => None,
        });
        // ecdsa-with-SHA256, -SHA384 and -SHA512 end in 2, 3 and 4.
        assert_eq!(data.expect("AUTH")[12], oid);
    }
}

#[test]
fn rfc_7427_a_list_that_is_none_gets_no_answer_or_is_none() {
    let odd = notify(NotifyType::SIGNATURE_HASH_ALGORITHMS, [0, 2, 0]);
    let (_, mut client) = client();
    let hand = Hand::answer(&mut client, std::slice::from_ref(&odd));
    assert!(hand.request.is_empty() && hand.reasons.is_empty(), "a better answer may come");
    let (_, mut gateway) = gateway();
    assert!(Hand::try_initiate(&mut gateway, &[odd]).is_none());
}

#[test]
fn rfc_8420_ed25519_is_for_peers_that_list_the_identity_hash() {
    let root = root("root");
    let key = || KeyPair::generate_for(&PKCS_ED25519).expect("a key");
    let laptop = root.certify_key(holder_params(LAPTOP), key()).as_local();
    let vpn = root.certify_key(holder_params(VPN), key()).as_local();
    let mut gateway = endpoint(gateway_config(), (vpn, root.as_remote()));
    for (list, works) in [(&[2, 3, 4][..], false), (&[5], true), (&[2, 5], true)] {
        let mut hand = Hand::initiate(&mut gateway, &[hashes(list)]);
        let payloads = proof(&hand, &id(LAPTOP), &laptop, true);
        if works {
            let answer = accepts(&mut gateway, &mut hand, &payloads);
            let auth = answer.iter().find_map(|payload| match payload {
                Payload::Authentication { data, .. } => Some(data),
                _ => None,
            });
            let auth = auth.expect("AUTH");
            // RFC 8420 appendix A: the length, the AlgorithmIdentifier, 64 octets.
            assert_eq!(auth[..8], [7, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70]);
            assert_eq!(auth.len(), 72);
        } else {
            let why = "accepts no hash that our key can sign with";
            refuses(&mut gateway, &mut hand, &payloads, why);
        }
    }
}

/// The one datagram that an endpoint wants to send.
fn sent(endpoint: &mut Endpoint) -> Vec<u8> {
    let mut datagrams = std::iter::from_fn(|| endpoint.poll_output()).filter_map(|out| match out {
        Output::Transmit(transmit) => Some(transmit.bytes),
        _ => None,
    });
    datagrams.next().expect("a datagram")
}

/// The same message without SIGNATURE_HASH_ALGORITHMS.
fn without_hashes(datagram: &[u8]) -> Vec<u8> {
    let message = Message::parse(datagram).expect("IKE_SA_INIT");
    let is_list = |p: &Payload| matches!(p, Payload::Notify(n) if n.kind == NotifyType::SIGNATURE_HASH_ALGORITHMS);
    let mut payloads = message.payloads.clone();
    payloads.retain(|payload| !is_list(payload));
    emit_message(&message.header, &payloads).expect("it fits")
}

#[test]
fn rfc_7427_who_takes_the_notify_away_on_the_way_gains_nothing() {
    for from_request in [true, false] {
        let root = root("root");
        let (laptop, vpn) = (root.certify(holder_params(LAPTOP)), root.certify(holder_params(VPN)));
        let mut client = endpoint(client_config(), (laptop.as_local(), root.as_remote()));
        let mut gateway = endpoint(gateway_config(), (vpn.as_local(), root.as_remote()));
        let (now, there) = (bewick_ike::Time::ZERO, path("198.51.100.2:500", "192.0.2.1:500"));
        let back = path("192.0.2.1:500", "198.51.100.2:500");
        client.connect(now, ConnectionId(0), there, &mut Plain).expect("its connection");
        let request = sent(&mut client);
        let request = if from_request { without_hashes(&request) } else { request };
        gateway.datagram(now, back, &request, &mut Plain);
        client.datagram(now, there, &without_hashes(&sent(&mut gateway)), &mut Plain);
        gateway.datagram(now, back, &sent(&mut client), &mut Plain);
        let refused = |output: &Output| {
            matches!(output, Output::Event(Event::Closed { reason, .. })
                if matches!(reason, CloseReason::Authentication(_)))
        };
        let mut outputs = std::iter::from_fn(|| gateway.poll_output());
        assert!(outputs.any(|output| refused(&output)), "{from_request}");
    }
}

#[test]
fn rfc_7296_3_7_certreq_names_the_authorities_by_the_hash_of_their_keys() {
    let requested = |payloads: &[Payload]| {
        payloads.iter().find_map(|payload| match payload {
            Payload::CertificateRequest { encoding: CertEncoding::X509_SIGNATURE, data } => {
                Some(authority_hashes(data).expect("hashes").to_vec())
            }
            _ => None,
        })
    };
    let (root, mut gateway) = gateway();
    let hand = Hand::initiate(&mut gateway, &[]);
    assert_eq!(requested(&hand.init), Some(vec![root.certificate.authority_hash()]));
    let (root, mut client) = client();
    let hand = Hand::answer(&mut client, &[all_hashes()]);
    assert_eq!(requested(&hand.init), None);
    assert_eq!(requested(&hand.request), Some(vec![root.certificate.authority_hash()]));
    let order: Vec<PayloadKind> = hand.request.iter().take(3).map(kind_of).collect();
    assert_eq!(
        order,
        [PayloadKind::ID_INITIATOR, PayloadKind::CERTIFICATE, PayloadKind::CERTIFICATE_REQUEST]
    );
    // Who asks for a pre-shared key asks for no certificate.
    let vpn = root.certify(holder_params(VPN)).as_local();
    let mut gateway = endpoint(gateway_config(), (vpn, RemoteAuth::Psk(psk())));
    assert_eq!(requested(&Hand::initiate(&mut gateway, &[]).init), None);
    // More authorities than IKE_SA_INIT should carry: any.
    let many: Vec<ConnectionConfig> = (0..17)
        .map(|n| {
            let remote_auth = bewick_tests::pki::root(&format!("root {n}")).as_remote();
            ConnectionConfig { remote_auth, ..gateway_config() }
        })
        .collect();
    let hand = Hand::initiate(&mut start(many), &[]);
    assert_eq!(requested(&hand.init), Some(Vec::new()));
}

#[test]
fn rfc_7296_3_7_certreq_chooses_between_several_certificates() {
    let (one, other) = (root("one"), root("other"));
    let clients = root("clients");
    let config = |root: &Holder| {
        let vpn = root.certify(holder_params(VPN));
        let LocalAuth::Certificate(credentials) = vpn.as_local() else { panic!("certificates") };
        let roots = [one.certificate.clone(), other.certificate.clone()];
        let credentials = (*credentials).clone().with_roots(&roots);
        let mut config = gateway_config();
        config.local_auth = LocalAuth::Certificate(std::sync::Arc::new(credentials));
        config.remote_auth = clients.as_remote();
        config
    };
    let mut gateway = start(vec![config(&one), config(&other)]);
    let laptop = clients.certify(holder_params(LAPTOP)).as_local();
    let mut issuer = |request: Option<Payload>| {
        let mut hand = Hand::initiate(&mut gateway, &[all_hashes()]);
        let mut payloads = proof(&hand, &id(LAPTOP), &laptop, true);
        payloads.extend(request);
        let answer = accepts(&mut gateway, &mut hand, &payloads);
        let certificate = answer.iter().find_map(|payload| match payload {
            Payload::Certificate { data, .. } => Some(data.clone()),
            _ => None,
        });
        let certificate = certificate.expect("CERT");
        let certificate = bewick_ike::auth::Certificate::from_der(&certificate).expect("CERT");
        certificate.issuer().to_vec()
    };
    let subject = |root: &Holder| root.certificate.subject().to_vec();
    assert_eq!(issuer(None), subject(&one));
    assert_eq!(issuer(one.as_remote().request()), subject(&one));
    assert_eq!(issuer(other.as_remote().request()), subject(&other));
    // A hint and no more.
    assert_eq!(issuer(clients.as_remote().request()), subject(&one));
}

#[test]
fn k_1_2_3_who_asks_for_another_gateway_learns_nothing_of_this_one() {
    let (root, mut gateway) = gateway();
    let laptop = root.certify(holder_params(LAPTOP)).as_local();
    let mut hand = Hand::initiate(&mut gateway, &[all_hashes()]);
    let mut payloads = proof(&hand, &id(LAPTOP), &laptop, true);
    payloads.push(Payload::IdResponder(id("other.example.com").to_wire()));
    let why = "asks for other.example.com, which is not our identity";
    refuses(&mut gateway, &mut hand, &payloads, why);
    // And who proves nothing does not either.
    let mut hand = Hand::initiate(&mut gateway, &[all_hashes()]);
    let payloads = vec![Payload::IdResponder(id(VPN).to_wire())];
    refuses(&mut gateway, &mut hand, &payloads, "sent no AUTH");
    let mut hand = Hand::initiate(&mut gateway, &[all_hashes()]);
    let payloads = proof(&hand, &id(LAPTOP), &laptop, true);
    let mut payloads = accepts(&mut gateway, &mut hand, &payloads);
    payloads.truncate(3);
    let order: Vec<PayloadKind> = payloads.iter().map(kind_of).collect();
    assert_eq!(
        order,
        [PayloadKind::ID_RESPONDER, PayloadKind::CERTIFICATE, PayloadKind::AUTHENTICATION]
    );
}

#[test]
fn k_2_15_1_a_signature_is_over_the_identity_and_both_messages() {
    let (root, mut gateway) = gateway();
    let laptop = root.certify(holder_params(LAPTOP)).as_local();
    // Another identity than the one that is sent.
    let mut hand = Hand::initiate(&mut gateway, &[all_hashes()]);
    let payloads = proof(&hand, &id("eve@example.com"), &laptop, true);
    refuses(&mut gateway, &mut hand, &payloads, "the signature is wrong");
    // Another IKE_SA.
    let old = Hand::initiate(&mut gateway, &[all_hashes()]);
    let payloads = proof(&old, &id(LAPTOP), &laptop, true);
    let mut hand = Hand::initiate(&mut gateway, &[all_hashes()]);
    refuses(&mut gateway, &mut hand, &payloads, "the signature is wrong");
    let mut hand = old;
    accepts(&mut gateway, &mut hand, &payloads);
}

#[test]
fn k_1_2_3_hostile_certificates_are_authentication_failed() {
    let (root, mut gateway) = gateway();
    let holder = root.certify(holder_params(LAPTOP));
    let laptop = holder.as_local();
    let cert =
        |data: Vec<u8>| Payload::Certificate { encoding: CertEncoding::X509_SIGNATURE, data };
    let good = holder.certificate.der().to_vec();
    let mut cut = good.clone();
    cut.truncate(good.len() - 1);
    let many = vec![cert(vec![0x30, 0]); 11];
    let tiny = vec![cert(Vec::new()); 100];
    let huge = vec![cert(vec![0x30; 60_000])];
    let nested = vec![cert([0x30, 0x80].repeat(20_000))];
    let cases: Vec<(Vec<Payload>, &str)> = vec![
        (Vec::new(), "the peer sent no certificate"),
        (many.clone(), "too many or too large"),
        ([vec![cert(good.clone())], many].concat(), "too many or too large"),
        (tiny, "too many or too large"),
        (huge, "a certificate is malformed"),
        (nested, "a certificate is malformed"),
        (vec![cert(Vec::new())], "a certificate is malformed"),
        (vec![cert(cut)], "a certificate is malformed"),
        (vec![cert([good.clone(), vec![0]].concat())], "a certificate is malformed"),
        (vec![cert(vec![0xff; 400])], "a certificate is malformed"),
        // Other encodings are not looked at, and nothing is fetched.
        (
            vec![Payload::Certificate { encoding: CertEncoding::HASH_AND_URL, data: good.clone() }],
            "the peer sent no certificate",
        ),
        (
            vec![Payload::Certificate { encoding: CertEncoding(200), data: good.clone() }],
            "the peer sent no certificate",
        ),
    ];
    for (certificates, why) in cases {
        let mut hand = Hand::initiate(&mut gateway, &[all_hashes()]);
        let auth = laptop.prove(PRF, &hand.signed(&id(LAPTOP)), Some(HashAlgorithms::OURS));
        let payloads = [certificates, vec![auth.expect("AUTH")]].concat();
        refuses(&mut gateway, &mut hand, &payloads, why);
    }
    // Ten are not too many, whatever the others are.
    let mut hand = Hand::initiate(&mut gateway, &[all_hashes()]);
    let mut payloads = proof(&hand, &id(LAPTOP), &laptop, true);
    for _ in 0..9 {
        payloads.insert(1, cert(vec![0x30, 0]));
    }
    accepts(&mut gateway, &mut hand, &payloads);
}

#[test]
fn k_1_2_3_hostile_certificates_of_a_gateway_are_refused_too() {
    let cert =
        |data: Vec<u8>| Payload::Certificate { encoding: CertEncoding::X509_SIGNATURE, data };
    for (certificates, why) in [
        (vec![cert(vec![0x30, 0]); 11], "too many or too large"),
        (vec![cert(vec![0x30; 60_000])], "a certificate is malformed"),
        (Vec::new(), "the peer sent no certificate"),
    ] {
        let (root, mut client) = client();
        let vpn = root.certify(holder_params(VPN)).as_local();
        let mut hand = Hand::answer(&mut client, &[all_hashes()]);
        let auth = vpn.prove(PRF, &hand.signed(&id(VPN)), Some(HashAlgorithms::OURS));
        let payloads = [certificates, vec![auth.expect("AUTH")]].concat();
        let refused = client_says(&mut client, &mut hand, &payloads).expect_err("refused");
        assert!(refused.contains(why), "{refused}");
    }
}

#[test]
fn rfc_7427_a_changed_signature_is_authentication_failed() {
    let (root, mut gateway) = gateway();
    let laptop = root.certify(holder_params(LAPTOP)).as_local();
    let intermediate = root.certify(bewick_tests::pki::authority_params("intermediate"));
    let deep = intermediate.certify(holder_params(LAPTOP));
    let deep = chain(&[&deep, &intermediate]);
    for local in [laptop, deep] {
        for at in [0, 1, 5, 12, 13, 20, 40] {
            let mut hand = Hand::initiate(&mut gateway, &[all_hashes()]);
            let mut payloads = proof(&hand, &id(LAPTOP), &local, true);
            let Some(Payload::Authentication { data, .. }) = payloads.last_mut() else {
                panic!("AUTH")
            };
            data[at] ^= 0x40;
            refuses(&mut gateway, &mut hand, &payloads, LAPTOP);
        }
    }
}

#[test]
fn the_time_of_day_that_was_told_last_counts() {
    let (root, mut gateway) = gateway();
    let laptop = root.certify(holder_params(LAPTOP)).as_local();
    let year_2029 = UnixSeconds(BEGIN.0 + 2 * 366 * 24 * 3600);
    gateway.set_wall_clock(WallClock::new(bewick_ike::Time::ZERO, year_2029));
    let mut hand = Hand::initiate(&mut gateway, &[all_hashes()]);
    let payloads = proof(&hand, &id(LAPTOP), &laptop, true);
    refuses(&mut gateway, &mut hand, &payloads, "a certificate has expired");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn k_1_2_3_no_certificate_or_signature_of_a_strangers_making_is_accepted(
        certificates in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..200), 0..5),
        method in any::<u8>(),
        data in proptest::collection::vec(any::<u8>(), 0..300),
    ) {
        let (_, mut gateway) = gateway();
        let encoding = CertEncoding::X509_SIGNATURE;
        let mut payloads: Vec<Payload> = certificates
            .into_iter()
            .map(|data| Payload::Certificate { encoding, data })
            .collect();
        payloads.push(Payload::Authentication { method: AuthMethod(method), data });
        let mut hand = Hand::initiate(&mut gateway, &[all_hashes()]);
        refuses(&mut gateway, &mut hand, &payloads, LAPTOP);
    }
}
