//! What a whole set-up costs, IKE_SA_INIT and IKE_AUTH with both ends on one core and nothing between
//! them; what an IKE_SA at rest takes of the heap; and what it takes to read and write IKE_AUTH.
//!
//! Run with `cargo bench -p bewick-ike --bench setup`; an argument is a part of the names to run. The
//! goal stands beside each figure.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    hint::black_box,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use bewick_ike::{
    ConnectionConfig, ConnectionId, Endpoint, EspSuite, Event, Extension, Output, Path, Random,
    Role, SaId, SaView, Secret, Time, TrafficSelector,
    auth::{
        Certificate, Credentials, LocalAuth, PrivateKey, RemoteAuth, Trust, UnixSeconds, WallClock,
    },
    config::{
        Childless, DEFAULT_FRAGMENT_SIZE, EspProposal, Retransmission, Selectors, Uniqueness,
    },
    crypto::{IkeEncryption, IkeSuite, KeyExchangeMethod, Prf},
    extension::{Plain, Request},
    wire::{Payload, emit_chain, parse_chain},
};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType, date_time_ymd};

/// Counts what is on the heap.
struct Counting;

static HEAP: AtomicUsize = AtomicUsize::new(0);

// SAFETY: all work is the system allocator's, called as we are called.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        HEAP.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps what `alloc` asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        HEAP.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: it came from `System`, by `alloc` above.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const EACH: Duration = Duration::from_secs(3);

/// 2027-01-15: when the set-ups take place.
const NOW: UnixSeconds = UnixSeconds(1_800_000_000);

const RSA: [&str; 2] = [
    include_str!("../src/auth/tests/fixtures/rsa2048-a.pem"),
    include_str!("../src/auth/tests/fixtures/rsa2048-b.pem"),
];

/// How both ends of a set-up prove who they are.
struct Proofs {
    client: (LocalAuth, RemoteAuth),
    gateway: (LocalAuth, RemoteAuth),
}

fn psk() -> Proofs {
    let secret = || Secret::new(b"a pre-shared key of thirty-two o".to_vec());
    let both = || (LocalAuth::Psk(secret()), RemoteAuth::Psk(secret()));
    Proofs { client: both(), gateway: both() }
}

fn params() -> CertificateParams {
    let mut params = CertificateParams::default();
    (params.not_before, params.not_after) = (date_time_ymd(2026, 1, 1), date_time_ymd(2028, 1, 1));
    params
}

/// A root, and beneath it a certificate of each end with a key of these.
fn certificates(root_key: KeyPair, keys: [KeyPair; 2]) -> Proofs {
    let mut root = params();
    root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let made = root.self_signed(&root_key).expect("a certificate");
    let anchor = Certificate::from_der(made.der()).expect("a certificate");
    let issuer = Issuer::from_params(&root, &root_key);
    let names = [
        SanType::Rfc822Name("user@example.com".try_into().expect("ASCII")),
        SanType::DnsName("vpn.example.com".try_into().expect("ASCII")),
    ];
    let mut ends = names.into_iter().zip(keys).map(|(name, key)| {
        let mut params = params();
        params.subject_alt_names = vec![name];
        let made = params.signed_by(&key, &issuer).expect("a certificate");
        let certificate = Certificate::from_der(made.der()).expect("a certificate");
        // As the daemon does.
        let key = PrivateKey::from_file(key.serialized_der()).expect("a key");
        let key = Arc::new(key.with_system_randomness());
        let credentials = Credentials::new(vec![certificate], key).expect("credentials");
        let trust = Trust::new(std::slice::from_ref(&anchor)).expect("an anchor");
        let local = LocalAuth::Certificate(Arc::new(credentials));
        (local, RemoteAuth::Certificate(Arc::new(trust)))
    });
    let (client, gateway) = (ends.next().expect("two"), ends.next().expect("two"));
    Proofs { client, gateway }
}

fn p256() -> Proofs {
    let key = || KeyPair::generate().expect("a key");
    certificates(key(), [key(), key()])
}

fn rsa() -> Proofs {
    let key = |file| KeyPair::from_pem(file).expect("a key");
    let [a, b] = RSA;
    certificates(key(a), [key(b), key(b)])
}

