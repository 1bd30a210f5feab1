//! The daemons under test, behind one face: what a scenario asks of either end.

pub mod bewick;
mod script;
pub mod strongswan;
pub mod tunnel;

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;

use crate::failure::{Context, Result};
use crate::topology::{Node, Topology};
use tunnel::Tunnel;

/// The identity of the client.
pub const CLIENT_ID: &str = "laptop@example.com";
/// The identity of the gateway.
pub const GATEWAY_ID: &str = "vpn.example.com";
/// The key that both know; it protects nothing but the test network.
pub const PSK: &str = "migrating swans fly at night";
/// How long a tunnel may take to come up.
pub const UP: Duration = Duration::from_secs(20);

/// Which daemon stands at an end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Program {
    /// This project's.
    Bewick,
    /// Debian's strongSwan.
    Strongswan,
    /// Nobody's: a peer by hand, which says what no daemon can be made to say.
    Script,
}

/// Who handles ESP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Plane {
    /// The daemons themselves, on this machine.
    Userspace,
    /// The guest kernel's XFRM.
    Kernel,
    /// The XFRM of Debian's cloud kernel in another guest, which has XFRM interfaces and nftables for IP.
    CloudKernel,
}

impl Program {
    /// Its name as the scenarios have it.
    pub fn name(self) -> &'static str {
        match self {
            Program::Bewick => "bewick",
            Program::Strongswan => "strongswan",
            Program::Script => "script",
        }
    }
}

impl Plane {
    /// Its name as the scenarios have it.
    pub fn name(self) -> &'static str {
        match self {
            Plane::Userspace => "userspace",
            Plane::Kernel => "kernel",
            Plane::CloudKernel => "cloud-kernel",
        }
    }

    /// Whether it is in a guest's kernel.
    pub fn is_in_kernel(self) -> bool {
        self != Plane::Userspace
    }

    /// The word for it in bewick's configuration.
    pub fn word(self) -> &'static str {
        if self.is_in_kernel() { "kernel" } else { "userspace" }
    }
}

/// Where and how a daemon is started.
pub struct Place<'a> {
    /// The network it lives in.
    pub topology: &'a Topology,
    /// The host: the client initiates, the gateway responds.
    pub node: Node,
    /// Who handles ESP.
    pub plane: Plane,
    /// Where its logs and configuration stay as evidence.
    pub out: &'a Path,
    /// Where its sockets are.
    pub scratch: &'a Path,
    /// The tunnel that it is one end of.
    pub tunnel: &'a Tunnel,
}

impl Place<'_> {
    /// A file of evidence of this host: `client-strongswan.log`.
    pub fn evidence(&self, name: &str) -> PathBuf {
        self.out.join(format!("{}-{name}", self.node.name()))
    }
}

/// An IKE_SA as its owner describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SaView {
    /// Both SPIs, the initiator's first, in hex.
    pub spis: String,
    /// The own address and port.
    pub local: SocketAddr,
    /// The peer's.
    pub remote: SocketAddr,
    /// The client's addresses inside the tunnel.
    pub virtual_ips: Vec<IpAddr>,
    /// The DNS servers that the client was told of, if the daemon says them.
    pub dns: Vec<IpAddr>,
    /// The algorithms in the words of the configurations, if the daemon says them.
    pub suite: Option<String>,
    /// The CHILD_SAs that carry traffic.
    pub children: Vec<ChildView>,
}

/// A CHILD_SA as its owner describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChildView {
    /// The SPI in packets to this end.
    pub spi_in: u32,
    /// The SPI in packets from this end.
    pub spi_out: u32,
    /// The algorithms in the words of the configurations.
    pub suite: String,
    /// What follows them there, the key exchange and `esn`, or nothing; if the daemon says it.
    pub beyond: Option<String>,
}

impl std::fmt::Display for SaView {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} to {}, {} CHILD_SAs", self.local, self.remote, self.children.len())
    }
}

impl std::fmt::Display for ChildView {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:08x} in, {:08x} out", self.spi_in, self.spi_out)
    }
}

/// Reads an SPI of a CHILD_SA in hex, with or without `0x`.
fn spi(text: &str) -> Result<u32> {
    let digits = text.strip_prefix("0x").unwrap_or(text);
    u32::from_str_radix(digits, 16).context(format!("SPI {text}"))
}

/// One running daemon with the tunnel configured.
pub trait Peer: Send {
    /// The program and its version.
    fn version(&self) -> Result<String>;
    /// Brings the tunnel up (client only).
    fn up(&mut self) -> Result<()>;
    /// Takes the tunnel down in the protocol's own way.
    fn down(&mut self) -> Result<()>;
    /// Takes one CHILD_SA down; strongSwan alone has a word for that.
    fn down_child(&mut self, name: &str) -> Result<()>;
    /// Asks the peer for the end of one CHILD_SA and does not wait for the answer, as above.
    fn ask_for_end(&mut self, name: &str) -> Result<()>;
    /// Asks the peer for one CHILD_SA that is missing and does not wait for the answer.
    fn ask_for_child(&mut self, name: &str) -> Result<()>;
    /// Gives the CHILD_SAs new keys.
    fn rekey_children(&mut self) -> Result<()>;
    /// Gives the IKE_SA new keys.
    fn rekey_ike(&mut self) -> Result<()>;
    /// Goes to another uplink, while both work (client only).
    fn move_to(&mut self, device: &str) -> Result<()>;
    /// Proves anew who it is, with a whole new IKE_SA (client only).
    fn reauthenticate(&mut self) -> Result<()>;
    /// The established IKE_SAs.
    fn sas(&mut self) -> Result<Vec<SaView>>;
    /// The daemon's process.
    fn pid(&self) -> u32;
    /// Ends the daemon with SIGTERM.
    fn stop(&mut self) -> Result<()>;
    /// Ends the daemon with SIGKILL, so that its peer hears nothing of it.
    fn kill(&mut self);
}

/// Starts a daemon and waits until it can be asked.
///
/// # Errors
/// It did not start, or refused its configuration.
pub fn start(program: Program, place: &Place<'_>) -> Result<Box<dyn Peer>> {
    Ok(match program {
        Program::Bewick => Box::new(bewick::Bewick::start(place)?),
        Program::Strongswan => Box::new(strongswan::Strongswan::start(place)?),
        Program::Script => Box::new(script::Script),
    })
}
