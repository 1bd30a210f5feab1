//! What goes into a host and what comes out.

use std::net::{IpAddr, SocketAddr};

use bewick_ike::{
    Action, ActionError, ActionId, ChildId, ConnectionConfig, ConnectionId, IkeKeys, Packet, Path,
    SaId, Transmit,
};

use crate::{address::LocalAddress, event::Event, policy::ConnectionPolicy};

/// What a host is made from.
#[derive(Debug, Default)]
pub struct HostConfig {
    /// the connections, and how each moves
    pub connections: Vec<(ConnectionConfig, ConnectionPolicy)>,
    /// the data plane can do nothing but ESP in UDP
    pub force_encap: bool,
    /// the data plane can do [`Action::Cap`]
    pub can_cap: bool,
}

/// What the operator wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// bring a connection of ours up
    Up(ConnectionId),
    /// bring it up when a packet asks for it
    Trap(ConnectionId),
    /// take it down, and wait for packets no longer
    Down(ConnectionId),
    /// move its IKE_SA
    Move(ConnectionId, MoveTarget),
    /// give its CHILD_SAs new keys
    Rekey(ConnectionId),
    /// give its IKE_SA new keys
    RekeyIke(ConnectionId),
    /// delete every IKE_SA
    Shutdown,
}

/// Where the operator wants an IKE_SA to go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MoveTarget {
    /// one of our addresses
    Address(IpAddr),
    /// one of our interfaces
    Interface(String),
}

/// Why a command can't be carried out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// no such connection
    #[error("no such connection")]
    UnknownConnection,
    /// only an initiator starts
    #[error("the connection is a responder: its peers start it")]
    NotInitiator,
    /// only the initiator decides the addresses (RFC 4555 §1.2)
    #[error("the connection is a responder: its peers decide the addresses (RFC 4555)")]
    PeerDecides,
    /// there is nothing to move
    #[error("the connection is not established")]
    NotEstablished,
    /// the peer can't follow
    #[error("the peer does not support MOBIKE")]
    NoMobike,
    /// no such address, or none that reaches the peer
    #[error("{0} is no usable address or interface of ours that reaches the peer; usable: {1}")]
    NoSuchAddress(String, String),
}

/// What goes in.
#[derive(Debug)]
pub enum Input<'a> {
    /// a datagram for port 500 or 4500 or a frame of a TCP connection, without the non-ESP marker
    Datagram {
        /// our address and port, and where it came from
        path: Path,
        /// the IKE message
        bytes: &'a [u8],
    },
    /// the time of [`Host::next_timeout`] has come
    Timeout,
    /// our usable addresses, all of them
    Addresses(Vec<LocalAddress>),
    /// the gateway's addresses, best first, for [`Output::Resolve`]
    Resolved {
        /// the connection
        connection: ConnectionId,
        /// none if the name could not be resolved
        addresses: Vec<IpAddr>,
    },
    /// the data plane reports that a CHILD_SA's sequence numbers or lifetime will soon be used up
    Expiring(ChildId),
    /// what the data plane has counted, for [`Output::Count`]
    Counted {
        /// the IKE_SA
        sa: SaId,
        /// packets sent, of all its CHILD_SAs
        sent: u64,
        /// packets received that were genuine and came on the path of their CHILD_SA
        received: u64,
    },
    /// genuine ESP of this CHILD_SA comes from another address or port than that of its path
    Mapping {
        /// the CHILD_SA
        child: ChildId,
        /// where the peer's ESP comes from
        remote: SocketAddr,
    },
    /// an ICMP error, which anyone may have forged, says that nothing gets through on this path
    Unreachable(Path),
    /// a TCP connection has ended, or could not be opened (RFC 9329 §6.1)
    Disconnected(Path),
    /// the data plane has caught a packet, by a trap that is set (see [`Output::SetTrap`])
    Acquire {
        /// whose trap
        connection: ConnectionId,
        /// for which CHILD_SA of its configuration
        child: usize,
        /// the packet
        packet: Packet,
    },
    /// the data plane could not set a trap (see [`Output::SetTrap`])
    Untrapped {
        /// whose trap
        connection: ConnectionId,
        /// for which CHILD_SA of its configuration
        child: usize,
    },
    /// the machine has slept: NATs may have forgotten us, and networks may have gone
    Resumed,
    /// the data plane's answer
    Answer {
        /// the action
        id: ActionId,
        /// how it went
        result: Result<(), ActionError>,
    },
}

/// What comes out.
#[derive(Debug)]
pub enum Output {
    /// send a datagram; over TCP, on the connection of this path, which an initiator's driver opens from
    /// that local port if there is none (RFC 9329 §6.1). What can't be sent is answered with
    /// [`Input::Disconnected`] there, and is a lost packet else.
    Transmit(Transmit),
    /// send one octet 0xFF (RFC 3948 §2.3)
    Keepalive(Path),
    /// ask the data plane; answer with [`Input::Answer`]
    Action {
        /// comes back with the answer
        id: ActionId,
        /// what is to be done
        action: Action,
    },
    /// tell what these CHILD_SAs have sent and received; answer with [`Input::Counted`]
    Count {
        /// the IKE_SA
        sa: SaId,
        /// its CHILD_SAs
        children: Vec<ChildId>,
    },
    /// look up the gateway's addresses; answer with [`Input::Resolved`]
    Resolve(ConnectionId),
    /// catch packets for this CHILD_SA of the configuration that no CHILD_SA carries: none may leave in the
    /// clear, and the first one is told by [`Input::Acquire`]. A trap that is set already, and has told
    /// of one, is to tell of the next one.
    SetTrap {
        /// whose
        connection: ConnectionId,
        /// for which CHILD_SA of its configuration
        child: usize,
    },
    /// catch no more
    ClearTrap {
        /// whose
        connection: ConnectionId,
        /// for which CHILD_SA of its configuration
        child: usize,
    },
    /// something has happened
    Event(Event),
    /// the keys of an IKE_SA, if they were asked for
    Keys(Box<IkeKeys>),
}
