//! The trait that the data planes share.

use std::{future::Future, net::SocketAddr, num::NonZeroU32, pin::Pin, time::Duration};

use bewick_ike::{ChildId, ChildMove, ChildSa, Packet, Path, TrafficSelector};
use tokio::sync::mpsc;

/// What an operation of a plane resolves to. Boxed, so that the daemon can hold any plane.
pub type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, PlaneError>> + Send + 'a>>;

/// Which kind of plane carries the traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// XFRM in the kernel
    Kernel,
    /// ESP in UDP in this process, over a TUN device
    Userspace,
    /// no traffic at all: for tests
    Fake,
}

impl Kind {
    /// The word that the configuration and `bewick status` use.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Kernel => "kernel",
            Kind::Userspace => "userspace",
            Kind::Fake => "fake",
        }
    }
}

/// What a plane says of itself to the operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    /// which kind it is
    pub kind: Kind,
    /// why this one was taken, in one sentence
    pub reason: String,
    /// how a move is done: `migrate-state`, `migrate`, `delete-add`, `swap`
    pub move_method: &'static str,
}

/// Traffic of one CHILD_SA since it was installed; a move keeps the counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// inner octets received and delivered
    pub octets_in: u64,
    /// inner octets sent
    pub octets_out: u64,
    /// packets received and delivered
    pub packets_in: u64,
    /// packets sent
    pub packets_out: u64,
    /// packets that failed the integrity check, the replay window or the selectors
    pub rejected: u64,
    /// valid packets that came on another path than the CHILD_SA's (RFC 4555 §3.12)
    pub wrong_path: u64,
}

/// What one move cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MoveReport {
    /// netlink requests sent, 0 in userspace
    pub requests: u32,
    /// how often the kernel was asked and its answers were waited for, with several requests at once
    /// where they don't depend on each other; 0 in userspace
    pub round_trips: u32,
    /// from the first request to the last answer
    pub took: Duration,
    /// CHILD_SAs whose states the kernel has refused to migrate: they were deleted and added
    pub refused: u32,
}

/// How packets of one CHILD_SA came in since [`DataPlane::mark`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Since {
    /// the longest time between two packets of which the later one came since the mark; the earlier
    /// one may be from before, so that silence that led to the mark counts. Zero if none came
    pub longest_gap: Duration,
    /// sequence numbers that the peer has passed and that have not come in. What is still on its
    /// way or was overtaken counts until it comes, and so does what the peer left out
    pub lost: u64,
}

/// What [`DataPlane::reconcile`] has found and put right.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reconciled {
    /// states and policies of ours that nobody wants any more, and that are gone now
    pub removed: usize,
    /// policies that were missing or different, and are right again
    pub restored: usize,
    /// CHILD_SAs of which a state is missing: each gets a [`PlaneEvent::Expire`], for nobody knows
    /// which sequence numbers it had used
    pub incomplete: usize,
}

/// Names a trap for as long as it is set. Numbers are small: they count what a configuration has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TrapId(pub u32);

/// Packets that are for a CHILD_SA which is not there yet (RFC 4301 §5.1, step 3b).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trap {
    /// our own name for it
    pub id: TrapId,
    /// what is on our side
    pub ts_local: Vec<TrafficSelector>,
    /// what is on the peer's side
    pub ts_remote: Vec<TrafficSelector>,
    /// as in [`bewick_ike::Carriage`]
    pub if_id: Option<NonZeroU32>,
}

/// What a plane reports by itself. All are hints to the machines above: none moves an SA.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PlaneEvent {
    /// a lifetime ended: `hard` means that the kernel has removed the state
    Expire {
        /// which CHILD_SA
        id: ChildId,
        /// false for the warning before the end
        hard: bool,
    },
    /// a valid ESP packet came from another address or port than the path's remote
    Mapping {
        /// which CHILD_SA
        id: ChildId,
        /// where the packet came from
        seen: SocketAddr,
    },
    /// a trap has caught a packet, the first since it was set
    Acquire {
        /// which trap
        trap: TrapId,
        /// the packet
        packet: Packet,
    },
    /// another program has removed states or policies of ours, or all that there were: call
    /// [`DataPlane::reconcile`], until which it is not said again
    Disturbed,
    /// events were lost before they got here: a lifetime's end among them means that a CHILD_SA gets
    /// its successor late, or is gone from the kernel
    EventsLost,
}

