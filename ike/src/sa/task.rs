//! Exchanges about CHILD_SAs that we start: rekeying and deleting (RFC 7296 §1.3.3, §1.4.1, §2.8). They
//! queue for the window.

use std::{collections::VecDeque, time::Duration};

use crate::{
    child::{ChildId, ChildSa, EspSpi},
    config::Role,
    event::{Action, CloseReason, Event, Tag},
    time::Time,
    wire::{Delete, ExchangeType, Notify, NotifyType, Payload},
};

use super::{
    Cx, Sa, State, Timer,
    child::{self, Agreed, Child},
    live::Live,
    negotiate,
    rekey::{Pending, Then},
};

/// How long after a refusal that passes by itself the same is tried again (RFC 7296 §2.25).
const RETRY: Duration = Duration::from_secs(10);

/// The same after a refusal that does not look as if it would pass.
const RETRY_LATER: Duration = Duration::from_secs(120);

/// What waits for the window.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Task {
    /// make a successor of this CHILD_SA
    Rekey(ChildId),
    /// tell the peer that the SAs with these inbound SPIs are gone
    Delete(Vec<EspSpi>),
}

/// What is under way.
pub(crate) enum Running {
    Rekey(RekeyChild),
    Delete(Vec<EspSpi>),
}

/// Our CREATE_CHILD_SA request that rekeys a CHILD_SA.
pub(crate) struct RekeyChild {
    old: ChildId,
    spi_in: u32,
    nonce: Vec<u8>,
    /// the peer's request to rekey the same one, if the two have crossed (RFC 7296 §2.8.1)
    pub(crate) crossed: Option<Crossed>,
}

/// The nonces of the peer's exchange that crossed ours.
pub(crate) struct Crossed {
    pub(crate) nonce_i: Vec<u8>,
    pub(crate) nonce_r: Vec<u8>,
}

/// What an IKE_SA has to say about CHILD_SAs.
#[derive(Default)]
pub(crate) struct Tasks {
    queue: VecDeque<Task>,
    pub(crate) running: Option<Running>,
}

impl Tasks {
    pub(crate) fn push(&mut self, task: Task) {
        if !self.queue.contains(&task) {
            self.queue.push_back(task);
        }
    }

    /// Whether the peer has been told, or is to be told, that this SA goes.
    pub(crate) fn is_deleting(&self, spi: EspSpi) -> bool {
        let queued = self.queue.iter().any(|t| matches!(t, Task::Delete(s) if s.contains(&spi)));
        queued || matches!(&self.running, Some(Running::Delete(spis)) if spis.contains(&spi))
    }

    /// Our own rekey of `old`, if one is under way.
    pub(crate) fn rekey_of(&mut self, old: ChildId) -> Option<&mut RekeyChild> {
        match &mut self.running {
            Some(Running::Rekey(rekey)) if rekey.old == old => Some(rekey),
            _ => None,
        }
    }
}

/// Starts what waits, if the window is open.
pub(crate) fn proceed(sa: &mut Sa, cx: &mut Cx<'_>) {
    loop {
        let open = sa.outgoing.is_open();
        let State::Live(live) = &mut sa.state else { return };
        if !open || !live.is_up() || live.tasks.running.is_some() {
            return;
        }
        let Some(task) = live.tasks.queue.pop_front() else { return };
        let started = match task {
            Task::Rekey(id) => start_rekey(sa, cx, id),
            Task::Delete(spis) => start_delete(sa, cx, spis),
        };
        if let Err(reason) = started {
            sa.close(cx, reason);
            sa.forget(cx);
            return;
        }
    }
}

fn start_rekey(sa: &mut Sa, cx: &mut Cx<'_>, id: ChildId) -> Result<(), CloseReason> {
    let State::Live(live) = &mut sa.state else { return Ok(()) };
    // It may have been rekeyed meanwhile, by the peer or by an earlier request of ours, and the data
    // plane be still at work on the successor.
    let succeeded = live.pending.iter().any(|pending| pending.then.old() == id);
    let old = live.children.iter().find(|c| c.id == id && c.is_current() && !succeeded).cloned();
    let Some(old) = old else { return Ok(()) };
    let spi_in = cx.shared.draw_esp_spi();
    let nonce = cx.shared.random.array::<32>().to_vec();
    let Some(config) = cx.shared.connection(live.connection) else { return Ok(()) };
    let payloads = [
        Payload::Notify(Notify::about_child(NotifyType::REKEY_SA, old.spi_in)),
        Payload::SecurityAssociation(negotiate::offer_esp(&config.esp_proposals, spi_in)),
        Payload::Nonce(nonce.clone()),
        Payload::TsInitiator(old.ts_local.clone()),
        Payload::TsResponder(old.ts_remote.clone()),
    ];
    live.tasks.running = Some(Running::Rekey(RekeyChild { old: id, spi_in, nonce, crossed: None }));
    sa.request(cx, ExchangeType::CREATE_CHILD_SA, &payloads, Some(Tag::Child))
}

