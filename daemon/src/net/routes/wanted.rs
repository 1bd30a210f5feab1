//! What is wanted of the kernel's routes, rules and addresses.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv6Addr},
    num::NonZeroU32,
};

use bewick_ike::{ChildId, ChildSa, Mode, TrafficSelector};
use ipnet::{IpNet, Ipv6Net};

use super::rules::Rule;
use crate::net::{LocalAddress, mtu::Outer};

/// fe80::/10: never beyond the link (RFC 4291 §2.5.6).
pub(super) const LINK_LOCAL: Ipv6Net =
    Ipv6Net::new_assert(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10);

/// Networks, with the address that packets of this machine to them are to have.
pub(super) type Networks = Vec<(IpNet, Option<IpAddr>)>;

/// What the connections ask for.
#[derive(Clone, Debug, Default)]
pub(super) struct Wanted {
    pub(super) children: BTreeMap<ChildId, Child>,
    /// where packets are to lead that a CHILD_SA waits for
    pub(super) traps: BTreeMap<u32, (Kind, Networks)>,
    /// by connection, what must not leave in clear
    pub(super) blocks: BTreeMap<String, Block>,
}

/// What must not leave in clear.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Block {
    pub(super) nets: Vec<IpNet>,
    /// also when the connection is taken down, and when the daemon ends
    pub(super) stays: bool,
    /// for every socket, not for what asks the routes alone
    pub(super) guarded: bool,
}

/// What one CHILD_SA asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Child {
    pub(super) addresses: Vec<IpAddr>,
    pub(super) routes: Networks,
    /// where they lead
    pub(super) to: Kind,
    pub(super) outer: Outer,
}

/// What a route does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    /// leads to the tunnel device
    Device,
    /// leads to the XFRM interface of this number
    Interface(NonZeroU32),
    /// leads nowhere
    Block,
    /// leaves the packet to the tables that come after ours
    Pass,
}

impl Kind {
    /// What leads to the XFRM interface of this number, or else to the tunnel device.
    pub(super) fn to(if_id: Option<NonZeroU32>) -> Self {
        if_id.map_or(Kind::Device, Kind::Interface)
    }

    /// Whether it leads into a tunnel.
    pub(super) fn is_inside(self) -> bool {
        matches!(self, Kind::Device | Kind::Interface(_))
    }
}

/// What there is, or is to be, in the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct State {
    pub(super) addresses: BTreeSet<IpAddr>,
    pub(super) routes: BTreeMap<(IpNet, Kind), Inner>,
    pub(super) rules: BTreeSet<Rule>,
}

/// What is said of packets that a route leads into a tunnel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Inner {
    /// the address that those of this machine have
    pub(super) source: Option<IpAddr>,
    /// how big they may be at most, in octets; TCP's MSS follows from it
    pub(super) mtu: Option<u32>,
}

impl Wanted {
    /// What is closed to every socket.
    pub(super) fn guarded(&self) -> BTreeSet<IpNet> {
        let guarded = self.blocks.values().filter(|block| block.guarded);
        guarded.flat_map(|block| &block.nets).copied().collect()
    }

