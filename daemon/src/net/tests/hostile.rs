//! The kill switch in a network that wants the packets.

use std::net::{SocketAddr, UdpSocket};

use netlink_packet_route::rule::{RuleAction, RuleAttribute};
use socket2::{Domain, Socket, Type};

use super::{
    stays::{Sender, device, know},
    tap::Tap,
    *,
};

/// Hosts of which nothing may be heard outside the tunnel: one anywhere, a gateway's claim
/// (ADDITIONAL_IP4_ADDRESS), one in a local network's public range, one in the other family.
const HOSTS: [&str; 4] = ["198.18.0.1", "8.8.8.8", "203.0.113.9", "2001:db8:ffff::1"];

fn everything(always: bool, stays: bool) -> Vec<Closed> {
    let nets = ["0.0.0.0/0", "::/0"].map(|net| net.parse().unwrap()).to_vec();
    vec![Closed { connection: "office".into(), nets, always, stays }]
}

/// A route that the network offers, to a router or on the link itself.
async fn offer(handle: &Handle, net: &str, router: Option<&str>) {
    let net: ipnet::IpNet = net.parse().unwrap();
    let mut route = RouteMessageBuilder::<IpAddr>::new()
        .destination_prefix(net.network(), net.prefix_len())
        .unwrap()
        .output_interface(index(handle, "eth0").await);
    if let Some(router) = router {
        route = route.gateway(router.parse().unwrap()).unwrap();
    }
    handle.route().add(route.build()).execute().await.unwrap();
}

/// Sends to every host as programs do that know better than the routes: without a router, and in IPv6
/// bound to the uplink. In IPv4 the kernel takes whatever the routes refuse to be on the link of such
/// a socket (ip_route_output_key_hash_rcu), which no route or rule can forbid. Says how many it took.
fn insist() -> usize {
    let mut taken = 0;
    for host in HOSTS {
        let to = SocketAddr::new(host.parse().unwrap(), 9);
        let domain = if to.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
        for (bound, direct) in [(true, false), (false, true), (true, true)] {
            if bound && to.is_ipv4() {
                continue;
            }
            let socket = Socket::new(domain, Type::DGRAM, None).unwrap();
            if bound {
                socket.bind_device(Some(b"eth0")).unwrap();
            }
            let flags = if direct { libc::MSG_DONTROUTE } else { 0 };
            taken += usize::from(socket.send_to_with_flags(b"inside", &to.into(), flags).is_ok());
        }
    }
    taken
}

/// Fails if anything for the hosts has left other than by the tunnel; says how much has by that.
fn inside_only(tap: &Tap, tunnel: u32, when: &str) -> usize {
    let hosts = HOSTS.map(|host| Some(host.parse::<IpAddr>().unwrap()));
    let sent: Vec<_> = tap.sent().into_iter().filter(|seen| hosts.contains(&seen.to)).collect();
    let clear: Vec<_> = sent.iter().filter(|seen| seen.ifindex != tunnel).collect();
    assert!(clear.is_empty(), "{when}: {} in clear: {:?}", clear.len(), clear.first());
    sent.len()
}

async fn more(senders: &[Sender]) {
    for sender in senders {
        sender.more(10).await;
    }
}

