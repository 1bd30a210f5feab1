//! A path: the pair of outer addresses and ports that a packet travels between.

use std::{fmt, net::SocketAddr};

/// Our address and port, and the peer's as we see it (RFC 4555 §1.2's "address pair").
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Path {
    /// Our side: the source of what we send, the destination of what we receive.
    pub local: SocketAddr,
    /// The peer's side as its packets show it: behind a NAT, the NAT's mapping.
    pub remote: SocketAddr,
}

impl Path {
    /// The path from `local` to `remote`.
    pub fn new(local: SocketAddr, remote: SocketAddr) -> Self {
        Path { local, remote }
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} -> {}", self.local, self.remote)
    }
}

impl fmt::Debug for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
