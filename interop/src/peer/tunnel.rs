//! What both ends are told about a tunnel, before each daemon's own words for it.

use std::net::IpAddr;
use std::path::PathBuf;

use crate::topology::{GATEWAY, GATEWAY_6, Node, POOL, POOL_6};

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
    /// Certificates that it is to refuse: a revocation list.
    pub revoked: Option<PathBuf>,
    /// The biggest IP packet with an IKE message.
    pub fragment_size: Option<u16>,
    /// Whether it makes the IKE_SA alone and every CHILD_SA after it, or nothing (RFC 6023).
    pub childless: bool,
    /// Whether it asks for a cookie once a single IKE_SA is half open.
    pub cookies: bool,
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
        }
    }
}

impl Tunnel {
    /// The settings of the daemon on this host.
    pub fn side(&self, node: Node) -> &Side {
        if node == Node::Client { &self.client } else { &self.gateway }
    }

    /// The settings of its peer.
    pub fn other_side(&self, node: Node) -> &Side {
        if node == Node::Client { &self.gateway } else { &self.client }
    }

    /// The word in which the configuration of the daemon on this host says how it takes an IKE_SA
    /// without a first CHILD_SA; both programs have the same ones.
    pub fn childless(&self, node: Node) -> &'static str {
        match (self.side(node).childless, self.other_side(node).childless) {
            (true, _) => "force",
            // It starts, so it must want the same; strongSwan 5.9.8 has no `prefer`.
            (false, true) if node == Node::Client => "force",
            (false, _) => "allow",
        }
    }

    /// The address that the client goes to.
    pub fn gateway_address(&self) -> IpAddr {
        if self.over_ipv6 { GATEWAY_6.into() } else { GATEWAY.into() }
    }

    /// All networks behind the gateway.
    pub fn networks(&self) -> impl Iterator<Item = Network> {
        self.children.iter().flat_map(|child| child.networks).copied()
    }

    /// Where the client's virtual addresses come from, of each family that is reached.
    pub fn pools(&self) -> Vec<&'static str> {
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
    /// One with IPv6.
    pub const IPV6: Network = Network {
        prefix: crate::topology::INNER_NETWORK_6,
        host: IpAddr::V6(crate::topology::INSIDE_6),
    };
}
