//! All IKE_SAs of one host: which one a datagram is for, and what happens to one that is for none
//! (RFC 7296 §2.1, §2.5, §2.6; RFC 8019 §4).

mod cookie;
mod half_open;
pub mod timers;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use crate::{
    asked::Asked,
    auth::WallClock,
    child::ChildId,
    config::{ConnectionConfig, ConnectionId, Role},
    crash::CrashSecrets,
    event::{ActionError, ActionId, CloseReason, Event, Output, SaId, Tag},
    extension::{Extension, SaView},
    nat::Nat,
    path::Path,
    random::Random,
    sa::{
        Cx, Sa, Shared, State,
        child::Child,
        create_initiator,
        exchange::Arrival,
        init,
        init_responder::{self, Unanswerable},
        live, mode, task,
    },
    time::Time,
    wire::{self, ExchangeType, Flags, Header, Message, Notify, NotifyType, Payload, WireError},
};

use cookie::Cookies;
use half_open::HalfOpen;
pub use half_open::HalfOpenLimits;
pub use timers::Timer;

/// Unprotected answers to messages of another IKE version, per second (RFC 7296 §2.5).
const VERSION_ANSWERS_PER_SECOND: u32 = 10;

/// Unprotected answers to requests on IKE_SAs that are not here, per second (RFC 7296 §2.21.4).
const SPI_ANSWERS_PER_SECOND: u32 = 20;

/// Strangers that are refused and told of, per second.
const REFUSALS_TOLD_PER_SECOND: u32 = 20;

/// How often something has happened within a second.
#[derive(Clone, Copy, Debug, Default)]
struct Second {
    second: u64,
    count: u32,
}

impl Second {
    /// Counts once more; gives the count of this second, and that of the last one if it is over now.
    fn count(&mut self, now: Time) -> (u32, Option<u32>) {
        let second = now.as_micros() / 1_000_000;
        let over = (self.second != second).then_some(self.count);
        if over.is_some() {
            *self = Second { second, count: 0 };
        }
        self.count = self.count.saturating_add(1);
        (self.count, over)
    }
}

/// An IKE_SA as the operator sees it.
#[derive(Clone, Debug)]
pub struct SaStatus<'a> {
    /// our name for it
    pub id: SaId,
    /// the connection it belongs to, unknown while half open as responder
    pub connection: Option<ConnectionId>,
    /// our role in it
    pub role: Role,
    /// the SPIs of initiator and responder
    pub spis: (u64, u64),
    /// `connecting`, `established`, `closing` or `closed`
    pub state: &'static str,
    /// its addresses
    pub path: Path,
    /// where NATs are
    pub nat: Nat,
    /// the identity that the peer proved, empty before
    pub peer: &'a str,
    /// its CHILD_SAs
    pub children: &'a [Child],
    /// where they are, or would be if there were any, and whether in UDP
    pub place: Option<(Path, bool)>,
    /// when the last genuine message came
    pub last_heard: Time,
}

/// The IKE machines of one host.
pub struct Endpoint {
    shared: Shared,
    sas: BTreeMap<SaId, Sa>,
    half_open: HalfOpen,
    cookies: Cookies,
    /// IKE_SAs that an input has reached since this was asked last
    touched: BTreeSet<SaId>,
    version_answers: Second,
    spi_answers: Second,
    refusals: Second,
}

impl Endpoint {
    /// A host with these connections. With `force_encap` the data plane can do nothing but ESP in UDP.
    pub fn new(mut random: Random, connections: Vec<ConnectionConfig>, force_encap: bool) -> Self {
        let cookies = Cookies::new(&mut random);
        Endpoint {
            shared: Shared::new(random, connections, force_encap),
            sas: BTreeMap::new(),
            half_open: HalfOpen::default(),
            cookies,
            touched: BTreeSet::new(),
            version_answers: Second::default(),
            spi_answers: Second::default(),
            refusals: Second::default(),
        }
    }

