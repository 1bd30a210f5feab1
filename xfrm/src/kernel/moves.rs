//! Moving CHILD_SAs to other paths (RFC 4555 §3.5): all of them or none.
//!
//! Inbound, a state is known by our address and the SPI. If our address changes, a second state is
//! added and the old one lives on for [`LINGER`] seconds, for packets in flight; if not, the state
//! itself is migrated, so that it knows the peer's new address. Both states start from one replay
//! window and don't hear of each other, so for that time a packet could be delivered once by each.
//!
//! Outbound, a state is known by the peer's address and the SPI. MIGRATE replaces it together with
//! the policy's template and no packet misses it. Where that is not possible (no MIGRATE in the
//! kernel, a reqid that two CHILD_SAs share during a rekey, UDP encapsulation that ends), it is
//! deleted and added, with a jump of [`SKIP`] sequence numbers over what is sent meanwhile.
//!
//! Nonces: the kernel makes the IV of AES-GCM and ChaCha20-Poly1305 as the sequence number XOR a
//! random 64-bit salt that each state draws when it is made, and a migrated state is a new one in
//! this too. Two states with one key that have both sent up to 2^k packets repeat an IV with
//! probability 2^(k-64), whether or not their sequence numbers overlap. With 2^20 packets and 64
//! moves that is 2^-33; an SA that moves more often or carries more should be rekeyed. Where only
//! ports change, the state is updated in place and keeps its salt.
//!
//! Limits: new states count what they carry from zero, so that each gets what those before it have
//! left of the limits, and a CHILD_SA that moves often has its successor in time all the same
//! (RFC 4301 §4.4.2.1, RFC 4303 §3.3.3).

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use bewick_ike::{ChildId, ChildMove, ChildSa};

use super::{
    KernelPlane, Method,
    migrate::{self, Step},
    policy::{self, Direction, Flow},
    state::{self, Key, Place, Replay, Side, Spent, Usage},
};
use crate::plane::{MoveReport, PlaneError};

/// Seconds for which an inbound state that was replaced still takes packets.
const LINGER: u64 = 5;

/// Outbound sequence numbers left out when a state is deleted and added: more than are sent between
/// reading the last number and the switch, and fewer than a replay window spans.
const SKIP: u32 = 1024;

impl KernelPlane {
    pub(super) fn move_all(&mut self, moves: &[ChildMove]) -> Result<MoveReport, PlaneError> {
        let (start, sent) = (Instant::now(), self.xfrm.sent());
        for ChildMove { id, path, .. } in moves {
            if !self.children.contains_key(id) {
                return Err(PlaneError::UnknownChild(*id));
            }
            if path.local.is_ipv4() != path.remote.is_ipv4() {
                return Err(PlaneError::Unsupported(format!("{path} mixes IPv4 and IPv6")));
            }
        }
        let mut undo: Vec<(ChildId, Place)> = Vec::new();
        for &ChildMove { id, path, encap } in moves {
            let Some(from) = self.place(id) else { continue };
            undo.push((id, from));
            if let Err(error) = self.relocate(id, Place { path, encap }) {
                for (id, place) in undo.into_iter().rev() {
                    if let Err(error) = self.relocate(id, place) {
                        tracing::error!(%error, ?id, "can't undo a move");
                    }
                }
                return Err(error);
            }
        }
        Ok(MoveReport { requests: self.xfrm.sent().wrapping_sub(sent), took: start.elapsed() })
    }

    fn place(&self, id: ChildId) -> Option<Place> {
        self.children.get(&id).map(|child| Place::of(&child.sa))
    }

