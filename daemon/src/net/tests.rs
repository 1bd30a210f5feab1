//! Watching and changing a real kernel, each test in a network namespace of its own.

mod hostile;
mod many;
mod opens;
mod stays;
mod tap;
mod too_big;

use std::{future::Future, net::IpAddr, time::Duration};

use bewick_ike::{ChildId, ChildSa, EspKeys, EspSpi, EspSuite, Path, Secret, TrafficSelector};
use futures_util::TryStreamExt;
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage};
use rtnetlink::{Handle, IpVersion, LinkUnspec, LinkVeth, RouteMessageBuilder};

use super::*;

/// Runs `test` in a new network namespace; without one nothing is proven, so that is a failure.
fn in_namespace<F: Future<Output = ()>>(test: impl FnOnce(Handle) -> F + Send + 'static) {
    let thread = std::thread::spawn(move || {
        // SAFETY: only this thread changes its namespace, and nothing of it is shared before.
        let flags = match unsafe { libc::geteuid() } {
            0 => libc::CLONE_NEWNET,
            _ => libc::CLONE_NEWNET | libc::CLONE_NEWUSER,
        };
        if unsafe { libc::unshare(flags) } != 0 {
            panic!("no network namespace: {}; run this as root", std::io::Error::last_os_error());
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (connection, handle, _) = rtnetlink::new_connection().unwrap();
            tokio::spawn(connection);
            test(handle).await;
        });
    });
    thread.join().unwrap();
}

/// One of our addresses, on an uplink of this MTU.
pub(super) fn local(address: &str, mtu: u32) -> LocalAddress {
    LocalAddress {
        address: address.parse().unwrap(),
        ifindex: 1,
        interface: "eth0".into(),
        metric: None,
        gateway: None,
        mtu,
    }
}

async fn index(handle: &Handle, name: &str) -> u32 {
    let mut links = handle.link().get().match_name(name).execute();
    links.try_next().await.unwrap().unwrap().header.index
}

/// Makes an Ethernet pair `name` and `name`-far, up, with an address and a default route.
async fn uplink(handle: &Handle, name: &str, address: &str, gateway: &str, metric: u32) {
    let far = format!("{name}-far");
    handle.link().add(LinkVeth::new(name, &far).build()).execute().await.unwrap();
    for name in [name, &far] {
        let up = LinkUnspec::new_with_index(index(handle, name).await).up().build();
        handle.link().set(up).execute().await.unwrap();
    }
    let near = index(handle, name).await;
    handle.address().add(near, address.parse().unwrap(), 24).execute().await.unwrap();
    let route = RouteMessageBuilder::<std::net::Ipv4Addr>::new()
        .gateway(gateway.parse().unwrap())
        .output_interface(near)
        .priority(metric)
        .build();
    handle.route().add(route).execute().await.unwrap();
}

async fn down(handle: &Handle, name: &str) {
    let down = LinkUnspec::new_with_index(index(handle, name).await).down().build();
    handle.link().set(down).execute().await.unwrap();
}

fn shown(addresses: &[LocalAddress]) -> Vec<String> {
    addresses.iter().map(|a| format!("{} {} {:?}", a.address, a.interface, a.metric)).collect()
}

#[test]
fn an_uplink_that_goes_away_is_missed_at_once_and_seen_when_it_is_back() {
    in_namespace(|handle| async move {
        uplink(&handle, "eth0", "10.1.0.7", "10.1.0.1", 100).await;
        uplink(&handle, "wifi", "10.2.0.7", "10.2.0.1", 600).await;
        // the carrier of a new pair may come a moment later
        tokio::time::sleep(Duration::from_millis(50)).await;
        let monitor = Monitor::start("bewick0").await.unwrap();
        let mut addresses = monitor.addresses();
        let both = ["10.1.0.7 eth0 Some(100)", "10.2.0.7 wifi Some(600)"];
        assert_eq!(shown(&addresses.borrow_and_update()), both);

        down(&handle, "eth0").await;
        // It is told: nobody looks for it.
        let patience = Duration::from_secs(20);
        tokio::time::timeout(patience, addresses.changed()).await.unwrap().unwrap();
        assert_eq!(shown(&addresses.borrow_and_update()), ["10.2.0.7 wifi Some(600)"]);

        let again = LinkUnspec::new_with_index(index(&handle, "eth0").await).up().build();
        handle.link().set(again).execute().await.unwrap();
        addresses.changed().await.unwrap();
        let subnet_only = ["10.2.0.7 wifi Some(600)", "10.1.0.7 eth0 None"];
        assert_eq!(shown(&addresses.borrow_and_update()), subnet_only);
    });
}