    /// Sets how many half-open IKE_SAs there may be, and when cookies are asked for.
    pub fn set_half_open_limits(&mut self, limits: HalfOpenLimits) {
        self.half_open.limits = limits;
    }

    /// The configuration of a connection.
    pub fn connection(&self, id: ConnectionId) -> Option<&ConnectionConfig> {
        self.shared.connection(id)
    }

    /// All connections.
    pub fn connections(&self) -> impl Iterator<Item = (ConnectionId, &ConnectionConfig)> {
        self.shared.connections.iter().enumerate().map(|(i, c)| (ConnectionId(i), c))
    }

    /// Whether the data plane can do nothing but ESP in UDP.
    pub fn force_encap(&self) -> bool {
        self.shared.force_encap
    }

    /// The generator that everything random comes from.
    pub fn random(&mut self) -> &mut Random {
        &mut self.shared.random
    }

    /// Tells the time of day, by which certificates are judged; again whenever it has been set. Before
    /// the first time every certificate is of the future.
    pub fn set_wall_clock(&mut self, clock: WallClock) {
        self.shared.wall_clock = clock;
    }

    /// Starts an IKE_SA on `path`, whose ports are 500 to begin with (RFC 7296 §2).
    ///
    /// # Errors
    /// If the connection does not exist or has no proposal.
    pub fn connect(
        &mut self,
        now: Time,
        connection: ConnectionId,
        path: Path,
        extension: &mut dyn Extension,
    ) -> Result<SaId, CloseReason> {
        self.connect_for(now, connection, path, Vec::new(), extension)
    }

    /// The same with no other CHILD_SAs than those that are `asked` for; the first of them goes into
    /// IKE_AUTH. None stands for all of the configuration.
    ///
    /// # Errors
    /// As [`Self::connect`].
    pub fn connect_for(
        &mut self,
        now: Time,
        connection: ConnectionId,
        path: Path,
        asked: Vec<Asked>,
        extension: &mut dyn Extension,
    ) -> Result<SaId, CloseReason> {
        let id = SaId(self.shared.fresh_id());
        let mut cx = Cx { now, shared: &mut self.shared, extension };
        let sa = init::start(&mut cx, id, connection, path, asked)?;
        self.shared.by_spi.insert(sa.channel.own_spi(), id);
        self.sas.insert(id, sa);
        Ok(id)
    }

    /// A datagram has arrived, without the non-ESP marker.
    pub fn datagram(
        &mut self,
        now: Time,
        path: Path,
        datagram: &[u8],
        extension: &mut dyn Extension,
    ) {
        let message = match Message::parse(datagram) {
            Ok(message) => message,
            Err(WireError::MajorVersion { major }) => {
                self.answer_version(now, path, datagram, major);
                return;
            }
            // RFC 7296 §2.21.1: what is malformed and not protected gets no answer.
            Err(error) => {
                tracing::debug!(%error, "malformed message");
                return;
            }
        };
        let header = &message.header;
        if header.exchange == ExchangeType::IKE_SA_INIT && !header.flags.response {
            self.init_request(now, path, datagram, &message, extension);
            return;
        }
        let own = if header.flags.initiator { header.spi_r } else { header.spi_i };
        match self.shared.by_spi.get(&own).copied() {
            Some(id) => {
                self.with(now, id, extension, |sa, cx| sa.on_message(cx, path, datagram, &message));
            }
            None => self.answer_stranger(now, path, header),
        }
    }

    /// Has the keys of every IKE_SA come out of [`Self::poll_output`]: for looking at what is sent, and for
    /// nothing else.
    pub fn set_reveals_keys(&mut self, reveals: bool) {
        self.shared.reveals_keys = reveals;
    }

    /// Sets what crash tokens are made with (RFC 6290); without a secret none are.
    pub fn set_crash_secrets(&mut self, secrets: CrashSecrets) {
        self.shared.crash = secrets;
    }

