//! Moves on networks that make it hard, and what takes the place of a move without MOBIKE.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::process::Command;
use std::time::{Duration, Instant};

use super::case::Running;
use super::transfer::Transfer;
use super::travel::{FIRST_ANSWER, MOVED, SETTLED, arrived, moves_with};
use crate::capture::{self, INFORMATIONAL, Told};
use crate::ends::{AGREED, only};
use crate::fail;
use crate::failure::{Context, Result};
use crate::peer::SaView;
use crate::peer::tunnel::Network;
use crate::process;
use crate::topology::{GATEWAY, Loss, Node, Topology};

/// How much goes through where TCP itself is slow, in octets.
const SOME: u64 = 1 << 20;
/// What a rough way there and back takes at least on average: a few packets are not delayed.
const ROUGH_RTT: Duration = Duration::from_millis(80);

/// What the way there and back takes where two losses come within it, in milliseconds: it leaves a slow machine
/// the time for both.
const FAR: u32 = 2000;
/// How long traffic may stay away there: an end that hears nothing asks again after a while only.
const AWAY: Duration = Duration::from_secs(15);

/// How long it may take to learn of a mapping that is lost while nothing is sent: the client asks every
/// second or so.
const LEARNT: Duration = Duration::from_secs(10);

/// How long a client without MOBIKE may take to begin anew.
const ANEW: Duration = Duration::from_secs(60);

/// The uplink is lost on a network that delays, loses and reorders, while TCP is in the tunnel.
///
/// # Errors
/// The network is not like that, or the tunnel does not come through it.
pub fn rough(running: &mut Running<'_>, before: &[SaView; 2]) -> Result<()> {
    let topology = running.ends.topology;
    topology.rough(true)?;
    let went = through_it(running, before);
    topology.rough(false)?;
    went?;
    running.works().context("on a good network again").map(drop)
}

fn through_it(running: &mut Running<'_>, before: &[SaView; 2]) -> Result<()> {
    let topology = running.ends.topology;
    let network = first_network(running)?;
    let lost = topology.uplink_of(before[0].local.ip())?;
    let other = topology.other(&lost);
    let takes = round_trip(topology, lost.address.into())?;
    running.figures.push(format!("{} ms there and back", takes.as_millis()));
    if takes < ROUGH_RTT {
        return Err(fail!("there and back takes {takes:?} only"));
    }
    let transfer = Transfer::start(topology, network.host, SOME)?;
    std::thread::sleep(SETTLED);
    // Pings would be lost too: numbered packets that arrive again both ways are the proof.
    let lose = |_: &mut Running<'_>| topology.lose(&lost, Loss::LinkDown);
    let moved = moves_with(running, &[network], AWAY, lose, |running| {
        process::eventually(MOVED, || {
            let client = only(running.ends.client.sas()?).context("client")?;
            let gateway = only(running.ends.gateway.sas()?).context("gateway")?;
            match client.local.ip() == other.address && gateway.remote.ip() == other.seen_as {
                true => Ok(()),
                false => Err(fail!("the client shows {client}, the gateway {gateway}")),
            }
        })?;
        // What was under way at the move is behind.
        std::thread::sleep(SETTLED);
        Ok(())
    });
    let transferred = transfer.finish();
    topology.restore(&lost)?;
    moved.and(transferred)
}

/// What `ping` says on average; a few answers may be missing.
fn round_trip(topology: &Topology, from: IpAddr) -> Result<Duration> {
    let mut ping: Command = topology.command(Node::Client, "ping");
    ping.args(["-n", "-q", "-c", "20", "-i", "0.1", "-W", "1", "-I"]);
    ping.args([from.to_string(), GATEWAY.to_string()]);
    let said = process::finish(&mut ping, Duration::from_secs(20))?.stdout;
    let average = || -> Option<f64> { said.split_once("= ")?.1.split('/').nth(1)?.parse().ok() };
    let average = average().ok_or_else(|| fail!("ping says {}", process::one_line(&said)))?;
    Ok(Duration::from_secs_f64(average / 1000.0))
}

