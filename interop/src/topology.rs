//! The network of a scenario, made of namespaces that only this run knows.
//!
//! ```text
//! client u1 198.51.100.2 ───────────────────── router ── gateway 192.0.2.1, 10.1.0.1 inside
//!        u2 203.0.113.2 or 192.168.7.2 ─(NAT)──┘
//! ```
//! Each uplink of the client has a default route in the main table. [`Topology::add_ipv6`] gives the
//! first uplink, the gateway and what is behind it IPv6 addresses too. What else a scenario of moves wants of
//! the network is in [`ground`].

use std::cell::Cell;
use std::collections::BTreeSet;
use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rustix::thread::LinkNameSpaceType;

use crate::capture::Capture;
use crate::cleanup::{self, Guard};
use crate::fail;
use crate::failure::{Context, Result};
use crate::process::{self, words};

mod ground;

pub use ground::{CLIENT_6, FORWARDED, GATEWAY_OTHER, GATEWAYS, Ground};

/// Everything, but of ESP over IPv4, in UDP or not, each 64th packet of an SA (RFC 4303 §2.2, RFC 3948 §2.1).
const SOME_ESP: &str = "not (udp port 4500 and udp[4:2] > 19 and udp[8:4] != 0 and udp[12:4] & 63 != 0) and \
                        not (ip proto 50 and ip[24:4] & 63 != 0)";

/// The gateway's address on the outer network.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// The gateway's address on the network behind it.
pub const INSIDE: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 1);
/// The network behind the gateway.
pub const INNER_NETWORK: &str = "10.1.0.0/16";
/// Where virtual addresses come from.
pub const POOL: &str = "10.9.0.0/24";
/// The same for thousands of clients.
pub const POOL_OF_CROWD: &str = "10.200.0.0/16";
/// The gateway's address on a second network behind it.
pub const INSIDE_2: Ipv4Addr = Ipv4Addr::new(10, 2, 0, 1);
/// The second network behind the gateway.
pub const INNER_NETWORK_2: &str = "10.2.0.0/16";
/// The gateway's address on the outer network, with IPv6.
pub const GATEWAY_6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 1);
/// The gateway's address on the network behind it, with IPv6.
pub const INSIDE_6: Ipv6Addr = Ipv6Addr::new(0xfd10, 1, 0, 0, 0, 0, 0, 1);
/// The network behind the gateway, with IPv6.
pub const INNER_NETWORK_6: &str = "fd10:1::/64";
/// The client's address on the network behind it, where it has one.
pub const SITE: Ipv4Addr = Ipv4Addr::new(10, 3, 0, 1);
/// The network behind the client.
pub const SITE_NETWORK: &str = "10.3.0.0/16";
/// The client's address on the network behind it, with IPv6.
pub const SITE_6: Ipv6Addr = Ipv6Addr::new(0xfd10, 3, 0, 0, 0, 0, 0, 1);
/// The network behind the client, with IPv6.
pub const SITE_NETWORK_6: &str = "fd10:3::/64";
/// Where virtual IPv6 addresses come from.
pub const POOL_6: &str = "fd10:9::/112";

/// How late the answer to a ping may be on a busy machine.
const LATE: Duration = Duration::from_secs(10);

/// A host of the topology.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Node {
    /// The road warrior with two uplinks.
    Client,
    /// Another client, next to the first one behind the NAT, if there is one.
    Second,
    /// What lies between.
    Router,
    /// The translator on the second uplink, if there is one.
    Nat,
    /// The VPN gateway.
    Gateway,
}

impl Node {
    /// Whether it initiates.
    pub fn is_client(self) -> bool {
        matches!(self, Node::Client | Node::Second)
    }

    /// Its name, in file names and messages.
    pub fn name(self) -> &'static str {
        match self {
            Node::Client => "client",
            Node::Second => "second",
            Node::Router => "router",
            Node::Nat => "nat",
            Node::Gateway => "gateway",
        }
    }
}

