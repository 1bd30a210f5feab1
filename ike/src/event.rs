//! What comes out of the machines: datagrams to send, work for the data plane, and news.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::{
    child::{ChildId, ChildMove, ChildSa},
    config::{ConnectionId, Role},
    crypto::IkeEncryption,
    path::Path,
    secret::Secret,
    time::Time,
    wire::Payload,
};

/// Names an IKE_SA within this daemon; never used again.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SaId(pub u64);

/// Names one [`Action`], so that its answer can be told apart.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ActionId(pub u64);

/// One thing that the driver is to do.
#[derive(Debug)]
pub enum Output {
    /// Send a datagram.
    Transmit(Transmit),
    /// Ask the data plane, then hand the result to `answer` with the same id.
    Action {
        /// comes back with the answer
        id: ActionId,
        /// what is to be done
        action: Action,
    },
    /// Something has happened.
    Event(Event),
    /// The keys of an IKE_SA, for whoever looks at what is sent
    /// ([`Endpoint::set_reveals_keys`](crate::Endpoint::set_reveals_keys)); none unless that was asked for.
    Keys(Box<IkeKeys>),
}

/// The keys that protect the messages of an IKE_SA (RFC 7296 §2.14, §2.18).
#[derive(Debug)]
pub struct IkeKeys {
    /// the SPIs of initiator and responder
    pub spis: (u64, u64),
    /// the algorithms
    pub encryption: IkeEncryption,
    /// SK_ei and SK_er, an AEAD's salt at the end of each
    pub encryption_keys: (Secret, Secret),
    /// SK_ai and SK_ar, empty with an AEAD
    pub integrity_keys: (Secret, Secret),
}

/// A datagram: an IKE message without the non-ESP marker, which the socket of port 4500 adds
/// (RFC 7296 §2.23).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transmit {
    /// from where to where
    pub path: Path,
    /// the IKE message
    pub bytes: Vec<u8>,
}

/// Work for the data plane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Make both directions of a CHILD_SA work.
    Install(Box<ChildSa>),
    /// Take a CHILD_SA away, in both directions.
    Remove(ChildId),
    /// Move all of these or none.
    Move(Vec<ChildMove>),
    /// These are about to go: others with their reqids send from now on, also those that wait for them
    /// ([`ChildSa::waits`]), and they still receive. The peer takes nothing on them once it has our DELETE
    /// (RFC 7296 §1.4.1).
    Retire(Vec<ChildId>),
    /// Let these send no more than three times the octets that come for them on their path, or lift that
    /// limit: the peer has not shown yet that it receives there (RFC 4555 §3.7, §5.3).
    Cap {
        /// which
        children: Vec<ChildId>,
        /// from now on, or no longer
        on: bool,
    },
}

/// Why an [`Action`] did not succeed, in words for the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ActionError(pub String);

/// Which request a response belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Tag {
    /// the machine's own liveness check (RFC 7296 §2.4)
    Liveness,
    /// DELETE of the IKE_SA (RFC 7296 §1.4.1)
    Delete,
    /// making, rekeying or deleting SAs (RFC 7296 §1.3, §1.4.1)
    Child,
    /// a request of the layer above, with its own number
    Upper(u64),
}

/// Why an IKE_SA is gone or never came to be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CloseReason {
    /// we closed it
    #[error("closed here")]
    Local,
    /// the peer sent DELETE
    #[error("the peer deleted it")]
    PeerDeleted,
    /// the peer has proved that it has lost the IKE_SA, as by a crash (RFC 6290)
    #[error("the peer was restarted and has lost it")]
    PeerRestarted,
    /// requests went unanswered for too long
    #[error("no answer from {0}")]
    Unanswered(Path),
    /// the peer does not accept any of our algorithms (NO_PROPOSAL_CHOSEN)
    #[error("no common proposal (NO_PROPOSAL_CHOSEN){0}")]
    NoProposal(String),
    /// one side could not prove who it is (AUTHENTICATION_FAILED)
    #[error("authentication failed (AUTHENTICATION_FAILED): {0}")]
    Authentication(String),
    /// the peer refused us after an IKE_SA_INIT with a COOKIE; if that was forged, it has answered another
    /// request than the one that we proved ourselves with
    #[error(
        "authentication failed (AUTHENTICATION_FAILED): the peer does not accept our identity or \
         key, or somebody forged a COOKIE"
    )]
    Misled,
    /// NAT traversal is off, and the peer says that a NAT is there (RFC 4555 §3.9)
    #[error(
        "a NAT is on the path (UNEXPECTED_NAT_DETECTED), and nat_traversal is off: let it be on, or \
         take the NAT away"
    )]
    NatDetected,
    /// the IKE_SA came up, the CHILD_SA did not
    #[error("no CHILD_SA: {0}")]
    Child(String),
    /// the peer broke the protocol
    #[error("protocol error: {0}")]
    Protocol(String),
    /// the data plane refused
    #[error("the data plane refused: {0}")]
    DataPlane(String),
    /// another IKE_SA of the same peer took its place
    #[error("replaced by another IKE_SA of the same peer")]
    Replaced,
    /// another pair of addresses has answered first
    #[error("another pair of addresses has answered first")]
    Overtaken,
    /// our address is gone and the IKE_SA is not up yet, or the peer can't follow (RFC 4555 §3.2)
    #[error("our address {0} is gone, and this IKE_SA can't move")]
    AddressGone(IpAddr),
    /// the peer's COOKIE2 differs from ours (RFC 4555 §3.7)
    #[error("the peer returned another COOKIE2")]
    Cookie2,
}

