//! The usual topology: a client with two uplinks and a gateway with one or two, NATs where a test
//! wants them.

use std::{net::IpAddr, time::Duration};

use bewick_ike::{
    ChildSa, CloseReason, ConnectionConfig, ConnectionId, CrashSecrets, EspSuite, HmacSha2, Limits,
    Path, Role, Secret, Time, TrafficSelector,
    auth::{LocalAuth, RemoteAuth, UnixSeconds, WallClock},
    config::{
        Childless, DEFAULT_FRAGMENT_SIZE, EspProposal, Retransmission, Selectors, Uniqueness,
    },
    crypto::{IkeEncryption, IkeSuite, KeyExchangeMethod, Prf},
    endpoint::SaStatus,
};
use bewick_mobike::{Command, ConnectionPolicy, Event, Host, HostConfig, MoveTarget};

use crate::{
    link::Link,
    nat::NatConfig,
    net::{HostId, NatId, Net, Realm, UplinkId},
    node::{Node, interface},
    pair::{EndId, FlowId, World},
    plane::are_two_ends,
    puppet::Puppet,
    seed::stream,
};

/// X25519 and AES-GCM.
pub const X25519_GCM: IkeSuite = IkeSuite {
    encryption: IkeEncryption::AesGcm16 { key_bits: 256 },
    prf: Prf::HmacSha384,
    key_exchange: KeyExchangeMethod::X25519,
};

/// ECP-256 and AES-CBC with HMAC.
pub const ECP256_CBC: IkeSuite = IkeSuite {
    encryption: IkeEncryption::AesCbc { key_bits: 128, integrity: HmacSha2::Sha256 },
    prf: Prf::HmacSha256,
    key_exchange: KeyExchangeMethod::Ecp256,
};

/// ESP with AES-GCM.
pub const ESP_GCM: EspProposal =
    EspProposal { suite: EspSuite::AesGcm16 { key_bits: 256 }, esn: false, key_exchange: None };

/// ESP with AES-CBC and HMAC.
pub const ESP_CBC: EspProposal = EspProposal {
    suite: EspSuite::AesCbc { key_bits: 128, integrity: HmacSha2::Sha256 },
    esn: false,
    key_exchange: None,
};

/// An IP address out of its text.
///
/// # Panics
/// If it is none.
pub fn ip(text: &str) -> IpAddr {
    text.parse().expect("an IP address")
}

/// A path out of two addresses with ports.
///
/// # Panics
/// If they are none.
pub fn path(local: &str, remote: &str) -> Path {
    let at = |text: &str| text.parse().expect("an address with a port");
    Path::new(at(local), at(remote))
}

/// Selectors out of networks.
///
/// # Panics
/// If they are none.
pub fn selectors(nets: &[&str]) -> Selectors {
    let of = |net: &&str| TrafficSelector::from_net(net.parse().expect("a network"));
    Selectors::List(nets.iter().map(of).collect())
}

/// What a lab is built from; the default is IPv4 without NATs.
pub struct Plan {
    /// of all chances
    pub seed: u64,
    /// the outer addresses are IPv6
    pub v6: bool,
    /// the first uplink of the client is behind a NAT
    pub nat_wlan: bool,
    /// the second uplink of the client is behind a NAT
    pub nat_lte: bool,
    /// the gateway is behind a NAT that forwards ports 500 and 4500
    pub nat_gateway: bool,
    /// the client has its second uplink
    pub second_uplink: bool,
    /// the gateway has a second address, on a second uplink
    pub second_gateway: bool,
    /// how NATs behave
    pub nat: NatConfig,
    /// the client's connection
    pub client: ConnectionConfig,
    /// how it moves
    pub client_policy: ConnectionPolicy,
    /// the client's data plane knows ESP in UDP alone
    pub client_plane_encap: bool,
    /// the gateway's connection
    pub gateway: ConnectionConfig,
    /// further connections of the gateway, behind that one
    pub gateway_others: Vec<ConnectionConfig>,
    /// the time of day when the simulated clock begins
    pub begin: UnixSeconds,
    /// how it moves
    pub gateway_policy: ConnectionPolicy,
    /// the gateway makes crash tokens (RFC 6290), before and after a restart with the same secret
    pub crash_tokens: bool,
    /// a puppet plays the client
    pub puppet_client: bool,
    /// a puppet plays the gateway
    pub puppet_gateway: bool,
}