    /// Takes one CHILD_SA to `to`. After an error it is where [`KernelPlane::place`] says.
    fn relocate(&mut self, id: ChildId, to: Place) -> Result<(), PlaneError> {
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
        let (old_in, new_in) = (from.key(&sa, Side::In), to.key(&sa, Side::In));
        let (old_out, new_out) = (from.key(&sa, Side::Out), to.key(&sa, Side::Out));
        let (window, used_in) = self.snapshot(old_in)?;
        let (sent, used_out) = self.snapshot(old_out)?;
        let began = Each { inbound: self.began(old_in), outbound: self.began(old_out) };
        let spent = Each {
            inbound: began.inbound.after(Side::In, used_in, &window),
            outbound: began.outbound.after(Side::Out, used_out, &sent),
        };
        let same_in = old_in == new_in;

        // What the peer sends to our new address is welcome before we send from it.
        if !same_in {
            self.end_lingering(&sa, to)?;
            self.put_state(&sa, Side::In, to, &window, spent.inbound)?;
            self.enter(&sa, Side::In, to, spent.inbound);
        }
        let switched = self.switch(&sa, &flows, from, to, spent);
        let kept = match switched {
            Ok(kept) => kept,
            Err(error) => {
                if !same_in {
                    let _ = self.delete_state(new_in);
                    self.ledger.lock().close(&new_in, Usage::default());
                }
                return Err(error);
            }
        };

        // From here on it is at the new place, whatever else fails.
        if let Some(child) = self.children.get_mut(&id) {
            (child.sa.path, child.sa.encap) = (to.path, to.encap);
        }
        let outbound = self.settle(&sa, Side::Out, to, kept, used_out, (began, spent));
        if old_out != new_out {
            self.ledger.lock().close(&old_out, Usage::default());
        }
        self.enter(&sa, Side::Out, to, outbound);
        if same_in {
            let inbound = self.settle(&sa, Side::In, to, kept, used_in, (began, spent));
            self.enter(&sa, Side::In, to, inbound);
            return Ok(());
        }
        self.linger(&sa, from, used_in);
        Ok(())
    }

    /// Puts counters and limits in one direction right after a move; what the state began after.
    fn settle(
        &mut self,
        sa: &ChildSa,
        side: Side,
        at: Place,
        kept: Kept,
        used: Usage,
        (began, spent): (Each, Each),
    ) -> Spent {
        let (began, spent) = (began.of(side), spent.of(side));
        if kept == Kept::All {
            return began;
        }
        let taken_along = self.carry(sa, side, at, used);
        if kept == Kept::Nothing {
            return spent;
        }
        if taken_along {
            return began;
        }
        if state::limits(sa, began, 0) != state::limits(sa, spent, 0)
            && let Err(error) = self.update_state(sa, side, at, spent, 0)
        {
            // No reason to undo the move: only the successor comes later.
            tracing::warn!(%error, id = ?sa.id, "the limits of a CHILD_SA begin anew");
        }
        spent
    }

    /// What was used up before the state `key` was made.
    fn began(&self, key: Key) -> Spent {
        self.ledger.lock().get(&key).map(|entry| entry.began).unwrap_or_default()
    }

    /// Takes the outbound state, the policies, and the inbound state if its key stays, to `to`.
    fn switch(
        &mut self,
        sa: &ChildSa,
        flows: &[Flow],
        from: Place,
        to: Place,
        spent: Each,
    ) -> Result<Kept, PlaneError> {
        let same_addresses = from.addresses(Side::Out) == to.addresses(Side::Out);
        if same_addresses && from.encap && to.encap {
            let [inbound, outbound] =
                [Side::In, Side::Out].map(|side| self.began(from.key(sa, side)));
            self.update_state(sa, Side::In, to, inbound, 0)?;
            return self
                .update_state(sa, Side::Out, to, outbound, 0)
                .inspect_err(|_| drop(self.update_state(sa, Side::In, from, inbound, 0)))
                .map(|()| Kept::All);
        }
        let mine: Vec<Flow> =
            flows.iter().filter(|flow| self.owners.current(flow) == Some(sa.id)).copied().collect();
        let alone = self.children.values().filter(|child| child.sa.reqid == sa.reqid).count() == 1;
        let encap_ends = from.encap && !to.encap;
        if let Some((first, rest)) = mine.split_first()
            && self.method == Method::Migrate
            && alone
            && !encap_ends
        {
            match self.migrate(sa, first, from, to) {
                Ok(()) => {
                    self.after_migrate(sa, rest, from, to, spent)?;
                    return Ok(Kept::Limits);
                }
                // Nothing has changed. ENODATA: a state without SPI, made by a packet that found no
                // state, is in the way.
                Err(error) => tracing::debug!(%error, "deleting and adding instead"),
            }
        }
        self.replace(sa, &mine, from, to, spent).map(|()| Kept::Nothing)
    }

