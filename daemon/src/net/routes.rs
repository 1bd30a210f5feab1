//! Brings inner packets to the tunnel device: addresses on the device, routes in a table of our own,
//! and one rule per family that sends everything but our outer packets through that table.
//!
//! The kernel checks the source of what comes in by looking up the way back without our mark
//! (rp_filter, RFC 3704 §2.2), which would find the tunnel and drop every outer packet where the
//! tunnel is for everything. More rules let that check, which has the packet's ports swapped, see
//! the main table only.
//!
//! Which uplink an outer packet of the kernel's leaves by is told by more rules and tables
//! (`uplinks`).
//!
//! What is wanted is kept here and compared with what was made, so that adding is idempotent and
//! removing is exact.
//!
//! The kill switch: what is closed leads nowhere in our table, and `guard` holds those sockets that
//! ask no route. The kernel keeps all of it when the daemon dies, and the next one starts with it.

mod alone;
mod interfaces;
mod leftovers;
mod rules;
mod wanted;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    num::NonZeroU32,
};

use bewick_ike::{ChildId, ChildMove, ChildSa, TrafficSelector};
use futures_util::TryStreamExt;
use ipnet::IpNet;
use netlink_packet_route::{
    AddressFamily,
    address::{AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope},
    route::{RouteAttribute, RouteMessage, RouteMetric, RouteProtocol, RouteScope, RouteType},
};
use rtnetlink::{Handle, RouteMessageBuilder};
use tokio::task::JoinHandle;
use tracing::warn;

pub(super) use self::interfaces::if_id;
use self::{
    interfaces::Interfaces,
    rules::Rule,
    wanted::{Block, Inner, Kind, State, Wanted, child, towards},
};
use crate::net::{
    LocalAddress, NetError, TABLE,
    addresses::mtu_of,
    guard::{Guard, Means},
    mtu::Outer,
    uplinks::Uplinks,
};

/// rtm_protocol of our routes, so that others can tell whose they are.
pub(super) const PROTOCOL: u8 = 0xbe;
/// The metric of what blocks: worse than any other route.
const BLOCK_METRIC: u32 = 0xffff_0000;

/// RT_TABLE_MAIN, where the way to the peers is.
pub(super) const TABLE_MAIN: u32 = 254;

/// The tunnel device's addresses, routes and rules.
pub struct Routes {
    handle: Handle,
    connection: JoinHandle<()>,
    device: String,
    /// the kernel sends and takes ESP that is not in UDP
    raw_esp: bool,
    wanted: Wanted,
    made: State,
    /// what was made is all that is wanted
    settled: bool,
    uplinks: Uplinks,
    guard: Guard,
    interfaces: Interfaces,
    /// what was said last of what the guard can't do
    told: String,
    /// what the uplinks are, for how big a packet may be
    locals: Vec<LocalAddress>,
}

/// What is to be closed when the daemon starts.
#[derive(Clone, Debug)]
pub struct Closed {
    /// the connection's name
    pub connection: String,
    /// what must not leave in clear
    pub nets: Vec<IpNet>,
    /// whether or not an earlier run has left it closed
    pub always: bool,
    /// until the operator opens it without a daemon
    pub stays: bool,
    /// to every socket, not to what asks the routes alone
    pub guarded: bool,
}

/// The tunnel device.
#[derive(Clone, Copy)]
struct Link {
    index: u32,
    mtu: u32,
}

impl Routes {
    /// Starts with what is to be closed, and nothing else of what an earlier run may have left: what
    /// was closed and stays so is never open. `raw_esp` says whether outer packets may be ESP that is
    /// not in UDP.
    pub async fn open(device: &str, raw_esp: bool, closed: Vec<Closed>) -> Result<Self, NetError> {
        Routes::open_by(Means::ALL, device, raw_esp, closed).await
    }

