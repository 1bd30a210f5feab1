//! Certificates and signatures in IKE_AUTH (RFC 7296 §2.15, §3.6, §3.7; RFC 7427; RFC 8420), on the
//! simulated network.

use std::{sync::Arc, time::Duration};

use bewick_ike::{
    CloseReason, ConnectionId,
    auth::{
        Credentials, LocalAuth, PrivateKey, RemoteAuth, RevocationPolicy, RsaPadding, Signer,
        UnixSeconds,
    },
    crypto::signature::{PublicKey, SignatureError, SignatureScheme},
    wire::{ExchangeType, Message},
};
use bewick_mobike::{Command, Event};
use bewick_tests::{
    Lab, Plan,
    lab::{BEGIN, client_config, gateway_config, psk},
    pki::{Holder, authority_params, chain, chain_with, holder_params, root},
};
use rcgen::{KeyPair, KeyUsagePurpose, PKCS_ECDSA_P384_SHA384, PKCS_ED25519, date_time_ymd};

const LAPTOP: &str = "laptop@example.com";
const VPN: &str = "vpn.example.com";

const RSA: [&str; 2] = [
    include_str!("../../ike/src/auth/tests/fixtures/rsa2048-a.pem"),
    include_str!("../../ike/src/auth/tests/fixtures/rsa2048-b.pem"),
];

/// An authority, and a certificate of it for each end.
struct Pki {
    root: Holder,
    laptop: Holder,
    vpn: Holder,
}

impl Pki {
    fn new() -> Self {
        let root = root("root");
        let (laptop, vpn) = (root.certify(holder_params(LAPTOP)), root.certify(holder_params(VPN)));
        Pki { root, laptop, vpn }
    }

    /// Both ends have certificates.
    fn plan(&self) -> Plan {
        let client = (self.laptop.as_local(), self.root.as_remote());
        plan(client, (self.vpn.as_local(), self.root.as_remote()))
    }
}

/// How the client and the gateway prove themselves, and what each asks of the other.
fn plan(client: (LocalAuth, RemoteAuth), gateway: (LocalAuth, RemoteAuth)) -> Plan {
    let mut plan = Plan { second_uplink: false, ..Plan::default() };
    (plan.client.local_auth, plan.client.remote_auth) = client;
    (plan.gateway.local_auth, plan.gateway.remote_auth) = gateway;
    plan
}

/// The tunnel comes up and carries traffic.
fn works(plan: Plan) -> Lab {
    let mut lab = Lab::established(plan);
    let (ms, second) = (Duration::from_millis(1), Duration::from_secs(1));
    let there = lab.world.start_flow(lab.client, lab.gateway, 10 * ms, second);
    let back = lab.world.start_flow(lab.gateway, lab.client, 10 * ms, second);
    lab.world.run_for(2 * second);
    for flow in [there, back] {
        assert_eq!(lab.world.flow(flow).received(), 100, "{}", lab.story());
    }
    lab
}

/// Both ends give up over the proof of identity, and nothing is left. Gives what client and gateway
/// say of why.
fn refused(plan: Plan) -> [String; 2] {
    let mut lab = Lab::new(plan);
    lab.up();
    lab.seconds(60);
    assert!(lab.is_empty(), "{}", lab.story());
    assert_eq!(lab.count(lab.client, "established"), 0, "{}", lab.story());
    [lab.client, lab.gateway].map(|end| {
        let reasons = lab.reasons(end);
        let proof = |reason: &CloseReason| matches!(reason, CloseReason::Authentication(_));
        assert!(!reasons.is_empty() && reasons.iter().all(proof), "{reasons:?}");
        reasons.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
    })
}

/// The gateway refuses the client for this reason; the client learns nothing of it.
fn gateway_refuses(plan: Plan, reason: &str) {
    let [client, gateway] = refused(plan);
    assert!(gateway.contains(reason), "{gateway}");
    assert!(client.contains("the peer does not accept our identity or key"), "{client}");
}

/// The client refuses the gateway for this reason.
fn client_refuses(plan: Plan, reason: &str) {
    let mut lab = Lab::new(plan);
    lab.up();
    lab.seconds(60);
    assert!(lab.is_empty(), "{}", lab.story());
    assert_eq!(lab.count(lab.client, "established"), 0, "{}", lab.story());
    let reasons = lab.reasons(lab.client);
    let said = |r: &CloseReason| matches!(r, CloseReason::Authentication(t) if t.contains(reason));
    assert!(reasons.iter().any(said), "{reasons:?}");
}

/// Signs with one key and says that it has another.
struct Liar {
    public: PublicKey,
    key: PrivateKey,
}

impl Signer for Liar {
    fn public_key(&self) -> &PublicKey {
        &self.public
    }

