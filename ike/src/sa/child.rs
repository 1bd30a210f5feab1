//! What the two ends agree on for a CHILD_SA: selectors and keys (RFC 7296 §2.9, §2.17).

use std::net::IpAddr;

use crate::{
    child::{Carriage, ChildId, ChildSa, EspSpi, EspSuite, Limits, Mode},
    config::{ConnectionConfig, EspProposal, Role, Selectors},
    crypto::{CryptoError, derive_child},
    path::Path,
    secret::Secret,
    selector::TrafficSelector,
    time::Time,
};

use super::envelope::Keys;

/// More selectors on one side than this are not installed.
const MOST_SELECTORS: usize = 32;

/// A CHILD_SA as its IKE_SA remembers it: without keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Child {
    /// our own name for it
    pub id: ChildId,
    /// kept when it is rekeyed
    pub reqid: u32,
    /// the SPI in packets to us
    pub spi_in: EspSpi,
    /// the SPI in packets from us
    pub spi_out: EspSpi,
    /// what ESP protects
    pub mode: Mode,
    /// its algorithms
    pub suite: EspSuite,
    /// extended sequence numbers (RFC 4303 §2.2.1)
    pub esn: bool,
    /// what is on our side
    pub ts_local: Vec<TrafficSelector>,
    /// what is on the peer's side
    pub ts_remote: Vec<TrafficSelector>,
    /// its place among the CHILD_SAs of the connection's configuration
    pub config: usize,
    /// its outer addresses, as the data plane has them
    pub path: Path,
    /// whether ESP travels in UDP
    pub encap: bool,
    /// addresses that the peer assigned to us
    pub virtual_ips: Vec<IpAddr>,
    /// when it is to be rekeyed
    pub(crate) rekey_at: Option<Time>,
    /// it has a successor of ours and is being deleted
    pub(crate) replaced: bool,
    /// the peer has said once that it does not have it
    pub(crate) doubted: bool,
    /// it has a successor of the peer's, who is to delete it
    pub(crate) superseded: bool,
}

impl Child {
    /// Whether it has no successor yet.
    pub(crate) fn is_current(&self) -> bool {
        !self.replaced && !self.superseded
    }

    pub(crate) fn of(sa: &ChildSa, config: usize) -> Self {
        Child {
            id: sa.id,
            reqid: sa.reqid,
            spi_in: sa.spi_in,
            spi_out: sa.spi_out,
            mode: sa.mode,
            suite: sa.suite,
            esn: sa.esn,
            ts_local: sa.ts_local.clone(),
            ts_remote: sa.ts_remote.clone(),
            config,
            path: sa.path,
            encap: sa.encap,
            virtual_ips: sa.virtual_ips.clone(),
            rekey_at: None,
            replaced: false,
            doubted: false,
            superseded: false,
        }
    }
}

/// The parts of a CHILD_SA that the exchange has settled.
pub(crate) struct Agreed {
    pub(crate) mode: Mode,
    pub(crate) proposal: EspProposal,
    pub(crate) spi_in: u32,
    pub(crate) spi_out: u32,
    pub(crate) ts_local: Vec<TrafficSelector>,
    pub(crate) ts_remote: Vec<TrafficSelector>,
    pub(crate) virtual_ips: Vec<IpAddr>,
    pub(crate) limits: Limits,
    pub(crate) carriage: Carriage,
}

