//! Channels that are not, or no longer, the one in use: what a rekey of the IKE_SA replaced, and the
//! peer's successor until it is clear that the peer has it (RFC 7296 §2.8, §2.8.2, §2.25.2).
//!
//! Whoever answered a rekey goes on asking on the old channel until the peer has shown that the answer
//! has reached it, by deleting the old one or by speaking on the new one. So a request that must get
//! through, such as UPDATE_SA_ADDRESSES, never depends on an answer that may be lost.

use std::time::Duration;

use crate::{
    config::Retransmission,
    event::{Event, Tag},
    path::Path,
    time::Time,
    wire::{Delete, ExchangeType, Notify, Payload},
};

use super::{
    Cx, LINGER, On, Sa, State, Timer,
    channel::Channel,
    exchange::{Outstanding, Retransmit},
    fault::Fault,
    live::{self, Refusal},
    task,
};

/// The nonces of one CREATE_CHILD_SA exchange, of which two that crossed are told apart
/// (RFC 7296 §2.8.1).
pub(crate) struct Nonces {
    pub(crate) i: Vec<u8>,
    pub(crate) r: Vec<u8>,
}

impl Nonces {
    /// Octet-wise, and a prefix is lower than what it begins.
    pub(crate) fn lowest(&self) -> &[u8] {
        self.i.as_slice().min(&self.r)
    }
}

/// What is to become of a channel.
pub(crate) enum Fate {
    /// we delete it
    Ours {
        /// whether the DELETE is out
        sent: bool,
    },
    /// the peer is to delete it; if it has not by then, we do
    Peers { until: Time },
    /// the peer's successor of the one in use, which we have answered and the peer may not have yet
    Successor { nonces: Nonces, until: Time },
    /// deleted; repeated requests are still answered
    Gone { until: Time },
}

/// A channel and its fate.
pub(crate) struct Former {
    pub(crate) channel: Channel,
    pub(crate) fate: Fate,
}

impl Former {
    fn on(&self) -> On {
        On::Former(self.channel.own_spi())
    }

    fn deadline(&self) -> Option<Time> {
        match self.fate {
            Fate::Ours { .. } => None,
            Fate::Peers { until } | Fate::Successor { until, .. } | Fate::Gone { until } => {
                Some(until)
            }
        }
    }
}

/// How long a successor waits for a sign that the peer has it: as long as the peer may go on asking.
pub(crate) fn patience(policy: &Retransmission) -> Duration {
    policy.give_up
}

/// The nonces of the peer's successor, if there is one.
pub(crate) fn successor(sa: &Sa) -> Option<&Nonces> {
    sa.former.iter().find_map(|former| match &former.fate {
        Fate::Successor { nonces, .. } => Some(nonces),
        _ => None,
    })
}

/// Takes the peer's successor out of the list.
pub(crate) fn take_successor(sa: &mut Sa) -> Option<Channel> {
    let at = sa.former.iter().position(|f| matches!(f.fate, Fate::Successor { .. }))?;
    Some(sa.former.remove(at).channel)
}

/// Puts `channel` to use; the one in use until now gets `fate` (RFC 7296 §2.8).
pub(crate) fn adopt(sa: &mut Sa, cx: &mut Cx<'_>, channel: Channel, fate: Fate) {
    let spis = channel.spis();
    let old = std::mem::replace(&mut sa.channel, channel);
    keep(sa, cx, old, fate);
    cx.shared.event(Event::Rekeyed { sa: sa.id, spis });
    task::ike_rekeyed(sa, cx);
    live::arm_liveness(sa, cx);
    task::tell_token(sa, cx);
}

/// Keeps a channel that is not in use for as long as its fate says.
pub(crate) fn keep(sa: &mut Sa, cx: &mut Cx<'_>, channel: Channel, fate: Fate) {
    cx.shared.by_spi.insert(channel.own_spi(), sa.id);
    let gone = matches!(fate, Fate::Gone { .. });
    sa.former.push(Former { channel, fate });
    if gone && let Some(former) = sa.former.last_mut() {
        let lost: Vec<Outstanding> = former.channel.outgoing.abandon().collect();
        report_lost(sa, cx, lost);
    }
    send_deletes(sa, cx);
    arm(sa, cx);
}