    fn sign(&self, scheme: SignatureScheme, message: &[u8]) -> Result<Vec<u8>, SignatureError> {
        self.key.sign(scheme, message)
    }
}

/// Shows these certificates, and signs with the key of `holder`.
fn liar(holders: &[&Holder], holder: &Holder) -> LocalAuth {
    let public = holders[0].certificate.public_key().expect("a key");
    chain_with(holders, Arc::new(Liar { public, key: holder.signer() }))
}

#[test]
fn rfc_7427_each_kind_of_key_proves_both_ends() {
    let rsa = |file| KeyPair::from_pem(file).expect("a key");
    let kinds: [[KeyPair; 2]; 4] = [
        std::array::from_fn(|_| KeyPair::generate().expect("a key")),
        std::array::from_fn(|_| KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).expect("a key")),
        std::array::from_fn(|_| KeyPair::generate_for(&PKCS_ED25519).expect("a key")),
        RSA.map(rsa),
    ];
    let root = root("root");
    for [one, other] in kinds {
        let laptop = root.certify_key(holder_params(LAPTOP), one);
        let vpn = root.certify_key(holder_params(VPN), other);
        let client = (laptop.as_local(), root.as_remote());
        works(plan(client, (vpn.as_local(), root.as_remote())));
    }
}

#[test]
fn rfc_7427_rsa_works_with_either_padding() {
    let root = root("root");
    let [one, other] = RSA.map(|file| KeyPair::from_pem(file).expect("a key"));
    let laptop = root.certify_key(holder_params(LAPTOP), one);
    let vpn = root.certify_key(holder_params(VPN), other);
    for padding in [RsaPadding::Pss, RsaPadding::Pkcs1] {
        let with = |holder: &Holder| {
            let certificates = vec![holder.certificate.clone()];
            let made = Credentials::new(certificates, Arc::new(holder.signer()));
            let credentials = made.expect("credentials").with_rsa_padding(padding);
            LocalAuth::Certificate(Arc::new(credentials))
        };
        let client = (with(&laptop), root.as_remote());
        works(plan(client, (with(&vpn), root.as_remote())));
    }
}

#[test]
fn k_2_15_1_each_side_proves_itself_in_its_own_way() {
    let Pki { root, laptop, vpn } = Pki::new();
    let with_psk = || (LocalAuth::Psk(psk()), RemoteAuth::Psk(psk()));
    let client = (with_psk().0, root.as_remote());
    works(plan(client, (vpn.as_local(), with_psk().1)));
    let client = (laptop.as_local(), with_psk().1);
    works(plan(client, (with_psk().0, root.as_remote())));
}

#[test]
fn k_2_15_1_a_pre_shared_key_is_no_certificate_nor_the_other_way_round() {
    let pki = Pki::new();
    let mut plan = pki.plan();
    plan.client.local_auth = LocalAuth::Psk(psk());
    gateway_refuses(plan, "proves itself with method 2");
    let mut plan = pki.plan();
    plan.gateway.remote_auth = RemoteAuth::Psk(psk());
    gateway_refuses(plan, "proves itself with method 14");
    let mut plan = pki.plan();
    plan.gateway.local_auth = LocalAuth::Psk(psk());
    client_refuses(plan, "proves itself with method 2");
    let mut plan = pki.plan();
    plan.client.remote_auth = RemoteAuth::Psk(psk());
    client_refuses(plan, "proves itself with method 14");
}

#[test]
fn rfc_7296_3_6_intermediate_certificates_come_along() {
    let Pki { root, laptop, .. } = Pki::new();
    let intermediate = root.certify(authority_params("intermediate"));
    let vpn = intermediate.certify(holder_params(VPN));
    let with = |local| plan((laptop.as_local(), root.as_remote()), (local, root.as_remote()));
    works(with(chain(&[&vpn, &intermediate])));
    works(with(chain(&[&vpn, &intermediate, &root])));
    client_refuses(with(chain(&[&vpn])), "not issued by an authority that is trusted here");
}

#[test]
fn k_1_2_3_the_first_certificate_holds_the_key() {
    let Pki { root, laptop, vpn } = Pki::new();
    let mut params = authority_params("intermediate");
    params.key_usages.push(KeyUsagePurpose::DigitalSignature);
    let intermediate = root.certify(params);
    let deep = intermediate.certify(holder_params(LAPTOP));
    let other = root.certify(holder_params(LAPTOP));
    let with = |local| plan((local, root.as_remote()), (vpn.as_local(), root.as_remote()));
    works(with(chain(&[&deep, &intermediate])));
    gateway_refuses(with(liar(&[&intermediate, &deep], &deep)), "the certificate is not for");
    // Two certificates for the same name, in the wrong order.
    works(with(chain(&[&laptop, &other])));
    gateway_refuses(with(liar(&[&other, &laptop], &laptop)), "the signature is wrong");
    let mut plan = with(laptop.as_local());
    plan.gateway.local_auth = liar(&[&vpn], &laptop);
    client_refuses(plan, "the signature is wrong");
}

