//! The running daemon: one task that owns the machines, feeds them what comes from sockets, kernel,
//! clock and operator, and carries out what they say.

mod amends;
mod calls;
mod carry;
mod crash;
mod gateways;
mod history;
mod keylog;
mod paths;
mod plane;
mod record;
mod status;
mod trap;
mod whole;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use bewick_ike::{
    ConnectionId, Established, Path, Random, Role, SaId, Time,
    auth::{UnixSeconds, WallClock},
    endpoint::SaStatus,
};
use bewick_mobike::{Command, Host, HostConfig, Input, TcpUse};
use bewick_xfrm::{
    DataPlane, PlaneError, PlaneEvent, TrapId,
    tcp::TcpConfig,
    udp::{IkeDatagram, UdpError, UdpSockets},
};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::{broadcast, mpsc, watch},
};
use tracing::{debug, info, warn};

use crate::{
    config::{Config, Connection, Start, UplinkTable, uplink},
    control::{Call, EventRecord, Server, ServerError},
    dns::{self, Resolver},
    net::{LocalAddress, Monitor, NetError, Routes, sysctl},
};

use calls::Waiters;
use carry::Resolved;
use gateways::Gateways;
use history::History;
use keylog::KeyLog;
use record::Recorder;

/// How long the peers have to confirm that their IKE_SAs are deleted when the daemon ends.
const FAREWELL: Duration = Duration::from_secs(2);

/// A sleep that is shorter leaves NATs and networks as they were.
const NAP: Duration = Duration::from_secs(1);

/// How often is said which TCP connections are of use.
const TCP_LOOK: Duration = Duration::from_millis(500);

/// Requests of control clients that wait at most.
const CALLS: usize = 64;

/// Events that a slow `bewick events` may be behind.
const EVENTS: usize = 1024;

/// Addresses of whose last interface is known at most; privacy addresses come and go for ever.
const INTERFACES: usize = 4096;

/// Why the daemon could not start, or had to end.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// the control socket
    #[error(transparent)]
    Control(#[from] ServerError),
    /// the sockets of IKE
    #[error(transparent)]
    Udp(#[from] UdpError),
    /// the data plane
    #[error("no data plane: {0}")]
    Plane(#[from] PlaneError),
    /// the kernel's data plane
    #[error("no data plane: {0}")]
    KernelPlane(PlaneError),
    /// addresses, routes or links
    #[error(transparent)]
    Net(#[from] NetError),
    /// the operating system
    #[error("{0}: {1}")]
    System(&'static str, std::io::Error),
    /// ESP outside UDP is wanted, and the plane knows none
    #[error(
        "connection \"{name}\" has nat_traversal = false, which needs the kernel's data plane, and the \
         data plane is userspace ({reason})"
    )]
    NoNats {
        /// the connection
        name: String,
        /// why it is userspace
        reason: String,
    },
    /// an XFRM interface is wanted, and the plane knows none
    #[error(
        "connection \"{name}\" has if_id, which needs the kernel's data plane, and the data plane is \
         userspace ({reason})"
    )]
    NoInterface {
        /// the connection
        name: String,
        /// why it is userspace
        reason: String,
    },
    /// no randomness
    #[error("the operating system gives no randomness: {0}")]
    Random(getrandom::Error),
}

impl RunError {
    /// What the operator can do about it, where the message does not say so itself.
    pub fn remedy(&self) -> Option<&'static str> {
        let errno = match self {
            RunError::NoNats { .. } => {
                return Some(
                    "remove nat_traversal, or load the modules that are missing (`modprobe -a esp4 esp6 \
                     xfrm_user dummy`)",
                );
            }
            RunError::NoInterface { .. } => {
                return Some(
                    "remove if_id, or load the modules that are missing (`modprobe -a esp4 esp6 xfrm_user \
                     xfrm_interface dummy`)",
                );
            }
            RunError::Net(e) => e.errno,
            RunError::Plane(PlaneError::Io { source, .. })
            | RunError::KernelPlane(PlaneError::Io { source, .. }) => source.raw_os_error(),
            RunError::Plane(PlaneError::Kernel { errno, .. })
            | RunError::KernelPlane(PlaneError::Kernel { errno, .. }) => Some(*errno),
            _ => None,
        };
        match errno {
            Some(libc::EPERM | libc::EACCES) => Some("run as root or with CAP_NET_ADMIN"),
            _ if matches!(self, RunError::KernelPlane(_)) => Some(
                "load the modules that are missing (`modprobe -a esp4 esp6 xfrm_user dummy`), or \
                 let dataplane be \"auto\" in the configuration",
            ),
            _ => None,
        }
    }
}

