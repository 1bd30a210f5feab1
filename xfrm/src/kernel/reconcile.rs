//! What is in the kernel against what is to be there: at the start, after an error, and when events
//! were lost. What is ours is known by the mark of the states and the index of the policies; nothing
//! else is touched.

use std::collections::{BTreeMap, BTreeSet};

use bewick_ike::ChildId;

use super::{
    KernelPlane, gone,
    message::Request,
    policy::{self, Tag, directions},
    socket::Socket,
    state::{self, Key},
};
use crate::plane::{PlaneError, Reconciled};

impl KernelPlane {
    /// Has the kernel as it is to be after an operation that the kernel refused, and hands its result
    /// on.
    pub(super) fn after<T>(&mut self, result: Result<T, PlaneError>) -> Result<T, PlaneError> {
        if let Err(PlaneError::Kernel { .. } | PlaneError::Timeout(_)) = result
            && let Err(error) = self.reconcile_now()
        {
            tracing::warn!(%error, "what the kernel has left of a failed operation is not known");
        }
        result
    }

    pub(super) fn reconcile_now(&mut self) -> Result<Reconciled, PlaneError> {
        self.ledger.lock().settle();
        let states = self.xfrm.dump("listing states", state::dump(), state::found)?;
        let there: BTreeMap<Key, _> =
            states.iter().map(|one| (one.key, (one.mark, one.if_id))).collect();
        let ids: Vec<ChildId> = self.children.keys().copied().collect();
        let (mut wanted, mut incomplete) = (BTreeSet::new(), BTreeSet::new());
        for id in ids {
            let if_id = self.children.get(&id).and_then(|child| child.sa.carriage.if_id);
            let entries = self.ledger.lock().states_of(id);
            for (key, entry) in entries {
                match (there.get(&key), entry.left) {
                    (Some(found), _) if *found == (self.config.mark, if_id) => {
                        wanted.insert(key);
                    }
                    // It has ended as it was to, and the event that says so was lost.
                    (_, Some(left)) => self.ledger.lock().close(&key, left),
                    (_, None) => drop(incomplete.insert(id)),
                }
            }
        }
        let mut done = Reconciled { incomplete: incomplete.len(), ..Reconciled::default() };
        for one in states {
            let ours = self.config.mark != 0 && one.mark == self.config.mark;
            if ours && !wanted.contains(&one.key) {
                self.delete_state(one.key)?;
                done.removed += 1;
            }
        }
        self.reconcile_policies(&mut done)?;
        for id in incomplete {
            self.events.expire(id, true);
        }
        if done != Reconciled::default() {
            tracing::info!(
                removed = done.removed,
                restored = done.restored,
                incomplete = done.incomplete,
                "the kernel had not what it should"
            );
        }
        Ok(done)
    }

    fn reconcile_policies(&mut self, done: &mut Reconciled) -> Result<(), PlaneError> {
        let policies = self.xfrm.dump("listing policies", policy::dump(), policy::found)?;
        let mut all = Vec::new();
        for (flow, id) in self.owners.all() {
            let Some(child) = self.children.get(&id) else { continue };
            let put = |direction: &_| policy::of_child(self.tag, flow, *direction, &child.sa);
            all.extend(directions(child.sa.mode).iter().map(put));
        }
        let free = self.traps.all().filter(|(flow, _)| self.owners.current(flow).is_none());
        all.extend(free.map(|(flow, trap)| self.trap_policy(flow, trap)));
        let mut there = BTreeMap::<_, Vec<&policy::Found>>::new();
        for policy in &policies {
            there.entry(policy.place()).or_default().push(policy);
        }
        let (mut wanted, mut requests) = (BTreeSet::new(), Vec::new());
        for request in all {
            let Some(one) = request.parts().and_then(|(kind, body)| policy::found(kind, body))
            else {
                continue;
            };
            let mut same = there.get(&one.place()).into_iter().flatten();
            if !same.any(|policy| policy.does(&one)) {
                requests.push(request);
            }
            let (direction, if_id, selector) = one.place();
            wanted.insert((direction, if_id, selector.to_vec()));
        }
        done.restored = requests.len();
        self.xfrm.requests("restoring a policy", requests)?;
        let unwanted = |policy: &&policy::Found| {
            let (direction, if_id, selector) = policy.place();
            policy.is_ours(self.tag, &BTreeSet::new())
                && !wanted.contains(&(direction, if_id, selector.to_vec()))
        };
        let requests: Vec<Request> =
            policies.iter().filter(unwanted).map(policy::Found::delete).collect();
        done.removed += requests.len();
        for result in self.xfrm.batch("deleting an old policy", requests, |_, _, _| {}) {
            gone(result, libc::ENOENT)?;
        }
        Ok(())
    }
}

/// Removes what a plane with this mark has left in the kernel, which only one that was killed does.
/// Whether that was while it held packets back.
pub(super) fn remove_leftovers(xfrm: &mut Socket, mark: u32, tag: Tag) -> Result<bool, PlaneError> {
    if mark == 0 {
        return Ok(false);
    }
    let mut states = xfrm.dump("listing states", state::dump(), state::found)?;
    states.retain(|state| state.mark == mark);
    let reqids = states.iter().map(|state| state.reqid).collect();
    let mut policies = xfrm.dump("listing policies", policy::dump(), policy::found)?;
    policies.retain(|policy| policy.is_ours(tag, &reqids));
    if states.is_empty() && policies.is_empty() {
        return Ok(false);
    }
    let held = policies.iter().any(policy::Found::holds);
    tracing::info!(
        states = states.len(),
        policies = policies.len(),
        "removing what an earlier run has left in the kernel"
    );
    for policy in policies {
        gone(xfrm.request("deleting an old policy", policy.delete()), libc::ENOENT)?;
    }
    for found in states {
        gone(xfrm.request("deleting an old state", state::delete(found.key)), libc::ESRCH)?;
    }
    Ok(held)
}
