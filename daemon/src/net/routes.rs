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
//! removing is exact. Once a client's connection has been up, its networks stay blocked until it is
//! taken down, so that nothing leaves in clear while the tunnel is away.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv6Addr},
};

use bewick_ike::{ChildId, ChildMove, ChildSa};
use futures_util::TryStreamExt;
use ipnet::{IpNet, Ipv6Net};
use netlink_packet_route::{
    AddressFamily, IpProtocol,
    address::{AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope},
    route::{RouteAttribute, RouteMessage, RouteMetric, RouteProtocol, RouteScope, RouteType},
    rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage, RulePortRange},
};
use rtnetlink::{Handle, IpVersion, RouteMessageBuilder};
use tokio::task::JoinHandle;

use crate::net::{
    LocalAddress, MARK, NEAR_PRIORITY, NetError, OUTER_PRIORITY, RULE_PRIORITY, TABLE,
    UPLINK_PRIORITY, addresses::mtu_of, is_our_table, mtu::Outer, uplinks::Uplinks,
};

/// rtm_protocol of our routes, so that others can tell whose they are.
pub(super) const PROTOCOL: u8 = 0xbe;
/// The metric of what blocks: worse than any other route.
const BLOCK_METRIC: u32 = 0xffff_0000;

/// RT_TABLE_MAIN, where the way to the peers is.
pub(super) const TABLE_MAIN: u32 = 254;

/// fe80::/10: never beyond the link (RFC 4291 §2.5.6).
const LINK_LOCAL: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10);

/// The tunnel device's addresses, routes and rules.
pub struct Routes {
    handle: Handle,
    connection: JoinHandle<()>,
    device: String,
    /// the kernel sends and takes ESP that is not in UDP
    raw_esp: bool,
    wanted: Wanted,
    made: State,
    uplinks: Uplinks,
    /// what the uplinks are, for how big a packet may be
    locals: Vec<LocalAddress>,
}

/// What the connections ask for.
#[derive(Clone, Debug, Default)]
struct Wanted {
    children: BTreeMap<ChildId, Child>,
    /// by connection, what must not leave in clear
    blocks: BTreeMap<String, Vec<IpNet>>,
}

/// What one CHILD_SA asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Child {
    addresses: Vec<IpAddr>,
    /// with the address that packets of this machine are to have
    routes: Vec<(IpNet, Option<IpAddr>)>,
    outer: Outer,
}

/// What a route does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    /// leads to the tunnel device
    Device,
    /// leads nowhere
    Block,
    /// leaves the packet to the tables that come after ours
    Pass,
}

/// What there is, or is to be, in the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct State {
    addresses: BTreeSet<IpAddr>,
    routes: BTreeMap<(IpNet, Kind), Inner>,
    rules: BTreeSet<Rule>,
}

/// What is said of packets that a route leads into a tunnel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Inner {
    /// the address that those of this machine have
    source: Option<IpAddr>,
    /// how big they may be at most, in octets; TCP's MSS follows from it
    mtu: Option<u32>,
}

/// The tunnel device.
#[derive(Clone, Copy)]
struct Link {
    index: u32,
    mtu: u32,
}

/// A rule, in the order in which they are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Rule {
    /// what has our port, in IPv4
    OuterUdp(u16),
    /// ESP, in IPv4
    OuterEsp,
    /// everything without our mark
    Inner { ipv4: bool },
}

impl Wanted {
    fn state(&self, raw_esp: bool, locals: &[LocalAddress]) -> State {
        let mut state = State::default();
        for child in self.children.values() {
            state.addresses.extend(&child.addresses);
            for (net, source) in &child.routes {
                let mtu = child.outer.inner_mtu(locals, !net.addr().is_ipv4());
                let inner = Inner { source: *source, mtu: Some(mtu) };
                let route = state.routes.entry((*net, Kind::Device)).or_insert(inner);
                // of two that share it, whichever the plane takes
                route.mtu = route.mtu.min(Some(mtu));
            }
        }
        for net in self.blocks.values().flatten() {
            state.routes.insert((*net, Kind::Block), Inner::default());
        }
        // a tunnel for everything is not for what never leaves the link: routers, DHCPv6
        if state.routes.keys().any(|(net, _)| net.contains(&IpNet::V6(LINK_LOCAL))) {
            state.routes.insert((LINK_LOCAL.into(), Kind::Pass), Inner::default());
        }
        let families = state.routes.keys().map(|(net, _)| net.addr().is_ipv4());
        state.rules = families.map(|ipv4| Rule::Inner { ipv4 }).collect();
        // IPv6 has no such check
        if state.rules.contains(&Rule::Inner { ipv4: true }) {
            state.rules.extend([500, 4500].map(Rule::OuterUdp));
            state.rules.extend(raw_esp.then_some(Rule::OuterEsp));
        }
        state
    }
}