/// Runs the daemon with a configuration that has been checked, until SIGTERM or SIGINT.
pub fn run(config: Config, control: PathBuf) -> Result<(), RunError> {
    // the control socket, and whatever else is made, is for its owner alone
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    // one thread: what leads from an event to a move never waits for another to wake up
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| RunError::System("start the runtime", e))?;
    let result = runtime.block_on(async {
        let (mut daemon, inputs) = Daemon::start(config, control).await?;
        daemon.serve(inputs).await;
        daemon.end().await;
        Ok(())
    });
    // a name that is still being looked up is no reason to stay
    runtime.shutdown_background();
    result
}

/// Everything that the one task owns.
struct Daemon {
    host: Host,
    connections: Vec<Connection>,
    uplinks: Vec<UplinkTable>,
    clock: Clock,
    sleep: Sleep,
    udp: Arc<UdpSockets>,
    plane: Box<dyn DataPlane>,
    routes: Routes,
    monitor: Monitor,
    addresses: Vec<LocalAddress>,
    /// the last interface of every address that we have had: what is still sent from one that is
    /// gone has to fail, and not to leave by another uplink with a source that is wrong there
    interfaces: BTreeMap<IpAddr, u32>,
    /// the CHILD_SAs that packets bring up
    trapped: BTreeMap<TrapId, (ConnectionId, usize)>,
    amends: amends::Amends,
    /// what is known of each IKE_SA that is up, addresses that were assigned included
    established: BTreeMap<SaId, Established>,
    resolver: Resolver,
    gateways: Gateways,
    resolved: mpsc::Sender<Resolved>,
    recorder: Recorder,
    history: History,
    waiters: Waiters,
    _server: Server,
    _crash: Option<crash::Kept>,
    key_log: Option<KeyLog>,
}

/// Where the inputs come from.
struct Inputs {
    ike: Messages,
    plane: Option<mpsc::Receiver<PlaneEvent>>,
    /// paths that an ICMP error speaks of
    unreachable: Option<mpsc::Receiver<Path>>,
    /// TCP connections that have ended
    disconnected: Option<mpsc::UnboundedReceiver<Path>>,
    /// when to say which of them are of use; nothing without TCP
    tcp_look: Option<tokio::time::Interval>,
    addresses: watch::Receiver<Vec<LocalAddress>>,
    /// somebody may have removed what is ours
    disturbed: watch::Receiver<()>,
    /// the same of the packet filter
    tables: watch::Receiver<()>,
    calls: mpsc::Receiver<Call>,
    resolved: mpsc::Receiver<Resolved>,
    signals: Signals,
}

/// IKE messages, from UDP and TCP.
struct Messages {
    datagrams: mpsc::Receiver<IkeDatagram>,
    streamed: Option<mpsc::Receiver<IkeDatagram>>,
}

impl Messages {
    /// The next one; whoever pushes more leaves the others their turn.
    async fn recv(&mut self) -> Option<IkeDatagram> {
        tokio::select! {
            Some(message) = self.datagrams.recv() => Some(message),
            Some(message) = next_of(&mut self.streamed) => Some(message),
            else => None,
        }
    }
}

/// The machines' clock.
#[derive(Clone, Copy)]
struct Clock(Instant);

impl Clock {
    fn now(self) -> Time {
        Time::from_micros(u64::try_from(self.0.elapsed().as_micros()).unwrap_or(u64::MAX))
    }

    /// What the time of day is now.
    fn time_of_day(self) -> WallClock {
        // Before 1970 every certificate is of the future, which is what is right then.
        let unix = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        WallClock::new(self.now(), UnixSeconds(unix.as_secs()))
    }

    fn instant(self, time: Time) -> tokio::time::Instant {
        (self.0 + Duration::from_micros(time.as_micros())).into()
    }
}

/// Finds out that the machine has slept: the time asleep counts on CLOCK_BOOTTIME and not on
/// CLOCK_MONOTONIC, which [`Clock`] and its timers run on (clock_gettime(2)).
#[derive(Clone, Copy)]
struct Sleep {
    /// how far the two were apart when last seen
    apart: Duration,
}

impl Sleep {
    /// What is slept from now on counts.
    fn watch() -> Self {
        Sleep { apart: time_asleep() }
    }