/// Cuts the keys of a CHILD_SA out of KEYMAT; `secret` is that of the key exchange, if there was one of
/// its own (RFC 7296 §2.17).
pub(crate) fn build(
    agreed: Agreed,
    (id, role): (u64, Role),
    keys: &Keys,
    secret: Option<&Secret>,
    nonces: (&[u8], &[u8]),
    (path, encap): (Path, bool),
) -> Result<ChildSa, CryptoError> {
    let suite = agreed.proposal.suite;
    let (forward, back) =
        derive_child(keys.suite.prf, &keys.sk.d, secret, nonces.0, nonces.1, suite)?;
    let (keys_out, keys_in) = match role {
        Role::Initiator => (forward, back),
        Role::Responder => (back, forward),
    };
    Ok(ChildSa {
        id: ChildId(id),
        // Unique per CHILD_SA for the first 2^31 of them, and never 0.
        reqid: (id & 0x7fff_ffff).max(1) as u32,
        spi_in: EspSpi(agreed.spi_in),
        spi_out: EspSpi(agreed.spi_out),
        mode: agreed.mode,
        suite,
        esn: agreed.proposal.esn,
        keys_in,
        keys_out,
        ts_local: agreed.ts_local,
        ts_remote: agreed.ts_remote,
        path,
        encap,
        virtual_ips: agreed.virtual_ips,
        waits: false,
        limits: agreed.limits,
        carriage: agreed.carriage,
    })
}

/// The initiator's offer for one side: `Dynamic` is everything of the families that an address is
/// asked for in, which the responder narrows to the address (RFC 7296 §2.19), or else `outer`.
pub(crate) fn offer(
    selectors: &Selectors,
    config: &ConnectionConfig,
    outer: IpAddr,
) -> Vec<TrafficSelector> {
    if let Selectors::List(list) = selectors {
        return list.clone();
    }
    let mut all = Vec::new();
    if config.request_ipv4 {
        all.push(TrafficSelector::from_net(ipnet::Ipv4Net::default().into()));
    }
    if config.request_ipv6 {
        all.push(TrafficSelector::from_net(ipnet::Ipv6Net::default().into()));
    }
    if all.is_empty() {
        all.push(TrafficSelector::from_addr(outer));
    }
    all
}

/// Our own side as responder: `Dynamic` is the addresses that were assigned, or else `outer`.
pub(crate) fn resolve(
    selectors: &Selectors,
    assigned: &[IpAddr],
    outer: IpAddr,
) -> Vec<TrafficSelector> {
    match selectors {
        Selectors::List(list) => list.clone(),
        Selectors::Dynamic if assigned.is_empty() => vec![TrafficSelector::from_addr(outer)],
        Selectors::Dynamic => assigned.iter().copied().map(TrafficSelector::from_addr).collect(),
    }
}

/// The part of `offered` that `ours` allows, in the order of the offer, so that the initiator's first
/// choice stays in and stays first (RFC 7296 §2.9).
pub(crate) fn narrow(
    ours: &[TrafficSelector],
    offered: &[TrafficSelector],
) -> Vec<TrafficSelector> {
    let mut narrowed: Vec<TrafficSelector> = Vec::new();
    for part in offered.iter().flat_map(|o| ours.iter().filter_map(|ts| o.intersect(ts))) {
        if narrowed.iter().any(|have| part.is_subset_of(have)) {
            continue;
        }
        // In the place of the first one that it makes needless.
        let at = narrowed.iter().position(|have| have.is_subset_of(&part));
        narrowed.retain(|have| !have.is_subset_of(&part));
        if narrowed.len() < MOST_SELECTORS {
            narrowed.insert(at.unwrap_or(narrowed.len()), part);
        }
    }
    narrowed
}

/// What of both sides can meet on the other: no packet has two families or two protocols. Either is
/// empty only if both are.
pub(crate) fn matched(
    local: &[TrafficSelector],
    remote: &[TrafficSelector],
) -> (Vec<TrafficSelector>, Vec<TrafficSelector>) {
    let meeting = |one: &[TrafficSelector], other: &[TrafficSelector]| {
        one.iter().filter(|ts| other.iter().any(|o| ts.meets(o))).copied().collect()
    };
    (meeting(local, remote), meeting(remote, local))
}

/// Whether a response stays inside the offer (RFC 7296 §2.9).
pub(crate) fn is_within(answer: &[TrafficSelector], offered: &[TrafficSelector]) -> bool {
    !answer.is_empty()
        && answer.len() <= MOST_SELECTORS
        && answer.iter().all(|ts| offered.iter().any(|o| ts.is_subset_of(o)))
}
