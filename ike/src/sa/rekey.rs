//! The peer rekeys a CHILD_SA (RFC 7296 §1.3.3, §2.8, §2.9.2): both SAs work until it deletes the old
//! one.

use crate::{
    child::ChildSa,
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
};

/// A rekey that waits for the data plane.
pub(crate) struct Rekey {
    pub(crate) action: ActionId,
    pub(crate) child: Child,
    pub(crate) response: HeldResponse,
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
    match agree(sa, cx, &old, payloads) {
        Err(kind) => refuse(kind),
        Ok((new, response)) => {
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
                live.rekeying = Some(Rekey { action, child: info, response });
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
) -> Result<(ChildSa, Vec<Payload>), NotifyType> {
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
        Payload::Nonce(nonce_r),
        Payload::TsInitiator(ts_remote),
        Payload::TsResponder(ts_local),
    ];
    Ok((new, response))
}

/// The data plane has answered to the installation of the new CHILD_SA; false if that was not asked.
pub(crate) fn on_answer(
    sa: &mut Sa,
    cx: &mut Cx<'_>,
    id: ActionId,
    result: &Result<(), ActionError>,
) -> bool {
    let State::Live(live) = &mut sa.state else { return false };
    let Some(rekey) = live.rekeying.take_if(|rekey| rekey.action == id) else { return false };
    let payloads = if result.is_ok() {
        // The tunnel may have moved while the data plane was at work.
        let place = live.place();
        let child = rekey.child;
        if let Some(change) =
            place.filter(|(path, encap)| (child.path, child.encap) != (*path, *encap))
        {
            let change = crate::child::ChildMove { id: child.id, path: change.0, encap: change.1 };
            let action = cx.shared.action(sa.id, Action::Move(vec![change]));
            live.moving.push((action, vec![change]));
        }
        live.children.push(child);
        rekey.response.payloads
    } else {
        cx.shared.esp_spis.remove(&rekey.child.spi_in.0);
        rekey.response.without_child
    };
    let (path, message_id) = (rekey.response.path, rekey.response.message_id);
    let sent = sa.respond(cx, path, ExchangeType::CREATE_CHILD_SA, message_id, &payloads);
    if let Err(reason) = sent {
        sa.close(cx, reason);
    }
    true
}
