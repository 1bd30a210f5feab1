//! Two sites that start towards each other at once: either IKE_SA comes about, and what stays of the two is
//! the same at both ends (RFC 7296 §2.4).

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use super::Life;
use super::case::Running;
use crate::capture::{self, IKE_AUTH, IKE_SA_INIT, Told};
use crate::ends::AGREED;
use crate::fail;
use crate::failure::{Context, Result};
use crate::flow::{Flow, Record};
use crate::peer::{Program, SaView, UP};
use crate::process;
use crate::topology::{FIRST_UPLINK, GATEWAY, INNER_NETWORK, Node, SITE_NETWORK, Topology};

/// Between two numbered packets.
const SPACING: Duration = Duration::from_millis(5);

/// How many packets may be lost one after the other: strongSwan sends on a CHILD_SA as soon as it has answered
/// who asked for it, and who deletes one takes no more of what is on the way. In the guest that takes longer.
const FEW: usize = 2;
const FEW_IN_GUEST: usize = 20;

/// How long bewick's answer may be on its way to strongSwan.
const HEARD: Duration = Duration::from_secs(1);

/// How long nothing may change before what there is counts as what stays: an end gives two IKE_SAs two
/// seconds before it deletes one.
const STAYS: Duration = Duration::from_secs(4);

/// How long that may take to come about.
const SETTLED: Duration = Duration::from_secs(20);

/// Both start before either hears the other, and then both hear; bewick's IKE_AUTH may be `late`, and find that
/// strongSwan has the IKE_SA that it has begun itself. It ends that without a word, for what bewick said in it,
/// INITIAL_CONTACT, was true when bewick said it.
///
/// # Errors
/// What is left differs from one end to the other, does not carry packets, or more than the two IKE_SAs were
/// begun.
pub fn live(running: &mut Running<'_>, late: bool) -> Result<()> {
    let topology = running.ends.topology;
    let first = topology.uplink_of(FIRST_UPLINK.into())?;
    let out = running.out.clone();
    let by_itself = running.case.tunnel.at_once;
    let bewick = match running.stage.life.client {
        Program::Bewick => Node::Client,
        _ => Node::Gateway,
    };
    let (client, gateway) = (&mut running.ends.client, &mut running.ends.gateway);
    std::thread::scope(|scope| {
        let mut told = Vec::new();
        if !by_itself {
            told.push(scope.spawn(|| client.up().context("the client")));
            told.push(scope.spawn(|| gateway.up().context("the gateway")));
        }
        let asked = process::eventually(UP, || {
            let asked = begun(&out)?;
            for (end, address) in [("client", FIRST_UPLINK), ("gateway", GATEWAY)] {
                if !asked.iter().any(|one| one.from == IpAddr::from(address)) {
                    return Err(fail!("the {end} has not begun an IKE_SA"));
                }
            }
            Ok(())
        });
        if late {
            topology.swallow(bewick, &first, IKE_AUTH)?;
        }
        topology.unsilence(&first)?;
        let asked = asked.and_then(|()| match late {
            true => is_late(running.ends.topology, &out, bewick),
            false => Ok(()),
        });
        let up = told.into_iter().map(|thread| {
            thread.join().map_err(|_| fail!("a thread that brings a tunnel up has died"))?
        });
        let up: Result<Vec<()>> = up.collect();
        asked.and(up).map(drop)
    })?;
    process::eventually(SETTLED, || same(running).map(drop)).context("both are up")?;

    let host = running.case.tunnel.networks().next().map(|network| network.host);
    let host = host.ok_or_else(|| fail!("a tunnel without networks"))?;
    let flows = running.ends.flows(host, 7000, SPACING)?;
    let in_guest = running.stage.life.plane.is_in_kernel();
    let few = match (late, in_guest) {
        // What is sent on the one that strongSwan has ended is lost.
        (true, _) => usize::MAX,
        (false, true) => FEW_IN_GUEST,
        (false, false) => FEW,
    };
    let stays = what_stays(running);
    let records = flows.map(Flow::finish);
    running.sent += records.iter().map(Record::sent).sum::<u64>();
    running.lost += records.iter().map(Record::lost).sum::<u64>();
    running.figures.push(format!("{} of two IKE_SAs stay", stays?.len()));
    for record in &records {
        record.lost_few(few)?;
    }
    running.ends.ping_both_ways(host, AGREED)?;
    let begun: BTreeSet<[u8; 8]> = begun(&running.out)?.iter().map(|one| one.spi_i).collect();
    if begun.len() != 2 {
        return Err(fail!("{} IKE_SAs were begun, not two", begun.len()));
    }
    // What a bewick keeps up comes back if the other end takes it down.
    running.ends.at(bewick).down().context("tunnel down")?;
    running.ends.both_have_none().context("after the DELETE")
}

