//! One IKE_SA: its exchanges and states.
//!
//! The handshake is a chain of `Expect…` states, each consumed by the message that it expects; the
//! rest of the life of an IKE_SA is [`live::Live`].

pub(crate) mod auth;
pub(crate) mod auth_initiator;
pub(crate) mod auth_responder;
pub(crate) mod child;
pub(crate) mod envelope;
pub(crate) mod exchange;
pub(crate) mod fragment;
pub(crate) mod init;
pub(crate) mod init_responder;
pub(crate) mod live;
pub(crate) mod negotiate;
pub(crate) mod rekey;
pub(crate) mod task;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::SocketAddr,
    time::Duration,
};

use crate::{
    auth::{UnixSeconds, WallClock},
    child::ChildId,
    config::{ConnectionConfig, ConnectionId, Retransmission, Role},
    endpoint::timers::{Timer, Timers},
    event::{Action, ActionError, ActionId, CloseReason, Event, Output, SaId, Tag, Transmit},
    extension::{Extension, SaView},
    nat::Nat,
    path::Path,
    pool::Pool,
    random::Random,
    time::Time,
    wire::{ExchangeType, Flags, Header, Message, Payload},
};

use envelope::{Inside, Keys};
use exchange::{Arrival, Incoming, Outgoing, Retransmit};
use fragment::{Fragments, Received};

/// What all IKE_SAs of an endpoint share.
pub(crate) struct Shared {
    pub(crate) random: Random,
    pub(crate) connections: Vec<ConnectionConfig>,
    pub(crate) pools: BTreeMap<ConnectionId, Vec<Pool>>,
    pub(crate) timers: Timers,
    pub(crate) outputs: VecDeque<Output>,
    pub(crate) pending_actions: BTreeMap<ActionId, SaId>,
    pub(crate) esp_spis: BTreeSet<u32>,
    /// who is at the other end of the IKE_SAs that we answered
    pub(crate) peers: BTreeMap<SaId, (ConnectionId, String)>,
    /// new IKE_SAs whose peers said INITIAL_CONTACT, to be acted on after the input
    pub(crate) replaced: Vec<(SaId, ConnectionId, String)>,
    /// the data plane can carry ESP in UDP alone
    pub(crate) force_encap: bool,
    /// the time of day; until it is told, every certificate is of the future
    pub(crate) wall_clock: WallClock,
    next_id: u64,
}

impl Shared {
    pub(crate) fn new(
        random: Random,
        connections: Vec<ConnectionConfig>,
        force_encap: bool,
    ) -> Self {
        let pools = connections
            .iter()
            .enumerate()
            .map(|(i, c)| (ConnectionId(i), c.pools.iter().copied().map(Pool::new).collect()))
            .collect();
        Shared {
            random,
            connections,
            pools,
            timers: Timers::default(),
            outputs: VecDeque::new(),
            pending_actions: BTreeMap::new(),
            esp_spis: BTreeSet::new(),
            peers: BTreeMap::new(),
            replaced: Vec::new(),
            force_encap,
            wall_clock: WallClock::new(Time::ZERO, UnixSeconds(0)),
            next_id: 1,
        }
    }

    /// A number that names one thing for as long as the process lives.
    pub(crate) fn fresh_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    pub(crate) fn connection(&self, id: ConnectionId) -> Option<&ConnectionConfig> {
        self.connections.get(id.0)
    }

    /// Whether we tell initiators that there is a NAT, so that ESP goes in UDP. When IKE_SA_INIT is
    /// answered it is not known yet which connection it is for: one that wants it is enough.
    pub(crate) fn responder_forces_encap(&self) -> bool {
        let wants = |c: &ConnectionConfig| c.role == Role::Responder && c.force_encap;
        self.force_encap || self.connections.iter().any(wants)
    }

    /// Whether we tell initiators that we can do fragments: one connection that wants them is enough,
    /// as above.
    pub(crate) fn responder_fragments(&self) -> bool {
        let wants = |c: &ConnectionConfig| c.role == Role::Responder && c.fragment_size.is_some();
        self.connections.iter().any(wants)
    }

    pub(crate) fn event(&mut self, event: Event) {
        self.outputs.push_back(Output::Event(event));
    }

