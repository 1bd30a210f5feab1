//! A client that lets nothing leave in the clear, and programs on it that try to.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use socket2::{Domain, Socket, Type};

use super::case::Running;
use crate::fail;
use crate::failure::{Context, Result};
use crate::peer::Plane;
use crate::place;
use crate::process::{self, Daemon};
use crate::topology::{Loss, Node, Topology};

/// Hosts of which no uplink may hear: anywhere; one that the gateway says is its own
/// (ADDITIONAL_IP4_ADDRESS); in the second uplink's own network, which claims a public range; and in the
/// family that the tunnel does not carry.
const HOSTS: [IpAddr; 4] = [
    IpAddr::V4(Ipv4Addr::new(198, 18, 0, 1)),
    IpAddr::V4(CLAIMED),
    IpAddr::V4(Ipv4Addr::new(203, 0, 113, 77)),
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, 1)),
];

/// An address of the gateway's that is not its to give away.
const CLAIMED: Ipv4Addr = Ipv4Addr::new(8, 8, 8, 8);

/// Routes that the network of the first uplink offers (RFC 3442, RFC 4191).
const OFFERED: [&str; 5] = [
    "route replace 0.0.0.0/1 via 198.51.100.1 dev u1",
    "route replace 128.0.0.0/1 via 198.51.100.1 dev u1",
    "route replace 8.8.8.8/32 via 198.51.100.1 dev u1",
    "-6 route replace ::/1 via 2001:db8:1::1 dev u1",
    "-6 route replace 2001:db8:ffff::/48 via 2001:db8:1::1 dev u1",
];

/// Any, and those of the tunnel's own packets, which the kernel's check of the way back lets pass.
const PORTS: [u16; 3] = [0, 500, 4500];

/// What is in the packets: what nobody takes for ESP, whatever the port (RFC 3948 §2.3).
const CLEAR: &[u8] = &[0xff];

/// How often each way is tried in each part.
const TIMES: u64 = 5;

/// How long the tries of one part may take.
const TRIED: Duration = Duration::from_secs(10);

/// When nothing may leave in the clear.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leak {
    /// Before, between and after.
    Always,
    /// From the first time that the tunnel stands until it is taken down.
    WhileUp,
}

impl Leak {
    /// The word for it in bewick's configuration.
    pub fn word(self) -> &'static str {
        match self {
            Leak::Always => "always",
            Leak::WhileUp => "while-up",
        }
    }

    /// Before the tunnel is up.
    ///
    /// # Errors
    /// Something has left that must not, or nothing has that must.
    pub fn before(self, running: &Running<'_>) -> Result<()> {
        let topology = running.ends.topology;
        topology.ip(Node::Gateway, &format!("addr replace {CLAIMED}/32 dev lo"))?;
        // What comes through the tunnel for them must not go on from there.
        for host in HOSTS.iter().filter(|host| host.is_ipv4() && **host != IpAddr::V4(CLAIMED)) {
            topology.ip(Node::Gateway, &format!("route replace blackhole {host}/32"))?;
        }
        for route in OFFERED {
            topology.ip(Node::Client, route).context("a route that the network offers")?;
        }
        let part = Part { topology, out: &running.out, name: "before", ports: &PORTS };
        match self {
            Leak::Always => part.closed(|| Ok(())),
            Leak::WhileUp => {
                part.open()?;
                // What still waits for a neighbour's answer was sent before anything was closed.
                ["u1", "u2"].iter().try_for_each(|device| {
                    topology.ip(Node::Client, &format!("neigh flush dev {device} nud all"))
                })
            }
        }
    }

    /// While it stands, and after it.
    ///
    /// # Errors
    /// Something has left that must not, or nothing has that must.
    pub fn perform(self, running: &mut Running<'_>) -> Result<()> {
        let (topology, out) = (running.ends.topology, running.out.clone());
        let part = |name| Part { topology, out: &out, name, ports: &PORTS };
        part("while-up").closed(|| Ok(()))?;
        if running.stage.life.plane != Plane::Kernel {
            by_nftables(topology)?;
        }

        let [client, _] = running.ends.agree(1)?;
        // On a machine that is busy the client may have gone to IPv6, which the first uplink alone has.
        let lost = match client.local.ip() {
            IpAddr::V6(_) => topology.uplinks()[0],
            address => topology.uplink_of(address)?,
        };
        part("gap-of-a-move").closed(|| {
            topology.lose(&lost, Loss::LinkDown)?;
            running.works().context("after the move").map(drop)
        })?;
        topology.restore(&lost)?;
        // IPv6 addresses go with the link.
        topology.ip(Node::Client, "addr replace 2001:db8:1::2/64 dev u1 nodad")?;
        for route in OFFERED {
            topology.ip(Node::Client, route).context("the routes again")?;
        }

        running.ends.client.kill();
        part("killed").closed(|| Ok(()))?;
        // A daemon that starts needs the ports itself.
        let again = Part { ports: &PORTS[..1], ..part("started-again") };
        again.closed(|| running.start_again(Node::Client))?;
        running.ends.client.up().context("tunnel up after the client was killed")?;
        running.works().context("after the client was killed")?;

        running.ends.client.down().context("down")?;
        match self {
            Leak::Always => part("down").closed(|| Ok(()))?,
            Leak::WhileUp => part("down").open()?,
        }
        running.ends.client.stop().context("end of the client")?;
        if self == Leak::Always {
            part("ended").closed(|| Ok(()))?;
            release(topology)?;
            part("released").open()?;
        }
        topology.ip(Node::Gateway, &format!("addr del {CLAIMED}/32 dev lo"))?;
        for route in OFFERED {
            topology.ip(Node::Client, &route.replace(" replace ", " del "))?;
        }
        Ok(())
    }
}

