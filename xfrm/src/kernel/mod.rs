//! The data plane of the Linux kernel: XFRM over netlink.
//!
//! A CHILD_SA is two states and, for each pair of traffic selectors, three policies (in, forward, out; none
//! for what is forwarded in transport mode), bound together by a reqid of its own. Keys go into the kernel
//! and are not read back but for the counters' sake, in buffers that are zeroed.

mod device;
mod events;
mod hold;
mod ledger;
mod message;
mod method;
mod migrate;
mod migrating;
mod moves;
mod policy;
mod queueing;
mod reconcile;
mod retire;
mod socket;
mod sockopt;
mod state;
#[cfg(test)]
mod tests;
mod together;
mod trap;
mod watch;

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Instant,
};

use bewick_ike::{
    ChildId, ChildMove, ChildSa, EspKeys, EspSpi, EspSuite, Mode, Path, Secret, TrafficSelector,
};
use netlink_packet_xfrm::constants::{XFRM_MSG_NEWSA, XFRM_MSG_UPDSA};
use tokio::sync::mpsc;

use self::{
    hold::{Held, Left},
    ledger::{Entry, Shared, add},
    message::Request,
    policy::{Direction, Flow, Owners, Tag, directions},
    queueing::Queueing,
    reconcile::remove_leftovers,
    socket::Socket,
    state::{Key, Place, Replay, Side, Spent, Usage},
    trap::Traps,
    watch::Watcher,
};
use crate::{
    events::Events,
    plane::{
        Answer, Counters, DataPlane, Description, Kind, MoveReport, PlaneError, PlaneEvent,
        Reconciled, Since, Trap, TrapId,
    },
};

pub(crate) use self::device::limit_frames;
pub use self::{
    method::{Method, methods},
    sockopt::bypass,
};

/// How a [`KernelPlane`] is set up.
#[derive(Clone, Debug)]
pub struct Config {
    /// the name of the dummy device for virtual addresses and inner routes
    pub device: String,
    /// the firewall mark of the outer packets, 0 for none
    pub mark: u32,
    /// why this plane was taken, for `bewick status`
    pub reason: String,
    /// the first method to try for moves, even where the kernel can do better: for tests
    pub method: Method,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            device: "bewick0".into(),
            mark: 0xbe1c,
            reason: String::new(),
            method: Method::MigrateState,
        }
    }
}

/// A CHILD_SA that is installed; `sa.path` and `sa.encap` are where it is now.
struct Child {
    sa: ChildSa,
    flows: Vec<Flow>,
    /// it has no outbound state yet; see [`ChildSa::waits`]
    waits: bool,
    /// it has no outbound state any more; see [`DataPlane::retire`]
    retired: bool,
}

/// CHILD_SAs in the kernel's XFRM, in the network namespace of the thread that made the plane.
pub struct KernelPlane {
    config: Config,
    xfrm: Socket,
    route: Socket,
    method: Method,
    /// what a state has carried goes along when it is migrated
    keeps_counts: bool,
    processors: libc::c_long,
    /// CHILD_SAs of the move under way that the kernel does not migrate
    refused: u32,
    children: BTreeMap<ChildId, Child>,
    owners: Owners,
    traps: Traps,
    tag: Tag,
    queueing: Queueing,
    held: Option<Held>,
    /// since when the state that never comes is there
    larva: Option<Instant>,
    /// states that a move has read before it comes to them
    read_before: BTreeMap<Key, (Replay, Usage)>,
    ledger: Shared,
    watcher: Watcher,
    /// packets in when they were last counted, and since when there are so many
    noted: BTreeMap<ChildId, (u64, Instant)>,
    events: Arc<Events>,
    receiver: Option<mpsc::Receiver<PlaneEvent>>,
    task: tokio::task::AbortHandle,
    closed: bool,
}

impl KernelPlane {
    /// Asks the kernel whether it does ESP, by adding a state that nothing uses and deleting it.
    pub fn probe() -> Result<(), PlaneError> {
        probe(&mut Socket::open(libc::NETLINK_XFRM)?)
    }

