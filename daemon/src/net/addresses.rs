//! Which local addresses an outer packet can have: operational ones, in the words of
//! draft-ietf-multi6-failure-detection-00 §3: assigned, not tentative, on an interface that is up
//! and has a route.

use std::{collections::BTreeMap, net::IpAddr};

use futures_util::TryStreamExt;
use netlink_packet_route::{
    AddressFamily,
    address::{AddressAttribute, AddressFlags, AddressMessage},
    link::{LinkAttribute, LinkFlags, LinkMessage},
    route::{RouteAddress, RouteAttribute, RouteMessage, RouteNextHop, RouteType, RouteVia},
};
use rtnetlink::{Handle, RouteMessageBuilder};

use crate::net::{NetError, is_our_table, routes::if_id};

/// RT_TABLE_LOCAL: the kernel's own entries for every address, which lead nowhere.
const TABLE_LOCAL: u32 = 255;

/// A local address that an outer packet can have.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LocalAddress {
    /// the address
    pub address: IpAddr,
    /// the interface that holds it
    pub ifindex: u32,
    /// that interface's name
    pub interface: String,
    /// the metric of the best default route through the interface, if it has one
    pub metric: Option<u32>,
    /// the router of that default route; none on a point-to-point link
    pub gateway: Option<IpAddr>,
    /// the biggest packet that the interface takes, in octets
    pub mtu: u32,
}

/// A default route through an interface; the better one is the smaller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct DefaultRoute {
    metric: u32,
    gateway: Option<IpAddr>,
}

/// Links, addresses and routes at one moment, reduced to what matters here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Snapshot {
    /// by index; only those that can carry packets
    links: BTreeMap<u32, (String, u32)>,
    addresses: Vec<(IpAddr, u32)>,
    /// by interface and whether it is IPv4; the best default route
    routes: BTreeMap<(u32, bool), Option<DefaultRoute>>,
}

/// Asks the kernel for the addresses that an outer packet can have, best route first.
///
/// `own` is our tunnel device, whose addresses never count.
pub async fn dump(handle: &Handle, own: &str) -> Result<Vec<LocalAddress>, NetError> {
    let mut snapshot = Snapshot::default();
    let mut links = handle.link().get().execute();
    while let Some(link) = links.try_next().await.map_err(|e| NetError::new("list links", &e))? {
        snapshot.add_link(&link, own);
    }
    let mut addresses = handle.address().get().execute();
    let failed = |e| NetError::new("list addresses", &e);
    while let Some(address) = addresses.try_next().await.map_err(failed)? {
        snapshot.add_address(&address);
    }
    let families = [
        RouteMessageBuilder::<std::net::Ipv4Addr>::new().build(),
        RouteMessageBuilder::<std::net::Ipv6Addr>::new().build(),
    ];
    for family in families {
        let mut routes = handle.route().get(family).execute();
        while let Some(route) =
            routes.try_next().await.map_err(|e| NetError::new("list routes", &e))?
        {
            snapshot.add_route(&route);
        }
    }
    Ok(snapshot.candidates())
}

/// Every routable address of this machine, on whatever interface: what a route can have as its
/// source.
pub async fn all(handle: &Handle) -> Result<Vec<IpAddr>, NetError> {
    let mut out = Vec::new();
    let mut addresses = handle.address().get().execute();
    let failed = |e| NetError::new("list addresses", &e);
    while let Some(address) = addresses.try_next().await.map_err(failed)? {
        out.extend(own_address(&address).filter(|address| is_routable(*address)));
    }
    Ok(out)
}

