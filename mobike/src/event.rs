//! What the operator hears.

use std::{fmt, net::IpAddr, time::Duration};

use bewick_ike::{ActionError, CloseReason, ConnectionId, Established, Packet, Path, SaId};

use crate::race::Tried;

/// Why an IKE_SA moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// the address that it used is no longer ours
    AddressGone(IpAddr),
    /// the address that the initiator chose is ours again
    AddressBack(IpAddr),
    /// the operator asked for it
    Requested,
    /// a better uplink than the one in use has worked for some time
    Better,
    /// the peer moved and told us so (UPDATE_SA_ADDRESSES)
    PeerMoved,
    /// a NAT has given us another mapping (RFC 4555 §3.8)
    NatMapping,
    /// the address that we used is no longer the peer's
    PeerAddressGone(IpAddr),
    /// the peer does not answer on this path
    NoAnswer,
    /// traffic went out on this path and none came back
    Silence,
    /// the TCP connection is gone
    Disconnected,
    /// the peer does not accept the path that was tried (UNACCEPTABLE_ADDRESSES)
    Refused,
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Cause::AddressGone(address) => write!(f, "our address {address} is gone"),
            Cause::AddressBack(address) => write!(f, "our address {address} is back"),
            Cause::Requested => f.write_str("asked for"),
            Cause::Better => f.write_str("a better uplink works"),
            Cause::PeerMoved => f.write_str("the peer moved"),
            Cause::NatMapping => f.write_str("a NAT has changed its mapping"),
            Cause::PeerAddressGone(address) => write!(f, "the peer's address {address} is gone"),
            Cause::Disconnected => f.write_str("the TCP connection is gone"),
            Cause::Silence => f.write_str("nothing came back on the path in use"),
            Cause::NoAnswer => f.write_str("no answer on the path in use"),
            Cause::Refused => f.write_str("the peer does not accept the path that was tried"),
        }
    }
}

/// Why a path is suspected to be dead: a reason to ask, never one to move (RFC 4555 §3.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hint {
    /// a request has had no answer yet
    Unanswered,
    /// traffic has gone out for some time and none has come in
    Silence,
    /// somebody on the way, or whoever forges that, says that the peer can't be reached
    Unreachable,
    /// the machine has slept
    Resumed,
    /// the peer says that its answers do not arrive
    Asked,
    /// the TCP connection is gone (RFC 9329 §6.1)
    Disconnected,
}

impl fmt::Display for Hint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Hint::Unanswered => "a request has had no answer",
            Hint::Silence => "nothing comes back",
            Hint::Unreachable => "an ICMP error says that the peer can't be reached",
            Hint::Resumed => "the machine has slept",
            Hint::Asked => "the peer says that its answers do not arrive",
            Hint::Disconnected => "the TCP connection is gone",
        })
    }
}

/// How the pair in use stands (draft-ietf-multi6-failure-detection-00 §5.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PrimaryState {
    /// there is none
    None,
    /// it is being asked
    Testing,
    /// it works, as far as is known
    Operational,
}

impl PrimaryState {
    /// A word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            PrimaryState::None => "none",
            PrimaryState::Testing => "testing",
            PrimaryState::Operational => "operational",
        }
    }
}