/// What `sa` needs; `own` are the addresses of this machine, one of which is the source of what it
/// sends itself where the peer has assigned none.
fn child(sa: &ChildSa, own: &[IpAddr]) -> Child {
    let mut routes: Vec<(IpNet, Option<IpAddr>)> = Vec::new();
    for net in sa.ts_remote.iter().flat_map(|ts| ts.nets()) {
        let fits = |address: &&IpAddr| {
            address.is_ipv4() == net.addr().is_ipv4()
                && sa.ts_local.iter().any(|ts| ts.contains(**address, ts.protocol(), None))
        };
        let source = sa.virtual_ips.iter().find(fits).or_else(|| own.iter().find(fits));
        routes.push((net, source.copied()));
    }
    Child { addresses: sa.virtual_ips.clone(), routes, outer: Outer::of(sa) }
}

impl Routes {
    /// Starts with nothing, after removing what an earlier run may have left. `raw_esp` says whether
    /// outer packets may be ESP that is not in UDP.
    pub async fn open(device: &str, raw_esp: bool) -> Result<Self, NetError> {
        let (connection, handle, _) =
            rtnetlink::new_connection().map_err(|e| NetError::io("open a netlink socket", &e))?;
        let connection = tokio::spawn(connection);
        let (wanted, made) = (Wanted::default(), State::default());
        let uplinks = Uplinks::new(handle.clone());
        let device = device.into();
        let locals = Vec::new();
        let routes = Routes { handle, connection, device, raw_esp, wanted, made, uplinks, locals };
        routes.remove_leftovers().await?;
        Ok(routes)
    }

    /// Adds what `sa` needs; on an error everything is as before.
    pub async fn add(&mut self, sa: &ChildSa, own: &[IpAddr]) -> Result<(), NetError> {
        let before = self.wanted.clone();
        self.wanted.children.insert(sa.id, child(sa, own));
        let result = self.reconcile().await;
        if result.is_err() {
            self.wanted = before;
            // what can't be put back is tried again with the next change
            let _ = self.reconcile().await;
        }
        result
    }

    /// Removes what only `id` needed.
    pub async fn remove(&mut self, id: ChildId) -> Result<(), NetError> {
        self.wanted.children.remove(&id);
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
        self.wanted.blocks.insert(connection.into(), nets);
        self.reconcile().await
    }

    /// Ends [`Routes::block`].
    pub async fn unblock(&mut self, connection: &str) -> Result<(), NetError> {
        self.wanted.blocks.remove(connection);
        self.reconcile().await
    }

    /// Lets the kernel's outer packets leave by an uplink that is new, or has another router, before
    /// anything moves to it. What is gone waits for [`Routes::refresh`].
    pub async fn prepare(&mut self, locals: &[LocalAddress]) -> Result<(), NetError> {
        self.locals = locals.to_vec();
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
        self.reconcile().await.and(uplinks)
    }

    /// Removes everything.
    pub async fn shutdown(&mut self) -> Result<(), NetError> {
        self.wanted = Wanted::default();
        let result = self.reconcile().await;
        let result = result.and(self.uplinks.refresh(&[]).await);
        self.remove_leftovers().await?;
        result
    }