    /// RFC 7296 §2.21.4: a request on an IKE_SA that is not here, as after a restart, may be told so; not
    /// protected, a few times a second, and shorter than the request. Responses get nothing, and a host that
    /// only starts IKE_SAs stays silent to strangers.
    fn answer_stranger(&mut self, now: Time, path: Path, header: &Header) {
        let sealed = header.exchange != ExchangeType::IKE_SA_INIT;
        let responder = self.shared.connections.iter().any(|c| c.role == Role::Responder);
        if header.flags.response || !sealed || header.spi_r == 0 || !responder {
            return;
        }
        if self.spi_answers.count(now).0 > SPI_ANSWERS_PER_SECOND {
            return;
        }
        let flags = Flags { initiator: !header.flags.initiator, response: true, version: false };
        let spis = (header.spi_i, header.spi_r);
        let answer = Header::new(spis, header.exchange, flags, header.message_id);
        let notify = Notify::new(NotifyType::INVALID_IKE_SPI, Vec::new());
        let mut payloads = vec![Payload::Notify(notify)];
        // RFC 6290 §9.2: never of an IKE_SA that is here, whichever way around its SPIs are said.
        let here = |spi: &u64| self.shared.by_spi.contains_key(spi);
        if ![header.spi_i, header.spi_r].iter().any(here) {
            payloads.extend(self.shared.crash.tokens(spis, path.remote.ip()));
        }
        if let Ok(bytes) = wire::emit_message(&answer, &payloads) {
            self.shared.transmit(path, bytes);
        }
    }

    fn init_request(
        &mut self,
        now: Time,
        path: Path,
        datagram: &[u8],
        message: &Message<'_>,
        extension: &mut dyn Extension,
    ) {
        let header = &message.header;
        if !header.flags.initiator || header.message_id != 0 || header.spi_r != 0 {
            return;
        }
        let name = (header.spi_i, path.remote);
        for sa in self.half_open.find(name).filter_map(|id| self.sas.get(&id)) {
            // RFC 7296 §2.1: the same octets again get the same answer again; others are another peer's,
            // or what an initiator made of an answer that was not ours.
            if let (State::AuthRequest(state), Arrival::Answered(bytes)) =
                (&sa.state, sa.channel.incoming.arrival(0))
                && state.init_request == datagram
            {
                self.shared.transmit_all(path, bytes);
                return;
            }
        }
        if !self.shared.connections.iter().any(|c| c.role == Role::Responder) {
            return;
        }
        let request = match init_responder::Request::read(message) {
            Ok(request) => request,
            Err(unanswerable) => return self.refuse(now, path, header, unanswerable),
        };
        // RFC 9329 §6.3: a TCP connection has shown that already.
        if self.half_open.is_crowded(path.remote) && !path.is_tcp() {
            // RFC 7296 §2.6: no state before the peer has shown that it receives at its address.
            let input = (request.nonce, path.remote.ip(), header.spi_i);
            if !request.cookie.is_some_and(|c| self.cookies.check(now, input, c)) {
                let cookie = self.cookies.make(now, input);
                let notify = Notify::new(NotifyType::COOKIE, cookie);
                self.answer_init(path, header, notify);
                return;
            }
        }
        if !self.half_open.has_room(path.remote) {
            return;
        }
        let id = SaId(self.shared.fresh_id());
        let mut cx = Cx { now, shared: &mut self.shared, extension };
        match init_responder::accept(&mut cx, id, path, datagram, message, &request) {
            Ok(sa) => {
                let until = now + self.half_open.time();
                self.shared.timers.set(id, Timer::HalfOpen, until);
                self.shared.by_spi.insert(sa.channel.own_spi(), id);
                self.half_open.insert(name, id);
                self.sas.insert(id, sa);
            }
            Err(unanswerable) => self.refuse(now, path, header, unanswerable),
        }
    }

