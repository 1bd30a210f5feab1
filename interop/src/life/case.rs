//! One tunnel: what both ends are told, what is done to it, and how it is judged.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::Life;
use super::act::Act;
use super::seen::Seen;
use super::stranger;
use crate::ends::Ends;
use crate::fail;
use crate::failure::{Context, Result};
use crate::peer::tunnel::Tunnel;
use crate::peer::{self, Peer, Place, Program, SaView};
use crate::topology::{Node, Topology};

/// How long the first answer through a new tunnel may take.
const FIRST: Duration = Duration::from_secs(3);

/// One tunnel to try.
#[derive(Debug, Clone)]
pub struct Case {
    /// What it is, and its folder's name.
    pub name: String,
    /// What both ends are told.
    pub tunnel: Tunnel,
    /// What is done once it stands.
    pub act: Act,
    /// The IKE and ESP algorithms that both ends must show.
    pub agreed: Option<(&'static str, &'static str)>,
    /// Whether the ends must not come together.
    pub refused: bool,
    /// What must have passed the router.
    pub seen: Vec<Seen>,
}

/// Where cases run, one after the other.
pub struct Stage<'a> {
    /// Who takes part.
    pub life: Life,
    /// The network.
    pub topology: &'a Topology,
    /// Where sockets are.
    pub scratch: &'a Path,
}

/// A case under way.
pub struct Running<'a> {
    /// Both daemons.
    pub ends: Ends<'a>,
    /// What they were told.
    pub tunnel: &'a Tunnel,
    stage: &'a Stage<'a>,
    out: PathBuf,
}

impl Case {
    /// A tunnel that is only brought up, used, and taken down.
    pub fn new(name: impl Into<String>, tunnel: Tunnel) -> Self {
        Self {
            name: name.into(),
            tunnel,
            act: Act::Nothing,
            agreed: None,
            refused: false,
            seen: Vec::new(),
        }
    }

    /// Runs it; its evidence goes to `out`.
    ///
    /// # Errors
    /// What was not passed, and why.
    pub fn run(&self, stage: &Stage<'_>, out: &Path, versions: &mut Vec<String>) -> Result<()> {
        fs::create_dir_all(out).context(out.display())?;
        let capture = stage.topology.capture(out)?;
        let gateway = stage.start(Node::Gateway, &self.tunnel, out).context("start the gateway")?;
        let client = stage.start(Node::Client, &self.tunnel, out).context("start the client")?;
        let ends = Ends { client, gateway, topology: stage.topology };
        if versions.is_empty() {
            *versions = ends.versions()?;
        }
        let mut running = Running { ends, tunnel: &self.tunnel, stage, out: out.to_owned() };
        let lived = self.live(&mut running);
        if lived.is_err() {
            running.ends.write_states(out);
        }
        lived?;
        running.ends.client.stop().context("end of the client")?;
        running.ends.gateway.stop().context("end of the gateway")?;
        let captured = capture.finish()?;
        captured.none_in_the_clear()?;
        self.seen.iter().try_for_each(|seen| captured.shows(seen.what, &seen.filter))
    }

    fn live(&self, running: &mut Running<'_>) -> Result<()> {
        if self.tunnel.gateway.cookies {
            stranger::ask(running.stage.topology)?;
        }
        if self.refused {
            if running.ends.client.up().is_ok() {
                return Err(fail!("the tunnel came up, and it must not"));
            }
            return running.ends.both_have_none().context("after the refusal");
        }
        running.ends.client.up().context("tunnel up")?;
        let [client, gateway] = running.works().context("the new tunnel")?;
        if client.local.is_ipv6() != self.tunnel.over_ipv6 {
            return Err(fail!("the outer packets go from {}", client.local));
        }
        if let Some((ike, esp)) = self.agreed {
            for (end, sa) in [("client", &client), ("gateway", &gateway)] {
                shows(sa, ike, esp).context(end)?;
            }
        }
        self.act.perform(running)?;
        if self.act.ends_the_tunnel() {
            return Ok(());
        }
        running.ends.client.down().context("tunnel down")?;
        running.ends.both_have_none().context("after the client's DELETE")
    }
}

fn shows(sa: &SaView, ike: &str, esp: &str) -> Result<()> {
    if let Some(shown) = sa.suite.as_ref().filter(|shown| *shown != ike) {
        return Err(fail!("the IKE_SA has {shown}, not {ike}"));
    }
    match sa.children.iter().find(|child| child.suite != esp) {
        Some(child) => Err(fail!("the CHILD_SA has {}, not {esp}", child.suite)),
        None => Ok(()),
    }
}

impl Stage<'_> {
    fn program(&self, node: Node) -> Program {
        if node == Node::Client { self.life.client } else { self.life.gateway }
    }

    fn start(&self, node: Node, tunnel: &Tunnel, out: &Path) -> Result<Box<dyn Peer>> {
        let (topology, plane, scratch) = (self.topology, self.life.plane, self.scratch);
        let place = Place { topology, node, plane, out, scratch, tunnel };
        peer::start(self.program(node), &place)
    }
}

impl Running<'_> {
    /// Waits until both ends agree on the tunnel, then pings both ways through each part of it.
    ///
    /// # Errors
    /// They do not agree, or a packet was lost.
    pub fn works(&mut self) -> Result<[SaView; 2]> {
        let agreed = self.ends.agree(self.tunnel.children.len())?;
        for network in self.tunnel.networks() {
            self.ends.ping_both_ways(network.host, FIRST)?;
        }
        Ok(agreed)
    }

    /// Starts a daemon again, whose evidence so far is kept.
    ///
    /// # Errors
    /// It does not start.
    pub fn start_again(&mut self, node: Node) -> Result<()> {
        let out = self.out.join("started-again");
        fs::create_dir_all(&out).context(out.display())?;
        let daemon = self.stage.start(node, self.tunnel, &out).context("started again")?;
        match node {
            Node::Client => self.ends.client = daemon,
            _ => self.ends.gateway = daemon,
        }
        Ok(())
    }
}
