//! Many clients of ours in one process, each with two addresses of its own: what keeps a gateway busy.
//!
//! They have bewick's IKE and MOBIKE and its sockets, and no data plane: what is asked of that is answered at
//! once. Their addresses are those of whole networks that the client's host takes for its own.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bewick_ike::auth::{
    Certificate, Credentials, LocalAuth, PrivateKey, RemoteAuth, Trust, UnixSeconds, WallClock,
};
use bewick_ike::config::{
    Childless, DEFAULT_FRAGMENT_SIZE, EspProposal, Retransmission, Selectors, Uniqueness,
};
use bewick_ike::crypto::{IkeEncryption, IkeSuite, KeyExchangeMethod, Prf};
use bewick_ike::{ConnectionConfig, EspSuite, Random, Role, Secret, Time, TrafficSelector};
use bewick_mobike::{
    Command, ConnectionPolicy, Event, Host, HostConfig, Input, LocalAddress, Output,
};
use bewick_xfrm::udp::{IkeDatagram, UdpConfig, UdpSockets};
use tokio::sync::mpsc::Receiver;

use crate::fail;
use crate::failure::{Context, Result};
use crate::peer::tunnel::Proof;
use crate::peer::{CLIENT_ID, GATEWAY_ID, PSK};
use crate::topology::{GATEWAY, INNER_NETWORK};

/// The networks of the first and of the second addresses (RFC 2544 sets them aside for measurements).
pub const NETWORKS: [&str; 2] = ["198.18.0.0/16", "198.19.0.0/16"];
/// The most clients: a gateway's pool has no more addresses.
pub const MOST: usize = 60_000;

/// Set-ups that are under way at once: few enough for no gateway to ask for cookies, which both do by
/// default from some thirty on.
const UNDER_WAY: usize = 24;
/// How long nothing must be heard for all to be over.
const QUIET: Duration = Duration::from_millis(1500);
/// How long a thread sleeps that has nothing to do.
const NAP: Duration = Duration::from_micros(200);
/// Far more than a benchmark takes.
const NEVER: Duration = Duration::from_secs(86_400);

/// How the clients prove who they are, and how the gateway does: all of them the same way.
#[derive(Clone)]
pub struct Proofs {
    local: LocalAuth,
    remote: RemoteAuth,
}

impl Proofs {
    /// From what the peers are told: `client` is ours, `gateway` the other end's.
    ///
    /// # Errors
    /// A file cannot be read or is not what it should be.
    pub fn of(client: &Proof, gateway: &Proof) -> Result<Self> {
        let psk = || Secret::new(PSK.as_bytes().to_vec());
        let read = |path: &std::path::Path| std::fs::read(path).context(path.display());
        let local = match client {
            Proof::Psk => LocalAuth::Psk(psk()),
            Proof::Certificate(files) => {
                let chain = Certificate::from_file(&read(&files.certificate)?);
                let key = PrivateKey::from_file(&read(&files.key)?).context("key")?;
                let key = Arc::new(key.with_system_randomness());
                let credentials = Credentials::new(chain.context("certificate")?, key);
                LocalAuth::Certificate(Arc::new(credentials.context("credentials")?))
            }
        };
        let remote = match gateway {
            Proof::Psk => RemoteAuth::Psk(psk()),
            Proof::Certificate(files) => {
                let anchors = Certificate::from_file(&read(&files.ca)?).context("authority")?;
                RemoteAuth::Certificate(Arc::new(Trust::new(&anchors).context("authority")?))
            }
        };
        Ok(Self { local, remote })
    }
}

struct Client {
    host: Host,
    homes: [IpAddr; 2],
    due: Option<Time>,
    is_up: bool,
    has_moved: bool,
}

/// The clients, and the sockets that they share.
pub struct Herd {
    udp: Arc<UdpSockets>,
    received: Receiver<IkeDatagram>,
    clients: Vec<Client>,
    at: BTreeMap<IpAddr, usize>,
    timers: BTreeSet<(Time, usize)>,
    start: Instant,
    last_message: Instant,
    up: usize,
    moved: usize,
    closed: usize,
    said: Option<String>,
}

/// What came of a storm.
#[derive(Debug, Clone, Copy)]
pub struct Storm {
    /// How many have moved.
    pub moved: usize,
    /// How many IKE_SAs were lost.
    pub closed: usize,
    /// From the first client that was told to the last message of a move, the gateway's checks included.
    pub took: Duration,
}