/// Why a plane could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum PlaneError {
    /// the kernel refused
    #[error("{operation}: {message} (errno {errno})")]
    Kernel {
        /// what was being done, in the operator's words, never with a key
        operation: String,
        /// the positive error number
        errno: i32,
        /// the kernel's own text (extended ack) or the errno's
        message: String,
    },
    /// the kernel did not answer in time
    #[error("{0}: the kernel did not answer")]
    Timeout(String),
    /// no CHILD_SA of that name is installed
    #[error("no CHILD_SA {0:?} is installed")]
    UnknownChild(ChildId),
    /// the SPI is in use already
    #[error("the SPI is in use already")]
    SpiInUse,
    /// the plane can't carry this CHILD_SA
    #[error("{0}")]
    Unsupported(String),
    /// a system call failed
    #[error("{operation}: {source}")]
    Io {
        /// what was being done
        operation: String,
        /// the system's error
        source: std::io::Error,
    },
}

/// A data plane: installs, moves and removes CHILD_SAs and counts their traffic.
///
/// Every operation is all or nothing: after an error the plane is as it was before.
pub trait DataPlane: Send {
    /// Which plane this is and why it was taken.
    fn describe(&self) -> Description;

    /// The name of the device that holds the virtual addresses and the inner routes.
    fn device(&self) -> &str;

    /// Whether the plane carries ESP in UDP only, so that every CHILD_SA has to ask for it
    /// (RFC 7296 §2.23 lets either side do so).
    fn needs_encap(&self) -> bool {
        false
    }

    /// Makes both directions of `sa` work, with the policies that choose its traffic.
    fn install<'a>(&'a mut self, sa: &'a ChildSa) -> Answer<'a, ()>;

    /// Moves all of `moves` to their new paths, or none (RFC 4555 §3.5).
    ///
    /// Sequence numbers go on where they were. Packets still in flight on the old path are accepted
    /// for a while.
    fn move_children<'a>(&'a mut self, moves: &'a [ChildMove]) -> Answer<'a, MoveReport>;

    /// Removes `id` in both directions; no error if it is gone already.
    fn remove(&mut self, id: ChildId) -> Answer<'_, ()>;

    /// Has other CHILD_SAs with the reqids of `ids` send instead of them, if there are such, also those that wait
    /// for them to go ([`ChildSa::waits`]). They still receive. No error if one is gone already.
    fn retire<'a>(&'a mut self, ids: &'a [ChildId]) -> Answer<'a, ()>;

    /// Catches the packets of `trap` that no CHILD_SA carries: none of them leaves, and the first one is told by
    /// [`PlaneEvent::Acquire`]. After that nothing is told until the same trap is set again.
    fn set_trap<'a>(&'a mut self, trap: &'a Trap) -> Answer<'a, ()>;

    /// Catches nothing for `id` any more; no error if it is not set.
    fn clear_trap(&mut self, id: TrapId) -> Answer<'_, ()>;

    /// The traffic of `id` so far.
    fn counters(&mut self, id: ChildId) -> Answer<'_, Counters>;

    /// Compares what is there with what was asked for, and puts it right. To be called after
    /// [`PlaneEvent::EventsLost`] and [`PlaneEvent::Disturbed`]; a plane does so by itself at the start
    /// and after an error.
    fn reconcile(&mut self) -> Answer<'_, Reconciled> {
        Box::pin(async { Ok(Reconciled::default()) })
    }

    /// Whether [`DataPlane::cap`] does anything.
    fn can_cap(&self) -> bool {
        false
    }

    /// From now on these send no more than three times the octets that come for them on their path, or
    /// as much as they like again (RFC 4555 §3.7, §5.3).
    fn cap(&mut self, _ids: &[ChildId], _on: bool) {}

    /// Begins to count anew what [`DataPlane::since_mark`] tells of `id`.
    fn mark(&mut self, _id: ChildId) {}

    /// How packets of `id` came in since its mark; `None` without a mark, and from a plane that can't
    /// tell. The mark ends with it where watching costs something.
    fn since_mark(&mut self, _id: ChildId) -> Option<Since> {
        None
    }

    /// The stream of events; `None` the second time.
    fn take_events(&mut self) -> Option<mpsc::Receiver<PlaneEvent>>;

    /// The outer path that `id` uses now.
    fn path(&self, id: ChildId) -> Option<Path>;

    /// Removes all that this plane has made. Called once, before the daemon ends.
    fn shutdown(&mut self) -> Answer<'_, ()>;
}
