//! How many IKE_SAs there are with one peer (RFC 7296 §2.4), and which of them stays.
//!
//! A new IKE_SA that the peer starts meets the older ones between the same two authenticated
//! identities:
//! - With INITIAL_CONTACT the older ones are gone without a word, for the peer knows of none.
//! - Else the connection's [`Uniqueness`] decides. An older one that goes stays for [`SETTLE`], so that the
//!   peer can take the new one in use and delete the old one itself, without a gap.
//! - One that we started is another matter, for two gateways may start towards each other at once. Both
//!   handshakes end well, and each may have said INITIAL_CONTACT in good faith. So INITIAL_CONTACT does
//!   not end an IKE_SA of ours that was not yet authenticated when the peer's IKE_SA_INIT came: a peer
//!   that sent its IKE_AUTH knowing of no other had not answered ours by then, and had our answer to
//!   its IKE_SA_INIT. A peer that was restarted comes later than that. Of two that both live, started
//!   from either end, the one with the lowest of the four SPIs goes: its initiator deletes it when the
//!   other one has had [`SETTLE`] to carry traffic. Both ends come to the same choice, whatever the order
//!   of messages was.
//! - Not every peer is so careful: one that takes our IKE_AUTH late, with the INITIAL_CONTACT that was true when
//!   we sent it, may end the IKE_SA that it has started itself, without a word. So when ours is up, one of the
//!   peer's that was before it is asked whether it lives, and goes if there is no answer within [`SETTLE`]; ours is
//!   not deleted for its sake before it has answered.

use std::time::Duration;

use crate::{
    child::ChildSa,
    config::{ConnectionId, Role, Uniqueness},
    event::{CloseReason, SaId},
    selector::TrafficSelector,
    time::Time,
    wire::{Identity, IdentityPattern, Notify, NotifyType, Payload},
};

use super::{Cx, Sa, Shared, State, live};
use crate::endpoint::timers::Timer;

/// IKE_SAs of one identity side by side, at most.
const MOST_OF_ONE: usize = 16;

/// How long two IKE_SAs that were started from both ends stand side by side, so that none is deleted
/// before the other carries traffic in both directions.
pub(crate) const SETTLE: Duration = Duration::from_secs(2);

/// With whom an IKE_SA is, for as long as it lives.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    pub(crate) connection: ConnectionId,
    pub(crate) role: Role,
    /// our identity and the peer's, in their one spelling
    pub(crate) identities: (Identity, Identity),
    pub(crate) spis: (u64, u64),
    /// when it was authenticated; `None` while our IKE_AUTH is out
    pub(crate) proven: Option<Time>,
    /// its first CHILD_SA, for an IKE_SA that takes its place or stands beside it
    pub(crate) first: Option<First>,
    /// a newer one has taken its place
    pub(crate) doomed: bool,
    /// one of ours has come up beside it then, and it has to show that the peer still has it
    pub(crate) doubted: Option<Time>,
}

/// The first CHILD_SA of an IKE_SA.
#[derive(Clone, Debug)]
pub(crate) struct First {
    /// which of the configuration it is
    config: usize,
    /// what binds its policies to its states
    reqid: u32,
    /// our selectors and the peer's
    selectors: (Vec<TrafficSelector>, Vec<TrafficSelector>),
}

impl Peer {
    fn lowest_spi(&self) -> u64 {
        self.spis.0.min(self.spis.1)
    }
}

/// Notes with whom `sa` is; both identities are in their one spelling.
pub(crate) fn note(
    sa: &Sa,
    shared: &mut Shared,
    connection: ConnectionId,
    identities: (Identity, Identity),
    proven: Option<Time>,
) {
    let spis = (sa.channel.spi_i, sa.channel.spi_r);
    let (role, first, doomed, doubted) = (sa.role, None, false, None);
    let peer = Peer { connection, role, identities, spis, proven, first, doomed, doubted };
    shared.peers.insert(sa.id, peer);
}