    /// The same with these means to hold the kill switch.
    pub(super) async fn open_by(
        means: &'static [Means],
        device: &str,
        raw_esp: bool,
        closed: Vec<Closed>,
    ) -> Result<Self, NetError> {
        let (connection, handle, _) =
            rtnetlink::new_connection().map_err(|e| NetError::io("open a netlink socket", &e))?;
        let connection = tokio::spawn(connection);
        let (wanted, made) = (Wanted::default(), State::default());
        let uplinks = Uplinks::new(handle.clone());
        let guard = Guard::new(device, raw_esp, means);
        let (device, locals, told) = (device.into(), Vec::new(), String::new());
        let mut routes = Routes {
            handle,
            connection,
            device,
            raw_esp,
            wanted,
            made,
            settled: false,
            uplinks,
            guard,
            interfaces: Interfaces::default(),
            told,
            locals,
        };
        let left = routes.left_closed().await;
        let mut later = BTreeSet::new();
        for Closed { connection, nets, always, stays, guarded } in closed {
            let nets: Vec<IpNet> = nets.into_iter().filter(exists).collect();
            if always || !nets.is_empty() && nets.iter().all(|net| left.contains(net)) {
                routes.wanted.blocks.insert(connection, Block { nets, stays, guarded });
            } else if guarded {
                later.extend(nets);
            }
        }
        routes.reconcile().await?;
        let closed = routes.guard.set(routes.wanted.guarded()).await;
        routes.remove_leftovers().await?;
        match closed {
            Err(e) if routes.wanted.blocks.values().any(|block| block.stays) => return Err(e),
            Err(e) => routes.less(&e),
            Ok(()) => {}
        }
        if routes.wanted.guarded().is_empty()
            && let Err(e) = routes.guard.remove().await
        {
            warn!("{e}: it is tried again");
        }
        if !later.is_empty()
            && let Err(e) = routes.guard.probe(&later).await
        {
            routes.less(&e);
        }
        Ok(routes)
    }

    /// Tells that the routes alone keep closed what is to be.
    fn less(&mut self, e: &NetError) {
        let text = e.to_string();
        if std::mem::replace(&mut self.told, text.clone()) == text {
            return;
        }
        warn!(
            "{e}. Until then programs that bind to a network device, or send from UDP port 500 or 4500, \
             get past the kill switch"
        );
    }

    /// Adds what `sa` needs; on an error everything is as before.
    pub async fn add(&mut self, sa: &ChildSa, own: &[IpAddr]) -> Result<(), NetError> {
        let child = child(sa, own);
        if self.add_alone(sa.id, &child).await {
            return Ok(());
        }
        self.attempt(|wanted| drop(wanted.children.insert(sa.id, child))).await?;
        self.let_interfaces_pass().await;
        Ok(())
    }

    /// Removes what only `id` needed.
    pub async fn remove(&mut self, id: ChildId) -> Result<(), NetError> {
        if let Some(child) = self.wanted.children.remove(&id)
            && let Some(result) = self.remove_alone(&child).await
        {
            return result;
        }
        self.reconcile().await
    }

    #[cfg(test)]
    pub(in crate::net) fn is_as_wanted(&self) -> bool {
        self.made == self.wanted.state(self.raw_esp, &self.locals)
    }

    #[cfg(test)]
    pub(in crate::net) fn made_routes(&self) -> usize {
        self.made.routes.len()
    }

    /// Leads packets for what a CHILD_SA is to carry, which waits for them, to the device; `own` are the
    /// addresses of this machine. On an error everything is as before.
    pub async fn trap(
        &mut self,
        id: u32,
        ts_local: &[TrafficSelector],
        ts_remote: &[TrafficSelector],
        if_id: Option<NonZeroU32>,
        own: &[IpAddr],
    ) -> Result<(), NetError> {
        let mut routes = towards(ts_local, ts_remote, own);
        routes.retain(|(net, _)| exists(net));
        let trap = (Kind::to(if_id), routes);
        self.attempt(|wanted| drop(wanted.traps.insert(id, trap))).await?;
        self.let_interfaces_pass().await;
        Ok(())
    }

    /// Changes what is wanted; on an error everything is as before.
    async fn attempt(&mut self, change: impl FnOnce(&mut Wanted)) -> Result<(), NetError> {
        let before = self.wanted.clone();
        change(&mut self.wanted);
        let result = self.reconcile().await;
        if result.is_err() {
            self.wanted = before;
            // what can't be put back is tried again with the next change
            let _ = self.reconcile().await;
        }
        result
    }

    /// Ends [`Routes::trap`].
    pub async fn untrap(&mut self, id: u32) -> Result<(), NetError> {
        self.wanted.traps.remove(&id);
        self.reconcile().await
    }

