//! Holding packets back while the state that sends them is replaced, so that none is lost and none
//! bears a sequence number that another had.
//!
//! Whatever takes an outbound state's place goes on from its last sequence number, which must not
//! rise any more when it is read. The kernel has a queue of 100 packets for each policy that needs a
//! state which is to come (`net.core.xfrm_larval_drop` = 0; by default it drops them): for the time of
//! a move the out policies need a second state, one that was asked for and never comes. The next
//! change of the policy sends on what waited. What comes by an XFRM interface is never queued, and so is
//! not held back: the kernel asks for that with the first look for a route only.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
    num::NonZeroU32,
    time::{Duration, Instant},
};

use netlink_packet_core::Emitable;
use netlink_packet_xfrm::{Address, Id, UserSaInfo, constants::*};

use bewick_ike::{ChildId, ChildMove};

use super::{
    Child, KernelPlane, Method,
    message::Request,
    policy::{self, Direction, Flow},
    queueing::Urgent,
    socket::Socket,
    state::{self, Key, Place, Replay, Side, Usage},
};
use crate::plane::PlaneError;

/// How long the state that never comes is relied on, by one move after the other.
const LARVA_LIVES: Duration = Duration::from_secs(10);

/// States whose windows are read by one dump rather than one by one.
const MANY: usize = 4;

/// The SPI of the state that never comes; another one where packets wait for states anyhow: whoever finds it
/// knows what the setting was before a daemon was killed.
const SPI: u32 = 0xbe1c_0003;
const SPI_ANYHOW: u32 = 0xbe1c_0004;

/// The source and destination of the state that never comes: nobody's (RFC 5737).
pub(super) fn nowhere() -> (IpAddr, IpAddr) {
    (Ipv4Addr::new(192, 0, 2, 251).into(), Ipv4Addr::new(192, 0, 2, 250).into())
}

/// ALLOCSPI for the state that never comes; the kernel forgets it by itself after half a minute
/// (`net.core.xfrm_acq_expires`), and for as long it serves the next moves too. Without it, the first
/// packet that waits would have every key manager of the machine asked for that state.
pub(super) fn larva(ours: bool) -> Request {
    larval(nowhere(), 0, if ours { SPI } else { SPI_ANYHOW }, None)
}

/// ALLOCSPI for a state from and to somewhere: gives `spi` to the one that is asked for, or notes that it is.
pub(super) fn larval(
    (source, destination): (IpAddr, IpAddr),
    reqid: u32,
    spi: u32,
    if_id: Option<NonZeroU32>,
) -> Request {
    let mut info = UserSaInfo {
        id: Id { daddr: Address::from_ip(&destination), spi: 0, proto: IPPROTO_ESP },
        reqid,
        mode: XFRM_MODE_TUNNEL,
        ..UserSaInfo::default()
    };
    info.source(&source);
    // struct xfrm_userspi_info
    let mut body = vec![0; info.buffer_len()];
    info.emit(&mut body);
    for bound in [spi, spi] {
        body.extend_from_slice(&bound.to_ne_bytes());
    }
    Request::with_body(XFRM_MSG_ALLOCSPI, 0, &body).interface(if_id)
}

/// DELSA for the state that never comes.
fn forget_larva(spi: u32) -> Request {
    state::delete(Key { destination: nowhere().1, spi })
}

/// What a daemon that was killed has left of a state that never comes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Left {
    Nothing,
    /// packets wait because of it
    Ours,
    /// packets waited before
    Anyhow,
}

impl Left {
    /// Looks for it, and removes it.
    pub(super) fn find(xfrm: &mut Socket) -> Self {
        let mut there = |spi| xfrm.request("deleting a state", forget_larva(spi)).is_ok();
        match (there(SPI), there(SPI_ANYHOW)) {
            (true, _) => Left::Ours,
            (false, true) => Left::Anyhow,
            (false, false) => Left::Nothing,
        }
    }
}

/// DELSA for the state that never comes, and for whatever has asked for it in the meantime: that has no SPI to be
/// deleted by before it is given one.
pub(super) fn forget_larvae() -> Vec<Request> {
    vec![forget_larva(SPI), forget_larva(SPI_ANYHOW), larva(true), forget_larva(SPI)]
}

/// What is held back at the moment.
pub(super) struct Held {
    urgent: Option<Urgent>,
    flows: BTreeSet<Flow>,
    /// states as they were found when nothing was sent any more
    read: BTreeMap<Key, (Replay, Usage)>,
    /// inbound states that are to end by themselves, what they had carried, and the request for it
    ending: Vec<(Key, Usage, Request)>,
}

impl Held {
    /// A state that was read when packets were held back; once, as it changes from then on.
    pub(super) fn take(&mut self, key: Key) -> Option<(Replay, Usage)> {
        self.read.remove(&key)
    }