    /// Whether the operator is told of one more stranger that was refused: not of each in a flood.
    fn tells_of_refusal(&mut self, now: Time) -> bool {
        let (count, over) = self.refusals.count(now);
        let left_out = over.unwrap_or_default().saturating_sub(REFUSALS_TOLD_PER_SECOND);
        if left_out > 0 {
            tracing::warn!(left_out, "more IKE_SA_INIT requests were refused");
        }
        count <= REFUSALS_TOLD_PER_SECOND
    }

    fn refuse(&mut self, now: Time, path: Path, header: &Header, unanswerable: Unanswerable) {
        match unanswerable {
            Unanswerable::Notify(notify, reason) => {
                // An honest peer comes again with the other key exchange: no news for the operator.
                if notify.kind != NotifyType::INVALID_KE_PAYLOAD && self.tells_of_refusal(now) {
                    self.shared.event(Event::Refused { path, reason: *reason });
                }
                self.answer_init(path, header, notify);
            }
            Unanswerable::Silence(reason) => tracing::debug!(%path, %reason, "IKE_SA_INIT dropped"),
        }
    }

    /// An unprotected answer to IKE_SA_INIT; it leaves no state and is no longer than the request.
    fn answer_init(&mut self, path: Path, request: &Header, notify: Notify) {
        let flags = Flags { initiator: false, response: true, version: false };
        let header = Header::new((request.spi_i, 0), ExchangeType::IKE_SA_INIT, flags, 0);
        if let Ok(bytes) = wire::emit_message(&header, &[Payload::Notify(notify)]) {
            self.shared.transmit(path, bytes);
        }
    }

    /// RFC 7296 §2.5: a higher major version is told which one we speak, a lower one nothing.
    fn answer_version(&mut self, now: Time, path: Path, datagram: &[u8], major: u8) {
        let Ok(header) = Header::parse(datagram) else { return };
        if major < 3
            || header.flags.response
            || header.spi_i == 0
            || self.version_answers.count(now).0 > VERSION_ANSWERS_PER_SECOND
        {
            return;
        }
        let flags = Flags { initiator: !header.flags.initiator, response: true, version: false };
        let spis = (header.spi_i, header.spi_r);
        let answer = Header::new(spis, header.exchange, flags, header.message_id);
        let notify = Notify::new(NotifyType::INVALID_MAJOR_VERSION, vec![2]);
        if let Ok(bytes) = wire::emit_message(&answer, &[Payload::Notify(notify)]) {
            self.shared.transmit(path, bytes);
        }
    }

    /// Runs one input of one IKE_SA and then sweeps up after it.
    fn with<T>(
        &mut self,
        now: Time,
        id: SaId,
        extension: &mut dyn Extension,
        input: impl FnOnce(&mut Sa, &mut Cx<'_>) -> T,
    ) -> Option<T> {
        let sa = self.sas.get_mut(&id)?;
        let before = self.shared.outputs.len();
        let mut cx = Cx { now, shared: &mut self.shared, extension };
        let result = input(sa, &mut cx);
        self.touched.insert(id);
        self.sweep(id);
        let replaced = std::mem::take(&mut self.shared.replaced);
        if !replaced.is_empty() {
            // The old CHILD_SA goes before the new one comes: their selectors may be the same.
            let new_ones = self.shared.outputs.split_off(before);
            for old in replaced {
                self.abandon(now, old, CloseReason::Replaced, extension);
            }
            self.shared.outputs.extend(new_ones);
        }
        Some(result)
    }

    fn sweep(&mut self, id: SaId) {
        let Some(sa) = self.sas.get_mut(&id) else { return };
        // One that failed to authenticate counts for as long as it takes up memory.
        let done = matches!(sa.state, State::Live(_)) || sa.is_forgotten();
        if done && let Some(name) = sa.half_open.take() {
            self.half_open.remove(name, id);
        }
        if sa.is_forgotten() {
            self.shared.by_spi.remove(&sa.channel.own_spi());
            self.sas.remove(&id);
        }
    }

    /// Timers that are due.
    pub fn timeout(&mut self, now: Time, extension: &mut dyn Extension) {
        while let Some((id, timer)) = self.shared.timers.pop(now) {
            self.with(now, id, extension, |sa, cx| sa.on_timer(cx, timer));
        }
    }

    /// When [`Self::timeout`] is to be called next, and for what.
    pub fn next_timeout(&self) -> Option<(Time, Timer)> {
        self.shared.timers.next()
    }

    /// The data plane's answer to an action.
    pub fn answer(
        &mut self,
        now: Time,
        id: ActionId,
        result: Result<(), ActionError>,
        extension: &mut dyn Extension,
    ) {
        let Some(sa) = self.shared.pending_actions.remove(&id) else { return };
        self.with(now, sa, extension, |sa, cx| sa.on_answer(cx, id, result));
    }

    /// The next thing to do, in order.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.shared.outputs.pop_front()
    }