/// What both ends know of an IKE_SA once it is established.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Established {
    /// our name for it
    pub sa: SaId,
    /// the connection it belongs to
    pub connection: ConnectionId,
    /// who started it
    pub role: Role,
    /// the identity that the peer proved
    pub peer: String,
    /// addresses that were assigned: to us as initiator, to the peer as responder
    pub virtual_ips: Vec<IpAddr>,
    /// DNS servers that the peer told us
    pub dns: Vec<IpAddr>,
    /// the domains that these servers are for (RFC 8598); none for all
    pub domains: Vec<String>,
    /// the networks behind the peer, as it says (RFC 7296 §3.15.2)
    pub subnets: Vec<IpNet>,
}

/// News from the IKE machines.
#[derive(Debug)]
pub enum Event {
    /// IKE_AUTH is done and the CHILD_SA carries traffic.
    Established(Established),
    /// Our IKE_SA_INIT has reached somebody, who asks for a cookie or another group or says no: the path may
    /// work.
    Reached {
        /// which IKE_SA
        sa: SaId,
    },
    /// IKE_SA_INIT was answered, and IKE_AUTH is on its way.
    Answering {
        /// which IKE_SA
        sa: SaId,
    },
    /// Our request was answered.
    Response {
        /// which IKE_SA
        sa: SaId,
        /// which request
        tag: Tag,
        /// the path that the response came on
        path: Path,
        /// the request has gone out on several paths: the response shows of none that it arrived there
        scattered: bool,
        /// the SPIs of initiator and responder that it has
        spis: (u64, u64),
        /// what was in it
        payloads: Vec<Payload>,
    },
    /// Some request of ours was answered on this path, or a copy of one that has been answered already:
    /// it comes before all that the answer leads to.
    Answered {
        /// which IKE_SA
        sa: SaId,
        /// the path that the response came on
        path: Path,
        /// when the request was sent, if that was once
        sent: Option<Time>,
    },
    /// A request of the peer's that has been answered came again: the answer may not have arrived.
    Repeated {
        /// which IKE_SA
        sa: SaId,
        /// the path that it came on
        path: Path,
    },
    /// Our request will not be answered, for a rekey of the IKE_SA has overtaken it.
    Lost {
        /// which IKE_SA
        sa: SaId,
        /// which request
        tag: Tag,
    },
    /// The IKE_SA is so old that a whole new one is to take its place (RFC 7296 §2.8.3). Told again if none
    /// does.
    Reauthenticate {
        /// which IKE_SA
        sa: SaId,
    },
    /// The IKE_SA has been rekeyed (RFC 7296 §1.3.2); its CHILD_SAs and its name stay.
    Rekeyed {
        /// which IKE_SA
        sa: SaId,
        /// the new SPIs of initiator and responder
        spis: (u64, u64),
    },
    /// A request has been sent again: a hint that the path may be dead.
    Unanswered {
        /// which IKE_SA
        sa: SaId,
        /// how often it has been sent by now
        tries: u32,
    },
    /// Somebody who may be the peer says that it does not know the IKE_SA (INVALID_IKE_SPI, RFC 7296
    /// §2.21.4): no proof of anything, but a reason to ask.
    Unknown {
        /// which IKE_SA
        sa: SaId,
        /// how often the request that it seems to answer has been sent
        tries: u32,
    },
    /// A CHILD_SA in transport mode is deleted, for traffic goes between other addresses now, and only tunnels
    /// are moved (RFC 4555 §1.2).
    LeftBehind {
        /// which IKE_SA
        sa: SaId,
        /// the CHILD_SA's place in the configuration
        config: usize,
        /// where it was
        from: Path,
    },
    /// The data plane answered a [`Action::Move`].
    Moved {
        /// which IKE_SA
        sa: SaId,
        /// the action
        id: ActionId,
        /// how it went
        result: Result<(), ActionError>,
    },
    /// The IKE_SA is gone, with all its CHILD_SAs.
    Closed {
        /// which IKE_SA
        sa: SaId,
        /// the connection it belonged to, if that was known by then
        connection: Option<ConnectionId>,
        /// the path that it had
        path: Path,
        /// why
        reason: CloseReason,
    },
    /// A message for no IKE_SA of ours was refused: for the operator's log.
    Refused {
        /// where it came from
        path: Path,
        /// why
        reason: CloseReason,
    },
}
