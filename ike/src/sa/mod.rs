//! One IKE_SA: its exchanges and states.
//!
//! The handshake is a chain of `Expect…` states, each consumed by the message that it expects; the
//! rest of the life of an IKE_SA is [`live::Live`].

pub(crate) mod auth;
pub(crate) mod auth_initiator;
pub(crate) mod auth_responder;
pub(crate) mod channel;
pub(crate) mod child;
pub(crate) mod configuration;
pub(crate) mod create_initiator;
pub(crate) mod create_responder;
pub(crate) mod envelope;
pub(crate) mod exchange;
pub(crate) mod fault;
pub(crate) mod former;
pub(crate) mod fragment;
pub(crate) mod init;
pub(crate) mod init_responder;
pub(crate) mod live;
mod message;
pub(crate) mod mode;
pub(crate) mod negotiate;
pub(crate) mod peers;
pub(crate) mod rekey_ike;
pub(crate) mod shared;
pub(crate) mod task;
pub(crate) mod uniqueness;

use std::{net::SocketAddr, time::Duration};

use crate::{
    asked::Asked,
    child::ChildId,
    config::{ConnectionConfig, ConnectionId, Retransmission, Role},
    endpoint::timers::Timer,
    event::{Action, ActionError, ActionId, CloseReason, Event, SaId, Tag},
    extension::{Extension, SaView},
    nat::Nat,
    path::Path,
    time::Time,
    wire::{ExchangeType, Payload},
};

use channel::Channel;
use exchange::{Outstanding, Retransmit};
use former::Former;
pub(crate) use shared::Shared;

/// The moment, the shared state and the extension, for the length of one input.
pub(crate) struct Cx<'a> {
    pub(crate) now: Time,
    pub(crate) shared: &'a mut Shared,
    pub(crate) extension: &'a mut dyn Extension,
}

/// Where an IKE_SA stands.
pub(crate) enum State {
    /// initiator: IKE_SA_INIT sent
    InitResponse(Box<init::ExpectInitResponse>),
    /// responder: IKE_SA_INIT answered
    AuthRequest(Box<auth_responder::ExpectAuthRequest>),
    /// initiator: IKE_AUTH sent
    AuthResponse(Box<auth_initiator::ExpectAuthResponse>),
    /// both sides are authenticated
    Live(Box<live::Live>),
    /// a message is at work on the state, which is put back before the input ends
    Between,
    /// over: only a repeated request is still answered, for a while
    Lingering,
}

/// How long the response to a last request is kept for its retransmissions.
const LINGER: Duration = Duration::from_secs(10);

/// Which channel of an IKE_SA, the one in use or one that a rekey has left or not yet settled.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum On {
    /// the one in use
    Current,
    /// the one with this SPI of ours
    Former(u64),
}

/// One IKE_SA.
pub(crate) struct Sa {
    pub(crate) id: SaId,
    /// our role in the first of a chain of rekeyed IKE_SAs (RFC 4555 §1.3)
    pub(crate) role: Role,
    pub(crate) connection: Option<ConnectionId>,
    pub(crate) path: Path,
    pub(crate) nat: Nat,
    pub(crate) channel: Channel,
    pub(crate) former: Vec<Former>,
    pub(crate) last_heard: Time,
    /// messages of a peer not yet authenticated that could not be opened
    pub(crate) unreadable: u32,
    /// its name in the endpoint's table of half-open IKE_SAs
    pub(crate) half_open: Option<(u64, SocketAddr)>,
    /// how long it waits for an answer once it stands, at least and since it last heard the peer, if not as
    /// configured
    pub(crate) patience: Option<(Duration, Duration)>,
    /// after what silence it asks whether the peer is there, if not as configured
    pub(crate) liveness: Option<Duration>,
    /// as its initiator: the CHILD_SAs that it is to begin with, the one of IKE_AUTH first
    pub(crate) asked: Vec<Asked>,
    pub(crate) state: State,
}

