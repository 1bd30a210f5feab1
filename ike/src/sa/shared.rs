//! What all IKE_SAs of an endpoint share.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::{
    auth::{UnixSeconds, WallClock},
    config::{Childless, ConnectionConfig, ConnectionId, Role},
    crash::CrashSecrets,
    endpoint::timers::{Timer, Timers},
    event::{Action, ActionId, Event, IkeKeys, Output, SaId, Transmit},
    path::Path,
    pool::Pool,
    random::Random,
    time::Time,
};

use super::{envelope::Keys, peers::Peers};

/// What all IKE_SAs of an endpoint share.
pub(crate) struct Shared {
    pub(crate) random: Random,
    pub(crate) connections: Vec<ConnectionConfig>,
    /// the keys of IKE_SAs are told of
    pub(crate) reveals_keys: bool,
    /// what tokens are made with, if any are
    pub(crate) crash: CrashSecrets,
    pub(crate) pools: BTreeMap<ConnectionId, Vec<Pool>>,
    pub(crate) timers: Timers<Timer>,
    pub(crate) outputs: VecDeque<Output>,
    pub(crate) pending_actions: BTreeMap<ActionId, SaId>,
    pub(crate) esp_spis: BTreeSet<u32>,
    /// whose our IKE SPIs are; after a rekey an IKE_SA has two for a while
    pub(crate) by_spi: BTreeMap<u64, SaId>,
    /// who is at the other end of the IKE_SAs
    pub(crate) peers: Peers,
    /// IKE_SAs that make room for a new one, to be ended after the input
    pub(crate) replaced: Vec<SaId>,
    /// the data plane can carry ESP in UDP alone
    pub(crate) force_encap: bool,
    /// the time of day; until it is told, every certificate is of the future
    pub(crate) wall_clock: WallClock,
    next_id: u64,
}

impl Shared {
    pub(crate) fn new(
        random: Random,
        connections: Vec<ConnectionConfig>,
        force_encap: bool,
    ) -> Self {
        let pools = connections
            .iter()
            .enumerate()
            .map(|(i, c)| (ConnectionId(i), c.pools.iter().copied().map(Pool::new).collect()))
            .collect();
        Shared {
            random,
            connections,
            reveals_keys: false,
            crash: CrashSecrets::default(),
            pools,
            timers: Timers::default(),
            outputs: VecDeque::new(),
            pending_actions: BTreeMap::new(),
            esp_spis: BTreeSet::new(),
            by_spi: BTreeMap::new(),
            peers: Peers::default(),
            replaced: Vec::new(),
            force_encap,
            wall_clock: WallClock::new(Time::ZERO, UnixSeconds(0)),
            next_id: 1,
        }
    }

    /// A number that names one thing for as long as the process lives.
    pub(crate) fn fresh_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    pub(crate) fn connection(&self, id: ConnectionId) -> Option<&ConnectionConfig> {
        self.connections.get(id.0)
    }

    /// Whether we tell initiators that there is a NAT, so that ESP goes in UDP. When IKE_SA_INIT is
    /// answered it is not known yet which connection it is for: one that wants it is enough.
    pub(crate) fn responder_forces_encap(&self) -> bool {
        let wants = |c: &ConnectionConfig| c.role == Role::Responder && c.force_encap;
        self.force_encap || self.connections.iter().any(wants)
    }

    /// Whether we answer NAT detection: one connection that wants it is enough, as above.
    pub(crate) fn responder_traverses_nats(&self) -> bool {
        let wants = |c: &ConnectionConfig| c.role == Role::Responder && c.nat_traversal;
        self.connections.iter().any(wants)
    }

    /// Whether we tell initiators that we can do fragments: one connection that wants them is enough,
    /// as above.
    pub(crate) fn responder_fragments(&self) -> bool {
        let wants = |c: &ConnectionConfig| c.role == Role::Responder && c.fragment_size.is_some();
        self.connections.iter().any(wants)
    }

    /// Whether we tell initiators that IKE_AUTH may be without a CHILD_SA (RFC 6023 §3), as above.
    pub(crate) fn responder_is_childless(&self) -> bool {
        let takes =
            |c: &ConnectionConfig| c.role == Role::Responder && c.childless != Childless::Never;
        self.connections.iter().any(takes)
    }

    pub(crate) fn event(&mut self, event: Event) {
        self.outputs.push_back(Output::Event(event));
    }

    /// Tells the keys of an IKE_SA, if that is wanted.
    pub(crate) fn reveal(&mut self, spis: (u64, u64), keys: &Keys) {
        if self.reveals_keys {
            let sk = &keys.sk;
            self.outputs.push_back(Output::Keys(Box::new(IkeKeys {
                spis,
                encryption: keys.suite.encryption,
                encryption_keys: (sk.ei.clone(), sk.er.clone()),
                integrity_keys: (sk.ai.clone(), sk.ar.clone()),
            })));
        }
    }

    pub(crate) fn action(&mut self, sa: SaId, action: Action) -> ActionId {
        let id = ActionId(self.fresh_id());
        self.pending_actions.insert(id, sa);
        self.outputs.push_back(Output::Action { id, action });
        id
    }

    pub(crate) fn transmit(&mut self, path: Path, bytes: Vec<u8>) {
        self.outputs.push_back(Output::Transmit(Transmit { path, bytes }));
    }

    /// Sends a message that is one datagram or several fragments.
    pub(crate) fn transmit_all(&mut self, path: Path, datagrams: &[Vec<u8>]) {
        datagrams.iter().for_each(|bytes| self.transmit(path, bytes.clone()));
    }

    /// An IKE_SA is not there any more for others of its peer, and its virtual addresses are free.
    pub(crate) fn release(&mut self, sa: SaId) {
        self.release_addresses(sa);
        self.peers.remove(sa);
    }

    /// Takes back the virtual addresses of an IKE_SA.
    pub(crate) fn release_addresses(&mut self, sa: SaId) {
        let Some(peer) = self.peers.get(sa) else { return };
        for pool in self.pools.entry(peer.connection).or_default() {
            pool.release(sa);
        }
    }

    /// The same, but what the peer's new IKE_SA does not take it keeps.
    pub(crate) fn suspend_addresses(&mut self, sa: SaId) {
        let Some(peer) = self.peers.get(sa) else { return };
        for pool in self.pools.entry(peer.connection).or_default() {
            pool.suspend(sa);
        }
    }

    /// The new IKE_SA has chosen.
    pub(crate) fn resume_addresses(&mut self) {
        self.pools.values_mut().flatten().for_each(Pool::resume);
    }

    /// An inbound ESP SPI that no CHILD_SA of ours has; above the reserved ones (RFC 4303 §2.1).
    pub(crate) fn draw_esp_spi(&mut self) -> u32 {
        loop {
            let spi = self.random.u32();
            if spi > 255 && self.esp_spis.insert(spi) {
                return spi;
            }
        }
    }

    /// An SPI for an IKE_SA that none of ours has; never 0 (RFC 7296 §3.1).
    pub(crate) fn draw_ike_spi(&mut self) -> u64 {
        loop {
            let spi = self.random.u64();
            if spi != 0 && !self.by_spi.contains_key(&spi) {
                return spi;
            }
        }
    }
}
