//! Exchanges about SAs that we start: making, rekeying and deleting them (RFC 7296 §1.3, §1.4.1, §2.8).
//! They queue for the window, and one is under way at a time.

use std::{collections::VecDeque, time::Duration};

use crate::{
    asked::Asked,
    child::{Carriage, ChildId, EspSpi, Limits},
    config::ConnectionId,
    crypto::KeyExchangeMethod,
    event::{CloseReason, Event, Tag},
    time::Time,
    wire::{Delete, ExchangeType, NotifyType, Payload},
};

use super::{
    Cx, Sa, Shared, State, Timer,
    child::Child,
    create_initiator::{self, CreateChild, Purpose},
    former, live,
    rekey_ike::{self, RekeyIke},
};

/// How long after a refusal that passes by itself the same is tried again (RFC 7296 §2.25), and by
/// chance up to half of that more, so that two ends that stand in each other's way do not do so again.
const RETRY: Duration = Duration::from_secs(10);

/// The same after a refusal that does not look as if it would pass.
const RETRY_LATER: Duration = Duration::from_secs(120);

/// A peer that has said TEMPORARY_FAILURE to everything for so long is out of step (RFC 7296 §2.25).
const TEMPORARY: Duration = Duration::from_secs(300);

/// Message IDs that are kept for what must be said at the end: before they are used up, the IKE_SA is
/// rekeyed (RFC 7296 §2.2).
const LAST_MESSAGE_IDS: u32 = u32::MAX - 0x1_0000;

/// What waits for the window.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Task {
    /// make a CHILD_SA, with this key exchange after so many tries
    Child(Purpose, Option<KeyExchangeMethod>, u32),
    /// make a successor of the IKE_SA, with this key exchange after so many tries
    RekeyIke(Option<KeyExchangeMethod>, u32),
    /// tell the peer that the SAs with these inbound SPIs are gone
    Delete(Vec<EspSpi>),
    /// give the peer a token of its own for the successor of the IKE_SA (RFC 6290 §4.3)
    Token,
}

/// What is under way.
pub(crate) enum Running {
    Child(Box<CreateChild>),
    Ike(Box<RekeyIke>),
    Delete(Vec<EspSpi>),
    Token,
}

/// What an IKE_SA has to say about SAs.
#[derive(Default)]
pub(crate) struct Tasks {
    queue: VecDeque<Task>,
    pub(crate) running: Option<Running>,
    /// since when the peer has answered TEMPORARY_FAILURE and nothing else
    put_off_since: Option<Time>,
}

impl Tasks {
    pub(crate) fn push(&mut self, task: Task) {
        if !self.queue.contains(&task) {
            self.queue.push_back(task);
        }
    }

    pub(crate) fn push_front(&mut self, task: Task) {
        self.queue.push_front(task);
    }

    /// Whether the peer has been told, or is to be told, that this SA goes.
    pub(crate) fn is_deleting(&self, spi: EspSpi) -> bool {
        let queued = self.queue.iter().any(|t| matches!(t, Task::Delete(s) if s.contains(&spi)));
        queued || matches!(&self.running, Some(Running::Delete(spis)) if spis.contains(&spi))
    }

    /// Whether an exchange of ours about CHILD_SAs is out.
    pub(crate) fn is_busy_with_children(&self) -> bool {
        matches!(self.running, Some(Running::Child(_) | Running::Delete(_)))
    }

    /// Whether a CHILD_SA for this place of the configuration is asked for, or is to be.
    pub(crate) fn is_making(&self, config: usize) -> bool {
        let new =
            |purpose: Purpose| matches!(purpose, Purpose::New(asked) if asked.config == config);
        let queued = |task: &Task| matches!(task, Task::Child(purpose, ..) if new(*purpose));
        self.queue.iter().any(queued)
            || matches!(&self.running, Some(Running::Child(create)) if new(create.purpose))
    }