    /// Leaves a request about an inbound state for [`KernelPlane::let_go`].
    pub(super) fn end(&mut self, key: Key, usage: Usage, request: Request) {
        self.ending.push((key, usage, request));
    }

    pub(super) fn holds(&self, flow: &Flow) -> bool {
        self.flows.contains(flow)
    }
}

impl KernelPlane {
    /// Holds back what `moves` would disturb, and reads the states that they need, in one go. Where
    /// that is not possible, nothing is held.
    pub(super) fn hold(&mut self, moves: &[ChildMove]) {
        let moved: Vec<(ChildId, u32, Vec<Key>)> =
            moves.iter().filter_map(|one| self.disturbed(one)).collect();
        if moved.is_empty() {
            return;
        }
        let Some(ours) = self.queueing.begin() else { return };
        let urgent = Urgent::begin();
        let tag = self.tag;
        let now = Instant::now();
        let fresh = self.larva.is_some_and(|since| now.duration_since(since) < LARVA_LIVES);
        let (mut flows, mut requests) = (BTreeSet::new(), Vec::new());
        if !fresh {
            requests.push(larva(ours));
            self.larva = Some(now);
        }
        let larvae = requests.len();
        for (id, child) in &self.children {
            // Policies name a reqid, and which of its states they find is up to the kernel.
            if !moved.iter().any(|(_, reqid, _)| *reqid == child.sa.reqid) {
                continue;
            }
            for flow in child.flows.iter().filter(|flow| self.owners.current(flow) == Some(*id)) {
                flows.insert(*flow);
                requests.push(policy::hold(
                    tag,
                    flow,
                    child.sa.reqid,
                    Place::of(&child.sa),
                    nowhere(),
                ));
            }
        }
        let policies = requests.len();
        let mut keys: Vec<Key> = moved.into_iter().flat_map(|(_, _, keys)| keys).collect();
        let mut read = BTreeMap::new();
        keys.retain(|key| match self.read_before.remove(key) {
            Some(found) => read.insert(*key, found).is_some(),
            None => true,
        });
        let mut queries: Vec<Request> = keys.iter().map(|key| state::query(*key)).collect();
        // What has found its state already still takes numbers of it. A window may be older than that. To wait
        // here loses more than it saves: the kernel loses a packet now and then that comes while it lets
        // others go.
        let apart = self.method == Method::DeleteAdd;
        if !apart {
            requests.append(&mut queries);
        }
        let operation = "holding packets back";
        let mut found = |at: Option<usize>, kind, body: &[u8]| {
            let key = at.and_then(|at| keys.get(at));
            read.extend(key.copied().zip(state::snapshot(kind, body)));
        };
        let results = self.xfrm.batch(operation, requests, |at, kind, body| {
            found(at.checked_sub(policies), kind, body);
        });
        self.xfrm.batch(operation, queries, |at, kind, body| found(Some(at), kind, body));
        self.held = Some(Held { urgent, flows, read, ending: Vec::new() });
        // The state that never comes may still be there, or be asked for later.
        let held =
            results.into_iter().take(policies).skip(larvae).collect::<Result<(), PlaneError>>();
        if let Err(error) = held {
            tracing::debug!(%error, "moving without holding packets back");
            if let Err(error) = self.let_go() {
                tracing::warn!(%error, "packets may wait until the move is done");
            }
        }
    }

    /// Reads the replay windows of many inbound states that have to be copied, in one go: they share
    /// the addresses, and one dump of these costs less than a request for each. What comes until a state
    /// is copied is what both may take, as what comes after.
    pub(super) fn read_many(&mut self, moves: &[ChildMove]) {
        self.read_before.clear();
        let mut together = BTreeMap::<(IpAddr, IpAddr), BTreeSet<Key>>::new();
        for ChildMove { id, path, encap } in moves {
            let Some(Child { sa, .. }) = self.children.get(id) else { continue };
            let (key, to) = (Place::of(sa).key(sa, Side::In), Place { path: *path, encap: *encap });
            if key == to.key(sa, Side::In) {
                continue;
            }
            let Some(entry) = self.ledger.lock().get(&key) else { continue };
            together.entry((entry.source, key.destination)).or_default().insert(key);
        }
        for (addresses, keys) in together.into_iter().filter(|(_, keys)| keys.len() >= MANY) {
            let request = state::dump_between(addresses);
            match self.xfrm.dump("reading replay windows", request, state::found_window) {
                Ok(found) => {
                    self.read_before.extend(found.into_iter().filter(|(key, _)| keys.contains(key)))
                }
                Err(error) => tracing::debug!(%error, "reading them one by one"),
            }
        }
    }