impl Snapshot {
    fn add_link(&mut self, link: &LinkMessage, own: &str) {
        let flags = link.header.flags;
        let works = flags.contains(LinkFlags::Up | LinkFlags::LowerUp | LinkFlags::Running);
        if !works || flags.contains(LinkFlags::Loopback) {
            return;
        }
        let name = link.attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::IfName(name) => Some(name),
            _ => None,
        });
        // what leaves by an XFRM interface goes into a tunnel
        if let Some(name) = name.filter(|name| *name != own && if_id(link).is_none()) {
            self.links.insert(link.header.index, (name.clone(), mtu_of(link).unwrap_or(u32::MAX)));
        }
    }

    fn add_address(&mut self, message: &AddressMessage) {
        let flags = message
            .attributes
            .iter()
            .find_map(|attribute| match attribute {
                AddressAttribute::Flags(flags) => Some(*flags),
                _ => None,
            })
            .unwrap_or(AddressFlags::from_bits_retain(message.header.flags.bits().into()));
        let unusable = AddressFlags::Tentative | AddressFlags::Deprecated | AddressFlags::Dadfailed;
        if let Some(address) = own_address(message)
            && !flags.intersects(unusable)
            && is_routable(address)
        {
            self.addresses.push((address, message.header.index));
        }
    }

    fn add_route(&mut self, route: &RouteMessage) {
        let header = &route.header;
        let ipv4 = header.address_family == AddressFamily::Inet;
        let (mut table, mut metric, mut hops) = (u32::from(header.table), 0, Vec::new());
        let (mut destination, mut interface) = (None, None);
        for attribute in &route.attributes {
            match attribute {
                RouteAttribute::Table(id) => table = *id,
                RouteAttribute::Priority(priority) => metric = *priority,
                RouteAttribute::Oif(index) => interface = Some(*index),
                RouteAttribute::MultiPath(several) => {
                    let hop = |hop: &RouteNextHop| (hop.interface_index, gateway(&hop.attributes));
                    hops.extend(several.iter().map(hop));
                }
                RouteAttribute::Destination(RouteAddress::Inet(a)) => {
                    destination = Some((*a).into())
                }
                RouteAttribute::Destination(RouteAddress::Inet6(a)) => {
                    destination = Some((*a).into());
                }
                _ => {}
            }
        }
        let leads_somewhere = header.kind == RouteType::Unicast
            && table != TABLE_LOCAL
            && !is_our_table(table)
            && destination.is_none_or(is_routable);
        if !leads_somewhere {
            return;
        }
        hops.extend(interface.map(|index| (index, gateway(&route.attributes))));
        for (index, gateway) in hops {
            let default =
                (header.destination_prefix_length == 0).then_some(DefaultRoute { metric, gateway });
            let best = self.routes.entry((index, ipv4)).or_insert(default);
            *best = match (*best, default) {
                (Some(a), Some(b)) => Some(a.min(b)),
                (a, b) => a.or(b),
            };
        }
    }

    fn candidates(&self) -> Vec<LocalAddress> {
        let mut out: Vec<LocalAddress> = self
            .addresses
            .iter()
            .filter_map(|&(address, ifindex)| {
                let (interface, mtu) = self.links.get(&ifindex)?.clone();
                let default = *self.routes.get(&(ifindex, address.is_ipv4()))?;
                let metric = default.map(|route| route.metric);
                let gateway = default.and_then(|route| route.gateway);
                Some(LocalAddress { address, ifindex, interface, metric, gateway, mtu })
            })
            .collect();
        // interfaces with a default route first, the lowest metric at the head
        out.sort_by_key(|a| (a.metric.is_none(), a.metric, a.ifindex, a.address));
        out.dedup();
        out
    }
}

/// The biggest packet that an interface takes, in octets.
pub(super) fn mtu_of(link: &LinkMessage) -> Option<u32> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Mtu(mtu) => Some(*mtu),
        _ => None,
    })
}

/// The address that is ours: on a point-to-point link `Address` is the peer's.
fn own_address(message: &AddressMessage) -> Option<IpAddr> {
    let mut out = None;
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(address) => return Some(*address),
            AddressAttribute::Address(address) => out = Some(*address),
            _ => {}
        }
    }
    out
}

