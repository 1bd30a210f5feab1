//! The machine that a driver feeds: IKE and MOBIKE of one host.

mod addresses;
mod answers;
mod back;
mod connect;
mod interface;
mod moving;
mod probing;
mod promise;
mod tcp;
mod trap;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::IpAddr,
    time::Duration,
};

use bewick_ike::{
    ActionId, CloseReason, ConnectionConfig, ConnectionId, CrashSecrets, Endpoint, Path, Random,
    Role, SaId, SaView, Time,
    auth::WallClock,
    endpoint::{HalfOpenLimits, SaStatus, timers::Timers},
    event,
};

use crate::{
    event::{Event, Hint},
    initiator,
    mobility::Movers,
    path::Uplinks,
    timers::Timer,
};

pub(crate) use back::Back;
use probing::Bucket;
pub(crate) use probing::Counts;
pub use probing::PairStatus;
pub use promise::{LEAST_FOUND, Promise, dead_after};
use trap::Trap;

pub use interface::{Command, CommandError, HostConfig, Input, MoveTarget, Output};

/// Transmissions without an answer that make the initiator's path suspect (RFC 4555 §3.5).
const TRIES_BEFORE_DOUBT: u32 = 2;

/// Unanswered transmissions after which a responder no longer believes that the peer is where it said.
const TRIES_OF_CHECK: u32 = 5;

/// Updates of one peer, each less than [`CALM`] after the one before, that are followed at once; beyond that it
/// has to keep still for this time to be followed at once again.
const MOST_UPDATES: (u32, Duration) = (10, Duration::from_secs(10));

/// How long a peer that sends more has to keep still before traffic follows it.
const CALM: Duration = Duration::from_secs(1);

/// Checks of an address that may be answered without proof.
const CHECKS: u8 = 3;

/// Moves after which the CHILD_SAs get new keys. A kernel makes a new state of each move, with a new
/// random salt for the IVs of its AEAD; that two of them never meet is a matter of numbers, and new
/// keys start these from zero.
const MOVES_BEFORE_REKEY: u32 = 32;

/// A peer that says that it does not know the IKE_SA has left a request unanswered so often before a new
/// IKE_SA is made beside it.
const TRIES_OF_UNKNOWN: u32 = 2;

/// Between two pairs that are tried for one connection (RFC 8305 §5).
const BETWEEN_RIVALS: Duration = Duration::from_millis(250);

/// Pairs that are tried for one connection at the same time.
const MOST_RIVALS: usize = 16;

/// How long a new IKE_SA may take to make the CHILD_SAs of the one that it replaces, and between two looks.
const MAKING: Duration = Duration::from_secs(5);
const LOOK: Duration = Duration::from_millis(20);

/// An IKE_SA that has answered nowhere for so long is kept, but a new one is tried beside it, so often: the
/// gateway's name may lead elsewhere by now.
const ANEW: (Duration, Duration) = (Duration::from_secs(300), Duration::from_secs(120));

/// The least time between such IKE_SAs: whoever can forge the hint can make us ask, but not often.
const BETWEEN_HINTS: Duration = Duration::from_secs(10);

/// Tries that are made anew at once when a forged COOKIE may have spoilt one.
const MOST_MISLED: u8 = 3;

/// Waits between tries to bring a connection up: the first, and the longest.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// What the operator wants of an initiator's connection, and how far that is.
#[derive(Debug, Default)]
struct Wanted {
    up: bool,
    /// with all of its CHILD_SAs, not with those alone that packets wait for
    whole: bool,
    remotes: Vec<IpAddr>,
    attempt: usize,
    failures: u32,
    retry_at: Option<Time>,
    current: Option<SaId>,
    /// it gave way to an IKE_SA that the peer started, for as long as that stands
    yields: bool,
    /// IKE_SAs that are being tried on other pairs at the same time (RFC 4555 §3.1)
    rivals: Vec<SaId>,
    /// when the next one is
    next_rival: Option<Time>,
    /// the IKE_SA that is to take the place of `current`
    successor: Option<SaId>,
    /// when a new IKE_SA was last asked for, with the name looked up anew, beside one that answers nowhere
    anew: Option<Time>,
    /// the IKE_SA that `current` has taken the place of, and when that goes at the latest
    retiring: Option<(SaId, Time)>,
    /// when a successor was last made on a mere hint
    hinted: Option<Time>,
    /// tries in a row that a forged COOKIE may have spoilt
    misled: u8,
}

