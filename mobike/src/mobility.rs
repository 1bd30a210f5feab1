//! What MOBIKE keeps for each IKE_SA, and where it joins the exchanges of `bewick-ike`.

use std::{
    collections::{BTreeMap, VecDeque},
    net::IpAddr,
    sync::Arc,
};

use bewick_ike::{
    ActionId, ConnectionId, Extension, Path, Random, Role, SaId, SaView, Time,
    extension::Request,
    nat::{self, Nat},
    wire::{NotifyType, Payload},
};

use crate::{
    address::LocalAddress,
    event::{Cause, Hint},
    host::{Back, Counts},
    kin::{self, Heard},
    notify,
    path::Pairs,
    policy::{ConnectionPolicy, TcpUse},
    race::{Race, Tried},
    responder,
};

/// An exchange of ours that MOBIKE waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Awaiting {
    /// initiator: UPDATE_SA_ADDRESSES, sent first on this generation of the addresses
    Update { generation: u64, cookie: Vec<u8> },
    /// responder: COOKIE2 to the peer's new address
    Routability { generation: u64, cookie: Vec<u8>, path: Path },
    /// either: our list of addresses
    List,
    /// initiator: how our NAT maps us, for later comparison (§3.8)
    Mapping,
    /// either: whether the peer is there (§3.10)
    Probe,
    /// either: whether the peer receives on another pair than the one in use
    Standby { cookie: Vec<u8>, path: Path },
}

/// A move that is under way, for its record.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Underway {
    pub(crate) from: Path,
    pub(crate) cause: Cause,
    pub(crate) since: Time,
    /// the peer has confirmed it
    pub(crate) confirmed: bool,
}

/// One IKE_SA as MOBIKE sees it.
#[derive(Debug)]
pub(crate) struct Mobility {
    pub(crate) connection: ConnectionId,
    pub(crate) role: Role,
    /// both sides sent MOBIKE_SUPPORTED (RFC 4555 §3.2)
    pub(crate) supported: bool,
    pub(crate) established: bool,
    /// the peer's addresses: the one that its list came from, then the additional ones
    pub(crate) peer_addresses: Vec<IpAddr>,
    /// what we told of ours last
    pub(crate) announced: Vec<IpAddr>,
    /// counts the changes of the address pair: an answer to an older one says nothing (§3.5)
    pub(crate) generation: u64,
    /// RFC 4555 §3.5's pending_update
    pub(crate) pending_update: bool,
    /// responder: the peer's new address is still to be checked
    pub(crate) pending_check: bool,
    pub(crate) awaiting: Option<(u64, Awaiting)>,
    pub(crate) underway: Option<Underway>,
    /// moves of the data plane so far
    pub(crate) moves: u32,
    /// data-plane moves that are not answered yet
    pub(crate) actions: Vec<(ActionId, Path)>,
    /// responder: the path that the initiator chose last
    pub(crate) agreed: Path,
    /// where the CHILD_SAs are
    pub(crate) children_at: Path,
    pub(crate) encap: bool,
    /// Message IDs of the newest UPDATE and the newest list (RFC 4555 §3.5, §3.6)
    /// counted from the last rekey of the IKE_SA on, which is the first number
    pub(crate) newest_update: Option<(u32, u32)>,
    pub(crate) newest_list: Option<(u32, u32)>,
    /// NAT_DETECTION_DESTINATION_IP of the last answer, to notice another mapping (§3.8)
    pub(crate) seen_as: Option<Vec<u8>>,
    /// initiator behind a NAT: `seen_as` is still to be asked for
    pub(crate) pending_mapping: bool,
    /// that question was asked while the path was in doubt: the mapping may have changed before the answer
    pub(crate) mapping_doubted: bool,
    /// pairs that the peer did not accept since our addresses changed (UNACCEPTABLE_ADDRESSES)
    pub(crate) refused: Vec<Path>,
    /// checks of the present address, or updates, that were answered without proof
    pub(crate) failed_checks: u8,
    /// responder: where the peer said that it is, when it did not answer there
    pub(crate) claimed: Option<Path>,
    /// there is no address of ours that it could use
    pub(crate) stranded: bool,
    /// what is known of its pairs
    pub(crate) pairs: Pairs,
    /// initiator: the pair in use is suspect or gone, and others are being asked
    pub(crate) race: Option<Race>,
    /// why it was suspect last
    pub(crate) hint: Option<Hint>,
    /// the pairs that the last race tried
    pub(crate) tried: Vec<Tried>,
    /// the outstanding request has gone out on several pairs: which of them the peer took it for is not
    /// known (§3.6)
    pub(crate) scattered: bool,
    /// when a hint of strangers was heeded last
    pub(crate) hinted: Option<Time>,
    /// responder: the peer is to be asked whether it is there
    pub(crate) pending_probe: bool,
    /// responder: the peer has spoken from there, and may show that it receives there
    pub(crate) pending_standby: Option<Path>,
    /// initiator: what the data plane has counted
    pub(crate) counts: Counts,
    /// NAT traversal is on; without it, every address is told outright (§3.9)
    pub(crate) nat_t: bool,
    /// requests that the peer answered UNEXPECTED_NAT_DETECTED in a row
    pub(crate) nat_detected: u8,
    /// responder: updates of the last seconds, for a peer that sends them without end
    pub(crate) updates: (Time, u32),
    /// responder: the peer's ESP comes from there, which is being checked
    pub(crate) esp_seen: Option<Path>,
    /// responder: traffic has followed the peer before it has shown that it receives there; where it did
    pub(crate) capped: Option<Path>,
    /// initiator: a better pair than the one in use
    pub(crate) back: Back,
    /// the peer is a Bewick too
    pub(crate) kin: bool,
    /// what its addresses cost, as it says
    pub(crate) peer_costs: Vec<(IpAddr, u32)>,
    /// from where it was heard lately
    pub(crate) heard: Heard,
    /// responder: how often the newest request came again on one path, and when that was counted
    pub(crate) repeats: (Option<Path>, u32),
    /// initiator: how it uses TCP, and the ports of the connection that it has or would open: ours, which
    /// is 0 where there is none, and the gateway's (RFC 9329)
    pub(crate) tcp: (TcpUse, u16, u16),
    /// responder: when the peer was asked last to look for another pair
    pub(crate) pleaded: Option<Time>,
}

