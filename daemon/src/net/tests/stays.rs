//! What is inside the tunnel while the uplink goes from under it.

use std::{
    net::UdpSocket,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
};

use bewick_ike::ChildMove;
use futures_util::{FutureExt, StreamExt};
use netlink_packet_route::{RouteNetlinkMessage, route::RouteMetric};
use rtnetlink::{MulticastGroup, packet_core::NetlinkPayload};

use super::{tap::Tap, *};

/// A host that is reached by the tunnel alone.
const INSIDE: &str = "198.18.0.1";

/// Makes a tunnel device, on which nobody asks who has an address.
pub(super) async fn device(handle: &Handle) -> u32 {
    handle.link().add(LinkVeth::new("bewick0", "b-far").build()).execute().await.unwrap();
    for name in ["bewick0", "b-far"] {
        let link = LinkUnspec::new_with_index(index(handle, name).await).arp(false).up();
        handle.link().set(link.build()).execute().await.unwrap();
    }
    index(handle, "bewick0").await
}

/// Lets packets leave by an uplink without asking who its router is.
pub(super) async fn know(handle: &Handle, name: &str, router: &str) {
    let link = index(handle, name).await;
    let request = handle.neighbours().add(link, router.parse().unwrap());
    request.link_layer_address(&[2, 0, 0, 0, 0, 1]).execute().await.unwrap();
}

/// Sends to `to` without a pause, until it is dropped.
pub(super) struct Sender {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Sender {
    pub(super) fn start(to: &'static str) -> Self {
        let (stop, sent) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let (stopped, count) = (stop.clone(), sent.clone());
        let thread = std::thread::spawn(move || {
            let any = if to.contains(':') { "[::]:0" } else { "0.0.0.0:0" };
            let socket = UdpSocket::bind(any).unwrap();
            let to: IpAddr = to.parse().unwrap();
            while !stopped.load(SeqCst) {
                // what can't be sent has not leaked
                let _ = socket.send_to(b"inside", (to, 9));
                count.fetch_add(1, SeqCst);
                std::thread::sleep(Duration::from_micros(200));
            }
        });
        Sender { stop, sent, thread: Some(thread) }
    }