    /// Whether an established IKE_SA may send a request now (RFC 7296 §2.3).
    pub fn is_open(&self, id: SaId) -> bool {
        self.sas.get(&id).is_some_and(|sa| {
            sa.channel.outgoing.is_open() && matches!(&sa.state, State::Live(live) if live.is_up())
        })
    }

    /// Whether a request of an established IKE_SA waits for its answer.
    pub fn is_asking(&self, id: SaId) -> bool {
        self.sas.get(&id).is_some_and(|sa| !sa.channel.outgoing.is_idle())
    }

    /// Sends an INFORMATIONAL request on the current path; false if the window is closed.
    pub fn request(
        &mut self,
        now: Time,
        id: SaId,
        payloads: &[Payload],
        tag: Tag,
        extension: &mut dyn Extension,
    ) -> bool {
        self.is_open(id)
            && self
                .with(now, id, extension, |sa, cx| {
                    sa.request(cx, ExchangeType::INFORMATIONAL, payloads, Some(tag)).is_ok()
                })
                .unwrap_or(false)
    }

    /// Sends an INFORMATIONAL request on another path than the current one; false if the window is closed.
    /// What is not answered there is asked again on the current path, so that it does not keep the window
    /// closed; the path of [`Event::Response`] tells which it was.
    pub fn request_at(
        &mut self,
        now: Time,
        id: SaId,
        path: Path,
        payloads: &[Payload],
        tag: Tag,
        extension: &mut dyn Extension,
    ) -> bool {
        self.is_open(id)
            && self
                .with(now, id, extension, |sa, cx| sa.request_at(cx, path, payloads, tag).is_ok())
                .unwrap_or(false)
    }

    /// Sends the outstanding requests on another path too, the same octets (RFC 4555 §3.10); false if
    /// there are none.
    pub fn copy_to(
        &mut self,
        now: Time,
        id: SaId,
        path: Path,
        extension: &mut dyn Extension,
    ) -> bool {
        self.with(now, id, extension, |sa, cx| sa.copy_to(cx, path)).unwrap_or(false)
    }

    /// How long the IKE_SA waits for an answer once it stands, in place of the configured time: `least`, and
    /// until nothing has been heard for `hold`.
    pub fn set_patience(&mut self, id: SaId, least: Duration, hold: Duration) {
        if let Some(sa) = self.sas.get_mut(&id) {
            sa.patience = Some((least, hold));
        }
    }

    /// After what silence the IKE_SA asks whether its peer is there, in place of the configured time; zero
    /// for never, `None` for as configured.
    pub fn set_liveness(
        &mut self,
        now: Time,
        id: SaId,
        interval: Option<Duration>,
        extension: &mut dyn Extension,
    ) {
        self.with(now, id, extension, |sa, cx| {
            sa.liveness = interval;
            live::arm_liveness(sa, cx);
        });
    }

    /// Changes the IKE_SA's addresses. Nothing is sent and no CHILD_SA moves.
    pub fn set_path(&mut self, id: SaId, path: Path) {
        if let Some(sa) = self.sas.get_mut(&id) {
            sa.path = path;
        }
    }