/// One way of the client to the network.
#[derive(Debug, Clone, Copy)]
pub struct Uplink {
    /// The device in the client.
    pub device: &'static str,
    /// The client's address on it, in a /24.
    pub address: Ipv4Addr,
    /// The next hop.
    pub next_hop: Ipv4Addr,
    /// The source address that the gateway sees.
    pub seen_as: Ipv4Addr,
    /// The router's device towards it.
    port: &'static str,
}

/// The client's address on its first uplink.
pub const FIRST_UPLINK: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);

/// The same on its second one, where there is no NAT.
pub const SECOND_UPLINK: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 2);

const FIRST: Uplink = Uplink {
    device: "u1",
    address: FIRST_UPLINK,
    next_hop: Ipv4Addr::new(198, 51, 100, 1),
    seen_as: FIRST_UPLINK,
    port: "c1",
};
const SECOND: Uplink = Uplink {
    device: "u2",
    address: SECOND_UPLINK,
    next_hop: Ipv4Addr::new(203, 0, 113, 1),
    seen_as: SECOND_UPLINK,
    port: "c2",
};
const SECOND_BEHIND_NAT: Uplink = Uplink {
    device: "u2",
    address: Ipv4Addr::new(192, 168, 7, 2),
    next_hop: Ipv4Addr::new(192, 168, 7, 1),
    seen_as: Ipv4Addr::new(203, 0, 113, 9),
    port: "n1",
};

/// How an uplink is taken away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    /// The device goes down.
    LinkDown,
    /// The address is deleted; the device stays up.
    AddressDeleted,
}

impl Loss {
    /// In words.
    pub fn name(self) -> &'static str {
        match self {
            Loss::LinkDown => "link down",
            Loss::AddressDeleted => "address deleted",
        }
    }
}

/// What a daemon could leave behind on a host: devices, addresses, routes, rules, tables of nftables,
/// IPsec state.
#[derive(Debug, Default)]
pub struct Traces(BTreeSet<String>);

impl Traces {
    /// What is here and was not in `before`.
    pub fn added_since<'a>(&'a self, before: &'a Traces) -> Vec<&'a str> {
        self.0.difference(&before.0).map(String::as_str).collect()
    }
}

/// The namespaces; dropping it takes them away with all that runs in them.
pub struct Topology {
    prefix: String,
    uplinks: [Uplink; 2],
    next_metric: Cell<u32>,
    next_port: Cell<u16>,
    guards: Vec<Guard>,
}

impl Topology {
    /// Builds it; `part` tells apart the topologies of one run.
    ///
    /// # Errors
    /// What `ip`, `nft` or `iptables-legacy` said.
    pub fn build(part: &str, nat: bool) -> Result<Self> {
        let prefix = cleanup::own_name(part);
        let nodes: &[Node] = if nat {
            &[Node::Client, Node::Router, Node::Nat, Node::Gateway]
        } else {
            &[Node::Client, Node::Router, Node::Gateway]
        };
        let mut guards = Vec::new();
        let uplinks = [FIRST, if nat { SECOND_BEHIND_NAT } else { SECOND }];
        for node in nodes {
            let name = format!("{prefix}-{}", node.name());
            guards.push(Guard::namespace(&name));
            words(&format!("ip netns add {name}"))?;
        }
        let (next_metric, next_port) = (Cell::new(100), Cell::new(5000));
        let topology = Self { prefix, uplinks, next_metric, next_port, guards };
        for node in nodes {
            topology.prepare(*node)?;
        }
        topology.cable(Node::Client, "u1", Node::Router, "c1")?;
        topology.cable(Node::Gateway, "w0", Node::Router, "g1")?;
        topology.address(Node::Router, "c1", FIRST.next_hop)?;
        topology.address(Node::Router, "g1", Ipv4Addr::new(192, 0, 2, 254))?;
        topology.address(Node::Gateway, "w0", GATEWAY)?;
        topology.ip(Node::Gateway, "route add default via 192.0.2.254")?;
        for inside in [INSIDE, INSIDE_2] {
            topology.ip(Node::Gateway, &format!("addr add {inside}/32 dev lo"))?;
        }
        if nat {
            topology.cable(Node::Client, "u2", Node::Nat, "c2")?;
            topology.cable(Node::Nat, "out", Node::Router, "n1")?;
            topology.address(Node::Nat, "c2", SECOND_BEHIND_NAT.next_hop)?;
            topology.address(Node::Nat, "out", SECOND_BEHIND_NAT.seen_as)?;
            topology.address(Node::Router, "n1", SECOND.next_hop)?;
            topology.ip(Node::Nat, &format!("route add default via {}", SECOND.next_hop))?;
            topology.masquerade("")?;
        } else {
            topology.cable(Node::Client, "u2", Node::Router, "c2")?;
            topology.address(Node::Router, "c2", SECOND.next_hop)?;
        }
        for uplink in &topology.uplinks {
            topology.restore(uplink)?;
        }
        Ok(topology)
    }

