//! What the operator decides about a connection, already checked.

use std::{net::IpAddr, time::Duration};

use ipnet::IpNet;

use crate::{
    auth::{LocalAuth, RemoteAuth},
    child::{Carriage, EspSuite, Limits, Mode},
    crypto::{KeyExchangeMethod, suite::IkeSuite},
    selector::TrafficSelector,
    wire::identity::{Identity, IdentityPattern},
};

/// Names a connection of the configuration: its place in the list.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ConnectionId(pub usize);

/// Who starts: RFC 7296 §1.2. For MOBIKE it is the role in the first IKE_SA of a chain of rekeyed
/// ones (RFC 4555 §1.3).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Role {
    /// sends IKE_SA_INIT
    Initiator,
    /// answers it
    Responder,
}

/// When a request is sent again, and when the peer is given up (RFC 7296 §2.1, §2.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retransmission {
    /// before the first retransmission
    pub first: Duration,
    /// each wait is this many percent of the one before
    pub factor_percent: u32,
    /// no wait is longer
    pub longest: Duration,
    /// an IKE_SA_INIT or IKE_AUTH that is not answered in this time has failed
    pub give_up_handshake: Duration,
    /// any other request; RFC 4555 §3.11 asks for minutes, so that a peer may be away for a while
    pub give_up: Duration,
}

impl Default for Retransmission {
    fn default() -> Self {
        Retransmission {
            first: Duration::from_millis(500),
            factor_percent: 180,
            longest: Duration::from_secs(30),
            give_up_handshake: Duration::from_secs(30),
            give_up: Duration::from_secs(330),
        }
    }
}

/// What one side of a CHILD_SA's traffic is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selectors {
    /// the addresses assigned by configuration payload (RFC 7296 §2.19), or else the outer address
    Dynamic,
    /// these
    List(Vec<TrafficSelector>),
}

/// What a new IKE_SA means for those that the same peer, by its authenticated identity, has already.
/// Where the peer says INITIAL_CONTACT they go in any case (RFC 7296 §2.4).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Uniqueness {
    /// it takes their place
    #[default]
    Replace,
    /// it is refused while one of them is alive
    Keep,
    /// nothing: up to 16 stand side by side, then the oldest goes
    Never,
}

/// Whether IKE_AUTH may be without a CHILD_SA (RFC 6023): then all of them are made by CREATE_CHILD_SA,
/// each with a key exchange of its own if its proposals have one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Childless {
    /// no
    Never,
    /// an initiator does not ask for it, a responder takes it
    #[default]
    Allow,
    /// an initiator does it where the responder can; a responder takes both
    Prefer,
    /// it is always without: a peer that can't is refused
    Force,
}

/// How the ESP of a CHILD_SA may be protected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EspProposal {
    /// algorithms
    pub suite: EspSuite,
    /// extended sequence numbers
    pub esn: bool,
    /// a key exchange of its own whenever CREATE_CHILD_SA makes it, for perfect forward secrecy
    /// (RFC 7296 §1.3.1); IKE_AUTH has none
    pub key_exchange: Option<KeyExchangeMethod>,
}

/// One CHILD_SA beside a connection's first, made by CREATE_CHILD_SA (RFC 7296 §1.3.1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChildConfig {
    /// the operator's name for it
    pub name: String,
    /// what ESP protects
    pub mode: Mode,
    /// acceptable suites, best first
    pub esp_proposals: Vec<EspProposal>,
    /// what is on our side
    pub ts_local: Selectors,
    /// what is on the peer's side
    pub ts_remote: Selectors,
}

/// What the configuration says of one CHILD_SA.
#[derive(Clone, Copy, Debug)]
pub struct ChildView<'a> {
    /// what ESP protects
    pub mode: Mode,
    /// acceptable suites, best first
    pub esp_proposals: &'a [EspProposal],
    /// what is on our side
    pub ts_local: &'a Selectors,
    /// what is on the peer's side
    pub ts_remote: &'a Selectors,
}

/// No IP packet with a fragment of an IKE message is smaller, whatever a peer or a path suggests:
/// fragments of a few octets each would be an attack on someone (RFC 7383 §2.2 has about 100 octets
/// as the least that is possible).
pub const MIN_FRAGMENT_SIZE: u16 = 256;

/// The usual size of an IP packet with a fragment of an IKE message: what every IPv6 path carries and
/// nearly every IPv4 path does (RFC 7383 §2.5.1). Smaller ones are tried when it finds no answer.
pub const DEFAULT_FRAGMENT_SIZE: u16 = 1280;