/// From where packets may be seen in the clear: when strongSwan ends one of two IKE_SAs it takes the policies of both
/// away for a moment, and has nothing else that would hold packets back. Bewick has.
pub fn strongswans_network(life: Life) -> Option<&'static str> {
    match (life.client, life.gateway) {
        (Program::Strongswan, _) => Some(SITE_NETWORK),
        (_, Program::Strongswan) => Some(INNER_NETWORK),
        _ => None,
    }
}

/// Waits until strongSwan has had its IKE_SA, and lets bewick's own proof pass.
fn is_late(topology: &Topology, out: &Path, bewick: Node) -> Result<()> {
    let other: IpAddr = if bewick.is_client() { GATEWAY.into() } else { FIRST_UPLINK.into() };
    let proves = |one: &Told| one.exchange == IKE_AUTH && one.from == other;
    let asked = process::eventually(UP, || match capture::asked_so_far(out)?.iter().any(proves) {
        true => Ok(()),
        false => Err(fail!("strongSwan has not said who it is")),
    });
    std::thread::sleep(HEARD);
    asked.and(topology.let_pass())
}

/// The IKE_SA_INIT requests so far.
fn begun(out: &Path) -> Result<Vec<Told>> {
    let mut asked = capture::asked_so_far(out)?;
    asked.retain(|one| one.exchange == IKE_SA_INIT);
    Ok(asked)
}

/// What both ends have once that has not changed for a while.
fn what_stays(running: &mut Running<'_>) -> Result<BTreeSet<String>> {
    let mut last: (BTreeSet<String>, Instant) = (BTreeSet::new(), Instant::now());
    process::eventually(SETTLED, || {
        match same(running) {
            Ok(now) if now == last.0 => {}
            Ok(now) => last = (now, Instant::now()),
            Err(error) => {
                last = (BTreeSet::new(), Instant::now());
                return Err(error);
            }
        }
        match last.1.elapsed() >= STAYS {
            true => Ok(last.0.clone()),
            false => Err(fail!("it goes on changing")),
        }
    })
}

/// The IKE_SAs that both ends have, each with one CHILD_SA, the same at both.
fn same(running: &mut Running<'_>) -> Result<BTreeSet<String>> {
    let (client, gateway) = (running.ends.client.sas()?, running.ends.gateway.sas()?);
    let names =
        |sas: &[SaView]| -> BTreeSet<String> { sas.iter().map(|sa| sa.spis.clone()).collect() };
    let (at_client, at_gateway) = (names(&client), names(&gateway));
    if at_client != at_gateway || at_client.is_empty() {
        return Err(fail!("the client has {at_client:?}, the gateway {at_gateway:?}"));
    }
    let pairs = |sas: &[SaView], turned: bool| -> Result<BTreeSet<(u32, u32)>> {
        let mut pairs = BTreeSet::new();
        for sa in sas {
            let [child] = sa.children.as_slice() else {
                return Err(fail!("{} has {} CHILD_SAs", sa.spis, sa.children.len()));
            };
            let (to, from) = (child.spi_in, child.spi_out);
            pairs.insert(if turned { (from, to) } else { (to, from) });
        }
        Ok(pairs)
    };
    let (here, there) = (pairs(&client, false)?, pairs(&gateway, true)?);
    match here == there {
        true => Ok(at_client),
        false => Err(fail!("the client has the CHILD_SAs {here:08x?}, the gateway {there:08x?}")),
    }
}