    /// Gives IPv6 to the first uplink, the router, the gateway and the network behind it.
    ///
    /// # Errors
    /// What `ip` said.
    pub fn add_ipv6(&self) -> Result<()> {
        let mut forward = self.command(Node::Router, "sh");
        forward.args(["-c", "echo 1 >/proc/sys/net/ipv6/conf/all/forwarding"]);
        process::output(&mut forward, Duration::from_secs(10))?;
        for (node, address, device) in [
            (Node::Client, "2001:db8:1::2/64", "u1"),
            (Node::Router, "2001:db8:1::1/64", "c1"),
            (Node::Router, "2001:db8:2::fe/64", "g1"),
            (Node::Gateway, &format!("{GATEWAY_6}/64"), "w0"),
            (Node::Gateway, &format!("{INSIDE_6}/128"), "lo"),
        ] {
            self.ip(node, &format!("addr add {address} dev {device} nodad"))?;
        }
        self.ip(Node::Client, "-6 route add default via 2001:db8:1::1 dev u1 metric 100")?;
        self.ip(Node::Gateway, "-6 route add default via 2001:db8:2::fe dev w0 metric 100")
    }

    /// The uplink that has this address.
    ///
    /// # Errors
    /// None has it.
    pub fn uplink_of(&self, address: IpAddr) -> Result<Uplink> {
        self.uplinks
            .iter()
            .find(|uplink| uplink.address == address)
            .copied()
            .ok_or_else(|| fail!("{address} is no address of the client's uplinks"))
    }

    /// Both.
    pub fn uplinks(&self) -> [Uplink; 2] {
        self.uplinks
    }

    /// Gives the client whole networks as addresses of its own, reached by its uplinks; again without effect.
    ///
    /// # Errors
    /// What `ip` said.
    pub fn herd(&self, networks: [&str; 2]) -> Result<()> {
        for (network, uplink) in networks.into_iter().zip(&self.uplinks) {
            self.ip(Node::Client, &format!("route replace local {network} dev lo"))?;
            self.ip(Node::Router, &format!("route replace {network} via {}", uplink.address))?;
        }
        Ok(())
    }

    /// The one that is not `uplink`.
    pub fn other(&self, uplink: &Uplink) -> Uplink {
        let [first, second] = self.uplinks;
        if first.device == uplink.device { second } else { first }
    }

