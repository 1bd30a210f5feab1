//! What both ends are told about a tunnel, before each daemon's own words for it.

use std::net::IpAddr;
use std::path::PathBuf;

use crate::peer::{CLIENT_ID, GATEWAY_ID};
use crate::topology::{
    FIRST_UPLINK, FORWARDED, GATEWAY, GATEWAY_6, Node, POOL, POOL_6, POOL_OF_CROWD,
};

/// A tunnel between the client and the gateway.
#[derive(Debug, Clone)]
pub struct Tunnel {
    /// The client's settings.
    pub client: Side,
    /// The gateway's settings.
    pub gateway: Side,
    /// What is reached through it: a CHILD_SA for each.
    pub children: Vec<Child>,
    /// Whether the outer packets are IPv6.
    pub over_ipv6: bool,
    /// Whether the gateway is behind a NAT that passes on what comes for it.
    pub gateway_behind_nat: bool,
    /// The name of another client, which has the same key.
    pub second: Option<&'static str>,
    /// Networks behind the client, which then has no virtual address.
    pub site: &'static [Network],
    /// Whether no end names what is at either side, as where that is the two ends themselves.
    pub unnamed: bool,
    /// Where virtual addresses come from, if not from the usual pools.
    pub pools: &'static [&'static str],
    /// The address that a strongSwan asks for.
    pub asks_for: Option<&'static str>,
    /// The DNS servers that the gateway tells the client of.
    pub dns: &'static [&'static str],
    /// Thousands of clients that all say the same of who they are: a large pool, little in the logs.
    pub crowd: bool,
    /// Whether the client waits for packets.
    pub trap: bool,
    /// Whether the gateway starts too, towards the client's first uplink.
    pub mutual: bool,
    /// Whether who starts does so as soon as the daemon runs; bewick then keeps it up.
    pub at_once: bool,
    /// Whether IKE and ESP may go over TCP (RFC 9329), which strongSwan does not know.
    pub tcp: bool,
}

/// One end's settings.
#[derive(Debug, Clone, Default)]
pub struct Side {
    /// The IKE proposals, best first, in the words that both programs know; the program's own choice
    /// if there are none.
    pub ike: Vec<&'static str>,
    /// The ESP proposals, the same way.
    pub esp: Vec<&'static str>,
    /// How it proves who it is.
    pub proof: Proof,
    /// Who it is, in the words that both programs know, if not the usual name.
    pub id: Option<&'static str>,
    /// Whom it takes its peer for, if not for who that is.
    pub expects: Option<&'static str>,
    /// What becomes of an older IKE_SA of the same name, in the word that both programs have for it.
    pub unique: Option<&'static str>,
    /// Whether it stays where it is: MOBIKE is off.
    pub stays: bool,
    /// Whether ESP goes in UDP without a NAT too.
    pub force_encap: bool,
    /// After how many seconds it gives a CHILD_SA new keys.
    pub child_lifetime: Option<u32>,
    /// After how many octets it gives a CHILD_SA new keys.
    pub child_octets: Option<u32>,
    /// After how many packets bewick gives a CHILD_SA new keys.
    pub child_packets: Option<u32>,
    /// After how many seconds it gives the IKE_SA new keys.
    pub ike_lifetime: Option<u32>,
    /// Certificates that it is to refuse: a revocation list.
    pub revoked: Option<PathBuf>,
    /// Whether it takes no certificate of which no list says that it is good.
    pub strict: bool,
    /// The biggest IP packet with an IKE message.
    pub fragment_size: Option<u16>,
    /// How it takes an IKE_SA without a first CHILD_SA (RFC 6023), in the word that both programs
    /// have for it, but for `prefer`, which strongSwan 5.9.8 lacks; `allow` if there is none.
    pub childless: Option<&'static str>,
    /// Whether it asks for a cookie once a single IKE_SA is half open.
    pub cookies: bool,
    /// How strongSwan's RSA keys sign; bewick's have one way.
    pub signatures: Signatures,
    /// After how many seconds a client proves anew who it is, the new IKE_SA before the old one goes; a
    /// strongSwan is told when.
    pub reauth_lifetime: Option<u32>,
    /// Whether strongSwan asks again after half a second, not after four.
    pub asks_again_soon: bool,
    /// After how many seconds of silence it asks whether its peer is there.
    pub liveness: Option<u32>,
    /// Whether a bewick leaves it to its peer to find out that a path is silent.
    pub patient: bool,
    /// Whether it waits for a peer that is away no longer than it must: bewick for five minutes.
    pub gives_up_soon: bool,
    /// Whether a client brings the tunnel up again by itself whenever it is gone.
    pub keeps_up: bool,
    /// How many requests bewick takes at once; strongSwan takes one.
    pub window: Option<u8>,
    /// When bewick closes everything but the tunnel, in its own word.
    pub kill_switch: Option<&'static str>,
    /// Whether it wants transport mode.
    pub transport: bool,
    /// The XFRM interface by which a bewick's packets come.
    pub if_id: Option<u32>,
}