/// The first CHILD_SA of `sa` is that of the configuration.
pub(crate) fn note_child(sa: &Sa, shared: &mut Shared, config: usize, child: &ChildSa) {
    let selectors = (child.ts_local.clone(), child.ts_remote.clone());
    if let Some(peer) = shared.peers.get_mut(sa.id) {
        peer.first = Some(First { config, reqid: child.reqid, selectors });
    }
}

/// The reqid that the first CHILD_SA of `sa` shares with that of another IKE_SA between the same identities,
/// so that packets that come on either are taken: of the one that `sa` is to take the place of, started from
/// the same end, if both are the same of the configuration, as if it were rekeyed (RFC 7296 §2.8.3); or of one
/// that was started from the other end, if both have the same selectors, for the peer may send on either.
pub(crate) fn kin(sa: &Sa, shared: &Shared, config: usize, child: &ChildSa) -> Option<u32> {
    let peer = shared.peers.get(sa.id)?;
    let replaces = shared.connection(peer.connection)?.uniqueness != Uniqueness::Never;
    let shares = |other: &Peer, first: &First| {
        let (local, remote) = &first.selectors;
        let successor = replaces && other.connection == peer.connection && first.config == config;
        let same = *local == child.ts_local && *remote == child.ts_remote;
        if other.role == peer.role { successor } else { same }
    };
    let older = |(id, other): (SaId, &Peer)| {
        let first = other.first.as_ref().filter(|first| shares(other, first))?;
        (id != sa.id).then_some(first.reqid)
    };
    shared.peers.between(&peer.identities).filter_map(older).next_back()
}

/// Whether we have no other IKE_SA with the connection's peer, also none on its way: then our first
/// IKE_AUTH says INITIAL_CONTACT.
pub(crate) fn is_first(shared: &Shared, connection: ConnectionId, sa: SaId) -> bool {
    let Some(config) = shared.connection(connection) else { return false };
    let local = config.local_id.canonical();
    if let IdentityPattern::Exactly(remote) = &config.remote_id {
        return shared.peers.between(&(local, remote.canonical())).all(|(id, _)| id == sa);
    }
    !shared.peers.iter().any(|(id, peer)| {
        id != sa && peer.identities.0 == local && config.remote_id.matches(&peer.identities.1)
    })
}

/// Notes that our IKE_AUTH is on its way to the connection's peer, if it can be only one.
pub(crate) fn note_attempt(sa: &Sa, shared: &mut Shared, connection: ConnectionId) {
    let Some(config) = shared.connection(connection) else { return };
    if let IdentityPattern::Exactly(remote) = &config.remote_id {
        let identities = (config.local_id.canonical(), remote.canonical());
        note(sa, shared, connection, identities, None);
    }
}

fn says_initial_contact(payloads: &[Payload]) -> bool {
    let is = |n: &Notify| n.kind == NotifyType::INITIAL_CONTACT;
    payloads.iter().any(|payload| matches!(payload, Payload::Notify(n) if is(n)))
}

/// The authenticated IKE_SAs between the same identities, the oldest first.
fn others(shared: &Shared, identities: &(Identity, Identity)) -> Vec<(SaId, Peer)> {
    let proven = shared.peers.between(identities).filter(|(_, peer)| peer.proven.is_some());
    proven.map(|(id, peer)| (id, peer.clone())).collect()
}

/// Whether a new IKE_SA of this peer is refused, with the words for the operator.
pub(crate) fn refusal(
    shared: &Shared,
    connection: ConnectionId,
    identities: &(Identity, Identity),
    payloads: &[Payload],
) -> Option<String> {
    let config = shared.connection(connection)?;
    let keep = config.uniqueness == Uniqueness::Keep && !says_initial_contact(payloads);
    let alive = keep && !others(shared, identities).is_empty();
    alive.then(|| format!("{} has an IKE_SA already, and uniqueness is \"keep\"", identities.1))
}