/// The pre-shared key of both ends.
pub fn psk() -> Secret {
    Secret::new(b"a key that both ends have".to_vec())
}

/// When the simulated clock begins: 2027-01-15 08:00 UTC.
pub const BEGIN: UnixSeconds = UnixSeconds(1_800_000_000);

/// The client's connection.
///
/// # Panics
/// Never.
pub fn client_config() -> ConnectionConfig {
    ConnectionConfig {
        name: "office".into(),
        role: Role::Initiator,
        local_id: "laptop@example.com".parse().expect("an identity"),
        remote_id: "vpn.example.com".parse().expect("an identity"),
        local_auth: LocalAuth::Psk(psk()),
        remote_auth: RemoteAuth::Psk(psk()),
        ike_proposals: vec![X25519_GCM, ECP256_CBC],
        mode: Default::default(),
        esp_proposals: vec![ESP_GCM, ESP_CBC],
        ts_local: Selectors::Dynamic,
        ts_remote: selectors(&["10.1.0.0/16"]),
        request_ipv4: true,
        request_ipv6: false,
        pools: Vec::new(),
        dns: Vec::new(),
        dns_domains: Vec::new(),
        uniqueness: Uniqueness::Replace,
        mobike: true,
        nat_traversal: true,
        force_encap: false,
        liveness: Duration::from_secs(30),
        child_lifetime: Duration::from_secs(3600),
        child_limits: Limits::default(),
        carriage: Default::default(),
        ike_lifetime: Duration::from_secs(14_400),
        reauth_lifetime: Duration::ZERO,
        window: 1,
        more_children: Vec::new(),
        childless: Childless::Allow,
        fragment_size: Some(DEFAULT_FRAGMENT_SIZE),
        retransmission: Retransmission::default(),
    }
}

/// The gateway's connection.
///
/// # Panics
/// Never.
pub fn gateway_config() -> ConnectionConfig {
    ConnectionConfig {
        name: "road-warriors".into(),
        role: Role::Responder,
        local_id: "vpn.example.com".parse().expect("an identity"),
        remote_id: "*@example.com".parse().expect("a pattern"),
        ts_local: selectors(&["10.1.0.0/16"]),
        ts_remote: Selectors::Dynamic,
        request_ipv4: false,
        pools: vec!["10.9.0.0/24".parse().expect("a network")],
        dns: vec![ip("10.1.0.53")],
        ..client_config()
    }
}

impl Default for Plan {
    fn default() -> Self {
        Plan {
            seed: 1,
            v6: false,
            nat_wlan: false,
            nat_lte: false,
            nat_gateway: false,
            second_uplink: true,
            second_gateway: false,
            nat: NatConfig::default(),
            client: client_config(),
            // What is sent on pairs that are not in use a test asks for.
            client_policy: ConnectionPolicy {
                standby: Duration::ZERO,
                back_after: Duration::ZERO,
                ..ConnectionPolicy::default()
            },
            client_plane_encap: false,
            gateway: gateway_config(),
            gateway_others: Vec::new(),
            begin: BEGIN,
            gateway_policy: ConnectionPolicy::default(),
            crash_tokens: false,
            puppet_client: false,
            puppet_gateway: false,
        }
    }
}