    pub(crate) fn action(&mut self, sa: SaId, action: Action) -> ActionId {
        let id = ActionId(self.fresh_id());
        self.pending_actions.insert(id, sa);
        self.outputs.push_back(Output::Action { id, action });
        id
    }

    pub(crate) fn transmit(&mut self, path: Path, bytes: Vec<u8>) {
        self.outputs.push_back(Output::Transmit(Transmit { path, bytes }));
    }

    /// Sends a message that is one datagram or several fragments.
    pub(crate) fn transmit_all(&mut self, path: Path, datagrams: &[Vec<u8>]) {
        datagrams.iter().for_each(|bytes| self.transmit(path, bytes.clone()));
    }

    /// Returns the virtual addresses of an IKE_SA.
    pub(crate) fn release(&mut self, sa: SaId) {
        self.peers.remove(&sa);
        for pool in self.pools.values_mut().flatten() {
            pool.release(sa);
        }
    }

    /// An inbound ESP SPI that no CHILD_SA of ours has; above the reserved ones (RFC 4303 §2.1).
    pub(crate) fn draw_esp_spi(&mut self) -> u32 {
        loop {
            let spi = self.random.u32();
            if spi > 255 && self.esp_spis.insert(spi) {
                return spi;
            }
        }
    }
}

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

/// One IKE_SA.
pub(crate) struct Sa {
    pub(crate) id: SaId,
    pub(crate) role: Role,
    pub(crate) connection: Option<ConnectionId>,
    pub(crate) spi_i: u64,
    pub(crate) spi_r: u64,
    pub(crate) path: Path,
    pub(crate) nat: Nat,
    pub(crate) outgoing: Outgoing,
    pub(crate) incoming: Incoming,
    pub(crate) fragments: Fragments,
    pub(crate) keys: Option<Keys>,
    pub(crate) last_heard: Time,
    /// its name in the endpoint's table of half-open IKE_SAs
    pub(crate) half_open: Option<(u64, SocketAddr)>,
    pub(crate) state: State,
}

impl Sa {
    /// The SPI that we chose.
    pub(crate) fn own_spi(&self) -> u64 {
        match self.role {
            Role::Initiator => self.spi_i,
            Role::Responder => self.spi_r,
        }
    }

    pub(crate) fn view(&self) -> Option<SaView> {
        Some(SaView {
            id: self.id,
            connection: self.connection?,
            role: self.role,
            spi_i: self.spi_i,
            spi_r: self.spi_r,
            path: self.path,
        })
    }

    fn policy(&self, shared: &Shared) -> Retransmission {
        self.connection
            .and_then(|id| shared.connection(id))
            .map(|c| c.retransmission)
            .unwrap_or_default()
    }

    fn give_up(&self, policy: &Retransmission) -> Duration {
        match &self.state {
            State::InitResponse(_) | State::AuthResponse(_) => policy.give_up_handshake,
            // The CHILD_SAs are gone already: a peer that is not there need not be waited for.
            State::Live(live) if live.is_closing() => policy.give_up_handshake,
            _ => policy.give_up,
        }
    }

    pub(crate) fn header(&self, exchange: ExchangeType, response: bool, message_id: u32) -> Header {
        let initiator = self.role == Role::Initiator;
        let flags = Flags { initiator, response, version: false };
        Header::new((self.spi_i, self.spi_r), exchange, flags, message_id)
    }

    /// Seals and sends a request on the current path; the window must be open.
    pub(crate) fn request(
        &mut self,
        cx: &mut Cx<'_>,
        exchange: ExchangeType,
        payloads: &[Payload],
        tag: Option<Tag>,
    ) -> Result<(), CloseReason> {
        let header = self.header(exchange, false, self.outgoing.next_id());
        let limit = self.fragments.limit(self.config(cx.shared), self.path);
        let datagrams = self.seal(cx, &header, payloads, limit)?;
        self.start_request(cx, exchange, datagrams, tag);
        Ok(())
    }