impl Mobility {
    pub(crate) fn new(view: &SaView) -> Self {
        Mobility {
            connection: view.connection,
            role: view.role,
            supported: false,
            established: false,
            peer_addresses: vec![view.path.remote.ip()],
            announced: Vec::new(),
            generation: 0,
            pending_update: false,
            pending_check: false,
            awaiting: None,
            underway: None,
            moves: 0,
            actions: Vec::new(),
            agreed: view.path,
            children_at: view.path,
            encap: false,
            newest_update: None,
            newest_list: None,
            seen_as: None,
            pending_mapping: false,
            mapping_doubted: false,
            refused: Vec::new(),
            failed_checks: 0,
            claimed: None,
            stranded: false,
            pairs: Pairs::default(),
            race: None,
            hint: None,
            tried: Vec::new(),
            scattered: false,
            hinted: None,
            pending_probe: false,
            pending_standby: None,
            counts: Counts::default(),
            nat_t: true,
            nat_detected: 0,
            updates: (Time::ZERO, 0),
            esp_seen: None,
            capped: None,
            back: Back::default(),
            kin: false,
            peer_costs: Vec::new(),
            heard: Heard::default(),
            repeats: (None, 0),
            tcp: (TcpUse::Off, 0, 0),
            pleaded: None,
        }
    }
}

/// What a request asks the host to do once its response is on its way.
#[derive(Debug)]
pub(crate) enum Intent {
    /// the initiator is at this path now (UPDATE_SA_ADDRESSES)
    Updated { path: Path, nat: Option<Nat> },
    /// the peer's list has changed
    PeerList,
    /// without MOBIKE: a genuine request came from this path
    Seen { path: Path },
    /// initiator: the peer's answers do not arrive, it says
    PleaseProbe,
    /// responder with MOBIKE: a genuine request that is no update came from another path
    Heard { path: Path },
}