/// A connection: with whom, proven how, to carry what.
#[derive(Clone, Debug)]
pub struct ConnectionConfig {
    /// the operator's name for it
    pub name: String,
    /// whether we start it or answer
    pub role: Role,
    /// who we say that we are
    pub local_id: Identity,
    /// who the peer must prove to be; a pattern with a leading `*` for a responder
    pub remote_id: IdentityPattern,
    /// how we prove who we are (RFC 7296 §2.15)
    pub local_auth: LocalAuth,
    /// how the peer must prove who it is; it need not be in the same way
    pub remote_auth: RemoteAuth,
    /// acceptable suites for the IKE_SA, best first
    pub ike_proposals: Vec<IkeSuite>,
    /// what the ESP of the CHILD_SA protects
    pub mode: Mode,
    /// acceptable suites for the CHILD_SA, best first
    pub esp_proposals: Vec<EspProposal>,
    /// what is on our side
    pub ts_local: Selectors,
    /// what is on the peer's side
    pub ts_remote: Selectors,
    /// initiator: ask for a virtual IPv4 address
    pub request_ipv4: bool,
    /// initiator: ask for a virtual IPv6 address
    pub request_ipv6: bool,
    /// whether IKE_AUTH is without a CHILD_SA
    pub childless: Childless,
    /// CHILD_SAs beside the first, whose suites and selectors stand above
    pub more_children: Vec<ChildConfig>,
    /// responder: where virtual addresses are taken from
    pub pools: Vec<IpNet>,
    /// responder: DNS servers to tell
    pub dns: Vec<IpAddr>,
    /// responder: the domains that these servers are for (RFC 8598); none for all
    pub dns_domains: Vec<String>,
    /// responder: how many IKE_SAs a peer may have
    pub uniqueness: Uniqueness,
    /// offer MOBIKE (RFC 4555 §3.2)
    pub mobike: bool,
    /// ESP always travels in UDP, whether there is a NAT or not
    pub force_encap: bool,
    /// NAT detection and ESP in UDP where there is a NAT (RFC 7296 §2.23); without it no NAT may be on any
    /// path (RFC 4555 §3.9)
    pub nat_traversal: bool,
    /// silence after which the peer is asked whether it is there (RFC 7296 §2.4); zero for never
    pub liveness: Duration,
    /// a CHILD_SA is rekeyed when it is about this old (RFC 7296 §2.8); zero for never
    pub child_lifetime: Duration,
    /// a CHILD_SA is rekeyed when about so much has gone through it in one direction
    pub child_limits: Limits,
    /// how the data plane is to carry the CHILD_SAs
    pub carriage: Carriage,
    /// the IKE_SA is rekeyed when it is about this old (RFC 7296 §2.8); zero for never
    pub ike_lifetime: Duration,
    /// initiator: a whole new IKE_SA takes the place of one this old, so that both ends prove again who they
    /// are (RFC 7296 §2.8.3); zero for never
    pub reauth_lifetime: Duration,
    /// how many requests of the peer's we take at once, and at most send (RFC 7296 §2.3)
    pub window: u32,
    /// the biggest IP packet with an IKE message, in octets: a longer message goes in fragments if the
    /// peer can do that (RFC 7383); `None` for never
    pub fragment_size: Option<u16>,
    /// retransmission of requests
    pub retransmission: Retransmission,
}

impl ConnectionConfig {
    /// The CHILD_SAs that the configuration asks for or allows, the first one first.
    pub fn children(&self) -> impl Iterator<Item = ChildView<'_>> {
        let first = ChildView {
            mode: self.mode,
            esp_proposals: &self.esp_proposals,
            ts_local: &self.ts_local,
            ts_remote: &self.ts_remote,
        };
        let more = self.more_children.iter().map(|child| ChildView {
            mode: child.mode,
            esp_proposals: &child.esp_proposals,
            ts_local: &child.ts_local,
            ts_remote: &child.ts_remote,
        });
        std::iter::once(first).chain(more)
    }

    /// The CHILD_SA at this place among [`Self::children`].
    pub fn child(&self, at: usize) -> Option<ChildView<'_>> {
        self.children().nth(at)
    }

    /// Whether a signature proves either side's identity, so that SIGNATURE_HASH_ALGORITHMS is needed
    /// (RFC 7427 §4).
    pub fn uses_signatures(&self) -> bool {
        matches!(self.local_auth, LocalAuth::Certificate(_))
            || matches!(self.remote_auth, RemoteAuth::Certificate(_))
    }
}