fn sa() -> ChildSa {
    let keys = EspKeys { encryption: Secret::default(), integrity: Secret::default() };
    let ts = |list: &[&str]| {
        list.iter().map(|text| TrafficSelector::from_net(text.parse().unwrap())).collect()
    };
    ChildSa {
        id: ChildId(1),
        reqid: 1,
        spi_in: EspSpi(256),
        spi_out: EspSpi(257),
        mode: Default::default(),
        suite: EspSuite::AesGcm16 { key_bits: 256 },
        esn: false,
        keys_in: keys.clone(),
        keys_out: keys,
        ts_local: ts(&["10.9.0.1/32", "2001:db8:9::1/128"]),
        ts_remote: ts(&["0.0.0.0/0", "2001:db8:1::/48"]),
        path: Path::new("10.1.0.7:4500".parse().unwrap(), "192.0.2.2:4500".parse().unwrap()),
        encap: true,
        virtual_ips: vec!["10.9.0.1".parse().unwrap(), "2001:db8:9::1".parse().unwrap()],
        waits: false,
        limits: Default::default(),
        carriage: Default::default(),
    }
}

/// How many rules, routes and addresses of ours there are.
async fn count(handle: &Handle) -> (usize, usize, usize) {
    let (mut rules, mut routes, mut own) = (0, 0, 0);
    for version in [IpVersion::V4, IpVersion::V6] {
        let all: Vec<_> = handle.rule().get(version).execute().try_collect().await.unwrap();
        rules += all
            .iter()
            .filter(|rule| {
                let at = |at| netlink_packet_route::rule::RuleAttribute::Priority(at);
                let has = |at| rule.attributes.contains(&at);
                (NEAR_PRIORITY..=LAST_PRIORITY).any(|priority| has(at(priority)))
            })
            .count();
    }
    let families = [
        RouteMessageBuilder::<std::net::Ipv4Addr>::new().build(),
        RouteMessageBuilder::<std::net::Ipv6Addr>::new().build(),
    ];
    for family in families {
        let all: Vec<_> = handle.route().get(family).execute().try_collect().await.unwrap();
        let ours = |attribute: &_| matches!(attribute, RouteAttribute::Table(table) if is_our_table(*table));
        routes += all.iter().filter(|route| route.attributes.iter().any(ours)).count();
    }
    for address in addresses::all(handle).await.unwrap() {
        own += usize::from(sa().virtual_ips.contains(&address));
    }
    (rules, routes, own)
}

/// Where the kernel sends a packet to `to`: the interface's index and the source address.
async fn lookup(handle: &Handle, to: &str, mark: u32) -> (Option<u32>, Option<IpAddr>) {
    let query = RouteMessageBuilder::<std::net::Ipv4Addr>::new()
        .destination_prefix(to.parse().unwrap(), 32)
        .mark(mark)
        .build();
    ask(handle, query).await
}

async fn ask(handle: &Handle, query: RouteMessage) -> (Option<u32>, Option<IpAddr>) {
    let found = handle.route().get(query).execute().try_next().await.unwrap().unwrap();
    let (mut link, mut source) = (None, None);
    for attribute in &found.attributes {
        match attribute {
            RouteAttribute::Oif(index) => link = Some(*index),
            RouteAttribute::PrefSource(RouteAddress::Inet(address)) => {
                source = Some((*address).into());
            }
            _ => {}
        }
    }
    (link, source)
}