/// News for the operator and for the driver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// IKE_SA_INIT is on its way.
    Connecting {
        /// the connection
        connection: ConnectionId,
        /// on which path
        path: Path,
    },
    /// There is no address of ours that could reach the gateway; every change is tried at once.
    Waiting {
        /// the connection
        connection: ConnectionId,
    },
    /// The tunnel is up.
    Established {
        /// who and what
        established: Established,
        /// its path
        path: Path,
        /// whether both sides support MOBIKE
        mobike: bool,
    },
    /// The IKE_SA has new keys and new SPIs (RFC 7296 §1.3.2); all else goes on.
    Rekeyed {
        /// the connection
        connection: ConnectionId,
        /// the IKE_SA
        sa: SaId,
        /// the new SPIs of initiator and responder
        spis: (u64, u64),
    },
    /// A move has begun.
    Moving {
        /// the connection
        connection: ConnectionId,
        /// the IKE_SA
        sa: SaId,
        /// from here
        from: Path,
        /// to here
        to: Path,
        /// why
        cause: Cause,
    },
    /// A move is done: the peer has confirmed it and the data plane has followed.
    Moved {
        /// the connection
        connection: ConnectionId,
        /// the IKE_SA
        sa: SaId,
        /// from here
        from: Path,
        /// to here
        to: Path,
        /// why
        cause: Cause,
        /// from the decision to the confirmation
        took: Duration,
        /// the pairs that were asked before
        tried: Vec<Tried>,
    },
    /// Something suggests that the path is dead: it is being asked, and the others too.
    Suspected {
        /// the connection
        connection: ConnectionId,
        /// the IKE_SA
        sa: SaId,
        /// the path
        path: Path,
        /// what
        hint: Hint,
    },
    /// It was not.
    Alive {
        /// the connection
        connection: ConnectionId,
        /// the IKE_SA
        sa: SaId,
        /// the path
        path: Path,
        /// after this time
        after: Duration,
    },
    /// A CHILD_SA in transport mode is deleted: only tunnels are moved (RFC 4555 §1.2).
    LeftBehind {
        /// the connection
        connection: ConnectionId,
        /// the IKE_SA
        sa: SaId,
        /// which of its configuration
        child: usize,
        /// where it was
        from: Path,
    },
    /// The data plane refused a move; nothing has moved there.
    MoveFailed {
        /// the connection
        connection: ConnectionId,
        /// the IKE_SA
        sa: SaId,
        /// where it was to go
        to: Path,
        /// why not
        error: ActionError,
        /// the pairs that were asked before, in that order
        tried: Vec<Tried>,
    },
    /// No address of ours is left for this IKE_SA; it is held until there is one.
    Stranded {
        /// the connection
        connection: ConnectionId,
        /// the IKE_SA
        sa: SaId,
    },
    /// The peer told all its addresses.
    PeerAddresses {
        /// the connection
        connection: ConnectionId,
        /// the IKE_SA
        sa: SaId,
        /// the address that it used, then the additional ones
        addresses: Vec<IpAddr>,
    },
    /// An IKE_SA is gone, or never came to be.
    Closed {
        /// the connection, if that was known by then
        connection: Option<ConnectionId>,
        /// the IKE_SA
        sa: SaId,
        /// its last path
        path: Path,
        /// why
        reason: CloseReason,
    },
    /// A message or a part of a request was refused.
    Refused {
        /// where it came from
        path: Path,
        /// why
        reason: CloseReason,
    },
    /// A packet waits for a CHILD_SA, which is made now.
    Wanted {
        /// the connection
        connection: ConnectionId,
        /// which of its configuration
        child: usize,
        /// the packet
        packet: Packet,
    },
    /// That CHILD_SA could not be made: packets are dropped for a while, and then the next one asks again.
    HeldOff {
        /// the connection
        connection: ConnectionId,
        /// which of its configuration
        child: usize,
        /// for this time
        after: Duration,
    },
    /// The connection will be tried again.
    Retrying {
        /// the connection
        connection: ConnectionId,
        /// after this time
        after: Duration,
    },
}

