//! How much the tunnels carry, beside the same network without one.
//!
//! Both ends and the generator share the cores of this machine: the figures compare the three, and say
//! nothing of two machines with a wire between them.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use serde::Serialize;
use serde_json::Value;

use super::pump::{self, SMALL};
use super::{Lane, Options, Outcome, median};
use crate::ends::Ends;
use crate::fail;
use crate::failure::{Context, Result};
use crate::peer::tunnel::Tunnel;
use crate::process::{self, Daemon};
use crate::topology::{GATEWAY, INSIDE, Node, Topology};

/// How long each sample takes, in seconds.
const SECONDS: u32 = 5;
/// The ESP proposal of both programs.
const ESP: &str = "aes128gcm16";
/// What the network without a tunnel is called.
const PLAIN: &str = "veth";

/// What one way through the network gave.
#[derive(Debug, Serialize)]
pub struct Throughput {
    /// The program and its version.
    version: String,
    /// The median of one TCP flow, in megabits a second.
    tcp_mbps: f64,
    /// Each of them.
    tcp_mbps_all: Vec<f64>,
    /// The median of UDP packets of 64 octets delivered, a second, that are sent one by one: as many as
    /// iperf3 makes.
    small_pps: f64,
    /// Each of them.
    small_pps_all: Vec<f64>,
    /// The same of packets that are sent 64 at a time.
    batched_pps: f64,
    /// Each of them.
    batched_pps_all: Vec<f64>,
    /// UDP packets delivered in all rounds together.
    delivered: u64,
    /// How many of them came after a later one.
    reordered: u64,
    /// The share of these, in percent.
    reordered_percent: f64,
}

/// A TCP flow, or a flow of small UDP packets one by one or in batches.
#[derive(Clone, Copy)]
enum Load {
    Tcp,
    Small,
    Batched,
}

/// Where a flow goes, and what has come of it.
struct Way<'a> {
    name: &'static str,
    version: String,
    topology: &'a Topology,
    from: IpAddr,
    to: IpAddr,
    tcp: Vec<f64>,
    small: Vec<f64>,
    batched: Vec<f64>,
    delivered: u64,
    reordered: u64,
    /// they live for as long as traffic is to pass
    _ends: Option<Ends<'a>>,
    _server: Daemon,
}

/// Each way carries one TCP flow, and then as many small UDP packets as it can; they take turns.
///
/// # Errors
/// A tunnel does not come up, or iperf3 has no result.
pub fn run(options: &Options) -> Result<Vec<(&'static str, Throughput)>> {
    let lanes = Lane::build_all(options, "throughput")?;
    let plain = Topology::build(PLAIN, false)?;
    let mut tunnel = Tunnel::default();
    tunnel.client.esp = vec![ESP];
    tunnel.gateway.esp = vec![ESP];
    let mut ways = Vec::new();
    for lane in &lanes {
        let (mut ends, version) = lane.up(&tunnel)?;
        let from = ends.virtual_ip(INSIDE.into())?;
        ends.ping_both_ways(INSIDE.into(), Duration::from_secs(10))?;
        let name = lane.program.name();
        let log = lane.out.join("iperf3-server.log");
        ways.push(Way::new(
            (name, version),
            &lane.topology,
            [from, INSIDE.into()],
            &log,
            Some(ends),
        )?);
    }
    let kernel = process::words("uname -r")?;
    let version = format!("no tunnel, Linux {}", kernel.trim());
    let [first, _] = plain.uplinks();
    let ends = [first.address.into(), GATEWAY.into()];
    let log = options.out.join("bench-throughput-iperf3-server.log");
    ways.push(Way::new((PLAIN, version), &plain, ends, &log, None)?);
    for round in 1..=options.times {
        for load in [Load::Tcp, Load::Small, Load::Batched] {
            for way in &mut ways {
                let line = way.sample(load).context(format!("{}, round {round}", way.name))?;
                eprintln!("{round} of {}  {:<10}  {line}", options.times, way.name);
            }
        }
    }
    Ok(ways.into_iter().map(|way| (way.name, way.outcome())).collect())
}