    /// How long the machine has slept since the last time, if longer than [`NAP`]; `apart` is how
    /// far the clocks are apart now.
    fn notice(&mut self, apart: Duration) -> Option<Duration> {
        let slept = apart.saturating_sub(self.apart);
        if slept <= NAP {
            // what is shorter adds up, and the two clocks are not read at quite the same time
            return None;
        }
        self.apart = apart;
        Some(slept)
    }
}

/// How long this machine has slept since it was booted.
fn time_asleep() -> Duration {
    let read = |clock| {
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: the call writes one timespec, which outlives it. Both clocks exist since Linux
        // 2.6.39; without one the zero stays, and then no sleep is seen.
        unsafe { libc::clock_gettime(clock, &mut time) };
        let nanos = u32::try_from(time.tv_nsec).unwrap_or(0);
        Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), nanos)
    };
    let monotonic = read(libc::CLOCK_MONOTONIC);
    read(libc::CLOCK_BOOTTIME).saturating_sub(monotonic)
}

struct Signals([Signal; 3]);

impl Signals {
    fn listen() -> Result<Self, RunError> {
        let one = |kind| signal(kind).map_err(|e| RunError::System("listen to signals", e));
        Ok(Signals([
            one(SignalKind::terminate())?,
            one(SignalKind::interrupt())?,
            one(SignalKind::hangup())?,
        ]))
    }

    async fn next(&mut self) {
        let [terminate, interrupt, hangup] = &mut self.0;
        loop {
            tokio::select! {
                _ = terminate.recv() => return,
                _ = interrupt.recv() => return,
                // to most daemons it means to read the configuration again, and to none to end
                _ = hangup.recv() => warn!(
                    "SIGHUP is ignored: the configuration is read at the start only; restart to \
                     have it read again"
                ),
            }
        }
    }
}

impl Daemon {
    async fn start(config: Config, control: PathBuf) -> Result<(Self, Inputs), RunError> {
        let signals = Signals::listen()?;
        let clock = Clock(Instant::now());
        let (calls, call_receiver) = mpsc::channel(CALLS);
        let events = broadcast::Sender::<Arc<EventRecord>>::new(EVENTS);
        // first of all: it tells whether another daemon runs, whose state must not be touched
        let server = Server::open(&control, calls, events.clone())?;
        let plane::Opened { plane, udp, ike, force_encap } =
            plane::open(&config.daemon, tcp(&config))?;
        let description = plane.describe();
        let refuses_nat = |connection: &&Connection| !connection.ike.nat_traversal;
        if force_encap && let Some(one) = config.connections.iter().find(refuses_nat) {
            let name = one.name().to_owned();
            return Err(RunError::NoNats { name, reason: description.reason.clone() });
        }
        let bound = |connection: &&Connection| connection.ike.carriage.if_id.is_some();
        if force_encap && let Some(one) = config.connections.iter().find(bound) {
            let name = one.name().to_owned();
            return Err(RunError::NoInterface { name, reason: description.reason.clone() });
        }
        for note in udp.notes() {
            warn!("{note}");
        }
        let mut plane = plane;
        let plane_events = plane.take_events();
        let closed = carry::closed(&config.connections);
        let routes = Routes::open(plane.device(), !force_encap, closed).await?;
        let monitor = Monitor::start(plane.device()).await?;

        let mut seed = [0; 32];
        getrandom::fill(&mut seed).map_err(RunError::Random)?;
        let host_config = HostConfig {
            connections: config
                .connections
                .iter()
                .map(|connection| (connection.ike.clone(), connection.policy.clone()))
                .collect(),
            force_encap,
            can_cap: plane.can_cap(),
        };
        let (resolved, resolved_receiver) = mpsc::channel(CALLS);
        let names: Vec<String> = config.connections.iter().map(|c| c.name().to_owned()).collect();
        let disconnected = udp.take_disconnected();
        let inputs = Inputs {
            tcp_look: disconnected.as_ref().map(|_| tokio::time::interval(TCP_LOOK)),
            disconnected,
            ike: Messages { datagrams: ike, streamed: udp.take_streamed() },
            plane: plane_events,
            unreachable: udp.take_unreachable(),
            addresses: monitor.addresses(),
            disturbed: monitor.disturbed(),
            tables: monitor.tables(),
            calls: call_receiver,
            resolved: resolved_receiver,
            signals,
        };
        let mut host = Host::new(host_config, Random::from_seed(seed));
        host.set_half_open_limits(config.daemon.half_open);
        let key_log = match &config.daemon.key_log {
            None => None,
            Some(folder) => {
                let failed = |e| RunError::System("open the files of key_log", e);
                warn!(
                    folder = %folder.display(),
                    "the keys of every tunnel are written down (key_log): whoever has them can read \
                     what goes through"
                );
                host.set_reveals_keys(true);
                Some(KeyLog::open(folder).map_err(failed)?)
            }
        };
        let responder = config.connections.iter().any(|c| c.ike.role == Role::Responder);
        let crash = match responder && config.daemon.crash_tokens {
            true => crash::open(&config.daemon.state_dir)
                .inspect_err(|e| warn!("peers notice a crash of this gateway late: {e}"))
                .ok(),
            false => None,
        };
        if let Some(kept) = &crash {
            host.set_crash_secrets(kept.secrets.clone());
        }
        let place = dns::Place::of_this_machine(
            &config.daemon.device,
            &config.daemon.resolv_conf,
            &config.daemon.state_dir,
        );
        let resolver = Resolver::start(config.daemon.resolver, place);
        let led = config.connections.iter().flat_map(|connection| &connection.gateways);
        let gateways = Gateways::open(&config.daemon.state_dir, led);
        let daemon = Daemon {
            host,
            connections: config.connections,
            uplinks: config.uplinks,
            clock,
            sleep: Sleep::watch(),
            udp,
            plane,
            routes,
            monitor,
            addresses: Vec::new(),
            interfaces: BTreeMap::new(),
            trapped: BTreeMap::new(),
            amends: amends::Amends::default(),
            established: BTreeMap::new(),
            resolver,
            gateways,
            resolved,
            history: History::new(clock.0, names.clone()),
            recorder: Recorder::new(clock.0, names, config.daemon.log_addresses, events),
            waiters: Waiters::default(),
            _server: server,
            _crash: crash,
            key_log,
        };
        info!(
            version = env!("CARGO_PKG_VERSION"),
            dataplane = description.kind.as_str(),
            reason = description.reason,
            control = %control.display(),
            "bewick runs"
        );
        Ok((daemon.begin(&inputs).await, inputs))
    }