/// The guard's rules are those of nftables, where the kernel has them.
fn by_nftables(topology: &Topology) -> Result<()> {
    let mut command = topology.command(Node::Client, "nft");
    command.args(["list", "chain", "inet", "bewick", "leaving"]);
    let listed = process::output(&mut command, Duration::from_secs(10))?;
    match listed.contains("drop") && listed.contains("hook postrouting") {
        true => Ok(()),
        false => Err(fail!("the guard's chain is {}", process::one_line(&listed))),
    }
}

fn release(topology: &Topology) -> Result<()> {
    let mut command = topology.command(Node::Client, place::bewick()?);
    command.args(["release", "--control", "/nonexistent/bewick"]);
    process::output(&mut command, Duration::from_secs(10)).map(drop)
}

/// A part of the story, in which programs try to get out.
struct Part<'a> {
    topology: &'a Topology,
    out: &'a Path,
    name: &'static str,
    /// Ports that programs send from.
    ports: &'static [u16],
}

impl Part<'_> {
    /// Nothing may leave while programs try and something is done.
    fn closed(&self, act: impl FnOnce() -> Result<()>) -> Result<()> {
        match self.heard(act)? {
            [0, 0, 0, 0] => Ok(()),
            heard => Err(fail!(
                "{}: of {HOSTS:?} {heard:?} packets were seen in the clear on an uplink",
                self.name
            )),
        }
    }

    /// What is not closed leaves: whoever looks is not blind.
    fn open(&self) -> Result<()> {
        match self.heard(|| Ok(()))? {
            heard if heard.iter().all(|count| *count > 0) => Ok(()),
            heard => Err(fail!(
                "{}: of {HOSTS:?} only {heard:?} packets were seen, and nothing was closed",
                self.name
            )),
        }
    }

    /// How many packets for each host, or questions where it is, have reached the router from an uplink.
    fn heard(&self, act: impl FnOnce() -> Result<()>) -> Result<[usize; 4]> {
        let wires = ["c1", "c2"].map(|port| Wire::tap(self, port));
        let tries = Tries::start(self.topology, self.ports)?;
        let acted = tries.rounds(TIMES).and_then(|()| act()).and_then(|()| tries.rounds(TIMES));
        drop(tries);
        let mut heard = [0; 4];
        for wire in wires {
            let counts = wire?.counts()?;
            heard.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
        }
        acted.map(|()| heard)
    }
}