impl Sa {
    pub(crate) fn view(&self) -> Option<SaView> {
        self.view_of(&self.channel)
    }

    pub(crate) fn view_of(&self, channel: &Channel) -> Option<SaView> {
        Some(SaView {
            id: self.id,
            connection: self.connection?,
            role: self.role,
            spi_i: channel.spi_i,
            spi_r: channel.spi_r,
            epoch: channel.epoch,
            path: self.path,
        })
    }

    /// The crash token for a peer at the other end of `path`, if it has none for that address.
    pub(crate) fn new_token(&self, shared: &Shared, view: &SaView, path: Path) -> Option<Payload> {
        let spis = (view.spi_i, view.spi_r);
        let all = self.former.iter().map(|former| &former.channel);
        let channel = std::iter::once(&self.channel).chain(all).find(|c| c.spis() == spis)?;
        let taker = path.remote.ip();
        let wanted = self.role == Role::Responder && channel.crash.told != Some(taker);
        wanted.then(|| shared.crash.token(spis, taker)).flatten()
    }

    pub(crate) fn on(&mut self, on: On) -> Option<&mut Channel> {
        match on {
            On::Current => Some(&mut self.channel),
            On::Former(spi) => self
                .former
                .iter_mut()
                .map(|former| &mut former.channel)
                .find(|channel| channel.own_spi() == spi),
        }
    }

    /// The channel that `view` shows.
    pub(crate) fn channel_of(&mut self, view: &SaView) -> Option<&mut Channel> {
        let spis = (view.spi_i, view.spi_r);
        self.channels().find(|channel| channel.spis() == spis)
    }

    fn channels(&mut self) -> impl Iterator<Item = &mut Channel> {
        let former = self.former.iter_mut().map(|former| &mut former.channel);
        std::iter::once(&mut self.channel).chain(former)
    }

    fn policy(&self, shared: &Shared) -> Retransmission {
        self.connection
            .and_then(|id| shared.connection(id))
            .map(|c| c.retransmission)
            .unwrap_or_default()
    }

    fn give_up(&self, now: Time, policy: &Retransmission) -> Duration {
        match &self.state {
            State::InitResponse(_) | State::AuthResponse(_) => policy.give_up_handshake,
            // The CHILD_SAs are gone already: a peer that is not there need not be waited for.
            State::Live(live) if live.is_closing() => policy.give_up_handshake,
            _ => match self.patience {
                // RFC 4555 §3.11: a question never shortens the time that an absent peer has.
                Some((least, hold)) => least.max(hold.saturating_sub(now.since(self.last_heard))),
                None => policy.give_up,
            },
        }
    }

    /// Seals and sends a request on the current path; the window must be open.
    pub(crate) fn request(
        &mut self,
        cx: &mut Cx<'_>,
        exchange: ExchangeType,
        payloads: &[Payload],
        tag: Option<Tag>,
    ) -> Result<(), CloseReason> {
        self.request_on(cx, On::Current, exchange, payloads, tag)
    }

    pub(crate) fn request_on(
        &mut self,
        cx: &mut Cx<'_>,
        on: On,
        exchange: ExchangeType,
        payloads: &[Payload],
        tag: Option<Tag>,
    ) -> Result<(), CloseReason> {
        let (connection, path) = (self.connection, self.path);
        let Some(channel) = self.on(on) else { return Ok(()) };
        let config = connection.and_then(|id| cx.shared.connections.get(id.0));
        let random = &mut cx.shared.random;
        let datagrams = channel.seal_request(random, exchange, payloads, config, path)?;
        self.start_request(cx, on, exchange, datagrams, tag);
        Ok(())
    }