impl Herd {
    /// Makes this many; the sockets are those of the calling thread's network namespace.
    ///
    /// # Errors
    /// The sockets cannot be opened.
    pub fn open(size: usize, proofs: &Proofs) -> Result<Self> {
        let size = size.min(MOST);
        let config =
            UdpConfig { bind_v6: None, queue: 1 << 16, buffer: 64 << 20, ..UdpConfig::default() };
        let (udp, received) = UdpSockets::open(&config).context("sockets of the clients")?;
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).context("clock")?;
        let clock = WallClock::new(Time::ZERO, UnixSeconds(now.as_secs()));
        let mut clients = Vec::with_capacity(size);
        let mut at = BTreeMap::new();
        for number in 0..size {
            // Neither .0 nor .255 at the end, for those who see more in them than an address.
            let [third, fourth] = [number / 250, number % 250 + 1].map(|part| part as u8);
            let homes = [18, 19].map(|net| IpAddr::from(Ipv4Addr::new(198, net, third, fourth)));
            at.extend(homes.map(|home| (home, number)));
            let config = HostConfig {
                connections: vec![(connection(proofs, &identity(proofs, number))?, policy())],
                force_encap: true,
                ..HostConfig::default()
            };
            let mut seed = [0; 32];
            seed[..8].copy_from_slice(&(number as u64).to_be_bytes());
            seed[8..16].copy_from_slice(&(now.as_nanos() as u64).to_be_bytes());
            let mut host = Host::new(config, Random::from_seed(seed));
            host.set_wall_clock(clock);
            clients.push(Client { host, homes, due: None, is_up: false, has_moved: false });
        }
        let start = Instant::now();
        Ok(Self {
            udp,
            received,
            clients,
            at,
            timers: BTreeSet::new(),
            start,
            last_message: start,
            up: 0,
            moved: 0,
            closed: 0,
            said: None,
        })
    }

    /// Brings all up, a few at a time, and says how long that took.
    ///
    /// # Errors
    /// Not all are up in time.
    pub fn up(&mut self, limit: Duration) -> Result<Duration> {
        let began = Instant::now();
        let mut started = 0;
        while self.up < self.clients.len() {
            while started < self.clients.len() && started < self.up + UNDER_WAY {
                self.begin(started)?;
                started += 1;
            }
            self.turn();
            if self.closed > 0 || began.elapsed() > limit {
                let (up, all, seconds) = (self.up, self.clients.len(), began.elapsed().as_secs());
                let said = self.said.as_deref().unwrap_or("nothing was said");
                return Err(fail!("{up} of {all} clients are up after {seconds} s; {said}"));
            }
        }
        Ok(began.elapsed())
    }

    fn begin(&mut self, number: usize) -> Result<()> {
        let now = self.now();
        let homes = self.clients[number].homes;
        self.give(number, Input::Addresses(homes.iter().map(local).collect()));
        let host = &mut self.clients[number].host;
        let Some((id, _)) = host.connections().next() else { return Ok(()) };
        host.command(now, Command::Up(id)).context("a client's tunnel")?;
        self.carry_out(number);
        Ok(())
    }

    /// Waits until nothing has been heard for some time.
    ///
    /// # Errors
    /// There is always something.
    pub fn calm_down(&mut self, limit: Duration) -> Result<()> {
        let began = Instant::now();
        while self.last_message.elapsed() < QUIET {
            self.turn();
            if began.elapsed() > limit {
                return Err(fail!("no calm {} s after all were up", limit.as_secs()));
            }
        }
        Ok(())
    }

    /// Takes the first address away from all of them at once, and waits until all have moved and nothing is
    /// heard any more.
    pub fn lose_first_addresses(&mut self, limit: Duration) -> Storm {
        let began = Instant::now();
        self.last_message = began;
        self.closed = 0;
        for number in 0..self.clients.len() {
            let left = local(&self.clients[number].homes[1]);
            self.give(number, Input::Addresses(vec![left]));
            if number % 16 == 15 {
                self.take_in();
            }
        }
        let all = self.clients.len();
        while began.elapsed() < limit && (self.moved < all || self.last_message.elapsed() < QUIET) {
            self.turn();
        }
        let took = self.last_message.duration_since(began);
        Storm { moved: self.moved, closed: self.closed, took }
    }

    fn now(&self) -> Time {
        Time::ZERO + self.start.elapsed()
    }

    /// What has come in, what is due, or a nap.
    fn turn(&mut self) {
        let busy = self.take_in();
        let now = self.now();
        let mut due = Vec::new();
        while let Some((_, number)) = self.timers.first().copied().filter(|(at, _)| *at <= now) {
            self.timers.pop_first();
            self.clients[number].due = None;
            due.push(number);
        }
        let idle = due.is_empty() && !busy;
        for number in due {
            self.give(number, Input::Timeout);
        }
        if idle {
            std::thread::sleep(NAP);
        }
    }

    fn take_in(&mut self) -> bool {
        let mut any = false;
        while let Ok(IkeDatagram { path, bytes, .. }) = self.received.try_recv() {
            any = true;
            self.last_message = Instant::now();
            if let Some(number) = self.at.get(&path.local.ip()).copied() {
                self.give(number, Input::Datagram { path, bytes: &bytes });
            }
        }
        any
    }

    fn give(&mut self, number: usize, input: Input<'_>) {
        let now = self.now();
        self.clients[number].host.handle(now, input);
        self.carry_out(number);
    }

    fn carry_out(&mut self, number: usize) {
        let now = self.now();
        let client = &mut self.clients[number];
        while let Some(output) = client.host.poll_output() {
            match output {
                Output::Transmit(one) => {
                    // What the system does not take is as lost as any other, and sent again.
                    let _ = self.udp.send_ike(&one.path, &one.bytes);
                    self.last_message = Instant::now();
                }
                Output::Action { id, .. } => {
                    client.host.handle(now, Input::Answer { id, result: Ok(()) });
                }
                Output::Count { sa, .. } => {
                    client.host.handle(now, Input::Counted { sa, sent: 0, received: 0 });
                }
                Output::Resolve(connection) => {
                    let addresses = vec![GATEWAY.into()];
                    client.host.handle(now, Input::Resolved { connection, addresses });
                }
                Output::Event(Event::Established { .. }) if !client.is_up => {
                    client.is_up = true;
                    self.up += 1;
                }
                Output::Event(Event::Moved { .. }) if !client.has_moved => {
                    client.has_moved = true;
                    self.moved += 1;
                }
                Output::Event(Event::Closed { reason, .. }) => {
                    self.closed += 1;
                    self.said.get_or_insert(reason.to_string());
                }
                Output::Event(_) | Output::Keepalive(_) | Output::Keys(_) => {}
                Output::SetTrap { .. } | Output::ClearTrap { .. } => {}
            }
        }
        let next = client.host.next_timeout();
        if next != client.due {
            self.timers.extend(next.map(|at| (at, number)));
            if let Some(old) = std::mem::replace(&mut client.due, next) {
                self.timers.remove(&(old, number));
            }
        }
    }
}