    /// Our own rekey of `old`, if one is under way.
    pub(crate) fn rekey_of(&mut self, old: ChildId) -> Option<&mut CreateChild> {
        match &mut self.running {
            Some(Running::Child(create)) if create.purpose == Purpose::Rekey(old) => Some(create),
            _ => None,
        }
    }
}

/// Whether our request to rekey the IKE_SA is out.
pub(crate) fn is_rekeying_ike(sa: &Sa) -> bool {
    matches!(&sa.state, State::Live(live) if matches!(live.tasks.running, Some(Running::Ike(_))))
}

/// Starts what waits, if the window is open.
pub(crate) fn proceed(sa: &mut Sa, cx: &mut Cx<'_>) {
    loop {
        let open = sa.channel.outgoing.is_open();
        // RFC 7296 §2.25.2: on an IKE_SA that is being replaced the peer would refuse it.
        let settled = former::successor(sa).is_none();
        let State::Live(live) = &mut sa.state else { return };
        if !open || !settled || !live.is_up() || live.tasks.running.is_some() {
            return;
        }
        let making = live.is_making_children();
        let ready = |task: &Task| !(making && matches!(task, Task::RekeyIke(..)));
        let Some(at) = live.tasks.queue.iter().position(ready) else { return };
        let Some(task) = live.tasks.queue.remove(at) else { return };
        let started = match task {
            Task::Child(purpose, method, tries) => {
                create_initiator::start(sa, cx, purpose, method, tries)
            }
            Task::RekeyIke(method, tries) => rekey_ike::start(sa, cx, method, tries),
            Task::Delete(spis) => start_delete(sa, cx, spis),
            Task::Token => start_token(sa, cx),
        };
        if let Err(reason) = started {
            sa.close(cx, reason);
            sa.forget(cx);
            return;
        }
    }
}

fn start_delete(sa: &mut Sa, cx: &mut Cx<'_>, spis: Vec<EspSpi>) -> Result<(), CloseReason> {
    let State::Live(live) = &mut sa.state else { return Ok(()) };
    let payload = Payload::Delete(Delete::Esp(spis.clone()));
    live.tasks.running = Some(Running::Delete(spis));
    sa.request(cx, ExchangeType::INFORMATIONAL, &[payload], Some(Tag::Child))
}

/// A token for the IKE_SA that is new, unless the exchange that made it has brought one along.
pub(crate) fn tell_token(sa: &mut Sa, cx: &mut Cx<'_>) {
    let Some(view) = sa.view() else { return };
    let token = sa.new_token(cx.shared, &view, sa.path);
    if let (Some(_), State::Live(live)) = (token, &mut sa.state) {
        live.tasks.push(Task::Token);
    }
}

fn start_token(sa: &mut Sa, cx: &mut Cx<'_>) -> Result<(), CloseReason> {
    let path = sa.path;
    let token = sa.view().and_then(|view| sa.new_token(cx.shared, &view, path));
    let (Some(token), State::Live(live)) = (token, &mut sa.state) else { return Ok(()) };
    live.tasks.running = Some(Running::Token);
    sa.channel.crash.told = Some(path.remote.ip());
    sa.request(cx, ExchangeType::INFORMATIONAL, &[token], Some(Tag::Child))
}

