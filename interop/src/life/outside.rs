//! A host that is no part of the network behind the gateway: it is reached beside the tunnel, or through it
//! where that carries everything.

use std::net::Ipv4Addr;
use std::time::Duration;

use super::case::Running;
use super::seen::Seen;
use crate::failure::{Context, Result};
use crate::process;
use crate::topology::{INSIDE, Node, Topology};

/// The host, on the router's side of the gateway or behind it. A gateway does not tell of a private address.
const HOST: Ipv4Addr = Ipv4Addr::new(172, 16, 9, 9);

/// What the pings carry, in octets, by which they are known in ESP too: of that to the host, and of that to the
/// network inside.
const TO_HOST: u16 = 400;
const TO_INSIDE: u16 = 900;
/// What headers and ESP add to it at most.
const AROUND: u16 = 200;

/// How long answers may take.
const ANSWERED: Duration = Duration::from_secs(20);

/// Where the host is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outside {
    /// Where the client's uplinks lead.
    Beside,
    /// Behind the gateway, which alone has a route to it.
    Through,
}

impl Outside {
    /// Pings it as any program does, which names no source.
    ///
    /// # Errors
    /// An answer is missing.
    pub fn perform(self, running: &Running<'_>) -> Result<()> {
        let topology = running.stage.topology;
        let node = match self {
            Outside::Beside => Node::Router,
            Outside::Through => Node::Gateway,
        };
        topology.ip(node, &format!("addr add {HOST}/32 dev lo"))?;
        let pinged = ping(topology, HOST, TO_HOST).and_then(|()| match self {
            Outside::Beside => ping(topology, INSIDE, TO_INSIDE),
            Outside::Through => Ok(()),
        });
        topology.ip(node, &format!("addr del {HOST}/32 dev lo"))?;
        pinged
    }

    /// What the capture must show.
    pub fn seen(self) -> Vec<Seen> {
        match self {
            Outside::Beside => vec![Seen::from_uplink_to(HOST), in_esp(TO_INSIDE)],
            Outside::Through => vec![in_esp(TO_HOST)],
        }
    }

    /// What it must not show; packets of the network inside in the clear never are.
    pub fn unseen(self) -> Vec<Seen> {
        match self {
            Outside::Beside => vec![in_esp(TO_HOST)],
            Outside::Through => vec![Seen::bare(HOST)],
        }
    }
}

fn in_esp(size: u16) -> Seen {
    Seen::esp_of(size..=size + AROUND)
}

fn ping(topology: &Topology, to: Ipv4Addr, size: u16) -> Result<()> {
    let mut command = topology.command(Node::Client, "ping");
    let (to, size) = (to.to_string(), size.to_string());
    command.args(["-n", "-c", "3", "-i", "0.2", "-W", "5", "-s", &size, &to]);
    process::output(&mut command, ANSWERED).context(format!("a ping to {to}")).map(drop)
}