/// IKE and MOBIKE of one host.
pub struct Host {
    ike: Endpoint,
    movers: Movers,
    wanted: BTreeMap<ConnectionId, Wanted>,
    /// CHILD_SAs that wait for packets, by their place in the configuration
    traps: BTreeMap<(ConnectionId, usize), Trap>,
    outputs: VecDeque<Output>,
    timers: Timers<Timer>,
    uplinks: Uplinks,
    bucket: Bucket,
    can_cap: bool,
    /// IKE_SAs that may have something to send
    touched: BTreeSet<SaId>,
    next_tag: u64,
}

impl Host {
    /// A host with nothing up.
    pub fn new(config: HostConfig, random: Random) -> Self {
        let (connections, policies): (Vec<_>, Vec<_>) = config.connections.into_iter().unzip();
        // As responder we don't know which connection an IKE_SA_INIT is for, so that one which wants
        // ESP in UDP decides for all.
        let any = connections.iter().any(|c| c.role == Role::Responder && c.force_encap);
        let forced = |c: &ConnectionConfig| {
            config.force_encap || if c.role == Role::Responder { any } else { c.force_encap }
        };
        let movers = Movers {
            enabled: connections.iter().map(|c| c.mobike).collect(),
            forced: connections.iter().map(forced).collect(),
            nat_t: connections.iter().map(|c| c.nat_traversal).collect(),
            policies: policies.into_iter().map(Into::into).collect(),
            ..Movers::default()
        };
        Host {
            ike: Endpoint::new(random, connections, config.force_encap),
            movers,
            wanted: BTreeMap::new(),
            traps: BTreeMap::new(),
            outputs: VecDeque::new(),
            timers: Timers::default(),
            uplinks: Uplinks::default(),
            bucket: Bucket::default(),
            can_cap: config.can_cap,
            touched: BTreeSet::new(),
            next_tag: 0,
        }
    }

    /// Tells the time of day, by which certificates are judged; again whenever it has been set. Before
    /// the first time every certificate is of the future.
    pub fn set_wall_clock(&mut self, clock: WallClock) {
        self.ike.set_wall_clock(clock);
    }

    /// Has the keys of every IKE_SA come out as [`Output::Keys`]: for looking at what is sent.
    pub fn set_reveals_keys(&mut self, reveals: bool) {
        self.ike.set_reveals_keys(reveals);
    }

    /// Sets what crash tokens are made with (RFC 6290); without a secret none are.
    pub fn set_crash_secrets(&mut self, secrets: CrashSecrets) {
        self.ike.set_crash_secrets(secrets);
    }

    /// Sets how many half-open IKE_SAs there may be, and when cookies are asked for.
    pub fn set_half_open_limits(&mut self, limits: HalfOpenLimits) {
        self.ike.set_half_open_limits(limits);
    }

    /// The connections by name, in the order of the configuration.
    pub fn connections(&self) -> impl Iterator<Item = (ConnectionId, &ConnectionConfig)> {
        self.ike.connections()
    }

