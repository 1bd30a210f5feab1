//! Moving CHILD_SAs to other paths (RFC 4555 §3.5): all of them or none.
//!
//! Inbound, a state is known by our address and the SPI. If our address changes, a second state is
//! added and the old one lives on for [`LINGER`] seconds, for packets in flight. Both states start from
//! one replay window and don't hear of each other, so for that time a packet could be delivered once
//! by each. A move back within that time takes the old state up again. If only the peer's address
//! changes, the state stays as it is: it takes packets from anywhere, and the address of the peer that
//! it has in the kernel, now an old one, is of use only for telling of a NAT's new mapping, where
//! what is not new is left out by [`super::ledger`].
//!
//! Outbound, a state is known by the peer's address and the SPI. MIGRATE_STATE moves it, and a change of
//! the policies follows. Without that, MIGRATE replaces it together with
//! the policy's template. Where that is not possible (no MIGRATE in the kernel, a reqid that two
//! CHILD_SAs share during a rekey, UDP encapsulation that ends, an XFRM interface, whose packets can't be
//! held back), it is deleted and added. For the
//! time of each, packets wait in the kernel (see [`super::hold`]): what is sent between two steps would find
//! no state, or, but with MIGRATE_STATE, bear numbers that come again, as what takes a state's place goes
//! on from the last number that was read. Where packets can't be held back, deleting and adding
//! leaves [`SKIP`] numbers out, and where another processor sends, [`SKIP_HELD`].
//!
//! Nonces: the kernel makes the IV of AES-GCM and ChaCha20-Poly1305 as the sequence number XOR a
//! random 64-bit salt that each state draws when it is made, and a migrated state is a new one in
//! this too. Two states with one key that have both sent up to 2^k packets repeat an IV with
//! probability 2^(k-64), whether or not their sequence numbers overlap. With 2^20 packets and 64
//! moves that is 2^-33; an SA that moves more often or carries more should be rekeyed. Where only
//! ports change, the state is updated in place and keeps its salt. A network card that does ESP has no
//! such salt: there it counts that no number is used twice, and far more of them are left out.
//!
//! Limits: new states count what they carry from zero, so that each gets what those before it have
//! left of the limits, and a CHILD_SA that moves often has its successor in time all the same
//! (RFC 4301 §4.4.2.1, RFC 4303 §3.3.3).

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use bewick_ike::{ChildId, ChildMove, ChildSa};

use super::{
    KernelPlane, Method,
    message::Request,
    policy::{self, Direction, Flow},
    state::{self, Key, Place, Replay, Side, Spent, Usage},
};
use crate::plane::{MoveReport, PlaneError};

/// Seconds for which an inbound state that was replaced still takes packets.
const LINGER: u64 = 5;

/// Outbound sequence numbers left out when a state is deleted and added while packets are sent: more
/// than are sent between reading the last number and the switch, and fewer than a replay window spans.
const SKIP: u32 = 1024;

/// The same where packets are held back, and there is another processor: it may be about to send one that has
/// found its state before.
const SKIP_HELD: u32 = 16;

/// The same where a network card does ESP: it is fast, telling it of a state takes long, and it may take the
/// sequence number for the IV as it is.
const SKIP_OFFLOADED: u32 = 1 << 20;

/// CHILD_SAs that are held back together: some 100 µs each, and what comes meanwhile has to fit into
/// a queue of 100 packets.
const TOGETHER: usize = 8;