/// The extension of all IKE_SAs of a host.
#[derive(Debug, Default)]
pub(crate) struct Movers {
    pub(crate) sas: BTreeMap<SaId, Mobility>,
    pub(crate) locals: Vec<LocalAddress>,
    /// how each connection moves, by number
    pub(crate) policies: Vec<Arc<ConnectionPolicy>>,
    /// connections with MOBIKE, by number
    pub(crate) enabled: Vec<bool>,
    /// connections with NAT traversal, by number
    pub(crate) nat_t: Vec<bool>,
    /// connections whose ESP always goes in UDP, by number
    pub(crate) forced: Vec<bool>,
    pub(crate) intents: VecDeque<(SaId, Intent)>,
}

impl Movers {
    fn is_enabled(&self, view: &SaView) -> bool {
        self.enabled.get(view.connection.0).copied().unwrap_or(false)
    }

    /// Whether NAT detection is to find a NAT whether there is one or not.
    pub(crate) fn forces_encap(&self, connection: ConnectionId) -> bool {
        self.forced.get(connection.0).copied().unwrap_or(false)
    }

    /// How a connection moves.
    pub(crate) fn policy(&self, connection: ConnectionId) -> Arc<ConnectionPolicy> {
        self.policies.get(connection.0).cloned().unwrap_or_default()
    }

    /// How an IKE_SA moves.
    pub(crate) fn policy_of(&self, id: SaId) -> Arc<ConnectionPolicy> {
        self.sas.get(&id).map(|m| self.policy(m.connection)).unwrap_or_default()
    }

    fn traverses_nats(&self, connection: ConnectionId) -> bool {
        self.nat_t.get(connection.0).copied().unwrap_or(true)
    }

    /// Those of our addresses that the peer at the other end of `path` is told of.
    pub(crate) fn own_addresses(&self, connection: ConnectionId, path: Path) -> Vec<IpAddr> {
        let policy = self.policy(connection);
        let told = |address: &IpAddr| policy.announces(*address, path);
        let mut addresses: Vec<IpAddr> =
            self.locals.iter().map(|l| l.address).filter(told).collect();
        addresses.sort_unstable();
        addresses.dedup();
        addresses
    }

    /// MOBIKE_SUPPORTED and our list, which go into IKE_AUTH together (RFC 4555 §3.2, §3.4); with the
    /// request NO_NATS_ALLOWED, where none is (§3.9).
    fn offer(&mut self, view: &SaView) -> Vec<Payload> {
        let addresses = self.own_addresses(view.connection, view.path);
        let nat_t = self.traverses_nats(view.connection);
        let mut payloads = vec![notify::empty(NotifyType::MOBIKE_SUPPORTED)];
        payloads.extend(notify::address_list(&addresses, view.path.local.ip()));
        if !nat_t && view.role == Role::Initiator {
            payloads.push(notify::no_nats(view.path));
        }
        let kin = view.role == Role::Initiator || self.sas.get(&view.id).is_some_and(|m| m.kin);
        if kin {
            payloads.push(kin::vendor_id());
        }
        if let Some(mobility) = self.sas.get_mut(&view.id) {
            mobility.announced = addresses;
            mobility.nat_t = nat_t;
        }
        payloads
    }

    /// What our addresses cost, for a peer that can make use of it.
    pub(crate) fn costs(&self, addresses: &[IpAddr]) -> Vec<Payload> {
        let cost = |address: &IpAddr| {
            let local = self.locals.iter().find(|local| local.address == *address)?;
            Some((*address, local.cost))
        };
        kin::costs(&addresses.iter().filter_map(cost).collect::<Vec<_>>())
    }

    /// The peer's list, if it is heeded.
    fn peer_list(&self, view: &SaView, payloads: &[Payload]) -> Option<Vec<IpAddr>> {
        let heeded = self.policy(view.connection).accept_peer_addresses;
        notify::read_address_list(payloads, view.path.remote.ip()).filter(|_| heeded)
    }
}

impl Extension for Movers {
    fn auth_request(&mut self, view: &SaView) -> Vec<Payload> {
        self.sas.insert(view.id, Mobility::new(view));
        if self.is_enabled(view) { self.offer(view) } else { Vec::new() }
    }