/// Which older IKE_SAs end because the peer has started a new one, whose IKE_SA_INIT came at `since`.
/// Their virtual addresses are free from now on, for this very peer may need one.
pub(crate) fn make_room(
    shared: &mut Shared,
    connection: ConnectionId,
    identities: &(Identity, Identity),
    (since, now): (Time, Time),
    payloads: &[Payload],
) {
    let initial = says_initial_contact(payloads);
    let policy = shared.connection(connection).map(|c| c.uniqueness).unwrap_or_default();
    let (ours, theirs): (Vec<_>, Vec<_>) =
        others(shared, identities).into_iter().partition(|(_, peer)| peer.role == Role::Initiator);
    let mut going = Vec::new();
    if initial {
        let known = |peer: &Peer| peer.proven.is_some_and(|at| at < since);
        going.extend(theirs.iter().map(|(id, _)| *id));
        going.extend(ours.iter().filter(|(_, peer)| known(peer)).map(|(id, _)| *id));
    } else {
        let left = match policy {
            Uniqueness::Replace | Uniqueness::Keep => 0,
            Uniqueness::Never => MOST_OF_ONE - 1,
        };
        going.extend(theirs.iter().rev().skip(left).map(|(id, _)| *id));
    }
    for id in going {
        if initial {
            shared.release(id);
            shared.replaced.push(id);
        } else {
            // The peer deletes it itself when the new one carries traffic (RFC 7296 §2.8.3); else we do.
            shared.suspend_addresses(id);
            if let Some(peer) = shared.peers.get_mut(id) {
                peer.doomed = true;
            }
            shared.timers.set(id, Timer::Redundant, now + SETTLE);
        }
    }
}

/// An IKE_SA is up: if the same peer has one that was started from the other end, one of the two goes.
/// Sets the time for that if it is ours to delete.
pub(crate) fn on_established(sa: &Sa, cx: &mut Cx<'_>) {
    let Some(peer) = cx.shared.peers.get(sa.id).cloned() else { return };
    for (id, other) in others(cx.shared, &peer.identities) {
        let pair = [(sa.id, &peer), (id, &other)];
        if peer.role == other.role {
            continue;
        }
        let loser = pair.into_iter().min_by_key(|(_, peer)| peer.lowest_spi());
        if let Some((loser, Peer { role: Role::Initiator, .. })) = loser {
            cx.shared.timers.set(loser, Timer::Redundant, cx.now + SETTLE);
        }
        if sa.role == Role::Initiator {
            if let Some(other) = cx.shared.peers.get_mut(id) {
                other.doubted = Some(cx.now);
            }
            cx.shared.timers.set(id, Timer::Liveness, cx.now);
            cx.shared.timers.set(id, Timer::Redundant, cx.now + SETTLE);
        }
    }
}

/// Deletes an IKE_SA of ours if the one that the peer started still stands, and one of the peer's that it has
/// forgotten.
pub(crate) fn on_timer(sa: &mut Sa, cx: &mut Cx<'_>) {
    let Some(peer) = cx.shared.peers.get_mut(sa.id) else { return };
    let forgotten = peer.doubted.take().is_some_and(|since| sa.last_heard <= since);
    let peer = peer.clone();
    let allowed = |connection: ConnectionId| {
        cx.shared.connection(connection).is_some_and(|c| c.uniqueness != Uniqueness::Never)
    };
    let beats = |other: &Peer| {
        peer.role == Role::Initiator
            && other.role == Role::Responder
            && other.lowest_spi() > peer.lowest_spi()
            && allowed(other.connection)
    };
    let better: Vec<Peer> = others(cx.shared, &peer.identities)
        .into_iter()
        .filter_map(|(_, other)| beats(&other).then_some(other))
        .collect();
    if !peer.doomed && !better.is_empty() && better.iter().all(|other| other.doubted.is_some()) {
        cx.shared.timers.set(sa.id, Timer::Redundant, cx.now + SETTLE / 4);
        return;
    }
    let (path, beaten) = (sa.path, !better.is_empty());
    let State::Live(live) = &mut sa.state else { return };
    let reason = match (forgotten, beaten || peer.doomed) {
        (true, _) => CloseReason::Unanswered(path),
        (false, true) => CloseReason::Replaced,
        (false, false) => return,
    };
    if live.is_up() {
        live.verdict.get_or_insert(reason);
        // The peer may have it after all, and only the way have been bad.
        live::delete(sa, cx, Vec::new());
    }
}