    /// Records where NATs are on the current path.
    pub fn set_nat(&mut self, id: SaId, nat: Nat) {
        if let Some(sa) = self.sas.get_mut(&id) {
            sa.nat = nat;
        }
    }

    /// Sends the outstanding request again at once on the current path: the same octets
    /// (RFC 4555 §3.5). With `fresh`, as after a change of our address, the back-off and the time after
    /// which the peer is given up start anew.
    pub fn hasten(&mut self, now: Time, id: SaId, fresh: bool, extension: &mut dyn Extension) {
        self.with(now, id, extension, |sa, cx| sa.hasten(cx, fresh));
    }

    /// From now on no IP packet of the IKE_SA has more than `size` octets, as on a path that carries no
    /// more. The outstanding request is cut anew if it is too big for that, in truly more fragments;
    /// else its octets stay (RFC 7383 §2.5.2). Nothing is sent; true if it was cut.
    pub fn refragment(&mut self, id: SaId, size: u16) -> bool {
        self.sas.get_mut(&id).is_some_and(|sa| sa.refragment(&mut self.shared, Some(size)))
    }

    /// Moves every CHILD_SA of the IKE_SA to its current path; [`Event::Moved`] tells the result.
    /// `None` if there is none to move: one in transport mode ends instead ([`Event::LeftBehind`]).
    pub fn move_children(
        &mut self,
        now: Time,
        id: SaId,
        path: Path,
        encap: bool,
        extension: &mut dyn Extension,
    ) -> Option<ActionId> {
        self.with(now, id, extension, |sa, cx| live::move_children(sa, cx, path, encap)).flatten()
    }

    /// Limits what the CHILD_SAs send to three times what they receive, or lifts that (RFC 4555 §5.3).
    pub fn cap_children(&mut self, now: Time, id: SaId, on: bool, extension: &mut dyn Extension) {
        self.with(now, id, extension, |sa, cx| live::cap_children(sa, cx, on));
    }

    /// The IKE_SAs that some input has reached since this was asked last: they may have something to send.
    pub fn take_touched(&mut self) -> BTreeSet<SaId> {
        std::mem::take(&mut self.touched)
    }

    /// Sends what waits for the window: requests about CHILD_SAs. The extension's own go first.
    pub fn proceed(&mut self, now: Time, id: SaId, extension: &mut dyn Extension) {
        let touched = self.touched.clone();
        self.with(now, id, extension, task::proceed);
        self.touched = touched;
    }

    /// Rekeys a CHILD_SA now, as when its sequence numbers or octets run out (RFC 7296 §2.8); all of
    /// the IKE_SA if none is named.
    pub fn rekey_children(
        &mut self,
        now: Time,
        id: SaId,
        child: Option<ChildId>,
        extension: &mut dyn Extension,
    ) {
        self.with(now, id, extension, |sa, cx| {
            task::rekey_children(sa, cx, |c| child.is_none_or(|id| c.id == id));
        });
    }

    /// Makes a CHILD_SA of the configuration as soon as the window is open (RFC 7296 §1.3.1).
    pub fn make_child(&mut self, now: Time, id: SaId, asked: Asked, extension: &mut dyn Extension) {
        self.with(now, id, extension, |sa, cx| create_initiator::make(sa, cx, asked));
    }

    /// Initiator: makes those CHILD_SAs in transport mode that there are not, and that the path has the
    /// addresses for.
    pub fn make_missing_transport(&mut self, now: Time, id: SaId, extension: &mut dyn Extension) {
        self.with(now, id, extension, mode::make_missing);
    }

    /// Whether the CHILD_SA at this place of the configuration is being made, or waits for its turn or for
    /// another try.
    pub fn is_making(&self, id: SaId, config: usize) -> bool {
        self.sas.get(&id).is_some_and(|sa| match &sa.state {
            State::Live(live) => live.is_making(config),
            State::Lingering => false,
            _ => sa.asked.iter().any(|asked| asked.config == config),
        })
    }

