//! Moving several CHILD_SAs at once: what each of them needs goes to the kernel together.
//!
//! That is so for the usual case: MIGRATE_STATE or MIGRATE takes the outbound state along, and there is
//! nothing at the new place that an earlier move has left. The others take their turn one by one, as do all where
//! something goes wrong. The kernel takes the requests of a datagram in their order, whatever becomes
//! of those before: what is welcome only if another one has succeeded waits for that one's answer.

use bewick_ike::{ChildMove, ChildSa};
use netlink_packet_xfrm::constants::XFRM_MSG_NEWSA;

use super::{
    KernelPlane, Method,
    message::Request,
    migrate,
    moves::{Second, moved},
    policy::Flow,
    state::{self, Place, Replay, Side, Spent, Usage},
};
use crate::plane::PlaneError;

/// One that moves in the usual way.
struct Usual {
    sa: ChildSa,
    mine: Vec<Flow>,
    from: Place,
    to: Place,
    /// for the inbound state at another address of ours: window, what the old one has carried, and
    /// what is used up
    second: Option<(Replay, Usage, Spent)>,
}

impl KernelPlane {
    /// Takes all of `group` to their new places. After an error some are there, and some are not.
    pub(super) fn relocate_together(&mut self, group: &[ChildMove]) -> Result<(), PlaneError> {
        let usual: Vec<Usual> = group.iter().filter_map(|one| self.usual(one)).collect();
        let mut result = Ok(());
        if !usual.is_empty() && self.open_seconds(&usual)? {
            result = self.migrate_together(usual);
        }
        for &ChildMove { id, path, encap } in group {
            // Nothing is left to do for those that are there already.
            result = result.and_then(|()| self.relocate(id, Place { path, encap }));
        }
        result
    }

    /// What there is to do for a CHILD_SA that moves in the usual way.
    fn usual(&mut self, one: &ChildMove) -> Option<Usual> {
        let child = self.children.get(&one.id).filter(|child| !child.waits)?;
        let sa = child.sa.clone();
        let (from, to) = (Place::of(&sa), Place { path: one.path, encap: one.encap });
        let mine = self.flows_of(sa.id);
        let elsewhere = from.addresses(Side::Out) != to.addresses(Side::Out);
        let migrates = self.keeps_counts
            && self.can_migrate(&sa, &mine, from, to)
            && (self.method == Method::MigrateState || from.encap == to.encap);
        let held = self.held.as_ref().is_some_and(|held| mine.iter().all(|one| held.holds(one)));
        let (key, there) = (from.key(&sa, Side::In), to.key(&sa, Side::In));
        if !(migrates && held && elsewhere) || moved(&sa, from, to) != [Side::Out] {
            return None;
        }
        let second = if key == there {
            if from.encapsulation(Side::In) != to.encapsulation(Side::In) {
                return None;
            }
            None
        } else {
            if self.ledger.lock().get(&there).is_some() {
                return None;
            }
            let (window, used) = self.held.as_mut()?.take(key)?;
            let spent = self.began(key).after(Side::In, used, &window);
            Some((window, used, spent))
        };
        Some(Usual { sa, mine, from, to, second })
    }

    /// Has inbound states at the new places; if one is refused, there is none.
    fn open_seconds(&mut self, usual: &[Usual]) -> Result<bool, PlaneError> {
        let opening: Vec<(&Usual, Spent)> =
            usual.iter().filter_map(|one| Some((one, one.second.as_ref()?.2))).collect();
        let request = |one: &Usual| -> Option<Result<Request, PlaneError>> {
            let (window, _, spent) = one.second.as_ref()?;
            let (mark, limits) = (self.config.mark, state::limits(&one.sa, *spent, 0));
            Some(state::put(XFRM_MSG_NEWSA, &one.sa, Side::In, one.to, window, mark, limits))
        };
        let requests = opening.iter().filter_map(|(one, _)| request(one));
        let requests = requests.collect::<Result<Vec<Request>, PlaneError>>()?;
        let results = self.xfrm.batch("adding the inbound states", requests, |_, _, _| {});
        let refused = results.iter().find_map(|result| result.as_ref().err());
        if let Some(error) = refused {
            tracing::debug!(%error, "moving one after the other");
        }
        let all = refused.is_none();
        for ((one, spent), _) in opening.iter().zip(&results).filter(|(_, added)| added.is_ok()) {
            match all {
                true => self.enter(&one.sa, Side::In, one.to, *spent),
                false => drop(self.delete_state(one.to.key(&one.sa, Side::In))),
            }
        }
        Ok(all)
    }

    /// Migrates the outbound states. The first that can't be moved at all is the error; the others go on.
    fn migrate_together(&mut self, usual: Vec<Usual>) -> Result<(), PlaneError> {
        let by_policy = self.method == Method::Migrate;
        let request = |one: &Usual| match one.mine.first().filter(|_| by_policy) {
            Some(flow) => self.migration(&one.sa, flow, one.from, one.to),
            None => migrate::state(&one.sa, Side::Out, one.from, one.to),
        };
        let requests = usual.iter().map(request).collect();
        let results = self.xfrm.batch("migrating a state", requests, |_, _, _| {});
        let mut all = Ok(());
        for (Usual { sa, mine, from, to, second }, result) in usual.into_iter().zip(results) {
            let used = second.map(|(_, used, _)| used);
            let moved = match result {
                Ok(()) => {
                    self.follow(&sa, Side::Out, from, to, None);
                    let rest = mine.get(usize::from(by_policy)..).unwrap_or_default();
                    self.after_migrate(&sa, rest, from, to)
                }
                Err(error) => {
                    self.note_refusal(&error);
                    self.replace(&sa, &mine, from, to)
                }
            };
            match (moved, used) {
                (Ok(()), used) => self.arrived(&sa, from, to, used),
                (Err(error), used) => {
                    if let Some(used) = used {
                        self.withdraw(&sa, to, Second { used, revived: None });
                    }
                    all = all.and(Err(error));
                }
            }
        }
        all
    }
}