    /// A command that runs on a host.
    pub fn command(&self, node: Node, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.namespace(node)]).arg(program);
        command
    }

    /// Takes an uplink away from the client.
    ///
    /// # Errors
    /// What `ip` said.
    pub fn lose(&self, uplink: &Uplink, loss: Loss) -> Result<()> {
        match loss {
            Loss::LinkDown => self.ip(Node::Client, &format!("link set {} down", uplink.device)),
            Loss::AddressDeleted => self
                .ip(Node::Client, &format!("addr del {}/24 dev {}", uplink.address, uplink.device)),
        }
    }

    /// Gives an uplink (back) to the client: address, link, default route.
    ///
    /// Each time with a higher metric: were the one that comes back preferred, packets of a daemon
    /// that picks only the source address would leave by it with the other uplink's address.
    ///
    /// # Errors
    /// What `ip` said.
    pub fn restore(&self, uplink: &Uplink) -> Result<()> {
        let Uplink { device, address, next_hop, .. } = uplink;
        let metric = self.next_metric.replace(self.next_metric.get() + 100);
        self.ip(Node::Client, &format!("addr replace {address}/24 dev {device}"))?;
        self.ip(Node::Client, &format!("link set {device} up"))?;
        let route = format!("route replace default via {next_hop} dev {device} metric {metric}");
        self.ip(Node::Client, &route)
    }

    /// Pings from one host until an answer comes, then three times more; none may be lost. On a busy machine
    /// an answer may be late, and is no less an answer.
    ///
    /// # Errors
    /// No answer within `limit`, or one of the three was lost.
    pub fn ping(&self, from: Node, source: IpAddr, to: IpAddr, limit: Duration) -> Result<()> {
        let (source, to) = (source.to_string(), to.to_string());
        // One by one: once ping has had an answer, it waits no longer for the last than twice as long as the
        // slowest took.
        let ping = |patience: Duration| {
            let mut command = self.command(from, "ping");
            let seconds = patience.as_secs().to_string();
            command.args(["-n", "-c", "1", "-W", &seconds, "-I", &source, &to]);
            process::finish(&mut command, patience + Duration::from_secs(10))
        };
        let what = format!("ping from the {} ({source}) to {to}", from.name());
        process::eventually(limit, || {
            let done = ping(Duration::from_secs(1))?;
            if done.status.success() {
                return Ok(());
            }
            Err(fail!("no answer {}", process::one_line(&done.stderr)))
        })
        .context(&what)?;
        for number in 1..=3 {
            if !ping(LATE)?.status.success() {
                return Err(fail!("{what}: the answer to number {number} was lost"));
            }
        }
        Ok(())
    }

    /// How many packets a host's kernel has dropped because of IPsec; none where the kernel has no IPsec.
    pub fn dropped(&self, node: Node) -> u64 {
        let mut command = self.command(node, "cat");
        let done = process::finish(command.arg("/proc/net/xfrm_stat"), Duration::from_secs(10));
        let text = done.map_or(String::new(), |done| done.stdout);
        text.lines().filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok()).sum()
    }

    /// A UDP socket on a host, with this local address.
    ///
    /// # Errors
    /// The namespace cannot be entered or the address not be bound.
    pub fn udp_socket(&self, node: Node, local: SocketAddr) -> Result<UdpSocket> {
        self.within(node, move || UdpSocket::bind(local).context(format!("bind to {local}")))?
    }

    /// Does something in a host's network namespace. Sockets that are made there stay there.
    ///
    /// # Errors
    /// The namespace cannot be entered.
    pub fn within<T: Send + 'static>(
        &self,
        node: Node,
        act: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T> {
        let path = Path::new("/run/netns").join(self.namespace(node));
        let enter_and_act = move || -> Result<T> {
            let namespace = File::open(&path).context(path.display())?;
            rustix::thread::move_into_link_name_space(
                std::os::fd::AsFd::as_fd(&namespace),
                Some(LinkNameSpaceType::Network),
            )
            .context("setns")?;
            Ok(act())
        };
        // Namespaces belong to threads: this one ends with the work done and is not used again.
        std::thread::spawn(enter_and_act)
            .join()
            .map_err(|_| fail!("the thread in the {}'s namespace died", node.name()))?
    }

    /// Captures all that passes the router.
    ///
    /// # Errors
    /// `tcpdump` does not start.
    pub fn capture(&self, out: &Path) -> Result<Capture> {
        self.capture_of(out, "")
    }

    /// The same, but of ESP only some: more than `tcpdump` writes down in a slow guest would cost it IKE too.
    ///
    /// # Errors
    /// `tcpdump` does not start.
    pub fn capture_some(&self, out: &Path) -> Result<Capture> {
        self.capture_of(out, SOME_ESP)
    }

    /// What is on a host now.
    ///
    /// # Errors
    /// What `ip` said; IPsec state is left out where the kernel has none.
    pub fn traces(&self, node: Node) -> Result<Traces> {
        let namespace = self.namespace(node);
        let mut lines = BTreeSet::new();
        let mut add = |kind: &str, text: &str| {
            // Nobody's trace: what the kernel adds to a device that comes up and, a moment later, to an address
            // that is looked at itself, the default routes of `restore`, and its note that a packet wants a
            // state, which ends by itself (net.core.xfrm_acq_expires).
            let own = |line: &&str| {
                let automatic = ["fe80:", "ff00::/8", " table local proto kernel "]
                    .iter()
                    .any(|part| line.contains(part));
                let ours = line.starts_with("default via ") && line.contains(" metric ");
                let wanted = kind == "state" && line.contains(" spi 0x00000000 ");
                !automatic && !ours && !wanted
            };
            lines.extend(text.lines().filter(own).map(|line| format!("{kind}: {}", line.trim())));
        };
        let links = words(&format!("ip -n {namespace} -br link"))?;
        for name in links.lines().filter_map(|line| line.split([' ', '@']).next()) {
            add("device", name);
        }
        add("address", &words(&format!("ip -n {namespace} -o addr"))?);
        for family in ["-4", "-6"] {
            add("rule", &words(&format!("ip -n {namespace} {family} rule"))?);
            add("route", &words(&format!("ip -n {namespace} {family} route show table all"))?);
        }
        // A kernel without nf_tables has none.
        let done = process::finish(
            self.command(node, "nft").args(["list", "tables"]),
            Duration::from_secs(10),
        )?;
        if done.status.success() {
            add("nftables", &done.stdout);
        }
        for kind in ["state", "policy"] {
            let mut command = Command::new("ip");
            command.args(["-n", &namespace, "-o", "xfrm", kind]);
            // Not for a verdict.
            command.args((kind == "state").then_some(["list", "nokeys"]).into_iter().flatten());
            let done = process::finish(&mut command, Duration::from_secs(10))?;
            if done.status.success() {
                add(kind, &done.stdout);
            }
        }
        Ok(Traces(lines))
    }

    fn add_host(&mut self, node: Node) -> Result<()> {
        let name = self.namespace(node);
        self.guards.push(Guard::namespace(&name));
        words(&format!("ip netns add {name}"))?;
        self.prepare(node)
    }

    fn namespace(&self, node: Node) -> String {
        format!("{}-{}", self.prefix, node.name())
    }

    /// Runs `ip` for a host.
    ///
    /// # Errors
    /// What `ip` said.
    pub fn ip(&self, node: Node, arguments: &str) -> Result<()> {
        words(&format!("ip -n {} {arguments}", self.namespace(node))).map(drop)
    }

    fn prepare(&self, node: Node) -> Result<()> {
        self.ip(node, "link set lo up")?;
        // Packets to the gateway's inner address and from the client's spare uplink would fail a
        // strict reverse-path check; forwarding is what routers and gateways are for.
        let mut script =
            String::from("for f in /proc/sys/net/ipv4/conf/*/rp_filter; do echo 0 >$f; done;");
        // An address is of use at once: nobody else is here who could have the same one.
        script.push_str("for f in /proc/sys/net/ipv6/conf/*/accept_dad; do echo 0 >$f; done;");
        if !node.is_client() {
            script.push_str("echo 1 >/proc/sys/net/ipv4/ip_forward;");
        }
        let mut command = self.command(node, "sh");
        process::output(command.args(["-c", &script]), Duration::from_secs(10)).map(drop)
    }

    fn cable(&self, a: Node, a_device: &str, b: Node, b_device: &str) -> Result<()> {
        let (a_space, b_space) = (self.namespace(a), self.namespace(b));
        words(&format!(
            "ip link add {a_device} netns {a_space} type veth peer name {b_device} netns {b_space}"
        ))?;
        self.ip(a, &format!("link set {a_device} up"))?;
        self.ip(b, &format!("link set {b_device} up"))
    }

    fn address(&self, node: Node, device: &str, address: Ipv4Addr) -> Result<()> {
        self.ip(node, &format!("addr add {address}/24 dev {device}"))
    }
}