fn client(user: &str, (local_auth, remote_auth): (LocalAuth, RemoteAuth)) -> ConnectionConfig {
    let net = |text: &str| TrafficSelector::from_net(text.parse().expect("a network"));
    ConnectionConfig {
        name: "client".into(),
        role: Role::Initiator,
        local_id: user.parse().expect("an identity"),
        remote_id: "vpn.example.com".parse().expect("an identity"),
        local_auth,
        remote_auth,
        ike_proposals: vec![IkeSuite {
            encryption: IkeEncryption::AesGcm16 { key_bits: 256 },
            prf: Prf::HmacSha256,
            key_exchange: KeyExchangeMethod::X25519,
        }],
        mode: Default::default(),
        esp_proposals: vec![EspProposal {
            suite: EspSuite::AesGcm16 { key_bits: 256 },
            esn: false,
            key_exchange: None,
        }],
        ts_local: Selectors::Dynamic,
        ts_remote: Selectors::List(vec![net("10.1.0.0/16")]),
        request_ipv4: true,
        request_ipv6: false,
        pools: Vec::new(),
        dns: Vec::new(),
        mobike: true,
        nat_traversal: true,
        force_encap: false,
        liveness: Duration::from_secs(30),
        child_lifetime: Duration::from_secs(3600),
        child_limits: Default::default(),
        carriage: Default::default(),
        ike_lifetime: Duration::ZERO,
        reauth_lifetime: Duration::ZERO,
        window: 1,
        more_children: Vec::new(),
        childless: Childless::Allow,
        dns_domains: Vec::new(),
        uniqueness: Uniqueness::default(),
        fragment_size: Some(DEFAULT_FRAGMENT_SIZE),
        retransmission: Retransmission::default(),
    }
}

fn gateway(proofs: (LocalAuth, RemoteAuth)) -> ConnectionConfig {
    let net = |text: &str| TrafficSelector::from_net(text.parse().expect("a network"));
    ConnectionConfig {
        name: "gateway".into(),
        role: Role::Responder,
        remote_id: "*@example.com".parse().expect("a pattern"),
        ts_local: Selectors::List(vec![net("10.1.0.0/16")]),
        ts_remote: Selectors::Dynamic,
        request_ipv4: false,
        pools: vec!["10.9.0.0/16".parse().expect("a network")],
        ..client("vpn.example.com", proofs)
    }
}

/// Both ends.
struct Pair {
    client: Endpoint,
    gateway: Endpoint,
}

impl Pair {
    fn new(clients: Vec<ConnectionConfig>, gateway: ConnectionConfig) -> Self {
        let start = |seed, connections| {
            let mut endpoint = Endpoint::new(Random::from_seed([seed; 32]), connections, false);
            endpoint.set_wall_clock(WallClock::new(Time::ZERO, NOW));
            endpoint
        };
        Pair { client: start(1, clients), gateway: start(2, vec![gateway]) }
    }

    /// One set-up; gives the IKE_SAs of both ends once both report it.
    fn set_up(&mut self, connection: usize, extension: &mut dyn Extension) -> (SaId, SaId) {
        let path = Path::new(
            "198.51.100.2:500".parse().expect("an address"),
            "192.0.2.1:500".parse().expect("an address"),
        );
        let connection = ConnectionId(connection);
        let started = self.client.connect(Time::ZERO, connection, path, &mut Plain);
        let ours = started.expect("a connection");
        let mut theirs = None;
        let mut established = 0;
        let mut idle = 0;
        while idle < 2 {
            idle += 1;
            for (from, to) in [(true, false), (false, true)] {
                let ends = (&mut self.client, &mut self.gateway);
                let (from, to) = if from && !to { ends } else { (ends.1, ends.0) };
                while let Some(output) = from.poll_output() {
                    idle = 0;
                    match output {
                        Output::Transmit(datagram) => {
                            let Path { local, remote, .. } = datagram.path;
                            let path = Path::new(remote, local);
                            to.datagram(Time::ZERO, path, &datagram.bytes, extension);
                        }
                        Output::Action { id, .. } => {
                            from.answer(Time::ZERO, id, Ok(()), &mut Plain);
                        }
                        Output::Event(Event::Established(news)) => {
                            established += 1;
                            if news.role == Role::Responder {
                                theirs = Some(news.sa);
                            }
                        }
                        Output::Event(Event::Answering { .. }) => {}
                        Output::Keys(_) => panic!("nobody has asked for keys"),
                        Output::Event(event) => panic!("{event:?}"),
                    }
                }
            }
        }
        assert_eq!(established, 2, "both ends");
        (ours, theirs.expect("the gateway's"))
    }

    fn forget(&mut self, (ours, theirs): (SaId, SaId)) {
        for (endpoint, id) in [(&mut self.client, ours), (&mut self.gateway, theirs)] {
            let reason = bewick_ike::CloseReason::Local;
            endpoint.abandon(Time::ZERO, id, reason, &mut Plain);
            while let Some(output) = endpoint.poll_output() {
                if let Output::Action { id, .. } = output {
                    endpoint.answer(Time::ZERO, id, Ok(()), &mut Plain);
                }
            }
        }
    }
}