    /// Waits until it has tried as many times again.
    pub(super) async fn more(&self, times: u64) {
        let until = self.sent.load(SeqCst) + times;
        while self.sent.load(SeqCst) < until {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        self.stop.store(true, SeqCst);
        self.thread.take().unwrap().join().unwrap();
    }
}

#[test]
fn x_15_the_virtual_address_and_its_route_stay_when_the_uplink_goes_down() {
    in_namespace(|handle| async move {
        uplink(&handle, "eth0", "10.1.0.7", "10.1.0.1", 100).await;
        uplink(&handle, "wifi", "10.2.0.7", "10.2.0.1", 600).await;
        let tunnel = device(&handle).await;
        let (eth0, wifi) = (index(&handle, "eth0").await, index(&handle, "wifi").await);
        tokio::time::sleep(Duration::from_millis(50)).await;
        let monitor = Monitor::start("bewick0").await.unwrap();
        let mut addresses = monitor.addresses();
        let mut routes = Routes::open("bewick0", true, Vec::new()).await.unwrap();
        let found = addresses.borrow_and_update().clone();
        routes.prepare(&found).await.unwrap();
        let sa = sa();
        routes.add(&sa, &[]).await.unwrap();
        routes.refresh(&found).await.unwrap();
        assert_eq!(lookup(&handle, "192.0.2.2", MARK).await.0, Some(eth0));

        let groups = [MulticastGroup::Ipv4Route, MulticastGroup::Ipv4Ifaddr];
        let (connection, _events_handle, mut events) =
            rtnetlink::new_multicast_connection(&groups).unwrap();
        tokio::spawn(connection);
        let tap = Tap::open();
        let sender = Sender::start(INSIDE);
        sender.more(20).await;
        for (gone, left) in [("eth0", wifi), ("wifi", eth0)] {
            down(&handle, gone).await;
            know(&handle, if gone == "eth0" { "wifi" } else { "eth0" }, "10.2.0.1").await;
            addresses.changed().await.unwrap();
            let found = addresses.borrow_and_update().clone();
            routes.prepare(&found).await.unwrap();
            routes.refresh(&found).await.unwrap();
            sender.more(20).await;
            assert_eq!(lookup(&handle, INSIDE, 0).await, (Some(tunnel), Some(sa.virtual_ips[0])));
            assert_eq!(lookup(&handle, "192.0.2.2", MARK).await.0, Some(left));
            if gone == "eth0" {
                // back, and with its default route, before the other goes
                let up = LinkUnspec::new_with_index(eth0).up().build();
                handle.link().set(up).execute().await.unwrap();
                let route = RouteMessageBuilder::<std::net::Ipv4Addr>::new()
                    .gateway("10.1.0.1".parse().unwrap())
                    .output_interface(eth0)
                    .priority(100)
                    .build();
                handle.route().add(route).execute().await.unwrap();
                addresses
                    .wait_for(|all| all.len() == 2 && all[0].metric == Some(100))
                    .await
                    .unwrap();
                let found = addresses.borrow_and_update().clone();
                routes.prepare(&found).await.unwrap();
                routes.refresh(&found).await.unwrap();
            }
        }
        drop(sender);

        let to = Some(INSIDE.parse().unwrap());
        let sent: Vec<_> = tap.sent().into_iter().filter(|seen| seen.to == to).collect();
        assert!(sent.len() >= 60, "{}", sent.len());
        assert!(sent.iter().all(|seen| seen.ifindex == tunnel), "in clear on an uplink");
        // nothing inside was taken away, not even for a moment
        let mut inside_deleted = || {
            let mut deleted = 0;
            while let Some(Some((message, _))) = events.next().now_or_never() {
                let NetlinkPayload::InnerMessage(event) = message.payload else { continue };
                deleted += match event {
                    RouteNetlinkMessage::DelRoute(route) => {
                        let ours = |a: &_| matches!(a, RouteAttribute::Table(TABLE));
                        usize::from(route.attributes.iter().any(ours))
                    }
                    RouteNetlinkMessage::DelAddress(address) => {
                        usize::from(address.header.index == tunnel)
                    }
                    _ => 0,
                };
            }
            deleted
        };
        assert_eq!(inside_deleted(), 0);
        routes.shutdown().await.unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert_eq!(inside_deleted(), 2, "what is taken away is seen");
    });
}

/// The MTU of our routes through the tunnel device.
async fn mtus(handle: &Handle) -> Vec<(u8, u32)> {
    let mut out = Vec::new();
    let families = [
        RouteMessageBuilder::<std::net::Ipv4Addr>::new().build(),
        RouteMessageBuilder::<std::net::Ipv6Addr>::new().build(),
    ];
    for family in families {
        let all: Vec<_> = handle.route().get(family).execute().try_collect().await.unwrap();
        for route in all {
            let ours = |attribute: &_| matches!(attribute, RouteAttribute::Table(TABLE));
            let metrics = route.attributes.iter().find_map(|attribute| match attribute {
                RouteAttribute::Metrics(metrics) => Some(metrics.clone()),
                _ => None,
            });
            for metric in metrics.into_iter().flatten() {
                if let (RouteMetric::Mtu(mtu), true) = (metric, route.attributes.iter().any(ours)) {
                    out.push((route.header.destination_prefix_length, mtu));
                }
            }
        }
    }
    out.sort_unstable();
    out
}

#[test]
fn x_8_inner_routes_have_the_mtu_of_the_path_that_the_tunnel_moves_to() {
    in_namespace(|handle| async move {
        device(&handle).await;
        let mut locals = [local("10.1.0.7", 1500), local("2001:db8::7", 1500)];
        let path =
            |local: &str, remote: &str| Path::new(local.parse().unwrap(), remote.parse().unwrap());
        let (v4, v6) = (
            path("10.1.0.7:4500", "192.0.2.2:4500"),
            path("[2001:db8::7]:4500", "[2001:db8:f::2]:4500"),
        );
        let mut routes = Routes::open("bewick0", true, Vec::new()).await.unwrap();
        routes.prepare(&locals).await.unwrap();
        let sa = sa();
        routes.add(&sa, &[]).await.unwrap();
        assert_eq!(mtus(&handle).await, [(0, 1438), (48, 1438)]);
        let to = |path, encap| [ChildMove { id: sa.id, path, encap }];
        routes.moved(&to(v6, false)).await.unwrap();
        assert_eq!(mtus(&handle).await, [(0, 1426), (48, 1426)]);
        routes.moved(&to(v6, true)).await.unwrap();
        assert_eq!(mtus(&handle).await, [(0, 1418), (48, 1418)]);
        routes.moved(&to(v4, true)).await.unwrap();
        assert_eq!(mtus(&handle).await, [(0, 1438), (48, 1438)]);
        // an uplink with room for less, and IPv6 never gets less than its least (RFC 8200 §5)
        locals[0].mtu = 1300;
        routes.refresh(&locals).await.unwrap();
        assert_eq!(mtus(&handle).await, [(0, 1238), (48, 1280)]);
        // never more than the device has room for, as the kernel would believe the route
        let less = LinkUnspec::new_with_name("bewick0").mtu(1400).build();
        handle.link().set(less).execute().await.unwrap();
        locals[0].mtu = 1500;
        routes.refresh(&locals).await.unwrap();
        assert_eq!(mtus(&handle).await, [(0, 1400), (48, 1400)]);
        routes.shutdown().await.unwrap();
    });
}

/// Without its interface no policy of the kernel's is for such a packet.
#[test]
fn what_is_for_an_xfrm_interface_that_is_not_there_leaves_nowhere() {
    in_namespace(|handle| async move {
        uplink(&handle, "eth0", "10.1.0.7", "10.1.0.1", 100).await;
        let tunnel = device(&handle).await;
        let mut routes = Routes::open("bewick0", true, Vec::new()).await.unwrap();
        routes.prepare(&[]).await.unwrap();
        let mut bound = sa();
        bound.carriage.if_id = std::num::NonZeroU32::new(42);
        routes.add(&bound, &[]).await.unwrap();
        let query = || {
            RouteMessageBuilder::<std::net::Ipv4Addr>::new()
                .destination_prefix(INSIDE.parse().unwrap(), 32)
                .build()
        };
        let refused = handle.route().get(query()).execute().try_next().await;
        assert!(refused.is_err(), "{refused:?}");
        // One of the same networks without an interface has the way when the first is gone.
        let free = ChildSa { id: ChildId(2), ..sa() };
        routes.add(&free, &[]).await.unwrap();
        assert!(handle.route().get(query()).execute().try_next().await.is_err());
        routes.remove(bound.id).await.unwrap();
        assert_eq!(ask(&handle, query()).await.0, Some(tunnel));
        routes.shutdown().await.unwrap();
    });
}