#[test]
fn k_1_2_3_a_certificate_is_for_the_identity_that_is_said() {
    let Pki { root, laptop, vpn } = Pki::new();
    let stranger = root.certify(holder_params("other.example.com"));
    let with = |local| plan((laptop.as_local(), root.as_remote()), (local, root.as_remote()));
    client_refuses(with(stranger.as_local()), "the certificate is not for vpn.example.com");
    let mut plan = with(vpn.as_local());
    plan.client.local_auth = stranger.as_local();
    gateway_refuses(plan, "the certificate is not for laptop@example.com");
    // CVE-2015-4171: valid, and honestly somebody else.
    let mut plan = with(stranger.as_local());
    plan.gateway.local_id = "other.example.com".parse().expect("an identity");
    plan.client.remote_id = "*.example.com".parse().expect("a pattern");
    works(plan);
    let mut plan = with(laptop.as_local());
    plan.gateway.local_id = LAPTOP.parse().expect("an identity");
    plan.client.remote_id = "*.example.com".parse().expect("a pattern");
    client_refuses(plan, "the peer says it is laptop@example.com, expected is *.example.com");
}

#[test]
fn rfc_5280_another_authority_certifies_nobody() {
    let pki = Pki::new();
    let other = root("other");
    let forged = other.certify(holder_params(LAPTOP));
    let mut plan = pki.plan();
    plan.client.local_auth = chain(&[&forged, &other]);
    gateway_refuses(plan, "not issued by an authority that is trusted here");
    // One of the same name.
    let mut plan = pki.plan();
    plan.client.local_auth = root("root").certify(holder_params(LAPTOP)).as_local();
    gateway_refuses(plan, "the signature on a certificate or revocation list is wrong");
}

#[test]
fn rfc_5280_certificates_out_of_date_are_refused() {
    let pki = Pki::new();
    let mut params = holder_params(LAPTOP);
    params.not_after = date_time_ymd(2027, 1, 1);
    let expired = pki.root.certify(params).as_local();
    let mut params = holder_params(LAPTOP);
    params.not_before = date_time_ymd(2027, 2, 1);
    let early = pki.root.certify(params).as_local();
    let with = |local: &LocalAuth, begin| {
        let mut plan = Plan { begin, ..pki.plan() };
        plan.client.local_auth = local.clone();
        plan
    };
    gateway_refuses(with(&expired, BEGIN), "a certificate has expired");
    gateway_refuses(with(&early, BEGIN), "a certificate is not valid yet");
    let month = 31 * 24 * 3600;
    works(with(&expired, UnixSeconds(BEGIN.0 - month)));
    works(with(&early, UnixSeconds(BEGIN.0 + month)));
    // Without the time of day nothing is believed.
    gateway_refuses(with(&expired, UnixSeconds(0)), "a certificate is not valid yet");
}

#[test]
fn rfc_5280_a_certificate_expires_while_the_daemon_runs() {
    let Pki { root, laptop, .. } = Pki::new();
    let mut params = holder_params(VPN);
    // Ten minutes after the simulated clock begins.
    params.not_after = date_time_ymd(2027, 1, 15) + Duration::from_secs(8 * 3600 + 600);
    let vpn = root.certify(params).as_local();
    let mut lab = works(plan((laptop.as_local(), root.as_remote()), (vpn, root.as_remote())));
    lab.seconds(900);
    assert!(lab.is_up(), "what is up stays up: {}", lab.story());
    lab.world.command(lab.client, Command::Down(ConnectionId(0))).expect("its end");
    lab.seconds(1);
    lab.world.command(lab.client, Command::Up(ConnectionId(0))).expect("a new start");
    lab.seconds(5);
    let refused =
        |r: &CloseReason| matches!(r, CloseReason::Authentication(t) if t.contains("has expired"));
    assert!(lab.reasons(lab.client).iter().any(refused), "{}", lab.story());
}