    /// Rekeys the IKE_SA now (RFC 7296 §1.3.2).
    pub fn rekey_ike(&mut self, now: Time, id: SaId, extension: &mut dyn Extension) {
        self.with(now, id, extension, task::rekey_ike);
    }

    /// Ends the IKE_SA with DELETE (RFC 7296 §1.4.1); its CHILD_SAs go at once.
    pub fn close(&mut self, now: Time, id: SaId, extension: &mut dyn Extension) {
        self.with(now, id, extension, |sa, cx| live::delete(sa, cx, Vec::new()));
    }

    /// Ends the IKE_SA with DELETE, for this reason and not because we were told to.
    pub fn close_because(
        &mut self,
        now: Time,
        id: SaId,
        reason: CloseReason,
        extension: &mut dyn Extension,
    ) {
        self.with(now, id, extension, |sa, cx| {
            if let State::Live(live) = &mut sa.state {
                live.verdict.get_or_insert(reason);
            }
            live::delete(sa, cx, Vec::new());
        });
    }

    /// A TCP connection is gone (RFC 9329 §6.1): what was to be set up on it does not come to be. An
    /// IKE_SA that stands is kept.
    pub fn disconnected(&mut self, now: Time, path: Path, extension: &mut dyn Extension) {
        let is_new = |sa: &&Sa| {
            let begun = matches!(sa.state, State::InitResponse(_) | State::AuthResponse(_));
            begun && sa.path == path
        };
        let ids: Vec<SaId> = self.sas.values().filter(is_new).map(|sa| sa.id).collect();
        for id in ids {
            self.abandon(now, id, CloseReason::Unanswered(path), extension);
        }
    }

    /// Ends the IKE_SA without a word to the peer.
    pub fn abandon(
        &mut self,
        now: Time,
        id: SaId,
        reason: CloseReason,
        extension: &mut dyn Extension,
    ) {
        self.with(now, id, extension, |sa, cx| {
            sa.close(cx, reason);
            sa.forget(cx);
        });
    }

    /// What an extension may know of the IKE_SA.
    pub fn view(&self, id: SaId) -> Option<SaView> {
        self.sas.get(&id)?.view()
    }

    /// Every IKE_SA that is not over.
    pub fn status(&self) -> impl Iterator<Item = SaStatus<'_>> {
        self.sas.values().filter(|sa| !matches!(sa.state, State::Lingering)).map(status)
    }

    /// One IKE_SA.
    pub fn sa(&self, id: SaId) -> Option<SaStatus<'_>> {
        self.sas.get(&id).map(status)
    }

    /// The IKE_SA that waits for the data plane's answer to this action.
    pub fn asked_by(&self, action: ActionId) -> Option<SaId> {
        self.shared.pending_actions.get(&action).copied()
    }

    /// How many IKE_SAs there are in memory, those included that only answer retransmissions.
    pub fn len(&self) -> usize {
        self.sas.len()
    }

    /// Whether there is no IKE_SA at all.
    pub fn is_empty(&self) -> bool {
        self.sas.is_empty()
    }
}

fn status(sa: &Sa) -> SaStatus<'_> {
    let (state, peer, children): (_, &str, &[Child]) = match &sa.state {
        State::Live(live) if live.is_closing() => ("closing", &live.peer, live.children()),
        State::Live(live) if live.is_up() => ("established", &live.peer, live.children()),
        State::Live(live) => ("connecting", &live.peer, live.children()),
        State::Lingering => ("closed", "", &[]),
        _ => ("connecting", "", &[]),
    };
    SaStatus {
        id: sa.id,
        connection: sa.connection,
        role: sa.role,
        spis: sa.channel.spis(),
        state,
        path: sa.path,
        nat: sa.nat,
        peer,
        children,
        place: match &sa.state {
            State::Live(live) => Some(live.place()),
            _ => None,
        },
        last_heard: sa.last_heard,
    }
}
