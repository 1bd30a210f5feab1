//! Another client that wants a tunnel to the same gateway.

use std::net::IpAddr;
use std::time::Duration;

use super::case::Running;
use crate::ends::{AGREED, only};
use crate::fail;
use crate::failure::{Context, Result};
use crate::peer::Peer;
use crate::process;
use crate::topology::Node;

/// How long the first answer through its tunnel may take.
const FIRST: Duration = Duration::from_secs(3);

/// What comes of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Second {
    /// It has a name and gets an address of its own, and both tunnels work.
    Joins,
    /// There is no address for it, and it learns so; the first one's tunnel works.
    IsRefused,
    /// It has the first one's name, and is refused for it; the first one's tunnel works.
    IsTurnedAway,
    /// It has the first one's name, and the gateway forgets the first one.
    Replaces,
    /// It has the first one's name, and both tunnels work.
    IsKeptToo,
}

impl Second {
    /// Does it.
    ///
    /// # Errors
    /// Something else comes of it.
    pub fn perform(self, running: &mut Running<'_>) -> Result<()> {
        let mut tunnel = running.case.tunnel.clone();
        if matches!(self, Second::Joins | Second::IsRefused) {
            tunnel.client.id = tunnel.second;
        }
        let stage = running.stage;
        let mut second =
            stage.start(Node::Second, &tunnel, &running.out).context("start the second client")?;
        let up = second.up();
        let done = match self {
            Second::IsRefused | Second::IsTurnedAway => match up {
                Ok(()) => Err(fail!("the second client's tunnel came up, and it must not")),
                Err(_) => works(running, None),
            },
            Second::Joins | Second::IsKeptToo => {
                up.context("the second client")?;
                works(running, Some(second.as_mut()))
            }
            Second::Replaces => {
                up.context("the second client")?;
                replaced(running, second.as_mut())
            }
        };
        done?;
        if !matches!(self, Second::IsRefused | Second::IsTurnedAway) {
            second.down().context("the second client's tunnel down")?;
        }
        // An IKE_SA may stand without an address (RFC 7296 §2.21.2): it goes with its client.
        second.stop().context("end of the second client")?;
        let left = if self == Second::Replaces { 0 } else { 1 };
        has(running, left).context("after the second client")
    }
}

/// The first client's tunnel works, and that of the second one, with an address of its own.
fn works(running: &mut Running<'_>, second: Option<&mut dyn Peer>) -> Result<()> {
    let first = only(running.ends.client.sas()?).context("the first client")?.virtual_ips;
    let hosts: Vec<IpAddr> = running.case.tunnel.networks().map(|network| network.host).collect();
    carries(running, if second.is_some() { 2 } else { 1 })?;
    if let Some(second) = second {
        let its = only(second.sas()?).context("the second client")?.virtual_ips;
        if let Some(shared) = its.iter().find(|address| first.contains(address)) {
            return Err(fail!("both clients have {shared}"));
        }
        pings(running, Node::Second, &its, &hosts)?;
    }
    pings(running, Node::Client, &first, &hosts)
}

/// The gateway has the second client's IKE_SA alone, and its tunnel works.
fn replaced(running: &mut Running<'_>, second: &mut dyn Peer) -> Result<()> {
    let its = only(second.sas()?).context("the second client")?;
    process::eventually(AGREED, || {
        let kept = only(running.ends.gateway.sas()?).context("gateway")?;
        match kept.spis == its.spis {
            true => Ok(()),
            false => Err(fail!("the gateway has kept the IKE_SA {}, not {}", kept.spis, its.spis)),
        }
    })?;
    let hosts: Vec<IpAddr> = running.case.tunnel.networks().map(|network| network.host).collect();
    pings(running, Node::Second, &its.virtual_ips, &hosts)
}

fn pings(running: &Running<'_>, node: Node, from: &[IpAddr], hosts: &[IpAddr]) -> Result<()> {
    let [address, ..] = from else {
        return Err(fail!("the {} has no virtual address", node.name()));
    };
    for host in hosts {
        running.ends.topology.ping(node, *address, *host, FIRST)?;
        running.ends.topology.ping(Node::Gateway, *host, *address, FIRST)?;
    }
    Ok(())
}

/// Waits until the gateway has so many CHILD_SAs.
fn carries(running: &mut Running<'_>, count: usize) -> Result<()> {
    process::eventually(AGREED, || {
        let sas = running.ends.gateway.sas()?;
        match sas.iter().map(|sa| sa.children.len()).sum::<usize>() {
            found if found == count => Ok(()),
            found => Err(fail!("the gateway has {found} CHILD_SAs, not {count}")),
        }
    })
}

/// Waits until the gateway has so many IKE_SAs.
fn has(running: &mut Running<'_>, count: usize) -> Result<()> {
    process::eventually(AGREED, || match running.ends.gateway.sas()?.len() {
        found if found == count => Ok(()),
        found => Err(fail!("the gateway has {found} IKE_SAs, not {count}")),
    })
}