#[test]
fn rfc_5280_revocation_lists_decide_as_the_policy_says() {
    use RevocationPolicy::{Relaxed, Required};
    let Pki { root, laptop, vpn } = Pki::new();
    let with = |lists: &[Vec<u8>], policy| {
        let mut trust = root.trust().with_revocation_policy(policy);
        lists.iter().for_each(|list| trust.add_revocation_lists(list).expect("a list"));
        let gateway = (vpn.as_local(), RemoteAuth::Certificate(Arc::new(trust)));
        plan((laptop.as_local(), root.as_remote()), gateway)
    };
    let list = |revokes, until| [root.revocation_list(revokes, until)];
    for policy in [Relaxed, Required] {
        works(with(&list(false, (2027, 2)), policy));
        gateway_refuses(with(&list(true, (2027, 2)), policy), "has been revoked");
    }
    // Out of date.
    works(with(&list(false, (2027, 1)), Relaxed));
    gateway_refuses(with(&list(true, (2027, 1)), Relaxed), "has been revoked");
    gateway_refuses(with(&list(false, (2027, 1)), Required), "is out of date");
    // None at all, or one of somebody else.
    let other = [bewick_tests::pki::root("other").revocation_list(false, (2027, 2))];
    for lists in [&[][..], &other[..]] {
        works(with(lists, Relaxed));
        gateway_refuses(with(lists, Required), "there is no revocation list");
    }
    // One in the authority's name that somebody else has signed.
    let forged = [bewick_tests::pki::root("root").revocation_list(false, (2027, 2))];
    gateway_refuses(with(&forged, Required), "the signature on a certificate or revocation list");
    gateway_refuses(with(&forged, Relaxed), "the signature on a certificate or revocation list");
}

#[test]
fn rfc_7296_2_15_the_gateway_picks_the_connection_by_identity_and_proof() {
    let Pki { root, laptop, vpn } = Pki::new();
    let connection = |name: &str, local: LocalAuth, remote| {
        let mut config = gateway_config();
        config.name = name.into();
        (config.local_auth, config.remote_auth) = (local, remote);
        config.pools = Vec::new();
        config
    };
    let gateway = [
        connection("by key", LocalAuth::Psk(psk()), RemoteAuth::Psk(psk())),
        connection("by certificate", vpn.as_local(), root.as_remote()),
        connection("by key to a certificate", vpn.as_local(), RemoteAuth::Psk(psk())),
    ];
    let with = |local, remote, id: &str| {
        let mut plan = plan((local, remote), (LocalAuth::Psk(psk()), RemoteAuth::Psk(psk())));
        let [first, others @ ..] = gateway.clone();
        (plan.gateway, plan.gateway_others) = (first, others.to_vec());
        plan.client.request_ipv4 = false;
        plan.client.local_id = id.parse().expect("an identity");
        plan
    };
    let picked = |plan: Plan| {
        let lab = Lab::established(plan);
        lab.events(lab.gateway)
            .iter()
            .find_map(|event| match event {
                Event::Established { established, .. } => Some(established.connection.0),
                _ => None,
            })
            .expect("established")
    };
    assert_eq!(picked(with(LocalAuth::Psk(psk()), RemoteAuth::Psk(psk()), LAPTOP)), 0);
    assert_eq!(picked(with(laptop.as_local(), root.as_remote(), LAPTOP)), 1);
    let refuse = |plan| refused(plan)[1].clone();
    let text = refuse(with(laptop.as_local(), root.as_remote(), "eve@example.com"));
    assert!(text.contains("eve@example.com"), "{text}");
    let text = refuse(with(laptop.as_local(), root.as_remote(), "laptop@example.org"));
    assert!(text.contains("no connection expects laptop@example.org"), "{text}");
}

#[test]
fn rfc_7383_a_long_chain_goes_in_fragments() {
    let Pki { root, laptop, .. } = Pki::new();
    let mut holders: Vec<Holder> = Vec::new();
    for n in 0..6 {
        let issuer = holders.last().unwrap_or(&root);
        holders.push(issuer.certify(authority_params(&format!("intermediate {n}"))));
    }
    holders.push(holders.last().expect("an issuer").certify(holder_params(VPN)));
    let long: Vec<&Holder> = holders.iter().rev().collect();
    let mut plan = plan((laptop.as_local(), root.as_remote()), (chain(&long), root.as_remote()));
    plan.gateway.fragment_size = Some(576);
    let mut lab = Lab::new(plan);
    lab.world.net.capture.set_on(true);
    lab.up();
    lab.rest();
    assert!(lab.is_up(), "{}", lab.story());
    let fragments = lab.world.net.capture.sent().filter(|record| {
        let payload = &record.datagram.payload;
        let message = payload.strip_prefix(&[0; 4]).and_then(|bytes| Message::parse(bytes).ok());
        message.is_some_and(|message| {
            message.header.exchange == ExchangeType::IKE_AUTH
                && message.header.flags.response
                && message.encrypted.is_some_and(|sealed| sealed.fragment.is_some())
        })
    });
    assert!(fragments.count() > 4);
}

#[test]
fn a_configuration_with_certificates_shows_no_secret() {
    let Pki { root, laptop, .. } = Pki::new();
    let mut config = client_config();
    (config.local_auth, config.remote_auth) = (laptop.as_local(), root.as_remote());
    let text = format!("{config:?}");
    assert!(text.contains("Certificate(Credentials(1 certificates))"), "{text}");
    assert!(text.contains("Certificate(Trust(1 anchors, 0 revocation lists))"), "{text}");
}