    /// The first inputs: our addresses, and the connections that are to be up from the start.
    async fn begin(mut self, inputs: &Inputs) -> Self {
        let addresses = inputs.addresses.borrow().clone();
        self.advise(&addresses);
        self.on_addresses(addresses).await;
        for (index, connection) in self.connections.iter().enumerate() {
            let id = ConnectionId(index);
            let command = match (connection.ike.role, connection.start) {
                (Role::Initiator, Start::Auto) => Some(Command::Up(id)),
                (Role::Initiator, Start::Trap) => Some(Command::Trap(id)),
                _ => None,
            };
            if let Some(command) = command
                && let Err(e) = self.host.command(self.clock.now(), command)
            {
                warn!(connection = connection.name(), "{e}");
            }
        }
        self.carry_out().await;
        self
    }

    /// Tells the operator which settings of the machine are in the way.
    fn advise(&self, addresses: &[LocalAddress]) {
        let behind = |ipv4: bool| {
            self.connections.iter().any(|connection| {
                let mut nets = connection.ike.children().flat_map(|child| match child.ts_local {
                    bewick_ike::config::Selectors::List(list) => list.as_slice(),
                    bewick_ike::config::Selectors::Dynamic => &[],
                });
                connection.ike.role == Role::Responder
                    && nets.any(|ts| ts.is_ipv4() == ipv4 && ts.first() != ts.last())
            })
        };
        let mut advice = sysctl::forwarding(behind(true), behind(false));
        let initiates = self.connections.iter().any(|c| c.ike.role == Role::Initiator);
        if initiates && addresses.len() > 1 {
            advice.extend(sysctl::reverse_path(addresses));
        }
        advice.extend(self.connections.iter().filter_map(carry::half_tunnel));
        for advice in advice {
            warn!("{advice}");
        }
    }

