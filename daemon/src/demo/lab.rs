//! The network of the demo: a client with two uplinks, a router, a NAT and a gateway.
//!
//! ```text
//! client -- wifi ------------ router -- gateway
//!        -- lte --- NAT -----
//! ```

use std::{
    io::{self, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use ipnet::Ipv4Net;
use socket2::{Domain, Socket, Type};

use super::{
    leak::Watch,
    netns::{End, NetError, Netns, cable},
};

/// One of the client's ways out.
#[derive(Debug, PartialEq, Eq)]
pub struct Uplink {
    /// the interface's name
    pub name: &'static str,
    /// the client's address on it
    pub address: Ipv4Addr,
    /// the router at the other end
    pub via: Ipv4Addr,
    /// the metric of its default route
    pub metric: u32,
    /// the router's interface for it
    port: &'static str,
}

/// The client's uplinks, best first.
pub const UPLINKS: [Uplink; 2] = [
    Uplink {
        name: "wifi",
        address: Ipv4Addr::new(10, 77, 1, 2),
        via: Ipv4Addr::new(10, 77, 1, 1),
        metric: 100,
        port: "to-wifi",
    },
    Uplink {
        name: "lte",
        address: Ipv4Addr::new(10, 77, 2, 2),
        via: Ipv4Addr::new(10, 77, 2, 1),
        metric: 200,
        port: "to-nat",
    },
];

/// The gateway's address on the outside.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);
/// The host behind the gateway that the tunnel is for.
pub const INNER: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 1);
/// The addresses inside the tunnel, on both ends.
pub const INNER_NETS: [Ipv4Net; 2] = [
    Ipv4Net::new_assert(Ipv4Addr::new(10, 1, 0, 0), 16),
    Ipv4Net::new_assert(Ipv4Addr::new(10, 9, 0, 0), 24),
];
/// The NAT's address on the outside.
pub const NAT: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);

const ANYWHERE: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 0);
const ECHO_PORT: u16 = 7007;

/// Whether the second uplink is really behind a NAT.
#[derive(Debug)]
pub enum Nat {
    /// yes, by this `nft`
    Nft(PathBuf),
    /// no, and why not
    Missing(String),
}

/// The network, which is gone when this value is.
#[derive(Debug)]
pub struct Lab {
    /// the client's namespace
    pub client: Netns,
    /// the gateway's namespace
    pub gateway: Netns,
    /// whether the second uplink is behind a NAT
    pub nat: Nat,
    wires: [Watch; 2],
    seen: [Ipv4Addr; UPLINKS.len()],
    router: Netns,
    translator: Netns,
    _echo: Echo,
}

impl Lab {
    /// Builds the network.
    pub fn build() -> Result<Self, NetError> {
        let client = Netns::create("client")?;
        let router = Netns::create("router")?;
        let translator = Netns::create("nat")?;
        let gateway = Netns::create("gateway")?;
        // A namespace inherits the machine's choice of reverse-path filter; with the strict one
        // packets for the second uplink would be dropped, since the first has the better route.
        for netns in [&client, &router, &translator, &gateway] {
            netns.set_sysctl(&["ipv4/conf/all/rp_filter", "ipv4/conf/default/rp_filter"], "0")?;
        }
        for netns in [&router, &translator] {
            netns.set_sysctl(&["ipv4/ip_forward"], "1")?;
        }

        let [wifi, lte] = &UPLINKS;
        let mut index = 10;
        let mut end = |netns, interface, address| {
            index += 1;
            End { netns, interface, index, address: net(address) }
        };
        let hop = |last| Ipv4Addr::new(198, 51, 100, last);
        let outside = Ipv4Addr::new(203, 0, 113, 1);
        cable(end(&router, wifi.port, wifi.via), end(&client, wifi.name, wifi.address))?;
        cable(end(&router, lte.port, hop(1)), end(&translator, "outside", NAT))?;
        cable(end(&translator, "inside", lte.via), end(&client, lte.name, lte.address))?;
        cable(end(&router, "to-gateway", outside), end(&gateway, "wan", GATEWAY))?;
        gateway.add_address("lo", Ipv4Net::from(INNER))?;

        gateway.add_route(ANYWHERE, outside, 0)?;
        translator.add_route(ANYWHERE, hop(1), 0)?;
        // Used only without a NAT: with it the router never sees the inside.
        router.add_route(net(lte.via).trunc(), NAT, 0)?;
        for uplink in &UPLINKS {
            client.add_route(ANYWHERE, uplink.via, uplink.metric)?;
        }

        let nat = match masquerade(&translator) {
            Ok(nft) => Nat::Nft(nft),
            Err(why) => Nat::Missing(why.to_string()),
        };
        let echo = Echo::start(&gateway).map_err(|error| NetError::new("start the echo", error))?;
        let watch = |netns| {
            Watch::start(netns, &INNER_NETS)
                .map_err(|error| NetError::new("watch the wires", error))
        };
        let wires = [watch(&router)?, watch(&translator)?];
        let mut lab = Lab {
            client,
            gateway,
            nat,
            wires,
            seen: UPLINKS.each_ref().map(|uplink| uplink.address),
            router,
            translator,
            _echo: echo,
        };
        for (index, uplink) in UPLINKS.iter().enumerate() {
            if let (IpAddr::V4(seen), Some(address)) =
                (lab.probe(uplink)?.ip(), lab.seen.get_mut(index))
            {
                *address = seen;
            }
        }
        Ok(lab)
    }