fn report_lost(sa: &Sa, cx: &mut Cx<'_>, lost: impl IntoIterator<Item = Outstanding>) {
    for tag in lost.into_iter().filter_map(|out| out.tag) {
        cx.shared.event(Event::Lost { sa: sa.id, tag });
    }
}

/// Ends a channel: its deletion is complete, or nothing more can come of it.
pub(crate) fn drop_one(sa: &mut Sa, cx: &mut Cx<'_>, spi: u64) {
    let Some(at) = sa.former.iter().position(|f| f.channel.own_spi() == spi) else { return };
    let mut former = sa.former.remove(at);
    cx.shared.by_spi.remove(&spi);
    let lost: Vec<Outstanding> = former.channel.outgoing.abandon().collect();
    report_lost(sa, cx, lost);
    sa.arm_retransmit(cx);
    arm(sa, cx);
}

/// Sends each DELETE that nothing stands before: it is the last request on its channel
/// (RFC 7296 §2.8).
fn send_deletes(sa: &mut Sa, cx: &mut Cx<'_>) {
    let policy = sa.policy(cx.shared);
    let waiting: Vec<On> = sa
        .former
        .iter()
        .filter(|f| matches!(f.fate, Fate::Ours { sent: false }) && f.channel.outgoing.is_idle())
        .map(Former::on)
        .collect();
    for on in waiting {
        let payloads = [Payload::Delete(Delete::Ike)];
        let exchange = ExchangeType::INFORMATIONAL;
        let sent = sa.request_on(cx, on, exchange, &payloads, Some(Tag::Delete));
        if let Some(former) = sa.former.iter_mut().find(|former| former.on() == on) {
            former.fate = match sent {
                Ok(()) => Fate::Ours { sent: true },
                // What can't be deleted is let go.
                Err(_) => Fate::Gone { until: cx.now },
            };
            former.channel.outgoing.limit(cx.now + policy.give_up_handshake);
        }
    }
    sa.arm_retransmit(cx);
}

fn arm(sa: &Sa, cx: &mut Cx<'_>) {
    match sa.former.iter().filter_map(Former::deadline).min() {
        Some(at) => cx.shared.timers.set(sa.id, Timer::Former, at),
        None => cx.shared.timers.clear(sa.id, Timer::Former),
    }
}

/// Time is up for some channel.
pub(crate) fn on_timer(sa: &mut Sa, cx: &mut Cx<'_>) {
    let policy = sa.policy(cx.shared);
    let due = |former: &&Former| former.deadline().is_some_and(|at| at <= cx.now);
    let spis: Vec<u64> = sa.former.iter().filter(due).map(|f| f.channel.own_spi()).collect();
    for spi in spis {
        let Some(at) = sa.former.iter().position(|f| f.channel.own_spi() == spi) else { continue };
        match sa.former[at].fate {
            Fate::Gone { .. } => drop_one(sa, cx, spi),
            Fate::Peers { .. } => sa.former[at].fate = Fate::Ours { sent: false },
            // The peer has neither deleted the old one nor spoken on the new one: what it has shows
            // when it is asked.
            Fate::Successor { .. } => {
                let channel = sa.former.remove(at).channel;
                let until = cx.now + patience(&policy);
                adopt(sa, cx, channel, Fate::Peers { until });
            }
            Fate::Ours { .. } => {}
        }
    }
    send_deletes(sa, cx);
    arm(sa, cx);
}