#[test]
fn nothing_leaves_in_clear_before_between_and_after_in_a_hostile_network() {
    in_namespace(|handle| async move {
        uplink(&handle, "eth0", "10.1.0.7", "10.1.0.1", 100).await;
        ipv6(&handle, "eth0", "2001:db8:1::7", "2001:db8:1::1", 100).await;
        for router in ["10.1.0.1", "2001:db8:1::1"] {
            know(&handle, "eth0", router).await;
        }
        let (tunnel, eth0) = (device(&handle).await, index(&handle, "eth0").await);
        let open = || Routes::open("bewick0", false, everything(true, true));
        let mut routes = open().await.unwrap();
        let tap = Tap::open();
        let senders = HOSTS.map(Sender::start);

        more(&senders).await;
        assert_eq!(insist(), 0);
        assert_eq!(inside_only(&tap, tunnel, "before it is up"), 0);

        // option 121, and router advertisements with routes
        for (net, router) in [
            ("0.0.0.0/1", Some("10.1.0.1")),
            ("128.0.0.0/1", Some("10.1.0.1")),
            ("198.18.0.1/32", Some("10.1.0.1")),
            ("203.0.113.0/24", None),
            ("8.8.8.0/24", None),
            ("::/1", Some("2001:db8:1::1")),
            ("2001:db8:ffff::/48", None),
        ] {
            offer(&handle, net, router).await;
        }
        more(&senders).await;
        assert_eq!(insist(), 0);
        assert_eq!(inside_only(&tap, tunnel, "with the network's routes"), 0);

        // up, which carries all of IPv4 and not that host in IPv6
        let sa = sa();
        routes.add(&sa, &[]).await.unwrap();
        more(&senders).await;
        assert_eq!(insist(), 0);
        let inside = inside_only(&tap, tunnel, "while it is up");
        assert!(inside >= 30, "{inside}");

        // a move, and another program that removes rules and routes of ours
        let monitor = Monitor::start("bewick0").await.unwrap();
        let mut disturbed = monitor.disturbed();
        let locals = monitor.addresses().borrow().clone();
        for _ in 0..20 {
            routes.prepare(&locals).await.unwrap();
            routes.moved(&[]).await.unwrap();
            routes.refresh(&locals).await.unwrap();
        }
        let all: Vec<_> = handle.rule().get(IpVersion::V4).execute().try_collect().await.unwrap();
        let is_closing = |rule: &&netlink_packet_route::rule::RuleMessage| {
            rule.header.action == RuleAction::Unreachable
                && rule.attributes.contains(&RuleAttribute::Priority(CLOSE_PRIORITY))
        };
        let closing = all.iter().find(is_closing).unwrap().clone();
        handle.rule().del(closing).execute().await.unwrap();
        disturbed.changed().await.unwrap();
        routes.refresh(&locals).await.unwrap();
        let all: Vec<_> = handle.rule().get(IpVersion::V4).execute().try_collect().await.unwrap();
        assert!(all.iter().any(|rule| is_closing(&rule)), "it is put back");
        more(&senders).await;
        inside_only(&tap, tunnel, "in the gap of a move");

        // down, and dead without a word, and started again
        routes.remove(sa.id).await.unwrap();
        routes.unblock("office").await.unwrap();
        more(&senders).await;
        assert_eq!(insist(), 0);
        inside_only(&tap, tunnel, "after it went down");
        routes.add(&sa, &[]).await.unwrap();
        drop(routes);
        let gone = LinkUnspec::new_with_index(tunnel).down().build();
        handle.link().set(gone).execute().await.unwrap();
        more(&senders).await;
        assert_eq!(insist(), 0);
        inside_only(&tap, tunnel, "after SIGKILL");
        let mut routes = open().await.unwrap();
        more(&senders).await;
        assert_eq!(inside_only(&tap, tunnel, "when it starts again"), 0);
        assert!(routes.shutdown().await.unwrap(), "it stays closed");
        more(&senders).await;
        assert_eq!(insist(), 0);
        assert_eq!(inside_only(&tap, tunnel, "after it ended"), 0);
        assert_ne!(count(&handle).await, (0, 0, 0));

        // what gets past: our mark, and a lease that is asked for again
        assert_eq!(lookup(&handle, "192.0.2.2", MARK).await.0, Some(eth0));
        let lease = RouteMessageBuilder::<std::net::Ipv4Addr>::new()
            .destination_prefix("10.1.0.1".parse().unwrap(), 32)
            .ip_protocol(17)
            .sport(68)
            .dport(67)
            .build();
        assert_eq!(ask(&handle, lease).await.0, Some(eth0));
        let near = UdpSocket::bind("[::]:0").unwrap();
        let scoped = std::net::SocketAddrV6::new("fe80::1".parse().unwrap(), 547, 0, eth0);
        near.send_to(b"router", scoped).unwrap();

        Routes::release().await.unwrap();
        assert_eq!(count(&handle).await, (0, 0, 0));
        more(&senders).await;
        assert!(insist() > 0);
        let clear = tap.sent().iter().filter(|seen| seen.ifindex == eth0).count();
        assert!(clear > 0, "the tap sees what leaves in clear");
    });
}

#[test]
fn while_up_outlives_a_crash_and_not_an_end() {
    in_namespace(|handle| async move {
        let mut routes = Routes::open("bewick0", false, everything(false, false)).await.unwrap();
        assert_eq!(count(&handle).await, (0, 0, 0), "never up: open");
        let nets = everything(false, false).remove(0).nets;
        routes.block("office", nets).await.unwrap();
        let closed = count(&handle).await;
        drop(routes);
        let mut routes = Routes::open("bewick0", false, everything(false, false)).await.unwrap();
        assert_eq!(count(&handle).await, closed);
        assert!(!routes.shutdown().await.unwrap());
        assert_eq!(count(&handle).await, (0, 0, 0));
        let routes = Routes::open("bewick0", false, everything(false, false)).await.unwrap();
        assert_eq!(count(&handle).await, (0, 0, 0));
        drop(routes);
    });
}