    fn auth_request_received(&mut self, view: &SaView, payloads: &[Payload]) -> Vec<Payload> {
        let mut mobility = Mobility::new(view);
        // RFC 4555 §3.2: no MOBIKE_SUPPORTED from the peer, no MOBIKE at all.
        mobility.supported =
            self.is_enabled(view) && notify::has(payloads, NotifyType::MOBIKE_SUPPORTED);
        let supported = mobility.supported;
        mobility.kin = supported && kin::is_kin(payloads);
        if let Some(list) = self.peer_list(view, payloads).filter(|_| supported) {
            mobility.peer_addresses = list;
        }
        let kin = mobility.kin;
        self.sas.insert(view.id, mobility);
        if !supported {
            return Vec::new();
        }
        let mut payloads = self.offer(view);
        if kin {
            payloads.extend(self.costs(&self.own_addresses(view.connection, view.path)));
        }
        payloads
    }

    fn auth_response_received(&mut self, view: &SaView, payloads: &[Payload]) {
        let enabled = self.is_enabled(view);
        let list = self.peer_list(view, payloads);
        let Some(mobility) = self.sas.get_mut(&view.id) else { return };
        mobility.supported = enabled && notify::has(payloads, NotifyType::MOBIKE_SUPPORTED);
        mobility.kin = mobility.supported && kin::is_kin(payloads);
        if mobility.kin {
            mobility.peer_costs = kin::read_costs(payloads);
        }
        if let Some(list) = list.filter(|_| mobility.supported) {
            mobility.peer_addresses = list;
        }
    }

    fn auth_refusal(
        &self,
        connection: ConnectionId,
        (path, nat): (Path, Nat),
        payloads: &[Payload],
    ) -> Option<NotifyType> {
        // RFC 7296 §2.21.2: not where the peer may be. UNACCEPTABLE_ADDRESSES is for updates alone (RFC 4555
        // §4.1.1).
        if !self.policy(connection).accept.accepts(path, Some(nat)) {
            return Some(NotifyType::AUTHENTICATION_FAILED);
        }
        // RFC 4555 §3.9: the addresses and ports that the peer sent it from and to.
        notify::denies_nats(payloads, path).then_some(NotifyType::UNEXPECTED_NAT_DETECTED)
    }

    fn informational(
        &mut self,
        view: &SaView,
        request: &Request<'_>,
        random: &mut Random,
    ) -> Vec<Payload> {
        let mut response = Vec::new();
        let supported = self.sas.get(&view.id).is_some_and(|m| m.supported);
        if !supported && request.path != view.path {
            self.intents.push_back((view.id, Intent::Seen { path: request.path }));
        }
        let policy = self.policy(view.connection);
        if let Some(mobility) = self.sas.get_mut(&view.id).filter(|m| m.supported) {
            match responder::on_request(mobility, view, request, &policy) {
                Ok(intents) => {
                    // RFC 6290 §5.2: a token for the new address, in the exchange that brings it here.
                    if intents.iter().any(|intent| matches!(intent, Intent::Updated { .. })) {
                        response.extend(request.token.clone());
                    }
                    self.intents.extend(intents.into_iter().map(|intent| (view.id, intent)));
                }
                Err(refusal) => response.push(notify::empty(refusal)),
            }
            if mobility.kin {
                mobility.heard.note(request.now, request.path.remote);
                mobility.repeats = (None, 0);
                if view.role == Role::Responder {
                    response.push(kin::observed(request.path.remote));
                    response.extend(mobility.heard.tell(request.now));
                }
            }
            // RFC 4555 §3.7: the cookie goes back as it is, also with a refusal (§3.5).
            if let Some(cookie) = notify::read_cookie2(request.payloads) {
                response.push(notify::cookie2(cookie));
            }
        }
        // RFC 4555 §3.8: asked with NAT detection, answered with it, for the pair of this exchange.
        if notify::has(request.payloads, NotifyType::NAT_DETECTION_SOURCE_IP) {
            let spis = (view.spi_i, view.spi_r);
            let force = self.forces_encap(view.connection);
            response.extend(nat::payloads(spis, request.path, force, random));
        }
        response
    }

    fn liveness(&mut self, view: &SaView, random: &mut Random) -> Vec<Payload> {
        // RFC 4555 §3.8: the initiator finds out so whether its NAT mapping has changed.
        let wanted =
            view.role == Role::Initiator && self.sas.get(&view.id).is_some_and(|m| m.supported);
        if !wanted {
            return Vec::new();
        }
        if !self.traverses_nats(view.connection) {
            return Vec::new();
        }
        let force = self.forces_encap(view.connection);
        nat::payloads((view.spi_i, view.spi_r), view.path, force, random).to_vec()
    }
}