/// Requests on these channels are sent again, and let go when nobody answers.
pub(crate) fn on_retransmit(sa: &mut Sa, cx: &mut Cx<'_>, policy: &Retransmission) {
    let path = sa.path;
    let mut dead = Vec::new();
    for former in &mut sa.former {
        match former.channel.outgoing.on_timer(cx.now, policy, path.is_tcp()) {
            Retransmit::Idle => {}
            Retransmit::Again { ids, .. } => {
                let again = |out: &Outstanding| ids.contains(&out.message_id);
                for datagrams in former.channel.outgoing.send(path, again) {
                    cx.shared.transmit_all(path, datagrams);
                }
            }
            Retransmit::GiveUp => dead.push(former.channel.own_spi()),
        }
    }
    dead.into_iter().for_each(|spi| drop_one(sa, cx, spi));
}

/// A request on a channel that is not in use.
pub(crate) fn on_request(
    sa: &mut Sa,
    cx: &mut Cx<'_>,
    spi: u64,
    path: Path,
    exchange: (ExchangeType, u32),
    payloads: &[Payload],
) -> Result<(), Refusal> {
    let on = On::Former(spi);
    let Some(at) = sa.former.iter().position(|f| f.channel.own_spi() == spi) else {
        return Ok(());
    };
    let deletes = payloads.iter().any(|p| matches!(p, Payload::Delete(Delete::Ike)));
    // Who speaks on the successor has it (but if both have asked, the nonces decide).
    let successor = matches!(sa.former[at].fate, Fate::Successor { .. });
    if successor && !deletes && !task::is_rekeying_ike(sa) {
        let channel = sa.former.remove(at).channel;
        let until = cx.now + patience(&sa.policy(cx.shared));
        adopt(sa, cx, channel, Fate::Peers { until });
        return live::on_request(sa, cx, path, exchange.1, exchange.0, payloads);
    }
    if exchange.0 == ExchangeType::CREATE_CHILD_SA {
        // RFC 7296 §2.25.2: nothing new on an IKE_SA that has been replaced.
        let refusal = Notify::new(Fault::Busy.notify(), Vec::new());
        respond(sa, cx, on, path, exchange, &[Payload::Notify(refusal)]);
        return Ok(());
    }
    if deletes {
        respond(sa, cx, on, path, exchange, &[]);
        let until = cx.now + LINGER;
        if let Some(former) = sa.former.iter_mut().find(|former| former.on() == on) {
            former.fate = Fate::Gone { until };
            let lost: Vec<Outstanding> = former.channel.outgoing.abandon().collect();
            report_lost(sa, cx, lost);
        }
        sa.arm_retransmit(cx);
        arm(sa, cx);
        return Ok(());
    }
    let Some(view) = sa.view_of(&sa.former[at].channel) else { return Ok(()) };
    let (response, end) = live::on_informational(sa, cx, &view, path, exchange.1, payloads);
    respond(sa, cx, on, path, exchange, &response);
    if let Some(reason) = end {
        live::end(sa, cx, reason);
    }
    Ok(())
}

/// A response that can't be sealed leaves a channel that is of no use, and nothing else.
fn respond(
    sa: &mut Sa,
    cx: &mut Cx<'_>,
    on: On,
    path: Path,
    exchange: (ExchangeType, u32),
    payloads: &[Payload],
) {
    if let (Err(_), On::Former(spi)) = (sa.respond_on(cx, on, path, exchange, payloads), on) {
        drop_one(sa, cx, spi);
    }
}

/// The response to a request of ours on a channel that is not in use.
pub(crate) fn on_response(
    sa: &mut Sa,
    cx: &mut Cx<'_>,
    spi: u64,
    path: Path,
    request: Outstanding,
    payloads: Vec<Payload>,
) {
    if request.tag == Some(Tag::Delete) {
        drop_one(sa, cx, spi);
        return;
    }
    let spis = sa.on(On::Former(spi)).map(|channel| channel.spis());
    if let (Some(tag), Some(spis), State::Live(_)) = (request.tag, spis, &sa.state) {
        let scattered = request.scattered;
        cx.shared.event(Event::Response { sa: sa.id, tag, path, scattered, spis, payloads });
    }
    send_deletes(sa, cx);
}