impl KernelPlane {
    pub(super) fn move_all(&mut self, moves: &[ChildMove]) -> Result<MoveReport, PlaneError> {
        let start = Instant::now();
        let (sent, round_trips) = (self.xfrm.sent(), self.xfrm.round_trips());
        // What is about to go stays where it is: it only takes what is on its way.
        let stays = |one: &ChildMove| self.children.get(&one.id).is_some_and(|child| child.retired);
        let moves: Vec<ChildMove> = moves.iter().filter(|one| !stays(one)).cloned().collect();
        let moves = moves.as_slice();
        for ChildMove { id, path, .. } in moves {
            if !self.children.contains_key(id) {
                return Err(PlaneError::UnknownChild(*id));
            }
            if path.local.is_ipv4() != path.remote.is_ipv4() {
                return Err(PlaneError::Unsupported(format!("{path} mixes IPv4 and IPv6")));
            }
        }
        self.refused = 0;
        let mut undo: Vec<(ChildId, Place)> = Vec::new();
        self.read_many(moves);
        for group in moves.chunks(TOGETHER) {
            self.hold(group);
            undo.extend(group.iter().filter_map(|one| Some((one.id, self.place(one.id)?))));
            let result = self.relocate_together(group);
            if let Err(error) = result.and(self.let_go()) {
                for (id, place) in undo.into_iter().rev() {
                    if let Err(error) = self.relocate(id, place) {
                        tracing::error!(%error, ?id, "can't undo a move");
                    }
                }
                return Err(error);
            }
        }
        Ok(MoveReport {
            requests: self.xfrm.sent().wrapping_sub(sent),
            round_trips: self.xfrm.round_trips().wrapping_sub(round_trips),
            took: start.elapsed(),
            refused: self.refused,
        })
    }

    fn place(&self, id: ChildId) -> Option<Place> {
        self.children.get(&id).map(|child| Place::of(&child.sa))
    }

    /// Takes one CHILD_SA to `to`. After an error it is where [`KernelPlane::place`] says.
    pub(super) fn relocate(&mut self, id: ChildId, to: Place) -> Result<(), PlaneError> {
        // A move knows both states of what it moves.
        self.release(id)?;
        let Some(child) = self.children.get(&id) else {
            return Err(PlaneError::UnknownChild(id));
        };
        // A copy, as what follows needs both it and all of `self`; its keys are zeroed on drop.
        let (sa, flows) = (child.sa.clone(), child.flows.clone());
        let from = Place::of(&sa);
        if from == to {
            return Ok(());
        }
        let same_addresses = from.addresses(Side::Out) == to.addresses(Side::Out);
        let same_in = from.key(&sa, Side::In) == to.key(&sa, Side::In);
        let mut second = None;
        if same_addresses && from.encap && to.encap {
            self.change_ports(&sa, from, to)?;
        } else {
            if !same_in {
                // What the peer sends to our new address is welcome before we send from it.
                second = Some(self.open_second(&sa, from, to)?);
            }
            if let Err(error) = self.switch(&sa, &flows, from, to) {
                if let Some(second) = second {
                    self.withdraw(&sa, to, second);
                }
                return Err(error);
            }
        }
        self.arrived(&sa, from, to, second.map(|second| second.used));
        Ok(())
    }

    /// Notes that `sa` is at `to`, whatever else fails; its old inbound state ends soon if a second one
    /// was opened when it had carried `used`.
    pub(super) fn arrived(&mut self, sa: &ChildSa, from: Place, to: Place, used: Option<Usage>) {
        if let Some(child) = self.children.get_mut(&sa.id) {
            (child.sa.path, child.sa.encap) = (to.path, to.encap);
        }
        if let Some(used) = used {
            self.linger(sa, from, used);
        }
    }

    /// Only ports are others: both states stay, with all that they have counted.
    fn change_ports(&mut self, sa: &ChildSa, from: Place, to: Place) -> Result<(), PlaneError> {
        let sides = [Side::In, Side::Out].map(|side| (side, self.began(from.key(sa, side))));
        let updates = |plane: &Self, place| -> Result<Vec<Request>, PlaneError> {
            sides.iter().map(|&(side, began)| plane.updated(sa, side, place, began, 0)).collect()
        };
        let operation = "updating both states";
        let (there, back) = (updates(self, to)?, updates(self, from)?);
        self.xfrm
            .requests(operation, there)
            .inspect_err(|_| drop(self.xfrm.requests(operation, back)))?;
        for (side, began) in sides {
            self.enter(sa, side, to, began);
        }
        Ok(())
    }

    /// Has an inbound state at `to` besides the one at `from`.
    fn open_second(&mut self, sa: &ChildSa, from: Place, to: Place) -> Result<Second, PlaneError> {
        let old = from.key(sa, Side::In);
        let (window, used) = self.snapshot(old)?;
        let spent = self.began(old).after(Side::In, used, &window);
        if let Some(left) = self.revive(sa, to, &window, spent) {
            return Ok(Second { used, revived: Some(left) });
        }
        self.end_lingering(sa, to)?;
        self.put_state(sa, Side::In, to, &window, spent)?;
        self.enter(sa, Side::In, to, spent);
        Ok(Second { used, revived: None })
    }