    /// Has the inner packets be as big as the new paths allow (RFC 4301 §8.2.1).
    pub async fn moved(&mut self, moves: &[ChildMove]) -> Result<(), NetError> {
        let mut changed = false;
        for step in moves {
            if let Some(child) = self.wanted.children.get_mut(&step.id) {
                let size = |outer: Outer| [true, false].map(|v6| outer.inner_mtu(&self.locals, v6));
                let outer = child.outer.moved(&step.path, step.encap);
                changed |= size(outer) != size(child.outer);
                child.outer = outer;
            }
        }
        // Thousands of clients may move at once, and all routes are looked at for each.
        if changed { self.reconcile().await } else { Ok(()) }
    }

    /// Lets nothing for `nets` leave in clear from now on, whether `connection` is up or not.
    pub async fn block(&mut self, connection: &str, nets: Vec<IpNet>) -> Result<(), NetError> {
        let nets = nets.into_iter().filter(exists).collect();
        let block = Block { nets, stays: false, guarded: true };
        self.wanted.blocks.entry(connection.into()).or_insert(block);
        let routes = self.reconcile().await;
        self.close().await;
        routes
    }

    /// Ends [`Routes::block`], unless it is to stay.
    pub async fn unblock(&mut self, connection: &str) -> Result<(), NetError> {
        self.wanted.blocks.retain(|name, block| name != connection || block.stays);
        let routes = self.reconcile().await;
        self.close().await;
        routes
    }

    /// Has the guard know the XFRM interfaces that routes lead to.
    async fn let_interfaces_pass(&mut self) {
        if self.guard.let_pass(self.interfaces.names().cloned().collect()) {
            self.close().await;
        }
    }

    /// Has the guard close what is wanted; what it can't do is told, and no reason to go without the
    /// routes.
    async fn close(&mut self) {
        if let Err(e) = self.guard.set(self.wanted.guarded()).await {
            self.less(&e);
        }
    }

    /// Removes all that a daemon which is gone has left closed, and everything else of ours.
    pub async fn release() -> Result<(), NetError> {
        let mut routes = Routes::open("", false, Vec::new()).await?;
        routes.guard.set(BTreeSet::new()).await
    }

    /// Lets the kernel's outer packets leave by an uplink that is new, or has another router, before
    /// anything moves to it. What is gone waits for [`Routes::refresh`].
    pub async fn prepare(&mut self, locals: &[LocalAddress]) -> Result<(), NetError> {
        self.locals = locals.to_vec();
        // How big a packet may be follows from them, with the next change.
        self.settled = false;
        match self.raw_esp {
            true => self.uplinks.prepare(locals).await,
            // ESP leaves by our sockets, which are told the uplink
            false => Ok(()),
        }
    }

    /// Puts back what the kernel has dropped by itself, for it removes a route with its source
    /// address, and takes back what was for addresses that are not among `locals` any more.
    pub async fn refresh(&mut self, locals: &[LocalAddress]) -> Result<(), NetError> {
        let uplinks = match self.raw_esp {
            true => self.uplinks.refresh(locals).await,
            false => Ok(()),
        };
        self.locals = locals.to_vec();
        self.made.routes.clear();
        self.made.rules.clear();
        let result = self.reconcile().await.and(uplinks);
        self.let_interfaces_pass().await;
        result
    }

    /// Puts back what another program has removed from the packet filter.
    pub async fn close_again(&mut self) {
        match self.guard.check().await {
            Ok(true) => warn!("another program had opened what the kill switch closes"),
            Ok(false) => {}
            Err(e) => self.less(&e),
        }
    }

    /// Removes everything but what stays closed, and says whether anything does.
    pub async fn shutdown(&mut self) -> Result<bool, NetError> {
        self.wanted.children.clear();
        self.wanted.traps.clear();
        self.wanted.blocks.retain(|_, block| block.stays);
        let result = self.reconcile().await;
        let result = result.and(self.uplinks.refresh(&[]).await);
        let guard = self.guard.set(self.wanted.guarded()).await;
        self.remove_leftovers().await?;
        let result = match guard {
            Err(e) if !self.wanted.blocks.is_empty() => {
                self.less(&e);
                result
            }
            guard => result.and(guard),
        };
        result.map(|()| !self.wanted.blocks.is_empty())
    }

