//! A path: the pair of outer addresses and ports that a packet travels between.

use std::{fmt, net::SocketAddr};

/// What carries IKE and ESP between the two ends of a path.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Transport {
    /// UDP, and ESP beside it or in it
    #[default]
    Udp,
    /// one TCP connection for both (RFC 9329)
    Tcp,
}

/// Our address and port, and the peer's as we see it (RFC 4555 §1.2's "address pair").
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Path {
    /// Our side: the source of what we send, the destination of what we receive.
    pub local: SocketAddr,
    /// The peer's side as its packets show it: behind a NAT, the NAT's mapping.
    pub remote: SocketAddr,
    /// What carries it.
    pub transport: Transport,
}

impl Path {
    /// The path over UDP from `local` to `remote`.
    pub fn new(local: SocketAddr, remote: SocketAddr) -> Self {
        Path { local, remote, transport: Transport::Udp }
    }

    /// The TCP connection between `local` and `remote` (RFC 9329).
    pub fn tcp(local: SocketAddr, remote: SocketAddr) -> Self {
        Path { local, remote, transport: Transport::Tcp }
    }

    /// Whether it is a TCP connection (RFC 9329).
    pub fn is_tcp(&self) -> bool {
        self.transport == Transport::Tcp
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} -> {}", self.local, self.remote)?;
        if self.is_tcp() { f.write_str(" (TCP)") } else { Ok(()) }
    }
}

impl fmt::Debug for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