    /// Opens the sockets and makes the device. Must be called within a tokio runtime with IO and time.
    ///
    /// Fails if the kernel has no ESP, if we lack CAP_NET_ADMIN, or if the device's name is taken.
    pub fn new(config: Config) -> Result<Self, PlaneError> {
        let mut xfrm = Socket::open(libc::NETLINK_XFRM)?;
        probe(&mut xfrm)?;
        let tag = Tag::of(config.mark);
        let queueing = Queueing::open();
        let left = hold::Left::find(&mut xfrm);
        let held = remove_leftovers(&mut xfrm, config.mark, tag)?;
        if left == Left::Ours || held && left == Left::Nothing {
            queueing.reset();
        }
        let (method, keeps_counts) = method::choose(&mut xfrm, config.method, config.mark);
        let ledger = Shared::default();
        let events::Started { events, receiver, task } =
            events::start(ledger.clone(), tag, xfrm.port())?;
        let mut route = Socket::open(libc::NETLINK_ROUTE)?;
        let watcher = Watcher::start(ledger.clone()).inspect_err(|_| task.abort())?;
        device::create(&mut route, &config.device).inspect_err(|_| task.abort())?;
        Ok(KernelPlane {
            config,
            xfrm,
            route,
            method,
            keeps_counts,
            // SAFETY: it takes a number and gives one.
            processors: unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) },
            refused: 0,
            children: BTreeMap::new(),
            owners: Owners::default(),
            traps: Traps::default(),
            tag,
            queueing,
            held: None,
            larva: None,
            read_before: BTreeMap::new(),
            ledger,
            watcher,
            noted: BTreeMap::new(),
            events,
            receiver: Some(receiver),
            task,
            closed: false,
        })
    }

    fn add(&mut self, sa: &ChildSa) -> Result<(), PlaneError> {
        if self.children.contains_key(&sa.id) {
            return Err(PlaneError::Unsupported(format!("{:?} is installed already", sa.id)));
        }
        let waits = sa.waits && self.children.values().any(|child| child.sa.reqid == sa.reqid);
        if sa.mode == Mode::Transport && sa.encap {
            let text = "transport mode is not used in UDP, as through a NAT";
            return Err(PlaneError::Unsupported(text.into()));
        }
        let child = Child { sa: sa.clone(), flows: policy::flows(sa)?, waits, retired: false };
        let place = Place::of(sa);
        // Policies name a reqid, so that what sends is whichever outbound state of it is there.
        let sides: &[Side] = if waits { &[Side::In] } else { &[Side::In, Side::Out] };
        for &side in sides {
            let new = Spent::default();
            if let Err(error) = self.put_state(sa, side, place, &Replay::fresh(sa), new) {
                if side == Side::Out {
                    let _ = self.delete_state(place.key(sa, Side::In));
                }
                return Err(match error.errno() {
                    Some(libc::EEXIST) => PlaneError::SpiInUse,
                    _ => error,
                });
            }
            self.enter(sa, side, place, new);
        }
        let flows = child.flows.clone();
        self.children.insert(sa.id, child);
        for flow in &flows {
            self.owners.add(*flow, sa.id);
        }
        let tag = self.tag;
        for &direction in directions(sa.mode) {
            for flow in &flows {
                let request = policy::of_child(tag, flow, direction, sa);
                if let Err(error) = self.xfrm.request("adding a policy", request) {
                    let _ = self.take_out(sa.id);
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    fn take_out(&mut self, id: ChildId) -> Result<(), PlaneError> {
        let Some(child) = self.children.remove(&id) else {
            return Ok(());
        };
        let mut result = self.release_heirs(child.sa.reqid);
        let tag = self.tag;
        for flow in &child.flows {
            self.owners.remove(flow, id);
            let heir = self.owners.current(flow).and_then(|id| self.children.get(&id));
            let heir = heir.map(|child| child.sa.clone());
            let has = |sa: &ChildSa, direction| directions(sa.mode).contains(&direction);
            for direction in [Direction::Out, Direction::Forward, Direction::In] {
                let done = match &heir {
                    None if direction == Direction::Out => self.vacate(flow),
                    Some(sa) if has(sa, direction) => self
                        .xfrm
                        .request("restoring a policy", policy::of_child(tag, flow, direction, sa)),
                    _ if !has(&child.sa, direction) => Ok(()),
                    _ => gone(
                        self.xfrm.request("deleting a policy", policy::delete(flow, direction)),
                        libc::ENOENT,
                    ),
                };
                result = result.and(done);
            }
        }
        let states = self.ledger.lock().states_of(id);
        for (key, _) in states {
            result = result.and(self.delete_state(key));
        }
        self.ledger.lock().forget(id);
        self.watcher.forget(id);
        self.noted.remove(&id);
        self.events.forget(id);
        result
    }

    /// Lets those of this reqid send that wait for one before them, if there is none any more.
    fn release_heirs(&mut self, reqid: u32) -> Result<(), PlaneError> {
        let all = self.children.iter().filter(|(_, child)| child.sa.reqid == reqid);
        if all.clone().any(|(_, child)| !child.waits && !child.retired) {
            return Ok(());
        }
        let heirs: Vec<ChildId> = all.map(|(id, _)| *id).collect();
        heirs.into_iter().try_for_each(|id| self.release(id))
    }

    /// Lets a CHILD_SA send if it waits.
    fn release(&mut self, id: ChildId) -> Result<(), PlaneError> {
        let Some(child) = self.children.get_mut(&id).filter(|child| child.waits && !child.retired)
        else {
            return Ok(());
        };
        let sa = child.sa.clone();
        let place = Place::of(&sa);
        self.put_state(&sa, Side::Out, place, &Replay::fresh(&sa), Spent::default())?;
        self.enter(&sa, Side::Out, place, Spent::default());
        if let Some(child) = self.children.get_mut(&id) {
            child.waits = false;
        }
        Ok(())
    }

    fn count(&mut self, id: ChildId) -> Result<Counters, PlaneError> {
        if !self.children.contains_key(&id) {
            return Err(PlaneError::UnknownChild(id));
        }
        // Read before the states: what expires in between is then missing, not counted twice.
        let (mut counters, states) = {
            let ledger = self.ledger.lock();
            (ledger.carried(id), ledger.states_of(id))
        };
        for (key, entry) in states {
            match self.xfrm.ask("reading a state's counters", state::get(key), state::usage) {
                Ok(usage) => add(&mut counters, entry.side, usage),
                Err(error) if error.errno() == Some(libc::ESRCH) => {}
                Err(error) => return Err(error),
            }
        }
        let now = (counters.packets_in, Instant::now());
        let noted = self.noted.entry(id).or_insert(now);
        if noted.0 != counters.packets_in {
            *noted = now;
        }
        Ok(counters)
    }

    fn mark_now(&mut self, id: ChildId) -> Result<(), PlaneError> {
        let arrivals = watch::arrivals(&mut self.xfrm, &self.ledger, id)?;
        let noted = self.noted.get(&id).filter(|noted| noted.0 == arrivals.packets);
        let since = noted.map_or_else(Instant::now, |noted| noted.1);
        self.watcher.mark(id, arrivals, since);
        Ok(())
    }

    fn close(&mut self) -> Result<(), PlaneError> {
        if std::mem::replace(&mut self.closed, true) {
            return Ok(());
        }
        let ids: Vec<ChildId> = self.children.keys().copied().collect();
        let mut result = Ok(());
        for trap in self.traps.names() {
            result = result.and(self.clear_trap_now(trap));
        }
        for id in ids {
            result = result.and(self.take_out(id));
        }
        if self.larva.take().is_some() {
            let _ = self.xfrm.requests("deleting a state", hold::forget_larvae());
        }
        self.queueing.put_back();
        self.task.abort();
        result.and(device::delete(&mut self.route, &self.config.device))
    }

    /// Adds the state of `sa` in one direction at `place`; its limits are what `spent` has left.
    fn put_state(
        &mut self,
        sa: &ChildSa,
        side: Side,
        place: Place,
        replay: &Replay,
        spent: Spent,
    ) -> Result<(), PlaneError> {
        let (mark, limits) = (self.config.mark, state::limits(sa, spent, 0));
        let operation = words(side, "adding the inbound state", "adding the outbound state");
        let request = state::put(XFRM_MSG_NEWSA, sa, side, place, replay, mark, limits)?;
        let result = self.xfrm.request(operation, request);
        // Without a device that can the kernel mostly does it by itself; some drivers refuse.
        let refused = match result {
            Err(error) if state::offloads(sa, place) && error.errno() != Some(libc::EEXIST) => {
                error
            }
            result => return result,
        };
        let mut plain = sa.clone();
        plain.carriage.offload = false;
        let request = state::put(XFRM_MSG_NEWSA, &plain, side, place, replay, mark, limits)?;
        self.xfrm.request(operation, request)?;
        tracing::info!(error = %refused, id = ?sa.id, "no offload: the kernel does ESP itself");
        Ok(())
    }

    /// Changes ports and limits, the latter to those of a state that `began` after so much, and the
    /// seconds after its making at which the state ends (0: never).
    fn update_state(
        &mut self,
        sa: &ChildSa,
        side: Side,
        place: Place,
        began: Spent,
        lifetime: u64,
    ) -> Result<(), PlaneError> {
        let request = self.updated(sa, side, place, began, lifetime)?;
        self.xfrm.request(
            words(side, "updating the inbound state", "updating the outbound state"),
            request,
        )
    }

    /// The request of [`KernelPlane::update_state`].
    fn updated(
        &self,
        sa: &ChildSa,
        side: Side,
        place: Place,
        began: Spent,
        lifetime: u64,
    ) -> Result<Request, PlaneError> {
        let replay = Replay::fresh(sa); // has to be well-formed, and is not applied
        let (mark, limits) = (self.config.mark, state::limits(sa, began, lifetime));
        state::put(XFRM_MSG_UPDSA, sa, side, place, &replay, mark, limits)
    }

    fn delete_state(&mut self, key: Key) -> Result<(), PlaneError> {
        gone(self.xfrm.request("deleting a state", state::delete(key)), libc::ESRCH)
    }

    /// Sequence numbers, replay window and traffic of a state.
    fn snapshot(&mut self, key: Key) -> Result<(Replay, Usage), PlaneError> {
        if let Some(read) = self.held.as_mut().and_then(|held| held.take(key)) {
            return Ok(read);
        }
        self.xfrm.ask("reading a state's sequence numbers", state::query(key), state::snapshot)
    }

    /// Notes that `sa` has a state at `place`, which `began` after so much.
    fn enter(&mut self, sa: &ChildSa, side: Side, place: Place, began: Spent) {
        self.enter_as(sa, side, place, began, place.addresses(side).0);
    }

    /// The same of a state that has another `source` address in the kernel.
    fn enter_as(&mut self, sa: &ChildSa, side: Side, place: Place, began: Spent, source: IpAddr) {
        let (remote, encap, reqid) = (place.path.remote, place.encap, sa.reqid);
        let entry = Entry { id: sa.id, side, reqid, remote, source, began, encap, left: None };
        self.ledger.lock().insert(place.key(sa, side), entry);
    }
}

impl DataPlane for KernelPlane {
    fn describe(&self) -> Description {
        let (reason, move_method) = (self.config.reason.clone(), self.method.as_str());
        Description { kind: Kind::Kernel, reason, move_method }
    }

    fn device(&self) -> &str {
        &self.config.device
    }

    fn install<'a>(&'a mut self, sa: &'a ChildSa) -> Answer<'a, ()> {
        Box::pin(async move {
            let result = self.add(sa);
            self.after(result)
        })
    }

    fn move_children<'a>(&'a mut self, moves: &'a [ChildMove]) -> Answer<'a, MoveReport> {
        Box::pin(async move {
            // RFC 4555 §1.2: only tunnels are.
            let stays = |one: &&ChildMove| {
                self.children.get(&one.id).is_some_and(|c| c.sa.mode == Mode::Transport)
            };
            let result = match moves.iter().find(stays) {
                Some(one) => Err(PlaneError::Unsupported(format!(
                    "{:?} is in transport mode, which is not moved",
                    one.id
                ))),
                None => self.move_all(moves),
            };
            self.after(result)
        })
    }

    fn remove(&mut self, id: ChildId) -> Answer<'_, ()> {
        Box::pin(async move {
            let result = self.take_out(id);
            self.after(result)
        })
    }

    fn retire<'a>(&'a mut self, ids: &'a [ChildId]) -> Answer<'a, ()> {
        Box::pin(async move {
            let result = ids.iter().try_for_each(|id| self.retire_now(*id));
            self.after(result)
        })
    }

    fn set_trap<'a>(&'a mut self, trap: &'a Trap) -> Answer<'a, ()> {
        Box::pin(async move {
            let result = self.set_trap_now(trap);
            self.after(result)
        })
    }

    fn clear_trap(&mut self, id: TrapId) -> Answer<'_, ()> {
        Box::pin(async move {
            let result = self.clear_trap_now(id);
            self.after(result)
        })
    }

    fn counters(&mut self, id: ChildId) -> Answer<'_, Counters> {
        Box::pin(async move { self.count(id) })
    }

    fn mark(&mut self, id: ChildId) {
        if self.children.contains_key(&id)
            && let Err(error) = self.mark_now(id)
        {
            tracing::debug!(%error, ?id, "what a move costs is not known");
        }
    }

    fn since_mark(&mut self, id: ChildId) -> Option<Since> {
        if !self.watcher.watches(id) {
            return None;
        }
        let arrivals = watch::arrivals(&mut self.xfrm, &self.ledger, id).ok()?;
        self.watcher.take(id, arrivals)
    }

    fn reconcile(&mut self) -> Answer<'_, Reconciled> {
        Box::pin(async move { self.reconcile_now() })
    }

    fn take_events(&mut self) -> Option<mpsc::Receiver<PlaneEvent>> {
        self.receiver.take()
    }

    fn path(&self, id: ChildId) -> Option<Path> {
        self.children.get(&id).map(|child| child.sa.path)
    }

    fn shutdown(&mut self) -> Answer<'_, ()> {
        Box::pin(async move { self.close() })
    }
}