    /// The address under which the gateway sees an uplink.
    pub fn seen(&self, uplink: &Uplink) -> Ipv4Addr {
        let mut pairs = UPLINKS.iter().zip(self.seen);
        let own = pairs.find(|(other, _)| other.name == uplink.name);
        own.map_or(uplink.address, |(_, seen)| seen)
    }

    /// How many packets that belong into the tunnel went over the wires in the clear since it was
    /// last asked.
    pub fn leaked(&self) -> u64 {
        self.wires.iter().map(Watch::seen).sum()
    }

    /// Takes an uplink away: the interface goes down, and its routes with it.
    pub fn take(&self, uplink: &Uplink) -> Result<(), NetError> {
        self.client.set_link(uplink.name, false)
    }

    /// Brings an uplink back, with its default route, and waits until it reaches the gateway.
    pub fn restore(&self, uplink: &Uplink) -> Result<(), NetError> {
        self.client.set_link(uplink.name, true)?;
        self.client.add_route(ANYWHERE, uplink.via, uplink.metric)?;
        self.probe(uplink).map(|_| ())
    }

    /// Has the router drop everything that comes and goes by an uplink, while every link stays up.
    pub fn silence(&self, uplink: &Uplink) -> Result<(), NetError> {
        self.set_forwarding(uplink, "0")?;
        self.router.set_blackhole(self.seen(uplink), true)
    }

    /// Lets the packets of an uplink pass again, and waits until it reaches the gateway.
    pub fn unsilence(&self, uplink: &Uplink) -> Result<(), NetError> {
        self.router.set_blackhole(self.seen(uplink), false)?;
        self.set_forwarding(uplink, "1")?;
        self.probe(uplink).map(|_| ())
    }

    /// A port that forwards nothing answers nothing either, as ICMP would give it away.
    fn set_forwarding(&self, uplink: &Uplink, value: &str) -> Result<(), NetError> {
        self.router.set_sysctl(&[&format!("ipv4/conf/{}/forwarding", uplink.port)], value)
    }

    /// Has the NAT forget its mappings and make the new ones with other ports.
    pub fn rebind(&self) -> Result<(), NetError> {
        if let Nat::Nft(nft) = &self.nat {
            load(nft, &self.translator, OTHER_PORTS)?;
        }
        self.translator.forget_connections()
    }