/// The lab.
pub struct Lab {
    /// network and ends
    pub world: World<Node>,
    /// the client
    pub client: EndId,
    /// the gateway
    pub gateway: EndId,
    /// the client's host
    pub client_host: HostId,
    /// the gateway's host
    pub gateway_host: HostId,
    /// the client's first and better uplink
    pub wlan: UplinkId,
    /// the client's second uplink, if it has one
    pub lte: Option<UplinkId>,
    /// the gateway's uplink
    pub wan: UplinkId,
    /// the gateway's second uplink, if it has one
    pub wan2: Option<UplinkId>,
    /// in front of the client's first uplink
    pub wlan_nat: Option<NatId>,
    /// in front of the client's second uplink
    pub lte_nat: Option<NatId>,
    /// in front of the gateway
    pub gateway_nat: Option<NatId>,
    /// where the client goes to
    pub gateway_ips: Vec<IpAddr>,
    plan: Plan,
}

const UP: Duration = Duration::from_secs(20);

impl Lab {
    /// Builds it; nothing is up.
    ///
    /// # Panics
    /// Never.
    pub fn new(plan: Plan) -> Self {
        let mut net = Net::new(plan.seed);
        let client_host = net.add_host("client");
        let gateway_host = net.add_host("gateway");
        let pick = |v4: &str, v6: &str| ip(if plan.v6 { v6 } else { v4 });
        let mut site = |nat: bool, plain: IpAddr, inside: IpAddr, outside: IpAddr| {
            if !nat {
                return (Realm::Internet, None, plain);
            }
            let id = net.add_nat(Realm::Internet, &[outside], plan.nat);
            (Realm::Behind(id), Some(id), inside)
        };
        let (wlan_realm, wlan_nat, wlan_ip) = site(
            plan.nat_wlan,
            pick("198.51.100.2", "2001:db8:2::2"),
            pick("192.168.1.2", "fd01::2"),
            pick("203.0.113.1", "2001:db8:a::1"),
        );
        let (lte_realm, lte_nat, lte_ip) = site(
            plan.nat_lte,
            pick("198.51.100.130", "2001:db8:3::2"),
            pick("10.0.0.2", "fd02::2"),
            pick("203.0.113.2", "2001:db8:b::1"),
        );
        let gateway_public = pick("192.0.2.1", "2001:db8:1::1");
        let (wan_realm, gateway_nat, wan_ip) =
            site(plan.nat_gateway, gateway_public, pick("172.16.0.1", "fd03::1"), gateway_public);
        let wlan = net.add_uplink(client_host, "wlan0", wlan_realm, &[wlan_ip]);
        let lte =
            plan.second_uplink.then(|| net.add_uplink(client_host, "lte0", lte_realm, &[lte_ip]));
        let wan = net.add_uplink(gateway_host, "wan0", wan_realm, &[wan_ip]);
        let second_ip = pick("192.0.2.129", "2001:db8:1:1::1");
        let wan2 = plan
            .second_gateway
            .then(|| net.add_uplink(gateway_host, "wan1", Realm::Internet, &[second_ip]));
        if let Some(nat) = gateway_nat {
            for port in [500, 4500] {
                net.forward(nat, (gateway_public, port).into(), (wan_ip, port).into());
            }
        }
        let gateway_ips = vec![gateway_public];
        let mut lab = Lab {
            world: World::new(net),
            client: EndId(0),
            gateway: EndId(0),
            client_host,
            gateway_host,
            wlan,
            lte,
            wan,
            wan2,
            wlan_nat,
            lte_nat,
            gateway_nat,
            gateway_ips,
            plan,
        };
        let (client, gateway) = (lab.client_machine(0), lab.gateway_machine(0));
        lab.client = lab.world.add_end(client_host, client);
        lab.gateway = lab.world.add_end(gateway_host, gateway);
        lab
    }

    /// The client's machine as it starts for the `nth` time.
    pub fn client_machine(&self, nth: u64) -> Node {
        let Plan { seed, client, client_policy, .. } = &self.plan;
        let random = stream(*seed, &format!("client {nth}"));
        if self.plan.puppet_client {
            let mut puppet = Puppet::new(vec![client.clone()], random);
            puppet.endpoint.set_wall_clock(self.wall_clock());
            return Node::Puppet(Box::new(puppet));
        }
        let config = HostConfig {
            connections: vec![(client.clone(), client_policy.clone())],
            force_encap: self.plan.client_plane_encap,
            can_cap: true,
        };
        let mut host = Host::new(config, random);
        host.set_wall_clock(self.wall_clock());
        Node::honest(host, self.gateway_ips.clone())
    }