    /// Whom a move disturbs: its CHILD_SA, the reqid, and the states that are read for it. `None` if
    /// all states stay, and for an XFRM interface, whose packets the kernel never queues.
    fn disturbed(&self, one: &ChildMove) -> Option<(ChildId, u32, Vec<Key>)> {
        let sa = &self.children.get(&one.id)?.sa;
        let (from, to) = (Place::of(sa), Place { path: one.path, encap: one.encap });
        let ports = from.addresses(Side::Out) == to.addresses(Side::Out) && from.encap && to.encap;
        if from == to || ports || sa.carriage.if_id.is_some() {
            return None;
        }
        let mut keys = Vec::new();
        if from.key(sa, Side::In) != to.key(sa, Side::In) {
            keys.push(from.key(sa, Side::In));
        }
        if self.method == Method::DeleteAdd {
            keys.push(from.key(sa, Side::Out));
        }
        Some((one.id, sa.reqid, keys))
    }

    /// Sends on what was held back, on the paths where the CHILD_SAs are now.
    pub(super) fn let_go(&mut self) -> Result<(), PlaneError> {
        let Some(Held { urgent, flows, ending, .. }) = self.held.take() else { return Ok(()) };
        let tag = self.tag;
        let owner = |flow: &Flow| {
            let child = self.owners.current(flow).and_then(|id| self.children.get(&id))?;
            let place = Place::of(&child.sa);
            Some(policy::put(tag, flow, Direction::Out, child.sa.reqid, place))
        };
        let mut requests: Vec<Request> = flows.iter().filter_map(owner).collect();
        let policies = requests.len();
        let mut ended = Vec::with_capacity(ending.len());
        for (key, usage, request) in ending {
            ended.push((key, usage));
            requests.push(request);
        }
        let mut results = self.xfrm.batch("sending on", requests, |_, _, _| {}).into_iter();
        drop(urgent);
        self.queueing.end();
        let released = results.by_ref().take(policies).collect();
        for ((key, usage), result) in ended.into_iter().zip(results) {
            if let Err(error) = result {
                self.end_at_once(key, usage, &error);
            }
        }
        released
    }
}

#[cfg(test)]
mod tests {
    use netlink_packet_xfrm::constants::XFRMA_TMPL;

    use super::{policy::Tag, *};
    use crate::kernel::{
        message::{attribute, sent, u16_at, u32_at},
        nobody,
    };

    #[test]
    fn a_held_policy_still_needs_its_state_and_one_that_never_comes() {
        let sa = nobody();
        let flows = policy::flows(&sa).unwrap();
        let (_, _, free) =
            sent(policy::put(Tag::default(), &flows[0], Direction::Out, 7, Place::of(&sa)));
        let (kind, _, held) =
            sent(policy::hold(Tag::default(), &flows[0], 7, Place::of(&sa), nowhere()));
        assert_eq!(kind, XFRM_MSG_UPDPOLICY);
        assert_eq!(held[..168], free[..168], "the same policy");
        let found = |body: &[u8]| policy::found(kind, body).unwrap();
        assert!(found(&held).holds() && !found(&free).holds());
        assert_eq!(found(&held).place(), found(&free).place());
        assert!(!found(&held).does(&found(&free)));
        let (free, held) =
            (attribute(&free, 168, XFRMA_TMPL), attribute(&held, 168, XFRMA_TMPL).unwrap());
        assert_eq!((held.len(), Some(&held[..64])), (128, free), "MIGRATE finds the template");
        let never = &held[64..];
        assert_eq!((&never[..4], u32_at(never, 16)), (&[192, 0, 2, 250][..], Some(0)));
        assert_eq!((never[20], u16_at(never, 24)), (50, Some(2)));
        assert_eq!((&never[28..32], u32_at(never, 44)), (&[192, 0, 2, 251][..], Some(0)));
        assert_eq!(never[48..51], [1, 0, 0], "tunnel, any share, required");
    }

    #[test]
    fn the_state_that_never_comes_fits_the_template_and_can_be_deleted() {
        let (kind, _, body) = sent(larva(true));
        assert_eq!((kind, body.len()), (XFRM_MSG_ALLOCSPI, 232));
        assert_eq!((&body[56..60], body[76]), (&[192, 0, 2, 250][..], 50));
        assert_eq!((&body[80..84], u32_at(&body, 208)), (&[192, 0, 2, 251][..], Some(0)));
        assert_eq!((u16_at(&body, 212), body[214]), (Some(2), 1), "IPv4, tunnel");
        assert_eq!((u32_at(&body, 224), u32_at(&body, 228)), (Some(SPI), Some(SPI)));
        let (kind, _, body) = sent(forget_larva(SPI));
        assert_eq!((kind, &body[..4]), (XFRM_MSG_DELSA, &[192, 0, 2, 250][..]));
        assert_eq!(body[16..20], SPI.to_be_bytes());
    }
}