    /// Asks the gateway, outside of any tunnel, under which address it sees an uplink, as soon as
    /// the uplink works.
    pub fn probe(&self, uplink: &Uplink) -> Result<SocketAddr, NetError> {
        for _ in 0..200 {
            if self.client.is_running(uplink.name)? {
                break;
            }
            thread::sleep(Duration::from_millis(10));
        }
        let asked = self.client.enter(|| {
            let socket = bound(uplink)?;
            socket.set_read_timeout(Some(Duration::from_millis(50)))?;
            let mut buffer = [0; 64];
            for _ in 0..60 {
                match socket.send_to(b"who am I?", (GATEWAY, ECHO_PORT)) {
                    Ok(_) => {
                        if let Ok(length) = socket.recv(&mut buffer) {
                            let text = String::from_utf8_lossy(buffer.get(..length).unwrap_or(&[]));
                            return text.parse().map_err(io::Error::other);
                        }
                    }
                    Err(_) => thread::sleep(Duration::from_millis(50)),
                }
            }
            Err(io::Error::other("no answer within 3 s"))
        });
        asked.map_err(|error| NetError::new(format!("reach the gateway by {}", uplink.name), error))
    }
}

/// The uplink that has this address.
pub fn uplink_of(address: SocketAddr) -> Option<&'static Uplink> {
    UPLINKS.iter().find(|uplink| address.ip() == uplink.address)
}

/// A socket that uses this uplink only, whatever the routes say.
fn bound(uplink: &Uplink) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
    socket.bind_device(Some(uplink.name.as_bytes()))?;
    socket.bind(&SocketAddr::from((uplink.address, 0)).into())?;
    Ok(socket.into())
}

fn net(address: Ipv4Addr) -> Ipv4Net {
    Ipv4Net::new_assert(address, 24)
}

/// A NAT that keeps the ports of the inside where it can, and says nothing to strangers.
const MASQUERADE: &str = r#"table ip demo {
 chain out {
  type nat hook postrouting priority 100;
  oifname "outside" masquerade;
 }
 chain in {
  type filter hook input priority 0;
  iifname "outside" meta l4proto udp drop;
 }
}
"#;

/// The same, with other ports from now on: one of the range would be kept, and no client has one.
const OTHER_PORTS: &str = r#"flush chain ip demo out
add rule ip demo out oifname "outside" meta l4proto udp masquerade to :10000-19999
"#;

/// Makes `translator` a NAT with `nft`, the only other program that the demo has a use for.
fn masquerade(translator: &Netns) -> Result<PathBuf, NetError> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let nft = std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin", "/usr/local/sbin"].map(PathBuf::from))
        .map(|directory| directory.join("nft"))
        .find(|nft| nft.is_file())
        .ok_or_else(|| NetError::new("find nft", "there is none on this machine"))?;
    load(&nft, translator, MASQUERADE)?;
    Ok(nft)
}

