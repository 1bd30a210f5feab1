//! IPsec data planes behind one trait: the kernel's XFRM, ESP in userspace over a TUN device, and a
//! fake for tests.
//!
//! A plane is told what CHILD_SAs are to exist and where they go ([`bewick_ike::ChildSa`],
//! [`bewick_ike::ChildMove`]); it knows nothing of IKE messages.

pub mod auto;
mod events;
pub mod fake;
pub mod kernel;
pub mod plane;
pub mod tcp;
pub mod udp;
pub mod userspace;

pub use plane::{
    Answer, Counters, DataPlane, Description, Kind, MoveReport, PlaneError, PlaneEvent, Reconciled,
    Since, Trap, TrapId,
};