#[test]
fn inner_packets_go_to_the_device_outer_ones_do_not_and_nothing_stays_behind() {
    in_namespace(|handle| async move {
        uplink(&handle, "eth0", "10.1.0.7", "10.1.0.1", 100).await;
        handle.link().add(LinkVeth::new("bewick0", "b-far").build()).execute().await.unwrap();
        for name in ["bewick0", "b-far"] {
            let up = LinkUnspec::new_with_index(index(&handle, name).await).up().build();
            handle.link().set(up).execute().await.unwrap();
        }
        let device = Some(index(&handle, "bewick0").await);
        let eth0 = Some(index(&handle, "eth0").await);
        let mut routes = Routes::open("bewick0", true, Vec::new()).await.unwrap();
        let sa = sa();
        routes.add(&sa, &[]).await.unwrap();
        routes.add(&sa, &[]).await.unwrap();
        assert_eq!(count(&handle).await, (6, 2, 2));
        assert_eq!(lookup(&handle, "192.0.2.2", 0).await, (device, Some(sa.virtual_ips[0])));
        assert_eq!(lookup(&handle, "192.0.2.2", MARK).await.0, eth0);

        routes.block("office", vec!["192.0.2.0/24".parse().unwrap()]).await.unwrap();
        routes.refresh(&[]).await.unwrap();
        assert_eq!(count(&handle).await, (6, 3, 2));
        routes.remove(sa.id).await.unwrap();
        assert_eq!(count(&handle).await, (5, 1, 0));
        routes.unblock("office").await.unwrap();
        assert_eq!(count(&handle).await, (0, 0, 0));

        // an earlier run that was killed
        routes.add(&sa, &[]).await.unwrap();
        drop(routes);
        assert_eq!(count(&handle).await.1, 2);
        let mut routes = Routes::open("bewick0", true, Vec::new()).await.unwrap();
        assert_eq!(count(&handle).await, (0, 0, 2));
        routes.add(&sa, &[]).await.unwrap();
        routes.shutdown().await.unwrap();
        assert_eq!(count(&handle).await, (0, 0, 0));
    });
}

/// The uplink, an interface's index, that the kernel's ESP from one address to another takes.
async fn uplink_of(handle: &Handle, from: &str, to: &str) -> Option<u32> {
    let (from, to): (IpAddr, IpAddr) = (from.parse().unwrap(), to.parse().unwrap());
    let bits = if from.is_ipv4() { 32 } else { 128 };
    let mut query = RouteMessageBuilder::<IpAddr>::new()
        .destination_prefix(to, bits)
        .unwrap()
        .mark(MARK)
        .build();
    query.attributes.push(RouteAttribute::Source(from.into()));
    query.header.source_prefix_length = bits;
    ask(handle, query).await.0
}

/// Gives an uplink an IPv6 address and a default route too.
async fn ipv6(handle: &Handle, name: &str, address: &str, gateway: &str, metric: u32) {
    let link = index(handle, name).await;
    let mut request = handle.address().add(link, address.parse().unwrap(), 64);
    request.message_mut().header.flags = netlink_packet_route::address::AddressHeaderFlags::Nodad;
    request.execute().await.unwrap();
    let route = RouteMessageBuilder::<std::net::Ipv6Addr>::new()
        .gateway(gateway.parse().unwrap())
        .output_interface(link)
        .priority(metric)
        .build();
    handle.route().add(route).execute().await.unwrap();
}