    /// Takes up again an inbound state that an earlier move has left behind, if there is one that
    /// fits; what it had carried when it was left.
    fn revive(&mut self, sa: &ChildSa, at: Place, window: &Replay, spent: Spent) -> Option<Usage> {
        let key = at.key(sa, Side::In);
        let entry = self.ledger.lock().get(&key).filter(|entry| entry.id == sa.id)?;
        let left = entry.left?;
        // An update can change neither the source, by which the kernel tells a new mapping, nor
        // whether there is UDP.
        if entry.encap != at.encap || entry.source != at.path.remote.ip() {
            return None;
        }
        // It goes on with its own count: what it had carried is not to count twice.
        let began = spent.without(left);
        let update = self.updated(sa, Side::In, at, began, 0).ok()?;
        let requests = vec![state::set_replay(key, window), update];
        if let Err(error) = self.xfrm.requests("taking up an inbound state again", requests) {
            // The kernel may have removed it this moment.
            tracing::debug!(%error, "adding an inbound state instead");
            return None;
        }
        self.enter(sa, Side::In, at, began);
        Some(left)
    }

    /// Undoes [`KernelPlane::open_second`].
    pub(super) fn withdraw(&mut self, sa: &ChildSa, at: Place, second: Second) {
        if let Some(left) = second.revived {
            return self.linger(sa, at, left);
        }
        let key = at.key(sa, Side::In);
        let _ = self.delete_state(key);
        self.ledger.lock().close(&key, Usage::default());
    }

    /// What was used up before the state `key` was made.
    pub(super) fn began(&self, key: Key) -> Spent {
        self.ledger.lock().get(&key).map(|entry| entry.began).unwrap_or_default()
    }

    /// Takes the outbound state, the policies, and the inbound state if its key stays, to `to`, in
    /// the ledger too.
    fn switch(
        &mut self,
        sa: &ChildSa,
        flows: &[Flow],
        from: Place,
        to: Place,
    ) -> Result<(), PlaneError> {
        let mine: Vec<Flow> =
            flows.iter().filter(|flow| self.owners.current(flow) == Some(sa.id)).copied().collect();
        if self.can_migrate(sa, &mine, from, to) {
            let mut before = Vec::new();
            for side in moved(sa, from, to) {
                let state = match self.keeps_counts {
                    true => None,
                    false => Some(self.snapshot(from.key(sa, side))?),
                };
                before.push((side, state));
            }
            let (migrated, rest) = match mine.split_first() {
                Some((first, rest)) if self.method == Method::Migrate => {
                    (self.migrate(sa, first, from, to), rest)
                }
                _ => (self.migrate_states(sa, &mine, from, to)?, &[][..]),
            };
            match migrated {
                Ok(()) => {
                    for (side, state) in before {
                        self.follow(sa, side, from, to, state);
                    }
                    return self.after_migrate(sa, rest, from, to);
                }
                // Nothing has changed. ENODATA from MIGRATE: a state without SPI, made by a packet that
                // found no state, is in the way.
                Err(error) => self.note_refusal(&error),
            }
        }
        self.replace(sa, &mine, from, to)
    }

    /// Whether no two CHILD_SAs share this reqid.
    pub(super) fn is_alone(&self, reqid: u32) -> bool {
        self.children.values().filter(|child| child.sa.reqid == reqid).count() == 1
    }

    pub(super) fn flows_of(&self, id: ChildId) -> Vec<Flow> {
        let flows = self.children.get(&id).map(|child| child.flows.as_slice()).unwrap_or_default();
        flows.iter().filter(|flow| self.owners.current(flow) == Some(id)).copied().collect()
    }