    /// Goes on until a signal asks for the end.
    async fn serve(&mut self, mut inputs: Inputs) {
        loop {
            let due = [self.host.next_timeout(), self.waiters.next_deadline()];
            let due = due.into_iter().flatten().min().map(|time| self.clock.instant(time));
            let measure = self.history.next_measure().map(tokio::time::Instant::from_std);
            let amend = self.amends.due().map(tokio::time::Instant::from_std);
            let due = due.into_iter().chain(measure).chain(amend).min();
            tokio::select! {
                biased;
                () = inputs.signals.next() => break,
                Ok(()) = inputs.addresses.changed() => {
                    let addresses = inputs.addresses.borrow_and_update().clone();
                    self.on_addresses(addresses).await;
                }
                Ok(()) = inputs.disturbed.changed() => self.put_back().await,
                Ok(()) = inputs.tables.changed() => self.routes.close_again().await,
                () = sleep_until(due) => self.on_timeout(),
                Some(resolved) = inputs.resolved.recv() => self.on_resolved(resolved),
                Some(call) = inputs.calls.recv() => self.on_call(call).await,
                Some(event) = next_of(&mut inputs.plane) => self.on_plane_event(&event).await,
                Some(path) = next_of(&mut inputs.unreachable) => self.on_unreachable(path),
                Some(path) = next_gone(&mut inputs.disconnected) => self.on_disconnected(path),
                () = tick(&mut inputs.tcp_look) => self.keep_connections(),
                // last, for strangers can send without end
                Some(datagram) = inputs.ike.recv() => self.on_datagram(&datagram),
            }
            self.notice_sleep();
            self.measure();
            self.amend().await;
            self.carry_out().await;
        }
        info!("bewick ends");
        let Inputs { ike, signals, .. } = &mut inputs;
        tokio::select! {
            () = self.farewell(ike) => {}
            () = signals.next() => {
                warn!("a second signal: not waiting for the peers");
            }
        }
    }

    /// Deletes every IKE_SA and waits a moment for the peers to confirm.
    async fn farewell(&mut self, ike: &mut Messages) {
        if let Err(e) = self.host.command(self.clock.now(), Command::Shutdown) {
            warn!("{e}");
        }
        self.carry_out().await;
        let end = tokio::time::Instant::now() + FAREWELL;
        while self.host.status().next().is_some() {
            let due = self.host.next_timeout().map(|time| self.clock.instant(time));
            tokio::select! {
                Some(datagram) = ike.recv() => self.on_datagram(&datagram),
                () = sleep_until(due) => self.on_timeout(),
                () = tokio::time::sleep_until(end) => break,
            }
            self.carry_out().await;
        }
    }

    /// Removes all that was made. What can't be removed is told and does not stop the rest.
    async fn end(mut self) {
        self.resolver.close().await;
        match self.routes.shutdown().await {
            Ok(false) => {}
            Ok(true) => info!(
                "kill_switch is \"always\": what belongs in the tunnel stays closed; `bewick release` \
                 opens it"
            ),
            Err(e) => warn!("{e}"),
        }
        if let Err(e) = self.plane.shutdown().await {
            warn!("{e}");
        }
        let udp = self.udp.clone();
        drop(self);
        udp.shutdown();
    }

    fn on_datagram(&mut self, datagram: &IkeDatagram) {
        // Certificates are judged when they come; the time of day may have been set since the last.
        self.host.set_wall_clock(self.clock.time_of_day());
        let input = Input::Datagram { path: datagram.path, bytes: &datagram.bytes };
        self.host.handle(self.clock.now(), input);
    }

    fn on_timeout(&mut self) {
        let now = self.clock.now();
        if self.host.next_timeout().is_some_and(|due| due <= now) {
            self.host.handle(now, Input::Timeout);
        }
    }

    async fn on_addresses(&mut self, found: Vec<LocalAddress>) {
        if self.interfaces.len() > INTERFACES {
            self.interfaces.clear();
        }
        self.interfaces.extend(found.iter().map(|local| (local.address, local.ifindex)));
        self.udp.set_interfaces(self.interfaces.clone());
        let locals = found
            .iter()
            .map(|local| (local, uplink::of(&self.uplinks, &local.interface)))
            .filter(|(_, uplink)| uplink.used)
            .map(|(local, uplink)| bewick_mobike::LocalAddress {
                cost: uplink.cost,
                metric: local.metric.unwrap_or(u32::MAX),
                address: local.address,
                interface: local.interface.clone(),
                metered: uplink.metered,
            })
            .collect();
        self.recorder.addresses(&self.addresses, &found);
        // by a new uplink nothing leaves before the kernel knows how
        if let Err(e) = self.routes.prepare(&found).await {
            warn!("{e}");
        }
        self.addresses = found;
        self.host.handle(self.clock.now(), Input::Addresses(locals));
        // the move comes first: what is left to do here has time
        self.carry_out().await;
        self.lead_to_traps().await;
        if let Err(e) = self.routes.refresh(&self.addresses).await {
            warn!("{e}");
        }
    }

