//! Both ends of a tunnel, asked and used as one.

use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use crate::fail;
use crate::failure::{Context, Result};
use crate::flow::{self, Flow};
use crate::peer::tunnel::Network;
use crate::peer::{Peer, Program, SaView};
use crate::process;
use crate::topology::{Node, Topology, Traces};

/// How long the ends may take to agree on the state of the tunnel.
pub const AGREED: Duration = Duration::from_secs(5);

/// Both ends of a tunnel.
pub struct Ends<'a> {
    /// Who initiates.
    pub client: Box<dyn Peer>,
    /// Who responds.
    pub gateway: Box<dyn Peer>,
    /// Where they are.
    pub topology: &'a Topology,
    /// The client's addresses on networks of its own, if it has some and no virtual ones.
    pub site: &'a [Network],
}

impl Ends<'_> {
    /// The daemon at an end.
    pub fn at(&mut self, node: Node) -> &mut dyn Peer {
        if node == Node::Client { self.client.as_mut() } else { self.gateway.as_mut() }
    }

    /// Both versions; one if they are the same.
    ///
    /// # Errors
    /// A daemon does not answer.
    pub fn versions(&self) -> Result<Vec<String>> {
        let mut versions = vec![self.client.version()?, self.gateway.version()?];
        versions.dedup();
        Ok(versions)
    }

    /// The client's address inside, of the family of `like`.
    ///
    /// # Errors
    /// No tunnel, or one without.
    pub fn virtual_ip(&mut self, like: IpAddr) -> Result<IpAddr> {
        if let Some(site) = self.site.iter().find(|site| site.host.is_ipv4() == like.is_ipv4()) {
            return Ok(site.host);
        }
        let sa = only(self.client.sas()?).context("client")?;
        let mut ips = sa.virtual_ips.iter().copied();
        ips.find(|ip| ip.is_ipv4() == like.is_ipv4())
            .ok_or_else(|| fail!("the client has no virtual address to reach {like} from"))
    }

    /// Pings this host behind the gateway from the client, and back.
    ///
    /// # Errors
    /// No answer within `limit`, or a later one was lost.
    pub fn ping_both_ways(&mut self, inside: IpAddr, limit: Duration) -> Result<()> {
        let virtual_ip = self.virtual_ip(inside)?;
        self.topology.ping(Node::Client, virtual_ip, inside, limit)?;
        self.topology.ping(Node::Gateway, inside, virtual_ip, limit)
    }

    /// A flow of numbered packets in each direction, to this IPv4 host behind the gateway and from it to
    /// the client.
    ///
    /// # Errors
    /// A socket could not be made.
    pub fn flows(&mut self, inside: IpAddr, port: u16, spacing: Duration) -> Result<[Flow; 2]> {
        self.flows_of(inside, port, spacing, flow::SMALL)
    }

    /// The same with packets of this many octets.
    ///
    /// # Errors
    /// A socket could not be made.
    pub fn flows_of(
        &mut self,
        inside: IpAddr,
        port: u16,
        spacing: Duration,
        size: usize,
    ) -> Result<[Flow; 2]> {
        let virtual_ip = self.virtual_ip(inside)?;
        let socket =
            |node, address: IpAddr, port| self.topology.udp_socket(node, (address, port).into());
        let out = socket(Node::Client, virtual_ip, 0)?;
        out.connect((inside, port)).context("flow to the gateway")?;
        let back = socket(Node::Gateway, inside, 0)?;
        back.connect((virtual_ip, port)).context("flow to the client")?;
        // Some daemons take the virtual address away for a moment, so nothing waits on it.
        let any = IpAddr::from([0, 0, 0, 0]);
        Ok([
            Flow::start(out, socket(Node::Gateway, inside, port)?, spacing, size)?,
            Flow::start(back, socket(Node::Client, any, port)?, spacing, size)?,
        ])
    }

    /// Waits until both ends show one IKE_SA and the same, with this many CHILD_SAs, and the same.
    ///
    /// # Errors
    /// They do not in time; the reason says what they show instead.
    pub fn agree(&mut self, children: usize) -> Result<[SaView; 2]> {
        process::eventually(AGREED, || {
            let client = only(self.client.sas()?).context("client")?;
            let gateway = only(self.gateway.sas()?).context("gateway")?;
            if client.spis != gateway.spis {
                return Err(fail!(
                    "the client's IKE_SA is {}, the gateway's {}",
                    client.spis,
                    gateway.spis
                ));
            }
            for (end, sa) in [("client", &client), ("gateway", &gateway)] {
                if sa.children.len() != children {
                    let found = sa.children.len();
                    return Err(fail!("the {end} has {found} CHILD_SAs, not {children}"));
                }
            }
            for child in &client.children {
                let pair = (child.spi_out, child.spi_in);
                if !gateway.children.iter().any(|other| (other.spi_in, other.spi_out) == pair) {
                    return Err(fail!("the gateway does not have the client's CHILD_SA {child}"));
                }
            }
            Ok([client, gateway])
        })
    }

    /// Waits until neither end has an IKE_SA.
    ///
    /// # Errors
    /// One still has.
    pub fn both_have_none(&mut self) -> Result<()> {
        process::eventually(AGREED, || {
            for node in [Node::Client, Node::Gateway] {
                if let [sa, ..] = self.at(node).sas()?.as_slice() {
                    return Err(fail!("the {} still has the IKE_SA {}", node.name(), sa.spis));
                }
            }
            Ok(())
        })
    }

    /// Keeps what both ends say of themselves.
    pub fn write_states(&mut self, out: &Path) {
        for node in [Node::Client, Node::Gateway] {
            let sas = match self.at(node).sas() {
                Ok(sas) => format!("{sas:#?}\n"),
                Err(error) => format!("{error}\n"),
            };
            let traces = match self.topology.traces(node) {
                Ok(traces) => format!("{traces:#?}\n"),
                Err(error) => format!("{error}\n"),
            };
            // Where the kernel says why it dropped a packet of ours.
            let mut drops = self.topology.command(node, "grep");
            drops.args(["-vP", "\\s0$", "/proc/net/xfrm_stat"]);
            let drops = process::finish(&mut drops, AGREED).map_or(String::new(), |it| it.stdout);
            let file = out.join(format!("{}-state.txt", node.name()));
            let _ = fs::write(file, sas + &traces + &drops);
        }
    }
}