    /// Every IKE_SA that is not over.
    pub fn status(&self) -> impl Iterator<Item = SaStatus<'_>> {
        self.ike.status()
    }

    /// One IKE_SA.
    pub fn sa(&self, id: SaId) -> Option<SaStatus<'_>> {
        self.ike.sa(id)
    }

    /// The IKE_SA that waits for the data plane's answer to this action.
    pub fn asked_by(&self, action: ActionId) -> Option<SaId> {
        self.ike.asked_by(action)
    }

    /// Whether both sides of an IKE_SA support MOBIKE.
    pub fn is_mobike(&self, sa: SaId) -> bool {
        self.movers.sas.get(&sa).is_some_and(|m| m.supported)
    }

    /// How many IKE_SAs are in memory, lingering ones included.
    pub fn len(&self) -> usize {
        self.ike.len()
    }

    /// Whether no IKE_SA is in memory.
    pub fn is_empty(&self) -> bool {
        self.ike.is_empty()
    }

    /// The next thing to do, in order.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When [`Input::Timeout`] is due.
    pub fn next_timeout(&self) -> Option<Time> {
        let waits = |w: &Wanted| w.retry_at.into_iter().chain(w.next_rival).min();
        let retries = self.wanted.values().filter_map(waits).min();
        let own = self.timers.next().map(|(at, _)| at);
        let ike = self.ike.next_timeout().map(|(at, _)| at);
        [retries, self.next_trap(), own, ike].into_iter().flatten().min()
    }

    /// Takes one input; what it leads to waits in [`Self::poll_output`].
    pub fn handle(&mut self, now: Time, input: Input<'_>) {
        match input {
            Input::Datagram { path, bytes } => {
                self.ike.datagram(now, path, bytes, &mut self.movers);
            }
            Input::Timeout => self.on_timeout(now),
            Input::Addresses(locals) => self.on_addresses(now, locals),
            Input::Resolved { connection, addresses } => {
                self.on_resolved(now, connection, addresses);
            }
            Input::Expiring(child) => {
                let carries = |sa: &SaStatus<'_>| sa.children.iter().any(|c| c.id == child);
                for id in self.ids(carries) {
                    self.ike.rekey_children(now, id, Some(child), &mut self.movers);
                }
            }
            Input::Counted { sa, sent, received } => self.on_counted(now, sa, sent, received),
            Input::Mapping { child, remote } => {
                let carries = |sa: &SaStatus<'_>| sa.children.iter().any(|c| c.id == child);
                for id in self.ids(carries) {
                    self.touched.insert(id);
                    self.on_mapping(now, id, remote);
                }
            }
            Input::Unreachable(path) => {
                for id in self.ids(|sa| sa.path == path && sa.state == "established") {
                    self.touched.insert(id);
                    self.suspect(now, id, Hint::Unreachable);
                }
            }
            Input::Disconnected(path) => self.on_disconnected(now, path),
            Input::Resumed => {
                for id in self.ids(|sa| sa.role == Role::Initiator && sa.state == "established") {
                    self.suspect(now, id, Hint::Resumed);
                }
            }
            Input::Acquire { connection, child, packet } => {
                self.on_acquire(now, connection, child, packet);
            }
            Input::Untrapped { connection, child } => self.on_untrapped(now, connection, child),
            Input::Answer { id, result } => self.ike.answer(now, id, result, &mut self.movers),
        }
        self.settle(now);
    }

    /// Carries out a command, or says why it can't be.
    pub fn command(&mut self, now: Time, command: Command) -> Result<(), CommandError> {
        self.touched.extend(self.movers.sas.keys());
        let result = match command {
            Command::Up(connection) => self.up(now, connection),
            Command::Trap(connection) => self.trap(connection),
            Command::Down(connection) => self.down(now, connection),
            Command::Move(connection, target) => self.move_on_request(now, connection, &target),
            Command::Rekey(connection) => self.rekey(now, connection, false),
            Command::RekeyIke(connection) => self.rekey(now, connection, true),
            Command::Shutdown => {
                self.wanted.clear();
                self.traps.clear();
                for id in self.ids(|_| true) {
                    self.ike.close(now, id, &mut self.movers);
                }
                Ok(())
            }
        };
        self.settle(now);
        result
    }

    fn ids(&self, filter: impl Fn(&SaStatus<'_>) -> bool) -> Vec<SaId> {
        self.ike.status().filter(filter).map(|sa| sa.id).collect()
    }

    fn event(&mut self, event: Event) {
        self.outputs.push_back(Output::Event(event));
    }

    /// Works until nothing is left to do: events of the IKE machines, intents of requests, requests
    /// that wait for the window.
    fn settle(&mut self, now: Time) {
        loop {
            while let Some(output) = self.ike.poll_output() {
                self.on_output(now, output);
            }
            if let Some((id, intent)) = self.movers.intents.pop_front() {
                self.on_intent(now, id, intent);
                continue;
            }
            // Only those that something has happened to: there may be thousands of others.
            let mut ids = self.ike.take_touched();
            ids.append(&mut self.touched);
            if ids.is_empty() {
                if self.look_after_traps(now) {
                    continue;
                }
                return;
            }
            for id in ids {
                self.pump(now, id);
                self.ike.proceed(now, id, &mut self.movers);
            }
        }
    }

    fn on_output(&mut self, now: Time, output: event::Output) {
        match output {
            event::Output::Transmit(transmit) => {
                self.outputs.push_back(Output::Transmit(transmit));
            }
            event::Output::Action { id, action } => {
                self.outputs.push_back(Output::Action { id, action });
            }
            event::Output::Event(event) => self.on_event(now, event),
            event::Output::Keys(keys) => self.outputs.push_back(Output::Keys(keys)),
        }
    }

    fn on_event(&mut self, now: Time, event: event::Event) {
        match event {
            event::Event::Established(established) => {
                let (id, connection) = (established.sa, established.connection);
                let path = self.ike.sa(id).map(|sa| sa.path);
                if let Some(wanted) = self.wanted.get_mut(&connection) {
                    wanted.failures = 0;
                    wanted.attempt = 0;
                    wanted.misled = 0;
                }
                if let Some(path) = path {
                    let interval = self.uplinks.keepalive(path.local.ip());
                    self.timers.set(id, Timer::Keepalive, now + interval);
                }
                self.watch(now, id);
                self.prepare_tcp(id);
                self.succeed(now, connection, id);
                let place = self.ike.sa(id).and_then(|sa| sa.place);
                let encap = place.is_some_and(|(_, encap)| encap);
                let place = place.map(|(path, _)| path);
                let mut mobike = false;
                if let (Some(path), Some(mobility)) = (path, self.movers.sas.get_mut(&id)) {
                    mobility.established = true;
                    mobility.children_at = place.unwrap_or(path);
                    mobility.encap = encap;
                    mobike = mobility.supported;
                }
                self.expect_mapping(id);
                if let Some(path) = path {
                    self.event(Event::Established { established, path, mobike });
                }
                // RFC 4555 §5.3: IKE_AUTH came from elsewhere than IKE_SA_INIT, whose sender has shown that
                // it receives there. Traffic follows when the new address has shown it too.
                if let Some(path) = path.filter(|path| place.is_some_and(|place| place != *path)) {
                    self.follow(now, id, path);
                }
                // An address may have gone while the handshake was under way.
                if self.ike.sa(id).is_some_and(|sa| sa.role == Role::Initiator) {
                    self.check_current(now, id);
                }
            }
            event::Event::Response { sa, tag, path, scattered, spis, payloads } => {
                self.on_response(now, sa, tag, (path, scattered, spis), &payloads);
            }
            event::Event::Lost { sa, tag } => self.on_lost(sa, tag),
            event::Event::Reauthenticate { sa } => self.reauthenticate(now, sa),
            event::Event::Rekeyed { sa, spis } => {
                // What is compared is a hash with the SPIs in it (RFC 7296 §2.23).
                self.expect_mapping(sa);
                if let Some(mobility) = self.movers.sas.get(&sa) {
                    let connection = mobility.connection;
                    self.event(Event::Rekeyed { connection, sa, spis });
                }
            }
            event::Event::Unanswered { sa, tries } => self.on_unanswered(now, sa, tries),
            event::Event::Answered { sa, path, sent } => self.on_answered(now, sa, path, sent),
            event::Event::Reached { sa } => self.on_reached(sa),
            event::Event::Answering { sa } => self.on_answering(now, sa),
            event::Event::Repeated { sa, path } => self.on_repeated(now, sa, path),
            event::Event::Unknown { sa, tries } => self.on_unknown(now, sa, tries),
            event::Event::Moved { sa, id, result } => self.on_plane(now, sa, id, result),
            event::Event::LeftBehind { sa, config: child, from } => {
                if let Some(connection) = self.movers.sas.get(&sa).map(|m| m.connection) {
                    self.event(Event::LeftBehind { connection, sa, child, from });
                }
            }
            event::Event::Closed { sa, connection, path, reason } => {
                let established = self.movers.sas.remove(&sa).is_some_and(|m| m.established);
                self.timers.clear_all(sa);
                if reason == CloseReason::Overtaken {
                    return;
                }
                self.event(Event::Closed { connection, sa, path, reason: reason.clone() });
                if established {
                    self.come_back();
                }
                if let Some(connection) = connection {
                    self.on_closed(now, connection, sa, established, &reason);
                }
            }
            event::Event::Refused { path, reason } => self.event(Event::Refused { path, reason }),
        }
    }

    /// RFC 4555 §3.8: what the next answers are compared with. Behind a NAT the peer has to be asked:
    /// the hash of IKE_SA_INIT is of no use, for port 4500 has another mapping than port 500.
    fn expect_mapping(&mut self, id: SaId) {
        let nat = self.ike.sa(id).map(|sa| sa.nat).unwrap_or_default();
        let own = self.ike.view(id).and_then(|view| self.as_we_are(&view));
        let Some(mobility) = self.movers.sas.get_mut(&id) else { return };
        if mobility.role == Role::Initiator && nat.local {
            mobility.seen_as = None;
            mobility.pending_mapping = mobility.supported;
        } else {
            mobility.seen_as = own;
        }
    }

    /// The hash by which a peer sees us that no NAT is in front of.
    fn as_we_are(&mut self, view: &SaView) -> Option<Vec<u8>> {
        let theirs = Path::new(view.path.remote, view.path.local);
        let spis = (view.spi_i, view.spi_r);
        let payloads = bewick_ike::nat::payloads(spis, theirs, false, self.ike.random());
        initiator::seen_as(&payloads)
    }
}
