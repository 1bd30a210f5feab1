//! A host behind this one is told how big a packet may be (RFC 1191, RFC 8201; RFC 4301 §8.2).

use std::{mem::MaybeUninit, net::Ipv6Addr};

use netlink_packet_route::link::LinkAttribute;
use socket2::{Domain, Protocol, SockAddr, SockAddrStorage, Socket, Type};

use super::{
    stays::{device, know},
    tap::Tap,
    *,
};

const HOST: &str = "10.5.0.9";
const HOST_6: &str = "2001:db8:5::9";
const FAR: &str = "198.18.0.1";
const FAR_6: &str = "2001:db8:1::1";

/// The network card of the host behind: IP packets go from it to `lan`, and come to it.
struct Host {
    socket: Socket,
    lan: [u8; 6],
    ifindex: u32,
}

impl Host {
    async fn open(handle: &Handle) -> Self {
        handle.link().add(LinkVeth::new("lan", "lan-far").build()).execute().await.unwrap();
        for name in ["lan", "lan-far"] {
            let up = LinkUnspec::new_with_index(index(handle, name).await).up().build();
            handle.link().set(up).execute().await.unwrap();
        }
        let lan = index(handle, "lan").await;
        for (address, bits) in [("10.5.0.1", 24), ("2001:db8:5::1", 64)] {
            handle.address().add(lan, address.parse().unwrap(), bits).execute().await.unwrap();
        }
        for host in [HOST, HOST_6] {
            know(handle, "lan", host).await;
        }
        for file in ["ipv4/conf/all/forwarding", "ipv6/conf/all/forwarding"] {
            std::fs::write(format!("/proc/sys/net/{file}"), "1").unwrap();
        }
        let mut links = handle.link().get().match_name("lan").execute();
        let link = links.try_next().await.unwrap().unwrap();
        let address = link.attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::Address(address) => Some(address.clone()),
            _ => None,
        });
        let all = i32::from(u16::try_from(libc::ETH_P_ALL).unwrap().to_be());
        let socket = Socket::new(Domain::PACKET, Type::DGRAM, Some(Protocol::from(all))).unwrap();
        socket.set_nonblocking(true).unwrap();
        let lan = address.unwrap().try_into().unwrap();
        Host { socket, lan, ifindex: index(handle, "lan-far").await }
    }

    fn send(&self, packet: &[u8]) {
        let kind = if packet[0] >> 4 == 4 { libc::ETH_P_IP } else { libc::ETH_P_IPV6 };
        let mut storage = SockAddrStorage::zeroed();
        // SAFETY: a storage has room for every kind of address.
        let link = unsafe { storage.view_as::<libc::sockaddr_ll>() };
        link.sll_family = libc::AF_PACKET as u16;
        link.sll_protocol = u16::try_from(kind).unwrap().to_be();
        link.sll_ifindex = i32::try_from(self.ifindex).unwrap();
        link.sll_halen = 6;
        link.sll_addr[..6].copy_from_slice(&self.lan);
        // SAFETY: as long as what has been written.
        let to = unsafe { SockAddr::new(storage, size_of::<libc::sockaddr_ll>() as u32) };
        assert_eq!(self.socket.send_to(packet, &to).unwrap(), packet.len());
    }

    /// Waits for the ICMP error that says how big a packet may be.
    async fn told(&self, ipv6: bool) -> u32 {
        loop {
            let mut buffer = [MaybeUninit::uninit(); 2048];
            let Ok(len) = self.socket.recv(&mut buffer) else {
                tokio::time::sleep(Duration::from_millis(1)).await;
                continue;
            };
            // SAFETY: the kernel has filled as many octets.
            let got: Vec<u8> = buffer[..len].iter().map(|b| unsafe { b.assume_init() }).collect();
            let number = |at: usize| u32::from_be_bytes(got[at..at + 4].try_into().unwrap());
            match ipv6 {
                // RFC 792, RFC 1191: destination unreachable, fragmentation needed
                false if got[0] >> 4 == 4 && got[9] == 1 && got[20..22] == [3, 4] => {
                    return number(24) & 0xffff;
                }
                // RFC 4443 §3.2
                true if got[0] >> 4 == 6 && got[6] == 58 && got[40] == 2 => return number(44),
                _ => {}
            }
        }
    }
}

/// A UDP packet of so many octets from the host behind to one beyond the tunnel, not to be fragmented.
fn packet(ipv6: bool, len: u16) -> Vec<u8> {
    let mut out;
    if ipv6 {
        out = vec![0x60, 0, 0, 0];
        out.extend((len - 40).to_be_bytes());
        out.extend([17, 64]);
        for address in [HOST_6, FAR_6] {
            out.extend(address.parse::<Ipv6Addr>().unwrap().octets());
        }
    } else {
        out = vec![0x45, 0];
        out.extend(len.to_be_bytes());
        out.extend([0, 1, 0x40, 0, 64, 17, 0, 0]);
        for address in [HOST, FAR] {
            out.extend(address.parse::<std::net::Ipv4Addr>().unwrap().octets());
        }
        let sum = out.chunks(2).map(|two| u32::from(two[0]) << 8 | u32::from(two[1])).sum::<u32>();
        let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
        out[10..12].copy_from_slice(&sum.to_be_bytes());
    }
    out.resize(len.into(), 9);
    out
}

#[test]
fn rfc_4301_8_2_a_host_behind_is_told_of_packets_that_are_too_big_for_the_path_in_use() {
    in_namespace(|handle| async move {
        let all = told_what_fits(handle);
        tokio::time::timeout(Duration::from_secs(60), all)
            .await
            .expect("an answer for each packet");
    });
}

async fn told_what_fits(handle: Handle) {
    uplink(&handle, "eth0", "10.1.0.7", "10.1.0.1", 100).await;
    let tunnel = device(&handle).await;
    let host = Host::open(&handle).await;
    let locals = |mtu| [local("10.1.0.7", mtu), local("2001:db8::7", mtu)];
    let mut routes = Routes::open("bewick0", true, Vec::new()).await.unwrap();
    routes.prepare(&locals(1500)).await.unwrap();
    let ts = |list: [&str; 2]| {
        list.map(|text| TrafficSelector::from_net(text.parse().unwrap())).to_vec()
    };
    let sa = ChildSa {
        ts_local: ts(["10.5.0.0/24", "2001:db8:5::/64"]),
        virtual_ips: Vec::new(),
        ..sa()
    };
    routes.add(&sa, &[]).await.unwrap();
    // the uplink's, and one with room for less
    for (uplink, room) in [(1500, 1438), (1400, 1338)] {
        routes.refresh(&locals(uplink)).await.unwrap();
        for ipv6 in [false, true] {
            host.send(&packet(ipv6, room + 1));
            assert_eq!(host.told(ipv6).await, u32::from(room), "IPv6: {ipv6}");
            // what the host makes of it goes
            let tap = Tap::open();
            host.send(&packet(ipv6, room));
            let far: IpAddr = if ipv6 { FAR_6 } else { FAR }.parse().unwrap();
            let there = |one: &tap::Seen| one.ifindex == tunnel && one.to == Some(far);
            while !tap.sent().iter().any(there) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
    }
    routes.shutdown().await.unwrap();
}
