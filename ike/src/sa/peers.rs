//! With whom the IKE_SAs are, found by either: a gateway with thousands of clients asks at each set-up which
//! others a client has, and must not look at all of them for that.

use std::collections::{BTreeMap, BTreeSet};

use super::uniqueness::Peer;
use crate::{event::SaId, wire::Identity};

/// With whom the IKE_SAs are.
#[derive(Debug, Default)]
pub(crate) struct Peers {
    by_id: BTreeMap<SaId, Peer>,
    /// our identity and the peer's, as [`Peer::identities`] has them
    by_identities: BTreeMap<(Identity, Identity), BTreeSet<SaId>>,
}

impl Peers {
    /// Notes with whom `id` is, whatever was noted before.
    pub(crate) fn insert(&mut self, id: SaId, peer: Peer) {
        self.remove(id);
        self.by_identities.entry(peer.identities.clone()).or_default().insert(id);
        self.by_id.insert(id, peer);
    }

    /// `id` is with nobody any more.
    pub(crate) fn remove(&mut self, id: SaId) {
        let Some(Peer { identities, .. }) = self.by_id.remove(&id) else { return };
        if let Some(ids) = self.by_identities.get_mut(&identities) {
            ids.remove(&id);
            if ids.is_empty() {
                self.by_identities.remove(&identities);
            }
        }
    }

    /// With whom `id` is.
    pub(crate) fn get(&self, id: SaId) -> Option<&Peer> {
        self.by_id.get(&id)
    }

    /// The same, to change what is said of it. Who it is stays: that is for [`Peers::insert`].
    pub(crate) fn get_mut(&mut self, id: SaId) -> Option<&mut Peer> {
        self.by_id.get_mut(&id)
    }

    /// All of them, the oldest first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (SaId, &Peer)> {
        self.by_id.iter().map(|(id, peer)| (*id, peer))
    }

    /// Those between the same two identities, the oldest first.
    pub(crate) fn between(
        &self,
        identities: &(Identity, Identity),
    ) -> impl DoubleEndedIterator<Item = (SaId, &Peer)> {
        let ids = self.by_identities.get(identities).into_iter().flatten();
        ids.filter_map(|id| Some((*id, self.by_id.get(id)?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{ConnectionId, Role};

    fn identities(peer: u64) -> (Identity, Identity) {
        let name = |name: String| Identity::Fqdn(name);
        (name("vpn.example.com".into()), name(format!("client{peer}.example.com")))
    }

    fn peer(of: u64) -> Peer {
        Peer {
            connection: ConnectionId(0),
            role: Role::Responder,
            identities: identities(of),
            spis: (1, 2),
            proven: None,
            first: None,
            doomed: false,
            doubted: None,
        }
    }

    fn between(peers: &Peers, of: u64) -> Vec<SaId> {
        peers.between(&identities(of)).map(|(id, _)| id).collect()
    }

    #[test]
    fn an_ike_sa_that_proves_to_be_with_another_peer_is_not_found_with_the_one_before() {
        let mut peers = Peers::default();
        peers.insert(SaId(2), peer(1));
        peers.insert(SaId(1), peer(1));
        assert_eq!(between(&peers, 1), [SaId(1), SaId(2)]);
        peers.insert(SaId(1), peer(2));
        assert_eq!((between(&peers, 1), between(&peers, 2)), (vec![SaId(2)], vec![SaId(1)]));
        // noted once more, as it is when IKE_AUTH is over
        peers.insert(SaId(1), peer(2));
        assert_eq!(between(&peers, 2), [SaId(1)]);
    }

    #[test]
    fn the_same_peer_is_another_one_to_another_identity_of_ours() {
        let mut peers = Peers::default();
        let (_, remote) = identities(1);
        let ours = (Identity::Fqdn("other.example.com".into()), remote);
        peers.insert(SaId(1), Peer { identities: ours.clone(), ..peer(1) });
        assert!(between(&peers, 1).is_empty());
        assert_eq!(peers.between(&ours).count(), 1);
    }

    /// However they come and go, those between two identities are what a look at all of them finds.
    #[test]
    fn by_identities_there_are_those_that_there_are() {
        let mut peers = Peers::default();
        let mut random = 1_u64;
        for _ in 0..1000 {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let (id, of) = (SaId((random >> 33) % 12), (random >> 40) % 5);
            match (random >> 50) % 3 {
                0 => peers.remove(id),
                1 => peers.insert(id, peer(of)),
                _ => peers.get_mut(id).into_iter().for_each(|peer| peer.doomed = !peer.doomed),
            }
            for of in (0..5).map(identities) {
                let all = peers.iter().filter(|(_, peer)| peer.identities == of);
                let all: Vec<(SaId, bool)> = all.map(|(id, peer)| (id, peer.doomed)).collect();
                let found = peers.between(&of).map(|(id, peer)| (id, peer.doomed));
                assert_eq!(found.collect::<Vec<_>>(), all);
            }
        }
        (0..12).for_each(|id| peers.remove(SaId(id)));
        assert!(peers.by_id.is_empty() && peers.by_identities.is_empty());
    }
}