    /// Deletes and adds what the kernel does not migrate.
    pub(super) fn replace(
        &mut self,
        sa: &ChildSa,
        mine: &[Flow],
        from: Place,
        to: Place,
    ) -> Result<(), PlaneError> {
        let same_in = from.key(sa, Side::In) == to.key(sa, Side::In);
        if same_in {
            self.keep_inbound(sa, from, to)?;
        }
        self.replace_outbound(sa, mine, from, to).inspect_err(|_| {
            if same_in {
                let _ = self.keep_inbound(sa, to, from);
            }
        })
    }

    pub(super) fn replace_outbound(
        &mut self,
        sa: &ChildSa,
        mine: &[Flow],
        from: Place,
        to: Place,
    ) -> Result<(), PlaneError> {
        if from.key(sa, Side::Out) != to.key(sa, Side::Out) {
            return self.overlap(sa, mine, from, to);
        }
        // A second state with this key is refused, so there is a moment without any.
        self.swap(sa, Side::Out, from, to)?;
        self.put_policies(sa, mine, to).inspect_err(|_| {
            let _ = self.swap(sa, Side::Out, to, from);
            let _ = self.put_policies(sa, mine, from);
        })
    }

    /// Has an inbound state whose key stays expect packets from another peer's address. It takes them
    /// from anywhere as it is, and without it what comes meanwhile would be lost; only whether they
    /// are in UDP can't be changed.
    pub(super) fn keep_inbound(
        &mut self,
        sa: &ChildSa,
        from: Place,
        to: Place,
    ) -> Result<(), PlaneError> {
        if from.encap != to.encap {
            return self.swap(sa, Side::In, from, to);
        }
        let Some(entry) = self.ledger.lock().get(&from.key(sa, Side::In)) else {
            return Err(PlaneError::UnknownChild(sa.id));
        };
        if from.encapsulation(Side::In) != to.encapsulation(Side::In) {
            self.update_state(sa, Side::In, to, entry.began, 0)?;
        }
        self.enter_as(sa, Side::In, to, entry.began, entry.source);
        Ok(())
    }

    /// Deletes a state and adds it at another place under the same key.
    fn swap(&mut self, sa: &ChildSa, side: Side, from: Place, to: Place) -> Result<(), PlaneError> {
        let key = from.key(sa, side);
        let (replay, used) = self.snapshot(key)?;
        let replay = skipped(replay, if side == Side::Out { self.skip(sa) } else { 0 }, sa)?;
        let spent = self.began(key).after(side, used, &replay);
        self.delete_state(key)?;
        // Whichever of the two states is there now has counted nothing yet.
        self.ledger.lock().carry(sa.id, side, used);
        let put = self.put_state(sa, side, to, &replay, spent);
        if put.is_err() {
            let _ = self.put_state(sa, side, from, &replay, spent);
        }
        self.enter(sa, side, if put.is_ok() { to } else { from }, spent);
        put
    }

    /// Adds the outbound state at the new place, points the policies to it and deletes the old one.
    fn overlap(
        &mut self,
        sa: &ChildSa,
        mine: &[Flow],
        from: Place,
        to: Place,
    ) -> Result<(), PlaneError> {
        let (old, new) = (from.key(sa, Side::Out), to.key(sa, Side::Out));
        let (replay, used) = self.snapshot(old)?;
        let replay = skipped(replay, self.skip(sa), sa)?;
        let spent = self.began(old).after(Side::Out, used, &replay);
        self.put_state(sa, Side::Out, to, &replay, spent)?;
        if let Err(error) = self.put_policies(sa, mine, to) {
            let _ = self.put_policies(sa, mine, from);
            let _ = self.delete_state(new);
            return Err(error);
        }
        // Nothing uses it any more, so this is no reason to undo the move.
        if let Err(error) = self.delete_state(old) {
            tracing::warn!(%error, id = ?sa.id, "an old outbound state stays");
        }
        self.ledger.lock().close(&old, used);
        self.enter(sa, Side::Out, to, spent);
        Ok(())
    }

    pub(super) fn put_policies(
        &mut self,
        sa: &ChildSa,
        flows: &[Flow],
        place: Place,
    ) -> Result<(), PlaneError> {
        // What is held back goes on only when all is done.
        let requests = self.policies(sa, flows, place);
        self.xfrm.requests("updating a policy", requests)
    }