    /// Makes the kernel's state the one that is wanted. Goes on after an error, and returns the
    /// first.
    async fn reconcile(&mut self) -> Result<(), NetError> {
        let goal = self.wanted.state(self.raw_esp, &self.locals);
        self.settled = goal == self.made;
        if self.settled {
            return Ok(());
        }
        let mut result = Ok(());
        let mut note = |outcome: Result<(), NetError>| {
            let ok = outcome.is_ok();
            if result.is_ok() {
                result = outcome;
            }
            ok
        };
        // before anything points to it there is what it points to, and the other way round
        let new =
            |(key, inner): &(&(IpNet, Kind), &Inner)| self.made.routes.get(key) != Some(*inner);
        let added: Vec<((IpNet, Kind), Inner)> =
            goal.routes.iter().filter(new).map(|(key, inner)| (*key, *inner)).collect();
        let mut kinds: BTreeSet<Kind> = added.iter().map(|((_, kind), _)| *kind).collect();
        kinds.extend((!goal.addresses.is_subset(&self.made.addresses)).then_some(Kind::Device));
        let mut links = BTreeMap::new();
        for kind in kinds {
            match self.find(kind).await {
                Ok(link) => links.extend(link.map(|link| (kind, link))),
                Err(e) => drop(note(Err(e))),
            }
        }
        for address in goal.addresses.difference(&self.made.addresses.clone()) {
            if let Some(link) = links.get(&Kind::Device)
                && note(self.add_address(link.index, *address).await)
            {
                self.made.addresses.insert(*address);
            }
        }
        for (key, inner) in added {
            let link = links.get(&key.1).copied();
            if (link.is_some() || !key.1.is_inside())
                && note(self.add_route(link, key, inner).await)
            {
                self.made.routes.insert(key, inner);
            }
        }
        for rule in goal.rules.difference(&self.made.rules.clone()) {
            if note(self.add_rule(*rule).await) {
                self.made.rules.insert(*rule);
            }
        }
        for rule in self.made.rules.clone().into_iter().rev() {
            if !goal.rules.contains(&rule) && note(self.remove_rule(rule).await) {
                self.made.rules.remove(&rule);
            }
        }
        for (key, _) in self.made.routes.clone() {
            if goal.routes.contains_key(&key) {
                continue;
            }
            // Another way to the network has taken its place already.
            let mut others = self.made.routes.keys().filter(|other| **other != key);
            let replaced =
                key.1.is_inside() && others.any(|(net, to)| *net == key.0 && to.is_inside());
            if replaced || note(self.remove_route(key).await) {
                self.made.routes.remove(&key);
            }
        }
        for address in self.made.addresses.clone().difference(&goal.addresses) {
            if note(self.remove_address(*address).await) {
                self.made.addresses.remove(address);
            }
        }
        self.settled = result.is_ok() && self.made == goal;
        result
    }

    async fn find_device(&self) -> Result<Link, NetError> {
        let mut found = self.handle.link().get().match_name(self.device.clone()).execute();
        let what = || format!("find the device {}", self.device);
        match found.try_next().await {
            Ok(Some(link)) => {
                Ok(Link { index: link.header.index, mtu: mtu_of(&link).unwrap_or(u32::MAX) })
            }
            Ok(None) => Err(NetError::new(what(), &rtnetlink::Error::RequestFailed)),
            Err(e) => Err(NetError::new(what(), &e)),
        }
    }

    async fn add_address(&self, link: u32, address: IpAddr) -> Result<(), NetError> {
        let mut request = self.handle.address().add(link, address, host_prefix(address)).replace();
        // nobody else can have it, and there is no one to ask
        let flags = AddressFlags::Nodad | AddressFlags::Noprefixroute;
        let message = request.message_mut();
        message.header.flags = AddressHeaderFlags::Nodad;
        message.header.scope = AddressScope::Universe;
        message.attributes.push(AddressAttribute::Flags(flags));
        let what = format!("put address {address} on {}", self.device);
        request.execute().await.map_err(|e| NetError::new(what, &e))
    }

    async fn remove_address(&self, address: IpAddr) -> Result<(), NetError> {
        let Ok(link) = self.find_device().await else { return Ok(()) };
        let mut message = AddressMessage::default();
        message.header.family = family(address.is_ipv4());
        message.header.prefix_len = host_prefix(address);
        message.header.index = link.index;
        message.attributes.push(AddressAttribute::Local(address));
        message.attributes.push(AddressAttribute::Address(address));
        let what = format!("remove address {address} from {}", self.device);
        gone_is_fine(self.handle.address().del(message).execute().await, what)
    }

