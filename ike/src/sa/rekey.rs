//! The successor of a CHILD_SA (RFC 7296 §1.3.3, §2.8, §2.9.2): what the peer's request to rekey gets,
//! and what follows once the data plane has the new SA. Both SAs work until the old one is deleted by
//! whoever asked.

use crate::{
    child::{ChildId, ChildMove, ChildSa},
    config::Role,
    event::{Action, ActionError, ActionId},
    path::Path,
    wire::{ExchangeType, Notify, NotifyType, Payload},
};

use super::{
    Cx, Sa, State,
    child::{self, Agreed, Child},
    live::HeldResponse,
    negotiate,
    task::{self, Crossed, Task},
};

/// Successors that are not deleted are not made without end.
const MOST_CHILDREN: usize = 8;

/// A new CHILD_SA that waits for the data plane.
pub(crate) struct Pending {
    pub(crate) action: ActionId,
    pub(crate) child: Child,
    pub(crate) then: Then,
}

/// What follows when the data plane has it.
pub(crate) enum Then {
    /// the peer asked: answer; it will delete the one that is replaced
    Respond(HeldResponse, ChildId),
    /// we asked: delete the one that it replaces
    Retire(ChildId),
}

impl Then {
    /// The CHILD_SA that has found its successor.
    pub(crate) fn old(&self) -> ChildId {
        match self {
            Then::Respond(_, old) | Then::Retire(old) => *old,
        }
    }
}

/// A CREATE_CHILD_SA request; gives the payloads of the response, or nothing if that has to wait.
pub(crate) fn on_request(
    sa: &mut Sa,
    cx: &mut Cx<'_>,
    path: Path,
    message_id: u32,
    payloads: &[Payload],
) -> Option<Vec<Payload>> {
    let refuse = |kind| Some(vec![Payload::Notify(Notify::new(kind, Vec::new()))]);
    let rekeyed = payloads.iter().find_map(|payload| match payload {
        Payload::Notify(n) if n.kind == NotifyType::REKEY_SA => Some(n),
        _ => None,
    });
    // A second CHILD_SA and a new IKE_SA are refused (RFC 7296 §1.3: NO_ADDITIONAL_SAS).
    let Some(rekeyed) = rekeyed else { return refuse(NotifyType::NO_ADDITIONAL_SAS) };
    let State::Live(live) = &sa.state else { return refuse(NotifyType::TEMPORARY_FAILURE) };
    // RFC 7296 §2.25: nothing new on an IKE_SA that is going.
    if !live.is_up() {
        return refuse(NotifyType::TEMPORARY_FAILURE);
    }
    let old = rekeyed
        .esp_spi()
        .and_then(|spi| live.children.iter().find(|child| child.spi_out == spi))
        .cloned();
    let Some(old) = old else {
        // RFC 7296 §2.25: the notify names the SPI that was not found.
        let mut notify = rekeyed.clone();
        notify.kind = NotifyType::CHILD_SA_NOT_FOUND;
        notify.data.clear();
        return Some(vec![Payload::Notify(notify)]);
    };
    // RFC 7296 §2.25.1: not one that we are about to delete.
    let many = live.children.len() + live.pending.len() >= MOST_CHILDREN;
    if many || old.replaced || old.superseded || live.tasks.is_deleting(old.spi_in) {
        return refuse(NotifyType::TEMPORARY_FAILURE);
    }
    match agree(sa, cx, &old, payloads) {
        Err(kind) => refuse(kind),
        Ok((new, response, nonces)) => {
            let info = Child::of(&new);
            tracing::info!(old = %old.spi_in, new = %new.spi_in, "the peer rekeys the CHILD_SA");
            let action = cx.shared.action(sa.id, Action::Install(Box::new(new)));
            let refused = Notify::new(NotifyType::TEMPORARY_FAILURE, Vec::new());
            let response = HeldResponse {
                path,
                message_id,
                payloads: response,
                without_child: vec![Payload::Notify(refused)],
            };
            if let State::Live(live) = &mut sa.state {
                let then = Then::Respond(response, old.id);
                live.pending.push(Pending { action, child: info, then });
                if let Some(ours) = live.tasks.rekey_of(old.id) {
                    ours.crossed = Some(nonces);
                }
            }
            None
        }
    }
}