/// A capture at the router's end of an uplink.
struct Wire {
    tcpdump: Daemon,
    file: std::path::PathBuf,
}

impl Wire {
    fn tap(part: &Part<'_>, port: &str) -> Result<Self> {
        let file = part.out.join(format!("{}-{port}.pcap", part.name));
        let log = part.out.join(format!("{}-{port}.log", part.name));
        let mut command = part.topology.command(Node::Router, "tcpdump");
        command.args(["--immediate-mode", "-i", port, "-n", "-U", "-Q", "in", "-Z", "root", "-w"]);
        command.arg(&file);
        let mut tcpdump = Daemon::start(&mut command, &log)?;
        process::eventually(Duration::from_secs(10), || {
            tcpdump.still_runs()?;
            let said = std::fs::read_to_string(&log).context(log.display())?;
            if said.contains("listening on") { Ok(()) } else { Err(fail!("tcpdump is silent")) }
        })?;
        Ok(Self { tcpdump, file })
    }

    /// Ends it, and counts what names each host.
    fn counts(mut self) -> Result<[usize; 4]> {
        self.tcpdump.stop(Duration::from_secs(5))?;
        let mut counts = [0; 4];
        for (count, host) in counts.iter_mut().zip(HOSTS) {
            let mut command = Command::new("tcpdump");
            command.args(["-n", "-r"]).arg(&self.file);
            // An IKE message (four octets of zero on port 4500) may ask whether a claimed address answers.
            command.arg(format!("host {host} and not (udp port 4500 and udp[8:4] = 0)"));
            *count = process::output(&mut command, Duration::from_secs(20))?.lines().count();
        }
        Ok(counts)
    }
}

/// Programs on the client that send to all hosts in all ways, until it is dropped.
struct Tries {
    stop: Arc<AtomicBool>,
    rounds: Arc<AtomicU64>,
}

impl Tries {
    fn start(topology: &Topology, ports: &'static [u16]) -> Result<Self> {
        let tries = Tries { stop: Arc::default(), rounds: Arc::default() };
        let (stop, rounds) = (tries.stop.clone(), tries.rounds.clone());
        let go_on = move || {
            while !stop.load(SeqCst) {
                HOSTS.into_iter().for_each(|host| try_all(host, ports));
                rounds.fetch_add(1, SeqCst);
                std::thread::sleep(Duration::from_millis(5));
            }
        };
        // The thread that is started there stays there.
        topology.within(Node::Client, move || drop(std::thread::spawn(go_on)))?;
        Ok(tries)
    }

    /// Waits for so many rounds more.
    fn rounds(&self, more: u64) -> Result<()> {
        let until = self.rounds.load(SeqCst) + more + 1;
        process::eventually(TRIED, || match self.rounds.load(SeqCst) {
            now if now >= until => Ok(()),
            now => Err(fail!("only {now} of {until} rounds were tried")),
        })
    }
}

impl Drop for Tries {
    fn drop(&mut self) {
        self.stop.store(true, SeqCst);
    }
}

/// Sends to a host as programs do that ask no route, and as one that asks. What can't be sent, or not from
/// that port or device, has not left.
fn try_all(host: IpAddr, ports: &[u16]) {
    let any = match host {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    for device in [None, Some("u1"), Some("u2")] {
        for &port in ports {
            for flags in [0, libc::MSG_DONTROUTE] {
                let _ = (|| -> std::io::Result<()> {
                    let domain = Domain::for_address(SocketAddr::new(host, 9));
                    let socket = Socket::new(domain, Type::DGRAM, None)?;
                    socket.bind_device(device.map(str::as_bytes))?;
                    socket.bind(&SocketAddr::new(any, port).into())?;
                    socket.send_to_with_flags(CLEAR, &SocketAddr::new(host, 9).into(), flags)?;
                    Ok(())
                })();
            }
        }
    }
}
