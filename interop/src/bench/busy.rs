//! A gateway on a processor of its own, and what it takes of it.

use std::fs;
use std::time::Duration;

use rustix::process::Pid;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use super::Lane;
use super::herd::NETWORKS;
use crate::fail;
use crate::failure::{Context, Result};
use crate::peer::tunnel::{Proof, Tunnel};
use crate::peer::{self, Peer};
use crate::topology::Node;

/// The gateway's processor, and that of its clients.
const GATEWAY: usize = 0;
const CLIENTS: usize = 1;

/// Keeps this thread, and those that it starts, off the gateway's processor for as long as it lives.
pub struct Aside(CpuSet);

impl Aside {
    /// From now on.
    ///
    /// # Errors
    /// There are less than two processors.
    pub fn step() -> Result<Self> {
        let all = sched_getaffinity(None).context("processors")?;
        if !all.is_set(GATEWAY) || !all.is_set(CLIENTS) {
            return Err(fail!(
                "needs processors 0 and 1: one for the gateway, one for its clients"
            ));
        }
        sched_setaffinity(None, &only(CLIENTS)).context("a processor for the clients")?;
        Ok(Self(all))
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        let _ = sched_setaffinity(None, &self.0);
    }
}

fn only(processor: usize) -> CpuSet {
    let mut set = CpuSet::new();
    set.set(processor);
    set
}

/// What a process has taken so far.
#[derive(Debug, Clone, Copy)]
pub struct Taken {
    /// Processor time, its own and the kernel's for it.
    pub cpu: Duration,
    /// What it has in memory now, in octets.
    pub memory: u64,
}

/// A tunnel's settings for a gateway with very many clients.
pub fn crowd(client: &Proof, gateway: &Proof) -> Tunnel {
    let mut tunnel = Tunnel { crowd: true, ..Tunnel::default() };
    (tunnel.client.proof, tunnel.gateway.proof) = (client.clone(), gateway.clone());
    tunnel
}

/// Starts the gateway of a lane, on its processor alone, with ways to the clients' addresses.
///
/// # Errors
/// It does not start.
pub fn gateway(lane: &Lane, tunnel: &Tunnel) -> Result<Box<dyn Peer>> {
    let gateway = peer::start(lane.program, &lane.place(Node::Gateway, tunnel))?;
    let tasks = format!("/proc/{}/task", gateway.pid());
    for task in fs::read_dir(&tasks).context(&tasks)? {
        let name = task.context(&tasks)?.file_name();
        let id = name.to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw);
        sched_setaffinity(id, &only(GATEWAY)).context("a processor for the gateway")?;
    }
    lane.topology.herd(NETWORKS)?;
    Ok(gateway)
}

/// Asks the kernel what a process has taken.
///
/// # Errors
/// There is no such process.
pub fn taken(pid: u32) -> Result<Taken> {
    let read = |name: &str| {
        let path = format!("/proc/{pid}/{name}");
        fs::read_to_string(&path).context(path)
    };
    let stat = read("stat")?;
    // The second field is a name in brackets, with who knows what in it.
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
    let ticks: u64 = fields.split_whitespace().skip(11).take(2).flat_map(str::parse::<u64>).sum();
    let status = read("status")?;
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = resident.and_then(|text| text.split_whitespace().next()?.parse::<u64>().ok());
    Ok(Taken {
        cpu: Duration::from_millis(ticks * 1000 / rustix::param::clock_ticks_per_second()),
        memory: kib.unwrap_or(0) * 1024,
    })
}