    fn route(
        &self,
        link: Option<Link>,
        (net, kind): (IpNet, Kind),
        inner: Inner,
    ) -> Result<RouteMessage, NetError> {
        let what = |e: &dyn std::fmt::Display| NetError {
            operation: format!("build a route to {net}"),
            message: e.to_string(),
            errno: None,
        };
        let mut route = RouteMessageBuilder::<IpAddr>::new()
            .table_id(TABLE)
            .protocol(RouteProtocol::from(PROTOCOL))
            .destination_prefix(net.network(), net.prefix_len())
            .map_err(|e| what(&e))?;
        route = match (kind, link) {
            (Kind::Block, _) => route.kind(RouteType::Unreachable).priority(BLOCK_METRIC),
            (Kind::Pass, _) => route.kind(RouteType::Throw).priority(BLOCK_METRIC),
            (Kind::Device | Kind::Interface(_), Some(link)) => {
                route.scope(RouteScope::Link).output_interface(link.index)
            }
            (Kind::Device | Kind::Interface(_), None) => route.scope(RouteScope::Link),
        };
        if let Some(source) = inner.source {
            route = route.pref_source(source).map_err(|e| what(&e))?;
        }
        let mut route = route.build();
        if let (Some(mtu), Some(link)) = (inner.mtu, link) {
            // the kernel takes a route's word even where the device has room for less
            let metrics = vec![RouteMetric::Mtu(mtu.min(link.mtu))];
            route.attributes.push(RouteAttribute::Metrics(metrics));
        }
        Ok(route)
    }

    async fn add_route(
        &self,
        link: Option<Link>,
        key: (IpNet, Kind),
        inner: Inner,
    ) -> Result<(), NetError> {
        let route = self.route(link, key, inner)?;
        let what = match key {
            (net, Kind::Block) => format!("block {net}"),
            (net, Kind::Pass) => format!("keep {net} out of the tunnel"),
            (net, Kind::Device) => format!("route {net} to {}", self.device),
            (net, Kind::Interface(if_id)) => {
                format!("route {net} to the XFRM interface with if_id {if_id}")
            }
        };
        let request = self.handle.route().add(route).replace();
        request.execute().await.map_err(|e| NetError::new(what, &e))
    }

    async fn remove_route(&self, key: (IpNet, Kind)) -> Result<(), NetError> {
        let mut route = self.route(None, key, Inner::default())?;
        // any scope: the kernel has it as it was made
        route.header.scope = RouteScope::NoWhere;
        let what = format!("remove the route to {}", key.0);
        gone_is_fine(self.handle.route().del(route).execute().await, what)
    }

    async fn add_rule(&self, rule: Rule) -> Result<(), NetError> {
        let mut request = self.handle.rule().add();
        *request.message_mut() = rule.message();
        let what = "add the rules for the tunnel";
        match request.execute().await {
            Err(rtnetlink::Error::NetlinkError(e)) if e.raw_code() == -libc::EEXIST => Ok(()),
            result => result.map_err(|e| NetError::new(what, &e)),
        }
    }

    async fn remove_rule(&self, rule: Rule) -> Result<(), NetError> {
        let what = "remove the rules for the tunnel";
        gone_is_fine(self.handle.rule().del(rule.message()).execute().await, what.into())
    }
}

impl Drop for Routes {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

/// Whether this machine has the family of `net`: without IPv6 nothing of it leaves.
fn exists(net: &IpNet) -> bool {
    net.addr().is_ipv4() || std::path::Path::new("/proc/net/if_inet6").exists()
}

pub(super) fn family(ipv4: bool) -> AddressFamily {
    if ipv4 { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

fn host_prefix(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// The result of a removal: what is not there any more is removed.
pub(super) fn gone_is_fine(
    result: Result<(), rtnetlink::Error>,
    what: String,
) -> Result<(), NetError> {
    const GONE: [i32; 4] = [libc::ESRCH, libc::ENOENT, libc::ENODEV, libc::EADDRNOTAVAIL];
    match result {
        Err(rtnetlink::Error::NetlinkError(e)) if GONE.contains(&e.raw_code().saturating_abs()) => {
            Ok(())
        }
        result => result.map_err(|e| NetError::new(what, &e)),
    }
}