    /// The requests of [`KernelPlane::put_policies`].
    pub(super) fn policies(&self, sa: &ChildSa, flows: &[Flow], place: Place) -> Vec<Request> {
        let held = |flow: &&Flow| self.held.as_ref().is_some_and(|held| held.holds(flow));
        let tag = self.tag;
        let put = |flow| policy::put(tag, flow, Direction::Out, sa.reqid, place);
        flows.iter().filter(|flow| !held(flow)).map(put).collect()
    }

    /// Sequence numbers to leave out between an outbound state and the one that takes its place.
    fn skip(&self, sa: &ChildSa) -> u32 {
        let held = self.held.is_some() && sa.carriage.if_id.is_none();
        match (held, sa.carriage.offload) {
            (_, true) => SKIP_OFFLOADED,
            (false, false) => SKIP,
            (true, false) if self.processors > 1 => SKIP_HELD,
            (true, false) => 0,
        }
    }

    /// Makes room for an inbound state where an earlier move has left one behind.
    fn end_lingering(&mut self, sa: &ChildSa, at: Place) -> Result<(), PlaneError> {
        let key = at.key(sa, Side::In);
        let entry = self.ledger.lock().get(&key).filter(|entry| entry.id == sa.id);
        let Some(left) = entry.and_then(|entry| entry.left) else {
            return Ok(());
        };
        let usage = self.snapshot(key).map_or(left, |(_, usage)| usage);
        self.delete_state(key)?;
        self.ledger.lock().close(&key, usage);
        Ok(())
    }

    /// Has the kernel remove the old inbound state after [`LINGER`] seconds.
    fn linger(&mut self, sa: &ChildSa, at: Place, usage: Usage) {
        let key = at.key(sa, Side::In);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let lifetime = now.saturating_sub(usage.added).saturating_add(LINGER);
        self.ledger.lock().linger(&key, usage);
        let began = self.began(key);
        let update = match self.updated(sa, Side::In, at, began, lifetime) {
            Ok(update) => update,
            Err(error) => return self.end_at_once(key, usage, &error),
        };
        if let Some(held) = &mut self.held {
            return held.end(key, usage, update);
        }
        if let Err(error) = self.xfrm.request("updating the inbound state", update) {
            self.end_at_once(key, usage, &error);
        }
    }

    /// Removes an old inbound state that the kernel can't be told to remove later.
    pub(super) fn end_at_once(&mut self, key: Key, usage: Usage, error: &PlaneError) {
        tracing::debug!(%error, "the old inbound state goes at once");
        let _ = self.delete_state(key);
        self.ledger.lock().close(&key, usage);
    }

    /// Adds the traffic of a replaced state to the count, unless the kernel took the count along;
    /// whether it did.
    pub(super) fn carry(&mut self, sa: &ChildSa, side: Side, at: Place, before: Usage) -> bool {
        let Ok((_, after)) = self.snapshot(at.key(sa, side)) else { return false };
        let taken_along = after.packets >= before.packets && after.octets >= before.octets;
        if !taken_along {
            self.ledger.lock().carry(sa.id, side, before);
        }
        taken_along
    }
}

/// An inbound state at another address of ours than the one that was there before.
pub(super) struct Second {
    /// what the one before had carried
    pub(super) used: Usage,
    /// it is one that an earlier move had left, and had carried so much then
    pub(super) revived: Option<Usage>,
}

/// The states that are migrated: an inbound one only if our address stays and UDP encapsulation
/// begins or ends, which nothing else can tell it. What comes while MIGRATE copies it is counted by the state
/// that goes, and its number is not in the window of the new one.
pub(super) fn moved(sa: &ChildSa, from: Place, to: Place) -> Vec<Side> {
    let same_in = from.key(sa, Side::In) == to.key(sa, Side::In);
    if same_in && from.encap != to.encap { vec![Side::Out, Side::In] } else { vec![Side::Out] }
}

fn skipped(replay: Replay, count: u32, sa: &ChildSa) -> Result<Replay, PlaneError> {
    replay.skip(count, sa.esn).ok_or_else(|| {
        PlaneError::Unsupported("the sequence numbers of this CHILD_SA are used up".into())
    })
}