/// The one IKE_SA there is.
///
/// # Errors
/// There is none, or there are several.
pub fn only(mut sas: Vec<SaView>) -> Result<SaView> {
    match (sas.pop(), sas.len()) {
        (Some(sa), 0) => Ok(sa),
        (Some(_), more) => Err(fail!("{} IKE_SAs where one was expected", more + 1)),
        (None, _) => Err(fail!("no IKE_SA is established")),
    }
}

/// What was on both hosts before a daemon of ours ran there.
pub struct Before([(Program, Node, Traces); 2]);

impl Before {
    /// Takes note.
    ///
    /// # Errors
    /// What `ip` said.
    pub fn note(topology: &Topology, client: Program, gateway: Program) -> Result<Self> {
        Ok(Self([
            (client, Node::Client, topology.traces(Node::Client)?),
            (gateway, Node::Gateway, topology.traces(Node::Gateway)?),
        ]))
    }

    /// Fails if bewick has left something behind.
    ///
    /// # Errors
    /// It has; the reason names it.
    pub fn nothing_left(&self, topology: &Topology) -> Result<()> {
        for (program, node, before) in &self.0 {
            if *program != Program::Bewick {
                continue;
            }
            let now = topology.traces(*node)?;
            let left = now.added_since(before);
            if !left.is_empty() {
                return Err(fail!("left on the {}: {}", node.name(), left.join("; ")));
            }
        }
        Ok(())
    }
}