fn agree(
    sa: &Sa,
    cx: &mut Cx<'_>,
    old: &Child,
    payloads: &[Payload],
) -> Result<(ChildSa, Vec<Payload>, Crossed), NotifyType> {
    let (mut offered, mut nonce, mut ts_i, mut ts_r) = (None, None, None, None);
    for payload in payloads {
        match payload {
            Payload::SecurityAssociation(p) => offered = offered.or(Some(p)),
            Payload::Nonce(n) => nonce = nonce.or(Some(n)),
            Payload::TsInitiator(ts) => ts_i = ts_i.or(Some(ts)),
            Payload::TsResponder(ts) => ts_r = ts_r.or(Some(ts)),
            _ => {}
        }
    }
    let (Some(offered), Some(nonce_i), Some(ts_i), Some(ts_r)) = (offered, nonce, ts_i, ts_r)
    else {
        return Err(NotifyType::INVALID_SYNTAX);
    };
    let config = sa
        .connection
        .and_then(|id| cx.shared.connection(id))
        .ok_or(NotifyType::TEMPORARY_FAILURE)?;
    let (proposal, mut answer, spi_out) = negotiate::select_esp(&config.esp_proposals, offered)
        .ok_or(NotifyType::NO_PROPOSAL_CHOSEN)?;
    // Whoever starts the exchange is "i" in it. RFC 7296 §2.9.2: not narrower than what is in use.
    let ts_remote = child::narrow(&old.ts_remote, ts_i);
    let ts_local = child::narrow(&old.ts_local, ts_r);
    let covers = |new: &[_], old: &[_]| child::is_within(old, new);
    if !covers(&ts_remote, &old.ts_remote) || !covers(&ts_local, &old.ts_local) {
        return Err(NotifyType::TS_UNACCEPTABLE);
    }
    let (id, spi_in) = (cx.shared.fresh_id(), cx.shared.draw_esp_spi());
    let nonce_r = cx.shared.random.array::<32>().to_vec();
    answer.spi = spi_in.to_be_bytes().to_vec();
    let agreed = Agreed {
        proposal,
        spi_in,
        spi_out,
        ts_local: ts_local.clone(),
        ts_remote: ts_remote.clone(),
        virtual_ips: old.virtual_ips.clone(),
    };
    let keys = sa.keys.as_ref().ok_or(NotifyType::TEMPORARY_FAILURE)?;
    let nonces = (nonce_i.as_slice(), nonce_r.as_slice());
    // RFC 4555 §3.3: the addresses are those in use, whatever path the request came on.
    let new = child::build(agreed, (id, Role::Responder), keys, nonces, old.path, old.encap);
    let mut new = new.map_err(|_| NotifyType::TEMPORARY_FAILURE)?;
    new.reqid = old.reqid;
    let response = vec![
        Payload::SecurityAssociation(vec![answer]),
        Payload::Nonce(nonce_r.clone()),
        Payload::TsInitiator(ts_remote),
        Payload::TsResponder(ts_local),
    ];
    Ok((new, response, Crossed { nonce_i: nonce_i.clone(), nonce_r }))
}

/// The data plane has answered to the installation of a successor; false if that was not asked.
pub(crate) fn on_answer(
    sa: &mut Sa,
    cx: &mut Cx<'_>,
    id: ActionId,
    result: &Result<(), ActionError>,
) -> bool {
    let State::Live(live) = &mut sa.state else { return false };
    let Some(at) = live.pending.iter().position(|pending| pending.action == id) else {
        return false;
    };
    let Pending { mut child, then, .. } = live.pending.remove(at);
    let spi_in = child.spi_in;
    if result.is_ok() {
        // The tunnel may have moved while the data plane was at work.
        if let Some((path, encap)) =
            live.place().filter(|place| *place != (child.path, child.encap))
        {
            let change = ChildMove { id: child.id, path, encap };
            let action = cx.shared.action(sa.id, Action::Move(vec![change]));
            live.moving.push((action, vec![change]));
        }
        child.rekey_at = task::rekey_time(cx, live);
        live.children.push(child);
    } else {
        cx.shared.esp_spis.remove(&spi_in.0);
    }
    match then {
        Then::Respond(held, old) => {
            if result.is_ok() {
                live.children.iter_mut().filter(|c| c.id == old).for_each(|c| c.superseded = true);
            }
            let payloads = if result.is_ok() { held.payloads } else { held.without_child };
            let exchange = ExchangeType::CREATE_CHILD_SA;
            let sent = sa.respond(cx, held.path, exchange, held.message_id, &payloads);
            if let Err(reason) = sent {
                sa.close(cx, reason);
                return true;
            }
        }
        // A successor that the data plane refused exists at the peer: that one goes, the old stays.
        Then::Retire(old) => {
            let mut gone = vec![spi_in];
            if result.is_ok() {
                gone.clear();
                for child in live.children.iter_mut().filter(|c| c.id == old) {
                    child.replaced = true;
                    gone.push(child.spi_in);
                }
            }
            if !gone.is_empty() {
                live.tasks.push(Task::Delete(gone));
            }
        }
    }
    task::arm(sa, cx);
    task::proceed(sa, cx);
    true
}