    /// What there is to be in the kernel for it.
    pub(super) fn state(&self, raw_esp: bool, locals: &[LocalAddress]) -> State {
        let mut state = State::default();
        // One network has one way in: of several the first, which the kernel would otherwise replace by the last.
        let mut ways = BTreeMap::new();
        let mut leads = |net: &IpNet, to: Kind| *ways.entry(*net).or_insert(to) == to;
        for child in self.children.values() {
            state.addresses.extend(&child.addresses);
            state.routes.extend(closed(&child.routes, child.to));
            for (net, source) in child.routes.iter().filter(|(net, _)| leads(net, child.to)) {
                let mtu = child.outer.inner_mtu(locals, !net.addr().is_ipv4());
                let inner = Inner { source: *source, mtu: Some(mtu) };
                let route = state.routes.entry((*net, child.to)).or_insert(inner);
                // of two that share it, whichever the plane takes
                route.mtu = route.mtu.min(Some(mtu));
            }
        }
        for (to, routes) in self.traps.values() {
            state.routes.extend(closed(routes, *to));
            for (net, source) in routes.iter().filter(|(net, _)| leads(net, *to)) {
                let inner = Inner { source: *source, mtu: None };
                state.routes.entry((*net, *to)).or_insert(inner);
            }
        }
        for net in self.blocks.values().flat_map(|block| &block.nets) {
            state.routes.insert((*net, Kind::Block), Inner::default());
        }
        // a tunnel for everything is not for what never leaves the link: routers, DHCPv6
        if state.routes.keys().any(|(net, _)| net.contains(&IpNet::V6(LINK_LOCAL))) {
            state.routes.insert((LINK_LOCAL.into(), Kind::Pass), Inner::default());
        }
        let families = state.routes.keys().map(|(net, _)| net.addr().is_ipv4());
        state.rules.extend(families.map(|ipv4| Rule::Inner { ipv4 }));
        // IPv6 has no such check
        if state.rules.contains(&Rule::Inner { ipv4: true }) {
            state.rules.extend([500, 4500].map(Rule::OuterUdp));
            state.rules.insert(Rule::Dhcp);
            state.rules.extend(raw_esp.then_some(Rule::OuterEsp));
        }
        state
    }
}

/// What is led to an XFRM interface is closed otherwise: without that, no policy keeps a packet from leaving
/// in clear.
fn closed(
    routes: &[(IpNet, Option<IpAddr>)],
    to: Kind,
) -> impl Iterator<Item = ((IpNet, Kind), Inner)> {
    let bound = routes.iter().filter(move |_| matches!(to, Kind::Interface(_)));
    bound.map(|(net, _)| ((*net, Kind::Block), Inner::default()))
}

/// What `sa` needs; `own` are the addresses of this machine, one of which is the source of what it
/// sends itself where the peer has assigned none.
pub(super) fn child(sa: &ChildSa, own: &[IpAddr]) -> Child {
    let addresses: Vec<IpAddr> = sa.virtual_ips.iter().chain(own).copied().collect();
    // What the two ends send each other in transport mode takes the way that it would take anyway.
    let routes = match sa.mode {
        Mode::Tunnel => towards(&sa.ts_local, &sa.ts_remote, &addresses),
        Mode::Transport => Networks::new(),
    };
    let to = Kind::to(sa.carriage.if_id);
    Child { addresses: sa.virtual_ips.clone(), routes, to, outer: Outer::of(sa) }
}

/// The networks on the peer's side, with the first of our addresses that packets to them may have.
pub(super) fn towards(
    ts_local: &[TrafficSelector],
    ts_remote: &[TrafficSelector],
    own: &[IpAddr],
) -> Vec<(IpNet, Option<IpAddr>)> {
    let nets = ts_remote.iter().flat_map(|ts| ts.nets());
    let with_source = |net: IpNet| {
        let fits = |address: &&IpAddr| {
            address.is_ipv4() == net.addr().is_ipv4()
                && ts_local.iter().any(|ts| ts.contains(**address, ts.protocol(), None))
        };
        (net, own.iter().find(fits).copied())
    };
    nets.map(with_source).collect()
}

#[cfg(test)]
mod tests {
    use bewick_ike::{EspKeys, EspSpi, EspSuite, Path, Secret};

    use super::*;