/// The response to what is under way.
pub(crate) fn on_response(sa: &mut Sa, cx: &mut Cx<'_>, payloads: &[Payload]) {
    let State::Live(live) = &mut sa.state else { return };
    let put_off = payloads
        .iter()
        .any(|p| matches!(p, Payload::Notify(n) if n.kind == NotifyType::TEMPORARY_FAILURE));
    let since = live.tasks.put_off_since.take().filter(|_| put_off);
    if put_off {
        let since = *live.tasks.put_off_since.insert(since.unwrap_or(cx.now));
        if cx.now.since(since) >= TEMPORARY {
            let text = "the peer has put off every request for minutes (TEMPORARY_FAILURE)";
            live::end(sa, cx, CloseReason::Protocol(text.into()));
            return;
        }
    }
    match live.tasks.running.take() {
        None | Some(Running::Token) => {}
        // The old SA goes when the peer has said that it sends on it no more.
        Some(Running::Delete(spis)) => {
            for spi in spis {
                live.remove_child(&mut *cx.shared, sa.id, |child| child.spi_in == spi);
            }
        }
        Some(Running::Child(create)) => create_initiator::on_response(sa, cx, *create, payloads),
        Some(Running::Ike(rekey)) => rekey_ike::on_response(sa, cx, *rekey, payloads),
    }
}

/// When to try again what was refused with `kind`.
fn again(shared: &mut Shared, now: Time, kind: Option<NotifyType>) -> Time {
    match kind {
        Some(NotifyType::TEMPORARY_FAILURE | NotifyType::CHILD_SA_NOT_FOUND) => {
            let half = u64::try_from(RETRY.as_micros() / 2).unwrap_or(1).max(1);
            now + RETRY + Duration::from_micros(shared.random.u64() % half)
        }
        _ => now + RETRY_LATER,
    }
}

/// Rekeys the CHILD_SA later, after a refusal with `kind` or a failure.
pub(crate) fn retry(sa: &mut Sa, cx: &mut Cx<'_>, id: ChildId, kind: Option<NotifyType>) {
    let at = again(cx.shared, cx.now, kind);
    let State::Live(live) = &mut sa.state else { return };
    for child in live.children.iter_mut().filter(|c| c.id == id) {
        child.rekey_at = Some(at);
    }
    arm(sa, cx);
}

/// Makes the configured CHILD_SA later.
pub(crate) fn retry_new(sa: &mut Sa, cx: &mut Cx<'_>, config: usize, kind: Option<NotifyType>) {
    let at = again(cx.shared, cx.now, kind);
    let State::Live(live) = &mut sa.state else { return };
    live.missing.push((at, config));
    arm(sa, cx);
}

/// Rekeys the IKE_SA later, after a refusal with `kind`.
pub(crate) fn retry_ike(sa: &mut Sa, cx: &mut Cx<'_>, kind: NotifyType) {
    let at = again(cx.shared, cx.now, Some(kind));
    let State::Live(live) = &mut sa.state else { return };
    live.rekey_ike_at = Some(at);
    arm(sa, cx);
}

/// `lifetime` from now less a tenth of it by chance, so that the two ends seldom start at once
/// (RFC 7296 §2.8). `None` for never.
fn due(cx: &mut Cx<'_>, lifetime: Duration) -> Option<Time> {
    if lifetime.is_zero() {
        return None;
    }
    let micros = u64::try_from(lifetime.as_micros()).unwrap_or(u64::MAX);
    let jitter = cx.shared.random.u64() % (micros / 10).max(1);
    Some(cx.now + Duration::from_micros(micros - jitter))
}

/// What the data plane is told of a CHILD_SA made now, and no peer is: the limits of the configuration
/// less a tenth by chance, for the same reason, and how it is to be carried.
pub(crate) fn terms(shared: &mut Shared, connection: ConnectionId) -> (Limits, Carriage) {
    let configured = shared.connection(connection).map(|c| (c.child_limits, c.carriage));
    let (Limits { octets, packets }, carriage) = configured.unwrap_or_default();
    let mut less = |limit: u64| limit - shared.random.u64() % (limit / 10).max(1);
    (Limits { octets: octets.map(&mut less), packets: packets.map(&mut less) }, carriage)
}

/// When a CHILD_SA made now is to be rekeyed.
pub(crate) fn rekey_time(cx: &mut Cx<'_>, live: &live::Live) -> Option<Time> {
    let lifetime = cx.shared.connection(live.connection)?.child_lifetime;
    due(cx, lifetime)
}