/// How strongSwan's RSA keys sign, and what signatures it takes.
#[derive(Debug, Clone, Copy, Default)]
pub enum Signatures {
    /// With PKCS#1 v1.5, and it takes any.
    #[default]
    Usual,
    /// With PSS, because the daemon's settings say so, and it takes any.
    Pss,
    /// With the first scheme, in its own words, and it takes nothing but the second.
    These(&'static str, &'static str),
}

/// How an end proves who it is.
#[derive(Debug, Clone, Default)]
pub enum Proof {
    /// With the pre-shared key.
    #[default]
    Psk,
    /// With a certificate.
    Certificate(Files),
}

/// Where an end's certificates are.
#[derive(Debug, Clone)]
pub struct Files {
    /// The authority that the other end trusts.
    pub ca: PathBuf,
    /// The one that signed the certificate, if that is not the authority.
    pub intermediate: Option<PathBuf>,
    /// The certificate itself.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// The traffic of a CHILD_SA: between the client's virtual addresses and these networks.
#[derive(Debug, Clone, Copy)]
pub struct Child {
    /// Its name in the configurations.
    pub name: &'static str,
    /// Networks behind the gateway.
    pub networks: &'static [Network],
}

/// A network behind the gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    /// In the usual notation.
    pub prefix: &'static str,
    /// A host in it that answers.
    pub host: IpAddr,
}

impl Default for Tunnel {
    fn default() -> Self {
        Self {
            client: Side::default(),
            gateway: Side::default(),
            children: vec![Child { name: "net", networks: &[Network::FIRST] }],
            over_ipv6: false,
            gateway_behind_nat: false,
            second: None,
            site: &[],
            unnamed: false,
            pools: &[],
            asks_for: None,
            dns: &[],
            crowd: false,
            trap: false,
            mutual: false,
            at_once: false,
            tcp: false,
        }
    }
}

impl Tunnel {
    /// The settings of the daemon on this host.
    pub fn side(&self, node: Node) -> &Side {
        if node.is_client() { &self.client } else { &self.gateway }
    }

    /// The settings of its peer.
    pub fn other_side(&self, node: Node) -> &Side {
        if node.is_client() { &self.gateway } else { &self.client }
    }

    /// The address that the client goes to.
    pub fn gateway_address(&self) -> IpAddr {
        if self.gateway_behind_nat { FORWARDED.into() } else { self.listens_at() }
    }

    /// The address that the end on this host goes to if it starts.
    pub fn goes_to(&self, node: Node) -> IpAddr {
        if node.is_client() { self.gateway_address() } else { FIRST_UPLINK.into() }
    }

    /// The address that the gateway has.
    pub fn listens_at(&self) -> IpAddr {
        if self.over_ipv6 { GATEWAY_6.into() } else { GATEWAY.into() }
    }

    /// All networks behind the gateway.
    pub fn networks(&self) -> impl DoubleEndedIterator<Item = Network> {
        self.children.iter().flat_map(|child| child.networks).copied()
    }

    /// Who the end on this host is.
    pub fn id(&self, node: Node) -> &'static str {
        self.side(node).id.unwrap_or(if node.is_client() { CLIENT_ID } else { GATEWAY_ID })
    }

    /// Whom the end on this host takes its peer for: a gateway takes anybody of the usual name's domain.
    pub fn expected(&self, node: Node) -> &'static str {
        let other = self.other_side(node).id;
        let usual = if node.is_client() { GATEWAY_ID } else { "*@example.com" };
        self.side(node).expects.or(other).unwrap_or(usual)
    }

    /// Where the client's virtual addresses come from, of each family that is reached.
    pub fn pools(&self) -> Vec<&'static str> {
        if self.crowd {
            return vec![POOL_OF_CROWD];
        }
        if !self.site.is_empty() {
            return Vec::new();
        }
        if !self.pools.is_empty() {
            return self.pools.to_vec();
        }
        let any = |v4| self.networks().any(|network| network.host.is_ipv4() == v4);
        let pools = [(any(true), POOL), (any(false), POOL_6)];
        pools.into_iter().filter_map(|(wanted, pool)| wanted.then_some(pool)).collect()
    }
}

impl Network {
    /// The first one.
    pub const FIRST: Network = Network {
        prefix: crate::topology::INNER_NETWORK,
        host: IpAddr::V4(crate::topology::INSIDE),
    };
    /// Another one.
    pub const SECOND: Network = Network {
        prefix: crate::topology::INNER_NETWORK_2,
        host: IpAddr::V4(crate::topology::INSIDE_2),
    };
    /// Everywhere, of which the first one is a part.
    pub const EVERYWHERE: Network = Network { prefix: "0.0.0.0/0", ..Network::FIRST };
    /// One behind the client.
    pub const SITE: Network =
        Network { prefix: crate::topology::SITE_NETWORK, host: IpAddr::V4(crate::topology::SITE) };
    /// One behind the client, with IPv6.
    pub const SITE_6: Network = Network {
        prefix: crate::topology::SITE_NETWORK_6,
        host: IpAddr::V6(crate::topology::SITE_6),
    };
    /// One with IPv6.
    pub const IPV6: Network = Network {
        prefix: crate::topology::INNER_NETWORK_6,
        host: IpAddr::V6(crate::topology::INSIDE_6),
    };
}