/// The client has asked for its move and has no answer yet when that uplink goes too; then the first one is back.
///
/// # Errors
/// The second loss came too late, or the tunnel does not find back.
pub fn within_a_round_trip(running: &mut Running<'_>, before: &[SaView; 2]) -> Result<()> {
    let topology = running.ends.topology;
    let networks: Vec<Network> = running.case.tunnel.networks().collect();
    let children = running.case.tunnel.children.len();
    let first = topology.uplink_of(before[0].local.ip())?;
    let second = topology.other(&first);
    topology.delay(FAR)?;
    let flip = |running: &mut Running<'_>| {
        let known = asked(running, second.seen_as.into())?;
        topology.lose(&first, Loss::LinkDown)?;
        // A warm path is asked now and then too; what is new is the move.
        let question = process::eventually(AGREED, || {
            let now = asked(running, second.seen_as.into())?;
            let new = now.into_iter().find(|id| !known.contains(id));
            new.ok_or_else(|| fail!("the client has asked for nothing on {}", second.device))
        })?;
        topology.lose(&second, Loss::LinkDown)?;
        let answers =
            |one: &Told| one.is_response && one.to == second.seen_as && one.message_id == question;
        let answered = capture::told_so_far(&running.out)?.iter().any(answers);
        match answered {
            true => Err(fail!("the first move was answered before the second loss")),
            false => Ok(()),
        }
    };
    let flip = |running: &mut Running<'_>| {
        let flipped = flip(running);
        topology.restore(&first)?;
        // Pings are not given that long.
        topology.delay(0)?;
        flipped
    };
    let back = |client: &SaView, gateway: &SaView| {
        client.local.ip() == first.address && gateway.remote.ip() == first.seen_as
    };
    let moved = moves_with(running, &networks, AWAY, flip, |running| {
        arrived(running, &networks, children, back)
    });
    topology.restore(&second)?;
    moved
}

/// The Message IDs of what the client has asked from there so far.
fn asked(running: &Running<'_>, from: IpAddr) -> Result<BTreeSet<u32>> {
    let asked = capture::asked_so_far(&running.out)?;
    let asks = |one: &&Told| one.from == from && one.exchange == INFORMATIONAL;
    Ok(asked.iter().filter(asks).map(|one| one.message_id).collect())
}

/// The NAT forgets its mappings while nobody sends anything: the client's next question makes another, and
/// then the gateway reaches the client again (RFC 4555 §3.8).
///
/// # Errors
/// The gateway does not learn of the other mapping.
pub fn forgotten_at_rest(running: &mut Running<'_>, before: &[SaView; 2]) -> Result<()> {
    let topology = running.ends.topology;
    let network = first_network(running)?;
    let port = before[1].remote.port();
    let to = running.ends.virtual_ip(network.host)?;
    // A question before it has been answered: what an answer says of the NAT can be compared then.
    std::thread::sleep(super::travel::ASKED);
    topology.forget_mappings()?;
    process::eventually(LEARNT, || match only(running.ends.gateway.sas()?)?.remote.port() {
        now if now == port => Err(fail!("the gateway still sends to port {port}")),
        _ => Ok(()),
    })?;
    // The first packet is the gateway's.
    topology.ping(Node::Gateway, network.host, to, FIRST_ANSWER)?;
    let now = running.ends.agree(running.case.tunnel.children.len())?;
    match now[0].spis == before[0].spis {
        true => Ok(()),
        false => Err(fail!("the IKE_SA is another: {} and {}", before[0].spis, now[0].spis)),
    }
}

/// The uplink is lost, and nothing may move: the client begins another IKE_SA on the other uplink by itself.
///
/// # Errors
/// It does not in time, or packets don't pass.
pub fn anew(running: &mut Running<'_>, before: &[SaView; 2]) -> Result<()> {
    let topology = running.ends.topology;
    let lost = topology.uplink_of(before[0].local.ip())?;
    let other = topology.other(&lost);
    let begun = Instant::now();
    topology.lose(&lost, Loss::LinkDown)?;
    let made = process::eventually(ANEW, || {
        let client = only(running.ends.client.sas()?).context("client")?;
        let gateway = only(running.ends.gateway.sas()?).context("gateway")?;
        let there = client.local.ip() == other.address && gateway.remote.ip() == other.seen_as;
        match there && client.spis == gateway.spis && client.spis != before[0].spis {
            true => Ok(()),
            false => Err(fail!("the client shows {client}, the gateway {gateway}")),
        }
    });
    running.figures.push(format!("anew after {:.1} s", begun.elapsed().as_secs_f64()));
    let works = made.and_then(|()| running.works().context("anew").map(drop));
    topology.restore(&lost)?;
    works
}

fn first_network(running: &Running<'_>) -> Result<Network> {
    let network = running.case.tunnel.networks().next();
    network.ok_or_else(|| fail!("a CHILD_SA without networks"))
}