fn start_delete(sa: &mut Sa, cx: &mut Cx<'_>, spis: Vec<EspSpi>) -> Result<(), CloseReason> {
    let State::Live(live) = &mut sa.state else { return Ok(()) };
    let payload = Payload::Delete(Delete::Esp(spis.clone()));
    live.tasks.running = Some(Running::Delete(spis));
    sa.request(cx, ExchangeType::INFORMATIONAL, &[payload], Some(Tag::Child))
}

/// The response to what is under way.
pub(crate) fn on_response(sa: &mut Sa, cx: &mut Cx<'_>, payloads: &[Payload]) {
    let State::Live(live) = &mut sa.state else { return };
    match live.tasks.running.take() {
        None => {}
        // The old SA goes when the peer has said that it sends on it no more.
        Some(Running::Delete(spis)) => {
            for spi in spis {
                live.remove_child(&mut *cx.shared, sa.id, |child| child.spi_in == spi);
            }
        }
        Some(Running::Rekey(rekey)) => on_rekeyed(sa, cx, rekey, payloads),
    }
}

fn on_rekeyed(sa: &mut Sa, cx: &mut Cx<'_>, rekey: RekeyChild, payloads: &[Payload]) {
    let spi_in = EspSpi(rekey.spi_in);
    let refusal = payloads.iter().find_map(|payload| match payload {
        Payload::Notify(n) if n.kind.is_error() => Some(n.kind),
        _ => None,
    });
    if let Some(kind) = refusal {
        cx.shared.esp_spis.remove(&spi_in.0);
        on_refused(sa, cx, &rekey, kind);
        return;
    }
    match agree(sa, cx, &rekey, payloads) {
        // The peer has made an SA that we can't use: it is to go, and another try follows.
        Err(text) => {
            tracing::warn!(%text, "the rekey of the CHILD_SA failed");
            cx.shared.esp_spis.remove(&spi_in.0);
            let path = sa.path;
            cx.shared.event(Event::Refused { path, reason: CloseReason::Child(text.into()) });
            let State::Live(live) = &mut sa.state else { return };
            live.tasks.push(Task::Delete(vec![spi_in]));
            retry(sa, cx, rekey.old, RETRY_LATER);
        }
        Ok((new, nonce_r)) => {
            let State::Live(live) = &mut sa.state else { return };
            if rekey.loses(&nonce_r) {
                // RFC 7296 §2.8.1: the SA of the exchange with the lowest nonce is closed by whoever
                // made it. It was never installed here.
                tracing::info!(spi = %spi_in, "a rekey crossed the peer's and gives way");
                cx.shared.esp_spis.remove(&spi_in.0);
                live.tasks.push(Task::Delete(vec![spi_in]));
                return;
            }
            let info = Child::of(&new);
            let action = cx.shared.action(sa.id, Action::Install(Box::new(new)));
            live.pending.push(Pending { action, child: info, then: Then::Retire(rekey.old) });
        }
    }
}

impl RekeyChild {
    /// Whether our SA is the redundant one of two (RFC 7296 §2.8.1): the lowest of the four nonces is
    /// ours. Octet-wise, and a prefix is lower than what it begins.
    fn loses(&self, nonce_r: &[u8]) -> bool {
        let ours = self.nonce.as_slice().min(nonce_r);
        self.crossed
            .as_ref()
            .is_some_and(|theirs| ours < theirs.nonce_i.as_slice().min(&theirs.nonce_r))
    }
}

fn on_refused(sa: &mut Sa, cx: &mut Cx<'_>, rekey: &RekeyChild, kind: NotifyType) {
    tracing::info!(%kind, "the peer refuses to rekey the CHILD_SA");
    match kind {
        // RFC 7296 §2.25: the peer does not have it, so that it is of no use here either. But a peer that
        // asked for it may not have heard our answer yet: only the second time counts.
        NotifyType::CHILD_SA_NOT_FOUND => {
            let State::Live(live) = &mut sa.state else { return };
            let child = live.children.iter_mut().find(|child| child.id == rekey.old);
            if let Some(child) = child.filter(|child| !child.doubted) {
                child.doubted = true;
                retry(sa, cx, rekey.old, RETRY);
                return;
            }
            live.remove_child(&mut *cx.shared, sa.id, |child| child.id == rekey.old);
            if live.children.is_empty() && live.pending.is_empty() {
                let text = "the peer no longer has the CHILD_SA";
                live.verdict = Some(CloseReason::Child(text.into()));
                super::live::delete(sa, cx, Vec::new());
            }
        }
        NotifyType::TEMPORARY_FAILURE => retry(sa, cx, rekey.old, RETRY),
        _ => retry(sa, cx, rekey.old, RETRY_LATER),
    }
}

