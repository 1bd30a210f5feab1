//! An authenticated IKE_SA: INFORMATIONAL exchanges, liveness, DELETE (RFC 7296 §1.4, §2.4, §2.21).

use std::{net::IpAddr, time::Duration};

use crate::{
    child::{ChildId, ChildMove, EspSpi, Mode},
    config::{ConnectionId, Role},
    crash,
    event::{Action, ActionError, ActionId, CloseReason, Established, Event, SaId, Tag},
    extension::{Request, SaView},
    path::Path,
    time::Time,
    wire::{Delete, ExchangeType, Notify, NotifyType, Payload},
};

use super::{
    Cx, On, Sa, Shared, State, Timer,
    child::Child,
    create_initiator,
    create_responder::{self, Pending},
    exchange::{self, Outstanding},
    fault::{Answer, Fault, Stage},
    former, mode, rekey_ike,
    task::{self, Running, Tasks},
    uniqueness,
};

/// Where an authenticated IKE_SA stands.
pub(crate) enum Phase {
    /// the data plane is at work on the CHILD_SA; the responder's IKE_AUTH response waits for it
    Installing { action: ActionId, response: Option<HeldResponse>, news: Box<Established> },
    /// all is well
    Up,
    /// our DELETE is out or waits for the window
    Closing {
        /// what it says
        payloads: Vec<Payload>,
        /// whether it has been sent
        sent: bool,
    },
}

/// The responder's IKE_AUTH response, ready but for the data plane's word.
pub(crate) struct HeldResponse {
    pub(crate) path: Path,
    pub(crate) message_id: u32,
    pub(crate) payloads: Vec<Payload>,
    /// what to say instead if the data plane refuses: without a CHILD_SA
    pub(crate) without_child: Vec<Payload>,
}

/// An authenticated IKE_SA.
pub(crate) struct Live {
    pub(crate) connection: ConnectionId,
    pub(crate) peer: String,
    pub(crate) children: Vec<Child>,
    pub(crate) phase: Phase,
    /// moves that the data plane has not answered yet, and where they lead
    pub(crate) moving: Vec<(ActionId, Vec<ChildMove>)>,
    /// new CHILD_SAs that wait for the data plane
    pub(crate) pending: Vec<Pending>,
    /// where CHILD_SAs are to be, and whether in UDP, if there is none to tell
    pub(crate) home: (Path, bool),
    /// addresses that the peer assigned to us
    pub(crate) virtual_ips: Vec<IpAddr>,
    /// addresses that we assigned to the peer
    pub(crate) assigned: Vec<IpAddr>,
    /// exchanges about SAs that we start
    pub(crate) tasks: Tasks,
    /// CHILD_SAs of the configuration that are to be made, and when
    pub(crate) missing: Vec<(Time, usize)>,
    /// when the IKE_SA is to be rekeyed
    pub(crate) rekey_ike_at: Option<Time>,
    /// when a new IKE_SA is to take its place
    pub(crate) reauth_at: Option<Time>,
    /// CHILD_SAs send a few times as much as they receive, and no more
    pub(crate) capped: bool,
    /// why we close it, if not because we were told to
    pub(crate) verdict: Option<CloseReason>,
}

impl Live {
    pub(crate) fn children(&self) -> &[Child] {
        &self.children
    }

    pub(crate) fn is_up(&self) -> bool {
        matches!(self.phase, Phase::Up)
    }

    pub(crate) fn is_closing(&self) -> bool {
        matches!(self.phase, Phase::Closing { .. })
    }