impl Drop for Herd {
    fn drop(&mut self) {
        self.udp.shutdown();
    }
}

fn local(address: &IpAddr) -> LocalAddress {
    LocalAddress {
        cost: 0,
        metric: 0,
        address: *address,
        interface: "u".to_owned(),
        metered: false,
    }
}

/// Nothing is asked but what a move makes necessary.
fn policy() -> ConnectionPolicy {
    ConnectionPolicy {
        dead_after: Duration::ZERO,
        standby: Duration::ZERO,
        back_after: Duration::ZERO,
        ..ConnectionPolicy::default()
    }
}

/// A name of its own, but where all have the same certificate.
fn identity(proofs: &Proofs, number: usize) -> String {
    match proofs.local {
        LocalAuth::Psk(_) => format!("{number}-{CLIENT_ID}"),
        _ => CLIENT_ID.to_owned(),
    }
}

fn connection(proofs: &Proofs, identity: &str) -> Result<ConnectionConfig> {
    let behind = TrafficSelector::from_net(INNER_NETWORK.parse().context(INNER_NETWORK)?);
    Ok(ConnectionConfig {
        name: "tunnel".into(),
        role: Role::Initiator,
        local_id: identity.parse().context(identity)?,
        remote_id: GATEWAY_ID.parse().context(GATEWAY_ID)?,
        local_auth: proofs.local.clone(),
        remote_auth: proofs.remote.clone(),
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
        ts_remote: Selectors::List(vec![behind]),
        request_ipv4: true,
        request_ipv6: false,
        pools: Vec::new(),
        dns: Vec::new(),
        mobike: true,
        nat_traversal: true,
        force_encap: true,
        liveness: NEVER,
        child_lifetime: NEVER,
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
    })
}