    fn config<'a>(&self, shared: &'a Shared) -> Option<&'a ConnectionConfig> {
        self.connection.and_then(|id| shared.connection(id))
    }

    fn seal(
        &mut self,
        cx: &mut Cx<'_>,
        header: &Header,
        payloads: &[Payload],
        limit: Option<usize>,
    ) -> Result<Vec<Vec<u8>>, CloseReason> {
        let keys = self.keys.as_mut().ok_or_else(|| CloseReason::Protocol("no keys yet".into()))?;
        keys.seal(&mut cx.shared.random, header, payloads, limit)
    }

    pub(crate) fn start_request(
        &mut self,
        cx: &mut Cx<'_>,
        exchange: ExchangeType,
        datagrams: Vec<Vec<u8>>,
        tag: Option<Tag>,
    ) {
        let policy = self.policy(cx.shared);
        let give_up = self.give_up(&policy);
        cx.shared.transmit_all(self.path, &datagrams);
        let due = self.outgoing.start(cx.now, exchange, datagrams, tag, &policy, give_up);
        cx.shared.timers.set(self.id, Timer::Retransmit, due);
    }

    /// Seals and sends the response to the request in progress, to where that came from
    /// (RFC 7296 §2.11, RFC 4555 §1.2), and keeps it for retransmissions.
    pub(crate) fn respond(
        &mut self,
        cx: &mut Cx<'_>,
        path: Path,
        exchange: ExchangeType,
        message_id: u32,
        payloads: &[Payload],
    ) -> Result<(), CloseReason> {
        let header = self.header(exchange, true, message_id);
        let limit = self.fragments.answer_limit(self.config(cx.shared), path);
        let datagrams = self.seal(cx, &header, payloads, limit)?;
        cx.shared.transmit_all(path, &datagrams);
        self.incoming.finish(datagrams);
        Ok(())
    }

    /// Sends the outstanding request again at once on the current path. With `fresh` its back-off and
    /// the peer's time to answer start anew; without, they go on, so that a peer which answers on no
    /// path is asked ever more rarely and given up in the end.
    pub(crate) fn hasten(&mut self, cx: &mut Cx<'_>, fresh: bool) {
        if fresh {
            let policy = self.policy(cx.shared);
            let give_up = self.give_up(&policy);
            if let Some(due) = self.outgoing.hasten(cx.now, &policy, give_up) {
                cx.shared.timers.set(self.id, Timer::Retransmit, due);
            }
        }
        // The headers of another family leave less room.
        self.refragment(cx.shared, None);
        self.retransmit_on(cx, self.path);
    }

    /// Gives an outstanding request no more time than a handshake has.
    pub(crate) fn hurry(&mut self, cx: &mut Cx<'_>) {
        let policy = self.policy(cx.shared);
        if self.outgoing.outstanding().is_some() {
            self.outgoing.limit(cx.now + policy.give_up_handshake);
            cx.shared.timers.set(self.id, Timer::Retransmit, cx.now + policy.first);
        }
    }

    /// Cuts the outstanding request anew if it is too big for the current path, or for IP packets of
    /// `size` octets, the most that is sent from now on. Else it stays as it is, to the octet
    /// (RFC 7383 §2.5.2, RFC 7296 §2.1).
    pub(crate) fn refragment(&mut self, shared: &mut Shared, size: Option<u16>) -> bool {
        if let Some(size) = size {
            self.fragments.set_ceiling(size);
        }
        let policy = self.policy(shared);
        let limit = self.fragments.limit(self.config(shared), self.path);
        let (Some(limit), Some(out), Some(keys)) =
            (limit, self.outgoing.outstanding(), &mut self.keys)
        else {
            return false;
        };
        let Some(datagrams) = keys.recut(&mut shared.random, &out.datagrams, limit) else {
            return false;
        };
        self.outgoing.recut(datagrams, &policy);
        true
    }

    /// Sends the same octets of the outstanding request on `path`.
    pub(crate) fn retransmit_on(&self, cx: &mut Cx<'_>, path: Path) {
        if let Some(out) = self.outgoing.outstanding() {
            cx.shared.transmit_all(path, &out.datagrams);
        }
    }

    pub(crate) fn on_timer(&mut self, cx: &mut Cx<'_>, timer: Timer) {
        match timer {
            Timer::Retransmit => self.on_retransmit(cx),
            Timer::HalfOpen => match self.state {
                State::Lingering => self.forget(cx),
                State::AuthRequest(_) => self.forget(cx),
                _ => {}
            },
            Timer::Liveness => live::on_liveness(self, cx),
            Timer::Rekey => task::on_timer(self, cx),
            Timer::Reassembly => {
                self.fragments.expire(cx.now);
                self.arm_reassembly(cx);
            }
        }
    }

    /// RFC 7383 §2.5.2: a long request that finds no answer may be too big for the path.
    fn probe_smaller(&mut self, cx: &mut Cx<'_>) {
        let out = self.outgoing.outstanding();
        let Some(out) = out.filter(|out| out.tries_in_size >= fragment::TRIES_PER_SIZE) else {
            return;
        };
        let longest = out.datagrams.iter().map(Vec::len).max().unwrap_or_default();
        if let Some(size) = self.fragments.smaller(self.config(cx.shared), self.path, longest) {
            self.refragment(cx.shared, Some(size));
        }
    }

    /// Sets or clears the time at which fragments have waited long enough.
    fn arm_reassembly(&self, cx: &mut Cx<'_>) {
        match self.fragments.deadline() {
            Some(at) => cx.shared.timers.set(self.id, Timer::Reassembly, at),
            None => cx.shared.timers.clear(self.id, Timer::Reassembly),
        }
    }

    fn on_retransmit(&mut self, cx: &mut Cx<'_>) {
        let policy = self.policy(cx.shared);
        self.probe_smaller(cx);
        match self.outgoing.on_timer(cx.now, &policy) {
            Retransmit::Idle => {}
            Retransmit::Again(due) => {
                cx.shared.timers.set(self.id, Timer::Retransmit, due);
                self.retransmit_on(cx, self.path);
                let tries = self.outgoing.outstanding().map_or(0, |out| out.tries);
                cx.shared.event(Event::Unanswered { sa: self.id, tries });
            }
            Retransmit::GiveUp => {
                let hint = match &self.state {
                    State::InitResponse(state) => state.hint(),
                    State::Live(live) if live.is_closing() => Some(live.verdict()),
                    _ => None,
                };
                self.close(cx, hint.unwrap_or(CloseReason::Unanswered(self.path)));
                self.forget(cx);
            }
        }
    }

    /// A message for this IKE_SA, well formed outside and still sealed.
    pub(crate) fn on_message(
        &mut self,
        cx: &mut Cx<'_>,
        path: Path,
        datagram: &[u8],
        message: &Message<'_>,
    ) {
        let header = &message.header;
        if header.flags.initiator != (self.role == Role::Responder) {
            return;
        }
        if header.exchange == ExchangeType::IKE_SA_INIT {
            if matches!(self.state, State::InitResponse(_)) && header.flags.response {
                init::on_response(self, cx, path, datagram, message);
            }
            return;
        }
        if header.spi_i != self.spi_i || header.spi_r != self.spi_r {
            return;
        }
        if header.flags.response {
            self.on_sealed_response(cx, path, message);
        } else {
            self.on_sealed_request(cx, path, message);
        }
    }

    fn on_sealed_request(&mut self, cx: &mut Cx<'_>, path: Path, message: &Message<'_>) {
        let (id, exchange) = (message.header.message_id, message.header.exchange);
        let arrival = self.incoming.arrival(id);
        if matches!(arrival, Arrival::OutOfWindow | Arrival::Pending) {
            return;
        }
        // RFC 7296 §2.2: IKE_AUTH and nothing else comes before the IKE_SA is established.
        let expected = match self.state {
            State::AuthRequest(_) => exchange == ExchangeType::IKE_AUTH,
            State::Live(_) => {
                exchange == ExchangeType::INFORMATIONAL || exchange == ExchangeType::CREATE_CHILD_SA
            }
            State::Lingering => false,
            State::InitResponse(_) | State::AuthResponse(_) | State::Between => return,
        };
        if matches!(arrival, Arrival::Answered(_)) {
            self.answer_again(cx, path, message);
            return;
        }
        let Some(keys) = self.keys.as_ref().filter(|_| expected) else { return };
        let authenticated = matches!(self.state, State::Live(_));
        // RFC 7296 §3.14, RFC 8019 §3: what fails the integrity check changes nothing.
        let received = self.fragments.request(cx.now, keys, path, message, authenticated);
        let Some(inside) = self.received(cx, received) else { return };
        self.last_heard = cx.now;
        self.incoming.begin(id);
        let done = match inside.payloads() {
            Err(error) => Err(live::Refusal::Syntax(error.to_string())),
            Ok(payloads) => match live::unknown_critical(&payloads) {
                Some(kind) => Err(live::Refusal::UnknownCritical(kind)),
                None if exchange == ExchangeType::IKE_AUTH => {
                    auth_responder::on_request(self, cx, path, id, &payloads);
                    Ok(())
                }
                None => live::on_request(self, cx, path, id, exchange, &payloads),
            },
        };
        if let Err(refusal) = done {
            live::refuse(self, cx, path, exchange, id, refusal);
        }
    }

    /// The last request again: its response goes to where this copy came from, and nothing else happens
    /// (RFC 4555 §3.5, RFC 7296 §2.1).
    fn answer_again(&mut self, cx: &mut Cx<'_>, path: Path, message: &Message<'_>) {
        let fragment = message.encrypted.and_then(|sealed| sealed.fragment);
        // RFC 7383 §2.6.1: once for each time that all fragments come again.
        if fragment.is_some_and(|fragment| fragment.number != 1) {
            return;
        }
        let limit = self.fragments.repeat_limit(self.config(cx.shared), path, message);
        let Some(keys) = &mut self.keys else { return };
        if !self.fragments.is_genuine(keys, message) {
            return;
        }
        let id = message.header.message_id;
        let Arrival::Answered(datagrams) = self.incoming.arrival(id) else { return };
        // RFC 7383 §2.5.2: who asks in smaller fragments has not got the response in bigger ones.
        let smaller = limit.and_then(|limit| keys.recut(&mut cx.shared.random, datagrams, limit));
        cx.shared.transmit_all(path, smaller.as_deref().unwrap_or(datagrams));
        if let Some(smaller) = smaller {
            self.incoming.recut(smaller);
        }
    }

    /// The content of what arrived, if a message has become whole.
    fn received(&mut self, cx: &mut Cx<'_>, received: Received) -> Option<Inside> {
        if matches!(received, Received::Nothing) {
            return None;
        }
        self.arm_reassembly(cx);
        match received {
            Received::Whole(inside) => Some(inside),
            Received::Part | Received::Nothing => None,
            Received::TooMuch => {
                // RFC 7383 §5: an attack or a broken sender; either way it was the peer.
                let text = "the peer's fragments make a message that is too long";
                self.close(cx, CloseReason::Protocol(text.into()));
                self.forget(cx);
                None
            }
        }
    }

    fn on_sealed_response(&mut self, cx: &mut Cx<'_>, path: Path, message: &Message<'_>) {
        let (id, exchange) = (message.header.message_id, message.header.exchange);
        let outstanding = self.outgoing.outstanding();
        if outstanding.is_none_or(|out| out.message_id != id || out.exchange != exchange) {
            return;
        }
        let Some(keys) = &self.keys else { return };
        let received = self.fragments.response(cx.now, keys, message);
        let Some(inside) = self.received(cx, received) else { return };
        let Some(request) = self.outgoing.take(id, exchange) else { return };
        cx.shared.timers.clear(self.id, Timer::Retransmit);
        self.last_heard = cx.now;
        // RFC 7296 §2.21.3: a response that is malformed after its integrity check ends the IKE_SA.
        match inside.payloads() {
            Err(error) => {
                self.close(cx, CloseReason::Protocol(error.to_string()));
                self.forget(cx);
            }
            Ok(payloads) => match self.state {
                State::AuthResponse(_) => auth_initiator::on_response(self, cx, path, &payloads),
                State::Live(_) => live::on_response(self, cx, path, request, payloads),
                _ => {}
            },
        }
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
        self.keys = None;
        self.fragments.clear();
    }

    /// Whether nothing more can come of it.
    pub(crate) fn is_forgotten(&self) -> bool {
        matches!(self.state, State::Lingering) && self.keys.is_none()
    }
}