    /// Makes the kernel's state the one that is wanted. Goes on after an error, and returns the
    /// first.
    async fn reconcile(&mut self) -> Result<(), NetError> {
        let goal = self.wanted.state(self.raw_esp, &self.locals);
        if goal == self.made {
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
        let link = if goal.addresses.is_empty() && goal.routes.is_empty() {
            None
        } else {
            match self.find_device().await {
                Ok(link) => Some(link),
                Err(e) => {
                    note(Err(e));
                    None
                }
            }
        };
        if let Some(link) = link {
            for address in goal.addresses.difference(&self.made.addresses.clone()) {
                if note(self.add_address(link.index, *address).await) {
                    self.made.addresses.insert(*address);
                }
            }
            for (key, inner) in &goal.routes {
                if self.made.routes.get(key) != Some(inner)
                    && note(self.add_route(link, *key, *inner).await)
                {
                    self.made.routes.insert(*key, *inner);
                }
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
            if !goal.routes.contains_key(&key) && note(self.remove_route(key).await) {
                self.made.routes.remove(&key);
            }
        }
        for address in self.made.addresses.clone().difference(&goal.addresses) {
            if note(self.remove_address(*address).await) {
                self.made.addresses.remove(address);
            }
        }
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
            (Kind::Device, Some(link)) => {
                route.scope(RouteScope::Link).output_interface(link.index)
            }
            (Kind::Device, None) => route.scope(RouteScope::Link),
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
        link: Link,
        key: (IpNet, Kind),
        inner: Inner,
    ) -> Result<(), NetError> {
        let route = self.route(Some(link), key, inner)?;
        let what = match key {
            (net, Kind::Block) => format!("block {net}"),
            (net, Kind::Pass) => format!("keep {net} out of the tunnel"),
            (net, Kind::Device) => format!("route {net} to {}", self.device),
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

    /// `not fwmark 0xbe1c lookup 48668`, and before it `ipproto udp sport PORT lookup main`
    fn rule(rule: Rule) -> RuleMessage {
        let mut message = RuleMessage::default();
        let ipv4 = rule != Rule::Inner { ipv4: false };
        message.header.family = family(ipv4);
        message.header.action = RuleAction::ToTable;
        let (priority, table) = match rule {
            Rule::Inner { .. } => (RULE_PRIORITY, TABLE),
            Rule::OuterUdp(_) | Rule::OuterEsp => (OUTER_PRIORITY, TABLE_MAIN),
        };
        message.attributes.extend([
            RuleAttribute::Priority(priority),
            RuleAttribute::Table(table),
            RuleAttribute::Protocol(RouteProtocol::from(PROTOCOL)),
        ]);
        match rule {
            Rule::Inner { .. } => {
                message.header.flags = RuleFlags::Invert;
                message.attributes.push(RuleAttribute::FwMark(MARK));
            }
            Rule::OuterUdp(port) => message.attributes.extend([
                RuleAttribute::IpProtocol(IpProtocol::Udp),
                RuleAttribute::SourcePortRange(RulePortRange { start: port, end: port }),
            ]),
            Rule::OuterEsp => message.attributes.push(RuleAttribute::IpProtocol(IpProtocol::Esp)),
        }
        message
    }

    async fn add_rule(&self, rule: Rule) -> Result<(), NetError> {
        let mut request = self.handle.rule().add();
        *request.message_mut() = Self::rule(rule);
        let what = "add the rules for the tunnel";
        match request.execute().await {
            Err(rtnetlink::Error::NetlinkError(e)) if e.raw_code() == -libc::EEXIST => Ok(()),
            result => result.map_err(|e| NetError::new(what, &e)),
        }
    }

    async fn remove_rule(&self, rule: Rule) -> Result<(), NetError> {
        let what = "remove the rules for the tunnel";
        gone_is_fine(self.handle.rule().del(Self::rule(rule)).execute().await, what.into())
    }

    /// Removes every rule that leads to our tables or is ours, and every route in the tables.
    async fn remove_leftovers(&self) -> Result<(), NetError> {
        for version in [IpVersion::V4, IpVersion::V6] {
            let mut rules = self.handle.rule().get(version).execute();
            let mut ours = Vec::new();
            // a machine without the family has none of its rules
            while let Ok(Some(rule)) = rules.try_next().await {
                let has = |attribute| rule.attributes.contains(&attribute);
                let marked = has(RuleAttribute::Protocol(RouteProtocol::from(PROTOCOL)));
                let places = [NEAR_PRIORITY, UPLINK_PRIORITY, OUTER_PRIORITY];
                let outer = marked && places.map(RuleAttribute::Priority).into_iter().any(has);
                if outer || has(RuleAttribute::Table(TABLE)) {
                    ours.push(rule);
                }
            }
            for rule in ours {
                let what = "remove a rule of an earlier run";
                gone_is_fine(self.handle.rule().del(rule).execute().await, what.into())?;
            }
        }
        let families = [
            RouteMessageBuilder::<std::net::Ipv4Addr>::new().build(),
            RouteMessageBuilder::<std::net::Ipv6Addr>::new().build(),
        ];
        for family in families {
            let mut routes = self.handle.route().get(family).execute();
            let mut ours = Vec::new();
            while let Ok(Some(route)) = routes.try_next().await {
                let marked = route.header.protocol == RouteProtocol::from(PROTOCOL);
                let ours_only = route.attributes.iter().any(|attribute| match attribute {
                    RouteAttribute::Table(TABLE) => true,
                    RouteAttribute::Table(table) => marked && is_our_table(*table),
                    _ => false,
                });
                if ours_only {
                    ours.push(route);
                }
            }
            for route in ours {
                let what = "remove a route of an earlier run";
                gone_is_fine(self.handle.route().del(route).execute().await, what.into())?;
            }
        }
        Ok(())
    }
}

impl Drop for Routes {
    fn drop(&mut self) {
        self.connection.abort();
    }
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

#[cfg(test)]
mod tests {
    use bewick_ike::{EspKeys, EspSpi, EspSuite, Path, Secret, TrafficSelector};

    use super::*;

    fn sa(id: u64, local: &str, remote: &str, virtual_ips: &[&str]) -> ChildSa {
        let keys = EspKeys { encryption: Secret::default(), integrity: Secret::default() };
        let ts = |text: &str| vec![TrafficSelector::from_net(text.parse().unwrap())];
        ChildSa {
            id: ChildId(id),
            reqid: 1,
            spi_in: EspSpi(256),
            spi_out: EspSpi(257),
            suite: EspSuite::AesGcm16 { key_bits: 256 },
            esn: false,
            keys_in: keys.clone(),
            keys_out: keys,
            ts_local: ts(local),
            ts_remote: ts(remote),
            path: Path::new("192.0.2.1:4500".parse().unwrap(), "192.0.2.2:4500".parse().unwrap()),
            encap: true,
            virtual_ips: virtual_ips.iter().map(|ip| ip.parse().unwrap()).collect(),
            waits: false,
            limits: Default::default(),
        }
    }

    fn ips(list: &[&str]) -> Vec<IpAddr> {
        list.iter().map(|ip| ip.parse().unwrap()).collect()
    }

    #[test]
    fn a_client_sends_from_its_virtual_address() {
        let child = child(&sa(1, "10.9.0.1/32", "10.1.0.0/16", &["10.9.0.1"]), &[]);
        assert_eq!(child.addresses, ips(&["10.9.0.1"]));
        assert_eq!(child.routes, [("10.1.0.0/16".parse().unwrap(), Some(ips(&["10.9.0.1"])[0]))]);
    }

    #[test]
    fn a_gateway_sends_from_an_address_that_the_tunnel_carries() {
        let own = ips(&["192.0.2.1", "10.1.0.1"]);
        let with = child(&sa(1, "10.1.0.0/16", "10.9.0.1/32", &[]), &own);
        assert_eq!(with.routes, [("10.9.0.1/32".parse().unwrap(), Some(own[1]))]);
        let without = child(&sa(1, "10.7.0.0/16", "10.9.0.1/32", &[]), &own);
        assert_eq!(without.routes, [("10.9.0.1/32".parse().unwrap(), None)]);
    }

    #[test]
    fn what_two_need_stays_until_both_are_gone() {
        let mut wanted = Wanted::default();
        wanted.children.insert(ChildId(1), child(&sa(1, "::/0", "2001:db8::/32", &[]), &[]));
        wanted.children.insert(ChildId(2), child(&sa(2, "::/0", "2001:db8::/32", &[]), &[]));
        let both = wanted.state(false, &[]);
        wanted.children.remove(&ChildId(1));
        assert_eq!(wanted.state(false, &[]), both);
        assert_eq!(both.rules, [Rule::Inner { ipv4: false }].into());
        assert_eq!(both.routes.len(), 1);
        wanted.children.remove(&ChildId(2));
        assert_eq!(wanted.state(false, &[]), State::default());
    }

    #[test]
    fn what_never_leaves_the_link_stays_out_of_a_tunnel_for_everything() {
        let mut wanted = Wanted::default();
        wanted.children.insert(ChildId(1), child(&sa(1, "::/0", "::/0", &[]), &[]));
        let kinds: Vec<Kind> =
            wanted.state(false, &[]).routes.keys().map(|(_, kind)| *kind).collect();
        assert_eq!(kinds, [Kind::Device, Kind::Pass]);
    }

    #[test]
    fn what_is_blocked_stays_blocked_without_the_tunnel() {
        let mut wanted = Wanted::default();
        let net: IpNet = "10.1.0.0/16".parse().unwrap();
        wanted.blocks.insert("office".into(), vec![net]);
        let state = wanted.state(false, &[]);
        assert_eq!(state.routes.keys().collect::<Vec<_>>(), [&(net, Kind::Block)]);
        let outer = [Rule::OuterUdp(500), Rule::OuterUdp(4500)];
        assert_eq!(state.rules, [outer[0], outer[1], Rule::Inner { ipv4: true }].into());
        assert!(wanted.state(true, &[]).rules.contains(&Rule::OuterEsp));
    }
}