/// The IKE_SA is new: its time begins.
pub(crate) fn ike_rekeyed(sa: &mut Sa, cx: &mut Cx<'_>) {
    let lifetime = sa.config(cx.shared).map(|config| config.ike_lifetime).unwrap_or_default();
    let at = due(cx, lifetime);
    if let State::Live(live) = &mut sa.state {
        live.rekey_ike_at = at;
    }
    arm(sa, cx);
}

/// Both ends have just proved who they are.
pub(crate) fn arm_reauth(sa: &mut Sa, cx: &mut Cx<'_>) {
    let lifetime = sa.config(cx.shared).map(|config| config.reauth_lifetime).unwrap_or_default();
    let at = due(cx, lifetime);
    if let State::Live(live) = &mut sa.state {
        live.reauth_at = at;
    }
    arm(sa, cx);
}

/// Sets the timer to what is due first.
pub(crate) fn arm(sa: &Sa, cx: &mut Cx<'_>) {
    let State::Live(live) = &sa.state else { return };
    let children = live.children.iter().filter(|c| c.is_current()).filter_map(|c| c.rekey_at);
    let missing = live.missing.iter().map(|(at, _)| *at);
    match children.chain(missing).chain(live.rekey_ike_at).chain(live.reauth_at).min() {
        Some(at) => cx.shared.timers.set(sa.id, Timer::Rekey, at),
        None => cx.shared.timers.clear(sa.id, Timer::Rekey),
    }
}

/// SAs have come of age, or are to be made.
pub(crate) fn on_timer(sa: &mut Sa, cx: &mut Cx<'_>) {
    let now = cx.now;
    if let State::Live(live) = &mut sa.state {
        let due = live.missing.extract_if(.., |(at, _)| *at <= now).map(|(_, config)| config);
        for config in due {
            live.tasks.push(Task::Child(Purpose::New(Asked::anyhow(config)), None, 0));
        }
        let ike = live.rekey_ike_at.is_some_and(|at| at <= now);
        if live.reauth_at.is_some_and(|at| at <= now) {
            // Looked at again if nothing comes of it.
            live.reauth_at = Some(now + RETRY_LATER);
            if live.is_up() {
                cx.shared.event(Event::Reauthenticate { sa: sa.id });
            }
        }
        if ike {
            rekey_ike(sa, cx);
        }
    }
    rekey_children(sa, cx, |child| child.rekey_at.is_some_and(|at| at <= now));
}

/// Rekeys the IKE_SA.
pub(crate) fn rekey_ike(sa: &mut Sa, cx: &mut Cx<'_>) {
    let State::Live(live) = &mut sa.state else { return };
    // Looked at again if nothing comes of it.
    live.rekey_ike_at = Some(cx.now + RETRY_LATER);
    live.tasks.push(Task::RekeyIke(None, 0));
    arm(sa, cx);
    proceed(sa, cx);
}

/// Rekeys the IKE_SA if its Message IDs will soon be used up (RFC 7296 §2.2).
pub(crate) fn mind_message_ids(sa: &mut Sa, cx: &mut Cx<'_>) {
    if sa.channel.outgoing.next_id() >= LAST_MESSAGE_IDS && !is_rekeying_ike(sa) {
        rekey_ike(sa, cx);
    }
}

/// Rekeys the CHILD_SAs that `which` chooses.
pub(crate) fn rekey_children(sa: &mut Sa, cx: &mut Cx<'_>, which: impl Fn(&Child) -> bool) {
    let State::Live(live) = &mut sa.state else { return };
    for child in live.children.iter_mut().filter(|c| c.is_current() && which(c)) {
        // Looked at again if nothing comes of it.
        child.rekey_at = Some(cx.now + RETRY_LATER);
        live.tasks.push(Task::Child(Purpose::Rekey(child.id), None, 0));
    }
    arm(sa, cx);
    proceed(sa, cx);
}