    /// Whether the data plane is at work on a CHILD_SA.
    pub(crate) fn is_making_children(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Whether the CHILD_SA at this place of the configuration is on its way.
    pub(crate) fn is_making(&self, config: usize) -> bool {
        self.pending.iter().any(|pending| pending.child.config == config)
            || self.missing.iter().any(|(_, missing)| *missing == config)
            || self.tasks.is_making(config)
            || !self.is_up() && self.children.iter().any(|child| child.config == config)
    }

    /// An IKE_SA that has just been authenticated, whose traffic is to go on this path.
    pub(crate) fn new(connection: ConnectionId, peer: String, home: (Path, bool)) -> Self {
        Live {
            connection,
            peer,
            children: Vec::new(),
            phase: Phase::Up,
            moving: Vec::new(),
            pending: Vec::new(),
            home,
            virtual_ips: Vec::new(),
            assigned: Vec::new(),
            tasks: Tasks::default(),
            missing: Vec::new(),
            rekey_ike_at: None,
            reauth_at: None,
            capped: false,
            verdict: None,
        }
    }

    /// Where the CHILD_SAs are or are going, and whether in UDP.
    pub(crate) fn place(&self) -> (Path, bool) {
        let going = self.moving.last().and_then(|(_, moves)| moves.first());
        going
            .map(|change| (change.path, change.encap))
            .or_else(|| self.children.first().map(|child| (child.path, child.encap)))
            .unwrap_or(self.home)
    }

    /// Takes a CHILD_SA out here and in the data plane; gives its inbound SPI.
    pub(crate) fn remove_child(
        &mut self,
        shared: &mut Shared,
        sa: SaId,
        which: impl Fn(&Child) -> bool,
    ) -> Option<EspSpi> {
        let at = self.children.iter().position(which)?;
        let child = self.children.remove(at);
        shared.esp_spis.remove(&child.spi_in.0);
        shared.action(sa, Action::Remove(child.id));
        Some(child.spi_in)
    }

    /// Gives back the SPIs that are reserved for what is under way.
    pub(crate) fn release(&self, shared: &mut Shared) {
        match &self.tasks.running {
            Some(Running::Child(create)) => {
                shared.esp_spis.remove(&create.spi_in());
            }
            Some(Running::Ike(rekey)) => {
                shared.by_spi.remove(&rekey.spi());
            }
            Some(Running::Delete(_) | Running::Token) | None => {}
        }
    }

    /// Why it is closing.
    pub(crate) fn verdict(&self) -> CloseReason {
        self.verdict.clone().unwrap_or(CloseReason::Local)
    }
}

/// What makes a whole request fail (RFC 7296 §2.21).
pub(crate) enum Refusal {
    /// it is malformed
    Syntax(String),
    /// it has a payload of this kind that must not be skipped
    UnknownCritical(u8),
}

/// The kind of the first payload that we don't know and must not skip (RFC 7296 §2.5).
pub(crate) fn unknown_critical(payloads: &[Payload]) -> Option<u8> {
    payloads.iter().find_map(|payload| match payload {
        Payload::Unknown { kind, critical: true, .. } => Some(*kind),
        _ => None,
    })
}

pub(crate) fn refuse(
    sa: &mut Sa,
    cx: &mut Cx<'_>,
    on: On,
    path: Path,
    exchange: (ExchangeType, u32),
    refusal: Refusal,
) {
    let stage = match sa.state {
        State::AuthRequest(_) => Stage::Auth,
        _ => Stage::Established,
    };
    let (fault, data, text) = match refusal {
        Refusal::Syntax(text) => (Fault::Malformed, Vec::new(), text),
        Refusal::UnknownCritical(kind) => {
            (Fault::UnknownCritical, vec![kind], format!("unknown critical payload {kind}"))
        }
    };
    let Answer { notify: Some(notify), ends } = fault.at(stage) else { return };
    let end = ends.then_some(text);
    let notify = Payload::Notify(Notify::new(notify, data));
    let sent = sa.respond_on(cx, on, path, exchange, &[notify]);
    let Some(text) = end.or_else(|| sent.err().map(|e| e.to_string())) else { return };
    match on {
        On::Current => sa.close(cx, CloseReason::Protocol(text)),
        On::Former(spi) => former::drop_one(sa, cx, spi),
    }
}

/// A request of an established IKE_SA, integrity checked and parsed.
pub(crate) fn on_request(
    sa: &mut Sa,
    cx: &mut Cx<'_>,
    path: Path,
    message_id: u32,
    exchange: ExchangeType,
    payloads: &[Payload],
) -> Result<(), Refusal> {
    arm_liveness(sa, cx);
    let (response, reason) = if exchange == ExchangeType::CREATE_CHILD_SA {
        let response = create_responder::on_request(sa, cx, path, message_id, payloads)?;
        let Some(response) = response else { return Ok(()) };
        (response, None)
    } else {
        let Some(view) = sa.view() else { return Ok(()) };
        on_informational(sa, cx, &view, path, message_id, payloads)
    };
    // The peer takes nothing more on its CHILD_SAs once it has the answer, so others send before that
    // (RFC 7296 §1.4.1). Those of a rekeyed IKE_SA are the successor's.
    if reason == Some(CloseReason::PeerDeleted) && former::successor(sa).is_none() {
        retire_children(sa, cx);
    }
    let sent = sa.respond(cx, path, exchange, message_id, &response);
    match (sent, reason) {
        (Err(reason), _) => sa.close(cx, reason),
        (Ok(()), Some(CloseReason::PeerDeleted)) if rekey_ike::on_deleted(sa, cx) => {}
        (Ok(()), Some(reason)) => conclude(sa, cx, reason),
        (Ok(()), None) => {}
    }
    Ok(())
}

/// Ends the IKE_SA: with DELETE if the peer still has it (RFC 7296 §1.4.1).
pub(crate) fn conclude(sa: &mut Sa, cx: &mut Cx<'_>, reason: CloseReason) {
    match reason {
        reason @ CloseReason::Child(_) => end(sa, cx, reason),
        reason => sa.close(cx, reason),
    }
}

/// Ends the IKE_SA with DELETE, for this reason.
pub(crate) fn end(sa: &mut Sa, cx: &mut Cx<'_>, reason: CloseReason) {
    if let State::Live(live) = &mut sa.state {
        live.verdict.get_or_insert(reason);
    }
    delete(sa, cx, Vec::new());
}

/// An INFORMATIONAL request on the channel of `view`; gives the response, and why the IKE_SA ends if it
/// does.
pub(crate) fn on_informational(
    sa: &mut Sa,
    cx: &mut Cx<'_>,
    view: &SaView,
    path: Path,
    message_id: u32,
    payloads: &[Payload],
) -> (Vec<Payload>, Option<CloseReason>) {
    let mut response = Vec::new();
    let had = has_children(sa);
    for payload in payloads {
        match payload {
            // RFC 7296 §1.4.1: DELETE of the IKE_SA gets an empty answer and takes all with it.
            Payload::Delete(Delete::Ike) => return (Vec::new(), Some(CloseReason::PeerDeleted)),
            Payload::Delete(Delete::Esp(spis)) => {
                let ours = delete_children(sa, cx, spis.iter().map(|spi| spi.0));
                if !ours.is_empty() {
                    response.push(Payload::Delete(Delete::Esp(ours)));
                }
            }
            // RFC 7296 §2.21.2: the initiator did not accept our AUTH.
            Payload::Notify(n) if n.kind == NotifyType::AUTHENTICATION_FAILED => {
                let text = "the peer does not accept who we are".to_owned();
                return (Vec::new(), Some(CloseReason::Authentication(text)));
            }
            _ => {}
        }
    }
    if let Some(window) = exchange::window_of(payloads)
        && let Some(channel) = sa.channel_of(view)
    {
        channel.outgoing.widen(window);
    }
    let token = sa.new_token(cx.shared, view, path);
    let request = Request { now: cx.now, path, message_id, payloads, token };
    response.extend(cx.extension.informational(view, &request, &mut cx.shared.random));
    if let Some(channel) = sa.channel_of(view) {
        if crash::has_token(&response) {
            channel.crash.told = Some(path.remote.ip());
        }
        channel.crash.note(payloads);
    }
    // The initiator's configuration asks for the CHILD_SA: without one it is to begin anew. To a
    // responder an IKE_SA without CHILD_SAs is as good as any (RFC 7296 §1.4.1).
    let bare = had && !has_children(sa);
    let end = (bare && sa.role == Role::Initiator && has_esp_delete(payloads))
        .then(|| CloseReason::Child("the peer deleted the CHILD_SA".into()));
    (response, end)
}

/// Whether there is a CHILD_SA, or the data plane is at work on one.
fn has_children(sa: &Sa) -> bool {
    matches!(&sa.state, State::Live(l) if !l.children.is_empty() || !l.pending.is_empty())
}

fn has_esp_delete(payloads: &[Payload]) -> bool {
    payloads.iter().any(|p| matches!(p, Payload::Delete(Delete::Esp(_))))
}

/// Removes the CHILD_SAs whose outbound SPIs the peer names; gives our inbound ones
/// (RFC 7296 §1.4.1).
fn delete_children(sa: &mut Sa, cx: &mut Cx<'_>, spis: impl Iterator<Item = u32>) -> Vec<EspSpi> {
    let State::Live(live) = &mut sa.state else { return Vec::new() };
    let mut ours = Vec::new();
    for spi in spis {
        let Some(spi_in) = live.remove_child(cx.shared, sa.id, |c| c.spi_out.0 == spi) else {
            continue;
        };
        // RFC 7296 §1.4.1: deletes that cross are answered without naming the SA again.
        if !live.tasks.is_deleting(spi_in) {
            ours.push(spi_in);
        }
    }
    // The last one left has no successor, whatever there was.
    if let ([child], true) = (live.children.as_mut_slice(), live.pending.is_empty()) {
        child.superseded = false;
    }
    ours
}

/// The response to a request of ours.
pub(crate) fn on_response(
    sa: &mut Sa,
    cx: &mut Cx<'_>,
    path: Path,
    request: Outstanding,
    payloads: Vec<Payload>,
) {
    arm_liveness(sa, cx);
    if request.tag == Some(Tag::Delete) {
        let reason = match &sa.state {
            State::Live(live) => live.verdict(),
            _ => CloseReason::Local,
        };
        sa.close(cx, reason);
        sa.forget(cx);
        return;
    }
    // RFC 7296 §2.21.3: the peer has dropped the IKE_SA without a DELETE.
    let syntax = payloads
        .iter()
        .any(|p| matches!(p, Payload::Notify(n) if n.kind == NotifyType::INVALID_SYNTAX));
    if syntax {
        sa.close(cx, CloseReason::Protocol("the peer answered INVALID_SYNTAX".into()));
        sa.forget(cx);
        return;
    }
    if request.exchange == ExchangeType::INFORMATIONAL {
        sa.channel.crash.note(&payloads);
    }
    task::mind_message_ids(sa, cx);
    // Which IKE_SA is to be deleted, the old one or its successor, the answer to a rekey decides.
    if request.tag == Some(Tag::Child) && task::is_rekeying_ike(sa) {
        task::on_response(sa, cx, &payloads);
        send_pending_delete(sa, cx);
        return;
    }
    if send_pending_delete(sa, cx) {
        return;
    }
    if request.tag == Some(Tag::Child) {
        task::on_response(sa, cx, &payloads);
        return;
    }
    if let Some(tag) = request.tag {
        let spis = sa.channel.spis();
        let scattered = request.scattered;
        cx.shared.event(Event::Response { sa: sa.id, tag, path, scattered, spis, payloads });
    }
}

/// The data plane has answered.
pub(crate) fn on_answer(
    sa: &mut Sa,
    cx: &mut Cx<'_>,
    id: ActionId,
    result: Result<(), ActionError>,
) {
    if create_responder::on_answer(sa, cx, id, &result) {
        return;
    }
    let State::Live(live) = &mut sa.state else { return };
    if let Some(at) = live.moving.iter().position(|(action, _)| *action == id) {
        let (_, moves) = live.moving.remove(at);
        if result.is_ok() {
            for change in moves {
                for child in live.children.iter_mut().filter(|c| c.id == change.id) {
                    child.path = change.path;
                    child.encap = change.encap;
                }
            }
        }
        cx.shared.event(Event::Moved { sa: sa.id, id, result });
        return;
    }
    if matches!(&live.phase, Phase::Installing { action, .. } if *action == id) {
        let Phase::Installing { response, news, .. } =
            std::mem::replace(&mut live.phase, Phase::Up)
        else {
            return;
        };
        on_installed(sa, cx, response, *news, result);
    }
}

/// The IKE_SA is up; as its initiator we make the CHILD_SAs from that place of the configuration on.
pub(crate) fn on_up(sa: &mut Sa, cx: &mut Cx<'_>, news: Established, others: usize) {
    arm_liveness(sa, cx);
    task::ike_rekeyed(sa, cx);
    uniqueness::on_established(sa, cx);
    cx.shared.event(Event::Established(news));
    if sa.role == Role::Initiator {
        task::arm_reauth(sa, cx);
        create_initiator::make_others(sa, cx, others);
    }
}

fn on_installed(
    sa: &mut Sa,
    cx: &mut Cx<'_>,
    response: Option<HeldResponse>,
    news: Established,
    result: Result<(), ActionError>,
) {
    let error = result.err();
    if error.is_some()
        && let State::Live(live) = &mut sa.state
    {
        for child in live.children.drain(..) {
            cx.shared.esp_spis.remove(&child.spi_in.0);
        }
    }
    if let Some(held) = response {
        let payloads = if error.is_some() { held.without_child } else { held.payloads };
        let sent = sa.respond(cx, held.path, ExchangeType::IKE_AUTH, held.message_id, &payloads);
        if let Err(reason) = sent {
            sa.close(cx, reason);
            return;
        }
    }
    match error {
        None => {
            if let State::Live(live) = &mut sa.state {
                let at = task::rekey_time(cx, live);
                live.children.iter_mut().for_each(|child| child.rekey_at = at);
            }
            on_up(sa, cx, news, 1);
        }
        Some(ActionError(text)) if sa.role == Role::Initiator => {
            let path = sa.path;
            let reason = CloseReason::DataPlane(text);
            cx.shared.event(Event::Refused { path, reason: reason.clone() });
            if let State::Live(live) = &mut sa.state {
                live.verdict = Some(reason);
            }
            delete(sa, cx, Vec::new());
        }
        Some(ActionError(text)) => {
            let path = sa.path;
            cx.shared.event(Event::Refused { path, reason: CloseReason::DataPlane(text) });
            arm_liveness(sa, cx);
            await_child(sa, cx);
        }
    }
}

/// How long an IKE_SA whose first CHILD_SA was refused waits for another one (RFC 7296 §2.21.2).
const CHILDLESS: Duration = Duration::from_secs(30);

/// The first CHILD_SA was refused: the peer's virtual addresses are free again, and an IKE_SA that gets
/// no other CHILD_SA goes.
pub(crate) fn await_child(sa: &mut Sa, cx: &mut Cx<'_>) {
    cx.shared.release_addresses(sa.id);
    // Another peer may have them soon, so that no later CHILD_SA of this one's may.
    if let State::Live(live) = &mut sa.state {
        live.assigned.clear();
    }
    expect_child(sa, cx);
}

/// An IKE_SA that gets no CHILD_SA in this time goes: it holds addresses and memory for nothing.
pub(crate) fn expect_child(sa: &Sa, cx: &mut Cx<'_>) {
    cx.shared.timers.set(sa.id, Timer::HalfOpen, cx.now + CHILDLESS);
}

/// The time for that is over.
pub(crate) fn on_childless(sa: &mut Sa, cx: &mut Cx<'_>) {
    let State::Live(live) = &mut sa.state else { return };
    if live.is_up() && live.children.is_empty() && live.pending.is_empty() {
        live.verdict.get_or_insert(CloseReason::Child("none came after the first".into()));
        delete(sa, cx, Vec::new());
    }
}

/// Moves every CHILD_SA to `path` that is a tunnel; `None` if there is none. Others end, if `path` has other
/// addresses (RFC 4555 §1.2).
pub(crate) fn move_children(
    sa: &mut Sa,
    cx: &mut Cx<'_>,
    path: Path,
    encap: bool,
) -> Option<ActionId> {
    mode::leave_behind(sa, cx, (path, encap));
    let State::Live(live) = &mut sa.state else { return None };
    live.home = (path, encap);
    let tunnels = live.children.iter().filter(|child| child.mode == Mode::Tunnel);
    let moves: Vec<ChildMove> = tunnels.map(|c| ChildMove { id: c.id, path, encap }).collect();
    if moves.is_empty() {
        return None;
    }
    let id = cx.shared.action(sa.id, Action::Move(moves.clone()));
    live.moving.push((id, moves));
    Some(id)
}

/// Limits what the CHILD_SAs send, or lifts that (RFC 4555 §5.3).
pub(crate) fn cap_children(sa: &mut Sa, cx: &mut Cx<'_>, on: bool) {
    let State::Live(live) = &mut sa.state else { return };
    live.capped = on;
    let pending = live.pending.iter().map(|pending| pending.child.id);
    let children: Vec<ChildId> = live.children.iter().map(|c| c.id).chain(pending).collect();
    if !children.is_empty() {
        cx.shared.action(sa.id, Action::Cap { children, on });
    }
}

/// Has other CHILD_SAs send instead of those of an IKE_SA that is about to go.
fn retire_children(sa: &mut Sa, cx: &mut Cx<'_>) {
    let State::Live(live) = &mut sa.state else { return };
    if !live.children.is_empty() {
        let children = live.children.iter().map(|child| child.id).collect();
        cx.shared.action(sa.id, Action::Retire(children));
    }
}

/// Ends the IKE_SA with DELETE (RFC 7296 §1.4.1), said together with `first`. The CHILD_SAs go at
/// once.
pub(crate) fn delete(sa: &mut Sa, cx: &mut Cx<'_>, first: Vec<Payload>) {
    let State::Live(live) = &mut sa.state else {
        sa.close(cx, CloseReason::Local);
        sa.forget(cx);
        return;
    };
    if live.is_closing() {
        return;
    }
    // The peer may have the successor already and would keep it: that is what is deleted. Where both have
    // asked for one, the answer to ours decides, and the DELETE waits for it.
    if !matches!(live.tasks.running, Some(Running::Ike(_)))
        && let Some(theirs) = former::take_successor(sa)
    {
        let until = cx.now + former::patience(&sa.policy(cx.shared));
        former::adopt(sa, cx, theirs, former::Fate::Peers { until });
    }
    let State::Live(live) = &mut sa.state else { return };
    let new: Vec<Child> = live.pending.drain(..).map(|pending| pending.child).collect();
    // Where another IKE_SA has taken over, what is on its way to us still arrives: the CHILD_SAs go when
    // the peer has answered (RFC 7296 §2.8.3). What is sent on them after the DELETE would be lost.
    let replaced = live.verdict == Some(CloseReason::Replaced);
    let old = if replaced { Vec::new() } else { std::mem::take(&mut live.children) };
    let children: Vec<(ChildId, u32)> =
        old.into_iter().chain(new).map(|c| (c.id, c.spi_in.0)).collect();
    let mut payloads = first;
    payloads.push(Payload::Delete(Delete::Ike));
    live.phase = Phase::Closing { payloads, sent: false };
    for (child, spi) in children {
        cx.shared.esp_spis.remove(&spi);
        cx.shared.action(sa.id, Action::Remove(child));
    }
    retire_children(sa, cx);
    cx.shared.timers.clear(sa.id, Timer::Liveness);
    cx.shared.release(sa.id);
    send_pending_delete(sa, cx);
    // A request that nobody answers does not hold the end up.
    sa.hurry(cx);
}

/// Sends the DELETE that waits for the window, if there is one. True if the IKE_SA is closing.
fn send_pending_delete(sa: &mut Sa, cx: &mut Cx<'_>) -> bool {
    // It is the last request of all (RFC 7296 §1.4.1, §2.8).
    let idle = sa.channel.outgoing.is_idle();
    let State::Live(live) = &mut sa.state else { return false };
    let Phase::Closing { payloads, sent } = &mut live.phase else { return false };
    if *sent || !idle {
        return true;
    }
    *sent = true;
    let payloads = std::mem::take(payloads);
    if let Err(reason) = sa.request(cx, ExchangeType::INFORMATIONAL, &payloads, Some(Tag::Delete)) {
        sa.close(cx, reason);
        sa.forget(cx);
    }
    true
}

/// Sets the time of the next look at whether the peer is there.
pub(crate) fn arm_liveness(sa: &Sa, cx: &mut Cx<'_>) {
    let State::Live(live) = &sa.state else { return };
    let configured = cx.shared.connection(live.connection).map(|c| c.liveness);
    let interval = sa.liveness.or(configured).unwrap_or_default();
    if live.is_up() && !interval.is_zero() {
        cx.shared.timers.set(sa.id, Timer::Liveness, sa.last_heard + interval);
    }
}

/// The peer has been silent for the configured time: ask (RFC 7296 §2.4).
pub(crate) fn on_liveness(sa: &mut Sa, cx: &mut Cx<'_>) {
    let State::Live(live) = &sa.state else { return };
    if !live.is_up() || sa.liveness == Some(Duration::ZERO) {
        return;
    }
    // A request that is out already asks the same question.
    if sa.channel.outgoing.is_idle() {
        let payloads = match sa.view() {
            Some(view) => cx.extension.liveness(&view, &mut cx.shared.random),
            None => Vec::new(),
        };
        let tag = Some(Tag::Liveness);
        if let Err(reason) = sa.request(cx, ExchangeType::INFORMATIONAL, &payloads, tag) {
            sa.close(cx, reason);
            sa.forget(cx);
        }
    }
}
