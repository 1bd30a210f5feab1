//! How much the tunnels carry, beside the same network without one.
//!
//! Both ends and the generator share the cores of this machine: the figures compare the three, and say
//! nothing of two machines with a wire between them.

use std::net::IpAddr;
use std::time::Duration;

use serde::Serialize;
use serde_json::Value;

use super::{Lane, Options, Outcome};
use crate::ends::Ends;
use crate::fail;
use crate::failure::{Context, Result};
use crate::peer::Program;
use crate::peer::tunnel::Tunnel;
use crate::process::{self, Daemon};
use crate::topology::{GATEWAY, INSIDE, Node, Topology};

/// How long each sample takes, in seconds.
const SECONDS: u32 = 5;
/// Octets of UDP payload in an IPv4 packet of 64 octets.
const SMALL: u32 = 64 - 20 - 8;
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
    /// The median of UDP packets of 64 octets delivered, a second.
    small_pps: f64,
    /// Each of them.
    small_pps_all: Vec<f64>,
    /// UDP packets delivered in all rounds together.
    delivered: u64,
    /// How many of them came after a later one.
    reordered: u64,
    /// The share of these, in percent.
    reordered_percent: f64,
}

/// A TCP flow or a flow of small UDP packets.
#[derive(Clone, Copy)]
enum Load {
    Tcp,
    Small,
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
    let plain = Lane::build_named(Program::Bewick, PLAIN, &options.out, "throughput")?;
    let mut tunnel = Tunnel::default();
    tunnel.client.esp = vec![ESP];
    tunnel.gateway.esp = vec![ESP];
    let mut ways = Vec::new();
    for lane in &lanes {
        let (mut ends, version) = lane.up(&tunnel)?;
        let from = ends.virtual_ip(INSIDE.into())?;
        ends.ping_both_ways(INSIDE.into(), Duration::from_secs(10))?;
        let name = lane.program.name();
        ways.push(Way::new(name, version, lane, from, INSIDE.into(), Some(ends))?);
    }
    let kernel = process::words("uname -r")?;
    let version = format!("no tunnel, Linux {}", kernel.trim());
    let from = plain.topology.first_uplink().address.into();
    ways.push(Way::new(PLAIN, version, &plain, from, GATEWAY.into(), None)?);
    for round in 1..=options.times {
        for load in [Load::Tcp, Load::Small] {
            for way in &mut ways {
                let line = way.sample(load).context(format!("{}, round {round}", way.name))?;
                eprintln!("{round} of {}  {:<10}  {line}", options.times, way.name);
            }
        }
    }
    ways.into_iter().map(|way| Ok((way.name, way.outcome()?))).collect()
}

impl<'a> Way<'a> {
    fn new(
        name: &'static str,
        version: String,
        lane: &'a Lane,
        from: IpAddr,
        to: IpAddr,
        ends: Option<Ends<'a>>,
    ) -> Result<Self> {
        let topology = &lane.topology;
        let mut server = topology.command(Node::Gateway, "iperf3");
        server.args(["-s", "-B", &to.to_string()]);
        let server = Daemon::start(&mut server, &lane.out.join("iperf3-server.log"))?;
        Ok(Way {
            name,
            version,
            topology,
            from,
            to,
            tcp: Vec::new(),
            small: Vec::new(),
            delivered: 0,
            reordered: 0,
            _ends: ends,
            _server: server,
        })
    }

    /// One flow; a line for people.
    fn sample(&mut self, load: Load) -> Result<String> {
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
            Load::Small => {
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

    fn outcome(self) -> Result<Throughput> {
        let nothing = || fail!("nothing was measured");
        Ok(Throughput {
            tcp_mbps: median(&self.tcp).ok_or_else(nothing)?,
            small_pps: median(&self.small).ok_or_else(nothing)?,
            reordered_percent: 100.0 * self.reordered as f64 / self.delivered.max(1) as f64,
            version: self.version,
            tcp_mbps_all: self.tcp,
            small_pps_all: self.small,
            delivered: self.delivered,
            reordered: self.reordered,
        })
    }
}

impl Outcome for Throughput {
    fn line(&self) -> String {
        let Self { version, tcp_mbps, small_pps, reordered_percent, .. } = self;
        format!(
            "{version}: TCP {tcp_mbps:.0} Mbit/s, {small_pps:.0} small UDP packets a second, \
             {reordered_percent:.3} % reordered"
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

/// The middle one, or the lower one of two in the middle: a figure that was measured.
fn median(samples: &[f64]) -> Option<f64> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len().checked_sub(1)? / 2).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_was_measured() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 3.0, 2.0]), Some(2.0));
        assert_eq!(median(&[]), None);
    }
}