    /// The gateway's machine as it starts for the `nth` time.
    pub fn gateway_machine(&self, nth: u64) -> Node {
        let Plan { seed, gateway, gateway_others, gateway_policy, .. } = &self.plan;
        let random = stream(*seed, &format!("gateway {nth}"));
        let connections = std::iter::once(gateway).chain(gateway_others).cloned();
        if self.plan.puppet_gateway {
            let mut puppet = Puppet::new(connections.collect(), random);
            puppet.endpoint.set_wall_clock(self.wall_clock());
            return Node::Puppet(Box::new(puppet));
        }
        let config = HostConfig {
            connections: connections.map(|config| (config, gateway_policy.clone())).collect(),
            force_encap: false,
            can_cap: true,
        };
        let mut host = Host::new(config, random);
        host.set_wall_clock(self.wall_clock());
        if self.plan.crash_tokens {
            host.set_crash_secrets(CrashSecrets(vec![Secret::new(vec![7; 32])]));
        }
        Node::honest(host, Vec::new())
    }

    fn wall_clock(&self) -> WallClock {
        WallClock::new(Time::ZERO, self.plan.begin)
    }

    /// A lab whose tunnel is up and at rest.
    ///
    /// # Panics
    /// If it does not come up.
    pub fn established(plan: Plan) -> Self {
        let mut lab = Lab::new(plan);
        lab.up();
        assert!(lab.is_up(), "{}", lab.story());
        lab.rest();
        lab
    }

    /// Tells the client to come up and gives it some time.
    ///
    /// # Panics
    /// If it does not know its connection.
    pub fn up(&mut self) {
        self.world.command(self.client, Command::Up(ConnectionId(0))).expect("its connection");
        let (client, gateway) = (self.client, self.gateway);
        self.world.run_while_not(UP, |world| {
            [client, gateway].iter().all(|id| {
                let ended = |event: &Event| {
                    matches!(
                        event,
                        Event::Established { .. } | Event::Closed { .. } | Event::Refused { .. }
                    )
                };
                world.end(*id).events.iter().any(|(_, event)| ended(event))
            })
        });
    }

    /// Lets what is under way come to its end: a second without an address change.
    pub fn rest(&mut self) {
        self.world.run_for(Duration::from_secs(1));
    }

    /// Runs for some milliseconds.
    pub fn ms(&mut self, ms: u64) {
        self.world.run_for(Duration::from_millis(ms));
    }

    /// Runs for some seconds.
    pub fn seconds(&mut self, seconds: u64) {
        self.world.run_for(Duration::from_secs(seconds));
    }

    /// Tells the client to go to one of its uplinks.
    ///
    /// # Panics
    /// If it refuses.
    pub fn move_to(&mut self, uplink: UplinkId) {
        let target = MoveTarget::Interface(interface(uplink));
        let command = Command::Move(ConnectionId(0), target);
        self.world.command(self.client, command).expect("a move");
    }

    /// The client's second uplink.
    ///
    /// # Panics
    /// If it has none.
    pub fn lte(&self) -> UplinkId {
        self.lte.expect("the plan has a second uplink")
    }

    /// The address of an uplink.
    ///
    /// # Panics
    /// If it has none.
    pub fn address(&self, uplink: UplinkId) -> IpAddr {
        let hosts = [self.client_host, self.gateway_host];
        let mut all = hosts.iter().flat_map(|host| self.world.net.addresses(*host));
        all.find(|(id, _)| *id == uplink).expect("an address").1
    }