/// Has `nft` put these rules into force.
fn load(nft: &Path, netns: &Netns, rules: &str) -> Result<(), NetError> {
    let output = netns.enter(|| {
        let mut child = Command::new(nft)
            .args(["-f", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(rules.as_bytes())?;
        }
        child.wait_with_output()
    });
    let output = output.map_err(|error| NetError::new("run nft", error))?;
    if output.status.success() {
        return Ok(());
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    Err(NetError::new("use nft", stderr.lines().next().unwrap_or("without a word")))
}

/// Tells whoever asks under which address it is seen.
#[derive(Debug)]
struct Echo {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Echo {
    fn start(gateway: &Netns) -> io::Result<Self> {
        let socket = gateway.enter(|| UdpSocket::bind((GATEWAY, ECHO_PORT)))?;
        socket.set_read_timeout(Some(Duration::from_millis(100)))?;
        let stop = Arc::<AtomicBool>::default();
        let stopped = stop.clone();
        let thread = thread::Builder::new().name("echo".to_owned()).spawn(move || {
            let mut buffer = [0; 64];
            while !stopped.load(Ordering::Relaxed) {
                if let Ok((_, from)) = socket.recv_from(&mut buffer) {
                    // Who gets no answer asks again.
                    let _ = socket.send_to(from.to_string().as_bytes(), from);
                }
            }
        })?;
        Ok(Echo { stop, thread: Some(thread) })
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It has nothing to tell.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::traffic::{Clock, Flow, GRACE},
        *,
    };

    /// The network without a tunnel; `None` where this user may make no namespaces.
    fn lab() -> Option<Lab> {
        match Netns::create("probe") {
            Ok(_) => Some(Lab::build().expect("the network")),
            Err(error) => {
                eprintln!("not tested: {error}");
                None
            }
        }
    }

    #[test]
    fn both_uplinks_reach_the_gateway_and_the_second_by_the_nat() {
        let Some(lab) = lab() else { return };
        let [wifi, lte] = UPLINKS.each_ref().map(|uplink| lab.probe(uplink).expect("an answer"));
        assert_eq!(wifi.ip(), UPLINKS[0].address);
        match &lab.nat {
            Nat::Nft(_) => assert_eq!(lte.ip(), NAT),
            Nat::Missing(_) => assert_eq!(lte.ip(), UPLINKS[1].address),
        }
    }

    #[test]
    fn an_inner_packet_on_a_wire_is_seen_and_another_is_not() {
        let Some(lab) = lab() else { return };
        assert_eq!(lab.leaked(), 0, "the probes are no inner packets");
        let [wifi, lte] = UPLINKS.each_ref().map(|u| lab.client.enter(|| bound(u)).expect("one"));
        wifi.send_to(b"to the inner host", (INNER, 9)).expect("sent");
        lte.send_to(b"to the inner host", (INNER, 9)).expect("sent");
        lte.send_to(b"to the gateway", (GATEWAY, 9)).expect("sent");
        // One on the first uplink's wire, one on each side of the NAT.
        assert_eq!(lab.leaked(), 3);
        assert_eq!(lab.leaked(), 0);
    }

    #[test]
    fn a_silent_uplink_reaches_nobody_until_it_is_let_pass_again() {
        let Some(lab) = lab() else { return };
        for uplink in &UPLINKS {
            lab.silence(uplink).expect("silence");
            assert!(lab.client.is_running(uplink.name).expect("a state"), "the link stays up");
            assert!(lab.probe(uplink).is_err(), "{}", uplink.name);
            lab.unsilence(uplink).expect("an answer");
        }
    }

    #[test]
    fn a_nat_that_forgets_gives_another_port() {
        let Some(lab) = lab() else { return };
        if !matches!(lab.nat, Nat::Nft(_)) {
            return;
        }
        let ask = |socket: &UdpSocket| {
            let mut buffer = [0; 64];
            socket.set_read_timeout(Some(Duration::from_secs(3))).expect("a timeout");
            socket.send_to(b"who am I?", (GATEWAY, ECHO_PORT)).expect("sent");
            let length = socket.recv(&mut buffer).expect("an answer");
            String::from_utf8_lossy(&buffer[..length]).parse::<SocketAddr>().expect("an address")
        };
        let socket = lab.client.enter(|| bound(&UPLINKS[1])).expect("a socket");
        let before = ask(&socket);
        assert_eq!(before, ask(&socket));
        lab.rebind().expect("another mapping");
        let after = ask(&socket);
        assert_eq!(before.ip(), after.ip());
        assert_ne!(before.port(), after.port());
        assert_eq!(after, ask(&socket));
    }

    #[test]
    fn an_uplink_taken_away_is_a_gap_and_comes_back() {
        let Some(lab) = lab() else { return };
        let [wifi, _] = &UPLINKS;
        // Without a tunnel the inner host is reached by nobody, so the gateway's own address serves.
        let client = lab.client.enter(|| bound(wifi)).expect("a socket");
        let gateway = lab.gateway.enter(|| UdpSocket::bind((GATEWAY, 7701))).expect("a socket");
        let clock = Clock::start();
        let flow = Flow::start(client, gateway, (GATEWAY, 7701).into(), clock).expect("threads");
        while flow.both_ways().is_none() {
            assert!(clock.now() < Duration::from_secs(5), "nothing arrives");
            thread::sleep(Duration::from_millis(5));
        }
        let from = clock.now();
        lab.take(wifi).expect("down");
        thread::sleep(Duration::from_millis(300));
        lab.restore(wifi).expect("up again");
        thread::sleep(Duration::from_millis(300));
        let until = clock.now();
        thread::sleep(GRACE);
        for figures in flow.figures(from, until) {
            assert!(figures.lost > 100 && figures.lost < figures.sent, "{figures:?}");
            assert!(figures.gap > Duration::from_millis(200), "{figures:?}");
            assert!(figures.flowing, "{figures:?}");
        }
    }
}
