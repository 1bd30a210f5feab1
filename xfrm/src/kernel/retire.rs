//! CHILD_SAs that are about to go: another one of the same reqid sends instead, and they still receive.

use bewick_ike::{ChildId, ChildSa};

use super::{
    KernelPlane,
    policy::{self, Flow, directions},
    state::{Place, Side},
};
use crate::plane::PlaneError;

impl KernelPlane {
    /// Takes the outbound state of `id` away if another CHILD_SA can send all of its traffic: of two outbound
    /// states of one reqid the kernel takes the newer one, which may be the one that goes.
    pub(super) fn retire_now(&mut self, id: ChildId) -> Result<(), PlaneError> {
        let Some(child) = self.children.get_mut(&id).filter(|child| !child.retired) else {
            return Ok(());
        };
        child.retired = true;
        // A copy, as what follows needs both it and all of `self`; its keys are zeroed on drop.
        let (sa, flows, waits) = (child.sa.clone(), child.flows.clone(), child.waits);
        let result = self.hand_on(&sa, &flows, waits);
        if let (Ok(false), Some(child)) = (&result, self.children.get_mut(&id)) {
            child.retired = false;
        }
        result.map(drop)
    }

    /// The same of one that is marked; false if nobody else can send.
    fn hand_on(&mut self, sa: &ChildSa, flows: &[Flow], waits: bool) -> Result<bool, PlaneError> {
        self.release_heirs(sa.reqid)?;
        let sends = |other: &ChildId| {
            let child = self.children.get(other);
            child.is_some_and(|child| child.sa.reqid == sa.reqid && !child.waits && !child.retired)
        };
        if !flows.iter().all(|flow| self.owners.of(flow).iter().any(sends)) {
            return Ok(false);
        }
        for flow in flows {
            self.owners.remove(flow, sa.id);
            let heir = self.owners.current(flow).and_then(|heir| self.children.get(&heir));
            let Some(heir) = heir.map(|heir| heir.sa.clone()) else {
                continue;
            };
            for &direction in directions(heir.mode) {
                let request = policy::of_child(self.tag, flow, direction, &heir);
                self.xfrm.request("handing a policy on", request)?;
            }
        }
        // One that waits has no outbound state.
        if !waits {
            let key = Place::of(sa).key(sa, Side::Out);
            let (_, used) = self.snapshot(key)?;
            self.delete_state(key)?;
            self.ledger.lock().close(&key, used);
        }
        Ok(true)
    }
}