    /// The IKE_SAs of an end that are not over.
    pub fn sas(&self, end: EndId) -> Vec<SaStatus<'_>> {
        match &self.world.end(end).machine {
            Node::Honest(honest) => honest.host.status().collect(),
            Node::Puppet(puppet) => puppet.endpoint.status().collect(),
        }
    }

    /// The link between both ends, over either uplink of the client's.
    pub fn link(&mut self, link: Link) {
        for uplink in self.client_uplinks() {
            self.world.net.set_links(uplink, self.wan, link);
        }
    }

    fn client_uplinks(&self) -> Vec<UplinkId> {
        self.world.net.uplinks(self.world.end(self.client).host)
    }

    /// Nothing gets through between the ends.
    pub fn cut(&mut self, cut: bool) {
        for uplink in self.client_uplinks() {
            self.world.net.set_black_hole(uplink, cut, cut);
        }
    }

    /// Numbered packets from each end to the other, one each millisecond.
    pub fn flows(&mut self, time: Duration) -> [FlowId; 2] {
        let (client, gateway, ms) = (self.client, self.gateway, Duration::from_millis(1));
        [
            self.world.start_flow(client, gateway, ms, time),
            self.world.start_flow(gateway, client, ms, time),
        ]
    }

    /// The numbers of the packets of these flows that were lost.
    pub fn lost(&self, flows: [FlowId; 2]) -> [Vec<u64>; 2] {
        flows.map(|flow| self.world.flow(flow).lost())
    }

    /// The CHILD_SAs of an end's data plane.
    pub fn children(&self, end: EndId) -> Vec<ChildSa> {
        self.world.end(end).plane.children().map(|child| child.sa.clone()).collect()
    }

    /// Whether both ends have one IKE_SA and one CHILD_SA, and they are the same.
    pub fn is_up(&self) -> bool {
        let (ours, theirs) = (self.sas(self.client), self.sas(self.gateway));
        let ([one], [other]) = (&ours[..], &theirs[..]) else { return false };
        let (here, there) = (self.children(self.client), self.children(self.gateway));
        let ([here], [there]) = (&here[..], &there[..]) else { return false };
        one.state == "established"
            && other.state == "established"
            && one.spis == other.spis
            && are_two_ends(here, there)
    }

    /// Whether nothing is left at both ends: no IKE_SA and no CHILD_SA.
    pub fn is_empty(&self) -> bool {
        [self.client, self.gateway].iter().all(|id| {
            let in_memory = match &self.world.end(*id).machine {
                Node::Honest(honest) => honest.host.len(),
                Node::Puppet(puppet) => puppet.endpoint.len(),
            };
            in_memory == 0 && self.children(*id).is_empty()
        })
    }

    /// The events of an end.
    pub fn events(&self, end: EndId) -> Vec<&Event> {
        self.world.end(end).events.iter().map(|(_, event)| event).collect()
    }

    /// How many events of that name an end has reported.
    pub fn count(&self, end: EndId, name: &str) -> usize {
        self.events(end).iter().filter(|event| event.name() == name).count()
    }

    /// Why the IKE_SAs of an end were closed, and what it refused.
    pub fn reasons(&self, end: EndId) -> Vec<CloseReason> {
        let reason = |event: &&Event| match event {
            Event::Closed { reason, .. } | Event::Refused { reason, .. } => Some(reason.clone()),
            _ => None,
        };
        self.events(end).iter().filter_map(reason).collect()
    }

    /// All events of both ends in the order of time, for the message of a failed test.
    pub fn story(&self) -> String {
        let mut lines = Vec::new();
        for (name, id) in [("client", self.client), ("gateway", self.gateway)] {
            for (time, event) in &self.world.end(id).events {
                lines.push((*time, format!("{time:?} {name}: {event}")));
            }
            for (time, change) in self.world.end(id).plane.log() {
                lines.push((*time, format!("{time:?} {name}'s plane: {change:?}")));
            }
        }
        lines.sort();
        let lines: Vec<String> = lines.into_iter().map(|(_, line)| line).collect();
        format!("at {:?}:\n{}", self.world.now(), lines.join("\n"))
    }
}