    fn sa(id: u64, local: &str, remote: &str, virtual_ips: &[&str]) -> ChildSa {
        let keys = EspKeys { encryption: Secret::default(), integrity: Secret::default() };
        let ts = |text: &str| vec![TrafficSelector::from_net(text.parse().unwrap())];
        ChildSa {
            id: ChildId(id),
            reqid: 1,
            spi_in: EspSpi(256),
            spi_out: EspSpi(257),
            mode: Default::default(),
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
            carriage: Default::default(),
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
    fn what_is_in_transport_mode_takes_the_way_that_it_would_take_anyway() {
        let tunnel = sa(1, "192.0.2.1/32", "192.0.2.2/32", &[]);
        let transport = ChildSa { mode: Mode::Transport, ..tunnel };
        let mut wanted = Wanted::default();
        wanted.children.insert(ChildId(1), child(&transport, &ips(&["192.0.2.1"])));
        assert_eq!(wanted.state(true, &[]), State::default());
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
    fn what_waits_for_packets_leads_them_to_the_device_before_and_after() {
        let (local, own) = (sa(1, "10.7.0.0/16", "10.1.0.0/16", &[]), ips(&["10.7.0.1"]));
        let mut wanted = Wanted::default();
        let routes = towards(&local.ts_local, &local.ts_remote, &own);
        wanted.traps.insert(0, (Kind::Device, routes));
        let key = ("10.1.0.0/16".parse().unwrap(), Kind::Device);
        let before = wanted.state(false, &[]);
        assert_eq!(before.routes.get(&key), Some(&Inner { source: Some(own[0]), mtu: None }));
        // The CHILD_SA says how big packets may be.
        wanted.children.insert(ChildId(1), child(&local, &own));
        let during = wanted.state(false, &[]);
        assert!(during.routes.get(&key).is_some_and(|route| route.mtu.is_some()));
        wanted.children.clear();
        assert_eq!(wanted.state(false, &[]), before);
    }

    #[test]
    fn what_has_an_xfrm_interface_is_led_to_that_and_the_address_stays_on_the_device() {
        let if_id = NonZeroU32::new(42);
        let mut bound = sa(1, "10.9.0.1/32", "10.1.0.0/16", &["10.9.0.1"]);
        bound.carriage.if_id = if_id;
        let mut wanted = Wanted::default();
        wanted.children.insert(ChildId(1), child(&bound, &[]));
        let state = wanted.state(true, &[]);
        let kinds: Vec<Kind> = state.routes.keys().map(|(_, kind)| *kind).collect();
        let bound_and_closed = [Kind::Interface(if_id.unwrap()), Kind::Block];
        assert_eq!(kinds, bound_and_closed);
        assert_eq!(state.addresses, ips(&["10.9.0.1"]).into_iter().collect());
        assert!(state.rules.contains(&Rule::Inner { ipv4: true }));
        wanted.children.clear();
        let routes = towards(&bound.ts_local, &bound.ts_remote, &[]);
        wanted.traps.insert(7, (Kind::to(if_id), routes));
        let kinds: Vec<Kind> =
            wanted.state(true, &[]).routes.keys().map(|(_, kind)| *kind).collect();
        assert_eq!(kinds, bound_and_closed);
    }

    #[test]
    fn of_two_interfaces_for_one_network_the_first_has_the_route_and_then_the_other() {
        let mut wanted = Wanted::default();
        for id in [1, 2] {
            let mut bound = sa(id, "10.9.0.1/32", "10.1.0.0/16", &[]);
            bound.carriage.if_id = NonZeroU32::new(40 + id as u32);
            wanted.children.insert(ChildId(id), child(&bound, &[]));
        }
        let leads = |wanted: &Wanted| -> Vec<Kind> {
            let state = wanted.state(true, &[]);
            state.routes.keys().map(|(_, kind)| *kind).filter(|kind| kind.is_inside()).collect()
        };
        assert_eq!(leads(&wanted), [Kind::to(NonZeroU32::new(41))]);
        wanted.children.remove(&ChildId(1));
        assert_eq!(leads(&wanted), [Kind::to(NonZeroU32::new(42))]);
    }

    #[test]
    fn what_is_blocked_stays_blocked_without_the_tunnel() {
        let mut wanted = Wanted::default();
        let net: IpNet = "10.1.0.0/16".parse().unwrap();
        wanted
            .blocks
            .insert("office".into(), Block { nets: vec![net], stays: false, guarded: false });
        let state = wanted.state(false, &[]);
        assert_eq!(state.routes.keys().collect::<Vec<_>>(), [&(net, Kind::Block)]);
        let rules =
            [Rule::OuterUdp(500), Rule::OuterUdp(4500), Rule::Dhcp, Rule::Inner { ipv4: true }];
        assert_eq!(state.rules, rules.into());
        assert!(wanted.state(true, &[]).rules.contains(&Rule::OuterEsp));
    }
}