/// A plane that nobody has shut down does so by itself.
impl Drop for KernelPlane {
    fn drop(&mut self) {
        if let Err(error) = self.close() {
            tracing::warn!(%error, "the kernel's IPsec state could not be cleared");
        }
    }
}

fn words(side: Side, inbound: &'static str, outbound: &'static str) -> &'static str {
    match side {
        Side::In => inbound,
        Side::Out => outbound,
    }
}

/// Takes "it is not there" for success.
fn gone(result: Result<(), PlaneError>, errno: i32) -> Result<(), PlaneError> {
    match result {
        Err(error) if error.errno() == Some(errno) => Ok(()),
        result => result,
    }
}

fn probe(xfrm: &mut Socket) -> Result<(), PlaneError> {
    let sa = nobody();
    let place = Place::of(&sa);
    let limits = state::limits(&sa, Spent::default(), 0);
    let request: Request =
        state::put(XFRM_MSG_NEWSA, &sa, Side::Out, place, &Replay::fresh(&sa), 0, limits)?;
    match xfrm.request("adding a state", request) {
        // Another probe at the same moment.
        Err(error) if error.errno() == Some(libc::EEXIST) => Ok(()),
        Err(error) => Err(error),
        Ok(()) => gone(
            xfrm.request("deleting a state", state::delete(place.key(&sa, Side::Out))),
            libc::ESRCH,
        ),
    }
}

/// A CHILD_SA from and to addresses that are nobody's (RFC 5737), so that no packet ever meets it.
fn nobody() -> ChildSa {
    let (a, b) = (Ipv4Addr::new(192, 0, 2, 253), Ipv4Addr::new(192, 0, 2, 254));
    let keys = || EspKeys { encryption: Secret::new(vec![0; 20]), integrity: Secret::default() };
    let any = TrafficSelector::from_addr(a.into());
    ChildSa {
        id: ChildId(0),
        reqid: 0,
        spi_in: EspSpi(0xbe1c_0001),
        spi_out: EspSpi(0xbe1c_0002),
        mode: Default::default(),
        suite: EspSuite::AesGcm16 { key_bits: 128 },
        esn: false,
        keys_in: keys(),
        keys_out: keys(),
        ts_local: vec![any],
        ts_remote: vec![any],
        path: Path::new(SocketAddr::from((a, 500)), SocketAddr::from((b, 500))),
        encap: false,
        virtual_ips: Vec::new(),
        waits: false,
        limits: Default::default(),
        carriage: Default::default(),
    }
}
