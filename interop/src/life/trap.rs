//! A client that waits for packets: the first one brings the tunnel up, each CHILD_SA by itself.

use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use super::case::{Case, Running, Stage};
use crate::ends::AGREED;
use crate::fail;
use crate::failure::{Context, Result};
use crate::peer::tunnel::Network;
use crate::peer::{Plane, Program, SaView};
use crate::process;
use crate::topology::Node;

/// How long nothing may happen where nothing is to happen.
const QUIET: Duration = Duration::from_secs(2);

/// How long packets that wait may take to be answered: that the kernel drops the first, and asks for the next
/// try of a ping, is in it.
const ANSWERED: Duration = Duration::from_secs(5);

/// Nothing until the first packet, then what that wants; after each DELETE the same again.
///
/// # Errors
/// A tunnel too many or too few, or a packet without an answer.
pub fn live(running: &mut Running<'_>) -> Result<()> {
    // The last one first: which it is, the packet says, and not the configuration's order.
    let hosts: Vec<IpAddr> = running.case.tunnel.networks().rev().map(|net| net.host).collect();
    let all = hosts.len();
    nothing_happens(running).context("before the first packet")?;
    let mut stands = None;
    for (made, host) in (1..).zip(&hosts) {
        let sas = wakes(running, *host, made).context(format!("the first packet to {host}"))?;
        if let Some(before) = stands.replace(sas[0].spis.clone()).filter(|it| *it != sas[0].spis) {
            return Err(fail!("another IKE_SA than {before} was made for {host}"));
        }
    }
    running.works().context("the tunnel that packets have brought up")?;

    if let (Some(first), true) =
        (hosts.first(), all > 1 && running.stage.life.gateway == Program::Strongswan)
    {
        let last = running.case.tunnel.children.last().map_or("", |child| child.name);
        running.ends.gateway.down_child(last).context("the gateway deletes one CHILD_SA")?;
        let sas = running.ends.agree(all - 1).context("after the DELETE of a CHILD_SA")?;
        let now = wakes(running, *first, all).context("a packet for the one that was deleted")?;
        if now[0].spis != sas[0].spis {
            return Err(fail!("another IKE_SA was made for one CHILD_SA"));
        }
    }

    running.ends.gateway.down().context("the gateway deletes")?;
    nothing_happens(running).context("after the gateway's DELETE")?;
    for (made, host) in (1..).zip(&hosts) {
        wakes(running, *host, made).context(format!("a packet to {host} after a DELETE"))?;
    }
    running.works().context("the tunnel after a DELETE")?;

    if running.stage.life.client == Program::Bewick {
        dies(running, &hosts)?;
    }
    running.ends.client.down().context("the client deletes")?;
    nothing_happens(running).context("after the client's DELETE")?;
    match running.stage.life.client {
        // It takes the trap along, until it is told to come up.
        Program::Bewick => running.ends.client.up().context("up")?,
        _ => {
            for (made, host) in (1..).zip(&hosts) {
                wakes(running, *host, made).context(format!("a packet to {host} after its own"))?;
            }
        }
    }
    running.works().context("the tunnel after the client's DELETE")?;
    running.ends.client.down().context("tunnel down")?;
    running.ends.both_have_none().context("after the last DELETE")
}

/// A client that is killed while it waits for packets waits for them when it is started again.
fn dies(running: &mut Running<'_>, hosts: &[IpAddr]) -> Result<()> {
    running.ends.gateway.down().context("the gateway deletes again")?;
    nothing_happens(running).context("after the gateway's second DELETE")?;
    let source = running.ends.virtual_ip(hosts[0])?;
    running.ends.client.kill();
    // What is sent meanwhile must not be seen in the capture.
    for host in hosts {
        let socket = running.ends.topology.udp_socket(Node::Client, (source, 0).into())?;
        let _ = socket.send_to(b"nobody catches this", (*host, 9));
    }
    running.start_again(Node::Client)?;
    nothing_happens(running).context("started again")?;
    for (made, host) in (1..).zip(hosts) {
        wakes(running, *host, made).context(format!("a packet to {host} after a crash"))?;
    }
    running.works().context("the tunnel after a crash").map(drop)
}

/// Once nobody waits for them any more, packets are seen in the clear where none was seen before: whoever
/// looks is not blind.
///
/// # Errors
/// They are not.
pub fn would_be_seen(stage: &Stage<'_>, case: &Case, out: &Path) -> Result<()> {
    let out = out.join("ended");
    fs::create_dir_all(&out).context(out.display())?;
    let capture = stage.topology.capture(&out)?;
    let (source, host) = (Network::SITE.host, Network::FIRST.host);
    let host = case.tunnel.networks().next().map_or(host, |net| net.host);
    let socket = stage.topology.udp_socket(Node::Client, (source, 0).into())?;
    for _ in 0..3 {
        socket.send_to(b"in the clear", (host, 9)).context("sending in the clear")?;
    }
    std::thread::sleep(Duration::from_millis(200));
    capture.finish()?.shows("a packet in the clear", &format!("src {source} and dst {host}"))
}

/// No end has an IKE_SA, and none comes by itself.
fn nothing_happens(running: &mut Running<'_>) -> Result<()> {
    running.ends.both_have_none()?;
    let until = Instant::now() + QUIET;
    while Instant::now() < until {
        for node in [Node::Client, Node::Gateway] {
            if let [sa, ..] = running.ends.at(node).sas()?.as_slice() {
                return Err(fail!("the {} has the IKE_SA {} unasked", node.name(), sa.spis));
            }
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    Ok(())
}

/// A packet to this host brings so many CHILD_SAs about, in all, and is answered: in bewick's own data plane
/// the very first one.
fn wakes(running: &mut Running<'_>, host: IpAddr, made: usize) -> Result<[SaView; 2]> {
    let life = running.stage.life;
    let held = life.client == Program::Bewick && life.plane == Plane::Userspace;
    let source = running.ends.virtual_ip(host)?.to_string();
    let ping = || {
        let mut command = running.ends.topology.command(Node::Client, "ping");
        command.args(["-n", "-c", "1", "-W", "3", "-I", &source, &host.to_string()]);
        process::finish(&mut command, Duration::from_secs(10))
    };
    let mut tries = 0;
    process::eventually(ANSWERED, || {
        tries += 1;
        match ping()?.status.success() {
            true => Ok(()),
            false => Err(fail!("no answer")),
        }
    })?;
    if held && tries > 1 {
        return Err(fail!("{} packets were lost before one was answered", tries - 1));
    }
    let sas = running.ends.agree(made)?;
    // What comes for the same is carried by the same.
    running.ends.topology.ping(Node::Client, source.parse().context(&source)?, host, AGREED)?;
    running.ends.agree(made).map(|_| sas)
}