    fn migrate(
        &mut self,
        sa: &ChildSa,
        flow: &Flow,
        from: Place,
        to: Place,
    ) -> Result<(), PlaneError> {
        let mut steps = vec![Step::new(Side::Out, from, to)];
        if from.key(sa, Side::In) == to.key(sa, Side::In) {
            steps.push(Step::new(Side::In, from, to));
        }
        let encapsulation = to.encapsulation(Side::Out);
        self.xfrm
            .request("migrating a state", migrate::request(flow, sa.reqid, &steps, encapsulation))
    }

    /// What MIGRATE leaves to do: the inbound ports and the other policies.
    fn after_migrate(
        &mut self,
        sa: &ChildSa,
        rest: &[Flow],
        from: Place,
        to: Place,
        spent: Each,
    ) -> Result<(), PlaneError> {
        let mut finish = || -> Result<(), PlaneError> {
            self.put_policies(sa, rest, to)?;
            // One encapsulation is all that a request holds, and it was written for packets out.
            let same_in = from.key(sa, Side::In) == to.key(sa, Side::In);
            if same_in && to.encap && to.path.local.port() != to.path.remote.port() {
                let began = self.began(from.key(sa, Side::In));
                self.update_state(sa, Side::In, to, began, 0)?;
            }
            Ok(())
        };
        finish().inspect_err(|_| {
            let mine: Vec<Flow> = self.flows_of(sa.id);
            let undone = self.replace(sa, &mine, to, from, spent);
            if let Err(error) = undone {
                tracing::error!(%error, id = ?sa.id, "can't undo a migration");
            }
        })
    }

    fn flows_of(&self, id: ChildId) -> Vec<Flow> {
        let flows = self.children.get(&id).map(|child| child.flows.as_slice()).unwrap_or_default();
        flows.iter().filter(|flow| self.owners.current(flow) == Some(id)).copied().collect()
    }

    /// Deletes and adds what MIGRATE would have moved.
    fn replace(
        &mut self,
        sa: &ChildSa,
        mine: &[Flow],
        from: Place,
        to: Place,
        spent: Each,
    ) -> Result<(), PlaneError> {
        let same_in = from.key(sa, Side::In) == to.key(sa, Side::In);
        if same_in {
            self.swap(sa, Side::In, from, to, spent)?;
        }
        let swapped = if from.key(sa, Side::Out) == to.key(sa, Side::Out) {
            // A second state with this key is refused, so there is a moment without any.
            self.swap(sa, Side::Out, from, to, spent).and_then(|()| {
                self.put_policies(sa, mine, to).inspect_err(|_| {
                    let _ = self.swap(sa, Side::Out, to, from, spent);
                    let _ = self.put_policies(sa, mine, from);
                })
            })
        } else {
            self.overlap(sa, mine, from, to, spent)
        };
        swapped.inspect_err(|_| {
            if same_in {
                let _ = self.swap(sa, Side::In, to, from, spent);
            }
        })
    }

    /// Deletes a state and adds it at another place under the same key.
    fn swap(
        &mut self,
        sa: &ChildSa,
        side: Side,
        from: Place,
        to: Place,
        spent: Each,
    ) -> Result<(), PlaneError> {
        let (key, spent) = (from.key(sa, side), spent.of(side));
        let skip = if side == Side::Out { SKIP } else { 0 };
        let replay = skipped(self.snapshot(key)?.0, skip, sa)?;
        self.delete_state(key)?;
        self.put_state(sa, side, to, &replay, spent).inspect_err(|_| {
            let _ = self.put_state(sa, side, from, &replay, spent);
        })
    }