fn is_wanted(name: &str) -> bool {
    let wanted = std::env::args().skip(1).find(|arg| !arg.starts_with('-'));
    wanted.is_none_or(|part| name.contains(&part))
}

fn set_ups(name: &str, proofs: &Proofs, goal: u32) {
    if !is_wanted(name) {
        return;
    }
    let clients = vec![client("user@example.com", proofs.client.clone())];
    let mut pair = Pair::new(clients, gateway(proofs.gateway.clone()));
    let mut once = || {
        let sas = pair.set_up(0, &mut Plain);
        pair.forget(sas);
    };
    once();
    let (start, mut count) = (Instant::now(), 0u32);
    while start.elapsed() < EACH {
        once();
        count += 1;
    }
    let rate = f64::from(count) / start.elapsed().as_secs_f64();
    println!("{name:<44} {rate:>10.0} a second (goal {goal})");
}

/// The heap of a gateway's IKE_SA that is established and at rest, with its one CHILD_SA.
fn heap(name: &str, proofs: &Proofs, users: &[String]) {
    if !is_wanted(name) {
        return;
    }
    let clients = users.iter().map(|user| client(user, proofs.client.clone())).collect();
    let mut pair = Pair::new(clients, gateway(proofs.gateway.clone()));
    for user in 0..users.len() {
        pair.set_up(user, &mut Plain);
    }
    let Pair { client, gateway } = pair;
    drop(client);
    let (with, sas) = (HEAP.load(Ordering::Relaxed), gateway.len());
    drop(gateway);
    // Its configuration and tables are shared out among them.
    let each = (with - HEAP.load(Ordering::Relaxed)) / sas;
    println!("{name:<44} {each:>10} octets (goal 8192)");
}

/// Keeps the payloads of the IKE_AUTH request.
#[derive(Default)]
struct Keep(Vec<Payload>);

impl Extension for Keep {
    fn auth_request(&mut self, _: &SaView) -> Vec<Payload> {
        Vec::new()
    }
    fn auth_request_received(&mut self, _: &SaView, payloads: &[Payload]) -> Vec<Payload> {
        self.0 = payloads.to_vec();
        Vec::new()
    }
    fn auth_response_received(&mut self, _: &SaView, _: &[Payload]) {}
    fn informational(&mut self, _: &SaView, _: &Request<'_>, _: &mut Random) -> Vec<Payload> {
        Vec::new()
    }
    fn liveness(&mut self, _: &SaView, _: &mut Random) -> Vec<Payload> {
        Vec::new()
    }
}

fn measure(name: &str, mut call: impl FnMut()) {
    if !is_wanted(name) {
        return;
    }
    call();
    let (start, mut calls) = (Instant::now(), 0u32);
    while start.elapsed() < EACH / 6 {
        for _ in 0..100 {
            call();
        }
        calls += 100;
    }
    let nanos = start.elapsed().as_secs_f64() * 1e9 / f64::from(calls);
    println!("{name:<44} {nanos:>10.0} ns");
}

fn wire(kind: &str, proofs: &Proofs) {
    let clients = vec![client("user@example.com", proofs.client.clone())];
    let mut pair = Pair::new(clients, gateway(proofs.gateway.clone()));
    let mut kept = Keep::default();
    pair.set_up(0, &mut kept);
    let (first, chain) = emit_chain(&kept.0).expect("it fits");
    let octets = chain.len();
    measure(&format!("{kind}: parse IKE_AUTH, {octets} octets"), || {
        black_box(parse_chain(first, black_box(&chain)).is_ok());
    });
    measure(&format!("{kind}: emit IKE_AUTH, {octets} octets"), || {
        black_box(emit_chain(black_box(&kept.0)).is_ok());
    });
}

fn main() {
    let (psk, p256, rsa) = (psk(), p256(), rsa());
    set_ups("PSK, X25519: set-ups", &psk, 4000);
    set_ups("ECDSA P-256 certificates, X25519: set-ups", &p256, 2000);
    set_ups("RSA-2048 certificates, X25519: set-ups", &rsa, 800);
    let users: Vec<String> = (0..1000).map(|n| format!("user{n}@example.com")).collect();
    heap("PSK: heap of an IKE_SA at rest", &psk, &users);
    // Its own certificate is in the response that a gateway keeps for a retransmission.
    let mixed = Proofs {
        client: (psk.client.0.clone(), p256.client.1.clone()),
        gateway: (p256.gateway.0.clone(), psk.gateway.1.clone()),
    };
    heap("ECDSA P-256: heap of an IKE_SA at rest", &mixed, &users);
    wire("PSK", &psk);
    wire("ECDSA P-256", &p256);
}