/// The router of a route or of one of its ways.
fn gateway(attributes: &[RouteAttribute]) -> Option<IpAddr> {
    attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Gateway(RouteAddress::Inet(a)) => Some((*a).into()),
        RouteAttribute::Gateway(RouteAddress::Inet6(a)) => Some((*a).into()),
        RouteAttribute::Via(RouteVia::Inet(a)) => Some((*a).into()),
        RouteAttribute::Via(RouteVia::Inet6(a)) => Some((*a).into()),
        _ => None,
    })
}

/// Whether an address can be reached from beyond the link.
fn is_routable(address: IpAddr) -> bool {
    let local = match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    !local && !address.is_loopback() && !address.is_multicast()
}

#[cfg(test)]
mod tests {
    use netlink_packet_route::{
        address::AddressHeaderFlags,
        route::{RouteHeader, RouteType},
    };

    use super::*;
    use crate::net::{TABLE, UPLINK_TABLE};

    const UP: LinkFlags = LinkFlags::Up.union(LinkFlags::LowerUp).union(LinkFlags::Running);

    fn link(index: u32, name: &str, flags: LinkFlags) -> LinkMessage {
        let mut link = LinkMessage::default();
        link.header.index = index;
        link.header.flags = flags;
        link.attributes.push(LinkAttribute::IfName(name.into()));
        link
    }

    fn address(index: u32, text: &str, flags: AddressFlags) -> AddressMessage {
        let mut message = AddressMessage::default();
        message.header.index = index;
        message.header.flags = AddressHeaderFlags::empty();
        message.attributes.push(AddressAttribute::Address(text.parse().unwrap()));
        message.attributes.push(AddressAttribute::Flags(flags));
        message
    }

    fn route(index: u32, to: Option<&str>, prefix: u8, metric: u32, table: u32) -> RouteMessage {
        let ipv4 = to.is_none_or(|to| !to.contains(':'));
        let mut message = RouteMessage::default();
        message.header = RouteHeader {
            address_family: if ipv4 { AddressFamily::Inet } else { AddressFamily::Inet6 },
            destination_prefix_length: prefix,
            kind: RouteType::Unicast,
            ..RouteHeader::default()
        };
        message.attributes.extend([
            RouteAttribute::Table(table),
            RouteAttribute::Oif(index),
            RouteAttribute::Priority(metric),
        ]);
        if let Some(to) = to {
            let to: IpAddr = to.parse().unwrap();
            message.attributes.push(RouteAttribute::Destination(to.into()));
        }
        message
    }

    /// Two uplinks, `wifi` with the worse metric, and our own device.
    fn snapshot() -> Snapshot {
        let mut s = Snapshot::default();
        s.add_link(&link(1, "lo", UP | LinkFlags::Loopback), "bewick0");
        s.add_link(&link(2, "eth0", UP), "bewick0");
        s.add_link(&link(3, "wifi", UP), "bewick0");
        s.add_link(&link(4, "bewick0", UP), "bewick0");
        for (index, text) in [(1, "127.0.0.1"), (3, "10.2.0.7"), (2, "10.1.0.7"), (4, "10.9.0.1")] {
            s.add_address(&address(index, text, AddressFlags::Permanent));
        }
        s.add_route(&route(2, None, 0, 100, 254));
        s.add_route(&route(3, None, 0, 600, 254));
        s.add_route(&route(4, Some("10.8.0.0"), 16, 0, TABLE));
        s
    }

    fn names(s: &Snapshot) -> Vec<String> {
        s.candidates().iter().map(|a| format!("{} {}", a.address, a.interface)).collect()
    }

    #[test]
    fn the_best_default_route_comes_first_and_our_device_never() {
        assert_eq!(names(&snapshot()), ["10.1.0.7 eth0", "10.2.0.7 wifi"]);
    }

