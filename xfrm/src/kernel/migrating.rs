//! What the kernel does for a move where it can migrate states, and what that leaves to do.

use bewick_ike::ChildSa;

use super::{
    KernelPlane, Method,
    message::Request,
    migrate::{self, Step},
    moves::moved,
    policy::Flow,
    state::{self, Place, Replay, Side, Usage},
};
use crate::plane::PlaneError;

impl KernelPlane {
    /// Has the ledger follow a state that the kernel has taken to another place, with its limits. What it
    /// had carried went along, or, if the kernel may not do so, `before` tells what that was.
    pub(super) fn follow(
        &mut self,
        sa: &ChildSa,
        side: Side,
        from: Place,
        to: Place,
        before: Option<(Replay, Usage)>,
    ) {
        let (old, new) = (from.key(sa, side), to.key(sa, side));
        let mut began = self.began(old);
        if let Some((replay, used)) = before
            && !self.carry(sa, side, to, used)
        {
            let spent = began.after(side, used, &replay);
            if state::limits(sa, began, 0) != state::limits(sa, spent, 0)
                && let Err(error) = self.update_state(sa, side, to, spent, 0)
            {
                // No reason to undo the move: only the successor comes later.
                tracing::warn!(%error, id = ?sa.id, "the limits of a CHILD_SA begin anew");
            }
            began = spent;
        }
        if old != new {
            self.ledger.lock().close(&old, Usage::default());
        }
        self.enter(sa, side, to, began);
    }

    /// Whether the kernel can take the states of `sa` along by itself, with the policies `mine`. A network card
    /// that does ESP it leaves behind.
    pub(super) fn can_migrate(&self, sa: &ChildSa, mine: &[Flow], from: Place, to: Place) -> bool {
        let can = match self.method {
            Method::MigrateState => true,
            // What an XFRM interface sends between the kernel's copy and the switch would bear numbers that
            // come again.
            Method::Migrate => {
                !mine.is_empty()
                    && self.is_alone(sa.reqid)
                    && (to.encap || !from.encap)
                    && sa.carriage.if_id.is_none()
            }
            Method::DeleteAdd => false,
        };
        can && !state::offloads(sa, to)
    }

    /// The kernel does not migrate the states of a CHILD_SA.
    pub(super) fn note_refusal(&mut self, error: &PlaneError) {
        self.refused += 1;
        tracing::debug!(%error, "deleting and adding instead");
    }

    /// Takes all states that move to `to`, one by one, and the policies `mine` right after them, which matters
    /// where packets can't be held back. If the kernel refuses that, nothing has changed; the outer error is
    /// that it can't be undone.
    pub(super) fn migrate_states(
        &mut self,
        sa: &ChildSa,
        mine: &[Flow],
        from: Place,
        to: Place,
    ) -> Result<Result<(), PlaneError>, PlaneError> {
        let operation = "migrating a state";
        let sides = moved(sa, from, to);
        let mut requests: Vec<Request> =
            sides.iter().map(|side| migrate::state(sa, *side, from, to)).collect();
        requests.extend(self.policies(sa, mine, to));
        let results = self.xfrm.batch(operation, requests, |_, _, _| {});
        let done: Vec<Side> =
            sides.into_iter().zip(&results).filter(|one| one.1.is_ok()).map(|one| one.0).collect();
        let result = results.into_iter().collect::<Result<Vec<()>, PlaneError>>().map(drop);
        if result.is_err() {
            let mut undone = self.put_policies(sa, mine, from);
            for side in done {
                let back = self
                    .xfrm
                    .request(operation, migrate::state(sa, side, to, self.found(sa, side, from)));
                if back.is_err() {
                    self.follow(sa, side, from, to, None);
                }
                undone = undone.and(back);
            }
            undone?;
        }
        Ok(result)
    }

    /// `place`, with the address that the kernel has for the source of the state there.
    fn found(&self, sa: &ChildSa, side: Side, mut place: Place) -> Place {
        if side == Side::In
            && let Some(entry) = self.ledger.lock().get(&place.key(sa, side))
        {
            place.path.remote.set_ip(entry.source);
        }
        place
    }

    pub(super) fn migrate(
        &mut self,
        sa: &ChildSa,
        flow: &Flow,
        from: Place,
        to: Place,
    ) -> Result<(), PlaneError> {
        let request = self.migration(sa, flow, from, to);
        self.xfrm.request("migrating a state", request)
    }

    /// The request of [`KernelPlane::migrate`].
    pub(super) fn migration(&self, sa: &ChildSa, flow: &Flow, from: Place, to: Place) -> Request {
        let step = |side| Step::new(side, self.found(sa, side, from), to);
        let steps: Vec<Step> = moved(sa, from, to).into_iter().map(step).collect();
        migrate::request(flow, sa.reqid, &steps, to.encapsulation(Side::Out))
    }

    /// What moving states leaves to do: the inbound ports and the policies `rest`.
    pub(super) fn after_migrate(
        &mut self,
        sa: &ChildSa,
        rest: &[Flow],
        from: Place,
        to: Place,
    ) -> Result<(), PlaneError> {
        let mut finish = || -> Result<(), PlaneError> {
            self.put_policies(sa, rest, to)?;
            // One encapsulation is all that MIGRATE holds, and it was written for packets out.
            let same_in = from.key(sa, Side::In) == to.key(sa, Side::In);
            let migrated = same_in && from.encap != to.encap;
            let said = self.method == Method::MigrateState
                || to.path.local.port() == to.path.remote.port();
            if migrated && to.encap && !said {
                let began = self.began(to.key(sa, Side::In));
                self.update_state(sa, Side::In, to, began, 0)?;
            } else if same_in && !migrated {
                self.keep_inbound(sa, from, to)?;
            }
            Ok(())
        };
        finish().inspect_err(|_| {
            let mine: Vec<Flow> = self.flows_of(sa.id);
            // What sends goes first: without it nothing does.
            let mut undone = self.replace_outbound(sa, &mine, to, from);
            if from.key(sa, Side::In) == to.key(sa, Side::In) {
                undone = undone.and(self.keep_inbound(sa, to, from));
            }
            if let Err(error) = undone {
                tracing::error!(%error, id = ?sa.id, "can't undo a migration");
            }
        })
    }
}