    fn config<'a>(&self, shared: &'a Shared) -> Option<&'a ConnectionConfig> {
        self.connection.and_then(|id| shared.connection(id))
    }

    pub(crate) fn start_request(
        &mut self,
        cx: &mut Cx<'_>,
        on: On,
        exchange: ExchangeType,
        datagrams: Vec<Vec<u8>>,
        tag: Option<Tag>,
    ) {
        let path = self.path;
        self.start_request_at(cx, (on, path), exchange, datagrams, tag);
    }

    fn start_request_at(
        &mut self,
        cx: &mut Cx<'_>,
        (on, path): (On, Path),
        exchange: ExchangeType,
        datagrams: Vec<Vec<u8>>,
        tag: Option<Tag>,
    ) {
        let policy = self.policy(cx.shared);
        let give_up = self.give_up(cx.now, &policy);
        let astray = path != self.path;
        if let Some(channel) = self.on(on) {
            let id = channel.outgoing.next_id();
            channel.outgoing.start(cx.now, exchange, datagrams, tag, &policy, give_up);
            for datagrams in channel.outgoing.send(path, |out| out.message_id == id) {
                cx.shared.transmit_all(path, datagrams);
            }
            if astray {
                channel.outgoing.lead_astray(id, path);
            }
        }
        self.arm_retransmit(cx);
    }

    /// Sends an INFORMATIONAL request on another path than the current one, once: without an answer it is
    /// asked again on the current path, so that a dead path does not keep the window closed.
    pub(crate) fn request_at(
        &mut self,
        cx: &mut Cx<'_>,
        path: Path,
        payloads: &[Payload],
        tag: Tag,
    ) -> Result<(), CloseReason> {
        let config = self.connection.and_then(|id| cx.shared.connections.get(id.0));
        let (random, exchange) = (&mut cx.shared.random, ExchangeType::INFORMATIONAL);
        let datagrams = self.channel.seal_request(random, exchange, payloads, config, path)?;
        self.start_request_at(cx, (On::Current, path), exchange, datagrams, Some(tag));
        Ok(())
    }

    /// Sends what is outstanding on another path too, the same octets; false if nothing is.
    pub(crate) fn copy_to(&mut self, cx: &mut Cx<'_>, path: Path) -> bool {
        let mut any = false;
        for channel in self.channels() {
            for datagrams in channel.outgoing.send(path, |_| true) {
                cx.shared.transmit_all(path, datagrams);
                any = true;
            }
        }
        any
    }

    /// Sets or clears the time at which something may have to be sent again.
    pub(crate) fn arm_retransmit(&mut self, cx: &mut Cx<'_>) {
        match self.channels().filter_map(|channel| channel.outgoing.due()).min() {
            Some(at) => cx.shared.timers.set(self.id, Timer::Retransmit, at),
            None => cx.shared.timers.clear(self.id, Timer::Retransmit),
        }
    }

    /// Seals and sends the response to a request, to where that came from (RFC 7296 §2.11,
    /// RFC 4555 §1.2), and keeps it for retransmissions.
    pub(crate) fn respond(
        &mut self,
        cx: &mut Cx<'_>,
        path: Path,
        exchange: ExchangeType,
        message_id: u32,
        payloads: &[Payload],
    ) -> Result<(), CloseReason> {
        self.respond_on(cx, On::Current, path, (exchange, message_id), payloads)
    }

    pub(crate) fn respond_on(
        &mut self,
        cx: &mut Cx<'_>,
        on: On,
        path: Path,
        exchange: (ExchangeType, u32),
        payloads: &[Payload],
    ) -> Result<(), CloseReason> {
        let connection = self.connection;
        let Some(channel) = self.on(on) else { return Ok(()) };
        let config = connection.and_then(|id| cx.shared.connections.get(id.0));
        let random = &mut cx.shared.random;
        let datagrams = channel.seal_response(random, exchange, payloads, config, path)?;
        cx.shared.transmit_all(path, &datagrams);
        Ok(())
    }

    /// Sends what is outstanding again at once on the current path. With `fresh` its back-off and
    /// the peer's time to answer start anew; without, they go on, so that a peer which answers on no
    /// path is asked ever more rarely and given up in the end.
    pub(crate) fn hasten(&mut self, cx: &mut Cx<'_>, fresh: bool) {
        if fresh {
            let policy = self.policy(cx.shared);
            let give_up = self.give_up(cx.now, &policy);
            for channel in self.channels() {
                channel.outgoing.hasten(cx.now, &policy, give_up);
            }
            self.arm_retransmit(cx);
        }
        // The headers of another family leave less room.
        self.refragment(cx.shared, None);
        let path = self.path;
        for channel in self.channels() {
            for datagrams in channel.outgoing.send(path, |_| true) {
                cx.shared.transmit_all(path, datagrams);
            }
        }
    }

    /// Gives outstanding requests no more time than a handshake has.
    pub(crate) fn hurry(&mut self, cx: &mut Cx<'_>) {
        let policy = self.policy(cx.shared);
        for channel in self.channels() {
            channel.outgoing.limit(cx.now + policy.give_up_handshake);
            channel.outgoing.hurry(cx.now + policy.first);
        }
        self.arm_retransmit(cx);
    }

    /// Cuts outstanding requests anew that are too big for the current path, or for IP packets of
    /// `size` octets, the most that is sent from now on. Else they stay as they are, to the octet
    /// (RFC 7383 §2.5.2, RFC 7296 §2.1).
    pub(crate) fn refragment(&mut self, shared: &mut Shared, size: Option<u16>) -> bool {
        let policy = self.policy(shared);
        let (connection, path) = (self.connection, self.path);
        let mut cut = false;
        for channel in self.channels() {
            if let Some(size) = size {
                channel.fragments.set_ceiling(size);
            }
            let config = connection.and_then(|id| shared.connections.get(id.0));
            let limit = channel.fragments.limit(config, path);
            let (Some(limit), Some(keys)) = (limit, &mut channel.keys) else { continue };
            let anew: Vec<(u32, Vec<Vec<u8>>)> = channel
                .outgoing
                .outstanding()
                .iter()
                .filter_map(|out| {
                    let datagrams = keys.recut(&mut shared.random, &out.datagrams, limit)?;
                    Some((out.message_id, datagrams))
                })
                .collect();
            cut |= !anew.is_empty();
            for (message_id, datagrams) in anew {
                channel.outgoing.recut(message_id, datagrams, &policy);
            }
        }
        cut
    }

    pub(crate) fn on_timer(&mut self, cx: &mut Cx<'_>, timer: Timer) {
        match timer {
            Timer::Retransmit => self.on_retransmit(cx),
            Timer::HalfOpen => match self.state {
                State::Lingering => self.forget(cx),
                State::AuthRequest(_) => self.forget(cx),
                _ => live::on_childless(self, cx),
            },
            Timer::Redundant => uniqueness::on_timer(self, cx),
            Timer::Liveness => live::on_liveness(self, cx),
            Timer::Rekey => task::on_timer(self, cx),
            Timer::Former => former::on_timer(self, cx),
            Timer::Reassembly => {
                for channel in self.channels() {
                    channel.fragments.expire(cx.now);
                }
                self.arm_reassembly(cx);
            }
        }
    }

    /// RFC 7383 §2.5.2: a long request that finds no answer may be too big for the path.
    fn probe_smaller(&mut self, cx: &mut Cx<'_>) {
        let tried = |out: &&Outstanding| out.tries_in_size >= fragment::TRIES_PER_SIZE;
        let outstanding = self.channel.outgoing.outstanding();
        let tried: Vec<&Outstanding> = outstanding.iter().filter(tried).collect();
        let longest = tried.iter().flat_map(|out| &out.datagrams).map(Vec::len).max();
        let Some(longest) = longest else { return };
        let config = self.config(cx.shared);
        if let Some(size) = self.channel.fragments.smaller(config, self.path, longest) {
            self.refragment(cx.shared, Some(size));
        }
    }

    /// Sets or clears the time at which fragments have waited long enough.
    fn arm_reassembly(&mut self, cx: &mut Cx<'_>) {
        match self.channels().filter_map(|channel| channel.fragments.deadline()).min() {
            Some(at) => cx.shared.timers.set(self.id, Timer::Reassembly, at),
            None => cx.shared.timers.clear(self.id, Timer::Reassembly),
        }
    }

    fn on_retransmit(&mut self, cx: &mut Cx<'_>) {
        let policy = self.policy(cx.shared);
        self.probe_smaller(cx);
        match self.channel.outgoing.on_timer(cx.now, &policy, self.path.is_tcp()) {
            Retransmit::Idle => {}
            Retransmit::Again { ids, tries } => {
                let (path, again) = (self.path, |out: &Outstanding| ids.contains(&out.message_id));
                for datagrams in self.channel.outgoing.send(path, again) {
                    cx.shared.transmit_all(path, datagrams);
                }
                if tries > 0 {
                    cx.shared.event(Event::Unanswered { sa: self.id, tries });
                }
            }
            Retransmit::GiveUp => {
                let hint = match &self.state {
                    State::InitResponse(state) => state.hint(),
                    State::Live(live) if live.is_closing() => Some(live.verdict()),
                    _ => None,
                };
                self.close(cx, hint.unwrap_or(CloseReason::Unanswered(self.path)));
                self.forget(cx);
                return;
            }
        }
        former::on_retransmit(self, cx, &policy);
        self.arm_retransmit(cx);
    }

    pub(crate) fn on_answer(
        &mut self,
        cx: &mut Cx<'_>,
        id: ActionId,
        result: Result<(), ActionError>,
    ) {
        if matches!(self.state, State::Live(_)) {
            live::on_answer(self, cx, id, result);
        }
    }

    /// Ends the IKE_SA here and now, without a word to the peer: CHILD_SAs and leases go, the reason is
    /// reported. A cached response lingers.
    pub(crate) fn close(&mut self, cx: &mut Cx<'_>, reason: CloseReason) {
        let state = std::mem::replace(&mut self.state, State::Lingering);
        let children: Vec<(ChildId, u32)> = match state {
            State::Lingering => return,
            State::Live(live) => {
                live.release(cx.shared);
                let new = live.pending.iter().map(|pending| &pending.child);
                live.children().iter().chain(new).map(|c| (c.id, c.spi_in.0)).collect()
            }
            State::AuthResponse(state) => {
                cx.shared.esp_spis.remove(&state.spi_in());
                Vec::new()
            }
            State::InitResponse(_) | State::AuthRequest(_) | State::Between => Vec::new(),
        };
        for (child, spi) in children {
            cx.shared.esp_spis.remove(&spi);
            cx.shared.action(self.id, Action::Remove(child));
        }
        self.former.iter().for_each(|former| {
            cx.shared.by_spi.remove(&former.channel.own_spi());
        });
        self.former.clear();
        self.over(cx, reason);
    }

    /// Reports the end of an IKE_SA whose state has been taken out of it already.
    pub(crate) fn over(&mut self, cx: &mut Cx<'_>, reason: CloseReason) {
        cx.shared.release(self.id);
        cx.shared.timers.clear_all(self.id);
        cx.shared.timers.set(self.id, Timer::HalfOpen, cx.now + LINGER);
        cx.shared.event(Event::Closed {
            sa: self.id,
            connection: self.connection,
            path: self.path,
            reason,
        });
    }

    /// Makes the endpoint drop this IKE_SA after the current input.
    pub(crate) fn forget(&mut self, cx: &mut Cx<'_>) {
        cx.shared.timers.clear_all(self.id);
        self.state = State::Lingering;
        for channel in self.channels() {
            cx.shared.by_spi.remove(&channel.own_spi());
            channel.keys = None;
            channel.fragments.clear();
        }
        self.former.clear();
    }

    /// Whether nothing more can come of it.
    pub(crate) fn is_forgotten(&self) -> bool {
        matches!(self.state, State::Lingering) && self.channel.keys.is_none()
    }
}