fn retry(sa: &mut Sa, cx: &mut Cx<'_>, id: ChildId, after: Duration) {
    let State::Live(live) = &mut sa.state else { return };
    for child in live.children.iter_mut().filter(|c| c.id == id) {
        child.rekey_at = Some(cx.now + after);
    }
    arm(sa, cx);
}

fn agree(
    sa: &Sa,
    cx: &mut Cx<'_>,
    rekey: &RekeyChild,
    payloads: &[Payload],
) -> Result<(ChildSa, Vec<u8>), &'static str> {
    let (mut answer, mut nonce, mut ts_i, mut ts_r) = (None, None, None, None);
    for payload in payloads {
        match payload {
            Payload::SecurityAssociation(p) => answer = answer.or(Some(p)),
            Payload::Nonce(n) => nonce = nonce.or(Some(n)),
            Payload::TsInitiator(ts) => ts_i = ts_i.or(Some(ts)),
            Payload::TsResponder(ts) => ts_r = ts_r.or(Some(ts)),
            _ => {}
        }
    }
    let (Some(answer), Some(nonce_r), Some(ts_i), Some(ts_r)) = (answer, nonce, ts_i, ts_r) else {
        return Err("the peer's answer to the rekey is incomplete");
    };
    let State::Live(live) = &sa.state else { return Err("the IKE_SA is gone") };
    let old = live.children.iter().find(|c| c.id == rekey.old).ok_or("the CHILD_SA is gone")?;
    let id = cx.shared.fresh_id();
    let config = cx.shared.connection(live.connection).ok_or("no such connection")?;
    let (proposal, spi_out) = negotiate::accept_esp(&config.esp_proposals, answer)
        .ok_or("the peer chose a proposal that was not offered")?;
    if !child::is_within(ts_i, &old.ts_local) || !child::is_within(ts_r, &old.ts_remote) {
        return Err("the peer's traffic selectors are wider than what was offered");
    }
    let agreed = Agreed {
        proposal,
        spi_in: rekey.spi_in,
        spi_out,
        ts_local: ts_i.clone(),
        ts_remote: ts_r.clone(),
        virtual_ips: old.virtual_ips.clone(),
    };
    let keys = sa.keys.as_ref().ok_or("no keys")?;
    let nonces = (rekey.nonce.as_slice(), nonce_r.as_slice());
    // RFC 4555 §3.3: the addresses are those in use.
    let (path, encap) = live.place().ok_or("the CHILD_SA is gone")?;
    // Whoever starts the exchange is its initiator, whatever its role in the IKE_SA.
    let mut new = child::build(agreed, (id, Role::Initiator), keys, nonces, path, encap)
        .map_err(|_| "the keys can't be derived")?;
    new.reqid = old.reqid;
    Ok((new, nonce_r.clone()))
}

/// When a CHILD_SA made now is to be rekeyed: the configured time less a tenth of it by chance, so that
/// the two ends seldom start at once (RFC 7296 §2.8). `None` for never.
pub(crate) fn rekey_time(cx: &mut Cx<'_>, live: &Live) -> Option<Time> {
    let lifetime = cx.shared.connection(live.connection)?.child_lifetime;
    if lifetime.is_zero() {
        return None;
    }
    let micros = u64::try_from(lifetime.as_micros()).unwrap_or(u64::MAX);
    let jitter = cx.shared.random.u64() % (micros / 10).max(1);
    Some(cx.now + Duration::from_micros(micros - jitter))
}

/// Sets the timer to the first CHILD_SA that is due.
pub(crate) fn arm(sa: &Sa, cx: &mut Cx<'_>) {
    let State::Live(live) = &sa.state else { return };
    let due = live.children.iter().filter(|c| c.is_current()).filter_map(|c| c.rekey_at).min();
    match due {
        Some(at) => cx.shared.timers.set(sa.id, Timer::Rekey, at),
        None => cx.shared.timers.clear(sa.id, Timer::Rekey),
    }
}

/// CHILD_SAs have come of age.
pub(crate) fn on_timer(sa: &mut Sa, cx: &mut Cx<'_>) {
    let now = cx.now;
    rekey_children(sa, cx, |child| child.rekey_at.is_some_and(|at| at <= now));
}

/// Rekeys the CHILD_SAs that `which` chooses.
pub(crate) fn rekey_children(sa: &mut Sa, cx: &mut Cx<'_>, which: impl Fn(&Child) -> bool) {
    let State::Live(live) = &mut sa.state else { return };
    for child in live.children.iter_mut().filter(|c| c.is_current() && which(c)) {
        // Looked at again if nothing comes of it.
        child.rekey_at = Some(cx.now + RETRY_LATER);
        live.tasks.push(Task::Rekey(child.id));
    }
    arm(sa, cx);
    proceed(sa, cx);
}
