//! The daemons under test, behind one face: what a scenario asks of either end.

pub mod bewick;
pub mod strongswan;

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;

use crate::failure::Result;
use crate::topology::{Node, Topology};

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
}

/// Who handles ESP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Plane {
    /// The daemons themselves, on this machine.
    Userspace,
    /// The guest kernel's XFRM.
    Kernel,
}

impl Program {
    /// Its name as the scenarios have it.
    pub fn name(self) -> &'static str {
        match self {
            Program::Bewick => "bewick",
            Program::Strongswan => "strongswan",
        }
    }
}

impl Plane {
    /// Its name as the scenarios have it.
    pub fn name(self) -> &'static str {
        match self {
            Plane::Userspace => "userspace",
            Plane::Kernel => "kernel",
        }
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
    /// The own address and port.
    pub local: SocketAddr,
    /// The peer's.
    pub remote: SocketAddr,
    /// The client's addresses inside the tunnel.
    pub virtual_ips: Vec<IpAddr>,
    /// How many CHILD_SAs carry traffic.
    pub children: usize,
}

impl std::fmt::Display for SaView {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} to {}, {} CHILD_SAs", self.local, self.remote, self.children)
    }
}

/// One running daemon with the tunnel configured.
pub trait Peer {
    /// The program and its version.
    fn version(&self) -> Result<String>;
    /// Brings the tunnel up (client only).
    fn up(&mut self) -> Result<()>;
    /// Takes the tunnel down in the protocol's own way.
    fn down(&mut self) -> Result<()>;
    /// The established IKE_SAs.
    fn sas(&mut self) -> Result<Vec<SaView>>;
    /// Ends the daemon with SIGTERM.
    fn stop(&mut self) -> Result<()>;
}

/// Starts a daemon and waits until it can be asked.
///
/// # Errors
/// It did not start, or refused its configuration.
pub fn start(program: Program, place: &Place<'_>) -> Result<Box<dyn Peer>> {
    Ok(match program {
        Program::Bewick => Box::new(bewick::Bewick::start(place)?),
        Program::Strongswan => Box::new(strongswan::Strongswan::start(place)?),
    })
}