impl<'a> Way<'a> {
    fn new(
        (name, version): (&'static str, String),
        topology: &'a Topology,
        [from, to]: [IpAddr; 2],
        log: &Path,
        ends: Option<Ends<'a>>,
    ) -> Result<Self> {
        let mut server = topology.command(Node::Gateway, "iperf3");
        server.args(["-s", "-B", &to.to_string()]);
        let server = Daemon::start(&mut server, log)?;
        Ok(Way {
            name,
            version,
            topology,
            from,
            to,
            tcp: Vec::new(),
            small: Vec::new(),
            batched: Vec::new(),
            delivered: 0,
            reordered: 0,
            _ends: ends,
            _server: server,
        })
    }

    /// One flow; a line for people.
    fn sample(&mut self, load: Load) -> Result<String> {
        if let Load::Batched = load {
            return self.pump();
        }
        let mut command = self.topology.command(Node::Client, "iperf3");
        let (to, from, seconds) = (self.to.to_string(), self.from.to_string(), SECONDS.to_string());
        command.args(["-c", &to, "-B", &from, "-t", &seconds, "-J"]);
        if let Load::Small = load {
            // As many as the sender can: what is delivered is what counts.
            command.args(["-u", "-b", "0", "-l", &SMALL.to_string()]);
        }
        // The server takes one at a time, and may still be busy with the end of the last.
        let result = process::eventually(Duration::from_secs(10), || {
            let limit = Duration::from_secs(u64::from(SECONDS) + 15);
            let done = process::finish(&mut command, limit)?;
            let result: Value = serde_json::from_str(&done.stdout).context("iperf3")?;
            match result.get("error") {
                Some(error) => Err(fail!("iperf3: {error}")),
                None => Ok(result),
            }
        })?;
        match load {
            Load::Tcp => {
                let mbps = number(&result, "/end/sum_received/bits_per_second")? / 1e6;
                self.tcp.push(mbps);
                Ok(format!("TCP {mbps:.0} Mbit/s"))
            }
            Load::Small | Load::Batched => {
                let flow = |field| number(&result, &format!("/end/streams/0/udp/{field}"));
                let delivered = flow("packets")? - flow("lost_packets")?;
                let (pps, reordered) = (delivered / flow("seconds")?, flow("out_of_order")?);
                self.small.push(pps);
                self.delivered += delivered as u64;
                self.reordered += reordered as u64;
                Ok(format!("UDP {pps:.0} packets a second, {reordered:.0} reordered"))
            }
        }
    }

    /// Packets in batches; a line for people.
    fn pump(&mut self) -> Result<String> {
        let to = self.topology.udp_socket(Node::Gateway, SocketAddr::new(self.to, 0))?;
        let from = self.topology.udp_socket(Node::Client, SocketAddr::new(self.from, 0))?;
        let address = to.local_addr().context("address")?;
        from.connect(address).context(address)?;
        let pumped = pump::pump(&from, &to, Duration::from_secs(SECONDS.into()))?;
        let pps = pumped.delivered as f64 / pumped.took.as_secs_f64();
        self.batched.push(pps);
        self.delivered += pumped.delivered;
        self.reordered += pumped.reordered;
        Ok(format!("UDP in batches {pps:.0} packets a second, {} reordered", pumped.reordered))
    }

    fn outcome(self) -> Throughput {
        Throughput {
            tcp_mbps: median(self.tcp.iter().copied()),
            small_pps: median(self.small.iter().copied()),
            batched_pps: median(self.batched.iter().copied()),
            reordered_percent: 100.0 * self.reordered as f64 / self.delivered.max(1) as f64,
            version: self.version,
            tcp_mbps_all: self.tcp,
            small_pps_all: self.small,
            batched_pps_all: self.batched,
            delivered: self.delivered,
            reordered: self.reordered,
        }
    }
}

impl Outcome for Throughput {
    fn line(&self) -> String {
        let Self { version, tcp_mbps, small_pps, batched_pps, reordered_percent, .. } = self;
        format!(
            "{version}: TCP {tcp_mbps:.0} Mbit/s, {small_pps:.0} small UDP packets a second \
             ({batched_pps:.0} in batches), {reordered_percent:.3} % reordered"
        )
    }

    fn is_whole(&self) -> bool {
        self.tcp_mbps > 0.0 && self.delivered > 0
    }
}

fn number(result: &Value, pointer: &str) -> Result<f64> {
    let number = result.pointer(pointer).and_then(Value::as_f64);
    number.ok_or_else(|| fail!("iperf3 does not tell {pointer}"))
}