#[test]
fn outer_packets_of_the_kernel_leave_by_the_uplink_of_their_source_address() {
    in_namespace(|handle| async move {
        uplink(&handle, "eth0", "10.1.0.7", "10.1.0.1", 100).await;
        uplink(&handle, "wifi", "10.2.0.7", "10.2.0.1", 600).await;
        ipv6(&handle, "eth0", "2001:db8:1::7", "2001:db8:1::1", 100).await;
        ipv6(&handle, "wifi", "2001:db8:2::7", "2001:db8:2::1", 600).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        let (eth0, wifi) = (Some(index(&handle, "eth0").await), Some(index(&handle, "wifi").await));
        let (far, far6) = ("192.0.2.2", "2001:db8:f::2");
        let locals = addresses::dump(&handle, "bewick0").await.unwrap();
        assert_eq!(locals.len(), 4);
        assert_eq!(uplink_of(&handle, "10.2.0.7", far).await, eth0);

        let mut routes = Routes::open("bewick0", true, Vec::new()).await.unwrap();
        // a tunnel for everything that is down must not be in the way
        let everything = ["0.0.0.0/0", "::/0"].map(|net| net.parse().unwrap());
        handle.link().add(LinkVeth::new("bewick0", "b-far").build()).execute().await.unwrap();
        routes.block("office", everything.to_vec()).await.unwrap();
        let tunnel = count(&handle).await;
        routes.prepare(&locals).await.unwrap();
        let all = (tunnel.0 + 8, tunnel.1 + 4, 0);
        assert_eq!(count(&handle).await, all);
        for _ in 0..2 {
            assert_eq!(uplink_of(&handle, "10.1.0.7", far).await, eth0);
            assert_eq!(uplink_of(&handle, "10.2.0.7", far).await, wifi);
            assert_eq!(uplink_of(&handle, "2001:db8:1::7", far6).await, eth0);
            assert_eq!(uplink_of(&handle, "2001:db8:2::7", far6).await, wifi);
            // a network that is nearer than that
            assert_eq!(uplink_of(&handle, "10.2.0.7", "10.1.0.9").await, eth0);
            assert_eq!(uplink_of(&handle, "2001:db8:2::7", "2001:db8:1::9").await, eth0);
            routes.refresh(&locals).await.unwrap();
            assert_eq!(count(&handle).await, all);
        }
        // our copies are no default routes of an uplink's
        assert_eq!(addresses::dump(&handle, "bewick0").await.unwrap(), locals);

        // one is gone, which waits; then it is back
        let left: Vec<_> = locals.iter().filter(|a| Some(a.ifindex) == wifi).cloned().collect();
        routes.prepare(&left).await.unwrap();
        assert_eq!(count(&handle).await, all);
        routes.refresh(&left).await.unwrap();
        assert_eq!(count(&handle).await, (tunnel.0 + 4, tunnel.1 + 2, 0));
        assert_eq!(uplink_of(&handle, "10.2.0.7", far).await, wifi);
        routes.prepare(&locals).await.unwrap();
        assert_eq!(count(&handle).await, all);

        // an earlier run that was killed
        drop(routes);
        let mut routes = Routes::open("bewick0", true, Vec::new()).await.unwrap();
        assert_eq!(count(&handle).await, (0, 0, 0));
        routes.prepare(&locals).await.unwrap();
        assert_eq!(count(&handle).await, (8, 4, 0));
        routes.shutdown().await.unwrap();
        assert_eq!(count(&handle).await, (0, 0, 0));

        // our own sockets need none of it
        let mut routes = Routes::open("bewick0", false, Vec::new()).await.unwrap();
        routes.prepare(&locals).await.unwrap();
        routes.refresh(&locals).await.unwrap();
        assert_eq!(count(&handle).await, (0, 0, 0));
    });
}

#[test]
fn without_the_device_nothing_is_changed() {
    in_namespace(|handle| async move {
        let mut routes = Routes::open("bewick0", true, Vec::new()).await.unwrap();
        let error = routes.add(&sa(), &[]).await.unwrap_err();
        assert_eq!(error.to_string(), "find the device bewick0: No such device (os error 19)");
        assert_eq!(count(&handle).await, (0, 0, 0));
    });
}
