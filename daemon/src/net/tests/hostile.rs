//! The kill switch in a network that wants the packets.

use std::{
    net::{SocketAddr, SocketAddrV6},
    process::Command,
};

use netlink_packet_route::address::AddressHeaderFlags;
use socket2::{Domain, Socket, Type};

use super::{
    super::guard::{Guard, Means},
    stays::{Sender, device, know},
    tap::Tap,
    *,
};

/// Hosts of which nothing may be heard outside the tunnel: one anywhere, a gateway's claim
/// (ADDITIONAL_IP4_ADDRESS), one in a local network's public range, one in the other family.
const HOSTS: [&str; 4] = ["198.18.0.1", "8.8.8.8", "203.0.113.9", "2001:db8:ffff::1"];

pub(super) fn everything(always: bool, stays: bool) -> Vec<Closed> {
    let nets = ["0.0.0.0/0", "::/0"].map(|net| net.parse().unwrap()).to_vec();
    vec![Closed { connection: "office".into(), nets, always, stays, guarded: true }]
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

/// Sends to every host as programs do that know better than the routes: bound to the uplink, without a
/// router, and from the ports that the kernel's check of the way back knows the tunnel's own packets
/// by. Says how many packets the kernel took, by the way of sending.
fn insist() -> [usize; 5] {
    let mut taken = [0; 5];
    for host in HOSTS {
        let to = SocketAddr::new(host.parse().unwrap(), 9);
        let (domain, any) = match to.is_ipv4() {
            true => (Domain::IPV4, IpAddr::from([0; 4])),
            false => (Domain::IPV6, IpAddr::from([0; 16])),
        };
        let ways = [
            (true, false, 0),
            (false, true, 0),
            (true, true, 0),
            (false, false, 500),
            (true, false, 4500),
        ];
        for (taken, (bound, direct, port)) in taken.iter_mut().zip(ways) {
            let socket = Socket::new(domain, Type::DGRAM, None).unwrap();
            // a program that another test starts may hold the last one for a moment
            socket.set_reuse_address(true).unwrap();
            if bound {
                socket.bind_device(Some(b"eth0")).unwrap();
            }
            socket.bind(&SocketAddr::new(any, port).into()).unwrap();
            let flags = if direct { libc::MSG_DONTROUTE } else { 0 };
            *taken += usize::from(socket.send_to_with_flags(b"inside", &to.into(), flags).is_ok());
        }
    }
    taken
}

/// Sends one datagram from a port to an address, by the uplink.
fn send(from: &str, to: SocketAddr, mark: u32) -> std::io::Result<usize> {
    let from: SocketAddr = from.parse().unwrap();
    let socket = Socket::new(Domain::for_address(from), Type::DGRAM, None)?;
    socket.bind_device(Some(b"eth0"))?;
    socket.set_mark(mark)?;
    socket.set_reuse_address(true)?;
    if from.is_ipv4() {
        socket.set_broadcast(true)?;
    }
    socket.bind(&from.into())?;
    socket.send_to(b"allowed", &to.into())
}

/// Runs a program as others do.
fn program(name: &str, arguments: &[&str]) -> String {
    let path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    let output = Command::new(name).args(arguments).env("PATH", path).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

/// What the packet filter has.
pub(super) fn filters() -> String {
    let nft = program("nft", &["-s", "list", "ruleset"]);
    let mangle = program("iptables-legacy", &["-t", "mangle", "-S"]);
    nft + &mangle + &program("ip6tables-legacy", &["-t", "mangle", "-S"])
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
    in_hostile_network(&[Means::Nft]);
}

#[test]
fn nothing_does_either_where_the_kernel_has_no_nftables() {
    in_hostile_network(&[Means::Xtables]);
}

fn in_hostile_network(means: &'static [Means]) {
    in_namespace(move |handle| async move {
        uplink(&handle, "eth0", "10.1.0.7", "10.1.0.1", 100).await;
        ipv6(&handle, "eth0", "2001:db8:1::7", "2001:db8:1::1", 100).await;
        for router in ["10.1.0.1", "2001:db8:1::1"] {
            know(&handle, "eth0", router).await;
        }
        let (tunnel, eth0) = (device(&handle).await, index(&handle, "eth0").await);
        let open = || Routes::open_by(means, "bewick0", false, everything(true, true));
        let mut routes = open().await.unwrap();
        let tap = Tap::open();
        let senders = HOSTS.map(Sender::start);

        more(&senders).await;
        assert_eq!(insist(), [0; 5]);
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
        assert_eq!(insist(), [0; 5]);
        assert_eq!(inside_only(&tap, tunnel, "with the network's routes"), 0);

        // up, which carries all of IPv4 and not that host in IPv6
        let sa = sa();
        routes.add(&sa, &[]).await.unwrap();
        more(&senders).await;
        insist();
        let inside = inside_only(&tap, tunnel, "while it is up");
        assert!(inside >= 30, "{inside}");

        // a move
        let monitor = Monitor::start("bewick0").await.unwrap();
        let (mut tables, mut disturbed) = (monitor.tables(), monitor.disturbed());
        let locals = monitor.addresses().borrow().clone();
        for _ in 0..20 {
            routes.prepare(&locals).await.unwrap();
            routes.moved(&[]).await.unwrap();
            routes.refresh(&locals).await.unwrap();
            insist();
        }
        more(&senders).await;
        inside_only(&tap, tunnel, "in the gap of a move");

        // a firewall that is loaded anew: the routes hold until the table is back
        let table = filters();
        assert!(table.contains("bewick0"), "{table}");
        match means {
            [Means::Nft] => {
                program("nft", &["flush", "ruleset"]);
                tables.changed().await.unwrap();
            }
            // nobody tells
            _ => drop(program("iptables-legacy", &["-t", "mangle", "-F"])),
        }
        assert_ne!(filters(), table);
        more(&senders).await;
        routes.close_again().await;
        assert_eq!(filters(), table);
        insist();
        inside_only(&tap, tunnel, "after flush ruleset");

        // the rule that leads to the tunnel is gone: the packet filter holds until it is back
        disturbed.borrow_and_update();
        let rules = count(&handle).await.0;
        program("ip", &["rule", "del", "pref", "4866"]);
        assert_eq!(count(&handle).await.0, rules - 1);
        more(&senders).await;
        insist();
        disturbed.changed().await.unwrap();
        routes.refresh(&locals).await.unwrap();
        assert_eq!(count(&handle).await.0, rules);
        inside_only(&tap, tunnel, "without the rule");

        // down, and dead without a word, and started again
        routes.remove(sa.id).await.unwrap();
        routes.unblock("office").await.unwrap();
        more(&senders).await;
        assert_eq!(insist(), [0; 5]);
        inside_only(&tap, tunnel, "after it went down");
        routes.add(&sa, &[]).await.unwrap();
        drop(routes);
        let gone = LinkUnspec::new_with_index(tunnel).down().build();
        handle.link().set(gone).execute().await.unwrap();
        more(&senders).await;
        assert_eq!(insist(), [0; 5]);
        inside_only(&tap, tunnel, "after SIGKILL");
        let mut routes = open().await.unwrap();
        more(&senders).await;
        assert_eq!(inside_only(&tap, tunnel, "when it starts again"), 0);
        assert!(routes.shutdown().await.unwrap(), "it stays closed");
        more(&senders).await;
        assert_eq!(insist(), [0; 5]);
        assert_eq!(inside_only(&tap, tunnel, "after it ended"), 0);
        assert_ne!(count(&handle).await, (0, 0, 0));

        // what gets past: our mark, a lease that is asked for again, and what a link is made of
        let leaves = |from: &str, to: &str, mark: u32, seen_as: &str| {
            let to = match to.parse().unwrap() {
                SocketAddr::V6(v6) => SocketAddrV6::new(*v6.ip(), v6.port(), 0, eth0).into(),
                v4 => v4,
            };
            let _ = tap.sent();
            let _ = send(from, to, mark);
            let seen_as = Some(seen_as.parse().unwrap());
            tap.sent().iter().any(|seen| seen.ifindex == eth0 && seen.to == seen_as)
        };
        let mut link = handle.address().add(eth0, "fe80::7".parse().unwrap(), 64);
        link.message_mut().header.flags = AddressHeaderFlags::Nodad;
        link.execute().await.unwrap();
        for (from, to, mark, seen_as) in [
            // it is not on the link, but by the socket's word
            ("0.0.0.0:4500", "192.0.2.2:4500", MARK, "192.0.2.2"),
            ("0.0.0.0:68", "10.1.0.1:67", 0, "10.1.0.1"),
            ("0.0.0.0:68", "255.255.255.255:67", 0, "255.255.255.255"),
            ("[fe80::7]:546", "[ff02::1:2]:547", 0, "ff02::1:2"),
            ("[::]:0", "[2001:db8:1::55]:9", MARK, "ff02::1:ff00:55"),
        ] {
            assert!(leaves(from, to, mark, seen_as), "{from} to {to} is held up");
        }
        for (from, to, seen_as) in [
            ("0.0.0.0:4500", "192.0.2.2:4500", "192.0.2.2"),
            ("0.0.0.0:0", "10.1.0.1:67", "10.1.0.1"),
            ("0.0.0.0:68", "10.1.0.1:53", "10.1.0.1"),
            ("0.0.0.0:0", "224.0.0.251:5353", "224.0.0.251"),
            ("[fe80::7]:0", "[ff02::1:2]:547", "ff02::1:2"),
            ("[fe80::7]:546", "[ff02::fb]:5353", "ff02::fb"),
        ] {
            assert!(!leaves(from, to, 0, seen_as), "{from} to {to} gets out");
        }

        Routes::release().await.unwrap();
        let (rules, routes, _) = count(&handle).await;
        assert_eq!((rules, routes), (0, 0));
        more(&senders).await;
        assert!(!filters().contains("bewick0"));
        let taken = insist();
        assert!(taken.iter().all(|taken| *taken > 0), "each way leads out: {taken:?}");
        let clear = tap.sent().iter().filter(|seen| seen.ifindex == eth0).count();
        assert!(clear > 0, "the tap sees what leaves in clear");
    });
}

#[test]
fn what_is_closed_is_never_open_while_the_rules_change() {
    in_namespace(|handle| async move {
        uplink(&handle, "eth0", "10.1.0.7", "10.1.0.1", 100).await;
        ipv6(&handle, "eth0", "2001:db8:1::7", "2001:db8:1::1", 100).await;
        for router in ["10.1.0.1", "2001:db8:1::1"] {
            know(&handle, "eth0", router).await;
        }
        let nets = |list: &[&str]| list.iter().map(|net| net.parse().unwrap()).collect();
        let all = nets(&["0.0.0.0/0", "::/0"]);
        let more_than_all = nets(&["0.0.0.0/1", "128.0.0.0/1", "::/0"]);
        let tap = Tap::open();
        for means in [&[Means::Nft], &[Means::Xtables]] {
            let mut guard = Guard::new("bewick0", false, means);
            guard.set(Clone::clone(&all)).await.unwrap();
            let senders = HOSTS.map(Sender::start);
            more(&senders).await;
            let _ = tap.sent();
            for _ in 0..60 {
                guard.set(Clone::clone(&more_than_all)).await.unwrap();
                guard.let_pass(["ipsec0".to_owned()].into());
                guard.set(Clone::clone(&all)).await.unwrap();
                guard.let_pass(Default::default());
                // another run, which does not know what is there
                guard = Guard::new("bewick0", false, means);
            }
            more(&senders).await;
            drop(senders);
            inside_only(&tap, 0, "while the rules change");
            guard.remove().await.unwrap();
        }
        let senders = HOSTS.map(Sender::start);
        more(&senders).await;
        assert!(tap.sent().len() >= 10, "the tap sees what leaves in clear");
    });
}

#[test]
fn a_table_that_others_have_made_something_else_of_is_replaced() {
    in_namespace(|_| async move {
        program("nft", &["add table inet bewick"]);
        program("nft", &["add chain inet bewick leaving { type filter hook input priority 5; }"]);
        assert!(filters().contains("hook input"));
        let nets = std::collections::BTreeSet::from(["10.0.0.0/8".parse().unwrap()]);
        let mut guard = Guard::new("bewick0", false, &[Means::Nft]);
        guard.set(nets).await.unwrap();
        let filters = filters();
        assert!(
            filters.contains("hook postrouting") && !filters.contains("hook input"),
            "{filters}"
        );
    });
}

#[test]
fn the_rules_that_let_the_kernels_esp_pass_are_taken_by_either_means() {
    in_namespace(|_| async move {
        let nets = std::collections::BTreeSet::from(["0.0.0.0/0".parse().unwrap()]);
        for means in [&[Means::Nft], &[Means::Xtables]] {
            let mut guard = Guard::new("bewick0", true, means);
            guard.probe(&nets).await.unwrap();
            guard.set(nets.clone()).await.unwrap();
            let filters = filters();
            let ipsec = ["rt ipsec exists accept", "--pol ipsec -j RETURN"];
            assert!(ipsec.iter().any(|rule| filters.contains(rule)), "{filters}");
            guard.set(Default::default()).await.unwrap();
            assert!(!self::filters().contains("bewick0"));
        }
    });
}

#[test]
fn without_a_packet_filter_always_does_not_start_and_the_routes_stay_closed() {
    in_namespace(|handle| async move {
        let while_up = everything(true, false);
        let mut routes = Routes::open_by(&[], "bewick0", false, while_up).await.unwrap();
        let closed = count(&handle).await;
        assert_ne!(closed, (0, 0, 0));
        routes.shutdown().await.unwrap();
        let always = everything(true, true);
        let error = Routes::open_by(&[], "bewick0", false, always).await.err().unwrap();
        assert!(error.to_string().contains("install the package nftables"), "{error}");
        assert_eq!(count(&handle).await, closed);
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