    /// Somebody has removed a rule, or a route that leads nowhere.
    async fn put_back(&mut self) {
        if let Err(e) = self.routes.refresh(&self.addresses).await {
            warn!("{e}");
        }
    }

    /// Whatever has woken us up: it may have been after a sleep, and no timer tells of that.
    fn notice_sleep(&mut self) {
        if let Some(slept) = self.sleep.notice(time_asleep()) {
            info!(seconds = slept.as_secs(), "the machine has slept");
            self.host.handle(self.clock.now(), Input::Resumed);
        }
    }

    fn on_unreachable(&mut self, path: Path) {
        debug!(%path, "an ICMP error says that the other end can't be reached");
        self.host.handle(self.clock.now(), Input::Unreachable(path));
    }

    fn on_disconnected(&mut self, path: Path) {
        debug!(%path, "the TCP connection is gone");
        self.host.handle(self.clock.now(), Input::Disconnected(path));
    }

    /// RFC 9329 §6.1: connections that no IKE_SA uses any more are to be closed.
    fn keep_connections(&self) {
        // One that a stranger has begun is none yet.
        let counts = |sa: &SaStatus<'_>| {
            sa.role == Role::Initiator || matches!(sa.state, "established" | "closing")
        };
        let used: BTreeSet<Path> =
            self.host.status().filter(counts).map(|sa| sa.path).filter(Path::is_tcp).collect();
        self.udp.keep_connections(&used);
    }

    async fn on_plane_event(&mut self, event: &PlaneEvent) {
        debug!(?event, "data plane");
        match event {
            PlaneEvent::Expire { id, .. } => {
                self.host.handle(self.clock.now(), Input::Expiring(*id));
            }
            PlaneEvent::EventsLost => {
                warn!(
                    "the data plane's events came faster than they could be read, and some are lost: \
                     if one said that a CHILD_SA's limit of octets or packets is near, its new keys \
                     come with the next rekey by time only (`bewick rekey` asks for them now)"
                );
                self.amends.want(Instant::now());
            }
            PlaneEvent::Disturbed => {
                warn!(
                    "another program has removed IPsec states or policies of bewick's from the kernel: \
                     what can be is put back, and a CHILD_SA that has lost a state is made anew"
                );
                self.amends.want(Instant::now());
            }
            PlaneEvent::Mapping { id, seen } => {
                let input = Input::Mapping { child: *id, remote: *seen };
                self.host.handle(self.clock.now(), input);
            }
            PlaneEvent::Acquire { trap, packet } => self.on_acquire(*trap, *packet),
        }
    }
}

async fn next_of<T>(source: &mut Option<mpsc::Receiver<T>>) -> Option<T> {
    match source {
        Some(source) => source.recv().await,
        None => std::future::pending().await,
    }
}

async fn next_gone(source: &mut Option<mpsc::UnboundedReceiver<Path>>) -> Option<Path> {
    match source {
        Some(source) => source.recv().await,
        None => std::future::pending().await,
    }
}

async fn tick(interval: &mut Option<tokio::time::Interval>) {
    match interval {
        Some(interval) => drop(interval.tick().await),
        None => std::future::pending().await,
    }
}

/// What goes over TCP; `None` if nothing may.
fn tcp(config: &Config) -> Option<TcpConfig> {
    let listen = config.daemon.tcp_listen;
    let opens = config.connections.iter().any(|one| one.policy.tcp != TcpUse::Off);
    (opens || listen.is_some()).then(|| TcpConfig { listen, ..TcpConfig::default() })
}

async fn sleep_until(due: Option<tokio::time::Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sleep_is_noticed_once_and_a_nap_is_not() {
        let at = Duration::from_millis;
        let mut sleep = Sleep { apart: at(5000) };
        assert_eq!(sleep.notice(at(5000)), None);
        assert_eq!(sleep.notice(at(4999)), None);
        assert_eq!(sleep.notice(at(6000)), None);
        assert_eq!(sleep.notice(at(6001)), Some(at(1001)));
        assert_eq!(sleep.notice(at(6001)), None);
        // short ones add up
        assert_eq!(sleep.notice(at(6800)), None);
        assert_eq!(sleep.notice(at(7600)), Some(at(1599)));
        assert_eq!(sleep.notice(at(3_600_000 + 7600)), Some(at(3_600_000)));
    }

    #[test]
    fn a_machine_that_is_awake_has_not_slept() {
        let mut sleep = Sleep::watch();
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(sleep.notice(time_asleep()), None);
    }
}