    /// Adds the outbound state at the new place, points the policies to it and deletes the old one.
    fn overlap(
        &mut self,
        sa: &ChildSa,
        mine: &[Flow],
        from: Place,
        to: Place,
        spent: Each,
    ) -> Result<(), PlaneError> {
        let (old, new) = (from.key(sa, Side::Out), to.key(sa, Side::Out));
        let replay = skipped(self.snapshot(old)?.0, SKIP, sa)?;
        self.put_state(sa, Side::Out, to, &replay, spent.outbound)?;
        if let Err(error) = self.put_policies(sa, mine, to) {
            let _ = self.put_policies(sa, mine, from);
            let _ = self.delete_state(new);
            return Err(error);
        }
        // Nothing uses it any more, so this is no reason to undo the move.
        if let Err(error) = self.delete_state(old) {
            tracing::warn!(%error, id = ?sa.id, "an old outbound state stays");
        }
        Ok(())
    }

    fn put_policies(
        &mut self,
        sa: &ChildSa,
        flows: &[Flow],
        place: Place,
    ) -> Result<(), PlaneError> {
        for flow in flows {
            let request = policy::put(flow, Direction::Out, sa.reqid, place);
            self.xfrm.request("updating a policy", request)?;
        }
        Ok(())
    }

    /// Makes room for an inbound state where an earlier move has left one behind.
    fn end_lingering(&mut self, sa: &ChildSa, at: Place) -> Result<(), PlaneError> {
        let key = at.key(sa, Side::In);
        let ours = |entry: &super::ledger::Entry| entry.id == sa.id && entry.lingering;
        if self.ledger.lock().get(&key).filter(ours).is_none() {
            return Ok(());
        }
        let usage = self.snapshot(key).map(|(_, usage)| usage).unwrap_or_default();
        self.delete_state(key)?;
        self.ledger.lock().close(&key, usage);
        Ok(())
    }

    /// Has the kernel remove the old inbound state after [`LINGER`] seconds.
    fn linger(&mut self, sa: &ChildSa, at: Place, usage: Usage) {
        let key = at.key(sa, Side::In);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let lifetime = now.saturating_sub(usage.added).saturating_add(LINGER);
        self.ledger.lock().linger(&key);
        let began = self.began(key);
        if let Err(error) = self.update_state(sa, Side::In, at, began, lifetime) {
            tracing::debug!(%error, "the old inbound state goes at once");
            let _ = self.delete_state(key);
            self.ledger.lock().close(&key, usage);
        }
    }

    /// Adds the traffic of a replaced state to the count, unless the kernel took the count along;
    /// whether it did.
    fn carry(&mut self, sa: &ChildSa, side: Side, at: Place, before: Usage) -> bool {
        let Ok((_, after)) = self.snapshot(at.key(sa, side)) else { return false };
        let taken_along = after.packets >= before.packets && after.octets >= before.octets;
        if !taken_along {
            self.ledger.lock().carry(sa.id, side, before);
        }
        taken_along
    }
}

/// What the kernel's states have of those before a move.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kept {
    /// they are the same, counters and limits included
    All,
    /// MIGRATE has given them the old limits, but not always the old counts
    Limits,
    /// they were added anew, with limits of their own
    Nothing,
}

/// What was used up in each direction.
#[derive(Clone, Copy)]
struct Each {
    inbound: Spent,
    outbound: Spent,
}

impl Each {
    fn of(self, side: Side) -> Spent {
        match side {
            Side::In => self.inbound,
            Side::Out => self.outbound,
        }
    }
}

fn skipped(replay: Replay, count: u32, sa: &ChildSa) -> Result<Replay, PlaneError> {
    replay.skip(count, sa.esn).ok_or_else(|| {
        PlaneError::Unsupported("the sequence numbers of this CHILD_SA are used up".into())
    })
}