    #[test]
    fn the_router_is_the_one_of_the_best_default_route_and_our_copy_is_none() {
        let via = |to, metric, table, text: &str| {
            let mut route = route(3, to, 0, metric, table);
            let gateway: IpAddr = text.parse().unwrap();
            route.attributes.push(RouteAttribute::Gateway(gateway.into()));
            route
        };
        let mut s = snapshot();
        s.add_route(&via(None, 700, 254, "10.2.0.9"));
        s.add_route(&via(None, 500, 254, "10.2.0.1"));
        s.add_route(&via(None, 1, UPLINK_TABLE, "10.2.0.5"));
        let wifi = s.candidates().into_iter().find(|a| a.ifindex == 3).unwrap();
        assert_eq!((wifi.metric, wifi.gateway), (Some(500), Some("10.2.0.1".parse().unwrap())));

        let mut hop = RouteNextHop::default();
        hop.interface_index = 2;
        let v6: std::net::Ipv6Addr = "fe80::1".parse().unwrap();
        hop.attributes.push(RouteAttribute::Via(RouteVia::Inet6(v6)));
        let mut several = route(2, None, 0, 50, 254);
        several.attributes.retain(|a| !matches!(a, RouteAttribute::Oif(_)));
        several.attributes.push(RouteAttribute::MultiPath(vec![hop]));
        s.add_route(&several);
        let eth0 = s.candidates().into_iter().find(|a| a.ifindex == 2).unwrap();
        assert_eq!((eth0.metric, eth0.gateway), (Some(50), Some(v6.into())));
    }

    #[test]
    fn an_interface_without_carrier_does_not_count() {
        let mut s = snapshot();
        s.links.clear();
        s.add_link(&link(2, "eth0", LinkFlags::Up | LinkFlags::Running), "bewick0");
        s.add_link(&link(3, "wifi", UP), "bewick0");
        assert_eq!(names(&s), ["10.2.0.7 wifi"]);
    }

    #[test]
    fn a_tentative_deprecated_or_link_local_address_does_not_count() {
        let mut s = snapshot();
        s.add_route(&route(2, Some("2001:db8::"), 64, 256, 254));
        s.add_route(&route(2, Some("fe80::"), 64, 256, 254));
        s.add_address(&address(2, "2001:db8::1", AddressFlags::Tentative));
        s.add_address(&address(2, "2001:db8::2", AddressFlags::Deprecated));
        s.add_address(&address(2, "fe80::1", AddressFlags::Permanent));
        s.add_address(&address(2, "169.254.1.1", AddressFlags::Permanent));
        s.add_address(&address(2, "2001:db8::3", AddressFlags::Permanent));
        assert_eq!(names(&s), ["10.1.0.7 eth0", "10.2.0.7 wifi", "2001:db8::3 eth0"]);
    }

    #[test]
    fn a_subnet_is_route_enough_for_a_gateway_but_link_local_is_not() {
        let mut s = Snapshot::default();
        s.add_link(&link(2, "eth0", UP), "bewick0");
        s.add_address(&address(2, "192.0.2.1", AddressFlags::Permanent));
        assert!(names(&s).is_empty());
        s.add_route(&route(2, Some("169.254.0.0"), 16, 0, 254));
        s.add_route(&route(2, Some("192.0.2.1"), 32, 0, TABLE_LOCAL));
        assert!(names(&s).is_empty());
        s.add_route(&route(2, Some("192.0.2.0"), 24, 0, 254));
        assert_eq!(names(&s), ["192.0.2.1 eth0"]);
        assert_eq!(s.candidates()[0].metric, None);
    }

    #[test]
    fn on_a_point_to_point_link_the_local_end_counts() {
        let mut message = address(2, "10.0.0.2", AddressFlags::Permanent);
        message.attributes.push(AddressAttribute::Local("10.0.0.1".parse().unwrap()));
        assert_eq!(own_address(&message), Some("10.0.0.1".parse().unwrap()));
    }
}
