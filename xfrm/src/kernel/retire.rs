//! CHILD_SAs that are about to go: another one of the same reqid sends instead, and they still receive.

use bewick_ike::ChildId;

use super::{
    KernelPlane,
    policy::{self, directions},
    state::{Place, Side},
};
use crate::plane::PlaneError;

impl KernelPlane {
    /// Takes the outbound state of `id` away if another CHILD_SA can send all of its traffic: of two outbound
    /// states of one reqid the kernel takes the newer one, which may be the one that goes.
    pub(super) fn retire_now(&mut self, id: ChildId) -> Result<(), PlaneError> {
        let Some(child) = self.children.get(&id).filter(|child| !child.retired) else {
            return Ok(());
        };
        // A copy, as what follows needs both it and all of `self`; its keys are zeroed on drop.
        let (sa, flows, waits) = (child.sa.clone(), child.flows.clone(), child.waits);
        self.release_after(id)?;
        let sends = |other: &ChildId| {
            let child = self.children.get(other).filter(|_| *other != id);
            child.is_some_and(|child| child.sa.reqid == sa.reqid && !child.waits && !child.retired)
        };
        if flows.is_empty() || !flows.iter().all(|flow| self.owners.of(flow).iter().any(sends)) {
            return Ok(());
        }
        for flow in &flows {
            self.owners.remove(flow, id);
            let heir = self.owners.current(flow).and_then(|heir| self.children.get(&heir));
            let Some(heir) = heir.map(|heir| heir.sa.clone()) else {
                continue;
            };
            for &direction in directions(heir.mode) {
                let request = policy::of_child(self.tag, flow, direction, &heir);
                self.xfrm.request("handing a policy on", request)?;
            }
        }
        let key = Place::of(&sa).key(&sa, Side::Out);
        let used = if waits { None } else { Some(self.snapshot(key)?.1) };
        if let Some(child) = self.children.get_mut(&id) {
            child.retired = true;
        }
        // One that waits has none.
        let Some(used) = used else { return Ok(()) };
        self.delete_state(key)?;
        self.ledger.lock().close(&key, used);
        Ok(())
    }

    /// Lets those send that wait for `id`.
    fn release_after(&mut self, id: ChildId) -> Result<(), PlaneError> {
        let reqid = self.children.get(&id).map(|child| child.sa.reqid);
        let newer = self.children.iter().filter(|(other, _)| **other > id);
        let heirs = newer.filter(|(_, child)| Some(child.sa.reqid) == reqid);
        let heirs: Vec<ChildId> = heirs.map(|(id, _)| *id).collect();
        heirs.into_iter().try_for_each(|id| self.release(id))
    }
}