impl Event {
    /// A name for machines, in kebab case.
    pub fn name(&self) -> &'static str {
        match self {
            Event::Connecting { .. } => "connecting",
            Event::Waiting { .. } => "waiting",
            Event::Established { .. } => "established",
            Event::Rekeyed { .. } => "rekeyed",
            Event::Moving { .. } => "moving",
            Event::Moved { .. } => "moved",
            Event::Suspected { .. } => "suspected",
            Event::Alive { .. } => "alive",
            Event::LeftBehind { .. } => "left-behind",
            Event::MoveFailed { .. } => "move-failed",
            Event::Stranded { .. } => "stranded",
            Event::PeerAddresses { .. } => "peer-addresses",
            Event::Closed { .. } => "closed",
            Event::Refused { .. } => "refused",
            Event::Wanted { .. } => "wanted",
            Event::HeldOff { .. } => "held-off",
            Event::Retrying { .. } => "retrying",
        }
    }

    /// The connection that it is about.
    pub fn connection(&self) -> Option<ConnectionId> {
        match self {
            Event::Connecting { connection, .. }
            | Event::Waiting { connection }
            | Event::Rekeyed { connection, .. }
            | Event::Moving { connection, .. }
            | Event::Moved { connection, .. }
            | Event::LeftBehind { connection, .. }
            | Event::MoveFailed { connection, .. }
            | Event::Suspected { connection, .. }
            | Event::Alive { connection, .. }
            | Event::Stranded { connection, .. }
            | Event::PeerAddresses { connection, .. }
            | Event::Wanted { connection, .. }
            | Event::HeldOff { connection, .. }
            | Event::Retrying { connection, .. } => Some(*connection),
            Event::Established { established, .. } => Some(established.connection),
            Event::Closed { connection, .. } => *connection,
            Event::Refused { .. } => None,
        }
    }
}

impl fmt::Display for Event {
    /// One sentence for a person, without the connection's name.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Event::Connecting { path, .. } => write!(f, "connecting, {path}"),
            Event::Waiting { .. } => {
                f.write_str("waiting for an address that can reach the gateway")
            }
            Event::Established { established, path, mobike } => {
                write!(f, "established with {}, {path}", established.peer)?;
                for address in &established.virtual_ips {
                    write!(f, ", virtual address {address}")?;
                }
                if !mobike {
                    f.write_str(", without MOBIKE: the tunnel can't move")?;
                }
                Ok(())
            }
            Event::Rekeyed { spis, .. } => {
                write!(f, "the IKE_SA has been rekeyed, SPIs {:016x} {:016x}", spis.0, spis.1)
            }
            Event::Moving { from, to, cause, .. } => {
                write!(f, "moving from {from} to {to}: {cause}")
            }
            Event::Suspected { path, hint, .. } => write!(f, "asking whether {path} works: {hint}"),
            Event::Alive { path, after, .. } => {
                write!(f, "{path} works, it answered after {:.1} ms", ms(*after))
            }
            Event::Moved { from, to, cause, took, .. } => {
                write!(f, "moved from {from} to {to} in {:.1} ms: {cause}", ms(*took))
            }
            Event::LeftBehind { child, from, .. } => {
                let child = Nth(*child);
                write!(f, "{child} is in transport mode and ends with {from}: only tunnels move")
            }
            Event::MoveFailed { to, error, .. } => {
                write!(f, "the data plane could not move to {to}: {}", error.0)
            }
            Event::Stranded { .. } => {
                f.write_str("no address left that can reach the peer: held until there is one")
            }
            Event::PeerAddresses { addresses, .. } => {
                f.write_str("the peer's addresses:")?;
                addresses.iter().try_for_each(|address| write!(f, " {address}"))
            }
            Event::Closed { path, reason, .. } => write!(f, "closed, {path}: {reason}"),
            Event::Refused { path, reason } => write!(f, "refused, {path}: {reason}"),
            Event::Wanted { child, .. } => write!(f, "a packet asks for {}", Nth(*child)),
            Event::HeldOff { child, after, .. } => {
                let (child, seconds) = (Nth(*child), after.as_secs_f64());
                write!(
                    f,
                    "{child} could not be made; the next packet after {seconds:.1} s asks again"
                )
            }
            Event::Retrying { after, .. } => {
                write!(f, "next try in {:.1} s", after.as_secs_f64())
            }
        }
    }
}

/// A CHILD_SA by its place in the configuration.
struct Nth(usize);

impl fmt::Display for Nth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => f.write_str("the first CHILD_SA"),
            more => write!(f, "the CHILD_SA of [[connection.child]] number {more}"),
        }
    }
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}
