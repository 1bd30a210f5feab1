//! IKE and ESP over TCP (RFC 9329): when a connection is opened, and what follows from its end.
//!
//! A connection is a path like any other. The initiator chooses its own port when it decides for one, so
//! that NAT detection has the right port from the first message on, and a new connection is a new path.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use bewick_ike::{Path, Random, Role, SaId, Time, Transport};

use super::Host;
use crate::{
    event::{Cause, Hint},
    mobility::Awaiting,
    policy::{ConnectionPolicy, TcpUse},
};

/// So long after the last IKE_SA_INIT over UDP the first one goes over TCP: it has been repeated by then
/// (RFC 9329 §5.1).
pub(super) const BEFORE_FALLBACK: Duration = Duration::from_millis(1500);

/// Local ports of connections: the dynamic ones (RFC 6335 §6).
const PORTS: (u16, u16) = (49_152, 16_384);

/// How an IKE_SA_INIT may go: a pair of addresses, over UDP or TCP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Way {
    local: IpAddr,
    remote: IpAddr,
    transport: Transport,
}

impl Way {
    /// The one that an IKE_SA has.
    pub(super) fn of(path: Path) -> Self {
        Way { local: path.local.ip(), remote: path.remote.ip(), transport: path.transport }
    }

    pub(super) fn is_tcp(self) -> bool {
        self.transport == Transport::Tcp
    }

    /// The path: over UDP on port 500 (RFC 7296 §2), over TCP between these ports.
    pub(super) fn path(self, ours: u16, theirs: u16) -> Path {
        let path = |ours, theirs| {
            (SocketAddr::new(self.local, ours), SocketAddr::new(self.remote, theirs))
        };
        let ((local, remote), (ours, theirs)) = (path(500, 500), path(ours, theirs));
        if self.is_tcp() { Path::tcp(ours, theirs) } else { Path::new(local, remote) }
    }
}

/// All ways between these pairs of addresses in the order in which they are tried: UDP first (RFC 9329
/// §5.1).
pub(super) fn ways(pairs: &[(IpAddr, IpAddr)], policy: &ConnectionPolicy) -> Vec<Way> {
    let transports: &[Transport] = match policy.tcp {
        TcpUse::Off => &[Transport::Udp],
        TcpUse::Fallback => &[Transport::Udp, Transport::Tcp],
        TcpUse::Always => &[Transport::Tcp],
    };
    let way = |transport| {
        pairs.iter().map(move |(local, remote)| Way { local: *local, remote: *remote, transport })
    };
    transports.iter().flat_map(|transport| way(*transport)).collect()
}

/// A local port for a new connection.
pub(super) fn draw_port(random: &mut Random) -> u16 {
    PORTS.0 + u16::from_be_bytes(random.array()) % PORTS.1
}

impl Host {
    /// An IKE_SA has come up: from here on it may go over TCP, or does so already.
    pub(super) fn prepare_tcp(&mut self, id: SaId) {
        let Some(sa) = self.ike.sa(id).filter(|sa| sa.role == Role::Initiator) else { return };
        let path = sa.path;
        let policy = self.movers.policy_of(id);
        let ours = match path.is_tcp() {
            true => path.local.port(),
            false => draw_port(self.ike.random()),
        };
        if let Some(mobility) = self.movers.sas.get_mut(&id) {
            mobility.tcp = (policy.tcp, ours, policy.tcp_port);
        }
    }

    /// The next connection is another one.
    pub(super) fn draw_tcp_port(&mut self, id: SaId) {
        let port = draw_port(self.ike.random());
        if let Some(mobility) = self.movers.sas.get_mut(&id) {
            mobility.tcp.1 = port;
        }
    }

    /// A connection has ended or could not be opened. The IKE_SA stays in any case; it is for its originator
    /// to open another one (RFC 9329 §6.1).
    pub(super) fn on_disconnected(&mut self, now: Time, path: Path) {
        self.ike.disconnected(now, path, &mut self.movers);
        for id in self.ids(|sa| sa.role == Role::Initiator && sa.state == "established") {
            let Some(current) = self.ike.sa(id).map(|sa| sa.path) else { continue };
            let Some(mobility) = self.movers.sas.get(&id) else { continue };
            let (next, mobile) = (mobility.tcp.1, mobility.supported);
            if path != current && path.local.port() == next {
                // A race has tried it in vain; its next round has another one.
                self.draw_tcp_port(id);
            } else if path == current && mobile {
                self.touched.insert(id);
                self.suspect(now, id, Hint::Disconnected);
            } else if path == current {
                self.reconnect(now, id);
            }
        }
    }

    /// Without MOBIKE: another connection between the same addresses, and a message on it by which the peer
    /// knows that it is ours (RFC 9329 §6.1). No more than one a second.
    fn reconnect(&mut self, now: Time, id: SaId) {
        let Some(mobility) = self.movers.sas.get_mut(&id) else { return };
        if mobility.hinted.is_some_and(|at| now.since(at) < Duration::from_secs(1)) {
            return;
        }
        mobility.hinted = Some(now);
        self.draw_tcp_port(id);
        let Some(mut path) = self.ike.sa(id).map(|sa| sa.path) else { return };
        let port = self.movers.sas.get(&id).map_or(0, |mobility| mobility.tcp.1);
        path.local.set_port(port);
        self.change_connection(now, id, path);
        if !self.ike.is_asking(id) {
            self.request(now, id, &[], Awaiting::Probe, None);
        }
    }

    /// The IKE_SA and its CHILD_SAs go on on another connection; what is outstanding is sent there again
    /// (RFC 9329 §6.2).
    pub(super) fn change_connection(&mut self, now: Time, id: SaId, path: Path) {
        self.begin(now, id, path, Cause::Disconnected);
        if let Some(mobility) = self.movers.sas.get_mut(&id) {
            mobility.agreed = path;
        }
        self.confirm(now, id);
        self.move_children(now, id, path);
        self.ike.hasten(now, id, true, &mut self.movers);
    }
}
